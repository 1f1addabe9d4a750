/* comm.c - the checked and counted entries of comm.h. */
#include "comm/comm.h"

#include <stdlib.h>

#include "base/clock.h"

int32_t fp8flow_comm_rank(const fp8flow_comm *comm)
{
    return comm ? comm->rank : -1;
}

int32_t fp8flow_comm_size(const fp8flow_comm *comm)
{
    return comm ? comm->size : -1;
}

/* ---- What it costs ---- */

struct f8_comm_timed {
    void *begin, *end; /* events */
    f8_collective collective;
};

static void destroy_events(f8_comm_clock *clock)
{
    for (int64_t i = 0; i < clock->capacity; i++) {
        clock->device->event_destroy(clock->call[i].begin);
        clock->device->event_destroy(clock->call[i].end);
    }
    free(clock->call);
}

/* Events for one call more than there are. */
static fp8flow_status add_events(f8_comm_clock *clock)
{
    struct f8_comm_timed added = { 0 }, *call = realloc(clock->call, (size_t)(clock->capacity + 1) * sizeof *call);
    F8_REQUIRE(call, ENOMEM, "comm: no memory to time %lld calls", (long long)clock->capacity + 1);
    clock->call = call;
    F8_TRY(clock->device->event_create(&added.begin));
    fp8flow_status status = clock->device->event_create(&added.end);
    if (status == FP8FLOW_OK) call[clock->capacity++] = added;
    else clock->device->event_destroy(added.begin);
    return status;
}

static fp8flow_status enter(fp8flow_comm *comm)
{
    f8_comm_clock *clock = &comm->clock;
    clock->began = f8_seconds_now();
    if (!clock->is_running) return FP8FLOW_OK;
    if (clock->num_calls == clock->capacity) F8_TRY(add_events(clock));
    return clock->device->event_record(clock->call[clock->num_calls].begin, clock->stream);
}

/* Note what was entered and has put its work on `stream`; returns its status. */
static fp8flow_status leave_on(void *stream, fp8flow_comm *comm, f8_collective collective, int64_t bytes,
                               fp8flow_status status)
{
    f8_comm_clock *clock = &comm->clock;
    comm->spent[collective].bytes += bytes;
    if (!clock->device) comm->spent[collective].seconds += f8_seconds_now() - clock->began;
    if (!clock->is_running || status != FP8FLOW_OK) return status;
    struct f8_comm_timed *call = &clock->call[clock->num_calls++];
    call->collective = collective;
    return clock->device->event_record(call->end, stream);
}

static fp8flow_status leave(fp8flow_comm *comm, f8_collective collective, int64_t bytes, fp8flow_status status)
{
    return leave_on(comm->clock.stream, comm, collective, bytes, status);
}

void f8_comm_clock_start(fp8flow_comm *comm)
{
    comm->clock.num_calls = 0;
    comm->clock.is_running = comm->clock.device != NULL;
}

fp8flow_status f8_comm_clock_read(fp8flow_comm *comm)
{
    f8_comm_clock *clock = &comm->clock;
    int64_t num_calls = clock->num_calls;
    clock->num_calls = 0;
    clock->is_running = 0;
    for (int64_t i = 0; i < num_calls; i++) {
        const struct f8_comm_timed *call = &clock->call[i];
        double milliseconds;
        F8_TRY(clock->device->event_elapsed(call->begin, call->end, &milliseconds));
        comm->spent[call->collective].seconds += 1e-3 * milliseconds;
    }
    return FP8FLOW_OK;
}

/* ---- Collectives ---- */

static int stays_in_place(const fp8flow_comm *comm, const f8_comm_part *part, int num_parts)
{
    int same = comm->size == 1;
    for (int i = 0; i < num_parts; i++) same = same && part[i].send == part[i].recv;
    return same;
}

typedef fp8flow_status exchange_function(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                         const int32_t *send_rows, const int32_t *recv_rows);

/* What is exchanged, and how. */
typedef struct {
    exchange_function *function;
    f8_collective collective;
    void *stream; /* where it ends */
} exchange_way;

static fp8flow_status exchange_by(exchange_way way, fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                  const int32_t *send_rows, const int32_t *recv_rows)
{
    int64_t rows = 0, row_bytes = 0;
    for (int32_t r = 0; r < comm->size; r++) {
        F8_REQUIRE(send_rows[r] >= 0 && recv_rows[r] >= 0, EINVAL, "exchange: rank %d: %d rows for and %d from rank %d",
                   comm->rank, send_rows[r], recv_rows[r], r);
        rows += send_rows[r];
    }
    F8_REQUIRE(send_rows[comm->rank] == recv_rows[comm->rank], ECOMM,
               "exchange: rank %d expects %d rows from itself and sends %d", comm->rank, recv_rows[comm->rank],
               send_rows[comm->rank]);
    for (int i = 0; i < num_parts; i++) row_bytes += part[i].row_bytes;
    comm->exchanged_bytes += rows * row_bytes;
    if (stays_in_place(comm, part, num_parts)) return FP8FLOW_OK;
    F8_TRY(enter(comm));
    return leave_on(way.stream, comm, way.collective, rows * row_bytes,
                    way.function(comm, part, num_parts, send_rows, recv_rows));
}

fp8flow_status f8_comm_exchange(fp8flow_comm *comm, const f8_comm_part *part, int num_parts, const int32_t *send_rows,
                                const int32_t *recv_rows)
{
    exchange_way way = { comm->ops->exchange, F8_EXCHANGE, comm->clock.stream };
    return exchange_by(way, comm, part, num_parts, send_rows, recv_rows);
}

fp8flow_status f8_comm_exchange_back(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                     const int32_t *send_rows, const int32_t *recv_rows)
{
    exchange_way way = { comm->ops->exchange, F8_EXCHANGE_BACK, comm->clock.stream };
    return exchange_by(way, comm, part, num_parts, send_rows, recv_rows);
}

fp8flow_status f8_comm_exchange_begin(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                      const int32_t *send_rows, const int32_t *recv_rows)
{
    if (!comm->ops->exchange_begin) return f8_comm_exchange(comm, part, num_parts, send_rows, recv_rows);
    exchange_way way = { comm->ops->exchange_begin, F8_EXCHANGE, comm->clock.aside };
    return exchange_by(way, comm, part, num_parts, send_rows, recv_rows);
}

fp8flow_status f8_comm_exchange_end(fp8flow_comm *comm)
{
    return comm->ops->exchange_end ? comm->ops->exchange_end(comm) : FP8FLOW_OK;
}

fp8flow_status f8_comm_counts(fp8flow_comm *comm, const int32_t *send_rows, int32_t *recv_rows)
{
    int32_t one[F8_COMM_MAX_RANKS];
    for (int32_t r = 0; r < comm->size; r++) one[r] = 1;
    f8_comm_part part = { send_rows, recv_rows, sizeof *send_rows };
    F8_TRY(enter(comm));
    return leave(comm, F8_EXCHANGE, 0, comm->ops->exchange(comm, &part, 1, one, one));
}

fp8flow_status f8_comm_all_reduce(fp8flow_comm *comm, f8_reduction reduction, void *data, int64_t count)
{
    F8_REQUIRE(count >= 0, EINVAL, "all_reduce: %lld elements", (long long)count);
    if (comm->size == 1) return FP8FLOW_OK;
    F8_TRY(enter(comm));
    return leave(comm, F8_ALL_REDUCE, count * f8_comm_element_bytes(reduction),
                 comm->ops->all_reduce(comm, reduction, data, count));
}

static fp8flow_status check_offsets(const fp8flow_comm *comm, const char *what, const int64_t *offset)
{
    F8_REQUIRE(offset[0] == 0, EINVAL, "%s: the first slice starts at %lld", what, (long long)offset[0]);
    for (int32_t r = 0; r < comm->size; r++)
        F8_REQUIRE(offset[r] <= offset[r + 1], EINVAL, "%s: the slice of rank %d is [%lld, %lld)", what, r,
                   (long long)offset[r], (long long)offset[r + 1]);
    return FP8FLOW_OK;
}

fp8flow_status f8_comm_reduce_scatter(fp8flow_comm *comm, f8_reduction reduction, void *data, const int64_t *offset)
{
    F8_TRY(check_offsets(comm, "reduce_scatter", offset));
    if (comm->size == 1) return FP8FLOW_OK;
    F8_TRY(enter(comm));
    return leave(comm, F8_REDUCE_SCATTER, offset[comm->size] * f8_comm_element_bytes(reduction),
                 comm->ops->reduce_scatter(comm, reduction, data, offset));
}

fp8flow_status f8_comm_all_gather(fp8flow_comm *comm, void *data, const int64_t *offset)
{
    F8_TRY(check_offsets(comm, "all_gather", offset));
    if (comm->size == 1) return FP8FLOW_OK;
    F8_TRY(enter(comm));
    return leave(comm, F8_ALL_GATHER, offset[comm->size], comm->ops->all_gather(comm, data, offset));
}

fp8flow_status f8_comm_broadcast(fp8flow_comm *comm, int32_t root, void *data, int64_t bytes)
{
    F8_REQUIRE(root >= 0 && root < comm->size && bytes >= 0, EINVAL, "broadcast: root %d of %d ranks, %lld bytes", root,
               comm->size, (long long)bytes);
    F8_TRY(enter(comm));
    return leave(comm, F8_BROADCAST, bytes, comm->ops->broadcast(comm, root, data, bytes));
}

fp8flow_status f8_comm_split(fp8flow_comm *comm, int32_t group, fp8flow_comm **part)
{
    *part = NULL;
    F8_REQUIRE(group >= 0, EINVAL, "split: group %d of rank %d", group, comm->rank);
    return comm->ops->split(comm, group, part);
}

void f8_comm_free(fp8flow_comm *part)
{
    if (!part) return;
    destroy_events(&part->clock);
    part->ops->free(part);
}

fp8flow_status f8_comm_check(fp8flow_comm *comm)
{
    return comm->ops->check ? comm->ops->check(comm) : FP8FLOW_OK;
}

/* ---- Arithmetic of the transports ---- */

int64_t f8_comm_rows_before(const int32_t *rows, int32_t rank)
{
    int64_t sum = 0;
    for (int32_t r = 0; r < rank; r++) sum += rows[r];
    return sum;
}

int64_t f8_comm_element_bytes(f8_reduction reduction)
{
    return reduction == F8_SUM_F32 ? 4 : 8;
}

void f8_comm_even_slices(const fp8flow_comm *comm, f8_reduction reduction, int64_t count, int64_t *element,
                         int64_t *byte)
{
    for (int32_t r = 0; r <= comm->size; r++) {
        element[r] = count * r / comm->size;
        byte[r] = element[r] * f8_comm_element_bytes(reduction);
    }
}

static void sum_f32(const void *const *source, int32_t num_sources, int64_t count, float *result)
{
    for (int64_t i = 0; i < count; i++) {
        float sum = 0;
        for (int32_t r = 0; r < num_sources; r++) sum += ((const float *)source[r])[i];
        result[i] = sum;
    }
}

static void sum_f64(const void *const *source, int32_t num_sources, int64_t count, double *result)
{
    for (int64_t i = 0; i < count; i++) {
        double sum = 0;
        for (int32_t r = 0; r < num_sources; r++) sum += ((const double *)source[r])[i];
        result[i] = sum;
    }
}

static void sum_i64(const void *const *source, int32_t num_sources, int64_t count, int64_t *result)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t sum = 0;
        for (int32_t r = 0; r < num_sources; r++) sum += ((const int64_t *)source[r])[i];
        result[i] = sum;
    }
}

static void max_i64(const void *const *source, int32_t num_sources, int64_t count, int64_t *result)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t largest = INT64_MIN;
        for (int32_t r = 0; r < num_sources; r++) {
            int64_t value = ((const int64_t *)source[r])[i];
            largest = value > largest ? value : largest;
        }
        result[i] = largest;
    }
}

void f8_comm_reduce(f8_reduction reduction, const void *const *source, int32_t num_sources, int64_t count, void *result)
{
    switch (reduction) {
    case F8_SUM_F32: sum_f32(source, num_sources, count, result); break;
    case F8_SUM_F64: sum_f64(source, num_sources, count, result); break;
    case F8_SUM_I64: sum_i64(source, num_sources, count, result); break;
    case F8_MAX_I64: max_i64(source, num_sources, count, result); break;
    }
}

/* ---- Public ---- */

fp8flow_status fp8flow_comm_max(fp8flow_comm *comm, int64_t *value)
{
    F8_REQUIRE(comm && value, EINVAL, "comm_max: NULL argument");
    return f8_comm_all_reduce(comm, F8_MAX_I64, value, 1);
}

fp8flow_status fp8flow_comm_gather(fp8flow_comm *comm, const void *mine, int64_t bytes, void *all)
{
    int32_t send_rows[F8_COMM_MAX_RANKS] = { 1 }, recv_rows[F8_COMM_MAX_RANKS] = { 0 };
    F8_REQUIRE(comm && mine && bytes >= 0, EINVAL, "comm_gather: NULL argument or %lld bytes", (long long)bytes);
    for (int32_t r = 0; r < comm->size && comm->rank == 0; r++) recv_rows[r] = 1;
    f8_comm_part part = { mine, all, bytes };
    return comm->ops->exchange(comm, &part, 1, send_rows, recv_rows);
}
