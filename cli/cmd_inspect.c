/* cmd_inspect.c - `fp8flow inspect`: the dataflow of a recipe, or the numerics of a training step. */
#include <stdio.h>
#include <string.h>

#include "inspect.h"

typedef struct {
    cli_training training;
    const char *recipe;
    layer_shape shape;
    int32_t is_json, wants_numerics, is_per_layer;
} inspect_settings;

static const cli_option inspect_options[] = {
    CLI_OPTION_STRING(inspect_settings, recipe, "recipe", "NAME", "recipe, or \"all\""),
    CLI_OPTION_FLAG(inspect_settings, is_json, "json", "print JSON: one object, or a list of them with --recipe all"),
    CLI_OPTION_INTEGER(inspect_settings, training.ranks, "ranks", "N", 1, 256, "ranks of the layer"),
    CLI_OPTION_INTEGER(inspect_settings, training.threads, "threads", "N", 0, 4096,
                       "processor threads per rank; 0: all processors, shared by the ranks"),
    CLI_OPTION_DEVICE(inspect_settings, training.device),
    CLI_OPTION_CHOICE(inspect_settings, training.backend, "backend", CLI_BACKEND_NAMES,
                      "operators on the CPU; reference: plain scalar code, slow"),

    CLI_OPTION_HEADING("Dataflow: one layer, forward and backward, on random numbers"),
    CLI_OPTION_INTEGER(inspect_settings, shape.hidden, "hidden", "H", 16, 65536, "hidden size, a multiple of 16"),
    CLI_OPTION_INTEGER(inspect_settings, shape.width, "width", "F", 16, 65536, "width of an expert, a multiple of 16"),
    CLI_OPTION_INTEGER(inspect_settings, shape.experts, "experts", "E", 1, 4096, "experts"),
    CLI_OPTION_INTEGER(inspect_settings, shape.top_k, "top-k", "K", 1, 4096, "experts of each token"),
    CLI_OPTION_INTEGER(inspect_settings, shape.tokens, "tokens", "T", 0, 1000000, "tokens of each rank"),

    CLI_OPTION_HEADING("Numerics: a training step"),
    CLI_OPTION_FLAG(inspect_settings, wants_numerics, "numerics", "train on --data and show what quantisation does"),
    CLI_OPTION_FLAG(inspect_settings, is_per_layer, "per-layer", "one row per layer and tensor"),
    CLI_OPTION_STRING(inspect_settings, training.train.model, "model", "NAME",
                      "built-in model, or path of a config.json (Qwen3-MoE form)"),
    CLI_OPTION_LIST(inspect_settings, training.data, "data", "PATH", 0, "file or folder of raw text"),
    CLI_OPTION_INTEGER(inspect_settings, training.train.steps, "steps", "N", 1, CLI_MOST_STEPS,
                       "steps to train; the last one is shown"),
    CLI_OPTION_INTEGER(inspect_settings, training.train.batch, "batch", "N", 1, CLI_MOST_TOKENS, "sequences per step"),
    CLI_OPTION_INTEGER(inspect_settings, training.train.micro_batch, "micro-batch", "N", 1, CLI_MOST_TOKENS,
                       "sequences per forward pass"),
    CLI_OPTION_INTEGER(inspect_settings, training.train.sequence_length, "sequence-length", "N", 2, CLI_MOST_TOKENS,
                       "tokens per sequence"),
    CLI_OPTION_STRING(inspect_settings, training.train.resume, "resume", "DIR", "start from a checkpoint"),
    CLI_OPTION_INTEGER(inspect_settings, training.train.seed, "seed", "N", 0, INT64_MAX, "seed of the weights"),
};

static fp8flow_status inspect_recipe(const inspect_settings *settings, const char *recipe, const inspect_output *output)
{
    if (settings->wants_numerics)
        return inspect_numerics(&settings->training, recipe,
                                settings->is_per_layer ? INSPECT_EACH_LAYER : INSPECT_MERGE_LAYERS, output);
    inspect_layer layer = { .recipe = recipe,
                            .shape = settings->shape,
                            .num_ranks = (int32_t)settings->training.ranks };
    layer.context = (fp8flow_context_options){ .backend = (fp8flow_backend)settings->training.backend,
                                               .num_threads = (int32_t)cli_training_threads(&settings->training) };
    return inspect_dataflow(&layer, output);
}

static int inspect_all(const inspect_settings *settings, const inspect_output *output)
{
    int is_all = strcmp(settings->recipe, "all") == 0;
    const char *recipe = is_all ? fp8flow_recipe_name(0) : settings->recipe;
    for (int64_t i = 1; recipe && !cli_output_gone(); i++) {
        fp8flow_status status = inspect_recipe(settings, recipe, output);
        if (status != FP8FLOW_OK) return cli_fail_status(&cli_inspect, status);
        recipe = is_all ? fp8flow_recipe_name(i) : NULL;
    }
    return CLI_DONE;
}

/* One recipe: its object. All: the list. */
static void print_json(const json_t *records, const char *recipe)
{
    json_dumpf(strcmp(recipe, "all") == 0 ? records : json_array_get(records, 0), stdout,
               JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    putchar('\n');
}

static int run_inspect(int argc, char **argv)
{
    static inspect_settings settings = {
        .recipe = "flow", .shape = { .hidden = 512, .width = 256, .experts = 16, .top_k = 2, .tokens = 1024 }
    };
    cli_training_init(&settings.training);
    settings.training.ranks = 1;
    settings.training.train.steps = 1;
    settings.training.train.warmup_steps = 0;
    int code = cli_parse(&cli_inspect, argc, argv, &settings);
    if (code != CLI_GO_ON) return code;
    code = cli_training_finish(&cli_inspect, &settings.training);
    if (code != CLI_DONE) return code;
    if (settings.wants_numerics && settings.training.data.count == 0)
        return cli_fail_usage(&cli_inspect, "--numerics needs --data");
    if (settings.wants_numerics && settings.training.ranks > 1)
        return cli_fail_usage(&cli_inspect, "--numerics runs on one rank, got --ranks %lld",
                              (long long)settings.training.ranks);
    if (strcmp(settings.recipe, "all") != 0) {
        fp8flow_status status = fp8flow_recipe_check(settings.recipe);
        if (status != FP8FLOW_OK) return cli_fail_status(&cli_inspect, status);
    }
    inspect_output output = { .records = settings.is_json ? json_array() : NULL };
    cli_device_text(output.device, settings.training.backend, cli_training_threads(&settings.training));
    code = inspect_all(&settings, &output);
    if (code == CLI_DONE && settings.is_json) print_json(output.records, settings.recipe);
    json_decref(output.records);
    return code;
}

const cli_command cli_inspect = {
    .name = "inspect",
    .summary = "Show the dataflow of a recipe edge by edge, or the numerics of a training step",
    .options = inspect_options,
    .num_options = sizeof inspect_options / sizeof *inspect_options,
    .example = "fp8flow inspect --recipe flow --hidden 512 --width 256 --experts 16 --tokens 1024",
    .run = run_inspect,
};
