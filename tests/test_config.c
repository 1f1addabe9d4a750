/* test_config.c - config.json: presets, two hundred wrong values, each refused with one line that names its key; sizes
 * beyond any machine, refused before memory is asked for. */
#include "training.h"

#include "io/json.h"

/* ---- A configuration as a list of keys and values ---- */

typedef struct {
    const char *key, *value;
} pair;

/* Every key that means something, with a value that is fine. */
static const pair valid[] = {
    { "model_type", "\"qwen3_moe\"" },
    { "vocab_size", "256" },
    { "hidden_size", "64" },
    { "num_hidden_layers", "4" },
    { "num_attention_heads", "4" },
    { "num_key_value_heads", "2" },
    { "head_dim", "16" },
    { "max_position_embeddings", "128" },
    { "moe_intermediate_size", "32" },
    { "intermediate_size", "48" },
    { "num_experts", "8" },
    { "num_experts_per_tok", "2" },
    { "norm_topk_prob", "true" },
    { "decoder_sparse_step", "1" },
    { "mlp_only_layers", "[0, 2]" },
    { "rope_theta", "10000.0" },
    { "rms_norm_eps", "1e-6" },
    { "initializer_range", "0.02" },
    { "tie_word_embeddings", "false" },
    { "router_aux_loss_coef", "0.001" },
    { "hidden_act", "\"silu\"" },
    { "attention_bias", "false" },
    { "attention_dropout", "0.0" },
    { "use_sliding_window", "false" },
    { "n_shared_experts", "1" },
    { "scoring_func", "\"softmax\"" },
    { "n_group", "4" },
    { "topk_group", "2" },
    { "routed_scaling_factor", "1.0" },
    { "seq_aux_loss_coef", "0.0" },
    { "router_z_loss_coef", "0.0" },
    { "router_bias_update_rate", "0.0" },
};

enum { NUM_VALID = sizeof valid / sizeof valid[0] };

/* The valid configuration with `key` set to `value` (added if it is not there), or without it if value is NULL. */
static void write_config(f8_buffer *text, const char *key, const char *value)
{
    int found = 0, written = 0;
    f8_buffer_text(text, "{");
    for (int i = 0; i < NUM_VALID; i++) {
        int mine = key && strcmp(key, valid[i].key) == 0;
        found |= mine;
        const char *use = mine ? value : valid[i].value;
        if (use) f8_buffer_format(text, "%s\"%s\": %s", written++ ? ", " : "", valid[i].key, use);
    }
    if (key && !found) f8_buffer_format(text, ", \"%s\": %s", key, value);
    f8_buffer_text(text, "}");
    assert_ok(f8_buffer_check(text, "test"));
}

static fp8flow_status parse_with(const char *key, const char *value, f8_model_config *config, f8_buffer *ignored)
{
    f8_buffer text = { 0 };
    write_config(&text, key, value);
    fp8flow_status status = f8_model_config_parse("config.json", text.data, text.size, config, ignored);
    f8_buffer_free(&text);
    return status;
}

/* Refused, in one line that starts with the file and names what is wrong. */
static void assert_refused(const char *key, const char *value, const char *named)
{
    f8_model_config config;
    fp8flow_status status = parse_with(key, value, &config, NULL);
    const char *message = fp8flow_last_error();
    if (status != FP8FLOW_EFORMAT)
        fail_msg("%s = %s: got %s", key, value ? value : "(missing)", fp8flow_status_name(status));
    if (strncmp(message, "config.json: ", 13) != 0 || !strstr(message, named) || strchr(message, '\n') ||
        strlen(message) > 300)
        fail_msg("%s = %s: message \"%s\"", key, value ? value : "(missing)", message);
}

static void assert_accepted(const char *key, const char *value)
{
    f8_model_config config;
    if (parse_with(key, value, &config, NULL) != FP8FLOW_OK)
        fail_msg("%s = %s: %s", key, value ? value : "(missing)", fp8flow_last_error());
}

/* ---- Fine ---- */

static void test_presets_parse_and_ignore_nothing(void **state)
{
    (void)state;
    int64_t count = 0;
    for (; fp8flow_preset_name(count); count++) {
        f8_model_config config;
        f8_buffer text, ignored = { 0 };
        assert_ok(f8_model_config_load(fp8flow_preset_name(count), &text, &config, &ignored));
        assert_string_equal(text.data, fp8flow_preset_json(count));
        assert_int_equal(ignored.size, 0);
        assert_int_equal(config.vocab_size, 256);
        f8_buffer_free(&text);
        f8_buffer_free(&ignored);
    }
    assert_int_equal(count, 3);
    assert_null(fp8flow_preset_name(-1));
    assert_null(fp8flow_preset_json(count));
}

static void test_values_arrive(void **state)
{
    (void)state;
    f8_model_config c;
    assert_ok(parse_with(NULL, NULL, &c, NULL));
    assert_int_equal(c.hidden, 64);
    assert_int_equal(c.num_layers, 4);
    assert_int_equal(c.num_kv_heads, 2);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.expert_width, 32);
    assert_int_equal(c.dense_width, 48);
    assert_int_equal(c.shared_width, 32);
    assert_int_equal(c.router.num_experts, 8);
    assert_int_equal(c.router.top_k, 2);
    assert_int_equal(c.router.num_groups, 4);
    assert_int_equal(c.router.top_groups, 2);
    assert_int_equal(c.router.gate_rule, FP8FLOW_GATE_NORMALIZED);
    for (int layer = 0; layer < 4; layer++) assert_int_equal(f8_layer_is_sparse(&c, layer), layer % 2);
}

static void test_optional_keys_have_defaults(void **state)
{
    (void)state;
    static const char *const required[] = { "model_type",        "vocab_size",          "hidden_size",
                                            "num_hidden_layers", "num_attention_heads", "moe_intermediate_size",
                                            "num_experts",       "num_experts_per_tok" };
    for (int i = 0; i < NUM_VALID; i++) {
        int is_required = 0;
        for (size_t j = 0; j < sizeof required / sizeof required[0]; j++)
            is_required |= strcmp(valid[i].key, required[j]) == 0;
        /* With dense layers, their width is needed; topk_group 2 needs its groups. */
        if (strcmp(valid[i].key, "intermediate_size") == 0 || strcmp(valid[i].key, "n_group") == 0) is_required = 1;
        if (!is_required) {
            assert_accepted(valid[i].key, NULL);
            assert_accepted(valid[i].key, "null");
        }
    }
    f8_model_config c;
    assert_ok(parse_with("num_key_value_heads", NULL, &c, NULL));
    assert_int_equal(c.num_kv_heads, 4);
    assert_ok(parse_with("head_dim", NULL, &c, NULL));
    assert_int_equal(c.head_dim, 16);
    assert_ok(parse_with("norm_topk_prob", NULL, &c, NULL));
    assert_int_equal(c.router.gate_rule, FP8FLOW_GATE_RAW);
}

static void test_unknown_keys_are_listed(void **state)
{
    (void)state;
    f8_model_config config;
    f8_buffer ignored = { 0 };
    assert_ok(parse_with("mlp_bias_of_tomorrow", "{\"deep\": [1]}", &config, &ignored));
    assert_string_equal(ignored.data, "mlp_bias_of_tomorrow");
    f8_buffer_free(&ignored);
    ignored = (f8_buffer){ 0 };
    assert_ok(parse_with("b\": 1, \"c", "2", &config, &ignored));
    assert_string_equal(ignored.data, "b, c");
    f8_buffer_free(&ignored);
    ignored = (f8_buffer){ 0 };
    assert_ok(parse_with("transformers_version", "\"4.51.0\"", &config, &ignored));
    assert_int_equal(ignored.size, 0);
}

/* ---- Refused: by kind of key ---- */

static const char *const integer_keys[] = { "vocab_size",
                                            "hidden_size",
                                            "num_hidden_layers",
                                            "num_attention_heads",
                                            "num_key_value_heads",
                                            "head_dim",
                                            "max_position_embeddings",
                                            "moe_intermediate_size",
                                            "intermediate_size",
                                            "num_experts",
                                            "num_experts_per_tok",
                                            "decoder_sparse_step",
                                            "n_shared_experts",
                                            "n_group",
                                            "topk_group" };
static const char *const number_keys[] = { "rope_theta",           "rms_norm_eps",       "initializer_range",
                                           "router_aux_loss_coef", "attention_dropout",  "routed_scaling_factor",
                                           "seq_aux_loss_coef",    "router_z_loss_coef", "router_bias_update_rate" };
static const char *const truth_keys[] = { "norm_topk_prob", "tie_word_embeddings", "attention_bias",
                                          "use_sliding_window" };
static const char *const choice_keys[] = { "model_type", "hidden_act", "scoring_func" };

static int64_t refuse_all(const char *const *keys, size_t num_keys, const char *const *values, size_t num_values)
{
    for (size_t i = 0; i < num_keys; i++)
        for (size_t j = 0; j < num_values; j++) assert_refused(keys[i], values[j], keys[i]);
    return (int64_t)(num_keys * num_values);
}

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void test_wrong_types_and_ranges_name_the_key(void **state)
{
    (void)state;
    static const char *const not_integers[] = { "\"16\"",
                                                "true",
                                                "[]",
                                                "{}",
                                                "-1",
                                                "-16",
                                                "16.5",
                                                "16.0",
                                                "1e18",
                                                "1e3",
                                                "\"\"",
                                                "[16]",
                                                "-0.0",
                                                "1000000000000000000",
                                                "9223372036854775807",
                                                "-9223372036854775808" };
    static const char *const not_numbers[] = { "\"1\"",   "true",  "[]",      "{}",          "-1",
                                               "-1e-300", "1e300", "\"NaN\"", "\"Infinity\"" };
    static const char *const not_truths[] = { "0", "1", "\"true\"", "[]", "{}", "0.0" };
    static const char *const not_choices[] = { "0",          "true", "\"\"",           "\"Softmax\"",
                                               "[\"silu\"]", "{}",   "\"qwen3_moe \"", "\"deepseek_v3\"",
                                               "\"gelu\"" };
    int64_t cases = refuse_all(integer_keys, COUNT(integer_keys), not_integers, COUNT(not_integers)) +
                    refuse_all(number_keys, COUNT(number_keys), not_numbers, COUNT(not_numbers)) +
                    refuse_all(truth_keys, COUNT(truth_keys), not_truths, COUNT(not_truths)) +
                    refuse_all(choice_keys, COUNT(choice_keys), not_choices, COUNT(not_choices));
    assert_true(cases >= 120);
}

static void test_required_keys_must_be_there(void **state)
{
    (void)state;
    static const char *const keys[] = { "model_type",        "vocab_size",          "hidden_size",
                                        "num_hidden_layers", "num_attention_heads", "moe_intermediate_size",
                                        "intermediate_size", "num_experts",         "num_experts_per_tok" };
    for (size_t i = 0; i < COUNT(keys); i++) {
        assert_refused(keys[i], NULL, keys[i]);
        assert_refused(keys[i], "null", keys[i]);
    }
}

/* Values that are right alone but do not go together, and values that mean something we do not do. */
static void test_impossible_combinations_name_the_key(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value, *named;
    } cases[] = {
        { "vocab_size", "255", "vocab_size" }, /* bytes need 256 */
        { "vocab_size", "0", "vocab_size" },
        { "hidden_size", "0", "hidden_size" },
        { "hidden_size", "72", "hidden_size" },
        { "hidden_size", "8", "hidden_size" },
        { "hidden_size", "2147483648", "hidden_size" },
        { "num_hidden_layers", "0", "num_hidden_layers" },
        { "num_hidden_layers", "1025", "num_hidden_layers" },
        { "num_hidden_layers", "2", "mlp_only_layers" }, /* layer 2 is not there */
        { "num_attention_heads", "0", "num_attention_heads" },
        { "num_attention_heads", "3", "num_attention_heads" },
        { "num_attention_heads", "1", "num_key_value_heads" },
        { "num_key_value_heads", "0", "num_key_value_heads" },
        { "num_key_value_heads", "3", "num_key_value_heads" },
        { "num_key_value_heads", "8", "num_key_value_heads" },
        { "head_dim", "0", "head_dim" },
        { "head_dim", "1", "head_dim" },
        { "head_dim", "15", "head_dim" },
        { "head_dim", "1026", "head_dim" },
        { "max_position_embeddings", "0", "max_position_embeddings" },
        { "moe_intermediate_size", "0", "moe_intermediate_size" },
        { "moe_intermediate_size", "24", "moe_intermediate_size" },
        { "intermediate_size", "40", "intermediate_size" },
        { "num_experts", "0", "num_experts" },
        { "num_experts", "4097", "num_experts" },
        { "num_experts", "1048576", "num_experts" },
        { "num_experts", "1", "num_experts_per_tok" },
        { "num_experts", "10", "n_group" },
        { "num_experts_per_tok", "0", "num_experts_per_tok" },
        { "num_experts_per_tok", "9", "num_experts_per_tok" },
        { "num_experts_per_tok", "5", "topk_group" },
        { "n_group", "3", "n_group" },
        { "n_group", "9", "n_group" },
        { "n_group", "0", "n_group" },
        { "n_group", "1", "topk_group" },
        { "topk_group", "0", "topk_group" },
        { "topk_group", "5", "topk_group" },
        { "n_shared_experts", "65", "n_shared_experts" },
        { "decoder_sparse_step", "0", "decoder_sparse_step" },
        { "mlp_only_layers", "[4]", "mlp_only_layers" },
        { "mlp_only_layers", "[-1]", "mlp_only_layers" },
        { "mlp_only_layers", "[0.5]", "mlp_only_layers" },
        { "mlp_only_layers", "[\"0\"]", "mlp_only_layers" },
        { "mlp_only_layers", "[[0]]", "mlp_only_layers" },
        { "mlp_only_layers", "0", "mlp_only_layers" },
        { "mlp_only_layers", "{\"0\": 0}", "mlp_only_layers" },
        { "rope_theta", "0", "rope_theta" },
        { "rope_theta", "0.5", "rope_theta" },
        { "rms_norm_eps", "0", "rms_norm_eps" },
        { "routed_scaling_factor", "0", "routed_scaling_factor" },
        { "attention_dropout", "0.1", "attention_dropout" },
        { "attention_bias", "true", "attention_bias" },
        { "use_sliding_window", "true", "use_sliding_window" },
        { "rope_scaling", "{\"type\": \"yarn\", \"factor\": 4.0}", "rope_scaling" },
        { "rope_scaling", "false", "rope_scaling" },
        { "sliding_window", "\"wide\"", "sliding_window" },
        { "auto_map", "{\"AutoModel\": \"modeling.Model\"}", "auto_map" },
        { "auto_map", "\"x\"", "auto_map" },
        { "model_type", "\"llama\"", "model_type" },
        { "hidden_size", "99999999999999999999", "line 1" }, /* not a 64-bit number: the parser's own message */
        { "hidden_size", "NaN", "line 1" },
        { "rope_theta", "Infinity", "line 1" },
        { "rope_theta", "1e400", "line 1" },
        { "rope_theta", "0x10", "line 1" },
        { "hidden_size", "064", "line 1" },
        { "hidden_size", "64, \"hidden_size\": 64", "hidden_size" },
        { "hidden_act", "\"si\\u0000lu\"", "line 1" },
        { "hidden_act", "\"silu", "line 1" },
    };
    for (size_t i = 0; i < COUNT(cases); i++) assert_refused(cases[i].key, cases[i].value, cases[i].named);
}

static void test_texts_that_are_no_object(void **state)
{
    (void)state;
    static const char *const texts[] = { "",         " ",
                                         "[]",       "7",
                                         "\"x\"",    "null",
                                         "{",        "{}}",
                                         "{\"a\"}",  "\xEF\xBB\xBF{}",
                                         "{} {}",    "{\"model_type\": \"\xFF\"}",
                                         "// no\n{}" };
    f8_model_config config;
    for (size_t i = 0; i < COUNT(texts); i++)
        assert_fails(f8_model_config_parse("config.json", texts[i], strlen(texts[i]), &config, NULL), FP8FLOW_EFORMAT,
                     "config.json");
    assert_fails(f8_model_config_parse("config.json", "{}\0", 3, &config, NULL), FP8FLOW_EFORMAT, "NUL");
    assert_fails(f8_model_config_parse("config.json", "{}", 2, &config, NULL), FP8FLOW_EFORMAT, "model_type");
}

/* Every prefix of a valid text, and every text with one byte replaced, is accepted or refused, never more. */
static void test_damaged_texts(void **state)
{
    (void)state;
    f8_buffer text = { 0 };
    f8_model_config config;
    write_config(&text, NULL, NULL);
    for (size_t size = 0; size < text.size; size++)
        assert_int_equal(f8_model_config_parse("c", text.data, size, &config, NULL), FP8FLOW_EFORMAT);
    for (size_t at = 0; at < text.size; at++) {
        char kept = text.data[at];
        for (uint64_t i = 0; i < 4; i++) {
            text.data[at] = (char)f8_random(1, at, i);
            fp8flow_status status = f8_model_config_parse("c", text.data, text.size, &config, NULL);
            assert_true(status == FP8FLOW_OK || status == FP8FLOW_EFORMAT);
        }
        text.data[at] = kept;
    }
    f8_buffer_free(&text);
}

static void test_files_that_are_no_model(void **state)
{
    (void)state;
    f8_model_config config;
    f8_buffer text;
    assert_fails(f8_model_config_load("tinny", &text, &config, NULL), FP8FLOW_EIO, "tiny-sigmoid");
    assert_fails(f8_model_config_load("./no/config.json", &text, &config, NULL), FP8FLOW_EIO, "./no/config.json");
    assert_fails(f8_model_config_load(test_folder, &text, &config, NULL), FP8FLOW_EIO, test_folder);
    char *large = calloc(1, F8_JSON_CONFIG_LIMIT + 1);
    memset(large, ' ', F8_JSON_CONFIG_LIMIT + 1);
    const char *path = put_file("large.json", large, F8_JSON_CONFIG_LIMIT + 1);
    assert_fails(f8_model_config_load(path, &text, &config, NULL), FP8FLOW_EFORMAT, "large.json");
    free(large);
}

/* ---- Sizes beyond the machine ---- */

typedef struct {
    f8_model_config config;
    f8_model_options options;
} creation;

static fp8flow_status create_on_rank(fp8flow_comm *comm, void *user)
{
    creation *c = user;
    f8_model *model = NULL;
    fp8flow_context *context = NULL;
    F8_TRY(test_context_create(&(fp8flow_context_options){ .backend = FP8FLOW_CPU, .num_threads = 1 }, &context));
    fp8flow_status status = f8_model_create(context, comm, &c->config, &c->options, &model);
    f8_model_destroy(model);
    fp8flow_context_destroy(context);
    return status;
}

/* Huge in one direction each; the message says how much it would be, and nothing was touched. */
static void test_models_beyond_the_machine_are_refused_with_their_size(void **state)
{
    (void)state;
    static const struct {
        const char *json, *named;
        int64_t tokens;
        fp8flow_status status;
    } cases[] = {
        { MICRO_KEYS("1024", ""), "bytes", (int64_t)1 << 30, FP8FLOW_ENOMEM },
        { "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 1048576, \"num_hidden_layers\": 100, "
          "\"num_attention_heads\": 64, \"head_dim\": 128, \"moe_intermediate_size\": 16, \"num_experts\": 1, "
          "\"num_experts_per_tok\": 1}",
          "2^40", 8, FP8FLOW_EFORMAT },
        { "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 1048576, \"num_hidden_layers\": 8, "
          "\"num_attention_heads\": 64, \"head_dim\": 128, \"moe_intermediate_size\": 16, \"num_experts\": 1, "
          "\"num_experts_per_tok\": 1}",
          "bytes", 8, FP8FLOW_ENOMEM },
        { "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 1048576, \"num_hidden_layers\": 1, "
          "\"num_attention_heads\": 1, \"head_dim\": 16, \"moe_intermediate_size\": 1048576, \"num_experts\": 4096, "
          "\"num_experts_per_tok\": 1}",
          "2^40", 8, FP8FLOW_EFORMAT },
        { "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 1024, \"num_hidden_layers\": 64, "
          "\"num_attention_heads\": 16, \"moe_intermediate_size\": 1024, \"num_experts\": 1024, "
          "\"num_experts_per_tok\": 1}",
          "bytes", 8, FP8FLOW_ENOMEM },
        /* Few parameters, but activations whose number of elements exceeds 63 bits. */
        { "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 16, \"num_hidden_layers\": 256, "
          "\"num_attention_heads\": 65536, \"num_key_value_heads\": 1, \"head_dim\": 1024, \"moe_intermediate_size\": "
          "16, \"num_experts\": 1, "
          "\"num_experts_per_tok\": 1}",
          "2^63", (int64_t)1 << 30, FP8FLOW_ENOMEM },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        creation c = { .options = { .recipe = "bf16",
                                    .checkpointing = FP8FLOW_KEEP_ALL,
                                    .max_tokens = cases[i].tokens,
                                    .sequence_length = 1,
                                    .purpose = F8_FOR_TRAINING } };
        assert_ok(f8_model_config_parse("huge", cases[i].json, strlen(cases[i].json), &c.config, NULL));
        assert_fails(fp8flow_run_ranks(1, create_on_rank, &c), cases[i].status, cases[i].named);
    }
}

static void test_a_trainer_of_such_a_model_says_so(void **state)
{
    (void)state;
    const char *data[] = { put_corpus("corpus", 4000, 1) };
    run r = make_run(put_text("huge.json",
                              "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 1048576, "
                              "\"num_hidden_layers\": 12, \"num_attention_heads\": 64, \"head_dim\": 128, "
                              "\"moe_intermediate_size\": 1024, \"num_experts\": 8, \"num_experts_per_tok\": 1}"),
                     data);
    assert_fails(try_run(&r), FP8FLOW_ENOMEM, "bytes");
}

/* ---- Comparison ---- */

/* Every key that changes the model, with another good value. */
static void test_equal_only_if_every_key_is(void **state)
{
    (void)state;
    static const pair other[] = {
        { "vocab_size", "257" },
        { "hidden_size", "80" },
        { "num_hidden_layers", "5" },
        { "num_attention_heads", "2" },
        { "num_key_value_heads", "4" },
        { "head_dim", "32" },
        { "max_position_embeddings", "64" },
        { "moe_intermediate_size", "48" },
        { "intermediate_size", "64" },
        { "num_experts", "16" },
        { "num_experts_per_tok", "1" },
        { "norm_topk_prob", "false" },
        { "decoder_sparse_step", "3" },
        { "mlp_only_layers", "[0]" },
        { "mlp_only_layers", "[0, 3]" },
        { "rope_theta", "20000.0" },
        { "rms_norm_eps", "1e-5" },
        { "initializer_range", "0.03" },
        { "tie_word_embeddings", "true" },
        { "router_aux_loss_coef", "0.002" },
        { "n_shared_experts", "2" },
        { "scoring_func", "\"sigmoid\"" },
        { "n_group", "8" },
        { "topk_group", "3" },
        { "routed_scaling_factor", "2.0" },
        { "seq_aux_loss_coef", "0.5" },
        { "router_z_loss_coef", "0.5" },
        { "router_bias_update_rate", "0.5" },
    };
    f8_model_config *first = calloc(1, sizeof *first), *second = malloc(sizeof *second);
    assert_non_null(first);
    assert_non_null(second);
    memset(second, 0xFF, sizeof *second); /* what lies between members must not count */
    assert_ok(parse_with(NULL, NULL, first, NULL));
    assert_ok(parse_with(NULL, NULL, second, NULL));
    assert_true(f8_model_config_equal(first, second));
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        assert_ok(parse_with(other[i].key, other[i].value, second, NULL));
        if (f8_model_config_equal(first, second)) fail_msg("%s does not count", other[i].key);
    }
    free(first);
    free(second);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_presets_parse_and_ignore_nothing),
        cmocka_unit_test(test_values_arrive),
        cmocka_unit_test(test_optional_keys_have_defaults),
        cmocka_unit_test(test_unknown_keys_are_listed),
        cmocka_unit_test(test_wrong_types_and_ranges_name_the_key),
        cmocka_unit_test(test_required_keys_must_be_there),
        cmocka_unit_test(test_impossible_combinations_name_the_key),
        cmocka_unit_test(test_texts_that_are_no_object),
        cmocka_unit_test(test_damaged_texts),
        cmocka_unit_test(test_equal_only_if_every_key_is),
        folder_test(test_files_that_are_no_model),
        cmocka_unit_test(test_models_beyond_the_machine_are_refused_with_their_size),
        folder_test(test_a_trainer_of_such_a_model_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
