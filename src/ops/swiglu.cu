/* swiglu.cu - CUDA side of swiglu. Contract: fp8flow_ops.h. CPU side: swiglu.c.
 *
 * Rows only: eight lanes share a block of 128 activations of one row, two pieces of eight each; blocks go round the
 * warps of the grid, one thread block per multiprocessor, which has the table of sigmoids (swiglu.cuh). 5.01 bytes per
 * activation for FP8, about 16 instructions.
 * With columns (TILE128): tiles of 128 x 128 (swiglu_tile.cuh), 6.01 bytes. Everything else: swiglu_any.cuh.
 */
#include "ops/swiglu_any.cuh"
#include "ops/swiglu_tile.cuh"

enum {
    ROW_THREADS = 768,
    LANES = 8, /* of a block of 128 activations */
    PIECE = 8, /* activations of one 16-byte load */
    PIECES = 2, /* of a thread: LANES * PIECE apart */
    TILE_BLOCKS = 2 /* of the tile kernel on a multiprocessor, which has 228 KB, 1 of them per block for the system */
};

struct swiglu_job {
    CUtensorMap a_map, b_map, columns_map; /* of the tile kernel */
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
    uint32_t byte = f8_scale_byte_quick<dtype>(f8_warp_max<LANES>(magnitude));
    if (inside && f8_lane() % LANES == 0) ((uint8_t *)y.scale)[unit] = (uint8_t)byte;
    return f8_inverse_low(byte);
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
    for (int i = 0; i < PIECES; i++) {
        /* 0 * NaN is not to be counted behind the last column. */
        float w = column_of(at, i) < job.cols ? in.w : 0.0f;
        values_of(table, in.a[i], in.b[i], w, v + i * PIECE);
    }
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

/* The blocks of LANES lanes: `first`, first + step, ... of all blocks, numbered along the rows. */
struct block_walk {
    f8_row_cursor cursor;
    int64_t unit, units, step;
    int32_t row, block, step_rows, step_blocks;
};

__device__ static block_walk walk_from(const swiglu_job &job, int64_t first, int64_t step)
{
    block_walk walk = {};
    walk.unit = first;
    walk.units = (int64_t)f8_used_rows(job.groups) * job.num_blocks;
    walk.step = step;
    walk.row = (int32_t)(first / job.num_blocks);
    walk.block = (int32_t)(first % job.num_blocks);
    walk.step_rows = (int32_t)(step / job.num_blocks);
    walk.step_blocks = (int32_t)(step % job.num_blocks);
    walk.cursor = f8_cursor_at(job.groups, __shfl_sync(F8_ALL_LANES, walk.row, 0));
    return walk;
}

/* The block that the walk stands at; it moves on. */
__device__ static block_place take_block(const swiglu_job &job, block_walk *walk)
{
    f8_cursor_seek(job.groups, walk->row, &walk->cursor);
    bool inside = walk->unit < walk->units && walk->row >= walk->cursor.begin && walk->row < walk->cursor.end;
    block_place at = { walk->row, walk->block, inside, inside && walk->row < walk->cursor.valid_end };
    walk->unit += walk->step;
    walk->row += walk->step_rows;
    walk->block += walk->step_blocks;
    if (walk->block >= job.num_blocks) {
        walk->block -= job.num_blocks;
        walk->row++;
    }
    return at;
}

/* Blocks go round all threads of the grid, which so sweeps over memory; loads are one block ahead. */
template <fp8flow_dtype dtype, int threads>
__global__ static void __launch_bounds__(threads, 1) swiglu_rows_kernel(const __grid_constant__ swiglu_job job)
{
    extern __shared__ float table[];
    int64_t first = (int64_t)blockIdx.x * (threads / LANES) + threadIdx.x / LANES;
    block_walk walk = walk_from(job, first, (int64_t)gridDim.x * (threads / LANES));
    int64_t warp_unit = first - f8_lane() / LANES;
    block_place at = take_block(job, &walk);
    block_inputs in = load_block(job, at);
    f8_sigmoid_fill(table);
    __syncthreads();
    uint32_t nonfinite = 0;
    for (; warp_unit < walk.units; warp_unit += walk.step) {
        block_place next = take_block(job, &walk);
        block_inputs after = load_block(job, next);
        nonfinite += store_block<dtype>(job, table, at, in);
        at = next;
        in = after;
    }
    f8_add_nonfinite(job.nonfinite, nonfinite);
}

/* ---- Rows and columns ---- */

typedef f8_tile_shared<2, 1, float> swiglu_shared;
static_assert(TILE_BLOCKS * (sizeof(swiglu_shared) + 1024) <= 228 * 1024, "blocks of a multiprocessor");

__device__ static void request_strip(const swiglu_job &job, const f8_tile_place &tile, swiglu_shared *shared)
{
    const CUtensorMap *const maps[2] = { &job.a_map, &job.b_map };
    f8_strip_request(maps, tile, shared);
}

/* Row form of rows i and i + 1 of the patch. Lane 0 of these rows stores the first scale, lane 1 the second. */
template <fp8flow_dtype dtype>
__device__ static void store_row_pair(const swiglu_job &job, const f8_tile_place &tile, int i, const f8_patch &v,
                                      const uint32_t (&magnitude)[2])
{
    uint32_t bytes = f8_scale_byte_pair<dtype, F8_ROW_PIECES>(magnitude[0], magnitude[1]);
    int in_tile = f8_patch_row() + i, lane = f8_lane() % F8_ROW_PIECES;
    int64_t row = tile.row0 + in_tile, col = (int64_t)tile.block * F8_BLOCK + f8_patch_col();
    uint8_t *to = (uint8_t *)job.rows.data + row * job.rows.stride + col;
    if (in_tile < tile.rows && col < job.cols) f8_store_codes<dtype>(to, v[i], f8_inverse_low(bytes));
    if (in_tile + 1 < tile.rows && col < job.cols)
        f8_store_codes<dtype>(to + job.rows.stride, v[i + 1], f8_inverse_high(bytes));
    if (lane < 2 && in_tile + lane < tile.rows)
        ((uint8_t *)job.rows.scale)[(row + lane) * job.num_blocks + tile.block] = (uint8_t)(bytes >> lane * 16);
}

/* Values of the patch and its row form. Returns the magnitude of the patch. */
template <fp8flow_dtype dtype>
__device__ static uint32_t compute_patch(const swiglu_job &job, const f8_tile_place &tile, float gates,
                                         const swiglu_shared *shared, f8_patch &v, uint32_t *nonfinite)
{
    bool inside = (int64_t)tile.block * F8_BLOCK + f8_patch_col() < job.cols;
    uint32_t magnitude = 0;
#pragma unroll
    for (int i = 0; i < F8_PATCH_ROWS; i += 2) {
        uint32_t of_row[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float w = f8_patch_gate(gates, i + k);
            values_of(shared->table, f8_strip_piece(shared, 0, i + k), f8_strip_piece(shared, 1, i + k),
                      inside ? w : 0.0f, v[i + k]);
            of_row[k] = f8_magnitude_of(v[i + k], nonfinite);
            magnitude = max(magnitude, of_row[k]);
        }
        if (job.rows.data) store_row_pair<dtype>(job, tile, i, v, of_row);
    }
    return magnitude;
}

/* Two blocks of a multiprocessor wait for their barriers at different times. */
template <fp8flow_dtype dtype, int per_multiprocessor>
__global__ static void __launch_bounds__(F8_TILE_THREADS, per_multiprocessor)
    swiglu_tiles_kernel(const __grid_constant__ swiglu_job job)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    swiglu_shared *shared = (swiglu_shared *)memory;
    f8_tile_prepare(job.groups, job.num_blocks, shared);
    if (shared->place[0].block < 0) return;
    request_strip(job, shared->place[0], shared);
    float gates = f8_strip_gates(job.gate, shared->place[0]);
    f8_sigmoid_fill(shared->table);
    __syncthreads();
    uint32_t nonfinite = 0;
    for (uint32_t t = 0; shared->place[t % 4].block >= 0; t++) {
        f8_patch v;
        f8_strip_wait(shared->place[t % 4], t, shared);
        uint32_t magnitude[1] = { compute_patch<dtype>(job, shared->place[t % 4], gates, shared, v, &nonfinite) };
        request_strip(job, shared->place[(t + 1) % 4], shared);
        gates = f8_strip_gates(job.gate, shared->place[(t + 1) % 4]);
        f8_tile_gather(magnitude, shared->largest[t % 2]);
        if (threadIdx.x == 0) f8_store_wait_read<0>();
        __syncthreads();
        f8_tile_stage<dtype>(v, f8_inverse_low(f8_scale_byte_quick<dtype>(shared->largest[t % 2][0])),
                             shared->stage[0]);
        f8_tile_clear(t, shared);
        f8_async_fence();
        __syncthreads();
        f8_tile_advance(job.groups, t, shared);
        const f8_tile_place &tile = shared->place[t % 4];
        if (threadIdx.x != 0 || tile.rows == 0) continue;
        f8_tile_store<dtype>(&job.columns_map, job.columns, tile, tile.block * F8_BLOCK, shared->largest[t % 2][0],
                             shared->stage[0]);
        f8_store_commit();
    }
    if (threadIdx.x == 0) f8_store_wait_read<0>();
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
    swiglu_rows_kernel<dtype, ROW_THREADS><<<blocks, ROW_THREADS, F8_SIGMOID_BYTES, f8_stream(c)>>>(job);
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

template <fp8flow_dtype dtype, int per_multiprocessor>
static fp8flow_status launch_tiles(const fp8flow_context *c, swiglu_job job, int multiprocessors)
{
    F8_TRY(f8_strip_map("swiglu", &job.a_map, &job.h, 0, job.cols));
    F8_TRY(f8_strip_map("swiglu", &job.b_map, &job.h, job.cols, job.cols));
    F8_TRY(f8_tile_map("swiglu", &job.columns_map, &job.columns));
    F8_TRY(f8_allow_shared("swiglu", swiglu_tiles_kernel<dtype, per_multiprocessor>, (int)sizeof(swiglu_shared)));
    swiglu_tiles_kernel<dtype, per_multiprocessor>
        <<<multiprocessors * per_multiprocessor, F8_TILE_THREADS, sizeof(swiglu_shared), f8_stream(c)>>>(job);
    return f8_launched("swiglu");
}

static swiglu_job job_of(const fp8flow_swiglu_args *a)
{
    swiglu_job job = {};
    job.h = *a->h;
    if (a->rows) job.rows = *a->rows;
    if (a->columns) job.columns = *a->columns;
    job.gate = a->gate;
    job.groups = f8_grouping_of(a->h, a->groups);
    job.cols = a->h->cols / 2;
    job.num_blocks = (int32_t)f8_ceil_div(job.cols, F8_BLOCK);
    job.nonfinite = a->nonfinite;
    return job;
}

extern "C" fp8flow_status f8_cuda_swiglu(fp8flow_context *c, const fp8flow_swiglu_args *a)
{
    if (a->h->rows == 0 || a->h->cols == 0) return FP8FLOW_OK;
    swiglu_job job = job_of(a);
    if (!is_wide(a))
        return f8_any_launch(c, "swiglu", f8_any_outputs{ job.rows, job.columns, job.groups, job.cols, a->nonfinite },
                             f8_value_at{ *a->h, a->gate });
    int multiprocessors = 0;
    F8_TRY(f8_multiprocessors("swiglu", &multiprocessors));
    if (!a->columns) return launch_rows(c, job, multiprocessors);
    return a->columns->dtype == FP8FLOW_E5M2 ? launch_tiles<FP8FLOW_E5M2, TILE_BLOCKS>(c, job, multiprocessors)
                                             : launch_tiles<FP8FLOW_E4M3, TILE_BLOCKS>(c, job, multiprocessors);
}
