/* comm_nccl.h - ranks on GPUs of their own: collectives on device memory through NCCL.
 *
 * The library is looked for when it is first needed (libnccl.so.2): one program runs with and without it. In a build
 * without CUDA, or where nccl.h was not found, comm_nonccl.c says so in place of comm_nccl.c.
 */
#ifndef F8_COMM_COMM_NCCL_H
#define F8_COMM_COMM_NCCL_H

#include "comm/comm.h"
#include "device/device.h"

/* The ranks of `host` as a communicator for memory of `device`, whose collectives are put on `stream` and not waited
 * for; freed with f8_comm_free before `host` ends. Collective over `host`, which carries the identifier from rank 0,
 * and which learns of failures here as this communicator does of failures there. The GPU of a rank is the current
 * device of its thread; each rank needs one of its own (f8_comm_nccl_usable). Errors: ENOSYS, ECOMM, EBACKEND. */
fp8flow_status f8_comm_nccl_create(fp8flow_comm *host, const f8_device *device, void *stream, fp8flow_comm **comm);

/* OK where create can work: every rank has found NCCL and has a GPU that no other rank has. Else ENOSYS with the first
 * reason, the same on every rank. Collective over `host`. */
fp8flow_status f8_comm_nccl_usable(fp8flow_comm *host, const f8_device *device);

/* One line for the user: version, or why there is none. Static memory. */
const char *f8_comm_nccl_summary(int *usable);

#endif
