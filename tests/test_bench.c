/* test_bench.c - what `bench layer`, `bench train` and `bench comm` compute beside measuring: variants, layers that
 * fit, FLOP, ratios. */
#include "support.h"

#include "../cli/bench_comm.h"
#include "../cli/bench_layer.h"
#include "../cli/bench_train.h"

static const cli_command command = { .name = "try" };
static const char *const further[] = { "flow+unfused", "flow", NULL };
static const int32_t last_mode[VARIANTS_NUM_MODES] = { 0, 0, 1 };

static void test_baselines_come_first(void **state)
{
    (void)state;
    bench_variants v = { .num_recipes = 0 };
    cli_list named = { .items = { "flow", "deepseek", "blockwise", "flow", "bf16" }, .count = 5 };
    assert_int_equal(variants_choose_recipes(&v, &command, &named, further), CLI_DONE);
    const char *const expected[] = { "bf16", "blockwise", "flow", "deepseek" };
    assert_int_equal(v.num_recipes, 4);
    for (int i = 0; i < 4; i++) assert_string_equal(v.recipes[i], expected[i]);
}

static void test_without_names_there_are_all(void **state)
{
    (void)state;
    bench_variants v = { .num_recipes = 0 };
    cli_list none = { .count = 0 };
    int64_t recipes = 0;
    while (fp8flow_recipe_name(recipes)) recipes++;
    assert_int_equal(variants_choose_recipes(&v, &command, &none, further), CLI_DONE);
    assert_int_equal(v.num_recipes, recipes + 1);
    assert_string_equal(v.recipes[0], "bf16");
    assert_string_equal(v.recipes[1], "blockwise");
    assert_string_equal(v.recipes[recipes], "flow+unfused");
    assert_int_equal(variants_choose_modes(&v, &command, &none, last_mode), CLI_DONE);
    assert_memory_equal(v.has_mode, last_mode, sizeof last_mode);
    cli_list middle = { .items = { "moe_expert" }, .count = 1 };
    assert_int_equal(variants_choose_modes(&v, &command, &middle, last_mode), CLI_DONE);
    assert_true(!v.has_mode[0] && v.has_mode[1] && !v.has_mode[2]);
}

static void test_layers_that_fit(void **state)
{
    (void)state;
    const train_batch batch = { 16, 2, 4096 };
    const train_model *model = train_model_find("v2-lite-cut");
    assert_non_null(model);
    assert_null(train_model_find("v2"));
    /* A layer's 588 million parameters take 18 bytes each, those of the experts 2 more: 11.7 GB. */
    int64_t few = train_layers_that_fit(model, &batch, 70e9), more = train_layers_that_fit(model, &batch, 140e9);
    assert_in_range(few, 3, 5);
    assert_in_range(more - few, 5, 6);
    assert_int_equal(train_layers_that_fit(model, &batch, 1e9), 1);
    assert_int_equal(train_layers_that_fit(model, &batch, 1e15), model->layers);
}

static void test_flops_of_a_layer(void **state)
{
    (void)state;
    const layer_shape shape = { .hidden = 16, .width = 32, .experts = 4, .top_k = 2, .tokens = 10 };
    /* Two products forward, each with two gradients; FC1 is twice as wide: 3 * 2 * (2 + 1) * H * F a row. */
    assert_float_equal(layer_flops(&shape), 18.0 * 16 * 32 * 20, 0);
}

static void test_files_of_a_trainer(void **state)
{
    (void)state;
    const train_batch batch = { 2, 1, 16 };
    train_files files;
    assert_int_equal(train_files_create(&files, train_model_find("demo"), 2, &batch), 0);
    FILE *config = fopen(files.config, "r"), *tokens = fopen(files.tokens, "r");
    assert_non_null(config);
    assert_non_null(tokens);
    assert_int_equal(fseek(tokens, 0, SEEK_END), 0);
    assert_true(ftell(tokens) >= 20 * batch.sequence_length + 1);
    (void)fclose(config);
    (void)fclose(tokens);
    train_files_remove(&files);
    assert_null(fopen(files.config, "r"));
    train_files_remove(&files);
}

static void test_figures_of_the_wire(void **state)
{
    (void)state;
    const comm_payload bf16 = { .dispatch = { 4096, 4096 } }, half = { .dispatch = { 1024, 3072 } }, none = { 0 };
    const timing time = { .median = 2 }, no_time = { .median = 0 };
    assert_float_equal(comm_dispatch_ratio(&half, &bf16), 0.5, 0);
    assert_float_equal(comm_dispatch_ratio(&half, &none), 0, 0);
    assert_float_equal(comm_gb_per_s(3000000, &time), 1.5, 1e-12);
    assert_float_equal(comm_gb_per_s(3000000, &no_time), 0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_baselines_come_first), cmocka_unit_test(test_without_names_there_are_all),
        cmocka_unit_test(test_layers_that_fit),      cmocka_unit_test(test_flops_of_a_layer),
        cmocka_unit_test(test_files_of_a_trainer),   cmocka_unit_test(test_figures_of_the_wire),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
