/* warp.cuh - pieces of every kernel: 16-byte access, reductions over a warp, BF16 pairs.
 *
 * Loads of data that is read once go past L1 and are the first to leave L2 (ld.cs); stores likewise (st.cs).
 */
#ifndef F8_OPS_WARP_CUH
#define F8_OPS_WARP_CUH

#include "base/fp8.h"

enum { F8_WARP = 32 };
static const unsigned F8_ALL_LANES = 0xFFFFFFFFu;

__device__ static inline int f8_lane()
{
    return (int)(threadIdx.x % F8_WARP);
}

/* 16 bytes, aligned, read once / written once. */
__device__ static inline uint4 f8_load16(const void *from)
{
    return __ldcs((const uint4 *)from);
}

__device__ static inline void f8_store16(void *to, uint4 value)
{
    __stcs((uint4 *)to, value);
}

/* The first `valid` of four numbers, 0 for the others; read once. wide: all four or none, 16 bytes aligned. */
template <bool wide> __device__ static inline float4 f8_load4(const float *from, int valid)
{
    if (wide) return valid > 0 ? __ldcs((const float4 *)from) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return make_float4(valid > 0 ? from[0] : 0.0f, valid > 1 ? from[1] : 0.0f, valid > 2 ? from[2] : 0.0f,
                       valid > 3 ? from[3] : 0.0f);
}

/* Whether pointer and stride (in bytes) allow 16-byte access to every line. */
static inline bool f8_aligned16(const void *data, int64_t stride_bytes)
{
    return ((uintptr_t)data | (uintptr_t)stride_bytes) % 16 == 0;
}

/* Reductions over `width` neighbouring lanes (a power of two); every lane has the result. */
template <int width = F8_WARP> __device__ static inline uint32_t f8_warp_max(uint32_t x)
{
#pragma unroll
    for (int offset = width / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(F8_ALL_LANES, x, offset));
    return x;
}

/* NaN does not count; all NaN gives NaN. */
template <int width = F8_WARP> __device__ static inline float f8_warp_max(float x)
{
#pragma unroll
    for (int offset = width / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(F8_ALL_LANES, x, offset));
    return x;
}

template <int width = F8_WARP> __device__ static inline float f8_warp_sum(float x)
{
#pragma unroll
    for (int offset = width / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(F8_ALL_LANES, x, offset);
    return x;
}

template <int width = F8_WARP> __device__ static inline double f8_warp_sum(double x)
{
#pragma unroll
    for (int offset = width / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(F8_ALL_LANES, x, offset);
    return x;
}

/* A pair of BF16 numbers in one word: the first is the low half. */
__device__ static inline float f8_bf16_low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

__device__ static inline float f8_bf16_high(uint32_t pair)
{
    return __uint_as_float(pair & 0xFFFF0000u);
}

/* RNE of both, NaN as the canonical 0x7FFF of the hardware: callers of class E canonicalise (f8_bf16_pair). */
__device__ static inline uint32_t f8_bf16_pair_fast(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* The bits of f8_bf16_encode(f8_canonical(x)) for both: NaN is 0x7FC0. */
__device__ static inline uint32_t f8_bf16_pair(float low, float high)
{
    uint32_t pair = f8_bf16_pair_fast(low, high);
    if (low != low) pair = (pair & 0xFFFF0000u) | 0x7FC0u;
    if (high != high) pair = (pair & 0xFFFFu) | 0x7FC00000u;
    return pair;
}

/* Eight BF16 numbers of a 16-byte piece. */
struct f8_octet {
    float at[8];
};

__device__ static inline f8_octet f8_unpack8(uint4 piece)
{
    return { { f8_bf16_low(piece.x), f8_bf16_high(piece.x), f8_bf16_low(piece.y), f8_bf16_high(piece.y),
               f8_bf16_low(piece.z), f8_bf16_high(piece.z), f8_bf16_low(piece.w), f8_bf16_high(piece.w) } };
}

/* NaN as f8_bf16_pair_fast gives it. */
__device__ static inline uint4 f8_pack8_fast(const f8_octet &x)
{
    return make_uint4(f8_bf16_pair_fast(x.at[0], x.at[1]), f8_bf16_pair_fast(x.at[2], x.at[3]),
                      f8_bf16_pair_fast(x.at[4], x.at[5]), f8_bf16_pair_fast(x.at[6], x.at[7]));
}

#endif
