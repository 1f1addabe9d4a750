/* bench_train_output.c - table and JSON of `fp8flow bench train`. See bench_train.h. */
#include "bench_train.h"

#include <math.h>
#include <stdio.h>

/* Dense BF16 peak of an H100 or H200, without sparsity: what MFU refers to, in every recipe. */
static const double PEAK_FLOPS = 989e12;

/* ---- Figures -------------------------------------------------------------------------------- */

/* 6 for each parameter that a token is multiplied with (not the embedding, which is looked up), and the two products
 * of causal attention, forward and twice backward. */
static double flops_per_token(const train_bench *b, const train_result *r)
{
    const train_model *m = b->model;
    double products = (double)(r->info.active_parameters - m->vocabulary * m->hidden);
    double attention = (double)(r->layers * m->heads * m->head_dim * b->batch.sequence_length);
    return 6 * products + 6 * attention;
}

static double tokens_per_s(const train_bench *b, const train_result *r)
{
    return 1e3 * (double)(b->batch.batch * b->batch.sequence_length) / r->step.median;
}

static double tflops(const train_bench *b, const train_result *r)
{
    return 1e-12 * flops_per_token(b, r) * tokens_per_s(b, r);
}

/* 0 on the CPU, which has another peak. */
static double percent_of_peak(const train_bench *b, const train_result *r)
{
    if (b->device.memory_bytes == 0) return 0;
    return 1e14 * tflops(b, r) / PEAK_FLOPS;
}

static double ratio(double base, const train_result *r)
{
    return base > 0 ? base / r->step.median : 0;
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *number_or_null(double value)
{
    return isfinite(value) && value != 0 ? json_real(value) : json_null();
}

/* null: not traced. */
static json_t *calls_record(const train_result *r)
{
    if (!r->calls.calls) return json_null();
    json_t *list = json_array();
    for (int64_t i = 0; i < r->calls.num_shapes; i++) json_array_append_new(list, bench_call_json(&r->calls.calls[i]));
    return json_pack("{s:I, s:f, s:f, s:o}", "num_calls", (json_int_t)r->calls.num_calls, "event_us",
                     1e3 * r->calls.event_ms, "sum_ms", r->calls.sum_ms, "shapes", list);
}

static void append_record(const train_bench *b, const train_result *r)
{
    json_t *record =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "name", "train", "model", b->model->name,
                  "device", b->device.name, "recipe", r->recipe, "checkpointing", variants_mode_names[r->mode],
                  "layers", (json_int_t)r->layers, "parameters", (json_int_t)r->info.parameters, "active_parameters",
                  (json_int_t)r->info.active_parameters, "batch", (json_int_t)b->batch.batch, "micro_batch",
                  (json_int_t)b->batch.micro_batch, "sequence_length", (json_int_t)b->batch.sequence_length);
    json_t *figures =
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:o, s:I, s:o, s:I, s:I, s:o, s:I, s:o, s:o}", "step_ms", r->step.median,
                  "step_ms_min", r->step.min, "step_ms_max", r->step.max, "tokens_per_s", tokens_per_s(b, r), "tflops",
                  tflops(b, r), "mfu_percent", number_or_null(percent_of_peak(b, r)), "memory_bytes",
                  (json_int_t)r->info.memory_bytes, "used_bytes", number_or_null((double)r->used_bytes), "saved_bytes",
                  (json_int_t)r->last.saved_bytes, "explicit_casts", (json_int_t)r->last.explicit_casts, "loss",
                  number_or_null(r->last.loss), "nonfinite", (json_int_t)r->last.nonfinite, "ratio_bf16",
                  number_or_null(ratio(b->bf16_ms, r)), "ratio_blockwise", number_or_null(ratio(b->blockwise_ms, r)));
    json_object_update(record, figures);
    json_object_set_new(record, "calls", calls_record(r));
    json_decref(figures);
    json_array_append_new(b->records, record);
}

/* ---- Table ---------------------------------------------------------------------------------- */

static void print_columns(const train_bench *b, const train_result *r)
{
    char all[CLI_NUMBER_BYTES], active[CLI_NUMBER_BYTES];
    const train_batch *batch = &b->batch;
    printf("\n%s on %s: %lld layers, %s parameters, %s active; %lld sequences of %lld tokens per step, %lld at a time; "
           "random tokens\n",
           b->model->name, b->device.name, (long long)r->layers, cli_format_count(all, (double)r->info.parameters),
           cli_format_count(active, (double)r->info.active_parameters), (long long)batch->batch,
           (long long)batch->sequence_length, (long long)batch->micro_batch);
    printf("median of %lld steps with optimiser, after %lld; MFU: (6 x active parameters without the embedding + 6 x "
           "layers x heads x head size x\nsequence length) x tokens/s over %.0f TFLOP/s (BF16, dense), %.1f GFLOP per "
           "token; nothing is added for what is computed again\n\n",
           (long long)b->repeats, (long long)b->warm_ups, 1e-12 * PEAK_FLOPS, 1e-9 * flops_per_token(b, r));
    printf("%-14s %-10s %10s %10s %8s %6s %9s %9s %9s %6s %9s %8s %9s\n", "recipe", "checkpoint", "step ms", "tokens/s",
           "TFLOP/s", "MFU %", "GB", "GB in use", "MB saved", "casts", "loss", "to bf16", "blockwise");
}

static void print_result(const train_bench *b, const train_result *r)
{
    printf("%-14s %-10s %10.2f %10.0f %8.2f", r->recipe, variants_mode_names[r->mode], r->step.median,
           tokens_per_s(b, r), tflops(b, r));
    bench_print_number(6, 2, percent_of_peak(b, r));
    bench_print_number(9, 3, 1e-9 * (double)r->info.memory_bytes);
    bench_print_number(9, 3, 1e-9 * (double)r->used_bytes);
    bench_print_number(9, 1, 1e-6 * (double)r->last.saved_bytes);
    printf(" %6lld %9.4f", (long long)r->last.explicit_casts, r->last.loss);
    bench_print_number(8, 2, ratio(b->bf16_ms, r));
    bench_print_number(9, 2, ratio(b->blockwise_ms, r));
    if (r->last.nonfinite > 0) printf("  %llu non-finite values", (unsigned long long)r->last.nonfinite);
    putchar('\n');
    (void)fflush(stdout);
}

static void print_call(const bench_call *call, double sum_ms)
{
    const fp8flow_trace_record *record = &call->record;
    double ms = record->milliseconds;
    printf("  %-18s %-62s %6lld %9.3f %6.1f", record->op, record->label, (long long)call->count, ms, 100 * ms / sum_ms);
    bench_print_number(7, 3, ms > 0 ? 1e-9 * record->bytes / ms : 0);
    bench_print_number(8, 2, ms > 0 ? 1e-9 * record->flops / ms : 0);
    bench_print_number(7, 1, ms > 0 ? 100 * call->bound_ms / ms : 0);
    putchar('\n');
}

/* Pauses between calls are in the step, and what events cost is in neither: the sum may be on either side of it. */
static void print_calls(const train_bench *b, const train_result *r)
{
    const bench_calls *calls = &r->calls;
    double bound_ms = 0;
    printf("\n  %s, %s: operators of one more step, one after another with events around each, so their sum is not the "
           "time of a step;\n  %lld calls",
           r->recipe, variants_mode_names[r->mode], (long long)calls->num_calls);
    if (b->device.memory_bytes)
        printf(", %.1f us subtracted from each for the events; bound: bytes at %.2f TB/s, FLOP at %.0f (FP8) or %.0f "
               "(BF16) TFLOP/s",
               1e3 * calls->event_ms, TRAIN_COPY_TB_PER_S, LAYER_FP8_TFLOPS, LAYER_BF16_TFLOPS);
    printf("\n  %-18s %-62s %6s %9s %6s %7s %8s %7s\n", "operator", "shape", "calls", "ms", "% sum", "TB/s", "TFLOP/s",
           "% bound");
    for (int64_t i = 0; i < calls->num_shapes; i++) {
        print_call(&calls->calls[i], calls->sum_ms);
        bound_ms += calls->calls[i].bound_ms;
    }
    printf("  %-88s %9.3f", "all calls", calls->sum_ms);
    bench_print_number(31, 1, 100 * bound_ms / calls->sum_ms);
    printf("\n  %-88s %9.3f\n\n", "a step as it is timed above", r->step.median);
    (void)fflush(stdout);
}

void train_emit(train_bench *b, const train_result *result)
{
    b->num_rows++;
    if (b->records) {
        append_record(b, result);
        return;
    }
    if (b->num_rows == 1) print_columns(b, result);
    print_result(b, result);
    if (result->calls.calls) print_calls(b, result);
}
