/* timing.c - see timing.h. */
#include "timing.h"

#include <stdlib.h>

#include "cli.h"

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

timing timing_summarize(double *samples, int64_t count)
{
    qsort(samples, (size_t)count, sizeof *samples, ascending);
    double middle = count % 2 ? samples[count / 2] : (samples[count / 2 - 1] + samples[count / 2]) / 2;
    return (timing){ middle, samples[0], samples[count - 1] };
}

fp8flow_status timing_measure(const timing_subject *subjects, int64_t count, int64_t repeats, timing *results)
{
    double *samples = malloc(sizeof *samples * (size_t)(count * repeats));
    fp8flow_status status = samples ? FP8FLOW_OK : FP8FLOW_ENOMEM;
    for (int64_t round = -1; status == FP8FLOW_OK && round < repeats; round++)
        for (int64_t i = 0; status == FP8FLOW_OK && i < count; i++) {
            double start = cli_seconds();
            status = subjects[i].run(subjects[i].state);
            if (round >= 0) samples[i * repeats + round] = 1e3 * (cli_seconds() - start);
        }
    for (int64_t i = 0; status == FP8FLOW_OK && i < count; i++)
        results[i] = timing_summarize(samples + i * repeats, repeats);
    free(samples);
    return status;
}
