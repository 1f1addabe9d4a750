/* cost.c - see cost.h. One function per operator: each input once, each output once, what is added to twice.
 *
 * Not counted: counters (nonfinite, histograms), offsets of groups, and what a call need not touch, as the experts'
 * weights of which no row is in use: every expert has rows as a rule.
 */
#include "ops/cost.h"

#include <stdio.h>

enum { WORD = 4 };

/* ---- Tensors -------------------------------------------------------------------------------- */

typedef struct {
    f8_cost *cost;
    int is_grouped; /* activations have as many rows as the device knows */
} counter;

static double line_bytes(const fp8flow_tensor *t)
{
    double width = (double)f8_dtype_bytes(t->dtype), blocks = (double)f8_ceil_div(t->cols, 128);
    double cols = (double)t->cols;
    switch (t->scaling) {
    case FP8FLOW_ROW128: return cols * width + blocks;
    case FP8FLOW_TILE128: return cols * width + blocks / 128;
    case FP8FLOW_COL128: return cols * width + cols / 128;
    default: return cols * width;
    }
}

/* `times`: 1 for what is read or written, 2 for what is both. */
static void count_tensor(counter n, const fp8flow_tensor *t, double times)
{
    if (!t) return;
    if (n.is_grouped && t->group_rows == 0) n.cost->row_bytes += times * line_bytes(t);
    else n.cost->bytes += times * line_bytes(t) * (double)t->rows;
}

/* A column of 4-byte numbers beside a tensor's rows. */
static void count_column(counter n, const void *column, int64_t rows)
{
    if (!column) return;
    if (n.is_grouped) n.cost->row_bytes += WORD;
    else n.cost->bytes += WORD * (double)rows;
}

static counter counter_of(f8_cost *cost, const fp8flow_groups *groups, int64_t capacity)
{
    if (!groups) return (counter){ cost, 0 };
    cost->groups = groups->count;
    cost->capacity = capacity;
    return (counter){ cost, 1 };
}

/* ---- Labels --------------------------------------------------------------------------------- */

enum { FORMAT_BYTES = 32 };

/* "bf16", "e4m3 row128", "e4m3 tile128 columns"; "" without a tensor. */
static const char *format_text(const fp8flow_tensor *t, char text[FORMAT_BYTES])
{
    text[0] = '\0';
    if (!t) return text;
    (void)snprintf(text, FORMAT_BYTES, "%s%s%s%s", f8_dtype_name(t->dtype), t->scaling == FP8FLOW_UNSCALED ? "" : " ",
                   t->scaling == FP8FLOW_UNSCALED ? "" : f8_scaling_name(t->scaling),
                   t->layout == FP8FLOW_COLUMNS ? " columns" : "");
    return text;
}

/* "33024x7168 bf16 to e4m3 row128, e4m3 tile128 columns". */
static void label_conversion(f8_cost *cost, const fp8flow_tensor *x, const fp8flow_tensor *first,
                             const fp8flow_tensor *second)
{
    char from[FORMAT_BYTES], to[FORMAT_BYTES], and[FORMAT_BYTES];
    (void)snprintf(cost->label, sizeof cost->label, "%lldx%lld %s to %s%s%s", (long long)x->rows, (long long)x->cols,
                   format_text(x, from), format_text(first, to), first && second ? ", " : "", format_text(second, and));
}

static void label_matrix(f8_cost *cost, const fp8flow_tensor *x)
{
    char format[FORMAT_BYTES];
    (void)snprintf(cost->label, sizeof cost->label, "%lldx%lld %s", (long long)x->rows, (long long)x->cols,
                   format_text(x, format));
}

static void label_count(f8_cost *cost, int64_t count)
{
    (void)snprintf(cost->label, sizeof cost->label, "%lld", (long long)count);
}

static void label_routing(f8_cost *cost, int64_t tokens, int64_t top_k, int64_t experts)
{
    (void)snprintf(cost->label, sizeof cost->label, "%lld k%lld of %lld", (long long)tokens, (long long)top_k,
                   (long long)experts);
}

/* ---- Formats -------------------------------------------------------------------------------- */

static void cost_quantize(const fp8flow_quantize_args *a, f8_cost *cost)
{
    counter n = counter_of(cost, a->groups, a->x->rows);
    count_tensor(n, a->x, 1);
    count_tensor(n, a->rows, 1);
    count_tensor(n, a->columns, 1);
    label_conversion(cost, a->x, a->rows, a->columns);
}

static void cost_dequantize(const fp8flow_dequantize_args *a, f8_cost *cost)
{
    counter n = counter_of(cost, a->groups, a->x->rows);
    count_tensor(n, a->x, 1);
    count_tensor(n, a->y, 1);
    label_conversion(cost, a->x, a->y, NULL);
}

static void cost_transpose(const fp8flow_transpose_args *a, f8_cost *cost)
{
    counter n = counter_of(cost, a->groups, a->x->rows);
    count_tensor(n, a->x, 1);
    count_tensor(n, a->y, 1);
    label_conversion(cost, a->x, a->y, NULL);
}

static void cost_measure(const fp8flow_measure_args *a, f8_cost *cost)
{
    counter n = counter_of(cost, a->groups, a->x->rows);
    count_tensor(n, a->x, 1);
    count_tensor(n, a->q, 1);
    label_conversion(cost, a->x, a->q, NULL);
}

/* ---- Routing -------------------------------------------------------------------------------- */

static counter plan_counter(f8_cost *cost, const fp8flow_plan *plan)
{
    cost->groups = plan->num_experts;
    cost->capacity = plan->capacity;
    return (counter){ cost, 1 };
}

static double slots_of(const fp8flow_plan *plan)
{
    return (double)plan->num_tokens * (double)plan->top_k;
}

static void cost_permute_plan(const fp8flow_permute_plan_args *a, f8_cost *cost)
{
    const fp8flow_plan *plan = a->plan;
    count_column(plan_counter(cost, plan), plan->source, plan->capacity);
    cost->bytes = WORD * (2 * slots_of(plan) + 2 * (double)plan->num_experts + 1);
    label_routing(cost, plan->num_tokens, plan->top_k, plan->num_experts);
}

static void cost_rank_destinations(const fp8flow_rank_destinations_args *a, f8_cost *cost)
{
    cost->bytes = WORD * (double)a->num_tokens * ((double)a->top_k + (double)a->num_ranks);
    label_routing(cost, a->num_tokens, a->top_k, a->num_experts);
}

/* Of the rows that are sent, all that there is room for. */
static void cost_rank_routing(const fp8flow_rank_routing_args *a, f8_cost *cost)
{
    const fp8flow_plan *plan = a->plan;
    double slots = (double)plan->num_tokens * (double)a->top_k, rows = (double)plan->capacity;
    cost->bytes = WORD * (2 * slots + rows * (1 + 2 * (double)a->top_k));
    label_routing(cost, plan->num_tokens, a->top_k, a->num_experts);
}

static void cost_rank_gates(const fp8flow_rank_gates_args *a, f8_cost *cost)
{
    const fp8flow_plan *plan = a->plan;
    cost->bytes = WORD * (3 * (double)plan->num_tokens * (double)a->top_k + slots_of(plan));
    label_routing(cost, plan->num_tokens, a->top_k, a->num_experts);
}

static void cost_permute(const fp8flow_permute_args *a, f8_cost *cost)
{
    counter n = plan_counter(cost, a->plan);
    cost->bytes = line_bytes(a->x) * (double)a->x->rows;
    if (a->gate) cost->bytes += WORD * slots_of(a->plan);
    count_column(n, a->plan->source, a->plan->capacity);
    count_column(n, a->gate_rows, a->plan->capacity);
    count_tensor(n, a->rows, 1);
    count_tensor(n, a->columns, 1);
    label_conversion(cost, a->x, a->rows, a->columns);
}

static void cost_unpermute(const fp8flow_unpermute_args *a, f8_cost *cost)
{
    counter n = plan_counter(cost, a->plan);
    cost->bytes = line_bytes(a->y) * (double)a->y->rows + WORD * slots_of(a->plan);
    if (a->gate) cost->bytes += WORD * slots_of(a->plan);
    count_column(n, a->gate_rows, a->plan->capacity);
    count_tensor(n, a->x, 1);
    label_matrix(cost, a->x);
}

static void cost_router(const fp8flow_router_args *a, f8_cost *cost)
{
    const fp8flow_router_config *config = a->config;
    double tokens = (double)a->logits->rows, experts = (double)config->num_experts, top_k = (double)config->top_k;
    double sequences = tokens / (double)config->sequence_length;
    cost->bytes = WORD * (tokens * (2 * experts + 2 * top_k + 1) + 2 * sequences * experts);
    if (a->bias) cost->bytes += WORD * experts;
    label_routing(cost, a->logits->rows, config->top_k, config->num_experts);
}

static void cost_router_sum(const fp8flow_router_sum_args *a, f8_cost *cost)
{
    cost->bytes = (double)a->num_experts * (2 * WORD * (double)a->num_sequences + sizeof(int64_t) + WORD);
    (void)snprintf(cost->label, sizeof cost->label, "%lld of %lld", (long long)a->num_sequences,
                   (long long)a->num_experts);
}

static void cost_router_loss(const fp8flow_router_loss_args *a, f8_cost *cost)
{
    const fp8flow_router_config *config = a->config;
    double tokens = (double)a->num_tokens, experts = (double)config->num_experts;
    if (config->aux_coef != 0.0f) cost->bytes += 3 * WORD * experts;
    if (config->sequence_coef != 0.0f) cost->bytes += 2 * WORD * experts * (tokens / (double)config->sequence_length);
    if (config->z_coef != 0.0f) cost->bytes += WORD * tokens;
    label_routing(cost, a->num_tokens, config->top_k, config->num_experts);
}

/* Scores, choice and gate gradients come in, logit gradients go out; the logits are not needed. */
static void cost_router_backward(const fp8flow_router_backward_args *a, f8_cost *cost)
{
    const fp8flow_router_config *config = a->config;
    double tokens = (double)a->num_tokens, experts = (double)config->num_experts, top_k = (double)config->top_k;
    cost->bytes = WORD * tokens * 2 * (experts + top_k);
    if (config->aux_coef != 0.0f) cost->bytes += 2 * WORD * experts;
    if (config->sequence_coef != 0.0f) cost->bytes += WORD * experts * (tokens / (double)config->sequence_length);
    if (config->z_coef != 0.0f) cost->bytes += WORD * tokens;
    label_routing(cost, a->num_tokens, config->top_k, config->num_experts);
}

static void cost_router_bias_update(const fp8flow_router_bias_update_args *a, f8_cost *cost)
{
    cost->bytes = (2 * WORD + sizeof(int64_t)) * (double)a->num_experts;
    label_count(cost, a->num_experts);
}

static void cost_add_counts(const fp8flow_add_counts_args *a, f8_cost *cost)
{
    cost->bytes = 3.0 * sizeof(int64_t) * (double)a->count;
    label_count(cost, a->count);
}

/* ---- SwiGLU --------------------------------------------------------------------------------- */

static void cost_swiglu(const fp8flow_swiglu_args *a, f8_cost *cost)
{
    counter n = counter_of(cost, a->groups, a->h->rows);
    count_tensor(n, a->h, 1);
    count_column(n, a->gate, a->h->rows);
    count_tensor(n, a->rows, 1);
    count_tensor(n, a->columns, 1);
    label_conversion(cost, a->h, a->rows, a->columns);
}

static void cost_swiglu_backward(const fp8flow_swiglu_backward_args *a, f8_cost *cost)
{
    counter n = counter_of(cost, a->groups, a->h->rows);
    count_tensor(n, a->h, 1);
    count_column(n, a->gate, a->h->rows);
    count_tensor(n, a->dv, 1);
    count_tensor(n, a->rows, 1);
    count_tensor(n, a->columns, 1);
    count_tensor(n, a->v_columns, 1);
    count_column(n, a->dgate, a->h->rows);
    label_conversion(cost, a->h, a->rows, a->columns);
}

/* ---- Products and attention ----------------------------------------------------------------- */

/* M x N x K: rows, columns of the result, what is summed over. */
static void label_product(const fp8flow_gemm_args *a, f8_cost *cost)
{
    static const char *const names[] = { "fprop", "dgrad", "wgrad" };
    int is_wgrad = a->product == FP8FLOW_WGRAD;
    char from[FORMAT_BYTES], by[FORMAT_BYTES];
    (void)snprintf(cost->label, sizeof cost->label, "%s %lldx%lldx%lld %s * %s", names[a->product],
                   (long long)(is_wgrad ? a->a->cols : a->a->rows), (long long)a->c->cols,
                   (long long)(is_wgrad ? a->a->rows : a->a->cols), format_text(a->a, from), format_text(a->b, by));
}

static void cost_gemm(const fp8flow_gemm_args *a, f8_cost *cost)
{
    counter n = counter_of(cost, a->groups, a->a->rows);
    count_tensor(n, a->a, 1);
    count_tensor(n, a->b, 1);
    count_tensor(n, a->c, a->write == FP8FLOW_ACCUMULATE ? 2 : 1);
    double per_row = 2 * (double)a->a->cols * (double)a->c->cols;
    if (a->groups) cost->row_flops = per_row;
    else cost->flops = per_row * (double)a->a->rows;
    cost->dtype = a->a->dtype;
    label_product(a, cost);
}

/* Pairs of a query and a key that it sees, over all sequences and heads. */
static double visible_pairs(int64_t batch, int64_t num_heads, int64_t queries, int64_t keys)
{
    double q = (double)queries, k = (double)keys;
    return (double)batch * (double)num_heads * q * (k - q + (q + 1) / 2);
}

static void label_attention(f8_cost *cost, const fp8flow_tensor *q, int64_t batch, int64_t num_kv_heads)
{
    (void)snprintf(cost->label, sizeof cost->label, "%lldx%lldx%lld, %lld kv heads", (long long)batch,
                   (long long)(batch ? q->rows / batch : 0), (long long)q->cols, (long long)num_kv_heads);
}

static void cost_attention(const fp8flow_attention_args *a, f8_cost *cost)
{
    counter n = { cost, 0 };
    const fp8flow_tensor *const moved[] = { a->q, a->k, a->v, a->o };
    for (int i = 0; i < 4; i++) count_tensor(n, moved[i], 1);
    cost->dtype = a->q->dtype;
    count_column(n, a->lse, a->q->rows * a->num_heads);
    if (a->batch > 0) {
        double pairs = visible_pairs(a->batch, a->num_heads, a->q->rows / a->batch, a->k->rows / a->batch);
        cost->flops = 4 * pairs * (double)a->head_dim;
    }
    label_attention(cost, a->q, a->batch, a->num_kv_heads);
}

/* Five products of the size of the two in attention. */
static void cost_attention_backward(const fp8flow_attention_backward_args *a, f8_cost *cost)
{
    counter n = { cost, 0 };
    const fp8flow_tensor *const moved[] = { a->q, a->k, a->v, a->o, a->grad_o, a->grad_q, a->grad_k, a->grad_v };
    for (int i = 0; i < 8; i++) count_tensor(n, moved[i], 1);
    cost->dtype = a->q->dtype;
    count_column(n, a->lse, a->q->rows * a->num_heads);
    if (a->batch > 0) {
        int64_t length = a->q->rows / a->batch;
        cost->flops = 10 * visible_pairs(a->batch, a->num_heads, length, length) * (double)a->head_dim;
    }
    label_attention(cost, a->q, a->batch, a->num_kv_heads);
}

/* ---- The rest of a decoder ------------------------------------------------------------------ */

static void cost_add(const fp8flow_add_args *a, f8_cost *cost)
{
    counter n = { cost, 0 };
    count_tensor(n, a->a, 1);
    count_tensor(n, a->b, 1);
    count_tensor(n, a->y, 1);
    label_matrix(cost, a->y);
}

static void cost_rmsnorm(const fp8flow_rmsnorm_args *a, f8_cost *cost)
{
    counter n = { cost, 0 };
    count_tensor(n, a->x, 1);
    count_tensor(n, a->y, 1);
    count_column(n, a->rstd, a->x->rows * (a->x->cols / a->width));
    cost->bytes += WORD * (double)a->width;
    label_matrix(cost, a->x);
}

static void cost_rmsnorm_backward(const fp8flow_rmsnorm_backward_args *a, f8_cost *cost)
{
    counter n = { cost, 0 };
    count_tensor(n, a->x, 1);
    count_tensor(n, a->dy, 1);
    count_tensor(n, a->dx, 1);
    count_column(n, a->rstd, a->x->rows * (a->x->cols / a->width));
    cost->bytes += 3 * WORD * (double)a->width;
    label_matrix(cost, a->x);
}

static void cost_rope(const fp8flow_rope_args *a, f8_cost *cost)
{
    count_tensor((counter){ cost, 0 }, a->x, 2);
    label_matrix(cost, a->x);
}

static void cost_embed(const fp8flow_embed_args *a, f8_cost *cost)
{
    cost->bytes = (2 * line_bytes(a->y) + WORD) * (double)a->y->rows;
    label_matrix(cost, a->y);
}

/* The fewest rows of the table: as many as tokens, as if each were another one, or all. */
static void cost_embed_backward(const fp8flow_embed_backward_args *a, f8_cost *cost)
{
    int64_t tokens = a->dy->rows, lines = tokens < a->dtable->rows ? tokens : a->dtable->rows;
    cost->bytes = (line_bytes(a->dy) + WORD) * (double)tokens + 2 * line_bytes(a->dtable) * (double)lines;
    label_matrix(cost, a->dy);
}

static void cost_cross_entropy(const fp8flow_cross_entropy_args *a, f8_cost *cost)
{
    count_tensor((counter){ cost, 0 }, a->logits, 1);
    count_tensor((counter){ cost, 0 }, a->gradient, 1);
    cost->bytes += 2 * WORD * (double)a->logits->rows;
    label_matrix(cost, a->logits);
}

/* ---- Optimiser ------------------------------------------------------------------------------ */

static void cost_sum(const fp8flow_sum_args *a, f8_cost *cost)
{
    cost->bytes = WORD * (double)a->count + sizeof(double);
    label_count(cost, a->count);
}

static void cost_square_sum(const fp8flow_square_sum_args *a, f8_cost *cost)
{
    cost->bytes = WORD * (double)a->count + sizeof(double);
    label_count(cost, a->count);
}

static void cost_clip(const fp8flow_clip_args *a, f8_cost *cost)
{
    cost->bytes = sizeof(double) * ((double)a->count + 1) + WORD;
    label_count(cost, a->count);
}

/* Master and both moments are read and written. */
static void cost_adamw(const fp8flow_adamw_args *a, f8_cost *cost)
{
    counter n = { cost, 0 };
    cost->bytes = (double)a->count * (7 * WORD + (a->weight ? 2 : 0));
    count_tensor(n, a->rows, 1);
    count_tensor(n, a->columns, 1);
    label_count(cost, a->count);
}

/* ---- All ------------------------------------------------------------------------------------ */

f8_cost f8_cost_of(f8_op op, const void *args)
{
    f8_cost cost = { 0 };
    switch (op) {
#define F8_X(name) \
    case F8_OP_##name: cost_##name(args, &cost); break;
        F8_OPS(F8_X)
#undef F8_X
    case F8_NUM_OPS: break;
    }
    return cost;
}
