/* buffer.h - growing arrays and growing text, the two containers of this layer.
 *
 * A text buffer remembers that memory ran out instead of making every append return a status: a writer
 * appends freely and asks once, with f8_buffer_check. {0} is an empty buffer. While size > 0 and nothing
 * failed, data[size] is a NUL that does not count.
 */
#ifndef F8_IO_BUFFER_H
#define F8_IO_BUFFER_H

#include <stdbool.h>

#include "base/status.h"

/* Make room for `needed` items of `size` bytes in *array (a pointer variable's address), at least doubling.
 * On ENOMEM the array is as it was; `what` names it in the message. */
fp8flow_status f8_grow(const char *what, void *array, size_t *capacity, size_t needed, size_t size);

typedef struct {
    char *data;
    size_t size, capacity;
    bool failed; /* an append found no memory; later ones do nothing */
} f8_buffer;

void f8_buffer_append(f8_buffer *buffer, const void *bytes, size_t count);
void f8_buffer_text(f8_buffer *buffer, const char *text);
void f8_buffer_format(f8_buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ENOMEM if any append failed. */
fp8flow_status f8_buffer_check(const f8_buffer *buffer, const char *what);
void f8_buffer_free(f8_buffer *buffer);

#endif
