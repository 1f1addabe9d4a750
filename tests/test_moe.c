/* test_moe.c - the layer in every recipe against the FP64 oracle, within bounds that follow from its formats. */
#include "moe_bounds.h"
#include "moe_fixture.h"
#include "moe_oracle.h"

/* No row may be further off than this many times the bound of its matrix: a row has a few dozen independent errors
 * and its own signal, so it scatters more than the whole; a wrong scale somewhere is off by 50 % or more. */
static const double row_factor = 2.5;

/* Nor may a matrix be much closer to the oracle than its formats allow: then something was not quantised. */
static const double least_share = 0.5;

/* ---- The oracle of a case ---- */

static void decode(double *out, const uint16_t *in, int64_t count)
{
    for (int64_t i = 0; i < count; i++) out[i] = (double)f8_bf16_decode(in[i]);
}

static oracle make_oracle(const moe_case *c, const moe_data *d)
{
    oracle o = { .tokens = c->tokens,
                 .hidden = c->hidden,
                 .width = c->width,
                 .shared_width = c->shared_width,
                 .router = c->router };
    int64_t experts = c->router.num_experts, matrix = c->hidden * c->width, shared = c->hidden * c->shared_width;
    oracle_make(&o);
    decode(o.in.x, d->x, c->tokens * c->hidden);
    decode(o.in.fc1, d->fc1, 2 * experts * matrix);
    decode(o.in.fc2, d->fc2, experts * matrix);
    decode(o.in.shared_fc1, d->shared_fc1, 2 * shared);
    decode(o.in.shared_fc2, d->shared_fc2, shared);
    for (int64_t i = 0; i < experts * c->hidden; i++) o.in.router[i] = (double)d->router[i];
    for (int64_t i = 0; i < experts && d->router_bias; i++) o.in.bias[i] = (double)d->router_bias[i];
    oracle_forward(&o, ORACLE_CHOOSE);
    return o;
}

/* Oracle, its gradients, and the case and data they belong to. */
typedef struct {
    moe_case c;
    moe_data data;
    oracle o;
    oracle_values gradient;
} subject;

static subject make_subject(moe_case c, uint64_t seed)
{
    subject s = { .c = c, .data = moe_make_data(&c, seed) };
    s.o = make_oracle(&s.c, &s.data);
    oracle_make_values(&s.o, &s.gradient);
    double *dy = oracle_array(c.tokens * c.hidden);
    decode(dy, s.data.dy, c.tokens * c.hidden);
    oracle_backward(&s.o, dy, (double)c.loss_scale, &s.gradient);
    free(dy);
    return s;
}

static void free_subject(subject *s)
{
    oracle_free_values(&s->gradient);
    oracle_free(&s->o);
    moe_free_data(&s->data);
}

/* ---- Comparison ---- */

enum { NUM_MATRICES = 5 };
typedef struct {
    const char *name;
    moe_distance distance;
    double bound;
} verdict;

static void judge(const subject *s, const moe_result *r, verdict v[NUM_MATRICES])
{
    const moe_case *c = &s->c;
    int64_t experts = c->router.num_experts, fc1_rows = 2 * c->width;
    moe_bounds b = moe_bounds_of(c->recipe);
    v[0] = (verdict){ "y", moe_measure_distance(r->y, FP8FLOW_BF16, s->o.y, c->tokens, c->hidden, c->tokens), b.y };
    v[1] = (verdict){ "dx", moe_measure_distance(r->dx, FP8FLOW_BF16, s->gradient.x, c->tokens, c->hidden, c->tokens),
                      b.dx };
    v[2] =
        (verdict){ "fc1 gradient",
                   moe_measure_distance(r->fc1, FP8FLOW_F32, s->gradient.fc1, experts * fc1_rows, c->hidden, fc1_rows),
                   b.fc1 };
    v[3] =
        (verdict){ "fc2 gradient",
                   moe_measure_distance(r->fc2, FP8FLOW_F32, s->gradient.fc2, experts * c->hidden, c->width, c->hidden),
                   b.fc2 };
    v[4] = (verdict){ "router gradient",
                      moe_measure_distance(r->router, FP8FLOW_F32, s->gradient.router, experts, c->hidden, experts),
                      b.router };
}

/* 1 if the matrix is within its bounds. */
static int within(const verdict *v)
{
    return v->distance.all <= v->bound && v->distance.worst_row <= row_factor * v->bound;
}

static void print_verdict(const char *recipe, const verdict *v)
{
    if (getenv("FP8FLOW_VERBOSE"))
        printf("%-13s %-16s error %.5f of %.5f (%.2f), worst row %.2f\n", recipe, v->name, v->distance.all, v->bound,
               v->distance.all / v->bound, v->distance.worst_row / v->bound);
}

typedef enum { BOTH_SIDES, NOT_TOO_FAR } bound_sides;

static void check_result(const subject *s, const moe_result *r, bound_sides sides)
{
    verdict v[NUM_MATRICES];
    judge(s, r, v);
    for (int i = 0; i < NUM_MATRICES; i++) {
        print_verdict(s->c.recipe, &v[i]);
        if (!within(&v[i]) || (sides == BOTH_SIDES && v[i].distance.all < least_share * v[i].bound))
            fail_msg("%s: %s: error %.5f, worst row %.5f, bound %.5f", s->c.recipe, v[i].name, v[i].distance.all,
                     v[i].distance.worst_row, v[i].bound);
    }
}

/* The layer chose the experts that the oracle chose, and its losses agree to FP32 accuracy. */
static void check_routing(const subject *s, const moe_result *r)
{
    assert_true(s->o.margin > 1e-6);
    for (int64_t e = 0; e < s->c.router.num_experts; e++) assert_int_equal(r->rank[0].load[e], s->o.load[e]);
    for (int i = 0; i < 3; i++) {
        double error = fabs(r->rank[0].report.losses[i] - s->o.losses[i]);
        if (!(error <= 1e-5 * fabs(s->o.losses[i])))
            fail_msg("loss %d: %.9g, oracle %.9g", i, r->rank[0].report.losses[i], s->o.losses[i]);
    }
}

static void check_all_recipes(subject *s, bound_sides sides)
{
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        s->c.recipe = moe_recipes[i];
        moe_result r = moe_run(&s->c, &s->data);
        check_result(s, &r, sides);
        check_routing(s, &r);
        moe_free_result(&r);
    }
}

static void test_every_recipe_is_within_the_bounds_of_its_formats(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.tokens = 200, c.hidden = 256, c.width = 144; /* several blocks along every row, short last ones */
    subject s = make_subject(c, 1);
    check_all_recipes(&s, BOTH_SIDES);
    free_subject(&s);
}

static void test_experts_of_several_row_blocks(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.tokens = 400, c.hidden = 48, c.width = 80, c.router.num_experts = 2, c.router.top_k = 1;
    c.router.gate_rule = FP8FLOW_GATE_RAW;
    subject s = make_subject(c, 2);
    assert_true(s.o.load[0] > 130 && s.o.load[1] > 130);
    check_all_recipes(&s, BOTH_SIDES);
    free_subject(&s);
}

/* The losses are scaled up until their gradient is as large as that of the gates: it must be right, too. */
static void test_every_router_with_losses(void **state)
{
    (void)state;
    static const fp8flow_score scores[] = { FP8FLOW_SCORE_SOFTMAX, FP8FLOW_SCORE_SOFTMAX_TOPK, FP8FLOW_SCORE_SIGMOID };
    for (int i = 0; i < 6; i++) {
        moe_case c = moe_default_case();
        c.tokens = 96, c.router.num_experts = 8, c.router.top_k = 3, c.loss_scale = 1000;
        c.router.score = scores[i / 2], c.router.gate_rule = i % 2 ? FP8FLOW_GATE_NORMALIZED : FP8FLOW_GATE_RAW;
        c.router.gate_scale = 2.5f, c.router.num_groups = 4, c.router.top_groups = i % 2 ? 2 : 4;
        c.router.group_score = i == 5 ? FP8FLOW_GROUP_TOP2_SUM : FP8FLOW_GROUP_MAX;
        c.router.sequence_length = 24, c.router.aux_coef = 0.5f, c.router.sequence_coef = 0.3f;
        c.router.z_coef = 0.01f;
        subject s = make_subject(c, 3);
        check_all_recipes(&s, NOT_TOO_FAR);
        free_subject(&s);
    }
}

static void test_expert_bias_steers_the_choice_only(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.router.score = FP8FLOW_SCORE_SIGMOID, c.router.num_experts = 4;
    subject s = { .c = c, .data = moe_make_data(&c, 4) };
    const float bias[] = { 3.0f, -3.0f, 0.1f, -0.1f };
    s.data.router_bias = poisoned(sizeof bias);
    memcpy(s.data.router_bias, bias, sizeof bias);
    s.o = make_oracle(&s.c, &s.data);
    assert_int_equal(s.o.load[0], c.tokens);
    assert_int_equal(s.o.load[1], 0);
    oracle_make_values(&s.o, &s.gradient);
    double *dy = oracle_array(c.tokens * c.hidden);
    decode(dy, s.data.dy, c.tokens * c.hidden);
    oracle_backward(&s.o, dy, 1, &s.gradient);
    free(dy);
    check_all_recipes(&s, NOT_TOO_FAR); /* the empty expert's gradient must be exactly 0 */
    free_subject(&s);
}

/* The shared expert is BF16 in every recipe: its gradients are the same bits, and within BF16's bounds. */
static void test_shared_expert_is_bf16_in_every_recipe(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.shared_width = 48, c.recipe = "bf16";
    subject s = make_subject(c, 5);
    moe_result bf16 = moe_run(&s.c, &s.data);
    moe_bounds b = moe_bounds_of("bf16");
    int64_t fc1 = 2 * c.shared_width * c.hidden;
    check_result(&s, &bf16, NOT_TOO_FAR);
    assert_true(moe_measure_distance(bf16.shared_fc1, FP8FLOW_F32, s.gradient.shared_fc1, 2 * c.shared_width, c.hidden,
                                     2 * c.shared_width)
                    .all < b.fc1);
    assert_true(
        moe_measure_distance(bf16.shared_fc2, FP8FLOW_F32, s.gradient.shared_fc2, c.hidden, c.shared_width, c.hidden)
            .all < b.fc2);
    for (int i = FIRST_FP8_RECIPE; i < NUM_MOE_RECIPES; i++) {
        s.c.recipe = moe_recipes[i];
        moe_result r = moe_run(&s.c, &s.data);
        check_result(&s, &r, NOT_TOO_FAR);
        assert_memory_equal(r.shared_fc1, bf16.shared_fc1, (size_t)fc1 * 4);
        assert_memory_equal(r.shared_fc2, bf16.shared_fc2, (size_t)fc1 / 2 * 4);
        moe_free_result(&r);
    }
    moe_free_result(&bf16);
    free_subject(&s);
}

/* Backward adds to the gradients, also when they hold something already. */
static fp8flow_status backward_once_more(fp8flow_moe *m, void *user)
{
    subject *s = user;
    moe_result twice = { .y = poisoned(s->c.tokens * s->c.hidden * 2) };
    int64_t experts = s->c.router.num_experts, matrix = s->c.hidden * s->c.width;
    float *memory = moe_zeros(experts * (3 * matrix + s->c.hidden));
    fp8flow_moe_gradients g = { .fc1 = memory,
                                .fc2 = memory + 2 * experts * matrix,
                                .router = memory + 3 * experts * matrix };
    fp8flow_tensor x = f8_bf16(s->data.x, s->c.tokens, s->c.hidden), dy = f8_bf16(s->data.dy, x.rows, x.cols);
    fp8flow_tensor y = f8_bf16(twice.y, x.rows, x.cols);
    fp8flow_status status = FP8FLOW_OK;
    double once[3] = { 0 };
    for (int i = 0; i < 2 && status == FP8FLOW_OK; i++) {
        status = fp8flow_moe_forward(m, &x, &y);
        if (status == FP8FLOW_OK) status = fp8flow_moe_backward(m, &x, &dy, 1, &g, &y);
        const float first[3] = { g.fc1[0], g.fc2[0], g.router[0] };
        for (int k = 0; k < 3; k++) {
            if (i == 0) once[k] = (double)first[k];
            else if (fabs((double)first[k] - 2 * once[k]) > 1e-5 * fabs(once[k]))
                status = F8_FAIL(EFORMAT, "not added");
        }
    }
    free(memory), free(twice.y);
    return status;
}

static void test_backward_adds_to_the_gradients(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    subject s = { .c = c, .data = moe_make_data(&c, 6) };
    for (int i = 0; i < NUM_MOE_RECIPES; i++) {
        c.recipe = moe_recipes[i], c.after = backward_once_more, c.user = &s;
        moe_result r = moe_run(&c, &s.data);
        moe_free_result(&r);
    }
    moe_free_data(&s.data);
}

/* ---- The bounds can fail ---- */

static fp8flow_status double_one_tile_scale(fp8flow_moe *m, void *user)
{
    f8_expert_weight *weight = *(int *)user ? &m->fc2 : &m->fc1;
    ((uint8_t *)weight->rows.scale)[1]++; /* one tile of expert 0, of both forms */
    return FP8FLOW_OK;
}

static fp8flow_status exchange_two_experts(fp8flow_moe *m, void *user)
{
    (void)user;
    size_t bytes = (size_t)(m->fc2.rows.group_rows * m->fc2.rows.cols);
    uint8_t *codes = m->fc2.rows.data;
    for (size_t i = 0; i < bytes; i++) {
        uint8_t code = codes[i];
        codes[i] = codes[bytes + i], codes[bytes + i] = code;
    }
    return FP8FLOW_OK;
}

/* How many matrices of the result are out of bounds; the row check alone counts in *by_row. */
static int count_violations(const subject *s, const moe_case *c, int *by_row)
{
    verdict v[NUM_MATRICES];
    moe_result r = moe_run(c, &s->data);
    int violations = 0;
    judge(s, &r, v);
    for (int i = 0; i < NUM_MATRICES; i++) {
        print_verdict("(mutant)", &v[i]);
        violations += !within(&v[i]);
        *by_row += !within(&v[i]) && v[i].distance.all <= v[i].bound;
    }
    moe_free_result(&r);
    return violations;
}

static void test_bounds_find_wrong_scales_experts_and_gates(void **state)
{
    (void)state;
    moe_case c = moe_default_case();
    c.tokens = 200, c.hidden = 256, c.width = 144, c.router.num_experts = 16;
    subject s = make_subject(c, 7);
    int by_row = 0, which;
    assert_int_equal(count_violations(&s, &c, &by_row), 0);
    c.before = double_one_tile_scale, c.user = &which;
    which = 0;
    assert_true(count_violations(&s, &c, &by_row) >= 4);
    which = 1;
    assert_true(count_violations(&s, &c, &by_row) >= 3);
    assert_true(by_row > 0); /* an average alone would not have seen all of it */
    c.before = exchange_two_experts;
    assert_true(count_violations(&s, &c, &by_row) >= 1);
    c.before = NULL;
    c.router.gate_scale = 1.3f;
    assert_int_equal(count_violations(&s, &c, &by_row), NUM_MATRICES);
    c.router.gate_scale = 1, c.router.gate_rule = FP8FLOW_GATE_RAW;
    assert_int_equal(count_violations(&s, &c, &by_row), NUM_MATRICES);
    free_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_recipe_is_within_the_bounds_of_its_formats),
        cmocka_unit_test(test_experts_of_several_row_blocks),
        cmocka_unit_test(test_every_router_with_losses),
        cmocka_unit_test(test_expert_bias_steers_the_choice_only),
        cmocka_unit_test(test_shared_expert_is_bf16_in_every_recipe),
        cmocka_unit_test(test_backward_adds_to_the_gradients),
        cmocka_unit_test(test_bounds_find_wrong_scales_experts_and_gates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
