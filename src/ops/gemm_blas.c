/* gemm_blas.c - grouped matrix products on OpenBLAS.
 *
 * The work is cut into items: at most ITEM_ROWS x ITEM_COLS of one expert's c, all of its inner dimension. The
 * cut depends only on that expert's shape, and one thread does one item start to end, so neither the number
 * of threads nor the other experts can change a bit. An item walks the inner dimension in steps of ITEM_INNER:
 *
 *   panel of a --decode--> FP32 \
 *                                sgemm adds into FP32 --(+ c)--encode--> BF16
 *   panel of b --decode--> FP32 /
 *
 * Panels keep the order of the stored tensor, and sgemm transposes where it has to while it packs. FP32 operands
 * and results are used where they lie. Power-of-two scales are applied while decoding: that is exact.
 */
#include "ops/blas.h"
#include "ops/gemm.h"
#include "ops/lines.h"

enum {
    /* Smaller items would share better between many threads, but decode b more often: 256 rows cost 10 % more. */
    ITEM_ROWS = 512,
    ITEM_COLS = 512,
    ITEM_INNER = 512, /* multiple of 128: steps start at scale blocks */
    /* Floats between lines of a panel: not a power of two, or the lines of a column share a few cache sets. */
    PANEL_STRIDE = 512 + 16,
    PANEL_FLOATS = 512 * PANEL_STRIDE
};

_Static_assert(3 * PANEL_FLOATS * sizeof(float) <= F8_SCRATCH_BYTES, "panels of a, b and c fit into scratch");

typedef struct {
    int64_t begin, count;
} span;

/* One operand of one group's product. */
typedef struct {
    const fp8flow_tensor *tensor;
    int64_t group, first_row;
    int inner_is_row;
} operand;

/* The rectangle of c that an item computes, relative to its group. */
typedef struct {
    f8_gemm_group group;
    span rows, cols;
} item;

static span span_at(int64_t begin, int64_t step, int64_t end)
{
    return (span){ begin, end - begin < step ? end - begin : step };
}

/* Distance of the scales of neighbouring 128-blocks of a stored line. */
static int64_t scale_step(const fp8flow_tensor *t)
{
    switch (t->scaling) {
    case FP8FLOW_TENSOR: return 0;
    case FP8FLOW_COL128: return t->cols;
    default: return t->layout == FP8FLOW_ROWS ? 1 : f8_ceil_div(t->cols, 128);
    }
}

/* Decode `count` numbers of the stored line that starts at (row, col), which is the start of a scale block. */
static void decode_line(const operand *x, int64_t row, int64_t col, int64_t count, float *out)
{
    const fp8flow_tensor *t = x->tensor;
    const f8_lines *lines = f8_lines_cpu();
    int64_t first = f8_element(t, row, col);
    if (t->dtype == FP8FLOW_BF16) {
        lines->decode_bf16(out, (const uint16_t *)t->data + first, count);
        return;
    }
    int64_t scale = f8_scale_index(t, row, col, x->group), step = scale_step(t);
    const uint8_t *codes = (const uint8_t *)t->data + first;
    for (int64_t i = 0; i < count; i += 128, scale += step) {
        float s = t->scaling == FP8FLOW_TENSOR ? ((const float *)t->scale)[scale]
                                               : f8_scale_decode(((const uint8_t *)t->scale)[scale]);
        lines->decode_fp8(out + i, codes + i, count - i < 128 ? count - i : 128, t->dtype, s);
    }
}

/* The part outer x inner of an operand as FP32, in `memory` unless it is FP32 already. The result is stored
 * [outer, inner] (CblasNoTrans) or [inner, outer] (CblasTrans). */
static f8_blas_matrix bring(const operand *x, span outer, span inner, float *memory)
{
    const fp8flow_tensor *t = x->tensor;
    int64_t row = x->first_row + (x->inner_is_row ? inner.begin : outer.begin);
    int64_t col = x->inner_is_row ? outer.begin : inner.begin;
    int by_rows = t->layout == FP8FLOW_ROWS, line_is_inner = x->inner_is_row == by_rows;
    CBLAS_TRANSPOSE order = line_is_inner ? CblasTrans : CblasNoTrans;
    if (t->dtype == FP8FLOW_F32)
        return (f8_blas_matrix){ (const float *)t->data + f8_element(t, row, col), (int)t->stride, order };
    int64_t num_lines = line_is_inner ? inner.count : outer.count, length = line_is_inner ? outer.count : inner.count;
    for (int64_t i = 0; i < num_lines; i++)
        decode_line(x, by_rows ? row + i : row, by_rows ? col : col + i, length, memory + i * PANEL_STRIDE);
    return (f8_blas_matrix){ memory, PANEL_STRIDE, order };
}

static CBLAS_TRANSPOSE flipped(CBLAS_TRANSPOSE order)
{
    return order == CblasTrans ? CblasNoTrans : CblasTrans;
}

/* FP32 memory that sgemm adds the products to; beta = 0: its contents do not count. */
typedef struct {
    float *data;
    int stride;
    float beta;
} target;

/* Add the item's products; scratch has room for two panels. num_k > 0. */
static void multiply(const fp8flow_gemm_args *x, const item *it, float *scratch, target c)
{
    const f8_gemm_group *g = &it->group;
    operand a = { x->a, g->group, g->a_row, f8_gemm_a_inner_is_row(x->product) };
    operand b = { x->b, g->group, g->b_row, f8_gemm_b_inner_is_row(x->product) };
    for (int64_t k = 0; k < g->num_k; k += ITEM_INNER, c.beta = 1.0f) {
        span inner = span_at(k, ITEM_INNER, g->num_k);
        f8_blas_matrix left = bring(&a, it->rows, inner, scratch);
        f8_blas_matrix right = bring(&b, it->cols, inner, scratch + PANEL_FLOATS);
        right.transpose = flipped(right.transpose); /* brought as [j, k], sgemm wants [k, j] */
        f8_blas_shape shape = { (int)it->rows.count, (int)it->cols.count, (int)inner.count, 1.0f, c.beta };
        f8_blas_sgemm(shape, left, right, c.data, c.stride);
    }
}

static void zero_rows(const fp8flow_gemm_args *x, const item *it, span rows)
{
    size_t size = f8_dtype_bytes(x->c->dtype);
    for (int64_t i = 0; i < rows.count; i++) {
        int64_t at = f8_element(x->c, it->group.c_row + rows.begin + i, it->cols.begin);
        memset((char *)x->c->data + (size_t)at * size, 0, (size_t)it->cols.count * size);
    }
}

/* One line of sums to BF16; `old` has room for the line of c that they are added to. */
static void write_bf16(const fp8flow_gemm_args *x, uint16_t *c, float *sums, int64_t count, float *old)
{
    const f8_lines *lines = f8_lines_cpu();
    if (x->write == FP8FLOW_ACCUMULATE) {
        lines->decode_bf16(old, c, count);
        for (int64_t i = 0; i < count; i++) sums[i] = old[i] + sums[i];
    }
    lines->encode_bf16(c, sums, count);
}

static void run_valid_rows(const fp8flow_gemm_args *x, const item *it, float *scratch)
{
    int64_t first = f8_element(x->c, it->group.c_row + it->rows.begin, it->cols.begin);
    if (it->group.num_k == 0) {
        if (x->write == FP8FLOW_OVERWRITE) zero_rows(x, it, it->rows);
        return;
    }
    if (x->c->dtype == FP8FLOW_F32) {
        float beta = x->write == FP8FLOW_ACCUMULATE ? 1.0f : 0.0f;
        multiply(x, it, scratch, (target){ (float *)x->c->data + first, (int)x->c->stride, beta });
        return;
    }
    float *sums = scratch + 2 * PANEL_FLOATS;
    multiply(x, it, scratch, (target){ sums, PANEL_STRIDE, 0.0f });
    for (int64_t i = 0; i < it->rows.count; i++)
        write_bf16(x, (uint16_t *)x->c->data + first + i * x->c->stride, sums + i * PANEL_STRIDE, it->cols.count,
                   scratch);
}

static void run_item(const fp8flow_gemm_args *x, item it, float *scratch)
{
    span slots = it.rows;
    int64_t valid = it.group.num_i - slots.begin;
    it.rows.count = valid < 0 ? 0 : valid < slots.count ? valid : slots.count;
    if (it.rows.count > 0) run_valid_rows(x, &it, scratch);
    span padding = { slots.begin + it.rows.count, slots.count - it.rows.count };
    if (x->write == FP8FLOW_OVERWRITE) zero_rows(x, &it, padding);
}

static int64_t count_items(const f8_gemm_group *g)
{
    return f8_ceil_div(g->num_i + g->padding, ITEM_ROWS) * f8_ceil_div(g->num_j, ITEM_COLS);
}

static int64_t count_all_items(const fp8flow_gemm_args *x, const fp8flow_groups *groups)
{
    int64_t total = 0;
    for (int64_t g = 0; g < groups->count; g++) {
        f8_gemm_group group = f8_gemm_group_at(x, groups, g);
        total += count_items(&group);
    }
    return total;
}

static item find_item(const fp8flow_gemm_args *x, const fp8flow_groups *groups, int64_t index)
{
    int64_t g = 0;
    f8_gemm_group group = f8_gemm_group_at(x, groups, g);
    for (int64_t n; index >= (n = count_items(&group)); index -= n) group = f8_gemm_group_at(x, groups, ++g);
    int64_t col_blocks = f8_ceil_div(group.num_j, ITEM_COLS);
    int64_t row = index / col_blocks * ITEM_ROWS, col = index % col_blocks * ITEM_COLS;
    return (item){ group, span_at(row, ITEM_ROWS, group.num_i + group.padding), span_at(col, ITEM_COLS, group.num_j) };
}

fp8flow_status f8_blas_gemm(fp8flow_context *c, const fp8flow_gemm_args *a)
{
    f8_group_storage storage;
    fp8flow_groups groups = f8_groups_or_all(a->groups, a->a->rows, &storage);
    int64_t num_items = count_all_items(a, &groups);
    int entered = f8_blas_enter();
#pragma omp parallel for schedule(dynamic, 1) num_threads(f8_threads_for(c, num_items *F8_BLAS_ITEM_WORK))
    for (int64_t i = 0; i < num_items; i++) run_item(a, find_item(a, &groups, i), f8_scratch(c));
    f8_blas_leave(entered);
    return FP8FLOW_OK;
}
