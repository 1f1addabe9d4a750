/* dequantize.c - contract and reference of dequantize: each code times its scale, padding written as 0. */
#include "ops/block.h"
#include "ops/ops.h"

fp8flow_status fp8flow_dequantize(fp8flow_context *c, const fp8flow_dequantize_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "dequantize: NULL context or arguments");
    F8_TRY(f8_tensor_check("dequantize", "x", a->x));
    F8_TRY(f8_tensor_check("dequantize", "y", a->y));
    F8_REQUIRE(f8_is_fp8(a->x->dtype), EINVAL, "dequantize: x is %s, expected FP8", f8_dtype_name(a->x->dtype));
    F8_REQUIRE(!f8_is_fp8(a->y->dtype) && a->y->layout == FP8FLOW_ROWS, EINVAL,
               "dequantize: y is (%s, %s), expected (f32 or bf16, rows)", f8_dtype_name(a->y->dtype),
               f8_layout_name(a->y->layout));
    F8_TRY(f8_check_shape("dequantize", "y", a->y, a->x));
    F8_TRY(f8_check_groups(c, "dequantize", "x", a->x, a->groups));
    return F8_RUN(c, dequantize, a);
}

static void store(const fp8flow_tensor *y, int64_t r, int64_t c, float value)
{
    if (y->dtype == FP8FLOW_F32) ((float *)y->data)[f8_element(y, r, c)] = value;
    else ((uint16_t *)y->data)[f8_element(y, r, c)] = f8_bf16_encode(value);
}

fp8flow_status f8_ref_dequantize(fp8flow_context *c, const fp8flow_dequantize_args *a)
{
    (void)c;
    for (int64_t g = 0; g < f8_num_groups(a->x, a->groups); g++) {
        f8_span group = f8_group_span(a->x, a->groups, g);
        for (int64_t r = 0; r < group.rows; r++)
            for (int64_t col = 0; col < a->x->cols; col++)
                store(a->y, group.row + r, col, r < group.valid ? f8_value(a->x, group.row + r, col, g) : 0.0f);
    }
    return FP8FLOW_OK;
}
