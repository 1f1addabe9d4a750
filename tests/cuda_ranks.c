/* cuda_ranks.c - the MoE layer on several ranks that share a GPU, each a thread with a context of its own: near the
 * CPU's layer on as many ranks and near the GPU's on one, the same bits in every run and mode.
 * Without a GPU, ranks on memory that is taken for a device's have the bits of those that know that it is not.
 *
 * Bodies run on threads, where cmocka's assertions must not be used: they return a status.
 */
#include "cuda_support.h"
#include "moe_fixture.h"

static const fp8flow_checkpointing modes[] = { FP8FLOW_KEEP_ALL, FP8FLOW_MOE_EXPERT, FP8FLOW_FULL };
enum { NUM_MODES = sizeof modes / sizeof modes[0] };

/* ---- One rank ---- */

enum { X, DY, ROUTER, FC1, FC2, SHARED_FC1, SHARED_FC2, NUM_INPUTS };
enum { Y, DX, D_ROUTER, D_FC1, D_FC2, D_SHARED_FC1, D_SHARED_FC2, NUM_OUTPUTS };

typedef struct {
    fp8flow_context *context;
    fp8flow_moe *moe;
    const moe_case *shape;
    int64_t tokens;
    void *input[NUM_INPUTS], *output[NUM_OUTPUTS]; /* memory of the context */
    int64_t output_bytes[NUM_OUTPUTS];
} device_rank;

/* First token and first expert of a rank, in elements of x and of fc2. */
typedef struct {
    int64_t token, expert;
} place;

static fp8flow_status upload(device_rank *r, const moe_data *d, place at)
{
    const moe_case *c = r->shape;
    int64_t matrix = c->hidden * c->width, experts = r->moe->local_experts * matrix,
            shared = c->hidden * c->shared_width;
    const struct {
        const void *host;
        int64_t bytes;
    } from[NUM_INPUTS] = { { d->x + at.token, 2 * r->tokens * c->hidden },
                           { d->dy + at.token, 2 * r->tokens * c->hidden },
                           { d->router, 4 * c->router.num_experts * c->hidden },
                           { d->fc1 + 2 * at.expert, 4 * experts },
                           { d->fc2 + at.expert, 2 * experts },
                           { d->shared_fc1, 4 * shared },
                           { d->shared_fc2, 2 * shared } };
    const int64_t bytes[NUM_OUTPUTS] = { from[X].bytes, from[X].bytes, from[ROUTER].bytes, 8 * experts,
                                         4 * experts,   8 * shared,    4 * shared };
    for (int i = 0; i < NUM_INPUTS; i++) {
        F8_TRY(fp8flow_memory_alloc(r->context, (size_t)from[i].bytes, &r->input[i]));
        F8_TRY(fp8flow_memory_copy(r->context, r->input[i], from[i].host, (size_t)from[i].bytes));
    }
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        r->output_bytes[i] = bytes[i];
        F8_TRY(fp8flow_memory_alloc(r->context, (size_t)bytes[i], &r->output[i]));
    }
    fp8flow_moe_weights weights = { .router = r->input[ROUTER],
                                    .fc1 = r->input[FC1],
                                    .fc2 = r->input[FC2],
                                    .shared_fc1 = r->input[SHARED_FC1],
                                    .shared_fc2 = r->input[SHARED_FC2] };
    return fp8flow_moe_set_weights(r->moe, &weights);
}

/* Rows are poisoned before, gradients 0. */
static fp8flow_status issue_step(device_rank *r)
{
    const moe_case *c = r->shape;
    for (int i = 0; i < NUM_OUTPUTS; i++)
        F8_TRY(fp8flow_memory_fill(r->context, r->output[i], i < D_ROUTER ? 0xFF : 0, (size_t)r->output_bytes[i]));
    fp8flow_tensor x = f8_bf16(r->input[X], r->tokens, c->hidden), dy = f8_bf16(r->input[DY], r->tokens, c->hidden);
    fp8flow_tensor y = f8_bf16(r->output[Y], r->tokens, c->hidden), dx = f8_bf16(r->output[DX], r->tokens, c->hidden);
    fp8flow_moe_gradients gradients = { r->output[D_ROUTER], r->output[D_FC1], r->output[D_FC2],
                                        r->output[D_SHARED_FC1], r->output[D_SHARED_FC2] };
    F8_TRY(fp8flow_moe_forward(r->moe, &x, &y));
    return fp8flow_moe_backward(r->moe, &x, &dy, c->loss_scale, &gradients, &dx);
}

/* The outputs a second time, against the first time's in `host`. */
static fp8flow_status check_same_bits(const device_rank *r, void *const host[NUM_OUTPUTS])
{
    for (int i = 0; i < NUM_OUTPUTS; i++) {
        size_t bytes = (size_t)r->output_bytes[i];
        void *again = malloc(bytes + 1);
        F8_REQUIRE(again, ENOMEM, "no memory for the test");
        fp8flow_status status = fp8flow_memory_copy(r->context, again, r->output[i], bytes);
        if (status == FP8FLOW_OK && bytes && memcmp(again, host[i], bytes) != 0)
            status = F8_FAIL(EFORMAT, "rank %d: output %d has other bits in the second run", r->moe->comm->rank, i);
        free(again);
        F8_TRY(status);
    }
    return FP8FLOW_OK;
}

static fp8flow_status run_twice(device_rank *r, const moe_job *job, place at)
{
    moe_rank_result *own = &job->result->rank[r->moe->comm->rank];
    void *const host[NUM_OUTPUTS] = { job->result->y + at.token,
                                      job->result->dx + at.token,
                                      own->router,
                                      job->result->fc1 + 2 * at.expert,
                                      job->result->fc2 + at.expert,
                                      own->shared_fc1,
                                      own->shared_fc2 };
    F8_TRY(upload(r, job->data, at));
    F8_TRY(issue_step(r));
    F8_TRY(moe_collect(r->moe, own));
    for (int i = 0; i < NUM_OUTPUTS; i++)
        F8_TRY(fp8flow_memory_copy(r->context, host[i], r->output[i], (size_t)r->output_bytes[i]));
    F8_TRY(issue_step(r));
    return check_same_bits(r, host);
}

static fp8flow_status device_body(fp8flow_comm *comm, void *user)
{
    const moe_job *job = user;
    const moe_case *c = job->c;
    const fp8flow_context_options device_options = { .backend = device_backend(), .num_threads = 1 };
    device_rank r = { .shape = c, .tokens = moe_tokens_of(c, comm->rank) };
    int64_t first = 0, most = 1;
    for (int32_t i = 0; i < comm->rank; i++) first += moe_tokens_of(c, i);
    for (int32_t i = 0; i < comm->size; i++) most = f8_max(most, moe_tokens_of(c, i));
    fp8flow_moe_config config = moe_config_of(c, most);
    F8_TRY(create_device_context(&device_options, &r.context));
    fp8flow_status status = fp8flow_moe_create(r.context, comm, &config, &r.moe);
    if (status == FP8FLOW_OK)
        status = run_twice(&r, job, (place){ first * c->hidden, r.moe->first_expert * c->hidden * c->width });
    for (int i = 0; i < NUM_INPUTS; i++) fp8flow_memory_free(r.context, r.input[i]);
    for (int i = 0; i < NUM_OUTPUTS; i++) fp8flow_memory_free(r.context, r.output[i]);
    fp8flow_moe_destroy(r.moe);
    fp8flow_context_destroy(r.context);
    return status;
}

static moe_result run_on_device(const moe_case *c, const moe_data *d)
{
    moe_result result = moe_try_body(c, d, device_body);
    if (result.status != FP8FLOW_OK)
        fail_msg("%s, mode %d: %s", c->recipe, (int)c->checkpointing, fp8flow_last_error());
    return result;
}

/* ---- Near others ---- */

static void assert_near(const moe_case *c, const moe_result *got, const moe_result *expected, const char *whose)
{
    int64_t rows = 2 * c->tokens * c->hidden, matrix = 4 * c->router.num_experts * c->hidden * c->width;
    int64_t shared = 4 * c->hidden * c->shared_width;
    const struct {
        const void *got, *expected;
        int64_t bytes;
        fp8flow_dtype dtype;
    } pairs[] = { { got->y, expected->y, rows, FP8FLOW_BF16 },
                  { got->dx, expected->dx, rows, FP8FLOW_BF16 },
                  { got->router, expected->router, 4 * c->router.num_experts * c->hidden, FP8FLOW_F32 },
                  { got->fc1, expected->fc1, 2 * matrix, FP8FLOW_F32 },
                  { got->fc2, expected->fc2, matrix, FP8FLOW_F32 },
                  { got->shared_fc1, expected->shared_fc1, 2 * shared, FP8FLOW_F32 },
                  { got->shared_fc2, expected->shared_fc2, shared, FP8FLOW_F32 } };
    /* As in cuda_layer.c: the fewer numbers there are, the more one weighs that is rounded the other way. */
    double bound = c->tokens < 100 ? 0.04 : 0.01;
    for (int i = 0; i < 7; i++) {
        double far = relative_distance(pairs[i].got, pairs[i].expected, pairs[i].bytes, pairs[i].dtype);
        if (!(far <= bound))
            fail_msg("%s, %lld tokens, mode %d, output %d: %g from %s", c->recipe, (long long)c->tokens,
                     (int)c->checkpointing, i, far, whose);
    }
}

static void assert_same_figures(const moe_case *c, const moe_result *got, const moe_result *expected)
{
    for (int32_t r = 0; r < c->num_ranks; r++) {
        const fp8flow_moe_report *a = &got->rank[r].report, *b = &expected->rank[r].report;
        assert_memory_equal(got->rank[r].load, expected->rank[r].load, (size_t)c->router.num_experts * sizeof(int64_t));
        assert_int_equal(a->tokens, b->tokens);
        assert_int_equal(a->received_rows, b->received_rows);
        assert_int_equal(a->padded_rows, b->padded_rows);
        assert_int_equal(a->explicit_casts, b->explicit_casts);
        assert_int_equal(a->nonfinite, b->nonfinite);
        assert_int_equal(a->routing_bytes, b->routing_bytes);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(a->dispatch_bytes[i], b->dispatch_bytes[i]);
            assert_int_equal(a->combine_bytes[i], b->combine_bytes[i]);
        }
        for (int i = 0; i < 3; i++) assert_true(fabs(a->losses[i] - b->losses[i]) <= 1e-5 * fabs(b->losses[i]));
    }
}

static moe_case ranks_case(void)
{
    moe_case c = moe_large_case();
    c.num_ranks = 4;
    return c;
}

/* In every recipe and mode near the CPU's ranks; the modes among each other bit for bit. */
static void compare_case(moe_case c)
{
    moe_data d = moe_make_data(&c, 31);
    for (int r = 0; r < NUM_MOE_RECIPES; r++) {
        moe_result first = { 0 };
        c.recipe = moe_recipes[r];
        for (int mode = 0; mode < NUM_MODES; mode++) {
            c.checkpointing = modes[mode];
            moe_result device = run_on_device(&c, &d), host = moe_run(&c, &d);
            assert_same_figures(&c, &device, &host);
            assert_near(&c, &device, &host, "the CPU's ranks");
            if (!has_gpu()) moe_assert_same_bits(&c, &device, &host);
            moe_free_result(&host);
            if (mode == 0) first = device;
            else {
                moe_assert_same_bits(&c, &device, &first);
                moe_free_result(&device);
            }
        }
        moe_free_result(&first);
    }
    moe_free_data(&d);
}

static void test_four_ranks_are_near_the_cpu(void **state)
{
    (void)state;
    compare_case(ranks_case());
}

/* More choices than ranks, experts that the ranks do not divide, widths that fill no tile, a sigmoid router with
 * groups, ranks with one token and with none. */
static void test_odd_shapes(void **state)
{
    (void)state;
    static const int64_t uneven[] = { 50, 0, 1, 46 };
    moe_case c = ranks_case();
    c.tokens = 97, c.hidden = 80, c.width = 48, c.shared_width = 16, c.rank_tokens = uneven;
    c.router.num_experts = 6, c.router.top_k = 4, c.router.num_groups = 3, c.router.top_groups = 2;
    c.router.score = FP8FLOW_SCORE_SIGMOID, c.router.gate_scale = 2.5f;
    c.router.sequence_length = 1;
    compare_case(c);
}

static void test_a_rank_without_experts(void **state)
{
    (void)state;
    moe_case c = ranks_case();
    c.tokens = 96, c.shared_width = 0, c.router.num_experts = 3, c.router.top_k = 1, c.router.sequence_length = 24;
    compare_case(c);
}

static void test_no_tokens_at_all(void **state)
{
    (void)state;
    moe_case c = ranks_case();
    c.tokens = 0;
    compare_case(c);
}

/* What is added in BF16 on the way back is rounded once more, the rest is the same work in another place. */
static void test_four_ranks_are_near_one(void **state)
{
    (void)state;
    moe_case c = ranks_case();
    moe_data d = moe_make_data(&c, 32);
    for (int r = 0; r < NUM_MOE_RECIPES; r++) {
        c.recipe = moe_recipes[r];
        c.num_ranks = 4;
        moe_result four = run_on_device(&c, &d);
        c.num_ranks = 1;
        moe_result one = run_on_device(&c, &d);
        assert_near(&c, &four, &one, "one rank");
        moe_free_result(&four);
        moe_free_result(&one);
    }
    moe_free_data(&d);
}

/* ---- What ranks cannot do ---- */

static fp8flow_status record_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    moe_case c = ranks_case();
    const fp8flow_context_options device_options = { .backend = device_backend(), .num_threads = 1 };
    fp8flow_moe_config config = moe_config_of(&c, 16);
    fp8flow_moe_weights weights = { 0 };
    fp8flow_tensor none = f8_bf16(NULL, 0, c.hidden);
    fp8flow_context *context;
    fp8flow_moe *moe = NULL;
    float router = 0;
    F8_TRY(create_device_context(&device_options, &context));
    fp8flow_status status = fp8flow_moe_create(context, comm, &config, &moe);
    if (status == FP8FLOW_OK) {
        weights.router = &router; /* nothing comes as far as reading it */
        moe->weights = weights;
        status = fp8flow_graph_begin(context);
    }
    if (status == FP8FLOW_OK) {
        fp8flow_graph *graph = NULL;
        status = fp8flow_moe_forward(moe, &none, &none);
        char message[128];
        snprintf(message, sizeof message, "%s", fp8flow_last_error());
        fp8flow_status ended = fp8flow_graph_end(context, &graph);
        fp8flow_graph_destroy(context, graph);
        status = ended != FP8FLOW_OK ? ended : f8_fail(status, "%s", message);
    }
    fp8flow_moe_destroy(moe);
    fp8flow_context_destroy(context);
    return status;
}

static void test_a_graph_of_several_ranks_is_refused(void **state)
{
    (void)state;
    if (!has_gpu()) skip();
    assert_fails(fp8flow_run_ranks(2, record_body, NULL), FP8FLOW_ENOSYS,
                 "moe_forward: 2 ranks: a graph can record one rank only");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_four_ranks_are_near_the_cpu), cmocka_unit_test(test_odd_shapes),
        cmocka_unit_test(test_a_rank_without_experts),      cmocka_unit_test(test_no_tokens_at_all),
        cmocka_unit_test(test_four_ranks_are_near_one),     cmocka_unit_test(test_a_graph_of_several_ranks_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
