/* ops_cpu.c - the reference table, and the CPU table: the reference with faster rows where the processor
 * has AVX2, FMA and F16C. */
#include "ops/ops.h"

const f8_ops f8_ops_reference = { "reference",
#define F8_X(op) f8_ref_##op,
                                  F8_OPS(F8_X)
#undef F8_X
};

#if defined(__x86_64__)

/* clang-format off */
/* Operators with an AVX2 implementation (<op>_avx2.c). */
#define F8_AVX2_OPS(X)                                                                         \
    X(router) X(add) X(rmsnorm) X(rmsnorm_backward) X(rope)                                    \
    X(embed_backward) X(cross_entropy) X(square_sum) X(adamw)
/* clang-format on */

#define F8_X(op) fp8flow_status f8_avx2_##op(fp8flow_context *c, const fp8flow_##op##_args *a);
F8_AVX2_OPS(F8_X)
#undef F8_X

#if defined(__clang__)
#pragma clang diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

static const f8_ops ops_avx2 = { .name = "avx2",
#define F8_X(op) .op = f8_ref_##op,
                                 F8_OPS(F8_X)
#undef F8_X
#define F8_X(op) .op = f8_avx2_##op,
                                     F8_AVX2_OPS(F8_X)
#undef F8_X
};

const f8_ops *f8_ops_cpu(void)
{
    int found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return found ? &ops_avx2 : &f8_ops_reference;
}

#else

const f8_ops *f8_ops_cpu(void)
{
    return &f8_ops_reference;
}

#endif
