/* sums.cu - CUDA side of sum, square_sum and clip. Contracts: fp8flow_ops.h. CPU side: sums.c.
 *
 * A warp adds one block of 4096 values, one block of threads adds the sums. Traffic: 4 bytes per value.
 */
#include "ops/launch.cuh"
#include "ops/sums.h"
#include "ops/warp.cuh"

enum { BLOCK = 4096, THREADS = 256, UNROLL = 8, TOTAL_THREADS = 1024 };

enum summand { NUMBERS, SQUARES };

/* The square of an FP32 number is exact in FP64. */
template <summand what> __device__ static inline double added(float x, double sum)
{
    return what == SQUARES ? fma((double)x, (double)x, sum) : (double)x + sum;
}

/* The first `valid` of four numbers, 0 for the others. */
__device__ static inline float4 load4(const float *from, int valid)
{
    return make_float4(valid > 0 ? from[0] : 0.0f, valid > 1 ? from[1] : 0.0f, valid > 2 ? from[2] : 0.0f,
                       valid > 3 ? from[3] : 0.0f);
}

/* Lane l adds the values 128 i + 4 l + j of its warp's block, i ascending, one sum for each j, whatever the
 * alignment. */
template <summand what, bool wide>
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
            value[i] = wide && valid >= 4 ? __ldcs((const float4 *)(x + at)) : load4(x + at, valid);
        }
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            sum[0] = added<what>(value[i].x, sum[0]);
            sum[1] = added<what>(value[i].y, sum[1]);
            sum[2] = added<what>(value[i].z, sum[2]);
            sum[3] = added<what>(value[i].w, sum[3]);
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

template <summand what>
static fp8flow_status launch_sum(fp8flow_context *c, const char *op, const float *x, int64_t count, double *sum)
{
    const int64_t max_blocks = F8_CUDA_SCRATCH_BYTES / (int64_t)sizeof(double);
    int64_t num_blocks = f8_ceil_div(count, BLOCK);
    F8_REQUIRE(num_blocks <= max_blocks, ESHAPE, "%s: %lld values, at most %lld are possible", op, (long long)count,
               (long long)(max_blocks * BLOCK));
    double *partial = (double *)f8_cuda_scratch(c);
    unsigned grid = f8_grid(num_blocks, THREADS / F8_WARP);
    if (grid > 0 && (uintptr_t)x % 16 == 0)
        sum_block_kernel<what, true><<<grid, THREADS, 0, f8_stream(c)>>>(x, count, num_blocks, partial);
    else if (grid > 0) sum_block_kernel<what, false><<<grid, THREADS, 0, f8_stream(c)>>>(x, count, num_blocks, partial);
    sum_total_kernel<<<1, TOTAL_THREADS, 0, f8_stream(c)>>>(partial, num_blocks, sum);
    return f8_launched(op);
}

extern "C" fp8flow_status f8_cuda_sum(fp8flow_context *c, const fp8flow_sum_args *a)
{
    return launch_sum<NUMBERS>(c, "sum", a->x, a->count, a->sum);
}

extern "C" fp8flow_status f8_cuda_square_sum(fp8flow_context *c, const fp8flow_square_sum_args *a)
{
    return launch_sum<SQUARES>(c, "square_sum", a->x, a->count, a->sum);
}

/* One thread: the order of the sum is the contract's, and the parts are few. */
__global__ static void clip_kernel(fp8flow_clip_args a)
{
    double sum = 0.0;
    for (int64_t i = 0; i < a.count; i++) sum += a.square_sums[i];
    double norm = sqrt(sum);
    *a.norm = norm;
    *a.scale = f8_clip_scale(norm, a.limit);
}

extern "C" fp8flow_status f8_cuda_clip(fp8flow_context *c, const fp8flow_clip_args *a)
{
    clip_kernel<<<1, 1, 0, f8_stream(c)>>>(*a);
    return f8_launched("clip");
}
