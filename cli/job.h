/* job.h - what is different where mpirun or srun has started the program: N processes run the same command.
 *
 * A process that cannot take part must say so to the others, which wait for it in MPI; and what all of them have to
 * say, one says.
 */
#ifndef CLI_JOB_H
#define CLI_JOB_H

#include "cli.h"

/* Whether this is one of several processes that mpirun started. rank: may be NULL. */
int cli_is_job(int32_t *rank);

/* Threads that this process may use without taking them from others of the job on this machine. */
int32_t cli_job_threads(void);

/* Before the job has begun, with errors held (cli_hold_errors): join it, tell the others, and print what was held if no
 * lower rank does. Returns `code`. */
int cli_job_leave(double timeout, int code);

/* Something that must be the same on every rank: "other options", and its hash. */
typedef struct {
    const char *difference;
    uint64_t hash;
} cli_job_part;
enum { CLI_JOB_PARTS = 8 };

/* FNV-1a. cli_hash_text: NULL is another text than "". */
#define CLI_HASH_START 0xCBF29CE484222325
uint64_t cli_hash_bytes(uint64_t hash, const void *data, size_t bytes);
uint64_t cli_hash_text(uint64_t hash, const char *text);

/* On every rank: *rank = the lowest of which a part is not rank 0's, *difference = that part's; 0: there is none. */
fp8flow_status cli_job_compare(fp8flow_comm *comm, const cli_job_part *parts, int count, int32_t *rank,
                               const char **difference);

#endif
