/* model.c - a model's life: memory, weights, and the small helpers that name them. */
#include "model/model.h"

#include <stdlib.h>
#include <unistd.h>

enum { ROW_MULTIPLE = 128 }; /* rows of a tile of the products */

/* ---- Memory ---- */

static fp8flow_status draw_parameters(f8_model *m, f8_arena *a, f8_purpose purpose)
{
    int64_t count = m->table->count, biases = m->config.num_layers * m->config.router.num_experts;
    F8_TRY(f8_arena_draw(a, "master weights", m->state_count, 4, &m->master));
    F8_TRY(f8_arena_draw(a, "weights", count, 2, &m->weight));
    F8_TRY(f8_arena_draw(a, "router bias", biases, 4, &m->router_bias));
    if (purpose == F8_FOR_INFERENCE) return FP8FLOW_OK;
    F8_TRY(f8_arena_draw(a, "gradients", count, 4, &m->gradient));
    F8_TRY(f8_arena_draw(a, "first moments", m->state_count, 4, &m->moment1));
    F8_TRY(f8_arena_draw(a, "second moments", m->state_count, 4, &m->moment2));
    if (!m->section[F8_REPLICATED].comm) return FP8FLOW_OK;
    return f8_arena_draw(a, "norms and routers", m->table->fp32_count, 4, &m->fp32);
}

/* The kept activations of all layers (kind by kind); with FULL, of one layer that all share. */
static fp8flow_status draw_kept(f8_model *m, f8_arena *a)
{
    const f8_model_config *c = &m->config;
    int64_t tokens = m->max_tokens, layers = c->num_layers;
    int64_t q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    int64_t sets = m->checkpointing == FP8FLOW_FULL ? 1 : layers;
    uint16_t *input, *middle, *qkv, *qk, *attention, *dense_h;
    float *lse, *rstd;
    int64_t rstd_each = tokens * (2 + c->num_heads + c->num_kv_heads);
    F8_TRY(f8_arena_draw(a, "residual stream", layers * tokens * c->hidden, 2, &input));
    F8_TRY(f8_arena_draw(a, "residual stream", sets * tokens * c->hidden, 2, &middle));
    F8_TRY(f8_arena_draw(a, "queries, keys, values", sets * tokens * (q + 2 * kv), 2, &qkv));
    F8_TRY(f8_arena_draw(a, "rotated queries, keys", sets * tokens * (q + kv), 2, &qk));
    F8_TRY(f8_arena_draw(a, "attention output", sets * tokens * q, 2, &attention));
    F8_TRY(f8_arena_draw(a, "log-sum-exp", sets * tokens * c->num_heads, 4, &lse));
    F8_TRY(f8_arena_draw(a, "norm statistics", sets * rstd_each, 4, &rstd));
    F8_TRY(f8_arena_draw(a, "dense h", sets * tokens * 2 * c->dense_width, 2, &dense_h));
    if (!a->base) return FP8FLOW_OK;
    for (int64_t layer = 0; layer < layers; layer++) {
        int64_t set = sets == 1 ? 0 : layer;
        float *r = rstd + set * rstd_each;
        m->kept[layer] = (f8_kept){ .input = input + layer * tokens * c->hidden,
                                    .middle = middle + set * tokens * c->hidden,
                                    .qkv = qkv + set * tokens * (q + 2 * kv),
                                    .qk = qk + set * tokens * (q + kv),
                                    .attention = attention + set * tokens * q,
                                    .lse = lse + set * tokens * c->num_heads,
                                    .rstd_input = r,
                                    .rstd_post = r + tokens,
                                    .rstd_q = r + 2 * tokens,
                                    .rstd_k = r + (2 + c->num_heads) * tokens,
                                    .dense_h = dense_h + set * tokens * 2 * c->dense_width };
    }
    return FP8FLOW_OK;
}

/* Elements of a chunk of logits: what stays in a processor's cache, or keeps a GPU busy for a while. */
static int64_t logit_elements(const f8_model *m)
{
    return f8_on_host(m->context) ? (int64_t)1 << 22 : (int64_t)1 << 27;
}

static fp8flow_status draw_shared(f8_model *m, f8_arena *a, f8_purpose purpose)
{
    const f8_model_config *c = &m->config;
    int64_t tokens = m->max_tokens, q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    int64_t rows = logit_elements(m) / c->vocab_size;
    if (rows > ROW_MULTIPLE) rows -= rows % ROW_MULTIPLE;
    m->logit_rows = rows < 1 ? 1 : rows < tokens ? rows : tokens;
    F8_TRY(f8_arena_draw(a, "residual stream", tokens * c->hidden, 2, &m->output));
    F8_TRY(f8_arena_draw(a, "normed", tokens * c->hidden, 2, &m->normed));
    F8_TRY(f8_arena_draw(a, "branch", tokens * c->hidden, 2, &m->branch));
    F8_TRY(f8_arena_draw(a, "dense x2", tokens * c->dense_width, 2, &m->dense_v));
    F8_TRY(f8_arena_draw(a, "norm statistics", tokens, 4, &m->rstd_final));
    F8_TRY(f8_arena_draw(a, "losses", tokens, 4, &m->loss));
    F8_TRY(f8_arena_draw(a, "logits", m->logit_rows * c->vocab_size, 4, &m->logits));
    if (purpose == F8_FOR_INFERENCE) return FP8FLOW_OK;
    F8_TRY(f8_arena_draw(a, "gradients of logits", m->logit_rows * c->vocab_size, 2, &m->dlogits));
    F8_TRY(f8_arena_draw(a, "gradients of activations", tokens * c->hidden, 2, &m->dx));
    F8_TRY(f8_arena_draw(a, "gradients of activations", tokens * c->hidden, 2, &m->dnormed));
    F8_TRY(f8_arena_draw(a, "gradients of activations", tokens * c->hidden, 2, &m->dbranch));
    F8_TRY(f8_arena_draw(a, "gradients of activations", tokens * (q + 2 * kv), 2, &m->dqkv));
    F8_TRY(f8_arena_draw(a, "gradients of activations", tokens * (q + kv), 2, &m->dqk));
    F8_TRY(f8_arena_draw(a, "gradients of activations", tokens * q, 2, &m->dattention));
    F8_TRY(f8_arena_draw(a, "gradients of activations", tokens * c->dense_width, 2, &m->dense_dv));
    return f8_arena_draw(a, "gradients of activations", tokens * 2 * c->dense_width, 2, &m->dense_dh);
}

static fp8flow_status draw_all(f8_model *m, f8_arena *a, f8_purpose purpose)
{
    F8_TRY(draw_parameters(m, a, purpose));
    F8_TRY(draw_kept(m, a));
    return draw_shared(m, a, purpose);
}

/* Elements of all activations of one kind must be countable, before anything is multiplied. */
static fp8flow_status check_activations(const f8_model *m)
{
    const f8_model_config *c = &m->config;
    int64_t width = c->hidden + 3 * c->num_heads * c->head_dim + 2 * c->dense_width, elements;
    F8_REQUIRE(!__builtin_mul_overflow(c->num_layers * m->max_tokens, width, &elements), ENOMEM,
               "memory: activations of %lld tokens in %lld layers are more than 2^63 elements",
               (long long)m->max_tokens, (long long)c->num_layers);
    return FP8FLOW_OK;
}

/* Bytes that there can be. Linux hands out addresses that no memory stands behind and kills the process when it uses
 * them: what can never fit is refused before it is asked for. */
static fp8flow_status find_memory(const f8_model *m, size_t *bytes)
{
    fp8flow_device_info info;
    long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    *bytes = pages > 0 && page_bytes > 0 ? (size_t)pages * (size_t)page_bytes : SIZE_MAX;
    if (f8_on_host(m->context)) return FP8FLOW_OK;
    F8_TRY(m->context->device->describe(&info));
    *bytes = (size_t)info.free_bytes;
    return FP8FLOW_OK;
}

static fp8flow_status check_machine(const f8_model *m, size_t bytes)
{
    size_t most;
    F8_TRY(find_memory(m, &most));
    F8_REQUIRE(bytes <= most, ENOMEM,
               "memory: %lld parameters on this rank and %lld tokens at once need %zu bytes, this %s has %zu",
               (long long)m->table->count, (long long)m->max_tokens, bytes, f8_on_host(m->context) ? "machine" : "GPU",
               most);
    return FP8FLOW_OK;
}

static fp8flow_status clear(f8_model *m, void *memory, int64_t count)
{
    return m->context->device->fill(m->context->stream, memory, 0, (size_t)count * sizeof(float));
}

static fp8flow_status allocate(f8_model *m, f8_purpose purpose)
{
    f8_arena arena;
    F8_TRY(check_activations(m));
    f8_arena_init(&arena, NULL, 0);
    F8_TRY(draw_all(m, &arena, purpose));
    size_t bytes = arena.used;
    F8_TRY(check_machine(m, bytes));
    F8_TRY(m->context->device->alloc(bytes, &m->memory));
    m->memory_bytes = (int64_t)bytes;
    f8_arena_init(&arena, m->memory, bytes);
    F8_TRY(draw_all(m, &arena, purpose));
    F8_TRY(clear(m, m->router_bias, m->config.num_layers * m->config.router.num_experts));
    if (purpose == F8_FOR_INFERENCE) return FP8FLOW_OK;
    F8_TRY(clear(m, m->gradient, m->table->count));
    F8_TRY(clear(m, m->moment1, m->state_count));
    return clear(m, m->moment2, m->state_count);
}

static fp8flow_status create_layers(f8_model *m, const f8_model_options *options)
{
    fp8flow_moe_config config = { .hidden = m->config.hidden,
                                  .expert_width = m->config.expert_width,
                                  .shared_width = m->config.shared_width,
                                  .max_tokens = m->max_tokens,
                                  .router = m->config.router,
                                  .recipe = options->recipe,
                                  .checkpointing = options->checkpointing };
    config.router.sequence_length = options->sequence_length;
    for (int64_t layer = 0; layer < m->config.num_layers; layer++) {
        if (!f8_layer_is_sparse(&m->config, layer)) continue;
        fp8flow_status status = fp8flow_moe_create(m->context, m->ranks.ep, &config, &m->moe[layer]);
        if (status != FP8FLOW_OK) return f8_fail_in(status, "layer %lld", (long long)layer);
        F8_TRY(f8_moe_balance_over(m->moe[layer], m->ranks.world));
        m->num_moe_layers++;
    }
    return FP8FLOW_OK;
}

fp8flow_status f8_model_create(fp8flow_context *context, fp8flow_comm *world, const f8_model_config *config,
                               const f8_model_options *options, f8_model **model)
{
    f8_model *m = calloc(1, sizeof *m);
    F8_REQUIRE(m, ENOMEM, "model: no memory for %zu bytes", sizeof *m);
    m->context = context;
    m->config = *config;
    m->checkpointing = options->checkpointing;
    m->max_tokens = options->max_tokens;
    m->moe = calloc((size_t)config->num_layers, sizeof(fp8flow_moe *));
    m->kept = calloc((size_t)config->num_layers, sizeof(f8_kept));
    fp8flow_status status = FP8FLOW_OK;
    if (!m->moe || !m->kept)
        status = F8_FAIL(ENOMEM, "model: no memory for %lld layers", (long long)config->num_layers);
    if (status == FP8FLOW_OK) status = f8_ranks_create(context, world, options->expert_parallel, &m->ranks);
    if (status == FP8FLOW_OK)
        status = f8_parameter_table_create(config, m->ranks.ep->rank, m->ranks.ep->size, &m->table);
    if (status == FP8FLOW_OK) f8_model_share_out(m, options->purpose);
    if (status == FP8FLOW_OK) status = allocate(m, options->purpose);
    if (status == FP8FLOW_OK) status = create_layers(m, options);
    if (status != FP8FLOW_OK) {
        f8_model_destroy(m);
        return status;
    }
    *model = m;
    return FP8FLOW_OK;
}

void f8_model_destroy(f8_model *m)
{
    if (!m) return;
    for (int64_t layer = 0; m->moe && layer < m->config.num_layers; layer++) fp8flow_moe_destroy(m->moe[layer]);
    f8_parameter_table_destroy(m->table);
    f8_ranks_release(&m->ranks);
    m->context->device->free(m->memory);
    free(m->moe);
    free(m->kept);
    free(m);
}

/* ---- Weights ---- */

float *f8_model_master(const f8_model *m, int64_t layer, f8_kind kind)
{
    int64_t index = m->table->index[layer][kind];
    if (index < 0) return NULL;
    const f8_parameter *p = &m->table->parameter[index];
    const f8_section *s = f8_model_section(m, p->offset);
    if (!s->comm) return m->master + (p->offset - s->begin + s->state);
    return p->fp32 >= 0 ? m->fp32 + p->fp32 : NULL;
}

static const uint16_t *weight_data(const f8_model *m, int64_t layer, f8_kind kind)
{
    int64_t offset = f8_parameter_offset(m->table, layer, kind);
    return offset < 0 ? NULL : m->weight + offset;
}

fp8flow_tensor f8_model_weight(const f8_model *m, int64_t layer, f8_kind kind)
{
    const f8_parameter *p = &m->table->parameter[m->table->index[layer][kind]];
    return f8_bf16(m->weight + p->offset, p->rows, p->cols);
}

fp8flow_tensor f8_model_gradient(const f8_model *m, int64_t layer, f8_kind kind)
{
    const f8_parameter *p = &m->table->parameter[m->table->index[layer][kind]];
    return f8_f32(m->gradient + p->offset, p->rows, p->cols);
}

f8_kind f8_model_head_kind(const f8_model *m)
{
    return m->config.tie_embeddings ? F8_EMBEDDING : F8_HEAD;
}

fp8flow_tensor f8_columns_of(const fp8flow_tensor *t, int64_t first, int64_t cols)
{
    fp8flow_tensor view = *t;
    view.data = (uint16_t *)t->data + first;
    view.cols = cols;
    return view;
}

fp8flow_status f8_model_publish(f8_model *m)
{
    for (int64_t layer = 0; layer < m->config.num_layers; layer++) {
        if (!m->moe[layer]) continue;
        fp8flow_moe_weights weights = { .router = f8_model_master(m, layer, F8_ROUTER),
                                        .router_bias = m->router_bias + layer * m->config.router.num_experts,
                                        .fc1 = weight_data(m, layer, F8_FC1),
                                        .fc2 = weight_data(m, layer, F8_FC2),
                                        .shared_fc1 = weight_data(m, layer, F8_SHARED_FC1),
                                        .shared_fc2 = weight_data(m, layer, F8_SHARED_FC2) };
        F8_TRY(fp8flow_moe_set_weights(m->moe[layer], &weights));
    }
    return FP8FLOW_OK;
}
