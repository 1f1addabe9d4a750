/* comm_nccl.c - see comm_nccl.h; what is done when a rank fails: watch_nccl.h.
 *
 * Every collective is a group of NCCL calls on the communicator's stream, put there when the function returns. An
 * exchange is a send and a receive per part and rank with rows; the rank's own rows are copied by the device and never
 * reach NCCL. Both sides must have agreed on the counts (f8_comm_counts on the host communicator): NCCL does not
 * compare them, and a rank that expects more than is sent runs into the timeout.
 *
 * Sums are not in rank order. NCCL fixes its order by the topology it finds and by the size of the call, so the bits
 * are the same in every run on the same GPUs with the same version and settings of NCCL, and the same on every rank;
 * integers are exact. Slices of equal size take NCCL's own reduce_scatter and all_gather, others one reduce or
 * broadcast per rank in one group.
 *
 * The communicator is non-blocking (NCCL's config.blocking = 0), so that no call of NCCL holds up a rank which another
 * one has left: each returns at once and is asked whether it is through.
 */
#include "comm/comm_nccl.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/watch_nccl.h"

typedef struct {
    fp8flow_comm base;
    f8_nccl_watch watch;
    const f8_device *device;
    void *stream;
    cudaStream_t aside; /* for exchanges between begin and end */
    cudaEvent_t before, after;
    int is_watched;
    fp8flow_comm *owned_host; /* that a split has made */
} nccl_comm;

static nccl_comm *nccl_of(fp8flow_comm *comm)
{
    return (nccl_comm *)comm;
}

static fp8flow_status check(const char *what, cudaError_t error)
{
    if (error == cudaSuccess) return FP8FLOW_OK;
    (void)cudaGetLastError();
    return F8_FAIL(EBACKEND, "nccl: cuda: %s: %s", what, cudaGetErrorString(error));
}

#define CUDA_TRY(what, call) F8_TRY(check(what, call))

/* ---- Groups of calls ---- */

static fp8flow_status open_group(nccl_comm *n, const char *name)
{
    F8_TRY(f8_nccl_begin(&n->watch, name));
    (void)n->watch.library->GroupStart(); /* counts the depth, nothing else */
    return FP8FLOW_OK;
}

/* `result`: the first call in the group that failed, or ncclSuccess. */
static fp8flow_status close_group(nccl_comm *n, ncclResult_t result, void *stream)
{
    ncclResult_t ended = n->watch.library->GroupEnd();
    return f8_nccl_end(&n->watch, result == ncclSuccess ? ended : result, stream);
}

/* Inside of a group ncclInProgress is as good as success. */
static void note(ncclResult_t *first, ncclResult_t result)
{
    if (*first == ncclSuccess && result != ncclInProgress) *first = result;
}

/* ---- Exchange ---- */

typedef struct {
    const f8_comm_part *part;
    int num_parts;
    const int32_t *send_rows, *recv_rows;
} records;

static fp8flow_status copy_own_rows(const nccl_comm *n, const records *x, void *stream)
{
    int32_t rank = n->base.rank;
    int64_t send_at = f8_comm_rows_before(x->send_rows, rank), recv_at = f8_comm_rows_before(x->recv_rows, rank);
    for (int i = 0; i < x->num_parts; i++) {
        int64_t bytes = x->part[i].row_bytes;
        F8_TRY(n->device->copy(stream, (char *)x->part[i].recv + recv_at * bytes,
                               (const char *)x->part[i].send + send_at * bytes, (size_t)(x->send_rows[rank] * bytes)));
    }
    return FP8FLOW_OK;
}

static ncclResult_t exchange_part(const nccl_comm *n, const records *x, const f8_comm_part *part, void *stream)
{
    const f8_nccl_library *library = n->watch.library;
    ncclResult_t first = ncclSuccess;
    const char *from = part->send;
    char *to = part->recv;
    for (int32_t r = 0; r < n->base.size; r++) {
        size_t sent = (size_t)(x->send_rows[r] * part->row_bytes),
               received = (size_t)(x->recv_rows[r] * part->row_bytes);
        int other = r != n->base.rank;
        if (other && sent) note(&first, library->Send(from, sent, ncclUint8, r, n->watch.nccl, stream));
        if (other && received) note(&first, library->Recv(to, received, ncclUint8, r, n->watch.nccl, stream));
        from += sent;
        to += received;
    }
    return first;
}

static fp8flow_status exchange_on(nccl_comm *n, const records *x, void *stream)
{
    F8_TRY(copy_own_rows(n, x, stream));
    F8_TRY(open_group(n, "exchange"));
    ncclResult_t first = ncclSuccess;
    for (int i = 0; i < x->num_parts; i++) note(&first, exchange_part(n, x, &x->part[i], stream));
    return close_group(n, first, stream);
}

static fp8flow_status nccl_exchange(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                    const int32_t *send_rows, const int32_t *recv_rows)
{
    nccl_comm *n = nccl_of(comm);
    return exchange_on(n, &(records){ part, num_parts, send_rows, recv_rows }, n->stream);
}

static fp8flow_status nccl_exchange_begin(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                          const int32_t *send_rows, const int32_t *recv_rows)
{
    nccl_comm *n = nccl_of(comm);
    CUDA_TRY("event", cudaEventRecord(n->before, n->stream));
    CUDA_TRY("event", cudaStreamWaitEvent(n->aside, n->before, 0));
    F8_TRY(exchange_on(n, &(records){ part, num_parts, send_rows, recv_rows }, n->aside));
    return check("event", cudaEventRecord(n->after, n->aside));
}

static fp8flow_status nccl_exchange_end(fp8flow_comm *comm)
{
    nccl_comm *n = nccl_of(comm);
    return check("event", cudaStreamWaitEvent(n->stream, n->after, 0));
}

/* ---- Reductions, gathers, broadcast ---- */

static ncclDataType_t type_of(f8_reduction reduction)
{
    return reduction == F8_SUM_F32 ? ncclFloat32 : reduction == F8_SUM_F64 ? ncclFloat64 : ncclInt64;
}

static ncclRedOp_t op_of(f8_reduction reduction)
{
    return reduction == F8_MAX_I64 ? ncclMax : ncclSum;
}

static fp8flow_status nccl_all_reduce(fp8flow_comm *comm, f8_reduction reduction, void *data, int64_t count)
{
    nccl_comm *n = nccl_of(comm);
    ncclResult_t first = ncclSuccess;
    if (count == 0) return FP8FLOW_OK;
    F8_TRY(open_group(n, "all_reduce"));
    note(&first, n->watch.library->AllReduce(data, data, (size_t)count, type_of(reduction), op_of(reduction),
                                             n->watch.nccl, n->stream));
    return close_group(n, first, n->stream);
}

/* Length of all slices; -1: they differ. */
static int64_t even_slice(const fp8flow_comm *comm, const int64_t *offset)
{
    for (int32_t r = 0; r < comm->size; r++)
        if (offset[r + 1] - offset[r] != offset[1]) return -1;
    return offset[1];
}

static fp8flow_status nccl_reduce_scatter(fp8flow_comm *comm, f8_reduction reduction, void *data, const int64_t *offset)
{
    nccl_comm *n = nccl_of(comm);
    const f8_nccl_library *library = n->watch.library;
    ncclDataType_t type = type_of(reduction);
    ncclRedOp_t op = op_of(reduction);
    ncclResult_t first = ncclSuccess;
    int64_t even = even_slice(comm, offset), bytes = f8_comm_element_bytes(reduction);
    if (offset[comm->size] == 0) return FP8FLOW_OK;
    F8_TRY(open_group(n, "reduce_scatter"));
    if (even > 0)
        note(&first, library->ReduceScatter(data, (char *)data + offset[comm->rank] * bytes, (size_t)even, type, op,
                                            n->watch.nccl, n->stream));
    for (int32_t r = 0; even < 0 && r < comm->size; r++) {
        size_t count = (size_t)(offset[r + 1] - offset[r]);
        char *slice = (char *)data + offset[r] * bytes;
        if (count) note(&first, library->Reduce(slice, slice, count, type, op, r, n->watch.nccl, n->stream));
    }
    return close_group(n, first, n->stream);
}

static fp8flow_status nccl_all_gather(fp8flow_comm *comm, void *data, const int64_t *offset)
{
    nccl_comm *n = nccl_of(comm);
    const f8_nccl_library *library = n->watch.library;
    ncclResult_t first = ncclSuccess;
    int64_t even = even_slice(comm, offset);
    if (offset[comm->size] == 0) return FP8FLOW_OK;
    F8_TRY(open_group(n, "all_gather"));
    if (even > 0)
        note(&first, library->AllGather((char *)data + offset[comm->rank], data, (size_t)even, ncclUint8, n->watch.nccl,
                                        n->stream));
    for (int32_t r = 0; even < 0 && r < comm->size; r++) {
        size_t bytes = (size_t)(offset[r + 1] - offset[r]);
        char *slice = (char *)data + offset[r];
        if (bytes) note(&first, library->Broadcast(slice, slice, bytes, ncclUint8, r, n->watch.nccl, n->stream));
    }
    return close_group(n, first, n->stream);
}

static fp8flow_status nccl_broadcast(fp8flow_comm *comm, int32_t root, void *data, int64_t bytes)
{
    nccl_comm *n = nccl_of(comm);
    ncclResult_t first = ncclSuccess;
    if (bytes == 0) return FP8FLOW_OK;
    F8_TRY(open_group(n, "broadcast"));
    note(&first, n->watch.library->Broadcast(data, data, (size_t)bytes, ncclUint8, root, n->watch.nccl, n->stream));
    return close_group(n, first, n->stream);
}

/* ---- Groups of ranks, failure ---- */

static fp8flow_status nccl_split(fp8flow_comm *comm, int32_t group, fp8flow_comm **part)
{
    nccl_comm *n = nccl_of(comm);
    fp8flow_comm *host = NULL;
    F8_TRY(f8_comm_split(n->watch.host, group, &host));
    fp8flow_status status = f8_comm_nccl_create(host, n->device, n->stream, part);
    if (status == FP8FLOW_OK) nccl_of(*part)->owned_host = host;
    else f8_comm_free(host);
    return status;
}

static void nccl_free(fp8flow_comm *comm)
{
    nccl_comm *n = nccl_of(comm);
    if (n->is_watched) f8_nccl_watch_stop(&n->watch);
    if (n->aside) (void)cudaStreamDestroy(n->aside);
    if (n->before) (void)cudaEventDestroy(n->before);
    if (n->after) (void)cudaEventDestroy(n->after);
    f8_comm_free(n->owned_host);
    free(n);
}

/* The watching thread sees it there. */
static void nccl_abort(fp8flow_comm *comm, const char *message)
{
    fp8flow_comm *host = nccl_of(comm)->watch.host;
    host->ops->abort(host, message);
}

static fp8flow_status nccl_check(fp8flow_comm *comm)
{
    return f8_nccl_check(&nccl_of(comm)->watch);
}

static const f8_comm_ops nccl_ops = { .name = "nccl",
                                      .exchange = nccl_exchange,
                                      .exchange_begin = nccl_exchange_begin,
                                      .exchange_end = nccl_exchange_end,
                                      .all_reduce = nccl_all_reduce,
                                      .reduce_scatter = nccl_reduce_scatter,
                                      .all_gather = nccl_all_gather,
                                      .broadcast = nccl_broadcast,
                                      .split = nccl_split,
                                      .free = nccl_free,
                                      .abort = nccl_abort,
                                      .check = nccl_check };

/* ---- Create ---- */

/* Of the highest priority: the exchange starts before the work that is to hide it has taken every multiprocessor. */
static fp8flow_status create_aside(nccl_comm *n)
{
    int lowest = 0, highest = 0;
    CUDA_TRY("stream", cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    CUDA_TRY("stream", cudaStreamCreateWithPriority(&n->aside, cudaStreamNonBlocking, highest));
    n->base.clock.aside = n->aside;
    CUDA_TRY("event", cudaEventCreateWithFlags(&n->before, cudaEventDisableTiming));
    return check("event", cudaEventCreateWithFlags(&n->after, cudaEventDisableTiming));
}

static fp8flow_status connect_ranks(nccl_comm *n)
{
    const f8_nccl_library *library = n->watch.library;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id = { { 0 } };
    config.blocking = 0;
    if (n->base.rank == 0) {
        ncclResult_t result = library->GetUniqueId(&id);
        F8_REQUIRE(result == ncclSuccess, ECOMM, "nccl: identifier: %s", library->GetErrorString(result));
    }
    F8_TRY(f8_comm_broadcast(n->watch.host, 0, &id, sizeof id));
    F8_TRY(f8_nccl_begin(&n->watch, "create"));
    ncclResult_t result = library->CommInitRankConfig(&n->watch.nccl, n->base.size, id, n->base.rank, &config);
    return f8_nccl_end(&n->watch, result, n->stream);
}

static fp8flow_status open_comm(nccl_comm *n, const f8_nccl_library *library)
{
    F8_TRY(create_aside(n));
    F8_TRY(f8_nccl_watch_start(&n->watch, n->watch.host, library));
    n->is_watched = 1;
    return connect_ranks(n);
}

fp8flow_status f8_comm_nccl_create(fp8flow_comm *host, const f8_device *device, void *stream, fp8flow_comm **comm)
{
    const f8_nccl_library *library;
    *comm = NULL;
    F8_TRY(f8_nccl_load(&library));
    nccl_comm *n = calloc(1, sizeof *n);
    F8_REQUIRE(n, ENOMEM, "nccl: no memory for rank %d", host->rank);
    n->base = (fp8flow_comm){ .ops = &nccl_ops,
                              .rank = host->rank,
                              .size = host->size,
                              .timeout = host->timeout,
                              .clock = { .device = device, .stream = stream } };
    n->watch.host = host;
    n->device = device;
    n->stream = stream;
    fp8flow_status status = open_comm(n, library);
    if (status != FP8FLOW_OK) nccl_free(&n->base);
    else *comm = &n->base;
    return status;
}

/* ---- Which ranks can use it ---- */

/* What a rank tells the others. */
typedef struct {
    unsigned char gpu[16];
    char bus_id[32], reason[256]; /* no reason: nothing is in the way on this rank */
} introduction;

static fp8flow_status introduce(const f8_device *device, introduction *mine)
{
    const f8_nccl_library *library;
    struct cudaDeviceProp properties;
    int gpu = 0;
    F8_REQUIRE(strcmp(device->name, "cuda") == 0, ENOSYS, "its device is \"%s\", no GPU", device->name);
    F8_TRY(f8_nccl_load(&library));
    CUDA_TRY("device", cudaGetDevice(&gpu));
    CUDA_TRY("device", cudaGetDeviceProperties(&properties, gpu));
    CUDA_TRY("device", cudaDeviceGetPCIBusId(mine->bus_id, (int)sizeof mine->bus_id, gpu));
    memcpy(mine->gpu, &properties.uuid, sizeof mine->gpu);
    return FP8FLOW_OK;
}

static fp8flow_status compare(const introduction *all, int32_t size)
{
    for (int32_t r = 0; r < size; r++) {
        F8_REQUIRE(!*all[r].reason, ENOSYS, "nccl: rank %d: %s", r, all[r].reason);
        for (int32_t q = 0; q < r; q++)
            F8_REQUIRE(memcmp(all[q].gpu, all[r].gpu, sizeof all[r].gpu) != 0, ENOSYS,
                       "nccl: ranks %d and %d are on the same GPU, %s", q, r, all[r].bus_id);
    }
    return FP8FLOW_OK;
}

fp8flow_status f8_comm_nccl_usable(fp8flow_comm *host, const f8_device *device)
{
    int64_t offset[F8_COMM_MAX_RANKS + 1];
    introduction *all = calloc((size_t)host->size, sizeof *all), *mine = all + host->rank;
    F8_REQUIRE(all, ENOMEM, "nccl: no memory for the GPUs of %d ranks", host->size);
    for (int32_t r = 0; r <= host->size; r++) offset[r] = r * (int64_t)sizeof *all;
    if (introduce(device, mine) != FP8FLOW_OK)
        (void)snprintf(mine->reason, sizeof mine->reason, "%s", fp8flow_last_error());
    fp8flow_status status = f8_comm_all_gather(host, all, offset);
    if (status == FP8FLOW_OK) status = compare(all, host->size);
    free(all);
    return status;
}

const char *f8_comm_nccl_summary(int *usable)
{
    static char text[256];
    const f8_nccl_library *library;
    *usable = f8_nccl_load(&library) == FP8FLOW_OK;
    if (*usable)
        (void)snprintf(text, sizeof text, "%d.%d.%d", library->version / 10000, library->version / 100 % 100,
                       library->version % 100);
    else (void)snprintf(text, sizeof text, "%s", fp8flow_last_error());
    return text;
}
