/* lines_avx2.c - lines, eight lanes at a time. Tails go through the scalar text of base/fp8.h: never a byte
 * past the end of a line is read or written. */
#include "ops/lines.h"

#include "ops/avx2.h"

static void avx2_decode_bf16(float *out, const uint16_t *codes, int64_t count)
{
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, f8v_bf16_load(codes + i));
    for (; i < count; i++) out[i] = f8_bf16_decode(codes[i]);
}

/* Inlined with a constant dtype, so that the choice of format is made outside the loop. */
F8_AVX2 void decode_fp8(float *out, const uint8_t *codes, int64_t count, fp8flow_dtype dtype, float scale)
{
    const __m256 scales = _mm256_set1_ps(scale);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, _mm256_mul_ps(f8v_decode(codes + i, dtype), scales));
    for (; i < count; i++) out[i] = f8_decode(codes[i], dtype) * scale;
}

static void avx2_decode_fp8(float *out, const uint8_t *codes, int64_t count, fp8flow_dtype dtype, float scale)
{
    if (dtype == FP8FLOW_E4M3) decode_fp8(out, codes, count, FP8FLOW_E4M3, scale);
    else decode_fp8(out, codes, count, FP8FLOW_E5M2, scale);
}

static void avx2_encode_bf16(uint16_t *out, const float *x, int64_t count)
{
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) f8v_bf16_store(out + i, _mm256_loadu_ps(x + i));
    for (; i < count; i++) out[i] = f8_bf16_encode(x[i]);
}

static float sum_of_lanes(__m256 sums)
{
    float lane[8], sum = 0.0f;
    _mm256_storeu_ps(lane, sums);
    for (int l = 0; l < 8; l++) sum += lane[l];
    return sum;
}

static float avx2_exp(float *x, int64_t count, float shift)
{
    const __m256 shifts = _mm256_set1_ps(shift);
    __m256 sums = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 e = f8v_exp(_mm256_sub_ps(_mm256_loadu_ps(x + i), shifts));
        _mm256_storeu_ps(x + i, e);
        sums = _mm256_add_ps(sums, e);
    }
    float sum = sum_of_lanes(sums);
    for (; i < count; i++) sum += x[i] = f8_expf(x[i] - shift);
    return sum;
}

static float avx2_max(const float *x, int64_t count)
{
    __m256 maxima = _mm256_set1_ps(-INFINITY);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) maxima = _mm256_max_ps(_mm256_loadu_ps(x + i), maxima);
    float lane[8], max = -INFINITY;
    _mm256_storeu_ps(lane, maxima);
    for (int l = 0; l < 8; l++) max = lane[l] > max ? lane[l] : max;
    for (; i < count; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static float avx2_dot(const float *x, const float *y, int64_t count)
{
    __m256 sums = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) sums = _mm256_fmadd_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i), sums);
    float sum = sum_of_lanes(sums);
    for (; i < count; i++) sum += x[i] * y[i];
    return sum;
}

const f8_lines f8_lines_avx2 = { avx2_decode_bf16, avx2_decode_fp8, avx2_encode_bf16, avx2_exp, avx2_max, avx2_dot };
