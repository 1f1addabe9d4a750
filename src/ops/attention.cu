/* attention.cu - CUDA side of attention. Contract: fp8flow_ops.h. CPU side: attention.c. */
#include "ops/attention_forward.cuh"

/* The tensor core kernel takes head sizes of whole parts, 16-byte pieces, and a scale that keeps the scores' order. */
static bool is_fast(const fp8flow_attention_args *a)
{
    const fp8flow_tensor *all[] = { a->q, a->k, a->v, a->o };
    for (const fp8flow_tensor *t : all)
        if (!f8_attention_fits(t, a->head_dim)) return false;
    return a->scale > 0 && a->k->rows < 1 << 30 && f8_ceil_div(a->q->rows, 64) * a->num_heads < 1 << 30;
}

extern "C" fp8flow_status f8_cuda_attention(fp8flow_context *c, const fp8flow_attention_args *a)
{
    if (a->q->rows == 0) return FP8FLOW_OK;
    if (!is_fast(a)) return f8_cuda_attention_any(c, a);
    if (a->head_dim <= 64) return f8_attention_launch<f8_attention_shape<64, 2, 6>>(c, a);
    return f8_attention_launch<f8_attention_shape<128, 2, 4>>(c, a);
}
