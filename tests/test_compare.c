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

/* ---- Taking runs of another comparison ------------------------------------------------------ */

typedef struct {
    char folder[32], path[64];
} piece;

static piece put_piece(const char *text)
{
    piece p = { .folder = "/tmp/fp8flow-test-XXXXXX" };
    assert_non_null(mkdtemp(p.folder));
    snprintf(p.path, sizeof p.path, "%s/compare.json", p.folder);
    FILE *file = fopen(p.path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    return p;
}

static void remove_piece(const piece *p)
{
    assert_int_equal(remove(p->path), 0);
    assert_int_equal(remove(p->folder), 0);
}

/* As a comparison on some machine leaves it: one loss is not finite, expert 1 of layer 1 has all tokens. */
static compare_study make_measured_study(void)
{
    compare_study study = make_study(2, 1.003);
    study.info = (fp8flow_train_info){
        .parameters = 1000, .active_parameters = 100, .num_moe_layers = 2, .num_experts = 3, .train_tokens = 5000
    };
    study.machine = "a machine";
    study.date = "a day";
    compare_run *run = &study.recipes[0].runs[1];
    run->loss[17] = NAN;
    run->timed_tokens = 300;
    run->timed_seconds = 2;
    run->last = (fp8flow_step_metrics){ .saved_bytes = 4096, .explicit_casts = 2, .wire_bytes_per_token = 12.5 };
    run->nonfinite_steps = 1;
    run->first_nonfinite = 18;
    run->validation[0] = (compare_validation){ STEPS, 3.25 };
    run->num_validations = 1;
    run->load = calloc((size_t)COMPARE_LOAD_SLICES * 6, sizeof *run->load);
    assert_non_null(run->load);
    run->load[(COMPARE_LOAD_SLICES - 1) * 6 + 4] = 77;
    study.recipes[1].runs[1].num_steps = STEPS - 1; /* interrupted */
    return study;
}

static compare_study make_empty_study(void)
{
    compare_study study = make_study(2, 1.0);
    for (int r = 0; r < 2; r++)
        for (int s = 0; s < 2; s++) study.recipes[r].runs[s].num_steps = 0;
    return study;
}

static void test_taken_runs_are_what_they_were(void **state)
{
    (void)state;
    char message[COMPARE_MESSAGE_BYTES];
    compare_study made = make_measured_study();
    char *text = compare_to_json(&made);
    piece p = put_piece(text);
    compare_study study = make_empty_study();
    assert_int_equal(compare_take(&study, p.folder, message), 0);
    assert_int_equal(study.recipes[1].runs[0].num_steps, STEPS);
    assert_int_equal(study.recipes[1].runs[1].num_steps, 0);
    assert_string_equal(study.taken_machine, "a machine");
    assert_true(compare_same_info(&study.info, &made.info));
    const compare_run *run = &study.recipes[0].runs[1], *was = &made.recipes[0].runs[1];
    for (int64_t t = 0; t < STEPS; t++) assert_true(t == 17 ? isnan(run->loss[t]) : run->loss[t] == was->loss[t]);
    assert_true(run->timed_tokens == 300 && run->timed_seconds == 2 && run->first_nonfinite == 18);
    assert_true(run->last.saved_bytes == 4096 && run->last.wire_bytes_per_token == 12.5);
    assert_true(run->num_validations == 1 && run->validation[0].loss == 3.25);
    assert_memory_equal(run->load, was->load, COMPARE_LOAD_SLICES * 6 * sizeof *run->load);
    free(text);
    remove_piece(&p);
    compare_destroy(&study);
    compare_destroy(&made);
}

static void test_files_that_are_no_comparison_are_refused(void **state)
{
    (void)state;
    static const char *const texts[] = { "", "[]", "{}", "{\"training\": 7}", "{\"info\": {}, \"recipes\": {}}" };
    char message[COMPARE_MESSAGE_BYTES];
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        piece p = put_piece(texts[i]);
        compare_study study = make_empty_study();
        assert_int_equal(compare_take(&study, p.folder, message), -1);
        assert_non_null(strstr(message, p.path));
        remove_piece(&p);
        compare_destroy(&study);
    }
}

/* Sizes in the file must not lead past what was allocated. */
static void test_hostile_values_of_a_comparison(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        int64_t value;
        int expected;
    } cases[] = { { "moe_layers", -1, -1 }, { "experts", INT64_MAX, -1 }, { "experts", 4, 0 }, { "moe_layers", 1, 0 } };
    char message[COMPARE_MESSAGE_BYTES];
    compare_study made = make_measured_study();
    char *text = compare_to_json(&made);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *root = json_loads(text, 0, NULL);
        json_object_set_new(json_object_get(root, "info"), cases[i].key, json_integer((json_int_t)cases[i].value));
        char *changed = json_dumps(root, 0);
        piece p = put_piece(changed);
        compare_study study = make_empty_study();
        assert_int_equal(compare_take(&study, p.folder, message), cases[i].expected);
        free(changed);
        json_decref(root);
        remove_piece(&p);
        compare_destroy(&study);
    }
    free(text);
    compare_destroy(&made);
}

static void test_seeds_of_the_baseline_alone(void **state)
{
    (void)state;
    static const char *const names[] = { "flow", "bf16" };
    options = (fp8flow_train_options){ .model = "tiny", .steps = STEPS, .seed = 9 };
    compare_study study = { .options = &options, .num_ranks = 1, .baseline_seeds = 3 };
    assert_int_equal(compare_create(&study, names, 2, 1), 0);
    assert_int_equal(study.recipes[0].num_runs, 1);
    assert_int_equal(study.recipes[1].num_runs, 3);
    assert_int_equal(study.recipes[1].runs[2].seed, 11);
    for (int64_t s = 0; s < 3; s++) {
        study.recipes[1].runs[s].num_steps = STEPS;
        for (int64_t t = 0; t < STEPS; t++) study.recipes[1].runs[s].loss[t] = 4.0 + (double)s;
    }
    compare_summarize(&study);
    assert_true(fabs(study.noise.worst - 0.5) < 1e-12);
    assert_true(study.recipes[1].summary.training_loss.mean == 4); /* of the seeds that every recipe has */
    free(page_of(&study));
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
        cmocka_unit_test(test_taken_runs_are_what_they_were),
        cmocka_unit_test(test_files_that_are_no_comparison_are_refused),
        cmocka_unit_test(test_hostile_values_of_a_comparison),
        cmocka_unit_test(test_seeds_of_the_baseline_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
