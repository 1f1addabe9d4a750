/* attention_cuda.h - the kernels of attention on the CUDA backend, between attention.cu, attention_backward.cu and
 * attention_any.cu. Included by CUDA C++ only. */
#ifndef F8_OPS_ATTENTION_CUDA_H
#define F8_OPS_ATTENTION_CUDA_H

#include "ops/attention.h"

#if defined(__cplusplus)
extern "C" {
#endif

/* What the backward kernels know of a query beside its vectors, for sequence b, head j and query s at
 * (b * num_heads + j) * length + s: lse as given, and delta = grad_o . o. */
typedef struct {
    float *lse, *delta;
    int64_t length; /* of a sequence, rounded up */
} f8_attention_states;

/* Every shape, stride and alignment. The states are made. */
fp8flow_status f8_cuda_attention_any(fp8flow_context *c, const fp8flow_attention_args *a);
fp8flow_status f8_cuda_attention_backward_any(fp8flow_context *c, const fp8flow_attention_backward_args *a,
                                              const f8_attention_states *states);

#if defined(__cplusplus)
}
#endif

#endif
