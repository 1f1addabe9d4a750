/* json.h - JSON from people who make mistakes and people who mean harm: strict reading, typed access,
 * and a small writer.
 *
 * Reading: jansson, told to reject duplicate keys; before it sees the text, a NUL byte anywhere is
 * refused (it would skip one after a number). The caller's size limit bounds memory: jansson may need
 * about 50 times the text. Nesting deeper than 2048 is refused. All failures are EFORMAT, one line:
 *     config.json: rope_scaling.factor is "fast", expected a number in [1, 1000]
 * Numbers do not depend on the locale, in either direction.
 */
#ifndef F8_IO_JSON_H
#define F8_IO_JSON_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "io/buffer.h"

/* Enough for any hand-written configuration. */
enum { F8_JSON_CONFIG_LIMIT = 1 << 20 };

/* ---- Reading ---- */

/* A JSON object, with the names that messages need. Borrows both; sections live as long as their root. */
typedef struct {
    const char *file;
    const json_t *object;
    char section[80]; /* "" for the root, else "rope_scaling." */
} f8_json;

/* Parse a text whose root is an object. `file` names it in messages. Release with f8_json_free. */
fp8flow_status f8_json_parse(const char *file, const char *text, size_t size, f8_json *root);

/* The same from a file of at most `limit` bytes; root->file is `path`, borrowed. */
fp8flow_status f8_json_open(const char *path, size_t limit, f8_json *root);
void f8_json_free(f8_json *root); /* harmless on {0} */

/* Required values. null counts as missing. */
fp8flow_status f8_json_int(const f8_json *json, const char *key, int64_t min, int64_t max, int64_t *value);
fp8flow_status f8_json_double(const f8_json *json, const char *key, double min, double max, double *value);
fp8flow_status f8_json_bool(const f8_json *json, const char *key, bool *value);
fp8flow_status f8_json_string(const f8_json *json, const char *key, const char **value); /* borrowed */
/* Index of the string in names[count]. */
fp8flow_status f8_json_choice(const f8_json *json, const char *key, const char *const *names, int count, int *value);
/* The object under `key` as a section of its own. */
fp8flow_status f8_json_section(const f8_json *json, const char *key, f8_json *section);
/* An array of at most max_count integers in [min, max]. */
typedef struct {
    int64_t min, max;
    int64_t max_count;
} f8_json_array_limits;
fp8flow_status f8_json_int_array(const f8_json *json, const char *key, f8_json_array_limits limits, int64_t *values,
                                 int64_t *count);

/* Present and not null? Optional values: `if (f8_json_has(j, "x")) F8_TRY(f8_json_int(j, "x", ...));` keeps
 * the default that the caller has put into *value, and still checks a value that is there. */
bool f8_json_has(const f8_json *json, const char *key);

/* Append the names of keys that are not among known[count], as "a, b and 3 more"; *num_unknown may be 0. */
fp8flow_status f8_json_unknown_keys(const f8_json *json, const char *const *known, int count, f8_buffer *names,
                                    int64_t *num_unknown);

/* For formats of our own: an unknown key is an error. */
fp8flow_status f8_json_require_known(const f8_json *json, const char *const *known, int count);

/* ---- Writing ---- */

/* Appends to a buffer; problems of memory are the buffer's (f8_buffer_check at the end). Keys are NULL
 * inside arrays and for the outermost value. Nesting is the caller's duty. */
typedef struct {
    f8_buffer *out;
    bool comma; /* something stands before the next value */
} f8_json_writer;

void f8_json_begin_object(f8_json_writer *writer, const char *key);
void f8_json_end_object(f8_json_writer *writer);
void f8_json_begin_array(f8_json_writer *writer, const char *key);
void f8_json_end_array(f8_json_writer *writer);
void f8_json_write_int(f8_json_writer *writer, const char *key, int64_t value);
/* Shortest text that reads back as the same double; NaN and infinities become null. */
void f8_json_write_double(f8_json_writer *writer, const char *key, double value);
void f8_json_write_bool(f8_json_writer *writer, const char *key, bool value);
/* Bytes that are not UTF-8 (a file name may hold any) become U+FFFD. */
void f8_json_write_string(f8_json_writer *writer, const char *key, const char *value);

/* A quoted and escaped string alone. */
void f8_json_quote(f8_buffer *out, const char *text);

#endif
