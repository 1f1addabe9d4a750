/* comm.c - the checked and counted entries of comm.h. */
#include "comm/comm.h"

int32_t fp8flow_comm_rank(const fp8flow_comm *comm)
{
    return comm ? comm->rank : -1;
}

int32_t fp8flow_comm_size(const fp8flow_comm *comm)
{
    return comm ? comm->size : -1;
}

static int stays_in_place(const fp8flow_comm *comm, const f8_comm_part *part, int num_parts)
{
    int same = comm->size == 1;
    for (int i = 0; i < num_parts; i++) same = same && part[i].send == part[i].recv;
    return same;
}

fp8flow_status f8_comm_exchange(fp8flow_comm *comm, const f8_comm_part *part, int num_parts, const int32_t *send_rows,
                                const int32_t *recv_rows)
{
    int64_t rows = 0, row_bytes = 0;
    for (int32_t r = 0; r < comm->size; r++) {
        F8_REQUIRE(send_rows[r] >= 0 && recv_rows[r] >= 0, EINVAL, "exchange: rank %d: %d rows for and %d from rank %d",
                   comm->rank, send_rows[r], recv_rows[r], r);
        rows += send_rows[r];
    }
    for (int i = 0; i < num_parts; i++) row_bytes += part[i].row_bytes;
    comm->exchanged_bytes += rows * row_bytes;
    if (stays_in_place(comm, part, num_parts)) return FP8FLOW_OK;
    return comm->ops->exchange(comm, part, num_parts, send_rows, recv_rows);
}

fp8flow_status f8_comm_counts(fp8flow_comm *comm, const int32_t *send_rows, int32_t *recv_rows)
{
    int32_t one[256];
    F8_REQUIRE(comm->size <= 256, EINVAL, "counts: %d ranks, at most 256", comm->size);
    for (int32_t r = 0; r < comm->size; r++) one[r] = 1;
    f8_comm_part part = { send_rows, recv_rows, sizeof *send_rows };
    return comm->ops->exchange(comm, &part, 1, one, one);
}

fp8flow_status f8_comm_all_reduce(fp8flow_comm *comm, f8_reduction reduction, void *data, int64_t count)
{
    F8_REQUIRE(count >= 0, EINVAL, "all_reduce: %lld elements", (long long)count);
    return comm->size == 1 ? FP8FLOW_OK : comm->ops->all_reduce(comm, reduction, data, count);
}

fp8flow_status f8_comm_broadcast(fp8flow_comm *comm, int32_t root, void *data, int64_t bytes)
{
    F8_REQUIRE(root >= 0 && root < comm->size && bytes >= 0, EINVAL, "broadcast: root %d of %d ranks, %lld bytes", root,
               comm->size, (long long)bytes);
    return comm->ops->broadcast(comm, root, data, bytes);
}

fp8flow_status fp8flow_comm_max(fp8flow_comm *comm, int64_t *value)
{
    F8_REQUIRE(comm && value, EINVAL, "comm_max: NULL argument");
    return f8_comm_all_reduce(comm, F8_MAX_I64, value, 1);
}
