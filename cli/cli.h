/* cli.h - what the subcommands of the program `fp8flow` share: the list of them, and how they report.
 *
 * Exit codes: 0 done, 1 failed, 2 wrong usage. Every failure is one line on stderr,
 * "fp8flow train: --steps: "-1" is not in 1 .. 1000000000". Results go to stdout. A command that writes
 * much asks cli_output_gone() now and then and stops early; main turns a lost stdout into exit code 1.
 * SIGPIPE is ignored; descriptors 0, 1 and 2 are always open.
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "fp8flow.h"
#include "options.h"

enum { CLI_DONE = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_GO_ON = -1 };

/* Each in cmd_<name>.c. */
extern const cli_command cli_train, cli_generate, cli_compare, cli_inspect, cli_bench, cli_doctor;

/* Commands of two words: `bench` hands over to them. */
extern const cli_command cli_bench_layer, cli_bench_train, cli_bench_comm;

/* Parse the arguments of a command; under mpirun, only of one that runs there. CLI_GO_ON: *values is ready. Otherwise
 * the help text or the error has been printed and the value is the exit code. */
int cli_parse(const cli_command *command, int argc, char **argv, void *values);

/* Print one line "fp8flow NAME: text" on stderr. Returns CLI_FAILED / CLI_USAGE. */
int cli_fail(const cli_command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
int cli_fail_usage(const cli_command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Between the two, errors are not printed: the first one is kept, and printed by cli_release_errors, with the rank if
 * it is not 0. */
void cli_hold_errors(int32_t rank);
void cli_release_errors(void);

/* Print fp8flow_last_error() of this thread. Returns CLI_USAGE for EINVAL (an option's value), else CLI_FAILED. */
int cli_fail_status(const cli_command *command, fp8flow_status status);

/* Whether stdout can no longer be written (closed pipe, full disk). Flushes it. */
int cli_output_gone(void);

/* Seconds on a clock that never jumps. */
double cli_seconds(void);

/* Numbers for people: "1.2 GiB", "31.4 M". `buffer` is returned. */
enum { CLI_NUMBER_BYTES = 32 };
const char *cli_format_bytes(char buffer[CLI_NUMBER_BYTES], double bytes);
const char *cli_format_count(char buffer[CLI_NUMBER_BYTES], double count);

#endif
