/* transpose.cu - CUDA side of transpose. Contract: fp8flow_ops.h. CPU side: transpose.c.
 *
 * ROW128 to TILE128: one block turns 256 x 256 codes (wide.cuh). The rest, and lines that are not whole pieces of 16
 * bytes: one block turns one tile of 128 x 128 codes (shift.cuh). Traffic: 2 bytes per element and 1/128 for the
 * scales of the rows.
 */
#include "ops/launch.cuh"
#include "ops/wide_lines.cuh"

/* Bit r: row r of this thread's patch is in use. */
__device__ static uint32_t used_rows(int used)
{
    return (1u << min(max(used - f8_patch_row(), 0), 4)) - 1u;
}

/* The same where groups may start at any row; `row` is the tile's first. */
__device__ static uint32_t used_loose_rows(const f8_grouping &g, int row)
{
    const int rows_of_warp = F8_BLOCK / F8_SHIFT_WARPS;
    uint32_t used = 0;
    for (int r = 0; r < rows_of_warp; r++) {
        int at = row + (int)threadIdx.x / F8_WARP * rows_of_warp + r;
        used |= (uint32_t)f8_span_from(g, at, 1).valid << r;
    }
    return used >> f8_lane() / 8 * 4 & 0xFu;
}

template <f8_access access>
__device__ static void load_codes(const fp8flow_tensor &x, int row, int col, uint32_t used, f8_patch &p)
{
    int count = (int)min(x.cols - col - f8_patch_col(), (int64_t)16);
    const uint8_t *from = (const uint8_t *)x.data + (int64_t)(row + f8_patch_row()) * x.stride + col + f8_patch_col();
#pragma unroll
    for (int r = 0; r < 4; r++)
        f8_set_row(p, r, f8_read_codes<access>(from + r * x.stride, used >> r & 1 ? count : 0));
}

__device__ static void load_scales(const fp8flow_tensor &x, int row, uint32_t used, f8_patch &p)
{
    int64_t blocks = f8_col_blocks(x);
    const uint8_t *from = (const uint8_t *)x.scale + (row + f8_patch_row()) * blocks + f8_tile_col_block();
#pragma unroll
    for (int r = 0; r < 4; r++) p.scale[r] = used >> r & 1 ? __ldg(from + r * blocks) : 1;
}

/* The column form of a span's tile; `scale` is the index of its first scale. */
__device__ static f8_column_place place_of(const fp8flow_tensor &y, const f8_device_span &span, int col, int64_t scale)
{
    int64_t line = col, row = span.row;
    if (y.group_rows) line += span.group * y.cols, row -= span.group * y.group_rows;
    f8_column_place place = { (uint8_t *)y.data + line * y.stride + row, (uint8_t *)y.scale + scale, y.stride,
                              span.rows, (int)min(y.cols - col, (int64_t)F8_BLOCK) };
    return place;
}

/* ROW128 to TILE128 or COL128. */
template <fp8flow_dtype dtype, fp8flow_scaling scaling, f8_access access>
__global__ static void __launch_bounds__(F8_SHIFT_THREADS, f8_shift_blocks(scaling, access))
    transpose_shift_kernel(fp8flow_tensor x, fp8flow_tensor y, f8_grouping groups, uint64_t *histogram)
{
    __shared__ f8_shift_shared shared;
    int block = f8_tile_row_block(), col_block = f8_tile_col_block(), col = col_block * F8_BLOCK;
    if (col >= y.cols) return;
    f8_device_span span = f8_span_of_block(groups, block);
    if (span.rows == 0) return;
    f8_patch patch;
    uint32_t used = used_rows(span.valid);
    load_codes<access>(x, span.row, col, used, patch);
    load_scales(x, span.row, used, patch);
    int64_t scale = (int64_t)block * f8_col_blocks(y) + col_block;
    if (scaling == FP8FLOW_COL128) scale = block * y.cols + col;
    f8_shift_tile<dtype, scaling, access>(patch, place_of(y, span, col, scale), histogram, shared);
}

/* TILE128 to TILE128, TENSOR to TENSOR (whose scales the launcher copies). Only the groups of TENSOR are loose. */
template <fp8flow_dtype dtype, f8_access access>
__global__ static void __launch_bounds__(F8_SHIFT_THREADS, f8_shift_blocks(FP8FLOW_TILE128, access))
    transpose_copy_kernel(fp8flow_tensor x, fp8flow_tensor y, f8_grouping groups, uint64_t *histogram)
{
    __shared__ f8_shift_shared shared;
    int block = f8_tile_row_block(), col_block = f8_tile_col_block(), col = col_block * F8_BLOCK;
    bool is_loose = y.scaling == FP8FLOW_TENSOR && groups.is_grouped;
    if (col >= y.cols) return;
    f8_device_span span = f8_span_of_block(groups, block);
    if (is_loose) span.rows = min(F8_BLOCK, min(__ldg(groups.offset + groups.count), groups.total_rows) - span.row);
    if (span.rows <= 0) return;
    f8_patch patch;
    load_codes<access>(x, span.row, col, is_loose ? used_loose_rows(groups, span.row) : used_rows(span.valid), patch);
    int64_t scale = (int64_t)block * f8_col_blocks(y) + col_block;
    if (y.scaling == FP8FLOW_TILE128 && threadIdx.x == 0)
        ((uint8_t *)y.scale)[scale] = span.valid ? ((const uint8_t *)x.scale)[scale] : 1;
    if (histogram) {
        uint32_t count = 0;
#pragma unroll
        for (int i = 0; i < 16; i++) count += __popc(f8_counted4<dtype>(patch.code[i / 4][i % 4]));
        count = __reduce_add_sync(F8_ALL_LANES, count);
        if (f8_lane() == 0 && count) atomicAdd((unsigned long long *)histogram, (unsigned long long)count);
    }
    f8_transpose_patch(patch);
    f8_store_columns<access>(patch, place_of(y, span, col, 0), shared);
}

/* Whether every line of a tile is whole pieces of 16 bytes in both forms. Groups of 128 rows always are. */
static bool is_wide(const fp8flow_tensor *x, const fp8flow_tensor *y, const fp8flow_groups *groups)
{
    int64_t rows = groups ? F8_BLOCK : y->group_rows ? y->group_rows : y->rows;
    bool is_loose = groups && y->scaling == FP8FLOW_TENSOR;
    return !is_loose && rows % 16 == 0 && x->cols % 16 == 0 && f8_aligned16(x->data, x->stride) &&
           f8_aligned16(y->data, y->stride);
}

template <fp8flow_dtype dtype, f8_access access>
static void launch(const fp8flow_context *c, const fp8flow_transpose_args *a)
{
    dim3 grid = f8_tile_grid(f8_capacity_blocks(a->y), a->y->cols);
    f8_grouping groups = f8_grouping_of(a->y, a->groups);
    if (a->x->scaling == a->y->scaling)
        transpose_copy_kernel<dtype, access>
            <<<grid, F8_SHIFT_THREADS, 0, f8_stream(c)>>>(*a->x, *a->y, groups, a->shift_histogram);
    else if (a->y->scaling == FP8FLOW_TILE128)
        transpose_shift_kernel<dtype, FP8FLOW_TILE128, access>
            <<<grid, F8_SHIFT_THREADS, 0, f8_stream(c)>>>(*a->x, *a->y, groups, a->shift_histogram);
    else
        transpose_shift_kernel<dtype, FP8FLOW_COL128, access>
            <<<grid, F8_SHIFT_THREADS, 0, f8_stream(c)>>>(*a->x, *a->y, groups, a->shift_histogram);
}

/* ROW128 to TILE128, two row blocks and 256 columns at a time. */
template <fp8flow_dtype dtype> static void launch_wide(const fp8flow_context *c, const fp8flow_transpose_args *a)
{
    f8_grouped_lines lines = { *a->x, f8_grouping_of(a->y, a->groups) };
    f8_wide_launch<dtype, 2, F8_WIDE_SLAB>(f8_stream(c), lines, *a->y, f8_capacity_blocks(a->y), a->shift_histogram);
}

/* TENSOR scales belong to groups, with or without elements. */
static fp8flow_status copy_tensor_scales(const fp8flow_context *c, const fp8flow_transpose_args *a)
{
    int64_t count = a->y->group_rows ? a->y->rows / a->y->group_rows : a->groups ? a->groups->count : 1;
    if (count == 0) return FP8FLOW_OK;
    cudaError_t error = cudaMemcpyAsync(a->y->scale, a->x->scale, (size_t)count * sizeof(float),
                                        cudaMemcpyDeviceToDevice, f8_stream(c));
    F8_REQUIRE(error == cudaSuccess, EBACKEND, "transpose: cuda: %s", cudaGetErrorString(error));
    return FP8FLOW_OK;
}

extern "C" fp8flow_status f8_cuda_transpose(fp8flow_context *c, const fp8flow_transpose_args *a)
{
    const fp8flow_tensor *x = a->x, *y = a->y;
    if (y->scaling == FP8FLOW_TENSOR) F8_TRY(copy_tensor_scales(c, a));
    if (y->rows == 0 || y->cols == 0) return FP8FLOW_OK;
    bool wide = is_wide(x, y, a->groups);
    bool is_shift_to_tiles = x->scaling == FP8FLOW_ROW128 && y->scaling == FP8FLOW_TILE128;
    bool by_tiles_of_256 =
        wide && is_shift_to_tiles && y->group_rows == 0 && f8_wide_pays(f8_capacity_blocks(y), y->cols);
    if (by_tiles_of_256 && x->dtype == FP8FLOW_E4M3) launch_wide<FP8FLOW_E4M3>(c, a);
    else if (by_tiles_of_256) launch_wide<FP8FLOW_E5M2>(c, a);
    else if (x->dtype == FP8FLOW_E4M3 && wide) launch<FP8FLOW_E4M3, F8_WIDE>(c, a);
    else if (x->dtype == FP8FLOW_E4M3) launch<FP8FLOW_E4M3, F8_BYTES>(c, a);
    else if (wide) launch<FP8FLOW_E5M2, F8_WIDE>(c, a);
    else launch<FP8FLOW_E5M2, F8_BYTES>(c, a);
    return f8_launched("transpose");
}
