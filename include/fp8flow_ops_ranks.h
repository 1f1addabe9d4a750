/* fp8flow_ops_ranks.h - operators that prepare what ranks send to each other, beside fp8flow_ops.h.
 *
 * Rank r of R owns the experts from E r / R up to, not including, E (r+1) / R, both rounded down. A token is sent once
 * to each rank that owns one of its k experts, as a record of its row, its experts there and their gate weights. The
 * send plan is a plan (permute_plan) whose experts are the ranks: top_k = num_experts = R, align 1; its row_of [T, R]
 * and source [S] relate tokens and the S rows that are sent, in the order of ranks.
 */
#ifndef FP8FLOW_OPS_RANKS_H
#define FP8FLOW_OPS_RANKS_H

#include "fp8flow_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Ranks ---------------------------------------------------------------------------------- */

/* rank_destinations: the ranks that a token is sent to, as permute_plan takes them.
 *   expert       [T, k]  int32, expert 0..E-1 of all ranks; others belong to no rank          in
 *   destination  [T, R]  int32: r in column r if the token has an expert on rank r, else -1   out
 * Exactness E.  Errors EINVAL, ESHAPE (T*k or T*R >= 2^31).  Source none needed. */
typedef struct {
    int64_t num_tokens, top_k;      /* T, k */
    int64_t num_experts, num_ranks; /* E, R */
    const int32_t *expert;
    int32_t *destination;
} fp8flow_rank_destinations_args;
FP8FLOW_API fp8flow_status fp8flow_rank_destinations(fp8flow_context *c, const fp8flow_rank_destinations_args *a);

/* rank_routing: the experts and gate weights of the rows that are sent.
 *   plan         the send plan, filled                                                          in
 *   expert       [T, k]  int32, as in rank_destinations        gate       [T, k]  F32           in
 *   sent_expert  [S, k]  int32: the slot's expert, counted from the first one of the row's rank,
 *                        -1 where it belongs to another        sent_gate  [S, k]  F32, 0 there  out
 * S = plan->offset[R]; rows from S on are neither read nor written.
 * Exactness E.  Errors EINVAL, ESHAPE (plan->top_k is not plan->num_experts; S > capacity: CPU only; T*k or
 * capacity*k >= 2^31).  Source none needed. */
typedef struct {
    const fp8flow_plan *plan;
    int64_t num_experts, top_k; /* E, k */
    const int32_t *expert;
    const float *gate;
    int32_t *sent_expert;
    float *sent_gate;
} fp8flow_rank_routing_args;
FP8FLOW_API fp8flow_status fp8flow_rank_routing(fp8flow_context *c, const fp8flow_rank_routing_args *a);

/* rank_gates: one number per slot from the rows that came back. Backward of sent_gate in rank_routing.
 *   plan      the send plan, filled                                                            in
 *   expert    [T, k]  int32, as in rank_destinations                                           in
 *   returned  [S, k]  F32, in the order of the rows that were sent                             in
 *   gate      [T, k]  F32: of the row that went to the rank of the slot's expert; 0 without    out
 * Exactness E.  Errors as rank_routing.  Source none needed. */
typedef struct {
    const fp8flow_plan *plan;
    int64_t num_experts, top_k; /* E, k */
    const int32_t *expert;
    const float *returned;
    float *gate;
} fp8flow_rank_gates_args;
FP8FLOW_API fp8flow_status fp8flow_rank_gates(fp8flow_context *c, const fp8flow_rank_gates_args *a);

#ifdef __cplusplus
}
#endif
#endif
