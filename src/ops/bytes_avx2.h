/* bytes_avx2.h - the codes of a tile between memory and scratch: row form or column form in memory, always row
 * form in scratch. No arithmetic. Also the prefetching that makes tiles of wide tensors as fast as long lines.
 */
#ifndef F8_OPS_BYTES_AVX2_H
#define F8_OPS_BYTES_AVX2_H

#include "ops/avx2.h"
#include "ops/block.h"

/* Codes of a tile on their way to a tensor, row form. */
typedef struct {
    uint8_t code[F8_BLOCK][F8_BLOCK];
} f8v_bytes;

/* 128 elements from `at` are wanted soon. A tile has more lines than the processor's own prefetcher follows.
 * Addresses behind the tensor do no harm. */
F8_AVX2 void f8v_prefetch(const fp8flow_tensor *x, int64_t at)
{
    const char *next = (const char *)x->data + (size_t)at * f8_dtype_bytes(x->dtype);
    for (size_t byte = 0; byte < F8_BLOCK * f8_dtype_bytes(x->dtype); byte += 64)
        _mm_prefetch(next + byte, _MM_HINT_T0);
}

/* One stage of a 16 x 16 byte transpose in each half of 16 vectors: out[2i], out[2i+1] interleave in[i], in[i+8].
 * Four such stages turn rows into columns. */
F8_AVX2 void f8v_interleave(const __m256i in[16], __m256i out[16])
{
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        out[2 * i] = _mm256_unpacklo_epi8(in[i], in[i + 8]);
        out[2 * i + 1] = _mm256_unpackhi_epi8(in[i], in[i + 8]);
    }
}

/* 32 rows x 16 columns of bytes become 16 lines of 32 bytes. */
F8_AVX2 void f8v_transpose_32x16(const uint8_t *in, int64_t in_stride, uint8_t *out, int64_t out_stride)
{
    __m256i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        __m128i low = _mm_loadu_si128((const __m128i *)(in + i * in_stride));
        __m128i high = _mm_loadu_si128((const __m128i *)(in + (i + 16) * in_stride));
        a[i] = _mm256_set_m128i(high, low);
    }
    f8v_interleave(a, b);
    f8v_interleave(b, a);
    f8v_interleave(a, b);
    f8v_interleave(b, a);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) _mm256_storeu_si256((__m256i *)(out + i * out_stride), a[i]);
}

/* 128 bytes, almost always; a call of memcpy costs more than the copy. */
F8_AVX2 void f8v_copy_line(uint8_t *out, const uint8_t *in, int64_t count)
{
    if (count == F8_BLOCK) memcpy(out, in, F8_BLOCK);
    else memcpy(out, in, (size_t)count);
}

/* Line `line` of a tile's place in memory is written soon; `stride` may be larger than a page. */
F8_AVX2 void f8v_prefetch_line(uint8_t *out, int64_t line, int64_t num_lines, int64_t stride)
{
    if (line >= num_lines) return;
    __builtin_prefetch(out + line * stride, 1);
    __builtin_prefetch(out + line * stride + 64, 1);
}

/* The codes of a tile to their place in y, row form or column form. */
static inline void f8v_store_tile(f8_place p, const f8v_bytes *bytes, const fp8flow_tensor *y)
{
    uint8_t *out = (uint8_t *)y->data + f8_element(y, p.span.row, p.col);
    if (y->layout == FP8FLOW_ROWS) {
        for (int64_t r = 0; r < p.span.rows; r++) {
            f8v_prefetch_line(out, r + 16, p.span.rows, y->stride);
            f8v_copy_line(out + r * y->stride, bytes->code[r], p.cols);
        }
        return;
    }
    for (int64_t c0 = 0; c0 < p.cols; c0 += 16) {
        uint8_t lines[16][F8_BLOCK];
        for (int64_t c = c0 + 16; c < c0 + 32; c++) f8v_prefetch_line(out, c, p.cols, y->stride);
        for (int r = 0; r < F8_BLOCK; r += 32)
            f8v_transpose_32x16(&bytes->code[r][c0], F8_BLOCK, &lines[0][r], F8_BLOCK);
        for (int64_t c = c0; c < f8_min(c0 + 16, p.cols); c++)
            f8v_copy_line(out + c * y->stride, lines[c - c0], p.span.rows);
    }
}

/* Codes of an FP8 tensor of either layout, brought into row form; 0 outside the valid rows and columns. */
static inline void f8v_load_codes(f8_place p, const fp8flow_tensor *x, uint8_t code[F8_BLOCK][F8_BLOCK])
{
    const uint8_t *in = (const uint8_t *)x->data + f8_element(x, p.span.row, p.col);
    if (p.span.valid < F8_BLOCK || p.cols < F8_BLOCK) memset(code, 0, F8_BLOCK * sizeof code[0]);
    if (x->layout == FP8FLOW_ROWS) {
        for (int64_t r = 0; r < p.span.valid; r++) {
            f8v_prefetch(x, f8_element(x, p.span.row + r, p.col + F8_BLOCK));
            f8v_copy_line(code[r], in + r * x->stride, p.cols);
        }
        return;
    }
    for (int64_t c0 = 0; c0 < p.cols; c0 += 32) {
        uint8_t lines[32][F8_BLOCK];
        if (p.span.valid < F8_BLOCK || c0 + 32 > p.cols) memset(lines, 0, sizeof lines);
        for (int64_t c = c0; c < f8_min(c0 + 32, p.cols); c++)
            f8v_copy_line(lines[c - c0], in + c * x->stride, p.span.valid);
        for (int r = 0; r < F8_BLOCK; r += 16) f8v_transpose_32x16(&lines[0][r], F8_BLOCK, &code[r][c0], F8_BLOCK);
    }
}

#endif
