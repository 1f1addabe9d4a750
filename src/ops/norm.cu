/* norm.cu - CUDA side of rmsnorm and rmsnorm_backward. Contract: fp8flow_ops.h. CPU side: norm.c.
 *
 * A segment belongs to a group of `lanes` threads, part of a warp for a head, a whole block for a wide row; each thread
 * has the 16-byte pieces lane, lane + lanes, ... Forward keeps them in registers between the sum and the scaling: two
 * bytes read and two written per element. Backward streams segments through a ring in shared memory in which every
 * thread reads only what it copied itself, so that the ring needs no barrier; the weight gradient of a thread's columns
 * stays in registers, is written once per block (a slab of segments), and a second kernel adds the slabs: six bytes per
 * element. Numbers of slabs are constants: the bits do not depend on the GPU. Lines without 16-byte alignment, and
 * backward beyond 16384 columns, take plain kernels with one element per access.
 */
#include <cuda_pipeline.h>

#include "ops/launch.cuh"
#include "ops/norm.h"
#include "ops/warp.cuh"

enum { PIECE = 8, PLAIN_THREADS = 256, MULTIPROCESSORS = 132 };

/* Which elements form a segment. */
struct norm_shape {
    int64_t segments, per_row;
    int32_t width;
    float inverse_width;
};

/* A segment, the row that it lies in, and how many segments of the row come before it. */
struct norm_place {
    int64_t segment, row, in_row;
};

struct norm_forward {
    norm_shape shape;
    const uint16_t *x;
    uint16_t *y;
    const float *weight;
    float *rstd; /* may be NULL */
    int64_t x_stride, y_stride;
    float eps;
};

struct norm_backward {
    norm_shape shape;
    const uint16_t *x, *dy;
    uint16_t *dx;
    const float *weight, *rstd;
    float *partial; /* [slabs, width] */
    int64_t x_stride, dy_stride, dx_stride;
};

__device__ static norm_place place_of(const norm_shape &shape, int64_t segment)
{
    int64_t row = shape.per_row == 1 ? segment : segment / shape.per_row;
    return { segment, row, segment - row * shape.per_row };
}

/* Move on by `step`; a division for every segment would be felt. */
__device__ static void advance(norm_place &at, const norm_shape &shape, const norm_place &step)
{
    at.segment += step.segment;
    at.row += step.row;
    at.in_row += step.in_row;
    if (at.in_row < shape.per_row) return;
    at.in_row -= shape.per_row;
    at.row++;
}

/* Element of a tensor at which a segment starts. */
__device__ static int64_t start_of(const norm_shape &shape, const norm_place &at, int64_t stride)
{
    return at.row * stride + at.in_row * shape.width;
}

/* Sum over a group; every thread has the result. `sums` may be used again after one more barrier. */
template <int lanes> __device__ static float group_sum(float x, float *sums)
{
    if constexpr (lanes <= F8_WARP) {
        return f8_warp_sum<lanes>(x);
    } else {
        const int warps = lanes / F8_WARP;
        x = f8_warp_sum(x);
        if (f8_lane() == 0) sums[threadIdx.x / F8_WARP] = x;
        __syncthreads();
        return f8_warp_sum<warps>(sums[threadIdx.x % warps]);
    }
}

/* Weights are read by every block: they stay in L1. */
__device__ static f8_octet load_weight(const float *weight)
{
    float4 a = __ldg((const float4 *)weight), b = __ldg((const float4 *)weight + 1);
    return { { a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w } };
}

__device__ static float root(float square_sum, const norm_forward &a)
{
    return 1.0f / sqrtf(square_sum * a.shape.inverse_width + a.eps);
}

/* ---- Forward ---- */

template <int lanes> struct forward_block {
    static const int threads = lanes > 128 ? lanes : 128, groups = threads / lanes;
};

template <int lanes, int pieces>
__global__ static void __launch_bounds__(forward_block<lanes>::threads) rmsnorm_kernel(norm_forward a)
{
    __shared__ float sums[F8_WARP];
    const int lane = threadIdx.x % lanes, used = a.shape.width / PIECE;
    int64_t segment = (int64_t)blockIdx.x * forward_block<lanes>::groups + threadIdx.x / lanes;
    bool valid = segment < a.shape.segments; /* other groups of the warp need this one's lanes in the sum */
    norm_place place = place_of(a.shape, segment);
    const uint16_t *x = a.x + start_of(a.shape, place, a.x_stride);
    uint16_t *y = a.y + start_of(a.shape, place, a.y_stride);
    uint4 piece[pieces];
#pragma unroll
    for (int p = 0; p < pieces; p++) {
        int at = lane + p * lanes;
        piece[p] = valid && at < used ? f8_load16(x + at * PIECE) : make_uint4(0, 0, 0, 0);
    }
    float square_sum = 0.0f;
#pragma unroll
    for (int p = 0; p < pieces; p++) {
        f8_octet v = f8_unpack8(piece[p]);
#pragma unroll
        for (int i = 0; i < PIECE; i++) square_sum = fmaf(v.at[i], v.at[i], square_sum);
    }
    float r = root(group_sum<lanes>(square_sum, sums), a);
    if (!valid) return;
#pragma unroll
    for (int p = 0; p < pieces; p++) {
        int at = lane + p * lanes;
        if (at >= used) break;
        f8_octet v = f8_unpack8(piece[p]), w = load_weight(a.weight + at * PIECE);
#pragma unroll
        for (int i = 0; i < PIECE; i++) v.at[i] = v.at[i] * r * w.at[i];
        f8_store16(y + at * PIECE, f8_pack8_fast(v));
    }
    if (a.rstd && lane == 0) a.rstd[segment] = r;
}

/* A warp per segment, one element per access, x twice. */
__global__ static void rmsnorm_plain_kernel(norm_forward a)
{
    int64_t segment = ((int64_t)blockIdx.x * PLAIN_THREADS + threadIdx.x) / F8_WARP;
    if (segment >= a.shape.segments) return;
    norm_place place = place_of(a.shape, segment);
    const uint16_t *x = a.x + start_of(a.shape, place, a.x_stride);
    uint16_t *y = a.y + start_of(a.shape, place, a.y_stride);
    float square_sum = 0.0f;
    for (int i = f8_lane(); i < a.shape.width; i += F8_WARP) {
        float v = f8_bf16_decode(x[i]);
        square_sum = fmaf(v, v, square_sum);
    }
    float r = root(f8_warp_sum(square_sum), a);
    for (int i = f8_lane(); i < a.shape.width; i += F8_WARP)
        y[i] = f8_bf16_encode(f8_bf16_decode(x[i]) * r * a.weight[i]);
    if (a.rstd && f8_lane() == 0) a.rstd[segment] = r;
}

template <int lanes, int pieces> static void launch_forward(const norm_forward &a, cudaStream_t stream)
{
    using block = forward_block<lanes>;
    unsigned grid = f8_grid(a.shape.segments, block::groups);
    rmsnorm_kernel<lanes, pieces><<<grid, block::threads, 0, stream>>>(a);
}

static norm_shape shape_of(const fp8flow_tensor *x, int64_t width)
{
    int64_t per_row = x->cols / width;
    return { x->rows * per_row, per_row, (int32_t)width, 1.0f / (float)width };
}

static bool is_wide(const fp8flow_tensor *t)
{
    return f8_aligned16(t->data, t->stride * 2);
}

extern "C" fp8flow_status f8_cuda_rmsnorm(fp8flow_context *c, const fp8flow_rmsnorm_args *a)
{
    norm_forward f = { shape_of(a->x, a->width), (const uint16_t *)a->x->data, (uint16_t *)a->y->data, a->weight,
                       a->rstd, a->x->stride, a->y->stride, a->eps };
    if (f.shape.segments == 0) return FP8FLOW_OK;
    cudaStream_t s = f8_stream(c);
    int64_t used = a->width / PIECE;
    if (a->width % PIECE != 0 || !is_wide(a->x) || !is_wide(a->y) || !f8_aligned16(a->weight, 0))
        rmsnorm_plain_kernel<<<f8_grid(f.shape.segments, PLAIN_THREADS / F8_WARP), PLAIN_THREADS, 0, s>>>(f);
    else if (used <= 8) launch_forward<8, 1>(f, s);
    else if (used <= 16) launch_forward<8, 2>(f, s);
    else if (used <= 32) launch_forward<16, 2>(f, s);
    else if (used <= 64) launch_forward<32, 2>(f, s);
    else if (used <= 128) launch_forward<32, 4>(f, s);
    else if (used <= 256) launch_forward<128, 2>(f, s);
    else if (used <= 512) launch_forward<128, 4>(f, s);
    else if (used <= 1024) launch_forward<128, 8>(f, s);
    else if (used <= 2048) launch_forward<256, 8>(f, s);
    else if (used <= 4096) launch_forward<512, 8>(f, s);
    else launch_forward<1024, 8>(f, s);
    return f8_launched("rmsnorm");
}

/* ---- Backward ---- */

template <int lanes, int pieces> struct backward_block {
    static const int threads = lanes > F8_WARP ? lanes : 256, groups = threads / lanes, stages = 3;
    static const int resident = threads * pieces > 1024 ? 1 : 1024 / threads; /* blocks per multiprocessor */
    static const int slabs = MULTIPROCESSORS * resident;
    static const int stage_pieces = 2 * pieces * threads, ring_bytes = stages * stage_pieces * 16;
};

/* What one thread knows while it walks over its segments. */
template <int lanes, int pieces> struct backward_walk {
    using block = backward_block<lanes, pieces>;
    const norm_backward &a;
    uint4 *ring; /* [stages][x, dy][pieces][threads], from this thread's column on */
    int lane, used;

    __device__ int piece_at(int p) const
    {
        return lane + p * lanes;
    }
    __device__ uint4 *slot(int stage, int operand, int p) const
    {
        return ring + stage * block::stage_pieces + (operand * pieces + p) * block::threads;
    }
    /* Start the copy of a segment; one without an end is an empty copy, so that copies can be counted. */
    __device__ void fetch(const norm_place &place, int stage) const
    {
        if (place.segment < a.shape.segments) {
            const uint16_t *x = a.x + start_of(a.shape, place, a.x_stride);
            const uint16_t *dy = a.dy + start_of(a.shape, place, a.dy_stride);
#pragma unroll
            for (int p = 0; p < pieces; p++) {
                if (piece_at(p) >= used) break;
                __pipeline_memcpy_async(slot(stage, 0, p), x + piece_at(p) * PIECE, 16);
                __pipeline_memcpy_async(slot(stage, 1, p), dy + piece_at(p) * PIECE, 16);
            }
        }
        __pipeline_commit();
    }
    /* This thread's part of sum dy * weight * u; adds dy * u to its columns of the weight gradient. */
    __device__ float reduce(int stage, float r, f8_octet (&sum)[pieces]) const
    {
        float dot = 0.0f;
#pragma unroll
        for (int p = 0; p < pieces; p++) {
            if (piece_at(p) >= used) break;
            f8_octet x = f8_unpack8(*slot(stage, 0, p)), dy = f8_unpack8(*slot(stage, 1, p));
            f8_octet w = load_weight(a.weight + piece_at(p) * PIECE);
#pragma unroll
            for (int i = 0; i < PIECE; i++) {
                float dy_u = dy.at[i] * (x.at[i] * r);
                sum[p].at[i] += dy_u;
                dot = fmaf(dy_u, w.at[i], dot);
            }
        }
        return dot;
    }
    __device__ void write(int stage, float r, float slope, uint16_t *dx) const
    {
#pragma unroll
        for (int p = 0; p < pieces; p++) {
            if (piece_at(p) >= used) break;
            f8_octet x = f8_unpack8(*slot(stage, 0, p)), dy = f8_unpack8(*slot(stage, 1, p));
            f8_octet w = load_weight(a.weight + piece_at(p) * PIECE);
#pragma unroll
            for (int i = 0; i < PIECE; i++) x.at[i] = fmaf(-x.at[i], slope, dy.at[i] * w.at[i]) * r;
            f8_store16(dx + piece_at(p) * PIECE, f8_pack8_fast(x));
        }
    }
};

/* Add the groups of a block in ascending order and write the slab's row of partial sums. */
template <int lanes, int pieces>
__device__ static void write_partial(const backward_walk<lanes, pieces> &walk, const f8_octet (&sum)[pieces],
                                     float *shared)
{
    using block = backward_block<lanes, pieces>;
    const int capacity = lanes * pieces * PIECE, width = walk.a.shape.width;
    float *partial = walk.a.partial + (int64_t)blockIdx.x * width;
    __pipeline_wait_prior(0);
    __syncthreads(); /* the ring is free */
#pragma unroll
    for (int p = 0; p < pieces; p++) {
        float4 *to = (float4 *)(shared + threadIdx.x / lanes * capacity + walk.piece_at(p) * PIECE);
        to[0] = make_float4(sum[p].at[0], sum[p].at[1], sum[p].at[2], sum[p].at[3]);
        to[1] = make_float4(sum[p].at[4], sum[p].at[5], sum[p].at[6], sum[p].at[7]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += block::threads) {
        float total = 0.0f;
        for (int group = 0; group < block::groups; group++) total += shared[group * capacity + i];
        partial[i] = total;
    }
}

template <int lanes, int pieces>
__global__ static void
__launch_bounds__(backward_block<lanes, pieces>::threads, backward_block<lanes, pieces>::resident)
    rmsnorm_backward_kernel(norm_backward a)
{
    using block = backward_block<lanes, pieces>;
    extern __shared__ uint4 ring[];
    __shared__ float sums[2][F8_WARP];
    const backward_walk<lanes, pieces> walk = { a, ring + threadIdx.x, (int)threadIdx.x % lanes,
                                                a.shape.width / PIECE };
    const int64_t begin = (int64_t)blockIdx.x * block::groups;
    const norm_place step = place_of(a.shape, (int64_t)gridDim.x * block::groups);
    norm_place here = place_of(a.shape, begin + threadIdx.x / lanes), ahead = here;
    f8_octet sum[pieces] = {};
    for (int stage = 0; stage < block::stages - 1; stage++, advance(ahead, a.shape, step)) walk.fetch(ahead, stage);
    float next_r = here.segment < a.shape.segments ? a.rstd[here.segment] : 0.0f;
    int stage = 0, parity = 0;
    /* All groups of a block take the same number of turns: the last turn may find no segment for some. */
    for (int64_t base = begin; base < a.shape.segments; base += step.segment, parity ^= 1) {
        float r = next_r;
        bool valid = here.segment < a.shape.segments;
        walk.fetch(ahead, (stage + block::stages - 1) % block::stages);
        advance(ahead, a.shape, step);
        __pipeline_wait_prior(block::stages - 1);
        float dot = group_sum<lanes>(valid ? walk.reduce(stage, r, sum) : 0.0f, sums[parity]);
        float slope = r * (dot * a.shape.inverse_width);
        if (valid) walk.write(stage, r, slope, a.dx + start_of(a.shape, here, a.dx_stride));
        advance(here, a.shape, step);
        next_r = here.segment < a.shape.segments ? a.rstd[here.segment] : 0.0f;
        stage = (stage + 1) % block::stages;
    }
    write_partial<lanes, pieces>(walk, sum, (float *)ring);
}

enum { WEIGHT_PARTS = 32 };

/* A warp has 32 neighbouring columns and every 32nd slab; the parts are added in ascending order. */
__global__ static void rmsnorm_weight_kernel(const float *partial, int slabs, int width, float *dweight)
{
    __shared__ float sums[WEIGHT_PARTS][F8_WARP];
    int col = blockIdx.x * F8_WARP + f8_lane(), part = threadIdx.x / F8_WARP;
    float sum = 0.0f;
    if (col < width) {
#pragma unroll 8
        for (int slab = part; slab < slabs; slab += WEIGHT_PARTS) sum += partial[(int64_t)slab * width + col];
    }
    sums[part][f8_lane()] = sum;
    __syncthreads();
    if (part != 0 || col >= width) return;
    for (int i = 1; i < WEIGHT_PARTS; i++) sum += sums[i][f8_lane()];
    dweight[col] += sum;
}

static void launch_weight(const norm_backward &a, int slabs, float *dweight, cudaStream_t stream)
{
    unsigned grid = f8_grid(a.shape.width, F8_WARP);
    rmsnorm_weight_kernel<<<grid, WEIGHT_PARTS * F8_WARP, 0, stream>>>(a.partial, slabs, a.shape.width, dweight);
}

template <int lanes, int pieces>
static fp8flow_status launch_backward(const norm_backward &a, float *dweight, cudaStream_t stream)
{
    using block = backward_block<lanes, pieces>;
    auto kernel = rmsnorm_backward_kernel<lanes, pieces>;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, block::ring_bytes);
    F8_REQUIRE(error == cudaSuccess, EBACKEND, "rmsnorm_backward: cuda: %s", cudaGetErrorString(error));
    int64_t turns = f8_ceil_div(a.shape.segments, block::groups);
    int slabs = (int)(turns < block::slabs ? turns : block::slabs);
    kernel<<<slabs, block::threads, block::ring_bytes, stream>>>(a);
    launch_weight(a, slabs, dweight, stream);
    return f8_launched("rmsnorm_backward");
}

/* slope[i] = r * mean(dy * weight * u) of segment first + i; a warp each. */
__global__ static void rmsnorm_slope_kernel(norm_backward a, int64_t first, int64_t count, float *slope)
{
    int64_t index = ((int64_t)blockIdx.x * PLAIN_THREADS + threadIdx.x) / F8_WARP;
    if (index >= count) return;
    norm_place place = place_of(a.shape, first + index);
    const uint16_t *x = a.x + start_of(a.shape, place, a.x_stride);
    const uint16_t *dy = a.dy + start_of(a.shape, place, a.dy_stride);
    float r = a.rstd[first + index], dot = 0.0f;
    for (int i = f8_lane(); i < a.shape.width; i += F8_WARP)
        dot = fmaf(f8_bf16_decode(dy[i]) * (f8_bf16_decode(x[i]) * r), a.weight[i], dot);
    dot = f8_warp_sum(dot);
    if (f8_lane() == 0) slope[index] = r * (dot * a.shape.inverse_width);
}

/* A thread has one column of a slab's segments (blockIdx.y). */
__global__ static void rmsnorm_columns_kernel(norm_backward a, int64_t first, int64_t count, const float *slope)
{
    int col = blockIdx.x * PLAIN_THREADS + threadIdx.x;
    if (col >= a.shape.width) return;
    int64_t per_slab = f8_ceil_div(count, F8_NORM_SLABS), begin = blockIdx.y * per_slab;
    int64_t end = min(begin + per_slab, count);
    float weight = a.weight[col], sum = 0.0f;
    for (int64_t i = begin; i < end; i++) {
        norm_place place = place_of(a.shape, first + i);
        float r = a.rstd[first + i];
        float x = f8_bf16_decode(a.x[start_of(a.shape, place, a.x_stride) + col]);
        float dy = f8_bf16_decode(a.dy[start_of(a.shape, place, a.dy_stride) + col]);
        sum += dy * (x * r);
        a.dx[start_of(a.shape, place, a.dx_stride) + col] = f8_bf16_encode(fmaf(-x, slope[i], dy * weight) * r);
    }
    a.partial[(int64_t)blockIdx.y * a.shape.width + col] = sum;
}

/* Any width and alignment: x and dy twice. As many segments at a time as scratch has room for slopes. */
static fp8flow_status launch_plain_backward(const norm_backward &a, float *dweight, cudaStream_t stream)
{
    float *slope = a.partial + F8_NORM_SLABS * (int64_t)a.shape.width;
    int64_t room = F8_CUDA_SCRATCH_BYTES / 4 - F8_NORM_SLABS * (int64_t)a.shape.width;
    dim3 grid(f8_grid(a.shape.width, PLAIN_THREADS), F8_NORM_SLABS);
    for (int64_t first = 0; first < a.shape.segments; first += room) {
        int64_t count = a.shape.segments - first < room ? a.shape.segments - first : room;
        unsigned warps = f8_grid(count, PLAIN_THREADS / F8_WARP);
        rmsnorm_slope_kernel<<<warps, PLAIN_THREADS, 0, stream>>>(a, first, count, slope);
        rmsnorm_columns_kernel<<<grid, PLAIN_THREADS, 0, stream>>>(a, first, count, slope);
        launch_weight(a, F8_NORM_SLABS, dweight, stream);
    }
    return f8_launched("rmsnorm_backward");
}

extern "C" fp8flow_status f8_cuda_rmsnorm_backward(fp8flow_context *c, const fp8flow_rmsnorm_backward_args *a)
{
    norm_backward b = { shape_of(a->x, a->width), (const uint16_t *)a->x->data, (const uint16_t *)a->dy->data,
                        (uint16_t *)a->dx->data, a->weight, a->rstd, (float *)f8_cuda_scratch(c),
                        a->x->stride, a->dy->stride, a->dx->stride };
    if (b.shape.segments == 0) return FP8FLOW_OK;
    cudaStream_t s = f8_stream(c);
    int64_t used = a->width / PIECE;
    if (a->width % PIECE != 0 || used > 2048 || !is_wide(a->x) || !is_wide(a->dy) || !is_wide(a->dx) ||
        !f8_aligned16(a->weight, 0))
        return launch_plain_backward(b, a->dweight, s);
    if (used <= 16) return launch_backward<16, 1>(b, a->dweight, s);
    if (used <= 32) return launch_backward<32, 1>(b, a->dweight, s);
    if (used <= 64) return launch_backward<32, 2>(b, a->dweight, s);
    if (used <= 256) return launch_backward<128, 2>(b, a->dweight, s);
    if (used <= 512) return launch_backward<256, 2>(b, a->dweight, s);
    if (used <= 1024) return launch_backward<512, 2>(b, a->dweight, s);
    return launch_backward<512, 4>(b, a->dweight, s);
}
