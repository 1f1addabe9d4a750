/* model.h - the decoder: forward, backward and incremental decoding of a micro-batch.
 *
 *   ids -> embed -> [ norm, attention, +, norm, experts or dense SwiGLU, + ] x layers -> norm -> head -> loss
 *
 * All arrays are memory of the context's device, and nothing here waits for it.
 *
 * Gradients are added to (`gradient`), activations are overwritten. The head and the loss run in chunks of rows,
 * forward and backward at once, so that the logits of a long micro-batch never exist together.
 * What is kept of a layer between forward and backward: see f8_kept below; with checkpointing FULL only the
 * residual stream, and the rest of a layer is computed again.
 */
#ifndef F8_MODEL_MODEL_H
#define F8_MODEL_MODEL_H

#include "base/arena.h"
#include "model/parameters.h"
#include "moe/moe.h"

/* Activations of one layer that backward needs; J heads, G key heads of width D. */
typedef struct {
    uint16_t *input;               /* [T, H] residual stream into the layer */
    uint16_t *middle;              /* [T, H] residual stream after attention */
    uint16_t *qkv;                 /* [T, (J + 2G) D] before query/key norm; values are used as they are */
    uint16_t *qk;                  /* [T, (J + G) D] after norm and rotation */
    uint16_t *attention;           /* [T, J D] attention output */
    float *lse;                    /* [T, J] */
    float *rstd_input, *rstd_post; /* [T] */
    float *rstd_q, *rstd_k;        /* [T, J], [T, G] */
    uint16_t *dense_h;             /* [T, 2I]; dense layers only */
} f8_kept;

typedef struct {
    fp8flow_context *context;
    fp8flow_comm *comm;
    f8_model_config config;
    fp8flow_checkpointing checkpointing;
    int64_t max_tokens, num_moe_layers;
    f8_parameter_table *table;
    float *master, *gradient, *moment1, *moment2; /* moments and gradient NULL without training */
    uint16_t *weight;
    float *router_bias; /* [layers, E]; not trained, moved by fp8flow_router_bias_update */
    fp8flow_moe **moe;  /* [layers], NULL for dense ones */
    f8_kept *kept;      /* [layers]; with FULL all but `input` are one shared set */
    /* shared by all layers, overwritten all the time */
    uint16_t *output;                                   /* [T, H] residual stream after the last layer */
    uint16_t *normed, *branch, *dx, *dnormed, *dbranch; /* [T, H] */
    uint16_t *dqkv, *dqk, *dattention, *dense_v, *dense_dv, *dense_dh;
    float *rstd_final, *loss, *logits;
    uint16_t *dlogits; /* [logit_rows, V], as logits; NULL without training */
    int64_t logit_rows;
    void *memory; /* all of the above arrays; of the device */
    int64_t memory_bytes;
} f8_model;

typedef enum { F8_FOR_TRAINING, F8_FOR_INFERENCE } f8_purpose;

typedef struct {
    const char *recipe;
    fp8flow_checkpointing checkpointing;
    int64_t max_tokens, sequence_length; /* of a micro-batch on this rank */
    f8_purpose purpose;
} f8_model_options;

/* Memory and layers; master weights are undefined. Collective. Errors: ENOMEM, ESHAPE, EFORMAT, EINVAL. */
fp8flow_status f8_model_create(fp8flow_context *context, fp8flow_comm *comm, const f8_model_config *config,
                               const f8_model_options *options, f8_model **model);
void f8_model_destroy(f8_model *model);

/* Initial values of the masters. */
fp8flow_status f8_model_init_masters(f8_model *model, uint64_t seed);

/* BF16 weights from the masters, expert weights quantised; after loading and after every optimiser step
 * (`fp8flow_adamw` has then written the BF16 weights already: f8_model_publish only). */
fp8flow_status f8_model_publish_from_master(f8_model *model);
fp8flow_status f8_model_publish(f8_model *model);

/* One micro-batch of B sequences. */
typedef struct {
    const int32_t *ids, *targets; /* [B, S], memory of the device */
    int64_t batch, sequence_length;
    float gradient_scale; /* of each token's loss; 0: no gradient is computed */
    float loss_scale;     /* of the router's losses in backward */
} f8_micro_batch;

/* *loss_sum, memory of the device: sum of the token losses (F64). With gradient_scale != 0 the gradient of the residual
 * stream is ready for f8_model_backward. Collective. */
fp8flow_status f8_model_forward(f8_model *model, const f8_micro_batch *batch, double *loss_sum);
fp8flow_status f8_model_backward(f8_model *model, const f8_micro_batch *batch);

/* Pieces shared by training and decoding (model.c). */
fp8flow_tensor f8_model_weight(const f8_model *m, int64_t layer, f8_kind kind);   /* BF16 [rows, cols] */
float *f8_model_master(const f8_model *m, int64_t layer, f8_kind kind);           /* NULL: absent */
fp8flow_tensor f8_model_gradient(const f8_model *m, int64_t layer, f8_kind kind); /* F32 [rows, cols] */
fp8flow_status f8_model_gemm(f8_model *m, fp8flow_product product, const fp8flow_tensor *a, const fp8flow_tensor *b,
                             fp8flow_tensor *c);
fp8flow_status f8_model_norm(f8_model *m, int64_t layer, f8_kind kind, const fp8flow_tensor *x, fp8flow_tensor *y,
                             float *rstd);
/* The head's weight: HEAD, or the embedding where they are tied. */
f8_kind f8_model_head_kind(const f8_model *m);

/* Columns [first, first + cols) of a BF16 matrix. */
fp8flow_tensor f8_columns_of(const fp8flow_tensor *t, int64_t first, int64_t cols);

/* Queries, keys and values of `normed` (T tokens at positions first_position .. of each sequence) into kept. */
fp8flow_status f8_model_qkv(f8_model *m, int64_t layer, int64_t tokens, int64_t sequence_length,
                            int64_t first_position);
/* output = middle + experts or dense SwiGLU of norm(middle). */
fp8flow_status f8_model_mlp(f8_model *m, int64_t layer, int64_t tokens, uint16_t *output);
/* middle = input + out projection of kept->attention. */
fp8flow_status f8_model_attention_out(f8_model *m, int64_t layer, int64_t tokens);
/* The attention half of a layer: fills kept from kept->input. */
fp8flow_status f8_model_attention(f8_model *m, int64_t layer, int64_t batch, int64_t sequence_length);

#endif
