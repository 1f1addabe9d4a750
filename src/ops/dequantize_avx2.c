/* dequantize_avx2.c - dequantize with AVX2. The row form streams row by row; the column form goes tile by tile
 * through scratch, where its codes are brought into row form. Tasks are strips as in quantize. */
#include "ops/block_avx2.h"
#include "ops/ops.h"

static float scale_at(const fp8flow_tensor *x, int64_t index)
{
    if (x->scaling == FP8FLOW_TENSOR) return ((const float *)x->scale)[index];
    return f8_scale_decode(((const uint8_t *)x->scale)[index]);
}

/* `cols` values of one row to y at `at`. */
F8_AVX2 void store_row(const float *value, int64_t cols, const fp8flow_tensor *y, int64_t at)
{
    if (y->dtype == FP8FLOW_F32) {
        memcpy((float *)y->data + at, value, (size_t)cols * sizeof *value);
        return;
    }
    uint16_t *out = (uint16_t *)y->data + at;
    int64_t c = 0;
    for (; c + 8 <= cols; c += 8) f8v_bf16_store(out + c, _mm256_loadu_ps(value + c));
    for (; c < cols; c++) out[c] = f8_bf16_encode(value[c]);
}

/* 128 codes of row r, decoded and stored; padding rows become 0. */
F8_AVX2 void decode_row(f8_place p, int64_t r, const uint8_t *code, const float *scale, int step,
                        const fp8flow_dequantize_args *a)
{
    float value[F8_BLOCK];
    for (int c = 0; c < F8_BLOCK; c += 8) {
        __m256 x =
            a->x->dtype == FP8FLOW_E5M2 ? f8v_decode(code + c, FP8FLOW_E5M2) : f8v_decode(code + c, FP8FLOW_E4M3);
        _mm256_storeu_ps(value + c, _mm256_mul_ps(x, _mm256_loadu_ps(scale + step * c)));
    }
    store_row(value, p.cols, a->y, f8_element(a->y, p.span.row + r, p.col));
}

static void clear_padding(f8_place p, const fp8flow_tensor *y)
{
    size_t size = f8_dtype_bytes(y->dtype);
    for (int64_t r = p.span.valid; r < p.span.rows; r++)
        memset((char *)y->data + (size_t)f8_element(y, p.span.row + r, p.col) * size, 0, (size_t)p.cols * size);
}

/* Row form: row by row through the strip. */
static void dequantize_rows(f8_span span, int64_t first, int64_t last, const fp8flow_dequantize_args *a)
{
    const fp8flow_tensor *x = a->x;
    for (int64_t r = 0; r < span.valid; r++)
        for (int64_t block = first; block < last; block++) {
            f8_place p = f8_place_at(x, span, block);
            uint8_t short_block[F8_BLOCK] = { 0 };
            float scale[8];
            const uint8_t *code = (const uint8_t *)x->data + f8_element(x, span.row + r, p.col);
            if (p.cols < F8_BLOCK) code = memcpy(short_block, code, (size_t)p.cols);
            _mm256_storeu_ps(scale, _mm256_set1_ps(scale_at(x, f8_scale_index(x, span.row + r, p.col, span.group))));
            decode_row(p, r, code, scale, 0, a);
        }
}

/* Column form: the tile is transposed in scratch. */
static void dequantize_columns(f8_place p, const fp8flow_dequantize_args *a, f8v_bytes *bytes)
{
    const fp8flow_tensor *x = a->x;
    float scale[F8_BLOCK] = { 0 };
    int64_t index = f8_scale_index(x, p.span.row, p.col, p.span.group);
    int step = x->scaling == FP8FLOW_COL128;
    for (int64_t c = 0; c < (step ? p.cols : 8); c++) scale[c] = scale_at(x, index + step * c);
    f8v_load_codes(p, x, bytes->code);
    for (int64_t r = 0; r < p.span.valid; r++) decode_row(p, r, bytes->code[r], scale, step, a);
}

fp8flow_status f8_avx2_dequantize(fp8flow_context *c, const fp8flow_dequantize_args *a)
{
    const fp8flow_tensor *x = a->x;
    int64_t blocks = f8_ceil_div(x->cols, F8_BLOCK), strips = f8_ceil_div(blocks, F8V_STRIP);
    int64_t tasks = f8_num_spans(x, a->groups) * strips;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, x->rows * x->cols))
    for (int64_t task = 0; task < tasks; task++) {
        f8v_work *w = f8_scratch(c);
        f8_span span = f8_span_at(x, a->groups, task / strips);
        int64_t first = task % strips * F8V_STRIP, last = f8_min(first + F8V_STRIP, blocks);
        if (x->layout == FP8FLOW_ROWS) dequantize_rows(span, first, last, a);
        for (int64_t block = first; block < last; block++) {
            f8_place p = f8_place_at(x, span, block);
            if (x->layout == FP8FLOW_COLUMNS) dequantize_columns(p, a, &w->bytes);
            clear_padding(p, a->y);
        }
    }
    return FP8FLOW_OK;
}
