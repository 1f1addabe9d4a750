/* json.c - strict reading of JSON and typed access to it. Contract: json.h. Writing: json_write.c. */
#include "io/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"

fp8flow_status f8_json_parse(const char *file, const char *text, size_t size, f8_json *root)
{
    *root = (f8_json){ .file = file };
    const char *nul = size ? memchr(text, 0, size) : NULL;
    F8_REQUIRE(!nul, EFORMAT, "%s: NUL byte at offset %zu", file, (size_t)(nul - text));
    json_error_t error;
    json_t *value = json_loadb(size ? text : "", size, JSON_REJECT_DUPLICATES, &error);
    if (!value) {
        if (json_error_code(&error) == json_error_out_of_memory)
            return F8_FAIL(ENOMEM, "%s: no memory to parse %zu bytes of JSON", file, size);
        return F8_FAIL(EFORMAT, "%s: line %d, column %d: %s", file, error.line, error.column, error.text);
    }
    if (!json_is_object(value)) {
        json_decref(value);
        return F8_FAIL(EFORMAT, "%s: the root is an array, expected an object", file);
    }
    root->object = value;
    return FP8FLOW_OK;
}

fp8flow_status f8_json_open(const char *path, size_t limit, f8_json *root)
{
    *root = (f8_json){ .file = path };
    f8_buffer text;
    F8_TRY(f8_file_read_all(path, limit, &text));
    fp8flow_status status = f8_json_parse(path, text.data, text.size, root);
    f8_buffer_free(&text);
    return status;
}

void f8_json_free(f8_json *root)
{
    json_decref((json_t *)(uintptr_t)root->object);
    *root = (f8_json){ 0 };
}

/* ---- Messages ---- */

typedef struct {
    char text[96];
} description;

/* What a value is, in a few words: numbers and short strings as they are, the rest by kind. */
static description describe(const json_t *value)
{
    description d;
    if (json_is_object(value)) snprintf(d.text, sizeof d.text, "an object");
    else if (json_is_array(value)) snprintf(d.text, sizeof d.text, "an array of %zu", json_array_size(value));
    else if (json_is_string(value) && json_string_length(value) > 60)
        snprintf(d.text, sizeof d.text, "a string of %zu bytes", json_string_length(value));
    else {
        size_t length = json_dumpb(value, d.text, sizeof d.text - 1, JSON_ENCODE_ANY | JSON_COMPACT);
        d.text[length < sizeof d.text ? length : sizeof d.text - 1] = 0;
    }
    return d;
}

/* "<file>: <section><key> is <value>, expected <expected>". */
static fp8flow_status fail_value(const f8_json *json, const char *key, const json_t *value, const char *expected)
{
    return F8_FAIL(EFORMAT, "%s: %s%s is %s, expected %s", json->file, json->section, key, describe(value).text,
                   expected);
}

static fp8flow_status required(const f8_json *json, const char *key, const json_t **value)
{
    *value = json_object_get(json->object, key);
    F8_REQUIRE(*value, EFORMAT, "%s: %s%s is missing", json->file, json->section, key);
    F8_REQUIRE(!json_is_null(*value), EFORMAT, "%s: %s%s is null, a value is required", json->file, json->section, key);
    return FP8FLOW_OK;
}

/* ---- Typed access ---- */

bool f8_json_has(const f8_json *json, const char *key)
{
    const json_t *value = json_object_get(json->object, key);
    return value && !json_is_null(value);
}

static bool integer_in(const json_t *value, int64_t min, int64_t max)
{
    return json_is_integer(value) && json_integer_value(value) >= min && json_integer_value(value) <= max;
}

fp8flow_status f8_json_int(const f8_json *json, const char *key, int64_t min, int64_t max, int64_t *value)
{
    const json_t *found;
    char expected[80];
    F8_TRY(required(json, key, &found));
    if (!integer_in(found, min, max)) {
        snprintf(expected, sizeof expected, "an integer in [%" PRId64 ", %" PRId64 "]", min, max);
        return fail_value(json, key, found, expected);
    }
    *value = json_integer_value(found);
    return FP8FLOW_OK;
}

fp8flow_status f8_json_double(const f8_json *json, const char *key, double min, double max, double *value)
{
    const json_t *found;
    char expected[80];
    F8_TRY(required(json, key, &found));
    double number = json_number_value(found);
    /* Written so that a NaN would fail, too. */
    if (!json_is_number(found) || !isfinite(number) || !(number >= min && number <= max)) {
        snprintf(expected, sizeof expected, "a number in [%g, %g]", min, max);
        return fail_value(json, key, found, expected);
    }
    *value = number;
    return FP8FLOW_OK;
}

fp8flow_status f8_json_bool(const f8_json *json, const char *key, bool *value)
{
    const json_t *found;
    F8_TRY(required(json, key, &found));
    if (!json_is_boolean(found)) return fail_value(json, key, found, "true or false");
    *value = json_is_true(found);
    return FP8FLOW_OK;
}

fp8flow_status f8_json_string(const f8_json *json, const char *key, const char **value)
{
    const json_t *found;
    F8_TRY(required(json, key, &found));
    if (!json_is_string(found)) return fail_value(json, key, found, "a string");
    *value = json_string_value(found);
    return FP8FLOW_OK;
}

fp8flow_status f8_json_choice(const f8_json *json, const char *key, const char *const *names, int count, int *value)
{
    const json_t *found;
    F8_TRY(required(json, key, &found));
    for (int i = 0; json_is_string(found) && i < count; i++) {
        if (strcmp(json_string_value(found), names[i]) != 0) continue;
        *value = i;
        return FP8FLOW_OK;
    }
    f8_buffer expected = { 0 };
    for (int i = 0; i < count; i++) f8_buffer_format(&expected, "%s%s", i == 0 ? "one of " : ", ", names[i]);
    fp8flow_status status = fail_value(json, key, found, expected.failed || !expected.data ? "another" : expected.data);
    f8_buffer_free(&expected);
    return status;
}

fp8flow_status f8_json_section(const f8_json *json, const char *key, f8_json *section)
{
    const json_t *found;
    F8_TRY(required(json, key, &found));
    if (!json_is_object(found)) return fail_value(json, key, found, "an object");
    f8_json result = { .file = json->file, .object = found };
    snprintf(result.section, sizeof result.section, "%.39s%.38s.", json->section, key);
    *section = result;
    return FP8FLOW_OK;
}

fp8flow_status f8_json_int_array(const f8_json *json, const char *key, f8_json_array_limits limits, int64_t *values,
                                 int64_t *count)
{
    const json_t *found;
    char expected[120];
    F8_TRY(required(json, key, &found));
    snprintf(expected, sizeof expected, "an array of at most %" PRId64 " integers in [%" PRId64 ", %" PRId64 "]",
             limits.max_count, limits.min, limits.max);
    int64_t length = (int64_t)json_array_size(found);
    if (!json_is_array(found) || length > limits.max_count) return fail_value(json, key, found, expected);
    for (int64_t i = 0; i < length; i++) {
        const json_t *item = json_array_get(found, (size_t)i);
        F8_REQUIRE(integer_in(item, limits.min, limits.max), EFORMAT, "%s: %s%s[%" PRId64 "] is %s, expected %s",
                   json->file, json->section, key, i, describe(item).text, expected);
        values[i] = json_integer_value(item);
    }
    *count = length;
    return FP8FLOW_OK;
}

/* ---- Unknown keys ---- */

static bool is_known(const char *key, const char *const *known, int count)
{
    for (int i = 0; i < count; i++)
        if (strcmp(key, known[i]) == 0) return true;
    return false;
}

fp8flow_status f8_json_unknown_keys(const f8_json *json, const char *const *known, int count, f8_buffer *names,
                                    int64_t *num_unknown)
{
    enum { MAX_NAMED = 10 };
    /* jansson's iteration takes a non-const object, but only reads it. */
    json_t *object = (json_t *)(uintptr_t)json->object;
    int64_t unknown = 0;
    for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
        const char *key = json_object_iter_key(at);
        if (is_known(key, known, count)) continue;
        if (unknown < MAX_NAMED) f8_buffer_format(names, "%s%s%s", unknown ? ", " : "", json->section, key);
        unknown++;
    }
    if (unknown > MAX_NAMED) f8_buffer_format(names, " and %" PRId64 " more", unknown - MAX_NAMED);
    *num_unknown = unknown;
    return f8_buffer_check(names, json->file);
}

fp8flow_status f8_json_require_known(const f8_json *json, const char *const *known, int count)
{
    f8_buffer names = { 0 };
    int64_t unknown = 0;
    fp8flow_status status = f8_json_unknown_keys(json, known, count, &names, &unknown);
    if (status == FP8FLOW_OK && unknown)
        status = F8_FAIL(EFORMAT, "%s: unknown key%s: %s", json->file, unknown > 1 ? "s" : "", names.data);
    f8_buffer_free(&names);
    return status;
}
