/* router_loss.cu - CUDA side of router_loss and router_bias_update: figures of a whole batch, one block each.
 * Contracts: fp8flow_ops.h. CPU side: router_backward.c, router.c.
 *
 * A thread takes every 1024th item; partial sums meet in a fixed order. Few bytes: the time is that of two or three
 * accesses to memory in a row.
 */
#include "ops/launch.cuh"
#include "ops/warp.cuh"

enum { THREADS = 1024, NUM_LOSSES = 3 };

/* Sum over the block, for every thread, in an order that depends on nothing. */
template <class T> __device__ static inline T block_sum(T x)
{
    __shared__ T warp_sum[F8_WARP];
    static_assert(THREADS == F8_WARP * F8_WARP, "a lane of the second round for each warp of the first");
#pragma unroll
    for (int offset = F8_WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(F8_ALL_LANES, x, offset);
    if (f8_lane() == 0) warp_sum[threadIdx.x / F8_WARP] = x;
    __syncthreads();
    x = warp_sum[f8_lane()];
#pragma unroll
    for (int offset = F8_WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(F8_ALL_LANES, x, offset);
    return x;
}

/* ---- router_loss ---- */

/* losses[i] = factor[i] * a scalar product; count 0 where the loss is off. */
struct loss_job {
    const int64_t *total_counts;
    const float *total_score_sums;
    const int32_t *counts;
    const float *score_sums, *log_sum_exp;
    int64_t count[NUM_LOSSES];
    double factor[NUM_LOSSES];
    double *losses;
};

/* The thread's part of the scalar product. */
template <class A, class B> __device__ static inline double partial_dot(const A *a, const B *b, int64_t count)
{
    double sum = 0.0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += (double)__ldg(a + i) * (double)__ldg(b + i);
    return sum;
}

/* One block per loss. */
__global__ static void __launch_bounds__(THREADS) router_loss_kernel(loss_job job)
{
    double sum, factor;
    if (blockIdx.x == 0) {
        factor = job.factor[0];
        sum = partial_dot(job.total_counts, job.total_score_sums, job.count[0]);
    } else if (blockIdx.x == 1) {
        factor = job.factor[1];
        sum = partial_dot(job.counts, job.score_sums, job.count[1]);
    } else {
        factor = job.factor[2];
        sum = partial_dot(job.log_sum_exp, job.log_sum_exp, job.count[2]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) job.losses[blockIdx.x] += factor * sum;
}

extern "C" fp8flow_status f8_cuda_router_loss(fp8flow_context *c, const fp8flow_router_loss_args *a)
{
    const fp8flow_router_config *config = a->config;
    loss_job job = {};
    job.losses = a->losses;
    double experts = (double)config->num_experts, top_k = (double)config->top_k, tokens = (double)a->num_tokens;
    if (a->num_tokens > 0 && config->aux_coef != 0.0f) {
        double total = (double)a->load->total_tokens;
        job.total_counts = a->load->total_counts;
        job.total_score_sums = a->load->total_score_sums;
        job.count[0] = config->num_experts;
        job.factor[0] = (double)config->aux_coef * experts / (total * top_k) / total * (tokens / total);
    }
    if (a->num_tokens > 0 && config->sequence_coef != 0.0f) {
        double length = (double)config->sequence_length;
        job.counts = a->counts;
        job.score_sums = a->score_sums;
        job.count[1] = a->num_tokens / config->sequence_length * config->num_experts;
        job.factor[1] = (double)config->sequence_coef * experts / (length * top_k) / (double)a->load->total_tokens;
    }
    if (a->num_tokens > 0 && config->z_coef != 0.0f) {
        job.log_sum_exp = a->log_sum_exp;
        job.count[2] = a->num_tokens;
        job.factor[2] = (double)config->z_coef / (double)a->load->total_tokens;
    }
    router_loss_kernel<<<NUM_LOSSES, THREADS, 0, f8_stream(c)>>>(job);
    return f8_launched("router_loss");
}

/* ---- router_bias_update ---- */

__global__ static void __launch_bounds__(THREADS) router_bias_update_kernel(fp8flow_router_bias_update_args a)
{
    long long total = 0;
    for (int64_t e = threadIdx.x; e < a.num_experts; e += THREADS) total += a.counts[e];
    total = block_sum(total);
    /* As on the CPU: against the floor and the ceiling of the mean, so that no product can overflow. */
    int64_t floor = total / a.num_experts, ceiling = floor + (total % a.num_experts != 0);
    for (int64_t e = threadIdx.x; e < a.num_experts; e += THREADS) {
        if (a.counts[e] < ceiling) a.bias[e] += a.rate;
        if (a.counts[e] > floor) a.bias[e] -= a.rate;
    }
}

extern "C" fp8flow_status f8_cuda_router_bias_update(fp8flow_context *c, const fp8flow_router_bias_update_args *a)
{
    router_bias_update_kernel<<<1, THREADS, 0, f8_stream(c)>>>(*a);
    return f8_launched("router_bias_update");
}
