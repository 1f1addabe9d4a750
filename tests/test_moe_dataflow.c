/* test_moe_dataflow.c - what the layer does besides numbers: casts, checkpointing, memory, bytes, edges, observer. */
#include "moe_fixture.h"

static int starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

/* ---- Explicit casts ---- */

static void check_casts(const char *recipe, int64_t casts, int64_t tensors)
{
    moe_case c = moe_default_case();
    moe_data data = moe_make_data(&c, 1);
    c.recipe = recipe;
    moe_result r = moe_run(&c, &data);
    const moe_rank_result *rank = &r.rank[0];
    int64_t called = 0, of_edges = 0;
    for (int i = 0; i < 2; i++) {
        const int64_t *calls = i ? rank->backward_calls : rank->forward_calls;
        called += calls[MOE_CALLS_quantize] + calls[MOE_CALLS_dequantize];
    }
    for (int i = 0; i < rank->num_edges; i++) of_edges += rank->edge[i].casts;
    assert_int_equal(rank->report.explicit_casts, casts);
    assert_int_equal(rank->report.cast_tensors, tensors);
    assert_int_equal(called, casts);
    assert_int_equal(of_edges, casts);
    moe_free_result(&r);
    moe_free_data(&data);
}

static void test_explicit_casts_are_0_4_4_12_2(void **state)
{
    (void)state;
    check_casts("bf16", 0, 0);
    check_casts("tensorwise", 4, 4);
    check_casts("blockwise", 4, 8);
    check_casts("deepseek", 12, 12);
    check_casts("flow", 2, 2);
    check_casts("flow+col128", 2, 2);
    check_casts("flow+e5m2", 2, 2);
    check_casts("flow+unfused", 2, 2);
}

static void test_transposes_are_the_recipes_own(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    moe_data data = moe_make_data(&c, 1);
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        c.recipe = moe_recipes[i];
        int64_t expected = strcmp(c.recipe, "tensorwise") == 0 || strcmp(c.recipe, "flow+unfused") == 0 ? 4 : 0;
        moe_result r = moe_run(&c, &data);
        assert_int_equal(r.rank[0].forward_calls[MOE_CALLS_transpose] + r.rank[0].backward_calls[MOE_CALLS_transpose],
                         expected);
        moe_free_result(&r);
    }
    moe_free_data(&data);
}

/* ---- Checkpointing ---- */

static void test_checkpointing_changes_no_bit(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.tokens = 150, c.hidden = 144, c.width = 80, c.shared_width = 48;
    c.router.aux_coef = 0.01f, c.router.z_coef = 0.01f;
    moe_data data = moe_make_data(&c, 2);
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        c.recipe = moe_recipes[i], c.checkpointing = FP8FLOW_KEEP_ALL;
        moe_result none = moe_run(&c, &data);
        for (fp8flow_checkpointing mode = FP8FLOW_MOE_EXPERT; mode <= FP8FLOW_FULL; mode++) {
            c.checkpointing = mode;
            moe_result r = moe_run(&c, &data);
            moe_assert_same_bits(&c, &none, &r);
            assert_true(r.rank[0].forward_report.saved_bytes < none.rank[0].forward_report.saved_bytes);
            moe_free_result(&r);
        }
        moe_free_result(&none);
    }
    moe_free_data(&data);
}

/* Forward: router, fc1, fc2. Backward: two products of each of them, and what is recomputed: router and fc1 when they
 * were not kept, fc2 never. */
static void test_only_what_is_needed_is_recomputed(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    moe_data data = moe_make_data(&c, 3);
    for (int i = 0; i < NUM_MOE_RECIPES; i++)
        for (fp8flow_checkpointing mode = FP8FLOW_KEEP_ALL; mode <= FP8FLOW_FULL; mode++) {
            c.recipe = moe_recipes[i], c.checkpointing = mode;
            moe_result r = moe_run(&c, &data);
            assert_int_equal(r.rank[0].forward_calls[MOE_CALLS_gemm], 3);
            assert_int_equal(r.rank[0].backward_calls[MOE_CALLS_gemm], mode == FP8FLOW_KEEP_ALL ? 6 : 8);
            /* swiglu again only where its gradient does not write x2's column form by the way */
            f8_recipe recipe;
            assert_ok(f8_recipe_find(c.recipe, &recipe));
            int again = mode != FP8FLOW_KEEP_ALL && recipe.edge[F8_X2_COLUMNS].how != F8_FUSED;
            assert_int_equal(r.rank[0].forward_calls[MOE_CALLS_swiglu], 1);
            assert_int_equal(r.rank[0].backward_calls[MOE_CALLS_swiglu], again);
            moe_free_result(&r);
        }
    moe_free_data(&data);
}

/* The shared expert's parts of y and dx and the router's part of dx: added, and rounded once, by the products. */
static void test_products_add_to_y_and_dx(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.shared_width = 16;
    moe_data data = moe_make_data(&c, 3);
    moe_result r = moe_run(&c, &data);
    assert_int_equal(r.rank[0].forward_calls[MOE_CALLS_gemm], 3 + 2);
    assert_int_equal(r.rank[0].backward_calls[MOE_CALLS_gemm], 6 + 4);
    assert_int_equal(r.rank[0].forward_calls[MOE_CALLS_add] + r.rank[0].backward_calls[MOE_CALLS_add], 0);
    moe_free_result(&r);
    moe_free_data(&data);
}

static void test_saved_tensors_sum_to_saved_bytes(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.shared_width = 16;
    moe_data data = moe_make_data(&c, 3);
    for (int i = 0; i < NUM_MOE_RECIPES; i++)
        for (fp8flow_checkpointing mode = FP8FLOW_KEEP_ALL; mode <= FP8FLOW_FULL; mode++) {
            c.recipe = moe_recipes[i], c.checkpointing = mode;
            moe_result r = moe_run(&c, &data);
            const moe_rank_result *rank = &r.rank[0];
            assert_int_equal(rank->saved_sum, rank->forward_report.saved_bytes);
            assert_int_equal(rank->report.saved_bytes, rank->forward_report.saved_bytes);
            assert_true(rank->report.peak_bytes > rank->report.saved_bytes);
            if (mode == FP8FLOW_FULL) assert_int_equal(rank->saved_sum, 0);
            moe_free_result(&r);
        }
    moe_free_data(&data);
}

/* Another layer, far wider, works in the same context in between. */
static fp8flow_status run_wider_layer(fp8flow_moe *m, void *user)
{
    moe_case c = *(const moe_case *)user;
    c.width *= 8;
    fp8flow_moe_config config = moe_config_of(&c, c.tokens);
    moe_data data = moe_make_data(&c, 40);
    fp8flow_tensor x = f8_bf16(data.x, c.tokens, c.hidden), y = f8_bf16(data.dy, c.tokens, c.hidden);
    fp8flow_moe *wide = NULL;
    fp8flow_status status = fp8flow_moe_create(m->context, m->comm, &config, &wide);
    if (status == FP8FLOW_OK) status = moe_set_case_weights(wide, &c, &data);
    if (status == FP8FLOW_OK) status = fp8flow_moe_forward(wide, &x, &y);
    fp8flow_moe_destroy(wide);
    moe_free_data(&data);
    return status;
}

static void test_peak_bytes_are_the_layers_own(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    moe_data data = moe_make_data(&c, 3);
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        c.recipe = moe_recipes[i], c.before = NULL;
        moe_result alone = moe_run(&c, &data);
        c.before = run_wider_layer, c.user = &c;
        moe_result beside = moe_run(&c, &data);
        assert_int_equal(alone.rank[0].report.peak_bytes, beside.rank[0].report.peak_bytes);
        assert_true(alone.rank[0].report.peak_bytes >= alone.rank[0].forward_report.peak_bytes);
        moe_assert_same_bits(&c, &alone, &beside);
        moe_free_result(&alone), moe_free_result(&beside);
    }
    moe_free_data(&data);
}

static int64_t saved_bytes(const char *recipe, const moe_case *shape, const moe_data *data)
{
    moe_case c = *shape;
    c.recipe = recipe;
    moe_result r = moe_run(&c, data);
    int64_t bytes = r.rank[0].forward_report.saved_bytes;
    moe_free_result(&r);
    return bytes;
}

static void test_flow_saves_about_half_of_bf16(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.hidden = 512, c.checkpointing = FP8FLOW_MOE_EXPERT;
    c.num_ranks = 2;
    moe_data data = moe_make_data(&c, 4);
    int64_t flow = saved_bytes("flow", &c, &data), bf16 = saved_bytes("bf16", &c, &data);
    int64_t deepseek = saved_bytes("deepseek", &c, &data);
    assert_true((double)flow <= 0.55 * (double)bf16);
    assert_true((double)flow >= 0.45 * (double)bf16);
    assert_int_equal(deepseek, flow);
    c.num_ranks = 1; /* nothing is received: BF16 rows are the caller's, which are not kept twice */
    assert_int_equal(saved_bytes("bf16", &c, &data), 0);
    moe_free_data(&data);
}

/* ---- Bytes on the wire ---- */

/* Rows that leave a rank: one for each pair of a token and a rank that owns one of its experts. */
static int64_t count_pairs(const moe_case *c, const moe_result *r)
{
    int64_t sent = 0, received = 0;
    for (int32_t rank = 0; rank < c->num_ranks; rank++) {
        sent += r->rank[rank].report.routing_bytes / (c->router.top_k * 8);
        received += r->rank[rank].report.received_rows;
    }
    assert_int_equal(sent, received);
    return received;
}

static void test_bytes_per_row_on_the_wire(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.num_ranks = 3, c.hidden = 2048 + 16, c.width = 16, c.tokens = 30; /* a short last scale block */
    moe_data data = moe_make_data(&c, 5);
    int64_t bytes[2][NUM_MOE_RECIPES];
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        c.recipe = moe_recipes[i];
        moe_result r = moe_run(&c, &data);
        int fp8 = starts_with(c.recipe, "flow") || starts_with(c.recipe, "deepseek");
        int64_t pairs = count_pairs(&c, &r), row = fp8 ? c.hidden + 17 : c.hidden * 2;
        memset(bytes, 0, sizeof bytes);
        for (int32_t rank = 0; rank < c.num_ranks; rank++) {
            const fp8flow_moe_report *report = &r.rank[rank].report;
            for (int way = 0; way < 2; way++) bytes[way][i] += report->dispatch_bytes[way];
            int64_t combine = report->received_rows * c.hidden * 2;
            assert_int_equal(report->combine_bytes[0], combine);
            assert_int_equal(report->combine_bytes[1], combine + report->received_rows * c.router.top_k * 4);
        }
        assert_int_equal(bytes[0][i], pairs * row);
        assert_int_equal(bytes[1][i], pairs * row);
        if (fp8) assert_true((double)row <= 0.51 * (double)(c.hidden * 2));
        moe_free_result(&r);
    }
    moe_free_data(&data);
}

/* All ranks' transport counters against the reports: nothing travels that is not reported. */
static fp8flow_status sum_exchanged(fp8flow_moe *m, void *user)
{
    int64_t bytes = m->comm->exchanged_bytes;
    F8_TRY(f8_comm_all_reduce(m->comm, F8_SUM_I64, &bytes, 1));
    if (m->comm->rank == 0) *(int64_t *)user = bytes;
    return FP8FLOW_OK;
}

static void test_reports_account_for_every_byte_of_the_transport(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    int64_t exchanged = 0;
    c.num_ranks = 3, c.after = sum_exchanged, c.user = &exchanged;
    moe_data data = moe_make_data(&c, 6);
    for (int i = 0; i < NUM_MOE_RECIPES; i++)
        for (fp8flow_checkpointing mode = FP8FLOW_KEEP_ALL; mode <= FP8FLOW_FULL; mode++) {
            c.recipe = moe_recipes[i], c.checkpointing = mode;
            moe_result r = moe_run(&c, &data);
            int64_t reported = 0;
            for (int32_t rank = 0; rank < c.num_ranks; rank++) {
                const fp8flow_moe_report *report = &r.rank[rank].report;
                /* What backward sends again counts for backward. */
                assert_int_equal(report->dispatch_bytes[0], r.rank[rank].forward_report.dispatch_bytes[0]);
                reported += report->dispatch_bytes[0] + report->dispatch_bytes[1] + report->routing_bytes +
                            report->combine_bytes[0] + report->combine_bytes[1];
            }
            assert_int_equal(reported, exchanged);
            moe_free_result(&r);
        }
    moe_free_data(&data);
}

static void test_token_travels_once_to_a_rank_with_all_its_experts(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.router.num_experts = 6, c.router.top_k = 6, c.num_ranks = 2;
    moe_data data = moe_make_data(&c, 7);
    moe_result r = moe_run(&c, &data);
    assert_int_equal(count_pairs(&c, &r), 2 * c.tokens);
    for (int32_t rank = 0; rank < 2; rank++) {
        assert_int_equal(r.rank[rank].report.received_rows, c.tokens);
        assert_int_equal(r.rank[rank].report.padded_rows, 3 * 128);
        assert_int_equal(r.rank[rank].report.tokens, c.tokens / 2);
    }
    moe_free_result(&r);
    c.recipe = "bf16";
    r = moe_run(&c, &data);
    assert_int_equal(r.rank[0].report.padded_rows, 3 * c.tokens); /* the baseline does not pay for padding */
    moe_free_result(&r);
    moe_free_data(&data);
}

/* ---- Edges ---- */

static void test_edges_are_what_the_recipe_asks_for(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    moe_data data = moe_make_data(&c, 8);
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        c.recipe = moe_recipes[i];
        moe_result r = moe_run(&c, &data);
        f8_recipe recipe;
        assert_ok(f8_recipe_find(c.recipe, &recipe));
        assert_int_equal(r.rank[0].num_edges, F8_NUM_EDGES);
        for (int e = 0; e < F8_NUM_EDGES; e++) {
            const fp8flow_edge *edge = &r.rank[0].edge[e];
            const f8_edge_rule *rule = &recipe.edge[e];
            assert_string_equal(edge->name, f8_edge_name((f8_edge)e));
            assert_string_equal(edge->direction, f8_edge_direction((f8_edge)e));
            assert_string_equal(edge->how, f8_how_name(rule->how));
            assert_int_equal(edge->dtype, rule->format.dtype);
            assert_int_equal(edge->scaling, rule->format.scaling);
            assert_int_equal(edge->layout, rule->format.layout);
            assert_int_equal(edge->casts, rule->how == F8_CAST ? 1 : rule->how == F8_REQUANTIZE ? 2 : 0);
            assert_int_equal(edge->nonfinite, 0);
            assert_true(edge->bytes >= edge->rows * edge->cols && edge->rows > 0);
        }
        moe_free_result(&r);
    }
    moe_free_data(&data);
}

/* Before the first forward there is nothing to report: what create tried out with measuring arenas is not news. */
static fp8flow_status report_of_a_new_layer(fp8flow_moe *m, void *user)
{
    fp8flow_moe_report *report = user;
    fp8flow_edge edge;
    F8_TRY(fp8flow_moe_get_report(m, report));
    F8_REQUIRE(fp8flow_moe_get_edge(m, 0, &edge) == FP8FLOW_EINVAL, EFORMAT, "a new layer has edges");
    return FP8FLOW_OK;
}

static void test_new_layer_has_nothing_to_report(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    moe_data data = moe_make_data(&c, 8);
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        fp8flow_moe_report report;
        c.recipe = moe_recipes[i], c.before = report_of_a_new_layer, c.user = &report;
        moe_result r = moe_run(&c, &data);
        assert_int_equal(report.explicit_casts, 0);
        assert_int_equal(report.cast_tensors, 0);
        assert_int_equal(report.dispatch_bytes[0] + report.dispatch_bytes[1] + report.routing_bytes, 0);
        moe_free_result(&r);
    }
    moe_free_data(&data);
}

/* ---- Observer ---- */

typedef struct {
    int calls[F8_NUM_EDGES + 2]; /* by edge, then fc1 weight, fc2 weight */
    int unknown, not_finite, without_signal, misplaced_shift;
} observed;

static void observe_tensor(void *user, const fp8flow_observation *o)
{
    observed *seen = user;
    int index = strcmp(o->name, "fc1 weight") == 0 ? F8_NUM_EDGES : strcmp(o->name, "fc2 weight") == 0 ? 11 : -1;
    for (int e = 0; e < F8_NUM_EDGES; e++)
        if (strcmp(o->name, f8_edge_name((f8_edge)e)) == 0) index = e;
    if (index < 0) seen->unknown++;
    else seen->calls[index]++;
    const fp8flow_tensor_stats *s = &o->stats;
    if (!isfinite(s->signal) || !isfinite(s->noise) || !isfinite(s->amax) || s->nonfinite) seen->not_finite++;
    if (!(s->signal > 0) || s->noise > 0.01 * s->signal || s->count <= 0) seen->without_signal++;
    uint64_t shifted = 0;
    for (int i = 0; i < 64; i++) shifted += o->shift_histogram[i];
    if ((shifted != 0) != (o->has_shift != 0)) seen->misplaced_shift++;
}

static fp8flow_status start_observing(fp8flow_moe *m, void *user)
{
    fp8flow_moe_observe(m, observe_tensor, user);
    return FP8FLOW_OK;
}

static void check_observed(const char *name, const observed *seen)
{
    f8_recipe recipe;
    assert_ok(f8_recipe_find(name, &recipe));
    for (int e = 0; e < F8_NUM_EDGES; e++) {
        /* Tensors that are handed on as they are were observed where they were made. */
        int expected = recipe.edge[e].how != F8_AS_IS;
        if (seen->calls[e] != expected)
            fail_msg("%s: %s observed %d times", name, f8_edge_name((f8_edge)e), seen->calls[e]);
    }
    int fp8 = f8_is_fp8(recipe.weight.dtype);
    assert_int_equal(seen->calls[F8_NUM_EDGES], fp8);
    assert_int_equal(seen->calls[F8_NUM_EDGES + 1], fp8);
    assert_int_equal(seen->unknown, 0);
    assert_int_equal(seen->not_finite, 0);
    assert_int_equal(seen->without_signal, 0);
    assert_int_equal(seen->misplaced_shift, 0);
}

static void test_observer_sees_every_fp8_tensor_and_changes_no_bit(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    moe_data data = moe_make_data(&c, 9);
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        observed seen = { .unknown = 0 };
        c.recipe = moe_recipes[i], c.before = NULL;
        moe_result plain = moe_run(&c, &data);
        c.before = start_observing, c.user = &seen;
        moe_result r = moe_run(&c, &data);
        moe_assert_same_bits(&c, &plain, &r);
        assert_int_equal(r.rank[0].report.explicit_casts, plain.rank[0].report.explicit_casts);
        assert_int_equal(r.rank[0].report.nonfinite, 0);
        check_observed(c.recipe, &seen);
        moe_free_result(&plain), moe_free_result(&r);
    }
    moe_free_data(&data);
}

/* ---- Figures ---- */

typedef struct {
    const moe_case *c;
    moe_data bad; /* like the data, but x holds a NaN */
    f8_moe_figures *collected;
} earlier_forward;

/* A forward that counts what must not show later, or, with a collector, must. */
static fp8flow_status forward_before(fp8flow_moe *moe, void *user)
{
    earlier_forward *e = user;
    const moe_case *c = e->c;
    fp8flow_tensor x = f8_bf16(e->bad.x, c->tokens, c->hidden), y = f8_bf16(e->bad.dy, c->tokens, c->hidden);
    if (e->collected) f8_moe_collect(moe, e->collected);
    return fp8flow_moe_forward(moe, &x, &y);
}

static int64_t all_load(const int64_t *load, const moe_case *c)
{
    int64_t sum = 0;
    for (int64_t e = 0; e < c->router.num_experts; e++) sum += load[e];
    return sum;
}

static void test_figures_are_of_the_last_forward_or_of_all(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.router.z_coef = 0.1f;
    moe_data data = moe_make_data(&c, 6);
    earlier_forward e = { &c, moe_make_data(&c, 6), NULL };
    e.bad.x[0] = 0x7FC0;
    c.before = forward_before, c.user = &e;
    moe_result alone = moe_run(&c, &data);
    assert_int_equal(alone.rank[0].report.nonfinite, 0);
    assert_true(isfinite(alone.rank[0].report.losses[2]));
    assert_int_equal(all_load(alone.rank[0].load, &c), c.tokens * c.router.top_k);

    e.collected = calloc(1, f8_moe_figures_bytes(c.router.num_experts));
    moe_result both = moe_run(&c, &data);
    assert_true(e.collected->nonfinite[F8_FORWARD_WIRE] > 0 && isnan(e.collected->losses[2]));
    assert_int_equal(all_load(e.collected->load, &c), 2 * c.tokens * c.router.top_k);
    assert_true(both.rank[0].report.nonfinite >= e.collected->nonfinite[F8_FORWARD_WIRE]);
    free(e.collected);
    moe_free_result(&alone), moe_free_result(&both);
    moe_free_data(&data), moe_free_data(&e.bad);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_explicit_casts_are_0_4_4_12_2),
        cmocka_unit_test(test_transposes_are_the_recipes_own),
        cmocka_unit_test(test_checkpointing_changes_no_bit),
        cmocka_unit_test(test_only_what_is_needed_is_recomputed),
        cmocka_unit_test(test_products_add_to_y_and_dx),
        cmocka_unit_test(test_saved_tensors_sum_to_saved_bytes),
        cmocka_unit_test(test_peak_bytes_are_the_layers_own),
        cmocka_unit_test(test_flow_saves_about_half_of_bf16),
        cmocka_unit_test(test_bytes_per_row_on_the_wire),
        cmocka_unit_test(test_reports_account_for_every_byte_of_the_transport),
        cmocka_unit_test(test_token_travels_once_to_a_rank_with_all_its_experts),
        cmocka_unit_test(test_edges_are_what_the_recipe_asks_for),
        cmocka_unit_test(test_new_layer_has_nothing_to_report),
        cmocka_unit_test(test_observer_sees_every_fp8_tensor_and_changes_no_bit),
        cmocka_unit_test(test_figures_are_of_the_last_forward_or_of_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
