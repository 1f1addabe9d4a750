/* router.h - one text for the choice of experts, compiled twice: router.c is the reference, router_avx2.c the same
 * code where fused multiply-adds are instructions. A CUDA backend shares the arithmetic of a token.
 *
 * Scores are compared as integer keys, so that NaN, -0 and ties have one meaning on every machine. Every NaN that is
 * written is the canonical one (nan.h).
 */
#ifndef F8_OPS_ROUTER_H
#define F8_OPS_ROUTER_H

#include "ops/nan.h"
#include "ops/plain.h"

enum { F8_ROUTER_MAX_EXPERTS = 4096 }; /* bound of the arrays on the stack */

/* Sums over the tokens of a sequence: blocks of 32 tokens, spans of 32 blocks; ascending within each and over spans. A
 * GPU has a chain of 32 additions where it had one over all tokens, and no sum needs more than three arrays. */
enum { F8_SUM_TOKENS = 32, F8_SUM_BLOCKS = 32 };

/* ---- Arithmetic of one token ---- */

/* Natural logarithm of a positive normal number, about 1 ulp, the same bits on every backend; NaN gives NaN.
 * x = 2^n f with f in [sqrt(1/2), sqrt(2)); log f = 2 atanh(s), s = (f-1)/(f+1). */
F8_INLINE float f8_logf(float x)
{
    if (!(x > 0.0f)) return x;
    int32_t shifted = (int32_t)f8_bits(x) - 0x3F3504F3; /* bits of sqrt(1/2) */
    int32_t n = shifted >> 23;
    float f = f8_from_bits((uint32_t)(shifted & 0x7FFFFF) + 0x3F3504F3u);
    float s = (f - 1.0f) / (f + 1.0f), z = s * s;
    float p = fmaf(z, 2.22222222e-1f, 2.85714286e-1f);
    p = fmaf(p, z, 4.00000000e-1f);
    p = fmaf(p, z, 6.66666667e-1f);
    p = fmaf(p * z, s, s + s);
    float low = fmaf((float)n, 1.42860677e-6f, p);
    return fmaf((float)n, 0.693145752f, low);
}

/* Integer order of choice scores: NaN lowest, -0 equals +0. Key 0 is left for experts that may not be chosen. */
F8_INLINE uint32_t f8_choice_key(float score)
{
    uint32_t bits = f8_bits(score);
    if (score != score) return 1;
    if (score == 0.0f) return 0x80000000u;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* A score with this key. */
F8_INLINE float f8_key_score(uint32_t key)
{
    if (key == 1) return f8_from_bits(0x7FC00000u);
    return f8_from_bits(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

/* Indices of the `num_chosen` largest keys in descending order, ties in ascending order of the index. */
F8_INLINE void f8_choose_top(const uint32_t *key, int64_t count, int64_t num_chosen, int32_t *chosen)
{
    int64_t filled = 0;
    for (int64_t i = 0; i < count; i++) {
        if (filled == num_chosen && key[i] <= key[chosen[filled - 1]]) continue;
        int64_t slot = filled < num_chosen ? filled++ : filled - 1;
        for (; slot > 0 && key[i] > key[chosen[slot - 1]]; slot--) chosen[slot] = chosen[slot - 1];
        chosen[slot] = (int32_t)i;
    }
}

/* Replace x by exp(x - largest); returns the sum. NaN does not count as the largest. */
F8_INLINE float f8_exponentials(float *x, int64_t count, float *largest)
{
    float m = -INFINITY;
    for (int64_t i = 0; i < count; i++) m = x[i] > m ? x[i] : m;
    for (int64_t i = 0; i < count; i++) x[i] = f8_expf(x[i] - m);
    *largest = m;
    return f8_sum32(x, count);
}

/* scores and log-sum-exp of one token. */
F8_INLINE void f8_router_scores(fp8flow_score mode, const float *logits, int64_t num_experts, float *scores,
                                float *log_sum_exp)
{
    memcpy(scores, logits, (size_t)num_experts * sizeof *scores);
    float largest, sum = f8_exponentials(scores, num_experts, &largest);
    *log_sum_exp = f8_canonical(largest + f8_logf(sum));
    for (int64_t e = 0; e < num_experts; e++) {
        float score = mode == FP8FLOW_SCORE_SIGMOID ? f8_sigmoid(logits[e]) : scores[e] / sum;
        scores[e] = f8_canonical(score);
    }
}

/* Score of a group of experts: its best, or the sum of its two best (of the only one, if there is one). */
F8_INLINE float f8_group_score(fp8flow_group_score rule, const float *score, const uint32_t *key, int64_t size)
{
    int32_t best[2];
    int64_t num_best = rule == FP8FLOW_GROUP_TOP2_SUM && size > 1 ? 2 : 1;
    f8_choose_top(key, size, num_best, best);
    return num_best == 2 ? score[best[0]] + score[best[1]] : score[best[0]];
}

/* Set the keys of experts outside the best top_groups groups to 0. */
F8_INLINE void f8_limit_groups(const fp8flow_router_config *config, const float *score, uint32_t *key)
{
    uint32_t group_key[F8_ROUTER_MAX_EXPERTS];
    int32_t chosen[F8_ROUTER_MAX_EXPERTS];
    int64_t size = config->num_experts / config->num_groups;
    for (int64_t g = 0; g < config->num_groups; g++)
        group_key[g] = f8_choice_key(f8_group_score(config->group_score, score + g * size, key + g * size, size));
    f8_choose_top(group_key, config->num_groups, config->top_groups, chosen);
    for (int64_t i = 0; i < config->top_groups; i++) group_key[chosen[i]] = 0;
    for (int64_t e = 0; e < config->num_experts; e++)
        if (group_key[e / size] != 0) key[e] = 0;
}

/* The experts of one token. `base`: scores, or logits (SOFTMAX_TOPK). */
F8_INLINE void f8_choose_experts(const fp8flow_router_config *config, const float *base, const float *bias,
                                 int32_t *expert)
{
    float score[F8_ROUTER_MAX_EXPERTS];
    uint32_t key[F8_ROUTER_MAX_EXPERTS];
    for (int64_t e = 0; e < config->num_experts; e++) {
        score[e] = bias ? base[e] + bias[e] : base[e];
        key[e] = f8_choice_key(score[e]);
    }
    if (config->top_groups < config->num_groups) f8_limit_groups(config, score, key);
    f8_choose_top(key, config->num_experts, config->top_k, expert);
}

/* What a sum of sigmoid scores is divided by; softmax scores need no guard. */
F8_INLINE float f8_score_divisor(fp8flow_score mode, float sum)
{
    return mode == FP8FLOW_SCORE_SIGMOID ? sum + 1e-20f : sum;
}

/* Gate weights of the chosen experts, always from scores and logits without bias: recovering a score by
 * subtracting a large bias would cancel small scores to 0. */
F8_INLINE void f8_router_gates(const fp8flow_router_config *config, const float *logits, const float *scores,
                               const int32_t *expert, float *gate)
{
    float value[F8_ROUTER_MAX_EXPERTS], divisor = 1.0f;
    const float *base = config->score == FP8FLOW_SCORE_SOFTMAX_TOPK ? logits : scores;
    for (int64_t slot = 0; slot < config->top_k; slot++) value[slot] = base[expert[slot]];
    if (config->score == FP8FLOW_SCORE_SOFTMAX_TOPK) {
        float largest;
        divisor = f8_exponentials(value, config->top_k, &largest);
    } else if (config->gate_rule == FP8FLOW_GATE_NORMALIZED) {
        divisor = f8_score_divisor(config->score, f8_sum32(value, config->top_k));
    }
    for (int64_t slot = 0; slot < config->top_k; slot++)
        gate[slot] = f8_canonical(value[slot] / divisor * config->gate_scale);
}

/* ---- The operator on the CPU ---- */

#if !defined(__CUDACC__)

static inline void f8_route_token(const fp8flow_router_args *a, int64_t token)
{
    const fp8flow_router_config *config = a->config;
    const float *logits = f8_f32_row(a->logits, token);
    float *scores = a->scores + token * config->num_experts;
    int32_t *expert = a->expert + token * config->top_k;
    f8_router_scores(config->score, logits, config->num_experts, scores, a->log_sum_exp + token);
    f8_choose_experts(config, config->score == FP8FLOW_SCORE_SOFTMAX_TOPK ? logits : scores, a->bias, expert);
    f8_router_gates(config, logits, scores, expert, a->gate + token * config->top_k);
}

/* Sums over tokens of one sequence: of the block of tokens at hand, of the blocks of the span at hand, of the spans. */
typedef struct {
    float block[F8_ROUTER_MAX_EXPERTS], span[F8_ROUTER_MAX_EXPERTS], total[F8_ROUTER_MAX_EXPERTS];
} f8_score_sums;

/* sum += part, part = 0. */
static inline void f8_fold_sums(float *sum, float *part, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        sum[i] += part[i];
        part[i] = 0.0f;
    }
}

/* Add the scores of the token `index` of a sequence. */
static inline void f8_add_scores(const fp8flow_router_config *config, const float *scores, int64_t index,
                                 f8_score_sums *sums)
{
    int64_t num_experts = config->num_experts, next = index + 1;
    float divisor = 1.0f;
    if (config->score == FP8FLOW_SCORE_SIGMOID)
        divisor = f8_score_divisor(config->score, f8_sum32(scores, num_experts));
    for (int64_t e = 0; e < num_experts; e++) sums->block[e] += scores[e] / divisor;
    int is_last = next == config->sequence_length;
    if (next % F8_SUM_TOKENS == 0 || is_last) f8_fold_sums(sums->span, sums->block, num_experts);
    if (next % (F8_SUM_TOKENS * F8_SUM_BLOCKS) == 0 || is_last) f8_fold_sums(sums->total, sums->span, num_experts);
}

/* counts and score_sums of one sequence. */
static inline void f8_route_statistics(const fp8flow_router_args *a, int64_t sequence)
{
    const fp8flow_router_config *config = a->config;
    int64_t num_experts = config->num_experts, first = sequence * config->sequence_length;
    int32_t *counts = a->counts + sequence * num_experts;
    f8_score_sums sums;
    for (int64_t e = 0; e < num_experts; e++) counts[e] = 0, sums.block[e] = sums.span[e] = sums.total[e] = 0.0f;
    for (int64_t i = 0; i < config->sequence_length; i++) {
        const int32_t *expert = a->expert + (first + i) * config->top_k;
        for (int64_t slot = 0; slot < config->top_k; slot++) counts[expert[slot]]++;
        f8_add_scores(config, a->scores + (first + i) * num_experts, i, &sums);
    }
    for (int64_t e = 0; e < num_experts; e++) a->score_sums[sequence * num_experts + e] = f8_canonical(sums.total[e]);
}

static inline fp8flow_status f8_route(fp8flow_context *c, const fp8flow_router_args *a)
{
    enum { OPERATIONS = 16 }; /* per score: an exponential, a division, the choice */
    int64_t num_tokens = a->logits->rows, num_sequences = num_tokens / a->config->sequence_length;
    int64_t num_scores = num_tokens * a->config->num_experts;
    int64_t work = num_scores * OPERATIONS;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t token = 0; token < num_tokens; token++) f8_route_token(a, token);
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, num_scores))
    for (int64_t sequence = 0; sequence < num_sequences; sequence++) f8_route_statistics(a, sequence);
    return FP8FLOW_OK;
}

#endif

#endif
