/* swiglu.cuh - what the CUDA sides of swiglu and swiglu_backward share: the formulas of one element (the twins of
 * swiglu.h), the sigmoid of BF16 numbers from a table, which rows are in use, and the largest magnitude of a block.
 *
 * The inputs are BF16, so a has 65536 values; and f8_sigmoid(a) is 0.5 for |a| < 2^-25 and constant for |a| >= 128
 * (f8_expf limits its argument). What is left are 32 binades of 128 numbers with two signs: a table of 32 KB in shared
 * memory. A look-up is 4 instructions where the exponential and the division are 30. Random look-ups meet 3 to 4 bank
 * conflicts per warp: about 9 a clock and SM.
 */
#ifndef F8_OPS_SWIGLU_CUH
#define F8_OPS_SWIGLU_CUH

#include "ops/block.cuh"
#include "ops/codes.cuh"
#include "ops/launch.cuh"
#include "ops/nan.h"

/* ---- Formulas. --fmad=false keeps every product and sum a rounding of its own ---- */

__device__ static inline float f8_swiglu_product(float a, float b, float w, float sigmoid)
{
    return ((a * sigmoid) * b) * w;
}

struct f8_swiglu_slopes {
    float da, db, v, dw; /* dw: this element's part of the gate gradient */
};

/* The derivative of a * sigmoid(a). */
__device__ static inline float f8_swiglu_slope(float a, float sigmoid)
{
    return sigmoid * (1.0f + a * (1.0f - sigmoid));
}

__device__ static inline f8_swiglu_slopes f8_swiglu_slopes_of(float a, float b, float w, float g, float sigmoid,
                                                              float slope)
{
    float z = a * sigmoid, gw = g * w, zb = z * b;
    return { (gw * b) * slope, gw * z, zb * w, zb * g };
}

/* ---- Sigmoid of BF16 numbers ---- */

/* Entry i of a table stands for the number with BF16 bits 0x3300 + i % 4096, negative in the upper half. Smaller
 * magnitudes (< 2^-25) share entry 0, larger ones (>= 128) and NaN the last. */
enum { F8_SIGMOID_ENTRIES = 8192, F8_SIGMOID_BYTES = F8_SIGMOID_ENTRIES * 4 };

__device__ static inline float f8_sigmoid_argument(int entry)
{
    uint32_t bits = 0x3300u + ((uint32_t)entry & 0xFFFu);
    return __uint_as_float((bits | ((uint32_t)entry & 0x1000u) << 3) << 16);
}

/* 1 + exp(x) for x from -87.3 to 88.7 with the bits of f8_expf: x is limited, so that the last two factors 2^n are one
 * sum of exponents: n = 128 comes with p < 1, n = -126 with p >= 1. The shift drops the upper bits of 1.5 * 2^23. */
__device__ static inline float f8_sigmoid_denominator(float x)
{
    float shifted = fmaf(x, 1.44269504f, 12582912.0f), n = shifted - 12582912.0f;
    float r = fmaf(n, -1.42860677e-6f, fmaf(n, -0.693145752f, x));
    float p = fmaf(1.98756924e-4f, r, 1.39819994e-3f);
    p = fmaf(p, r, 8.33345205e-3f);
    p = fmaf(p, r, 4.16657962e-2f);
    p = fmaf(p, r, 1.66666657e-1f);
    p = fmaf(p, r, 5.00000000e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    return 1.0f + __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

/* IEEE's 1 / d for these d up to 2^125: one approximation and one Newton step, which the lab compares on all floats. */
__device__ static inline float f8_sigmoid_inverse(float d)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(d));
    return fmaf(y, fmaf(-d, y, 1.0f), y);
}

/* The bits of f8_sigmoid in half the instructions; results below 2^-125 are IEEE's. */
__device__ static inline float f8_sigmoid_quick(float a)
{
    float d = f8_sigmoid_denominator(fminf(fmaxf(-a, -87.3f), 88.7f));
    return d > 0x1p125f ? 1.0f / d : f8_sigmoid_inverse(d);
}

/* The same for |a| < 64, without limits and branches; of other numbers it is any. */
enum { F8_SIGMOID_NEAR = 0x4280 }; /* 64 in BF16 */

__device__ static inline float f8_sigmoid_near(float a)
{
    return f8_sigmoid_inverse(f8_sigmoid_denominator(-a));
}

/* Whether one of the BF16 numbers in `pairs` is NaN or has a magnitude of at least that with the bits `least`. */
template <int count> __device__ static inline bool f8_bf16_reach(const uint32_t (&pairs)[count], uint32_t least)
{
    const uint32_t mask = 0x7FFF7FFFu;
    uint32_t largest = pairs[0] & mask;
#pragma unroll
    for (int i = 1; i < count; i++) largest = __vmaxu2(largest, pairs[i] & mask);
    return ((largest + (0x8000u - least) * 0x10001u) & 0x80008000u) != 0;
}

/* All threads of a block; the caller synchronises. */
__device__ static inline void f8_sigmoid_fill(float *table)
{
    for (int i = (int)threadIdx.x; i < F8_SIGMOID_ENTRIES; i += (int)blockDim.x)
        table[i] = f8_sigmoid_quick(f8_sigmoid_argument(i));
}

/* Numbers of the entries for a pair, times `size` (4 or 8), in the low and the high half. */
template <int size> __device__ static inline uint32_t f8_sigmoid_offsets(uint32_t pair)
{
    const uint32_t near = __viaddmin_s16x2_relu(pair & 0x7FFF7FFFu, 0xCD00CD00u, 0x0FFF0FFFu); /* minus 0x3300 */
    return near * size | (size == 8 ? pair & 0x80008000u : pair >> 1 & 0x40004000u);
}

/* Entries of a table for the low and the high number of a pair. */
template <class Entry>
__device__ static inline void f8_sigmoid_look_up(const Entry *table, uint32_t pair, Entry (&at)[2])
{
    uint32_t offsets = f8_sigmoid_offsets<(int)sizeof(Entry)>(pair);
    at[0] = *(const Entry *)((const char *)table + (offsets & 0xFFFFu));
    at[1] = *(const Entry *)((const char *)table + (offsets >> 16));
}

/* Sigmoids of the low and the high number of a pair. */
__device__ static inline float2 f8_sigmoid_pair(const float *table, uint32_t pair)
{
    float s[2];
    f8_sigmoid_look_up(table, pair, s);
    return make_float2(s[0], s[1]);
}

/* ---- Rows in use ---- */

/* The group of a row, for a thread that asks for rows in ascending order: groups are read only where one ends. */
struct f8_row_cursor {
    int32_t group, begin, valid_end, end;
};

__device__ static inline void f8_cursor_load(const f8_grouping &g, f8_row_cursor *cursor)
{
    cursor->begin = __ldg(g.offset + cursor->group);
    cursor->valid_end = cursor->begin + __ldg(g.rows + cursor->group);
    cursor->end = min(__ldg(g.offset + cursor->group + 1), g.total_rows);
    cursor->valid_end = min(cursor->valid_end, cursor->end);
}

/* Called by whole warps with one row; later calls of f8_cursor_seek are each thread's own. */
__device__ static inline f8_row_cursor f8_cursor_at(const f8_grouping &g, int row)
{
    f8_row_cursor cursor = { 0, 0, g.total_rows, g.total_rows };
    if (!g.is_grouped) return cursor;
    if (g.count == 0) return { 0, 0, 0, 0 };
    cursor.group = max(f8_find_group(g.offset, g.count, row), 0);
    f8_cursor_load(g, &cursor);
    return cursor;
}

__device__ static inline void f8_cursor_seek(const f8_grouping &g, int row, f8_row_cursor *cursor)
{
    while (row >= cursor->end && cursor->group + 1 < g.count) {
        cursor->group++;
        f8_cursor_load(g, cursor);
    }
}

/* Rows that belong to groups: what lies behind is neither read nor written. */
__device__ static inline int f8_used_rows(const f8_grouping &g)
{
    if (!g.is_grouped) return g.total_rows;
    return g.count > 0 ? min(__ldg(g.offset + g.count), g.total_rows) : 0;
}

/* ---- Magnitudes ---- */

/* The larger magnitude; NaN if one of them is NaN. */
__device__ static inline float f8_max_magnitude(float a, float b)
{
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(fabsf(a)), "f"(fabsf(b)));
    return larger;
}

/* NaN if one of them is NaN. */
template <int count> __device__ static inline uint32_t f8_largest_of(const float (&x)[count])
{
    float largest = fabsf(x[0]);
#pragma unroll
    for (int i = 1; i < count; i++) largest = f8_max_magnitude(largest, x[i]);
    return __float_as_uint(largest);
}

/* The slow way: the largest finite magnitude; adds to the count of the others. */
template <int count>
__device__ static inline uint32_t f8_finite_largest_of(const float (&x)[count], uint32_t *nonfinite)
{
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < count; i++) {
        bits = max(bits, f8_finite_magnitude(x[i]));
        *nonfinite += !f8_is_finite(x[i]);
    }
    return bits;
}

/* Bits of the largest finite magnitude of `count` numbers; adds to the count of the others. */
template <int count> __device__ static inline uint32_t f8_magnitude_of(const float (&x)[count], uint32_t *nonfinite)
{
    uint32_t bits = f8_largest_of(x);
    return bits < 0x7F800000u ? bits : f8_finite_largest_of(x, nonfinite);
}

/* f8_scale_byte without its limits: a finite magnitude cannot reach 254. The addition carries into the exponent where
 * the mantissa is above 0x600000. */
template <fp8flow_dtype dtype> __device__ static inline uint32_t f8_scale_byte_quick(uint32_t magnitude)
{
    return (uint32_t)max((int)((magnitude + 0x1FFFFFu) >> 23) - f8_format_of(dtype).max_exponent, 1);
}

/* Scale bytes of two blocks that `lanes` neighbours share, in the low and the high half. Upper halves of magnitudes
 * decide, two matrices in one exchange. */
template <fp8flow_dtype dtype, int lanes>
__device__ static inline uint32_t f8_scale_byte_pair(uint32_t first, uint32_t second)
{
    const uint32_t minus_exponent = (uint32_t)-f8_format_of(dtype).max_exponent & 0xFFFFu;
    uint32_t pair = __byte_perm(first + 0x1FFFFFu, second + 0x1FFFFFu, 0x7632);
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2)
        pair = __vmaxu2(pair, __shfl_xor_sync(F8_ALL_LANES, pair, offset));
    return __viaddmax_s16x2(pair >> 7 & 0x01FF01FFu, minus_exponent * 0x10001u, 0x00010001u);
}

/* f8_scale_inverse of the byte in the low half and in the high half. */
__device__ static inline float f8_inverse_low(uint32_t bytes)
{
    return __uint_as_float(0x7F000000u - (bytes << 23));
}

__device__ static inline float f8_inverse_high(uint32_t bytes)
{
    return __uint_as_float(0x7F000000u - ((bytes & 0xFFFF0000u) << 7));
}

/* The contract's counter is added to by whoever found something, which is rare. */
__device__ static inline void f8_add_nonfinite(uint64_t *counter, uint32_t nonfinite)
{
    if (counter && nonfinite) atomicAdd((unsigned long long *)counter, (unsigned long long)nonfinite);
}

/* More than 48 KB of shared memory for a kernel: asked for at every launch, since each device has its own setting. */
template <class Kernel> static inline fp8flow_status f8_allow_shared(const char *op, Kernel kernel, int bytes)
{
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    F8_REQUIRE(error == cudaSuccess, EBACKEND, "%s: %d bytes of shared memory: %s", op, bytes,
               cudaGetErrorString(error));
    return FP8FLOW_OK;
}

#endif
