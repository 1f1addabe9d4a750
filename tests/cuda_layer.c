/* cuda_layer.c - the MoE layer on the GPU: near the CPU's layer in every recipe and checkpointing mode, the same bits
 * in every mode and run, and in a graph that is replayed with tokens that choose other experts. */
#include "cuda_support.h"
#include "moe_fixture.h"

static const fp8flow_checkpointing modes[] = { FP8FLOW_KEEP_ALL, FP8FLOW_MOE_EXPERT, FP8FLOW_FULL };
enum { NUM_MODES = sizeof modes / sizeof modes[0] };

/* ---- One layer in the memory of one context ---- */

enum { NUM_OUTPUTS = 7 };

typedef struct {
    fp8flow_context *context;
    const moe_case *shape;
    fp8flow_moe *moe;
    void *inputs[7];
    fp8flow_moe_weights weights;
    fp8flow_moe_gradients gradients;
    fp8flow_tensor x, dy, y, dx;
    void *outputs[NUM_OUTPUTS]; /* y, dx, and the gradients */
    int64_t bytes[NUM_OUTPUTS];
} layer;

static void make_gradients(layer *l)
{
    const moe_case *c = l->shape;
    int64_t experts = c->router.num_experts, matrix = c->hidden * c->width, shared = c->hidden * c->shared_width;
    const int64_t bytes[NUM_OUTPUTS] = { 2 * c->tokens * c->hidden,
                                         2 * c->tokens * c->hidden,
                                         4 * experts * c->hidden,
                                         8 * experts * matrix,
                                         4 * experts * matrix,
                                         8 * shared,
                                         4 * shared };
    memcpy(l->bytes, bytes, sizeof bytes);
    for (int i = 0; i < NUM_OUTPUTS; i++) l->outputs[i] = draw(l->context, bytes[i]);
    l->gradients = (fp8flow_moe_gradients){ l->outputs[2], l->outputs[3], l->outputs[4], l->outputs[5], l->outputs[6] };
    l->y = f8_bf16(l->outputs[0], c->tokens, c->hidden);
    l->dx = f8_bf16(l->outputs[1], c->tokens, c->hidden);
}

static void open_layer(layer *l, fp8flow_context *context, fp8flow_comm *comm, const moe_case *c, const moe_data *d)
{
    int64_t experts = c->router.num_experts, matrix = c->hidden * c->width, shared = c->hidden * c->shared_width;
    const void *host[7] = { d->x, d->dy, d->router, d->fc1, d->fc2, d->shared_fc1, d->shared_fc2 };
    const int64_t bytes[7] = { 2 * c->tokens * c->hidden,
                               2 * c->tokens * c->hidden,
                               4 * experts * c->hidden,
                               4 * experts * matrix,
                               2 * experts * matrix,
                               4 * shared,
                               2 * shared };
    *l = (layer){ .context = context, .shape = c };
    for (int i = 0; i < 7; i++) l->inputs[i] = draw_copy(context, host[i], bytes[i]);
    l->x = f8_bf16(l->inputs[0], c->tokens, c->hidden);
    l->dy = f8_bf16(l->inputs[1], c->tokens, c->hidden);
    l->weights = (fp8flow_moe_weights){ .router = l->inputs[2],
                                        .fc1 = l->inputs[3],
                                        .fc2 = l->inputs[4],
                                        .shared_fc1 = l->inputs[5],
                                        .shared_fc2 = l->inputs[6] };
    make_gradients(l);
    fp8flow_moe_config config = { .hidden = c->hidden,
                                  .expert_width = c->width,
                                  .shared_width = c->shared_width,
                                  .max_tokens = f8_max(c->tokens, 1),
                                  .router = c->router,
                                  .recipe = c->recipe,
                                  .checkpointing = c->checkpointing };
    assert_ok(fp8flow_moe_create(context, comm, &config, &l->moe));
    assert_ok(fp8flow_moe_set_weights(l->moe, &l->weights));
}

static void close_layer(layer *l)
{
    fp8flow_moe_destroy(l->moe);
    for (int i = 0; i < 7; i++) fp8flow_memory_free(l->context, l->inputs[i]);
    for (int i = 0; i < NUM_OUTPUTS; i++) fp8flow_memory_free(l->context, l->outputs[i]);
}

/* What is recorded in the graph. */
static void issue_step(layer *l)
{
    for (int i = 2; i < NUM_OUTPUTS; i++)
        assert_ok(fp8flow_memory_fill(l->context, l->outputs[i], 0, (size_t)l->bytes[i]));
    assert_ok(fp8flow_moe_forward(l->moe, &l->x, &l->y));
    assert_ok(fp8flow_moe_backward(l->moe, &l->x, &l->dy, l->shape->loss_scale, &l->gradients, &l->dx));
}

static void assert_same_outputs(layer *l, void *const expected[NUM_OUTPUTS])
{
    for (int i = 0; i < NUM_OUTPUTS; i++) assert_device_bytes(l->context, l->outputs[i], expected[i], l->bytes[i]);
}

static void fetch_outputs(layer *l, void *host[NUM_OUTPUTS])
{
    for (int i = 0; i < NUM_OUTPUTS; i++) host[i] = fetch(l->context, l->outputs[i], l->bytes[i]);
}

static void drop_outputs(void *host[NUM_OUTPUTS])
{
    for (int i = 0; i < NUM_OUTPUTS; i++) free(host[i]);
}

/* ---- Cases ---- */

/* On one rank; the comm of fp8flow_run_ranks lives as long as its body, so the test runs in it. Assertions are for the
 * main thread: one rank is run on the calling one. */
typedef struct {
    void (*test)(fp8flow_comm *comm);
} rank_test;

static fp8flow_status call_test(fp8flow_comm *comm, void *user)
{
    ((const rank_test *)user)->test(comm);
    return FP8FLOW_OK;
}

static void on_one_rank(void (*test)(fp8flow_comm *comm))
{
    rank_test body = { test };
    assert_ok(fp8flow_run_ranks(1, call_test, &body));
}

static fp8flow_context *cpu_context(void)
{
    static fp8flow_context *context;
    fp8flow_context_options options = { .backend = FP8FLOW_CPU };
    if (!context) assert_ok(fp8flow_context_create(&options, &context));
    return context;
}

/* ---- Near the CPU ---- */

static void assert_same_figures(layer *device, layer *host)
{
    fp8flow_moe_report a, b;
    int64_t load_a[MOE_MAX_EXPERTS], load_b[MOE_MAX_EXPERTS];
    assert_ok(fp8flow_moe_get_report(device->moe, &a));
    assert_ok(fp8flow_moe_get_report(host->moe, &b));
    assert_ok(fp8flow_moe_get_load(device->moe, load_a));
    assert_ok(fp8flow_moe_get_load(host->moe, load_b));
    assert_memory_equal(load_a, load_b, (size_t)device->shape->router.num_experts * sizeof *load_a);
    assert_int_equal(a.padded_rows, b.padded_rows);
    assert_int_equal(a.explicit_casts, b.explicit_casts);
    assert_int_equal(a.nonfinite, b.nonfinite);
    assert_int_equal(a.dispatch_bytes[0], b.dispatch_bytes[0]);
    for (int i = 0; i < 3; i++) assert_true(fabs(a.losses[i] - b.losses[i]) <= 1e-5 * fabs(b.losses[i]));
}

/* A code of x2 that falls to the other side of a rounding boundary is 2^-4 of its value away: the fewer numbers there
 * are, the more one of them weighs. */
static void compare_with_cpu(fp8flow_comm *comm, const moe_case *c, const moe_data *d)
{
    layer device, host;
    void *got[NUM_OUTPUTS], *expected[NUM_OUTPUTS];
    open_layer(&device, device_context(), comm, c, d);
    open_layer(&host, cpu_context(), comm, c, d);
    issue_step(&device);
    issue_step(&host);
    assert_same_figures(&device, &host);
    fetch_outputs(&device, got);
    fetch_outputs(&host, expected);
    double bound = strcmp(c->recipe, "bf16") == 0 ? 0.004 : c->tokens < 100 ? 0.04 : 0.01;
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        double far = relative_distance(got[i], expected[i], device.bytes[i], i < 2 ? FP8FLOW_BF16 : FP8FLOW_F32);
        if (!(far <= bound))
            fail_msg("%s, %lld tokens, mode %d, output %d: %g from the CPU's", c->recipe, (long long)c->tokens,
                     (int)c->checkpointing, i, far);
    }
    drop_outputs(got);
    drop_outputs(expected);
    close_layer(&device);
    close_layer(&host);
}

static void compare_case(fp8flow_comm *comm, moe_case c)
{
    moe_data d = moe_make_data(&c, 11);
    for (int r = 0; r < NUM_MOE_RECIPES; r++)
        for (int mode = 0; mode < NUM_MODES; mode++) {
            c.recipe = moe_recipes[r];
            c.checkpointing = modes[mode];
            compare_with_cpu(comm, &c, &d);
        }
    moe_free_data(&d);
}

/* Also widths that fill no block of 128 and no tile, a sigmoid router with groups, one token, none. */
static void compare_cases(fp8flow_comm *comm)
{
    moe_case c = moe_large_case();
    compare_case(comm, c);
    c.tokens = 97, c.hidden = 80, c.width = 48, c.shared_width = 16;
    c.router.num_experts = 6, c.router.top_k = 2, c.router.num_groups = 3, c.router.top_groups = 2;
    c.router.score = FP8FLOW_SCORE_SIGMOID, c.router.gate_scale = 2.5f;
    c.router.sequence_length = 97;
    compare_case(comm, c);
    c.tokens = 1, c.shared_width = 0, c.router.sequence_length = 1;
    compare_case(comm, c);
    c.tokens = 0;
    compare_case(comm, c);
}

static void test_near_the_cpu(void **state)
{
    (void)state;
    on_one_rank(compare_cases);
}

/* ---- The same bits ---- */

static void compare_modes(fp8flow_comm *comm)
{
    moe_case c = moe_large_case();
    moe_data d = moe_make_data(&c, 12);
    for (int r = 0; r < NUM_MOE_RECIPES; r++) {
        void *expected[NUM_OUTPUTS] = { NULL };
        c.recipe = moe_recipes[r];
        for (int mode = 0; mode < NUM_MODES; mode++) {
            layer l;
            c.checkpointing = modes[mode];
            open_layer(&l, device_context(), comm, &c, &d);
            issue_step(&l);
            if (mode == 0) fetch_outputs(&l, expected);
            assert_same_outputs(&l, expected);
            issue_step(&l);
            assert_same_outputs(&l, expected);
            close_layer(&l);
        }
        drop_outputs(expected);
    }
    moe_free_data(&d);
}

static void test_same_bits_in_every_mode(void **state)
{
    (void)state;
    on_one_rank(compare_modes);
}

/* Column forms by permute and by swiglu_backward, or by a pass of their own, are defined differently for x2 and dh
 * (rounded once or twice), but the row forms are the same: y and dx are. */
static void compare_fusions(fp8flow_comm *comm)
{
    moe_case c = moe_large_case();
    moe_data d = moe_make_data(&c, 13);
    layer fused, apart;
    void *expected[NUM_OUTPUTS];
    c.recipe = "flow";
    open_layer(&fused, device_context(), comm, &c, &d);
    c.recipe = "flow+unfused";
    open_layer(&apart, device_context(), comm, &c, &d);
    issue_step(&fused);
    issue_step(&apart);
    fetch_outputs(&fused, expected);
    assert_device_bytes(apart.context, apart.outputs[0], expected[0], apart.bytes[0]);
    assert_device_bytes(apart.context, apart.outputs[1], expected[1], apart.bytes[1]);
    drop_outputs(expected);
    close_layer(&fused);
    close_layer(&apart);
    moe_free_data(&d);
}

static void test_unfused_rows_are_the_same(void **state)
{
    (void)state;
    on_one_rank(compare_fusions);
}

/* ---- Graphs ---- */

/* All tokens to two experts, or spread: other counts, other padding, the same graph. */
static void set_tokens(layer *l, uint64_t seed, int spread)
{
    int64_t count = l->shape->tokens * l->shape->hidden;
    uint16_t *x = moe_random_bf16(count, seed, 1, 1);
    for (int64_t i = l->shape->hidden; !spread && i < count; i++)
        x[i] = f8_bf16_encode(f8_bf16_decode(x[i % l->shape->hidden]) + 1e-3f * f8_bf16_decode(x[i]));
    assert_ok(fp8flow_memory_copy(l->context, l->x.data, x, (size_t)count * 2));
    free(x);
}

static void replay_with_other_tokens(fp8flow_comm *comm, const moe_case *c, const moe_data *d)
{
    fp8flow_graph *graph;
    layer l;
    open_layer(&l, device_context(), comm, c, d);
    issue_step(&l); /* loads the kernels */
    assert_ok(fp8flow_synchronize(l.context));
    assert_ok(fp8flow_graph_begin(l.context));
    issue_step(&l);
    assert_ok(fp8flow_graph_end(l.context, &graph));
    for (int round = 0; round < 4; round++) {
        void *expected[NUM_OUTPUTS];
        set_tokens(&l, 20 + (uint64_t)round, round % 2);
        issue_step(&l);
        fetch_outputs(&l, expected);
        for (int i = 0; i < NUM_OUTPUTS; i++)
            assert_ok(fp8flow_memory_fill(l.context, l.outputs[i], 0xFF, (size_t)l.bytes[i]));
        assert_ok(fp8flow_graph_launch(l.context, graph));
        assert_same_outputs(&l, expected);
        drop_outputs(expected);
    }
    fp8flow_graph_destroy(l.context, graph);
    close_layer(&l);
}

static void replay_all(fp8flow_comm *comm)
{
    moe_case c = moe_large_case();
    moe_data d = moe_make_data(&c, 14);
    for (int r = 0; r < NUM_MOE_RECIPES; r++)
        for (int mode = 0; mode < NUM_MODES; mode++) {
            c.recipe = moe_recipes[r];
            c.checkpointing = modes[mode];
            replay_with_other_tokens(comm, &c, &d);
        }
    moe_free_data(&d);
}

static void test_graph_with_other_routings(void **state)
{
    (void)state;
    if (!has_gpu()) skip();
    on_one_rank(replay_all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_near_the_cpu),
        cmocka_unit_test(test_same_bits_in_every_mode),
        cmocka_unit_test(test_unfused_rows_are_the_same),
        cmocka_unit_test(test_graph_with_other_routings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
