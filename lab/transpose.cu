/* transpose.cu - versions of transpose (E4M3, ROW128 to TILE128) and of permute with both forms.
 *
 * Goals, percent of a copy: transpose 85 (6144 rows: 70); permute 80 of the fewest bytes, each token row read once,
 * with the plan's kernel (about 10 us), which is not timed here. Measured with a tile of 128 x 128 per block: transpose
 * 82, permute 70; with blocks that stay on their SM and walk: not better. pattern.cu says why: without arithmetic the
 * same tiles reach 87 and 77, 128 x 256 reach 87 and 82, 256 x 256 reach 92 and 90.
 */
#include "lab.cuh"
#include "ops/wide_lines.cuh"

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

/* One block per row of the row form. */
__global__ static void check_rows_kernel(f8_gathered_lines lines, int top_k, unsigned *different)
{
    int64_t row = blockIdx.x, blocks = lines.x.cols / F8_BLOCK;
    int source = lines.route.source[row];
    int64_t token = source < 0 ? 0 : source / top_k;
    const uint8_t *x = (const uint8_t *)lines.x.data, *x_scale = (const uint8_t *)lines.x.scale;
    for (int64_t i = threadIdx.x; i < lines.x.cols; i += blockDim.x) {
        uint8_t want = source < 0 ? 0 : x[token * lines.x.stride + i];
        if (((const uint8_t *)lines.rows.data)[row * lines.rows.stride + i] != want) atomicAdd(different, 1u);
    }
    for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x) {
        uint8_t want = source < 0 ? 1 : x_scale[token * blocks + i];
        if (((const uint8_t *)lines.rows.scale)[row * blocks + i] != want) atomicAdd(different + 1, 1u);
    }
}

static void check_rows(const char *version, const f8_gathered_lines &lines, int top_k)
{
    std::vector<unsigned> zero(2, 0);
    unsigned *different = lab_upload(zero);
    check_rows_kernel<<<(unsigned)lines.rows.rows, 128>>>(lines, top_k, different);
    std::vector<unsigned> count = lab_download(different, 2);
    if (count[0] || count[1]) std::printf("%s: WRONG: rows: %u codes, %u scales differ\n", version, count[0], count[1]);
    cudaFree(different);
}

static void free_tensor(fp8flow_tensor &t)
{
    cudaFree(t.data);
    cudaFree(t.scale);
}

/* ---- Wide blocks that stay ---- */

enum { STAY_PER_SM = 3 };

__device__ static int token_of_row(const f8_grouped_lines &lines, int row, int end)
{
    f8_device_span span = f8_span_from(lines.groups, row / F8_BLOCK * F8_BLOCK, F8_BLOCK);
    return row < end && row % F8_BLOCK < span.valid ? row : -1;
}

__device__ static int token_of_row(const f8_gathered_lines &lines, int row, int end)
{
    return row < end ? f8_token_of(lines.route, __ldg(lines.route.source + row)) : -1;
}

/* Unit `unit` of a grid: slab after slab, in a slab column first. */
template <int row_blocks, int slab> __device__ static f8_wide_place place_of_unit(int unit, int units_of_slab)
{
    f8_wide_place at;
    int in_slab = unit % units_of_slab, first_block = in_slab / slab * row_blocks;
    at.first_row = first_block * F8_BLOCK;
    at.first_col = (unit / units_of_slab * slab + in_slab % slab) * F8_WIDE_COLS;
    at.block = first_block + (int)threadIdx.x / F8_WIDE_THREADS;
    at.col = at.first_col + f8_lane() % 16 * 16;
    at.col_block = at.col / F8_BLOCK;
    return at;
}

/* predict 86 % (transpose), 81 % (permute): as wide.cuh with 1 row block, but a block goes from tile to tile: the
 * registers of the codes are free when the columns leave shared memory, so half of the next are on their way by then;
 * the tokens were found one tile earlier. With 2 row blocks, 64 registers do not suffice. Groups have no holes between
 * them here. */
template <int row_blocks, int slab, class Lines>
__global__ static void __launch_bounds__(F8_WIDE_THREADS *row_blocks, STAY_PER_SM)
    stay_kernel(Lines lines, fp8flow_tensor columns)
{
    extern __shared__ __align__(16) uint8_t memory[];
    __shared__ alignas(16) int parked[2][row_blocks * F8_BLOCK];
    f8_wide_shared<row_blocks> &shared = *(f8_wide_shared<row_blocks> *)memory;
    const int thread = (int)threadIdx.x, blocks = f8_col_blocks(columns), height = row_blocks * F8_BLOCK;
    const int end = lines.end(), units_of_slab = (end + height - 1) / height * slab;
    const int units = units_of_slab * ((int)(columns.cols + slab * F8_WIDE_COLS - 1) / (slab * F8_WIDE_COLS));
    int unit = (int)blockIdx.x, stage = 0;
    if (unit >= units) return;
    f8_wide_patches p;
    auto park = [&](int of_unit) {
        if (thread >= height) return;
        int row = of_unit % units_of_slab / slab * height + thread;
        parked[stage][thread] = of_unit < units ? token_of_row(lines, row, end) : -1;
    };
    auto find = [&](int half, int token[4]) {
        const int4 *from = (const int4 *)(parked[stage] + thread / F8_WIDE_THREADS * F8_BLOCK + f8_wide_row(half));
        int4 four = *from;
        token[0] = four.x, token[1] = four.y, token[2] = four.z, token[3] = four.w;
    };
    park(unit);
    __syncthreads();
    f8_wide_place at = place_of_unit<row_blocks, slab>(unit, units_of_slab);
    int token[4];
    find(0, token);
    f8_wide_load_codes<Lines::access>(lines.x, at, token, p.half[0]);
    for (; unit < units; unit += gridDim.x) {
        find(1, token);
        f8_wide_load_codes<Lines::access>(lines.x, at, token, p.half[1]);
        f8_wide_load_scales(lines.x, at, token, p.half[1]);
        find(0, token);
        f8_wide_load_scales(lines.x, at, token, p.half[0]);
        stage ^= 1;
        park(unit + gridDim.x);
        const bool is_used = at.block * F8_BLOCK < end;
        if (is_used) lines.keep(at, p);
        uint32_t target = f8_wide_target(p, shared);
        if (thread % F8_WIDE_THREADS == 0) shared.rows[thread / F8_WIDE_THREADS] = is_used ? F8_BLOCK : 0;
        if (thread % F8_WIDE_THREADS < 16 && thread % 8 == 0 && is_used && at.col_block < blocks)
            ((uint8_t *)columns.scale)[(int64_t)at.block * blocks + at.col_block] = (uint8_t)target;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            f8_shift_rows<FP8FLOW_E4M3>(p.half[half], target);
            f8_transpose_patch(p.half[half]);
            f8_wide_write(p.half[half], half, shared);
        }
        const f8_wide_place next = place_of_unit<row_blocks, slab>(unit + gridDim.x, units_of_slab);
        find(0, token);
        f8_wide_load_codes<Lines::access>(lines.x, next, token, p.half[0]);
        __syncthreads();
        f8_wide_store(columns, at, shared);
        at = next;
    }
}

template <int row_blocks, int slab, class Lines>
static void launch_stay(cudaStream_t stream, const Lines &lines, const fp8flow_tensor &columns)
{
    auto kernel = stay_kernel<row_blocks, slab, Lines>;
    const int bytes = (int)sizeof(f8_wide_shared<row_blocks>), multiprocessors = 132;
    f8_allow_shared(kernel, bytes);
    kernel<<<multiprocessors * STAY_PER_SM, F8_WIDE_THREADS * row_blocks, bytes, stream>>>(lines, columns);
}

/* ---- Versions of transpose ---- */

struct tile {
    int block, col_block;
};

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

/* predict 88 % (slab 1), 87 % (slab 8): one block per tile; the shift without tests for NaN saves 150 of 640
 * instructions of a thread. */
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

/* predict 88 % (2 row blocks), 85 % (1): 256 columns per block (wide.cuh), 128 KB of loads per SM in blocks of 64 or
 * 32 KB. The slab hardly matters: nothing is read twice. */
template <int row_blocks, int slab> static void launch_wide(cudaStream_t stream, const call &c)
{
    f8_grouped_lines lines = { c.x, c.groups };
    f8_wide_launch<FP8FLOW_E4M3, row_blocks, slab>(stream, lines, c.y, c.y.rows / F8_BLOCK, NULL);
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
    reference_kernel<<<dim3(row_blocks, (unsigned)(cols / F8_BLOCK)), F8_BLOCK>>>(c.x, want, NULL, 1);
    const int threads = F8_SHIFT_THREADS;
#define TILE_VERSION(slab, per_sm)                                                                   \
    run_version("transpose: tile, slab " #slab ", " #per_sm " per SM", shape, c, want,               \
                [&](cudaStream_t s) { tile_kernel<slab, per_sm><<<slab_grid(c.x, slab), threads, 0, s>>>(c); })
    TILE_VERSION(8, 5);
    TILE_VERSION(1, 5);
    TILE_VERSION(1, 6);
#undef TILE_VERSION
#define WIDE_VERSION(row_blocks, slab)                                                                  \
    run_version("transpose: wide, " #row_blocks " row blocks, slab " #slab, shape, c, want,             \
                [&](cudaStream_t s) { launch_wide<row_blocks, slab>(s, c); })
    WIDE_VERSION(2, 2);
    WIDE_VERSION(2, 8);
    WIDE_VERSION(1, 1);
    WIDE_VERSION(1, 4);
    f8_grouped_lines lines = { c.x, c.groups };
    run_version("transpose: wide, stays, 1 row block", shape, c, want,
                [&](cudaStream_t s) { launch_stay<1, 2>(s, lines, c.y); });
#undef WIDE_VERSION
    free_tensor(c.x);
    free_tensor(c.y);
    free_tensor(want);
}

/* ---- Versions of permute ---- */

/* predict 74 % without the plan (slab 2), 72 % (slab 8): one block per tile, cheaper shift. */
template <int slab, int per_sm>
__global__ static void __launch_bounds__(F8_SHIFT_THREADS, per_sm) permute_kernel(f8_gathered_lines g,
                                                                                  fp8flow_tensor columns)
{
    __shared__ f8_shift_shared shared;
    tile t = { (int)(blockIdx.x / slab), (int)(blockIdx.y * slab + blockIdx.x % slab) };
    int64_t blocks = g.x.cols / F8_BLOCK, row = t.block * F8_BLOCK + f8_patch_row();
    int64_t col = t.col_block * F8_BLOCK + f8_patch_col();
    int source[4], end = __ldg(g.route.end);
    if (t.col_block >= blocks) return;
#pragma unroll
    for (int r = 0; r < 4; r++) source[r] = __ldg(g.route.source + row + r);
    if (t.block * F8_BLOCK >= end) return;
    f8_patch p;
    int64_t token[4];
#pragma unroll
    for (int r = 0; r < 4; r++) token[r] = (uint64_t)(uint32_t)source[r] * g.route.reciprocal >> g.route.shift;
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
    f8_shift_tile<FP8FLOW_E4M3, FP8FLOW_TILE128, F8_WIDE>(p, place_of(columns, t), NULL, shared);
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

/* predict 84 % without the plan (2 row blocks, slab 2; slab 4 the same, slab 1 2 % less), 80 % (1 row block). */
template <int row_blocks, int slab>
static void launch_gather(cudaStream_t stream, const f8_gathered_lines &g, const fp8flow_tensor &columns)
{
    f8_wide_launch<FP8FLOW_E4M3, row_blocks, slab>(stream, g, columns, columns.rows / F8_BLOCK, NULL);
}

struct permute_job {
    const char *shape;
    int top_k;
    f8_gathered_lines lines;
    fp8flow_tensor columns, want;
    double bytes;
};

template <class Launch> static void run_permute(const char *name, const permute_job &job, Launch launch)
{
    const fp8flow_tensor &rows = job.lines.rows, &columns = job.columns;
    LAB_TRY(cudaMemset(columns.data, 0xFF, columns.rows * columns.cols));
    LAB_TRY(cudaMemset(rows.data, 0xFF, rows.rows * rows.cols));
    LAB_TRY(cudaMemset(rows.scale, 0xFF, rows.rows * (rows.cols / F8_BLOCK)));
    launch((cudaStream_t)0);
    LAB_TRY(cudaDeviceSynchronize());
    check_columns(name, columns, job.want);
    check_rows(name, job.lines, job.top_k);
    lab_report(name, job.shape, job.bytes, lab_time(launch));
}

static void permute_versions(const permute_job &job)
{
    const f8_gathered_lines &g = job.lines;
    const fp8flow_tensor &columns = job.columns;
    const int threads = F8_SHIFT_THREADS;
    run_permute("permute: tile, slab 8, 5 per SM", job, [&](cudaStream_t s) {
        permute_kernel<8, 5><<<slab_grid(columns, 8), threads, 0, s>>>(g, columns);
    });
    run_permute("permute: tile, slab 2, 5 per SM", job, [&](cudaStream_t s) {
        permute_kernel<2, 5><<<slab_grid(columns, 2), threads, 0, s>>>(g, columns);
    });
#define WIDE_VERSION(row_blocks, slab)                                              \
    run_permute("permute: wide, " #row_blocks " row blocks, slab " #slab, job,         \
                [&](cudaStream_t s) { launch_gather<row_blocks, slab>(s, g, columns); })
    WIDE_VERSION(2, 1);
    WIDE_VERSION(2, 2);
    WIDE_VERSION(2, 4);
    WIDE_VERSION(1, 2);
    WIDE_VERSION(1, 4);
    run_permute("permute: wide, stays, 1 row block", job,
                [&](cudaStream_t s) { launch_stay<1, 2>(s, g, columns); });
#undef WIDE_VERSION
}

static void permute_shape(int tokens, int k, int experts, int64_t cols)
{
    char shape[64];
    std::snprintf(shape, sizeof shape, "T %d k %d L %d H %lld", tokens, k, experts, (long long)cols);
    std::vector<int32_t> source, end(1);
    int64_t rows = route(tokens, k, experts, source);
    end[0] = (int32_t)rows;
    permute_job job = { shape, k, {}, {}, {}, 0 };
    f8_gathered_lines &g = job.lines;
    g.x = make_x(tokens, cols);
    g.rows = tensor_of(rows, cols, FP8FLOW_ROW128, FP8FLOW_ROWS);
    job.columns = tensor_of(rows, cols, FP8FLOW_TILE128, FP8FLOW_COLUMNS);
    job.want = tensor_of(rows, cols, FP8FLOW_TILE128, FP8FLOW_COLUMNS);
    fp8flow_plan plan = {};
    plan.num_experts = 0, plan.top_k = k, plan.capacity = rows;
    plan.source = lab_upload(source), plan.offset = lab_upload(end);
    fp8flow_permute_args args = {};
    args.plan = &plan;
    g.route = f8_routing_of(&args);
    reference_kernel<<<dim3((unsigned)(rows / F8_BLOCK), (unsigned)(cols / F8_BLOCK)), F8_BLOCK>>>(g.x, job.want,
                                                                                                  plan.source, k);
    job.bytes = (1.0 + 1.0 / F8_BLOCK) * (tokens + rows) * cols + (double)rows * cols;
    permute_versions(job);
    cudaFree(plan.source);
    cudaFree(plan.offset);
    free_tensor(g.x);
    free_tensor(g.rows);
    free_tensor(job.columns);
    free_tensor(job.want);
}

int main()
{
    transpose_shape(32768, 7168, 8);
    transpose_shape(49152, 2048, 64);
    transpose_shape(12288, 5120, 20);
    transpose_shape(6144, 7168, 8);
    transpose_shape(1152, 1408, 9); /* an odd number of tiles both ways */
    permute_shape(4096, 8, 8, 7168);
    permute_shape(4096, 7, 64, 1280);
    permute_shape(4096, 6, 64, 2048);
    permute_shape(4096, 6, 64, 1408); /* an odd number of column tiles */
    permute_shape(4096, 6, 160, 5120);
    permute_shape(4096, 8, 256, 7168);
    return 0;
}
