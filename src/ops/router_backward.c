/* router_backward.c - the balancing losses and the gradient of the logits.
 *
 * The choice of experts and the counts are constants. A token's logits get three kinds of gradient:
 *   through its gate weights  dgate -> score of the chosen experts (SOFTMAX_TOPK: -> logits directly),
 *   through the balance losses -> normalised scores of all experts,
 *   through the z loss        -> logits directly: d lse^2 / d logit = 2 lse softmax.
 * The score part then passes through the softmax or the sigmoid. Sums are FP64: the
 * differences cancel. */
#include "ops/router.h"

#include <math.h>

/* The figures of the whole batch; not needed where every loss is off. */
static fp8flow_status check_load(const char *op, const fp8flow_router_config *config, const fp8flow_router_load *load,
                                 int64_t num_tokens)
{
    int losses = config->aux_coef != 0.0f || config->sequence_coef != 0.0f || config->z_coef != 0.0f;
    if (!losses || num_tokens == 0) return FP8FLOW_OK;
    F8_REQUIRE(load, EINVAL, "%s: load is NULL", op);
    F8_REQUIRE(load->total_tokens >= num_tokens, EINVAL, "%s: total_tokens is %lld, less than this rank's %lld", op,
               (long long)load->total_tokens, (long long)num_tokens);
    F8_REQUIRE(load->total_counts || config->aux_coef == 0.0f, EINVAL, "%s: total_counts is NULL", op);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_router_loss(fp8flow_context *c, const fp8flow_router_loss_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "router_loss: NULL context or arguments");
    F8_TRY(f8_router_check_config("router_loss", a->config, a->num_tokens));
    F8_TRY(check_load("router_loss", a->config, a->load, a->num_tokens));
    F8_REQUIRE(a->losses, EINVAL, "router_loss: losses is NULL");
    if (a->num_tokens > 0) {
        int sequence = a->config->sequence_coef != 0.0f;
        F8_REQUIRE(a->config->aux_coef == 0.0f || a->load->total_score_sums, EINVAL,
                   "router_loss: total_score_sums is NULL");
        F8_REQUIRE(!sequence || (a->counts && a->score_sums), EINVAL, "router_loss: %s is NULL",
                   a->counts ? "score_sums" : "counts");
        F8_REQUIRE(a->config->z_coef == 0.0f || a->log_sum_exp, EINVAL, "router_loss: log_sum_exp is NULL");
    }
    return F8_RUN(c, router_loss, a);
}

/* sum over sequences and experts of counts * score_sums. */
static double sequence_dot(const fp8flow_router_loss_args *a)
{
    double sum = 0.0;
    int64_t num_figures = a->num_tokens / a->config->sequence_length * a->config->num_experts;
    for (int64_t i = 0; i < num_figures; i++) sum += (double)a->counts[i] * (double)a->score_sums[i];
    return sum;
}

fp8flow_status f8_ref_router_loss(fp8flow_context *c, const fp8flow_router_loss_args *a)
{
    (void)c;
    const fp8flow_router_config *config = a->config;
    double experts = (double)config->num_experts, top_k = (double)config->top_k;
    if (a->num_tokens == 0) return FP8FLOW_OK;
    if (config->aux_coef != 0.0f) {
        double total = (double)a->load->total_tokens, dot = 0.0;
        for (int64_t e = 0; e < config->num_experts; e++)
            dot += (double)a->load->total_counts[e] * (double)a->load->total_score_sums[e];
        double share = (double)a->num_tokens / total;
        a->losses[0] += (double)config->aux_coef * experts * dot / (total * top_k) / total * share;
    }
    if (config->sequence_coef != 0.0f) {
        double length = (double)config->sequence_length, total = (double)a->load->total_tokens;
        /* (T / N) * mean over T / S sequences = (S / N) * sum. */
        a->losses[1] += (double)config->sequence_coef * experts * sequence_dot(a) / (length * top_k) / total;
    }
    if (config->z_coef != 0.0f) {
        double squares = 0.0;
        for (int64_t t = 0; t < a->num_tokens; t++) squares += (double)a->log_sum_exp[t] * (double)a->log_sum_exp[t];
        a->losses[2] += (double)config->z_coef * squares / (double)a->load->total_tokens;
    }
    return FP8FLOW_OK;
}

static fp8flow_status check_backward_arrays(const fp8flow_context *c, const fp8flow_router_backward_args *a)
{
    const fp8flow_router_config *config = a->config;
    const char *missing = !a->logits                                    ? "logits"
                          : !a->scores                                  ? "scores"
                          : !a->expert                                  ? "expert"
                          : !a->dgate                                   ? "dgate"
                          : !a->dlogits                                 ? "dlogits"
                          : config->z_coef != 0.0f && !a->log_sum_exp   ? "log_sum_exp"
                          : config->sequence_coef != 0.0f && !a->counts ? "counts"
                                                                        : NULL;
    F8_REQUIRE(!missing, EINVAL, "router_backward: %s is NULL, %lld tokens", missing, (long long)a->num_tokens);
    for (int64_t i = 0; f8_on_host(c) && i < a->num_tokens * config->top_k; i++)
        F8_REQUIRE(a->expert[i] >= 0 && a->expert[i] < config->num_experts, EINVAL,
                   "router_backward: expert[%lld, %lld] is %d, expected 0 to %lld", (long long)(i / config->top_k),
                   (long long)(i % config->top_k), a->expert[i], (long long)(config->num_experts - 1));
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_router_backward(fp8flow_context *c, const fp8flow_router_backward_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "router_backward: NULL context or arguments");
    F8_TRY(f8_router_check_config("router_backward", a->config, a->num_tokens));
    F8_TRY(check_load("router_backward", a->config, a->load, a->num_tokens));
    if (a->num_tokens > 0) F8_TRY(check_backward_arrays(c, a));
    return F8_RUN(c, router_backward, a);
}

/* The rows of one token, and the gradient under construction. */
typedef struct {
    const float *logits, *scores, *dgate;
    const int32_t *expert;
    double dscore[F8_ROUTER_MAX_EXPERTS]; /* gradient of the scores */
    double dlogit[F8_ROUTER_MAX_EXPERTS]; /* gradient that reaches the logits past the scores */
} token_gradient;

/* Gates that are softmax over the chosen logits: q_i (g_i - sum_j g_j q_j). */
static void add_chosen_softmax(const fp8flow_router_config *config, token_gradient *t)
{
    float q[F8_ROUTER_MAX_EXPERTS], largest;
    for (int64_t slot = 0; slot < config->top_k; slot++) q[slot] = t->logits[t->expert[slot]];
    double sum = (double)f8_exponentials(q, config->top_k, &largest), mean = 0.0, scale = (double)config->gate_scale;
    for (int64_t slot = 0; slot < config->top_k; slot++) mean += (double)t->dgate[slot] * (double)q[slot] / sum;
    for (int64_t slot = 0; slot < config->top_k; slot++)
        t->dlogit[t->expert[slot]] += scale * (double)q[slot] / sum * ((double)t->dgate[slot] - mean);
}

/* Gates that are scores, plain or divided by D = their sum: (g_i - sum_j g_j s_j / D) / D. */
static void add_gates(const fp8flow_router_config *config, token_gradient *t)
{
    double divisor = 1.0, mean = 0.0;
    if (config->gate_rule == FP8FLOW_GATE_NORMALIZED) {
        double dot = 0.0;
        divisor = config->score == FP8FLOW_SCORE_SIGMOID ? 1e-20 : 0.0;
        for (int64_t slot = 0; slot < config->top_k; slot++) {
            double score = (double)t->scores[t->expert[slot]];
            divisor += score;
            dot += (double)t->dgate[slot] * score;
        }
        mean = dot / divisor;
    }
    for (int64_t slot = 0; slot < config->top_k; slot++)
        t->dscore[t->expert[slot]] += (double)config->gate_scale * ((double)t->dgate[slot] - mean) / divisor;
}

/* Balance losses: linear in the normalised scores with one weight per expert. */
static void add_balance(const fp8flow_router_backward_args *a, const int32_t *counts, token_gradient *t)
{
    const fp8flow_router_config *config = a->config;
    int64_t num_experts = config->num_experts;
    double total = (double)a->load->total_tokens, weight[F8_ROUTER_MAX_EXPERTS], divisor = 1.0, mean = 0.0;
    double common = (double)a->loss_scale * (double)num_experts / (total * (double)config->top_k);
    double aux = common * (double)config->aux_coef / total;
    double sequence = common * (double)config->sequence_coef / (double)config->sequence_length;
    for (int64_t e = 0; e < num_experts; e++) {
        weight[e] = config->aux_coef != 0.0f ? aux * (double)a->load->total_counts[e] : 0.0;
        if (config->sequence_coef != 0.0f) weight[e] += sequence * (double)counts[e];
    }
    if (config->score == FP8FLOW_SCORE_SIGMOID) {
        double dot = 0.0;
        divisor = 1e-20;
        for (int64_t e = 0; e < num_experts; e++) {
            divisor += (double)t->scores[e];
            dot += weight[e] * (double)t->scores[e];
        }
        mean = dot / divisor;
    }
    for (int64_t e = 0; e < num_experts; e++) t->dscore[e] += (weight[e] - mean) / divisor;
}

/* factor * softmax over all logits. Its own sum, not log_sum_exp, normalises it: a rounding error of a large
 * log_sum_exp would be a relative error of every term. */
static void add_softmax(const fp8flow_router_config *config, double factor, token_gradient *t)
{
    int64_t num_experts = config->num_experts;
    if (config->score != FP8FLOW_SCORE_SIGMOID) {
        for (int64_t i = 0; i < num_experts; i++) t->dlogit[i] += factor * (double)t->scores[i];
        return;
    }
    float e[F8_ROUTER_MAX_EXPERTS], largest = t->logits[0];
    double sum = 0.0;
    for (int64_t i = 1; i < num_experts; i++) largest = t->logits[i] > largest ? t->logits[i] : largest;
    for (int64_t i = 0; i < num_experts; i++) sum += (double)(e[i] = f8_expf(t->logits[i] - largest));
    for (int64_t i = 0; i < num_experts; i++) t->dlogit[i] += factor * (double)e[i] / sum;
}

/* 1 - sigmoid(logit); sigmoid(-logit) where the difference would cancel. */
static double complement(float score, float logit)
{
    return score < 0.875f ? 1.0 - (double)score : (double)f8_sigmoid(-logit);
}

/* dlogits from the gradient of the scores. */
static void through_scores(const fp8flow_router_config *config, const token_gradient *t, float *dlogits)
{
    int64_t num_experts = config->num_experts;
    if (config->score == FP8FLOW_SCORE_SIGMOID) {
        for (int64_t e = 0; e < num_experts; e++) {
            double slope = (double)t->scores[e] * complement(t->scores[e], t->logits[e]);
            dlogits[e] = (float)(t->dlogit[e] + t->dscore[e] * slope);
        }
        return;
    }
    double mean = 0.0;
    for (int64_t e = 0; e < num_experts; e++) mean += t->dscore[e] * (double)t->scores[e];
    for (int64_t e = 0; e < num_experts; e++)
        dlogits[e] = (float)(t->dlogit[e] + (double)t->scores[e] * (t->dscore[e] - mean));
}

static void backward_token(const fp8flow_router_backward_args *a, int64_t token)
{
    const fp8flow_router_config *config = a->config;
    int64_t num_experts = config->num_experts, top_k = config->top_k;
    token_gradient t;
    t.logits = a->logits + token * num_experts;
    t.scores = a->scores + token * num_experts;
    t.dgate = a->dgate + token * top_k;
    t.expert = a->expert + token * top_k;
    for (int64_t e = 0; e < num_experts; e++) t.dscore[e] = t.dlogit[e] = 0.0;
    if (config->score == FP8FLOW_SCORE_SOFTMAX_TOPK) add_chosen_softmax(config, &t);
    else add_gates(config, &t);
    if (config->aux_coef != 0.0f || config->sequence_coef != 0.0f)
        add_balance(a, a->counts ? a->counts + token / config->sequence_length * num_experts : NULL, &t);
    if (config->z_coef != 0.0f) {
        double scale = (double)a->loss_scale * (double)config->z_coef / (double)a->load->total_tokens;
        add_softmax(config, 2.0 * scale * (double)a->log_sum_exp[token], &t);
    }
    through_scores(config, &t, a->dlogits + token * num_experts);
}

fp8flow_status f8_ref_router_backward(fp8flow_context *c, const fp8flow_router_backward_args *a)
{
    enum { OPERATIONS = 8 }; /* per score: the balance losses in FP64, perhaps an exponential */
    int64_t work = a->num_tokens * a->config->num_experts * OPERATIONS;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t token = 0; token < a->num_tokens; token++) backward_token(a, token);
    return FP8FLOW_OK;
}
