/* router.c - which experts a token goes to, with which weight; and the bias that balances them. The arithmetic is in
 * router.h. Gradients and losses: router_backward.c. */
#include "ops/router.h"

/* expert[T, k] and counts[T/S, E] are int32, and T*E, T*k must be countable. */
static fp8flow_status check_tokens(const char *op, const fp8flow_router_config *config, int64_t num_tokens)
{
    F8_REQUIRE(num_tokens >= 0, ESHAPE, "%s: %lld tokens", op, (long long)num_tokens);
    F8_REQUIRE(num_tokens <= INT32_MAX, ESHAPE, "%s: %lld tokens, at most 2^31-1 are possible", op,
               (long long)num_tokens);
    F8_REQUIRE(config->sequence_length >= 1, ESHAPE, "%s: sequence_length is %lld", op,
               (long long)config->sequence_length);
    F8_REQUIRE(num_tokens % config->sequence_length == 0, ESHAPE,
               "%s: %lld tokens are not a multiple of sequence_length %lld", op, (long long)num_tokens,
               (long long)config->sequence_length);
    return FP8FLOW_OK;
}

static fp8flow_status check_enums(const char *op, const fp8flow_router_config *config)
{
    F8_REQUIRE((unsigned)config->score <= FP8FLOW_SCORE_SIGMOID, EINVAL, "%s: unknown score %d", op,
               (int)config->score);
    F8_REQUIRE((unsigned)config->gate_rule <= FP8FLOW_GATE_NORMALIZED, EINVAL, "%s: unknown gate_rule %d", op,
               (int)config->gate_rule);
    F8_REQUIRE((unsigned)config->group_score <= FP8FLOW_GROUP_TOP2_SUM, EINVAL, "%s: unknown group_score %d", op,
               (int)config->group_score);
    return FP8FLOW_OK;
}

fp8flow_status f8_router_check_config(const char *op, const fp8flow_router_config *config, int64_t num_tokens)
{
    F8_REQUIRE(config, EINVAL, "%s: config is NULL", op);
    F8_TRY(check_enums(op, config));
    int64_t num_experts = config->num_experts, num_groups = config->num_groups, top_groups = config->top_groups;
    F8_REQUIRE(num_experts >= 1 && num_experts <= F8_ROUTER_MAX_EXPERTS, ESHAPE,
               "%s: num_experts is %lld, expected 1 to %d", op, (long long)num_experts, F8_ROUTER_MAX_EXPERTS);
    F8_REQUIRE(config->top_k >= 1 && config->top_k <= num_experts, ESHAPE,
               "%s: top_k is %lld, expected 1 to num_experts %lld", op, (long long)config->top_k,
               (long long)num_experts);
    F8_REQUIRE(num_groups >= 1 && num_experts % num_groups == 0, ESHAPE,
               "%s: num_experts %lld is not a multiple of num_groups %lld", op, (long long)num_experts,
               (long long)num_groups);
    F8_REQUIRE(top_groups >= 1 && top_groups <= num_groups, ESHAPE,
               "%s: top_groups is %lld, expected 1 to num_groups %lld", op, (long long)top_groups,
               (long long)num_groups);
    int64_t eligible = num_experts / num_groups * top_groups;
    F8_REQUIRE(config->top_k <= eligible, ESHAPE, "%s: top_k is %lld, but %lld groups of %lld experts hold only %lld",
               op, (long long)config->top_k, (long long)top_groups, (long long)(num_experts / num_groups),
               (long long)eligible);
    return check_tokens(op, config, num_tokens);
}

fp8flow_status fp8flow_router(fp8flow_context *c, const fp8flow_router_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "router: NULL context or arguments");
    F8_TRY(f8_plain_check("router", "logits", a->logits, F8_ACCEPT_F32));
    F8_TRY(f8_router_check_config("router", a->config, a->logits->rows));
    F8_REQUIRE(a->logits->cols == a->config->num_experts, ESHAPE,
               "router: logits has %lld columns, num_experts is %lld", (long long)a->logits->cols,
               (long long)a->config->num_experts);
    const char *missing = !a->expert        ? "expert"
                          : !a->gate        ? "gate"
                          : !a->scores      ? "scores"
                          : !a->log_sum_exp ? "log_sum_exp"
                          : !a->counts      ? "counts"
                          : !a->score_sums  ? "score_sums"
                                            : NULL;
    F8_REQUIRE(!missing || a->logits->rows == 0, EINVAL, "router: %s is NULL, %lld tokens", missing,
               (long long)a->logits->rows);
    return F8_RUN(c, router, a);
}

fp8flow_status f8_ref_router(fp8flow_context *c, const fp8flow_router_args *a)
{
    return f8_route(c, a);
}

fp8flow_status fp8flow_router_bias_update(fp8flow_context *c, const fp8flow_router_bias_update_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "router_bias_update: NULL context or arguments");
    F8_REQUIRE(a->num_experts >= 1, EINVAL, "router_bias_update: num_experts is %lld", (long long)a->num_experts);
    F8_REQUIRE(a->counts, EINVAL, "router_bias_update: counts is NULL");
    F8_REQUIRE(a->bias, EINVAL, "router_bias_update: bias is NULL");
    int64_t total = 0;
    for (int64_t e = 0; f8_on_host(c) && e < a->num_experts; e++)
        F8_REQUIRE(a->counts[e] >= 0 && !__builtin_add_overflow(total, a->counts[e], &total), EINVAL,
                   "router_bias_update: counts[%lld] is %lld, negative or too large", (long long)e,
                   (long long)a->counts[e]);
    return F8_RUN(c, router_bias_update, a);
}

fp8flow_status f8_ref_router_bias_update(fp8flow_context *c, const fp8flow_router_bias_update_args *a)
{
    (void)c;
    int64_t total = 0;
    for (int64_t e = 0; e < a->num_experts; e++) total += a->counts[e];
    /* load < total / E exactly if load < ceil(total / E), load > total / E if load > floor: no product overflows. */
    int64_t floor = total / a->num_experts, ceiling = floor + (total % a->num_experts != 0);
    for (int64_t e = 0; e < a->num_experts; e++) {
        if (a->counts[e] < ceiling) a->bias[e] += a->rate;
        if (a->counts[e] > floor) a->bias[e] -= a->rate;
    }
    return FP8FLOW_OK;
}
