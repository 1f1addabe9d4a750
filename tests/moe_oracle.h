/* moe_oracle.h - a MoE layer in FP64 with plain matrices and no ranks: what moe/ is measured against.
 *
 * Written from the formulas of fp8flow_ops.h alone and shares no code with the library. Its own gradients are
 * checked against finite differences of its forward in test_moe_oracle.c. Counts and the choice of experts are
 * constants of the gradient, as in the contract of router_backward.
 */
#ifndef F8_TESTS_MOE_ORACLE_H
#define F8_TESTS_MOE_ORACLE_H

#include "support.h"

#include "fp8flow.h"

/* Parameters and inputs, or the gradients of all of them. */
typedef struct {
    double *x, *router, *bias; /* [T, H], [E, H], [E] (no gradient; may be NULL) */
    double *fc1, *fc2;         /* [E, 2F, H], [E, H, F] */
    double *shared_fc1, *shared_fc2;
} oracle_values;

typedef struct {
    int64_t tokens, hidden, width, shared_width;
    fp8flow_router_config router;
    oracle_values in;
    /* results of forward */
    int32_t *expert;  /* [T, k] */
    int64_t *load;    /* [E] */
    double *logits;   /* [T, E] */
    double *gate;     /* [T, k] */
    double *h;        /* [T, k, 2F] */
    double *expert_y; /* [T, k, H] before the gate */
    double *shared_h; /* [T, 2 Fs] */
    double *y;        /* [T, H] */
    double *routed_y; /* [T, H] without the shared expert */
    double losses[3];
    double margin; /* smallest distance of a chosen from a rejected choice score: how safe the choice is */
} oracle;

static inline double *oracle_array(int64_t count)
{
    double *values = calloc(count > 0 ? (size_t)count : 1, sizeof *values);
    assert_non_null(values);
    return values;
}

/* Elements of the arrays of oracle_values, in the order of its fields. */
enum { ORACLE_FIELDS = 7 };
static inline void oracle_counts(const oracle *o, int64_t count[ORACLE_FIELDS])
{
    int64_t num_experts = o->router.num_experts, hidden = o->hidden;
    const int64_t all[ORACLE_FIELDS] = { o->tokens * hidden,
                                         num_experts * hidden,
                                         num_experts,
                                         num_experts * 2 * o->width * hidden,
                                         num_experts * hidden * o->width,
                                         2 * o->shared_width * hidden,
                                         hidden * o->shared_width };
    memcpy(count, all, sizeof all);
}

static inline void oracle_field_list(oracle_values *v, double **field[ORACLE_FIELDS])
{
    double **all[ORACLE_FIELDS] = { &v->x, &v->router, &v->bias, &v->fc1, &v->fc2, &v->shared_fc1, &v->shared_fc2 };
    memcpy(field, all, sizeof all);
}

static inline void oracle_make_values(const oracle *o, oracle_values *v)
{
    int64_t count[ORACLE_FIELDS];
    double **field[ORACLE_FIELDS];
    oracle_counts(o, count);
    oracle_field_list(v, field);
    for (int i = 0; i < ORACLE_FIELDS; i++) *field[i] = oracle_array(count[i]);
}

static inline void oracle_free_values(oracle_values *v)
{
    double **field[ORACLE_FIELDS];
    oracle_field_list(v, field);
    for (int i = 0; i < ORACLE_FIELDS; i++) free(*field[i]);
}

/* Shapes are set; memory for inputs and results. */
static inline void oracle_make(oracle *o)
{
    int64_t pairs = o->tokens * o->router.top_k, num_experts = o->router.num_experts;
    oracle_make_values(o, &o->in);
    o->expert = calloc((size_t)pairs + 1, sizeof *o->expert);
    o->load = calloc((size_t)num_experts, sizeof *o->load);
    o->logits = oracle_array(o->tokens * num_experts);
    o->gate = oracle_array(pairs);
    o->h = oracle_array(pairs * 2 * o->width);
    o->expert_y = oracle_array(pairs * o->hidden);
    o->shared_h = oracle_array(o->tokens * 2 * o->shared_width);
    o->y = oracle_array(o->tokens * o->hidden);
    o->routed_y = oracle_array(o->tokens * o->hidden);
}

static inline void oracle_free(oracle *o)
{
    oracle_free_values(&o->in);
    free(o->expert), free(o->load), free(o->logits), free(o->gate), free(o->h);
    free(o->expert_y), free(o->shared_h), free(o->y), free(o->routed_y);
}

/* ---- Small dense algebra ---- */

/* y [rows] = w [rows, cols] x [cols] */
static inline void oracle_times(const double *w, const double *x, int64_t rows, int64_t cols, double *y)
{
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t c = 0; c < cols; c++) sum += w[r * cols + c] * x[c];
        y[r] = sum;
    }
}

/* dx [cols] += w^T dy; dw [rows, cols] += dy x^T */
static inline void oracle_times_back(const double *w, const double *dy, const double *x, int64_t rows, int64_t cols,
                                     double *dx, double *dw)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            dx[c] += w[r * cols + c] * dy[r];
            dw[r * cols + c] += dy[r] * x[c];
        }
}

static inline double oracle_sigmoid(double a)
{
    return 1 / (1 + exp(-a));
}

static inline void oracle_swiglu(const double *h, int64_t width, double *v)
{
    for (int64_t f = 0; f < width; f++) v[f] = h[f] * oracle_sigmoid(h[f]) * h[width + f];
}

static inline void oracle_swiglu_back(const double *h, const double *dv, int64_t width, double *dh)
{
    for (int64_t f = 0; f < width; f++) {
        double a = h[f], b = h[width + f], s = oracle_sigmoid(a);
        dh[f] = dv[f] * b * s * (1 + a * (1 - s));
        dh[width + f] = dv[f] * a * s;
    }
}

static inline double oracle_log_sum_exp(const double *logits, int64_t count)
{
    double largest = logits[0], sum = 0;
    for (int64_t e = 0; e < count; e++) largest = fmax(largest, logits[e]);
    for (int64_t e = 0; e < count; e++) sum += exp(logits[e] - largest);
    return largest + log(sum);
}

/* ---- Routing ---- */

/* Scores of a token, and what the losses take for its load: the scores normalised to sum 1. */
static inline void oracle_scores(const oracle *o, const double *logits, double *score, double *normal)
{
    int64_t num_experts = o->router.num_experts;
    double lse = oracle_log_sum_exp(logits, num_experts), sum = 1e-20;
    int sigmoid = o->router.score == FP8FLOW_SCORE_SIGMOID;
    for (int64_t e = 0; e < num_experts; e++) {
        score[e] = sigmoid ? oracle_sigmoid(logits[e]) : exp(logits[e] - lse);
        sum += score[e];
    }
    for (int64_t e = 0; e < num_experts; e++) normal[e] = sigmoid ? score[e] / sum : score[e];
}

/* Index of the largest allowed value; ties to the lower index. */
static inline int64_t oracle_best(const double *value, const char *allowed, int64_t count)
{
    int64_t best = -1;
    for (int64_t i = 0; i < count; i++)
        if (allowed[i] && (best < 0 || value[i] > value[best])) best = i;
    return best;
}

/* Take the best out of `allowed` until num_chosen are taken; note how close the next one came. */
static inline void oracle_take_best(oracle *o, const double *value, char *allowed, int64_t count, int64_t num_chosen,
                                    int32_t *chosen)
{
    for (int64_t i = 0; i < num_chosen; i++) {
        int64_t best = oracle_best(value, allowed, count);
        if (best < 0) return;
        chosen[i] = (int32_t)best;
        allowed[best] = 0;
        int64_t next = oracle_best(value, allowed, count);
        if (next >= 0) o->margin = fmin(o->margin, value[best] - value[next]);
    }
}

static inline void oracle_choose(oracle *o, int64_t token, const double *score)
{
    const fp8flow_router_config *r = &o->router;
    int64_t num_experts = r->num_experts, size = num_experts / r->num_groups;
    double base[64], group_value[64];
    char allowed[64], groups[64];
    int32_t chosen[64];
    for (int64_t e = 0; e < num_experts; e++) {
        double value = r->score == FP8FLOW_SCORE_SOFTMAX_TOPK ? o->logits[token * num_experts + e] : score[e];
        base[e] = value + (o->in.bias ? o->in.bias[e] : 0);
        allowed[e] = r->num_groups == r->top_groups;
    }
    for (int64_t g = 0; g < r->num_groups; g++) {
        double first = -INFINITY, second = -INFINITY;
        for (int64_t e = g * size; e < (g + 1) * size; e++) {
            if (base[e] > first) second = first, first = base[e];
            else if (base[e] > second) second = base[e];
        }
        group_value[g] = r->group_score == FP8FLOW_GROUP_TOP2_SUM && size > 1 ? first + second : first;
        groups[g] = 1;
    }
    if (r->num_groups != r->top_groups) {
        oracle_take_best(o, group_value, groups, r->num_groups, r->top_groups, chosen);
        for (int64_t i = 0; i < r->top_groups; i++) memset(allowed + chosen[i] * size, 1, (size_t)size);
    }
    oracle_take_best(o, base, allowed, num_experts, r->top_k, o->expert + token * r->top_k);
}

/* Divisor of the gates of a token (1 for RAW), and the numerators. */
static inline double oracle_gate_parts(const oracle *o, int64_t token, const double *score, double *numerator)
{
    const fp8flow_router_config *r = &o->router;
    const double *logits = o->logits + token * r->num_experts;
    double sum = r->score == FP8FLOW_SCORE_SIGMOID ? 1e-20 : 0;
    for (int64_t i = 0; i < r->top_k; i++) {
        int32_t e = o->expert[token * r->top_k + i];
        numerator[i] = r->score == FP8FLOW_SCORE_SOFTMAX_TOPK ? exp(logits[e]) : score[e];
        sum += numerator[i];
    }
    return r->score == FP8FLOW_SCORE_SOFTMAX_TOPK || r->gate_rule == FP8FLOW_GATE_NORMALIZED ? sum : 1;
}

/* Gradient factor of each expert's normalised score: what the auxiliary and the sequence loss multiply it with. */
static inline double oracle_load_factor(const oracle *o, int64_t token, int64_t e)
{
    const fp8flow_router_config *r = &o->router;
    double k = (double)r->top_k, tokens = (double)o->tokens, num_experts = (double)r->num_experts;
    double factor = r->aux_coef * num_experts * ((double)o->load[e] / (tokens * k)) / tokens;
    if (r->sequence_coef == 0.0f) return factor;
    int64_t length = r->sequence_length, first = token / length * length, count = 0;
    for (int64_t i = first * r->top_k; i < (first + length) * r->top_k; i++) count += o->expert[i] == e;
    double frequency = (double)count / ((double)length * k);
    return factor + r->sequence_coef * num_experts * frequency / tokens;
}

static inline void oracle_losses(oracle *o)
{
    const fp8flow_router_config *r = &o->router;
    double score[64], normal[64];
    memset(o->losses, 0, sizeof o->losses);
    for (int64_t t = 0; t < o->tokens; t++) {
        const double *logits = o->logits + t * r->num_experts;
        oracle_scores(o, logits, score, normal);
        double lse = oracle_log_sum_exp(logits, r->num_experts);
        o->losses[2] += r->z_coef * lse * lse / (double)o->tokens;
        for (int64_t e = 0; e < r->num_experts; e++) {
            double aux = r->aux_coef * (double)(r->num_experts * o->load[e]) /
                         ((double)(o->tokens * r->top_k) * (double)o->tokens);
            o->losses[0] += aux * normal[e];
            o->losses[1] += (oracle_load_factor(o, t, e) - aux) * normal[e];
        }
    }
}

/* ---- Forward ---- */

typedef enum { ORACLE_CHOOSE, ORACLE_KEEP_CHOICE } oracle_choice;

static inline void oracle_route(oracle *o, oracle_choice choice)
{
    const fp8flow_router_config *r = &o->router;
    double score[64], normal[64], numerator[64];
    if (choice == ORACLE_CHOOSE) o->margin = INFINITY;
    memset(o->load, 0, (size_t)r->num_experts * sizeof *o->load);
    for (int64_t t = 0; t < o->tokens; t++) {
        double *logits = o->logits + t * r->num_experts;
        oracle_times(o->in.router, o->in.x + t * o->hidden, r->num_experts, o->hidden, logits);
        oracle_scores(o, logits, score, normal);
        if (choice == ORACLE_CHOOSE) oracle_choose(o, t, score);
        double divisor = oracle_gate_parts(o, t, score, numerator);
        for (int64_t i = 0; i < r->top_k; i++) {
            o->gate[t * r->top_k + i] = numerator[i] / divisor * r->gate_scale;
            o->load[o->expert[t * r->top_k + i]]++;
        }
    }
    oracle_losses(o);
}

/* y [T, H], routed_y, losses. */
static inline void oracle_forward(oracle *o, oracle_choice choice)
{
    int64_t hidden = o->hidden, width = o->width, shared = o->shared_width, top_k = o->router.top_k;
    double *v = oracle_array(width + shared), *y = oracle_array(hidden);
    oracle_route(o, choice);
    for (int64_t t = 0; t < o->tokens; t++) {
        const double *x = o->in.x + t * hidden;
        double *total = o->y + t * hidden, *routed = o->routed_y + t * hidden;
        memset(routed, 0, (size_t)hidden * sizeof *routed);
        for (int64_t i = t * top_k; i < (t + 1) * top_k; i++) {
            double *h = o->h + i * 2 * width, *out = o->expert_y + i * hidden;
            oracle_times(o->in.fc1 + o->expert[i] * 2 * width * hidden, x, 2 * width, hidden, h);
            oracle_swiglu(h, width, v);
            oracle_times(o->in.fc2 + o->expert[i] * hidden * width, v, hidden, width, out);
            for (int64_t c = 0; c < hidden; c++) routed[c] += o->gate[i] * out[c];
        }
        memset(y, 0, (size_t)hidden * sizeof *y);
        if (shared) {
            double *h = o->shared_h + t * 2 * shared;
            oracle_times(o->in.shared_fc1, x, 2 * shared, hidden, h);
            oracle_swiglu(h, shared, v);
            oracle_times(o->in.shared_fc2, v, hidden, shared, y);
        }
        for (int64_t c = 0; c < hidden; c++) total[c] = routed[c] + y[c];
    }
    free(v), free(y);
}

/* ---- Backward ---- */

/* d(sum of values_i * weight_i)/d(score), where values = score / sum over `all` scores. */
static inline void oracle_normalised_back(const double *value, const double *weight, int64_t count, double divisor,
                                          double *back)
{
    double mean = 0;
    for (int64_t i = 0; i < count; i++) mean += value[i] * weight[i];
    for (int64_t i = 0; i < count; i++) back[i] = (weight[i] - mean / divisor) / divisor;
}

/* dlogits [E] of one token from the gradients of its gates. */
static inline void oracle_logits_back(const oracle *o, int64_t token, const double *dgate, double loss_scale,
                                      double *dlogits)
{
    const fp8flow_router_config *r = &o->router;
    int64_t num_experts = r->num_experts, top_k = r->top_k;
    const double *logits = o->logits + token * num_experts;
    const int32_t *expert = o->expert + token * top_k;
    double score[64], normal[64], numerator[64], dgate_scaled[64], back[64], dscore[64] = { 0 }, factor[64];
    oracle_scores(o, logits, score, normal);
    double divisor = oracle_gate_parts(o, token, score, numerator), sum = 1e-20, mean = 0;
    double lse = oracle_log_sum_exp(logits, num_experts);
    for (int64_t i = 0; i < top_k; i++) dgate_scaled[i] = dgate[i] * r->gate_scale, back[i] = dgate_scaled[i];
    int divided = r->score == FP8FLOW_SCORE_SOFTMAX_TOPK || r->gate_rule == FP8FLOW_GATE_NORMALIZED;
    if (divided) oracle_normalised_back(numerator, dgate_scaled, top_k, divisor, back);
    for (int64_t e = 0; e < num_experts; e++) {
        dlogits[e] = 0;
        sum += score[e];
        factor[e] = loss_scale * oracle_load_factor(o, token, e);
    }
    if (r->score == FP8FLOW_SCORE_SIGMOID) oracle_normalised_back(score, factor, num_experts, sum, dscore);
    else memcpy(dscore, factor, (size_t)num_experts * sizeof *dscore);
    for (int64_t i = 0; i < top_k; i++) {
        if (r->score == FP8FLOW_SCORE_SOFTMAX_TOPK) dlogits[expert[i]] += back[i] * numerator[i];
        else dscore[expert[i]] += back[i];
    }
    for (int64_t e = 0; e < num_experts; e++) mean += dscore[e] * score[e];
    for (int64_t e = 0; e < num_experts; e++) {
        double slope = r->score == FP8FLOW_SCORE_SIGMOID ? dscore[e] * (1 - score[e]) : dscore[e] - mean;
        double z = 2 * loss_scale * r->z_coef * lse * exp(logits[e] - lse) / (double)o->tokens;
        dlogits[e] += score[e] * slope + z;
    }
}

/* One expert, shared or not, and one token: adds to dx and to the weight gradients. */
static inline void oracle_expert_back(const double *fc1, const double *fc2, const double *x, const double *h,
                                      const double *dout, const int64_t shape[2], double *dx, double *dfc1,
                                      double *dfc2)
{
    int64_t hidden = shape[0], width = shape[1];
    double *v = oracle_array(width), *dv = oracle_array(width), *dh = oracle_array(2 * width);
    oracle_swiglu(h, width, v);
    oracle_times_back(fc2, dout, v, hidden, width, dv, dfc2);
    oracle_swiglu_back(h, dv, width, dh);
    oracle_times_back(fc1, dh, x, 2 * width, hidden, dx, dfc1);
    free(v), free(dv), free(dh);
}

/* Gradients of sum y*dy + loss_scale * losses, added to g. */
static inline void oracle_backward(const oracle *o, const double *dy, double loss_scale, oracle_values *g)
{
    int64_t hidden = o->hidden, top_k = o->router.top_k, num_experts = o->router.num_experts;
    const int64_t shape[2] = { hidden, o->width }, shared[2] = { hidden, o->shared_width };
    int64_t fc1_size = 2 * o->width * hidden, fc2_size = hidden * o->width;
    double *dout = oracle_array(hidden), dgate[64], dlogits[64];
    for (int64_t t = 0; t < o->tokens; t++) {
        const double *x = o->in.x + t * hidden, *dy_row = dy + t * hidden;
        double *dx = g->x + t * hidden;
        for (int64_t i = 0; i < top_k; i++) {
            int64_t pair = t * top_k + i, e = o->expert[pair];
            dgate[i] = 0;
            for (int64_t c = 0; c < hidden; c++) {
                dgate[i] += dy_row[c] * o->expert_y[pair * hidden + c];
                dout[c] = dy_row[c] * o->gate[pair];
            }
            oracle_expert_back(o->in.fc1 + e * fc1_size, o->in.fc2 + e * fc2_size, x, o->h + pair * 2 * o->width, dout,
                               shape, dx, g->fc1 + e * fc1_size, g->fc2 + e * fc2_size);
        }
        oracle_logits_back(o, t, dgate, loss_scale, dlogits);
        oracle_times_back(o->in.router, dlogits, x, num_experts, hidden, dx, g->router);
        if (o->shared_width)
            oracle_expert_back(o->in.shared_fc1, o->in.shared_fc2, x, o->shared_h + t * 2 * o->shared_width, dy_row,
                               shared, dx, g->shared_fc1, g->shared_fc2);
    }
    free(dout);
}

#endif
