/* config.h - what a model is: a decoder of the Qwen3-MoE shape, as Hugging Face's config.json says it. */
#ifndef F8_MODEL_CONFIG_H
#define F8_MODEL_CONFIG_H

#include "fp8flow.h"
#include "io/buffer.h"

enum { F8_MAX_LAYERS = 1024 };

typedef struct {
    int64_t vocab_size, hidden, num_layers, num_heads, num_kv_heads, head_dim, max_positions;
    int64_t expert_width, dense_width, shared_width;
    int64_t dense_layer[F8_MAX_LAYERS], num_dense_layers; /* mlp_only_layers */
    int64_t sparse_step;                                  /* decoder_sparse_step */
    double rope_theta, norm_eps, init_std;
    double bias_update_rate;
    int tie_embeddings;
    fp8flow_router_config router; /* sequence_length is set by the trainer */
} f8_model_config;

/* Parse and check. `file` names the text in messages. Unknown keys are appended to *ignored (may be NULL) for a
 * warning; unknown values are errors. Errors: EFORMAT, one line with file, key and value. */
fp8flow_status f8_model_config_parse(const char *file, const char *text, size_t size, f8_model_config *config,
                                     f8_buffer *ignored);

/* A preset name or the path of a config.json; the text that was used is left in *text (initialised here) for
 * checkpoints. Errors: EIO, EFORMAT; a name that is neither lists the presets. */
fp8flow_status f8_model_config_load(const char *model, f8_buffer *text, f8_model_config *config, f8_buffer *ignored);

/* 1 if both describe the same model. */
int f8_model_config_equal(const f8_model_config *a, const f8_model_config *b);

/* 1 if layer `layer` has a mixture of experts. */
int f8_layer_is_sparse(const f8_model_config *config, int64_t layer);

#endif
