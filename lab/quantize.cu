/* quantize.cu - versions of quantize: BF16 to E4M3, ROW128 row form alone, and TILE128 in both forms from one read; and
 * of dequantize, from both forms to BF16.
 *
 * All are checked against kernels that use one thread per block. "library" is what src/ops/quantize.cu does now.
 */
#include "lab.cuh"
#include "ops/dequantize.cu"
#include "ops/piece.cuh"

static const fp8flow_dtype IN = FP8FLOW_BF16, OUT = FP8FLOW_E4M3;
enum { TILE = 128 };

/* A weight or an activation and what becomes of it. */
struct data {
    int64_t rows, cols, group_rows;
    uint16_t *x;
    uint8_t *codes, *columns, *scale;
};

/* ---- The straightforward kernels ---- */

__device__ static uint32_t magnitude(const data &d, int64_t index)
{
    return f8_finite_magnitude(f8_bf16_decode(d.x[index]));
}

/* One thread per block of height x 128. */
template <int height> __global__ static void plain_kernel(data d)
{
    int64_t strips = d.cols / TILE, block = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= d.rows / height * strips) return;
    int64_t row = block / strips * height, col = block % strips * TILE;
    uint32_t amax = 0;
    for (int r = 0; r < height; r++)
        for (int c = 0; c < TILE; c++) amax = max(amax, magnitude(d, (row + r) * d.cols + col + c));
    uint8_t byte = f8_scale_byte(amax, OUT);
    d.scale[block] = byte;
    for (int r = 0; r < height; r++)
        for (int c = 0; c < TILE; c++) {
            int64_t at = (row + r) * d.cols + col + c, expert = (row + r) / d.group_rows;
            d.codes[at] = f8_encode(f8_bf16_decode(d.x[at]) * f8_scale_inverse(byte), OUT);
            int64_t across = (expert * d.cols + col + c) * d.group_rows + (row + r) % d.group_rows;
            if (height > 1) d.columns[across] = d.codes[at];
        }
}

/* ---- Row form alone ---- */

/* A half-warp per block and `pieces` blocks per half-warp, in one row; two or more 16-byte loads in flight.
 * predict 2 pieces 88 %, 4 pieces 92 %, 8 pieces 92 %: 4 pieces are 96 KB in flight per SM at 40 registers. */
template <int pieces> __global__ static void __launch_bounds__(THREADS) half_warp_kernel(data d)
{
    uint32_t strips = (uint32_t)f8_ceil_div(d.cols, pieces * 256), warp = blockIdx.x * 8 + threadIdx.x / 32;
    int64_t row = warp / strips, first = (int64_t)(warp % strips) * pieces * 256 + f8_lane() * F8_PIECE;
    if (row >= d.rows) return;
    int left = (int)(d.cols - first);
    const uint16_t *from = d.x + row * d.cols + first;
    uint8_t *to = d.codes + row * d.cols + first, *scale = d.scale + (row * d.cols + first) / TILE;
    f8_piece<IN> piece[pieces];
    uint32_t ignored = 0;
#pragma unroll
    for (int i = 0; i < pieces; i++) piece[i] = f8_piece_load<IN, true>((const char *)(from + i * 256), left - i * 256);
#pragma unroll
    for (int i = 0; i < pieces; i++) {
        uint32_t largest = f8_warp_max<16>(f8_piece_largest(f8_piece_magnitudes(piece[i], ignored)));
        uint8_t byte = (uint8_t)min(max(f8_scale_exponent(largest, OUT), 1), 254);
        if (f8_lane() % 16 == 0 && left > i * 256) scale[i * 2] = byte;
        f8_piece_store<true>(to + i * 256, left - i * 256, f8_piece_encode<IN, OUT>(piece[i], f8_scale_inverse(byte)));
    }
}

/* Eight lanes per block, `units` blocks per eight lanes; each lane has 32 bytes in one piece and stores 16.
 * predict 2 units 90 %, 4 units 91 %: half the shuffles and stores of the half-warp version, but each load touches
 * half of every 32-byte sector and relies on L1 for the other half. */
template <int units> __global__ static void __launch_bounds__(THREADS) eight_lanes_kernel(data d)
{
    int64_t blocks = d.rows * (d.cols / TILE), first = (int64_t)blockIdx.x * 32 * units + threadIdx.x / 8;
    uint4 raw[units][2];
#pragma unroll
    for (int u = 0; u < units; u++) {
        const uint16_t *from = d.x + (first + u * 32) * TILE + threadIdx.x % 8 * 16;
        bool inside = first + u * 32 < blocks;
        raw[u][0] = inside ? __ldg((const uint4 *)from) : make_uint4(0, 0, 0, 0);
        raw[u][1] = inside ? __ldg((const uint4 *)from + 1) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int u = 0; u < units; u++) {
        uint32_t ignored = 0;
        f8_piece<IN> a = { { raw[u][0].x, raw[u][0].y, raw[u][0].z, raw[u][0].w } };
        f8_piece<IN> b = { { raw[u][1].x, raw[u][1].y, raw[u][1].z, raw[u][1].w } };
        f8_piece<IN> m = f8_piece_larger(f8_piece_magnitudes(a, ignored), f8_piece_magnitudes(b, ignored));
        uint8_t byte = (uint8_t)min(max(f8_scale_exponent(f8_warp_max<8>(f8_piece_largest(m)), OUT), 1), 254);
        uint2 low = f8_piece_encode<IN, OUT>(a, f8_scale_inverse(byte));
        uint2 high = f8_piece_encode<IN, OUT>(b, f8_scale_inverse(byte));
        int64_t block = first + u * 32;
        if (block >= blocks) continue;
        if (threadIdx.x % 8 == 0) d.scale[block] = byte;
        f8_store16(d.codes + block * TILE + threadIdx.x % 8 * 16, make_uint4(low.x, low.y, high.x, high.y));
    }
}

/* ---- Tiles, both forms ---- */

enum { SECOND_ENCODE, BYTE_PERMUTE };

/* The 16 bytes behind shared-memory address `to`, past L1 and without registers. */
__device__ static void copy_async16(void *to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
}

__device__ static void copy_async_wait()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

struct tile_memory {
    uint4 codes[TILE][8];
    uint32_t warp_max[8];
    uint4 next[8][THREADS]; /* the pieces of the tile after this one: each thread reads what it has asked for */
};

__device__ static const uint16_t *piece_address(const data &d, uint32_t tile)
{
    uint32_t strips = (uint32_t)(d.cols / TILE);
    int64_t row = (int64_t)(tile / strips) * TILE + threadIdx.x / 16 * 8;
    return d.x + row * d.cols + (int64_t)(tile % strips) * TILE + threadIdx.x % 16 * F8_PIECE;
}

/* Rows a, b, c, d of four columns to columns 0..3 of four rows. */
__device__ static uint4 permute4(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    uint32_t ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
    uint32_t ab2 = __byte_perm(a, b, 0x7362), cd2 = __byte_perm(c, d, 0x7362);
    return make_uint4(__byte_perm(ab, cd, 0x5410), __byte_perm(ab, cd, 0x7632), __byte_perm(ab2, cd2, 0x5410),
                      __byte_perm(ab2, cd2, 0x7632));
}

template <int how>
__device__ static void put_columns(tile_memory &memory, const f8_piece<IN> (&piece)[8], const uint2 (&codes)[8],
                                   float factor)
{
    int unit = threadIdx.x / 16, turn = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint2 two;
        if (how == SECOND_ENCODE) {
            float v[8];
#pragma unroll
            for (int r = 0; r < 8; r++) v[r] = f8_piece_value(piece[r], i) * factor;
            two = make_uint2(f8_encode4<OUT>(v[0], v[1], v[2], v[3]), f8_encode4<OUT>(v[4], v[5], v[6], v[7]));
        } else {
            uint32_t w[8];
#pragma unroll
            for (int r = 0; r < 8; r++) w[r] = i < 4 ? codes[r].x : codes[r].y;
            uint4 top = permute4(w[0], w[1], w[2], w[3]), bottom = permute4(w[4], w[5], w[6], w[7]);
            two = i % 4 == 0 ? make_uint2(top.x, bottom.x) : i % 4 == 1 ? make_uint2(top.y, bottom.y)
                : i % 4 == 2 ? make_uint2(top.z, bottom.z) : make_uint2(top.w, bottom.w);
        }
        ((uint2 *)memory.codes[turn * F8_PIECE + i])[unit ^ turn] = two;
    }
}

__device__ static void write_columns(const data &d, uint32_t tile, const tile_memory &memory)
{
    uint32_t strips = (uint32_t)(d.cols / TILE);
    int64_t row = (int64_t)(tile / strips) * TILE, expert = row / d.group_rows, col = (int64_t)(tile % strips) * TILE;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int column = (i * THREADS + threadIdx.x) / 8, part = threadIdx.x % 8, turn = column / 8;
        uint4 codes = memory.codes[column][part ^ (turn / 2)];
        if (turn % 2) codes = make_uint4(codes.z, codes.w, codes.x, codes.y);
        f8_store16(d.columns + (expert * d.cols + col + column) * d.group_rows + row % d.group_rows + part * 16, codes);
    }
}

/* A tile per block of threads and turn, eight rows of a piece per thread. One block of threads per tile where
 * `prefetch` is 0, else as many as fit, which copy the next tile to shared memory while they work on one.
 * predict 3 blocks, second encode 83 % (as the library): loads of one block overlap only with the work of two others;
 * predict 4 blocks, byte permute 86 %: more blocks and a fifth fewer instructions;
 * predict 3 blocks, prefetch 90 %: 32 KB per block are in flight all the time. */
template <int how, int prefetch, int blocks>
__global__ static void __launch_bounds__(THREADS, blocks) tile_kernel(data d, uint32_t tiles)
{
    extern __shared__ __align__(16) char shared[];
    tile_memory &memory = *(tile_memory *)shared;
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        f8_piece<IN> piece[8], m = {};
        uint2 codes[8];
        uint32_t ignored = 0, next = tile + gridDim.x;
        if (prefetch && tile != blockIdx.x) copy_async_wait();
#pragma unroll
        for (int r = 0; r < 8; r++) {
            bool here = prefetch && tile != blockIdx.x;
            uint4 v = here ? memory.next[r][threadIdx.x] : f8_load16(piece_address(d, tile) + r * d.cols);
            piece[r] = { { v.x, v.y, v.z, v.w } };
        }
#pragma unroll
        for (int r = 0; r < 8; r++)
            if (prefetch && next < tiles)
                copy_async16(&memory.next[r][threadIdx.x], piece_address(d, next) + r * d.cols);
#pragma unroll
        for (int r = 0; r < 8; r++) m = f8_piece_larger(m, f8_piece_magnitudes(piece[r], ignored));
        uint32_t largest = __reduce_max_sync(F8_ALL_LANES, f8_piece_largest(m));
        if (f8_lane() == 0) memory.warp_max[threadIdx.x / 32] = largest;
        __syncthreads();
        for (int w = 0; w < 8; w++) largest = max(largest, memory.warp_max[w]);
        uint8_t byte = f8_scale_byte(largest, OUT);
        float factor = f8_scale_inverse(byte);
        if (threadIdx.x == 0) d.scale[tile] = byte;
        int64_t at = piece_address(d, tile) - d.x;
#pragma unroll
        for (int r = 0; r < 8; r++) {
            codes[r] = f8_piece_encode<IN, OUT>(piece[r], factor);
            __stcs((uint2 *)(d.codes + at + r * d.cols), codes[r]);
        }
        put_columns<how>(memory, piece, codes, factor);
        __syncthreads();
        write_columns(d, tile, memory);
    }
}

/* ---- Running ---- */

/* The library's operator without its entry checks, on a stream of the caller's. */
static void library(const data &d, fp8flow_scaling scaling, cudaStream_t stream)
{
    fp8flow_tensor x = { d.rows, d.cols, d.cols, 0, IN, FP8FLOW_UNSCALED, FP8FLOW_ROWS, d.x, NULL };
    fp8flow_tensor rows = { d.rows, d.cols, d.cols, 0, OUT, scaling, FP8FLOW_ROWS, d.codes, d.scale };
    if (scaling == FP8FLOW_TILE128) rows.group_rows = d.group_rows;
    fp8flow_tensor columns = rows;
    columns.layout = FP8FLOW_COLUMNS;
    columns.stride = d.group_rows;
    columns.data = d.columns;
    fp8flow_quantize_args args = { &x, NULL, &rows, scaling == FP8FLOW_TILE128 ? &columns : NULL, NULL };
    fp8flow_context context = {};
    context.stream = stream;
    if (f8_cuda_quantize(&context, &args) != FP8FLOW_OK) std::printf("%s\n", fp8flow_last_error());
}

__global__ static void compare_kernel(const uint8_t *a, const uint8_t *b, int64_t count, unsigned long long *differ)
{
    uint32_t found = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        found += a[i] != b[i];
    if (found) atomicAdd(differ, found);
}

static void compare(const char *version, const uint8_t *a, const uint8_t *b, int64_t count)
{
    static unsigned long long *differ = lab_alloc<unsigned long long>(1);
    LAB_TRY(cudaMemset(differ, 0, sizeof *differ));
    compare_kernel<<<1056, 256>>>(a, b, count, differ);
    unsigned long long found = lab_download(differ, 1)[0];
    if (found) std::printf("%s: %llu of %lld bytes differ\n", version, found, (long long)count);
}

/* Poison, run, compare with `want`, time. */
template <class Launch> static void try_version(const char *version, const data &d, const data &want, Launch launch)
{
    char shape[64];
    int64_t count = d.rows * d.cols;
    bool both = d.columns != NULL;
    int64_t scales = both ? count / TILE / TILE : count / TILE;
    LAB_TRY(cudaMemset(d.codes, 0xFF, count));
    LAB_TRY(cudaMemset(d.scale, 0xFF, scales));
    if (both) LAB_TRY(cudaMemset(d.columns, 0xFF, count));
    launch((cudaStream_t)0);
    LAB_TRY(cudaDeviceSynchronize());
    compare(version, d.codes, want.codes, count);
    compare(version, d.scale, want.scale, scales);
    if (both) compare(version, d.columns, want.columns, count);
    std::snprintf(shape, sizeof shape, "[%lld, %lld]%s", (long long)d.rows, (long long)d.cols, both ? " tile" : "");
    lab_report(version, shape, count * (both ? 4.0 : 3.0) + scales, lab_time(launch));
}

static void try_rows(int64_t rows, int64_t cols)
{
    int64_t count = rows * cols;
    data d = { rows, cols, rows, lab_normal_bf16(rows, cols, 8, 1), lab_alloc<uint8_t>(count), NULL,
               lab_alloc<uint8_t>(count / TILE) };
    data want = d;
    want.codes = lab_alloc<uint8_t>(count);
    want.scale = lab_alloc<uint8_t>(count / TILE);
    plain_kernel<1><<<f8_grid(count / TILE, 256), 256>>>(want);
    try_version("rows: library", d, want, [&](cudaStream_t s) { library(d, FP8FLOW_ROW128, s); });
    try_version("rows: half-warps, 2 pieces", d, want, [&](cudaStream_t s) {
        half_warp_kernel<2><<<f8_grid(rows * f8_ceil_div(cols, 512), 8), THREADS, 0, s>>>(d);
    });
    try_version("rows: half-warps, 4 pieces", d, want, [&](cudaStream_t s) {
        half_warp_kernel<4><<<f8_grid(rows * f8_ceil_div(cols, 1024), 8), THREADS, 0, s>>>(d);
    });
    try_version("rows: half-warps, 8 pieces", d, want, [&](cudaStream_t s) {
        half_warp_kernel<8><<<f8_grid(rows * f8_ceil_div(cols, 2048), 8), THREADS, 0, s>>>(d);
    });
    try_version("rows: eight lanes, 2 units", d, want, [&](cudaStream_t s) {
        eight_lanes_kernel<2><<<f8_grid(count / TILE, 64), THREADS, 0, s>>>(d);
    });
    try_version("rows: eight lanes, 4 units", d, want, [&](cudaStream_t s) {
        eight_lanes_kernel<4><<<f8_grid(count / TILE, 128), THREADS, 0, s>>>(d);
    });
    for (void *memory : { (void *)d.x, (void *)d.codes, (void *)d.scale, (void *)want.codes, (void *)want.scale })
        cudaFree(memory);
}

template <int how, int prefetch, int blocks> static void try_tile(const char *version, const data &d, const data &want)
{
    uint32_t tiles = (uint32_t)(d.rows / TILE * (d.cols / TILE)), grid = prefetch ? 132 * blocks : tiles;
    size_t shared = prefetch ? sizeof(tile_memory) : offsetof(tile_memory, next);
    auto kernel = tile_kernel<how, prefetch, blocks>;
    LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    try_version(version, d, want, [&](cudaStream_t s) { kernel<<<grid, THREADS, shared, s>>>(d, tiles); });
}

static void try_tiles(int64_t rows, int64_t cols, int64_t group_rows)
{
    int64_t count = rows * cols;
    data d = { rows, cols, group_rows, lab_normal_bf16(rows, cols, 8, 2), lab_alloc<uint8_t>(count),
               lab_alloc<uint8_t>(count), lab_alloc<uint8_t>(count / TILE / TILE) };
    data want = d;
    want.codes = lab_alloc<uint8_t>(count);
    want.columns = lab_alloc<uint8_t>(count);
    want.scale = lab_alloc<uint8_t>(count / TILE / TILE);
    plain_kernel<TILE><<<f8_grid(count / TILE / TILE, 32), 32>>>(want);
    try_version("tiles: library", d, want, [&](cudaStream_t s) { library(d, FP8FLOW_TILE128, s); });
    try_tile<SECOND_ENCODE, 0, 3>("tiles: 3 blocks, second encode", d, want);
    try_tile<BYTE_PERMUTE, 0, 3>("tiles: 3 blocks, byte permute", d, want);
    try_tile<BYTE_PERMUTE, 0, 4>("tiles: 4 blocks, byte permute", d, want);
    try_tile<BYTE_PERMUTE, 1, 3>("tiles: 3 blocks, prefetch, byte permute", d, want);
    try_tile<SECOND_ENCODE, 1, 3>("tiles: 3 blocks, prefetch, second encode", d, want);
}

/* ---- dequantize ---- */

/* 16 codes of a lane. predict 75 %: a load of 16 bytes instead of two of 8, but each of the two stores covers half of
 * every sector that it touches. */
__global__ static void __launch_bounds__(THREADS) sixteen_codes_kernel(const __grid_constant__ dequantize_job job)
{
    const fp8flow_tensor &x = job.x;
    uint32_t strips = (uint32_t)(x.cols / 16), index = blockIdx.x * THREADS + threadIdx.x;
    int64_t row = index / strips, col = (int64_t)(index % strips) * 16;
    if (row >= x.rows) return;
    uint4 codes = f8_load16((const uint8_t *)x.data + row * x.stride + col);
    float scale = row_scale(x, { 0, 0, 0, 0 }, (int)row, col);
    float4 four = make_float4(scale, scale, scale, scale);
    float4 low[2] = { values_of<OUT>(codes.x, four), values_of<OUT>(codes.y, four) };
    float4 high[2] = { values_of<OUT>(codes.z, four), values_of<OUT>(codes.w, four) };
    store_values<IN>(value_address<IN>(job.y, row, col), low);
    store_values<IN>(value_address<IN>(job.y, row, col + 8), high);
}

template <int UNITS> static void launch_units(cudaStream_t stream, const dequantize_job &job)
{
    int64_t units = job.x.rows * f8_ceil_div(job.x.cols, UNIT_COLUMNS);
    dequantize_rows_kernel<OUT, IN, UNITS><<<f8_grid(units, UNITS * WARPS), THREADS, 0, stream>>>(job);
}

template <class Launch>
static void try_back(const char *version, const dequantize_job &job, const uint8_t *want, Launch launch)
{
    char shape[64];
    int64_t count = job.x.rows * job.x.cols;
    LAB_TRY(cudaMemset(job.y.data, 0xFF, count * 2));
    launch((cudaStream_t)0);
    LAB_TRY(cudaDeviceSynchronize());
    compare(version, (const uint8_t *)job.y.data, want, count * 2);
    std::snprintf(shape, sizeof shape, "[%lld, %lld]", (long long)job.x.rows, (long long)job.x.cols);
    lab_report(version, shape, count * (3.0 + (job.x.scaling == FP8FLOW_TILE128 ? 0.0 : 1.0 / TILE)),
               lab_time(launch));
}

/* `x` holds codes and scales that quantize made, whatever they mean to this tensor: NaN would be rare. */
static dequantize_job make_job(int64_t rows, int64_t cols, fp8flow_scaling scaling, fp8flow_layout layout)
{
    int64_t count = rows * cols;
    fp8flow_tensor x = { rows, cols, layout == FP8FLOW_ROWS ? cols : rows, 0, OUT, scaling, layout, NULL, NULL };
    fp8flow_tensor y = { rows, cols, cols, 0, IN, FP8FLOW_UNSCALED, FP8FLOW_ROWS, NULL, NULL };
    data d = { rows, cols, rows, lab_normal_bf16(rows, cols, 8, 3), lab_alloc<uint8_t>(count), NULL,
               lab_alloc<uint8_t>(count / TILE) };
    library(d, FP8FLOW_ROW128, 0);
    LAB_TRY(cudaDeviceSynchronize());
    x.data = d.codes;
    x.scale = d.scale;
    y.data = d.x;
    return { x, y, f8_grouping_of(&x, NULL) };
}

static void try_dequantize(int64_t rows, int64_t cols, fp8flow_scaling scaling, fp8flow_layout layout)
{
    dequantize_job job = make_job(rows, cols, scaling, layout), plain = job;
    plain.y.data = lab_alloc<uint16_t>(rows * cols);
    const uint8_t *want = (const uint8_t *)plain.y.data;
    dequantize_plain_kernel<<<f8_grid(f8_code_tiles(&job.x), 1), F8_CODE_THREADS>>>(plain);
    if (layout == FP8FLOW_ROWS) {
        /* predict 90 %: 16 KB of codes in flight per SM are a third of the traffic */
        try_back("dequantize: 1 unit", job, want, [&](cudaStream_t s) { launch_units<1>(s, job); });
        /* predict 93 %: half the divisions and half the blocks of threads */
        try_back("dequantize: 2 units (library)", job, want, [&](cudaStream_t s) { launch_units<2>(s, job); });
        /* predict 92 %: as before, fewer threads at a time */
        try_back("dequantize: 4 units", job, want, [&](cudaStream_t s) { launch_units<4>(s, job); });
        try_back("dequantize: 16 codes", job, want, [&](cudaStream_t s) {
            sixteen_codes_kernel<<<f8_grid(rows * cols / 16, THREADS), THREADS, 0, s>>>(job);
        });
    } else {
        /* predict 85 %: 64 bytes in flight per thread, 6 blocks of threads per SM, two barriers */
        try_back(scaling == FP8FLOW_COL128 ? "dequantize: columns, col128" : "dequantize: columns, tile128", job, want,
                 [&](cudaStream_t s) { launch_wide<OUT, IN>(s, job); });
    }
    for (void *memory : { job.x.data, job.x.scale, job.y.data, plain.y.data }) cudaFree(memory);
}

int main()
{
    lab_copy_rate();
    try_rows(4096, 7168);
    try_rows(32768, 7168);
    try_rows(32768, 2048);
    try_tiles(8 * 4096, 7168, 4096);
    try_dequantize(32768, 2048, FP8FLOW_ROW128, FP8FLOW_ROWS);
    try_dequantize(32768, 7168, FP8FLOW_ROW128, FP8FLOW_ROWS);
    try_dequantize(32768, 7168, FP8FLOW_TILE128, FP8FLOW_COLUMNS);
    try_dequantize(32768, 7168, FP8FLOW_COL128, FP8FLOW_COLUMNS);
    return 0;
}
