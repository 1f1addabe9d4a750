/* fp8flow_device.h - memory, order, graphs and time of a context.
 *
 * A program that brings its own memory (cudaMalloc, PyTorch) and its own stream needs none of this: operators take
 * plain pointers. It is for programs that want to run on the CPU and on a GPU from one text.
 *
 * Errors of all functions: EINVAL (NULL), ENOMEM, EBACKEND (what CUDA says; a kernel that failed earlier on the
 * stream shows here), ENOSYS where the device has no such thing.
 */
#ifndef FP8FLOW_DEVICE_H
#define FP8FLOW_DEVICE_H

#include "fp8flow_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Memory of the context's device, aligned to 128 bytes; free(NULL) is allowed. Not during a graph's recording. */
FP8FLOW_API fp8flow_status fp8flow_memory_alloc(fp8flow_context *c, size_t bytes, void **memory);
FP8FLOW_API void fp8flow_memory_free(fp8flow_context *c, void *memory);

/* Copy, or fill with a byte, in the order of the context's operator calls. Either side of a copy may be host memory:
 * then it has happened when the call returns. */
FP8FLOW_API fp8flow_status fp8flow_memory_copy(fp8flow_context *c, void *to, const void *from, size_t bytes);
FP8FLOW_API fp8flow_status fp8flow_memory_fill(fp8flow_context *c, void *memory, int byte, size_t bytes);

/* Wait until every call so far is done. */
FP8FLOW_API fp8flow_status fp8flow_synchronize(fp8flow_context *c);

/* Graphs (CUDA): calls between begin and end are recorded, not done; launch does them, in order, as often as wanted,
 * with what the arrays hold then. A call that fails in between ends the recording when end is called. */
typedef struct fp8flow_graph fp8flow_graph;
FP8FLOW_API fp8flow_status fp8flow_graph_begin(fp8flow_context *c);
FP8FLOW_API fp8flow_status fp8flow_graph_end(fp8flow_context *c, fp8flow_graph **graph);
FP8FLOW_API fp8flow_status fp8flow_graph_launch(fp8flow_context *c, fp8flow_graph *graph);
FP8FLOW_API void fp8flow_graph_destroy(fp8flow_context *c, fp8flow_graph *graph);

/* Events: points in the order of a context's calls. elapsed waits for `stop`. */
typedef struct fp8flow_event fp8flow_event;
FP8FLOW_API fp8flow_status fp8flow_event_create(fp8flow_context *c, fp8flow_event **event);
FP8FLOW_API fp8flow_status fp8flow_event_record(fp8flow_context *c, fp8flow_event *event);
FP8FLOW_API fp8flow_status fp8flow_event_elapsed(fp8flow_context *c, fp8flow_event *start, fp8flow_event *stop,
                                                 double *milliseconds);
FP8FLOW_API void fp8flow_event_destroy(fp8flow_context *c, fp8flow_event *event);

/* What a context runs on. Figures are 0 for the CPU, bus_id is empty. */
typedef struct {
    char name[128];
    int64_t memory_bytes, free_bytes, cache_bytes; /* cache: the last level */
    int32_t num_multiprocessors;
    int32_t cuda_version; /* that the driver supports: 13000 is 13.0 */
    char bus_id[32];      /* of PCI: "0000:1B:00.0" */
} fp8flow_device_info;
FP8FLOW_API fp8flow_status fp8flow_device_describe(fp8flow_context *c, fp8flow_device_info *info);

#ifdef __cplusplus
}
#endif
#endif
