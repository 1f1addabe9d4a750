/* vocab.c - the two ends of a language model: embedding rows, and the cross entropy over the vocabulary.
 *
 * Ids and targets in host memory are checked at entry, so that an implementation for the CPU never reads or writes
 * outside a table. */
#include "ops/nan.h"
#include "ops/plain.h"

#include <math.h>

/* Every id must lie in [lowest, vocabulary); ids in device memory are checked where they are used. */
static fp8flow_status check_ids(const fp8flow_context *c, const char *op, const char *name, const int32_t *ids,
                                int64_t count, int64_t lowest, int64_t vocabulary)
{
    F8_REQUIRE(ids || count == 0, EINVAL, "%s: %s is NULL, %lld tokens", op, name, (long long)count);
    for (int64_t t = 0; f8_on_host(c) && t < count; t++)
        F8_REQUIRE(ids[t] >= lowest && ids[t] < vocabulary, EINVAL, "%s: %s[%lld] is %d, expected %lld to %lld", op,
                   name, (long long)t, ids[t], (long long)lowest, (long long)(vocabulary - 1));
    return FP8FLOW_OK;
}

/* Same number of columns in the table and in the activation. */
static fp8flow_status check_width(const char *op, const fp8flow_tensor *table, const fp8flow_tensor *rows)
{
    F8_REQUIRE(table->cols == rows->cols, ESHAPE, "%s: the table has %lld columns, the activation %lld", op,
               (long long)table->cols, (long long)rows->cols);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_embed(fp8flow_context *c, const fp8flow_embed_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "embed: NULL context or arguments");
    F8_TRY(f8_plain_check("embed", "table", a->table, F8_ACCEPT_BF16));
    F8_TRY(f8_plain_check("embed", "y", a->y, F8_ACCEPT_BF16));
    F8_TRY(check_width("embed", a->table, a->y));
    F8_TRY(check_ids(c, "embed", "ids", a->ids, a->y->rows, 0, a->table->rows));
    return F8_RUN(c, embed, a);
}

fp8flow_status f8_ref_embed(fp8flow_context *c, const fp8flow_embed_args *a)
{
    int64_t num_tokens = a->y->rows;
    size_t bytes = (size_t)a->y->cols * sizeof(uint16_t);
    if (bytes == 0) return FP8FLOW_OK;
    int64_t work = num_tokens * a->y->cols;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t t = 0; t < num_tokens; t++) memcpy(f8_bf16_row(a->y, t), f8_bf16_row(a->table, a->ids[t]), bytes);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_embed_backward(fp8flow_context *c, const fp8flow_embed_backward_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "embed_backward: NULL context or arguments");
    F8_TRY(f8_plain_check("embed_backward", "dy", a->dy, F8_ACCEPT_BF16));
    F8_TRY(f8_plain_check("embed_backward", "dtable", a->dtable, F8_ACCEPT_F32));
    F8_TRY(check_width("embed_backward", a->dtable, a->dy));
    F8_TRY(check_ids(c, "embed_backward", "ids", a->ids, a->dy->rows, 0, a->dtable->rows));
    return F8_RUN(c, embed_backward, a);
}

fp8flow_status f8_ref_embed_backward(fp8flow_context *c, const fp8flow_embed_backward_args *a)
{
    (void)c;
    for (int64_t t = 0; t < a->dy->rows; t++) {
        const uint16_t *dy = f8_bf16_row(a->dy, t);
        float *row = f8_f32_row(a->dtable, a->ids[t]);
        for (int64_t col = 0; col < a->dy->cols; col++) row[col] = f8_canonical(row[col] + f8_bf16_decode(dy[col]));
    }
    return FP8FLOW_OK;
}

/* A gradient in the place of the logits must lie there element by element. */
static fp8flow_status check_gradient(const fp8flow_tensor *logits, const fp8flow_tensor *gradient)
{
    F8_TRY(
        f8_plain_check_like("cross_entropy", "gradient", gradient, F8_ACCEPT_F32 | F8_ACCEPT_BF16, "logits", logits));
    int matches = gradient->dtype == logits->dtype && gradient->stride == logits->stride;
    F8_REQUIRE(matches || gradient->data != logits->data || !logits->data, EINVAL,
               "cross_entropy: gradient (%s, stride %lld) has the memory of logits (%s, stride %lld)",
               f8_dtype_name(gradient->dtype), (long long)gradient->stride, f8_dtype_name(logits->dtype),
               (long long)logits->stride);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_cross_entropy(fp8flow_context *c, const fp8flow_cross_entropy_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "cross_entropy: NULL context or arguments");
    F8_TRY(f8_plain_check("cross_entropy", "logits", a->logits, F8_ACCEPT_F32 | F8_ACCEPT_BF16));
    F8_REQUIRE(a->logits->rows == 0 || a->logits->cols >= 1, ESHAPE, "cross_entropy: logits is [%lld, 0]",
               (long long)a->logits->rows);
    F8_REQUIRE(a->loss || a->logits->rows == 0, EINVAL, "cross_entropy: loss is NULL, %lld tokens",
               (long long)a->logits->rows);
    if (a->gradient) F8_TRY(check_gradient(a->logits, a->gradient));
    F8_TRY(check_ids(c, "cross_entropy", "target", a->target, a->logits->rows, -1, a->logits->cols));
    return F8_RUN(c, cross_entropy, a);
}

/* Token with a target. */
static void reference_row(const fp8flow_cross_entropy_args *a, int64_t t)
{
    const fp8flow_tensor *logits = a->logits;
    float largest = -INFINITY;
    for (int64_t i = 0; i < logits->cols; i++) largest = fmaxf(largest, f8_value(logits, t, i, 0));
    double sum = 0.0;
    for (int64_t i = 0; i < logits->cols; i++) sum += (double)f8_expf(f8_value(logits, t, i, 0) - largest);
    a->loss[t] = (float)(log(sum) - (double)(f8_value(logits, t, a->target[t], 0) - largest));
    for (int64_t i = 0; a->gradient && i < logits->cols; i++) {
        float p = (float)((double)f8_expf(f8_value(logits, t, i, 0) - largest) / sum);
        f8_plain_store(a->gradient, t, i, (i == a->target[t] ? p - 1.0f : p) * a->grad_scale);
    }
}

fp8flow_status f8_ref_cross_entropy(fp8flow_context *c, const fp8flow_cross_entropy_args *a)
{
    (void)c;
    for (int64_t t = 0; t < a->logits->rows; t++) {
        if (a->target[t] >= 0) {
            reference_row(a, t);
            continue;
        }
        a->loss[t] = 0.0f;
        for (int64_t i = 0; a->gradient && i < a->logits->cols; i++) f8_plain_store(a->gradient, t, i, 0.0f);
    }
    return FP8FLOW_OK;
}
