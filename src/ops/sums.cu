/* sums.cu - CUDA side of sum, square_sum, add_counts and clip. Contracts: fp8flow_ops.h. CPU side: sums.c.
 *
 * sum, square_sum: a warp adds one block of 4096 values, one block of threads adds the sums. Traffic: 4 bytes per
 * value. add_counts: a thread per counter, 24 bytes. clip: one thread; its few numbers are added in ascending order.
 */
#include "ops/launch.cuh"
#include "ops/warp.cuh"

/* ---- sum, square_sum ---- */

enum { BLOCK = 4096, THREADS = 256, UNROLL = 8, TOTAL_THREADS = 1024 }; /* BLOCK: of the contract */

/* What is added up for a value. The square of an FP32 number is exact in FP64. */
enum sum_power { VALUES, SQUARES };

template <sum_power power> __device__ static inline double add_to(double sum, float x)
{
    return power == SQUARES ? fma((double)x, (double)x, sum) : sum + (double)x;
}

/* Lane l adds the values 128 i + 4 l + j of its warp's block, i ascending, one sum for each j, whatever the
 * alignment. */
template <sum_power power, bool wide>
__global__ static void sum_block_kernel(const float *x, int64_t count, int64_t num_blocks, double *partial)
{
    const int stride = F8_WARP * 4;
    int64_t block = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / F8_WARP;
    if (block >= num_blocks) return;
    int64_t first = block * BLOCK + 4 * f8_lane();
    double sum[4] = { 0.0, 0.0, 0.0, 0.0 };
    for (int begin = 0; begin < BLOCK; begin += UNROLL * stride) {
        float4 value[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            int64_t at = first + begin + i * stride;
            int valid = (int)min((int64_t)4, count - at);
            /* A piece that the end cuts is read by single loads in either case. */
            value[i] = wide && valid == 4 ? f8_load4<true>(x + at, 4) : f8_load4<false>(x + at, valid);
        }
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            sum[0] = add_to<power>(sum[0], value[i].x);
            sum[1] = add_to<power>(sum[1], value[i].y);
            sum[2] = add_to<power>(sum[2], value[i].z);
            sum[3] = add_to<power>(sum[3], value[i].w);
        }
    }
    double total = f8_warp_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (f8_lane() == 0) partial[block] = total;
}

/* Thread t adds the blocks t, t + 1024, ... in ascending order; then the threads' sums in a fixed tree. */
__global__ static void sum_total_kernel(const double *partial, int64_t num_blocks, double *total)
{
    __shared__ double warp_sum[TOTAL_THREADS / F8_WARP];
    double sum = 0.0;
#pragma unroll 8
    for (int64_t block = threadIdx.x; block < num_blocks; block += TOTAL_THREADS) sum += partial[block];
    sum = f8_warp_sum(sum);
    if (f8_lane() == 0) warp_sum[threadIdx.x / F8_WARP] = sum;
    __syncthreads();
    if (threadIdx.x >= F8_WARP) return;
    sum = f8_warp_sum(warp_sum[f8_lane()]);
    if (threadIdx.x == 0) *total = sum;
}

template <sum_power power>
static fp8flow_status launch_sum(fp8flow_context *c, const char *op, const float *x, int64_t count, double *total)
{
    const int64_t max_blocks = F8_CUDA_SCRATCH_BYTES / (int64_t)sizeof(double);
    int64_t num_blocks = f8_ceil_div(count, BLOCK);
    F8_REQUIRE(num_blocks <= max_blocks, ESHAPE, "%s: %lld values, at most %lld are possible", op, (long long)count,
               (long long)(max_blocks * BLOCK));
    double *partial = (double *)f8_cuda_scratch(c);
    unsigned grid = f8_grid(num_blocks, THREADS / F8_WARP);
    if (grid > 0 && (uintptr_t)x % 16 == 0)
        sum_block_kernel<power, true><<<grid, THREADS, 0, f8_stream(c)>>>(x, count, num_blocks, partial);
    else if (grid > 0)
        sum_block_kernel<power, false><<<grid, THREADS, 0, f8_stream(c)>>>(x, count, num_blocks, partial);
    sum_total_kernel<<<1, TOTAL_THREADS, 0, f8_stream(c)>>>(partial, num_blocks, total);
    return f8_launched(op);
}

extern "C" fp8flow_status f8_cuda_sum(fp8flow_context *c, const fp8flow_sum_args *a)
{
    return launch_sum<VALUES>(c, "sum", a->x, a->count, a->sum);
}

extern "C" fp8flow_status f8_cuda_square_sum(fp8flow_context *c, const fp8flow_square_sum_args *a)
{
    return launch_sum<SQUARES>(c, "square_sum", a->x, a->count, a->sum);
}

/* ---- add_counts ---- */

/* Unsigned: a sum beyond 2^63 must not be undefined. Blocks take the counters in turn: a grid has an end. */
__global__ static void add_counts_kernel(const uint64_t *x, uint64_t *y, int64_t count)
{
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step) y[i] += x[i];
}

extern "C" fp8flow_status f8_cuda_add_counts(fp8flow_context *c, const fp8flow_add_counts_args *a)
{
    const int64_t max_blocks = 1 << 20;
    int64_t blocks = f8_ceil_div(a->count, THREADS);
    if (blocks == 0) return FP8FLOW_OK;
    add_counts_kernel<<<(unsigned)(blocks < max_blocks ? blocks : max_blocks), THREADS, 0, f8_stream(c)>>>(
        (const uint64_t *)a->x, (uint64_t *)a->y, a->count);
    return f8_launched("add_counts");
}

/* ---- clip ---- */

__global__ static void clip_kernel(fp8flow_clip_args a)
{
    double sum = 0.0;
#pragma unroll 8
    for (int64_t i = 0; i < a.count; i++) sum += a.square_sums[i];
    double norm = sqrt(sum);
    float nan = f8_from_bits(0x7FC00000u);
    *a.norm = isnan(norm) ? __longlong_as_double(0x7FF8000000000000ll) : norm;
    bool clips = a.limit > 0.0 && norm > a.limit;
    *a.scale = !isfinite(norm) ? nan : clips ? (float)(a.limit / norm) : 1.0f;
}

extern "C" fp8flow_status f8_cuda_clip(fp8flow_context *c, const fp8flow_clip_args *a)
{
    clip_kernel<<<1, 1, 0, f8_stream(c)>>>(*a);
    return f8_launched("clip");
}
