/* swiglu_any.cuh - every combination of formats, shapes and alignments: a tile of 128 x 128 values in FP32 in shared
 * memory, written in each form that is asked for. For what the fast kernels do not take: lines that are not aligned,
 * F that is no multiple of 128, COL128, unscaled gradients.
 *
 * A block of 256 threads has one tile: threads walk a row while it is filled and while rows are written, and rows of a
 * column while columns are written. Tile lines are 129 floats apart, so that both are free of bank conflicts.
 */
#ifndef F8_OPS_SWIGLU_ANY_CUH
#define F8_OPS_SWIGLU_ANY_CUH

#include "ops/swiglu.cuh"

enum { F8_ANY_THREADS = 256, F8_ANY_WARPS = F8_ANY_THREADS / F8_WARP };

struct f8_any_tile {
    float at[F8_BLOCK][F8_BLOCK + 1];
    uint32_t column_max[F8_BLOCK];
    uint8_t in_use[F8_BLOCK]; /* of a row: 0 outside, 1 padding, 2 valid */
};

/* Outputs of one matrix; data is NULL where a form is not wanted. */
struct f8_any_outputs {
    fp8flow_tensor rows, columns;
    f8_grouping groups;
    int64_t cols;
    uint64_t *nonfinite;
};

__device__ static inline uint32_t f8_encode_any(float x, fp8flow_dtype dtype)
{
    uint32_t codes = dtype == FP8FLOW_E5M2 ? f8_encode2<FP8FLOW_E5M2>(x, 0.0f) : f8_encode2<FP8FLOW_E4M3>(x, 0.0f);
    return codes & 0xFFu;
}

/* Thread r of the first 128 finds what row r of the tile is. Called by whole warps. */
__device__ static inline void f8_any_find_rows(const f8_grouping &g, int first, f8_any_tile *tile)
{
    if (threadIdx.x >= F8_BLOCK) return;
    int row = first + (int)threadIdx.x;
    f8_row_cursor cursor = f8_cursor_at(g, first + (int)threadIdx.x / F8_WARP * F8_WARP);
    f8_cursor_seek(g, row, &cursor);
    bool inside = row >= cursor.begin && row < cursor.end;
    tile->in_use[threadIdx.x] = (uint8_t)(inside ? 1 + (row < cursor.valid_end) : 0);
}

template <class Value>
__device__ static inline void f8_any_fill(const f8_any_outputs &out, int first, int64_t col0, Value value,
                                          f8_any_tile *tile)
{
    uint32_t nonfinite = 0;
    for (int i = (int)threadIdx.x; i < F8_BLOCK * F8_BLOCK; i += F8_ANY_THREADS) {
        int r = i / F8_BLOCK, c = i % F8_BLOCK;
        bool valid = tile->in_use[r] == 2 && col0 + c < out.cols;
        float x = valid ? value((int64_t)first + r, col0 + c) : 0.0f;
        tile->at[r][c] = x;
        nonfinite += !f8_is_finite(x);
    }
    f8_add_nonfinite(out.nonfinite, nonfinite);
}

__device__ static inline void f8_any_store_row(const fp8flow_tensor &y, int64_t row, int64_t col0, const float *x)
{
    int lane = f8_lane();
    uint32_t amax = 0;
    for (int c = lane; c < F8_BLOCK; c += F8_WARP) amax = max(amax, f8_finite_magnitude(x[c]));
    amax = f8_warp_max(amax);
    uint8_t byte = f8_scale_byte(amax, y.dtype);
    float inverse = f8_scale_inverse(byte);
    if (y.scaling == FP8FLOW_ROW128 && lane == 0)
        ((uint8_t *)y.scale)[row * f8_ceil_div(y.cols, F8_BLOCK) + col0 / F8_BLOCK] = byte;
    for (int c = lane; c < F8_BLOCK && col0 + c < y.cols; c += F8_WARP) {
        int64_t index = row * y.stride + col0 + c;
        if (y.dtype == FP8FLOW_F32) ((float *)y.data)[index] = f8_canonical(x[c]);
        else if (y.dtype == FP8FLOW_BF16) ((uint16_t *)y.data)[index] = f8_bf16_encode(f8_canonical(x[c]));
        else ((uint8_t *)y.data)[index] = (uint8_t)f8_encode_any(x[c] * inverse, y.dtype);
    }
}

/* Rows of a tile with columns start at a multiple of 128 and are in use from the first on. */
__device__ static inline void f8_any_store_column(const fp8flow_tensor &y, int first, int64_t col, int c,
                                                  const f8_any_tile *tile)
{
    int lane = f8_lane();
    uint32_t amax = tile->column_max[c];
    if (y.scaling == FP8FLOW_TILE128) {
        amax = 0;
        for (int i = lane; i < F8_BLOCK; i += F8_WARP) amax = max(amax, tile->column_max[i]);
        amax = f8_warp_max(amax);
    }
    uint8_t byte = f8_scale_byte(amax, y.dtype);
    float inverse = f8_scale_inverse(byte);
    int64_t row_block = first / F8_BLOCK;
    if (lane == 0 && y.scaling == FP8FLOW_COL128) ((uint8_t *)y.scale)[row_block * y.cols + col] = byte;
    if (lane == 0 && y.scaling == FP8FLOW_TILE128 && c == 0)
        ((uint8_t *)y.scale)[row_block * f8_ceil_div(y.cols, F8_BLOCK) + col / F8_BLOCK] = byte;
    for (int r = lane; r < F8_BLOCK && tile->in_use[r]; r += F8_WARP)
        ((uint8_t *)y.data)[col * y.stride + first + r] =
            (uint8_t)f8_encode_any(tile->at[r][c] * inverse, y.dtype);
}

__device__ static inline void f8_any_measure_column(int c, f8_any_tile *tile)
{
    uint32_t amax = 0;
    for (int r = f8_lane(); r < F8_BLOCK; r += F8_WARP) amax = max(amax, f8_finite_magnitude(tile->at[r][c]));
    amax = f8_warp_max(amax);
    if (f8_lane() == 0) tile->column_max[c] = amax;
}

/* Elements of v. */
struct f8_value_at {
    fp8flow_tensor h;
    const float *gate;

    __device__ float operator()(int64_t row, int64_t col) const
    {
        const uint16_t *line = (const uint16_t *)h.data + row * h.stride;
        float a = f8_bf16_decode(line[col]), b = f8_bf16_decode(line[h.cols / 2 + col]);
        return f8_swiglu_product(a, b, gate ? gate[row] : 1.0f, f8_sigmoid(a));
    }
};

/* One block per tile, row blocks outermost. value(row, col) is the element in FP32. */
template <class Value>
__global__ static void __launch_bounds__(F8_ANY_THREADS) f8_any_kernel(f8_any_outputs out, Value value)
{
    extern __shared__ __align__(16) unsigned char f8_any_memory[];
    f8_any_tile *tile = (f8_any_tile *)f8_any_memory;
    int64_t num_blocks = f8_ceil_div(out.cols, F8_BLOCK), col0 = blockIdx.x % num_blocks * F8_BLOCK;
    int first = (int)(blockIdx.x / num_blocks) * F8_BLOCK, warp = (int)threadIdx.x / F8_WARP;
    if (first >= f8_used_rows(out.groups)) return;
    f8_any_find_rows(out.groups, first, tile);
    __syncthreads();
    f8_any_fill(out, first, col0, value, tile);
    __syncthreads();
    if (out.rows.data)
        for (int r = warp; r < F8_BLOCK; r += F8_ANY_WARPS)
            if (tile->in_use[r]) f8_any_store_row(out.rows, (int64_t)first + r, col0, tile->at[r]);
    /* Before the first group there may be a tile without rows. */
    if (!out.columns.data || !tile->in_use[0]) return;
    for (int c = warp; c < F8_BLOCK; c += F8_ANY_WARPS) f8_any_measure_column(c, tile);
    __syncthreads();
    for (int c = warp; c < F8_BLOCK && col0 + c < out.cols; c += F8_ANY_WARPS)
        f8_any_store_column(out.columns, first, col0 + c, c, tile);
}

/* Launch for a matrix of `rows` rows; nothing to write is no launch. */
template <class Value>
static fp8flow_status f8_any_launch(const fp8flow_context *c, const char *op, const f8_any_outputs &out, Value value)
{
    int64_t tiles = f8_ceil_div(out.groups.total_rows, F8_BLOCK) * f8_ceil_div(out.cols, F8_BLOCK);
    if (tiles == 0) return FP8FLOW_OK;
    F8_TRY(f8_allow_shared(op, f8_any_kernel<Value>, (int)sizeof(f8_any_tile)));
    f8_any_kernel<<<f8_grid(tiles, 1), F8_ANY_THREADS, sizeof(f8_any_tile), f8_stream(c)>>>(out, value);
    return f8_launched(op);
}

#endif
