/* swiglu.h - what swiglu and swiglu_backward share: the formulas of one element, in the order that fixes
 * their bits, and the checks of their arguments. */
#ifndef F8_OPS_SWIGLU_H
#define F8_OPS_SWIGLU_H

#include "ops/block.h"
#include "ops/nan.h"
#include "ops/ops.h"

F8_INLINE float f8_swiglu_value(float a, float b, float w)
{
    return ((a * f8_sigmoid(a)) * b) * w;
}

typedef struct {
    float da, db, dw; /* dw: this element's part of the gate gradient */
} f8_swiglu_gradient;

F8_INLINE f8_swiglu_gradient f8_swiglu_gradient_of(float a, float b, float w, float g)
{
    float s = f8_sigmoid(a), z = a * s, gw = g * w;
    float slope = s * (1.0f + a * (1.0f - s));
    return (f8_swiglu_gradient){ (gw * b) * slope, gw * z, (z * b) * g };
}

/* Gate weight of a row; no gate means 1. */
static inline float f8_swiglu_gate(const float *gate, int64_t row)
{
    return gate ? gate[row] : 1.0f;
}

/* Element (row, col) of a BF16 matrix. */
static inline float f8_bf16_at(const fp8flow_tensor *t, int64_t row, int64_t col)
{
    return f8_bf16_decode(((const uint16_t *)t->data)[row * t->stride + col]);
}

/* Values v at a place of a [P, F] output. */
void f8_swiglu_tile(const fp8flow_tensor *h, const float *gate, f8_place p, f8_tile *tile);

/* Write a tile in y's format; NULL y is allowed: not wanted. */
void f8_swiglu_store(f8_place p, const f8_tile *tile, const fp8flow_tensor *y);

/* NaN and Inf among the values of a place. */
uint64_t f8_swiglu_nonfinite(f8_place p, const f8_tile *tile);

/* h is BF16 [P, 2F], and groups fit its rows; alignment 128 when a column form is written. */
fp8flow_status f8_swiglu_check_input(const fp8flow_context *c, const char *op, const fp8flow_tensor *h,
                                     const fp8flow_groups *groups, int64_t align);

/* BF16, F32 or ROW128 rows [h->rows, cols]; NULL y is allowed. */
fp8flow_status f8_swiglu_check_rows(const char *op, const fp8flow_tensor *y, const fp8flow_tensor *h, int64_t cols);

/* TILE128 or COL128 columns [h->rows, cols]; NULL y is allowed. */
fp8flow_status f8_swiglu_check_columns(const char *op, const char *name, const fp8flow_tensor *y,
                                       const fp8flow_tensor *h, int64_t cols);

#endif
