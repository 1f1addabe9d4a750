/* test_generate.c - text from a checkpoint: decoding with the cache of keys and values says what the whole model says,
 * sampling repeats, and bad requests are refused. */
#include "training.h"

static const char *corpus_data[1];
static char model_path[400], output_path[400];

static int set_up(void **state)
{
    int failed = make_folder(state);
    if (failed) return failed;
    corpus_data[0] = strdup(put_corpus("corpus.txt", 20000, 1));
    snprintf(output_path, sizeof output_path, "%s/out", test_folder);
    snprintf(model_path, sizeof model_path, "%s/model.json", test_folder);
    return 0;
}

static int tear_down(void **state)
{
    free((void *)(uintptr_t)corpus_data[0]);
    return remove_folder(state);
}

static void train(const char *json, const char *recipe)
{
    put_text("model.json", json);
    run r = make_run(model_path, corpus_data);
    r.options.recipe = recipe;
    r.options.output = output_path;
    r.until = 25;
    assert_ok(try_run(&r));
}

/* ---- Generated tokens ---- */

typedef struct {
    int32_t tokens[300];
    int64_t count, most;
} text;

static int32_t collect(void *user, int32_t token)
{
    text *t = user;
    t->tokens[t->count++] = token;
    return t->count >= t->most;
}

static fp8flow_status generate(const int32_t *prompt, int64_t size, fp8flow_generate_options options, text *out)
{
    fp8flow_context *context = make_context(FP8FLOW_CPU, 1);
    *out = (text){ .most = 300 };
    fp8flow_status status = fp8flow_generate(context, output_path, prompt, size, &options, collect, out);
    fp8flow_context_destroy(context);
    return status;
}

static void make_prompt(int32_t *prompt, int64_t size)
{
    size_t bytes;
    char *corpus = get_file(corpus_data[0], &bytes);
    for (int64_t i = 0; i < size; i++) prompt[i] = (unsigned char)corpus[i];
    free(corpus);
}

/* ---- The whole model at every position ---- */

typedef struct {
    const int32_t *tokens; /* prompt, then what was generated */
    int64_t prompt, generated, wrong;
    double largest_gap; /* of a token that is not the most likely one: how much less likely it is, in nat */
} replay;

/* Logits of the last token of tokens[0..count), from scratch. */
static fp8flow_status whole_logits(f8_model *m, const int32_t *tokens, int64_t count)
{
    int32_t targets[300] = { 0 };
    double loss;
    m->logit_rows = 1; /* the last row is then what stays */
    f8_micro_batch batch = { tokens, targets, 1, count, 0.0f, 0.0f };
    return f8_model_forward(m, &batch, &loss);
}

static fp8flow_status replay_model(fp8flow_comm *comm, replay *r, fp8flow_context *context, f8_model_config *config)
{
    char *path = NULL;
    f8_buffer json;
    f8_checkpoint_state state;
    f8_model *m = NULL;
    F8_TRY(f8_checkpoint_find(output_path, &path));
    F8_TRY(f8_checkpoint_open(path, &state, &json));
    F8_TRY(f8_model_config_parse("config.json", json.data, json.size, config, NULL));
    f8_model_options options = { state.recipe, FP8FLOW_FULL, 300, 1, F8_FOR_INFERENCE, 0 };
    config->router.sequence_coef = 0.0f;
    F8_TRY(f8_model_create(context, comm, config, &options, &m));
    F8_TRY(f8_checkpoint_load(path, &state, m));
    F8_TRY(f8_model_publish_from_master(m));
    for (int64_t i = 0; i < r->generated; i++) {
        F8_TRY(whole_logits(m, r->tokens, r->prompt + i));
        int32_t best = 0, chosen = r->tokens[r->prompt + i];
        for (int32_t v = 1; v < 256; v++)
            if (m->logits[v] > m->logits[best]) best = v;
        double gap = (double)m->logits[best] - (double)m->logits[chosen];
        r->wrong += best != chosen;
        if (gap > r->largest_gap) r->largest_gap = gap;
    }
    f8_model_destroy(m);
    f8_buffer_free(&json);
    free(path);
    return FP8FLOW_OK;
}

static fp8flow_status replay_on_rank(fp8flow_comm *comm, void *user)
{
    fp8flow_context *context = NULL;
    f8_model_config *config = calloc(1, sizeof *config);
    F8_REQUIRE(config, ENOMEM, "test");
    F8_TRY(test_context_create(&(fp8flow_context_options){ .backend = FP8FLOW_CPU, .num_threads = 1 }, &context));
    fp8flow_status status = replay_model(comm, user, context, config);
    fp8flow_context_destroy(context);
    free(config);
    return status;
}

/* Decoding runs the same operators on the same rows in other groups; products of one row and of many may differ in the
 * order of their sums, hence in the last bit of BF16: logits within 2^-7 relative. A choice between two tokens that are
 * closer than that may differ; no other. */
static void check_greedy(const char *json, const char *recipe)
{
    static const int64_t prompts[] = { 1, 5, 128, 130 };
    train(json, recipe);
    for (size_t i = 0; i < sizeof prompts / sizeof prompts[0]; i++) {
        int32_t tokens[300];
        text out;
        make_prompt(tokens, prompts[i]);
        assert_ok(generate(tokens, prompts[i], (fp8flow_generate_options){ .max_tokens = 24 }, &out));
        assert_int_equal(out.count, 24);
        memcpy(tokens + prompts[i], out.tokens, 24 * sizeof *tokens);
        replay r = { tokens, prompts[i], 24, 0, 0.0 };
        assert_ok(fp8flow_run_ranks(1, replay_on_rank, &r));
        if (r.wrong > 1 || r.largest_gap > 0.05)
            fail_msg("%s, prompt of %d: %d of 24 tokens differ, by up to %g", recipe, (int)prompts[i], (int)r.wrong,
                     r.largest_gap);
    }
}

static void test_greedy_decoding_is_the_argmax_of_the_whole_model(void **state)
{
    (void)state;
    check_greedy(MICRO_SOFTMAX, "bf16");
    check_greedy(MICRO_SOFTMAX, "flow");
    check_greedy(MICRO_SIGMOID, "flow");
}

static void test_a_trained_model_continues_its_corpus(void **state)
{
    (void)state;
    train(MICRO_SOFTMAX, "flow");
    const int32_t prompt[] = { 'r', 'o', 'u', 't', 'e', 'r', ' ' };
    text out;
    assert_ok(generate(prompt, 7, (fp8flow_generate_options){ .max_tokens = 100 }, &out));
    for (int64_t i = 0; i < out.count; i++)
        assert_true(out.tokens[i] == '\n' || out.tokens[i] == ' ' || out.tokens[i] == '.' ||
                    (out.tokens[i] >= 'a' && out.tokens[i] <= 'z'));
    assert_int_equal(out.count, 100);
}

/* ---- Sampling ---- */

static int same_text(const text *a, const text *b)
{
    return a->count == b->count && memcmp(a->tokens, b->tokens, (size_t)a->count * sizeof *a->tokens) == 0;
}

static void test_sampling_is_a_function_of_the_seed(void **state)
{
    (void)state;
    train(MICRO_SOFTMAX, "bf16");
    int32_t prompt[20];
    text greedy, one, again, other, most_likely, cold;
    make_prompt(prompt, 20);
    assert_ok(generate(prompt, 20, (fp8flow_generate_options){ 40, 0.0, 0, 1 }, &greedy));
    assert_ok(generate(prompt, 20, (fp8flow_generate_options){ 40, 1.0, 0, 1 }, &one));
    assert_ok(generate(prompt, 20, (fp8flow_generate_options){ 40, 1.0, 0, 1 }, &again));
    assert_ok(generate(prompt, 20, (fp8flow_generate_options){ 40, 1.0, 0, 2 }, &other));
    assert_ok(generate(prompt, 20, (fp8flow_generate_options){ 40, 5.0, 1, 3 }, &most_likely));
    assert_ok(generate(prompt, 20, (fp8flow_generate_options){ 40, 1e-9, 0, 3 }, &cold));
    assert_true(same_text(&one, &again));
    assert_false(same_text(&one, &other));
    assert_true(same_text(&greedy, &most_likely)); /* top_k 1 */
    assert_true(same_text(&greedy, &cold));
    /* top_k as large as the vocabulary, or larger, is no limit. */
    assert_ok(generate(prompt, 20, (fp8flow_generate_options){ 40, 1.0, 1000, 1 }, &again));
    assert_true(same_text(&one, &again));
}

/* With top_k k only k different first tokens come, and over many seeds all of them do. */
static void test_top_k_limits_the_choice(void **state)
{
    (void)state;
    train(MICRO_SOFTMAX, "bf16");
    const int32_t prompt[] = { ' ' };
    int seen[256] = { 0 }, different = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        text out;
        assert_ok(generate(prompt, 1, (fp8flow_generate_options){ 1, 3.0, 3, seed }, &out));
        assert_int_equal(out.count, 1);
        different += !seen[out.tokens[0]]++;
    }
    assert_int_equal(different, 3);
}

/* ---- Ends and refusals ---- */

static void test_text_ends_where_it_should(void **state)
{
    (void)state;
    train(MICRO_SOFTMAX, "bf16");
    int32_t prompt[300];
    text out;
    make_prompt(prompt, 300);
    assert_ok(generate(NULL, 0, (fp8flow_generate_options){ .max_tokens = 3 }, &out)); /* from the separator */
    assert_int_equal(out.count, 3);
    const int32_t separator = 0;
    text same;
    assert_ok(generate(&separator, 1, (fp8flow_generate_options){ .max_tokens = 3 }, &same));
    assert_true(same_text(&out, &same));
    assert_ok(generate(prompt, 3, (fp8flow_generate_options){ .max_tokens = 0 }, &out));
    assert_int_equal(out.count, 0);
    /* 256 positions: the last of them predicts one token more. */
    assert_ok(generate(prompt, 250, (fp8flow_generate_options){ .max_tokens = 100 }, &out));
    assert_int_equal(out.count, 7);
    assert_ok(generate(prompt, 256, (fp8flow_generate_options){ .max_tokens = 100 }, &out));
    assert_int_equal(out.count, 1);
    fp8flow_context *context = make_context(FP8FLOW_CPU, 2);
    fp8flow_generate_options options = { .max_tokens = 50 };
    text stopped = { .most = 4 };
    assert_ok(fp8flow_generate(context, output_path, prompt, 9, &options, collect, &stopped));
    assert_int_equal(stopped.count, 4); /* the callback said stop */
    fp8flow_context_destroy(context);
}

static void test_bad_requests_are_refused(void **state)
{
    (void)state;
    train(MICRO_SOFTMAX, "bf16");
    int32_t prompt[300];
    text out;
    make_prompt(prompt, 300);
    fp8flow_generate_options fine = { .max_tokens = 5 }, o;
    assert_fails(generate(prompt, 257, fine, &out), FP8FLOW_EINVAL, "the prompt has 257 tokens");
    assert_fails(generate(prompt, -1, fine, &out), FP8FLOW_EINVAL, "-1 tokens");
    assert_fails(generate(NULL, 3, fine, &out), FP8FLOW_EINVAL, "NULL");
    prompt[2] = 256;
    assert_fails(generate(prompt, 5, fine, &out), FP8FLOW_EINVAL, "token 2 of the prompt is 256");
    prompt[2] = -1;
    assert_fails(generate(prompt, 5, fine, &out), FP8FLOW_EINVAL, "token 2 of the prompt is -1");
    prompt[2] = 'a';
    o = fine, o.max_tokens = -1;
    assert_fails(generate(prompt, 5, o, &out), FP8FLOW_EINVAL, "max_tokens = -1");
    o = fine, o.top_k = -1;
    assert_fails(generate(prompt, 5, o, &out), FP8FLOW_EINVAL, "top_k = -1");
    o = fine, o.temperature = NAN;
    assert_fails(generate(prompt, 5, o, &out), FP8FLOW_EINVAL, "temperature");
    o = fine, o.temperature = -0.5;
    assert_fails(generate(prompt, 5, o, &out), FP8FLOW_EINVAL, "temperature");
    o = fine, o.temperature = INFINITY;
    assert_fails(generate(prompt, 5, o, &out), FP8FLOW_EINVAL, "temperature");
    snprintf(output_path, sizeof output_path, "%s/none", test_folder);
    assert_fails(generate(prompt, 5, fine, &out), FP8FLOW_EIO, "none");
    snprintf(output_path, sizeof output_path, "%s", test_folder);
    assert_fails(generate(prompt, 5, fine, &out), FP8FLOW_EFORMAT, "holds no complete checkpoint");
    assert_int_equal(out.count, 0);
}

#define generate_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        generate_test(test_greedy_decoding_is_the_argmax_of_the_whole_model),
        generate_test(test_a_trained_model_continues_its_corpus),
        generate_test(test_sampling_is_a_function_of_the_seed),
        generate_test(test_top_k_limits_the_choice),
        generate_test(test_text_ends_where_it_should),
        generate_test(test_bad_requests_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
