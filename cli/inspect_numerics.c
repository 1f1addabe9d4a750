/* inspect_numerics.c - what quantisation did to the tensors of one training step.
 *
 * The library calls the observer once per tensor, layer and micro-batch. Rows with the same name are merged:
 * counts, signal and noise are added, ranges are united, so that a ratio is that of all values together.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "inspect.h"

enum { NUM_SHIFT_BINS = 64, NAME_BYTES = 64 };

typedef struct {
    char name[NAME_BYTES];
    fp8flow_tensor_stats stats;
    uint64_t shifts[NUM_SHIFT_BINS];
    int32_t has_shift;
} observed_tensor;

typedef struct {
    const cli_training *training;
    const char *recipe;
    inspect_rows rows;
    const inspect_output *output;
    observed_tensor *tensors;
    int64_t count, room;
    int32_t is_out_of_memory;
} observation_list;

/* ---- Collecting ----------------------------------------------------------------------------- */

/* "layer 3 dy2 rows" without its layer. */
static const char *without_layer(const char *name)
{
    if (strncmp(name, "layer ", 6) != 0) return name;
    const char *rest = name + 6 + strspn(name + 6, "0123456789");
    return rest + strspn(rest, ", ");
}

static observed_tensor *find_tensor(observation_list *list, const char *name)
{
    for (int64_t i = 0; i < list->count; i++)
        if (strcmp(list->tensors[i].name, name) == 0) return &list->tensors[i];
    if (list->count == list->room) {
        int64_t room = list->room ? 2 * list->room : 64;
        observed_tensor *larger = realloc(list->tensors, sizeof *larger * (size_t)room);
        if (!larger) return NULL;
        list->tensors = larger;
        list->room = room;
    }
    observed_tensor *tensor = &list->tensors[list->count++];
    *tensor = (observed_tensor){ .stats = { .min_exponent = INT32_MAX, .max_exponent = INT32_MIN } };
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    return tensor;
}

static void merge(fp8flow_tensor_stats *sum, const fp8flow_tensor_stats *stats)
{
    sum->count += stats->count;
    sum->zeros += stats->zeros;
    sum->underflow += stats->underflow;
    sum->subnormal += stats->subnormal;
    sum->saturated += stats->saturated;
    sum->nonfinite += stats->nonfinite;
    sum->signal += stats->signal;
    sum->noise += stats->noise;
    if (stats->amax == 0) return; /* without a finite nonzero value there is no range */
    if (stats->min_exponent < sum->min_exponent) sum->min_exponent = stats->min_exponent;
    if (stats->max_exponent > sum->max_exponent) sum->max_exponent = stats->max_exponent;
    if (stats->amax > sum->amax) sum->amax = stats->amax;
}

static void observe(void *user, const fp8flow_observation *observation)
{
    observation_list *list = user;
    const char *name = list->rows == INSPECT_EACH_LAYER ? observation->name : without_layer(observation->name);
    char key[NAME_BYTES]; /* as long as a stored name, so that a cut name is found again */
    snprintf(key, sizeof key, "%s", name);
    observed_tensor *tensor = find_tensor(list, key);
    if (!tensor) {
        list->is_out_of_memory = 1;
        return;
    }
    merge(&tensor->stats, &observation->stats);
    tensor->has_shift |= observation->has_shift;
    for (int i = 0; i < NUM_SHIFT_BINS; i++) tensor->shifts[i] += observation->shift_histogram[i];
}

/* ---- Figures -------------------------------------------------------------------------------- */

/* Signal to quantisation noise in dB; infinite when the codes are exact. */
static double sqnr(const fp8flow_tensor_stats *stats)
{
    return stats->noise > 0 ? 10 * log10(stats->signal / stats->noise) : INFINITY;
}

static double percent(double part, double whole)
{
    return whole > 0 ? 100 * part / whole : 0;
}

/* Shares of the shifts 0, 1, 2, 3-4, 5-8, above 8, in percent, and the largest shift. */
enum { NUM_SHIFT_SHARES = 6 };
typedef struct {
    double share[NUM_SHIFT_SHARES];
    int32_t largest;
} shift_summary;

static shift_summary summarize_shifts(const observed_tensor *tensor)
{
    static const int last_bin[NUM_SHIFT_SHARES] = { 0, 1, 2, 4, 8, NUM_SHIFT_BINS - 1 };
    shift_summary summary = { .largest = 0 };
    double total = 0;
    for (int bin = 0, share = 0; bin < NUM_SHIFT_BINS; bin++) {
        if (bin > last_bin[share]) share++;
        summary.share[share] += (double)tensor->shifts[bin];
        total += (double)tensor->shifts[bin];
        if (tensor->shifts[bin]) summary.largest = bin;
    }
    for (int share = 0; share < NUM_SHIFT_SHARES; share++) summary.share[share] = percent(summary.share[share], total);
    return summary;
}

/* ---- Output --------------------------------------------------------------------------------- */

static void print_tensor(const observed_tensor *tensor, int name_width)
{
    const fp8flow_tensor_stats *s = &tensor->stats;
    char quality[32];
    snprintf(quality, sizeof quality, isinf(sqnr(s)) ? "exact" : "%.1f", sqnr(s));
    printf("%-*s %10.3g %7s %8.3f%% %9lld %9lld %8.2f%%", name_width, tensor->name, s->amax, quality,
           percent((double)s->underflow, (double)s->count), (long long)s->saturated, (long long)s->nonfinite,
           percent((double)s->subnormal, (double)s->count));
    if (s->amax > 0) printf(" %4d ..%4d", s->min_exponent, s->max_exponent);
    else printf(" %10s", "-");
    if (tensor->has_shift) {
        shift_summary shifts = summarize_shifts(tensor);
        for (int i = 0; i < NUM_SHIFT_SHARES; i++) printf(" %5.1f", shifts.share[i]);
        printf(" %4d", shifts.largest);
    }
    putchar('\n');
}

static void print_list(const observation_list *list, const fp8flow_step_metrics *metrics)
{
    int name_width = 12;
    for (int64_t i = 0; i < list->count; i++) {
        int length = (int)strlen(list->tensors[i].name);
        if (length > name_width) name_width = length;
    }
    printf("device %s\nrecipe %s, step %lld, loss %.4f\n\n", list->output->device, list->recipe,
           (long long)metrics->step, metrics->loss);
    if (list->count == 0) {
        printf("no FP8 tensors\n\n");
        return;
    }
    printf("%-*s %10s %7s %9s %9s %9s %9s %10s %s\n", name_width, "", "", "", "", "", "non-", "sub-", "scale",
           "  column forms: % of values shifted by 2^-k, k =");
    printf("%-*s %10s %7s %9s %9s %9s %9s %10s %5s %5s %5s %5s %5s %5s %4s\n", name_width, "tensor", "amax", "SQNR dB",
           "underflow", "saturated", "finite", "normal", "exponents", "0", "1", "2", "3-4", "5-8", ">8", "max");
    for (int64_t i = 0; i < list->count; i++) print_tensor(&list->tensors[i], name_width);
    putchar('\n');
}

static json_t *tensor_object(const observed_tensor *tensor)
{
    const fp8flow_tensor_stats *s = &tensor->stats;
    json_t *shifts = tensor->has_shift ? json_array() : json_null();
    for (int i = 0; tensor->has_shift && i < NUM_SHIFT_BINS; i++)
        json_array_append_new(shifts, json_integer((json_int_t)tensor->shifts[i]));
    double quality = sqnr(s);
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:o, s:o, s:o, s:o}", "name", tensor->name, "count",
                     (json_int_t)s->count, "zeros", (json_int_t)s->zeros, "underflow", (json_int_t)s->underflow,
                     "subnormal", (json_int_t)s->subnormal, "saturated", (json_int_t)s->saturated, "nonfinite",
                     (json_int_t)s->nonfinite, "amax", s->amax, "sqnr_db",
                     isfinite(quality) ? json_real(quality) : json_null(), "min_exponent",
                     s->amax > 0 ? json_integer(s->min_exponent) : json_null(), "max_exponent",
                     s->amax > 0 ? json_integer(s->max_exponent) : json_null(), "shift_histogram", shifts);
}

static void append_list(const observation_list *list, const fp8flow_step_metrics *metrics)
{
    json_t *tensors = json_array();
    for (int64_t i = 0; i < list->count; i++) json_array_append_new(tensors, tensor_object(&list->tensors[i]));
    json_array_append_new(list->output->records,
                          json_pack("{s:s, s:I, s:o, s:o}", "recipe", list->recipe, "step", (json_int_t)metrics->step,
                                    "loss", isfinite(metrics->loss) ? json_real(metrics->loss) : json_null(), "tensors",
                                    tensors));
}

/* ---- Running -------------------------------------------------------------------------------- */

static fp8flow_status train(observation_list *list, fp8flow_trainer *trainer)
{
    fp8flow_step_metrics metrics = { .step = 0 };
    for (int64_t step = 1; step <= list->training->train.steps; step++) {
        if (step == list->training->train.steps) fp8flow_trainer_observe(trainer, observe, list);
        fp8flow_status status = fp8flow_trainer_step(trainer, &metrics);
        if (status != FP8FLOW_OK) return status;
    }
    if (list->is_out_of_memory) return FP8FLOW_ENOMEM;
    if (list->output->records) append_list(list, &metrics);
    else print_list(list, &metrics);
    return FP8FLOW_OK;
}

static fp8flow_status run_rank(fp8flow_comm *comm, void *user)
{
    observation_list *list = user;
    const cli_training *training = list->training;
    fp8flow_train_options options = training->train;
    fp8flow_context_options context_options = { .backend = (fp8flow_backend)training->backend,
                                                .num_threads = (int32_t)training->threads };
    fp8flow_context *context = NULL;
    fp8flow_trainer *trainer = NULL;
    options.recipe = list->recipe;
    fp8flow_status status = fp8flow_context_create(&context_options, &context);
    if (status == FP8FLOW_OK) status = fp8flow_trainer_create(context, comm, &options, &trainer);
    if (status == FP8FLOW_OK) status = train(list, trainer);
    fp8flow_trainer_destroy(trainer);
    fp8flow_context_destroy(context);
    return status;
}

fp8flow_status inspect_numerics(const cli_training *training, const char *recipe, inspect_rows rows,
                                const inspect_output *output)
{
    observation_list list = { .training = training, .recipe = recipe, .rows = rows, .output = output };
    fp8flow_status status = fp8flow_run_ranks(1, run_rank, &list);
    free(list.tensors);
    return status;
}
