/* compare.h - what a comparison of recipes measured, and the figures derived from it.
 *
 * A study is a grid of runs, one per recipe and seed; the baseline may have more seeds than the others, which tell
 * only how far two seeds lie apart. A run grows by one entry of `loss` per step and may end early (interrupt,
 * failure): every figure is computed from what exists.
 *
 * The gap of run A to run B at step t is (S(A)_t - S(B)_t) / S(B)_t, where S is the centred running mean over
 * 1 + steps/20 steps (made odd), cut at both ends of the curve. Its mean and its worst value (largest magnitude, with
 * its sign) are taken over the second half of the steps that both runs have.
 */
#ifndef CLI_COMPARE_H
#define CLI_COMPARE_H

#include <stdio.h>

#include "fp8flow.h"

enum { COMPARE_LOAD_SLICES = 40, COMPARE_MAX_SEEDS = 64 };

typedef struct {
    int64_t step;
    double loss;
} compare_validation;

/* One training run. */
typedef struct {
    uint64_t seed;
    int64_t num_steps; /* done */
    double *loss;      /* [planned steps] */
    int64_t num_validations, max_validations;
    compare_validation *validation;
    double timed_tokens, timed_seconds;       /* without the first step */
    fp8flow_step_metrics last;                /* of the last step done */
    int64_t *load;                            /* [COMPARE_LOAD_SLICES, layers, experts]: tokens, by slice of the run */
    int64_t nonfinite_steps, first_nonfinite; /* steps with a non-finite value; number of the first one, 0: none */
    char error[256];                          /* why it ended early; "" if it did not */
} compare_run;

/* Mean over the runs that have the figure, and the standard deviation over them (0 for one run). A run that
 * diverged makes it NaN: leaving it out would flatter the recipe. */
typedef struct {
    double mean, spread;
    int64_t count; /* runs; 0: mean and spread are NaN because nothing was measured */
} compare_figure;

typedef struct {
    compare_figure training_loss;   /* mean of the last 5 % of the steps */
    compare_figure validation_loss; /* last validation */
    compare_figure gap_mean;        /* to the baseline's run of the same seed; fractions */
    double gap_worst;               /* over all seeds */
    double tokens_per_second;
    double saved_bytes;                /* per MoE layer */
    double dispatch_bytes, wire_bytes; /* per token and MoE layer; wire: with combine */
    int64_t explicit_casts;            /* per MoE layer; -1: no step was done */
} compare_summary;

typedef struct {
    const char *name;
    int32_t color;     /* of svg.h */
    int64_t num_runs;  /* num_seeds, or more of the baseline */
    compare_run *runs; /* [num_runs] */
    compare_summary summary;
} compare_recipe;

/* Gap between two seeds of the baseline: what a difference of recipes has to be seen against. */
typedef struct {
    double mean_magnitude, worst; /* over all pairs; NaN with one seed */
} compare_noise;

typedef struct {
    const fp8flow_train_options *options;
    fp8flow_train_info info;                     /* of the first run */
    const char *command, *machine, *date, *data; /* for the report */
    const char *device;                          /* shown at the start */
    const char *backend;                         /* "cpu", "cuda", "reference" */
    int64_t validate_every;
    int32_t num_ranks;
    int64_t num_recipes, num_seeds, baseline;
    int64_t baseline_seeds; /* set before compare_create, which makes it num_seeds at least */
    compare_recipe *recipes;
    compare_noise noise;
    int32_t is_started; /* a run was made here */
    int32_t interrupted;
    char *taken_machine, *taken_date; /* where and when the first run was made that compare_take found; or NULL */
} compare_study;

/* Storage for num_recipes x num_seeds runs; names are borrowed. 0, or -1 when memory is short. */
int compare_create(compare_study *study, const char *const *names, int64_t num_recipes, int64_t num_seeds);
void compare_destroy(compare_study *study);

/* Fill every summary and the noise from the runs. */
void compare_summarize(compare_study *study);

/* Steps of the running mean. */
int64_t compare_window(const compare_study *study);

/* S of a run: smooth[t] for t < run->num_steps. */
void compare_smooth(const compare_study *study, const compare_run *run, double *smooth);

/* The gap curve of `run` to `base` into gap [planned steps]; returns the number of steps both have. */
int64_t compare_gap_curve(const compare_study *study, const compare_run *run, const compare_run *base, double *gap);

/* Loads over their even share. compare_load_of: one slice, or all of them summed with slice -1; ratio is
 * [layers, experts]. Cells without tokens in the whole layer are NaN. */
void compare_load_of(const compare_study *study, const compare_run *run, int64_t slice, double *ratio);

/* The table for the terminal, and the JSON object as a string to be freed; NULL: no memory. */
void compare_print(FILE *out, const compare_study *study);
char *compare_to_json(const compare_study *study);

enum { COMPARE_MESSAGE_BYTES = 512 };

/* Fill the runs that have no step yet with finished ones of the same recipe and seed from folder/compare.json, which
 * must be of the same training. 0, or -1 with one line in `message`; then a run may have been filled. */
int compare_take(compare_study *study, const char *folder, char message[COMPARE_MESSAGE_BYTES]);

/* Whether two runs had the same model and the same amount of data. */
int compare_same_info(const fp8flow_train_info *a, const fp8flow_train_info *b);

int compare_is_finished(const compare_study *study, const compare_run *run);

#endif
