/* measure.cu - CUDA side of measure. Contract: fp8flow_ops.h. CPU side: measure.c.
 *
 * Up to MAX_BLOCKS blocks of threads take tiles of 128 rows x 64 columns in turn (code_tile.cuh), each lane two columns
 * of 16 rows; a tree over lanes and warps, then one thread per block leaves a partial result in scratch, and a last
 * block of one warp adds those up. Which elements a lane sums, and every order, follow from the shape alone.
 */
#include "ops/code_tile.cuh"
#include "ops/launch.cuh"

#include <limits.h>

enum { MAX_BLOCKS = 1056, WARPS = F8_CODE_THREADS / F8_WARP };

static_assert(MAX_BLOCKS * sizeof(fp8flow_tensor_stats) <= F8_CUDA_SCRATCH_BYTES, "partial results fit into scratch");

__device__ static fp8flow_tensor_stats no_stats()
{
    fp8flow_tensor_stats s = {};
    s.min_exponent = INT_MAX;
    s.max_exponent = INT_MIN;
    return s;
}

/* One element, as count_element of measure.c. */
__device__ static void count_element(fp8flow_tensor_stats &s, double x, uint8_t code, fp8flow_dtype dtype, double scale)
{
    f8_format format = f8_format_of(dtype);
    int magnitude = code & 0x7F;
    bool finite = isfinite(x);
    s.count++;
    s.zeros += x == 0.0;
    s.underflow += finite && x != 0.0 && magnitude == 0;
    s.subnormal += magnitude > 0 && magnitude < 1 << format.mantissa_bits;
    s.saturated += fabs(x) > (double)format.max * scale;
    s.nonfinite += !finite;
    if (x != 0.0) {
        int exponent = ilogb(scale);
        s.min_exponent = min(s.min_exponent, exponent);
        s.max_exponent = max(s.max_exponent, exponent);
    }
    if (!finite) return;
    double error = x - (double)f8_decode(code, dtype) * scale;
    s.amax = fmax(s.amax, fabs(x));
    s.signal += x * x;
    s.noise += error * error;
}

__device__ static void add_stats(fp8flow_tensor_stats &s, const fp8flow_tensor_stats &other)
{
    s.count += other.count;
    s.zeros += other.zeros;
    s.underflow += other.underflow;
    s.subnormal += other.subnormal;
    s.saturated += other.saturated;
    s.nonfinite += other.nonfinite;
    s.min_exponent = min(s.min_exponent, other.min_exponent);
    s.max_exponent = max(s.max_exponent, other.max_exponent);
    s.amax = fmax(s.amax, other.amax);
    s.signal += other.signal;
    s.noise += other.noise;
}

/* What the lane `offset` further on has. */
__device__ static fp8flow_tensor_stats stats_of_lane(const fp8flow_tensor_stats &s, int offset)
{
    fp8flow_tensor_stats other;
    other.count = __shfl_down_sync(F8_ALL_LANES, s.count, offset);
    other.zeros = __shfl_down_sync(F8_ALL_LANES, s.zeros, offset);
    other.underflow = __shfl_down_sync(F8_ALL_LANES, s.underflow, offset);
    other.subnormal = __shfl_down_sync(F8_ALL_LANES, s.subnormal, offset);
    other.saturated = __shfl_down_sync(F8_ALL_LANES, s.saturated, offset);
    other.nonfinite = __shfl_down_sync(F8_ALL_LANES, s.nonfinite, offset);
    other.min_exponent = __shfl_down_sync(F8_ALL_LANES, s.min_exponent, offset);
    other.max_exponent = __shfl_down_sync(F8_ALL_LANES, s.max_exponent, offset);
    other.amax = __shfl_down_sync(F8_ALL_LANES, s.amax, offset);
    other.signal = __shfl_down_sync(F8_ALL_LANES, s.signal, offset);
    other.noise = __shfl_down_sync(F8_ALL_LANES, s.noise, offset);
    return other;
}

/* Lane 0 has the result. */
__device__ static void add_lanes(fp8flow_tensor_stats &s)
{
    for (int offset = F8_WARP / 2; offset > 0; offset /= 2) add_stats(s, stats_of_lane(s, offset));
}

__device__ static double input_value(const fp8flow_tensor &x, int64_t index)
{
    if (x.dtype == FP8FLOW_F32) return ((const float *)x.data)[index];
    return f8_bf16_decode(((const uint16_t *)x.data)[index]);
}

/* This warp's rows of one tile. */
__device__ static void count_tile(fp8flow_tensor_stats &s, const fp8flow_tensor &x, const fp8flow_tensor &q,
                                  const f8_code_place &p, const f8_code_memory &memory)
{
    for (int r = 0; r < F8_STATE_ROWS; r++) {
        int group = __shfl_sync(F8_ALL_LANES, p.states.group, r), row = p.row + r;
        if (!(p.states.valid >> r & 1)) continue;
        for (int col = f8_lane(); col < F8_CODE_COLS && p.col + col < q.cols; col += F8_WARP) {
            double value = input_value(x, (int64_t)(p.rows.first + row) * x.stride + p.col + col);
            count_element(s, value, memory.code[row][col], q.dtype, f8_code_scale(q, p, row, col, group));
        }
    }
}

__global__ static void __launch_bounds__(F8_CODE_THREADS)
    measure_kernel(fp8flow_tensor x, fp8flow_tensor q, f8_grouping grouping, int64_t tiles,
                   fp8flow_tensor_stats *partial)
{
    __shared__ f8_code_memory memory;
    __shared__ uint32_t valid[WARPS];
    __shared__ fp8flow_tensor_stats of_warp[WARPS];
    fp8flow_tensor_stats s = no_stats();
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        f8_code_place p = f8_code_place_of(q, grouping, tile);
        if (p.rows.end <= p.rows.first) continue;
        __syncthreads(); /* the codes of the tile before have been read */
        f8_code_load(q, p, memory, valid);
        count_tile(s, x, q, p, memory);
    }
    add_lanes(s);
    if (f8_lane() == 0) of_warp[threadIdx.x / F8_WARP] = s;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int w = 1; w < WARPS; w++) add_stats(s, of_warp[w]);
    partial[blockIdx.x] = s;
}

/* One warp. */
__global__ static void measure_sum_kernel(const fp8flow_tensor_stats *partial, int count, fp8flow_tensor_stats *stats)
{
    fp8flow_tensor_stats s = no_stats();
    for (int i = f8_lane(); i < count; i += F8_WARP) add_stats(s, partial[i]);
    add_lanes(s);
    if (f8_lane() > 0) return;
    if (s.min_exponent > s.max_exponent) s.min_exponent = s.max_exponent = 0;
    *stats = s;
}

extern "C" fp8flow_status f8_cuda_measure(fp8flow_context *c, const fp8flow_measure_args *a)
{
    fp8flow_tensor_stats *partial = (fp8flow_tensor_stats *)f8_cuda_scratch(c);
    int64_t tiles = f8_code_tiles(a->q);
    if (a->groups && a->groups->count == 0) tiles = 0;
    int blocks = (int)(tiles < MAX_BLOCKS ? tiles : MAX_BLOCKS);
    if (blocks > 0)
        measure_kernel<<<blocks, F8_CODE_THREADS, 0, f8_stream(c)>>>(*a->x, *a->q, f8_grouping_of(a->q, a->groups),
                                                                    tiles, partial);
    measure_sum_kernel<<<1, F8_WARP, 0, f8_stream(c)>>>(partial, blocks, a->stats);
    return f8_launched("measure");
}
