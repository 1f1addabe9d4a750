/* moe.h - the inside of the MoE layer: all of layer 3 on one page.
 *
 *   moe.c           create, destroy, quantised weights, reports
 *   edge.c          f8_bring_rows, f8_bring_columns: the only place where a tensor changes format; casts counted
 *   observe.c       numerics of the FP8 tensors, on request
 *   ep.c            which token goes to which rank; dispatch and combine over comm
 *   moe_forward.c   route, dispatch, experts, combine: one straight list
 *   moe_backward.c  the same list upside down, plus weight gradients
 *
 * Memory: `saved` holds what forward keeps for backward; everything else is drawn from the context's
 * workspace, which is empty between calls. Both are sized at create by running the same code with measuring
 * arenas (`measuring`: operators and collectives are skipped, the largest possible counts are assumed).
 *
 * All of it is memory of the context's device. A layer that is alone does not wait for the device: how many rows the
 * experts have with padding is known there alone, and tensors of that many rows have as many as are possible. Several
 * ranks wait once for the numbers of rows that they send (f8_ep_count), and for what their transport waits for. What
 * the layer counts is read when somebody asks for it.
 */
#ifndef F8_MOE_MOE_H
#define F8_MOE_MOE_H

#include "base/arena.h"
#include "comm/comm.h"
#include "fp8flow.h"
#include "ops/ops.h"
#include "recipe/recipe.h"

enum { F8_MAX_RANKS = 256 };

/* A weight of the experts in the forms that products want; equal to each other for BF16. */
typedef struct {
    fp8flow_tensor source;  /* BF16, as given by the caller */
    fp8flow_tensor rows;    /* fprop */
    fp8flow_tensor columns; /* dgrad: the column form in FP8, the rows in BF16 */
} f8_expert_weight;

/* What a layer counts on the way, in the context's memory. */
typedef struct {
    uint64_t nonfinite[F8_NUM_EDGES]; /* values that the quantiser of each edge saw */
    double losses[3];
    int32_t padded; /* rows of the experts of this rank with padding, last forward */
    int64_t load[]; /* [E]: tokens that chose the expert, all ranks of `world` */
} f8_moe_figures;

static inline size_t f8_moe_figures_bytes(int64_t num_experts)
{
    return sizeof(f8_moe_figures) + (size_t)num_experts * sizeof(int64_t);
}

/* Where operators put what an observer is told. */
typedef struct {
    fp8flow_tensor_stats stats;
    uint64_t shift_histogram[64];
} f8_moe_observed;

/* Everything about the tokens of the current step. S rows are sent, R received, P permuted and padded: the number of
 * rows on the CPU, the largest possible one elsewhere. */
typedef struct {
    int64_t tokens, sent, received, padded;
    /* router: [T, ...] */
    fp8flow_router_config router; /* the layer's, with the sequence length of this call */
    int32_t *expert, *counts;
    float *gate, *scores, *log_sum_exp, *score_sums, *logits;
    int64_t *total_counts; /* [E] over the ranks of `world` */
    float *total_sums;     /* [E] */
    int64_t total_tokens;
    /* expert parallelism: a token goes once to each rank that has one of its experts */
    fp8flow_plan send; /* "experts" are ranks: rows of the send order */
    int32_t send_rows[F8_MAX_RANKS], recv_rows[F8_MAX_RANKS];
    f8_arena_position before_sent;      /* of the workspace, while rows are on their way */
    int32_t *send_expert, *recv_expert; /* [S, k], [R, k]: local expert at the destination or -1 */
    float *send_gate, *recv_gate;
    fp8flow_tensor inbox; /* received rows, wire format [R, H] */
    /* experts: [P, ...] */
    fp8flow_plan plan;
    fp8flow_groups groups;
    float *gate_rows;
    fp8flow_tensor x1, x1_columns, h, x2, x2_columns;
    fp8flow_tensor shared_h; /* [T, 2 Fs] */
} f8_moe_state;

struct fp8flow_moe {
    fp8flow_context *context;
    fp8flow_comm *comm, *comm_device;   /* the ranks that share the experts out; the same for the context's memory */
    fp8flow_comm *world, *world_device; /* the ranks whose load is balanced together */
    fp8flow_moe_config config;
    f8_recipe recipe;
    int64_t first_expert, local_experts;
    fp8flow_moe_weights weights;
    f8_expert_weight fc1, fc2;
    int32_t *row_counts; /* [R] rows for each rank, in the program's memory once rows_counted has passed */
    void *rows_counted;
    void *weight_memory, *saved_memory;
    size_t weight_bytes;
    f8_arena saved;
    f8_arena *workspace; /* the context's, or a measuring one */
    int measuring;
    int recomputing; /* backward is computing again what forward did not keep */
    f8_moe_state state;
    int forward_done;
    fp8flow_moe_report report;
    f8_moe_figures *figures;      /* own_figures, or a collector's */
    f8_moe_figures *own_figures;  /* cleared by each forward */
    f8_moe_figures *figures_copy; /* in the program's memory, for reports */
    f8_moe_observed *observed;
    fp8flow_edge edge[F8_NUM_EDGES];
    fp8flow_observer *observer;
    void *observer_user;
};

/* An operator call or collective of the layer; skipped while measuring. */
#define F8_DO(moe, call)                     \
    do {                                     \
        if (!(moe)->measuring) F8_TRY(call); \
    } while (0)

/* 1 if this rank is the only one: nothing is sent, and the rows that others would receive are those that it has. */
int f8_moe_is_alone(const fp8flow_moe *m);

/* From now on add to `figures` (context memory, f8_moe_figures_bytes) and leave clearing and reading to the caller:
 * one read for all layers of a model and all forwards of a step. */
void f8_moe_collect(fp8flow_moe *m, f8_moe_figures *figures);

/* Sum load figures over the ranks of `world` from now on, which comprise those of the layer's comm: the groups of a
 * data-parallel job. Borrowed. Collective. */
fp8flow_status f8_moe_balance_over(fp8flow_moe *m, fp8flow_comm *world);

/* Largest possible number of received rows and of permuted, padded rows for `received` rows. */
int64_t f8_moe_max_received(const fp8flow_moe *m);
int64_t f8_moe_max_padded(const fp8flow_moe *m, int64_t received);

/* Memory for a tensor whose shape and format are set (codes and scales are two parts of one name). `groups`: scales of
 * TENSOR. */
fp8flow_status f8_draw_made(f8_arena *arena, const char *name, int64_t groups, fp8flow_tensor *tensor);

/* The same for a plain matrix, made here; not for TENSOR scaling. */
fp8flow_status f8_draw_tensor(f8_arena *arena, const char *name, f8_tensor_format format, int64_t rows, int64_t cols,
                              fp8flow_tensor *tensor);

/* ---- edge.c ---- */

/* What a pair of edges (row operand, its column form) asks for in one pass of the layer. */
typedef struct {
    f8_edge rows_edge, columns_edge;      /* columns_edge F8_NUM_EDGES: there is none (wires) */
    const char *producer;                 /* operator that made the source */
    const fp8flow_groups *groups;         /* NULL for wires */
    f8_arena *rows_arena, *columns_arena; /* NULL: this form is not wanted */
} f8_edge_pair;

/* 1 if the producer itself writes the tensor of this edge. */
int f8_edge_is_fused(const fp8flow_moe *m, f8_edge edge);

/* 1 if backward derives the column form of this edge from the row form, which must therefore be kept. */
int f8_edge_needs_rows(const fp8flow_moe *m, f8_edge columns_edge);

/* Draw the tensor of an edge in its format. */
fp8flow_status f8_edge_draw(fp8flow_moe *m, f8_edge edge, f8_arena *arena, int64_t rows, int64_t cols,
                            fp8flow_tensor *tensor);

/* The row operand from `source` (what the producer wrote), and the column form where one cast writes both.
 * Forms that are fused or taken as they are must be in `source` / *columns already. */
fp8flow_status f8_bring_rows(fp8flow_moe *m, const f8_edge_pair *pair, const fp8flow_tensor *source,
                             fp8flow_tensor *rows, fp8flow_tensor *columns);

/* The column form from the row form, where no producer wrote it. *columns is complete afterwards. */
fp8flow_status f8_bring_columns(fp8flow_moe *m, f8_edge edge, const fp8flow_tensor *rows, const fp8flow_groups *groups,
                                fp8flow_tensor *columns);

/* Enter a tensor into the dataflow report. */
void f8_edge_note(fp8flow_moe *m, f8_edge edge, const char *producer, const fp8flow_tensor *tensor);

/* Where the producer of a row edge counts non-finite values; NULL if the cast after it will. */
uint64_t *f8_producer_nonfinite(fp8flow_moe *m, f8_edge edge);

/* ---- observe.c: no-ops without an observer ---- */

/* Tell the observer about q, which stands for x (F32 or BF16). histogram NULL: not shifted. */
fp8flow_status f8_observe(fp8flow_moe *m, const char *name, const fp8flow_tensor *x, const fp8flow_tensor *q,
                          const fp8flow_groups *groups, const uint64_t *histogram);

/* A cleared histogram of shifts for the next operator; NULL if nobody looks. */
fp8flow_status f8_observe_shifts(fp8flow_moe *m, uint64_t **histogram);

/* The same for a column form made from a row form: compared with what the row form holds. */
fp8flow_status f8_observe_columns(fp8flow_moe *m, const char *name, const fp8flow_tensor *rows,
                                  const fp8flow_tensor *columns, const fp8flow_groups *groups,
                                  const uint64_t *histogram);

/* The fused outputs of swiglu and swiglu_backward, compared with the same operator's F32 output. */
fp8flow_status f8_observe_swiglu(fp8flow_moe *m, const fp8flow_tensor *q);
fp8flow_status f8_observe_swiglu_backward(fp8flow_moe *m, const fp8flow_tensor *dv, const fp8flow_tensor *dh_rows,
                                          const fp8flow_tensor *dh_columns, const fp8flow_tensor *x2_columns);

/* ---- ep.c ---- */

/* What the layer needs of its comm. Open is collective; close after a failed open too. */
fp8flow_status f8_ep_open(fp8flow_moe *m);
void f8_ep_close(fp8flow_moe *m);

/* From expert [T, k]: the send plan, drawn from `arena`. Waits for nothing. */
fp8flow_status f8_ep_plan(fp8flow_moe *m, f8_arena *arena);

/* How many rows go to each rank and come from it, and the routing of those that go. Waits for the plan on the device,
 * not for what was called since. Collective. */
fp8flow_status f8_ep_count(fp8flow_moe *m);

/* Send the wire tensor [T, H] to the ranks of its tokens' experts. with_routing: recv_expert and recv_gate too
 * (drawn from `arena` with the received rows). *bytes grows by the codes and scales sent. Collective. */
typedef enum { F8_ROWS_ONLY, F8_ROWS_AND_ROUTING } f8_record;
fp8flow_status f8_ep_dispatch(fp8flow_moe *m, f8_record record, const fp8flow_tensor *wire, f8_arena *arena,
                              fp8flow_tensor *received, int64_t *bytes);

/* The rows are on their way until here; what is put on the stream in between hides it where the transport can do that.
 * What was drawn from the workspace meanwhile is dropped now, with the rows that were sent. */
fp8flow_status f8_ep_arrive(fp8flow_moe *m);

/* Send rows [R, H] BF16 back and sum them per token in rank order: y [T, H]. F8_ROWS_AND_ROUTING: gate_rows [R, k]
 * travels along and arrives as gate [T, k]. *bytes grows by what is sent. Collective. */
fp8flow_status f8_ep_combine(fp8flow_moe *m, f8_record record, const fp8flow_tensor *rows, const float *gate_rows,
                             fp8flow_tensor *y, float *gate, int64_t *bytes);

/* ---- moe_forward.c ---- */

/* logits, choice, gates, load over all ranks; drawn from `arena`. Collective. */
fp8flow_status f8_moe_route(fp8flow_moe *m, const fp8flow_tensor *x, f8_arena *arena);

typedef enum { F8_PASS_FORWARD, F8_PASS_RECOMPUTE } f8_pass;

/* Cast to the wire and dispatch by the plan; f8_ep_arrive follows. */
fp8flow_status f8_moe_send(fp8flow_moe *m, const fp8flow_tensor *x, f8_pass pass, f8_arena *rows);

/* plan, permute, x1, fc1, h, swiglu, x2 as far as the pass needs them. */
fp8flow_status f8_moe_experts(fp8flow_moe *m, f8_pass pass);

/* One dense product (router, shared expert): c is overwritten; or the product is added, a weight's gradient, or an
 * activation that has other parts, in FP32 and rounded once. */
fp8flow_status f8_moe_product(fp8flow_moe *m, fp8flow_product product, const fp8flow_tensor *a, const fp8flow_tensor *b,
                              fp8flow_tensor *c);
fp8flow_status f8_moe_add_product(fp8flow_moe *m, fp8flow_product product, const fp8flow_tensor *a,
                                  const fp8flow_tensor *b, fp8flow_tensor *c);

/* forward and backward without argument checks, for measuring too. */
fp8flow_status f8_moe_run_forward(fp8flow_moe *m, const fp8flow_tensor *x, fp8flow_tensor *y);
fp8flow_status f8_moe_run_backward(fp8flow_moe *m, const fp8flow_tensor *x, const fp8flow_tensor *dy, float loss_scale,
                                   const fp8flow_moe_gradients *gradients, fp8flow_tensor *dx);

#endif
