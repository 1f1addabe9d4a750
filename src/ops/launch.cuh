/* launch.cuh - what every launcher needs: the stream, the grid, scratch memory, and the check after a launch.
 *
 * A launcher reads the arguments of the call, which are host memory, and puts kernels on the context's stream. It
 * never waits and never allocates; sizes that only the device knows are read by the kernels. Tensors go to kernels
 * by value. A grid of zero blocks is an error in CUDA: launchers return before it.
 */
#ifndef F8_OPS_LAUNCH_CUH
#define F8_OPS_LAUNCH_CUH

#include <cuda_runtime.h>

#include "ops/ops.h"

static inline cudaStream_t f8_stream(const fp8flow_context *c)
{
    return (cudaStream_t)c->stream;
}

/* F8_CUDA_SCRATCH_BYTES of device memory, lost at the next operator call. */
static inline void *f8_cuda_scratch(const fp8flow_context *c)
{
    return c->scratch;
}

/* Blocks of a grid over `count` items, `per_block` each. */
static inline unsigned f8_grid(int64_t count, int64_t per_block)
{
    return (unsigned)f8_ceil_div(count, per_block);
}

/* Dynamic shared memory that every kernel may have; all of a block's. */
enum { F8_PLAIN_SHARED_BYTES = 48 << 10, F8_SHARED_BYTES = 227 << 10 };

/* To be called before a launch with `bytes` of dynamic shared memory; what fails here shows at f8_launched. A kernel is
 * allowed all that there is: the allowance is the process's, and another thread may be about to launch it with more. */
template <class Kernel> static inline void f8_allow_shared(Kernel *kernel, int bytes)
{
    cudaFuncAttributes now;
    if (bytes <= F8_PLAIN_SHARED_BYTES || cudaFuncGetAttributes(&now, kernel) != cudaSuccess) return;
    if (now.maxDynamicSharedSizeBytes < bytes)
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             F8_SHARED_BYTES - (int)now.sharedSizeBytes);
}

/* Clusters of `blocks` blocks for a launch, whose configuration points to `attribute` from here on. */
static inline void f8_use_clusters(cudaLaunchConfig_t *config, cudaLaunchAttribute *attribute, int blocks)
{
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim = { (unsigned)blocks, 1, 1 };
    config->attrs = attribute;
    config->numAttrs = 1;
}

/* What the launches before said; a failure of the kernels themselves shows at fp8flow_synchronize. */
static inline fp8flow_status f8_launched(const char *op)
{
    cudaError_t error = cudaGetLastError();
    F8_REQUIRE(error == cudaSuccess, EBACKEND, "%s: cuda: %s", op, cudaGetErrorString(error));
    return FP8FLOW_OK;
}

/* Multiprocessors of the current device: the blocks of a kernel that fills each of them once. */
static inline fp8flow_status f8_multiprocessors(const char *op, int *count)
{
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
    F8_REQUIRE(error == cudaSuccess, EBACKEND, "%s: cuda: %s", op, cudaGetErrorString(error));
    return FP8FLOW_OK;
}

#endif
