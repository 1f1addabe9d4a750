/* bench_layer_measure.c - times of one variant of the layer. See bench_layer.h.
 *
 * Three measurements: forward and backward, with a cold cache and events around both; the same with events around every
 * operator (their own cost, seen where nothing lies between two of them, is taken off); and, on a GPU, a loop without
 * pauses.
 */
#include "bench_layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WARM_UPS = 2, REPLAY_MILLISECONDS = 20 };

/* Events: around forward and backward; two with nothing between them. */
enum { FIRST, MIDDLE, LAST, PAUSE_START, PAUSE_STOP, NUM_EVENTS };

typedef struct {
    layer_bench *l;
    fp8flow_context *context;
    fp8flow_moe *moe;
    fp8flow_trace *trace; /* NULL: no events around operators */
    fp8flow_event *events[NUM_EVENTS];
    int64_t num_calls;
    double *samples; /* [NUM_SERIES + LAYER_MAX_CALLS][repeats] */
} layer_run;

/* Series of samples: one for each call follows. */
enum { FORWARD, BACKWARD, TOTAL, PAUSE, NUM_SERIES };

static double *series(const layer_run *r, int64_t index)
{
    return r->samples + index * r->l->b->repeats;
}

/* ---- One pass ------------------------------------------------------------------------------- */

static fp8flow_status mark(layer_run *r, int event)
{
    return fp8flow_event_record(r->context, r->events[event]);
}

static fp8flow_status run_marked(layer_run *r)
{
    layer_data *data = &r->l->data;
    fp8flow_status status = r->l->g ? gpu_flush(r->l->g) : FP8FLOW_OK;
    if (status == FP8FLOW_OK) status = mark(r, FIRST);
    if (status == FP8FLOW_OK) status = fp8flow_moe_forward(r->moe, &data->x, &data->y);
    if (status == FP8FLOW_OK) status = mark(r, MIDDLE);
    if (status == FP8FLOW_OK)
        status = fp8flow_moe_backward(r->moe, &data->x, &data->dy, 1.0f, &data->gradients, &data->dx);
    if (status == FP8FLOW_OK) status = mark(r, LAST);
    return status;
}

/* Tracing begins behind the flush, which is an operator too. */
static fp8flow_status run_traced(layer_run *r)
{
    fp8flow_status status = r->l->g ? gpu_flush(r->l->g) : FP8FLOW_OK;
    if (status == FP8FLOW_OK) status = fp8flow_trace_begin(r->context, r->trace);
    if (status != FP8FLOW_OK) return status;
    status = layer_step(r->moe, &r->l->data);
    fp8flow_status ended = fp8flow_trace_end(r->context, &r->num_calls);
    if (status == FP8FLOW_OK) status = ended;
    if (status == FP8FLOW_OK) status = mark(r, PAUSE_START);
    if (status == FP8FLOW_OK) status = mark(r, PAUSE_STOP);
    return status;
}

static fp8flow_status run_plain(layer_run *r)
{
    return layer_step(r->moe, &r->l->data);
}

typedef fp8flow_status (*pass)(layer_run *r);

/* ---- Replays -------------------------------------------------------------------------------- */

/* The first run loads the kernels, and what fails in them fails there. CPU: there is no graph. */
static fp8flow_status record_passes(layer_run *r, pass run, int64_t runs, fp8flow_graph **graph)
{
    fp8flow_status status = run(r);
    if (status == FP8FLOW_OK) status = fp8flow_synchronize(r->context);
    if (status != FP8FLOW_OK || !r->l->g) return status;
    status = fp8flow_graph_begin(r->context);
    if (status != FP8FLOW_OK) return status;
    for (int64_t i = 0; status == FP8FLOW_OK && i < runs; i++) status = run(r);
    fp8flow_status ended = fp8flow_graph_end(r->context, graph);
    return status == FP8FLOW_OK ? ended : status;
}

/* Events of a graph count as recorded when the replay reaches them: synchronize first, then ask for the time. */
static fp8flow_status replay(layer_run *r, pass run, fp8flow_graph *graph)
{
    fp8flow_status status = graph ? fp8flow_graph_launch(r->context, graph) : run(r);
    return status == FP8FLOW_OK ? fp8flow_synchronize(r->context) : status;
}

static fp8flow_status elapsed(layer_run *r, int start, int stop, double *milliseconds)
{
    return fp8flow_event_elapsed(r->context, r->events[start], r->events[stop], milliseconds);
}

typedef fp8flow_status (*reader)(layer_run *r, int64_t sample);

static fp8flow_status measure_pass(layer_run *r, pass run, reader read)
{
    fp8flow_graph *graph = NULL;
    fp8flow_status status = record_passes(r, run, 1, &graph);
    for (int64_t i = -WARM_UPS; status == FP8FLOW_OK && i < r->l->b->repeats; i++) {
        status = replay(r, run, graph);
        if (status == FP8FLOW_OK && i >= 0) status = read(r, i);
    }
    fp8flow_graph_destroy(r->context, graph);
    return status;
}

/* ---- Times ---------------------------------------------------------------------------------- */

static fp8flow_status read_marks(layer_run *r, int64_t sample)
{
    fp8flow_status status = elapsed(r, FIRST, MIDDLE, series(r, FORWARD) + sample);
    if (status == FP8FLOW_OK) status = elapsed(r, MIDDLE, LAST, series(r, BACKWARD) + sample);
    if (status == FP8FLOW_OK) status = elapsed(r, FIRST, LAST, series(r, TOTAL) + sample);
    return status;
}

static fp8flow_status read_calls(layer_run *r, int64_t sample)
{
    fp8flow_status status = elapsed(r, PAUSE_START, PAUSE_STOP, series(r, PAUSE) + sample);
    for (int64_t i = 0; status == FP8FLOW_OK && i < r->num_calls; i++) {
        fp8flow_trace_record record = { .op = NULL };
        status = fp8flow_trace_get(r->context, r->trace, i, -1, &record);
        if (status == FP8FLOW_OK) series(r, NUM_SERIES + i)[sample] = record.milliseconds;
    }
    return status;
}

/* The layer has no shared expert: products and sums that know no experts are the router's. */
static int32_t is_routing(const fp8flow_trace_record *record)
{
    if (strncmp(record->op, "router", strlen("router")) == 0) return 1;
    return record->groups == 0 && (strcmp(record->op, "gemm") == 0 || strncmp(record->op, "add", strlen("add")) == 0);
}

static fp8flow_status evaluate_calls(layer_run *r, layer_result *result)
{
    const layer_shape *shape = &r->l->shape->size;
    result->num_calls = r->num_calls;
    result->event_ms = r->l->g ? timing_summarize(series(r, PAUSE), r->l->b->repeats).median : 0;
    for (int64_t i = 0; i < r->num_calls; i++) {
        bench_call *call = &result->calls[i];
        fp8flow_status status = fp8flow_trace_get(r->context, r->trace, i, shape->tokens * shape->top_k, &call->record);
        if (status != FP8FLOW_OK) return status;
        double median = timing_summarize(series(r, NUM_SERIES + i), r->l->b->repeats).median;
        call->record.milliseconds = fmax(median - result->event_ms, 0);
        call->bound_ms = r->l->g ? bench_call_bound(&call->record, r->l->g->copy_tb_per_s) : 0;
        call->count = 1;
        result->sum_ms += call->record.milliseconds;
        if (is_routing(&call->record)) result->router_ms += call->record.milliseconds;
    }
    return FP8FLOW_OK;
}

static fp8flow_status measure_loop(layer_run *r, layer_result *result)
{
    gpu_bench *g = r->l->g;
    fp8flow_graph *graph = NULL;
    if (!g || g->seconds <= 0) return FP8FLOW_OK;
    int64_t runs = (int64_t)fmax(REPLAY_MILLISECONDS / result->total.median, 1);
    fp8flow_status status = record_passes(r, run_plain, runs, &graph);
    if (status == FP8FLOW_OK) status = gpu_replay(g, graph, runs, g->seconds, &result->loop);
    fp8flow_graph_destroy(r->context, graph);
    return status;
}

static fp8flow_status measure_all(layer_run *r, layer_result *result)
{
    int64_t repeats = r->l->b->repeats;
    fp8flow_status status = measure_pass(r, run_marked, read_marks);
    if (status != FP8FLOW_OK) return status;
    result->forward = timing_summarize(series(r, FORWARD), repeats);
    result->backward = timing_summarize(series(r, BACKWARD), repeats);
    result->total = timing_summarize(series(r, TOTAL), repeats);
    status = fp8flow_trace_create(r->context, LAYER_MAX_CALLS, &r->trace);
    if (status == FP8FLOW_OK) status = measure_pass(r, run_traced, read_calls);
    if (status == FP8FLOW_OK) status = evaluate_calls(r, result);
    if (status == FP8FLOW_OK) status = measure_loop(r, result);
    if (status == FP8FLOW_OK) status = fp8flow_moe_get_report(r->moe, &result->report);
    return status;
}

/* ---- One variant ---------------------------------------------------------------------------- */

fp8flow_status layer_measure(layer_bench *l, layer_result *result)
{
    layer_run r = { .l = l, .context = l->b->context };
    r.samples = malloc(sizeof *r.samples * (size_t)((NUM_SERIES + LAYER_MAX_CALLS) * l->b->repeats));
    fp8flow_status status = r.samples ? FP8FLOW_OK : FP8FLOW_ENOMEM;
    for (int i = 0; status == FP8FLOW_OK && i < NUM_EVENTS; i++) status = fp8flow_event_create(r.context, &r.events[i]);
    if (status == FP8FLOW_OK) status = layer_open(&l->data, l->comm, result->recipe, result->mode, &r.moe);
    if (status == FP8FLOW_OK) status = measure_all(&r, result);
    fp8flow_trace_destroy(r.context, r.trace);
    fp8flow_moe_destroy(r.moe);
    for (int i = 0; i < NUM_EVENTS; i++) fp8flow_event_destroy(r.context, r.events[i]);
    free(r.samples);
    return status;
}

double layer_flops(const layer_shape *shape)
{
    return 18.0 * (double)shape->hidden * (double)shape->width * (double)(shape->tokens * shape->top_k);
}
