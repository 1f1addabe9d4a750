/* cost.h - what an operator call must move and multiply at least: a pure function of its arguments' shapes.
 *
 * No array is read. The rows of a grouped activation are known to the device only: what depends on them is counted
 * per row, and added for as many rows as somebody knows.
 */
#ifndef F8_OPS_COST_H
#define F8_OPS_COST_H

#include "ops/ops.h"

typedef struct {
    double bytes, flops;         /* that do not depend on the rows in use */
    double row_bytes, row_flops; /* for each row in use */
    int64_t capacity;            /* rows in use at most; 0: nothing depends on them */
    int64_t groups;              /* experts of the call; 0: it knows none */
    fp8flow_dtype dtype;         /* of the first operand of products */
    char label[FP8FLOW_TRACE_LABEL_BYTES];
} f8_cost;

/* args: the argument struct of `op`, which has passed its checks. */
f8_cost f8_cost_of(f8_op op, const void *args);

#endif
