/* moe_backward.c - the list of moe_forward.c upside down, plus the weight gradients.
 *
 *   dy -> cast? -> dispatch -> permute -> fc2 dgrad -> swiglu gradient -> fc1 dgrad -> unpermute -> combine -> dx
 *                                  \ fc2 wgrad (dy2, x2)        \ fc1 wgrad (dh, x1)
 *
 * What forward did not keep is computed again first, with the same calls on the same data: the same bits.
 */
#include "moe/moe.h"

static const f8_tensor_format bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };

static fp8flow_status compute_again(fp8flow_moe *m, const fp8flow_tensor *x)
{
    if (m->config.checkpointing == FP8FLOW_KEEP_ALL) return FP8FLOW_OK;
    F8_TRY(f8_moe_route(m, x, m->workspace));
    if (m->config.checkpointing == FP8FLOW_FULL) {
        F8_TRY(f8_ep_plan(m, m->workspace));
        F8_TRY(f8_moe_send(m, x, F8_PASS_RECOMPUTE, m->workspace));
        F8_TRY(f8_ep_arrive(m));
    }
    return f8_moe_experts(m, F8_PASS_RECOMPUTE);
}

static fp8flow_status recompute(fp8flow_moe *m, const fp8flow_tensor *x)
{
    m->recomputing = 1;
    fp8flow_status status = compute_again(m, x);
    m->recomputing = 0;
    return status;
}

/* Cast dy to the wire and dispatch it; f8_ep_arrive follows. */
static fp8flow_status send_dy(fp8flow_moe *m, const fp8flow_tensor *dy, fp8flow_tensor *received)
{
    f8_edge_pair pair = { F8_BACKWARD_WIRE, F8_NUM_EDGES, "caller", NULL, m->workspace, NULL };
    fp8flow_tensor wire;
    F8_TRY(f8_bring_rows(m, &pair, dy, &wire, NULL));
    return f8_ep_dispatch(m, F8_ROWS_ONLY, &wire, m->workspace, received, &m->report.dispatch_bytes[1]);
}

/* dy in expert order: the operands of fc2's two products. */
static fp8flow_status bring_dy2(fp8flow_moe *m, const fp8flow_tensor *received, fp8flow_tensor *rows,
                                fp8flow_tensor *columns)
{
    f8_moe_state *s = &m->state;
    f8_tensor_format format = { received->dtype, received->scaling, received->layout };
    fp8flow_tensor permuted;
    F8_TRY(f8_draw_tensor(m->workspace, "dy2 rows", format, s->padded, received->cols, &permuted));
    int by_permute = f8_edge_is_fused(m, F8_DY2_COLUMNS);
    if (by_permute) F8_TRY(f8_edge_draw(m, F8_DY2_COLUMNS, m->workspace, s->padded, received->cols, columns));
    uint64_t *histogram;
    F8_TRY(f8_observe_shifts(m, &histogram));
    F8_DO(m, fp8flow_permute(m->context, &(fp8flow_permute_args){ .x = received,
                                                                  .plan = &s->plan,
                                                                  .rows = &permuted,
                                                                  .columns = by_permute ? columns : NULL,
                                                                  .shift_histogram = by_permute ? histogram : NULL }));
    if (by_permute) {
        f8_edge_note(m, F8_DY2_COLUMNS, "permute", columns);
        F8_TRY(f8_observe_columns(m, f8_edge_name(F8_DY2_COLUMNS), &permuted, columns, &s->groups, histogram));
    }
    f8_edge_pair pair = { F8_DY2_ROWS, F8_DY2_COLUMNS, "permute", &s->groups, m->workspace, m->workspace };
    F8_TRY(f8_bring_rows(m, &pair, &permuted, rows, columns));
    return f8_bring_columns(m, F8_DY2_COLUMNS, rows, &s->groups, columns);
}

/* dh: the operands of fc1's two products; also x2's column form and the gradient of the gates. */
static fp8flow_status bring_dh(fp8flow_moe *m, const fp8flow_tensor *dx2, float *dgate_rows, fp8flow_tensor *rows,
                               fp8flow_tensor *columns)
{
    f8_moe_state *s = &m->state;
    int64_t width = m->config.expert_width;
    int rows_fused = f8_edge_is_fused(m, F8_DH_ROWS), columns_fused = f8_edge_is_fused(m, F8_DH_COLUMNS);
    int x2_fused = f8_edge_is_fused(m, F8_X2_COLUMNS);
    f8_tensor_format format = rows_fused ? m->recipe.edge[F8_DH_ROWS].format : bf16;
    fp8flow_tensor out;
    F8_TRY(f8_draw_tensor(m->workspace, "dh rows", format, s->padded, 2 * width, &out));
    if (columns_fused) F8_TRY(f8_edge_draw(m, F8_DH_COLUMNS, m->workspace, s->padded, 2 * width, columns));
    if (x2_fused) F8_TRY(f8_edge_draw(m, F8_X2_COLUMNS, m->workspace, s->padded, width, &s->x2_columns));
    F8_DO(m, fp8flow_swiglu_backward(
                 m->context, &(fp8flow_swiglu_backward_args){ .h = &s->h,
                                                              .gate = s->gate_rows,
                                                              .groups = &s->groups,
                                                              .dv = dx2,
                                                              .rows = &out,
                                                              .columns = columns_fused ? columns : NULL,
                                                              .v_columns = x2_fused ? &s->x2_columns : NULL,
                                                              .dgate = dgate_rows,
                                                              .nonfinite = f8_producer_nonfinite(m, F8_DH_ROWS) }));
    if (columns_fused) f8_edge_note(m, F8_DH_COLUMNS, "swiglu_backward", columns);
    if (x2_fused) f8_edge_note(m, F8_X2_COLUMNS, "swiglu_backward", &s->x2_columns);
    F8_TRY(f8_observe_swiglu_backward(m, dx2, rows_fused ? &out : NULL, columns_fused ? columns : NULL,
                                      x2_fused ? &s->x2_columns : NULL));
    f8_edge_pair pair = { F8_DH_ROWS, F8_DH_COLUMNS, "swiglu_backward", &s->groups, m->workspace, m->workspace };
    F8_TRY(f8_bring_rows(m, &pair, &out, rows, columns));
    return f8_bring_columns(m, F8_DH_COLUMNS, rows, &s->groups, columns);
}

static fp8flow_status expert_product(fp8flow_moe *m, fp8flow_product product, const fp8flow_tensor *a,
                                     const fp8flow_tensor *b, fp8flow_tensor *c)
{
    fp8flow_write write = product == FP8FLOW_WGRAD ? FP8FLOW_ACCUMULATE : FP8FLOW_OVERWRITE;
    F8_DO(m, fp8flow_gemm(m->context, &(fp8flow_gemm_args){ product, write, &m->state.groups, a, b, c }));
    return FP8FLOW_OK;
}

/* Gradient of one expert weight: dW += a^T b per expert. */
static fp8flow_status expert_gradient(fp8flow_moe *m, float *gradient, int64_t rows_per_expert, const fp8flow_tensor *a,
                                      const fp8flow_tensor *b)
{
    fp8flow_tensor c = f8_f32(gradient, m->local_experts * rows_per_expert, b->cols);
    c.group_rows = rows_per_expert;
    return expert_product(m, FP8FLOW_WGRAD, a, b, &c);
}

/* From the dy that has arrived to dx [T, H] and dgate [T, k], through the experts. */
static fp8flow_status experts_backward(fp8flow_moe *m, const fp8flow_tensor *received,
                                       const fp8flow_moe_gradients *gradients, fp8flow_tensor *dx, float *dgate)
{
    f8_moe_state *s = &m->state;
    int64_t hidden = m->config.hidden, width = m->config.expert_width;
    fp8flow_tensor dy2, dy2_columns, dx2, dh, dh_columns, dx1, rows;
    float *dgate_rows, *dgate_received;
    F8_TRY(bring_dy2(m, received, &dy2, &dy2_columns));
    F8_TRY(f8_draw_tensor(m->workspace, "dx2", bf16, s->padded, width, &dx2));
    F8_TRY(expert_product(m, FP8FLOW_DGRAD, &dy2, &m->fc2.columns, &dx2));
    F8_TRY(f8_arena_draw(m->workspace, "gate gradients", s->padded, 4, &dgate_rows));
    F8_TRY(bring_dh(m, &dx2, dgate_rows, &dh, &dh_columns));
    F8_TRY(f8_bring_columns(m, F8_X2_COLUMNS, &s->x2, &s->groups, &s->x2_columns));
    F8_TRY(expert_gradient(m, gradients->fc2, hidden, &dy2_columns, &s->x2_columns));
    F8_TRY(f8_draw_tensor(m->workspace, "dx1", bf16, s->padded, hidden, &dx1));
    F8_TRY(expert_product(m, FP8FLOW_DGRAD, &dh, &m->fc1.columns, &dx1));
    F8_TRY(f8_bring_columns(m, F8_X1_COLUMNS, &s->x1, &s->groups, &s->x1_columns));
    F8_TRY(expert_gradient(m, gradients->fc1, 2 * width, &dh_columns, &s->x1_columns));
    rows = *dx;
    dgate_received = dgate;
    if (!f8_moe_is_alone(m)) {
        F8_TRY(f8_draw_tensor(m->workspace, "dx rows", bf16, s->received, hidden, &rows));
        F8_TRY(f8_arena_draw(m->workspace, "gate gradients", s->received * m->config.router.top_k, 4, &dgate_received));
    }
    F8_DO(m, fp8flow_unpermute(
                 m->context,
                 &(fp8flow_unpermute_args){
                     .x = &dx1, .plan = &s->plan, .y = &rows, .gate_rows = dgate_rows, .gate = dgate_received }));
    return f8_ep_combine(m, F8_ROWS_AND_ROUTING, &rows, dgate_received, dx, dgate, &m->report.combine_bytes[1]);
}

/* Through gates, scores and logits: the router's weight gradient, and its part of dx, added. */
static fp8flow_status router_backward(fp8flow_moe *m, const fp8flow_tensor *x, const float *dgate, float loss_scale,
                                      float *gradient, fp8flow_tensor *dx)
{
    f8_moe_state *s = &m->state;
    int64_t num_experts = m->config.router.num_experts, hidden = m->config.hidden;
    fp8flow_tensor dlogits = f8_f32(NULL, s->tokens, num_experts);
    F8_TRY(f8_arena_draw(m->workspace, "logit gradients", s->tokens * num_experts, 4, &dlogits.data));
    fp8flow_router_load load = { s->total_tokens, s->total_counts, s->total_sums };
    F8_DO(m, fp8flow_router_backward(m->context, &(fp8flow_router_backward_args){ .config = &s->router,
                                                                                  .num_tokens = s->tokens,
                                                                                  .logits = s->logits,
                                                                                  .scores = s->scores,
                                                                                  .log_sum_exp = s->log_sum_exp,
                                                                                  .expert = s->expert,
                                                                                  .counts = s->counts,
                                                                                  .load = &load,
                                                                                  .dgate = dgate,
                                                                                  .loss_scale = loss_scale,
                                                                                  .dlogits = dlogits.data }));
    fp8flow_tensor weight = f8_f32((float *)(uintptr_t)m->weights.router, num_experts, hidden);
    fp8flow_tensor grad = f8_f32(gradient, num_experts, hidden);
    F8_TRY(f8_moe_add_product(m, FP8FLOW_WGRAD, &dlogits, x, &grad));
    return f8_moe_add_product(m, FP8FLOW_DGRAD, &dlogits, &weight, dx);
}

/* The shared expert down to dh [T, 2 Fs], with the gradients of its weights. */
static fp8flow_status begin_shared_backward(fp8flow_moe *m, const fp8flow_tensor *x, const fp8flow_tensor *dy,
                                            const fp8flow_moe_gradients *gradients, fp8flow_tensor *dh)
{
    f8_moe_state *s = &m->state;
    int64_t width = m->config.shared_width, hidden = m->config.hidden;
    if (width == 0) return FP8FLOW_OK;
    fp8flow_tensor fc1 = f8_bf16((uint16_t *)(uintptr_t)m->weights.shared_fc1, 2 * width, hidden);
    fp8flow_tensor fc2 = f8_bf16((uint16_t *)(uintptr_t)m->weights.shared_fc2, hidden, width);
    fp8flow_tensor dfc1 = f8_f32(gradients->shared_fc1, 2 * width, hidden);
    fp8flow_tensor dfc2 = f8_f32(gradients->shared_fc2, hidden, width);
    fp8flow_tensor v, dv;
    F8_TRY(f8_draw_tensor(m->workspace, "shared x2", bf16, s->tokens, width, &v));
    F8_TRY(f8_draw_tensor(m->workspace, "shared dx2", bf16, s->tokens, width, &dv));
    if (m->config.checkpointing != FP8FLOW_KEEP_ALL) {
        F8_TRY(f8_draw_tensor(m->workspace, "shared h", bf16, s->tokens, 2 * width, &s->shared_h));
        F8_TRY(f8_moe_product(m, FP8FLOW_FPROP, x, &fc1, &s->shared_h));
    }
    F8_DO(m, fp8flow_swiglu(m->context, &(fp8flow_swiglu_args){ .h = &s->shared_h, .rows = &v }));
    F8_TRY(f8_moe_add_product(m, FP8FLOW_WGRAD, dy, &v, &dfc2));
    F8_TRY(f8_moe_product(m, FP8FLOW_DGRAD, dy, &fc2, &dv));
    F8_DO(m, fp8flow_swiglu_backward(m->context,
                                     &(fp8flow_swiglu_backward_args){ .h = &s->shared_h, .dv = &dv, .rows = dh }));
    return f8_moe_add_product(m, FP8FLOW_WGRAD, dh, x, &dfc1);
}

/* The product that adds it to dx. */
static fp8flow_status add_shared_backward(fp8flow_moe *m, const fp8flow_tensor *dh, fp8flow_tensor *dx)
{
    int64_t width = m->config.shared_width;
    if (width == 0) return FP8FLOW_OK;
    fp8flow_tensor fc1 = f8_bf16((uint16_t *)(uintptr_t)m->weights.shared_fc1, 2 * width, m->config.hidden);
    return f8_moe_add_product(m, FP8FLOW_DGRAD, dh, &fc1, dx);
}

fp8flow_status f8_moe_run_backward(fp8flow_moe *m, const fp8flow_tensor *x, const fp8flow_tensor *dy, float loss_scale,
                                   const fp8flow_moe_gradients *gradients, fp8flow_tensor *dx)
{
    int64_t tokens = m->state.tokens, width = m->config.shared_width;
    fp8flow_tensor received, shared_dh;
    float *dgate;
    F8_TRY(recompute(m, x));
    F8_TRY(f8_arena_draw(m->workspace, "gate gradients", tokens * m->config.router.top_k, 4, &dgate));
    if (width > 0) F8_TRY(f8_draw_tensor(m->workspace, "shared dh", bf16, tokens, 2 * width, &shared_dh));
    F8_TRY(send_dy(m, dy, &received));
    F8_TRY(begin_shared_backward(m, x, dy, gradients, &shared_dh)); /* while the rows are on their way */
    F8_TRY(f8_ep_arrive(m));
    F8_TRY(experts_backward(m, &received, gradients, dx, dgate));
    F8_TRY(router_backward(m, x, dgate, loss_scale, gradients->router, dx));
    return add_shared_backward(m, &shared_dh, dx);
}
