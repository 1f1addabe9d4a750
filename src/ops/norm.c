/* norm.c - root mean square norm of segments of a row, and its gradient.
 *
 * A segment is `width` consecutive columns: the whole row for the norms of a layer, one head for the query and
 * key norms. The references sum in FP64. */
#include "ops/norm.h"

#include <math.h>

/* What forward and backward have in common. */
static fp8flow_status check_segments(const char *op, const fp8flow_tensor *x, const float *weight, int64_t width)
{
    F8_TRY(f8_plain_check(op, "x", x, F8_ACCEPT_BF16));
    F8_REQUIRE(width >= 1 && width <= F8_NORM_MAX_WIDTH, ESHAPE, "%s: width is %lld, expected 1 to %d", op,
               (long long)width, F8_NORM_MAX_WIDTH);
    F8_REQUIRE(x->cols % width == 0, ESHAPE, "%s: x has %lld columns, not a multiple of width %lld", op,
               (long long)x->cols, (long long)width);
    F8_REQUIRE(weight, EINVAL, "%s: weight is NULL", op);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_rmsnorm(fp8flow_context *c, const fp8flow_rmsnorm_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "rmsnorm: NULL context or arguments");
    F8_TRY(check_segments("rmsnorm", a->x, a->weight, a->width));
    F8_TRY(f8_plain_check_like("rmsnorm", "y", a->y, F8_ACCEPT_BF16, "x", a->x));
    F8_REQUIRE(a->eps >= 0.0f && isfinite(a->eps), EINVAL, "rmsnorm: eps is %g, expected [0, inf)", (double)a->eps);
    return F8_RUN(c, rmsnorm, a);
}

fp8flow_status fp8flow_rmsnorm_backward(fp8flow_context *c, const fp8flow_rmsnorm_backward_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "rmsnorm_backward: NULL context or arguments");
    F8_TRY(check_segments("rmsnorm_backward", a->x, a->weight, a->width));
    F8_TRY(f8_plain_check_like("rmsnorm_backward", "dy", a->dy, F8_ACCEPT_BF16, "x", a->x));
    F8_TRY(f8_plain_check_like("rmsnorm_backward", "dx", a->dx, F8_ACCEPT_BF16, "x", a->x));
    F8_REQUIRE(a->rstd || a->x->rows == 0, EINVAL, "rmsnorm_backward: rstd is NULL");
    F8_REQUIRE(a->dweight, EINVAL, "rmsnorm_backward: dweight is NULL");
    return F8_RUN(c, rmsnorm_backward, a);
}

fp8flow_status f8_ref_rmsnorm(fp8flow_context *c, const fp8flow_rmsnorm_args *a)
{
    (void)c;
    int64_t num_segments = a->x->cols / a->width;
    for (int64_t row = 0; row < a->x->rows; row++)
        for (int64_t segment = 0; segment < num_segments; segment++) {
            const uint16_t *x = f8_bf16_row(a->x, row) + segment * a->width;
            uint16_t *y = f8_bf16_row(a->y, row) + segment * a->width;
            double squares = 0.0;
            for (int64_t i = 0; i < a->width; i++)
                squares += (double)f8_bf16_decode(x[i]) * (double)f8_bf16_decode(x[i]);
            float r = (float)(1.0 / sqrt(squares / (double)a->width + (double)a->eps));
            for (int64_t i = 0; i < a->width; i++) y[i] = f8_bf16_encode(f8_bf16_decode(x[i]) * r * a->weight[i]);
            if (a->rstd) a->rstd[row * num_segments + segment] = r;
        }
    return FP8FLOW_OK;
}

/* sum over rows and segments of dy * x * r for column `i` of the width, in ascending order. */
static double weight_gradient(const fp8flow_rmsnorm_backward_args *a, int64_t i)
{
    int64_t num_segments = a->x->cols / a->width;
    double sum = 0.0;
    for (int64_t row = 0; row < a->x->rows; row++)
        for (int64_t segment = 0; segment < num_segments; segment++) {
            int64_t col = segment * a->width + i;
            double u = (double)f8_value(a->x, row, col, 0) * (double)a->rstd[row * num_segments + segment];
            sum += (double)f8_value(a->dy, row, col, 0) * u;
        }
    return sum;
}

fp8flow_status f8_ref_rmsnorm_backward(fp8flow_context *c, const fp8flow_rmsnorm_backward_args *a)
{
    (void)c;
    int64_t num_segments = a->x->cols / a->width;
    /* Before dx, which may be dy. */
    for (int64_t i = 0; i < a->width; i++) a->dweight[i] += (float)weight_gradient(a, i);
    for (int64_t row = 0; row < a->x->rows; row++)
        for (int64_t segment = 0; segment < num_segments; segment++) {
            const uint16_t *x = f8_bf16_row(a->x, row) + segment * a->width;
            const uint16_t *dy = f8_bf16_row(a->dy, row) + segment * a->width;
            uint16_t *dx = f8_bf16_row(a->dx, row) + segment * a->width;
            float r = a->rstd[row * num_segments + segment];
            double dot = 0.0;
            for (int64_t i = 0; i < a->width; i++)
                dot += (double)(f8_bf16_decode(dy[i]) * a->weight[i]) * (double)(f8_bf16_decode(x[i]) * r);
            float mean = (float)(dot / (double)a->width);
            for (int64_t i = 0; i < a->width; i++) {
                float u = f8_bf16_decode(x[i]) * r;
                dx[i] = f8_bf16_encode(r * (f8_bf16_decode(dy[i]) * a->weight[i] - u * mean));
            }
        }
    return FP8FLOW_OK;
}
