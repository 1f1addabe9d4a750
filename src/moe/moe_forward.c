/* moe_forward.c - route, dispatch, experts, combine. Written once for every recipe.
 *
 *   x -> router -> cast? -> dispatch -> permute -> fc1 -> swiglu -> fc2 -> unpermute -> combine -> y
 *
 * Which tensors live on for backward is decided by the arena they are drawn from (moe.h), chosen by the
 * checkpointing mode in three groups: routing, received rows, expert tensors.
 */
#include "moe/moe.h"

static const f8_tensor_format bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };

fp8flow_status f8_moe_product(fp8flow_moe *m, fp8flow_product product, const fp8flow_tensor *a, const fp8flow_tensor *b,
                              fp8flow_tensor *c)
{
    F8_DO(m, fp8flow_gemm(m->context, &(fp8flow_gemm_args){ product, FP8FLOW_OVERWRITE, NULL, a, b, c }));
    return FP8FLOW_OK;
}

fp8flow_status f8_moe_add_product(fp8flow_moe *m, fp8flow_product product, const fp8flow_tensor *a,
                                  const fp8flow_tensor *b, fp8flow_tensor *c)
{
    F8_DO(m, fp8flow_gemm(m->context, &(fp8flow_gemm_args){ product, FP8FLOW_ACCUMULATE, NULL, a, b, c }));
    return FP8FLOW_OK;
}

/* Sum the load figures over this rank's sequences, then over the ranks. */
static fp8flow_status sum_load(fp8flow_moe *m, int64_t sequences)
{
    f8_moe_state *s = &m->state;
    int64_t num_experts = m->config.router.num_experts;
    fp8flow_router_sum_args sum = { sequences, num_experts, s->counts, s->score_sums, s->total_counts, s->total_sums };
    F8_TRY(fp8flow_router_sum(m->context, &sum));
    s->total_tokens = s->tokens;
    F8_TRY(f8_comm_all_reduce(m->world_device, F8_SUM_I64, s->total_counts, num_experts));
    F8_TRY(f8_comm_all_reduce(m->world_device, F8_SUM_F32, s->total_sums, num_experts));
    F8_TRY(f8_comm_all_reduce(m->world, F8_SUM_I64, &s->total_tokens, 1));
    if (m->recomputing) return FP8FLOW_OK;
    return fp8flow_add_counts(m->context, &(fp8flow_add_counts_args){ num_experts, s->total_counts, m->figures->load });
}

fp8flow_status f8_moe_route(fp8flow_moe *m, const fp8flow_tensor *x, f8_arena *arena)
{
    f8_moe_state *s = &m->state;
    fp8flow_router_config *config = &s->router;
    *config = m->config.router;
    int64_t num_experts = config->num_experts, tokens = s->tokens;
    if (config->sequence_coef == 0.0f) config->sequence_length = tokens ? tokens : 1;
    int64_t sequences = tokens / config->sequence_length;
    F8_TRY(f8_arena_draw(arena, "router state", tokens * config->top_k, 4, &s->expert));
    F8_TRY(f8_arena_draw(arena, "router state", tokens * config->top_k, 4, &s->gate));
    F8_TRY(f8_arena_draw(arena, "router state", tokens * num_experts, 4, &s->logits));
    F8_TRY(f8_arena_draw(arena, "router state", tokens * num_experts, 4, &s->scores));
    F8_TRY(f8_arena_draw(arena, "router state", tokens, 4, &s->log_sum_exp));
    /* A sequence is at least one token long: T sequences at most. */
    int64_t most = m->measuring ? tokens : sequences;
    F8_TRY(f8_arena_draw(arena, "router state", most * num_experts, 4, &s->counts));
    F8_TRY(f8_arena_draw(arena, "router state", most * num_experts, 4, &s->score_sums));
    F8_TRY(f8_arena_draw(arena, "router state", num_experts, 8, &s->total_counts));
    F8_TRY(f8_arena_draw(arena, "router state", num_experts, 4, &s->total_sums));
    fp8flow_tensor logits = f8_f32(s->logits, tokens, num_experts);
    fp8flow_tensor weight = f8_f32((float *)(uintptr_t)m->weights.router, num_experts, m->config.hidden);
    F8_TRY(f8_moe_product(m, FP8FLOW_FPROP, x, &weight, &logits));
    F8_DO(m, fp8flow_router(m->context, &(fp8flow_router_args){ .config = config,
                                                                .logits = &logits,
                                                                .bias = m->weights.router_bias,
                                                                .expert = s->expert,
                                                                .gate = s->gate,
                                                                .scores = s->scores,
                                                                .log_sum_exp = s->log_sum_exp,
                                                                .counts = s->counts,
                                                                .score_sums = s->score_sums }));
    F8_DO(m, sum_load(m, sequences));
    if (f8_moe_is_alone(m)) {
        s->recv_expert = s->expert;
        s->recv_gate = s->gate;
    }
    return FP8FLOW_OK;
}

fp8flow_status f8_moe_send(fp8flow_moe *m, const fp8flow_tensor *x, f8_pass pass, f8_arena *rows)
{
    f8_moe_state *s = &m->state;
    f8_arena *wire_arena = f8_moe_is_alone(m) ? rows : m->workspace;
    f8_edge_pair pair = { F8_FORWARD_WIRE, F8_NUM_EDGES, "caller", NULL, wire_arena, NULL };
    fp8flow_tensor wire;
    F8_TRY(f8_bring_rows(m, &pair, x, &wire, NULL));
    F8_TRY(f8_ep_count(m));
    return f8_ep_dispatch(m, F8_ROWS_AND_ROUTING, &wire, rows, &s->inbox,
                          &m->report.dispatch_bytes[pass == F8_PASS_RECOMPUTE]);
}

/* Rows of each local expert, padded to the recipe's alignment. */
static fp8flow_status plan_experts(fp8flow_moe *m, f8_arena *arena)
{
    f8_moe_state *s = &m->state;
    int64_t num_experts = m->local_experts, top_k = m->config.router.top_k;
    int64_t capacity = f8_moe_max_padded(m, s->received);
    s->plan = (fp8flow_plan){ .num_tokens = s->received,
                              .top_k = top_k,
                              .num_experts = num_experts,
                              .align = m->recipe.align,
                              .capacity = capacity };
    F8_TRY(f8_arena_draw(arena, "expert plan", num_experts, 4, &s->plan.rows));
    F8_TRY(f8_arena_draw(arena, "expert plan", num_experts + 1, 4, &s->plan.offset));
    F8_TRY(f8_arena_draw(arena, "expert plan", s->received * top_k, 4, &s->plan.row_of));
    F8_TRY(f8_arena_draw(arena, "expert plan", capacity, 4, &s->plan.source));
    F8_DO(m, fp8flow_permute_plan(m->context, &(fp8flow_permute_plan_args){ s->recv_expert, &s->plan }));
    s->groups = (fp8flow_groups){ num_experts, s->plan.offset, s->plan.rows };
    s->padded = m->measuring || !f8_on_host(m->context) ? capacity : s->plan.offset[num_experts];
    F8_DO(m, m->context->device->copy(m->context->stream, &m->figures->padded, &s->plan.offset[num_experts],
                                      sizeof m->figures->padded));
    return FP8FLOW_OK;
}

/* x1: received rows in expert order, as fc1 wants them; the column form when this pass needs it. */
static fp8flow_status bring_x1(fp8flow_moe *m, f8_arena *arena, int want_columns)
{
    f8_moe_state *s = &m->state;
    f8_arena *rows_arena = want_columns && f8_edge_needs_rows(m, F8_X1_COLUMNS) ? arena : m->workspace;
    int by_permute = want_columns && f8_edge_is_fused(m, F8_X1_COLUMNS);
    f8_tensor_format wire = m->recipe.edge[F8_FORWARD_WIRE].format;
    int passes = m->recipe.edge[F8_X1_ROWS].how == F8_AS_IS;
    uint64_t *histogram;
    fp8flow_tensor permuted;
    F8_TRY(f8_observe_shifts(m, &histogram));
    F8_TRY(f8_draw_tensor(passes ? rows_arena : m->workspace, "x1 rows", wire, s->padded, m->config.hidden, &permuted));
    if (by_permute) F8_TRY(f8_edge_draw(m, F8_X1_COLUMNS, arena, s->padded, m->config.hidden, &s->x1_columns));
    F8_DO(m, fp8flow_permute(m->context, &(fp8flow_permute_args){ .x = &s->inbox,
                                                                  .plan = &s->plan,
                                                                  .rows = &permuted,
                                                                  .columns = by_permute ? &s->x1_columns : NULL,
                                                                  .gate = s->recv_gate,
                                                                  .gate_rows = s->gate_rows,
                                                                  .shift_histogram = by_permute ? histogram : NULL }));
    if (by_permute) {
        f8_edge_note(m, F8_X1_COLUMNS, "permute", &s->x1_columns);
        F8_TRY(f8_observe_columns(m, f8_edge_name(F8_X1_COLUMNS), &permuted, &s->x1_columns, &s->groups, histogram));
    }
    f8_edge_pair pair = { F8_X1_ROWS, F8_X1_COLUMNS, "permute", &s->groups, rows_arena, want_columns ? arena : NULL };
    return f8_bring_rows(m, &pair, &permuted, &s->x1, &s->x1_columns);
}

/* x2: swiglu of h as fc2 wants it; which forms depends on the pass and on what backward will ask for. */
static fp8flow_status bring_x2(fp8flow_moe *m, f8_pass pass, f8_arena *arena, int keeps)
{
    f8_moe_state *s = &m->state;
    int backward_needs_rows = f8_edge_needs_rows(m, F8_X2_COLUMNS);
    int want_rows = pass == F8_PASS_FORWARD || backward_needs_rows;
    int want_columns = keeps && m->recipe.edge[F8_X2_COLUMNS].how == F8_WITH_ROWS;
    if (!want_rows && !want_columns) return FP8FLOW_OK;
    f8_arena *rows_arena = keeps && backward_needs_rows ? arena : m->workspace;
    int fused = f8_edge_is_fused(m, F8_X2_ROWS), cast = m->recipe.edge[F8_X2_ROWS].how == F8_CAST;
    fp8flow_tensor out;
    f8_tensor_format format = fused ? m->recipe.edge[F8_X2_ROWS].format : bf16;
    F8_TRY(
        f8_draw_tensor(cast ? m->workspace : rows_arena, "x2 rows", format, s->padded, m->config.expert_width, &out));
    F8_DO(m, fp8flow_swiglu(m->context, &(fp8flow_swiglu_args){ .h = &s->h,
                                                                .gate = s->gate_rows,
                                                                .groups = &s->groups,
                                                                .rows = &out,
                                                                .nonfinite = f8_producer_nonfinite(m, F8_X2_ROWS) }));
    if (fused) F8_TRY(f8_observe_swiglu(m, &out));
    f8_edge_pair pair = {
        F8_X2_ROWS, F8_X2_COLUMNS, "swiglu", &s->groups, want_rows ? rows_arena : NULL, want_columns ? arena : NULL
    };
    return f8_bring_rows(m, &pair, &out, &s->x2, &s->x2_columns);
}

fp8flow_status f8_moe_experts(fp8flow_moe *m, f8_pass pass)
{
    f8_moe_state *s = &m->state;
    int keeps = pass == F8_PASS_RECOMPUTE || m->config.checkpointing == FP8FLOW_KEEP_ALL;
    f8_arena *arena = pass == F8_PASS_FORWARD && keeps ? &m->saved : m->workspace;
    F8_TRY(plan_experts(m, arena));
    F8_TRY(f8_arena_draw(arena, "gates of rows", s->padded, 4, &s->gate_rows));
    F8_TRY(bring_x1(m, arena, keeps));
    F8_TRY(f8_draw_tensor(arena, "h", bf16, s->padded, 2 * m->config.expert_width, &s->h));
    F8_DO(m, fp8flow_gemm(m->context, &(fp8flow_gemm_args){ FP8FLOW_FPROP, FP8FLOW_OVERWRITE, &s->groups, &s->x1,
                                                            &m->fc1.rows, &s->h }));
    return bring_x2(m, pass, arena, keeps);
}

/* fc2, sum over the experts of this rank, send back, sum over ranks. */
static fp8flow_status combine_outputs(fp8flow_moe *m, fp8flow_tensor *y)
{
    f8_moe_state *s = &m->state;
    fp8flow_tensor y2, rows;
    F8_TRY(f8_draw_tensor(m->workspace, "y2", bf16, s->padded, m->config.hidden, &y2));
    if (f8_moe_is_alone(m)) rows = *y;
    else F8_TRY(f8_draw_tensor(m->workspace, "y rows", bf16, s->received, m->config.hidden, &rows));
    F8_DO(m, fp8flow_gemm(m->context, &(fp8flow_gemm_args){ FP8FLOW_FPROP, FP8FLOW_OVERWRITE, &s->groups, &s->x2,
                                                            &m->fc2.rows, &y2 }));
    F8_DO(m, fp8flow_unpermute(m->context, &(fp8flow_unpermute_args){ .x = &y2, .plan = &s->plan, .y = &rows }));
    return f8_ep_combine(m, F8_ROWS_ONLY, &rows, NULL, y, NULL, &m->report.combine_bytes[0]);
}

/* Room for the shared expert's h and for v [T, Fs], what its second product takes. */
static fp8flow_status draw_shared_expert(fp8flow_moe *m, fp8flow_tensor *v)
{
    f8_moe_state *s = &m->state;
    int64_t width = m->config.shared_width;
    if (width == 0) return FP8FLOW_OK;
    f8_arena *arena = m->config.checkpointing == FP8FLOW_KEEP_ALL ? &m->saved : m->workspace;
    F8_TRY(f8_draw_tensor(arena, "shared h", bf16, s->tokens, 2 * width, &s->shared_h));
    return f8_draw_tensor(m->workspace, "shared x2", bf16, s->tokens, width, v);
}

/* A dense BF16 SwiGLU over this rank's tokens, up to its second product. */
static fp8flow_status begin_shared_expert(fp8flow_moe *m, const fp8flow_tensor *x, fp8flow_tensor *v)
{
    f8_moe_state *s = &m->state;
    int64_t width = m->config.shared_width;
    if (width == 0) return FP8FLOW_OK;
    fp8flow_tensor fc1 = f8_bf16((uint16_t *)(uintptr_t)m->weights.shared_fc1, 2 * width, m->config.hidden);
    F8_TRY(f8_moe_product(m, FP8FLOW_FPROP, x, &fc1, &s->shared_h));
    F8_DO(m, fp8flow_swiglu(m->context, &(fp8flow_swiglu_args){ .h = &s->shared_h, .rows = v }));
    return FP8FLOW_OK;
}

/* The product that adds it to y. */
static fp8flow_status add_shared_expert(fp8flow_moe *m, const fp8flow_tensor *v, fp8flow_tensor *y)
{
    if (m->config.shared_width == 0) return FP8FLOW_OK;
    uint16_t *weight = (uint16_t *)(uintptr_t)m->weights.shared_fc2;
    fp8flow_tensor fc2 = f8_bf16(weight, m->config.hidden, m->config.shared_width);
    return f8_moe_add_product(m, FP8FLOW_FPROP, v, &fc2, y);
}

static fp8flow_status router_losses(fp8flow_moe *m)
{
    f8_moe_state *s = &m->state;
    fp8flow_router_load load = { s->total_tokens, s->total_counts, s->total_sums };
    F8_DO(m, fp8flow_router_loss(m->context, &(fp8flow_router_loss_args){ .config = &s->router,
                                                                          .num_tokens = s->tokens,
                                                                          .counts = s->counts,
                                                                          .score_sums = s->score_sums,
                                                                          .log_sum_exp = s->log_sum_exp,
                                                                          .load = &load,
                                                                          .losses = m->figures->losses }));
    return FP8FLOW_OK;
}

fp8flow_status f8_moe_run_forward(fp8flow_moe *m, const fp8flow_tensor *x, fp8flow_tensor *y)
{
    fp8flow_checkpointing mode = m->config.checkpointing;
    f8_arena *routing = mode == FP8FLOW_FULL ? m->workspace : &m->saved;
    f8_arena *rows = mode == FP8FLOW_MOE_EXPERT ? &m->saved : m->workspace;
    fp8flow_tensor shared_x2;
    m->state.tokens = x->rows;
    F8_TRY(f8_moe_route(m, x, mode == FP8FLOW_KEEP_ALL ? &m->saved : m->workspace));
    F8_TRY(router_losses(m));
    F8_TRY(f8_ep_plan(m, routing));
    F8_TRY(draw_shared_expert(m, &shared_x2));
    F8_TRY(f8_moe_send(m, x, F8_PASS_FORWARD, rows));
    F8_TRY(begin_shared_expert(m, x, &shared_x2)); /* something to do while the rows are on their way */
    F8_TRY(f8_ep_arrive(m));
    F8_TRY(f8_moe_experts(m, F8_PASS_FORWARD));
    F8_TRY(combine_outputs(m, y));
    return add_shared_expert(m, &shared_x2, y);
}
