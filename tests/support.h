/* support.h - what the test programs share: cmocka, contexts, data generators, poisoned buffers. */
#ifndef F8_TESTS_SUPPORT_H
#define F8_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fp8.h"
#include "base/rng.h"
#include "base/status.h"
#include "base/tensor.h"
#include "fp8flow_ops.h"
#include "mirror.h"

/* The call must succeed; prints the library's message otherwise. */
#define assert_ok(call)                                                             \
    do {                                                                            \
        fp8flow_status status_ = (call);                                            \
        if (status_ != FP8FLOW_OK) fail_msg("%s: %s", #call, fp8flow_last_error()); \
    } while (0)

/* The call must fail with this status, and its message must contain `text`. */
#define assert_fails(call, status, text)                                                      \
    do {                                                                                      \
        fp8flow_status status_ = (call);                                                      \
        if (status_ != (status)) fail_msg("%s: got %s", #call, fp8flow_status_name(status_)); \
        if (!strstr(fp8flow_last_error(), (text)))                                            \
            fail_msg("%s: message \"%s\" lacks \"%s\"", #call, fp8flow_last_error(), (text)); \
    } while (0)

static inline fp8flow_context *make_context(fp8flow_backend backend, int32_t num_threads)
{
    fp8flow_context *context = NULL;
    fp8flow_context_options options = { .backend = backend, .num_threads = num_threads };
    assert_ok(test_context_create(&options, &context));
    return context;
}

/* Leave the test where the device behind FP8FLOW_CPU cannot do what it is about. */
static inline void skip_where(int cannot, const char *why)
{
    if (!cannot) return;
    print_message("skipped: %s\n", why);
    skip();
}

static inline void skip_on_cuda(const char *why)
{
    skip_where(tested_device() == TEST_ON_CUDA, why);
}

/* Exactly `bytes` bytes from malloc, so that ASan sees an overrun, filled with 0xFF (NaN in every format). */
static inline void *poisoned(int64_t bytes)
{
    void *memory = malloc(bytes > 0 ? (size_t)bytes : 1);
    assert_non_null(memory);
    memset(memory, 0xFF, bytes > 0 ? (size_t)bytes : 1);
    return memory;
}

/* A tensor with poisoned memory of its own; release with free_tensor. `groups`: scales of TENSOR. */
static inline fp8flow_tensor make_tensor(f8_tensor_format format, int64_t rows, int64_t cols, int64_t group_rows,
                                         int64_t groups)
{
    fp8flow_tensor t = f8_tensor_make(format, rows, cols, group_rows);
    t.data = poisoned(fp8flow_tensor_data_bytes(&t));
    t.scale = format.scaling == FP8FLOW_UNSCALED ? NULL : poisoned(fp8flow_tensor_scale_bytes(&t, groups));
    return t;
}

static inline void free_tensor(fp8flow_tensor *t)
{
    free(t->data);
    free(t->scale);
    *t = (fp8flow_tensor){ 0 };
}

static inline void assert_same_tensor(const fp8flow_tensor *a, const fp8flow_tensor *b, int64_t groups)
{
    int64_t data = fp8flow_tensor_data_bytes(a), scale = fp8flow_tensor_scale_bytes(a, groups);
    assert_int_equal(data, fp8flow_tensor_data_bytes(b));
    if (data) assert_memory_equal(a->data, b->data, (size_t)data);
    if (scale > 0) assert_memory_equal(a->scale, b->scale, (size_t)scale);
}

/* Kinds of test data. Every class E operator must agree with its reference on all of them. */
typedef enum {
    DATA_NORMAL,         /* N(0, 1) */
    DATA_HEAVY_TAILED,   /* rows scaled by 2^u, u in -20..20: every shift of the transpose occurs */
    DATA_OUTLIERS,       /* N(0, 1) with every 17th column scaled by 2^12 */
    DATA_ZERO_BLOCKS,    /* N(0, 1) with all-zero rows and columns, and -0 */
    DATA_SPECIAL,        /* N(0, 1) with NaN, Inf, -Inf, -0, subnormals, largest finite values sprinkled in */
    DATA_SMALL_INTEGERS, /* integers -3..3 */
    NUM_DATA_KINDS
} data_kind;

static inline float test_value(data_kind kind, uint64_t seed, int64_t row, int64_t col)
{
    static const uint32_t special[8] = { 0x7FC00000u, 0x7F800000u, 0xFF800000u, 0x80000000u,
                                         0x00010000u, 0x80400000u, 0x7F7F0000u, 0xFF7F0000u };
    uint64_t index = (uint64_t)row * 1000003u + (uint64_t)col;
    float normal = f8_normal(seed, 1, index);
    uint64_t row_bits = f8_random(seed, 2, (uint64_t)row), bits = f8_random(seed, 3, index);
    switch (kind) {
    case DATA_HEAVY_TAILED: return ldexpf(normal, (int)(row_bits % 41) - 20);
    case DATA_OUTLIERS: return col % 17 == 5 ? normal * 4096.0f : normal;
    case DATA_ZERO_BLOCKS: return row_bits % 3 == 0 || col % 5 == 1 ? (bits & 1 ? -0.0f : 0.0f) : normal;
    case DATA_SPECIAL: return bits % 31 == 0 ? f8_from_bits(special[(bits >> 32) % 8]) : normal;
    case DATA_SMALL_INTEGERS: return (float)((int)(bits % 7) - 3);
    default: return normal;
    }
}

/* Fill a row-form F32 or BF16 tensor. */
static inline void fill_tensor(fp8flow_tensor *t, data_kind kind, uint64_t seed)
{
    for (int64_t r = 0; r < t->rows; r++)
        for (int64_t c = 0; c < t->cols; c++) {
            float x = test_value(kind, seed, r, c);
            if (t->dtype == FP8FLOW_F32) ((float *)t->data)[f8_element(t, r, c)] = x;
            else ((uint16_t *)t->data)[f8_element(t, r, c)] = f8_bf16_encode(x);
        }
}

/* Experts of the given sizes, each padded to a multiple of `align`; arrays owned by the caller's struct. */
typedef struct {
    int32_t offset[65], rows[64];
    fp8flow_groups groups;
} test_groups;

static inline int64_t make_groups(test_groups *g, const int32_t *sizes, int count, int align)
{
    int32_t at = 0;
    for (int i = 0; i < count; i++) {
        g->offset[i] = at;
        g->rows[i] = sizes[i];
        at += (sizes[i] + align - 1) / align * align;
    }
    g->offset[count] = at;
    g->groups = (fp8flow_groups){ count, g->offset, g->rows };
    return at;
}

#endif
