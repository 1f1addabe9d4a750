/* bench_cuda_moe.c - cases of the operators that route tokens: plan, permute, unpermute, router and its products. See
 * bench_cuda.h. */
#include "bench_cuda.h"

GPU_RUN(permute_plan)
GPU_RUN(permute)
GPU_RUN(unpermute)
GPU_RUN(router)
GPU_RUN(router_backward)
GPU_RUN(gemm)

/* ---- Plan, permute, unpermute: shape is tokens, hidden, experts, k -------------------------- */

/* What permute_plan reads and writes. */
static double plan_bytes(const gpu_fixture *f)
{
    int64_t copies = f->shape->rows * f->shape->top_k;
    return 4.0 * (double)(2 * copies + 2 * f->shape->groups + 1 + f->padded_rows);
}

static void prepare_permute_plan(gpu_fixture *f)
{
    gpu_route(f);
    f->bytes = plan_bytes(f);
}

/* Permute continues from a plan that is there already. */
static void prepare_with_plan(gpu_fixture *f)
{
    gpu_route(f);
    if (f->status == FP8FLOW_OK) f->status = run_permute_plan(f);
}

static void prepare_permute_bf16(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    prepare_with_plan(f);
    fp8flow_permute_args args = { .x = gpu_values(f, &bench_bf16, s->rows, s->cols), .plan = &f->plan };
    args.rows = gpu_tensor(f, &bench_bf16, f->plan.capacity, s->cols, 0);
    f->args.permute = args;
    f->bytes = 2.0 * (double)((s->rows + f->padded_rows) * s->cols) + 4.0 * (double)f->padded_rows;
}

/* The plan is made anew in every measurement: that is what a layer has to do with every new routing. */
static void prepare_plan_permute(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    gpu_route(f);
    fp8flow_permute_args args = { .x = gpu_codes(f, s->rows, s->cols), .plan = &f->plan };
    args.rows = gpu_tensor(f, &bench_row128, f->plan.capacity, s->cols, 0);
    args.columns = gpu_tensor(f, &bench_tile_columns, f->plan.capacity, s->cols, 0);
    f->args.permute = args;
    int64_t scales = (s->cols + 127) / 128, row = s->cols + scales; /* of one row, codes and scales */
    int64_t columns = f->padded_rows * s->cols + f->padded_rows / 128 * scales;
    f->bytes = plan_bytes(f) + (double)(row * (s->rows + f->padded_rows) + columns);
}

static fp8flow_status run_plan_permute(gpu_fixture *f)
{
    fp8flow_status status = run_permute_plan(f);
    return status == FP8FLOW_OK ? run_permute(f) : status;
}

static void prepare_unpermute(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    prepare_with_plan(f);
    fp8flow_unpermute_args args = { .x = gpu_values(f, &bench_bf16, f->plan.capacity, s->cols), .plan = &f->plan };
    args.y = gpu_tensor(f, &bench_bf16, s->rows, s->cols, 0);
    f->args.unpermute = args;
    int64_t copies = s->rows * s->top_k;
    f->bytes = 2.0 * (double)((copies + s->rows) * s->cols) + 4.0 * (double)copies;
}

/* ---- Router: shape is tokens, -, experts, k; one sequence ----------------------------------- */

/* As in DeepSeek-V2-Lite, and as in DeepSeek-V3. */
static const fp8flow_router_config softmax_router = { .score = FP8FLOW_SCORE_SOFTMAX,
                                                      .gate_rule = FP8FLOW_GATE_RAW,
                                                      .gate_scale = 1.0f,
                                                      .num_groups = 1,
                                                      .top_groups = 1,
                                                      .aux_coef = 0.01f,
                                                      .sequence_coef = 0.001f,
                                                      .z_coef = 0.001f };
static const fp8flow_router_config sigmoid_router = { .score = FP8FLOW_SCORE_SIGMOID,
                                                      .gate_rule = FP8FLOW_GATE_NORMALIZED,
                                                      .gate_scale = 2.5f,
                                                      .num_groups = 8,
                                                      .top_groups = 4,
                                                      .group_score = FP8FLOW_GROUP_TOP2_SUM,
                                                      .sequence_coef = 0.0001f };

static void prepare_router(gpu_fixture *f, const fp8flow_router_config *config)
{
    const gpu_shape *s = f->shape;
    int64_t word = sizeof(float);
    f->router = *config;
    f->router.num_experts = s->groups;
    f->router.top_k = s->top_k;
    f->router.sequence_length = s->rows;
    fp8flow_router_args args = { .config = &f->router, .logits = gpu_values(f, &bench_f32, s->rows, s->groups) };
    if (config->score == FP8FLOW_SCORE_SIGMOID) args.bias = gpu_floats(f, 1, s->groups);
    args.expert = gpu_array(f, s->rows * s->top_k * word);
    args.gate = gpu_array(f, s->rows * s->top_k * word);
    args.scores = gpu_array(f, s->rows * s->groups * word);
    args.log_sum_exp = gpu_array(f, s->rows * word);
    args.counts = gpu_array(f, s->groups * word);
    args.score_sums = gpu_array(f, s->groups * word);
    f->args.router = args;
}

/* The counts of the one sequence are those of the batch, as int64. */
static int64_t *total_counts(gpu_fixture *f, const int32_t *counts)
{
    int32_t part[GPU_MAX_EXPERTS] = { 0 };
    int64_t total[GPU_MAX_EXPERTS] = { 0 }, experts = f->shape->groups;
    if (f->status == FP8FLOW_OK)
        f->status = fp8flow_memory_copy(f->context, part, counts, (size_t)experts * sizeof *part);
    for (int64_t e = 0; e < experts; e++) total[e] = part[e];
    return gpu_upload(f, total, experts * (int64_t)sizeof *total);
}

/* Of what the forward pass leaves, the scores, the choice and a few sums are needed; the logits are not. */
static void prepare_router_backward(gpu_fixture *f, const fp8flow_router_config *config)
{
    const gpu_shape *s = f->shape;
    prepare_router(f, config);
    if (f->status == FP8FLOW_OK) f->status = run_router(f);
    fp8flow_router_args routed = f->args.router;
    f->load = (fp8flow_router_load){ s->rows, total_counts(f, routed.counts), routed.score_sums };
    fp8flow_router_backward_args args = { .config = &f->router,
                                          .num_tokens = s->rows,
                                          .logits = routed.logits ? routed.logits->data : NULL,
                                          .scores = routed.scores,
                                          .log_sum_exp = routed.log_sum_exp,
                                          .expert = routed.expert,
                                          .counts = routed.counts,
                                          .load = &f->load,
                                          .loss_scale = 1.0f };
    args.dgate = gpu_floats(f, s->rows, s->top_k);
    args.dlogits = gpu_array(f, s->rows * s->groups * (int64_t)sizeof *args.dlogits);
    f->args.router_backward = args;
    f->bytes = 4.0 * (double)(2 * s->rows * (s->groups + s->top_k) + 3 * s->groups);
    if (f->router.z_coef > 0) f->bytes += 4.0 * (double)s->rows;
}

static void prepare_softmax(gpu_fixture *f)
{
    prepare_router(f, &softmax_router);
}

static void prepare_sigmoid(gpu_fixture *f)
{
    prepare_router(f, &sigmoid_router);
}

static void prepare_softmax_backward(gpu_fixture *f)
{
    prepare_router_backward(f, &softmax_router);
}

static void prepare_sigmoid_backward(gpu_fixture *f)
{
    prepare_router_backward(f, &sigmoid_router);
}

/* ---- A router's products: shape is tokens, hidden, experts ---------------------------------- */

static void prepare_router_fprop(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    fp8flow_gemm_args args = { .product = FP8FLOW_FPROP, .a = gpu_values(f, &bench_bf16, s->rows, s->cols) };
    args.b = gpu_values(f, &bench_f32, s->groups, s->cols);
    args.c = gpu_tensor(f, &bench_f32, s->rows, s->groups, 0);
    f->args.gemm = args;
}

static void prepare_router_dgrad(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    fp8flow_gemm_args args = { .product = FP8FLOW_DGRAD, .a = gpu_values(f, &bench_f32, s->rows, s->groups) };
    args.b = gpu_values(f, &bench_f32, s->groups, s->cols);
    args.c = gpu_tensor(f, &bench_bf16, s->rows, s->cols, 0);
    f->args.gemm = args;
}

/* As a layer has it: dx is read and written. */
static void prepare_router_dgrad_accumulate(gpu_fixture *f)
{
    prepare_router_dgrad(f);
    f->args.gemm.write = FP8FLOW_ACCUMULATE;
    f->bytes += 2.0 * (double)(f->shape->rows * f->shape->cols);
}

/* The gradient is read and written. */
static void prepare_router_wgrad(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    fp8flow_gemm_args args = { .product = FP8FLOW_WGRAD, .write = FP8FLOW_ACCUMULATE };
    args.a = gpu_values(f, &bench_f32, s->rows, s->groups);
    args.b = gpu_values(f, &bench_bf16, s->rows, s->cols);
    args.c = gpu_tensor(f, &bench_f32, s->groups, s->cols, 0);
    f->args.gemm = args;
    f->bytes += 4.0 * (double)(s->groups * s->cols);
}

/* ---- Table ---------------------------------------------------------------------------------- */

static const gpu_shape plans[] = { { "4096 k8 to 8", 4096, 0, 8, 8 },
                                   { "4096 k8 to 64", 4096, 0, 64, 8 },
                                   { "4096 k8 to 256", 4096, 0, 256, 8 } };
static const gpu_shape routings[] = { { "4096x7168 k8 to 8", 4096, 7168, 8, 8 },
                                      { "4096x1280 k7 to 64", 4096, 1280, 64, 7 },
                                      { "4096x2048 k6 to 64", 4096, 2048, 64, 6 },
                                      { "4096x5120 k6 to 160", 4096, 5120, 160, 6 },
                                      { "4096x7168 k8 to 256", 4096, 7168, 256, 8 } };
static const gpu_shape of_64[] = { { "4096x64 k6", 4096, 0, 64, 6 } };
static const gpu_shape of_256[] = { { "4096x256 k8 in 4 of 8", 4096, 0, 256, 8 } };

static const gpu_shape routers[] = { { "32768x7168 to 8", 32768, 7168, 8, 0 },
                                     { "8192x2048 to 64", 8192, 2048, 64, 0 },
                                     { "4096x7168 to 256", 4096, 7168, 256, 0 } };

/* clang-format off */
static const gpu_case cases[] = {
    { "permute_plan", GPU_NORMAL, { GPU_MICROSECONDS, 12 },
      GPU_AT(prepare_permute_plan, run_permute_plan, plans) },
    { "plan+permute row128+tile128", GPU_TAILS, { GPU_PERCENT, 80 },
      GPU_AT(prepare_plan_permute, run_plan_permute, routings) },
    { "permute bf16", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_permute_bf16, run_permute, routings) },
    { "unpermute", GPU_NORMAL, { GPU_PERCENT, 90 }, GPU_AT(prepare_unpermute, run_unpermute, routings) },
    { "router softmax", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_softmax, run_router, of_64) },
    { "router sigmoid", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_sigmoid, run_router, of_256) },
    { "router_backward softmax", GPU_NORMAL, { GPU_NO_GOAL, 0 },
      GPU_AT(prepare_softmax_backward, run_router_backward, of_64) },
    { "router_backward sigmoid", GPU_NORMAL, { GPU_NO_GOAL, 0 },
      GPU_AT(prepare_sigmoid_backward, run_router_backward, of_256) },
    { "gemm router fprop", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_router_fprop, run_gemm, routers) },
    { "gemm router dgrad", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_router_dgrad, run_gemm, routers) },
    { "gemm router dgrad accumulate", GPU_NORMAL, { GPU_NO_GOAL, 0 },
      GPU_AT(prepare_router_dgrad_accumulate, run_gemm, routers) },
    { "gemm router wgrad accumulate", GPU_NORMAL, { GPU_NO_GOAL, 0 },
      GPU_AT(prepare_router_wgrad, run_gemm, routers) },
};
/* clang-format on */

const gpu_cases gpu_moe_cases = { cases, (int64_t)(sizeof cases / sizeof *cases) };
