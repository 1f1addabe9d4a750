/* data.c - reading the stream of tokens. Contract: data.h. Finding the documents: corpus.c. */
#include "train/data.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "io/file.h"
#include "train/corpus.h"

enum { DEFAULT_OPEN_FILES = 16, MAX_SEQUENCE_LENGTH = 1 << 24 };

/* Stream numbers keep uses of one seed apart (rng.h). */
static const uint64_t order_stream = 0x64617461; /* "data" */

typedef struct {
    f8_file file;
    int64_t document; /* -1: free */
    uint64_t last_use;
} slot;

struct f8_data {
    f8_corpus corpus;
    int64_t sequence_length, batch_size, num_training, num_validation;
    uint8_t *tokens; /* sequence_length + 1: the segment being read */
    int32_t num_slots;
    uint64_t clock; /* of the cache: least recently used goes first */
    slot *slots;
};

/* ---- Opening ---- */

static fp8flow_status count_segments(f8_data *data)
{
    const int64_t period = F8_DATA_VALIDATION_PERIOD, length = data->sequence_length;
    int64_t needed = period * length + 1;
    F8_REQUIRE(data->corpus.num_tokens >= needed, EINVAL,
               "data: sequences of %" PRId64 " tokens need at least %" PRId64 " bytes (one validation and %d training "
               "segments), found %" PRId64 " in %zu documents",
               length, needed, F8_DATA_VALIDATION_PERIOD - 1, data->corpus.num_tokens, data->corpus.num_documents);
    int64_t segments = (data->corpus.num_tokens - 1) / length;
    data->num_validation = segments / period;
    data->num_training = segments - data->num_validation;
    return FP8FLOW_OK;
}

static fp8flow_status make_cache(f8_data *data, int32_t max_open_files)
{
    data->num_slots = max_open_files ? max_open_files : DEFAULT_OPEN_FILES;
    data->slots = calloc((size_t)data->num_slots, sizeof *data->slots);
    data->tokens = malloc((size_t)data->sequence_length + 1);
    F8_REQUIRE(data->slots && data->tokens, ENOMEM, "data: no memory for a sequence of %" PRId64 " tokens",
               data->sequence_length);
    for (int32_t i = 0; i < data->num_slots; i++) data->slots[i].document = -1;
    return FP8FLOW_OK;
}

fp8flow_status f8_data_open(const char *const *paths, int num_paths, int64_t sequence_length,
                            const f8_data_options *options, f8_data **data)
{
    *data = NULL;
    F8_REQUIRE(num_paths >= 1, EINVAL, "data: no file or folder is given");
    F8_REQUIRE(sequence_length >= 1 && sequence_length <= MAX_SEQUENCE_LENGTH, EINVAL,
               "data: sequence length %" PRId64 ", expected 1 to %d", sequence_length, MAX_SEQUENCE_LENGTH);
    F8_REQUIRE(options->batch_size >= 1, EINVAL, "data: batch size %" PRId64 ", expected at least 1",
               options->batch_size);
    F8_REQUIRE(options->max_open_files >= 0 && options->max_open_files <= 65536, EINVAL,
               "data: %d open files, expected 0 to 65536", options->max_open_files);
    f8_data *opened = calloc(1, sizeof *opened);
    F8_REQUIRE(opened, ENOMEM, "data: no memory for a reader");
    opened->sequence_length = sequence_length;
    opened->batch_size = options->batch_size;
    fp8flow_status status = f8_corpus_open(paths, num_paths, &opened->corpus);
    if (status == FP8FLOW_OK) status = count_segments(opened);
    if (status == FP8FLOW_OK) status = make_cache(opened, options->max_open_files);
    if (status == FP8FLOW_OK) *data = opened;
    else f8_data_close(opened);
    return status;
}

void f8_data_close(f8_data *data)
{
    if (!data) return;
    for (int32_t i = 0; data->slots && i < data->num_slots; i++) f8_file_close(&data->slots[i].file);
    free(data->slots);
    free(data->tokens);
    f8_corpus_free(&data->corpus);
    free(data);
}

f8_data_summary f8_data_summarize(const f8_data *data)
{
    f8_data_summary summary = data->corpus.skipped;
    summary.num_documents = (int64_t)data->corpus.num_documents;
    summary.num_tokens = data->corpus.num_tokens;
    summary.num_training = data->num_training;
    summary.num_validation = data->num_validation;
    summary.identity = data->corpus.identity;
    return summary;
}

/* ---- Reading ---- */

/* The open file of a document; the least recently used one makes room. */
static fp8flow_status open_document(f8_data *data, int64_t document, const f8_file **file)
{
    slot *victim = &data->slots[0];
    for (int32_t i = 0; i < data->num_slots; i++) {
        slot *s = &data->slots[i];
        if (s->document == document) {
            s->last_use = ++data->clock;
            *file = &s->file;
            return FP8FLOW_OK;
        }
        if (s->last_use < victim->last_use) victim = s;
    }
    const f8_document *d = &data->corpus.documents[document];
    f8_file_close(&victim->file);
    victim->document = -1;
    victim->last_use = 0;
    F8_TRY(f8_file_open(f8_corpus_path(&data->corpus, document), &victim->file));
    if (victim->file.size < d->size) {
        int64_t now = victim->file.size;
        f8_file_close(&victim->file);
        return F8_FAIL(EIO, "%s: has shrunk from %" PRId64 " to %" PRId64 " bytes since training began",
                       f8_corpus_path(&data->corpus, document), d->size, now);
    }
    victim->document = document;
    victim->last_use = ++data->clock;
    *file = &victim->file;
    return FP8FLOW_OK;
}

/* `count` tokens of the stream from `position` on. */
static fp8flow_status read_tokens(f8_data *data, int64_t position, int64_t count, uint8_t *tokens)
{
    int64_t document = f8_corpus_find(&data->corpus, position);
    while (count > 0) {
        const f8_document *d = &data->corpus.documents[document];
        int64_t offset = position - d->start, left = d->size - offset;
        int64_t piece = left < count ? left : count;
        if (piece > 0) {
            const f8_file *file = NULL;
            F8_TRY(open_document(data, document, &file));
            F8_TRY(f8_file_pread(file, tokens, (size_t)piece, offset));
        } else {
            /* Just behind the document's last byte. */
            tokens[0] = F8_DATA_SEPARATOR;
            piece = 1;
            document++;
        }
        position += piece;
        tokens += piece;
        count -= piece;
    }
    return FP8FLOW_OK;
}

static fp8flow_status read_segment(f8_data *data, int64_t segment, int32_t *ids, int32_t *targets)
{
    int64_t length = data->sequence_length;
    F8_TRY(read_tokens(data, segment * length, length + 1, data->tokens));
    for (int64_t i = 0; i < length; i++) {
        ids[i] = data->tokens[i];
        targets[i] = data->tokens[i + 1];
    }
    return FP8FLOW_OK;
}

/* ---- Order ---- */

int64_t f8_data_training_segment(const f8_data *data, uint64_t seed, int64_t step, int64_t index)
{
    uint64_t n = (uint64_t)data->num_training;
    uint64_t sample = (uint64_t)step * (uint64_t)data->batch_size + (uint64_t)index;
    uint64_t key = f8_random(seed, order_stream, sample / n);
    int64_t rank = (int64_t)f8_shuffle(key, sample % n, n);
    /* Skip every validation segment below: one after each 19 training segments. */
    return rank + rank / (F8_DATA_VALIDATION_PERIOD - 1);
}

fp8flow_status f8_data_batch(f8_data *data, uint64_t seed, int64_t step, int64_t first, int64_t count, int32_t *ids,
                             int32_t *targets)
{
    F8_REQUIRE(step >= 0 && step < INT64_MAX / data->batch_size, EINVAL, "data: step %" PRId64 " is not possible",
               step);
    F8_REQUIRE(first >= 0 && count >= 0 && first <= data->batch_size && count <= data->batch_size - first, EINVAL,
               "data: sequences %" PRId64 " + %" PRId64 " of a batch of %" PRId64, first, count, data->batch_size);
    for (int64_t i = 0; i < count; i++) {
        int64_t segment = f8_data_training_segment(data, seed, step, first + i), at = i * data->sequence_length;
        F8_TRY(read_segment(data, segment, ids + at, targets + at));
    }
    return FP8FLOW_OK;
}

fp8flow_status f8_data_validation(f8_data *data, int64_t first, int64_t count, int32_t *ids, int32_t *targets)
{
    F8_REQUIRE(first >= 0 && count >= 0 && first <= data->num_validation && count <= data->num_validation - first,
               EINVAL, "data: validation segments %" PRId64 " + %" PRId64 " of %" PRId64, first, count,
               data->num_validation);
    for (int64_t i = 0; i < count; i++) {
        int64_t segment = (first + i + 1) * F8_DATA_VALIDATION_PERIOD - 1, at = i * data->sequence_length;
        F8_TRY(read_segment(data, segment, ids + at, targets + at));
    }
    return FP8FLOW_OK;
}
