/* test_decoder_ops.c - add, rmsnorm, rope: bounds against FP64, numeric gradients, CPU against reference, threads. */
#include "support.h"

static const f8_tensor_format f32_rows = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
static const f8_tensor_format bf16_rows = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };

static fp8flow_tensor make_filled(f8_tensor_format format, int64_t rows, int64_t cols, data_kind kind, uint64_t seed)
{
    fp8flow_tensor t = make_tensor(format, rows, cols, 0, 1);
    fill_tensor(&t, kind, seed);
    return t;
}

static fp8flow_tensor copy_of(const fp8flow_tensor *t)
{
    fp8flow_tensor copy = *t;
    int64_t bytes = fp8flow_tensor_data_bytes(t);
    copy.data = poisoned(bytes);
    if (bytes) memcpy(copy.data, t->data, (size_t)bytes);
    return copy;
}

static void assert_within(double value, double expected, double tolerance, const char *what, int64_t row, int64_t col)
{
    if (!(fabs(value - expected) <= tolerance))
        fail_msg("%s[%lld, %lld] is %.9g, expected %.9g +- %.3g", what, (long long)row, (long long)col, value, expected,
                 tolerance);
}

/* Contexts that every operator runs on: reference, CPU with one, two and three threads. */
enum { NUM_CONTEXTS = 4 };

static fp8flow_context *make_numbered_context(int i)
{
    return make_context(i == 0 ? FP8FLOW_REFERENCE : FP8FLOW_CPU, i == 0 ? 1 : i);
}

/* ---- add ---- */

static void check_add(f8_tensor_format fa, f8_tensor_format fb, f8_tensor_format fy, const int64_t *shape,
                      data_kind kind)
{
    fp8flow_tensor a = make_filled(fa, shape[0], shape[1], kind, 1);
    fp8flow_tensor b = make_filled(fb, shape[0], shape[1], kind, 2);
    fp8flow_tensor y[NUM_CONTEXTS];
    for (int i = 0; i < NUM_CONTEXTS; i++) {
        fp8flow_context *c = make_numbered_context(i);
        y[i] = make_tensor(fy, shape[0], shape[1], 0, 1);
        fp8flow_add_args args = { &a, &b, &y[i] };
        assert_ok(fp8flow_add(c, &args));
        assert_same_tensor(&y[0], &y[i], 1);
        fp8flow_context_destroy(c);
    }
    for (int64_t row = 0; row < shape[0]; row++)
        for (int64_t col = 0; col < shape[1]; col++) {
            float sum = f8_value(&a, row, col, 0) + f8_value(&b, row, col, 0);
            if (fy.dtype == FP8FLOW_BF16) sum = f8_bf16_decode(f8_bf16_encode(sum));
            float got = f8_value(&y[0], row, col, 0);
            assert_true(sum != sum ? got != got : f8_bits(sum) == f8_bits(got));
        }
    for (int i = 0; i < NUM_CONTEXTS; i++) free_tensor(&y[i]);
    free_tensor(&a);
    free_tensor(&b);
}

static void test_add_is_exact_for_every_mix_of_formats(void **state)
{
    (void)state;
    static const int64_t shape[5][2] = { { 0, 8 }, { 3, 1 }, { 5, 17 }, { 2, 128 }, { 260, 264 } };
    const f8_tensor_format format[2] = { f32_rows, bf16_rows };
    for (int s = 0; s < 5; s++)
        for (int mix = 0; mix < 8; mix++)
            for (int kind = 0; kind < NUM_DATA_KINDS; kind += s < 4 ? 1 : 4)
                check_add(format[mix & 1], format[mix >> 1 & 1], format[mix >> 2], shape[s], (data_kind)kind);
}

static void test_add_works_in_place_and_with_strides(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_tensor a = make_filled(bf16_rows, 4, 32, DATA_NORMAL, 1), b = make_filled(f32_rows, 4, 32, DATA_NORMAL, 2);
    fp8flow_tensor before = copy_of(&a), part = a, part_b = b;
    part.cols = part_b.cols = 21;
    fp8flow_add_args args = { &part, &part_b, &part };
    assert_ok(fp8flow_add(c, &args));
    for (int64_t row = 0; row < 4; row++)
        for (int64_t col = 0; col < 32; col++) {
            float sum = f8_value(&before, row, col, 0) + (col < 21 ? f8_value(&b, row, col, 0) : 0.0f);
            assert_true(f8_value(&a, row, col, 0) == f8_bf16_decode(f8_bf16_encode(sum)));
        }
    free_tensor(&a);
    free_tensor(&b);
    free_tensor(&before);
    fp8flow_context_destroy(c);
}

/* ---- rmsnorm ---- */

/* Rows, segments, width. */
static const int64_t norm_shapes[][3] = { { 0, 1, 16 },  { 1, 1, 1 },    { 3, 2, 7 },    { 5, 1, 65 },   { 2, 3, 48 },
                                          { 33, 4, 64 }, { 70, 1, 512 }, { 7, 1, 1000 }, { 129, 3, 130 } };
enum { NUM_NORM_SHAPES = sizeof norm_shapes / sizeof norm_shapes[0] };

static float *make_weight(int64_t width)
{
    float *weight = poisoned(width * 4);
    for (int64_t i = 0; i < width; i++) weight[i] = 1.0f + 0.5f * f8_normal(9, 9, (uint64_t)i);
    return weight;
}

/* r of a segment in FP64. */
static double model_rstd(const fp8flow_tensor *x, int64_t row, int64_t first, int64_t width, double eps)
{
    double squares = 0.0;
    for (int64_t i = 0; i < width; i++) squares += pow((double)f8_value(x, row, first + i, 0), 2.0);
    return 1.0 / sqrt(squares / (double)width + eps);
}

static void check_rmsnorm(const int64_t *shape, data_kind kind, int context)
{
    fp8flow_context *c = make_numbered_context(context);
    int64_t rows = shape[0], segments = shape[1], width = shape[2];
    fp8flow_tensor x = make_filled(bf16_rows, rows, segments * width, kind, 3), y = copy_of(&x);
    float *weight = make_weight(width), *rstd = poisoned(rows * segments * 4);
    fp8flow_rmsnorm_args args = { &y, weight, width, 1e-5f, &y, rstd }; /* in place */
    assert_ok(fp8flow_rmsnorm(c, &args));
    for (int64_t row = 0; row < rows; row++)
        for (int64_t col = 0; col < x.cols; col++) {
            double r = model_rstd(&x, row, col / width * width, width, (double)1e-5f);
            double expected = (double)f8_value(&x, row, col, 0) * r * (double)weight[col % width];
            assert_within((double)f8_value(&y, row, col, 0), expected, fabs(expected) * 0x1.12p-8 + 1e-39, "y", row,
                          col);
            assert_within((double)rstd[row * segments + col / width], r, r * 0x1p-20, "rstd", row, col / width);
        }
    free(weight);
    free(rstd);
    free_tensor(&x);
    free_tensor(&y);
    fp8flow_context_destroy(c);
}

static void test_rmsnorm_is_within_its_bound(void **state)
{
    (void)state;
    static const data_kind kinds[] = { DATA_NORMAL, DATA_HEAVY_TAILED, DATA_OUTLIERS, DATA_ZERO_BLOCKS };
    for (int s = 0; s < NUM_NORM_SHAPES; s++)
        for (int k = 0; k < 4; k++)
            for (int context = 0; context < 2; context++) check_rmsnorm(norm_shapes[s], kinds[k], context);
}

/* One backward call on fresh copies; returns dx, and dweight which starts at 1. */
static fp8flow_tensor run_backward(fp8flow_context *c, fp8flow_rmsnorm_backward_args args, float *dweight)
{
    fp8flow_tensor dx = copy_of(args.dy); /* dx is dy */
    for (int64_t i = 0; i < args.width; i++) dweight[i] = 1.0f;
    args.dy = args.dx = &dx;
    args.dweight = dweight;
    assert_ok(fp8flow_rmsnorm_backward(c, &args));
    return dx;
}

/* sum dy * rmsnorm(x) of one segment, as a function of x, with x[i] moved by `step`. */
static double norm_objective(const fp8flow_rmsnorm_backward_args *a, int64_t row, int64_t first, int64_t i, double step)
{
    double squares = 0.0, dot = 0.0;
    for (int64_t j = 0; j < a->width; j++) {
        double x = (double)f8_value(a->x, row, first + j, 0) + (i == j ? step : 0.0);
        squares += x * x;
        dot += x * (double)a->weight[j] * (double)f8_value(a->dy, row, first + j, 0);
    }
    return dot / sqrt(squares / (double)a->width + 1e-3);
}

/* dx against the numeric gradient; the bound is relative to the largest term of the segment. */
static void check_dx(const fp8flow_rmsnorm_backward_args *a, const fp8flow_tensor *dx)
{
    int64_t stride = a->width > 64 ? 13 : 1; /* the numeric gradient of a wide segment is slow */
    for (int64_t row = 0; row < dx->rows; row++)
        for (int64_t col = row % stride; col < dx->cols; col += stride) {
            int64_t first = col / a->width * a->width;
            double r = (double)a->rstd[row * (dx->cols / a->width) + col / a->width], largest = 0.0;
            for (int64_t j = 0; j < a->width; j++)
                largest = fmax(largest, fabs((double)f8_value(a->dy, row, first + j, 0) * (double)a->weight[j] * r));
            double expected =
                (norm_objective(a, row, first, col - first, 1e-6) - norm_objective(a, row, first, col - first, -1e-6)) /
                2e-6;
            assert_within((double)f8_value(dx, row, col, 0), expected, 0x1p-7 * largest, "dx", row, col);
        }
}

static void check_dweight(const fp8flow_rmsnorm_backward_args *a, const float *dweight)
{
    int64_t segments = a->x->cols / a->width;
    for (int64_t i = 0; i < a->width; i++) {
        double expected = 1.0, magnitude = 1.0;
        for (int64_t row = 0; row < a->x->rows; row++)
            for (int64_t segment = 0; segment < segments; segment++) {
                int64_t col = segment * a->width + i;
                double term = (double)f8_value(a->x, row, col, 0) * (double)a->rstd[row * segments + segment] *
                              (double)f8_value(a->dy, row, col, 0);
                expected += term;
                magnitude += fabs(term);
            }
        assert_within((double)dweight[i], expected, 0x1p-20 * magnitude, "dweight", 0, i);
    }
}

static void test_rmsnorm_backward_equals_numeric_gradient_for_any_number_of_threads(void **state)
{
    (void)state;
    for (int s = 0; s < NUM_NORM_SHAPES; s++) {
        int64_t rows = norm_shapes[s][0], segments = norm_shapes[s][1], width = norm_shapes[s][2];
        fp8flow_tensor x = make_filled(bf16_rows, rows, segments * width, DATA_NORMAL, 4);
        fp8flow_tensor dy = make_filled(bf16_rows, rows, segments * width, DATA_NORMAL, 5), dx[NUM_CONTEXTS];
        float *weight = make_weight(width), *rstd = poisoned(rows * segments * 4), *dweight[NUM_CONTEXTS];
        for (int64_t i = 0; i < rows * segments; i++)
            rstd[i] = (float)model_rstd(&x, i / segments, i % segments * width, width, 1e-3);
        fp8flow_rmsnorm_backward_args args = { &x, &dy, weight, rstd, width, NULL, NULL };
        for (int i = 0; i < NUM_CONTEXTS; i++) {
            fp8flow_context *c = make_numbered_context(i);
            dweight[i] = poisoned(width * 4);
            dx[i] = run_backward(c, args, dweight[i]);
            if (i < 2) check_dx(&args, &dx[i]);
            check_dweight(&args, dweight[i]);
            if (i > 1) assert_same_tensor(&dx[1], &dx[i], 1);
            if (i > 1) assert_memory_equal(dweight[1], dweight[i], (size_t)width * 4);
            fp8flow_context_destroy(c);
        }
        for (int i = 0; i < NUM_CONTEXTS; i++) {
            free(dweight[i]);
            free_tensor(&dx[i]);
        }
        free(weight);
        free(rstd);
        free_tensor(&x);
        free_tensor(&dy);
    }
}

static void test_rmsnorm_bad_arguments_are_named(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_tensor x = make_filled(bf16_rows, 2, 48, DATA_NORMAL, 1), y = copy_of(&x);
    float weight[48], rstd[2];
    fp8flow_rmsnorm_args args = { &x, weight, 20, 1e-6f, &y, rstd };
    assert_fails(fp8flow_rmsnorm(c, &args), FP8FLOW_ESHAPE, "x has 48 columns, not a multiple of width 20");
    args.width = 0;
    assert_fails(fp8flow_rmsnorm(c, &args), FP8FLOW_ESHAPE, "width is 0");
    args.width = 48;
    args.eps = -1.0f;
    assert_fails(fp8flow_rmsnorm(c, &args), FP8FLOW_EINVAL, "eps is -1");
    y.cols = 40;
    assert_fails(fp8flow_rmsnorm(c, &args), FP8FLOW_ESHAPE, "y is [2, 40], x is [2, 48]");
    y.cols = 48;
    y.dtype = FP8FLOW_F32;
    assert_fails(fp8flow_rmsnorm(c, &args), FP8FLOW_EINVAL, "y is f32, expected bf16");
    fp8flow_rmsnorm_backward_args backward = { &x, &x, weight, rstd, 48, &x, NULL };
    assert_fails(fp8flow_rmsnorm_backward(c, &backward), FP8FLOW_EINVAL, "dweight is NULL");
    backward.rstd = NULL;
    assert_fails(fp8flow_rmsnorm_backward(c, &backward), FP8FLOW_EINVAL, "rstd is NULL");
    fp8flow_add_args add = { &x, &x, &y };
    y.rows = 1;
    assert_fails(fp8flow_add(c, &add), FP8FLOW_ESHAPE, "y is [1, 48], a is [2, 48]");
    free_tensor(&x);
    free_tensor(&y);
    fp8flow_context_destroy(c);
}

/* ---- rope ---- */

/* Sequences, length, heads, head_dim, first position. */
static const int64_t rope_shapes[][5] = { { 0, 4, 2, 8, 0 },        { 1, 1, 1, 2, 0 },    { 2, 5, 3, 6, 7 },
                                          { 3, 40, 2, 64, 100000 }, { 2, 33, 4, 128, 0 }, { 1, 3, 1, 2048, 5 } };

static void check_rope(const int64_t *shape, fp8flow_rotation rotation)
{
    int64_t length = shape[1], width = shape[3], half = width / 2;
    fp8flow_tensor x = make_filled(bf16_rows, shape[0] * length, shape[2] * width, DATA_NORMAL, 6), y[NUM_CONTEXTS];
    for (int i = 0; i < NUM_CONTEXTS; i++) {
        fp8flow_context *c = make_numbered_context(i);
        y[i] = copy_of(&x);
        fp8flow_rope_args args = { &y[i], length, width, shape[4], 1e6f, rotation };
        assert_ok(fp8flow_rope(c, &args));
        if (i > 1) assert_same_tensor(&y[1], &y[i], 1);
        fp8flow_context_destroy(c);
    }
    for (int64_t row = 0; row < x.rows; row++)
        for (int64_t col = 0; col < x.cols; col++) {
            int64_t i = col % width % half, low = col / width * width + i;
            double angle = (double)(shape[4] + row % length) * pow(1e6, -2.0 * (double)i / (double)width);
            if (rotation == FP8FLOW_ROTATE_BACK) angle = -angle;
            double a = (double)f8_value(&x, row, low, 0), b = (double)f8_value(&x, row, low + half, 0);
            double expected = col == low ? a * cos(angle) - b * sin(angle) : b * cos(angle) + a * sin(angle);
            for (int k = 0; k < 2; k++)
                assert_within((double)f8_value(&y[k], row, col, 0), expected, 0x1.12p-8 * (fabs(a) + fabs(b)), "x", row,
                              col);
        }
    for (int i = 0; i < NUM_CONTEXTS; i++) free_tensor(&y[i]);
    free_tensor(&x);
}

static void test_rope_is_within_its_bound_both_ways(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof rope_shapes / sizeof rope_shapes[0]; s++) {
        check_rope(rope_shapes[s], FP8FLOW_ROTATE);
        check_rope(rope_shapes[s], FP8FLOW_ROTATE_BACK);
    }
}

static void test_rope_bad_arguments_are_named(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_tensor x = make_filled(bf16_rows, 6, 24, DATA_NORMAL, 1);
    const fp8flow_rope_args good = { &x, 3, 8, 0, 1e4f, FP8FLOW_ROTATE };
    fp8flow_rope_args args = good;
    args.head_dim = 7;
    assert_fails(fp8flow_rope(c, &args), FP8FLOW_ESHAPE, "head_dim is 7");
    args.head_dim = 16;
    assert_fails(fp8flow_rope(c, &args), FP8FLOW_ESHAPE, "x has 24 columns, not a multiple of head_dim 16");
    args = good;
    args.sequence_length = 4;
    assert_fails(fp8flow_rope(c, &args), FP8FLOW_ESHAPE, "x has 6 rows, not a multiple of sequence_length 4");
    args = good;
    args.first_position = -1;
    assert_fails(fp8flow_rope(c, &args), FP8FLOW_EINVAL, "first_position is -1");
    args = good;
    args.theta = 0.0f;
    assert_fails(fp8flow_rope(c, &args), FP8FLOW_EINVAL, "theta is 0");
    args = good;
    args.rotation = (fp8flow_rotation)0;
    assert_fails(fp8flow_rope(c, &args), FP8FLOW_EINVAL, "unknown rotation 0");
    free_tensor(&x);
    fp8flow_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_is_exact_for_every_mix_of_formats),
        cmocka_unit_test(test_add_works_in_place_and_with_strides),
        cmocka_unit_test(test_rmsnorm_is_within_its_bound),
        cmocka_unit_test(test_rmsnorm_backward_equals_numeric_gradient_for_any_number_of_threads),
        cmocka_unit_test(test_rmsnorm_bad_arguments_are_named),
        cmocka_unit_test(test_rope_is_within_its_bound_both_ways),
        cmocka_unit_test(test_rope_bad_arguments_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
