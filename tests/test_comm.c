/* test_comm.c - the thread transport: what arrives, in which order sums are taken, and what failure looks like.
 *
 * All but the lives of teams run twice: over the transport itself, and over its views for memory of a device.
 */
#include "comm_bodies.h"

#include <sched.h>

#include "fake_device.h"

static const int32_t team_sizes[] = { 1, 2, 3, 8 };
enum { NUM_TEAMS = 4 };

/* ---- Ranks ---- */

static int over_views;

typedef struct {
    fp8flow_status (*body)(fp8flow_comm *, void *);
    void *user;
} body_of_views;

static fp8flow_status run_over_view(fp8flow_comm *host, void *user)
{
    const body_of_views *inner = user;
    fp8flow_comm *view;
    F8_TRY(f8_comm_for_device(host, fake_device(), NULL, &view));
    CHECK(view != host && view->rank == host->rank && view->size == host->size);
    fp8flow_status status = inner->body(view, inner->user);
    f8_comm_release(view);
    return status;
}

static fp8flow_status run_ranks(int32_t num_ranks, fp8flow_status (*body)(fp8flow_comm *, void *), void *user)
{
    if (!over_views) return fp8flow_run_ranks(num_ranks, body, user);
    body_of_views inner = { body, user };
    return fp8flow_run_ranks(num_ranks, run_over_view, &inner);
}

static int use_views(void **state)
{
    (void)state;
    over_views = 1;
    return 0;
}

/* ---- Exchange ---- */

static void test_exchange_delivers_every_row_in_the_order_of_senders(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++) assert_ok(run_ranks(team_sizes[i], exchange_body, NULL));
}

/* ---- Reductions and broadcast ---- */

static void test_all_reduce_sums_in_rank_order(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++) {
        int order_matters = 0;
        assert_ok(run_ranks(team_sizes[i], reduce_body, &order_matters));
        assert_true(team_sizes[i] < 3 || order_matters > 20);
    }
}

static void test_max_takes_the_extremes_of_its_type(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++) assert_ok(run_ranks(team_sizes[i], extremes_body, NULL));
}

static void test_broadcast_from_every_root(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++) assert_ok(run_ranks(team_sizes[i], broadcast_body, NULL));
}

/* ---- Slices ---- */

static void test_reduce_scatter_and_all_gather_are_the_halves_of_all_reduce(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++) assert_ok(run_ranks(team_sizes[i], slices_body, NULL));
}

/* ---- Groups ---- */

static void test_groups_work_beside_each_other(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++)
        for (int32_t width = 1; width <= 4; width++)
            assert_ok(run_ranks(team_sizes[i], groups_body, (void *)(uintptr_t)&width));
}

static void test_a_failure_ends_all_groups(void **state)
{
    (void)state;
    assert_fails(run_ranks(4, failing_group_body, NULL), FP8FLOW_EIO, "disk of rank 3 is full");
}

/* ---- Failure ---- */

static void test_others_get_ecomm_when_one_rank_fails(void **state)
{
    (void)state;
    for (int i = 1; i < NUM_TEAMS; i++)
        for (int32_t failing = 0; failing < team_sizes[i]; failing++)
            for (int after = 0; after < 3; after++) {
                failure_case f = { .failing = failing, .after = after };
                char text[64];
                snprintf(text, sizeof text, "disk of rank %d is full", failing);
                assert_fails(run_ranks(team_sizes[i], failing_body, &f), FP8FLOW_EIO, text);
                for (int32_t r = 0; r < team_sizes[i]; r++) {
                    if (r == failing) continue;
                    assert_int_equal(f.seen[r], FP8FLOW_ECOMM);
                    assert_non_null(strstr(f.message[r], text));
                }
            }
}

static void test_lowest_of_several_failing_ranks_is_reported(void **state)
{
    (void)state;
    for (int repeat = 0; repeat < 50; repeat++) {
        failure_case f = { .failing = -1, .after = repeat % 3 };
        assert_fails(run_ranks(8, failing_body, &f), FP8FLOW_EIO, "disk of rank 0 is full");
    }
}

/* Rank 0 waits for nobody, and learns it all the same. */
static fp8flow_status asking_body(fp8flow_comm *comm, void *user)
{
    int64_t value = 0;
    F8_TRY(f8_comm_check(comm));
    F8_TRY(fp8flow_comm_max(comm, &value));
    if (comm->rank == 1) return F8_FAIL(ENOMEM, "no memory on rank 1");
    while (f8_comm_check(comm) == FP8FLOW_OK) sched_yield();
    snprintf(user, 256, "%s", fp8flow_last_error());
    return FP8FLOW_ECOMM;
}

static void test_check_tells_a_failure_without_waiting(void **state)
{
    char message[256] = "";
    (void)state;
    assert_fails(run_ranks(2, asking_body, message), FP8FLOW_ENOMEM, "no memory on rank 1");
    assert_string_equal(message, "rank 0: rank 1 has failed: no memory on rank 1");
}

/* Rank 0 hands on the failure of rank 1, in words of its own: it did not fail by itself. */
static fp8flow_status wrapping_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    int64_t value = 0;
    if (comm->rank == 1) return F8_FAIL(ENOMEM, "no memory");
    fp8flow_status status = fp8flow_comm_max(comm, &value);
    return status == FP8FLOW_OK ? status : f8_fail_in(FP8FLOW_EBACKEND, "layer 3");
}

static void test_failure_that_was_handed_on_is_not_the_cause(void **state)
{
    (void)state;
    assert_fails(run_ranks(2, wrapping_body, NULL), FP8FLOW_ENOMEM, "no memory");
}

static fp8flow_status single_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    CHECK(fp8flow_comm_rank(comm) == 0 && fp8flow_comm_size(comm) == 1);
    return F8_FAIL(ENOSYS, "alone");
}

static void test_one_rank_returns_its_own_failure(void **state)
{
    (void)state;
    assert_fails(run_ranks(1, single_body, NULL), FP8FLOW_ENOSYS, "alone");
}

static void test_exchange_with_different_counts_is_refused(void **state)
{
    (void)state;
    assert_fails(run_ranks(3, mismatch_body, NULL), FP8FLOW_ECOMM, "rank 1 expects 2 rows from rank 0, which sends 1");
}

static void test_bad_arguments_are_refused_before_anybody_waits(void **state)
{
    (void)state;
    assert_ok(run_ranks(2, argument_body, NULL));
    assert_fails(fp8flow_run_ranks(0, argument_body, NULL), FP8FLOW_EINVAL, "0 ranks, expected 1 to 256");
    assert_fails(fp8flow_run_ranks(-1, argument_body, NULL), FP8FLOW_EINVAL, "-1 ranks");
    assert_fails(fp8flow_run_ranks(257, argument_body, NULL), FP8FLOW_EINVAL, "257 ranks");
    assert_fails(fp8flow_run_ranks(2, NULL, NULL), FP8FLOW_EINVAL, "NULL body");
}

/* ---- Lives of teams ---- */

static fp8flow_status nested_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    int64_t inner = 0, value = comm->rank;
    F8_TRY(fp8flow_run_ranks(comm->rank + 1, sum_ranks, &inner));
    CHECK(inner == comm->rank * (comm->rank + 1) / 2);
    return fp8flow_comm_max(comm, &value);
}

static void test_ranks_may_start_teams_of_their_own(void **state)
{
    (void)state;
    assert_ok(fp8flow_run_ranks(3, nested_body, NULL));
}

static void test_a_team_after_a_failed_one_works(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        int64_t sum = 0;
        failure_case f = { .failing = i % 3, .after = i % 4 };
        assert_int_equal(fp8flow_run_ranks(3, failing_body, &f), FP8FLOW_EIO);
        assert_ok(fp8flow_run_ranks(3, sum_ranks, &sum));
        assert_int_equal(sum, 3);
    }
}

static void test_256_ranks(void **state)
{
    (void)state;
    int64_t sum = 0;
    assert_ok(fp8flow_run_ranks(256, sum_ranks, &sum));
    assert_int_equal(sum, 256 * 255 / 2);
}

int main(void)
{
    const struct CMUnitTest any_memory[] = {
        cmocka_unit_test(test_exchange_delivers_every_row_in_the_order_of_senders),
        cmocka_unit_test(test_all_reduce_sums_in_rank_order),
        cmocka_unit_test(test_max_takes_the_extremes_of_its_type),
        cmocka_unit_test(test_broadcast_from_every_root),
        cmocka_unit_test(test_reduce_scatter_and_all_gather_are_the_halves_of_all_reduce),
        cmocka_unit_test(test_groups_work_beside_each_other),
        cmocka_unit_test(test_a_failure_ends_all_groups),
        cmocka_unit_test(test_others_get_ecomm_when_one_rank_fails),
        cmocka_unit_test(test_lowest_of_several_failing_ranks_is_reported),
        cmocka_unit_test(test_check_tells_a_failure_without_waiting),
        cmocka_unit_test(test_failure_that_was_handed_on_is_not_the_cause),
        cmocka_unit_test(test_one_rank_returns_its_own_failure),
        cmocka_unit_test(test_exchange_with_different_counts_is_refused),
        cmocka_unit_test(test_bad_arguments_are_refused_before_anybody_waits),
    };
    const struct CMUnitTest teams[] = {
        cmocka_unit_test(test_ranks_may_start_teams_of_their_own),
        cmocka_unit_test(test_a_team_after_a_failed_one_works),
        cmocka_unit_test(test_256_ranks),
    };
    int failed = cmocka_run_group_tests(teams, NULL, NULL);
    failed += cmocka_run_group_tests(any_memory, NULL, NULL);
    return failed + cmocka_run_group_tests_name("over views", any_memory, use_views, NULL);
}
