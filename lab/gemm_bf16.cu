/* gemm_bf16.cu - configurations of the grouped products of BF16 operands (ops/gemm_bf16.cu): checked against FP64 on
 * samples, with padding rows that hold NaN and experts that begin anywhere; timed with the L2 flushed and back to back.
 * A configuration that fails or hangs does not stop the others.
 *
 * Columns of the table: TFLOP/s flushed and sustained; the worst of 4096 samples in bounds of 4 * 2^-13 * sum|a b|
 * (+ BF16 rounding).
 */
#include <cmath>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.cuh"
#include "ops/gemm_cuda.h"
#include "ops/warp.cuh"

enum { SAMPLES = 4096 };

struct shape {
    const char *name;
    fp8flow_product product;
    fp8flow_write write;
    int experts, mean, n, k; /* weights are [n, k] */
};

/* One product on the device. */
struct fixture {
    shape s;
    uint16_t *a, *b;
    void *c;
    int32_t *offset, *rows;
    int64_t capacity, total, c_bytes;
    double *worst;

    double flops() const { return 2.0 * total * s.n * s.k; }
    bool gradient() const { return s.product == FP8FLOW_WGRAD; }
};

__global__ static void check_kernel(fixture f)
{
    const shape &s = f.s;
    int e = blockIdx.x % s.experts;
    int64_t begin = f.offset[e], rows = f.rows[e], n = s.n, k = s.k;
    if (rows == 0) return;
    bool fprop = s.product == FP8FLOW_FPROP, gradient = s.product == FP8FLOW_WGRAD;
    int64_t lines = gradient ? n : rows, columns = fprop ? n : k, inner = gradient ? rows : fprop ? k : n;
    uint64_t random = lab_mix(blockIdx.x * 77 + 5);
    int64_t i = (int64_t)(random % lines), j = (int64_t)((random >> 32) % columns);
    /* Some samples from the last lines and columns. */
    if (blockIdx.x % 4 == 3) i = lines - 1 - i % min(lines, (int64_t)64), j = columns - 1 - j % 64;
    double sum = 0, magnitude = 0;
    for (int64_t x = threadIdx.x; x < inner; x += 32) {
        int64_t at_a = gradient ? (begin + x) * n + i : (begin + i) * inner + x;
        int64_t at_b = gradient ? (begin + x) * k + j : fprop ? (e * n + j) * k + x : (e * n + x) * k + j;
        double product = (double)f8_bf16_decode(f.a[at_a]) * f8_bf16_decode(f.b[at_b]);
        sum += product;
        magnitude += fabs(product);
    }
    sum = f8_warp_sum(sum);
    magnitude = f8_warp_sum(magnitude);
    if (threadIdx.x) return;
    int64_t at = (gradient ? e * n + i : begin + i) * columns + j;
    double got = gradient ? ((const float *)f.c)[at] : f8_bf16_decode(((const uint16_t *)f.c)[at]);
    double bound = 4 * 0x1p-13 * magnitude + (gradient ? 0 : 0x1p-8 * fabs(sum));
    f.worst[blockIdx.x] = got == got ? fabs(got - sum) / (bound + 1e-300) : 1e30;
}

/* Normal numbers in the first `rows` lines of every expert; the rest stays NaN. */
__global__ static void fill_kernel(uint16_t *to, int64_t cols, const int32_t *offset, const int32_t *rows,
                                   uint64_t seed)
{
    int64_t first = (int64_t)offset[blockIdx.y] * cols, count = (int64_t)rows[blockIdx.y] * cols;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        uint64_t bits = lab_mix(seed * 0x9E3779B97F4A7C15ull + first + i);
        float u = ((bits >> 40) + 1) * 0x1p-24f, angle = (uint32_t)bits * 0x1p-32f * 6.2831853f;
        to[first + i] = (uint16_t)(__float_as_uint(sqrtf(-2.0f * logf(u)) * cosf(angle)) >> 16);
    }
}

static fp8flow_tensor tensor(int64_t rows, int64_t cols, int64_t group_rows, fp8flow_dtype dtype, void *data)
{
    return { rows, cols, cols, group_rows, dtype, FP8FLOW_UNSCALED, FP8FLOW_ROWS, data, NULL };
}

static void measure(const char *name, const fixture &f, const f8_gemm_config &config, double seconds)
{
    const shape &s = f.s;
    int64_t weight_rows = (int64_t)s.experts * s.n;
    bool fprop = s.product == FP8FLOW_FPROP;
    fp8flow_context_options options = { FP8FLOW_CUDA, 0, 0, NULL };
    fp8flow_context *context;
    fp8flow_groups groups = { s.experts, f.offset, f.rows };
    fp8flow_tensor a = tensor(f.capacity, fprop ? s.k : s.n, 0, FP8FLOW_BF16, f.a), b, c;
    b = f.gradient() ? tensor(f.capacity, s.k, 0, FP8FLOW_BF16, f.b) : tensor(weight_rows, s.k, s.n, FP8FLOW_BF16, f.b);
    c = f.gradient() ? tensor(weight_rows, s.k, s.n, FP8FLOW_F32, f.c)
                     : tensor(f.capacity, fprop ? s.n : s.k, 0, FP8FLOW_BF16, f.c);
    fp8flow_gemm_args args = { s.product, s.write, &groups, &a, &b, &c };
    f8_gemm_desc desc = f8_gemm_describe(&args);
    if (fp8flow_context_create(&options, &context) != FP8FLOW_OK)
        std::printf("%s\n", fp8flow_last_error()), std::exit(1);
    void *own_stream = context->stream;
    auto once = [&](cudaStream_t stream) {
        context->stream = stream;
        if (f8_cuda_gemm_bf16(context, &args, &desc, &config) != FP8FLOW_OK)
            std::printf("%s\n", fp8flow_last_error()), std::exit(1);
    };
    LAB_TRY(cudaMemset(f.c, s.write == FP8FLOW_ACCUMULATE ? 0 : 0xFF, f.c_bytes));
    once(0);
    LAB_TRY(cudaDeviceSynchronize());
    LAB_TRY(cudaMemset(f.worst, 0, SAMPLES * sizeof(double)));
    check_kernel<<<SAMPLES, 32>>>(f);
    LAB_TRY(cudaDeviceSynchronize());
    std::vector<double> errors = lab_download(f.worst, SAMPLES);
    double largest = *std::max_element(errors.begin(), errors.end());
    int wrong = (int)std::count_if(errors.begin(), errors.end(), [](double x) { return x > 1; });
    usleep(100000);
    double cool = lab_time(once, 9), warm = lab_sustained(once, cool, seconds).microseconds;
    std::printf("%-22s %-20s %5.0f TFLOP/s flushed, %5.0f sustained, %.2g", name, s.name, f.flops() / cool * 1e-6,
                f.flops() / warm * 1e-6, largest);
    std::printf(wrong ? " WRONG: %d\n" : "\n", wrong);
    context->stream = own_stream;
    fp8flow_context_destroy(context);
}

static fixture make_fixture(const shape &s)
{
    std::vector<int32_t> offset(s.experts + 1), rows(s.experts), all(s.experts + 1), lines(s.experts, s.n);
    fixture f = {};
    f.s = s;
    for (int e = 0; e < s.experts; e++) {
        rows[e] = (int)(s.mean * (0.7 + 0.6 * ((e * 37 + 11) % s.experts) / s.experts));
        offset[e + 1] = offset[e] + (rows[e] + 15) / 16 * 16 + 3;
        all[e + 1] = all[e] + s.n;
        f.total += rows[e];
    }
    f.capacity = offset[s.experts];
    f.offset = lab_upload(offset), f.rows = lab_upload(rows);
    int32_t *all_device = lab_upload(all), *lines_device = lab_upload(lines);
    int64_t a_cols = s.product == FP8FLOW_FPROP ? s.k : s.n, c_cols = s.product == FP8FLOW_FPROP ? s.n : s.k;
    int64_t weight_rows = (int64_t)s.experts * s.n;
    f.c_bytes = f.gradient() ? 4 * weight_rows * s.k : 2 * f.capacity * c_cols;
    f.a = lab_alloc<uint16_t>(f.capacity * a_cols);
    f.b = lab_alloc<uint16_t>((f.gradient() ? f.capacity : weight_rows) * s.k);
    f.c = lab_alloc<uint8_t>(f.c_bytes);
    f.worst = lab_alloc<double>(SAMPLES);
    fill_kernel<<<dim3(512, s.experts), 256>>>(f.a, a_cols, f.offset, f.rows, 1);
    fill_kernel<<<dim3(512, s.experts), 256>>>(f.b, s.k, f.gradient() ? f.offset : all_device,
                                               f.gradient() ? f.rows : lines_device, 2);
    LAB_TRY(cudaDeviceSynchronize());
    LAB_TRY(cudaFree(all_device));
    LAB_TRY(cudaFree(lines_device));
    return f;
}

static void free_fixture(const fixture &f)
{
    void *const all[] = { f.a, f.b, f.c, f.offset, f.rows, f.worst };
    for (void *memory : all) LAB_TRY(cudaFree(memory));
}

static const struct {
    const char *name;
    f8_gemm_config config;
    bool few; /* only where it tells something: the first shape of each product */
} versions[] = {
    /* predict V3 650-700 sustained, V2-Lite 560-620: nothing but power limits the loop. */
    { "pairs, band 16", { F8_GEMM_BF16, 128, 256, 64, 4, 2, 8 }, false },
    /* predict the same: copies cost nothing as long as L2 gives 48 bytes per clock and SM; if not, 5-10 % less. */
    /* predict equal for V3, where both bands fit into L2. */
    { "pairs, band 8", { F8_GEMM_BF16, 128, 256, 64, 4, 2, 4 }, true },
};
enum { VERSIONS_COUNT = sizeof versions / sizeof *versions };

static const shape shapes[] = {
    { "V3 fprop1", FP8FLOW_FPROP, FP8FLOW_OVERWRITE, 8, 4096, 4096, 7168 },
    { "V3 dgrad1", FP8FLOW_DGRAD, FP8FLOW_OVERWRITE, 8, 4096, 4096, 7168 },
    { "V3 wgrad1", FP8FLOW_WGRAD, FP8FLOW_OVERWRITE, 8, 4096, 4096, 7168 },
    { "V3 fprop2", FP8FLOW_FPROP, FP8FLOW_OVERWRITE, 8, 4096, 7168, 2048 },
    { "V3 dgrad2", FP8FLOW_DGRAD, FP8FLOW_OVERWRITE, 8, 4096, 7168, 2048 },
    { "V3 wgrad2", FP8FLOW_WGRAD, FP8FLOW_OVERWRITE, 8, 4096, 7168, 2048 },
    { "V3 wgrad1, add", FP8FLOW_WGRAD, FP8FLOW_ACCUMULATE, 8, 4096, 4096, 7168 },
    { "V2-Lite fprop1", FP8FLOW_FPROP, FP8FLOW_OVERWRITE, 64, 768, 2816, 2048 },
    { "V2-Lite dgrad1", FP8FLOW_DGRAD, FP8FLOW_OVERWRITE, 64, 768, 2816, 2048 },
    { "V2-Lite wgrad1", FP8FLOW_WGRAD, FP8FLOW_OVERWRITE, 64, 768, 2816, 2048 },
    { "V2-Lite fprop2", FP8FLOW_FPROP, FP8FLOW_OVERWRITE, 64, 768, 2048, 1408 },
    { "V2-Lite dgrad2", FP8FLOW_DGRAD, FP8FLOW_OVERWRITE, 64, 768, 2048, 1408 },
    { "V2-Lite wgrad2", FP8FLOW_WGRAD, FP8FLOW_OVERWRITE, 64, 768, 2048, 1408 },
    { "V2-Lite wgrad1, add", FP8FLOW_WGRAD, FP8FLOW_ACCUMULATE, 64, 768, 2816, 2048 },
};
enum { SHAPES_COUNT = sizeof shapes / sizeof *shapes, FEW_SHAPES = 3, ATTEMPTS = VERSIONS_COUNT * SHAPES_COUNT };

/* Attempts *current .. of all; *current is seen by the parent. */
static void run_from(volatile int *current, double seconds)
{
    fixture f = {};
    for (int made = -1; *current < ATTEMPTS; ++*current) {
        int v = *current % VERSIONS_COUNT, s = *current / VERSIONS_COUNT;
        if (versions[v].few && s >= FEW_SHAPES) continue;
        alarm(10);
        if (made != s) {
            if (made >= 0) free_fixture(f);
            f = make_fixture(shapes[s]);
            made = s;
        }
        measure(versions[v].name, f, versions[v].config, seconds);
    }
    std::exit(0);
}

/* The work is done in a child; where an attempt fails or hangs, another child goes on with the next. */
int main(int argc, char **argv)
{
    double seconds = argc > 1 ? std::atof(argv[1]) : 0.2;
    setvbuf(stdout, NULL, _IONBF, 0);
    int *current = (int *)mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (current == MAP_FAILED) return 1;
    for (*current = 0; *current < ATTEMPTS; ++*current) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) run_from(current, seconds);
        waitpid(child, &status, 0);
        if (status != 0)
            std::printf("%s, %s: stopped, status %d\n", versions[*current % VERSIONS_COUNT].name,
                        shapes[*current / VERSIONS_COUNT].name, status);
    }
    return 0;
}
