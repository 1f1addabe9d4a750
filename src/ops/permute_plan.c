/* permute_plan.c - where the copies of each token go: a counting sort of the (token, slot) pairs by expert.
 *
 * Pairs are visited in ascending order, so that the rows of an expert come in ascending token order. One
 * thread: 2 * T * k integer steps are less than what a parallel prefix sum costs at the sizes of a layer.
 */
#include "ops/plan.h"

#include <string.h>

fp8flow_status f8_plan_check(const char *op, const fp8flow_plan *plan)
{
    F8_REQUIRE(plan, EINVAL, "%s: plan is NULL", op);
    long long tokens = plan->num_tokens, top_k = plan->top_k, experts = plan->num_experts;
    F8_REQUIRE(tokens >= 0 && top_k >= 1 && experts >= 0, ESHAPE,
               "%s: plan of %lld tokens, top %lld of %lld experts is not a shape", op, tokens, top_k, experts);
    F8_REQUIRE(tokens <= INT32_MAX / top_k, ESHAPE, "%s: %lld tokens * top %lld: at most 2^31-1 slots are possible", op,
               tokens, top_k);
    F8_REQUIRE(plan->align >= 1 && plan->align <= INT32_MAX, ESHAPE, "%s: plan aligns to %lld rows", op,
               (long long)plan->align);
    F8_REQUIRE(plan->capacity >= 0 && plan->capacity <= INT32_MAX, ESHAPE,
               "%s: plan has a capacity of %lld rows, expected 0 to 2^31-1", op, (long long)plan->capacity);
    F8_REQUIRE(plan->offset && (plan->rows || experts == 0), EINVAL, "%s: rows or offset of the plan is NULL", op);
    F8_REQUIRE(plan->row_of || tokens == 0, EINVAL, "%s: row_of of the plan is NULL", op);
    F8_REQUIRE(plan->source || plan->capacity == 0, EINVAL, "%s: source of the plan is NULL", op);
    return FP8FLOW_OK;
}

fp8flow_status f8_plan_fits(const fp8flow_context *c, const char *op, const char *name, const fp8flow_plan *plan,
                            int64_t rows)
{
    long long needed = f8_on_host(c) ? f8_plan_rows(plan) : plan->capacity;
    F8_REQUIRE(needed >= 0 && needed <= plan->capacity, ESHAPE, "%s: plan has %lld rows and a capacity of %lld", op,
               needed, (long long)plan->capacity);
    F8_REQUIRE(needed <= rows, ESHAPE, "%s: %s has %lld rows, plan needs %lld", op, name, (long long)rows, needed);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_permute_plan(fp8flow_context *c, const fp8flow_permute_plan_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "permute_plan: NULL context or arguments");
    F8_TRY(f8_plan_check("permute_plan", a->plan));
    F8_REQUIRE(a->expert || a->plan->num_tokens == 0, EINVAL, "permute_plan: expert is NULL");
    enum { MAX_EXPERTS = F8_SCRATCH_BYTES / 8 };
    F8_REQUIRE(a->plan->num_experts <= MAX_EXPERTS, ESHAPE, "permute_plan: %lld experts, at most %d are possible",
               (long long)a->plan->num_experts, MAX_EXPERTS);
    return F8_RUN(c, permute_plan, a);
}

/* Rows of each expert, counted aside: nothing may be written before the routing is known to be valid. */
static fp8flow_status count_rows(fp8flow_context *c, const fp8flow_permute_plan_args *a, int32_t **counts)
{
    const fp8flow_plan *plan = a->plan;
    int32_t *count = f8_scratch(c), *last_token = count + plan->num_experts;
    memset(count, 0, (size_t)plan->num_experts * sizeof *count);
    memset(last_token, 0xFF, (size_t)plan->num_experts * sizeof *last_token);
    for (int32_t token = 0; token < plan->num_tokens; token++)
        for (int64_t slot = 0; slot < plan->top_k; slot++) {
            int32_t expert = a->expert[token * plan->top_k + slot];
            F8_REQUIRE(expert >= -1 && expert < plan->num_experts, EINVAL,
                       "permute_plan: token %d, slot %lld names expert %d of %lld", token, (long long)slot, expert,
                       (long long)plan->num_experts);
            if (expert < 0) continue;
            F8_REQUIRE(last_token[expert] != token, EINVAL, "permute_plan: token %d names expert %d twice", token,
                       expert);
            last_token[expert] = token;
            count[expert]++;
        }
    *counts = count;
    return FP8FLOW_OK;
}

fp8flow_status f8_ref_permute_plan(fp8flow_context *c, const fp8flow_permute_plan_args *a)
{
    const fp8flow_plan *plan = a->plan;
    int32_t *count = NULL;
    F8_TRY(count_rows(c, a, &count));
    int64_t total = 0;
    for (int64_t e = 0; e < plan->num_experts; e++) total += f8_ceil_div(count[e], plan->align) * plan->align;
    F8_REQUIRE(total <= plan->capacity, ESHAPE, "permute_plan: %lld rows needed, capacity is %lld", (long long)total,
               (long long)plan->capacity);

    plan->offset[0] = 0;
    for (int64_t e = 0; e < plan->num_experts; e++)
        plan->offset[e + 1] = (int32_t)(plan->offset[e] + f8_ceil_div(count[e], plan->align) * plan->align);
    for (int64_t row = 0; row < total; row++) plan->source[row] = -1;
    for (int64_t e = 0; e < plan->num_experts; e++) plan->rows[e] = 0;
    for (int32_t pair = 0; pair < plan->num_tokens * plan->top_k; pair++) {
        int32_t expert = a->expert[pair];
        plan->row_of[pair] = -1;
        if (expert < 0) continue;
        int32_t row = plan->offset[expert] + plan->rows[expert]++;
        plan->row_of[pair] = row;
        plan->source[row] = pair;
    }
    return FP8FLOW_OK;
}
