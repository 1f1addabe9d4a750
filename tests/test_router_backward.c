/* test_router_backward.c - losses and logit gradients of the router against an FP64 model of the whole objective,
 * differentiated numerically with the choice of experts frozen; the update of the bias. */
#include "support.h"

enum { NUM_TOKENS = 6, LENGTH = 3, MAX_EXPERTS = 16, MAX_TOP_K = 16, NUM_SEQUENCES = NUM_TOKENS / LENGTH };

/* One batch with all that router_backward reads; the other ranks hold as many tokens again. */
typedef struct {
    fp8flow_router_config config;
    float logits[NUM_TOKENS * MAX_EXPERTS], scores[NUM_TOKENS * MAX_EXPERTS], gate[NUM_TOKENS * MAX_TOP_K];
    float log_sum_exp[NUM_TOKENS], score_sums[NUM_SEQUENCES * MAX_EXPERTS], dgate[NUM_TOKENS * MAX_TOP_K];
    float dlogits[NUM_TOKENS * MAX_EXPERTS], bias[MAX_EXPERTS];
    int32_t expert[NUM_TOKENS * MAX_TOP_K], counts[NUM_SEQUENCES * MAX_EXPERTS];
    int64_t total_counts[MAX_EXPERTS];
    float total_score_sums[MAX_EXPERTS], other_score_sums[MAX_EXPERTS], loss_scale;
    fp8flow_router_load load;
} batch;

static void make_batch(batch *b, fp8flow_context *c, fp8flow_router_config config, float logit_size)
{
    memset(b, 0xFF, sizeof *b);
    config.sequence_length = LENGTH;
    b->config = config;
    b->loss_scale = 1.5f;
    int64_t num_experts = config.num_experts;
    for (int64_t i = 0; i < NUM_TOKENS * num_experts; i++) b->logits[i] = logit_size * f8_normal(1, 1, (uint64_t)i);
    for (int64_t i = 0; i < NUM_TOKENS * config.top_k; i++) b->dgate[i] = f8_normal(2, 2, (uint64_t)i);
    for (int64_t e = 0; e < num_experts; e++) b->bias[e] = 0.2f * f8_normal(3, 3, (uint64_t)e);
    fp8flow_tensor logits = f8_f32(b->logits, NUM_TOKENS, num_experts);
    fp8flow_router_args args = { &b->config, &logits,        b->bias,   b->expert,    b->gate,
                                 b->scores,  b->log_sum_exp, b->counts, b->score_sums };
    assert_ok(fp8flow_router(c, &args));
    for (int64_t e = 0; e < num_experts; e++) {
        b->other_score_sums[e] = f8_uniform(4, 4, (uint64_t)e);
        b->total_score_sums[e] = b->other_score_sums[e];
        b->total_counts[e] = (int64_t)(f8_random(5, 5, (uint64_t)e) % 5);
        for (int s = 0; s < NUM_SEQUENCES; s++) {
            b->total_score_sums[e] += b->score_sums[s * num_experts + e];
            b->total_counts[e] += b->counts[s * num_experts + e];
        }
    }
    b->load = (fp8flow_router_load){ 2 * NUM_TOKENS, b->total_counts, b->total_score_sums };
}

/* ---- FP64 model ---- */

/* Normalised scores and log-sum-exp of a token's logits; raw scores too. */
static double model_scores(fp8flow_score mode, const double *logits, int64_t count, double *raw, double *normalized)
{
    double largest = -INFINITY, sum = 0.0, total = 0.0;
    for (int64_t e = 0; e < count; e++) largest = fmax(largest, logits[e]);
    for (int64_t e = 0; e < count; e++) sum += exp(logits[e] - largest);
    for (int64_t e = 0; e < count; e++) {
        double softmax = exp(logits[e] - largest) / sum;
        raw[e] = mode == FP8FLOW_SCORE_SIGMOID ? 1.0 / (1.0 + exp(-logits[e])) : softmax;
        total += raw[e];
    }
    for (int64_t e = 0; e < count; e++) normalized[e] = mode == FP8FLOW_SCORE_SIGMOID ? raw[e] / total : raw[e];
    return largest + log(sum);
}

/* sum gate * dgate of a token. */
static double model_gates(const batch *b, const double *logits, const double *raw, const int32_t *expert,
                          const float *dgate)
{
    const fp8flow_router_config *config = &b->config;
    double value[MAX_TOP_K], sum = 0.0, result = 0.0;
    for (int64_t slot = 0; slot < config->top_k; slot++) {
        value[slot] = config->score == FP8FLOW_SCORE_SOFTMAX_TOPK ? exp(logits[expert[slot]]) : raw[expert[slot]];
        sum += value[slot];
    }
    if (config->score != FP8FLOW_SCORE_SOFTMAX_TOPK && config->gate_rule == FP8FLOW_GATE_RAW) sum = 1.0;
    for (int64_t slot = 0; slot < config->top_k; slot++)
        result += (double)config->gate_scale * value[slot] / sum * (double)dgate[slot];
    return result;
}

/* The objective that router_backward differentiates: gates, and the losses of all ranks. */
static double objective(const batch *b, const double *logits)
{
    const fp8flow_router_config *config = &b->config;
    int64_t num_experts = config->num_experts, top_k = config->top_k;
    double gates = 0.0, z = 0.0, aux = 0.0, sequence = 0.0, total = (double)b->load.total_tokens;
    double sums[MAX_EXPERTS], raw[MAX_EXPERTS], normalized[MAX_EXPERTS];
    for (int64_t e = 0; e < num_experts; e++) sums[e] = (double)b->other_score_sums[e];
    for (int64_t t = 0; t < NUM_TOKENS; t++) {
        const double *x = logits + t * num_experts;
        double lse = model_scores(config->score, x, num_experts, raw, normalized);
        z += lse * lse;
        gates += model_gates(b, x, raw, b->expert + t * top_k, b->dgate + t * top_k);
        for (int64_t e = 0; e < num_experts; e++) {
            sums[e] += normalized[e];
            double load = (double)b->counts[t / LENGTH * num_experts + e] / (double)(LENGTH * top_k);
            sequence += (double)num_experts * load * normalized[e] / LENGTH / NUM_SEQUENCES;
        }
    }
    for (int64_t e = 0; e < num_experts; e++)
        aux += (double)num_experts * (double)b->total_counts[e] / (total * (double)top_k) * sums[e] / total;
    double losses = (double)config->aux_coef * aux + (double)config->z_coef * z / total +
                    (double)config->sequence_coef * sequence * NUM_TOKENS / total;
    return gates + (double)b->loss_scale * losses;
}

static void check_gradient(batch *b)
{
    double logits[NUM_TOKENS * MAX_EXPERTS];
    const double step = 1e-5;
    int64_t count = NUM_TOKENS * b->config.num_experts;
    for (int64_t i = 0; i < count; i++) logits[i] = (double)b->logits[i];
    for (int64_t i = 0; i < count; i++) {
        double x = logits[i];
        logits[i] = x + step;
        double above = objective(b, logits);
        logits[i] = x - step;
        double expected = (above - objective(b, logits)) / (2.0 * step);
        logits[i] = x;
        double difference = fabs((double)b->dlogits[i] - expected);
        if (!(difference <= 2e-6 + 2e-6 * fabs(expected)))
            fail_msg("dlogits[%lld] is %.8g, expected %.8g; score %d, rule %d", (long long)i, (double)b->dlogits[i],
                     expected, (int)b->config.score, (int)b->config.gate_rule);
    }
}

static fp8flow_router_backward_args backward_args(batch *b)
{
    return (fp8flow_router_backward_args){ .config = &b->config,
                                           .num_tokens = NUM_TOKENS,
                                           .logits = b->logits,
                                           .scores = b->scores,
                                           .log_sum_exp = b->log_sum_exp,
                                           .expert = b->expert,
                                           .counts = b->counts,
                                           .load = &b->load,
                                           .dgate = b->dgate,
                                           .loss_scale = b->loss_scale,
                                           .dlogits = b->dlogits };
}

/* Losses: bit 0 aux, bit 1 sequence, bit 2 z. */
static fp8flow_router_config make_config(int64_t num_experts, int64_t top_k, int score, int rule, int losses)
{
    return (fp8flow_router_config){ .num_experts = num_experts,
                                    .top_k = top_k,
                                    .score = (fp8flow_score)score,
                                    .gate_rule = (fp8flow_gate_rule)rule,
                                    .gate_scale = 1.75f,
                                    .num_groups = 1,
                                    .top_groups = 1,
                                    .sequence_length = 1,
                                    .aux_coef = losses & 1 ? 0.7f : 0.0f,
                                    .sequence_coef = losses & 2 ? 0.9f : 0.0f,
                                    .z_coef = losses & 4 ? 0.3f : 0.0f };
}

static void test_router_backward_equals_numeric_gradient(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    static const int64_t shape[5][2] = { { 8, 2 }, { 16, 5 }, { 7, 1 }, { 4, 4 }, { 1, 1 } };
    for (int s = 0; s < 5; s++)
        for (int i = 0; i < 3 * 2 * 8 * 3; i++) {
            fp8flow_router_config config = make_config(shape[s][0], shape[s][1], i % 3, i / 3 % 2, i / 6 % 8);
            if (i / 48 && config.num_experts % 4 == 0 && config.top_k <= config.num_experts / 2) {
                config.num_groups = 4;
                config.top_groups = 2;
                config.group_score = (fp8flow_group_score)(i / 48 - 1);
            }
            batch b;
            make_batch(&b, c, config, 1.0f + (float)(i % 2));
            fp8flow_router_backward_args args = backward_args(&b);
            assert_ok(fp8flow_router_backward(c, &args));
            check_gradient(&b);
        }
    fp8flow_context_destroy(c);
}

/* Saturated sigmoids: 1 - sigmoid(20) is 2e-9, which FP32 would round to 0. */
static void test_router_backward_keeps_the_slope_of_saturated_sigmoids(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    batch b;
    make_batch(&b, c, make_config(1, 1, FP8FLOW_SCORE_SIGMOID, FP8FLOW_GATE_RAW, 0), 0.0f);
    for (int t = 0; t < NUM_TOKENS; t++) {
        b.logits[t] = 20.0f;
        b.scores[t] = 1.0f;
        b.dgate[t] = 1.0f;
    }
    fp8flow_router_backward_args args = backward_args(&b);
    assert_ok(fp8flow_router_backward(c, &args));
    double expected = 1.75 / (1.0 + exp(20.0));
    assert_true(fabs((double)b.dlogits[0] - expected) <= 1e-6 * expected);
    fp8flow_context_destroy(c);
}

static void test_router_backward_is_the_same_for_any_number_of_threads(void **state)
{
    (void)state;
    enum { TOKENS = 256, EXPERTS = 64, TOP_K = 6 };
    float *result[3];
    fp8flow_router_config config = make_config(EXPERTS, TOP_K, FP8FLOW_SCORE_SIGMOID, 1, 7);
    config.sequence_length = 64;
    static float logits[TOKENS * EXPERTS], scores[TOKENS * EXPERTS], gate[TOKENS * TOP_K], lse[TOKENS];
    static int32_t expert[TOKENS * TOP_K], counts[4 * EXPERTS];
    static float sums[4 * EXPERTS];
    int64_t total[EXPERTS];
    for (int i = 0; i < TOKENS * EXPERTS; i++) logits[i] = f8_normal(1, 1, (uint64_t)i);
    for (int e = 0; e < EXPERTS; e++) total[e] = e;
    fp8flow_tensor x = f8_f32(logits, TOKENS, EXPERTS);
    fp8flow_router_load load = { TOKENS, total, NULL };
    for (int i = 0; i < 3; i++) {
        fp8flow_context *c = make_context(i < 2 ? FP8FLOW_CPU : FP8FLOW_REFERENCE, i + 1);
        result[i] = poisoned(sizeof logits);
        fp8flow_router_args forward = { &config, &x, NULL, expert, gate, scores, lse, counts, sums };
        assert_ok(fp8flow_router(c, &forward));
        fp8flow_router_backward_args args = { &config, TOKENS, logits, scores, lse,      expert,
                                              counts,  &load,  gate,   1.0f,   result[i] };
        assert_ok(fp8flow_router_backward(c, &args));
        fp8flow_context_destroy(c);
    }
    assert_memory_equal(result[0], result[1], sizeof logits);
    assert_memory_equal(result[0], result[2], sizeof logits);
    for (int i = 0; i < 3; i++) free(result[i]);
}

/* Scores of very different size, a NaN, and counts near the end of their type. */
static void test_router_sum_add_sequences_in_ascending_order(void **state)
{
    (void)state;
    enum { SEQUENCES = 37, EXPERTS = 133 };
    static int32_t counts[SEQUENCES * EXPERTS];
    static float sums[SEQUENCES * EXPERTS];
    for (int i = 0; i < SEQUENCES * EXPERTS; i++) {
        counts[i] = i % 5 ? INT32_MAX - i : i;
        sums[i] = test_value(DATA_HEAVY_TAILED, 1, i, 0);
    }
    sums[2 * EXPERTS + 7] = f8_from_bits(0xFFC12345u);
    sums[8] = INFINITY;
    sums[EXPERTS + 8] = -INFINITY;
    sums[9] = INFINITY;
    for (int64_t sequences = 0; sequences <= SEQUENCES; sequences += sequences ? 18 : 1)
        for (int i = 0; i < 3; i++) {
            fp8flow_context *c = make_context(i < 2 ? FP8FLOW_CPU : FP8FLOW_REFERENCE, i + 1);
            int64_t got[EXPERTS], expected[EXPERTS];
            float got_sums[EXPERTS], expected_sums[EXPERTS];
            memset(got, 0xFF, sizeof got);
            memset(got_sums, 0xFF, sizeof got_sums);
            fp8flow_router_sum_args args = { sequences, EXPERTS, counts, sums, got, got_sums };
            assert_ok(fp8flow_router_sum(c, &args));
            for (int e = 0; e < EXPERTS; e++) {
                expected[e] = 0;
                expected_sums[e] = 0.0f;
                for (int64_t q = 0; q < sequences; q++) {
                    expected[e] += counts[q * EXPERTS + e];
                    expected_sums[e] += sums[q * EXPERTS + e];
                }
                if (isnan(expected_sums[e])) expected_sums[e] = f8_from_bits(0x7FC00000u);
            }
            assert_memory_equal(got, expected, sizeof got);
            assert_memory_equal(got_sums, expected_sums, sizeof got_sums);
            fp8flow_context_destroy(c);
        }
}

static void test_router_sum_bad_arguments_are_named(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    int32_t counts[2] = { 0 };
    float sums[2] = { 0 }, total_sums[2];
    int64_t totals[2];
    const fp8flow_router_sum_args good = { 1, 2, counts, sums, totals, total_sums };
    fp8flow_router_sum_args args = good;
    args.num_sequences = -1;
    assert_fails(fp8flow_router_sum(c, &args), FP8FLOW_ESHAPE, "-1 sequences, 2 experts");
    args.num_sequences = INT64_MAX;
    assert_fails(fp8flow_router_sum(c, &args), FP8FLOW_ESHAPE, "2 experts");
    args = good;
    args.counts = NULL;
    assert_fails(fp8flow_router_sum(c, &args), FP8FLOW_EINVAL, "counts is NULL");
    args = good;
    args.total_score_sums = NULL;
    assert_fails(fp8flow_router_sum(c, &args), FP8FLOW_EINVAL, "total_score_sums is NULL");
    assert_ok(fp8flow_router_sum(c, &(fp8flow_router_sum_args){ 0 }));
    fp8flow_context_destroy(c);
}

static void test_router_loss_equals_fp64_formula(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    for (int losses = 0; losses < 8; losses++) {
        batch b;
        make_batch(&b, c, make_config(8, 2, losses % 3, 0, losses), 1.0f);
        const double before[3] = { 0.0, 3.0, -2.0 };
        double got[3] = { 0.0, 3.0, -2.0 }, aux = 0.0, sequence = 0.0, z = 0.0;
        fp8flow_router_loss_args args = { &b.config, NUM_TOKENS, b.counts, b.score_sums, b.log_sum_exp, &b.load, got };
        assert_ok(fp8flow_router_loss(c, &args));
        for (int e = 0; e < 8; e++) {
            aux += 8.0 * ((double)b.total_counts[e] / (12.0 * 2)) * ((double)b.total_score_sums[e] / 12.0);
            for (int s = 0; s < NUM_SEQUENCES; s++)
                sequence += 8.0 * (b.counts[s * 8 + e] / 6.0) * ((double)b.score_sums[s * 8 + e] / 3.0) / NUM_SEQUENCES;
        }
        for (int t = 0; t < NUM_TOKENS; t++) z += (double)b.log_sum_exp[t] * (double)b.log_sum_exp[t] / 12.0;
        const double expected[3] = { (double)b.config.aux_coef * aux * 0.5,
                                     (double)b.config.sequence_coef * sequence * 0.5, (double)b.config.z_coef * z };
        for (int i = 0; i < 3; i++) {
            assert_true((expected[i] != 0.0) == (losses >> i & 1));
            assert_true(fabs(got[i] - before[i] - expected[i]) <= 0x1p-40 * (fabs(before[i]) + fabs(expected[i])));
            if (!(losses >> i & 1)) assert_true(got[i] == before[i]);
        }
    }
    fp8flow_context_destroy(c);
}

/* The balance loss of perfectly even loads is its coefficient: the meaning that users tune. */
static void test_router_loss_is_the_coefficient_when_balanced(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_router_config config = make_config(4, 2, FP8FLOW_SCORE_SOFTMAX, 0, 3);
    config.sequence_length = 4;
    int32_t counts[4] = { 2, 2, 2, 2 };
    float sums[4] = { 1, 1, 1, 1 };
    int64_t totals[4] = { 2, 2, 2, 2 };
    fp8flow_router_load load = { 4, totals, sums };
    double losses[3] = { 0, 0, 0 };
    fp8flow_router_loss_args args = { &config, 4, counts, sums, NULL, &load, losses };
    assert_ok(fp8flow_router_loss(c, &args));
    assert_true(fabs(losses[0] - (double)config.aux_coef) < 1e-12);
    assert_true(fabs(losses[1] - (double)config.sequence_coef) < 1e-12);
    assert_true(losses[2] == 0.0);
    fp8flow_context_destroy(c);
}

static void test_router_backward_and_loss_accept_no_tokens(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_router_config config = make_config(8, 2, FP8FLOW_SCORE_SIGMOID, 1, 7);
    double losses[3] = { 1, 1, 1 };
    fp8flow_router_loss_args loss = { .config = &config, .losses = losses };
    assert_ok(fp8flow_router_loss(c, &loss));
    assert_true(losses[0] == 1.0 && losses[1] == 1.0 && losses[2] == 1.0);
    fp8flow_router_backward_args backward = { .config = &config };
    assert_ok(fp8flow_router_backward(c, &backward));
    fp8flow_context_destroy(c);
}

static void test_router_backward_bad_arguments_are_named(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    batch b;
    make_batch(&b, c, make_config(8, 2, FP8FLOW_SCORE_SIGMOID, 1, 7), 1.0f);
    const fp8flow_router_backward_args good = backward_args(&b);
    fp8flow_router_backward_args args = good;
    double losses[3];
    fp8flow_router_loss_args loss = { &b.config, NUM_TOKENS, b.counts, b.score_sums, b.log_sum_exp, NULL, losses };
    assert_fails(fp8flow_router_loss(c, &loss), FP8FLOW_EINVAL, "load is NULL");
    loss.load = &b.load;
    loss.score_sums = NULL;
    assert_fails(fp8flow_router_loss(c, &loss), FP8FLOW_EINVAL, "score_sums is NULL");
    loss.num_tokens = -1;
    assert_fails(fp8flow_router_loss(c, &loss), FP8FLOW_ESHAPE, "-1 tokens");
    b.expert[3] = 8;
    assert_fails(fp8flow_router_backward(c, &args), FP8FLOW_EINVAL, "expert[1, 1] is 8, expected 0 to 7");
    b.expert[3] = 0;
    args.counts = NULL;
    assert_fails(fp8flow_router_backward(c, &args), FP8FLOW_EINVAL, "counts is NULL");
    args = good;
    b.load.total_tokens = 5;
    assert_fails(fp8flow_router_backward(c, &args), FP8FLOW_EINVAL, "total_tokens is 5, less than this rank's 6");
    args.load = NULL;
    assert_fails(fp8flow_router_backward(c, &args), FP8FLOW_EINVAL, "load is NULL");
    b.config.aux_coef = b.config.sequence_coef = b.config.z_coef = 0.0f;
    args.counts = NULL;
    args.log_sum_exp = NULL;
    assert_ok(fp8flow_router_backward(c, &args));
    fp8flow_context_destroy(c);
}

static void test_router_bias_update_moves_by_the_sign_of_the_load(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    float bias[4] = { 0.0f, 0.0f, 0.0f, 0.5f };
    int64_t counts[4] = { 10, 0, 3, 1 }; /* mean 3.5 */
    fp8flow_router_bias_update_args args = { 4, counts, 0.25f, bias };
    assert_ok(fp8flow_router_bias_update(c, &args));
    const float expected[4] = { -0.25f, 0.25f, 0.25f, 0.75f };
    assert_memory_equal(bias, expected, sizeof expected);
    int64_t balanced[4] = { 7, 7, 7, 7 };
    args.counts = balanced;
    assert_ok(fp8flow_router_bias_update(c, &args));
    assert_memory_equal(bias, expected, sizeof expected);
    /* E * count would overflow; FP64 could not tell these apart. */
    int64_t big = (int64_t)1 << 60, huge[4] = { big, big + 1, big, big };
    args.counts = huge;
    assert_ok(fp8flow_router_bias_update(c, &args));
    const float after[4] = { 0.0f, 0.0f, 0.5f, 1.0f };
    assert_memory_equal(bias, after, sizeof after);
    int64_t wrong[4] = { 1, -2, 3, 4 };
    args.counts = wrong;
    assert_fails(fp8flow_router_bias_update(c, &args), FP8FLOW_EINVAL, "counts[1] is -2");
    args.num_experts = 0;
    assert_fails(fp8flow_router_bias_update(c, &args), FP8FLOW_EINVAL, "num_experts is 0");
    fp8flow_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_router_backward_equals_numeric_gradient),
        cmocka_unit_test(test_router_backward_keeps_the_slope_of_saturated_sigmoids),
        cmocka_unit_test(test_router_backward_is_the_same_for_any_number_of_threads),
        cmocka_unit_test(test_router_sum_add_sequences_in_ascending_order),
        cmocka_unit_test(test_router_sum_bad_arguments_are_named),
        cmocka_unit_test(test_router_loss_equals_fp64_formula),
        cmocka_unit_test(test_router_loss_is_the_coefficient_when_balanced),
        cmocka_unit_test(test_router_backward_and_loss_accept_no_tokens),
        cmocka_unit_test(test_router_bias_update_moves_by_the_sign_of_the_load),
        cmocka_unit_test(test_router_backward_bad_arguments_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
