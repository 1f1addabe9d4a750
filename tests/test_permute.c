/* test_permute.c - permute_plan against a sort, permute against a plain gather and fp8flow_transpose,
 * unpermute against sums in a known order. Every fast path is compared with the reference bit for bit. */
#include "support.h"

/* ---- Routings ---- */

typedef enum {
    ROUTE_BALANCED,  /* k different experts, all equally likely */
    ROUTE_HOT,       /* expert 0 gets every token, the rest as above */
    ROUTE_ONE,       /* only the last expert is used */
    ROUTE_EVEN_ONLY, /* odd experts stay empty; their slots are -1 */
    ROUTE_DROPPED,   /* half of the slots are -1 */
    ROUTE_NOWHERE,   /* every slot is -1 */
    NUM_ROUTES
} route;

typedef struct {
    int64_t tokens, top_k, experts, align;
} plan_shape;

static const plan_shape shapes[] = {
    { 0, 1, 4, 128 },   { 1, 1, 1, 128 },   { 1, 2, 4, 128 },     { 127, 1, 1, 128 }, { 128, 2, 3, 128 },
    { 129, 2, 3, 128 }, { 300, 3, 8, 128 }, { 64, 8, 8, 128 },    { 40, 6, 6, 1 },    { 200, 2, 5, 16 },
    { 17, 4, 64, 128 }, { 700, 1, 2, 256 }, { 3, 256, 256, 128 },
};
enum { NUM_SHAPES = sizeof shapes / sizeof *shapes };

static int32_t route_slot(route kind, const plan_shape *s, int64_t token, int64_t slot)
{
    uint64_t experts = (uint64_t)s->experts;
    if (kind == ROUTE_NOWHERE) return -1;
    int32_t expert = (int32_t)f8_shuffle((uint64_t)token, (uint64_t)slot, experts);
    switch (kind) {
    case ROUTE_HOT: return slot == 0 ? 0 : expert == 0 ? -1 : expert;
    case ROUTE_ONE: return slot == s->top_k - 1 ? (int32_t)s->experts - 1 : -1;
    case ROUTE_EVEN_ONLY: return expert % 2 ? -1 : expert;
    case ROUTE_DROPPED: return f8_random(7, (uint64_t)token, (uint64_t)slot) & 1 ? -1 : expert;
    default: return expert;
    }
}

/* A plan with memory of its own, filled from a routing. */
typedef struct {
    fp8flow_plan plan;
    int32_t *expert;
    int64_t rows;
} test_plan;

static int64_t rows_needed(const plan_shape *s, const int32_t *expert)
{
    int64_t rows = 0;
    for (int64_t e = 0; e < s->experts; e++) {
        int64_t count = 0;
        for (int64_t i = 0; i < s->tokens * s->top_k; i++) count += expert[i] == e;
        rows += f8_ceil_div(count, s->align) * s->align;
    }
    return rows;
}

/* Not filled yet; capacity for `spare` rows more than are needed. */
static test_plan empty_plan(const plan_shape *s, route kind, int64_t spare)
{
    int64_t pairs = s->tokens * s->top_k;
    test_plan t = { .expert = poisoned(pairs * 4) };
    for (int64_t i = 0; i < pairs; i++) t.expert[i] = route_slot(kind, s, i / s->top_k, i % s->top_k);
    t.rows = rows_needed(s, t.expert);
    t.plan = (fp8flow_plan){ s->tokens, s->top_k, s->experts, s->align, t.rows + spare, NULL, NULL, NULL, NULL };
    t.plan.rows = poisoned(s->experts * 4);
    t.plan.offset = poisoned((s->experts + 1) * 4);
    t.plan.row_of = poisoned(pairs * 4);
    t.plan.source = poisoned(t.plan.capacity * 4);
    /* 0xFF bytes would be -1, what padding must be set to. */
    memset(t.plan.source, 0x5A, (size_t)t.plan.capacity * 4);
    return t;
}

static test_plan make_plan_with(fp8flow_backend backend, const plan_shape *s, route kind, int64_t spare)
{
    test_plan t = empty_plan(s, kind, spare);
    fp8flow_context *c = make_context(backend, 1);
    assert_ok(fp8flow_permute_plan(c, &(fp8flow_permute_plan_args){ t.expert, &t.plan }));
    fp8flow_context_destroy(c);
    return t;
}

static test_plan make_plan(const plan_shape *s, route kind, int64_t spare)
{
    return make_plan_with(FP8FLOW_REFERENCE, s, kind, spare);
}

static void free_plan(test_plan *t)
{
    free(t->expert);
    free(t->plan.rows);
    free(t->plan.offset);
    free(t->plan.row_of);
    free(t->plan.source);
}

/* ---- permute_plan ---- */

static int compare_keys(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* Sort (expert, pair) keys and lay them out one after the other. */
static void check_plan_against_sort(const test_plan *t)
{
    const fp8flow_plan *p = &t->plan;
    int64_t pairs = p->num_tokens * p->top_k, used = 0, row = 0, at = 0;
    uint64_t *keys = poisoned(pairs * 8);
    for (int64_t i = 0; i < pairs; i++) {
        if (t->expert[i] >= 0) keys[used++] = (uint64_t)t->expert[i] << 32 | (uint64_t)i;
        else assert_int_equal(p->row_of[i], -1);
    }
    qsort(keys, (size_t)used, sizeof *keys, compare_keys);
    for (int64_t e = 0; e < p->num_experts; e++) {
        int64_t first = row;
        assert_int_equal(p->offset[e], row);
        for (; at < used && (int64_t)(keys[at] >> 32) == e; at++, row++) {
            int32_t pair = (int32_t)(keys[at] & 0xFFFFFFFFu);
            assert_int_equal(p->source[row], pair);
            assert_int_equal(p->row_of[pair], row);
        }
        assert_int_equal(p->rows[e], row - first);
        for (; row % p->align; row++) assert_int_equal(p->source[row], -1);
    }
    assert_int_equal(p->offset[p->num_experts], row);
    assert_int_equal(row, t->rows);
    free(keys);
}

static void test_plan_matches_a_sort(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_SHAPES; i++)
        for (route kind = 0; kind < NUM_ROUTES; kind++)
            for (fp8flow_backend backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
                test_plan t = make_plan_with(backend, &shapes[i], kind, 0);
                check_plan_against_sort(&t);
                free_plan(&t);
            }
}

static void test_plan_without_experts(void **state)
{
    (void)state;
    for (fp8flow_backend backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
        test_plan t = make_plan_with(backend, &(plan_shape){ 5, 2, 0, 128 }, ROUTE_NOWHERE, 0);
        assert_int_equal(t.plan.offset[0], 0);
        for (int i = 0; i < 10; i++) assert_int_equal(t.plan.row_of[i], -1);
        free_plan(&t);
    }
}

static void test_plan_leaves_spare_capacity_alone(void **state)
{
    (void)state;
    test_plan t = empty_plan(&shapes[6], ROUTE_BALANCED, 100);
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    assert_ok(fp8flow_permute_plan(c, &(fp8flow_permute_plan_args){ t.expert, &t.plan }));
    for (int64_t row = t.rows; row < t.plan.capacity; row++) assert_int_equal(t.plan.source[row], 0x5A5A5A5A);
    assert_int_equal(fp8flow_context_calls(c, "permute_plan"), 1);
    fp8flow_context_destroy(c);
    free_plan(&t);
}

static void assert_plan_unwritten(const test_plan *t)
{
    for (int64_t e = 0; e < t->plan.num_experts; e++) assert_int_equal(t->plan.rows[e], -1);
    for (int64_t e = 0; e <= t->plan.num_experts; e++) assert_int_equal(t->plan.offset[e], -1);
    for (int64_t i = 0; i < t->plan.num_tokens * t->plan.top_k; i++) assert_int_equal(t->plan.row_of[i], -1);
}

static void test_plan_rejects_bad_routing_before_writing(void **state)
{
    (void)state;
    skip_on_cuda("a kernel cannot refuse a routing, see cuda_device");
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    test_plan t = empty_plan(&shapes[6], ROUTE_BALANCED, 0);
    fp8flow_permute_plan_args args = { t.expert, &t.plan };
    int32_t last = t.expert[899], first = t.expert[897];
    t.expert[899] = 8;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_EINVAL, "permute_plan: token 299, slot 2 names expert 8 of 8");
    t.expert[899] = -2;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_EINVAL, "names expert -2 of 8");
    t.expert[899] = first;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_EINVAL, "twice");
    t.expert[899] = last;
    t.plan.capacity = t.rows - 1;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_ESHAPE, "capacity is");
    assert_plan_unwritten(&t);
    t.plan.capacity = t.rows;
    assert_ok(fp8flow_permute_plan(c, &args));
    free_plan(&t);
    fp8flow_context_destroy(c);
}

static void test_plan_rejects_bad_arguments(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    test_plan t = empty_plan(&shapes[6], ROUTE_BALANCED, 0);
    fp8flow_plan good = t.plan;
    fp8flow_permute_plan_args args = { t.expert, &t.plan };
    assert_fails(fp8flow_permute_plan(NULL, &args), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_permute_plan(c, NULL), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_permute_plan(c, &(fp8flow_permute_plan_args){ t.expert, NULL }), FP8FLOW_EINVAL,
                 "plan is NULL");
    assert_fails(fp8flow_permute_plan(c, &(fp8flow_permute_plan_args){ NULL, &t.plan }), FP8FLOW_EINVAL,
                 "expert is NULL");
    t.plan.num_tokens = (int64_t)1 << 30;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_ESHAPE, "2^31-1 slots");
    t.plan = good, t.plan.top_k = 0;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_ESHAPE, "top 0");
    t.plan = good, t.plan.align = 0;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_ESHAPE, "aligns to 0");
    t.plan = good, t.plan.capacity = (int64_t)1 << 31;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_ESHAPE, "capacity of 2147483648");
    t.plan = good, t.plan.num_experts = 1 << 21;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_ESHAPE, "2097152 experts");
    t.plan = good, t.plan.source = NULL;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_EINVAL, "source");
    t.plan = good, t.plan.row_of = NULL;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_EINVAL, "row_of");
    t.plan = good, t.plan.offset = NULL;
    assert_fails(fp8flow_permute_plan(c, &args), FP8FLOW_EINVAL, "offset");
    t.plan = good;
    free_plan(&t);
    fp8flow_context_destroy(c);
}

/* ---- permute ---- */

static const f8_tensor_format bf16_rows = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };

static f8_tensor_format row128(fp8flow_dtype dtype)
{
    return (f8_tensor_format){ dtype, FP8FLOW_ROW128, FP8FLOW_ROWS };
}

static f8_tensor_format column_form(fp8flow_dtype dtype, fp8flow_scaling scaling)
{
    return (f8_tensor_format){ dtype, scaling, FP8FLOW_COLUMNS };
}

/* A row-form tensor of test data. FP8: codes of the values under scale bytes far apart, every 5th row zero
 * with the largest scale byte: it must not raise its tile. */
static fp8flow_tensor make_x(f8_tensor_format format, int64_t rows, int64_t cols, data_kind kind)
{
    fp8flow_tensor x = make_tensor(format, rows, cols, 0, 0);
    if (!f8_is_fp8(format.dtype)) {
        fill_tensor(&x, kind, 11);
        return x;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t col = 0; col < cols; col++) {
            uint64_t spread = kind == DATA_HEAVY_TAILED ? 60 : 10;
            uint8_t scale = (uint8_t)(110 + f8_random(3, (uint64_t)r, (uint64_t)(col / 128)) % spread);
            ((uint8_t *)x.scale)[f8_scale_index(&x, r, col, 0)] = r % 5 == 4 ? 254 : scale;
            float value = r % 5 == 4 ? -0.0f : 50.0f * test_value(kind, 11, r, col);
            ((uint8_t *)x.data)[f8_element(&x, r, col)] = f8_encode(value, format.dtype);
        }
    return x;
}

/* All outputs of a permute call; columns and histogram for FP8 only. */
typedef struct {
    fp8flow_tensor rows, columns;
    float *gate_rows;
    uint64_t histogram[64];
} permuted;

static permuted run_permute(fp8flow_context *c, const test_plan *t, const fp8flow_tensor *x, const float *gate,
                            fp8flow_scaling scaling)
{
    int64_t capacity = t->plan.capacity;
    permuted out = { .rows =
                         make_tensor((f8_tensor_format){ x->dtype, x->scaling, FP8FLOW_ROWS }, capacity, x->cols, 0, 0),
                     .gate_rows = poisoned(capacity * 4) };
    fp8flow_permute_args args = { .x = x, .plan = &t->plan, .rows = &out.rows, .gate = gate };
    args.gate_rows = gate ? out.gate_rows : NULL;
    if (scaling != FP8FLOW_UNSCALED) {
        out.columns = make_tensor(column_form(x->dtype, scaling), capacity, x->cols, 0, 0);
        args.columns = &out.columns;
        args.shift_histogram = out.histogram;
    }
    assert_ok(fp8flow_permute(c, &args));
    return out;
}

static void free_permuted(permuted *p)
{
    free_tensor(&p->rows);
    free_tensor(&p->columns);
    free(p->gate_rows);
}

static void assert_same_permuted(const permuted *a, const permuted *b)
{
    assert_same_tensor(&a->rows, &b->rows, 0);
    assert_same_tensor(&a->columns, &b->columns, 0);
    if (a->rows.rows) assert_memory_equal(a->gate_rows, b->gate_rows, (size_t)a->rows.rows * 4);
    assert_memory_equal(a->histogram, b->histogram, sizeof a->histogram);
}

static float *make_gate(const fp8flow_plan *plan)
{
    float *gate = poisoned(plan->num_tokens * plan->top_k * 4);
    for (int64_t i = 0; i < plan->num_tokens * plan->top_k; i++) gate[i] = f8_uniform(5, 0, (uint64_t)i) + 0.25f;
    return gate;
}

/* Rows are copies of token rows; padding is zero; spare rows keep their poison. */
static void check_gathered(const test_plan *t, const fp8flow_tensor *x, const float *gate, const permuted *out)
{
    size_t size = f8_dtype_bytes(x->dtype), bytes = (size_t)x->cols * size;
    size_t blocks = x->scaling == FP8FLOW_ROW128 ? (size_t)f8_ceil_div(x->cols, 128) : 0;
    uint8_t expected[4096], expected_scale[64];
    for (int64_t row = 0; row < t->plan.capacity; row++) {
        int64_t pair = row < t->rows ? t->plan.source[row] : -1, token = pair / t->plan.top_k;
        memset(expected, row < t->rows ? 0 : 0xFF, bytes);
        memset(expected_scale, row < t->rows ? 1 : 0xFF, blocks);
        float weight = row < t->rows ? 0.0f : f8_from_bits(0xFFFFFFFFu);
        if (pair >= 0) {
            memcpy(expected, (const char *)x->data + (size_t)(token * x->stride) * size, bytes);
            if (blocks) memcpy(expected_scale, (const uint8_t *)x->scale + (size_t)token * blocks, blocks);
            weight = gate[pair];
        }
        assert_memory_equal((char *)out->rows.data + (size_t)row * bytes, expected, bytes);
        if (blocks) assert_memory_equal((uint8_t *)out->rows.scale + (size_t)row * blocks, expected_scale, blocks);
        assert_memory_equal(&out->gate_rows[row], &weight, 4);
    }
}

static void test_permute_gathers_rows_and_zeroes_only_padding(void **state)
{
    (void)state;
    fp8flow_context *contexts[2] = { make_context(FP8FLOW_REFERENCE, 1), make_context(FP8FLOW_CPU, 2) };
    const f8_tensor_format formats[3] = { bf16_rows, row128(FP8FLOW_E4M3), row128(FP8FLOW_E5M2) };
    const int64_t cols[] = { 16, 200, 128 };
    for (int i = 0; i < NUM_SHAPES; i++)
        for (route kind = 0; kind < NUM_ROUTES; kind++)
            for (int f = 0; f < 3; f++) {
                test_plan t = make_plan(&shapes[i], kind, 3);
                fp8flow_tensor x = make_x(formats[f], shapes[i].tokens, cols[(i + f) % 3], DATA_SPECIAL);
                float *gate = make_gate(&t.plan);
                permuted out = run_permute(contexts[(i + (int)kind) % 2], &t, &x, gate, FP8FLOW_UNSCALED);
                check_gathered(&t, &x, gate, &out);
                free_permuted(&out);
                free(gate);
                free_tensor(&x);
                free_plan(&t);
            }
    for (int i = 0; i < 2; i++) fp8flow_context_destroy(contexts[i]);
}

/* One permutation on the reference, and with one and two threads. */
static void compare_permute(fp8flow_context **contexts, const test_plan *t, const fp8flow_tensor *x,
                            fp8flow_scaling scaling)
{
    float *gate = make_gate(&t->plan);
    permuted expected = run_permute(contexts[0], t, x, gate, scaling);
    for (int i = 1; i < 3; i++) {
        permuted out = run_permute(contexts[i], t, x, gate, scaling);
        assert_same_permuted(&out, &expected);
        free_permuted(&out);
    }
    free_permuted(&expected);
    free(gate);
}

static void test_permute_fast_equals_reference(void **state)
{
    (void)state;
    fp8flow_context *contexts[3] = { make_context(FP8FLOW_REFERENCE, 1), make_context(FP8FLOW_CPU, 1),
                                     make_context(FP8FLOW_CPU, 2) };
    const int64_t cols[] = { 16, 48, 128, 136, 200, 384 };
    for (int i = 0; i < NUM_SHAPES; i++)
        for (data_kind kind = 0; kind < NUM_DATA_KINDS; kind++) {
            fp8flow_dtype dtype = kind % 2 ? FP8FLOW_E5M2 : FP8FLOW_E4M3;
            test_plan t = make_plan(&shapes[i], (route)((i + (int)kind) % NUM_ROUTES), i % 3 * 5);
            fp8flow_tensor x = make_x(row128(dtype), shapes[i].tokens, cols[(i + (int)kind) % 6], kind);
            fp8flow_tensor values = make_x(bf16_rows, shapes[i].tokens, cols[i % 6], kind);
            compare_permute(contexts, &t, &values, FP8FLOW_UNSCALED);
            compare_permute(contexts, &t, &x, FP8FLOW_UNSCALED);
            if (shapes[i].align % 128 == 0) {
                compare_permute(contexts, &t, &x, FP8FLOW_TILE128);
                compare_permute(contexts, &t, &x, FP8FLOW_COL128);
            }
            free_tensor(&values);
            free_tensor(&x);
            free_plan(&t);
        }
    for (int i = 0; i < 3; i++) fp8flow_context_destroy(contexts[i]);
}

/* Columns are transpose(rows), also where no row form is written; the histogram is transpose's. */
static void check_columns(fp8flow_context *c, const test_plan *t, const fp8flow_tensor *x, fp8flow_scaling scaling)
{
    permuted out = run_permute(c, t, x, NULL, scaling);
    fp8flow_groups groups = { t->plan.num_experts, t->plan.offset, t->plan.rows };
    fp8flow_tensor alone = make_tensor(column_form(x->dtype, scaling), t->plan.capacity, x->cols, 0, 0);
    fp8flow_tensor expected = make_tensor(column_form(x->dtype, scaling), t->plan.capacity, x->cols, 0, 0);
    uint64_t histogram[64] = { 0 };
    assert_ok(fp8flow_transpose(c, &(fp8flow_transpose_args){ &out.rows, &groups, &expected, histogram }));
    assert_same_tensor(&out.columns, &expected, 0);
    assert_memory_equal(out.histogram, histogram, sizeof histogram);
    assert_ok(fp8flow_permute(c, &(fp8flow_permute_args){ .x = x, .plan = &t->plan, .columns = &alone }));
    assert_same_tensor(&alone, &expected, 0);
    free_tensor(&alone);
    free_tensor(&expected);
    free_permuted(&out);
}

static void test_permute_columns_are_the_transpose_of_rows(void **state)
{
    (void)state;
    fp8flow_context *contexts[2] = { make_context(FP8FLOW_REFERENCE, 1), make_context(FP8FLOW_CPU, 0) };
    for (int i = 0; i < NUM_SHAPES; i++)
        for (route kind = 0; kind < NUM_ROUTES && shapes[i].align % 128 == 0; kind++) {
            test_plan t = make_plan(&shapes[i], kind, 0);
            fp8flow_tensor x = make_x(row128(FP8FLOW_E4M3), shapes[i].tokens, 136, (data_kind)(i % NUM_DATA_KINDS));
            for (int backend = 0; backend < 2; backend++) {
                check_columns(contexts[backend], &t, &x, FP8FLOW_TILE128);
                check_columns(contexts[backend], &t, &x, FP8FLOW_COL128);
            }
            free_tensor(&x);
            free_plan(&t);
        }
    for (int i = 0; i < 2; i++) fp8flow_context_destroy(contexts[i]);
}

static void test_permute_rejects_bad_arguments(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    test_plan t = make_plan(&shapes[6], ROUTE_BALANCED, 0);
    fp8flow_tensor x = make_x(row128(FP8FLOW_E4M3), 300, 48, DATA_NORMAL);
    fp8flow_tensor rows = make_tensor(row128(FP8FLOW_E4M3), t.rows, 48, 0, 0);
    fp8flow_tensor columns = make_tensor(column_form(FP8FLOW_E4M3, FP8FLOW_TILE128), t.rows, 48, 0, 0), bad;
    float gate[900] = { 0 };
    fp8flow_permute_args good = { .x = &x, .plan = &t.plan, .rows = &rows, .columns = &columns }, args;
    assert_ok(fp8flow_permute(c, &good));
    args = good, args.rows = args.columns = NULL;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_EINVAL, "permute: rows and columns are both NULL");
    args = good, args.gate = gate;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_EINVAL, "gate_rows is NULL");
    args = good, args.gate_rows = gate;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_EINVAL, "gate is NULL");
    uint64_t histogram[64] = { 0 };
    args = good, args.columns = NULL, args.shift_histogram = histogram;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_EINVAL, "shift_histogram needs columns");
    bad = rows, bad.rows--, args = good, args.rows = &bad;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_ESHAPE, "rows has");
    bad = rows, bad.dtype = FP8FLOW_E5M2;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_EINVAL, "rows is e5m2 row128, x is e4m3 row128");
    bad = rows, bad.cols = 47;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_ESHAPE, "rows has 47 columns");
    bad = columns, bad.rows--, args = good, args.columns = &bad;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_ESHAPE, "columns has");
    bad = columns, bad.scaling = FP8FLOW_TENSOR;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_EINVAL, "columns is tensor");
    bad = columns, bad.dtype = FP8FLOW_E5M2;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_EINVAL, "same FP8 format");
    bad = x, bad.rows = 299, args = good, args.x = &bad;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_ESHAPE, "x has 299 rows");
    bad = x, bad.scaling = FP8FLOW_TILE128;
    assert_fails(fp8flow_permute(c, &args), FP8FLOW_EINVAL, "x is e4m3 tile128");
    t.plan.align = 64;
    assert_fails(fp8flow_permute(c, &good), FP8FLOW_ESHAPE, "plan aligns to 64 rows");
    free_tensor(&columns);
    free_tensor(&rows);
    free_tensor(&x);
    free_plan(&t);
    fp8flow_context_destroy(c);
}

/* ---- unpermute ---- */

/* The definition: for each token, add its rows in ascending order; encode once. */
static void check_unpermuted(const test_plan *t, const fp8flow_tensor *x, const fp8flow_tensor *y)
{
    for (int64_t token = 0; token < y->rows; token++)
        for (int64_t col = 0; col < y->cols; col++) {
            float sum = 0.0f;
            int64_t count = 0;
            for (int64_t row = 0; row < t->rows; row++) {
                if (t->plan.source[row] < 0 || t->plan.source[row] / t->plan.top_k != token) continue;
                float value = f8_value(x, row, col, 0);
                sum = count++ == 0 ? value : sum + value;
            }
            uint16_t code = ((uint16_t *)y->data)[f8_element(y, token, col)];
            assert_int_equal(code, sum == sum ? f8_bf16_encode(sum) : 0x7FC0);
        }
}

static void test_unpermute_sums_rows_in_ascending_order(void **state)
{
    (void)state;
    fp8flow_context *contexts[3] = { make_context(FP8FLOW_REFERENCE, 1), make_context(FP8FLOW_CPU, 1),
                                     make_context(FP8FLOW_CPU, 2) };
    const int64_t cols[] = { 64, 1, 72, 136 };
    for (int i = 0; i < NUM_SHAPES; i++)
        for (data_kind kind = 0; kind < NUM_DATA_KINDS; kind++) {
            test_plan t = make_plan(&shapes[i], (route)((i + (int)kind) % NUM_ROUTES), 0);
            fp8flow_tensor x = make_x(bf16_rows, t.rows, cols[(i + (int)kind) % 4], kind);
            for (int b = 0; b < 3; b++) {
                fp8flow_tensor y = make_tensor(bf16_rows, shapes[i].tokens, x.cols, 0, 0);
                assert_ok(fp8flow_unpermute(contexts[b], &(fp8flow_unpermute_args){ &x, &t.plan, &y, NULL, NULL }));
                if (b == 0 || shapes[i].tokens < 300) check_unpermuted(&t, &x, &y);
                free_tensor(&y);
            }
            free_tensor(&x);
            free_plan(&t);
        }
    for (int i = 0; i < 3; i++) fp8flow_context_destroy(contexts[i]);
}

/* Three experts hold 1, 2^30, -2^30 for a token whose slots name them in descending order: ascending rows
 * give (1 + 2^30) - 2^30 = 0, any other order 1. */
static void test_unpermute_order_ignores_the_order_of_slots(void **state)
{
    (void)state;
    static int32_t expert[3] = { 2, 1, 0 };
    int32_t rows[3], offset[4], row_of[3], source[3];
    fp8flow_plan plan = { 1, 3, 3, 1, 3, rows, offset, row_of, source };
    uint16_t values[3] = { f8_bf16_encode(1.0f), f8_bf16_encode(0x1p30f), f8_bf16_encode(-0x1p30f) }, sum;
    fp8flow_tensor x = f8_bf16(values, 3, 1), y = f8_bf16(&sum, 1, 1);
    for (int backend = 0; backend < 2; backend++) {
        fp8flow_context *c = make_context((fp8flow_backend)backend, 1);
        assert_ok(fp8flow_permute_plan(c, &(fp8flow_permute_plan_args){ expert, &plan }));
        assert_ok(fp8flow_unpermute(c, &(fp8flow_unpermute_args){ &x, &plan, &y, NULL, NULL }));
        assert_int_equal(sum, 0);
        fp8flow_context_destroy(c);
    }
}

/* Each token's row, times the number of its copies. */
static void test_unpermute_of_permute_counts_copies(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    for (int i = 0; i < NUM_SHAPES; i++)
        for (route kind = 0; kind < NUM_ROUTES; kind++) {
            test_plan t = make_plan(&shapes[i], kind, 2);
            fp8flow_tensor x = make_x(bf16_rows, shapes[i].tokens, 80, DATA_SMALL_INTEGERS);
            fp8flow_tensor y = make_tensor(bf16_rows, shapes[i].tokens, 80, 0, 0);
            float *gate = make_gate(&t.plan), *back = make_gate(&t.plan);
            permuted out = run_permute(c, &t, &x, gate, FP8FLOW_UNSCALED);
            assert_ok(fp8flow_unpermute(c, &(fp8flow_unpermute_args){ &out.rows, &t.plan, &y, out.gate_rows, back }));
            for (int64_t token = 0; token < x.rows; token++) {
                int copies = 0;
                for (int64_t s = token * t.plan.top_k; s < (token + 1) * t.plan.top_k; s++) {
                    copies += t.plan.row_of[s] >= 0;
                    assert_true(back[s] == (t.plan.row_of[s] >= 0 ? gate[s] : 0.0f));
                }
                for (int64_t col = 0; col < 80; col++) {
                    float sum = copies ? (float)copies * f8_value(&x, token, col, 0) : 0.0f;
                    assert_true(f8_value(&y, token, col, 0) == f8_bf16_decode(f8_bf16_encode(sum)));
                }
            }
            free_permuted(&out);
            free(gate);
            free(back);
            free_tensor(&x);
            free_tensor(&y);
            free_plan(&t);
        }
    fp8flow_context_destroy(c);
}

static void test_unpermute_rejects_bad_arguments(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    test_plan t = make_plan(&shapes[6], ROUTE_BALANCED, 0);
    fp8flow_tensor x = make_x(bf16_rows, t.rows, 48, DATA_NORMAL), y = make_tensor(bf16_rows, 300, 48, 0, 0), bad;
    fp8flow_unpermute_args good = { &x, &t.plan, &y, NULL, NULL }, args = good;
    float gate[900];
    assert_ok(fp8flow_unpermute(c, &good));
    args.x = &bad, bad = x, bad.rows--;
    assert_fails(fp8flow_unpermute(c, &args), FP8FLOW_ESHAPE, "unpermute: x has");
    bad = x, bad.dtype = FP8FLOW_F32;
    assert_fails(fp8flow_unpermute(c, &args), FP8FLOW_EINVAL, "x is f32");
    bad = x, bad.data = NULL;
    assert_fails(fp8flow_unpermute(c, &args), FP8FLOW_EINVAL, "x has no data");
    args = good, args.y = &bad, bad = y, bad.rows = 299;
    assert_fails(fp8flow_unpermute(c, &args), FP8FLOW_ESHAPE, "y has 299 rows, plan has 300 tokens");
    bad = y, bad.cols = 40;
    assert_fails(fp8flow_unpermute(c, &args), FP8FLOW_ESHAPE, "x has 48 columns, y has 40");
    args = good, args.gate = gate;
    assert_fails(fp8flow_unpermute(c, &args), FP8FLOW_EINVAL, "gate_rows is NULL");
    args = good, args.gate_rows = gate;
    assert_fails(fp8flow_unpermute(c, &args), FP8FLOW_EINVAL, "gate is NULL");
    free_tensor(&x);
    free_tensor(&y);
    free_plan(&t);
    fp8flow_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_matches_a_sort),
        cmocka_unit_test(test_plan_without_experts),
        cmocka_unit_test(test_plan_leaves_spare_capacity_alone),
        cmocka_unit_test(test_plan_rejects_bad_routing_before_writing),
        cmocka_unit_test(test_plan_rejects_bad_arguments),
        cmocka_unit_test(test_permute_gathers_rows_and_zeroes_only_padding),
        cmocka_unit_test(test_permute_fast_equals_reference),
        cmocka_unit_test(test_permute_columns_are_the_transpose_of_rows),
        cmocka_unit_test(test_permute_rejects_bad_arguments),
        cmocka_unit_test(test_unpermute_sums_rows_in_ascending_order),
        cmocka_unit_test(test_unpermute_order_ignores_the_order_of_slots),
        cmocka_unit_test(test_unpermute_of_permute_counts_copies),
        cmocka_unit_test(test_unpermute_rejects_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
