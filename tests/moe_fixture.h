/* moe_fixture.h - run a MoE layer of any recipe on any number of ranks and collect everything it produced.
 *
 * The data of a case belongs to the whole job; ranks take consecutive tokens and the experts they own. The body
 * of a rank runs on a thread of its own and returns a status: cmocka's assertions are for the main thread only.
 */
#ifndef F8_TESTS_MOE_FIXTURE_H
#define F8_TESTS_MOE_FIXTURE_H

#include "support.h"

#include "comm/comm.h"
#include "fp8flow.h"
#include "moe/moe.h"

enum { MOE_MAX_RANKS = 8, MOE_MAX_EXPERTS = 64 };

/* Recipes that every property is checked in. */
static const char *const moe_recipes[] = { "bf16", "tensorwise",  "blockwise", "deepseek",
                                           "flow", "flow+col128", "flow+e5m2", "flow+unfused" };
enum { NUM_MOE_RECIPES = sizeof moe_recipes / sizeof moe_recipes[0], FIRST_FP8_RECIPE = 1 };

typedef struct {
    int64_t tokens, hidden, width, shared_width; /* tokens of all ranks */
    fp8flow_router_config router;
    const char *recipe;
    fp8flow_checkpointing checkpointing;
    int32_t num_ranks;          /* 0: 1 */
    const int64_t *rank_tokens; /* [num_ranks]; NULL: equal shares */
    fp8flow_backend backend;
    int32_t num_threads;
    float loss_scale;
    /* Called on every rank before forward and after backward; may be NULL. */
    fp8flow_status (*before)(fp8flow_moe *moe, void *user);
    fp8flow_status (*after)(fp8flow_moe *moe, void *user);
    void *user;
} moe_case;

/* A plain layer: softmax, k of E experts, one rank, flow. */
static inline moe_case moe_default_case(void)
{
    return (moe_case){ .tokens = 96,
                       .hidden = 64,
                       .width = 32,
                       .router = { .num_experts = 5,
                                   .top_k = 2,
                                   .gate_rule = FP8FLOW_GATE_NORMALIZED,
                                   .gate_scale = 1,
                                   .num_groups = 1,
                                   .top_groups = 1,
                                   .sequence_length = 1 },
                       .recipe = "flow",
                       .num_ranks = 1,
                       .num_threads = 1,
                       .loss_scale = 1 };
}

/* Several tiles and sequences, a shared expert, every loss. */
static inline moe_case moe_large_case(void)
{
    moe_case c = moe_default_case();
    c.tokens = 384;
    c.hidden = 256;
    c.width = 192;
    c.shared_width = 64;
    c.router.num_experts = 8;
    c.router.top_k = 3;
    c.router.sequence_length = 96;
    c.router.aux_coef = 0.01f;
    c.router.sequence_coef = 0.01f;
    c.router.z_coef = 0.001f;
    return c;
}

/* Inputs and parameters of the whole job; router_bias NULL unless asked for. */
typedef struct {
    uint16_t *x, *dy, *fc1, *fc2, *shared_fc1, *shared_fc2;
    float *router, *router_bias;
} moe_data;

static inline uint16_t *moe_random_bf16(int64_t count, uint64_t seed, uint64_t stream, float scale)
{
    uint16_t *values = poisoned(count * 2);
    for (int64_t i = 0; i < count; i++) values[i] = f8_bf16_encode(scale * f8_normal(seed, stream, (uint64_t)i));
    return values;
}

static inline float *moe_random_f32(int64_t count, uint64_t seed, uint64_t stream, float scale)
{
    float *values = poisoned(count * 4);
    for (int64_t i = 0; i < count; i++) values[i] = scale * f8_normal(seed, stream, (uint64_t)i);
    return values;
}

/* x and dy N(0, 1); weights such that h, y2 and the logits are about N(0, 1) as well. */
static inline moe_data moe_make_data(const moe_case *c, uint64_t seed)
{
    int64_t experts = c->router.num_experts, matrix = c->hidden * c->width, shared = c->hidden * c->shared_width;
    float by_hidden = 1 / sqrtf((float)c->hidden), by_width = 1 / sqrtf((float)c->width);
    return (moe_data){ .x = moe_random_bf16(c->tokens * c->hidden, seed, 1, 1),
                       .dy = moe_random_bf16(c->tokens * c->hidden, seed, 2, 1),
                       .fc1 = moe_random_bf16(experts * 2 * matrix, seed, 3, by_hidden),
                       .fc2 = moe_random_bf16(experts * matrix, seed, 4, by_width),
                       .shared_fc1 = moe_random_bf16(2 * shared, seed, 5, by_hidden),
                       .shared_fc2 = moe_random_bf16(shared, seed, 6, by_width),
                       .router = moe_random_f32(experts * c->hidden, seed, 7, by_hidden) };
}

static inline void moe_free_data(moe_data *d)
{
    free(d->x), free(d->dy), free(d->fc1), free(d->fc2), free(d->shared_fc1), free(d->shared_fc2);
    free(d->router), free(d->router_bias);
}

/* Operators whose calls are counted. */
#define MOE_COUNTED_OPS(X) X(quantize) X(dequantize) X(transpose) X(gemm) X(swiglu) X(permute) X(add)
enum {
#define MOE_X(op) MOE_CALLS_##op,
    MOE_COUNTED_OPS(MOE_X)
#undef MOE_X
        MOE_NUM_COUNTED
};

/* Of one rank. */
typedef struct {
    int64_t forward_calls[MOE_NUM_COUNTED], backward_calls[MOE_NUM_COUNTED];
    fp8flow_moe_report forward_report, report; /* after forward; after backward */
    int64_t load[MOE_MAX_EXPERTS];
    int64_t saved_sum; /* over fp8flow_moe_get_saved after forward */
    fp8flow_edge edge[F8_NUM_EDGES];
    int num_edges;
    float *router, *shared_fc1, *shared_fc2; /* this rank's share of the gradients */
    fp8flow_status status;
} moe_rank_result;

/* Of the job: y, dx [T, H]; gradients summed over ranks in rank order. */
typedef struct {
    uint16_t *y, *dx;
    float *fc1, *fc2, *router, *shared_fc1, *shared_fc2;
    moe_rank_result rank[MOE_MAX_RANKS];
    fp8flow_status status;
} moe_result;

typedef struct {
    const moe_case *c;
    const moe_data *data;
    moe_result *result;
} moe_job;

/* Called in pairs: the first call notes where the counters stand, the second leaves what was added since. */
static inline void moe_count_calls(const fp8flow_context *context, int64_t *calls)
{
    static const char *const names[] = {
#define MOE_X(op) #op,
        MOE_COUNTED_OPS(MOE_X)
#undef MOE_X
    };
    for (int i = 0; i < MOE_NUM_COUNTED; i++) calls[i] = fp8flow_context_calls(context, names[i]) - calls[i];
}

static inline int64_t moe_tokens_of(const moe_case *c, int32_t rank)
{
    if (c->rank_tokens) return c->rank_tokens[rank];
    return c->tokens * (rank + 1) / c->num_ranks - c->tokens * rank / c->num_ranks;
}

static inline fp8flow_status moe_set_case_weights(fp8flow_moe *moe, const moe_case *c, const moe_data *d)
{
    int64_t first = moe->first_expert * c->hidden * c->width;
    fp8flow_moe_weights weights = { d->router,      d->router_bias, d->fc1 + 2 * first,
                                    d->fc2 + first, d->shared_fc1,  d->shared_fc2 };
    return fp8flow_moe_set_weights(moe, &weights);
}

static inline fp8flow_status moe_collect(const fp8flow_moe *moe, moe_rank_result *r)
{
    F8_TRY(fp8flow_moe_get_report(moe, &r->report));
    F8_TRY(fp8flow_moe_get_load(moe, r->load));
    while (r->num_edges < F8_NUM_EDGES && fp8flow_moe_get_edge(moe, r->num_edges, &r->edge[r->num_edges]) == FP8FLOW_OK)
        r->num_edges++;
    return FP8FLOW_OK;
}

static inline fp8flow_status moe_run_layer(fp8flow_moe *moe, const moe_job *job, int64_t first_token, int64_t tokens)
{
    const moe_case *c = job->c;
    moe_rank_result *r = &job->result->rank[moe->comm->rank];
    int64_t at = first_token * c->hidden, weights = moe->first_expert * c->hidden * c->width;
    fp8flow_tensor x = f8_bf16(job->data->x + at, tokens, c->hidden),
                   dy = f8_bf16(job->data->dy + at, tokens, c->hidden);
    fp8flow_tensor y = f8_bf16(job->result->y + at, tokens, c->hidden);
    fp8flow_tensor dx = f8_bf16(job->result->dx + at, tokens, c->hidden);
    fp8flow_moe_gradients gradients = { r->router, job->result->fc1 + 2 * weights, job->result->fc2 + weights,
                                        r->shared_fc1, r->shared_fc2 };
    F8_TRY(moe_set_case_weights(moe, c, job->data));
    if (c->before) F8_TRY(c->before(moe, c->user));
    moe_count_calls(moe->context, r->forward_calls);
    F8_TRY(fp8flow_moe_forward(moe, &x, &y));
    moe_count_calls(moe->context, r->forward_calls);
    F8_TRY(fp8flow_moe_get_report(moe, &r->forward_report));
    fp8flow_saved_tensor saved;
    for (int64_t i = 0; fp8flow_moe_get_saved(moe, i, &saved) == FP8FLOW_OK; i++) r->saved_sum += saved.bytes;
    moe_count_calls(moe->context, r->backward_calls);
    F8_TRY(fp8flow_moe_backward(moe, &x, &dy, c->loss_scale, &gradients, &dx));
    moe_count_calls(moe->context, r->backward_calls);
    F8_TRY(moe_collect(moe, r));
    return c->after ? c->after(moe, c->user) : FP8FLOW_OK;
}

static inline fp8flow_moe_config moe_config_of(const moe_case *c, int64_t max_tokens)
{
    return (fp8flow_moe_config){ .hidden = c->hidden,
                                 .expert_width = c->width,
                                 .shared_width = c->shared_width,
                                 .max_tokens = max_tokens,
                                 .router = c->router,
                                 .recipe = c->recipe,
                                 .checkpointing = c->checkpointing };
}

static inline fp8flow_status moe_body(fp8flow_comm *comm, void *user)
{
    moe_job *job = user;
    const moe_case *c = job->c;
    int64_t first = 0, most = 1;
    for (int32_t r = 0; r < comm->rank; r++) first += moe_tokens_of(c, r);
    for (int32_t r = 0; r < comm->size; r++) most = most > moe_tokens_of(c, r) ? most : moe_tokens_of(c, r);
    fp8flow_moe_config config = moe_config_of(c, most);
    fp8flow_context *context = NULL;
    fp8flow_moe *moe = NULL;
    F8_TRY(test_context_create(&(fp8flow_context_options){ .backend = c->backend, .num_threads = c->num_threads },
                               &context));
    fp8flow_status status = fp8flow_moe_create(context, comm, &config, &moe);
    if (status == FP8FLOW_OK) status = moe_run_layer(moe, job, first, moe_tokens_of(c, comm->rank));
    job->result->rank[comm->rank].status = status;
    fp8flow_moe_destroy(moe);
    fp8flow_context_destroy(context);
    return status;
}

static inline float *moe_zeros(int64_t count)
{
    float *values = calloc(count > 0 ? (size_t)count : 1, sizeof *values);
    assert_non_null(values);
    return values;
}

static inline void moe_add(float *sum, const float *part, int64_t count)
{
    for (int64_t i = 0; i < count; i++) sum[i] += part[i];
}

/* Run the case with `body` on its ranks, which gets a moe_job; the status is in the result. y and dx are poisoned,
 * gradients 0 beforehand. */
static inline moe_result moe_try_body(const moe_case *c, const moe_data *data,
                                      fp8flow_status (*body)(fp8flow_comm *comm, void *user))
{
    int64_t experts = c->router.num_experts, matrix = c->hidden * c->width, shared = c->hidden * c->shared_width;
    moe_result result = { .y = poisoned(c->tokens * c->hidden * 2),
                          .dx = poisoned(c->tokens * c->hidden * 2),
                          .fc1 = moe_zeros(2 * experts * matrix),
                          .fc2 = moe_zeros(experts * matrix),
                          .router = moe_zeros(experts * c->hidden),
                          .shared_fc1 = moe_zeros(2 * shared),
                          .shared_fc2 = moe_zeros(shared) };
    for (int32_t r = 0; r < c->num_ranks; r++) {
        result.rank[r].router = moe_zeros(experts * c->hidden);
        result.rank[r].shared_fc1 = moe_zeros(2 * shared);
        result.rank[r].shared_fc2 = moe_zeros(shared);
    }
    moe_job job = { c, data, &result };
    result.status = fp8flow_run_ranks(c->num_ranks, body, &job);
    for (int32_t r = 0; r < c->num_ranks; r++) {
        moe_add(result.router, result.rank[r].router, experts * c->hidden);
        moe_add(result.shared_fc1, result.rank[r].shared_fc1, 2 * shared);
        moe_add(result.shared_fc2, result.rank[r].shared_fc2, shared);
        free(result.rank[r].router), free(result.rank[r].shared_fc1), free(result.rank[r].shared_fc2);
    }
    return result;
}

static inline moe_result moe_try(const moe_case *c, const moe_data *data)
{
    return moe_try_body(c, data, moe_body);
}

static inline moe_result moe_run(const moe_case *c, const moe_data *data)
{
    moe_result result = moe_try(c, data);
    if (result.status != FP8FLOW_OK) fail_msg("%s: %s", c->recipe, fp8flow_last_error());
    return result;
}

static inline void moe_free_result(moe_result *r)
{
    free(r->y), free(r->dx), free(r->fc1), free(r->fc2), free(r->router), free(r->shared_fc1), free(r->shared_fc2);
}

/* Every bit that the layer gave back. */
static inline void moe_assert_same_bits(const moe_case *c, const moe_result *a, const moe_result *b)
{
    size_t rows = (size_t)(c->tokens * c->hidden) * 2, router = (size_t)(c->router.num_experts * c->hidden) * 4;
    size_t matrix = (size_t)(c->router.num_experts * c->hidden * c->width) * 4;
    size_t shared = (size_t)(c->hidden * c->shared_width) * 4;
    if (rows) assert_memory_equal(a->y, b->y, rows);
    if (rows) assert_memory_equal(a->dx, b->dx, rows);
    assert_memory_equal(a->fc1, b->fc1, 2 * matrix);
    assert_memory_equal(a->fc2, b->fc2, matrix);
    assert_memory_equal(a->router, b->router, router);
    if (shared) assert_memory_equal(a->shared_fc1, b->shared_fc1, 2 * shared);
    if (shared) assert_memory_equal(a->shared_fc2, b->shared_fc2, shared);
}

#endif
