/* rope.cu - CUDA side of rope. Contract: fp8flow_ops.h. CPU side: rope.c.
 *
 * A block rotates a few rows. It computes the angles of their positions once, in FP64, into shared memory, where the
 * FP64 units have nothing else to do, and applies them to all heads; other blocks' memory traffic hides that. A thread
 * takes eight pairs, 16 bytes of each half of a head, where halves and lines allow it, else one. Traffic: two bytes
 * read and two written per element.
 */
#include "ops/launch.cuh"
#include "ops/rope.h"
#include "ops/warp.cuh"

enum { THREADS = 256, WIDE = 8, MAX_ENTRIES = F8_ROPE_MAX_HALF, MAX_ROWS = 8, BLOCK_ELEMENTS = 8192, DEPTH = 2 };

struct rope_call {
    uint16_t *x;
    int64_t stride, num_rows, heads, sequence_length, first_position;
    int32_t half, rows_per_block;
    float theta;
    fp8flow_rotation rotation;
};

/* Cosines and sines of a block's rows: entry row * half + pair. */
struct rope_table {
    double half_turns[F8_ROPE_MAX_HALF]; /* angle of a pair at position 1, in units of pi */
    float cosine[MAX_ENTRIES], sine[MAX_ENTRIES];
};

/* Angles in units of pi reduce exactly, so that large positions cost no more than small ones. */
__device__ static void make_table(const rope_call &a, int64_t first_row, int rows, rope_table &table)
{
    const double one_over_pi = 0.31830988618379067;
    for (int i = threadIdx.x; i < a.half; i += THREADS) {
        double step = pow((double)a.theta, -(double)i / (double)a.half) * one_over_pi;
        table.half_turns[i] = a.rotation == FP8FLOW_ROTATE ? step : -step;
    }
    __syncthreads();
    for (int entry = threadIdx.x; entry < rows * a.half; entry += THREADS) {
        int row = entry / a.half;
        int64_t position = a.first_position + (first_row + row) % a.sequence_length;
        double sine, cosine;
        sincospi((double)position * table.half_turns[entry - row * a.half], &sine, &cosine);
        table.cosine[entry] = (float)cosine;
        table.sine[entry] = (float)sine;
    }
    __syncthreads();
}

/* Where an item of a block lies: its first element, and its first entry in the table. */
struct rope_place {
    uint16_t *low;
    int entry;
};

/* Items are numbered along the heads of a row, then along the rows. */
__device__ static rope_place place_of(const rope_call &a, int64_t first_row, int64_t item, int pairs)
{
    const int pieces = a.half / pairs;
    int64_t in_heads = item / pieces, row = in_heads / a.heads;
    int pair = (int)(item - in_heads * pieces) * pairs;
    int64_t col = (in_heads - row * a.heads) * 2 * a.half + pair;
    return { a.x + (first_row + row) * a.stride + col, (int)row * a.half + pair };
}

__device__ static void rotate_pair(uint16_t *low, int half, float cosine, float sine)
{
    float x = f8_bf16_decode(low[0]), y = f8_bf16_decode(low[half]);
    low[0] = f8_bf16_encode(x * cosine - y * sine);
    low[half] = f8_bf16_encode(y * cosine + x * sine);
}

/* Two neighbouring pairs: the first in the low halves of x and y. */
__device__ static void rotate_words(uint32_t &x, uint32_t &y, float2 cosine, float2 sine)
{
    float x0 = f8_bf16_low(x), x1 = f8_bf16_high(x), y0 = f8_bf16_low(y), y1 = f8_bf16_high(y);
    x = f8_bf16_pair_fast(x0 * cosine.x - y0 * sine.x, x1 * cosine.y - y1 * sine.y);
    y = f8_bf16_pair_fast(y0 * cosine.x + x0 * sine.x, y1 * cosine.y + x1 * sine.y);
}

__device__ static void rotate_piece(uint4 &x, uint4 &y, const float *cosine, const float *sine)
{
    float4 c = *(const float4 *)cosine, s = *(const float4 *)sine;
    rotate_words(x.x, y.x, make_float2(c.x, c.y), make_float2(s.x, s.y));
    rotate_words(x.y, y.y, make_float2(c.z, c.w), make_float2(s.z, s.w));
    c = *(const float4 *)(cosine + 4);
    s = *(const float4 *)(sine + 4);
    rotate_words(x.z, y.z, make_float2(c.x, c.y), make_float2(s.x, s.y));
    rotate_words(x.w, y.w, make_float2(c.z, c.w), make_float2(s.z, s.w));
}

/* First row of a block, and how many it has. */
__device__ static int block_rows(const rope_call &a, int64_t *first_row)
{
    *first_row = (int64_t)blockIdx.x * a.rows_per_block;
    return (int)min((int64_t)a.rows_per_block, a.num_rows - *first_row);
}

__global__ static void __launch_bounds__(THREADS) rope_kernel(rope_call a)
{
    __shared__ rope_table table;
    int64_t first_row;
    int rows = block_rows(a, &first_row);
    make_table(a, first_row, rows, table);
    for (int64_t item = threadIdx.x; item < rows * a.heads * a.half; item += THREADS) {
        rope_place at = place_of(a, first_row, item, 1);
        rotate_pair(at.low, a.half, table.cosine[at.entry], table.sine[at.entry]);
    }
}

/* Whole 16-byte pieces; DEPTH of them are under way in every thread, surplus ones repeat the last and are dropped. */
__global__ static void __launch_bounds__(THREADS) rope_wide_kernel(rope_call a)
{
    __shared__ __align__(16) rope_table table;
    int64_t first_row;
    int rows = block_rows(a, &first_row);
    make_table(a, first_row, rows, table);
    const int64_t items = rows * a.heads * (a.half / WIDE);
    for (int64_t item = threadIdx.x; item < items; item += DEPTH * THREADS) {
        rope_place at[DEPTH];
        uint4 x[DEPTH], y[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            at[d] = place_of(a, first_row, min(item + d * THREADS, items - 1), WIDE);
            x[d] = f8_load16(at[d].low);
            y[d] = f8_load16(at[d].low + a.half);
        }
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            if (item + d * THREADS >= items) break;
            rotate_piece(x[d], y[d], table.cosine + at[d].entry, table.sine + at[d].entry);
            f8_store16(at[d].low, x[d]);
            f8_store16(at[d].low + a.half, y[d]);
        }
    }
}

extern "C" fp8flow_status f8_cuda_rope(fp8flow_context *c, const fp8flow_rope_args *a)
{
    /* A block makes the angles of its rows once: more rows are more memory under way, fewer are less to wait for. */
    int64_t half = a->head_dim / 2, fitting = MAX_ENTRIES / half, wanted = BLOCK_ELEMENTS / (a->x->cols + 1) + 1;
    int64_t most = wanted < MAX_ROWS ? wanted : MAX_ROWS;
    int32_t rows_per_block = (int32_t)(fitting < most ? fitting : most);
    rope_call call = { (uint16_t *)a->x->data, a->x->stride, a->x->rows, a->x->cols / a->head_dim, a->sequence_length,
                       a->first_position, (int32_t)half, rows_per_block, a->theta, a->rotation };
    if (a->x->rows == 0 || a->x->cols == 0) return FP8FLOW_OK;
    unsigned grid = f8_grid(a->x->rows, rows_per_block);
    if (half % WIDE == 0 && f8_aligned16(a->x->data, a->x->stride * 2))
        rope_wide_kernel<<<grid, THREADS, 0, f8_stream(c)>>>(call);
    else rope_kernel<<<grid, THREADS, 0, f8_stream(c)>>>(call);
    return f8_launched("rope");
}
