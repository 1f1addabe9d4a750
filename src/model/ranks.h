/* ranks.h - the R = EP x DP ranks of a training job in the groups that it uses.
 *
 *               place 0    place 1   ...  place EP-1
 *   group 0     rank 0     rank 1    ...  rank EP-1        a row (ep) shares the experts out among its ranks
 *   group 1     rank EP    ...                             a column (dp) has the same experts on all its ranks
 *   ...
 *   group DP-1
 *
 * Everything but the experts is the same on all ranks. Collectives over arrays in a context's memory go through the
 * comms ending in _device, collectives over the program's memory through the others.
 */
#ifndef F8_MODEL_RANKS_H
#define F8_MODEL_RANKS_H

#include "comm/comm.h"
#include "ops/ops.h"

typedef struct {
    fp8flow_comm *world, *ep, *dp;
    fp8flow_comm *world_device, *ep_device, *dp_device; /* the layers use ep's */
} f8_ranks;

/* expert_parallel: EP; 0: all ranks. Collective over world, which is borrowed. Errors: EINVAL naming both numbers, and
 * what the transport says. */
fp8flow_status f8_ranks_create(const fp8flow_context *context, fp8flow_comm *world, int32_t expert_parallel,
                               f8_ranks *ranks);
void f8_ranks_release(f8_ranks *ranks);

/* f8_comm_clock_start and read of those ending in _device. */
void f8_ranks_clock_start(const f8_ranks *ranks);
fp8flow_status f8_ranks_clock_read(const f8_ranks *ranks);

/* What this rank has spent on all of them. */
f8_comm_spent f8_ranks_spent(const f8_ranks *ranks, f8_collective collective);

#endif
