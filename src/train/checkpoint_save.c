/* checkpoint_save.c - writing a checkpoint folder.
 *
 *   step-00000100.tmp/   written first, by all ranks; renamed to step-00000100/ when everything is on disk
 *     model-00001-of-00002.safetensors       FP32 master weights, Hugging Face names, global expert ids
 *     optimizer-00001-of-00002.safetensors   <name>.exp_avg, <name>.exp_avg_sq
 *     config.json    as given               state.json   step, seeds, data identity, checksum of config.json
 *     COMPLETE       last of all: the checksum of state.json
 *
 * Rank 0 stores the replicated tensors, every rank its experts. Each tensor has a checksum in its file's
 * metadata, so that one flipped bit anywhere is found on loading.
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

/* Rank 0 stores everything it has; other ranks only their experts. */
static int is_stored_here(const fp8flow_trainer *t, int64_t offset)
{
    return fp8flow_comm_rank(t->comm) == 0 || offset >= t->model->table->replicated;
}

static void add_slices(shard *s, const fp8flow_trainer *t, const char *suffix, const float *array)
{
    const f8_parameter_table *table = t->model->table;
    for (int64_t i = 0; i < table->num_slices; i++) {
        const f8_stored_slice *slice = &table->slice[i];
        if (is_stored_here(t, slice->offset))
            add_tensor(s, slice->name, suffix, slice->rows, slice->cols, array + slice->offset);
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

static fp8flow_status write_shards(const fp8flow_trainer *t, const char *directory)
{
    const f8_model *m = t->model;
    size_t most = (size_t)(2 * m->table->num_slices + m->config.num_layers);
    shard s = { calloc(most, sizeof *s.tensors), calloc(most, sizeof *s.names), 0 };
    fp8flow_status status = FP8FLOW_OK;
    if (!s.tensors || !s.names) status = F8_FAIL(ENOMEM, "save: no memory for %zu tensor names", most);
    if (status == FP8FLOW_OK) {
        add_slices(&s, t, "", m->master);
        add_router_biases(&s, t);
        status = write_shard(t, directory, "model", &s);
    }
    if (status == FP8FLOW_OK) {
        s.count = 0;
        add_slices(&s, t, ".exp_avg", m->moment1);
        add_slices(&s, t, ".exp_avg_sq", m->moment2);
        status = write_shard(t, directory, "optimizer", &s);
    }
    free(s.tensors);
    free(s.names);
    return status;
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

/* All ranks return what the lowest rank that failed has to say. */
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
    F8_TRY(f8_comm_broadcast(comm, comm->size - (int32_t)first, &report, sizeof report));
    return f8_fail(report.status, "%s", report.message);
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
    F8_TRY(agree(t->comm, write_shards(t, temporary)));
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
