/* swiglu_backward.cu - CUDA side of swiglu_backward. Contract: fp8flow_ops.h. CPU side: swiglu_backward.c.
 *
 * One pass: tiles of 128 rows x 128 activations (swiglu_tile.cuh) give the row form and the column form of da and db,
 * v in column form and the tile's part of dgate; h and dv are read once. 11.05 bytes per activation, about 47
 * instructions. 96 values per thread wait in registers for the scales of the three tiles. A second kernel adds the
 * parts of dgate, one per row and tile, in the order of the columns.
 * BF16 rows alone: swiglu_lines.cuh, 10 bytes per activation.
 * Everything else (swiglu_any.cuh): a pass for dh, one for v, one for dgate.
 */
#include "ops/swiglu_any.cuh"
#include "ops/swiglu_lines.cuh"
#include "ops/swiglu_tile.cuh"

enum {
    PARTS_THREADS = 128,
    GATE_THREADS = 256,
    BEYOND_TABLE = 0x4300 /* 128 in BF16: the slope depends on a from here on */
};

struct backward_job {
    CUtensorMap a_map, b_map, g_map, columns_map, v_map;
    fp8flow_tensor h, dv, rows, columns, v_columns; /* outputs: data NULL is not wanted */
    const float *gate;
    f8_grouping groups;
    int32_t num_blocks;
    float *parts; /* of dgate: [num_blocks][rows of h] */
    uint64_t *nonfinite;
};

/* ---- One pass ---- */

/* The look-ups of one number. */
struct __align__(8) backward_entry {
    float sigmoid, slope;
};

typedef f8_tile_shared<3, 3, backward_entry> backward_shared;

struct backward_patch {
    f8_patch da, db, v;
};

/* A row of the patch in BF16, in pairs. */
struct backward_row {
    uint32_t a[4], b[4], g[4];
};

__device__ static void fill_table(backward_entry *table)
{
    for (int i = (int)threadIdx.x; i < F8_SIGMOID_ENTRIES; i += F8_TILE_THREADS) {
        float a = f8_sigmoid_argument(i), sigmoid = f8_sigmoid_quick(a);
        table[i] = { sigmoid, f8_swiglu_slope(a, sigmoid) };
    }
}

__device__ static void request_strip(const backward_job &job, const f8_tile_place &tile, backward_shared *shared)
{
    const CUtensorMap *const maps[3] = { &job.a_map, &job.b_map, &job.g_map };
    f8_strip_request(maps, tile, shared);
}

__device__ static backward_row read_row(const backward_shared *shared, int i)
{
    uint4 a = f8_strip_piece(shared, 0, i), b = f8_strip_piece(shared, 1, i), g = f8_strip_piece(shared, 2, i);
    return { { a.x, a.y, a.z, a.w }, { b.x, b.y, b.z, b.w }, { g.x, g.y, g.z, g.w } };
}

/* Slopes of numbers in the table, and of any number. */
struct slope_in_table {
    __device__ float operator()(float, backward_entry entry) const { return entry.slope; }
};

struct slope_anywhere {
    __device__ float operator()(float a, backward_entry entry) const { return f8_swiglu_slope(a, entry.sigmoid); }
};

/* Row i of the patch. Returns the sum of dw. */
template <class Slope>
__device__ static float compute_row(const backward_row &row, const backward_entry *table, float w, int i,
                                    backward_patch *x, Slope slope)
{
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        backward_entry at[2];
        f8_sigmoid_look_up(table, row.a[k], at);
        float a = f8_bf16_low(row.a[k]), next = f8_bf16_high(row.a[k]);
        f8_swiglu_slopes low = f8_swiglu_slopes_of(a, f8_bf16_low(row.b[k]), w, f8_bf16_low(row.g[k]), at[0].sigmoid,
                                                   slope(a, at[0]));
        f8_swiglu_slopes high = f8_swiglu_slopes_of(next, f8_bf16_high(row.b[k]), w, f8_bf16_high(row.g[k]),
                                                    at[1].sigmoid, slope(next, at[1]));
        x->da[i][2 * k] = low.da, x->da[i][2 * k + 1] = high.da;
        x->db[i][2 * k] = low.db, x->db[i][2 * k + 1] = high.db;
        x->v[i][2 * k] = low.v, x->v[i][2 * k + 1] = high.v;
        sum += low.dw;
        sum += high.dw;
    }
    return sum;
}

/* Where the patch lies in the row form and in the parts of dgate. Lane 0 of a row stores the scale of da, 1 of db. */
struct backward_targets {
    uint8_t *codes;
    uint32_t scale, part; /* indices */
};

__device__ static backward_targets targets_of(const backward_job &job, const f8_tile_place &tile)
{
    int64_t row = tile.row0 + f8_patch_row(), col = (int64_t)tile.block * F8_BLOCK + f8_patch_col();
    return { (uint8_t *)job.rows.data + row * job.rows.stride + col,
             (uint32_t)(row * 2 + f8_lane() % 2) * (uint32_t)job.num_blocks + (uint32_t)tile.block,
             (uint32_t)tile.block * (uint32_t)job.h.rows + (uint32_t)row };
}

/* Row form of row i of the patch, from the magnitudes of its da and db. */
template <fp8flow_dtype dtype>
__device__ static void store_row(const backward_job &job, const f8_tile_place &tile, int i, const backward_patch &x,
                                 const uint32_t (&magnitude)[3], const backward_targets &to)
{
    uint32_t bytes = f8_scale_byte_pair<dtype, F8_ROW_PIECES>(magnitude[0], magnitude[1]);
    if (f8_patch_row() + i >= tile.rows) return;
    uint8_t *codes = to.codes + i * job.rows.stride;
    f8_store_codes<dtype>(codes, x.da[i], f8_inverse_low(bytes));
    f8_store_codes<dtype>(codes + job.dv.cols, x.db[i], f8_inverse_high(bytes));
    if (f8_lane() % F8_ROW_PIECES < 2)
        ((uint8_t *)job.rows.scale)[to.scale + (uint32_t)(i * 2 * job.num_blocks)] =
            (uint8_t)(bytes >> f8_lane() % 2 * 16);
}

/* Values of the patch and everything that concerns rows. Gathers the magnitudes of da, db, v. */
template <fp8flow_dtype dtype>
__device__ static void compute_patch(const backward_job &job, const f8_tile_place &tile, float gates,
                                     backward_shared *shared, backward_patch *x, uint32_t (&magnitude)[3])
{
    backward_targets to = targets_of(job, tile);
#pragma unroll
    for (int i = 0; i < F8_PATCH_ROWS; i++) {
        backward_row row = read_row(shared, i);
        float w = f8_patch_gate(gates, i), sum;
        if (f8_bf16_reach(row.a, BEYOND_TABLE)) sum = compute_row(row, shared->table, w, i, x, slope_anywhere());
        else sum = compute_row(row, shared->table, w, i, x, slope_in_table());
        uint32_t of_row[3] = { f8_largest_of(x->da[i]), f8_largest_of(x->db[i]), f8_largest_of(x->v[i]) };
        if (max(max(of_row[0], of_row[1]), of_row[2]) >= 0x7F800000u) {
            uint32_t nonfinite = 0, not_counted = 0;
            of_row[0] = f8_finite_largest_of(x->da[i], &nonfinite);
            of_row[1] = f8_finite_largest_of(x->db[i], &nonfinite);
            of_row[2] = f8_finite_largest_of(x->v[i], &not_counted);
            atomicAdd(&shared->nonfinite, nonfinite);
        }
#pragma unroll
        for (int k = 0; k < 3; k++) magnitude[k] = max(magnitude[k], of_row[k]);
        if (job.rows.data) store_row<dtype>(job, tile, i, *x, of_row, to);
        if (!job.parts) continue;
        sum = f8_warp_sum<F8_ROW_PIECES>(sum);
        if (f8_lane() % F8_ROW_PIECES == 0 && f8_patch_row() + i < tile.rows) job.parts[to.part + i] = sum;
    }
}

/* Column forms of the three matrices, from the patches and the maxima of the tiles. */
template <fp8flow_dtype dtype, fp8flow_dtype v_dtype>
__device__ static void stage_columns(const backward_job &job, const backward_patch &x, const uint32_t *largest,
                                     backward_shared *shared)
{
    if (job.columns.data) {
        f8_tile_stage<dtype>(x.da, f8_inverse_low(f8_scale_byte_quick<dtype>(largest[0])), shared->stage[0]);
        f8_tile_stage<dtype>(x.db, f8_inverse_low(f8_scale_byte_quick<dtype>(largest[1])), shared->stage[1]);
    }
    if (job.v_columns.data)
        f8_tile_stage<v_dtype>(x.v, f8_inverse_low(f8_scale_byte_quick<v_dtype>(largest[2])), shared->stage[2]);
}

/* One thread: the stages to memory, with their scales. */
template <fp8flow_dtype dtype, fp8flow_dtype v_dtype>
__device__ static void store_columns(const backward_job &job, const f8_tile_place &tile, const uint32_t *largest,
                                     const backward_shared *shared)
{
    int col = tile.block * F8_BLOCK;
    if (tile.rows == 0) return;
    if (job.columns.data) {
        f8_tile_store<dtype>(&job.columns_map, job.columns, tile, col, largest[0], shared->stage[0]);
        f8_tile_store<dtype>(&job.columns_map, job.columns, tile, (int)job.dv.cols + col, largest[1],
                             shared->stage[1]);
    }
    if (job.v_columns.data)
        f8_tile_store<v_dtype>(&job.v_map, job.v_columns, tile, col, largest[2], shared->stage[2]);
    f8_store_commit();
}

template <fp8flow_dtype dtype, fp8flow_dtype v_dtype>
__global__ static void __launch_bounds__(F8_TILE_THREADS, 1)
    swiglu_backward_tiles_kernel(const __grid_constant__ backward_job job)
{
    extern __shared__ __align__(1024) unsigned char memory[];
    backward_shared *shared = (backward_shared *)memory;
    cudaTriggerProgrammaticLaunchCompletion();
    f8_tile_prepare(job.groups, job.num_blocks, shared);
    if (shared->place[0].block < 0) return;
    request_strip(job, shared->place[0], shared);
    float gates = f8_strip_gates(job.gate, shared->place[0]);
    fill_table(shared->table);
    __syncthreads();
    for (uint32_t t = 0; shared->place[t % 4].block >= 0; t++) {
        backward_patch x;
        uint32_t magnitude[3] = { 0, 0, 0 };
        f8_strip_wait(shared->place[t % 4], t, shared);
        compute_patch<dtype>(job, shared->place[t % 4], gates, shared, &x, magnitude);
        request_strip(job, shared->place[(t + 1) % 4], shared);
        gates = f8_strip_gates(job.gate, shared->place[(t + 1) % 4]);
        f8_tile_gather(magnitude, shared->largest[t % 2]);
        if (threadIdx.x == 0) f8_store_wait_read<0>();
        __syncthreads();
        stage_columns<dtype, v_dtype>(job, x, shared->largest[t % 2], shared);
        f8_tile_clear(t, shared);
        f8_async_fence();
        __syncthreads();
        f8_tile_advance(job.groups, t, shared);
        if (threadIdx.x == 0) store_columns<dtype, v_dtype>(job, shared->place[t % 4], shared->largest[t % 2], shared);
    }
    if (threadIdx.x != 0) return;
    f8_store_wait_read<0>();
    f8_add_nonfinite(job.nonfinite, shared->nonfinite);
}

/* One thread per row. The parts of padding are zeros. The kernel is launched before the tiles are done, to hide its
 * launch; parts may be read once they are. */
__global__ static void __launch_bounds__(PARTS_THREADS)
    swiglu_backward_parts_kernel(const float *parts, f8_grouping groups, int num_blocks, float *dgate)
{
    int row = (int)blockIdx.x * PARTS_THREADS + (int)threadIdx.x;
    bool has_groups = groups.is_grouped && groups.count > 0;
    int begin = has_groups ? __ldg(groups.offset) : 0, end = f8_used_rows(groups);
    cudaGridDependencySynchronize();
    if (row < begin || row >= end) return;
    float sum = 0.0f;
#pragma unroll 16
    for (int block = 0; block < num_blocks; block++) sum += __ldcg(parts + (int64_t)block * groups.total_rows + row);
    dgate[row] = f8_canonical(sum);
}

/* ---- Any combination ---- */

__device__ static f8_swiglu_slopes slopes_at(const backward_job &job, int64_t row, int64_t col)
{
    const uint16_t *line = (const uint16_t *)job.h.data + row * job.h.stride + col;
    float a = f8_bf16_decode(line[0]), b = f8_bf16_decode(line[job.dv.cols]), w = job.gate ? job.gate[row] : 1.0f;
    float g = f8_bf16_decode(((const uint16_t *)job.dv.data)[row * job.dv.stride + col]);
    float sigmoid = f8_sigmoid(a);
    return f8_swiglu_slopes_of(a, b, w, g, sigmoid, f8_swiglu_slope(a, sigmoid));
}

/* Elements of dh = [da | db]. */
struct gradient_at {
    backward_job job;

    __device__ float operator()(int64_t row, int64_t col) const
    {
        return col < job.dv.cols ? slopes_at(job, row, col).da : slopes_at(job, row, col - job.dv.cols).db;
    }
};

/* One warp per row. */
__global__ static void __launch_bounds__(GATE_THREADS) swiglu_backward_gate_kernel(backward_job job, float *dgate)
{
    int row = (int)(blockIdx.x * (GATE_THREADS / F8_WARP) + threadIdx.x / F8_WARP);
    f8_row_cursor cursor = f8_cursor_at(job.groups, row);
    if (row < cursor.begin || row >= cursor.end) return;
    float sum = 0.0f;
    for (int64_t col = f8_lane(); row < cursor.valid_end && col < job.dv.cols; col += F8_WARP)
        sum += slopes_at(job, row, col).dw;
    sum = f8_warp_sum(sum);
    if (f8_lane() == 0) dgate[row] = f8_canonical(sum);
}

static fp8flow_status launch_gate(const fp8flow_context *c, const backward_job &job, float *dgate)
{
    if (!dgate) return FP8FLOW_OK;
    unsigned grid = f8_grid(job.h.rows, GATE_THREADS / F8_WARP);
    swiglu_backward_gate_kernel<<<grid, GATE_THREADS, 0, f8_stream(c)>>>(job, dgate);
    return f8_launched("swiglu_backward");
}

static fp8flow_status launch_any(const fp8flow_context *c, const backward_job &job, float *dgate)
{
    const char *op = "swiglu_backward";
    const fp8flow_tensor none = {};
    f8_any_outputs dh = { job.rows, job.columns, job.groups, job.h.cols, job.nonfinite };
    f8_any_outputs v = { none, job.v_columns, job.groups, job.dv.cols, NULL };
    if (job.rows.data || job.columns.data || job.nonfinite) F8_TRY(f8_any_launch(c, op, dh, gradient_at{ job }));
    if (job.v_columns.data) F8_TRY(f8_any_launch(c, op, v, f8_value_at{ job.h, job.gate }));
    return launch_gate(c, job, dgate);
}

/* ---- Choice ---- */

/* A column form that tiles can write; none is one. */
static bool is_wide_columns(const fp8flow_tensor *y)
{
    return !y || (y->scaling == FP8FLOW_TILE128 && f8_aligned16(y->data, y->stride));
}

/* Lines of whole blocks. Rows of groups start at multiples of 128 only where columns are written. */
static bool is_wide(const fp8flow_swiglu_backward_args *a)
{
    const fp8flow_tensor *rows = a->rows, *columns = a->columns;
    if (a->dv->cols % F8_BLOCK || (a->groups && !columns && !a->v_columns)) return false;
    if (!f8_aligned16(a->h->data, a->h->stride * 2) || !f8_aligned16(a->dv->data, a->dv->stride * 2)) return false;
    if (rows && (rows->scaling != FP8FLOW_ROW128 || !f8_aligned16(rows->data, rows->stride))) return false;
    if (rows && columns && rows->dtype != columns->dtype) return false;
    return is_wide_columns(columns) && is_wide_columns(a->v_columns);
}

static fp8flow_status make_maps(backward_job *job)
{
    const char *op = "swiglu_backward";
    int64_t cols = job->dv.cols;
    F8_TRY(f8_strip_map(op, &job->a_map, &job->h, 0, cols));
    F8_TRY(f8_strip_map(op, &job->b_map, &job->h, cols, cols));
    F8_TRY(f8_strip_map(op, &job->g_map, &job->dv, 0, cols));
    if (job->columns.data) F8_TRY(f8_tile_map(op, &job->columns_map, &job->columns));
    return job->v_columns.data ? f8_tile_map(op, &job->v_map, &job->v_columns) : FP8FLOW_OK;
}

template <fp8flow_dtype dtype, fp8flow_dtype v_dtype>
static fp8flow_status launch_tiles_of(const fp8flow_context *c, const backward_job &job, int blocks)
{
    const char *op = "swiglu_backward";
    F8_TRY(f8_allow_shared(op, swiglu_backward_tiles_kernel<dtype, v_dtype>, (int)sizeof(backward_shared)));
    swiglu_backward_tiles_kernel<dtype, v_dtype>
        <<<blocks, F8_TILE_THREADS, sizeof(backward_shared), f8_stream(c)>>>(job);
    return f8_launched(op);
}

/* Programmatic stream serialization: the blocks may start when all of the tile kernel's have said so or ended. */
static fp8flow_status launch_parts(const fp8flow_context *c, const backward_job &job, float *dgate)
{
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(f8_grid(job.h.rows, PARTS_THREADS));
    config.blockDim = dim3(PARTS_THREADS);
    config.stream = f8_stream(c);
    config.attrs = &early;
    config.numAttrs = 1;
    const float *parts = job.parts;
    cudaError_t error =
        cudaLaunchKernelEx(&config, swiglu_backward_parts_kernel, parts, job.groups, (int)job.num_blocks, dgate);
    F8_REQUIRE(error == cudaSuccess, EBACKEND, "swiglu_backward: cuda: %s", cudaGetErrorString(error));
    return f8_launched("swiglu_backward");
}

static fp8flow_status launch_tiles(const fp8flow_context *c, backward_job job, float *dgate)
{
    const fp8flow_dtype e4m3 = FP8FLOW_E4M3, e5m2 = FP8FLOW_E5M2;
    bool wide_range = (job.rows.data ? job.rows.dtype : job.columns.dtype) == e5m2;
    bool v_wide = job.v_columns.dtype == e5m2;
    bool fits = job.h.rows * job.num_blocks * (int64_t)sizeof(float) <= F8_CUDA_SCRATCH_BYTES;
    int blocks = 0;
    F8_TRY(f8_multiprocessors("swiglu_backward", &blocks));
    F8_TRY(make_maps(&job));
    if (dgate && fits) job.parts = (float *)f8_cuda_scratch(c);
    if (wide_range && v_wide) F8_TRY((launch_tiles_of<e5m2, e5m2>(c, job, blocks)));
    else if (wide_range) F8_TRY((launch_tiles_of<e5m2, e4m3>(c, job, blocks)));
    else if (v_wide) F8_TRY((launch_tiles_of<e4m3, e5m2>(c, job, blocks)));
    else F8_TRY((launch_tiles_of<e4m3, e4m3>(c, job, blocks)));
    if (!job.parts) return launch_gate(c, job, dgate);
    return launch_parts(c, job, dgate);
}

extern "C" fp8flow_status f8_cuda_swiglu_backward(fp8flow_context *c, const fp8flow_swiglu_backward_args *a)
{
    if (a->h->rows == 0) return FP8FLOW_OK;
    backward_job job = {};
    job.h = *a->h;
    job.dv = *a->dv;
    if (a->rows) job.rows = *a->rows;
    if (a->columns) job.columns = *a->columns;
    if (a->v_columns) job.v_columns = *a->v_columns;
    job.gate = a->gate;
    job.groups = f8_grouping_of(a->h, a->groups);
    job.num_blocks = (int32_t)f8_ceil_div(a->dv->cols, F8_BLOCK);
    job.nonfinite = a->nonfinite;
    if (a->dv->cols == 0) return launch_gate(c, job, a->dgate);
    if (f8_is_lines(a)) return f8_lines_launch<F8_LINE_BLOCKS>(c, a);
    return is_wide(a) ? launch_tiles(c, job, a->dgate) : launch_any(c, job, a->dgate);
}
