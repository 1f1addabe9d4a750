/* parameters.h - every weight of a model, once: from this table come memory, initialisation, optimiser groups and
 * the names in checkpoints.
 *
 *   arrays of all parameters of a rank:  | replicated on every rank | experts of this rank |
 *
 * master, gradient, moments are FP32, weight is the BF16 copy that products read (norms and router read the
 * master). Stored tensors (Hugging Face names, global expert ids) are row slices of parameters, in the arrays' order
 * and without gaps.
 */
#ifndef F8_MODEL_PARAMETERS_H
#define F8_MODEL_PARAMETERS_H

#include "model/config.h"

/* clang-format off */
/*    kind          where            decay */
#define F8_PARAMETERS(X)                                                        \
    X(EMBEDDING,    F8_ONCE,          1)  /* [V, H]                */           \
    X(FINAL_NORM,   F8_ONCE,          0)  /* [1, H]                */           \
    X(HEAD,         F8_ONCE,          1)  /* [V, H]; absent if tied */          \
    X(INPUT_NORM,   F8_EVERY_LAYER,   0)  /* [1, H]                */           \
    X(QKV,          F8_EVERY_LAYER,   1)  /* [(J + 2G) D, H]       */           \
    X(Q_NORM,       F8_EVERY_LAYER,   0)  /* [1, D]                */           \
    X(K_NORM,       F8_EVERY_LAYER,   0)  /* [1, D]                */           \
    X(OUT,          F8_EVERY_LAYER,   1)  /* [H, J D]              */           \
    X(POST_NORM,    F8_EVERY_LAYER,   0)  /* [1, H]                */           \
    X(DENSE_FC1,    F8_DENSE_LAYER,   1)  /* [2I, H]               */           \
    X(DENSE_FC2,    F8_DENSE_LAYER,   1)  /* [H, I]                */           \
    X(ROUTER,       F8_SPARSE_LAYER,  1)  /* [E, H]                */           \
    X(SHARED_FC1,   F8_SPARSE_LAYER,  1)  /* [2Fs, H]; absent without shared expert */ \
    X(SHARED_FC2,   F8_SPARSE_LAYER,  1)  /* [H, Fs]               */           \
    X(FC1,          F8_EXPERT_LAYER,  1)  /* [L, 2F, H]            */           \
    X(FC2,          F8_EXPERT_LAYER,  1)  /* [L, H, F]             */
/* clang-format on */

typedef enum { F8_ONCE, F8_EVERY_LAYER, F8_DENSE_LAYER, F8_SPARSE_LAYER, F8_EXPERT_LAYER } f8_where;

typedef enum {
#define F8_X(kind, where, decay) F8_##kind,
    F8_PARAMETERS(F8_X)
#undef F8_X
        F8_NUM_KINDS
} f8_kind;

typedef struct {
    f8_kind kind;
    int64_t layer;      /* 0 for F8_ONCE */
    int64_t rows, cols; /* experts of this rank stacked in rows */
    int64_t offset;     /* first element in the arrays */
    int64_t fp32;       /* first element among those that are read in FP32 (norms, routers); -1: read in BF16 */
    int decay;
} f8_parameter;

/* A tensor of a checkpoint: rows [row, row + rows) of a parameter. */
typedef struct {
    char name[96];
    int64_t offset, rows, cols; /* rows 0: a vector of cols */
} f8_stored_slice;

typedef struct {
    int64_t num_parameters;
    f8_parameter *parameter;
    int64_t index[F8_MAX_LAYERS][F8_NUM_KINDS]; /* of (layer, kind) in parameter; -1: absent */
    int64_t count, replicated;                  /* elements: all of this rank; the replicated ones (they come first) */
    int64_t fp32_count;                         /* elements read in FP32, all of them replicated */
    int64_t global_count, active_count;         /* over all ranks; used by one token */
    int64_t first_expert, local_experts;
    int64_t num_slices;
    f8_stored_slice *slice;
} f8_parameter_table;

/* Rank `rank` of `size` that share the experts out. Errors: ENOMEM, EFORMAT (more than 2^40 elements). */
fp8flow_status f8_parameter_table_create(const f8_model_config *config, int32_t rank, int32_t size,
                                         f8_parameter_table **table);
void f8_parameter_table_destroy(f8_parameter_table *table);

/* First element of a parameter, or -1 if the model has none of this kind there. */
int64_t f8_parameter_offset(const f8_parameter_table *table, int64_t layer, f8_kind kind);

/* Elements read in FP32 among the first `elements` of the arrays. */
int64_t f8_parameter_fp32_before(const f8_parameter_table *table, int64_t elements);

/* Initial values: norms 1, the rest normal with config->init_std (output projections / sqrt(2 layers)), a pure
 * function of (seed, tensor, global expert, element): the same for every number of ranks. Elements [first, first +
 * count) of the arrays, to values[count]. */
void f8_parameter_init(const f8_parameter_table *table, const f8_model_config *config, uint64_t seed, int64_t first,
                       int64_t count, float *values);

#endif
