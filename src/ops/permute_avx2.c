/* x */
#include "ops/plan.h"
fp8flow_status f8_avx2_permute(fp8flow_context *c, const fp8flow_permute_args *a)
{
    int64_t rows = f8_plan_rows(a->plan);
    int64_t work = rows * (a->x->cols / 32 + 1);
    if (a->columns) return f8_ref_permute(c, a);
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t row = 0; row < rows; row++) f8_permute_row(a, row);
    return FP8FLOW_OK;
}
