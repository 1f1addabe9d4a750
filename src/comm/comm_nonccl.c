/* comm_nonccl.c - what stands for comm_nccl.c in a build without CUDA, or without the header of NCCL. */
#include "comm/comm_nccl.h"

fp8flow_status f8_comm_nccl_create(fp8flow_comm *host, const f8_device *device, void *stream, fp8flow_comm **comm)
{
    (void)stream;
    *comm = NULL;
    return f8_comm_nccl_usable(host, device);
}

fp8flow_status f8_comm_nccl_usable(fp8flow_comm *host, const f8_device *device)
{
    (void)host;
    return F8_FAIL(ENOSYS, "nccl: ranks on the device %s: this build has no NCCL", device->name);
}

const char *f8_comm_nccl_summary(int *usable)
{
    *usable = 0;
    return "not in this build";
}
