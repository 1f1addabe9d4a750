/* job.c - see job.h. */
#include "job.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train_loop.h"

int cli_is_job(int32_t *rank)
{
    int32_t own;
    int32_t size = fp8flow_mpi_launched(&own);
    if (rank) *rank = size > 1 ? own : 0;
    return size > 1;
}

/* Processors that mpirun has bound to this process are its own, others are shared. */
int32_t cli_job_threads(void)
{
    static const char *const names[] = { "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_TASKS_PER_NODE" };
    int32_t processors = cli_num_processors(), local = 0;
    if (processors < sysconf(_SC_NPROCESSORS_ONLN)) return processors;
    for (size_t i = 0; i < sizeof names / sizeof *names && local < 1; i++)
        if (getenv(names[i])) local = (int32_t)strtol(getenv(names[i]), NULL, 10);
    if (local < 1) local = fp8flow_mpi_launched(NULL);
    return processors > local && local > 0 ? processors / local : 1;
}

/* ---- A process that cannot take part -------------------------------------------------------- */

static fp8flow_status fail_at_once(fp8flow_comm *comm, void *user)
{
    (void)comm, (void)user;
    return FP8FLOW_EINVAL;
}

int cli_job_leave(double timeout, int code)
{
    int32_t rank, failed_rank = 0;
    (void)cli_is_job(&rank);
    (void)fp8flow_run_mpi_ranks(timeout, fail_at_once, NULL, &failed_rank);
    if (failed_rank == rank) cli_release_errors();
    return code;
}

/* ---- The same on every rank ----------------------------------------------------------------- */

uint64_t cli_hash_bytes(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *byte = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ byte[i]) * 0x100000001B3;
    return hash;
}

uint64_t cli_hash_text(uint64_t hash, const char *text)
{
    return text ? cli_hash_bytes(hash, text, strlen(text) + 1) : cli_hash_bytes(hash, "\1", 1);
}

/* Rank 0's: rank * CLI_JOB_PARTS + part of the first difference; 0: none. */
static int64_t find_difference(uint64_t all[][CLI_JOB_PARTS], int count, int32_t size)
{
    for (int32_t r = 1; r < size; r++)
        for (int i = 0; i < count; i++)
            if (all[r][i] != all[0][i]) return (int64_t)r * CLI_JOB_PARTS + i;
    return 0;
}

fp8flow_status cli_job_compare(fp8flow_comm *comm, const cli_job_part *parts, int count, int32_t *rank,
                               const char **difference)
{
    uint64_t mine[CLI_JOB_PARTS] = { 0 };
    int32_t size = fp8flow_comm_size(comm);
    uint64_t(*all)[CLI_JOB_PARTS] = calloc((size_t)size, sizeof mine);
    int64_t found = 0;
    fp8flow_status status = FP8FLOW_ENOMEM;
    for (int i = 0; i < count; i++) mine[i] = parts[i].hash;
    if (all) status = fp8flow_comm_gather(comm, mine, sizeof mine, all);
    if (status == FP8FLOW_OK && fp8flow_comm_rank(comm) == 0) found = find_difference(all, count, size);
    if (status == FP8FLOW_OK) status = fp8flow_comm_max(comm, &found);
    free(all);
    *rank = (int32_t)(found / CLI_JOB_PARTS);
    *difference = parts[found % CLI_JOB_PARTS].difference;
    return status;
}
