/* test_comm.c - the thread transport: what arrives, in which order sums are taken, and what failure looks like.
 *
 * Bodies run on threads, where cmocka's assertions must not be used: they return a status, and CHECK makes one.
 * All but the lives of teams run twice: over the transport itself, and over its views for memory of a device.
 */
#include "support.h"

#include <sched.h>

#include "comm/comm.h"
#include "fake_device.h"

#define CHECK(condition) F8_REQUIRE(condition, EFORMAT, "line %d: %s", __LINE__, #condition)

static const int32_t team_sizes[] = { 1, 2, 3, 8 };
enum { NUM_TEAMS = 4, MAX_TEAM = 8 };

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

enum { NUM_PARTS = 3, MOST_ROWS = 9 };
static const int64_t part_bytes[NUM_PARTS] = { 1, 7, 130 };

/* Rows from `source` to `target` in a round; often none. */
static int32_t rows_between(uint64_t round, int32_t source, int32_t target)
{
    uint64_t bits = f8_random(round, 1, (uint64_t)(source * MAX_TEAM + target));
    return bits % 3 == 0 ? 0 : (int32_t)((bits >> 32) % (MOST_ROWS + 1));
}

static unsigned char byte_at(uint64_t round, int32_t source, int32_t target, int64_t part, int64_t index)
{
    return (unsigned char)f8_random(round * 64 + (uint64_t)part, (uint64_t)(source * MAX_TEAM + target),
                                    (uint64_t)index);
}

typedef struct {
    int32_t send_rows[MAX_TEAM], recv_rows[MAX_TEAM];
    unsigned char *send[NUM_PARTS], *recv[NUM_PARTS];
    f8_comm_part part[NUM_PARTS];
} exchange_case;

static void make_exchange(exchange_case *x, uint64_t round, int32_t rank, int32_t size)
{
    for (int i = 0; i < NUM_PARTS; i++) {
        x->send[i] = malloc((size_t)(MAX_TEAM * MOST_ROWS * part_bytes[i]));
        x->recv[i] = malloc((size_t)(MAX_TEAM * MOST_ROWS * part_bytes[i] + 1));
        memset(x->recv[i], 0xEE, (size_t)(MAX_TEAM * MOST_ROWS * part_bytes[i] + 1));
        int64_t at = 0;
        for (int32_t r = 0; r < size; r++) {
            x->send_rows[r] = rows_between(round, rank, r);
            for (int64_t k = 0; k < x->send_rows[r] * part_bytes[i]; k++)
                x->send[i][at++] = byte_at(round, rank, r, i, k);
        }
        x->part[i] = (f8_comm_part){ x->send[i], x->recv[i], part_bytes[i] };
    }
}

static void free_exchange(exchange_case *x)
{
    for (int i = 0; i < NUM_PARTS; i++) free(x->send[i]), free(x->recv[i]);
}

static fp8flow_status check_received(const exchange_case *x, uint64_t round, const fp8flow_comm *comm)
{
    for (int i = 0; i < NUM_PARTS; i++) {
        int64_t at = 0;
        for (int32_t r = 0; r < comm->size; r++)
            for (int64_t k = 0; k < rows_between(round, r, comm->rank) * part_bytes[i]; k++)
                CHECK(x->recv[i][at++] == byte_at(round, r, comm->rank, i, k));
        CHECK(x->recv[i][at] == 0xEE);
    }
    return FP8FLOW_OK;
}

static fp8flow_status exchange_case_run(fp8flow_comm *comm, const exchange_case *x, int num_parts, int in_halves)
{
    if (!in_halves) return f8_comm_exchange(comm, x->part, num_parts, x->send_rows, x->recv_rows);
    F8_TRY(f8_comm_exchange_begin(comm, x->part, num_parts, x->send_rows, x->recv_rows));
    return f8_comm_exchange_end(comm);
}

static fp8flow_status exchange_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    int64_t bytes = 0;
    for (uint64_t round = 0; round < 40; round++) {
        exchange_case x;
        make_exchange(&x, round, comm->rank, comm->size);
        int num_parts = round % 2 ? NUM_PARTS : 1;
        fp8flow_status status = f8_comm_counts(comm, x.send_rows, x.recv_rows);
        for (int32_t r = 0; r < comm->size && status == FP8FLOW_OK; r++) {
            if (x.recv_rows[r] != rows_between(round, r, comm->rank)) status = F8_FAIL(EFORMAT, "counts");
            bytes += x.send_rows[r] * (num_parts == 1 ? 1 : 138);
        }
        if (status == FP8FLOW_OK) status = exchange_case_run(comm, &x, num_parts, round % 4 == 3);
        if (status == FP8FLOW_OK && num_parts == NUM_PARTS) status = check_received(&x, round, comm);
        free_exchange(&x);
        F8_TRY(status);
    }
    CHECK(comm->exchanged_bytes == bytes);
    return FP8FLOW_OK;
}

static void test_exchange_delivers_every_row_in_the_order_of_senders(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++) assert_ok(run_ranks(team_sizes[i], exchange_body, NULL));
}

/* ---- Reductions and broadcast ---- */

enum { NUM_VALUES = 1001 };

/* Sums of these differ in every bit of the mantissa if they are taken in another order. */
static float value_of(int32_t rank, int64_t i)
{
    int exponent = (int)(f8_random(3, (uint64_t)rank, (uint64_t)i) % 24) - 12;
    return ldexpf(f8_normal(4, (uint64_t)rank, (uint64_t)i), exponent);
}

static fp8flow_status reduce_body(fp8flow_comm *comm, void *user)
{
    static const int64_t counts[] = { 0, 1, 2, 7, NUM_VALUES };
    int *order_matters = user;
    for (int c = 0; c < 5; c++) {
        float f32[NUM_VALUES];
        double f64[NUM_VALUES];
        int64_t sum[NUM_VALUES], max[NUM_VALUES];
        for (int64_t i = 0; i < counts[c]; i++) {
            f32[i] = value_of(comm->rank, i);
            f64[i] = (double)f32[i] * (1 + 1e-9 * comm->rank);
            sum[i] = max[i] = (int64_t)f8_random(5, (uint64_t)comm->rank, (uint64_t)i) >> 8;
        }
        F8_TRY(f8_comm_all_reduce(comm, F8_SUM_F32, f32, counts[c]));
        F8_TRY(f8_comm_all_reduce(comm, F8_SUM_F64, f64, counts[c]));
        F8_TRY(f8_comm_all_reduce(comm, F8_SUM_I64, sum, counts[c]));
        F8_TRY(f8_comm_all_reduce(comm, F8_MAX_I64, max, counts[c]));
        for (int64_t i = 0; i < counts[c]; i++) {
            float up = 0, down = 0;
            double up64 = 0;
            int64_t total = 0, largest = INT64_MIN;
            for (int32_t r = 0; r < comm->size; r++) {
                int64_t integer = (int64_t)f8_random(5, (uint64_t)r, (uint64_t)i) >> 8;
                up += value_of(r, i), down += value_of(comm->size - 1 - r, i);
                up64 += (double)value_of(r, i) * (1 + 1e-9 * r);
                total += integer, largest = integer > largest ? integer : largest;
            }
            CHECK(f32[i] == up && f64[i] == up64 && sum[i] == total && max[i] == largest);
            if (comm->rank == 0) *order_matters += up != down;
        }
    }
    return FP8FLOW_OK;
}

static void test_all_reduce_sums_in_rank_order(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++) {
        int order_matters = 0;
        assert_ok(run_ranks(team_sizes[i], reduce_body, &order_matters));
        assert_true(team_sizes[i] < 3 || order_matters > 20);
    }
}

static fp8flow_status extremes_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    int64_t values[] = { INT64_MAX, INT64_MIN, comm->rank ? INT64_MIN : INT64_MAX };
    F8_TRY(f8_comm_all_reduce(comm, F8_MAX_I64, values, 3));
    CHECK(values[0] == INT64_MAX && values[1] == INT64_MIN && values[2] == INT64_MAX);
    int64_t value = comm->rank == comm->size / 2 ? 17 : -4;
    F8_TRY(fp8flow_comm_max(comm, &value));
    CHECK(value == 17);
    return FP8FLOW_OK;
}

static void test_max_takes_the_extremes_of_its_type(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++) assert_ok(run_ranks(team_sizes[i], extremes_body, NULL));
}

static fp8flow_status broadcast_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    for (int32_t root = 0; root < comm->size; root++) {
        unsigned char data[300];
        memset(data, 10 + comm->rank, sizeof data);
        F8_TRY(f8_comm_broadcast(comm, root, data, 299));
        for (int i = 0; i < 299; i++) CHECK(data[i] == 10 + root);
        CHECK(data[299] == 10 + comm->rank);
        F8_TRY(f8_comm_broadcast(comm, root, NULL, 0));
    }
    return FP8FLOW_OK;
}

static void test_broadcast_from_every_root(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++) assert_ok(run_ranks(team_sizes[i], broadcast_body, NULL));
}

/* ---- Slices ---- */

/* Slices of uneven sizes, some empty; the last one ends at NUM_VALUES. */
static void make_offsets(int64_t *offset, int32_t size)
{
    offset[0] = 0;
    for (int32_t r = 1; r <= size; r++) offset[r] = r == size ? NUM_VALUES : r % 3 == 2 ? offset[r - 1] : 37 * r;
}

static fp8flow_status slices_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    int64_t offset[MAX_TEAM + 1], bytes[MAX_TEAM + 1];
    float reduced[NUM_VALUES], whole[NUM_VALUES];
    make_offsets(offset, comm->size);
    for (int32_t r = 0; r <= comm->size; r++) bytes[r] = offset[r] * 4;
    for (int64_t i = 0; i < NUM_VALUES; i++) reduced[i] = whole[i] = value_of(comm->rank, i);
    F8_TRY(f8_comm_all_reduce(comm, F8_SUM_F32, whole, NUM_VALUES));
    F8_TRY(f8_comm_reduce_scatter(comm, F8_SUM_F32, reduced, offset));
    int64_t first = offset[comm->rank], end = offset[comm->rank + 1];
    CHECK(memcmp(reduced + first, whole + first, (size_t)(end - first) * 4) == 0);
    for (int64_t i = 0; i < NUM_VALUES; i++)
        if (i < first || i >= end) reduced[i] = -1;
    F8_TRY(f8_comm_all_gather(comm, reduced, bytes));
    CHECK(memcmp(reduced, whole, sizeof whole) == 0);
    return FP8FLOW_OK;
}

static void test_reduce_scatter_and_all_gather_are_the_halves_of_all_reduce(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++) assert_ok(run_ranks(team_sizes[i], slices_body, NULL));
}

/* ---- Groups ---- */

/* Groups of `width` neighbours, and across them those with the same place in their group. */
static fp8flow_status groups_body(fp8flow_comm *comm, void *user)
{
    const int32_t width = *(const int32_t *)user, mine = comm->rank / width, place = comm->rank % width;
    fp8flow_comm *near = NULL, *far = NULL;
    F8_TRY(f8_comm_split(comm, mine, &near));
    F8_TRY(f8_comm_split(comm, 1000 + place, &far));
    CHECK(near->rank == place && near->size == (comm->size - mine * width < width ? comm->size % width : width));
    CHECK(far->rank == mine);
    for (int round = 0; round < 5; round++) {
        int64_t sum = comm->rank, largest = comm->rank, expected = 0;
        for (int32_t r = 0; r < near->size; r++) expected += mine * width + r;
        F8_TRY(f8_comm_all_reduce(near, F8_SUM_I64, &sum, 1));
        CHECK(sum == expected);
        F8_TRY(f8_comm_all_reduce(far, F8_MAX_I64, &largest, 1));
        CHECK(largest == (far->size - 1) * width + place);
        F8_TRY(f8_comm_broadcast(comm, comm->size - 1, &sum, 8));
    }
    fp8flow_comm *alone = NULL;
    F8_TRY(f8_comm_split(near, near->rank, &alone));
    CHECK(alone->size == 1 && alone->rank == 0);
    f8_comm_free(alone);
    f8_comm_free(near);
    f8_comm_free(far);
    return FP8FLOW_OK;
}

static void test_groups_work_beside_each_other(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_TEAMS; i++)
        for (int32_t width = 1; width <= 4; width++)
            assert_ok(run_ranks(team_sizes[i], groups_body, (void *)(uintptr_t)&width));
}

/* Rank 3 fails; rank 0 waits in a group that rank 3 is not in, for a rank that waits for rank 3. */
static fp8flow_status failing_group_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    fp8flow_comm *part = NULL;
    int64_t value = 0;
    F8_TRY(f8_comm_split(comm, comm->rank / 2, &part));
    fp8flow_status status = FP8FLOW_OK;
    if (comm->rank == 3) status = F8_FAIL(EIO, "disk of rank 3 is full");
    if (comm->rank == 1) status = f8_comm_broadcast(comm, 0, &value, 8);
    if (status == FP8FLOW_OK) status = fp8flow_comm_max(part, &value);
    f8_comm_free(part);
    return status;
}

static void test_a_failure_ends_all_groups(void **state)
{
    (void)state;
    assert_fails(run_ranks(4, failing_group_body, NULL), FP8FLOW_EIO, "disk of rank 3 is full");
}

/* ---- Failure ---- */

typedef struct {
    int32_t failing; /* rank; -1: all */
    int after;       /* collectives before it fails */
    fp8flow_status seen[MAX_TEAM];
    char message[MAX_TEAM][256];
} failure_case;

static fp8flow_status failing_body(fp8flow_comm *comm, void *user)
{
    failure_case *f = user;
    for (int step = 0; step < 10; step++) {
        if (step == f->after && (f->failing == comm->rank || f->failing < 0))
            return F8_FAIL(EIO, "disk of rank %d is full", comm->rank);
        int64_t value = step;
        fp8flow_status status = fp8flow_comm_max(comm, &value);
        if (status != FP8FLOW_OK) {
            CHECK(f8_comm_check(comm) == FP8FLOW_ECOMM);
            snprintf(f->message[comm->rank], sizeof f->message[0], "%s", fp8flow_last_error());
            /* Later calls fail at once, too: nobody hangs who tries again. */
            CHECK(f8_comm_broadcast(comm, 0, &value, 8) == FP8FLOW_ECOMM);
            f->seen[comm->rank] = status;
            return status;
        }
    }
    return FP8FLOW_OK;
}

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
    assert_fails(fp8flow_run_ranks(2, asking_body, message), FP8FLOW_ENOMEM, "no memory on rank 1");
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

static fp8flow_status mismatch_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    unsigned char send[64] = { 0 }, recv[64] = { 0 };
    int32_t send_rows[MAX_TEAM], recv_rows[MAX_TEAM];
    for (int32_t r = 0; r < comm->size; r++) send_rows[r] = recv_rows[r] = 1;
    if (comm->rank == 1) recv_rows[0] = 2;
    f8_comm_part part = { send, recv, 8 };
    F8_TRY(f8_comm_exchange(comm, &part, 1, send_rows, recv_rows));
    int64_t value = 0;
    return fp8flow_comm_max(comm, &value);
}

static void test_exchange_with_different_counts_is_refused(void **state)
{
    (void)state;
    assert_fails(run_ranks(3, mismatch_body, NULL), FP8FLOW_ECOMM, "rank 1 expects 2 rows from rank 0, which sends 1");
}

static fp8flow_status argument_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    int32_t negative[MAX_TEAM] = { 1, -1 }, good[MAX_TEAM] = { 0 };
    int64_t value = 0;
    CHECK(f8_comm_exchange(comm, NULL, 0, negative, good) == FP8FLOW_EINVAL);
    CHECK(f8_comm_exchange(comm, NULL, 0, good, negative) == FP8FLOW_EINVAL);
    CHECK(f8_comm_all_reduce(comm, F8_SUM_F32, &value, -1) == FP8FLOW_EINVAL);
    CHECK(f8_comm_broadcast(comm, comm->size, &value, 8) == FP8FLOW_EINVAL);
    CHECK(f8_comm_broadcast(comm, -1, &value, 8) == FP8FLOW_EINVAL);
    CHECK(f8_comm_broadcast(comm, 0, &value, -8) == FP8FLOW_EINVAL);
    int64_t late[MAX_TEAM + 1] = { 1 }, falling[MAX_TEAM + 1] = { 0, 2, 1 };
    fp8flow_comm *part = NULL;
    CHECK(f8_comm_reduce_scatter(comm, F8_SUM_F32, &value, late) == FP8FLOW_EINVAL);
    CHECK(f8_comm_all_gather(comm, &value, falling) == FP8FLOW_EINVAL);
    CHECK(f8_comm_split(comm, -1, &part) == FP8FLOW_EINVAL && !part);
    CHECK(fp8flow_comm_max(comm, NULL) == FP8FLOW_EINVAL && fp8flow_comm_max(NULL, &value) == FP8FLOW_EINVAL);
    return fp8flow_comm_max(comm, &value); /* none of that has disturbed the team */
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

static fp8flow_status sum_ranks(fp8flow_comm *comm, void *user)
{
    int64_t value = comm->rank;
    F8_TRY(f8_comm_all_reduce(comm, F8_SUM_I64, &value, 1));
    CHECK(value == comm->size * (comm->size - 1) / 2);
    if (comm->rank == 0) *(int64_t *)user += value;
    return FP8FLOW_OK;
}

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
