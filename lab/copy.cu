/* copy.cu - the yardsticks: what a GPU reaches that only reads, only writes, or copies, by size and by means. */
#include "lab.cuh"
#include "ops/warp.cuh"

template <int pieces> __global__ static void copy_kernel(uint4 *to, const uint4 *from)
{
    int64_t first = (int64_t)blockIdx.x * blockDim.x * pieces + threadIdx.x;
    uint4 held[pieces];
#pragma unroll
    for (int i = 0; i < pieces; i++) held[i] = f8_load16(from + first + i * blockDim.x);
#pragma unroll
    for (int i = 0; i < pieces; i++) f8_store16(to + first + i * blockDim.x, held[i]);
}

__global__ static void write_kernel(uint4 *to)
{
    int64_t first = (int64_t)blockIdx.x * blockDim.x * 4 + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 4; i++) f8_store16(to + first + i * blockDim.x, make_uint4(first, 1, 2, i));
}

/* Of `bytes`: two thirds read, one third written, like a BF16 to FP8 conversion. */
__global__ static void halve_kernel(uint4 *to, const uint4 *from)
{
    int64_t first = (int64_t)blockIdx.x * blockDim.x * 2 + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int64_t at = first + i * blockDim.x;
        uint4 a = f8_load16(from + 2 * at), b = f8_load16(from + 2 * at + 1);
        f8_store16(to + at, make_uint4(a.x ^ a.y, a.z ^ a.w, b.x ^ b.y, b.z ^ b.w));
    }
}

/* A copy outside of a graph. */
static double stream_copy(void *to, const void *from, size_t bytes)
{
    cudaEvent_t start, stop;
    std::vector<float> times;
    LAB_TRY(cudaEventCreate(&start));
    LAB_TRY(cudaEventCreate(&stop));
    for (int i = 0; i < 15; i++) {
        float milliseconds;
        LAB_TRY(cudaEventRecord(start));
        LAB_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice));
        LAB_TRY(cudaEventRecord(stop));
        LAB_TRY(cudaEventSynchronize(stop));
        LAB_TRY(cudaEventElapsedTime(&milliseconds, start, stop));
        times.push_back(milliseconds);
    }
    std::sort(times.begin(), times.end());
    return 1e3 * times[7];
}

int main()
{
    const size_t sizes[] = { 32u << 20, 128u << 20, 512u << 20, 1u << 30, 3u << 30 };
    char *from = lab_alloc<char>(3u << 30), *to = lab_alloc<char>(3u << 30);
    for (size_t bytes : sizes) {
        char shape[32];
        std::snprintf(shape, sizeof shape, "%zu MiB", bytes >> 20);
        unsigned grid = (unsigned)(bytes / 16 / 256);
        lab_report("memcpy, in a graph", shape, 2.0 * bytes, lab_time([&](cudaStream_t s) {
                       cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, s);
                   }));
        lab_report("memcpy, in a stream", shape, 2.0 * bytes, stream_copy(to, from, bytes));
        lab_report("kernel, 1 piece", shape, 2.0 * bytes, lab_time([&](cudaStream_t s) {
                       copy_kernel<1><<<grid, 256, 0, s>>>((uint4 *)to, (const uint4 *)from);
                   }));
        lab_report("kernel, 4 pieces", shape, 2.0 * bytes, lab_time([&](cudaStream_t s) {
                       copy_kernel<4><<<grid / 4, 256, 0, s>>>((uint4 *)to, (const uint4 *)from);
                   }));
        lab_report("write only", shape, 1.0 * bytes, lab_time([&](cudaStream_t s) {
                       write_kernel<<<grid / 4, 256, 0, s>>>((uint4 *)to);
                   }));
        lab_report("memset", shape, 1.0 * bytes, lab_time([&](cudaStream_t s) { cudaMemsetAsync(to, 1, bytes, s); }));
        lab_report("read 2, write 1", shape, 1.5 * bytes, lab_time([&](cudaStream_t s) {
                       halve_kernel<<<grid / 4, 256, 0, s>>>((uint4 *)to, (const uint4 *)from);
                   }));
    }
    return 0;
}
