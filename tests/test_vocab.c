/* test_vocab.c - embed, embed_backward, cross_entropy: exact copies and sums, FP64 losses and gradients, threads. */
#include "support.h"

static const f8_tensor_format f32_rows = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
static const f8_tensor_format bf16_rows = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };

/* Contexts that every operator runs on: reference, CPU with one, two and three threads. */
enum { NUM_CONTEXTS = 4 };

static fp8flow_context *make_numbered_context(int i)
{
    return make_context(i == 0 ? FP8FLOW_REFERENCE : FP8FLOW_CPU, i == 0 ? 1 : i);
}

static fp8flow_tensor make_filled(f8_tensor_format format, int64_t rows, int64_t cols, data_kind kind, uint64_t seed)
{
    fp8flow_tensor t = make_tensor(format, rows, cols, 0, 1);
    fill_tensor(&t, kind, seed);
    return t;
}

static int32_t *make_ids(int64_t count, int64_t vocabulary, int64_t lowest)
{
    int32_t *ids = poisoned(count * 4);
    for (int64_t t = 0; t < count; t++)
        ids[t] = (int32_t)(lowest + (int64_t)(f8_random(7, 7, (uint64_t)t) % (uint64_t)(vocabulary - lowest)));
    return ids;
}

/* ---- Embedding ---- */

static const int64_t embed_shapes[][3] = { { 0, 5, 8 }, { 1, 1, 1 }, { 9, 3, 65 }, { 130, 40, 200 }, { 700, 7, 130 } };
enum { NUM_EMBED_SHAPES = sizeof embed_shapes / sizeof embed_shapes[0] };

static void test_embed_copies_rows_bit_for_bit(void **state)
{
    (void)state;
    for (int s = 0; s < NUM_EMBED_SHAPES; s++)
        for (int i = 0; i < NUM_CONTEXTS; i++) {
            int64_t num_tokens = embed_shapes[s][0], vocabulary = embed_shapes[s][1], width = embed_shapes[s][2];
            fp8flow_context *c = make_numbered_context(i);
            fp8flow_tensor table = make_filled(bf16_rows, vocabulary, width, DATA_SPECIAL, 1);
            fp8flow_tensor y = make_tensor(bf16_rows, num_tokens, width, 0, 1);
            int32_t *ids = make_ids(num_tokens, vocabulary, 0);
            fp8flow_embed_args args = { &table, ids, &y };
            assert_ok(fp8flow_embed(c, &args));
            for (int64_t t = 0; t < num_tokens; t++)
                assert_memory_equal((uint16_t *)y.data + t * width, (uint16_t *)table.data + ids[t] * width,
                                    (size_t)width * 2);
            free(ids);
            free_tensor(&table);
            free_tensor(&y);
            fp8flow_context_destroy(c);
        }
}

/* Gradients of very different size: any other order of the sum gives other bits. */
static void test_embed_backward_adds_tokens_in_ascending_order(void **state)
{
    (void)state;
    for (int s = 0; s < NUM_EMBED_SHAPES; s++)
        for (int i = 0; i < NUM_CONTEXTS; i++) {
            int64_t num_tokens = embed_shapes[s][0], vocabulary = embed_shapes[s][1], width = embed_shapes[s][2];
            fp8flow_context *c = make_numbered_context(i);
            fp8flow_tensor dy = make_filled(bf16_rows, num_tokens, width, DATA_HEAVY_TAILED, 1);
            fp8flow_tensor dtable = make_filled(f32_rows, vocabulary, width, DATA_NORMAL, 2);
            fp8flow_tensor expected = make_filled(f32_rows, vocabulary, width, DATA_NORMAL, 2);
            int32_t *ids = make_ids(num_tokens, vocabulary, 0);
            fp8flow_embed_backward_args args = { &dy, ids, &dtable };
            assert_ok(fp8flow_embed_backward(c, &args));
            for (int64_t t = 0; t < num_tokens; t++)
                for (int64_t col = 0; col < width; col++)
                    ((float *)expected.data)[ids[t] * width + col] += f8_value(&dy, t, col, 0);
            assert_same_tensor(&expected, &dtable, 1);
            free(ids);
            free_tensor(&dy);
            free_tensor(&dtable);
            free_tensor(&expected);
            fp8flow_context_destroy(c);
        }
}

/* ---- Cross entropy ---- */

/* Softmax of a row in FP64; returns the log-sum-exp. */
static double model_softmax(const fp8flow_tensor *logits, int64_t row, double *p)
{
    double largest = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < logits->cols; i++) largest = fmax(largest, (double)f8_value(logits, row, i, 0));
    for (int64_t i = 0; i < logits->cols; i++) sum += p[i] = exp((double)f8_value(logits, row, i, 0) - largest);
    for (int64_t i = 0; i < logits->cols; i++) p[i] /= sum;
    return largest + log(sum);
}

static void check_row(const fp8flow_tensor *logits, const fp8flow_tensor *gradient, int64_t t, int32_t target,
                      float loss, double grad_scale)
{
    enum { MAX_VOCABULARY = 70000 };
    static double p[MAX_VOCABULARY];
    double lse = model_softmax(logits, t, p), rounding = gradient->dtype == FP8FLOW_BF16 ? 0x1.01p-8 : 0x1p-20;
    double expected = target < 0 ? 0.0 : lse - (double)f8_value(logits, t, target, 0);
    assert_true(fabs((double)loss - expected) <= 0x1p-18 * (1.0 + fabs(expected)));
    for (int64_t i = 0; i < logits->cols; i++) {
        double slope = target < 0 ? 0.0 : (p[i] - (i == target ? 1.0 : 0.0)) * grad_scale;
        double tolerance = rounding * fabs(slope) + fabs(grad_scale) * (0x1p-20 * p[i] + 0x1p-23 * (i == target));
        double difference = fabs((double)f8_value(gradient, t, i, 0) - slope);
        if (!(difference <= tolerance + 1e-38))
            fail_msg("token %lld, logit %lld of %lld: gradient off by %g, allowed %g", (long long)t, (long long)i,
                     (long long)logits->cols, difference, tolerance);
    }
}

/* Poisoned, with three elements between its rows. */
static fp8flow_tensor make_gradient(f8_tensor_format format, int64_t rows, int64_t cols)
{
    fp8flow_tensor t = f8_tensor_make(format, rows, cols, 0);
    t.stride += 3;
    t.data = poisoned(fp8flow_tensor_data_bytes(&t));
    return t;
}

static void check_cross_entropy(const f8_tensor_format *formats, int64_t num_tokens, int64_t vocabulary, data_kind kind)
{
    fp8flow_tensor logits = make_filled(formats[0], num_tokens, vocabulary, kind, 3), gradient[NUM_CONTEXTS];
    fp8flow_tensor before = make_filled(formats[0], num_tokens, vocabulary, kind, 3);
    int32_t *target = make_ids(num_tokens, vocabulary, -1);
    float *loss[NUM_CONTEXTS];
    for (int i = 0; i < NUM_CONTEXTS; i++) {
        fp8flow_context *c = make_numbered_context(i);
        /* Rows that are aligned and rows that are not go different ways on a GPU. */
        gradient[i] = i == 2 ? make_tensor(formats[1], num_tokens, vocabulary, 0, 1)
                             : make_gradient(formats[1], num_tokens, vocabulary);
        loss[i] = poisoned(num_tokens * 4);
        fp8flow_cross_entropy_args args = { &logits, target, 0.125f, &gradient[i], loss[i] };
        assert_ok(fp8flow_cross_entropy(c, &args));
        assert_same_tensor(&before, &logits, 1);
        if (i == 3) assert_same_tensor(&gradient[1], &gradient[i], 1);
        if (i == 3 && num_tokens) assert_memory_equal(loss[1], loss[i], (size_t)num_tokens * 4);
        fp8flow_context_destroy(c);
    }
    for (int i = 0; i < 3; i++)
        for (int64_t t = 0; t < num_tokens; t++) check_row(&logits, &gradient[i], t, target[t], loss[i][t], 0.125);
    for (int i = 0; i < NUM_CONTEXTS; i++) {
        free(loss[i]);
        free_tensor(&gradient[i]);
    }
    free(target);
    free_tensor(&logits);
    free_tensor(&before);
}

static void test_cross_entropy_is_within_its_bound(void **state)
{
    (void)state;
    static const int64_t shape[][2] = { { 0, 256 }, { 3, 1 },    { 9, 2 },    { 17, 7 },    { 5, 8 },
                                        { 33, 9 },  { 40, 256 }, { 3, 1003 }, { 2, 32768 }, { 2, 65540 } };
    static const data_kind kinds[] = { DATA_NORMAL, DATA_OUTLIERS, DATA_SMALL_INTEGERS };
    const f8_tensor_format formats[][2] = {
        { f32_rows, f32_rows }, { f32_rows, bf16_rows }, { bf16_rows, f32_rows }, { bf16_rows, bf16_rows }
    };
    for (size_t s = 0; s < sizeof shape / sizeof shape[0]; s++)
        for (int k = 0; k < 3; k++)
            for (int f = 0; f < 4; f++) check_cross_entropy(formats[f], shape[s][0], shape[s][1], kinds[k]);
}

/* Bit for bit what a gradient of its own gets. */
static void test_cross_entropy_gradient_may_replace_the_logits(void **state)
{
    (void)state;
    static const int64_t shape[][2] = { { 7, 37 }, { 3, 8192 }, { 300, 4096 } };
    const f8_tensor_format formats[] = { f32_rows, bf16_rows };
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < NUM_CONTEXTS; i++)
            for (int f = 0; f < 2; f++) {
                int64_t tokens = shape[s][0], vocabulary = shape[s][1];
                fp8flow_context *c = make_numbered_context(i);
                fp8flow_tensor x = make_filled(formats[f], tokens, vocabulary, DATA_NORMAL, 1);
                fp8flow_tensor gradient = make_tensor(formats[f], tokens, vocabulary, 0, 1);
                int32_t *target = make_ids(tokens, vocabulary, -1);
                float *loss = poisoned(tokens * 4), *loss2 = poisoned(tokens * 4);
                assert_ok(fp8flow_cross_entropy(c, &(fp8flow_cross_entropy_args){ &x, target, 2.0f, &gradient, loss }));
                assert_ok(fp8flow_cross_entropy(c, &(fp8flow_cross_entropy_args){ &x, target, 2.0f, &x, loss2 }));
                assert_same_tensor(&gradient, &x, 1);
                assert_memory_equal(loss, loss2, (size_t)tokens * 4);
                free(loss);
                free(loss2);
                free(target);
                free_tensor(&x);
                free_tensor(&gradient);
                fp8flow_context_destroy(c);
            }
}

/* 0 is a scale like others; NaN reaches every gradient but those of tokens without a target. */
static void test_cross_entropy_hostile_scales(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++)
        for (int f = 0; f < 2; f++) {
            fp8flow_context *c = make_numbered_context(i);
            fp8flow_tensor x = make_filled(f32_rows, 2, 37, DATA_NORMAL, 1);
            fp8flow_tensor gradient = make_gradient(f ? bf16_rows : f32_rows, 2, 37);
            int32_t target[2] = { 5, -1 };
            float loss[2];
            fp8flow_cross_entropy_args args = { &x, target, 0.0f, &gradient, loss };
            assert_ok(fp8flow_cross_entropy(c, &args));
            for (int64_t col = 0; col < 37; col++)
                assert_true(f8_value(&gradient, 0, col, 0) == 0.0f && f8_value(&gradient, 1, col, 0) == 0.0f);
            args.grad_scale = NAN;
            assert_ok(fp8flow_cross_entropy(c, &args));
            for (int64_t col = 0; col < 37; col++)
                assert_true(isnan(f8_value(&gradient, 0, col, 0)) && f8_value(&gradient, 1, col, 0) == 0.0f);
            assert_true(isfinite(loss[0]) && loss[1] == 0.0f);
            free_tensor(&x);
            free_tensor(&gradient);
            fp8flow_context_destroy(c);
        }
}

static void test_cross_entropy_gradient_equals_numeric_gradient_of_the_loss(void **state)
{
    (void)state;
    enum { VOCABULARY = 11 };
    float x[VOCABULARY], gradient[VOCABULARY], loss;
    int32_t target = 4;
    double p[VOCABULARY], moved[VOCABULARY];
    for (int i = 0; i < VOCABULARY; i++) gradient[i] = x[i] = f8_normal(1, 1, (uint64_t)i);
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_tensor logits = f8_f32(x, 1, VOCABULARY), replaced = f8_f32(gradient, 1, VOCABULARY);
    fp8flow_cross_entropy_args args = { &logits, &target, 1.0f, &replaced, &loss };
    assert_ok(fp8flow_cross_entropy(c, &args));
    model_softmax(&logits, 0, p);
    for (int i = 0; i < VOCABULARY; i++) {
        double value[2];
        for (int side = 0; side < 2; side++) {
            double sum = 0.0;
            for (int j = 0; j < VOCABULARY; j++) {
                moved[j] = (double)x[j] + (j == i ? (side ? -1e-6 : 1e-6) : 0.0);
                sum += exp(moved[j]);
            }
            value[side] = log(sum) - moved[target];
        }
        assert_true(fabs((double)gradient[i] - (value[0] - value[1]) / 2e-6) <= 1e-6);
    }
    fp8flow_context_destroy(c);
}

static void test_cross_entropy_without_gradient_leaves_the_logits(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        fp8flow_context *c = make_numbered_context(i);
        fp8flow_tensor x = make_filled(f32_rows, 3, 37, DATA_NORMAL, 1),
                       before = make_filled(f32_rows, 3, 37, DATA_NORMAL, 1);
        int32_t target[3] = { 0, -1, 36 };
        float loss[3];
        fp8flow_cross_entropy_args args = { &x, target, 1.0f, NULL, loss };
        assert_ok(fp8flow_cross_entropy(c, &args));
        assert_same_tensor(&x, &before, 1);
        assert_true(loss[0] > 0.0f && loss[1] == 0.0f && loss[2] > 0.0f);
        free_tensor(&x);
        free_tensor(&before);
        fp8flow_context_destroy(c);
    }
}

/* Bad logits must be seen in the loss; a token without a target stays clean; -Inf is a mask. */
static void test_cross_entropy_non_finite_logits_reach_the_loss(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++)
        for (int at = 0; at < 11; at++) {
            fp8flow_context *c = make_numbered_context(i);
            fp8flow_tensor x = make_filled(f32_rows, 4, 11, DATA_NORMAL, 1);
            float *data = x.data, loss[4];
            data[at] = NAN;
            data[11 + at] = INFINITY;
            data[22 + at] = NAN;
            data[33 + at] = -INFINITY;
            int32_t target[4] = { 3, 3, -1, at ? 0 : 1 };
            fp8flow_cross_entropy_args args = { &x, target, 1.0f, &x, loss };
            assert_ok(fp8flow_cross_entropy(c, &args));
            assert_true(loss[0] != loss[0] && loss[1] != loss[1]);
            assert_true(loss[2] == 0.0f && data[22 + at] == 0.0f);
            assert_true(isfinite(loss[3]) && fabsf(data[33 + at]) < 1e-37f);
            free_tensor(&x);
            fp8flow_context_destroy(c);
        }
}

static void test_vocabulary_bad_arguments_are_named(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_tensor table = make_filled(bf16_rows, 5, 8, DATA_NORMAL, 1),
                   y = make_filled(bf16_rows, 2, 8, DATA_NORMAL, 1);
    fp8flow_tensor dtable = make_filled(f32_rows, 5, 6, DATA_NORMAL, 1);
    int32_t ids[2] = { 4, 5 };
    float loss[2];
    fp8flow_embed_args embed = { &table, ids, &y };
    assert_fails(fp8flow_embed(c, &embed), FP8FLOW_EINVAL, "ids[1] is 5, expected 0 to 4");
    ids[1] = -1;
    assert_fails(fp8flow_embed(c, &embed), FP8FLOW_EINVAL, "ids[1] is -1, expected 0 to 4");
    fp8flow_embed_backward_args backward = { &y, ids, &dtable };
    assert_fails(fp8flow_embed_backward(c, &backward), FP8FLOW_ESHAPE, "the table has 6 columns, the activation 8");
    backward.ids = NULL;
    dtable.cols = y.cols = 6;
    assert_fails(fp8flow_embed_backward(c, &backward), FP8FLOW_EINVAL, "ids is NULL, 2 tokens");
    fp8flow_cross_entropy_args args = { &y, ids, 1.0f, NULL, loss };
    ids[0] = 6;
    assert_fails(fp8flow_cross_entropy(c, &args), FP8FLOW_EINVAL, "target[0] is 6, expected -1 to 5");
    ids[0] = -2;
    assert_fails(fp8flow_cross_entropy(c, &args), FP8FLOW_EINVAL, "target[0] is -2");
    args.loss = NULL;
    assert_fails(fp8flow_cross_entropy(c, &args), FP8FLOW_EINVAL, "loss is NULL");
    ids[0] = 0;
    args.loss = loss;
    fp8flow_tensor gradient = y;
    args.gradient = &gradient;
    gradient.cols = 5;
    assert_fails(fp8flow_cross_entropy(c, &args), FP8FLOW_ESHAPE, "gradient is [2, 5]");
    gradient = y;
    gradient.stride = 7;
    assert_fails(fp8flow_cross_entropy(c, &args), FP8FLOW_EINVAL,
                 "gradient (bf16, stride 7) has the memory of logits (bf16, stride 8)");
    gradient = f8_tensor_make((f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS }, 2, 6, 0);
    gradient.data = y.data;
    gradient.scale = loss;
    assert_fails(fp8flow_cross_entropy(c, &args), FP8FLOW_EINVAL, "gradient");
    free_tensor(&table);
    free_tensor(&y);
    free_tensor(&dtable);
    fp8flow_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed_copies_rows_bit_for_bit),
        cmocka_unit_test(test_embed_backward_adds_tokens_in_ascending_order),
        cmocka_unit_test(test_cross_entropy_is_within_its_bound),
        cmocka_unit_test(test_cross_entropy_gradient_may_replace_the_logits),
        cmocka_unit_test(test_cross_entropy_hostile_scales),
        cmocka_unit_test(test_cross_entropy_gradient_equals_numeric_gradient_of_the_loss),
        cmocka_unit_test(test_cross_entropy_without_gradient_leaves_the_logits),
        cmocka_unit_test(test_cross_entropy_non_finite_logits_reach_the_loss),
        cmocka_unit_test(test_vocabulary_bad_arguments_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
