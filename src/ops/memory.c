/* memory.c - the public functions of fp8flow_device.h: each is one call of the context's device on its stream. */
#include "ops/ops.h"

/* The public handles are the device's own. */
#define HANDLE(handle) ((void *)(handle))

fp8flow_status fp8flow_memory_alloc(fp8flow_context *c, size_t bytes, void **memory)
{
    F8_REQUIRE(c && memory, EINVAL, "memory_alloc: NULL argument");
    return c->device->alloc(bytes, memory);
}

void fp8flow_memory_free(fp8flow_context *c, void *memory)
{
    if (c) c->device->free(memory);
}

fp8flow_status fp8flow_memory_copy(fp8flow_context *c, void *to, const void *from, size_t bytes)
{
    F8_REQUIRE(c && ((to && from) || bytes == 0), EINVAL, "memory_copy: NULL argument, %zu bytes", bytes);
    return c->device->copy(c->stream, to, from, bytes);
}

fp8flow_status fp8flow_memory_fill(fp8flow_context *c, void *memory, int byte, size_t bytes)
{
    F8_REQUIRE(c && (memory || bytes == 0), EINVAL, "memory_fill: NULL argument, %zu bytes", bytes);
    return c->device->fill(c->stream, memory, byte, bytes);
}

fp8flow_status fp8flow_synchronize(fp8flow_context *c)
{
    F8_REQUIRE(c, EINVAL, "synchronize: NULL context");
    return c->device->synchronize(c->stream);
}

fp8flow_status fp8flow_graph_begin(fp8flow_context *c)
{
    F8_REQUIRE(c, EINVAL, "graph_begin: NULL context");
    F8_TRY(c->device->graph_begin(c->stream));
    c->recording = 1;
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_graph_end(fp8flow_context *c, fp8flow_graph **graph)
{
    F8_REQUIRE(c && graph, EINVAL, "graph_end: NULL argument");
    void *handle = NULL;
    c->recording = 0;
    F8_TRY(c->device->graph_end(c->stream, &handle));
    *graph = handle;
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_graph_launch(fp8flow_context *c, fp8flow_graph *graph)
{
    F8_REQUIRE(c && graph, EINVAL, "graph_launch: NULL argument");
    return c->device->graph_launch(HANDLE(graph), c->stream);
}

void fp8flow_graph_destroy(fp8flow_context *c, fp8flow_graph *graph)
{
    if (c && graph) c->device->graph_destroy(HANDLE(graph));
}

fp8flow_status fp8flow_event_create(fp8flow_context *c, fp8flow_event **event)
{
    F8_REQUIRE(c && event, EINVAL, "event_create: NULL argument");
    void *handle = NULL;
    F8_TRY(c->device->event_create(&handle));
    *event = handle;
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_event_record(fp8flow_context *c, fp8flow_event *event)
{
    F8_REQUIRE(c && event, EINVAL, "event_record: NULL argument");
    return c->device->event_record(HANDLE(event), c->stream);
}

fp8flow_status fp8flow_event_elapsed(fp8flow_context *c, fp8flow_event *start, fp8flow_event *stop,
                                     double *milliseconds)
{
    F8_REQUIRE(c && start && stop && milliseconds, EINVAL, "event_elapsed: NULL argument");
    return c->device->event_elapsed(HANDLE(start), HANDLE(stop), milliseconds);
}

void fp8flow_event_destroy(fp8flow_context *c, fp8flow_event *event)
{
    if (c && event) c->device->event_destroy(HANDLE(event));
}

int32_t fp8flow_device_count(void)
{
    return f8_device_cuda_count();
}

fp8flow_status fp8flow_device_describe(fp8flow_context *c, fp8flow_device_info *info)
{
    F8_REQUIRE(c && info, EINVAL, "device_describe: NULL argument");
    return c->device->describe(info);
}
