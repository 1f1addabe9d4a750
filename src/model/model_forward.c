/* model_forward.c - the decoder from token ids to the loss: one straight list per layer. */
#include "model/model.h"

#include <math.h>

fp8flow_status f8_model_gemm(f8_model *m, fp8flow_product product, const fp8flow_tensor *a, const fp8flow_tensor *b,
                             fp8flow_tensor *c)
{
    fp8flow_write write = product == FP8FLOW_WGRAD ? FP8FLOW_ACCUMULATE : FP8FLOW_OVERWRITE;
    return fp8flow_gemm(m->context, &(fp8flow_gemm_args){ product, write, NULL, a, b, c });
}

fp8flow_status f8_model_norm(f8_model *m, int64_t layer, f8_kind kind, const fp8flow_tensor *x, fp8flow_tensor *y,
                             float *rstd)
{
    int heads = kind == F8_Q_NORM || kind == F8_K_NORM;
    return fp8flow_rmsnorm(m->context, &(fp8flow_rmsnorm_args){ .x = x,
                                                                .weight = f8_model_master(m, layer, kind),
                                                                .width = heads ? m->config.head_dim : m->config.hidden,
                                                                .eps = (float)m->config.norm_eps,
                                                                .y = y,
                                                                .rstd = rstd });
}

static fp8flow_status add(f8_model *m, const fp8flow_tensor *a, const fp8flow_tensor *b, fp8flow_tensor *y)
{
    return fp8flow_add(m->context, &(fp8flow_add_args){ a, b, y });
}

fp8flow_status f8_model_qkv(f8_model *m, int64_t layer, int64_t tokens, int64_t sequence_length, int64_t first_position)
{
    const f8_model_config *c = &m->config;
    f8_kept *kept = &m->kept[layer];
    int64_t q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    fp8flow_tensor input = f8_bf16(kept->input, tokens, c->hidden), normed = f8_bf16(m->normed, tokens, c->hidden);
    fp8flow_tensor qkv = f8_bf16(kept->qkv, tokens, q + 2 * kv), qk = f8_bf16(kept->qk, tokens, q + kv);
    fp8flow_tensor weight = f8_model_weight(m, layer, F8_QKV);
    F8_TRY(f8_model_norm(m, layer, F8_INPUT_NORM, &input, &normed, kept->rstd_input));
    F8_TRY(f8_model_gemm(m, FP8FLOW_FPROP, &normed, &weight, &qkv));
    fp8flow_tensor raw_q = f8_columns_of(&qkv, 0, q), raw_k = f8_columns_of(&qkv, q, kv);
    fp8flow_tensor queries = f8_columns_of(&qk, 0, q), keys = f8_columns_of(&qk, q, kv);
    F8_TRY(f8_model_norm(m, layer, F8_Q_NORM, &raw_q, &queries, kept->rstd_q));
    F8_TRY(f8_model_norm(m, layer, F8_K_NORM, &raw_k, &keys, kept->rstd_k));
    return fp8flow_rope(m->context, &(fp8flow_rope_args){ .x = &qk,
                                                          .sequence_length = sequence_length,
                                                          .head_dim = c->head_dim,
                                                          .first_position = first_position,
                                                          .theta = (float)c->rope_theta,
                                                          .rotation = FP8FLOW_ROTATE });
}

fp8flow_status f8_model_attention_out(f8_model *m, int64_t layer, int64_t tokens)
{
    f8_kept *kept = &m->kept[layer];
    int64_t hidden = m->config.hidden, q = m->config.num_heads * m->config.head_dim;
    fp8flow_tensor input = f8_bf16(kept->input, tokens, hidden), middle = f8_bf16(kept->middle, tokens, hidden);
    fp8flow_tensor attention = f8_bf16(kept->attention, tokens, q), branch = f8_bf16(m->branch, tokens, hidden);
    fp8flow_tensor weight = f8_model_weight(m, layer, F8_OUT);
    F8_TRY(f8_model_gemm(m, FP8FLOW_FPROP, &attention, &weight, &branch));
    return add(m, &input, &branch, &middle);
}

fp8flow_status f8_model_attention(f8_model *m, int64_t layer, int64_t batch, int64_t sequence_length)
{
    const f8_model_config *c = &m->config;
    f8_kept *kept = &m->kept[layer];
    int64_t tokens = batch * sequence_length, q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    F8_TRY(f8_model_qkv(m, layer, tokens, sequence_length, 0));
    fp8flow_tensor qkv = f8_bf16(kept->qkv, tokens, q + 2 * kv), qk = f8_bf16(kept->qk, tokens, q + kv);
    fp8flow_tensor queries = f8_columns_of(&qk, 0, q), keys = f8_columns_of(&qk, q, kv);
    fp8flow_tensor values = f8_columns_of(&qkv, q + kv, kv), attention = f8_bf16(kept->attention, tokens, q);
    F8_TRY(fp8flow_attention(m->context, &(fp8flow_attention_args){ .q = &queries,
                                                                    .k = &keys,
                                                                    .v = &values,
                                                                    .batch = batch,
                                                                    .num_heads = c->num_heads,
                                                                    .num_kv_heads = c->num_kv_heads,
                                                                    .head_dim = c->head_dim,
                                                                    .scale = 1.0f / sqrtf((float)c->head_dim),
                                                                    .o = &attention,
                                                                    .lse = kept->lse }));
    return f8_model_attention_out(m, layer, tokens);
}

static fp8flow_status dense_mlp(f8_model *m, int64_t layer, const fp8flow_tensor *normed, fp8flow_tensor *branch)
{
    int64_t tokens = normed->rows, width = m->config.dense_width;
    fp8flow_tensor h = f8_bf16(m->kept[layer].dense_h, tokens, 2 * width), v = f8_bf16(m->dense_v, tokens, width);
    fp8flow_tensor fc1 = f8_model_weight(m, layer, F8_DENSE_FC1), fc2 = f8_model_weight(m, layer, F8_DENSE_FC2);
    F8_TRY(f8_model_gemm(m, FP8FLOW_FPROP, normed, &fc1, &h));
    F8_TRY(fp8flow_swiglu(m->context, &(fp8flow_swiglu_args){ .h = &h, .rows = &v }));
    return f8_model_gemm(m, FP8FLOW_FPROP, &v, &fc2, branch);
}

fp8flow_status f8_model_mlp(f8_model *m, int64_t layer, int64_t tokens, uint16_t *output)
{
    int64_t hidden = m->config.hidden;
    f8_kept *kept = &m->kept[layer];
    fp8flow_tensor middle = f8_bf16(kept->middle, tokens, hidden), normed = f8_bf16(m->normed, tokens, hidden);
    fp8flow_tensor branch = f8_bf16(m->branch, tokens, hidden), y = f8_bf16(output, tokens, hidden);
    F8_TRY(f8_model_norm(m, layer, F8_POST_NORM, &middle, &normed, kept->rstd_post));
    if (m->moe[layer]) F8_TRY(fp8flow_moe_forward(m->moe[layer], &normed, &branch));
    else F8_TRY(dense_mlp(m, layer, &normed, &branch));
    return add(m, &middle, &branch, &y);
}

/* Logits and loss of rows [first, first + rows); with a gradient scale also the gradients behind them. */
static fp8flow_status head_chunk(f8_model *m, const f8_micro_batch *batch, int64_t first, int64_t rows)
{
    int64_t hidden = m->config.hidden, vocabulary = m->config.vocab_size;
    f8_kind kind = f8_model_head_kind(m);
    fp8flow_tensor normed = f8_bf16(m->normed + first * hidden, rows, hidden);
    fp8flow_tensor weight = f8_model_weight(m, 0, kind), logits = f8_f32(m->logits, rows, vocabulary);
    fp8flow_tensor dlogits = f8_bf16(m->dlogits, rows, vocabulary);
    int has_gradient = batch->gradient_scale != 0.0f;
    F8_TRY(f8_model_gemm(m, FP8FLOW_FPROP, &normed, &weight, &logits));
    F8_TRY(fp8flow_cross_entropy(m->context, &(fp8flow_cross_entropy_args){ .logits = &logits,
                                                                            .target = batch->targets + first,
                                                                            .grad_scale = batch->gradient_scale,
                                                                            .gradient = has_gradient ? &dlogits : NULL,
                                                                            .loss = m->loss + first }));
    if (!has_gradient) return FP8FLOW_OK;
    fp8flow_tensor gradient = f8_model_gradient(m, 0, kind);
    fp8flow_tensor dnormed = f8_bf16(m->dnormed + first * hidden, rows, hidden);
    F8_TRY(f8_model_gemm(m, FP8FLOW_WGRAD, &dlogits, &normed, &gradient));
    return f8_model_gemm(m, FP8FLOW_DGRAD, &dlogits, &weight, &dnormed);
}

/* Final norm, head, loss: rows in chunks. The gradient of the normed rows is left in dnormed. */
static fp8flow_status head(f8_model *m, const f8_micro_batch *batch, double *loss_sum)
{
    int64_t tokens = batch->batch * batch->sequence_length, hidden = m->config.hidden;
    fp8flow_tensor x = f8_bf16(m->output, tokens, hidden), normed = f8_bf16(m->normed, tokens, hidden);
    F8_TRY(f8_model_norm(m, 0, F8_FINAL_NORM, &x, &normed, m->rstd_final));
    for (int64_t first = 0; first < tokens; first += m->logit_rows) {
        int64_t rows = tokens - first < m->logit_rows ? tokens - first : m->logit_rows;
        F8_TRY(head_chunk(m, batch, first, rows));
    }
    return fp8flow_sum(m->context, &(fp8flow_sum_args){ tokens, m->loss, loss_sum });
}

fp8flow_status f8_model_forward(f8_model *m, const f8_micro_batch *batch, double *loss_sum)
{
    int64_t tokens = batch->batch * batch->sequence_length, hidden = m->config.hidden, layers = m->config.num_layers;
    F8_REQUIRE(tokens <= m->max_tokens, ESHAPE, "model: %lld tokens, at most %lld", (long long)tokens,
               (long long)m->max_tokens);
    fp8flow_tensor table = f8_model_weight(m, 0, F8_EMBEDDING), x = f8_bf16(m->kept[0].input, tokens, hidden);
    F8_TRY(fp8flow_embed(m->context, &(fp8flow_embed_args){ &table, batch->ids, &x }));
    for (int64_t layer = 0; layer < layers; layer++) {
        uint16_t *output = layer + 1 < layers ? m->kept[layer + 1].input : m->output;
        F8_TRY(f8_model_attention(m, layer, batch->batch, batch->sequence_length));
        F8_TRY(f8_model_mlp(m, layer, tokens, output));
    }
    return head(m, batch, loss_sum);
}
