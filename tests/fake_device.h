/* fake_device.h - a device whose memory happens to be the program's: what uses it must copy, and can be looked at. */
#ifndef F8_TESTS_FAKE_DEVICE_H
#define F8_TESTS_FAKE_DEVICE_H

#include <stdlib.h>
#include <string.h>

#include "device/device.h"

/* Of this thread. */
static _Thread_local struct {
    int64_t copied_bytes, host_bytes; /* host_bytes: that alloc_host has given and free_host not taken */
    int refuse_host_memory, fail_copies;
} fake;

static fp8flow_status fake_alloc_host(size_t bytes, void **memory)
{
    F8_REQUIRE(!fake.refuse_host_memory, ENOMEM, "fake: no host memory");
    size_t *block = malloc(64 + bytes);
    F8_REQUIRE(block, ENOMEM, "fake: no memory");
    *block = bytes;
    fake.host_bytes += (int64_t)bytes;
    *memory = (char *)block + 64;
    return FP8FLOW_OK;
}

static void fake_free_host(void *memory)
{
    if (!memory) return;
    size_t *block = (size_t *)(void *)((char *)memory - 64);
    fake.host_bytes -= (int64_t)*block;
    free(block);
}

static fp8flow_status fake_copy(void *stream, void *to, const void *from, size_t bytes)
{
    (void)stream;
    F8_REQUIRE(!fake.fail_copies, EBACKEND, "fake: a kernel has failed");
    fake.copied_bytes += (int64_t)bytes;
    memcpy(to, from, bytes);
    return FP8FLOW_OK;
}

static const f8_device *fake_device(void)
{
    static const f8_device device = {
        .name = "fake", .alloc_host = fake_alloc_host, .free_host = fake_free_host, .copy = fake_copy
    };
    return &device;
}

#endif
