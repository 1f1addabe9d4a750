/* quantize.cu - CUDA side of quantize. Contract: fp8flow_ops.h. CPU side: quantize.c.
 *
 * Three kernels. Lanes hold pieces of eight columns (piece.cuh), or two of them side by side.
 *   amax   TENSOR scales need the largest value of a group before the first code: a pass of its own. A warp reads
 *          16 rows x 256 columns and raises the group's maximum, which lies where the scale will be.
 *   rows   row form in ROW128 or TENSOR alone (quantize_rows.cuh): eight lanes take a block of 128 columns, so that
 *          each writes 16 bytes of codes; a warp four units of four blocks, or two of FP32. BF16: 3.01 bytes per
 *          element.
 *   tiles  everything else: a block of threads holds a 128 x 128 tile in registers, eight rows of a piece per thread,
 *          and writes both forms from them. The row form leaves from registers; the column form is encoded down the
 *          rows, eight bytes of a column per thread, and turned into lines of 128 bytes in shared memory.
 *          BF16, both forms: 4 bytes per element.
 * Each kernel reads x once; padding rows are zeros that no load has touched.
 */
#include "ops/quantize_rows.cuh"

/* ---- TENSOR scales ---- */

/* Most maxima do not exceed what is there already: looking is cheaper than 30 thousand atomics on one address. A
 * stale look costs one needless atomic. */
__device__ static void raise_amax(uint32_t *amax, uint32_t value)
{
    uint32_t largest = __reduce_max_sync(F8_ALL_LANES, value);
    if (f8_lane() == 0 && largest > *(volatile uint32_t *)amax) atomicMax(amax, largest);
}

template <fp8flow_dtype in, bool wide>
__global__ static void __launch_bounds__(THREADS)
    quantize_amax_kernel(fp8flow_tensor x, f8_grouping grouping, uint32_t *amax)
{
    const uint32_t strips = (uint32_t)f8_ceil_div(x.cols, WARP_COLUMNS);
    uint32_t warp = blockIdx.x * WARPS + threadIdx.x / F8_WARP;
    int64_t first = (int64_t)(warp / strips) * F8_STATE_ROWS;
    int64_t col = (int64_t)(warp % strips) * WARP_COLUMNS + f8_lane() * F8_PIECE;
    if (first >= x.rows) return;
    f8_row_states states = f8_states_of_rows(grouping, (int)first, (int)x.rows);
    const char *from = (const char *)x.data + (first * x.stride + col) * f8_value_bytes<in>;
    int left = columns_left(x, col), group = -1;
    uint32_t ignored = 0, largest = 0;
#pragma unroll
    for (int r0 = 0; r0 < F8_STATE_ROWS; r0 += TILE_ROWS) {
        f8_piece<in> piece[TILE_ROWS];
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++) {
            piece[r] = {};
            if (states.valid >> (r0 + r) & 1)
                piece[r] = f8_piece_load<in, wide>(from + (r0 + r) * x.stride * f8_value_bytes<in>, left);
        }
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++) {
            int next = __shfl_sync(F8_ALL_LANES, states.group, r0 + r);
            if (!(states.valid >> (r0 + r) & 1)) continue;
            if (group >= 0 && group != next) {
                raise_amax(amax + group, largest);
                largest = 0;
            }
            group = next;
            largest = max(largest, f8_piece_largest(f8_piece_magnitudes(piece[r], ignored)));
        }
    }
    if (group >= 0) raise_amax(amax + group, largest);
}

/* `amax` may be one of the scale arrays; NULL for a form that is not wanted. */
__global__ static void quantize_scale_kernel(const uint32_t *amax, int64_t count, float *rows, fp8flow_dtype row_dtype,
                                             float *columns, fp8flow_dtype column_dtype)
{
    int64_t group = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (group >= count) return;
    uint32_t largest = amax[group];
    if (rows) rows[group] = f8_tensor_scale(largest, row_dtype);
    if (columns) columns[group] = f8_tensor_scale(largest, column_dtype);
}

/* ---- Tiles ---- */

struct tile_memory {
    uint4 codes[F8_BLOCK][F8_BLOCK / 16]; /* columns of codes; see put_column */
    uint32_t column_max[WARPS][F8_BLOCK];
    uint32_t warp_max[WARPS];
    uint32_t written[WARPS];       /* of f8_row_states */
    float column_factor[F8_BLOCK]; /* of COL128 columns */
    float row_factor[F8_BLOCK];    /* of ROW128 rows */
    float tensor_factor[F8_BLOCK]; /* of the group of each row */
};

/* Where a tile and a thread in it are. */
struct tile_place {
    int block;  /* row block */
    int first;  /* row of the tile */
    int col;    /* column of the tile, in 128s */
    int row;    /* first of this thread's rows, in the tile */
    int column; /* first of this thread's columns, in the tile */
};

/* The values of a thread. */
template <fp8flow_dtype in> struct tile_share {
    f8_piece<in> piece[TILE_ROWS];
};

template <fp8flow_dtype in, bool wide>
__device__ static void load_share(const fp8flow_tensor &x, const tile_place &p, uint32_t valid, tile_share<in> &share)
{
    int64_t col = (int64_t)p.col * F8_BLOCK + p.column;
    const char *from = (const char *)x.data + ((p.first + p.row) * x.stride + col) * f8_value_bytes<in>;
    int left = columns_left(x, col);
    valid >>= p.row % F8_STATE_ROWS;
#pragma unroll
    for (int r = 0; r < TILE_ROWS; r++)
        share.piece[r] =
            f8_piece_load<in, wide>(from + r * x.stride * f8_value_bytes<in>, valid >> r & 1 ? left : 0);
}

/* Scale and factor of row `row` of the tile, ROW128, from the maxima of sixteen lanes. */
__device__ static void make_row_factor(const fp8flow_tensor &y, const tile_place &p, int row, uint32_t largest,
                                       tile_memory &memory)
{
    uint8_t byte;
    float factor = block_factor(f8_warp_max<F8_PIECE_LANES>(largest), y.dtype, &byte);
    if (p.column > 0) return;
    memory.row_factor[row] = factor;
    if (memory.written[row / F8_STATE_ROWS] >> (row % F8_STATE_ROWS) & 1)
        ((uint8_t *)y.scale)[(int64_t)(p.first + row) * f8_ceil_div(y.cols, F8_BLOCK) + p.col] = byte;
}

/* Scales of ROW128 rows at once; maxima of the warp's columns and of all of it to shared memory. Returns how many
 * values of this thread are not finite. */
template <fp8flow_dtype in>
__device__ static uint32_t find_maxima(const fp8flow_tensor &rows, const tile_share<in> &share, const tile_place &p,
                                       tile_memory &memory)
{
    int warp = threadIdx.x / F8_WARP;
    bool upper = f8_lane() >= F8_PIECE_LANES;
    uint32_t nonfinite = 0;
    f8_piece<in> columns = {};
#pragma unroll
    for (int r = 0; r < TILE_ROWS; r++) {
        f8_piece<in> m = f8_piece_magnitudes(share.piece[r], nonfinite);
        if (rows.scaling == FP8FLOW_ROW128) make_row_factor(rows, p, p.row + r, f8_piece_largest(m), memory);
        columns = f8_piece_larger(columns, m);
    }
    uint32_t largest = __reduce_max_sync(F8_ALL_LANES, f8_piece_largest(columns));
    if (f8_lane() == 0) memory.warp_max[warp] = largest;
    f8_piece<in> other;
#pragma unroll
    for (int w = 0; w < columns.words; w++)
        other.word[w] = __shfl_xor_sync(F8_ALL_LANES, columns.word[w], F8_PIECE_LANES);
    columns = f8_piece_larger(columns, other);
    uint32_t bits[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        bits[i] = __float_as_uint(upper ? f8_piece_value(columns, i + 4) : f8_piece_value(columns, i));
    *(uint4 *)&memory.column_max[warp][p.column + upper * 4] = make_uint4(bits[0], bits[1], bits[2], bits[3]);
    return nonfinite;
}

__device__ static uint32_t tile_max(const tile_memory &memory)
{
    uint32_t largest = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) largest = max(largest, memory.warp_max[w]);
    return largest;
}

/* Scale and factor of column `column` of the tile, COL128. */
__device__ static void make_column_factor(const fp8flow_tensor &y, const tile_place &p, int column, tile_memory &memory)
{
    uint32_t largest = 0;
    uint8_t byte;
#pragma unroll
    for (int w = 0; w < WARPS; w++) largest = max(largest, memory.column_max[w][column]);
    memory.column_factor[column] = block_factor(largest, y.dtype, &byte);
    int64_t col = (int64_t)p.col * F8_BLOCK + column;
    if (col < y.cols && (memory.written[0] & 1)) ((uint8_t *)y.scale)[p.block * y.cols + col] = byte;
}

/* Factor of TILE128; the first thread stores the scale. Tiles have rows of one group, the first among them. */
__device__ static float tile_factor(const fp8flow_tensor &y, const tile_place &p, const tile_memory &memory)
{
    uint8_t byte;
    float factor = block_factor(tile_max(memory), y.dtype, &byte);
    if (threadIdx.x == 0 && (memory.written[0] & 1))
        ((uint8_t *)y.scale)[p.block * f8_ceil_div(y.cols, F8_BLOCK) + p.col] = byte;
    return factor;
}

/* The row form of this thread's values. */
template <fp8flow_dtype in, fp8flow_dtype out, bool wide>
__device__ static void write_rows(const fp8flow_tensor &y, const tile_place &p, const tile_share<in> &share,
                                  const tile_memory &memory)
{
    uint32_t written = memory.written[threadIdx.x / F8_WARP] >> (p.row % F8_STATE_ROWS);
    int64_t col = (int64_t)p.col * F8_BLOCK + p.column;
    uint8_t *to = (uint8_t *)y.data + (p.first + p.row) * y.stride + col;
    int left = columns_left(y, col);
    float common = y.scaling == FP8FLOW_TILE128 ? tile_factor(y, p, memory) : 0.0f;
    const float *each = y.scaling == FP8FLOW_ROW128 ? memory.row_factor : memory.tensor_factor;
#pragma unroll
    for (int r = 0; r < TILE_ROWS; r++) {
        float factor = y.scaling == FP8FLOW_TILE128 ? common : each[p.row + r];
        f8_piece_store<wide>(to + r * y.stride, written >> r & 1 ? left : 0,
                             f8_piece_encode<in, out>(share.piece[r], factor));
    }
}

/* Eight codes of column `i` of this thread to shared memory. Column c has its 8-byte unit u (rows 8u .. 8u + 7) at
 * u ^ (c / 8): the sixteen lanes of one access, which have c / 8 = 0 .. 15 and one u, meet all banks. */
template <fp8flow_dtype out>
__device__ static void put_column(const tile_place &p, int i, const float (&v)[TILE_ROWS], tile_memory &memory)
{
    int position = (p.row / TILE_ROWS) ^ (p.column / F8_PIECE);
    ((uint2 *)memory.codes[p.column + i])[position] =
        make_uint2(f8_encode4<out>(v[0], v[1], v[2], v[3]), f8_encode4<out>(v[4], v[5], v[6], v[7]));
}

/* The column form of this thread's values to shared memory; TENSOR scales belong to rows. */
template <fp8flow_dtype in, fp8flow_dtype out>
__device__ static void put_columns(const fp8flow_tensor &y, const tile_place &p, const tile_share<in> &share,
                                   tile_memory &memory)
{
    float v[TILE_ROWS];
    if (y.scaling == FP8FLOW_TENSOR) {
#pragma unroll
        for (int i = 0; i < F8_PIECE; i++) {
#pragma unroll
            for (int r = 0; r < TILE_ROWS; r++)
                v[r] = f8_piece_value(share.piece[r], i) * memory.tensor_factor[p.row + r];
            put_column<out>(p, i, v, memory);
        }
        return;
    }
    float common = y.scaling == FP8FLOW_TILE128 ? tile_factor(y, p, memory) : 0.0f;
#pragma unroll
    for (int i = 0; i < F8_PIECE; i++) {
        float factor = y.scaling == FP8FLOW_TILE128 ? common : memory.column_factor[p.column + i];
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++) v[r] = f8_piece_value(share.piece[r], i) * factor;
        put_column<out>(p, i, v, memory);
    }
}

/* 16 bytes of a column; bit r of `written`: the byte of row r belongs to the tensor. */
template <bool wide> __device__ static void store_column(uint8_t *to, uint4 codes, uint32_t written)
{
    if (wide && written == 0xFFFFu) {
        f8_store16(to, codes);
        return;
    }
    uint32_t word[4] = { codes.x, codes.y, codes.z, codes.w };
#pragma unroll
    for (int r = 0; r < F8_STATE_ROWS; r++)
        if (written >> r & 1) to[r] = (uint8_t)(word[r / 4] >> (r % 4 * 8));
}

/* The tile's column form from shared memory: eight lanes write one column. */
template <bool wide>
__device__ static void write_columns(const fp8flow_tensor &y, const tile_place &p, const tile_memory &memory)
{
    const int lanes = F8_BLOCK / 16;
    int64_t expert = y.group_rows > 0 ? p.first / y.group_rows : 0;
    int64_t line = expert * y.cols + (int64_t)p.col * F8_BLOCK, row = p.first - expert * y.group_rows;
#pragma unroll
    for (int i = 0; i < F8_BLOCK * lanes / THREADS; i++) {
        int column = (i * THREADS + threadIdx.x) / lanes, part = threadIdx.x % lanes, turn = column / F8_PIECE;
        uint4 codes = memory.codes[column][part ^ (turn / 2)];
        if (turn % 2) codes = make_uint4(codes.z, codes.w, codes.x, codes.y);
        if ((int64_t)p.col * F8_BLOCK + column >= y.cols) continue;
        uint8_t *to = (uint8_t *)y.data + (line + column) * y.stride + row + part * 16;
        store_column<wide>(to, codes, memory.written[part]);
    }
}

/* 1 / TENSOR scale of the sixteen rows of a warp to shared memory. Both forms have the same scales. */
__device__ static void put_tensor_factors(const quantize_job &job, const f8_row_states &states, tile_memory &memory)
{
    int warp = threadIdx.x / F8_WARP;
    if (f8_lane() == 0) memory.written[warp] = states.written;
    __syncwarp();
    const float *scale = NULL;
    if (job.columns.scaling == FP8FLOW_TENSOR) scale = (const float *)job.columns.scale;
    if (job.rows.scaling == FP8FLOW_TENSOR) scale = (const float *)job.rows.scale;
    if (scale && f8_lane() < F8_STATE_ROWS)
        memory.tensor_factor[warp * F8_STATE_ROWS + f8_lane()] = 1.0f / scale[states.group];
}

template <fp8flow_dtype in, fp8flow_dtype out, bool wide>
__global__ static void __launch_bounds__(THREADS, in == FP8FLOW_BF16 ? 3 : 2)
    quantize_tiles_kernel(const __grid_constant__ quantize_job job)
{
    __shared__ tile_memory memory;
    const uint32_t col_blocks = (uint32_t)f8_ceil_div(job.x.cols, F8_BLOCK);
    int warp = threadIdx.x / F8_WARP, block = (int)(blockIdx.x / col_blocks);
    f8_row_range range = f8_rows_of_block(job.grouping, block);
    if (range.end <= range.first) return;
    tile_place p = { block, range.first, (int)(blockIdx.x % col_blocks), (int)threadIdx.x / F8_PIECE_LANES * TILE_ROWS,
                     (int)threadIdx.x % F8_PIECE_LANES * F8_PIECE };
    f8_row_states states = f8_states_of_rows(job.grouping, p.first + warp * F8_STATE_ROWS, range.end);
    tile_share<in> share;
    load_share<in, wide>(job.x, p, states.valid, share);
    put_tensor_factors(job, states, memory);
    count_nonfinite(job.nonfinite, find_maxima(job.rows, share, p, memory));
    __syncthreads();
    if (job.columns.scaling == FP8FLOW_COL128) {
        if (threadIdx.x < F8_BLOCK) make_column_factor(job.columns, p, threadIdx.x, memory);
        __syncthreads();
    }
    if (job.rows.data) write_rows<in, out, wide>(job.rows, p, share, memory);
    if (!job.columns.data) return;
    put_columns<in, out>(job.columns, p, share, memory);
    __syncthreads();
    write_columns<wide>(job.columns, p, memory);
}

/* ---- Launchers ---- */

/* Whether every line of the tensors consists of pieces that are aligned as vector loads and stores need it. */
static bool is_wide(const quantize_job &job)
{
    int64_t bytes = job.x.dtype == FP8FLOW_F32 ? 4 : 2;
    return job.x.cols % F8_PIECE == 0 && f8_aligned16(job.x.data, job.x.stride * bytes) &&
           f8_aligned16(job.rows.data, job.rows.stride) && f8_aligned16(job.columns.data, job.columns.stride);
}

template <fp8flow_dtype in, bool wide>
static void launch_amax(fp8flow_context *c, const quantize_job &job, uint32_t *to)
{
    int64_t warps = f8_ceil_div(job.x.rows, F8_STATE_ROWS) * f8_ceil_div(job.x.cols, WARP_COLUMNS);
    quantize_amax_kernel<in, wide><<<f8_grid(warps, WARPS), THREADS, 0, f8_stream(c)>>>(job.x, job.grouping, to);
}

/* What quantize_dense_kernel can do, of wide jobs for the row form alone. */
static bool is_dense(const quantize_job &job)
{
    const fp8flow_tensor &x = job.x, &y = job.rows;
    return x.dtype == FP8FLOW_BF16 && y.scaling == FP8FLOW_ROW128 && !job.grouping.is_grouped &&
           x.cols % F8_BLOCK == 0 && x.stride == x.cols && y.stride == y.cols;
}

template <fp8flow_dtype in, fp8flow_dtype out, bool wide>
static void launch_codes(fp8flow_context *c, const quantize_job &job)
{
    const fp8flow_tensor &shape = job.rows.data ? job.rows : job.columns;
    if (job.columns.data || job.rows.scaling == FP8FLOW_TILE128) {
        int64_t tiles = f8_capacity_blocks(&shape) * f8_ceil_div(shape.cols, F8_BLOCK);
        quantize_tiles_kernel<in, out, wide><<<f8_grid(tiles, 1), THREADS, 0, f8_stream(c)>>>(job);
    } else if (wide && is_dense(job)) {
        int64_t num_blocks = shape.rows * (shape.cols / F8_BLOCK);
        quantize_dense_kernel<out><<<f8_grid(num_blocks, DENSE_BLOCKS), THREADS, 0, f8_stream(c)>>>(job, num_blocks);
    } else {
        unsigned grid = f8_grid(shape.rows * f8_ceil_div(shape.cols, UNIT_COLUMNS), row_units<in, wide> * WARPS);
        if (shape.scaling == FP8FLOW_TENSOR)
            quantize_rows_kernel<in, out, FP8FLOW_TENSOR, wide><<<grid, THREADS, 0, f8_stream(c)>>>(job);
        else quantize_rows_kernel<in, out, FP8FLOW_ROW128, wide><<<grid, THREADS, 0, f8_stream(c)>>>(job);
    }
}

template <fp8flow_dtype in, bool wide> static void launch_from(fp8flow_context *c, const quantize_job &job)
{
    fp8flow_dtype out = job.rows.data ? job.rows.dtype : job.columns.dtype;
    if (out == FP8FLOW_E4M3) launch_codes<in, FP8FLOW_E4M3, wide>(c, job);
    else launch_codes<in, FP8FLOW_E5M2, wide>(c, job);
}

static void quantize_codes(fp8flow_context *c, const quantize_job &job)
{
    bool wide = is_wide(job);
    if (job.x.dtype == FP8FLOW_BF16 && wide) launch_from<FP8FLOW_BF16, true>(c, job);
    else if (job.x.dtype == FP8FLOW_BF16) launch_from<FP8FLOW_BF16, false>(c, job);
    else if (wide) launch_from<FP8FLOW_F32, true>(c, job);
    else launch_from<FP8FLOW_F32, false>(c, job);
}

/* The maxima of the groups lie in one of the scale arrays until they become scales. */
static void tensor_scales(fp8flow_context *c, const quantize_job &job, int64_t groups)
{
    float *rows = job.rows.scaling == FP8FLOW_TENSOR ? (float *)job.rows.scale : NULL;
    float *columns = job.columns.scaling == FP8FLOW_TENSOR ? (float *)job.columns.scale : NULL;
    uint32_t *amax = (uint32_t *)(rows ? rows : columns);
    if (!amax || groups == 0) return;
    cudaMemsetAsync(amax, 0, groups * sizeof *amax, f8_stream(c));
    if (job.x.rows > 0 && job.x.cols > 0) {
        bool wide = is_wide(job);
        if (job.x.dtype == FP8FLOW_BF16 && wide) launch_amax<FP8FLOW_BF16, true>(c, job, amax);
        else if (job.x.dtype == FP8FLOW_BF16) launch_amax<FP8FLOW_BF16, false>(c, job, amax);
        else if (wide) launch_amax<FP8FLOW_F32, true>(c, job, amax);
        else launch_amax<FP8FLOW_F32, false>(c, job, amax);
    }
    quantize_scale_kernel<<<f8_grid(groups, THREADS), THREADS, 0, f8_stream(c)>>>(amax, groups, rows, job.rows.dtype,
                                                                                 columns, job.columns.dtype);
}

extern "C" fp8flow_status f8_cuda_quantize(fp8flow_context *c, const fp8flow_quantize_args *a)
{
    const fp8flow_tensor *shape = a->rows ? a->rows : a->columns, none = {};
    if (a->groups && a->groups->count == 0) return FP8FLOW_OK;
    quantize_job job = { *a->x, a->rows ? *a->rows : none, a->columns ? *a->columns : none,
                         f8_grouping_of(shape, a->groups), (unsigned long long *)a->nonfinite };
    int64_t groups = a->groups ? a->groups->count : shape->group_rows ? shape->rows / shape->group_rows : 1;
    tensor_scales(c, job, groups);
    if (shape->rows == 0 || shape->cols == 0) return f8_launched("quantize");
    if (a->rows && a->columns && a->rows->dtype != a->columns->dtype) {
        /* Two formats are two calls; what is not finite counts once. */
        quantize_job rows = job, columns = job;
        rows.columns = columns.rows = none;
        columns.nonfinite = NULL;
        quantize_codes(c, rows);
        quantize_codes(c, columns);
    } else {
        quantize_codes(c, job);
    }
    return f8_launched("quantize");
}
