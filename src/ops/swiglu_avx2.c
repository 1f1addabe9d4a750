/* swiglu_avx2.c - one work unit is a tile of 128 x 128 values: computed once in FP32, then written in every
 * form from the second-level cache. Tiles do not depend on each other, so threads do not change a bit. */
#include "ops/swiglu_avx2.h"

static uint64_t compute_tile(const fp8flow_swiglu_args *args, f8_place p, f8_tile *tile)
{
    uint64_t nonfinite = 0;
    float left[F8_BLOCK], right[F8_BLOCK];
    for (int64_t r = 0; r < p.span.valid; r++) {
        int64_t row = p.span.row + r;
        f8v_swiglu_load(args->h, row, p.col, p.cols, left);
        f8v_swiglu_load(args->h, row, args->h->cols / 2 + p.col, p.cols, right);
        __m256 w = _mm256_set1_ps(f8_swiglu_gate(args->gate, row));
        for (int c = 0; c < F8_BLOCK; c += 8) {
            __m256 a = _mm256_loadu_ps(left + c), b = _mm256_loadu_ps(right + c);
            __m256 z = _mm256_mul_ps(a, f8v_sigmoid(a));
            _mm256_storeu_ps(&tile->at[r][c], _mm256_mul_ps(_mm256_mul_ps(z, b), w));
        }
        f8v_swiglu_clear_tail(p.cols, tile->at[r]);
        nonfinite += f8v_count_nonfinite(tile->at[r]);
    }
    f8v_swiglu_clear_padding(p.span, tile);
    return nonfinite;
}

fp8flow_status f8_avx2_swiglu(fp8flow_context *c, const fp8flow_swiglu_args *a)
{
    uint64_t nonfinite = 0;
    const fp8flow_tensor *y = a->rows ? a->rows : a->columns;
    int64_t num_spans = f8_num_spans(y, a->groups), num_blocks = f8_ceil_div(y->cols, F8_BLOCK);
    int64_t work = num_spans * num_blocks * F8_BLOCK * F8_BLOCK;
#pragma omp parallel for collapse(2) schedule(static) num_threads(f8_threads_for(c, work)) reduction(+ : nonfinite)
    for (int64_t i = 0; i < num_spans; i++)
        for (int64_t block = 0; block < num_blocks; block++) {
            f8v_work *w = f8_scratch(c);
            f8_place place = f8_place_at(y, f8_span_at(y, a->groups, i), block);
            nonfinite += compute_tile(a, place, &w->tile);
            f8v_swiglu_store(place, &w->tile, a->rows, &w->bytes);
            f8v_swiglu_store(place, &w->tile, a->columns, &w->bytes);
        }
    if (a->nonfinite) *a->nonfinite += nonfinite;
    return FP8FLOW_OK;
}
