/* attention_any.cu - attention and its gradients for every head size, stride and alignment, one vector at a time.
 *
 * A block of eight warps has one query and one head (the gradients of keys: one key and one key head). The warps share
 * the other side's vectors, a few at a time, and lane l of a warp has numbers l, l + 32, ... of each; at the end the
 * warps' sums are added in ascending order. Sums are FP32. Traffic: the vectors that a query sees are read per head,
 * 2 bytes per lane and load; good for decoding and for small models.
 */
#include "ops/attention.cuh"

enum { WARPS = 8, THREADS = WARPS * F8_WARP };

/* Numbers of a vector per lane, and vectors that a warp loads at once. */
template <int parts_> struct split {
    static const int parts = parts_, batch = parts_ <= 4 ? 4 : 1, width = parts_ * F8_WARP;
};

/* By value for the kernels. */
struct attention_problem {
    fp8flow_tensor q, k, v, o;
    int num_heads, heads_per_kv, head_dim;
    int64_t queries, keys; /* per sequence */
    float scale;
    float *lse;
};

struct gradient_problem {
    fp8flow_tensor q, k, v, grad_o, grad_q, grad_k, grad_v;
    int num_heads, num_kv_heads, head_dim;
    int64_t length; /* of a sequence */
    float scale;
    f8_attention_states states;
};

template <int parts>
__device__ static inline void load_vector(float (&x)[parts], const fp8flow_tensor &t, int64_t row, int head,
                                          int head_dim)
{
    const uint16_t *from = (const uint16_t *)t.data + row * t.stride + (int64_t)head * head_dim;
#pragma unroll
    for (int i = 0; i < parts; i++) {
        int at = f8_lane() + i * F8_WARP;
        x[i] = at < head_dim ? f8_bf16_decode(from[at]) : 0.0f;
    }
}

/* In every lane. */
template <int parts> __device__ static inline float dot(const float (&a)[parts], const float (&b)[parts])
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < parts; i++) sum = fmaf(a[i], b[i], sum);
    return f8_warp_sum(sum);
}

template <int parts>
__device__ static inline void add_scaled(float (&sum)[parts], float factor, const float (&x)[parts])
{
#pragma unroll
    for (int i = 0; i < parts; i++) sum[i] = fmaf(factor, x[i], sum[i]);
}

/* The warps' sums, each times its warp's factor, added in ascending order, to one vector of `t`. The whole block. */
template <int parts>
__device__ static inline void write_sum(const fp8flow_tensor &t, int64_t row, int head, int head_dim,
                                        const float (&sum)[parts], const float (&factors)[WARPS])
{
    __shared__ float sums[WARPS][parts * F8_WARP];
    int warp = threadIdx.x / F8_WARP;
    uint16_t *to = (uint16_t *)t.data + row * t.stride + (int64_t)head * head_dim;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < parts; i++) sums[warp][f8_lane() + i * F8_WARP] = sum[i];
    __syncthreads();
    for (int at = threadIdx.x; at < head_dim; at += THREADS) {
        float total = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) total = fmaf(factors[w], sums[w][at], total);
        to[at] = f8_bf16_encode(total);
    }
}

/* ---- Forward ---- */

/* Where nothing has been seen, or nothing above -Inf, differences are taken from 0. */
__device__ static inline float base_of(float max)
{
    return max == -INFINITY ? 0.0f : max;
}

/* The softmax of what a warp has seen so far: of weights exp(score - max). */
template <int parts> struct warp_sums {
    float max, total, o[parts];
};

/* Keys first .. first + batch - 1 of those that end at `end`. */
template <class S>
__device__ static inline void see_keys(const attention_problem &p, warp_sums<S::parts> &sums,
                                       const float (&q)[S::parts], int64_t first, int64_t end, int kv_head)
{
    float k[S::batch][S::parts], v[S::batch][S::parts], score[S::batch], max = sums.max;
#pragma unroll
    for (int i = 0; i < S::batch; i++) {
        int64_t row = min(first + i, end - 1);
        load_vector(k[i], p.k, row, kv_head, p.head_dim);
        load_vector(v[i], p.v, row, kv_head, p.head_dim);
    }
#pragma unroll
    for (int i = 0; i < S::batch; i++) {
        score[i] = p.scale * dot(q, k[i]);
        if (first + i < end) max = fmaxf(max, score[i]);
    }
    float base = base_of(max), keep = expf(sums.max - base);
    sums.max = max;
    sums.total *= keep;
#pragma unroll
    for (int i = 0; i < S::parts; i++) sums.o[i] *= keep;
#pragma unroll
    for (int i = 0; i < S::batch; i++) {
        if (first + i >= end) break;
        float weight = expf(score[i] - base);
        sums.total += weight;
        add_scaled(sums.o, weight, v[i]);
    }
}

template <class S> __global__ __launch_bounds__(THREADS) static void attention_any_kernel(attention_problem p)
{
    __shared__ float maxima[WARPS], totals[WARPS];
    int64_t row = blockIdx.x / p.num_heads, query = row % p.queries;
    int head = (int)(blockIdx.x % p.num_heads), warp = threadIdx.x / F8_WARP;
    int64_t first = row / p.queries * p.keys, end = first + query + 1 + p.keys - p.queries;
    warp_sums<S::parts> sums = { -INFINITY, 0, {} };
    float q[S::parts], factors[WARPS], max = -INFINITY, total = 0;
    load_vector(q, p.q, row, head, p.head_dim);
    for (int64_t at = first + warp * S::batch; at < end; at += WARPS * S::batch)
        see_keys<S>(p, sums, q, at, end, head / p.heads_per_kv);
    if (f8_lane() == 0) maxima[warp] = sums.max, totals[warp] = sums.total;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; w++) max = fmaxf(max, maxima[w]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        factors[w] = expf(maxima[w] - base_of(max));
        total = fmaf(factors[w], totals[w], total);
    }
#pragma unroll
    for (int w = 0; w < WARPS; w++) factors[w] /= total;
    write_sum(p.o, row, head, p.head_dim, sums.o, factors);
    if (p.lse && threadIdx.x == 0) p.lse[row * p.num_heads + head] = max + logf(total);
}

extern "C" fp8flow_status f8_cuda_attention_any(fp8flow_context *c, const fp8flow_attention_args *a)
{
    int64_t blocks = a->q->rows * a->num_heads;
    attention_problem p = { *a->q, *a->k, *a->v, *a->o };
    if (blocks == 0) return FP8FLOW_OK;
    F8_REQUIRE(blocks <= INT32_MAX, ESHAPE, "attention: %lld query rows of %lld heads are too many for CUDA",
               (long long)a->q->rows, (long long)a->num_heads);
    p.num_heads = (int)a->num_heads, p.heads_per_kv = (int)(a->num_heads / a->num_kv_heads);
    p.head_dim = (int)a->head_dim;
    p.queries = a->q->rows / a->batch, p.keys = a->k->rows / a->batch;
    p.scale = a->scale, p.lse = a->lse;
    if (a->head_dim <= split<4>::width)
        attention_any_kernel<split<4>><<<(unsigned)blocks, THREADS, 0, f8_stream(c)>>>(p);
    else
        attention_any_kernel<split<32>><<<(unsigned)blocks, THREADS, 0, f8_stream(c)>>>(p);
    return f8_launched("attention");
}

/* ---- Gradients ----
 *
 * Of a query:  sums over keys of ds k.             Its own vectors are q and grad_o, the other side's k and v.
 * Of a key:    sums over queries of ds q, p grad_o. Its own vectors are k and v, the other side's q and grad_o.
 */
enum side { QUERY, KEY };

/* The pairs of a block: `heads` times `rows` vectors of the other side, from (head, row) on. */
struct pair_range {
    int64_t row, rows;
    int head, heads;
};

template <int parts> struct gradients {
    float first[parts], second[parts]; /* with ds and the other's first vector, with p and its second */
};

/* Pairs first .. first + batch - 1 of a block whose own vectors are a and b of row `row`, head `head`. */
template <class S, side own>
__device__ static inline void see_pairs(const gradient_problem &p, gradients<S::parts> &sums,
                                        const float (&a)[S::parts], const float (&b)[S::parts], int64_t state,
                                        const pair_range &range, int64_t first)
{
    float x[S::batch][S::parts], y[S::batch][S::parts];
    int64_t count = range.heads * range.rows, at[S::batch];
#pragma unroll
    for (int i = 0; i < S::batch; i++) {
        int64_t pair = min(first + i, count - 1), row = range.row + pair % range.rows;
        int head = range.head + (int)(pair / range.rows);
        load_vector(x[i], own == QUERY ? p.k : p.q, row, head, p.head_dim);
        load_vector(y[i], own == QUERY ? p.v : p.grad_o, row, head, p.head_dim);
        at[i] = own == QUERY ? state
                             : (row / p.length * p.num_heads + head) * p.states.length + row % p.length;
    }
#pragma unroll
    for (int i = 0; i < S::batch; i++) {
        float weight = exp2f(fmaf(p.scale * F8_LOG2_E, dot(a, x[i]), -p.states.lse[at[i]]));
        float ds = weight * (dot(b, y[i]) - p.states.delta[at[i]]) * p.scale;
        if (first + i >= count) break;
        add_scaled(sums.first, ds, x[i]);
        if (own == KEY) add_scaled(sums.second, weight, y[i]);
    }
}

template <class S, side own>
__global__ __launch_bounds__(THREADS) static void attention_gradient_any_kernel(gradient_problem p)
{
    int num_own = own == QUERY ? p.num_heads : p.num_kv_heads, heads_per_kv = p.num_heads / p.num_kv_heads;
    int64_t row = blockIdx.x / num_own, begin = row / p.length * p.length;
    int head = (int)(blockIdx.x % num_own);
    int64_t state = (row / p.length * p.num_heads + head) * p.states.length + row - begin;
    pair_range range = { begin, row - begin + 1, head / heads_per_kv, 1 };
    if (own == KEY) range = { row, begin + p.length - row, head * heads_per_kv, heads_per_kv };
    gradients<S::parts> sums = {};
    float a[S::parts], b[S::parts], ones[WARPS];
    load_vector(a, own == QUERY ? p.q : p.k, row, head, p.head_dim);
    load_vector(b, own == QUERY ? p.grad_o : p.v, row, head, p.head_dim);
    for (int64_t at = (int64_t)threadIdx.x / F8_WARP * S::batch; at < range.heads * range.rows; at += WARPS * S::batch)
        see_pairs<S, own>(p, sums, a, b, state, range, at);
#pragma unroll
    for (int w = 0; w < WARPS; w++) ones[w] = 1.0f;
    write_sum(own == QUERY ? p.grad_q : p.grad_k, row, head, p.head_dim, sums.first, ones);
    if (own == KEY) write_sum(p.grad_v, row, head, p.head_dim, sums.second, ones);
}

template <class S> static void launch_gradients(fp8flow_context *c, const gradient_problem &p)
{
    unsigned queries = (unsigned)(p.q.rows * p.num_heads), keys = (unsigned)(p.q.rows * p.num_kv_heads);
    attention_gradient_any_kernel<S, QUERY><<<queries, THREADS, 0, f8_stream(c)>>>(p);
    attention_gradient_any_kernel<S, KEY><<<keys, THREADS, 0, f8_stream(c)>>>(p);
}

extern "C" fp8flow_status f8_cuda_attention_backward_any(fp8flow_context *c, const fp8flow_attention_backward_args *a,
                                                         const f8_attention_states *states)
{
    gradient_problem p = { *a->q, *a->k, *a->v, *a->grad_o, *a->grad_q, *a->grad_k, *a->grad_v };
    p.num_heads = (int)a->num_heads, p.num_kv_heads = (int)a->num_kv_heads, p.head_dim = (int)a->head_dim;
    p.length = a->q->rows / a->batch;
    p.scale = a->scale, p.states = *states;
    if (a->head_dim <= split<4>::width) launch_gradients<split<4>>(c, p);
    else launch_gradients<split<32>>(c, p);
    return f8_launched("attention_backward");
}
