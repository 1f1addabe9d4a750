/* test_moe_ranks.c - the same job on any number of ranks, threads and backends.
 *
 * Tokens are split in order, so the rows of an expert have the same order and neighbours on any number of ranks, and
 * what is computed per expert has the same bits: with the reference backend all of it, with the CPU backend all that
 * follows from equal logits (which BLAS may round differently when the number of a rank's tokens changes). Sums that
 * cross ranks differ by their roundings only: numerics contract section 4.
 */
#include "moe_fixture.h"

#include "comm/comm.h"

static const int32_t team_sizes[] = { 2, 3, 8 };

/* Under ThreadSanitizer, bf16 and flow only: it looks at threads, which all recipes use alike. */
#ifdef FP8FLOW_TSAN
enum { RECIPE_STEP = 4 };
#else
enum { RECIPE_STEP = 1 };
#endif

/* ---- Distances ---- */

/* combine rounds to BF16 once per rank that has several of a token's experts, and once at the end. The sum of up to
 * two experts is rounded once on any number of ranks: the same bits. With more, a rank's rounded part, and the two
 * results, are three roundings of numbers of about the size of the result: by 2^-8/sqrt(3) each (RMS), 2^-8 together;
 * an element is off by less than 2^-8 of its parts, which are below 4 times the largest of the row. */
static void check_rows_close(const moe_case *c, const uint16_t *a, const uint16_t *b)
{
    double error = 0, signal = 0;
    for (int64_t t = 0; t < c->tokens; t++) {
        double largest = 0, worst = 0;
        for (int64_t i = t * c->hidden; i < (t + 1) * c->hidden; i++) {
            double left = (double)f8_bf16_decode(a[i]), right = (double)f8_bf16_decode(b[i]);
            largest = fmax(largest, fmax(fabs(left), fabs(right)));
            worst = fmax(worst, fabs(left - right));
            error += (left - right) * (left - right), signal += left * left;
        }
        if (!(worst <= 0x1p-6 * largest)) fail_msg("%s: token %d: %g of %g", c->recipe, (int)t, worst, largest);
    }
    if (!(error <= 0x1p-16 * signal)) fail_msg("%s: relative difference %g", c->recipe, sqrt(error / signal));
}

/* FP32 sums in two orders: 2^-20 of the norm is 16 roundings. */
static void check_sums_close(const char *name, const float *a, const float *b, int64_t count)
{
    double error = 0, signal = 0;
    for (int64_t i = 0; i < count; i++) {
        double difference = (double)a[i] - (double)b[i];
        error += difference * difference, signal += (double)a[i] * (double)a[i];
    }
    if (!(error <= 0x1p-40 * signal)) fail_msg("%s: relative difference %g", name, sqrt(error / signal));
}

static size_t matrix_bytes(const moe_case *c)
{
    return (size_t)(c->router.num_experts * c->hidden * c->width) * 4;
}

/* What must hold between a run on one rank and one on several, with equal logits. */
static void check_against_one_rank(const moe_case *c, const moe_result *one, const moe_result *many)
{
    size_t rows = (size_t)(c->tokens * c->hidden) * 2;
    int losses = c->router.aux_coef != 0.0f || c->router.sequence_coef != 0.0f;
    check_rows_close(c, one->y, many->y);
    check_rows_close(c, one->dx, many->dx);
    if (c->router.top_k <= 2) assert_memory_equal(one->y, many->y, rows);
    if (c->router.top_k <= 2 && !losses) assert_memory_equal(one->dx, many->dx, rows);
    assert_memory_equal(one->fc1, many->fc1, 2 * matrix_bytes(c));
    assert_memory_equal(one->fc2, many->fc2, matrix_bytes(c));
    check_sums_close("router gradient", one->router, many->router, c->router.num_experts * c->hidden);
    check_sums_close("shared fc1", one->shared_fc1, many->shared_fc1, 2 * c->hidden * c->shared_width);
    check_sums_close("shared fc2", one->shared_fc2, many->shared_fc2, c->hidden * c->shared_width);
    for (int64_t e = 0; e < c->router.num_experts; e++)
        for (int32_t r = 0; r < c->num_ranks; r++) assert_int_equal(one->rank[0].load[e], many->rank[r].load[e]);
}

static void check_losses(const moe_case *c, const moe_result *one, const moe_result *many)
{
    for (int i = 0; i < 3; i++) {
        double sum = 0, expected = one->rank[0].report.losses[i];
        for (int32_t r = 0; r < c->num_ranks; r++) sum += many->rank[r].report.losses[i];
        assert_true(fabs(sum - expected) <= 1e-5 * fabs(expected));
    }
}

/* Run on one rank and on several; `c` describes the latter. */
static void compare_with_one_rank(moe_case c, const moe_data *data)
{
    moe_case single = c;
    single.num_ranks = 1, single.rank_tokens = NULL;
    moe_result one = moe_run(&single, data), many = moe_run(&c, data);
    check_against_one_rank(&c, &one, &many);
    check_losses(&c, &one, &many);
    moe_free_result(&one), moe_free_result(&many);
}

/* ---- Ranks ---- */

static moe_case rank_case(const char *recipe, int32_t num_ranks)
{
    moe_case c = moe_default_case();
    c.tokens = 40, c.hidden = 48, c.width = 16, c.recipe = recipe, c.num_ranks = num_ranks,
    c.backend = FP8FLOW_REFERENCE;
    return c;
}

static void test_ranks_agree_with_one_rank(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_MOE_RECIPES; i += RECIPE_STEP)
        for (int team = 0; team < 3; team++) {
            moe_case c = rank_case(moe_recipes[i], team_sizes[team]);
            c.router.top_k = 4, c.router.aux_coef = 0.1f, c.router.z_coef = 0.01f;
            c.shared_width = team == 1 ? 16 : 0;
            moe_data data = moe_make_data(&c, 20);
            moe_case single = c;
            single.num_ranks = 1;
            moe_result one = moe_run(&single, &data), many = moe_run(&c, &data);
            check_against_one_rank(&c, &one, &many);
            check_losses(&c, &one, &many);
            /* Two experts on one rank and more elsewhere: the roundings that the bound is about do happen. */
            int same = memcmp(one.y, many.y, (size_t)(c.tokens * c.hidden) * 2) == 0;
            assert_int_equal(same, c.num_ranks == 8);
            moe_free_result(&one), moe_free_result(&many);
            moe_free_data(&data);
        }
}

static void test_up_to_two_experts_give_the_same_bits_on_any_number_of_ranks(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_MOE_RECIPES; i += RECIPE_STEP)
        for (int team = 0; team < 3; team++)
            for (int64_t top_k = 1; top_k <= 2; top_k++) {
                moe_case c = rank_case(moe_recipes[i], team_sizes[team]);
                c.router.top_k = top_k, c.router.gate_rule = FP8FLOW_GATE_RAW;
                moe_data data = moe_make_data(&c, 21);
                compare_with_one_rank(c, &data);
                moe_free_data(&data);
            }
}

static void test_rank_without_experts(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_MOE_RECIPES; i += RECIPE_STEP)
        for (fp8flow_checkpointing mode = FP8FLOW_KEEP_ALL; mode <= FP8FLOW_FULL; mode++) {
            moe_case c = rank_case(moe_recipes[i], 3);
            c.router.num_experts = 2, c.checkpointing = mode;
            moe_data data = moe_make_data(&c, 22);
            compare_with_one_rank(c, &data);
            moe_free_data(&data);
        }
}

static void test_ranks_without_tokens(void **state)
{
    (void)state;
    static const int64_t shares[][3] = { { 0, 40, 0 }, { 40, 0, 0 }, { 1, 0, 39 } };
    for (int i = 0; i < NUM_MOE_RECIPES; i += RECIPE_STEP)
        for (int share = 0; share < 3; share++) {
            moe_case c = rank_case(moe_recipes[i], 3);
            c.rank_tokens = shares[share];
            moe_data data = moe_make_data(&c, 23);
            compare_with_one_rank(c, &data);
            moe_free_data(&data);
        }
}

static void test_no_token_anywhere(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_MOE_RECIPES; i += RECIPE_STEP)
        for (int32_t ranks = 1; ranks <= 3; ranks++)
            for (fp8flow_backend backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
                moe_case c = rank_case(moe_recipes[i], ranks);
                c.tokens = 0, c.backend = backend, c.shared_width = 16;
                moe_data data = moe_make_data(&c, 24);
                moe_result r = moe_run(&c, &data);
                for (int64_t k = 0; k < c.router.num_experts * c.hidden * c.width; k++)
                    assert_true(r.fc1[k] == 0 && r.fc2[k] == 0);
                for (int k = 0; k < 3; k++) assert_true(r.rank[0].report.losses[k] == 0);
                assert_int_equal(r.rank[0].report.dispatch_bytes[0], 0);
                moe_free_result(&r);
                moe_free_data(&data);
            }
}

/* Logit of expert e: a large bias decides; every token goes to the experts 1 and 3 (k = 2), the others are empty. */
static void test_all_tokens_to_the_same_experts(void **state)
{
    (void)state;
    static const float bias[] = { 0, 100, 0, 90, 0 };
    for (int i = 0; i < NUM_MOE_RECIPES; i += RECIPE_STEP)
        for (int team = 0; team < 3; team++) {
            moe_case c = rank_case(moe_recipes[i], team_sizes[team]);
            moe_data data = moe_make_data(&c, 25);
            data.router_bias = poisoned(sizeof bias);
            memcpy(data.router_bias, bias, sizeof bias);
            compare_with_one_rank(c, &data);
            moe_result r = moe_run(&c, &data);
            int64_t matrix = c.hidden * c.width;
            for (int64_t e = 0; e < 5; e++) {
                assert_int_equal(r.rank[0].load[e], e % 2 ? c.tokens : 0);
                for (int64_t k = e * matrix; k < (e + 1) * matrix && e % 2 == 0; k++)
                    assert_true(r.fc2[k] == 0 && r.fc1[2 * k] == 0 && r.fc1[2 * k + 1] == 0);
            }
            moe_free_result(&r);
            moe_free_data(&data);
        }
}

static void test_sequences_do_not_care_about_ranks(void **state)
{
    (void)state;
    moe_case c = rank_case("flow", 2);
    c.tokens = 64, c.router.sequence_length = 16, c.router.sequence_coef = 0.5f, c.router.score = FP8FLOW_SCORE_SIGMOID;
    moe_data data = moe_make_data(&c, 26);
    compare_with_one_rank(c, &data);
    moe_free_data(&data);
}

/* ---- The CPU backend ---- */

/* Logits may be rounded differently when a rank's share of the tokens changes, so that a code here and there falls on
 * the other side: gradients within 1 % of a code's error instead of equal. */
static void check_gradients_close(const char *name, const float *a, const float *b, int64_t count, double bound)
{
    double error = 0, signal = 0;
    for (int64_t i = 0; i < count; i++) {
        double difference = (double)a[i] - (double)b[i];
        error += difference * difference, signal += (double)a[i] * (double)a[i];
    }
    if (!(error <= bound * bound * signal)) fail_msg("%s: relative difference %g", name, sqrt(error / signal));
}

static void test_cpu_backend_on_ranks_agrees_with_one_rank(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_MOE_RECIPES; i += RECIPE_STEP)
        for (int team = 0; team < 3; team++) {
            moe_case c = rank_case(moe_recipes[i], 1);
            c.tokens = 150, c.hidden = 144, c.backend = FP8FLOW_CPU;
            moe_data data = moe_make_data(&c, 27);
            moe_result one = moe_run(&c, &data);
            c.num_ranks = team_sizes[team];
            moe_result many = moe_run(&c, &data);
            check_rows_close(&c, one.y, many.y);
            check_rows_close(&c, one.dx, many.dx);
            int64_t matrix = c.router.num_experts * c.hidden * c.width;
            check_gradients_close("fc1", one.fc1, many.fc1, 2 * matrix, 1e-3);
            check_gradients_close("fc2", one.fc2, many.fc2, matrix, 1e-3);
            check_gradients_close("router", one.router, many.router, c.router.num_experts * c.hidden, 1e-5);
            moe_free_result(&one), moe_free_result(&many);
            moe_free_data(&data);
        }
}

/* The same job twice, and with another number of threads: the same bits. */
static void test_runs_and_threads_do_not_change_bits(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_MOE_RECIPES; i += RECIPE_STEP)
        for (int32_t ranks = 1; ranks <= 3; ranks += 2) {
            moe_case c = rank_case(moe_recipes[i], ranks);
            c.tokens = 150, c.hidden = 144, c.backend = FP8FLOW_CPU, c.shared_width = 48;
            moe_data data = moe_make_data(&c, 28);
            moe_result first = moe_run(&c, &data), again = moe_run(&c, &data);
            c.num_threads = 2;
            moe_result threads = moe_run(&c, &data);
            moe_assert_same_bits(&c, &first, &again);
            moe_assert_same_bits(&c, &first, &threads);
            moe_free_result(&first), moe_free_result(&again), moe_free_result(&threads);
            moe_free_data(&data);
        }
}

/* ---- Reference against CPU ---- */

static void check_values_agree(const moe_case *c, const moe_result *reference, const moe_result *cpu)
{
    double bound = strcmp(c->recipe, "bf16") == 0 ? 2e-4 : 2e-3;
    int64_t matrix = c->router.num_experts * c->hidden * c->width;
    check_rows_close(c, reference->y, cpu->y);
    check_rows_close(c, reference->dx, cpu->dx);
    check_gradients_close("fc1", reference->fc1, cpu->fc1, 2 * matrix, bound);
    check_gradients_close("fc2", reference->fc2, cpu->fc2, matrix, bound);
    check_gradients_close("router", reference->router, cpu->router, c->router.num_experts * c->hidden, 2e-4);
}

/* Routing, plans and everything that is moved or counted is class E: the same in both backends. Products are class R:
 * results differ by rounding, and where h or dx2 round to another BF16, by the code that follows. On a GPU, where FP8
 * products are summed with fewer bits, that is more often: cuda_layer.c and cuda_ranks.c have bounds for it. */
static void test_reference_and_cpu_backend_agree(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_MOE_RECIPES; i += RECIPE_STEP) {
        moe_case c = rank_case(moe_recipes[i], 2);
        c.hidden = 144;
        moe_data data = moe_make_data(&c, 29);
        moe_result reference = moe_run(&c, &data);
        c.backend = FP8FLOW_CPU;
        moe_result cpu = moe_run(&c, &data);
        for (int32_t r = 0; r < 2; r++) {
            const moe_rank_result *a = &reference.rank[r], *b = &cpu.rank[r];
            assert_memory_equal(a->load, b->load, sizeof a->load);
            assert_int_equal(a->report.padded_rows, b->report.padded_rows);
            assert_int_equal(a->report.dispatch_bytes[0], b->report.dispatch_bytes[0]);
            assert_int_equal(a->report.saved_bytes, b->report.saved_bytes);
            assert_int_equal(a->num_edges, b->num_edges);
            for (int e = 0; e < a->num_edges; e++) {
                assert_int_equal(a->edge[e].bytes, b->edge[e].bytes);
                assert_int_equal(a->edge[e].casts, b->edge[e].casts);
            }
        }
        if (tested_device() != TEST_ON_CUDA) check_values_agree(&c, &reference, &cpu);
        moe_free_result(&reference), moe_free_result(&cpu);
        moe_free_data(&data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_agree_with_one_rank),
        cmocka_unit_test(test_up_to_two_experts_give_the_same_bits_on_any_number_of_ranks),
        cmocka_unit_test(test_rank_without_experts),
        cmocka_unit_test(test_ranks_without_tokens),
        cmocka_unit_test(test_no_token_anywhere),
        cmocka_unit_test(test_all_tokens_to_the_same_experts),
        cmocka_unit_test(test_sequences_do_not_care_about_ranks),
        cmocka_unit_test(test_cpu_backend_on_ranks_agrees_with_one_rank),
        cmocka_unit_test(test_runs_and_threads_do_not_change_bits),
        cmocka_unit_test(test_reference_and_cpu_backend_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
