/* test_cli.c - the parts of the program that need no trainer: metrics file, progress line, folder of a run. */
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../cli/metrics.h"
#include "../cli/output_folder.h"
#include "../cli/progress.h"

static const cli_command command = { .name = "try" };
static char folder_path[64];

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder_path, "/tmp/fp8flow-test-XXXXXX");
    return mkdtemp(folder_path) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char line[128];
    snprintf(line, sizeof line, "rm -rf %s", folder_path);
    return system(line);
}

static const char *path_in_folder(const char *name)
{
    static char path[4][128];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", folder_path, name);
    return path[next];
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void check_text(const char *path, const char *wanted)
{
    char text[4096] = "";
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    assert_string_equal(text, wanted);
}

/* ---- Metrics -------------------------------------------------------------------------------- */

/* What stays of `before` when a run resumes after `first_step`. */
static void check_cut(const char *before, int64_t first_step, const char *after)
{
    const char *path = path_in_folder("metrics.jsonl");
    fp8flow_train_info info = { .first_step = first_step };
    cli_metrics metrics;
    write_text(path, before);
    assert_int_equal(cli_metrics_open(&metrics, path, &info), 0);
    cli_metrics_close(&metrics);
    check_text(path, after);
}

static void test_resumed_metrics_lose_later_and_torn_lines(void **state)
{
    (void)state;
    static const char three[] = "{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3}\n";
    check_cut(three, 3, three);
    check_cut(three, 9, three);
    check_cut(three, 2, "{\"step\": 1}\n{\"step\": 2}\n");
    check_cut(three, 0, "");
    check_cut("", 2, "");
    check_cut("{\"step\": 1}\n{\"step\": 2", 5, "{\"step\": 1}\n");
    check_cut("{\"step\": 1}\n{\"step\": 2}", 5, "{\"step\": 1}\n"); /* without line end: torn */
    check_cut("{\"step\": 1}\n{\"loss\": 2}\n{\"step\": 3}\n", 5, "{\"step\": 1}\n");
    check_cut("{\"step\": 1}\n[]\n", 5, "{\"step\": 1}\n");
    check_cut("{\"step\": 1}\nnoise\n", 5, "{\"step\": 1}\n");
    check_cut("{\"step\": \"1\"}\n", 5, "");
}

static void test_metrics_write_null_for_what_is_not_finite(void **state)
{
    (void)state;
    const char *path = path_in_folder("metrics.jsonl");
    fp8flow_train_info info = { .first_step = 1 };
    fp8flow_step_metrics step = { .step = 2, .loss = NAN, .gradient_norm = INFINITY, .lr = 0.5, .nonfinite = 3 };
    double validation_loss = NAN;
    cli_metrics metrics;
    write_text(path, "{\"step\": 1}\n");
    assert_int_equal(cli_metrics_open(&metrics, path, &info), 0);
    assert_int_equal(cli_metrics_write(&metrics, NULL, &step, &validation_loss), 0);
    step.step = 3;
    assert_int_equal(cli_metrics_write(&metrics, NULL, &step, NULL), 0);
    cli_metrics_close(&metrics);

    char lines[3][1024];
    FILE *file = fopen(path, "r");
    for (int i = 0; i < 3; i++) assert_non_null(fgets(lines[i], sizeof lines[i], file));
    assert_int_equal(fgetc(file), EOF);
    fclose(file);
    assert_string_equal(lines[0], "{\"step\": 1}\n");
    static const char *const wanted[] = { "{\"step\": 2, \"loss\": null, ", "\"gradient_norm\": null, \"lr\": 0.5, ",
                                          "\"tokens_per_second\": null",    "\"nonfinite\": 3",
                                          "\"validation_loss\": null",      "\"expert_load\": []" };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) assert_non_null(strstr(lines[1], wanted[i]));
    assert_null(strstr(lines[2], "validation_loss"));
}

static void test_metrics_report_errors(void **state)
{
    (void)state;
    fp8flow_train_info info = { 0 };
    fp8flow_step_metrics step = { .step = 1 };
    cli_metrics metrics;
    assert_int_equal(cli_metrics_open(&metrics, path_in_folder("missing/metrics.jsonl"), &info), ENOENT);
    assert_int_equal(cli_metrics_open(&metrics, folder_path, &info), EISDIR);
    cli_metrics_close(&metrics); /* allowed after a failed open */
    assert_int_equal(cli_metrics_open(&metrics, path_in_folder("metrics.jsonl"), &info), 0);
    int full = open("/dev/full", O_WRONLY);
    assert_true(full >= 0 && dup2(full, fileno(metrics.file)) >= 0);
    assert_int_equal(cli_metrics_write(&metrics, NULL, &step, NULL), ENOSPC);
    cli_metrics_close(&metrics);
    close(full);
}

static void test_expert_load(void **state)
{
    (void)state;
    static const int64_t even[] = { 5, 5, 5, 5 }, one[] = { 0, 12, 0, 0 }, mixed[] = { 0, 2, 2, 4 }, none[] = { 0, 0 };
    cli_expert_load load = cli_measure_load(even, 4);
    assert_true(load.least == 1 && load.most == 1 && fabs(load.entropy - 1) < 1e-12 && load.dead == 0);
    load = cli_measure_load(one, 4);
    assert_true(load.least == 0 && load.most == 4 && load.entropy == 0 && load.dead == 3);
    load = cli_measure_load(mixed, 4);
    assert_true(load.least == 0 && load.most == 2 && fabs(load.entropy - 0.75) < 1e-12 && load.dead == 1);
    load = cli_measure_load(none, 2);
    assert_true(isfinite(load.least) && isfinite(load.entropy) && load.dead == 2);
    load = cli_measure_load(one + 1, 1);
    assert_true(load.least == 1 && load.most == 1 && load.entropy == 1 && load.dead == 0);
}

/* ---- Progress ------------------------------------------------------------------------------- */

static void test_durations(void **state)
{
    (void)state;
    static const struct {
        double seconds;
        const char *text;
    } cases[] = { { 0, "0s" },           { 59.4, "59s" },     { 59.6, "1:00" }, { 3599, "59:59" }, { 3600, "1:00:00" },
                  { 86399, "23:59:59" }, { 90000, "1d 01h" }, { -1, "-" },      { NAN, "-" },      { INFINITY, "-" } };
    char text[CLI_NUMBER_BYTES];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cli_format_duration(cases[i].seconds, text);
        assert_string_equal(text, cases[i].text);
    }
}

static void test_progress_line_fits_any_width(void **state)
{
    (void)state;
    cli_progress progress = { .label = "flow", .first_step = 100, .last_step = 200, .started = 50, .is_terminal = 1 };
    fp8flow_step_metrics metrics = { .step = 150, .loss = 2.5, .gradient_norm = NAN, .lr = 1e-3 };
    char line[512];
    for (int width = 0; width < 200; width++) {
        size_t length = cli_progress_format(&progress, &metrics, width, 60, line, sizeof line);
        assert_int_equal(length, strlen(line));
        assert_true(length <= (size_t)width);
    }
    assert_string_equal(line, "flow  [###############.....] step 150/200  loss 2.5000  norm nan  lr 1.00e-03  "
                              "0 tokens/s  left 10s");
    progress.is_terminal = 0;
    progress.label = NULL;
    cli_progress_format(&progress, &metrics, 300, 60, line, sizeof line);
    assert_string_equal(line, "step 150/200  loss 2.5000  norm nan  lr 1.00e-03  0 tokens/s  left 10s");
    assert_int_equal(cli_progress_format(&progress, &metrics, 300, 60, line, 8), 7);
}

/* ---- Folder --------------------------------------------------------------------------------- */

/* Exit code of cli_output_folder_take in another process, whose stderr goes to `errors`. */
static int take_in_child(const char *path, const char *errors)
{
    pid_t child = fork();
    if (child == 0) {
        cli_output_folder folder;
        if (!freopen(errors, "w", stderr)) _exit(9);
        int code = cli_output_folder_take(&folder, &command, path);
        fflush(stderr);
        cli_output_folder_release(&folder);
        _exit(code);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
}

static void test_folder_is_locked_against_a_second_process(void **state)
{
    (void)state;
    cli_output_folder folder;
    char wanted[256];
    const char *path = path_in_folder("run"), *errors = path_in_folder("errors");
    assert_int_equal(cli_output_folder_take(&folder, &command, path), CLI_DONE);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(take_in_child(path, errors), CLI_FAILED);
        snprintf(wanted, sizeof wanted, "fp8flow try: output folder \"%s\" is in use by process %ld\n", path,
                 (long)getpid());
        check_text(errors, wanted);
    }
    cli_output_folder_release(&folder);
    assert_int_equal(access(path, F_OK), -1); /* ours and empty: gone */
    assert_int_equal(take_in_child(path, errors), CLI_DONE);
}

static void test_release_keeps_what_is_not_ours(void **state)
{
    (void)state;
    cli_output_folder folder;
    const char *path = path_in_folder("there");
    assert_int_equal(mkdir(path, 0777), 0);
    assert_int_equal(cli_output_folder_take(&folder, &command, path), CLI_DONE);
    cli_output_folder_release(&folder);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(access(path_in_folder("there/lock"), F_OK), -1);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(cli_output_folder_take(&folder, &command, path), CLI_DONE);
    write_text(path_in_folder("there/file"), "x");
    cli_output_folder_release(&folder);
    assert_int_equal(access(path_in_folder("there/file"), F_OK), 0);
}

static void test_lock_file_of_a_dead_process_does_not_lock(void **state)
{
    (void)state;
    cli_output_folder folder;
    assert_int_equal(mkdir(path_in_folder("stale"), 0777), 0);
    write_text(path_in_folder("stale/lock"), "1\n");
    assert_int_equal(cli_output_folder_take(&folder, &command, path_in_folder("stale")), CLI_DONE);
    cli_output_folder_release(&folder);
}

static void test_checkpoints_are_recognised(void **state)
{
    (void)state;
    static const char *const not_checkpoints[] = { "step-", "step-12.partial", "steps", "metrics.jsonl" };
    assert_int_equal(cli_output_folder_has_checkpoints(path_in_folder("missing")), 0);
    for (size_t i = 0; i < sizeof not_checkpoints / sizeof *not_checkpoints; i++)
        assert_int_equal(mkdir(path_in_folder(not_checkpoints[i]), 0777), 0);
    assert_int_equal(cli_output_folder_has_checkpoints(folder_path), 0);
    assert_int_equal(mkdir(path_in_folder("step-00000012"), 0777), 0);
    assert_int_equal(cli_output_folder_has_checkpoints(folder_path), 1);
}

static void test_path_inside_folder_resolves_links(void **state)
{
    (void)state;
    assert_int_equal(mkdir(path_in_folder("run"), 0777), 0);
    assert_int_equal(mkdir(path_in_folder("run/step-1"), 0777), 0);
    assert_int_equal(mkdir(path_in_folder("run2"), 0777), 0);
    assert_int_equal(symlink("run", path_in_folder("link")), 0);
    const char *run = path_in_folder("run");
    assert_int_equal(cli_path_is_inside(run, run), 1);
    assert_int_equal(cli_path_is_inside(path_in_folder("link"), run), 1);
    assert_int_equal(cli_path_is_inside(path_in_folder("run/step-1/.."), run), 1);
    assert_int_equal(cli_path_is_inside(path_in_folder("run2"), run), 0); /* only a common prefix of the name */
    assert_int_equal(cli_path_is_inside(folder_path, run), 0);
    assert_int_equal(cli_path_is_inside(path_in_folder("missing"), run), 0);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_resumed_metrics_lose_later_and_torn_lines),
        IN_FOLDER(test_metrics_write_null_for_what_is_not_finite),
        IN_FOLDER(test_metrics_report_errors),
        cmocka_unit_test(test_expert_load),
        cmocka_unit_test(test_durations),
        cmocka_unit_test(test_progress_line_fits_any_width),
        IN_FOLDER(test_folder_is_locked_against_a_second_process),
        IN_FOLDER(test_release_keeps_what_is_not_ours),
        IN_FOLDER(test_lock_file_of_a_dead_process_does_not_lock),
        IN_FOLDER(test_checkpoints_are_recognised),
        IN_FOLDER(test_path_inside_folder_resolves_links),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
