/* nvml.c - see nvml.h. The declarations of NVML are repeated here: its header is not part of the toolkit's core. */
#include "nvml.h"

#include <dlfcn.h>
#include <string.h>

enum { NVML_SUCCESS = 0, NVML_CLOCK_SM = 1 };

/* C has no conversion from a data pointer to a function pointer; their bits are the same where there is dlsym. */
static int find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol ? 0 : -1;
}

static int find_device(nvml_meter *meter, const char *bus_id)
{
    int (*init)(void), (*by_bus_id)(const char *, void **);
    if (find(meter->library, "nvmlInit_v2", &init) != 0) return -1;
    if (find(meter->library, "nvmlShutdown", &meter->shutdown) != 0) return -1;
    if (find(meter->library, "nvmlDeviceGetHandleByPciBusId_v2", &by_bus_id) != 0) return -1;
    if (find(meter->library, "nvmlDeviceGetClockInfo", &meter->get_clock) != 0) return -1;
    if (find(meter->library, "nvmlDeviceGetPowerUsage", &meter->get_power) != 0) return -1;
    if (init() != NVML_SUCCESS) return -1;
    if (by_bus_id(bus_id, &meter->device) == NVML_SUCCESS) return 0;
    (void)meter->shutdown();
    return -1;
}

void nvml_open(nvml_meter *meter, const char *bus_id)
{
    *meter = (nvml_meter){ .library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL) };
    if (!meter->library || find_device(meter, bus_id) == 0) return;
    (void)dlclose(meter->library);
    *meter = (nvml_meter){ 0 };
}

void nvml_close(nvml_meter *meter)
{
    if (!meter->library) return;
    (void)meter->shutdown();
    (void)dlclose(meter->library);
}

double nvml_megahertz(const nvml_meter *meter)
{
    unsigned megahertz = 0;
    if (!meter->library || meter->get_clock(meter->device, NVML_CLOCK_SM, &megahertz) != NVML_SUCCESS) return 0;
    return megahertz;
}

double nvml_watt(const nvml_meter *meter)
{
    unsigned milliwatt = 0;
    if (!meter->library || meter->get_power(meter->device, &milliwatt) != NVML_SUCCESS) return 0;
    return 1e-3 * milliwatt;
}
