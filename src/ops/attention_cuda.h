/* attention_cuda.h - the kernels of attention on the CUDA backend, between attention.cu, attention_backward.cu and
 * attention_any.cu. Included by CUDA C++ only. */
#ifndef F8_OPS_ATTENTION_CUDA_H
#define F8_OPS_ATTENTION_CUDA_H

#include "ops/attention.h"

#if defined(__cplusplus)
extern "C" {
#endif

/* What the backward kernels know of a query beside its vectors, for sequence b, head j and query s at
 * (b * num_heads + j) * length + s: lse times log2(e), and delta = grad_o . o. Behind a sequence: +Inf and 0, so that
 * weights are 0 there. */
typedef struct {
    float *lse, *delta;
    int64_t length; /* of a sequence, rounded up to 128 */
} f8_attention_states;

/* Every shape, stride and alignment. The states are made. */
fp8flow_status f8_cuda_attention_any(fp8flow_context *c, const fp8flow_attention_args *a);
fp8flow_status f8_cuda_attention_backward_any(fp8flow_context *c, const fp8flow_attention_backward_args *a,
                                              const f8_attention_states *states);

#if defined(__cplusplus)
}
#endif

#endif
