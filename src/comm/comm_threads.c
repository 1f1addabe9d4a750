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

enum { MAX_RANKS = F8_COMM_MAX_RANKS, MESSAGE_BYTES = 512, RANK_STACK_BYTES = 4 << 20 };

typedef struct {
    const f8_comm_part *part;
    const int32_t *send_rows;
    void *data;
    int32_t group;
} published;

/* What all groups of a job share. */
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t all_here;
    int failed, failed_rank; /* guarded by mutex, as the counts of the teams are */
    char message[MESSAGE_BYTES];
} job;

/* Ranks that barriers wait for: those of the job, or of one group that a split has made. */
typedef struct {
    job *job;
    int size, waiting, members; /* members: handles of it that are not freed */
    uint64_t generation;
    published slot[MAX_RANKS]; /* written by its rank before a barrier, read by others after it */
} team;

typedef struct {
    fp8flow_comm base;
    team *team;
    int32_t job_rank;
    int *released; /* a barrier told this rank that another has failed: its own failure is not the cause */
} member;

typedef struct {
    member member;
    fp8flow_status (*body)(fp8flow_comm *, void *);
    void *user;
    fp8flow_status status;
    char message[MESSAGE_BYTES];
    int released;
    int num_threads; /* OpenMP threads of this rank */
} thread_rank;

static member *member_of(fp8flow_comm *comm)
{
    return (member *)comm;
}

static team *team_of(fp8flow_comm *comm)
{
    return member_of(comm)->team;
}

/* With the mutex held: ECOMM once a rank has failed. */
static fp8flow_status told_failure(fp8flow_comm *comm)
{
    const job *j = team_of(comm)->job;
    if (!j->failed) return FP8FLOW_OK;
    *member_of(comm)->released = 1;
    return F8_FAIL(ECOMM, "rank %d: rank %d has failed: %s", member_of(comm)->job_rank, j->failed_rank, j->message);
}

/* Wait for all ranks; ECOMM once one has failed. */
static fp8flow_status barrier(fp8flow_comm *comm)
{
    team *t = team_of(comm);
    job *j = t->job;
    pthread_mutex_lock(&j->mutex);
    uint64_t generation = t->generation;
    if (!j->failed && ++t->waiting == t->size) {
        t->waiting = 0;
        t->generation++;
        pthread_cond_broadcast(&j->all_here);
    }
    while (!j->failed && t->generation == generation) pthread_cond_wait(&j->all_here, &j->mutex);
    fp8flow_status status = t->generation == generation ? told_failure(comm) : FP8FLOW_OK;
    pthread_mutex_unlock(&j->mutex);
    return status;
}

static fp8flow_status threads_check(fp8flow_comm *comm)
{
    job *j = team_of(comm)->job;
    pthread_mutex_lock(&j->mutex);
    fp8flow_status status = told_failure(comm);
    pthread_mutex_unlock(&j->mutex);
    return status;
}

static void threads_abort(fp8flow_comm *comm, const char *message)
{
    job *j = team_of(comm)->job;
    pthread_mutex_lock(&j->mutex);
    if (!j->failed) {
        j->failed = 1;
        j->failed_rank = member_of(comm)->job_rank;
        snprintf(j->message, MESSAGE_BYTES, "%s", message);
    }
    pthread_cond_broadcast(&j->all_here);
    pthread_mutex_unlock(&j->mutex);
}

static fp8flow_status threads_exchange(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                       const int32_t *send_rows, const int32_t *recv_rows)
{
    team *t = team_of(comm);
    t->slot[comm->rank] = (published){ .part = part, .send_rows = send_rows };
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
        int64_t send_at = f8_comm_rows_before(from->send_rows, comm->rank),
                recv_at = f8_comm_rows_before(recv_rows, source);
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

/* Elements [begin, end) of all ranks, reduced to where `result` has them. */
static void reduce_slice(const team *t, f8_reduction reduction, int64_t begin, int64_t end, void *result)
{
    const void *source[MAX_RANKS];
    int64_t bytes = begin * f8_comm_element_bytes(reduction);
    for (int r = 0; r < t->size; r++) source[r] = (const char *)t->slot[r].data + bytes;
    if (end > begin) f8_comm_reduce(reduction, source, t->size, end - begin, (char *)result + bytes);
}

static fp8flow_status threads_reduce_scatter(fp8flow_comm *comm, f8_reduction reduction, void *data,
                                             const int64_t *offset)
{
    team *t = team_of(comm);
    t->slot[comm->rank].data = data;
    F8_TRY(barrier(comm));
    reduce_slice(t, reduction, offset[comm->rank], offset[comm->rank + 1], data);
    return barrier(comm);
}

static fp8flow_status threads_all_gather(fp8flow_comm *comm, void *data, const int64_t *offset)
{
    team *t = team_of(comm);
    t->slot[comm->rank].data = data;
    F8_TRY(barrier(comm));
    for (int32_t r = 0; r < comm->size; r++) {
        int64_t bytes = offset[r + 1] - offset[r];
        if (r != comm->rank && bytes > 0)
            memcpy((char *)data + offset[r], (const char *)t->slot[r].data + offset[r], (size_t)bytes);
    }
    return barrier(comm);
}

static fp8flow_status threads_all_reduce(fp8flow_comm *comm, f8_reduction reduction, void *data, int64_t count)
{
    int64_t element[MAX_RANKS + 1], byte[MAX_RANKS + 1];
    f8_comm_even_slices(comm, reduction, count, element, byte);
    F8_TRY(threads_reduce_scatter(comm, reduction, data, element));
    return threads_all_gather(comm, data, byte);
}

static fp8flow_status threads_broadcast(fp8flow_comm *comm, int32_t root, void *data, int64_t bytes)
{
    team *t = team_of(comm);
    t->slot[comm->rank].data = data;
    F8_TRY(barrier(comm));
    if (comm->rank != root && bytes > 0) memcpy(data, t->slot[root].data, (size_t)bytes);
    return barrier(comm);
}

/* ---- Groups ---- */

static void threads_free(fp8flow_comm *comm)
{
    team *t = team_of(comm);
    pthread_mutex_lock(&t->job->mutex);
    int members = --t->members;
    pthread_mutex_unlock(&t->job->mutex);
    if (members == 0) free(t);
    free(comm);
}

/* The lowest rank of a group makes its team, the others find it in that rank's slot. */
static fp8flow_status join_group(fp8flow_comm *comm, int32_t group, member *mine)
{
    team *t = team_of(comm);
    int32_t lowest = -1;
    for (int32_t r = 0; r < comm->size; r++) {
        if (t->slot[r].group != group) continue;
        if (lowest < 0) lowest = r;
        if (r < comm->rank) mine->base.rank++;
        mine->base.size++;
    }
    if (lowest == comm->rank) {
        t->slot[lowest].data = mine->team = calloc(1, sizeof(team));
        F8_REQUIRE(mine->team, ENOMEM, "split: no memory for a group of %d ranks", mine->base.size);
        mine->team->job = t->job;
        mine->team->size = mine->team->members = mine->base.size;
    }
    fp8flow_status status = barrier(comm); /* with the same outcome for all */
    if (status != FP8FLOW_OK) {
        if (lowest == comm->rank) free(mine->team);
        return status;
    }
    mine->team = t->slot[lowest].data;
    return FP8FLOW_OK;
}

static fp8flow_status threads_split(fp8flow_comm *comm, int32_t group, fp8flow_comm **part)
{
    member *mine = calloc(1, sizeof *mine);
    F8_REQUIRE(mine, ENOMEM, "split: no memory for rank %d", comm->rank);
    mine->base.ops = comm->ops;
    mine->base.timeout = comm->timeout;
    mine->job_rank = member_of(comm)->job_rank;
    mine->released = member_of(comm)->released;
    team_of(comm)->slot[comm->rank].group = group;
    fp8flow_status status = barrier(comm);
    if (status == FP8FLOW_OK) status = join_group(comm, group, mine);
    if (status != FP8FLOW_OK) {
        free(mine);
        return status;
    }
    /* The slots are free for the next collective when everybody has read them. */
    status = barrier(comm);
    if (status != FP8FLOW_OK) threads_free(&mine->base);
    else *part = &mine->base;
    return status;
}

static const f8_comm_ops threads_ops = {
    .name = "threads",
    .exchange = threads_exchange,
    .all_reduce = threads_all_reduce,
    .reduce_scatter = threads_reduce_scatter,
    .all_gather = threads_all_gather,
    .broadcast = threads_broadcast,
    .split = threads_split,
    .free = threads_free,
    .abort = threads_abort,
    .check = threads_check,
};

/* ---- Ranks ---- */

static void *run_rank(void *argument)
{
    thread_rank *rank = argument;
#if defined(_OPENMP)
    omp_set_num_threads(rank->num_threads);
#endif
    rank->status = rank->body(&rank->member.base, rank->user);
    if (rank->status != FP8FLOW_OK) {
        snprintf(rank->message, MESSAGE_BYTES, "%.*s", MESSAGE_BYTES - 1, fp8flow_last_error());
        threads_abort(&rank->member.base, rank->message);
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
    if (started < num_ranks) threads_abort(&ranks[0].member.base, "the system refused another thread");
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
        ranks[r] = (thread_rank){
            .member = { { .ops = &threads_ops, .rank = r, .size = num_ranks }, t, r, &ranks[r].released },
            .body = body,
            .user = user,
            .num_threads = threads > 0 ? threads : 1
        };
}

fp8flow_status fp8flow_run_ranks(int32_t num_ranks, fp8flow_status (*body)(fp8flow_comm *, void *), void *user)
{
    F8_REQUIRE(body, EINVAL, "run_ranks: NULL body");
    F8_REQUIRE(num_ranks >= 1 && num_ranks <= MAX_RANKS, EINVAL, "run_ranks: %d ranks, expected 1 to %d", num_ranks,
               MAX_RANKS);
    job j = { .failed = 0 };
    team *t = calloc(1, sizeof *t);
    thread_rank *ranks = calloc((size_t)num_ranks, sizeof *ranks);
    pthread_t *threads = calloc((size_t)num_ranks, sizeof *threads);
    if (!t || !ranks || !threads) {
        free(t), free(ranks), free(threads);
        return F8_FAIL(ENOMEM, "run_ranks: no memory for %d ranks", num_ranks);
    }
    t->job = &j;
    t->size = num_ranks;
    pthread_mutex_init(&j.mutex, NULL);
    pthread_cond_init(&j.all_here, NULL);
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
    pthread_cond_destroy(&j.all_here);
    pthread_mutex_destroy(&j.mutex);
    free(t), free(ranks), free(threads);
    return status;
}
