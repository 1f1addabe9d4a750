/* test_rank_routing.c - rank_destinations, rank_routing and rank_gates against a search through all ranks and their
 * experts. */
#include "support.h"

#include "fp8flow_ops_ranks.h"

typedef struct {
    int64_t tokens, top_k, experts, ranks;
} shape;

/* No tokens, one rank, fewer experts than ranks, more choices than ranks, experts that do not divide. */
static const shape shapes[] = { { 0, 2, 4, 2 },    { 1, 1, 1, 1 },      { 5, 1, 1, 4 },     { 7, 3, 3, 8 },
                                { 40, 4, 8, 1 },   { 33, 2, 8, 4 },     { 64, 6, 10, 3 },   { 300, 5, 7, 2 },
                                { 129, 8, 64, 8 }, { 1000, 4, 60, 16 }, { 257, 3, 256, 7 }, { 90, 2, 256, 256 } };
enum { NUM_SHAPES = sizeof shapes / sizeof shapes[0], NUM_CONTEXTS = 2 };

static const fp8flow_backend backends[NUM_CONTEXTS] = { FP8FLOW_REFERENCE, FP8FLOW_CPU };

/* ---- What is expected, from the text of the header alone ---- */

static int owns(const shape *s, int64_t rank, int64_t expert)
{
    return expert >= s->experts * rank / s->ranks && expert < s->experts * (rank + 1) / s->ranks;
}

typedef struct {
    shape s;
    int32_t *expert, *destination;
    float *gate, *returned;
    fp8flow_plan plan;
} routing;

static int has_expert_on(const routing *r, int64_t token, int64_t rank)
{
    for (int64_t slot = 0; slot < r->s.top_k; slot++)
        if (owns(&r->s, rank, r->expert[token * r->s.top_k + slot])) return 1;
    return 0;
}

/* Different experts for a token; `hostile`: some are none, and some gates are NaN, infinite or -0. */
static void make_routing(routing *r, const shape *s, uint64_t seed, int hostile)
{
    static const int32_t no_expert[] = { -1, INT32_MIN, INT32_MAX };
    int64_t slots = s->tokens * s->top_k;
    *r = (routing){ .s = *s, .expert = poisoned(slots * 4), .gate = poisoned(slots * 4) };
    for (int64_t i = 0; i < slots; i++) {
        uint64_t bits = f8_random(seed, 1, (uint64_t)(i / s->top_k));
        r->expert[i] = (int32_t)((bits % (uint64_t)s->experts + (uint64_t)(i % s->top_k)) % (uint64_t)s->experts);
        r->gate[i] = test_value(hostile ? DATA_SPECIAL : DATA_NORMAL, seed, i, 1);
        uint64_t odd = f8_random(seed, 2, (uint64_t)i);
        if (hostile && odd % 7 == 0) r->expert[i] = odd % 14 ? no_expert[odd % 3] : (int32_t)s->experts;
    }
    r->destination = poisoned(s->tokens * s->ranks * 4);
    for (int64_t i = 0; i < s->tokens * s->ranks; i++)
        r->destination[i] = has_expert_on(r, i / s->ranks, i % s->ranks) ? (int32_t)(i % s->ranks) : -1;
}

/* The plan by permute_plan, whose tests are elsewhere; more room than rows. */
static void make_plan(routing *r, fp8flow_context *c)
{
    const shape *s = &r->s;
    int64_t capacity = s->tokens * (s->top_k < s->ranks ? s->top_k : s->ranks) + 3;
    r->plan = (fp8flow_plan){ .num_tokens = s->tokens,
                              .top_k = s->ranks,
                              .num_experts = s->ranks,
                              .align = 1,
                              .capacity = capacity,
                              .rows = poisoned(s->ranks * 4),
                              .offset = poisoned((s->ranks + 1) * 4),
                              .row_of = poisoned(s->tokens * s->ranks * 4),
                              .source = poisoned(capacity * 4) };
    assert_ok(fp8flow_permute_plan(c, &(fp8flow_permute_plan_args){ r->destination, &r->plan }));
    int64_t sent = r->plan.offset[s->ranks] * s->top_k;
    r->returned = poisoned(sent * 4);
    for (int64_t i = 0; i < sent; i++) r->returned[i] = test_value(DATA_SPECIAL, 5, i, 2);
}

static void free_routing(routing *r)
{
    free(r->expert), free(r->gate), free(r->destination), free(r->returned);
    free(r->plan.rows), free(r->plan.offset), free(r->plan.row_of), free(r->plan.source);
}

/* ---- The operators ---- */

static void check_destinations(fp8flow_context *c, const routing *r)
{
    const shape *s = &r->s;
    int32_t *got = poisoned(s->tokens * s->ranks * 4);
    assert_ok(fp8flow_rank_destinations(
        c, &(fp8flow_rank_destinations_args){ s->tokens, s->top_k, s->experts, s->ranks, r->expert, got }));
    if (s->tokens) assert_memory_equal(got, r->destination, (size_t)(s->tokens * s->ranks) * 4);
    free(got);
}

static void check_routing(fp8flow_context *c, const routing *r)
{
    const shape *s = &r->s;
    int64_t sent = r->plan.offset[s->ranks], room = r->plan.capacity * s->top_k;
    int32_t *expert = poisoned(room * 4), *expected = poisoned(room * 4);
    float *gate = poisoned(room * 4), *expected_gate = poisoned(room * 4);
    for (int64_t i = 0; i < sent * s->top_k; i++) {
        int64_t row = i / s->top_k, token = r->plan.source[row] / s->ranks, rank = 0;
        while (row >= r->plan.offset[rank + 1]) rank++;
        int64_t from = token * s->top_k + i % s->top_k;
        int here = owns(s, rank, r->expert[from]);
        expected[i] = here ? r->expert[from] - (int32_t)(s->experts * rank / s->ranks) : -1;
        expected_gate[i] = here ? r->gate[from] : 0.0f;
    }
    assert_ok(fp8flow_rank_routing(
        c, &(fp8flow_rank_routing_args){ &r->plan, s->experts, s->top_k, r->expert, r->gate, expert, gate }));
    assert_memory_equal(expert, expected, (size_t)room * 4); /* with the rows that are not sent */
    assert_memory_equal(gate, expected_gate, (size_t)room * 4);
    free(expert), free(expected), free(gate), free(expected_gate);
}

static void check_gates(fp8flow_context *c, const routing *r)
{
    const shape *s = &r->s;
    int64_t slots = s->tokens * s->top_k;
    float *got = poisoned(slots * 4), *expected = poisoned(slots * 4);
    for (int64_t i = 0; i < slots; i++) expected[i] = 0.0f;
    for (int64_t rank = 0; rank < s->ranks; rank++)
        for (int64_t row = r->plan.offset[rank]; row < r->plan.offset[rank + 1]; row++)
            for (int64_t slot = 0; slot < s->top_k; slot++) {
                int64_t to = r->plan.source[row] / s->ranks * s->top_k + slot;
                if (owns(s, rank, r->expert[to])) expected[to] = r->returned[row * s->top_k + slot];
            }
    assert_ok(fp8flow_rank_gates(
        c, &(fp8flow_rank_gates_args){ &r->plan, s->experts, s->top_k, r->expert, r->returned, got }));
    if (slots) assert_memory_equal(got, expected, (size_t)slots * 4);
    free(got), free(expected);
}

static void test_records_hold_what_their_rank_needs(void **state)
{
    (void)state;
    for (int b = 0; b < NUM_CONTEXTS; b++) {
        fp8flow_context *c = make_context(backends[b], 1);
        for (int i = 0; i < NUM_SHAPES; i++)
            for (int hostile = 0; hostile < 2; hostile++) {
                routing r;
                make_routing(&r, &shapes[i], (uint64_t)(17 * i + hostile), hostile);
                check_destinations(c, &r);
                make_plan(&r, c);
                check_routing(c, &r);
                check_gates(c, &r);
                free_routing(&r);
            }
        fp8flow_context_destroy(c);
    }
}

/* What is sent and comes back unchanged is what there was. */
static void test_gates_come_back_to_their_slots(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_SHAPES; i++) {
        fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
        const shape *s = &shapes[i];
        routing r;
        make_routing(&r, s, 90, 0);
        make_plan(&r, c);
        int64_t room = r.plan.capacity * s->top_k, slots = s->tokens * s->top_k;
        int32_t *expert = poisoned(room * 4);
        float *gate = poisoned(room * 4), *back = poisoned(slots * 4);
        assert_ok(fp8flow_rank_routing(
            c, &(fp8flow_rank_routing_args){ &r.plan, s->experts, s->top_k, r.expert, r.gate, expert, gate }));
        assert_ok(
            fp8flow_rank_gates(c, &(fp8flow_rank_gates_args){ &r.plan, s->experts, s->top_k, r.expert, gate, back }));
        if (slots) assert_memory_equal(back, r.gate, (size_t)slots * 4);
        free(expert), free(gate), free(back);
        free_routing(&r);
        fp8flow_context_destroy(c);
    }
}

/* ---- Arguments ---- */

static void test_bad_destinations_are_named(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    int32_t expert[2] = { 0, 1 }, destination[2];
    const fp8flow_rank_destinations_args good = { 1, 2, 4, 2, expert, destination };
    fp8flow_rank_destinations_args args = good;
    assert_ok(fp8flow_rank_destinations(c, &args));
    assert_fails(fp8flow_rank_destinations(NULL, &args), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_rank_destinations(c, NULL), FP8FLOW_EINVAL, "NULL");
    args.num_tokens = -1;
    assert_fails(fp8flow_rank_destinations(c, &args), FP8FLOW_ESHAPE, "-1 tokens");
    args = good, args.num_ranks = INT32_MAX, args.num_tokens = 2;
    assert_fails(fp8flow_rank_destinations(c, &args), FP8FLOW_ESHAPE, "2147483647 ranks");
    args = good, args.top_k = 0;
    assert_fails(fp8flow_rank_destinations(c, &args), FP8FLOW_ESHAPE, "top 0");
    args = good, args.num_ranks = 0;
    assert_fails(fp8flow_rank_destinations(c, &args), FP8FLOW_ESHAPE, "0 ranks");
    args = good, args.num_experts = 1LL << 31;
    assert_fails(fp8flow_rank_destinations(c, &args), FP8FLOW_ESHAPE, "2147483648 experts");
    args = good, args.expert = NULL;
    assert_fails(fp8flow_rank_destinations(c, &args), FP8FLOW_EINVAL, "expert is NULL");
    args = good, args.destination = NULL;
    assert_fails(fp8flow_rank_destinations(c, &args), FP8FLOW_EINVAL, "destination is NULL");
    fp8flow_context_destroy(c);
}

static void test_bad_send_plans_are_named(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    routing r;
    make_routing(&r, &(shape){ 3, 2, 4, 2 }, 1, 0);
    make_plan(&r, c);
    int32_t sent_expert[32];
    float sent_gate[32], gate[8];
    const fp8flow_plan plan = r.plan;
    const fp8flow_rank_routing_args good = { &r.plan, 4, 2, r.expert, r.gate, sent_expert, sent_gate };
    const fp8flow_rank_gates_args good_back = { &r.plan, 4, 2, r.expert, r.returned, gate };
    fp8flow_rank_routing_args there = good;
    fp8flow_rank_gates_args back = good_back;
    assert_ok(fp8flow_rank_routing(c, &there));
    assert_ok(fp8flow_rank_gates(c, &back));
    assert_fails(fp8flow_rank_routing(NULL, &there), FP8FLOW_EINVAL, "rank_routing: NULL");
    assert_fails(fp8flow_rank_gates(c, NULL), FP8FLOW_EINVAL, "rank_gates: NULL");
    r.plan.top_k = 1;
    assert_fails(fp8flow_rank_routing(c, &there), FP8FLOW_ESHAPE, "plan of top 1 of 2 ranks");
    assert_fails(fp8flow_rank_gates(c, &back), FP8FLOW_ESHAPE, "plan of top 1 of 2 ranks");
    r.plan = plan, r.plan.source = NULL;
    assert_fails(fp8flow_rank_gates(c, &back), FP8FLOW_EINVAL, "source of the plan is NULL");
    r.plan = plan, r.plan.capacity = 0;
    assert_fails(fp8flow_rank_routing(c, &there), FP8FLOW_ESHAPE, "a capacity of 0");
    r.plan = plan, there.top_k = 1 << 30;
    assert_fails(fp8flow_rank_routing(c, &there), FP8FLOW_ESHAPE, "top 1073741824");
    there = good, there.num_experts = -1;
    assert_fails(fp8flow_rank_routing(c, &there), FP8FLOW_ESHAPE, "-1 experts");
    there = good, there.gate = NULL;
    assert_fails(fp8flow_rank_routing(c, &there), FP8FLOW_EINVAL, "rank_routing: gate is NULL");
    there = good, there.sent_gate = NULL;
    assert_fails(fp8flow_rank_routing(c, &there), FP8FLOW_EINVAL, "sent_gate is NULL");
    back.returned = NULL;
    assert_fails(fp8flow_rank_gates(c, &back), FP8FLOW_EINVAL, "returned is NULL");
    back = good_back, back.expert = NULL;
    assert_fails(fp8flow_rank_gates(c, &back), FP8FLOW_EINVAL, "rank_gates: expert is NULL");
    free_routing(&r);
    fp8flow_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_records_hold_what_their_rank_needs),
        cmocka_unit_test(test_gates_come_back_to_their_slots),
        cmocka_unit_test(test_bad_destinations_are_named),
        cmocka_unit_test(test_bad_send_plans_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
