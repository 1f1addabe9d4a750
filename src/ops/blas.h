/* blas.h - OpenBLAS called from inside our own loops: each call runs on the thread that makes it.
 *
 * Operators share work between threads themselves, in pieces that do not depend on the number of threads.
 * A BLAS that started threads of its own would oversubscribe the machine and cut the pieces again, by its
 * own number of threads: other bits. blas.c says how each flavour of OpenBLAS is kept from it.
 */
#ifndef F8_OPS_BLAS_H
#define F8_OPS_BLAS_H

#include <cblas.h>

#include "base/tensor.h"

/* Bracket every operator that calls sgemm, on the thread that calls the operator, outside parallel regions.
 * f8_blas_leave takes what f8_blas_enter returned. */
int f8_blas_enter(void);
void f8_blas_leave(int entered);

/* Work of an item for f8_threads_for: every item is worth a thread. */
enum { F8_BLAS_ITEM_WORK = 1 << 20 };

/* A row-major FP32 matrix in memory, and how sgemm has to read it. */
typedef struct {
    const float *data;
    int stride;
    CBLAS_TRANSPOSE transpose;
} f8_blas_matrix;

/* c[m, n] = beta * c + alpha * a[m, k] b[k, n], after the transpositions. beta = 0 does not read c. */
typedef struct {
    int m, n, k;
    float alpha, beta;
} f8_blas_shape;

void f8_blas_sgemm(f8_blas_shape s, f8_blas_matrix a, f8_blas_matrix b, float *c, int stride);

/* "OpenBLAS 0.3.21, openmp, SkylakeX kernels". */
const char *f8_blas_description(void);

/* Value of OPENBLAS_CORETYPE that would give this processor the kernels it deserves, or NULL. OpenBLAS takes the
 * kernels of a Prescott for processors newer than itself (0.3.21 on Emerald Rapids): a quarter of the speed. */
const char *f8_blas_better_core(void);

#endif
