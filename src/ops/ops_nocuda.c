/* ops_nocuda.c - what stands for ops_cuda.c in a build without CUDA. */
#include "ops/ops.h"

const f8_ops *f8_ops_cuda(void)
{
    return NULL;
}
