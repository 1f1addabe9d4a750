/* cuda_gemm_dense.c - dense products, as routers (F32 operands, split into BF16 parts) and models (BF16) have them:
 * integers exactly, every bit of an F32 number, Inf and NaN, other data within the bound of FP64 sums, the same bits
 * again. Experts and their rows: cuda_gemm.c. Samples of c are computed again in FP64.
 */
#include "cuda_gemm_check.h"

static const f8_tensor_format f32_rows = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };

typedef struct {
    const char *name;
    fp8flow_product product;
    const f8_tensor_format *a, *b, *c;
    f8_gemm_kernel kernel;
} path;

static const path paths[] = {
    { "split fprop", FP8FLOW_FPROP, &bf16_rows, &f32_rows, &f32_rows, F8_GEMM_SPLIT },
    { "split wgrad", FP8FLOW_WGRAD, &f32_rows, &bf16_rows, &f32_rows, F8_GEMM_SPLIT },
    { "split dgrad", FP8FLOW_DGRAD, &f32_rows, &f32_rows, &bf16_rows, F8_GEMM_SPLIT_K },
    { "split dgrad, f32", FP8FLOW_DGRAD, &f32_rows, &f32_rows, &f32_rows, F8_GEMM_SPLIT_K },
    { "bf16 fprop", FP8FLOW_FPROP, &bf16_rows, &bf16_rows, &bf16_rows, F8_GEMM_BF16 },
    { "bf16 fprop, f32", FP8FLOW_FPROP, &bf16_rows, &bf16_rows, &f32_rows, F8_GEMM_BF16 },
    { "bf16 dgrad", FP8FLOW_DGRAD, &bf16_rows, &bf16_rows, &bf16_rows, F8_GEMM_BF16 },
    { "bf16 dgrad, f32", FP8FLOW_DGRAD, &bf16_rows, &bf16_rows, &f32_rows, F8_GEMM_BF16 },
    { "bf16 wgrad", FP8FLOW_WGRAD, &bf16_rows, &bf16_rows, &f32_rows, F8_GEMM_BF16 },
};
enum { NUM_PATHS = sizeof paths / sizeof *paths, SPLIT_PATHS = 4, SPLIT_FPROP = 0, SPLIT_WGRAD, SPLIT_DGRAD_F32 = 3 };

/* m tokens, a weight [n, k]: n experts of a router. */
typedef struct {
    int64_t m, n, k;
} shape;

typedef struct {
    const path *path;
    shape shape;
    data_kind data;
    fp8flow_write write;
    int64_t gap; /* elements behind every line of a, b and c */
} spec;

/* c: what came back. */
typedef struct {
    spec s;
    fp8flow_tensor a, b, c, device_a, device_b, device_c;
} problem;

enum { WIDE = 16, SAMPLES = 2000 };

/* ---- Problems ---- */

static fp8flow_tensor wide_tensor(const f8_tensor_format *format, int64_t rows, int64_t cols, int64_t gap)
{
    fp8flow_tensor t = f8_tensor_make(*format, rows, cols, 0);
    t.stride += gap;
    t.data = poisoned(fp8flow_tensor_data_bytes(&t));
    return t;
}

static void set_value(fp8flow_tensor *t, int64_t row, int64_t col, float x)
{
    int64_t at = f8_element(t, row, col);
    if (t->dtype == FP8FLOW_F32) ((float *)t->data)[at] = x;
    else ((uint16_t *)t->data)[at] = f8_bf16_encode(x);
}

static void fill(fp8flow_tensor *t, data_kind data, uint64_t seed)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < t->rows; r++)
        for (int64_t j = 0; j < t->cols; j++) set_value(t, r, j, test_value(data, seed, r, j));
}

static void fill_with(fp8flow_tensor *t, float x)
{
    for (int64_t r = 0; r < t->rows; r++)
        for (int64_t j = 0; j < t->cols; j++) set_value(t, r, j, x);
}

static problem make_problem(spec s)
{
    int64_t m = s.shape.m, n = s.shape.n, k = s.shape.k;
    int fprop = s.path->product == FP8FLOW_FPROP, wgrad = s.path->product == FP8FLOW_WGRAD;
    problem p = { .s = s };
    p.a = wide_tensor(s.path->a, m, fprop ? k : n, s.gap);
    p.b = wide_tensor(s.path->b, wgrad ? m : n, k, s.gap);
    p.c = wide_tensor(s.path->c, wgrad ? n : m, fprop ? n : k, s.gap);
    fill(&p.a, s.data, 3);
    fill(&p.b, s.data, 4);
    if (s.write == FP8FLOW_ACCUMULATE) fill_with(&p.c, before);
    return p;
}

static void send(problem *p)
{
    p->device_a = draw_tensor_copy(device_context(), &p->a);
    p->device_b = draw_tensor_copy(device_context(), &p->b);
    p->device_c = draw_tensor_copy(device_context(), &p->c);
}

static void free_problem(problem *p)
{
    free_tensor(&p->a), free_tensor(&p->b), free_tensor(&p->c);
    drop_tensor(device_context(), &p->device_a);
    drop_tensor(device_context(), &p->device_b);
    drop_tensor(device_context(), &p->device_c);
}

/* The same call again starts from the same c. */
static void run_on(problem *p, f8_gemm_kernel kernel)
{
    fp8flow_gemm_args args = { p->s.path->product, p->s.write, NULL, &p->device_a, &p->device_b, &p->device_c };
    f8_gemm_desc desc = f8_gemm_describe(&args);
    assert_int_equal(f8_gemm_configure(&desc).kernel, kernel); /* or this program tests something else */
    assert_ok(fp8flow_gemm(device_context(), &args));
    free(p->c.data);
    p->c.data = fetch(device_context(), p->device_c.data, fp8flow_tensor_data_bytes(&p->c));
}

static void run(problem *p)
{
    send(p);
    run_on(p, p->s.path->kernel);
}

/* ---- Checks ---- */

static exact_sum exact_at(const problem *p, int64_t i, int64_t j)
{
    fp8flow_product product = p->s.path->product;
    int fprop = product == FP8FLOW_FPROP, wgrad = product == FP8FLOW_WGRAD;
    exact_sum x = { p->s.write == FP8FLOW_ACCUMULATE ? before : 0, 0 };
    for (int64_t k = 0; k < (wgrad ? p->a.rows : p->a.cols); k++) {
        double a = wgrad ? f8_value(&p->a, k, i, 0) : f8_value(&p->a, i, k, 0);
        double b = fprop ? f8_value(&p->b, j, k, 0) : f8_value(&p->b, k, j, 0);
        add_product(&x, a, b);
    }
    return x;
}

/* Error of c(i, j) in units of what is allowed. */
static double error_at(const problem *p, int64_t i, int64_t j)
{
    return error_of(exact_at(p, i, j), f8_value(&p->c, i, j, 0), p->c.dtype, p->s.data);
}

static void check_gaps(const problem *p)
{
    int64_t size = (int64_t)f8_dtype_bytes(p->c.dtype);
    for (int64_t r = 0; r < p->c.rows; r++) {
        const uint8_t *line = (const uint8_t *)p->c.data + r * p->c.stride * size;
        for (int64_t i = p->c.cols * size; i < p->c.stride * size; i++) assert_int_equal(line[i], POISON);
    }
}

static void check(const problem *p)
{
    double worst = 0;
    int64_t at = 0;
    check_gaps(p);
#pragma omp parallel for schedule(dynamic, 8)
    for (int64_t s = 0; s < SAMPLES; s++) {
        element e = sample_of(1, s, p->c.rows, p->c.cols);
        double error = error_at(p, e.row, e.col);
#pragma omp critical
        if (!(error <= worst)) worst = error, at = e.row * p->c.cols + e.col;
    }
    if (!(worst <= 1))
        fail_msg("%s %ld x [%ld, %ld] data %d write %d gap %ld: (%ld, %ld): %g of the bound", p->s.path->name,
                 (long)p->s.shape.m, (long)p->s.shape.n, (long)p->s.shape.k, (int)p->s.data, (int)p->s.write,
                 (long)p->s.gap, (long)(at / p->c.cols), (long)(at % p->c.cols), worst);
}

static void check_spec(spec s)
{
    problem p = make_problem(s);
    run(&p);
    check(&p);
    free_problem(&p);
}

/* ---- Values ---- */

/* Experts and widths that whole pieces of 16 bytes allow, and all numbers of tokens. */
static const shape small_shapes[] = { { 1, 8, 16 },     { 37, 16, 128 },  { 128, 32, 64 }, { 129, 64, 208 },
                                      { 300, 80, 144 }, { 513, 48, 272 }, { 96, 256, 32 } };
static const shape large_shapes[] = {
    { 4097, 8, 2048 }, { 3000, 64, 7168 }, { 2049, 256, 1408 }, { 1000, 1024, 1024 }
};
enum { SMALL = sizeof small_shapes / sizeof *small_shapes, LARGE = sizeof large_shapes / sizeof *large_shapes };

static void check_data(data_kind data)
{
    for (int i = 0; i < NUM_PATHS; i++)
        for (int j = 0; j < SMALL + (has_gpu() ? LARGE : 0); j++) {
            spec s = { &paths[i], j < SMALL ? small_shapes[j] : large_shapes[j - SMALL], data, FP8FLOW_OVERWRITE, 0 };
            if (s.path->kernel == F8_GEMM_BF16) s.shape.n = f8_ceil_div(s.shape.n, 16) * 16;
            check_spec(s);
            s.gap = WIDE;
            check_spec(s);
            s.write = FP8FLOW_ACCUMULATE;
            if (data == DATA_SMALL_INTEGERS) check_spec(s);
        }
}

static void test_integers_are_exact(void **state)
{
    (void)state;
    check_data(DATA_SMALL_INTEGERS);
}

static void test_random_data_is_within_the_bound(void **state)
{
    (void)state;
    check_data(DATA_NORMAL);
}

static void test_heavy_tailed_data_is_within_the_bound(void **state)
{
    (void)state;
    check_data(DATA_HEAVY_TAILED);
}

/* Widths and experts that fit no tile; a line of 16 bytes has no meaning to them, a gap makes whole pieces of it. */
static void test_experts_may_be_any_number(void **state)
{
    (void)state;
    for (int i = 0; i < SPLIT_PATHS; i++)
        for (int64_t n = 4; n <= 100; n += 12)
            check_spec((spec){ &paths[i], { 140, n, 80 }, DATA_SMALL_INTEGERS, FP8FLOW_OVERWRITE, 0 });
    for (int i = 0; i < SPLIT_DGRAD_F32 - 1; i++)
        check_spec((spec){ &paths[i], { 140, 20, 72 }, DATA_SMALL_INTEGERS, FP8FLOW_OVERWRITE, 0 });
}

static void test_other_shapes_take_the_plain_kernel(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * NUM_PATHS; i++) {
        fp8flow_write write = i % 2 ? FP8FLOW_ACCUMULATE : FP8FLOW_OVERWRITE;
        problem p = make_problem((spec){ &paths[i / 2], { 71, 9, 33 }, DATA_SMALL_INTEGERS, write, 0 });
        send(&p);
        run_on(&p, F8_GEMM_ANY);
        check(&p);
        free_problem(&p);
    }
}

/* More rows than parts fit into scratch memory at a time; a head with its words. */
static void test_large_products(void **state)
{
    (void)state;
    if (!has_gpu()) skip();
    for (int write = FP8FLOW_OVERWRITE; write <= FP8FLOW_ACCUMULATE; write++)
        for (int i = 0; i < NUM_PATHS; i++) {
            shape at = i < SPLIT_PATHS ? (shape){ 65535, 256, 64 } : (shape){ 333, 151936, 64 };
            check_spec((spec){ &paths[i], at, DATA_SMALL_INTEGERS, (fp8flow_write)write, 0 });
        }
}

/* ---- Every bit ---- */

/* Finite numbers from `least` exponent on; 0: subnormal numbers too. */
static float any_bits(uint64_t seed, int64_t row, int64_t col, uint32_t least)
{
    uint64_t bits = f8_random(seed, (uint64_t)row, (uint64_t)col);
    uint32_t exponent = least + (uint32_t)(bits >> 40) % (255 - least);
    return f8_from_bits((uint32_t)bits << 31 | exponent << 23 | ((uint32_t)(bits >> 1) & 0x7FFFFF));
}

/* The operand whose numbers are to be seen, through a matrix of ones where row = column modulo its columns. */
typedef struct {
    int which_path;
    uint32_t least;
    int a_is_seen;
} view;

static float expected_of(const view *v, const problem *p, int64_t i, int64_t j)
{
    switch (paths[v->which_path].product) {
    case FP8FLOW_FPROP: return f8_value(&p->b, j, i % p->a.cols, 0);
    case FP8FLOW_WGRAD: return j < p->a.rows ? f8_value(&p->a, j, i, 0) : 0.0f;
    default:
        if (v->a_is_seen) return j < p->a.cols ? f8_value(&p->a, i, j, 0) : 0.0f;
        return f8_value(&p->b, i % p->a.cols, j, 0);
    }
}

static void check_view(const view *v)
{
    static const shape shapes[3] = { { 200, 72, 144 }, { 150, 72, 144 }, { 144, 64, 144 } };
    const path *way = &paths[v->which_path];
    problem p = make_problem((spec){ way, shapes[way->product], DATA_NORMAL, FP8FLOW_OVERWRITE, 0 });
    fp8flow_tensor *seen = v->a_is_seen ? &p.a : &p.b, *ones = v->a_is_seen ? &p.b : &p.a;
    for (int64_t r = 0; r < seen->rows; r++)
        for (int64_t j = 0; j < seen->cols; j++) set_value(seen, r, j, any_bits(11, r, j, v->least));
    for (int64_t r = 0; r < ones->rows; r++)
        for (int64_t j = 0; j < ones->cols; j++) set_value(ones, r, j, r % ones->cols == j ? 1.0f : 0.0f);
    run(&p);
    for (int64_t i = 0; i < p.c.rows; i++)
        for (int64_t j = 0; j < p.c.cols; j++) {
            float expected = expected_of(v, &p, i, j), x = f8_value(&p.c, i, j, 0);
            if (x != expected)
                fail_msg("%s (%ld, %ld): %a, expected %a", way->name, (long)i, (long)j, (double)x, (double)expected);
        }
    free_problem(&p);
}

/* DGRAD loses what lies below 2^-133: the last bit of the least number here is 2^-132. */
static void test_every_bit_of_a_number_counts(void **state)
{
    (void)state;
    static const view views[] = {
        { SPLIT_FPROP, 0, 0 }, { SPLIT_WGRAD, 0, 1 }, { SPLIT_DGRAD_F32, 18, 0 }, { SPLIT_DGRAD_F32, 18, 1 }
    };
    for (size_t i = 0; i < sizeof views / sizeof *views; i++) check_view(&views[i]);
}

/* One number of the F32 operand, or of the other one; none is 0, so that Inf stays Inf. */
static void check_special(const path *way, int in_a, float x)
{
    problem p = make_problem((spec){ way, { 140, 24, 80 }, DATA_NORMAL, FP8FLOW_OVERWRITE, 0 });
    fill_with(&p.a, 1.0f); /* middle and low parts are 0 */
    set_value(in_a ? &p.a : &p.b, 5, 7, x);
    run(&p);
    for (int64_t i = 0; i < p.c.rows; i++)
        for (int64_t j = 0; j < p.c.cols; j++)
            if (!(error_at(&p, i, j) <= 1))
                fail_msg("%s, %g in %s: (%ld, %ld) is %g", way->name, (double)x, in_a ? "a" : "b", (long)i, (long)j,
                         (double)f8_value(&p.c, i, j, 0));
    free_problem(&p);
}

static void test_inf_and_nan_come_through(void **state)
{
    (void)state;
    /* The last is a NaN that is an Inf without its lower half. */
    const float numbers[] = { INFINITY, -INFINITY, NAN, f8_from_bits(0x7F800001u) };
    for (int i = 0; i < SPLIT_PATHS; i++)
        for (int in_a = 0; in_a < 2; in_a++)
            for (size_t j = 0; j < sizeof numbers / sizeof *numbers; j++) check_special(&paths[i], in_a, numbers[j]);
}

static void test_bits_are_the_same_again(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_PATHS; i++) {
        shape at = has_gpu() ? (shape){ 8192, 64, 2048 } : (shape){ 129, 64, 128 };
        problem p = make_problem((spec){ &paths[i], at, DATA_NORMAL, FP8FLOW_OVERWRITE, 0 });
        run(&p);
        for (int again = 0; again < (has_gpu() ? 20 : 2); again++) {
            fp8flow_gemm_args args = {
                paths[i].product, FP8FLOW_OVERWRITE, NULL, &p.device_a, &p.device_b, &p.device_c
            };
            int64_t bytes = fp8flow_tensor_data_bytes(&p.c);
            assert_ok(fp8flow_memory_fill(device_context(), p.device_c.data, POISON, (size_t)bytes));
            assert_ok(fp8flow_gemm(device_context(), &args));
            assert_device_bytes(device_context(), p.device_c.data, p.c.data, bytes);
        }
        free_problem(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_integers_are_exact),
        cmocka_unit_test(test_random_data_is_within_the_bound),
        cmocka_unit_test(test_heavy_tailed_data_is_within_the_bound),
        cmocka_unit_test(test_experts_may_be_any_number),
        cmocka_unit_test(test_other_shapes_take_the_plain_kernel),
        cmocka_unit_test(test_large_products),
        cmocka_unit_test(test_every_bit_of_a_number_counts),
        cmocka_unit_test(test_inf_and_nan_come_through),
        cmocka_unit_test(test_bits_are_the_same_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
