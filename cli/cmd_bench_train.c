/* cmd_bench_train.c - `fp8flow bench train`: steps of a whole model in every recipe. See bench_train.h. */
#include "bench_train.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "train_loop.h"

enum { WARM_UPS = 2, TRACED_STEPS = 2 };

enum { DETAIL_NONE, DETAIL_MAIN, DETAIL_ALL };

typedef struct {
    cli_list models, recipes, modes;
    train_batch batch;
    int64_t layers, repeats, num_threads;
    int32_t device, backend, detail, is_json;
} settings;

static const cli_option train_options[] = {
    CLI_OPTION_NAMES(settings, models, "models", "NAMES",
                     TRAIN_MODEL_NAMES "; if none is named: the first two on a GPU, demo on the CPU"),
    CLI_OPTION_NAMES(settings, recipes, "recipes", "NAMES", "recipes; all if none is named"),
    CLI_OPTION_NAMES(settings, modes, "checkpointing", "NAMES",
                     "none, moe_expert, full; moe_expert and full if none is named"),
    CLI_OPTION_INTEGER(settings, layers, "layers", "N", 0, 128, "layers; 0: as many as fit"),
    CLI_OPTION_INTEGER(settings, batch.batch, "batch", "N", 0, 1000000, "sequences per step; 0: 16, on the CPU 4"),
    CLI_OPTION_INTEGER(settings, batch.micro_batch, "micro-batch", "N", 0, 1000000, "sequences per forward pass; 0: 2"),
    CLI_OPTION_INTEGER(settings, batch.sequence_length, "sequence-length", "N", 0, 1000000,
                       "tokens per sequence; 0: 4096, on the CPU 256"),
    CLI_OPTION_HEADING("Measuring"),
    CLI_OPTION_DEVICE(settings, device),
    CLI_OPTION_INTEGER(settings, repeats, "repeat", "N", 1, TIMING_MAX_REPEATS, "steps that are timed, after two"),
    CLI_OPTION_INTEGER(settings, num_threads, "threads", "N", 0, 1024, "threads; 0: all processors of this process"),
    CLI_OPTION_CHOICE(settings, detail, "kernels", "none|main|all",
                      "operators of one more step: none; bf16, blockwise and flow in the first mode; every variant"),
    CLI_OPTION_FLAG(settings, is_json, "json", "print a JSON list of records instead of the tables"),
};

typedef struct {
    const settings *settings;
    bench_variants variants;
    train_bench bench;
    train_files files;
    train_result result; /* of the variant that is measured */
    int32_t is_first_mode;
    int64_t num_failed;
} train_plan;

/* ---- Signals -------------------------------------------------------------------------------- */

/* What a signal removes; its folder is "" while there is nothing. */
static train_files *files_of_signal;

static void handle_signal(int number)
{
    train_files_remove(files_of_signal);
    _exit(128 + number);
}

static void watch_signals(train_files *files)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    files_of_signal = files;
    action.sa_handler = handle_signal;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* ---- One variant ---------------------------------------------------------------------------- */

static fp8flow_status make_trainer(train_plan *p, fp8flow_context *context, fp8flow_comm *comm,
                                   fp8flow_trainer **trainer)
{
    const char *data[] = { p->files.tokens };
    fp8flow_train_options options;
    fp8flow_train_options_init(&options);
    options.model = p->files.config;
    options.data = data;
    options.num_data = 1;
    options.recipe = p->result.recipe;
    options.checkpointing = p->result.mode;
    options.steps = WARM_UPS + p->settings->repeats + TRACED_STEPS;
    options.batch = p->bench.batch.batch;
    options.micro_batch = p->bench.batch.micro_batch;
    options.sequence_length = p->bench.batch.sequence_length;
    options.lr = options.min_lr = 1e-4;
    options.warmup_steps = 0;
    fp8flow_status status = fp8flow_trainer_create(context, comm, &options, trainer);
    return status == FP8FLOW_OK ? fp8flow_trainer_get_info(*trainer, &p->result.info) : status;
}

/* A step ends when its figures have come to the host. */
static fp8flow_status time_steps(train_plan *p, fp8flow_trainer *trainer)
{
    double *samples = malloc((size_t)p->settings->repeats * sizeof *samples);
    fp8flow_status status = samples ? FP8FLOW_OK : FP8FLOW_ENOMEM;
    for (int64_t i = -WARM_UPS; status == FP8FLOW_OK && i < p->settings->repeats; i++) {
        double start = cli_seconds();
        status = fp8flow_trainer_step(trainer, &p->result.last);
        if (i >= 0) samples[i] = 1e3 * (cli_seconds() - start);
    }
    if (status == FP8FLOW_OK) p->result.step = timing_summarize(samples, p->settings->repeats);
    free(samples);
    return status;
}

static int32_t wants_calls(const train_plan *p)
{
    static const char *const main_recipes[] = { "bf16", "blockwise", "flow" };
    if (p->settings->detail != DETAIL_MAIN) return p->settings->detail == DETAIL_ALL;
    return p->is_first_mode && variants_find(main_recipes, 3, p->result.recipe) >= 0;
}

static fp8flow_status run_rank(fp8flow_comm *comm, void *user)
{
    train_plan *p = user;
    fp8flow_context_options options = { .backend = (fp8flow_backend)p->settings->backend,
                                        .num_threads = (int32_t)p->settings->num_threads };
    fp8flow_context *context = NULL;
    fp8flow_trainer *trainer = NULL;
    fp8flow_device_info now = { .free_bytes = 0 };
    fp8flow_status status = fp8flow_context_create(&options, &context);
    if (status == FP8FLOW_OK) status = make_trainer(p, context, comm, &trainer);
    if (status == FP8FLOW_OK) status = time_steps(p, trainer);
    if (status == FP8FLOW_OK && wants_calls(p)) status = train_trace(&p->bench, context, trainer, &p->result);
    if (status == FP8FLOW_OK) status = fp8flow_device_describe(context, &now);
    p->result.used_bytes = now.memory_bytes - now.free_bytes;
    p->result.info.ignored_keys = NULL; /* the trainer's */
    fp8flow_trainer_destroy(trainer);
    fp8flow_context_destroy(context);
    return status;
}

/* A variant for which memory is short does not keep the others from being measured. */
static int run_variant(train_plan *p)
{
    train_bench *b = &p->bench;
    fp8flow_status status = fp8flow_run_ranks(1, run_rank, p);
    if (status != FP8FLOW_OK) {
        const char *text = *fp8flow_last_error() ? fp8flow_last_error() : fp8flow_status_name(status);
        cli_fail(&cli_bench_train, "%s in %s, %s: %s", p->result.recipe, b->model->name,
                 variants_mode_names[p->result.mode], text);
        p->num_failed++;
        return status == FP8FLOW_ENOMEM ? CLI_DONE : CLI_FAILED;
    }
    if (strcmp(p->result.recipe, "bf16") == 0) b->bf16_ms = p->result.step.median;
    if (strcmp(p->result.recipe, "blockwise") == 0) b->blockwise_ms = p->result.step.median;
    train_emit(b, &p->result);
    return CLI_DONE;
}

/* ---- All of them ---------------------------------------------------------------------------- */

static int run_variants(train_plan *p, int64_t layers)
{
    const bench_variants *v = &p->variants;
    int code = CLI_DONE;
    p->is_first_mode = 1;
    for (int mode = 0; mode < VARIANTS_NUM_MODES; mode++) {
        p->bench.bf16_ms = p->bench.blockwise_ms = 0;
        for (int64_t i = 0; code == CLI_DONE && v->has_mode[mode] && i < v->num_recipes && !cli_output_gone(); i++) {
            p->result =
                (train_result){ .recipe = v->recipes[i], .mode = (fp8flow_checkpointing)mode, .layers = layers };
            code = run_variant(p);
            free(p->result.calls.calls);
        }
        if (v->has_mode[mode]) p->is_first_mode = 0;
    }
    return code;
}

static int run_model(train_plan *p, const train_model *model)
{
    train_bench *b = &p->bench;
    int64_t layers = p->settings->layers;
    b->model = model;
    b->num_rows = 0;
    if (layers == 0)
        layers = b->device.memory_bytes ? train_layers_that_fit(model, &b->batch, (double)b->device.free_bytes) : 2;
    int code = train_files_create(&p->files, model, layers, &b->batch) == 0
                   ? run_variants(p, layers)
                   : cli_fail(&cli_bench_train, "temporary folder: %s", strerror(errno));
    train_files_remove(&p->files);
    return code;
}

/* Name and free memory of the device, before anything of ours is in it. */
static int describe(train_plan *p)
{
    fp8flow_context_options options = { .backend = (fp8flow_backend)p->settings->backend, .num_threads = 1 };
    fp8flow_context *context = NULL;
    fp8flow_status status = fp8flow_context_create(&options, &context);
    if (status == FP8FLOW_OK) status = fp8flow_device_describe(context, &p->bench.device);
    fp8flow_context_destroy(context);
    return status == FP8FLOW_OK ? CLI_DONE : cli_fail_status(&cli_bench_train, status);
}

static int run_models(train_plan *p)
{
    static const char *const gpu_models[] = { "v2-lite-cut", "qwen3-30b-cut" }, *const cpu_models[] = { "demo" };
    const cli_list *named = &p->settings->models;
    int on_gpu = p->settings->backend == (int32_t)FP8FLOW_CUDA;
    const char *const *names = named->count > 0 ? named->items : on_gpu ? gpu_models : cpu_models;
    int64_t count = named->count > 0 ? named->count : on_gpu ? 2 : 1;
    int code = describe(p);
    for (int64_t i = 0; code == CLI_DONE && i < count; i++) code = run_model(p, train_model_find(names[i]));
    return code == CLI_DONE && p->num_failed > 0 ? CLI_FAILED : code;
}

/* ---- Command -------------------------------------------------------------------------------- */

static int check_models(const cli_list *models)
{
    char quoted[CLI_QUOTE_BYTES];
    for (int64_t i = 0; i < models->count; i++)
        if (!train_model_find(models->items[i]))
            return cli_fail_usage(&cli_bench_train, "--models: %s is none of " TRAIN_MODEL_NAMES,
                                  cli_quote(quoted, models->items[i]));
    return CLI_DONE;
}

/* Where nothing is said: 8 passes of 8192 tokens on a GPU, little on the CPU. */
static int choose_batch(train_plan *p)
{
    static const train_batch on_gpu = { 16, 2, 4096 }, on_cpu = { 4, 2, 256 };
    const train_batch *named = &p->settings->batch;
    train_batch *batch = &p->bench.batch;
    *batch = p->settings->backend == (int32_t)FP8FLOW_CUDA ? on_gpu : on_cpu;
    if (named->batch > 0) batch->batch = named->batch;
    if (named->micro_batch > 0) batch->micro_batch = named->micro_batch;
    if (named->sequence_length > 0) batch->sequence_length = named->sequence_length;
    if (batch->batch % batch->micro_batch == 0) return CLI_DONE;
    return cli_fail_usage(&cli_bench_train, "--batch %lld is not a multiple of --micro-batch %lld",
                          (long long)batch->batch, (long long)batch->micro_batch);
}

static int run(int argc, char **argv)
{
    static const char *const no_more[] = { NULL };
    static const int32_t usual_modes[VARIANTS_NUM_MODES] = { 0, 1, 1 };
    settings s = { .repeats = 5, .backend = FP8FLOW_CPU };
    int code = cli_parse(&cli_bench_train, argc, argv, &s);
    if (code != CLI_GO_ON) return code;
    train_plan p = { .settings = &s, .bench = { .warm_ups = WARM_UPS, .repeats = s.repeats } };
    if (s.num_threads == 0) s.num_threads = cli_num_processors();
    code = check_models(&s.models);
    if (code == CLI_DONE) code = cli_choose_backend(&cli_bench_train, s.device, 1, &s.backend);
    if (code == CLI_DONE) code = choose_batch(&p);
    if (code == CLI_DONE) code = variants_choose_recipes(&p.variants, &cli_bench_train, &s.recipes, no_more);
    if (code == CLI_DONE) code = variants_choose_modes(&p.variants, &cli_bench_train, &s.modes, usual_modes);
    if (code != CLI_DONE) return code;
    if (s.is_json) p.bench.records = json_array();
    watch_signals(&p.files);
    code = run_models(&p);
    if (p.bench.records && json_array_size(p.bench.records) > 0) {
        json_dumpf(p.bench.records, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        putchar('\n');
    }
    json_decref(p.bench.records);
    return code;
}

const cli_command cli_bench_train = {
    .name = "bench train",
    .summary = "Measure steps of whole models in every recipe: tokens per second, MFU, memory",
    .options = train_options,
    .num_options = sizeof train_options / sizeof *train_options,
    .example = "fp8flow bench train --models v2-lite-cut --recipes bf16,blockwise,flow",
    .run = run,
};
