/* device.h - what runs the operators of a command: the processor or a GPU, as --device and --backend say. */
#ifndef CLI_DEVICE_H
#define CLI_DEVICE_H

#include "cli.h"

#define CLI_DEVICE_NAMES "auto|cpu|cuda"

/* Names in the order of fp8flow_backend. */
#define CLI_BACKEND_NAMES "cpu|reference"

#define CLI_OPTION_DEVICE(type, field)                         \
    CLI_OPTION_CHOICE(type, field, "device", CLI_DEVICE_NAMES, \
                      "what runs the operators; auto: Hopper GPUs where each rank has one of its own")

/* device: position in CLI_DEVICE_NAMES. *backend: what --backend chose for the CPU, and then the fp8flow_backend that
 * runs. CLI_DONE, or an exit code with the error already printed. */
int cli_choose_backend(const cli_command *command, int32_t device, int64_t ranks, int32_t *backend);

/* The how manyth rank of its machine a rank is. Ranks are threads of this process, or processes that mpirun or srun has
 * started. */
int32_t cli_place_of_rank(int32_t rank);

/* The GPU of a rank: those of a machine take them in turn. 0 where there is none. */
int32_t cli_gpu_of_rank(int32_t rank);

/* "NVIDIA H200, 151 GB, 132 multiprocessors" or "cpu, 2 threads". `buffer` is returned. */
enum { CLI_DEVICE_BYTES = 192 };
const char *cli_device_text(char buffer[CLI_DEVICE_BYTES], int32_t backend, int64_t threads);

#endif
