/* lab.cuh - how the kernel experiments in this folder measure. A lab program holds versions of one kernel, checks each
 * against the same reference and times it; the winner lives in src/ops. Never linked into the library.
 *
 * One measurement is the replay of a graph: read a buffer of four times the L2 (so that its lines are clean and
 * foreign), event, kernel, event. The median of the replays counts. Percentages are of a device-to-device copy of
 * 4 GiB, bytes read plus bytes written, timed in the same program, in a stream: large copies in a graph are slower.
 */
#ifndef F8_LAB_LAB_CUH
#define F8_LAB_LAB_CUH

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <unistd.h>

#define LAB_TRY(call)                                                                             \
    do {                                                                                          \
        cudaError_t lab_error = (call);                                                           \
        if (lab_error != cudaSuccess) {                                                           \
            std::printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(lab_error));        \
            std::exit(1);                                                                         \
        }                                                                                         \
    } while (0)

template <class T> T *lab_alloc(size_t count)
{
    void *memory;
    LAB_TRY(cudaMalloc(&memory, count * sizeof(T)));
    LAB_TRY(cudaMemset(memory, 0xFF, count * sizeof(T)));
    return (T *)memory;
}

template <class T> T *lab_upload(const std::vector<T> &values)
{
    T *memory = lab_alloc<T>(values.size());
    LAB_TRY(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return memory;
}

template <class T> std::vector<T> lab_download(const T *memory, size_t count)
{
    std::vector<T> values(count);
    LAB_TRY(cudaMemcpy(values.data(), memory, count * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
}

/* ---- Data on the device: BF16 normal numbers, rows times 2^u with u in [-spread, spread] ---- */

__device__ static inline uint64_t lab_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

__global__ static void lab_normal_kernel(uint16_t *out, int64_t rows, int64_t cols, int spread, uint64_t seed)
{
    int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= rows * cols) return;
    uint64_t bits = lab_mix(seed * 0x9E3779B97F4A7C15ull + index);
    float u = ((bits >> 40) + 1) * 0x1p-24f, angle = (uint32_t)bits * 0x1p-32f * 6.2831853f;
    float x = sqrtf(-2.0f * logf(u)) * cosf(angle);
    int shift = spread ? (int)(lab_mix(index / cols + 77) % (2 * spread + 1)) - spread : 0;
    out[index] = (uint16_t)(__float_as_uint(ldexpf(x, shift)) >> 16);
}

static inline uint16_t *lab_normal_bf16(int64_t rows, int64_t cols, int spread, uint64_t seed)
{
    uint16_t *out = lab_alloc<uint16_t>(rows * cols);
    lab_normal_kernel<<<(unsigned)((rows * cols + 255) / 256), 256>>>(out, rows, cols, spread, seed);
    LAB_TRY(cudaDeviceSynchronize());
    return out;
}

/* ---- Time ---- */

__global__ static void lab_read_kernel(const uint4 *from, int64_t count, uint32_t *sink)
{
    uint32_t sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        sum += from[i].x ^ from[i].y ^ from[i].z ^ from[i].w;
    if (sum == 0x12345678u) *sink = sum;
}

/* Median microseconds of `launch(stream)`; the stream is `on`, or one of its own. */
template <class Launch> double lab_time(Launch launch, int repeats = 21, cudaStream_t on = NULL)
{
    static const size_t flush_bytes = 256u << 20;
    static uint4 *flush = lab_alloc<uint4>(flush_bytes / 16);
    static uint32_t *sink = lab_alloc<uint32_t>(1);
    cudaStream_t stream = on;
    cudaEvent_t start, stop;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    if (!on) LAB_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    LAB_TRY(cudaEventCreate(&start));
    LAB_TRY(cudaEventCreate(&stop));
    LAB_TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    lab_read_kernel<<<264, 512, 0, stream>>>(flush, flush_bytes / 16, sink);
    LAB_TRY(cudaEventRecordWithFlags(start, stream, cudaEventRecordExternal));
    launch(stream);
    LAB_TRY(cudaEventRecordWithFlags(stop, stream, cudaEventRecordExternal));
    LAB_TRY(cudaStreamEndCapture(stream, &graph));
    LAB_TRY(cudaGraphInstantiate(&exec, graph, 0));
    std::vector<float> times;
    for (int i = -3; i < repeats; i++) {
        float milliseconds;
        LAB_TRY(cudaGraphLaunch(exec, stream));
        LAB_TRY(cudaStreamSynchronize(stream));
        LAB_TRY(cudaEventElapsedTime(&milliseconds, start, stop));
        if (i >= 0) times.push_back(milliseconds);
    }
    std::sort(times.begin(), times.end());
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    if (!on) cudaStreamDestroy(stream);
    return 1e3 * times[times.size() / 2];
}

/* SM clock in MHz as NVML tells it, 0 without NVML. */
static inline double lab_clock()
{
    typedef int by_index_function(unsigned, void **);
    static void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    static int (*clock)(void *, int, unsigned *);
    static void *device;
    unsigned megahertz = 0;
    if (library && !clock) {
        int (*init)() = (int (*)())dlsym(library, "nvmlInit_v2");
        by_index_function *by_index = (by_index_function *)dlsym(library, "nvmlDeviceGetHandleByIndex_v2");
        if (init && by_index && init() == 0 && by_index(0, &device) == 0)
            clock = (int (*)(void *, int, unsigned *))dlsym(library, "nvmlDeviceGetClockInfo");
    }
    return clock && clock(device, 1, &megahertz) == 0 ? megahertz : 0;
}

struct lab_rate {
    double microseconds, megahertz;
};

/* `launch(0)`, which takes about `guess` microseconds, back to back for `seconds`: one of the second half, and the
 * clock in the middle of that. */
template <class Launch> lab_rate lab_sustained(Launch launch, double guess, double seconds)
{
    cudaEvent_t start, stop;
    float milliseconds;
    LAB_TRY(cudaEventCreate(&start));
    LAB_TRY(cudaEventCreate(&stop));
    int loops = std::max(8, (int)(seconds / 2 * 1e6 / guess));
    for (int i = 0; i < loops; i++) launch(0);
    LAB_TRY(cudaEventRecord(start));
    for (int i = 0; i < loops; i++) launch(0);
    LAB_TRY(cudaEventRecord(stop));
    usleep((unsigned)(seconds * 0.7e6));
    double megahertz = lab_clock();
    LAB_TRY(cudaEventSynchronize(stop));
    LAB_TRY(cudaEventElapsedTime(&milliseconds, start, stop));
    LAB_TRY(cudaEventDestroy(start));
    LAB_TRY(cudaEventDestroy(stop));
    return { 1e3 * milliseconds / loops, megahertz };
}

/* Bytes per microsecond (TB/s times 1e6) of the copy, measured once. */
static inline double lab_copy_rate()
{
    static double rate = 0;
    if (rate > 0) return rate;
    const size_t bytes = (size_t)4 << 30;
    char *from = lab_alloc<char>(bytes), *to = lab_alloc<char>(bytes);
    cudaEvent_t start, stop;
    std::vector<float> times(9);
    LAB_TRY(cudaEventCreate(&start));
    LAB_TRY(cudaEventCreate(&stop));
    for (float &time : times) {
        LAB_TRY(cudaEventRecord(start));
        LAB_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice));
        LAB_TRY(cudaEventRecord(stop));
        LAB_TRY(cudaEventSynchronize(stop));
        LAB_TRY(cudaEventElapsedTime(&time, start, stop));
    }
    std::sort(times.begin(), times.end());
    LAB_TRY(cudaFree(from));
    LAB_TRY(cudaFree(to));
    rate = 2.0 * bytes / (1e3 * times[times.size() / 2]);
    std::printf("copy of 4 GiB: %.2f TB/s\n", rate * 1e-6);
    return rate;
}

/* One line of the table. `bytes`: the fewest that the operator must move. */
static inline void lab_report(const char *version, const char *shape, double bytes, double microseconds)
{
    double copy = lab_copy_rate();
    double rate = bytes / microseconds;
    std::printf("%-44s %-24s %8.1f MB %8.1f us %6.2f TB/s %5.1f %% of copy\n", version, shape, bytes * 1e-6,
                microseconds, rate * 1e-6, 100.0 * rate / copy);
}

#endif
