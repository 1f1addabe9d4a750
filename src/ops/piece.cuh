/* piece.cuh - eight neighbouring values of a row, the share of one lane: 16 bytes of BF16 or 32 of FP32.
 *
 * Sixteen lanes hold one row of a 128-column block, so that a half-warp reads 256 or 512 bytes in one line and writes
 * 128 bytes of codes in one line. Values stay in their own format until they are encoded; magnitudes are compared as
 * integers, two BF16 numbers at a time.
 */
#ifndef F8_OPS_PIECE_CUH
#define F8_OPS_PIECE_CUH

#include "ops/codes.cuh"
#include "ops/warp.cuh"

enum { F8_PIECE = 8, F8_PIECE_LANES = 16 };

template <fp8flow_dtype dtype> struct f8_piece {
    static const int words = dtype == FP8FLOW_F32 ? 8 : 4;
    uint32_t word[words];
};

template <fp8flow_dtype dtype> constexpr int f8_value_bytes = dtype == FP8FLOW_F32 ? 4 : 2;

/* The values at `from`, of which there are `left`, perhaps none or more than eight; 0 for those that are missing.
 * `wide`: `from` is aligned to 16 bytes and `left` a multiple of eight. */
template <fp8flow_dtype dtype, bool wide>
__device__ static inline f8_piece<dtype> f8_piece_load(const char *from, int left)
{
    f8_piece<dtype> p = {};
    if constexpr (wide) {
#pragma unroll
        for (int w = 0; w < p.words; w += 4) {
            uint4 four = left > 0 ? f8_load16(from + 4 * w) : make_uint4(0, 0, 0, 0);
            p.word[w] = four.x, p.word[w + 1] = four.y, p.word[w + 2] = four.z, p.word[w + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < F8_PIECE; i++) {
            if (i >= left) continue;
            if (dtype == FP8FLOW_F32) p.word[i % p.words] = ((const uint32_t *)from)[i];
            else p.word[i / 2] |= (uint32_t)((const uint16_t *)from)[i] << (i % 2 * 16);
        }
    }
    return p;
}

/* Value i, a constant once loops are unrolled. */
template <fp8flow_dtype dtype> __device__ static inline float f8_piece_value(const f8_piece<dtype> &p, int i)
{
    if (dtype == FP8FLOW_F32) return __uint_as_float(p.word[i % p.words]);
    return i % 2 ? f8_bf16_high(p.word[i / 2]) : f8_bf16_low(p.word[i / 2]);
}

/* f8_finite_magnitude of each value; adds the NaN and Inf among them to `nonfinite`. */
template <fp8flow_dtype dtype>
__device__ static inline f8_piece<dtype> f8_piece_magnitudes(const f8_piece<dtype> &p, uint32_t &nonfinite)
{
    const bool pairs = dtype == FP8FLOW_BF16;
    const uint32_t mask = pairs ? 0x7FFF7FFFu : 0x7FFFFFFFu;
    const uint32_t above = pairs ? 0x00800080u : 0x00800000u; /* carries NaN and Inf into the sign's place */
    f8_piece<dtype> m;
    uint32_t special = 0;
#pragma unroll
    for (int w = 0; w < p.words; w++) {
        m.word[w] = p.word[w] & mask;
        special |= m.word[w] + above;
    }
    if ((special & ~mask) == 0) return m;
#pragma unroll
    for (int w = 0; w < p.words; w++) {
        uint32_t bad = (m.word[w] + above) & ~mask;
        nonfinite += __popc(bad);
        m.word[w] &= ~(pairs ? (bad >> 15) * 0xFFFFu : (bad >> 31) * 0xFFFFFFFFu);
    }
    return m;
}

/* The larger of each pair of magnitudes. */
template <fp8flow_dtype dtype>
__device__ static inline f8_piece<dtype> f8_piece_larger(const f8_piece<dtype> &a, const f8_piece<dtype> &b)
{
    f8_piece<dtype> larger;
#pragma unroll
    for (int w = 0; w < a.words; w++)
        larger.word[w] = dtype == FP8FLOW_BF16 ? __vmaxu2(a.word[w], b.word[w]) : max(a.word[w], b.word[w]);
    return larger;
}

/* The largest of eight magnitudes, as the bits of an FP32 number. */
template <fp8flow_dtype dtype> __device__ static inline uint32_t f8_piece_largest(const f8_piece<dtype> &m)
{
    uint32_t largest = m.word[0];
#pragma unroll
    for (int w = 1; w < m.words; w++)
        largest = dtype == FP8FLOW_BF16 ? __vmaxu2(largest, m.word[w]) : max(largest, m.word[w]);
    return dtype == FP8FLOW_BF16 ? max(largest << 16, largest & 0xFFFF0000u) : largest;
}

/* Codes of the values times `factor`, the first in the lowest byte. */
template <fp8flow_dtype in, fp8flow_dtype out>
__device__ static inline uint2 f8_piece_encode(const f8_piece<in> &p, float factor)
{
    float v[F8_PIECE];
#pragma unroll
    for (int i = 0; i < F8_PIECE; i++) v[i] = f8_piece_value(p, i) * factor;
    return make_uint2(f8_encode4<out>(v[0], v[1], v[2], v[3]), f8_encode4<out>(v[4], v[5], v[6], v[7]));
}

/* Codes of the values that f8_piece_load would find. */
template <bool wide> __device__ static inline void f8_piece_store(uint8_t *to, int left, uint2 codes)
{
    if constexpr (wide) {
        if (left > 0) __stcs((uint2 *)to, codes);
    } else {
#pragma unroll
        for (int i = 0; i < F8_PIECE; i++)
            if (i < left) to[i] = (uint8_t)((i < 4 ? codes.x : codes.y) >> (i % 4 * 8));
    }
}

#endif
