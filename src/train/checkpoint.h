/* checkpoint.h - names and marks of a checkpoint folder, shared by saving and loading. */
#ifndef F8_TRAIN_CHECKPOINT_H
#define F8_TRAIN_CHECKPOINT_H

#include "io/safetensors.h"
#include "train/trainer.h"

enum { F8_CHECKPOINT_NAME = 128, F8_COMPLETE_BYTES = 38 };

/* output/step-NNNNNNNN + suffix, from malloc. */
fp8flow_status f8_checkpoint_path(const char *output, int64_t step, const char *suffix, char **path);

/* The step that a folder of this name holds, or -1: the inverse of f8_checkpoint_path ("step-7" is no name of ours). */
int64_t f8_checkpoint_step(const char *name, const char *suffix);

/* Steps of the complete checkpoints in a folder, ascending, from malloc. */
fp8flow_status f8_checkpoint_list(const char *output, int64_t **steps, size_t *count);

/* "model-00001-of-00004.safetensors". */
void f8_checkpoint_shard_name(char name[64], const char *kind, int64_t index, int64_t count);

/* "model.layers.N.mlp.gate.e_score_correction_bias". */
void f8_checkpoint_bias_name(char name[F8_CHECKPOINT_NAME], int64_t layer);

/* How tensor files get at the memory of a context. */
f8_tensor_access f8_checkpoint_access(fp8flow_context *context);

/* The contents of COMPLETE for a state.json. */
void f8_checkpoint_complete_text(char text[F8_COMPLETE_BYTES + 1], const void *state, size_t size);

#endif
