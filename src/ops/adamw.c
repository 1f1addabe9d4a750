/* adamw.c - the optimiser step. It works element by element: its results cannot depend on threads or on how parameters
 * are cut into calls. */
#include "ops/adamw.h"
#include "ops/block.h"

#include <math.h>

static fp8flow_status check_rates(const fp8flow_adamw_args *a)
{
    F8_REQUIRE(a->step >= 1, EINVAL, "adamw: step is %lld, the first step is 1", (long long)a->step);
    F8_REQUIRE(a->beta1 >= 0.0f && a->beta1 < 1.0f, EINVAL, "adamw: beta1 is %g, expected [0, 1)", (double)a->beta1);
    F8_REQUIRE(a->beta2 >= 0.0f && a->beta2 < 1.0f, EINVAL, "adamw: beta2 is %g, expected [0, 1)", (double)a->beta2);
    F8_REQUIRE(a->eps >= 0.0f && isfinite(a->eps), EINVAL, "adamw: eps is %g, expected [0, inf)", (double)a->eps);
    F8_REQUIRE(isfinite(a->lr), EINVAL, "adamw: lr is %g", (double)a->lr);
    F8_REQUIRE(isfinite(a->weight_decay), EINVAL, "adamw: weight_decay is %g", (double)a->weight_decay);
    return FP8FLOW_OK;
}

/* rows or columns: a form of the weights that quantize could write from `weight`. */
static fp8flow_status check_form(const fp8flow_adamw_args *a, const char *name, const fp8flow_tensor *t,
                                 fp8flow_layout layout)
{
    F8_TRY(f8_tensor_check("adamw", name, t));
    F8_REQUIRE(f8_is_fp8(t->dtype) && t->scaling == FP8FLOW_TILE128 && t->layout == layout, EINVAL,
               "adamw: %s is (%s, %s, %s), expected (FP8, tile128, %s)", name, f8_dtype_name(t->dtype),
               f8_scaling_name(t->scaling), f8_layout_name(t->layout), f8_layout_name(layout));
    F8_REQUIRE(a->weight || a->count == 0, EINVAL, "adamw: %s is given, weight is NULL", name);
    /* The product cannot overflow: it is at most the bytes of the data, which have been checked. */
    F8_REQUIRE(t->rows * t->cols == a->count, ESHAPE, "adamw: %s is [%lld, %lld], count is %lld", name,
               (long long)t->rows, (long long)t->cols, (long long)a->count);
    return FP8FLOW_OK;
}

static fp8flow_status check_forms(const fp8flow_adamw_args *a)
{
    const fp8flow_tensor *rows = a->rows, *columns = a->columns;
    if (rows) {
        F8_TRY(check_form(a, "rows", rows, FP8FLOW_ROWS));
        F8_REQUIRE(rows->stride == rows->cols, ESHAPE, "adamw: rows has stride %lld, expected %lld",
                   (long long)rows->stride, (long long)rows->cols);
    }
    if (columns) F8_TRY(check_form(a, "columns", columns, FP8FLOW_COLUMNS));
    if (!rows || !columns) return FP8FLOW_OK;
    F8_TRY(f8_check_shape("adamw", "columns", columns, rows));
    F8_REQUIRE(rows->group_rows == columns->group_rows, ESHAPE,
               "adamw: rows has %lld rows per expert, columns has %lld", (long long)rows->group_rows,
               (long long)columns->group_rows);
    F8_REQUIRE(rows->dtype == columns->dtype, EINVAL, "adamw: rows is %s, columns is %s", f8_dtype_name(rows->dtype),
               f8_dtype_name(columns->dtype));
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_adamw(fp8flow_context *c, const fp8flow_adamw_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "adamw: NULL context or arguments");
    F8_REQUIRE(a->count >= 0, EINVAL, "adamw: count is %lld", (long long)a->count);
    const char *missing = !a->master ? "master" : !a->m ? "m" : !a->v ? "v" : !a->grad ? "grad" : NULL;
    F8_REQUIRE(!missing || a->count == 0, EINVAL, "adamw: %s is NULL, count is %lld", missing, (long long)a->count);
    F8_TRY(check_rates(a));
    F8_TRY(check_forms(a));
    return F8_RUN(c, adamw, a);
}

fp8flow_status f8_adamw_quantize(fp8flow_context *c, const fp8flow_adamw_args *a)
{
    const fp8flow_tensor *shape = a->rows ? a->rows : a->columns;
    if (!shape) return FP8FLOW_OK;
    fp8flow_tensor weight = f8_bf16(a->weight, shape->rows, shape->cols);
    return c->ops->quantize(c, &(fp8flow_quantize_args){ .x = &weight, .rows = a->rows, .columns = a->columns });
}

fp8flow_status f8_ref_adamw(fp8flow_context *c, const fp8flow_adamw_args *a)
{
    float grad_scale = a->grad_scale ? *a->grad_scale : 1.0f;
    if (isnan(grad_scale)) return FP8FLOW_OK;
    /* In FP64: 1 - beta^step in FP32 would lose most of its bits in the first steps. */
    float correction1 = (float)(1.0 - pow((double)a->beta1, (double)a->step));
    float correction2 = (float)(1.0 - pow((double)a->beta2, (double)a->step));
    for (int64_t i = 0; i < a->count; i++) {
        float g = a->grad[i] * grad_scale, w = a->master[i];
        float m = a->beta1 * a->m[i] + (1.0f - a->beta1) * g;
        float v = a->beta2 * a->v[i] + (1.0f - a->beta2) * (g * g);
        float update = m / correction1 / (sqrtf(v / correction2) + a->eps) + a->weight_decay * w;
        a->m[i] = m;
        a->v[i] = v;
        a->master[i] = w - a->lr * update;
        if (a->weight) a->weight[i] = f8_bf16_encode(a->master[i]);
    }
    return f8_adamw_quantize(c, a);
}
