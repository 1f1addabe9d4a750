/* attention.c - contract and reference of causal attention and its gradients.
 *
 * The reference works one query and one head at a time in FP64 and computes each score again where it is
 * needed, so that no buffer grows with the sequence.
 *
 *   p[s, t]  = exp(scale * q[s] k[t] - lse[s])        o[s]  = sum_t p v[t]
 *   ds[s, t] = p (do[s] v[t] - do[s] o[s]) * scale    dq[s] = sum_t ds k[t]
 *                                                     dk[t] = sum_s ds q[s],  dv[t] = sum_s p do[s]
 */
#include "ops/attention.h"

/* ---- Contract ---- */

typedef struct {
    const char *op;
    int64_t batch, num_heads, num_kv_heads, head_dim;
    float scale;
} call;

static fp8flow_status check_call(const call *x)
{
    F8_REQUIRE(x->batch >= 0 && x->num_heads >= 1 && x->num_kv_heads >= 1 && x->num_heads % x->num_kv_heads == 0,
               ESHAPE, "%s: %lld sequences, %lld heads and %lld key heads do not fit", x->op, (long long)x->batch,
               (long long)x->num_heads, (long long)x->num_kv_heads);
    F8_REQUIRE(x->head_dim >= 1 && x->head_dim <= F8_ATTENTION_MAX_HEAD_DIM, ESHAPE,
               "%s: head_dim is %lld, expected 1 to %d", x->op, (long long)x->head_dim, F8_ATTENTION_MAX_HEAD_DIM);
    F8_REQUIRE(x->num_heads <= INT32_MAX, ESHAPE, "%s: %lld heads are too many", x->op, (long long)x->num_heads);
    F8_REQUIRE(f8_is_finite(x->scale), EINVAL, "%s: scale is not finite", x->op);
    return FP8FLOW_OK;
}

static fp8flow_status check_tensor(const call *x, const char *name, const fp8flow_tensor *t, int64_t num_heads)
{
    F8_TRY(f8_tensor_check(x->op, name, t));
    F8_REQUIRE(t->dtype == FP8FLOW_BF16 && t->layout == FP8FLOW_ROWS && t->group_rows == 0, EINVAL,
               "%s: %s is %s in %s, expected bf16 rows", x->op, name, f8_dtype_name(t->dtype),
               f8_layout_name(t->layout));
    F8_REQUIRE(t->cols == num_heads * x->head_dim, ESHAPE, "%s: %s has %lld columns, %lld heads of %lld need %lld",
               x->op, name, (long long)t->cols, (long long)num_heads, (long long)x->head_dim,
               (long long)(num_heads * x->head_dim));
    return FP8FLOW_OK;
}

static fp8flow_status check_rows(const call *x, const char *name, const fp8flow_tensor *t, int64_t rows)
{
    F8_REQUIRE(t->rows == rows, ESHAPE, "%s: %s has %lld rows, expected %lld", x->op, name, (long long)t->rows,
               (long long)rows);
    return FP8FLOW_OK;
}

static fp8flow_status check_lengths(const call *x, int64_t query_rows, int64_t key_rows)
{
    int64_t batch = x->batch;
    int divides = batch == 0 ? query_rows == 0 && key_rows == 0 : query_rows % batch == 0 && key_rows % batch == 0;
    F8_REQUIRE(divides, ESHAPE, "%s: %lld query rows and %lld key rows are not %lld sequences", x->op,
               (long long)query_rows, (long long)key_rows, (long long)batch);
    F8_REQUIRE(batch == 0 || (query_rows >= batch && key_rows >= query_rows), ESHAPE,
               "%s: %lld query rows and %lld key rows, expected keys >= queries >= %lld", x->op, (long long)query_rows,
               (long long)key_rows, (long long)batch);
    return FP8FLOW_OK;
}

static fp8flow_status check_forward(const fp8flow_attention_args *a)
{
    F8_REQUIRE(a, EINVAL, "attention: the arguments are NULL");
    call x = { "attention", a->batch, a->num_heads, a->num_kv_heads, a->head_dim, a->scale };
    F8_TRY(check_call(&x));
    F8_TRY(check_tensor(&x, "q", a->q, a->num_heads));
    F8_TRY(check_tensor(&x, "k", a->k, a->num_kv_heads));
    F8_TRY(check_tensor(&x, "v", a->v, a->num_kv_heads));
    F8_TRY(check_tensor(&x, "o", a->o, a->num_heads));
    F8_TRY(check_lengths(&x, a->q->rows, a->k->rows));
    F8_TRY(check_rows(&x, "v", a->v, a->k->rows));
    return check_rows(&x, "o", a->o, a->q->rows);
}

static fp8flow_status check_backward(const fp8flow_attention_backward_args *a)
{
    F8_REQUIRE(a, EINVAL, "attention_backward: the arguments are NULL");
    call x = { "attention_backward", a->batch, a->num_heads, a->num_kv_heads, a->head_dim, a->scale };
    F8_TRY(check_call(&x));
    const struct {
        const char *name;
        const fp8flow_tensor *tensor;
        int64_t num_heads;
    } tensors[] = {
        { "q", a->q, a->num_heads },
        { "k", a->k, a->num_kv_heads },
        { "v", a->v, a->num_kv_heads },
        { "o", a->o, a->num_heads },
        { "grad_o", a->grad_o, a->num_heads },
        { "grad_q", a->grad_q, a->num_heads },
        { "grad_k", a->grad_k, a->num_kv_heads },
        { "grad_v", a->grad_v, a->num_kv_heads },
    };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        F8_TRY(check_tensor(&x, tensors[i].name, tensors[i].tensor, tensors[i].num_heads));
        F8_TRY(check_rows(&x, tensors[i].name, tensors[i].tensor, a->q->rows));
    }
    F8_TRY(check_lengths(&x, a->q->rows, a->k->rows));
    F8_REQUIRE(a->lse || a->q->rows == 0, EINVAL, "attention_backward: lse is NULL");
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_attention(fp8flow_context *c, const fp8flow_attention_args *a)
{
    F8_REQUIRE(c, EINVAL, "attention: the context is NULL");
    F8_TRY(check_forward(a));
    return F8_RUN(c, attention, a);
}

fp8flow_status fp8flow_attention_backward(fp8flow_context *c, const fp8flow_attention_backward_args *a)
{
    F8_REQUIRE(c, EINVAL, "attention_backward: the context is NULL");
    F8_TRY(check_backward(a));
    return F8_RUN(c, attention_backward, a);
}

/* ---- Reference ---- */

/* One head's vector of one token. */
static const uint16_t *vector(const fp8flow_tensor *t, int64_t row, int64_t head, int64_t head_dim)
{
    return (const uint16_t *)t->data + row * t->stride + head * head_dim;
}

static double dot(const uint16_t *a, const uint16_t *b, int64_t head_dim)
{
    double sum = 0;
    for (int64_t d = 0; d < head_dim; d++) sum += (double)f8_bf16_decode(a[d]) * (double)f8_bf16_decode(b[d]);
    return sum;
}

static void add_scaled(double *sum, double factor, const uint16_t *x, int64_t head_dim)
{
    for (int64_t d = 0; d < head_dim; d++) sum[d] += factor * (double)f8_bf16_decode(x[d]);
}

static void write_vector(const fp8flow_tensor *t, int64_t row, int64_t head, const double *x, int64_t head_dim)
{
    uint16_t *out = (uint16_t *)t->data + row * t->stride + head * head_dim;
    for (int64_t d = 0; d < head_dim; d++) out[d] = f8_bf16_encode((float)x[d]);
}

/* Query row `row` of head `head`, which sees the `num_keys` keys from row `first_key` on. */
static void reference_query(const fp8flow_attention_args *a, int64_t row, int64_t head, int64_t first_key,
                            int64_t num_keys)
{
    int64_t head_dim = a->head_dim, kv_head = head / (a->num_heads / a->num_kv_heads);
    const uint16_t *q = vector(a->q, row, head, head_dim);
    double max = -INFINITY, sum = 0, o[F8_ATTENTION_MAX_HEAD_DIM] = { 0 };
    for (int64_t t = first_key; t < first_key + num_keys; t++)
        max = fmax(max, (double)a->scale * dot(q, vector(a->k, t, kv_head, head_dim), head_dim));
    for (int64_t t = first_key; t < first_key + num_keys; t++) {
        double p = exp((double)a->scale * dot(q, vector(a->k, t, kv_head, head_dim), head_dim) - max);
        add_scaled(o, p, vector(a->v, t, kv_head, head_dim), head_dim);
        sum += p;
    }
    for (int64_t d = 0; d < head_dim; d++) o[d] /= sum;
    write_vector(a->o, row, head, o, head_dim);
    if (a->lse) a->lse[row * a->num_heads + head] = (float)(max + log(sum));
}

fp8flow_status f8_ref_attention(fp8flow_context *c, const fp8flow_attention_args *a)
{
    (void)c;
    int64_t num_queries = a->batch ? a->q->rows / a->batch : 0, num_keys = a->batch ? a->k->rows / a->batch : 0;
    for (int64_t row = 0; row < a->q->rows; row++)
        for (int64_t head = 0; head < a->num_heads; head++)
            reference_query(a, row, head, row / num_queries * num_keys, row % num_queries + 1 + num_keys - num_queries);
    return FP8FLOW_OK;
}

/* p and ds of query row s and key row t. */
typedef struct {
    double p, ds;
} pair;

static pair pair_at(const fp8flow_attention_backward_args *a, int64_t s, int64_t t, int64_t head)
{
    int64_t head_dim = a->head_dim, kv_head = head / (a->num_heads / a->num_kv_heads);
    const uint16_t *grad_o = vector(a->grad_o, s, head, head_dim);
    double score = dot(vector(a->q, s, head, head_dim), vector(a->k, t, kv_head, head_dim), head_dim);
    double p = exp((double)a->scale * score - (double)a->lse[s * a->num_heads + head]);
    double dp = dot(grad_o, vector(a->v, t, kv_head, head_dim), head_dim);
    double mean = dot(grad_o, vector(a->o, s, head, head_dim), head_dim);
    return (pair){ p, p * (dp - mean) * (double)a->scale };
}

static void reference_grad_q(const fp8flow_attention_backward_args *a, int64_t s, int64_t head, int64_t first_row)
{
    int64_t kv_head = head / (a->num_heads / a->num_kv_heads);
    double grad[F8_ATTENTION_MAX_HEAD_DIM] = { 0 };
    for (int64_t t = first_row; t <= s; t++)
        add_scaled(grad, pair_at(a, s, t, head).ds, vector(a->k, t, kv_head, a->head_dim), a->head_dim);
    write_vector(a->grad_q, s, head, grad, a->head_dim);
}

static void reference_grad_kv(const fp8flow_attention_backward_args *a, int64_t t, int64_t kv_head, int64_t end_row)
{
    int64_t heads_per_kv = a->num_heads / a->num_kv_heads;
    double grad_k[F8_ATTENTION_MAX_HEAD_DIM] = { 0 }, grad_v[F8_ATTENTION_MAX_HEAD_DIM] = { 0 };
    for (int64_t head = kv_head * heads_per_kv; head < (kv_head + 1) * heads_per_kv; head++)
        for (int64_t s = t; s < end_row; s++) {
            pair x = pair_at(a, s, t, head);
            add_scaled(grad_k, x.ds, vector(a->q, s, head, a->head_dim), a->head_dim);
            add_scaled(grad_v, x.p, vector(a->grad_o, s, head, a->head_dim), a->head_dim);
        }
    write_vector(a->grad_k, t, kv_head, grad_k, a->head_dim);
    write_vector(a->grad_v, t, kv_head, grad_v, a->head_dim);
}

fp8flow_status f8_ref_attention_backward(fp8flow_context *c, const fp8flow_attention_backward_args *a)
{
    (void)c;
    int64_t length = a->batch ? a->q->rows / a->batch : 0;
    for (int64_t row = 0; row < a->q->rows; row++) {
        int64_t first_row = row / length * length;
        for (int64_t head = 0; head < a->num_heads; head++) reference_grad_q(a, row, head, first_row);
        for (int64_t head = 0; head < a->num_kv_heads; head++) reference_grad_kv(a, row, head, first_row + length);
    }
    return FP8FLOW_OK;
}
