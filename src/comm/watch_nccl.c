/* watch_nccl.c - see watch_nccl.h. */
#include "comm/watch_nccl.h"

#include <cuda_runtime_api.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

/* Once woken, a kernel of NCCL needs microseconds to start; polls without sleep before those with. */
enum { LOOK_MS = 10, PATIENCE_MS = 2000, QUICK_POLLS = 1000, POLL_NS = 50000, DEFAULT_TIMEOUT = 60 };

static void sleep_ns(long nanoseconds)
{
    struct timespec time = { 0, nanoseconds };
    (void)nanosleep(&time, NULL);
}

static uint32_t last_finished(const f8_nccl_watch *w)
{
    return __atomic_load_n(w->finished, __ATOMIC_ACQUIRE);
}

/* ---- Failure ---- */

/* With the mutex held. The first failure counts. */
static void fail(f8_nccl_watch *w, const char *message)
{
    if (w->state != F8_NCCL_WORKING) return;
    (void)snprintf(w->message, sizeof w->message, "%s", message);
    w->state = F8_NCCL_FAILED;
    (void)pthread_cond_signal(&w->wake);
}

static void fail_by(f8_nccl_watch *w, ncclResult_t result)
{
    char text[F8_NCCL_MESSAGE_BYTES];
    const char *detail = w->library->GetLastError(w->nccl);
    (void)snprintf(text, sizeof text, "nccl: %s: %s%s%s", w->name[w->begun % F8_NCCL_NAMES],
                   w->library->GetErrorString(result), detail && *detail ? ": " : "", detail ? detail : "");
    fail(w, text);
}

/* For host communicators that only the program's thread may use (MPI): what the first communicator of this process to
 * fail has to say. Others learn it here; other processes when this one, failing, leaves them. */
static struct {
    pthread_mutex_t mutex;
    char message[F8_NCCL_MESSAGE_BYTES];
} process = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static fp8flow_status check_host(const f8_nccl_watch *w)
{
    if (w->host->ops->check) return w->host->ops->check(w->host);
    pthread_mutex_lock(&process.mutex);
    fp8flow_status status = *process.message ? F8_FAIL(ECOMM, "%s", process.message) : FP8FLOW_OK;
    pthread_mutex_unlock(&process.mutex);
    return status;
}

static void tell_host(const f8_nccl_watch *w)
{
    if (check_host(w) != FP8FLOW_OK) return;
    if (w->host->ops->check) {
        w->host->ops->abort(w->host, w->message);
        return;
    }
    pthread_mutex_lock(&process.mutex);
    (void)snprintf(process.message, sizeof process.message, "%s", w->message);
    pthread_mutex_unlock(&process.mutex);
}

/* The message of the host communicator comes first: it names the rank that was the cause. */
fp8flow_status f8_nccl_check(f8_nccl_watch *w)
{
    F8_TRY(check_host(w));
    pthread_mutex_lock(&w->mutex);
    f8_nccl_state state = w->state;
    pthread_mutex_unlock(&w->mutex);
    if (state == F8_NCCL_WORKING) return FP8FLOW_OK;
    return F8_FAIL(ECOMM, "%s", w->message);
}

/* ---- The thread ---- */

typedef struct {
    uint32_t finished;
    double since; /* when there was nothing to wait for, or a call was found done */
} progress;

static void look_at_time(f8_nccl_watch *w, progress *p)
{
    uint32_t finished = last_finished(w);
    double now = f8_seconds_now();
    if (finished == w->begun || finished != p->finished) *p = (progress){ finished, now };
    double timeout = w->host->timeout > 0 ? w->host->timeout : DEFAULT_TIMEOUT;
    if (now - p->since <= timeout) return;
    char text[F8_NCCL_MESSAGE_BYTES];
    (void)snprintf(text, sizeof text, "nccl: %s (call %u) is not done after %g s: another rank did not come",
                   w->name[(finished + 1) % F8_NCCL_NAMES], finished + 1, timeout);
    fail(w, text);
}

/* With the mutex held. */
static void look(f8_nccl_watch *w, progress *p)
{
    ncclResult_t seen = ncclSuccess;
    if (check_host(w) != FP8FLOW_OK) fail(w, fp8flow_last_error());
    if (w->nccl && w->library->CommGetAsyncError(w->nccl, &seen) != ncclSuccess) seen = ncclInternalError;
    if (seen != ncclSuccess && seen != ncclInProgress) fail_by(w, seen);
    look_at_time(w, p);
}

static void wait_a_moment(f8_nccl_watch *w)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += LOOK_MS * 1000000L;
    if (until.tv_nsec >= 1000000000L) until.tv_sec++, until.tv_nsec -= 1000000000L;
    (void)pthread_cond_timedwait(&w->wake, &w->mutex, &until);
}

static void *watch(void *argument)
{
    f8_nccl_watch *w = argument;
    progress p = { 0, f8_seconds_now() };
    (void)cudaSetDevice(w->gpu);
    pthread_mutex_lock(&w->mutex);
    while (w->state == F8_NCCL_WORKING) {
        wait_a_moment(w);
        if (w->state == F8_NCCL_WORKING) look(w, &p);
    }
    f8_nccl_state state = w->state;
    ncclComm_t nccl = w->nccl;
    if (state != F8_NCCL_CLOSING) w->nccl = NULL;
    pthread_mutex_unlock(&w->mutex);
    /* First: the others must not wait for this rank, nor must its next collective succeed once it is woken. */
    if (state == F8_NCCL_FAILED) tell_host(w);
    if (state != F8_NCCL_CLOSING && nccl) (void)w->library->CommAbort(nccl);
    return NULL;
}

/* ---- Calls ---- */

fp8flow_status f8_nccl_begin(f8_nccl_watch *w, const char *name)
{
    pthread_mutex_lock(&w->mutex);
    if (w->state != F8_NCCL_WORKING) {
        pthread_mutex_unlock(&w->mutex);
        return f8_nccl_check(w);
    }
    w->name[++w->begun % F8_NCCL_NAMES] = name;
    return FP8FLOW_OK;
}

/* Wait for NCCL's own threads, which connect to the other ranks at first, and which put work on the stream. */
static fp8flow_status await(f8_nccl_watch *w, ncclResult_t result)
{
    for (int polls = 0; result == ncclInProgress; polls++) {
        if (polls < QUICK_POLLS) (void)sched_yield();
        else sleep_ns(POLL_NS);
        pthread_mutex_lock(&w->mutex);
        ncclResult_t asked = ncclRemoteError;
        if (w->state == F8_NCCL_WORKING) asked = w->library->CommGetAsyncError(w->nccl, &result);
        pthread_mutex_unlock(&w->mutex);
        if (asked != ncclSuccess) result = asked;
    }
    if (result == ncclSuccess) return FP8FLOW_OK;
    pthread_mutex_lock(&w->mutex);
    fail_by(w, result);
    pthread_mutex_unlock(&w->mutex);
    return f8_nccl_check(w);
}

static fp8flow_status find_write_value(f8_nccl_watch *w)
{
    void *function = NULL;
    enum cudaDriverEntryPointQueryResult found;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuStreamWriteValue32", &function, 12000, cudaEnableDefault, &found);
    F8_REQUIRE(error == cudaSuccess && function, ENOSYS, "nccl: cuda: the driver has no cuStreamWriteValue32");
    memcpy(&w->write_value, &function, sizeof function);
    return FP8FLOW_OK;
}

fp8flow_status f8_nccl_end(f8_nccl_watch *w, ncclResult_t result, void *stream)
{
    uint32_t number = w->begun;
    pthread_mutex_unlock(&w->mutex);
    F8_TRY(await(w, result));
    CUresult error = w->write_value(stream, w->finished_gpu, number, CU_STREAM_WRITE_VALUE_DEFAULT);
    F8_REQUIRE(error == CUDA_SUCCESS, EBACKEND, "nccl: cuda: write of a number: error %d", (int)error);
    return FP8FLOW_OK;
}

/* ---- Life ---- */

static fp8flow_status draw_number(f8_nccl_watch *w)
{
    void *host = NULL, *gpu = NULL;
    cudaError_t error = cudaHostAlloc(&host, sizeof *w->finished, cudaHostAllocMapped | cudaHostAllocPortable);
    if (error == cudaSuccess) error = cudaHostGetDevicePointer(&gpu, host, 0);
    if (error != cudaSuccess) {
        (void)cudaFreeHost(host);
        (void)cudaGetLastError();
        return F8_FAIL(EBACKEND, "nccl: cuda: host memory: %s", cudaGetErrorString(error));
    }
    w->finished = host;
    *w->finished = 0;
    w->finished_gpu = (unsigned long long)(uintptr_t)gpu;
    return FP8FLOW_OK;
}

static void drop(f8_nccl_watch *w)
{
    (void)pthread_cond_destroy(&w->wake);
    (void)pthread_mutex_destroy(&w->mutex);
    (void)cudaFreeHost(w->finished);
}

fp8flow_status f8_nccl_watch_start(f8_nccl_watch *w, fp8flow_comm *host, const f8_nccl_library *library)
{
    pthread_condattr_t attributes;
    *w = (f8_nccl_watch){ .host = host, .library = library };
    F8_REQUIRE(cudaGetDevice(&w->gpu) == cudaSuccess, EBACKEND, "nccl: cuda: this thread has no device");
    F8_TRY(find_write_value(w));
    F8_TRY(draw_number(w));
    (void)pthread_mutex_init(&w->mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&w->wake, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    if (pthread_create(&w->thread, NULL, watch, w) == 0) return FP8FLOW_OK;
    drop(w);
    return F8_FAIL(ENOMEM, "nccl: the system refused another thread");
}

/* Calls that all ranks have made end by themselves. */
static f8_nccl_state close_after_calls(f8_nccl_watch *w)
{
    for (int waited = 0; waited < PATIENCE_MS && last_finished(w) != w->begun; waited += LOOK_MS) {
        pthread_mutex_lock(&w->mutex);
        f8_nccl_state state = w->state;
        pthread_mutex_unlock(&w->mutex);
        if (state != F8_NCCL_WORKING) return state;
        sleep_ns(LOOK_MS * 1000000L);
    }
    return last_finished(w) == w->begun ? F8_NCCL_CLOSING : F8_NCCL_LEAVING;
}

void f8_nccl_watch_stop(f8_nccl_watch *w)
{
    f8_nccl_state state = close_after_calls(w);
    pthread_mutex_lock(&w->mutex);
    if (w->state == F8_NCCL_WORKING) w->state = state;
    (void)pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mutex);
    (void)pthread_join(w->thread, NULL);
    if (w->nccl) (void)w->library->CommDestroy(w->nccl);
    drop(w);
}
