/* bench_layer.h - the parts of `fp8flow bench layer`: one layer at a shape, measured in many variants.
 *
 *   cmd_bench_layer.c      options, shapes, the order of the variants
 *   bench_layer_measure.c  times of one variant, of its operators, in a loop
 *   bench_layer_output.c   tables and JSON
 *
 * On a GPU everything that is timed is the replay of a graph; on the CPU it is the calls themselves. Times come from
 * the events of the context.
 */
#ifndef CLI_BENCH_LAYER_H
#define CLI_BENCH_LAYER_H

#include "bench_calls.h"
#include "bench_cuda.h"

/* "experts only", forward + backward, of other libraries on an H200, in milliseconds; 0: unknown. */
typedef struct {
    double bf16_ms, paper_ms;
} layer_peers;

typedef struct {
    const char *name;
    layer_shape size;
    layer_peers peers;
} layer_bench_shape;

enum { LAYER_MAX_CALLS = 160, LAYER_RECIPE_BYTES = 48 };

/* Milliseconds. */
typedef struct {
    const char *recipe;
    fp8flow_checkpointing mode;
    timing forward, backward, total;
    gpu_sustained loop;
    int64_t num_calls;
    bench_call calls[LAYER_MAX_CALLS];
    double event_ms;  /* what two events with nothing between them measure */
    double sum_ms;    /* of the calls */
    double router_ms; /* of the calls that belong to the router; the others are the experts' */
    fp8flow_moe_report report;
} layer_result;

/* What other recipes of the mode are compared with, in milliseconds; 0: not measured. */
typedef struct {
    double cold, loop;
} layer_base;

typedef struct {
    bench *b;
    gpu_bench *g; /* NULL: the CPU */
    const layer_bench_shape *shape;
    fp8flow_comm *comm;
    layer_data data;
    layer_base bf16, blockwise; /* of the mode that is being measured */
    int64_t num_rows;           /* printed for this shape */
} layer_bench;

/* Measure one variant; recipe and mode are set in *result. */
fp8flow_status layer_measure(layer_bench *l, layer_result *result);

/* FLOP of the experts' products, forward + backward. */
double layer_flops(const layer_shape *shape);

/* One line of the table, or one JSON record; with the calls if `calls` says so. */
typedef enum { LAYER_NO_CALLS, LAYER_CALLS } layer_detail;
void layer_emit(layer_bench *l, const layer_result *result, layer_detail detail);

#endif
