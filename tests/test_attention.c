/* test_attention.c - attention and its gradients against a textbook FP64 computation, itself checked against
 * finite differences. */
#include "support.h"

typedef struct {
    int64_t batch, num_heads, num_kv_heads, head_dim, queries, keys;
} shape;

/* q, k, v are slices of one buffer where they have equally many rows: stride > cols. */
typedef struct {
    shape s;
    float scale;
    fp8flow_tensor fused, q, k, v, o, grad_o, grad_q, grad_k, grad_v;
    float *lse;
} problem;

static const f8_tensor_format bf16_rows = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };

static fp8flow_tensor slice(const fp8flow_tensor *t, int64_t first_col, int64_t cols)
{
    fp8flow_tensor view = *t;
    view.data = (uint16_t *)t->data + first_col;
    view.cols = cols;
    return view;
}

static void fill_scaled(fp8flow_tensor *t, uint64_t seed, float factor)
{
    for (int64_t r = 0; r < t->rows; r++)
        for (int64_t c = 0; c < t->cols; c++)
            ((uint16_t *)t->data)[r * t->stride + c] = f8_bf16_encode(factor * test_value(DATA_NORMAL, seed, r, c));
}

/* Where the slices begin: nothing is aligned, or all to 16 bytes where the head size allows it. */
enum { UNALIGNED = 1, ALIGNED = 8 };

/* `sharpness` scales the queries: large values give nearly one-hot probabilities. */
static problem make_problem_at(int64_t first_col, shape s, float sharpness)
{
    problem p = { .s = s, .scale = 1.0f / sqrtf((float)s.head_dim) };
    int64_t q_cols = s.num_heads * s.head_dim, kv_cols = s.num_kv_heads * s.head_dim;
    int64_t q_rows = s.batch * s.queries, k_rows = s.batch * s.keys;
    p.fused = make_tensor(bf16_rows, k_rows, q_cols + 2 * kv_cols + 3 * first_col, 0, 0);
    p.q = slice(&p.fused, first_col, q_cols);
    p.q.rows = q_rows;
    p.k = slice(&p.fused, first_col + q_cols, kv_cols);
    p.v = slice(&p.fused, first_col + q_cols + kv_cols, kv_cols);
    p.o = make_tensor(bf16_rows, q_rows, q_cols, 0, 0);
    p.grad_o = make_tensor(bf16_rows, q_rows, q_cols, 0, 0);
    p.grad_q = make_tensor(bf16_rows, q_rows, q_cols, 0, 0);
    p.grad_k = make_tensor(bf16_rows, k_rows, kv_cols, 0, 0);
    p.grad_v = make_tensor(bf16_rows, k_rows, kv_cols, 0, 0);
    p.lse = poisoned(q_rows * s.num_heads * (int64_t)sizeof(float));
    fill_scaled(&p.q, 1, sharpness);
    fill_scaled(&p.k, 2, 1.0f);
    fill_scaled(&p.v, 3, 1.0f);
    fill_scaled(&p.grad_o, 4, 1.0f);
    return p;
}

static problem make_problem(shape s, float sharpness)
{
    return make_problem_at(UNALIGNED, s, sharpness);
}

static void free_problem(problem *p)
{
    fp8flow_tensor *owned[] = { &p->fused, &p->o, &p->grad_o, &p->grad_q, &p->grad_k, &p->grad_v };
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) free_tensor(owned[i]);
    free(p->lse);
}

static fp8flow_status forward(fp8flow_context *context, problem *p)
{
    fp8flow_attention_args args = { &p->q,         &p->k,    &p->v, p->s.batch, p->s.num_heads, p->s.num_kv_heads,
                                    p->s.head_dim, p->scale, &p->o, p->lse };
    return fp8flow_attention(context, &args);
}

static fp8flow_status backward(fp8flow_context *context, problem *p)
{
    fp8flow_attention_backward_args args = { &p->q,         &p->k,          &p->v,
                                             &p->o,         &p->grad_o,     p->lse,
                                             p->s.batch,    p->s.num_heads, p->s.num_kv_heads,
                                             p->s.head_dim, p->scale,       &p->grad_q,
                                             &p->grad_k,    &p->grad_v };
    return fp8flow_attention_backward(context, &args);
}

/* ---- Oracle: one head of one sequence, dense FP64 ---- */

typedef struct {
    int64_t queries, keys, dim;
    double scale;
    double *q, *k, *v, *grad_o;                     /* inputs */
    double *o, *lse, *p, *grad_q, *grad_k, *grad_v; /* results */
} head_oracle;

static double *zeros(int64_t count)
{
    double *memory = calloc((size_t)count + 1, sizeof *memory);
    assert_non_null(memory);
    return memory;
}

static double *copy_head(const fp8flow_tensor *t, int64_t row, int64_t rows, int64_t head, int64_t dim)
{
    double *out = zeros(rows * dim);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < dim; d++) out[r * dim + d] = f8_value(t, row + r, head * dim + d, 0);
    return out;
}

static head_oracle make_oracle(const problem *p, int64_t sequence, int64_t head)
{
    int64_t kv_head = head / (p->s.num_heads / p->s.num_kv_heads), n = p->s.queries, m = p->s.keys, dim = p->s.head_dim;
    head_oracle h = { .queries = n, .keys = m, .dim = dim, .scale = p->scale };
    h.q = copy_head(&p->q, sequence * n, n, head, dim);
    h.grad_o = copy_head(&p->grad_o, sequence * n, n, head, dim);
    h.k = copy_head(&p->k, sequence * m, m, kv_head, dim);
    h.v = copy_head(&p->v, sequence * m, m, kv_head, dim);
    h.o = zeros(n * dim);
    h.lse = zeros(n);
    h.p = zeros(n * m);
    h.grad_q = zeros(n * dim);
    h.grad_k = zeros(m * dim);
    h.grad_v = zeros(m * dim);
    return h;
}

static void free_oracle(head_oracle *h)
{
    double *all[] = { h->q, h->k, h->v, h->grad_o, h->o, h->lse, h->p, h->grad_q, h->grad_k, h->grad_v };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void oracle_forward(head_oracle *h)
{
    memset(h->o, 0, (size_t)(h->queries * h->dim) * sizeof *h->o);
    for (int64_t s = 0; s < h->queries; s++) {
        int64_t seen = s + 1 + h->keys - h->queries;
        double *p = h->p + s * h->keys, max = -INFINITY, sum = 0;
        for (int64_t t = 0; t < seen; t++) {
            p[t] = h->scale * dot(h->q + s * h->dim, h->k + t * h->dim, h->dim);
            max = fmax(max, p[t]);
        }
        for (int64_t t = 0; t < seen; t++) sum += p[t] = exp(p[t] - max);
        for (int64_t t = 0; t < seen; t++) {
            p[t] /= sum;
            for (int64_t d = 0; d < h->dim; d++) h->o[s * h->dim + d] += p[t] * h->v[t * h->dim + d];
        }
        h->lse[s] = max + log(sum);
    }
}

/* With sum p dp = grad_o . o: of h->o as it is, exact or the library's BF16. */
static void oracle_backward(head_oracle *h)
{
    double *dp = zeros(h->keys);
    for (int64_t s = 0; s < h->queries; s++) {
        int64_t seen = s + 1 + h->keys - h->queries, dim = h->dim;
        const double *p = h->p + s * h->keys, *grad_o = h->grad_o + s * dim;
        for (int64_t t = 0; t < seen; t++) dp[t] = dot(grad_o, h->v + t * dim, dim);
        double mean = dot(grad_o, h->o + s * dim, dim);
        for (int64_t t = 0; t < seen; t++) {
            double ds = p[t] * (dp[t] - mean) * h->scale;
            for (int64_t d = 0; d < dim; d++) {
                h->grad_q[s * dim + d] += ds * h->k[t * dim + d];
                h->grad_k[t * dim + d] += ds * h->q[s * dim + d];
                h->grad_v[t * dim + d] += p[t] * grad_o[d];
            }
        }
    }
    free(dp);
}

static void use_library_output(head_oracle *h, const problem *p, int64_t sequence, int64_t head)
{
    free(h->o);
    h->o = copy_head(&p->o, sequence * h->queries, h->queries, head, h->dim);
}

static double largest(const double *x, int64_t count)
{
    double max = 0;
    for (int64_t i = 0; i < count; i++) max = fmax(max, fabs(x[i]));
    return max;
}

/* Head `head` of `t`, sequence rows from `row` on, against `expected`. */
static void assert_head_near(const char *name, const fp8flow_tensor *t, int64_t row, int64_t head,
                             const double *expected, const head_oracle *h, double bound)
{
    int64_t rows = t->rows == 0 ? 0 : strcmp(name, "o") == 0 || strcmp(name, "grad_q") == 0 ? h->queries : h->keys;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < h->dim; d++) {
            double error = fabs((double)f8_value(t, row + r, head * h->dim + d, 0) - expected[r * h->dim + d]);
            if (!(error <= bound))
                fail_msg("%s: head %ld, row %ld, column %ld of S=%ld D=%ld: error %g > %g", name, (long)head, (long)r,
                         (long)d, (long)h->queries, (long)h->dim, error, bound);
        }
}

static void assert_forward_is_near(const problem *p)
{
    for (int64_t b = 0; b < p->s.batch; b++)
        for (int64_t j = 0; j < p->s.num_heads; j++) {
            head_oracle h = make_oracle(p, b, j);
            oracle_forward(&h);
            double bound = largest(h.v, h.keys * h.dim) * 0x1p-7;
            assert_head_near("o", &p->o, b * h.queries, j, h.o, &h, bound);
            for (int64_t s = 0; s < h.queries; s++) {
                double lse = (double)p->lse[(b * h.queries + s) * p->s.num_heads + j];
                assert_true(fabs(lse - h.lse[s]) <= 0x1p-16 * (1 + fabs(h.lse[s])));
            }
            free_oracle(&h);
        }
}

static void add_to(double *sum, const double *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) sum[i] += x[i];
}

typedef enum { OWN_OUTPUT, LIBRARY_OUTPUT } oracle_output;

/* Near the true gradients (OWN_OUTPUT), or near the formulas applied to the library's o. */
static void assert_backward_is_near(const problem *p, oracle_output output)
{
    const double tolerance = 0.011048543456; /* 2^-6.5 */
    int64_t heads_per_kv = p->s.num_heads / p->s.num_kv_heads, count = p->s.keys * p->s.head_dim;
    for (int64_t b = 0; b < p->s.batch; b++)
        for (int64_t kv = 0; kv < p->s.num_kv_heads; kv++) {
            double *grad_k = zeros(count), *grad_v = zeros(count);
            head_oracle h;
            for (int64_t j = kv * heads_per_kv; j < (kv + 1) * heads_per_kv; j++) {
                h = make_oracle(p, b, j);
                oracle_forward(&h);
                if (output == LIBRARY_OUTPUT) use_library_output(&h, p, b, j);
                oracle_backward(&h);
                double bound = largest(h.grad_q, count) * tolerance;
                assert_head_near("grad_q", &p->grad_q, b * h.queries, j, h.grad_q, &h, bound);
                add_to(grad_k, h.grad_k, count);
                add_to(grad_v, h.grad_v, count);
                free_oracle(&h);
            }
            assert_head_near("grad_k", &p->grad_k, b * h.keys, kv, grad_k, &h, largest(grad_k, count) * tolerance);
            assert_head_near("grad_v", &p->grad_v, b * h.keys, kv, grad_v, &h, largest(grad_v, count) * tolerance);
            free(grad_k);
            free(grad_v);
        }
}

/* ---- Values ---- */

static const shape square_shapes[] = {
    { 1, 1, 1, 8, 1, 1 },       { 2, 4, 4, 32, 17, 17 }, { 1, 8, 2, 64, 129, 129 }, { 2, 4, 1, 13, 128, 128 },
    { 1, 2, 2, 128, 300, 300 }, { 1, 2, 1, 1, 70, 70 },  { 1, 1, 1, 16, 600, 600 }, { 1, 1, 1, 1000, 30, 30 },
};
enum { NUM_SQUARE = sizeof square_shapes / sizeof square_shapes[0] };

/* Nearly one-hot rows have tiny true gradients; the rounding of o to BF16 is larger than they are. */
static void check_square(fp8flow_context *context, int64_t first_col, shape s, float sharpness)
{
    problem p = make_problem_at(first_col, s, sharpness);
    assert_ok(forward(context, &p));
    assert_forward_is_near(&p);
    assert_ok(backward(context, &p));
    assert_backward_is_near(&p, LIBRARY_OUTPUT);
    if (sharpness <= 1.0f) assert_backward_is_near(&p, OWN_OUTPUT);
    free_problem(&p);
}

static void test_outputs_and_gradients_stay_within_bound(void **state)
{
    (void)state;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    for (int i = 0; i < NUM_SQUARE; i++) {
        check_square(context, UNALIGNED, square_shapes[i], 1.0f);
        check_square(context, UNALIGNED, square_shapes[i], 6.0f);
    }
    fp8flow_context_destroy(context);
}

/* What the tensor core kernels take: blocks of 128 queries, 64 and 128 keys, and ends inside of them. */
static void test_aligned_vectors_stay_within_bound(void **state)
{
    (void)state;
    static const shape squares[] = {
        { 2, 4, 2, 64, 200, 200 },  { 1, 2, 1, 128, 300, 300 }, { 2, 2, 2, 32, 129, 129 },
        { 1, 4, 2, 96, 70, 70 },    { 3, 2, 1, 128, 64, 64 },   { 1, 1, 1, 64, 1, 1 },
        { 1, 8, 2, 128, 257, 257 }, { 1, 2, 2, 64, 600, 600 },  { 1, 3, 1, 128, 128, 128 },
    };
    static const shape others[] = { { 2, 4, 2, 64, 1, 300 },
                                    { 1, 2, 1, 128, 7, 260 },
                                    { 2, 2, 2, 96, 150, 151 },
                                    { 1, 1, 1, 32, 130, 1000 },
                                    { 1, 4, 1, 128, 129, 200 } };
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    for (size_t i = 0; i < sizeof squares / sizeof squares[0]; i++) {
        check_square(context, ALIGNED, squares[i], 1.0f);
        check_square(context, ALIGNED, squares[i], 6.0f);
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        problem p = make_problem_at(ALIGNED, others[i], 2.0f);
        assert_ok(forward(context, &p));
        assert_forward_is_near(&p);
        free_problem(&p);
    }
    fp8flow_context_destroy(context);
}

static void test_reference_stays_within_bound(void **state)
{
    (void)state;
    static const shape shapes[] = { { 1, 1, 1, 8, 1, 1 }, { 2, 4, 2, 24, 40, 40 }, { 1, 4, 1, 13, 30, 30 } };
    fp8flow_context *context = make_context(FP8FLOW_REFERENCE, 1);
    for (int i = 0; i < 3; i++) check_square(context, UNALIGNED, shapes[i], 2.0f);
    fp8flow_context_destroy(context);
}

static double oracle_loss(head_oracle *h)
{
    oracle_forward(h);
    return dot(h->o, h->grad_o, h->queries * h->dim);
}

static void assert_finite_difference(head_oracle *h, double *x, double gradient)
{
    const double step = 1e-5, saved = *x;
    *x = saved + step;
    double above = oracle_loss(h);
    *x = saved - step;
    double below = oracle_loss(h);
    *x = saved;
    assert_true(fabs((above - below) / (2 * step) - gradient) < 1e-7 * (1 + fabs(gradient)));
}

static void test_oracle_gradients_match_finite_differences(void **state)
{
    (void)state;
    problem p = make_problem((shape){ 1, 1, 1, 6, 11, 11 }, 2.0f);
    head_oracle h = make_oracle(&p, 0, 0);
    oracle_forward(&h);
    oracle_backward(&h);
    for (int64_t i = 0; i < 66; i++) {
        assert_finite_difference(&h, h.q + i, h.grad_q[i]);
        assert_finite_difference(&h, h.k + i, h.grad_k[i]);
        assert_finite_difference(&h, h.v + i, h.grad_v[i]);
    }
    free_oracle(&h);
    free_problem(&p);
}

static void test_fewer_queries_than_keys_are_the_last_rows(void **state)
{
    (void)state;
    static const shape shapes[] = { { 2, 4, 2, 32, 1, 300 },
                                    { 1, 2, 1, 40, 7, 260 },
                                    { 2, 2, 2, 16, 150, 151 },
                                    { 1, 2, 2, 64, 1, 1 },
                                    { 1, 1, 1, 8, 130, 1000 } };
    for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
        fp8flow_context *context = make_context((fp8flow_backend)backend, 2);
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
            problem p = make_problem(shapes[i], 2.0f);
            assert_ok(forward(context, &p));
            assert_forward_is_near(&p);
            free_problem(&p);
        }
        fp8flow_context_destroy(context);
    }
}

static void test_one_token_copies_its_value(void **state)
{
    (void)state;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 1);
    problem p = make_problem((shape){ 3, 4, 2, 24, 1, 1 }, 1.0f);
    assert_ok(forward(context, &p));
    for (int64_t b = 0; b < 3; b++)
        for (int64_t j = 0; j < 4; j++)
            for (int64_t d = 0; d < 24; d++)
                assert_true(f8_value(&p.o, b, j * 24 + d, 0) == f8_value(&p.v, b, j / 2 * 24 + d, 0));
    free_problem(&p);
    fp8flow_context_destroy(context);
}

static void test_lse_may_be_null_and_batch_may_be_zero(void **state)
{
    (void)state;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 1);
    problem with = make_problem((shape){ 1, 2, 1, 16, 20, 20 }, 1.0f), without = make_problem(with.s, 1.0f);
    float *lse = without.lse;
    without.lse = NULL;
    assert_ok(forward(context, &with));
    assert_ok(forward(context, &without));
    assert_same_tensor(&with.o, &without.o, 0);
    without.lse = lse;
    free_problem(&with);
    free_problem(&without);
    problem none = make_problem((shape){ 0, 2, 1, 16, 20, 20 }, 1.0f);
    assert_ok(forward(context, &none));
    assert_ok(backward(context, &none));
    free_problem(&none);
    fp8flow_context_destroy(context);
}

/* ---- Determinism and causality ---- */

static void assert_same_results(const problem *a, const problem *b)
{
    assert_same_tensor(&a->o, &b->o, 0);
    assert_same_tensor(&a->grad_q, &b->grad_q, 0);
    assert_same_tensor(&a->grad_k, &b->grad_k, 0);
    assert_same_tensor(&a->grad_v, &b->grad_v, 0);
    assert_memory_equal(a->lse, b->lse, (size_t)(a->q.rows * a->s.num_heads) * sizeof(float));
}

static void test_bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    problem one = make_problem((shape){ 2, 8, 2, 40, 333, 333 }, 1.0f);
    for (int threads = 1; threads <= 5; threads++) {
        problem many = make_problem(one.s, 1.0f);
        problem *p = threads == 1 ? &one : &many;
        fp8flow_context *context = make_context(FP8FLOW_CPU, threads);
        assert_ok(forward(context, p));
        assert_ok(backward(context, p));
        if (threads > 1) assert_same_results(&one, p);
        fp8flow_context_destroy(context);
        free_problem(&many);
    }
    free_problem(&one);
}

/* q, k and v as matrices of their own. */
static void test_strided_views_equal_dense_tensors(void **state)
{
    (void)state;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    problem fused = make_problem((shape){ 2, 4, 2, 24, 140, 140 }, 1.0f), dense = make_problem(fused.s, 1.0f);
    fp8flow_tensor *views[3] = { &dense.q, &dense.k, &dense.v }, own[3];
    for (int i = 0; i < 3; i++) {
        own[i] = make_tensor(bf16_rows, views[i]->rows, views[i]->cols, 0, 0);
        *views[i] = own[i];
        fill_scaled(views[i], (uint64_t)i + 1, 1.0f);
    }
    assert_ok(forward(context, &fused));
    assert_ok(backward(context, &fused));
    assert_ok(forward(context, &dense));
    assert_ok(backward(context, &dense));
    assert_same_results(&fused, &dense);
    for (int i = 0; i < 3; i++) free_tensor(&own[i]);
    free_problem(&fused);
    free_problem(&dense);
    fp8flow_context_destroy(context);
}

static void check_future(int64_t first_col)
{
    static const int64_t cuts[] = { 1, 100, 128, 255, 256, 290 };
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    problem before = make_problem_at(first_col, (shape){ 1, 4, 2, 32, 300, 300 }, 1.0f);
    assert_ok(forward(context, &before));
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        problem after = make_problem_at(first_col, before.s, 1.0f);
        for (int64_t r = cuts[i]; r < 300; r++)
            for (int64_t c = 0; c < after.fused.cols; c++)
                ((uint16_t *)after.fused.data)[r * after.fused.stride + c] = f8_bf16_encode(-100.0f);
        assert_ok(forward(context, &after));
        assert_memory_equal(before.o.data, after.o.data, (size_t)(cuts[i] * before.o.cols) * 2);
        assert_memory_equal(before.lse, after.lse, (size_t)(cuts[i] * before.s.num_heads) * sizeof(float));
        free_problem(&after);
    }
    free_problem(&before);
    fp8flow_context_destroy(context);
}

static void test_future_tokens_do_not_change_a_bit(void **state)
{
    (void)state;
    check_future(UNALIGNED);
    check_future(ALIGNED);
}

static void check_sequences(int64_t first_col)
{
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    problem one = make_problem_at(first_col, (shape){ 1, 4, 2, 32, 150, 150 }, 1.0f),
            two = make_problem_at(first_col, (shape){ 2, 4, 2, 32, 150, 150 }, 1.0f);
    size_t half = (size_t)(150 * two.fused.stride) * 2;
    memset((char *)two.fused.data + half, 0xFF, half); /* NaN */
    assert_ok(forward(context, &one));
    assert_ok(backward(context, &one));
    assert_ok(forward(context, &two));
    assert_ok(backward(context, &two));
    assert_memory_equal(one.o.data, two.o.data, (size_t)(150 * one.o.cols) * 2);
    assert_memory_equal(one.grad_q.data, two.grad_q.data, (size_t)(150 * one.grad_q.cols) * 2);
    assert_memory_equal(one.grad_k.data, two.grad_k.data, (size_t)(150 * one.grad_k.cols) * 2);
    assert_memory_equal(one.grad_v.data, two.grad_v.data, (size_t)(150 * one.grad_v.cols) * 2);
    free_problem(&one);
    free_problem(&two);
    fp8flow_context_destroy(context);
}

static void test_sequences_do_not_see_each_other(void **state)
{
    (void)state;
    check_sequences(UNALIGNED);
    check_sequences(ALIGNED);
}

/* ---- Errors ---- */

static void test_bad_arguments_are_named(void **state)
{
    (void)state;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 1);
    problem good = make_problem((shape){ 2, 4, 2, 16, 20, 20 }, 1.0f), p = good;
    assert_fails(fp8flow_attention(NULL, NULL), FP8FLOW_EINVAL, "attention: the context");
    assert_fails(fp8flow_attention(context, NULL), FP8FLOW_EINVAL, "attention: the arguments");
    assert_fails(fp8flow_attention_backward(context, NULL), FP8FLOW_EINVAL, "attention_backward: the arguments");
    p.s.num_kv_heads = 3;
    assert_fails(forward(context, &p), FP8FLOW_ESHAPE, "4 heads and 3 key heads");
    p = good;
    p.s.head_dim = 1025;
    assert_fails(forward(context, &p), FP8FLOW_ESHAPE, "head_dim is 1025");
    p = good;
    p.scale = INFINITY;
    assert_fails(forward(context, &p), FP8FLOW_EINVAL, "scale");
    p = good;
    p.o.dtype = FP8FLOW_F32;
    assert_fails(forward(context, &p), FP8FLOW_EINVAL, "attention: o is f32");
    p = good;
    p.k.cols = 48;
    assert_fails(forward(context, &p), FP8FLOW_ESHAPE, "attention: k has 48 columns, 2 heads of 16 need 32");
    p = good;
    p.v.rows = 39;
    assert_fails(forward(context, &p), FP8FLOW_ESHAPE, "attention: v has 39 rows, expected 40");
    p = good;
    p.k.rows = p.v.rows = 38;
    assert_fails(forward(context, &p), FP8FLOW_ESHAPE, "expected keys >= queries");
    p = good;
    p.s.batch = 3;
    assert_fails(forward(context, &p), FP8FLOW_ESHAPE, "are not 3 sequences");
    p = good;
    p.grad_k.rows = 20;
    assert_fails(backward(context, &p), FP8FLOW_ESHAPE, "attention_backward: grad_k has 20 rows");
    p = good;
    p.lse = NULL;
    assert_fails(backward(context, &p), FP8FLOW_EINVAL, "attention_backward: lse is NULL");
    free_problem(&good);
    fp8flow_context_destroy(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outputs_and_gradients_stay_within_bound),
        cmocka_unit_test(test_aligned_vectors_stay_within_bound),
        cmocka_unit_test(test_reference_stays_within_bound),
        cmocka_unit_test(test_oracle_gradients_match_finite_differences),
        cmocka_unit_test(test_fewer_queries_than_keys_are_the_last_rows),
        cmocka_unit_test(test_one_token_copies_its_value),
        cmocka_unit_test(test_lse_may_be_null_and_batch_may_be_zero),
        cmocka_unit_test(test_bits_do_not_depend_on_threads),
        cmocka_unit_test(test_strided_views_equal_dense_tensors),
        cmocka_unit_test(test_future_tokens_do_not_change_a_bit),
        cmocka_unit_test(test_sequences_do_not_see_each_other),
        cmocka_unit_test(test_bad_arguments_are_named),
    };
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
