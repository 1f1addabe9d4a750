/* attention_backward.cu - CUDA side of attention_backward. Contract: fp8flow_ops.h. CPU side: attention.c.
 *
 * First the states of the queries, lse and delta = grad_o . o, in the order in which the kernels behind read them:
 * 4 head_dim bytes read per query and head, by as many lanes as a vector has pieces of 16 bytes, or one number at a
 * time. Kernels: attention_gradient.cuh, attention_any.cu.
 */
#include "ops/attention_gradient.cuh"

enum { THREADS = 256 };

struct state_problem {
    fp8flow_tensor o, grad_o;
    const float *lse;
    f8_attention_states states;
    int num_heads, head_dim;
    int64_t length, count; /* of a sequence; states in all */
};

/* A lane's part of grad_o . o; the vectors of `lanes` lanes. */
template <int lanes> __device__ static inline float part_of_dot(const uint16_t *x, const uint16_t *y, int head_dim)
{
    float sum = 0;
    int lane = f8_lane() % lanes;
    if (lanes == F8_WARP) {
        for (int i = lane; i < head_dim; i += lanes) sum = fmaf(f8_bf16_decode(x[i]), f8_bf16_decode(y[i]), sum);
    } else if (lane * 8 < head_dim) {
        f8_octet a = f8_unpack8(*(const uint4 *)(x + lane * 8)), b = f8_unpack8(f8_load16(y + lane * 8));
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(a.at[i], b.at[i], sum);
    }
    return sum;
}

/* `lanes` lanes per query and head, heads of a query side by side. */
template <int lanes> __global__ __launch_bounds__(THREADS) static void attention_states_kernel(state_problem p)
{
    int64_t index = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / lanes, row = index / p.num_heads;
    int64_t sequence = row / p.states.length, query = row % p.states.length;
    int head = (int)(index % p.num_heads);
    bool exists = index < p.count && query < p.length;
    float sum = 0;
    row = sequence * p.length + query;
    if (exists)
        sum = part_of_dot<lanes>((const uint16_t *)p.o.data + row * p.o.stride + (int64_t)head * p.head_dim,
                                 (const uint16_t *)p.grad_o.data + row * p.grad_o.stride + (int64_t)head * p.head_dim,
                                 p.head_dim);
    sum = f8_warp_sum<lanes>(sum);
    if (index >= p.count || f8_lane() % lanes != 0) return;
    int64_t at = (sequence * p.num_heads + head) * p.states.length + query;
    p.states.lse[at] = exists ? p.lse[row * p.num_heads + head] * F8_LOG2_E : INFINITY;
    p.states.delta[at] = sum;
}

template <int lanes> static void launch_states(fp8flow_context *c, const state_problem &p)
{
    attention_states_kernel<lanes><<<f8_grid(p.count, THREADS / lanes), THREADS, 0, f8_stream(c)>>>(p);
}

static fp8flow_status make_states(fp8flow_context *c, const fp8flow_attention_backward_args *a,
                                  f8_attention_states *states)
{
    int64_t length = a->q->rows / a->batch, padded = f8_ceil_div(length, 128) * 128;
    int64_t count = a->batch * a->num_heads * padded, most = F8_CUDA_SCRATCH_BYTES / (2 * (int64_t)sizeof(float));
    F8_REQUIRE(count <= most, ESHAPE,
               "attention_backward: %lld sequences of %lld tokens and %lld heads, CUDA has scratch memory for %lld",
               (long long)a->batch, (long long)length, (long long)a->num_heads, (long long)most);
    *states = { (float *)f8_cuda_scratch(c), (float *)f8_cuda_scratch(c) + count, padded };
    state_problem p = { *a->o, *a->grad_o, a->lse, *states, (int)a->num_heads, (int)a->head_dim, length, count };
    if (!f8_attention_fits(a->o, a->head_dim) || !f8_attention_fits(a->grad_o, a->head_dim)) launch_states<32>(c, p);
    else if (a->head_dim <= 32) launch_states<4>(c, p);
    else if (a->head_dim <= 64) launch_states<8>(c, p);
    else launch_states<16>(c, p);
    return f8_launched("attention_backward");
}

/* Like is_fast of attention.cu. */
static bool is_fast(const fp8flow_attention_backward_args *a)
{
    const fp8flow_tensor *all[] = { a->q, a->k, a->v, a->grad_o, a->grad_q, a->grad_k, a->grad_v };
    for (const fp8flow_tensor *t : all)
        if (!f8_attention_fits(t, a->head_dim)) return false;
    return a->scale > 0;
}

template <int head_dim, int stages>
static fp8flow_status launch_fast(fp8flow_context *c, const fp8flow_attention_backward_args *a,
                                  const f8_attention_states *states)
{
    F8_TRY((f8_gradient_launch<f8_gradient_shape<head_dim, F8_OF_KEYS, stages>>(c, a, states)));
    return f8_gradient_launch<f8_gradient_shape<head_dim, F8_OF_QUERIES, stages>>(c, a, states);
}

extern "C" fp8flow_status f8_cuda_attention_backward(fp8flow_context *c, const fp8flow_attention_backward_args *a)
{
    f8_attention_states states;
    if (a->q->rows == 0) return FP8FLOW_OK;
    F8_TRY(make_states(c, a, &states));
    if (!is_fast(a)) return f8_cuda_attention_backward_any(c, a, &states);
    return a->head_dim <= 64 ? launch_fast<64, 6>(c, a, &states) : launch_fast<128, 4>(c, a, &states);
}
