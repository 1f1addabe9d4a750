/* json_write.c - JSON text for metrics and state. Contract: json.h.
 *
 * Not jansson: a metrics line is written thousands of times and needs no tree, and jansson refuses NaN
 * and text that is not UTF-8, both of which a log must survive.
 */
#include "io/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/utf8.h"

void f8_json_quote(f8_buffer *out, const char *text)
{
    size_t size = strlen(text);
    f8_buffer_text(out, "\"");
    for (size_t at = 0; at < size;) {
        size_t length = f8_utf8_length(text + at, size - at);
        unsigned char c = (unsigned char)text[at];
        if (length == 0) f8_buffer_text(out, "\xEF\xBF\xBD");
        else if (c == '"' || c == '\\') f8_buffer_format(out, "\\%c", c);
        else if (c == '\n') f8_buffer_text(out, "\\n");
        else if (c < 0x20 || c == 0x7F) f8_buffer_format(out, "\\u%04x", c);
        else f8_buffer_append(out, text + at, length);
        at += length ? length : 1;
    }
    f8_buffer_text(out, "\"");
}

/* Comma and key before a value. */
static void begin_value(f8_json_writer *writer, const char *key)
{
    if (writer->comma) f8_buffer_text(writer->out, ",");
    if (key) {
        f8_json_quote(writer->out, key);
        f8_buffer_text(writer->out, ":");
    }
    writer->comma = true;
}

static void begin_container(f8_json_writer *writer, const char *key, const char *bracket)
{
    begin_value(writer, key);
    f8_buffer_text(writer->out, bracket);
    writer->comma = false;
}

static void end_container(f8_json_writer *writer, const char *bracket)
{
    f8_buffer_text(writer->out, bracket);
    writer->comma = true;
}

void f8_json_begin_object(f8_json_writer *writer, const char *key)
{
    begin_container(writer, key, "{");
}

void f8_json_end_object(f8_json_writer *writer)
{
    end_container(writer, "}");
}

void f8_json_begin_array(f8_json_writer *writer, const char *key)
{
    begin_container(writer, key, "[");
}

void f8_json_end_array(f8_json_writer *writer)
{
    end_container(writer, "]");
}

void f8_json_write_int(f8_json_writer *writer, const char *key, int64_t value)
{
    begin_value(writer, key);
    f8_buffer_format(writer->out, "%" PRId64, value);
}

/* printf writes the locale's decimal point, which may be several bytes: whatever is neither digit, sign
 * nor exponent becomes one '.'. A number without point and exponent gets ".0", so that it reads back as
 * a real and -0 keeps its sign. */
static void write_finite(f8_buffer *out, double value)
{
    char text[64], clean[64];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    size_t size = 0;
    bool real = false, in_point = false;
    for (const char *at = text; *at; at++) {
        bool point = !strchr("0123456789+-e", *at);
        real = real || point || *at == 'e';
        if (!point) clean[size++] = *at;
        else if (!in_point) clean[size++] = '.';
        in_point = point;
    }
    f8_buffer_append(out, clean, size);
    if (!real) f8_buffer_text(out, ".0");
}

void f8_json_write_double(f8_json_writer *writer, const char *key, double value)
{
    begin_value(writer, key);
    if (isfinite(value)) write_finite(writer->out, value);
    else f8_buffer_text(writer->out, "null");
}

void f8_json_write_bool(f8_json_writer *writer, const char *key, bool value)
{
    begin_value(writer, key);
    f8_buffer_text(writer->out, value ? "true" : "false");
}

void f8_json_write_string(f8_json_writer *writer, const char *key, const char *value)
{
    begin_value(writer, key);
    f8_json_quote(writer->out, value);
}
