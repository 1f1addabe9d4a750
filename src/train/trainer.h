/* trainer.h - the inside of a trainer: model, data, optimiser state, figures of the last step.
 *
 * Everything that operators touch is memory of the context's device. A step waits for the device once, at its end, when
 * the tokens of the next step go there and the figures of this one come back; the program reads the next tokens from
 * the data while the device works.
 */
#ifndef F8_TRAIN_TRAINER_H
#define F8_TRAIN_TRAINER_H

#include "io/buffer.h"
#include "model/model.h"
#include "train/data.h"

enum { F8_MAX_NONFINITE = 64, F8_NONFINITE_BYTES = 160 };

/* What a step counts and sums on the device: one block, cleared at the start of a step, copied once at its end. */
typedef struct {
    double square_sums[F8_NUM_SECTIONS]; /* of the gradients of all ranks */
    double norm;
    float scale;       /* of the gradients: clipping; NaN: the norm is not finite */
    double loss_sum[]; /* [micro-batches]; behind them f8_moe_figures of each layer */
} f8_step_figures;

/* What the trainer's ranks have spent since they were made. */
typedef struct {
    f8_comm_spent reduce, gather, dispatch, combine;
} f8_step_spent;

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
    int32_t *tokens, *device_tokens; /* [micro-batches][ids, targets][micro_batch, S]; the program's, the device's */
    int64_t tokens_step;             /* whose training tokens the device has; -1: none */
    f8_step_figures *figures, *last_step; /* the device's; the program's copy */
    f8_step_spent spent;                  /* when the step began */
    int num_nonfinite;
    char nonfinite[F8_MAX_NONFINITE][F8_NONFINITE_BYTES];
    fp8flow_observer *observer;
    void *observer_user;
    int64_t observed_layer;
};

/* options.c: ranges and combinations. Errors: EINVAL naming the field and the value. */
fp8flow_status f8_train_options_check(const fp8flow_train_options *options, int32_t num_ranks);

/* The same for what the model decides. */
fp8flow_status f8_train_options_check_model(const fp8flow_train_options *options, const f8_model_config *config);

/* Learning rate of step 1 .. steps: linear warm-up, then cosine. */
double f8_learning_rate(const fp8flow_train_options *options, int64_t step);

/* figures.c: the figures of a step. Sizes are those of the trainer's model and options. */
size_t f8_step_figures_bytes(const fp8flow_trainer *trainer);
f8_moe_figures *f8_step_layer(const fp8flow_trainer *trainer, f8_step_figures *figures, int64_t layer);

/* From last_step and the layers' reports: everything but gradient_norm, times and schedule; places of values that are
 * not finite. Sums over ranks. Collective. */
fp8flow_status f8_step_measure(fp8flow_trainer *trainer, fp8flow_step_metrics *metrics);

/* What has been spent until now. */
f8_step_spent f8_step_find_spent(const fp8flow_trainer *trainer);

/* Which gradients of this rank's shares hold the non-finite values that the norm has shown. */
fp8flow_status f8_step_note_gradients(fp8flow_trainer *trainer);

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

/* Fill this rank's shares of masters and moments (if the model has them) and the router biases from a checkpoint: every
 * tensor of them must be there with its shape and checksum, and no other. The gradients are lost. */
fp8flow_status f8_checkpoint_load(const char *path, const f8_checkpoint_state *state, f8_model *model);

/* Write output/step-NNNNNNNN. Collective. */
fp8flow_status f8_checkpoint_save(fp8flow_trainer *trainer);

#endif
