/* comm_threads.c - N ranks as N threads of one process; 1 rank is a thread-free special case of it.
 *
 * Every collective is: publish my pointers, barrier, copy from the others, barrier. The barrier is the only
 * synchronisation, so ThreadSanitizer can follow all of it. A failed rank sets `failed`, which releases every
 * barrier with ECOMM, now and later.
 */
#include "comm/comm.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

enum { MAX_RANKS = 256, MESSAGE_BYTES = 512, RANK_STACK_BYTES = 4 << 20 };

typedef struct {
    const f8_comm_part *part;
    const int32_t *send_rows;
    void *data;
} published;

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t all_here;
    int size, waiting;
    uint64_t generation;
    int failed, failed_rank; /* guarded by mutex */
    char message[MESSAGE_BYTES];
    published slot[MAX_RANKS]; /* written by its rank before a barrier, read by others after it */
} team;

typedef struct {
    fp8flow_comm base;
    team *team;
    fp8flow_status (*body)(fp8flow_comm *, void *);
    void *user;
    fp8flow_status status;
    char message[MESSAGE_BYTES];
    int released;    /* a barrier told this rank that another has failed: its own failure is not the cause */
    int num_threads; /* OpenMP threads of this rank */
} thread_rank;

static team *team_of(fp8flow_comm *comm)
{
    return ((thread_rank *)comm)->team;
}

/* Wait for all ranks; ECOMM once one has failed. */
static fp8flow_status barrier(fp8flow_comm *comm)
{
    team *t = team_of(comm);
    pthread_mutex_lock(&t->mutex);
    uint64_t generation = t->generation;
    if (!t->failed && ++t->waiting == t->size) {
        t->waiting = 0;
        t->generation++;
        pthread_cond_broadcast(&t->all_here);
    }
    while (!t->failed && t->generation == generation) pthread_cond_wait(&t->all_here, &t->mutex);
    int failed = t->failed && t->generation == generation, failed_rank = t->failed_rank;
    pthread_mutex_unlock(&t->mutex);
    ((thread_rank *)comm)->released |= failed;
    F8_REQUIRE(!failed, ECOMM, "rank %d: rank %d has failed: %s", comm->rank, failed_rank, t->message);
    return FP8FLOW_OK;
}

static void threads_abort(fp8flow_comm *comm, const char *message)
{
    team *t = team_of(comm);
    pthread_mutex_lock(&t->mutex);
    if (!t->failed) {
        t->failed = 1;
        t->failed_rank = comm->rank;
        snprintf(t->message, MESSAGE_BYTES, "%s", message);
    }
    pthread_cond_broadcast(&t->all_here);
    pthread_mutex_unlock(&t->mutex);
}

static int64_t rows_before(const int32_t *rows, int32_t rank)
{
    int64_t sum = 0;
    for (int32_t r = 0; r < rank; r++) sum += rows[r];
    return sum;
}

static fp8flow_status threads_exchange(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                       const int32_t *send_rows, const int32_t *recv_rows)
{
    team *t = team_of(comm);
    t->slot[comm->rank] = (published){ part, send_rows, NULL };
    F8_TRY(barrier(comm));
    fp8flow_status status = FP8FLOW_OK;
    for (int32_t source = 0; source < comm->size; source++) {
        const published *from = &t->slot[source];
        int64_t rows = from->send_rows[comm->rank];
        if (rows != recv_rows[source]) {
            status = F8_FAIL(ECOMM, "exchange: rank %d expects %d rows from rank %d, which sends %lld", comm->rank,
                             recv_rows[source], source, (long long)rows);
            break;
        }
        int64_t send_at = rows_before(from->send_rows, comm->rank), recv_at = rows_before(recv_rows, source);
        for (int i = 0; i < num_parts && rows; i++) {
            int64_t bytes = part[i].row_bytes;
            memcpy((char *)part[i].recv + recv_at * bytes, (const char *)from->part[i].send + send_at * bytes,
                   (size_t)(rows * bytes));
        }
    }
    /* Also after a mismatch: the others may still be reading this rank's memory. */
    fp8flow_status left = barrier(comm);
    return status != FP8FLOW_OK ? status : left;
}

/* Add (or take the larger of) elements [begin, end) of all ranks, in rank order, and give the result to all. */
static void reduce_slice(team *t, f8_reduction reduction, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        float f32 = 0;
        double f64 = 0;
        int64_t i64 = reduction == F8_MAX_I64 ? INT64_MIN : 0;
        for (int r = 0; r < t->size; r++) {
            const void *data = t->slot[r].data;
            if (reduction == F8_SUM_F32) f32 += ((const float *)data)[i];
            else if (reduction == F8_SUM_F64) f64 += ((const double *)data)[i];
            else {
                int64_t value = ((const int64_t *)data)[i];
                i64 = reduction == F8_SUM_I64 ? i64 + value : value > i64 ? value : i64;
            }
        }
        for (int r = 0; r < t->size; r++) {
            void *data = t->slot[r].data;
            if (reduction == F8_SUM_F32) ((float *)data)[i] = f32;
            else if (reduction == F8_SUM_F64) ((double *)data)[i] = f64;
            else ((int64_t *)data)[i] = i64;
        }
    }
}

static fp8flow_status threads_all_reduce(fp8flow_comm *comm, f8_reduction reduction, void *data, int64_t count)
{
    if (comm->size == 1) return FP8FLOW_OK;
    team *t = team_of(comm);
    t->slot[comm->rank].data = data;
    F8_TRY(barrier(comm));
    reduce_slice(t, reduction, count * comm->rank / comm->size, count * (comm->rank + 1) / comm->size);
    return barrier(comm);
}

static fp8flow_status threads_broadcast(fp8flow_comm *comm, int32_t root, void *data, int64_t bytes)
{
    if (comm->size == 1) return FP8FLOW_OK;
    team *t = team_of(comm);
    t->slot[comm->rank].data = data;
    F8_TRY(barrier(comm));
    if (comm->rank != root && bytes > 0) memcpy(data, t->slot[root].data, (size_t)bytes);
    return barrier(comm);
}

static const f8_comm_ops threads_ops = { "threads", threads_exchange, threads_all_reduce, threads_broadcast,
                                         threads_abort };

static void *run_rank(void *argument)
{
    thread_rank *rank = argument;
#if defined(_OPENMP)
    omp_set_num_threads(rank->num_threads);
#endif
    rank->status = rank->body(&rank->base, rank->user);
    if (rank->status != FP8FLOW_OK) {
        snprintf(rank->message, MESSAGE_BYTES, "%.*s", MESSAGE_BYTES - 1, fp8flow_last_error());
        threads_abort(&rank->base, rank->message);
    }
    return NULL;
}

/* Start ranks 1.. as threads; if one cannot be started, the started ones are released by abort. */
static int start_threads(thread_rank *ranks, pthread_t *threads, int32_t num_ranks)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, RANK_STACK_BYTES);
    int32_t started = 1;
    while (started < num_ranks && !pthread_create(&threads[started], &attributes, run_rank, &ranks[started])) started++;
    pthread_attr_destroy(&attributes);
    if (started < num_ranks) threads_abort(&ranks[0].base, "the system refused another thread");
    return started;
}

/* Of the lowest rank that failed by itself: the same one in every run, however the threads were scheduled. */
static fp8flow_status first_failure(const thread_rank *ranks, int32_t num_ranks)
{
    const thread_rank *cause = NULL;
    for (int32_t r = 0; r < num_ranks; r++)
        if (ranks[r].status != FP8FLOW_OK && (!cause || ranks[r].released < cause->released)) cause = &ranks[r];
    return cause ? f8_fail(cause->status, "%s", cause->message) : FP8FLOW_OK;
}

static void prepare_ranks(thread_rank *ranks, team *t, int32_t num_ranks,
                          fp8flow_status (*body)(fp8flow_comm *, void *), void *user)
{
    int threads = 1;
#if defined(_OPENMP)
    threads = omp_get_max_threads() / num_ranks;
#endif
    for (int32_t r = 0; r < num_ranks; r++)
        ranks[r] = (thread_rank){ .base = { &threads_ops, r, num_ranks, 0 },
                                  .team = t,
                                  .body = body,
                                  .user = user,
                                  .num_threads = threads > 0 ? threads : 1 };
}

fp8flow_status fp8flow_run_ranks(int32_t num_ranks, fp8flow_status (*body)(fp8flow_comm *, void *), void *user)
{
    F8_REQUIRE(body, EINVAL, "run_ranks: NULL body");
    F8_REQUIRE(num_ranks >= 1 && num_ranks <= MAX_RANKS, EINVAL, "run_ranks: %d ranks, expected 1 to %d", num_ranks,
               MAX_RANKS);
    team *t = calloc(1, sizeof *t);
    thread_rank *ranks = calloc((size_t)num_ranks, sizeof *ranks);
    pthread_t *threads = calloc((size_t)num_ranks, sizeof *threads);
    if (!t || !ranks || !threads) {
        free(t), free(ranks), free(threads);
        return F8_FAIL(ENOMEM, "run_ranks: no memory for %d ranks", num_ranks);
    }
    t->size = num_ranks;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->all_here, NULL);
    prepare_ranks(ranks, t, num_ranks, body, user);
#if defined(_OPENMP)
    int threads_before = omp_get_max_threads();
#endif
    int32_t started = start_threads(ranks, threads, num_ranks);
    run_rank(&ranks[0]);
    for (int32_t r = 1; r < started; r++) pthread_join(threads[r], NULL);
#if defined(_OPENMP)
    omp_set_num_threads(threads_before);
#endif
    fp8flow_status status = started == num_ranks
                                ? first_failure(ranks, num_ranks)
                                : F8_FAIL(ENOMEM, "run_ranks: the system refused thread %d of %d", started, num_ranks);
    pthread_cond_destroy(&t->all_here);
    pthread_mutex_destroy(&t->mutex);
    free(t), free(ranks), free(threads);
    return status;
}
