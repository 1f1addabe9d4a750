/* checkpoint_save.c - writing a checkpoint folder.
 *
 *   step-00000100.tmp/   written first, by all ranks; renamed to step-00000100/ when everything is on disk
 *     model-00001-of-00002.safetensors       FP32 master weights, Hugging Face names, global expert ids
 *     optimizer-00001-of-00002.safetensors   <name>.exp_avg, <name>.exp_avg_sq
 *     config.json    as given               state.json   step, seeds, data identity, checksum of config.json
 *     COMPLETE       last of all: the checksum of state.json
 *
 * Every rank stores the tensors that start in its shares of the masters and moments; rank 0 the router biases. Each
 * tensor has a checksum in its file's metadata, so that one flipped bit anywhere is found on loading.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "comm/comm.h"
#include "io/file.h"
#include "io/json.h"
#include "train/checkpoint.h"

#define TEMPORARY ".tmp"

/* ---- Agreement ---- */

/* All ranks return what the lowest rank that failed has to say, and which one that is. */
static fp8flow_status agree(fp8flow_comm *comm, fp8flow_status mine)
{
    struct {
        fp8flow_status status;
        char message[1024];
    } report = { mine, "" };
    int64_t first = mine != FP8FLOW_OK ? comm->size - comm->rank : 0;
    if (mine != FP8FLOW_OK) snprintf(report.message, sizeof report.message, "%s", fp8flow_last_error());
    F8_TRY(f8_comm_all_reduce(comm, F8_MAX_I64, &first, 1));
    if (first == 0) return FP8FLOW_OK;
    int32_t failed = comm->size - (int32_t)first;
    F8_TRY(f8_comm_broadcast(comm, failed, &report, sizeof report));
    return comm->size == 1 ? f8_fail(report.status, "%s", report.message)
                           : f8_fail(report.status, "rank %d: %s", failed, report.message);
}

/* ---- Tensors that lie in shares of several ranks ----
 *
 * A tensor is stored by the rank that has its first element. So of each section the last tensor of a rank may miss its
 * end, which the next ranks have; and all that a rank has for others is at the start of its share. */

enum { NUM_ARRAYS = 3 }; /* master, moments */

typedef struct {
    const f8_section *section;
    int64_t first, count;     /* the tensor: elements of the arrays; count 0: none misses its end */
    float *whole[NUM_ARRAYS]; /* memory of the context */
    int32_t keeper;           /* of the tensor at the start of this rank's share; -1: this rank */
    int64_t sent;             /* elements for the keeper */
} joint;

typedef struct {
    joint section[F8_NUM_SECTIONS];
} joints;

static int64_t elements_of(const f8_stored_slice *slice)
{
    return (slice->rows ? slice->rows : 1) * slice->cols;
}

static int is_stored_here(const f8_model *m, const f8_stored_slice *slice)
{
    const f8_section *s = f8_model_section(m, slice->offset);
    return s->begin <= slice->offset && slice->offset < s->end;
}

/* Where the joints of this rank are, from the table alone. */
static void find_joint(const f8_model *m, const f8_section *s, joint *j)
{
    *j = (joint){ .section = s, .keeper = -1 };
    for (int64_t i = 0; s->comm && i < m->table->num_slices; i++) {
        const f8_stored_slice *slice = &m->table->slice[i];
        int64_t begin, count = f8_section_overlap(s, slice->offset, elements_of(slice), &begin);
        if (count == 0 || count == elements_of(slice)) continue;
        if (is_stored_here(m, slice)) {
            j->first = slice->offset;
            j->count = elements_of(slice);
            continue;
        }
        j->sent = count;
        for (j->keeper = s->comm->rank; s->first + s->share[j->keeper] > slice->offset;) j->keeper--;
    }
}

static fp8flow_status allocate_joint(const f8_model *m, joint *j)
{
    size_t bytes = (size_t)j->count * sizeof(float);
    for (int i = 0; i < NUM_ARRAYS && bytes; i++) F8_TRY(m->context->device->alloc(bytes, (void **)&j->whole[i]));
    F8_REQUIRE(j->count <= INT32_MAX && j->sent <= INT32_MAX, ESHAPE,
               "save: a tensor of more than 2^31 elements is in the shares of several ranks");
    return FP8FLOW_OK;
}

static fp8flow_status fill_joint(const f8_model *m, joint *j)
{
    const f8_section *s = j->section;
    const float *array[NUM_ARRAYS] = { m->master, m->moment1, m->moment2 };
    f8_comm_part part[NUM_ARRAYS];
    int32_t send_rows[F8_COMM_MAX_RANKS] = { 0 }, recv_rows[F8_COMM_MAX_RANKS] = { 0 };
    if (!s->comm) return FP8FLOW_OK;
    int64_t here = j->count ? s->end - j->first : 0;
    for (int i = 0; i < NUM_ARRAYS; i++) {
        part[i] = (f8_comm_part){ array[i] + s->state, j->whole[i] ? j->whole[i] + here : NULL, sizeof(float) };
        if (j->count)
            F8_TRY(fp8flow_memory_copy(m->context, j->whole[i], array[i] + (j->first - s->begin + s->state),
                                       (size_t)here * sizeof(float)));
    }
    if (j->sent) send_rows[j->keeper] = (int32_t)j->sent;
    for (int32_t r = s->comm->rank + 1; r < s->comm->size; r++) {
        int64_t begin = s->first + s->share[r], end = s->first + s->share[r + 1], last = j->first + j->count;
        recv_rows[r] = (int32_t)(last <= begin ? 0 : (last < end ? last : end) - begin);
    }
    return f8_comm_exchange(s->comm, part, NUM_ARRAYS, send_rows, recv_rows);
}

static void free_joints(const f8_model *m, joints *all)
{
    for (int i = 0; i < F8_NUM_SECTIONS; i++)
        for (int k = 0; k < NUM_ARRAYS; k++) m->context->device->free(all->section[i].whole[k]);
}

/* On an error everything is given back. Collective. */
static fp8flow_status fill_joints(const fp8flow_trainer *t, joints *all)
{
    const f8_model *m = t->model;
    fp8flow_status status = FP8FLOW_OK;
    for (int i = 0; i < F8_NUM_SECTIONS; i++) find_joint(m, &m->section[i], &all->section[i]);
    for (int i = 0; i < F8_NUM_SECTIONS && status == FP8FLOW_OK; i++) status = allocate_joint(m, &all->section[i]);
    status = agree(t->comm, status);
    for (int i = 0; i < F8_NUM_SECTIONS && status == FP8FLOW_OK; i++) status = fill_joint(m, &all->section[i]);
    if (status != FP8FLOW_OK) free_joints(m, all);
    return status;
}

/* ---- Shards of one rank ---- */

typedef struct {
    f8_tensor_to_store *tensors;
    char (*names)[F8_CHECKPOINT_NAME];
    int64_t count;
} shard;

static void add_tensor(shard *s, const char *name, const char *suffix, int64_t rows, int64_t cols, const float *data)
{
    snprintf(s->names[s->count], F8_CHECKPOINT_NAME, "%s%s", name, suffix);
    f8_tensor_to_store t = { .name = s->names[s->count], .dtype = F8_STORED_F32, .data = data };
    if (rows) t.shape[t.rank++] = rows;
    t.shape[t.rank++] = cols;
    s->tensors[s->count++] = t;
}

/* The tensors of array number `array` that this rank stores. */
static void add_slices(shard *s, const f8_model *m, const joints *all, int array, const char *suffix)
{
    const float *state[NUM_ARRAYS] = { m->master, m->moment1, m->moment2 };
    for (int64_t i = 0; i < m->table->num_slices; i++) {
        const f8_stored_slice *slice = &m->table->slice[i];
        const f8_section *section = f8_model_section(m, slice->offset);
        const joint *j = &all->section[section - m->section];
        if (!is_stored_here(m, slice)) continue;
        const float *data = state[array] + (slice->offset - section->begin + section->state);
        if (j->count && j->first == slice->offset) data = j->whole[array];
        add_tensor(s, slice->name, suffix, slice->rows, slice->cols, data);
    }
}

static void add_router_biases(shard *s, const fp8flow_trainer *t)
{
    const f8_model *m = t->model;
    char name[F8_CHECKPOINT_NAME];
    for (int64_t layer = 0; layer < m->config.num_layers; layer++) {
        if (!m->moe[layer] || fp8flow_comm_rank(t->comm) != 0) continue;
        f8_checkpoint_bias_name(name, layer);
        add_tensor(s, name, "", 0, m->config.router.num_experts, m->router_bias + layer * m->config.router.num_experts);
    }
}

static fp8flow_status write_shard(const fp8flow_trainer *t, const char *directory, const char *kind, const shard *s)
{
    char name[64], *path = NULL;
    f8_checkpoint_shard_name(name, kind, fp8flow_comm_rank(t->comm), fp8flow_comm_size(t->comm));
    F8_TRY(f8_path_join(directory, name, &path));
    f8_tensor_access access = f8_checkpoint_access(t->context);
    fp8flow_status status = f8_safetensors_write(path, s->tensors, s->count, NULL, 0, &access);
    free(path);
    return status;
}

static fp8flow_status write_shards(const fp8flow_trainer *t, const char *directory, const joints *all)
{
    const f8_model *m = t->model;
    size_t most = (size_t)(2 * m->table->num_slices + m->config.num_layers);
    shard s = { calloc(most, sizeof *s.tensors), calloc(most, sizeof *s.names), 0 };
    fp8flow_status status = FP8FLOW_OK;
    if (!s.tensors || !s.names) status = F8_FAIL(ENOMEM, "save: no memory for %zu tensor names", most);
    if (status == FP8FLOW_OK) {
        add_slices(&s, m, all, 0, "");
        add_router_biases(&s, t);
        status = write_shard(t, directory, "model", &s);
    }
    if (status == FP8FLOW_OK) {
        s.count = 0;
        add_slices(&s, m, all, 1, ".exp_avg");
        add_slices(&s, m, all, 2, ".exp_avg_sq");
        status = write_shard(t, directory, "optimizer", &s);
    }
    free(s.tensors);
    free(s.names);
    return status;
}

/* Collective. */
static fp8flow_status store_tensors(const fp8flow_trainer *t, const char *directory)
{
    joints all;
    F8_TRY(fill_joints(t, &all));
    fp8flow_status status = write_shards(t, directory, &all);
    free_joints(t->model, &all);
    return agree(t->comm, status);
}

/* ---- state.json and COMPLETE (rank 0) ---- */

static void write_state(const fp8flow_trainer *t, f8_buffer *out)
{
    char digits[24];
    f8_json_writer w = { out, false };
    f8_json_begin_object(&w, NULL);
    f8_json_write_int(&w, "format", F8_CHECKPOINT_FORMAT);
    f8_json_write_string(&w, "version", FP8FLOW_VERSION);
    f8_json_write_int(&w, "step", t->step);
    f8_json_write_int(&w, "optimizer_step", t->optimizer_step);
    f8_json_write_int(&w, "batch", t->options.batch);
    f8_json_write_int(&w, "sequence_length", t->options.sequence_length);
    f8_json_write_int(&w, "num_shards", fp8flow_comm_size(t->comm));
    /* 64-bit values as text: JSON numbers are doubles to many readers. */
    const struct {
        const char *key;
        uint64_t value;
    } words[] = { { "seed", t->options.seed },
                  { "data_seed", t->options.data_seed },
                  { "data_identity", f8_data_summarize(t->data).identity },
                  { "config_xxh3", XXH3_64bits(t->config_text.data, t->config_text.size) } };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        snprintf(digits, sizeof digits, "%016llx", (unsigned long long)words[i].value);
        f8_json_write_string(&w, words[i].key, digits);
    }
    f8_json_write_string(&w, "recipe", t->recipe);
    f8_json_end_object(&w);
    f8_buffer_text(out, "\n");
}

static fp8flow_status write_file(const char *directory, const char *name, const void *bytes, size_t count)
{
    char *path = NULL;
    F8_TRY(f8_path_join(directory, name, &path));
    fp8flow_status status = f8_file_write_all(path, bytes, count);
    free(path);
    return status;
}

static fp8flow_status write_commit(const fp8flow_trainer *t, const char *directory)
{
    f8_buffer state = { 0 };
    char complete[F8_COMPLETE_BYTES + 1];
    write_state(t, &state);
    fp8flow_status status = f8_buffer_check(&state, "state.json");
    if (status == FP8FLOW_OK) {
        f8_checkpoint_complete_text(complete, state.data, state.size);
        status = write_file(directory, "config.json", t->config_text.data, t->config_text.size);
    }
    if (status == FP8FLOW_OK) status = write_file(directory, "state.json", state.data, state.size);
    if (status == FP8FLOW_OK) status = write_file(directory, "COMPLETE", complete, F8_COMPLETE_BYTES);
    f8_buffer_free(&state);
    return status;
}

/* ---- Folders ---- */

/* Remove a checkpoint folder; COMPLETE first, so that no half-removed one is ever taken for complete. */
static void remove_folder(const char *path)
{
    f8_listing listing = { 0 };
    char *file = NULL;
    if (f8_path_join(path, "COMPLETE", &file) == FP8FLOW_OK) unlink(file);
    free(file);
    if (f8_list_files(path, &listing) != FP8FLOW_OK) return;
    for (size_t i = 0; i < listing.num_names; i++) {
        file = NULL;
        if (f8_path_join(path, listing.names + listing.name[i], &file) == FP8FLOW_OK) unlink(file);
        free(file);
    }
    f8_listing_free(&listing);
    rmdir(path);
}

/* Under another name first: what a killed process leaves of a removal is a step-N.tmp like any other. */
static void remove_checkpoint(const char *output, int64_t step)
{
    char *path = NULL, *away = NULL;
    if (f8_checkpoint_path(output, step, "", &path) == FP8FLOW_OK &&
        f8_checkpoint_path(output, step, TEMPORARY, &away) == FP8FLOW_OK) {
        remove_folder(away);
        if (rename(path, away) == 0) remove_folder(away);
    }
    free(path);
    free(away);
}

static void remove_old(const fp8flow_trainer *t)
{
    int64_t *steps = NULL;
    size_t count = 0;
    if (t->options.keep_checkpoints == 0 || f8_checkpoint_list(t->output, &steps, &count) != FP8FLOW_OK) return;
    for (size_t i = 0; i + (size_t)t->options.keep_checkpoints < count; i++) remove_checkpoint(t->output, steps[i]);
    free(steps);
}

/* Folders that killed processes have left half written or half removed. */
static void remove_rests(const char *output)
{
    DIR *directory = opendir(output);
    if (!directory) return;
    for (struct dirent *entry; (entry = readdir(directory));) {
        char *path = NULL;
        if (f8_checkpoint_step(entry->d_name, TEMPORARY) < 0) continue;
        if (f8_path_join(output, entry->d_name, &path) == FP8FLOW_OK) remove_folder(path);
        free(path);
    }
    closedir(directory);
}

/* Put the complete new folder in the place of `to`. Where there is one of that step already, the two are exchanged in
 * one move: a process that is killed here leaves the old or the new one, never none. */
static fp8flow_status rename_folder(const char *from, const char *to, const char *output)
{
    int failed = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE);
    if (failed) { /* nothing there, or a file system that cannot exchange */
        remove_folder(to);
        failed = rename(from, to);
    }
    if (failed) return F8_FAIL(EIO, "%s: cannot rename to %s: %s", from, to, strerror(errno));
    return f8_directory_sync(output);
}

static fp8flow_status save_folder(fp8flow_trainer *t, const char *temporary, const char *final)
{
    int first = fp8flow_comm_rank(t->comm) == 0;
    fp8flow_status status = FP8FLOW_OK;
    if (first) {
        remove_rests(t->output);
        status = f8_directory_make(temporary);
    }
    F8_TRY(agree(t->comm, status));
    F8_TRY(store_tensors(t, temporary));
    if (first) {
        status = write_commit(t, temporary);
        if (status == FP8FLOW_OK) status = rename_folder(temporary, final, t->output);
        if (status == FP8FLOW_OK) {
            remove_old(t);
            remove_rests(t->output);
        }
    }
    return agree(t->comm, status);
}

fp8flow_status f8_checkpoint_save(fp8flow_trainer *t)
{
    char *temporary = NULL, *final = NULL;
    F8_TRY(f8_checkpoint_path(t->output, t->step, TEMPORARY, &temporary));
    fp8flow_status status = f8_checkpoint_path(t->output, t->step, "", &final);
    if (status == FP8FLOW_OK) status = save_folder(t, temporary, final);
    if (status != FP8FLOW_OK && temporary && fp8flow_comm_rank(t->comm) == 0) {
        char message[1024]; /* cleaning up must not replace it */
        snprintf(message, sizeof message, "%s", fp8flow_last_error());
        remove_folder(temporary);
        (void)f8_fail(status, "%s", message);
    }
    free(temporary);
    free(final);
    return status;
}
