/* device.h - memory of a backend, no arithmetic. One table of functions per kind of device.
 *
 * Everything above layer 1 allocates through this table, so that a GPU lands beside the CPU without a
 * change to its callers. Memory is aligned to 128 bytes and, on the CPU, committed only when touched.
 */
#ifndef F8_DEVICE_DEVICE_H
#define F8_DEVICE_DEVICE_H

#include "base/status.h"

typedef struct {
    const char *name;
    /* *memory of `bytes` (0 allowed, gives a valid pointer). ENOMEM names the bytes. */
    fp8flow_status (*alloc)(size_t bytes, void **memory);
    void (*free)(void *memory); /* NULL allowed */
} f8_device;

const f8_device *f8_device_cpu(void);

#endif
