/* cmd_train.c - `fp8flow train`: options, the table at the start, the summary at the end. The loop itself is
 * train_loop.c. Defaults of the run are the library's (fp8flow_train_options_init). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "job.h"
#include "output_folder.h"
#include "train_options.h"

typedef struct {
    cli_training training;
    int64_t save_every;
} train_settings;

static const cli_option train_options[] = {
    CLI_TRAINING_MODEL(train_settings, training, 1,
                       CLI_OPTION_STRING(train_settings, training.train.recipe, "recipe", "NAME",
                                         "number formats: bf16, tensorwise, blockwise, deepseek, flow, +variants")),
    CLI_TRAINING_STEPS(train_settings, training),
    CLI_TRAINING_OPTIMISER(train_settings, training),
    CLI_TRAINING_MACHINE(train_settings, training),

    CLI_OPTION_INTEGER(train_settings, training.timeout, "timeout", "SECONDS", 1, 86400,
                       "under mpirun: how long a rank waits for another before the job ends"),

    CLI_OPTION_HEADING("Output"),
    CLI_OPTION_STRING(train_settings, training.train.output, "output", "DIR",
                      "folder for checkpoints and metrics.jsonl; without it nothing is kept"),
    CLI_OPTION_STRING(train_settings, training.train.resume, "resume", "DIR",
                      "go on from a checkpoint, or from the newest one of an output folder"),
    CLI_OPTION_INTEGER(train_settings, save_every, "save-every", "N", 0, CLI_MOST_STEPS,
                       "steps between checkpoints; 0: only at the end"),
    CLI_OPTION_INTEGER(train_settings, training.train.keep_checkpoints, "keep", "N", 0, CLI_MOST_STEPS,
                       "checkpoints kept; 0: all"),
    CLI_TRAINING_DISPLAY(train_settings, training),
};

/* ---- Start ---------------------------------------------------------------------------------- */

static int print_start(void *user, const fp8flow_train_info *info)
{
    static const char *const recomputed[] = { "none", "moe_expert", "full" };
    const train_settings *settings = user;
    const fp8flow_train_options *train = &settings->training.train;
    char device[CLI_DEVICE_BYTES], all[CLI_NUMBER_BYTES], active[CLI_NUMBER_BYTES], size[CLI_NUMBER_BYTES],
        held_out[CLI_NUMBER_BYTES];
    printf("device         %s%s\n",
           cli_device_text(device, settings->training.backend, cli_training_threads(&settings->training)),
           settings->training.ranks > 1 ? " per rank" : "");
    printf("model          %s: %s parameters, %s active per token; %lld layers, %lld with %lld experts (top %lld)\n",
           train->model ? train->model : "of the checkpoint", cli_format_count(all, (double)info->parameters),
           cli_format_count(active, (double)info->active_parameters), (long long)info->num_layers,
           (long long)info->num_moe_layers, (long long)info->num_experts, (long long)info->top_k);
    printf("data           %lld files, %s to train, %s to validate", (long long)info->files,
           cli_format_bytes(size, (double)info->train_tokens),
           cli_format_bytes(held_out, (double)info->validation_tokens));
    if (info->skipped_files > 0) printf("; %lld skipped", (long long)info->skipped_files);
    printf("\nrecipe         %s\n", train->recipe);
    printf("checkpointing  %s\n", recomputed[settings->training.checkpointing]);
    printf("batch          %lld sequences of %lld tokens per step, %lld at a time on each rank\n",
           (long long)train->batch, (long long)train->sequence_length, (long long)train->micro_batch);
    if (settings->training.ranks > 1)
        printf("ranks          %lld: experts over %lld, %lld such group%s\n", (long long)settings->training.ranks,
               (long long)settings->training.ep, (long long)settings->training.dp,
               settings->training.dp > 1 ? "s" : "");
    printf("memory         %s per rank\n", cli_format_bytes(size, (double)info->memory_bytes));
    if (info->first_step > 0) printf("resumed        after step %lld\n", (long long)info->first_step);
    if (*info->ignored_keys)
        printf("ignored        keys of config.json without meaning here: %s\n", info->ignored_keys);
    printf("\n");
    (void)fflush(stdout);
    return CLI_DONE;
}

/* ---- End ------------------------------------------------------------------------------------ */

static void print_next(const train_settings *settings, const cli_run_result *result)
{
    const char *output = settings->training.train.output;
    int64_t step = result->last.step > 0 ? result->last.step : result->info.first_step;
    if (result->stop != CLI_STOP_NONE && step < settings->training.train.steps) {
        printf("stopped at step %lld of %lld\n", (long long)step, (long long)settings->training.train.steps);
        if (!output) printf("nothing was saved; --output DIR keeps checkpoints\n");
        else if (result->saved_step > 0 || result->info.first_step > 0)
            printf("to go on: the same command with --resume %s\n",
                   result->saved_step > 0 ? output : settings->training.train.resume);
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
    if (result->tokens_per_second > 0 && settings->training.ranks > 1)
        printf("between ranks  exchange %.1f %% of a step (dispatch %.1f, combine %.1f), gradients %.1f %%\n",
               1e2 * (result->dispatch_part + result->combine_part), 1e2 * result->dispatch_part,
               1e2 * result->combine_part, 1e2 * result->gradients_part);
    if (result->saved_step > 0)
        printf("checkpoint     %s/step-%08lld\n", settings->training.train.output, (long long)result->saved_step);
    print_next(settings, result);
}

/* ---- Command -------------------------------------------------------------------------------- */

static int run_with_output(const train_settings *settings)
{
    char metrics_path[4200];
    const char *output = settings->training.train.output;
    cli_run run = cli_training_run(&cli_train, &settings->training);
    run.save_every = settings->save_every;
    run.on_start = print_start;
    run.user = (void *)settings;
    if (output) {
        snprintf(metrics_path, sizeof metrics_path, "%s/metrics.jsonl", output);
        run.metrics_path = metrics_path;
    }
    cli_run_result result;
    int code = cli_run_training(&run, &result);
    if (code == CLI_DONE && settings->training.mpi_rank == 0) print_summary(settings, &result);
    return code;
}

/* A second run must not mix its checkpoints with those of the first. */
static int refuse_foreign_checkpoints(const train_settings *settings)
{
    char quoted[CLI_QUOTE_BYTES];
    const char *output = settings->training.train.output, *resume = settings->training.train.resume;
    if (!cli_output_folder_has_checkpoints(output) || (resume && cli_path_is_inside(resume, output))) return CLI_DONE;
    return cli_fail_usage(&cli_train, "--output: %s holds checkpoints of another run; give --resume or another folder",
                          cli_quote(quoted, output));
}

static int check_settings(train_settings *settings)
{
    int code = cli_training_join(&cli_train, &settings->training);
    if (code == CLI_DONE) code = cli_training_finish(&cli_train, &settings->training);
    if (code != CLI_DONE) return code;
    fp8flow_status status = fp8flow_recipe_check(settings->training.train.recipe);
    return status == FP8FLOW_OK ? CLI_DONE : cli_fail_status(&cli_train, status);
}

/* The folder is rank 0's. */
static int take_output(cli_output_folder *folder, const train_settings *settings)
{
    if (!settings->training.train.output || settings->training.mpi_rank > 0) return CLI_DONE;
    int code = cli_output_folder_take(folder, &cli_train, settings->training.train.output);
    return code == CLI_DONE ? refuse_foreign_checkpoints(settings) : code;
}

static int run_train(int argc, char **argv)
{
    static train_settings settings = { .save_every = 500 };
    static cli_output_folder folder = { .descriptor = -1 };
    int32_t rank;
    const int is_job = cli_is_job(&rank);
    cli_training_init(&settings.training);
    if (is_job) cli_hold_errors(rank);
    int code = cli_parse(&cli_train, argc, argv, &settings);
    if (code == CLI_DONE) return code;
    if (code == CLI_GO_ON) code = check_settings(&settings);
    if (code == CLI_DONE) code = take_output(&folder, &settings);
    if (code != CLI_DONE && is_job) code = cli_job_leave((double)settings.training.timeout, code);
    else if (code == CLI_DONE) {
        cli_release_errors();
        code = run_with_output(&settings);
    }
    cli_output_folder_release(&folder);
    return code;
}

const cli_command cli_train = {
    .name = "train",
    .summary = "Train a model, or go on with one",
    .options = train_options,
    .num_options = sizeof train_options / sizeof *train_options,
    .runs_under_mpirun = 1,
    .example = "fp8flow train --data notes.txt --steps 200 --output run",
    .run = run_train,
};
