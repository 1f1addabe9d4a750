/* transpose_avx2.c - transpose with AVX2: one tile per task, built from the pieces of block_avx2.h. */
#include "ops/block_avx2.h"
#include "ops/ops.h"

/* TENSOR or TILE128: codes and scales as they are. */
static void copy_tile(f8_place p, const fp8flow_tensor *x, const fp8flow_tensor *y, f8v_bytes *bytes,
                      uint64_t *histogram)
{
    int64_t scale = f8_scale_index(y, p.span.row, p.col, p.span.group);
    if (y->scaling == FP8FLOW_TILE128)
        ((uint8_t *)y->scale)[scale] = p.span.valid ? ((const uint8_t *)x->scale)[scale] : 1;
    f8v_load_codes(p, x, bytes->code);
    for (int64_t r = 0; histogram && r < p.span.valid; r++)
        histogram[0] += f8v_count_finite_nonzero(bytes->code[r], y->dtype);
    f8v_store_tile(p, bytes, y);
}

fp8flow_status f8_avx2_transpose(fp8flow_context *c, const fp8flow_transpose_args *a)
{
    const fp8flow_tensor *x = a->x, *y = a->y;
    if (y->scaling == FP8FLOW_TENSOR)
        for (int64_t g = 0; g < f8_num_groups(y, a->groups); g++) ((float *)y->scale)[g] = ((const float *)x->scale)[g];
    int64_t blocks = f8_ceil_div(y->cols, F8_BLOCK), tasks = f8_num_spans(y, a->groups) * blocks;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, y->rows * y->cols))
    for (int64_t task = 0; task < tasks; task++) {
        f8v_work *w = f8_scratch(c);
        uint64_t counts[F8_SHIFT_BINS] = { 0 }, *histogram = a->shift_histogram ? counts : NULL;
        f8_place p = f8_place_at(y, f8_span_at(y, a->groups, task / blocks), task % blocks);
        if (x->scaling == y->scaling) {
            copy_tile(p, x, y, &w->bytes, histogram);
        } else {
            f8v_load_code_tile(p, x, &w->codes);
            f8v_shift_tile(p, w, y, histogram);
        }
        if (histogram) f8_add_shift_counts(a->shift_histogram, counts);
    }
    return FP8FLOW_OK;
}
