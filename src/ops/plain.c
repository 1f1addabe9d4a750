/* plain.c - see plain.h. The messages name the operator, the argument, what it is and what it should be. */
#include "ops/plain.h"

fp8flow_status f8_plain_check(const char *op, const char *name, const fp8flow_tensor *t, unsigned accepted)
{
    static const char *const expected[] = { "?", "f32", "bf16", "f32 or bf16" };
    F8_TRY(f8_tensor_check(op, name, t));
    F8_REQUIRE(accepted >> t->dtype & 1, EINVAL, "%s: %s is %s, expected %s", op, name, f8_dtype_name(t->dtype),
               expected[accepted & 3]);
    F8_REQUIRE(t->layout == FP8FLOW_ROWS, EINVAL, "%s: %s has the %s layout, expected rows", op, name,
               f8_layout_name(t->layout));
    return FP8FLOW_OK;
}

fp8flow_status f8_plain_check_like(const char *op, const char *name, const fp8flow_tensor *t, unsigned accepted,
                                   const char *like_name, const fp8flow_tensor *like)
{
    F8_TRY(f8_plain_check(op, name, t, accepted));
    F8_REQUIRE(t->rows == like->rows && t->cols == like->cols, ESHAPE, "%s: %s is [%lld, %lld], %s is [%lld, %lld]", op,
               name, (long long)t->rows, (long long)t->cols, like_name, (long long)like->rows, (long long)like->cols);
    return FP8FLOW_OK;
}
