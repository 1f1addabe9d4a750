/* api_comm.c - collectives over arrays of a context, for programs that have gradients or rows of their own. */
#include "comm/comm.h"
#include "ops/ops.h"

fp8flow_status fp8flow_comm_open(fp8flow_comm *comm, fp8flow_context *context, fp8flow_comm **opened)
{
    F8_REQUIRE(comm && context && opened, EINVAL, "comm_open: NULL argument");
    return f8_comm_for_device(comm, context->device, context->stream, opened);
}

void fp8flow_comm_close(fp8flow_comm *opened)
{
    f8_comm_release(opened);
}

const char *fp8flow_comm_transport(const fp8flow_comm *comm)
{
    return comm ? comm->ops->name : "";
}

fp8flow_status fp8flow_comm_exchange(fp8flow_comm *comm, int64_t row_bytes, const void *send, const int32_t *send_rows,
                                     void *recv, const int32_t *recv_rows)
{
    F8_REQUIRE(comm && send_rows && recv_rows, EINVAL, "comm_exchange: NULL argument");
    F8_REQUIRE(row_bytes >= 0, EINVAL, "comm_exchange: rows of %lld bytes", (long long)row_bytes);
    f8_comm_part part = { send, recv, row_bytes };
    return f8_comm_exchange(comm, &part, 1, send_rows, recv_rows);
}

fp8flow_status fp8flow_comm_sum(fp8flow_comm *comm, float *data, int64_t count)
{
    F8_REQUIRE(comm && (data || count <= 0), EINVAL, "comm_sum: NULL argument");
    return f8_comm_all_reduce(comm, F8_SUM_F32, data, count);
}

fp8flow_status fp8flow_comm_sum_slices(fp8flow_comm *comm, float *data, const int64_t *offset)
{
    F8_REQUIRE(comm && data && offset, EINVAL, "comm_sum_slices: NULL argument");
    return f8_comm_reduce_scatter(comm, F8_SUM_F32, data, offset);
}

fp8flow_status fp8flow_comm_gather_slices(fp8flow_comm *comm, float *data, const int64_t *offset)
{
    int64_t bytes[F8_COMM_MAX_RANKS + 1];
    F8_REQUIRE(comm && data && offset, EINVAL, "comm_gather_slices: NULL argument");
    for (int32_t r = 0; r <= comm->size; r++) bytes[r] = offset[r] * (int64_t)sizeof *data;
    return f8_comm_all_gather(comm, data, bytes);
}
