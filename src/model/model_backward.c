/* model_backward.c - model_forward.c upside down. Gradients of weights are added, of activations overwritten.
 * `dx` holds the gradient of the residual stream all the way down. */
#include "model/model.h"

#include <math.h>

/* dx (+)= gradient through a norm: dnormed -> dbranch, then dx += dbranch. */
static fp8flow_status norm_backward(f8_model *m, int64_t layer, f8_kind kind, const fp8flow_tensor *x,
                                    const float *rstd)
{
    int64_t tokens = x->rows, hidden = m->config.hidden;
    fp8flow_tensor dnormed = f8_bf16(m->dnormed, tokens, hidden), dbranch = f8_bf16(m->dbranch, tokens, hidden);
    fp8flow_tensor dx = f8_bf16(m->dx, tokens, hidden);
    fp8flow_rmsnorm_backward_args args = { .x = x,
                                           .dy = &dnormed,
                                           .weight = f8_model_master(m, layer, kind),
                                           .rstd = rstd,
                                           .width = hidden,
                                           .dx = &dbranch,
                                           .dweight = f8_model_gradient(m, layer, kind).data };
    F8_TRY(fp8flow_rmsnorm_backward(m->context, &args));
    return fp8flow_add(m->context, &(fp8flow_add_args){ &dx, &dbranch, &dx });
}

static fp8flow_status dense_backward(f8_model *m, int64_t layer, const fp8flow_tensor *normed, const fp8flow_tensor *dy,
                                     fp8flow_tensor *dnormed)
{
    int64_t tokens = normed->rows, width = m->config.dense_width;
    fp8flow_tensor h = f8_bf16(m->kept[layer].dense_h, tokens, 2 * width), v = f8_bf16(m->dense_v, tokens, width);
    fp8flow_tensor dh = f8_bf16(m->dense_dh, tokens, 2 * width), dv = f8_bf16(m->dense_dv, tokens, width);
    fp8flow_tensor fc1 = f8_model_weight(m, layer, F8_DENSE_FC1), fc2 = f8_model_weight(m, layer, F8_DENSE_FC2);
    fp8flow_tensor dfc1 = f8_model_gradient(m, layer, F8_DENSE_FC1);
    fp8flow_tensor dfc2 = f8_model_gradient(m, layer, F8_DENSE_FC2);
    if (m->checkpointing == FP8FLOW_FULL) F8_TRY(f8_model_gemm(m, FP8FLOW_FPROP, normed, &fc1, &h));
    F8_TRY(fp8flow_swiglu(m->context, &(fp8flow_swiglu_args){ .h = &h, .rows = &v }));
    F8_TRY(f8_model_gemm(m, FP8FLOW_WGRAD, dy, &v, &dfc2));
    F8_TRY(f8_model_gemm(m, FP8FLOW_DGRAD, dy, &fc2, &dv));
    F8_TRY(fp8flow_swiglu_backward(m->context, &(fp8flow_swiglu_backward_args){ .h = &h, .dv = &dv, .rows = &dh }));
    F8_TRY(f8_model_gemm(m, FP8FLOW_WGRAD, &dh, normed, &dfc1));
    return f8_model_gemm(m, FP8FLOW_DGRAD, &dh, &fc1, dnormed);
}

static fp8flow_status moe_backward(f8_model *m, int64_t layer, const fp8flow_tensor *normed, const fp8flow_tensor *dy,
                                   float loss_scale, fp8flow_tensor *dnormed)
{
    int shared = m->config.shared_width > 0;
    fp8flow_moe_gradients gradients = { .router = f8_model_gradient(m, layer, F8_ROUTER).data,
                                        .fc1 = f8_model_gradient(m, layer, F8_FC1).data,
                                        .fc2 = f8_model_gradient(m, layer, F8_FC2).data };
    if (shared) {
        gradients.shared_fc1 = f8_model_gradient(m, layer, F8_SHARED_FC1).data;
        gradients.shared_fc2 = f8_model_gradient(m, layer, F8_SHARED_FC2).data;
    }
    return fp8flow_moe_backward(m->moe[layer], normed, dy, loss_scale, &gradients, dnormed);
}

static fp8flow_status mlp_backward(f8_model *m, int64_t layer, const f8_micro_batch *batch)
{
    int64_t tokens = batch->batch * batch->sequence_length, hidden = m->config.hidden;
    f8_kept *kept = &m->kept[layer];
    fp8flow_tensor middle = f8_bf16(kept->middle, tokens, hidden), normed = f8_bf16(m->normed, tokens, hidden);
    fp8flow_tensor dx = f8_bf16(m->dx, tokens, hidden), dnormed = f8_bf16(m->dnormed, tokens, hidden);
    F8_TRY(f8_model_norm(m, layer, F8_POST_NORM, &middle, &normed, kept->rstd_post));
    if (m->moe[layer]) F8_TRY(moe_backward(m, layer, &normed, &dx, batch->loss_scale, &dnormed));
    else F8_TRY(dense_backward(m, layer, &normed, &dx, &dnormed));
    return norm_backward(m, layer, F8_POST_NORM, &middle, kept->rstd_post);
}

/* Query and key norm: from the gradient behind the rotation to that of the raw projections, in dqkv. */
static fp8flow_status head_norm_backward(f8_model *m, int64_t layer, f8_kind kind, int64_t tokens)
{
    const f8_model_config *c = &m->config;
    f8_kept *kept = &m->kept[layer];
    int64_t q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    int64_t first = kind == F8_Q_NORM ? 0 : q, cols = kind == F8_Q_NORM ? q : kv;
    fp8flow_tensor qkv = f8_bf16(kept->qkv, tokens, q + 2 * kv), dqkv = f8_bf16(m->dqkv, tokens, q + 2 * kv);
    fp8flow_tensor dqk = f8_bf16(m->dqk, tokens, q + kv);
    fp8flow_tensor x = f8_columns_of(&qkv, first, cols), dy = f8_columns_of(&dqk, first, cols);
    fp8flow_tensor dx = f8_columns_of(&dqkv, first, cols);
    fp8flow_rmsnorm_backward_args args = { .x = &x,
                                           .dy = &dy,
                                           .weight = f8_model_master(m, layer, kind),
                                           .rstd = kind == F8_Q_NORM ? kept->rstd_q : kept->rstd_k,
                                           .width = c->head_dim,
                                           .dx = &dx,
                                           .dweight = f8_model_gradient(m, layer, kind).data };
    return fp8flow_rmsnorm_backward(m->context, &args);
}

/* From dattention to dqk (rotated back) and the values' part of dqkv. */
static fp8flow_status scores_backward(f8_model *m, int64_t layer, const f8_micro_batch *batch)
{
    const f8_model_config *c = &m->config;
    f8_kept *kept = &m->kept[layer];
    int64_t tokens = batch->batch * batch->sequence_length;
    int64_t q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    fp8flow_tensor qkv = f8_bf16(kept->qkv, tokens, q + 2 * kv), qk = f8_bf16(kept->qk, tokens, q + kv);
    fp8flow_tensor dqkv = f8_bf16(m->dqkv, tokens, q + 2 * kv), dqk = f8_bf16(m->dqk, tokens, q + kv);
    fp8flow_tensor queries = f8_columns_of(&qk, 0, q), keys = f8_columns_of(&qk, q, kv);
    fp8flow_tensor values = f8_columns_of(&qkv, q + kv, kv), dvalues = f8_columns_of(&dqkv, q + kv, kv);
    fp8flow_tensor dqueries = f8_columns_of(&dqk, 0, q), dkeys = f8_columns_of(&dqk, q, kv);
    fp8flow_tensor attention = f8_bf16(kept->attention, tokens, q), dattention = f8_bf16(m->dattention, tokens, q);
    fp8flow_attention_backward_args args = { .q = &queries,
                                             .k = &keys,
                                             .v = &values,
                                             .o = &attention,
                                             .grad_o = &dattention,
                                             .lse = kept->lse,
                                             .batch = batch->batch,
                                             .num_heads = c->num_heads,
                                             .num_kv_heads = c->num_kv_heads,
                                             .head_dim = c->head_dim,
                                             .scale = 1.0f / sqrtf((float)c->head_dim),
                                             .grad_q = &dqueries,
                                             .grad_k = &dkeys,
                                             .grad_v = &dvalues };
    F8_TRY(fp8flow_attention_backward(m->context, &args));
    return fp8flow_rope(m->context, &(fp8flow_rope_args){ .x = &dqk,
                                                          .sequence_length = batch->sequence_length,
                                                          .head_dim = c->head_dim,
                                                          .theta = (float)c->rope_theta,
                                                          .rotation = FP8FLOW_ROTATE_BACK });
}

static fp8flow_status attention_backward(f8_model *m, int64_t layer, const f8_micro_batch *batch)
{
    const f8_model_config *c = &m->config;
    f8_kept *kept = &m->kept[layer];
    int64_t tokens = batch->batch * batch->sequence_length, hidden = c->hidden;
    int64_t q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    fp8flow_tensor dx = f8_bf16(m->dx, tokens, hidden), attention = f8_bf16(kept->attention, tokens, q);
    fp8flow_tensor dattention = f8_bf16(m->dattention, tokens, q), dqkv = f8_bf16(m->dqkv, tokens, q + 2 * kv);
    fp8flow_tensor input = f8_bf16(kept->input, tokens, hidden), normed = f8_bf16(m->normed, tokens, hidden);
    fp8flow_tensor dnormed = f8_bf16(m->dnormed, tokens, hidden);
    fp8flow_tensor out = f8_model_weight(m, layer, F8_OUT), dout = f8_model_gradient(m, layer, F8_OUT);
    fp8flow_tensor weight = f8_model_weight(m, layer, F8_QKV), gradient = f8_model_gradient(m, layer, F8_QKV);
    F8_TRY(f8_model_gemm(m, FP8FLOW_WGRAD, &dx, &attention, &dout));
    F8_TRY(f8_model_gemm(m, FP8FLOW_DGRAD, &dx, &out, &dattention));
    F8_TRY(scores_backward(m, layer, batch));
    F8_TRY(head_norm_backward(m, layer, F8_Q_NORM, tokens));
    F8_TRY(head_norm_backward(m, layer, F8_K_NORM, tokens));
    F8_TRY(f8_model_norm(m, layer, F8_INPUT_NORM, &input, &normed, kept->rstd_input));
    F8_TRY(f8_model_gemm(m, FP8FLOW_WGRAD, &dqkv, &normed, &gradient));
    F8_TRY(f8_model_gemm(m, FP8FLOW_DGRAD, &dqkv, &weight, &dnormed));
    return norm_backward(m, layer, F8_INPUT_NORM, &input, kept->rstd_input);
}

/* dnormed holds the head's gradient (model_forward.c); dx starts from it. */
static fp8flow_status final_norm_backward(f8_model *m, int64_t tokens)
{
    int64_t hidden = m->config.hidden;
    fp8flow_tensor x = f8_bf16(m->output, tokens, hidden), dnormed = f8_bf16(m->dnormed, tokens, hidden);
    fp8flow_tensor dx = f8_bf16(m->dx, tokens, hidden);
    fp8flow_rmsnorm_backward_args args = { .x = &x,
                                           .dy = &dnormed,
                                           .weight = f8_model_master(m, 0, F8_FINAL_NORM),
                                           .rstd = m->rstd_final,
                                           .width = hidden,
                                           .dx = &dx,
                                           .dweight = f8_model_gradient(m, 0, F8_FINAL_NORM).data };
    return fp8flow_rmsnorm_backward(m->context, &args);
}

fp8flow_status f8_model_backward(f8_model *m, const f8_micro_batch *batch)
{
    int64_t tokens = batch->batch * batch->sequence_length;
    F8_TRY(final_norm_backward(m, tokens));
    for (int64_t layer = m->config.num_layers - 1; layer >= 0; layer--) {
        if (m->checkpointing == FP8FLOW_FULL)
            F8_TRY(f8_model_attention(m, layer, batch->batch, batch->sequence_length));
        F8_TRY(mlp_backward(m, layer, batch));
        F8_TRY(attention_backward(m, layer, batch));
    }
    fp8flow_tensor dx = f8_bf16(m->dx, tokens, m->config.hidden), dtable = f8_model_gradient(m, 0, F8_EMBEDDING);
    return fp8flow_embed_backward(m->context, &(fp8flow_embed_backward_args){ &dx, batch->ids, &dtable });
}
