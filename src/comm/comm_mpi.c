/* comm_mpi.c - N ranks as the N processes that mpirun started. The MPI library itself is behind mpi_plugin.h.
 *
 * Sums have the bits of the thread transport: each rank is sent its slice of every rank's data, adds in ascending rank
 * order and sends the result to all. A rank's part for itself never goes through MPI.
 * A failed rank tells the others, whose waiting ends with ECOMM; so does waiting for longer than the timeout.
 */
#include "comm/comm.h"
#include "comm/mpi_plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 256, MAX_PIECES = 16 * MAX_RANKS, SLICE_ELEMENTS = 1 << 16, ELEMENT_BYTES = 8 };

typedef struct {
    fp8flow_comm base;
    const f8_mpi_plugin *plugin;
    double timeout;
    int32_t failed_rank; /* the one that told us, else -1 */
    char *slices;        /* [size] of SLICE_ELEMENTS: what the ranks have for the slice of this one */
} mpi_rank;

static mpi_rank *self(fp8flow_comm *comm)
{
    return (mpi_rank *)comm;
}

static fp8flow_status transfer(fp8flow_comm *comm, const char *what, const f8_mpi_piece *piece, int32_t num_pieces)
{
    mpi_rank *me = self(comm);
    f8_mpi_failure failure = { -1, "" };
    switch (me->plugin->transfer(piece, num_pieces, me->timeout, &failure)) {
    case F8_MPI_DONE: return FP8FLOW_OK;
    case F8_MPI_TOLD:
        me->failed_rank = failure.rank;
        return F8_FAIL(ECOMM, "rank %d: rank %d has failed: %s", comm->rank, failure.rank, failure.message);
    case F8_MPI_TIMEOUT:
        return F8_FAIL(ECOMM, "%s: rank %d has waited %g s for rank %d", what, comm->rank, me->timeout, failure.rank);
    default: return F8_FAIL(ECOMM, "%s: rank %d: %s", what, comm->rank, failure.message);
    }
}

/* ---- Collectives ---------------------------------------------------------------------------- */

static fp8flow_status mpi_exchange(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                   const int32_t *send_rows, const int32_t *recv_rows)
{
    f8_mpi_piece piece[MAX_PIECES];
    int32_t count = 0;
    int64_t send_at = 0, recv_at = 0;
    F8_REQUIRE(num_parts <= MAX_PIECES / (2 * MAX_RANKS), EINVAL, "exchange: %d parts", num_parts);
    F8_REQUIRE(send_rows[comm->rank] == recv_rows[comm->rank], ECOMM,
               "exchange: rank %d: %d rows for and %d from itself", comm->rank, send_rows[comm->rank],
               recv_rows[comm->rank]);
    for (int32_t r = 0; r < comm->size; r++) {
        for (int i = 0; i < num_parts; i++) {
            int64_t bytes = part[i].row_bytes;
            char *send = (char *)part[i].send + send_at * bytes, *recv = (char *)part[i].recv + recv_at * bytes;
            if (r == comm->rank) {
                if (send_rows[r]) memcpy(recv, send, (size_t)(send_rows[r] * bytes));
                continue;
            }
            piece[count++] = (f8_mpi_piece){ send, send_rows[r] * bytes, r, F8_MPI_SEND };
            piece[count++] = (f8_mpi_piece){ recv, recv_rows[r] * bytes, r, F8_MPI_RECEIVE };
        }
        send_at += send_rows[r];
        recv_at += recv_rows[r];
    }
    return transfer(comm, "exchange", piece, count);
}

/* result[i] = data of all ranks, `count` elements apart, in rank order; from zero, as comm_threads.c does. */
static void reduce(f8_reduction reduction, const void *data, int32_t size, int64_t count, void *result)
{
    for (int64_t i = 0; i < count; i++) {
        float f32 = 0;
        double f64 = 0;
        int64_t i64 = reduction == F8_MAX_I64 ? INT64_MIN : 0;
        for (int64_t at = i; at < size * count; at += count) {
            if (reduction == F8_SUM_F32) f32 += ((const float *)data)[at];
            else if (reduction == F8_SUM_F64) f64 += ((const double *)data)[at];
            else {
                int64_t value = ((const int64_t *)data)[at];
                i64 = reduction == F8_SUM_I64 ? i64 + value : value > i64 ? value : i64;
            }
        }
        if (reduction == F8_SUM_F32) ((float *)result)[i] = f32;
        else if (reduction == F8_SUM_F64) ((double *)result)[i] = f64;
        else ((int64_t *)result)[i] = i64;
    }
}

/* Up to SLICE_ELEMENTS for each rank. */
static fp8flow_status reduce_block(fp8flow_comm *comm, f8_reduction reduction, char *data, int64_t count)
{
    f8_mpi_piece piece[2 * MAX_RANKS];
    int64_t width = reduction == F8_SUM_F32 ? 4 : 8, rank = comm->rank, size = comm->size;
    int64_t first = count * rank / size, mine = (count * (rank + 1) / size - first) * width;
    char *slices = self(comm)->slices;
    int32_t n = 0;
    for (int32_t r = 0; r < size; r++) {
        int64_t begin = count * r / size, bytes = (count * (r + 1) / size - begin) * width;
        if (r == rank) {
            memcpy(slices + r * mine, data + begin * width, (size_t)bytes);
            continue;
        }
        piece[n++] = (f8_mpi_piece){ data + begin * width, bytes, r, F8_MPI_SEND };
        piece[n++] = (f8_mpi_piece){ slices + r * mine, mine, r, F8_MPI_RECEIVE };
    }
    F8_TRY(transfer(comm, "all_reduce", piece, n));
    reduce(reduction, slices, comm->size, mine / width, data + first * width);
    n = 0;
    for (int32_t r = 0; r < size; r++) {
        int64_t begin = count * r / size, bytes = (count * (r + 1) / size - begin) * width;
        if (r == rank) continue;
        piece[n++] = (f8_mpi_piece){ data + first * width, mine, r, F8_MPI_SEND };
        piece[n++] = (f8_mpi_piece){ data + begin * width, bytes, r, F8_MPI_RECEIVE };
    }
    return transfer(comm, "all_reduce", piece, n);
}

static fp8flow_status mpi_all_reduce(fp8flow_comm *comm, f8_reduction reduction, void *data, int64_t count)
{
    int64_t most = (int64_t)SLICE_ELEMENTS * comm->size, width = reduction == F8_SUM_F32 ? 4 : 8;
    for (int64_t at = 0; at < count; at += most)
        F8_TRY(reduce_block(comm, reduction, (char *)data + at * width, count - at < most ? count - at : most));
    return FP8FLOW_OK;
}

static fp8flow_status mpi_broadcast(fp8flow_comm *comm, int32_t root, void *data, int64_t bytes)
{
    f8_mpi_piece piece[MAX_RANKS];
    int32_t n = 0;
    if (comm->rank != root) piece[n++] = (f8_mpi_piece){ data, bytes, root, F8_MPI_RECEIVE };
    else
        for (int32_t r = 0; r < comm->size; r++)
            if (r != root) piece[n++] = (f8_mpi_piece){ data, bytes, r, F8_MPI_SEND };
    return transfer(comm, "broadcast", piece, n);
}

static void mpi_abort(fp8flow_comm *comm, const char *message)
{
    if (self(comm)->failed_rank < 0) self(comm)->plugin->tell(message);
}

static const f8_comm_ops mpi_ops = { "mpi", mpi_exchange, mpi_all_reduce, mpi_broadcast, mpi_abort };

/* ---- Start ---------------------------------------------------------------------------------- */

static int32_t environment_number(const char *name)
{
    const char *text = getenv(name);
    return text && *text ? (int32_t)strtol(text, NULL, 10) : -1;
}

/* Open MPI's variables first: its processes may carry PMI's too. */
static const struct {
    const char *rank, *size, *plugin;
} launchers[] = { { "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "libfp8flow_mpi_openmpi.so" },
                  { "PMI_RANK", "PMI_SIZE", "libfp8flow_mpi_mpich.so" } };
enum { NUM_LAUNCHERS = sizeof launchers / sizeof *launchers };

static int find_launcher(void)
{
    for (int i = 0; i < NUM_LAUNCHERS; i++)
        if (environment_number(launchers[i].rank) >= 0 && environment_number(launchers[i].size) > 0) return i;
    return -1;
}

int32_t fp8flow_mpi_launched(int32_t *rank)
{
    int launcher = find_launcher();
    *rank = launcher < 0 ? 0 : environment_number(launchers[launcher].rank);
    return launcher < 0 ? 0 : environment_number(launchers[launcher].size);
}

/* Beside the program, in ../lib of it, or where the system looks. Never unloaded: MPI does not bear that. */
static fp8flow_status load_plugin(const char *name, const f8_mpi_plugin **plugin)
{
    static const char *const folders[] = { "$ORIGIN/", "$ORIGIN/../lib/", "" };
    char path[256], *why = NULL;
    void *library = NULL;
    for (size_t i = 0; i < sizeof folders / sizeof *folders && !library; i++) {
        snprintf(path, sizeof path, "%s%s", folders[i], name);
        library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
        if (!library) why = dlerror();
    }
    F8_REQUIRE(library, ENOSYS, "run_mpi_ranks: this build cannot run under this mpirun: %s", why ? why : name);
    *plugin = dlsym(library, F8_MPI_PLUGIN_SYMBOL);
    F8_REQUIRE(*plugin && (*plugin)->version == F8_MPI_PLUGIN_VERSION, ENOSYS,
               "run_mpi_ranks: %s is of another version of fp8flow", name);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_run_mpi_ranks(double timeout, fp8flow_status (*body)(fp8flow_comm *, void *), void *user,
                                     int32_t *failed_rank)
{
    F8_REQUIRE(body && failed_rank && timeout > 0, EINVAL, "run_mpi_ranks: NULL argument or timeout %g", timeout);
    int launcher = find_launcher();
    F8_REQUIRE(launcher >= 0, EINVAL, "run_mpi_ranks: this process was not started by mpirun");
    mpi_rank me = { .base = { .ops = &mpi_ops }, .timeout = timeout, .failed_rank = -1 };
    *failed_rank = environment_number(launchers[launcher].rank);
    f8_mpi_failure failure = { -1, "" };
    F8_TRY(load_plugin(launchers[launcher].plugin, &me.plugin));
    F8_REQUIRE(me.plugin->start(&me.base.rank, &me.base.size, &failure) == F8_MPI_DONE, ECOMM, "run_mpi_ranks: %s",
               failure.message);
    fp8flow_status status = FP8FLOW_OK;
    me.slices = malloc((size_t)me.base.size * SLICE_ELEMENTS * ELEMENT_BYTES);
    if (me.base.size > MAX_RANKS || !me.slices)
        status = F8_FAIL(ENOMEM, "run_mpi_ranks: no memory for %d ranks, at most %d", me.base.size, MAX_RANKS);
    else status = body(&me.base, user);
    if (status == FP8FLOW_OK) me.plugin->finish();
    else mpi_abort(&me.base, fp8flow_last_error());
    if (me.failed_rank >= 0) *failed_rank = me.failed_rank;
    free(me.slices);
    return status;
}
