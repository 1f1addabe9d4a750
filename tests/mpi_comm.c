/* mpi_comm.c - the MPI transport with the bodies of test_comm.c. Started by mpirun; tests/mpi_comm.sh says what must
 * come.
 *
 *   mpi_comm CASE   the cases are below; exit code 1 and one line from one rank when a body fails
 */
#include "comm_bodies.h"

#include <unistd.h>

static fp8flow_status reduce_in_order_body(fp8flow_comm *comm, void *user)
{
    int order_matters = 0;
    (void)user;
    F8_TRY(reduce_body(comm, &order_matters));
    CHECK(comm->rank > 0 || comm->size < 3 || order_matters > 20);
    return FP8FLOW_OK;
}

static fp8flow_status all_groups_body(fp8flow_comm *comm, void *user)
{
    (void)user;
    for (int32_t width = 1; width <= 4; width++) F8_TRY(groups_body(comm, &width));
    return FP8FLOW_OK;
}

static fp8flow_status sums_body(fp8flow_comm *comm, void *user)
{
    int64_t sum = 0;
    (void)user;
    return sum_ranks(comm, &sum);
}

/* More than a transport moves at once, in slices of which one is much longer; integers, so that sums are exact. */
static fp8flow_status check_large(fp8flow_comm *comm, float *data, int64_t count)
{
    const int64_t size = comm->size;
    int64_t offset[MAX_TEAM + 1] = { 0 };
    for (int32_t r = 1; r <= comm->size; r++) offset[r] = r == comm->size ? count : 1000 * r;
    for (int64_t i = 0; i < count; i++) data[i] = (float)(i % 1000 + comm->rank);
    F8_TRY(f8_comm_reduce_scatter(comm, F8_SUM_F32, data, offset));
    for (int64_t i = offset[comm->rank]; i < offset[comm->rank + 1]; i++)
        CHECK(data[i] == (float)(i % 1000 * size + size * (size - 1) / 2));
    for (int64_t i = 0; i < count; i++) data[i] = (float)(i % 1000 - comm->rank);
    F8_TRY(f8_comm_all_reduce(comm, F8_SUM_F32, data, count));
    for (int64_t i = 0; i < count; i++) CHECK(data[i] == (float)(i % 1000 * size - size * (size - 1) / 2));
    return FP8FLOW_OK;
}

static fp8flow_status large_body(fp8flow_comm *comm, void *user)
{
    const int64_t count = 7654321;
    float *data = malloc((size_t)count * sizeof *data);
    (void)user;
    F8_REQUIRE(data, ENOMEM, "no memory for %lld numbers", (long long)count);
    fp8flow_status status = check_large(comm, data, count);
    free(data);
    return status;
}

static fp8flow_status good_bodies(fp8flow_comm *comm, void *user)
{
    static fp8flow_status (*const bodies[])(fp8flow_comm *, void *) = {
        exchange_body, reduce_in_order_body, extremes_body, broadcast_body,
        slices_body,   all_groups_body,      sums_body,     large_body,
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) F8_TRY(bodies[i](comm, user));
    return comm->size > 1 ? argument_body(comm, user) : FP8FLOW_OK;
}

/* The last rank fails after two collectives; every rank does; rank 1 does nothing any more. */
static fp8flow_status last_fails_body(fp8flow_comm *comm, void *user)
{
    static failure_case f;
    (void)user;
    f = (failure_case){ .failing = comm->size - 1, .after = 2 };
    return failing_body(comm, &f);
}

static fp8flow_status all_fail_body(fp8flow_comm *comm, void *user)
{
    static failure_case f = { .failing = -1, .after = 1 };
    (void)user;
    return failing_body(comm, &f);
}

static fp8flow_status silent_rank_body(fp8flow_comm *comm, void *user)
{
    fp8flow_comm *part = NULL;
    int64_t value = 0;
    (void)user;
    F8_TRY(f8_comm_split(comm, 0, &part));
    if (comm->rank == 1) sleep(60);
    fp8flow_status status = f8_comm_all_reduce(part, F8_SUM_I64, &value, 1);
    CHECK(f8_comm_broadcast(comm, 0, &value, 8) == FP8FLOW_ECOMM);
    f8_comm_free(part);
    return status;
}

static const struct {
    const char *name;
    double timeout;
    fp8flow_status (*body)(fp8flow_comm *, void *);
} cases[] = { { "good", 60, good_bodies },       { "last-fails", 60, last_fails_body },
              { "all-fail", 60, all_fail_body }, { "group-fails", 60, failing_group_body },
              { "mismatch", 60, mismatch_body }, { "silent-rank", 1, silent_rank_body } };

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (argc != 2 || strcmp(argv[1], cases[i].name) != 0) continue;
        int32_t rank, failed_rank;
        int32_t size = fp8flow_mpi_launched(&rank);
        fp8flow_status status = fp8flow_run_mpi_ranks(cases[i].timeout, cases[i].body, NULL, &failed_rank);
        if (status == FP8FLOW_OK && rank == 0) printf("%s: done by %d ranks\n", argv[1], size);
        if (status == FP8FLOW_OK) return 0;
        if (rank == failed_rank) fprintf(stderr, "mpi_comm: rank %d: %s\n", rank, fp8flow_last_error());
        return 1;
    }
    fprintf(stderr, "mpi_comm: no such case\n");
    return 2;
}
