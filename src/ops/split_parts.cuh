/* split_parts.cuh - F32 operands as BF16 parts, for tensor cores that take nothing wider.
 *
 * The 24 bits of a number are three times eight: x = high + middle + low, each the first eight bits of what is left,
 * cut off, not rounded: nothing overflows and all parts have x's sign. Infinity and NaN are all in the high part.
 * Traffic: 4 bytes read per number, 2 written per part; a thread has 8 numbers and writes 16 bytes of each part.
 */
#ifndef F8_OPS_SPLIT_PARTS_CUH
#define F8_OPS_SPLIT_PARTS_CUH

#include "ops/launch.cuh"
#include "ops/warp.cuh"

enum { F8_PARTS_THREADS = 256, F8_PARTS_PIECE = 8 };

/* FINITE_HIGH: 0 for Inf and NaN, so that these meet the other operand once, and Inf * 0 appears nowhere else. */
enum f8_part { F8_PART_HIGH, F8_PART_FINITE_HIGH, F8_PART_MIDDLE, F8_PART_LOW };

/* Each part has sums of its own. The middle ones are multiplied by 2^8, the low ones by 2^16: BF16 ends at 2^-133, and
 * of numbers of FP32, which ends at 2^-149, nothing is lost. */
struct f8_parts_side_by_side {
    static const int count = 3;
    __device__ static constexpr float step() { return 0x1p8f; }
    __device__ static constexpr f8_part at(int i)
    {
        return i == 0 ? F8_PART_HIGH : i == 1 ? F8_PART_MIDDLE : F8_PART_LOW;
    }
};

/* Pairs of parts along one contraction: what is left out (middle * low, low * middle, low * low) is below 2^-21 of a
 * product and 0 where FP32 holds the product. What lies below 2^-133 of a number is lost. */
struct f8_parts_left {
    static const int count = 6;
    __device__ static constexpr float step() { return 1.0f; }
    __device__ static constexpr f8_part at(int i)
    {
        return i == 0 ? F8_PART_HIGH : i == 1 || i == 3 ? F8_PART_FINITE_HIGH : i == 4 ? F8_PART_LOW : F8_PART_MIDDLE;
    }
};

struct f8_parts_right {
    static const int count = 6;
    __device__ static constexpr float step() { return 1.0f; }
    __device__ static constexpr f8_part at(int i)
    {
        return i == 0 ? F8_PART_HIGH : i == 2 || i == 4 ? F8_PART_FINITE_HIGH : i == 3 ? F8_PART_LOW : F8_PART_MIDDLE;
    }
};

struct f8_parts {
    float high, middle, low; /* the upper halves are the BF16 parts */
    bool is_finite;
};

__device__ static inline float f8_first_half(float x)
{
    return __uint_as_float(__float_as_uint(x) & 0xFFFF0000u);
}

/* All differences and products are exact. */
__device__ static inline f8_parts f8_split(float x, float step)
{
    f8_parts p;
    p.is_finite = (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u;
    p.high = x == x ? f8_first_half(x) : __uint_as_float(0x7FC00000u); /* a NaN cut off may be an Inf */
    float rest = p.is_finite ? (x - p.high) * step : 0.0f;
    p.middle = f8_first_half(rest);
    p.low = (rest - p.middle) * step;
    return p;
}

__device__ static inline uint32_t f8_part_bits(const f8_parts &p, f8_part which)
{
    switch (which) {
    case F8_PART_HIGH: return __float_as_uint(p.high);
    case F8_PART_FINITE_HIGH: return p.is_finite ? __float_as_uint(p.high) : 0;
    case F8_PART_MIDDLE: return __float_as_uint(p.middle);
    default: return __float_as_uint(p.low);
    }
}

/* The BF16 parts of two numbers in one word, the first in its low half. */
__device__ static inline uint32_t f8_part_pair(const f8_parts &first, const f8_parts &second, f8_part which)
{
    return __byte_perm(f8_part_bits(first, which), f8_part_bits(second, which), 0x7632);
}

/* One part of 8 numbers. */
__device__ static inline uint4 f8_part_piece(const f8_parts (&p)[F8_PARTS_PIECE], f8_part which)
{
    return make_uint4(f8_part_pair(p[0], p[1], which), f8_part_pair(p[2], p[3], which),
                      f8_part_pair(p[4], p[5], which), f8_part_pair(p[6], p[7], which));
}

/* Numbers [rows, cols] to parts: `tile` lines of a part, then as many of the next; `lines` of them, `stride` long, 0
 * where there is no number. */
struct f8_parts_job {
    const float *from;
    int64_t from_stride;
    int32_t rows, cols;
    uint16_t *to;
    int64_t stride; /* a multiple of 8 */
    int32_t lines, tile;

    __device__ uint4 *place(int32_t line, int64_t col, int part, int parts) const
    {
        return (uint4 *)(to + (((int64_t)(line / tile) * parts + part) * tile + line % tile) * stride + col);
    }
};

/* Lines of parts are rows of numbers, which are whole pieces of 16 bytes. A thread has 8 columns. */
template <class Parts> __global__ static void __launch_bounds__(F8_PARTS_THREADS) split_rows_kernel(f8_parts_job job)
{
    int64_t pieces = job.stride / F8_PARTS_PIECE, index = (int64_t)blockIdx.x * F8_PARTS_THREADS + threadIdx.x;
    if (index >= job.lines * pieces) return;
    int32_t row = (int32_t)(index / pieces);
    int64_t col = index % pieces * F8_PARTS_PIECE;
    const float *from = job.from + row * job.from_stride + col;
    float value[F8_PARTS_PIECE];
    if (row < job.rows && col + F8_PARTS_PIECE <= job.cols) {
        float4 first = __ldg((const float4 *)from), second = __ldg((const float4 *)from + 1);
        value[0] = first.x, value[1] = first.y, value[2] = first.z, value[3] = first.w;
        value[4] = second.x, value[5] = second.y, value[6] = second.z, value[7] = second.w;
    } else {
#pragma unroll
        for (int i = 0; i < F8_PARTS_PIECE; i++)
            value[i] = row < job.rows && col + i < job.cols ? __ldg(from + i) : 0.0f;
    }
    f8_parts x[F8_PARTS_PIECE];
#pragma unroll
    for (int i = 0; i < F8_PARTS_PIECE; i++) x[i] = f8_split(value[i], Parts::step());
#pragma unroll
    for (int i = 0; i < Parts::count; i++) *job.place(row, col, i, Parts::count) = f8_part_piece(x, Parts::at(i));
}

/* Lines of parts are columns of numbers. A thread has 8 rows; lanes run along the rows of memory. */
template <class Parts> __global__ static void __launch_bounds__(F8_PARTS_THREADS) split_columns_kernel(f8_parts_job job)
{
    int64_t index = (int64_t)blockIdx.x * F8_PARTS_THREADS + threadIdx.x;
    int32_t col = (int32_t)(index % job.lines);
    int64_t row = index / job.lines * F8_PARTS_PIECE;
    if (row >= job.stride) return;
    const float *from = job.from + row * job.from_stride + col;
    f8_parts x[F8_PARTS_PIECE];
#pragma unroll
    for (int i = 0; i < F8_PARTS_PIECE; i++)
        x[i] = f8_split(row + i < job.rows && col < job.cols ? __ldg(from + i * job.from_stride) : 0.0f, Parts::step());
#pragma unroll
    for (int i = 0; i < Parts::count; i++) *job.place(col, row, i, Parts::count) = f8_part_piece(x, Parts::at(i));
}

/* Both take one thread for 8 columns of one line of parts. */
template <class Kernel> static void f8_split_launch(fp8flow_context *c, Kernel *kernel, const f8_parts_job &job)
{
    int64_t threads = job.lines * (job.stride / F8_PARTS_PIECE);
    kernel<<<f8_grid(threads, F8_PARTS_THREADS), F8_PARTS_THREADS, 0, f8_stream(c)>>>(job);
}

#endif
