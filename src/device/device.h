/* device.h - memory, order and time of a backend, no arithmetic. One table of functions per kind of device.
 *
 * Everything above layer 1 works through this table, so that a GPU lies beside the CPU without a change to its
 * callers. Memory is aligned to 128 bytes and, on the CPU, committed only when touched. A stream is a queue of work
 * in order; the CPU's is NULL, and its work is done when a call returns.
 */
#ifndef F8_DEVICE_DEVICE_H
#define F8_DEVICE_DEVICE_H

#include "base/status.h"
#include "fp8flow_device.h"

/* Rows of a matrix in the device's memory, to another matrix there; strides in bytes. */
typedef struct {
    void *to;
    const void *from;
    size_t to_stride, from_stride, row_bytes, rows;
} f8_row_copy;

typedef struct {
    const char *name;
    int is_host; /* the calling program can read and write its memory */

    /* *memory of `bytes` (0 allowed, gives a valid pointer). ENOMEM names the bytes. */
    fp8flow_status (*alloc)(size_t bytes, void **memory);
    void (*free)(void *memory); /* NULL allowed */
    /* Host memory that copies to and from the device are fast with. */
    fp8flow_status (*alloc_host)(size_t bytes, void **memory);
    void (*free_host)(void *memory); /* NULL allowed */

    fp8flow_status (*stream_create)(void **stream);
    void (*stream_destroy)(void *stream);
    /* Either side may be host memory; then the call returns when the copy is done. */
    fp8flow_status (*copy)(void *stream, void *to, const void *from, size_t bytes);
    /* To memory of alloc_host, not waited for: done once an event that is recorded after it has passed. */
    fp8flow_status (*copy_out)(void *stream, void *to, const void *from, size_t bytes);
    fp8flow_status (*copy_rows)(void *stream, const f8_row_copy *copy);
    fp8flow_status (*fill)(void *stream, void *memory, int byte, size_t bytes);
    /* Wait for everything on the stream; reports what failed there. */
    fp8flow_status (*synchronize)(void *stream);

    fp8flow_status (*event_create)(void **event);
    void (*event_destroy)(void *event);
    fp8flow_status (*event_record)(void *event, void *stream);
    fp8flow_status (*event_wait)(void *event);
    /* Waits for `stop`. */
    fp8flow_status (*event_elapsed)(void *start, void *stop, double *milliseconds);

    /* Between begin and end, work on the stream is recorded and not done. */
    fp8flow_status (*graph_begin)(void *stream);
    fp8flow_status (*graph_end)(void *stream, void **graph);
    fp8flow_status (*graph_launch)(void *graph, void *stream);
    void (*graph_destroy)(void *graph);

    /* What the calling thread does from here to the end of the range, for the timelines of profilers. Ranges nest. */
    void (*range_begin)(const char *name);
    void (*range_end)(void);

    fp8flow_status (*describe)(fp8flow_device_info *info);
} f8_device;

const f8_device *f8_device_cpu(void);

/* GPU `index`, made the current device of the calling thread. ENOSYS where the build or the machine has none. */
fp8flow_status f8_device_cuda(int index, const f8_device **device);

/* GPUs of this machine, of any kind; 0 where the build or the machine has none. */
int f8_device_cuda_count(void);

/* One line for the user; *usable says whether f8_device_cuda(0, ...) would succeed. Static memory. */
const char *f8_device_cuda_summary(int *usable);

#endif
