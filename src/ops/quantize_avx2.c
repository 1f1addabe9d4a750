/* quantize_avx2.c - quantize with AVX2. ROW128 alone streams row by row; every other combination works on
 * tiles in scratch (block_avx2.h). A task is a span times a strip of column blocks: memory is read in long
 * lines, and the split does not depend on the number of threads. */
#include "ops/bf16_avx2.h"
#include "ops/block_avx2.h"
#include "ops/ops.h"

/* Magnitude bits of the largest finite value of row r. */
F8_AVX2 uint32_t row_amax_as(const fp8flow_tensor *x, int64_t r, fp8flow_dtype dtype)
{
    __m256i amax = _mm256_setzero_si256();
    int64_t c = 0, at = f8_element(x, r, 0);
    for (; c + 8 <= x->cols; c += 8)
        amax = _mm256_max_epi32(amax, f8v_finite_magnitude(f8v_load8(x->data, at + c, dtype)));
    uint32_t largest = f8v_max_lane(amax);
    for (; c < x->cols; c++) {
        uint32_t magnitude = f8_finite_magnitude(f8_value(x, r, c, 0));
        if (magnitude > largest) largest = magnitude;
    }
    return largest;
}

static uint32_t row_amax(const fp8flow_tensor *x, int64_t r)
{
    return x->dtype == FP8FLOW_BF16 ? row_amax_as(x, r, FP8FLOW_BF16) : row_amax_as(x, r, FP8FLOW_F32);
}

/* The TENSOR scale of each group; the maximum of integers does not depend on the order. */
static void tensor_scales(fp8flow_context *c, const fp8flow_quantize_args *a, const fp8flow_tensor *y)
{
    (void)c; /* the pragma's, where OpenMP is compiled in */
    for (int64_t g = 0; g < f8_num_groups(y, a->groups); g++) {
        f8_span group = f8_group_span(y, a->groups, g);
        uint32_t amax = 0;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, group.valid * y->cols)) reduction(max : amax)
        for (int64_t r = group.row; r < group.row + group.valid; r++) {
            uint32_t largest = row_amax(a->x, r);
            amax = largest > amax ? largest : amax;
        }
        ((float *)y->scale)[g] = f8_tensor_scale(amax, y->dtype);
    }
}

/* One ROW128 block of one valid row; returns the count of NaN and Inf. */
F8_AVX2 uint64_t quantize_block(f8_place p, int64_t row, const fp8flow_tensor *x, const fp8flow_tensor *y,
                                fp8flow_dtype from, fp8flow_dtype to)
{
    float value[F8_BLOCK];
    uint8_t code[F8_BLOCK], *out = (uint8_t *)y->data + f8_element(y, row, p.col);
    uint8_t *scale = (uint8_t *)y->scale + f8_scale_index(y, row, p.col, 0);
    f8v_prefetch(x, f8_element(x, row + 1, p.col));
    if (from == FP8FLOW_BF16 && p.cols == F8_BLOCK) {
        const uint16_t *in = (const uint16_t *)x->data + f8_element(x, row, p.col);
        int amax = f8v_bf16_amax(in);
        if (amax >= F8V_BF16_SMALL && amax < F8V_BF16_NONFINITE) {
            *scale = f8_scale_byte((uint32_t)amax << 16, to);
            f8v_bf16_encode_block(in, *scale, to, out);
            return 0;
        }
    }
    uint32_t most = f8v_load_row(x->data, f8_element(x, row, p.col), p.cols, from, value);
    if (p.cols == F8_BLOCK) {
        *scale = f8v_quantize_row(value, most, to, out);
    } else {
        *scale = f8v_quantize_row(value, most, to, code);
        memcpy(out, code, (size_t)p.cols);
    }
    return most < F8V_INFINITY ? 0 : f8v_count_nonfinite(value);
}

/* ROW128 of a strip, row by row. */
F8_AVX2 uint64_t quantize_rows_as(f8_span span, int64_t first, int64_t last, const fp8flow_quantize_args *a,
                                  fp8flow_dtype from, fp8flow_dtype to)
{
    uint64_t nonfinite = 0;
    for (int64_t r = span.row; r < span.row + span.rows; r++)
        for (int64_t block = first; block < last; block++) {
            f8_place p = f8_place_at(a->rows, span, block);
            if (r < span.row + span.valid) {
                nonfinite += quantize_block(p, r, a->x, a->rows, from, to);
            } else {
                memset((uint8_t *)a->rows->data + f8_element(a->rows, r, p.col), 0, (size_t)p.cols);
                ((uint8_t *)a->rows->scale)[f8_scale_index(a->rows, r, p.col, 0)] = 1;
            }
        }
    return nonfinite;
}

static uint64_t quantize_rows(f8_span span, int64_t first, int64_t last, const fp8flow_quantize_args *a)
{
    int bf16 = a->x->dtype == FP8FLOW_BF16, e5m2 = a->rows->dtype == FP8FLOW_E5M2;
    if (bf16 && e5m2) return quantize_rows_as(span, first, last, a, FP8FLOW_BF16, FP8FLOW_E5M2);
    if (bf16) return quantize_rows_as(span, first, last, a, FP8FLOW_BF16, FP8FLOW_E4M3);
    if (e5m2) return quantize_rows_as(span, first, last, a, FP8FLOW_F32, FP8FLOW_E5M2);
    return quantize_rows_as(span, first, last, a, FP8FLOW_F32, FP8FLOW_E4M3);
}

/* Both forms hold the same codes: one encoding serves both. */
static int codes_are_shared(const fp8flow_tensor *rows, const fp8flow_tensor *columns)
{
    return rows && columns && rows->scaling == columns->scaling && rows->dtype == columns->dtype;
}

static uint64_t quantize_tiles(f8_span span, int64_t first, int64_t last, const fp8flow_quantize_args *a, f8v_work *w)
{
    const fp8flow_tensor *rows = a->rows, *columns = a->columns;
    uint64_t nonfinite = 0;
    for (int64_t block = first; block < last; block++) {
        f8_place p = f8_place_at(rows ? rows : columns, span, block);
        nonfinite += f8v_load_tile(p, a->x, &w->tile);
        if (rows) f8v_quantize_tile(p, &w->tile, rows, &w->bytes);
        if (codes_are_shared(rows, columns)) {
            int64_t index = f8_scale_index(columns, span.row, p.col, span.group);
            if (rows->scaling == FP8FLOW_TILE128) ((uint8_t *)columns->scale)[index] = ((uint8_t *)rows->scale)[index];
            f8v_store_tile(p, &w->bytes, columns);
        } else if (columns) {
            f8v_quantize_tile(p, &w->tile, columns, &w->bytes);
        }
    }
    return nonfinite;
}

fp8flow_status f8_avx2_quantize(fp8flow_context *c, const fp8flow_quantize_args *a)
{
    const fp8flow_tensor *shape = a->rows ? a->rows : a->columns;
    if (a->rows && a->rows->scaling == FP8FLOW_TENSOR) tensor_scales(c, a, a->rows);
    if (a->columns && a->columns->scaling == FP8FLOW_TENSOR) tensor_scales(c, a, a->columns);
    int64_t blocks = f8_ceil_div(shape->cols, F8_BLOCK), strips = f8_ceil_div(blocks, F8V_STRIP);
    int64_t tasks = f8_num_spans(shape, a->groups) * strips;
    int rows_only = !a->columns && a->rows->scaling == FP8FLOW_ROW128;
    uint64_t nonfinite = 0;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, shape->rows * shape->cols)) \
    reduction(+ : nonfinite)
    for (int64_t task = 0; task < tasks; task++) {
        f8_span span = f8_span_at(shape, a->groups, task / strips);
        int64_t first = task % strips * F8V_STRIP, last = f8_min(first + F8V_STRIP, blocks);
        nonfinite +=
            rows_only ? quantize_rows(span, first, last, a) : quantize_tiles(span, first, last, a, f8_scratch(c));
    }
    if (a->nonfinite) *a->nonfinite += nonfinite;
    return FP8FLOW_OK;
}
