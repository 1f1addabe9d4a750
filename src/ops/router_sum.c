/* router_sum.c - load of the experts: over the sequences of a rank, and over forwards. */
#include "ops/nan.h"
#include "ops/ops.h"

fp8flow_status fp8flow_router_sum(fp8flow_context *c, const fp8flow_router_sum_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "router_sum: NULL context or arguments");
    F8_REQUIRE(a->num_experts >= 1, EINVAL, "router_sum: num_experts is %lld", (long long)a->num_experts);
    F8_REQUIRE(a->num_sequences >= 0, EINVAL, "router_sum: num_sequences is %lld", (long long)a->num_sequences);
    F8_REQUIRE((a->counts && a->score_sums) || a->num_sequences == 0, EINVAL, "router_sum: %s is NULL, %lld sequences",
               a->counts ? "score_sums" : "counts", (long long)a->num_sequences);
    F8_REQUIRE(a->total_counts && a->total_score_sums, EINVAL, "router_sum: %s is NULL",
               a->total_counts ? "total_score_sums" : "total_counts");
    return F8_RUN(c, router_sum, a);
}

fp8flow_status f8_ref_router_sum(fp8flow_context *c, const fp8flow_router_sum_args *a)
{
    (void)c;
    for (int64_t e = 0; e < a->num_experts; e++) {
        int64_t count = 0;
        float sum = 0.0f;
        for (int64_t q = 0; q < a->num_sequences; q++) {
            count += a->counts[q * a->num_experts + e];
            sum += a->score_sums[q * a->num_experts + e];
        }
        a->total_counts[e] = count;
        a->total_score_sums[e] = f8_canonical(sum);
    }
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_add_counts(fp8flow_context *c, const fp8flow_add_counts_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "add_counts: NULL context or arguments");
    F8_REQUIRE(a->count >= 0, EINVAL, "add_counts: count is %lld", (long long)a->count);
    F8_REQUIRE((a->x && a->y) || a->count == 0, EINVAL, "add_counts: %s is NULL, count is %lld", a->x ? "y" : "x",
               (long long)a->count);
    return F8_RUN(c, add_counts, a);
}

fp8flow_status f8_ref_add_counts(fp8flow_context *c, const fp8flow_add_counts_args *a)
{
    (void)c;
    for (int64_t i = 0; i < a->count; i++) a->y[i] = (int64_t)((uint64_t)a->y[i] + (uint64_t)a->x[i]);
    return FP8FLOW_OK;
}
