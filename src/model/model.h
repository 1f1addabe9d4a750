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
 *
 * Weights and gradients are whole on every rank that uses them. Where several ranks have the same ones, each keeps the
 * masters and moments of its share only and updates that: gradients are summed to where their share is, then the new
 * weights are sent to all (state.c).
 */
#ifndef F8_MODEL_MODEL_H
#define F8_MODEL_MODEL_H

#include "base/arena.h"
#include "model/parameters.h"
#include "model/ranks.h"
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

/* A part of the arrays of parameters that is the same on all ranks of `comm`. Elements are those of the parameter
 * table; share r is [first + share[r], first + share[r + 1]). */
typedef struct {
    fp8flow_comm *comm; /* over memory of the context; NULL: this rank has all of it */
    int64_t first, count;
    int64_t share[F8_COMM_MAX_RANKS + 1];
    int64_t begin, end; /* this rank's share */
    int64_t state;      /* the element of master and moments that `begin` has */
} f8_section;

enum { F8_REPLICATED, F8_EXPERTS, F8_NUM_SECTIONS };

typedef struct {
    fp8flow_context *context;
    f8_ranks ranks;
    f8_model_config config;
    fp8flow_checkpointing checkpointing;
    int64_t max_tokens, num_moe_layers;
    f8_parameter_table *table;
    f8_section section[F8_NUM_SECTIONS];
    int64_t state_count;               /* elements of master and of each moment: the shares of this rank */
    float *master, *moment1, *moment2; /* moments and gradient NULL without training */
    float *gradient;                   /* [count of the table], as `weight`; free for anything between two steps */
    uint16_t *weight;                  /* [count] */
    float *fp32;                       /* what is read in FP32, whole; NULL: master is whole and is read */
    int64_t fp32_share[F8_COMM_MAX_RANKS + 1]; /* shares of it in bytes */
    float *router_bias;                        /* [layers, E]; not trained, moved by fp8flow_router_bias_update */
    fp8flow_moe **moe;                         /* [layers], NULL for dense ones */
    f8_kept *kept;                             /* [layers]; with FULL all but `input` are one shared set */
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
    f8_purpose purpose;                  /* inference: every rank has all masters */
    int32_t expert_parallel;             /* ranks that share the experts out; 0: all */
} f8_model_options;

/* Memory and layers; master weights are undefined. Collective over `world`. Errors: ENOMEM, ESHAPE, EFORMAT, EINVAL. */
fp8flow_status f8_model_create(fp8flow_context *context, fp8flow_comm *world, const f8_model_config *config,
                               const f8_model_options *options, f8_model **model);
void f8_model_destroy(f8_model *model);

/* Initial values of the masters. */
fp8flow_status f8_model_init_masters(f8_model *model, uint64_t seed);

/* Expert weights quantised from the BF16 ones: after every optimiser step. From the masters (collective): after loading
 * and initialising, BF16 weights too. */
fp8flow_status f8_model_publish(f8_model *model);
fp8flow_status f8_model_publish_from_master(f8_model *model);

/* ---- state.c: shares ---- */

/* Who has which share; before memory is allocated. */
void f8_model_share_out(f8_model *model, f8_purpose purpose);

/* The section of an element, and which of the elements [first, first + count) of it are in this rank's share: returns
 * how many, from *begin on. */
const f8_section *f8_model_section(const f8_model *model, int64_t element);
int64_t f8_section_overlap(const f8_section *section, int64_t first, int64_t count, int64_t *begin);

/* Gradients summed over the ranks, each to where its share is; elsewhere they are undefined afterwards. Collective. */
fp8flow_status f8_model_reduce_gradients(f8_model *model);

/* Weights, and what is read in FP32, from those who have updated them. Collective. */
fp8flow_status f8_model_gather_weights(f8_model *model);

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
fp8flow_tensor f8_model_weight(const f8_model *m, int64_t layer, f8_kind kind); /* BF16 [rows, cols] */
/* FP32 values: of norms and routers on every rank, of other parameters where this rank has all of them. NULL: absent or
 * in shares. */
float *f8_model_master(const f8_model *m, int64_t layer, f8_kind kind);
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
