/* bench_cuda_gemm.c - the six grouped products of an MoE layer in every format, beside what others reach on an H200.
 *
 *   fprop1 [P, H] x [2F, H] -> [P, 2F]    fprop2 [P, F] x [H, F] -> [P, H]
 *   dgrad2 [P, H] x [H, F]  -> [P, F]     dgrad1 [P, 2F] x [2F, H] -> [P, H]
 *   wgrad1 [P, 2F], [P, H] -> [2F, H]     wgrad2 [P, H], [P, F] -> [H, F]
 *
 * Two times each: one product with a cold cache, and a loop, in which the GPU heats up and lowers its clock until its
 * power is allowed. Operations are 2 * rows * N * K. Experts have 0.7 to 1.3 times the mean number of rows, in whole
 * blocks of 128: so were the peers measured, whose operations count padding as rows.
 */
#include "bench_cuda.h"

#include <stdio.h>

/* ---- Peers and goals ------------------------------------------------------------------------ */

enum { FPROP1, FPROP2, DGRAD2, DGRAD1, WGRAD1, WGRAD2, NUM_PRODUCTS, NUM_FORWARD = WGRAD1 };

/* TFLOP/s with a cold cache and in a loop; 0: not measured. */
typedef struct {
    double flushed, sustained;
} rates;

/* Peers on one H200 (driver 580.159, CUDA 13.0, 2026-11-22): DeepGEMM (BF16 out; wgrad adds to an FP32 gradient, codes
 * in blocks of 1 x 128 of the contraction) and torch 2.11's BF16 grouped_mm (BF16 out). Where there is no figure of a
 * loop, the other one is of a GPU that had rested before each product, and flatters. Goals: least ratio to the peer in
 * both columns; 0: none. */
typedef struct {
    const char *name;
    int64_t experts, mean_rows, hidden, width;
    rates deepgemm[NUM_PRODUCTS], bf16[NUM_PRODUCTS];
    double goal_each, goal_mean; /* fprop and dgrad */
    double goal_wgrad[2];        /* by fp8flow_write */
    double goal_bf16;
} moe_layer;

/* clang-format off */
static const moe_layer layers[] = {
    { .name = "v3-ep32", .experts = 8, .mean_rows = 4096, .hidden = 7168, .width = 2048,
      .deepgemm = { { 1243, 1190 }, { 1365, 1127 }, { 1235, 1173 }, { 1265, 1202 }, { 866, 830 }, { 955, 799 } },
      .bf16 = { { 683, 661 }, { 614, 640 }, { 637, 650 }, { 626, 650 }, { 608, 653 }, { 552, 622 } },
      .goal_each = 1.00, .goal_mean = 1.05, .goal_wgrad = { 1.30, 1.30 }, .goal_bf16 = 1.00 },
    { .name = "v2-lite", .experts = 64, .mean_rows = 768, .hidden = 2048, .width = 1408,
      .deepgemm = { { 1196, 1089 }, { 1198, 998 }, { 1109, 997 }, { 1143, 1097 }, { 379, 379 }, { 398, 401 } },
      .bf16 = { { 616, 582 }, { 576, 546 }, { 558, 528 }, { 662, 580 }, { 522, 538 }, { 535, 496 } },
      .goal_each = 1.00, .goal_mean = 1.05, .goal_wgrad = { 2.50, 1.80 }, .goal_bf16 = 1.00 },
    { .name = "v3-small", .experts = 8, .mean_rows = 768, .hidden = 7168, .width = 2048,
      .deepgemm = { { 1332, 0 }, { 1297, 0 }, { 1193, 0 }, { 1310, 0 }, { 445, 0 }, { 397, 0 } },
      .bf16 = { { 576, 0 }, { 552, 0 }, { 594, 0 }, { 579, 0 }, { 566, 0 }, { 565, 0 } },
      .goal_each = 1.00, .goal_wgrad = { 1.70, 1.70 } },
    { .name = "qwen3-30b", .experts = 128, .mean_rows = 512, .hidden = 2048, .width = 768,
      .deepgemm = { { 1282, 0 }, { 1025, 0 }, { 1196, 0 }, { 1210, 0 }, { 272, 0 }, { 240, 0 } },
      .bf16 = { { 513, 0 }, { 467, 0 }, { 504, 0 }, { 528, 0 }, { 478, 0 }, { 463, 0 } } },
};
/* clang-format on */

/* ---- Cases ---------------------------------------------------------------------------------- */

typedef enum { NO_PEER, DEEPGEMM, TORCH } peer_name;

static const char *const peer_names[] = { "none", "DeepGEMM", "torch grouped_mm" };

/* A pair of operand formats and what becomes of c. */
typedef struct {
    const char *name;
    fp8flow_product product;
    fp8flow_write write;
    const bench_format *a, *b, *c;
    gpu_data data;
    peer_name peer;
} product_form;

/* clang-format off */
static const product_form forms[] = {
    { "row128 x tile128", FP8FLOW_FPROP, FP8FLOW_OVERWRITE, &bench_row128, &bench_tile_rows, &bench_bf16,
      GPU_BLOCKS, DEEPGEMM },
    { "tensor", FP8FLOW_FPROP, FP8FLOW_OVERWRITE, &bench_tensor_rows, &bench_tensor_rows, &bench_bf16,
      GPU_NORMAL, NO_PEER },
    { "bf16", FP8FLOW_FPROP, FP8FLOW_OVERWRITE, &bench_bf16, &bench_bf16, &bench_bf16, GPU_NORMAL, TORCH },
    { "row128 x tile128", FP8FLOW_DGRAD, FP8FLOW_OVERWRITE, &bench_row128, &bench_tile_columns, &bench_bf16,
      GPU_BLOCKS, DEEPGEMM },
    { "tensor", FP8FLOW_DGRAD, FP8FLOW_OVERWRITE, &bench_tensor_rows, &bench_tensor_columns, &bench_bf16,
      GPU_NORMAL, NO_PEER },
    { "bf16", FP8FLOW_DGRAD, FP8FLOW_OVERWRITE, &bench_bf16, &bench_bf16, &bench_bf16, GPU_NORMAL, TORCH },
    { "tile128", FP8FLOW_WGRAD, FP8FLOW_OVERWRITE, &bench_tile_columns, &bench_tile_columns, &bench_f32,
      GPU_BLOCKS, DEEPGEMM },
    { "tile128 accumulate", FP8FLOW_WGRAD, FP8FLOW_ACCUMULATE, &bench_tile_columns, &bench_tile_columns, &bench_f32,
      GPU_BLOCKS, DEEPGEMM },
    { "col128", FP8FLOW_WGRAD, FP8FLOW_OVERWRITE, &bench_col128, &bench_col128, &bench_f32, GPU_BLOCKS, DEEPGEMM },
    { "col128 accumulate", FP8FLOW_WGRAD, FP8FLOW_ACCUMULATE, &bench_col128, &bench_col128, &bench_f32,
      GPU_BLOCKS, DEEPGEMM },
    { "tensor", FP8FLOW_WGRAD, FP8FLOW_OVERWRITE, &bench_tensor_columns, &bench_tensor_columns, &bench_f32,
      GPU_NORMAL, NO_PEER },
    { "tensor accumulate", FP8FLOW_WGRAD, FP8FLOW_ACCUMULATE, &bench_tensor_columns, &bench_tensor_columns, &bench_f32,
      GPU_NORMAL, NO_PEER },
    { "bf16", FP8FLOW_WGRAD, FP8FLOW_OVERWRITE, &bench_bf16, &bench_bf16, &bench_f32, GPU_NORMAL, TORCH },
    { "bf16 accumulate", FP8FLOW_WGRAD, FP8FLOW_ACCUMULATE, &bench_bf16, &bench_bf16, &bench_f32, GPU_NORMAL, TORCH },
};
/* clang-format on */

static const struct {
    const char *name;
    fp8flow_product product;
    int32_t is_fc2; /* weight [H, F] instead of [2F, H] */
} products[NUM_PRODUCTS] = {
    [FPROP1] = { "fprop1", FP8FLOW_FPROP, 0 }, [FPROP2] = { "fprop2", FP8FLOW_FPROP, 1 },
    [DGRAD2] = { "dgrad2", FP8FLOW_DGRAD, 1 }, [DGRAD1] = { "dgrad1", FP8FLOW_DGRAD, 0 },
    [WGRAD1] = { "wgrad1", FP8FLOW_WGRAD, 0 }, [WGRAD2] = { "wgrad2", FP8FLOW_WGRAD, 1 },
};

typedef struct {
    char name[48];
    const moe_layer *layer;
    const product_form *form;
    int32_t product;
    rates peer;
    double goal; /* 0: none */

    char configuration[96];
    timing time; /* microseconds */
    gpu_sustained loop;
    rates rate, ratio;      /* ratio 0: no peer */
    double percent_of_peak; /* of the tensor cores at the clock of the loop; 0: unknown */
} product_record;

/* Of the four products of one layer, for the goal of their mean. */
typedef struct {
    const moe_layer *layer;
    rates sum;
    int64_t count;
} mean_ratio;

enum { NUM_LAYERS = sizeof layers / sizeof *layers, NUM_FORMS = sizeof forms / sizeof *forms };

typedef struct {
    gpu_bench *g;
    mean_ratio means[NUM_LAYERS];
    int64_t num_rows, num_goals, num_met;
} product_bench;

/* torch writes its gradient in BF16 and does not add to it: accumulating in FP32 has a ratio to it, and no goal. */
static double goal_of(const moe_layer *l, const product_form *form)
{
    if (form->peer == TORCH) return form->write == FP8FLOW_OVERWRITE ? l->goal_bf16 : 0;
    if (form->peer != DEEPGEMM) return 0;
    return form->product == FP8FLOW_WGRAD ? l->goal_wgrad[form->write] : l->goal_each;
}

static rates peer_of(const moe_layer *l, const product_form *form, int32_t product)
{
    switch (form->peer) {
    case DEEPGEMM: return l->deepgemm[product];
    case TORCH: return l->bf16[product];
    default: return (rates){ 0, 0 };
    }
}

/* ---- Data ----------------------------------------------------------------------------------- */

/* f->groups, and their rows together. The fractions of multiples of the golden ratio are spread evenly. */
static int64_t draw_groups(gpu_fixture *f, const moe_layer *l)
{
    int32_t offset[GPU_MAX_EXPERTS + 1] = { 0 }, rows[GPU_MAX_EXPERTS];
    for (int64_t e = 0; e < l->experts; e++) {
        uint32_t fraction = (uint32_t)e * 2654435769u + 0x80000000u;
        double factor = 0.7 + 0.6 * 0x1p-32 * fraction;
        rows[e] = (int32_t)(factor * (double)l->mean_rows / 128 + 0.5) * 128;
        offset[e + 1] = offset[e] + rows[e];
    }
    f->groups.count = l->experts;
    f->groups.offset = gpu_upload(f, offset, (l->experts + 1) * (int64_t)sizeof *offset);
    f->groups.rows = gpu_upload(f, rows, l->experts * (int64_t)sizeof *rows);
    return offset[l->experts];
}

static fp8flow_tensor *draw_operand(gpu_fixture *f, const bench_format *format, int64_t rows, int64_t cols,
                                    int64_t group_rows)
{
    if (format->scaling != FP8FLOW_UNSCALED) return gpu_quantized(f, format, rows, cols, group_rows);
    fp8flow_tensor *t = gpu_values(f, format, rows, cols);
    if (t) t->group_rows = group_rows;
    return t;
}

/* Returns the product's operations. */
static double prepare(gpu_fixture *f, const product_record *r)
{
    const moe_layer *l = r->layer;
    const product_form *form = r->form;
    int32_t is_fc2 = products[r->product].is_fc2;
    int64_t rows = draw_groups(f, l), n = is_fc2 ? l->hidden : 2 * l->width, k = is_fc2 ? l->width : l->hidden;
    int32_t is_dgrad = form->product == FP8FLOW_DGRAD;
    fp8flow_gemm_args args = { .product = form->product, .write = form->write, .groups = &f->groups };
    if (form->product == FP8FLOW_WGRAD) {
        args.a = draw_operand(f, form->a, rows, n, 0);
        args.b = draw_operand(f, form->b, rows, k, 0);
        args.c = gpu_tensor(f, form->c, l->experts * n, k, n);
    } else {
        args.a = draw_operand(f, form->a, rows, is_dgrad ? n : k, 0);
        args.b = draw_operand(f, form->b, l->experts * n, k, n);
        args.c = gpu_tensor(f, form->c, rows, is_dgrad ? k : n, 0);
    }
    f->args.gemm = args;
    return 2.0 * (double)rows * (double)n * (double)k;
}

/* ---- Measuring ------------------------------------------------------------------------------ */

GPU_RUN(gemm)

/* Dense products per clock and multiprocessor: 4096 of FP8, 2048 of BF16; two operations each. */
static double peak_tflops(const gpu_bench *g, const product_form *form, double megahertz)
{
    double products_per_clock = form->a->dtype == FP8FLOW_BF16 ? 2048 : 4096;
    return 2e-6 * products_per_clock * g->device.num_multiprocessors * megahertz;
}

static void evaluate(const gpu_bench *g, product_record *r, double operations)
{
    r->rate.flushed = 1e-6 * operations / r->time.median;
    if (r->loop.us > 0) r->rate.sustained = 1e-6 * operations / r->loop.us;
    if (r->peer.flushed > 0) r->ratio.flushed = r->rate.flushed / r->peer.flushed;
    if (r->peer.sustained > 0) r->ratio.sustained = r->rate.sustained / r->peer.sustained;
    double peak = peak_tflops(g, r->form, r->loop.megahertz);
    if (peak > 0) r->percent_of_peak = 100 * r->rate.sustained / peak;
}

/* A loop that is compared with nothing takes a quarter of the time. */
static fp8flow_status measure(gpu_bench *g, product_record *r)
{
    gpu_fixture f = { .context = g->b->context, .numbers = &g->numbers, .data = r->form->data };
    double operations = prepare(&f, r), seconds = r->peer.sustained > 0 ? g->seconds : g->seconds / 4;
    if (f.status == FP8FLOW_OK)
        f.status = fp8flow_gemm_configuration(&f.args.gemm, r->configuration, sizeof r->configuration);
    if (f.status == FP8FLOW_OK) f.status = gpu_measure(g, run_gemm, &f, &r->time);
    if (f.status == FP8FLOW_OK && seconds > 0)
        f.status = gpu_sustain(g, run_gemm, &f, seconds, r->time.median, &r->loop);
    gpu_release(&f);
    if (f.status == FP8FLOW_OK) evaluate(g, r, operations);
    return f.status;
}

/* ---- Goals ---------------------------------------------------------------------------------- */

typedef enum { NOT_JUDGED, MISSED, MET } verdict;

static const char *const verdict_names[] = { "-", "missed", "met" };

/* Counts one goal; a ratio of 0 was not measured and is none. */
static verdict judge(product_bench *p, double ratio, double goal)
{
    if (goal <= 0 || ratio <= 0) return NOT_JUDGED;
    p->num_goals++;
    p->num_met += ratio >= goal;
    return ratio >= goal ? MET : MISSED;
}

static void add_to_mean(product_bench *p, const product_record *r)
{
    mean_ratio *mean = &p->means[r->layer - layers];
    if (r->product >= NUM_FORWARD || r->form->peer != DEEPGEMM || r->layer->goal_mean <= 0) return;
    mean->layer = r->layer;
    mean->sum.flushed += r->ratio.flushed;
    mean->sum.sustained += r->ratio.sustained;
    mean->count++;
}

/* ---- Output --------------------------------------------------------------------------------- */

static void print_columns(const gpu_bench *g)
{
    printf("\nproducts: TFLOP/s with a cold cache, in a loop of %g s (a quarter of it where the peer has no loop), SM "
           "clock and power then, per cent of the\ntensor cores' peak at that clock; peer: FP8 DeepGEMM, BF16 torch "
           "grouped_mm, on an H200; then the ratios to it, and the goal of both\n\n",
           g->seconds);
    printf("%-32s %-10s %9s %7s %7s %5s %4s %6s %5s %5s %6s %6s  %-22s %s\n", "product", "shape", "us", "flushed",
           "loop", "MHz", "W", "% peak", "peer", "loop", "ratio", "loop", "goal", "kernel");
}

/* In columns; "-" for 0. */
static void print_number(int width, int decimals, double value)
{
    if (value > 0) printf(" %*.*f", width, decimals, value);
    else printf(" %*s", width, "-");
}

static void print_record(const product_record *r, verdict flushed, verdict sustained)
{
    char goal[32] = "";
    printf("%-32s %-10s %9.2f %7.0f", r->name, r->layer->name, r->time.median, r->rate.flushed);
    print_number(7, 0, r->rate.sustained);
    print_number(5, 0, r->loop.megahertz);
    print_number(4, 0, r->loop.watt);
    print_number(6, 1, r->percent_of_peak);
    print_number(5, 0, r->peer.flushed);
    print_number(5, 0, r->peer.sustained);
    print_number(6, 2, r->ratio.flushed);
    print_number(6, 2, r->ratio.sustained);
    if (r->goal > 0)
        snprintf(goal, sizeof goal, ">= %.2f %s, %s", r->goal, verdict_names[flushed], verdict_names[sustained]);
    printf("  %-22s %s\n", goal, r->configuration);
    (void)fflush(stdout);
}

static json_t *number_or_null(double value)
{
    return value > 0 ? json_real(value) : json_null();
}

static json_t *boolean_or_null(verdict v)
{
    return v == NOT_JUDGED ? json_null() : json_boolean(v == MET);
}

static json_t *comparison(const product_record *r, verdict flushed, verdict sustained)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "peer",
                     r->form->peer == NO_PEER ? json_null() : json_string(peer_names[r->form->peer]), "peer_tflops",
                     number_or_null(r->peer.flushed), "peer_tflops_sustained", number_or_null(r->peer.sustained),
                     "ratio", number_or_null(r->ratio.flushed), "ratio_sustained", number_or_null(r->ratio.sustained),
                     "goal", number_or_null(r->goal), "met", boolean_or_null(flushed), "met_sustained",
                     boolean_or_null(sustained));
}

static void append_record(const gpu_bench *g, const product_record *r, verdict flushed, verdict sustained)
{
    json_t *record =
        json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:s}", "name", r->name, "shape", r->layer->name,
                  "us_median", r->time.median, "us_min", r->time.min, "us_max", r->time.max, "tflops", r->rate.flushed,
                  "tflops_sustained", number_or_null(r->rate.sustained), "megahertz", number_or_null(r->loop.megahertz),
                  "watt", number_or_null(r->loop.watt), "percent_of_peak", number_or_null(r->percent_of_peak), "kernel",
                  r->configuration);
    json_t *compared = comparison(r, flushed, sustained);
    json_object_update(record, compared);
    json_decref(compared);
    json_array_append_new(g->b->records, record);
}

static void emit(product_bench *p, const product_record *r)
{
    gpu_bench *g = p->g;
    verdict flushed = judge(p, r->ratio.flushed, r->goal), sustained = judge(p, r->ratio.sustained, r->goal);
    add_to_mean(p, r);
    gpu_begin_output(g);
    g->b->num_records++;
    if (p->num_rows++ == 0 && !g->b->records) print_columns(g);
    if (g->b->records) append_record(g, r, flushed, sustained);
    else print_record(r, flushed, sustained);
}

static void print_mean(product_bench *p, const mean_ratio *mean)
{
    rates ratio = { mean->sum.flushed / NUM_FORWARD, mean->sum.sustained / NUM_FORWARD };
    double goal = mean->layer->goal_mean;
    verdict flushed = judge(p, ratio.flushed, goal), sustained = judge(p, ratio.sustained, goal);
    printf("mean of fprop and dgrad, row128 x tile128, at %s: %.3f of the peer with a cold cache", mean->layer->name,
           ratio.flushed);
    if (ratio.sustained > 0) printf(", %.3f in the loop", ratio.sustained);
    printf("; goal >= %.2f %s, %s\n", goal, verdict_names[flushed], verdict_names[sustained]);
}

static void print_footer(product_bench *p)
{
    if (p->num_rows == 0) return;
    putchar('\n');
    for (int64_t i = 0; i < NUM_LAYERS; i++)
        if (p->means[i].count == NUM_FORWARD) print_mean(p, &p->means[i]);
    printf("products: %lld of %lld goals are met\n", (long long)p->num_met, (long long)p->num_goals);
}

/* ---- The bench ------------------------------------------------------------------------------ */

static int run_product(product_bench *p, const moe_layer *l, int32_t product, const product_form *form)
{
    product_record r = { .layer = l, .form = form, .product = product };
    snprintf(r.name, sizeof r.name, "gemm %s %s", products[product].name, form->name);
    if (!bench_selects(p->g->b, r.name, l->name)) return CLI_DONE;
    r.peer = peer_of(l, form, product);
    r.goal = goal_of(l, form);
    fp8flow_status status = measure(p->g, &r);
    if (status != FP8FLOW_OK) {
        bench_fail(r.name, l->name, status);
        return CLI_FAILED;
    }
    emit(p, &r);
    return CLI_DONE;
}

static int run_layer(product_bench *p, const moe_layer *l)
{
    for (int32_t product = 0; product < NUM_PRODUCTS; product++)
        for (int64_t i = 0; i < NUM_FORMS; i++) {
            if (forms[i].product != products[product].product) continue;
            if (cli_output_gone()) return CLI_DONE;
            int code = run_product(p, l, product, &forms[i]);
            if (code != CLI_DONE) return code;
        }
    return CLI_DONE;
}

int gpu_run_products(gpu_bench *g)
{
    product_bench p = { .g = g };
    for (int64_t i = 0; i < NUM_LAYERS; i++) {
        int code = run_layer(&p, &layers[i]);
        if (code != CLI_DONE) return code;
    }
    if (!g->b->records) print_footer(&p);
    return CLI_DONE;
}
