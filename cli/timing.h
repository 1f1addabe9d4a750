/* timing.h - how the benchmark measures: repeats of several subjects in turn, median and range.
 *
 * Subjects that are to be compared are timed round-robin, so that a machine that gets slower or faster during
 * the measurement does so for all of them. The first round is a warm-up and not counted.
 */
#ifndef CLI_TIMING_H
#define CLI_TIMING_H

#include "fp8flow.h"

/* Milliseconds. */
typedef struct {
    double median, min, max;
} timing;

/* Something that can be run again and again. */
typedef struct {
    fp8flow_status (*run)(void *state);
    void *state;
} timing_subject;

enum { TIMING_MAX_SUBJECTS = 32, TIMING_MAX_REPEATS = 1000 };

/* Time each subject `repeats` times into results[count]. Stops at the first failure. */
fp8flow_status timing_measure(const timing_subject *subjects, int64_t count, int64_t repeats, timing *results);

/* Median and range of count > 0 samples, which are sorted. */
timing timing_summarize(double *samples, int64_t count);

#endif
