/* gemm_wgrad_data.cuh - what surrounds the versions of gemm_wgrad.cu: the problem and its shapes, random operands, the
 * check against FP64, timing, and the run of all versions in child processes, so that one that crashes or hangs does
 * not stop the others.
 */
#ifndef F8_LAB_GEMM_WGRAD_DATA_CUH
#define F8_LAB_GEMM_WGRAD_DATA_CUH

#include <cmath>
#include <csignal>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.cuh"
#include "ops/warp.cuh"

typedef wgrad_problem problem;

struct operands {
    const char *name;
    problem p;
    const uint8_t *a, *b;
    int64_t capacity;
    fp8flow_scaling scaling;
    double flops, sustained_ms; /* 0: only check; negative: sustained as well */
};

struct result {
    double error, cool, sustained, megahertz;
    unsigned long long nan;
};

/* Of a version that cannot do what is asked for. */
static const result not_run = { -1, 0, 0, 0, 0 };

struct version {
    const char *name;
    result (*run)(const operands &, fp8flow_write, int);
    int prefetch; /* of c to L2 */
    fp8flow_scaling scaling;
};

/* ---- Operands ---- */

__global__ static void fill_codes(uint8_t *codes, int64_t count, const uint8_t *used, int64_t capacity, uint64_t seed)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint64_t bits = lab_mix(seed + i);
    float u = ((bits >> 40) + 1) * 0x1p-24f, angle = (uint32_t)bits * 0x1p-32f * 6.2831853f;
    codes[i] = used[i % capacity] ? f8_encode(sqrtf(-2.0f * logf(u)) * cosf(angle) * 100.0f, FP8FLOW_E4M3) : 0x7F;
}

/* One in eight is twice as large (spread 0), or bytes from 118 - spread on. */
__global__ static void fill_scales(uint8_t *scales, int64_t count, int spread, uint64_t seed)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint64_t bits = lab_mix(seed + i);
    scales[i] = spread ? 118 - bits % spread : 118 + (bits % 8 == 0);
}

__device__ static float before(int64_t index)
{
    return ((lab_mix(index + 99) >> 40) * 0x1p-24f - 0.5f) * 64.0f;
}

__global__ static void fill_before(float *c, int64_t count, fp8flow_write write)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) c[i] = write == FP8FLOW_OVERWRITE ? nanf("") : before(i);
}

static unsigned blocks_of(int64_t count)
{
    return (unsigned)((count + 255) / 256);
}

struct shape {
    const char *name;
    int experts, mean, n, k; /* mean: of rows, whole blocks of 128; 0: the small sizes below */
    int spread;
    fp8flow_scaling scaling;
    double sustained_ms;
};

static const int small_rows[8] = { 0, 1, 127, 128, 129, 0, 300, 33 };

static operands make_operands(const shape &s)
{
    std::vector<int32_t> offset(s.experts + 1), rows(s.experts);
    int64_t total = 0;
    for (int e = 0; e < s.experts; e++) {
        double mean_blocks = s.mean / 128.0 * (0.7 + 0.6 * ((e * 37 + 11) % s.experts) / s.experts);
        rows[e] = s.mean ? (int)(mean_blocks + 0.5) * 128 : small_rows[e];
        offset[e + 1] = offset[e] + (rows[e] + 127) / 128 * 128;
        total += rows[e];
    }
    int64_t capacity = offset[s.experts];
    std::vector<uint8_t> used(capacity, 0);
    for (int e = 0; e < s.experts; e++) std::fill_n(used.begin() + offset[e], rows[e], 1);
    uint8_t *valid = lab_upload(used), *a = lab_alloc<uint8_t>(capacity * s.n), *b = lab_alloc<uint8_t>(capacity * s.k);
    int block = s.scaling == FP8FLOW_COL128 ? 1 : 128;
    int64_t a_scales = capacity / 128 * ((s.n + block - 1) / block);
    int64_t b_scales = capacity / 128 * ((s.k + block - 1) / block);
    uint8_t *a_scale = lab_alloc<uint8_t>(a_scales), *b_scale = lab_alloc<uint8_t>(b_scales);
    fill_codes<<<blocks_of(capacity * s.n), 256>>>(a, capacity * s.n, valid, capacity, 1);
    fill_codes<<<blocks_of(capacity * s.k), 256>>>(b, capacity * s.k, valid, capacity, 1ull << 40);
    fill_scales<<<blocks_of(a_scales), 256>>>(a_scale, a_scales, s.spread, 3);
    fill_scales<<<blocks_of(b_scales), 256>>>(b_scale, b_scales, s.spread, 1000003);
    LAB_TRY(cudaDeviceSynchronize());
    LAB_TRY(cudaFree(valid));
    float *c = lab_alloc<float>((int64_t)s.experts * s.n * s.k);
    problem p = {};
    p.a_scale = a_scale, p.b_scale = b_scale, p.c = c, p.c_stride = s.k;
    p.offset = lab_upload(offset), p.rows = lab_upload(rows);
    p.experts = s.experts, p.all_rows = (int)capacity, p.n = s.n, p.k = s.k;
    return { s.name, p, a, b, capacity, s.scaling, 2.0 * total * s.n * s.k, s.sustained_ms };
}

static void free_operands(const operands &o)
{
    const void *memory[] = { o.a, o.b, o.p.a_scale, o.p.b_scale, o.p.c, o.p.offset, o.p.rows };
    for (const void *m : memory) LAB_TRY(cudaFree((void *)m));
}

/* ---- Check and time ---- */

/* One warp per element: FP64 of the dequantised operands; error as a fraction of the bound. */
__global__ static void check_kernel(problem p, const uint8_t *a, const uint8_t *b, int64_t capacity, int scale_block,
                                    int all, float *worst)
{
    int64_t index = blockIdx.x, element = index;
    if (!all) {
        int64_t per_expert = (int64_t)p.n * p.k;
        element = index % p.experts * per_expert + (int64_t)(lab_mix(index * 77 + 5) % per_expert);
    }
    int expert = (int)(element / p.k / p.n), n = (int)(element / p.k % p.n), k = (int)(element % p.k);
    const uint8_t *a_scale = (const uint8_t *)p.a_scale, *b_scale = (const uint8_t *)p.b_scale;
    double sum = 0, magnitude = 0;
    for (int m = threadIdx.x; m < p.rows[expert]; m += 32) {
        int64_t row = p.offset[expert] + m;
        double x = ldexp((double)f8_decode(a[n * capacity + row], FP8FLOW_E4M3),
                         a_scale[row / 128 * ((p.n + scale_block - 1) / scale_block) + n / scale_block] - 127);
        double y = ldexp((double)f8_decode(b[k * capacity + row], FP8FLOW_E4M3),
                         b_scale[row / 128 * ((p.k + scale_block - 1) / scale_block) + k / scale_block] - 127);
        sum += x * y;
        magnitude += fabs(x * y);
    }
    sum = f8_warp_sum(sum);
    magnitude = f8_warp_sum(magnitude);
    if (threadIdx.x) return;
    double old = p.write == FP8FLOW_OVERWRITE ? 0.0 : (double)before(element), got = p.c[element];
    double bound = 4 * 0x1p-13 * magnitude + 0x1p-23 * fabs(old + sum) + 1e-30;
    worst[index] = got == got ? (float)(fabs(got - (old + sum)) / bound) : 1e30f;
}

__global__ static void count_nan(const float *c, int64_t count, unsigned long long *found)
{
    unsigned long long mine = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        mine += c[i] != c[i];
    if (mine) atomicAdd(found, mine);
}

/* launch(stream) solves p. */
template <class Launch> static result measure(const operands &o, const problem &p, Launch launch)
{
    result r = {};
    int64_t count = (int64_t)p.experts * p.n * p.k;
    int all = count < 1 << 21, samples = all ? (int)count : 8192;
    float *worst = lab_alloc<float>(samples);
    unsigned long long *nan = lab_alloc<unsigned long long>(1);
    LAB_TRY(cudaMemset(nan, 0, sizeof *nan));
    fill_before<<<blocks_of(count), 256>>>(p.c, count, p.write);
    launch(0);
    LAB_TRY(cudaDeviceSynchronize());
    check_kernel<<<samples, 32>>>(p, o.a, o.b, o.capacity, o.scaling == FP8FLOW_COL128 ? 1 : 128, all, worst);
    count_nan<<<1056, 256>>>(p.c, count, nan);
    LAB_TRY(cudaDeviceSynchronize());
    std::vector<float> errors = lab_download(worst, samples);
    r.error = *std::max_element(errors.begin(), errors.end());
    r.nan = lab_download(nan, 1)[0];
    LAB_TRY(cudaFree(worst));
    LAB_TRY(cudaFree(nan));
    if (o.sustained_ms == 0) return r;
    usleep(100 * 1000); /* what ran before has warmed the card */
    r.cool = lab_time(launch, 11);
    if (o.sustained_ms < 0) {
        lab_rate warm = lab_sustained(launch, r.cool, -1e-3 * o.sustained_ms);
        r.sustained = warm.microseconds, r.megahertz = warm.megahertz;
    }
    return r;
}

/* ---- Runs ---- */

static bool one_run(const operands &o, const version &v, fp8flow_write write)
{
    result r = v.run(o, write, v.prefetch && write == FP8FLOW_ACCUMULATE);
    bool good = r.error < 1 && r.nan == 0;
    if (r.error < 0) return true;
    std::printf("%-42s %-24s %-10s", v.name, o.name, write == FP8FLOW_OVERWRITE ? "overwrites" : "adds");
    if (r.cool > 0) std::printf(" %8.1f us %6.0f TFLOP/s flushed", r.cool, o.flops / r.cool * 1e-6);
    if (r.sustained > 0)
        std::printf(", %8.1f us %6.0f %4.0f MHz sustained", r.sustained, o.flops / r.sustained * 1e-6, r.megahertz);
    std::printf(", error %.3f%s\n", r.error, good ? "" : "  WRONG");
    if (!good && r.nan) std::printf("    %llu NaN\n", r.nan);
    return good;
}

/* What outlives a child that crashed or hung. */
template <int count> struct progress {
    volatile int position; /* shape * count + version */
    volatile int broken[count];
};

template <int count, int shape_count>
static void run_from(const version (&versions)[count], const shape (&shapes)[shape_count], progress<count> *state)
{
    for (int s = state->position / count; s < shape_count; s++) {
        operands o = make_operands(shapes[s]);
        for (int v = state->position % count; v < count; v++) {
            state->position = s * count + v;
            if (state->broken[v] || versions[v].scaling != o.scaling) continue;
            bool good = one_run(o, versions[v], FP8FLOW_ACCUMULATE);
            good = one_run(o, versions[v], FP8FLOW_OVERWRITE) && good;
            if (!good && shapes[s].mean == 0) state->broken[v] = 1;
        }
        state->position = (s + 1) * count;
        free_operands(o);
    }
}

/* A version that crashes or hangs takes a child process with it; the next child goes on behind it. */
template <int count, int shape_count>
static int run_guarded(const version (&versions)[count], const shape (&shapes)[shape_count])
{
    setvbuf(stdout, NULL, _IONBF, 0);
    void *memory = mmap(NULL, sizeof(progress<count>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    progress<count> *state = (progress<count> *)memory;
    while (state->position < shape_count * count) {
        pid_t child = fork();
        if (child == 0) {
            run_from(versions, shapes, state);
            std::_Exit(0);
        }
        int status = 0, seen = -1, still = 0;
        while (waitpid(child, &status, WNOHANG) == 0) {
            still = state->position == seen ? still + 1 : 0;
            seen = state->position;
            if (still == 100) kill(child, SIGKILL); /* 10 s in one version */
            usleep(100 * 1000);
        }
        if (state->position >= shape_count * count) break;
        int v = state->position % count;
        std::printf("%-42s %-24s FAILED%s\n", versions[v].name, shapes[state->position / count].name,
                    still >= 100 ? ": hung" : "");
        state->broken[v] = 1;
        state->position = state->position + 1;
    }
    return 0;
}

#endif
