/* mirror_ops.c - the arrays of every operator, as its contract has them, and the table of a mirrored context. */
#include "mirror_call.h"

#include <stdatomic.h>

#include "ops/block.h"
#include "ops/plan.h"

/* Copies of the structs of a call that are no tensors. */
typedef struct {
    mirror mirror;
    fp8flow_groups groups;
    fp8flow_plan plan;
    fp8flow_router_load load;
} call;

/* ---- What several operators have ---- */

static const fp8flow_groups *device_groups(call *c, const fp8flow_groups *groups)
{
    if (!groups) return NULL;
    c->groups = *groups;
    mirror_add_array(&c->mirror, "groups->offset", &c->groups.offset, (groups->count + 1) * 4, MIRROR_IN);
    mirror_add_array(&c->mirror, "groups->rows", &c->groups.rows, groups->count * 4, MIRROR_IN);
    return &c->groups;
}

static fp8flow_plan *device_plan(call *c, const fp8flow_plan *plan, mirror_direction direction)
{
    fp8flow_plan *copy = &c->plan;
    *copy = *plan;
    mirror_add_array(&c->mirror, "plan->rows", &copy->rows, plan->num_experts * 4, direction);
    mirror_add_array(&c->mirror, "plan->offset", &copy->offset, (plan->num_experts + 1) * 4, direction);
    mirror_add_array(&c->mirror, "plan->row_of", &copy->row_of, plan->num_tokens * plan->top_k * 4, direction);
    mirror_add_array(&c->mirror, "plan->source", &copy->source, plan->capacity * 4, direction);
    return copy;
}

/* A filled plan for tensors that need not hold its capacity. On a GPU they must: there its P is not read at entry. */
static fp8flow_plan *device_filled_plan(call *c, const fp8flow_plan *plan, const fp8flow_tensor *const tensors[2])
{
    fp8flow_plan fitted = *plan;
    for (int i = 0; i < 2; i++)
        if (tensors[i]) fitted.capacity = f8_min(fitted.capacity, tensors[i]->rows);
    return device_plan(c, &fitted, MIRROR_IN);
}

/* [P] of the contracts. */
static int64_t padded_rows(const fp8flow_tensor *t, const fp8flow_groups *groups)
{
    if (!groups) return t->rows;
    return groups->count ? groups->offset[groups->count] : 0;
}

/* ---- Each operator: its arguments are `d`, patched in place ---- */

#define ARRAY(field, bytes, direction)   mirror_add_array(&c->mirror, #field, &d->field, (bytes), direction)
#define TENSOR(field, groups, direction) (d->field = mirror_add_tensor(&c->mirror, #field, d->field, groups, direction))
#define DESCRIBE(op)                     static void describe_##op(call *c, fp8flow_##op##_args *d)

DESCRIBE(quantize)
{
    TENSOR(x, d->groups, MIRROR_IN);
    TENSOR(rows, d->groups, MIRROR_OUT);
    TENSOR(columns, d->groups, MIRROR_OUT);
    ARRAY(nonfinite, 8, MIRROR_OUT);
    d->groups = device_groups(c, d->groups);
}

DESCRIBE(dequantize)
{
    TENSOR(x, d->groups, MIRROR_IN);
    TENSOR(y, d->groups, MIRROR_OUT);
    d->groups = device_groups(c, d->groups);
}

DESCRIBE(transpose)
{
    TENSOR(x, d->groups, MIRROR_IN);
    TENSOR(y, d->groups, MIRROR_OUT);
    ARRAY(shift_histogram, F8_SHIFT_BINS * 8, MIRROR_OUT);
    d->groups = device_groups(c, d->groups);
}

DESCRIBE(permute_plan)
{
    ARRAY(expert, d->plan->num_tokens * d->plan->top_k * 4, MIRROR_IN);
    d->plan = device_plan(c, d->plan, MIRROR_OUT);
}

DESCRIBE(permute)
{
    const fp8flow_plan *plan = d->plan;
    d->plan = device_filled_plan(c, plan, (const fp8flow_tensor *[2]){ d->rows, d->columns });
    TENSOR(x, NULL, MIRROR_IN);
    TENSOR(rows, NULL, MIRROR_OUT);
    TENSOR(columns, NULL, MIRROR_OUT);
    ARRAY(gate, plan->num_tokens * plan->top_k * 4, MIRROR_IN);
    ARRAY(gate_rows, f8_plan_rows(plan) * 4, MIRROR_OUT);
    ARRAY(shift_histogram, F8_SHIFT_BINS * 8, MIRROR_OUT);
}

DESCRIBE(unpermute)
{
    const fp8flow_plan *plan = d->plan;
    d->plan = device_filled_plan(c, plan, (const fp8flow_tensor *[2]){ d->x, NULL });
    TENSOR(x, NULL, MIRROR_IN);
    TENSOR(y, NULL, MIRROR_OUT);
    ARRAY(gate_rows, f8_plan_rows(plan) * 4, MIRROR_IN);
    ARRAY(gate, plan->num_tokens * plan->top_k * 4, MIRROR_OUT);
}

DESCRIBE(rank_destinations)
{
    ARRAY(expert, d->num_tokens * d->top_k * 4, MIRROR_IN);
    ARRAY(destination, d->num_tokens * d->num_ranks * 4, MIRROR_OUT);
}

DESCRIBE(rank_routing)
{
    const fp8flow_plan *plan = d->plan;
    int64_t slots = plan->num_tokens * d->top_k, sent = f8_plan_rows(plan) * d->top_k;
    ARRAY(expert, slots * 4, MIRROR_IN);
    ARRAY(gate, slots * 4, MIRROR_IN);
    ARRAY(sent_expert, sent * 4, MIRROR_OUT);
    ARRAY(sent_gate, sent * 4, MIRROR_OUT);
    d->plan = device_plan(c, plan, MIRROR_IN);
}

DESCRIBE(rank_gates)
{
    const fp8flow_plan *plan = d->plan;
    int64_t slots = plan->num_tokens * d->top_k;
    ARRAY(expert, slots * 4, MIRROR_IN);
    ARRAY(returned, f8_plan_rows(plan) * d->top_k * 4, MIRROR_IN);
    ARRAY(gate, slots * 4, MIRROR_OUT);
    d->plan = device_plan(c, plan, MIRROR_IN);
}

DESCRIBE(swiglu)
{
    ARRAY(gate, padded_rows(d->h, d->groups) * 4, MIRROR_IN);
    TENSOR(h, d->groups, MIRROR_IN);
    TENSOR(rows, d->groups, MIRROR_OUT);
    TENSOR(columns, d->groups, MIRROR_OUT);
    ARRAY(nonfinite, 8, MIRROR_OUT);
    d->groups = device_groups(c, d->groups);
}

DESCRIBE(swiglu_backward)
{
    ARRAY(gate, padded_rows(d->h, d->groups) * 4, MIRROR_IN);
    ARRAY(dgate, padded_rows(d->h, d->groups) * 4, MIRROR_OUT);
    TENSOR(h, d->groups, MIRROR_IN);
    TENSOR(dv, d->groups, MIRROR_IN);
    TENSOR(rows, d->groups, MIRROR_OUT);
    TENSOR(columns, d->groups, MIRROR_OUT);
    TENSOR(v_columns, d->groups, MIRROR_OUT);
    ARRAY(nonfinite, 8, MIRROR_OUT);
    d->groups = device_groups(c, d->groups);
}

/* Bytes of an array of a router with one 4-byte value per token, chosen expert, ... */
static int64_t per_token(int64_t num_tokens, int64_t each)
{
    return num_tokens * each * 4;
}

static int64_t per_sequence(const fp8flow_router_config *config, int64_t num_tokens)
{
    return num_tokens / config->sequence_length * config->num_experts * 4;
}

DESCRIBE(router)
{
    int64_t tokens = d->logits->rows, experts = d->config->num_experts, top_k = d->config->top_k;
    TENSOR(logits, NULL, MIRROR_IN);
    ARRAY(bias, experts * 4, MIRROR_IN);
    ARRAY(expert, per_token(tokens, top_k), MIRROR_OUT);
    ARRAY(gate, per_token(tokens, top_k), MIRROR_OUT);
    ARRAY(scores, per_token(tokens, experts), MIRROR_OUT);
    ARRAY(log_sum_exp, per_token(tokens, 1), MIRROR_OUT);
    ARRAY(counts, per_sequence(d->config, tokens), MIRROR_OUT);
    ARRAY(score_sums, per_sequence(d->config, tokens), MIRROR_OUT);
}

static const fp8flow_router_load *device_load(call *c, const fp8flow_router_load *load, int64_t num_experts)
{
    if (!load) return NULL;
    c->load = *load;
    mirror_add_array(&c->mirror, "load->total_counts", &c->load.total_counts, num_experts * 8, MIRROR_IN);
    mirror_add_array(&c->mirror, "load->total_score_sums", &c->load.total_score_sums, num_experts * 4, MIRROR_IN);
    return &c->load;
}

DESCRIBE(router_loss)
{
    ARRAY(counts, per_sequence(d->config, d->num_tokens), MIRROR_IN);
    ARRAY(score_sums, per_sequence(d->config, d->num_tokens), MIRROR_IN);
    ARRAY(log_sum_exp, per_token(d->num_tokens, 1), MIRROR_IN);
    ARRAY(losses, 3 * 8, MIRROR_OUT);
    d->load = device_load(c, d->load, d->config->num_experts);
}

DESCRIBE(router_backward)
{
    int64_t experts = d->config->num_experts, top_k = d->config->top_k;
    ARRAY(logits, per_token(d->num_tokens, experts), MIRROR_IN);
    ARRAY(scores, per_token(d->num_tokens, experts), MIRROR_IN);
    ARRAY(log_sum_exp, per_token(d->num_tokens, 1), MIRROR_IN);
    ARRAY(expert, per_token(d->num_tokens, top_k), MIRROR_IN);
    ARRAY(counts, per_sequence(d->config, d->num_tokens), MIRROR_IN);
    ARRAY(dgate, per_token(d->num_tokens, top_k), MIRROR_IN);
    ARRAY(dlogits, per_token(d->num_tokens, experts), MIRROR_OUT);
    d->load = device_load(c, d->load, experts);
}

DESCRIBE(router_sum)
{
    int64_t figures = d->num_sequences * d->num_experts;
    ARRAY(counts, figures * 4, MIRROR_IN);
    ARRAY(score_sums, figures * 4, MIRROR_IN);
    ARRAY(total_counts, d->num_experts * 8, MIRROR_OUT);
    ARRAY(total_score_sums, d->num_experts * 4, MIRROR_OUT);
}

DESCRIBE(add_counts)
{
    ARRAY(x, d->count * 8, MIRROR_IN);
    ARRAY(y, d->count * 8, MIRROR_OUT);
}

DESCRIBE(router_bias_update)
{
    ARRAY(counts, d->num_experts * 8, MIRROR_IN);
    ARRAY(bias, d->num_experts * 4, MIRROR_OUT);
}

DESCRIBE(gemm)
{
    TENSOR(a, d->groups, MIRROR_IN);
    TENSOR(b, d->groups, MIRROR_IN);
    TENSOR(c, d->groups, MIRROR_OUT);
    d->groups = device_groups(c, d->groups);
}

DESCRIBE(add)
{
    TENSOR(a, NULL, MIRROR_IN);
    TENSOR(b, NULL, MIRROR_IN);
    TENSOR(y, NULL, MIRROR_OUT);
}

DESCRIBE(rmsnorm)
{
    int64_t segments = d->x->rows * (d->x->cols / d->width);
    TENSOR(x, NULL, MIRROR_IN);
    ARRAY(weight, d->width * 4, MIRROR_IN);
    TENSOR(y, NULL, MIRROR_OUT);
    ARRAY(rstd, segments * 4, MIRROR_OUT);
}

DESCRIBE(rmsnorm_backward)
{
    int64_t segments = d->x->rows * (d->x->cols / d->width);
    TENSOR(x, NULL, MIRROR_IN);
    TENSOR(dy, NULL, MIRROR_IN);
    ARRAY(weight, d->width * 4, MIRROR_IN);
    ARRAY(rstd, segments * 4, MIRROR_IN);
    TENSOR(dx, NULL, MIRROR_OUT);
    ARRAY(dweight, d->width * 4, MIRROR_OUT);
}

DESCRIBE(rope)
{
    TENSOR(x, NULL, MIRROR_OUT);
}

DESCRIBE(attention)
{
    ARRAY(lse, d->q->rows * d->num_heads * 4, MIRROR_OUT);
    TENSOR(q, NULL, MIRROR_IN);
    TENSOR(k, NULL, MIRROR_IN);
    TENSOR(v, NULL, MIRROR_IN);
    TENSOR(o, NULL, MIRROR_OUT);
}

DESCRIBE(attention_backward)
{
    ARRAY(lse, d->q->rows * d->num_heads * 4, MIRROR_IN);
    TENSOR(q, NULL, MIRROR_IN);
    TENSOR(k, NULL, MIRROR_IN);
    TENSOR(v, NULL, MIRROR_IN);
    TENSOR(o, NULL, MIRROR_IN);
    TENSOR(grad_o, NULL, MIRROR_IN);
    TENSOR(grad_q, NULL, MIRROR_OUT);
    TENSOR(grad_k, NULL, MIRROR_OUT);
    TENSOR(grad_v, NULL, MIRROR_OUT);
}

DESCRIBE(embed)
{
    ARRAY(ids, d->y->rows * 4, MIRROR_IN);
    TENSOR(table, NULL, MIRROR_IN);
    TENSOR(y, NULL, MIRROR_OUT);
}

DESCRIBE(embed_backward)
{
    ARRAY(ids, d->dy->rows * 4, MIRROR_IN);
    TENSOR(dy, NULL, MIRROR_IN);
    TENSOR(dtable, NULL, MIRROR_OUT);
}

DESCRIBE(cross_entropy)
{
    ARRAY(target, d->logits->rows * 4, MIRROR_IN);
    ARRAY(loss, d->logits->rows * 4, MIRROR_OUT);
    TENSOR(logits, NULL, MIRROR_IN);
    TENSOR(gradient, NULL, MIRROR_OUT);
}

DESCRIBE(sum)
{
    ARRAY(x, d->count * 4, MIRROR_IN);
    ARRAY(sum, 8, MIRROR_OUT);
}

DESCRIBE(clip)
{
    ARRAY(square_sums, d->count * 8, MIRROR_IN);
    ARRAY(norm, 8, MIRROR_OUT);
    ARRAY(scale, 4, MIRROR_OUT);
}

DESCRIBE(square_sum)
{
    ARRAY(x, d->count * 4, MIRROR_IN);
    ARRAY(sum, 8, MIRROR_OUT);
}

DESCRIBE(adamw)
{
    ARRAY(master, d->count * 4, MIRROR_OUT);
    ARRAY(m, d->count * 4, MIRROR_OUT);
    ARRAY(v, d->count * 4, MIRROR_OUT);
    ARRAY(grad, d->count * 4, MIRROR_IN);
    ARRAY(grad_scale, 4, MIRROR_IN);
    ARRAY(weight, d->count * 2, MIRROR_OUT);
    TENSOR(rows, NULL, MIRROR_OUT);
    TENSOR(columns, NULL, MIRROR_OUT);
}

DESCRIBE(measure)
{
    TENSOR(x, d->groups, MIRROR_IN);
    TENSOR(q, d->groups, MIRROR_IN);
    ARRAY(stats, sizeof *d->stats, MIRROR_OUT);
    d->groups = device_groups(c, d->groups);
}

/* ---- The table ---- */

static atomic_int calls[F8_NUM_OPS]; /* of each operator, so far */

static int is_sent(f8_op op)
{
    return atomic_fetch_add(&calls[op], 1) % mirror_every() == 0;
}

/* Whether the test goes on with the CPU's results although the device has done the call. */
static int is_only_tried(fp8flow_status status)
{
    return status == FP8FLOW_OK && mirror_every() > 1;
}

#define F8_X(op)                                                                        \
    static fp8flow_status mirror_##op(fp8flow_context *c, const fp8flow_##op##_args *a) \
    {                                                                                   \
        if (!is_sent(F8_OP_##op)) return f8_ops_cpu()->op(c, a);                        \
        call m = { .mirror = { .name = #op } };                                         \
        fp8flow_##op##_args d = *a;                                                     \
        describe_##op(&m, &d);                                                          \
        fp8flow_status status = mirror_begin(&m.mirror);                                \
        if (status == FP8FLOW_OK) status = fp8flow_##op(mirror_context(), &d);          \
        status = mirror_end(&m.mirror, status);                                         \
        return is_only_tried(status) ? f8_ops_cpu()->op(c, a) : status;                 \
    }
F8_OPS(F8_X)
#undef F8_X

#define F8_X(op) .op = mirror_##op,
const f8_ops mirror_ops = { .name = "mirror", F8_OPS(F8_X) };
#undef F8_X
