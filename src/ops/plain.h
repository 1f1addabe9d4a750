/* plain.h - unscaled row-form matrices: the contract checks and row pointers of the operators that work on
 * nothing else (norms, vocabulary, add, rope, router). Implementations may assume what f8_plain_check found. */
#ifndef F8_OPS_PLAIN_H
#define F8_OPS_PLAIN_H

#include "ops/ops.h"

/* Which dtypes an argument accepts; may be combined with |. */
enum { F8_ACCEPT_F32 = 1 << FP8FLOW_F32, F8_ACCEPT_BF16 = 1 << FP8FLOW_BF16 };

/* `t` is a sound view in row form whose dtype is one of the accepted ones. */
fp8flow_status f8_plain_check(const char *op, const char *name, const fp8flow_tensor *t, unsigned accepted);

/* The same, and `t` has the shape of `like`, which is called `like_name`. */
fp8flow_status f8_plain_check_like(const char *op, const char *name, const fp8flow_tensor *t, unsigned accepted,
                                   const char *like_name, const fp8flow_tensor *like);

static inline float *f8_f32_row(const fp8flow_tensor *t, int64_t row)
{
    return (float *)t->data + row * t->stride;
}

static inline uint16_t *f8_bf16_row(const fp8flow_tensor *t, int64_t row)
{
    return (uint16_t *)t->data + row * t->stride;
}

/* Element of a plain matrix from an FP32 value, rounded to the matrix's dtype. Twin of f8_value. */
static inline void f8_plain_store(const fp8flow_tensor *t, int64_t row, int64_t col, float value)
{
    if (t->dtype == FP8FLOW_F32) f8_f32_row(t, row)[col] = value;
    else f8_bf16_row(t, row)[col] = f8_bf16_encode(value);
}

#endif
