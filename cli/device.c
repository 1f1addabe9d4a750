/* device.c - see device.h. */
#include "device.h"

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
    if (device == DEVICE_CUDA && ranks > 1)
        return cli_fail_usage(command, "--device cuda runs on one rank, got --ranks %lld", (long long)ranks);
    int fits = is_plain && ranks == 1;
    if (device == DEVICE_CUDA || (device == DEVICE_AUTO && fits && find_cuda().available))
        *backend = (int32_t)FP8FLOW_CUDA;
    return CLI_DONE;
}

const char *cli_device_text(char buffer[CLI_DEVICE_BYTES], int32_t backend, int64_t threads)
{
    if (backend == (int32_t)FP8FLOW_CUDA) snprintf(buffer, CLI_DEVICE_BYTES, "%s", find_cuda().detail);
    else
        snprintf(buffer, CLI_DEVICE_BYTES, "cpu, %lld thread%s%s", (long long)threads, threads == 1 ? "" : "s",
                 backend == (int32_t)FP8FLOW_REFERENCE ? ", reference operators" : "");
    return buffer;
}
