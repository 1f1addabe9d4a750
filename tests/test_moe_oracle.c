/* test_moe_oracle.c - the oracle's analytic gradients against finite differences of its own forward. */
#include "moe_oracle.h"

typedef struct {
    const char *name;
    fp8flow_router_config router;
    int64_t shared_width;
} variant;

/* clang-format off */
static const variant variants[] = {
    { "softmax raw", { .num_experts = 6, .top_k = 2, .gate_scale = 1, .num_groups = 1, .top_groups = 1 }, 0 },
    { "softmax normalised, auxiliary and z loss",
      { .num_experts = 6, .top_k = 3, .gate_rule = FP8FLOW_GATE_NORMALIZED, .gate_scale = 1.5f, .num_groups = 1,
        .top_groups = 1, .aux_coef = 0.7f, .z_coef = 0.3f }, 0 },
    { "softmax of the chosen, all losses",
      { .num_experts = 5, .top_k = 2, .score = FP8FLOW_SCORE_SOFTMAX_TOPK, .gate_scale = 1, .num_groups = 1,
        .top_groups = 1, .sequence_length = 4, .aux_coef = 0.2f, .sequence_coef = 0.9f, .z_coef = 0.1f }, 16 },
    { "sigmoid raw", { .num_experts = 8, .top_k = 2, .score = FP8FLOW_SCORE_SIGMOID, .gate_scale = 2, .num_groups = 1,
        .top_groups = 1 }, 0 },
    { "sigmoid normalised, groups, bias, shared expert, all losses",
      { .num_experts = 8, .top_k = 3, .score = FP8FLOW_SCORE_SIGMOID, .gate_rule = FP8FLOW_GATE_NORMALIZED,
        .gate_scale = 2.5f, .num_groups = 4, .top_groups = 2, .group_score = FP8FLOW_GROUP_TOP2_SUM,
        .sequence_length = 6, .aux_coef = 0.2f, .sequence_coef = 0.9f, .z_coef = 0.1f }, 32 },
};
/* clang-format on */
enum { NUM_VARIANTS = sizeof variants / sizeof variants[0] };

static void fill(double *values, int64_t count, uint64_t stream, double scale)
{
    for (int64_t i = 0; i < count; i++) values[i] = scale * (double)f8_normal(11, stream, (uint64_t)i);
}

static oracle make_case(const variant *v)
{
    oracle o = { .tokens = 12, .hidden = 16, .width = 8, .shared_width = v->shared_width, .router = v->router };
    int64_t count[ORACLE_FIELDS];
    double **field[ORACLE_FIELDS];
    oracle_make(&o);
    oracle_counts(&o, count);
    oracle_field_list(&o.in, field);
    for (int i = 0; i < ORACLE_FIELDS; i++) fill(*field[i], count[i], (uint64_t)i, i == 0 ? 1 : 0.4);
    return o;
}

static double objective(oracle *o, const double *dy, double loss_scale)
{
    oracle_forward(o, ORACLE_KEEP_CHOICE);
    double sum = loss_scale * (o->losses[0] + o->losses[1] + o->losses[2]);
    for (int64_t i = 0; i < o->tokens * o->hidden; i++) sum += o->y[i] * dy[i];
    return sum;
}

/* Derivative of the objective along a random direction of one array, by central differences. Step 1e-4 leaves an
 * error of 1e-8 from the third derivative and 1e-12 from rounding. */
static double slope_along(oracle *o, double *values, const double *direction, int64_t count, const double *dy,
                          double loss_scale)
{
    const double step = 1e-4;
    double *kept = oracle_array(count);
    memcpy(kept, values, (size_t)count * sizeof *kept);
    for (int64_t i = 0; i < count; i++) values[i] = kept[i] + step * direction[i];
    double above = objective(o, dy, loss_scale);
    for (int64_t i = 0; i < count; i++) values[i] = kept[i] - step * direction[i];
    double below = objective(o, dy, loss_scale);
    memcpy(values, kept, (size_t)count * sizeof *kept);
    free(kept);
    return (above - below) / (2 * step);
}

static void check_gradients(const variant *v, double loss_scale)
{
    oracle o = make_case(v);
    oracle_values gradient;
    int64_t count[ORACLE_FIELDS];
    double **in[ORACLE_FIELDS], **g[ORACLE_FIELDS], *dy = oracle_array(o.tokens * o.hidden);
    fill(dy, o.tokens * o.hidden, 50, 1);
    oracle_forward(&o, ORACLE_CHOOSE);
    oracle_make_values(&o, &gradient);
    oracle_backward(&o, dy, loss_scale, &gradient);
    oracle_counts(&o, count);
    oracle_field_list(&o.in, in);
    oracle_field_list(&gradient, g);
    for (int field = 0; field < ORACLE_FIELDS; field++)
        for (uint64_t trial = 0; trial < 4 && count[field]; trial++) {
            double *direction = oracle_array(count[field]), expected = 0, size = 0;
            fill(direction, count[field], 100 + trial, 1);
            for (int64_t i = 0; i < count[field]; i++) {
                expected += direction[i] * (*g[field])[i];
                size += direction[i] * direction[i] * (*g[field])[i] * (*g[field])[i];
            }
            double slope = slope_along(&o, *in[field], direction, count[field], dy, loss_scale);
            if (fabs(slope - expected) > 1e-6 * (1e-3 + sqrt(size)))
                fail_msg("%s: array %d: slope %.9g, gradient %.9g", v->name, field, slope, expected);
            free(direction);
        }
    oracle_free_values(&gradient);
    oracle_free(&o);
    free(dy);
}

static void test_oracle_gradients_match_finite_differences(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_VARIANTS; i++) {
        check_gradients(&variants[i], 1.0);
        check_gradients(&variants[i], 50.0); /* the losses dominate */
    }
}

/* k = E, equal experts: gates sum to gate_scale, so y is one expert's output. */
static void test_oracle_of_equal_experts_is_one_expert(void **state)
{
    (void)state;
    oracle o = make_case(&variants[1]);
    int64_t fc1 = 2 * o.width * o.hidden, fc2 = o.hidden * o.width;
    for (int64_t e = 1; e < o.router.num_experts; e++) {
        memcpy(o.in.fc1 + e * fc1, o.in.fc1, (size_t)fc1 * sizeof(double));
        memcpy(o.in.fc2 + e * fc2, o.in.fc2, (size_t)fc2 * sizeof(double));
    }
    oracle_forward(&o, ORACLE_CHOOSE);
    for (int64_t t = 0; t < o.tokens; t++)
        for (int64_t c = 0; c < o.hidden; c++)
            assert_true(fabs(o.y[t * o.hidden + c] - 1.5 * o.expert_y[t * 3 * o.hidden + c]) < 1e-12);
    oracle_free(&o);
}

/* A load that is perfectly balanced has an auxiliary loss of its coefficient, whatever the router. */
static void test_oracle_losses_of_uniform_scores(void **state)
{
    (void)state;
    oracle o = make_case(&variants[4]);
    memset(o.in.router, 0, (size_t)(o.router.num_experts * o.hidden) * sizeof(double));
    oracle_forward(&o, ORACLE_CHOOSE);
    assert_true(fabs(o.losses[0] - (double)o.router.aux_coef) < 1e-12);
    assert_true(fabs(o.losses[1] - (double)o.router.sequence_coef) < 1e-12);
    assert_true(fabs(o.losses[2] - (double)o.router.z_coef * log(8) * log(8)) < 1e-12);
    oracle_free(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle_gradients_match_finite_differences),
        cmocka_unit_test(test_oracle_of_equal_experts_is_one_expert),
        cmocka_unit_test(test_oracle_losses_of_uniform_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
