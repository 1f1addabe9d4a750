/* test_comm_device.c - views of a communicator for memory of a device: their lives, what they copy, what they do when
 * the device fails. What arrives is compared in test_comm.c, which runs over them too.
 */
#include "support.h"

#include "comm/comm.h"
#include "fake_device.h"

#define CHECK(condition) F8_REQUIRE(condition, EFORMAT, "line %d: %s", __LINE__, #condition)

enum { NUM_RANKS = 3 };

/* ---- Lives ---- */

static fp8flow_status lives_body(fp8flow_comm *host, void *user)
{
    (void)user;
    fp8flow_comm *first, *again, *other, *cpu;
    int stream;
    F8_TRY(f8_comm_for_device(host, f8_device_cpu(), NULL, &cpu));
    CHECK(cpu == host && !host->views);
    f8_comm_release(cpu); /* leaves it alone */
    F8_TRY(f8_comm_for_device(host, fake_device(), NULL, &first));
    F8_TRY(f8_comm_for_device(host, fake_device(), &stream, &other));
    F8_TRY(f8_comm_for_device(host, fake_device(), NULL, &again));
    CHECK(first == again && other != first && first != host);
    int64_t value = host->rank;
    f8_comm_release(first);
    F8_TRY(f8_comm_all_reduce(again, F8_SUM_I64, &value, 1)); /* still has a user */
    CHECK(value == 3 && fake.host_bytes > 0);
    f8_comm_release(again);
    CHECK(fake.host_bytes == 0);
    F8_TRY(f8_comm_all_reduce(other, F8_SUM_I64, &value, 1));
    CHECK(value == 9);
    f8_comm_release(other);
    CHECK(fake.host_bytes == 0 && !host->views);
    f8_comm_release(NULL);
    return fp8flow_comm_max(host, &value);
}

static void test_a_view_lives_as_long_as_it_has_users(void **state)
{
    (void)state;
    assert_ok(fp8flow_run_ranks(NUM_RANKS, lives_body, NULL));
}

/* ---- Copies ---- */

static fp8flow_status check_copied(int64_t expected)
{
    F8_REQUIRE(fake.copied_bytes == expected, EFORMAT, "%lld bytes copied, expected %lld", (long long)fake.copied_bytes,
               (long long)expected);
    fake.copied_bytes = 0;
    return FP8FLOW_OK;
}

/* Rank r sends 1 row to those before it, 2 to itself, 3 to those after it. */
static fp8flow_status check_exchange(fp8flow_comm *view)
{
    enum { ROW = 5 };
    char send[9 * ROW], recv[9 * ROW];
    int32_t send_rows[NUM_RANKS], recv_rows[NUM_RANKS], rank = view->rank;
    int64_t sent = 0, received = 0;
    for (int32_t r = 0; r < NUM_RANKS; r++) {
        send_rows[r] = r < rank ? 1 : r == rank ? 2 : 3;
        recv_rows[r] = r < rank ? 3 : r == rank ? 2 : 1;
        memset(send + sent * ROW, 16 * rank + r, (size_t)send_rows[r] * ROW);
        sent += send_rows[r], received += recv_rows[r];
    }
    f8_comm_part part = { send, recv, ROW };
    F8_TRY(f8_comm_exchange(view, &part, 1, send_rows, recv_rows));
    int64_t at = 0;
    for (int32_t r = 0; r < NUM_RANKS; r++)
        for (int i = 0; i < recv_rows[r] * ROW; i++) CHECK(recv[at++] == 16 * r + rank);
    CHECK(view->exchanged_bytes == sent * ROW);
    /* Own rows once, from device to device; those of others out or in. */
    return check_copied((2 + sent - 2 + received - 2) * ROW);
}

static fp8flow_status copies_body(fp8flow_comm *host, void *user)
{
    (void)user;
    fp8flow_comm *view;
    double values[10] = { 0 };
    static const int64_t elements[] = { 0, 3, 3, 10 }, bytes[] = { 0, 24, 24, 80 };
    int64_t own = bytes[host->rank + 1] - bytes[host->rank];
    F8_TRY(f8_comm_for_device(host, fake_device(), NULL, &view));
    fake.copied_bytes = 0;
    F8_TRY(check_exchange(view));
    F8_TRY(f8_comm_all_reduce(view, F8_SUM_F64, values, 10));
    F8_TRY(check_copied(160));
    F8_TRY(f8_comm_reduce_scatter(view, F8_SUM_F64, values, elements));
    F8_TRY(check_copied(80 + own));
    F8_TRY(f8_comm_all_gather(view, values, bytes));
    F8_TRY(check_copied(80));
    F8_TRY(f8_comm_broadcast(view, 1, values, 80));
    F8_TRY(check_copied(80));
    f8_comm_release(view);
    return FP8FLOW_OK;
}

static void test_only_what_leaves_or_comes_is_copied(void **state)
{
    (void)state;
    assert_ok(fp8flow_run_ranks(NUM_RANKS, copies_body, NULL));
}

/* More than a piece of an all_reduce: the seams are where the pieces meet. */
static fp8flow_status large_body(fp8flow_comm *host, void *user)
{
    (void)user;
    const int64_t count = ((64 << 20) / 8) * 2 + 5;
    fp8flow_comm *view;
    int64_t *values = malloc((size_t)count * 8);
    CHECK(values);
    for (int64_t i = 0; i < count; i++) values[i] = i * (host->rank + 1);
    F8_TRY(f8_comm_for_device(host, fake_device(), NULL, &view));
    fp8flow_status status = f8_comm_all_reduce(view, F8_SUM_I64, values, count);
    for (int64_t i = 0; i < count && status == FP8FLOW_OK; i++)
        if (values[i] != 3 * i) status = F8_FAIL(EFORMAT, "value %lld is %lld", (long long)i, (long long)values[i]);
    if (status == FP8FLOW_OK && fake.host_bytes > 64 << 20)
        status = F8_FAIL(EFORMAT, "%lld bytes", (long long)fake.host_bytes);
    f8_comm_release(view);
    free(values);
    return status;
}

static void test_a_large_reduction_goes_in_pieces(void **state)
{
    (void)state;
    assert_ok(fp8flow_run_ranks(2, large_body, NULL));
}

/* ---- Failure ---- */

static fp8flow_status failing_body(fp8flow_comm *host, void *user)
{
    int refused = *(const int *)user;
    fp8flow_comm *view;
    int64_t value = 1;
    F8_TRY(f8_comm_for_device(host, fake_device(), NULL, &view));
    if (host->rank == 1) fake.refuse_host_memory = refused, fake.fail_copies = !refused;
    fp8flow_status status = f8_comm_all_reduce(view, F8_SUM_I64, &value, 1);
    f8_comm_release(view);
    return status;
}

static void test_a_device_that_fails_ends_the_ranks(void **state)
{
    (void)state;
    int refused = 1;
    assert_fails(fp8flow_run_ranks(NUM_RANKS, failing_body, &refused), FP8FLOW_ENOMEM, "fake: no host memory");
    refused = 0;
    assert_fails(fp8flow_run_ranks(NUM_RANKS, failing_body, &refused), FP8FLOW_EBACKEND, "fake: a kernel has failed");
}

static fp8flow_status own_rows_body(fp8flow_comm *host, void *user)
{
    (void)user;
    fp8flow_comm *view;
    char send[8], recv[8];
    int32_t send_rows[] = { 1, 0, 0 }, recv_rows[] = { 2, 0, 0 };
    f8_comm_part part = { send, recv, 1 };
    F8_TRY(f8_comm_for_device(host, fake_device(), NULL, &view));
    fp8flow_status status = FP8FLOW_OK;
    if (host->rank == 0) status = f8_comm_exchange(view, &part, 1, send_rows, recv_rows);
    f8_comm_release(view);
    return status;
}

static void test_own_rows_must_agree_too(void **state)
{
    (void)state;
    assert_fails(fp8flow_run_ranks(NUM_RANKS, own_rows_body, NULL), FP8FLOW_ECOMM,
                 "rank 0 expects 2 rows from itself and sends 1");
}

/* ---- Time ---- */

enum { NUM_TIMED = 6 }; /* calls of call_each */

/* Every collective once. */
static fp8flow_status call_each(fp8flow_comm *view)
{
    static const int32_t one[] = { 1, 1, 1 };
    static const int64_t elements[] = { 0, 1, 2, 3 }, bytes[] = { 0, 8, 16, 24 };
    double values[3] = { 1, 2, 3 }, others[3];
    f8_comm_part part = { values, others, sizeof *values };
    F8_TRY(f8_comm_exchange_begin(view, &part, 1, one, one));
    F8_TRY(f8_comm_exchange_end(view));
    F8_TRY(f8_comm_exchange_back(view, &part, 1, one, one));
    F8_TRY(f8_comm_all_reduce(view, F8_SUM_F64, values, 3));
    F8_TRY(f8_comm_reduce_scatter(view, F8_SUM_F64, values, elements));
    F8_TRY(f8_comm_all_gather(view, values, bytes));
    return f8_comm_broadcast(view, 1, values, sizeof values);
}

/* What has been spent since the last look; -1: on one kind nothing, on another something. */
static double look_at_seconds(const fp8flow_comm *view, double seen[F8_NUM_COLLECTIVES])
{
    double sum = 0;
    int num_spent = 0;
    for (int i = 0; i < F8_NUM_COLLECTIVES; i++) {
        double spent = view->spent[i].seconds - seen[i];
        num_spent += spent > 0;
        sum += spent;
        seen[i] = view->spent[i].seconds;
    }
    return num_spent % F8_NUM_COLLECTIVES == 0 ? sum : -1;
}

static fp8flow_status timed_body(fp8flow_comm *host, void *user)
{
    double seen[F8_NUM_COLLECTIVES] = { 0 };
    fp8flow_comm *view;
    (void)user;
    F8_TRY(f8_comm_for_device(host, fake_device(), NULL, &view));
    F8_TRY(call_each(view));
    F8_TRY(f8_comm_clock_read(view));
    CHECK(look_at_seconds(view, seen) == 0 && fake.num_events == 0); /* nobody wants to know */
    for (int round = 0; round < 3; round++) {
        f8_comm_clock_start(view);
        for (int i = 0; i < 20; i++) F8_TRY(call_each(view));
        CHECK(look_at_seconds(view, seen) == 0 && fake.num_readings == 0);
        F8_TRY(f8_comm_clock_read(view));
        CHECK(look_at_seconds(view, seen) > 0);
        CHECK(fake.num_readings == 20 * NUM_TIMED && fake.num_events == 2 * 20 * NUM_TIMED);
        fake.num_readings = 0;
        F8_TRY(f8_comm_clock_read(view)); /* once only */
        CHECK(look_at_seconds(view, seen) == 0);
    }
    f8_comm_clock_start(view); /* of a step that failed nothing is left */
    F8_TRY(call_each(view));
    f8_comm_clock_start(view);
    F8_TRY(f8_comm_clock_read(view));
    CHECK(look_at_seconds(view, seen) == 0);
    f8_comm_release(view);
    CHECK(fake.num_events == 0);
    return FP8FLOW_OK;
}

static void test_a_view_is_timed_by_events(void **state)
{
    (void)state;
    assert_ok(fp8flow_run_ranks(NUM_RANKS, timed_body, NULL));
}

/* Without a start. */
static fp8flow_status host_time_body(fp8flow_comm *host, void *user)
{
    double seen[F8_NUM_COLLECTIVES] = { 0 };
    (void)user;
    F8_TRY(call_each(host));
    CHECK(look_at_seconds(host, seen) > 0);
    f8_comm_clock_start(host);
    F8_TRY(call_each(host));
    CHECK(look_at_seconds(host, seen) > 0);
    return f8_comm_clock_read(host);
}

static void test_the_program_times_its_own_memory(void **state)
{
    (void)state;
    assert_ok(fp8flow_run_ranks(NUM_RANKS, host_time_body, NULL));
}

static fp8flow_status exchange_nothing(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                       const int32_t *send_rows, const int32_t *recv_rows)
{
    (void)comm, (void)part, (void)num_parts, (void)send_rows, (void)recv_rows;
    return FP8FLOW_OK;
}

static void free_nothing(fp8flow_comm *comm)
{
    (void)comm;
}

/* Of a transport that has a stream for them: from where the rows are ready to where they have come. */
static void test_an_exchange_aside_is_timed_on_both_streams(void **state)
{
    static const f8_comm_ops ops = { .exchange = exchange_nothing,
                                     .exchange_begin = exchange_nothing,
                                     .free = free_nothing };
    static const int32_t one[] = { 1, 1 };
    int stream, aside;
    fp8flow_comm comm = { .ops = &ops,
                          .size = 2,
                          .clock = { .device = fake_device(), .stream = &stream, .aside = &aside } };
    f8_comm_part part = { 0 };
    (void)state;
    f8_comm_clock_start(&comm);
    assert_ok(f8_comm_exchange_begin(&comm, &part, 1, one, one));
    assert_true(fake.event_stream[1] == &stream && fake.event_stream[0] == &aside);
    assert_ok(f8_comm_exchange_back(&comm, &part, 1, one, one));
    assert_true(fake.event_stream[1] == &stream && fake.event_stream[0] == &stream);
    assert_ok(f8_comm_clock_read(&comm));
    assert_true(comm.spent[F8_EXCHANGE].seconds > 0 && comm.spent[F8_EXCHANGE_BACK].seconds > 0);
    fake.refuse_events = 1;
    f8_comm_clock_start(&comm);
    assert_ok(f8_comm_exchange(&comm, &part, 1, one, one));
    assert_ok(f8_comm_exchange(&comm, &part, 1, one, one));
    assert_fails(f8_comm_exchange(&comm, &part, 1, one, one), FP8FLOW_EBACKEND, "fake: no event");
    fake.refuse_events = 0;
    f8_comm_free(&comm);
    assert_int_equal(fake.num_events, 0);
}

/* ---- Which transport ---- */

static fp8flow_status name_body(fp8flow_comm *host, void *user)
{
    fp8flow_comm *view;
    F8_TRY(f8_comm_for_device(host, fake_device(), NULL, &view));
    if (host->rank == 0) *(const char **)user = view->ops->name;
    f8_comm_release(view);
    return FP8FLOW_OK;
}

static void test_the_environment_chooses_the_transport(void **state)
{
    const char *name = "";
    (void)state;
    assert_ok(fp8flow_run_ranks(NUM_RANKS, name_body, &name));
    assert_string_equal(name, "host memory");
    setenv("FP8FLOW_TRANSPORT", "staged", 1);
    assert_ok(fp8flow_run_ranks(NUM_RANKS, name_body, &name));
    setenv("FP8FLOW_TRANSPORT", "nccl", 1);
    assert_fails(fp8flow_run_ranks(NUM_RANKS, name_body, &name), FP8FLOW_ENOSYS, "nccl: ");
    assert_fails(fp8flow_run_ranks(1, name_body, &name), FP8FLOW_ENOSYS, "nccl: ");
    setenv("FP8FLOW_TRANSPORT", "pigeons", 1);
    assert_fails(fp8flow_run_ranks(NUM_RANKS, name_body, &name), FP8FLOW_EINVAL,
                 "FP8FLOW_TRANSPORT is \"pigeons\", expected auto, nccl or staged");
    unsetenv("FP8FLOW_TRANSPORT");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_view_lives_as_long_as_it_has_users),
        cmocka_unit_test(test_only_what_leaves_or_comes_is_copied),
        cmocka_unit_test(test_a_large_reduction_goes_in_pieces),
        cmocka_unit_test(test_a_device_that_fails_ends_the_ranks),
        cmocka_unit_test(test_own_rows_must_agree_too),
        cmocka_unit_test(test_a_view_is_timed_by_events),
        cmocka_unit_test(test_the_program_times_its_own_memory),
        cmocka_unit_test(test_an_exchange_aside_is_timed_on_both_streams),
        cmocka_unit_test(test_the_environment_chooses_the_transport),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
