/* train_loop.c - the step loop of one run, on every rank. See train_loop.h.
 *
 * Ranks are threads that share the session, or processes that have one each. So only rank 0 writes to it, and reads in
 * it what changes; the others see its settings only.
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
#include "job.h"
#include "metrics.h"
#include "output_folder.h"
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
    double step_seconds, step_tokens; /* sums over steps, for averages */
    double dispatch_seconds, combine_seconds, gradients_seconds;
    int is_reported;     /* the error has been printed, by this process or rank 0's */
    int64_t failed_step; /* of a process: the step it was in; 0: before the first */
    rank_places *places; /* [num_ranks], gathered after each step */
} run_session;

typedef struct {
    run_session *session;
    fp8flow_comm *comm;
    fp8flow_trainer *trainer;
    fp8flow_train_info info;
    int32_t rank;
    int64_t step, saved_step, next_step; /* next_step: the one that is being made and saved */
    rank_places places;
} rank_run;

#define TRY(call)                                        \
    do {                                                 \
        fp8flow_status try_status = (call);              \
        if (try_status != FP8FLOW_OK) return try_status; \
    } while (0)

/* ---- Signals -------------------------------------------------------------------------------- */

static atomic_int signals_seen, is_process;

/* A process of mpirun says nothing: the others have the same signal, or mpirun ends them because one has failed. */
static void handle_signal(int number)
{
    static const char text[] = "fp8flow: stopping after this step; a second signal stops at once\n";
    if (atomic_fetch_add(&signals_seen, 1) > 0) _exit(128 + number);
    if (atomic_load(&is_process)) return;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) return; /* nobody reads it: nothing to do */
}

static void handle_alarm(int number)
{
    static const char text[] = "fp8flow train: another rank has not started, or not ended, within --timeout\n";
    (void)number;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(CLI_FAILED);
    _exit(CLI_FAILED);
}

static void install_handler(int number, void (*handler)(int))
{
    struct sigaction action, old;
    memset(&action, 0, sizeof action);
    memset(&old, 0, sizeof old);
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, &old);
    /* SIGHUP stays ignored under nohup. */
    if (number == SIGHUP && old.sa_handler == SIG_IGN) sigaction(SIGHUP, &old, NULL);
}

/* mpirun hands SIGUSR1 on, but ends the job when it gets one of the others itself. */
static void install_signal_handlers(int of_process)
{
    atomic_store(&is_process, of_process);
    install_handler(SIGINT, handle_signal);
    install_handler(SIGTERM, handle_signal);
    install_handler(SIGHUP, handle_signal);
    if (!of_process) return;
    install_handler(SIGUSR1, handle_signal);
    install_handler(SIGALRM, handle_alarm);
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

static void collect_places(rank_run *run, uint64_t values)
{
    rank_places *places = &run->places;
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
    session->dispatch_seconds += metrics->dispatch_seconds;
    session->combine_seconds += metrics->combine_seconds;
    session->gradients_seconds += metrics->reduce_seconds + metrics->gather_seconds;
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
    run->next_step = run->step + 1;
    TRY(fp8flow_trainer_step(run->trainer, &metrics));
    run->step++;
    collect_places(run, metrics.nonfinite);

    int wants_validation = settings->validate_every > 0 && run->info.validation_tokens > 0 &&
                           (is_due(run->step, settings->validate_every) || run->step == settings->train.steps);
    double validation_loss = NAN;
    if (wants_validation) TRY(fp8flow_trainer_validate(run->trainer, &validation_loss));

    TRY(fp8flow_comm_gather(run->comm, &run->places, sizeof run->places, run->session->places));
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

/* ---- The same job on every process ---------------------------------------------------------- */

/* Everything but paths, which may differ between machines. */
static uint64_t hash_options(const cli_run *settings)
{
    const fp8flow_train_options *o = &settings->train;
    const int64_t integers[] = { (int64_t)o->checkpointing,
                                 o->expert_parallel,
                                 (int64_t)o->seed,
                                 (int64_t)o->data_seed,
                                 o->steps,
                                 o->batch,
                                 o->micro_batch,
                                 o->sequence_length,
                                 o->warmup_steps,
                                 o->validation_sequences,
                                 o->keep_checkpoints,
                                 (int64_t)!o->output,
                                 (int64_t)!o->resume,
                                 (int64_t)!o->model,
                                 (int64_t)settings->backend,
                                 settings->save_every,
                                 settings->validate_every };
    const double numbers[] = { o->lr, o->min_lr, o->beta1, o->beta2, o->eps, o->weight_decay, o->clip };
    uint64_t hash = cli_hash_bytes(CLI_HASH_START, integers, sizeof integers);
    return cli_hash_text(cli_hash_bytes(hash, numbers, sizeof numbers), o->recipe);
}

/* The text of a config.json, or the name of a built-in model. */
static uint64_t hash_model(const char *model)
{
    char piece[4096];
    size_t bytes;
    uint64_t hash = CLI_HASH_START;
    FILE *file = model ? fopen(model, "rb") : NULL;
    if (!file) return cli_hash_text(hash, model);
    while ((bytes = fread(piece, 1, sizeof piece, file)) > 0) hash = cli_hash_bytes(hash, piece, bytes);
    (void)fclose(file);
    return hash;
}

/* Threads have the same by nature. Rank 0 names the rank that differs: one line. */
static fp8flow_status compare_ranks(const rank_run *run, const cli_job_part *parts, int count)
{
    int32_t stranger;
    const char *difference;
    if (run->session->run->mpi_timeout <= 0) return FP8FLOW_OK;
    TRY(cli_job_compare(run->comm, parts, count, &stranger, &difference));
    if (stranger == 0) return FP8FLOW_OK;
    if (run->rank == 0) cli_fail(run->session->run->command, "rank %d has %s than rank 0", stranger, difference);
    run->session->is_reported = 1;
    return FP8FLOW_EINVAL;
}

/* Rank 0 has the lock of the folder, and has written its own number there. */
static uint64_t hash_folder(const char *output)
{
    long owner = output ? cli_output_folder_owner(output) : 0;
    return cli_hash_bytes(CLI_HASH_START, &owner, sizeof owner);
}

static fp8flow_status compare_commands(const rank_run *run)
{
    const char *output = run->session->run->train.output;
    const cli_job_part parts[] = {
        { "another build of fp8flow",
          cli_hash_text(cli_hash_text(CLI_HASH_START, fp8flow_version()), fp8flow_build()) },
        { "other options", hash_options(run->session->run) },
        { "another configuration of the model", hash_model(run->session->run->train.model) },
        { "another folder of --output", hash_folder(output) },
        { "other rights in the folder of --output", (uint64_t)(output && access(output, W_OK | X_OK) == 0) },
    };
    return compare_ranks(run, parts, 5);
}

static fp8flow_status compare_inputs(const rank_run *run)
{
    const fp8flow_train_info *info = &run->info;
    const cli_job_part parts[] = { { "another configuration of the model", info->config_hash },
                                   { "other data", info->data_identity },
                                   { "another checkpoint", (uint64_t)info->first_step } };
    return compare_ranks(run, parts, 3);
}

/* ---- Ranks ---------------------------------------------------------------------------------- */

static fp8flow_status run_trainer(rank_run *run, fp8flow_context *context)
{
    TRY(compare_commands(run));
    TRY(fp8flow_trainer_create(context, run->comm, &run->session->run->train, &run->trainer));
    TRY(fp8flow_trainer_get_info(run->trainer, &run->info));
    TRY(compare_inputs(run));
    return run_steps(run);
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
    if (status == FP8FLOW_OK) status = run_trainer(&run, context);
    if (settings->mpi_timeout > 0) session->failed_step = run.next_step;
    fp8flow_trainer_destroy(run.trainer);
    fp8flow_context_destroy(context);
    return status;
}

/* MPI starts and ends with all processes together, and does not say when one of them is missing. */
static void set_alarm(const cli_run *run)
{
    enum { LEAST_SECONDS = 30 };
    alarm(run->mpi_timeout > LEAST_SECONDS ? (unsigned)run->mpi_timeout : LEAST_SECONDS);
}

static fp8flow_status run_process(fp8flow_comm *comm, void *user)
{
    const run_session *session = user;
    alarm(0);
    fp8flow_status status = run_rank(comm, user);
    if (status == FP8FLOW_OK) set_alarm(session->run);
    return status;
}

/* One of the processes of mpirun. The rank that knows the reason of a failure reports it. */
static int run_job(run_session *session)
{
    const cli_run *run = session->run;
    int32_t rank, failed_rank = 0;
    (void)cli_is_job(&rank);
    set_alarm(run);
    fp8flow_status status = fp8flow_run_mpi_ranks(run->mpi_timeout, run_process, session, &failed_rank);
    alarm(0);
    cli_progress_clear(&session->progress);
    if (status == FP8FLOW_OK) return CLI_DONE;
    if (session->is_reported || failed_rank != rank) return CLI_FAILED;
    const char *text = fp8flow_last_error();
    char prefix[CLI_NUMBER_BYTES] = "", suffix[CLI_NUMBER_BYTES] = "";
    if (strncmp(text, "rank ", 5) != 0) snprintf(prefix, sizeof prefix, "rank %d: ", rank);
    if (session->failed_step > 0) snprintf(suffix, sizeof suffix, " (step %lld)", (long long)session->failed_step);
    return cli_fail(run->command, "%s%s%s", prefix, *text ? text : fp8flow_status_name(status), suffix);
}

static void average(const run_session *session)
{
    cli_run_result *result = session->result;
    if (session->step_seconds <= 0) return;
    result->tokens_per_second = session->step_tokens / session->step_seconds;
    result->dispatch_part = session->dispatch_seconds / session->step_seconds;
    result->combine_part = session->combine_seconds / session->step_seconds;
    result->gradients_part = session->gradients_seconds / session->step_seconds;
}

int cli_run_training(const cli_run *run, cli_run_result *result)
{
    install_signal_handlers(run->mpi_timeout > 0);
    *result = (cli_run_result){ .validation_loss = NAN };
    run_session session = { .run = run, .result = result };
    session.places = calloc((size_t)run->num_ranks, sizeof *session.places);
    if (!session.places) return cli_fail(run->command, "out of memory");

    int code = CLI_DONE;
    if (run->mpi_timeout > 0) code = run_job(&session);
    else {
        fp8flow_status status = fp8flow_run_ranks(run->num_ranks, run_rank, &session);
        cli_progress_clear(&session.progress);
        if (status != FP8FLOW_OK) code = cli_fail_status(run->command, status);
    }
    cli_metrics_close(&session.metrics);
    free(session.places);
    if (code != CLI_DONE) return code;
    average(&session);
    return result->stop == CLI_STOP_FAILED ? CLI_FAILED : CLI_DONE;
}

int32_t cli_num_processors(void)
{
    cpu_set_t processors;
    int count = sched_getaffinity(0, sizeof processors, &processors) == 0 ? CPU_COUNT(&processors) : 1;
    return count > 0 ? count : 1;
}
