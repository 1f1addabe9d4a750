/* metrics.h - metrics.jsonl: one JSON object per step and line, whole lines only.
 *
 * Numbers that are not finite are written as null. A line is handed to the kernel in one write; a line torn
 * by a crash is cut off when the file is opened again, together with the steps that a resumed run repeats.
 */
#ifndef CLI_METRICS_H
#define CLI_METRICS_H

#include <stdio.h>

#include "cli.h"

/* How the tokens of a layer spread over its experts. */
typedef struct {
    double least, most; /* as fractions of the ideal load */
    double entropy;     /* of the distribution, divided by ln E: 1 is even, 0 is one expert */
    int64_t dead;       /* experts without a token */
} cli_expert_load;

typedef struct {
    FILE *file;
    int64_t num_layers, num_experts; /* MoE layers */
    int64_t *counts;                 /* [num_experts] */
    double started;                  /* cli_seconds() */
} cli_metrics;

/* Open `path`, keeping the lines of steps 1 .. info->first_step. 0, or an errno value. */
int cli_metrics_open(cli_metrics *metrics, const char *path, const fp8flow_train_info *info);

/* Append the line of the step that `trainer` has just made. validation_loss: NULL when not measured. 0 or errno. */
int cli_metrics_write(cli_metrics *metrics, const fp8flow_trainer *trainer, const fp8flow_step_metrics *step,
                      const double *validation_loss);

/* Also for a zeroed struct. */
void cli_metrics_close(cli_metrics *metrics);

cli_expert_load cli_measure_load(const int64_t *counts, int64_t num_experts);

#endif
