/* swiglu_backward.c - gradients of swiglu. [da | db] is one [P, 2F] matrix: its scale blocks run over all
 * 2F columns, so that a block holds parts of both halves where F is not a multiple of 128. */
#include "ops/swiglu.h"

fp8flow_status fp8flow_swiglu_backward(fp8flow_context *c, const fp8flow_swiglu_backward_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "swiglu_backward: NULL context or arguments");
    int64_t align = a->columns || a->v_columns ? F8_BLOCK : 1;
    F8_TRY(f8_swiglu_check_input(c, "swiglu_backward", a->h, a->groups, align));
    const fp8flow_tensor *h = a->h, *dv = a->dv;
    F8_TRY(f8_tensor_check("swiglu_backward", "dv", dv));
    F8_REQUIRE(dv->dtype == FP8FLOW_BF16 && dv->layout == FP8FLOW_ROWS, EINVAL,
               "swiglu_backward: dv is %s in %s, expected bf16 rows", f8_dtype_name(dv->dtype),
               f8_layout_name(dv->layout));
    F8_REQUIRE(dv->rows == h->rows && dv->cols == h->cols / 2 && dv->group_rows == 0, ESHAPE,
               "swiglu_backward: dv is [%lld, %lld], h needs [%lld, %lld]", (long long)dv->rows, (long long)dv->cols,
               (long long)h->rows, (long long)h->cols / 2);
    F8_REQUIRE(a->rows || a->columns || a->v_columns || a->dgate, EINVAL, "swiglu_backward: every output is NULL");
    F8_TRY(f8_swiglu_check_rows("swiglu_backward", a->rows, h, h->cols));
    F8_TRY(f8_swiglu_check_columns("swiglu_backward", "columns", a->columns, h, h->cols));
    F8_TRY(f8_swiglu_check_columns("swiglu_backward", "v_columns", a->v_columns, h, h->cols / 2));
    return F8_RUN(c, swiglu_backward, a);
}

static f8_swiglu_gradient gradient_at(const fp8flow_swiglu_backward_args *a, int64_t row, int64_t col)
{
    return f8_swiglu_gradient_of(f8_bf16_at(a->h, row, col), f8_bf16_at(a->h, row, a->dv->cols + col),
                                 f8_swiglu_gate(a->gate, row), f8_bf16_at(a->dv, row, col));
}

/* Values dh = [da | db] at a place of the [P, 2F] outputs. */
static void gradient_tile(const fp8flow_swiglu_backward_args *a, f8_place p, f8_tile *tile)
{
    int64_t half = a->dv->cols;
    memset(tile, 0, sizeof *tile);
    for (int64_t r = 0; r < p.span.valid; r++)
        for (int64_t c = 0; c < p.cols; c++) {
            f8_swiglu_gradient gradient = gradient_at(a, p.span.row + r, (p.col + c) % half);
            tile->at[r][c] = p.col + c < half ? gradient.da : gradient.db;
        }
}

/* The order of f8_sum32, without an array of the row's terms. */
static float gate_gradient(const fp8flow_swiglu_backward_args *a, int64_t row)
{
    float lane[32] = { 0.0f };
    for (int64_t col = 0; col < a->dv->cols; col++) lane[col % 32] += gradient_at(a, row, col).dw;
    return f8_canonical(f8_sum32(lane, 32));
}

static void backward_span(const fp8flow_swiglu_backward_args *a, f8_span span, f8_tile *tile)
{
    for (int64_t block = 0; block < f8_ceil_div(a->h->cols, F8_BLOCK); block++) {
        f8_place place = f8_place_at(a->h, span, block);
        gradient_tile(a, place, tile);
        if (a->nonfinite) *a->nonfinite += f8_swiglu_nonfinite(place, tile);
        f8_swiglu_store(place, tile, a->rows);
        f8_swiglu_store(place, tile, a->columns);
    }
    for (int64_t block = 0; a->v_columns && block < f8_ceil_div(a->dv->cols, F8_BLOCK); block++) {
        f8_place place = f8_place_at(a->dv, span, block);
        f8_swiglu_tile(a->h, a->gate, place, tile);
        f8_swiglu_store(place, tile, a->v_columns);
    }
    for (int64_t r = 0; a->dgate && r < span.rows; r++)
        a->dgate[span.row + r] = r < span.valid ? gate_gradient(a, span.row + r) : 0.0f;
}

fp8flow_status f8_ref_swiglu_backward(fp8flow_context *c, const fp8flow_swiglu_backward_args *a)
{
    int64_t num_spans = f8_num_spans(a->h, a->groups);
    for (int64_t i = 0; i < num_spans; i++) backward_span(a, f8_span_at(a->h, a->groups, i), f8_scratch(c));
    return FP8FLOW_OK;
}
