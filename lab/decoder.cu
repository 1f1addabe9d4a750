/* decoder.cu - versions of the norms, rope, the embedding and the cross entropy: threads per segment, pieces per
 * thread, rows per block, staged against plain. The library's files are compiled into this program, so that what is
 * measured here is what the library runs; a version is other constants of the same templates. "library" is what the
 * operator chooses. Every version is compared with the plain kernels, which have one element per access.
 */
#include <cfloat>
#include <cmath>

#include <cooperative_groups.h>
#include <cuda_pipeline.h>

#include "lab.cuh"
#include "ops/launch.cuh"
#include "ops/nan.h"
#include "ops/norm.h"
#include "ops/plain.h"
#include "ops/rope.h"
#include "ops/warp.cuh"

/* Their file-local names overlap; the headers above are already here. */
namespace norm_cu {
#include "ops/norm.cu"
}
namespace rope_cu {
#include "ops/rope.cu"
}
namespace vocab_cu {
#include "ops/vocab.cu"
}
namespace entropy_cu {
#include "ops/cross_entropy.cu"
}

/* ---- Comparing ---- */

__device__ static float number(uint16_t x)
{
    return f8_bf16_decode(x);
}

__device__ static float number(float x)
{
    return x;
}

/* Counts elements off by more than relative * |expected| + absolute; NaN is off from everything. */
template <class T>
__global__ static void compare_kernel(const T *got, const T *expected, int64_t count, float2 tolerance,
                                      unsigned long long *bad)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        float a = number(got[i]), b = number(expected[i]);
        if (!(fabsf(a - b) <= tolerance.x * fabsf(b) + tolerance.y)) atomicAdd(bad, 1ull);
    }
}

template <class T>
static void check(const char *version, const T *got, const T *expected, int64_t count, float2 tolerance)
{
    static unsigned long long *bad = lab_alloc<unsigned long long>(1);
    LAB_TRY(cudaMemset(bad, 0, sizeof *bad));
    compare_kernel<<<2048, 256>>>(got, expected, count, tolerance, bad);
    LAB_TRY(cudaDeviceSynchronize());
    unsigned long long wrong = lab_download(bad, 1)[0];
    if (wrong) std::printf("%-44s WRONG: %llu of %lld elements\n", version, wrong, (long long)count);
}

__global__ static void widen_kernel(const uint16_t *from, float *to, int64_t count, float factor)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        to[i] = f8_bf16_decode(from[i]) * factor;
}

static float *lab_normal_f32(int64_t count, uint64_t seed)
{
    uint16_t *narrow = lab_normal_bf16(1, count, 0, seed);
    float *wide = lab_alloc<float>(count);
    widen_kernel<<<2048, 256>>>(narrow, wide, count, 1.0f);
    LAB_TRY(cudaDeviceSynchronize());
    cudaFree(narrow);
    return wide;
}

/* A context with what launchers use of it. */
static fp8flow_context make_context(cudaStream_t stream)
{
    static char *scratch = lab_alloc<char>(F8_CUDA_SCRATCH_BYTES);
    fp8flow_context c = {};
    c.stream = stream;
    c.scratch = scratch;
    return c;
}

static void require(fp8flow_status status, const char *what)
{
    if (status == FP8FLOW_OK) return;
    std::printf("%s: status %d\n", what, (int)status);
    std::exit(1);
}

static fp8flow_tensor matrix(void *data, fp8flow_dtype dtype, int64_t rows, int64_t cols)
{
    return { rows, cols, cols, 0, dtype, FP8FLOW_UNSCALED, FP8FLOW_ROWS, data, NULL };
}

static const int64_t ROWS = 16384;

/* ---- Norms ---- */

/* Buffers of one shape, and what the plain kernels made of them. */
struct norm_case {
    const char *shape;
    int64_t cols, width, count, segments;
    uint16_t *x, *dy, *y, *dx, *y_plain, *dx_plain;
    float *weight, *rstd, *dweight, *dweight_plain;
    norm_cu::norm_forward forward;
    norm_cu::norm_backward backward;
};

static norm_case make_norm_case(const char *shape, int64_t heads, int64_t width)
{
    norm_case n = {};
    n.shape = shape;
    n.width = width;
    n.cols = heads * width;
    n.count = ROWS * n.cols;
    n.segments = ROWS * heads;
    n.x = lab_normal_bf16(ROWS, n.cols, 2, 1);
    n.dy = lab_normal_bf16(ROWS, n.cols, 0, 2);
    n.y = lab_alloc<uint16_t>(n.count);
    n.dx = lab_alloc<uint16_t>(n.count);
    n.y_plain = lab_alloc<uint16_t>(n.count);
    n.dx_plain = lab_alloc<uint16_t>(n.count);
    n.weight = lab_normal_f32(width, 3);
    n.rstd = lab_alloc<float>(n.segments);
    n.dweight = lab_alloc<float>(width);
    n.dweight_plain = lab_alloc<float>(width);
    norm_cu::norm_shape segments = { n.segments, heads, (int32_t)width, 1.0f / (float)width };
    n.forward = { segments, n.x, n.y, n.weight, n.rstd, n.cols, n.cols, 1e-6f };
    n.backward = { segments,  n.x,    n.dy,   n.dx,  n.weight, n.rstd, (float *)make_context(0).scratch,
                   n.cols,    n.cols, n.cols };
    norm_cu::norm_forward plain = n.forward;
    plain.y = n.y_plain;
    norm_cu::rmsnorm_plain_kernel<<<f8_grid(n.segments, 8), 256>>>(plain);
    norm_cu::norm_backward plain_backward = n.backward;
    plain_backward.dx = n.dx_plain;
    LAB_TRY(cudaMemset(n.dweight_plain, 0, width * 4));
    require(norm_cu::launch_plain_backward(plain_backward, n.dweight_plain, 0), "plain backward");
    LAB_TRY(cudaDeviceSynchronize());
    return n;
}

static void free_norm_case(norm_case &n)
{
    for (void *memory : { (void *)n.x, (void *)n.dy, (void *)n.y, (void *)n.dx, (void *)n.y_plain, (void *)n.dx_plain,
                          (void *)n.weight, (void *)n.rstd, (void *)n.dweight, (void *)n.dweight_plain })
        cudaFree(memory);
}

template <int lanes, int pieces> static void time_forward(const char *version, const norm_case &n)
{
    LAB_TRY(cudaMemset(n.y, 0xFF, n.count * 2));
    norm_cu::launch_forward<lanes, pieces>(n.forward, 0);
    check(version, n.y, n.y_plain, n.count, make_float2(0x1p-7f, 0));
    double time = lab_time([&](cudaStream_t s) { norm_cu::launch_forward<lanes, pieces>(n.forward, s); });
    lab_report(version, n.shape, 4.0 * n.count, time);
}

/* dx of a row is compared on the scale of its largest term; dweight on that of its sum of magnitudes. */
template <int lanes, int pieces> static void time_backward(const char *version, const norm_case &n)
{
    LAB_TRY(cudaMemset(n.dx, 0xFF, n.count * 2));
    LAB_TRY(cudaMemset(n.dweight, 0, n.width * 4));
    require(norm_cu::launch_backward<lanes, pieces>(n.backward, n.dweight, 0), version);
    check(version, n.dx, n.dx_plain, n.count, make_float2(0x1p-7f, 0x1p-12f));
    check(version, n.dweight, n.dweight_plain, n.width, make_float2(0x1p-12f, 0x1p-18f * n.segments));
    double time =
        lab_time([&](cudaStream_t s) { norm_cu::launch_backward<lanes, pieces>(n.backward, n.dweight, s); });
    lab_report(version, n.shape, 6.0 * n.count, time);
}

static void run_norms()
{
    norm_case n = make_norm_case("16384 x 7168", 1, 7168);
    /* predict 90 %: 14 KB per block, eight blocks resident: 112 KB under way. */
    time_forward<128, 8>("rmsnorm 128 threads x 8 (library)", n);
    /* predict 91 %: the same bytes in more threads, fewer registers each. */
    time_forward<256, 4>("rmsnorm 256 threads x 4", n);
    /* predict 88 %: the barrier waits for more warps. */
    time_forward<512, 2>("rmsnorm 512 threads x 2", n);
    /* predict 85 %: two blocks of 512 with two stages ahead, 112 KB under way, one barrier per row. */
    time_backward<512, 2>("rmsnorm_backward 512 threads x 2 (library)", n);
    /* predict 78 %: one block, its barrier is exposed. */
    time_backward<1024, 1>("rmsnorm_backward 1024 threads x 1", n);
    free_norm_case(n);
    n = make_norm_case("16384 x 2048", 1, 2048);
    /* predict 84 %: no barrier at all, but 47 us are short beside the start. */
    time_forward<32, 8>("rmsnorm warp x 8 (library)", n);
    /* predict 84 %: a barrier of four warps. */
    time_forward<128, 2>("rmsnorm 128 threads x 2", n);
    time_forward<256, 1>("rmsnorm 256 threads x 1", n);
    /* predict 78 %: 64 KB under way; the second kernel costs 3 us of 47. */
    time_backward<256, 1>("rmsnorm_backward 256 threads x 1 (library)", n);
    /* predict 80 %: 26 instructions per element instead of 34 of 44, but twice the partial sums. */
    time_backward<128, 2>("rmsnorm_backward 128 threads x 2", n);
    free_norm_case(n);
    n = make_norm_case("16384 x (32 x 128)", 32, 128);
    /* predict 87 %: 16 elements share the work per segment, 64 KB under way. */
    time_forward<8, 2>("rmsnorm 8 lanes x 2 (library)", n);
    /* predict 80 %: about 200 instructions for 8 elements, the budget is 236. */
    time_forward<16, 1>("rmsnorm 16 lanes x 1", n);
    time_forward<4, 4>("rmsnorm 4 lanes x 4", n);
    /* predict 85 %: no barrier, 128 KB under way. */
    time_backward<8, 2>("rmsnorm_backward 8 lanes x 2 (library)", n);
    time_backward<16, 1>("rmsnorm_backward 16 lanes x 1", n);
    free_norm_case(n);
}

/* ---- Rope ---- */

static void run_rope()
{
    const int64_t heads = 32, width = 128, count = ROWS * heads * width;
    uint16_t *x = lab_normal_bf16(ROWS, heads * width, 0, 4), *plain = lab_alloc<uint16_t>(count);
    LAB_TRY(cudaMemcpy(plain, x, count * 2, cudaMemcpyDeviceToDevice));
    for (int rows = 2; rows <= 16; rows *= 2) {
        /* predict 80 %, 85 %, 85 %, 80 %: few rows repeat powers, many leave the last wave thin. 8 is the library's. */
        char version[64];
        std::snprintf(version, sizeof version, "rope %d rows per block", rows);
        rope_cu::rope_call call = { x, heads * width, ROWS, heads, 4096, 0, width / 2, rows, 1e6f, FP8FLOW_ROTATE };
        rope_cu::rope_call plain_call = call;
        plain_call.x = plain;
        unsigned grid = f8_grid(ROWS, rows);
        rope_cu::rope_wide_kernel<<<grid, 256>>>(call);
        rope_cu::rope_kernel<<<grid, 256>>>(plain_call);
        check(version, x, plain, count, make_float2(0, 0));
        double time = lab_time([&](cudaStream_t s) { rope_cu::rope_wide_kernel<<<grid, 256, 0, s>>>(call); });
        lab_report(version, "16384 x (32 x 128)", 4.0 * count, time);
        LAB_TRY(cudaMemcpy(plain, x, count * 2, cudaMemcpyDeviceToDevice));
    }
    cudaFree(x);
    cudaFree(plain);
}

/* ---- Embedding ---- */

/* A thread per column, token after token: the definition. */
__global__ static void add_plain_kernel(const uint16_t *dy, const int32_t *ids, float *dtable, int64_t count,
                                        int64_t cols)
{
    int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (int64_t t = 0; col < cols && t < count; t++)
        dtable[ids[t] * cols + col] += f8_bf16_decode(dy[t * cols + col]);
}

/* `power` 1: any id alike; 4: a few ids are most of the text; 0: one id. */
static int32_t *make_ids(int64_t vocabulary, int power)
{
    std::vector<int32_t> ids(ROWS);
    uint64_t state = 12345;
    for (int32_t &id : ids) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        double u = (double)(state >> 11) * 0x1p-53;
        id = power ? (int32_t)((double)vocabulary * std::pow(u, power)) : 7;
    }
    return lab_upload(ids);
}

static void run_embedding()
{
    const int64_t vocabulary = 100000, width = 2048, count = ROWS * width;
    uint16_t *table = lab_normal_bf16(vocabulary, width, 0, 5), *y = lab_alloc<uint16_t>(count);
    uint16_t *dy = lab_normal_bf16(ROWS, width, 4, 6);
    float *dtable = lab_alloc<float>(vocabulary * width), *plain = lab_alloc<float>(vocabulary * width);
    fp8flow_tensor table_view = matrix(table, FP8FLOW_BF16, vocabulary, width);
    fp8flow_tensor y_view = matrix(y, FP8FLOW_BF16, ROWS, width), dy_view = matrix(dy, FP8FLOW_BF16, ROWS, width);
    fp8flow_tensor dtable_view = matrix(dtable, FP8FLOW_F32, vocabulary, width);
    static const int powers[3] = { 1, 4, 0 };
    static const char *const shapes[3] = { "16384 x 2048, any id", "16384 x 2048, text", "16384 x 2048, one id" };
    for (int i = 0; i < 3; i++) {
        int32_t *ids = make_ids(vocabulary, powers[i]);
        fp8flow_embed_args embed = { &table_view, ids, &y_view };
        fp8flow_embed_backward_args backward = { &dy_view, ids, &dtable_view };
        /* predict 85 %: 2 KB under way in each of 40 warps; the loads of ids come first. */
        double time = lab_time([&](cudaStream_t s) {
            fp8flow_context c = make_context(s);
            require(vocab_cu::f8_cuda_embed(&c, &embed), "embed");
        });
        lab_report("embed (library)", shapes[i], 4.0 * count, time);
        LAB_TRY(cudaMemset(dtable, 0, vocabulary * width * 4));
        LAB_TRY(cudaMemset(plain, 0, vocabulary * width * 4));
        fp8flow_context once = make_context(0);
        require(vocab_cu::f8_cuda_embed_backward(&once, &backward), "embed_backward");
        add_plain_kernel<<<f8_grid(width, 32), 32>>>(dy, ids, plain, ROWS, width);
        check("embed_backward (library)", dtable, plain, vocabulary * width, make_float2(0, 0));
        /* predict 70 %: 78 us of bytes and 12 us of index. Text: the most frequent id sets the time, 60 ns a row.
         * One id: 1 ms. */
        time = lab_time([&](cudaStream_t s) {
            fp8flow_context c = make_context(s);
            require(vocab_cu::f8_cuda_embed_backward(&c, &backward), "embed_backward");
        });
        lab_report("embed_backward (library)", shapes[i], 10.0 * count, time);
        cudaFree(ids);
    }
    for (void *memory : { (void *)table, (void *)y, (void *)dy, (void *)dtable, (void *)plain }) cudaFree(memory);
}

/* ---- Cross entropy ---- */

template <fp8flow_dtype from, fp8flow_dtype to>
static void check_entropy(const char *version, entropy_cu::entropy_call call, int ranks)
{
    using element = typename entropy_cu::format<to>::element;
    const int64_t rows = 300, count = rows * call.vocabulary;
    element *plain = lab_alloc<element>(count);
    float *loss = lab_alloc<float>(rows);
    call.num_tokens = rows;
    entropy_cu::entropy_call plain_call = call;
    plain_call.gradient = plain;
    plain_call.loss = loss;
    entropy_cu::cross_entropy_plain_kernel<from, to><<<(unsigned)rows, entropy_cu::PLAIN_THREADS>>>(plain_call);
    int64_t pieces = call.vocabulary / entropy_cu::format<from>::COUNT;
    require(entropy_cu::launch_staged<from, to>(call, pieces, ranks, 0), version);
    float relative = to == FP8FLOW_BF16 ? 0x1p-7f : 0x1p-18f;
    check(version, (const element *)call.gradient, (const element *)plain, count, make_float2(relative, 1e-12f));
    check(version, (const float *)call.loss, (const float *)loss, rows, make_float2(0x1p-18f, 0x1p-18f));
    cudaFree(plain);
    cudaFree(loss);
}

/* ranks: blocks of a row; 0: the plain kernel. */
template <fp8flow_dtype from, fp8flow_dtype to>
static void time_entropy(const char *version, const entropy_cu::entropy_call &call, int ranks)
{
    const double count = (double)(call.num_tokens * call.vocabulary);
    const int64_t pieces = call.vocabulary / entropy_cu::format<from>::COUNT;
    const int64_t read = 16 / entropy_cu::format<from>::COUNT, written = 16 / entropy_cu::format<to>::COUNT;
    if (ranks) check_entropy<from, to>(version, call, ranks);
    auto run = [&](cudaStream_t s) {
        if (ranks) require(entropy_cu::launch_staged<from, to>(call, pieces, ranks, s), version);
        else
            entropy_cu::cross_entropy_plain_kernel<from, to>
                <<<(unsigned)call.num_tokens, entropy_cu::PLAIN_THREADS, 0, s>>>(call);
    };
    double time = lab_time(run, 7);
    lab_report(version, "8192 x 102400", (double)(read + written) * count, time);
}

static void run_entropy()
{
    const fp8flow_dtype bf16 = FP8FLOW_BF16, f32 = FP8FLOW_F32;
    const int64_t rows = 8192, vocabulary = 102400, count = rows * vocabulary;
    uint16_t *narrow = lab_normal_bf16(rows, vocabulary, 1, 7), *work = lab_alloc<uint16_t>(count * 2);
    float *wide = lab_alloc<float>(count), *loss = lab_alloc<float>(rows);
    widen_kernel<<<2048, 256>>>(narrow, wide, count, 1.2345678f);
    std::vector<int32_t> targets(rows);
    for (int64_t t = 0; t < rows; t++) targets[t] = t % 50 == 49 ? -1 : (int32_t)(t * 7919 % vocabulary);
    int32_t *target = lab_upload(targets);
    entropy_cu::entropy_call call = { narrow,     work, target,     loss,         vocabulary,
                                      vocabulary, rows, vocabulary, 1.0f / 8192 };
    /* predict 80 %: one read, one write; a third of a row's time is arithmetic that other blocks must hide. */
    time_entropy<bf16, bf16>("cross_entropy bf16, block per row (library)", call, 1);
    /* predict 78 %: half the row per block, a cluster barrier more often. */
    time_entropy<bf16, bf16>("cross_entropy bf16, 2 blocks per row", call, 2);
    /* predict 45 %: two reads of two bytes at a time. */
    time_entropy<bf16, bf16>("cross_entropy bf16, plain", call, 0);
    call.logits = wide;
    /* predict 80 %: the loads of FP32 with the arithmetic of BF16; the writes are half as long. */
    time_entropy<f32, bf16>("cross_entropy f32 to bf16, 2 blocks per row (library)", call, 2);
    /* predict 76 %: two blocks of a row more to wait for. */
    time_entropy<f32, bf16>("cross_entropy f32 to bf16, 4 blocks per row", call, 4);
    time_entropy<f32, bf16>("cross_entropy f32 to bf16, plain", call, 0);
    /* predict 82 %: twice the bytes of BF16 for 1.3 times the arithmetic. */
    time_entropy<f32, f32>("cross_entropy f32, 2 blocks per row (library)", call, 2);
    for (void *memory : { (void *)narrow, (void *)work, (void *)wide, (void *)loss, (void *)target })
        cudaFree(memory);
}

int main()
{
    run_norms();
    run_rope();
    run_embedding();
    run_entropy();
    return 0;
}
