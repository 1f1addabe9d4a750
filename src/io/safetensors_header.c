/* safetensors_header.c - parser of untrusted safetensors headers. Contract: safetensors_header.h.
 *
 * The grammar has a fixed depth, so there is no recursion:
 *   { "__metadata__": { string: string, ... },
 *     name: { "dtype": string, "shape": [int, ...], "data_offsets": [int, int] }, ... }
 * A NUL ends the text (none lies inside, which is checked first), so single characters need no bounds check.
 */
#include "io/safetensors_header.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "io/utf8.h"

typedef struct {
    const char *file;
    f8_header *header;
    char *text;
    size_t at, size;
    size_t entry_capacity, metadata_capacity;
    bool seen_metadata;
} parser;

/* ---- Lexical level ---- */

static char peek(parser *p)
{
    while (p->text[p->at] == ' ' || p->text[p->at] == '\n' || p->text[p->at] == '\r' || p->text[p->at] == '\t') p->at++;
    return p->text[p->at];
}

static fp8flow_status fail_here(const parser *p, const char *expected)
{
    if (p->at >= p->size) return F8_FAIL(EFORMAT, "%s: header ends where %s is expected", p->file, expected);
    return F8_FAIL(EFORMAT, "%s: header offset %zu: byte 0x%02x, expected %s", p->file, p->at,
                   (unsigned)(unsigned char)p->text[p->at], expected);
}

static fp8flow_status take(parser *p, char wanted, const char *name)
{
    if (peek(p) != wanted) return fail_here(p, name);
    p->at++;
    return FP8FLOW_OK;
}

/* After an item: true in *more for a comma, false for `closing`, which is consumed. */
static fp8flow_status take_comma_or(parser *p, char closing, bool *more)
{
    char c = peek(p);
    if (c != ',' && c != closing) return fail_here(p, closing == '}' ? "',' or '}'" : "',' or ']'");
    *more = c == ',';
    p->at++;
    return FP8FLOW_OK;
}

/* Opening bracket of a list; *more is false, and the list consumed, if it is empty. */
static fp8flow_status take_opening(parser *p, char opening, char closing, bool *more)
{
    F8_TRY(take(p, opening, opening == '{' ? "'{'" : "'['"));
    *more = peek(p) != closing;
    if (!*more) p->at++;
    return FP8FLOW_OK;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Value of the four hex digits at text, or -1. The NUL at the end stops it. */
static int32_t hex4(const char *text)
{
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(text[i]);
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

static size_t encode_utf8(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)((0xF00u >> length & 0xF0u) | code);
    return length;
}

/* The \uXXXX at p->at, with its second half if it is a surrogate. U+0000 is refused: names are C strings. */
static fp8flow_status take_unicode_escape(parser *p, uint32_t *code)
{
    int32_t first = hex4(p->text + p->at + 2);
    if (first <= 0 || (first >= 0xDC00 && first <= 0xDFFF)) return fail_here(p, "\\u and four digits of a character");
    *code = (uint32_t)first;
    p->at += 6;
    if (first < 0xD800 || first > 0xDBFF) return FP8FLOW_OK;
    int32_t second = p->text[p->at] == '\\' && p->text[p->at + 1] == 'u' ? hex4(p->text + p->at + 2) : -1;
    if (second < 0xDC00 || second > 0xDFFF) return fail_here(p, "the second half of a surrogate pair");
    *code = 0x10000u + ((uint32_t)(first - 0xD800) << 10) + (uint32_t)(second - 0xDC00);
    p->at += 6;
    return FP8FLOW_OK;
}

static fp8flow_status take_escape(parser *p, uint32_t *code)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char c = p->text[p->at + 1];
    if (c == 'u') return take_unicode_escape(p, code);
    const char *found = c ? strchr(names, c) : NULL;
    if (!found) return fail_here(p, "a valid escape");
    *code = (unsigned char)values[found - names];
    p->at += 2;
    return FP8FLOW_OK;
}

/* A string, unescaped where it stands and ended with a NUL; what is left up to and with the closing quote
 * becomes spaces, so that a value can later be found behind its key. */
static fp8flow_status take_string(parser *p, uint32_t *position)
{
    F8_TRY(take(p, '"', "'\"'"));
    size_t out = p->at;
    *position = (uint32_t)out;
    while (p->text[p->at] != '"') {
        if (p->text[p->at] == '\\') {
            uint32_t code = 0;
            F8_TRY(take_escape(p, &code));
            out += encode_utf8(code, p->text + out);
            continue;
        }
        if (p->at >= p->size || (unsigned char)p->text[p->at] < 0x20) return fail_here(p, "a character or '\"'");
        size_t length = f8_utf8_length(p->text + p->at, p->size - p->at);
        if (length == 0) return fail_here(p, "UTF-8");
        memmove(p->text + out, p->text + p->at, length);
        out += length;
        p->at += length;
    }
    p->at++;
    memset(p->text + out, ' ', p->at - out);
    p->text[out] = 0;
    return FP8FLOW_OK;
}

/* Digits without sign, fraction, exponent or leading zero. */
static fp8flow_status take_integer(parser *p, int64_t *value)
{
    static const char expected[] = "an integer in [0, 2^63)";
    peek(p);
    size_t start = p->at;
    int64_t number = 0;
    for (; p->text[p->at] >= '0' && p->text[p->at] <= '9'; p->at++) {
        bool overflow = __builtin_mul_overflow(number, 10, &number);
        if (overflow || __builtin_add_overflow(number, p->text[p->at] - '0', &number)) return fail_here(p, expected);
    }
    bool leading_zero = p->text[start] == '0' && p->at - start > 1;
    char next = p->text[p->at];
    if (p->at == start || leading_zero || next == '.' || next == 'e' || next == 'E') return fail_here(p, expected);
    *value = number;
    return FP8FLOW_OK;
}

/* ---- One tensor ---- */

static fp8flow_status fail_tensor(const parser *p, const f8_header_entry *entry)
{
    return f8_fail_in(FP8FLOW_EFORMAT, "tensor \"%.200s\"", p->text + entry->name);
}

static fp8flow_status take_dtype(parser *p, f8_header_entry *entry)
{
    uint32_t position;
    F8_TRY(take_string(p, &position));
    const char *name = p->text + position;
    for (int dtype = 0; dtype < F8_NUM_STORED_DTYPES; dtype++) {
        if (strcmp(name, f8_stored_dtype_name((f8_stored_dtype)dtype)) != 0) continue;
        entry->dtype = (uint8_t)dtype;
        return FP8FLOW_OK;
    }
    bool narrow = strcmp(name, "F4") == 0 || strcmp(name, "F6_E2M3") == 0 || strcmp(name, "F6_E3M2") == 0;
    return F8_FAIL(EFORMAT, "%s: dtype \"%.40s\" is %s", p->file, name,
                   narrow ? "narrower than a byte, which is not supported" : "unknown");
}

static fp8flow_status take_shape(parser *p, f8_header_entry *entry)
{
    bool more;
    peek(p);
    entry->shape = (uint32_t)p->at;
    entry->rank = 0;
    F8_TRY(take_opening(p, '[', ']', &more));
    while (more) {
        int64_t dimension;
        F8_REQUIRE(entry->rank < F8_STORED_MAX_RANK, EFORMAT, "%s: more than %d dimensions", p->file,
                   F8_STORED_MAX_RANK);
        F8_TRY(take_integer(p, &dimension));
        entry->rank++;
        F8_TRY(take_comma_or(p, ']', &more));
    }
    return FP8FLOW_OK;
}

static fp8flow_status take_offsets(parser *p, f8_header_entry *entry)
{
    F8_TRY(take(p, '[', "'['"));
    F8_TRY(take_integer(p, &entry->begin));
    F8_TRY(take(p, ',', "','"));
    F8_TRY(take_integer(p, &entry->end));
    return take(p, ']', "']'");
}

static fp8flow_status take_field(parser *p, f8_header_entry *entry, unsigned *seen)
{
    static const char *const names[3] = { "dtype", "shape", "data_offsets" };
    static fp8flow_status (*const takers[3])(parser *, f8_header_entry *) = { take_dtype, take_shape, take_offsets };
    uint32_t position;
    F8_TRY(take_string(p, &position));
    const char *name = p->text + position;
    unsigned field = 0;
    while (field < 3 && strcmp(name, names[field]) != 0) field++;
    F8_REQUIRE(field < 3, EFORMAT, "%s: unknown key \"%.40s\"", p->file, name);
    F8_REQUIRE(!(*seen & 1u << field), EFORMAT, "%s: duplicate key \"%s\"", p->file, name);
    *seen |= 1u << field;
    F8_TRY(take(p, ':', "':'"));
    return takers[field](p, entry);
}

static fp8flow_status check_span(const parser *p, const f8_header_entry *entry)
{
    int64_t shape[F8_STORED_MAX_RANK], bytes;
    f8_header_shape(p->header, entry, shape);
    F8_REQUIRE(entry->begin <= entry->end, EFORMAT, "%s: data_offsets [%" PRId64 ", %" PRId64 "] run backwards",
               p->file, entry->begin, entry->end);
    F8_REQUIRE(f8_stored_bytes((f8_stored_dtype)entry->dtype, shape, entry->rank, &bytes), EFORMAT,
               "%s: the product of its shape does not fit into 63 bits", p->file);
    F8_REQUIRE(bytes == entry->end - entry->begin, EFORMAT,
               "%s: shape and dtype call for %" PRId64 " bytes, data_offsets give %" PRId64, p->file, bytes,
               entry->end - entry->begin);
    return FP8FLOW_OK;
}

static fp8flow_status take_fields(parser *p, f8_header_entry *entry)
{
    unsigned seen = 0;
    bool more;
    F8_TRY(take_opening(p, '{', '}', &more));
    while (more) {
        F8_TRY(take_field(p, entry, &seen));
        F8_TRY(take_comma_or(p, '}', &more));
    }
    F8_REQUIRE(seen == 7, EFORMAT, "%s: %s is missing", p->file,
               !(seen & 1)   ? "dtype"
               : !(seen & 2) ? "shape"
                             : "data_offsets");
    return check_span(p, entry);
}

static fp8flow_status take_tensor(parser *p, uint32_t name)
{
    f8_header *header = p->header;
    F8_TRY(f8_grow(p->file, &header->entries, &p->entry_capacity, header->num_entries + 1, sizeof *header->entries));
    f8_header_entry *entry = &header->entries[header->num_entries++];
    *entry = (f8_header_entry){ .name = name };
    fp8flow_status status = take_fields(p, entry);
    return status == FP8FLOW_EFORMAT ? fail_tensor(p, entry) : status;
}

/* ---- The whole header ---- */

static fp8flow_status take_metadata(parser *p)
{
    f8_header *header = p->header;
    bool more;
    F8_REQUIRE(!p->seen_metadata, EFORMAT, "%s: duplicate key \"__metadata__\"", p->file);
    p->seen_metadata = true;
    F8_TRY(take_opening(p, '{', '}', &more));
    while (more) {
        uint32_t value;
        F8_TRY(f8_grow(p->file, &header->metadata, &p->metadata_capacity, header->num_metadata + 1,
                       sizeof *header->metadata));
        F8_TRY(take_string(p, &header->metadata[header->num_metadata]));
        header->num_metadata++;
        F8_TRY(take(p, ':', "':'"));
        if (peek(p) != '"') return fail_here(p, "a string (metadata are strings)");
        F8_TRY(take_string(p, &value));
        F8_TRY(take_comma_or(p, '}', &more));
    }
    return FP8FLOW_OK;
}

static fp8flow_status take_header(parser *p)
{
    bool more;
    if (p->text[0] != '{') return fail_here(p, "'{' as the first byte of the header");
    F8_TRY(take_opening(p, '{', '}', &more));
    while (more) {
        uint32_t name;
        F8_TRY(take_string(p, &name));
        F8_TRY(take(p, ':', "':'"));
        F8_TRY(strcmp(p->text + name, "__metadata__") == 0 ? take_metadata(p) : take_tensor(p, name));
        F8_TRY(take_comma_or(p, '}', &more));
    }
    peek(p);
    return p->at == p->size ? FP8FLOW_OK : fail_here(p, "only spaces after the header's last '}'");
}

/* ---- Checks across tensors ---- */

static int compare_spans(const void *a, const void *b)
{
    const f8_header_entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int compare_entries(const void *a, const void *b, void *text)
{
    const f8_header_entry *x = a, *y = b;
    return strcmp((const char *)text + x->name, (const char *)text + y->name);
}

static int compare_keys(const void *a, const void *b, void *text)
{
    return strcmp((const char *)text + *(const uint32_t *)a, (const char *)text + *(const uint32_t *)b);
}

/* The tensors, in the order of their data, must follow one another from 0 to data_bytes. */
static fp8flow_status check_coverage(const parser *p, int64_t data_bytes)
{
    f8_header *header = p->header;
    int64_t expected = 0;
    if (header->num_entries) qsort(header->entries, header->num_entries, sizeof *header->entries, compare_spans);
    for (size_t i = 0; i < header->num_entries; i++) {
        const f8_header_entry *entry = &header->entries[i];
        F8_REQUIRE(entry->begin == expected, EFORMAT,
                   "%s: tensor \"%.200s\": data start at %" PRId64 ", expected %" PRId64 " (%s)", p->file,
                   p->text + entry->name, entry->begin, expected, entry->begin < expected ? "overlap" : "hole");
        F8_REQUIRE(entry->end <= data_bytes, EFORMAT,
                   "%s: tensor \"%.200s\": data end at %" PRId64 ", the file has only %" PRId64 " bytes of data",
                   p->file, p->text + entry->name, entry->end, data_bytes);
        expected = entry->end;
    }
    F8_REQUIRE(expected == data_bytes, EFORMAT, "%s: tensors cover %" PRId64 " bytes, the file has %" PRId64, p->file,
               expected, data_bytes);
    return FP8FLOW_OK;
}

static fp8flow_status check_names(const parser *p)
{
    f8_header *header = p->header;
    if (header->num_entries)
        qsort_r(header->entries, header->num_entries, sizeof *header->entries, compare_entries, p->text);
    for (size_t i = 1; i < header->num_entries; i++)
        F8_REQUIRE(compare_entries(&header->entries[i - 1], &header->entries[i], p->text) != 0, EFORMAT,
                   "%s: duplicate tensor \"%.200s\"", p->file, p->text + header->entries[i].name);
    if (header->num_metadata)
        qsort_r(header->metadata, header->num_metadata, sizeof *header->metadata, compare_keys, p->text);
    for (size_t i = 1; i < header->num_metadata; i++)
        F8_REQUIRE(compare_keys(&header->metadata[i - 1], &header->metadata[i], p->text) != 0, EFORMAT,
                   "%s: duplicate metadata key \"%.200s\"", p->file, p->text + header->metadata[i]);
    return FP8FLOW_OK;
}

/* ---- Checksums ---- */

/* Exactly 16 lower-case hex digits, followed by `end`. */
static bool parse_checksum(const char *text, char end, uint64_t *checksum)
{
    uint64_t value = 0;
    for (int i = 0; i < F8_CHECKSUM_DIGITS; i++) {
        int digit = text[i] >= 'A' && text[i] <= 'F' ? -1 : hex_digit(text[i]);
        if (digit < 0) return false;
        value = value << 4 | (uint64_t)digit;
    }
    *checksum = value;
    return text[F8_CHECKSUM_DIGITS] == end;
}

fp8flow_status f8_header_checksum(const char *file, const char *text, size_t size, uint64_t *checksum)
{
    static const char zeros[] = "0000000000000000";
    size_t start = strlen(F8_HEADER_CHECKSUM_START), end = start + F8_CHECKSUM_DIGITS;
    XXH3_state_t *state = XXH3_createState();
    F8_REQUIRE(state, ENOMEM, "%s: no memory for a checksum", file);
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, text, start);
    XXH3_64bits_update(state, zeros, F8_CHECKSUM_DIGITS);
    XXH3_64bits_update(state, text + end, size - end);
    *checksum = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return FP8FLOW_OK;
}

/* Before parsing, which edits the text. *present: the header has a checksum (and it is right). */
static fp8flow_status check_header_checksum(const parser *p, bool *present)
{
    size_t start = strlen(F8_HEADER_CHECKSUM_START);
    uint64_t stored, actual;
    *present = p->size > start + F8_CHECKSUM_DIGITS && memcmp(p->text, F8_HEADER_CHECKSUM_START, start) == 0;
    if (!*present) return FP8FLOW_OK;
    F8_REQUIRE(parse_checksum(p->text + start, '"', &stored), EFORMAT, "%s: malformed checksum of the header", p->file);
    F8_TRY(f8_header_checksum(p->file, p->text, p->size, &actual));
    F8_REQUIRE(stored == actual, EFORMAT, "%s: the header is damaged: checksum %016" PRIx64 ", expected %016" PRIx64,
               p->file, actual, stored);
    return FP8FLOW_OK;
}

/* Move the checksums from the metadata into the table. */
static fp8flow_status attach_checksums(const parser *p, bool header_checked)
{
    f8_header *header = p->header;
    for (size_t i = 0; i < header->num_metadata; i++) {
        const char *key = p->text + header->metadata[i];
        size_t length = strlen(F8_CHECKSUM_KEY);
        if (strncmp(key, F8_CHECKSUM_KEY, length) != 0) continue;
        F8_REQUIRE(header_checked, EFORMAT,
                   "%s: has checksums of tensors but not of the header: damaged, or rewritten by another program",
                   p->file);
        f8_header_entry *entry = (f8_header_entry *)(uintptr_t)f8_header_find(header, key + length);
        F8_REQUIRE(entry, EFORMAT, "%s: checksum of tensor \"%.200s\", which the file lacks", p->file, key + length);
        F8_REQUIRE(parse_checksum(f8_header_metadata(header, key), 0, &entry->checksum), EFORMAT,
                   "%s: tensor \"%.200s\": malformed checksum", p->file, key + length);
        entry->has_checksum = true;
    }
    return FP8FLOW_OK;
}

/* ---- Entry points ---- */

fp8flow_status f8_header_parse(const char *file, f8_buffer text, int64_t data_bytes, f8_header *header)
{
    *header = (f8_header){ .text = text };
    parser p = { .file = file, .header = header, .text = text.data, .size = text.size };
    bool checked;
    const char *nul = text.size ? memchr(text.data, 0, text.size) : NULL;
    F8_REQUIRE(text.size > 0, EFORMAT, "%s: the header is empty", file);
    F8_REQUIRE(!nul, EFORMAT, "%s: header offset %zu: NUL byte", file, (size_t)(nul - text.data));
    F8_TRY(check_header_checksum(&p, &checked));
    F8_TRY(take_header(&p));
    F8_TRY(check_coverage(&p, data_bytes));
    F8_TRY(check_names(&p));
    return attach_checksums(&p, checked);
}

void f8_header_free(f8_header *header)
{
    f8_buffer_free(&header->text);
    free(header->entries);
    free(header->metadata);
    *header = (f8_header){ 0 };
}
