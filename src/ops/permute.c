/* permute.c - gather token rows into expert order. Padding rows are the only ones that are filled with
 * zeros; rows from P on are not touched, whatever the capacity of the outputs. */
#include "ops/block.h"
#include "ops/plan.h"

static fp8flow_status check_rows(const fp8flow_context *c, const fp8flow_permute_args *a)
{
    const fp8flow_tensor *x = a->x, *rows = a->rows;
    F8_TRY(f8_tensor_check("permute", "rows", rows));
    F8_REQUIRE(rows->dtype == x->dtype && rows->scaling == x->scaling && rows->layout == FP8FLOW_ROWS, EINVAL,
               "permute: rows is %s %s, x is %s %s", f8_dtype_name(rows->dtype), f8_scaling_name(rows->scaling),
               f8_dtype_name(x->dtype), f8_scaling_name(x->scaling));
    F8_REQUIRE(rows->cols == x->cols && rows->group_rows == 0, ESHAPE,
               "permute: rows has %lld columns, %lld rows per expert; expected %lld, 0", (long long)rows->cols,
               (long long)rows->group_rows, (long long)x->cols);
    return f8_plan_fits(c, "permute", "rows", a->plan, rows->rows);
}

static fp8flow_status check_columns(const fp8flow_context *c, const fp8flow_permute_args *a)
{
    const fp8flow_tensor *x = a->x, *columns = a->columns;
    F8_TRY(f8_tensor_check("permute", "columns", columns));
    F8_REQUIRE(f8_is_fp8(x->dtype) && columns->dtype == x->dtype, EINVAL,
               "permute: columns is %s, x is %s: a column form needs the same FP8 format",
               f8_dtype_name(columns->dtype), f8_dtype_name(x->dtype));
    int scaling_fits = columns->scaling == FP8FLOW_TILE128 || columns->scaling == FP8FLOW_COL128;
    F8_REQUIRE(scaling_fits && columns->layout == FP8FLOW_COLUMNS, EINVAL,
               "permute: columns is %s in %s, expected tile128 or col128 in columns", f8_scaling_name(columns->scaling),
               f8_layout_name(columns->layout));
    F8_REQUIRE(columns->cols == x->cols && columns->group_rows == 0, ESHAPE,
               "permute: columns has %lld columns, %lld rows per expert; expected %lld, 0", (long long)columns->cols,
               (long long)columns->group_rows, (long long)x->cols);
    F8_REQUIRE(a->plan->align % 128 == 0, ESHAPE, "permute: plan aligns to %lld rows, columns needs a multiple of 128",
               (long long)a->plan->align);
    return f8_plan_fits(c, "permute", "columns", a->plan, columns->rows);
}

fp8flow_status fp8flow_permute(fp8flow_context *c, const fp8flow_permute_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "permute: NULL context or arguments");
    F8_TRY(f8_plan_check("permute", a->plan));
    F8_TRY(f8_tensor_check("permute", "x", a->x));
    int row128 = f8_is_fp8(a->x->dtype) && a->x->scaling == FP8FLOW_ROW128;
    F8_REQUIRE((row128 || a->x->dtype == FP8FLOW_BF16) && a->x->layout == FP8FLOW_ROWS, EINVAL,
               "permute: x is %s %s in %s, expected bf16 or FP8 row128 in rows", f8_dtype_name(a->x->dtype),
               f8_scaling_name(a->x->scaling), f8_layout_name(a->x->layout));
    F8_REQUIRE(a->x->rows == a->plan->num_tokens && a->x->group_rows == 0, ESHAPE,
               "permute: x has %lld rows, %lld per expert; plan has %lld tokens", (long long)a->x->rows,
               (long long)a->x->group_rows, (long long)a->plan->num_tokens);
    F8_REQUIRE(a->rows || a->columns, EINVAL, "permute: rows and columns are both NULL");
    if (a->rows) F8_TRY(check_rows(c, a));
    if (a->columns) F8_TRY(check_columns(c, a));
    F8_REQUIRE(!a->gate == !a->gate_rows, EINVAL, "permute: gate and gate_rows go together, %s is NULL",
               a->gate ? "gate_rows" : "gate");
    F8_REQUIRE(a->columns || !a->shift_histogram, EINVAL, "permute: shift_histogram needs columns");
    return F8_RUN(c, permute, a);
}

void f8_permute_row(const fp8flow_permute_args *a, int64_t row)
{
    int64_t token = f8_plan_token(a->plan, row);
    if (a->gate) a->gate_rows[row] = token < 0 ? 0.0f : a->gate[a->plan->source[row]];
    if (!a->rows || a->x->cols == 0) return;
    size_t size = f8_dtype_bytes(a->x->dtype), bytes = (size_t)a->x->cols * size;
    size_t blocks = a->x->scaling == FP8FLOW_ROW128 ? (size_t)f8_ceil_div(a->x->cols, 128) : 0;
    char *line = (char *)a->rows->data + (size_t)(row * a->rows->stride) * size;
    uint8_t *scale = blocks ? (uint8_t *)a->rows->scale + (size_t)row * blocks : NULL;
    if (token < 0) {
        memset(line, 0, bytes);
        if (blocks) memset(scale, 1, blocks);
        return;
    }
    memcpy(line, (const char *)a->x->data + (size_t)(token * a->x->stride) * size, bytes);
    if (blocks) memcpy(scale, (const uint8_t *)a->x->scale + (size_t)token * blocks, blocks);
}

/* The codes and scales that the rows of a place get, from x. */
static void gather_tile(const fp8flow_permute_args *a, f8_place p, f8_code_tile *tile)
{
    memset(tile->code, 0, sizeof tile->code);
    memset(tile->scale, 1, sizeof tile->scale);
    for (int64_t r = 0; r < p.span.valid; r++) {
        int64_t token = f8_plan_token(a->plan, p.span.row + r);
        memcpy(tile->code[r], (const uint8_t *)a->x->data + f8_element(a->x, token, p.col), (size_t)p.cols);
        tile->scale[r] = ((const uint8_t *)a->x->scale)[f8_scale_index(a->x, token, p.col, 0)];
    }
}

fp8flow_status f8_ref_permute(fp8flow_context *c, const fp8flow_permute_args *a)
{
    const fp8flow_groups groups = f8_plan_groups(a->plan);
    f8_code_tile *tile = f8_scratch(c);
    int64_t rows = f8_plan_rows(a->plan);
    for (int64_t row = 0; row < rows; row++) f8_permute_row(a, row);
    if (!a->columns) return FP8FLOW_OK;
    int64_t num_spans = f8_num_spans(a->columns, &groups), num_blocks = f8_ceil_div(a->columns->cols, F8_BLOCK);
    for (int64_t i = 0; i < num_spans; i++)
        for (int64_t block = 0; block < num_blocks; block++) {
            f8_place place = f8_place_at(a->columns, f8_span_at(a->columns, &groups, i), block);
            gather_tile(a, place, tile);
            f8_shift_tile(place, tile, a->columns, a->shift_histogram);
        }
    return FP8FLOW_OK;
}
