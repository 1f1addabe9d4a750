/* sums.h - what CPU and CUDA share of clip. */
#ifndef F8_OPS_SUMS_H
#define F8_OPS_SUMS_H

#include "base/fp8.h"

/* Factor that brings a gradient of this norm down to `limit`; NaN where the norm is not finite. */
F8_INLINE float f8_clip_scale(double norm, double limit)
{
    if (!(norm - norm == 0.0)) return f8_from_bits(0x7FC00000u);
    return limit > 0.0 && norm > limit ? (float)(limit / norm) : 1.0f;
}

#endif
