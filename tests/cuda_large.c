/* cuda_large.c - the shapes of a large layer, and tensors of more than 2^31 elements, against the bytes of the CPU. */
#include "cuda_support.h"

/* Small where the CPU stands in for the GPU. */
static int64_t scaled(int64_t large, int64_t small)
{
    return has_gpu() ? large : small;
}

static fp8flow_context *cpu;

static int make_cpu(void **state)
{
    (void)state;
    fp8flow_context_options options = { .backend = FP8FLOW_CPU };
    return fp8flow_context_create(&options, &cpu) != FP8FLOW_OK;
}

static fp8flow_tensor fast_tensor(int64_t rows, int64_t cols, uint64_t seed)
{
    fp8flow_tensor t = make_tensor(bf16_rows, rows, cols, 0, 0);
    fill_fast(t.data, rows * cols, seed);
    return t;
}

/* What quantize gives a host tensor, in host memory. */
static fp8flow_tensor quantized(const fp8flow_tensor *x)
{
    fp8flow_tensor rows = make_tensor(row128, x->rows, x->cols, 0, 0);
    assert_ok(fp8flow_quantize(cpu, &(fp8flow_quantize_args){ .x = x, .rows = &rows }));
    return rows;
}

/* ---- Whole tensors ---- */

enum { SHIFT_BINS = 64 };

/* A histogram of the device, zeroed; compared with the host's and given back. */
static uint64_t *draw_histogram(fp8flow_context *c)
{
    void *histogram = NULL;
    assert_ok(fp8flow_memory_alloc(c, SHIFT_BINS * sizeof(uint64_t), &histogram));
    assert_ok(fp8flow_memory_fill(c, histogram, 0, SHIFT_BINS * sizeof(uint64_t)));
    return histogram;
}

static void check_histogram(fp8flow_context *c, uint64_t *device, const uint64_t expected[SHIFT_BINS])
{
    uint64_t counted[SHIFT_BINS];
    assert_ok(fp8flow_memory_copy(c, counted, device, sizeof counted));
    assert_memory_equal(counted, expected, sizeof counted);
    fp8flow_memory_free(c, device);
}

static void check_quantize_and_transpose(int64_t rows, int64_t cols)
{
    fp8flow_context *c = device_context();
    fp8flow_tensor x = fast_tensor(rows, cols, 1), device_x = draw_tensor_copy(c, &x);
    fp8flow_tensor by_rows = make_tensor(row128, rows, cols, 0, 0), device_by_rows = draw_tensor(c, row128, rows, cols);
    const f8_tensor_format formats[] = { tile128, col128 };
    for (int i = 0; i < 2; i++) {
        fp8flow_tensor columns = make_tensor(formats[i], rows, cols, 0, 0);
        fp8flow_tensor device_columns = draw_tensor(c, formats[i], rows, cols);
        assert_ok(fp8flow_quantize(cpu, &(fp8flow_quantize_args){ &x, NULL, &by_rows, &columns, NULL }));
        fp8flow_quantize_args args = { &device_x, NULL, &device_by_rows, &device_columns, NULL };
        assert_ok(fp8flow_quantize(c, &args));
        assert_device_tensor(c, &device_by_rows, &by_rows);
        assert_device_tensor(c, &device_columns, &columns);
        uint64_t shifts[SHIFT_BINS] = { 0 }, *device_shifts = draw_histogram(c);
        assert_ok(fp8flow_transpose(cpu, &(fp8flow_transpose_args){ &by_rows, NULL, &columns, shifts }));
        assert_ok(
            fp8flow_transpose(c, &(fp8flow_transpose_args){ &device_by_rows, NULL, &device_columns, device_shifts }));
        assert_device_tensor(c, &device_columns, &columns);
        check_histogram(c, device_shifts, shifts);
        drop_tensor(c, &device_columns);
        free_tensor(&columns);
    }
    drop_tensor(c, &device_by_rows), drop_tensor(c, &device_x);
    free_tensor(&by_rows), free_tensor(&x);
}

/* The second shape has an odd number of blocks in both directions, the last of them short. */
static void test_quantize_and_transpose(void **state)
{
    (void)state;
    check_quantize_and_transpose(scaled(32768, 300), scaled(7168, 264));
    check_quantize_and_transpose(scaled(65552, 144), scaled(2832, 272));
}

static void test_swiglu(void **state)
{
    (void)state;
    fp8flow_context *c = device_context();
    int64_t rows = scaled(32768, 300), width = scaled(3584, 200);
    fp8flow_tensor h = fast_tensor(rows, 2 * width, 2), device_h = draw_tensor_copy(c, &h);
    fp8flow_tensor v = make_tensor(row128, rows, width, 0, 0), device_v = draw_tensor(c, row128, rows, width);
    fp8flow_tensor columns = make_tensor(tile128, rows, width, 0, 0);
    fp8flow_tensor device_columns = draw_tensor(c, tile128, rows, width);
    assert_ok(fp8flow_swiglu(cpu, &(fp8flow_swiglu_args){ .h = &h, .rows = &v, .columns = &columns }));
    assert_ok(
        fp8flow_swiglu(c, &(fp8flow_swiglu_args){ .h = &device_h, .rows = &device_v, .columns = &device_columns }));
    assert_device_tensor(c, &device_v, &v);
    assert_device_tensor(c, &device_columns, &columns);
    drop_tensor(c, &device_columns), drop_tensor(c, &device_v), drop_tensor(c, &device_h);
    free_tensor(&columns), free_tensor(&v), free_tensor(&h);
}

/* ---- Plans ---- */

typedef struct {
    fp8flow_plan host, device;
    int32_t *expert, *device_expert;
} two_plans;

static fp8flow_plan plan_of(fp8flow_context *c, int64_t tokens, int64_t top_k, int64_t experts)
{
    fp8flow_plan p = { .num_tokens = tokens, .top_k = top_k, .num_experts = experts, .align = 128 };
    p.capacity = f8_ceil_div(tokens * top_k + experts * 127, 128) * 128;
    p.rows = draw(c, experts * 4);
    p.offset = draw(c, (experts + 1) * 4);
    p.row_of = draw(c, tokens * top_k * 4);
    p.source = draw(c, p.capacity * 4);
    return p;
}

static void drop_plan(fp8flow_context *c, fp8flow_plan *p)
{
    fp8flow_memory_free(c, p->rows), fp8flow_memory_free(c, p->offset);
    fp8flow_memory_free(c, p->row_of), fp8flow_memory_free(c, p->source);
}

/* The same plan made on both sides; uneven, with slots that go nowhere. */
static two_plans make_plans(fp8flow_context *c, int64_t tokens, int64_t top_k, int64_t experts)
{
    two_plans p = { plan_of(cpu, tokens, top_k, experts), plan_of(c, tokens, top_k, experts), NULL, NULL };
    p.expert = poisoned(tokens * top_k * 4);
    for (int64_t i = 0; i < tokens * top_k; i++) {
        int32_t expert = (int32_t)f8_shuffle((uint64_t)(i / top_k), (uint64_t)(i % top_k), (uint64_t)experts);
        p.expert[i] = i % 97 == 5 ? -1 : expert;
    }
    p.device_expert = draw_copy(c, p.expert, tokens * top_k * 4);
    assert_ok(fp8flow_permute_plan(cpu, &(fp8flow_permute_plan_args){ p.expert, &p.host }));
    assert_ok(fp8flow_permute_plan(c, &(fp8flow_permute_plan_args){ p.device_expert, &p.device }));
    assert_device_bytes(c, p.device.rows, p.host.rows, experts * 4);
    assert_device_bytes(c, p.device.offset, p.host.offset, (experts + 1) * 4);
    assert_device_bytes(c, p.device.row_of, p.host.row_of, tokens * top_k * 4);
    assert_device_bytes(c, p.device.source, p.host.source, (int64_t)p.host.offset[experts] * 4);
    return p;
}

static void drop_plans(fp8flow_context *c, two_plans *p)
{
    drop_plan(cpu, &p->host), drop_plan(c, &p->device);
    fp8flow_memory_free(c, p->device_expert);
    free(p->expert);
}

static void check_permute(int64_t tokens, int64_t cols, int64_t experts)
{
    fp8flow_context *c = device_context();
    uint64_t shifts[SHIFT_BINS] = { 0 }, *device_shifts = draw_histogram(c);
    fp8flow_tensor values = fast_tensor(tokens, cols, 3), x = quantized(&values), device_x = draw_tensor_copy(c, &x);
    two_plans p = make_plans(c, tokens, 8, experts);
    fp8flow_tensor rows = make_tensor(row128, p.host.capacity, cols, 0, 0);
    fp8flow_tensor columns = make_tensor(tile128, p.host.capacity, cols, 0, 0);
    fp8flow_tensor device_rows = draw_tensor(c, row128, p.host.capacity, cols);
    fp8flow_tensor device_columns = draw_tensor(c, tile128, p.host.capacity, cols);
    fp8flow_permute_args host = { .x = &x, .plan = &p.host, .rows = &rows, .columns = &columns };
    fp8flow_permute_args device = { &device_x, &p.device, &device_rows, &device_columns, NULL, NULL, device_shifts };
    host.shift_histogram = shifts;
    assert_ok(fp8flow_permute(cpu, &host));
    assert_ok(fp8flow_permute(c, &device));
    check_histogram(c, device_shifts, shifts);
    assert_device_tensor(c, &device_rows, &rows);
    assert_device_tensor(c, &device_columns, &columns);
    drop_tensor(c, &device_columns), drop_tensor(c, &device_rows), drop_tensor(c, &device_x);
    free_tensor(&columns), free_tensor(&rows), free_tensor(&x), free_tensor(&values);
    drop_plans(c, &p);
}

/* As for transpose: many row blocks and an odd number of short column blocks in the second. */
static void test_permute(void **state)
{
    (void)state;
    check_permute(scaled(4096, 200), scaled(7168, 264), 32);
    check_permute(scaled(8200, 130), scaled(2832, 272), 40);
}

/* ---- More than 2^31 elements: samples ---- */

enum { SLAB = 128 };

/* Row blocks that are looked at: the ends, and both sides of element 2^31. */
static int sample_blocks(int64_t rows, int64_t cols, int64_t *first)
{
    int64_t boundary = ((int64_t)1 << 31) / cols / SLAB * SLAB, last = (rows - 1) / SLAB * SLAB;
    const int64_t candidates[] = { 0, SLAB, boundary - SLAB, boundary, boundary + SLAB, last };
    int count = 0;
    for (int i = 0; i < 6; i++)
        if (candidates[i] >= 0 && candidates[i] <= last) first[count++] = candidates[i];
    return count;
}

/* A view of the rows from `first` on of a row-form tensor. */
static fp8flow_tensor slab_of(const fp8flow_tensor *t, int64_t first)
{
    fp8flow_tensor slab = *t;
    slab.rows = f8_min(SLAB, t->rows - first);
    slab.data = (char *)t->data + (size_t)(first * t->stride) * f8_dtype_bytes(t->dtype);
    if (t->scale) slab.scale = (uint8_t *)t->scale + first * f8_ceil_div(t->cols, 128);
    return slab;
}

/* Some columns and all scales of a TILE128 column form on the device, rows first .. first + expected->rows - 1. */
static void assert_device_columns(fp8flow_context *c, const fp8flow_tensor *columns, int64_t first,
                                  const fp8flow_tensor *expected)
{
    int64_t blocks = f8_ceil_div(columns->cols, 128);
    assert_device_bytes(c, (uint8_t *)columns->scale + first / 128 * blocks, expected->scale, blocks);
    for (int64_t col = 0; col < columns->cols;
         col = col == columns->cols - 1 ? columns->cols : f8_min(col + 61, columns->cols - 1))
        assert_device_bytes(c, (uint8_t *)columns->data + col * columns->stride + first,
                            (uint8_t *)expected->data + col * expected->stride, expected->rows);
}

static void test_quantize_beyond_2_31_elements(void **state)
{
    (void)state;
    fp8flow_context *c = device_context();
    int64_t rows = scaled(300100, 700), cols = scaled(7168, 264), first[8], period = scaled(4096, 256);
    fp8flow_tensor pattern = fast_tensor(period, cols, 4), x = draw_tensor(c, bf16_rows, rows, cols);
    fp8flow_tensor by_rows = draw_tensor(c, row128, rows, cols), columns = draw_tensor(c, tile128, rows, cols);
    size_t line = (size_t)cols * 2;
    for (int64_t r = 0; r < rows; r += period) { /* the pattern again and again */
        size_t bytes = (size_t)f8_min(period, rows - r) * line;
        assert_ok(fp8flow_memory_copy(c, (char *)x.data + (size_t)r * line, r ? x.data : pattern.data, bytes));
    }
    assert_ok(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, NULL, &by_rows, &columns, NULL }));
    int count = sample_blocks(rows, cols, first);
    for (int i = 0; i < count; i++) {
        fp8flow_tensor piece = slab_of(&pattern, first[i] % period), seen = slab_of(&by_rows, first[i]);
        piece.rows = seen.rows;
        fp8flow_tensor expected = make_tensor(row128, piece.rows, cols, 0, 0);
        fp8flow_tensor expected_columns = make_tensor(tile128, piece.rows, cols, 0, 0);
        assert_ok(fp8flow_quantize(cpu, &(fp8flow_quantize_args){ &piece, NULL, &expected, &expected_columns, NULL }));
        assert_device_tensor(c, &seen, &expected);
        assert_device_columns(c, &columns, first[i], &expected_columns);
        free_tensor(&expected), free_tensor(&expected_columns);
    }
    drop_tensor(c, &columns), drop_tensor(c, &by_rows), drop_tensor(c, &x);
    free_tensor(&pattern);
}

/* Rows first .. first + 127 of the permuted tensor, gathered on the host; they belong to one expert. */
static fp8flow_tensor gathered(const fp8flow_tensor *x, const fp8flow_plan *plan, int64_t first, int32_t *valid)
{
    fp8flow_tensor slab = make_tensor(row128, SLAB, x->cols, 0, 0);
    int64_t blocks = f8_ceil_div(x->cols, 128);
    for (int64_t r = 0; r < SLAB; r++) {
        int32_t source = plan->source[first + r];
        uint8_t *codes = (uint8_t *)slab.data + r * slab.stride, *scales = (uint8_t *)slab.scale + r * blocks;
        memset(codes, 0, (size_t)x->cols);
        memset(scales, 1, (size_t)blocks);
        if (source < 0) continue;
        memcpy(codes, (uint8_t *)x->data + source / plan->top_k * x->stride, (size_t)x->cols);
        memcpy(scales, (uint8_t *)x->scale + source / plan->top_k * blocks, (size_t)blocks);
        *valid = (int32_t)r + 1;
    }
    return slab;
}

static void check_permuted_slab(fp8flow_context *c, const fp8flow_tensor *x, const fp8flow_plan *plan, int64_t first,
                                const fp8flow_tensor *rows, const fp8flow_tensor *columns)
{
    int32_t offset[2] = { 0, SLAB }, valid = 0;
    fp8flow_groups groups = { 1, offset, &valid };
    fp8flow_tensor expected = gathered(x, plan, first, &valid), seen = slab_of(rows, first);
    fp8flow_tensor expected_columns = make_tensor(tile128, SLAB, x->cols, 0, 0);
    assert_ok(fp8flow_transpose(cpu, &(fp8flow_transpose_args){ &expected, &groups, &expected_columns, NULL }));
    assert_device_tensor(c, &seen, &expected);
    assert_device_columns(c, columns, first, &expected_columns);
    free_tensor(&expected), free_tensor(&expected_columns);
}

static void test_permute_beyond_2_31_elements(void **state)
{
    (void)state;
    fp8flow_context *c = device_context();
    int64_t tokens = scaled(40000, 200), cols = scaled(7168, 264), first[8];
    fp8flow_tensor values = fast_tensor(tokens, cols, 5), x = quantized(&values), device_x = draw_tensor_copy(c, &x);
    two_plans p = make_plans(c, tokens, 8, 64);
    fp8flow_tensor rows = draw_tensor(c, row128, p.host.capacity, cols);
    fp8flow_tensor columns = draw_tensor(c, tile128, p.host.capacity, cols);
    fp8flow_permute_args args = { .x = &device_x, .plan = &p.device, .rows = &rows, .columns = &columns };
    assert_ok(fp8flow_permute(c, &args));
    int count = sample_blocks(p.host.offset[64], cols, first);
    for (int i = 0; i < count; i++) check_permuted_slab(c, &x, &p.host, first[i], &rows, &columns);
    drop_tensor(c, &columns), drop_tensor(c, &rows), drop_tensor(c, &device_x);
    free_tensor(&x), free_tensor(&values);
    drop_plans(c, &p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize_and_transpose),
        cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_permute),
        cmocka_unit_test(test_quantize_beyond_2_31_elements),
        cmocka_unit_test(test_permute_beyond_2_31_elements),
    };
    return cmocka_run_group_tests(tests, make_cpu, NULL);
}
