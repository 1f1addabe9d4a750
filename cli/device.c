/* device.c - see device.h. */
#include "device.h"

#include <stdlib.h>
#include <string.h>

enum { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA }; /* positions in CLI_DEVICE_NAMES */

static fp8flow_feature find_cuda(void)
{
    fp8flow_feature feature;
    for (int64_t i = 0; fp8flow_feature_get(i, &feature) == FP8FLOW_OK; i++)
        if (strcmp(feature.name, "CUDA") == 0) return feature;
    return (fp8flow_feature){ .name = "CUDA", .detail = "not in this version" };
}

int cli_choose_backend(const cli_command *command, int32_t device, int64_t ranks, int32_t *backend)
{
    int is_plain = *backend == (int32_t)FP8FLOW_CPU;
    if (device == DEVICE_CUDA && !is_plain)
        return cli_fail_usage(command, "--backend reference is of the CPU, --device cuda has one backend");
    int fits = is_plain && (ranks == 1 || ranks <= fp8flow_device_count());
    if (device == DEVICE_CUDA || (device == DEVICE_AUTO && fits && find_cuda().available))
        *backend = (int32_t)FP8FLOW_CUDA;
    return CLI_DONE;
}

/* An environment variable that is a number; -1: it is not. */
static int32_t number_of(const char *variable)
{
    const char *text = getenv(variable);
    char *end = NULL;
    long number = text ? strtol(text, &end, 10) : -1;
    return end && end != text && *end == '\0' && number >= 0 && number < INT32_MAX ? (int32_t)number : -1;
}

int32_t cli_place_of_rank(int32_t rank)
{
    /* Open MPI; MPICH and its relatives; srun. Alone in its job, a process may have ranks as threads. */
    static const struct {
        const char *size, *place;
    } launchers[] = { { "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK" },
                      { "PMI_SIZE", "MPI_LOCALRANKID" },
                      { "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID" } };
    for (int i = 0; i < 3; i++) {
        int32_t place = number_of(launchers[i].place);
        if (place >= 0 && number_of(launchers[i].size) > 1) return place;
    }
    return rank;
}

int32_t cli_gpu_of_rank(int32_t rank)
{
    int32_t count = fp8flow_device_count();
    return count > 0 ? cli_place_of_rank(rank) % count : 0;
}

const char *cli_device_text(char buffer[CLI_DEVICE_BYTES], int32_t backend, int64_t threads)
{
    if (backend == (int32_t)FP8FLOW_CUDA) snprintf(buffer, CLI_DEVICE_BYTES, "%s", find_cuda().detail);
    else
        snprintf(buffer, CLI_DEVICE_BYTES, "cpu, %lld thread%s%s", (long long)threads, threads == 1 ? "" : "s",
                 backend == (int32_t)FP8FLOW_REFERENCE ? ", reference operators" : "");
    return buffer;
}
