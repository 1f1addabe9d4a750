/* permute.cu - CUDA side of permute. Contract: fp8flow_ops.h. CPU side: permute.c.
 *
 * With a column form of TILE128 scales, one block gathers 256 x 256 codes (wide.cuh) and writes both forms. With
 * COL128, or where lines are not whole pieces of 16 bytes, one block gathers one tile of 128 x 128 codes (shift.cuh).
 * Without a column form, one warp copies 2 KB of a row. All go through narrow slabs of columns down all rows, so that
 * the copies of a token's piece are made while it is in L2. Traffic per element: 1/k read, 1 (BF16: 2) written per
 * form.
 */
#include "ops/launch.cuh"
#include "ops/plan.h"
#include "ops/wide_lines.cuh"

enum { ROWS_THREADS = 256, ROWS_PER_BLOCK = ROWS_THREADS / F8_WARP, PIECE = 16, PIECES = 4 };

/* Codes and scales of the patch, from the rows of its tokens. */
template <f8_access access>
__device__ static void gather(const fp8flow_tensor &x, const int token[4], f8_patch &p)
{
    int64_t col = (int64_t)f8_tile_col_block() * F8_BLOCK + f8_patch_col();
    int64_t blocks = f8_col_blocks(x);
    int count = (int)min(x.cols - col, (int64_t)PIECE);
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const uint8_t *from = (const uint8_t *)x.data + token[r] * x.stride + col;
        f8_set_row(p, r, f8_read_codes<access>(from, token[r] < 0 ? 0 : count));
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const uint8_t *from = (const uint8_t *)x.scale + token[r] * blocks + f8_tile_col_block();
        p.scale[r] = token[r] < 0 ? 1 : __ldg(from);
    }
}

/* The patch, not transposed yet, into the row form. `row` is its first row. */
template <f8_access access>
__device__ static void store_rows(const f8_patch &p, const fp8flow_tensor &rows, int row)
{
    int64_t col = (int64_t)f8_tile_col_block() * F8_BLOCK + f8_patch_col();
    int64_t blocks = f8_col_blocks(rows);
    int count = (int)min(rows.cols - col, (int64_t)PIECE);
    uint8_t *to = (uint8_t *)rows.data + row * rows.stride + col;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        uint4 codes = make_uint4(p.code[r][0], p.code[r][1], p.code[r][2], p.code[r][3]);
        f8_write_codes<access>(to + r * rows.stride, codes, count);
    }
    if (f8_patch_col() != 0) return;
#pragma unroll
    for (int r = 0; r < 4; r++)
        ((uint8_t *)rows.scale)[(row + r) * blocks + f8_tile_col_block()] = (uint8_t)p.scale[r];
}

/* The column form and, unless its data is NULL, the row form. Row blocks hold rows of one expert: alignment of 128. */
template <fp8flow_dtype dtype, fp8flow_scaling scaling, f8_access access>
__global__ static void __launch_bounds__(F8_SHIFT_THREADS, f8_shift_blocks(scaling, access))
    permute_tile_kernel(fp8flow_tensor x, fp8flow_tensor rows, fp8flow_tensor columns, f8_routing route,
                        uint64_t *histogram)
{
    __shared__ f8_shift_shared shared;
    int block = f8_tile_row_block(), col_block = f8_tile_col_block(), col = col_block * F8_BLOCK;
    int row = block * F8_BLOCK + f8_patch_row();
    if (col >= columns.cols) return;
    /* Read before it is known whether the rows are in use: there is room for them, and two latencies become one. */
    int source[4], token[4], end = __ldg(route.end);
#pragma unroll
    for (int r = 0; r < 4; r++) source[r] = __ldg(route.source + row + r);
    if (block * F8_BLOCK >= end) return;
#pragma unroll
    for (int r = 0; r < 4; r++) token[r] = f8_token_of(route, source[r]);
    f8_patch patch;
    gather<access>(x, token, patch);
    if (route.gate && col_block == 0 && f8_patch_col() == 0) {
#pragma unroll
        for (int r = 0; r < 4; r++) route.gate_rows[row + r] = source[r] < 0 ? 0.0f : __ldg(route.gate + source[r]);
    }
    if (rows.data) store_rows<access>(patch, rows, row);
    int64_t scale = (int64_t)block * f8_col_blocks(columns) + col_block;
    if (scaling == FP8FLOW_COL128) scale = block * columns.cols + col;
    f8_column_place place = { (uint8_t *)columns.data + col * columns.stride + block * F8_BLOCK,
                              (uint8_t *)columns.scale + scale, columns.stride, F8_BLOCK,
                              (int)min(columns.cols - col, (int64_t)F8_BLOCK) };
    f8_shift_tile<dtype, scaling, access>(patch, place, histogram, shared);
}

/* Row-form lines as bytes. */
struct byte_rows {
    uint8_t *data, *scale;
    int64_t stride, bytes;
    int blocks; /* scales per row; 0 for BF16 */
};

static byte_rows byte_rows_of(const fp8flow_tensor *t)
{
    int64_t size = (int64_t)f8_dtype_bytes(t->dtype);
    return { (uint8_t *)t->data, (uint8_t *)t->scale, t->stride * size, t->cols * size,
             f8_is_fp8(t->dtype) ? (int)f8_ceil_div(t->cols, F8_BLOCK) : 0 };
}

/* Scales and gate weight of a row, by one warp. */
__device__ static void copy_scales(const byte_rows &x, const byte_rows &rows, const f8_routing &route, int row,
                                   int source)
{
    int token = f8_token_of(route, source);
    for (int i = f8_lane(); i < rows.blocks; i += F8_WARP)
        rows.scale[(int64_t)row * rows.blocks + i] = token < 0 ? 1 : __ldg(x.scale + (int64_t)token * x.blocks + i);
    if (route.gate && f8_lane() == 0) route.gate_rows[row] = source < 0 ? 0.0f : __ldg(route.gate + source);
}

/* One warp: PIECES times 32 pieces of a row. rows.bytes is 0 where only gate weights are wanted. */
template <f8_access access>
__global__ static void __launch_bounds__(ROWS_THREADS) permute_rows_kernel(byte_rows x, byte_rows rows,
                                                                             f8_routing route)
{
    int row = (int)blockIdx.x * ROWS_PER_BLOCK + (int)threadIdx.x / F8_WARP;
    if (row >= min(__ldg(route.end), route.capacity)) return;
    int source = __ldg(route.source + row), token = f8_token_of(route, source);
    int64_t at = ((int64_t)blockIdx.y * PIECES * F8_WARP + f8_lane()) * PIECE;
    const uint8_t *from = x.data + token * x.stride + at;
    uint8_t *to = rows.data + row * rows.stride + at;
    uint4 bytes[PIECES];
    int count[PIECES];
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int64_t offset = (int64_t)i * F8_WARP * PIECE;
        count[i] = (int)min(max(rows.bytes - at - offset, (int64_t)0), (int64_t)PIECE);
        bytes[i] = f8_read_codes<access>(from + offset, token < 0 ? 0 : count[i]);
    }
    if (blockIdx.y == 0) copy_scales(x, rows, route, row, source);
#pragma unroll
    for (int i = 0; i < PIECES; i++) f8_write_codes<access>(to + i * F8_WARP * PIECE, bytes[i], count[i]);
}

static bool is_wide(const fp8flow_tensor *t)
{
    int64_t size = (int64_t)f8_dtype_bytes(t->dtype);
    return t->cols * size % PIECE == 0 && f8_aligned16(t->data, t->stride * size);
}

static void launch_rows(const fp8flow_context *c, const fp8flow_permute_args *a)
{
    byte_rows x = byte_rows_of(a->x), rows = a->rows ? byte_rows_of(a->rows) : byte_rows{};
    int64_t pieces = f8_ceil_div(rows.bytes, PIECES * F8_WARP * PIECE);
    dim3 grid(f8_grid(a->plan->capacity, ROWS_PER_BLOCK), pieces ? (unsigned)pieces : 1);
    if (a->rows && is_wide(a->x) && is_wide(a->rows))
        permute_rows_kernel<F8_WIDE_REUSED><<<grid, ROWS_THREADS, 0, f8_stream(c)>>>(x, rows, f8_routing_of(a));
    else permute_rows_kernel<F8_BYTES><<<grid, ROWS_THREADS, 0, f8_stream(c)>>>(x, rows, f8_routing_of(a));
}

template <fp8flow_dtype dtype, f8_access access>
static void launch_tiles(const fp8flow_context *c, const fp8flow_permute_args *a)
{
    /* P is a multiple of 128: what the capacity has beyond whole row blocks is never used. */
    dim3 grid = f8_tile_grid(a->plan->capacity / F8_BLOCK, a->x->cols);
    fp8flow_tensor rows = a->rows ? *a->rows : fp8flow_tensor{};
    if (a->columns->scaling == FP8FLOW_TILE128)
        permute_tile_kernel<dtype, FP8FLOW_TILE128, access><<<grid, F8_SHIFT_THREADS, 0, f8_stream(c)>>>(
            *a->x, rows, *a->columns, f8_routing_of(a), a->shift_histogram);
    else
        permute_tile_kernel<dtype, FP8FLOW_COL128, access><<<grid, F8_SHIFT_THREADS, 0, f8_stream(c)>>>(
            *a->x, rows, *a->columns, f8_routing_of(a), a->shift_histogram);
}

/* Both forms (rows.data NULL: the column form), TILE128, two row blocks and 256 columns at a time. */
template <fp8flow_dtype dtype> static void launch_wide(const fp8flow_context *c, const fp8flow_permute_args *a)
{
    f8_gathered_lines lines = { *a->x, a->rows ? *a->rows : fp8flow_tensor{}, f8_routing_of(a) };
    f8_wide_launch<dtype, 2, F8_WIDE_SLAB>(f8_stream(c), lines, *a->columns, a->plan->capacity / F8_BLOCK,
                                           a->shift_histogram);
}

extern "C" fp8flow_status f8_cuda_permute(fp8flow_context *c, const fp8flow_permute_args *a)
{
    if (a->columns && a->x->cols > 0) {
        if (a->plan->capacity < F8_BLOCK) return FP8FLOW_OK;
        bool is_e4m3 = a->x->dtype == FP8FLOW_E4M3;
        bool wide = is_wide(a->x) && is_wide(a->columns) && (!a->rows || is_wide(a->rows));
        bool by_tiles_of_256 = wide && a->columns->scaling == FP8FLOW_TILE128 &&
                               f8_wide_pays(a->plan->capacity / F8_BLOCK, a->x->cols);
        if (by_tiles_of_256 && is_e4m3) launch_wide<FP8FLOW_E4M3>(c, a);
        else if (by_tiles_of_256) launch_wide<FP8FLOW_E5M2>(c, a);
        else if (is_e4m3 && wide) launch_tiles<FP8FLOW_E4M3, F8_WIDE_REUSED>(c, a);
        else if (is_e4m3) launch_tiles<FP8FLOW_E4M3, F8_BYTES>(c, a);
        else if (wide) launch_tiles<FP8FLOW_E5M2, F8_WIDE_REUSED>(c, a);
        else launch_tiles<FP8FLOW_E5M2, F8_BYTES>(c, a);
    } else {
        if (a->plan->capacity == 0) return FP8FLOW_OK;
        launch_rows(c, a);
    }
    return f8_launched("permute");
}
