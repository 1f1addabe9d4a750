/* device_cuda.c - memory, streams, events and graphs of a Hopper GPU, through the CUDA runtime.
 *
 * The runtime is linked statically and finds the driver when it is first called: the same program runs where there
 * is no GPU. A failed kernel shows at the next call that looks, synchronize at the latest.
 */
#include "device/device.h"

#include <cuda_runtime_api.h>
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define HAS_NVTX 1
#endif
#include <stdio.h>

/* A reported error is taken back from the runtime, which would show it again at the next launch. */
static fp8flow_status check(const char *what, cudaError_t error)
{
    if (error == cudaSuccess) return FP8FLOW_OK;
    (void)cudaGetLastError();
    return F8_FAIL(EBACKEND, "cuda: %s: %s", what, cudaGetErrorString(error));
}

#define CUDA_TRY(what, call) F8_TRY(check(what, call))

static fp8flow_status cuda_alloc(size_t bytes, void **memory)
{
    cudaError_t error = cudaMalloc(memory, bytes ? bytes : 1);
    if (error == cudaSuccess) return FP8FLOW_OK;
    (void)cudaGetLastError();
    F8_REQUIRE(error == cudaErrorMemoryAllocation, EBACKEND, "cuda: memory: %s", cudaGetErrorString(error));
    size_t available = 0, total = 0;
    (void)cudaMemGetInfo(&available, &total);
    return F8_FAIL(ENOMEM, "memory: the GPU refused %zu bytes, %zu of %zu are free", bytes, available, total);
}

static void cuda_free(void *memory)
{
    (void)cudaFree(memory);
}

static fp8flow_status cuda_alloc_host(size_t bytes, void **memory)
{
    cudaError_t error = cudaMallocHost(memory, bytes ? bytes : 1);
    if (error == cudaSuccess) return FP8FLOW_OK;
    (void)cudaGetLastError();
    F8_REQUIRE(error == cudaErrorMemoryAllocation, EBACKEND, "cuda: host memory: %s", cudaGetErrorString(error));
    return F8_FAIL(ENOMEM, "memory: the system refused %zu bytes that stay in place for the GPU", bytes);
}

static void cuda_free_host(void *memory)
{
    (void)cudaFreeHost(memory);
}

static fp8flow_status cuda_stream_create(void **stream)
{
    CUDA_TRY("stream", cudaStreamCreateWithFlags((cudaStream_t *)stream, cudaStreamNonBlocking));
    return FP8FLOW_OK;
}

static void cuda_stream_destroy(void *stream)
{
    (void)cudaStreamDestroy(stream);
}

static int is_device_memory(const void *memory)
{
    struct cudaPointerAttributes attributes;
    if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return attributes.type == cudaMemoryTypeDevice;
}

static fp8flow_status cuda_copy(void *stream, void *to, const void *from, size_t bytes)
{
    if (bytes == 0) return FP8FLOW_OK;
    CUDA_TRY("copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
    if (!is_device_memory(to) || !is_device_memory(from)) CUDA_TRY("copy", cudaStreamSynchronize(stream));
    return FP8FLOW_OK;
}

static fp8flow_status cuda_copy_out(void *stream, void *to, const void *from, size_t bytes)
{
    if (bytes) CUDA_TRY("copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream));
    return FP8FLOW_OK;
}

static fp8flow_status cuda_copy_rows(void *stream, const f8_row_copy *c)
{
    if (c->rows == 0 || c->row_bytes == 0) return FP8FLOW_OK;
    CUDA_TRY("copy", cudaMemcpy2DAsync(c->to, c->to_stride, c->from, c->from_stride, c->row_bytes, c->rows,
                                       cudaMemcpyDeviceToDevice, stream));
    return FP8FLOW_OK;
}

static fp8flow_status cuda_fill(void *stream, void *memory, int byte, size_t bytes)
{
    if (bytes) CUDA_TRY("fill", cudaMemsetAsync(memory, byte, bytes, stream));
    return FP8FLOW_OK;
}

static fp8flow_status cuda_synchronize(void *stream)
{
    CUDA_TRY("synchronize", cudaStreamSynchronize(stream));
    return FP8FLOW_OK;
}

/* ---- Time ---- */

static fp8flow_status cuda_event_create(void **event)
{
    CUDA_TRY("event", cudaEventCreate((cudaEvent_t *)event));
    return FP8FLOW_OK;
}

static void cuda_event_destroy(void *event)
{
    (void)cudaEventDestroy(event);
}

/* In a graph, an event must be marked as one that the host will look at. */
static fp8flow_status cuda_event_record(void *event, void *stream)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    CUDA_TRY("event", cudaStreamIsCapturing(stream, &status));
    unsigned flags = status == cudaStreamCaptureStatusActive ? cudaEventRecordExternal : cudaEventRecordDefault;
    CUDA_TRY("event", cudaEventRecordWithFlags(event, stream, flags));
    return FP8FLOW_OK;
}

static fp8flow_status cuda_event_wait(void *event)
{
    CUDA_TRY("event", cudaEventSynchronize(event));
    return FP8FLOW_OK;
}

static fp8flow_status cuda_event_elapsed(void *start, void *stop, double *milliseconds)
{
    float elapsed = 0;
    CUDA_TRY("event", cudaEventSynchronize(stop));
    CUDA_TRY("event", cudaEventElapsedTime(&elapsed, start, stop));
    *milliseconds = (double)elapsed;
    return FP8FLOW_OK;
}

/* ---- Graphs ---- */

static fp8flow_status cuda_graph_begin(void *stream)
{
    CUDA_TRY("graph", cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    return FP8FLOW_OK;
}

static fp8flow_status cuda_graph_end(void *stream, void **graph)
{
    cudaGraph_t recorded = NULL;
    CUDA_TRY("graph", cudaStreamEndCapture(stream, &recorded));
    cudaError_t error = cudaGraphInstantiate((cudaGraphExec_t *)graph, recorded, 0);
    (void)cudaGraphDestroy(recorded);
    CUDA_TRY("graph", error);
    return FP8FLOW_OK;
}

static fp8flow_status cuda_graph_launch(void *graph, void *stream)
{
    CUDA_TRY("graph", cudaGraphLaunch(graph, stream));
    return FP8FLOW_OK;
}

static void cuda_graph_destroy(void *graph)
{
    (void)cudaGraphExecDestroy(graph);
}

/* ---- Ranges: NVTX, a header that looks for a profiler at run time and does nothing without one ---- */

static void cuda_range_begin(const char *name)
{
#if defined(HAS_NVTX)
    (void)nvtxRangePushA(name);
#else
    (void)name;
#endif
}

static void cuda_range_end(void)
{
#if defined(HAS_NVTX)
    (void)nvtxRangePop();
#endif
}

/* ---- The device itself ---- */

static fp8flow_status cuda_describe(fp8flow_device_info *info)
{
    int index = 0, driver = 0;
    struct cudaDeviceProp properties;
    size_t available = 0, total = 0;
    CUDA_TRY("device", cudaGetDevice(&index));
    CUDA_TRY("device", cudaGetDeviceProperties(&properties, index));
    CUDA_TRY("device", cudaDriverGetVersion(&driver));
    CUDA_TRY("device", cudaMemGetInfo(&available, &total));
    *info = (fp8flow_device_info){ .memory_bytes = (int64_t)total,
                                   .free_bytes = (int64_t)available,
                                   .cache_bytes = properties.l2CacheSize,
                                   .num_multiprocessors = properties.multiProcessorCount,
                                   .cuda_version = driver };
    (void)snprintf(info->name, sizeof info->name, "%.100s", properties.name);
    CUDA_TRY("device", cudaDeviceGetPCIBusId(info->bus_id, (int)sizeof info->bus_id, index));
    return FP8FLOW_OK;
}

static const f8_device cuda_device = { .name = "cuda",
                                       .is_host = 0,
                                       .alloc = cuda_alloc,
                                       .free = cuda_free,
                                       .alloc_host = cuda_alloc_host,
                                       .free_host = cuda_free_host,
                                       .stream_create = cuda_stream_create,
                                       .stream_destroy = cuda_stream_destroy,
                                       .copy = cuda_copy,
                                       .copy_out = cuda_copy_out,
                                       .copy_rows = cuda_copy_rows,
                                       .fill = cuda_fill,
                                       .synchronize = cuda_synchronize,
                                       .event_create = cuda_event_create,
                                       .event_destroy = cuda_event_destroy,
                                       .event_record = cuda_event_record,
                                       .event_wait = cuda_event_wait,
                                       .event_elapsed = cuda_event_elapsed,
                                       .graph_begin = cuda_graph_begin,
                                       .graph_end = cuda_graph_end,
                                       .graph_launch = cuda_graph_launch,
                                       .graph_destroy = cuda_graph_destroy,
                                       .range_begin = cuda_range_begin,
                                       .range_end = cuda_range_end,
                                       .describe = cuda_describe };

/* The kernels are machine code for compute capability 9.0 with no other version to fall back to. */
static fp8flow_status find_device(int index)
{
    int count = 0, major = 0, minor = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) (void)cudaGetLastError();
    F8_REQUIRE(error == cudaSuccess, ENOSYS, "cuda: %s", cudaGetErrorString(error));
    F8_REQUIRE(index >= 0 && index < count, ENOSYS, "cuda: no device %d, this machine has %d", index, count);
    CUDA_TRY("device", cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    CUDA_TRY("device", cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
    F8_REQUIRE(major == 9 && minor == 0, ENOSYS,
               "cuda: device %d has compute capability %d.%d, the kernels are for 9.0 (Hopper)", index, major, minor);
    return FP8FLOW_OK;
}

fp8flow_status f8_device_cuda(int index, const f8_device **device)
{
    F8_TRY(find_device(index));
    CUDA_TRY("device", cudaSetDevice(index));
    *device = &cuda_device;
    return FP8FLOW_OK;
}

int f8_device_cuda_count(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    (void)cudaGetLastError();
    return 0;
}

const char *f8_device_cuda_summary(int *usable)
{
    static char text[160];
    struct cudaDeviceProp properties;
    *usable = find_device(0) == FP8FLOW_OK && cudaGetDeviceProperties(&properties, 0) == cudaSuccess;
    if (*usable)
        (void)snprintf(text, sizeof text, "%.100s, %.0f GB, %d multiprocessors", properties.name,
                       (double)properties.totalGlobalMem * 1e-9, properties.multiProcessorCount);
    else (void)snprintf(text, sizeof text, "%s", fp8flow_last_error());
    return text;
}
