/* tensor.c - see tensor.h. */
#include "base/tensor.h"

const char *f8_dtype_name(fp8flow_dtype dtype)
{
    static const char *const names[] = { "f32", "bf16", "e4m3", "e5m2" };
    return (unsigned)dtype < 4 ? names[dtype] : "?";
}

const char *f8_scaling_name(fp8flow_scaling scaling)
{
    static const char *const names[] = { "unscaled", "row128", "tile128", "col128", "tensor" };
    return (unsigned)scaling < 5 ? names[scaling] : "?";
}

const char *f8_layout_name(fp8flow_layout layout)
{
    return layout == FP8FLOW_ROWS ? "rows" : layout == FP8FLOW_COLUMNS ? "columns" : "?";
}

fp8flow_tensor f8_tensor_make(f8_tensor_format format, int64_t rows, int64_t cols, int64_t group_rows)
{
    int64_t stride = format.layout == FP8FLOW_ROWS ? cols : group_rows ? group_rows : rows;
    return (fp8flow_tensor){ .rows = rows,
                             .cols = cols,
                             .stride = stride,
                             .group_rows = group_rows,
                             .dtype = format.dtype,
                             .scaling = format.scaling,
                             .layout = format.layout };
}

static fp8flow_tensor dense_rows(fp8flow_dtype dtype, void *data, int64_t rows, int64_t cols)
{
    fp8flow_tensor t = f8_tensor_make((f8_tensor_format){ dtype, FP8FLOW_UNSCALED, FP8FLOW_ROWS }, rows, cols, 0);
    t.data = data;
    return t;
}

fp8flow_tensor f8_f32(float *data, int64_t rows, int64_t cols)
{
    return dense_rows(FP8FLOW_F32, data, rows, cols);
}

fp8flow_tensor f8_bf16(uint16_t *data, int64_t rows, int64_t cols)
{
    return dense_rows(FP8FLOW_BF16, data, rows, cols);
}

int64_t f8_row_blocks(const fp8flow_tensor *t)
{
    if (t->group_rows == 0) return f8_ceil_div(t->rows, 128);
    return t->rows / t->group_rows * f8_ceil_div(t->group_rows, 128);
}

/* a * b, or -1 on overflow or if a factor is negative. */
static int64_t product(int64_t a, int64_t b)
{
    int64_t result;
    if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &result)) return -1;
    return result;
}

static int shape_is_valid(const fp8flow_tensor *t)
{
    if (t->rows < 0 || t->cols < 0 || t->group_rows < 0) return 0;
    if (t->rows > INT64_MAX / 4 || t->cols > INT64_MAX / 4) return 0;
    return t->group_rows == 0 || t->rows % t->group_rows == 0;
}

static int enums_are_valid(const fp8flow_tensor *t)
{
    return (unsigned)t->dtype <= FP8FLOW_E5M2 && (unsigned)t->scaling <= FP8FLOW_TENSOR &&
           (unsigned)t->layout <= FP8FLOW_COLUMNS;
}

int64_t fp8flow_tensor_data_bytes(const fp8flow_tensor *t)
{
    if (!t || !enums_are_valid(t) || !shape_is_valid(t)) return -1;
    int64_t lines = t->rows;
    if (t->layout == FP8FLOW_COLUMNS) lines = t->group_rows ? product(t->rows / t->group_rows, t->cols) : t->cols;
    return product(product(lines, t->stride), (int64_t)f8_dtype_bytes(t->dtype));
}

int64_t fp8flow_tensor_scale_bytes(const fp8flow_tensor *t, int64_t groups)
{
    if (!t || !enums_are_valid(t) || !shape_is_valid(t)) return -1;
    int64_t col_blocks = f8_ceil_div(t->cols, 128);
    switch (t->scaling) {
    case FP8FLOW_UNSCALED: return 0;
    case FP8FLOW_ROW128: return product(t->rows, col_blocks);
    case FP8FLOW_TILE128: return product(f8_row_blocks(t), col_blocks);
    case FP8FLOW_COL128: return product(f8_row_blocks(t), t->cols);
    case FP8FLOW_TENSOR: return product(groups, 4);
    }
    return -1;
}

float f8_value(const fp8flow_tensor *t, int64_t r, int64_t c, int64_t g)
{
    int64_t i = f8_element(t, r, c);
    if (t->dtype == FP8FLOW_F32) return ((const float *)t->data)[i];
    if (t->dtype == FP8FLOW_BF16) return f8_bf16_decode(((const uint16_t *)t->data)[i]);
    float code = f8_decode(((const uint8_t *)t->data)[i], t->dtype);
    int64_t s = f8_scale_index(t, r, c, g);
    if (t->scaling == FP8FLOW_TENSOR) return code * ((const float *)t->scale)[s];
    return code * f8_scale_decode(((const uint8_t *)t->scale)[s]);
}

static const char *format_error(const fp8flow_tensor *t)
{
    int fp8 = f8_is_fp8(t->dtype);
    if (!enums_are_valid(t)) return "unknown dtype, scaling or layout";
    if (fp8 && t->scaling == FP8FLOW_UNSCALED) return "an FP8 tensor needs a scaling";
    if (!fp8 && t->scaling != FP8FLOW_UNSCALED) return "only FP8 tensors have scales";
    if (t->scaling == FP8FLOW_ROW128 && t->layout != FP8FLOW_ROWS) return "row128 needs the rows layout";
    if (t->scaling == FP8FLOW_COL128 && t->layout != FP8FLOW_COLUMNS) return "col128 needs the columns layout";
    return NULL;
}

fp8flow_status f8_tensor_check(const char *op, const char *name, const fp8flow_tensor *t)
{
    F8_REQUIRE(t, EINVAL, "%s: %s is NULL", op, name);
    const char *error = format_error(t);
    F8_REQUIRE(!error, EINVAL, "%s: %s (%s, %s, %s): %s", op, name, f8_dtype_name(t->dtype),
               f8_scaling_name(t->scaling), f8_layout_name(t->layout), error);
    F8_REQUIRE(shape_is_valid(t), ESHAPE, "%s: %s [%lld, %lld] with %lld rows per expert is not a shape", op, name,
               (long long)t->rows, (long long)t->cols, (long long)t->group_rows);
    int64_t line = t->layout == FP8FLOW_ROWS ? t->cols : t->group_rows ? t->group_rows : t->rows;
    F8_REQUIRE(t->stride >= line, ESHAPE, "%s: %s has stride %lld, less than %lld", op, name, (long long)t->stride,
               (long long)line);
    F8_REQUIRE(fp8flow_tensor_data_bytes(t) >= 0, ESHAPE, "%s: %s [%lld, %lld] has too many bytes", op, name,
               (long long)t->rows, (long long)t->cols);
    int empty = t->rows == 0 || t->cols == 0;
    F8_REQUIRE(empty || t->data, EINVAL, "%s: %s has no data", op, name);
    F8_REQUIRE(empty || t->scaling == FP8FLOW_UNSCALED || t->scale, EINVAL, "%s: %s has no scales", op, name);
    return FP8FLOW_OK;
}

fp8flow_groups f8_groups_or_all(const fp8flow_groups *groups, int64_t rows, f8_group_storage *storage)
{
    if (groups) return *groups;
    *storage = (f8_group_storage){ { 0, (int32_t)rows }, { (int32_t)rows } };
    return (fp8flow_groups){ 1, storage->offset, storage->rows };
}

fp8flow_status f8_groups_check_arrays(const char *op, const fp8flow_groups *groups, int64_t capacity)
{
    F8_REQUIRE(capacity <= INT32_MAX, ESHAPE, "%s: %lld rows, at most 2^31-1 are possible", op, (long long)capacity);
    F8_REQUIRE(!groups || (groups->count >= 0 && (groups->count == 0 || (groups->offset && groups->rows))), EINVAL,
               "%s: groups: count %lld or a NULL array", op, (long long)groups->count);
    return FP8FLOW_OK;
}

fp8flow_status f8_groups_check(const char *op, const fp8flow_groups *groups, int64_t capacity, int64_t align)
{
    F8_TRY(f8_groups_check_arrays(op, groups, capacity));
    for (int64_t g = 0; groups && g < groups->count; g++) {
        int32_t begin = groups->offset[g], end = groups->offset[g + 1], rows = groups->rows[g];
        F8_REQUIRE(begin >= 0 && begin <= end && end <= capacity, ESHAPE, "%s: expert %lld has rows %d to %d of %lld",
                   op, (long long)g, begin, end, (long long)capacity);
        F8_REQUIRE(rows >= 0 && rows <= end - begin, ESHAPE, "%s: expert %lld uses %d of its %d rows", op, (long long)g,
                   rows, end - begin);
        F8_REQUIRE(begin % align == 0, ESHAPE, "%s: expert %lld starts at row %d, not a multiple of %lld", op,
                   (long long)g, begin, (long long)align);
    }
    return FP8FLOW_OK;
}
