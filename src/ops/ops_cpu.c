/* ops_cpu.c - the reference table, and the CPU tables: the reference with OpenBLAS rows on every processor, and
 * with faster rows where it has AVX2, FMA and F16C. */
#include "ops/ops.h"

const f8_ops f8_ops_reference = { "reference",
#define F8_X(op) f8_ref_##op,
                                  F8_OPS(F8_X)
#undef F8_X
};

/* clang-format off */
/* Operators with an AVX2 implementation (<op>_avx2.c). */
#define F8_AVX2_OPS(X)
/* clang-format on */

#if defined(__clang__)
#pragma clang diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

static const f8_ops ops_blas = { .name = "blas",
#define F8_X(op) .op = f8_ref_##op,
                                 F8_OPS(F8_X)
#undef F8_X
#define F8_X(op) .op = f8_blas_##op,
                                     F8_BLAS_OPS(F8_X)
#undef F8_X
};

#if defined(__x86_64__)

#define F8_X(op) fp8flow_status f8_avx2_##op(fp8flow_context *c, const fp8flow_##op##_args *a);
F8_AVX2_OPS(F8_X)
#undef F8_X

static const f8_ops ops_avx2 = { .name = "avx2",
#define F8_X(op) .op = f8_ref_##op,
                                 F8_OPS(F8_X)
#undef F8_X
#define F8_X(op) .op = f8_blas_##op,
                                     F8_BLAS_OPS(F8_X)
#undef F8_X
#define F8_X(op) .op = f8_avx2_##op,
                                         F8_AVX2_OPS(F8_X)
#undef F8_X
};

const f8_ops *f8_ops_cpu(void)
{
    /* F16C is not asked for: no processor has AVX2 without it, and clang 14 does not know its name. */
    int found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return found ? &ops_avx2 : &ops_blas;
}

#else

const f8_ops *f8_ops_cpu(void)
{
    return &ops_blas;
}

#endif
