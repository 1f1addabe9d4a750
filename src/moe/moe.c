/* moe.c - a layer's life: create (sizes by measuring), weights, checks of the public calls, reports. */
#include "moe/moe.h"

#include <stdlib.h>
#include <string.h>

/* ---- Create ---- */

static fp8flow_status check_width(const char *name, int64_t value, int64_t least)
{
    F8_REQUIRE(value >= least && value <= 1 << 24, ESHAPE,
               "moe_create: %s = %lld, expected a multiple of 16 (next: %d)", name, (long long)value,
               value < least ? 16 : 1 << 24);
    F8_REQUIRE(value % 16 == 0, ESHAPE, "moe_create: %s = %lld must be a multiple of 16 (next: %lld)", name,
               (long long)value, (long long)(f8_ceil_div(value, 16) * 16));
    return FP8FLOW_OK;
}

static fp8flow_status check_config(const fp8flow_comm *comm, const fp8flow_moe_config *c)
{
    fp8flow_router_config router = c->router;
    F8_TRY(check_width("hidden", c->hidden, 1));
    F8_TRY(check_width("expert_width", c->expert_width, 1));
    F8_TRY(check_width("shared_width", c->shared_width, 0));
    if (router.sequence_coef == 0.0f) router.sequence_length = 1; /* nobody reads it */
    F8_TRY(f8_router_check_config("moe_create", &router, 0));
    int64_t copies;
    F8_REQUIRE(c->max_tokens >= 1 && !__builtin_mul_overflow(c->max_tokens, comm->size * router.top_k, &copies) &&
                   copies < INT32_MAX - 128 * router.num_experts,
               ESHAPE, "moe_create: max_tokens = %lld with %d ranks and top_k %lld: 1 to 2^31 rows are possible",
               (long long)c->max_tokens, comm->size, (long long)router.top_k);
    F8_REQUIRE(comm->size <= F8_MAX_RANKS, EINVAL, "moe_create: %d ranks, at most %d", comm->size, F8_MAX_RANKS);
    F8_REQUIRE((unsigned)c->checkpointing <= FP8FLOW_FULL, EINVAL, "moe_create: unknown checkpointing %d",
               (int)c->checkpointing);
    return FP8FLOW_OK;
}

/* Both forms of the two weights, from one block; measuring when the arena has no memory. */
static fp8flow_status draw_weights(fp8flow_moe *m, f8_arena *arena)
{
    const struct {
        f8_expert_weight *weight;
        const char *name;
        int64_t rows, cols;
    } weights[] = { { &m->fc1, "fc1 weight", 2 * m->config.expert_width, m->config.hidden },
                    { &m->fc2, "fc2 weight", m->config.hidden, m->config.expert_width } };
    for (int i = 0; i < 2; i++) {
        f8_expert_weight *w = weights[i].weight;
        int64_t rows = weights[i].rows, all_rows = m->local_experts * rows;
        w->source = f8_bf16(NULL, all_rows, weights[i].cols);
        w->source.group_rows = rows;
        w->rows = w->columns = w->source;
        if (!f8_is_fp8(m->recipe.weight.dtype)) continue;
        f8_tensor_format columns = m->recipe.weight;
        columns.layout = FP8FLOW_COLUMNS;
        w->rows = f8_tensor_make(m->recipe.weight, all_rows, weights[i].cols, rows);
        F8_TRY(f8_draw_made(arena, weights[i].name, m->local_experts, &w->rows));
        w->columns = f8_tensor_make(columns, all_rows, weights[i].cols, rows);
        F8_TRY(f8_arena_draw(arena, weights[i].name, fp8flow_tensor_data_bytes(&w->columns), 1, &w->columns.data));
        w->columns.scale = w->rows.scale;
    }
    return FP8FLOW_OK;
}

/* Sizes of the saved arena and of the workspace: the code itself, run without operators on the largest counts. */
static fp8flow_status measure(fp8flow_moe *m, size_t *saved_bytes, size_t *workspace_bytes)
{
    f8_arena workspace;
    f8_arena_init(&workspace, NULL, 0);
    f8_arena_init(&m->saved, NULL, 0);
    m->workspace = &workspace;
    m->measuring = 1;
    fp8flow_tensor x = f8_bf16(NULL, m->config.max_tokens, m->config.hidden), y = x;
    fp8flow_moe_gradients none = { 0 };
    fp8flow_status status = f8_moe_run_forward(m, &x, &y);
    f8_arena_reset(&workspace);
    if (status == FP8FLOW_OK) status = f8_moe_run_backward(m, &x, &y, 1.0f, &none, &x);
    m->measuring = 0;
    m->workspace = &m->context->workspace;
    /* What the rehearsal noted has not happened. */
    m->report = (fp8flow_moe_report){ .weight_bytes = (int64_t)m->weight_bytes };
    memset(m->edge, 0, sizeof m->edge);
    *saved_bytes = m->saved.peak;
    *workspace_bytes = workspace.peak;
    return status;
}

static fp8flow_status allocate_figures(fp8flow_moe *m)
{
    const f8_device *device = m->context->device;
    size_t bytes = f8_moe_figures_bytes(m->config.router.num_experts);
    m->figures_copy = calloc(1, bytes);
    F8_REQUIRE(m->figures_copy, ENOMEM, "memory: no %zu bytes for the layer's figures", bytes);
    F8_TRY(device->alloc(bytes, (void **)&m->own_figures));
    F8_TRY(device->alloc(sizeof *m->observed, (void **)&m->observed));
    m->figures = m->own_figures;
    return device->fill(m->context->stream, m->figures, 0, bytes);
}

static fp8flow_status allocate(fp8flow_moe *m)
{
    const f8_device *device = m->context->device;
    f8_arena weights;
    size_t saved_bytes, workspace_bytes;
    f8_arena_init(&weights, NULL, 0);
    F8_TRY(draw_weights(m, &weights));
    m->weight_bytes = (size_t)f8_arena_bytes(&weights);
    size_t bytes = weights.used;
    F8_TRY(device->alloc(bytes, &m->weight_memory));
    f8_arena_init(&weights, m->weight_memory, bytes);
    F8_TRY(draw_weights(m, &weights));
    F8_TRY(measure(m, &saved_bytes, &workspace_bytes));
    F8_TRY(device->alloc(saved_bytes, &m->saved_memory));
    f8_arena_init(&m->saved, m->saved_memory, saved_bytes);
    F8_TRY(allocate_figures(m));
    return f8_context_reserve(m->context, workspace_bytes);
}

fp8flow_status fp8flow_moe_create(fp8flow_context *context, fp8flow_comm *comm, const fp8flow_moe_config *config,
                                  fp8flow_moe **moe)
{
    F8_REQUIRE(context && comm && config && moe, EINVAL, "moe_create: NULL argument");
    F8_TRY(check_config(comm, config));
    f8_recipe recipe;
    fp8flow_status status = f8_recipe_find(config->recipe, &recipe);
    if (status != FP8FLOW_OK) return f8_fail_in(status, "moe_create");
    int64_t num_experts = config->router.num_experts;
    fp8flow_moe *m = calloc(1, sizeof *m);
    F8_REQUIRE(m, ENOMEM, "moe_create: no memory for the layer");
    m->context = context;
    m->comm = comm;
    m->config = *config;
    m->config.recipe = NULL; /* borrowed for the call only */
    m->recipe = recipe;
    m->first_expert = num_experts * comm->rank / comm->size;
    m->local_experts = num_experts * (comm->rank + 1) / comm->size - m->first_expert;
    status = f8_ep_open(m);
    if (status == FP8FLOW_OK) status = f8_moe_balance_over(m, comm);
    if (status == FP8FLOW_OK) status = allocate(m);
    if (status != FP8FLOW_OK) {
        fp8flow_moe_destroy(m);
        return f8_fail_in(status, "moe_create");
    }
    *moe = m;
    return FP8FLOW_OK;
}

void fp8flow_moe_destroy(fp8flow_moe *m)
{
    if (!m) return;
    if (m->saved.base) f8_arena_reset(&m->saved);
    m->context->device->free(m->saved_memory);
    m->context->device->free(m->weight_memory);
    m->context->device->free(m->own_figures);
    m->context->device->free(m->observed);
    f8_ep_close(m);
    f8_comm_release(m->world_device);
    free(m->figures_copy);
    free(m);
}

/* ---- Weights ---- */

static fp8flow_status quantize_weight(fp8flow_moe *m, f8_expert_weight *w)
{
    if (!f8_is_fp8(w->rows.dtype)) {
        w->rows.data = w->columns.data = w->source.data;
        return FP8FLOW_OK;
    }
    fp8flow_quantize_args args = { .x = &w->source, .rows = &w->rows, .columns = &w->columns };
    return fp8flow_quantize(m->context, &args);
}

fp8flow_status fp8flow_moe_set_weights(fp8flow_moe *m, const fp8flow_moe_weights *weights)
{
    F8_REQUIRE(m && weights, EINVAL, "moe_set_weights: NULL argument");
    F8_REQUIRE(weights->router && (m->local_experts == 0 || (weights->fc1 && weights->fc2)), EINVAL,
               "moe_set_weights: router, fc1 or fc2 is NULL");
    F8_REQUIRE(m->config.shared_width == 0 || (weights->shared_fc1 && weights->shared_fc2), EINVAL,
               "moe_set_weights: a shared expert of width %lld needs shared_fc1 and shared_fc2",
               (long long)m->config.shared_width);
    m->weights = *weights;
    m->fc1.source.data = (void *)(uintptr_t)weights->fc1;
    m->fc2.source.data = (void *)(uintptr_t)weights->fc2;
    m->forward_done = 0;
    F8_TRY(quantize_weight(m, &m->fc1));
    return quantize_weight(m, &m->fc2);
}

/* ---- Forward and backward: checks, resets, memory figures ---- */

static fp8flow_status check_rows(const fp8flow_moe *m, const char *op, const char *name, const fp8flow_tensor *t,
                                 int64_t tokens)
{
    F8_TRY(f8_tensor_check(op, name, t));
    F8_REQUIRE(t->dtype == FP8FLOW_BF16 && t->layout == FP8FLOW_ROWS, EINVAL, "%s: %s must be BF16 rows", op, name);
    F8_REQUIRE(t->cols == m->config.hidden, ESHAPE, "%s: %s has %lld columns, hidden is %lld", op, name,
               (long long)t->cols, (long long)m->config.hidden);
    F8_REQUIRE(t->rows == tokens && tokens <= m->config.max_tokens, ESHAPE,
               "%s: %s has %lld rows, expected %lld, at most max_tokens = %lld", op, name, (long long)t->rows,
               (long long)tokens, (long long)m->config.max_tokens);
    return FP8FLOW_OK;
}

/* The workspace is shared with other layers: only what this call draws counts. */
static f8_arena_position enter_workspace(fp8flow_moe *m)
{
    m->workspace->peak = m->workspace->used;
    return f8_arena_mark(m->workspace);
}

static void leave_workspace(fp8flow_moe *m, f8_arena_position mark)
{
    int64_t now = (int64_t)(m->saved.peak + m->workspace->peak - mark.used);
    if (now > m->report.peak_bytes) m->report.peak_bytes = now;
    f8_arena_rewind(m->workspace, mark);
}

/* The program takes part in what several ranks do: it learns how many rows go where. */
static fp8flow_status check_not_recorded(const fp8flow_moe *m, const char *op)
{
    F8_REQUIRE(f8_moe_is_alone(m) || !m->context->recording, ENOSYS, "%s: %d ranks: a graph can record one rank only",
               op, m->comm->size);
    return FP8FLOW_OK;
}

static fp8flow_status observe_weights(fp8flow_moe *m)
{
    if (!f8_is_fp8(m->recipe.weight.dtype)) return FP8FLOW_OK;
    F8_TRY(f8_observe(m, "fc1 weight", &m->fc1.source, &m->fc1.rows, NULL, NULL));
    return f8_observe(m, "fc2 weight", &m->fc2.source, &m->fc2.rows, NULL, NULL);
}

static fp8flow_status clear_figures(fp8flow_moe *m)
{
    if (m->figures != m->own_figures) return FP8FLOW_OK;
    size_t bytes = f8_moe_figures_bytes(m->config.router.num_experts);
    return m->context->device->fill(m->context->stream, m->figures, 0, bytes);
}

fp8flow_status fp8flow_moe_forward(fp8flow_moe *m, const fp8flow_tensor *x, fp8flow_tensor *y)
{
    F8_REQUIRE(m && x && y, EINVAL, "moe_forward: NULL argument");
    F8_REQUIRE(m->weights.router, EINVAL, "moe_forward: moe_set_weights has not been called");
    F8_TRY(check_rows(m, "moe_forward", "x", x, x->rows));
    F8_TRY(check_rows(m, "moe_forward", "y", y, x->rows));
    F8_TRY(check_not_recorded(m, "moe_forward"));
    int64_t peak = m->report.peak_bytes;
    m->report = (fp8flow_moe_report){ .peak_bytes = peak, .weight_bytes = (int64_t)m->weight_bytes };
    memset(m->edge, 0, sizeof m->edge);
    m->forward_done = 0;
    F8_TRY(clear_figures(m));
    f8_arena_reset(&m->saved);
    m->saved.peak = 0;
    f8_arena_position mark = enter_workspace(m);
    fp8flow_status status = f8_moe_run_forward(m, x, y);
    leave_workspace(m, mark);
    F8_TRY(status);
    F8_TRY(observe_weights(m));
    m->report.tokens = m->state.tokens;
    m->report.received_rows = m->state.received;
    m->report.saved_bytes = f8_arena_bytes(&m->saved);
    m->forward_done = 1;
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_moe_backward(fp8flow_moe *m, const fp8flow_tensor *x, const fp8flow_tensor *dy, float loss_scale,
                                    const fp8flow_moe_gradients *gradients, fp8flow_tensor *dx)
{
    F8_REQUIRE(m && x && dy && gradients && dx, EINVAL, "moe_backward: NULL argument");
    F8_REQUIRE(m->forward_done, EINVAL, "moe_backward: there is no forward to go back from");
    F8_TRY(check_rows(m, "moe_backward", "x", x, m->state.tokens));
    F8_TRY(check_rows(m, "moe_backward", "dy", dy, m->state.tokens));
    F8_TRY(check_rows(m, "moe_backward", "dx", dx, m->state.tokens));
    F8_REQUIRE(gradients->router && (m->local_experts == 0 || (gradients->fc1 && gradients->fc2)), EINVAL,
               "moe_backward: a gradient array is NULL");
    F8_REQUIRE(m->config.shared_width == 0 || (gradients->shared_fc1 && gradients->shared_fc2), EINVAL,
               "moe_backward: a gradient array of the shared expert is NULL");
    F8_TRY(check_not_recorded(m, "moe_backward"));
    f8_arena_position mark = enter_workspace(m);
    fp8flow_status status = f8_moe_run_backward(m, x, dy, loss_scale, gradients, dx);
    leave_workspace(m, mark);
    m->forward_done = 0;
    return status;
}

/* ---- Reports ---- */

void f8_moe_collect(fp8flow_moe *m, f8_moe_figures *figures)
{
    m->figures = figures;
}

fp8flow_status f8_moe_balance_over(fp8flow_moe *m, fp8flow_comm *world)
{
    fp8flow_comm *view;
    F8_TRY(f8_comm_for_device(world, m->context->device, m->context->stream, &view));
    f8_comm_release(m->world_device);
    m->world = world;
    m->world_device = view;
    return FP8FLOW_OK;
}

/* Waits for what the layer has to do. */
static fp8flow_status read_figures(const fp8flow_moe *m)
{
    const fp8flow_context *c = m->context;
    return c->device->copy(c->stream, m->figures_copy, m->figures, f8_moe_figures_bytes(m->config.router.num_experts));
}

fp8flow_status fp8flow_moe_get_report(const fp8flow_moe *m, fp8flow_moe_report *report)
{
    F8_REQUIRE(m && report, EINVAL, "moe_get_report: NULL argument");
    F8_TRY(read_figures(m));
    const f8_moe_figures *figures = m->figures_copy;
    *report = m->report;
    report->padded_rows = figures->padded;
    memcpy(report->losses, figures->losses, sizeof report->losses);
    report->nonfinite = 0;
    for (int e = 0; e < F8_NUM_EDGES; e++) report->nonfinite += figures->nonfinite[e];
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_moe_get_load(const fp8flow_moe *m, int64_t *counts)
{
    F8_REQUIRE(m && counts, EINVAL, "moe_get_load: NULL argument");
    F8_TRY(read_figures(m));
    memcpy(counts, m->figures_copy->load, (size_t)m->config.router.num_experts * sizeof *counts);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_moe_get_saved(const fp8flow_moe *m, int64_t index, fp8flow_saved_tensor *saved)
{
    F8_REQUIRE(m && saved, EINVAL, "moe_get_saved: NULL argument");
    int64_t seen = -1;
    *saved = (fp8flow_saved_tensor){ NULL, 0 };
    /* Parts of one tensor (codes and scales, the arrays of a plan) are drawn one after the other. */
    for (int i = 0; i < m->saved.num_parts; i++) {
        const f8_arena_part *part = &m->saved.part[i];
        seen += i == 0 || strcmp(part->name, m->saved.part[i - 1].name) != 0;
        if (seen != index) continue;
        saved->name = part->name;
        saved->bytes += (int64_t)part->bytes;
    }
    F8_REQUIRE(saved->name, EINVAL, "moe_get_saved: index %lld of %lld", (long long)index, (long long)seen + 1);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_moe_get_edge(const fp8flow_moe *m, int64_t index, fp8flow_edge *edge)
{
    F8_REQUIRE(m && edge, EINVAL, "moe_get_edge: NULL argument");
    int64_t seen = 0;
    for (int e = 0; e < F8_NUM_EDGES; e++)
        if (m->edge[e].name && seen++ == index) {
            F8_TRY(read_figures(m));
            *edge = m->edge[e];
            edge->nonfinite = m->figures_copy->nonfinite[e];
            return FP8FLOW_OK;
        }
    return F8_FAIL(EINVAL, "moe_get_edge: index %lld of %lld", (long long)index, (long long)seen);
}

void fp8flow_moe_observe(fp8flow_moe *m, fp8flow_observer *observer, void *user)
{
    if (!m) return;
    m->observer = observer;
    m->observer_user = user;
}
