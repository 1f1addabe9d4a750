/* safetensors_header.h - the validated table of a safetensors file; shared by the reader and its parser.
 *
 * The text is kept and edited in place: every string is unescaped and ends with a NUL where it stands. The
 * table holds positions into it, 40 bytes per tensor (whose text has at least 49) and 4 per metadata pair
 * (at least 6): that is what bounds memory, and why this is not jansson, which needs up to 50 times the text.
 */
#ifndef F8_IO_SAFETENSORS_HEADER_H
#define F8_IO_SAFETENSORS_HEADER_H

#include "io/buffer.h"
#include "io/safetensors.h"

/* "xxh3" comes first in every header of ours, so that its 16 digits have a fixed place. */
#define F8_HEADER_CHECKSUM_START "{\"__metadata__\":{\"xxh3\":\""
#define F8_CHECKSUM_KEY          "xxh3:"
enum { F8_CHECKSUM_DIGITS = 16 };

typedef struct {
    uint64_t checksum;
    int64_t begin, end;   /* of its data, from the start of all data */
    uint32_t name, shape; /* positions: of the name, of the shape's '[' */
    uint8_t dtype, rank;
    bool has_checksum;
} f8_header_entry;

typedef struct {
    f8_buffer text;
    f8_header_entry *entries; /* sorted by name */
    size_t num_entries;
    uint32_t *metadata; /* positions of the keys, sorted by key */
    size_t num_metadata;
} f8_header;

/* Parse and validate `text`, which becomes the header's. `data_bytes`: size of the data that follow it.
 * `file` is for messages. Release with f8_header_free, also after a failure. */
fp8flow_status f8_header_parse(const char *file, f8_buffer text, int64_t data_bytes, f8_header *header);
void f8_header_free(f8_header *header);

/* Lookup in the table. */
const f8_header_entry *f8_header_find(const f8_header *header, const char *name);
const char *f8_header_metadata(const f8_header *header, const char *key);
void f8_header_shape(const f8_header *header, const f8_header_entry *entry, int64_t shape[F8_STORED_MAX_RANK]);

/* Checksum of a header's text, the 16 digits after F8_HEADER_CHECKSUM_START taken as zeros. */
fp8flow_status f8_header_checksum(const char *file, const char *text, size_t size, uint64_t *checksum);

/* Bytes of a tensor; false if a dimension is negative or the product does not fit into 63 bits. */
bool f8_stored_bytes(f8_stored_dtype dtype, const int64_t *shape, int rank, int64_t *bytes);

#endif
