/* bench_comm_measure.c - see bench_comm.h. */
#include "bench_comm.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "device.h"

enum { MAX_RANKS = 256 };

/* A rank. */
typedef struct {
    const comm_bench *b;
    fp8flow_context *context;
    fp8flow_comm *host, *comm; /* comm: of arrays in the context's memory */
    int32_t rank, size;
    char *send, *recv; /* context memory, largest_bytes + some each */
    int64_t bytes;     /* of the array that is being moved */
} comm_rank;

double comm_gb_per_s(int64_t bytes, const timing *time)
{
    return time->median > 0 ? 1e-6 * (double)bytes / time->median : 0;
}

double comm_dispatch_ratio(const comm_payload *payload, const comm_payload *base)
{
    double bytes = base->dispatch[0] + base->dispatch[1];
    return bytes > 0 ? (payload->dispatch[0] + payload->dispatch[1]) / bytes : 0;
}

/* ---- Time ----------------------------------------------------------------------------------- */

/* Of the slowest rank, from where all ranks are ready. */
static fp8flow_status time_once(const comm_rank *r, fp8flow_status (*run)(const comm_rank *), double *milliseconds)
{
    int64_t nanoseconds = 0;
    fp8flow_status status = fp8flow_comm_max(r->host, &nanoseconds);
    double start = cli_seconds();
    if (status == FP8FLOW_OK) status = run(r);
    if (status == FP8FLOW_OK) status = fp8flow_synchronize(r->context);
    nanoseconds = (int64_t)(1e9 * (cli_seconds() - start));
    if (status == FP8FLOW_OK) status = fp8flow_comm_max(r->host, &nanoseconds);
    *milliseconds = 1e-6 * (double)nanoseconds;
    return status;
}

/* Two warm-ups: the first call of a kind makes connections. */
static fp8flow_status time_all(const comm_rank *r, fp8flow_status (*run)(const comm_rank *), timing *result)
{
    double samples[TIMING_MAX_REPEATS], unused;
    fp8flow_status status = FP8FLOW_OK;
    for (int64_t i = -2; i < r->b->repeats && status == FP8FLOW_OK; i++)
        status = time_once(r, run, i < 0 ? &unused : &samples[i]);
    if (status == FP8FLOW_OK) *result = timing_summarize(samples, r->b->repeats);
    return status;
}

/* ---- What is timed -------------------------------------------------------------------------- */

/* The same number of bytes to every rank, in rows of 16. */
static fp8flow_status run_exchange(const comm_rank *r)
{
    int32_t rows[MAX_RANKS];
    for (int32_t i = 0; i < r->size; i++) rows[i] = (int32_t)(r->bytes / 16 / r->size);
    return fp8flow_comm_exchange(r->comm, 16, r->send, rows, r->recv, rows);
}

static fp8flow_status run_all_reduce(const comm_rank *r)
{
    return fp8flow_comm_sum(r->comm, (float *)(void *)r->send, r->bytes / 4);
}

static fp8flow_status run_slices(const comm_rank *r)
{
    int64_t offset[MAX_RANKS + 1];
    for (int32_t i = 0; i <= r->size; i++) offset[i] = r->bytes / 4 / r->size * i;
    fp8flow_status status = fp8flow_comm_sum_slices(r->comm, (float *)(void *)r->send, offset);
    return status == FP8FLOW_OK ? fp8flow_comm_gather_slices(r->comm, (float *)(void *)r->send, offset) : status;
}

static fp8flow_status measure_size(comm_rank *r, comm_size *size)
{
    r->bytes = size->bytes;
    fp8flow_status status = time_all(r, run_exchange, &size->exchange);
    if (status == FP8FLOW_OK) status = time_all(r, run_all_reduce, &size->all_reduce);
    if (status == FP8FLOW_OK) status = time_all(r, run_slices, &size->slices);
    return status;
}

/* ---- A layer's payload ---------------------------------------------------------------------- */

/* Forward and backward once; what the transport has counted. */
static fp8flow_status count_payload(const comm_rank *r, layer_data *data, comm_payload *payload)
{
    fp8flow_moe *moe = NULL;
    fp8flow_moe_report report = { .tokens = 1 };
    fp8flow_status status = layer_open(data, r->host, payload->recipe, FP8FLOW_KEEP_ALL, &moe);
    if (status == FP8FLOW_OK) status = layer_step(moe, data);
    if (status == FP8FLOW_OK) status = fp8flow_moe_get_report(moe, &report);
    fp8flow_moe_destroy(moe);
    if (status != FP8FLOW_OK) return status;
    double tokens = (double)report.tokens;
    for (int pass = 0; pass < 2; pass++) {
        payload->dispatch[pass] = (double)report.dispatch_bytes[pass] / tokens;
        payload->combine[pass] = (double)report.combine_bytes[pass] / tokens;
    }
    payload->routing = (double)report.routing_bytes / tokens;
    payload->exchange_bytes = report.dispatch_bytes[0];
    return fp8flow_comm_max(r->host, &payload->exchange_bytes);
}

/* Memory for the arrays to be moved; what a layer dispatches can be more than the largest of the sizes. */
static fp8flow_status draw_arrays(comm_rank *r, int64_t bytes)
{
    fp8flow_status status = fp8flow_memory_alloc(r->context, (size_t)bytes, (void **)&r->send);
    if (status == FP8FLOW_OK) status = fp8flow_memory_alloc(r->context, (size_t)bytes, (void **)&r->recv);
    if (status == FP8FLOW_OK) status = fp8flow_memory_fill(r->context, r->send, 0, (size_t)bytes);
    return status == FP8FLOW_OK ? fp8flow_memory_fill(r->context, r->recv, 0, (size_t)bytes) : status;
}

static fp8flow_status count_payloads(const comm_rank *r, comm_payload *payload, int64_t *most)
{
    layer_data data;
    fp8flow_status status = layer_data_create(&data, r->context, &r->b->shape, r->host);
    if (status != FP8FLOW_OK) return status;
    for (int64_t i = 0; i < r->b->num_recipes && status == FP8FLOW_OK; i++) {
        payload[i].recipe = r->b->recipes[i];
        status = count_payload(r, &data, &payload[i]);
        if (payload[i].exchange_bytes > *most) *most = payload[i].exchange_bytes;
    }
    layer_data_destroy(&data);
    return status;
}

static fp8flow_status measure_all(comm_rank *r, comm_payload *payload, comm_size *size)
{
    int64_t most = r->b->largest_bytes;
    fp8flow_status status = count_payloads(r, payload, &most);
    if (status == FP8FLOW_OK) status = draw_arrays(r, most);
    for (int64_t i = 0; i < r->b->num_recipes && status == FP8FLOW_OK; i++) {
        r->bytes = payload[i].exchange_bytes;
        status = time_all(r, run_exchange, &payload[i].exchange);
    }
    for (int i = 0; i < COMM_NUM_SIZES && status == FP8FLOW_OK; i++) {
        size[i].bytes = r->b->largest_bytes >> 2 * (COMM_NUM_SIZES - 1 - i);
        status = measure_size(r, &size[i]);
    }
    return status;
}

/* ---- A rank --------------------------------------------------------------------------------- */

static fp8flow_status open_rank(comm_rank *r)
{
    fp8flow_context_options options = { .backend = (fp8flow_backend)r->b->backend, .num_threads = r->b->num_threads };
    if (options.backend == FP8FLOW_CUDA) options.device = cli_gpu_of_rank(r->rank);
    fp8flow_status status = fp8flow_context_create(&options, &r->context);
    return status == FP8FLOW_OK ? fp8flow_comm_open(r->host, r->context, &r->comm) : status;
}

static void close_rank(comm_rank *r)
{
    fp8flow_comm_close(r->comm);
    fp8flow_memory_free(r->context, r->send);
    fp8flow_memory_free(r->context, r->recv);
    fp8flow_context_destroy(r->context);
}

fp8flow_status comm_measure(fp8flow_comm *comm, void *user)
{
    comm_bench *b = user;
    comm_rank r = { .b = b, .host = comm, .rank = fp8flow_comm_rank(comm), .size = fp8flow_comm_size(comm) };
    comm_payload payload[COMM_MAX_RECIPES] = { { .recipe = NULL } };
    comm_size size[COMM_NUM_SIZES] = { { .bytes = 0 } };
    fp8flow_status status = open_rank(&r);
    if (status == FP8FLOW_OK) status = measure_all(&r, payload, size);
    if (status == FP8FLOW_OK && r.rank == 0) {
        memcpy(b->payload, payload, sizeof payload);
        memcpy(b->size, size, sizeof size);
        b->transport = fp8flow_comm_transport(r.comm);
    }
    close_rank(&r);
    return status;
}
