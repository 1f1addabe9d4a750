/* cmd_bench_comm.c - `fp8flow bench comm`: bytes on the wire per token, and the speed of the collectives. See
 * bench_comm.h. */
#include "bench_comm.h"

#include <stdio.h>
#include <stdlib.h>

#include <jansson.h>

#include "bench_variants.h"
#include "device.h"
#include "job.h"
#include "train_loop.h"

enum { TRANSPORT_AUTO, TRANSPORT_NCCL, TRANSPORT_STAGED };

typedef struct {
    cli_list recipes;
    layer_shape size;
    int64_t ranks, megabytes, repeats, num_threads, timeout;
    int32_t device, backend, transport, is_json;
    int32_t is_job, rank; /* mpirun has started the ranks; this one */
} settings;

static const cli_option comm_options[] = {
    CLI_OPTION_INTEGER(settings, ranks, "ranks", "N", 0, 256,
                       "ranks, threads of this process; 0: 4, under mpirun those that it has started"),
    CLI_OPTION_NAMES(settings, recipes, "recipes", "NAMES", "recipes; all if none is named"),
    CLI_OPTION_HEADING("The layer whose tokens travel"),
    CLI_OPTION_INTEGER(settings, size.hidden, "hidden", "H", 16, 65536, "hidden size, a multiple of 16"),
    CLI_OPTION_INTEGER(settings, size.experts, "experts", "E", 1, 4096, "experts, of all ranks together"),
    CLI_OPTION_INTEGER(settings, size.top_k, "top-k", "K", 1, 4096, "experts of each token"),
    CLI_OPTION_INTEGER(settings, size.tokens, "tokens", "T", 0, 1000000,
                       "tokens of each rank; 0: 4096, on the CPU 256"),
    CLI_OPTION_HEADING("Measuring"),
    CLI_OPTION_INTEGER(settings, megabytes, "megabytes", "N", 1, 16384,
                       "largest array of each rank; then a quarter of it, and so on"),
    CLI_OPTION_DEVICE(settings, device),
    CLI_OPTION_CHOICE(settings, transport, "transport", "auto|nccl|staged",
                      "between GPUs; auto: NCCL where every rank has a GPU of its own, else through host memory"),
    CLI_OPTION_INTEGER(settings, repeats, "repeat", "N", 1, TIMING_MAX_REPEATS, "measurements, after two warm-ups"),
    CLI_OPTION_INTEGER(settings, num_threads, "threads", "N", 0, 1024,
                       "threads of each rank; 0: the processors dealt out"),
    CLI_OPTION_INTEGER(settings, timeout, "timeout", "N", 1, 1000000,
                       "under mpirun: how long a rank waits for another before the job ends, in seconds"),
    CLI_OPTION_FLAG(settings, is_json, "json", "print a JSON list of records instead of the tables"),
};

/* ---- Table ---------------------------------------------------------------------------------- */

/* bf16 is the first one if it was measured. */
static const comm_payload *base_of(const comm_bench *b)
{
    return variants_find(b->recipes, b->num_recipes, "bf16") == 0 ? &b->payload[0] : NULL;
}

static double ratio_of(const comm_bench *b, const comm_payload *payload)
{
    const comm_payload *base = base_of(b);
    return base ? comm_dispatch_ratio(payload, base) : 0;
}

static void print_payloads(const comm_bench *b)
{
    printf(
        "Bytes that rank 0 sends for a token, counted by the transport: payload and scales, what it sends to itself\n"
        "included. Exchange: measured, of as many bytes as the forward dispatch.\n\n");
    printf("%-16s %19s %19s %8s %8s %12s\n", "", "dispatch", "combine", "", "dispatch", "exchange");
    printf("%-16s %9s %9s %9s %9s %8s %8s %12s %9s\n", "recipe", "forward", "backward", "forward", "backward",
           "routing", "to bf16", "median ms", "GB/s");
    for (int64_t i = 0; i < b->num_recipes; i++) {
        const comm_payload *p = &b->payload[i];
        double ratio = ratio_of(b, p);
        printf("%-16s %9.0f %9.0f %9.0f %9.0f %8.0f ", p->recipe, p->dispatch[0], p->dispatch[1], p->combine[0],
               p->combine[1], p->routing);
        if (ratio > 0) printf("%8.3f", ratio);
        else printf("%8s", "");
        printf(" %12.4f %9.2f\n", p->exchange.median, comm_gb_per_s(p->exchange_bytes, &p->exchange));
    }
}

static void print_sizes(const comm_bench *b)
{
    printf("\nArrays of each rank, measured; GB/s: bytes of the array in the time of the slowest rank.\n\n");
    printf("%12s %22s %22s %22s\n", "", "exchange", "all_reduce", "reduce_scatter+gather");
    printf("%12s %12s %9s %12s %9s %12s %9s\n", "bytes", "median ms", "GB/s", "median ms", "GB/s", "median ms", "GB/s");
    for (int i = 0; i < COMM_NUM_SIZES; i++) {
        const comm_size *s = &b->size[i];
        printf("%12lld %12.4f %9.2f %12.4f %9.2f %12.4f %9.2f\n", (long long)s->bytes, s->exchange.median,
               comm_gb_per_s(s->bytes, &s->exchange), s->all_reduce.median, comm_gb_per_s(s->bytes, &s->all_reduce),
               s->slices.median, comm_gb_per_s(s->bytes, &s->slices));
    }
}

static void print_tables(const comm_bench *b)
{
    char device[CLI_DEVICE_BYTES];
    const layer_shape *s = &b->shape;
    printf("%lld rank%s, %s, %s\nH %lld, %lld experts, top %lld, %lld tokens of each rank; %lld repeats\n\n",
           (long long)b->num_ranks, b->num_ranks == 1 ? "" : "s", b->transport,
           cli_device_text(device, b->backend, b->num_threads), (long long)s->hidden, (long long)s->experts,
           (long long)s->top_k, (long long)s->tokens, (long long)b->repeats);
    print_payloads(b);
    print_sizes(b);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *time_record(int64_t bytes, const timing *time)
{
    return json_pack("{s:f, s:f, s:f, s:f}", "ms_median", time->median, "ms_min", time->min, "ms_max", time->max,
                     "gb_per_s", comm_gb_per_s(bytes, time));
}

static json_t *common_record(const comm_bench *b, const char *name, int64_t bytes)
{
    return json_pack("{s:s, s:I, s:s, s:s, s:I}", "name", name, "ranks", (json_int_t)b->num_ranks, "transport",
                     b->transport, "device", b->backend == (int32_t)FP8FLOW_CUDA ? "cuda" : "cpu", "bytes",
                     (json_int_t)bytes);
}

static json_t *payload_record(const comm_bench *b, const comm_payload *p)
{
    const layer_shape *s = &b->shape;
    double ratio = ratio_of(b, p);
    json_t *record = common_record(b, "payload", p->exchange_bytes);
    json_t *figures = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:[f, f], s:[f, f], s:f, s:o, s:o}", "recipe", p->recipe, "hidden",
        (json_int_t)s->hidden, "experts", (json_int_t)s->experts, "top_k", (json_int_t)s->top_k, "tokens",
        (json_int_t)s->tokens, "dispatch_bytes_per_token", p->dispatch[0], p->dispatch[1], "combine_bytes_per_token",
        p->combine[0], p->combine[1], "routing_bytes_per_token", p->routing, "dispatch_to_bf16",
        ratio > 0 ? json_real(ratio) : json_null(), "exchange", time_record(p->exchange_bytes, &p->exchange));
    json_object_update(record, figures);
    json_decref(figures);
    return record;
}

static json_t *size_record(const comm_bench *b, const comm_size *s)
{
    json_t *record = common_record(b, "collectives", s->bytes);
    json_object_set_new(record, "exchange", time_record(s->bytes, &s->exchange));
    json_object_set_new(record, "all_reduce", time_record(s->bytes, &s->all_reduce));
    json_object_set_new(record, "reduce_scatter_all_gather", time_record(s->bytes, &s->slices));
    return record;
}

static void print_json(const comm_bench *b)
{
    json_t *records = json_array();
    for (int64_t i = 0; i < b->num_recipes; i++) json_array_append_new(records, payload_record(b, &b->payload[i]));
    for (int i = 0; i < COMM_NUM_SIZES; i++) json_array_append_new(records, size_record(b, &b->size[i]));
    json_dumpf(records, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(records);
}

/* ---- Command -------------------------------------------------------------------------------- */

static int run_ranks(comm_bench *b, const settings *s)
{
    static const char *const transports[] = { "auto", "nccl", "staged" };
    int32_t failed_rank = s->rank;
    if (s->transport != TRANSPORT_AUTO) (void)setenv("FP8FLOW_TRANSPORT", transports[s->transport], 1);
    fp8flow_status status = s->is_job ? fp8flow_run_mpi_ranks((double)s->timeout, comm_measure, b, &failed_rank)
                                      : fp8flow_run_ranks((int32_t)b->num_ranks, comm_measure, b);
    if (status != FP8FLOW_OK && failed_rank != s->rank) return CLI_FAILED;
    if (status != FP8FLOW_OK) return cli_fail_status(&cli_bench_comm, status);
    if (s->rank > 0) return CLI_DONE;
    if (s->is_json) print_json(b);
    else print_tables(b);
    return CLI_DONE;
}

static int choose_ranks(settings *s)
{
    int32_t launched = s->is_job ? fp8flow_mpi_launched(NULL) : 0;
    if (s->is_job && s->ranks != 0 && s->ranks != launched)
        return cli_fail_usage(&cli_bench_comm, "--ranks %lld: mpirun has started %d ranks already", (long long)s->ranks,
                              launched);
    if (s->ranks == 0) s->ranks = s->is_job ? launched : 4;
    if (s->num_threads == 0) s->num_threads = s->is_job ? cli_job_threads() : cli_num_processors() / s->ranks;
    if (s->num_threads == 0) s->num_threads = 1;
    return CLI_DONE;
}

static int choose(settings *s, bench_variants *variants)
{
    static const char *const no_more[] = { NULL };
    int code = choose_ranks(s);
    if (code == CLI_DONE) code = variants_choose_recipes(variants, &cli_bench_comm, &s->recipes, no_more);
    if (code == CLI_DONE) code = cli_choose_backend(&cli_bench_comm, s->device, s->ranks, &s->backend);
    if (code != CLI_DONE) return code;
    if (variants->num_recipes > COMM_MAX_RECIPES)
        return cli_fail_usage(&cli_bench_comm, "--recipes: %lld of them, at most %d", (long long)variants->num_recipes,
                              COMM_MAX_RECIPES);
    if (s->transport != TRANSPORT_AUTO && s->backend != (int32_t)FP8FLOW_CUDA)
        return cli_fail_usage(&cli_bench_comm, "--transport is of GPUs, these ranks are on the CPU");
    if (s->size.tokens == 0) s->size.tokens = s->backend == (int32_t)FP8FLOW_CUDA ? 4096 : 256;
    return CLI_DONE;
}

static int run(int argc, char **argv)
{
    settings s = { .megabytes = 64, .repeats = 20, .timeout = 60, .backend = FP8FLOW_CPU };
    s.size = (layer_shape){ .hidden = 2048, .width = 128, .experts = 16, .top_k = 4 };
    bench_variants variants = { .num_recipes = 0 };
    s.is_job = cli_is_job(&s.rank);
    if (s.is_job) cli_hold_errors(s.rank);
    int code = cli_parse(&cli_bench_comm, argc, argv, &s);
    if (code == CLI_DONE) return code;
    if (code == CLI_GO_ON) code = choose(&s, &variants);
    if (code != CLI_DONE) return s.is_job ? cli_job_leave((double)s.timeout, code) : code;
    cli_release_errors();
    comm_bench *b = malloc(sizeof *b);
    if (!b) return cli_fail(&cli_bench_comm, "out of memory");
    *b = (comm_bench){ .shape = s.size,
                       .recipes = variants.recipes,
                       .num_recipes = variants.num_recipes,
                       .num_ranks = s.ranks,
                       .largest_bytes = s.megabytes << 20,
                       .repeats = s.repeats,
                       .backend = s.backend,
                       .num_threads = (int32_t)s.num_threads,
                       .transport = "" };
    code = run_ranks(b, &s);
    free(b);
    return code;
}

const cli_command cli_bench_comm = {
    .name = "bench comm",
    .summary = "Measure what travels between ranks: bytes per token in every recipe, speed of the collectives",
    .options = comm_options,
    .num_options = sizeof comm_options / sizeof *comm_options,
    .runs_under_mpirun = 1,
    .example = "fp8flow bench comm --ranks 4 --recipes bf16,flow",
    .run = run,
};
