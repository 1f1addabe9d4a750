/* cmd_bench_layer.c - `fp8flow bench layer`: one MoE layer, forward and backward, in every recipe and checkpointing
 * mode. See bench_layer.h. */
#include "bench_layer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_variants.h"
#include "device.h"
#include "train_loop.h"

/* One rank of 32 of DeepSeek-V3 sees as many rows as tokens in a batch; V2-Lite with every expert on one rank, once
 * with the rows of a large batch and once with the routing of a small one; Qwen3-30B-A3B. Peers: docs/SPEED.md. */
static const layer_bench_shape shapes[] = {
    { "v3-ep32",
      { .hidden = 7168, .width = 2048, .experts = 8, .top_k = 1, .tokens = 33024 },
      { .bf16_ms = 15.3, .paper_ms = 10.5 } },
    { "v2-lite",
      { .hidden = 2048, .width = 1408, .experts = 64, .top_k = 1, .tokens = 47104 },
      { .bf16_ms = 5.2, .paper_ms = 4.8 } },
    { "v2-lite-k6", { .hidden = 2048, .width = 1408, .experts = 64, .top_k = 6, .tokens = 8192 }, { 0, 0 } },
    { "qwen3-30b", { .hidden = 2048, .width = 768, .experts = 128, .top_k = 8, .tokens = 8192 }, { 0, 0 } },
    { "demo", { .hidden = 512, .width = 256, .experts = 16, .top_k = 2, .tokens = 2048 }, { 0, 0 } },
};
enum { NUM_SHAPES = sizeof shapes / sizeof *shapes, DEMO = NUM_SHAPES - 1 };

enum { DETAIL_MAIN, DETAIL_ALL, DETAIL_NONE };

typedef struct {
    cli_list shapes, recipes, modes;
    layer_shape size; /* 0: as the shape has it */
    int64_t repeats, num_threads;
    double seconds;
    int32_t device, backend, detail, is_json;
} settings;

static const cli_option options[] = {
    CLI_OPTION_NAMES(settings, shapes, "shapes", "NAMES",
                     "v3-ep32, v2-lite, v2-lite-k6, qwen3-30b (these four on a GPU if none is named), demo (the CPU)"),
    CLI_OPTION_NAMES(settings, recipes, "recipes", "NAMES",
                     "recipes; all, flow+unfused and flow+col128 if none is named"),
    CLI_OPTION_NAMES(settings, modes, "checkpointing", "NAMES", "none, moe_expert, full; all if none is named"),
    CLI_OPTION_HEADING("Another shape"),
    CLI_OPTION_INTEGER(settings, size.experts, "experts", "E", 0, 4096, "experts; 0: as the shape has it, below too"),
    CLI_OPTION_INTEGER(settings, size.top_k, "top-k", "K", 0, 4096, "experts of each token"),
    CLI_OPTION_INTEGER(settings, size.tokens, "tokens", "T", 0, 1000000, "tokens"),
    CLI_OPTION_INTEGER(settings, size.hidden, "hidden", "H", 0, 65536, "hidden size, a multiple of 16"),
    CLI_OPTION_INTEGER(settings, size.width, "width", "F", 0, 65536, "width of an expert, a multiple of 16"),
    CLI_OPTION_HEADING("Measuring"),
    CLI_OPTION_DEVICE(settings, device),
    CLI_OPTION_INTEGER(settings, repeats, "repeat", "N", 1, TIMING_MAX_REPEATS, "measurements of each variant"),
    CLI_OPTION_REAL(settings, seconds, "seconds", "S", 0, 60,
                    "GPU: length of the loop of each variant, half of which is timed; 0: no loops"),
    CLI_OPTION_INTEGER(settings, num_threads, "threads", "N", 0, 1024, "threads; 0: all processors of this process"),
    CLI_OPTION_CHOICE(settings, detail, "kernels", "main|all|none",
                      "operator by operator: bf16, blockwise and flow in the first mode; every variant; none"),
    CLI_OPTION_FLAG(settings, is_json, "json", "print a JSON list of records instead of the tables"),
};

/* ---- What to measure ------------------------------------------------------------------------ */

typedef struct {
    const settings *settings;
    bench *b;
    gpu_bench *g;
    layer_bench_shape shape; /* the one that is being measured */
    bench_variants variants;
    int64_t num_failed;
} layer_plan;

/* -1: there is none of this name. */
static int find_shape(const char *name)
{
    for (int i = 0; i < NUM_SHAPES; i++)
        if (strcmp(shapes[i].name, name) == 0) return i;
    return -1;
}

static int check_shapes(const settings *s)
{
    char quoted[CLI_QUOTE_BYTES];
    for (int64_t i = 0; i < s->shapes.count; i++)
        if (find_shape(s->shapes.items[i]) < 0)
            return cli_fail_usage(&cli_bench_layer, "--shapes: there is no shape %s",
                                  cli_quote(quoted, s->shapes.items[i]));
    return CLI_DONE;
}

/* Peers were measured at the shape as it is. */
static layer_bench_shape resized(const layer_bench_shape *shape, const layer_shape *size)
{
    layer_bench_shape changed = *shape;
    const int64_t wanted[] = { size->experts, size->top_k, size->tokens, size->hidden, size->width };
    int64_t *const fields[] = { &changed.size.experts, &changed.size.top_k, &changed.size.tokens, &changed.size.hidden,
                                &changed.size.width };
    for (int i = 0; i < 5; i++) {
        if (wanted[i] == 0 || wanted[i] == *fields[i]) continue;
        *fields[i] = wanted[i];
        changed.peers = (layer_peers){ 0 };
    }
    return changed;
}

/* ---- Measuring ------------------------------------------------------------------------------ */

static layer_detail detail_of(const layer_plan *p, const layer_result *r, int32_t is_first_mode)
{
    static const char *const main_recipes[] = { "bf16", "blockwise", "flow" };
    if (p->settings->detail == DETAIL_ALL) return LAYER_CALLS;
    if (p->settings->detail == DETAIL_NONE || !is_first_mode) return LAYER_NO_CALLS;
    return variants_find(main_recipes, 3, r->recipe) >= 0 ? LAYER_CALLS : LAYER_NO_CALLS;
}

/* A variant for which memory is short does not keep the others from being measured. */
static fp8flow_status run_variant(layer_plan *p, layer_bench *l, layer_result *result, int32_t is_first_mode)
{
    char name[96];
    fp8flow_status status = layer_measure(l, result);
    if (status != FP8FLOW_OK) {
        snprintf(name, sizeof name, "layer %s", result->recipe);
        bench_fail(name, l->shape->name, status);
        p->num_failed++;
        return status == FP8FLOW_ENOMEM ? FP8FLOW_OK : status;
    }
    layer_base own = { result->total.median, 1e-3 * result->loop.us };
    if (strcmp(result->recipe, "bf16") == 0) l->bf16 = own;
    if (strcmp(result->recipe, "blockwise") == 0) l->blockwise = own;
    layer_emit(l, result, detail_of(p, result, is_first_mode));
    return FP8FLOW_OK;
}

static fp8flow_status run_variants(layer_plan *p, layer_bench *l)
{
    layer_result *result = malloc(sizeof *result);
    fp8flow_status status = result ? FP8FLOW_OK : FP8FLOW_ENOMEM;
    int32_t is_first_mode = 1;
    for (int mode = 0; mode < VARIANTS_NUM_MODES; mode++) {
        if (!p->variants.has_mode[mode]) continue;
        l->bf16 = l->blockwise = (layer_base){ 0 };
        for (int64_t i = 0; status == FP8FLOW_OK && i < p->variants.num_recipes && !cli_output_gone(); i++) {
            *result = (layer_result){ .recipe = p->variants.recipes[i], .mode = (fp8flow_checkpointing)mode };
            status = run_variant(p, l, result, is_first_mode);
        }
        is_first_mode = 0;
    }
    free(result);
    return status;
}

static fp8flow_status run_rank(fp8flow_comm *comm, void *user)
{
    layer_plan *p = user;
    layer_bench l = { .b = p->b, .g = p->g, .shape = &p->shape, .comm = comm };
    fp8flow_status status = layer_data_create(&l.data, p->b->context, &p->shape.size, comm);
    if (status == FP8FLOW_OK) status = run_variants(p, &l);
    layer_data_destroy(&l.data);
    return status;
}

static int run_shape(layer_plan *p, int index)
{
    p->shape = resized(&shapes[index], &p->settings->size);
    int64_t failed = p->num_failed;
    fp8flow_status status = fp8flow_run_ranks(1, run_rank, p);
    if (status == FP8FLOW_OK) return CLI_DONE;
    if (p->num_failed == failed) bench_fail("layer", p->shape.name, status);
    return CLI_FAILED;
}

static int run_shapes(layer_plan *p)
{
    const cli_list *named = &p->settings->shapes;
    int first = p->g ? 0 : DEMO, last = p->g ? DEMO : NUM_SHAPES, code = CLI_DONE;
    for (int64_t i = 0; code == CLI_DONE && i < named->count; i++) code = run_shape(p, find_shape(named->items[i]));
    for (int i = first; code == CLI_DONE && named->count == 0 && i < last; i++) code = run_shape(p, i);
    return code == CLI_DONE && p->num_failed > 0 ? CLI_FAILED : code;
}

/* ---- Command -------------------------------------------------------------------------------- */

static int run_on_cpu(layer_plan *p)
{
    fp8flow_context_options context = { .num_threads = p->b->num_threads };
    fp8flow_status status = fp8flow_context_create(&context, &p->b->context);
    return status == FP8FLOW_OK ? run_shapes(p) : cli_fail_status(&cli_bench_layer, status);
}

static int run_on_gpu(layer_plan *p)
{
    gpu_bench g = { .b = p->b, .seconds = p->settings->seconds };
    p->g = &g;
    int code = gpu_open(&g);
    if (code == CLI_DONE) code = run_shapes(p);
    gpu_close(&g);
    p->g = NULL;
    return code;
}

static int run(int argc, char **argv)
{
    static const char *const ablations[] = { "flow+unfused", "flow+col128", NULL };
    static const int32_t all_modes[VARIANTS_NUM_MODES] = { 1, 1, 1 };
    settings s = { .repeats = 11, .seconds = 2, .backend = FP8FLOW_CPU };
    int code = cli_parse(&cli_bench_layer, argc, argv, &s);
    if (code != CLI_GO_ON) return code;
    bench b = { .filter = "", .repeats = s.repeats };
    layer_plan p = { .settings = &s, .b = &b };
    b.num_threads = s.num_threads > 0 ? (int32_t)s.num_threads : cli_num_processors();
    code = check_shapes(&s);
    if (code == CLI_DONE) code = cli_choose_backend(&cli_bench_layer, s.device, 1, &s.backend);
    if (code == CLI_DONE) code = variants_choose_recipes(&p.variants, &cli_bench_layer, &s.recipes, ablations);
    if (code == CLI_DONE) code = variants_choose_modes(&p.variants, &cli_bench_layer, &s.modes, all_modes);
    if (code != CLI_DONE) return code;
    if (s.is_json) b.records = json_array();
    code = s.backend == (int32_t)FP8FLOW_CUDA ? run_on_gpu(&p) : run_on_cpu(&p);
    if (b.records && b.num_records > 0) {
        json_dumpf(b.records, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        putchar('\n');
    }
    fp8flow_context_destroy(b.context);
    json_decref(b.records);
    return code;
}

const cli_command cli_bench_layer = {
    .name = "bench layer",
    .summary = "Measure one MoE layer in every recipe and checkpointing mode, forward and backward",
    .options = options,
    .num_options = sizeof options / sizeof *options,
    .example = "fp8flow bench layer --recipes bf16,blockwise,flow --checkpointing none --device cuda",
    .run = run,
};
