/* ops_cuda.c - the CUDA table: complete by construction, so that an operator that is announced and not written does
 * not link. Attention has no kernels yet and says so. */
#include "ops/ops.h"

/* clang-format off */
#define F8_CUDA_OPS(X)                                                                         \
    X(quantize) X(dequantize) X(transpose)                                                     \
    X(permute_plan) X(permute) X(unpermute)                                                    \
    X(swiglu) X(swiglu_backward)                                                               \
    X(router) X(router_sum) X(router_loss) X(router_backward)                                  \
    X(router_bias_update) X(add_counts)                                                        \
    X(gemm) X(add) X(rmsnorm) X(rmsnorm_backward) X(rope)                                              \
    X(embed) X(embed_backward) X(cross_entropy)                                                \
    X(sum) X(square_sum) X(clip) X(adamw) X(measure)

#define F8_ABSENT_OPS(X) X(attention) X(attention_backward)
/* clang-format on */

#define F8_X(op)                                                                                \
    static fp8flow_status absent_##op(fp8flow_context *c, const fp8flow_##op##_args *a)         \
    {                                                                                           \
        (void)c;                                                                                \
        (void)a;                                                                                \
        return F8_FAIL(ENOSYS, "%s: this version has no CUDA kernel for it; use the CPU", #op); \
    }
F8_ABSENT_OPS(F8_X)
#undef F8_X

#define PRESENT(op) .op = f8_cuda_##op,
#define ABSENT(op)  .op = absent_##op,

static const f8_ops ops_cuda = { .name = "cuda", F8_CUDA_OPS(PRESENT) F8_ABSENT_OPS(ABSENT) };

const f8_ops *f8_ops_cuda(void)
{
    return &ops_cuda;
}
