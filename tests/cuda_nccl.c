/* cuda_nccl.c - NCCL between ranks that are threads, each on a GPU of its own: what arrives, sums, and what failure
 * looks like. With one GPU the world is one rank, which still goes through the library; what takes two is skipped.
 *
 * Bodies run on threads, where cmocka's assertions must not be used: they return a status, and CHECK makes one.
 */
#include "support.h"

#include <math.h>
#include <sched.h>

#include "base/clock.h"
#include "comm/comm_nccl.h"
#include "fp8flow.h"

#define CHECK(condition) F8_REQUIRE(condition, EFORMAT, "line %d: %s", __LINE__, #condition)

enum { MAX_RANKS = 8 };

static int num_gpus(void)
{
    const f8_device *device;
    int count = 0;
    while (count < MAX_RANKS && f8_device_cuda(count, &device) == FP8FLOW_OK) count++;
    return count;
}

/* A rank on its GPU. The reductions of a single rank are called through `ops`: f8_comm_* would leave NCCL out. */
typedef struct {
    fp8flow_comm *host, *comm;
    const f8_device *device;
    void *stream;
} gpu_rank;

typedef struct {
    fp8flow_status (*body)(gpu_rank *rank, void *user);
    void *user;
    double timeout;
} gpu_job;

static fp8flow_status run_on_gpu(fp8flow_comm *host, void *user)
{
    gpu_job *job = user;
    gpu_rank rank = { .host = host };
    host->timeout = job->timeout;
    F8_TRY(f8_device_cuda(host->rank, &rank.device));
    F8_TRY(rank.device->stream_create(&rank.stream));
    fp8flow_status status = f8_comm_nccl_create(host, rank.device, rank.stream, &rank.comm);
    if (status == FP8FLOW_OK) status = job->body(&rank, job->user);
    f8_comm_free(rank.comm);
    rank.device->stream_destroy(rank.stream);
    return status;
}

static fp8flow_status run_gpus(int ranks, fp8flow_status (*body)(gpu_rank *, void *), void *user)
{
    gpu_job job = { body, user, 0 };
    return fp8flow_run_ranks(ranks, run_on_gpu, &job);
}

static void skip_below(int gpus)
{
    int usable = 0;
    const char *nccl = f8_comm_nccl_summary(&usable);
    skip_where(tested_device() == TEST_ON_MIRROR, "needs a GPU");
    skip_where(!usable, nccl);
    skip_where(num_gpus() < gpus, "needs more GPUs");
}

/* Device memory with a copy of `bytes` bytes. */
static fp8flow_status upload(const gpu_rank *g, const void *host, int64_t bytes, void **memory)
{
    F8_TRY(g->device->alloc((size_t)bytes, memory));
    return g->device->copy(g->stream, *memory, host, (size_t)bytes);
}

/* Waits, as a program does. */
static fp8flow_status download(const gpu_rank *g, void *host, void *memory, int64_t bytes)
{
    fp8flow_status status = g->device->copy(g->stream, host, memory, (size_t)bytes);
    if (status == FP8FLOW_OK) status = f8_comm_check(g->comm);
    g->device->free(memory);
    return status;
}

/* ---- Exchange ---- */

enum { NUM_PARTS = 3, MOST_ROWS = 9, MOST_BYTES = MAX_RANKS * MOST_ROWS * 130, NUM_ROUNDS = 40 };
static const int64_t part_bytes[NUM_PARTS] = { 1, 7, 130 };

static int32_t rows_between(uint64_t round, int32_t source, int32_t target)
{
    uint64_t bits = f8_random(round, 1, (uint64_t)(source * MAX_RANKS + target));
    return bits % 3 == 0 ? 0 : (int32_t)((bits >> 32) % (MOST_ROWS + 1));
}

/* The rows of part `i` from `source` to `target`, at `to`; returns the end. */
static unsigned char *write_rows(unsigned char *to, uint64_t round, int i, int32_t source, int32_t target)
{
    for (int64_t k = 0; k < rows_between(round, source, target) * part_bytes[i]; k++)
        *to++ =
            (unsigned char)f8_random(round * 64 + (uint64_t)i, (uint64_t)(source * MAX_RANKS + target), (uint64_t)k);
    return to;
}

static fp8flow_status run_exchange(const gpu_rank *g, uint64_t round, const f8_comm_part *part)
{
    int32_t size = g->comm->size, send_rows[MAX_RANKS], recv_rows[MAX_RANKS];
    for (int32_t r = 0; r < size; r++) send_rows[r] = rows_between(round, g->comm->rank, r);
    F8_TRY(f8_comm_counts(g->host, send_rows, recv_rows));
    if (round % 2 == 0) return f8_comm_exchange(g->comm, part, NUM_PARTS, send_rows, recv_rows);
    F8_TRY(f8_comm_exchange_begin(g->comm, part, NUM_PARTS, send_rows, recv_rows));
    return f8_comm_exchange_end(g->comm);
}

/* The calls are timed where they lie: on the stream, or aside. */
static fp8flow_status run_timed_exchange(const gpu_rank *g, uint64_t round, const f8_comm_part *part)
{
    const double *seconds = &g->comm->spent[F8_EXCHANGE].seconds, before = *seconds;
    f8_comm_clock_start(g->comm);
    F8_TRY(run_exchange(g, round, part));
    CHECK(*seconds == before);
    F8_TRY(g->device->synchronize(g->stream));
    F8_TRY(f8_comm_clock_read(g->comm));
    CHECK(*seconds >= before && *seconds < before + 60);
    return FP8FLOW_OK;
}

static fp8flow_status exchange_round(const gpu_rank *g, uint64_t round, unsigned char *host, unsigned char *expected)
{
    f8_comm_part part[NUM_PARTS];
    void *send[NUM_PARTS], *recv[NUM_PARTS];
    for (int i = 0; i < NUM_PARTS; i++) {
        unsigned char *end = host;
        for (int32_t r = 0; r < g->comm->size; r++) end = write_rows(end, round, i, g->comm->rank, r);
        F8_TRY(upload(g, host, MOST_BYTES, &send[i]));
        F8_TRY(g->device->alloc(MOST_BYTES, &recv[i]));
        F8_TRY(g->device->fill(g->stream, recv[i], 0xEE, MOST_BYTES));
        part[i] = (f8_comm_part){ send[i], recv[i], part_bytes[i] };
    }
    F8_TRY(run_timed_exchange(g, round, part));
    for (int i = 0; i < NUM_PARTS; i++) {
        unsigned char *end = expected;
        memset(expected, 0xEE, MOST_BYTES);
        for (int32_t r = 0; r < g->comm->size; r++) end = write_rows(end, round, i, r, g->comm->rank);
        F8_TRY(download(g, host, recv[i], MOST_BYTES));
        g->device->free(send[i]);
        CHECK(memcmp(host, expected, MOST_BYTES) == 0);
    }
    return FP8FLOW_OK;
}

static fp8flow_status exchange_body(gpu_rank *g, void *user)
{
    (void)user;
    unsigned char *host = calloc(2, MOST_BYTES);
    fp8flow_status status = host ? FP8FLOW_OK : F8_FAIL(ENOMEM, "exchange");
    for (uint64_t round = 0; round < NUM_ROUNDS && status == FP8FLOW_OK; round++)
        status = exchange_round(g, round, host, host + MOST_BYTES);
    free(host);
    F8_TRY(status);
    CHECK(g->comm->spent[F8_EXCHANGE].seconds > 0);
    return FP8FLOW_OK;
}

static void test_exchange_delivers_every_row_in_the_order_of_senders(void **state)
{
    (void)state;
    skip_below(1);
    for (int ranks = 1; ranks <= num_gpus(); ranks *= 2) assert_ok(run_gpus(ranks, exchange_body, NULL));
}

/* ---- Sums ---- */

enum { NUM_VALUES = 10007, NUM_REPEATS = 100 };

static float value_of(int32_t rank, int64_t i)
{
    int exponent = (int)(f8_random(3, (uint64_t)rank, (uint64_t)i) % 24) - 12;
    return ldexpf(f8_normal(4, (uint64_t)rank, (uint64_t)i), exponent);
}

static int64_t integer_of(int32_t rank, int64_t i)
{
    return (int64_t)f8_random(5, (uint64_t)rank, (uint64_t)i) >> 8;
}

/* Within the rounding of any order of the ranks. */
static int is_sum(int32_t size, int64_t i, double sum, double epsilon)
{
    double exact = 0, magnitude = 0;
    for (int32_t r = 0; r < size; r++) {
        exact += (double)value_of(r, i);
        magnitude += fabs((double)value_of(r, i));
    }
    return fabs(sum - exact) <= size * epsilon * magnitude;
}

static fp8flow_status reduce(const gpu_rank *g, f8_reduction reduction, void *values, int64_t count)
{
    void *memory;
    int64_t bytes = count * f8_comm_element_bytes(reduction);
    F8_TRY(upload(g, values, bytes, &memory));
    F8_TRY(g->comm->ops->all_reduce(g->comm, reduction, memory, count));
    return download(g, values, memory, bytes);
}

typedef struct {
    float f32[NUM_VALUES], first[NUM_VALUES];
    double f64[NUM_VALUES];
    int64_t sum[NUM_VALUES], max[NUM_VALUES];
} numbers;

static fp8flow_status check_reductions(const gpu_rank *g, numbers *n, int64_t count)
{
    int32_t size = g->comm->size, rank = g->comm->rank;
    for (int64_t i = 0; i < count; i++) {
        n->f32[i] = value_of(rank, i);
        n->f64[i] = (double)n->f32[i];
        n->sum[i] = n->max[i] = integer_of(rank, i);
    }
    F8_TRY(reduce(g, F8_SUM_F32, n->f32, count));
    F8_TRY(reduce(g, F8_SUM_F64, n->f64, count));
    F8_TRY(reduce(g, F8_SUM_I64, n->sum, count));
    F8_TRY(reduce(g, F8_MAX_I64, n->max, count));
    for (int64_t i = 0; i < count; i++) {
        int64_t total = 0, largest = INT64_MIN;
        for (int32_t r = 0; r < size; r++) {
            total += integer_of(r, i);
            largest = integer_of(r, i) > largest ? integer_of(r, i) : largest;
        }
        CHECK(is_sum(size, i, (double)n->f32[i], 0x1p-24) && is_sum(size, i, n->f64[i], 0x1p-50));
        CHECK(n->sum[i] == total && n->max[i] == largest);
    }
    return FP8FLOW_OK;
}

static fp8flow_status reduce_body(gpu_rank *g, void *user)
{
    static const int64_t counts[] = { 0, 1, 2, 7, NUM_VALUES };
    numbers *n = malloc(sizeof *n);
    fp8flow_status status = n ? FP8FLOW_OK : F8_FAIL(ENOMEM, "numbers");
    (void)user;
    for (int i = 0; i < 5 && status == FP8FLOW_OK; i++) status = check_reductions(g, n, counts[i]);
    free(n);
    return status;
}

static void test_reductions_of_all_types(void **state)
{
    (void)state;
    skip_below(1);
    for (int ranks = 1; ranks <= num_gpus(); ranks *= 2) assert_ok(run_gpus(ranks, reduce_body, NULL));
}

static fp8flow_status check_repeats(const gpu_rank *g, numbers *n)
{
    for (int repeat = 0; repeat < NUM_REPEATS; repeat++) {
        for (int64_t i = 0; i < NUM_VALUES; i++) n->f32[i] = value_of(g->comm->rank, i);
        F8_TRY(reduce(g, F8_SUM_F32, n->f32, NUM_VALUES));
        if (repeat == 0) memcpy(n->first, n->f32, sizeof n->first);
        CHECK(memcmp(n->first, n->f32, sizeof n->first) == 0);
    }
    /* The same on every rank. */
    memcpy(n->f32, n->first, sizeof n->first);
    F8_TRY(f8_comm_broadcast(g->host, 0, n->f32, sizeof n->f32));
    CHECK(memcmp(n->first, n->f32, sizeof n->first) == 0);
    return FP8FLOW_OK;
}

static fp8flow_status repeat_body(gpu_rank *g, void *user)
{
    numbers *n = malloc(sizeof *n);
    (void)user;
    F8_REQUIRE(n, ENOMEM, "numbers");
    fp8flow_status status = check_repeats(g, n);
    free(n);
    return status;
}

static void test_sums_have_the_same_bits_in_every_run(void **state)
{
    (void)state;
    skip_below(1);
    assert_ok(run_gpus(num_gpus(), repeat_body, NULL));
}

/* ---- Slices and broadcast ---- */

/* Of uneven sizes, some empty, or all of the same. */
static void make_offsets(int64_t *offset, int32_t size, int even)
{
    offset[0] = 0;
    for (int32_t r = 1; r <= size; r++) offset[r] = even ? 100 * r : r % 3 == 2 ? offset[r - 1] : 37 * r;
}

/* reduce_scatter, the other slices spoilt, all_gather: everybody has the sum. */
static fp8flow_status check_slices(const gpu_rank *g, int even)
{
    int64_t offset[MAX_RANKS + 1], bytes[MAX_RANKS + 1];
    int32_t size = g->comm->size, rank = g->comm->rank;
    float values[1024];
    void *memory;
    make_offsets(offset, size, even);
    for (int32_t r = 0; r <= size; r++) bytes[r] = offset[r] * 4;
    for (int64_t i = 0; i < offset[size]; i++) values[i] = value_of(rank, i);
    F8_TRY(upload(g, values, bytes[size], &memory));
    F8_TRY(g->comm->ops->reduce_scatter(g->comm, F8_SUM_F32, memory, offset));
    for (int32_t r = 0; r < size; r++)
        if (r != rank)
            F8_TRY(g->device->fill(g->stream, (char *)memory + bytes[r], 0xFF, (size_t)(bytes[r + 1] - bytes[r])));
    F8_TRY(g->comm->ops->all_gather(g->comm, memory, bytes));
    F8_TRY(download(g, values, memory, bytes[size]));
    for (int64_t i = 0; i < offset[size]; i++) CHECK(is_sum(size, i, (double)values[i], 0x1p-24));
    return FP8FLOW_OK;
}

static fp8flow_status check_broadcast(const gpu_rank *g, int32_t root)
{
    unsigned char data[300];
    void *memory;
    memset(data, 10 + g->comm->rank, sizeof data);
    F8_TRY(upload(g, data, 300, &memory));
    F8_TRY(f8_comm_broadcast(g->comm, root, memory, 299));
    F8_TRY(f8_comm_broadcast(g->comm, root, NULL, 0));
    F8_TRY(download(g, data, memory, 300));
    for (int i = 0; i < 299; i++) CHECK(data[i] == 10 + root);
    CHECK(data[299] == 10 + g->comm->rank);
    return FP8FLOW_OK;
}

static fp8flow_status slices_body(gpu_rank *g, void *user)
{
    (void)user;
    F8_TRY(check_slices(g, 0));
    F8_TRY(check_slices(g, 1));
    for (int32_t root = 0; root < g->comm->size; root++) F8_TRY(check_broadcast(g, root));
    return FP8FLOW_OK;
}

static void test_slices_and_broadcast(void **state)
{
    (void)state;
    skip_below(1);
    for (int ranks = 1; ranks <= num_gpus(); ranks *= 2) assert_ok(run_gpus(ranks, slices_body, NULL));
}

/* ---- Groups ---- */

/* Pairs of neighbours, and across them those with the same place in their pair, both under way on one stream. */
static fp8flow_status groups_body(gpu_rank *g, void *user)
{
    fp8flow_comm *near = NULL, *far = NULL;
    int64_t rank = g->host->rank, pair = rank / 2, place = rank % 2, size = g->host->size;
    int64_t values[2] = { rank, rank };
    void *memory;
    (void)user;
    F8_TRY(f8_comm_split(g->comm, (int32_t)pair, &near));
    F8_TRY(f8_comm_split(g->comm, 1000 + (int32_t)place, &far));
    CHECK(near->rank == place && far->rank == pair);
    F8_TRY(upload(g, values, sizeof values, &memory));
    F8_TRY(near->ops->all_reduce(near, F8_SUM_I64, memory, 1));
    F8_TRY(far->ops->all_reduce(far, F8_MAX_I64, (int64_t *)memory + 1, 1));
    F8_TRY(download(g, values, memory, sizeof values));
    int64_t last = size - 1;
    CHECK(values[0] == (near->size == 2 ? 4 * pair + 1 : rank) && values[1] == last - (last % 2 != place && last > 0));
    f8_comm_free(near);
    f8_comm_free(far);
    return FP8FLOW_OK;
}

static void test_groups_work_beside_each_other(void **state)
{
    (void)state;
    skip_below(1);
    assert_ok(run_gpus(num_gpus(), groups_body, NULL));
}

/* ---- Failure ---- */

/* Rank 0 waits on its stream for rank 1, which makes `collectives` calls and then fails, or stays away. */
typedef struct {
    int collectives, stays;
    fp8flow_status seen;
    char message[512];
} failure_case;

static fp8flow_status wait_for_failure(gpu_rank *g)
{
    while (f8_comm_check(g->host) == FP8FLOW_OK) sched_yield();
    return FP8FLOW_ECOMM;
}

static fp8flow_status failing_body(gpu_rank *g, void *user)
{
    failure_case *f = user;
    int64_t value = 1;
    void *memory;
    F8_TRY(upload(g, &value, 8, &memory));
    for (int i = 0; i < f->collectives; i++) F8_TRY(f8_comm_all_reduce(g->comm, F8_SUM_I64, memory, 1));
    if (g->host->rank == 1) {
        F8_TRY(download(g, &value, memory, 8));
        return f->stays ? wait_for_failure(g) : F8_FAIL(EIO, "disk of rank 1 is full");
    }
    fp8flow_status status = f8_comm_all_reduce(g->comm, F8_SUM_I64, memory, 1);
    if (status == FP8FLOW_OK) {
        (void)g->device->synchronize(g->stream); /* its outcome says nothing of other ranks */
        status = f8_comm_check(g->comm);
    }
    f->seen = status;
    snprintf(f->message, sizeof f->message, "%s", fp8flow_last_error());
    /* Later calls fail at once, too: nobody hangs who tries again. */
    CHECK(f8_comm_all_reduce(g->comm, F8_SUM_I64, memory, 1) == FP8FLOW_ECOMM);
    CHECK(fp8flow_comm_max(g->host, &value) == FP8FLOW_ECOMM);
    g->device->free(memory);
    return status;
}

static void test_a_rank_that_fails_ends_the_wait_of_the_other(void **state)
{
    (void)state;
    skip_below(2);
    for (int collectives = 0; collectives < 3; collectives++) {
        failure_case f = { .collectives = collectives };
        double start = f8_seconds_now();
        assert_fails(run_gpus(2, failing_body, &f), FP8FLOW_EIO, "disk of rank 1 is full");
        assert_int_equal(f.seen, FP8FLOW_ECOMM);
        assert_non_null(strstr(f.message, "rank 1 has failed: disk of rank 1 is full"));
        assert_true(f8_seconds_now() - start < 20);
    }
}

static void test_a_rank_that_stays_away_ends_the_job_after_the_timeout(void **state)
{
    (void)state;
    skip_below(2);
    failure_case f = { .collectives = 1, .stays = 1 };
    gpu_job job = { failing_body, &f, 10 };
    double start = f8_seconds_now();
    assert_fails(fp8flow_run_ranks(2, run_on_gpu, &job), FP8FLOW_ECOMM, "all_reduce (call 3) is not done after 10 s");
    assert_int_equal(f.seen, FP8FLOW_ECOMM);
    assert_true(f8_seconds_now() - start > 10 && f8_seconds_now() - start < 40);
}

static void test_a_job_after_a_failed_one_works(void **state)
{
    (void)state;
    skip_below(2);
    failure_case f = { .collectives = 1 };
    assert_int_equal(run_gpus(2, failing_body, &f), FP8FLOW_EIO);
    assert_ok(run_gpus(2, slices_body, NULL));
}

/* ---- Which ranks can use it ---- */

static fp8flow_status usable_body(fp8flow_comm *host, void *user)
{
    const f8_device *device;
    F8_TRY(f8_device_cuda(*(const int *)user ? host->rank : 0, &device));
    fp8flow_status status = f8_comm_nccl_usable(host, device);
    char message[256];
    snprintf(message, sizeof message, "%s", status == FP8FLOW_OK ? "usable" : fp8flow_last_error());
    char first[256];
    memcpy(first, message, sizeof first);
    F8_TRY(f8_comm_broadcast(host, 0, first, sizeof first));
    CHECK(strcmp(first, message) == 0);
    return status == FP8FLOW_OK ? status : f8_fail(status, "%s", message);
}

static void test_every_rank_needs_a_gpu_of_its_own(void **state)
{
    int own = 1, shared = 0;
    (void)state;
    skip_below(1);
    assert_ok(fp8flow_run_ranks(num_gpus(), usable_body, &own));
    assert_ok(fp8flow_run_ranks(1, usable_body, &shared));
    assert_fails(fp8flow_run_ranks(3, usable_body, &shared), FP8FLOW_ENOSYS, "ranks 0 and 1 are on the same GPU");
}

static fp8flow_status host_body(fp8flow_comm *host, void *user)
{
    (void)user;
    return f8_comm_nccl_usable(host, f8_device_cpu());
}

static void test_memory_of_the_program_is_not_for_nccl(void **state)
{
    (void)state;
    assert_fails(fp8flow_run_ranks(2, host_body, NULL), FP8FLOW_ENOSYS, "nccl: rank");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_rank_needs_a_gpu_of_its_own),
        cmocka_unit_test(test_memory_of_the_program_is_not_for_nccl),
        cmocka_unit_test(test_exchange_delivers_every_row_in_the_order_of_senders),
        cmocka_unit_test(test_reductions_of_all_types),
        cmocka_unit_test(test_sums_have_the_same_bits_in_every_run),
        cmocka_unit_test(test_slices_and_broadcast),
        cmocka_unit_test(test_groups_work_beside_each_other),
        cmocka_unit_test(test_a_rank_that_fails_ends_the_wait_of_the_other),
        cmocka_unit_test(test_a_rank_that_stays_away_ends_the_job_after_the_timeout),
        cmocka_unit_test(test_a_job_after_a_failed_one_works),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
