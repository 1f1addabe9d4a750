/* gemm_any.cu - the products that no tensor core kernel takes: every format, shape, stride and alignment.
 *
 * A block of threads computes 64 x 64 of c. FPROP and DGRAD: 64 rows of c wherever experts begin and end, expert by
 * expert, so that a tile's place does not depend on offsets and the grid follows from the capacity. WGRAD: a tile of
 * one expert's gradient. Operands come in steps of 32 of k, dequantised, through shared memory; lanes run along the
 * stored lines. A thread keeps 4 x 4 sums. Products are added by FMA, ascending, and every 128 of k the block's sums
 * are added to the totals, as in gemm.c: an element's bits depend on its own operands alone.
 * Traffic: a once per 64 columns of c, b once per 64 rows, elements one at a time.
 */
#include "ops/block.cuh"
#include "ops/gemm_cuda.h"
#include "ops/launch.cuh"

enum {
    THREADS = 256,
    TILE = 64,           /* rows and columns of c per block */
    STEP = 32,           /* of k per round through shared memory */
    LINE = TILE + 4,     /* floats between lines in shared memory: aligned to 16 bytes, other banks for the next line */
    SHARE = 4,           /* rows and columns of c per thread */
    LOADS = TILE * STEP / THREADS
};

/* By value for the kernel. `groups` are those of a. */
struct any_job {
    fp8flow_tensor a, b, c;
    f8_grouping groups;
    fp8flow_product product;
    fp8flow_write write;
};

/* Rows begin .. end - 1 of one expert's c, relative to its first row; those from `valid` on are padding. */
struct any_tile {
    int group;
    int64_t a_row, b_row, c_row; /* where the expert begins */
    int64_t begin, valid, end;
    int64_t first_col, num_k;
};

enum inner_axis { INNER_IS_COLUMN, INNER_IS_ROW };

/* One expert's operand: element (outer, inner) is data[outer * outer_step + inner * inner_step]; its scale is at
 * (outer >> outer_shift) * scale_outer_step + (inner >> inner_shift) * scale_inner_step. */
struct any_operand {
    const char *data, *scale;
    int64_t outer_step, inner_step, scale_outer_step, scale_inner_step;
    int outer_shift, inner_shift;
    fp8flow_dtype dtype;
    fp8flow_scaling scaling;
};

struct any_panel {
    float at[STEP][LINE];
};

/* ---- Operands ---- */

__device__ static int64_t value_bytes(fp8flow_dtype dtype)
{
    return dtype == FP8FLOW_F32 ? 4 : dtype == FP8FLOW_BF16 ? 2 : 1;
}

/* First scale of an expert. Activations: experts begin at row blocks; weights have row blocks of their own. */
__device__ static const char *first_scale(const fp8flow_tensor &t, int group, int64_t row)
{
    const char *scale = (const char *)t.scale;
    int64_t blocks = f8_ceil_div(t.cols, F8_BLOCK);
    int64_t row_block = t.group_rows > 0 ? group * f8_ceil_div(t.group_rows, F8_BLOCK) : row / F8_BLOCK;
    switch (t.scaling) {
    case FP8FLOW_ROW128: return scale + row * blocks;
    case FP8FLOW_TILE128: return scale + row_block * blocks;
    case FP8FLOW_COL128: return scale + row_block * t.cols;
    case FP8FLOW_TENSOR: return scale + group * (int64_t)sizeof(float);
    default: return NULL;
    }
}

/* The expert's part of a tensor, which begins at `row`. */
__device__ static any_operand operand_at(const fp8flow_tensor &t, inner_axis inner, int group, int64_t row)
{
    const bool by_rows = t.layout == FP8FLOW_ROWS, weight = t.group_rows > 0;
    int64_t row_step = by_rows ? t.stride : 1, col_step = by_rows ? 1 : t.stride;
    int64_t first = weight && !by_rows ? group * t.cols * t.stride : row * row_step;
    int64_t scale_row_step = t.scaling == FP8FLOW_TENSOR ? 0
                             : t.scaling == FP8FLOW_COL128 ? t.cols
                                                           : f8_ceil_div(t.cols, F8_BLOCK);
    int64_t scale_col_step = t.scaling == FP8FLOW_TENSOR ? 0 : 1;
    int row_shift = t.scaling == FP8FLOW_ROW128 ? 0 : 7, col_shift = t.scaling == FP8FLOW_COL128 ? 0 : 7;
    any_operand x = { (const char *)t.data + first * value_bytes(t.dtype), first_scale(t, group, row),
                      row_step, col_step, scale_row_step, scale_col_step, row_shift, col_shift, t.dtype, t.scaling };
    if (inner == INNER_IS_ROW) {
        x.outer_step = col_step, x.inner_step = row_step;
        x.scale_outer_step = scale_col_step, x.scale_inner_step = scale_row_step;
        x.outer_shift = col_shift, x.inner_shift = row_shift;
    }
    return x;
}

__device__ static float value_at(const any_operand &x, int64_t outer, int64_t inner)
{
    int64_t at = outer * x.outer_step + inner * x.inner_step;
    if (x.dtype == FP8FLOW_F32) return __ldg((const float *)x.data + at);
    if (x.dtype == FP8FLOW_BF16) return f8_bf16_decode(__ldg((const uint16_t *)x.data + at));
    int64_t scale = (outer >> x.outer_shift) * x.scale_outer_step + (inner >> x.inner_shift) * x.scale_inner_step;
    float code = f8_decode(__ldg((const uint8_t *)x.data + at), x.dtype);
    if (x.scaling == FP8FLOW_TENSOR) return code * __ldg((const float *)x.scale);
    return code * f8_scale_decode(__ldg((const uint8_t *)x.scale + scale));
}

/* The operand's outer .. outer + 63 at inner .. inner + 31; 0 from `end` and `num_k` on, where nothing is read. */
__device__ static void bring(any_panel &panel, const any_operand &x, int64_t outer, int64_t end, int64_t inner,
                             int64_t num_k)
{
    const bool along_inner = x.inner_step == 1;
    const int thread = (int)threadIdx.x;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        int o = along_inner ? thread / STEP + i * (THREADS / STEP) : thread % TILE;
        int k = along_inner ? thread % STEP : thread / TILE + i * (THREADS / TILE);
        bool inside = outer + o < end && inner + k < num_k;
        panel.at[k][o] = inside ? value_at(x, outer + o, inner + k) : 0.0f;
    }
}

/* ---- Products ---- */

struct any_sums {
    float at[SHARE][SHARE];
};

__device__ static float4 four_at(const float *from)
{
    return *(const float4 *)from;
}

/* Adds one step of k to the block's sums. */
__device__ static void multiply_step(any_sums &sums, const any_panel &a, const any_panel &b, int row, int col)
{
#pragma unroll 8
    for (int k = 0; k < STEP; k++) {
        float4 p = four_at(&a.at[k][row]), q = four_at(&b.at[k][col]);
        const float left[SHARE] = { p.x, p.y, p.z, p.w }, right[SHARE] = { q.x, q.y, q.z, q.w };
#pragma unroll
        for (int i = 0; i < SHARE; i++)
#pragma unroll
            for (int j = 0; j < SHARE; j++) sums.at[i][j] = fmaf(left[i], right[j], sums.at[i][j]);
    }
}

/* Adds the sums of a block of 128 to the totals and starts anew. */
__device__ static void finish_block(any_sums &totals, any_sums &sums)
{
#pragma unroll
    for (int i = 0; i < SHARE; i++)
#pragma unroll
        for (int j = 0; j < SHARE; j++) totals.at[i][j] += sums.at[i][j], sums.at[i][j] = 0.0f;
}

__device__ static void store(const any_job &job, int64_t row, int64_t col, float value)
{
    int64_t at = row * job.c.stride + col;
    const bool adds = job.write == FP8FLOW_ACCUMULATE;
    if (job.c.dtype == FP8FLOW_BF16) {
        uint16_t *c = (uint16_t *)job.c.data + at;
        *c = f8_bf16_encode(adds ? f8_bf16_decode(*c) + value : value);
    } else {
        float *c = (float *)job.c.data + at;
        *c = adds ? *c + value : value;
    }
}

/* Padding has sums of nothing: zeros, which only OVERWRITE writes. */
__device__ static void store_tile(const any_job &job, const any_tile &tile, const any_sums &totals, int row, int col)
{
    int64_t end = job.write == FP8FLOW_OVERWRITE ? tile.end : tile.valid;
#pragma unroll
    for (int i = 0; i < SHARE; i++)
#pragma unroll
        for (int j = 0; j < SHARE; j++) {
            int64_t at_row = tile.begin + row + i, at_col = tile.first_col + col + j;
            if (at_row < end && at_col < job.c.cols) store(job, tile.c_row + at_row, at_col, totals.at[i][j]);
        }
}

/* Called by the whole block. */
__device__ static void multiply_tile(const any_job &job, const any_tile &tile)
{
    __shared__ __align__(16) any_panel left, right;
    if (tile.num_k == 0 && job.write == FP8FLOW_ACCUMULATE) return; /* adding 0 would change -0 */
    inner_axis a_inner = job.product == FP8FLOW_WGRAD ? INNER_IS_ROW : INNER_IS_COLUMN;
    inner_axis b_inner = job.product == FP8FLOW_FPROP ? INNER_IS_COLUMN : INNER_IS_ROW;
    any_operand a = operand_at(job.a, a_inner, tile.group, tile.a_row);
    any_operand b = operand_at(job.b, b_inner, tile.group, tile.b_row);
    int row = (int)threadIdx.x / (TILE / SHARE) * SHARE, col = (int)threadIdx.x % (TILE / SHARE) * SHARE;
    int64_t num_k = tile.begin < tile.valid ? tile.num_k : 0;
    any_sums totals = {}, sums = {};
    for (int64_t k = 0; k < num_k; k += STEP) {
        __syncthreads();
        bring(left, a, tile.begin, tile.valid, k, num_k);
        bring(right, b, tile.first_col, job.c.cols, k, num_k);
        __syncthreads();
        multiply_step(sums, left, right, row, col);
        if ((k + STEP) % F8_BLOCK == 0) finish_block(totals, sums);
    }
    finish_block(totals, sums);
    store_tile(job, tile, totals, row, col);
}

/* ---- Tiles of c ---- */

/* One expert's rows among first .. first + 63 of c, if it has some there. */
__device__ static void multiply_rows(const any_job &job, int group, int64_t first, int64_t first_col)
{
    const f8_grouping &g = job.groups;
    int64_t offset = g.is_grouped ? __ldg(g.offset + group) : 0;
    int64_t slots = (g.is_grouped ? min(__ldg(g.offset + group + 1), g.total_rows) : g.total_rows) - offset;
    int64_t rows = g.is_grouped ? __ldg(g.rows + group) : slots;
    int64_t begin = max((int64_t)0, first - offset), end = min(slots, first + TILE - offset);
    if (begin >= end) return;
    any_tile tile = { group, offset, group * job.b.group_rows, offset,      begin, min(rows, end),
                      end,   first_col, job.a.cols };
    multiply_tile(job, tile);
}

/* FPROP, DGRAD: a block of threads per 64 x 64 of c. */
__global__ static void __launch_bounds__(THREADS) gemm_any_rows_kernel(const __grid_constant__ any_job job)
{
    int64_t tiles_along = f8_ceil_div(job.c.cols, TILE);
    int64_t first = blockIdx.x / tiles_along * TILE, first_col = blockIdx.x % tiles_along * TILE;
    const f8_grouping &g = job.groups;
    if (!g.is_grouped) {
        multiply_rows(job, 0, first, first_col);
        return;
    }
    int group = max(0, f8_find_group(g.offset, g.count, (int)first));
    for (; group < g.count && __ldg(g.offset + group) < first + TILE; group++)
        multiply_rows(job, group, first, first_col);
}

/* WGRAD: a block of threads per 64 x 64 of an expert's gradient. */
__global__ static void __launch_bounds__(THREADS) gemm_any_wgrad_kernel(const __grid_constant__ any_job job)
{
    const f8_grouping &g = job.groups;
    int64_t tiles_along = f8_ceil_div(job.c.cols, TILE), tiles_down = f8_ceil_div(job.a.cols, TILE);
    int64_t tile_row = blockIdx.x / tiles_along % tiles_down, tile_col = blockIdx.x % tiles_along;
    int group = (int)(blockIdx.x / tiles_along / tiles_down);
    int64_t offset = g.is_grouped ? __ldg(g.offset + group) : 0, begin = tile_row * TILE;
    int64_t rows = g.is_grouped ? __ldg(g.rows + group) : g.total_rows, end = min(job.a.cols, begin + TILE);
    any_tile tile = { group, offset, offset, group * job.a.cols, begin, end, end, tile_col * TILE, rows };
    multiply_tile(job, tile);
}

extern "C" fp8flow_status f8_cuda_gemm_any(fp8flow_context *c, const fp8flow_gemm_args *a)
{
    any_job job = { *a->a, *a->b, *a->c, f8_grouping_of(a->a, a->groups), a->product, a->write };
    int64_t experts = a->groups ? a->groups->count : 1, along = f8_ceil_div(a->c->cols, TILE);
    if (a->product == FP8FLOW_WGRAD) {
        int64_t tiles = experts * f8_ceil_div(a->a->cols, TILE) * along;
        if (tiles == 0) return FP8FLOW_OK;
        gemm_any_wgrad_kernel<<<f8_grid(tiles, 1), THREADS, 0, f8_stream(c)>>>(job);
    } else {
        int64_t tiles = f8_ceil_div(a->c->rows, TILE) * along;
        if (tiles == 0 || experts == 0) return FP8FLOW_OK;
        gemm_any_rows_kernel<<<f8_grid(tiles, 1), THREADS, 0, f8_stream(c)>>>(job);
    }
    return f8_launched("gemm");
}
