/* fp8flow.h - Mixture-of-Experts layers and language models trained in FP8: the public interface.
 *
 * A program that trains needs five calls: fp8flow_run_ranks, fp8flow_context_create,
 * fp8flow_trainer_create, fp8flow_trainer_step (in a loop), fp8flow_trainer_save. An integrator who has a
 * trainer needs fp8flow_moe_create, fp8flow_moe_set_weights, fp8flow_moe_forward, fp8flow_moe_backward.
 * fp8flow_ops.h has the single operators, the tensor type, and the rules on errors and exactness that
 * hold here too: a status everywhere, one line in fp8flow_last_error(), no printing, no exit; the status codes are
 * in fp8flow_status.h, a context's memory in fp8flow_device.h.
 *
 * Ownership: *_create gives a handle that *_destroy (NULL allowed) takes back; handles borrow the context
 * and the comm they were made from, which must outlive them. Tensors and option strings are borrowed for
 * the call only. One thread at a time per handle. Given NULL, what returns a status fails with EINVAL, what
 * returns a number gives -1, and what returns nothing does nothing.
 */
#ifndef FP8FLOW_H
#define FP8FLOW_H

#include "fp8flow_device.h"
#include "fp8flow_ops.h"
#include "fp8flow_ops_ranks.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Library -------------------------------------------------------------------------------- */

/* "0.1.0". */
FP8FLOW_API const char *fp8flow_version(void);

/* A checksum of the sources that this library was built from. */
FP8FLOW_API const char *fp8flow_build(void);

/* What this build found on this machine, and what each missing thing costs the user. */
typedef struct {
    const char *name;   /* "AVX2", "OpenBLAS", "OpenMP", "CUDA", "MPI", "NCCL" */
    int32_t available;  /* 1 or 0 */
    const char *detail; /* version or reason */
    const char *cost;   /* what its absence costs; "" when available */
} fp8flow_feature;

/* Feature number `index` (0, 1, ...) into *feature; EINVAL past the last one. Strings are static. */
FP8FLOW_API fp8flow_status fp8flow_feature_get(int64_t index, fp8flow_feature *feature);

/* Value of the environment variable OPENBLAS_CORETYPE that would make OpenBLAS choose faster kernels on this processor
 * (it is read when the library is loaded); NULL: the choice is fine. */
FP8FLOW_API const char *fp8flow_better_blas_core(void);

/* ---- Recipes -------------------------------------------------------------------------------- */

/* Name of recipe number `index`: bf16, tensorwise, blockwise, deepseek, flow; NULL past the last one. A recipe
 * argument is one of these names, optionally with variants appended: "flow+col128" (wgrad operands in
 * COL128 instead of TILE128), "flow+e5m2" (gradients in E5M2). docs/RECIPE.md. */
FP8FLOW_API const char *fp8flow_recipe_name(int64_t index);

/* One line on what the recipe does; NULL past the last one. */
FP8FLOW_API const char *fp8flow_recipe_summary(int64_t index);

/* OK if the recipe string is known. Errors: EINVAL, with the names that exist. */
FP8FLOW_API fp8flow_status fp8flow_recipe_check(const char *recipe);

/* ---- Ranks ---------------------------------------------------------------------------------- */

/* Transport between the ranks of a job. */
typedef struct fp8flow_comm fp8flow_comm;
FP8FLOW_API int32_t fp8flow_comm_rank(const fp8flow_comm *comm);
FP8FLOW_API int32_t fp8flow_comm_size(const fp8flow_comm *comm);

/* *value = the largest over the ranks: for decisions that all ranks must take alike. Collective. */
FP8FLOW_API fp8flow_status fp8flow_comm_max(fp8flow_comm *comm, int64_t *value);

/* Rank 0's all [size][bytes] = `mine` [bytes] of every rank; all is not looked at elsewhere. Collective. */
FP8FLOW_API fp8flow_status fp8flow_comm_gather(fp8flow_comm *comm, const void *mine, int64_t bytes, void *all);

/* Run body(comm, user) once per rank, each rank a thread of this process, and wait for all. If a body fails,
 * the collectives of the other ranks fail with ECOMM instead of hanging; the status and the message of the
 * lowest rank that failed by itself are returned. num_ranks in 1..256. Collective calls below must be made
 * by all ranks. Errors: EINVAL, ENOMEM, and whatever body returns. */
FP8FLOW_API fp8flow_status fp8flow_run_ranks(int32_t num_ranks, fp8flow_status (*body)(fp8flow_comm *comm, void *user),
                                             void *user);

/* Number of processes of the job if mpirun (Open MPI's or MPICH's) or srun started this one, with its rank (may be
 * NULL); else 0; -1 if an environment variable of theirs, or FP8FLOW_MPI, has a value without meaning
 * (fp8flow_last_error names it). FP8FLOW_MPI names the library where it cannot be seen: openmpi, mpich; or none: the
 * processes have nothing to do with each other. */
FP8FLOW_API int32_t fp8flow_mpi_launched(int32_t *rank);

/* Run body(comm, user) as the rank that this process is; once per process, on the thread that makes all collective
 * calls. A collective in which nothing arrives for `timeout` seconds fails with ECOMM, on all ranks. *failed_rank:
 * after an error, the rank whose message says why the job has failed; the same on all ranks that still can tell. After
 * an error the process must end, with an exit code other than 0: so mpirun learns of it. Errors: EINVAL, ENOMEM, ECOMM,
 * ENOSYS (the part for this MPI is not there), and whatever body returns. */
FP8FLOW_API fp8flow_status fp8flow_run_mpi_ranks(double timeout, fp8flow_status (*body)(fp8flow_comm *comm, void *user),
                                                 void *user, int32_t *failed_rank);

/* The ranks of `comm` as a communicator for arrays in the context's memory: the collectives below happen in the order
 * of its operator calls, and under CUDA return before they are done. There they go through NCCL where it is found and
 * every rank has a GPU of its own, else through host memory; FP8FLOW_TRANSPORT=nccl or staged in the environment
 * insists on one. close it before the context and `comm` end, after fp8flow_synchronize. Collective, also over those
 * that were made so. Errors: EINVAL, ENOMEM, ECOMM, EBACKEND, ENOSYS (a transport that cannot be had). */
FP8FLOW_API fp8flow_status fp8flow_comm_open(fp8flow_comm *comm, fp8flow_context *context, fp8flow_comm **opened);
FP8FLOW_API void fp8flow_comm_close(fp8flow_comm *opened);

/* "threads", "nccl", ...; static. */
FP8FLOW_API const char *fp8flow_comm_transport(const fp8flow_comm *comm);

/* Send rows of row_bytes bytes: send_rows[r] to rank r, those for rank 0 first; recv_rows[r] come from rank r, in the
 * order of the ranks. Both are the program's memory, and what one rank sends the other must expect. Collective. */
FP8FLOW_API fp8flow_status fp8flow_comm_exchange(fp8flow_comm *comm, int64_t row_bytes, const void *send,
                                                 const int32_t *send_rows, void *recv, const int32_t *recv_rows);

/* In place, over `count` numbers: the sum over the ranks, the same bits on all of them. Ranks ascending, but for NCCL,
 * whose order depends on the GPUs and the count. Collective. */
FP8FLOW_API fp8flow_status fp8flow_comm_sum(fp8flow_comm *comm, float *data, int64_t count);

/* The two halves of it. Slice r is elements offset[r] to offset[r + 1], ascending from 0 and the same on every rank
 * (offset [size + 1] is the program's memory). After sum_slices this rank's slice has the sum, the others are
 * undefined; gather_slices brings every rank the other ranks' slices. Collective. */
FP8FLOW_API fp8flow_status fp8flow_comm_sum_slices(fp8flow_comm *comm, float *data, const int64_t *offset);
FP8FLOW_API fp8flow_status fp8flow_comm_gather_slices(fp8flow_comm *comm, float *data, const int64_t *offset);

/* ---- MoE layer ------------------------------------------------------------------------------
 *
 * Weights, gradients and the data of x, y, dy and dx are memory of the context: under CUDA device memory, and calls
 * return before the work is done (fp8flow_ops.h). The get_* calls that read what the layer counted, and an observer,
 * wait for it; so does a layer of several ranks, in forward and backward, and a graph cannot record it (ENOSYS). Ranks
 * may share a GPU, each with a context of its own. Destroy a layer before its comm ends. */

/* What forward keeps for backward. */
typedef enum {
    FP8FLOW_KEEP_ALL = 0,   /* "none": no recomputation */
    FP8FLOW_MOE_EXPERT = 1, /* keep the received rows before permute (FP8 in flow and deepseek), recompute
                             * permute and FC1; FC2's product is not recomputed, nothing needs it */
    FP8FLOW_FULL = 2        /* keep nothing; the caller's x is all that backward has */
} fp8flow_checkpointing;

/* E experts of width F, spread over the ranks: rank r owns experts [E r / R, E (r+1) / R). */
typedef struct {
    int64_t hidden;       /* H */
    int64_t expert_width; /* F */
    int64_t shared_width; /* width of the shared expert (all shared experts together); 0: none */
    int64_t max_tokens;   /* largest T of one forward call on any rank */
    fp8flow_router_config router;
    const char *recipe;
    fp8flow_checkpointing checkpointing;
} fp8flow_moe_config;

/* Weights, borrowed until the next set_weights. fc1 rows of an expert: F gate rows, then F up rows. */
typedef struct {
    const float *router;        /* [E, H] */
    const float *router_bias;   /* [E], may be NULL */
    const uint16_t *fc1;        /* [L, 2F, H] BF16 */
    const uint16_t *fc2;        /* [L, H, F] BF16 */
    const uint16_t *shared_fc1; /* [2 Fs, H] BF16, NULL without shared expert */
    const uint16_t *shared_fc2; /* [H, Fs] BF16 */
} fp8flow_moe_weights;

/* FP32 gradients; backward adds to them. Same shapes as the weights. */
typedef struct {
    float *router, *fc1, *fc2, *shared_fc1, *shared_fc2;
} fp8flow_moe_gradients;

typedef struct fp8flow_moe fp8flow_moe;

/* Collective over comm. Errors: EINVAL, ESHAPE (H, F and shared width must be multiples of 16; the message
 * names the rule), ENOMEM. */
FP8FLOW_API fp8flow_status fp8flow_moe_create(fp8flow_context *context, fp8flow_comm *comm,
                                              const fp8flow_moe_config *config, fp8flow_moe **moe);
FP8FLOW_API void fp8flow_moe_destroy(fp8flow_moe *moe);

/* Take new weights and quantise them once, both forms. Call after every change of the weights. */
FP8FLOW_API fp8flow_status fp8flow_moe_set_weights(fp8flow_moe *moe, const fp8flow_moe_weights *weights);

/* y = MoE(x).  x, y [T, H] BF16, ROWS; T <= max_tokens, may be 0 and may differ between ranks.  Collective.
 * Exactness class R; the same bits for every checkpointing mode, number of threads and run. */
FP8FLOW_API fp8flow_status fp8flow_moe_forward(fp8flow_moe *moe, const fp8flow_tensor *x, fp8flow_tensor *y);

/* Gradients of the last forward: dx [T, H] BF16 is written, *gradients are added to. x is the same x as in
 * forward (it is not copied). loss_scale multiplies the router's losses only (dy carries its own). Collective. */
FP8FLOW_API fp8flow_status fp8flow_moe_backward(fp8flow_moe *moe, const fp8flow_tensor *x, const fp8flow_tensor *dy,
                                                float loss_scale, const fp8flow_moe_gradients *gradients,
                                                fp8flow_tensor *dx);

/* Figures of the last forward (and backward) of this rank, counted where they happen. */
typedef struct {
    double losses[3];          /* auxiliary, sequence, z: this rank's share, weighted */
    int64_t tokens;            /* T */
    int64_t received_rows;     /* rows that arrived here, one per (token, rank) pair */
    int64_t padded_rows;       /* P */
    int64_t explicit_casts;    /* calls of quantize and dequantize on activations and gradients, no recomputation */
    int64_t recomputed_casts;  /* such calls made again by the recomputation of the checkpointing mode */
    int64_t cast_tensors;      /* tensors these calls wrote */
    int64_t dispatch_bytes[2]; /* payload + scales to their ranks (this one included): in forward, in backward */
    int64_t routing_bytes;     /* routing metadata sent with x; with "full" twice, as x is dispatched again */
    int64_t combine_bytes[2];  /* sent back: forward, backward */
    int64_t saved_bytes;       /* kept between forward and backward (arena) */
    int64_t peak_bytes;        /* saved + scratch, largest so far */
    int64_t weight_bytes;      /* quantised weights held by the layer */
    uint64_t nonfinite;        /* NaN and Inf seen by the quantisers, sum over edges */
} fp8flow_moe_report;
FP8FLOW_API fp8flow_status fp8flow_moe_get_report(const fp8flow_moe *moe, fp8flow_moe_report *report);

/* Tokens that chose each expert in the last forward, all ranks: counts [E]. */
FP8FLOW_API fp8flow_status fp8flow_moe_get_load(const fp8flow_moe *moe, int64_t *counts);

/* One tensor kept for backward. Errors: EINVAL past the last one. */
typedef struct {
    const char *name;
    int64_t bytes;
} fp8flow_saved_tensor;
FP8FLOW_API fp8flow_status fp8flow_moe_get_saved(const fp8flow_moe *moe, int64_t index, fp8flow_saved_tensor *saved);

/* One edge of the dataflow as it ran: the tensor that one operator hands to the next. */
typedef struct {
    const char *name;      /* "forward wire", "x1 rows", "dy2 columns", ... */
    const char *direction; /* "forward", "backward" */
    const char *producer;  /* operator that wrote it: "quantize", "permute", "swiglu_backward", ... */
    const char *how;       /* "as it is", "cast", "with the cast above", "fused", "byte transpose", "shift", ... */
    fp8flow_dtype dtype;
    fp8flow_scaling scaling;
    fp8flow_layout layout;
    int64_t rows, cols, bytes; /* bytes: codes and scales. Rows of experts: P; under CUDA the most there can be */
    int32_t casts;             /* explicit casts spent on it */
    uint64_t nonfinite;        /* non-finite values that its quantiser saw */
} fp8flow_edge;
/* Edge number `index` of the last forward and backward. Errors: EINVAL past the last one. */
FP8FLOW_API fp8flow_status fp8flow_moe_get_edge(const fp8flow_moe *moe, int64_t index, fp8flow_edge *edge);

/* Numerics of one FP8 tensor, while it exists: how it relates to the FP32 values it stands for. */
typedef struct {
    const char *name; /* as in fp8flow_edge, or "fc1 weight", "fc2 weight" */
    fp8flow_tensor_stats stats;
    uint64_t shift_histogram[64]; /* column forms made by exponent shift; all 0 otherwise */
    int32_t has_shift;
} fp8flow_observation;
typedef void fp8flow_observer(void *user, const fp8flow_observation *observation);

/* Call `observer` for every FP8 tensor of the following forward and backward calls (NULL: stop). Slow. */
FP8FLOW_API void fp8flow_moe_observe(fp8flow_moe *moe, fp8flow_observer *observer, void *user);

/* ---- Training ------------------------------------------------------------------------------- */

/* Everything that defines a run. Set defaults with fp8flow_train_options_init, then change fields. */
typedef struct {
    const char *model;       /* preset name (fp8flow_preset_name) or path of a config.json (Qwen3-MoE form); NULL:
                              * "tiny"; on resume the checkpoint's own configuration */
    const char *const *data; /* files or folders of raw text */
    int64_t num_data;
    const char *output; /* folder for checkpoints; NULL: none are written */
    const char *resume; /* checkpoint folder, or an output folder (its newest complete one); NULL: start anew */
    const char *recipe; /* "flow" */
    fp8flow_checkpointing checkpointing;
    uint64_t seed;
    uint64_t data_seed;      /* order of the data; compare uses one for all seeds */
    int64_t steps;           /* the schedule ends here */
    int64_t batch;           /* sequences per step over all ranks */
    int64_t micro_batch;     /* sequences per rank and forward; batch is split into equal micro-batches */
    int64_t sequence_length; /* S */
    double lr, min_lr;       /* cosine from lr to min_lr after warmup_steps of linear warm-up */
    int64_t warmup_steps;
    double beta1, beta2, eps, weight_decay;
    double clip;                  /* global gradient norm; 0: off */
    int64_t validation_sequences; /* per validation, fixed set */
    int64_t keep_checkpoints;     /* older ones are removed after a complete save; 0: keep all */
    int32_t expert_parallel;      /* ranks that share the experts out, a divisor of their number; each such group of
                                   * consecutive ranks is one of the replicas of data parallelism. 0: all ranks */
} fp8flow_train_options;
FP8FLOW_API void fp8flow_train_options_init(fp8flow_train_options *options);

/* Built-in model configurations: name and config.json text; NULL past the last one. */
FP8FLOW_API const char *fp8flow_preset_name(int64_t index);
FP8FLOW_API const char *fp8flow_preset_json(int64_t index);

typedef struct fp8flow_trainer fp8flow_trainer;

/* Build model, data and optimiser state, from scratch or from a checkpoint. Collective. Errors: EINVAL (options),
 * EFORMAT (config, checkpoint: names file, key and value), EIO, ENOMEM, ESHAPE. A checkpoint does not depend on the
 * backend that wrote it. */
FP8FLOW_API fp8flow_status fp8flow_trainer_create(fp8flow_context *context, fp8flow_comm *comm,
                                                  const fp8flow_train_options *options, fp8flow_trainer **trainer);
FP8FLOW_API void fp8flow_trainer_destroy(fp8flow_trainer *trainer);

/* What the model and the data are. */
typedef struct {
    int64_t parameters, active_parameters; /* all, and those one token uses */
    int64_t num_layers, num_moe_layers, num_experts, top_k, hidden, expert_width, vocab_size;
    int64_t train_tokens, validation_tokens; /* in the data set */
    int64_t files, skipped_files;
    int64_t first_step;                  /* steps already done when resumed */
    int64_t memory_bytes;                /* weights, gradients, moments, activations reserved on this rank */
    const char *ignored_keys;            /* keys of config.json without meaning here, "a, b"; "" if none; lives as
                                              * long as the trainer */
    uint64_t config_hash, data_identity; /* of the text of config.json; of names, sizes and ends of the documents */
} fp8flow_train_info;
FP8FLOW_API fp8flow_status fp8flow_trainer_get_info(const fp8flow_trainer *trainer, fp8flow_train_info *info);

/* Figures of one step, the same on every rank unless said otherwise. */
typedef struct {
    int64_t step;         /* 1 for the first */
    double loss;          /* mean cross-entropy per token, natural logarithm */
    double aux_loss;      /* router losses, weighted */
    double gradient_norm; /* before clipping */
    double lr;
    int64_t tokens;                  /* of this step, all ranks */
    double seconds;                  /* this rank */
    int64_t saved_bytes;             /* MoE layers, forward to backward, this rank, one micro-batch */
    int64_t explicit_casts;          /* per MoE layer, forward + backward of one micro-batch, this rank */
    double wire_bytes_per_token;     /* dispatch + combine, forward + backward, per token and MoE layer */
    double dispatch_bytes_per_token; /* forward and backward dispatch: payload + scales */
    uint64_t nonfinite;              /* NaN and Inf seen by quantisers, all layers, this rank */
    /* Between ranks, on this one; 0 where it is alone. Bytes are those of the arrays. Seconds are in the calls, with
     * the wait for slower ranks: those of the program, or between events on the stream of a GPU, where dispatch has the
     * program's exchange of the numbers of rows besides. */
    int64_t reduce_bytes, gather_bytes; /* sums over ranks (gradients, loads, norm); new weights */
    double reduce_seconds, gather_seconds;
    double dispatch_seconds, combine_seconds; /* of all MoE layers, forward and backward */
} fp8flow_step_metrics;

/* One optimiser step. If the loss, a gradient or a quantised tensor is not finite, the step still returns OK with
 * nonfinite > 0 or a NaN loss and fp8flow_trainer_get_nonfinite names it; a non-finite gradient norm skips the update.
 * Collective. */
FP8FLOW_API fp8flow_status fp8flow_trainer_step(fp8flow_trainer *trainer, fp8flow_step_metrics *metrics);

/* Where non-finite values appeared in the last step: "layer 3, dy2 rows: 12 values". EINVAL past the last one. The
 * string lives until the next step. */
FP8FLOW_API fp8flow_status fp8flow_trainer_get_nonfinite(const fp8flow_trainer *trainer, int64_t index,
                                                         const char **where);

/* Tokens per expert of MoE layer `layer` (0 ..) in the last step, all ranks: counts [E]. */
FP8FLOW_API fp8flow_status fp8flow_trainer_get_load(const fp8flow_trainer *trainer, int64_t layer, int64_t *counts);

/* Mean loss over the fixed validation set. Collective. */
FP8FLOW_API fp8flow_status fp8flow_trainer_validate(fp8flow_trainer *trainer, double *loss);

/* Write output/step-NNNNNNNN: safetensors shards, state.json, COMPLETE last. Collective. Errors: EIO; an
 * earlier checkpoint is never touched before the new one is complete. */
FP8FLOW_API fp8flow_status fp8flow_trainer_save(fp8flow_trainer *trainer);

/* Observe the FP8 tensors of every MoE layer in the following step (fp8flow_moe_observe; names get
 * "layer N " in front). */
FP8FLOW_API void fp8flow_trainer_observe(fp8flow_trainer *trainer, fp8flow_observer *observer, void *user);

/* Dataflow edges of MoE layer 0 in the last step, as fp8flow_moe_get_edge. */
FP8FLOW_API fp8flow_status fp8flow_trainer_get_edge(const fp8flow_trainer *trainer, int64_t index, fp8flow_edge *edge);

/* ---- Generation ----------------------------------------------------------------------------- */

typedef struct {
    int64_t max_tokens; /* new tokens */
    double temperature; /* 0: always the most likely token */
    int64_t top_k;      /* 0: no limit */
    uint64_t seed;
} fp8flow_generate_options;

/* Called with each new token (a byte); return non-zero to stop. */
typedef int32_t fp8flow_token_callback(void *user, int32_t token);

/* Continue `prompt` [num_prompt] with the model of a checkpoint folder (or the newest complete one in an output
 * folder). An empty prompt starts from the document separator. Positions beyond the model's limit end the text.
 * Errors: EIO, EFORMAT, EINVAL, ENOMEM. */
FP8FLOW_API fp8flow_status fp8flow_generate(fp8flow_context *context, const char *checkpoint, const int32_t *prompt,
                                            int64_t num_prompt, const fp8flow_generate_options *options,
                                            fp8flow_token_callback *callback, void *user);

#ifdef __cplusplus
}
#endif
#endif
