/* device_nocuda.c - what stands for device_cuda.c in a build without CUDA. */
#include "device/device.h"

fp8flow_status f8_device_cuda(int index, const f8_device **device)
{
    (void)device;
    return F8_FAIL(ENOSYS, "cuda: device %d asked for, this build has no CUDA", index);
}

int f8_device_cuda_count(void)
{
    return 0;
}

const char *f8_device_cuda_summary(int *usable)
{
    *usable = 0;
    return "not in this build";
}
