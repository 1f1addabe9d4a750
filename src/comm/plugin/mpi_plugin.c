/* mpi_plugin.c - mpi_plugin.h on MPI 3.1. Compiled by mpicc into a shared object that exports the table alone.
 *
 * Pieces travel as non-blocking messages of less than 2^30 bytes each, on a communicator of our own. Waiting is asking
 * in a loop that gives the processor away: ranks may outnumber processors, and a rank that waits can still hear that
 * another has failed, or notice that it has waited too long.
 */
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "comm/mpi_plugin.h"

enum { FAILURE_TAG = 0, SPINS_BEFORE_SLEEP = 2000 };
static const int64_t most_bytes = (1 << 30) - 4096;

static MPI_Comm team = MPI_COMM_NULL;
static int team_rank, team_size;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void rest(int64_t spins)
{
    if (spins < SPINS_BEFORE_SLEEP) sched_yield();
    else nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
}

static f8_mpi_outcome explain(int code, const char *what, f8_mpi_failure *failure)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    snprintf(failure->message, sizeof failure->message, "%s: %.400s", what, text);
    return F8_MPI_ERROR;
}

/* The first word or two, and the version: "Open MPI v4.1.4, package: ..." and "MPICH Version:\t4.0.2\n..." */
static void describe(char *text, int32_t bytes)
{
    char name[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    MPI_Get_library_version(name, &length);
    name[strcspn(name, ",\n")] = '\0';
    const char *version = strpbrk(name, "0123456789");
    size_t word = strncmp(name, "MPICH", 5) == 0 ? 5 : strcspn(name, "0123456789");
    if (word > 0 && name[word - 1] == 'v') word--;
    while (word > 0 && name[word - 1] == ' ') word--;
    snprintf(text, (size_t)bytes, "%.*s %s", (int)word, name, version ? version : "");
}

static f8_mpi_outcome start(int32_t *rank, int32_t *size, f8_mpi_failure *failure)
{
    int provided = 0;
    int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    if (code == MPI_SUCCESS) code = MPI_Comm_dup(MPI_COMM_WORLD, &team);
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(team, MPI_ERRORS_RETURN);
    if (code != MPI_SUCCESS) return explain(code, "MPI_Init_thread", failure);
    MPI_Comm_rank(team, &team_rank);
    MPI_Comm_size(team, &team_size);
    *rank = team_rank;
    *size = team_size;
    return F8_MPI_DONE;
}

/* Messages under way, and the bytes that each must have. */
typedef struct {
    MPI_Request *request;
    int *bytes, *rank; /* bytes: -1 where it is sent */
    int count, tag;
    const char *what; /* the collective */
} messages;

static int64_t count_messages(const f8_mpi_piece *piece, int32_t num_pieces)
{
    int64_t count = 0;
    for (int32_t i = 0; i < num_pieces; i++) count += (piece[i].bytes + most_bytes - 1) / most_bytes;
    return count;
}

static int post(messages *m, const f8_mpi_piece *piece)
{
    int code = MPI_SUCCESS;
    for (int64_t at = 0; at < piece->bytes && code == MPI_SUCCESS; at += most_bytes) {
        int bytes = (int)(piece->bytes - at < most_bytes ? piece->bytes - at : most_bytes);
        char *data = (char *)piece->data + at;
        MPI_Request *request = &m->request[m->count];
        m->rank[m->count] = piece->rank;
        m->bytes[m->count] = piece->direction == F8_MPI_SEND ? -1 : bytes;
        code = piece->direction == F8_MPI_SEND ? MPI_Isend(data, bytes, MPI_BYTE, piece->rank, m->tag, team, request)
                                               : MPI_Irecv(data, bytes, MPI_BYTE, piece->rank, m->tag, team, request);
        m->count++;
    }
    return code;
}

static int is_told(f8_mpi_failure *told)
{
    int there = 0, bytes = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, FAILURE_TAG, team, &there, &status) != MPI_SUCCESS || !there) return 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    if (bytes != sizeof *told) return 0;
    MPI_Recv(told, bytes, MPI_BYTE, status.MPI_SOURCE, FAILURE_TAG, team, MPI_STATUS_IGNORE);
    told->rank = status.MPI_SOURCE;
    told->message[F8_MPI_MESSAGE_BYTES - 1] = '\0';
    return 1;
}

/* What a message that has come says of its size. */
static f8_mpi_outcome check_size(const messages *m, int i, const MPI_Status *status, f8_mpi_failure *failure)
{
    int bytes = 0;
    if (m->bytes[i] < 0) return F8_MPI_DONE;
    MPI_Get_count(status, MPI_BYTE, &bytes);
    if (bytes == m->bytes[i]) return F8_MPI_DONE;
    snprintf(failure->message, sizeof failure->message, "%s: expects %d bytes from rank %d, which sends %d", m->what,
             m->bytes[i], m->rank[i], bytes);
    return F8_MPI_ERROR;
}

/* In the order in which they were posted, so that the first one that is missing is known by name. */
static f8_mpi_outcome wait_for(messages *m, double seconds, f8_mpi_failure *failure, f8_mpi_failure *told)
{
    double last = now();
    int64_t spins = 0;
    for (int i = 0; i < m->count;) {
        MPI_Status status;
        int done = 0;
        int code = MPI_Test(&m->request[i], &done, &status);
        if (code != MPI_SUCCESS) return explain(code, m->what, failure);
        if (!done) {
            failure->seconds = now() - last;
            f8_mpi_outcome outcome = is_told(told)                ? F8_MPI_TOLD
                                     : failure->seconds > seconds ? F8_MPI_TIMEOUT
                                                                  : F8_MPI_DONE;
            if (outcome != F8_MPI_DONE) return failure->waits_for = m->rank[i], outcome;
            rest(spins++);
            continue;
        }
        if (check_size(m, i, &status, failure) != F8_MPI_DONE) return F8_MPI_ERROR;
        last = now();
        spins = 0;
        i++;
    }
    return F8_MPI_DONE;
}

/* Nothing may be written any more to memory that the caller takes back. */
static void forget(messages *m)
{
    for (int i = 0; i < m->count; i++) {
        if (m->request[i] == MPI_REQUEST_NULL) continue;
        if (m->bytes[i] >= 0) MPI_Cancel(&m->request[i]);
        MPI_Request_free(&m->request[i]);
    }
}

static int post_all(messages *m, const f8_mpi_piece *piece, int32_t num_pieces)
{
    static const f8_mpi_direction order[] = { F8_MPI_RECEIVE, F8_MPI_SEND };
    int code = MPI_SUCCESS;
    for (int k = 0; k < 2; k++)
        for (int32_t i = 0; i < num_pieces && code == MPI_SUCCESS; i++)
            if (piece[i].direction == order[k]) code = post(m, &piece[i]);
    return code;
}

static f8_mpi_outcome transfer(const char *what, int32_t tag, const f8_mpi_piece *piece, int32_t num_pieces,
                               double seconds, f8_mpi_failure *failure, f8_mpi_failure *told)
{
    size_t count = (size_t)count_messages(piece, num_pieces) + 1;
    messages m = {
        malloc(count * sizeof *m.request), malloc(count * sizeof *m.bytes), malloc(count * sizeof *m.rank), 0, tag, what
    };
    f8_mpi_outcome outcome = F8_MPI_ERROR;
    *failure = (f8_mpi_failure){ team_rank, -1, 0, "" };
    if (m.request && m.bytes && m.rank) {
        int code = post_all(&m, piece, num_pieces);
        outcome = code == MPI_SUCCESS ? wait_for(&m, seconds, failure, told) : explain(code, what, failure);
        if (outcome != F8_MPI_DONE) forget(&m);
    } else snprintf(failure->message, sizeof failure->message, "%s: no memory for %zu messages", what, count);
    free(m.request), free(m.bytes), free(m.rank);
    return outcome;
}

static f8_mpi_outcome listen(double seconds, f8_mpi_failure *told)
{
    for (double deadline = now() + seconds; now() < deadline; rest(SPINS_BEFORE_SLEEP))
        if (is_told(told)) return F8_MPI_TOLD;
    return F8_MPI_TIMEOUT;
}

static void tell(const f8_mpi_failure *failure)
{
    enum { MOST_RANKS = 256 };
    static f8_mpi_failure sent; /* still being sent when this returns */
    MPI_Request request[MOST_RANKS];
    MPI_Status status[MOST_RANKS]; /* MPICH's MPI_STATUSES_IGNORE makes gcc warn */
    int count = 0, done = 0;
    sent = *failure;
    for (int r = 0; r < team_size && count < MOST_RANKS; r++)
        if (r != team_rank &&
            MPI_Isend(&sent, sizeof sent, MPI_BYTE, r, FAILURE_TAG, team, &request[count]) == MPI_SUCCESS)
            count++;
    for (double deadline = now() + 1; !done && now() < deadline; rest(SPINS_BEFORE_SLEEP))
        if (MPI_Testall(count, request, &done, status) != MPI_SUCCESS) return;
}

static void finish(void)
{
    MPI_Comm_free(&team);
    MPI_Finalize();
}

extern const f8_mpi_plugin fp8flow_mpi_plugin;
__attribute__((visibility("default")))
const f8_mpi_plugin fp8flow_mpi_plugin = { F8_MPI_PLUGIN_VERSION, describe, start, transfer, tell, listen, finish };
