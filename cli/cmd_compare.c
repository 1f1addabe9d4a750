/* cmd_compare.c - `fp8flow compare`: the same training in several recipes, one after another, and what differs.
 *
 * Runs go seed by seed, so that all recipes have their first curve before any gets its second. The report and
 * compare.json are written anew after every run and at the end: a comparison that is interrupted, or killed
 * in its last hour, leaves what it had found, and --from takes it up again.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "compare.h"
#include "output_folder.h"
#include "report.h"
#include "train_options.h"

typedef struct {
    cli_training training;
    cli_list recipes, from;
    int64_t seeds, baseline_seeds;
    const char *output;
    int32_t is_json;
} compare_settings;

static const cli_option compare_options[] = {
    CLI_TRAINING_MODEL(compare_settings, training, 1,
                       CLI_OPTION_NAMES(compare_settings, recipes, "recipes", "NAMES",
                                        "recipes to compare, default bf16,blockwise,flow; the baseline is bf16, "
                                        "else the first")),
    CLI_OPTION_INTEGER(compare_settings, seeds, "seeds", "N", 1, COMPARE_MAX_SEEDS,
                       "runs of each recipe, with the seeds SEED, SEED + 1, ..."),
    CLI_OPTION_INTEGER(compare_settings, baseline_seeds, "baseline-seeds", "N", 0, COMPARE_MAX_SEEDS,
                       "runs of the baseline, if more: how far apart two seeds are"),
    CLI_TRAINING_STEPS(compare_settings, training),
    CLI_TRAINING_OPTIMISER(compare_settings, training),
    CLI_TRAINING_MACHINE(compare_settings, training),
    CLI_OPTION_HEADING("Output"),
    CLI_OPTION_STRING(compare_settings, output, "out", "DIR",
                      "folder for report.html, compare.json and the metrics of each run"),
    CLI_OPTION_LIST(compare_settings, from, "from", "DIR", 0,
                    "folder of an earlier comparison (--out) with the same options: its finished runs are taken"),
    CLI_OPTION_FLAG(compare_settings, is_json, "json",
                    "print one JSON object instead of the table; progress on stderr"),
    CLI_TRAINING_DISPLAY(compare_settings, training),
};

/* ---- Facts for the report ------------------------------------------------------------------- */

enum { TEXT_BYTES = 2048 };

typedef struct {
    char command[TEXT_BYTES], data[TEXT_BYTES], machine[TEXT_BYTES], date[64], device[CLI_DEVICE_BYTES];
} facts;

/* Add `text` behind what is in `line`; quoted for a shell if it needs that. Cut when the room ends. */
static void append_word(char line[TEXT_BYTES], const char *text)
{
    size_t used = strlen(line);
    int is_plain =
        *text && text[strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+,./:@%")] == 0;
    snprintf(line + used, TEXT_BYTES - used, is_plain ? "%s%s" : "%s'%s'", used ? " " : "", text);
}

static void find_processor(char name[TEXT_BYTES])
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    name[0] = '\0';
    while (file && !name[0] && fgets(line, sizeof line, file)) {
        char *value = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;
        if (!value) continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(name, TEXT_BYTES, "%s, ", value + 1 + strspn(value + 1, " "));
    }
    if (file) (void)fclose(file);
}

static void collect_facts(facts *f, const compare_settings *settings)
{
    for (int64_t i = 0; i < settings->training.data.count; i++) append_word(f->data, settings->training.data.items[i]);
    find_processor(f->machine);
    size_t used = strlen(f->machine);
    cli_device_text(f->device, settings->training.backend, cli_training_threads(&settings->training));
    snprintf(f->machine + used, sizeof f->machine - used, "%s%s", f->device,
             settings->training.ranks > 1 ? " per rank" : "");
    time_t now = time(NULL);
    struct tm utc;
    if (!gmtime_r(&now, &utc) || strftime(f->date, sizeof f->date, "%Y-%m-%d %H:%M UTC", &utc) == 0) f->date[0] = '\0';
}

/* ---- Recording a run ------------------------------------------------------------------------ */

typedef struct {
    compare_study *study;
    compare_run *run;
    FILE *display;
    int64_t *counts; /* [experts] of one layer */
} recorder;

static int record_start(void *user, const fp8flow_train_info *info)
{
    recorder *r = user;
    compare_study *study = r->study;
    if (study->info.parameters == 0) study->info = *info;
    if (!compare_same_info(&study->info, info))
        return cli_fail(&cli_compare, "--from: %lld parameters and %lld tokens to train on there, %lld and %lld here",
                        (long long)study->info.parameters, (long long)study->info.train_tokens,
                        (long long)info->parameters, (long long)info->train_tokens);
    if (!study->is_started) (void)fprintf(r->display, "device  %s\n", study->device);
    study->is_started = 1;
    size_t cells = (size_t)(info->num_moe_layers * info->num_experts);
    r->counts = calloc((size_t)info->num_experts + 1, sizeof *r->counts);
    /* Without memory the report has no load maps; the comparison goes on. */
    if (cells > 0 && r->counts) r->run->load = calloc(COMPARE_LOAD_SLICES * cells, sizeof *r->run->load);
    return CLI_DONE;
}

static void record_load(recorder *r, const fp8flow_trainer *trainer, int64_t step)
{
    int64_t layers = r->study->info.num_moe_layers, experts = r->study->info.num_experts;
    int64_t slice = (step - 1) * COMPARE_LOAD_SLICES / r->study->options->steps;
    for (int64_t layer = 0; r->run->load && layer < layers; layer++) {
        if (fp8flow_trainer_get_load(trainer, layer, r->counts) != FP8FLOW_OK) continue;
        int64_t *sums = r->run->load + (slice * layers + layer) * experts;
        for (int64_t e = 0; e < experts; e++) sums[e] += r->counts[e];
    }
}

static void record_validation(compare_run *run, int64_t step, double loss)
{
    if (run->num_validations == run->max_validations) {
        int64_t room = 2 * run->max_validations;
        compare_validation *larger = realloc(run->validation, sizeof *larger * (size_t)room);
        if (!larger) return; /* the curve misses a point */
        run->validation = larger;
        run->max_validations = room;
    }
    run->validation[run->num_validations++] = (compare_validation){ step, loss };
}

static void record_step(void *user, const fp8flow_trainer *trainer, const fp8flow_step_metrics *metrics,
                        double validation_loss)
{
    recorder *r = user;
    compare_run *run = r->run;
    run->loss[run->num_steps++] = metrics->loss;
    run->last = *metrics;
    if (run->num_steps > 1) {
        run->timed_tokens += (double)metrics->tokens;
        run->timed_seconds += metrics->seconds;
    }
    if (metrics->nonfinite > 0 || !isfinite(metrics->loss)) {
        if (run->nonfinite_steps++ == 0) run->first_nonfinite = metrics->step;
    }
    record_load(r, trainer, metrics->step);
    if (!isnan(validation_loss)) record_validation(run, metrics->step, validation_loss);
}

/* ---- Files ---------------------------------------------------------------------------------- */

static int write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    if (!file) return -1;
    int failed = fputs(text, file) == EOF;
    return fclose(file) != 0 || failed ? -1 : 0;
}

static int write_json(const char *path, const compare_study *study)
{
    char *text = compare_to_json(study);
    int status = text ? write_text(path, text) : -1;
    free(text);
    return status;
}

/* Each file is complete or absent: written beside its place, then renamed. */
static int write_files(const compare_study *study, const char *folder)
{
    static const struct {
        const char *name;
        int (*write)(const char *path, const compare_study *study);
    } files[] = { { "report.html", report_write }, { "compare.json", write_json } };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[4200], draft[4210];
        snprintf(path, sizeof path, "%s/%s", folder, files[i].name);
        snprintf(draft, sizeof draft, "%s.tmp", path);
        errno = 0;
        if (files[i].write(draft, study) == 0 && rename(draft, path) == 0) continue;
        const char *reason = errno ? strerror(errno) : "out of memory";
        (void)remove(draft);
        return cli_fail(&cli_compare, "%s: %s", path, reason);
    }
    return CLI_DONE;
}

/* ---- Runs ----------------------------------------------------------------------------------- */

/* One recipe with one seed. The exit code of the run; *stop says whether the comparison goes on. */
static int run_one(const compare_settings *settings, compare_study *study, int64_t recipe, int64_t seed, cli_stop *stop)
{
    char label[96], metrics_path[4200];
    recorder r = { .study = study,
                   .run = &study->recipes[recipe].runs[seed],
                   .display = settings->is_json ? stderr : stdout };
    const char *name = study->recipes[recipe].name;
    cli_run run = cli_training_run(&cli_compare, &settings->training);
    run.train.recipe = name;
    run.train.seed = r.run->seed;
    run.display = r.display;
    snprintf(label, sizeof label, study->baseline_seeds > 1 ? "%s seed %llu" : "%s", name,
             (unsigned long long)r.run->seed);
    run.label = label;
    run.on_start = record_start;
    run.on_step = record_step;
    run.user = &r;
    if (settings->output) {
        snprintf(metrics_path, sizeof metrics_path, "%s/metrics-%s-seed%llu.jsonl", settings->output, name,
                 (unsigned long long)r.run->seed);
        run.metrics_path = metrics_path;
    }
    cli_run_result result;
    int code = cli_run_training(&run, &result);
    free(r.counts);
    *stop = result.stop;
    if (code != CLI_DONE) snprintf(r.run->error, sizeof r.run->error, "%s", fp8flow_last_error());
    return code;
}

/* All of them. A run that fails after its first step is part of the result; one that cannot start is not. */
static int run_all(const compare_settings *settings, compare_study *study)
{
    int outcome = CLI_DONE;
    for (int64_t i = 0; i < study->baseline_seeds * study->num_recipes; i++) {
        int64_t seed = i / study->num_recipes, recipe = i % study->num_recipes;
        if (seed >= study->recipes[recipe].num_runs) continue;
        if (compare_is_finished(study, &study->recipes[recipe].runs[seed])) continue;
        cli_stop stop;
        int code = run_one(settings, study, recipe, seed, &stop);
        if (code != CLI_DONE && study->recipes[recipe].runs[seed].num_steps == 0) return code;
        if (code != CLI_DONE) outcome = code;
        study->interrupted = stop != CLI_STOP_NONE;
        compare_summarize(study);
        if (settings->output && write_files(study, settings->output) != CLI_DONE) return CLI_FAILED;
        if (stop != CLI_STOP_NONE) break;
    }
    return outcome;
}

/* Put the finished runs of other comparisons into this one. */
static int take_runs(const compare_settings *settings, compare_study *study)
{
    char message[COMPARE_MESSAGE_BYTES];
    for (int64_t i = 0; i < settings->from.count; i++)
        if (compare_take(study, settings->from.items[i], message) != 0)
            return cli_fail(&cli_compare, "--from: %s", message);
    int64_t taken = 0, planned = 0;
    for (int64_t r = 0; r < study->num_recipes; r++)
        for (int64_t s = 0; s < study->recipes[r].num_runs; s++, planned++)
            taken += study->recipes[r].runs[s].num_steps > 0;
    if (settings->from.count > 0)
        (void)fprintf(settings->is_json ? stderr : stdout, "taken   %lld of %lld runs\n", (long long)taken,
                      (long long)planned);
    if (taken < planned || !study->taken_machine || !study->taken_date) return CLI_DONE;
    /* Nothing is left to train here: the report is about another place and time. */
    study->machine = study->taken_machine;
    study->date = study->taken_date;
    compare_summarize(study);
    return settings->output ? write_files(study, settings->output) : CLI_DONE;
}

static int print_result(const compare_settings *settings, const compare_study *study)
{
    if (settings->is_json) {
        char *text = compare_to_json(study);
        if (!text) return cli_fail(&cli_compare, "out of memory");
        puts(text);
        free(text);
        return CLI_DONE;
    }
    putchar('\n');
    compare_print(stdout, study);
    if (settings->output) printf("\nreport: %s/report.html\n", settings->output);
    return CLI_DONE;
}

/* At least one step was made: there is something to show. */
static int has_result(const compare_study *study)
{
    for (int64_t r = 0; r < study->num_recipes; r++)
        for (int64_t s = 0; s < study->recipes[r].num_runs; s++)
            if (study->recipes[r].runs[s].num_steps > 0) return 1;
    return 0;
}

static int make_runs(const compare_settings *settings, compare_study *study)
{
    int code = run_all(settings, study);
    if (!has_result(study)) return code;
    int printed = print_result(settings, study);
    return code == CLI_DONE ? printed : code;
}

/* ---- Command -------------------------------------------------------------------------------- */

static int check_recipes(const cli_list *recipes)
{
    char quoted[CLI_QUOTE_BYTES];
    for (int64_t i = 0; i < recipes->count; i++) {
        fp8flow_status status = fp8flow_recipe_check(recipes->items[i]);
        if (status != FP8FLOW_OK) return cli_fail_status(&cli_compare, status);
        for (int64_t j = 0; j < i; j++)
            if (strcmp(recipes->items[i], recipes->items[j]) == 0)
                return cli_fail_usage(&cli_compare, "--recipes: %s is named twice",
                                      cli_quote(quoted, recipes->items[i]));
    }
    return CLI_DONE;
}

static int compare_recipes(const compare_settings *settings, facts *text)
{
    collect_facts(text, settings);
    static const char *const backends[] = {
        [FP8FLOW_CPU] = "cpu", [FP8FLOW_CUDA] = "cuda", [FP8FLOW_REFERENCE] = "reference"
    };
    compare_study study = { .options = &settings->training.train, .num_ranks = (int32_t)settings->training.ranks };
    study.validate_every = settings->training.validate_every;
    study.baseline_seeds = settings->baseline_seeds;
    study.backend = backends[settings->training.backend];
    study.command = text->command;
    study.data = text->data;
    study.machine = text->machine;
    study.device = text->device;
    study.date = text->date;
    int code = CLI_FAILED;
    if (compare_create(&study, settings->recipes.items, settings->recipes.count, settings->seeds) != 0) {
        cli_fail(&cli_compare, "out of memory");
    } else {
        code = take_runs(settings, &study);
        if (code == CLI_DONE) code = make_runs(settings, &study);
    }
    compare_destroy(&study);
    return code;
}

static int run_compare(int argc, char **argv)
{
    static compare_settings settings = { .seeds = 1 };
    static facts text = { .command = "fp8flow" };
    static const char *const usual_recipes[] = { "bf16", "blockwise", "flow" };
    /* Before parsing, which cuts the names at the commas. */
    for (int i = 0; i < argc; i++) append_word(text.command, argv[i]);
    cli_training_init(&settings.training);
    int code = cli_parse(&cli_compare, argc, argv, &settings);
    if (code != CLI_GO_ON) return code;
    code = cli_training_finish(&cli_compare, &settings.training);
    if (code != CLI_DONE) return code;
    if (settings.recipes.count == 0)
        for (int i = 0; i < 3; i++) settings.recipes.items[settings.recipes.count++] = usual_recipes[i];
    code = check_recipes(&settings.recipes);
    if (code != CLI_DONE) return code;
    if (!settings.output) return compare_recipes(&settings, &text);

    cli_output_folder folder;
    code = cli_output_folder_take(&folder, &cli_compare, settings.output);
    if (code == CLI_DONE) code = compare_recipes(&settings, &text);
    cli_output_folder_release(&folder);
    return code;
}

const cli_command cli_compare = {
    .name = "compare",
    .summary = "Train the same model in several recipes, and report what differs",
    .options = compare_options,
    .num_options = sizeof compare_options / sizeof *compare_options,
    .example = "fp8flow compare --recipes bf16,blockwise,flow --data notes.txt --steps 500 --seeds 3 --out study",
    .run = run_compare,
};
