/* tensor.h - making, checking and walking borrowed matrix views. The type is public: fp8flow_ops.h. */
#ifndef F8_BASE_TENSOR_H
#define F8_BASE_TENSOR_H

#include "base/fp8.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Format of a tensor without its shape: what a recipe's edge asks for. */
typedef struct {
    fp8flow_dtype dtype;
    fp8flow_scaling scaling;
    fp8flow_layout layout;
} f8_tensor_format;

const char *f8_dtype_name(fp8flow_dtype dtype);       /* "e4m3" */
const char *f8_scaling_name(fp8flow_scaling scaling); /* "row128" */
const char *f8_layout_name(fp8flow_layout layout);    /* "rows" */

static inline int f8_is_fp8(fp8flow_dtype dtype)
{
    return dtype == FP8FLOW_E4M3 || dtype == FP8FLOW_E5M2;
}

static inline size_t f8_dtype_bytes(fp8flow_dtype dtype)
{
    return dtype == FP8FLOW_F32 ? 4 : dtype == FP8FLOW_BF16 ? 2 : 1;
}

/* A dense view: stride = cols (ROWS), rows (COLUMNS, group_rows 0) or group_rows. Memory is set by the caller. */
fp8flow_tensor f8_tensor_make(f8_tensor_format format, int64_t rows, int64_t cols, int64_t group_rows);

/* Shorthand for unscaled row-form matrices over existing memory. */
fp8flow_tensor f8_f32(float *data, int64_t rows, int64_t cols);
fp8flow_tensor f8_bf16(uint16_t *data, int64_t rows, int64_t cols);

/* Row blocks of the scale array (TILE128, COL128). */
int64_t f8_row_blocks(const fp8flow_tensor *t);

/* Row block of row r. */
static inline int64_t f8_row_block(const fp8flow_tensor *t, int64_t r)
{
    if (t->group_rows == 0) return r / 128;
    return r / t->group_rows * f8_ceil_div(t->group_rows, 128) + r % t->group_rows / 128;
}

/* Index of element (r, c) in data. */
static inline int64_t f8_element(const fp8flow_tensor *t, int64_t r, int64_t c)
{
    if (t->layout == FP8FLOW_ROWS) return r * t->stride + c;
    if (t->group_rows == 0) return c * t->stride + r;
    return (r / t->group_rows * t->cols + c) * t->stride + r % t->group_rows;
}

/* Index of the scale of element (r, c), which lies in group g (TENSOR only). */
static inline int64_t f8_scale_index(const fp8flow_tensor *t, int64_t r, int64_t c, int64_t g)
{
    switch (t->scaling) {
    case FP8FLOW_ROW128: return r * f8_ceil_div(t->cols, 128) + c / 128;
    case FP8FLOW_TILE128: return f8_row_block(t, r) * f8_ceil_div(t->cols, 128) + c / 128;
    case FP8FLOW_COL128: return f8_row_block(t, r) * t->cols + c;
    default: return g;
    }
}

/* Value of element (r, c) of any tensor, as FP32; g is its group (TENSOR only). For references and tests. */
float f8_value(const fp8flow_tensor *t, int64_t r, int64_t c, int64_t g);

/* Sanity of one view: pointers, enums, stride, format combination. `op` and `name` go into the message.
 * An empty tensor (rows or cols 0) may have NULL data. */
fp8flow_status f8_tensor_check(const char *op, const char *name, const fp8flow_tensor *t);

/* The groups of a call: the given ones, or one group that spans `rows`. `storage` backs the latter. */
typedef struct {
    int32_t offset[2], rows[1];
} f8_group_storage;
fp8flow_groups f8_groups_or_all(const fp8flow_groups *groups, int64_t rows, f8_group_storage *storage);

/* What can be said of groups without reading their arrays: count and pointers; `capacity` rows fit into int32. */
fp8flow_status f8_groups_check_arrays(const char *op, const fp8flow_groups *groups, int64_t capacity);

/* The same, and groups are ascending, fit into `capacity` rows, and start at multiples of `align`. Host memory. */
fp8flow_status f8_groups_check(const char *op, const fp8flow_groups *groups, int64_t capacity, int64_t align);

#ifdef __cplusplus
}
#endif

#endif
