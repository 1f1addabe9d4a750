/* lines.c - plain C lines, and the choice of a table. */
#include "ops/lines.h"

#include "ops/ops.h"

static void plain_decode_bf16(float *out, const uint16_t *codes, int64_t count)
{
    for (int64_t i = 0; i < count; i++) out[i] = f8_bf16_decode(codes[i]);
}

static void plain_decode_fp8(float *out, const uint8_t *codes, int64_t count, fp8flow_dtype dtype, float scale)
{
    for (int64_t i = 0; i < count; i++) out[i] = f8_decode(codes[i], dtype) * scale;
}

static void plain_encode_bf16(uint16_t *out, const float *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) out[i] = f8_bf16_encode(x[i]);
}

static float plain_exp(float *x, int64_t count, float shift)
{
    float sum = 0.0f;
    for (int64_t i = 0; i < count; i++) sum += x[i] = f8_expf(x[i] - shift);
    return sum;
}

static float plain_max(const float *x, int64_t count)
{
    float max = -INFINITY;
    for (int64_t i = 0; i < count; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static float plain_dot(const float *x, const float *y, int64_t count)
{
    float sum = 0.0f;
    for (int64_t i = 0; i < count; i++) sum += x[i] * y[i];
    return sum;
}

static const f8_lines plain = {
    plain_decode_bf16, plain_decode_fp8, plain_encode_bf16, plain_exp, plain_max, plain_dot
};

const f8_lines *f8_lines_cpu(void)
{
#if defined(__x86_64__)
    if (f8_cpu_has_avx2()) return &f8_lines_avx2;
#endif
    return &plain;
}
