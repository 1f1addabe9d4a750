/* bench_calls.h - operator calls that `fp8flow bench layer` and `fp8flow bench train` trace: bounds, sums, JSON. */
#ifndef CLI_BENCH_CALLS_H
#define CLI_BENCH_CALLS_H

#include <jansson.h>

#include "cli.h"

/* What the bounds of the operators are taken from. FP8 and BF16: what cuBLASLt reaches on an H200 at 4096 x 4096 x 7168
 * (one scale per tensor) and at 8192^3, with a cold cache. */
#define LAYER_FP8_TFLOPS  1381.0
#define LAYER_BF16_TFLOPS 790.0

/* One call, or all of an operator and a shape: sums. */
typedef struct {
    fp8flow_trace_record record; /* milliseconds: without what the events cost */
    double bound_ms;             /* at the speed of the bound; 0: unknown */
    int64_t count;
} bench_call;

/* Calls of one step, by operator and shape, the longest first. */
typedef struct {
    bench_call *calls;
    int64_t num_shapes, num_calls;
    double event_ms, sum_ms;
} bench_calls;

/* Bytes at the speed of the copy, or FLOP at that of the products, whatever takes longer. */
double bench_call_bound(const fp8flow_trace_record *record, double copy_tb_per_s);

/* Sums into `calls`, which has room for one more; then, once, the order. */
void bench_calls_add(bench_calls *calls, const bench_call *call);
void bench_calls_sort(bench_calls *calls);

json_t *bench_call_json(const bench_call *call);

/* In columns; "-" for 0. */
void bench_print_number(int width, int decimals, double value);

#endif
