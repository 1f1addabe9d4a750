/* cmd_bench.c - `fp8flow bench`: every operator and the layer at named shapes, beside memcpy and sgemm; or those of a
 * GPU (bench_cuda.c). */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train_loop.h"

/* "v2-lite-row": activations of DeepSeek-V2-Lite; "v2-lite-ep8": the 8 experts that one of 8 ranks has. */
static const bench_shape shapes[] = {
    { "demo", { .hidden = 512, .width = 256, .experts = 16, .top_k = 2, .tokens = 4096 } },
    { "v2-lite-row", { .hidden = 2048, .tokens = 4096 } },
    { "v2-lite-ep8", { .hidden = 2048, .width = 1408, .experts = 8, .top_k = 2, .tokens = 512 } },
};
enum { NUM_SHAPES = sizeof shapes / sizeof *shapes };

/* ---- Output --------------------------------------------------------------------------------- */

int bench_selects(const bench *b, const char *name, const char *shape)
{
    char text[128];
    snprintf(text, sizeof text, "%s %s", name, shape);
    for (const char *word = b->filter; *word;) {
        size_t length = strcspn(word, " ");
        if (!memmem(text, strlen(text), word, length)) return 0;
        word += length;
        word += strspn(word, " ");
    }
    return 1;
}

static const char *device_name(const bench *b)
{
    return b->backend == FP8FLOW_REFERENCE ? "reference" : "cpu";
}

static json_t *number_or_null(double value)
{
    return value > 0 ? json_real(value) : json_null();
}

static json_t *count_or_null(double value)
{
    return value > 0 ? json_integer((json_int_t)value) : json_null();
}

static void append_record(const bench *b, const bench_record *r)
{
    double median = r->time.median;
    json_t *record = json_pack(
        "{s:s, s:s, s:s, s:i, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:o}", "name", r->name, "shape", r->shape,
        "device", device_name(b), "threads", (int)b->num_threads, "ms_median", median, "ms_min", r->time.min, "ms_max",
        r->time.max, "bytes", count_or_null(r->bytes), "flops", count_or_null(r->flops), "reference",
        r->reference ? json_string(r->reference) : json_null(), "reference_ms", number_or_null(r->reference_ms),
        "ratio", number_or_null(r->reference_ms / median), "ratio_bf16", number_or_null(r->bf16_ms / median));
    json_array_append_new(b->records, record);
}

static void print_header(const bench *b)
{
    printf("%d thread%s, %lld repeats after one warm-up; ratio: time of the reference over time of the operator\n\n",
           b->num_threads, b->num_threads == 1 ? "" : "s", (long long)b->repeats);
    printf("%-31s %-12s %9s %9s %9s %14s %7s %7s %7s\n", "operator", "shape", "median ms", "min", "max", "rate",
           "against", "ratio", "to bf16");
}

static void print_record(const bench *b, const bench_record *r)
{
    if (b->num_records == 1) print_header(b);
    double per_second = 1e-6 / r->time.median; /* per ms to giga per s */
    printf("%-31s %-12s %9.3f %9.3f %9.3f", r->name, r->shape, r->time.median, r->time.min, r->time.max);
    if (r->flops > 0) printf(" %7.1f GFLOP/s", r->flops * per_second);
    else printf(" %7.2f GB/s   ", r->bytes * per_second);
    if (r->reference) printf(" %7s %7.2f", r->reference, r->reference_ms / r->time.median);
    if (r->bf16_ms > 0) printf(" %7.2f", r->bf16_ms / r->time.median);
    putchar('\n');
    (void)fflush(stdout);
}

void bench_emit(bench *b, const bench_record *record)
{
    b->num_records++;
    if (b->records) append_record(b, record);
    else print_record(b, record);
}

int bench_fail(const char *name, const char *shape, fp8flow_status status)
{
    const char *text = status == FP8FLOW_ENOMEM ? "out of memory" : fp8flow_last_error();
    cli_fail(&cli_bench, "%s at %s: %s", name, shape, *text ? text : fp8flow_status_name(status));
    return -1;
}

/* ---- memcpy --------------------------------------------------------------------------------- */

/* Four times the last-level cache, so that nothing of the copy before is left in it. */
static int create_copy_buffers(bench *b)
{
    enum { LEAST = 64 << 20, MOST = 512 << 20 };
    int64_t bytes = 4 * (int64_t)sysconf(_SC_LEVEL3_CACHE_SIZE);
    b->copy_bytes = bytes < LEAST ? LEAST : bytes > MOST ? MOST : bytes;
    b->copy_from = malloc((size_t)b->copy_bytes);
    b->copy_to = malloc((size_t)b->copy_bytes);
    if (!b->copy_from || !b->copy_to) return -1;
    memset(b->copy_from, 1, (size_t)b->copy_bytes);
    memset(b->copy_to, 2, (size_t)b->copy_bytes);
    return 0;
}

fp8flow_status bench_copy(void *state)
{
    bench *b = state;
    int64_t part = b->copy_bytes / b->num_threads;
#pragma omp parallel for schedule(static) num_threads(b->num_threads)
    for (int32_t i = 0; i < b->num_threads; i++) {
        int64_t first = i * part, last = i + 1 < b->num_threads ? first + part : b->copy_bytes;
        memcpy(b->copy_to + first, b->copy_from + first, (size_t)(last - first));
    }
    return FP8FLOW_OK;
}

/* ---- Command -------------------------------------------------------------------------------- */

enum { DEVICE_CPU, DEVICE_CUDA };

typedef struct {
    const char *filter;
    int64_t repeats, num_threads;
    double seconds;
    int32_t device, backend, is_json;
} settings;

static const cli_option options[] = {
    CLI_OPTION_OPERAND(
        settings, filter, "FILTER",
        "run what has all these words in its name or shape; layer, train and comm are commands with options of their "
        "own: fp8flow bench layer --help"),
    CLI_OPTION_INTEGER(settings, repeats, "repeat", "N", 1, TIMING_MAX_REPEATS, "measurements of each operator"),
    CLI_OPTION_CHOICE(settings, device, "device", "cpu|cuda", "what to measure: the processor or a GPU"),
    CLI_OPTION_REAL(settings, seconds, "seconds", "S", 0, 60,
                    "GPU: length of the loop that follows each product, half of which is timed; 0: no loops"),
    CLI_OPTION_INTEGER(settings, num_threads, "threads", "N", 0, 1024, "threads; 0: all processors of this process"),
    CLI_OPTION_CHOICE(settings, backend, "backend", "cpu|reference", "implementation on the CPU"),
    CLI_OPTION_FLAG(settings, is_json, "json", "print a JSON list of records instead of the table"),
};

/* The layer only at the first shape: all its variants take a minute there. */
static int run_all(bench *b)
{
    static int (*const parts[])(bench *, const bench_shape *) = { bench_run_moe_operators, bench_run_decoder_operators,
                                                                  bench_run_products };
    for (size_t part = 0; part < sizeof parts / sizeof *parts; part++)
        for (int shape = 0; shape < NUM_SHAPES; shape++)
            if (parts[part](b, &shapes[shape]) != 0) return CLI_FAILED;
    return bench_run_layers(b, &shapes[0]) == 0 ? CLI_DONE : CLI_FAILED;
}

static int run_cpu(bench *b)
{
    fp8flow_context_options context = { .backend = b->backend, .num_threads = b->num_threads };
    fp8flow_status status = fp8flow_context_create(&context, &b->context);
    if (status != FP8FLOW_OK) return cli_fail_status(&cli_bench, status);
    if (create_copy_buffers(b) != 0) return cli_fail(&cli_bench, "out of memory");
    return run_all(b);
}

static int run_bench(bench *b, const settings *s)
{
    char quoted[CLI_QUOTE_BYTES];
    int code = s->device == DEVICE_CUDA ? bench_run_cuda(b, s->seconds) : run_cpu(b);
    if (code != CLI_DONE) return code;
    if (b->num_records == 0 && !cli_output_gone())
        return cli_fail_usage(&cli_bench, "FILTER: nothing has the words %s in its name or shape",
                              cli_quote(quoted, b->filter));
    if (b->records) {
        json_dumpf(b->records, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        putchar('\n');
    }
    return CLI_DONE;
}

static int run(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "layer") == 0) return cli_bench_layer.run(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "train") == 0) return cli_bench_train.run(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "comm") == 0) return cli_bench_comm.run(argc - 1, argv + 1);
    settings s = { .filter = "", .repeats = 7, .seconds = 2 };
    int code = cli_parse(&cli_bench, argc, argv, &s);
    if (code != CLI_GO_ON) return code;
    if (s.device == DEVICE_CUDA && s.backend != FP8FLOW_CPU)
        return cli_fail_usage(&cli_bench, "--backend reference is of the CPU, --device cuda has one backend");
    bench b = { .backend = (fp8flow_backend)s.backend, .filter = s.filter, .repeats = s.repeats };
    b.num_threads = s.num_threads > 0 ? (int32_t)s.num_threads : cli_num_processors();
    if (s.is_json) b.records = json_array();
    code = run_bench(&b, &s);
    fp8flow_context_destroy(b.context);
    json_decref(b.records);
    free(b.copy_from);
    free(b.copy_to);
    return code;
}

const cli_command cli_bench = {
    .name = "bench",
    .summary = "Measure every operator and the layer beside memcpy and sgemm, or a GPU's operators",
    .options = options,
    .num_options = sizeof options / sizeof *options,
    .example = "fp8flow bench quantize --repeat 20",
    .run = run,
};
