/* bench_cuda.c - `fp8flow bench --device cuda`: time of every operator on a GPU, beside a copy on the same GPU.
 *
 * One measurement is the replay of a graph:
 *   read a buffer several times the L2 cache; event; the operator; event
 * so that no input of the operator is in the cache when it starts, that what the cache holds instead need not be
 * written back at the operator's cost, and that no launch from the host lies between the events. The copy that stands
 * for 100 % is one of 4 GiB in the same run, outside of a graph: as a node of a graph a large copy is given to a slower
 * engine (2.7 instead of 4.2 TB/s on an H200), which would flatter everything else.
 */
#include "bench_cuda.h"

#include <stdio.h>
#include <stdlib.h>

enum { FLUSH_BYTES = 256 << 20, WARM_UPS = 3 };
static const int64_t COPY_BYTES = (int64_t)4 << 30;

struct gpu_record {
    const gpu_case *work;
    const gpu_shape *shape;
    gpu_data data;
    timing time; /* microseconds */
    double bytes, tb_per_s, percent;
    int32_t is_met; /* of a case with a goal */
};

/* ---- Measuring ------------------------------------------------------------------------------ */

fp8flow_status gpu_flush(gpu_bench *g)
{
    fp8flow_square_sum_args args = { FLUSH_BYTES / (int64_t)sizeof(float), g->flush, g->flush_sum };
    return fp8flow_square_sum(g->b->context, &args);
}

/* Flush, event, the run, event: now, or into the graph that is being recorded. */
static fp8flow_status run_timed(gpu_bench *g, gpu_run run, gpu_fixture *f)
{
    fp8flow_context *c = g->b->context;
    fp8flow_status status = gpu_flush(g);
    if (status == FP8FLOW_OK) status = fp8flow_event_record(c, g->start);
    if (status == FP8FLOW_OK) status = run(f);
    if (status == FP8FLOW_OK) status = fp8flow_event_record(c, g->stop);
    return status;
}

/* The run without a graph comes first: it loads the kernels, and what fails in them fails there. */
static fp8flow_status record_graph(gpu_bench *g, gpu_run run, gpu_fixture *f, fp8flow_graph **graph)
{
    fp8flow_context *c = g->b->context;
    fp8flow_status status = run_timed(g, run, f);
    if (status == FP8FLOW_OK) status = fp8flow_synchronize(c);
    if (status == FP8FLOW_OK) status = fp8flow_graph_begin(c);
    if (status != FP8FLOW_OK) return status;
    status = run_timed(g, run, f);
    fp8flow_status ended = fp8flow_graph_end(c, graph);
    return status == FP8FLOW_OK ? ended : status;
}

/* Events of a graph count as recorded when the replay reaches them: synchronize first, then ask for the time. */
static fp8flow_status replay(gpu_bench *g, fp8flow_graph *graph, double *milliseconds)
{
    fp8flow_context *c = g->b->context;
    fp8flow_status status = fp8flow_graph_launch(c, graph);
    if (status == FP8FLOW_OK) status = fp8flow_synchronize(c);
    if (status == FP8FLOW_OK) status = fp8flow_event_elapsed(c, g->start, g->stop, milliseconds);
    return status;
}

fp8flow_status gpu_measure(gpu_bench *g, gpu_run run, gpu_fixture *f, timing *time)
{
    fp8flow_graph *graph = NULL;
    double milliseconds = 0;
    fp8flow_status status = record_graph(g, run, f, &graph);
    for (int64_t i = -WARM_UPS; status == FP8FLOW_OK && i < g->b->repeats; i++) {
        status = replay(g, graph, &milliseconds);
        if (i >= 0) g->samples[i] = 1e3 * milliseconds;
    }
    if (status == FP8FLOW_OK) *time = timing_summarize(g->samples, g->b->repeats);
    fp8flow_graph_destroy(g->b->context, graph);
    return status;
}

/* ---- Output --------------------------------------------------------------------------------- */

static const char *data_name(gpu_data data)
{
    return data == GPU_TAILS ? "tails" : "normal";
}

static json_t *goal_unit(gpu_unit unit)
{
    if (unit == GPU_NO_GOAL) return json_null();
    return json_string(unit == GPU_PERCENT ? "percent_of_copy" : "us");
}

static void append_header(const gpu_bench *g)
{
    json_t *header =
        json_pack("{s:s, s:s, s:i, s:i, s:f, s:I, s:f}", "version", fp8flow_version(), "device", g->device.name,
                  "multiprocessors", (int)g->device.num_multiprocessors, "cuda_version", (int)g->device.cuda_version,
                  "copy_tb_per_s", g->copy_tb_per_s, "repeats", (json_int_t)g->b->repeats, "seconds", g->seconds);
    json_array_append_new(g->b->records, header);
}

static void append_record(const gpu_bench *g, const gpu_record *r)
{
    gpu_goal goal = r->work->goal;
    int has_goal = goal.unit != GPU_NO_GOAL;
    json_t *record =
        json_pack("{s:s, s:s, s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o}", "name", r->work->name, "shape",
                  r->shape->name, "data", data_name(r->data), "bytes", (json_int_t)r->bytes, "us_median",
                  r->time.median, "us_min", r->time.min, "us_max", r->time.max, "tb_per_s", r->tb_per_s,
                  "percent_of_copy", r->percent, "goal", has_goal ? json_real(goal.value) : json_null(), "goal_unit",
                  goal_unit(goal.unit), "met", has_goal ? json_boolean(r->is_met) : json_null());
    json_array_append_new(g->b->records, record);
}

static void print_header(const gpu_bench *g)
{
    printf("fp8flow %s, %s, %d multiprocessors, CUDA %d.%d\n", fp8flow_version(), g->device.name,
           (int)g->device.num_multiprocessors, (int)g->device.cuda_version / 1000,
           (int)g->device.cuda_version % 1000 / 10);
    printf("copy of 4 GiB on the GPU: %.2f TB/s; each time is the median of %lld replays of a graph, with a cold "
           "cache\n",
           g->copy_tb_per_s, (long long)g->b->repeats);
}

static void print_columns(void)
{
    printf("\n%-30s %-21s %-6s %9s %10s %7s %7s  %s\n", "operator", "shape", "data", "MB", "us", "TB/s", "% copy",
           "goal");
}

static void print_goal(const gpu_record *r)
{
    gpu_goal goal = r->work->goal;
    if (goal.unit == GPU_PERCENT) printf(">= %.0f %%", goal.value);
    if (goal.unit == GPU_MICROSECONDS) printf("<= %.0f us", goal.value);
}

static void print_record(const gpu_record *r)
{
    printf("%-30s %-21s %-6s %9.1f %10.2f %7.3f %7.1f", r->work->name, r->shape->name, data_name(r->data),
           1e-6 * r->bytes, r->time.median, r->tb_per_s, r->percent);
    if (r->work->goal.unit != GPU_NO_GOAL) {
        printf("  ");
        print_goal(r);
        printf("  %s", r->is_met ? "met" : "missed");
    }
    putchar('\n');
    (void)fflush(stdout);
}

static void print_footer(const gpu_bench *g)
{
    if (g->num_goals == 0) return;
    printf("\n%lld of %lld goals are met\n", (long long)(g->num_goals - g->num_missed), (long long)g->num_goals);
    for (int64_t i = 0; i < g->num_missed; i++) {
        const gpu_record *r = &g->missed[i];
        printf("missed: %s at %s, %s: %.2f us, %.1f %%, goal ", r->work->name, r->shape->name, data_name(r->data),
               r->time.median, r->percent);
        print_goal(r);
        putchar('\n');
    }
}

void gpu_begin_output(gpu_bench *g)
{
    if (g->b->num_records > 0) return;
    if (g->b->records) append_header(g);
    else print_header(g);
}

static int judge(gpu_bench *g, gpu_record *r)
{
    gpu_goal goal = r->work->goal;
    if (goal.unit == GPU_NO_GOAL) return 0;
    r->is_met = goal.unit == GPU_PERCENT ? r->percent >= goal.value : r->time.median <= goal.value;
    g->num_goals++;
    if (r->is_met) return 0;
    gpu_record *missed = realloc(g->missed, (size_t)(g->num_missed + 1) * sizeof *missed);
    if (!missed) return -1;
    g->missed = missed;
    g->missed[g->num_missed++] = *r;
    return 0;
}

static int emit(gpu_bench *g, gpu_record *r)
{
    if (judge(g, r) != 0) return cli_fail(&cli_bench, "out of memory");
    gpu_begin_output(g);
    if (g->b->num_records++ == 0 && !g->b->records) print_columns();
    if (g->b->records) append_record(g, r);
    else print_record(r);
    return CLI_DONE;
}

/* ---- Cases ---------------------------------------------------------------------------------- */

/* Prepare, measure, release. */
static fp8flow_status run_case(gpu_bench *g, gpu_record *r)
{
    gpu_fixture f = { .context = g->b->context, .numbers = &g->numbers, .shape = r->shape, .data = r->data };
    r->work->prepare(&f);
    if (f.status == FP8FLOW_OK) f.status = gpu_measure(g, r->work->run, &f, &r->time);
    gpu_release(&f);
    if (f.status != FP8FLOW_OK) return f.status;
    r->bytes = f.bytes;
    r->tb_per_s = 1e-6 * r->bytes / r->time.median;
    r->percent = 100 * r->tb_per_s / g->copy_tb_per_s;
    return FP8FLOW_OK;
}

static int run_shape(gpu_bench *g, const gpu_case *work, const gpu_shape *shape)
{
    if (!bench_selects(g->b, work->name, shape->name)) return CLI_DONE;
    for (gpu_data data = GPU_NORMAL; data <= work->data; data++) {
        gpu_record record = { .work = work, .shape = shape, .data = data };
        fp8flow_status status = run_case(g, &record);
        if (status != FP8FLOW_OK) {
            bench_fail(work->name, shape->name, status);
            return CLI_FAILED;
        }
        if (emit(g, &record) != CLI_DONE) return CLI_FAILED;
    }
    return CLI_DONE;
}

static int run_cases(gpu_bench *g, const gpu_cases *table)
{
    for (int64_t i = 0; i < table->num_cases; i++)
        for (int64_t j = 0; j < table->cases[i].num_shapes; j++) {
            if (cli_output_gone()) return CLI_DONE;
            int code = run_shape(g, &table->cases[i], &table->cases[i].shapes[j]);
            if (code != CLI_DONE) return code;
        }
    return CLI_DONE;
}

/* ---- The copy ------------------------------------------------------------------------------- */

static fp8flow_status run_copy(gpu_fixture *f)
{
    return fp8flow_memory_copy(f->context, f->args.copy.to, f->args.copy.from, (size_t)COPY_BYTES);
}

static fp8flow_status measure_copy(gpu_bench *g)
{
    fp8flow_context *c = g->b->context;
    gpu_fixture f = { .context = c, .numbers = &g->numbers };
    f.args.copy.to = gpu_array(&f, COPY_BYTES);
    f.args.copy.from = gpu_floats(&f, COPY_BYTES / 4096, 4096 / sizeof(float));
    double milliseconds = 0;
    for (int64_t i = -WARM_UPS; f.status == FP8FLOW_OK && i < g->b->repeats; i++) {
        f.status = run_timed(g, run_copy, &f);
        if (f.status == FP8FLOW_OK) f.status = fp8flow_event_elapsed(c, g->start, g->stop, &milliseconds);
        if (i >= 0) g->samples[i] = milliseconds;
    }
    gpu_release(&f);
    if (f.status != FP8FLOW_OK) return f.status;
    g->copy_tb_per_s = 2e-9 * (double)COPY_BYTES / timing_summarize(g->samples, g->b->repeats).median;
    return FP8FLOW_OK;
}

/* ---- The bench ------------------------------------------------------------------------------ */

static fp8flow_status open_device(gpu_bench *g)
{
    fp8flow_context_options options = { .backend = FP8FLOW_CUDA };
    fp8flow_status status = fp8flow_context_create(&options, &g->b->context);
    fp8flow_context *c = g->b->context;
    if (status == FP8FLOW_OK) status = fp8flow_device_describe(c, &g->device);
    if (status == FP8FLOW_OK) status = fp8flow_event_create(c, &g->start);
    if (status == FP8FLOW_OK) status = fp8flow_event_create(c, &g->stop);
    if (status == FP8FLOW_OK) status = fp8flow_event_create(c, &g->other_stop);
    if (status == FP8FLOW_OK) status = fp8flow_memory_alloc(c, FLUSH_BYTES, &g->flush);
    if (status == FP8FLOW_OK) status = fp8flow_memory_alloc(c, sizeof(double), &g->flush_sum);
    if (status == FP8FLOW_OK) status = fp8flow_memory_fill(c, g->flush, 0, FLUSH_BYTES);
    if (status == FP8FLOW_OK) nvml_open(&g->meter, g->device.bus_id);
    return status;
}

int gpu_open(gpu_bench *g)
{
    fp8flow_status status = open_device(g);
    if (status != FP8FLOW_OK) return cli_fail_status(&cli_bench, status);
    g->samples = malloc((size_t)g->b->repeats * sizeof *g->samples);
    if (gpu_numbers_create(&g->numbers, g->b->num_threads) != 0 || !g->samples)
        return cli_fail(&cli_bench, "out of memory");
    status = measure_copy(g);
    return status == FP8FLOW_OK ? CLI_DONE : cli_fail_status(&cli_bench, status);
}

void gpu_close(gpu_bench *g)
{
    fp8flow_context *c = g->b->context;
    nvml_close(&g->meter);
    fp8flow_memory_free(c, g->flush_sum);
    fp8flow_memory_free(c, g->flush);
    fp8flow_event_destroy(c, g->other_stop);
    fp8flow_event_destroy(c, g->stop);
    fp8flow_event_destroy(c, g->start);
    gpu_numbers_destroy(&g->numbers);
    free(g->samples);
    free(g->missed);
}

static int run_everything(gpu_bench *g)
{
    static const gpu_cases *const parts[] = { &gpu_format_cases, &gpu_moe_cases, &gpu_decoder_cases };
    int code = gpu_open(g);
    for (size_t part = 0; code == CLI_DONE && part < sizeof parts / sizeof *parts; part++)
        code = run_cases(g, parts[part]);
    if (code != CLI_DONE) return code;
    if (!g->b->records) print_footer(g);
    return gpu_run_products(g);
}

int bench_run_cuda(bench *b, double seconds)
{
    gpu_bench g = { .b = b, .seconds = seconds };
    int code = run_everything(&g);
    gpu_close(&g);
    return code;
}
