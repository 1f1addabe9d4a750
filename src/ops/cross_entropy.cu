/* cross_entropy.cu - CUDA side of cross_entropy. Contract: fp8flow_ops.h. CPU side: vocab.c.
 *
 * Both kernels take the maximum and the sum of a row in one pass: every thread keeps a maximum and the sum of
 * exponentials relative to it, and rescales the sum when the maximum grows. Then the sums are merged in a fixed order.
 *
 * Long aligned rows: one to eight blocks of a cluster hold a row in shared memory, a fixed number of clusters take the
 * rows in turn. A thread reads back only the 16-byte pieces that it copied, so that the copy of the next row may start
 * piece by piece while the gradient of this one is written, and needs no barrier. Traffic: each logit is read once and
 * each gradient written once, 6 bytes for an FP32 logit and a BF16 gradient. Other rows: a block per row, one element
 * per access, two reads of which the second mostly finds L2.
 *
 * Elements of a gradient are written by the thread that has read the same logits: it may take their place.
 */
#include <float.h>

#include <cooperative_groups.h>
#include <cuda_pipeline.h>

#include "ops/launch.cuh"
#include "ops/plain.h"
#include "ops/warp.cuh"

namespace cg = cooperative_groups;

enum {
    PLAIN_THREADS = 256,
    STAGED_THREADS = 1024,
    WARPS = STAGED_THREADS / F8_WARP,
    MAX_RANKS = 8,  /* blocks of a cluster */
    MAX_DEPTH = 14, /* pieces of a thread: 224 KiB of a block */
    PARTS = 4       /* a row is waited for in this many parts */
};

struct entropy_call {
    const void *logits;
    void *gradient; /* NULL: the loss only */
    const int32_t *target;
    float *loss;
    int64_t stride, gradient_stride, num_tokens, vocabulary;
    float grad_scale;
};

/* ---- Exponentials ---- */

/* 2^x with a relative error of 2^-22, subnormal results are 0. */
__device__ static float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* e^x for x <= 0, NaN for NaN. The format of the gradient, not of the logits, decides how exact it has to be: for
 * FP32 the product with log2 e is carried in two numbers, since an error of half an ulp in a product of -100 would be
 * 2^-18 of the result. A loss alone is content with less: where the error is large the exponential is small. */
template <fp8flow_dtype to> __device__ static float exponential(float x)
{
    const float log2_e = 1.44269504f, log2_e_rest = 1.92596299e-8f, ln_2 = 0.693147181f;
    if (to == FP8FLOW_BF16) return exp2_fast(x * log2_e);
    x = x < -87.3f ? -87.3f : x;
    float high = x * log2_e, low = fmaf(x, log2_e_rest, fmaf(x, log2_e, -high)), power = exp2_fast(high);
    return fmaf(power, low * ln_2, power);
}

/* Maximum and sum of e^(x - maximum) of some logits. NaN is invisible to the maximum and reaches the sum. The maximum
 * of nothing is finite, so that -Inf, a mask, gives a sum of 0 and not NaN. */
struct online {
    float largest, sum;
};

template <fp8flow_dtype to> __device__ static void raise(online &o, float largest)
{
    if (!(largest > o.largest)) return;
    o.sum *= exponential<to>(o.largest - largest);
    o.largest = largest;
}

template <fp8flow_dtype to> __device__ static online warp_merge(online o)
{
    float largest = o.largest;
#pragma unroll
    for (int offset = F8_WARP / 2; offset > 0; offset /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(F8_ALL_LANES, largest, offset));
    raise<to>(o, largest);
    return { largest, f8_warp_sum(o.sum) };
}

/* Over a block; every thread has the result. `shared` may be used again after one more barrier. */
template <fp8flow_dtype to> __device__ static online block_merge(online o, online *shared)
{
    const int warps = blockDim.x / F8_WARP;
    o = warp_merge<to>(o);
    if (f8_lane() == 0) shared[threadIdx.x / F8_WARP] = o;
    __syncthreads();
    return warp_merge<to>(f8_lane() < warps ? shared[f8_lane()] : online{ -FLT_MAX, 0.0f });
}

/* ---- What a token gives ---- */

/* The gradient of logit x is e^(x - largest) * factor, and grad_scale less at the target. */
struct gradient {
    float largest, sum, factor, grad_scale;
    bool is_zero; /* no target: 0 whatever the logits are */
};

/* `chosen`: the target's logit; NaN for a target outside of the vocabulary, which makes loss and gradient NaN. */
__device__ static gradient gradient_of(const entropy_call &a, online o, int32_t target, float chosen)
{
    gradient g = { o.largest, o.sum, a.grad_scale / o.sum, a.grad_scale, target == -1 };
    if (chosen != chosen) g.factor = chosen;
    return g;
}

__device__ static float loss_of(online o, int32_t target, float chosen)
{
    if (target == -1) return 0.0f;
    return logf(o.sum) - (chosen - o.largest);
}

template <fp8flow_dtype to> __device__ static float slope_of(const gradient &g, float x)
{
    return g.is_zero ? 0.0f : exponential<to>(x - g.largest) * g.factor;
}

template <fp8flow_dtype to> __device__ static float target_slope_of(const gradient &g, float x)
{
    return (exponential<to>(x - g.largest) / g.sum - 1.0f) * g.grad_scale;
}

__device__ static bool is_logit(const entropy_call &a, int32_t target)
{
    return target >= 0 && target < a.vocabulary;
}

/* ---- Formats: one element, one 16-byte piece ---- */

struct quad {
    float at[4];
};

template <fp8flow_dtype dtype> struct format;

template <> struct format<FP8FLOW_BF16> {
    using element = uint16_t;
    enum { COUNT = 8 };
    using numbers = f8_octet;

    __device__ static float decode(element x)
    {
        return f8_bf16_decode(x);
    }
    __device__ static element encode(float x)
    {
        return f8_bf16_encode(x);
    }
    __device__ static numbers unpack(uint4 piece)
    {
        return f8_unpack8(piece);
    }
};

template <> struct format<FP8FLOW_F32> {
    using element = float;
    enum { COUNT = 4 };
    using numbers = quad;

    __device__ static float decode(element x)
    {
        return x;
    }
    __device__ static element encode(float x)
    {
        return x;
    }
    __device__ static numbers unpack(uint4 piece)
    {
        return { { __uint_as_float(piece.x), __uint_as_float(piece.y), __uint_as_float(piece.z),
                   __uint_as_float(piece.w) } };
    }
};

/* A piece's gradients, at an address that is aligned to their bytes. */
__device__ static void store_numbers(uint16_t *to, const f8_octet &x)
{
    f8_store16(to, f8_pack8_fast(x));
}

__device__ static void store_numbers(uint16_t *to, const quad &x)
{
    __stcs((uint2 *)to, make_uint2(f8_bf16_pair_fast(x.at[0], x.at[1]), f8_bf16_pair_fast(x.at[2], x.at[3])));
}

__device__ static void store_numbers(float *to, const quad &x)
{
    __stcs((float4 *)to, make_float4(x.at[0], x.at[1], x.at[2], x.at[3]));
}

__device__ static void store_numbers(float *to, const f8_octet &x)
{
    __stcs((float4 *)to, make_float4(x.at[0], x.at[1], x.at[2], x.at[3]));
    __stcs((float4 *)to + 1, make_float4(x.at[4], x.at[5], x.at[6], x.at[7]));
}

/* ---- Any row ---- */

template <fp8flow_dtype from, fp8flow_dtype to>
__global__ static void __launch_bounds__(PLAIN_THREADS) cross_entropy_plain_kernel(entropy_call a)
{
    __shared__ online sums[F8_WARP];
    int64_t t = blockIdx.x;
    const typename format<from>::element *row = (const typename format<from>::element *)a.logits + t * a.stride;
    typename format<to>::element *slopes = (typename format<to>::element *)a.gradient + t * a.gradient_stride;
    int32_t target = a.target[t];
    online o = { -FLT_MAX, 0.0f };
    for (int64_t i = threadIdx.x; i < a.vocabulary; i += PLAIN_THREADS) {
        float x = format<from>::decode(row[i]);
        raise<to>(o, x);
        o.sum += exponential<to>(x - o.largest);
    }
    o = block_merge<to>(o, sums);
    float chosen = is_logit(a, target) ? format<from>::decode(row[target]) : NAN;
    if (threadIdx.x == 0) a.loss[t] = loss_of(o, target, chosen);
    if (!a.gradient) return;
    __syncthreads(); /* everybody has the target's logit */
    gradient g = gradient_of(a, o, target, chosen);
    for (int64_t i = threadIdx.x; i < a.vocabulary; i += PLAIN_THREADS) {
        float x = format<from>::decode(row[i]);
        slopes[i] = format<to>::encode(i == target ? target_slope_of<to>(g, x) : slope_of<to>(g, x));
    }
}

/* ---- Rows in shared memory ---- */

/* One block's share of the rows: pieces (k * ranks + rank) * threads + thread, k < depth. */
template <fp8flow_dtype from, fp8flow_dtype to> struct staged_row {
    using f = format<from>;
    using slope = typename format<to>::element;
    const entropy_call &a;
    uint4 *ring; /* [depth][threads], from this thread's column on */
    int rank, ranks, depth;
    int64_t pieces;

    __device__ int64_t piece_at(int k) const
    {
        return (int64_t)(k * ranks + rank) * STAGED_THREADS + threadIdx.x;
    }
    __device__ const uint4 *line(int64_t t) const
    {
        return (const uint4 *)((const typename f::element *)a.logits + t * a.stride);
    }
    __device__ slope *slopes(int64_t t) const
    {
        return (slope *)a.gradient + t * a.gradient_stride;
    }
    __device__ int part_begin(int part) const
    {
        return part * depth / PARTS;
    }
    /* Start the copy of a part; without a row it is an empty copy, so that copies can be counted. */
    __device__ void fetch(int64_t t, int part) const
    {
        for (int k = part_begin(part); t < a.num_tokens && k < part_begin(part + 1) && piece_at(k) < pieces; k++)
            __pipeline_memcpy_async(ring + k * STAGED_THREADS, line(t) + piece_at(k), 16);
        __pipeline_commit();
    }
    __device__ void absorb(int part, online &o) const
    {
        for (int k = part_begin(part); k < part_begin(part + 1) && piece_at(k) < pieces; k++) {
            typename f::numbers x = f::unpack(ring[k * STAGED_THREADS]);
            float largest = x.at[0];
#pragma unroll
            for (int i = 1; i < f::COUNT; i++) largest = fmaxf(largest, x.at[i]);
            raise<to>(o, largest);
#pragma unroll
            for (int i = 0; i < f::COUNT; i++) o.sum += exponential<to>(x.at[i] - o.largest);
        }
    }
    __device__ void write(int part, const gradient &g, int64_t t) const
    {
        for (int k = part_begin(part); k < part_begin(part + 1) && piece_at(k) < pieces; k++) {
            typename f::numbers x = f::unpack(ring[k * STAGED_THREADS]);
#pragma unroll
            for (int i = 0; i < f::COUNT; i++) x.at[i] = slope_of<to>(g, x.at[i]);
            store_numbers(slopes(t) + piece_at(k) * f::COUNT, x);
        }
    }
    /* Whether this thread has copied the target, and where it then lies in shared memory. */
    __device__ bool owns(int32_t target) const
    {
        int64_t piece = target / f::COUNT, chunk = piece / STAGED_THREADS;
        return is_logit(a, target) && piece % STAGED_THREADS == threadIdx.x && chunk % ranks == rank;
    }
    __device__ float staged(int32_t target) const
    {
        int64_t k = target / f::COUNT / STAGED_THREADS / ranks;
        return f::decode(((const typename f::element *)(ring + k * STAGED_THREADS))[target % f::COUNT]);
    }
};

/* What the blocks of a cluster tell one another, for rows of even and of odd turns: a block that is ahead must not
 * overwrite what another still reads. */
struct exchange {
    online part[2][MAX_RANKS];
    float chosen[2];
};

/* Tell all blocks this block's part of a row, and wait for theirs. Every thread has the result. */
template <fp8flow_dtype to> __device__ static online cluster_merge(online o, exchange &mine, int turn)
{
    cg::cluster_group cluster = cg::this_cluster();
    int ranks = (int)cluster.num_blocks();
    if (threadIdx.x < ranks) cluster.map_shared_rank(&mine, threadIdx.x)->part[turn][cluster.block_rank()] = o;
    cluster.sync();
    online all = mine.part[turn][0];
    for (int r = 1; r < ranks; r++) all.largest = fmaxf(all.largest, mine.part[turn][r].largest);
    all.sum = 0.0f;
    for (int r = 0; r < ranks; r++) {
        online part = mine.part[turn][r];
        raise<to>(part, all.largest);
        all.sum += part.sum;
    }
    return all;
}

template <fp8flow_dtype from, fp8flow_dtype to>
__global__ static void __launch_bounds__(STAGED_THREADS, 1) cross_entropy_staged_kernel(entropy_call a, int depth)
{
    extern __shared__ uint4 ring[];
    __shared__ online sums[WARPS];
    __shared__ exchange mine;
    cg::cluster_group cluster = cg::this_cluster();
    const int ranks = (int)cluster.num_blocks();
    const staged_row<from, to> row = { a,     ring + threadIdx.x, (int)cluster.block_rank(), ranks,
                                    depth, a.vocabulary / format<from>::COUNT };
    const int64_t step = gridDim.x / ranks;
    int turn = 0;
    cluster.sync(); /* a block that has not started cannot be told anything */
    int64_t t = blockIdx.x / ranks;
    for (int part = 0; part < PARTS; part++) row.fetch(t, part);
    for (; t < a.num_tokens; t += step, turn ^= 1) {
        int32_t target = __ldg(a.target + t);
        bool is_owner = row.owns(target);
        online o = { -FLT_MAX, 0.0f };
        __pipeline_wait_prior(3);
        row.absorb(0, o);
        __pipeline_wait_prior(2);
        row.absorb(1, o);
        __pipeline_wait_prior(1);
        row.absorb(2, o);
        __pipeline_wait_prior(0);
        row.absorb(3, o);
        float own = is_owner ? row.staged(target) : NAN;
        for (int r = 0; is_owner && r < ranks; r++) cluster.map_shared_rank(&mine, r)->chosen[turn] = own;
        o = cluster_merge<to>(block_merge<to>(o, sums), mine, turn);
        float chosen = is_logit(a, target) ? mine.chosen[turn] : NAN;
        if (threadIdx.x == 0 && row.rank == 0) a.loss[t] = loss_of(o, target, chosen);
        gradient g = gradient_of(a, o, target, chosen);
        for (int part = 0; part < PARTS; part++) {
            if (a.gradient) row.write(part, g, t);
            row.fetch(t + step, part);
        }
        if (is_owner && a.gradient) row.slopes(t)[target] = format<to>::encode(target_slope_of<to>(g, own));
    }
}

/* Blocks per row so that a thread has at most MAX_DEPTH pieces; 0 if the row is too long. */
static int ranks_for(int64_t pieces)
{
    for (int ranks = 1; ranks <= MAX_RANKS; ranks *= 2)
        if (f8_ceil_div(pieces, STAGED_THREADS * ranks) <= MAX_DEPTH) return ranks;
    return 0;
}

/* As many clusters as the GPU holds at once: one that had to wait would double the time. */
template <fp8flow_dtype from, fp8flow_dtype to>
static fp8flow_status launch_staged(const entropy_call &a, int64_t pieces, int ranks, cudaStream_t stream)
{
    auto kernel = cross_entropy_staged_kernel<from, to>;
    int depth = (int)f8_ceil_div(pieces, STAGED_THREADS * ranks), clusters = 0;
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(ranks);
    config.blockDim = dim3(STAGED_THREADS);
    config.dynamicSmemBytes = depth * STAGED_THREADS * sizeof(uint4);
    config.stream = stream;
    f8_use_clusters(&config, &attribute, ranks);
    f8_allow_shared(kernel, (int)config.dynamicSmemBytes);
    cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
    F8_REQUIRE(error == cudaSuccess && clusters > 0, EBACKEND, "cross_entropy: cuda: %s, room for %d clusters of %d",
               cudaGetErrorString(error), clusters, ranks);
    config.gridDim = dim3((unsigned)(a.num_tokens < clusters ? a.num_tokens : clusters) * ranks);
    error = cudaLaunchKernelEx(&config, kernel, a, depth);
    F8_REQUIRE(error == cudaSuccess, EBACKEND, "cross_entropy: cuda: %s", cudaGetErrorString(error));
    return f8_launched("cross_entropy");
}

template <fp8flow_dtype from, fp8flow_dtype to>
static fp8flow_status launch(const entropy_call &a, cudaStream_t stream)
{
    int64_t count = format<from>::COUNT, pieces = a.vocabulary / count;
    int64_t stride_bytes = a.stride * (int64_t)sizeof(typename format<from>::element);
    int64_t gradient_bytes = a.gradient_stride * (int64_t)sizeof(typename format<to>::element);
    int ranks = ranks_for(pieces);
    bool wide = a.vocabulary % count == 0 && f8_aligned16(a.logits, stride_bytes) &&
                f8_aligned16(a.gradient, gradient_bytes);
    if (wide && ranks > 0 && pieces >= STAGED_THREADS) return launch_staged<from, to>(a, pieces, ranks, stream);
    cross_entropy_plain_kernel<from, to><<<f8_grid(a.num_tokens, 1), PLAIN_THREADS, 0, stream>>>(a);
    return f8_launched("cross_entropy");
}

template <fp8flow_dtype from>
static fp8flow_status launch_from(const entropy_call &a, fp8flow_dtype to, cudaStream_t stream)
{
    if (to == FP8FLOW_BF16) return launch<from, FP8FLOW_BF16>(a, stream);
    return launch<from, FP8FLOW_F32>(a, stream);
}

extern "C" fp8flow_status f8_cuda_cross_entropy(fp8flow_context *c, const fp8flow_cross_entropy_args *a)
{
    const fp8flow_tensor *logits = a->logits, *gradient = a->gradient;
    entropy_call call = { logits->data, NULL, a->target, a->loss, logits->stride, 0, logits->rows, logits->cols,
                          a->grad_scale };
    fp8flow_dtype to = FP8FLOW_BF16; /* of no gradient */
    if (gradient) {
        call.gradient = gradient->data;
        call.gradient_stride = gradient->stride;
        to = gradient->dtype;
    }
    if (call.num_tokens == 0) return FP8FLOW_OK;
    if (logits->dtype == FP8FLOW_BF16) return launch_from<FP8FLOW_BF16>(call, to, f8_stream(c));
    return launch_from<FP8FLOW_F32>(call, to, f8_stream(c));
}
