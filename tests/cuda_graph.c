/* cuda_graph.c - the operators of the layer in graphs: recorded once, replayed with other routings, the bytes of the
 * reference each time; and the same bits in a thousand runs. */
#include "cuda_support.h"

enum { TOKENS = 300, TOP_K = 3, EXPERTS = 8, HIDDEN = 384, WIDTH = 200, ALIGN = 128 };
enum { SLOTS = TOKENS * TOP_K, CAPACITY = (SLOTS + EXPERTS * (ALIGN - 1) + ALIGN - 1) / ALIGN * ALIGN };

typedef enum { BALANCED, ONE_EXPERT, NOWHERE, UNEVEN, NUM_ROUTINGS } routing;

typedef enum { INPUT, EXACT, REPEATABLE, COUNTER } array_purpose; /* REPEATABLE: class R */

typedef struct {
    void *at;
    int64_t bytes;
    array_purpose purpose;
} chain_array;

/* A layer's operators on the memory of one context. */
typedef struct {
    fp8flow_context *context;
    chain_array arrays[80];
    int num_arrays;
    fp8flow_router_config router;
    fp8flow_tensor logits;
    int32_t *expert, *chosen, *counts;
    float *gate, *chosen_gate, *scores, *log_sum_exp, *score_sums, *gate_rows, *gate_back, *dgate;
    uint64_t *histogram, *histogram2, *nonfinite;
    fp8flow_plan plan;
    fp8flow_groups groups;
    fp8flow_tensor x, x8, rows16, rows8, columns8, columns8_exact, transposed;
    fp8flow_tensor h, h8, h8_columns, v16, v8, v8_columns, dv, dh16, dh8, dh8_columns, v8_again, y;
} chain;

static void *chain_draw(chain *n, int64_t bytes, array_purpose purpose)
{
    void *memory = draw(n->context, bytes);
    assert_true(n->num_arrays < (int)(sizeof n->arrays / sizeof *n->arrays));
    n->arrays[n->num_arrays++] = (chain_array){ memory, bytes, purpose };
    return memory;
}

static fp8flow_tensor chain_tensor(chain *n, f8_tensor_format format, int64_t rows, int64_t cols, array_purpose purpose)
{
    fp8flow_tensor t = f8_tensor_make(format, rows, cols, 0);
    t.data = chain_draw(n, fp8flow_tensor_data_bytes(&t), purpose);
    if (format.scaling != FP8FLOW_UNSCALED) t.scale = chain_draw(n, fp8flow_tensor_scale_bytes(&t, 1), purpose);
    return t;
}

static fp8flow_tensor chain_input(chain *n, int64_t rows, int64_t cols, uint64_t seed)
{
    fp8flow_tensor host = make_tensor(bf16_rows, rows, cols, 0, 0), t = chain_tensor(n, bf16_rows, rows, cols, INPUT);
    fill_tensor(&host, DATA_HEAVY_TAILED, seed);
    assert_ok(fp8flow_memory_copy(n->context, t.data, host.data, (size_t)fp8flow_tensor_data_bytes(&t)));
    free_tensor(&host);
    return t;
}

static void make_router(chain *n)
{
    n->router = (fp8flow_router_config){ .num_experts = EXPERTS,
                                         .top_k = TOP_K,
                                         .gate_rule = FP8FLOW_GATE_NORMALIZED,
                                         .gate_scale = 1.5f,
                                         .num_groups = 1,
                                         .top_groups = 1,
                                         .sequence_length = TOKENS / 4 };
    n->logits =
        chain_tensor(n, (f8_tensor_format){ FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS }, TOKENS, EXPERTS, INPUT);
    n->chosen = chain_draw(n, SLOTS * 4, EXACT);
    n->chosen_gate = chain_draw(n, SLOTS * 4, EXACT);
    n->scores = chain_draw(n, TOKENS * EXPERTS * 4, EXACT);
    n->log_sum_exp = chain_draw(n, TOKENS * 4, EXACT);
    n->counts = chain_draw(n, 4 * EXPERTS * 4, EXACT);
    n->score_sums = chain_draw(n, 4 * EXPERTS * 4, EXACT);
}

static void make_plan(chain *n)
{
    n->expert = chain_draw(n, SLOTS * 4, INPUT);
    n->gate = chain_draw(n, SLOTS * 4, INPUT);
    n->plan = (fp8flow_plan){ .num_tokens = TOKENS,
                              .top_k = TOP_K,
                              .num_experts = EXPERTS,
                              .align = ALIGN,
                              .capacity = CAPACITY,
                              .rows = chain_draw(n, EXPERTS * 4, EXACT),
                              .offset = chain_draw(n, (EXPERTS + 1) * 4, EXACT),
                              .row_of = chain_draw(n, SLOTS * 4, EXACT),
                              .source = chain_draw(n, CAPACITY * 4, EXACT) };
    n->groups = (fp8flow_groups){ EXPERTS, n->plan.offset, n->plan.rows };
    n->gate_rows = chain_draw(n, CAPACITY * 4, EXACT);
    n->gate_back = chain_draw(n, SLOTS * 4, EXACT);
    n->histogram = chain_draw(n, 64 * 8, COUNTER);
    n->histogram2 = chain_draw(n, 64 * 8, COUNTER);
    n->nonfinite = chain_draw(n, 8, COUNTER);
}

static chain *make_chain(fp8flow_context *context)
{
    chain *n = calloc(1, sizeof *n);
    assert_non_null(n);
    n->context = context;
    make_router(n);
    make_plan(n);
    n->x = chain_input(n, TOKENS, HIDDEN, 1);
    n->h = chain_input(n, CAPACITY, 2 * WIDTH, 2);
    n->dv = chain_input(n, CAPACITY, WIDTH, 3);
    n->x8 = chain_tensor(n, row128, TOKENS, HIDDEN, EXACT);
    n->rows16 = chain_tensor(n, bf16_rows, CAPACITY, HIDDEN, EXACT);
    n->rows8 = chain_tensor(n, row128, CAPACITY, HIDDEN, EXACT);
    n->columns8 = chain_tensor(n, tile128, CAPACITY, HIDDEN, EXACT);
    n->columns8_exact = chain_tensor(n, col128, CAPACITY, HIDDEN, EXACT);
    n->transposed = chain_tensor(n, tile128, CAPACITY, HIDDEN, EXACT);
    n->h8 = chain_tensor(n, row128, CAPACITY, 2 * WIDTH, EXACT);
    n->h8_columns = chain_tensor(n, col128, CAPACITY, 2 * WIDTH, EXACT);
    n->v16 = chain_tensor(n, bf16_rows, CAPACITY, WIDTH, EXACT);
    n->v8 = chain_tensor(n, row128, CAPACITY, WIDTH, EXACT);
    n->v8_columns = chain_tensor(n, tile128, CAPACITY, WIDTH, EXACT);
    n->dh16 = chain_tensor(n, bf16_rows, CAPACITY, 2 * WIDTH, EXACT);
    n->dh8 = chain_tensor(n, row128, CAPACITY, 2 * WIDTH, EXACT);
    n->dh8_columns = chain_tensor(n, tile128, CAPACITY, 2 * WIDTH, EXACT);
    n->v8_again = chain_tensor(n, tile128, CAPACITY, WIDTH, EXACT);
    n->dgate = chain_draw(n, CAPACITY * 4, REPEATABLE);
    n->y = chain_tensor(n, bf16_rows, TOKENS, HIDDEN, EXACT);
    return n;
}

static void free_chain(chain *n)
{
    for (int i = 0; i < n->num_arrays; i++) fp8flow_memory_free(n->context, n->arrays[i].at);
    free(n);
}

static int32_t expert_of(routing kind, int64_t token, int64_t slot)
{
    int32_t expert = (int32_t)f8_shuffle((uint64_t)token, (uint64_t)slot, EXPERTS);
    switch (kind) {
    case ONE_EXPERT: return slot == 1 ? EXPERTS - 1 : -1;
    case NOWHERE: return -1;
    case UNEVEN: return token % 3 == 0 || expert % 4 == 3 ? -1 : expert;
    default: return expert;
    }
}

/* Another routing into the same arrays; outputs are poisoned, counters 0. */
static void set_routing(chain *n, routing kind)
{
    int32_t expert[SLOTS];
    float gate[SLOTS], logits[TOKENS * EXPERTS];
    for (int64_t i = 0; i < SLOTS; i++) expert[i] = expert_of(kind, i / TOP_K, i % TOP_K);
    for (int64_t i = 0; i < SLOTS; i++) gate[i] = f8_uniform(5, (uint64_t)kind, (uint64_t)i) + 0.25f;
    for (int64_t i = 0; i < TOKENS * EXPERTS; i++) logits[i] = f8_normal(6, (uint64_t)kind, (uint64_t)i);
    for (int i = 0; i < n->num_arrays; i++) {
        chain_array *a = &n->arrays[i];
        if (a->purpose == INPUT) continue;
        assert_ok(fp8flow_memory_fill(n->context, a->at, a->purpose == COUNTER ? 0 : 0xFF, (size_t)a->bytes));
    }
    assert_ok(fp8flow_memory_copy(n->context, n->expert, expert, sizeof expert));
    assert_ok(fp8flow_memory_copy(n->context, n->gate, gate, sizeof gate));
    assert_ok(fp8flow_memory_copy(n->context, n->logits.data, logits, sizeof logits));
}

/* ---- The calls, in order ---- */

static fp8flow_status call_router(chain *n)
{
    fp8flow_router_args args = { &n->router, &n->logits,     NULL,      n->chosen,    n->chosen_gate,
                                 n->scores,  n->log_sum_exp, n->counts, n->score_sums };
    return fp8flow_router(n->context, &args);
}

static fp8flow_status call_permute_plan(chain *n)
{
    return fp8flow_permute_plan(n->context, &(fp8flow_permute_plan_args){ n->expert, &n->plan });
}

static fp8flow_status call_quantize_tokens(chain *n)
{
    return fp8flow_quantize(n->context, &(fp8flow_quantize_args){ .x = &n->x, .rows = &n->x8 });
}

static fp8flow_status call_permute_bf16(chain *n)
{
    return fp8flow_permute(n->context, &(fp8flow_permute_args){ .x = &n->x, .plan = &n->plan, .rows = &n->rows16 });
}

static fp8flow_status call_permute_both(chain *n)
{
    fp8flow_permute_args args = { &n->x8, &n->plan, &n->rows8, &n->columns8, n->gate, n->gate_rows, n->histogram };
    return fp8flow_permute(n->context, &args);
}

static fp8flow_status call_permute_columns(chain *n)
{
    fp8flow_permute_args args = { .x = &n->x8, .plan = &n->plan, .columns = &n->columns8_exact };
    return fp8flow_permute(n->context, &args);
}

static fp8flow_status call_transpose(chain *n)
{
    fp8flow_transpose_args args = { &n->rows8, &n->groups, &n->transposed, n->histogram2 };
    return fp8flow_transpose(n->context, &args);
}

static fp8flow_status call_quantize_groups(chain *n)
{
    fp8flow_quantize_args args = { &n->h, &n->groups, &n->h8, &n->h8_columns, n->nonfinite };
    return fp8flow_quantize(n->context, &args);
}

static fp8flow_status call_swiglu_bf16(chain *n)
{
    fp8flow_swiglu_args args = { .h = &n->h, .groups = &n->groups, .rows = &n->v16 };
    return fp8flow_swiglu(n->context, &args);
}

static fp8flow_status call_swiglu_fp8(chain *n)
{
    fp8flow_swiglu_args args = { &n->h, n->gate_rows, &n->groups, &n->v8, &n->v8_columns, n->nonfinite };
    return fp8flow_swiglu(n->context, &args);
}

static fp8flow_status call_swiglu_backward_bf16(chain *n)
{
    fp8flow_swiglu_backward_args args = { .h = &n->h, .groups = &n->groups, .dv = &n->dv, .rows = &n->dh16 };
    return fp8flow_swiglu_backward(n->context, &args);
}

static fp8flow_status call_swiglu_backward_fp8(chain *n)
{
    fp8flow_swiglu_backward_args args = { &n->h,           n->gate_rows, &n->groups, &n->dv,      &n->dh8,
                                          &n->dh8_columns, &n->v8_again, n->dgate,   n->nonfinite };
    return fp8flow_swiglu_backward(n->context, &args);
}

static fp8flow_status call_unpermute(chain *n)
{
    fp8flow_unpermute_args args = { &n->rows16, &n->plan, &n->y, n->gate_rows, n->gate_back };
    return fp8flow_unpermute(n->context, &args);
}

typedef fp8flow_status (*chain_call)(chain *n);
static const chain_call calls[] = { call_router,       call_permute_plan,         call_quantize_tokens,
                                    call_permute_bf16, call_permute_both,         call_permute_columns,
                                    call_transpose,    call_quantize_groups,      call_swiglu_bf16,
                                    call_swiglu_fp8,   call_swiglu_backward_bf16, call_swiglu_backward_fp8,
                                    call_unpermute };
enum { NUM_CALLS = sizeof calls / sizeof *calls };

/* ---- Graphs; where there are none, the calls are made ---- */

static fp8flow_graph *record(chain *n, int first, int count)
{
    fp8flow_graph *graph = NULL;
    if (!has_gpu()) return NULL;
    assert_ok(fp8flow_graph_begin(n->context));
    for (int i = first; i < first + count; i++) assert_ok(calls[i](n));
    assert_ok(fp8flow_graph_end(n->context, &graph));
    return graph;
}

static void replay(chain *n, fp8flow_graph *graph, int first, int count)
{
    if (graph) assert_ok(fp8flow_graph_launch(n->context, graph));
    else
        for (int i = first; i < first + count; i++) assert_ok(calls[i](n));
}

static void assert_same_results(const chain *a, const chain *b, int repeatable_too)
{
    for (int i = 0; i < a->num_arrays; i++) {
        const chain_array *array = &a->arrays[i];
        if (array->purpose == REPEATABLE && !repeatable_too) continue;
        void *host = fetch(a->context, array->at, array->bytes);
        assert_device_bytes(b->context, b->arrays[i].at, host, array->bytes);
        free(host);
    }
}

static void run_reference(chain *n, routing kind)
{
    set_routing(n, kind);
    for (int i = 0; i < NUM_CALLS; i++) assert_ok(calls[i](n));
}

static void test_each_operator_replays_with_other_routings(void **state)
{
    (void)state;
    fp8flow_context *reference_context = make_context(FP8FLOW_REFERENCE, 1);
    chain *n = make_chain(device_context()), *reference = make_chain(reference_context);
    fp8flow_graph *graphs[NUM_CALLS];
    set_routing(n, UNEVEN); /* what is recorded must not remember it */
    for (int i = 0; i < NUM_CALLS; i++) graphs[i] = record(n, i, 1);
    for (int round = 0; round < 2; round++)
        for (routing kind = 0; kind < NUM_ROUTINGS; kind++) {
            set_routing(n, kind);
            for (int i = 0; i < NUM_CALLS; i++) replay(n, graphs[i], i, 1);
            assert_ok(fp8flow_synchronize(n->context));
            run_reference(reference, kind);
            assert_same_results(reference, n, 0);
        }
    for (int i = 0; i < NUM_CALLS; i++) fp8flow_graph_destroy(n->context, graphs[i]);
    free_chain(n);
    free_chain(reference);
    fp8flow_context_destroy(reference_context);
}

static void test_calls_without_a_graph_give_the_same(void **state)
{
    (void)state;
    fp8flow_context *reference_context = make_context(FP8FLOW_REFERENCE, 1);
    chain *n = make_chain(device_context()), *reference = make_chain(reference_context);
    for (routing kind = 0; kind < NUM_ROUTINGS; kind++) {
        run_reference(reference, kind);
        run_reference(n, kind);
        assert_same_results(reference, n, 0);
    }
    free_chain(n);
    free_chain(reference);
    fp8flow_context_destroy(reference_context);
}

static void test_a_thousand_runs_give_the_same_bits(void **state)
{
    (void)state;
    int runs = has_gpu() ? 1000 : 10;
    chain *n = make_chain(device_context()), *first = make_chain(device_context());
    fp8flow_graph *graph = record(n, 0, NUM_CALLS);
    run_reference(first, BALANCED);
    for (int run = 0; run < runs; run++) {
        set_routing(n, BALANCED);
        replay(n, graph, 0, NUM_CALLS);
        assert_same_results(first, n, 1);
    }
    fp8flow_graph_destroy(n->context, graph);
    free_chain(n);
    free_chain(first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_operator_replays_with_other_routings),
        cmocka_unit_test(test_calls_without_a_graph_give_the_same),
        cmocka_unit_test(test_a_thousand_runs_give_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
