/* swiglu.cuh - what the CUDA sides of swiglu and swiglu_backward share: the formulas of one element (the twins of
 * swiglu.h), the sigmoid of BF16 numbers from a table, which rows are in use, and the largest magnitude of a block.
 *
 * The inputs are BF16, so a has 65536 values; and f8_sigmoid(a) is 0.5 for |a| < 2^-24 and constant for |a| >= 128
 * (f8_expf limits its argument). What is left are 31 binades of 128 numbers with two signs: a table of 32 KB in shared
 * memory. It is filled with f8_sigmoid itself, so its bits need no proof, and a look-up is 6 instructions where the
 * exponential and the division are 30. Random look-ups meet 3 to 4 bank conflicts per warp: about 9 a clock and SM.
 */
#ifndef F8_OPS_SWIGLU_CUH
#define F8_OPS_SWIGLU_CUH

#include <cuda_bf16.h>

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

__device__ static inline f8_swiglu_slopes f8_swiglu_slopes_of(float a, float b, float w, float g, float sigmoid)
{
    float z = a * sigmoid, gw = g * w, zb = z * b;
    float slope = sigmoid * (1.0f + a * (1.0f - sigmoid));
    return { (gw * b) * slope, gw * z, zb * w, zb * g };
}

/* ---- Sigmoid of BF16 numbers ---- */

/* Entry 4096 + i holds the sigmoid of the number whose BF16 bits are i after scaling by 2^-102, entry 4096 - i that of
 * its negative, i < 4096. Scaled numbers below 128 are subnormal: they stand for |a| < 2^-24. */
enum { F8_SIGMOID_ENTRIES = 8192, F8_SIGMOID_BYTES = F8_SIGMOID_ENTRIES * 4, F8_SIGMOID_LAST = 4095 };

/* All threads of a block; the caller synchronises. */
__device__ static inline void f8_sigmoid_fill(float *table)
{
    for (int i = (int)threadIdx.x; i < F8_SIGMOID_ENTRIES; i += (int)blockDim.x) {
        int bits = i - 4096;
        float magnitude = __uint_as_float((uint32_t)abs(bits) << 16) * 0x1p102f;
        table[i] = f8_sigmoid(bits < 0 ? -magnitude : magnitude);
    }
}

__device__ static inline __nv_bfloat162 f8_bf16_both(uint32_t bits)
{
    __nv_bfloat16_raw raw;
    raw.x = (unsigned short)bits;
    return __bfloat162bfloat162(__nv_bfloat16(raw));
}

/* Byte offsets into the table for a pair, in the low and the high half. The limits turn NaN into some entry: NaN
 * times it is NaN. max gives +0 for -0. The halves of positive - negative + 4096 are in 1 .. 8191: none borrows. */
__device__ static inline uint32_t f8_sigmoid_offsets(uint32_t pair)
{
    __nv_bfloat162 a = *(__nv_bfloat162 *)&pair, zero = f8_bf16_both(0);
    __nv_bfloat162 last = f8_bf16_both(F8_SIGMOID_LAST), lowest = f8_bf16_both(F8_SIGMOID_LAST | 0x8000);
    __nv_bfloat162 scaled = __hmul2_rn(a, f8_bf16_both((127 - 102) << 7));
    scaled = __hmax2(__hmin2(scaled, last), lowest);
    __nv_bfloat162 positive = __hmax2(scaled, zero), negative = __hmax2(__hneg2(scaled), zero);
    return (*(uint32_t *)&positive - *(uint32_t *)&negative) * 4 + 0x40004000u;
}

/* Sigmoids of the low and the high number of a pair. */
__device__ static inline float2 f8_sigmoid_pair(const float *table, uint32_t pair)
{
    uint32_t offsets = f8_sigmoid_offsets(pair);
    const char *base = (const char *)table;
    return make_float2(*(const float *)(base + (offsets & 0xFFFFu)), *(const float *)(base + (offsets >> 16)));
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

/* Bits of the largest finite magnitude of `count` numbers; adds to the count of the others. */
template <int count> __device__ static inline uint32_t f8_magnitude_of(const float (&x)[count], uint32_t *nonfinite)
{
    float largest = fabsf(x[0]);
#pragma unroll
    for (int i = 1; i < count; i++) largest = f8_max_magnitude(largest, x[i]);
    uint32_t bits = __float_as_uint(largest);
    if (bits < 0x7F800000u) return bits;
    bits = 0;
#pragma unroll
    for (int i = 0; i < count; i++) {
        bits = max(bits, f8_finite_magnitude(x[i]));
        *nonfinite += !f8_is_finite(x[i]);
    }
    return bits;
}

/* The contract's counter is added to by whoever found something, which is rare. */
__device__ static inline void f8_add_nonfinite(uint64_t *counter, uint32_t nonfinite)
{
    if (counter && nonfinite) atomicAdd((unsigned long long *)counter, (unsigned long long)nonfinite);
}

/* Multiprocessors of the current device: the blocks of a kernel that fills each of them once. */
static inline fp8flow_status f8_multiprocessors(const char *op, int *count)
{
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
    F8_REQUIRE(error == cudaSuccess, EBACKEND, "%s: cuda: %s", op, cudaGetErrorString(error));
    return FP8FLOW_OK;
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
