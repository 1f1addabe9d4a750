/* watch_nccl.h - a handle of NCCL, and the thread that keeps its program from hanging.
 *
 * A call of NCCL puts a kernel on a stream that waits there for the other ranks: one that never comes shows in
 * whatever the program waits for next (synchronize, a copy to the host, the release of memory), which knows nothing of
 * ranks. Hence the program's waits stay as they are, and a thread of each communicator looks every few milliseconds
 *
 *   - whether the host communicator knows of a failed rank (f8_comm_check),
 *   - what NCCL itself has seen (ncclCommGetAsyncError), and
 *   - whether a call that was begun has gone without being done for longer than the timeout.
 *
 * Then it first tells the host communicator, so that every later collective fails on all ranks, and next calls
 * ncclCommAbort, which ends the kernels: the program's wait returns, and its next f8_comm_check or collective fails
 * with ECOMM. One thread per communicator, because an abort can wait for kernels of another one, which must be aborted
 * meanwhile.
 *
 * The thread makes no call of CUDA before the abort: those can block behind the very wait that is to be ended. Which
 * calls are done it reads from host memory, where the stream itself writes their numbers.
 */
#ifndef F8_COMM_WATCH_NCCL_H
#define F8_COMM_WATCH_NCCL_H

#include <cudaTypedefs.h>
#include <pthread.h>

#include "comm/comm.h"
#include "comm/library_nccl.h"

typedef enum {
    F8_NCCL_WORKING,
    F8_NCCL_FAILED,  /* the message says why; aborted, or about to be */
    F8_NCCL_LEAVING, /* closed with calls under way: aborted without a word */
    F8_NCCL_CLOSING
} f8_nccl_state;

enum { F8_NCCL_MESSAGE_BYTES = 512, F8_NCCL_NAMES = 256 };

typedef struct {
    fp8flow_comm *host;
    const f8_nccl_library *library;
    PFN_cuStreamWriteValue32_v11070 write_value; /* the driver's */
    int gpu;
    pthread_t thread;
    pthread_mutex_t mutex; /* around every use of what follows, and every call of NCCL but abort */
    pthread_cond_t wake;
    ncclComm_t nccl;
    f8_nccl_state state;
    char message[F8_NCCL_MESSAGE_BYTES];
    uint32_t begun;                  /* number of the last call */
    const char *name[F8_NCCL_NAMES]; /* of call number i at i % F8_NCCL_NAMES */
    uint32_t *finished;              /* the last number that the stream has written */
    unsigned long long finished_gpu; /* the same memory, as the GPU addresses it */
} f8_nccl_watch;

/* Start watching, with no handle yet. On an error there is nothing to stop. */
fp8flow_status f8_nccl_watch_start(f8_nccl_watch *w, fp8flow_comm *host, const f8_nccl_library *library);

/* End the thread and the handle. Waits a moment for calls under way, then aborts them. */
void f8_nccl_watch_stop(f8_nccl_watch *w);

/* Around calls of NCCL that make one collective. begin: ECOMM after a failure; else the mutex is held until end, which
 * takes the result of the calls, waits until NCCL has put all of it on the stream, and its number behind it. */
fp8flow_status f8_nccl_begin(f8_nccl_watch *w, const char *name);
fp8flow_status f8_nccl_end(f8_nccl_watch *w, ncclResult_t result, void *stream);

/* ECOMM once this rank or another one has failed. */
fp8flow_status f8_nccl_check(f8_nccl_watch *w);

#endif
