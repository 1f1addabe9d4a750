/* dequantize_avx2.c - dequantize with AVX2: the codes of a tile are brought into row form in scratch, then
 * decoded row by row with the scales as a vector (COL128) or as one number. */
#include "ops/block_avx2.h"
#include "ops/ops.h"

/* Scales of the 128 elements of row r of a tile: scale[i * step], step 0 or 1. Returns step. */
static int load_scales(f8_place p, int64_t r, const fp8flow_tensor *x, float scale[F8_BLOCK])
{
    int64_t index = f8_scale_index(x, p.span.row + r, p.col, p.span.group);
    if (x->scaling == FP8FLOW_COL128) {
        for (int64_t c = 0; c < p.cols; c++) scale[c] = f8_scale_decode(((const uint8_t *)x->scale)[index + c]);
        return 1;
    }
    float one = x->scaling == FP8FLOW_TENSOR ? ((const float *)x->scale)[index]
                                             : f8_scale_decode(((const uint8_t *)x->scale)[index]);
    _mm256_storeu_ps(scale, _mm256_set1_ps(one));
    return 0;
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

F8_AVX2 void dequantize_tile_as(f8_place p, const fp8flow_tensor *x, const fp8flow_tensor *y, const f8v_bytes *bytes,
                                fp8flow_dtype dtype)
{
    float scale[F8_BLOCK] = { 0 }, value[F8_BLOCK];
    int step = 0;
    for (int64_t r = 0; r < p.span.valid; r++) {
        if (r == 0 || x->scaling == FP8FLOW_ROW128) step = load_scales(p, r, x, scale);
        for (int c = 0; c < F8_BLOCK; c += 8) {
            __m256 code = f8v_decode(&bytes->code[r][c], dtype);
            _mm256_storeu_ps(value + c, _mm256_mul_ps(code, _mm256_loadu_ps(scale + step * c)));
        }
        store_row(value, p.cols, y, f8_element(y, p.span.row + r, p.col));
    }
    size_t size = f8_dtype_bytes(y->dtype);
    for (int64_t r = p.span.valid; r < p.span.rows; r++)
        memset((char *)y->data + (size_t)f8_element(y, p.span.row + r, p.col) * size, 0, (size_t)p.cols * size);
}

fp8flow_status f8_avx2_dequantize(fp8flow_context *c, const fp8flow_dequantize_args *a)
{
    const fp8flow_tensor *x = a->x;
    int64_t blocks = f8_ceil_div(x->cols, F8_BLOCK), tasks = f8_num_spans(x, a->groups) * blocks;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, x->rows * x->cols))
    for (int64_t task = 0; task < tasks; task++) {
        f8v_work *w = f8_scratch(c);
        f8_place p = f8_place_at(x, f8_span_at(x, a->groups, task / blocks), task % blocks);
        f8v_load_codes(p, x, w->bytes.code);
        if (x->dtype == FP8FLOW_E5M2) dequantize_tile_as(p, x, a->y, &w->bytes, FP8FLOW_E5M2);
        else dequantize_tile_as(p, x, a->y, &w->bytes, FP8FLOW_E4M3);
    }
    return FP8FLOW_OK;
}
