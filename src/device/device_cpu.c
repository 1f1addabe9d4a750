/* device_cpu.c - host memory. */
#include "device/device.h"

#include <stdlib.h>

enum { ALIGNMENT = 128 };

static fp8flow_status cpu_alloc(size_t bytes, void **memory)
{
    F8_REQUIRE(bytes < SIZE_MAX / 2, ENOMEM, "memory: %zu bytes is not a possible size", bytes);
    size_t rounded = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    *memory = aligned_alloc(ALIGNMENT, rounded);
    F8_REQUIRE(*memory, ENOMEM, "memory: the system refused %zu bytes", bytes);
    return FP8FLOW_OK;
}

static void cpu_free(void *memory)
{
    free(memory);
}

const f8_device *f8_device_cpu(void)
{
    static const f8_device device = { "cpu", cpu_alloc, cpu_free };
    return &device;
}
