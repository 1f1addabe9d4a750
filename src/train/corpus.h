/* corpus.h - which documents there are: the table behind data.h. Knows names and sizes, not segments.
 *
 * Document i covers tokens start .. start + size - 1 of the stream; one separator follows each but the last,
 * so start of i+1 is start + size + 1. Empty documents (explicitly named ones) are kept.
 */
#ifndef F8_TRAIN_CORPUS_H
#define F8_TRAIN_CORPUS_H

#include "io/buffer.h"
#include "train/data.h"

typedef struct {
    int64_t start, size;
    size_t path; /* position in f8_corpus.paths */
} f8_document;

typedef struct {
    f8_buffer paths;
    f8_document *documents;
    size_t num_documents, capacity;
    int64_t num_tokens;
    uint64_t identity;
    f8_data_summary skipped; /* only its skipped_* fields are used */
} f8_corpus;

fp8flow_status f8_corpus_open(const char *const *paths, int num_paths, f8_corpus *corpus);
void f8_corpus_free(f8_corpus *corpus); /* also after a failed open */

const char *f8_corpus_path(const f8_corpus *corpus, int64_t document);

/* The document that holds a position of the stream, or is followed by the separator there. */
int64_t f8_corpus_find(const f8_corpus *corpus, int64_t position);

#endif
