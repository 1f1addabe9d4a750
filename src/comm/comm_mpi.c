/* comm_mpi.c - N ranks as N processes that mpirun or srun started. The MPI library itself is behind mpi_plugin.h.
 *
 * Sums have the bits of the thread transport: each rank is sent its slice of every rank's data and reduces it in
 * ascending rank order (f8_comm_reduce). A rank's part for itself never goes through MPI. A group is a table of ranks
 * of the job with a tag of its own. A failed rank tells the others, whose waiting ends with ECOMM in all groups; so
 * does waiting for longer than the timeout.
 */
#include "comm/comm_mpi.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "comm/comm.h"
#include "comm/mpi_plugin.h"

enum { MAX_RANKS = F8_COMM_MAX_RANKS, MAX_PIECES = 16 * MAX_RANKS, BUFFER_BYTES = 8 << 20 };

/* Seconds that a rank which failed by itself listens for others that did, and that one which was told waits before it
 * ends: when the first process ends with an error, mpirun ends the others, and the line must have been printed. */
static const double grace = 0.3, patience = 1.0;

enum { SILENT = -2, WHY_BYTES = 512 };

/* What all groups of this process share. */
typedef struct {
    const f8_mpi_plugin *plugin;
    double timeout;
    int32_t next_tag;
    int is_over;                  /* a transfer has failed: there are no others */
    const char *what;             /* the collective */
    f8_mpi_failure failure;       /* of this rank, when is_over */
    int32_t waits_for[MAX_RANKS]; /* of each rank that has told it; else SILENT */
    char *buffer;                 /* BUFFER_BYTES: what the others have for the slice of this rank */
} job;

typedef struct {
    fp8flow_comm base;
    job *job;
    int32_t tag;
    int32_t job_rank[MAX_RANKS]; /* of each rank here */
} member;

static member *member_of(fp8flow_comm *comm)
{
    return (member *)comm;
}

static fp8flow_status fail_timeout(const job *j)
{
    return F8_FAIL(ECOMM, "rank %d has waited %.3g s in %s for rank %d", j->failure.rank, j->failure.seconds, j->what,
                   j->failure.waits_for);
}

static fp8flow_status fail_transfer(job *j, const char *what, f8_mpi_outcome outcome, const f8_mpi_failure *told)
{
    fp8flow_status status;
    j->is_over = 1;
    j->what = what;
    if (outcome == F8_MPI_TOLD) {
        j->waits_for[told->rank] = told->waits_for;
        status = F8_FAIL(ECOMM, "rank %d: rank %d has failed: %s", j->failure.rank, told->rank, told->message);
    } else if (outcome == F8_MPI_TIMEOUT) status = fail_timeout(j);
    else status = F8_FAIL(ECOMM, "rank %d: %s", j->failure.rank, j->failure.message);
    return status;
}

static fp8flow_status transfer(fp8flow_comm *comm, const char *what, f8_mpi_piece *piece, int32_t num_pieces)
{
    member *me = member_of(comm);
    job *j = me->job;
    f8_mpi_failure told;
    F8_REQUIRE(!j->is_over, ECOMM, "rank %d: the job has failed: %s", me->job_rank[comm->rank], j->failure.message);
    for (int32_t i = 0; i < num_pieces; i++) piece[i].rank = me->job_rank[piece[i].rank];
    f8_mpi_outcome outcome = j->plugin->transfer(what, me->tag, piece, num_pieces, j->timeout, &j->failure, &told);
    if (outcome == F8_MPI_DONE) return FP8FLOW_OK;
    fp8flow_status status = fail_transfer(j, what, outcome, &told);
    snprintf(j->failure.message, sizeof j->failure.message, "%.*s", F8_MPI_MESSAGE_BYTES - 1, fp8flow_last_error());
    return status;
}

/* ---- Collectives ---------------------------------------------------------------------------- */

static fp8flow_status mpi_exchange(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                   const int32_t *send_rows, const int32_t *recv_rows)
{
    f8_mpi_piece piece[MAX_PIECES];
    int32_t count = 0;
    int64_t send_at = 0, recv_at = 0;
    F8_REQUIRE(num_parts <= MAX_PIECES / (2 * MAX_RANKS), EINVAL, "exchange: %d parts", num_parts);
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

/* Elements [begin, end) of slice `rank` that belong to the block that starts `at` elements into every slice. */
typedef struct {
    int64_t begin, end;
} range;

static range block_of(const int64_t *offset, int32_t rank, int64_t at, int64_t most)
{
    int64_t begin = offset[rank] + at, end = begin + most;
    if (begin > offset[rank + 1]) begin = offset[rank + 1];
    if (end > offset[rank + 1]) end = offset[rank + 1];
    return (range){ begin, end };
}

/* One block of every slice. */
static fp8flow_status reduce_block(fp8flow_comm *comm, const char *what, f8_reduction reduction, char *data,
                                   const int64_t *offset, int64_t at)
{
    f8_mpi_piece piece[2 * MAX_RANKS];
    const void *source[MAX_RANKS];
    int64_t width = f8_comm_element_bytes(reduction), most = BUFFER_BYTES / width / comm->size;
    range mine = block_of(offset, comm->rank, at, most);
    int32_t count = 0;
    for (int32_t r = 0; r < comm->size; r++) {
        range block = block_of(offset, r, at, most);
        char *received = member_of(comm)->job->buffer + r * most * width;
        source[r] = r == comm->rank ? data + mine.begin * width : received;
        if (r == comm->rank) continue;
        piece[count++] =
            (f8_mpi_piece){ data + block.begin * width, (block.end - block.begin) * width, r, F8_MPI_SEND };
        piece[count++] = (f8_mpi_piece){ received, (mine.end - mine.begin) * width, r, F8_MPI_RECEIVE };
    }
    F8_TRY(transfer(comm, what, piece, count));
    if (mine.end > mine.begin)
        f8_comm_reduce(reduction, source, comm->size, mine.end - mine.begin, data + mine.begin * width);
    return FP8FLOW_OK;
}

static fp8flow_status reduce_slices(fp8flow_comm *comm, const char *what, f8_reduction reduction, char *data,
                                    const int64_t *offset)
{
    int64_t longest = 0, most = BUFFER_BYTES / f8_comm_element_bytes(reduction) / comm->size;
    for (int32_t r = 0; r < comm->size; r++)
        if (offset[r + 1] - offset[r] > longest) longest = offset[r + 1] - offset[r];
    for (int64_t at = 0; at < longest; at += most) F8_TRY(reduce_block(comm, what, reduction, data, offset, at));
    return FP8FLOW_OK;
}

static fp8flow_status mpi_reduce_scatter(fp8flow_comm *comm, f8_reduction reduction, void *data, const int64_t *offset)
{
    return reduce_slices(comm, "reduce_scatter", reduction, data, offset);
}

static fp8flow_status gather_slices(fp8flow_comm *comm, const char *what, char *data, const int64_t *offset)
{
    f8_mpi_piece piece[2 * MAX_RANKS];
    int64_t first = offset[comm->rank], mine = offset[comm->rank + 1] - first;
    int32_t count = 0;
    for (int32_t r = 0; r < comm->size; r++) {
        if (r == comm->rank) continue;
        piece[count++] = (f8_mpi_piece){ data + first, mine, r, F8_MPI_SEND };
        piece[count++] = (f8_mpi_piece){ data + offset[r], offset[r + 1] - offset[r], r, F8_MPI_RECEIVE };
    }
    return transfer(comm, what, piece, count);
}

static fp8flow_status mpi_all_gather(fp8flow_comm *comm, void *data, const int64_t *offset)
{
    return gather_slices(comm, "all_gather", data, offset);
}

static fp8flow_status mpi_all_reduce(fp8flow_comm *comm, f8_reduction reduction, void *data, int64_t count)
{
    int64_t element[MAX_RANKS + 1], byte[MAX_RANKS + 1];
    f8_comm_even_slices(comm, reduction, count, element, byte);
    F8_TRY(reduce_slices(comm, "all_reduce", reduction, data, element));
    return gather_slices(comm, "all_reduce", data, byte);
}

static fp8flow_status mpi_broadcast(fp8flow_comm *comm, int32_t root, void *data, int64_t bytes)
{
    f8_mpi_piece piece[MAX_RANKS];
    int32_t count = 0;
    if (comm->rank != root) piece[count++] = (f8_mpi_piece){ data, bytes, root, F8_MPI_RECEIVE };
    else
        for (int32_t r = 0; r < comm->size; r++)
            if (r != root) piece[count++] = (f8_mpi_piece){ data, bytes, r, F8_MPI_SEND };
    return transfer(comm, "broadcast", piece, count);
}

/* ---- Groups --------------------------------------------------------------------------------- */

typedef struct {
    int32_t group, next_tag;
} split_entry;

/* The tag is the first that no rank here has used: two ranks have no other group with it. */
static fp8flow_status mpi_split(fp8flow_comm *comm, int32_t group, fp8flow_comm **part)
{
    split_entry entry[MAX_RANKS] = { 0 };
    int64_t offset[MAX_RANKS + 1];
    member *me = member_of(comm), *mine = calloc(1, sizeof *mine);
    F8_REQUIRE(mine, ENOMEM, "split: no memory for rank %d", comm->rank);
    for (int32_t r = 0; r <= comm->size; r++) offset[r] = r * (int64_t)sizeof *entry;
    entry[comm->rank] = (split_entry){ group, me->job->next_tag };
    fp8flow_status status = gather_slices(comm, "split", (char *)entry, offset);
    mine->base.ops = comm->ops;
    mine->base.timeout = comm->timeout;
    mine->job = me->job;
    for (int32_t r = 0; r < comm->size && status == FP8FLOW_OK; r++) {
        if (entry[r].next_tag > mine->tag) mine->tag = entry[r].next_tag;
        if (entry[r].group != group) continue;
        if (r < comm->rank) mine->base.rank++;
        mine->job_rank[mine->base.size++] = me->job_rank[r];
    }
    if (status == FP8FLOW_OK && mine->tag > F8_MPI_LAST_TAG)
        status = F8_FAIL(ENOMEM, "split: %d groups have been made, there are no others", F8_MPI_LAST_TAG);
    if (status != FP8FLOW_OK) {
        free(mine);
        return status;
    }
    me->job->next_tag = mine->tag + 1;
    *part = &mine->base;
    return FP8FLOW_OK;
}

static void mpi_free(fp8flow_comm *comm)
{
    free(comm);
}

static void mpi_abort(fp8flow_comm *comm, const char *message)
{
    job *j = member_of(comm)->job;
    if (!j->is_over) {
        j->is_over = 1;
        j->failure = (f8_mpi_failure){ .rank = member_of(comm)->job_rank[comm->rank], .waits_for = -1 };
        snprintf(j->failure.message, sizeof j->failure.message, "%.*s", F8_MPI_MESSAGE_BYTES - 1, message);
    }
    j->plugin->tell(&j->failure);
}

static const f8_comm_ops mpi_ops = {
    .name = "mpi",
    .exchange = mpi_exchange,
    .all_reduce = mpi_all_reduce,
    .reduce_scatter = mpi_reduce_scatter,
    .all_gather = mpi_all_gather,
    .broadcast = mpi_broadcast,
    .split = mpi_split,
    .free = mpi_free,
    .abort = mpi_abort,
};

/* ---- What has started this process ---------------------------------------------------------- */

typedef enum { OPENMPI, MPICH, NUM_LIBRARIES } mpi_library;
static const struct {
    const char *name, *plugin;
} libraries[NUM_LIBRARIES] = { { "openmpi", "libfp8flow_mpi_openmpi.so" }, { "mpich", "libfp8flow_mpi_mpich.so" } };

/* In this order: the later variables may be inherited from what started mpirun. The last line is srun without --mpi:
 * there each process would be alone, which MPI then says. */
static const struct {
    const char *rank, *size;
    mpi_library library;
} launchers[] = { { "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", OPENMPI },
                  { "PMI_RANK", "PMI_SIZE", MPICH },
                  { "PMIX_RANK", "SLURM_STEP_NUM_TASKS", OPENMPI },
                  { "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", OPENMPI } };
enum { NUM_LAUNCHERS = sizeof launchers / sizeof *launchers };

/* -1: it is not set, or empty. */
static fp8flow_status environment_number(const char *name, int32_t *number)
{
    const char *text = getenv(name);
    *number = -1;
    if (!text || !*text) return FP8FLOW_OK;
    char *end;
    long value = strtol(text, &end, 10);
    F8_REQUIRE(*text >= '0' && *text <= '9' && !*end && value < INT32_MAX, EINVAL,
               "%s is \"%.40s\", expected a number, as mpirun and srun set it", name, text);
    *number = (int32_t)value;
    return FP8FLOW_OK;
}

typedef struct {
    int32_t rank, size; /* 0, 0: started alone */
    const char *plugin;
} launch;

/* FP8FLOW_MPI names the library where the variables do not say it, or "none". */
static fp8flow_status find_launch(launch *found)
{
    const char *wish = getenv("FP8FLOW_MPI");
    *found = (launch){ 0, 0, NULL };
    if (wish && strcmp(wish, "none") == 0) return FP8FLOW_OK;
    for (int i = 0; i < NUM_LAUNCHERS && !found->plugin; i++) {
        int32_t rank, size;
        F8_TRY(environment_number(launchers[i].rank, &rank));
        F8_TRY(environment_number(launchers[i].size, &size));
        F8_REQUIRE(rank < 0 || size < 0 || rank < size, EINVAL, "%s is %d, %s is %d: there is no such rank",
                   launchers[i].rank, rank, launchers[i].size, size);
        if (rank >= 0 && size >= 0) *found = (launch){ rank, size, libraries[launchers[i].library].plugin };
    }
    if (!wish || !*wish) return FP8FLOW_OK;
    for (int i = 0; i < NUM_LIBRARIES; i++)
        if (strcmp(wish, libraries[i].name) == 0) {
            found->plugin = libraries[i].plugin;
            return FP8FLOW_OK;
        }
    return F8_FAIL(EINVAL, "FP8FLOW_MPI is \"%.40s\", expected openmpi, mpich or none", wish);
}

int32_t fp8flow_mpi_launched(int32_t *rank)
{
    launch found;
    fp8flow_status status = find_launch(&found);
    if (rank) *rank = found.rank;
    return status == FP8FLOW_OK ? found.size : -1;
}

/* Beside the program, in ../lib of it, or where the system looks. Never unloaded: MPI does not bear that. Of several
 * reasons, that a library which the plugin needs is missing says more than where the plugin itself is not. */
static const f8_mpi_plugin *load_plugin(const char *name, int mode, char why[WHY_BYTES])
{
    static const char *const folders[] = { "$ORIGIN/", "$ORIGIN/../lib/", "" };
    char path[256];
    void *library = NULL;
    *why = '\0';
    for (size_t i = 0; i < sizeof folders / sizeof *folders && !library; i++) {
        snprintf(path, sizeof path, "%s%s", folders[i], name);
        library = dlopen(path, RTLD_NOW | mode);
        const char *reason = library ? NULL : dlerror();
        if (reason && (!*why || !strstr(reason, name))) snprintf(why, WHY_BYTES, "%s", reason);
    }
    if (library) snprintf(why, WHY_BYTES, "it is of another version of fp8flow");
    const f8_mpi_plugin *plugin = library ? dlsym(library, F8_MPI_PLUGIN_SYMBOL) : NULL;
    return plugin && plugin->version == F8_MPI_PLUGIN_VERSION ? plugin : NULL;
}

int f8_comm_describe_mpi(char *text, size_t bytes)
{
    int count = 0;
    char why[WHY_BYTES];
    size_t at = 0;
    *text = '\0';
    for (int i = 0; i < NUM_LIBRARIES; i++) {
        char version[128];
        const f8_mpi_plugin *plugin = load_plugin(libraries[i].plugin, RTLD_LOCAL, why);
        if (!plugin) continue;
        plugin->describe(version, sizeof version);
        if (at < bytes) at += (size_t)snprintf(text + at, bytes - at, "%s%s", count ? ", " : "", version);
        count++;
    }
    return count;
}

/* ---- The life of a job ---------------------------------------------------------------------- */

static void rest(double seconds)
{
    nanosleep(&(struct timespec){ (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) }, NULL);
}

static fp8flow_status start(const launch *launched, member *world, job *j)
{
    char why[WHY_BYTES];
    f8_mpi_failure failure = { 0 };
    F8_REQUIRE(launched->plugin, EINVAL, "run_mpi_ranks: this process was not started by mpirun or srun");
    j->plugin = load_plugin(launched->plugin, RTLD_GLOBAL, why);
    F8_REQUIRE(j->plugin, ENOSYS, "run_mpi_ranks: %s cannot be loaded: %s", launched->plugin, why);
    F8_REQUIRE(j->plugin->start(&world->base.rank, &world->base.size, &failure) == F8_MPI_DONE, ECOMM,
               "run_mpi_ranks: %s", failure.message);
    F8_REQUIRE(world->base.size == launched->size || launched->size == 0, ECOMM,
               "run_mpi_ranks: %d processes were started, %d of them in the same MPI job: another MPI has started them "
               "(FP8FLOW_MPI=openmpi or mpich), or srun without --mpi",
               launched->size, world->base.size);
    F8_REQUIRE(world->base.size <= MAX_RANKS, EINVAL, "run_mpi_ranks: %d ranks, expected 1 to %d", world->base.size,
               MAX_RANKS);
    j->buffer = malloc(BUFFER_BYTES);
    F8_REQUIRE(j->buffer, ENOMEM, "run_mpi_ranks: no memory for %d bytes", BUFFER_BYTES);
    for (int32_t r = 0; r < world->base.size; r++) world->job_rank[r] = r;
    return FP8FLOW_OK;
}

/* Of the ranks that have told why they give up, the one whose reason explains the others': the lowest that failed by
 * itself, else the lowest that waits for a rank which tells nothing, else the lowest. */
static int32_t find_cause(const job *j, int32_t size)
{
    int32_t lowest = -1, waiting = -1;
    for (int32_t r = size - 1; r >= 0; r--) {
        if (j->waits_for[r] == SILENT) continue;
        lowest = r;
        if (j->waits_for[r] >= 0 && j->waits_for[j->waits_for[r]] == SILENT) waiting = r;
    }
    for (int32_t r = 0; r < size; r++)
        if (j->waits_for[r] == -1) return r;
    return waiting >= 0 ? waiting : lowest;
}

/* All ranks that still can tell the others what they wait for: so the rank that keeps them waiting is known, and one
 * rank alone reports it. */
static fp8flow_status end_with_failure(member *world, fp8flow_status status, int32_t *failed_rank)
{
    job *j = world->job;
    f8_mpi_failure told;
    mpi_abort(&world->base, fp8flow_last_error());
    j->waits_for[world->base.rank] = j->failure.waits_for;
    for (int32_t i = 0; i < world->base.size && j->plugin->listen(grace, &told) == F8_MPI_TOLD; i++)
        j->waits_for[told.rank] = told.waits_for;
    *failed_rank = find_cause(j, world->base.size);
    if (*failed_rank != world->base.rank) rest(patience);
    else if (j->failure.waits_for >= 0) return fail_timeout(j);
    return status;
}

fp8flow_status fp8flow_run_mpi_ranks(double timeout, fp8flow_status (*body)(fp8flow_comm *, void *), void *user,
                                     int32_t *failed_rank)
{
    F8_REQUIRE(body && failed_rank && timeout > 0, EINVAL, "run_mpi_ranks: NULL argument or timeout %g", timeout);
    launch launched;
    job j = { .timeout = timeout, .next_tag = 2 };
    member world = { .base = { .ops = &mpi_ops, .timeout = timeout }, .job = &j, .tag = 1 };
    for (int32_t r = 0; r < MAX_RANKS; r++) j.waits_for[r] = SILENT;
    fp8flow_status status = find_launch(&launched);
    *failed_rank = launched.rank;
    if (status == FP8FLOW_OK) status = start(&launched, &world, &j);
    if (status != FP8FLOW_OK) {
        /* If rank 0 has the same to say, it does so first, and mpirun ends this process. */
        if (launched.rank > 0) rest(patience);
        return status;
    }
    status = body(&world.base, user);
    if (status == FP8FLOW_OK) j.plugin->finish();
    else status = end_with_failure(&world, status, failed_rank);
    free(j.buffer);
    return status;
}
