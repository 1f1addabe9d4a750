/* transpose.c - contract and reference of transpose: copies of bytes where the scales allow it, else the
 * exponent shift of block.h. */
#include "ops/block.h"
#include "ops/ops.h"

fp8flow_status fp8flow_transpose(fp8flow_context *c, const fp8flow_transpose_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "transpose: NULL context or arguments");
    const fp8flow_tensor *x = a->x, *y = a->y;
    F8_TRY(f8_tensor_check("transpose", "x", x));
    F8_TRY(f8_tensor_check("transpose", "y", y));
    F8_REQUIRE(f8_is_fp8(x->dtype) && x->layout == FP8FLOW_ROWS, EINVAL,
               "transpose: x is (%s, %s), expected (FP8, rows)", f8_dtype_name(x->dtype), f8_layout_name(x->layout));
    F8_REQUIRE(y->dtype == x->dtype && y->layout == FP8FLOW_COLUMNS, EINVAL,
               "transpose: y is (%s, %s), expected (%s, columns)", f8_dtype_name(y->dtype), f8_layout_name(y->layout),
               f8_dtype_name(x->dtype));
    int copies = x->scaling == y->scaling;
    int shifts = x->scaling == FP8FLOW_ROW128 && (y->scaling == FP8FLOW_TILE128 || y->scaling == FP8FLOW_COL128);
    F8_REQUIRE(copies || shifts, EINVAL, "transpose: no way from %s to %s", f8_scaling_name(x->scaling),
               f8_scaling_name(y->scaling));
    F8_TRY(f8_check_shape("transpose", "y", y, x));
    F8_REQUIRE(x->group_rows == y->group_rows, ESHAPE, "transpose: x has %lld rows per expert, y has %lld",
               (long long)x->group_rows, (long long)y->group_rows);
    F8_TRY(f8_check_groups(c, "transpose", "y", y, a->groups));
    return F8_RUN(c, transpose, a);
}

static void copy_tile(f8_place p, const fp8flow_tensor *x, const fp8flow_tensor *y, uint64_t *histogram)
{
    int64_t scale = f8_scale_index(y, p.span.row, p.col, p.span.group);
    if (y->scaling == FP8FLOW_TILE128)
        ((uint8_t *)y->scale)[scale] = p.span.valid ? ((const uint8_t *)x->scale)[scale] : 1;
    for (int64_t r = 0; r < p.span.rows; r++)
        for (int64_t c = 0; c < p.cols; c++) {
            int64_t from = f8_element(x, p.span.row + r, p.col + c), to = f8_element(y, p.span.row + r, p.col + c);
            uint8_t code = r < p.span.valid ? ((const uint8_t *)x->data)[from] : 0;
            ((uint8_t *)y->data)[to] = code;
            f8_count_shift(histogram, code, 0, y->dtype);
        }
}

fp8flow_status f8_ref_transpose(fp8flow_context *c, const fp8flow_transpose_args *a)
{
    f8_code_tile *tile = f8_scratch(c);
    const fp8flow_tensor *x = a->x, *y = a->y;
    if (y->scaling == FP8FLOW_TENSOR)
        for (int64_t g = 0; g < f8_num_groups(y, a->groups); g++) ((float *)y->scale)[g] = ((const float *)x->scale)[g];
    for (int64_t i = 0; i < f8_num_spans(y, a->groups); i++)
        for (int64_t block = 0; block < f8_ceil_div(y->cols, F8_BLOCK); block++) {
            f8_place p = f8_place_at(y, f8_span_at(y, a->groups, i), block);
            if (x->scaling == y->scaling) {
                copy_tile(p, x, y, a->shift_histogram);
            } else {
                f8_load_code_tile(p, x, tile);
                f8_shift_tile(p, tile, y, a->shift_histogram);
            }
        }
    return FP8FLOW_OK;
}
