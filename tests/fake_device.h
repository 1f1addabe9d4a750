/* fake_device.h - a device whose memory happens to be the program's: what uses it must copy, and can be looked at. */
#ifndef F8_TESTS_FAKE_DEVICE_H
#define F8_TESTS_FAKE_DEVICE_H

#include <stdlib.h>
#include <string.h>

#include "device/device.h"

/* Of this thread. */
static _Thread_local struct {
    int64_t copied_bytes, host_bytes; /* host_bytes: that alloc_host has given and free_host not taken */
    int refuse_host_memory, fail_copies, refuse_events;
    int64_t num_events, num_readings;
    void *event_stream[2]; /* of the last two that were recorded, the later one first */
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

static fp8flow_status fake_event_create(void **event)
{
    F8_REQUIRE(!fake.refuse_events, EBACKEND, "fake: no event");
    F8_TRY(f8_device_cpu()->event_create(event));
    fake.num_events++;
    return FP8FLOW_OK;
}

static void fake_event_destroy(void *event)
{
    f8_device_cpu()->event_destroy(event);
    fake.num_events--;
}

static fp8flow_status fake_event_record(void *event, void *stream)
{
    fake.event_stream[1] = fake.event_stream[0];
    fake.event_stream[0] = stream;
    return f8_device_cpu()->event_record(event, stream);
}

static fp8flow_status fake_event_elapsed(void *start, void *stop, double *milliseconds)
{
    fake.num_readings++;
    return f8_device_cpu()->event_elapsed(start, stop, milliseconds);
}

static const f8_device *fake_device(void)
{
    static const f8_device device = { .name = "fake",
                                      .alloc_host = fake_alloc_host,
                                      .free_host = fake_free_host,
                                      .copy = fake_copy,
                                      .event_create = fake_event_create,
                                      .event_destroy = fake_event_destroy,
                                      .event_record = fake_event_record,
                                      .event_elapsed = fake_event_elapsed };
    return &device;
}

#endif
