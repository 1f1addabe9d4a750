/* safetensors_write.c - the writer. Contract: safetensors.h.
 *
 * Two passes over the tensors' memory, piece by piece: checksums stand in the header, which comes first. The header is
 * padded with spaces to a multiple of 8 and wide elements come first, so that every tensor is aligned for
 * programs that map the file.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "io/file.h"
#include "io/json.h"
#include "io/safetensors_header.h"
#include "io/utf8.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are written as they lie in memory");

typedef struct {
    const char *path;
    const f8_tensor_to_store *tensors;
    int64_t num_tensors;
    const f8_metadata_pair *metadata;
    int64_t num_metadata;
    const f8_tensor_access *access;
    char *piece; /* [PIECE] */
} task;

enum { PIECE = 1 << 20 };

static int64_t bytes_of(const f8_tensor_to_store *tensor)
{
    int64_t bytes = 0;
    f8_stored_bytes(tensor->dtype, tensor->shape, tensor->rank, &bytes);
    return bytes;
}

/* ---- Checks ---- */

static bool is_utf8(const char *text)
{
    size_t size = strlen(text), at = 0;
    while (at < size) {
        size_t length = f8_utf8_length(text + at, size - at);
        if (length == 0) return false;
        at += length;
    }
    return true;
}

static fp8flow_status check_tensor(const task *t, const f8_tensor_to_store *tensor)
{
    int64_t bytes;
    F8_REQUIRE(tensor->name && is_utf8(tensor->name), EINVAL, "%s: a tensor's name is NULL or not UTF-8", t->path);
    F8_REQUIRE(strcmp(tensor->name, "__metadata__") != 0, EINVAL, "%s: no tensor can be named __metadata__", t->path);
    F8_REQUIRE((unsigned)tensor->dtype < F8_NUM_STORED_DTYPES, EINVAL, "%s: tensor \"%.200s\": dtype %d", t->path,
               tensor->name, (int)tensor->dtype);
    F8_REQUIRE(tensor->rank >= 0 && tensor->rank <= F8_STORED_MAX_RANK, ESHAPE,
               "%s: tensor \"%.200s\": %d dimensions, at most %d are allowed", t->path, tensor->name, tensor->rank,
               F8_STORED_MAX_RANK);
    F8_REQUIRE(f8_stored_bytes(tensor->dtype, tensor->shape, tensor->rank, &bytes), ESHAPE,
               "%s: tensor \"%.200s\": a negative dimension, or more than 2^63 bytes", t->path, tensor->name);
    F8_REQUIRE(tensor->data || bytes == 0, EINVAL, "%s: tensor \"%.200s\": data is NULL", t->path, tensor->name);
    return FP8FLOW_OK;
}

static fp8flow_status check_pair(const task *t, const f8_metadata_pair *pair)
{
    F8_REQUIRE(pair->key && pair->value && is_utf8(pair->key) && is_utf8(pair->value), EINVAL,
               "%s: a metadata key or value is NULL or not UTF-8", t->path);
    F8_REQUIRE(strncmp(pair->key, "xxh3", 4) != 0, EINVAL, "%s: metadata key \"%.200s\" is reserved for checksums",
               t->path, pair->key);
    return FP8FLOW_OK;
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Sorts names. */
static fp8flow_status check_unique(const char *path, const char **names, int64_t count)
{
    if (count > 0) qsort(names, (size_t)count, sizeof *names, compare_strings);
    for (int64_t i = 1; i < count; i++)
        F8_REQUIRE(strcmp(names[i - 1], names[i]) != 0, EINVAL, "%s: \"%.200s\" is given twice", path, names[i]);
    return FP8FLOW_OK;
}

static fp8flow_status check_task(const task *t)
{
    F8_REQUIRE(t->num_tensors >= 0 && t->num_metadata >= 0, EINVAL,
               "%s: %" PRId64 " tensors, %" PRId64 " metadata pairs", t->path, t->num_tensors, t->num_metadata);
    for (int64_t i = 0; i < t->num_tensors; i++) F8_TRY(check_tensor(t, &t->tensors[i]));
    for (int64_t i = 0; i < t->num_metadata; i++) F8_TRY(check_pair(t, &t->metadata[i]));
    int64_t more = t->num_tensors > t->num_metadata ? t->num_tensors : t->num_metadata;
    const char **names = calloc((size_t)more + 1, sizeof *names);
    F8_REQUIRE(names, ENOMEM, "%s: no memory for %" PRId64 " names", t->path, more);
    for (int64_t i = 0; i < t->num_tensors; i++) names[i] = t->tensors[i].name;
    fp8flow_status status = check_unique(t->path, names, t->num_tensors);
    for (int64_t i = 0; i < t->num_metadata; i++) names[i] = t->metadata[i].key;
    if (status == FP8FLOW_OK) status = check_unique(t->path, names, t->num_metadata);
    free(names);
    return status;
}

/* ---- Bytes of tensors ---- */

/* Bytes [at, at + count) of a tensor, at most PIECE; in its own memory where that can be read. */
static fp8flow_status look_at(const task *t, const f8_tensor_to_store *tensor, int64_t at, size_t count,
                              const char **bytes)
{
    *bytes = (const char *)tensor->data + at;
    if (!t->access) return FP8FLOW_OK;
    F8_TRY(t->access->copy(t->access->user, t->piece, *bytes, count));
    *bytes = t->piece;
    return FP8FLOW_OK;
}

static size_t piece_bytes(int64_t bytes, int64_t at)
{
    return (size_t)(bytes - at < PIECE ? bytes - at : PIECE);
}

static fp8flow_status hash_tensor(const task *t, const f8_tensor_to_store *tensor, XXH3_state_t *state,
                                  uint64_t *checksum)
{
    const char *bytes;
    int64_t all = bytes_of(tensor);
    XXH3_64bits_reset(state);
    for (int64_t at = 0; at < all; at += PIECE) {
        F8_TRY(look_at(t, tensor, at, piece_bytes(all, at), &bytes));
        XXH3_64bits_update(state, bytes, piece_bytes(all, at));
    }
    *checksum = XXH3_64bits_digest(state);
    return FP8FLOW_OK;
}

static fp8flow_status hash_tensors(const task *t, uint64_t *checksums)
{
    XXH3_state_t *state = XXH3_createState();
    F8_REQUIRE(state, ENOMEM, "%s: no memory for a checksum", t->path);
    fp8flow_status status = FP8FLOW_OK;
    for (int64_t i = 0; i < t->num_tensors && status == FP8FLOW_OK; i++)
        status = hash_tensor(t, &t->tensors[i], state, &checksums[i]);
    XXH3_freeState(state);
    return status;
}

static fp8flow_status write_tensor(const task *t, const f8_tensor_to_store *tensor, f8_file_writer *writer)
{
    const char *bytes;
    int64_t all = bytes_of(tensor);
    for (int64_t at = 0; at < all; at += PIECE) {
        F8_TRY(look_at(t, tensor, at, piece_bytes(all, at), &bytes));
        F8_TRY(f8_writer_write(writer, bytes, piece_bytes(all, at)));
    }
    return FP8FLOW_OK;
}

/* ---- Header ---- */

/* The tensor after `index` in the order of the file: widest elements first, then as given. Start with
 * *width = 8, index = -1; returns num_tensors at the end. */
static int64_t next_in_file(const task *t, int64_t index, int64_t *width)
{
    for (; *width > 0; *width /= 2, index = -1)
        for (index++; index < t->num_tensors; index++)
            if (f8_stored_dtype_bytes(t->tensors[index].dtype) == *width) return index;
    return t->num_tensors;
}

static void append_metadata(f8_buffer *text, const task *t, const uint64_t *checksums)
{
    f8_buffer_text(text, F8_HEADER_CHECKSUM_START "0000000000000000\"");
    for (int64_t i = 0; i < t->num_metadata; i++) {
        f8_buffer_text(text, ",");
        f8_json_quote(text, t->metadata[i].key);
        f8_buffer_text(text, ":");
        f8_json_quote(text, t->metadata[i].value);
    }
    f8_buffer key = { 0 };
    for (int64_t i = 0; i < t->num_tensors; i++) {
        const f8_tensor_to_store *tensor = &t->tensors[i];
        key.size = 0;
        f8_buffer_format(&key, F8_CHECKSUM_KEY "%s", tensor->name);
        f8_buffer_text(text, ",");
        f8_json_quote(text, key.failed ? "" : key.data);
        f8_buffer_format(text, ":\"%016" PRIx64 "\"", checksums[i]);
    }
    text->failed = text->failed || key.failed;
    f8_buffer_free(&key);
    f8_buffer_text(text, "}");
}

static void append_tensor(f8_buffer *text, const f8_tensor_to_store *tensor, int64_t begin, int64_t end)
{
    f8_buffer_text(text, ",");
    f8_json_quote(text, tensor->name);
    f8_buffer_format(text, ":{\"dtype\":\"%s\",\"shape\":[", f8_stored_dtype_name(tensor->dtype));
    for (int i = 0; i < tensor->rank; i++) f8_buffer_format(text, "%s%" PRId64, i ? "," : "", tensor->shape[i]);
    f8_buffer_format(text, "],\"data_offsets\":[%" PRId64 ",%" PRId64 "]}", begin, end);
}

static fp8flow_status build_header(f8_buffer *text, const task *t, const uint64_t *checksums)
{
    int64_t end = 0, width = 8;
    append_metadata(text, t, checksums);
    for (int64_t i = -1; (i = next_in_file(t, i, &width)) < t->num_tensors;) {
        int64_t begin = end;
        F8_REQUIRE(!__builtin_add_overflow(begin, bytes_of(&t->tensors[i]), &end), ESHAPE,
                   "%s: more than 2^63 bytes of tensors", t->path);
        append_tensor(text, &t->tensors[i], begin, end);
    }
    f8_buffer_text(text, "}");
    while (text->size % 8 != 0 && !text->failed) f8_buffer_text(text, " ");
    F8_TRY(f8_buffer_check(text, t->path));
    F8_REQUIRE(text->size <= F8_STORED_MAX_HEADER, EINVAL,
               "%s: the header would have %zu bytes, at most %d are allowed", t->path, text->size,
               F8_STORED_MAX_HEADER);
    uint64_t checksum;
    char digits[F8_CHECKSUM_DIGITS + 1];
    F8_TRY(f8_header_checksum(t->path, text->data, text->size, &checksum));
    snprintf(digits, sizeof digits, "%016" PRIx64, checksum);
    memcpy(text->data + strlen(F8_HEADER_CHECKSUM_START), digits, F8_CHECKSUM_DIGITS);
    return FP8FLOW_OK;
}

/* ---- File ---- */

static fp8flow_status write_parts(f8_file_writer *writer, const f8_buffer *header, const task *t)
{
    unsigned char prefix[8];
    int64_t width = 8;
    for (int i = 0; i < 8; i++) prefix[i] = (unsigned char)((uint64_t)header->size >> (8 * i));
    F8_TRY(f8_writer_write(writer, prefix, sizeof prefix));
    F8_TRY(f8_writer_write(writer, header->data, header->size));
    for (int64_t i = -1; (i = next_in_file(t, i, &width)) < t->num_tensors;)
        F8_TRY(write_tensor(t, &t->tensors[i], writer));
    return FP8FLOW_OK;
}

static fp8flow_status write_file(task *t)
{
    f8_buffer header = { 0 };
    f8_file_writer writer = { 0 };
    uint64_t *checksums = calloc((size_t)t->num_tensors + 1, sizeof *checksums);
    fp8flow_status status;
    t->piece = malloc(PIECE);
    if (!checksums || !t->piece) {
        status = F8_FAIL(ENOMEM, "%s: no memory for checksums and %d bytes", t->path, PIECE);
        goto fail;
    }
    F8_TRY_GOTO(status, hash_tensors(t, checksums));
    F8_TRY_GOTO(status, build_header(&header, t, checksums));
    F8_TRY_GOTO(status, f8_writer_open(t->path, &writer));
    F8_TRY_GOTO(status, write_parts(&writer, &header, t));
    status = f8_writer_commit(&writer);
fail:
    f8_writer_cancel(&writer);
    f8_buffer_free(&header);
    free(checksums);
    free(t->piece);
    return status;
}

fp8flow_status f8_safetensors_write(const char *path, const f8_tensor_to_store *tensors, int64_t num_tensors,
                                    const f8_metadata_pair *metadata, int64_t num_metadata,
                                    const f8_tensor_access *access)
{
    task t = { path, tensors, num_tensors, metadata, num_metadata, access, NULL };
    F8_TRY(check_task(&t));
    return write_file(&t);
}
