/* compare.c - statistics of a comparison; definitions in compare.h. Pure functions of the runs. */
#include "compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "svg.h"

static int run_create(compare_run *run, const fp8flow_train_options *options, uint64_t seed)
{
    run->seed = seed;
    run->loss = calloc((size_t)options->steps, sizeof *run->loss);
    run->max_validations = 8;
    run->validation = calloc((size_t)run->max_validations, sizeof *run->validation);
    return run->loss && run->validation ? 0 : -1;
}

int compare_create(compare_study *study, const char *const *names, int64_t num_recipes, int64_t num_seeds)
{
    study->num_recipes = num_recipes;
    study->num_seeds = num_seeds;
    if (study->baseline_seeds < num_seeds) study->baseline_seeds = num_seeds;
    for (int64_t r = 0; r < num_recipes; r++)
        if (strcmp(names[r], "bf16") == 0) study->baseline = r;
    study->recipes = calloc((size_t)num_recipes, sizeof *study->recipes);
    if (!study->recipes) return -1;
    for (int64_t r = 0; r < num_recipes; r++) {
        compare_recipe *recipe = &study->recipes[r];
        recipe->name = names[r];
        recipe->num_runs = r == study->baseline ? study->baseline_seeds : num_seeds;
        recipe->runs = calloc((size_t)recipe->num_runs, sizeof *recipe->runs);
        if (!recipe->runs) return -1;
        for (int64_t s = 0; s < recipe->num_runs; s++)
            if (run_create(&recipe->runs[s], study->options, study->options->seed + (uint64_t)s)) return -1;
    }
    /* The baseline is drawn in ink; the others take the palette in the order given. */
    int32_t color = 1;
    for (int64_t r = 0; r < num_recipes; r++)
        study->recipes[r].color = r == study->baseline ? 0 : (color++ - 1) % (SVG_NUM_COLORS - 1) + 1;
    return 0;
}

void compare_destroy(compare_study *study)
{
    for (int64_t r = 0; study->recipes && r < study->num_recipes; r++) {
        compare_run *runs = study->recipes[r].runs;
        for (int64_t s = 0; runs && s < study->recipes[r].num_runs; s++) {
            free(runs[s].loss);
            free(runs[s].validation);
            free(runs[s].load);
        }
        free(runs);
    }
    free(study->recipes);
    study->recipes = NULL;
    free(study->taken_machine);
    free(study->taken_date);
}

int compare_same_info(const fp8flow_train_info *a, const fp8flow_train_info *b)
{
    return a->parameters == b->parameters && a->active_parameters == b->active_parameters &&
           a->num_moe_layers == b->num_moe_layers && a->num_experts == b->num_experts && a->top_k == b->top_k &&
           a->train_tokens == b->train_tokens && a->validation_tokens == b->validation_tokens;
}

int compare_is_finished(const compare_study *study, const compare_run *run)
{
    return run->num_steps == study->options->steps && !run->error[0];
}

/* ---- Curves --------------------------------------------------------------------------------- */

/* Running mean over [t - half, t + half], cut at the ends of [0, count). */
static void running_mean(const double *values, int64_t count, int64_t half, double *mean)
{
    for (int64_t t = 0; t < count; t++) {
        int64_t first = t > half ? t - half : 0, last = t + half < count ? t + half : count - 1;
        double sum = 0;
        for (int64_t i = first; i <= last; i++) sum += values[i];
        mean[t] = sum / (double)(last - first + 1);
    }
}

static int64_t half_window(const compare_study *study)
{
    return (1 + study->options->steps / 20) / 2;
}

int64_t compare_window(const compare_study *study)
{
    return 2 * half_window(study) + 1;
}

void compare_smooth(const compare_study *study, const compare_run *run, double *smooth)
{
    running_mean(run->loss, run->num_steps, half_window(study), smooth);
}

int64_t compare_gap_curve(const compare_study *study, const compare_run *run, const compare_run *base, double *gap)
{
    int64_t count = run->num_steps < base->num_steps ? run->num_steps : base->num_steps;
    double *smooth = malloc(sizeof *smooth * (size_t)(count + 1));
    if (!smooth) return 0;
    /* Both curves are cut to the common steps first: at the right end their windows must hold the same steps. */
    running_mean(run->loss, count, half_window(study), gap);
    running_mean(base->loss, count, half_window(study), smooth);
    for (int64_t t = 0; t < count; t++) gap[t] = (gap[t] - smooth[t]) / smooth[t];
    free(smooth);
    return count;
}

typedef struct {
    double mean, worst;
    int64_t steps; /* 0: one of the runs has none */
} gap_figures;

/* Of larger magnitude; a NaN wins and stays. */
static double worse_of(double a, double b)
{
    return isnan(a) || fabs(a) >= fabs(b) ? a : b;
}

static gap_figures gap_of(const compare_study *study, const compare_run *run, const compare_run *base)
{
    gap_figures figures = { 0, 0, 0 };
    double *gap = malloc(sizeof *gap * (size_t)study->options->steps);
    if (!gap) return figures;
    int64_t count = compare_gap_curve(study, run, base, gap), first = count / 2;
    for (int64_t t = first; t < count; t++) {
        figures.mean += gap[t] / (double)(count - first);
        figures.worst = worse_of(figures.worst, gap[t]);
    }
    figures.steps = count;
    free(gap);
    return figures;
}

/* ---- Figures over seeds --------------------------------------------------------------------- */

/* Mean of the last twentieth of a run that has steps. */
static double final_training_loss(const compare_run *run)
{
    int64_t tail = run->num_steps / 20 > 0 ? run->num_steps / 20 : 1;
    double sum = 0;
    for (int64_t t = run->num_steps - tail; t < run->num_steps; t++) sum += run->loss[t];
    return sum / (double)tail;
}

static compare_figure over_seeds(const double *values, int64_t count)
{
    double sum = 0, squares = 0;
    if (count == 0) return (compare_figure){ NAN, NAN, 0 };
    for (int64_t i = 0; i < count; i++) sum += values[i];
    double mean = sum / (double)count;
    for (int64_t i = 0; i < count; i++) squares += (values[i] - mean) * (values[i] - mean);
    return (compare_figure){ mean, count > 1 ? sqrt(squares / (double)(count - 1)) : 0, count };
}

static void summarize_losses(const compare_study *study, compare_recipe *recipe)
{
    double training[COMPARE_MAX_SEEDS] = { 0 }, validation[COMPARE_MAX_SEEDS] = { 0 };
    int64_t num_trained = 0, num_validated = 0;
    for (int64_t s = 0; s < study->num_seeds; s++) {
        const compare_run *run = &recipe->runs[s];
        if (run->num_steps > 0) training[num_trained++] = final_training_loss(run);
        if (run->num_validations > 0) validation[num_validated++] = run->validation[run->num_validations - 1].loss;
    }
    recipe->summary.training_loss = over_seeds(training, num_trained);
    recipe->summary.validation_loss = over_seeds(validation, num_validated);
}

static void summarize_gaps(const compare_study *study, compare_recipe *recipe)
{
    double means[COMPARE_MAX_SEEDS] = { 0 }, worst = 0;
    int64_t count = 0;
    const compare_run *base = study->recipes[study->baseline].runs;
    for (int64_t s = 0; s < study->num_seeds; s++) {
        gap_figures gap = gap_of(study, &recipe->runs[s], &base[s]);
        if (gap.steps == 0) continue;
        means[count++] = gap.mean;
        worst = worse_of(worst, gap.worst);
    }
    recipe->summary.gap_mean = over_seeds(means, count);
    recipe->summary.gap_worst = count > 0 ? worst : NAN;
}

/* ---- Summaries ------------------------------------------------------------------------------ */

static void summarize_costs(const compare_study *study, compare_recipe *recipe)
{
    compare_summary *summary = &recipe->summary;
    const fp8flow_step_metrics *last = NULL;
    double tokens = 0, seconds = 0;
    for (int64_t s = 0; s < study->num_seeds; s++) {
        const compare_run *run = &recipe->runs[s];
        tokens += run->timed_tokens;
        seconds += run->timed_seconds;
        if (!last && run->num_steps > 0) last = &run->last;
    }
    int64_t layers = study->info.num_moe_layers > 0 ? study->info.num_moe_layers : 1;
    summary->tokens_per_second = seconds > 0 ? tokens / seconds : NAN;
    summary->saved_bytes = last ? (double)last->saved_bytes / (double)layers : NAN;
    summary->dispatch_bytes = last ? last->dispatch_bytes_per_token : NAN;
    summary->wire_bytes = last ? last->wire_bytes_per_token : NAN;
    summary->explicit_casts = last ? last->explicit_casts : -1;
}

static void summarize_noise(compare_study *study)
{
    const compare_run *base = study->recipes[study->baseline].runs;
    compare_noise noise = { NAN, NAN };
    double sum = 0;
    int64_t pairs = 0;
    for (int64_t i = 0; i < study->baseline_seeds; i++)
        for (int64_t j = i + 1; j < study->baseline_seeds; j++) {
            gap_figures gap = gap_of(study, &base[j], &base[i]);
            if (gap.steps == 0) continue;
            sum += fabs(gap.mean);
            noise.worst = pairs++ == 0 ? gap.worst : worse_of(noise.worst, gap.worst);
        }
    if (pairs > 0) noise.mean_magnitude = sum / (double)pairs;
    study->noise = noise;
}

void compare_summarize(compare_study *study)
{
    for (int64_t r = 0; r < study->num_recipes; r++) {
        summarize_losses(study, &study->recipes[r]);
        summarize_gaps(study, &study->recipes[r]);
        summarize_costs(study, &study->recipes[r]);
    }
    summarize_noise(study);
}

void compare_load_of(const compare_study *study, const compare_run *run, int64_t slice, double *ratio)
{
    int64_t layers = study->info.num_moe_layers, experts = study->info.num_experts, cells = layers * experts;
    int64_t first = slice < 0 ? 0 : slice, last = slice < 0 ? COMPARE_LOAD_SLICES - 1 : slice;
    for (int64_t layer = 0; layer < layers; layer++) {
        double total = 0;
        for (int64_t e = 0; e < experts; e++) {
            double tokens = 0;
            for (int64_t i = first; run->load && i <= last; i++)
                tokens += (double)run->load[i * cells + layer * experts + e];
            ratio[layer * experts + e] = tokens;
            total += tokens;
        }
        for (int64_t e = 0; e < experts; e++) ratio[layer * experts + e] *= total > 0 ? (double)experts / total : NAN;
    }
}
