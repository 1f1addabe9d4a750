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

/* Traces: what each operator call between begin and end moved, multiplied and took. A trace has room for `capacity`
 * calls; end tells how many there were, of which those beyond the capacity are not in it. Events around each call take
 * its time in the order of the context's calls: on a GPU a gap in which nothing was waiting counts where it falls, so
 * put begin and end inside the recording of a graph. The times are then those of the last launch: synchronize, then
 * get. What is no operator (copies, fills) is not traced. One trace of a context at a time is between begin and end;
 * destroy no trace that is, or whose graph will be launched again. */
enum { FP8FLOW_TRACE_LABEL_BYTES = 96 };
typedef struct {
    const char *op;                        /* "gemm" */
    char label[FP8FLOW_TRACE_LABEL_BYTES]; /* shape and formats, for people: "4096x7168 bf16 to e4m3 row128" */
    double milliseconds;
    double bytes;        /* fewest that the call must move: each input once, each output once */
    double flops;        /* of products and attention; 0: bound by memory */
    int64_t groups;      /* experts that the call knows; 0: dense */
    fp8flow_dtype dtype; /* of the first operand, where there are flops */
} fp8flow_trace_record;
typedef struct fp8flow_trace fp8flow_trace;
FP8FLOW_API fp8flow_status fp8flow_trace_create(fp8flow_context *c, int64_t capacity, fp8flow_trace **trace);
FP8FLOW_API fp8flow_status fp8flow_trace_begin(fp8flow_context *c, fp8flow_trace *trace);
FP8FLOW_API fp8flow_status fp8flow_trace_end(fp8flow_context *c, int64_t *num_calls);

/* Call number `index` of a trace. rows: how many rows of grouped activations are in use, in every call of the trace;
 * the host cannot know that. -1: as many as there is room for. Errors: EINVAL past the last one. */
FP8FLOW_API fp8flow_status fp8flow_trace_get(fp8flow_context *c, const fp8flow_trace *trace, int64_t index,
                                             int64_t rows, fp8flow_trace_record *record);
FP8FLOW_API void fp8flow_trace_destroy(fp8flow_context *c, fp8flow_trace *trace);

/* GPUs of this machine, numbered from 0 (fp8flow_context_options.device); 0 where there is none or no CUDA. */
FP8FLOW_API int32_t fp8flow_device_count(void);

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
