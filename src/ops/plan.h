/* plan.h - what permute and unpermute share about plans. The inline functions read plans in host memory. */
#ifndef F8_OPS_PLAN_H
#define F8_OPS_PLAN_H

#include "ops/ops.h"

/* Shape fields and pointers of a plan; T*k and capacity fit into int32. */
fp8flow_status f8_plan_check(const char *op, const fp8flow_plan *plan);

/* Number of permuted rows P of a filled plan. */
static inline int64_t f8_plan_rows(const fp8flow_plan *plan)
{
    return plan->offset[plan->num_experts];
}

/* The experts of a filled plan. */
static inline fp8flow_groups f8_plan_groups(const fp8flow_plan *plan)
{
    return (fp8flow_groups){ plan->num_experts, plan->offset, plan->rows };
}

/* A filled plan must need no more rows than the tensor `name` has: `rows` is its capacity. Where the plan lies in
 * device memory, the tensor must have as many rows as the plan may have. */
fp8flow_status f8_plan_fits(const fp8flow_context *c, const char *op, const char *name, const fp8flow_plan *plan,
                            int64_t rows);

/* Token of permuted row `row`, -1 for padding. */
static inline int64_t f8_plan_token(const fp8flow_plan *plan, int64_t row)
{
    int32_t source = plan->source[row];
    return source < 0 ? -1 : source / plan->top_k;
}

/* permute: row `row` of the row form (if wanted) with its scales, and its gate weight (if wanted). */
void f8_permute_row(const fp8flow_permute_args *a, int64_t row);

#endif
