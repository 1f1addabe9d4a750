/* blas.c - keeps OpenBLAS on the calling thread, whichever flavour the soname resolves to.
 *
 *   serial   never starts a thread, but is not safe to call from several either (unless built with USE_LOCKING,
 *            which it cannot be asked): one call at a time. Slow, and right; the other flavours are for use.
 *   openmp   uses one thread inside a parallel region, but a team of one is not "parallel" to OpenMP: there it
 *            asks omp_get_max_threads(), an internal variable of the calling thread that teams inherit. Setting
 *            it to 1 around the operator covers teams of any size, and ranks that are threads each have their
 *            own. Our regions name their team size, so they are not affected.
 *   pthread  has one process-wide number of threads. The first operator to enter sets it to 1, the last one to
 *            leave restores it; a count keeps ranks that are threads from restoring it under each other.
 *
 * Without OpenMP (ThreadSanitizer builds) the functions are weak references: OpenBLAS's own runtime has them
 * exactly when the flavour is openmp.
 */
#include "ops/blas.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#if defined(_OPENMP)
#include <omp.h>
#else
int omp_get_max_threads(void) __attribute__((weak));
void omp_set_num_threads(int num_threads) __attribute__((weak));
#endif

/* pthread flavour: of the two numbers below. Serial flavour: held during every product. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int num_inside, threads_outside; /* pthread flavour */

static void enter_pthread_flavour(void)
{
    pthread_mutex_lock(&lock);
    if (num_inside++ == 0) {
        threads_outside = openblas_get_num_threads();
        openblas_set_num_threads(1);
    }
    pthread_mutex_unlock(&lock);
}

static void leave_pthread_flavour(void)
{
    pthread_mutex_lock(&lock);
    if (--num_inside == 0) openblas_set_num_threads(threads_outside);
    pthread_mutex_unlock(&lock);
}

int f8_blas_enter(void)
{
    int flavour = openblas_get_parallel(), max_threads = 0;
    if (flavour == OPENBLAS_OPENMP) {
        max_threads = omp_get_max_threads();
        omp_set_num_threads(1);
    } else if (flavour == OPENBLAS_THREAD) {
        enter_pthread_flavour();
    }
    return max_threads;
}

void f8_blas_leave(int entered)
{
    int flavour = openblas_get_parallel();
    if (flavour == OPENBLAS_OPENMP) omp_set_num_threads(entered);
    else if (flavour == OPENBLAS_THREAD) leave_pthread_flavour();
}

void f8_blas_sgemm(f8_blas_shape s, f8_blas_matrix a, f8_blas_matrix b, float *c, int stride)
{
    int serial = openblas_get_parallel() == OPENBLAS_SEQUENTIAL;
    if (serial) pthread_mutex_lock(&lock);
    cblas_sgemm(CblasRowMajor, a.transpose, b.transpose, s.m, s.n, s.k, s.alpha, a.data, a.stride, b.data, b.stride,
                s.beta, c, stride);
    if (serial) pthread_mutex_unlock(&lock);
}

const char *f8_blas_description(void)
{
    static _Thread_local char text[128];
    static const char *const flavours[] = { "serial", "pthread", "openmp" };
    int flavour = openblas_get_parallel();
    char version[32] = "";
    sscanf(openblas_get_config(), "OpenBLAS %31s", version);
    snprintf(text, sizeof text, "%s, %s, %s kernels", version, flavour >= 0 && flavour < 3 ? flavours[flavour] : "?",
             openblas_get_corename());
    return text;
}

const char *f8_blas_better_core(void)
{
#if defined(__x86_64__)
    static const char *const without_fma[] = { "Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Sandybridge" };
    const char *core = openblas_get_corename();
    int slow = 0;
    for (int i = 0; i < 6; i++) slow |= strcmp(core, without_fma[i]) == 0;
    if (slow && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) return "SkylakeX";
    if (slow && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
    return NULL;
}
