/* block_avx2.h - block.h with AVX2: quantise a tile, shift a tile, transpose bytes; the same bits.
 *
 * The unit is a 128 x 128 tile in per-thread scratch (struct f8v_work). All 128 x 128 elements are defined:
 * what lies outside the valid rows and columns is 0 (block.h), so every loop below has constant bounds and
 * only the loads and stores of the caller's tensors know about short blocks.
 */
#ifndef F8_OPS_BLOCK_AVX2_H
#define F8_OPS_BLOCK_AVX2_H

#include "ops/bytes_avx2.h"

/* Column blocks of a task that walks a span: long lines of memory, yet several tasks in a wide span. */
enum { F8V_STRIP = 16 };

/* What an operator keeps in f8_scratch() while it works on one tile. */
typedef struct {
    f8_tile tile;
    f8_code_tile codes;
    f8v_bytes bytes;
} f8v_work;

/* ---- Quantise a tile ---- */

/* f8_encode of eight magnitudes that do not exceed the largest code, plus (128 - bias) << mantissa_bits, which
 * the caller takes off. With t the value's power of two, at least the smallest normal, adding |x| to
 * t * 2^(23 - mantissa_bits) rounds to multiples of t / 2^mantissa_bits: one formula for normal and subnormal. */
F8_AVX2 __m256i f8v_encode_bounded(__m256i magnitude, fp8flow_dtype dtype)
{
    const f8_format f = f8_format_of(dtype);
    const int drop = 23 - f.mantissa_bits;
    __m256i t = _mm256_and_si256(magnitude, _mm256_set1_epi32(0x7F800000));
    t = _mm256_max_epi32(t, _mm256_set1_epi32((128 - f.bias) << 23));
    __m256i grid = _mm256_add_epi32(t, _mm256_set1_epi32(drop << 23));
    __m256 rounded = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(grid));
    __m256i steps = _mm256_sub_epi32(_mm256_castps_si256(rounded), grid);
    return _mm256_add_epi32(steps, _mm256_srli_epi32(t, drop));
}

/* f8_encode of 32 values. Values above the largest code, Inf and NaN take the general way. */
F8_AVX2 void f8v_encode32(const __m256 x[4], fp8flow_dtype dtype, uint8_t *out)
{
    const f8_format f = f8_format_of(dtype);
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
    __m256i a[4], code[4], sign[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        sign[i] = _mm256_castps_si256(x[i]);
        a[i] = _mm256_and_si256(sign[i], magnitude);
    }
    __m256i most = _mm256_max_epi32(_mm256_max_epi32(a[0], a[1]), _mm256_max_epi32(a[2], a[3]));
    __m256i beyond = _mm256_cmpgt_epi32(most, _mm256_set1_epi32((int)f8_bits(f.max)));
    if (__builtin_expect(!_mm256_testz_si256(beyond, beyond), 0)) {
        for (int i = 0; i < 4; i++) f8v_store_codes(out + 8 * i, f8v_encode(x[i], dtype));
        return;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) code[i] = f8v_encode_bounded(a[i], dtype);
    /* Saturating packs keep the signs; the bias of the codes fits into 16 bits. */
    const __m256i bias = _mm256_set1_epi16((short)((128 - f.bias) << f.mantissa_bits));
    __m256i low = _mm256_sub_epi16(_mm256_packus_epi32(code[0], code[1]), bias);
    __m256i high = _mm256_sub_epi16(_mm256_packus_epi32(code[2], code[3]), bias);
    __m256i signs = _mm256_packs_epi16(_mm256_packs_epi32(sign[0], sign[1]), _mm256_packs_epi32(sign[2], sign[3]));
    signs = _mm256_and_si256(signs, _mm256_set1_epi8((char)0x80));
    __m256i bytes = _mm256_or_si256(_mm256_packus_epi16(low, high), signs);
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)out, bytes);
}

/* Codes of 128 values; value i is multiplied with inverse[i * step], step 0 or 1 (inverse has 8 lanes at least). */
F8_AVX2 void f8v_encode_row(const float *x, const float *inverse, int step, fp8flow_dtype dtype, uint8_t *out)
{
    for (int i = 0; i < F8_BLOCK; i += 32) {
        __m256 scaled[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            int at = i + 8 * j;
            scaled[j] = _mm256_mul_ps(_mm256_loadu_ps(x + at), _mm256_loadu_ps(inverse + at * step));
        }
        f8v_encode32(scaled, dtype, out + i);
    }
}

enum { F8V_INFINITY = 0x7F800000 }; /* magnitude bits; NaN lies above */

/* Largest magnitude bits of `count` (a multiple of 8) values, NaN and Inf included. */
F8_AVX2 uint32_t f8v_max_magnitude(const float *x, int64_t count)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
    __m256i most = _mm256_setzero_si256();
    for (int64_t i = 0; i < count; i += 8)
        most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i)), magnitude));
    return f8v_max_lane(most);
}

/* Largest finite magnitude of `count` (a multiple of 8) values, when f8v_max_magnitude says `most`. */
F8_AVX2 uint32_t f8v_amax(const float *x, int64_t count, uint32_t most)
{
    if (most < F8V_INFINITY) return most;
    __m256i amax = _mm256_setzero_si256();
    for (int64_t i = 0; i < count; i += 8) amax = _mm256_max_epi32(amax, f8v_finite_magnitude(_mm256_loadu_ps(x + i)));
    return f8v_max_lane(amax);
}

/* ROW128 of 128 values (zeros behind the last of a short block) whose f8v_max_magnitude is `most`: 128 codes;
 * returns the scale byte. */
F8_AVX2 uint8_t f8v_quantize_row(const float *x, uint32_t most, fp8flow_dtype dtype, uint8_t *codes)
{
    float inverse[8];
    uint8_t byte = f8_scale_byte(f8v_amax(x, F8_BLOCK, most), dtype);
    _mm256_storeu_ps(inverse, _mm256_set1_ps(f8_scale_inverse(byte)));
    f8v_encode_row(x, inverse, 0, dtype, codes);
    return byte;
}

/* Largest finite magnitude of each column. */
F8_AVX2 void f8v_column_amax(const f8_tile *x, uint32_t amax[F8_BLOCK])
{
    for (int c = 0; c < F8_BLOCK; c += 16) {
        __m256i left = _mm256_setzero_si256(), right = left;
        for (int r = 0; r < F8_BLOCK; r++) {
            left = _mm256_max_epi32(left, f8v_finite_magnitude(_mm256_loadu_ps(&x->at[r][c])));
            right = _mm256_max_epi32(right, f8v_finite_magnitude(_mm256_loadu_ps(&x->at[r][c + 8])));
        }
        _mm256_storeu_si256((__m256i *)(amax + c), left);
        _mm256_storeu_si256((__m256i *)(amax + c + 8), right);
    }
}

/* COL128: scales of the tile's columns into y, their inverses. */
F8_AVX2 void f8v_column_scales(f8_place p, const f8_tile *x, const fp8flow_tensor *y, fp8flow_dtype dtype,
                               float inverse[F8_BLOCK])
{
    uint32_t amax[F8_BLOCK];
    uint8_t *scale = (uint8_t *)y->scale + f8_scale_index(y, p.span.row, p.col, p.span.group);
    f8v_column_amax(x, amax);
    for (int c = 0; c < F8_BLOCK; c++) {
        uint8_t byte = f8_scale_byte(amax[c], dtype);
        inverse[c] = f8_scale_inverse(byte);
        if (c < p.cols) scale[c] = byte;
    }
}

/* f8v_encode_tile of one dtype. */
F8_AVX2 void f8v_encode_tile_as(f8_place p, const f8_tile *x, const fp8flow_tensor *y, fp8flow_dtype dtype,
                                f8v_bytes *bytes)
{
    float inverse[F8_BLOCK];
    int64_t index = f8_scale_index(y, p.span.row, p.col, p.span.group);
    if (y->scaling == FP8FLOW_ROW128) {
        for (int64_t r = 0; r < p.span.rows; r++)
            ((uint8_t *)y->scale)[f8_scale_index(y, p.span.row + r, p.col, p.span.group)] =
                f8v_quantize_row(x->at[r], f8v_max_magnitude(x->at[r], F8_BLOCK), dtype, bytes->code[r]);
        return;
    }
    if (y->scaling == FP8FLOW_COL128) {
        f8v_column_scales(p, x, y, dtype, inverse);
        for (int r = 0; r < F8_BLOCK; r++) f8v_encode_row(x->at[r], inverse, 1, dtype, bytes->code[r]);
        return;
    }
    if (y->scaling == FP8FLOW_TENSOR) {
        inverse[0] = 1.0f / ((const float *)y->scale)[index];
    } else {
        uint32_t most = f8v_max_magnitude(x->at[0], F8_BLOCK * F8_BLOCK);
        uint8_t byte = f8_scale_byte(f8v_amax(x->at[0], F8_BLOCK * F8_BLOCK, most), dtype);
        ((uint8_t *)y->scale)[index] = byte;
        inverse[0] = f8_scale_inverse(byte);
    }
    _mm256_storeu_ps(inverse, _mm256_set1_ps(inverse[0]));
    for (int r = 0; r < F8_BLOCK; r++) f8v_encode_row(x->at[r], inverse, 0, dtype, bytes->code[r]);
}

/* Scales of the tile's place into y, codes into bytes (ROW128: the rows of the span only). */
static inline void f8v_encode_tile(f8_place p, const f8_tile *x, const fp8flow_tensor *y, f8v_bytes *bytes)
{
    if (y->dtype == FP8FLOW_E5M2) f8v_encode_tile_as(p, x, y, FP8FLOW_E5M2, bytes);
    else f8v_encode_tile_as(p, x, y, FP8FLOW_E4M3, bytes);
}

/* f8_quantize_tile. */
static inline void f8v_quantize_tile(f8_place p, const f8_tile *x, const fp8flow_tensor *y, f8v_bytes *bytes)
{
    f8v_encode_tile(p, x, y, bytes);
    f8v_store_tile(p, bytes, y);
}

/* ---- Re-encode a tile by exponent shift ---- */

/* Magnitudes that a shift by d turns into a subnormal or the smallest normal code. With M = 2^mantissa_bits codes
 * per binade they end at M * (d + 1); four binades below hold every one that does not become 0. Entry u of row
 * min(d, 4) - 1 is the result for magnitude M * max(d - 3, 0) + u; the first rows differ by subnormal inputs. */
static const uint8_t f8v_low_e4m3[4][32] = {
    { 0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 8 },
    { 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 6, 6, 6, 7, 8 },
    { 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 6, 6, 6, 7, 8 },
    { 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 6, 6, 6, 7, 8 },
};
static const uint8_t f8v_low_e5m2[4][32] = {
    { 0, 0, 1, 2, 2, 2, 3, 4 },
    { 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 4 },
    { 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 4 },
    { 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 4 },
};

/* f8_shift by d >= 1 of 128 codes. */
F8_AVX2 void f8v_shift_row(const uint8_t *in, int d, fp8flow_dtype dtype, uint8_t *out)
{
    const f8_format f = f8_format_of(dtype);
    const int binade = 1 << f.mantissa_bits, furthest = (128 >> f.mantissa_bits) + 3; /* all to 0 from there on */
    d = d < furthest ? d : furthest;
    const uint8_t *low = dtype == FP8FLOW_E5M2 ? f8v_low_e5m2[(d < 4 ? d : 4) - 1] : f8v_low_e4m3[(d < 4 ? d : 4) - 1];
    const __m256i low0 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)low));
    const __m256i low1 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(low + 16)));
    const __m256i window = _mm256_set1_epi8((char)(d > 3 ? binade * (d - 3) : 0));
    const __m256i normal = _mm256_set1_epi8((char)(binade * (d + 1))), drop = _mm256_set1_epi8((char)(binade * d));
    const __m256i sign_bit = _mm256_set1_epi8((char)0x80), max_code = _mm256_set1_epi8((char)f.max_code);
    for (int i = 0; i < F8_BLOCK; i += 32) {
        __m256i code = _mm256_loadu_si256((const __m256i *)(in + i));
        __m256i a = _mm256_andnot_si256(sign_bit, code);
        __m256i u = _mm256_subs_epu8(a, window);
        __m256i second = _mm256_cmpgt_epi8(u, _mm256_set1_epi8(15));
        /* pshufb takes index bits 0..3; bit 7 is clear because u <= 127. */
        __m256i small = _mm256_blendv_epi8(_mm256_shuffle_epi8(low0, u), _mm256_shuffle_epi8(low1, u), second);
        __m256i is_normal = _mm256_cmpeq_epi8(_mm256_max_epu8(a, normal), a);
        __m256i magnitude = _mm256_blendv_epi8(small, _mm256_sub_epi8(a, drop), is_normal);
        magnitude = _mm256_blendv_epi8(magnitude, a, _mm256_cmpgt_epi8(a, max_code));
        __m256i shifted = _mm256_or_si256(_mm256_and_si256(code, sign_bit), magnitude);
        _mm256_storeu_si256((__m256i *)(out + i), shifted);
    }
}

/* Number of the 128 codes that are nonzero and finite. */
F8_AVX2 uint64_t f8v_count_finite_nonzero(const uint8_t *codes, fp8flow_dtype dtype)
{
    const __m256i max_code = _mm256_set1_epi8((char)f8_format_of(dtype).max_code);
    uint64_t count = 0;
    for (int i = 0; i < F8_BLOCK; i += 32) {
        __m256i code = _mm256_loadu_si256((const __m256i *)(codes + i));
        __m256i a = _mm256_and_si256(code, _mm256_set1_epi8(0x7F));
        __m256i skipped = _mm256_or_si256(_mm256_cmpeq_epi8(a, _mm256_setzero_si256()), _mm256_cmpgt_epi8(a, max_code));
        count += 32u - (unsigned)__builtin_popcount((uint32_t)_mm256_movemask_epi8(skipped));
    }
    return count;
}

F8_AVX2 int f8v_any_nonzero(const uint8_t *codes)
{
    __m256i any = _mm256_setzero_si256();
    for (int i = 0; i < F8_BLOCK; i += 32) any = _mm256_or_si256(any, _mm256_loadu_si256((const __m256i *)(codes + i)));
    return !_mm256_testz_si256(any, _mm256_set1_epi8(0x7F));
}

/* f8_shift_tile to TILE128 without the store. */
F8_AVX2 void f8v_shift_to_tile(f8_place p, const f8_code_tile *x, const fp8flow_tensor *y, fp8flow_dtype dtype,
                               f8v_bytes *bytes, uint64_t *histogram)
{
    uint8_t target = 1;
    for (int64_t r = 0; r < p.span.valid; r++)
        if (x->scale[r] > target && f8v_any_nonzero(x->code[r])) target = x->scale[r];
    ((uint8_t *)y->scale)[f8_scale_index(y, p.span.row, p.col, p.span.group)] = target;
    for (int r = 0; r < F8_BLOCK; r++) {
        int d = target - x->scale[r];
        /* d < 0: a row of zeros, whatever its scale says. */
        if (d <= 0) memcpy(bytes->code[r], x->code[r], F8_BLOCK);
        else f8v_shift_row(x->code[r], d, dtype, bytes->code[r]);
        if (histogram && r < p.span.valid)
            histogram[f8_max(0, f8_min(d, F8_SHIFT_BINS - 1))] += f8v_count_finite_nonzero(x->code[r], dtype);
    }
}

/* Codes that are NaN or Inf keep their byte. */
F8_AVX2 void f8v_keep_nonfinite(const uint8_t *in, fp8flow_dtype dtype, uint8_t *out)
{
    const __m256i max_code = _mm256_set1_epi8((char)f8_format_of(dtype).max_code);
    for (int i = 0; i < F8_BLOCK; i += 32) {
        __m256i code = _mm256_loadu_si256((const __m256i *)(in + i));
        __m256i special = _mm256_cmpgt_epi8(_mm256_and_si256(code, _mm256_set1_epi8(0x7F)), max_code);
        __m256i kept = _mm256_blendv_epi8(_mm256_loadu_si256((const __m256i *)(out + i)), code, special);
        _mm256_storeu_si256((__m256i *)(out + i), kept);
    }
}

/* Histogram bin of 32 codes: the distance to their column's target, from 0 to 63; 64 for codes that do not count. */
F8_AVX2 __m256i f8v_shift_bins(const uint8_t *code, const uint8_t *target, uint8_t scale, fp8flow_dtype dtype)
{
    const __m256i max_code = _mm256_set1_epi8((char)f8_format_of(dtype).max_code);
    __m256i a = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)code), _mm256_set1_epi8(0x7F));
    __m256i skipped = _mm256_or_si256(_mm256_cmpeq_epi8(a, _mm256_setzero_si256()), _mm256_cmpgt_epi8(a, max_code));
    __m256i d = _mm256_subs_epu8(_mm256_loadu_si256((const __m256i *)target), _mm256_set1_epi8((char)scale));
    d = _mm256_min_epu8(d, _mm256_set1_epi8(F8_SHIFT_BINS - 1));
    return _mm256_blendv_epi8(d, _mm256_set1_epi8(F8_SHIFT_BINS), skipped);
}

/* f8_count_shift of a tile whose COL128 scales are in y. Neighbours often share a bin: four sets of counters keep
 * one increment from waiting for the last. */
F8_AVX2 void f8v_count_shifts(f8_place p, const f8_code_tile *x, const fp8flow_tensor *y, fp8flow_dtype dtype,
                              uint64_t *histogram)
{
    uint64_t counts[4][F8_SHIFT_BINS + 1] = { { 0 } };
    uint8_t target[F8_BLOCK] = { 0 }, bin[F8_BLOCK];
    memcpy(target, (const uint8_t *)y->scale + f8_scale_index(y, p.span.row, p.col, p.span.group), (size_t)p.cols);
    for (int64_t r = 0; r < p.span.valid; r++) {
        for (int c = 0; c < F8_BLOCK; c += 32)
            _mm256_storeu_si256((__m256i *)(bin + c), f8v_shift_bins(&x->code[r][c], target + c, x->scale[r], dtype));
        for (int c = 0; c < F8_BLOCK; c += 4)
            for (int i = 0; i < 4; i++) counts[i][bin[c + i]]++;
    }
    for (int i = 0; i < 4; i++)
        for (int b = 0; b < F8_SHIFT_BINS; b++) histogram[b] += counts[i][b];
}

/* 1 if FP32 holds every value of the tile: below this scale not even the largest code leaves its range. */
static inline int f8v_fits_fp32(const f8_code_tile *x, fp8flow_dtype dtype)
{
    int most = 0, limit = 254 - f8_format_of(dtype).max_exponent;
    for (int r = 0; r < F8_BLOCK; r++) most = x->scale[r] > most ? x->scale[r] : most;
    return most <= limit;
}

/* f8_shift_tile to COL128 without the store: by way of the values, which FP32 must hold (f8v_fits_fp32). */
F8_AVX2 void f8v_shift_to_columns(f8_place p, f8v_work *w, const fp8flow_tensor *y, fp8flow_dtype dtype,
                                  uint64_t *histogram)
{
    const f8_code_tile *x = &w->codes;
    for (int r = 0; r < F8_BLOCK; r++) {
        __m256 scale = _mm256_set1_ps(f8_scale_decode(x->scale[r]));
        for (int c = 0; c < F8_BLOCK; c += 8)
            _mm256_storeu_ps(&w->tile.at[r][c], _mm256_mul_ps(f8v_decode(&x->code[r][c], dtype), scale));
    }
    f8v_encode_tile_as(p, &w->tile, y, dtype, &w->bytes);
    for (int r = 0; r < F8_BLOCK; r++) f8v_keep_nonfinite(x->code[r], dtype, w->bytes.code[r]);
    if (histogram) f8v_count_shifts(p, x, y, dtype, histogram);
}

/* f8_shift_tile of w->codes; y is a column form in TILE128 or COL128. */
static inline void f8v_shift_tile(f8_place p, f8v_work *w, const fp8flow_tensor *y, uint64_t *histogram)
{
    if (y->scaling == FP8FLOW_COL128 && !f8v_fits_fp32(&w->codes, y->dtype)) {
        f8_shift_tile(p, &w->codes, y, histogram);
        return;
    }
    if (y->scaling == FP8FLOW_TILE128) {
        if (y->dtype == FP8FLOW_E5M2) f8v_shift_to_tile(p, &w->codes, y, FP8FLOW_E5M2, &w->bytes, histogram);
        else f8v_shift_to_tile(p, &w->codes, y, FP8FLOW_E4M3, &w->bytes, histogram);
    } else {
        if (y->dtype == FP8FLOW_E5M2) f8v_shift_to_columns(p, w, y, FP8FLOW_E5M2, histogram);
        else f8v_shift_to_columns(p, w, y, FP8FLOW_E4M3, histogram);
    }
    f8v_store_tile(p, &w->bytes, y);
}

/* ---- Loads ---- */

/* Eight elements of F32 or BF16 from `data`, which has the type `dtype`. */
F8_AVX2 __m256 f8v_load8(const void *data, int64_t at, fp8flow_dtype dtype)
{
    return dtype == FP8FLOW_BF16 ? f8v_bf16_load((const uint16_t *)data + at)
                                 : _mm256_loadu_ps((const float *)data + at);
}

/* `cols` values from element `at` of an F32 or BF16 array as 128 floats, zeros behind; their f8v_max_magnitude. */
F8_AVX2 uint32_t f8v_load_row(const void *data, int64_t at, int64_t cols, fp8flow_dtype dtype, float *out)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
    __m256i most = _mm256_setzero_si256();
    int64_t c = 0;
    for (; c + 8 <= cols; c += 8) {
        __m256 x = f8v_load8(data, at + c, dtype);
        most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(x), magnitude));
        _mm256_storeu_ps(out + c, x);
    }
    if (c == F8_BLOCK) return f8v_max_lane(most);
    for (; c < cols; c++)
        out[c] =
            dtype == FP8FLOW_BF16 ? f8_bf16_decode(((const uint16_t *)data)[at + c]) : ((const float *)data)[at + c];
    for (; c < F8_BLOCK; c++) out[c] = 0.0f;
    return f8v_max_magnitude(out, F8_BLOCK);
}

/* Number of NaN and Inf among 128 values; almost always 0. */
F8_AVX2 uint64_t f8v_count_nonfinite(const float *x)
{
    uint64_t count = 0;
    if (f8v_max_magnitude(x, F8_BLOCK) >= F8V_INFINITY)
        for (int i = 0; i < F8_BLOCK; i++) count += !f8_is_finite(x[i]);
    return count;
}

/* f8_load_tile of a tensor in row form. */
static inline uint64_t f8v_load_tile(f8_place p, const fp8flow_tensor *x, f8_tile *tile)
{
    uint64_t nonfinite = 0;
    for (int64_t r = 0; r < p.span.valid; r++) {
        int64_t at = f8_element(x, p.span.row + r, p.col);
        f8v_prefetch(x, at + F8_BLOCK);
        uint32_t most = x->dtype == FP8FLOW_BF16 ? f8v_load_row(x->data, at, p.cols, FP8FLOW_BF16, tile->at[r])
                                                 : f8v_load_row(x->data, at, p.cols, FP8FLOW_F32, tile->at[r]);
        if (most >= F8V_INFINITY) nonfinite += f8v_count_nonfinite(tile->at[r]);
    }
    memset(tile->at + p.span.valid, 0, (size_t)(F8_BLOCK - p.span.valid) * sizeof tile->at[0]);
    return nonfinite;
}

/* f8_load_code_tile. */
static inline void f8v_load_code_tile(f8_place p, const fp8flow_tensor *x, f8_code_tile *tile)
{
    f8v_load_codes(p, x, tile->code);
    memset(tile->scale, 1, sizeof tile->scale);
    int64_t index = f8_scale_index(x, p.span.row, p.col, p.span.group), step = f8_ceil_div(x->cols, F8_BLOCK);
    for (int64_t r = 0; r < p.span.valid; r++) tile->scale[r] = ((const uint8_t *)x->scale)[index + r * step];
}

#endif
