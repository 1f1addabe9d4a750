/* test_train.c - whole runs of micro models: the loss falls, the same bits come back (runs, threads, resume), ranks
 * agree, what does not fit is refused, and what is not finite is named and does no harm. */
#include "training.h"

#include "io/safetensors.h"

static const char *const all_recipes[] = { "bf16", "tensorwise", "blockwise", "deepseek", "flow" };
enum { NUM_RECIPES = 5 };

/* A folder of its own, with a corpus, for every test. */
static int set_up(void **state)
{
    return make_corpus_folder(state, 40000);
}

static run micro_run(const char *json)
{
    const char *model = kept(json == NULL ? "softmax.json" : "sigmoid.json");
    put_text(json == NULL ? "softmax.json" : "sigmoid.json", json == NULL ? MICRO_SOFTMAX : json);
    return make_run(model, corpus_data);
}

/* ---- It learns ---- */

static void test_loss_falls_in_every_recipe(void **state)
{
    (void)state;
    double last[NUM_RECIPES];
    for (int i = 0; i < NUM_RECIPES; i++) {
        run r = micro_run(NULL);
        r.options.recipe = all_recipes[i];
        r.until = 30;
        assert_ok(try_run(&r));
        assert_true(fabs(r.metrics[1].loss - log(256.0)) < 0.3);
        last[i] = r.metrics[30].loss;
        if (!(last[i] < 3.0) || !(r.validation < 3.0))
            fail_msg("%s: loss %g, validation %g after 30 steps", all_recipes[i], last[i], r.validation);
        assert_int_equal(r.metrics[30].nonfinite, 0);
        assert_int_equal(r.metrics[30].step, 30);
        assert_int_equal(r.metrics[30].tokens, 128);
    }
    /* FP8 costs little: within 0.15 nat of BF16 after 30 steps of the same data. */
    for (int i = 1; i < NUM_RECIPES; i++)
        if (fabs(last[i] - last[0]) > 0.15) fail_msg("%s: %g, bf16 %g", all_recipes[i], last[i], last[0]);
}

static void test_loss_falls_with_every_kind_of_weight(void **state)
{
    (void)state;
    run r = micro_run(MICRO_SIGMOID);
    r.until = 30;
    assert_ok(try_run(&r));
    assert_true(r.metrics[30].loss < 3.0);
    assert_int_equal(r.info.num_moe_layers, 1);
}

/* ---- The same bits ---- */

static void test_two_runs_and_any_threads_give_the_same_bits(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_RECIPES; i += 2) {
        run first = micro_run(NULL), again, threads;
        first.options.recipe = all_recipes[i];
        again = threads = first;
        first.options.output = kept(i ? i == 2 ? "2a" : "4a" : "0a");
        again.options.output = kept(i ? i == 2 ? "2b" : "4b" : "0b");
        threads.options.output = kept(i ? i == 2 ? "2c" : "4c" : "0c");
        threads.threads = 2;
        assert_ok(try_run(&first));
        assert_ok(try_run(&again));
        assert_ok(try_run(&threads));
        assert_same_losses(&first, &again, 1, first.until);
        assert_same_losses(&first, &threads, 1, first.until);
        assert_true(first.validation == again.validation && first.validation == threads.validation);
        char a[500], b[500];
        snprintf(a, sizeof a, "%s/step-00000006", first.options.output);
        snprintf(b, sizeof b, "%s/step-00000006", again.options.output);
        assert_same_files(a, b);
        snprintf(b, sizeof b, "%s/step-00000006", threads.options.output);
        assert_same_files(a, b);
    }
}

static void test_checkpointing_does_not_change_a_bit(void **state)
{
    (void)state;
    run base = micro_run(MICRO_SIGMOID);
    base.options.checkpointing = FP8FLOW_KEEP_ALL;
    assert_ok(try_run(&base));
    for (int mode = FP8FLOW_MOE_EXPERT; mode <= FP8FLOW_FULL; mode++) {
        run r = micro_run(MICRO_SIGMOID);
        r.options.checkpointing = (fp8flow_checkpointing)mode;
        assert_ok(try_run(&r));
        assert_same_losses(&base, &r, 1, r.until);
        assert_true(r.metrics[6].saved_bytes < base.metrics[6].saved_bytes);
    }
}

/* One interrupted run per stop: the rest of the steps and the last checkpoint, byte for byte. */
static void check_resume(const char *json, const char *recipe, int64_t micro_batch, int32_t ranks, int64_t every)
{
    static int number;
    char name[32], whole_step[500], resumed_step[500];
    run whole = micro_run(json);
    whole.options.recipe = recipe;
    whole.options.micro_batch = micro_batch;
    whole.ranks = ranks;
    whole.until = 8;
    whole.save_every = every;
    whole.options.keep_checkpoints = 0;
    snprintf(name, sizeof name, "whole-%d", ++number);
    whole.options.output = kept(name);
    assert_ok(try_run(&whole));
    snprintf(whole_step, sizeof whole_step, "%s/step-00000008", whole.options.output);
    for (int64_t stop = every; stop < 8; stop += every) {
        run rest = whole;
        char from[500];
        snprintf(from, sizeof from, "%s/step-%08d", whole.options.output, (int)stop);
        snprintf(name, sizeof name, "rest-%d-%d", number, (int)stop);
        rest.save_every = 0;
        rest.options.output = kept(name);
        rest.options.resume = from;
        rest.options.model = NULL; /* the checkpoint's own */
        assert_ok(try_run(&rest));
        assert_int_equal(rest.info.first_step, stop);
        assert_same_losses(&whole, &rest, stop + 1, 8);
        assert_true(whole.validation == rest.validation);
        snprintf(resumed_step, sizeof resumed_step, "%s/step-00000008", rest.options.output);
        assert_same_files(whole_step, resumed_step);
    }
}

static void test_resume_equals_the_uninterrupted_run(void **state)
{
    (void)state;
    check_resume(NULL, "bf16", 4, 1, 3);
    check_resume(NULL, "flow", 2, 1, 1); /* two micro-batches are accumulated */
    check_resume(NULL, "deepseek", 1, 1, 7);
    check_resume(MICRO_SIGMOID, "flow", 4, 1, 3); /* router biases, shared expert, tied head */
    check_resume(MICRO_SIGMOID, "flow", 1, 2, 4);
}

/* The order of micro-batches changes sums only: the same sequences are seen. Losses of step 1 come from equal weights;
 * batches of another shape may round rows of a product differently, hence not bitwise. */
static void test_accumulated_micro_batches_are_the_same_step(void **state)
{
    (void)state;
    run one = micro_run(NULL), four = one;
    one.options.recipe = four.options.recipe = "bf16";
    four.options.micro_batch = 1;
    assert_ok(try_run(&one));
    assert_ok(try_run(&four));
    assert_true(fabs(one.metrics[1].loss - four.metrics[1].loss) < 1e-5);
    /* Auxiliary losses are per micro-batch, so that the gradients differ by more than rounding. */
    assert_true(fabs(one.metrics[1].gradient_norm / four.metrics[1].gradient_norm - 1.0) < 2e-2);
    assert_true(fabs(one.metrics[6].loss - four.metrics[6].loss) < 2e-2);
}

/* ---- Ranks ---- */

/* What a rank sends back is rounded to BF16 before the sum over ranks, once more than on one rank: relative 2^-9 of
 * the experts' part of the residual stream. On step 1 that is below 1e-3 of a loss of 5.5; over 12 steps the runs part
 * slowly. */
static void test_ranks_agree(void **state)
{
    (void)state;
    static const char *const recipes[] = { "bf16", "flow" };
    for (int i = 0; i < 2; i++) {
        run runs[3];
        for (int j = 0; j < 3; j++) {
            runs[j] = micro_run(NULL);
            runs[j].options.recipe = recipes[i];
            runs[j].until = 12;
            spread(&runs[j], 1 << j);
            assert_ok(try_run(&runs[j]));
            double first = fabs(runs[j].metrics[1].loss - runs[0].metrics[1].loss);
            double last = fabs(runs[j].metrics[12].loss - runs[0].metrics[12].loss);
            if (!(first < 1e-3 && last < 2e-2))
                fail_msg("%s, %d ranks: losses differ by %g on step 1, %g on step 12", recipes[i], 1 << j, first, last);
            assert_true(fabs(runs[j].metrics[1].gradient_norm / runs[0].metrics[1].gradient_norm - 1.0) < 5e-3);
        }
    }
}

/* All tensors of a checkpoint of `ranks` shards equal those of another, bit for bit. */
static void assert_same_tensors(const char *kind, const char *one, int ranks_one, const char *other, int ranks_other)
{
    f8_safetensors_set *set[2];
    const char *folder[2] = { one, other };
    int ranks[2] = { ranks_one, ranks_other };
    for (int i = 0; i < 2; i++) {
        char paths[4][600];
        const char *list[4];
        for (int r = 0; r < ranks[i]; r++) {
            char name[64];
            f8_checkpoint_shard_name(name, kind, r, ranks[i]);
            snprintf(paths[r], sizeof paths[r], "%s/%s", folder[i], name);
            list[r] = paths[r];
        }
        assert_ok(f8_safetensors_set_open(list, ranks[i], &set[i]));
    }
    assert_int_equal(f8_safetensors_set_count(set[0]), f8_safetensors_set_count(set[1]));
    for (int64_t i = 0; i < f8_safetensors_set_count(set[0]); i++) {
        f8_stored_tensor a, b;
        f8_safetensors_set_at(set[0], i, &a);
        f8_safetensors_set_at(set[1], i, &b);
        if (strcmp(a.name, b.name) != 0 || a.checksum != b.checksum || a.bytes != b.bytes)
            fail_msg("%s and %s differ", a.name, b.name);
    }
    for (int i = 0; i < 2; i++) f8_safetensors_set_close(set[i]);
}

/* Saved on 1, 2, 4 ranks and loaded on 1, 2, 4: what is loaded is what was saved, and the next step goes on. */
static void test_checkpoints_move_between_rank_counts(void **state)
{
    (void)state;
    double next[3][3];
    for (int from = 0; from < 3; from++) {
        char name[32], saved[500], copied[500];
        run source = micro_run(MICRO_SIGMOID);
        spread(&source, 1 << from);
        source.until = 3;
        snprintf(name, sizeof name, "from-%d", from);
        source.options.output = kept(name);
        assert_ok(try_run(&source));
        snprintf(saved, sizeof saved, "%s/step-00000003", source.options.output);
        for (int to = 0; to < 3; to++) {
            run copy = source, more;
            spread(&copy, 1 << to);
            copy.options.resume = source.options.output;
            snprintf(name, sizeof name, "from-%d-to-%d", from, to);
            copy.options.output = kept(name);
            more = copy;
            assert_ok(try_run(&copy)); /* no step: loads and saves */
            snprintf(copied, sizeof copied, "%s/step-00000003", copy.options.output);
            assert_same_tensors("model", saved, 1 << from, copied, 1 << to);
            assert_same_tensors("optimizer", saved, 1 << from, copied, 1 << to);
            more.options.output = NULL;
            more.until = 4;
            assert_ok(try_run(&more));
            next[from][to] = more.metrics[4].loss;
        }
        for (int to = 0; to < 3; to++) assert_true(fabs(next[from][to] - next[from][from]) < 2e-3);
    }
}

/* ---- Refusals ---- */

static void test_resume_refuses_another_run(void **state)
{
    (void)state;
    run first = micro_run(NULL), r;
    first.until = 2;
    first.options.output = kept("out");
    assert_ok(try_run(&first));
    first.options.resume = kept("out");
    first.options.output = NULL;
    first.until = 3;
    put_corpus("other.txt", 40000, 2);
    const char *other_data[] = { kept("other.txt") };

    r = first, r.options.data = other_data;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "data identity");
    r = first, r.options.seed = 9;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "seed is 9 here and 1 in the checkpoint");
    r = first, r.options.data_seed = 9;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "data_seed is 9 here");
    r = first, r.options.batch = 8;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "batch is 8 here and 4 in the checkpoint");
    r = first, r.options.sequence_length = 16;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "sequence_length is 16 here and 32 in the checkpoint");
    r = first, r.options.model = "tiny";
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "holds another model than \"tiny\"");
    r = first, r.options.steps = 1;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "is at step 2, after the last of 1 steps");
    r = first, r.options.resume = kept("nothing");
    assert_fails(try_run(&r), FP8FLOW_EIO, "nothing");
    r = first, r.options.resume = test_folder;
    assert_fails(try_run(&r), FP8FLOW_EFORMAT, "holds no complete checkpoint");
    /* What may change: recipe, learning rate, the length of the run, the micro-batch, checkpointing. */
    r = first, r.options.recipe = "bf16", r.options.lr = 1e-4, r.options.steps = 50, r.options.micro_batch = 2;
    r.options.checkpointing = FP8FLOW_FULL;
    assert_ok(try_run(&r));
    assert_int_equal(r.info.first_step, 2);
    assert_int_equal(r.metrics[3].step, 3);
}

static void test_wrong_options_are_named(void **state)
{
    (void)state;
    run base = micro_run(NULL), r;
    r = base, r.options.steps = 0;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "steps = 0");
    r = base, r.options.batch = 3, r.options.micro_batch = 2;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "batch = 3 is not a multiple of 2");
    r = base, r.ranks = 2;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "micro_batch 4 on 2 ranks");
    r = base, r.options.lr = NAN;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "lr = nan");
    r = base, r.options.clip = -1.0;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "clip");
    r = base, r.options.sequence_length = 257;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "max_position_embeddings 256");
    r = base, r.options.recipe = "fp4";
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "fp4");
    r = base, r.options.num_data = 0;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "num_data = 0");
    r = base, r.options.data = NULL;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "data is NULL");
    r = base, r.options.checkpointing = (fp8flow_checkpointing)7;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "checkpointing 7");
    r = base, r.ranks = 8, r.options.batch = 8, r.options.micro_batch = 1;
    assert_ok(try_run(&r)); /* eight ranks, four experts: half of them own none */
}

/* ---- Validation, schedule, clipping, biases ---- */

static fp8flow_status validate_twice(fp8flow_trainer *trainer, void *user)
{
    double *losses = user, loss;
    fp8flow_step_metrics metrics;
    for (int i = 0; i < 2; i++) {
        F8_TRY(fp8flow_trainer_validate(trainer, &loss));
        if (fp8flow_comm_rank(trainer->comm) == 0) losses[i] = loss;
    }
    F8_TRY(fp8flow_trainer_step(trainer, &metrics));
    if (fp8flow_comm_rank(trainer->comm) == 0) losses[2] = metrics.loss;
    return FP8FLOW_OK;
}

/* Validation changes nothing: a run with it makes the same next step as one without. */
static void test_validation_is_repeatable_and_leaves_no_trace(void **state)
{
    (void)state;
    double losses[3][3];
    for (int i = 0; i < 3; i++) {
        run r = micro_run(MICRO_SIGMOID), longer;
        r.options.validation_sequences = i == 2 ? 1000000 : 5; /* more than there are: all */
        spread(&r, i == 1 ? 2 : 1);
        r.look = validate_twice;
        r.user = losses[i];
        r.until = 4;
        longer = r;
        assert_ok(try_run(&r));
        assert_true(losses[i][0] == losses[i][1] && losses[i][0] == r.validation);
        longer.until = 5;
        longer.look = NULL;
        assert_ok(try_run(&longer));
        assert_true(losses[i][2] == longer.metrics[5].loss);
    }
    assert_true(fabs(losses[0][0] - losses[1][0]) < 1e-2); /* one rank and two: the same five sequences */
}

static void test_learning_rate_schedule(void **state)
{
    (void)state;
    fp8flow_train_options o;
    fp8flow_train_options_init(&o);
    o.steps = 110;
    o.warmup_steps = 10;
    o.lr = 1.0;
    o.min_lr = 0.1;
    assert_true(f8_learning_rate(&o, 1) == 0.1 && f8_learning_rate(&o, 5) == 0.5 && f8_learning_rate(&o, 10) == 1.0);
    assert_true(fabs(f8_learning_rate(&o, 60) - 0.55) < 1e-12); /* half way down */
    assert_true(f8_learning_rate(&o, 110) == 0.1 && f8_learning_rate(&o, 500) == 0.1);
    for (int64_t step = 10; step < 110; step++)
        assert_true(f8_learning_rate(&o, step + 1) < f8_learning_rate(&o, step));
    o.warmup_steps = 0;
    assert_true(f8_learning_rate(&o, 1) < 1.0 && f8_learning_rate(&o, 1) > 0.99);
    o.steps = 5;
    o.warmup_steps = 10; /* ends within the warm-up */
    assert_true(f8_learning_rate(&o, 5) == 0.5);
    run r = micro_run(NULL);
    assert_ok(try_run(&r));
    for (int64_t step = 1; step <= r.until; step++)
        assert_true(r.metrics[step].lr == f8_learning_rate(&r.options, step));
}

/* After one step the first moments are (1 - beta1) times the clipped gradient. */
static fp8flow_status norm_of_first_moment(fp8flow_trainer *trainer, void *user)
{
    double sum = 0.0;
    for (int64_t i = 0; i < trainer->model->table->count; i++)
        sum += (double)trainer->model->moment1[i] * (double)trainer->model->moment1[i];
    *(double *)user = sqrt(sum);
    return FP8FLOW_OK;
}

static void test_clipping_bounds_the_gradient(void **state)
{
    (void)state;
    static const double clips[] = { 0.0, 1e-3, 0.25, 1e6 };
    for (int i = 0; i < 4; i++) {
        double moment;
        run r = micro_run(NULL);
        r.options.clip = clips[i];
        r.until = 1;
        r.look = norm_of_first_moment;
        r.user = &moment;
        assert_ok(try_run(&r));
        double norm = r.metrics[1].gradient_norm, want = clips[i] > 0.0 && clips[i] < norm ? clips[i] : norm;
        assert_true(norm > 0.25);
        if (fabs(moment / (0.1 * want) - 1.0) > 1e-5)
            fail_msg("clip %g: %g, expected %g", clips[i], moment, 0.1 * want);
    }
}

static fp8flow_status check_biases(fp8flow_trainer *trainer, void *user)
{
    int64_t load[4], moved = 0, total = 0;
    F8_TRY(fp8flow_trainer_get_load(trainer, 0, load));
    const float *bias = trainer->model->router_bias + 4; /* layer 1 is the first with experts */
    for (int e = 0; e < 4; e++) total += load[e];
    F8_REQUIRE(total == 4 * 32 * 2, EINVAL, "load of %lld", (long long)total);
    for (int e = 0; e < 4; e++) {
        float want = load[e] * 4 > total ? -0.01f : load[e] * 4 < total ? 0.01f : 0.0f;
        F8_REQUIRE(bias[e] == want, EINVAL, "bias %d is %g, load %lld of %lld", e, (double)bias[e], (long long)load[e],
                   (long long)total);
        moved += bias[e] != 0.0f;
    }
    *(int64_t *)user = moved;
    return FP8FLOW_OK;
}

static void test_router_biases_move_against_the_load(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        int64_t moved[1] = { 0 };
        run r = micro_run(MICRO_SIGMOID);
        spread(&r, ranks);
        r.until = 1;
        r.look = check_biases;
        r.user = moved;
        assert_ok(try_run(&r));
        assert_true(moved[0] >= 2);
    }
    run softmax = micro_run(NULL);
    softmax.until = 1;
    assert_ok(try_run(&softmax));
}

/* ---- Not finite ---- */

typedef struct {
    int64_t layer;
    f8_kind kind;
    float value;
    fp8flow_step_metrics metrics;
    char places[4000];
    double loss_after_repair;
} damage;

/* Put one bad value into a weight, make a step, look what it says and that no weight has moved; repair, go on. */
static fp8flow_status step_with_damage(fp8flow_trainer *trainer, void *user)
{
    damage *d = user;
    f8_model *m = trainer->model;
    size_t bytes = (size_t)m->table->count * sizeof(float);
    float *weight = f8_model_master(m, d->layer, d->kind), kept_value = weight[5], *before = malloc(bytes);
    float *moment = malloc(bytes);
    const char *where;
    F8_REQUIRE(before && moment, ENOMEM, "test");
    weight[5] = d->value;
    F8_TRY(f8_model_publish_from_master(m));
    memcpy(before, m->master, bytes);
    memcpy(moment, m->moment2, bytes);
    int64_t updates = trainer->optimizer_step;
    F8_TRY(fp8flow_trainer_step(trainer, &d->metrics));
    d->places[0] = 0;
    for (int64_t i = 0; i < 64 && fp8flow_trainer_get_nonfinite(trainer, i, &where) == FP8FLOW_OK; i++)
        snprintf(d->places + strlen(d->places), sizeof d->places - strlen(d->places), "%s; ", where);
    F8_REQUIRE(memcmp(before, m->master, bytes) == 0 && memcmp(moment, m->moment2, bytes) == 0, EINVAL,
               "the step changed weights");
    F8_REQUIRE(trainer->optimizer_step == updates, EINVAL, "the update was counted");
    weight[5] = kept_value;
    F8_TRY(f8_model_publish_from_master(m));
    fp8flow_step_metrics metrics;
    F8_TRY(fp8flow_trainer_step(trainer, &metrics));
    d->loss_after_repair = metrics.loss;
    F8_REQUIRE(fp8flow_trainer_get_nonfinite(trainer, 0, &where) == FP8FLOW_EINVAL, EINVAL, "old news: %s", where);
    free(before);
    free(moment);
    return FP8FLOW_OK;
}

static void test_nonfinite_values_are_named_and_skip_the_update(void **state)
{
    (void)state;
    static const struct {
        const char *recipe;
        int64_t layer;
        f8_kind kind;
        float value;
        const char *named;
    } cases[] = {
        { "flow", 1, F8_FC1, NAN, "layer 1, " },
        { "flow", 0, F8_FC2, NAN, "gradient of model.layers.0." },
        { "flow", 1, F8_OUT, NAN, "layer 1, " },
        { "flow", 0, F8_OUT, INFINITY, "layer 0, " },
        { "deepseek", 1, F8_OUT, NAN, "layer 1, " },
        { "blockwise", 0, F8_OUT, NAN, "layer 0, " },
        { "tensorwise", 0, F8_OUT, NAN, "layer 0, " },
        { "bf16", 1, F8_OUT, NAN, "gradient of model.layers.1.self_attn.o_proj.weight" },
        { "bf16", 1, F8_ROUTER, NAN, "gradient of model.layers.1.mlp" },
        { "bf16", 0, F8_HEAD, NAN, "gradient of lm_head.weight" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        damage d = { .layer = cases[i].layer, .kind = cases[i].kind, .value = cases[i].value };
        run r = micro_run(NULL);
        r.options.recipe = cases[i].recipe;
        r.until = 2;
        r.look = step_with_damage;
        r.user = &d;
        assert_ok(try_run(&r));
        if (!strstr(d.places, cases[i].named)) fail_msg("case %d: said \"%s\"", (int)i, d.places);
        assert_int_equal(d.metrics.step, 3);
        assert_true(!isfinite(d.metrics.gradient_norm));
        assert_true(isfinite(d.loss_after_repair));
        if (strcmp(cases[i].recipe, "bf16") != 0 && cases[i].kind == F8_OUT) assert_true(d.metrics.nonfinite > 0);
    }
}

/* ---- The handle ---- */

static fp8flow_status ask_for_too_much(fp8flow_trainer *trainer, void *user)
{
    (void)user;
    fp8flow_step_metrics metrics;
    fp8flow_edge edge;
    int64_t load[4];
    if (fp8flow_trainer_step(trainer, &metrics) != FP8FLOW_EINVAL) return FP8FLOW_EIO;
    if (fp8flow_trainer_save(trainer) != FP8FLOW_EINVAL) return FP8FLOW_EIO;
    if (fp8flow_trainer_get_load(trainer, 2, load) != FP8FLOW_EINVAL) return FP8FLOW_EIO;
    if (fp8flow_trainer_get_load(trainer, -1, load) != FP8FLOW_EINVAL) return FP8FLOW_EIO;
    if (fp8flow_trainer_get_edge(trainer, 1000, &edge) != FP8FLOW_EINVAL) return FP8FLOW_EIO;
    return fp8flow_trainer_get_edge(trainer, 0, &edge);
}

static void test_calls_out_of_range_are_refused(void **state)
{
    (void)state;
    run r = micro_run(NULL);
    r.options.steps = 2;
    r.until = 2;
    r.look = ask_for_too_much;
    assert_ok(try_run(&r));
    assert_int_equal(r.info.num_layers, 2);
    assert_int_equal(r.info.num_experts, 4);
    assert_true(r.info.active_parameters < r.info.parameters && r.info.memory_bytes > r.info.parameters * 18);
    fp8flow_trainer_destroy(NULL);
}

#define train_test(name) cmocka_unit_test_setup_teardown(name, set_up, remove_corpus_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        train_test(test_loss_falls_in_every_recipe),
        train_test(test_loss_falls_with_every_kind_of_weight),
        train_test(test_two_runs_and_any_threads_give_the_same_bits),
        train_test(test_checkpointing_does_not_change_a_bit),
        train_test(test_resume_equals_the_uninterrupted_run),
        train_test(test_accumulated_micro_batches_are_the_same_step),
        train_test(test_ranks_agree),
        train_test(test_checkpoints_move_between_rank_counts),
        train_test(test_resume_refuses_another_run),
        train_test(test_wrong_options_are_named),
        train_test(test_validation_is_repeatable_and_leaves_no_trace),
        train_test(test_learning_rate_schedule),
        train_test(test_clipping_bounds_the_gradient),
        train_test(test_router_biases_move_against_the_load),
        train_test(test_nonfinite_values_are_named_and_skip_the_update),
        train_test(test_calls_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
