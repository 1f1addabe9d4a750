/* transpose.cu - versions of transpose (E4M3, ROW128 to TILE128) and of permute with both forms, on shift.cuh.
 *
 * Goals, percent of a copy: transpose 85 (6144 rows: 70); permute 80 of the fewest bytes, each token row read once.
 * At 85 % an SM has 16 instructions of a lane for an element and must do 8 elements per clock; a patch takes about 10,
 * and 16 of the 128 bytes per clock of shared memory. What is left to try: the order of tiles, how loads overlap,
 * store hints.
 */
#include "lab.cuh"
#include "ops/shift.cuh"

struct call {
    fp8flow_tensor x, y;
    f8_grouping groups;
};

static fp8flow_tensor tensor_of(int64_t rows, int64_t cols, fp8flow_scaling scaling, fp8flow_layout layout)
{
    bool is_rows = layout == FP8FLOW_ROWS;
    int64_t scales = (scaling == FP8FLOW_ROW128 ? rows : rows / F8_BLOCK) * (cols / F8_BLOCK);
    return { rows, cols, is_rows ? cols : rows, 0, FP8FLOW_E4M3, scaling, layout, lab_alloc<uint8_t>(rows * cols),
             lab_alloc<uint8_t>(scales) };
}

/* ---- Data and checks ---- */

__global__ static void quantize_kernel(const uint16_t *from, fp8flow_tensor x)
{
    int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= x.rows * (x.cols / F8_BLOCK)) return;
    uint32_t amax = 0;
    for (int i = 0; i < F8_BLOCK; i++)
        amax = max(amax, f8_finite_magnitude(f8_bf16_decode(from[index * F8_BLOCK + i])));
    uint8_t byte = f8_scale_byte(amax, x.dtype);
    ((uint8_t *)x.scale)[index] = byte;
    for (int i = 0; i < F8_BLOCK; i++) {
        float value = f8_bf16_decode(from[index * F8_BLOCK + i]) * f8_scale_inverse(byte);
        ((uint8_t *)x.data)[index * F8_BLOCK + i] = f8_encode(value, x.dtype);
    }
}

static fp8flow_tensor make_x(int64_t rows, int64_t cols)
{
    fp8flow_tensor x = tensor_of(rows, cols, FP8FLOW_ROW128, FP8FLOW_ROWS);
    uint16_t *values = lab_normal_bf16(rows, cols, 3, 5);
    quantize_kernel<<<(unsigned)((rows * cols / F8_BLOCK + 127) / 128), 128>>>(values, x);
    LAB_TRY(cudaDeviceSynchronize());
    cudaFree(values);
    return x;
}

/* The specification, one block per tile, one thread per row, then per column. source: row of x, NULL: the same. */
__global__ static void reference_kernel(fp8flow_tensor x, fp8flow_tensor y, const int32_t *source, int top_k)
{
    __shared__ uint8_t scale[F8_BLOCK];
    __shared__ int target, token[F8_BLOCK];
    int64_t blocks = x.cols / F8_BLOCK, row = (int64_t)blockIdx.x * F8_BLOCK, col = (int64_t)blockIdx.y * F8_BLOCK;
    int thread = (int)threadIdx.x;
    const uint8_t *codes = (const uint8_t *)x.data;
    if (thread == 0) target = 1;
    __syncthreads();
    token[thread] = !source ? (int)row + thread : source[row + thread] < 0 ? -1 : source[row + thread] / top_k;
    scale[thread] = token[thread] < 0 ? 1 : ((const uint8_t *)x.scale)[token[thread] * blocks + blockIdx.y];
    uint8_t any = 0;
    for (int c = 0; token[thread] >= 0 && c < F8_BLOCK; c++) any |= codes[token[thread] * x.stride + col + c] & 0x7F;
    if (any) atomicMax(&target, (int)scale[thread]);
    __syncthreads();
    if (thread == 0) ((uint8_t *)y.scale)[blockIdx.x * blocks + blockIdx.y] = (uint8_t)target;
    for (int r = 0; r < F8_BLOCK; r++) {
        uint8_t code = token[r] < 0 ? 0 : codes[token[r] * x.stride + col + thread];
        ((uint8_t *)y.data)[(col + thread) * y.stride + row + r] = f8_shift(code, target - scale[r], x.dtype);
    }
}

__global__ static void compare_kernel(const uint8_t *a, const uint8_t *b, int64_t count, unsigned *different)
{
    int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count && a[index] != b[index]) atomicAdd(different, 1u);
}

static unsigned differences(const void *a, const void *b, int64_t count)
{
    std::vector<unsigned> zero(1, 0);
    unsigned *different = lab_upload(zero);
    compare_kernel<<<(unsigned)((count + 255) / 256), 256>>>((const uint8_t *)a, (const uint8_t *)b, count, different);
    unsigned result = lab_download(different, 1)[0];
    cudaFree(different);
    return result;
}

static void check_columns(const char *version, const fp8flow_tensor &got, const fp8flow_tensor &want)
{
    unsigned codes = differences(got.data, want.data, got.rows * got.cols);
    unsigned scales = differences(got.scale, want.scale, got.rows / F8_BLOCK * (got.cols / F8_BLOCK));
    if (codes || scales) std::printf("%s: WRONG: %u codes, %u scales differ\n", version, codes, scales);
}

static void free_tensor(fp8flow_tensor &t)
{
    cudaFree(t.data);
    cudaFree(t.scale);
}

/* ---- Versions of transpose ---- */

struct tile {
    int block, col_block;
};

/* Tile `index` in slabs of F8_SLAB columns of tiles; the columns of tiles are a multiple of that. */
__device__ static tile tile_at(int index, int row_blocks)
{
    int whole = row_blocks * F8_SLAB, in_slab = index % whole;
    return { in_slab / F8_SLAB, index / whole * F8_SLAB + in_slab % F8_SLAB };
}

__device__ static f8_column_place place_of(const fp8flow_tensor &y, tile t)
{
    int64_t blocks = y.cols / F8_BLOCK;
    return { (uint8_t *)y.data + (int64_t)t.col_block * F8_BLOCK * y.stride + (int64_t)t.block * F8_BLOCK,
             (uint8_t *)y.scale + t.block * blocks + t.col_block, y.stride, F8_BLOCK, F8_BLOCK };
}

__device__ static void load_patch(const call &c, tile t, const f8_device_span &span, f8_patch &p)
{
    int64_t blocks = c.x.cols / F8_BLOCK, first = span.row + f8_patch_row();
    const uint8_t *from = (const uint8_t *)c.x.data + first * c.x.stride + t.col_block * F8_BLOCK + f8_patch_col();
    const uint8_t *scale = (const uint8_t *)c.x.scale + first * blocks + t.col_block;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        bool is_used = f8_patch_row() + r < span.valid;
        f8_set_row(p, r, f8_read_codes<F8_WIDE>(from + r * c.x.stride, is_used ? 16 : 0));
        p.scale[r] = is_used ? __ldg(scale + r * blocks) : 1;
    }
}

/* predict 86 % (slab 8): the version of the library, one block per tile, the hardware overlaps 5 or 6 blocks.
 * predict 80 % (slab 1: rows read 128 bytes at a time; slab 64: columns written 128 bytes at a time, 2 KB apart). */
template <int slab, int per_sm>
__global__ static void __launch_bounds__(F8_SHIFT_THREADS, per_sm) tile_kernel(call c)
{
    __shared__ f8_shift_shared shared;
    tile t = { (int)(blockIdx.x / slab), (int)(blockIdx.y * slab + blockIdx.x % slab) };
    if (t.col_block * F8_BLOCK >= c.x.cols) return;
    f8_device_span span = f8_span_of_block(c.groups, t.block);
    if (span.rows == 0) return;
    f8_patch patch;
    load_patch(c, t, span, patch);
    f8_shift_tile<FP8FLOW_E4M3, FP8FLOW_TILE128, F8_WIDE>(patch, place_of(c.y, t), NULL, shared);
}

/* predict 86 %: as above, stores without the hint to leave L2 first: neighbouring lines may then leave together. */
__global__ static void __launch_bounds__(F8_SHIFT_THREADS, 5) plain_store_kernel(call c)
{
    __shared__ f8_shift_shared shared;
    tile t = { (int)(blockIdx.x / F8_SLAB), (int)(blockIdx.y * F8_SLAB + blockIdx.x % F8_SLAB) };
    f8_device_span span = f8_span_of_block(c.groups, t.block);
    f8_column_place place = place_of(c.y, t);
    f8_patch p;
    load_patch(c, t, span, p);
    uint32_t target = f8_tile_target(p, shared);
    int thread = (int)threadIdx.x, group = thread % 8;
    if (thread == 0) place.scale[0] = (uint8_t)target;
    f8_shift_rows<FP8FLOW_E4M3>(p, target);
    f8_transpose_patch(p);
    uint32_t *to = shared.columns + f8_patch_col() * F8_QUADS + (thread / 8 ^ group * 4);
#pragma unroll
    for (int i = 0; i < 16; i++) to[i * F8_QUADS] = p.code[i % 4][i / 4];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int col = i * 32 + thread / 8;
        uint4 codes = *(const uint4 *)(shared.columns + col * F8_QUADS + (group ^ col / 16) * 4);
        *(uint4 *)(place.data + col * place.stride + group * 16) = codes;
    }
}

/* predict 86 %: as above, two row blocks side by side in a block of 512 threads: 256 bytes of a column at a time. */
__global__ static void __launch_bounds__(2 * F8_SHIFT_THREADS, 2) pair_kernel(call c)
{
    __shared__ f8_shift_shared shared[2];
    tile t = { (int)(blockIdx.x / F8_SLAB * 2 + threadIdx.y), (int)(blockIdx.y * F8_SLAB + blockIdx.x % F8_SLAB) };
    if (t.col_block * F8_BLOCK >= c.x.cols) return;
    f8_device_span span = f8_span_of_block(c.groups, t.block);
    f8_patch patch;
    load_patch(c, t, span, patch);
    f8_shift_tile<FP8FLOW_E4M3, FP8FLOW_TILE128, F8_WIDE>(patch, place_of(c.y, t), NULL, shared[threadIdx.y]);
}

/* predict 84 %: blocks stay; the next tile is loaded into registers while this one is stored. Less parallel (3 per
 * SM), no gaps between blocks. */
__global__ static void __launch_bounds__(F8_SHIFT_THREADS, 3) prefetch_kernel(call c, int tiles, int row_blocks)
{
    __shared__ f8_shift_shared shared;
    int index = (int)blockIdx.x;
    if (index >= tiles) return;
    tile t = tile_at(index, row_blocks);
    f8_patch patch, next;
    load_patch(c, t, f8_span_of_block(c.groups, t.block), patch);
    for (;;) {
        index += (int)gridDim.x;
        tile following = tile_at(index, row_blocks);
        if (index < tiles) load_patch(c, following, f8_span_of_block(c.groups, following.block), next);
        f8_shift_tile<FP8FLOW_E4M3, FP8FLOW_TILE128, F8_WIDE>(patch, place_of(c.y, t), NULL, shared);
        if (index >= tiles) return;
        patch = next, t = following;
        __syncthreads();
    }
}

__device__ static void copy_async16(void *shared, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(from));
}

/* predict 87 %: blocks stay; a ring of STAGES tiles in shared memory, each thread fills and reads its own patch of
 * it (no barrier): up to 96 KB in flight per SM at any time. */
enum { STAGES = 3, RING_PER_SM = 3, RING_BYTES = STAGES * F8_BLOCK * F8_BLOCK };

__device__ static f8_device_span ring_fill(const call &c, tile t, uint4 *stage)
{
    f8_device_span span = f8_span_of_block(c.groups, t.block);
    int64_t first = span.row + f8_patch_row();
    const uint8_t *from = (const uint8_t *)c.x.data + first * c.x.stride + t.col_block * F8_BLOCK + f8_patch_col();
#pragma unroll
    for (int r = 0; r < 4; r++) {
        uint4 *to = stage + r * F8_SHIFT_THREADS + threadIdx.x;
        if (f8_patch_row() + r < span.valid) copy_async16(to, from + r * c.x.stride);
        else *to = make_uint4(0, 0, 0, 0);
    }
    return span;
}

__global__ static void __launch_bounds__(F8_SHIFT_THREADS, RING_PER_SM) ring_kernel(call c, int tiles,
                                                                                    int row_blocks)
{
    extern __shared__ uint4 ring[];
    __shared__ f8_shift_shared shared;
    const int stage_size = 4 * F8_SHIFT_THREADS;
    for (int s = 0; s < STAGES - 1; s++) {
        int index = (int)blockIdx.x + s * (int)gridDim.x;
        if (index < tiles) ring_fill(c, tile_at(index, row_blocks), ring + s * stage_size);
        asm volatile("cp.async.commit_group;");
    }
    int stage = 0;
    for (int index = (int)blockIdx.x; index < tiles; index += (int)gridDim.x, stage = (stage + 1) % STAGES) {
        int ahead = index + (STAGES - 1) * (int)gridDim.x;
        if (ahead < tiles)
            ring_fill(c, tile_at(ahead, row_blocks), ring + (stage + STAGES - 1) % STAGES * stage_size);
        asm volatile("cp.async.commit_group;");
        tile t = tile_at(index, row_blocks);
        f8_device_span span = f8_span_of_block(c.groups, t.block);
        int64_t blocks = c.x.cols / F8_BLOCK, first = span.row + f8_patch_row();
        f8_patch patch;
#pragma unroll
        for (int r = 0; r < 4; r++)
            patch.scale[r] = f8_patch_row() + r < span.valid
                                 ? __ldg((const uint8_t *)c.x.scale + (first + r) * blocks + t.col_block)
                                 : 1;
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
#pragma unroll
        for (int r = 0; r < 4; r++) f8_set_row(patch, r, ring[stage * stage_size + r * F8_SHIFT_THREADS + threadIdx.x]);
        f8_shift_tile<FP8FLOW_E4M3, FP8FLOW_TILE128, F8_WIDE>(patch, place_of(c.y, t), NULL, shared);
        __syncthreads();
    }
}

/* ---- Transpose: run ---- */

static dim3 slab_grid(const fp8flow_tensor &x, int slab)
{
    return dim3((unsigned)(x.rows / F8_BLOCK * slab), (unsigned)((x.cols / F8_BLOCK + slab - 1) / slab));
}

template <class Launch> static void run_version(const char *name, const char *shape, const call &c,
                                                const fp8flow_tensor &want, Launch launch)
{
    double bytes = 2.0 * c.x.rows * c.x.cols + c.x.rows * (c.x.cols / F8_BLOCK);
    LAB_TRY(cudaMemset(c.y.data, 0xFF, c.y.rows * c.y.cols));
    launch((cudaStream_t)0);
    LAB_TRY(cudaDeviceSynchronize());
    check_columns(name, c.y, want);
    lab_report(name, shape, bytes, lab_time(launch));
}

static void transpose_shape(int64_t rows, int64_t cols, int groups)
{
    char shape[64];
    std::snprintf(shape, sizeof shape, "%lld x %lld g %d", (long long)rows, (long long)cols, groups);
    std::vector<int32_t> offset(groups + 1), used(groups, (int32_t)(rows / groups));
    for (int g = 0; g <= groups; g++) offset[g] = (int32_t)(rows / F8_BLOCK * g / groups * F8_BLOCK);
    for (int g = 0; g < groups; g++) used[g] = offset[g + 1] - offset[g];
    call c;
    c.x = make_x(rows, cols);
    c.y = tensor_of(rows, cols, FP8FLOW_TILE128, FP8FLOW_COLUMNS);
    fp8flow_tensor want = tensor_of(rows, cols, FP8FLOW_TILE128, FP8FLOW_COLUMNS);
    c.groups = { lab_upload(offset), lab_upload(used), groups, 1, (int32_t)rows, 0 };
    int row_blocks = (int)(rows / F8_BLOCK);
    int tiles = row_blocks * (int)(cols / F8_BLOCK);
    reference_kernel<<<dim3(row_blocks, (unsigned)(cols / F8_BLOCK)), F8_BLOCK>>>(c.x, want, NULL, 1);
    const int threads = F8_SHIFT_THREADS;
#define TILE_VERSION(slab, per_sm)                                                                   \
    run_version("transpose: tile, slab " #slab ", " #per_sm " per SM", shape, c, want,               \
                [&](cudaStream_t s) { tile_kernel<slab, per_sm><<<slab_grid(c.x, slab), threads, 0, s>>>(c); })
    TILE_VERSION(8, 5);
    TILE_VERSION(8, 6);
    TILE_VERSION(1, 5);
    TILE_VERSION(4, 5);
    TILE_VERSION(16, 5);
    TILE_VERSION(64, 5);
#undef TILE_VERSION
    run_version("transpose: plain stores", shape, c, want,
                [&](cudaStream_t s) { plain_store_kernel<<<slab_grid(c.x, F8_SLAB), threads, 0, s>>>(c); });
    dim3 pairs = slab_grid(c.x, F8_SLAB);
    pairs.x /= 2;
    if (row_blocks % 2 == 0)
        run_version("transpose: two row blocks", shape, c, want,
                    [&](cudaStream_t s) { pair_kernel<<<pairs, dim3(threads, 2), 0, s>>>(c); });
    run_version("transpose: prefetch to registers", shape, c, want,
                [&](cudaStream_t s) { prefetch_kernel<<<132 * 3, threads, 0, s>>>(c, tiles, row_blocks); });
    LAB_TRY(cudaFuncSetAttribute(ring_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, RING_BYTES));
    run_version("transpose: cp.async ring", shape, c, want, [&](cudaStream_t s) {
        ring_kernel<<<132 * RING_PER_SM, threads, RING_BYTES, s>>>(c, tiles, row_blocks);
    });
    free_tensor(c.x);
    free_tensor(c.y);
    free_tensor(want);
}

/* ---- Versions of permute ---- */

struct gathering {
    fp8flow_tensor x, rows, columns;
    const int32_t *source, *end;
    uint32_t reciprocal, shift;
};

/* predict 82 % (slab 8): the version of the library. Slab 1 reads each token piece while it is in L2 at the price of
 * 128-byte row pieces (predict 76 %), slab 64 writes whole rows and reads tokens from beyond L2 (predict 70 %). */
template <int slab, int per_sm>
__global__ static void __launch_bounds__(F8_SHIFT_THREADS, per_sm) permute_kernel(gathering g)
{
    __shared__ f8_shift_shared shared;
    tile t = { (int)(blockIdx.x / slab), (int)(blockIdx.y * slab + blockIdx.x % slab) };
    int64_t blocks = g.x.cols / F8_BLOCK, row = t.block * F8_BLOCK + f8_patch_row();
    int64_t col = t.col_block * F8_BLOCK + f8_patch_col();
    int source[4], end = __ldg(g.end);
    if (t.col_block >= blocks) return;
#pragma unroll
    for (int r = 0; r < 4; r++) source[r] = __ldg(g.source + row + r);
    if (t.block * F8_BLOCK >= end) return;
    f8_patch p;
    int64_t token[4];
#pragma unroll
    for (int r = 0; r < 4; r++) token[r] = (uint64_t)(uint32_t)source[r] * g.reciprocal >> g.shift;
#pragma unroll
    for (int r = 0; r < 4; r++)
        f8_set_row(p, r,
                   f8_read_codes<F8_WIDE_REUSED>((const uint8_t *)g.x.data + token[r] * g.x.stride + col,
                                                 source[r] < 0 ? 0 : 16));
#pragma unroll
    for (int r = 0; r < 4; r++)
        p.scale[r] = source[r] < 0 ? 1 : __ldg((const uint8_t *)g.x.scale + token[r] * blocks + t.col_block);
#pragma unroll
    for (int r = 0; r < 4; r++) {
        uint4 codes = make_uint4(p.code[r][0], p.code[r][1], p.code[r][2], p.code[r][3]);
        f8_store16((uint8_t *)g.rows.data + (row + r) * g.rows.stride + col, codes);
        if (f8_patch_col() == 0) ((uint8_t *)g.rows.scale)[(row + r) * blocks + t.col_block] = (uint8_t)p.scale[r];
    }
    f8_shift_tile<FP8FLOW_E4M3, FP8FLOW_TILE128, F8_WIDE>(p, place_of(g.columns, t), NULL, shared);
}

/* Rows of k different random experts per token, tokens ascending inside an expert; returns the number of rows. */
static int64_t route(int tokens, int k, int experts, std::vector<int32_t> &source)
{
    std::vector<std::vector<int32_t>> of_expert(experts);
    for (int t = 0; t < tokens; t++) {
        std::vector<char> is_taken(experts, 0);
        for (int s = 0, tries = 0; s < k; tries++) {
            uint64_t bits = (uint64_t)(t * 1000 + tries) * 0x9E3779B97F4A7C15ull;
            int expert = (int)((bits ^ bits >> 31) * 0xBF58476D1CE4E5B9ull >> 40) % experts;
            if (is_taken[expert]) continue;
            is_taken[expert] = 1;
            of_expert[expert].push_back(t * k + s++);
        }
    }
    source.clear();
    for (auto &list : of_expert) {
        source.insert(source.end(), list.begin(), list.end());
        while (source.size() % F8_BLOCK) source.push_back(-1);
    }
    return (int64_t)source.size();
}

template <int slab, int per_sm>
static void run_permute(const char *name, const char *shape, const gathering &g, const fp8flow_tensor &want,
                        double bytes)
{
    auto launch = [&](cudaStream_t s) {
        permute_kernel<slab, per_sm><<<slab_grid(g.columns, slab), F8_SHIFT_THREADS, 0, s>>>(g);
    };
    LAB_TRY(cudaMemset(g.columns.data, 0xFF, g.columns.rows * g.columns.cols));
    launch((cudaStream_t)0);
    LAB_TRY(cudaDeviceSynchronize());
    check_columns(name, g.columns, want);
    lab_report(name, shape, bytes, lab_time(launch));
}

static void permute_shape(int tokens, int k, int experts, int64_t cols)
{
    char shape[64];
    std::snprintf(shape, sizeof shape, "T %d k %d L %d H %lld", tokens, k, experts, (long long)cols);
    std::vector<int32_t> source, end(1);
    int64_t rows = route(tokens, k, experts, source);
    end[0] = (int32_t)rows;
    gathering g;
    g.x = make_x(tokens, cols);
    g.rows = tensor_of(rows, cols, FP8FLOW_ROW128, FP8FLOW_ROWS);
    g.columns = tensor_of(rows, cols, FP8FLOW_TILE128, FP8FLOW_COLUMNS);
    fp8flow_tensor want = tensor_of(rows, cols, FP8FLOW_TILE128, FP8FLOW_COLUMNS);
    g.source = lab_upload(source), g.end = lab_upload(end);
    for (g.shift = 31; (1ll << (g.shift - 31)) < k;) g.shift++;
    g.reciprocal = (uint32_t)((1ull << g.shift) / k + 1);
    reference_kernel<<<dim3((unsigned)(rows / F8_BLOCK), (unsigned)(cols / F8_BLOCK)), F8_BLOCK>>>(g.x, want, g.source,
                                                                                                  k);
    double bytes = (1.0 + 1.0 / F8_BLOCK) * (tokens + rows) * cols + (double)rows * cols;
    run_permute<8, 5>("permute: slab 8, 5 per SM", shape, g, want, bytes);
    run_permute<8, 6>("permute: slab 8, 6 per SM", shape, g, want, bytes);
    run_permute<1, 5>("permute: slab 1", shape, g, want, bytes);
    run_permute<2, 5>("permute: slab 2", shape, g, want, bytes);
    run_permute<4, 5>("permute: slab 4", shape, g, want, bytes);
    run_permute<16, 5>("permute: slab 16", shape, g, want, bytes);
    run_permute<64, 5>("permute: slab 64", shape, g, want, bytes);
    free_tensor(g.x);
    free_tensor(g.rows);
    free_tensor(g.columns);
    free_tensor(want);
}

int main()
{
    transpose_shape(32768, 7168, 8);
    transpose_shape(49152, 2048, 64);
    transpose_shape(12288, 5120, 20);
    transpose_shape(6144, 7168, 8);
    permute_shape(4096, 8, 8, 7168);
    permute_shape(4096, 8, 64, 2048);
    permute_shape(4096, 6, 64, 2048);
    permute_shape(4096, 8, 256, 7168);
    return 0;
}
