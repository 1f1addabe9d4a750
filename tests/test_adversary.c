/* test_adversary.c - regressions found from outside, through the public interface. */
#include "files.h"

#include "fp8flow.h"

static const char model_json[] =
    "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 16, \"num_hidden_layers\": 1,"
    " \"num_attention_heads\": 1, \"moe_intermediate_size\": 16, \"num_experts\": 2, \"num_experts_per_tok\": 1}";

typedef struct {
    fp8flow_train_options options;
    int64_t steps;
} run;

/* `steps` steps, a checkpoint after each. */
static fp8flow_status train(fp8flow_comm *comm, void *user)
{
    const run *r = user;
    fp8flow_trainer *trainer = NULL;
    fp8flow_step_metrics metrics;
    fp8flow_context *context = make_context(FP8FLOW_CPU, 1);
    fp8flow_status status = fp8flow_trainer_create(context, comm, &r->options, &trainer);
    for (int64_t i = 0; i < r->steps && status == FP8FLOW_OK; i++) {
        status = fp8flow_trainer_step(trainer, &metrics);
        if (status == FP8FLOW_OK) status = fp8flow_trainer_save(trainer);
    }
    fp8flow_trainer_destroy(trainer);
    fp8flow_context_destroy(context);
    return status;
}

static void train_into(const char *output, const char *resume, int64_t steps)
{
    static char text[2000];
    static const char *data;
    memset(text, 'a', sizeof text - 1);
    data = put_text("data.txt", text);
    run r = { .steps = steps };
    fp8flow_train_options_init(&r.options);
    r.options.model = put_text("model.json", model_json);
    r.options.data = &data;
    r.options.num_data = 1;
    r.options.output = output;
    r.options.resume = resume;
    r.options.steps = 8;
    r.options.batch = r.options.micro_batch = 1;
    r.options.sequence_length = 16;
    r.options.validation_sequences = 1;
    r.options.keep_checkpoints = 2;
    assert_ok(fp8flow_run_ranks(1, train, &r));
}

static int exists(const char *name)
{
    return access(in_folder(name), F_OK) == 0;
}

static void test_a_save_removes_what_killed_saves_have_left(void **state)
{
    (void)state;
    assert_int_equal(mkdir(in_folder("run"), 0777), 0);
    assert_int_equal(mkdir(in_folder("run/step-00000777.tmp"), 0777), 0);
    assert_int_equal(mkdir(in_folder("run/step-mine.tmp"), 0777), 0);
    put_text("run/step-00000777.tmp/model-00001-of-00001.safetensors", "half");
    train_into(in_folder("run"), NULL, 3);
    assert_false(exists("run/step-00000777.tmp"));
    assert_true(exists("run/step-mine.tmp"));
    assert_false(exists("run/step-00000001"));
    assert_true(exists("run/step-00000002/COMPLETE"));
    assert_true(exists("run/step-00000003/COMPLETE"));
}

static void test_a_step_saved_again_replaces_its_checkpoint(void **state)
{
    (void)state;
    train_into(in_folder("run"), NULL, 2);
    size_t size = 0, size_again = 0;
    char *first = get_file(in_folder("run/step-00000002/model-00001-of-00001.safetensors"), &size);
    put_text("run/step-00000002/mark", "of the earlier folder");
    train_into(in_folder("run"), in_folder("run/step-00000001"), 1);
    char *again = get_file(in_folder("run/step-00000002/model-00001-of-00001.safetensors"), &size_again);
    assert_int_equal(size, size_again);
    assert_memory_equal(first, again, size);
    assert_false(exists("run/step-00000002/mark"));
    assert_false(exists("run/step-00000002.tmp"));
    free(first);
    free(again);
}

static void test_an_empty_group_needs_its_tensor_scale(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_tensor x = { .cols = 16, .stride = 16 };
    fp8flow_tensor y = { .cols = 16, .stride = 16, .dtype = FP8FLOW_E4M3, .scaling = FP8FLOW_TENSOR };
    fp8flow_quantize_args a = { .x = &x, .rows = &y };
    assert_fails(fp8flow_quantize(c, &a), FP8FLOW_EINVAL, "quantize: rows has no scales, 1 experts need one each");
    float scale = -1.0f;
    y.scale = &scale;
    assert_ok(fp8flow_quantize(c, &a));
    assert_true(scale == 0x1p-126f);
    fp8flow_context_destroy(c);
}

static void test_rows_without_columns_are_counted_before_they_are_walked(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_REFERENCE, 1);
    fp8flow_tensor x = { .rows = INT64_MAX / 4 }, y = { .rows = INT64_MAX / 4, .dtype = FP8FLOW_E4M3 };
    y.scaling = FP8FLOW_ROW128;
    assert_fails(fp8flow_quantize(c, &(fp8flow_quantize_args){ .x = &x, .rows = &y }), FP8FLOW_ESHAPE, "quantize");
    fp8flow_context_destroy(c);
}

static void test_null_handles_are_harmless(void **state)
{
    (void)state;
    fp8flow_moe_observe(NULL, NULL, NULL);
    fp8flow_trainer_observe(NULL, NULL, NULL);
    fp8flow_train_options_init(NULL);
    assert_int_equal(fp8flow_comm_rank(NULL), -1);
    assert_int_equal(fp8flow_comm_size(NULL), -1);
    assert_int_equal(fp8flow_context_calls(NULL, "gemm"), -1);
    assert_fails(fp8flow_comm_max(NULL, NULL), FP8FLOW_EINVAL, "comm_max");
    assert_fails(fp8flow_moe_forward(NULL, NULL, NULL), FP8FLOW_EINVAL, "moe");
    assert_fails(fp8flow_trainer_step(NULL, NULL), FP8FLOW_EINVAL, "trainer_step");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        folder_test(test_a_save_removes_what_killed_saves_have_left),
        folder_test(test_a_step_saved_again_replaces_its_checkpoint),
        cmocka_unit_test(test_an_empty_group_needs_its_tensor_scale),
        cmocka_unit_test(test_rows_without_columns_are_counted_before_they_are_walked),
        cmocka_unit_test(test_null_handles_are_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
