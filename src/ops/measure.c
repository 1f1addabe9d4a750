/* measure.c - what quantisation did to a tensor. Plain loops: a look at numbers, not part of a step. */
#include "ops/block.h"
#include "ops/ops.h"

#include <math.h>

fp8flow_status fp8flow_measure(fp8flow_context *c, const fp8flow_measure_args *a)
{
    F8_REQUIRE(c && a && a->stats, EINVAL, "measure: NULL context, arguments or stats");
    F8_TRY(f8_tensor_check("measure", "x", a->x));
    F8_TRY(f8_tensor_check("measure", "q", a->q));
    F8_REQUIRE(!f8_is_fp8(a->x->dtype) && a->x->layout == FP8FLOW_ROWS, EINVAL,
               "measure: x is (%s, %s), expected (f32 or bf16, rows)", f8_dtype_name(a->x->dtype),
               f8_layout_name(a->x->layout));
    F8_REQUIRE(f8_is_fp8(a->q->dtype), EINVAL, "measure: q is %s, expected FP8", f8_dtype_name(a->q->dtype));
    F8_TRY(f8_check_shape("measure", "q", a->q, a->x));
    F8_TRY(f8_check_groups(c, "measure", "q", a->q, a->groups));
    return F8_RUN(c, measure, a);
}

static double scale_of(const fp8flow_tensor *q, int64_t r, int64_t c, int64_t g)
{
    int64_t index = f8_scale_index(q, r, c, g);
    if (q->scaling == FP8FLOW_TENSOR) return (double)((const float *)q->scale)[index];
    return (double)f8_scale_decode(((const uint8_t *)q->scale)[index]);
}

/* One element. Products of a code and a scale are exact in FP64; FP32 could overflow. */
static void count_element(fp8flow_tensor_stats *s, double x, uint8_t code, fp8flow_dtype dtype, double scale)
{
    f8_format format = f8_format_of(dtype);
    int magnitude = code & 0x7F, finite = isfinite(x);
    s->count++;
    s->zeros += x == 0.0;
    s->underflow += finite && x != 0.0 && magnitude == 0;
    s->subnormal += magnitude > 0 && magnitude < 1 << format.mantissa_bits;
    s->saturated += fabs(x) > (double)format.max * scale;
    s->nonfinite += !finite;
    if (!finite) return;
    double error = x - (double)f8_decode(code, dtype) * scale;
    if (fabs(x) > s->amax) s->amax = fabs(x);
    s->signal += x * x;
    s->noise += error * error;
}

fp8flow_status f8_ref_measure(fp8flow_context *c, const fp8flow_measure_args *a)
{
    (void)c;
    const fp8flow_tensor *q = a->q;
    fp8flow_tensor_stats s = { .min_exponent = INT32_MAX, .max_exponent = INT32_MIN };
    for (int64_t g = 0; g < f8_num_groups(q, a->groups); g++) {
        f8_span group = f8_group_span(q, a->groups, g);
        for (int64_t r = group.row; r < group.row + group.valid; r++)
            for (int64_t col = 0; col < q->cols; col++) {
                double x = (double)f8_value(a->x, r, col, g), scale = scale_of(q, r, col, g);
                count_element(&s, x, ((const uint8_t *)q->data)[f8_element(q, r, col)], q->dtype, scale);
                if (x == 0.0) continue; /* the smallest scale of an all-zero block says nothing */
                int exponent = ilogb(scale);
                if (exponent < s.min_exponent) s.min_exponent = exponent;
                if (exponent > s.max_exponent) s.max_exponent = exponent;
            }
    }
    if (s.min_exponent > s.max_exponent) s.min_exponent = s.max_exponent = 0;
    *a->stats = s;
    return FP8FLOW_OK;
}
