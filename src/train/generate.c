/* generate.c - text from a checkpoint: incremental decoding with a cache of keys and values.
 *
 * Tokens go through the same layers as in training, one chunk at a time: the prompt in chunks, then one by one.
 */
#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "train/trainer.h"

enum { CHUNK_TOKENS = 128 };

typedef struct {
    fp8flow_context *context;
    f8_model *model;
    uint16_t *keys, *values; /* [layers, capacity, G D], grown with the text; memory of the device, as ids */
    int32_t *ids;            /* [CHUNK_TOKENS] */
    int64_t capacity, position;
    float *logits;  /* [V]: of the last token, in the program's memory */
    double *weight; /* [V]: sampling */
    int32_t *order; /* [V] */
} decoder;

/* ---- Forward of a few tokens at the end of the text ---- */

/* A larger cache with the rows of the old one, which is given back. */
static fp8flow_status grow_one(decoder *d, int64_t capacity, uint16_t **cache)
{
    const f8_model_config *c = &d->model->config;
    int64_t row = c->num_kv_heads * c->head_dim;
    void *grown;
    F8_TRY(d->context->device->alloc((size_t)(c->num_layers * capacity * row) * sizeof **cache, &grown));
    fp8flow_status status = FP8FLOW_OK;
    for (int64_t layer = 0; layer < c->num_layers && status == FP8FLOW_OK && d->position > 0; layer++)
        status = fp8flow_memory_copy(d->context, (uint16_t *)grown + layer * capacity * row,
                                     *cache + layer * d->capacity * row, (size_t)(d->position * row) * sizeof **cache);
    if (status == FP8FLOW_OK) status = fp8flow_synchronize(d->context); /* before the old one goes */
    d->context->device->free(*cache);
    *cache = grown;
    return status;
}

static fp8flow_status grow_cache(decoder *d, int64_t positions)
{
    int64_t capacity = d->capacity ? d->capacity * 2 : CHUNK_TOKENS;
    if (positions <= d->capacity) return FP8FLOW_OK;
    while (capacity < positions) capacity *= 2;
    fp8flow_status status = grow_one(d, capacity, &d->keys);
    if (status == FP8FLOW_OK) status = grow_one(d, capacity, &d->values);
    if (status != FP8FLOW_OK) return f8_fail_in(status, "generate: %lld positions", (long long)capacity);
    d->capacity = capacity;
    return FP8FLOW_OK;
}

static fp8flow_status append_rows(decoder *d, uint16_t *cache, const fp8flow_tensor *rows)
{
    size_t row_bytes = (size_t)rows->cols * sizeof *cache;
    return d->context->device->copy_rows(d->context->stream,
                                         &(f8_row_copy){ .to = cache + d->position * rows->cols,
                                                         .from = rows->data,
                                                         .to_stride = row_bytes,
                                                         .from_stride = (size_t)rows->stride * sizeof *cache,
                                                         .row_bytes = row_bytes,
                                                         .rows = (size_t)rows->rows });
}

static fp8flow_status attend(decoder *d, int64_t layer, int64_t tokens)
{
    f8_model *m = d->model;
    const f8_model_config *c = &m->config;
    f8_kept *kept = &m->kept[layer];
    int64_t q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim, seen = d->position + tokens;
    F8_TRY(f8_model_qkv(m, layer, tokens, tokens, d->position));
    fp8flow_tensor qkv = f8_bf16(kept->qkv, tokens, q + 2 * kv), qk = f8_bf16(kept->qk, tokens, q + kv);
    fp8flow_tensor queries = f8_columns_of(&qk, 0, q), keys = f8_columns_of(&qk, q, kv);
    fp8flow_tensor values = f8_columns_of(&qkv, q + kv, kv), attention = f8_bf16(kept->attention, tokens, q);
    F8_TRY(append_rows(d, d->keys + layer * d->capacity * kv, &keys));
    F8_TRY(append_rows(d, d->values + layer * d->capacity * kv, &values));
    fp8flow_tensor all_keys = f8_bf16(d->keys + layer * d->capacity * kv, seen, kv);
    fp8flow_tensor all_values = f8_bf16(d->values + layer * d->capacity * kv, seen, kv);
    F8_TRY(fp8flow_attention(m->context, &(fp8flow_attention_args){ .q = &queries,
                                                                    .k = &all_keys,
                                                                    .v = &all_values,
                                                                    .batch = 1,
                                                                    .num_heads = c->num_heads,
                                                                    .num_kv_heads = c->num_kv_heads,
                                                                    .head_dim = c->head_dim,
                                                                    .scale = 1.0f / sqrtf((float)c->head_dim),
                                                                    .o = &attention }));
    return f8_model_attention_out(m, layer, tokens);
}

/* Feed tokens, at most CHUNK_TOKENS; fetches the logits of the last one. */
static fp8flow_status feed(decoder *d, const int32_t *ids, int64_t tokens)
{
    f8_model *m = d->model;
    int64_t hidden = m->config.hidden, layers = m->config.num_layers;
    fp8flow_tensor table = f8_model_weight(m, 0, F8_EMBEDDING), x = f8_bf16(m->kept[0].input, tokens, hidden);
    F8_TRY(grow_cache(d, d->position + tokens));
    F8_TRY(fp8flow_memory_copy(m->context, d->ids, ids, (size_t)tokens * sizeof *ids));
    F8_TRY(fp8flow_embed(m->context, &(fp8flow_embed_args){ &table, d->ids, &x }));
    for (int64_t layer = 0; layer < layers; layer++) {
        F8_TRY(attend(d, layer, tokens));
        F8_TRY(f8_model_mlp(m, layer, tokens, layer + 1 < layers ? m->kept[layer + 1].input : m->output));
    }
    d->position += tokens;
    fp8flow_tensor last = f8_bf16(m->output + (tokens - 1) * hidden, 1, hidden), normed = f8_bf16(m->normed, 1, hidden);
    fp8flow_tensor weight = f8_model_weight(m, 0, f8_model_head_kind(m));
    fp8flow_tensor logits = f8_f32(m->logits, 1, m->config.vocab_size);
    F8_TRY(f8_model_norm(m, 0, F8_FINAL_NORM, &last, &normed, NULL));
    F8_TRY(f8_model_gemm(m, FP8FLOW_FPROP, &normed, &weight, &logits));
    return fp8flow_memory_copy(m->context, d->logits, m->logits, (size_t)m->config.vocab_size * sizeof *d->logits);
}

/* ---- Sampling ---- */

static int32_t most_likely(const float *logits, int64_t count)
{
    int32_t best = 0;
    for (int32_t i = 1; i < count; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* The top_k most likely tokens in descending order, ties to the lower id: the first entries of d->order. */
static void select_top(decoder *d, int64_t count, int64_t top_k)
{
    const float *logits = d->logits;
    for (int32_t i = 0; i < count; i++) d->order[i] = i;
    for (int64_t i = 0; i < top_k; i++) {
        int64_t best = i;
        for (int64_t j = i + 1; j < count; j++)
            if (logits[d->order[j]] > logits[d->order[best]] ||
                (logits[d->order[j]] == logits[d->order[best]] && d->order[j] < d->order[best]))
                best = j;
        int32_t swapped = d->order[i];
        d->order[i] = d->order[best];
        d->order[best] = swapped;
    }
}

static int32_t sample(decoder *d, const fp8flow_generate_options *o, int64_t index)
{
    const float *logits = d->logits;
    int64_t count = d->model->config.vocab_size, kept = o->top_k > 0 && o->top_k < count ? o->top_k : count;
    int32_t best = most_likely(logits, count);
    if (o->temperature == 0.0) return best;
    if (kept < count) select_top(d, count, kept);
    else
        for (int32_t i = 0; i < count; i++) d->order[i] = i;
    double sum = 0.0;
    for (int64_t i = 0; i < kept; i++) {
        d->weight[i] = exp(((double)logits[d->order[i]] - (double)logits[best]) / o->temperature);
        sum += d->weight[i];
    }
    double left = (double)f8_uniform(o->seed, 7, (uint64_t)index) * sum;
    for (int64_t i = 0; i < kept; i++) {
        left -= d->weight[i];
        if (left < 0.0) return d->order[i];
    }
    return best;
}

/* ---- The call ---- */

static fp8flow_status feed_prompt(decoder *d, const int32_t *prompt, int64_t num_prompt)
{
    const int32_t separator = F8_DATA_SEPARATOR;
    if (num_prompt == 0) return feed(d, &separator, 1);
    for (int64_t first = 0; first < num_prompt; first += CHUNK_TOKENS) {
        int64_t count = num_prompt - first < CHUNK_TOKENS ? num_prompt - first : CHUNK_TOKENS;
        F8_TRY(feed(d, prompt + first, count));
    }
    return FP8FLOW_OK;
}

static fp8flow_status decode(decoder *d, const int32_t *prompt, int64_t num_prompt, const fp8flow_generate_options *o,
                             fp8flow_token_callback *callback, void *user)
{
    F8_TRY(feed_prompt(d, prompt, num_prompt));
    for (int64_t i = 0; i < o->max_tokens; i++) {
        int32_t token = sample(d, o, i);
        if (callback(user, token) != 0 || d->position >= d->model->config.max_positions) break;
        if (i + 1 < o->max_tokens) F8_TRY(feed(d, &token, 1));
    }
    return FP8FLOW_OK;
}

static fp8flow_status check(const int32_t *prompt, int64_t num_prompt, const fp8flow_generate_options *o,
                            const f8_model_config *c)
{
    F8_REQUIRE(num_prompt >= 0 && num_prompt <= c->max_positions, EINVAL,
               "generate: the prompt has %lld tokens, the model has %lld positions", (long long)num_prompt,
               (long long)c->max_positions);
    for (int64_t i = 0; i < num_prompt; i++)
        F8_REQUIRE(prompt[i] >= 0 && prompt[i] < c->vocab_size, EINVAL,
                   "generate: token %d of the prompt is %d, not in 0 to %lld", (int)i, prompt[i],
                   (long long)c->vocab_size - 1);
    F8_REQUIRE(o->max_tokens >= 0 && o->top_k >= 0, EINVAL, "generate: max_tokens = %lld, top_k = %lld",
               (long long)o->max_tokens, (long long)o->top_k);
    F8_REQUIRE(o->temperature >= 0.0 && o->temperature <= 1e6, EINVAL, "generate: temperature = %g, expected 0 to 1e6",
               o->temperature);
    return FP8FLOW_OK;
}

typedef struct {
    fp8flow_context *context;
    const char *checkpoint;
    const int32_t *prompt;
    int64_t num_prompt;
    const fp8flow_generate_options *options;
    fp8flow_token_callback *callback;
    void *user;
} request;

static fp8flow_status allocate(decoder *d)
{
    size_t vocabulary = (size_t)d->model->config.vocab_size;
    d->logits = calloc(vocabulary, sizeof *d->logits);
    d->weight = calloc(vocabulary, sizeof *d->weight);
    d->order = calloc(vocabulary, sizeof *d->order);
    F8_REQUIRE(d->logits && d->weight && d->order, ENOMEM, "generate: no memory for sampling");
    return d->context->device->alloc(CHUNK_TOKENS * sizeof *d->ids, (void **)&d->ids);
}

static void release(decoder *d)
{
    const f8_device *device = d->context->device;
    f8_model_destroy(d->model);
    device->free(d->keys);
    device->free(d->values);
    device->free(d->ids);
    free(d->logits);
    free(d->weight);
    free(d->order);
}

static fp8flow_status run_request(const request *r, fp8flow_comm *comm, const char *path, f8_model_config *config,
                                  f8_buffer *text)
{
    f8_checkpoint_state state;
    decoder d = { .context = r->context };
    F8_TRY(f8_checkpoint_open(path, &state, text));
    F8_TRY(f8_model_config_parse(path, text->data, text->size, config, NULL));
    F8_TRY(check(r->prompt, r->num_prompt, r->options, config));
    f8_model_options options = { .recipe = state.recipe,
                                 .checkpointing = FP8FLOW_FULL,
                                 .max_tokens = CHUNK_TOKENS,
                                 .sequence_length = 1,
                                 .purpose = F8_FOR_INFERENCE };
    config->router.sequence_coef = 0.0f; /* the losses are not needed, and chunks are of any length */
    fp8flow_status status = f8_model_create(r->context, comm, config, &options, &d.model);
    if (status == FP8FLOW_OK) status = f8_checkpoint_load(path, &state, d.model);
    if (status == FP8FLOW_OK) status = f8_model_publish_from_master(d.model);
    if (status == FP8FLOW_OK) status = allocate(&d);
    if (status == FP8FLOW_OK) status = decode(&d, r->prompt, r->num_prompt, r->options, r->callback, r->user);
    release(&d);
    return status;
}

static fp8flow_status generate_on_rank(fp8flow_comm *comm, void *user)
{
    const request *r = user;
    char *path = NULL;
    f8_buffer text = { 0 };
    F8_TRY(f8_checkpoint_find(r->checkpoint, &path));
    f8_model_config *config = calloc(1, sizeof *config);
    fp8flow_status status = config ? run_request(r, comm, path, config, &text)
                                   : F8_FAIL(ENOMEM, "generate: no memory for the configuration");
    free(config);
    free(path);
    f8_buffer_free(&text);
    return status;
}

fp8flow_status fp8flow_generate(fp8flow_context *context, const char *checkpoint, const int32_t *prompt,
                                int64_t num_prompt, const fp8flow_generate_options *options,
                                fp8flow_token_callback *callback, void *user)
{
    F8_REQUIRE(context && checkpoint && options && callback && (prompt || num_prompt == 0), EINVAL,
               "generate: NULL argument");
    request r = { context, checkpoint, prompt, num_prompt, options, callback, user };
    return fp8flow_run_ranks(1, generate_on_rank, &r);
}
