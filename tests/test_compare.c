/* test_compare.c - figures of a comparison against hand-made curves, and the drawings' escaping. */
#include "support.h"

#include <math.h>

#include <jansson.h>

#include "../cli/compare.h"
#include "../cli/report.h"
#include "../cli/svg.h"

enum { STEPS = 400 };

static fp8flow_train_options options;

/* Two recipes, bf16 second; every run has loss 4 + seed index, the first recipe is `factor` times that. */
static compare_study make_study(int64_t num_seeds, double factor)
{
    static const char *const names[] = { "flow", "bf16" };
    options = (fp8flow_train_options){ .model = "tiny", .steps = STEPS, .seed = 9 };
    compare_study study = { .options = &options, .num_ranks = 1 };
    assert_int_equal(compare_create(&study, names, 2, num_seeds), 0);
    for (int64_t r = 0; r < 2; r++)
        for (int64_t s = 0; s < num_seeds; s++) {
            compare_run *run = &study.recipes[r].runs[s];
            run->num_steps = STEPS;
            for (int64_t t = 0; t < STEPS; t++) run->loss[t] = (4.0 + (double)s) * (r == 0 ? factor : 1.0);
        }
    return study;
}

/* ---- Gaps ----------------------------------------------------------------------------------- */

static void test_bf16_is_the_baseline_wherever_it_is_named(void **state)
{
    (void)state;
    compare_study study = make_study(1, 1.0);
    assert_int_equal(study.baseline, 1);
    assert_int_equal(study.recipes[1].color, 0);
    compare_destroy(&study);
}

static void test_constant_factor_is_the_gap(void **state)
{
    (void)state;
    compare_study study = make_study(3, 1.002);
    compare_summarize(&study);
    const compare_summary *flow = &study.recipes[0].summary;
    assert_true(fabs(flow->gap_mean.mean - 0.002) < 1e-12);
    assert_true(fabs(flow->gap_mean.spread) < 1e-12);
    assert_true(fabs(flow->gap_worst - 0.002) < 1e-12);
    assert_true(fabs(study.recipes[1].summary.gap_worst) < 1e-15);
    compare_destroy(&study);
}

static void test_first_half_does_not_count_in_the_gap(void **state)
{
    (void)state;
    compare_study study = make_study(1, 1.0);
    /* The window reaches half its width into the second half; stay clear of it. */
    for (int64_t t = 0; t < STEPS / 2 - compare_window(&study); t++) study.recipes[0].runs[0].loss[t] = 40;
    compare_summarize(&study);
    assert_true(study.recipes[0].summary.gap_mean.mean == 0);
    assert_true(study.recipes[0].summary.gap_worst == 0);
    compare_destroy(&study);
}

static void test_worst_gap_keeps_its_sign(void **state)
{
    (void)state;
    compare_study study = make_study(1, 1.0);
    for (int64_t t = 300; t < STEPS; t++) study.recipes[0].runs[0].loss[t] = 3.0;
    compare_summarize(&study);
    assert_true(fabs(study.recipes[0].summary.gap_worst + 0.25) < 1e-12);
    compare_destroy(&study);
}

static void test_smoothing_spreads_one_spike_over_the_window(void **state)
{
    (void)state;
    double smooth[STEPS];
    compare_study study = make_study(1, 1.0);
    compare_run *run = &study.recipes[0].runs[0];
    int64_t window = compare_window(&study), half = window / 2;
    assert_int_equal(window, 1 + STEPS / 20);
    run->loss[100] += (double)window;
    compare_smooth(&study, run, smooth);
    for (int64_t t = 0; t < STEPS; t++)
        assert_true(fabs(smooth[t] - (t >= 100 - half && t <= 100 + half ? 5.0 : 4.0)) < 1e-12);
    compare_destroy(&study);
}

static void test_gap_of_a_shorter_run_uses_the_common_steps(void **state)
{
    (void)state;
    double gap[STEPS];
    compare_study study = make_study(1, 1.01);
    study.recipes[0].runs[0].num_steps = 100;
    /* Later steps of the baseline must not leak into the window of step 100. */
    for (int64_t t = 100; t < STEPS; t++) study.recipes[1].runs[0].loss[t] = 1000;
    assert_int_equal(compare_gap_curve(&study, &study.recipes[0].runs[0], &study.recipes[1].runs[0], gap), 100);
    for (int64_t t = 0; t < 100; t++) assert_true(fabs(gap[t] - 0.01) < 1e-12);
    compare_destroy(&study);
}

static void test_seed_noise_is_over_pairs_of_the_baseline(void **state)
{
    (void)state;
    compare_study study = make_study(3, 1.0); /* baseline losses 4, 5, 6: gaps 1/4, 2/4, 1/5 */
    compare_summarize(&study);
    assert_true(fabs(study.noise.mean_magnitude - (0.25 + 0.5 + 0.2) / 3) < 1e-12);
    assert_true(fabs(study.noise.worst - 0.5) < 1e-12);
    compare_destroy(&study);
}

static void test_nan_loss_in_the_second_half_is_not_hidden(void **state)
{
    (void)state;
    compare_study study = make_study(1, 1.0);
    study.recipes[0].runs[0].loss[300] = NAN;
    compare_summarize(&study);
    assert_true(isnan(study.recipes[0].summary.gap_worst));
    assert_true(isnan(study.recipes[0].summary.gap_mean.mean));
    compare_destroy(&study);
}

/* ---- Other figures -------------------------------------------------------------------------- */

static void test_training_loss_is_the_mean_of_the_last_twentieth(void **state)
{
    (void)state;
    compare_study study = make_study(1, 1.0);
    for (int64_t t = STEPS - STEPS / 20; t < STEPS; t++) study.recipes[0].runs[0].loss[t] = 2;
    compare_summarize(&study);
    assert_true(study.recipes[0].summary.training_loss.mean == 2);
    compare_destroy(&study);
}

static void test_spread_is_the_standard_deviation_over_seeds(void **state)
{
    (void)state;
    compare_study study = make_study(3, 1.0); /* 4, 5, 6 */
    compare_summarize(&study);
    assert_true(fabs(study.recipes[0].summary.training_loss.mean - 5) < 1e-12);
    assert_true(fabs(study.recipes[0].summary.training_loss.spread - 1) < 1e-12);
    compare_destroy(&study);
}

static void test_even_load_has_ratio_one(void **state)
{
    (void)state;
    compare_study study = make_study(1, 1.0);
    study.info.num_moe_layers = 2;
    study.info.num_experts = 4;
    compare_run *run = &study.recipes[0].runs[0];
    run->load = calloc(COMPARE_LOAD_SLICES * 8, sizeof *run->load);
    assert_non_null(run->load);
    for (int i = 0; i < COMPARE_LOAD_SLICES; i++)
        for (int e = 0; e < 4; e++) run->load[i * 8 + e] = 10; /* layer 1 stays empty */
    double ratio[8];
    compare_load_of(&study, run, -1, ratio);
    for (int e = 0; e < 4; e++) assert_true(ratio[e] == 1.0);
    for (int e = 4; e < 8; e++) assert_true(isnan(ratio[e]));
    compare_destroy(&study);
}

/* ---- Output --------------------------------------------------------------------------------- */

static char *page_of(const compare_study *study)
{
    char path[] = "/tmp/fp8flow-test-XXXXXX";
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    assert_int_equal(report_write(path, study), 0);
    FILE *file = fdopen(descriptor, "r");
    assert_non_null(file);
    char *text = calloc(1, 1 << 20);
    assert_non_null(text);
    assert_true(fread(text, 1, (1 << 20) - 1, file) > 1000);
    fclose(file);
    remove(path);
    return text;
}

static void test_report_escapes_what_the_user_typed(void **state)
{
    (void)state;
    compare_study study = make_study(2, 1.001);
    options.model = "<script>alert(1)</script>";
    study.command = "a & 'b' \"c\"";
    snprintf(study.recipes[0].runs[0].error, sizeof study.recipes[0].runs[0].error, "<b>bad</b>");
    study.recipes[0].runs[0].num_steps = 10;
    compare_summarize(&study);
    char *page = page_of(&study);
    assert_null(strstr(page, "<script"));
    assert_null(strstr(page, "<b>bad"));
    assert_non_null(strstr(page, "a &amp; &#39;b&#39; &quot;c&quot;"));
    assert_null(strstr(page, "nan"));
    free(page);
    compare_destroy(&study);
}

/* What is left after an interrupt in the first run. */
static void test_report_and_json_of_a_study_without_steps(void **state)
{
    (void)state;
    compare_study study = make_study(2, 1.0);
    for (int r = 0; r < 2; r++)
        for (int s = 0; s < 2; s++) study.recipes[r].runs[s].num_steps = 0;
    compare_summarize(&study);
    free(page_of(&study));
    char *text = compare_to_json(&study);
    assert_non_null(text);
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    const json_t *recipe = json_array_get(json_object_get(root, "recipes"), 0);
    assert_true(json_is_null(json_object_get(json_object_get(recipe, "gap_mean"), "mean")));
    assert_true(json_is_null(json_object_get(recipe, "explicit_casts")));
    json_decref(root);
    free(text);
    compare_destroy(&study);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_is_the_baseline_wherever_it_is_named),
        cmocka_unit_test(test_constant_factor_is_the_gap),
        cmocka_unit_test(test_first_half_does_not_count_in_the_gap),
        cmocka_unit_test(test_worst_gap_keeps_its_sign),
        cmocka_unit_test(test_smoothing_spreads_one_spike_over_the_window),
        cmocka_unit_test(test_gap_of_a_shorter_run_uses_the_common_steps),
        cmocka_unit_test(test_seed_noise_is_over_pairs_of_the_baseline),
        cmocka_unit_test(test_nan_loss_in_the_second_half_is_not_hidden),
        cmocka_unit_test(test_training_loss_is_the_mean_of_the_last_twentieth),
        cmocka_unit_test(test_spread_is_the_standard_deviation_over_seeds),
        cmocka_unit_test(test_even_load_has_ratio_one),
        cmocka_unit_test(test_report_escapes_what_the_user_typed),
        cmocka_unit_test(test_report_and_json_of_a_study_without_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
