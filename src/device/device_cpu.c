/* device_cpu.c - host memory. Work is done when a call returns: streams are NULL, an event is a point in time. */
#include "device/device.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ALIGNMENT = 128 };

static fp8flow_status cpu_alloc(size_t bytes, void **memory)
{
    F8_REQUIRE(bytes < SIZE_MAX / 2, ENOMEM, "memory: %zu bytes is not a possible size", bytes);
    size_t rounded = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    *memory = aligned_alloc(ALIGNMENT, rounded);
    F8_REQUIRE(*memory, ENOMEM, "memory: the system refused %zu bytes", bytes);
    return FP8FLOW_OK;
}

static void cpu_free(void *memory)
{
    free(memory);
}

static fp8flow_status cpu_stream_create(void **stream)
{
    *stream = NULL;
    return FP8FLOW_OK;
}

static void cpu_stream_destroy(void *stream)
{
    (void)stream;
}

static fp8flow_status cpu_copy(void *stream, void *to, const void *from, size_t bytes)
{
    (void)stream;
    if (bytes) memmove(to, from, bytes);
    return FP8FLOW_OK;
}

static fp8flow_status cpu_copy_rows(void *stream, const f8_row_copy *c)
{
    (void)stream;
    for (size_t i = 0; i < c->rows; i++)
        memcpy((char *)c->to + i * c->to_stride, (const char *)c->from + i * c->from_stride, c->row_bytes);
    return FP8FLOW_OK;
}

static fp8flow_status cpu_fill(void *stream, void *memory, int byte, size_t bytes)
{
    (void)stream;
    if (bytes) memset(memory, byte, bytes);
    return FP8FLOW_OK;
}

static fp8flow_status cpu_synchronize(void *stream)
{
    (void)stream;
    return FP8FLOW_OK;
}

/* ---- Time ---- */

static fp8flow_status cpu_event_create(void **event)
{
    *event = calloc(1, sizeof(struct timespec));
    F8_REQUIRE(*event, ENOMEM, "event: no memory for %zu bytes", sizeof(struct timespec));
    return FP8FLOW_OK;
}

static void cpu_event_destroy(void *event)
{
    free(event);
}

static fp8flow_status cpu_event_record(void *event, void *stream)
{
    (void)stream;
    F8_REQUIRE(clock_gettime(CLOCK_MONOTONIC, event) == 0, EBACKEND, "event: the system has no monotonic clock");
    return FP8FLOW_OK;
}

static fp8flow_status cpu_event_wait(void *event)
{
    (void)event;
    return FP8FLOW_OK;
}

static fp8flow_status cpu_event_elapsed(void *start, void *stop, double *milliseconds)
{
    const struct timespec *a = start, *b = stop;
    *milliseconds = 1e3 * (double)(b->tv_sec - a->tv_sec) + 1e-6 * (double)(b->tv_nsec - a->tv_nsec);
    return FP8FLOW_OK;
}

/* ---- Graphs: nothing to gain from them, and no way to record a call without doing it ---- */

static fp8flow_status no_graphs(void)
{
    return F8_FAIL(ENOSYS, "graph: the CPU does each call at once, only CUDA records graphs");
}

static fp8flow_status cpu_graph_begin(void *stream)
{
    (void)stream;
    return no_graphs();
}

static fp8flow_status cpu_graph_end(void *stream, void **graph)
{
    (void)stream;
    *graph = NULL;
    return no_graphs();
}

static fp8flow_status cpu_graph_launch(void *graph, void *stream)
{
    (void)graph;
    (void)stream;
    return no_graphs();
}

static void cpu_graph_destroy(void *graph)
{
    (void)graph;
}

static void cpu_range_begin(const char *name)
{
    (void)name;
}

static void cpu_range_end(void)
{
}

static fp8flow_status cpu_describe(fp8flow_device_info *info)
{
    *info = (fp8flow_device_info){ .name = "cpu" };
    return FP8FLOW_OK;
}

const f8_device *f8_device_cpu(void)
{
    static const f8_device device = { .name = "cpu",
                                      .is_host = 1,
                                      .alloc = cpu_alloc,
                                      .free = cpu_free,
                                      .alloc_host = cpu_alloc,
                                      .free_host = cpu_free,
                                      .stream_create = cpu_stream_create,
                                      .stream_destroy = cpu_stream_destroy,
                                      .copy = cpu_copy,
                                      .copy_out = cpu_copy,
                                      .copy_rows = cpu_copy_rows,
                                      .fill = cpu_fill,
                                      .synchronize = cpu_synchronize,
                                      .event_create = cpu_event_create,
                                      .event_destroy = cpu_event_destroy,
                                      .event_record = cpu_event_record,
                                      .event_wait = cpu_event_wait,
                                      .event_elapsed = cpu_event_elapsed,
                                      .graph_begin = cpu_graph_begin,
                                      .graph_end = cpu_graph_end,
                                      .graph_launch = cpu_graph_launch,
                                      .graph_destroy = cpu_graph_destroy,
                                      .range_begin = cpu_range_begin,
                                      .range_end = cpu_range_end,
                                      .describe = cpu_describe };
    return &device;
}
