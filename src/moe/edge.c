/* edge.c - the only place where a tensor changes format. What each edge wants stands in the recipe's row.
 *
 * Explicit casts are counted here, where they happen: `cast` and `requantize` are the only callers of quantize
 * and dequantize on activations and gradients.
 */
#include "moe/moe.h"

int f8_edge_is_fused(const fp8flow_moe *m, f8_edge edge)
{
    return m->recipe.edge[edge].how == F8_FUSED;
}

int f8_edge_needs_rows(const fp8flow_moe *m, f8_edge columns_edge)
{
    f8_how how = m->recipe.edge[columns_edge].how;
    return how != F8_FUSED && how != F8_WITH_ROWS;
}

uint64_t *f8_producer_nonfinite(fp8flow_moe *m, f8_edge edge)
{
    return m->recipe.edge[edge].how == F8_CAST ? NULL : &m->figures->nonfinite[edge];
}

fp8flow_status f8_draw_made(f8_arena *arena, const char *name, int64_t groups, fp8flow_tensor *tensor)
{
    int64_t data = fp8flow_tensor_data_bytes(tensor), scale = fp8flow_tensor_scale_bytes(tensor, groups);
    F8_REQUIRE(data >= 0 && scale >= 0, ENOMEM, "memory: %s [%lld, %lld] is not a possible size", name,
               (long long)tensor->rows, (long long)tensor->cols);
    F8_TRY(f8_arena_draw(arena, name, data, 1, &tensor->data));
    if (tensor->scaling != FP8FLOW_UNSCALED) F8_TRY(f8_arena_draw(arena, name, scale, 1, &tensor->scale));
    return FP8FLOW_OK;
}

fp8flow_status f8_draw_tensor(f8_arena *arena, const char *name, f8_tensor_format format, int64_t rows, int64_t cols,
                              fp8flow_tensor *tensor)
{
    *tensor = f8_tensor_make(format, rows, cols, 0);
    return f8_draw_made(arena, name, 0, tensor);
}

fp8flow_status f8_edge_draw(fp8flow_moe *m, f8_edge edge, f8_arena *arena, int64_t rows, int64_t cols,
                            fp8flow_tensor *tensor)
{
    *tensor = f8_tensor_make(m->recipe.edge[edge].format, rows, cols, 0);
    return f8_draw_made(arena, f8_edge_name(edge), m->local_experts, tensor);
}

void f8_edge_note(fp8flow_moe *m, f8_edge edge, const char *producer, const fp8flow_tensor *tensor)
{
    fp8flow_edge *e = &m->edge[edge];
    int64_t bytes = fp8flow_tensor_data_bytes(tensor) + fp8flow_tensor_scale_bytes(tensor, m->local_experts);
    e->name = f8_edge_name(edge);
    e->direction = f8_edge_direction(edge);
    e->producer = producer;
    e->how = f8_how_name(m->recipe.edge[edge].how);
    e->dtype = tensor->dtype;
    e->scaling = tensor->scaling;
    e->layout = tensor->layout;
    e->rows = tensor->rows;
    e->cols = tensor->cols;
    e->bytes = bytes;
}

/* One call that wrote `tensors` tensors. */
static void count_cast(fp8flow_moe *m, f8_edge edge, int tensors)
{
    if (m->recomputing) {
        m->report.recomputed_casts++;
        return;
    }
    m->edge[edge].casts++;
    m->report.explicit_casts++;
    m->report.cast_tensors += tensors;
}

/* Explicit quantisation: row form, column form or both in one call. */
static fp8flow_status cast(fp8flow_moe *m, const f8_edge_pair *pair, const fp8flow_tensor *source, fp8flow_tensor *rows,
                           fp8flow_tensor *columns)
{
    f8_edge counted = rows ? pair->rows_edge : pair->columns_edge;
    F8_DO(m, fp8flow_quantize(m->context, &(fp8flow_quantize_args){ .x = source,
                                                                    .groups = pair->groups,
                                                                    .rows = rows,
                                                                    .columns = columns,
                                                                    .nonfinite = &m->figures->nonfinite[counted] }));
    count_cast(m, counted, (rows != NULL) + (columns != NULL));
    if (rows) F8_TRY(f8_observe(m, f8_edge_name(pair->rows_edge), source, rows, pair->groups, NULL));
    if (columns) F8_TRY(f8_observe(m, f8_edge_name(pair->columns_edge), source, columns, pair->groups, NULL));
    return FP8FLOW_OK;
}

fp8flow_status f8_bring_rows(fp8flow_moe *m, const f8_edge_pair *pair, const fp8flow_tensor *source,
                             fp8flow_tensor *rows, fp8flow_tensor *columns)
{
    int with_columns = pair->columns_arena && pair->columns_edge < F8_NUM_EDGES &&
                       m->recipe.edge[pair->columns_edge].how == F8_WITH_ROWS;
    if (m->recipe.edge[pair->rows_edge].how != F8_CAST) {
        *rows = *source;
        f8_edge_note(m, pair->rows_edge, pair->producer, rows);
        return FP8FLOW_OK;
    }
    if (pair->rows_arena) F8_TRY(f8_edge_draw(m, pair->rows_edge, pair->rows_arena, source->rows, source->cols, rows));
    if (with_columns)
        F8_TRY(f8_edge_draw(m, pair->columns_edge, pair->columns_arena, source->rows, source->cols, columns));
    F8_TRY(cast(m, pair, source, pair->rows_arena ? rows : NULL, with_columns ? columns : NULL));
    if (pair->rows_arena) f8_edge_note(m, pair->rows_edge, "quantize", rows);
    if (with_columns) f8_edge_note(m, pair->columns_edge, "quantize", columns);
    return FP8FLOW_OK;
}

static fp8flow_status transpose(fp8flow_moe *m, f8_edge edge, const fp8flow_tensor *rows, const fp8flow_groups *groups,
                                fp8flow_tensor *columns)
{
    uint64_t *histogram;
    F8_TRY(f8_observe_shifts(m, &histogram));
    F8_DO(m, fp8flow_transpose(m->context, &(fp8flow_transpose_args){ rows, groups, columns, histogram }));
    f8_edge_note(m, edge, "transpose", columns);
    return f8_observe_columns(m, f8_edge_name(edge), rows, columns, groups, histogram);
}

/* Dequantise, then quantise along the other dimension: two explicit casts. */
static fp8flow_status requantize(fp8flow_moe *m, f8_edge edge, const fp8flow_tensor *rows, const fp8flow_groups *groups,
                                 fp8flow_tensor *columns)
{
    f8_arena_position mark = f8_arena_mark(m->workspace);
    const f8_tensor_format bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    fp8flow_tensor real;
    F8_TRY(f8_draw_tensor(m->workspace, "dequantised", bf16, rows->rows, rows->cols, &real));
    F8_DO(m, fp8flow_dequantize(m->context, &(fp8flow_dequantize_args){ rows, groups, &real }));
    count_cast(m, edge, 1);
    f8_edge_pair pair = { F8_NUM_EDGES, edge, "dequantize", groups, NULL, m->workspace };
    F8_TRY(cast(m, &pair, &real, NULL, columns));
    f8_edge_note(m, edge, "quantize", columns);
    f8_arena_rewind(m->workspace, mark);
    return FP8FLOW_OK;
}

fp8flow_status f8_bring_columns(fp8flow_moe *m, f8_edge edge, const fp8flow_tensor *rows, const fp8flow_groups *groups,
                                fp8flow_tensor *columns)
{
    f8_how how = m->recipe.edge[edge].how;
    if (how == F8_WITH_ROWS || how == F8_FUSED) return FP8FLOW_OK;
    if (how == F8_AS_IS) {
        *columns = *rows;
        f8_edge_note(m, edge, "none", columns);
        return FP8FLOW_OK;
    }
    F8_TRY(f8_edge_draw(m, edge, m->workspace, rows->rows, rows->cols, columns));
    if (how == F8_REQUANTIZE) return requantize(m, edge, rows, groups, columns);
    return transpose(m, edge, rows, groups, columns);
}
