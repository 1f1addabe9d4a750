/* status.c - the message of the last failure, one per thread. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 1024 };

static _Thread_local char last_message[MESSAGE_BYTES];

static void replace_control_characters(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7F) *text = '?';
}

static void write_message(const char *prefix_end, const char *format, va_list arguments)
{
    char text[MESSAGE_BYTES];
    vsnprintf(text, sizeof text, format, arguments);
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, "%s", prefix_end);
    replace_control_characters(text);
    memcpy(last_message, text, sizeof last_message);
}

fp8flow_status f8_fail(fp8flow_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_message("", format, arguments);
    va_end(arguments);
    return status;
}

fp8flow_status f8_fail_in(fp8flow_status status, const char *format, ...)
{
    char inner[MESSAGE_BYTES + 2] = ": ";
    memcpy(inner + 2, last_message, sizeof last_message);
    va_list arguments;
    va_start(arguments, format);
    write_message(inner, format, arguments);
    va_end(arguments);
    return status;
}

const char *fp8flow_last_error(void)
{
    return last_message;
}

const char *fp8flow_status_name(fp8flow_status status)
{
    switch (status) {
#define F8_X(name, value, text) \
    case FP8FLOW_##name: return #name;
        FP8FLOW_STATUS_LIST(F8_X)
#undef F8_X
    }
    return "unknown";
}
