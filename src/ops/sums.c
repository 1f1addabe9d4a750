/* sums.c - the figures of a step: sums of losses and of squares, counters, the norm that clips a gradient.
 *
 * sum and square_sum add fixed blocks in ascending order: their results cannot depend on threads. */
#include "ops/block.h"

#include <math.h>

enum { BLOCK = 4096 }; /* fixed by the contract */

/* What the operators on `count` values have in common; result_name: the output. */
static fp8flow_status check_values(const char *op, int64_t count, const void *x, const char *result_name,
                                   const void *result)
{
    F8_REQUIRE(count >= 0, EINVAL, "%s: count is %lld", op, (long long)count);
    F8_REQUIRE(result, EINVAL, "%s: %s is NULL", op, result_name);
    F8_REQUIRE(x || count == 0, EINVAL, "%s: x is NULL, count is %lld", op, (long long)count);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_sum(fp8flow_context *c, const fp8flow_sum_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "sum: NULL context or arguments");
    F8_TRY(check_values("sum", a->count, a->x, "sum", a->sum));
    return F8_RUN(c, sum, a);
}

static double number(float x)
{
    return (double)x;
}

static double square(float x)
{
    return (double)x * (double)x;
}

static double sum_of_blocks(const float *x, int64_t count, double (*term)(float))
{
    double sum = 0.0;
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        int64_t end = begin + f8_min(BLOCK, count - begin);
        double block = 0.0;
        for (int64_t i = begin; i < end; i++) block += term(x[i]);
        sum += block;
    }
    return sum;
}

fp8flow_status f8_ref_sum(fp8flow_context *c, const fp8flow_sum_args *a)
{
    (void)c;
    *a->sum = sum_of_blocks(a->x, a->count, number);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_square_sum(fp8flow_context *c, const fp8flow_square_sum_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "square_sum: NULL context or arguments");
    F8_TRY(check_values("square_sum", a->count, a->x, "sum", a->sum));
    return F8_RUN(c, square_sum, a);
}

fp8flow_status f8_ref_square_sum(fp8flow_context *c, const fp8flow_square_sum_args *a)
{
    (void)c;
    *a->sum = sum_of_blocks(a->x, a->count, square);
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

/* Unsigned: a sum beyond 2^63 must not be undefined. */
fp8flow_status f8_ref_add_counts(fp8flow_context *c, const fp8flow_add_counts_args *a)
{
    (void)c;
    for (int64_t i = 0; i < a->count; i++) a->y[i] = (int64_t)((uint64_t)a->y[i] + (uint64_t)a->x[i]);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_clip(fp8flow_context *c, const fp8flow_clip_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "clip: NULL context or arguments");
    F8_REQUIRE(a->count >= 0, EINVAL, "clip: count is %lld", (long long)a->count);
    F8_REQUIRE(a->square_sums || a->count == 0, EINVAL, "clip: square_sums is NULL, count is %lld",
               (long long)a->count);
    F8_REQUIRE(a->limit >= 0.0 && isfinite(a->limit), EINVAL, "clip: limit is %g, expected [0, inf)", a->limit);
    F8_REQUIRE(a->norm && a->scale, EINVAL, "clip: %s is NULL", a->norm ? "scale" : "norm");
    return F8_RUN(c, clip, a);
}

fp8flow_status f8_ref_clip(fp8flow_context *c, const fp8flow_clip_args *a)
{
    (void)c;
    double sum = 0.0;
    for (int64_t i = 0; i < a->count; i++) sum += a->square_sums[i];
    double norm = sqrt(sum);
    int clips = a->limit > 0.0 && norm > a->limit;
    /* The one NaN: that of sqrt has a sign that depends on the machine. */
    *a->norm = isnan(norm) ? (double)f8_from_bits(0x7FC00000u) : norm;
    *a->scale = !isfinite(norm) ? f8_from_bits(0x7FC00000u) : clips ? (float)(a->limit / norm) : 1.0f;
    return FP8FLOW_OK;
}
