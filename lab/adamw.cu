/* adamw.cu - lab of adamw and square_sum: the shape of the tile kernel's blocks, the loads in flight. Each version is
 * checked before it is timed, against the step of one parameter per thread and the definition of a tile's codes. */
#include "lab.cuh"

#include "ops/adamw.cu"

struct lab_state {
    int64_t rows, cols, group_rows, count;
    adamw_arrays start, now, expected; /* start: what every check begins with */
    float *grad_scale;
    fp8flow_tensor codes, columns, expected_codes, expected_columns;
    fp8flow_adamw_args args;
    int *differences;
};

__global__ static void start_kernel(adamw_arrays p, float *grad, int64_t count)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint64_t bits = lab_mix(i + 1);
    p.master[i] = (int32_t)bits * 0x1p-34f;
    p.m[i] = (int32_t)(bits >> 32) * 0x1p-40f;
    p.v[i] = (uint32_t)lab_mix(bits) * 0x1p-50f;
    grad[i] = (int32_t)(lab_mix(bits) >> 32) * 0x1p-38f;
}

/* One block of 128 threads per tile, a thread per column: the definition. */
__global__ static void definition_kernel(const uint16_t *weight, fp8flow_tensor rows, fp8flow_tensor columns)
{
    __shared__ uint32_t amax;
    int64_t col_blocks = (rows.cols + 127) / 128, height = rows.group_rows ? rows.group_rows : rows.rows;
    int64_t per_group = (height + 127) / 128, block = blockIdx.x / col_blocks, group = block / per_group;
    int64_t first = block % per_group * 128, end = min(first + 128, height);
    int64_t col = blockIdx.x % col_blocks * 128 + threadIdx.x;
    if (threadIdx.x == 0) amax = 0;
    __syncthreads();
    const uint16_t *at = weight + group * height * rows.cols + col;
    for (int64_t r = first; r < end && col < rows.cols; r++)
        atomicMax(&amax, f8_finite_magnitude(f8_bf16_decode(at[r * rows.cols])));
    __syncthreads();
    uint8_t byte = f8_scale_byte(amax, rows.dtype);
    if (threadIdx.x == 0) ((uint8_t *)rows.scale)[blockIdx.x] = ((uint8_t *)columns.scale)[blockIdx.x] = byte;
    for (int64_t r = first; r < end && col < rows.cols; r++) {
        uint8_t code = f8_encode(f8_bf16_decode(at[r * rows.cols]) * f8_scale_inverse(byte), rows.dtype);
        ((uint8_t *)rows.data)[(group * height + r) * rows.cols + col] = code;
        ((uint8_t *)columns.data)[(group * rows.cols + col) * columns.stride + r] = code;
    }
}

__global__ static void differ_kernel(const uint8_t *a, const uint8_t *b, int64_t count, int *differences)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count && a[i] != b[i]) atomicAdd(differences, 1);
}

static void differ(const lab_state &s, const void *a, const void *b, int64_t bytes)
{
    if (bytes > 0)
        differ_kernel<<<(unsigned)((bytes + 255) / 256), 256>>>((const uint8_t *)a, (const uint8_t *)b, bytes,
                                                                s.differences);
}

static fp8flow_tensor lab_form(const lab_state &s, fp8flow_layout layout)
{
    int64_t height = s.group_rows ? s.group_rows : s.rows;
    fp8flow_tensor t = { s.rows, s.cols, layout == FP8FLOW_ROWS ? s.cols : height, s.group_rows, FP8FLOW_E4M3,
                         FP8FLOW_TILE128, layout, NULL, NULL };
    t.data = lab_alloc<uint8_t>(s.count);
    t.scale = lab_alloc<uint8_t>(f8_capacity_blocks(&t) * ((s.cols + 127) / 128));
    return t;
}

static adamw_arrays lab_arrays(int64_t count, const float *grad)
{
    return { lab_alloc<float>(count), lab_alloc<float>(count), lab_alloc<float>(count), grad,
             lab_alloc<uint16_t>(count) };
}

static void free_state(lab_state *s)
{
    for (const adamw_arrays &p : { s->start, s->now, s->expected })
        for (void *memory : { (void *)p.master, (void *)p.m, (void *)p.v, (void *)p.weight }) cudaFree(memory);
    for (const fp8flow_tensor &t : { s->codes, s->columns, s->expected_codes, s->expected_columns }) {
        cudaFree(t.data);
        cudaFree(t.scale);
    }
    cudaFree((void *)s->now.grad);
    cudaFree(s->differences);
    cudaFree(s->grad_scale);
}

static void restart(const lab_state &s, const adamw_arrays &p)
{
    LAB_TRY(cudaMemcpy(p.master, s.start.master, s.count * 4, cudaMemcpyDeviceToDevice));
    LAB_TRY(cudaMemcpy(p.m, s.start.m, s.count * 4, cudaMemcpyDeviceToDevice));
    LAB_TRY(cudaMemcpy(p.v, s.start.v, s.count * 4, cudaMemcpyDeviceToDevice));
}

/* Everything on the device, and what one step must give. `s` stays where it is: args points into it. */
static void make_state(lab_state *s, int64_t rows, int64_t cols, int64_t group_rows)
{
    *s = { rows, cols, group_rows, rows * cols };
    float *grad = lab_alloc<float>(s->count);
    s->start = lab_arrays(s->count, grad);
    s->now = lab_arrays(s->count, grad);
    s->expected = lab_arrays(s->count, grad);
    s->differences = lab_alloc<int>(1);
    s->grad_scale = lab_upload(std::vector<float>{ 0.7f });
    start_kernel<<<f8_grid(s->count, 256), 256>>>(s->start, grad, s->count);
    s->codes = lab_form(*s, FP8FLOW_ROWS);
    s->columns = lab_form(*s, FP8FLOW_COLUMNS);
    s->expected_codes = lab_form(*s, FP8FLOW_ROWS);
    s->expected_columns = lab_form(*s, FP8FLOW_COLUMNS);
    s->args = { s->count, s->now.master, s->now.m, s->now.v, grad, s->grad_scale, s->now.weight, &s->codes, &s->columns,
                1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 10 };
    restart(*s, s->expected);
    adamw_element_kernel<<<f8_grid(s->count, FLAT_THREADS), FLAT_THREADS>>>(s->expected, factors_of(&s->args), 0,
                                                                            s->count);
    unsigned tiles = (unsigned)(f8_capacity_blocks(&s->codes) * ((cols + 127) / 128));
    definition_kernel<<<tiles, 128>>>(s->expected.weight, s->expected_codes, s->expected_columns);
    LAB_TRY(cudaDeviceSynchronize());
}

template <class Launch> static void check(const lab_state &s, const char *version, Launch launch)
{
    restart(s, s.now);
    LAB_TRY(cudaMemset(s.now.weight, 0xFF, s.count * 2));
    LAB_TRY(cudaMemset(s.differences, 0, sizeof(int)));
    launch(0);
    differ(s, s.now.master, s.expected.master, s.count * 4);
    differ(s, s.now.m, s.expected.m, s.count * 4);
    differ(s, s.now.v, s.expected.v, s.count * 4);
    differ(s, s.now.weight, s.expected.weight, s.count * 2);
    if (s.args.rows) {
        int64_t tiles = f8_capacity_blocks(&s.codes) * ((s.cols + 127) / 128);
        differ(s, s.codes.data, s.expected_codes.data, s.count);
        differ(s, s.columns.data, s.expected_columns.data, s.count);
        differ(s, s.codes.scale, s.expected_codes.scale, tiles);
        differ(s, s.columns.scale, s.expected_columns.scale, tiles);
    }
    LAB_TRY(cudaDeviceSynchronize());
    int differences = lab_download(s.differences, 1)[0];
    if (differences == 0) return;
    std::printf("WRONG: %s, [%lld, %lld] by %lld: %d bytes\n", version, (long long)s.rows, (long long)s.cols,
                (long long)s.group_rows, differences);
    std::exit(1);
}

template <class Launch> static void time_step(const lab_state &s, const char *version, double bytes, Launch launch)
{
    char shape[64];
    std::snprintf(shape, sizeof shape, "%lld x %lld", (long long)s.rows, (long long)s.cols);
    check(s, version, launch);
    lab_report(version, shape, bytes * (double)s.count, lab_time(launch, 11));
}

template <int WARPS, int BATCH, int PER_SM> static void time_tiles(const lab_state &s)
{
    char version[64];
    std::snprintf(version, sizeof version, "both forms, %d warps, %d rows, %d per SM", WARPS, BATCH, PER_SM);
    adamw_forms forms = forms_of(&s.args);
    unsigned tiles = (unsigned)(f8_capacity_blocks(&s.codes) * forms.col_blocks);
    time_step(s, version, 32, [&](cudaStream_t stream) {
        adamw_tile_kernel<FP8FLOW_E4M3, true, WARPS, BATCH, PER_SM>
            <<<tiles, WARPS * F8_WARP, 0, stream>>>(s.now, factors_of(&s.args), forms);
    });
}

template <int PIECES> static void time_flat(const lab_state &s)
{
    char version[64];
    std::snprintf(version, sizeof version, "no forms, %d pieces per thread", PIECES);
    lab_state flat = s;
    flat.args.rows = flat.args.columns = NULL;
    int64_t pieces = s.count / ADAMW_QUAD;
    time_step(flat, version, 30, [&](cudaStream_t stream) {
        adamw_flat_kernel<PIECES><<<f8_grid(pieces, FLAT_THREADS * PIECES), FLAT_THREADS, 0, stream>>>(
            s.now, factors_of(&s.args), pieces);
    });
}

static void time_square_sum(const lab_state &s, fp8flow_context *c)
{
    double *sum = lab_alloc<double>(1);
    fp8flow_square_sum_args args = { s.count, s.now.grad, sum };
    double time = lab_time([&](cudaStream_t stream) {
        c->stream = stream;
        f8_cuda_square_sum(c, &args);
    });
    std::printf("sum of squares %.9g\n", lab_download(sum, 1)[0]);
    /* predict 88 %: a second launch, which one block does, of some 60000 sums */
    lab_report("square_sum", "one tensor", 4.0 * (double)s.count, time);
    cudaFree(sum);
}

/* The library's own choice of kernel, on shapes with short blocks and lines that are not aligned. */
static void check_library(fp8flow_context *c)
{
    static const int64_t shapes[][3] = { { 300, 200, 100 }, { 300, 200, 0 }, { 420, 132, 210 }, { 288, 144, 144 },
                                         { 1, 1, 0 },       { 129, 257, 129 }, { 256, 384, 128 } };
    for (const auto &shape : shapes) {
        lab_state s;
        make_state(&s, shape[0], shape[1], shape[2]);
        check(s, "library", [&](cudaStream_t stream) {
            c->stream = stream;
            f8_cuda_adamw(c, &s.args);
        });
        s.args.rows = s.args.columns = NULL;
        check(s, "library, no forms", [&](cudaStream_t stream) {
            c->stream = stream;
            f8_cuda_adamw(c, &s.args);
        });
        free_state(&s);
    }
}

static void time_shape(fp8flow_context *c, int64_t experts, int64_t group_rows, int64_t cols)
{
    lab_state s;
    make_state(&s, experts * group_rows, cols, group_rows);
    /* predict 88 %: 64 KB in flight per SM; two blocks per SM, one loads while the other encodes */
    time_tiles<16, 1, 2>(s);
    /* predict 87 %: 48 KB in flight, three independent blocks */
    time_tiles<8, 1, 3>(s);
    /* predict 84 %: as much in flight, from half the threads; divisions show */
    time_tiles<8, 4, 2>(s);
    /* predict 78 %: one block per SM stands still at each barrier */
    time_tiles<16, 2, 1>(s);
    /* predict 92 %: no barrier, 128 KB in flight */
    time_flat<2>(s);
    /* predict 91 %: more threads, fewer loads each */
    time_flat<1>(s);
    time_square_sum(s, c);
    free_state(&s);
}

int main()
{
    fp8flow_context c = {};
    c.scratch = lab_alloc<char>(F8_CUDA_SCRATCH_BYTES);
    check_library(&c);
    time_shape(&c, 8, 4096, 7168);
    time_shape(&c, 8, 7168, 2048);
    return 0;
}
