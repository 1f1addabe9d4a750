/* rank_routing.cu - CUDA side of rank_destinations, rank_routing and rank_gates. Contracts: fp8flow_ops_ranks.h.
 * CPU side: rank_routing.c.
 *
 * A thread per 4-byte number that is written, neighbours next to each other. What a thread reads is the routing of one
 * token, which stays in the cache: 8 bytes per slot from memory, 4 or 8 written.
 */
#include "ops/launch.cuh"
#include "ops/rank_routing.h"

enum { THREADS = 256 };

__global__ static void __launch_bounds__(THREADS) rank_destinations_kernel(fp8flow_rank_destinations_args a)
{
    int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (index >= a.num_tokens * a.num_ranks) return;
    int64_t token = index / a.num_ranks;
    int32_t rank = (int32_t)(index % a.num_ranks), found = -1;
    for (int64_t slot = 0; slot < a.top_k; slot++)
        if (f8_rank_of_expert(__ldg(a.expert + token * a.top_k + slot), a.num_experts, a.num_ranks) == rank)
            found = rank;
    a.destination[index] = found;
}

extern "C" fp8flow_status f8_cuda_rank_destinations(fp8flow_context *c, const fp8flow_rank_destinations_args *a)
{
    int64_t count = a->num_tokens * a->num_ranks;
    if (count == 0) return FP8FLOW_OK;
    rank_destinations_kernel<<<f8_grid(count, THREADS), THREADS, 0, f8_stream(c)>>>(*a);
    return f8_launched("rank_destinations");
}

/* a.plan is host memory: its arrays come in `plan`. */
__global__ static void __launch_bounds__(THREADS) rank_routing_kernel(fp8flow_rank_routing_args a, fp8flow_plan plan)
{
    int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = index / a.top_k;
    int64_t rows = min((int64_t)__ldg(plan.offset + plan.num_experts), plan.capacity);
    if (row >= rows) return;
    int32_t source = __ldg(plan.source + row), sent = -1;
    float gate = 0.0f;
    if (source >= 0) {
        int64_t from = source / plan.num_experts * a.top_k + index % a.top_k;
        int32_t rank = (int32_t)(source % plan.num_experts), expert = __ldg(a.expert + from);
        if (f8_rank_of_expert(expert, a.num_experts, plan.num_experts) == rank) {
            sent = expert - f8_first_expert(rank, a.num_experts, plan.num_experts);
            gate = __ldg(a.gate + from);
        }
    }
    a.sent_expert[index] = sent;
    a.sent_gate[index] = gate;
}

extern "C" fp8flow_status f8_cuda_rank_routing(fp8flow_context *c, const fp8flow_rank_routing_args *a)
{
    int64_t count = a->plan->capacity * a->top_k;
    if (count == 0) return FP8FLOW_OK;
    rank_routing_kernel<<<f8_grid(count, THREADS), THREADS, 0, f8_stream(c)>>>(*a, *a->plan);
    return f8_launched("rank_routing");
}

__global__ static void __launch_bounds__(THREADS) rank_gates_kernel(fp8flow_rank_gates_args a, fp8flow_plan plan)
{
    int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (index >= plan.num_tokens * a.top_k) return;
    int64_t token = index / a.top_k, slot = index % a.top_k;
    int32_t rank = f8_rank_of_expert(__ldg(a.expert + index), a.num_experts, plan.num_experts);
    int64_t row = rank < 0 ? -1 : __ldg(plan.row_of + token * plan.num_experts + rank);
    a.gate[index] = row < 0 ? 0.0f : __ldg(a.returned + row * a.top_k + slot);
}

extern "C" fp8flow_status f8_cuda_rank_gates(fp8flow_context *c, const fp8flow_rank_gates_args *a)
{
    int64_t count = a->plan->num_tokens * a->top_k;
    if (count == 0) return FP8FLOW_OK;
    rank_gates_kernel<<<f8_grid(count, THREADS), THREADS, 0, f8_stream(c)>>>(*a, *a->plan);
    return f8_launched("rank_gates");
}
