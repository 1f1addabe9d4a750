/* mirror_call.h - one call of the mirror: the arrays of an operator, and where they lie on the device. */
#ifndef F8_TESTS_MIRROR_CALL_H
#define F8_TESTS_MIRROR_CALL_H

#include "mirror.h"
#include "ops/ops.h"

enum { MIRROR_MAX_ARRAYS = 40, MIRROR_MAX_TENSORS = 10 };

/* What is read and written counts as written. */
typedef enum { MIRROR_IN, MIRROR_OUT } mirror_direction;

typedef struct {
    const char *name, *part;
    void *field; /* the pointer in the arguments of the device's call */
    char *host;
    int64_t bytes;
    mirror_direction direction;
    int range;
} mirror_array;

/* Arrays that share bytes. */
typedef struct {
    char *host;
    int64_t bytes, at; /* at: in the image */
    char *device, *allocated;
} mirror_range;

typedef struct {
    const char *name; /* of the operator */
    mirror_array arrays[MIRROR_MAX_ARRAYS];
    mirror_range ranges[MIRROR_MAX_ARRAYS];
    int num_arrays, num_ranges, num_tensors;
    int64_t used; /* bytes of the image */
    fp8flow_tensor tensors[MIRROR_MAX_TENSORS];
} mirror;

/* `field` is the address of a pointer to `bytes` bytes, which mirror_begin changes; a NULL stays one. */
void mirror_add_array(mirror *m, const char *name, void *field, int64_t bytes, mirror_direction direction);

/* A copy of a tensor, its arrays added; NULL for NULL. `groups`: of the call, in host memory. */
fp8flow_tensor *mirror_add_tensor(mirror *m, const char *name, const fp8flow_tensor *t, const fp8flow_groups *groups,
                                  mirror_direction direction);

/* From here on the fields point into the device, and it belongs to this thread until mirror_end, which must follow
 * whatever mirror_begin returned. `status`: of the call. */
fp8flow_status mirror_begin(mirror *m);
fp8flow_status mirror_end(mirror *m, fp8flow_status status);

/* Calls go to a device from now on: "cuda" or "mirror". */
fp8flow_status mirror_open(const char *name);

/* The context of the device. */
fp8flow_context *mirror_context(void);

/* FP8FLOW_TEST_EVERY. Above 1, results of the device are dropped: mirror_end leaves the outputs alone. */
int mirror_every(void);

/* The table of a mirrored context. */
extern const f8_ops mirror_ops;

#endif
