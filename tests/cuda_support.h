/* cuda_support.h - what the programs that need a GPU share: the context, device memory, tensors in it.
 *
 * With FP8FLOW_TEST_DEVICE=mirror the CPU takes the GPU's place, so that the programs themselves can be tested.
 */
#ifndef F8_TESTS_CUDA_SUPPORT_H
#define F8_TESTS_CUDA_SUPPORT_H

#include "support.h"

#include <pthread.h>

#include "fp8flow_device.h"
#include "ops/block.h"
#include "ops/ops.h"

static inline int has_gpu(void)
{
    return tested_device() != TEST_ON_MIRROR;
}

static inline fp8flow_backend device_backend(void)
{
    return has_gpu() ? FP8FLOW_CUDA : FP8FLOW_CPU;
}

static f8_device far_device;

static inline fp8flow_status describe_far_device(fp8flow_device_info *info)
{
    *info = (fp8flow_device_info){ .name = "far", .memory_bytes = 1LL << 40, .free_bytes = 1LL << 40 };
    return FP8FLOW_OK;
}

static inline void make_far_device(void)
{
    far_device = *f8_device_cpu();
    far_device.is_host = 0;
    far_device.describe = describe_far_device;
}

/* A context of a rank, for any thread. Without a GPU: the CPU's operators, on memory that must be taken for that of a
 * device. */
static inline fp8flow_status create_device_context(const fp8flow_context_options *options, fp8flow_context **context)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    F8_TRY(fp8flow_context_create(options, context));
    pthread_once(&once, make_far_device);
    if (!has_gpu()) (*context)->device = &far_device;
    return FP8FLOW_OK;
}

/* The context that is tested; destroyed with the program. */
static inline fp8flow_context *device_context(void)
{
    static fp8flow_context *context;
    fp8flow_context_options options = { .backend = device_backend(), .num_threads = 1 };
    if (!context) assert_ok(fp8flow_context_create(&options, &context));
    return context;
}

/* `bytes` bytes of a context's memory, filled with 0xFF. */
static inline void *draw(fp8flow_context *c, int64_t bytes)
{
    void *memory;
    assert_ok(fp8flow_memory_alloc(c, (size_t)bytes, &memory));
    assert_ok(fp8flow_memory_fill(c, memory, 0xFF, (size_t)bytes));
    return memory;
}

static inline void *draw_copy(fp8flow_context *c, const void *host, int64_t bytes)
{
    void *memory = draw(c, bytes);
    assert_ok(fp8flow_memory_copy(c, memory, host, (size_t)bytes));
    return memory;
}

/* Bytes from any memory of the context, in host memory that the caller frees. */
static inline void *fetch(fp8flow_context *c, const void *memory, int64_t bytes)
{
    void *host = poisoned(bytes);
    assert_ok(fp8flow_memory_copy(c, host, memory, (size_t)bytes));
    return host;
}

static inline void assert_device_bytes(fp8flow_context *c, const void *memory, const void *expected, int64_t bytes)
{
    void *host = fetch(c, memory, bytes);
    if (bytes) assert_memory_equal(host, expected, (size_t)bytes);
    free(host);
}

/* A tensor in a context's memory, poisoned. */
static inline fp8flow_tensor draw_tensor(fp8flow_context *c, f8_tensor_format format, int64_t rows, int64_t cols)
{
    fp8flow_tensor t = f8_tensor_make(format, rows, cols, 0);
    t.data = draw(c, fp8flow_tensor_data_bytes(&t));
    if (format.scaling != FP8FLOW_UNSCALED) t.scale = draw(c, fp8flow_tensor_scale_bytes(&t, 1));
    return t;
}

static inline fp8flow_tensor draw_tensor_copy(fp8flow_context *c, const fp8flow_tensor *host)
{
    fp8flow_tensor t = *host;
    t.data = draw_copy(c, host->data, fp8flow_tensor_data_bytes(host));
    if (t.scaling != FP8FLOW_UNSCALED) t.scale = draw_copy(c, host->scale, fp8flow_tensor_scale_bytes(host, 1));
    return t;
}

static inline void drop_tensor(fp8flow_context *c, fp8flow_tensor *t)
{
    fp8flow_memory_free(c, t->data);
    fp8flow_memory_free(c, t->scale);
    *t = (fp8flow_tensor){ 0 };
}

static inline void assert_device_tensor(fp8flow_context *c, const fp8flow_tensor *t, const fp8flow_tensor *expected)
{
    assert_device_bytes(c, t->data, expected->data, fp8flow_tensor_data_bytes(expected));
    if (t->scale) assert_device_bytes(c, t->scale, expected->scale, fp8flow_tensor_scale_bytes(expected, 1));
}

/* Norm of the difference over that of `expected`; BF16 or F32 numbers in host memory. */
static inline double relative_distance(const void *got, const void *expected, int64_t bytes, fp8flow_dtype dtype)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < bytes / (int64_t)f8_dtype_bytes(dtype); i++) {
        double a, b;
        if (dtype == FP8FLOW_BF16) {
            a = (double)f8_bf16_decode(((const uint16_t *)got)[i]);
            b = (double)f8_bf16_decode(((const uint16_t *)expected)[i]);
        } else {
            a = (double)((const float *)got)[i];
            b = (double)((const float *)expected)[i];
        }
        difference += (a - b) * (a - b);
        size += b * b;
    }
    return size > 0 ? sqrt(difference / size) : sqrt(difference);
}

/* Bits of BF16 numbers between 2^-20 and 2^11, now and then 0, NaN or Inf: cheap, for large tensors. */
static inline void fill_fast(uint16_t *values, int64_t count, uint64_t seed)
{
    static const uint16_t special[4] = { 0x0000, 0x8000, 0x7FC0, 0xFF80 };
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = ((uint64_t)i + seed) * 0x9E3779B97F4A7C15u;
        bits = (bits ^ bits >> 29) * 0xBF58476D1CE4E5B9u;
        bits ^= bits >> 32;
        uint16_t exponent = (uint16_t)(107 + (bits >> 8 & 31));
        values[i] = (uint16_t)((bits & 1) << 15 | (uint64_t)(exponent << 7) | (bits >> 16 & 127));
        if ((bits >> 24 & 0xFFF) == 0) values[i] = special[bits & 3];
    }
}

static const f8_tensor_format bf16_rows = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
static const f8_tensor_format row128 = { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS };
static const f8_tensor_format tile128 = { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_COLUMNS };
static const f8_tensor_format col128 = { FP8FLOW_E4M3, FP8FLOW_COL128, FP8FLOW_COLUMNS };

#endif
