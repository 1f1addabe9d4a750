/* gemm.h - the three grouped products as one: c[i, j] = sum over k of a(i, k) * b(j, k), per group.
 *
 * The outer indices i, j and the inner index k run along rows or columns of the stored tensors, depending on
 * the product. Shared by the reference and the BLAS path so that there is one place that knows.
 */
#ifndef F8_OPS_GEMM_H
#define F8_OPS_GEMM_H

#include "ops/ops.h"

/* |error| <= c * 2^-13 * sum|a*b| before the final rounding: c of the tensor cores, and of the CPU backends. FP8
 * tensor cores align the products of an instruction to the largest and cut off what lies below 13 bits of it; c = 2.0
 * has been seen, and 4 leaves a factor of two. FP32 arithmetic is far below 1. */
#define F8_GEMM_BOUND_C     4.0
#define F8_GEMM_CPU_BOUND_C 1.0

/* Where group g lies: first rows in the three tensors, and the extents of its product. */
typedef struct {
    int64_t group;
    int64_t a_row, b_row, c_row;
    int64_t num_i, num_j, num_k;
    int64_t padding; /* rows of c below row num_i that belong to the group */
} f8_gemm_group;

static inline f8_gemm_group f8_gemm_group_at(const fp8flow_gemm_args *x, const fp8flow_groups *groups, int64_t g)
{
    int64_t offset = groups->offset[g], rows = groups->rows[g], slots = groups->offset[g + 1] - offset;
    switch (x->product) {
    case FP8FLOW_FPROP:
        return (f8_gemm_group){ g, offset, g * x->c->cols, offset, rows, x->c->cols, x->a->cols, slots - rows };
    case FP8FLOW_DGRAD:
        return (f8_gemm_group){ g, offset, g * x->a->cols, offset, rows, x->c->cols, x->a->cols, slots - rows };
    default: return (f8_gemm_group){ g, offset, offset, g * x->a->cols, x->a->cols, x->b->cols, rows, 0 };
    }
}

/* Does the inner index run along the rows of a / of b? (Else along the columns.) */
static inline int f8_gemm_a_inner_is_row(fp8flow_product product)
{
    return product == FP8FLOW_WGRAD;
}

static inline int f8_gemm_b_inner_is_row(fp8flow_product product)
{
    return product != FP8FLOW_FPROP;
}

#endif
