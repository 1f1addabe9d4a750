/* swiglu.cu - CUDA side of swiglu. Contract: fp8flow_ops.h. CPU side: swiglu.c.
 *
 * Rows only: eight lanes share a block of 128 activations of one row, two pieces of eight each; blocks go round the
 * warps of one thread block per multiprocessor, which has the table of sigmoids (swiglu.cuh). 5.01 bytes per activation
 * for FP8, about 18 instructions.
 * With columns (TILE128): tiles of 128 x 128 (swiglu_tile.cuh), 6.01 bytes. Everything else: swiglu_any.cuh.
 */
#include "ops/swiglu_any.cuh"
#include "ops/swiglu_tile.cuh"

enum {
    ROW_THREADS = 1024,
    LANES = 8,  /* of a block of 128 activations */
    PIECE = 8,  /* activations of one 16-byte load */
    PIECES = 2, /* of a thread: LANES * PIECE apart */
    SETS = ROW_THREADS / LANES
};

struct swiglu_job {
    fp8flow_tensor h, rows, columns; /* data NULL: not wanted */
    const float *gate;
    f8_grouping groups;
    int64_t cols;
    int32_t num_blocks;
    uint64_t *nonfinite;
};

__device__ static void values_of(const float *table, uint4 a, uint4 b, float w, float *v)
{
    const uint32_t left[4] = { a.x, a.y, a.z, a.w }, right[4] = { b.x, b.y, b.z, b.w };
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 s = f8_sigmoid_pair(table, left[i]);
        v[2 * i] = f8_swiglu_product(f8_bf16_low(left[i]), f8_bf16_low(right[i]), w, s.x);
        v[2 * i + 1] = f8_swiglu_product(f8_bf16_high(left[i]), f8_bf16_high(right[i]), w, s.y);
    }
}

/* ---- Rows only ---- */

/* Eight values from `index` on. */
template <fp8flow_dtype dtype>
__device__ static void store_piece(const fp8flow_tensor &y, int64_t index, const float *v, float s)
{
    if (dtype == FP8FLOW_F32) {
        uint4 *to = (uint4 *)((float *)y.data + index);
#pragma unroll
        for (int i = 0; i < 2; i++)
            f8_store16(to + i, make_uint4(f8_bits(f8_canonical(v[4 * i])), f8_bits(f8_canonical(v[4 * i + 1])),
                                          f8_bits(f8_canonical(v[4 * i + 2])), f8_bits(f8_canonical(v[4 * i + 3]))));
    } else if (dtype == FP8FLOW_BF16) {
        f8_store16((uint16_t *)y.data + index, make_uint4(f8_bf16_pair(v[0], v[1]), f8_bf16_pair(v[2], v[3]),
                                                          f8_bf16_pair(v[4], v[5]), f8_bf16_pair(v[6], v[7])));
    } else {
        __stcs((uint2 *)((uint8_t *)y.data + index),
               make_uint2(f8_encode4<dtype>(v[0] * s, v[1] * s, v[2] * s, v[3] * s),
                          f8_encode4<dtype>(v[4] * s, v[5] * s, v[6] * s, v[7] * s)));
    }
}

/* Scale of the block that LANES lanes share, stored as number `unit`; returns its inverse. */
template <fp8flow_dtype dtype>
__device__ static float scale_block(const fp8flow_tensor &y, int64_t unit, uint32_t magnitude, bool inside)
{
    if (dtype == FP8FLOW_F32 || dtype == FP8FLOW_BF16) return 1.0f;
    uint8_t byte = f8_scale_byte(f8_warp_max<LANES>(magnitude), dtype);
    if (inside && f8_lane() % LANES == 0) ((uint8_t *)y.scale)[unit] = byte;
    return f8_scale_inverse(byte);
}

/* A thread's part of one block of one row. */
struct block_place {
    int32_t row, block;
    bool inside, valid; /* whether the row is written, and read */
};

struct block_inputs {
    uint4 a[PIECES], b[PIECES];
    float w;
};

__device__ static int64_t column_of(const block_place &at, int piece)
{
    return (int64_t)at.block * F8_BLOCK + (piece * LANES + f8_lane() % LANES) * PIECE;
}

__device__ static block_inputs load_block(const swiglu_job &job, const block_place &at)
{
    const uint16_t *line = (const uint16_t *)job.h.data + at.row * job.h.stride;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    block_inputs in;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int64_t col = column_of(at, i);
        bool wanted = at.valid && col < job.cols;
        in.a[i] = wanted ? f8_load16(line + col) : zero;
        in.b[i] = wanted ? f8_load16(line + job.cols + col) : zero;
    }
    in.w = at.valid && job.gate ? __ldg(job.gate + at.row) : 1.0f;
    return in;
}

/* Called by whole warps. Returns the number of NaN and Inf. */
template <fp8flow_dtype dtype>
__device__ static uint32_t store_block(const swiglu_job &job, const float *table, const block_place &at,
                                       const block_inputs &in)
{
    float v[PIECES * PIECE];
#pragma unroll
    for (int i = 0; i < PIECES; i++) values_of(table, in.a[i], in.b[i], in.w, v + i * PIECE);
    uint32_t nonfinite = 0, magnitude = f8_magnitude_of(v, &nonfinite);
    float s = scale_block<dtype>(job.rows, (int64_t)at.row * job.num_blocks + at.block, magnitude, at.inside);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int64_t col = column_of(at, i);
        if (at.inside && col < job.cols)
            store_piece<dtype>(job.rows, at.row * job.rows.stride + col, v + i * PIECE, s);
    }
    return nonfinite;
}

/* Blocks are numbered along the rows; a thread block has a contiguous range of them. */
template <fp8flow_dtype dtype>
__global__ static void __launch_bounds__(ROW_THREADS, 1) swiglu_rows_kernel(swiglu_job job)
{
    extern __shared__ float table[];
    int64_t units = (int64_t)f8_used_rows(job.groups) * job.num_blocks;
    int64_t begin = units * blockIdx.x / gridDim.x, end = units * (blockIdx.x + 1) / gridDim.x;
    if (begin >= end) return;
    f8_sigmoid_fill(table);
    __syncthreads();
    int set = (int)threadIdx.x / LANES, warp_set = set / (F8_WARP / LANES) * (F8_WARP / LANES);
    int row = (int)((begin + set) / job.num_blocks), block = (int)((begin + set) % job.num_blocks);
    int step_rows = SETS / job.num_blocks, step_blocks = SETS % job.num_blocks;
    f8_row_cursor cursor = f8_cursor_at(job.groups, (int)((begin + warp_set) / job.num_blocks));
    uint32_t nonfinite = 0;
    for (int64_t unit = begin; unit + warp_set < end; unit += SETS) {
        f8_cursor_seek(job.groups, row, &cursor);
        bool inside = unit + set < end && row >= cursor.begin && row < cursor.end;
        block_place at = { row, block, inside, inside && row < cursor.valid_end };
        nonfinite += store_block<dtype>(job, table, at, load_block(job, at));
        row += step_rows;
        block += step_blocks;
        if (block >= job.num_blocks) {
            block -= job.num_blocks;
            row++;
        }
    }
    f8_add_nonfinite(job.nonfinite, nonfinite);
}

/* ---- Rows and columns ---- */

struct swiglu_shared {
    uint4 slot[F8_PATCH_ROWS][2][F8_TILE_THREADS];
    float gate[F8_PATCH_ROWS][F8_TILE_THREADS];
    uint32_t stage[F8_STAGE_BYTES / 4];
    float table[F8_SIGMOID_ENTRIES];
    f8_tile_maxima<1> maxima;
};

/* Ask for row i of the patch in a tile. */
__device__ static void request_row(const swiglu_job &job, const f8_tile_place &tile, const f8_patch_place &place, int i,
                                   swiglu_shared *shared)
{
    int64_t col = (int64_t)tile.block * F8_BLOCK + place.col;
    bool wanted = place.row + i < tile.valid && col < job.cols;
    const uint16_t *from = (const uint16_t *)job.h.data;
    if (wanted) from += (int64_t)(tile.row0 + place.row + i) * job.h.stride + col;
    f8_copy_async(&shared->slot[i][0][threadIdx.x], from, wanted);
    f8_copy_async(&shared->slot[i][1][threadIdx.x], wanted ? from + job.cols : from, wanted);
    f8_copy_gate(&shared->gate[i][threadIdx.x], job.gate, tile, place.row + i);
    f8_copy_commit();
}

/* Row i of the patch: its values, its row form. Returns the magnitude of these values. */
template <fp8flow_dtype dtype>
__device__ static uint32_t compute_row(const swiglu_job &job, const f8_tile_place &tile, const f8_patch_place &place,
                                       int i, const swiglu_shared *shared, float (&v)[F8_PATCH_COLS],
                                       uint32_t *nonfinite)
{
    int64_t row = tile.row0 + place.row + i, col = (int64_t)tile.block * F8_BLOCK + place.col;
    float w = job.gate ? shared->gate[i][threadIdx.x] : 1.0f;
    values_of(shared->table, shared->slot[i][0][threadIdx.x], shared->slot[i][1][threadIdx.x], w, v);
    uint32_t magnitude = f8_magnitude_of(v, nonfinite);
    if (!job.rows.data) return magnitude;
    uint32_t of_row = f8_warp_max<16>(magnitude);
    if (place.row + i < tile.rows && col < job.cols)
        f8_tile_store_row<dtype>(job.rows, row * job.rows.stride + col, row * job.num_blocks + tile.block, of_row, v);
    return magnitude;
}

template <fp8flow_dtype dtype>
__global__ static void __launch_bounds__(F8_TILE_THREADS, 1) swiglu_tiles_kernel(swiglu_job job)
{
    extern __shared__ __align__(16) unsigned char memory[];
    swiglu_shared *shared = (swiglu_shared *)memory;
    f8_tile_range range = f8_tiles_of_block(job.groups, job.num_blocks);
    if (range.begin >= range.end) return;
    f8_patch_place place = f8_patch_of_thread();
    f8_row_cursor cursor = f8_cursor_at(job.groups, (int)(range.begin / job.num_blocks) * F8_BLOCK);
    f8_tile_place tile = f8_tile_at(job.groups, range.begin, job.num_blocks, &cursor);
#pragma unroll
    for (int i = 0; i < F8_PATCH_ROWS; i++) request_row(job, tile, place, i, shared);
    f8_sigmoid_fill(shared->table);
    if (threadIdx.x < 2) shared->maxima.at[threadIdx.x][0] = 0;
    __syncthreads();
    uint32_t nonfinite = 0;
    for (int64_t t = range.begin; t < range.end; t++) {
        f8_tile_place next = { 0, 0, 0, 0 };
        if (t + 1 < range.end) next = f8_tile_at(job.groups, t + 1, job.num_blocks, &cursor);
        uint32_t magnitude = 0, *largest = &shared->maxima.at[(t - range.begin) % 2][0];
        f8_patch v;
#pragma unroll
        for (int i = 0; i < F8_PATCH_ROWS; i++) {
            f8_copy_wait<F8_PATCH_ROWS - 1>();
            magnitude = max(magnitude, compute_row<dtype>(job, tile, place, i, shared, v[i], &nonfinite));
            request_row(job, next, place, i, shared);
        }
        f8_tile_gather(magnitude, largest);
        __syncthreads();
        uint8_t byte = f8_scale_byte(*largest, dtype);
        if (threadIdx.x == 0) shared->maxima.at[(t - range.begin + 1) % 2][0] = 0;
        f8_tile_stage<dtype>(v, place, f8_scale_inverse(byte), shared->stage);
        __syncthreads();
        f8_tile_store_columns(job.columns, tile, (int64_t)tile.block * F8_BLOCK, byte, shared->stage);
        tile = next;
    }
    f8_add_nonfinite(job.nonfinite, nonfinite);
}

/* ---- Choice ---- */

/* Lines of whole 16-byte pieces, in the inputs and in what is there of the outputs. */
static bool is_wide(const fp8flow_swiglu_args *a)
{
    const fp8flow_tensor *rows = a->rows, *columns = a->columns;
    if (a->h->cols / 2 % PIECE || !f8_aligned16(a->h->data, a->h->stride * 2)) return false;
    if (rows && !f8_aligned16(rows->data, rows->stride * (int64_t)f8_dtype_bytes(rows->dtype))) return false;
    if (!columns) return true;
    return columns->scaling == FP8FLOW_TILE128 && f8_aligned16(columns->data, columns->stride) &&
           (!rows || rows->dtype == columns->dtype);
}

template <fp8flow_dtype dtype>
static fp8flow_status launch_rows_of(const fp8flow_context *c, const swiglu_job &job, int blocks)
{
    swiglu_rows_kernel<dtype><<<blocks, ROW_THREADS, F8_SIGMOID_BYTES, f8_stream(c)>>>(job);
    return f8_launched("swiglu");
}

static fp8flow_status launch_rows(const fp8flow_context *c, const swiglu_job &job, int blocks)
{
    switch (job.rows.dtype) {
    case FP8FLOW_F32: return launch_rows_of<FP8FLOW_F32>(c, job, blocks);
    case FP8FLOW_BF16: return launch_rows_of<FP8FLOW_BF16>(c, job, blocks);
    case FP8FLOW_E4M3: return launch_rows_of<FP8FLOW_E4M3>(c, job, blocks);
    default: return launch_rows_of<FP8FLOW_E5M2>(c, job, blocks);
    }
}

template <fp8flow_dtype dtype>
static fp8flow_status launch_tiles(const fp8flow_context *c, const swiglu_job &job, int blocks)
{
    F8_TRY(f8_allow_shared("swiglu", swiglu_tiles_kernel<dtype>, (int)sizeof(swiglu_shared)));
    swiglu_tiles_kernel<dtype><<<blocks, F8_TILE_THREADS, sizeof(swiglu_shared), f8_stream(c)>>>(job);
    return f8_launched("swiglu");
}

extern "C" fp8flow_status f8_cuda_swiglu(fp8flow_context *c, const fp8flow_swiglu_args *a)
{
    const fp8flow_tensor none = {};
    int64_t cols = a->h->cols / 2;
    if (a->h->rows == 0 || cols == 0) return FP8FLOW_OK;
    swiglu_job job = { *a->h, a->rows ? *a->rows : none, a->columns ? *a->columns : none, a->gate,
                       f8_grouping_of(a->h, a->groups), cols, (int32_t)f8_ceil_div(cols, F8_BLOCK), a->nonfinite };
    if (!is_wide(a))
        return f8_any_launch(c, "swiglu", f8_any_outputs{ job.rows, job.columns, job.groups, cols, a->nonfinite },
                             f8_value_at{ *a->h, a->gate });
    int blocks = 0;
    F8_TRY(f8_multiprocessors("swiglu", &blocks));
    if (!a->columns) return launch_rows(c, job, blocks);
    return a->columns->dtype == FP8FLOW_E5M2 ? launch_tiles<FP8FLOW_E5M2>(c, job, blocks)
                                             : launch_tiles<FP8FLOW_E4M3>(c, job, blocks);
}
