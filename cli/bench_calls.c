/* bench_calls.c - bounds, sums and JSON of traced operator calls. See bench_calls.h. */
#include "bench_calls.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

double bench_call_bound(const fp8flow_trace_record *record, double copy_tb_per_s)
{
    int32_t is_fp8 = record->dtype == FP8FLOW_E4M3 || record->dtype == FP8FLOW_E5M2;
    double tflops = is_fp8 ? LAYER_FP8_TFLOPS : LAYER_BF16_TFLOPS;
    return fmax(1e-9 * record->bytes / copy_tb_per_s, 1e-9 * record->flops / tflops);
}

static bench_call *find(const bench_calls *calls, const fp8flow_trace_record *record)
{
    for (int64_t i = 0; i < calls->num_shapes; i++) {
        const fp8flow_trace_record *known = &calls->calls[i].record;
        if (strcmp(known->op, record->op) == 0 && strcmp(known->label, record->label) == 0) return &calls->calls[i];
    }
    return NULL;
}

void bench_calls_add(bench_calls *calls, const bench_call *call)
{
    bench_call *sum = find(calls, &call->record);
    calls->num_calls += call->count;
    calls->sum_ms += call->record.milliseconds;
    if (!sum) {
        calls->calls[calls->num_shapes++] = *call;
        return;
    }
    sum->record.milliseconds += call->record.milliseconds;
    sum->record.bytes += call->record.bytes;
    sum->record.flops += call->record.flops;
    sum->bound_ms += call->bound_ms;
    sum->count += call->count;
}

static int compare_times(const void *a, const void *b)
{
    double x = ((const bench_call *)a)->record.milliseconds, y = ((const bench_call *)b)->record.milliseconds;
    return (x < y) - (x > y);
}

void bench_calls_sort(bench_calls *calls)
{
    if (calls->num_shapes > 0) qsort(calls->calls, (size_t)calls->num_shapes, sizeof *calls->calls, compare_times);
}

json_t *bench_call_json(const bench_call *call)
{
    const fp8flow_trace_record *record = &call->record;
    return json_pack("{s:s, s:s, s:I, s:f, s:f, s:f, s:o}", "op", record->op, "shape", record->label, "count",
                     (json_int_t)call->count, "us", 1e3 * record->milliseconds, "bytes", record->bytes, "flops",
                     record->flops, "bound_us", call->bound_ms > 0 ? json_real(1e3 * call->bound_ms) : json_null());
}

void bench_print_number(int width, int decimals, double value)
{
    if (value > 0) printf(" %*.*f", width, decimals, value);
    else printf(" %*s", width, "-");
}
