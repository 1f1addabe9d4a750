/* bench_train.h - the parts of `fp8flow bench train`: whole models, as many layers of them as fit, a few steps each.
 *
 *   cmd_bench_train.c      options, the order of the variants, one variant
 *   bench_train_model.c    models, how many layers fit, the files that a trainer reads
 *   bench_train_trace.c    operators of one more step
 *   bench_train_output.c   table and JSON
 */
#ifndef CLI_BENCH_TRAIN_H
#define CLI_BENCH_TRAIN_H

#include <jansson.h>

#include "bench_calls.h"
#include "bench_variants.h"
#include "timing.h"

/* A model that is cut: `layers` of it are left at most. The shared experts have the width of the others. */
typedef struct {
    const char *name;
    int64_t layers, hidden, heads, kv_heads, head_dim, experts, top_k, width, shared_experts, vocabulary;
} train_model;

/* Sequences of a step, sequences and tokens of a forward pass. */
typedef struct {
    int64_t batch, micro_batch, sequence_length;
} train_batch;

/* The model of this name; NULL: there is none. The names are train_model_names, for the help text. */
const train_model *train_model_find(const char *name);
#define TRAIN_MODEL_NAMES "v2-lite-cut, qwen3-30b-cut, demo"

/* Layers of which weights, FP32 masters, gradients and moments, both FP8 forms of the experts' weights and what one
 * forward pass keeps fit into so many bytes: an estimate, at least 1. */
int64_t train_layers_that_fit(const train_model *model, const train_batch *batch, double bytes);

/* A folder of its own with a config.json and random tokens. */
typedef struct {
    char folder[256], config[288], tokens[288];
} train_files;

/* 0, or -1 with errno set; remove in every case, also from a signal handler. */
int train_files_create(train_files *files, const train_model *model, int64_t layers, const train_batch *batch);
void train_files_remove(train_files *files);

/* ---- Results -------------------------------------------------------------------------------- */

typedef struct {
    const char *recipe;
    fp8flow_checkpointing mode;
    int64_t layers;
    fp8flow_train_info info;
    timing step;        /* milliseconds */
    int64_t used_bytes; /* of the GPU's memory after the steps, everybody's; 0: unknown */
    fp8flow_step_metrics last;
    bench_calls calls; /* calls.calls NULL: not traced */
} train_result;

typedef struct {
    const train_model *model;
    train_batch batch;
    fp8flow_device_info device;
    int64_t warm_ups, repeats;
    double bf16_ms, blockwise_ms; /* of these recipes in this mode; 0: not measured */
    json_t *records;              /* NULL: a table */
    int64_t num_rows;             /* emitted for this model */
} train_bench;

/* What a copy reaches on an H200: bound of the operators' bytes. */
#define TRAIN_COPY_TB_PER_S 4.21

/* Two more steps, one that counts the calls and one that is traced, into result->calls: free(calls.calls). */
fp8flow_status train_trace(const train_bench *b, fp8flow_context *c, fp8flow_trainer *trainer, train_result *result);

void train_emit(train_bench *b, const train_result *result);

#endif
