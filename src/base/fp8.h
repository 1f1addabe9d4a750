/* fp8.h - the codes: E4M3, E5M2, BF16, E8M0 scales, and the shared exponential.
 *
 * This text is the specification (docs/FORMATS.md explains it). It is compiled by C and by CUDA C and
 * must give the same bits on both: integer arithmetic, explicit fused multiply-adds, no contraction,
 * no fast-math, round to nearest even.
 */
#ifndef F8_BASE_FP8_H
#define F8_BASE_FP8_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "fp8flow_ops.h"

#if defined(__CUDACC__)
#define F8_INLINE static inline __host__ __device__
#else
#define F8_INLINE static inline
#endif

F8_INLINE uint32_t f8_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

F8_INLINE float f8_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

F8_INLINE int f8_is_finite(float x)
{
    return (f8_bits(x) & 0x7F800000u) != 0x7F800000u;
}

/* ---- BF16 ---- */

F8_INLINE float f8_bf16_decode(uint16_t code)
{
    return f8_from_bits((uint32_t)code << 16);
}

/* Round to nearest even; NaN stays a (quiet) NaN, values above the range become Inf as in IEEE. */
F8_INLINE uint16_t f8_bf16_encode(float x)
{
    uint32_t u = f8_bits(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

/* ---- FP8 ---- */

/* What distinguishes the two FP8 formats. */
typedef struct {
    int mantissa_bits; /* 3, 2 */
    int bias;          /* 7, 15 */
    uint32_t max_code; /* 0x7E, 0x7B */
    float max;         /* 448, 57344: 1.75 * 2^max_exponent for both */
    int max_exponent;  /* 8, 15 */
} f8_format;

F8_INLINE f8_format f8_format_of(fp8flow_dtype dtype)
{
    f8_format e4m3 = { 3, 7, 0x7Eu, 448.0f, 8 };
    f8_format e5m2 = { 2, 15, 0x7Bu, 57344.0f, 15 };
    return dtype == FP8FLOW_E5M2 ? e5m2 : e4m3;
}

/* RNE, saturating; NaN gives 0x7F; -0 stays -0; subnormals are kept. */
F8_INLINE uint8_t f8_encode(float x, fp8flow_dtype dtype)
{
    f8_format f = f8_format_of(dtype);
    uint32_t u = f8_bits(x), sign = (u >> 24) & 0x80u, a = u & 0x7FFFFFFFu, code;
    if (a > 0x7F800000u) return 0x7F;
    if (a < (uint32_t)(128 - f.bias) << 23) {
        /* Below the smallest normal 2^(1-bias): adding 2^(1-bias-mantissa+23) rounds to the code grid. */
        uint32_t magic = (uint32_t)(127 + 24 - f.bias - f.mantissa_bits) << 23;
        code = f8_bits(f8_from_bits(a) + f8_from_bits(magic)) - magic;
    } else {
        int drop = 23 - f.mantissa_bits;
        uint32_t rounded = a + (1u << (drop - 1)) - 1u + ((a >> drop) & 1u);
        code = (rounded >> drop) - ((uint32_t)(127 - f.bias) << f.mantissa_bits);
        if (code > f.max_code) code = f.max_code;
    }
    return (uint8_t)(sign | code);
}

F8_INLINE float f8_decode(uint8_t code, fp8flow_dtype dtype)
{
    f8_format f = f8_format_of(dtype);
    uint32_t sign = (uint32_t)(code & 0x80u) << 24, a = code & 0x7Fu;
    if (dtype == FP8FLOW_E4M3 ? a == 0x7Fu : a >= 0x7Cu) {
        int infinite = dtype == FP8FLOW_E5M2 && a == 0x7Cu;
        return f8_from_bits(sign | (infinite ? 0x7F800000u : 0x7FC00000u));
    }
    if ((a >> f.mantissa_bits) == 0) {
        float ulp = f8_from_bits((uint32_t)(128 - f.bias - f.mantissa_bits) << 23);
        return f8_from_bits(sign | f8_bits((float)a * ulp));
    }
    return f8_from_bits(sign | ((a << (23 - f.mantissa_bits)) + ((uint32_t)(127 - f.bias) << 23)));
}

/* ---- E8M0 scales: one byte e, value 2^(e - 127), e in [1, 254] ---- */

F8_INLINE float f8_scale_decode(uint8_t e)
{
    return f8_from_bits((uint32_t)e << 23);
}

/* 1 / scale, exact: bytes 1..253 give normal numbers, 254 the subnormal 2^-127. */
F8_INLINE float f8_scale_inverse(uint8_t e)
{
    return e == 254 ? f8_from_bits(0x00400000u) : f8_from_bits((254u - e) << 23);
}

/* Biased exponent that the scale rule gives to a normal magnitude with these bits, before the clamp. */
F8_INLINE int f8_scale_exponent(uint32_t amax, fp8flow_dtype dtype)
{
    return (int)(amax >> 23) - f8_format_of(dtype).max_exponent + ((amax & 0x7FFFFFu) > 0x600000u);
}

/* Scale byte of a block whose largest finite magnitude has the bits `amax` (sign cleared). */
F8_INLINE uint8_t f8_scale_byte(uint32_t amax, fp8flow_dtype dtype)
{
    if (amax == 0) return 1;
    int e = f8_scale_exponent(amax, dtype);
    return (uint8_t)(e < 1 ? 1 : e > 254 ? 254 : e);
}

/* Magnitude bits that count for the scale of a block: 0 for NaN and Inf. */
F8_INLINE uint32_t f8_finite_magnitude(float x)
{
    uint32_t a = f8_bits(x) & 0x7FFFFFFFu;
    return a < 0x7F800000u ? a : 0;
}

/* TENSOR scale: max(fl(amax / max), 2^-126). */
F8_INLINE float f8_tensor_scale(uint32_t amax, fp8flow_dtype dtype)
{
    float s = f8_from_bits(amax) / f8_format_of(dtype).max;
    float smallest = f8_from_bits(0x00800000u);
    return s > smallest ? s : smallest;
}

/* RNE(value(code) * 2^-d), any d; NaN stays NaN, Inf (E5M2) stays Inf, d = 0 keeps the byte. */
F8_INLINE uint8_t f8_shift(uint8_t code, int d, fp8flow_dtype dtype)
{
    if (d == 0) return code;
    float value = f8_decode(code, dtype);
    if (!f8_is_finite(value)) return code;
    int limited = d > 100 ? 100 : d < -100 ? -100 : d;
    return f8_encode(value * f8_from_bits((uint32_t)(127 - limited) << 23), dtype);
}

/* ---- Shared arithmetic of class E ---- */

/* exp(x), about 1 ulp, the same bits on every backend. x is limited to [-87.3, 88.7]; NaN gives NaN. */
F8_INLINE float f8_expf(float x)
{
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.7f ? 88.7f : x;
    float shifted = fmaf(x, 1.44269504f, 12582912.0f); /* 1.5 * 2^23: rounds to an integer */
    float n = shifted - 12582912.0f;
    float r = fmaf(n, -0.693145752f, x);
    r = fmaf(n, -1.42860677e-6f, r);
    float p = 1.98756924e-4f;
    p = fmaf(p, r, 1.39819994e-3f);
    p = fmaf(p, r, 8.33345205e-3f);
    p = fmaf(p, r, 4.16657962e-2f);
    p = fmaf(p, r, 1.66666657e-1f);
    p = fmaf(p, r, 5.00000000e-1f);
    p = fmaf(p, r * r, r);
    p = p + 1.0f;
    /* 2^n in two exact factors, so that n = 128 does not overflow before the product does. */
    uint32_t i = f8_bits(shifted) - 0x4B400000u; /* two's complement n */
    uint32_t half = (uint32_t)((int32_t)i >> 1);
    float scale1 = f8_from_bits((half + 127u) << 23);
    float scale2 = f8_from_bits((i - half + 127u) << 23);
    return (p * scale1) * scale2;
}

F8_INLINE float f8_sigmoid(float x)
{
    return 1.0f / (1.0f + f8_expf(-x));
}

/* Sum in the order of a 32-lane machine: lane l adds x[l], x[l+32], ... ascending from 0.0f; then lane l
 * adds lane l+16, l+8, l+4, l+2, l+1. Every backend can do this fast and with the same bits. */
F8_INLINE float f8_sum32(const float *x, int64_t count)
{
    float lane[32];
    for (int l = 0; l < 32; l++) lane[l] = 0.0f;
    for (int64_t i = 0; i < count; i++) lane[i % 32] += x[i];
    for (int width = 16; width > 0; width /= 2)
        for (int l = 0; l < width; l++) lane[l] += lane[l + width];
    return lane[0];
}

F8_INLINE int64_t f8_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

#endif
