/* codes.cuh - FP8 codes with the conversion instructions of the hardware: the bits of f8_encode, f8_decode and
 * f8_shift of base/fp8.h, two and four at a time (the shift itself: shift.cuh).
 *
 * The instructions round to nearest even, saturate (Inf too), keep subnormals and -0, and give 0x7F for NaN, as the
 * contract wants. Every FP8 value is exact in FP16.
 */
#ifndef F8_OPS_CODES_CUH
#define F8_OPS_CODES_CUH

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "base/fp8.h"

template <fp8flow_dtype dtype> struct f8_interpretation {
    static const __nv_fp8_interpretation_t value = dtype == FP8FLOW_E5M2 ? __NV_E5M2 : __NV_E4M3;
};

/* Codes of a and b in the low and the high byte of 16 bits. */
template <fp8flow_dtype dtype> __device__ static inline uint32_t f8_encode2(float a, float b)
{
    return __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, f8_interpretation<dtype>::value);
}

/* Codes of a, b, c, d, the first in the lowest byte. */
template <fp8flow_dtype dtype> __device__ static inline uint32_t f8_encode4(float a, float b, float c, float d)
{
    return f8_encode2<dtype>(a, b) | f8_encode2<dtype>(c, d) << 16;
}

template <fp8flow_dtype dtype> __device__ static inline __half2 f8_decode2(uint32_t codes)
{
    return __half2(__nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)codes, f8_interpretation<dtype>::value));
}

/* 2^-d in FP16, for E4M3 values and d >= 0: a product below FP16's smallest number has code 0 in any case. d < 0 occurs
 * in rows of zeros only, and may be any power then. */
__device__ static inline __half2 f8_shift_factor(int d)
{
    int limited = min(max(d, -15), 24);
    uint32_t bits = limited <= 14 ? (uint32_t)(15 - limited) << 10 : 1u << (24 - limited);
    return __half2half2(__ushort_as_half((unsigned short)bits));
}

/* Nonzero in the high bit of each byte of `codes` that is NaN or Inf. */
template <fp8flow_dtype dtype> __device__ static inline uint32_t f8_not_finite4(uint32_t codes)
{
    const uint32_t above = 0x01010101u * (0x7Fu - f8_format_of(dtype).max_code);
    return ((codes & 0x7F7F7F7Fu) + above) & 0x80808080u;
}

/* Four rows of four codes to four columns: byte j of a, b, c, d becomes word j. */
__device__ static inline uint4 f8_transpose4(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    uint32_t ab_low = __byte_perm(a, b, 0x5140), ab_high = __byte_perm(a, b, 0x7362);
    uint32_t cd_low = __byte_perm(c, d, 0x5140), cd_high = __byte_perm(c, d, 0x7362);
    return make_uint4(__byte_perm(ab_low, cd_low, 0x5410), __byte_perm(ab_low, cd_low, 0x7632),
                      __byte_perm(ab_high, cd_high, 0x5410), __byte_perm(ab_high, cd_high, 0x7632));
}

#endif
