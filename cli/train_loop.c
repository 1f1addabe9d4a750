/* train_loop.c - the step loop of one run, on every rank. See train_loop.h.
 *
 * Shared between the rank threads: the session. Rank 0 owns its progress, metrics, result and stop fields;
 * rank r writes places[r] only. Two collectives order this: the maximum after the step (all places are
 * written before rank 0 reads them) and the one before the next step (rank 0 has read them).
 */
#include "train_loop.h"

#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "metrics.h"
#include "progress.h"

enum { PLACES_SHOWN = 10, PLACE_BYTES = 160 };

/* What was not finite in one step on one rank. */
typedef struct {
    uint64_t values;
    int64_t count; /* of places; the first PLACES_SHOWN are in names */
    char names[PLACES_SHOWN][PLACE_BYTES];
} rank_places;

typedef struct {
    const cli_run *run;
    cli_run_result *result;
    cli_progress progress;
    cli_metrics metrics;
    cli_stop stop;
    double step_seconds, step_tokens; /* sums for the average speed */
    rank_places *places;              /* [num_ranks] */
} run_session;

typedef struct {
    run_session *session;
    fp8flow_comm *comm;
    fp8flow_trainer *trainer;
    fp8flow_train_info info;
    int32_t rank;
    int64_t step, saved_step;
} rank_run;

#define TRY(call)                                        \
    do {                                                 \
        fp8flow_status try_status = (call);              \
        if (try_status != FP8FLOW_OK) return try_status; \
    } while (0)

/* ---- Signals -------------------------------------------------------------------------------- */

static atomic_int signals_seen;

static void handle_signal(int number)
{
    static const char text[] = "fp8flow: stopping after this step; a second signal stops at once\n";
    if (atomic_fetch_add(&signals_seen, 1) > 0) _exit(128 + number);
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) return; /* nobody reads it: nothing to do */
}

/* SIGHUP stays ignored under nohup. */
static void install_signal_handlers(void)
{
    static const int numbers[] = { SIGINT, SIGTERM, SIGHUP };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction action, old;
        memset(&action, 0, sizeof action);
        memset(&old, 0, sizeof old);
        action.sa_handler = handle_signal;
        action.sa_flags = SA_RESTART;
        sigemptyset(&action.sa_mask);
        sigaction(numbers[i], &action, &old);
        if (numbers[i] == SIGHUP && old.sa_handler == SIG_IGN) sigaction(SIGHUP, &old, NULL);
    }
}

/* The same answer on every rank. */
static fp8flow_status agree_to_stop(rank_run *run, cli_stop *stop)
{
    int64_t reason = run->rank == 0 ? (int64_t)run->session->stop : CLI_STOP_NONE;
    if (reason == CLI_STOP_NONE && atomic_load(&signals_seen) > 0) reason = CLI_STOP_SIGNAL;
    TRY(fp8flow_comm_max(run->comm, &reason));
    *stop = (cli_stop)reason;
    return FP8FLOW_OK;
}

/* ---- Non-finite values ---------------------------------------------------------------------- */

static void collect_places(const rank_run *run, uint64_t values)
{
    rank_places *places = &run->session->places[run->rank];
    const char *where;
    places->values = values;
    places->count = 0;
    while (fp8flow_trainer_get_nonfinite(run->trainer, places->count, &where) == FP8FLOW_OK) {
        if (places->count < PLACES_SHOWN) snprintf(places->names[places->count], PLACE_BYTES, "%s", where);
        places->count++;
    }
}

static void show_places(run_session *session, int64_t step, uint64_t values)
{
    int32_t num_ranks = session->run->num_ranks;
    int64_t shown = 0, total = 0;
    char prefix[CLI_NUMBER_BYTES] = "";
    for (int32_t rank = 0; rank < num_ranks; rank++) {
        const rank_places *places = &session->places[rank];
        if (num_ranks > 1) snprintf(prefix, sizeof prefix, "rank %d, ", rank);
        for (int64_t i = 0; i < places->count && i < PLACES_SHOWN && shown < PLACES_SHOWN; i++, shown++)
            cli_progress_note(&session->progress, "step %lld: non-finite: %s%s", (long long)step, prefix,
                              places->names[i]);
        total += places->count;
    }
    if (total == 0 && values > 0)
        cli_progress_note(&session->progress, "step %lld: %llu non-finite values", (long long)step,
                          (unsigned long long)values);
    if (total > shown)
        cli_progress_note(&session->progress, "step %lld: non-finite: %lld more places", (long long)step,
                          (long long)(total - shown));
}

static uint64_t count_values(const run_session *session)
{
    uint64_t values = 0;
    for (int32_t rank = 0; rank < session->run->num_ranks; rank++) values += session->places[rank].values;
    return values;
}

/* ---- Steps ---------------------------------------------------------------------------------- */

static void fail_metrics(run_session *session, int error)
{
    cli_progress_clear(&session->progress);
    cli_fail(session->run->command, "%s: %s", session->run->metrics_path, strerror(error));
    session->stop = CLI_STOP_FAILED;
}

/* Rank 0: everything that is seen of a step. validation_loss: NULL when not measured. */
static void report_step(rank_run *run, fp8flow_step_metrics *metrics, const double *validation_loss)
{
    run_session *session = run->session;
    const cli_run *settings = session->run;
    metrics->nonfinite = count_values(session);
    session->result->last = *metrics;
    session->step_seconds += metrics->seconds;
    session->step_tokens += (double)metrics->tokens;
    show_places(session, metrics->step, metrics->nonfinite);
    cli_progress_step(&session->progress, metrics);
    if (validation_loss) {
        session->result->validation_loss = *validation_loss;
        cli_progress_note(&session->progress, "%s%sstep %lld: validation loss %.4f",
                          settings->label ? settings->label : "", settings->label ? "  " : "", (long long)metrics->step,
                          *validation_loss);
    }
    if (settings->metrics_path && session->stop == CLI_STOP_NONE) {
        int error = cli_metrics_write(&session->metrics, run->trainer, metrics, validation_loss);
        if (error) fail_metrics(session, error);
    }
    if (settings->on_step)
        settings->on_step(settings->user, run->trainer, metrics, validation_loss ? *validation_loss : NAN);
    if (cli_output_gone() && session->stop == CLI_STOP_NONE) session->stop = CLI_STOP_OUTPUT;
}

static int is_due(int64_t step, int64_t every)
{
    return every > 0 && step % every == 0;
}

static fp8flow_status save(rank_run *run)
{
    TRY(fp8flow_trainer_save(run->trainer));
    run->saved_step = run->step;
    if (run->rank == 0) {
        run->session->result->saved_step = run->step;
        cli_progress_note(&run->session->progress, "step %lld: saved in %s", (long long)run->step,
                          run->session->run->train.output);
    }
    return FP8FLOW_OK;
}

static fp8flow_status make_step(rank_run *run)
{
    const cli_run *settings = run->session->run;
    fp8flow_step_metrics metrics;
    TRY(fp8flow_trainer_step(run->trainer, &metrics));
    run->step++;
    collect_places(run, metrics.nonfinite);

    int wants_validation = settings->validate_every > 0 && run->info.validation_tokens > 0 &&
                           (is_due(run->step, settings->validate_every) || run->step == settings->train.steps);
    double validation_loss = NAN;
    if (wants_validation) TRY(fp8flow_trainer_validate(run->trainer, &validation_loss));

    int64_t places_are_written = 1;
    TRY(fp8flow_comm_max(run->comm, &places_are_written));
    if (run->rank == 0) report_step(run, &metrics, wants_validation ? &validation_loss : NULL);
    if (settings->train.output && is_due(run->step, settings->save_every)) TRY(save(run));
    return FP8FLOW_OK;
}

static void start_reporting(rank_run *run)
{
    run_session *session = run->session;
    const cli_run *settings = session->run;
    session->result->info = run->info;
    if (settings->on_start && settings->on_start(settings->user, &run->info) != CLI_DONE) {
        session->stop = CLI_STOP_FAILED;
        return;
    }
    if (settings->metrics_path) {
        int error = cli_metrics_open(&session->metrics, settings->metrics_path, &run->info);
        if (error) fail_metrics(session, error);
    }
    cli_progress_start(&session->progress, settings->display ? settings->display : stdout, settings->label,
                       run->info.first_step, settings->train.steps, settings->log_every);
}

static fp8flow_status run_steps(rank_run *run)
{
    const cli_run *settings = run->session->run;
    TRY(fp8flow_trainer_get_info(run->trainer, &run->info));
    run->step = run->saved_step = run->info.first_step;
    if (run->rank == 0) start_reporting(run);
    while (run->step < settings->train.steps) {
        cli_stop stop;
        TRY(agree_to_stop(run, &stop));
        if (run->rank == 0) run->session->result->stop = stop;
        if (stop != CLI_STOP_NONE) break;
        TRY(make_step(run));
    }
    if (settings->train.output && run->saved_step != run->step) TRY(save(run));
    /* A reason that came up in the very last step. */
    if (run->rank == 0 && run->session->result->stop == CLI_STOP_NONE) run->session->result->stop = run->session->stop;
    return FP8FLOW_OK;
}

static fp8flow_status run_rank(fp8flow_comm *comm, void *user)
{
    run_session *session = user;
    const cli_run *settings = session->run;
    rank_run run = { .session = session, .comm = comm, .rank = fp8flow_comm_rank(comm) };
    int32_t shared = cli_num_processors() / settings->num_ranks;
    int32_t num_threads = settings->num_threads > 0 ? settings->num_threads : shared > 0 ? shared : 1;
    fp8flow_context_options options = { .backend = settings->backend, .num_threads = num_threads };
    if (options.backend == FP8FLOW_CUDA) options.device = cli_gpu_of_rank(run.rank);
    fp8flow_context *context = NULL;
    fp8flow_status status = fp8flow_context_create(&options, &context);
    if (status == FP8FLOW_OK) status = fp8flow_trainer_create(context, comm, &settings->train, &run.trainer);
    if (status == FP8FLOW_OK) status = run_steps(&run);
    fp8flow_trainer_destroy(run.trainer);
    fp8flow_context_destroy(context);
    return status;
}

int cli_run_training(const cli_run *run, cli_run_result *result)
{
    install_signal_handlers();
    *result = (cli_run_result){ .validation_loss = NAN };
    run_session session = { .run = run, .result = result };
    session.places = calloc((size_t)run->num_ranks, sizeof *session.places);
    if (!session.places) return cli_fail(run->command, "out of memory");

    fp8flow_status status = fp8flow_run_ranks(run->num_ranks, run_rank, &session);
    cli_progress_clear(&session.progress);
    cli_metrics_close(&session.metrics);
    free(session.places);
    if (status != FP8FLOW_OK) return cli_fail_status(run->command, status);
    if (session.step_seconds > 0) result->tokens_per_second = session.step_tokens / session.step_seconds;
    return result->stop == CLI_STOP_FAILED ? CLI_FAILED : CLI_DONE;
}

int32_t cli_num_processors(void)
{
    cpu_set_t processors;
    int count = sched_getaffinity(0, sizeof processors, &processors) == 0 ? CPU_COUNT(&processors) : 1;
    return count > 0 ? count : 1;
}
