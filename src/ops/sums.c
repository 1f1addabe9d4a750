/* sums.c - sums of losses and gradients, and what clipping makes of them. Fixed blocks are added in ascending order: the
 * result does not depend on threads. */
#include "ops/sums.h"

#include "ops/ops.h"

#include <math.h>

enum { BLOCK = 4096 };

static fp8flow_status check_sum(const char *op, int64_t count, const float *x, const double *sum)
{
    F8_REQUIRE(count >= 0, EINVAL, "%s: count is %lld", op, (long long)count);
    F8_REQUIRE(sum, EINVAL, "%s: sum is NULL", op);
    F8_REQUIRE(x || count == 0, EINVAL, "%s: x is NULL, count is %lld", op, (long long)count);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_sum(fp8flow_context *c, const fp8flow_sum_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "sum: NULL context or arguments");
    F8_TRY(check_sum("sum", a->count, a->x, a->sum));
    return F8_RUN(c, sum, a);
}

fp8flow_status f8_ref_sum(fp8flow_context *c, const fp8flow_sum_args *a)
{
    (void)c;
    double sum = 0.0;
    for (int64_t begin = 0; begin < a->count; begin += BLOCK) {
        int64_t end = a->count - begin < BLOCK ? a->count : begin + BLOCK;
        double block = 0.0;
        for (int64_t i = begin; i < end; i++) block += (double)a->x[i];
        sum += block;
    }
    *a->sum = sum;
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_square_sum(fp8flow_context *c, const fp8flow_square_sum_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "square_sum: NULL context or arguments");
    F8_TRY(check_sum("square_sum", a->count, a->x, a->sum));
    return F8_RUN(c, square_sum, a);
}

fp8flow_status f8_ref_square_sum(fp8flow_context *c, const fp8flow_square_sum_args *a)
{
    (void)c;
    double sum = 0.0;
    for (int64_t begin = 0; begin < a->count; begin += BLOCK) {
        int64_t end = a->count - begin < BLOCK ? a->count : begin + BLOCK;
        double block = 0.0;
        for (int64_t i = begin; i < end; i++) block += (double)a->x[i] * (double)a->x[i];
        sum += block;
    }
    *a->sum = sum;
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_clip(fp8flow_context *c, const fp8flow_clip_args *a)
{
    enum { MOST = 4096 };
    F8_REQUIRE(c && a, EINVAL, "clip: NULL context or arguments");
    F8_REQUIRE(a->count >= 0 && a->count <= MOST, EINVAL, "clip: count is %lld, expected 0 to %d", (long long)a->count,
               MOST);
    F8_REQUIRE(a->square_sums || a->count == 0, EINVAL, "clip: square_sums is NULL, count is %lld",
               (long long)a->count);
    F8_REQUIRE(a->norm && a->scale, EINVAL, "clip: %s is NULL", a->norm ? "scale" : "norm");
    F8_REQUIRE(a->limit >= 0.0 && isfinite(a->limit), EINVAL, "clip: limit is %g, expected [0, inf)", a->limit);
    return F8_RUN(c, clip, a);
}

fp8flow_status f8_ref_clip(fp8flow_context *c, const fp8flow_clip_args *a)
{
    (void)c;
    double sum = 0.0;
    for (int64_t i = 0; i < a->count; i++) sum += a->square_sums[i];
    *a->norm = sqrt(sum);
    *a->scale = f8_clip_scale(*a->norm, a->limit);
    return FP8FLOW_OK;
}
