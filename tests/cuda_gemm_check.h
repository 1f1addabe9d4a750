/* cuda_gemm_check.h - what cuda_gemm.c and cuda_gemm_dense.c share: what c is made of before a product, where it is
 * looked at, and how far from the FP64 sum it may be.
 */
#ifndef F8_TESTS_CUDA_GEMM_CHECK_H
#define F8_TESTS_CUDA_GEMM_CHECK_H

#include "cuda_support.h"

#include "ops/gemm.h"
#include "ops/gemm_config.h"

enum { POISON = 0xFF };           /* bytes of c before the product, unless */
static const float before = 2.0f; /* products are added to it */

/* sum: FP64 of an element of c, with what was there before; magnitude: of its products. */
typedef struct {
    double sum, magnitude;
} exact_sum;

static inline void add_product(exact_sum *x, double a, double b)
{
    x->sum += a * b;
    x->magnitude += fabs(a * b);
}

/* Error in units of what is allowed; integers have no error, and Inf and NaN must be the same. */
static inline double error_of(exact_sum x, double seen, fp8flow_dtype c_dtype, data_kind data)
{
    if (data == DATA_SMALL_INTEGERS || !isfinite(x.magnitude)) {
        float expected = (float)x.sum;
        if (c_dtype == FP8FLOW_BF16) expected = f8_bf16_decode(f8_bf16_encode(expected));
        return seen == (double)expected || (isnan(seen) && isnan(expected)) ? 0 : INFINITY;
    }
    double bound = (has_gpu() ? F8_GEMM_BOUND_C : F8_GEMM_CPU_BOUND_C) * 0x1p-13 * x.magnitude;
    bound += (fabs(x.sum) + bound) * (c_dtype == FP8FLOW_BF16 ? 0x1p-8 : 0x1p-23);
    return seen == x.sum ? 0 : fabs(seen - x.sum) / bound;
}

typedef struct {
    int64_t row, col;
} element;

/* A quarter of the samples in the first or last row, a quarter in the first or last column. */
static inline element sample_of(uint64_t series, int64_t sample, int64_t rows, int64_t cols)
{
    uint64_t bits = f8_random(9, series, (uint64_t)sample);
    element e = { (int64_t)(bits % (uint64_t)rows), (int64_t)((bits >> 32) % (uint64_t)cols) };
    if (sample % 4 == 0) e.row = sample % 8 == 0 ? 0 : rows - 1;
    if (sample % 4 == 1 || sample < 16) e.col = sample % 8 < 4 ? 0 : cols - 1;
    return e;
}

#endif
