/* bf16_avx2.h - ROW128 of a full block straight from BF16, sixteen lanes at a time: no FP32 in between.
 *
 * A BF16 number has 7 mantissa bits and a power-of-two scale only moves its exponent, so scaling and rounding are
 * exact in 16-bit integers. The same bits as f8v_quantize_row; blocks with NaN or Inf, and blocks so small that
 * BF16 subnormals could reach a nonzero code, are left to it.
 */
#ifndef F8_OPS_BF16_AVX2_H
#define F8_OPS_BF16_AVX2_H

#include "ops/avx2.h"

enum { F8V_BF16_NONFINITE = 0x7F80, F8V_BF16_SMALL = 40 << 7 };

/* Codes below the smallest normal one: the significand (8 bits) times 2^(4 - n) for a shift by n + 4, rounded. */
F8_AVX2 __m256i f8v_bf16_subnormal_codes(__m256i scaled, fp8flow_dtype dtype)
{
    const f8_format f = f8_format_of(dtype);
    /* Exponent field (bias 127) of numbers in [1/2, 1) ulp of the subnormal grid: the smallest that may round up. */
    const int lowest = 127 - f.bias - f.mantissa_bits;
    const __m256i power = _mm256_setr_epi8(1, 2, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 0, 0, 0, 0, 0, 0,
                                           0, 0, 0, 0, 0, 0);
    __m256i index = _mm256_sub_epi16(_mm256_srai_epi16(scaled, 7), _mm256_set1_epi16((short)lowest));
    index = _mm256_or_si256(_mm256_min_epu16(index, _mm256_set1_epi16(15)), _mm256_set1_epi16((short)0x8000));
    __m256i significand = _mm256_or_si256(_mm256_and_si256(scaled, _mm256_set1_epi16(0x7F)), _mm256_set1_epi16(0x80));
    __m256i product = _mm256_mullo_epi16(significand, _mm256_shuffle_epi8(power, index));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi16(product, 8), _mm256_set1_epi16(1));
    return _mm256_srli_epi16(_mm256_add_epi16(_mm256_add_epi16(product, _mm256_set1_epi16(127)), odd), 8);
}

/* Magnitude codes of 64 scaled magnitudes (BF16 bits, not above the largest code), one per 16-bit lane. */
F8_AVX2 void f8v_bf16_codes(const __m256i scaled[4], fp8flow_dtype dtype, __m256i code[4])
{
    const f8_format f = f8_format_of(dtype);
    const int drop = 7 - f.mantissa_bits;
    const __m256i smallest = _mm256_set1_epi16((short)((128 - f.bias) << 7));
    const __m256i bias = _mm256_set1_epi16((short)((1 << (drop - 1)) - 1 - ((127 - f.bias) << 7)));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i odd = _mm256_and_si256(_mm256_srli_epi16(scaled[i], drop), _mm256_set1_epi16(1));
        code[i] = _mm256_srai_epi16(_mm256_add_epi16(_mm256_add_epi16(scaled[i], bias), odd), drop);
    }
    __m256i least = _mm256_min_epi16(_mm256_min_epi16(scaled[0], scaled[1]), _mm256_min_epi16(scaled[2], scaled[3]));
    __m256i any = _mm256_cmpgt_epi16(smallest, least);
    if (_mm256_testz_si256(any, any)) return;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i small = _mm256_cmpgt_epi16(smallest, scaled[i]);
        code[i] = _mm256_blendv_epi8(code[i], f8v_bf16_subnormal_codes(scaled[i], dtype), small);
    }
}

/* Largest magnitude bits of 128 BF16 numbers. */
F8_AVX2 int f8v_bf16_amax(const uint16_t *x)
{
    __m256i most = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        __m256i u = _mm256_loadu_si256((const __m256i *)x + i);
        most = _mm256_max_epi16(most, _mm256_and_si256(u, _mm256_set1_epi16(0x7FFF)));
    }
    /* minpos finds the smallest of eight: of the complements. */
    __m128i m = _mm_max_epi16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    return 0xFFFF - (int)(uint16_t)_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(m, _mm_set1_epi16(-1))));
}

/* 128 codes of 128 BF16 numbers, with the scale byte that f8_scale_byte gives for their amax. */
F8_AVX2 void f8v_bf16_encode_block(const uint16_t *x, uint8_t byte, fp8flow_dtype dtype, uint8_t *codes)
{
    const __m256i shift = _mm256_set1_epi16((short)((127 - byte) * 128)), magnitude = _mm256_set1_epi16(0x7FFF);
    for (int half = 0; half < 2; half++) {
        __m256i u[4], scaled[4], code[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            u[i] = _mm256_loadu_si256((const __m256i *)x + 4 * half + i);
            scaled[i] = _mm256_add_epi16(_mm256_and_si256(u[i], magnitude), shift);
        }
        f8v_bf16_codes(scaled, dtype, code);
#pragma GCC unroll 2
        for (int i = 0; i < 4; i += 2) {
            /* Saturating packs keep the signs. */
            __m256i sign = _mm256_and_si256(_mm256_packs_epi16(u[i], u[i + 1]), _mm256_set1_epi8((char)0x80));
            __m256i bytes = _mm256_or_si256(_mm256_packus_epi16(code[i], code[i + 1]), sign);
            _mm256_storeu_si256((__m256i *)codes + 2 * half + i / 2, _mm256_permute4x64_epi64(bytes, 0xD8));
        }
    }
}

#endif
