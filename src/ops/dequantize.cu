/* dequantize.cu - CUDA side of dequantize. Contract: fp8flow_ops.h. CPU side: dequantize.c.
 *
 * Three kernels; the first two want lines of whole, aligned pieces.
 *   rows     row form: a lane takes eight codes of a row, 8 bytes, and writes 16 bytes of BF16 or 32 of FP32; a warp
 *            256 columns, ROW_UNITS times, all in flight at once. The group of its rows is looked up once.
 *   columns  column form: a block of threads takes 128 rows x 128 columns, a thread 16 rows of four columns; they are
 *            turned by fours in registers, and by 16s in shared memory, and leave as in `rows`.
 *   plain    everything else: 128 rows x 64 columns through shared memory (code_tile.cuh), one element per lane at a
 *            time.
 * Traffic: codes and values once, 3.01 bytes per element for BF16. Padding is zeros that no load has touched.
 */
#include "ops/code_tile.cuh"
#include "ops/codes.cuh"
#include "ops/launch.cuh"

enum {
    THREADS = 256,
    WARPS = THREADS / F8_WARP,
    CODES = 8, /* of a lane's piece */
    UNIT_COLUMNS = F8_WARP * CODES,
    ROW_UNITS = 2
};

/* By value for kernels. */
struct dequantize_job {
    fp8flow_tensor x, y;
    f8_grouping grouping;
};

/* ---- Codes to values ---- */

/* NaN keeps its sign, as on the CPU; a multiplication here would replace it. */
__device__ static float value_of(uint8_t code, fp8flow_dtype dtype, float scale)
{
    float value = f8_decode(code, dtype);
    return value != value ? value : value * scale;
}

/* Four codes, each times its scale. */
template <fp8flow_dtype in> __device__ static inline float4 values_of(uint32_t codes, float4 scale)
{
    if (f8_not_finite4<in>(codes))
        return make_float4(value_of((uint8_t)codes, in, scale.x), value_of((uint8_t)(codes >> 8), in, scale.y),
                           value_of((uint8_t)(codes >> 16), in, scale.z),
                           value_of((uint8_t)(codes >> 24), in, scale.w));
    float2 low = __half22float2(f8_decode2<in>(codes)), high = __half22float2(f8_decode2<in>(codes >> 16));
    return make_float4(low.x * scale.x, low.y * scale.y, high.x * scale.z, high.y * scale.w);
}

/* Both, NaN as in f8_bf16_encode: the conversion instruction drops signs. */
__device__ static inline uint32_t bf16_pair(float low, float high)
{
    if (low != low || high != high) return f8_bf16_encode(low) | (uint32_t)f8_bf16_encode(high) << 16;
    return f8_bf16_pair_fast(low, high);
}

/* Eight values at `to`. */
template <fp8flow_dtype out> __device__ static inline void store_values(void *to, const float4 (&v)[2])
{
    if (out == FP8FLOW_F32) {
        __stcs((float4 *)to, v[0]);
        __stcs((float4 *)to + 1, v[1]);
    } else {
        f8_store16(to, make_uint4(bf16_pair(v[0].x, v[0].y), bf16_pair(v[0].z, v[0].w), bf16_pair(v[1].x, v[1].y),
                                  bf16_pair(v[1].z, v[1].w)));
    }
}

template <fp8flow_dtype out>
__device__ static inline void *value_address(const fp8flow_tensor &y, int64_t row, int64_t col)
{
    return (char *)y.data + (row * y.stride + col) * (out == FP8FLOW_F32 ? 4 : 2);
}

/* ---- Row form ---- */

/* Row block of a row; groups start at multiples of 128. */
__device__ static inline int64_t block_of_row(const fp8flow_tensor &x, int row)
{
    if (x.group_rows == 0) return row / F8_BLOCK;
    int group_rows = (int)x.group_rows, expert = row / group_rows;
    return expert * f8_ceil_div(group_rows, F8_BLOCK) + row % group_rows / F8_BLOCK;
}

/* Scale of columns col .. col + 7 of a row in use. */
__device__ static inline float row_scale(const fp8flow_tensor &x, const f8_device_span &span, int row, int64_t col)
{
    if (x.scaling == FP8FLOW_TENSOR)
        return __ldg((const float *)x.scale + (x.group_rows > 0 ? row / (int)x.group_rows : span.group));
    int64_t line = x.scaling == FP8FLOW_TILE128 ? block_of_row(x, row) : row;
    return f8_scale_decode(__ldg((const uint8_t *)x.scale + line * f8_ceil_div(x.cols, F8_BLOCK) + col / F8_BLOCK));
}

/* Units are numbered along rows; those of a warp are WARPS apart, so that a block of threads reads one stretch. */
template <fp8flow_dtype in, fp8flow_dtype out, int UNITS>
__global__ static void __launch_bounds__(THREADS) dequantize_rows_kernel(const __grid_constant__ dequantize_job job)
{
    const fp8flow_tensor &x = job.x;
    const uint32_t strips = (uint32_t)f8_ceil_div(x.cols, UNIT_COLUMNS);
    uint32_t first = blockIdx.x * UNITS * WARPS + threadIdx.x / F8_WARP;
    int last_row = (int)min((int64_t)((first + (UNITS - 1) * WARPS) / strips), x.rows - 1);
    f8_device_span span = {};
    uint2 codes[UNITS];
    float scale[UNITS];
    uint32_t written = 0;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        uint32_t unit = first + u * WARPS;
        int64_t row = unit / strips, col = (int64_t)(unit % strips) * UNIT_COLUMNS + f8_lane() * CODES;
        codes[u] = make_uint2(0, 0);
        scale[u] = 0.0f;
        if (row > last_row) continue;
        span = f8_span_reaching(job.grouping, span, (int)row, last_row);
        if (row >= span.row + span.rows || col >= x.cols) continue;
        written |= 1u << u;
        if (row >= span.row + span.valid) continue;
        codes[u] = __ldcs((const uint2 *)((const uint8_t *)x.data + row * x.stride + col));
        scale[u] = row_scale(x, span, (int)row, col);
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        uint32_t unit = first + u * WARPS;
        float4 four = make_float4(scale[u], scale[u], scale[u], scale[u]);
        float4 values[2] = { values_of<in>(codes[u].x, four), values_of<in>(codes[u].y, four) };
        int64_t col = (int64_t)(unit % strips) * UNIT_COLUMNS + f8_lane() * CODES;
        if (written >> u & 1) store_values<out>(value_address<out>(job.y, unit / strips, col), values);
    }
}

/* ---- Column form ---- */

enum { QUADS = F8_BLOCK / 4, PARTS = F8_BLOCK / F8_STATE_ROWS };

struct column_memory {
    uint32_t codes[F8_BLOCK][QUADS]; /* four columns of a row; see quad_place */
    float row_scale[F8_BLOCK];
    __align__(16) float column_scale[F8_BLOCK];
    uint32_t written[PARTS], valid[PARTS]; /* of f8_row_states */
};

/* Where the codes of columns 4 quad .. 4 quad + 3 of a row are: eight threads that write eight parts of the rows, and
 * sixteen that read one row in pairs of quads, meet all banks. */
__device__ static inline int quad_place(int quad, int part)
{
    return quad ^ (part * 4);
}

/* 16 codes of a column from row `part` * 16 of the tile on; those that are not in use are 0. */
__device__ static inline uint4 load_column(const uint8_t *from, uint32_t valid)
{
    if (valid == 0xFFFFu) return f8_load16(from);
    uint32_t word[4] = {};
#pragma unroll
    for (int r = 0; r < F8_STATE_ROWS; r++)
        if (valid >> r & 1) word[r / 4] |= (uint32_t)from[r] << (r % 4 * 8);
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* What rows and columns of the tile are multiplied by: the one or the other is 1. */
__device__ static inline void put_scales(const fp8flow_tensor &x, int block, int64_t col, const f8_row_states &states,
                                         column_memory &memory)
{
    const uint8_t *bytes = (const uint8_t *)x.scale;
    int thread = (int)threadIdx.x, row = thread / F8_WARP * F8_STATE_ROWS + f8_lane();
    bool tensor = x.scaling == FP8FLOW_TENSOR;
    if (f8_lane() < F8_STATE_ROWS)
        memory.row_scale[row] = tensor && states.valid >> f8_lane() & 1 ? ((const float *)x.scale)[states.group] : 1.0f;
    if (thread >= F8_BLOCK) return;
    float scale = 1.0f;
    if (!tensor && x.scaling == FP8FLOW_TILE128)
        scale = f8_scale_decode(bytes[block * f8_ceil_div(x.cols, F8_BLOCK) + col / F8_BLOCK]);
    else if (!tensor && col + thread < x.cols) scale = f8_scale_decode(bytes[block * x.cols + col + thread]);
    memory.column_scale[thread] = scale;
}

/* This thread's 16 rows of four columns to shared memory. */
__device__ static inline void put_codes(const fp8flow_tensor &x, int first_row, int64_t first_col,
                                        column_memory &memory)
{
    int part = (int)threadIdx.x % PARTS, quad = (int)threadIdx.x / PARTS;
    int64_t expert = x.group_rows > 0 ? first_row / x.group_rows : 0, row = first_row - expert * x.group_rows;
    int64_t line = expert * x.cols + first_col + quad * 4;
    const uint8_t *from = (const uint8_t *)x.data + line * x.stride + row + part * F8_STATE_ROWS;
    uint4 column[4];
#pragma unroll
    for (int c = 0; c < 4; c++)
        column[c] = load_column(from + c * x.stride, first_col + quad * 4 + c < x.cols ? memory.valid[part] : 0);
    const uint4 &a = column[0], &b = column[1], &c = column[2], &d = column[3];
    const uint4 rows[4] = { f8_transpose4(a.x, b.x, c.x, d.x), f8_transpose4(a.y, b.y, c.y, d.y),
                            f8_transpose4(a.z, b.z, c.z, d.z), f8_transpose4(a.w, b.w, c.w, d.w) };
#pragma unroll
    for (int w = 0; w < 4; w++) {
        uint32_t (*to)[QUADS] = memory.codes + part * F8_STATE_ROWS + w * 4;
        int place = quad_place(quad, part);
        to[0][place] = rows[w].x, to[1][place] = rows[w].y, to[2][place] = rows[w].z, to[3][place] = rows[w].w;
    }
}

__device__ static inline float4 times(float4 v, float factor)
{
    return make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
}

/* Padding has no scales to look at. */
template <fp8flow_dtype in, fp8flow_dtype out>
__device__ static inline void write_codes(const fp8flow_tensor &y, int first_row, int64_t first_col,
                                          const column_memory &memory)
{
    const int lanes = F8_BLOCK / CODES;
    int col = (int)threadIdx.x % lanes * CODES;
    if (first_col + col >= y.cols) return;
    float4 low = *(const float4 *)&memory.column_scale[col], high = *(const float4 *)&memory.column_scale[col + 4];
#pragma unroll 2
    for (int row = (int)threadIdx.x / lanes; row < F8_BLOCK; row += THREADS / lanes) {
        int part = row / F8_STATE_ROWS, bit = row % F8_STATE_ROWS;
        if (!(memory.written[part] >> bit & 1)) continue;
        float4 v[2] = {};
        if (memory.valid[part] >> bit & 1) {
            uint2 codes = *(const uint2 *)&memory.codes[row][quad_place(col / 4, part)];
            v[0] = values_of<in>(codes.x, times(low, memory.row_scale[row]));
            v[1] = values_of<in>(codes.y, times(high, memory.row_scale[row]));
        }
        store_values<out>(value_address<out>(y, first_row + row, first_col + col), v);
    }
}

template <fp8flow_dtype in, fp8flow_dtype out>
__global__ static void __launch_bounds__(THREADS) dequantize_columns_kernel(const __grid_constant__ dequantize_job job)
{
    __shared__ column_memory memory;
    const uint32_t strips = (uint32_t)f8_ceil_div(job.x.cols, F8_BLOCK);
    int block = (int)(blockIdx.x / strips), warp = (int)threadIdx.x / F8_WARP;
    int64_t col = (int64_t)(blockIdx.x % strips) * F8_BLOCK;
    f8_row_range range = f8_rows_of_block(job.grouping, block);
    if (range.end <= range.first) return;
    f8_row_states states = f8_states_of_rows(job.grouping, range.first + warp * F8_STATE_ROWS, range.end);
    if (f8_lane() == 0) {
        memory.written[warp] = states.written;
        memory.valid[warp] = states.valid;
    }
    put_scales(job.x, block, col, states, memory);
    __syncthreads();
    put_codes(job.x, range.first, col, memory);
    __syncthreads();
    write_codes<in, out>(job.y, range.first, col, memory);
}

/* ---- Any layout and alignment ---- */

__global__ static void __launch_bounds__(F8_CODE_THREADS)
    dequantize_plain_kernel(const __grid_constant__ dequantize_job job)
{
    __shared__ f8_code_memory memory;
    __shared__ uint32_t valid[F8_CODE_THREADS / F8_WARP];
    const fp8flow_tensor &x = job.x, &y = job.y;
    f8_code_place p = f8_code_place_of(x, job.grouping, blockIdx.x);
    if (p.rows.end <= p.rows.first) return;
    f8_code_load(x, p, memory, valid);
    for (int r = 0; r < F8_STATE_ROWS; r++) {
        int group = __shfl_sync(F8_ALL_LANES, p.states.group, r), row = p.row + r;
        if (!(p.states.written >> r & 1)) continue;
        for (int col = f8_lane(); col < F8_CODE_COLS && p.col + col < y.cols; col += F8_WARP) {
            float value = 0.0f;
            if (p.states.valid >> r & 1)
                value = value_of(memory.code[row][col], x.dtype, f8_code_scale(x, p, row, col, group));
            int64_t index = (int64_t)(p.rows.first + row) * y.stride + p.col + col;
            if (y.dtype == FP8FLOW_F32) ((float *)y.data)[index] = value;
            else ((uint16_t *)y.data)[index] = f8_bf16_encode(value);
        }
    }
}

/* ---- Launch ---- */

/* Pieces of rows are 8 codes, of columns 16. */
static bool is_wide(const dequantize_job &job)
{
    int64_t piece = job.x.layout == FP8FLOW_ROWS ? 8 : 16, value_bytes = job.y.dtype == FP8FLOW_F32 ? 4 : 2;
    return job.x.cols % CODES == 0 && ((uintptr_t)job.x.data | (uintptr_t)job.x.stride) % piece == 0 &&
           f8_aligned16(job.y.data, job.y.stride * value_bytes);
}

template <fp8flow_dtype in, fp8flow_dtype out> static void launch_wide(cudaStream_t stream, const dequantize_job &job)
{
    const fp8flow_tensor &x = job.x;
    if (x.layout == FP8FLOW_ROWS) {
        int64_t units = x.rows * f8_ceil_div(x.cols, UNIT_COLUMNS);
        dequantize_rows_kernel<in, out, ROW_UNITS><<<f8_grid(units, ROW_UNITS * WARPS), THREADS, 0, stream>>>(job);
    } else {
        int64_t tiles = f8_capacity_blocks(&x) * f8_ceil_div(x.cols, F8_BLOCK);
        dequantize_columns_kernel<in, out><<<f8_grid(tiles, 1), THREADS, 0, stream>>>(job);
    }
}

template <fp8flow_dtype in> static void launch_from(cudaStream_t stream, const dequantize_job &job)
{
    if (job.y.dtype == FP8FLOW_F32) launch_wide<in, FP8FLOW_F32>(stream, job);
    else launch_wide<in, FP8FLOW_BF16>(stream, job);
}

extern "C" fp8flow_status f8_cuda_dequantize(fp8flow_context *c, const fp8flow_dequantize_args *a)
{
    int64_t tiles = f8_code_tiles(a->x);
    if (tiles == 0 || (a->groups && a->groups->count == 0)) return FP8FLOW_OK;
    dequantize_job job = { *a->x, *a->y, f8_grouping_of(a->x, a->groups) };
    if (!is_wide(job)) dequantize_plain_kernel<<<f8_grid(tiles, 1), F8_CODE_THREADS, 0, f8_stream(c)>>>(job);
    else if (a->x->dtype == FP8FLOW_E4M3) launch_from<FP8FLOW_E4M3>(f8_stream(c), job);
    else launch_from<FP8FLOW_E5M2>(f8_stream(c), job);
    return f8_launched("dequantize");
}
