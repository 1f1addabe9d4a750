/* comm_bodies.h - what ranks do in the tests of transports: the same on threads (test_comm.c) and on processes
 * (mpi_comm.c).
 *
 * Bodies run where cmocka's assertions must not be used: they return a status, and CHECK makes one.
 */
#ifndef COMM_BODIES_H
#define COMM_BODIES_H

#include "support.h"

#include "comm/comm.h"

#define CHECK(condition) F8_REQUIRE(condition, EFORMAT, "line %d: %s", __LINE__, #condition)

enum { MAX_TEAM = 8 };

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

static fp8flow_status sum_ranks(fp8flow_comm *comm, void *user)
{
    int64_t value = comm->rank;
    F8_TRY(f8_comm_all_reduce(comm, F8_SUM_I64, &value, 1));
    CHECK(value == comm->size * (comm->size - 1) / 2);
    if (comm->rank == 0) *(int64_t *)user += value;
    return FP8FLOW_OK;
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
            snprintf(f->message[comm->rank], sizeof f->message[0], "%s", fp8flow_last_error());
            /* Later calls fail at once, too: nobody hangs who tries again. */
            CHECK(f8_comm_broadcast(comm, 0, &value, 8) == FP8FLOW_ECOMM);
            f->seen[comm->rank] = status;
            return status;
        }
    }
    return FP8FLOW_OK;
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

#endif
