/* nvml.h - SM clock and power of a GPU while it works, from the driver's management library (NVML).
 *
 * The library is looked for at run time: where there is none, or it does not answer, figures are 0.
 */
#ifndef CLI_NVML_H
#define CLI_NVML_H

typedef struct {
    void *library, *device;
    int (*get_clock)(void *device, unsigned which, unsigned *megahertz);
    int (*get_power)(void *device, unsigned *milliwatt);
    int (*shutdown)(void);
} nvml_meter;

/* bus_id: of PCI, as fp8flow_device_info has it. */
void nvml_open(nvml_meter *meter, const char *bus_id);
void nvml_close(nvml_meter *meter);

/* Of the streaming multiprocessors, now. */
double nvml_megahertz(const nvml_meter *meter);

/* Mean of the last second, which is what the driver keeps. */
double nvml_watt(const nvml_meter *meter);

#endif
