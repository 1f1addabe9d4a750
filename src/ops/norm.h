/* norm.h - the limit that the checks and the fast rmsnorm_backward agree on. */
#ifndef F8_OPS_NORM_H
#define F8_OPS_NORM_H

#include "ops/plain.h"

enum {
    /* Rows are cut into this many slabs, whatever the number of threads; each has a partial dweight. */
    F8_NORM_SLABS = 32,
    /* All partial gradients fit into one thread's scratch. */
    F8_NORM_MAX_WIDTH = F8_SCRATCH_BYTES / 4 / F8_NORM_SLABS
};

#endif
