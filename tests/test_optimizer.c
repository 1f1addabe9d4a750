/* test_optimizer.c - adamw: FP64 bounds, the same bits with any threads and any cut, steps left out. */
#include "support.h"

enum { NUM_CONTEXTS = 4 };

/* Reference, CPU with one, two and three threads. */
static fp8flow_context *make_numbered_context(int i)
{
    return make_context(i == 0 ? FP8FLOW_REFERENCE : FP8FLOW_CPU, i == 0 ? 1 : i);
}

/* ---- adamw ---- */

typedef struct {
    int64_t count;
    float *master, *m, *v, *grad;
    uint16_t *weight;
} state_arrays;

static state_arrays make_arrays(int64_t count)
{
    state_arrays s = {
        count, poisoned(count * 4), poisoned(count * 4), poisoned(count * 4), poisoned(count * 4), poisoned(count * 2)
    };
    for (int64_t i = 0; i < count; i++) {
        s.master[i] = 0.1f * f8_normal(1, 1, (uint64_t)i);
        s.m[i] = s.v[i] = 0.0f;
    }
    return s;
}

static void free_arrays(state_arrays *s)
{
    free(s->master);
    free(s->m);
    free(s->v);
    free(s->grad);
    free(s->weight);
}

static void fill_gradient(state_arrays *s, uint64_t step)
{
    for (int64_t i = 0; i < s->count; i++)
        s->grad[i] = i % 11 == 3 ? 0.0f : test_value(DATA_HEAVY_TAILED, step, i / 16, i % 16) * 1e-3f;
}

static fp8flow_adamw_args adamw_args(const state_arrays *s, int64_t step)
{
    static const float scale = 0.7f;
    return (fp8flow_adamw_args){ .count = s->count,
                                 .master = s->master,
                                 .m = s->m,
                                 .v = s->v,
                                 .grad = s->grad,
                                 .weight = s->weight,
                                 .lr = 3e-3f,
                                 .beta1 = 0.99f,
                                 .beta2 = 0.999f,
                                 .eps = 1e-8f,
                                 .weight_decay = 0.1f,
                                 .grad_scale = &scale,
                                 .step = step };
}

static void assert_within(double value, double expected, double magnitude)
{
    if (!(fabs(value - expected) <= 0x1p-20 * magnitude))
        fail_msg("%.9g, expected %.9g within 2^-20 of %.3g", value, expected, magnitude);
}

/* Every element of `after` against an FP64 step from `before`. */
static void check_step(const state_arrays *before, const state_arrays *after, const fp8flow_adamw_args *a)
{
    double beta1 = (double)a->beta1, beta2 = (double)a->beta2, lr = (double)a->lr, decay = (double)a->weight_decay;
    double correction1 = 1.0 - pow(beta1, (double)a->step), correction2 = 1.0 - pow(beta2, (double)a->step);
    for (int64_t i = 0; i < after->count; i++) {
        double g = (double)a->grad[i] * (double)*a->grad_scale, w = (double)before->master[i];
        double m0 = beta1 * (double)before->m[i], m1 = (1.0 - beta1) * g, m = m0 + m1;
        double v = beta2 * (double)before->v[i] + (1.0 - beta2) * g * g;
        double root = sqrt(v / correction2) + (double)a->eps;
        double master = w - lr * (m / correction1 / root + decay * w);
        double update_terms = lr * (fabs(m0) + fabs(m1)) / correction1 / root;
        assert_within((double)after->m[i], m, fabs(m0) + fabs(m1));
        assert_within((double)after->v[i], v, v);
        assert_within((double)after->master[i], master, fabs(w) + update_terms + fabs(lr * decay * w));
        assert_int_equal(after->weight[i], f8_bf16_encode(after->master[i]));
    }
}

static void test_adamw_is_within_its_bound(void **state)
{
    (void)state;
    static const int64_t counts[] = { 0, 1, 7, 8, 9, 1003 };
    for (size_t s = 0; s < sizeof counts / sizeof counts[0]; s++)
        for (int context = 0; context < 2; context++) {
            fp8flow_context *c = make_numbered_context(context);
            state_arrays before = make_arrays(counts[s]), after = make_arrays(counts[s]);
            for (int64_t step = 1; step <= 20; step++) {
                memcpy(before.master, after.master, (size_t)counts[s] * 4);
                memcpy(before.m, after.m, (size_t)counts[s] * 4);
                memcpy(before.v, after.v, (size_t)counts[s] * 4);
                fill_gradient(&after, (uint64_t)step);
                fp8flow_adamw_args args = adamw_args(&after, step == 20 ? 100000 : step);
                assert_ok(fp8flow_adamw(c, &args));
                check_step(&before, &after, &args);
            }
            free_arrays(&before);
            free_arrays(&after);
            fp8flow_context_destroy(c);
        }
}

static void assert_same_arrays(const state_arrays *a, const state_arrays *b)
{
    assert_memory_equal(a->master, b->master, (size_t)a->count * 4);
    assert_memory_equal(a->m, b->m, (size_t)a->count * 4);
    assert_memory_equal(a->v, b->v, (size_t)a->count * 4);
    assert_memory_equal(a->weight, b->weight, (size_t)a->count * 2);
}

static fp8flow_adamw_args part_of(fp8flow_adamw_args a, int64_t first, int64_t count)
{
    a.count = count;
    a.master += first;
    a.m += first;
    a.v += first;
    a.grad += first;
    a.weight += first;
    return a;
}

/* Threads, and the way parameters are cut into calls (sharded optimiser states), must not change a bit. */
static void test_adamw_is_the_same_for_any_threads_and_any_cut(void **state)
{
    (void)state;
    enum { COUNT = 20011 };
    for (int backend = 0; backend < 2; backend++) {
        state_arrays whole = make_arrays(COUNT), threads = make_arrays(COUNT), parts = make_arrays(COUNT);
        fp8flow_context *one = make_numbered_context(backend), *three = make_numbered_context(backend ? 3 : 0);
        for (int64_t step = 1; step <= 3; step++) {
            fill_gradient(&whole, (uint64_t)step);
            fill_gradient(&threads, (uint64_t)step);
            fill_gradient(&parts, (uint64_t)step);
            fp8flow_adamw_args a = adamw_args(&whole, step), b = adamw_args(&threads, step),
                               p = adamw_args(&parts, step);
            assert_ok(fp8flow_adamw(one, &a));
            assert_ok(fp8flow_adamw(three, &b));
            for (int64_t first = 0; first < COUNT; first += 1237) {
                fp8flow_adamw_args part = part_of(p, first, COUNT - first < 1237 ? COUNT - first : 1237);
                assert_ok(fp8flow_adamw(one, &part));
            }
        }
        assert_same_arrays(&whole, &threads);
        assert_same_arrays(&whole, &parts);
        free_arrays(&whole);
        free_arrays(&threads);
        free_arrays(&parts);
        fp8flow_context_destroy(one);
        fp8flow_context_destroy(three);
    }
}

/* One parameter without a BF16 copy, first step; rates are 0 until the test sets them. */
static fp8flow_adamw_args scalar_args(float *master, float *m, float *v, float *grad)
{
    return (fp8flow_adamw_args){ .count = 1, .master = master, .m = m, .v = v, .grad = grad, .step = 1 };
}

/* Decoupled: the decay must not pass through the moments, and acts without a gradient. */
static void test_adamw_weight_decay_is_decoupled(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        fp8flow_context *c = make_numbered_context(i);
        float master = 2.0f, m = 0.0f, v = 0.0f, grad = 0.0f;
        fp8flow_adamw_args args = scalar_args(&master, &m, &v, &grad);
        args.lr = 0.5f;
        args.beta1 = 0.9f;
        args.beta2 = 0.99f;
        args.eps = 1e-8f;
        args.weight_decay = 0.25f;
        assert_ok(fp8flow_adamw(c, &args));
        assert_true(master == 2.0f - 0.5f * 0.25f * 2.0f && m == 0.0f && v == 0.0f);
        /* The first step moves by lr, whatever the size of the gradient. */
        args.weight_decay = 0.0f;
        grad = -1e-4f;
        master = 1.0f;
        assert_ok(fp8flow_adamw(c, &args));
        assert_true(fabs((double)master - 1.5) < 1e-3);
        fp8flow_context_destroy(c);
    }
}

/* 1 - beta^step of a beta near 1 has few bits left in FP32; the second moment stands alone here (eps 0, m 1). */
static void test_adamw_bias_corrections_keep_their_bits(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++)
        for (int64_t step = 2; step < 40; step++) {
            fp8flow_context *c = make_numbered_context(i);
            float master = 0.0f, m = 1.0f, v = 1.0f, grad = 0.0f;
            fp8flow_adamw_args args = scalar_args(&master, &m, &v, &grad);
            args.lr = 1.0f;
            args.beta1 = 0.999f;
            args.beta2 = 0.9995f;
            args.step = step;
            assert_ok(fp8flow_adamw(c, &args));
            double beta1 = (double)args.beta1, beta2 = (double)args.beta2;
            double first = beta1 / (1.0 - pow(beta1, (double)step)), second = beta2 / (1.0 - pow(beta2, (double)step));
            assert_within((double)master, -first / sqrt(second), first / sqrt(second));
            fp8flow_context_destroy(c);
        }
}

/* ---- The quantised forms ---- */

typedef struct {
    int64_t rows, cols, group_rows;
    int64_t spare; /* elements between the lines of the column form */
    fp8flow_dtype dtype;
} form_case;

enum { SHARED_SCALES = 1, ROWS_ONLY = 2, COLUMNS_ONLY = 4 };

static fp8flow_tensor make_form(const form_case *f, fp8flow_layout layout)
{
    fp8flow_tensor t =
        f8_tensor_make((f8_tensor_format){ f->dtype, FP8FLOW_TILE128, layout }, f->rows, f->cols, f->group_rows);
    if (layout == FP8FLOW_COLUMNS) t.stride += f->spare;
    t.data = poisoned(fp8flow_tensor_data_bytes(&t));
    t.scale = poisoned(fp8flow_tensor_scale_bytes(&t, 0));
    return t;
}

/* One step with forms on one context equals a step without, followed by quantize on another. */
static void check_forms(const form_case *f, int context, int variant)
{
    fp8flow_context *c = make_numbered_context(context), *plain = make_numbered_context(context);
    state_arrays fused = make_arrays(f->rows * f->cols), separate = make_arrays(f->rows * f->cols);
    fill_gradient(&fused, 5);
    fill_gradient(&separate, 5);
    if (f->rows * f->cols > 40) fused.grad[40] = separate.grad[40] = INFINITY; /* makes its weight NaN */
    fp8flow_tensor rows = make_form(f, FP8FLOW_ROWS), columns = make_form(f, FP8FLOW_COLUMNS);
    fp8flow_tensor rows2 = make_form(f, FP8FLOW_ROWS), columns2 = make_form(f, FP8FLOW_COLUMNS);
    fp8flow_tensor given_columns = columns;
    if (variant & SHARED_SCALES) given_columns.scale = rows.scale;

    fp8flow_adamw_args a = adamw_args(&fused, 1), b = adamw_args(&separate, 1);
    a.rows = variant & COLUMNS_ONLY ? NULL : &rows;
    a.columns = variant & ROWS_ONLY ? NULL : &given_columns;
    assert_ok(fp8flow_adamw(c, &a));
    assert_ok(fp8flow_adamw(plain, &b));
    assert_int_equal(fp8flow_context_calls(c, "quantize"), 0);
    fp8flow_tensor weight = f8_bf16(separate.weight, f->rows, f->cols);
    fp8flow_quantize_args quantize = { .x = &weight, .rows = &rows2, .columns = &columns2 };
    assert_ok(fp8flow_quantize(plain, &quantize));

    assert_same_arrays(&fused, &separate);
    if (a.rows) assert_same_tensor(&rows, &rows2, 0);
    if (variant & SHARED_SCALES) memcpy(columns.scale, rows.scale, (size_t)fp8flow_tensor_scale_bytes(&rows, 0));
    if (a.columns) assert_same_tensor(&columns, &columns2, 0);
    free_tensor(&rows);
    free_tensor(&columns);
    free_tensor(&rows2);
    free_tensor(&columns2);
    free_arrays(&fused);
    free_arrays(&separate);
    fp8flow_context_destroy(c);
    fp8flow_context_destroy(plain);
}

static void test_adamw_forms_equal_quantize(void **state)
{
    (void)state;
    static const form_case cases[] = {
        { 128, 128, 0, 0, FP8FLOW_E4M3 },   { 256, 384, 128, 0, FP8FLOW_E4M3 }, { 300, 200, 0, 0, FP8FLOW_E4M3 },
        { 300, 200, 100, 0, FP8FLOW_E4M3 }, { 420, 132, 210, 6, FP8FLOW_E4M3 }, { 288, 144, 144, 16, FP8FLOW_E5M2 },
        { 1, 1, 0, 0, FP8FLOW_E4M3 },       { 129, 257, 129, 1, FP8FLOW_E5M2 }, { 0, 64, 32, 0, FP8FLOW_E4M3 },
        { 64, 0, 32, 0, FP8FLOW_E4M3 },
    };
    static const int variants[] = { 0, SHARED_SCALES, ROWS_ONLY, COLUMNS_ONLY };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int context = 0; context < NUM_CONTEXTS; context++)
            for (size_t v = 0; v < sizeof variants / sizeof variants[0]; v++)
                check_forms(&cases[i], context, variants[v]);
}

/* NaN skips the step: not one byte changes, of the forms neither. */
static void test_adamw_with_a_nan_scale_writes_nothing(void **state)
{
    (void)state;
    static const form_case shape = { 131, 36, 0, 0, FP8FLOW_E4M3 };
    static const uint32_t nans[] = { 0x7FC00000u, 0xFFC00000u, 0x7F800001u, 0xFFFFFFFFu };
    for (int context = 0; context < NUM_CONTEXTS; context++)
        for (int n = 0; n < 8; n++) {
            fp8flow_context *c = make_numbered_context(context);
            state_arrays now = make_arrays(131 * 36), before = make_arrays(131 * 36);
            fill_gradient(&now, 3);
            fp8flow_tensor rows = make_form(&shape, FP8FLOW_ROWS), columns = make_form(&shape, FP8FLOW_COLUMNS);
            fp8flow_tensor rows2 = make_form(&shape, FP8FLOW_ROWS), columns2 = make_form(&shape, FP8FLOW_COLUMNS);
            float scale = f8_from_bits(nans[n % 4]);
            fp8flow_adamw_args args = adamw_args(&now, 1);
            args.grad_scale = &scale;
            args.rows = n < 4 ? &rows : NULL;
            args.columns = n < 4 ? &columns : NULL;
            assert_ok(fp8flow_adamw(c, &args));
            assert_same_arrays(&before, &now);
            assert_same_tensor(&rows2, &rows, 0);
            assert_same_tensor(&columns2, &columns, 0);
            free_tensor(&rows);
            free_tensor(&columns);
            free_tensor(&rows2);
            free_tensor(&columns2);
            free_arrays(&now);
            free_arrays(&before);
            fp8flow_context_destroy(c);
        }
}

/* No scale is a scale of 1; 0 and Inf are numbers like others: the second moment shows what came of them. */
static void test_adamw_scales_that_are_no_nan_step(void **state)
{
    (void)state;
    for (int context = 0; context < NUM_CONTEXTS; context++) {
        fp8flow_context *c = make_numbered_context(context);
        state_arrays none = make_arrays(1003), one = make_arrays(1003), zero = make_arrays(1003);
        fill_gradient(&none, 3);
        fill_gradient(&one, 3);
        fill_gradient(&zero, 3);
        const float scale[3] = { 1.0f, 0.0f, INFINITY };
        fp8flow_adamw_args a = adamw_args(&none, 1), b = adamw_args(&one, 1), z = adamw_args(&zero, 1);
        a.grad_scale = NULL;
        b.grad_scale = &scale[0];
        z.grad_scale = &scale[1];
        assert_ok(fp8flow_adamw(c, &a));
        assert_ok(fp8flow_adamw(c, &b));
        assert_same_arrays(&none, &one);
        assert_ok(fp8flow_adamw(c, &z));
        for (int64_t i = 0; i < zero.count; i++) assert_true(zero.m[i] == 0.0f && zero.v[i] == 0.0f);
        z.grad_scale = &scale[2];
        assert_ok(fp8flow_adamw(c, &z));
        for (int64_t i = 0; i < zero.count; i++)
            assert_true(zero.grad[i] == 0.0f ? zero.v[i] != zero.v[i] : isinf(zero.v[i]));
        free_arrays(&none);
        free_arrays(&one);
        free_arrays(&zero);
        fp8flow_context_destroy(c);
    }
}

static void test_adamw_bad_forms_are_named(void **state)
{
    (void)state;
    static const form_case shape = { 6, 4, 3, 0, FP8FLOW_E4M3 };
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    state_arrays arrays = make_arrays(24);
    fill_gradient(&arrays, 1);
    const fp8flow_tensor good_rows = make_form(&shape, FP8FLOW_ROWS), good_columns = make_form(&shape, FP8FLOW_COLUMNS);
    fp8flow_tensor rows = good_rows, columns = good_columns;
    fp8flow_adamw_args args = adamw_args(&arrays, 1);
    args.rows = &rows;
    args.columns = &columns;

    args.weight = NULL;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL, "rows is given, weight is NULL");
    args.weight = arrays.weight;
    rows.scaling = FP8FLOW_ROW128;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL,
                 "rows is (e4m3, row128, rows), expected (FP8, tile128, rows)");
    rows = good_rows;
    rows.stride = 5;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_ESHAPE, "rows has stride 5, expected 4");
    rows = good_rows;
    rows.rows = 9;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_ESHAPE, "rows is [9, 4], count is 24");
    rows = good_rows;
    rows.data = NULL;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL, "rows has no data");
    rows = good_rows;
    columns.layout = FP8FLOW_ROWS;
    columns.stride = 4;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL, "columns is (e4m3, tile128, rows), expected");
    columns = good_columns;
    columns.group_rows = 0;
    columns.stride = 6;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_ESHAPE, "rows has 3 rows per expert, columns has 0");
    columns = good_columns;
    columns.rows = 12;
    columns.cols = 2;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_ESHAPE, "columns is [12, 2], expected [6, 4]");
    columns = good_columns;
    columns.dtype = FP8FLOW_E5M2;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL, "rows is e4m3, columns is e5m2");
    assert_true(arrays.m[0] == 0.0f); /* nothing was written */

    rows = good_rows;
    columns = good_columns;
    free_tensor(&rows);
    free_tensor(&columns);
    free_arrays(&arrays);
    fp8flow_context_destroy(c);
}

static void test_optimizer_bad_arguments_are_named(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    state_arrays arrays = make_arrays(4);
    fill_gradient(&arrays, 1);
    fp8flow_adamw_args args = adamw_args(&arrays, 0);
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL, "step is 0");
    args = adamw_args(&arrays, 1);
    args.beta2 = 1.0f;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL, "beta2 is 1");
    args = adamw_args(&arrays, 1);
    args.beta1 = NAN;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL, "beta1 is nan");
    args = adamw_args(&arrays, 1);
    args.v = NULL;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL, "v is NULL, count is 4");
    args.count = -3;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL, "count is -3");
    args = adamw_args(&arrays, 1);
    args.lr = INFINITY;
    assert_fails(fp8flow_adamw(c, &args), FP8FLOW_EINVAL, "lr is inf");
    free_arrays(&arrays);
    fp8flow_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw_is_within_its_bound),
        cmocka_unit_test(test_adamw_is_the_same_for_any_threads_and_any_cut),
        cmocka_unit_test(test_adamw_weight_decay_is_decoupled),
        cmocka_unit_test(test_adamw_bias_corrections_keep_their_bits),
        cmocka_unit_test(test_adamw_forms_equal_quantize),
        cmocka_unit_test(test_adamw_with_a_nan_scale_writes_nothing),
        cmocka_unit_test(test_adamw_scales_that_are_no_nan_step),
        cmocka_unit_test(test_adamw_bad_forms_are_named),
        cmocka_unit_test(test_optimizer_bad_arguments_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
