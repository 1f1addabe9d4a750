/* data.h - the byte-level corpus: files and folders as one stream of tokens, cut into segments.
 *
 *   stream     document 0, 0x00, document 1, 0x00, ... document n-1; a token is a byte, vocabulary 256
 *   segment s  tokens s*S .. s*S+S (S + 1 of them: S inputs, and targets shifted by one)
 *   validation segments with s % 20 == 19; all others are for training, in a new order every epoch
 *
 * What a training step sees is a pure function of (content, batch_size, seed, step): nothing has to be saved
 * or replayed for a resume, and any number of ranks can share a step. Documents are read by position when
 * needed, through a small cache of open files; memory is a table of names and sizes. One handle serves one
 * thread at a time; there is no state outside handles.
 */
#ifndef F8_TRAIN_DATA_H
#define F8_TRAIN_DATA_H

#include "base/status.h"

enum { F8_DATA_VOCABULARY = 256, F8_DATA_SEPARATOR = 0, F8_DATA_VALIDATION_PERIOD = 20 };

typedef struct {
    int64_t batch_size;     /* training sequences per step, over all ranks; >= 1 */
    int32_t max_open_files; /* 0: 16 */
} f8_data_options;

typedef struct f8_data f8_data;

/* What was found. Within folders, empty, binary (a NUL in the first 8 KiB) and unreadable files are left out. */
typedef struct {
    int64_t num_documents, num_tokens;
    int64_t num_training, num_validation; /* segments */
    int64_t skipped_empty, skipped_binary, skipped_unreadable, skipped_special, skipped_directory_links;
    /* Of names (below the given folder), sizes and the ends of every document, in order: a resume with
     * another data set can be refused. */
    uint64_t identity;
} f8_data_summary;

/* Open files and folders (recursively, in order of strcmp). A file that is named explicitly is always
 * taken, and must be readable. Fewer than 20 segments, that is 20 * sequence_length + 1 bytes, is EINVAL. */
fp8flow_status f8_data_open(const char *const *paths, int num_paths, int64_t sequence_length,
                            const f8_data_options *options, f8_data **data);
void f8_data_close(f8_data *data); /* NULL allowed */

f8_data_summary f8_data_summarize(const f8_data *data);

/* Sequences first .. first + count - 1 of the step's batch_size; ids and targets [count, sequence_length].
 * A document that shrank or vanished since it was opened is EIO. */
fp8flow_status f8_data_batch(f8_data *data, uint64_t seed, int64_t step, int64_t first, int64_t count, int32_t *ids,
                             int32_t *targets);

/* Validation segments first .. first + count - 1 of num_validation, always in the same order. */
fp8flow_status f8_data_validation(f8_data *data, int64_t first, int64_t count, int32_t *ids, int32_t *targets);

/* The segment that sequence `index` of a step reads. */
int64_t f8_data_training_segment(const f8_data *data, uint64_t seed, int64_t step, int64_t index);

#endif
