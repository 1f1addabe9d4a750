/* comm_staged.c - ranks whose data lie in memory of a device, over a transport that moves host memory.
 *
 * A collective waits for what is on the stream, copies what leaves this rank to host memory, runs there and copies
 * what came back. Rows that a rank sends to itself stay on the device. Host memory is kept for the next call. What a
 * collective moved and took is entered here alone: the transport below is called past comm.c.
 */
#include "comm/comm.h"

#include <stdlib.h>

enum { MAX_PARTS = 8, PIECE_BYTES = 64 << 20 };

/* Host memory that only grows. */
typedef struct {
    char *memory;
    int64_t capacity;
} buffer;

typedef struct {
    fp8flow_comm base;
    fp8flow_comm *host, *owned; /* owned: host, where split has made it */
    const f8_device *device;
    void *stream;
    buffer out, in; /* out: also for what is changed in place */
} staged;

static staged *staged_of(fp8flow_comm *comm)
{
    return (staged *)comm;
}

static fp8flow_status reserve(const staged *s, buffer *b, int64_t bytes)
{
    if (bytes <= b->capacity) return FP8FLOW_OK;
    s->device->free_host(b->memory);
    *b = (buffer){ NULL, 0 };
    F8_TRY(s->device->alloc_host((size_t)bytes, (void **)&b->memory));
    b->capacity = bytes;
    return FP8FLOW_OK;
}

static fp8flow_status copy(const staged *s, void *to, const void *from, int64_t bytes)
{
    return bytes > 0 ? s->device->copy(s->stream, to, from, (size_t)bytes) : FP8FLOW_OK;
}

/* ---- Exchange ---- */

/* Rows of one side of an exchange: for or from the ranks before this one, itself, and those after it. */
typedef struct {
    int64_t before, own, after;
} spans;

static spans spans_of(const fp8flow_comm *comm, const int32_t *rows)
{
    int64_t before = f8_comm_rows_before(rows, comm->rank), own = rows[comm->rank];
    return (spans){ before, own, f8_comm_rows_before(rows, comm->size) - before - own };
}

/* Send rows of a part to host memory, own rows to where they are received. */
static fp8flow_status bring_out(const staged *s, const f8_comm_part *part, spans send, spans recv, char *out)
{
    int64_t bytes = part->row_bytes, before = send.before * bytes, own = send.own * bytes;
    const char *from = part->send;
    F8_TRY(copy(s, (char *)part->recv + recv.before * bytes, from + before, own));
    F8_TRY(copy(s, out, from, before));
    return copy(s, out + before, from + before + own, send.after * bytes);
}

static fp8flow_status bring_in(const staged *s, const f8_comm_part *part, spans recv, const char *in)
{
    int64_t bytes = part->row_bytes, before = recv.before * bytes, own = recv.own * bytes;
    char *to = part->recv;
    F8_TRY(copy(s, to, in, before));
    return copy(s, to + before + own, in + before, recv.after * bytes);
}

static fp8flow_status staged_exchange(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                      const int32_t *send_rows, const int32_t *recv_rows)
{
    staged *s = staged_of(comm);
    spans send = spans_of(comm, send_rows), recv = spans_of(comm, recv_rows);
    F8_REQUIRE(num_parts <= MAX_PARTS, EINVAL, "exchange: %d parts, at most %d", num_parts, MAX_PARTS);
    int64_t row_bytes = 0, others_send = send.before + send.after, others_recv = recv.before + recv.after;
    for (int i = 0; i < num_parts; i++) row_bytes += part[i].row_bytes;
    F8_TRY(reserve(s, &s->out, others_send * row_bytes));
    F8_TRY(reserve(s, &s->in, others_recv * row_bytes));
    f8_comm_part outside[MAX_PARTS];
    char *out = s->out.memory, *in = s->in.memory;
    for (int i = 0; i < num_parts; i++) {
        outside[i] = (f8_comm_part){ out, in, part[i].row_bytes };
        F8_TRY(bring_out(s, &part[i], send, recv, out));
        if (out) out += others_send * part[i].row_bytes;
        if (in) in += others_recv * part[i].row_bytes;
    }
    int32_t to[F8_COMM_MAX_RANKS], from[F8_COMM_MAX_RANKS];
    for (int32_t r = 0; r < comm->size; r++) {
        to[r] = r == comm->rank ? 0 : send_rows[r];
        from[r] = r == comm->rank ? 0 : recv_rows[r];
    }
    F8_TRY(s->host->ops->exchange(s->host, outside, num_parts, to, from));
    for (int i = 0; i < num_parts; i++) F8_TRY(bring_in(s, &part[i], recv, outside[i].recv));
    return FP8FLOW_OK;
}

/* ---- In place ---- */

/* A piece after the other: elements do not know of each other. */
static fp8flow_status staged_all_reduce(fp8flow_comm *comm, f8_reduction reduction, void *data, int64_t count)
{
    staged *s = staged_of(comm);
    int64_t width = f8_comm_element_bytes(reduction), most = PIECE_BYTES / width;
    for (int64_t at = 0; at < count; at += most) {
        int64_t elements = count - at < most ? count - at : most;
        char *piece = (char *)data + at * width;
        F8_TRY(reserve(s, &s->out, elements * width));
        F8_TRY(copy(s, s->out.memory, piece, elements * width));
        F8_TRY(s->host->ops->all_reduce(s->host, reduction, s->out.memory, elements));
        F8_TRY(copy(s, piece, s->out.memory, elements * width));
    }
    return FP8FLOW_OK;
}

static fp8flow_status staged_reduce_scatter(fp8flow_comm *comm, f8_reduction reduction, void *data,
                                            const int64_t *offset)
{
    staged *s = staged_of(comm);
    int64_t width = f8_comm_element_bytes(reduction), first = offset[comm->rank] * width;
    int64_t end = offset[comm->rank + 1] * width, bytes = offset[comm->size] * width;
    F8_TRY(reserve(s, &s->out, bytes));
    F8_TRY(copy(s, s->out.memory, data, bytes));
    F8_TRY(s->host->ops->reduce_scatter(s->host, reduction, s->out.memory, offset));
    return end > first ? copy(s, (char *)data + first, s->out.memory + first, end - first) : FP8FLOW_OK;
}

static fp8flow_status staged_all_gather(fp8flow_comm *comm, void *data, const int64_t *offset)
{
    staged *s = staged_of(comm);
    int64_t first = offset[comm->rank], end = offset[comm->rank + 1], bytes = offset[comm->size];
    if (bytes == 0) return FP8FLOW_OK;
    F8_TRY(reserve(s, &s->out, bytes));
    char *out = s->out.memory, *to = data;
    F8_TRY(copy(s, out + first, to + first, end - first));
    F8_TRY(s->host->ops->all_gather(s->host, out, offset));
    F8_TRY(copy(s, to, out, first));
    return copy(s, to + end, out + end, bytes - end);
}

static fp8flow_status staged_broadcast(fp8flow_comm *comm, int32_t root, void *data, int64_t bytes)
{
    staged *s = staged_of(comm);
    F8_TRY(reserve(s, &s->out, bytes));
    if (comm->rank == root) F8_TRY(copy(s, s->out.memory, data, bytes));
    F8_TRY(s->host->ops->broadcast(s->host, root, s->out.memory, bytes));
    return comm->rank == root ? FP8FLOW_OK : copy(s, data, s->out.memory, bytes);
}

/* ---- Life ---- */

static fp8flow_status staged_split(fp8flow_comm *comm, int32_t group, fp8flow_comm **part)
{
    staged *s = staged_of(comm);
    fp8flow_comm *host;
    F8_TRY(f8_comm_split(s->host, group, &host));
    fp8flow_status status = f8_comm_staged_create(host, s->device, s->stream, part);
    if (status == FP8FLOW_OK) staged_of(*part)->owned = host;
    else f8_comm_free(host);
    return status;
}

static void staged_free(fp8flow_comm *comm)
{
    staged *s = staged_of(comm);
    s->device->free_host(s->out.memory);
    s->device->free_host(s->in.memory);
    f8_comm_free(s->owned);
    free(s);
}

static void staged_abort(fp8flow_comm *comm, const char *message)
{
    fp8flow_comm *host = staged_of(comm)->host;
    host->ops->abort(host, message);
}

static fp8flow_status staged_check(fp8flow_comm *comm)
{
    return f8_comm_check(staged_of(comm)->host);
}

static const f8_comm_ops staged_ops = {
    .name = "host memory",
    .exchange = staged_exchange,
    .all_reduce = staged_all_reduce,
    .reduce_scatter = staged_reduce_scatter,
    .all_gather = staged_all_gather,
    .broadcast = staged_broadcast,
    .split = staged_split,
    .free = staged_free,
    .abort = staged_abort,
    .check = staged_check,
};

fp8flow_status f8_comm_staged_create(fp8flow_comm *host, const f8_device *device, void *stream, fp8flow_comm **comm)
{
    *comm = NULL;
    staged *s = calloc(1, sizeof *s);
    F8_REQUIRE(s, ENOMEM, "comm: no memory for rank %d on %s", host->rank, device->name);
    s->base = (fp8flow_comm){
        .ops = &staged_ops, .rank = host->rank, .size = host->size, .clock = { .device = device, .stream = stream }
    };
    s->host = host;
    s->device = device;
    s->stream = stream;
    *comm = &s->base;
    return FP8FLOW_OK;
}
