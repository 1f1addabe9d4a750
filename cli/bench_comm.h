/* bench_comm.h - the parts of `fp8flow bench comm`: what a token weighs on its way between ranks, and how fast it goes.
 *
 *   cmd_bench_comm.c      options, the ranks, table and JSON
 *   bench_comm_measure.c  what each rank does
 *
 * Bytes are those that the transport has counted while a layer ran forward and backward. Times are the program's, from
 * a moment at which all ranks are ready until the last one has its data.
 */
#ifndef CLI_BENCH_COMM_H
#define CLI_BENCH_COMM_H

#include "layer.h"
#include "timing.h"

enum { COMM_NUM_SIZES = 4, COMM_MAX_RECIPES = 64 };

/* One recipe. Bytes that rank 0 has sent for each of its tokens; [0]: forward, [1]: backward. */
typedef struct {
    const char *recipe;
    double dispatch[2], combine[2], routing;
    int64_t exchange_bytes; /* of an exchange like the forward dispatch, sent by each rank */
    timing exchange;
} comm_payload;

/* An array of so many bytes on each rank. Milliseconds. */
typedef struct {
    int64_t bytes;
    timing exchange, all_reduce, slices; /* slices: reduce_scatter, then all_gather */
} comm_size;

typedef struct {
    layer_shape shape;
    const char *const *recipes;
    int64_t num_recipes, num_ranks, largest_bytes, repeats;
    int32_t backend, num_threads; /* of each rank */
    /* Written by rank 0. */
    const char *transport;
    comm_payload payload[COMM_MAX_RECIPES];
    comm_size size[COMM_NUM_SIZES];
} comm_bench;

/* The body of each rank; `user` is the comm_bench, shared where ranks are threads. */
fp8flow_status comm_measure(fp8flow_comm *comm, void *user);

/* Bytes in a time, in GB/s; 0 where there is no time. */
double comm_gb_per_s(int64_t bytes, const timing *time);

/* What `payload` sends in its dispatches for a byte of `base`; 0: unknown. */
double comm_dispatch_ratio(const comm_payload *payload, const comm_payload *base);

#endif
