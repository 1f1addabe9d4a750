/* mpi_fault.c - stands between the program and its MPI plugin, and stops or kills one rank where the test says.
 *
 * It is put where the plugin is looked for, and preloaded, because a save is seen by its fsync. The environment says:
 *   FAULT_PLUGIN  the plugin itself
 *   FAULT_AFTER   file without which nothing happens    FAULT_MARK  file that is made when it happens
 *   FAULT         "RANK SIGNAL WHAT COUNT DELAY": at the COUNT-th collective of that name (or "save": fsync) of that
 *                 rank since then, DELAY microseconds after it has begun
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm/mpi_plugin.h"

static const f8_mpi_plugin *inner;

static int own_rank(void)
{
    const char *text = getenv("OMPI_COMM_WORLD_RANK");
    if (!text) text = getenv("PMI_RANK");
    return text ? (int)strtol(text, NULL, 10) : -1;
}

static void strike(int number, long microseconds)
{
    int mark = open(getenv("FAULT_MARK"), O_CREAT | O_WRONLY, 0666);
    if (mark >= 0) close(mark);
    if (microseconds == 0) kill(getpid(), number);
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = number };
    struct itimerspec when = { .it_value = { .tv_nsec = microseconds * 1000 } };
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) == 0) timer_settime(timer, 0, &when, NULL);
}

static void count(const char *what)
{
    static long seen;
    char wanted[32];
    int rank, number;
    long at, microseconds;
    const char *fault = getenv("FAULT");
    if (seen == 0 && access(getenv("FAULT_AFTER"), F_OK) != 0) return;
    if (!fault || sscanf(fault, "%d %d %31s %ld %ld", &rank, &number, wanted, &at, &microseconds) != 5) return;
    if (rank == own_rank() && strcmp(what, wanted) == 0 && ++seen == at) strike(number, microseconds);
}

__attribute__((visibility("default"))) int fsync(int descriptor)
{
    int (*real)(int);
    *(void **)&real = dlsym(RTLD_NEXT, "fsync");
    count("save");
    return real(descriptor);
}

static f8_mpi_outcome start(int32_t *rank, int32_t *size, f8_mpi_failure *failure)
{
    void *library = dlopen(getenv("FAULT_PLUGIN"), RTLD_NOW | RTLD_GLOBAL);
    inner = library ? dlsym(library, F8_MPI_PLUGIN_SYMBOL) : NULL;
    if (inner) return inner->start(rank, size, failure);
    snprintf(failure->message, sizeof failure->message, "FAULT_PLUGIN: %s", dlerror());
    return F8_MPI_ERROR;
}

static f8_mpi_outcome transfer(const char *what, int32_t tag, const f8_mpi_piece *piece, int32_t num_pieces,
                               double seconds, f8_mpi_failure *failure, f8_mpi_failure *told)
{
    count(what);
    return inner->transfer(what, tag, piece, num_pieces, seconds, failure, told);
}

static void describe(char *text, int32_t bytes)
{
    snprintf(text, (size_t)bytes, "mpi_fault");
}

static void tell(const f8_mpi_failure *failure)
{
    inner->tell(failure);
}

static f8_mpi_outcome hear(double seconds, f8_mpi_failure *told)
{
    return inner->listen(seconds, told);
}

static void finish(void)
{
    inner->finish();
}

extern const f8_mpi_plugin fp8flow_mpi_plugin;
__attribute__((visibility("default")))
const f8_mpi_plugin fp8flow_mpi_plugin = { F8_MPI_PLUGIN_VERSION, describe, start, transfer, tell, hear, finish };
