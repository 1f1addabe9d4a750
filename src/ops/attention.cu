/* attention.cu - CUDA side of attention. Contract: fp8flow_ops.h. CPU side: attention.c. */
#include "ops/attention_cuda.h"

extern "C" fp8flow_status f8_cuda_attention(fp8flow_context *c, const fp8flow_attention_args *a)
{
    return f8_cuda_attention_any(c, a);
}
