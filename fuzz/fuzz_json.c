/* fuzz_json.c - any bytes as a configuration: parse, ask for every kind of value, write strings back. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void ask_everything(const f8_json *json)
{
    static const char *const names[] = { "a", "b" };
    int64_t integer, list[4], count;
    double real;
    bool truth;
    const char *string;
    int choice;
    f8_json section;
    (void)f8_json_int(json, "a", -10, 10, &integer);
    (void)f8_json_double(json, "a", 0, 1, &real);
    (void)f8_json_bool(json, "a", &truth);
    (void)f8_json_choice(json, "a", names, 2, &choice);
    (void)f8_json_int_array(json, "a", (f8_json_array_limits){ 0, 9, 4 }, list, &count);
    (void)f8_json_require_known(json, names, 2);
    if (f8_json_section(json, "a", &section) == FP8FLOW_OK) ask_everything(&section);
    if (f8_json_string(json, "a", &string) != FP8FLOW_OK) return;

    /* A string that was accepted must survive a round trip. */
    f8_buffer text = { 0 };
    f8_json_writer writer = { .out = &text };
    f8_json back;
    const char *again = NULL;
    f8_json_begin_object(&writer, NULL);
    f8_json_write_string(&writer, "a", string);
    f8_json_end_object(&writer);
    if (f8_json_parse("again", text.data, text.size, &back) != FP8FLOW_OK) abort();
    if (f8_json_string(&back, "a", &again) != FP8FLOW_OK || strcmp(again, string) != 0) abort();
    f8_json_free(&back);
    f8_buffer_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    f8_json root;
    if (size > F8_JSON_CONFIG_LIMIT) return 0;
    if (f8_json_parse("fuzz", (const char *)bytes, size, &root) == FP8FLOW_OK) ask_everything(&root);
    f8_json_free(&root);
    return 0;
}
