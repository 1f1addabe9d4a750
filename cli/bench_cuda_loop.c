/* bench_cuda_loop.c - a loop without pauses, for what a GPU sustains: its clock falls until its power is allowed.
 *
 * The loop replays a graph of several runs. The host launches one replay ahead of the GPU, waits for the end of the one
 * before, and reads clock and power while the GPU works on.
 */
#include "bench_cuda.h"

#include <math.h>

enum { REPLAY_MICROSECONDS = 20000, MOST_RUNS = 500 };

/* The driver's power is a mean of so many seconds. */
static const double POWER_SECONDS = 1.0;

static fp8flow_status record_runs(fp8flow_context *c, gpu_run run, gpu_fixture *f, int64_t runs, fp8flow_graph **graph)
{
    fp8flow_status status = fp8flow_graph_begin(c);
    if (status != FP8FLOW_OK) return status;
    for (int64_t i = 0; status == FP8FLOW_OK && i < runs; i++) status = run(f);
    fp8flow_status ended = fp8flow_graph_end(c, graph);
    return status == FP8FLOW_OK ? ended : status;
}

/* Replay for `seconds`, at least twice. us: of one replay. */
static fp8flow_status replay_for(gpu_bench *g, fp8flow_graph *graph, double seconds, gpu_sustained *result)
{
    fp8flow_context *c = g->b->context;
    fp8flow_event *const stops[] = { g->stop, g->other_stop };
    double end = cli_seconds() + seconds, milliseconds = 0, megahertz = 0;
    int64_t launched = 0;
    fp8flow_status status = fp8flow_event_record(c, g->start);
    while (status == FP8FLOW_OK && (launched < 2 || cli_seconds() < end)) {
        status = fp8flow_graph_launch(c, graph);
        if (status == FP8FLOW_OK) status = fp8flow_event_record(c, stops[launched % 2]);
        if (status == FP8FLOW_OK && launched > 0)
            status = fp8flow_event_elapsed(c, g->start, stops[(launched - 1) % 2], &milliseconds);
        megahertz += nvml_megahertz(&g->meter);
        launched++;
    }
    result->megahertz = megahertz / (double)launched;
    result->watt = seconds >= POWER_SECONDS ? nvml_watt(&g->meter) : 0;
    if (status == FP8FLOW_OK) status = fp8flow_event_elapsed(c, g->start, stops[(launched - 1) % 2], &milliseconds);
    result->us = 1e3 * milliseconds / (double)launched;
    return status;
}

fp8flow_status gpu_replay(gpu_bench *g, fp8flow_graph *graph, int64_t runs, double seconds, gpu_sustained *result)
{
    fp8flow_status status = replay_for(g, graph, seconds / 2, result);
    if (status == FP8FLOW_OK) status = replay_for(g, graph, seconds / 2, result);
    result->us /= (double)runs;
    return status;
}

fp8flow_status gpu_sustain(gpu_bench *g, gpu_run run, gpu_fixture *f, double seconds, double us, gpu_sustained *result)
{
    fp8flow_context *c = g->b->context;
    fp8flow_graph *graph = NULL;
    int64_t runs = (int64_t)fmin(fmax(REPLAY_MICROSECONDS / us, 1), MOST_RUNS);
    fp8flow_status status = record_runs(c, run, f, runs, &graph);
    if (status == FP8FLOW_OK) status = gpu_replay(g, graph, runs, seconds, result);
    fp8flow_graph_destroy(c, graph);
    return status;
}
