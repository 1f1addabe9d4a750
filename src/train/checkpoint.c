/* checkpoint.c - finding and loading a checkpoint folder. What is in it: checkpoint_save.c.
 *
 * A folder counts only with its COMPLETE mark, whose checksum covers state.json, which covers config.json; tensors
 * carry their own. Nothing of a folder that fails a check is used.
 */
#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "io/file.h"
#include "io/json.h"

/* ---- Names ---- */

enum { STEP_NAME = 48 };

static void name_step(char name[STEP_NAME], int64_t step, const char *suffix)
{
    snprintf(name, STEP_NAME, "step-%08lld%.15s", (long long)step, suffix);
}

fp8flow_status f8_checkpoint_path(const char *output, int64_t step, const char *suffix, char **path)
{
    char name[STEP_NAME];
    name_step(name, step, suffix);
    return f8_path_join(output, name, path);
}

int64_t f8_checkpoint_step(const char *name, const char *suffix)
{
    char same[STEP_NAME];
    if (strncmp(name, "step-", 5) != 0) return -1;
    long long step = strtoll(name + 5, NULL, 10);
    name_step(same, step, suffix);
    return step >= 0 && strcmp(name, same) == 0 ? step : -1;
}

void f8_checkpoint_shard_name(char name[64], const char *kind, int64_t index, int64_t count)
{
    snprintf(name, 64, "%.10s-%05d-of-%05d.safetensors", kind, (int)index + 1, (int)count);
}

void f8_checkpoint_bias_name(char name[F8_CHECKPOINT_NAME], int64_t layer)
{
    snprintf(name, F8_CHECKPOINT_NAME, "model.layers.%lld.mlp.gate.e_score_correction_bias", (long long)layer);
}

void f8_checkpoint_complete_text(char text[F8_COMPLETE_BYTES + 1], const void *state, size_t size)
{
    snprintf(text, F8_COMPLETE_BYTES + 1, "fp8flow state.json %016llx\n ",
             (unsigned long long)XXH3_64bits(state, size));
    memset(text + strlen(text), ' ', F8_COMPLETE_BYTES - strlen(text));
    text[F8_COMPLETE_BYTES] = '\0';
}

/* ---- Finding ---- */

/* A failure is not "no": a newest checkpoint that is overlooked would silently be an older one. */
static fp8flow_status find_mark(const char *path, int *complete)
{
    struct stat information;
    char *mark = NULL;
    F8_TRY(f8_path_join(path, "COMPLETE", &mark));
    *complete = stat(mark, &information) == 0 && S_ISREG(information.st_mode);
    free(mark);
    return FP8FLOW_OK;
}

static int compare_steps(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

fp8flow_status f8_checkpoint_list(const char *output, int64_t **steps, size_t *count)
{
    size_t capacity = 0;
    *steps = NULL;
    *count = 0;
    DIR *directory = opendir(output);
    if (!directory) return F8_FAIL(EIO, "%s: cannot be read as a folder: %s", output, strerror(errno));
    fp8flow_status status = FP8FLOW_OK;
    for (struct dirent *entry; status == FP8FLOW_OK && (entry = readdir(directory));) {
        char *path = NULL;
        int complete = 0;
        int64_t step = f8_checkpoint_step(entry->d_name, "");
        if (step < 0) continue;
        status = f8_path_join(output, entry->d_name, &path);
        if (status == FP8FLOW_OK) status = find_mark(path, &complete);
        if (status == FP8FLOW_OK && complete) {
            status = f8_grow("checkpoint list", steps, &capacity, *count + 1, sizeof **steps);
            if (status == FP8FLOW_OK) (*steps)[(*count)++] = step;
        }
        free(path);
    }
    closedir(directory);
    if (status != FP8FLOW_OK) {
        free(*steps);
        return status;
    }
    if (*count) qsort(*steps, *count, sizeof **steps, compare_steps);
    return FP8FLOW_OK;
}

fp8flow_status f8_checkpoint_find(const char *folder, char **path)
{
    int64_t *steps = NULL;
    size_t count = 0;
    int complete;
    F8_TRY(find_mark(folder, &complete));
    if (complete) return f8_path_join("", folder, path);
    F8_TRY(f8_checkpoint_list(folder, &steps, &count));
    int64_t newest = count ? steps[count - 1] : -1;
    free(steps);
    F8_REQUIRE(newest >= 0, EFORMAT, "%s: holds no complete checkpoint", folder);
    return f8_checkpoint_path(folder, newest, "", path);
}

/* ---- state.json ---- */

static fp8flow_status hex_word(const f8_json *json, const char *key, uint64_t *value)
{
    const char *text;
    char *end;
    F8_TRY(f8_json_string(json, key, &text));
    errno = 0;
    *value = strtoull(text, &end, 16);
    F8_REQUIRE(strlen(text) == 16 && !*end && errno == 0, EFORMAT,
               "%s: %s is \"%.40s\", expected 16 hexadecimal digits", json->file, key, text);
    return FP8FLOW_OK;
}

static fp8flow_status read_state(const f8_json *json, f8_checkpoint_state *s, uint64_t *config_hash)
{
    int64_t format;
    const char *recipe;
    const int64_t most = (int64_t)1 << 40;
    F8_TRY(f8_json_int(json, "format", 1, 1 << 20, &format));
    F8_REQUIRE(format == F8_CHECKPOINT_FORMAT, EFORMAT, "%s: format is %lld, this version reads %d", json->file,
               (long long)format, F8_CHECKPOINT_FORMAT);
    F8_TRY(f8_json_int(json, "step", 0, most, &s->step));
    F8_TRY(f8_json_int(json, "optimizer_step", 0, s->step, &s->optimizer_step));
    F8_TRY(f8_json_int(json, "batch", 1, most, &s->batch));
    F8_TRY(f8_json_int(json, "sequence_length", 1, most, &s->sequence_length));
    F8_TRY(f8_json_int(json, "num_shards", 1, 65536, &s->num_shards));
    F8_TRY(hex_word(json, "seed", &s->seed));
    F8_TRY(hex_word(json, "data_seed", &s->data_seed));
    F8_TRY(hex_word(json, "data_identity", &s->data_identity));
    F8_TRY(hex_word(json, "config_xxh3", config_hash));
    F8_TRY(f8_json_string(json, "recipe", &recipe));
    snprintf(s->recipe, sizeof s->recipe, "%.63s", recipe);
    return FP8FLOW_OK;
}

static fp8flow_status read_file(const char *folder, const char *name, f8_buffer *content)
{
    char *path = NULL;
    *content = (f8_buffer){ 0 };
    F8_TRY(f8_path_join(folder, name, &path));
    fp8flow_status status = f8_file_read_all(path, F8_JSON_CONFIG_LIMIT, content);
    free(path);
    return status;
}

static fp8flow_status open_state(const char *path, const f8_buffer *complete, const f8_buffer *text,
                                 f8_checkpoint_state *state, uint64_t *config_hash)
{
    char expected[F8_COMPLETE_BYTES + 1];
    f8_json json = { 0 };
    f8_checkpoint_complete_text(expected, text->data, text->size);
    F8_REQUIRE(complete->size == F8_COMPLETE_BYTES && memcmp(complete->data, expected, F8_COMPLETE_BYTES) == 0, EFORMAT,
               "%s: COMPLETE does not fit state.json: one of them is damaged", path);
    fp8flow_status status = f8_json_parse("state.json", text->data, text->size, &json);
    if (status == FP8FLOW_OK) status = read_state(&json, state, config_hash);
    f8_json_free(&json);
    return status == FP8FLOW_OK ? status : f8_fail_in(status, "%s", path);
}

/* The newest checkpoint is found by the folders' names: a copy under another step's name would be taken for newer. */
static fp8flow_status check_name(const char *path, int64_t step)
{
    const char *slash = strrchr(path, '/');
    int64_t named = f8_checkpoint_step(slash ? slash + 1 : path, "");
    F8_REQUIRE(named < 0 || named == step, EFORMAT, "%s: state.json says step %lld", path, (long long)step);
    return FP8FLOW_OK;
}

fp8flow_status f8_checkpoint_open(const char *path, f8_checkpoint_state *state, f8_buffer *config_text)
{
    f8_buffer complete = { 0 }, text = { 0 };
    uint64_t config_hash = 0;
    *config_text = (f8_buffer){ 0 };
    fp8flow_status status = read_file(path, "COMPLETE", &complete);
    if (status == FP8FLOW_OK) status = read_file(path, "state.json", &text);
    if (status == FP8FLOW_OK) status = open_state(path, &complete, &text, state, &config_hash);
    if (status == FP8FLOW_OK) status = read_file(path, "config.json", config_text);
    if (status == FP8FLOW_OK && XXH3_64bits(config_text->data, config_text->size) != config_hash)
        status = F8_FAIL(EFORMAT, "%s: config.json is damaged: its checksum differs from state.json's", path);
    if (status == FP8FLOW_OK) status = check_name(path, state->step);
    f8_buffer_free(&complete);
    f8_buffer_free(&text);
    return status;
}

/* ---- Tensors ---- */

static fp8flow_status copy_bytes(void *context, void *to, const void *from, size_t bytes)
{
    return fp8flow_memory_copy(context, to, from, bytes);
}

f8_tensor_access f8_checkpoint_access(fp8flow_context *context)
{
    return (f8_tensor_access){ copy_bytes, context };
}

/* Where tensors come from, and the context whose memory they go to. */
typedef struct {
    const f8_safetensors_set *set;
    fp8flow_context *context;
} source;

static fp8flow_status read_tensor(const source *s, const char *name, int64_t rows, int64_t cols, float *memory)
{
    f8_tensor_access access = f8_checkpoint_access(s->context);
    f8_stored_tensor tensor;
    const f8_safetensors *file = f8_safetensors_set_find(s->set, name, &tensor);
    F8_REQUIRE(file, EFORMAT, "tensor %s is missing", name);
    int vector = rows == 0;
    int fits = tensor.dtype == F8_STORED_F32 && tensor.rank == (vector ? 1 : 2) &&
               tensor.shape[0] == (vector ? cols : rows) && (vector || tensor.shape[1] == cols);
    F8_REQUIRE(fits, EFORMAT, "tensor %s is not F32 of the shape [%lld, %lld] that config.json calls for", name,
               (long long)rows, (long long)cols);
    F8_REQUIRE(tensor.has_checksum, EFORMAT, "tensor %s has no checksum", name);
    return f8_safetensors_read(file, &tensor, memory, (vector ? 1 : rows) * cols * 4, &access);
}

/* What this rank has of a tensor, to its place in an array of masters or moments. A checksum is of a whole tensor: one
 * that is not all here passes through the place of its gradient. */
static fp8flow_status read_slice(const source *s, const f8_model *m, const f8_stored_slice *slice, const char *suffix,
                                 float *array)
{
    char name[F8_CHECKPOINT_NAME];
    const f8_section *section = f8_model_section(m, slice->offset);
    int64_t elements = (slice->rows ? slice->rows : 1) * slice->cols;
    int64_t begin, count = f8_section_overlap(section, slice->offset, elements, &begin);
    float *place = array + (begin - section->begin + section->state);
    if (count == 0) return FP8FLOW_OK;
    snprintf(name, sizeof name, "%s%s", slice->name, suffix);
    if (count == elements) return read_tensor(s, name, slice->rows, slice->cols, place);
    F8_TRY(read_tensor(s, name, slice->rows, slice->cols, m->gradient + slice->offset));
    return fp8flow_memory_copy(m->context, place, m->gradient + begin, (size_t)count * sizeof *place);
}

static fp8flow_status read_slices(const source *s, const f8_model *m, const char *suffix, float *array)
{
    for (int64_t i = 0; i < m->table->num_slices; i++) F8_TRY(read_slice(s, m, &m->table->slice[i], suffix, array));
    return FP8FLOW_OK;
}

static fp8flow_status read_router_biases(const source *s, f8_model *m)
{
    char name[F8_CHECKPOINT_NAME];
    int64_t num_experts = m->config.router.num_experts;
    for (int64_t layer = 0; layer < m->config.num_layers; layer++) {
        if (!m->moe[layer]) continue;
        f8_checkpoint_bias_name(name, layer);
        F8_TRY(read_tensor(s, name, 0, num_experts, m->router_bias + layer * num_experts));
    }
    return FP8FLOW_OK;
}

/* ---- Tensors that the model does not have ---- */

static int compare_slices(const void *a, const void *b)
{
    return strcmp(((const f8_stored_slice *)a)->name, ((const f8_stored_slice *)b)->name);
}

static int is_router_bias(const f8_model *m, const char *name)
{
    char same[F8_CHECKPOINT_NAME];
    for (int64_t layer = 0; layer < m->config.num_layers; layer++) {
        f8_checkpoint_bias_name(same, layer);
        if (m->moe[layer] && strcmp(name, same) == 0) return 1;
    }
    return 0;
}

/* Is it the name of one of the slices, with this suffix? */
static int is_slice(const f8_parameter_table *sorted, const char *name, const char *suffix)
{
    f8_stored_slice key;
    size_t length = strlen(name), ending = strlen(suffix);
    if (length < ending || length - ending >= sizeof key.name || strcmp(name + length - ending, suffix) != 0) return 0;
    snprintf(key.name, sizeof key.name, "%.*s", (int)(length - ending), name);
    return bsearch(&key, sorted->slice, (size_t)sorted->num_slices, sizeof key, compare_slices) != NULL;
}

/* EFORMAT naming a tensor that is neither <slice of any rank><first or second suffix> nor, with "", a router bias. */
static fp8flow_status refuse_surplus(const f8_safetensors_set *set, const f8_model *m, const char *const suffixes[2])
{
    f8_parameter_table *all;
    fp8flow_status status = FP8FLOW_OK;
    F8_TRY(f8_parameter_table_create(&m->config, 0, 1, &all));
    qsort(all->slice, (size_t)all->num_slices, sizeof *all->slice, compare_slices);
    for (int64_t i = 0; i < f8_safetensors_set_count(set) && status == FP8FLOW_OK; i++) {
        f8_stored_tensor tensor;
        f8_safetensors_set_at(set, i, &tensor);
        if (is_slice(all, tensor.name, suffixes[0]) || is_slice(all, tensor.name, suffixes[1])) continue;
        if (*suffixes[0] || !is_router_bias(m, tensor.name))
            status = F8_FAIL(EFORMAT, "tensor %.100s is not one of the model", tensor.name);
    }
    f8_parameter_table_destroy(all);
    return status;
}

static fp8flow_status open_shards(const char *path, const char *kind, int64_t count, f8_safetensors_set **set)
{
    fp8flow_status status = FP8FLOW_OK;
    char **paths = calloc((size_t)count, sizeof *paths);
    F8_REQUIRE(paths, ENOMEM, "load: no memory for %lld shard names", (long long)count);
    for (int64_t i = 0; i < count && status == FP8FLOW_OK; i++) {
        char name[64];
        f8_checkpoint_shard_name(name, kind, i, count);
        status = f8_path_join(path, name, &paths[i]);
    }
    if (status == FP8FLOW_OK) status = f8_safetensors_set_open((const char *const *)paths, (int)count, set);
    for (int64_t i = 0; i < count; i++) free(paths[i]);
    free(paths);
    return status;
}

static fp8flow_status load_weights(const char *path, const f8_checkpoint_state *state, f8_model *m)
{
    f8_safetensors_set *set = NULL;
    F8_TRY(open_shards(path, "model", state->num_shards, &set));
    source s = { set, m->context };
    fp8flow_status status = read_slices(&s, m, "", m->master);
    if (status == FP8FLOW_OK) status = read_router_biases(&s, m);
    if (status == FP8FLOW_OK) status = refuse_surplus(set, m, (const char *const[]){ "", "" });
    f8_safetensors_set_close(set);
    return status;
}

static fp8flow_status load_moments(const char *path, const f8_checkpoint_state *state, f8_model *m)
{
    static const char *const suffixes[2] = { ".exp_avg", ".exp_avg_sq" };
    f8_safetensors_set *set = NULL;
    F8_TRY(open_shards(path, "optimizer", state->num_shards, &set));
    source s = { set, m->context };
    fp8flow_status status = read_slices(&s, m, suffixes[0], m->moment1);
    if (status == FP8FLOW_OK) status = read_slices(&s, m, suffixes[1], m->moment2);
    if (status == FP8FLOW_OK) status = refuse_surplus(set, m, suffixes);
    f8_safetensors_set_close(set);
    return status;
}

fp8flow_status f8_checkpoint_load(const char *path, const f8_checkpoint_state *state, f8_model *m)
{
    fp8flow_status status = load_weights(path, state, m);
    if (status == FP8FLOW_OK && m->moment1) status = load_moments(path, state, m);
    return status == FP8FLOW_OK ? status : f8_fail_in(status, "%s", path);
}
