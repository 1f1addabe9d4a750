/* fp8flow_ops.h - tensors, contexts and operators of fp8flow: the contract of each.
 *
 * Every operator is one function, one struct of named arguments and one comment that says what it
 * computes, on which shapes and formats, how exactly, and where the definition comes from. The
 * implementations (reference, CPU, CUDA) may assume that contract: it is checked once, at entry.
 *
 * Shape letters: T tokens of this rank, E experts, L experts of this rank, k top-k, H hidden size,
 * F expert width, P permuted padded rows, V vocabulary, S sequence length, B sequences.
 *
 * Exactness classes (docs/FORMATS.md):
 *   E  the same bytes on every backend;
 *   R  within a stated bound of the FP64 result; the same bytes on every run of one backend, for any
 *      number of threads;
 *   S  statistical (loss curves).
 *
 * Errors (fp8flow_status.h): argument errors (FP8FLOW_EINVAL: a format, a NULL, an enum;
 * FP8FLOW_ESHAPE: a dimension) are found before anything is written. Nothing here prints, exits, aborts
 * or allocates, except that *_create does.
 *
 * The reason for the length of this file: it is read beside the code, and a contract is found in one place.
 */
#ifndef FP8FLOW_OPS_H
#define FP8FLOW_OPS_H

#include <stddef.h>
#include <stdint.h>

#include "fp8flow_status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Tensors -------------------------------------------------------------------------------- */

/* Number formats (docs/FORMATS.md section 1). */
typedef enum {
    FP8FLOW_F32 = 0,
    FP8FLOW_BF16 = 1, /* uint16_t, round to nearest even from FP32 */
    FP8FLOW_E4M3 = 2, /* uint8_t, "FN": max 448, no infinities, NaN 0x7F / 0xFF */
    FP8FLOW_E5M2 = 3  /* uint8_t, IEEE-like, max finite 57344; gradients only */
} fp8flow_dtype;

/* Scale granularity (docs/FORMATS.md section 2). value = code * scale. Block scales are E8M0 bytes:
 * 2^(byte - 127), byte in [1, 254]. Short last blocks are allowed in every dimension.
 *   name     block          scale array
 *   ROW128   1 x 128        uint8_t [rows, ceil(cols/128)]
 *   TILE128  128 x 128      uint8_t [row blocks, ceil(cols/128)]
 *   COL128   128 x 1        uint8_t [row blocks, cols]
 *   TENSOR   one expert     float   [groups]
 * Row blocks restart at the first row of every expert; see fp8flow_tensor.group_rows. */
typedef enum {
    FP8FLOW_UNSCALED = 0,
    FP8FLOW_ROW128 = 1,
    FP8FLOW_TILE128 = 2,
    FP8FLOW_COL128 = 3,
    FP8FLOW_TENSOR = 4
} fp8flow_scaling;

/* How the logical [rows, cols] matrix lies in memory. */
typedef enum {
    FP8FLOW_ROWS = 0,   /* element (r, c) at data[r * stride + c], stride >= cols: "row form" */
    FP8FLOW_COLUMNS = 1 /* element (r, c) at data[c * stride + r], stride >= rows: "column form" */
} fp8flow_layout;

/* A borrowed view of a matrix; the caller owns data and scale. {0} is the empty tensor.
 * group_rows > 0 (weights): rows is num_experts * group_rows; every expert has group_rows rows, its
 * row blocks restart at its first row (ceil(group_rows/128) of them), and its column form is a matrix
 * of its own: element (r, c) of expert g at data[(g * cols + c) * stride + r - g * group_rows],
 * stride >= group_rows.
 * group_rows == 0 (activations): experts, where there are several, come as fp8flow_groups with offsets
 * that are multiples of 128, so that row block = row / 128; the column form is one matrix for all
 * experts. ROW128 needs ROWS; COL128 needs COLUMNS; TILE128 and TENSOR take both. */
typedef struct {
    int64_t rows, cols; /* logical shape */
    int64_t stride;     /* elements between stored lines */
    int64_t group_rows; /* rows per expert of a weight; 0 for activations */
    fp8flow_dtype dtype;
    fp8flow_scaling scaling;
    fp8flow_layout layout;
    void *data;
    void *scale; /* NULL for UNSCALED */
} fp8flow_tensor;

/* Bytes of data / of the scale array that a tensor of this description needs (stride included; for
 * TENSOR, groups floats). -1 if the description is invalid or the product overflows. */
FP8FLOW_API int64_t fp8flow_tensor_data_bytes(const fp8flow_tensor *t);
FP8FLOW_API int64_t fp8flow_tensor_scale_bytes(const fp8flow_tensor *t, int64_t groups);

/* Rows of the experts of a grouped activation. Memory of the backend (device memory under CUDA); counts
 * are never read on the host. Rows offset[g] + rows[g] .. offset[g+1]-1 are padding: never read; written
 * as code 0 with scale byte 1 (FP8) or as 0. Rows from offset[count] on are neither read nor written.
 * A NULL groups argument means one group with all rows. */
typedef struct {
    int64_t count;         /* L */
    const int32_t *offset; /* [L+1] first row of each expert, ascending, multiples of the alignment */
    const int32_t *rows;   /* [L] rows in use */
} fp8flow_groups;

/* ---- Context -------------------------------------------------------------------------------- */

typedef enum {
    FP8FLOW_CPU = 0,       /* fastest CPU implementation that this processor has */
    FP8FLOW_REFERENCE = 1, /* the plain reference: the specification, slow */
    FP8FLOW_CUDA = 2       /* a Hopper GPU (compute capability 9.0) */
} fp8flow_backend;

/* A context names a backend, owns scratch memory and counts operator calls. One thread at a time. The bits
 * that operators promise need the default floating-point environment in the calling thread: round to
 * nearest, subnormals kept (a program linked with -ffast-math changes that). After a call on more than one
 * thread, a forked child must not call operators: the OpenMP runtime's threads do not survive fork.
 *
 * Under CUDA every array of a call (data, scales, groups, plans, losses, sums, counters, statistics) is device
 * memory; the structs that point to them, and configurations, are read before the call returns. A call puts
 * kernels on the context's stream and returns: it never waits, allocates or reads device memory, so that a
 * sequence of calls can be captured into a graph and replayed with other contents of the same arrays. What an
 * entry check would have to read (group sizes, ids, a plan) is not checked; a kernel stays inside the shapes
 * it was given. The GPU must be the current device of the calling thread, as context_create leaves it.
 * Memory, streams, graphs and time: fp8flow_device.h. */
typedef struct fp8flow_context fp8flow_context;

typedef struct {
    fp8flow_backend backend;
    int32_t num_threads; /* of the processor (CUDA: they prepare data); 0: all that this process may use */
    int32_t device;      /* CUDA: which GPU */
    void *stream;        /* CUDA: the cudaStream_t to work on, borrowed; NULL: one of its own */
} fp8flow_context_options;

/* Create / destroy. Errors: EINVAL, ENOMEM; ENOSYS (CUDA: not in this build, no such GPU). destroy(NULL) is allowed. */
FP8FLOW_API fp8flow_status fp8flow_context_create(const fp8flow_context_options *options, fp8flow_context **context);
FP8FLOW_API void fp8flow_context_destroy(fp8flow_context *context);

/* Calls of the named operator ("quantize") on this context so far; -1 for an unknown name. */
FP8FLOW_API int64_t fp8flow_context_calls(const fp8flow_context *context, const char *op);

/* ---- Quantise, dequantise, transpose -------------------------------------------------------- */

/* quantize: codes and scales from real values, row form, column form or both from one read.
 *   x        [M, N]  F32 or BF16, ROWS                                   in
 *   rows     [M, N]  E4M3/E5M2, ROW128 / TILE128 / TENSOR, ROWS          out, may be NULL
 *   columns  [M, N]  E4M3/E5M2, COL128 / TILE128 / TENSOR, COLUMNS       out, may be NULL (one of both is given)
 * Weights (outputs with group_rows > 0) take no groups: their experts are the M / group_rows row ranges, each
 *          with a TENSOR scale of its own. Groups need offsets that are multiples of 128 for TILE128 and
 *          COL128 only. x may leave group_rows at 0.
 * Block scale  a = largest finite |x| of the block; a = 0: byte 1. Else a = 2^e (1+f), q = 8 (E4M3) or
 *          15 (E5M2): scale 2^(e-q) if 1+f <= 1.75 else 2^(e-q+1), clamped to [2^-126, 2^127].
 * TENSOR scale  s = max(fl(a / 448), 2^-126) (57344 for E5M2), code of fl(x * fl(1/s)); 2^-126 for a group
 *          without rows.
 * Code     RNE(x / scale), saturating: |x| > max and Inf give max, NaN gives 0x7F, -0 stays -0.
 * Both forms with the same scaling (TILE128, TENSOR) hold the same codes; rows->scale and
 * columns->scale may then be the same array.
 * nonfinite, if not NULL, is increased by the number of NaN and Inf in valid rows of x.
 * Exactness E.  Errors EINVAL, ESHAPE.  No aliasing.
 * Source    numerics contract sections 1, 2; arXiv 2511.02302 (power-of-two scales). */
typedef struct {
    const fp8flow_tensor *x;
    const fp8flow_groups *groups; /* may be NULL */
    fp8flow_tensor *rows, *columns;
    uint64_t *nonfinite; /* may be NULL */
} fp8flow_quantize_args;
FP8FLOW_API fp8flow_status fp8flow_quantize(fp8flow_context *c, const fp8flow_quantize_args *a);

/* dequantize: y = code * scale.
 *   x  [M, N]  E4M3/E5M2, any scaling, any layout   in
 *   y  [M, N]  F32 or BF16 (RNE), ROWS              out
 * Padding rows of y are written as 0. Groups as in quantize.
 * Exactness E (block scales: exact in F32, Inf beyond its range; TENSOR: one FP32 rounding; BF16 rounds the
 * FP32 value; NaN codes give NaN).  Errors EINVAL, ESHAPE.
 * Source    numerics contract section 2. */
typedef struct {
    const fp8flow_tensor *x;
    const fp8flow_groups *groups; /* may be NULL */
    fp8flow_tensor *y;
} fp8flow_dequantize_args;
FP8FLOW_API fp8flow_status fp8flow_dequantize(fp8flow_context *c, const fp8flow_dequantize_args *a);

/* transpose: the column form of a row-form FP8 tensor, without leaving FP8.
 *   x  [M, N]  E4M3/E5M2, ROWS      in
 *   y  [M, N]  same dtype, COLUMNS  out
 * TENSOR -> TENSOR, TILE128 -> TILE128: bytes and scales are copied (all d = 0). Groups as in quantize.
 * ROW128 -> TILE128: target exponent = largest row exponent of the tile among rows whose codes in the
 *   tile are not all +-0; byte 1 if there is none. ROW128 -> COL128: the scale rule on the column's own
 *   values. With d = target - row exponent the new code is RNE(value * 2^-d), subnormal results and
 *   inputs included; NaN stays NaN; d = 0 copies bytes. (NaN counts as nonzero for the tile rule and is
 *   skipped by the column rule.)
 * shift_histogram, if not NULL, has 64 counters: bin min(d, 63) is increased once for every nonzero
 *   finite code in valid rows (d < 0, possible for COL128 only, counts in bin 0).
 * Exactness E.  Errors EINVAL, ESHAPE.  No aliasing.
 * Source    numerics contract section 3; the published kernel (arXiv 2511.02302, scaling-aware
 *   transpose) keeps mantissas under exponent 0 and flushes subnormals: a defect, not copied. */
typedef struct {
    const fp8flow_tensor *x;
    const fp8flow_groups *groups; /* may be NULL */
    fp8flow_tensor *y;
    uint64_t *shift_histogram; /* [64], may be NULL */
} fp8flow_transpose_args;
FP8FLOW_API fp8flow_status fp8flow_transpose(fp8flow_context *c, const fp8flow_transpose_args *a);

/* ---- Permute -------------------------------------------------------------------------------- */

/* Where the copies of each token go. All arrays belong to the caller (backend memory).
 * Row order inside an expert: ascending token. Built by prefix sums: no order depends on timing. */
typedef struct {
    int64_t num_tokens;  /* T */
    int64_t top_k;       /* k */
    int64_t num_experts; /* L */
    int64_t align;       /* rows of an expert are padded to a multiple of this; 128 for FP8 */
    int64_t capacity;    /* rows that source can hold; T*k + L*(align-1) always suffices */
    int32_t *rows;       /* [L]    rows in use of each expert */
    int32_t *offset;     /* [L+1]  first row of each expert; offset[L] = P */
    int32_t *row_of;     /* [T, k] row of a token's slot, -1 where the slot has no expert here */
    int32_t *source;     /* [capacity] token * k + slot of a row, -1 for padding, rows < P only */
} fp8flow_plan;

/* permute_plan: fill a plan from the routing.
 *   expert  [T, k]  int32, local expert 0..L-1, or -1 (not on this rank, dropped)   in
 *   plan    shape fields set by the caller, arrays written                          out
 * P = sum over experts of ceil(rows/align)*align. Two slots of one token may not name one expert
 * (not checked on the device). Exactness E.
 * Errors EINVAL (expert id out of range or named twice: CPU only), ESHAPE (T*k >= 2^31; P > capacity: CPU only).
 * CUDA: an id out of range counts as -1; where P > capacity, slots that find no row are dropped (row_of -1), the
 * highest experts first.
 * Source numerics contract section 6; replaces the row_id_map of arXiv 2511.02302's code. */
typedef struct {
    const int32_t *expert;
    fp8flow_plan *plan;
} fp8flow_permute_plan_args;
FP8FLOW_API fp8flow_status fp8flow_permute_plan(fp8flow_context *c, const fp8flow_permute_plan_args *a);

/* permute: gather token rows into expert order and pad, row form, column form or both in one pass.
 *   x         [T, N]  BF16 or FP8 ROW128, ROWS                                   in
 *   rows      [P, N]  as x (same dtype and scaling)                              out, may be NULL
 *   columns   [P, N]  FP8 x only: same dtype, TILE128 or COL128, COLUMNS         out, may be NULL
 *   gate      [T, k]  F32 gate weight per slot                                   in, may be NULL
 *   gate_rows [P]     F32 gate weight per row, 0 in padding                      out, with gate
 * rows->rows / columns->rows is a capacity >= P. Scales travel with the codes. The column form is
 * exactly transpose(rows). Padding: codes 0 and scale byte 1, BF16 0. Only padding is zero-filled.
 * The plan's align must be a multiple of 128 when columns is given.
 * Exactness E.  Errors EINVAL, ESHAPE.  Source numerics contract sections 3, 6. */
typedef struct {
    const fp8flow_tensor *x;
    const fp8flow_plan *plan;
    fp8flow_tensor *rows, *columns;
    const float *gate;
    float *gate_rows;
    uint64_t *shift_histogram; /* [64] as in transpose, may be NULL */
} fp8flow_permute_args;
FP8FLOW_API fp8flow_status fp8flow_permute(fp8flow_context *c, const fp8flow_permute_args *a);

/* unpermute: sum the rows of each token, drop padding. Backward of permute, and its inverse.
 *   x          [P, N]  BF16, ROWS                                             in
 *   y          [T, N]  BF16, ROWS; a token without rows gives 0               out
 *   gate_rows  [P]     F32 per row (gradient of the gate weights)             in, may be NULL
 *   gate       [T, k]  F32, 0 where a slot has no row                         out, with gate_rows
 * y = RNE(FP32 sum over the token's rows in ascending row order, which is ascending expert order,
 * starting from the first row's value); NaN is written as 0x7FC0.
 * Exactness E.  Errors EINVAL, ESHAPE.  Source numerics contract section 4. */
typedef struct {
    const fp8flow_tensor *x;
    const fp8flow_plan *plan;
    fp8flow_tensor *y;
    const float *gate_rows;
    float *gate;
} fp8flow_unpermute_args;
FP8FLOW_API fp8flow_status fp8flow_unpermute(fp8flow_context *c, const fp8flow_unpermute_args *a);

/* ---- SwiGLU --------------------------------------------------------------------------------- */

/* swiglu: v = a * sigmoid(a) * b * w, h = [a | b].
 *   h        [P, 2F]  BF16, ROWS                                                    in
 *   gate     [P]      F32 weight w of each row; NULL means 1                        in
 *   rows     [P, F]   BF16 or F32 unscaled, or FP8 ROW128, ROWS                     out, may be NULL
 *   columns  [P, F]   FP8 TILE128 or COL128, COLUMNS                                out, may be NULL
 * FP32, no intermediate rounding, in this order: s = 1 / (1 + exp(-a)); v = ((a * s) * b) * w, exp as
 * in f8_expf (docs/FORMATS.md). FP8 outputs are quantised from v by the rule of quantize; both forms
 * are rounded once, from v. The format of the outputs selects the fused kernel. NaN is written as 0x7FC0
 * (BF16), 0x7FC00000 (F32), here and in swiglu_backward.
 * Exactness E.  Errors EINVAL, ESHAPE.  nonfinite: non-finite v in valid rows.
 * Source    numerics contract sections 3, 4; arXiv 2511.02302 (fused SwiGLU + quantise). */
typedef struct {
    const fp8flow_tensor *h;
    const float *gate;            /* [P], may be NULL */
    const fp8flow_groups *groups; /* may be NULL */
    fp8flow_tensor *rows, *columns;
    uint64_t *nonfinite; /* may be NULL */
} fp8flow_swiglu_args;
FP8FLOW_API fp8flow_status fp8flow_swiglu(fp8flow_context *c, const fp8flow_swiglu_args *a);

/* swiglu_backward: gradients of swiglu, and optionally v again as wgrad operand.
 *   h, gate      as in swiglu                                                       in
 *   dv           [P, F]   BF16, ROWS: gradient of v                                 in
 *   rows         [P, 2F]  dh = [da | db]; BF16 or F32, or FP8 ROW128, ROWS          out, may be NULL
 *   columns      [P, 2F]  dh; FP8 TILE128 or COL128, COLUMNS                        out, may be NULL
 *   v_columns    [P, F]   v, as swiglu writes it; FP8 TILE128 / COL128, COLUMNS     out, may be NULL
 *   dgate        [P]      F32: gradient of the gate weight, 0 in padding            out, may be NULL
 * With g = dv, s = 1/(1+exp(-a)), z = a*s:
 *   da = ((g*w)*b) * (s * (1 + a*(1-s)));  db = (g*w)*z;  dw = sum over the row of (z*b)*g.
 * Exactness E for dh and v; R for dw (fixed order; bound 2F * 2^-24 * sum |z*b*g|).
 * Errors EINVAL, ESHAPE.  nonfinite: non-finite da and db in valid rows.
 * Source    numerics contract sections 3, 4. */
typedef struct {
    const fp8flow_tensor *h;
    const float *gate;
    const fp8flow_groups *groups;
    const fp8flow_tensor *dv;
    fp8flow_tensor *rows, *columns, *v_columns;
    float *dgate;
    uint64_t *nonfinite;
} fp8flow_swiglu_backward_args;
FP8FLOW_API fp8flow_status fp8flow_swiglu_backward(fp8flow_context *c, const fp8flow_swiglu_backward_args *a);

/* ---- Router --------------------------------------------------------------------------------- */

typedef enum {
    FP8FLOW_SCORE_SOFTMAX = 0,      /* softmax over all experts, then top-k (Qwen3, DeepSeek-V2) */
    FP8FLOW_SCORE_SOFTMAX_TOPK = 1, /* top-k of the logits, then softmax over the chosen (Mixtral) */
    FP8FLOW_SCORE_SIGMOID = 2       /* sigmoid per expert, expert bias for the choice (DeepSeek-V3) */
} fp8flow_score;

typedef enum {
    FP8FLOW_GROUP_MAX = 0,     /* score of an expert group: its best expert (DeepSeek-V2) */
    FP8FLOW_GROUP_TOP2_SUM = 1 /* sum of its two best experts (DeepSeek-V3) */
} fp8flow_group_score;

typedef enum {
    FP8FLOW_GATE_RAW = 0,       /* gate = score of the chosen expert */
    FP8FLOW_GATE_NORMALIZED = 1 /* divided by the sum over the chosen experts */
} fp8flow_gate_rule;

/* How tokens choose experts; shared by forward and backward. Losses with coefficient 0 are off. */
typedef struct {
    int64_t num_experts, top_k; /* 1 <= k <= E */
    fp8flow_score score;
    fp8flow_gate_rule gate_rule;
    float gate_scale;               /* gates are multiplied by this (routed_scaling_factor) */
    int64_t num_groups, top_groups; /* group-limited choice; 1, 1: off. E % num_groups == 0 */
    fp8flow_group_score group_score;
    int64_t sequence_length;               /* S: tokens per sequence for the sequence loss; T % S == 0 */
    float aux_coef, sequence_coef, z_coef; /* losses below */
} fp8flow_router_config;

/* router: scores, choice and gate weights of each token.
 *   logits        [T, E]    F32, ROWS                                                       in
 *   bias          [E]       F32 added to the scores for the choice only; NULL means 0       in
 *                           (SOFTMAX_TOPK: to the logits, which are its choice scores)
 *   expert        [T, k]    int32 chosen experts in descending order of choice score        out
 *   gate          [T, k]    F32 gate weights from the scores without bias                   out
 *   scores        [T, E]    F32: softmax over all experts, or sigmoid; kept for backward    out
 *   log_sum_exp   [T]       F32                                                             out
 *   counts        [T/S, E]  int32 tokens of each sequence that chose the expert             out
 *   score_sums    [T/S, E]  F32 sum over the sequence's tokens of the normalised scores     out
 * Ties go to the lower expert index (and lower group index). NaN scores rank lowest. Chosen groups: the
 * top_groups groups by group score (with bias); they must hold k experts. A group of one expert has its
 * score. gate = fl(fl(score / sum) * gate_scale), RAW without the division; SOFTMAX_TOPK always divides.
 * Sums over experts in the order of f8_sum32 (gates: slots ascending). Sums over a sequence's tokens in FP32, from
 * +0: of each 32 tokens, of each 32 of these sums, of those: all ascending, the last of each may be short. SIGMOID
 * normalisation divides by (sum + 1e-20). E <= 4096. A NaN output is 0x7FC00000.
 * Exactness E.  Errors EINVAL, ESHAPE.
 * Source    numerics contract section 4; Qwen3-MoE, DeepSeek-V2, DeepSeek-V3 reports. */
typedef struct {
    const fp8flow_router_config *config;
    const fp8flow_tensor *logits;
    const float *bias;
    int32_t *expert;
    float *gate, *scores, *log_sum_exp;
    int32_t *counts;
    float *score_sums;
} fp8flow_router_args;
FP8FLOW_API fp8flow_status fp8flow_router(fp8flow_context *c, const fp8flow_router_args *a);

/* router_sum: load of this rank from that of its Q sequences.
 *   counts      [Q, E]  int32     score_sums        [Q, E]  F32, as router writes them          in
 *   total_counts  [E]   int64     total_score_sums    [E]   F32: sums over q ascending          out
 * Exactness E; a NaN sum is 0x7FC00000.  Errors EINVAL, ESHAPE.  Source none needed. */
typedef struct {
    int64_t num_sequences, num_experts; /* Q, E */
    const int32_t *counts;
    const float *score_sums;
    int64_t *total_counts;
    float *total_score_sums;
} fp8flow_router_sum_args;
FP8FLOW_API fp8flow_status fp8flow_router_sum(fp8flow_context *c, const fp8flow_router_sum_args *a);

/* add_counts: y[i] += x[i], n int64 numbers; what leaves int64 wraps around. x and y do not overlap, or are the same.
 * Exactness E.  Errors EINVAL.  Source none needed. */
typedef struct {
    int64_t count; /* n */
    const int64_t *x;
    int64_t *y;
} fp8flow_add_counts_args;
FP8FLOW_API fp8flow_status fp8flow_add_counts(fp8flow_context *c, const fp8flow_add_counts_args *a);

/* Load figures of a batch that may span several ranks; the caller adds up those of its sequences (router_sum) and of
 * the ranks before router_loss and router_backward. */
typedef struct {
    int64_t total_tokens;          /* tokens of all ranks */
    const int64_t *total_counts;   /* [E] over all ranks */
    const float *total_score_sums; /* [E] over all ranks */
} fp8flow_router_load;

/* router_loss: the weighted losses of this rank's tokens are added to `losses`; over ranks, to the batch's loss.
 *   aux       = aux_coef * E * sum_e (total_counts_e / (N k)) * (total_score_sums_e / N) * (T / N)
 *   sequence  = sequence_coef * (T / N) * mean over this rank's sequences of
 *               E * sum_e (counts_se / (S k)) * (score_sums_se / S)
 *   z         = z_coef * (1 / N) * sum over this rank's tokens of log_sum_exp^2
 * with N = total_tokens. losses[0..2] += aux, sequence, z (F64).  T = 0 adds 0. What only losses with
 * coefficient 0 read may be NULL, here and in router_backward.
 * Exactness R (FP64 sums; bound 2^-20 relative).  Errors EINVAL, ESHAPE.
 * Source Switch Transformer (aux), DeepSeek-V3 report (sequence), ST-MoE (z). */
typedef struct {
    const fp8flow_router_config *config;
    int64_t num_tokens; /* T */
    const int32_t *counts;
    const float *score_sums, *log_sum_exp;
    const fp8flow_router_load *load;
    double *losses; /* [3], added to */
} fp8flow_router_loss_args;
FP8FLOW_API fp8flow_status fp8flow_router_loss(fp8flow_context *c, const fp8flow_router_loss_args *a);

/* router_backward: gradient of the logits.
 *   dgate    [T, k]  F32 gradient of the gate weights                                        in
 *   dlogits  [T, E]  F32: d(sum gate*dgate + loss_scale * losses of all ranks)/d logits      out
 * Counts are constants; the choice has no gradient. Other arguments as written by router.
 * Exactness R (bound 2^-18 * (|terms| sum)).  Errors EINVAL, ESHAPE.  Source as router. */
typedef struct {
    const fp8flow_router_config *config;
    int64_t num_tokens;
    const float *logits, *scores, *log_sum_exp;
    const int32_t *expert, *counts;
    const fp8flow_router_load *load;
    const float *dgate;
    float loss_scale;
    float *dlogits;
} fp8flow_router_backward_args;
FP8FLOW_API fp8flow_status fp8flow_router_backward(fp8flow_context *c, const fp8flow_router_backward_args *a);

/* router_bias_update: bias_e += rate * sign(mean load - load_e): DeepSeek-V3's balancing without loss.
 *   counts [E] int64 tokens of each expert over all ranks and micro-batches of a step; bias [E] F32.
 * sign by exact integer comparison; sign(0) = 0. Exactness E.  Errors EINVAL (also a negative count).
 * Source DeepSeek-V3 report section 2.1.2. */
typedef struct {
    int64_t num_experts;
    const int64_t *counts;
    float rate;
    float *bias;
} fp8flow_router_bias_update_args;
FP8FLOW_API fp8flow_status fp8flow_router_bias_update(fp8flow_context *c, const fp8flow_router_bias_update_args *a);

/* ---- Matrix products ------------------------------------------------------------------------ */

typedef enum {
    FP8FLOW_FPROP = 0, /* c[M, N] = a[M, K] * b_g[N, K]^T      b: weight [L*N, K]           */
    FP8FLOW_DGRAD = 1, /* c[M, K] = a[M, N] * b_g[N, K]        b: weight [L*N, K]           */
    FP8FLOW_WGRAD = 2  /* c_g[N, K] = a_g[m, N]^T * b_g[m, K]  c: gradient [L*N, K], F32    */
} fp8flow_product;

typedef enum { FP8FLOW_OVERWRITE = 0, FP8FLOW_ACCUMULATE = 1 } fp8flow_write;

/* gemm: grouped matrix product, one weight matrix per expert; groups NULL: one dense product.
 *   FPROP  a ROWS; b ROWS.           DGRAD  a ROWS; b ROWS (BF16, F32) or COLUMNS (FP8).
 *   WGRAD  a, b ROWS (BF16, F32) or COLUMNS (FP8).
 *   a, b   F32 or BF16 unscaled, or FP8; FP8 pairs: ROW128 x TILE128 (FPROP, DGRAD),
 *          TILE128 x TILE128, COL128 x COL128 (WGRAD), TENSOR x TENSOR (all). F32 mixes with BF16.
 *   c      BF16 or F32 (FPROP, DGRAD); F32 (WGRAD).  b (WGRAD: c) has group_rows = N when groups is given.
 *   write  OVERWRITE: c = product. ACCUMULATE: c + product in FP32, rounded once (of FP8: F32 c only).
 * Rows of c in padding are written as 0 (OVERWRITE). An empty expert's gradient is 0 (OVERWRITE) or
 * untouched (ACCUMULATE). Any M, N, K >= 0.
 * Products of the dequantised operands, FP32 accumulation. Exactness R: |error| <= 4 * 2^-13 * sum|a*b| before the
 * final rounding (CPU backends: 2^-13); sums that FP32 holds exactly in any order (small integers) come out equal.
 * CUDA multiplies the two block scales of a step first: outside FP32's range their product counts as 0 or Inf. It
 * splits F32 operands of dense products into BF16 parts: what DGRAD's have below 2^-133 counts as 0.
 * Errors EINVAL, ESHAPE.  Source numerics contract section 4; arXiv 2511.02302 section on GEMM operands. */
typedef struct {
    fp8flow_product product;
    fp8flow_write write;
    const fp8flow_groups *groups;
    const fp8flow_tensor *a, *b;
    fp8flow_tensor *c;
} fp8flow_gemm_args;
FP8FLOW_API fp8flow_status fp8flow_gemm(fp8flow_context *c, const fp8flow_gemm_args *a);

/* The kernel and the tiles that CUDA takes for a product, as one line of text, cut at `size`: a pure function of
 * formats, shapes, strides and alignment, for people. No array is read. Errors EINVAL, ESHAPE: a, b, c as in gemm. */
FP8FLOW_API fp8flow_status fp8flow_gemm_configuration(const fp8flow_gemm_args *a, char *text, size_t size);

/* ---- The rest of a decoder ------------------------------------------------------------------ */

/* add: y = RNE(a + b) in FP32. All [M, N], F32 or BF16, ROWS. y may be a or b.
 * Exactness E.  Errors EINVAL, ESHAPE.  Source none needed. */
typedef struct {
    const fp8flow_tensor *a, *b;
    fp8flow_tensor *y;
} fp8flow_add_args;
FP8FLOW_API fp8flow_status fp8flow_add(fp8flow_context *c, const fp8flow_add_args *a);

/* rmsnorm: y = x * r * weight, r = 1 / sqrt(mean(x^2) + eps), per segment of N consecutive columns.
 *   x       [M, J*N]  BF16, ROWS; J segments per row (heads for query/key norm)   in
 *   weight  [N]       F32                                                         in
 *   y       [M, J*N]  BF16, ROWS; may be x                                        out
 *   rstd    [M, J]    F32: r                                                      out, may be NULL
 * N = width <= 65536; x->cols % width == 0.  Exactness R: FP32 statistics, one rounding; |error| <= 2^-7.9 |y|.
 * Errors EINVAL, ESHAPE.  Source Zhang & Sennrich 2019; Qwen3 (query/key norm). */
typedef struct {
    const fp8flow_tensor *x;
    const float *weight;
    int64_t width;
    float eps;
    fp8flow_tensor *y;
    float *rstd;
} fp8flow_rmsnorm_args;
FP8FLOW_API fp8flow_status fp8flow_rmsnorm(fp8flow_context *c, const fp8flow_rmsnorm_args *a);

/* rmsnorm_backward: with u = x*r: dx = r * (dy*weight - u * mean(dy*weight*u)); dweight += sum dy*u.
 *   dy       [M, J*N]  BF16, ROWS                    in
 *   dx       [M, J*N]  BF16, ROWS; may be dy         out
 *   dweight  [N]       F32, accumulated (fixed order)  in, out
 * Exactness R: |error| <= 2^-7 * (largest |term| of the row); dweight 2^-12 * sum |dy*u| up to 2^17 segments.
 * Errors EINVAL, ESHAPE.  Source as rmsnorm. */
typedef struct {
    const fp8flow_tensor *x, *dy;
    const float *weight, *rstd;
    int64_t width;
    fp8flow_tensor *dx;
    float *dweight;
} fp8flow_rmsnorm_backward_args;
FP8FLOW_API fp8flow_status fp8flow_rmsnorm_backward(fp8flow_context *c, const fp8flow_rmsnorm_backward_args *a);

typedef enum { FP8FLOW_ROTATE = 1, FP8FLOW_ROTATE_BACK = -1 } fp8flow_rotation;

/* rope: rotary position embedding in place, halves convention (element i pairs with i + D/2).
 *   x  [B*S, J*D]  BF16, ROWS: J heads of width D = head_dim (even, <= 2048); row b*S+s has position
 *      first_position + s                                                     in, out
 * Angle position * theta^(-2i/D), cosine and sine in FP64 rounded to FP32. ROTATE_BACK is the gradient.
 * Exactness R: one rounding, |error| <= 2^-7.9 * (|x_i| + |x_j|).  Errors EINVAL, ESHAPE.
 * Source RoFormer; Hugging Face Qwen3 (rotate_half). */
typedef struct {
    fp8flow_tensor *x;
    int64_t sequence_length, head_dim, first_position;
    float theta;
    fp8flow_rotation rotation;
} fp8flow_rope_args;
FP8FLOW_API fp8flow_status fp8flow_rope(fp8flow_context *c, const fp8flow_rope_args *a);

/* attention: causal grouped-query attention, softmax(scale * q k^T) v.
 *   q    [B*Sq, J*D]  BF16, ROWS     k, v  [B*Sk, G*D]  BF16, ROWS; J % G == 0      in
 *   o    [B*Sq, J*D]  BF16, ROWS                                                   out
 *   lse  [B*Sq, J]    F32: log-sum-exp of the scaled scores                        out, may be NULL
 * Query s of a sequence sees keys 0 .. s + Sk - Sq; Sk >= Sq >= 1. Head j uses key head j / (J/G).
 * Exactness R: FP32 scores and sums; |error| <= 2^-7 * max|v| of the head.
 * head_dim <= 1024.  Errors EINVAL, ESHAPE.
 * Source Vaswani et al. 2017; GQA (Ainslie et al. 2023). */
typedef struct {
    const fp8flow_tensor *q, *k, *v;
    int64_t batch, num_heads, num_kv_heads, head_dim;
    float scale;
    fp8flow_tensor *o;
    float *lse;
} fp8flow_attention_args;
FP8FLOW_API fp8flow_status fp8flow_attention(fp8flow_context *c, const fp8flow_attention_args *a);

/* attention_backward: gradients of attention; Sk == Sq.
 *   q, k, v, o, lse as in attention; grad_o [B*S, J*D] BF16                          in
 *   grad_q [B*S, J*D], grad_k, grad_v [B*S, G*D]  BF16, ROWS                         out
 * Exactness R: FP32 sums in a fixed order; against the same formulas in FP64 on the given o and lse,
 * |error| <= 2^-6.5 * (largest |gradient| of the head). No aliasing.
 * Errors EINVAL, ESHAPE.  Source FlashAttention-2 (Dao 2023), backward formulas. */
typedef struct {
    const fp8flow_tensor *q, *k, *v, *o, *grad_o;
    const float *lse;
    int64_t batch, num_heads, num_kv_heads, head_dim;
    float scale;
    fp8flow_tensor *grad_q, *grad_k, *grad_v;
} fp8flow_attention_backward_args;
FP8FLOW_API fp8flow_status fp8flow_attention_backward(fp8flow_context *c, const fp8flow_attention_backward_args *a);

/* embed: y[t] = table[ids[t]].  table [V, H] BF16, ROWS; ids [T] int32 in [0, V); y [T, H] BF16, ROWS.
 * Exactness E.  Errors EINVAL (id out of range: CPU only; CUDA writes a row of NaN), ESHAPE.  Source none needed. */
typedef struct {
    const fp8flow_tensor *table;
    const int32_t *ids;
    fp8flow_tensor *y;
} fp8flow_embed_args;
FP8FLOW_API fp8flow_status fp8flow_embed(fp8flow_context *c, const fp8flow_embed_args *a);

/* embed_backward: dtable[ids[t]] += dy[t], t ascending.  dy [T, H] BF16; dtable [V, H] F32, ROWS.
 * Exactness E.  Errors EINVAL (id out of range: CPU only; CUDA skips it), ESHAPE.  Source none needed. */
typedef struct {
    const fp8flow_tensor *dy;
    const int32_t *ids;
    fp8flow_tensor *dtable;
} fp8flow_embed_backward_args;
FP8FLOW_API fp8flow_status fp8flow_embed_backward(fp8flow_context *c, const fp8flow_embed_backward_args *a);

/* cross_entropy: loss of each token, and the gradient of the logits.
 *   logits    [T, V]  F32 or BF16, ROWS                                            in
 *   target    [T]     int32 in [0, V), or -1: no loss, gradient 0                  in
 *   gradient  [T, V]  F32 or BF16, ROWS: (softmax - onehot) * grad_scale           out; NULL: the loss only
 *   loss      [T]     F32, natural logarithm                                       out
 * A NaN or +Inf among the logits makes the loss NaN. gradient may be the memory of logits, with its dtype and
 * stride; no other aliasing. A BF16 gradient is the FP32 value, rounded.
 * Exactness R: FP32 with the maximum taken out; |loss error| <= 2^-18 (1 + |loss|).
 * Errors EINVAL (target out of range: CPU only; CUDA gives NaN), ESHAPE.  Source none needed. */
typedef struct {
    const fp8flow_tensor *logits;
    const int32_t *target;
    float grad_scale;
    fp8flow_tensor *gradient; /* may be NULL */
    float *loss;
} fp8flow_cross_entropy_args;
FP8FLOW_API fp8flow_status fp8flow_cross_entropy(fp8flow_context *c, const fp8flow_cross_entropy_args *a);

/* ---- Optimiser ------------------------------------------------------------------------------ */

/* square_sum: sum of squares of n FP32 values, in FP64, blocks of 4096 added in a fixed order.
 * Exactness R: (4096 + n / 4096) * 2^-53 relative.  Errors EINVAL.  Source none needed. */
typedef struct {
    int64_t count;
    const float *x;
    double *sum; /* overwritten */
} fp8flow_square_sum_args;
FP8FLOW_API fp8flow_status fp8flow_square_sum(fp8flow_context *c, const fp8flow_square_sum_args *a);

/* sum: sum of n FP32 values in FP64, blocks of 4096 added in a fixed order.
 * Exactness R: (4096 + n / 4096) * 2^-53 of the sum of magnitudes.  Errors EINVAL.  Source none needed. */
typedef struct {
    int64_t count;
    const float *x;
    double *sum; /* overwritten */
} fp8flow_sum_args;
FP8FLOW_API fp8flow_status fp8flow_sum(fp8flow_context *c, const fp8flow_sum_args *a);

/* clip: the norm of a gradient that lies in n parts, and the factor that brings it down to `limit`.
 *   square_sums  [n]  F64: sums of squares of the parts                                       in
 *   norm         [1]  F64: square root of their sum, added to 0 in ascending order          out
 *   scale        [1]  F32: RNE(limit / norm) where norm > limit > 0, else 1; NaN where norm is not finite: adamw
 *                     then changes nothing                                                     out
 * A NaN output is 0x7FC00000 or 0x7FF8000000000000.
 * Exactness E.  Errors EINVAL.  Source Pascanu et al. 2013. */
typedef struct {
    int64_t count; /* n */
    const double *square_sums;
    double limit; /* 0: the norm is only measured */
    double *norm;
    float *scale;
} fp8flow_clip_args;
FP8FLOW_API fp8flow_status fp8flow_clip(fp8flow_context *c, const fp8flow_clip_args *a);

/* adamw: one step of AdamW with decoupled weight decay on n parameters; step counts from 1.
 *   g = grad * *grad_scale;  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2
 *   master -= lr * (m / (1-beta1^step) / (sqrt(v / (1-beta2^step)) + eps) + weight_decay * master)
 *   weight = RNE_BF16(master), if not NULL
 * All arrays [n] F32 (weight: BF16). The same bits however the parameters are cut into calls.
 *   grad_scale  [1]  F32; NULL: 1. NaN: the step is left out, nothing is written               in
 *   rows, columns  [L*N, K]  FP8 TILE128, ROWS / COLUMNS: the new weights, as quantize writes them from `weight`
 *                            (group_rows = N, or 0), in the same pass      out, may be NULL
 * They need `weight`, n = L*N*K elements and stride K (rows); strides of columns are free.
 * Exactness R: FP32; |error| <= 2^-20 * (sum of the magnitudes of the terms); rows, columns E, from weight.
 * Errors EINVAL, ESHAPE.  Source Loshchilov & Hutter 2019. */
typedef struct {
    int64_t count;
    float *master, *m, *v;
    const float *grad, *grad_scale;
    uint16_t *weight; /* may be NULL */
    fp8flow_tensor *rows, *columns;
    float lr, beta1, beta2, eps, weight_decay;
    int64_t step;
} fp8flow_adamw_args;
FP8FLOW_API fp8flow_status fp8flow_adamw(fp8flow_context *c, const fp8flow_adamw_args *a);

/* ---- Looking at numbers --------------------------------------------------------------------- */

/* What quantisation did to a tensor. Zeros (+0 and -0) in the input are not underflows. */
typedef struct {
    int64_t count;                      /* elements in valid rows */
    int64_t zeros;                      /* +-0 in x */
    int64_t underflow;                  /* nonzero finite x whose code is +-0 */
    int64_t subnormal;                  /* codes that are subnormal and not 0 */
    int64_t saturated;                  /* finite |x| > max * scale, and Inf */
    int64_t nonfinite;                  /* NaN and Inf in x */
    int32_t min_exponent, max_exponent; /* floor(log2) of the scales of nonzero x; 0, 0 without any */
    double amax;                        /* largest finite |x| */
    double signal, noise;               /* sum x^2 and sum (x - q)^2 over finite x; SQNR = 10 log10(signal / noise) */
} fp8flow_tensor_stats;

/* measure: compare an FP8 tensor with the values that it stands for.
 *   x  [M, N]  F32 or BF16, ROWS;  q  [M, N]  E4M3/E5M2, any scaling and layout        in
 * Exactness: counts E; signal and noise R (FP64 sums).  Errors EINVAL, ESHAPE.
 * Source users' request list (numerics inspection). */
typedef struct {
    const fp8flow_tensor *x, *q;
    const fp8flow_groups *groups;
    fp8flow_tensor_stats *stats;
} fp8flow_measure_args;
FP8FLOW_API fp8flow_status fp8flow_measure(fp8flow_context *c, const fp8flow_measure_args *a);

#ifdef __cplusplus
}
#endif
#endif
