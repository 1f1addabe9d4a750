/* bench_layer_output.c - tables and JSON of `fp8flow bench layer`. See bench_layer.h. */
#include "bench_layer.h"

#include <stdio.h>

#include "bench_variants.h"

/* ---- Figures -------------------------------------------------------------------------------- */

/* Ratios with a cold cache and in the loop: above 1, this variant is faster. 0: one of both is not known. */
typedef struct {
    layer_base bf16, blockwise;       /* the same layer, of this run */
    layer_base peer_bf16, peer_paper; /* experts only */
} layer_ratios;

static double loop_ms(const layer_result *r)
{
    return 1e-3 * r->loop.us;
}

static double ratio(double base, double own)
{
    return base > 0 && own > 0 ? base / own : 0;
}

static layer_ratios ratios_of(const layer_bench *l, const layer_result *r)
{
    const layer_peers *peers = &l->shape->peers;
    layer_base own = { r->total.median, loop_ms(r) }, experts = { own.cold - r->router_ms, own.loop - r->router_ms };
    return (
        layer_ratios){ .bf16 = { ratio(l->bf16.cold, own.cold), ratio(l->bf16.loop, own.loop) },
                       .blockwise = { ratio(l->blockwise.cold, own.cold), ratio(l->blockwise.loop, own.loop) },
                       .peer_bf16 = { ratio(peers->bf16_ms, experts.cold), ratio(peers->bf16_ms, experts.loop) },
                       .peer_paper = { ratio(peers->paper_ms, experts.cold), ratio(peers->paper_ms, experts.loop) } };
}

/* Per millisecond to million or tera per second. */
static double tokens_per_us(const layer_bench *l, double milliseconds)
{
    return milliseconds > 0 ? 1e-3 * (double)l->shape->size.tokens / milliseconds : 0;
}

static double tflops(const layer_bench *l, double milliseconds)
{
    return milliseconds > 0 ? 1e-9 * layer_flops(&l->shape->size) / milliseconds : 0;
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *number_or_null(double value)
{
    return value > 0 ? json_real(value) : json_null();
}

static json_t *pair(layer_base values)
{
    return json_pack("{s:o, s:o}", "cold", number_or_null(values.cold), "loop", number_or_null(values.loop));
}

static json_t *call_records(const layer_result *r)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < r->num_calls; i++) json_array_append_new(list, bench_call_json(&r->calls[i]));
    return list;
}

static json_t *time_records(const layer_bench *l, const layer_result *r)
{
    double loop = loop_ms(r), total = r->total.median;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:f, s:f, s:f, s:f, s:f, s:o, s:o}", "forward_ms",
                     r->forward.median, "backward_ms", r->backward.median, "total_ms", total, "total_ms_min",
                     r->total.min, "total_ms_max", r->total.max, "loop_ms", number_or_null(loop), "megahertz",
                     number_or_null(r->loop.megahertz), "watt", number_or_null(r->loop.watt), "event_us",
                     1e3 * r->event_ms, "sum_ms", r->sum_ms, "router_ms", r->router_ms, "tokens_per_s",
                     1e6 * tokens_per_us(l, total), "tflops", tflops(l, total), "tokens_per_s_loop",
                     number_or_null(1e6 * tokens_per_us(l, loop)), "tflops_loop", number_or_null(tflops(l, loop)));
}

static void append_record(const layer_bench *l, const layer_result *r, layer_detail detail)
{
    const layer_shape *s = &l->shape->size;
    layer_ratios ratios = ratios_of(l, r);
    json_t *record = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "name", "layer", "shape",
                               l->shape->name, "recipe", r->recipe, "checkpointing", variants_mode_names[r->mode],
                               "tokens", (json_int_t)s->tokens, "top_k", (json_int_t)s->top_k, "experts",
                               (json_int_t)s->experts, "hidden", (json_int_t)s->hidden, "width", (json_int_t)s->width);
    json_t *times = time_records(l, r);
    json_t *rest = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o}", "saved_bytes", (json_int_t)r->report.saved_bytes, "peak_bytes",
        (json_int_t)r->report.peak_bytes, "weight_bytes", (json_int_t)r->report.weight_bytes, "explicit_casts",
        (json_int_t)r->report.explicit_casts, "recomputed_casts", (json_int_t)r->report.recomputed_casts, "ratio_bf16",
        pair(ratios.bf16), "ratio_blockwise", pair(ratios.blockwise), "ratio_peer_bf16", pair(ratios.peer_bf16),
        "ratio_peer_paper", pair(ratios.peer_paper));
    json_object_update(record, times);
    json_object_update(record, rest);
    json_object_set_new(record, "calls", detail == LAYER_CALLS ? call_records(r) : json_null());
    json_decref(times);
    json_decref(rest);
    json_array_append_new(l->b->records, record);
}

/* ---- Tables --------------------------------------------------------------------------------- */

static void print_pair(layer_base values)
{
    bench_print_number(6, 2, values.cold);
    bench_print_number(5, 2, values.loop);
}

static int32_t has_peers(const layer_bench *l)
{
    return l->g && l->shape->peers.bf16_ms > 0;
}

static void print_columns(const layer_bench *l)
{
    const layer_shape *s = &l->shape->size;
    long long rows = s->tokens * s->top_k;
    printf("\n%s: %lld tokens, top-%lld of %lld experts, hidden %lld, width %lld: %lld rows, %.4g TFLOP forward + "
           "backward\n",
           l->shape->name, (long long)s->tokens, (long long)s->top_k, (long long)s->experts, (long long)s->hidden,
           (long long)s->width, rows, 1e-12 * layer_flops(s));
    printf("ms%s; router: its operators, part of the total; gaps: total over the sum of the operators' times\n",
           l->g ? " with a cold cache" : "");
    if (l->g)
        printf("loop: ms in a loop of %g s, with SM clock and power then; rates are those of the loop\n",
               l->g->seconds);
    printf("ratios%s: to bf16 and blockwise of this run", l->g ? " with a cold cache and in the loop" : "");
    if (has_peers(l))
        printf("; without the router, to BF16 library kernels (%.1f ms) and to the paper's kernels with DeepGEMM (%.1f "
               "ms)",
               l->shape->peers.bf16_ms, l->shape->peers.paper_ms);
    printf("\n\n%-14s %-10s %8s %8s %8s %8s %5s %4s %8s %8s %7s %6s %8s %8s %5s %12s %12s", "recipe", "checkpoint",
           "forward", "backward", "total", "loop", "MHz", "W", "Mtoken/s", "TFLOP/s", "router", "gaps", "MB saved",
           "MB peak", "casts", "to bf16", "to blockwise");
    if (has_peers(l)) printf(" %12s %12s", "to libraries", "to the paper");
    putchar('\n');
}

static void print_result(const layer_bench *l, const layer_result *r)
{
    double best = r->loop.us > 0 ? loop_ms(r) : r->total.median;
    layer_ratios ratios = ratios_of(l, r);
    printf("%-14s %-10s %8.3f %8.3f %8.3f", r->recipe, variants_mode_names[r->mode], r->forward.median,
           r->backward.median, r->total.median);
    bench_print_number(8, 3, loop_ms(r));
    bench_print_number(5, 0, r->loop.megahertz);
    bench_print_number(4, 0, r->loop.watt);
    printf(" %8.3f %8.3f %7.3f %6.3f %8.1f %8.1f %5lld", tokens_per_us(l, best), tflops(l, best), r->router_ms,
           r->total.median / r->sum_ms, 1e-6 * (double)r->report.saved_bytes, 1e-6 * (double)r->report.peak_bytes,
           (long long)r->report.explicit_casts);
    print_pair(ratios.bf16);
    print_pair(ratios.blockwise);
    if (has_peers(l)) print_pair(ratios.peer_bf16);
    if (has_peers(l)) print_pair(ratios.peer_paper);
    putchar('\n');
    (void)fflush(stdout);
}

static void print_call(const bench_call *call, double sum_ms)
{
    const fp8flow_trace_record *record = &call->record;
    double us = 1e3 * record->milliseconds;
    printf("  %-18s %-60s %9.1f %9.1f", record->op, record->label, us, 1e-6 * record->bytes);
    bench_print_number(9, 1, 1e-9 * record->flops);
    bench_print_number(7, 3, us > 0 ? 1e-6 * record->bytes / us : 0);
    bench_print_number(8, 2, us > 0 ? 1e-6 * record->flops / us : 0);
    bench_print_number(7, 1, us > 0 ? 1e5 * call->bound_ms / us : 0);
    printf(" %6.1f\n", 100 * record->milliseconds / sum_ms);
}

static void print_calls(const layer_bench *l, const layer_result *r)
{
    double bound_ms = 0;
    printf("\n  %s, %s: its operators, each with events around it", r->recipe, variants_mode_names[r->mode]);
    if (l->g)
        printf(" (less %.1f us that these cost); bound: bytes at %.2f TB/s, FLOP at %.0f (FP8) or %.0f (BF16) TFLOP/s",
               1e3 * r->event_ms, l->g->copy_tb_per_s, LAYER_FP8_TFLOPS, LAYER_BF16_TFLOPS);
    printf("\n  %-18s %-60s %9s %9s %9s %7s %8s %7s %6s\n", "operator", "shape", "us", "MB", "GFLOP", "TB/s", "TFLOP/s",
           "% bound", "% sum");
    for (int64_t i = 0; i < r->num_calls; i++) {
        print_call(&r->calls[i], r->sum_ms);
        bound_ms += r->calls[i].bound_ms;
    }
    printf("  %-79s %9.1f", "sum", 1e3 * r->sum_ms);
    bench_print_number(45, 1, 100 * bound_ms / r->sum_ms);
    printf("\n  %-79s %9.1f\n\n", "total less the sum", 1e3 * (r->total.median - r->sum_ms));
    (void)fflush(stdout);
}

void layer_emit(layer_bench *l, const layer_result *result, layer_detail detail)
{
    if (l->g) gpu_begin_output(l->g);
    l->b->num_records++;
    if (l->b->records) {
        append_record(l, result, detail);
        return;
    }
    if (l->num_rows++ == 0) print_columns(l);
    print_result(l, result);
    if (detail == LAYER_CALLS) print_calls(l, result);
}
