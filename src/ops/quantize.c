/* quantize.c - contract and reference of quantize. The pieces are block.h's: a tile is loaded once and
 * written in each form that was asked for, so that both forms stem from one read. */
#include "ops/block.h"
#include "ops/ops.h"

/* One output: its own format and shape, and its groups. */
static fp8flow_status check_output(const fp8flow_context *c, const char *name, const fp8flow_tensor *y,
                                   fp8flow_layout layout, const fp8flow_quantize_args *a)
{
    F8_TRY(f8_tensor_check("quantize", name, y));
    F8_REQUIRE(f8_is_fp8(y->dtype) && y->layout == layout, EINVAL, "quantize: %s is (%s, %s), expected (FP8, %s)", name,
               f8_dtype_name(y->dtype), f8_layout_name(y->layout), f8_layout_name(layout));
    F8_TRY(f8_check_shape("quantize", name, y, a->x));
    F8_REQUIRE(a->x->group_rows == 0 || a->x->group_rows == y->group_rows, ESHAPE,
               "quantize: x has %lld rows per expert, %s has %lld", (long long)a->x->group_rows, name,
               (long long)y->group_rows);
    return f8_check_groups(c, "quantize", name, y, a->groups);
}

fp8flow_status fp8flow_quantize(fp8flow_context *c, const fp8flow_quantize_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "quantize: NULL context or arguments");
    F8_TRY(f8_tensor_check("quantize", "x", a->x));
    F8_REQUIRE(!f8_is_fp8(a->x->dtype) && a->x->layout == FP8FLOW_ROWS, EINVAL,
               "quantize: x is (%s, %s), expected (f32 or bf16, rows)", f8_dtype_name(a->x->dtype),
               f8_layout_name(a->x->layout));
    F8_REQUIRE(a->rows || a->columns, EINVAL, "quantize: neither rows nor columns is given");
    if (a->rows) F8_TRY(check_output(c, "rows", a->rows, FP8FLOW_ROWS, a));
    if (a->columns) F8_TRY(check_output(c, "columns", a->columns, FP8FLOW_COLUMNS, a));
    if (a->rows && a->columns)
        F8_REQUIRE(a->rows->group_rows == a->columns->group_rows, ESHAPE,
                   "quantize: rows has %lld rows per expert, columns has %lld", (long long)a->rows->group_rows,
                   (long long)a->columns->group_rows);
    return F8_RUN(c, quantize, a);
}

/* The TENSOR scale of each group. */
static void tensor_scales(const fp8flow_tensor *x, const fp8flow_groups *groups, const fp8flow_tensor *y)
{
    for (int64_t g = 0; g < f8_num_groups(y, groups); g++) {
        f8_span group = f8_group_span(y, groups, g);
        uint32_t amax = 0;
        for (int64_t r = group.row; r < group.row + group.valid; r++)
            for (int64_t c = 0; c < x->cols; c++) {
                uint32_t magnitude = f8_finite_magnitude(f8_value(x, r, c, g));
                if (magnitude > amax) amax = magnitude;
            }
        ((float *)y->scale)[g] = f8_tensor_scale(amax, y->dtype);
    }
}

fp8flow_status f8_ref_quantize(fp8flow_context *c, const fp8flow_quantize_args *a)
{
    f8_tile *tile = f8_scratch(c);
    const fp8flow_tensor *shape = a->rows ? a->rows : a->columns;
    if (a->rows && a->rows->scaling == FP8FLOW_TENSOR) tensor_scales(a->x, a->groups, a->rows);
    if (a->columns && a->columns->scaling == FP8FLOW_TENSOR) tensor_scales(a->x, a->groups, a->columns);
    uint64_t nonfinite = 0;
    for (int64_t i = 0; i < f8_num_spans(shape, a->groups); i++)
        for (int64_t block = 0; block < f8_ceil_div(shape->cols, F8_BLOCK); block++) {
            f8_place p = f8_place_at(shape, f8_span_at(shape, a->groups, i), block);
            nonfinite += f8_load_tile(p, a->x, tile);
            if (a->rows) f8_quantize_tile(p, tile, a->rows);
            if (a->columns) f8_quantize_tile(p, tile, a->columns);
        }
    if (a->nonfinite) *a->nonfinite += nonfinite;
    return FP8FLOW_OK;
}
