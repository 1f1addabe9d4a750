/* bench_moe.c - cases of the operators inside a MoE layer: formats, permute, SwiGLU, router. */
#include "bench.h"

#define RUN(op)                                       \
    static fp8flow_status run_##op(bench_fixture *f)  \
    {                                                 \
        return fp8flow_##op(f->context, &f->args.op); \
    }

RUN(quantize)
RUN(dequantize)
RUN(transpose)
RUN(measure)
RUN(permute_plan)
RUN(permute)
RUN(unpermute)
RUN(swiglu)
RUN(swiglu_backward)
RUN(router)
RUN(router_loss)
RUN(router_backward)
RUN(router_bias_update)

/* ---- Formats: plain [T, H] matrices --------------------------------------------------------- */

/* Formats of a case: in, rows out, columns out. */
typedef const bench_format *const case_formats[3];

static fp8flow_tensor *plain(bench_fixture *f, const bench_format *format)
{
    return bench_tensor(f, format, f->size.tokens, f->size.hidden, 0);
}

static void prepare_quantize(bench_fixture *f, case_formats formats)
{
    f->args.quantize = (fp8flow_quantize_args){ .x = plain(f, formats[0]),
                                                .rows = plain(f, formats[1]),
                                                .columns = plain(f, formats[2]) };
}

static void prepare_dequantize(bench_fixture *f, case_formats formats)
{
    f->args.dequantize = (fp8flow_dequantize_args){ .x = plain(f, formats[0]), .y = plain(f, formats[1]) };
}

static void prepare_transpose(bench_fixture *f, case_formats formats)
{
    f->args.transpose = (fp8flow_transpose_args){ .x = plain(f, formats[0]), .y = plain(f, formats[2]) };
}

/* ---- Rows of experts ------------------------------------------------------------------------ */

/* A matrix with one row per (token, expert) pair. */
static fp8flow_tensor *expert_rows(bench_fixture *f, const bench_format *format, int64_t cols)
{
    return bench_tensor(f, format, f->size.tokens * f->size.top_k, cols, 0);
}

/* Routing as input of a case that does not read it: only the plan's arrays it uses would count, a few bytes per
 * token against thousands; they are left out. */
static void route(bench_fixture *f)
{
    double bytes = f->bytes;
    bench_routing(f);
    f->bytes = bytes;
}

static void prepare_permute_plan(bench_fixture *f, case_formats formats)
{
    (void)formats;
    f->args.permute_plan = (fp8flow_permute_plan_args){ bench_routing(f), &f->plan };
}

static void prepare_permute(bench_fixture *f, case_formats formats)
{
    route(f);
    f->args.permute = (fp8flow_permute_args){ .x = plain(f, formats[0]), .plan = &f->plan };
    f->args.permute.rows = expert_rows(f, formats[1], f->size.hidden);
    f->args.permute.columns = expert_rows(f, formats[2], f->size.hidden);
    /* Each token row is read k times. */
    const fp8flow_tensor *x = f->args.permute.x;
    int64_t read = fp8flow_tensor_data_bytes(x) + (x->scale ? fp8flow_tensor_scale_bytes(x, 1) : 0);
    f->bytes += (double)(read * (f->size.top_k - 1));
}

static void prepare_unpermute(bench_fixture *f, case_formats formats)
{
    route(f);
    f->args.unpermute = (fp8flow_unpermute_args){ .x = expert_rows(f, formats[0], f->size.hidden), .plan = &f->plan };
    f->args.unpermute.y = plain(f, formats[1]);
}

static void prepare_swiglu(bench_fixture *f, case_formats formats)
{
    route(f);
    fp8flow_swiglu_args args = { .h = expert_rows(f, formats[0], 2 * f->size.width), .groups = &f->groups };
    args.gate = bench_array(f, f->size.tokens * f->size.top_k, BENCH_F32);
    args.rows = expert_rows(f, formats[1], f->size.width);
    args.columns = expert_rows(f, formats[2], f->size.width);
    f->args.swiglu = args;
}

static void prepare_swiglu_backward(bench_fixture *f, case_formats formats)
{
    route(f);
    int64_t rows = f->size.tokens * f->size.top_k, width = f->size.width;
    fp8flow_swiglu_backward_args args = { .h = expert_rows(f, &bench_bf16, 2 * width), .groups = &f->groups };
    args.gate = bench_array(f, rows, BENCH_F32);
    args.dv = expert_rows(f, formats[0], width);
    args.rows = expert_rows(f, formats[1], 2 * width);
    args.columns = expert_rows(f, formats[2], 2 * width);
    args.v_columns = expert_rows(f, formats[2], width);
    args.dgate = bench_array(f, rows, BENCH_F32);
    f->args.swiglu_backward = args;
}

/* ---- Router --------------------------------------------------------------------------------- */

/* Arguments and arrays that forward writes; the other router cases continue from them. */
static void prepare_router(bench_fixture *f, case_formats formats)
{
    const layer_shape *s = &f->size;
    f->router = (fp8flow_router_config){ .num_experts = s->experts,
                                         .top_k = s->top_k,
                                         .score = FP8FLOW_SCORE_SOFTMAX,
                                         .gate_rule = FP8FLOW_GATE_NORMALIZED,
                                         .gate_scale = 1.0f,
                                         .num_groups = 1,
                                         .top_groups = 1,
                                         .sequence_length = s->tokens,
                                         .aux_coef = 0.01f,
                                         .sequence_coef = 0.001f,
                                         .z_coef = 0.001f };
    fp8flow_router_args args = { .config = &f->router,
                                 .logits = bench_tensor(f, formats[0], s->tokens, s->experts, 0) };
    args.expert = bench_array(f, s->tokens * s->top_k, BENCH_ZERO);
    args.gate = bench_array(f, s->tokens * s->top_k, BENCH_F32);
    args.scores = bench_array(f, s->tokens * s->experts, BENCH_F32);
    args.log_sum_exp = bench_array(f, s->tokens, BENCH_F32);
    args.counts = bench_array(f, s->experts, BENCH_ZERO);
    args.score_sums = bench_array(f, s->experts, BENCH_F32);
    f->args.router = args;
}

/* Route once, then take its counts as those of the whole batch. */
static fp8flow_router_args route_once(bench_fixture *f, case_formats formats)
{
    prepare_router(f, formats);
    fp8flow_router_args args = f->args.router;
    int64_t *counts = bench_array(f, 2 * f->size.experts, BENCH_ZERO);
    f->load = (fp8flow_router_load){ f->size.tokens, counts, args.score_sums };
    if (!f->is_out_of_memory && fp8flow_router(f->context, &args) == FP8FLOW_OK)
        for (int64_t e = 0; e < f->size.experts; e++) counts[e] = args.counts[e];
    f->bytes = 0;
    return args;
}

static void prepare_router_loss(bench_fixture *f, case_formats formats)
{
    fp8flow_router_args routed = route_once(f, formats);
    f->args.router_loss = (fp8flow_router_loss_args){ .config = &f->router,
                                                      .num_tokens = f->size.tokens,
                                                      .counts = routed.counts,
                                                      .score_sums = routed.score_sums,
                                                      .log_sum_exp = routed.log_sum_exp,
                                                      .load = &f->load,
                                                      .losses = f->result };
    f->bytes = 4.0 * (double)(f->size.tokens + 5 * f->size.experts);
}

static void prepare_router_backward(bench_fixture *f, case_formats formats)
{
    const layer_shape *s = &f->size;
    fp8flow_router_args routed = route_once(f, formats);
    fp8flow_router_backward_args args = { .config = &f->router,
                                          .num_tokens = s->tokens,
                                          .scores = routed.scores,
                                          .log_sum_exp = routed.log_sum_exp,
                                          .expert = routed.expert,
                                          .counts = routed.counts,
                                          .load = &f->load,
                                          .loss_scale = 1.0f };
    args.logits = routed.logits ? routed.logits->data : NULL;
    args.dgate = bench_array(f, s->tokens * s->top_k, BENCH_F32);
    args.dlogits = bench_array(f, s->tokens * s->experts, BENCH_F32);
    f->args.router_backward = args;
    f->bytes = 4.0 * (double)(s->tokens * (3 * s->experts + 2 * s->top_k + 1));
}

static void prepare_router_bias_update(bench_fixture *f, case_formats formats)
{
    (void)formats;
    int64_t experts = f->size.experts;
    f->args.router_bias_update = (fp8flow_router_bias_update_args){ experts, bench_array(f, 2 * experts, BENCH_ZERO),
                                                                    1e-3f, bench_array(f, experts, BENCH_F32) };
    f->bytes = 16.0 * (double)experts;
}

/* ---- Table ---------------------------------------------------------------------------------- */

#define MEASURED(op) prepare_##op, run_##op

static void prepare_measure(bench_fixture *f, case_formats formats)
{
    fp8flow_tensor_stats *stats = bench_array(f, (int64_t)sizeof *stats / 4, BENCH_ZERO);
    f->bytes = 0;
    f->args.measure = (fp8flow_measure_args){ .x = plain(f, formats[0]), .q = plain(f, formats[1]), .stats = stats };
}

static const bench_case cases[] = {
    { "quantize row128", BENCH_PLAIN, MEASURED(quantize), { &bench_bf16, &bench_row128, NULL } },
    { "quantize row128+col128", BENCH_PLAIN, MEASURED(quantize), { &bench_bf16, &bench_row128, &bench_col128 } },
    { "quantize tile128 both",
      BENCH_PLAIN,
      MEASURED(quantize),
      { &bench_bf16, &bench_tile_rows, &bench_tile_columns } },
    { "quantize tensor", BENCH_PLAIN, MEASURED(quantize), { &bench_bf16, &bench_tensor_rows, NULL } },
    { "dequantize row128", BENCH_PLAIN, MEASURED(dequantize), { &bench_row128, &bench_bf16, NULL } },
    { "dequantize col128", BENCH_PLAIN, MEASURED(dequantize), { &bench_col128, &bench_bf16, NULL } },
    { "transpose row128>tile128", BENCH_PLAIN, MEASURED(transpose), { &bench_row128, NULL, &bench_tile_columns } },
    { "transpose row128>col128", BENCH_PLAIN, MEASURED(transpose), { &bench_row128, NULL, &bench_col128 } },
    { "transpose bytes", BENCH_PLAIN, MEASURED(transpose), { &bench_tensor_rows, NULL, &bench_tensor_columns } },
    { "measure row128", BENCH_PLAIN, MEASURED(measure), { &bench_bf16, &bench_row128, NULL } },
    { "permute_plan", BENCH_EXPERTS, MEASURED(permute_plan), { NULL, NULL, NULL } },
    { "permute bf16", BENCH_EXPERTS, MEASURED(permute), { &bench_bf16, &bench_bf16, NULL } },
    { "permute row128", BENCH_EXPERTS, MEASURED(permute), { &bench_row128, &bench_row128, NULL } },
    { "permute row128+tile128",
      BENCH_EXPERTS,
      MEASURED(permute),
      { &bench_row128, &bench_row128, &bench_tile_columns } },
    { "permute row128+col128", BENCH_EXPERTS, MEASURED(permute), { &bench_row128, &bench_row128, &bench_col128 } },
    { "unpermute", BENCH_EXPERTS, MEASURED(unpermute), { &bench_bf16, &bench_bf16, NULL } },
    { "swiglu bf16", BENCH_EXPERTS, MEASURED(swiglu), { &bench_bf16, &bench_bf16, NULL } },
    { "swiglu row128", BENCH_EXPERTS, MEASURED(swiglu), { &bench_bf16, &bench_row128, NULL } },
    { "swiglu row128+tile128", BENCH_EXPERTS, MEASURED(swiglu), { &bench_bf16, &bench_row128, &bench_tile_columns } },
    { "swiglu_backward bf16", BENCH_EXPERTS, MEASURED(swiglu_backward), { &bench_bf16, &bench_bf16, NULL } },
    { "swiglu_backward row128", BENCH_EXPERTS, MEASURED(swiglu_backward), { &bench_bf16, &bench_row128, NULL } },
    { "swiglu_backward row128+tile128",
      BENCH_EXPERTS,
      MEASURED(swiglu_backward),
      { &bench_bf16, &bench_row128, &bench_tile_columns } },
    { "router", BENCH_EXPERTS, MEASURED(router), { &bench_f32, NULL, NULL } },
    { "router_loss", BENCH_EXPERTS, MEASURED(router_loss), { &bench_f32, NULL, NULL } },
    { "router_backward", BENCH_EXPERTS, MEASURED(router_backward), { &bench_f32, NULL, NULL } },
    { "router_bias_update", BENCH_EXPERTS, MEASURED(router_bias_update), { NULL, NULL, NULL } },
};

int bench_run_moe_operators(bench *b, const bench_shape *shape)
{
    return bench_run_cases(b, shape, cases, (int64_t)(sizeof cases / sizeof *cases));
}
