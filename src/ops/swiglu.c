/* swiglu.c - v = a * sigmoid(a) * b * w, in FP32, written once in every form that is asked for. The gate
 * weight is applied here and not after FC2: the product with W2 is linear, so the combine needs no weights. */
#include "ops/swiglu.h"

fp8flow_status f8_swiglu_check_input(const fp8flow_context *c, const char *op, const fp8flow_tensor *h,
                                     const fp8flow_groups *groups, int64_t align)
{
    F8_TRY(f8_tensor_check(op, "h", h));
    F8_REQUIRE(h->dtype == FP8FLOW_BF16 && h->layout == FP8FLOW_ROWS, EINVAL, "%s: h is %s in %s, expected bf16 rows",
               op, f8_dtype_name(h->dtype), f8_layout_name(h->layout));
    F8_REQUIRE(h->cols % 2 == 0 && h->group_rows == 0, ESHAPE,
               "%s: h has %lld columns, %lld rows per expert; expected an even number, 0", op, (long long)h->cols,
               (long long)h->group_rows);
    return f8_context_check_groups(c, op, groups, h->rows, align);
}

static fp8flow_status check_output(const char *op, const char *name, const fp8flow_tensor *y, const fp8flow_tensor *h,
                                   int64_t cols)
{
    F8_REQUIRE(y->rows == h->rows, ESHAPE, "%s: h has %lld rows, %s has %lld", op, (long long)h->rows, name,
               (long long)y->rows);
    F8_REQUIRE(y->cols == cols, ESHAPE, "%s: h has %lld columns, %s needs %lld, got %lld", op, (long long)h->cols, name,
               (long long)cols, (long long)y->cols);
    F8_REQUIRE(y->group_rows == 0, ESHAPE, "%s: %s has %lld rows per expert, expected an activation", op, name,
               (long long)y->group_rows);
    return FP8FLOW_OK;
}

fp8flow_status f8_swiglu_check_rows(const char *op, const fp8flow_tensor *y, const fp8flow_tensor *h, int64_t cols)
{
    if (!y) return FP8FLOW_OK;
    F8_TRY(f8_tensor_check(op, "rows", y));
    int fits = y->layout == FP8FLOW_ROWS && (y->scaling == FP8FLOW_UNSCALED || y->scaling == FP8FLOW_ROW128);
    F8_REQUIRE(fits, EINVAL, "%s: rows is %s in %s, expected unscaled or row128 in rows", op,
               f8_scaling_name(y->scaling), f8_layout_name(y->layout));
    return check_output(op, "rows", y, h, cols);
}

fp8flow_status f8_swiglu_check_columns(const char *op, const char *name, const fp8flow_tensor *y,
                                       const fp8flow_tensor *h, int64_t cols)
{
    if (!y) return FP8FLOW_OK;
    F8_TRY(f8_tensor_check(op, name, y));
    int fits = y->layout == FP8FLOW_COLUMNS && (y->scaling == FP8FLOW_TILE128 || y->scaling == FP8FLOW_COL128);
    F8_REQUIRE(fits, EINVAL, "%s: %s is %s in %s, expected tile128 or col128 in columns", op, name,
               f8_scaling_name(y->scaling), f8_layout_name(y->layout));
    return check_output(op, name, y, h, cols);
}

fp8flow_status fp8flow_swiglu(fp8flow_context *c, const fp8flow_swiglu_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "swiglu: NULL context or arguments");
    F8_TRY(f8_swiglu_check_input(c, "swiglu", a->h, a->groups, a->columns ? F8_BLOCK : 1));
    F8_REQUIRE(a->rows || a->columns, EINVAL, "swiglu: rows and columns are both NULL");
    F8_TRY(f8_swiglu_check_rows("swiglu", a->rows, a->h, a->h->cols / 2));
    F8_TRY(f8_swiglu_check_columns("swiglu", "columns", a->columns, a->h, a->h->cols / 2));
    return F8_RUN(c, swiglu, a);
}

void f8_swiglu_tile(const fp8flow_tensor *h, const float *gate, f8_place p, f8_tile *tile)
{
    int64_t half = h->cols / 2;
    memset(tile, 0, sizeof *tile);
    for (int64_t r = 0; r < p.span.valid; r++)
        for (int64_t c = 0; c < p.cols; c++) {
            int64_t row = p.span.row + r, col = p.col + c;
            tile->at[r][c] =
                f8_swiglu_value(f8_bf16_at(h, row, col), f8_bf16_at(h, row, half + col), f8_swiglu_gate(gate, row));
        }
}

uint64_t f8_swiglu_nonfinite(f8_place p, const f8_tile *tile)
{
    uint64_t nonfinite = 0;
    for (int64_t r = 0; r < p.span.valid; r++)
        for (int64_t c = 0; c < p.cols; c++) nonfinite += !f8_is_finite(tile->at[r][c]);
    return nonfinite;
}

void f8_swiglu_store(f8_place p, const f8_tile *tile, const fp8flow_tensor *y)
{
    if (!y) return;
    if (f8_is_fp8(y->dtype)) {
        f8_quantize_tile(p, tile, y);
        return;
    }
    for (int64_t r = 0; r < p.span.rows; r++)
        for (int64_t c = 0; c < p.cols; c++) {
            int64_t index = f8_element(y, p.span.row + r, p.col + c);
            float value = f8_canonical(tile->at[r][c]);
            if (y->dtype == FP8FLOW_F32) ((float *)y->data)[index] = value;
            else ((uint16_t *)y->data)[index] = f8_bf16_encode(value);
        }
}

fp8flow_status f8_ref_swiglu(fp8flow_context *c, const fp8flow_swiglu_args *a)
{
    f8_tile *tile = f8_scratch(c);
    int64_t num_spans = f8_num_spans(a->h, a->groups), num_blocks = f8_ceil_div(a->h->cols / 2, F8_BLOCK);
    for (int64_t i = 0; i < num_spans; i++)
        for (int64_t block = 0; block < num_blocks; block++) {
            f8_place place = f8_place_at(a->rows ? a->rows : a->columns, f8_span_at(a->h, a->groups, i), block);
            f8_swiglu_tile(a->h, a->gate, place, tile);
            if (a->nonfinite) *a->nonfinite += f8_swiglu_nonfinite(place, tile);
            f8_swiglu_store(place, tile, a->rows);
            f8_swiglu_store(place, tile, a->columns);
        }
    return FP8FLOW_OK;
}
