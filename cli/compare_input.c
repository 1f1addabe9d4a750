/* compare_input.c - taking the finished runs of an earlier comparison from its compare.json. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compare_json.h"

/* Numbers go through nine decimal places of text. */
static const double text_precision = 1e-8;

enum { MOST_LAYERS = 1024, MOST_EXPERTS = 4096 };

static int is_same(const json_t *a, const json_t *b)
{
    if (!json_is_real(a) && !json_is_real(b)) return json_equal(a, b);
    if (!json_is_number(a) || !json_is_number(b)) return 0;
    double x = json_number_value(a), y = json_number_value(b);
    return fabs(x - y) <= text_precision * fabs(y);
}

/* A missing or wrong value is NaN or -1. */
static double real_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static int64_t integer_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_integer(value) ? (int64_t)json_integer_value(value) : -1;
}

/* ---- What the comparison is of -------------------------------------------------------------- */

static int check_training(const compare_study *study, const json_t *root, const char *path,
                          char message[COMPARE_MESSAGE_BYTES])
{
    json_t *here = compare_training_object(study), *there = json_object_get(root, "training"), *either;
    json_t *all = json_copy(here);
    const char *key;
    int status = 0;
    (void)json_object_update_missing(all, there);
    json_object_foreach(all, key, either)
    {
        const json_t *other = json_object_get(there, key), *value = json_object_get(here, key);
        if (is_same(other, value)) continue;
        char *texts[2] = { json_dumps(other, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)),
                           json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) };
        snprintf(message, COMPARE_MESSAGE_BYTES, "%.200s: %s is %.90s there and %.90s here", path, key,
                 texts[0] ? texts[0] : "missing", texts[1] ? texts[1] : "missing");
        free(texts[0]);
        free(texts[1]);
        status = -1;
        break;
    }
    json_decref(all);
    json_decref(here);
    return status;
}

/* The model and the data as the first folder has them; every other one must agree. */
static int check_info(compare_study *study, const json_t *root, const char *path, char message[COMPARE_MESSAGE_BYTES])
{
    const json_t *from = json_object_get(root, "info");
    fp8flow_train_info info = { .parameters = integer_of(from, "parameters"),
                                .active_parameters = integer_of(from, "active_parameters"),
                                .num_moe_layers = integer_of(from, "moe_layers"),
                                .num_experts = integer_of(from, "experts"),
                                .top_k = integer_of(from, "top_k"),
                                .train_tokens = integer_of(from, "train_tokens"),
                                .validation_tokens = integer_of(from, "validation_tokens") };
    if (info.parameters == 0) return 0; /* interrupted before its first step: there is nothing to take */
    if (info.num_moe_layers < 0 || info.num_moe_layers > MOST_LAYERS || info.num_experts < 0 ||
        info.num_experts > MOST_EXPERTS) {
        snprintf(message, COMPARE_MESSAGE_BYTES, "%.200s: info is missing or has values out of range", path);
        return -1;
    }
    if (study->info.parameters == 0) study->info = info;
    if (compare_same_info(&study->info, &info)) return 0;
    snprintf(message, COMPARE_MESSAGE_BYTES,
             "%.200s: %lld parameters and %lld tokens to train on, elsewhere %lld and %lld", path,
             (long long)info.parameters, (long long)info.train_tokens, (long long)study->info.parameters,
             (long long)study->info.train_tokens);
    return -1;
}

/* ---- Runs ----------------------------------------------------------------------------------- */

static int take_validations(compare_run *run, const json_t *list)
{
    size_t count = json_array_size(list);
    compare_validation *room = realloc(run->validation, sizeof *room * (count + 1));
    if (!room) return -1;
    run->validation = room;
    run->max_validations = (int64_t)count + 1;
    for (size_t v = 0; v < count; v++) {
        const json_t *entry = json_array_get(list, v);
        run->validation[v] = (compare_validation){ integer_of(entry, "step"), real_of(entry, "loss") };
    }
    run->num_validations = (int64_t)count;
    return 0;
}

/* Loads of another shape than the model's are left out: the report then has no map of this run. */
static int take_load(const compare_study *study, compare_run *run, const json_t *slices)
{
    size_t layers = (size_t)study->info.num_moe_layers, experts = (size_t)study->info.num_experts;
    if (json_array_size(slices) != COMPARE_LOAD_SLICES) return 0;
    int64_t *load = calloc(COMPARE_LOAD_SLICES * layers * experts + 1, sizeof *load), *next = load;
    if (!load) return -1;
    for (size_t i = 0; i < COMPARE_LOAD_SLICES * layers; i++) {
        const json_t *row = json_array_get(json_array_get(slices, i / layers), i % layers);
        for (size_t e = 0; e < experts; e++) *next++ = (int64_t)json_integer_value(json_array_get(row, e));
    }
    run->load = load;
    return 0;
}

static int take_run(const compare_study *study, compare_run *run, const json_t *from)
{
    const json_t *loss = json_object_get(from, "loss");
    for (int64_t t = 0; t < study->options->steps; t++) {
        const json_t *value = json_array_get(loss, (size_t)t);
        run->loss[t] = json_is_number(value) ? json_number_value(value) : NAN;
    }
    run->timed_tokens = real_of(from, "timed_tokens");
    run->timed_seconds = real_of(from, "timed_seconds");
    run->nonfinite_steps = integer_of(from, "nonfinite_steps");
    run->first_nonfinite = integer_of(from, "first_nonfinite_step");
    run->last = (fp8flow_step_metrics){ .step = study->options->steps,
                                        .loss = run->loss[study->options->steps - 1],
                                        .saved_bytes = integer_of(from, "saved_bytes"),
                                        .explicit_casts = integer_of(from, "explicit_casts"),
                                        .dispatch_bytes_per_token = real_of(from, "dispatch_bytes_per_token"),
                                        .wire_bytes_per_token = real_of(from, "wire_bytes_per_token") };
    if (take_validations(run, json_object_get(from, "validation")) != 0) return -1;
    if (take_load(study, run, json_object_get(from, "expert_load")) != 0) return -1;
    run->num_steps = study->options->steps;
    return 0;
}

/* The finished run of a seed in the object of its recipe; NULL: there is none. */
static const json_t *find_run(const compare_study *study, const json_t *recipe, uint64_t seed)
{
    size_t index;
    const json_t *run;
    json_array_foreach(
        json_object_get(recipe, "runs"), index,
        run) if (integer_of(run, "seed") == (int64_t)seed && integer_of(run, "steps") == study->options->steps &&
                 json_is_null(json_object_get(run, "error")) &&
                 json_array_size(json_object_get(run, "loss")) == (size_t)study->options->steps) return run;
    return NULL;
}

static int take_recipe(const compare_study *study, compare_recipe *recipe, const json_t *from, int64_t *count)
{
    for (int64_t s = 0; s < recipe->num_runs; s++) {
        compare_run *run = &recipe->runs[s];
        const json_t *found = run->num_steps == 0 ? find_run(study, from, run->seed) : NULL;
        if (!found) continue;
        if (take_run(study, run, found) != 0) return -1;
        ++*count;
    }
    return 0;
}

static char *copy_of(const json_t *value)
{
    return json_is_string(value) ? strdup(json_string_value(value)) : NULL;
}

static int take_all(compare_study *study, const json_t *root, const char *path, char message[COMPARE_MESSAGE_BYTES])
{
    int64_t count = 0;
    size_t index;
    const json_t *from;
    if (check_training(study, root, path, message) != 0 || check_info(study, root, path, message) != 0) return -1;
    json_array_foreach(json_object_get(root, "recipes"), index, from)
    {
        const char *name = json_string_value(json_object_get(from, "recipe"));
        for (int64_t r = 0; name && r < study->num_recipes; r++)
            if (strcmp(name, study->recipes[r].name) == 0 &&
                take_recipe(study, &study->recipes[r], from, &count) != 0) {
                snprintf(message, COMPARE_MESSAGE_BYTES, "out of memory");
                return -1;
            }
    }
    if (count > 0 && !study->taken_machine) {
        study->taken_machine = copy_of(json_object_get(root, "machine"));
        study->taken_date = copy_of(json_object_get(root, "date"));
    }
    return 0;
}

int compare_take(compare_study *study, const char *folder, char message[COMPARE_MESSAGE_BYTES])
{
    char path[4200];
    json_error_t error;
    snprintf(path, sizeof path, "%s/compare.json", folder);
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        if (error.line < 0) snprintf(message, COMPARE_MESSAGE_BYTES, "%.400s", error.text); /* names the file */
        else snprintf(message, COMPARE_MESSAGE_BYTES, "%.200s, line %d: %.200s", path, error.line, error.text);
        return -1;
    }
    int status = take_all(study, root, path, message);
    json_decref(root);
    return status;
}
