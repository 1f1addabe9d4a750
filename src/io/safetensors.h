/* safetensors.h - the file format of all tensors that this program reads or writes.
 *
 *   u64 length of the header | header: JSON, one entry per tensor | data
 *
 * Reading trusts nothing: a file is accepted only if the header is at most 100 MB, starts with '{', has no
 * NUL, no bad UTF-8, no duplicate name and no unknown key, and if the tensors cover the data exactly, without
 * holes or overlap, each with the bytes that dtype and shape call for. Memory stays below three times the
 * header. Data are read by position, never mapped.
 *
 * Files of our own also carry XXH3-64 checksums, in __metadata__: "xxh3:<tensor>" of a tensor's bytes and
 * "xxh3", the first key, of the header itself (with its 16 digits taken as zeros). A file that has any of
 * the former must have the latter; so every flipped bit is found, at open or at read. Files of others have
 * none and are read without. Numbers are little-endian.
 */
#ifndef F8_IO_SAFETENSORS_H
#define F8_IO_SAFETENSORS_H

#include <stdbool.h>

#include "base/status.h"

/* Element types and their bytes. Types below one byte are refused by name. */
/* clang-format off */
#define F8_STORED_DTYPES(X)                                                                       \
    X(BOOL, 1) X(U8, 1) X(I8, 1) X(F8_E4M3, 1) X(F8_E5M2, 1) X(F8_E8M0, 1)                        \
    X(U16, 2) X(I16, 2) X(F16, 2) X(BF16, 2)                                                      \
    X(U32, 4) X(I32, 4) X(F32, 4)                                                                 \
    X(U64, 8) X(I64, 8) X(F64, 8)
/* clang-format on */

typedef enum {
#define F8_X(name, bytes) F8_STORED_##name,
    F8_STORED_DTYPES(F8_X)
#undef F8_X
        F8_NUM_STORED_DTYPES
} f8_stored_dtype;

const char *f8_stored_dtype_name(f8_stored_dtype dtype); /* "F8_E4M3" */
int64_t f8_stored_dtype_bytes(f8_stored_dtype dtype);

enum { F8_STORED_MAX_RANK = 8, F8_STORED_MAX_HEADER = 100000000 };

/* How bytes get to and from the memory of tensors where this program cannot touch it (a GPU's): `copy` moves up to
 * 1 MiB between it and a buffer of the program. NULL instead of an access: the memory is the program's own. */
typedef struct {
    fp8flow_status (*copy)(void *user, void *to, const void *from, size_t bytes);
    void *user;
} f8_tensor_access;

/* ---- Reading ---- */

/* What a file says about one tensor. `name` lives as long as the file. */
typedef struct {
    const char *name;
    f8_stored_dtype dtype;
    int rank; /* 0: a scalar */
    int64_t shape[F8_STORED_MAX_RANK];
    int64_t bytes, offset; /* of its data; offset from the start of the file */
    bool has_checksum;
    uint64_t checksum;
} f8_stored_tensor;

typedef struct f8_safetensors f8_safetensors;

fp8flow_status f8_safetensors_open(const char *path, f8_safetensors **file);
void f8_safetensors_close(f8_safetensors *file); /* NULL allowed */

const char *f8_safetensors_path(const f8_safetensors *file);
int64_t f8_safetensors_count(const f8_safetensors *file);
f8_stored_tensor f8_safetensors_at(const f8_safetensors *file, int64_t index); /* sorted by name, strcmp */
bool f8_safetensors_find(const f8_safetensors *file, const char *name, f8_stored_tensor *tensor);
const char *f8_safetensors_metadata(const f8_safetensors *file, const char *key); /* NULL: none */

/* All bytes of a tensor of this file into memory[bytes], checked against the checksum. */
fp8flow_status f8_safetensors_read(const f8_safetensors *file, const f8_stored_tensor *tensor, void *memory,
                                   int64_t bytes, const f8_tensor_access *access);

/* Check every checksum without keeping the data; *num_unchecked counts tensors that have none. */
fp8flow_status f8_safetensors_verify(const f8_safetensors *file, int64_t *num_unchecked);

/* Several files as one: the shards of a checkpoint. A tensor that is in two of them is EFORMAT. */
typedef struct f8_safetensors_set f8_safetensors_set;

fp8flow_status f8_safetensors_set_open(const char *const *paths, int num_paths, f8_safetensors_set **set);
void f8_safetensors_set_close(f8_safetensors_set *set); /* NULL allowed */
int64_t f8_safetensors_set_count(const f8_safetensors_set *set);
/* Tensor `index` in order of name, and its file. */
const f8_safetensors *f8_safetensors_set_at(const f8_safetensors_set *set, int64_t index, f8_stored_tensor *tensor);
/* NULL: no file has it. */
const f8_safetensors *f8_safetensors_set_find(const f8_safetensors_set *set, const char *name,
                                              f8_stored_tensor *tensor);

/* ---- Writing ---- */

typedef struct {
    const char *name;
    f8_stored_dtype dtype;
    int rank;
    int64_t shape[F8_STORED_MAX_RANK];
    const void *data; /* read twice, must not change meanwhile; NULL if it has no bytes */
} f8_tensor_to_store;

typedef struct {
    const char *key, *value;
} f8_metadata_pair;

/* Write a file with checksums, atomically: after a failure or a crash `path` is what it was. Tensors, all in memory of
 * one kind, come in the given order, wide elements first, so that all are aligned. The same input gives the same
 * bytes. */
fp8flow_status f8_safetensors_write(const char *path, const f8_tensor_to_store *tensors, int64_t num_tensors,
                                    const f8_metadata_pair *metadata, int64_t num_metadata,
                                    const f8_tensor_access *access);

#endif
