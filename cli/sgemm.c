/* sgemm.c - see sgemm.h. The only file of the program that calls BLAS. */
#include "sgemm.h"

#include <cblas.h>
#include <stdlib.h>

#include "random.h"

static int64_t elements_a(const sgemm_work *w)
{
    return w->experts * w->rows * (w->product == FP8FLOW_FPROP ? w->k : w->n);
}

static int64_t elements_b(const sgemm_work *w)
{
    return w->experts * (w->product == FP8FLOW_WGRAD ? w->rows : w->n) * w->k;
}

static int64_t elements_c(const sgemm_work *w)
{
    if (w->product == FP8FLOW_WGRAD) return w->experts * w->n * w->k;
    return w->experts * w->rows * (w->product == FP8FLOW_FPROP ? w->n : w->k);
}

static float *random_array(int64_t count, uint64_t seed)
{
    random_source source = { seed };
    float *values = malloc(sizeof *values * (size_t)count);
    for (int64_t i = 0; values && i < count; i++) values[i] = random_normal(&source);
    return values;
}

int sgemm_create(sgemm_work *work)
{
    work->a = random_array(elements_a(work), 1);
    work->b = random_array(elements_b(work), 2);
    work->c = random_array(elements_c(work), 3);
    return work->a && work->b && work->c ? 0 : -1;
}

void sgemm_destroy(sgemm_work *work)
{
    free(work->a);
    free(work->b);
    free(work->c);
    work->a = work->b = work->c = NULL;
}

double sgemm_flops(const sgemm_work *w)
{
    return 2.0 * (double)w->experts * (double)w->rows * (double)w->n * (double)w->k;
}

static void multiply_expert(const sgemm_work *w, int64_t expert)
{
    blasint m = (blasint)w->rows, n = (blasint)w->n, k = (blasint)w->k;
    const float *a = w->a + elements_a(w) / w->experts * expert, *b = w->b + elements_b(w) / w->experts * expert;
    float *c = w->c + elements_c(w) / w->experts * expert;
    switch (w->product) {
    case FP8FLOW_FPROP:
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0f, a, k, b, k, 0.0f, c, n);
        break;
    case FP8FLOW_DGRAD:
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, k, n, 1.0f, a, n, b, k, 0.0f, c, k);
        break;
    case FP8FLOW_WGRAD:
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, k, m, 1.0f, a, n, b, k, 0.0f, c, k);
        break;
    }
}

void sgemm_run_threads_inside(const sgemm_work *works, int64_t count, int32_t num_threads)
{
    openblas_set_num_threads(num_threads);
    for (int64_t i = 0; i < count; i++)
        for (int64_t expert = 0; expert < works[i].experts; expert++) multiply_expert(&works[i], expert);
}

void sgemm_run_threads_across(const sgemm_work *works, int64_t count, int32_t num_threads)
{
    openblas_set_num_threads(1);
    for (int64_t i = 0; i < count; i++) {
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
        for (int64_t expert = 0; expert < works[i].experts; expert++) multiply_expert(&works[i], expert);
    }
    openblas_set_num_threads(num_threads);
}
