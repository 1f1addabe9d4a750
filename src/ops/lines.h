/* lines.h - what the BLAS operators do to one line of numbers: decode, encode, exponentials, reductions.
 *
 * Two tables with the same meaning: plain C, and AVX2 (lines_avx2.c). Decoding, encoding and each exponential
 * give the same bits in both; sums add in another order (class R).
 */
#ifndef F8_OPS_LINES_H
#define F8_OPS_LINES_H

#include "base/fp8.h"

typedef struct {
    void (*decode_bf16)(float *out, const uint16_t *codes, int64_t count);
    /* code * scale, one rounding (none if scale is a power of two and the result is in range). */
    void (*decode_fp8)(float *out, const uint8_t *codes, int64_t count, fp8flow_dtype dtype, float scale);
    void (*encode_bf16)(uint16_t *out, const float *x, int64_t count);
    /* x = exp(x - shift); the sum of the results. */
    float (*exp)(float *x, int64_t count, float shift);
    /* Largest element, -Inf for none; NaN may be skipped. */
    float (*max)(const float *x, int64_t count);
    float (*dot)(const float *x, const float *y, int64_t count);
} f8_lines;

extern const f8_lines f8_lines_avx2; /* x86-64 only, on processors that have it */

/* The fastest table for this processor. */
const f8_lines *f8_lines_cpu(void);

#endif
