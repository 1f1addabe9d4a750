/* test_router.c - choice of experts, gate weights and statistics against an FP64 model; CPU against reference, bit for
 * bit. Losses and gradients: test_router_backward.c. */
#include "ops/router.h"
#include "support.h"

/* Everything that router writes for one batch. */
typedef struct {
    int64_t num_tokens, num_experts, top_k, num_sequences;
    int32_t *expert, *counts;
    float *gate, *scores, *log_sum_exp, *score_sums;
} routing;

static routing make_routing(const fp8flow_router_config *config, int64_t num_tokens)
{
    routing r = { num_tokens,    config->num_experts,
                  config->top_k, num_tokens / config->sequence_length,
                  NULL,          NULL,
                  NULL,          NULL,
                  NULL,          NULL };
    r.expert = poisoned(num_tokens * r.top_k * 4);
    r.gate = poisoned(num_tokens * r.top_k * 4);
    r.scores = poisoned(num_tokens * r.num_experts * 4);
    r.log_sum_exp = poisoned(num_tokens * 4);
    r.counts = poisoned(r.num_sequences * r.num_experts * 4);
    r.score_sums = poisoned(r.num_sequences * r.num_experts * 4);
    return r;
}

static void free_routing(routing *r)
{
    free(r->expert);
    free(r->gate);
    free(r->scores);
    free(r->log_sum_exp);
    free(r->counts);
    free(r->score_sums);
}

static fp8flow_router_args router_args(const fp8flow_router_config *config, const fp8flow_tensor *logits,
                                       const float *bias, const routing *r)
{
    return (fp8flow_router_args){ .config = config,
                                  .logits = logits,
                                  .bias = bias,
                                  .expert = r->expert,
                                  .gate = r->gate,
                                  .scores = r->scores,
                                  .log_sum_exp = r->log_sum_exp,
                                  .counts = r->counts,
                                  .score_sums = r->score_sums };
}

static routing route(fp8flow_context *c, const fp8flow_router_config *config, const fp8flow_tensor *logits,
                     const float *bias)
{
    routing r = make_routing(config, logits->rows);
    fp8flow_router_args args = router_args(config, logits, bias, &r);
    assert_ok(fp8flow_router(c, &args));
    return r;
}

static void assert_same_bytes(const void *a, const void *b, int64_t count)
{
    if (count) assert_memory_equal(a, b, (size_t)count * 4);
}

static void assert_same_routing(const routing *a, const routing *b)
{
    assert_same_bytes(a->expert, b->expert, a->num_tokens * a->top_k);
    assert_same_bytes(a->gate, b->gate, a->num_tokens * a->top_k);
    assert_same_bytes(a->scores, b->scores, a->num_tokens * a->num_experts);
    assert_same_bytes(a->log_sum_exp, b->log_sum_exp, a->num_tokens);
    assert_same_bytes(a->counts, b->counts, a->num_sequences * a->num_experts);
    assert_same_bytes(a->score_sums, b->score_sums, a->num_sequences * a->num_experts);
}

static fp8flow_router_config make_config(int64_t num_experts, int64_t top_k, fp8flow_score score)
{
    return (fp8flow_router_config){ .num_experts = num_experts,
                                    .top_k = top_k,
                                    .score = score,
                                    .gate_scale = 1.0f,
                                    .num_groups = 1,
                                    .top_groups = 1,
                                    .sequence_length = 1 };
}

/* Case `i` of the cross product of score modes, gate rules and group rules, for E experts. */
enum { NUM_VARIANTS = 3 * 2 * 3 };

static fp8flow_router_config make_variant(int i, int64_t num_experts, int64_t top_k)
{
    fp8flow_router_config config = make_config(num_experts, top_k, (fp8flow_score)(i % 3));
    config.gate_rule = (fp8flow_gate_rule)(i / 3 % 2);
    config.gate_scale = i % 2 ? 2.5f : 1.0f;
    if (i / 6 > 0 && num_experts % 4 == 0 && top_k <= num_experts / 2) {
        config.num_groups = 4;
        config.top_groups = 2;
        config.group_score = i / 6 == 1 ? FP8FLOW_GROUP_MAX : FP8FLOW_GROUP_TOP2_SUM;
    }
    return config;
}

static float *make_bias(int64_t num_experts, float size)
{
    float *bias = poisoned(num_experts * 4);
    for (int64_t e = 0; e < num_experts; e++) bias[e] = size * f8_normal(77, 5, (uint64_t)e);
    return bias;
}

/* ---- The model: plain loops in FP64, choices from the scores that the library reports ---- */

/* 1 if a comes before b in the ranking of choice scores: NaN last, ties by index. */
static int ranks_before(const float *score, int64_t a, int64_t b)
{
    int a_nan = score[a] != score[a], b_nan = score[b] != score[b];
    if (a_nan != b_nan) return b_nan;
    if (!a_nan && score[a] != score[b]) return score[a] > score[b];
    return a < b;
}

/* Number of eligible items that come before `item`. */
static int64_t rank_of(const float *score, const int *eligible, int64_t count, int64_t item)
{
    int64_t rank = 0;
    for (int64_t i = 0; i < count; i++) rank += i != item && eligible[i] && ranks_before(score, i, item);
    return rank;
}

static void model_eligible(const fp8flow_router_config *config, const float *score, int *eligible)
{
    int64_t size = config->num_experts / config->num_groups;
    float group[64];
    int all[64];
    for (int64_t e = 0; e < config->num_experts; e++) eligible[e] = 1;
    if (config->top_groups == config->num_groups) return;
    for (int64_t g = 0; g < config->num_groups; g++) {
        float best = 0, second = 0;
        for (int64_t e = g * size; e < (g + 1) * size; e++) {
            int64_t rank = rank_of(score + g * size, eligible + g * size, size, e - g * size);
            if (rank == 0) best = score[e];
            if (rank == 1) second = score[e];
        }
        group[g] = config->group_score == FP8FLOW_GROUP_TOP2_SUM && size > 1 ? best + second : best;
        all[g] = 1;
    }
    for (int64_t e = 0; e < config->num_experts; e++)
        eligible[e] = rank_of(group, all, config->num_groups, e / size) < config->top_groups;
}

static void check_choice(const fp8flow_router_config *config, const float *logits, const float *scores,
                         const float *bias, const int32_t *expert)
{
    enum { MAX_EXPERTS = 1024 };
    float choice[MAX_EXPERTS];
    int eligible[MAX_EXPERTS];
    for (int64_t e = 0; e < config->num_experts; e++)
        choice[e] = (config->score == FP8FLOW_SCORE_SOFTMAX_TOPK ? logits[e] : scores[e]) + (bias ? bias[e] : 0.0f);
    model_eligible(config, choice, eligible);
    for (int64_t slot = 0; slot < config->top_k; slot++) {
        assert_in_range(expert[slot], 0, config->num_experts - 1);
        assert_true(eligible[expert[slot]]);
        assert_int_equal(rank_of(choice, eligible, config->num_experts, expert[slot]), slot);
    }
}

static void assert_near(double value, double expected, double tolerance)
{
    if (!(fabs(value - expected) <= tolerance)) fail_msg("%.9g, expected %.9g +- %.3g", value, expected, tolerance);
}

static double model_log_sum_exp(const float *logits, int64_t count)
{
    double largest = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < count; i++) largest = fmax(largest, (double)logits[i]);
    for (int64_t i = 0; i < count; i++) sum += exp((double)logits[i] - largest);
    return largest + log(sum);
}

static double model_score(fp8flow_score mode, double logit, double log_sum_exp)
{
    return mode == FP8FLOW_SCORE_SIGMOID ? 1.0 / (1.0 + exp(-logit)) : exp(logit - log_sum_exp);
}

/* Gate weights of the chosen experts from the logits. */
static void check_gates(const fp8flow_router_config *config, const float *logits, const int32_t *expert,
                        const float *gate)
{
    double lse = model_log_sum_exp(logits, config->num_experts), sum = 0.0;
    int normalized = config->gate_rule == FP8FLOW_GATE_NORMALIZED || config->score == FP8FLOW_SCORE_SOFTMAX_TOPK;
    for (int64_t slot = 0; slot < config->top_k; slot++)
        sum += model_score(config->score, (double)logits[expert[slot]], lse);
    for (int64_t slot = 0; slot < config->top_k; slot++) {
        double score = model_score(config->score, (double)logits[expert[slot]], lse);
        double expected = (normalized ? score / sum : score) * (double)config->gate_scale;
        assert_near((double)gate[slot], expected, 0x1p-19 * expected);
    }
}

static void check_token(const fp8flow_router_config *config, const float *logits, const float *bias, const routing *r,
                        int64_t token)
{
    const float *scores = r->scores + token * r->num_experts;
    const int32_t *expert = r->expert + token * r->top_k;
    double lse = model_log_sum_exp(logits, r->num_experts);
    assert_near((double)r->log_sum_exp[token], lse, 0x1p-21 * (1.0 + fabs(lse)));
    for (int64_t e = 0; e < r->num_experts; e++) {
        double expected = model_score(config->score, (double)logits[e], lse);
        assert_near((double)scores[e], expected, 0x1p-19 * expected);
    }
    check_choice(config, logits, scores, bias, expert);
    check_gates(config, logits, expert, r->gate + token * r->top_k);
}

static void check_statistics(const fp8flow_router_config *config, const routing *r)
{
    for (int64_t sequence = 0; sequence < r->num_sequences; sequence++)
        for (int64_t e = 0; e < r->num_experts; e++) {
            int32_t count = 0;
            double sum = 0.0;
            for (int64_t i = 0; i < config->sequence_length; i++) {
                int64_t token = sequence * config->sequence_length + i;
                double total = 0.0;
                for (int64_t j = 0; j < r->num_experts; j++) total += (double)r->scores[token * r->num_experts + j];
                double divisor = config->score == FP8FLOW_SCORE_SIGMOID ? total : 1.0;
                sum += (double)r->scores[token * r->num_experts + e] / divisor;
                for (int64_t slot = 0; slot < r->top_k; slot++) count += r->expert[token * r->top_k + slot] == e;
            }
            assert_int_equal(r->counts[sequence * r->num_experts + e], count);
            assert_near((double)r->score_sums[sequence * r->num_experts + e], sum, 0x1p-18 * sum);
        }
}

/* Shapes: E, k, T, S. */
static const int64_t shapes[][4] = {
    { 1, 1, 3, 1 },    { 2, 1, 5, 5 },   { 2, 2, 4, 2 },   { 8, 2, 12, 4 },    { 60, 4, 6, 3 },
    { 64, 6, 8, 8 },   { 127, 8, 5, 1 }, { 256, 8, 4, 2 }, { 384, 8, 2, 1 },   { 16, 16, 4, 4 },
    { 1024, 9, 2, 2 }, { 33, 32, 3, 3 }, { 8, 3, 1, 1 },   { 512, 200, 2, 1 },
};
enum { NUM_SHAPES = sizeof shapes / sizeof shapes[0] };

static fp8flow_tensor make_logits(int64_t num_tokens, int64_t num_experts, data_kind kind, uint64_t seed)
{
    f8_tensor_format format = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    fp8flow_tensor logits = make_tensor(format, num_tokens, num_experts, 0, 1);
    fill_tensor(&logits, kind, seed);
    return logits;
}

static void test_router_agrees_with_fp64_model(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    for (int s = 0; s < NUM_SHAPES; s++)
        for (int i = 0; i < NUM_VARIANTS; i++) {
            fp8flow_router_config config = make_variant(i, shapes[s][0], shapes[s][1]);
            config.sequence_length = shapes[s][3];
            fp8flow_tensor logits = make_logits(shapes[s][2], shapes[s][0], DATA_NORMAL, (uint64_t)(s * 100 + i));
            float *bias = i % 4 == 3 ? NULL : make_bias(config.num_experts, 0.3f);
            routing r = route(c, &config, &logits, bias);
            for (int64_t t = 0; t < logits.rows; t++)
                check_token(&config, (float *)logits.data + t * logits.stride, bias, &r, t);
            check_statistics(&config, &r);
            free_routing(&r);
            free(bias);
            free_tensor(&logits);
        }
    fp8flow_context_destroy(c);
}

static void test_router_cpu_equals_reference_bit_for_bit(void **state)
{
    (void)state;
    fp8flow_context *fast = make_context(FP8FLOW_CPU, 1), *two = make_context(FP8FLOW_CPU, 2),
                    *reference = make_context(FP8FLOW_REFERENCE, 1);
    for (int s = 0; s < NUM_SHAPES; s++)
        for (int i = 0; i < NUM_VARIANTS; i++)
            for (int kind = 0; kind < NUM_DATA_KINDS; kind++) {
                fp8flow_router_config config = make_variant(i, shapes[s][0], shapes[s][1]);
                config.sequence_length = shapes[s][3];
                fp8flow_tensor logits = make_logits(shapes[s][2] * 2, shapes[s][0], (data_kind)kind, (uint64_t)i);
                float *bias = i % 2 ? make_bias(config.num_experts, 1.0f) : NULL;
                routing a = route(fast, &config, &logits, bias), b = route(reference, &config, &logits, bias),
                        d = route(two, &config, &logits, bias);
                assert_same_routing(&a, &b);
                assert_same_routing(&a, &d);
                free_routing(&a);
                free_routing(&b);
                free_routing(&d);
                free(bias);
                free_tensor(&logits);
            }
    fp8flow_context_destroy(fast);
    fp8flow_context_destroy(two);
    fp8flow_context_destroy(reference);
}

static void test_router_large_batch_is_the_same_for_any_number_of_threads(void **state)
{
    (void)state;
    fp8flow_router_config config = make_variant(17, 64, 6);
    config.sequence_length = 128;
    fp8flow_tensor logits = make_logits(512, 64, DATA_NORMAL, 3);
    routing result[3];
    for (int i = 0; i < 3; i++) {
        fp8flow_context *c = make_context(FP8FLOW_CPU, i + 1);
        result[i] = route(c, &config, &logits, NULL);
        fp8flow_context_destroy(c);
    }
    assert_same_routing(&result[0], &result[1]);
    assert_same_routing(&result[0], &result[2]);
    for (int i = 0; i < 3; i++) free_routing(&result[i]);
    free_tensor(&logits);
}

/* Sum of an expert's normalised scores in the order of the contract: parts of `part` tokens, ascending, each of
 * parts of a 32nd. */
static float sum_in_order(const float *normalised, int64_t stride, int64_t count, int64_t part)
{
    float sum = 0.0f;
    for (int64_t first = 0; first < count; first += part) {
        int64_t length = first + part < count ? part : count - first;
        const float *from = normalised + first * stride;
        sum += part == 1 ? *from : sum_in_order(from, stride, length, part / 32);
    }
    return sum;
}

static float *normalised_scores(const fp8flow_router_config *config, const routing *r)
{
    float *normalised = poisoned(r->num_tokens * r->num_experts * 4);
    for (int64_t t = 0; t < r->num_tokens; t++) {
        const float *scores = r->scores + t * r->num_experts;
        float sum = f8_sum32(scores, r->num_experts) + 1e-20f;
        for (int64_t e = 0; e < r->num_experts; e++)
            normalised[t * r->num_experts + e] = config->score == FP8FLOW_SCORE_SIGMOID ? scores[e] / sum : scores[e];
    }
    return normalised;
}

/* Bit for bit; returns how many sums have other bits when tokens are added one after the other. */
static int check_order_of_sums(const fp8flow_router_config *config, const routing *r)
{
    enum { OUTER = 32 * 32 };
    int num_different = 0;
    int64_t length = config->sequence_length, num_experts = r->num_experts;
    float *normalised = normalised_scores(config, r);
    for (int64_t i = 0; i < r->num_sequences * num_experts; i++) {
        const float *from = normalised + i / num_experts * length * num_experts + i % num_experts;
        float expected = sum_in_order(from, num_experts, length, OUTER);
        float plain = sum_in_order(from, num_experts, length, 1);
        assert_memory_equal(&r->score_sums[i], &expected, sizeof expected);
        num_different += f8_bits(plain) != f8_bits(expected);
    }
    free(normalised);
    return num_different;
}

/* Numbers of experts between the bounds at which a GPU changes how it holds a token; sequences at the bounds of blocks
 * of 32 tokens and of 1024. The numbers of sequences do not fill what a GPU takes at a time. */
static void test_router_adds_scores_in_the_order_of_the_contract(void **state)
{
    (void)state;
    static const int64_t experts[] = { 1, 8, 12, 32, 64, 96, 256, 260, 512, 516 };
    static const int64_t lengths[] = { 1, 5, 31, 32, 33, 64, 1024, 1025, 2100 };
    fp8flow_context *c = make_context(FP8FLOW_CPU, 2);
    for (size_t i = 0; i < sizeof experts / sizeof *experts; i++)
        for (size_t j = 0; j < sizeof lengths / sizeof *lengths; j++) {
            int64_t k = experts[i] < 3 ? experts[i] : 3, num_sequences = lengths[j] < 1000 ? 67 / lengths[j] + 1 : 1;
            fp8flow_router_config config = make_variant((int)(i * 5 + j) % NUM_VARIANTS, experts[i], k);
            config.sequence_length = lengths[j];
            fp8flow_tensor logits = make_logits(num_sequences * lengths[j], experts[i], DATA_NORMAL, 100 * i + j);
            routing r = route(c, &config, &logits, NULL);
            int num_different = check_order_of_sums(&config, &r);
            if (lengths[j] <= 32) assert_int_equal(num_different, 0);
            else if (lengths[j] >= 1000 && experts[i] >= 32) assert_true(num_different > experts[i] / 4);
            if (experts[i] <= 64) check_statistics(&config, &r);
            free_routing(&r);
            free_tensor(&logits);
        }
    fp8flow_context_destroy(c);
}

static void test_router_ties_go_to_the_lower_index(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    for (int i = 0; i < NUM_VARIANTS; i++) {
        fp8flow_router_config config = make_variant(i, 16, 5);
        fp8flow_tensor logits = make_logits(1, 16, DATA_NORMAL, 1);
        for (int e = 0; e < 16; e++) ((float *)logits.data)[e] = e % 2 ? 0.0f : -0.0f;
        routing r = route(c, &config, &logits, NULL);
        for (int slot = 0; slot < 5; slot++) assert_int_equal(r.expert[slot], slot);
        free_routing(&r);
        free_tensor(&logits);
    }
    fp8flow_context_destroy(c);
}

static void test_router_nan_ranks_lowest_and_choices_stay_distinct(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    float values[8] = { NAN, 1.0f, -INFINITY, NAN, -5.0f, 2.0f, NAN, -NAN };
    fp8flow_tensor logits = f8_f32(values, 1, 8);
    const int32_t expected[8] = { 5, 1, 4, 2, 0, 3, 6, 7 };
    for (int score = FP8FLOW_SCORE_SOFTMAX_TOPK; score <= FP8FLOW_SCORE_SIGMOID; score++) {
        fp8flow_router_config config = make_config(8, 8, (fp8flow_score)score);
        routing r = route(c, &config, &logits, NULL);
        assert_memory_equal(r.expert, expected, sizeof expected);
        free_routing(&r);
    }
    fp8flow_router_config softmax = make_config(8, 3, FP8FLOW_SCORE_SOFTMAX); /* every score is NaN */
    routing r = route(c, &softmax, &logits, NULL);
    for (int slot = 0; slot < 3; slot++) assert_int_equal(r.expert[slot], slot);
    assert_true(r.gate[0] != r.gate[0]);
    free_routing(&r);
    fp8flow_context_destroy(c);
}

/* Sigmoid scores of 1e-8 beside a bias of 12: the gate must come from the score, not from (score + bias) - bias. */
static void test_router_large_bias_does_not_cancel_small_gates(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    float values[8], bias[8];
    for (int e = 0; e < 8; e++) {
        values[e] = -18.4f - 0.1f * (float)e;
        bias[e] = 12.0f + (float)e;
    }
    fp8flow_tensor logits = f8_f32(values, 1, 8);
    for (int rule = 0; rule < 2; rule++) {
        fp8flow_router_config config = make_config(8, 2, FP8FLOW_SCORE_SIGMOID);
        config.gate_rule = (fp8flow_gate_rule)rule;
        routing r = route(c, &config, &logits, bias);
        assert_int_equal(r.expert[0], 7);
        assert_int_equal(r.expert[1], 6);
        check_gates(&config, values, r.expert, r.gate);
        assert_true(r.gate[0] > 0.0f && r.gate[1] > r.gate[0]);
        free_routing(&r);
    }
    fp8flow_context_destroy(c);
}

static void test_router_all_experts_chosen_gives_all_the_weight(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    for (int64_t num_experts = 1; num_experts <= 1024; num_experts *= 4)
        for (int score = 0; score < 3; score++) {
            fp8flow_router_config config = make_config(num_experts, num_experts, (fp8flow_score)score);
            config.gate_rule = FP8FLOW_GATE_NORMALIZED;
            fp8flow_tensor logits = make_logits(2, num_experts, DATA_OUTLIERS, 8);
            routing r = route(c, &config, &logits, NULL);
            double sum = 0.0;
            for (int64_t slot = 0; slot < num_experts; slot++) sum += (double)r.gate[slot];
            assert_near(sum, 1.0, 1e-6);
            for (int64_t e = 0; e < num_experts; e++) assert_int_equal(r.counts[e], 1);
            free_routing(&r);
            free_tensor(&logits);
        }
    fp8flow_context_destroy(c);
}

static void test_router_group_rules_choose_different_groups(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    /* Group 0 has the best expert, group 1 the best pair, group 2 nothing. */
    float values[6] = { 3.0f, -3.0f, 2.5f, 2.0f, 0.0f, 0.0f };
    fp8flow_tensor logits = f8_f32(values, 1, 6);
    fp8flow_router_config config = make_config(6, 2, FP8FLOW_SCORE_SIGMOID);
    config.num_groups = 3;
    routing best = route(c, &config, &logits, NULL);
    assert_int_equal(best.expert[0], 0);
    assert_int_equal(best.expert[1], 1);
    config.group_score = FP8FLOW_GROUP_TOP2_SUM;
    routing pair = route(c, &config, &logits, NULL);
    assert_int_equal(pair.expert[0], 2);
    assert_int_equal(pair.expert[1], 3);
    /* The bias takes part in the choice of groups; negative choice scores still beat excluded experts. */
    float bias[6] = { -9.0f, -9.0f, -9.0f, -9.0f, -4.0f, -4.0f };
    routing biased = route(c, &config, &logits, bias);
    assert_int_equal(biased.expert[0], 4);
    assert_int_equal(biased.expert[1], 5);
    free_routing(&best);
    free_routing(&pair);
    free_routing(&biased);
    fp8flow_context_destroy(c);
}

static void test_router_no_tokens_writes_nothing(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 2);
    fp8flow_router_config config = make_config(8, 2, FP8FLOW_SCORE_SOFTMAX);
    config.sequence_length = 64;
    fp8flow_tensor logits = f8_f32(NULL, 0, 8);
    fp8flow_router_args args = { .config = &config, .logits = &logits };
    assert_ok(fp8flow_router(c, &args));
    assert_int_equal(fp8flow_context_calls(c, "router"), 1);
    fp8flow_context_destroy(c);
}

static void test_router_strided_logits_ignore_the_gap(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_router_config config = make_config(5, 2, FP8FLOW_SCORE_SIGMOID);
    fp8flow_tensor dense = make_logits(3, 5, DATA_NORMAL, 4), strided = dense;
    float wide[3 * 9];
    memset(wide, 0xFF, sizeof wide);
    for (int r = 0; r < 3; r++) memcpy(wide + r * 9, (float *)dense.data + r * 5, 20);
    strided.data = wide;
    strided.stride = 9;
    routing a = route(c, &config, &dense, NULL), b = route(c, &config, &strided, NULL);
    assert_same_routing(&a, &b);
    free_routing(&a);
    free_routing(&b);
    free_tensor(&dense);
    fp8flow_context_destroy(c);
}

static void test_router_bad_arguments_are_named(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_tensor logits = make_logits(6, 8, DATA_NORMAL, 1);
    fp8flow_router_config good = make_config(8, 2, FP8FLOW_SCORE_SIGMOID), config = good;
    routing r = make_routing(&good, 6);
    fp8flow_router_args args = router_args(&config, &logits, NULL, &r);
#define EXPECT(change, status, text)                          \
    do {                                                      \
        config = good;                                        \
        change;                                               \
        assert_fails(fp8flow_router(c, &args), status, text); \
    } while (0)
    EXPECT(config.num_experts = 7, FP8FLOW_ESHAPE, "logits has 8 columns, num_experts is 7");
    EXPECT(config.num_experts = 5000, FP8FLOW_ESHAPE, "num_experts is 5000");
    EXPECT(config.top_k = 0, FP8FLOW_ESHAPE, "top_k is 0");
    EXPECT(config.top_k = 9, FP8FLOW_ESHAPE, "top_k is 9, expected 1 to num_experts 8");
    EXPECT(config.num_groups = 3, FP8FLOW_ESHAPE, "num_experts 8 is not a multiple of num_groups 3");
    EXPECT(config.num_groups = 0, FP8FLOW_ESHAPE, "num_groups 0");
    EXPECT((config.num_groups = 4, config.top_groups = 5), FP8FLOW_ESHAPE, "top_groups is 5");
    EXPECT((config.num_groups = 8, config.top_groups = 1), FP8FLOW_ESHAPE,
           "top_k is 2, but 1 groups of 1 experts hold only 1");
    EXPECT(config.sequence_length = 4, FP8FLOW_ESHAPE, "6 tokens are not a multiple of sequence_length 4");
    EXPECT(config.sequence_length = 0, FP8FLOW_ESHAPE, "sequence_length is 0");
    EXPECT(config.score = (fp8flow_score)9, FP8FLOW_EINVAL, "unknown score 9");
    EXPECT(config.gate_rule = (fp8flow_gate_rule)7, FP8FLOW_EINVAL, "unknown gate_rule 7");
    EXPECT(config.group_score = (fp8flow_group_score)3, FP8FLOW_EINVAL, "unknown group_score 3");
    EXPECT(args.counts = NULL, FP8FLOW_EINVAL, "counts is NULL, 6 tokens");
    EXPECT(args.config = NULL, FP8FLOW_EINVAL, "config is NULL");
    logits.dtype = FP8FLOW_BF16;
    EXPECT((void)0, FP8FLOW_EINVAL, "logits is bf16, expected f32");
#undef EXPECT
    free_routing(&r);
    free_tensor(&logits);
    fp8flow_context_destroy(c);
}

/* The shared logarithm of log_sum_exp, over all sums that can occur. */
static void test_router_logarithm_is_within_two_ulp(void **state)
{
    (void)state;
    for (uint32_t bits = f8_bits(1.0f); bits <= f8_bits(4096.0f); bits += 997) {
        float x = f8_from_bits(bits);
        double expected = log((double)x);
        assert_near((double)f8_logf(x), expected, 0x1p-22 * expected);
    }
    assert_true(f8_logf(1.0f) == 0.0f);
    assert_true(f8_logf(NAN) != f8_logf(NAN));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_router_agrees_with_fp64_model),
        cmocka_unit_test(test_router_cpu_equals_reference_bit_for_bit),
        cmocka_unit_test(test_router_large_batch_is_the_same_for_any_number_of_threads),
        cmocka_unit_test(test_router_adds_scores_in_the_order_of_the_contract),
        cmocka_unit_test(test_router_ties_go_to_the_lower_index),
        cmocka_unit_test(test_router_nan_ranks_lowest_and_choices_stay_distinct),
        cmocka_unit_test(test_router_large_bias_does_not_cancel_small_gates),
        cmocka_unit_test(test_router_all_experts_chosen_gives_all_the_weight),
        cmocka_unit_test(test_router_group_rules_choose_different_groups),
        cmocka_unit_test(test_router_no_tokens_writes_nothing),
        cmocka_unit_test(test_router_strided_logits_ignore_the_gap),
        cmocka_unit_test(test_router_bad_arguments_are_named),
        cmocka_unit_test(test_router_logarithm_is_within_two_ulp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
