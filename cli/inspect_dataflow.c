/* inspect_dataflow.c - the dataflow of a layer as it ran, edge by edge. All figures are the library's counts. */
#include <stdio.h>
#include <string.h>

#include "inspect.h"

const char *inspect_dtype_name(fp8flow_dtype dtype)
{
    static const char *const names[] = { "f32", "bf16", "e4m3", "e5m2" };
    return (unsigned)dtype < sizeof names / sizeof *names ? names[dtype] : "?";
}

const char *inspect_scaling_name(fp8flow_scaling scaling)
{
    static const char *const names[] = { "-", "row128", "tile128", "col128", "tensor" };
    return (unsigned)scaling < sizeof names / sizeof *names ? names[scaling] : "?";
}

const char *inspect_layout_name(fp8flow_layout layout)
{
    return layout == FP8FLOW_ROWS ? "rows" : "columns";
}

typedef struct {
    const inspect_layer *layer;
    const inspect_output *output;
} layer_view;

/* ---- Text ----------------------------------------------------------------------------------- */

static void print_edges(const fp8flow_moe *moe)
{
    fp8flow_edge edge;
    const char *direction = "";
    printf("%-20s %-16s %-20s %-5s %-8s %-8s %15s %11s %5s\n", "edge", "written by", "how", "type", "scaling", "layout",
           "shape", "bytes", "casts");
    for (int64_t i = 0; fp8flow_moe_get_edge(moe, i, &edge) == FP8FLOW_OK; i++) {
        char shape[48];
        if (strcmp(direction, edge.direction) != 0) printf("%s\n", direction = edge.direction);
        snprintf(shape, sizeof shape, "%lld x %lld", (long long)edge.rows, (long long)edge.cols);
        printf("  %-18s %-16s %-20s %-5s %-8s %-8s %15s %11lld %5d\n", edge.name, edge.producer, edge.how,
               inspect_dtype_name(edge.dtype), inspect_scaling_name(edge.scaling), inspect_layout_name(edge.layout),
               shape, (long long)edge.bytes, edge.casts);
    }
}

static void print_saved(const fp8flow_moe *moe, int64_t total)
{
    fp8flow_saved_tensor saved;
    printf("\nkept from forward to backward: %lld bytes\n", (long long)total);
    for (int64_t i = 0; fp8flow_moe_get_saved(moe, i, &saved) == FP8FLOW_OK; i++)
        printf("  %-30s %13lld\n", saved.name, (long long)saved.bytes);
}

static void print_layer(const layer_view *view, const fp8flow_moe *moe, const fp8flow_moe_report *report)
{
    const inspect_layer *layer = view->layer;
    const layer_shape *s = &layer->shape;
    printf("device %s\nrecipe %s: hidden %lld, width %lld, %lld experts, top %lld, %lld tokens per rank, %d rank%s\n\n",
           view->output->device, layer->recipe, (long long)s->hidden, (long long)s->width, (long long)s->experts,
           (long long)s->top_k, (long long)s->tokens, layer->num_ranks, layer->num_ranks == 1 ? "" : "s");
    print_edges(moe);
    print_saved(moe, report->saved_bytes);
    double tokens = s->tokens > 0 ? (double)s->tokens : 1;
    printf("\n%-34s %lld, writing %lld tensors\n", "explicit casts", (long long)report->explicit_casts,
           (long long)report->cast_tensors);
    printf("%-34s %lld + %lld (%.0f per token)\n", "dispatch bytes, forward + backward",
           (long long)report->dispatch_bytes[0], (long long)report->dispatch_bytes[1],
           (double)(report->dispatch_bytes[0] + report->dispatch_bytes[1]) / tokens);
    printf("%-34s %lld + %lld (%.0f per token)\n", "combine bytes, forward + backward",
           (long long)report->combine_bytes[0], (long long)report->combine_bytes[1],
           (double)(report->combine_bytes[0] + report->combine_bytes[1]) / tokens);
    printf("%-34s %lld\n", "routing bytes", (long long)report->routing_bytes);
    printf("%-34s %lld received, %lld with padding\n", "rows", (long long)report->received_rows,
           (long long)report->padded_rows);
    printf("%-34s %lld\n", "peak bytes", (long long)report->peak_bytes);
    printf("%-34s %lld\n", "quantised weight bytes", (long long)report->weight_bytes);
    printf("%-34s %llu\n\n", "non-finite values", (unsigned long long)report->nonfinite);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *edges_array(const fp8flow_moe *moe)
{
    json_t *edges = json_array();
    fp8flow_edge edge;
    for (int64_t i = 0; fp8flow_moe_get_edge(moe, i, &edge) == FP8FLOW_OK; i++)
        json_array_append_new(edges, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:i, s:I}", "name",
                                               edge.name, "direction", edge.direction, "producer", edge.producer, "how",
                                               edge.how, "format", inspect_dtype_name(edge.dtype), "scaling",
                                               inspect_scaling_name(edge.scaling), "layout",
                                               inspect_layout_name(edge.layout), "rows", (json_int_t)edge.rows, "cols",
                                               (json_int_t)edge.cols, "bytes", (json_int_t)edge.bytes, "casts",
                                               (int)edge.casts, "nonfinite", (json_int_t)edge.nonfinite));
    return edges;
}

static json_t *saved_array(const fp8flow_moe *moe)
{
    json_t *list = json_array();
    fp8flow_saved_tensor saved;
    for (int64_t i = 0; fp8flow_moe_get_saved(moe, i, &saved) == FP8FLOW_OK; i++)
        json_array_append_new(list, json_pack("{s:s, s:I}", "name", saved.name, "bytes", (json_int_t)saved.bytes));
    return list;
}

static json_t *layer_object(const inspect_layer *layer, const fp8flow_moe *moe, const fp8flow_moe_report *r)
{
    const layer_shape *s = &layer->shape;
    json_t *shape = json_pack("{s:I, s:I, s:I, s:I, s:I, s:i}", "hidden", (json_int_t)s->hidden, "width",
                              (json_int_t)s->width, "experts", (json_int_t)s->experts, "top_k", (json_int_t)s->top_k,
                              "tokens", (json_int_t)s->tokens, "ranks", (int)layer->num_ranks);
    return json_pack("{s:s, s:o, s:I, s:I, s:[I,I], s:[I,I], s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "recipe",
                     layer->recipe, "shape", shape, "explicit_casts", (json_int_t)r->explicit_casts, "cast_tensors",
                     (json_int_t)r->cast_tensors, "dispatch_bytes", (json_int_t)r->dispatch_bytes[0],
                     (json_int_t)r->dispatch_bytes[1], "combine_bytes", (json_int_t)r->combine_bytes[0],
                     (json_int_t)r->combine_bytes[1], "routing_bytes", (json_int_t)r->routing_bytes, "received_rows",
                     (json_int_t)r->received_rows, "padded_rows", (json_int_t)r->padded_rows, "saved_bytes",
                     (json_int_t)r->saved_bytes, "peak_bytes", (json_int_t)r->peak_bytes, "weight_bytes",
                     (json_int_t)r->weight_bytes, "nonfinite", (json_int_t)r->nonfinite, "edges", edges_array(moe),
                     "saved", saved_array(moe));
}

/* ---- Running -------------------------------------------------------------------------------- */

static fp8flow_status show(const layer_view *view, const fp8flow_moe *moe)
{
    fp8flow_moe_report report;
    fp8flow_status status = fp8flow_moe_get_report(moe, &report);
    if (status != FP8FLOW_OK) return status;
    if (view->output->records) json_array_append_new(view->output->records, layer_object(view->layer, moe, &report));
    else print_layer(view, moe, &report);
    return FP8FLOW_OK;
}

static fp8flow_status run_rank(fp8flow_comm *comm, void *user)
{
    const layer_view *view = user;
    fp8flow_context *context = NULL;
    fp8flow_moe *moe = NULL;
    layer_data data = { .memory = NULL };
    fp8flow_context_options options = view->layer->context;
    if (options.backend == FP8FLOW_CUDA) options.device = cli_gpu_of_rank(fp8flow_comm_rank(comm));
    fp8flow_status status = fp8flow_context_create(&options, &context);
    if (status == FP8FLOW_OK) status = layer_data_create(&data, context, &view->layer->shape, comm);
    if (status == FP8FLOW_OK) status = layer_open(&data, comm, view->layer->recipe, FP8FLOW_KEEP_ALL, &moe);
    if (status == FP8FLOW_OK) status = layer_step(moe, &data);
    if (status == FP8FLOW_OK && fp8flow_comm_rank(comm) == 0) status = show(view, moe);
    fp8flow_moe_destroy(moe);
    layer_data_destroy(&data);
    fp8flow_context_destroy(context);
    return status;
}

fp8flow_status inspect_dataflow(const inspect_layer *layer, const inspect_output *output)
{
    layer_view view = { layer, output };
    return fp8flow_run_ranks(layer->num_ranks, run_rank, &view);
}
