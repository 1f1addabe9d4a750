/* trace.c - time and cost of each operator call: two events around it, and what cost.c says of its arguments. */
#include <stdlib.h>

#include "ops/cost.h"

typedef struct {
    f8_op op;
    f8_cost cost;
    void *start, *stop; /* events of the device */
} trace_call;

struct fp8flow_trace {
    int64_t capacity, num_calls;
    fp8flow_status status; /* of the start of the call that is being made */
    trace_call call[];
};

static fp8flow_status create_events(const f8_device *device, fp8flow_trace *trace)
{
    for (int64_t i = 0; i < trace->capacity; i++) {
        F8_TRY(device->event_create(&trace->call[i].start));
        F8_TRY(device->event_create(&trace->call[i].stop));
    }
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_trace_create(fp8flow_context *c, int64_t capacity, fp8flow_trace **trace)
{
    F8_REQUIRE(c && trace, EINVAL, "trace_create: NULL argument");
    F8_REQUIRE(capacity >= 1 && capacity <= 1 << 20, EINVAL, "trace_create: room for %lld calls, expected 1 to %d",
               (long long)capacity, 1 << 20);
    size_t bytes = sizeof **trace + (size_t)capacity * sizeof *(*trace)->call;
    fp8flow_trace *made = calloc(1, bytes);
    F8_REQUIRE(made, ENOMEM, "trace_create: no memory for %zu bytes", bytes);
    made->capacity = capacity;
    fp8flow_status status = create_events(c->device, made);
    if (status != FP8FLOW_OK) {
        fp8flow_trace_destroy(c, made);
        return f8_fail_in(status, "trace_create");
    }
    *trace = made;
    return FP8FLOW_OK;
}

void fp8flow_trace_destroy(fp8flow_context *c, fp8flow_trace *trace)
{
    if (!c || !trace) return;
    for (int64_t i = 0; i < trace->capacity; i++) {
        if (trace->call[i].start) c->device->event_destroy(trace->call[i].start);
        if (trace->call[i].stop) c->device->event_destroy(trace->call[i].stop);
    }
    free(trace);
}

fp8flow_status fp8flow_trace_begin(fp8flow_context *c, fp8flow_trace *trace)
{
    F8_REQUIRE(c && trace, EINVAL, "trace_begin: NULL argument");
    F8_REQUIRE(!c->trace, EINVAL, "trace_begin: the context is in a trace already");
    trace->num_calls = 0;
    trace->status = FP8FLOW_OK;
    c->trace = trace;
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_trace_end(fp8flow_context *c, int64_t *num_calls)
{
    F8_REQUIRE(c && num_calls, EINVAL, "trace_end: NULL argument");
    F8_REQUIRE(c->trace, EINVAL, "trace_end: the context is in no trace");
    *num_calls = c->trace->num_calls;
    c->trace = NULL;
    return FP8FLOW_OK;
}

const char *f8_op_name(f8_op op)
{
    static const char *const names[] = {
#define F8_X(op) #op,
        F8_OPS(F8_X)
#undef F8_X
    };
    return names[op];
}

fp8flow_status fp8flow_trace_get(fp8flow_context *c, const fp8flow_trace *trace, int64_t index, int64_t rows,
                                 fp8flow_trace_record *record)
{
    F8_REQUIRE(c && trace && record, EINVAL, "trace_get: NULL argument");
    int64_t known = trace->num_calls < trace->capacity ? trace->num_calls : trace->capacity;
    F8_REQUIRE(index >= 0 && index < known, EINVAL, "trace_get: call %lld, the trace has %lld", (long long)index,
               (long long)known);
    const trace_call *call = &trace->call[index];
    const f8_cost *cost = &call->cost;
    double used = (double)(rows < 0 || rows > cost->capacity ? cost->capacity : rows);
    *record = (fp8flow_trace_record){ .op = f8_op_name(call->op),
                                      .bytes = cost->bytes + used * cost->row_bytes,
                                      .flops = cost->flops + used * cost->row_flops,
                                      .groups = cost->groups,
                                      .dtype = cost->dtype };
    memcpy(record->label, cost->label, sizeof record->label);
    return c->device->event_elapsed(call->start, call->stop, &record->milliseconds);
}

/* The call that is being made; NULL beyond the capacity. */
static trace_call *current_call(fp8flow_trace *trace)
{
    return trace->num_calls < trace->capacity ? &trace->call[trace->num_calls] : NULL;
}

void f8_trace_start(fp8flow_context *c, f8_op op, const void *args)
{
    trace_call *call = current_call(c->trace);
    if (!call) return;
    call->op = op;
    call->cost = f8_cost_of(op, args);
    c->trace->status = c->device->event_record(call->start, c->stream);
}

fp8flow_status f8_trace_stop(fp8flow_context *c, fp8flow_status status)
{
    fp8flow_trace *trace = c->trace;
    trace_call *call = current_call(trace);
    trace->num_calls++;
    if (status != FP8FLOW_OK || !call) return status;
    F8_TRY(trace->status);
    return c->device->event_record(call->stop, c->stream);
}
