/* avx2.h - eight lanes of base/fp8.h: the same bits as the scalar text there. Included by *_avx2.c only,
 * which the Makefile compiles with -mavx2 -mfma -mf16c; ops_cpu.c calls them only where the CPU has those.
 */
#ifndef F8_OPS_AVX2_H
#define F8_OPS_AVX2_H

#include <immintrin.h>

#include "base/fp8.h"
#include "ops/ops.h"

/* Every operator may have an AVX2 implementation; F8_AVX2_OPS (ops_cpu.c) lists those that exist. */
#define F8_X(op) fp8flow_status f8_avx2_##op(fp8flow_context *c, const fp8flow_##op##_args *a);
F8_OPS(F8_X)
#undef F8_X

#define F8_AVX2 static inline __attribute__((always_inline))

F8_AVX2 __m256 f8v_bf16_load(const uint16_t *p)
{
    __m128i x = _mm_loadu_si128((const __m128i *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

/* RNE of eight floats to BF16, NaN made quiet, packed into 128 bits. */
F8_AVX2 __m128i f8v_bf16_encode(__m256 x)
{
    __m256i u = _mm256_castps_si256(x);
    __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7FFF)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i r = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}

F8_AVX2 void f8v_bf16_store(uint16_t *p, __m256 x)
{
    _mm_storeu_si128((__m128i *)p, f8v_bf16_encode(x));
}

/* f8_encode of eight floats; one code per 32-bit lane. */
F8_AVX2 __m256i f8v_encode(__m256 x, fp8flow_dtype dtype)
{
    const f8_format f = f8_format_of(dtype);
    const int drop = 23 - f.mantissa_bits;
    __m256i u = _mm256_castps_si256(x);
    __m256i sign = _mm256_and_si256(_mm256_srli_epi32(u, 24), _mm256_set1_epi32(0x80));
    __m256i a = _mm256_and_si256(u, _mm256_set1_epi32(0x7FFFFFFF));
    __m256i nan = _mm256_cmpgt_epi32(a, _mm256_set1_epi32(0x7F800000));
    __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32((128 - f.bias) << 23), a);
    __m256i magic = _mm256_set1_epi32((127 + 24 - f.bias - f.mantissa_bits) << 23);
    __m256 grid = _mm256_add_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(magic));
    __m256i subnormal = _mm256_sub_epi32(_mm256_castps_si256(grid), magic);
    __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(a, drop), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(a, _mm256_add_epi32(lsb, _mm256_set1_epi32((1 << (drop - 1)) - 1)));
    __m256i normal =
        _mm256_sub_epi32(_mm256_srli_epi32(rounded, drop), _mm256_set1_epi32((127 - f.bias) << f.mantissa_bits));
    normal = _mm256_min_epi32(normal, _mm256_set1_epi32((int)f.max_code));
    __m256i code = _mm256_or_si256(sign, _mm256_blendv_epi8(normal, subnormal, small));
    return _mm256_blendv_epi8(code, _mm256_set1_epi32(0x7F), nan);
}

/* Low bytes of the eight 32-bit lanes, in order. */
F8_AVX2 uint64_t f8v_pack_bytes(__m256i codes)
{
    const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                          -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i packed = _mm256_shuffle_epi8(codes, pick);
    uint32_t low = (uint32_t)_mm256_extract_epi32(packed, 0), high = (uint32_t)_mm256_extract_epi32(packed, 4);
    return (uint64_t)high << 32 | low;
}

F8_AVX2 void f8v_store_codes(uint8_t *p, __m256i codes)
{
    uint64_t bytes = f8v_pack_bytes(codes);
    memcpy(p, &bytes, sizeof bytes);
}

/* f8_decode of eight bytes, by way of FP16: E5M2 is its upper byte, E4M3 * 2^-8 lies on its grid, and the
 * conversion handles subnormals without the slow path of FP32 arithmetic. */
F8_AVX2 __m256 f8v_decode(const uint8_t *p, fp8flow_dtype dtype)
{
    __m128i c = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)p));
    if (dtype == FP8FLOW_E5M2) {
        __m256 value = _mm256_cvtph_ps(_mm_slli_epi16(c, 8));
        __m256 payload = _mm256_castsi256_ps(_mm256_set1_epi32(0x3FFFFF));
        __m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
        return _mm256_andnot_ps(_mm256_and_ps(nan, payload), value); /* one NaN for all payloads */
    }
    __m128i half = _mm_slli_epi16(c, 7); /* the sign is at bit 14; adding it moves it to bit 15 */
    half = _mm_add_epi16(half, _mm_and_si128(half, _mm_set1_epi16(0x4000)));
    __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(half, _mm_set1_epi16(0x7FFF)), _mm_set1_epi16(0x7F << 7));
    half = _mm_add_epi16(half, _mm_and_si128(nan, _mm_set1_epi16(0x7E00 - (0x7F << 7))));
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}

/* f8_expf of eight floats. */
F8_AVX2 __m256 f8v_exp(__m256 x)
{
    x = _mm256_max_ps(_mm256_set1_ps(-87.3f), x); /* second operand when unordered: NaN stays */
    x = _mm256_min_ps(_mm256_set1_ps(88.7f), x);
    const __m256 round = _mm256_set1_ps(12582912.0f);
    __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(1.44269504f), round);
    __m256 n = _mm256_sub_ps(shifted, round);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-0.693145752f), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-1.42860677e-6f), r);
    __m256 p = _mm256_set1_ps(1.98756924e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.39819994e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.33345205e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.16657962e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.66666657e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.00000000e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
    p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
    __m256i i = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(0x4B400000));
    __m256i half = _mm256_srai_epi32(i, 1), bias = _mm256_set1_epi32(127);
    __m256i scale1 = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i scale2 = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(scale1)), _mm256_castsi256_ps(scale2));
}

F8_AVX2 __m256 f8v_sigmoid(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    __m256 minus_x = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
    return _mm256_div_ps(one, _mm256_add_ps(one, f8v_exp(minus_x)));
}

/* f8_finite_magnitude of eight floats; largest lane of eight magnitudes. */
F8_AVX2 __m256i f8v_finite_magnitude(__m256 x)
{
    __m256i a = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF));
    return _mm256_and_si256(a, _mm256_cmpgt_epi32(_mm256_set1_epi32(0x7F800000), a));
}

F8_AVX2 uint32_t f8v_max_lane(__m256i a)
{
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

#endif
