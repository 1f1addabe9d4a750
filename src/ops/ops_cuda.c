/* ops_cuda.c - the CUDA table: complete by construction, so that an operator that is announced and not written does
 * not link. */
#include "ops/ops.h"

#define PRESENT(op) .op = f8_cuda_##op,

static const f8_ops ops_cuda = { .name = "cuda", F8_OPS(PRESENT) };

const f8_ops *f8_ops_cuda(void)
{
    return &ops_cuda;
}
