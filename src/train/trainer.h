/* trainer.h - the inside of a trainer: model, data, optimiser state, figures of the last step. */
#ifndef F8_TRAIN_TRAINER_H
#define F8_TRAIN_TRAINER_H

#include "io/buffer.h"
#include "model/model.h"
#include "train/data.h"

enum { F8_MAX_NONFINITE = 64, F8_NONFINITE_BYTES = 160 };

struct fp8flow_trainer {
    fp8flow_context *context;
    fp8flow_comm *comm;
    fp8flow_train_options options; /* strings below are our own; model, data and resume are not kept */
    char *output, *recipe;
    f8_buffer config_text; /* config.json as given */
    f8_buffer ignored_keys;
    f8_model *model;
    f8_data *data;
    int64_t step, first_step, optimizer_step; /* optimizer_step: updates made (a non-finite gradient skips one) */
    int64_t num_micro_batches;
    int32_t *ids, *targets; /* [micro_batch, S] */
    int64_t *load;          /* [layers, E] of the last step, all ranks */
    int num_nonfinite;
    char nonfinite[F8_MAX_NONFINITE][F8_NONFINITE_BYTES];
    fp8flow_observer *observer;
    void *observer_user;
    int64_t observed_layer;
};

/* options.c: ranges and combinations. Errors: EINVAL naming the field and the value. */
fp8flow_status f8_train_options_check(const fp8flow_train_options *options, int32_t num_ranks);

/* Learning rate of step 1 .. steps: linear warm-up, then cosine. */
double f8_learning_rate(const fp8flow_train_options *options, int64_t step);

/* checkpoint.c: a checkpoint folder. */
#define F8_CHECKPOINT_FORMAT 1

/* The newest complete checkpoint in `folder`, or `folder` itself if it is one; *path from malloc.
 * Errors: EIO (no such folder), EFORMAT (nothing complete in it). */
fp8flow_status f8_checkpoint_find(const char *folder, char **path);

/* What state.json says. */
typedef struct {
    int64_t step, optimizer_step, batch, sequence_length, num_shards;
    uint64_t seed, data_seed, data_identity;
    char recipe[64];
} f8_checkpoint_state;

/* Check COMPLETE and the checksums of state.json and config.json; read both. *config_text is initialised here. */
fp8flow_status f8_checkpoint_open(const char *path, f8_checkpoint_state *state, f8_buffer *config_text);

/* Fill the model's masters and router biases (and the moments if it has them) from a checkpoint: every tensor must
 * be there with its shape and checksum, and no other. */
fp8flow_status f8_checkpoint_load(const char *path, const f8_checkpoint_state *state, f8_model *model);

/* Write output/step-NNNNNNNN. Collective. */
fp8flow_status f8_checkpoint_save(fp8flow_trainer *trainer);

#endif
