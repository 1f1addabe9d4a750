/* observe.c - numerics of the FP8 tensors while they exist: what quantisation and shifts did to the values.
 *
 * A cast tensor is compared with the BF16 tensor it was made from; the fused outputs of swiglu and of its gradient
 * with the FP32 output of the same operator; a column form made from a row form with what the row form holds.
 * References are drawn from the end of the workspace and given back at once.
 */
#include "moe/moe.h"

static const f8_tensor_format f32 = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };

fp8flow_status f8_observe(fp8flow_moe *m, const char *name, const fp8flow_tensor *x, const fp8flow_tensor *q,
                          const fp8flow_groups *groups, const uint64_t *histogram)
{
    if (!m->observer || m->measuring) return FP8FLOW_OK;
    fp8flow_context *c = m->context;
    fp8flow_observation observation = { .name = name, .has_shift = histogram != NULL };
    F8_TRY(fp8flow_measure(c, &(fp8flow_measure_args){ x, q, groups, &m->observed->stats }));
    F8_TRY(c->device->copy(c->stream, &observation.stats, &m->observed->stats, sizeof observation.stats));
    if (histogram)
        F8_TRY(c->device->copy(c->stream, observation.shift_histogram, histogram, sizeof observation.shift_histogram));
    m->observer(m->observer_user, &observation);
    return FP8FLOW_OK;
}

fp8flow_status f8_observe_shifts(fp8flow_moe *m, uint64_t **histogram)
{
    *histogram = NULL;
    if (!m->observer || m->measuring) return FP8FLOW_OK;
    *histogram = m->observed->shift_histogram;
    return m->context->device->fill(m->context->stream, *histogram, 0, sizeof m->observed->shift_histogram);
}

fp8flow_status f8_observe_columns(fp8flow_moe *m, const char *name, const fp8flow_tensor *rows,
                                  const fp8flow_tensor *columns, const fp8flow_groups *groups,
                                  const uint64_t *histogram)
{
    f8_arena_position mark = f8_arena_mark(m->workspace);
    fp8flow_tensor real;
    if (!m->measuring && !m->observer) return FP8FLOW_OK;
    F8_TRY(f8_draw_tensor(m->workspace, "observed", f32, rows->rows, rows->cols, &real));
    F8_DO(m, fp8flow_dequantize(m->context, &(fp8flow_dequantize_args){ rows, groups, &real }));
    F8_TRY(f8_observe(m, name, &real, columns, groups, rows->scaling == FP8FLOW_ROW128 ? histogram : NULL));
    f8_arena_rewind(m->workspace, mark);
    return FP8FLOW_OK;
}

fp8flow_status f8_observe_swiglu(fp8flow_moe *m, const fp8flow_tensor *q)
{
    f8_moe_state *s = &m->state;
    f8_arena_position mark = f8_arena_mark(m->workspace);
    fp8flow_tensor real;
    if (!m->measuring && !m->observer) return FP8FLOW_OK;
    F8_TRY(f8_draw_tensor(m->workspace, "observed", f32, q->rows, q->cols, &real));
    fp8flow_swiglu_args args = { .h = &s->h, .gate = s->gate_rows, .groups = &s->groups, .rows = &real };
    F8_DO(m, fp8flow_swiglu(m->context, &args));
    f8_edge edge = q->layout == FP8FLOW_ROWS ? F8_X2_ROWS : F8_X2_COLUMNS;
    F8_TRY(f8_observe(m, f8_edge_name(edge), &real, q, &s->groups, NULL));
    f8_arena_rewind(m->workspace, mark);
    return FP8FLOW_OK;
}

fp8flow_status f8_observe_swiglu_backward(fp8flow_moe *m, const fp8flow_tensor *dv, const fp8flow_tensor *dh_rows,
                                          const fp8flow_tensor *dh_columns, const fp8flow_tensor *x2_columns)
{
    f8_moe_state *s = &m->state;
    f8_arena_position mark = f8_arena_mark(m->workspace);
    fp8flow_tensor real;
    if (!m->measuring && !m->observer) return FP8FLOW_OK;
    F8_TRY(f8_draw_tensor(m->workspace, "observed", f32, s->h.rows, s->h.cols, &real));
    fp8flow_swiglu_backward_args args = {
        .h = &s->h, .gate = s->gate_rows, .groups = &s->groups, .dv = dv, .rows = &real
    };
    F8_DO(m, fp8flow_swiglu_backward(m->context, &args));
    if (dh_rows) F8_TRY(f8_observe(m, f8_edge_name(F8_DH_ROWS), &real, dh_rows, &s->groups, NULL));
    if (dh_columns) F8_TRY(f8_observe(m, f8_edge_name(F8_DH_COLUMNS), &real, dh_columns, &s->groups, NULL));
    f8_arena_rewind(m->workspace, mark);
    return x2_columns ? f8_observe_swiglu(m, x2_columns) : FP8FLOW_OK;
}
