/* test_moe_errors.c - wrong arguments, impossible sizes, and numbers that are not finite. */
#include "moe_fixture.h"

/* ---- Create ---- */

/* One rank in this thread: cmocka may assert in the body of run_ranks(1). */
typedef struct {
    void (*check)(fp8flow_context *context, fp8flow_comm *comm);
} alone;

static fp8flow_status alone_body(fp8flow_comm *comm, void *user)
{
    fp8flow_context *context = make_context(FP8FLOW_CPU, 1);
    ((const alone *)user)->check(context, comm);
    fp8flow_context_destroy(context);
    return FP8FLOW_OK;
}

static void run_alone(void (*check)(fp8flow_context *, fp8flow_comm *))
{
    alone a = { check };
    assert_ok(fp8flow_run_ranks(1, alone_body, &a));
}

static fp8flow_moe_config good_config(void)
{
    moe_case c = moe_default_case();
    return moe_config_of(&c, c.tokens);
}

static void check_refused(fp8flow_context *context, fp8flow_comm *comm, const fp8flow_moe_config *config,
                          fp8flow_status status, const char *text)
{
    fp8flow_moe *moe = (fp8flow_moe *)&moe;
    assert_fails(fp8flow_moe_create(context, comm, config, &moe), status, text);
    assert_ptr_equal(moe, &moe);
    assert_memory_equal(fp8flow_last_error(), "moe_create", 10);
}

static void widths(fp8flow_context *context, fp8flow_comm *comm)
{
    fp8flow_moe_config c = good_config();
    const struct {
        const char *name;
        int64_t *field;
    } fields[] = { { "hidden", &c.hidden }, { "expert_width", &c.expert_width }, { "shared_width", &c.shared_width } };
    static const int64_t wrong[] = {
        -16, -1, 1, 15, 17, 100, (int64_t)1 << 30, (int64_t)1 << 62, INT64_MAX, INT64_MIN
    };
    for (int f = 0; f < 3; f++) {
        int64_t kept = *fields[f].field;
        for (int i = 0; i < 10; i++) {
            *fields[f].field = wrong[i];
            check_refused(context, comm, &c, FP8FLOW_ESHAPE, fields[f].name);
        }
        *fields[f].field = 100;
        check_refused(context, comm, &c, FP8FLOW_ESHAPE, "must be a multiple of 16 (next: 112)");
        *fields[f].field = 0;
        if (f < 2) check_refused(context, comm, &c, FP8FLOW_ESHAPE, "(next: 16)");
        *fields[f].field = kept;
    }
}

static void test_widths_must_be_multiples_of_16(void **state)
{
    (void)state;
    run_alone(widths);
}

static void routers(fp8flow_context *context, fp8flow_comm *comm)
{
    fp8flow_moe_config c;
#define REFUSED(change, text)  \
    c = good_config(), change; \
    check_refused(context, comm, &c, FP8FLOW_ESHAPE, text);
    REFUSED(c.router.num_experts = 0, "num_experts")
    REFUSED(c.router.num_experts = -3, "num_experts")
    REFUSED(c.router.num_experts = 4097, "num_experts")
    REFUSED(c.router.num_experts = 1 << 20, "num_experts")
    REFUSED(c.router.num_experts = INT64_MAX, "num_experts")
    REFUSED(c.router.top_k = 0, "top_k")
    REFUSED(c.router.top_k = 6, "top_k")
    REFUSED(c.router.top_k = INT64_MAX, "top_k")
    REFUSED(c.router.num_groups = 0, "num_groups")
    REFUSED(c.router.num_groups = 2, "num_groups")
    REFUSED(c.router.top_groups = 2, "top_groups")
    REFUSED((c.router.num_groups = 5, c.router.top_groups = 1), "top_k")
    REFUSED((c.router.sequence_length = 0, c.router.sequence_coef = 1.0f), "sequence_length")
    REFUSED((c.router.sequence_length = -4, c.router.sequence_coef = 1.0f), "sequence_length")
    REFUSED(c.max_tokens = 0, "max_tokens")
    REFUSED(c.max_tokens = -1, "max_tokens")
    REFUSED(c.max_tokens = (int64_t)1 << 33, "max_tokens")
    REFUSED((c.max_tokens = INT64_MAX, c.router.top_k = 1), "max_tokens")
    REFUSED(c.max_tokens = INT64_MAX / 2, "max_tokens")
#undef REFUSED
    c = good_config(), c.router.score = (fp8flow_score)7;
    check_refused(context, comm, &c, FP8FLOW_EINVAL, "score");
    c = good_config(), c.router.gate_rule = (fp8flow_gate_rule)-1;
    check_refused(context, comm, &c, FP8FLOW_EINVAL, "gate_rule");
    /* Without a sequence loss nobody asks for a sequence length. */
    fp8flow_moe *moe = NULL;
    c = good_config(), c.router.sequence_length = 0;
    assert_ok(fp8flow_moe_create(context, comm, &c, &moe));
    fp8flow_moe_destroy(moe);
}

static void test_impossible_routers_are_refused_at_create(void **state)
{
    (void)state;
    run_alone(routers);
}

static void other_arguments(fp8flow_context *context, fp8flow_comm *comm)
{
    fp8flow_moe_config c = good_config();
    fp8flow_moe *moe = NULL;
    assert_fails(fp8flow_moe_create(NULL, comm, &c, &moe), FP8FLOW_EINVAL, "moe_create: NULL");
    assert_fails(fp8flow_moe_create(context, NULL, &c, &moe), FP8FLOW_EINVAL, "moe_create: NULL");
    assert_fails(fp8flow_moe_create(context, comm, NULL, &moe), FP8FLOW_EINVAL, "moe_create: NULL");
    assert_fails(fp8flow_moe_create(context, comm, &c, NULL), FP8FLOW_EINVAL, "moe_create: NULL");
    c.recipe = "fp4";
    check_refused(context, comm, &c, FP8FLOW_EINVAL, "\"fp4\" is not known; recipes: bf16");
    c.recipe = NULL;
    check_refused(context, comm, &c, FP8FLOW_EINVAL, "NULL");
    c = good_config(), c.checkpointing = (fp8flow_checkpointing)3;
    check_refused(context, comm, &c, FP8FLOW_EINVAL, "checkpointing 3");
    /* Possible, but larger than any machine: 2^24 x 2^24 weights. */
    c = good_config(), c.hidden = c.expert_width = 1 << 24, c.max_tokens = 1 << 20;
    check_refused(context, comm, &c, FP8FLOW_ENOMEM, "memory");
    fp8flow_moe_destroy(NULL);
}

static void test_create_refuses_nulls_recipes_and_more_memory_than_there_is(void **state)
{
    (void)state;
    run_alone(other_arguments);
}

/* ---- Calls ---- */

typedef struct {
    moe_case c;
    moe_data data;
    fp8flow_moe *moe;
    fp8flow_moe_weights weights;
    fp8flow_moe_gradients gradients;
    fp8flow_tensor x, y, dy, dx;
    void *memory[6];
} layer;

static layer make_layer(fp8flow_context *context, fp8flow_comm *comm)
{
    layer l = { .c = moe_default_case() };
    l.c.shared_width = 16;
    l.data = moe_make_data(&l.c, 1);
    int64_t matrix = l.c.hidden * l.c.width, shared = l.c.hidden * l.c.shared_width;
    int64_t sizes[] = { 5 * l.c.hidden, 10 * matrix, 5 * matrix, 2 * shared, shared, l.c.tokens * l.c.hidden };
    for (int i = 0; i < 6; i++) l.memory[i] = moe_zeros(sizes[i]);
    l.gradients = (fp8flow_moe_gradients){ l.memory[0], l.memory[1], l.memory[2], l.memory[3], l.memory[4] };
    l.weights =
        (fp8flow_moe_weights){ l.data.router, NULL, l.data.fc1, l.data.fc2, l.data.shared_fc1, l.data.shared_fc2 };
    l.x = f8_bf16(l.data.x, l.c.tokens, l.c.hidden);
    l.dy = f8_bf16(l.data.dy, l.c.tokens, l.c.hidden);
    l.y = f8_bf16(l.memory[5], l.c.tokens, l.c.hidden);
    l.dx = f8_bf16((uint16_t *)l.memory[5] + l.c.tokens * l.c.hidden, l.c.tokens, l.c.hidden);
    fp8flow_moe_config config = moe_config_of(&l.c, l.c.tokens);
    assert_ok(fp8flow_moe_create(context, comm, &config, &l.moe));
    return l;
}

static void free_layer(layer *l)
{
    fp8flow_moe_destroy(l->moe);
    moe_free_data(&l->data);
    for (int i = 0; i < 6; i++) free(l->memory[i]);
}

static void order_of_calls(fp8flow_context *context, fp8flow_comm *comm)
{
    layer l = make_layer(context, comm);
    assert_fails(fp8flow_moe_forward(l.moe, &l.x, &l.y), FP8FLOW_EINVAL, "moe_set_weights has not been called");
    assert_ok(fp8flow_moe_set_weights(l.moe, &l.weights));
    assert_fails(fp8flow_moe_backward(l.moe, &l.x, &l.dy, 1, &l.gradients, &l.dx), FP8FLOW_EINVAL, "no forward");
    assert_ok(fp8flow_moe_forward(l.moe, &l.x, &l.y));
    assert_ok(fp8flow_moe_forward(l.moe, &l.x, &l.y)); /* evaluation: forward after forward */
    assert_ok(fp8flow_moe_backward(l.moe, &l.x, &l.dy, 1, &l.gradients, &l.dx));
    assert_fails(fp8flow_moe_backward(l.moe, &l.x, &l.dy, 1, &l.gradients, &l.dx), FP8FLOW_EINVAL, "no forward");
    assert_ok(fp8flow_moe_forward(l.moe, &l.x, &l.y));
    assert_ok(fp8flow_moe_set_weights(l.moe, &l.weights)); /* what forward kept belongs to the old weights */
    assert_fails(fp8flow_moe_backward(l.moe, &l.x, &l.dy, 1, &l.gradients, &l.dx), FP8FLOW_EINVAL, "no forward");
    free_layer(&l);
}

static void test_calls_in_the_wrong_order_are_refused(void **state)
{
    (void)state;
    run_alone(order_of_calls);
}

static void shapes(fp8flow_context *context, fp8flow_comm *comm)
{
    layer l = make_layer(context, comm);
    assert_ok(fp8flow_moe_set_weights(l.moe, &l.weights));
    fp8flow_tensor t = l.x;
    t.cols = 48;
    assert_fails(fp8flow_moe_forward(l.moe, &t, &l.y), FP8FLOW_ESHAPE, "x has 48 columns, hidden is 64");
    t = l.x, t.rows = 97;
    assert_fails(fp8flow_moe_forward(l.moe, &t, &t), FP8FLOW_ESHAPE, "at most max_tokens = 96");
    t = l.x, t.rows = 90;
    assert_fails(fp8flow_moe_forward(l.moe, &l.x, &t), FP8FLOW_ESHAPE, "y has 90 rows, expected 96");
    t = l.x, t.dtype = FP8FLOW_F32;
    assert_fails(fp8flow_moe_forward(l.moe, &t, &l.y), FP8FLOW_EINVAL, "x must be BF16 rows");
    t = l.x, t.layout = FP8FLOW_COLUMNS, t.stride = 96;
    assert_fails(fp8flow_moe_forward(l.moe, &t, &l.y), FP8FLOW_EINVAL, "x must be BF16 rows");
    t = l.x, t.data = NULL;
    assert_fails(fp8flow_moe_forward(l.moe, &t, &l.y), FP8FLOW_EINVAL, "x has no data");
    assert_fails(fp8flow_moe_forward(l.moe, NULL, &l.y), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_moe_forward(NULL, &l.x, &l.y), FP8FLOW_EINVAL, "NULL");
    assert_ok(fp8flow_moe_forward(l.moe, &l.x, &l.y));
    t = l.x, t.rows = 90;
    assert_fails(fp8flow_moe_backward(l.moe, &t, &l.dy, 1, &l.gradients, &l.dx), FP8FLOW_ESHAPE, "x has 90 rows");
    assert_fails(fp8flow_moe_backward(l.moe, &l.x, &t, 1, &l.gradients, &l.dx), FP8FLOW_ESHAPE, "dy has 90 rows");
    assert_fails(fp8flow_moe_backward(l.moe, &l.x, &l.dy, 1, &l.gradients, &t), FP8FLOW_ESHAPE, "dx has 90 rows");
    assert_fails(fp8flow_moe_backward(l.moe, &l.x, NULL, 1, &l.gradients, &l.dx), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_moe_backward(l.moe, &l.x, &l.dy, 1, NULL, &l.dx), FP8FLOW_EINVAL, "NULL");
    /* None of the refusals has lost the forward. */
    assert_ok(fp8flow_moe_backward(l.moe, &l.x, &l.dy, 1, &l.gradients, &l.dx));
    free_layer(&l);
}

static void test_wrong_tensors_are_refused(void **state)
{
    (void)state;
    run_alone(shapes);
}

static void missing_arrays(fp8flow_context *context, fp8flow_comm *comm)
{
    layer l = make_layer(context, comm);
    fp8flow_moe_weights w[5];
    fp8flow_moe_gradients g[5];
    for (int i = 0; i < 5; i++) w[i] = l.weights, g[i] = l.gradients;
    w[0].router = NULL, w[1].fc1 = NULL, w[2].fc2 = NULL, w[3].shared_fc1 = NULL, w[4].shared_fc2 = NULL;
    g[0].router = NULL, g[1].fc1 = NULL, g[2].fc2 = NULL, g[3].shared_fc1 = NULL, g[4].shared_fc2 = NULL;
    for (int i = 0; i < 5; i++) assert_fails(fp8flow_moe_set_weights(l.moe, &w[i]), FP8FLOW_EINVAL, "moe_set_weights");
    assert_fails(fp8flow_moe_set_weights(l.moe, NULL), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_moe_set_weights(NULL, &l.weights), FP8FLOW_EINVAL, "NULL");
    assert_ok(fp8flow_moe_set_weights(l.moe, &l.weights));
    assert_ok(fp8flow_moe_forward(l.moe, &l.x, &l.y));
    for (int i = 0; i < 5; i++)
        assert_fails(fp8flow_moe_backward(l.moe, &l.x, &l.dy, 1, &g[i], &l.dx), FP8FLOW_EINVAL,
                     "moe_backward: a gradient");
    free_layer(&l);
}

static void test_missing_weights_and_gradients_are_refused(void **state)
{
    (void)state;
    run_alone(missing_arrays);
}

static void queries(fp8flow_context *context, fp8flow_comm *comm)
{
    layer l = make_layer(context, comm);
    fp8flow_saved_tensor saved;
    fp8flow_edge edge;
    fp8flow_moe_report report;
    int64_t load[5];
    assert_fails(fp8flow_moe_get_edge(l.moe, 0, &edge), FP8FLOW_EINVAL, "index 0 of 0");
    assert_ok(fp8flow_moe_set_weights(l.moe, &l.weights));
    assert_ok(fp8flow_moe_forward(l.moe, &l.x, &l.y));
    for (int64_t i = -1; i < 200; i += 201) {
        assert_fails(fp8flow_moe_get_edge(l.moe, i, &edge), FP8FLOW_EINVAL, "moe_get_edge: index");
        assert_fails(fp8flow_moe_get_saved(l.moe, i, &saved), FP8FLOW_EINVAL, "moe_get_saved: index");
    }
    assert_fails(fp8flow_moe_get_edge(l.moe, INT64_MAX, &edge), FP8FLOW_EINVAL, "index");
    assert_fails(fp8flow_moe_get_edge(NULL, 0, &edge), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_moe_get_edge(l.moe, 0, NULL), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_moe_get_saved(l.moe, 0, NULL), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_moe_get_saved(NULL, 0, &saved), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_moe_get_report(NULL, &report), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_moe_get_report(l.moe, NULL), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_moe_get_load(NULL, load), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_moe_get_load(l.moe, NULL), FP8FLOW_EINVAL, "NULL");
    free_layer(&l);
}

static void test_queries_check_their_arguments(void **state)
{
    (void)state;
    run_alone(queries);
}

/* A sequence length that does not divide the tokens of one rank fails everywhere, and nobody hangs. */
static void test_failure_on_one_rank_ends_all_ranks(void **state)
{
    (void)state;
    static const int64_t tokens[] = { 32, 33, 32 };
    moe_case c = moe_default_case();
    c.num_ranks = 3, c.rank_tokens = tokens, c.tokens = 97;
    c.router.sequence_length = 16, c.router.sequence_coef = 0.1f;
    moe_data data = moe_make_data(&c, 1);
    moe_result r = moe_try(&c, &data);
    assert_int_equal(r.status, FP8FLOW_ESHAPE);
    assert_non_null(strstr(fp8flow_last_error(), "33 tokens"));
    assert_int_equal(r.rank[0].status, FP8FLOW_ECOMM);
    assert_int_equal(r.rank[2].status, FP8FLOW_ECOMM);
    moe_free_result(&r);
    moe_free_data(&data);
}

/* ---- Numbers that are not finite ---- */

enum { BAD_TOKEN = 7, BAD_COLUMN = 5 };

static uint64_t nonfinite_of(const moe_result *r, const char *edge)
{
    for (int i = 0; i < r->rank[0].num_edges; i++)
        if (strcmp(r->rank[0].edge[i].name, edge) == 0) return r->rank[0].edge[i].nonfinite;
    fail_msg("there is no edge %s", edge);
    return 0;
}

/* Which edge of a recipe sees x or dy first. */
static const char *first_edge(const f8_recipe *recipe, int backward)
{
    if (recipe->edge[backward ? F8_BACKWARD_WIRE : F8_FORWARD_WIRE].how == F8_CAST)
        return backward ? "backward wire" : "forward wire";
    return backward ? "dy2 rows" : "x1 rows";
}

static void check_other_rows(const moe_case *c, const uint16_t *a, const uint16_t *b)
{
    int64_t at = BAD_TOKEN * c->hidden;
    assert_memory_equal(a, b, (size_t)at * 2);
    assert_memory_equal(a + at + c->hidden, b + at + c->hidden, (size_t)((c->tokens - BAD_TOKEN - 1) * c->hidden) * 2);
}

static void check_bad_x(const char *name, uint16_t bad)
{
    moe_case c = moe_default_case();
    moe_data data = moe_make_data(&c, 11);
    f8_recipe recipe;
    assert_ok(f8_recipe_find(name, &recipe));
    c.recipe = name;
    moe_result good = moe_run(&c, &data);
    assert_int_equal(good.rank[0].report.nonfinite, 0);
    data.x[BAD_TOKEN * c.hidden + BAD_COLUMN] = bad;
    moe_result r = moe_run(&c, &data);
    check_other_rows(&c, good.y, r.y);
    assert_true(r.rank[0].report.nonfinite > 0);
    if (recipe.edge[F8_X1_ROWS].format.dtype != FP8FLOW_BF16) {
        uint64_t copies = recipe.edge[F8_FORWARD_WIRE].how == F8_CAST ? 1 : (uint64_t)c.router.top_k;
        assert_int_equal(nonfinite_of(&r, first_edge(&recipe, 0)), copies);
    }
    moe_free_result(&good), moe_free_result(&r);
    moe_free_data(&data);
}

static void test_nan_in_x_is_reported_and_stays_in_its_row(void **state)
{
    (void)state;
    /* tensorwise: one scale for an expert's rows, from finite values only: other rows are still untouched. */
    for (int i = 0; i < NUM_MOE_RECIPES; i++) check_bad_x(moe_recipes[i], 0x7FC0);
}

/* An infinity in x makes the logits of its token infinite or NaN; what matters is that it is seen. */
static void test_infinity_in_x_is_reported_and_stays_in_its_row(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_MOE_RECIPES; i++) check_bad_x(moe_recipes[i], 0x7F80);
}

static void test_nan_in_dy_is_reported_and_stays_in_its_row(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        f8_recipe recipe;
        assert_ok(f8_recipe_find(moe_recipes[i], &recipe));
        c.recipe = moe_recipes[i];
        moe_data data = moe_make_data(&c, 12);
        moe_result good = moe_run(&c, &data);
        data.dy[BAD_TOKEN * c.hidden + BAD_COLUMN] = 0x7FC0;
        moe_result r = moe_run(&c, &data);
        assert_memory_equal(good.y, r.y, (size_t)(c.tokens * c.hidden) * 2);
        check_other_rows(&c, good.dx, r.dx);
        assert_true(r.rank[0].report.nonfinite > 0);
        if (recipe.edge[F8_DY2_ROWS].format.dtype != FP8FLOW_BF16)
            assert_true(nonfinite_of(&r, first_edge(&recipe, 1)));
        moe_free_result(&good), moe_free_result(&r);
        moe_free_data(&data);
    }
}

/* A NaN in one row of h: k rows of x2 with F values each are NaN, and each is counted once, cast or fused. */
static void test_nonfinite_values_are_counted_once(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        c.recipe = moe_recipes[i];
        moe_data data = moe_make_data(&c, 13);
        data.x[BAD_TOKEN * c.hidden + BAD_COLUMN] = 0x7FC0;
        moe_result r = moe_run(&c, &data);
        assert_int_equal(nonfinite_of(&r, "x2 rows"), c.router.top_k * c.width);
        moe_free_result(&r);
        moe_free_data(&data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widths_must_be_multiples_of_16),
        cmocka_unit_test(test_impossible_routers_are_refused_at_create),
        cmocka_unit_test(test_create_refuses_nulls_recipes_and_more_memory_than_there_is),
        cmocka_unit_test(test_calls_in_the_wrong_order_are_refused),
        cmocka_unit_test(test_wrong_tensors_are_refused),
        cmocka_unit_test(test_missing_weights_and_gradients_are_refused),
        cmocka_unit_test(test_queries_check_their_arguments),
        cmocka_unit_test(test_failure_on_one_rank_ends_all_ranks),
        cmocka_unit_test(test_nan_in_x_is_reported_and_stays_in_its_row),
        cmocka_unit_test(test_infinity_in_x_is_reported_and_stays_in_its_row),
        cmocka_unit_test(test_nan_in_dy_is_reported_and_stays_in_its_row),
        cmocka_unit_test(test_nonfinite_values_are_counted_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
