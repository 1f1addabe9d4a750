/* gemm.c - contract and reference of the grouped matrix products.
 *
 * The reference adds the products of 128 consecutive k in FP32, ascending, and adds these block sums in FP32,
 * ascending: what a tensor core does that leaves for FP32 registers every 128 of K.
 */
#include "ops/gemm.h"
#include "ops/gemm_config.h"

static fp8flow_status check_formats(const fp8flow_gemm_args *x)
{
    const fp8flow_tensor *a = x->a, *b = x->b, *c = x->c;
    F8_REQUIRE(c->layout == FP8FLOW_ROWS && !f8_is_fp8(c->dtype), EINVAL,
               "gemm: c is %s in %s, expected bf16 or f32 rows", f8_dtype_name(c->dtype), f8_layout_name(c->layout));
    int fp8 = f8_is_fp8(a->dtype), wgrad = x->product == FP8FLOW_WGRAD;
    F8_REQUIRE(c->dtype == FP8FLOW_F32 || !(wgrad || (fp8 && x->write == FP8FLOW_ACCUMULATE)), EINVAL,
               "gemm: c is bf16, but wgrad and adding a product of fp8 need f32");
    int block_pair = wgrad ? (a->scaling == FP8FLOW_TILE128 || a->scaling == FP8FLOW_COL128) && b->scaling == a->scaling
                           : a->scaling == FP8FLOW_ROW128 && b->scaling == FP8FLOW_TILE128;
    int tensor_pair = a->scaling == FP8FLOW_TENSOR && b->scaling == FP8FLOW_TENSOR;
    F8_REQUIRE(fp8 == f8_is_fp8(b->dtype) && (!fp8 || block_pair || tensor_pair), EINVAL,
               "gemm: a (%s, %s) and b (%s, %s) do not pair in product %d", f8_dtype_name(a->dtype),
               f8_scaling_name(a->scaling), f8_dtype_name(b->dtype), f8_scaling_name(b->scaling), (int)x->product);
    fp8flow_layout a_layout = fp8 && wgrad ? FP8FLOW_COLUMNS : FP8FLOW_ROWS;
    fp8flow_layout b_layout = fp8 && x->product != FP8FLOW_FPROP ? FP8FLOW_COLUMNS : FP8FLOW_ROWS;
    F8_REQUIRE(a->layout == a_layout && b->layout == b_layout, EINVAL,
               "gemm: a and b are in %s and %s, product %d needs %s and %s", f8_layout_name(a->layout),
               f8_layout_name(b->layout), (int)x->product, f8_layout_name(a_layout), f8_layout_name(b_layout));
    return FP8FLOW_OK;
}

/* `name` must be [rows, cols]; rows of a weight are num_groups * group_rows. */
static fp8flow_status check_shape(const char *name, const fp8flow_tensor *t, int64_t rows, int64_t cols)
{
    F8_REQUIRE(t->rows == rows && t->cols == cols, ESHAPE, "gemm: %s is [%lld, %lld], expected [%lld, %lld]", name,
               (long long)t->rows, (long long)t->cols, (long long)rows, (long long)cols);
    F8_REQUIRE(t->stride <= INT32_MAX, ESHAPE, "gemm: %s has stride %lld, at most 2^31-1 is possible", name,
               (long long)t->stride);
    return FP8FLOW_OK;
}

static fp8flow_status check_activation(const char *name, const fp8flow_tensor *t, int64_t rows, int64_t cols)
{
    F8_REQUIRE(t->group_rows == 0, ESHAPE, "gemm: %s has %lld rows per expert, expected 0", name,
               (long long)t->group_rows);
    return check_shape(name, t, rows, cols);
}

static fp8flow_status check_weight(const char *name, const fp8flow_tensor *t, const fp8flow_groups *groups,
                                   int64_t group_rows, int64_t cols)
{
    int64_t rows = group_rows;
    F8_REQUIRE(t->group_rows == group_rows || (!groups && t->group_rows == 0), ESHAPE,
               "gemm: %s has %lld rows per expert, expected %lld", name, (long long)t->group_rows,
               (long long)group_rows);
    F8_REQUIRE(!groups || !__builtin_mul_overflow(groups->count, group_rows, &rows), ESHAPE,
               "gemm: %s: %lld experts of %lld rows are too many", name, (long long)groups->count,
               (long long)group_rows);
    return check_shape(name, t, rows, cols);
}

static fp8flow_status check_shapes(const fp8flow_gemm_args *x)
{
    const fp8flow_tensor *a = x->a, *b = x->b, *c = x->c;
    F8_TRY(check_activation("a", a, a->rows, a->cols));
    switch (x->product) {
    case FP8FLOW_FPROP:
        F8_TRY(check_activation("c", c, a->rows, c->cols));
        return check_weight("b", b, x->groups, c->cols, a->cols);
    case FP8FLOW_DGRAD:
        F8_TRY(check_activation("c", c, a->rows, c->cols));
        return check_weight("b", b, x->groups, a->cols, c->cols);
    default:
        F8_TRY(check_activation("b", b, a->rows, b->cols));
        return check_weight("c", c, x->groups, a->cols, b->cols);
    }
}

static fp8flow_status check_operands(const fp8flow_gemm_args *x)
{
    F8_REQUIRE(x, EINVAL, "gemm: the arguments are NULL");
    F8_REQUIRE((unsigned)x->product <= FP8FLOW_WGRAD, EINVAL, "gemm: unknown product %d", (int)x->product);
    F8_REQUIRE((unsigned)x->write <= FP8FLOW_ACCUMULATE, EINVAL, "gemm: unknown write mode %d", (int)x->write);
    F8_TRY(f8_tensor_check("gemm", "a", x->a));
    F8_TRY(f8_tensor_check("gemm", "b", x->b));
    F8_TRY(f8_tensor_check("gemm", "c", x->c));
    return check_formats(x);
}

static fp8flow_status check(const fp8flow_context *c, const fp8flow_gemm_args *x)
{
    F8_TRY(check_operands(x));
    /* Row blocks of 128 restart at each expert only if experts start at multiples of 128. */
    int blocks_along_rows = x->a->scaling == FP8FLOW_TILE128 || x->a->scaling == FP8FLOW_COL128;
    F8_TRY(f8_context_check_groups(c, "gemm", x->groups, x->a->rows, blocks_along_rows ? 128 : 1));
    return check_shapes(x);
}

fp8flow_status fp8flow_gemm(fp8flow_context *c, const fp8flow_gemm_args *a)
{
    F8_REQUIRE(c, EINVAL, "gemm: the context is NULL");
    F8_TRY(check(c, a));
    return F8_RUN(c, gemm, a);
}

fp8flow_status fp8flow_gemm_configuration(const fp8flow_gemm_args *a, char *text, size_t size)
{
    F8_REQUIRE(text && size > 0, EINVAL, "gemm_configuration: no room for the text");
    F8_TRY(check_operands(a));
    F8_TRY(check_shapes(a));
    f8_gemm_desc desc = f8_gemm_describe(a);
    f8_gemm_config config = f8_gemm_configure(&desc);
    (void)f8_gemm_config_print(&config, text, size);
    return FP8FLOW_OK;
}

static float operand(const fp8flow_tensor *t, int64_t outer, int64_t inner, int inner_is_row, int64_t group)
{
    return inner_is_row ? f8_value(t, inner, outer, group) : f8_value(t, outer, inner, group);
}

static float dot(const fp8flow_gemm_args *x, const f8_gemm_group *g, int64_t i, int64_t j)
{
    int a_inner_is_row = f8_gemm_a_inner_is_row(x->product), b_inner_is_row = f8_gemm_b_inner_is_row(x->product);
    int64_t a_outer = a_inner_is_row ? i : g->a_row + i, a_inner = a_inner_is_row ? g->a_row : 0;
    int64_t b_outer = b_inner_is_row ? j : g->b_row + j, b_inner = b_inner_is_row ? g->b_row : 0;
    float sum = 0.0f;
    for (int64_t block = 0; block < g->num_k; block += 128) {
        int64_t end = block + 128 < g->num_k ? block + 128 : g->num_k;
        float block_sum = 0.0f;
        for (int64_t k = block; k < end; k++)
            block_sum += operand(x->a, a_outer, a_inner + k, a_inner_is_row, g->group) *
                         operand(x->b, b_outer, b_inner + k, b_inner_is_row, g->group);
        sum += block_sum;
    }
    return sum;
}

static void store(const fp8flow_gemm_args *x, int64_t row, int64_t col, float value)
{
    int64_t at = f8_element(x->c, row, col);
    if (x->write == FP8FLOW_ACCUMULATE) value = f8_value(x->c, row, col, 0) + value;
    if (x->c->dtype == FP8FLOW_BF16) ((uint16_t *)x->c->data)[at] = f8_bf16_encode(value);
    else ((float *)x->c->data)[at] = value;
}

fp8flow_status f8_ref_gemm(fp8flow_context *c, const fp8flow_gemm_args *a)
{
    (void)c;
    f8_group_storage storage;
    fp8flow_groups groups = f8_groups_or_all(a->groups, a->a->rows, &storage);
    for (int64_t g = 0; g < groups.count; g++) {
        f8_gemm_group group = f8_gemm_group_at(a, &groups, g);
        for (int64_t i = 0; i < group.num_i; i++)
            for (int64_t j = 0; j < group.num_j; j++) store(a, group.c_row + i, j, dot(a, &group, i, j));
        for (int64_t i = group.num_i; i < group.num_i + group.padding && a->write == FP8FLOW_OVERWRITE; i++)
            for (int64_t j = 0; j < group.num_j; j++) store(a, group.c_row + i, j, 0.0f);
    }
    return FP8FLOW_OK;
}
