/* unpermute.cu - CUDA side of unpermute. Contract: fp8flow_ops.h. CPU side: unpermute.c.
 *
 * A warp sums some hundred neighbouring columns of one token. With up to 16 slots per token, its lanes hold the rows of
 * the slots and hand them out in ascending order; the pieces of all rows (16 bytes per lane and row, with one or two
 * slots 32, since all wait for the rows' places first) are in flight before the first addition. More slots, or lines
 * that are not aligned: the warp looks for the next higher row among the slots before each row. The first warp of a
 * token writes the gate gradients of its slots.
 * Traffic per element of y: 2 bytes for each row of the token, 2 bytes out.
 */
#include "ops/launch.cuh"
#include "ops/nan.h"
#include "ops/warp.cuh"

enum { UNPERMUTE_THREADS = 256, UNPERMUTE_PIECE = 8, UNPERMUTE_MAX_SLOTS = 16 };

/* What the kernels of one call read and write. */
struct unpermute_call {
    const uint16_t *x;
    uint16_t *y;
    int64_t x_stride, y_stride, cols, num_tokens, top_k;
    unsigned chunks; /* warps per token */
    const int32_t *row_of;
    const float *gate_rows;
    float *gate; /* may be NULL */
};

/* The token and the part of its columns that this warp has; token num_tokens or more: none. A y of 2^32 parts would
 * be larger than any memory. */
struct unpermute_part {
    int64_t token, chunk;
};

__device__ static inline unpermute_part unpermute_part_of(const unpermute_call &call)
{
    unsigned warp = blockIdx.x * (UNPERMUTE_THREADS / F8_WARP) + threadIdx.x / F8_WARP;
    return { warp / call.chunks, warp % call.chunks };
}

__device__ static inline void write_gates(const unpermute_call &call, int64_t token)
{
    for (int64_t slot = f8_lane(); slot < call.top_k; slot += F8_WARP) {
        int row = call.row_of[token * call.top_k + slot];
        call.gate[token * call.top_k + slot] = row < 0 ? 0.0f : call.gate_rows[row];
    }
}

/* Rows of a token in ascending order: row j in every lane's sorted[j], for j < the returned count. Rows differ. */
template <int K>
__device__ static inline int sort_rows(const unpermute_call &call, int64_t token, int (&sorted)[K])
{
    int lane = f8_lane(), row = -1, rank = 0;
    if (lane < call.top_k) row = __ldg(call.row_of + token * call.top_k + lane);
#pragma unroll
    for (int slot = 0; slot < K; slot++) {
        int other = __shfl_sync(F8_ALL_LANES, row, slot);
        rank += other >= 0 && other < row;
    }
#pragma unroll
    for (int j = 0; j < K; j++) {
        unsigned holder = __ballot_sync(F8_ALL_LANES, row >= 0 && rank == j);
        sorted[j] = __shfl_sync(F8_ALL_LANES, row, __ffs(holder | 1u << 31) - 1);
    }
    return __popc(__ballot_sync(F8_ALL_LANES, row >= 0));
}

__device__ static inline void set_pair(float &low, float &high, uint32_t pair)
{
    low = f8_bf16_low(pair);
    high = f8_bf16_high(pair);
}

__device__ static inline void add_pair(float &low, float &high, uint32_t pair)
{
    low += f8_bf16_low(pair);
    high += f8_bf16_high(pair);
}

/* Sum of the first `count` of K pieces in order, from the first one's value; count 0 gives 0. */
template <int K> __device__ static inline uint4 sum_pieces(const uint4 (&piece)[K], int count)
{
    if (count == 0) return make_uint4(0, 0, 0, 0);
    float s[UNPERMUTE_PIECE];
    set_pair(s[0], s[1], piece[0].x);
    set_pair(s[2], s[3], piece[0].y);
    set_pair(s[4], s[5], piece[0].z);
    set_pair(s[6], s[7], piece[0].w);
#pragma unroll
    for (int j = 1; j < K; j++) {
        if (j >= count) break;
        add_pair(s[0], s[1], piece[j].x);
        add_pair(s[2], s[3], piece[j].y);
        add_pair(s[4], s[5], piece[j].z);
        add_pair(s[6], s[7], piece[j].w);
    }
    return make_uint4(f8_bf16_pair(s[0], s[1]), f8_bf16_pair(s[2], s[3]), f8_bf16_pair(s[4], s[5]),
                      f8_bf16_pair(s[6], s[7]));
}

/* Up to K slots per token, lines of whole 16-byte pieces, PIECES of them per lane. */
template <int K, int PIECES>
__global__ __launch_bounds__(UNPERMUTE_THREADS) static void unpermute_slots_kernel(unpermute_call call)
{
    unpermute_part part = unpermute_part_of(call);
    if (part.token >= call.num_tokens) return;
    int sorted[K], count = sort_rows<K>(call, part.token, sorted);
    int64_t first = (part.chunk * PIECES * F8_WARP + f8_lane()) * UNPERMUTE_PIECE;
    uint4 piece[PIECES][K];
#pragma unroll
    for (int i = 0; i < PIECES; i++)
#pragma unroll
        for (int j = 0; j < K; j++) {
            int64_t col = first + i * F8_WARP * UNPERMUTE_PIECE;
            piece[i][j] = make_uint4(0, 0, 0, 0);
            if (j < count && col < call.cols) piece[i][j] = f8_load16(call.x + sorted[j] * call.x_stride + col);
        }
    if (call.gate && part.chunk == 0) write_gates(call, part.token);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int64_t col = first + i * F8_WARP * UNPERMUTE_PIECE;
        uint4 sum = sum_pieces<K>(piece[i], count);
        if (col < call.cols) f8_store16(call.y + part.token * call.y_stride + col, sum);
    }
}

/* The smallest row of a token that is greater than `row`, -1 if there is none. Called by whole warps. */
__device__ static inline int next_row(const int32_t *slots, int64_t top_k, int row)
{
    unsigned next = ~0u;
    for (int64_t slot = f8_lane(); slot < top_k; slot += F8_WARP) {
        int other = __ldg(slots + slot);
        if (other > row) next = min(next, (unsigned)other);
    }
    return (int)__reduce_min_sync(F8_ALL_LANES, next);
}

/* Any number of slots, any alignment: one column per lane. */
__global__ __launch_bounds__(UNPERMUTE_THREADS) static void unpermute_search_kernel(unpermute_call call)
{
    unpermute_part part = unpermute_part_of(call);
    if (part.token >= call.num_tokens) return;
    if (call.gate && part.chunk == 0) write_gates(call, part.token);
    const int32_t *slots = call.row_of + part.token * call.top_k;
    int64_t col = part.chunk * F8_WARP + f8_lane();
    int row = next_row(slots, call.top_k, -1);
    float sum = row >= 0 && col < call.cols ? f8_bf16_decode(call.x[row * call.x_stride + col]) : 0.0f;
    while (row >= 0 && (row = next_row(slots, call.top_k, row)) >= 0)
        if (col < call.cols) sum += f8_bf16_decode(call.x[row * call.x_stride + col]);
    if (col < call.cols) call.y[part.token * call.y_stride + col] = f8_bf16_encode(f8_canonical(sum));
}

static unpermute_call unpermute_call_of(const fp8flow_unpermute_args *a)
{
    return { (const uint16_t *)a->x->data,
             (uint16_t *)a->y->data,
             a->x->stride,
             a->y->stride,
             a->y->cols,
             a->plan->num_tokens,
             a->plan->top_k,
             1,
             a->plan->row_of,
             a->gate_rows,
             a->gate };
}

/* Warps of a token when each has `width` columns. A token without columns still has gates. */
static unsigned unpermute_chunks(int64_t cols, int64_t width)
{
    return cols > 0 ? f8_grid(cols, width) : 1;
}

template <int K, int PIECES> static void unpermute_launch_slots(cudaStream_t stream, unpermute_call call)
{
    call.chunks = unpermute_chunks(call.cols, PIECES * F8_WARP * UNPERMUTE_PIECE);
    unsigned grid = f8_grid(call.num_tokens * call.chunks, UNPERMUTE_THREADS / F8_WARP);
    unpermute_slots_kernel<K, PIECES><<<grid, UNPERMUTE_THREADS, 0, stream>>>(call);
}

static void unpermute_launch_search(cudaStream_t stream, unpermute_call call)
{
    call.chunks = unpermute_chunks(call.cols, F8_WARP);
    unsigned grid = f8_grid(call.num_tokens * call.chunks, UNPERMUTE_THREADS / F8_WARP);
    unpermute_search_kernel<<<grid, UNPERMUTE_THREADS, 0, stream>>>(call);
}

extern "C" fp8flow_status f8_cuda_unpermute(fp8flow_context *c, const fp8flow_unpermute_args *a)
{
    cudaStream_t stream = f8_stream(c);
    unpermute_call call = unpermute_call_of(a);
    if (call.num_tokens == 0) return FP8FLOW_OK;
    bool is_wide = call.cols % UNPERMUTE_PIECE == 0 && f8_aligned16(call.x, call.x_stride * 2) &&
                   f8_aligned16(call.y, call.y_stride * 2);
    if (!is_wide || call.top_k > UNPERMUTE_MAX_SLOTS) unpermute_launch_search(stream, call);
    else if (call.top_k == 1) unpermute_launch_slots<1, 2>(stream, call);
    else if (call.top_k == 2) unpermute_launch_slots<2, 2>(stream, call);
    else if (call.top_k <= 4) unpermute_launch_slots<4, 1>(stream, call);
    else if (call.top_k <= 8) unpermute_launch_slots<8, 1>(stream, call);
    else unpermute_launch_slots<16, 1>(stream, call);
    return f8_launched("unpermute");
}
