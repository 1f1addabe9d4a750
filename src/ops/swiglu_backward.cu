/* swiglu_backward.cu - CUDA side of swiglu_backward. Contract: fp8flow_ops.h. CPU side: swiglu_backward.c.
 *
 * One pass: tiles of 128 rows x 128 activations (swiglu_tile.cuh) give the row form and the column form of da and db,
 * v in column form and the tile's part of dgate; h and dv are read once. 11.05 bytes per activation, about 50
 * instructions. 96 values per thread wait in registers for the scales of the three tiles. A second kernel adds the
 * parts of dgate, one per row and tile, in the order of the columns.
 * Everything else (swiglu_any.cuh): a pass for dh, one for v, one for dgate.
 */
#include "ops/swiglu_any.cuh"
#include "ops/swiglu_tile.cuh"

enum { PARTS_THREADS = 128, GATE_THREADS = 256 };

struct backward_job {
    fp8flow_tensor h, dv, rows, columns, v_columns; /* outputs: data NULL is not wanted */
    const float *gate;
    f8_grouping groups;
    int32_t num_blocks;
    float *parts; /* of dgate: [num_blocks][rows of h] */
    uint64_t *nonfinite;
};

/* ---- One pass ---- */

struct backward_shared {
    uint4 slot[F8_PATCH_ROWS][3][F8_TILE_THREADS];
    float gate[F8_PATCH_ROWS][F8_TILE_THREADS];
    uint32_t stage[3][F8_STAGE_BYTES / 4];
    float table[F8_SIGMOID_ENTRIES];
    f8_tile_maxima<3> maxima;
};

struct backward_patch {
    f8_patch da, db, v;
};

/* Ask for row i of the patch in a tile. */
__device__ static void request_row(const backward_job &job, const f8_tile_place &tile, const f8_patch_place &place,
                                   int i, backward_shared *shared)
{
    int64_t row = tile.row0 + place.row + i, col = (int64_t)tile.block * F8_BLOCK + place.col;
    bool wanted = place.row + i < tile.valid;
    if (!wanted) row = col = 0;
    const uint16_t *h = (const uint16_t *)job.h.data + row * job.h.stride + col;
    f8_copy_async(&shared->slot[i][0][threadIdx.x], h, wanted);
    f8_copy_async(&shared->slot[i][1][threadIdx.x], h + job.dv.cols, wanted);
    f8_copy_async(&shared->slot[i][2][threadIdx.x], (const uint16_t *)job.dv.data + row * job.dv.stride + col, wanted);
    f8_copy_gate(&shared->gate[i][threadIdx.x], job.gate, tile, place.row + i);
    f8_copy_commit();
}

/* Row i of the patch from its slots. Returns the sum of dw. */
__device__ static float compute_row(const backward_shared *shared, float w, int i, backward_patch *x)
{
    uint4 a = shared->slot[i][0][threadIdx.x], b = shared->slot[i][1][threadIdx.x], g = shared->slot[i][2][threadIdx.x];
    const uint32_t as[4] = { a.x, a.y, a.z, a.w }, bs[4] = { b.x, b.y, b.z, b.w }, gs[4] = { g.x, g.y, g.z, g.w };
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float2 s = f8_sigmoid_pair(shared->table, as[k]);
        f8_swiglu_slopes low = f8_swiglu_slopes_of(f8_bf16_low(as[k]), f8_bf16_low(bs[k]), w, f8_bf16_low(gs[k]), s.x);
        f8_swiglu_slopes high =
            f8_swiglu_slopes_of(f8_bf16_high(as[k]), f8_bf16_high(bs[k]), w, f8_bf16_high(gs[k]), s.y);
        x->da[i][2 * k] = low.da, x->da[i][2 * k + 1] = high.da;
        x->db[i][2 * k] = low.db, x->db[i][2 * k + 1] = high.db;
        x->v[i][2 * k] = low.v, x->v[i][2 * k + 1] = high.v;
        sum += low.dw;
        sum += high.dw;
    }
    return sum;
}

/* Row form of row i of the patch, from the magnitudes of its da and db; this tile's part of dgate. */
template <fp8flow_dtype dtype>
__device__ static void store_row(const backward_job &job, const f8_tile_place &tile, int in_tile,
                                 const float (&da)[F8_PATCH_COLS], const float (&db)[F8_PATCH_COLS], uint2 magnitude)
{
    uint32_t of_da = f8_warp_max<16>(magnitude.x), of_db = f8_warp_max<16>(magnitude.y);
    if (in_tile >= tile.rows) return;
    int64_t row = tile.row0 + in_tile, scale = row * 2 * job.num_blocks + tile.block;
    int64_t index = row * job.rows.stride + (int64_t)tile.block * F8_BLOCK + f8_lane() % 16 * F8_PATCH_COLS;
    f8_tile_store_row<dtype>(job.rows, index, scale, of_da, da);
    f8_tile_store_row<dtype>(job.rows, index + job.dv.cols, scale + job.num_blocks, of_db, db);
}

__device__ static void store_part(const backward_job &job, const f8_tile_place &tile, int in_tile, float sum)
{
    sum = f8_warp_sum<16>(sum);
    if (in_tile < tile.valid && f8_lane() % 16 == 0)
        job.parts[tile.block * job.h.rows + tile.row0 + in_tile] = sum;
}

/* Values of the patch and everything that concerns rows; the slots are filled again for the next tile. Returns the
 * magnitudes of da, db, v. */
template <fp8flow_dtype dtype>
__device__ static uint3 compute_patch(const backward_job &job, const f8_tile_place &tile, const f8_tile_place &next,
                                      backward_shared *shared, backward_patch *x, uint32_t *nonfinite)
{
    f8_patch_place place = f8_patch_of_thread();
    uint3 magnitude = make_uint3(0, 0, 0);
    uint32_t not_counted = 0;
#pragma unroll
    for (int i = 0; i < F8_PATCH_ROWS; i++) {
        f8_copy_wait<F8_PATCH_ROWS - 1>();
        float sum = compute_row(shared, job.gate ? shared->gate[i][threadIdx.x] : 1.0f, i, x);
        request_row(job, next, place, i, shared);
        uint2 of_row = make_uint2(f8_magnitude_of(x->da[i], nonfinite), f8_magnitude_of(x->db[i], nonfinite));
        magnitude.x = max(magnitude.x, of_row.x);
        magnitude.y = max(magnitude.y, of_row.y);
        magnitude.z = max(magnitude.z, f8_magnitude_of(x->v[i], &not_counted));
        if (job.rows.data) store_row<dtype>(job, tile, place.row + i, x->da[i], x->db[i], of_row);
        if (job.parts) store_part(job, tile, place.row + i, sum);
    }
    return magnitude;
}

/* Column forms of the three matrices, from the patches and the maxima of the tiles. */
template <fp8flow_dtype dtype, fp8flow_dtype v_dtype>
__device__ static void store_columns(const backward_job &job, const f8_tile_place &tile, const backward_patch &x,
                                     const uint32_t *largest, backward_shared *shared)
{
    f8_patch_place place = f8_patch_of_thread();
    int64_t col = (int64_t)tile.block * F8_BLOCK;
    uint8_t of_da = f8_scale_byte(largest[0], dtype), of_db = f8_scale_byte(largest[1], dtype);
    uint8_t of_v = f8_scale_byte(largest[2], v_dtype);
    if (job.columns.data) {
        f8_tile_stage<dtype>(x.da, place, f8_scale_inverse(of_da), shared->stage[0]);
        f8_tile_stage<dtype>(x.db, place, f8_scale_inverse(of_db), shared->stage[1]);
    }
    if (job.v_columns.data) f8_tile_stage<v_dtype>(x.v, place, f8_scale_inverse(of_v), shared->stage[2]);
    __syncthreads();
    if (job.columns.data) {
        f8_tile_store_columns(job.columns, tile, col, of_da, shared->stage[0]);
        f8_tile_store_columns(job.columns, tile, job.dv.cols + col, of_db, shared->stage[1]);
    }
    if (job.v_columns.data) f8_tile_store_columns(job.v_columns, tile, col, of_v, shared->stage[2]);
}

template <fp8flow_dtype dtype, fp8flow_dtype v_dtype>
__global__ static void __launch_bounds__(F8_TILE_THREADS, 1) swiglu_backward_tiles_kernel(backward_job job)
{
    extern __shared__ __align__(16) unsigned char memory[];
    backward_shared *shared = (backward_shared *)memory;
    f8_tile_range range = f8_tiles_of_block(job.groups, job.num_blocks);
    if (range.begin >= range.end) return;
    f8_row_cursor cursor = f8_cursor_at(job.groups, (int)(range.begin / job.num_blocks) * F8_BLOCK);
    f8_tile_place tile = f8_tile_at(job.groups, range.begin, job.num_blocks, &cursor);
#pragma unroll
    for (int i = 0; i < F8_PATCH_ROWS; i++) request_row(job, tile, f8_patch_of_thread(), i, shared);
    f8_sigmoid_fill(shared->table);
    if (threadIdx.x < 3) shared->maxima.at[0][threadIdx.x] = shared->maxima.at[1][threadIdx.x] = 0;
    __syncthreads();
    uint32_t nonfinite = 0;
    for (int64_t t = range.begin; t < range.end; t++) {
        f8_tile_place next = { 0, 0, 0, 0 };
        if (t + 1 < range.end) next = f8_tile_at(job.groups, t + 1, job.num_blocks, &cursor);
        int turn = (int)(t - range.begin) % 2;
        backward_patch x;
        uint3 magnitude = compute_patch<dtype>(job, tile, next, shared, &x, &nonfinite);
        f8_tile_gather(magnitude.x, &shared->maxima.at[turn][0]);
        f8_tile_gather(magnitude.y, &shared->maxima.at[turn][1]);
        f8_tile_gather(magnitude.z, &shared->maxima.at[turn][2]);
        __syncthreads();
        if (threadIdx.x < 3) shared->maxima.at[turn ^ 1][threadIdx.x] = 0;
        store_columns<dtype, v_dtype>(job, tile, x, shared->maxima.at[turn], shared);
        tile = next;
    }
    f8_add_nonfinite(job.nonfinite, nonfinite);
}

/* One thread per row. */
__global__ static void __launch_bounds__(PARTS_THREADS) swiglu_backward_parts_kernel(backward_job job, float *dgate)
{
    int row = (int)blockIdx.x * PARTS_THREADS + (int)threadIdx.x;
    f8_row_cursor cursor = f8_cursor_at(job.groups, row - f8_lane());
    f8_cursor_seek(job.groups, row, &cursor);
    if (row < cursor.begin || row >= cursor.end) return;
    float sum = 0.0f;
    for (int block = 0; row < cursor.valid_end && block < job.num_blocks; block++)
        sum += job.parts[block * job.h.rows + row];
    dgate[row] = f8_canonical(sum);
}

/* ---- Any combination ---- */

__device__ static f8_swiglu_slopes slopes_at(const backward_job &job, int64_t row, int64_t col)
{
    const uint16_t *line = (const uint16_t *)job.h.data + row * job.h.stride + col;
    float a = f8_bf16_decode(line[0]), b = f8_bf16_decode(line[job.dv.cols]), w = job.gate ? job.gate[row] : 1.0f;
    float g = f8_bf16_decode(((const uint16_t *)job.dv.data)[row * job.dv.stride + col]);
    return f8_swiglu_slopes_of(a, b, w, g, f8_sigmoid(a));
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

template <fp8flow_dtype dtype, fp8flow_dtype v_dtype>
static fp8flow_status launch_tiles_of(const fp8flow_context *c, const backward_job &job, int blocks)
{
    const char *op = "swiglu_backward";
    F8_TRY(f8_allow_shared(op, swiglu_backward_tiles_kernel<dtype, v_dtype>, (int)sizeof(backward_shared)));
    swiglu_backward_tiles_kernel<dtype, v_dtype>
        <<<blocks, F8_TILE_THREADS, sizeof(backward_shared), f8_stream(c)>>>(job);
    return f8_launched(op);
}

static fp8flow_status launch_tiles(const fp8flow_context *c, backward_job job, float *dgate)
{
    const fp8flow_dtype e4m3 = FP8FLOW_E4M3, e5m2 = FP8FLOW_E5M2;
    bool wide_range = (job.rows.data ? job.rows.dtype : job.columns.dtype) == e5m2;
    bool v_wide = job.v_columns.dtype == e5m2;
    bool fits = job.h.rows * job.num_blocks * (int64_t)sizeof(float) <= F8_CUDA_SCRATCH_BYTES;
    int blocks = 0;
    F8_TRY(f8_multiprocessors("swiglu_backward", &blocks));
    if (dgate && fits) job.parts = (float *)f8_cuda_scratch(c);
    if (wide_range && v_wide) F8_TRY((launch_tiles_of<e5m2, e5m2>(c, job, blocks)));
    else if (wide_range) F8_TRY((launch_tiles_of<e5m2, e4m3>(c, job, blocks)));
    else if (v_wide) F8_TRY((launch_tiles_of<e4m3, e5m2>(c, job, blocks)));
    else F8_TRY((launch_tiles_of<e4m3, e4m3>(c, job, blocks)));
    if (!job.parts) return launch_gate(c, job, dgate);
    swiglu_backward_parts_kernel<<<f8_grid(job.h.rows, PARTS_THREADS), PARTS_THREADS, 0, f8_stream(c)>>>(job, dgate);
    return f8_launched("swiglu_backward");
}

extern "C" fp8flow_status f8_cuda_swiglu_backward(fp8flow_context *c, const fp8flow_swiglu_backward_args *a)
{
    const fp8flow_tensor none = {};
    if (a->h->rows == 0) return FP8FLOW_OK;
    backward_job job = { *a->h,
                         *a->dv,
                         a->rows ? *a->rows : none,
                         a->columns ? *a->columns : none,
                         a->v_columns ? *a->v_columns : none,
                         a->gate,
                         f8_grouping_of(a->h, a->groups),
                         (int32_t)f8_ceil_div(a->dv->cols, F8_BLOCK),
                         NULL,
                         a->nonfinite };
    if (a->dv->cols == 0) return launch_gate(c, job, a->dgate);
    return is_wide(a) ? launch_tiles(c, job, a->dgate) : launch_any(c, job, a->dgate);
}
