/* buffer.c - see buffer.h. */
#include "io/buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

fp8flow_status f8_grow(const char *what, void *array, size_t *capacity, size_t needed, size_t size)
{
    if (needed <= *capacity) return FP8FLOW_OK;
    size_t count = *capacity < SIZE_MAX / 2 && *capacity * 2 > needed ? *capacity * 2 : needed;
    size_t bytes;
    void *old, *new = NULL;
    memcpy(&old, array, sizeof old);
    if (count < 16) count = 16;
    if (!__builtin_mul_overflow(count, size, &bytes)) new = realloc(old, bytes);
    F8_REQUIRE(new, ENOMEM, "%s: no memory for %zu items of %zu bytes", what, count, size);
    memcpy(array, &new, sizeof new);
    *capacity = count;
    return FP8FLOW_OK;
}

/* Room for `count` more bytes and the NUL. */
static bool reserve(f8_buffer *buffer, size_t count)
{
    if (buffer->failed) return false;
    if (count >= SIZE_MAX - buffer->size ||
        f8_grow("text", &buffer->data, &buffer->capacity, buffer->size + count + 1, 1) != FP8FLOW_OK)
        buffer->failed = true;
    return !buffer->failed;
}

void f8_buffer_append(f8_buffer *buffer, const void *bytes, size_t count)
{
    if (!reserve(buffer, count)) return;
    if (count) memcpy(buffer->data + buffer->size, bytes, count);
    buffer->size += count;
    buffer->data[buffer->size] = 0;
}

void f8_buffer_text(f8_buffer *buffer, const char *text)
{
    f8_buffer_append(buffer, text, strlen(text));
}

void f8_buffer_format(f8_buffer *buffer, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) buffer->failed = true;
    if (!reserve(buffer, length < 0 ? 0 : (size_t)length)) return;
    va_start(arguments, format);
    vsnprintf(buffer->data + buffer->size, (size_t)length + 1, format, arguments);
    va_end(arguments);
    buffer->size += (size_t)length;
}

fp8flow_status f8_buffer_check(const f8_buffer *buffer, const char *what)
{
    F8_REQUIRE(!buffer->failed, ENOMEM, "%s: no memory beyond %zu bytes of text", what, buffer->size);
    return FP8FLOW_OK;
}

void f8_buffer_free(f8_buffer *buffer)
{
    free(buffer->data);
    *buffer = (f8_buffer){ 0 };
}
