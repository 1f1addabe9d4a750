/* add.c - y = a + b. The one NaN of class E (nan.h) keeps the bytes equal on every backend. */
#include "ops/nan.h"
#include "ops/plain.h"

fp8flow_status fp8flow_add(fp8flow_context *c, const fp8flow_add_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "add: NULL context or arguments");
    F8_TRY(f8_plain_check("add", "a", a->a, F8_ACCEPT_F32 | F8_ACCEPT_BF16));
    F8_TRY(f8_plain_check_like("add", "b", a->b, F8_ACCEPT_F32 | F8_ACCEPT_BF16, "a", a->a));
    F8_TRY(f8_plain_check_like("add", "y", a->y, F8_ACCEPT_F32 | F8_ACCEPT_BF16, "a", a->a));
    return F8_RUN(c, add, a);
}

fp8flow_status f8_ref_add(fp8flow_context *c, const fp8flow_add_args *a)
{
    (void)c;
    for (int64_t row = 0; row < a->y->rows; row++)
        for (int64_t col = 0; col < a->y->cols; col++) {
            float sum = f8_value(a->a, row, col, 0) + f8_value(a->b, row, col, 0);
            f8_plain_store(a->y, row, col, f8_canonical(sum));
        }
    return FP8FLOW_OK;
}
