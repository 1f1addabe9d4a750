/* vocab.cu - CUDA side of embed and embed_backward. Contract: fp8flow_ops.h. CPU side: vocab.c.
 *
 * embed: a warp copies one token's row in 16-byte pieces, four under way in every lane. Traffic: two bytes read and two
 * written per element.
 *
 * embed_backward adds the tokens of an id in ascending order without sorting all tokens: the first token of an id owns
 * the row; a warp lists the further tokens of an id, if there are any, by looking at all later ids; the owner adds its
 * own row and the listed ones. An id with more than CHAIN further tokens would keep its few threads busy for long: its
 * columns are spread over many blocks of threads, all of whose warps bring rows to shared memory, while one adds.
 * Tokens are taken in slices, so that a list is found in bounded time whatever the ids
 * are; slices follow one another on the stream. Traffic: two bytes per element of dy, eight per touched element of
 * dtable and slice.
 */
#include <cuda_pipeline.h>

#include "ops/launch.cuh"
#include "ops/nan.h"
#include "ops/plain.h"
#include "ops/warp.cuh"

enum { THREADS = 256, WARPS = THREADS / F8_WARP };

/* ---- embed ---- */

enum { COPY_DEPTH = 4 };

__device__ static void set_nan(uint4 *to)
{
    *to = make_uint4(0x7FC07FC0u, 0x7FC07FC0u, 0x7FC07FC0u, 0x7FC07FC0u);
}

__device__ static void set_nan(uint16_t *to)
{
    *to = 0x7FC0u;
}

/* Rows of y consist of `units` units. Rows of the table may be wanted again: they stay in L2. */
template <class unit>
__global__ static void embed_kernel(fp8flow_tensor table, const int32_t *ids, fp8flow_tensor y, int64_t units)
{
    int64_t t = (int64_t)blockIdx.x * WARPS + threadIdx.x / F8_WARP;
    if (t >= y.rows) return;
    int32_t id = ids[t];
    bool found = id >= 0 && id < table.rows;
    const unit *from = (const unit *)((const uint16_t *)table.data + (found ? id : 0) * table.stride);
    unit *to = (unit *)((uint16_t *)y.data + t * y.stride);
    for (int64_t i = f8_lane(); i < units; i += COPY_DEPTH * F8_WARP) {
        unit piece[COPY_DEPTH];
#pragma unroll
        for (int d = 0; d < COPY_DEPTH; d++) {
            set_nan(&piece[d]);
            if (found && i + d * F8_WARP < units) piece[d] = __ldg(from + i + d * F8_WARP);
        }
#pragma unroll
        for (int d = 0; d < COPY_DEPTH; d++)
            if (i + d * F8_WARP < units) __stcs(to + i + d * F8_WARP, piece[d]);
    }
}

extern "C" fp8flow_status f8_cuda_embed(fp8flow_context *c, const fp8flow_embed_args *a)
{
    if (a->y->rows == 0 || a->y->cols == 0) return FP8FLOW_OK;
    unsigned grid = f8_grid(a->y->rows, WARPS);
    bool wide = a->y->cols % 8 == 0 && f8_aligned16(a->y->data, a->y->stride * 2) &&
                f8_aligned16(a->table->data, a->table->stride * 2);
    if (wide) embed_kernel<uint4><<<grid, THREADS, 0, f8_stream(c)>>>(*a->table, a->ids, *a->y, a->y->cols / 8);
    else embed_kernel<uint16_t><<<grid, THREADS, 0, f8_stream(c)>>>(*a->table, a->ids, *a->y, a->y->cols);
    return f8_launched("embed");
}

/* ---- embed_backward ---- */

enum {
    SLICE = 16384,
    SCAN_DEPTH = 4,
    RING_ROWS = 12,
    CHAIN = 32,
    CHAIN_BLOCKS = 264,
    CHAIN_COLUMNS = 64, /* of an item of work: lines of 128 bytes */
    CHAIN_ROWS = 32,    /* of a stage: 16 bytes for each thread */
    CHAIN_STAGES = 6,
    CHAIN_PIECES = CHAIN_COLUMNS / 8
};

/* Scratch of one slice. Everything before `start` begins as -1, which is all bytes 0xFF. */
struct embed_index {
    uint32_t *first;  /* [V] first token of an id */
    int32_t *further; /* [V] tokens of an id after the first */
    int32_t *used;    /* last used place of list */
    int32_t *chains;  /* last used place of chain */
    int32_t *start;   /* [SLICE] where the list of a first token begins */
    int32_t *list;    /* [SLICE] further tokens, ascending for each id */
    int32_t *chain;   /* [SLICE / CHAIN] first tokens of the ids with more than CHAIN further ones */
};

struct embed_slice {
    const int32_t *ids;
    int32_t count;
    int64_t vocabulary;
};

__device__ static bool is_known(int32_t id, int64_t vocabulary)
{
    return id >= 0 && id < vocabulary;
}

/* The order in which these arrive does not matter: a minimum and a count. */
__global__ static void embed_count_kernel(embed_slice slice, embed_index index)
{
    int t = blockIdx.x * THREADS + threadIdx.x;
    if (t >= slice.count || !is_known(slice.ids[t], slice.vocabulary)) return;
    atomicMin(index.first + slice.ids[t], (uint32_t)t);
    atomicAdd(index.further + slice.ids[t], 1);
}

/* A warp per token that is the first of several: the others of its id, in order. Where the list begins depends on
 * timing, what it holds does not. */
__global__ static void embed_list_kernel(embed_slice slice, embed_index index)
{
    int t = blockIdx.x * WARPS + threadIdx.x / F8_WARP;
    if (t >= slice.count) return;
    int32_t id = __ldg(slice.ids + t);
    if (!is_known(id, slice.vocabulary) || index.first[id] != (uint32_t)t || index.further[id] == 0) return;
    int start = 0, found = 0, wanted = index.further[id];
    if (f8_lane() == 0) start = atomicAdd(index.used, wanted) + 1;
    start = __shfl_sync(F8_ALL_LANES, start, 0);
    if (f8_lane() == 0) index.start[t] = start;
    if (f8_lane() == 0 && wanted > CHAIN) index.chain[atomicAdd(index.chains, 1) + 1] = t;
    for (int base = t + 1; found < wanted && base < slice.count; base += SCAN_DEPTH * F8_WARP) {
        int32_t other[SCAN_DEPTH];
#pragma unroll
        for (int d = 0; d < SCAN_DEPTH; d++) {
            int at = base + d * F8_WARP + f8_lane();
            other[d] = at < slice.count ? __ldg(slice.ids + at) : -1;
        }
#pragma unroll
        for (int d = 0; d < SCAN_DEPTH; d++) {
            uint32_t same = __ballot_sync(F8_ALL_LANES, other[d] == id), below = (1u << f8_lane()) - 1;
            if (other[d] == id) index.list[start + found + __popc(same & below)] = base + d * F8_WARP + f8_lane();
            found += __popc(same);
        }
    }
}

/* What one thread adds up: `columns` neighbouring elements of a row of dtable. */
template <int columns> struct embed_sum {
    float at[columns];
};

__device__ static void read(embed_sum<4> &sum, const float *from)
{
    float4 x = *(const float4 *)from;
    sum = { { x.x, x.y, x.z, x.w } };
}

__device__ static void read(embed_sum<1> &sum, const float *from)
{
    sum.at[0] = *from;
}

__device__ static void write(const embed_sum<4> &sum, float *to)
{
    *(float4 *)to = make_float4(f8_canonical(sum.at[0]), f8_canonical(sum.at[1]), f8_canonical(sum.at[2]),
                                f8_canonical(sum.at[3]));
}

__device__ static void write(const embed_sum<1> &sum, float *to)
{
    *to = f8_canonical(sum.at[0]);
}

__device__ static void add(embed_sum<4> &sum, uint2 x)
{
    sum.at[0] += f8_bf16_low(x.x);
    sum.at[1] += f8_bf16_high(x.x);
    sum.at[2] += f8_bf16_low(x.y);
    sum.at[3] += f8_bf16_high(x.y);
}

__device__ static void add_row(embed_sum<4> &sum, const uint16_t *from)
{
    add(sum, __ldcs((const uint2 *)from));
}

__device__ static void add_row(embed_sum<1> &sum, const uint16_t *from)
{
    sum.at[0] += f8_bf16_decode(*from);
}

__device__ static void add_list(embed_sum<1> &sum, const uint16_t *from, int64_t stride, const int32_t *list, int count)
{
    for (int i = 0; i < count; i++) add_row(sum, from + list[i] * stride);
}

/* Shared memory of a block: rows under way. */
union embed_ring {
    uint2 list[RING_ROWS][THREADS];
    uint4 chain[CHAIN_STAGES][CHAIN_ROWS][CHAIN_PIECES];
};

/* The rows of a list pass through a ring in which a thread reads what it copied itself, RING_ROWS of them under way. */
__device__ static void add_list(embed_sum<4> &sum, const uint16_t *from, int64_t stride, const int32_t *list, int count)
{
    extern __shared__ uint4 memory[];
    uint2 (*ring)[THREADS] = ((embed_ring *)memory)->list;
    for (int i = 0; i < count + RING_ROWS - 1; i++) {
        if (i < count)
            __pipeline_memcpy_async(&ring[i % RING_ROWS][threadIdx.x], from + __ldg(list + i) * stride, sizeof(uint2));
        __pipeline_commit();
        if (i < RING_ROWS - 1) continue;
        __pipeline_wait_prior(RING_ROWS - 1);
        add(sum, ring[(i + 1) % RING_ROWS][threadIdx.x]);
    }
}

/* ---- Chains ---- */

/* The tokens of one id: `first`, then the list. */
struct embed_chain {
    int32_t first, count;
    const int32_t *list;
};

/* -1: there are not so many. */
__device__ static int chain_token(const embed_chain &chain, int i)
{
    if (i >= chain.count) return -1;
    return i == 0 ? chain.first : __ldg(chain.list + i - 1);
}

/* Two columns of the rows of a stage, in order. */
__device__ static void add_stage(float2 &sum, const uint4 (&stage)[CHAIN_ROWS][CHAIN_PIECES], int rows)
{
    if (rows >= CHAIN_ROWS) {
#pragma unroll
        for (int r = 0; r < CHAIN_ROWS; r++) {
            uint32_t pair = ((const uint32_t *)stage[r])[f8_lane()];
            sum.x += f8_bf16_low(pair);
            sum.y += f8_bf16_high(pair);
        }
    } else {
        for (int r = 0; r < rows; r++) {
            uint32_t pair = ((const uint32_t *)stage[r])[f8_lane()];
            sum.x += f8_bf16_low(pair);
            sum.y += f8_bf16_high(pair);
        }
    }
}

/* CHAIN_COLUMNS columns of one id from `col` on; `to`: its row of dtable. The first warp adds a stage while the others'
 * rows arrive; a stage is written again one barrier after it was read. */
__device__ static void add_chain(const embed_chain &chain, const fp8flow_tensor &dy, float *to, int64_t col,
                                 embed_ring &ring)
{
    int row = (int)threadIdx.x / CHAIN_PIECES, piece = (int)threadIdx.x % CHAIN_PIECES;
    int stages = (chain.count + CHAIN_ROWS - 1) / CHAIN_ROWS, next = chain_token(chain, row);
    int64_t column = col + f8_lane() * 2;
    const uint16_t *from = (const uint16_t *)dy.data + col + piece * 8;
    bool loads = col + piece * 8 < dy.cols, adds = threadIdx.x < F8_WARP && column < dy.cols;
    float2 sum = adds ? *(const float2 *)(to + column) : make_float2(0.0f, 0.0f);
    for (int s = 0; s < stages + CHAIN_STAGES - 2; s++) {
        if (loads && next >= 0)
            __pipeline_memcpy_async(&ring.chain[s % CHAIN_STAGES][row][piece], from + next * dy.stride, sizeof(uint4));
        next = chain_token(chain, (s + 1) * CHAIN_ROWS + row);
        __pipeline_commit();
        int ready = s - (CHAIN_STAGES - 2);
        if (ready < 0) continue;
        __pipeline_wait_prior(CHAIN_STAGES - 2);
        __syncthreads();
        if (adds) add_stage(sum, ring.chain[ready % CHAIN_STAGES], chain.count - ready * CHAIN_ROWS);
    }
    if (adds) *(float2 *)(to + column) = make_float2(f8_canonical(sum.x), f8_canonical(sum.y));
    __syncthreads(); /* the ring is free for the next chain */
}

/* Items of work are chains times strips of columns; `block` of `blocks` takes every `blocks`-th. */
__device__ static void add_chains(const embed_slice &slice, const embed_index &index, const fp8flow_tensor &dy,
                                  const fp8flow_tensor &dtable, int block, int blocks)
{
    extern __shared__ uint4 memory[];
    int strips = (int)((dy.cols + CHAIN_COLUMNS - 1) / CHAIN_COLUMNS);
    int64_t items = (int64_t)(*index.chains + 1) * strips;
    for (int64_t item = block; item < items; item += blocks) {
        int t = index.chain[item / strips];
        int32_t id = __ldg(slice.ids + t);
        embed_chain chain = { t, index.further[id] + 1, index.list + index.start[t] };
        add_chain(chain, dy, (float *)dtable.data + id * dtable.stride, item % strips * CHAIN_COLUMNS,
                  *(embed_ring *)memory);
    }
}

/* blockIdx.x: token, which does nothing unless it is the first of its id; blockIdx.y: columns. Where a thread has four
 * columns, CHAIN_BLOCKS blocks before the tokens have the chains. */
template <int columns>
__global__ static void __launch_bounds__(THREADS)
    embed_add_kernel(embed_slice slice, embed_index index, fp8flow_tensor dy, fp8flow_tensor dtable)
{
    const int chain_blocks = columns == 4 ? CHAIN_BLOCKS : 0;
    if ((int)blockIdx.x < chain_blocks) {
        add_chains(slice, index, dy, dtable, (int)(blockIdx.y * CHAIN_BLOCKS + blockIdx.x),
                   (int)gridDim.y * CHAIN_BLOCKS);
        return;
    }
    int t = (int)blockIdx.x - chain_blocks;
    int64_t col = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * columns;
    int32_t id = __ldg(slice.ids + t);
    if (col >= dy.cols || !is_known(id, slice.vocabulary) || index.first[id] != (uint32_t)t) return;
    int further = index.further[id];
    if (chain_blocks > 0 && further > CHAIN) return;
    const uint16_t *from = (const uint16_t *)dy.data + col;
    float *to = (float *)dtable.data + id * dtable.stride + col;
    embed_sum<columns> sum;
    read(sum, to);
    add_row(sum, from + t * dy.stride);
    if (further > 0) add_list(sum, from, dy.stride, index.list + index.start[t], further);
    write(sum, to);
}

static void launch_slice(const embed_slice &slice, const embed_index &index, const fp8flow_tensor &dy,
                         const fp8flow_tensor &dtable, cudaStream_t stream)
{
    bool wide = dy.cols % 8 == 0 && f8_aligned16(dtable.data, dtable.stride * 4) &&
                f8_aligned16(dy.data, dy.stride * 2);
    dim3 grid(slice.count + (wide ? CHAIN_BLOCKS : 0), f8_grid(dy.cols, THREADS * (wide ? 4 : 1)));
    embed_count_kernel<<<f8_grid(slice.count, THREADS), THREADS, 0, stream>>>(slice, index);
    embed_list_kernel<<<f8_grid(slice.count, WARPS), THREADS, 0, stream>>>(slice, index);
    if (wide) embed_add_kernel<4><<<grid, THREADS, sizeof(embed_ring), stream>>>(slice, index, dy, dtable);
    else embed_add_kernel<1><<<grid, THREADS, 0, stream>>>(slice, index, dy, dtable);
}

extern "C" fp8flow_status f8_cuda_embed_backward(fp8flow_context *c, const fp8flow_embed_backward_args *a)
{
    int64_t vocabulary = a->dtable->rows, starts = 2 * vocabulary + 2, words = starts + 2 * SLICE + SLICE / CHAIN;
    F8_REQUIRE(words * 4 <= F8_CUDA_SCRATCH_BYTES, ESHAPE,
               "embed_backward: dtable has %lld rows, its index needs %lld bytes of scratch, there are %d",
               (long long)vocabulary, (long long)(words * 4), F8_CUDA_SCRATCH_BYTES);
    if (a->dy->rows == 0 || a->dy->cols == 0 || vocabulary == 0) return FP8FLOW_OK;
    int32_t *scratch = (int32_t *)f8_cuda_scratch(c), *used = scratch + 2 * vocabulary, *start = scratch + starts;
    embed_index index = { (uint32_t *)scratch, scratch + vocabulary, used,
                          used + 1,            start,                start + SLICE,
                          start + 2 * SLICE };
    for (int64_t t = 0; t < a->dy->rows; t += SLICE) {
        int64_t count = a->dy->rows - t < SLICE ? a->dy->rows - t : SLICE;
        fp8flow_tensor dy = *a->dy;
        dy.data = f8_bf16_row(a->dy, t);
        cudaError_t error = cudaMemsetAsync(scratch, 0xFF, starts * 4, f8_stream(c));
        F8_REQUIRE(error == cudaSuccess, EBACKEND, "embed_backward: cuda: %s", cudaGetErrorString(error));
        launch_slice({ a->ids + t, (int32_t)count, vocabulary }, index, dy, *a->dtable, f8_stream(c));
    }
    return f8_launched("embed_backward");
}
