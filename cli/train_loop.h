/* train_loop.h - drive one training run: ranks, steps, validation, saving, signals, display, metrics file.
 *
 * Used by `train` and `compare`. Ranks are threads of this process, or the processes of mpirun. Rank 0 alone displays
 * and writes; what it sees must not make it leave the loop alone, so every reason to stop goes through one
 * fp8flow_comm_max before each step: all ranks enter step n + 1 or none does.
 */
#ifndef CLI_TRAIN_LOOP_H
#define CLI_TRAIN_LOOP_H

#include "cli.h"

/* Why a run ended. The larger one wins when ranks differ. */
typedef enum {
    CLI_STOP_NONE = 0, /* all steps are done */
    CLI_STOP_SIGNAL,   /* SIGINT or SIGTERM: the step was finished, and saved if there is an output folder */
    CLI_STOP_OUTPUT,   /* nobody reads stdout any more */
    CLI_STOP_FAILED    /* the metrics file cannot be written, or on_start refused; the error has been printed */
} cli_stop;

/* One run. Zero means off for every field that can be off. */
typedef struct {
    const cli_command *command; /* its name starts every error line */
    fp8flow_train_options train;
    fp8flow_backend backend;
    int32_t num_ranks;
    double mpi_timeout;       /* > 0: the ranks are processes; seconds that one waits for another */
    int32_t num_threads;      /* of each rank; 0: the processors of this process, shared equally by the ranks */
    int64_t log_every;        /* steps between lines when stdout is no terminal */
    int64_t validate_every;   /* steps; also after the last one */
    int64_t save_every;       /* steps; also at the end. Needs train.output */
    FILE *display;            /* progress lines; NULL: stdout */
    const char *label;        /* in front of progress lines: "flow seed 1"; may be NULL */
    const char *metrics_path; /* JSON lines; on resume, lines after the resumed step are cut off; may be NULL */
    /* Called on rank 0 only; both may be NULL. validation_loss is NaN when it was not measured at this step. The
     * trainer is for asking (fp8flow_trainer_get_load), not for collective calls. on_start: CLI_DONE, or an exit code
     * with the error printed: no step is made. */
    int (*on_start)(void *user, const fp8flow_train_info *info);
    void (*on_step)(void *user, const fp8flow_trainer *trainer, const fp8flow_step_metrics *metrics,
                    double validation_loss);
    void *user;
} cli_run;

typedef struct {
    fp8flow_train_info info;
    fp8flow_step_metrics last; /* last.step is 0 when no step was made */
    double validation_loss;    /* the last one measured; NaN: none */
    double tokens_per_second;  /* over all steps, validation and saving left out */
    /* Of the seconds of all steps on rank 0, those between ranks, from 0 to 1. */
    double dispatch_part, combine_part, gradients_part; /* gradients: summed, and the new weights gathered */
    int64_t saved_step;                                 /* newest checkpoint written by this run; 0: none */
    cli_stop stop;
} cli_run_result;

/* CLI_DONE (see result->stop) or an exit code, with the error already printed. SIGINT and SIGTERM are handled
 * from the first call on, on processes of mpirun SIGUSR1 too: the first ends the run after its step, the second ends
 * the process at once. */
int cli_run_training(const cli_run *run, cli_run_result *result);

/* Processors that this process may use. */
int32_t cli_num_processors(void);

#endif
