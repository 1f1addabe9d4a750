/* attention_backward.cu - CUDA side of attention_backward. Contract: fp8flow_ops.h. CPU side: attention.c. */
#include "ops/attention_cuda.h"
#include "ops/launch.cuh"
#include "ops/warp.cuh"

enum { THREADS = 256 };

/* A warp per query and head: delta = grad_o . o, and lse into the same order. */
__global__ static void attention_states_kernel(fp8flow_tensor o, fp8flow_tensor grad_o, const float *lse,
                                               f8_attention_states states, int num_heads, int64_t length)
{
    int64_t index = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / F8_WARP, row = index / num_heads;
    int head = (int)(index % num_heads), head_dim = (int)(o.cols / num_heads);
    if (row >= o.rows) return;
    const uint16_t *x = (const uint16_t *)o.data + row * o.stride + (int64_t)head * head_dim;
    const uint16_t *y = (const uint16_t *)grad_o.data + row * grad_o.stride + (int64_t)head * head_dim;
    float sum = 0;
    for (int i = f8_lane(); i < head_dim; i += F8_WARP) sum = fmaf(f8_bf16_decode(x[i]), f8_bf16_decode(y[i]), sum);
    sum = f8_warp_sum(sum);
    if (f8_lane() > 0) return;
    int64_t at = (row / length * num_heads + head) * states.length + row % length;
    states.lse[at] = lse[index];
    states.delta[at] = sum;
}

static fp8flow_status make_states(fp8flow_context *c, const fp8flow_attention_backward_args *a,
                                  f8_attention_states *states)
{
    int64_t length = a->q->rows / a->batch, padded = f8_ceil_div(length, 128) * 128;
    int64_t count = a->batch * a->num_heads * padded, most = F8_CUDA_SCRATCH_BYTES / (2 * (int64_t)sizeof(float));
    F8_REQUIRE(count <= most, ESHAPE,
               "attention_backward: %lld sequences of %lld tokens and %lld heads, CUDA has scratch memory for %lld rows",
               (long long)a->batch, (long long)length, (long long)a->num_heads, (long long)most);
    *states = { (float *)f8_cuda_scratch(c), (float *)f8_cuda_scratch(c) + count, padded };
    unsigned blocks = f8_grid(a->q->rows * a->num_heads, THREADS / F8_WARP);
    attention_states_kernel<<<blocks, THREADS, 0, f8_stream(c)>>>(*a->o, *a->grad_o, a->lse, *states,
                                                                  (int)a->num_heads, length);
    return f8_launched("attention_backward");
}

extern "C" fp8flow_status f8_cuda_attention_backward(fp8flow_context *c, const fp8flow_attention_backward_args *a)
{
    f8_attention_states states;
    if (a->q->rows == 0) return FP8FLOW_OK;
    F8_TRY(make_states(c, a, &states));
    return f8_cuda_attention_backward_any(c, a, &states);
}
