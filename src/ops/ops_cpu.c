/* ops_cpu.c - the reference table, and the CPU tables: the reference with OpenBLAS rows on every processor, and
 * with faster rows where it has AVX2, FMA and F16C. */
#include "ops/ops.h"

/* clang-format off */
/* Operators with an implementation on OpenBLAS (<op>_blas.c). */
#define F8_BLAS_OPS(X) X(gemm) X(attention) X(attention_backward)

/* Operators with an AVX2 implementation (<op>_avx2.c). */
#define F8_AVX2_OPS(X)                                                                         \
    X(quantize) X(dequantize) X(transpose)                                                     \
    X(permute) X(unpermute) X(swiglu) X(swiglu_backward)                                       \
    X(router) X(add) X(rmsnorm) X(rmsnorm_backward) X(rope)                                    \
    X(embed_backward) X(cross_entropy) X(sum) X(square_sum) X(adamw)

#define REFERENCE(op) .op = f8_ref_##op,
#define BLAS(op)      .op = f8_blas_##op,
#define AVX2(op)      .op = f8_avx2_##op,

#if defined(__clang__)
#pragma clang diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

const f8_ops f8_ops_reference = { .name = "reference", F8_OPS(REFERENCE) };

static const f8_ops ops_blas = { .name = "blas", F8_OPS(REFERENCE) F8_BLAS_OPS(BLAS) };

#if defined(__x86_64__)

static const f8_ops ops_avx2 = { .name = "avx2", F8_OPS(REFERENCE) F8_BLAS_OPS(BLAS) F8_AVX2_OPS(AVX2) };
/* clang-format on */

/* F16C came before AVX2, in every processor; clang 14 cannot ask for it. */
int f8_cpu_has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const f8_ops *f8_ops_cpu(void)
{
    return f8_cpu_has_avx2() ? &ops_avx2 : &ops_blas;
}

#else
/* clang-format on */

int f8_cpu_has_avx2(void)
{
    return 0;
}

const f8_ops *f8_ops_cpu(void)
{
    return &ops_blas;
}

#endif
