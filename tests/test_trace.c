/* test_trace.c - what a trace says of operator calls: which, what they move and multiply at least, and their time. */
#include "support.h"

#include "fp8flow_device.h"
#include "ops/cost.h"

static const f8_tensor_format f32 = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
static const f8_tensor_format bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
static const f8_tensor_format row128 = { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS };
static const f8_tensor_format tile_rows = { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_ROWS };
static const f8_tensor_format tile_columns = { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_COLUMNS };
static const f8_tensor_format col128 = { FP8FLOW_E4M3, FP8FLOW_COL128, FP8FLOW_COLUMNS };
static const fp8flow_groups groups = { .count = 4 }; /* arrays that a cost never reads */

static fp8flow_tensor shape(f8_tensor_format format, int64_t rows, int64_t cols)
{
    return f8_tensor_make(format, rows, cols, 0);
}

static void check_fixed(f8_cost cost, double bytes, double flops)
{
    assert_float_equal(cost.bytes, bytes, 0);
    assert_float_equal(cost.flops, flops, 0);
    assert_int_equal(cost.capacity, 0);
    assert_float_equal(cost.row_bytes, 0, 0);
    assert_float_equal(cost.row_flops, 0, 0);
}

static void check_per_row(f8_cost cost, double bytes, double row_bytes, int64_t capacity)
{
    assert_float_equal(cost.bytes, bytes, 0);
    assert_float_equal(cost.row_bytes, row_bytes, 0);
    assert_int_equal(cost.capacity, capacity);
}

/* ---- Costs ---- */

static void test_formats(void **state)
{
    (void)state;
    fp8flow_tensor x = shape(bf16, 256, 384), rows = shape(row128, 256, 384), columns = shape(tile_columns, 256, 384),
                   exact = shape(col128, 256, 384);
    fp8flow_quantize_args both = { .x = &x, .rows = &rows, .columns = &columns };
    f8_cost cost = f8_cost_of(F8_OP_quantize, &both);
    check_fixed(cost, 256.0 * (768 + 387 + 384) + 2 * 3, 0);
    assert_string_equal(cost.label, "256x384 bf16 to e4m3 row128, e4m3 tile128 columns");
    assert_int_equal(cost.groups, 0);
    both.groups = &groups;
    cost = f8_cost_of(F8_OP_quantize, &both);
    check_per_row(cost, 0, 768 + 387 + 384 + 3.0 / 128, 256);
    assert_int_equal(cost.groups, 4);
    check_fixed(f8_cost_of(F8_OP_transpose, &(fp8flow_transpose_args){ .x = &rows, .y = &exact }),
                256.0 * (387 + 384) + 2 * 384, 0);
    check_fixed(f8_cost_of(F8_OP_dequantize, &(fp8flow_dequantize_args){ .x = &exact, .y = &x }),
                256.0 * (384 + 768) + 2 * 384, 0);
    check_fixed(f8_cost_of(F8_OP_measure, &(fp8flow_measure_args){ .x = &x, .q = &rows }), 256.0 * (768 + 387), 0);
}

static void test_weights_do_not_depend_on_the_rows_in_use(void **state)
{
    (void)state;
    fp8flow_tensor a = shape(row128, 512, 256), b = f8_tensor_make(tile_rows, 4 * 128, 256, 128),
                   c = shape(bf16, 512, 128);
    fp8flow_gemm_args args = { .product = FP8FLOW_FPROP, .groups = &groups, .a = &a, .b = &b, .c = &c };
    f8_cost cost = f8_cost_of(F8_OP_gemm, &args);
    check_per_row(cost, 4 * 128 * 256 + 4 * 2, 258 + 256, 512);
    assert_float_equal(cost.row_flops, 2.0 * 128 * 256, 0);
    assert_float_equal(cost.flops, 0, 0);
    assert_string_equal(cost.label, "fprop 512x128x256 e4m3 row128 * e4m3 tile128");
    assert_int_equal(cost.dtype, FP8FLOW_E4M3);
    args.groups = NULL;
    assert_float_equal(f8_cost_of(F8_OP_gemm, &args).flops, 2.0 * 512 * 128 * 256, 0);
}

static void test_what_is_added_to_moves_twice(void **state)
{
    (void)state;
    fp8flow_tensor dy = shape(bf16, 512, 128), x = shape(bf16, 512, 256), dw = f8_tensor_make(f32, 4 * 128, 256, 128);
    fp8flow_gemm_args args = { FP8FLOW_WGRAD, FP8FLOW_ACCUMULATE, &groups, &dy, &x, &dw };
    f8_cost cost = f8_cost_of(F8_OP_gemm, &args);
    check_per_row(cost, 2.0 * 4 * 4 * 128 * 256, 256 + 512, 512);
    assert_float_equal(cost.row_flops, 2.0 * 128 * 256, 0);
    assert_string_equal(cost.label, "wgrad 128x256x512 bf16 * bf16");
    args.write = FP8FLOW_OVERWRITE;
    assert_float_equal(f8_cost_of(F8_OP_gemm, &args).bytes, 4.0 * 4 * 128 * 256, 0);
}

static void test_routing(void **state)
{
    (void)state;
    static const fp8flow_plan plan = { .num_tokens = 100, .top_k = 2, .num_experts = 4, .align = 128, .capacity = 640 };
    int32_t expert = 0;
    float gate = 0;
    fp8flow_tensor x = shape(row128, 100, 256), rows = shape(row128, 640, 256), columns = shape(tile_columns, 640, 256),
                   y = shape(bf16, 100, 256), y_rows = shape(bf16, 640, 256);
    fp8flow_plan filled = plan;
    filled.source = &expert;
    f8_cost cost = f8_cost_of(F8_OP_permute_plan, &(fp8flow_permute_plan_args){ &expert, &filled });
    check_per_row(cost, 4 * (2 * 200 + 2 * 4 + 1), 4, 640);
    assert_string_equal(cost.label, "100 k2 of 4");
    cost = f8_cost_of(
        F8_OP_permute,
        &(fp8flow_permute_args){
            .x = &x, .plan = &filled, .rows = &rows, .columns = &columns, .gate = &gate, .gate_rows = &gate });
    check_per_row(cost, 100 * 258 + 4 * 200, 4 + 4 + 258 + 256 + 2.0 / 128, 640);
    cost = f8_cost_of(F8_OP_unpermute, &(fp8flow_unpermute_args){
                                           .x = &y_rows, .plan = &filled, .y = &y, .gate_rows = &gate, .gate = &gate });
    check_per_row(cost, 100 * 512 + 4 * 200 + 4 * 200, 512 + 4, 640);
}

static void test_router(void **state)
{
    (void)state;
    fp8flow_router_config config = { .num_experts = 8, .top_k = 2, .sequence_length = 50 };
    fp8flow_tensor logits = shape(f32, 100, 8);
    fp8flow_router_args args = { .config = &config, .logits = &logits };
    check_fixed(f8_cost_of(F8_OP_router, &args), 4 * (100 * (8 + 2 + 2 + 8 + 1) + 2 * 2 * 8), 0);
    fp8flow_router_loss_args loss = { .config = &config, .num_tokens = 100 };
    fp8flow_router_backward_args backward = { .config = &config, .num_tokens = 100 };
    check_fixed(f8_cost_of(F8_OP_router_loss, &loss), 0, 0);
    check_fixed(f8_cost_of(F8_OP_router_backward, &backward), 4 * 100 * (8 + 2 + 2 + 8), 0);
    config.z_coef = 1;
    check_fixed(f8_cost_of(F8_OP_router_loss, &loss), 4 * 100, 0);
    config.z_coef = 0, config.aux_coef = 1;
    check_fixed(f8_cost_of(F8_OP_router_loss, &loss), 12 * 8, 0);
    config.aux_coef = 0, config.sequence_coef = 1;
    check_fixed(f8_cost_of(F8_OP_router_loss, &loss), 2 * 4 * 2 * 8, 0);
    check_fixed(f8_cost_of(F8_OP_router_backward, &backward), 4 * (100 * (8 + 2 + 2 + 8) + 2 * 8), 0);
    check_fixed(f8_cost_of(F8_OP_router_bias_update, &(fp8flow_router_bias_update_args){ .num_experts = 8 }), 16 * 8,
                0);
}

static void test_load(void **state)
{
    (void)state;
    check_fixed(f8_cost_of(F8_OP_router_sum, &(fp8flow_router_sum_args){ .num_sequences = 3, .num_experts = 8 }),
                8 * (3 * 8 + 12), 0);
    check_fixed(f8_cost_of(F8_OP_add_counts, &(fp8flow_add_counts_args){ .count = 8 }), 3 * 64, 0);
}

static void test_swiglu(void **state)
{
    (void)state;
    float gate = 0;
    fp8flow_tensor h = shape(bf16, 256, 256), v = shape(row128, 256, 128), v_columns = shape(tile_columns, 256, 128),
                   dv = shape(bf16, 256, 128), dh = shape(row128, 256, 256), dh_columns = shape(tile_columns, 256, 256);
    fp8flow_swiglu_args args = { .h = &h, .gate = &gate, .groups = &groups, .rows = &v, .columns = &v_columns };
    check_per_row(f8_cost_of(F8_OP_swiglu, &args), 0, 512 + 4 + 129 + 128 + 1.0 / 128, 256);
    args = (fp8flow_swiglu_args){ .h = &h, .rows = &v };
    check_fixed(f8_cost_of(F8_OP_swiglu, &args), 256 * (512 + 129), 0);
    fp8flow_swiglu_backward_args backward = { .h = &h,
                                              .gate = &gate,
                                              .groups = &groups,
                                              .dv = &dv,
                                              .rows = &dh,
                                              .columns = &dh_columns,
                                              .v_columns = &v_columns,
                                              .dgate = &gate };
    check_per_row(f8_cost_of(F8_OP_swiglu_backward, &backward), 0,
                  512 + 4 + 256 + 258 + 256 + 2.0 / 128 + 128 + 1.0 / 128 + 4, 256);
}

static void test_attention(void **state)
{
    (void)state;
    float lse = 0;
    /* 2 sequences of 3 queries and 5 keys, 4 heads of 16, 2 key heads: queries see 3, 4 and 5 keys. */
    fp8flow_tensor q = shape(bf16, 6, 64), k = shape(bf16, 10, 32), same = shape(bf16, 6, 32);
    fp8flow_attention_args args = { &q, &k, &k, 2, 4, 2, 16, 1.0f, &q, &lse };
    f8_cost cost = f8_cost_of(F8_OP_attention, &args);
    check_fixed(cost, 2 * 6 * 128 + 2 * 10 * 64 + 4 * 6 * 4, 4.0 * 16 * 2 * 4 * (3 + 4 + 5));
    assert_string_equal(cost.label, "2x3x64, 2 kv heads");
    assert_int_equal(cost.dtype, FP8FLOW_BF16);
    fp8flow_attention_backward_args backward = { &q, &same, &same, &q, &q, &lse, 2, 4, 2, 16, 1.0f, &q, &same, &same };
    check_fixed(f8_cost_of(F8_OP_attention_backward, &backward), 4 * 6 * 128 + 4 * 6 * 64 + 4 * 6 * 4,
                10.0 * 16 * 2 * 4 * (1 + 2 + 3));
}

static void test_the_rest_of_a_decoder(void **state)
{
    (void)state;
    float rstd = 0;
    fp8flow_tensor x = shape(bf16, 10, 64), table = shape(f32, 4, 64);
    check_fixed(f8_cost_of(F8_OP_add, &(fp8flow_add_args){ &x, &x, &x }), 3 * 10 * 128, 0);
    check_fixed(f8_cost_of(F8_OP_rmsnorm, &(fp8flow_rmsnorm_args){ .x = &x, .width = 16, .y = &x, .rstd = &rstd }),
                2 * 10 * 128 + 10 * 4 * 4 + 16 * 4, 0);
    fp8flow_rmsnorm_backward_args norm = { .x = &x, .dy = &x, .rstd = &rstd, .width = 64, .dx = &x };
    check_fixed(f8_cost_of(F8_OP_rmsnorm_backward, &norm), 3 * 10 * 128 + 10 * 4 + 3 * 64 * 4, 0);
    check_fixed(f8_cost_of(F8_OP_rope, &(fp8flow_rope_args){ .x = &x }), 2 * 10 * 128, 0);
    check_fixed(f8_cost_of(F8_OP_embed, &(fp8flow_embed_args){ .y = &x }), 10 * (2 * 128 + 4), 0);
    check_fixed(f8_cost_of(F8_OP_embed_backward, &(fp8flow_embed_backward_args){ &x, NULL, &table }),
                10 * (128 + 4) + 2 * 4 * 256, 0);
    fp8flow_cross_entropy_args entropy = { .logits = &table, .gradient = &x };
    check_fixed(f8_cost_of(F8_OP_cross_entropy, &entropy), 4 * 256 + 10 * 128 + 8 * 4, 0);
    check_fixed(f8_cost_of(F8_OP_square_sum, &(fp8flow_square_sum_args){ .count = 100 }), 408, 0);
    uint16_t weight = 0;
    check_fixed(f8_cost_of(F8_OP_sum, &(fp8flow_sum_args){ .count = 100 }), 408, 0);
    check_fixed(f8_cost_of(F8_OP_clip, &(fp8flow_clip_args){ .count = 3 }), 36, 0);
    check_fixed(f8_cost_of(F8_OP_adamw, &(fp8flow_adamw_args){ .count = 100 }), 2800, 0);
    check_fixed(f8_cost_of(F8_OP_adamw, &(fp8flow_adamw_args){ .count = 100, .weight = &weight }), 3000, 0);
}

/* ---- Traces ---- */

typedef struct {
    fp8flow_context *context;
    fp8flow_trace *trace;
    fp8flow_tensor x, y;
} traced;

static traced make_traced(int64_t capacity)
{
    traced t = { .context = make_context(FP8FLOW_CPU, 1) };
    t.x = make_tensor(bf16, 256, 128, 0, 0);
    t.y = make_tensor(row128, 256, 128, 0, 0);
    fill_tensor(&t.x, DATA_NORMAL, 1);
    assert_ok(fp8flow_trace_create(t.context, capacity, &t.trace));
    return t;
}

static void free_traced(traced *t)
{
    fp8flow_trace_destroy(t->context, t->trace);
    free_tensor(&t->x), free_tensor(&t->y);
    fp8flow_context_destroy(t->context);
}

static void quantize(const traced *t, const fp8flow_groups *g)
{
    fp8flow_tensor y = t->y;
    assert_ok(fp8flow_quantize(t->context, &(fp8flow_quantize_args){ .x = &t->x, .groups = g, .rows = &y }));
}

static void test_a_trace_has_the_calls_in_their_order(void **state)
{
    (void)state;
    static const int32_t offset[] = { 0, 128, 256 }, used[] = { 100, 28 };
    const fp8flow_groups two = { 2, offset, used };
    traced t = make_traced(8);
    int64_t num_calls = 0;
    fp8flow_trace_record record;
    quantize(&t, NULL);
    assert_ok(fp8flow_trace_begin(t.context, t.trace));
    quantize(&t, &two);
    fp8flow_tensor back = t.x;
    assert_ok(fp8flow_dequantize(t.context, &(fp8flow_dequantize_args){ .x = &t.y, .y = &back }));
    assert_ok(fp8flow_trace_end(t.context, &num_calls));
    quantize(&t, NULL);
    assert_int_equal(num_calls, 2);
    assert_ok(fp8flow_trace_get(t.context, t.trace, 0, 128, &record));
    assert_string_equal(record.op, "quantize");
    assert_string_equal(record.label, "256x128 bf16 to e4m3 row128");
    assert_float_equal(record.bytes, 128 * (256 + 129), 0);
    assert_int_equal(record.groups, 2);
    assert_true(record.milliseconds > 0 && record.milliseconds < 1e4);
    assert_ok(fp8flow_trace_get(t.context, t.trace, 0, -1, &record));
    assert_float_equal(record.bytes, 256 * (256 + 129), 0);
    assert_ok(fp8flow_trace_get(t.context, t.trace, 0, 1000, &record));
    assert_float_equal(record.bytes, 256 * (256 + 129), 0);
    assert_ok(fp8flow_trace_get(t.context, t.trace, 1, 128, &record));
    assert_string_equal(record.op, "dequantize");
    assert_float_equal(record.bytes, 256 * (256 + 129), 0);
    assert_fails(fp8flow_trace_get(t.context, t.trace, 2, 0, &record), FP8FLOW_EINVAL, "call 2, the trace has 2");
    assert_fails(fp8flow_trace_get(t.context, t.trace, -1, 0, &record), FP8FLOW_EINVAL, "call -1");
    free_traced(&t);
}

static void test_a_trace_starts_anew_and_counts_what_it_has_no_room_for(void **state)
{
    (void)state;
    traced t = make_traced(2);
    fp8flow_trace_record record;
    for (int64_t calls = 3; calls >= 1; calls--) {
        int64_t num_calls = 0;
        assert_ok(fp8flow_trace_begin(t.context, t.trace));
        for (int64_t i = 0; i < calls; i++) quantize(&t, NULL);
        assert_ok(fp8flow_trace_end(t.context, &num_calls));
        assert_int_equal(num_calls, calls);
        assert_int_equal(fp8flow_trace_get(t.context, t.trace, 1, -1, &record),
                         calls == 1 ? FP8FLOW_EINVAL : FP8FLOW_OK);
        assert_fails(fp8flow_trace_get(t.context, t.trace, 2, -1, &record), FP8FLOW_EINVAL, "trace_get");
    }
    free_traced(&t);
}

static void test_wrong_use(void **state)
{
    (void)state;
    traced t = make_traced(2);
    fp8flow_context *c = t.context;
    fp8flow_trace *other = NULL;
    fp8flow_trace_record record;
    int64_t num_calls;
    assert_fails(fp8flow_trace_create(c, 0, &other), FP8FLOW_EINVAL, "room for 0 calls");
    assert_fails(fp8flow_trace_create(c, INT64_MAX, &other), FP8FLOW_EINVAL, "room for");
    assert_fails(fp8flow_trace_create(NULL, 1, &other), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_trace_create(c, 1, NULL), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_trace_end(c, &num_calls), FP8FLOW_EINVAL, "in no trace");
    assert_fails(fp8flow_trace_begin(c, NULL), FP8FLOW_EINVAL, "NULL");
    assert_ok(fp8flow_trace_begin(c, t.trace));
    assert_fails(fp8flow_trace_begin(c, t.trace), FP8FLOW_EINVAL, "in a trace already");
    assert_fails(fp8flow_trace_end(c, NULL), FP8FLOW_EINVAL, "NULL");
    assert_ok(fp8flow_trace_end(c, &num_calls));
    assert_int_equal(num_calls, 0);
    assert_fails(fp8flow_trace_get(c, t.trace, 0, 0, NULL), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_trace_get(c, NULL, 0, 0, &record), FP8FLOW_EINVAL, "NULL");
    fp8flow_trace_destroy(c, NULL);
    fp8flow_trace_destroy(NULL, t.trace);
    free_traced(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_weights_do_not_depend_on_the_rows_in_use),
        cmocka_unit_test(test_what_is_added_to_moves_twice),
        cmocka_unit_test(test_routing),
        cmocka_unit_test(test_router),
        cmocka_unit_test(test_load),
        cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_the_rest_of_a_decoder),
        cmocka_unit_test(test_a_trace_has_the_calls_in_their_order),
        cmocka_unit_test(test_a_trace_starts_anew_and_counts_what_it_has_no_room_for),
        cmocka_unit_test(test_wrong_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
