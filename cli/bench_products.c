/* bench_products.c - the grouped products of FC1 in every operand format, beside sgemm on the same shapes. */
#include "bench.h"
#include "sgemm.h"

/* One kind of product in one format. */
typedef struct {
    const char *name;
    fp8flow_product product;
    const bench_format *a, *b, *c;
} product_case;

static const product_case cases[] = {
    { "gemm fprop bf16", FP8FLOW_FPROP, &bench_bf16, &bench_bf16, &bench_bf16 },
    { "gemm fprop row128 x tile128", FP8FLOW_FPROP, &bench_row128, &bench_tile_rows, &bench_bf16 },
    { "gemm fprop tensor", FP8FLOW_FPROP, &bench_tensor_rows, &bench_tensor_rows, &bench_bf16 },
    { "gemm dgrad bf16", FP8FLOW_DGRAD, &bench_bf16, &bench_bf16, &bench_bf16 },
    { "gemm dgrad row128 x tile128", FP8FLOW_DGRAD, &bench_row128, &bench_tile_columns, &bench_bf16 },
    { "gemm dgrad tensor", FP8FLOW_DGRAD, &bench_tensor_rows, &bench_tensor_columns, &bench_bf16 },
    { "gemm wgrad bf16", FP8FLOW_WGRAD, &bench_bf16, &bench_bf16, &bench_f32 },
    { "gemm wgrad tile128", FP8FLOW_WGRAD, &bench_tile_columns, &bench_tile_columns, &bench_f32 },
    { "gemm wgrad col128", FP8FLOW_WGRAD, &bench_col128, &bench_col128, &bench_f32 },
    { "gemm wgrad tensor", FP8FLOW_WGRAD, &bench_tensor_columns, &bench_tensor_columns, &bench_f32 },
};

typedef struct {
    bench_fixture fixture;
    sgemm_work sgemm;
    int32_t num_threads;
} product_state;

static fp8flow_status run_product(void *state)
{
    product_state *p = state;
    return fp8flow_gemm(p->fixture.context, &p->fixture.args.gemm);
}

static fp8flow_status run_threads_inside(void *state)
{
    product_state *p = state;
    sgemm_run_threads_inside(&p->sgemm, 1, p->num_threads);
    return FP8FLOW_OK;
}

static fp8flow_status run_threads_across(void *state)
{
    product_state *p = state;
    sgemm_run_threads_across(&p->sgemm, 1, p->num_threads);
    return FP8FLOW_OK;
}

/* FC1: N = 2F, K = H; every expert has T k / E rows. */
static void prepare(bench_fixture *f, const product_case *work)
{
    const layer_shape *s = &f->size;
    int64_t rows = s->tokens * s->top_k, n = 2 * s->width, k = s->hidden;
    bench_routing(f);
    f->bytes = 0;
    fp8flow_gemm_args args = { .product = work->product, .write = FP8FLOW_OVERWRITE, .groups = &f->groups };
    switch (work->product) {
    case FP8FLOW_FPROP:
        args.a = bench_tensor(f, work->a, rows, k, 0);
        args.b = bench_tensor(f, work->b, s->experts * n, k, n);
        args.c = bench_tensor(f, work->c, rows, n, 0);
        break;
    case FP8FLOW_DGRAD:
        args.a = bench_tensor(f, work->a, rows, n, 0);
        args.b = bench_tensor(f, work->b, s->experts * n, k, n);
        args.c = bench_tensor(f, work->c, rows, k, 0);
        break;
    case FP8FLOW_WGRAD:
        args.a = bench_tensor(f, work->a, rows, n, 0);
        args.b = bench_tensor(f, work->b, rows, k, 0);
        args.c = bench_tensor(f, work->c, s->experts * n, k, n);
        break;
    }
    f->args.gemm = args;
}

static int run_case(bench *b, const bench_shape *shape, const product_case *work)
{
    const layer_shape *s = &shape->size;
    product_state state = { .fixture = { .context = b->context, .size = *s }, .num_threads = b->num_threads };
    state.sgemm = (sgemm_work){ .product = work->product,
                                .experts = s->experts,
                                .rows = s->tokens * s->top_k / s->experts,
                                .n = 2 * s->width,
                                .k = s->hidden };
    prepare(&state.fixture, work);
    timing times[3];
    timing_subject subjects[] = { { run_product, &state },
                                  { run_threads_inside, &state },
                                  { run_threads_across, &state } };
    fp8flow_status status = FP8FLOW_ENOMEM;
    if (sgemm_create(&state.sgemm) == 0 && !state.fixture.is_out_of_memory)
        status = timing_measure(subjects, 3, b->repeats, times);
    if (status == FP8FLOW_OK) {
        double best = times[1].median < times[2].median ? times[1].median : times[2].median;
        bench_emit(b, &(bench_record){ .name = work->name,
                                       .shape = shape->name,
                                       .time = times[0],
                                       .bytes = state.fixture.bytes,
                                       .flops = sgemm_flops(&state.sgemm),
                                       .reference = "sgemm",
                                       .reference_ms = best });
    }
    sgemm_destroy(&state.sgemm);
    bench_release(&state.fixture);
    return status == FP8FLOW_OK ? 0 : bench_fail(work->name, shape->name, status);
}

int bench_run_products(bench *b, const bench_shape *shape)
{
    if (shape->size.experts == 0) return 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!bench_selects(b, cases[i].name, shape->name)) continue;
        if (run_case(b, shape, &cases[i]) != 0) return -1;
        if (cli_output_gone()) return 0;
    }
    return 0;
}
