/* quantize_rows.cuh - what the kernels of quantize.cu share, and the one for the row form alone. */
#ifndef F8_OPS_QUANTIZE_ROWS_CUH
#define F8_OPS_QUANTIZE_ROWS_CUH

#include "ops/launch.cuh"
#include "ops/piece.cuh"
#include "ops/row_states.cuh"

#include <limits.h>

enum {
    THREADS = 256,
    WARPS = THREADS / F8_WARP,
    ROW_LANES = 8,                     /* that hold a block in the rows kernel, */
    LANE_COLUMNS = F8_BLOCK / ROW_LANES,
    UNIT_COLUMNS = F8_WARP * LANE_COLUMNS,
    WARP_COLUMNS = F8_WARP * F8_PIECE, /* of one load of a warp that has one row */
    TILE_ROWS = 8                      /* of a thread in the tiles kernel */
};

/* What the kernels work on; rows.data or columns.data may be NULL. */
struct quantize_job {
    fp8flow_tensor x, rows, columns;
    f8_grouping grouping;
    unsigned long long *nonfinite;
};

/* f8_scale_byte, whose case of an empty block the clamp covers. Returns the factor of the values. */
__device__ static float block_factor(uint32_t amax, fp8flow_dtype out, uint8_t *byte)
{
    *byte = (uint8_t)min(max(f8_scale_exponent(amax, out), 1), 254);
    return f8_scale_inverse(*byte);
}

/* Columns from `col` on; more than a thread can have count as many. */
__device__ static int columns_left(const fp8flow_tensor &x, int64_t col)
{
    return (int)min(x.cols - col, (int64_t)INT_MAX);
}

/* Sums of integers have no order, and nearly every warp has nothing to add. */
__device__ static void count_nonfinite(unsigned long long *counter, uint32_t count)
{
    uint32_t sum = __reduce_add_sync(F8_ALL_LANES, count);
    if (counter && sum > 0 && f8_lane() == 0) atomicAdd(counter, sum);
}

/* ---- Row form alone ---- */

/* Of a thread, all in flight at once: 128 bytes. */
template <fp8flow_dtype in, bool wide> constexpr int row_units = wide && in == FP8FLOW_BF16 ? 4 : 2;

/* Sixteen neighbouring values of a row: eight lanes hold a block. */
template <fp8flow_dtype in> struct row_unit {
    f8_piece<in> low, high;
};

/* Neighbouring 16-byte loads of a lane share sectors: unlike f8_piece_load this keeps them in L1 from one to the
 * next. */
template <fp8flow_dtype in, bool wide> __device__ static f8_piece<in> load_piece(const char *from, int left)
{
    if constexpr (!wide) {
        return f8_piece_load<in, false>(from, left);
    } else {
        f8_piece<in> p = {};
#pragma unroll
        for (int w = 0; w < p.words; w += 4) {
            uint4 four = left > 0 ? __ldg((const uint4 *)(from + 4 * w)) : make_uint4(0, 0, 0, 0);
            p.word[w] = four.x, p.word[w + 1] = four.y, p.word[w + 2] = four.z, p.word[w + 3] = four.w;
        }
        return p;
    }
}

template <fp8flow_dtype in, bool wide> __device__ static row_unit<in> load_unit(const char *from, int left)
{
    return { load_piece<in, wide>(from, left),
             load_piece<in, wide>(from + F8_PIECE * f8_value_bytes<in>, left - F8_PIECE) };
}

template <fp8flow_dtype in, fp8flow_dtype out, bool wide>
__device__ static void store_unit(uint8_t *to, int left, const row_unit<in> &unit, float factor)
{
    uint2 low = f8_piece_encode<in, out>(unit.low, factor), high = f8_piece_encode<in, out>(unit.high, factor);
    if (wide && left >= LANE_COLUMNS) {
        f8_store16(to, make_uint4(low.x, low.y, high.x, high.y));
        return;
    }
    f8_piece_store<wide>(to, left, low);
    f8_piece_store<wide>(to + F8_PIECE, left - F8_PIECE, high);
}

__device__ static float tensor_factor(const fp8flow_tensor &y, int row, int group)
{
    return 1.0f / ((const float *)y.scale)[y.group_rows > 0 ? row / (int)y.group_rows : group];
}

template <fp8flow_dtype in> __device__ static uint32_t unit_nonfinite(const row_unit<in> &unit)
{
    uint32_t nonfinite = 0;
    f8_piece_magnitudes(unit.low, nonfinite);
    f8_piece_magnitudes(unit.high, nonfinite);
    return nonfinite;
}

/* Scale byte of the unit's block to `scale`; returns the factor of its values. */
template <fp8flow_dtype in, fp8flow_dtype out>
__device__ static float unit_factor(const row_unit<in> &unit, uint8_t *scale, bool stores, uint32_t &nonfinite)
{
    f8_piece<in> larger =
        f8_piece_larger(f8_piece_magnitudes(unit.low, nonfinite), f8_piece_magnitudes(unit.high, nonfinite));
    uint8_t byte;
    float factor = block_factor(f8_warp_max<ROW_LANES>(f8_piece_largest(larger)), out, &byte);
    if (stores && f8_lane() % ROW_LANES == 0) *scale = byte;
    return factor;
}

/* Units are numbered along rows; those of a warp are WARPS apart, so that a block of threads reads one stretch. */
struct unit_place {
    int64_t row, col;
};

__device__ static unit_place unit_place_of(uint32_t unit, uint32_t strips)
{
    return { unit / strips, (int64_t)(unit % strips) * UNIT_COLUMNS + f8_lane() * LANE_COLUMNS };
}

template <fp8flow_dtype in, fp8flow_dtype out, fp8flow_scaling scaling, bool wide>
__global__ static void __launch_bounds__(THREADS) quantize_rows_kernel(const __grid_constant__ quantize_job job)
{
    const int units = row_units<in, wide>;
    const fp8flow_tensor &x = job.x, &y = job.rows;
    const uint32_t strips = (uint32_t)f8_ceil_div(x.cols, UNIT_COLUMNS);
    uint32_t first = blockIdx.x * units * WARPS + threadIdx.x / F8_WARP, written = 0, nonfinite = 0;
    int last_row = (int)min((int64_t)((first + (units - 1) * WARPS) / strips), x.rows - 1);
    f8_device_span span = {};
    row_unit<in> unit[units];
    float factor[units];
#pragma unroll
    for (int u = 0; u < units; u++) {
        unit_place p = unit_place_of(first + u * WARPS, strips);
        unit[u] = {};
        if (p.row > last_row) continue;
        span = f8_span_reaching(job.grouping, span, (int)p.row, last_row);
        if (p.row >= span.row + span.rows) continue;
        written |= 1u << u;
        if (scaling == FP8FLOW_TENSOR) factor[u] = tensor_factor(y, (int)p.row, span.group);
        if (p.row < span.row + span.valid)
            unit[u] = load_unit<in, wide>((const char *)x.data + (p.row * x.stride + p.col) * f8_value_bytes<in>,
                                          columns_left(x, p.col));
    }
#pragma unroll
    for (int u = 0; u < units; u++) {
        if (!(written >> u & 1)) continue;
        unit_place p = unit_place_of(first + u * WARPS, strips);
        int left = columns_left(x, p.col);
        uint8_t *scale = (uint8_t *)y.scale + p.row * f8_ceil_div(x.cols, F8_BLOCK) + p.col / F8_BLOCK;
        if (scaling == FP8FLOW_ROW128) factor[u] = unit_factor<in, out>(unit[u], scale, left > 0, nonfinite);
        else nonfinite += unit_nonfinite(unit[u]);
        store_unit<in, out, wide>((uint8_t *)y.data + p.row * y.stride + p.col, left, unit[u], factor[u]);
    }
    count_nonfinite(job.nonfinite, nonfinite);
}

/* The same for BF16 rows that follow one another without gaps, groups or short blocks, as the tokens of a layer do:
 * blocks are numbered through, and nothing but their number is computed. */
enum { DENSE_UNITS = 2, DENSE_BLOCKS = DENSE_UNITS * THREADS / ROW_LANES };

template <fp8flow_dtype out>
__global__ static void __launch_bounds__(THREADS) quantize_dense_kernel(const __grid_constant__ quantize_job job,
                                                                        int64_t num_blocks)
{
    int64_t first = (int64_t)blockIdx.x * DENSE_BLOCKS + threadIdx.x / ROW_LANES;
    int64_t place = first * F8_BLOCK + threadIdx.x % ROW_LANES * LANE_COLUMNS;
    row_unit<FP8FLOW_BF16> unit[DENSE_UNITS];
    uint32_t nonfinite = 0;
#pragma unroll
    for (int u = 0; u < DENSE_UNITS; u++) {
        int64_t at = place + u * (THREADS / ROW_LANES) * F8_BLOCK;
        int left = first + u * (THREADS / ROW_LANES) < num_blocks ? LANE_COLUMNS : 0;
        unit[u] = load_unit<FP8FLOW_BF16, true>((const char *)((const uint16_t *)job.x.data + at), left);
    }
#pragma unroll
    for (int u = 0; u < DENSE_UNITS; u++) {
        int64_t block = first + u * (THREADS / ROW_LANES), at = place + u * (THREADS / ROW_LANES) * F8_BLOCK;
        bool inside = block < num_blocks;
        float factor = unit_factor<FP8FLOW_BF16, out>(unit[u], (uint8_t *)job.rows.scale + block, inside, nonfinite);
        if (inside) store_unit<FP8FLOW_BF16, out, true>((uint8_t *)job.rows.data + at, LANE_COLUMNS, unit[u], factor);
    }
    count_nonfinite(job.nonfinite, nonfinite);
}

#endif
