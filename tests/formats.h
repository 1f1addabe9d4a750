/* formats.h - the outside oracle for FP32 to FP8: CUDA's host functions where cuda_fp8.h exists, else an exact
 * search that shares no code with base/fp8.h. Used by test_formats.c and long_formats.c. */
#ifndef F8_TESTS_FORMATS_H
#define F8_TESTS_FORMATS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "fp8flow_ops.h"

#if defined(__has_include)
#if __has_include(<cuda_fp8.h>)
#define F8_HAVE_CUDA_FP8 1
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wpedantic"
#include <cuda_fp8.h>
#pragma GCC diagnostic pop
#endif
#endif

/* Value of a finite magnitude code by the definition of the format; a NaN, an Inf: -1. */
static inline double oracle_value(int code, fp8flow_dtype dtype)
{
    int mantissa_bits = dtype == FP8FLOW_E4M3 ? 3 : 2, bias = dtype == FP8FLOW_E4M3 ? 7 : 15;
    int exponent = code >> mantissa_bits, mantissa = code & ((1 << mantissa_bits) - 1);
    if (dtype == FP8FLOW_E4M3 ? code == 0x7F : exponent == 31) return -1;
    double fraction = ldexp(mantissa, -mantissa_bits);
    return exponent == 0 ? ldexp(fraction, 1 - bias) : ldexp(1 + fraction, exponent - bias);
}

/* boundary[c]: bits of the largest FP32 magnitude that rounds to code c or below, ties to even. */
typedef struct {
    uint32_t boundary[128];
    int max_code;
} oracle_table;

static inline oracle_table oracle_make(fp8flow_dtype dtype)
{
    oracle_table t = { { 0 }, 0 };
    while (oracle_value(t.max_code + 1, dtype) >= 0) t.max_code++;
    for (int code = 0; code < t.max_code; code++) {
        float middle = (float)((oracle_value(code, dtype) + oracle_value(code + 1, dtype)) / 2); /* exact */
        memcpy(&t.boundary[code], &middle, sizeof middle);
        t.boundary[code] -= (uint32_t)code & 1u; /* the tie belongs to the even neighbour */
    }
    t.boundary[t.max_code] = 0x7F800000u; /* saturation, Inf */
    return t;
}

/* Code of the FP32 number with these bits, by binary search. NaN: 0x7F. */
static inline uint8_t oracle_search(uint32_t bits, const oracle_table *t)
{
    uint32_t a = bits & 0x7FFFFFFFu;
    if (a > 0x7F800000u) return 0x7F;
    int low = 0, high = t->max_code;
    while (low < high) {
        int middle = (low + high) / 2;
        if (a <= t->boundary[middle]) high = middle;
        else low = middle + 1;
    }
    return (uint8_t)((bits >> 24 & 0x80u) | (uint32_t)low);
}

/* The outside opinion on the code of the FP32 number with these bits; NaN is 0x7F. */
static inline uint8_t oracle_encode(uint32_t bits, fp8flow_dtype dtype, const oracle_table *t)
{
#if defined(F8_HAVE_CUDA_FP8)
    float x;
    memcpy(&x, &bits, sizeof x);
    (void)t;
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7F;
    return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, dtype == FP8FLOW_E4M3 ? __NV_E4M3 : __NV_E5M2);
#else
    (void)dtype;
    return oracle_search(bits, t);
#endif
}

#endif
