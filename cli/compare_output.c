/* compare_output.c - a study as the terminal's table and as JSON. */
#include "compare_json.h"

#include <math.h>
#include <string.h>

/* ---- Table ---------------------------------------------------------------------------------- */

typedef struct {
    char text[32];
} cell;

static cell loss_cell(compare_figure figure)
{
    cell c;
    if (figure.count == 0) snprintf(c.text, sizeof c.text, "-");
    else snprintf(c.text, sizeof c.text, "%.4f", figure.mean);
    return c;
}

static cell number_cell(double value, const char *unit)
{
    cell c;
    if (isnan(value)) snprintf(c.text, sizeof c.text, "-");
    else snprintf(c.text, sizeof c.text, "%.0f%s", value, unit);
    return c;
}

static cell gap_cell(const compare_study *study, compare_figure gap)
{
    cell c;
    if (gap.count == 0) snprintf(c.text, sizeof c.text, "-");
    else if (isnan(gap.mean)) snprintf(c.text, sizeof c.text, "not finite");
    else if (study->num_seeds == 1) snprintf(c.text, sizeof c.text, "%+.3f %%", 100 * gap.mean);
    else snprintf(c.text, sizeof c.text, "%+.3f %% +-%.3f", 100 * gap.mean, 100 * gap.spread);
    return c;
}

static cell worst_cell(const compare_summary *summary)
{
    cell c;
    if (summary->gap_mean.count == 0 || isnan(summary->gap_worst)) snprintf(c.text, sizeof c.text, "-");
    else snprintf(c.text, sizeof c.text, "%+.3f %%", 100 * summary->gap_worst);
    return c;
}

static void print_recipe(FILE *out, const compare_study *study, const compare_recipe *recipe)
{
    const compare_summary *s = &recipe->summary;
    int is_baseline = recipe == &study->recipes[study->baseline];
    cell gap = gap_cell(study, s->gap_mean), worst = worst_cell(s), casts = number_cell((double)s->explicit_casts, "");
    fprintf(out, "%-14s %9s %11s %18s %10s %9s %11s %10s %10s %6s\n", recipe->name, loss_cell(s->training_loss).text,
            loss_cell(s->validation_loss).text, is_baseline ? "baseline" : gap.text, is_baseline ? "" : worst.text,
            number_cell(s->tokens_per_second, "").text, number_cell(s->saved_bytes / 1024, " KiB").text,
            number_cell(s->dispatch_bytes, "").text, number_cell(s->wire_bytes, "").text,
            s->explicit_casts < 0 ? "-" : casts.text);
}

static void print_run_notes(FILE *out, const compare_study *study, const compare_recipe *recipe)
{
    for (int64_t s = 0; s < recipe->num_runs; s++) {
        const compare_run *run = &recipe->runs[s];
        const char *name = recipe->name;
        long long seed = (long long)run->seed;
        if (run->error[0])
            fprintf(out, "%s, seed %lld failed after step %lld: %s\n", name, seed, (long long)run->num_steps,
                    run->error);
        else if (run->num_steps < study->options->steps)
            fprintf(out, "%s, seed %lld: %lld of %lld steps\n", name, seed, (long long)run->num_steps,
                    (long long)study->options->steps);
        if (run->nonfinite_steps)
            fprintf(out, "%s, seed %lld: non-finite values in %lld of %lld steps, first in step %lld\n", name, seed,
                    (long long)run->nonfinite_steps, (long long)run->num_steps, (long long)run->first_nonfinite);
    }
}

void compare_print(FILE *out, const compare_study *study)
{
    fprintf(out, "%-14s %9s %11s %18s %10s %9s %11s %10s %10s %6s\n", "recipe", "training", "validation", "gap, mean",
            "worst", "tokens/s", "saved/layer", "dispatch B", "wire B", "casts");
    for (int64_t r = 0; r < study->num_recipes; r++) print_recipe(out, study, &study->recipes[r]);
    fprintf(out,
            "\nGap: relative to %s, smoothed over %lld steps, second half of the run. Saved and casts: per MoE layer. "
            "Dispatch\n(forward + backward) and wire (with combine): per token and MoE layer.\n",
            study->recipes[study->baseline].name, (long long)compare_window(study));
    if (!isnan(study->noise.mean_magnitude))
        fprintf(out, "Seed to seed, %s: mean gap %.3f %%, worst %+.3f %%.\n", study->recipes[study->baseline].name,
                100 * study->noise.mean_magnitude, 100 * study->noise.worst);
    for (int64_t r = 0; r < study->num_recipes; r++) print_run_notes(out, study, &study->recipes[r]);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

/* JSON has no NaN: null. */
static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *string_or_null(const char *text)
{
    json_t *value = text ? json_string(text) : NULL;
    return value ? value : json_null();
}

static json_t *figure_object(compare_figure figure)
{
    return json_pack("{s:o, s:o}", "mean", number(figure.mean), "spread", number(figure.spread));
}

/* [slices][layers][experts]; empty where it was not counted. */
static json_t *load_array(const compare_study *study, const compare_run *run)
{
    json_t *slices = json_array();
    int64_t layers = study->info.num_moe_layers, experts = study->info.num_experts;
    const int64_t *tokens = run->load;
    for (int64_t i = 0; tokens && i < COMPARE_LOAD_SLICES; i++) {
        json_t *slice = json_array();
        for (int64_t layer = 0; layer < layers; layer++) {
            json_t *row = json_array();
            for (int64_t e = 0; e < experts; e++) json_array_append_new(row, json_integer((json_int_t)*tokens++));
            json_array_append_new(slice, row);
        }
        json_array_append_new(slices, slice);
    }
    return slices;
}

static json_t *run_object(const compare_study *study, const compare_run *run)
{
    json_t *loss = json_array(), *validation = json_array();
    for (int64_t t = 0; t < run->num_steps; t++) json_array_append_new(loss, number(run->loss[t]));
    for (int64_t v = 0; v < run->num_validations; v++)
        json_array_append_new(validation, json_pack("{s:I, s:o}", "step", (json_int_t)run->validation[v].step, "loss",
                                                    number(run->validation[v].loss)));
    return json_pack("{s:I, s:I, s:o, s:I, s:I, s:o, s:o, s:I, s:o, s:o, s:I, s:o, s:o, s:o}", "seed",
                     (json_int_t)run->seed, "steps", (json_int_t)run->num_steps, "error",
                     string_or_null(run->error[0] ? run->error : NULL), "nonfinite_steps",
                     (json_int_t)run->nonfinite_steps, "first_nonfinite_step", (json_int_t)run->first_nonfinite,
                     "timed_tokens", number(run->timed_tokens), "timed_seconds", number(run->timed_seconds),
                     "saved_bytes", (json_int_t)run->last.saved_bytes, "dispatch_bytes_per_token",
                     number(run->last.dispatch_bytes_per_token), "wire_bytes_per_token",
                     number(run->last.wire_bytes_per_token), "explicit_casts", (json_int_t)run->last.explicit_casts,
                     "loss", loss, "validation", validation, "expert_load", load_array(study, run));
}

static json_t *recipe_object(const compare_study *study, const compare_recipe *recipe)
{
    const compare_summary *s = &recipe->summary;
    json_t *runs = json_array();
    for (int64_t i = 0; i < recipe->num_runs; i++) json_array_append_new(runs, run_object(study, &recipe->runs[i]));
    return json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "recipe", recipe->name, "training_loss",
                     figure_object(s->training_loss), "validation_loss", figure_object(s->validation_loss), "gap_mean",
                     figure_object(s->gap_mean), "gap_worst", number(s->gap_worst), "tokens_per_second",
                     number(s->tokens_per_second), "saved_bytes_per_layer", number(s->saved_bytes),
                     "dispatch_bytes_per_token", number(s->dispatch_bytes), "wire_bytes_per_token",
                     number(s->wire_bytes), "explicit_casts",
                     s->explicit_casts < 0 ? json_null() : json_integer((json_int_t)s->explicit_casts), "runs", runs);
}

/* What two runs must have in common to be compared, recipe and seed left out. */
json_t *compare_training_object(const compare_study *study)
{
    const fp8flow_train_options *o = study->options;
    json_t *object =
        json_pack("{s:o, s:o, s:o, s:I, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "model", string_or_null(o->model),
                  "data", string_or_null(study->data), "backend", string_or_null(study->backend), "ranks",
                  (json_int_t)study->num_ranks, "checkpointing", (int)o->checkpointing, "steps", (json_int_t)o->steps,
                  "batch", (json_int_t)o->batch, "micro_batch", (json_int_t)o->micro_batch, "sequence_length",
                  (json_int_t)o->sequence_length, "data_seed", (json_int_t)o->data_seed, "validate_every",
                  (json_int_t)study->validate_every, "validation_sequences", (json_int_t)o->validation_sequences);
    json_t *optimiser = json_pack("{s:f, s:f, s:I, s:f, s:f, s:f, s:f, s:f}", "lr", o->lr, "min_lr", o->min_lr,
                                  "warmup_steps", (json_int_t)o->warmup_steps, "beta1", o->beta1, "beta2", o->beta2,
                                  "eps", o->eps, "weight_decay", o->weight_decay, "clip", o->clip);
    json_object_update(object, optimiser);
    json_decref(optimiser);
    if (o->expert_parallel && o->expert_parallel != study->num_ranks) /* otherwise all ranks: what there was before */
        json_object_set_new(object, "expert_parallel", json_integer((json_int_t)o->expert_parallel));
    return object;
}

static json_t *info_object(const fp8flow_train_info *info)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "parameters", (json_int_t)info->parameters,
                     "active_parameters", (json_int_t)info->active_parameters, "moe_layers",
                     (json_int_t)info->num_moe_layers, "experts", (json_int_t)info->num_experts, "top_k",
                     (json_int_t)info->top_k, "train_tokens", (json_int_t)info->train_tokens, "validation_tokens",
                     (json_int_t)info->validation_tokens);
}

char *compare_to_json(const compare_study *study)
{
    json_t *recipes = json_array();
    for (int64_t r = 0; r < study->num_recipes; r++)
        json_array_append_new(recipes, recipe_object(study, &study->recipes[r]));
    json_t *root = json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:b, s:s, s:I, s:o, s:o, s:o}", "version",
                             fp8flow_version(), "command", string_or_null(study->command), "machine",
                             string_or_null(study->machine), "date", string_or_null(study->date), "training",
                             compare_training_object(study), "info", info_object(&study->info), "interrupted",
                             study->interrupted, "baseline", study->recipes[study->baseline].name, "smoothing_steps",
                             (json_int_t)compare_window(study), "seed_noise_mean", number(study->noise.mean_magnitude),
                             "seed_noise_worst", number(study->noise.worst), "recipes", recipes);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    return text;
}
