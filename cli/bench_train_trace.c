/* bench_train_trace.c - operators of one step of `fp8flow bench train`. See bench_train.h. */
#include "bench_train.h"

#include <math.h>
#include <stdlib.h>

static fp8flow_status traced_step(fp8flow_context *c, fp8flow_trainer *trainer, fp8flow_trace *trace, int64_t *calls)
{
    fp8flow_step_metrics metrics;
    fp8flow_status status = fp8flow_trace_begin(c, trace);
    if (status != FP8FLOW_OK) return status;
    status = fp8flow_trainer_step(trainer, &metrics);
    fp8flow_status ended = fp8flow_trace_end(c, calls);
    return status == FP8FLOW_OK ? ended : status;
}

/* How many calls a step has. */
static fp8flow_status count_calls(fp8flow_context *c, fp8flow_trainer *trainer, int64_t *calls)
{
    fp8flow_trace *trace = NULL;
    fp8flow_status status = fp8flow_trace_create(c, 1, &trace);
    if (status == FP8FLOW_OK) status = traced_step(c, trainer, trace, calls);
    fp8flow_trace_destroy(c, trace);
    return status;
}

/* The shortest of several pairs with nothing between them: the host may be late between two records. */
static fp8flow_status measure_events(fp8flow_context *c, double *milliseconds)
{
    enum { PAIRS = 32 };
    fp8flow_event *events[2 * PAIRS] = { NULL };
    fp8flow_status status = FP8FLOW_OK;
    *milliseconds = INFINITY;
    for (int i = 0; status == FP8FLOW_OK && i < 2 * PAIRS; i++) status = fp8flow_event_create(c, &events[i]);
    for (int i = 0; status == FP8FLOW_OK && i < 2 * PAIRS; i++) status = fp8flow_event_record(c, events[i]);
    if (status == FP8FLOW_OK) status = fp8flow_synchronize(c);
    for (int i = 0; status == FP8FLOW_OK && i < 2 * PAIRS; i += 2) {
        double elapsed = 0;
        status = fp8flow_event_elapsed(c, events[i], events[i + 1], &elapsed);
        *milliseconds = fmin(*milliseconds, elapsed);
    }
    for (int i = 0; i < 2 * PAIRS; i++) fp8flow_event_destroy(c, events[i]);
    return status;
}

static fp8flow_status read_calls(const train_bench *b, fp8flow_context *c, const fp8flow_trace *trace, int64_t count,
                                 bench_calls *calls)
{
    int64_t rows = b->batch.micro_batch * b->batch.sequence_length * b->model->top_k;
    for (int64_t i = 0; i < count; i++) {
        bench_call call = { .count = 1 };
        fp8flow_status status = fp8flow_trace_get(c, trace, i, rows, &call.record);
        if (status != FP8FLOW_OK) return status;
        call.record.milliseconds = fmax(call.record.milliseconds - calls->event_ms, 0);
        if (b->device.memory_bytes) call.bound_ms = bench_call_bound(&call.record, TRAIN_COPY_TB_PER_S);
        bench_calls_add(calls, &call);
    }
    bench_calls_sort(calls);
    return FP8FLOW_OK;
}

fp8flow_status train_trace(const train_bench *b, fp8flow_context *c, fp8flow_trainer *trainer, train_result *result)
{
    bench_calls *calls = &result->calls;
    fp8flow_trace *trace = NULL;
    int64_t room = 0, count = 0;
    fp8flow_status status = count_calls(c, trainer, &room);
    if (status == FP8FLOW_OK) status = fp8flow_trace_create(c, room, &trace);
    if (status == FP8FLOW_OK) status = traced_step(c, trainer, trace, &count);
    if (status == FP8FLOW_OK && b->device.memory_bytes) status = measure_events(c, &calls->event_ms);
    if (status == FP8FLOW_OK) {
        calls->calls = calloc((size_t)room, sizeof *calls->calls);
        status = calls->calls ? FP8FLOW_OK : FP8FLOW_ENOMEM;
    }
    if (status == FP8FLOW_OK) status = read_calls(b, c, trace, count < room ? count : room, calls);
    fp8flow_trace_destroy(c, trace);
    return status;
}
