/* add.cu - CUDA side of add. Contract: fp8flow_ops.h. CPU side: add.c.
 *
 * One thread adds eight neighbouring elements, 16 bytes of BF16 or 32 of FP32 per operand, where pointers and strides
 * allow it, else one. Traffic: each operand once.
 */
#include "ops/launch.cuh"
#include "ops/nan.h"
#include "ops/warp.cuh"

enum { THREADS = 256, ELEMENTS = 8 };

__device__ static float element(const fp8flow_tensor &t, int64_t index)
{
    return t.dtype == FP8FLOW_F32 ? ((const float *)t.data)[index] : f8_bf16_decode(((const uint16_t *)t.data)[index]);
}

__global__ static void add_kernel(fp8flow_tensor a, fp8flow_tensor b, fp8flow_tensor y)
{
    int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (index >= y.rows * y.cols) return;
    int64_t row = index / y.cols, col = index % y.cols;
    float sum = f8_canonical(element(a, row * a.stride + col) + element(b, row * b.stride + col));
    if (y.dtype == FP8FLOW_F32) ((float *)y.data)[row * y.stride + col] = sum;
    else ((uint16_t *)y.data)[row * y.stride + col] = f8_bf16_encode(sum);
}

__device__ static uint32_t add_pairs(uint32_t a, uint32_t b)
{
    return f8_bf16_pair(f8_bf16_low(a) + f8_bf16_low(b), f8_bf16_high(a) + f8_bf16_high(b));
}

/* All BF16, lines of whole 16-byte pieces. */
__global__ static void add_bf16_kernel(fp8flow_tensor a, fp8flow_tensor b, fp8flow_tensor y)
{
    int64_t pieces = y.cols / ELEMENTS, index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (index >= y.rows * pieces) return;
    int64_t row = index / pieces, col = index % pieces * ELEMENTS;
    uint4 p = f8_load16((const uint16_t *)a.data + row * a.stride + col);
    uint4 q = f8_load16((const uint16_t *)b.data + row * b.stride + col);
    uint4 sum = make_uint4(add_pairs(p.x, q.x), add_pairs(p.y, q.y), add_pairs(p.z, q.z), add_pairs(p.w, q.w));
    f8_store16((uint16_t *)y.data + row * y.stride + col, sum);
}

static bool is_wide(const fp8flow_tensor *t)
{
    return t->dtype == FP8FLOW_BF16 && t->cols % ELEMENTS == 0 && f8_aligned16(t->data, t->stride * 2);
}

extern "C" fp8flow_status f8_cuda_add(fp8flow_context *c, const fp8flow_add_args *a)
{
    int64_t count = a->y->rows * a->y->cols;
    if (count == 0) return FP8FLOW_OK;
    if (is_wide(a->a) && is_wide(a->b) && is_wide(a->y))
        add_bf16_kernel<<<f8_grid(count / ELEMENTS, THREADS), THREADS, 0, f8_stream(c)>>>(*a->a, *a->b, *a->y);
    else add_kernel<<<f8_grid(count, THREADS), THREADS, 0, f8_stream(c)>>>(*a->a, *a->b, *a->y);
    return f8_launched("add");
}
