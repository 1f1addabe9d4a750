/* cmd_train.c - `fp8flow train`: options, the table at the start, the summary at the end. The loop itself is
 * train_loop.c. Defaults of the run are the library's (fp8flow_train_options_init). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "output_folder.h"
#include "train_loop.h"

typedef struct {
    fp8flow_train_options train;
    cli_list data;
    int32_t checkpointing, backend;
    int64_t ranks, threads, log_every, validate_every, save_every;
} train_settings;

#define MOST_STEPS  1000000000
#define MOST_TOKENS 1000000

/* Names in the order of fp8flow_checkpointing and fp8flow_backend. */
#define CHECKPOINTING_NAMES "none|moe_expert|full"
#define BACKEND_NAMES       "cpu|reference"

#define STRING(field, name, value, help) CLI_OPTION_STRING(train_settings, field, name, value, help)
#define INTEGER(field, name, value, least, most, help) \
    CLI_OPTION_INTEGER(train_settings, field, name, value, least, most, help)
#define REAL(field, name, value, least, most, help) \
    CLI_OPTION_REAL(train_settings, field, name, value, least, most, help)
#define CHOICE(field, name, names, help) CLI_OPTION_CHOICE(train_settings, field, name, names, help)

static const cli_option train_options[] = {
    CLI_OPTION_HEADING("Model and data"),
    STRING(train.model, "model", "NAME", "built-in model, or path of a config.json (Qwen3-MoE form)"),
    CLI_OPTION_LIST(train_settings, data, "data", "PATH", 1, "file or folder of raw text"),
    STRING(train.recipe, "recipe", "NAME", "number formats: bf16, tensorwise, blockwise, deepseek, flow, +variants"),
    INTEGER(train.seed, "seed", "N", 0, INT64_MAX, "seed of the weights"),
    INTEGER(train.data_seed, "data-seed", "N", 0, INT64_MAX, "seed of the order of the data"),

    CLI_OPTION_HEADING("Steps"),
    INTEGER(train.steps, "steps", "N", 1, MOST_STEPS, "optimiser steps; the schedule ends here"),
    INTEGER(train.batch, "batch", "N", 1, MOST_TOKENS, "sequences per step, over all ranks"),
    INTEGER(train.micro_batch, "micro-batch", "N", 1, MOST_TOKENS, "sequences per rank and forward pass"),
    INTEGER(train.sequence_length, "sequence-length", "N", 2, MOST_TOKENS, "tokens per sequence"),

    CLI_OPTION_HEADING("Optimiser (AdamW)"),
    REAL(train.lr, "lr", "X", 0, 10, "largest learning rate"),
    REAL(train.min_lr, "min-lr", "X", 0, 10, "learning rate at the last step"),
    INTEGER(train.warmup_steps, "warmup-steps", "N", 0, MOST_STEPS, "steps of linear warm-up"),
    REAL(train.beta1, "beta1", "X", 0, 0.999999, "decay of the first moment"),
    REAL(train.beta2, "beta2", "X", 0, 0.999999, "decay of the second moment"),
    REAL(train.eps, "eps", "X", 1e-30, 1, "added to the root of the second moment"),
    REAL(train.weight_decay, "weight-decay", "X", 0, 10, "decoupled weight decay per unit of learning rate"),
    REAL(train.clip, "clip", "X", 0, 1e9, "largest global gradient norm; 0: no clipping"),

    CLI_OPTION_HEADING("Machine"),
    INTEGER(ranks, "ranks", "N", 1, 256, "ranks over which experts and batch are spread; threads of this process"),
    INTEGER(threads, "threads", "N", 0, 4096, "processor threads per rank; 0: all processors, shared by the ranks"),
    CHOICE(checkpointing, "checkpointing", CHECKPOINTING_NAMES, "what a MoE layer recomputes in backward"),
    CHOICE(backend, "backend", BACKEND_NAMES, "cpu: fast; reference: plain scalar code, slow"),

    CLI_OPTION_HEADING("Output"),
    STRING(train.output, "output", "DIR", "folder for checkpoints and metrics.jsonl; without it nothing is kept"),
    STRING(train.resume, "resume", "DIR", "go on from a checkpoint, or from the newest one of an output folder"),
    INTEGER(save_every, "save-every", "N", 0, MOST_STEPS, "steps between checkpoints; 0: only at the end"),
    INTEGER(train.keep_checkpoints, "keep", "N", 0, MOST_STEPS, "checkpoints kept; 0: all"),
    INTEGER(validate_every, "validate-every", "N", 0, MOST_STEPS, "steps between validations; 0: none"),
    INTEGER(train.validation_sequences, "validation-sequences", "N", 0, MOST_TOKENS, "sequences per validation"),
    INTEGER(log_every, "log-every", "N", 0, MOST_STEPS, "steps between lines when stdout is not a terminal"),
};

/* ---- Start ---------------------------------------------------------------------------------- */

static int64_t threads_per_rank(const train_settings *settings)
{
    int64_t shared = cli_num_processors() / settings->ranks;
    return settings->threads > 0 ? settings->threads : shared > 0 ? shared : 1;
}

static void print_start(void *user, const fp8flow_train_info *info)
{
    static const char *const recomputed[] = { "none", "moe_expert", "full" };
    const train_settings *settings = user;
    const fp8flow_train_options *train = &settings->train;
    char all[CLI_NUMBER_BYTES], active[CLI_NUMBER_BYTES], size[CLI_NUMBER_BYTES], held_out[CLI_NUMBER_BYTES];
    printf("model          %s: %s parameters, %s active per token; %lld layers, %lld with %lld experts (top %lld)\n",
           train->model, cli_format_count(all, (double)info->parameters),
           cli_format_count(active, (double)info->active_parameters), (long long)info->num_layers,
           (long long)info->num_moe_layers, (long long)info->num_experts, (long long)info->top_k);
    printf("data           %lld files, %s to train, %s to validate", (long long)info->files,
           cli_format_bytes(size, (double)info->train_tokens),
           cli_format_bytes(held_out, (double)info->validation_tokens));
    if (info->skipped_files > 0) printf("; %lld skipped", (long long)info->skipped_files);
    printf("\nrecipe         %s\n", train->recipe);
    printf("checkpointing  %s\n", recomputed[settings->checkpointing]);
    printf("batch          %lld sequences of %lld tokens per step, %lld at a time on each rank\n",
           (long long)train->batch, (long long)train->sequence_length, (long long)train->micro_batch);
    printf("ranks          %lld, %lld threads each%s\n", (long long)settings->ranks,
           (long long)threads_per_rank(settings),
           settings->backend == FP8FLOW_REFERENCE ? ", reference operators" : "");
    printf("memory         %s per rank\n", cli_format_bytes(size, (double)info->memory_bytes));
    if (info->first_step > 0) printf("resumed        after step %lld\n", (long long)info->first_step);
    printf("\n");
    fflush(stdout);
}

/* ---- End ------------------------------------------------------------------------------------ */

static void print_next(const train_settings *settings, const cli_run_result *result)
{
    const char *output = settings->train.output;
    int64_t step = result->last.step > 0 ? result->last.step : result->info.first_step;
    if (result->stop != CLI_STOP_NONE && step < settings->train.steps) {
        printf("stopped at step %lld of %lld\n", (long long)step, (long long)settings->train.steps);
        if (!output) printf("nothing was saved; --output DIR keeps checkpoints\n");
        else if (result->saved_step > 0 || result->info.first_step > 0)
            printf("to go on: the same command with --resume %s\n",
                   result->saved_step > 0 ? output : settings->train.resume);
        return;
    }
    if (output) printf("next: fp8flow generate --checkpoint %s --prompt \"...\"\n", output);
    else printf("nothing was saved; --output DIR keeps checkpoints\n");
}

static void print_summary(const train_settings *settings, const cli_run_result *result)
{
    char speed[CLI_NUMBER_BYTES];
    if (result->last.step > 0)
        printf("\nloss           %.4f at step %lld\n", result->last.loss, (long long)result->last.step);
    else printf("\nno step was made; %lld are done\n", (long long)result->info.first_step);
    if (!isnan(result->validation_loss)) printf("validation     %.4f\n", result->validation_loss);
    if (result->tokens_per_second > 0)
        printf("speed          %s tokens/s\n", cli_format_count(speed, result->tokens_per_second));
    if (result->saved_step > 0)
        printf("checkpoint     %s/step-%08lld\n", settings->train.output, (long long)result->saved_step);
    print_next(settings, result);
}

/* ---- Command -------------------------------------------------------------------------------- */

static int run_with_output(const train_settings *settings)
{
    char metrics_path[4200];
    const char *output = settings->train.output;
    cli_run run = { .command = &cli_train,
                    .train = settings->train,
                    .backend = (fp8flow_backend)settings->backend,
                    .num_ranks = (int32_t)settings->ranks,
                    .num_threads = (int32_t)settings->threads,
                    .log_every = settings->log_every,
                    .validate_every = settings->validate_every,
                    .save_every = settings->save_every,
                    .on_start = print_start,
                    .user = (void *)settings };
    if (output) {
        snprintf(metrics_path, sizeof metrics_path, "%s/metrics.jsonl", output);
        run.metrics_path = metrics_path;
    }
    cli_run_result result;
    int code = cli_run_training(&run, &result);
    if (code == CLI_DONE) print_summary(settings, &result);
    return code;
}

/* A second run must not mix its checkpoints with those of the first. */
static int refuse_foreign_checkpoints(const train_settings *settings)
{
    char quoted[CLI_QUOTE_BYTES];
    const char *output = settings->train.output, *resume = settings->train.resume;
    if (!cli_output_folder_has_checkpoints(output) || (resume && cli_path_is_inside(resume, output))) return CLI_DONE;
    return cli_fail_usage(&cli_train, "--output: %s holds checkpoints of another run; give --resume or another folder",
                          cli_quote(quoted, output));
}

static int run_train(int argc, char **argv)
{
    static train_settings settings = { .ranks = 1, .log_every = 10, .validate_every = 100, .save_every = 500 };
    fp8flow_train_options_init(&settings.train);
    settings.checkpointing = (int32_t)settings.train.checkpointing;
    int code = cli_parse(&cli_train, argc, argv, &settings);
    if (code != CLI_GO_ON) return code;
    settings.train.data = settings.data.items;
    settings.train.num_data = settings.data.count;
    settings.train.checkpointing = (fp8flow_checkpointing)settings.checkpointing;
    fp8flow_status status = fp8flow_recipe_check(settings.train.recipe);
    if (status != FP8FLOW_OK) return cli_fail_status(&cli_train, status);
    if (!settings.train.output) return run_with_output(&settings);

    cli_output_folder folder;
    code = cli_output_folder_take(&folder, &cli_train, settings.train.output);
    if (code == CLI_DONE) code = refuse_foreign_checkpoints(&settings);
    if (code == CLI_DONE) code = run_with_output(&settings);
    cli_output_folder_release(&folder);
    return code;
}

const cli_command cli_train = {
    .name = "train",
    .summary = "Train a model, or go on with one",
    .options = train_options,
    .num_options = sizeof train_options / sizeof *train_options,
    .example = "fp8flow train --data notes.txt --steps 200 --output run",
    .run = run_train,
};
