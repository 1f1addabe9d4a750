/* add_avx2.c - add, eight columns at a time; the columns that are left go through f8_value as in the reference. */
#include "ops/avx2.h"
#include "ops/nan.h"
#include "ops/plain.h"

static __m256 load(const fp8flow_tensor *t, int64_t row, int64_t col)
{
    if (t->dtype == FP8FLOW_F32) return _mm256_loadu_ps(f8_f32_row(t, row) + col);
    return f8v_bf16_load(f8_bf16_row(t, row) + col);
}

static void add_row(const fp8flow_add_args *a, int64_t row)
{
    int64_t col = 0;
    for (; col + 8 <= a->y->cols; col += 8) {
        __m256 sum = f8v_canonical(_mm256_add_ps(load(a->a, row, col), load(a->b, row, col)));
        if (a->y->dtype == FP8FLOW_F32) _mm256_storeu_ps(f8_f32_row(a->y, row) + col, sum);
        else f8v_bf16_store(f8_bf16_row(a->y, row) + col, sum);
    }
    for (; col < a->y->cols; col++)
        f8_plain_store(a->y, row, col, f8_canonical(f8_value(a->a, row, col, 0) + f8_value(a->b, row, col, 0)));
}

fp8flow_status f8_avx2_add(fp8flow_context *c, const fp8flow_add_args *a)
{
    int64_t num_rows = a->y->rows;
    int64_t work = num_rows * a->y->cols;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t row = 0; row < num_rows; row++) add_row(a, row);
    return FP8FLOW_OK;
}
