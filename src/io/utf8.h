/* utf8.h - one strict decoder for the JSON writer and the safetensors header. */
#ifndef F8_IO_UTF8_H
#define F8_IO_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Length of the well-formed character at text[0..size), size >= 1; 0 if there is none: a stray or missing
 * continuation, an overlong form, a surrogate, a value above U+10FFFF. */
static inline size_t f8_utf8_length(const char *text, size_t size)
{
    const unsigned char *byte = (const unsigned char *)text;
    if (byte[0] < 0x80) return 1;
    size_t length = byte[0] >= 0xF0 ? 4 : byte[0] >= 0xE0 ? 3 : 2;
    static const uint32_t smallest[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    if (byte[0] < 0xC2 || byte[0] > 0xF4 || length > size) return 0;
    uint32_t code = byte[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((byte[i] & 0xC0) != 0x80) return 0;
        code = code << 6 | (byte[i] & 0x3F);
    }
    if (code < smallest[length] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return 0;
    return length;
}

#endif
