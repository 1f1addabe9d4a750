/* config.c - reading config.json. Every key has a range; every value that we do not implement is refused. */
#include "model/config.h"

#include <string.h>

#include "io/file.h"
#include "io/json.h"

static const char *const known_keys[] = {
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "moe_intermediate_size", "intermediate_size", "num_experts",
    "num_experts_per_tok", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "rope_theta", "rms_norm_eps",
    "initializer_range", "tie_word_embeddings", "router_aux_loss_coef", "hidden_act", "attention_bias",
    "attention_dropout", "rope_scaling", "sliding_window", "use_sliding_window",
    /* Extensions of ours, with the names that DeepSeek's configurations use where there are any. */
    "n_shared_experts", "scoring_func", "n_group", "topk_group", "routed_scaling_factor", "seq_aux_loss_coef",
    "router_z_loss_coef", "router_bias_update_rate",
    /* Without meaning for training. */
    "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype", "transformers_version",
    "use_cache", "max_window_layers", "output_router_logits"
};

enum { NUM_KNOWN_KEYS = sizeof known_keys / sizeof known_keys[0] };

static fp8flow_status optional_int(const f8_json *json, const char *key, int64_t min, int64_t max, int64_t *value)
{
    return f8_json_has(json, key) ? f8_json_int(json, key, min, max, value) : FP8FLOW_OK;
}

static fp8flow_status optional_double(const f8_json *json, const char *key, double min, double max, double *value)
{
    return f8_json_has(json, key) ? f8_json_double(json, key, min, max, value) : FP8FLOW_OK;
}

/* A key that, if present, must be false. */
static fp8flow_status must_be_off(const f8_json *json, const char *key)
{
    bool value = false;
    if (f8_json_has(json, key)) F8_TRY(f8_json_bool(json, key, &value));
    F8_REQUIRE(!value, EFORMAT, "%s: %s is true, which is not supported", json->file, key);
    return FP8FLOW_OK;
}

static fp8flow_status refuse_unsupported(const f8_json *json)
{
    static const char *const types[] = { "qwen3_moe" };
    static const char *const activations[] = { "silu" };
    int choice;
    double dropout = 0.0;
    int64_t window = 0; /* means something only with use_sliding_window */
    F8_REQUIRE(!f8_json_has(json, "auto_map"), EFORMAT, "%s: auto_map names code to run; that is never done",
               json->file);
    F8_TRY(f8_json_choice(json, "model_type", types, 1, &choice));
    if (f8_json_has(json, "hidden_act")) F8_TRY(f8_json_choice(json, "hidden_act", activations, 1, &choice));
    F8_REQUIRE(!f8_json_has(json, "rope_scaling"), EFORMAT, "%s: rope_scaling is set, which is not supported",
               json->file);
    F8_TRY(must_be_off(json, "attention_bias"));
    F8_TRY(must_be_off(json, "use_sliding_window"));
    F8_TRY(optional_int(json, "sliding_window", 0, INT64_MAX, &window));
    F8_TRY(optional_double(json, "attention_dropout", 0.0, 0.0, &dropout));
    return FP8FLOW_OK;
}

static fp8flow_status parse_shape(const f8_json *json, f8_model_config *c)
{
    F8_TRY(f8_json_int(json, "vocab_size", 256, 1 << 24, &c->vocab_size));
    F8_TRY(f8_json_int(json, "hidden_size", 16, 1 << 20, &c->hidden));
    F8_TRY(f8_json_int(json, "num_hidden_layers", 1, F8_MAX_LAYERS, &c->num_layers));
    F8_TRY(f8_json_int(json, "num_attention_heads", 1, 65536, &c->num_heads));
    c->num_kv_heads = c->num_heads;
    F8_TRY(optional_int(json, "num_key_value_heads", 1, c->num_heads, &c->num_kv_heads));
    F8_REQUIRE(f8_json_has(json, "head_dim") || c->hidden % c->num_heads == 0, EFORMAT,
               "%s: num_attention_heads is %lld, which does not divide hidden_size %lld, and there is no head_dim",
               json->file, (long long)c->num_heads, (long long)c->hidden);
    c->head_dim = c->hidden / c->num_heads;
    F8_TRY(optional_int(json, "head_dim", 2, 1024, &c->head_dim));
    c->max_positions = 4096;
    F8_TRY(optional_int(json, "max_position_embeddings", 1, 1 << 24, &c->max_positions));
    F8_REQUIRE(c->num_heads % c->num_kv_heads == 0, EFORMAT,
               "%s: num_attention_heads is %lld, not a multiple of num_key_value_heads %lld", json->file,
               (long long)c->num_heads, (long long)c->num_kv_heads);
    F8_REQUIRE(c->head_dim >= 2 && c->head_dim <= 1024 && c->head_dim % 2 == 0, EFORMAT,
               "%s: head_dim is %lld, expected an even number from 2 to 1024", json->file, (long long)c->head_dim);
    F8_REQUIRE(c->hidden % 16 == 0, EFORMAT, "%s: hidden_size is %lld, not a multiple of 16", json->file,
               (long long)c->hidden);
    return FP8FLOW_OK;
}

static fp8flow_status parse_width(const f8_json *json, const char *key, int64_t *width)
{
    F8_TRY(f8_json_int(json, key, 16, 1 << 20, width));
    F8_REQUIRE(*width % 16 == 0, EFORMAT, "%s: %s is %lld, not a multiple of 16", json->file, key, (long long)*width);
    return FP8FLOW_OK;
}

static fp8flow_status parse_layers(const f8_json *json, f8_model_config *c)
{
    c->sparse_step = 1;
    F8_TRY(optional_int(json, "decoder_sparse_step", 1, F8_MAX_LAYERS, &c->sparse_step));
    f8_json_array_limits limits = { 0, c->num_layers - 1, F8_MAX_LAYERS };
    if (f8_json_has(json, "mlp_only_layers"))
        F8_TRY(f8_json_int_array(json, "mlp_only_layers", limits, c->dense_layer, &c->num_dense_layers));
    F8_TRY(parse_width(json, "moe_intermediate_size", &c->expert_width));
    int64_t dense_layers = 0, shared = 0;
    for (int64_t layer = 0; layer < c->num_layers; layer++) dense_layers += !f8_layer_is_sparse(c, layer);
    if (dense_layers || f8_json_has(json, "intermediate_size"))
        F8_TRY(parse_width(json, "intermediate_size", &c->dense_width));
    F8_TRY(optional_int(json, "n_shared_experts", 0, 64, &shared));
    c->shared_width = shared * c->expert_width;
    return FP8FLOW_OK;
}

static fp8flow_status parse_router(const f8_json *json, f8_model_config *c)
{
    static const char *const scores[] = { "softmax", "softmax_topk", "sigmoid" };
    fp8flow_router_config *r = &c->router;
    int score = 0;
    bool normalize = false;
    double scale = 1.0, aux = 0.001, sequence = 0.0, z = 0.0;
    F8_TRY(f8_json_int(json, "num_experts", 1, 4096, &r->num_experts));
    F8_TRY(f8_json_int(json, "num_experts_per_tok", 1, r->num_experts, &r->top_k));
    if (f8_json_has(json, "norm_topk_prob")) F8_TRY(f8_json_bool(json, "norm_topk_prob", &normalize));
    if (f8_json_has(json, "scoring_func")) F8_TRY(f8_json_choice(json, "scoring_func", scores, 3, &score));
    r->num_groups = r->top_groups = 1;
    F8_TRY(optional_int(json, "n_group", 1, r->num_experts, &r->num_groups));
    F8_TRY(optional_int(json, "topk_group", 1, r->num_groups, &r->top_groups));
    F8_REQUIRE(r->num_experts % r->num_groups == 0, EFORMAT, "%s: n_group is %lld, which does not divide %lld experts",
               json->file, (long long)r->num_groups, (long long)r->num_experts);
    F8_REQUIRE(r->num_experts / r->num_groups * r->top_groups >= r->top_k, EFORMAT,
               "%s: topk_group is %lld, too few groups for %lld experts per token", json->file,
               (long long)r->top_groups, (long long)r->top_k);
    F8_TRY(optional_double(json, "routed_scaling_factor", 1e-6, 1e6, &scale));
    F8_TRY(optional_double(json, "router_aux_loss_coef", 0.0, 1e3, &aux));
    F8_TRY(optional_double(json, "seq_aux_loss_coef", 0.0, 1e3, &sequence));
    F8_TRY(optional_double(json, "router_z_loss_coef", 0.0, 1e3, &z));
    F8_TRY(optional_double(json, "router_bias_update_rate", 0.0, 1.0, &c->bias_update_rate));
    r->score = (fp8flow_score)score;
    r->gate_rule = normalize ? FP8FLOW_GATE_NORMALIZED : FP8FLOW_GATE_RAW;
    r->group_score = r->score == FP8FLOW_SCORE_SIGMOID ? FP8FLOW_GROUP_TOP2_SUM : FP8FLOW_GROUP_MAX;
    r->gate_scale = (float)scale;
    r->aux_coef = (float)aux;
    r->sequence_coef = (float)sequence;
    r->z_coef = (float)z;
    return FP8FLOW_OK;
}

static fp8flow_status parse_rest(const f8_json *json, f8_model_config *c)
{
    bool tie = false;
    c->rope_theta = 10000.0;
    c->norm_eps = 1e-6;
    c->init_std = 0.02;
    F8_TRY(optional_double(json, "rope_theta", 1.0, 1e12, &c->rope_theta));
    F8_TRY(optional_double(json, "rms_norm_eps", 1e-12, 1.0, &c->norm_eps));
    F8_TRY(optional_double(json, "initializer_range", 0.0, 10.0, &c->init_std));
    if (f8_json_has(json, "tie_word_embeddings")) F8_TRY(f8_json_bool(json, "tie_word_embeddings", &tie));
    c->tie_embeddings = tie;
    return FP8FLOW_OK;
}

fp8flow_status f8_model_config_parse(const char *file, const char *text, size_t size, f8_model_config *config,
                                     f8_buffer *ignored)
{
    f8_json json = { 0 };
    int64_t num_unknown = 0;
    fp8flow_status status;
    memset(config, 0, sizeof *config);
    F8_TRY(f8_json_parse(file, text, size, &json));
    F8_TRY_GOTO(status, refuse_unsupported(&json));
    F8_TRY_GOTO(status, parse_shape(&json, config));
    F8_TRY_GOTO(status, parse_layers(&json, config));
    F8_TRY_GOTO(status, parse_router(&json, config));
    F8_TRY_GOTO(status, parse_rest(&json, config));
    if (ignored) F8_TRY_GOTO(status, f8_json_unknown_keys(&json, known_keys, NUM_KNOWN_KEYS, ignored, &num_unknown));
fail:
    f8_json_free(&json);
    return status;
}

int f8_layer_is_sparse(const f8_model_config *config, int64_t layer)
{
    for (int64_t i = 0; i < config->num_dense_layers; i++)
        if (config->dense_layer[i] == layer) return 0;
    return (layer + 1) % config->sparse_step == 0;
}

/* ---- Presets ---- */

static const struct {
    const char *name, *json;
} presets[] = {
    /* Trains on a laptop: 3.6 M parameters, 1.5 M of them active. */
    { "tiny",
      "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 128, \"num_hidden_layers\": 4,\n"
      " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 32, \"max_position_embeddings\": 2048,\n"
      " \"moe_intermediate_size\": 128, \"num_experts\": 16, \"num_experts_per_tok\": 2, \"norm_topk_prob\": true,\n"
      " \"rope_theta\": 10000.0, \"rms_norm_eps\": 1e-6, \"router_aux_loss_coef\": 0.01,\n"
      " \"tie_word_embeddings\": false}\n" },
    { "small",
      "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 512, \"num_hidden_layers\": 8,\n"
      " \"num_attention_heads\": 8, \"num_key_value_heads\": 2, \"head_dim\": 64, \"max_position_embeddings\": 4096,\n"
      " \"moe_intermediate_size\": 256, \"num_experts\": 32, \"num_experts_per_tok\": 4, \"norm_topk_prob\": true,\n"
      " \"rope_theta\": 1000000.0, \"rms_norm_eps\": 1e-6, \"router_aux_loss_coef\": 0.001,\n"
      " \"tie_word_embeddings\": false}\n" },
    /* The router of DeepSeek-V3 (sigmoid scores, expert bias, groups, a shared expert) on the tiny decoder. */
    { "tiny-sigmoid",
      "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 128, \"num_hidden_layers\": 4,\n"
      " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 32, \"max_position_embeddings\": 2048,\n"
      " \"moe_intermediate_size\": 128, \"intermediate_size\": 384, \"mlp_only_layers\": [0], \"num_experts\": 16,\n"
      " \"num_experts_per_tok\": 2, \"norm_topk_prob\": true, \"scoring_func\": \"sigmoid\", \"n_group\": 4,\n"
      " \"topk_group\": 2, \"n_shared_experts\": 1, \"routed_scaling_factor\": 1.0, \"router_bias_update_rate\": "
      "0.001,\n"
      " \"router_aux_loss_coef\": 0.0, \"seq_aux_loss_coef\": 0.0001, \"rms_norm_eps\": 1e-6,\n"
      " \"tie_word_embeddings\": false}\n" },
};

enum { NUM_PRESETS = sizeof presets / sizeof presets[0] };

const char *fp8flow_preset_name(int64_t index)
{
    return index >= 0 && index < NUM_PRESETS ? presets[index].name : NULL;
}

const char *fp8flow_preset_json(int64_t index)
{
    return index >= 0 && index < NUM_PRESETS ? presets[index].json : NULL;
}

fp8flow_status f8_model_config_load(const char *model, f8_buffer *text, f8_model_config *config, f8_buffer *ignored)
{
    *text = (f8_buffer){ 0 };
    for (int i = 0; i < NUM_PRESETS; i++)
        if (strcmp(model, presets[i].name) == 0) {
            f8_buffer_text(text, presets[i].json);
            F8_TRY(f8_buffer_check(text, model));
            return f8_model_config_parse(model, presets[i].json, strlen(presets[i].json), config, ignored);
        }
    fp8flow_status status = f8_file_read_all(model, F8_JSON_CONFIG_LIMIT, text);
    if (status != FP8FLOW_OK && !strchr(model, '/') && !strchr(model, '.'))
        return f8_fail_in(status, "model \"%.80s\" is neither a preset (tiny, small, tiny-sigmoid) nor a file", model);
    F8_TRY(status);
    return f8_model_config_parse(model, text->data, text->size, config, ignored);
}

static int router_equal(const fp8flow_router_config *a, const fp8flow_router_config *b)
{
    return a->num_experts == b->num_experts && a->top_k == b->top_k && a->score == b->score &&
           a->gate_rule == b->gate_rule && a->gate_scale == b->gate_scale && a->num_groups == b->num_groups &&
           a->top_groups == b->top_groups && a->group_score == b->group_score &&
           a->sequence_length == b->sequence_length && a->aux_coef == b->aux_coef &&
           a->sequence_coef == b->sequence_coef && a->z_coef == b->z_coef;
}

int f8_model_config_equal(const f8_model_config *a, const f8_model_config *b)
{
    if (a->num_dense_layers != b->num_dense_layers) return 0;
    for (int64_t i = 0; i < a->num_dense_layers; i++)
        if (a->dense_layer[i] != b->dense_layer[i]) return 0;
    return a->vocab_size == b->vocab_size && a->hidden == b->hidden && a->num_layers == b->num_layers &&
           a->num_heads == b->num_heads && a->num_kv_heads == b->num_kv_heads && a->head_dim == b->head_dim &&
           a->max_positions == b->max_positions && a->expert_width == b->expert_width &&
           a->dense_width == b->dense_width && a->shared_width == b->shared_width && a->sparse_step == b->sparse_step &&
           a->rope_theta == b->rope_theta && a->norm_eps == b->norm_eps && a->init_std == b->init_std &&
           a->bias_update_rate == b->bias_update_rate && a->tie_embeddings == b->tie_embeddings &&
           router_equal(&a->router, &b->router);
}
