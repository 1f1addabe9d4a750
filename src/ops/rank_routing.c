/* rank_routing.c - rank_destinations, rank_routing, rank_gates: integer work on the routing, a slot at a time. */
#include "ops/rank_routing.h"

#include "ops/plan.h"

/* ---- rank_destinations ---- */

static int is_index(int64_t rows, int64_t cols)
{
    return rows >= 0 && cols >= 1 && rows <= INT32_MAX / cols;
}

fp8flow_status fp8flow_rank_destinations(fp8flow_context *c, const fp8flow_rank_destinations_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "rank_destinations: NULL context or arguments");
    F8_REQUIRE(is_index(a->num_tokens, a->top_k) && is_index(a->num_tokens, a->num_ranks), ESHAPE,
               "rank_destinations: %lld tokens, top %lld, %lld ranks: expected 0 to 2^31-1 slots",
               (long long)a->num_tokens, (long long)a->top_k, (long long)a->num_ranks);
    F8_REQUIRE(a->num_experts >= 0 && a->num_experts <= INT32_MAX, ESHAPE, "rank_destinations: %lld experts",
               (long long)a->num_experts);
    F8_REQUIRE((a->expert && a->destination) || a->num_tokens == 0, EINVAL, "rank_destinations: %s is NULL",
               a->expert ? "destination" : "expert");
    return F8_RUN(c, rank_destinations, a);
}

fp8flow_status f8_ref_rank_destinations(fp8flow_context *c, const fp8flow_rank_destinations_args *a)
{
    (void)c;
    for (int64_t i = 0; i < a->num_tokens * a->num_ranks; i++) a->destination[i] = -1;
    for (int64_t slot = 0; slot < a->num_tokens * a->top_k; slot++) {
        int32_t rank = f8_rank_of_expert(a->expert[slot], a->num_experts, a->num_ranks);
        if (rank >= 0) a->destination[slot / a->top_k * a->num_ranks + rank] = rank;
    }
    return FP8FLOW_OK;
}

/* ---- rank_routing, rank_gates ---- */

static fp8flow_status check_send_plan(const fp8flow_context *c, const char *op, const fp8flow_plan *plan,
                                      int64_t num_experts, int64_t top_k)
{
    F8_TRY(f8_plan_check(op, plan));
    F8_REQUIRE(plan->top_k == plan->num_experts, ESHAPE, "%s: plan of top %lld of %lld ranks is no send plan", op,
               (long long)plan->top_k, (long long)plan->num_experts);
    F8_REQUIRE(is_index(plan->num_tokens, top_k) && is_index(plan->capacity, top_k), ESHAPE,
               "%s: %lld tokens, %lld rows, top %lld: expected 0 to 2^31-1 slots", op, (long long)plan->num_tokens,
               (long long)plan->capacity, (long long)top_k);
    F8_REQUIRE(num_experts >= 0 && num_experts <= INT32_MAX, ESHAPE, "%s: %lld experts", op, (long long)num_experts);
    return f8_plan_fits(c, op, "source of the plan", plan, plan->capacity);
}

fp8flow_status fp8flow_rank_routing(fp8flow_context *c, const fp8flow_rank_routing_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "rank_routing: NULL context or arguments");
    F8_TRY(check_send_plan(c, "rank_routing", a->plan, a->num_experts, a->top_k));
    F8_REQUIRE((a->expert && a->gate) || a->plan->num_tokens == 0, EINVAL, "rank_routing: %s is NULL",
               a->expert ? "gate" : "expert");
    F8_REQUIRE((a->sent_expert && a->sent_gate) || a->plan->capacity == 0, EINVAL, "rank_routing: %s is NULL",
               a->sent_expert ? "sent_gate" : "sent_expert");
    return F8_RUN(c, rank_routing, a);
}

fp8flow_status f8_ref_rank_routing(fp8flow_context *c, const fp8flow_rank_routing_args *a)
{
    (void)c;
    const fp8flow_plan *plan = a->plan;
    int64_t num_ranks = plan->num_experts;
    for (int64_t row = 0; row < f8_plan_rows(plan); row++) {
        int64_t token = f8_plan_token(plan, row);
        for (int64_t slot = 0; slot < a->top_k; slot++) {
            int32_t rank = token < 0 ? -1 : (int32_t)(plan->source[row] % num_ranks);
            int32_t expert = token < 0 ? -1 : a->expert[token * a->top_k + slot];
            int here = rank >= 0 && f8_rank_of_expert(expert, a->num_experts, num_ranks) == rank;
            a->sent_expert[row * a->top_k + slot] =
                here ? expert - f8_first_expert(rank, a->num_experts, num_ranks) : -1;
            a->sent_gate[row * a->top_k + slot] = here ? a->gate[token * a->top_k + slot] : 0.0f;
        }
    }
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_rank_gates(fp8flow_context *c, const fp8flow_rank_gates_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "rank_gates: NULL context or arguments");
    F8_TRY(check_send_plan(c, "rank_gates", a->plan, a->num_experts, a->top_k));
    F8_REQUIRE((a->expert && a->gate) || a->plan->num_tokens == 0, EINVAL, "rank_gates: %s is NULL",
               a->expert ? "gate" : "expert");
    F8_REQUIRE(a->returned || a->plan->capacity == 0, EINVAL, "rank_gates: returned is NULL");
    return F8_RUN(c, rank_gates, a);
}

fp8flow_status f8_ref_rank_gates(fp8flow_context *c, const fp8flow_rank_gates_args *a)
{
    (void)c;
    int64_t num_ranks = a->plan->num_experts;
    for (int64_t i = 0; i < a->plan->num_tokens * a->top_k; i++) {
        int64_t token = i / a->top_k, slot = i % a->top_k;
        int32_t rank = f8_rank_of_expert(a->expert[i], a->num_experts, num_ranks);
        int32_t row = rank < 0 ? -1 : a->plan->row_of[token * num_ranks + rank];
        a->gate[i] = row < 0 ? 0.0f : a->returned[row * a->top_k + slot];
    }
    return FP8FLOW_OK;
}
