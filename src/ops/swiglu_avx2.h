/* swiglu_avx2.h - the tile in the formats of swiglu's outputs, with AVX2: the same bits as swiglu.c. */
#ifndef F8_OPS_SWIGLU_AVX2_H
#define F8_OPS_SWIGLU_AVX2_H

#include "ops/block_avx2.h"
#include "ops/swiglu.h"

/* 128 values of a BF16 row from column `col`, zeros behind the last of a short block. */
F8_AVX2 void f8v_swiglu_load(const fp8flow_tensor *t, int64_t row, int64_t col, int64_t cols, float *out)
{
    f8v_load_row(t->data, row * t->stride + col, cols, FP8FLOW_BF16, out);
}

/* Zeros behind the last column of a short block: 0 * Inf of a gate weight is NaN there. */
F8_AVX2 void f8v_swiglu_clear_tail(int64_t cols, float *row)
{
    if (cols < F8_BLOCK) memset(row + cols, 0, (size_t)(F8_BLOCK - cols) * sizeof *row);
}

static inline void f8v_swiglu_clear_padding(f8_span span, f8_tile *tile)
{
    for (int64_t r = span.valid; r < F8_BLOCK; r++) memset(tile->at[r], 0, sizeof tile->at[r]);
}

F8_AVX2 void f8v_swiglu_store_row(const float *x, int64_t cols, const fp8flow_tensor *y, int64_t at)
{
    int64_t c = 0;
    for (; c + 8 <= cols; c += 8) {
        __m256 value = f8v_canonical(_mm256_loadu_ps(x + c));
        if (y->dtype == FP8FLOW_F32) _mm256_storeu_ps((float *)y->data + at + c, value);
        else f8v_bf16_store((uint16_t *)y->data + at + c, value);
    }
    for (; c < cols; c++) {
        float value = f8_canonical(x[c]);
        if (y->dtype == FP8FLOW_F32) ((float *)y->data)[at + c] = value;
        else ((uint16_t *)y->data)[at + c] = f8_bf16_encode(value);
    }
}

/* f8_swiglu_store. */
static inline void f8v_swiglu_store(f8_place p, const f8_tile *tile, const fp8flow_tensor *y, f8v_bytes *bytes)
{
    if (!y) return;
    if (f8_is_fp8(y->dtype)) {
        f8v_quantize_tile(p, tile, y, bytes);
        return;
    }
    for (int64_t r = 0; r < p.span.rows; r++)
        f8v_swiglu_store_row(tile->at[r], p.cols, y, f8_element(y, p.span.row + r, p.col));
}

#endif
