/* train_options.h - options that every command which trains has: train, compare, inspect --numerics.
 *
 * The groups are macros, because an entry of an option table holds the offset of its field in the command's own
 * struct: `type` is that struct, `member` its member of type cli_training.
 */
#ifndef CLI_TRAIN_OPTIONS_H
#define CLI_TRAIN_OPTIONS_H

#include "device.h"
#include "train_loop.h"

/* Settings of one run as the command line gives them. */
typedef struct {
    fp8flow_train_options train;
    cli_list data;
    int32_t checkpointing, device, backend; /* backend: an fp8flow_backend when the training is finished */
    int64_t ranks, ep, dp; /* as given; 0: by the others. When the training is finished, ranks = ep x dp */
    int64_t threads, log_every, validate_every, timeout;
    int32_t is_mpi, mpi_rank; /* the ranks are processes that mpirun started; this one's, else 0 */
} cli_training;

/* The library's defaults, and ours for what the library does not know. */
void cli_training_init(cli_training *training);

/* Before cli_training_finish: where mpirun has started this process, its ranks are the run's. */
int cli_training_join(const cli_command *command, cli_training *training);

/* After parsing: put lists and choices where the library looks for them, settle the ranks, choose the device. The
 * training is borrowed. CLI_DONE, or an exit code with the error already printed. */
int cli_training_finish(const cli_command *command, cli_training *training);

/* What a run needs of the settings; the caller adds output, callbacks and label. */
cli_run cli_training_run(const cli_command *command, const cli_training *training);

/* Threads of each rank. */
int64_t cli_training_threads(const cli_training *training);

#define CLI_MOST_STEPS  1000000000
#define CLI_MOST_TOKENS 1000000
#define CLI_MOST_RANKS  256

/* Names in the order of fp8flow_checkpointing. */
#define CLI_CHECKPOINTING_NAMES "none|moe_expert|full"

/* `recipe_entry` is the command's own option that names one recipe or several. */
#define CLI_TRAINING_MODEL(type, member, data_required, recipe_entry)                                                  \
    CLI_OPTION_HEADING("Model and data"),                                                                              \
        CLI_OPTION_STRING(type, member.train.model, "model", "NAME",                                                   \
                          "built-in model, or path of a config.json (Qwen3-MoE form)"),                                \
        CLI_OPTION_LIST(type, member.data, "data", "PATH", data_required, "file or folder of raw text"), recipe_entry, \
        CLI_OPTION_INTEGER(type, member.train.seed, "seed", "N", 0, INT64_MAX, "seed of the weights"),                 \
        CLI_OPTION_INTEGER(type, member.train.data_seed, "data-seed", "N", 0, INT64_MAX,                               \
                           "seed of the order of the data")

#define CLI_TRAINING_STEPS(type, member)                                                                   \
    CLI_OPTION_HEADING("Steps"),                                                                           \
        CLI_OPTION_INTEGER(type, member.train.steps, "steps", "N", 1, CLI_MOST_STEPS,                      \
                           "optimiser steps; the schedule ends here"),                                     \
        CLI_OPTION_INTEGER(type, member.train.batch, "batch", "N", 1, CLI_MOST_TOKENS,                     \
                           "sequences per step, over all ranks"),                                          \
        CLI_OPTION_INTEGER(type, member.train.micro_batch, "micro-batch", "N", 1, CLI_MOST_TOKENS,         \
                           "sequences per rank and forward pass"),                                         \
        CLI_OPTION_INTEGER(type, member.train.sequence_length, "sequence-length", "N", 2, CLI_MOST_TOKENS, \
                           "tokens per sequence")

#define CLI_TRAINING_OPTIMISER(type, member)                                                                     \
    CLI_OPTION_HEADING("Optimiser (AdamW)"),                                                                     \
        CLI_OPTION_REAL(type, member.train.lr, "lr", "X", 0, 10, "largest learning rate"),                       \
        CLI_OPTION_REAL(type, member.train.min_lr, "min-lr", "X", 0, 10, "learning rate at the last step"),      \
        CLI_OPTION_INTEGER(type, member.train.warmup_steps, "warmup-steps", "N", 0, CLI_MOST_STEPS,              \
                           "steps of linear warm-up"),                                                           \
        CLI_OPTION_REAL(type, member.train.beta1, "beta1", "X", 0, 0.999999, "decay of the first moment"),       \
        CLI_OPTION_REAL(type, member.train.beta2, "beta2", "X", 0, 0.999999, "decay of the second moment"),      \
        CLI_OPTION_REAL(type, member.train.eps, "eps", "X", 1e-30, 1, "added to the root of the second moment"), \
        CLI_OPTION_REAL(type, member.train.weight_decay, "weight-decay", "X", 0, 10,                             \
                        "decoupled weight decay per unit of learning rate"),                                     \
        CLI_OPTION_REAL(type, member.train.clip, "clip", "X", 0, 1e9, "largest global gradient norm; 0: no clipping")

#define CLI_TRAINING_MACHINE(type, member)                                                         \
    CLI_OPTION_HEADING("Machine"),                                                                 \
        CLI_OPTION_INTEGER(type, member.ranks, "ranks", "N", 0, CLI_MOST_RANKS,                    \
                           "ranks: threads, or mpirun's; 0: as many as --ep and --dp call for"),   \
        CLI_OPTION_INTEGER(type, member.ep, "ep", "N", 0, CLI_MOST_RANKS,                          \
                           "expert parallelism: ranks that share the experts out; 0: ranks / dp"), \
        CLI_OPTION_INTEGER(type, member.dp, "dp", "N", 0, CLI_MOST_RANKS,                          \
                           "data parallelism: groups of such ranks; 0: ranks / ep"),               \
        CLI_OPTION_INTEGER(type, member.threads, "threads", "N", 0, 4096,                          \
                           "processor threads per rank; 0: all processors, shared by the ranks"),  \
        CLI_OPTION_CHOICE(type, member.checkpointing, "checkpointing", CLI_CHECKPOINTING_NAMES,    \
                          "what a MoE layer recomputes in backward"),                              \
        CLI_OPTION_DEVICE(type, member.device),                                                    \
        CLI_OPTION_CHOICE(type, member.backend, "backend", CLI_BACKEND_NAMES,                      \
                          "operators on the CPU; reference: plain scalar code, slow")

#define CLI_TRAINING_DISPLAY(type, member)                                                                           \
    CLI_OPTION_INTEGER(type, member.validate_every, "validate-every", "N", 0, CLI_MOST_STEPS,                        \
                       "steps between validations; 0: none"),                                                        \
        CLI_OPTION_INTEGER(type, member.train.validation_sequences, "validation-sequences", "N", 1, CLI_MOST_TOKENS, \
                           "sequences per validation"),                                                              \
        CLI_OPTION_INTEGER(type, member.log_every, "log-every", "N", 0, CLI_MOST_STEPS,                              \
                           "steps between lines when stdout is not a terminal")

#endif
