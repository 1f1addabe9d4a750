/* device_cpu.c - host memory. */
#include "device/device.h"

#include <stdlib.h>
#include <unistd.h>

enum { ALIGNMENT = 128 };

/* Linux hands out addresses that no memory stands behind and kills the process when it uses them: what can never fit
 * is refused here. */
static size_t physical_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    return pages > 0 && page_bytes > 0 ? (size_t)pages * (size_t)page_bytes : SIZE_MAX;
}

static fp8flow_status cpu_alloc(size_t bytes, void **memory)
{
    F8_REQUIRE(bytes < SIZE_MAX / 2, ENOMEM, "memory: %zu bytes is not a possible size", bytes);
    size_t most = physical_memory();
    F8_REQUIRE(bytes <= most, ENOMEM, "memory: %zu bytes are needed, this machine has %zu", bytes, most);
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
