/* nan.h - the one NaN that class E operators write into BF16 and FP32 outputs.
 *
 * Sign and payload of a computed NaN depend on the machine and on the order in which a compiler loads two
 * operands; bit equality needs a single pattern: 0x7FC00000 (BF16 0x7FC0).
 */
#ifndef F8_OPS_NAN_H
#define F8_OPS_NAN_H

#include "base/fp8.h"

F8_INLINE float f8_canonical(float x)
{
    return x == x ? x : f8_from_bits(0x7FC00000u);
}

#if defined(__AVX2__)
#include <immintrin.h>

static inline __m256 f8v_canonical(__m256 x)
{
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
    return _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
#endif

#endif
