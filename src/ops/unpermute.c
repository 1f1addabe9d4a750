/* unpermute.c - sum the rows of each token. The order of the sum is the ascending row order, whatever the
 * order of the token's slots: rows ascend with the expert, so the sum does not depend on the router's choice
 * order. */
#include "ops/nan.h"
#include "ops/plan.h"

static fp8flow_status check_bf16(const char *name, const fp8flow_tensor *t)
{
    F8_TRY(f8_tensor_check("unpermute", name, t));
    F8_REQUIRE(t->dtype == FP8FLOW_BF16 && t->layout == FP8FLOW_ROWS, EINVAL,
               "unpermute: %s is %s in %s, expected bf16 rows", name, f8_dtype_name(t->dtype),
               f8_layout_name(t->layout));
    F8_REQUIRE(t->group_rows == 0, ESHAPE, "unpermute: %s has %lld rows per expert, expected an activation", name,
               (long long)t->group_rows);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_unpermute(fp8flow_context *c, const fp8flow_unpermute_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "unpermute: NULL context or arguments");
    F8_TRY(f8_plan_check("unpermute", a->plan));
    F8_TRY(check_bf16("x", a->x));
    F8_TRY(check_bf16("y", a->y));
    F8_TRY(f8_plan_fits(c, "unpermute", "x", a->plan, a->x->rows));
    F8_REQUIRE(a->y->rows == a->plan->num_tokens, ESHAPE, "unpermute: y has %lld rows, plan has %lld tokens",
               (long long)a->y->rows, (long long)a->plan->num_tokens);
    F8_REQUIRE(a->x->cols == a->y->cols, ESHAPE, "unpermute: x has %lld columns, y has %lld", (long long)a->x->cols,
               (long long)a->y->cols);
    F8_REQUIRE(!a->gate_rows == !a->gate, EINVAL, "unpermute: gate_rows and gate go together, %s is NULL",
               a->gate ? "gate_rows" : "gate");
    enum { MAX_TOP_K = F8_SCRATCH_BYTES / 4 };
    F8_REQUIRE(a->plan->top_k <= MAX_TOP_K, ESHAPE, "unpermute: top %lld, at most %d is possible",
               (long long)a->plan->top_k, MAX_TOP_K);
    return F8_RUN(c, unpermute, a);
}

/* The smallest row of a token that is greater than `row`, or -1. Absent slots (-1) are never greater. */
static int32_t next_row(const int32_t *slots, int64_t top_k, int32_t row)
{
    int32_t next = -1;
    for (int64_t slot = 0; slot < top_k; slot++)
        if (slots[slot] > row && (next < 0 || slots[slot] < next)) next = slots[slot];
    return next;
}

fp8flow_status f8_ref_unpermute(fp8flow_context *c, const fp8flow_unpermute_args *a)
{
    (void)c;
    uint16_t *y = a->y->data;
    int64_t top_k = a->plan->top_k;
    for (int64_t token = 0; token < a->y->rows; token++) {
        const int32_t *slots = a->plan->row_of + token * top_k;
        int32_t first = next_row(slots, top_k, -1);
        for (int64_t col = 0; col < a->y->cols; col++) {
            float sum = first < 0 ? 0.0f : f8_value(a->x, first, col, 0);
            for (int32_t row = first; row >= 0 && (row = next_row(slots, top_k, row)) >= 0;)
                sum += f8_value(a->x, row, col, 0);
            y[f8_element(a->y, token, col)] = f8_bf16_encode(f8_canonical(sum));
        }
        for (int64_t slot = 0; a->gate && slot < top_k; slot++)
            a->gate[token * top_k + slot] = slots[slot] < 0 ? 0.0f : a->gate_rows[slots[slot]];
    }
    return FP8FLOW_OK;
}
