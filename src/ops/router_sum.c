/* router_sum.c - load of the experts over the sequences of a rank. */
#include "ops/nan.h"
#include "ops/ops.h"

fp8flow_status fp8flow_router_sum(fp8flow_context *c, const fp8flow_router_sum_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "router_sum: NULL context or arguments");
    int64_t figures;
    F8_REQUIRE(a->num_sequences >= 0 && a->num_experts >= 0 &&
                   !__builtin_mul_overflow(a->num_sequences, a->num_experts, &figures),
               ESHAPE, "router_sum: %lld sequences, %lld experts", (long long)a->num_sequences,
               (long long)a->num_experts);
    F8_REQUIRE((a->counts && a->score_sums) || figures == 0, EINVAL, "router_sum: %s is NULL",
               a->counts ? "score_sums" : "counts");
    F8_REQUIRE((a->total_counts && a->total_score_sums) || a->num_experts == 0, EINVAL, "router_sum: %s is NULL",
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
