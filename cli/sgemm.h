/* sgemm.h - OpenBLAS products as yardstick for the library's grouped products.
 *
 * A grouped product is one sgemm per expert. OpenBLAS can spend its threads inside each product or we can give
 * whole experts to threads; which is faster depends on the shape, so both are timed and the faster one counts.
 */
#ifndef CLI_SGEMM_H
#define CLI_SGEMM_H

#include "fp8flow.h"

typedef struct {
    fp8flow_product product;
    int64_t experts, rows, n, k; /* rows of each expert; n, k as in fp8flow_gemm */
    float *a, *b, *c;            /* of all experts */
} sgemm_work;

/* Allocate and fill. 0, or -1 when memory is short. */
int sgemm_create(sgemm_work *work);
void sgemm_destroy(sgemm_work *work);
double sgemm_flops(const sgemm_work *work);

/* All products of works[0 .. count). */
void sgemm_run_threads_inside(const sgemm_work *works, int64_t count, int32_t num_threads);
void sgemm_run_threads_across(const sgemm_work *works, int64_t count, int32_t num_threads);

#endif
