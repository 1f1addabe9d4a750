/* test_recipe.c - the table of recipes: every row is consistent, every broken row is refused by the name of its edge,
 * and whatever the validator lets through, the layer can run. */
#include "moe_fixture.h"

static f8_recipe find(const char *name)
{
    f8_recipe r;
    assert_ok(f8_recipe_find(name, &r));
    return r;
}

/* ---- Names ---- */

static void test_every_row_is_valid_and_has_a_name_of_its_own(void **state)
{
    (void)state;
    static const char *const names[] = { "bf16", "tensorwise", "blockwise", "deepseek", "flow" };
    for (int64_t i = 0; i < 5; i++) {
        const f8_recipe *r = f8_recipe_at(i);
        assert_non_null(r);
        assert_string_equal(r->name, names[i]);
        assert_true(strlen(r->summary) > 10);
        assert_ok(f8_recipe_validate(r));
    }
    assert_null(f8_recipe_at(5));
    assert_null(f8_recipe_at(-1));
    assert_null(f8_recipe_at(INT64_MIN));
    assert_null(f8_recipe_at(INT64_MAX));
}

static void test_unknown_names_are_refused_with_a_list(void **state)
{
    (void)state;
    static const char *const wrong[] = { "",          "flo",        "flow ",      "FLOW",     "flow+",
                                         "+e5m2",     "flow++e5m2", "flow+e5m2+", "flow+e5m", "flow+E5M2",
                                         "flow+none", "bf16,flow",  "flow e5m2",  "+",        "flow+e5m22" };
    f8_recipe r;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_fails(f8_recipe_find(wrong[i], &r), FP8FLOW_EINVAL,
                     "recipes: bf16, tensorwise, blockwise, deepseek, flow");
        assert_non_null(strstr(fp8flow_last_error(), "variants: +e5m2, +col128, +unfused"));
    }
    char longest[5000];
    memset(longest, 'f', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_fails(f8_recipe_find(longest, &r), FP8FLOW_EINVAL, "variants");
    assert_fails(f8_recipe_find(NULL, &r), FP8FLOW_EINVAL, "NULL");
    assert_fails(f8_recipe_find("flow", NULL), FP8FLOW_EINVAL, "NULL");
}

static void test_names_of_edges_and_ways_are_different(void **state)
{
    (void)state;
    for (int a = 0; a < F8_NUM_EDGES; a++) {
        const char *direction = f8_edge_direction((f8_edge)a);
        assert_true(strcmp(direction, "forward") == 0 || strcmp(direction, "backward") == 0);
        for (int b = 0; b < a; b++) assert_string_not_equal(f8_edge_name((f8_edge)a), f8_edge_name((f8_edge)b));
    }
    for (int a = 0; a < F8_NUM_HOWS; a++)
        for (int b = 0; b < a; b++) assert_string_not_equal(f8_how_name((f8_how)a), f8_how_name((f8_how)b));
}

/* ---- Variants ---- */

static void test_e5m2_changes_gradients_only(void **state)
{
    (void)state;
    static const char *const bases[] = { "tensorwise", "blockwise", "deepseek", "flow" };
    for (int i = 0; i < 4; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s+e5m2", bases[i]);
        f8_recipe r = find(name), base = find(bases[i]);
        for (int e = 0; e < F8_NUM_EDGES; e++) {
            int gradient = e == F8_BACKWARD_WIRE || e == F8_DY2_ROWS || e == F8_DY2_COLUMNS || e == F8_DH_ROWS ||
                           e == F8_DH_COLUMNS;
            fp8flow_dtype expected = base.edge[e].format.dtype;
            if (gradient && expected == FP8FLOW_E4M3) expected = FP8FLOW_E5M2;
            assert_int_equal(r.edge[e].format.dtype, expected);
            assert_int_equal(r.edge[e].format.scaling, base.edge[e].format.scaling);
            assert_int_equal(r.edge[e].how, base.edge[e].how);
        }
        assert_int_equal(r.weight.dtype, FP8FLOW_E4M3);
    }
}

static void test_col128_and_unfused_change_column_forms_only(void **state)
{
    (void)state;
    f8_recipe base = find("flow"), col128 = find("flow+col128"), unfused = find("flow+unfused");
    for (int e = 0; e < F8_NUM_EDGES; e++) {
        int columns = base.edge[e].format.layout == FP8FLOW_COLUMNS;
        assert_int_equal(col128.edge[e].format.scaling, columns ? FP8FLOW_COL128 : base.edge[e].format.scaling);
        assert_int_equal(col128.edge[e].how, base.edge[e].how);
        assert_int_equal(unfused.edge[e].how, columns ? F8_SHIFT : base.edge[e].how);
        assert_int_equal(unfused.edge[e].format.scaling, base.edge[e].format.scaling);
    }
    assert_int_equal(col128.weight.scaling, FP8FLOW_TILE128);
}

static void test_variants_combine_in_any_order(void **state)
{
    (void)state;
    f8_recipe a = find("flow+e5m2+col128+unfused"), b = find("flow+unfused+e5m2+col128"), c = find("flow+e5m2+e5m2");
    f8_recipe single = find("flow+e5m2");
    for (int e = 0; e < F8_NUM_EDGES; e++) {
        assert_memory_equal(&a.edge[e], &b.edge[e], sizeof a.edge[e]);
        assert_memory_equal(&c.edge[e], &single.edge[e], sizeof c.edge[e]);
    }
    f8_recipe bf16 = find("bf16+e5m2+col128+unfused"), plain = find("bf16");
    for (int e = 0; e < F8_NUM_EDGES; e++) assert_memory_equal(&bf16.edge[e], &plain.edge[e], sizeof plain.edge[e]);
}

/* ---- Validator ---- */

static void break_edge(const char *name, f8_edge edge, f8_edge_rule rule, const char *text)
{
    f8_recipe r = find(name);
    r.edge[edge] = rule;
    char where[128];
    snprintf(where, sizeof where, "recipe %s: %s", r.name, text);
    assert_fails(f8_recipe_validate(&r), FP8FLOW_EINVAL, where);
}

static void test_broken_rows_are_refused_by_name(void **state)
{
    (void)state;
    const f8_tensor_format bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    const f8_tensor_format row = { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS };
    const f8_tensor_format tile = { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_COLUMNS };
    const f8_tensor_format col = { FP8FLOW_E4M3, FP8FLOW_COL128, FP8FLOW_COLUMNS };
    const f8_tensor_format tensor = { FP8FLOW_E4M3, FP8FLOW_TENSOR, FP8FLOW_ROWS };
    const f8_tensor_format row_columns = { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_COLUMNS };
    break_edge("flow", F8_FORWARD_WIRE, (f8_edge_rule){ row, F8_AS_IS }, "forward wire: differs");
    break_edge("flow", F8_FORWARD_WIRE, (f8_edge_rule){ row, F8_FUSED }, "forward wire: its producer");
    break_edge("flow", F8_FORWARD_WIRE, (f8_edge_rule){ bf16, F8_CAST }, "forward wire: a cast");
    break_edge("flow", F8_FORWARD_WIRE, (f8_edge_rule){ bf16, F8_AS_IS }, "x1 rows: differs");
    break_edge("tensorwise", F8_FORWARD_WIRE, (f8_edge_rule){ tensor, F8_CAST }, "forward wire: a wire");
    break_edge("flow", F8_X1_ROWS, (f8_edge_rule){ row, F8_CAST }, "x1 rows: a cast");
    break_edge("flow", F8_X1_ROWS, (f8_edge_rule){ row, F8_SHIFT }, "x1 rows: not a way");
    break_edge("flow", F8_X1_COLUMNS, (f8_edge_rule){ row, F8_AS_IS }, "x1 columns: only BF16");
    break_edge("flow", F8_X1_COLUMNS, (f8_edge_rule){ tile, F8_WITH_ROWS }, "x1 columns: the row form is not cast");
    break_edge("flow", F8_X1_COLUMNS, (f8_edge_rule){ tile, F8_BYTES }, "x1 columns: needs tensor scales");
    break_edge("flow", F8_X1_COLUMNS, (f8_edge_rule){ row_columns, F8_REQUANTIZE }, "x1 columns: not the scales");
    break_edge("blockwise", F8_X1_COLUMNS, (f8_edge_rule){ col, F8_FUSED }, "x1 columns: its producer");
    break_edge("blockwise", F8_DY2_COLUMNS, (f8_edge_rule){ col, F8_FUSED }, "dy2 columns: its producer");
    break_edge("flow", F8_X2_ROWS, (f8_edge_rule){ bf16, F8_AS_IS }, "x2 columns: rows and columns");
    break_edge("flow", F8_X2_ROWS, (f8_edge_rule){ tile, F8_FUSED }, "x2 rows: a row operand must");
    break_edge("flow", F8_X2_COLUMNS, (f8_edge_rule){ row, F8_SHIFT }, "x2 columns: an FP8 wgrad operand");
    break_edge("tensorwise", F8_X2_COLUMNS, (f8_edge_rule){ col, F8_SHIFT }, "x2 columns: a shift");
    break_edge("flow", F8_DY2_ROWS, (f8_edge_rule){ bf16, F8_AS_IS }, "dy2 rows: differs");
    break_edge("flow", F8_BACKWARD_WIRE, (f8_edge_rule){ bf16, F8_AS_IS }, "dy2 rows: differs");
    break_edge("flow", F8_DH_ROWS, (f8_edge_rule){ tensor, F8_FUSED }, "dh rows: its producer");
    break_edge("flow", F8_DH_COLUMNS, (f8_edge_rule){ col, F8_FUSED }, "x1 columns and dh columns differ in scaling");
    break_edge("flow", F8_X2_COLUMNS, (f8_edge_rule){ col, F8_FUSED }, "x2 columns and dy2 columns differ in scaling");
    break_edge("blockwise", F8_X2_ROWS, (f8_edge_rule){ tensor, F8_CAST }, "x2 rows does not fit the weights");
}

static void test_weights_and_padding_must_fit_the_edges(void **state)
{
    (void)state;
    const f8_tensor_format bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    f8_recipe r = find("flow");
    r.weight = bf16;
    assert_fails(f8_recipe_validate(&r), FP8FLOW_EINVAL, "recipe flow: x1 rows does not fit the weights");
    r = find("bf16"), r.weight = find("flow").weight;
    assert_fails(f8_recipe_validate(&r), FP8FLOW_EINVAL, "recipe bf16: x1 rows does not fit the weights");
    static const int64_t aligns[] = { -128, 0, 1, 64, 130 };
    for (int i = 0; i < 5; i++) {
        r = find("flow"), r.align = aligns[i];
        assert_fails(f8_recipe_validate(&r), FP8FLOW_EINVAL, "recipe flow: align");
    }
    r = find("bf16"), r.align = 0;
    assert_fails(f8_recipe_validate(&r), FP8FLOW_EINVAL, "recipe bf16: align");
}

/* ---- The layer runs what the validator accepts ---- */

typedef struct {
    f8_recipe recipe;
    int accepted, refused; /* accepted: different ones */
    uint64_t seen[4096];   /* hashes of those */
} sweep;

/* 1 the first time that this row comes along. */
static int is_new(sweep *s)
{
    uint64_t hash = f8_random((uint64_t)s->recipe.align, s->recipe.weight.dtype, s->recipe.weight.scaling);
    for (int e = 0; e < F8_NUM_EDGES; e++) {
        f8_edge_rule rule = s->recipe.edge[e];
        hash = f8_random(hash, (uint64_t)rule.how, (uint64_t)rule.format.dtype);
        hash = f8_random(hash, (uint64_t)rule.format.scaling, (uint64_t)rule.format.layout);
    }
    for (int i = 0; i < s->accepted; i++)
        if (s->seen[i] == hash) return 0;
    assert_true(s->accepted < 4096);
    s->seen[s->accepted++] = hash;
    return 1;
}

static f8_edge_rule rule_number(int n)
{
    return (f8_edge_rule){ .how = (f8_how)(n % F8_NUM_HOWS),
                           .format = { .layout = (fp8flow_layout)(n / F8_NUM_HOWS % 2),
                                       .scaling = (fp8flow_scaling)(n / (F8_NUM_HOWS * 2) % 5),
                                       .dtype = (fp8flow_dtype)(n / (F8_NUM_HOWS * 10)) } };
}
enum { NUM_RULES = F8_NUM_HOWS * 2 * 5 * 4 };

static fp8flow_status put_recipe(fp8flow_moe *m, void *user)
{
    m->recipe = ((const sweep *)user)->recipe;
    size_t bytes = 2 * m->saved.capacity;
    m->context->device->free(m->saved_memory);
    F8_TRY(m->context->device->alloc(bytes, &m->saved_memory));
    f8_arena_init(&m->saved, m->saved_memory, bytes);
    return f8_context_reserve(m->context, 2 * m->context->workspace.capacity);
}

/* The layer was created for the row in the table; the changed row gets twice the memory. */
static void run_accepted(sweep *s, const char *name, const moe_data *data, fp8flow_checkpointing mode)
{
    moe_case c = moe_default_case();
    static const int64_t tokens[] = { 4, 60 };
    c.tokens = 64, c.hidden = 16, c.width = 16, c.router.num_experts = 2, c.router.top_k = 1;
    c.num_ranks = 2, c.rank_tokens = tokens, c.recipe = name, c.checkpointing = mode;
    c.before = put_recipe, c.user = s;
    moe_result r = moe_run(&c, data);
    for (int64_t i = 0; i < c.tokens * c.hidden; i++)
        assert_true(isfinite(f8_bf16_decode(r.y[i])) && isfinite(f8_bf16_decode(r.dx[i])));
    moe_free_result(&r);
}

static void check_rule(sweep *s, const char *name, const moe_data *data)
{
    if (f8_recipe_validate(&s->recipe) != FP8FLOW_OK) {
        s->refused++;
        return;
    }
    if (!is_new(s)) return;
    for (fp8flow_checkpointing mode = FP8FLOW_KEEP_ALL; mode <= FP8FLOW_FULL; mode++) run_accepted(s, name, data, mode);
}

static void test_layer_runs_every_row_that_the_validator_accepts(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.tokens = 64, c.hidden = 16, c.width = 16, c.router.num_experts = 2;
    moe_data data = moe_make_data(&c, 30);
    sweep s = { .accepted = 0 };
    for (int i = 0; i < NUM_MOE_RECIPES; i++)
        for (int e = 0; e < F8_NUM_EDGES; e++)
            for (int n = 0; n < NUM_RULES; n++) {
                s.recipe = find(moe_recipes[i]);
                s.recipe.edge[e] = rule_number(n);
                check_rule(&s, moe_recipes[i], &data);
            }
    assert_true(s.accepted >= 2 * NUM_MOE_RECIPES); /* the unchanged rows, and some that have no name */
    assert_true(s.refused > 9 * s.accepted);
    if (getenv("FP8FLOW_VERBOSE")) printf("%d accepted, %d refused\n", s.accepted, s.refused);
    moe_free_data(&data);
}

/* Rows put together from the rules of others: few of them fit together. */
static void test_layer_runs_every_accepted_mixture_of_rows(void **state)
{
    (void)state;
    enum { NUM_MIXTURES = 30000 };
    moe_case c = moe_default_case();
    c.tokens = 64, c.hidden = 16, c.width = 16, c.router.num_experts = 2;
    moe_data data = moe_make_data(&c, 31);
    sweep s = { .accepted = 0 };
    f8_recipe rows[NUM_MOE_RECIPES];
    for (int i = 0; i < NUM_MOE_RECIPES; i++) rows[i] = find(moe_recipes[i]);
    for (uint64_t n = 0; n < NUM_MIXTURES; n++) {
        uint64_t base = f8_random(31, 0, n) % NUM_MOE_RECIPES;
        s.recipe = rows[base];
        for (uint64_t e = 0; e < F8_NUM_EDGES; e++) {
            uint64_t bits = f8_random(31, 1 + e, n);
            if (bits % 3 == 0) s.recipe.edge[e] = rows[(bits >> 32) % NUM_MOE_RECIPES].edge[e];
        }
        check_rule(&s, moe_recipes[base], &data);
    }
    if (getenv("FP8FLOW_VERBOSE")) printf("%d accepted, %d refused\n", s.accepted, s.refused);
    assert_true(s.accepted > 50 && s.refused > s.accepted);
    moe_free_data(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_row_is_valid_and_has_a_name_of_its_own),
        cmocka_unit_test(test_unknown_names_are_refused_with_a_list),
        cmocka_unit_test(test_names_of_edges_and_ways_are_different),
        cmocka_unit_test(test_e5m2_changes_gradients_only),
        cmocka_unit_test(test_col128_and_unfused_change_column_forms_only),
        cmocka_unit_test(test_variants_combine_in_any_order),
        cmocka_unit_test(test_broken_rows_are_refused_by_name),
        cmocka_unit_test(test_weights_and_padding_must_fit_the_edges),
        cmocka_unit_test(test_layer_runs_every_row_that_the_validator_accepts),
        cmocka_unit_test(test_layer_runs_every_accepted_mixture_of_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
