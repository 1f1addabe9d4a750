/* fuzz_safetensors.c - any bytes as a safetensors file: open, look at everything, check the data. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* What an accepted file promises; a broken promise is a crash for the fuzzer. */
static void check_file(const f8_safetensors *file, int64_t size)
{
    int64_t total = 0, unchecked;
    for (int64_t i = 0; i < f8_safetensors_count(file); i++) {
        f8_stored_tensor tensor = f8_safetensors_at(file, i), found;
        if (!f8_safetensors_find(file, tensor.name, &found) || found.offset != tensor.offset) abort();
        if (tensor.offset < 8 || tensor.bytes < 0 || tensor.bytes > size - tensor.offset) abort();
        total += tensor.bytes;
    }
    if (total > size - 8) abort();
    f8_safetensors_metadata(file, "format");
    fp8flow_status status = f8_safetensors_verify(file, &unchecked);
    if (status != FP8FLOW_OK && status != FP8FLOW_EFORMAT) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    char path[64];
    int memory = memfd_create("fuzz", MFD_CLOEXEC);
    if (memory < 0 || write(memory, bytes, size) != (ssize_t)size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
    f8_safetensors *file = NULL;
    if (f8_safetensors_open(path, &file) == FP8FLOW_OK) check_file(file, (int64_t)size);
    f8_safetensors_close(file);
    close(memory);
    return 0;
}
