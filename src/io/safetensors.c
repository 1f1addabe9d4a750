/* safetensors.c - open files and sets of them; lookup, reading, checksums. Contract: safetensors.h. */
#include "io/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "io/file.h"
#include "io/safetensors_header.h"

struct f8_safetensors {
    f8_file file;
    f8_header header;
    int64_t data_start;
};

/* ---- Element types ---- */

static const struct {
    const char *name;
    int64_t bytes;
} dtypes[F8_NUM_STORED_DTYPES] = {
#define F8_X(name, bytes) [F8_STORED_##name] = { #name, bytes },
    F8_STORED_DTYPES(F8_X)
#undef F8_X
};

const char *f8_stored_dtype_name(f8_stored_dtype dtype)
{
    return dtypes[dtype].name;
}

int64_t f8_stored_dtype_bytes(f8_stored_dtype dtype)
{
    return dtypes[dtype].bytes;
}

bool f8_stored_bytes(f8_stored_dtype dtype, const int64_t *shape, int rank, int64_t *bytes)
{
    *bytes = dtypes[dtype].bytes;
    for (int i = 0; i < rank; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(*bytes, shape[i], bytes)) return false;
    return true;
}

/* ---- The table ---- */

const f8_header_entry *f8_header_find(const f8_header *header, const char *name)
{
    size_t low = 0, high = header->num_entries;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, header->text.data + header->entries[middle].name);
        if (order == 0) return &header->entries[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

const char *f8_header_metadata(const f8_header *header, const char *key)
{
    size_t low = 0, high = header->num_metadata;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const char *candidate = header->text.data + header->metadata[middle];
        int order = strcmp(key, candidate);
        /* Behind the key's NUL come spaces, a colon, spaces and the value's opening quote. */
        if (order == 0) return strchr(candidate + strlen(candidate) + 1, '"') + 1;
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

void f8_header_shape(const f8_header *header, const f8_header_entry *entry, int64_t shape[F8_STORED_MAX_RANK])
{
    const char *at = header->text.data + entry->shape;
    memset(shape, 0, F8_STORED_MAX_RANK * sizeof *shape);
    for (int i = 0; i < entry->rank; i++) {
        at += strcspn(at, "0123456789");
        for (; *at >= '0' && *at <= '9'; at++) shape[i] = shape[i] * 10 + (*at - '0');
    }
}

/* ---- One file ---- */

static fp8flow_status read_header(f8_safetensors *file)
{
    unsigned char prefix[8];
    const char *path = file->file.path;
    F8_REQUIRE(file->file.size >= 8, EFORMAT, "%s: has %" PRId64 " bytes, too few for a safetensors file", path,
               file->file.size);
    F8_TRY(f8_file_pread(&file->file, prefix, sizeof prefix, 0));
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | prefix[i];
    F8_REQUIRE(length <= F8_STORED_MAX_HEADER, EFORMAT, "%s: header of %" PRIu64 " bytes, at most %d are allowed", path,
               length, F8_STORED_MAX_HEADER);
    F8_REQUIRE((int64_t)length <= file->file.size - 8, EFORMAT,
               "%s: header of %" PRIu64 " bytes, the file has only %" PRId64, path, length, file->file.size);
    f8_buffer text = { 0 };
    F8_TRY(f8_grow(path, &text.data, &text.capacity, (size_t)length + 1, 1));
    text.size = (size_t)length;
    text.data[length] = 0;
    fp8flow_status status = f8_file_pread(&file->file, text.data, text.size, 8);
    if (status != FP8FLOW_OK) {
        f8_buffer_free(&text);
        return status;
    }
    file->data_start = 8 + (int64_t)length;
    return f8_header_parse(path, text, file->file.size - file->data_start, &file->header);
}

fp8flow_status f8_safetensors_open(const char *path, f8_safetensors **file)
{
    *file = NULL;
    f8_safetensors *opened = calloc(1, sizeof *opened);
    F8_REQUIRE(opened, ENOMEM, "%s: no memory for an open file", path);
    fp8flow_status status = f8_file_open(path, &opened->file);
    if (status == FP8FLOW_OK) status = read_header(opened);
    if (status == FP8FLOW_OK) *file = opened;
    else f8_safetensors_close(opened);
    return status;
}

void f8_safetensors_close(f8_safetensors *file)
{
    if (!file) return;
    f8_header_free(&file->header);
    f8_file_close(&file->file);
    free(file);
}

const char *f8_safetensors_path(const f8_safetensors *file)
{
    return file->file.path;
}

int64_t f8_safetensors_count(const f8_safetensors *file)
{
    return (int64_t)file->header.num_entries;
}

f8_stored_tensor f8_safetensors_at(const f8_safetensors *file, int64_t index)
{
    const f8_header_entry *entry = &file->header.entries[index];
    f8_stored_tensor tensor = {
        .name = file->header.text.data + entry->name,
        .dtype = (f8_stored_dtype)entry->dtype,
        .rank = entry->rank,
        .bytes = entry->end - entry->begin,
        .offset = file->data_start + entry->begin,
        .has_checksum = entry->has_checksum,
        .checksum = entry->checksum,
    };
    f8_header_shape(&file->header, entry, tensor.shape);
    return tensor;
}

bool f8_safetensors_find(const f8_safetensors *file, const char *name, f8_stored_tensor *tensor)
{
    const f8_header_entry *entry = f8_header_find(&file->header, name);
    if (entry) *tensor = f8_safetensors_at(file, entry - file->header.entries);
    return entry != NULL;
}

const char *f8_safetensors_metadata(const f8_safetensors *file, const char *key)
{
    return f8_header_metadata(&file->header, key);
}

/* ---- Data ---- */

enum { PIECE = 1 << 20 }; /* read and hashed while it is in the cache */

/* A tensor's way: from the file through `piece` to `memory`, of this access; memory NULL: its bytes are not kept. */
typedef struct {
    const f8_safetensors *file;
    const f8_stored_tensor *tensor;
    char *piece, *memory;
    const f8_tensor_access *access;
} reading;

static fp8flow_status keep_piece(const reading *r, int64_t at, size_t bytes)
{
    if (!r->memory) return FP8FLOW_OK;
    if (r->access) return r->access->copy(r->access->user, r->memory + at, r->piece, bytes);
    memcpy(r->memory + at, r->piece, bytes);
    return FP8FLOW_OK;
}

static fp8flow_status read_pieces(const reading *r, XXH3_state_t *state)
{
    const f8_stored_tensor *tensor = r->tensor;
    for (int64_t done = 0; done < tensor->bytes; done += PIECE) {
        int64_t left = tensor->bytes - done;
        size_t bytes = (size_t)(left < PIECE ? left : PIECE);
        F8_TRY(f8_file_pread(&r->file->file, r->piece, bytes, tensor->offset + done));
        XXH3_64bits_update(state, r->piece, bytes);
        F8_TRY(keep_piece(r, done, bytes));
    }
    uint64_t checksum = XXH3_64bits_digest(state);
    F8_REQUIRE(!tensor->has_checksum || checksum == tensor->checksum, EFORMAT,
               "%s: tensor \"%.200s\" is damaged: checksum %016" PRIx64 ", expected %016" PRIx64, r->file->file.path,
               tensor->name, checksum, tensor->checksum);
    return FP8FLOW_OK;
}

static fp8flow_status read_tensor(reading *r)
{
    XXH3_state_t *state = XXH3_createState();
    r->piece = malloc(PIECE);
    fp8flow_status status = FP8FLOW_OK;
    if (!state || !r->piece)
        status = F8_FAIL(ENOMEM, "%s: no memory for a checksum and %d bytes", r->file->file.path, PIECE);
    if (status == FP8FLOW_OK) {
        XXH3_64bits_reset(state);
        status = read_pieces(r, state);
    }
    XXH3_freeState(state);
    free(r->piece);
    return status == FP8FLOW_EIO ? f8_fail_in(status, "tensor \"%.200s\"", r->tensor->name) : status;
}

fp8flow_status f8_safetensors_read(const f8_safetensors *file, const f8_stored_tensor *tensor, void *memory,
                                   int64_t bytes, const f8_tensor_access *access)
{
    F8_REQUIRE(bytes == tensor->bytes, ESHAPE,
               "%s: tensor \"%.200s\" has %" PRId64 " bytes, the caller expects %" PRId64, file->file.path,
               tensor->name, tensor->bytes, bytes);
    return read_tensor(&(reading){ .file = file, .tensor = tensor, .memory = memory, .access = access });
}

fp8flow_status f8_safetensors_verify(const f8_safetensors *file, int64_t *num_unchecked)
{
    fp8flow_status status = FP8FLOW_OK;
    *num_unchecked = 0;
    for (int64_t i = 0; status == FP8FLOW_OK && i < f8_safetensors_count(file); i++) {
        f8_stored_tensor tensor = f8_safetensors_at(file, i);
        if (tensor.has_checksum) status = read_tensor(&(reading){ .file = file, .tensor = &tensor });
        else ++*num_unchecked;
    }
    return status;
}

/* ---- Sets ---- */

typedef struct {
    const char *name;
    int file;
    int64_t index; /* in the file */
} member;

struct f8_safetensors_set {
    int num_files;
    f8_safetensors **files;
    int64_t num_members;
    member *members; /* sorted by name */
};

static int compare_members(const void *a, const void *b)
{
    return strcmp(((const member *)a)->name, ((const member *)b)->name);
}

static fp8flow_status merge_tables(f8_safetensors_set *set)
{
    for (int f = 0; f < set->num_files; f++) set->num_members += f8_safetensors_count(set->files[f]);
    set->members = calloc((size_t)set->num_members + 1, sizeof *set->members);
    F8_REQUIRE(set->members, ENOMEM, "tensor files: no memory for a table of %" PRId64 " tensors", set->num_members);
    member *next = set->members;
    for (int f = 0; f < set->num_files; f++)
        for (int64_t i = 0; i < f8_safetensors_count(set->files[f]); i++)
            *next++ = (member){ f8_safetensors_at(set->files[f], i).name, f, i };
    qsort(set->members, (size_t)set->num_members, sizeof *set->members, compare_members);
    for (int64_t i = 1; i < set->num_members; i++) {
        const member *a = &set->members[i - 1], *b = &set->members[i];
        F8_REQUIRE(strcmp(a->name, b->name) != 0, EFORMAT, "tensor \"%.200s\" is in %.300s and in %.300s", a->name,
                   f8_safetensors_path(set->files[a->file]), f8_safetensors_path(set->files[b->file]));
    }
    return FP8FLOW_OK;
}

fp8flow_status f8_safetensors_set_open(const char *const *paths, int num_paths, f8_safetensors_set **set)
{
    *set = NULL;
    F8_REQUIRE(num_paths >= 0, EINVAL, "tensor files: %d of them", num_paths);
    f8_safetensors_set *opened = calloc(1, sizeof *opened);
    f8_safetensors **files = calloc((size_t)num_paths + 1, sizeof(f8_safetensors *));
    if (!opened || !files) {
        free(opened);
        free(files);
        return F8_FAIL(ENOMEM, "tensor files: no memory for a set of %d", num_paths);
    }
    opened->files = files;
    fp8flow_status status = FP8FLOW_OK;
    for (int i = 0; status == FP8FLOW_OK && i < num_paths; i++) {
        status = f8_safetensors_open(paths[i], &files[i]);
        if (status == FP8FLOW_OK) opened->num_files++;
    }
    if (status == FP8FLOW_OK) status = merge_tables(opened);
    if (status == FP8FLOW_OK) *set = opened;
    else f8_safetensors_set_close(opened);
    return status;
}

void f8_safetensors_set_close(f8_safetensors_set *set)
{
    if (!set) return;
    for (int i = 0; i < set->num_files; i++) f8_safetensors_close(set->files[i]);
    free(set->files);
    free(set->members);
    free(set);
}

int64_t f8_safetensors_set_count(const f8_safetensors_set *set)
{
    return set->num_members;
}

const f8_safetensors *f8_safetensors_set_at(const f8_safetensors_set *set, int64_t index, f8_stored_tensor *tensor)
{
    const f8_safetensors *file = set->files[set->members[index].file];
    *tensor = f8_safetensors_at(file, set->members[index].index);
    return file;
}

const f8_safetensors *f8_safetensors_set_find(const f8_safetensors_set *set, const char *name, f8_stored_tensor *tensor)
{
    member key = { .name = name };
    const member *found = bsearch(&key, set->members, (size_t)set->num_members, sizeof key, compare_members);
    return found ? f8_safetensors_set_at(set, found - set->members, tensor) : NULL;
}
