/* router_sum.cu - CUDA side of router_sum: a thread per expert. Contracts: fp8flow_ops.h.
 * CPU side: router_sum.c. Few bytes: the time is that of one access to memory per sequence, of which several are on
 * their way at once. */
#include "ops/launch.cuh"
#include "ops/nan.h"

enum { THREADS = 128 };

__global__ static void __launch_bounds__(THREADS) router_sum_kernel(fp8flow_router_sum_args a)
{
    int64_t e = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (e >= a.num_experts) return;
    int64_t count = 0;
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t q = 0; q < a.num_sequences; q++) {
        count += __ldg(a.counts + q * a.num_experts + e);
        sum += __ldg(a.score_sums + q * a.num_experts + e);
    }
    a.total_counts[e] = count;
    a.total_score_sums[e] = f8_canonical(sum);
}

extern "C" fp8flow_status f8_cuda_router_sum(fp8flow_context *c, const fp8flow_router_sum_args *a)
{
    if (a->num_experts == 0) return FP8FLOW_OK;
    router_sum_kernel<<<f8_grid(a->num_experts, THREADS), THREADS, 0, f8_stream(c)>>>(*a);
    return f8_launched("router_sum");
}
