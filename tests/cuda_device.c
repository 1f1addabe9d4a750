/* cuda_device.c - fp8flow_device.h, and what the CUDA backend does with arguments that it refuses, with ids and plans
 * that no entry can check, and with pointers of any alignment. */
#include "cuda_support.h"

static void skip_without_gpu(void)
{
    skip_where(!has_gpu(), "needs a GPU");
}

/* ---- Memory, events, graphs ---- */

static void test_memory_copies_and_fills(void **state)
{
    (void)state;
    fp8flow_context *c = device_context();
    uint8_t host[1000], expected[1000];
    for (int i = 0; i < 1000; i++) host[i] = (uint8_t)(i * 7);
    char *a = draw(c, 1000), *b = draw(c, 1000);
    assert_int_equal((uintptr_t)a % 128, 0);
    assert_ok(fp8flow_memory_copy(c, a + 3, host + 1, 901)); /* to the device */
    assert_ok(fp8flow_memory_copy(c, b + 50, a + 3, 901));   /* on the device */
    assert_ok(fp8flow_memory_fill(c, b + 60, 0x15A, 10));    /* a byte */
    assert_ok(fp8flow_memory_copy(c, NULL, NULL, 0));
    assert_ok(fp8flow_memory_fill(c, NULL, 0, 0));
    memset(expected, 0xFF, sizeof expected);
    memcpy(expected + 50, host + 1, 901);
    memset(expected + 60, 0x5A, 10);
    assert_device_bytes(c, b, expected, 1000);
    void *empty = NULL;
    assert_ok(fp8flow_memory_alloc(c, 0, &empty));
    assert_non_null(empty);
    fp8flow_memory_free(c, empty), fp8flow_memory_free(c, a), fp8flow_memory_free(c, b), fp8flow_memory_free(c, NULL);
    assert_ok(fp8flow_synchronize(c));
}

static void test_too_much_memory_is_refused_and_nothing_else(void **state)
{
    (void)state;
    skip_without_gpu();
    fp8flow_context *c = device_context();
    void *memory;
    assert_fails(fp8flow_memory_alloc(c, (size_t)1 << 50, &memory), FP8FLOW_ENOMEM, "1125899906842624 bytes");
    fp8flow_memory_free(c, draw(c, 100));
}

static void test_null_arguments_are_refused(void **state)
{
    (void)state;
    fp8flow_context *c = device_context();
    fp8flow_event *event = NULL;
    void *memory;
    double elapsed;
    char byte = 0;
    assert_fails(fp8flow_memory_alloc(NULL, 1, &memory), FP8FLOW_EINVAL, "memory_alloc");
    assert_fails(fp8flow_memory_alloc(c, 1, NULL), FP8FLOW_EINVAL, "memory_alloc");
    assert_fails(fp8flow_memory_copy(c, NULL, &byte, 1), FP8FLOW_EINVAL, "memory_copy");
    assert_fails(fp8flow_memory_copy(NULL, &byte, &byte, 1), FP8FLOW_EINVAL, "memory_copy");
    assert_fails(fp8flow_memory_fill(c, NULL, 0, 1), FP8FLOW_EINVAL, "memory_fill");
    assert_fails(fp8flow_synchronize(NULL), FP8FLOW_EINVAL, "synchronize");
    assert_fails(fp8flow_graph_begin(NULL), FP8FLOW_EINVAL, "graph_begin");
    assert_fails(fp8flow_graph_end(c, NULL), FP8FLOW_EINVAL, "graph_end");
    assert_fails(fp8flow_graph_launch(c, NULL), FP8FLOW_EINVAL, "graph_launch");
    assert_fails(fp8flow_event_create(c, NULL), FP8FLOW_EINVAL, "event_create");
    assert_fails(fp8flow_event_record(c, NULL), FP8FLOW_EINVAL, "event_record");
    assert_fails(fp8flow_event_elapsed(c, event, event, &elapsed), FP8FLOW_EINVAL, "event_elapsed");
    assert_fails(fp8flow_device_describe(c, NULL), FP8FLOW_EINVAL, "device_describe");
    fp8flow_graph_destroy(c, NULL), fp8flow_event_destroy(c, NULL), fp8flow_memory_free(NULL, NULL);
}

static void test_the_device_says_what_it_is(void **state)
{
    (void)state;
    fp8flow_device_info info;
    assert_ok(fp8flow_device_describe(device_context(), &info));
    assert_true(strlen(info.name) > 0);
    assert_int_equal(info.num_multiprocessors > 0, has_gpu());
    assert_int_equal(info.cache_bytes > 0, has_gpu());
    assert_int_equal(info.cuda_version > 0, has_gpu());
    assert_int_equal(strlen(info.bus_id) > 0, has_gpu());
    assert_true(info.free_bytes <= info.memory_bytes);
}

static void test_contexts_that_cannot_be(void **state)
{
    (void)state;
    fp8flow_context *c;
    fp8flow_context_options options = { .backend = FP8FLOW_CUDA, .device = 1000 };
    assert_fails(fp8flow_context_create(&options, &c), FP8FLOW_ENOSYS, "device 1000");
    options.device = -1;
    assert_fails(fp8flow_context_create(&options, &c), FP8FLOW_ENOSYS, "device -1");
    options = (fp8flow_context_options){ .backend = FP8FLOW_CPU, .stream = &c };
    assert_fails(fp8flow_context_create(&options, &c), FP8FLOW_EINVAL, "stream");
}

static void test_events_measure(void **state)
{
    (void)state;
    fp8flow_context *c = device_context();
    fp8flow_event *start, *stop;
    double elapsed = -1.0;
    void *memory = draw(c, 1 << 20);
    assert_ok(fp8flow_event_create(c, &start));
    assert_ok(fp8flow_event_create(c, &stop));
    assert_ok(fp8flow_event_record(c, start));
    assert_ok(fp8flow_memory_fill(c, memory, 1, 1 << 20));
    assert_ok(fp8flow_event_record(c, stop));
    assert_ok(fp8flow_event_elapsed(c, start, stop, &elapsed));
    assert_true(elapsed >= 0.0 && elapsed < 1e4);
    fp8flow_event_destroy(c, start), fp8flow_event_destroy(c, stop);
    fp8flow_memory_free(c, memory);
}

static fp8flow_status add_one(fp8flow_context *c, fp8flow_tensor *sum, const fp8flow_tensor *one)
{
    return fp8flow_add(c, &(fp8flow_add_args){ sum, one, sum });
}

static void test_a_graph_repeats_calls_and_events(void **state)
{
    (void)state;
    skip_without_gpu();
    fp8flow_context *c = device_context();
    float zero = 0.0f, one = 1.0f, ten = 10.0f;
    fp8flow_tensor sum = f8_f32(draw_copy(c, &zero, 4), 1, 1), summand = f8_f32(draw_copy(c, &one, 4), 1, 1);
    fp8flow_event *start, *stop;
    fp8flow_graph *graph = NULL;
    double elapsed = -1.0;
    assert_ok(fp8flow_event_create(c, &start));
    assert_ok(fp8flow_event_create(c, &stop));
    assert_ok(fp8flow_graph_begin(c));
    assert_ok(fp8flow_event_record(c, start));
    assert_ok(add_one(c, &sum, &summand));
    assert_ok(add_one(c, &sum, &summand));
    assert_ok(fp8flow_event_record(c, stop));
    assert_ok(fp8flow_graph_end(c, &graph));
    assert_device_bytes(c, sum.data, &zero, 4); /* recorded, not done */
    for (int i = 0; i < 5; i++) assert_ok(fp8flow_graph_launch(c, graph));
    assert_ok(fp8flow_event_elapsed(c, start, stop, &elapsed));
    assert_true(elapsed >= 0.0 && elapsed < 1e4);
    assert_device_bytes(c, sum.data, &ten, 4);
    fp8flow_graph_destroy(c, graph);
    fp8flow_event_destroy(c, start), fp8flow_event_destroy(c, stop);
    fp8flow_memory_free(c, sum.data), fp8flow_memory_free(c, summand.data);
}

/* The context must be as good as new after each of them. */
static void assert_context_works(fp8flow_context *c)
{
    float one = 1.0f, two = 2.0f;
    fp8flow_tensor sum = f8_f32(draw_copy(c, &one, 4), 1, 1), summand = f8_f32(draw_copy(c, &one, 4), 1, 1);
    assert_ok(add_one(c, &sum, &summand));
    assert_ok(fp8flow_synchronize(c));
    assert_device_bytes(c, sum.data, &two, 4);
    fp8flow_memory_free(c, sum.data), fp8flow_memory_free(c, summand.data);
}

/* Times of a trace in a graph are those of the last launch. */
static void test_a_graph_repeats_a_trace(void **state)
{
    (void)state;
    skip_without_gpu();
    enum { COUNT = 1 << 22 };
    fp8flow_context *c = device_context();
    float *x = draw(c, COUNT * 4);
    double *sum = draw(c, sizeof *sum);
    fp8flow_trace *trace;
    fp8flow_graph *graph;
    int64_t num_calls;
    assert_ok(fp8flow_square_sum(c, &(fp8flow_square_sum_args){ COUNT, x, sum }));
    assert_ok(fp8flow_trace_create(c, 4, &trace));
    assert_ok(fp8flow_graph_begin(c));
    assert_ok(fp8flow_trace_begin(c, trace));
    for (int64_t count = COUNT; count >= COUNT / 2; count /= 2)
        assert_ok(fp8flow_square_sum(c, &(fp8flow_square_sum_args){ count, x, sum }));
    assert_ok(fp8flow_trace_end(c, &num_calls));
    assert_ok(fp8flow_graph_end(c, &graph));
    assert_int_equal(num_calls, 2);
    for (int launch = 0; launch < 2; launch++) {
        assert_ok(fp8flow_graph_launch(c, graph));
        assert_ok(fp8flow_synchronize(c));
        for (int64_t i = 0; i < num_calls; i++) {
            fp8flow_trace_record record;
            assert_ok(fp8flow_trace_get(c, trace, i, -1, &record));
            assert_string_equal(record.op, "square_sum");
            assert_true(record.bytes == 4.0 * (double)(COUNT >> i) + 8);
            assert_true(record.milliseconds > 0 && record.milliseconds < 10);
        }
    }
    fp8flow_graph_destroy(c, graph);
    fp8flow_trace_destroy(c, trace);
    fp8flow_memory_free(c, x), fp8flow_memory_free(c, sum);
}

static void test_graph_errors(void **state)
{
    (void)state;
    skip_without_gpu();
    fp8flow_context *c = device_context();
    fp8flow_graph *graph = NULL;
    fp8flow_tensor bad = { 0 };
    assert_fails(fp8flow_graph_end(c, &graph), FP8FLOW_EBACKEND, "cuda: graph");
    assert_null(graph);
    assert_context_works(c);
    assert_ok(fp8flow_graph_begin(c));
    assert_fails(fp8flow_graph_begin(c), FP8FLOW_EBACKEND, "cuda: graph");
    (void)fp8flow_graph_end(c, &graph); /* whether the first recording survives is CUDA's business */
    fp8flow_graph_destroy(c, graph);
    assert_context_works(c);
    graph = NULL;
    assert_ok(fp8flow_graph_begin(c));
    assert_fails(fp8flow_synchronize(c), FP8FLOW_EBACKEND, "cuda: synchronize");
    assert_fails(fp8flow_graph_end(c, &graph), FP8FLOW_EBACKEND, "cuda: graph");
    assert_null(graph);
    assert_context_works(c);
    assert_ok(fp8flow_graph_begin(c)); /* a call that its entry refuses leaves no trace in a recording */
    assert_fails(fp8flow_add(c, &(fp8flow_add_args){ &bad, NULL, &bad }), FP8FLOW_EINVAL, "add");
    assert_ok(fp8flow_graph_end(c, &graph));
    assert_ok(fp8flow_graph_launch(c, graph)); /* an empty graph */
    fp8flow_graph_destroy(c, graph);
    assert_context_works(c);
}

static void test_the_cpu_has_no_graphs(void **state)
{
    (void)state;
    fp8flow_context *c;
    fp8flow_graph *graph = NULL;
    assert_ok(fp8flow_context_create(&(fp8flow_context_options){ .backend = FP8FLOW_CPU, .num_threads = 1 }, &c));
    assert_fails(fp8flow_graph_begin(c), FP8FLOW_ENOSYS, "graph");
    assert_fails(fp8flow_graph_end(c, &graph), FP8FLOW_ENOSYS, "graph");
    assert_null(graph);
    assert_context_works(c);
    fp8flow_context_destroy(c);
}

/* ---- Arguments ---- */

static void test_refused_calls_leave_a_message(void **state)
{
    (void)state;
    fp8flow_context *c = device_context();
    fp8flow_tensor x = draw_tensor(c, bf16_rows, 8, 128), rows = draw_tensor(c, row128, 8, 128);
    fp8flow_tensor few = draw_tensor(c, row128, 7, 128);
    assert_fails(fp8flow_quantize(c, &(fp8flow_quantize_args){ .x = &x }), FP8FLOW_EINVAL, "quantize: neither");
    assert_fails(fp8flow_quantize(c, &(fp8flow_quantize_args){ .x = &x, .rows = &few }), FP8FLOW_ESHAPE, "[7, 128]");
    assert_fails(fp8flow_dequantize(c, &(fp8flow_dequantize_args){ &x, NULL, &x }), FP8FLOW_EINVAL, "x is bf16");
    assert_fails(fp8flow_rope(c, &(fp8flow_rope_args){ .x = &x, .head_dim = 3 }), FP8FLOW_ESHAPE, "head_dim is 3");
    assert_fails(fp8flow_quantize(c, NULL), FP8FLOW_EINVAL, "NULL");
    drop_tensor(c, &x), drop_tensor(c, &rows), drop_tensor(c, &few);
    assert_context_works(c);
}

/* One value of any alignment: bytes `shift` into an allocation. */
static void check_unaligned(fp8flow_context *c, fp8flow_context *cpu, int64_t rows, int64_t cols, int shift)
{
    fp8flow_tensor host = make_tensor(bf16_rows, rows, cols, 0, 0), x = host;
    fp8flow_tensor expected = make_tensor(row128, rows, cols, 0, 0), out = expected;
    fp8flow_tensor expected_columns = make_tensor(tile128, rows, cols, 0, 0), columns = expected_columns;
    int64_t input = fp8flow_tensor_data_bytes(&host), codes = fp8flow_tensor_data_bytes(&out);
    int64_t scales = fp8flow_tensor_scale_bytes(&out, 1), tiles = fp8flow_tensor_scale_bytes(&columns, 1);
    fill_tensor(&host, DATA_SPECIAL, 9);
    assert_ok(fp8flow_quantize(cpu, &(fp8flow_quantize_args){ &host, NULL, &expected, &expected_columns, NULL }));
    char *memory[5] = { draw(c, input + 32), draw(c, codes + 32), draw(c, scales + 32), draw(c, codes + 32),
                        draw(c, tiles + 32) };
    x.data = memory[0] + 2 * shift;
    out.data = memory[1] + shift, out.scale = memory[2] + shift;
    columns.data = memory[3] + shift, columns.scale = memory[4] + shift;
    assert_ok(fp8flow_memory_copy(c, x.data, host.data, (size_t)input));
    assert_ok(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, NULL, &out, &columns, NULL }));
    assert_device_tensor(c, &out, &expected);
    assert_device_tensor(c, &columns, &expected_columns);
    for (int i = 0; i < 5; i++) fp8flow_memory_free(c, memory[i]);
    free_tensor(&host), free_tensor(&expected), free_tensor(&expected_columns);
}

static void test_pointers_of_any_alignment(void **state)
{
    (void)state;
    fp8flow_context *cpu = make_context(FP8FLOW_REFERENCE, 1);
    for (int shift = 0; shift < 16; shift++) {
        check_unaligned(device_context(), cpu, 130, 256, shift);
        check_unaligned(device_context(), cpu, 3, 141, shift);
    }
    fp8flow_context_destroy(cpu);
}

/* ---- What only the kernels see ---- */

enum { TOKENS = 300, TOP_K = 3, EXPERTS = 6, SLOTS = TOKENS * TOP_K, ALIGN = 128 };

typedef struct {
    int32_t rows[EXPERTS], offset[EXPERTS + 1], row_of[SLOTS], source[SLOTS + EXPERTS * ALIGN];
} plan_arrays;

/* A plan on the device from host ids; arrays come back to the host, poisoned where nothing was written. */
static void plan_on_device(const int32_t *expert, int64_t capacity, plan_arrays *result)
{
    fp8flow_context *c = device_context();
    int32_t *ids = draw_copy(c, expert, SLOTS * 4);
    plan_arrays *arrays = draw(c, sizeof *arrays);
    fp8flow_plan plan = { TOKENS,       TOP_K,          EXPERTS,        ALIGN,         capacity,
                          arrays->rows, arrays->offset, arrays->row_of, arrays->source };
    assert_ok(fp8flow_permute_plan(c, &(fp8flow_permute_plan_args){ ids, &plan }));
    assert_ok(fp8flow_memory_copy(c, result, arrays, sizeof *arrays));
    fp8flow_memory_free(c, ids), fp8flow_memory_free(c, arrays);
}

static int32_t any_expert(int64_t slot)
{
    return (int32_t)f8_shuffle((uint64_t)(slot / TOP_K), (uint64_t)(slot % TOP_K), EXPERTS);
}

static void test_ids_out_of_range_are_dropped(void **state)
{
    (void)state;
    skip_without_gpu();
    static const int32_t wild[] = { -2, EXPERTS, EXPERTS + 1, INT32_MIN, INT32_MAX, 1 << 20 };
    int32_t expert[SLOTS], tame[SLOTS];
    static plan_arrays seen, expected;
    for (int64_t i = 0; i < SLOTS; i++) {
        expert[i] = i % 11 == 3 ? wild[i % 6] : any_expert(i);
        tame[i] = i % 11 == 3 ? -1 : expert[i];
    }
    plan_on_device(expert, SLOTS + EXPERTS * ALIGN, &seen);
    plan_on_device(tame, SLOTS + EXPERTS * ALIGN, &expected);
    assert_memory_equal(&seen, &expected, sizeof seen);
    for (int64_t i = 3; i < SLOTS; i += 11) assert_int_equal(seen.row_of[i], -1);
}

/* A plan that does not fit: what is kept is consistent and inside, and equals the plan that fits. */
static void check_overflow(const plan_arrays *whole, int64_t capacity, const plan_arrays *cut)
{
    int64_t kept = 0, counted = 0;
    for (int64_t i = 0; i < SLOTS; i++) {
        int32_t row = cut->row_of[i];
        assert_int_equal(row, whole->row_of[i] < capacity ? whole->row_of[i] : -1);
        if (row < 0) continue;
        assert_int_equal(cut->source[row], i);
        kept++;
    }
    assert_int_equal(cut->offset[0], 0);
    for (int64_t e = 0; e < EXPERTS; e++) {
        assert_true(cut->offset[e] <= cut->offset[e + 1] && cut->offset[e + 1] <= capacity);
        assert_true(cut->rows[e] >= 0 && cut->rows[e] <= cut->offset[e + 1] - cut->offset[e]);
        for (int64_t row = cut->offset[e]; row < cut->offset[e + 1]; row++)
            assert_int_equal(cut->source[row] >= 0, row < cut->offset[e] + cut->rows[e]);
        counted += cut->rows[e];
    }
    assert_int_equal(counted, kept);
    for (int64_t row = capacity; row < SLOTS + EXPERTS * ALIGN; row++) assert_int_equal(cut->source[row], -1);
}

static void test_a_plan_that_does_not_fit_drops_the_last_rows(void **state)
{
    (void)state;
    skip_without_gpu();
    int32_t expert[SLOTS];
    static plan_arrays whole, cut;
    for (int64_t i = 0; i < SLOTS; i++) expert[i] = any_expert(i);
    plan_on_device(expert, SLOTS + EXPERTS * ALIGN, &whole);
    for (int64_t capacity = 0; capacity <= whole.offset[EXPERTS]; capacity += ALIGN) {
        plan_on_device(expert, capacity, &cut);
        check_overflow(&whole, capacity, &cut);
    }
}

static void test_plans_that_may_not_fit_a_tensor_are_refused(void **state)
{
    (void)state;
    skip_without_gpu();
    fp8flow_context *c = device_context();
    plan_arrays *arrays = draw(c, sizeof *arrays);
    fp8flow_plan plan = { TOKENS,       TOP_K,          EXPERTS,        ALIGN,         1280,
                          arrays->rows, arrays->offset, arrays->row_of, arrays->source };
    fp8flow_tensor x = draw_tensor(c, bf16_rows, TOKENS, 16), rows = draw_tensor(c, bf16_rows, 1279, 16);
    assert_fails(fp8flow_permute(c, &(fp8flow_permute_args){ .x = &x, .plan = &plan, .rows = &rows }), FP8FLOW_ESHAPE,
                 "rows has 1279 rows, plan needs 1280");
    drop_tensor(c, &x), drop_tensor(c, &rows);
    fp8flow_memory_free(c, arrays);
}

static void test_tokens_out_of_the_vocabulary(void **state)
{
    (void)state;
    skip_without_gpu();
    enum { VOCABULARY = 10, COLS = 24, IDS = 4 };
    fp8flow_context *c = device_context();
    static const int32_t ids[IDS] = { 3, -1, VOCABULARY, 9 };
    int32_t *device_ids = draw_copy(c, ids, sizeof ids);
    const f8_tensor_format f32_rows = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    fp8flow_tensor host = make_tensor(bf16_rows, VOCABULARY, COLS, 0, 0),
                   gradient = make_tensor(f32_rows, VOCABULARY, COLS, 0, 0);
    fill_tensor(&host, DATA_NORMAL, 1);
    memset(gradient.data, 0, VOCABULARY * COLS * 4);
    fp8flow_tensor table = draw_tensor_copy(c, &host), dtable = draw_tensor_copy(c, &gradient);
    fp8flow_tensor y = draw_tensor(c, bf16_rows, IDS, COLS);
    assert_ok(fp8flow_embed(c, &(fp8flow_embed_args){ &table, device_ids, &y }));
    uint16_t *seen = fetch(c, y.data, IDS * COLS * 2);
    for (int col = 0; col < COLS; col++) {
        assert_int_equal(seen[col], ((uint16_t *)host.data)[3 * COLS + col]);
        assert_true(f8_bf16_decode(seen[COLS + col]) != f8_bf16_decode(seen[COLS + col]));
        assert_true(f8_bf16_decode(seen[2 * COLS + col]) != f8_bf16_decode(seen[2 * COLS + col]));
        assert_int_equal(seen[3 * COLS + col], ((uint16_t *)host.data)[9 * COLS + col]);
    }
    fp8flow_tensor dy = table; /* the first rows of the table as a gradient */
    dy.rows = IDS;
    assert_ok(fp8flow_embed_backward(c, &(fp8flow_embed_backward_args){ &dy, device_ids, &dtable }));
    for (int col = 0; col < COLS; col++) {
        ((float *)gradient.data)[3 * COLS + col] = f8_value(&host, 0, col, 0);
        ((float *)gradient.data)[9 * COLS + col] = f8_value(&host, 3, col, 0);
    }
    assert_device_tensor(c, &dtable, &gradient);
    free(seen);
    drop_tensor(c, &table), drop_tensor(c, &dtable), drop_tensor(c, &y);
    fp8flow_memory_free(c, device_ids);
    free_tensor(&host), free_tensor(&gradient);
}

static void test_targets_out_of_the_vocabulary(void **state)
{
    (void)state;
    skip_without_gpu();
    enum { VOCABULARY = 10, IDS = 4 };
    fp8flow_context *c = device_context();
    static const int32_t ids[IDS] = { 3, -1, VOCABULARY, -2 };
    const f8_tensor_format f32_rows = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    fp8flow_tensor host = make_tensor(f32_rows, IDS, VOCABULARY, 0, 0);
    fill_tensor(&host, DATA_NORMAL, 1);
    fp8flow_tensor logits = draw_tensor_copy(c, &host);
    int32_t *target = draw_copy(c, ids, sizeof ids);
    float *loss = draw(c, IDS * 4);
    assert_ok(fp8flow_cross_entropy(c, &(fp8flow_cross_entropy_args){ &logits, target, 1.0f, NULL, loss }));
    float *seen = fetch(c, loss, IDS * 4);
    assert_true(seen[0] > 0.0f && seen[1] == 0.0f && seen[2] != seen[2] && seen[3] != seen[3]);
    free(seen);
    drop_tensor(c, &logits);
    fp8flow_memory_free(c, target), fp8flow_memory_free(c, loss);
    free_tensor(&host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_copies_and_fills),
        cmocka_unit_test(test_too_much_memory_is_refused_and_nothing_else),
        cmocka_unit_test(test_null_arguments_are_refused),
        cmocka_unit_test(test_the_device_says_what_it_is),
        cmocka_unit_test(test_contexts_that_cannot_be),
        cmocka_unit_test(test_events_measure),
        cmocka_unit_test(test_a_graph_repeats_calls_and_events),
        cmocka_unit_test(test_a_graph_repeats_a_trace),
        cmocka_unit_test(test_graph_errors),
        cmocka_unit_test(test_the_cpu_has_no_graphs),
        cmocka_unit_test(test_refused_calls_leave_a_message),
        cmocka_unit_test(test_pointers_of_any_alignment),
        cmocka_unit_test(test_ids_out_of_range_are_dropped),
        cmocka_unit_test(test_a_plan_that_does_not_fit_drops_the_last_rows),
        cmocka_unit_test(test_plans_that_may_not_fit_a_tensor_are_refused),
        cmocka_unit_test(test_tokens_out_of_the_vocabulary),
        cmocka_unit_test(test_targets_out_of_the_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
