/* corpus.c - finding documents and identifying them. Contract: corpus.h. */
#include "train/corpus.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <xxhash.h>

#include "io/file.h"

enum { BINARY_PROBE = 8192, IDENTITY_PROBE = 4096 };

/* ---- One document ---- */

/* The first and last bytes of a document, which tell text from binary and one content from another. */
typedef struct {
    int64_t size;
    size_t head_bytes, tail_bytes;
    uint8_t head[BINARY_PROBE], tail[IDENTITY_PROBE];
} probe;

static fp8flow_status probe_file(const char *path, probe *p)
{
    f8_file file;
    F8_TRY(f8_file_open(path, &file));
    p->size = file.size;
    p->head_bytes = file.size < BINARY_PROBE ? (size_t)file.size : BINARY_PROBE;
    p->tail_bytes = file.size < IDENTITY_PROBE ? (size_t)file.size : IDENTITY_PROBE;
    fp8flow_status status = f8_file_pread(&file, p->head, p->head_bytes, 0);
    if (status == FP8FLOW_OK) status = f8_file_pread(&file, p->tail, p->tail_bytes, file.size - (int64_t)p->tail_bytes);
    f8_file_close(&file);
    return status;
}

static bool is_binary(const probe *p)
{
    return p->head_bytes && memchr(p->head, 0, p->head_bytes);
}

/* Chains documents: order, names, sizes and ends all count. */
static uint64_t identify(uint64_t chain, const char *name, const probe *p)
{
    size_t head = p->head_bytes < IDENTITY_PROBE ? p->head_bytes : IDENTITY_PROBE;
    uint64_t parts[5] = { chain, XXH3_64bits(name, strlen(name)), (uint64_t)p->size, XXH3_64bits(p->head, head),
                          XXH3_64bits(p->tail, p->tail_bytes) };
    return XXH3_64bits(parts, sizeof parts);
}

static fp8flow_status add_document(f8_corpus *corpus, const char *path, const char *name, const probe *p)
{
    F8_TRY(
        f8_grow("data", &corpus->documents, &corpus->capacity, corpus->num_documents + 1, sizeof *corpus->documents));
    int64_t start = corpus->num_documents ? corpus->num_tokens + 1 : 0, end;
    F8_REQUIRE(!__builtin_add_overflow(start, p->size, &end) && end < INT64_MAX / 2, EINVAL,
               "data: %s: the files have more than 2^62 bytes together", path);
    corpus->documents[corpus->num_documents++] = (f8_document){ start, p->size, corpus->paths.size };
    corpus->num_tokens = end;
    corpus->identity = identify(corpus->identity, name, p);
    f8_buffer_append(&corpus->paths, path, strlen(path) + 1);
    return f8_buffer_check(&corpus->paths, "data");
}

/* ---- Files and folders ---- */

static fp8flow_status add_listed_file(f8_corpus *corpus, const char *path, const char *name)
{
    probe p;
    fp8flow_status status = probe_file(path, &p);
    if (status == FP8FLOW_EIO) {
        corpus->skipped.skipped_unreadable++;
        return FP8FLOW_OK;
    }
    F8_TRY(status);
    if (p.size > 0 && !is_binary(&p)) return add_document(corpus, path, name, &p);
    if (p.size > 0) corpus->skipped.skipped_binary++;
    else corpus->skipped.skipped_empty++;
    return FP8FLOW_OK;
}

static fp8flow_status add_folder(f8_corpus *corpus, const char *folder)
{
    f8_listing listing;
    F8_TRY(f8_list_files(folder, &listing));
    fp8flow_status status = FP8FLOW_OK;
    for (size_t i = 0; status == FP8FLOW_OK && i < listing.num_names; i++) {
        const char *name = listing.names + listing.name[i];
        char *path = NULL;
        status = f8_path_join(folder, name, &path);
        if (status == FP8FLOW_OK) status = add_listed_file(corpus, path, name);
        free(path);
    }
    corpus->skipped.skipped_unreadable += listing.num_unreadable;
    corpus->skipped.skipped_special += listing.num_special;
    corpus->skipped.skipped_directory_links += listing.num_directory_links;
    f8_listing_free(&listing);
    return status;
}

static fp8flow_status add_named_file(f8_corpus *corpus, const char *path)
{
    const char *slash = strrchr(path, '/');
    probe p;
    F8_TRY(probe_file(path, &p));
    return add_document(corpus, path, slash ? slash + 1 : path, &p);
}

fp8flow_status f8_corpus_open(const char *const *paths, int num_paths, f8_corpus *corpus)
{
    *corpus = (f8_corpus){ 0 };
    for (int i = 0; i < num_paths; i++) {
        struct stat info;
        bool folder = stat(paths[i], &info) == 0 && S_ISDIR(info.st_mode);
        F8_TRY(folder ? add_folder(corpus, paths[i]) : add_named_file(corpus, paths[i]));
    }
    return FP8FLOW_OK;
}

void f8_corpus_free(f8_corpus *corpus)
{
    f8_buffer_free(&corpus->paths);
    free(corpus->documents);
    *corpus = (f8_corpus){ 0 };
}

const char *f8_corpus_path(const f8_corpus *corpus, int64_t document)
{
    return corpus->paths.data + corpus->documents[document].path;
}

int64_t f8_corpus_find(const f8_corpus *corpus, int64_t position)
{
    size_t low = 0, high = corpus->num_documents - 1;
    while (low < high) {
        size_t middle = low + (high - low + 1) / 2;
        if (corpus->documents[middle].start <= position) low = middle;
        else high = middle - 1;
    }
    return (int64_t)low;
}
