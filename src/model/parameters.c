/* parameters.c - see parameters.h. */
#include "model/parameters.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

static const struct {
    f8_where where;
    int decay;
} kinds[] = {
#define F8_X(kind, where, decay) { where, decay },
    F8_PARAMETERS(F8_X)
#undef F8_X
};

typedef struct {
    int64_t rows, cols;
} shape;

/* Shape of a parameter; experts: of one expert. Rows 0: the model has none. */
static shape shape_of(const f8_model_config *c, f8_kind kind)
{
    int64_t h = c->hidden, d = c->head_dim;
    switch (kind) {
    case F8_EMBEDDING: return (shape){ c->vocab_size, h };
    case F8_HEAD: return (shape){ c->tie_embeddings ? 0 : c->vocab_size, h };
    case F8_FINAL_NORM:
    case F8_INPUT_NORM:
    case F8_POST_NORM: return (shape){ 1, h };
    case F8_Q_NORM:
    case F8_K_NORM: return (shape){ 1, d };
    case F8_QKV: return (shape){ (c->num_heads + 2 * c->num_kv_heads) * d, h };
    case F8_OUT: return (shape){ h, c->num_heads * d };
    case F8_DENSE_FC1: return (shape){ 2 * c->dense_width, h };
    case F8_DENSE_FC2: return (shape){ h, c->dense_width };
    case F8_ROUTER: return (shape){ c->router.num_experts, h };
    case F8_SHARED_FC1: return (shape){ 2 * c->shared_width, h };
    case F8_SHARED_FC2: return (shape){ c->shared_width ? h : 0, c->shared_width };
    case F8_FC1: return (shape){ 2 * c->expert_width, h };
    case F8_FC2: return (shape){ h, c->expert_width };
    case F8_NUM_KINDS: break;
    }
    return (shape){ 0, 0 };
}

static int is_in_layer(const f8_model_config *c, f8_kind kind, int64_t layer)
{
    int sparse = f8_layer_is_sparse(c, layer);
    switch (kinds[kind].where) {
    case F8_ONCE: return layer == 0;
    case F8_EVERY_LAYER: return 1;
    case F8_DENSE_LAYER: return !sparse;
    default: return sparse;
    }
}

static int is_norm(f8_kind kind)
{
    return kind == F8_FINAL_NORM || kind == F8_INPUT_NORM || kind == F8_POST_NORM || kind == F8_Q_NORM ||
           kind == F8_K_NORM;
}

/* Enter one parameter, unless the model has none; sizes of all ranks are counted along. */
static fp8flow_status add_parameter(f8_parameter_table *t, const f8_model_config *c, f8_kind kind, int64_t layer)
{
    const int64_t most = (int64_t)1 << 40;
    shape s = shape_of(c, kind);
    int expert = kinds[kind].where == F8_EXPERT_LAYER;
    int64_t copies = expert ? t->local_experts : 1;
    t->index[layer][kind] = -1;
    if (s.rows == 0 || !is_in_layer(c, kind, layer)) return FP8FLOW_OK;
    int64_t size = s.rows * s.cols, all;
    F8_REQUIRE(!__builtin_mul_overflow(size, expert ? c->router.num_experts : 1, &all) && all <= most &&
                   t->global_count + all <= most,
               EFORMAT, "model: layer %lld alone brings the parameters above 2^40", (long long)layer);
    t->index[layer][kind] = t->num_parameters;
    int in_fp32 = is_norm(kind) || kind == F8_ROUTER;
    t->parameter[t->num_parameters++] = (f8_parameter){ .kind = kind,
                                                        .layer = layer,
                                                        .rows = copies * s.rows,
                                                        .cols = s.cols,
                                                        .offset = t->count,
                                                        .fp32 = in_fp32 ? t->fp32_count : -1,
                                                        .decay = kinds[kind].decay };
    t->count += copies * size;
    if (in_fp32) t->fp32_count += size;
    if (!expert) t->replicated = t->count;
    t->global_count += all;
    t->active_count += expert ? size * c->router.top_k : size;
    return FP8FLOW_OK;
}

/* ---- Names in checkpoints: Hugging Face Qwen3-MoE ---- */

static void add_slice(f8_parameter_table *t, const f8_parameter *p, int64_t row, int64_t rows, const char *name)
{
    f8_stored_slice *slice = &t->slice[t->num_slices++];
    snprintf(slice->name, sizeof slice->name, "%s", name);
    slice->offset = p->offset + row * p->cols;
    slice->rows = rows;
    slice->cols = p->cols;
}

/* "model.layers.3.<rest>" or, for F8_ONCE, the rest alone. */
static void name_in_layer(char *name, size_t size, const f8_parameter *p, const char *rest)
{
    if (kinds[p->kind].where == F8_ONCE) snprintf(name, size, "%s", rest);
    else snprintf(name, size, "model.layers.%lld.%s", (long long)p->layer, rest);
}

/* One slice per name: rows are split in the given parts. */
typedef struct {
    const char *name;
    int64_t rows;
} part;

static void add_parts(f8_parameter_table *t, const f8_parameter *p, int64_t first_row, const part *parts, int count)
{
    char name[96];
    for (int i = 0; i < count; i++) {
        name_in_layer(name, sizeof name, p, parts[i].name);
        add_slice(t, p, first_row, parts[i].rows, name);
        first_row += parts[i].rows > 0 ? parts[i].rows : 1;
    }
}

static void add_expert_slices(f8_parameter_table *t, const f8_model_config *c, const f8_parameter *p)
{
    for (int64_t e = 0; e < t->local_experts; e++) {
        char gate[64], up[64], down[64];
        long long id = t->first_expert + e;
        snprintf(gate, sizeof gate, "mlp.experts.%lld.gate_proj.weight", id);
        snprintf(up, sizeof up, "mlp.experts.%lld.up_proj.weight", id);
        snprintf(down, sizeof down, "mlp.experts.%lld.down_proj.weight", id);
        if (p->kind == F8_FC1) {
            part parts[] = { { gate, c->expert_width }, { up, c->expert_width } };
            add_parts(t, p, e * 2 * c->expert_width, parts, 2);
        } else {
            part parts[] = { { down, c->hidden } };
            add_parts(t, p, e * c->hidden, parts, 1);
        }
    }
}

static void add_slices(f8_parameter_table *t, const f8_model_config *c, const f8_parameter *p)
{
    int64_t d = c->head_dim, q = c->num_heads * d, kv = c->num_kv_heads * d, i = c->dense_width, s = c->shared_width;
    const part parts[F8_NUM_KINDS][3] = {
        [F8_EMBEDDING] = { { "model.embed_tokens.weight", c->vocab_size } },
        [F8_FINAL_NORM] = { { "model.norm.weight", 0 } },
        [F8_HEAD] = { { "lm_head.weight", c->vocab_size } },
        [F8_INPUT_NORM] = { { "input_layernorm.weight", 0 } },
        [F8_QKV] = { { "self_attn.q_proj.weight", q },
                     { "self_attn.k_proj.weight", kv },
                     { "self_attn.v_proj.weight", kv } },
        [F8_Q_NORM] = { { "self_attn.q_norm.weight", 0 } },
        [F8_K_NORM] = { { "self_attn.k_norm.weight", 0 } },
        [F8_OUT] = { { "self_attn.o_proj.weight", c->hidden } },
        [F8_POST_NORM] = { { "post_attention_layernorm.weight", 0 } },
        [F8_DENSE_FC1] = { { "mlp.gate_proj.weight", i }, { "mlp.up_proj.weight", i } },
        [F8_DENSE_FC2] = { { "mlp.down_proj.weight", c->hidden } },
        [F8_ROUTER] = { { "mlp.gate.weight", c->router.num_experts } },
        [F8_SHARED_FC1] = { { "mlp.shared_experts.gate_proj.weight", s }, { "mlp.shared_experts.up_proj.weight", s } },
        [F8_SHARED_FC2] = { { "mlp.shared_experts.down_proj.weight", c->hidden } },
    };
    if (kinds[p->kind].where == F8_EXPERT_LAYER) {
        add_expert_slices(t, c, p);
        return;
    }
    int count = 0;
    while (count < 3 && parts[p->kind][count].name) count++;
    add_parts(t, p, 0, parts[p->kind], count);
}

/* ---- Create ---- */

static fp8flow_status fill_table(f8_parameter_table *t, const f8_model_config *c)
{
    /* Replicated parameters first, then the experts. */
    for (int experts = 0; experts < 2; experts++)
        for (int64_t layer = 0; layer < c->num_layers; layer++)
            for (int kind = 0; kind < F8_NUM_KINDS; kind++)
                if ((kinds[kind].where == F8_EXPERT_LAYER) == experts)
                    F8_TRY(add_parameter(t, c, (f8_kind)kind, layer));
    for (int64_t i = 0; i < t->num_parameters; i++) add_slices(t, c, &t->parameter[i]);
    return FP8FLOW_OK;
}

fp8flow_status f8_parameter_table_create(const f8_model_config *c, int32_t rank, int32_t size,
                                         f8_parameter_table **table)
{
    f8_parameter_table *t = calloc(1, sizeof *t);
    F8_REQUIRE(t, ENOMEM, "model: no memory for the parameter table");
    t->first_expert = c->router.num_experts * rank / size;
    t->local_experts = c->router.num_experts * (rank + 1) / size - t->first_expert;
    size_t most = (size_t)c->num_layers * F8_NUM_KINDS;
    t->parameter = calloc(most, sizeof *t->parameter);
    t->slice = calloc(most * 3 + (size_t)(c->num_layers * t->local_experts) * 3, sizeof *t->slice);
    fp8flow_status status =
        t->parameter && t->slice ? fill_table(t, c) : F8_FAIL(ENOMEM, "model: no memory for the parameter table");
    if (status != FP8FLOW_OK) {
        f8_parameter_table_destroy(t);
        return status;
    }
    *table = t;
    return FP8FLOW_OK;
}

void f8_parameter_table_destroy(f8_parameter_table *t)
{
    if (!t) return;
    free(t->parameter);
    free(t->slice);
    free(t);
}

int64_t f8_parameter_offset(const f8_parameter_table *t, int64_t layer, f8_kind kind)
{
    int64_t index = t->index[layer][kind];
    return index < 0 ? -1 : t->parameter[index].offset;
}

int64_t f8_parameter_fp32_before(const f8_parameter_table *t, int64_t elements)
{
    int64_t before = 0;
    for (int64_t i = 0; i < t->num_parameters && t->parameter[i].offset < elements; i++) {
        const f8_parameter *p = &t->parameter[i];
        int64_t size = p->rows * p->cols, here = elements - p->offset;
        if (p->fp32 >= 0) before += here < size ? here : size;
    }
    return before;
}

/* ---- Initial values ---- */

static int writes_residual(f8_kind kind)
{
    return kind == F8_OUT || kind == F8_FC2 || kind == F8_DENSE_FC2 || kind == F8_SHARED_FC2;
}

/* Elements [first, first + count) of one parameter. */
static void init_parameter(const f8_parameter_table *t, const f8_model_config *c, uint64_t seed, const f8_parameter *p,
                           int64_t first, int64_t count, float *values)
{
    uint64_t stream = (uint64_t)p->layer * F8_NUM_KINDS + (uint64_t)p->kind + 1, number = (uint64_t)first;
    double std = c->init_std;
    /* Elements are numbered as if all experts were here. */
    if (kinds[p->kind].where == F8_EXPERT_LAYER && t->local_experts)
        number += (uint64_t)(t->first_expert * (p->rows / t->local_experts * p->cols));
    if (writes_residual(p->kind)) std /= sqrt(2.0 * (double)c->num_layers);
    for (int64_t j = 0; j < count; j++)
        values[j] = is_norm(p->kind) ? 1.0f : (float)std * f8_normal(seed, stream, number + (uint64_t)j);
}

void f8_parameter_init(const f8_parameter_table *t, const f8_model_config *c, uint64_t seed, int64_t first,
                       int64_t count, float *values)
{
    int64_t last = first + count;
    for (int64_t i = 0; i < t->num_parameters; i++) {
        const f8_parameter *p = &t->parameter[i];
        int64_t end = p->offset + p->rows * p->cols;
        int64_t from = first > p->offset ? first : p->offset, to = last < end ? last : end;
        if (from < to) init_parameter(t, c, seed, p, from - p->offset, to - from, values + (from - first));
    }
}
