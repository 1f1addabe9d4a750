/* test_parallel.c - training over EP x DP ranks: loss and gradients do not depend on the split, the same bits come
 * back, masters and moments are there once, checkpoints move between splits, and what can be empty or lopsided is. */
#include "training.h"

#include "comm/comm.h"
#include "io/safetensors.h"

/* Eight experts, three of them for each token: more than two ranks have between them alone. */
#define MICRO_EIGHT(more)                                                                                          \
    "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 32, \"num_hidden_layers\": 2, "         \
    "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 16, \"max_position_embeddings\": 256, " \
    "\"moe_intermediate_size\": 16, \"num_experts\": 8, \"num_experts_per_tok\": 3, \"norm_topk_prob\": true, "    \
    "\"rms_norm_eps\": 1e-6" more "}\n"

#define EIGHT_SOFTMAX MICRO_EIGHT(", \"router_aux_loss_coef\": 0.01")
#define EIGHT_SIGMOID                                                                                        \
    MICRO_EIGHT(", \"intermediate_size\": 48, \"mlp_only_layers\": [0], \"scoring_func\": \"sigmoid\", "     \
                "\"n_shared_experts\": 1, \"seq_aux_loss_coef\": 0.001, \"router_bias_update_rate\": 0.01, " \
                "\"tie_word_embeddings\": true")

typedef struct {
    int32_t ep, dp;
} split;

/* ThreadSanitizer takes twenty times as long. */
#ifdef FP8FLOW_TSAN
enum { RECIPE_STEP = 4, FIRST_SPLIT = 3, NUM_SPLITS = 5 };
#else
enum { RECIPE_STEP = 1, FIRST_SPLIT = 0, NUM_SPLITS = 8 };
#endif

static int set_up(void **state)
{
    return make_corpus_folder(state, 20000);
}

/* One micro-batch of one sequence per rank at eight ranks, of more at fewer. */
static run split_run(const char *json, split s)
{
    put_text("model.json", json);
    run r = make_run(kept("model.json"), corpus_data);
    r.options.batch = 8;
    r.options.validation_sequences = 3; /* some ranks have none */
    r.options.expert_parallel = s.ep;
    r.until = 4;
    spread(&r, s.ep * s.dp);
    return r;
}

/* ---- The loss ---- */

static void assert_same_run(const run *a, const run *b)
{
    assert_same_losses(a, b, 1, a->until);
    for (int64_t step = 1; step <= a->until; step++)
        assert_true(a->metrics[step].gradient_norm == b->metrics[step].gradient_norm &&
                    a->metrics[step].aux_loss == b->metrics[step].aux_loss);
    assert_true(a->validation == b->validation);
}

/* A rank rounds what it sends back to BF16 before the sum over ranks (test_train.c, test_ranks_agree): losses differ by
 * 1e-3 at first. The auxiliary loss is that of all tokens of the world, whatever the split. */
static void assert_close_run(const run *a, const run *b)
{
    double first = fabs(a->metrics[1].loss - b->metrics[1].loss);
    double last = fabs(a->metrics[a->until].loss - b->metrics[a->until].loss);
    double norm = fabs(a->metrics[1].gradient_norm / b->metrics[1].gradient_norm - 1.0);
    double aux = fabs(a->metrics[1].aux_loss - b->metrics[1].aux_loss),
           validation = fabs(a->validation - b->validation);
    if (!(first < 1e-3 && last < 2e-2 && norm < 1e-2 && aux < 1e-5 && validation < 2e-2))
        fail_msg("%d ranks, EP %d and %d ranks, EP %d: loss %g, later %g, norm %g, aux %g, validation %g", a->ranks,
                 (int)a->options.expert_parallel, b->ranks, (int)b->options.expert_parallel, first, last, norm, aux,
                 validation);
}

static void test_the_loss_does_not_depend_on_the_split(void **state)
{
    (void)state;
    static const char *const recipes[] = { "bf16", "tensorwise", "blockwise", "deepseek", "flow" };
    static const split splits[] = { { 4, 1 }, { 2, 2 }, { 1, 4 }, { 1, 1 } };
    for (int i = 0; i < 5; i += RECIPE_STEP) {
        run runs[4];
        for (int j = 0; j < 4; j++) {
            run again;
            runs[j] = split_run(EIGHT_SOFTMAX, splits[j]);
            runs[j].options.recipe = recipes[i];
            again = runs[j];
            assert_ok(try_run(&runs[j]));
            assert_ok(try_run(&again));
            assert_same_run(&runs[j], &again);
            assert_close_run(&runs[j], &runs[0]);
        }
    }
}

static void test_every_kind_of_weight_is_split(void **state)
{
    (void)state;
    static const split splits[] = { { 4, 2 }, { 8, 1 }, { 2, 4 }, { 1, 8 }, { 2, 1 }, { 1, 1 } };
    run runs[6];
    for (int j = 0; j < 6; j++) {
        runs[j] = split_run(EIGHT_SIGMOID, splits[j]);
        assert_ok(try_run(&runs[j]));
        assert_close_run(&runs[j], &runs[0]);
    }
}

/* Ranks that have all experts make the very forward pass that one rank makes of the same micro-batches. */
static void test_data_parallelism_sees_the_same_first_loss(void **state)
{
    (void)state;
    run one = split_run(EIGHT_SOFTMAX, (split){ 1, 1 }), four = split_run(EIGHT_SOFTMAX, (split){ 1, 4 });
    one.options.micro_batch = four.options.micro_batch;
    assert_ok(try_run(&one));
    assert_ok(try_run(&four));
    assert_true(one.metrics[1].loss == four.metrics[1].loss);
}

/* ---- Files of a run ---- */

static void name_output(run *r, const char *what, int number)
{
    char name[48];
    snprintf(name, sizeof name, "%s-%d", what, number);
    r->options.output = kept(name);
}

static f8_safetensors_set *open_set(const char *kind, const run *r, int64_t step)
{
    f8_safetensors_set *set;
    char paths[16][600];
    const char *list[16];
    for (int rank = 0; rank < r->ranks; rank++) {
        char name[64];
        f8_checkpoint_shard_name(name, kind, rank, r->ranks);
        snprintf(paths[rank], sizeof paths[0], "%s/step-%08d/%s", r->options.output, (int)step, name);
        list[rank] = paths[rank];
    }
    assert_ok(f8_safetensors_set_open(list, r->ranks, &set));
    return set;
}

/* ---- The gradients ---- */

/* |a - b| / |b| of tensor number `index` of both, which have the same one there. */
static double distance(const f8_safetensors_set *a, const f8_safetensors_set *b, int64_t index,
                       f8_stored_tensor *tensor)
{
    float *values[2];
    double difference = 0.0, length = 0.0;
    const f8_safetensors_set *sets[2] = { a, b };
    for (int i = 0; i < 2; i++) {
        const f8_safetensors *file = f8_safetensors_set_at(sets[i], index, tensor);
        values[i] = malloc((size_t)tensor->bytes);
        assert_non_null(values[i]);
        assert_ok(f8_safetensors_read(file, tensor, values[i], tensor->bytes, NULL));
    }
    for (int64_t i = 0; i < tensor->bytes / 4; i++) {
        difference += pow((double)values[0][i] - (double)values[1][i], 2.0);
        length += pow((double)values[1][i], 2.0);
    }
    free(values[0]);
    free(values[1]);
    return length > 0.0 ? sqrt(difference / length) : sqrt(difference);
}

/* After one step the first moments are (1 - beta1) times the clipped gradients: each tensor's, of whatever ranks, are
 * those of one rank but for roundings to BF16 (2^-9) on the way. */
static void test_gradients_do_not_depend_on_the_split(void **state)
{
    (void)state;
    static const split splits[] = { { 4, 1 }, { 2, 2 }, { 1, 4 }, { 2, 4 } };
    run one = split_run(EIGHT_SIGMOID, (split){ 1, 1 });
    one.options.recipe = "bf16";
    one.until = 1;
    run r = one;
    name_output(&one, "gradients", 9);
    assert_ok(try_run(&one));
    f8_safetensors_set *want = open_set("optimizer", &one, 1);
    for (int i = 0; i < 4; i++) {
        r.options.expert_parallel = splits[i].ep;
        spread(&r, splits[i].ep * splits[i].dp);
        name_output(&r, "gradients", i);
        assert_ok(try_run(&r));
        f8_safetensors_set *got = open_set("optimizer", &r, 1);
        assert_int_equal(f8_safetensors_set_count(got), f8_safetensors_set_count(want));
        for (int64_t k = 0; k < f8_safetensors_set_count(want); k++) {
            f8_stored_tensor tensor;
            double away = distance(got, want, k, &tensor);
            if (!(away < 0.02)) fail_msg("EP %d DP %d: %s is %g away", splits[i].ep, splits[i].dp, tensor.name, away);
        }
        f8_safetensors_set_close(got);
    }
    f8_safetensors_set_close(want);
}

/* ---- Shares ---- */

typedef struct {
    int64_t states[16], elements[16], replicated, experts, fp32;
    double sum[16]; /* of weights and of what is read in FP32 */
} shares;

static fp8flow_status look_at_shares(fp8flow_trainer *t, void *user)
{
    shares *all = user;
    const f8_model *m = t->model;
    int32_t rank = fp8flow_comm_rank(t->comm);
    const f8_section *replicated = &m->section[F8_REPLICATED], *experts = &m->section[F8_EXPERTS];
    all->states[rank] = m->state_count;
    all->elements[rank] = (replicated->end - replicated->begin) + (experts->end - experts->begin);
    for (int64_t i = 0; i < m->table->replicated; i++)
        all->sum[rank] += f8_bf16_decode(m->weight[i]) * (double)(i % 61);
    for (int64_t i = 0; i < m->table->fp32_count && m->fp32; i++)
        all->sum[rank] += (double)m->fp32[i] * (double)(i % 59);
    for (int64_t i = 0; i < m->table->num_parameters && m->fp32;
         i++) { /* norms and routers, rounded, are the weights */
        const f8_parameter *p = &m->table->parameter[i];
        for (int64_t j = 0; p->fp32 >= 0 && j < p->rows * p->cols; j++)
            F8_REQUIRE(f8_bf16_encode(m->fp32[p->fp32 + j]) == m->weight[p->offset + j], EINVAL, "fp32 %lld",
                       (long long)j);
    }
    if (rank > 0) return FP8FLOW_OK;
    all->replicated = m->table->replicated;
    all->experts = m->table->count - m->table->replicated;
    all->fp32 = m->table->fp32_count;
    return FP8FLOW_OK;
}

/* What goes between the ranks in a step, by the counters: gradients one way, BF16 weights and the FP32 ones back. Sums
 * of loads, norm and losses are small beside them. */
static void check_traffic(const run *r, const shares *all, int32_t dp)
{
    const fp8flow_step_metrics *m = &r->metrics[2];
    int64_t elements = (r->ranks > 1 ? all->replicated : 0) + (dp > 1 ? all->experts : 0);
    int64_t sums = m->reduce_bytes - 4 * elements;
    assert_int_equal(m->gather_bytes, 2 * elements + (r->ranks > 1 ? 4 * all->fp32 : 0));
    assert_true(r->ranks > 1 ? sums > 0 && sums < 2048 : sums == 0);
    assert_seconds_between(m, r->ranks, r->ranks / dp);
}

/* Every master and moment is on one rank; weights are whole and the same on all. Memory is less by the 12 bytes of each
 * that is elsewhere, but for the FP32 copies. */
static void test_masters_and_moments_are_there_once(void **state)
{
    (void)state;
    static const split splits[] = { { 1, 1 }, { 1, 4 }, { 2, 2 }, { 4, 1 }, { 1, 8 }, { 8, 1 } };
    int64_t whole_memory = 0;
    for (int i = 0; i < 6; i++) {
        shares all = { .states = { 0 } };
        run r = split_run(EIGHT_SOFTMAX, splits[i]);
        r.options.micro_batch = 1; /* activations of the same size everywhere */
        r.until = 2;
        r.look = look_at_shares;
        r.user = &all;
        assert_ok(try_run(&r));
        int64_t states = 0, most = 0;
        for (int rank = 0; rank < r.ranks; rank++) {
            assert_int_equal(all.states[rank], all.elements[rank]);
            assert_true(all.sum[rank] == all.sum[0]);
            states += all.states[rank];
            most = all.states[rank] > most ? all.states[rank] : most;
        }
        int64_t fair = (all.replicated + all.experts * splits[i].ep) / r.ranks;
        assert_int_equal(states, all.replicated + all.experts * splits[i].ep);
        assert_true(most <= fair + 2 * 128);
        check_traffic(&r, &all, splits[i].dp);
        if (i == 0) whole_memory = r.info.memory_bytes;
        if (splits[i].ep != 1) continue;
        int64_t saved = whole_memory - r.info.memory_bytes, elsewhere = all.replicated + all.experts - most;
        int64_t want = 12 * elsewhere - (r.ranks > 1 ? 4 * all.fp32 : 0);
        if (llabs(saved - want) > 12 * 256 + 2048)
            fail_msg("%d ranks: %lld bytes less, expected %lld", r.ranks, (long long)saved, (long long)want);
    }
}

/* ---- Checkpoints ---- */

/* All tensors of one checkpoint equal those of another, bit for bit. */
static void assert_same_tensors(const char *kind, const run *one, const run *other, int64_t step)
{
    f8_safetensors_set *set[2] = { open_set(kind, one, step), open_set(kind, other, step) };
    assert_int_equal(f8_safetensors_set_count(set[0]), f8_safetensors_set_count(set[1]));
    for (int64_t i = 0; i < f8_safetensors_set_count(set[0]); i++) {
        f8_stored_tensor a, b;
        f8_safetensors_set_at(set[0], i, &a);
        f8_safetensors_set_at(set[1], i, &b);
        if (strcmp(a.name, b.name) != 0 || a.checksum != b.checksum || a.bytes != b.bytes)
            fail_msg("EP %d to EP %d: %s and %s differ", one->options.expert_parallel, other->options.expert_parallel,
                     a.name, b.name);
    }
    for (int i = 0; i < 2; i++) f8_safetensors_set_close(set[i]);
}

/* Load and save at once: what is saved is what was loaded. Then one step from there. */
static double resume_at(const run *source, split to, int number)
{
    run copy = split_run(EIGHT_SIGMOID, to), more;
    copy.options.resume = source->options.output;
    copy.until = source->until;
    more = copy;
    name_output(&copy, "copy", number);
    assert_ok(try_run(&copy));
    assert_int_equal(copy.info.first_step, source->until);
    assert_same_tensors("model", source, &copy, source->until);
    assert_same_tensors("optimizer", source, &copy, source->until);
    more.until = source->until + 1;
    assert_ok(try_run(&more));
    return more.metrics[more.until].loss;
}

static void test_checkpoints_resume_at_any_split(void **state)
{
    (void)state;
    static const split splits[] = { { 1, 1 }, { 2, 1 }, { 4, 1 }, { 8, 1 }, { 2, 2 }, { 1, 4 }, { 4, 2 }, { 1, 8 } };
    int number = 0;
    for (int from = FIRST_SPLIT; from < NUM_SPLITS; from++) {
        double next[8];
        run source = split_run(EIGHT_SIGMOID, splits[from]);
        source.until = 2;
        name_output(&source, "from", from);
        assert_ok(try_run(&source));
        for (int to = FIRST_SPLIT; to < NUM_SPLITS; to++) {
            next[to] = resume_at(&source, splits[to], number++);
            if (!(fabs(next[to] - next[FIRST_SPLIT]) < 2e-3))
                fail_msg("from EP %d DP %d to EP %d DP %d: loss %g, elsewhere %g", splits[from].ep, splits[from].dp,
                         splits[to].ep, splits[to].dp, next[to], next[FIRST_SPLIT]);
        }
    }
}

static void test_a_resumed_run_is_the_uninterrupted_one(void **state)
{
    (void)state;
    static const split splits[] = { { 2, 2 }, { 1, 4 }, { 4, 1 }, { 2, 4 } };
    for (int i = 0; i < 4; i++) {
        char a[500], b[500], from[500];
        run whole = split_run(i % 2 ? EIGHT_SOFTMAX : EIGHT_SIGMOID, splits[i]), rest;
        whole.options.recipe = i == 3 ? "bf16" : "flow";
        whole.options.batch = i == 0 ? 16 : 8; /* two micro-batches at first */
        whole.save_every = 2;
        name_output(&whole, "whole", i);
        rest = whole;
        assert_ok(try_run(&whole));
        snprintf(from, sizeof from, "%s/step-00000002", whole.options.output);
        rest.options.resume = from;
        name_output(&rest, "rest", i);
        assert_ok(try_run(&rest));
        assert_int_equal(rest.info.first_step, 2);
        assert_same_losses(&whole, &rest, 3, 4);
        assert_true(whole.validation == rest.validation);
        snprintf(a, sizeof a, "%s/step-00000004", whole.options.output);
        snprintf(b, sizeof b, "%s/step-00000004", rest.options.output);
        assert_same_files(a, b);
    }
}

/* Sixteen ranks whose shares are a few blocks of 128 parameters, or none. */
static void test_shares_may_be_empty(void **state)
{
    (void)state;
    static const char json[] =
        "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 16, \"num_hidden_layers\": 1, "
        "\"num_attention_heads\": 1, \"num_key_value_heads\": 1, \"head_dim\": 16, \"max_position_embeddings\": 256, "
        "\"moe_intermediate_size\": 16, \"num_experts\": 2, \"num_experts_per_tok\": 1, \"norm_topk_prob\": true, "
        "\"rms_norm_eps\": 1e-6, \"router_aux_loss_coef\": 0.01, \"tie_word_embeddings\": true}\n";
    shares all = { .states = { 0 } };
    run wide = split_run(json, (split){ 2, 8 }), one;
    wide.options.batch = 16;
    wide.options.micro_batch = 1;
    wide.look = look_at_shares;
    wide.user = &all;
    wide.until = 2;
    name_output(&wide, "wide", 0);
    assert_ok(try_run(&wide));
    assert_true(all.experts < 8 * 128);
    one = wide;
    one.look = NULL;
    spread(&one, 1);
    one.options.expert_parallel = 0;
    one.options.resume = wide.options.output;
    name_output(&one, "one", 0);
    assert_ok(try_run(&one));
    assert_same_tensors("model", &wide, &one, 2);
    assert_same_tensors("optimizer", &wide, &one, 2);
    wide.options.resume = one.options.output;
    name_output(&wide, "wide", 1);
    assert_ok(try_run(&wide));
    assert_same_tensors("optimizer", &wide, &one, 2);
}

/* ---- Lopsided ---- */

/* All tokens choose experts 0 to 2, which one rank of four has with EP 2, and two with EP 4. */
static fp8flow_status overload_one_rank(fp8flow_trainer *t, void *user)
{
    int64_t load[8], num_experts = 8, layer = 1;
    fp8flow_step_metrics metrics;
    for (int64_t e = 0; e < num_experts; e++) t->model->router_bias[layer * num_experts + e] = e < 3 ? 100.0f : -100.0f;
    F8_TRY(fp8flow_trainer_step(t, &metrics));
    F8_TRY(fp8flow_trainer_get_load(t, 0, load));
    for (int64_t e = 0; e < num_experts; e++)
        F8_REQUIRE(load[e] == (e < 3 ? metrics.tokens : 0), EINVAL, "expert %d has %lld", (int)e, (long long)load[e]);
    if (fp8flow_comm_rank(t->comm) == 0) *(double *)user = metrics.loss;
    return FP8FLOW_OK;
}

static void test_all_tokens_may_go_to_one_rank(void **state)
{
    (void)state;
    static const split splits[] = { { 1, 1 }, { 2, 2 }, { 4, 1 }, { 8, 1 } };
    double losses[4];
    for (int i = 0; i < 4; i++) {
        run r = split_run(EIGHT_SIGMOID, splits[i]);
        r.until = 1;
        r.look = overload_one_rank;
        r.user = &losses[i];
        assert_ok(try_run(&r));
        assert_true(fabs(losses[i] - losses[0]) < 2e-3);
    }
}

/* ---- Not finite ---- */

/* A gradient that is not finite on one rank is so for all: no rank updates, and a rank that has it names it. */
static fp8flow_status break_one_expert(fp8flow_trainer *t, void *user)
{
    int64_t *named = user, updates = t->optimizer_step, here = 0;
    f8_model *m = t->model;
    int32_t rank = fp8flow_comm_rank(t->comm);
    const char *where;
    fp8flow_step_metrics metrics;
    size_t bytes = (size_t)m->state_count * sizeof(float);
    float *before = malloc(bytes);
    F8_REQUIRE(before, ENOMEM, "test");
    memcpy(before, m->master, bytes);
    if (rank == 3) m->weight[f8_parameter_offset(m->table, 1, F8_FC2) + 7] = 0x7FC0;
    fp8flow_status status = f8_model_publish(m);
    if (status == FP8FLOW_OK) status = fp8flow_trainer_step(t, &metrics);
    int same = memcmp(before, m->master, bytes) == 0;
    free(before);
    F8_TRY(status);
    F8_REQUIRE(!isfinite(metrics.gradient_norm) && same && t->optimizer_step == updates, EINVAL, "rank %d moved", rank);
    for (int64_t i = 0; fp8flow_trainer_get_nonfinite(t, i, &where) == FP8FLOW_OK; i++)
        here |= strstr(where, "gradient of model.layers.1.mlp.experts.") != NULL;
    F8_TRY(f8_comm_all_reduce(t->comm, F8_SUM_I64, &here, 1));
    if (rank == 0) *named = here;
    return FP8FLOW_OK;
}

static void test_no_rank_updates_when_one_gradient_is_not_finite(void **state)
{
    (void)state;
    int64_t named = 0;
    run r = split_run(EIGHT_SOFTMAX, (split){ 2, 2 });
    r.options.recipe = "bf16";
    r.until = 2;
    r.look = break_one_expert;
    r.user = &named;
    assert_ok(try_run(&r));
    assert_true(named > 0);
}

/* ---- Refusals ---- */

static void test_wrong_splits_are_named(void **state)
{
    (void)state;
    run r = split_run(EIGHT_SOFTMAX, (split){ 2, 2 });
    r.options.expert_parallel = 3;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "expert_parallel = 3 does not divide 4 ranks");
    r.options.expert_parallel = 8;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "expert_parallel = 8 does not divide 4 ranks");
    r.options.expert_parallel = -1;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "expert_parallel = -1, expected 0 to 256");
    r = split_run(EIGHT_SOFTMAX, (split){ 16, 1 });
    r.options.batch = 16;
    r.options.micro_batch = 1;
    assert_fails(try_run(&r), FP8FLOW_EINVAL, "expert_parallel = 16, the model has 8 experts");
    r.options.expert_parallel = 0; /* all ranks: half of them have no expert */
    assert_ok(try_run(&r));
}

#define parallel_test(name) cmocka_unit_test_setup_teardown(name, set_up, remove_corpus_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        parallel_test(test_the_loss_does_not_depend_on_the_split),
        parallel_test(test_every_kind_of_weight_is_split),
        parallel_test(test_gradients_do_not_depend_on_the_split),
        parallel_test(test_data_parallelism_sees_the_same_first_loss),
        parallel_test(test_masters_and_moments_are_there_once),
        parallel_test(test_checkpoints_resume_at_any_split),
        parallel_test(test_a_resumed_run_is_the_uninterrupted_one),
        parallel_test(test_shares_may_be_empty),
        parallel_test(test_all_tokens_may_go_to_one_rank),
        parallel_test(test_no_rank_updates_when_one_gradient_is_not_finite),
        parallel_test(test_wrong_splits_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
