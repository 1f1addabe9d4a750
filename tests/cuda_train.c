/* cuda_train.c - training and decoding on the GPU: near the CPU's losses in every recipe, the same bits in every run
 * and checkpointing mode, checkpoints that go from one to the other, and updates that non-finite gradients skip. */
#include "cuda_support.h"
#include "training.h"

static const char *const recipes[] = { "bf16", "tensorwise", "blockwise", "deepseek", "flow" };
static const char *const models[] = { MICRO_SOFTMAX, MICRO_SIGMOID };
enum { NUM_RECIPES = sizeof recipes / sizeof recipes[0], NUM_MODELS = sizeof models / sizeof models[0] };

/* ---- Runs ---- */

static const char *corpus_data[1];
static char corpus_path[600], model_path[600];

/* A run of the model on the GPU, two micro-batches in a step. */
static run gpu_run(const char *json)
{
    snprintf(corpus_path, sizeof corpus_path, "%s", put_corpus("corpus", 20000, 1));
    snprintf(model_path, sizeof model_path, "%s", put_text("model.json", json));
    corpus_data[0] = corpus_path;
    run r = make_run(model_path, corpus_data);
    r.create_context = fp8flow_context_create;
    r.backend = device_backend();
    r.options.micro_batch = 2;
    r.until = 4;
    return r;
}

static run on_cpu(run r)
{
    r.backend = FP8FLOW_CPU;
    r.create_context = fp8flow_context_create;
    return r;
}

static void skip_without_a_gpu(void)
{
    fp8flow_context *context = NULL;
    fp8flow_status status =
        has_gpu() ? fp8flow_context_create(&(fp8flow_context_options){ .backend = FP8FLOW_CUDA }, &context)
                  : FP8FLOW_OK;
    fp8flow_context_destroy(context);
    skip_where(status == FP8FLOW_ENOSYS, fp8flow_last_error());
    assert_ok(status);
}

static void assert_same_metrics(const run *a, const run *b)
{
    assert_same_losses(a, b, 1, a->until);
    for (int64_t step = 1; step <= a->until; step++) {
        const fp8flow_step_metrics *x = &a->metrics[step], *y = &b->metrics[step];
        if (x->gradient_norm != y->gradient_norm || x->aux_loss != y->aux_loss)
            fail_msg("step %d: norms %.17g and %.17g, router losses %.17g and %.17g", (int)step, x->gradient_norm,
                     y->gradient_norm, x->aux_loss, y->aux_loss);
    }
    assert_true(a->validation == b->validation);
}

/* ---- Near the CPU ---- */

/* The first step starts from equal weights; after it, rounding grows into other choices of experts. */
static void check_near(const char *json, const char *recipe)
{
    run gpu = gpu_run(json);
    gpu.options.recipe = recipe;
    gpu.until = 20;
    run cpu = on_cpu(gpu);
    assert_ok(try_run(&gpu));
    assert_ok(try_run(&cpu));
    for (int64_t step = 1; step <= gpu.until; step++) {
        double a = gpu.metrics[step].loss, b = cpu.metrics[step].loss;
        if (!(fabs(a - b) <= (step == 1 ? 2e-3 : 5e-2) * b))
            fail_msg("%s, step %d: loss %.6f, on the CPU %.6f", recipe, (int)step, a, b);
    }
    assert_true(gpu.metrics[20].loss < 0.75 * gpu.metrics[1].loss);
    assert_true(fabs(gpu.validation - cpu.validation) <= 5e-2 * cpu.validation);
    assert_true(fabs(gpu.metrics[1].gradient_norm - cpu.metrics[1].gradient_norm) <=
                2e-2 * cpu.metrics[1].gradient_norm);
    assert_int_equal(gpu.metrics[1].explicit_casts, cpu.metrics[1].explicit_casts);
    assert_true(gpu.metrics[1].wire_bytes_per_token == cpu.metrics[1].wire_bytes_per_token);
}

static void test_losses_are_near_those_of_the_cpu(void **state)
{
    (void)state;
    skip_without_a_gpu();
    for (int m = 0; m < NUM_MODELS; m++)
        for (int i = 0; i < NUM_RECIPES; i++) check_near(models[m], recipes[i]);
}

static fp8flow_status get_loads(fp8flow_trainer *trainer, void *user)
{
    return fp8flow_trainer_get_load(trainer, 0, user);
}

/* Of all micro-batches, and not of a validation after them. */
static void test_loads_are_those_of_a_step(void **state)
{
    (void)state;
    int64_t load[4], total = 0;
    skip_without_a_gpu();
    run r = gpu_run(MICRO_SOFTMAX);
    r.until = 3;
    r.look = get_loads;
    r.user = load;
    assert_ok(try_run(&r));
    for (int e = 0; e < 4; e++) total += load[e];
    assert_int_equal(total, 4 * 32 * 2);
}

/* ---- The same bits ---- */

static void test_two_runs_have_the_same_bits(void **state)
{
    (void)state;
    skip_without_a_gpu();
    for (int m = 0; m < NUM_MODELS; m++)
        for (int i = 0; i < NUM_RECIPES; i++) {
            run one = gpu_run(models[m]);
            one.options.recipe = recipes[i];
            run other = one;
            one.options.output = in_folder("one");
            other.options.output = in_folder("other");
            assert_ok(try_run(&one));
            assert_ok(try_run(&other));
            assert_same_metrics(&one, &other);
            assert_same_files(step_folder("one", one.until), step_folder("other", other.until));
        }
}

static void test_checkpointing_does_not_change_a_bit(void **state)
{
    (void)state;
    static const fp8flow_checkpointing modes[] = { FP8FLOW_KEEP_ALL, FP8FLOW_MOE_EXPERT, FP8FLOW_FULL };
    static const char *const folders[] = { "none", "moe_expert", "full" };
    skip_without_a_gpu();
    for (int m = 0; m < NUM_MODELS; m++)
        for (int i = 0; i < NUM_RECIPES; i++) {
            run runs[3];
            for (int mode = 0; mode < 3; mode++) {
                runs[mode] = gpu_run(models[m]);
                runs[mode].options.recipe = recipes[i];
                runs[mode].options.checkpointing = modes[mode];
                runs[mode].options.output = in_folder(folders[mode]);
                assert_ok(try_run(&runs[mode]));
                assert_same_metrics(&runs[0], &runs[mode]);
                assert_same_files(step_folder("none", 4), step_folder(folders[mode], 4));
            }
        }
}

/* Tokens of the next step go to the device before a step ends; a validation in between sends others. */
static fp8flow_status validate_then_step(fp8flow_trainer *trainer, void *user)
{
    double loss;
    fp8flow_step_metrics metrics;
    F8_TRY(fp8flow_trainer_validate(trainer, &loss));
    F8_TRY(fp8flow_trainer_step(trainer, &metrics));
    *(double *)user = metrics.loss;
    return FP8FLOW_OK;
}

static void test_validation_does_not_change_a_step(void **state)
{
    (void)state;
    double loss = 0.0;
    skip_without_a_gpu();
    run plain = gpu_run(MICRO_SOFTMAX), validated = plain;
    validated.until = 3;
    validated.look = validate_then_step;
    validated.user = &loss;
    assert_ok(try_run(&plain));
    assert_ok(try_run(&validated));
    assert_true(loss == plain.metrics[4].loss);
}

/* ---- Checkpoints ---- */

/* Saved by one, loaded and saved again by the other: the same bytes; and the other goes on. */
static void check_move(run first, run second, const char *json)
{
    first.options.output = in_folder("first");
    assert_ok(try_run(&first));
    run moved = second;
    moved.options.resume = first.options.output;
    moved.options.output = in_folder("second");
    assert_ok(try_run(&moved));
    assert_same_files(step_folder("first", first.until), step_folder("second", first.until));
    run on = second, straight = first;
    on.options.resume = first.options.output;
    on.until = straight.until = first.until + 1;
    straight.options.output = NULL;
    assert_ok(try_run(&on));
    assert_ok(try_run(&straight));
    double a = on.metrics[on.until].loss, b = straight.metrics[on.until].loss;
    if (!(fabs(a - b) <= 5e-3 * b)) fail_msg("%.60s: loss %.6f after the move, %.6f without", json, a, b);
    assert_int_equal(remove_folder(NULL), 0);
    assert_int_equal(make_folder(NULL), 0);
}

static void test_checkpoints_go_from_one_device_to_the_other(void **state)
{
    (void)state;
    skip_without_a_gpu();
    for (int m = 0; m < NUM_MODELS; m++) {
        run gpu = gpu_run(models[m]);
        check_move(gpu, on_cpu(gpu), models[m]);
        gpu = gpu_run(models[m]);
        check_move(on_cpu(gpu), gpu, models[m]);
    }
}

static void test_a_resumed_run_has_the_same_bits(void **state)
{
    (void)state;
    skip_without_a_gpu();
    run whole = gpu_run(MICRO_SIGMOID), part = whole;
    whole.options.output = in_folder("whole");
    part.options.output = in_folder("part");
    part.until = 2;
    assert_ok(try_run(&whole));
    assert_ok(try_run(&part));
    run rest = whole;
    rest.options.resume = rest.options.output = part.options.output;
    assert_ok(try_run(&rest));
    assert_same_losses(&whole, &rest, 3, 4);
    assert_same_files(step_folder("whole", 4), step_folder("part", 4));
}

/* ---- Not finite ---- */

typedef struct {
    fp8flow_step_metrics bad, good;
    char place[F8_NONFINITE_BYTES];
} damage;

static fp8flow_status put_into_attention(fp8flow_trainer *trainer, float value)
{
    f8_model *m = trainer->model;
    F8_TRY(fp8flow_memory_copy(m->context, f8_model_master(m, 1, F8_OUT) + 5, &value, sizeof value));
    return f8_model_publish_from_master(m);
}

/* One bad weight for one step; the masters and moments stay as they were, and the step after it is as good as any. */
static fp8flow_status step_with_damage(fp8flow_trainer *trainer, void *user)
{
    damage *d = user;
    f8_model *m = trainer->model;
    const char *where;
    int64_t bytes = m->table->count * 4, updates = trainer->optimizer_step;
    F8_TRY(put_into_attention(trainer, NAN));
    float *masters = fetch(m->context, m->master, bytes), *moments = fetch(m->context, m->moment2, bytes);
    F8_TRY(fp8flow_trainer_step(trainer, &d->bad));
    assert_device_bytes(m->context, m->master, masters, bytes);
    assert_device_bytes(m->context, m->moment2, moments, bytes);
    free(masters);
    free(moments);
    assert_int_equal(trainer->optimizer_step, updates);
    F8_TRY(fp8flow_trainer_get_nonfinite(trainer, 0, &where));
    snprintf(d->place, sizeof d->place, "%s", where);
    F8_TRY(put_into_attention(trainer, 0.01f));
    return fp8flow_trainer_step(trainer, &d->good);
}

static void test_nonfinite_gradients_skip_the_update(void **state)
{
    (void)state;
    skip_without_a_gpu();
    for (int i = 0; i < NUM_RECIPES; i++) {
        damage d = { 0 };
        run r = gpu_run(MICRO_SOFTMAX);
        r.options.recipe = recipes[i];
        r.look = step_with_damage;
        r.user = &d;
        assert_ok(try_run(&r));
        assert_true(!isfinite(d.bad.gradient_norm));
        assert_non_null(strstr(d.place, "layer "));
        assert_true(d.good.nonfinite == 0 && isfinite(d.good.loss) && isfinite(d.good.gradient_norm));
    }
}

/* ---- Text ---- */

typedef struct {
    int32_t tokens[64];
    int64_t count;
} text;

static int32_t keep_token(void *user, int32_t token)
{
    text *t = user;
    t->tokens[t->count++] = token;
    return t->count == 64;
}

static void generate(fp8flow_backend backend, const char *checkpoint, const int32_t *prompt, int64_t num_prompt,
                     text *out)
{
    fp8flow_context *context;
    fp8flow_generate_options options = { .max_tokens = 64 };
    out->count = 0;
    assert_ok(fp8flow_context_create(&(fp8flow_context_options){ .backend = backend, .num_threads = 1 }, &context));
    assert_ok(fp8flow_generate(context, checkpoint, prompt, num_prompt, &options, keep_token, out));
    fp8flow_context_destroy(context);
    assert_int_equal(out->count, 64);
}

/* The most likely bytes: the same in two runs, and the CPU's until two of them are about equally likely. */
static void test_generated_text(void **state)
{
    (void)state;
    int32_t prompt[150];
    text one, again, cpu;
    int64_t same = 0;
    skip_without_a_gpu();
    run r = gpu_run(MICRO_SIGMOID);
    r.options.output = in_folder("trained");
    r.until = 30;
    assert_ok(try_run(&r));
    size_t bytes;
    char *corpus = get_file(corpus_data[0], &bytes);
    for (int i = 0; i < 150; i++) prompt[i] = (unsigned char)corpus[i];
    free(corpus);
    for (int64_t length = 0; length <= 150; length += 75) { /* the longest one in two chunks */
        generate(r.backend, r.options.output, prompt, length, &one);
        generate(r.backend, r.options.output, prompt, length, &again);
        generate(FP8FLOW_CPU, r.options.output, prompt, length, &cpu);
        assert_memory_equal(one.tokens, again.tokens, sizeof one.tokens);
        for (same = 0; same < 64 && one.tokens[same] == cpu.tokens[same];) same++;
        assert_true(same >= 4);
    }
}

/* ---- More than one rank ---- */

typedef struct {
    int32_t ranks, ep;
} split;

/* On one GPU, each rank with a context of its own; a sequence for each rank. */
static run gpu_ranks(const char *json, split s)
{
    run r = gpu_run(json);
    r.create_context = create_device_context;
    spread(&r, s.ranks);
    r.options.expert_parallel = s.ep;
    return r;
}

static void check_ranks(const char *json, const char *recipe, split s)
{
    run gpu = gpu_ranks(json, s);
    gpu.options.recipe = recipe;
    run again = gpu, cpu = on_cpu(gpu);
    gpu.options.output = in_folder("once");
    again.options.output = in_folder("again");
    assert_ok(try_run(&gpu));
    assert_ok(try_run(&again));
    assert_ok(try_run(&cpu));
    assert_same_metrics(&gpu, &again);
    assert_same_files(step_folder("once", gpu.until), step_folder("again", again.until));
    for (int64_t step = 1; step <= gpu.until; step++) {
        const fp8flow_step_metrics *a = &gpu.metrics[step], *b = &cpu.metrics[step];
        assert_seconds_between(a, s.ranks, s.ep);
        if (!(fabs(a->loss - b->loss) <= (step == 1 ? 2e-3 : 5e-2) * b->loss))
            fail_msg("%s, %d ranks, EP %d, step %d: loss %.6f, on the CPU %.6f", recipe, s.ranks, s.ep, (int)step,
                     a->loss, b->loss);
    }
    const fp8flow_step_metrics *a = &gpu.metrics[1], *b = &cpu.metrics[1];
    assert_true(fabs(a->gradient_norm - b->gradient_norm) <= 2e-2 * b->gradient_norm);
    assert_int_equal(a->explicit_casts, b->explicit_casts);
    assert_int_equal(a->reduce_bytes, b->reduce_bytes);
    assert_int_equal(a->gather_bytes, b->gather_bytes);
    assert_true(a->wire_bytes_per_token == b->wire_bytes_per_token);
    assert_int_equal(remove_folder(NULL), 0);
    assert_int_equal(make_folder(NULL), 0);
}

static void test_ranks_train_as_on_the_cpu(void **state)
{
    (void)state;
    static const split others[] = { { 2, 2 }, { 4, 2 }, { 4, 1 } };
    skip_without_a_gpu();
    for (int m = 0; m < NUM_MODELS; m++) {
        for (int i = 0; i < NUM_RECIPES; i++) check_ranks(models[m], recipes[i], (split){ 4, 4 });
        for (int i = 0; i < 3; i++) check_ranks(models[m], "flow", others[i]);
    }
}

static void test_checkpoints_of_ranks_go_to_the_cpu_and_back(void **state)
{
    (void)state;
    skip_without_a_gpu();
    run gpu = gpu_ranks(MICRO_SIGMOID, (split){ 4, 2 });
    check_move(gpu, on_cpu(gpu), MICRO_SIGMOID);
    gpu = gpu_ranks(MICRO_SIGMOID, (split){ 4, 2 });
    check_move(on_cpu(gpu), gpu, MICRO_SIGMOID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        folder_test(test_losses_are_near_those_of_the_cpu),
        folder_test(test_loads_are_those_of_a_step),
        folder_test(test_two_runs_have_the_same_bits),
        folder_test(test_checkpointing_does_not_change_a_bit),
        folder_test(test_validation_does_not_change_a_step),
        folder_test(test_checkpoints_go_from_one_device_to_the_other),
        folder_test(test_a_resumed_run_has_the_same_bits),
        folder_test(test_nonfinite_gradients_skip_the_update),
        folder_test(test_generated_text),
        folder_test(test_ranks_train_as_on_the_cpu),
        folder_test(test_checkpoints_of_ranks_go_to_the_cpu_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
