/* train_options.c - see train_options.h. */
#include "train_options.h"

#include "job.h"

void cli_training_init(cli_training *training)
{
    *training = (cli_training){ .log_every = 10, .timeout = 60, .validate_every = 100 };
    fp8flow_train_options_init(&training->train);
    training->checkpointing = (int32_t)training->train.checkpointing;
}

/* Of ranks = ep x dp, those that are given call for the others; with ranks alone, all of them share the experts out. */
static int settle_ranks(const cli_command *command, cli_training *t)
{
    int64_t ranks = t->ranks, given = (t->ep ? t->ep : 1) * (t->dp ? t->dp : 1);
    if (ranks == 0) ranks = given;
    if (ranks > CLI_MOST_RANKS)
        return cli_fail_usage(command, "--ep %lld --dp %lld: %lld ranks, at most %d", (long long)t->ep,
                              (long long)t->dp, (long long)ranks, CLI_MOST_RANKS);
    if (t->ep && t->dp && ranks != given)
        return cli_fail_usage(command, "--ep %lld --dp %lld: %lld ranks, not %lld", (long long)t->ep, (long long)t->dp,
                              (long long)given, (long long)ranks);
    if (ranks % given != 0)
        return cli_fail_usage(command, "--%s %lld does not divide %lld ranks", t->ep ? "ep" : "dp", (long long)given,
                              (long long)ranks);
    if (t->dp && !t->ep) t->ep = ranks / t->dp;
    t->train.expert_parallel = (int32_t)t->ep; /* 0: neither was given, and ranks may be without experts */
    t->ranks = ranks;
    if (!t->ep) t->ep = ranks;
    t->dp = ranks / t->ep;
    return CLI_DONE;
}

int cli_training_finish(const cli_command *command, cli_training *training)
{
    training->train.data = training->data.items;
    training->train.num_data = training->data.count;
    /* Without --model a resumed run takes the configuration of its checkpoint. */
    fp8flow_train_options defaults;
    fp8flow_train_options_init(&defaults);
    if (training->train.resume && training->train.model == defaults.model) training->train.model = NULL;
    training->train.checkpointing = (fp8flow_checkpointing)training->checkpointing;
    int code = settle_ranks(command, training);
    return code != CLI_DONE ? code : cli_choose_backend(command, training->device, training->ranks, &training->backend);
}

int cli_training_join(const cli_command *command, cli_training *training)
{
    training->is_mpi = cli_is_job(&training->mpi_rank);
    if (!training->is_mpi) return CLI_DONE;
    int32_t launched = fp8flow_mpi_launched(NULL);
    if (training->ranks > 0 && training->ranks != launched)
        return cli_fail_usage(command, "--ranks %lld: mpirun has started %d ranks already", (long long)training->ranks,
                              launched);
    if (launched > CLI_MOST_RANKS)
        return cli_fail_usage(command, "mpirun has started %d ranks, at most %d", launched, CLI_MOST_RANKS);
    training->ranks = launched;
    if (training->threads == 0) training->threads = cli_job_threads();
    return CLI_DONE;
}

cli_run cli_training_run(const cli_command *command, const cli_training *training)
{
    return (cli_run){ .command = command,
                      .train = training->train,
                      .backend = (fp8flow_backend)training->backend,
                      .num_ranks = (int32_t)training->ranks,
                      .mpi_timeout = training->is_mpi ? (double)training->timeout : 0,
                      .num_threads = (int32_t)training->threads,
                      .log_every = training->log_every,
                      .validate_every = training->validate_every };
}

int64_t cli_training_threads(const cli_training *training)
{
    int64_t shared = cli_num_processors() / training->ranks;
    return training->threads > 0 ? training->threads : shared > 0 ? shared : 1;
}
