/* test_gemm.c - grouped products against exact integer and FP64 oracles, in every format and form.
 *
 * The reason for the length: one oracle serves every product and format.
 */
#include <dirent.h>
#include <pthread.h>

#include "ops/gemm.h"
#include "support.h"

typedef enum { PAIR_F32, PAIR_BF16, PAIR_MIXED, PAIR_BLOCK, PAIR_COL, PAIR_TENSOR, PAIR_E5M2, NUM_PAIRS } pair;

typedef struct {
    fp8flow_product product;
    pair pair;
    fp8flow_dtype c_dtype;
    data_kind data;
    int64_t n, k; /* of the weight [n, k] */
} spec;

/* One problem with poisoned padding. `dense`: no groups argument. */
typedef struct {
    spec s;
    test_groups groups;
    int64_t m, num_groups;
    int dense;
    fp8flow_tensor a, b, c;
} problem;

static int pair_exists(fp8flow_product product, pair p)
{
    return p != PAIR_COL || product == FP8FLOW_WGRAD;
}

static f8_tensor_format a_format(spec s)
{
    fp8flow_layout columns = s.product == FP8FLOW_WGRAD ? FP8FLOW_COLUMNS : FP8FLOW_ROWS;
    fp8flow_scaling block = s.product == FP8FLOW_WGRAD ? FP8FLOW_TILE128 : FP8FLOW_ROW128;
    switch (s.pair) {
    case PAIR_F32:
    case PAIR_MIXED: return (f8_tensor_format){ FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    case PAIR_BF16: return (f8_tensor_format){ FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    case PAIR_COL: return (f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_COL128, FP8FLOW_COLUMNS };
    case PAIR_TENSOR: return (f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_TENSOR, columns };
    case PAIR_E5M2: return (f8_tensor_format){ FP8FLOW_E5M2, block, columns };
    default: return (f8_tensor_format){ FP8FLOW_E4M3, block, columns };
    }
}

static f8_tensor_format b_format(spec s)
{
    fp8flow_layout layout = s.product == FP8FLOW_FPROP ? FP8FLOW_ROWS : FP8FLOW_COLUMNS;
    switch (s.pair) {
    case PAIR_F32: return (f8_tensor_format){ FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    case PAIR_MIXED:
    case PAIR_BF16: return (f8_tensor_format){ FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    case PAIR_COL: return (f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_COL128, FP8FLOW_COLUMNS };
    case PAIR_TENSOR: return (f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_TENSOR, layout };
    default: return (f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_TILE128, layout };
    }
}

/* Scales are powers of two: between 2^-2 and 2^2 for integers, wider for random data. */
static int scale_exponent(spec s, int64_t index)
{
    int spread = s.data == DATA_SMALL_INTEGERS ? 2 : 12;
    return (int)(f8_random(77, 5, (uint64_t)index) % (uint64_t)(2 * spread + 1)) - spread;
}

static void set_value(spec s, fp8flow_tensor *t, int64_t row, int64_t col, int64_t group)
{
    float x = test_value(s.data, 11 + (uint64_t)t->dtype, row, col);
    int64_t at = f8_element(t, row, col);
    if (t->dtype == FP8FLOW_F32) {
        ((float *)t->data)[at] = x;
    } else if (t->dtype == FP8FLOW_BF16) {
        ((uint16_t *)t->data)[at] = f8_bf16_encode(x);
    } else {
        ((uint8_t *)t->data)[at] = f8_encode(x, t->dtype);
        int64_t index = f8_scale_index(t, row, col, group);
        int exponent = scale_exponent(s, index);
        if (t->scaling == FP8FLOW_TENSOR) ((float *)t->scale)[index] = ldexpf(1.0f, exponent);
        else ((uint8_t *)t->scale)[index] = (uint8_t)(127 + exponent);
    }
}

/* Valid rows only: padding stays poisoned. */
static void fill_activation(const problem *p, fp8flow_tensor *t)
{
    for (int64_t g = 0; g < p->num_groups; g++)
        for (int64_t i = 0; i < p->groups.rows[g]; i++)
            for (int64_t c = 0; c < t->cols; c++) set_value(p->s, t, p->groups.offset[g] + i, c, g);
}

static void fill_weight(const problem *p, fp8flow_tensor *t)
{
    for (int64_t r = 0; r < t->rows; r++)
        for (int64_t c = 0; c < t->cols; c++) set_value(p->s, t, r, c, r / p->s.n);
}

static problem make_problem_at(spec s, const int32_t *sizes, int count, int align)
{
    problem p = { .s = s, .num_groups = count };
    f8_tensor_format c_format = { s.c_dtype, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    p.m = make_groups(&p.groups, sizes, count, align);
    int64_t n = s.n, k = s.k, weights = n * count;
    if (s.product == FP8FLOW_WGRAD) {
        p.a = make_tensor(a_format(s), p.m, n, 0, count);
        p.b = make_tensor(b_format(s), p.m, k, 0, count);
        p.c = make_tensor(c_format, weights, k, n, count);
        fill_activation(&p, &p.b);
    } else {
        p.a = make_tensor(a_format(s), p.m, s.product == FP8FLOW_FPROP ? k : n, 0, count);
        p.b = make_tensor(b_format(s), weights, k, n, count);
        p.c = make_tensor(c_format, p.m, s.product == FP8FLOW_FPROP ? n : k, 0, count);
        fill_weight(&p, &p.b);
    }
    fill_activation(&p, &p.a);
    return p;
}

static problem make_problem(spec s, const int32_t *sizes, int count)
{
    return make_problem_at(s, sizes, count, 128);
}

/* One expert whose rows fill the tensors, called without groups. */
static problem make_dense(spec s, int32_t rows)
{
    problem p = make_problem(s, &rows, 1);
    p.dense = 1;
    p.m = rows;
    fp8flow_tensor *activation[3] = { &p.a, s.product == FP8FLOW_WGRAD ? &p.b : &p.c, NULL };
    for (int i = 0; activation[i]; i++) activation[i]->rows = rows;
    return p;
}

static void free_problem(problem *p)
{
    free_tensor(&p->a);
    free_tensor(&p->b);
    free_tensor(&p->c);
}

static fp8flow_status run(fp8flow_context *context, problem *p, fp8flow_write write)
{
    fp8flow_groups groups = { p->num_groups, p->groups.offset, p->groups.rows };
    fp8flow_gemm_args args = { p->s.product, write, p->dense ? NULL : &groups, &p->a, &p->b, &p->c };
    return fp8flow_gemm(context, &args);
}

/* ---- Oracle ---- */

typedef struct {
    int64_t num_i, num_j, num_k, c_row;
    double *a, *b; /* [num_i, num_k], [num_j, num_k] */
} group_values;

static group_values values_of(const problem *p, int64_t g)
{
    int64_t m = p->groups.rows[g], at = p->groups.offset[g], n = p->s.n, k = p->s.k;
    group_values v = { m, n, k, at, NULL, NULL };
    if (p->s.product == FP8FLOW_DGRAD) v = (group_values){ m, k, n, at, NULL, NULL };
    if (p->s.product == FP8FLOW_WGRAD) v = (group_values){ n, k, m, g * n, NULL, NULL };
    v.a = malloc((size_t)(v.num_i * v.num_k + 1) * sizeof *v.a);
    v.b = malloc((size_t)(v.num_j * v.num_k + 1) * sizeof *v.b);
    int wgrad = p->s.product == FP8FLOW_WGRAD, fprop = p->s.product == FP8FLOW_FPROP;
    for (int64_t inner = 0; inner < v.num_k; inner++) {
        for (int64_t i = 0; i < v.num_i; i++)
            v.a[i * v.num_k + inner] = wgrad ? f8_value(&p->a, at + inner, i, g) : f8_value(&p->a, at + i, inner, g);
        for (int64_t j = 0; j < v.num_j; j++)
            v.b[j * v.num_k + inner] = wgrad   ? f8_value(&p->b, at + inner, j, g)
                                       : fprop ? f8_value(&p->b, g * n + j, inner, g)
                                               : f8_value(&p->b, g * n + inner, j, g);
    }
    return v;
}

static void free_values(group_values *v)
{
    free(v->a);
    free(v->b);
}

/* Sum over k in units of 1/16, which makes every product of the integer tests whole. */
static int64_t exact_sum(const group_values *v, int64_t i, int64_t j)
{
    int64_t sum = 0;
    for (int64_t k = 0; k < v->num_k; k++)
        sum += (int64_t)(v->a[i * v->num_k + k] * 4) * (int64_t)(v->b[j * v->num_k + k] * 4);
    return sum;
}

static float c_at(const problem *p, int64_t row, int64_t col)
{
    return f8_value(&p->c, row, col, 0);
}

static void assert_exact(const problem *p, fp8flow_write write, float before)
{
    for (int64_t g = 0; g < p->num_groups; g++) {
        group_values v = values_of(p, g);
        for (int64_t i = 0; i < v.num_i; i++)
            for (int64_t j = 0; j < v.num_j; j++) {
                float expected = (float)exact_sum(&v, i, j) / 16 + (write == FP8FLOW_ACCUMULATE ? before : 0);
                if (p->s.c_dtype == FP8FLOW_BF16) expected = f8_bf16_decode(f8_bf16_encode(expected));
                if (c_at(p, v.c_row + i, j) != expected)
                    fail_msg("product %d pair %d [%ld, %ld] group %ld (%ld, %ld): %g, expected %g", p->s.product,
                             p->s.pair, (long)p->s.n, (long)p->s.k, (long)g, (long)i, (long)j,
                             (double)c_at(p, v.c_row + i, j), (double)expected);
            }
        free_values(&v);
    }
}

static void assert_within_bound(const problem *p)
{
    double c = tested_device() == TEST_ON_CUDA ? F8_GEMM_BOUND_C : F8_GEMM_CPU_BOUND_C;
    for (int64_t g = 0; g < p->num_groups; g++) {
        group_values v = values_of(p, g);
        for (int64_t i = 0; i < v.num_i; i++)
            for (int64_t j = 0; j < v.num_j; j++) {
                double sum = 0, magnitude = 0;
                for (int64_t k = 0; k < v.num_k; k++) {
                    double product = v.a[i * v.num_k + k] * v.b[j * v.num_k + k];
                    sum += product;
                    magnitude += fabs(product);
                }
                double bound = magnitude * c * 0x1p-13;
                if (p->s.c_dtype == FP8FLOW_BF16) bound += (fabs(sum) + bound) * 0x1p-8;
                double error = fabs((double)c_at(p, v.c_row + i, j) - sum);
                if (!(error <= bound))
                    fail_msg("product %d pair %d (%ld, %ld): error %g > %g", p->s.product, p->s.pair, (long)i, (long)j,
                             error, bound);
            }
        free_values(&v);
    }
}

/* Padding of c: zero after OVERWRITE. Rows past the last expert: untouched. */
static void assert_padding_is_zero(const problem *p)
{
    if (p->s.product == FP8FLOW_WGRAD || p->dense) return;
    for (int64_t g = 0; g < p->num_groups; g++)
        for (int64_t r = p->groups.offset[g] + p->groups.rows[g]; r < p->groups.offset[g + 1]; r++)
            for (int64_t j = 0; j < p->c.cols; j++) assert_true(f8_bits(c_at(p, r, j)) == 0);
}

static void set_all(fp8flow_tensor *c, float value)
{
    for (int64_t r = 0; r < c->rows; r++)
        for (int64_t j = 0; j < c->cols; j++) {
            int64_t at = f8_element(c, r, j);
            if (c->dtype == FP8FLOW_F32) ((float *)c->data)[at] = value;
            else ((uint16_t *)c->data)[at] = f8_bf16_encode(value);
        }
}

/* ---- Values ---- */

static const int32_t all_sizes[] = { 0, 1, 63, 64, 65, 127, 128, 129, 300 };
static const int32_t few_sizes[] = { 129, 0, 1, 64 };

static void check_exact_at(fp8flow_context *context, spec s, const int32_t *sizes, int count, int align)
{
    problem p = make_problem_at(s, sizes, count, align);
    assert_ok(run(context, &p, FP8FLOW_OVERWRITE));
    assert_exact(&p, FP8FLOW_OVERWRITE, 0);
    assert_padding_is_zero(&p);
    free_problem(&p);
}

static void check_exact(fp8flow_context *context, spec s, const int32_t *sizes, int count)
{
    check_exact_at(context, s, sizes, count, 128);
}

static void for_all_specs(const int64_t (*shapes)[2], int num_shapes, data_kind data,
                          void (*visit)(spec s, void *state), void *state)
{
    for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++)
        for (int pairing = 0; pairing < NUM_PAIRS; pairing++)
            for (int i = 0; i < num_shapes; i++) {
                if (!pair_exists((fp8flow_product)product, (pair)pairing)) continue;
                int bf16 = product != FP8FLOW_WGRAD && (i + pairing) % 2;
                visit((spec){ (fp8flow_product)product, (pair)pairing, bf16 ? FP8FLOW_BF16 : FP8FLOW_F32, data,
                              shapes[i][0], shapes[i][1] },
                      state);
            }
}

static void visit_exact_all(spec s, void *context)
{
    check_exact(context, s, all_sizes, 9);
}

static void visit_exact_few(spec s, void *context)
{
    check_exact(context, s, few_sizes, 4);
}

static void test_integers_are_exact_on_cpu(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {
        { 16, 384 }, { 48, 200 }, { 128, 136 }, { 136, 128 }, { 200, 48 }, { 384, 16 }
    };
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    for_all_specs(shapes, 6, DATA_SMALL_INTEGERS, visit_exact_all, context);
    fp8flow_context_destroy(context);
}

static void test_integers_are_exact_in_reference(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = { { 16, 136 }, { 200, 48 } };
    fp8flow_context *context = make_context(FP8FLOW_REFERENCE, 1);
    for_all_specs(shapes, 2, DATA_SMALL_INTEGERS, visit_exact_few, context);
    fp8flow_context_destroy(context);
}

/* Where no scale belongs to 128 rows, experts may begin anywhere. */
static void test_experts_may_begin_at_any_row(void **state)
{
    (void)state;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++)
        for (int pairing = 0; pairing < NUM_PAIRS; pairing++)
            for (int align = 1; align <= 49; align += 16) {
                spec s = { (fp8flow_product)product, (pair)pairing, FP8FLOW_F32, DATA_SMALL_INTEGERS, 48, 144 };
                fp8flow_scaling scaling = a_format(s).scaling;
                if (!pair_exists(s.product, s.pair)) continue;
                if (scaling != FP8FLOW_TILE128 && scaling != FP8FLOW_COL128)
                    check_exact_at(context, s, all_sizes, 9, align);
            }
    fp8flow_context_destroy(context);
}

/* Several items and steps in every dimension; ends that are no multiple of eight. */
static void test_integers_are_exact_across_blocks(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = { { 531, 90 }, { 90, 531 } };
    static const int32_t sizes[] = { 3, 600 };
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++)
        for (int i = 0; i < 2; i++)
            for (int pairing = 0; pairing < NUM_PAIRS; pairing++)
                if (pair_exists((fp8flow_product)product, (pair)pairing))
                    check_exact(context,
                                (spec){ (fp8flow_product)product, (pair)pairing, FP8FLOW_F32, DATA_SMALL_INTEGERS,
                                        shapes[i][0], shapes[i][1] },
                                sizes, 2);
    fp8flow_context_destroy(context);
}

static void visit_bound(spec s, void *context)
{
    problem p = make_problem(s, few_sizes, 4);
    assert_ok(run(context, &p, FP8FLOW_OVERWRITE));
    assert_within_bound(&p);
    free_problem(&p);
}

static void test_random_data_stays_within_bound(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = { { 200, 384 }, { 136, 48 } };
    static const int64_t small[][2] = { { 24, 136 } };
    fp8flow_context *fast = make_context(FP8FLOW_CPU, 2), *reference = make_context(FP8FLOW_REFERENCE, 1);
    for_all_specs(shapes, 2, DATA_NORMAL, visit_bound, fast);
    for_all_specs(shapes, 2, DATA_HEAVY_TAILED, visit_bound, fast);
    for_all_specs(small, 1, DATA_NORMAL, visit_bound, reference);
    for_all_specs(small, 1, DATA_HEAVY_TAILED, visit_bound, reference);
    fp8flow_context_destroy(fast);
    fp8flow_context_destroy(reference);
}

static void test_dense_product_needs_no_groups(void **state)
{
    (void)state;
    for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
        fp8flow_context *context = make_context((fp8flow_backend)backend, 2);
        for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++)
            for (int pairing = 0; pairing < NUM_PAIRS; pairing++)
                for (int group_rows = 0; group_rows < 2; group_rows++) {
                    if (!pair_exists((fp8flow_product)product, (pair)pairing)) continue;
                    spec s = { (fp8flow_product)product, (pair)pairing, FP8FLOW_F32, DATA_SMALL_INTEGERS, 136, 40 };
                    problem p = make_dense(s, 131);
                    fp8flow_tensor *weight = s.product == FP8FLOW_WGRAD ? &p.c : &p.b;
                    if (!group_rows) weight->group_rows = 0;
                    assert_ok(run(context, &p, FP8FLOW_OVERWRITE));
                    assert_exact(&p, FP8FLOW_OVERWRITE, 0);
                    free_problem(&p);
                }
        fp8flow_context_destroy(context);
    }
}

/* ---- Write modes, edges ---- */

static void check_accumulate(fp8flow_context *context, fp8flow_product product, pair pairing, fp8flow_dtype c_dtype)
{
    problem p = make_problem((spec){ product, pairing, c_dtype, DATA_SMALL_INTEGERS, 40, 72 }, few_sizes, 4);
    set_all(&p.c, 5.0f);
    assert_ok(run(context, &p, FP8FLOW_ACCUMULATE));
    assert_exact(&p, FP8FLOW_ACCUMULATE, 5.0f);
    if (product != FP8FLOW_WGRAD)
        for (int64_t r = p.groups.offset[0] + p.groups.rows[0]; r < p.groups.offset[1]; r++)
            for (int64_t j = 0; j < p.c.cols; j++) assert_true(c_at(&p, r, j) == 5.0f);
    free_problem(&p);
}

/* To BF16 too: c and the product are added in FP32, and there is one rounding. */
static void test_accumulate_adds_and_leaves_padding_and_empty_experts(void **state)
{
    (void)state;
    static const pair unscaled[] = { PAIR_F32, PAIR_MIXED, PAIR_BF16 };
    for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
        fp8flow_context *context = make_context((fp8flow_backend)backend, 2);
        for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++)
            check_accumulate(context, (fp8flow_product)product, PAIR_BLOCK, FP8FLOW_F32);
        for (int product = FP8FLOW_FPROP; product <= FP8FLOW_DGRAD; product++)
            for (int i = 0; i < 3; i++) check_accumulate(context, (fp8flow_product)product, unscaled[i], FP8FLOW_BF16);
        fp8flow_context_destroy(context);
    }
}

static void test_empty_dimensions_give_zero_or_nothing(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = { { 0, 40 }, { 40, 0 }, { 0, 0 } };
    static const int32_t nothing[] = { 0, 0 };
    for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
        fp8flow_context *context = make_context((fp8flow_backend)backend, 2);
        for_all_specs(shapes, 3, DATA_SMALL_INTEGERS, visit_exact_few, context);
        for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++) {
            spec s = { (fp8flow_product)product, PAIR_BLOCK, FP8FLOW_F32, DATA_SMALL_INTEGERS, 24, 40 };
            check_exact(context, s, nothing, 2);
            problem none = make_problem(s, nothing, 0);
            assert_ok(run(context, &none, FP8FLOW_OVERWRITE));
            free_problem(&none);
        }
        fp8flow_context_destroy(context);
    }
}

static void test_rows_past_the_last_expert_are_not_touched(void **state)
{
    (void)state;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    problem p =
        make_problem((spec){ FP8FLOW_FPROP, PAIR_BF16, FP8FLOW_F32, DATA_SMALL_INTEGERS, 40, 72 }, few_sizes, 4);
    int64_t end = p.groups.offset[3];
    p.num_groups = 3;
    p.b.rows = 3 * p.s.n;
    assert_ok(run(context, &p, FP8FLOW_OVERWRITE));
    assert_exact(&p, FP8FLOW_OVERWRITE, 0);
    for (int64_t r = end; r < p.c.rows; r++)
        for (int64_t j = 0; j < p.c.cols; j++) assert_true(f8_bits(c_at(&p, r, j)) == 0xFFFFFFFFu);
    free_problem(&p);
    fp8flow_context_destroy(context);
}

/* ---- Determinism ---- */

static const int32_t large_sizes[] = { 300, 0, 777, 130 };

static void test_bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    static const pair pairs[] = { PAIR_BF16, PAIR_BLOCK, PAIR_F32 };
    for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++)
        for (int i = 0; i < 3; i++) {
            spec s = { (fp8flow_product)product, pairs[i], FP8FLOW_F32, DATA_NORMAL, 600, 328 };
            problem one = make_problem(s, large_sizes, 4);
            for (int threads = 1; threads <= 5; threads++) {
                problem many = make_problem(s, large_sizes, 4);
                fp8flow_context *context = make_context(FP8FLOW_CPU, threads);
                assert_ok(run(context, threads == 1 ? &one : &many, FP8FLOW_OVERWRITE));
                if (threads > 1) assert_same_tensor(&one.c, &many.c, 0);
                fp8flow_context_destroy(context);
                free_problem(&many);
            }
            free_problem(&one);
        }
}

static void test_group_result_does_not_depend_on_other_groups(void **state)
{
    (void)state;
    for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++) {
        spec s = { (fp8flow_product)product, PAIR_BLOCK, FP8FLOW_F32, DATA_NORMAL, 200, 328 };
        problem all = make_problem(s, large_sizes, 4), other = make_problem(s, large_sizes, 4);
        other.groups.rows[0] = 7;
        other.groups.rows[3] = 0;
        fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
        assert_ok(run(context, &all, FP8FLOW_OVERWRITE));
        assert_ok(run(context, &other, FP8FLOW_OVERWRITE));
        int64_t row = s.product == FP8FLOW_WGRAD ? 2 * s.n : all.groups.offset[2];
        int64_t rows = s.product == FP8FLOW_WGRAD ? s.n : large_sizes[2];
        size_t bytes = (size_t)(rows * all.c.cols) * sizeof(float);
        int64_t at = row * all.c.cols;
        assert_memory_equal((float *)all.c.data + at, (float *)other.c.data + at, bytes);
        fp8flow_context_destroy(context);
        free_problem(&all);
        free_problem(&other);
    }
}

static const spec rank_spec = { FP8FLOW_FPROP, PAIR_BLOCK, FP8FLOW_F32, DATA_NORMAL, 520, 200 };

/* One rank: its own context, compared with the expected bits. NULL: equal every time. cmocka stays outside. */
static void *run_rank(void *expected)
{
    const problem *want = expected;
    problem p = make_problem(rank_spec, large_sizes, 4);
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    void *different = NULL;
    for (int i = 0; i < 20; i++) {
        fp8flow_status status = run(context, &p, FP8FLOW_OVERWRITE);
        size_t bytes = (size_t)fp8flow_tensor_data_bytes(&p.c);
        if (status != FP8FLOW_OK || memcmp(p.c.data, want->c.data, bytes) != 0) different = expected;
    }
    fp8flow_context_destroy(context);
    free_problem(&p);
    return different;
}

static void test_ranks_as_threads_get_the_same_bits(void **state)
{
    (void)state;
    problem p = make_problem(rank_spec, large_sizes, 4);
    fp8flow_context *context = make_context(FP8FLOW_CPU, 1);
    assert_ok(run(context, &p, FP8FLOW_OVERWRITE));
    pthread_t rank[3];
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&rank[i], NULL, run_rank, &p), 0);
    for (int i = 0; i < 3; i++) {
        void *different;
        assert_int_equal(pthread_join(rank[i], &different), 0);
        assert_null(different);
    }
    fp8flow_context_destroy(context);
    free_problem(&p);
}

/* Threads of this process; 0 where /proc has no answer. */
static int count_threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    int count = 0;
    for (struct dirent *entry; tasks && (entry = readdir(tasks));) count += entry->d_name[0] != '.';
    if (tasks) closedir(tasks);
    return count;
}

/* First in main(): a pool that is already there would hide a BLAS that uses it. */
static void test_one_thread_starts_no_other(void **state)
{
    (void)state;
    skip_on_cuda("the CUDA runtime starts threads");
    static const int32_t size = 512;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 1);
    problem p = make_problem((spec){ FP8FLOW_FPROP, PAIR_F32, FP8FLOW_F32, DATA_NORMAL, 512, 512 }, &size, 1);
    int before = count_threads();
    assert_ok(run(context, &p, FP8FLOW_OVERWRITE));
    assert_int_equal(count_threads(), before);
    free_problem(&p);
    fp8flow_context_destroy(context);
}

/* ---- Errors ---- */

static void test_bad_arguments_are_named(void **state)
{
    (void)state;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 1);
    spec s = { FP8FLOW_FPROP, PAIR_BLOCK, FP8FLOW_F32, DATA_SMALL_INTEGERS, 40, 72 };
    problem good = make_problem(s, few_sizes, 4), p = good;
    assert_fails(fp8flow_gemm(NULL, NULL), FP8FLOW_EINVAL, "gemm: the context");
    assert_fails(fp8flow_gemm(context, NULL), FP8FLOW_EINVAL, "gemm: the arguments");
    p.s.product = (fp8flow_product)3;
    assert_fails(run(context, &p, FP8FLOW_OVERWRITE), FP8FLOW_EINVAL, "gemm: unknown product 3");
    p = good;
    assert_fails(run(context, &p, (fp8flow_write)2), FP8FLOW_EINVAL, "gemm: unknown write mode 2");
    p.c.dtype = FP8FLOW_BF16;
    assert_fails(run(context, &p, FP8FLOW_ACCUMULATE), FP8FLOW_EINVAL, "adding a product of fp8 need f32");
    p = good;
    p.b.scaling = FP8FLOW_TENSOR;
    assert_fails(run(context, &p, FP8FLOW_OVERWRITE), FP8FLOW_EINVAL, "a (e4m3, row128) and b (e4m3, tensor)");
    p = good;
    p.s.product = FP8FLOW_DGRAD;
    assert_fails(run(context, &p, FP8FLOW_OVERWRITE), FP8FLOW_EINVAL, "needs rows and columns");
    p = good;
    p.b.cols = p.b.stride = 71;
    assert_fails(run(context, &p, FP8FLOW_OVERWRITE), FP8FLOW_ESHAPE, "b is [160, 71], expected [160, 72]");
    p = good;
    p.b.group_rows = 80;
    assert_fails(run(context, &p, FP8FLOW_OVERWRITE), FP8FLOW_ESHAPE, "b has 80 rows per expert, expected 40");
    p = good;
    p.c.rows--;
    assert_fails(run(context, &p, FP8FLOW_OVERWRITE), FP8FLOW_ESHAPE, "gemm: c is [");
    p = good;
    p.a.stride = (int64_t)1 << 31;
    assert_fails(run(context, &p, FP8FLOW_OVERWRITE), FP8FLOW_ESHAPE, "gemm: a has stride 2147483648");
    p = good;
    p.groups.rows[0] = 1000;
    assert_fails(run(context, &p, FP8FLOW_OVERWRITE), FP8FLOW_ESHAPE, "expert 0 uses 1000");
    free_problem(&good);
    fp8flow_context_destroy(context);
}

static void test_wgrad_by_row_blocks_needs_aligned_experts(void **state)
{
    (void)state;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 1);
    spec s = { FP8FLOW_WGRAD, PAIR_COL, FP8FLOW_F32, DATA_SMALL_INTEGERS, 40, 72 };
    problem p = make_problem(s, few_sizes, 4);
    p.groups.offset[1] -= 64;
    assert_fails(run(context, &p, FP8FLOW_OVERWRITE), FP8FLOW_ESHAPE, "not a multiple of 128");
    free_problem(&p);
    fp8flow_context_destroy(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_thread_starts_no_other),
        cmocka_unit_test(test_integers_are_exact_on_cpu),
        cmocka_unit_test(test_integers_are_exact_in_reference),
        cmocka_unit_test(test_experts_may_begin_at_any_row),
        cmocka_unit_test(test_integers_are_exact_across_blocks),
        cmocka_unit_test(test_random_data_stays_within_bound),
        cmocka_unit_test(test_dense_product_needs_no_groups),
        cmocka_unit_test(test_accumulate_adds_and_leaves_padding_and_empty_experts),
        cmocka_unit_test(test_empty_dimensions_give_zero_or_nothing),
        cmocka_unit_test(test_rows_past_the_last_expert_are_not_touched),
        cmocka_unit_test(test_bits_do_not_depend_on_threads),
        cmocka_unit_test(test_ranks_as_threads_get_the_same_bits),
        cmocka_unit_test(test_group_result_does_not_depend_on_other_groups),
        cmocka_unit_test(test_bad_arguments_are_named),
        cmocka_unit_test(test_wgrad_by_row_blocks_needs_aligned_experts),
    };
    return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
