/* gemm_fp8.cu - the grouped FP8 product c[P, N] = a[P, K] * b_g[N, K]^T of ops/gemm_fp8_rows.cu, in bands of several
 * widths: checked against FP64 on samples, timed with the L2 flushed and back to back. One that fails or hangs does not
 * stop the others.
 *
 * Columns of the table: TFLOP/s flushed and sustained, per cent of the tensor cores' 4096 products per clock and SM at
 * the SM clock that the driver gives in the loop; the last says how far the worst of 4096 samples is from FP64, in
 * bounds of 4 * 2^-13 * sum|a b| + BF16 rounding. The argument is the length of the loops in seconds.
 */
#include <cmath>
#include <csignal>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.cuh"
#include "ops/gemm_cuda.h"
#include "ops/warp.cuh"

/* What the check needs of a product. */
struct problem {
    const uint8_t *a_scale, *b_scale; /* [P, K/128], [E, N/128, K/128] */
    uint16_t *c;
    const int32_t *offset, *rows;
    int32_t experts, n, k;
};

/* ---- Check: FP64 on sampled elements ---- */

__device__ static double code_value(uint8_t code)
{
    return f8_decode(code, FP8FLOW_E4M3);
}

__global__ static void check_kernel(problem p, const uint8_t *a, const uint8_t *b, int samples, double *worst)
{
    int index = blockIdx.x;
    int e = index % p.experts;
    int rows = p.rows[e];
    if (rows == 0) return;
    uint64_t random = lab_mix(index * 77 + 5);
    int64_t row = p.offset[e] + (int)(random % rows), col = (int)((random >> 32) % p.n);
    double sum = 0, magnitude = 0;
    int k_blocks = p.k / 128;
    for (int k = threadIdx.x; k < p.k; k += 32) {
        double x = code_value(a[row * p.k + k]) * ldexp(1.0, p.a_scale[row * k_blocks + k / 128] - 127);
        double y = code_value(b[((int64_t)e * p.n + col) * p.k + k]) *
                   ldexp(1.0, p.b_scale[(e * p.n + col) / 128 * (int64_t)k_blocks + k / 128] - 127);
        sum += x * y;
        magnitude += fabs(x * y);
    }
    sum = f8_warp_sum(sum);
    magnitude = f8_warp_sum(magnitude);
    if (threadIdx.x) return;
    double got = f8_bf16_decode(p.c[row * p.n + col]);
    double bound = 4 * 0x1p-13 * magnitude + 0x1p-8 * fabs(sum);
    worst[index] = got == got ? fabs(got - sum) / (bound + 1e-300) : 1e30;
}

__global__ static void fill_codes(uint8_t *codes, int64_t count, uint64_t seed)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint64_t bits = lab_mix(seed + i);
    float u = ((bits >> 40) + 1) * 0x1p-24f, angle = (uint32_t)bits * 0x1p-32f * 6.2831853f;
    codes[i] = f8_encode(sqrtf(-2.0f * logf(u)) * cosf(angle) * 170.0f, FP8FLOW_E4M3);
}

__global__ static void fill_scales(uint8_t *scales, int64_t count, uint64_t seed)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) scales[i] = 118 + lab_mix(seed + i) % 4;
}

/* One operand pair on the device, and where results go. */
struct fixture {
    const char *name;
    problem p;
    uint8_t *a, *b;
    int64_t capacity;
    double flops, *worst;
};

static fp8flow_tensor tensor(int64_t rows, int64_t cols, int64_t group_rows, f8_tensor_format format, void *data,
                             const void *scale)
{
    return { rows, cols, cols, group_rows, format.dtype, format.scaling, format.layout, data, (void *)scale };
}

static double seconds = 0.5;

static void measure(const char *name, const fixture &f, const f8_gemm_config &config)
{
    const int samples = 4096;
    const problem &p = f.p;
    fp8flow_context_options options = { FP8FLOW_CUDA, 0, 0, NULL };
    fp8flow_context *context;
    fp8flow_groups groups = { p.experts, p.offset, p.rows };
    fp8flow_tensor a = tensor(f.capacity, p.k, 0, { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS }, f.a, p.a_scale);
    fp8flow_tensor b = tensor((int64_t)p.experts * p.n, p.k, p.n, { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_ROWS }, f.b,
                              p.b_scale);
    fp8flow_tensor c = tensor(f.capacity, p.n, 0, { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS }, p.c, NULL);
    fp8flow_gemm_args args = { FP8FLOW_FPROP, FP8FLOW_OVERWRITE, &groups, &a, &b, &c };
    f8_gemm_desc desc = f8_gemm_describe(&args);
    if (fp8flow_context_create(&options, &context) != FP8FLOW_OK)
        std::printf("%s\n", fp8flow_last_error()), std::exit(1);
    auto once = [&](cudaStream_t s) {
        context->stream = s;
        if (f8_cuda_gemm_fp8_rows(context, &args, &desc, &config) != FP8FLOW_OK)
            std::printf("%s\n", fp8flow_last_error()), std::exit(1);
    };
    LAB_TRY(cudaMemset(p.c, 0xFF, f.capacity * p.n * 2));
    once(0);
    LAB_TRY(cudaDeviceSynchronize());
    LAB_TRY(cudaMemset(f.worst, 0, samples * sizeof(double)));
    check_kernel<<<samples, 32>>>(p, f.a, f.b, samples, f.worst);
    LAB_TRY(cudaDeviceSynchronize());
    std::vector<double> errors = lab_download(f.worst, samples);
    double largest = *std::max_element(errors.begin(), errors.end());
    usleep(300000);
    double cool = lab_time(once, 15);
    usleep(100000);
    lab_rate warm = lab_sustained(once, cool, seconds);
    double teraflops = f.flops / warm.microseconds * 1e-6, peak = 2 * 4096.0 * 132 * warm.megahertz * 1e-6;
    std::printf("%-34s %-15s %5.0f TFLOP/s flushed, %5.0f %3.0f %% %4.0f MHz sustained, %.2f%s\n", name, f.name,
                f.flops / cool * 1e-6, teraflops, peak > 0 ? 100 * teraflops / peak : 0, warm.megahertz, largest,
                largest < 1 ? "" : " WRONG");
}

static fixture make_fixture(const char *name, int experts, int mean, int n, int k)
{
    std::vector<int32_t> offset(experts + 1), rows(experts);
    int64_t total = 0;
    for (int e = 0; e < experts; e++) {
        rows[e] = (int)(mean * (0.7 + 0.6 * ((e * 37 + 11) % experts) / experts)) / 128 * 128;
        offset[e + 1] = offset[e] + (rows[e] + 127) / 128 * 128;
        total += rows[e];
    }
    int64_t capacity = offset[experts], blocks = k / 128, b_blocks = (int64_t)experts * n / 128 * blocks;
    fixture f = { name, {}, lab_alloc<uint8_t>(capacity * k), lab_alloc<uint8_t>((int64_t)experts * n * k), capacity,
                  2.0 * total * n * k, lab_alloc<double>(4096) };
    uint8_t *a_scale = lab_alloc<uint8_t>(capacity * blocks), *b_scale = lab_alloc<uint8_t>(b_blocks);
    fill_codes<<<(unsigned)((capacity * k + 255) / 256), 256>>>(f.a, capacity * k, 1);
    fill_codes<<<(unsigned)(((int64_t)experts * n * k + 255) / 256), 256>>>(f.b, (int64_t)experts * n * k, 1ull << 40);
    fill_scales<<<(unsigned)((capacity * blocks + 255) / 256), 256>>>(a_scale, capacity * blocks, 3);
    fill_scales<<<(unsigned)((b_blocks + 255) / 256), 256>>>(b_scale, b_blocks, 4);
    f.p = { a_scale, b_scale, lab_alloc<uint16_t>(capacity * n), lab_upload(offset), lab_upload(rows), experts, n, k };
    return f;
}

static void free_fixture(const fixture &f)
{
    LAB_TRY(cudaFree(f.a));
    LAB_TRY(cudaFree(f.b));
    LAB_TRY(cudaFree(f.worst));
    LAB_TRY(cudaFree(f.p.c));
    LAB_TRY(cudaFree((void *)f.p.a_scale));
    LAB_TRY(cudaFree((void *)f.p.b_scale));
    LAB_TRY(cudaFree((void *)f.p.offset));
    LAB_TRY(cudaFree((void *)f.p.rows));
}

static const struct {
    const char *name;
    f8_gemm_config config;
} versions[] = {
    { "128x192, bands of 8", { F8_GEMM_FP8_ROWS, 128, 192, 128, 4, 1, 8 } },
    { "128x192, bands of 16", { F8_GEMM_FP8_ROWS, 128, 192, 128, 4, 1, 16 } },
};
enum { VERSIONS_COUNT = sizeof versions / sizeof *versions };

static const struct {
    const char *name;
    int experts, mean, n, k;
} shapes[] = { { "V3 fprop1", 8, 4096, 4096, 7168 },       { "V3 fprop2", 8, 4096, 7168, 2048 },
               { "V3 dgrad2", 8, 4096, 2048, 7168 },       { "V3 dgrad1", 8, 4096, 7168, 4096 },
               { "V2-Lite fprop1", 64, 768, 2816, 2048 },  { "V2-Lite fprop2", 64, 768, 2048, 1408 },
               { "V2-Lite dgrad2", 64, 768, 1408, 2048 },  { "V2-Lite dgrad1", 64, 768, 2048, 2816 },
               { "V3 small fprop1", 8, 768, 4096, 7168 },  { "V3 small fprop2", 8, 768, 7168, 2048 } };
enum { ATTEMPTS = VERSIONS_COUNT * sizeof shapes / sizeof *shapes };

/* Attempts *current .. of all; *current is seen by the parent. */
static void run_from(volatile int *current)
{
    fixture f = {};
    for (int made = -1; *current < ATTEMPTS; ++*current) {
        int v = *current % VERSIONS_COUNT, s = *current / VERSIONS_COUNT;
        alarm(8);
        if (made != s) {
            if (made >= 0) free_fixture(f);
            f = make_fixture(shapes[s].name, shapes[s].experts, shapes[s].mean, shapes[s].n, shapes[s].k);
            made = s;
        }
        measure(versions[v].name, f, versions[v].config);
    }
    std::exit(0);
}

/* The work is done in a child; where an attempt fails or hangs, another child goes on with the next. */
int main(int argc, char **argv)
{
    if (argc > 1) seconds = std::atof(argv[1]);
    setvbuf(stdout, NULL, _IONBF, 0);
    int *current = (int *)mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (current == MAP_FAILED) return 1;
    for (*current = 0; *current < ATTEMPTS; ++*current) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) run_from(current);
        waitpid(child, &status, 0);
        if (status != 0)
            std::printf("%s, %s: stopped, status %d\n", versions[*current % VERSIONS_COUNT].name,
                        shapes[*current / VERSIONS_COUNT].name, status);
    }
    return 0;
}
