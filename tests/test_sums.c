/* test_sums.c - sum, square_sum, add_counts, clip: FP64 bounds, hostile values, the same bits with any threads. */
#include "support.h"

enum { NUM_CONTEXTS = 4 };

/* Reference, CPU with one, two and three threads. */
static fp8flow_context *make_numbered_context(int i)
{
    return make_context(i == 0 ? FP8FLOW_REFERENCE : FP8FLOW_CPU, i == 0 ? 1 : i);
}

/* ---- sum and square_sum ---- */

typedef enum { VALUES, SQUARES, NUM_POWERS } sum_power;

static double run_sum(fp8flow_context *c, sum_power power, const float *x, int64_t count)
{
    double sum = -1.0;
    if (power == VALUES) assert_ok(fp8flow_sum(c, &(fp8flow_sum_args){ count, x, &sum }));
    else assert_ok(fp8flow_square_sum(c, &(fp8flow_square_sum_args){ count, x, &sum }));
    return sum;
}

/* `skip`: values before the first, so that addresses are not aligned. */
static void check_sum(sum_power power, int64_t count, int64_t skip)
{
    float *memory = poisoned((count + skip) * 4), *x = memory + skip;
    long double expected = 0.0L, magnitudes = 0.0L; /* 64 bits of mantissa: the judge of FP64 sums */
    for (int64_t i = 0; i < count; i++) {
        x[i] = test_value(DATA_OUTLIERS, 1, i / 100, i % 100);
        long double term = power == VALUES ? (long double)x[i] : (long double)x[i] * (long double)x[i];
        expected += term;
        magnitudes += fabsl(term);
    }
    double sum[NUM_CONTEXTS], bound = (double)magnitudes * (4096.0 + (double)count / 4096.0) * 0x1p-53;
    for (int i = 0; i < NUM_CONTEXTS; i++) {
        fp8flow_context *c = make_numbered_context(i);
        sum[i] = run_sum(c, power, x, count);
        assert_true(fabs((double)(sum[i] - expected)) <= bound);
        if (i > 1) assert_memory_equal(&sum[1], &sum[i], sizeof sum[1]);
        fp8flow_context_destroy(c);
    }
    free(memory);
}

static void test_sums_are_within_their_bounds(void **state)
{
    (void)state;
    static const int64_t counts[] = { 0, 1, 7, 8, 4095, 4096, 4097, 12288, 300001 };
    for (size_t s = 0; s < sizeof counts / sizeof counts[0]; s++)
        for (sum_power power = VALUES; power < NUM_POWERS; power++) {
            check_sum(power, counts[s], 0);
            check_sum(power, counts[s], 1);
        }
}

static void test_sums_show_every_bad_value(void **state)
{
    (void)state;
    float x[5000] = { 0 };
    for (int i = 0; i < 2; i++)
        for (int at = 0; at < 4999; at += 1249) {
            fp8flow_context *c = make_numbered_context(i);
            for (sum_power power = VALUES; power < NUM_POWERS; power++) {
                x[at] = NAN;
                double sum = run_sum(c, power, x, 5000);
                assert_true(sum != sum);
                x[at] = -INFINITY;
                assert_true(run_sum(c, power, x, 5000) == (power == VALUES ? -INFINITY : INFINITY));
                x[at] = x[at + 1] = 3e38f; /* their sum and their squares are beyond FP32 */
                assert_true(run_sum(c, power, x, 5000) == 2 * (power == VALUES ? 1.0 : (double)3e38f) * (double)3e38f);
                x[at] = x[at + 1] = 0.0f;
            }
            x[at] = INFINITY;
            x[at + 1] = -INFINITY;
            double sum = run_sum(c, VALUES, x, 5000);
            assert_true(sum != sum);
            x[at] = x[at + 1] = 0.0f;
            fp8flow_context_destroy(c);
        }
}

/* ---- add_counts ---- */

static void test_add_counts_adds_modulo_two_to_the_64(void **state)
{
    (void)state;
    enum { COUNT = 1001 };
    static const int64_t counts[] = { 0, 1, 255, 256, 257, COUNT };
    for (size_t s = 0; s < sizeof counts / sizeof counts[0]; s++)
        for (int i = 0; i < NUM_CONTEXTS; i++) {
            fp8flow_context *c = make_numbered_context(i);
            uint64_t x[COUNT], y[COUNT], expected[COUNT];
            for (int64_t j = 0; j < COUNT; j++) {
                x[j] = j % 7 == 0 ? (uint64_t)INT64_MAX : j % 7 == 1 ? (uint64_t)INT64_MIN : (uint64_t)j;
                y[j] = f8_random(1, 1, (uint64_t)j);
                expected[j] = j < counts[s] ? x[j] + y[j] : y[j];
            }
            assert_ok(fp8flow_add_counts(c, &(fp8flow_add_counts_args){ counts[s], (int64_t *)x, (int64_t *)y }));
            assert_memory_equal(y, expected, sizeof y);
            assert_ok(fp8flow_add_counts(c, &(fp8flow_add_counts_args){ counts[s], (int64_t *)y, (int64_t *)y }));
            for (int64_t j = 0; j < COUNT; j++) assert_true(y[j] == (j < counts[s] ? 2 * expected[j] : expected[j]));
            fp8flow_context_destroy(c);
        }
}

/* ---- clip ---- */

typedef struct {
    int64_t count;
    double square_sums[3], limit, norm;
    uint32_t scale; /* bits */
} clip_case;

static const uint64_t nan64 = UINT64_C(0x7FF8000000000000);

static void check_clip(fp8flow_context *c, const clip_case *k)
{
    double norm = -1.0;
    float scale = -1.0f;
    fp8flow_clip_args args = { k->count, k->count ? k->square_sums : NULL, k->limit, &norm, &scale };
    assert_ok(fp8flow_clip(c, &args));
    if (isnan(k->norm)) assert_memory_equal(&norm, &nan64, sizeof norm);
    else assert_memory_equal(&norm, &k->norm, sizeof norm);
    assert_int_equal(f8_bits(scale), k->scale);
}

static void test_clip_scales_to_the_largest_norm(void **state)
{
    (void)state;
    const uint32_t one = 0x3F800000u, nan = 0x7FC00000u;
    const clip_case cases[] = {
        { 0, { 0 }, 1.0, 0.0, one },                                           /* no parts */
        { 2, { 9.0, 16.0 }, 0.0, 5.0, one },                                   /* off */
        { 2, { 9.0, 16.0 }, 5.0, 5.0, one },                                   /* not above */
        { 2, { 9.0, 16.0 }, 6.0, 5.0, one },                                   /* below */
        { 2, { 9.0, 16.0 }, 2.5, 5.0, 0x3F000000u },                           /* a half */
        { 1, { 9.0 }, 1.0, 3.0, f8_bits((float)(1.0 / 3.0)) },                 /* rounded once */
        { 3, { 0x1p-60, 1.0, 0x1p-60 }, 0.5, 1.0, 0x3F000000u },               /* small beside large */
        { 3, { 0x1p52, 0.5, 0.5 }, 0.0, 0x1p26, one },                         /* ties go to even twice */
        { 2, { (double)INFINITY, 1.0 }, 1.0, (double)INFINITY, nan },          /* Inf */
        { 2, { (double)INFINITY, 1.0 }, 0.0, (double)INFINITY, nan },          /* also without clipping */
        { 2, { 0x1p1023, 0x1p1023 }, 1.0, (double)INFINITY, nan },             /* a sum beyond FP64 */
        { 2, { (double)NAN, 1.0 }, 1.0, (double)NAN, nan },                    /* NaN */
        { 2, { (double)INFINITY, -(double)INFINITY }, 1.0, (double)NAN, nan }, /* a NaN of arithmetic */
        { 1, { -1.0 }, 1.0, (double)NAN, nan },                                /* no sum of squares */
        { 1, { 0x1p1000 }, 0x1p500, 0x1p500, one },                            /* as large as allowed */
        { 1, { 0x1p1000 }, 0x1p360, 0x1p500, 0x00000200u },                    /* subnormal */
        { 1, { 0x1p1000 }, 0x1p100, 0x1p500, 0 },                              /* beyond that */
        { 1, { 0x1p-1074 }, 0x1p-600, 0x1p-537, 0x20000000u },                 /* a subnormal sum */
    };
    for (int i = 0; i < NUM_CONTEXTS; i++) {
        fp8flow_context *c = make_numbered_context(i);
        for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) check_clip(c, &cases[k]);
        fp8flow_context_destroy(c);
    }
}

/* Parts of very different size: any other order of the sum gives other bits. */
static void test_clip_adds_in_ascending_order(void **state)
{
    (void)state;
    enum { COUNT = 999 };
    double parts[COUNT], sum = 0.0;
    for (int64_t i = 0; i < COUNT; i++) {
        double x = (double)test_value(DATA_HEAVY_TAILED, 1, i, 0);
        sum += parts[i] = x * x;
    }
    for (int i = 0; i < NUM_CONTEXTS; i++) {
        fp8flow_context *c = make_numbered_context(i);
        double norm, expected = sqrt(sum);
        float scale, expected_scale = (float)(0.3 / expected);
        assert_ok(fp8flow_clip(c, &(fp8flow_clip_args){ COUNT, parts, 0.3, &norm, &scale }));
        assert_memory_equal(&norm, &expected, sizeof norm);
        assert_memory_equal(&scale, &expected_scale, sizeof scale);
        fp8flow_context_destroy(c);
    }
}

static void test_sums_bad_arguments_are_named(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    double sum = 0.0;
    float x = 0.0f, scale;
    int64_t counter = 0;
    assert_fails(fp8flow_square_sum(c, &(fp8flow_square_sum_args){ 3, NULL, &sum }), FP8FLOW_EINVAL,
                 "square_sum: x is NULL, count is 3");
    assert_fails(fp8flow_square_sum(c, &(fp8flow_square_sum_args){ 1, &x, NULL }), FP8FLOW_EINVAL, "sum is NULL");
    assert_fails(fp8flow_sum(c, &(fp8flow_sum_args){ 3, NULL, &sum }), FP8FLOW_EINVAL, "sum: x is NULL, count is 3");
    assert_fails(fp8flow_sum(c, &(fp8flow_sum_args){ -1, &x, &sum }), FP8FLOW_EINVAL, "sum: count is -1");
    assert_fails(fp8flow_add_counts(c, &(fp8flow_add_counts_args){ 2, NULL, &counter }), FP8FLOW_EINVAL,
                 "add_counts: x is NULL, count is 2");
    assert_fails(fp8flow_add_counts(c, &(fp8flow_add_counts_args){ 2, &counter, NULL }), FP8FLOW_EINVAL,
                 "add_counts: y is NULL, count is 2");
    assert_fails(fp8flow_add_counts(c, &(fp8flow_add_counts_args){ -2, &counter, &counter }), FP8FLOW_EINVAL,
                 "add_counts: count is -2");
    const fp8flow_clip_args good = { 1, &sum, 1.0, &sum, &scale };
    fp8flow_clip_args clip = good;
    clip.square_sums = NULL;
    assert_fails(fp8flow_clip(c, &clip), FP8FLOW_EINVAL, "clip: square_sums is NULL, count is 1");
    clip = good;
    clip.count = -5;
    assert_fails(fp8flow_clip(c, &clip), FP8FLOW_EINVAL, "clip: count is -5");
    clip = good;
    clip.scale = NULL;
    assert_fails(fp8flow_clip(c, &clip), FP8FLOW_EINVAL, "clip: scale is NULL");
    static const double bad[] = { -1.0, (double)NAN, (double)INFINITY };
    for (int i = 0; i < 3; i++) {
        clip = good;
        clip.limit = bad[i];
        assert_fails(fp8flow_clip(c, &clip), FP8FLOW_EINVAL, "clip: limit is");
    }
    fp8flow_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_are_within_their_bounds),
        cmocka_unit_test(test_sums_show_every_bad_value),
        cmocka_unit_test(test_add_counts_adds_modulo_two_to_the_64),
        cmocka_unit_test(test_clip_scales_to_the_largest_norm),
        cmocka_unit_test(test_clip_adds_in_ascending_order),
        cmocka_unit_test(test_sums_bad_arguments_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
