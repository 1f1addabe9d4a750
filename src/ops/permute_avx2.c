/* permute_avx2.c - one work unit is 128 destination rows of one expert times 128 columns: gathered once from x,
 * written as row form, shifted and transposed while the tile is in the first cache levels. */
#include "ops/block_avx2.h"
#include "ops/plan.h"

/* Codes and row scales of a place from x; zeros outside its valid rows and columns. */
static void gather_tile(const fp8flow_permute_args *a, f8_place p, f8_code_tile *tile)
{
    int64_t blocks = f8_ceil_div(a->x->cols, F8_BLOCK);
    const uint8_t *codes = (const uint8_t *)a->x->data + p.col;
    const uint8_t *scales = (const uint8_t *)a->x->scale + p.col / F8_BLOCK;
    if (p.cols < F8_BLOCK) memset(tile->code, 0, sizeof tile->code);
    for (int64_t r = 0; r < p.span.valid; r++) {
        int64_t token = f8_plan_token(a->plan, p.span.row + r);
        memcpy(tile->code[r], codes + token * a->x->stride, (size_t)p.cols);
        tile->scale[r] = scales[token * blocks];
    }
    memset(tile->code[0] + p.span.valid * F8_BLOCK, 0, (size_t)(F8_BLOCK - p.span.valid) * F8_BLOCK);
    memset(tile->scale + p.span.valid, 1, (size_t)(F8_BLOCK - p.span.valid));
}

static void store_rows(const f8_code_tile *tile, f8_place p, const fp8flow_tensor *rows)
{
    int64_t blocks = f8_ceil_div(rows->cols, F8_BLOCK);
    uint8_t *codes = (uint8_t *)rows->data + p.span.row * rows->stride + p.col;
    uint8_t *scales = (uint8_t *)rows->scale + p.span.row * blocks + p.col / F8_BLOCK;
    for (int64_t r = 0; r < p.span.rows; r++) {
        memcpy(codes + r * rows->stride, tile->code[r], (size_t)p.cols);
        scales[r * blocks] = tile->scale[r];
    }
}

static void store_gates(const fp8flow_permute_args *a, f8_span span)
{
    for (int64_t r = 0; r < span.rows; r++)
        a->gate_rows[span.row + r] = r < span.valid ? a->gate[a->plan->source[span.row + r]] : 0.0f;
}

/* The column form, and with it everything else that is wanted. */
static void permute_columns(fp8flow_context *c, const fp8flow_permute_args *a)
{
    const fp8flow_groups groups = f8_plan_groups(a->plan);
    uint64_t histogram[F8_SHIFT_BINS] = { 0 };
    int64_t num_spans = f8_num_spans(a->columns, &groups), num_blocks = f8_ceil_div(a->x->cols, F8_BLOCK);
    int64_t work = num_spans * num_blocks * F8_BLOCK * 16;
#pragma omp parallel for collapse(2) schedule(static) num_threads(f8_threads_for(c, work)) \
    reduction(+ : histogram[:F8_SHIFT_BINS])
    for (int64_t i = 0; i < num_spans; i++)
        for (int64_t block = 0; block < num_blocks; block++) {
            f8v_work *w = f8_scratch(c);
            f8_place place = f8_place_at(a->columns, f8_span_at(a->columns, &groups, i), block);
            gather_tile(a, place, &w->codes);
            if (a->rows) store_rows(&w->codes, place, a->rows);
            if (a->gate && block == 0) store_gates(a, place.span);
            f8v_shift_tile(place, w, a->columns, a->shift_histogram ? histogram : NULL);
        }
    for (int bin = 0; a->shift_histogram && bin < F8_SHIFT_BINS; bin++) a->shift_histogram[bin] += histogram[bin];
}

fp8flow_status f8_avx2_permute(fp8flow_context *c, const fp8flow_permute_args *a)
{
    if (a->columns && a->x->cols > 0) {
        permute_columns(c, a);
        return FP8FLOW_OK;
    }
    int64_t rows = f8_plan_rows(a->plan), work = rows * (a->x->cols / 32 + 1);
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t row = 0; row < rows; row++) f8_permute_row(a, row);
    return FP8FLOW_OK;
}
