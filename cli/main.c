/* main.c - the program `fp8flow`: the table of subcommands, and what holds for all of them.
 *
 * Descriptors 0, 1 and 2 are made to exist before anything is opened, otherwise the first file that a
 * command opens would become its stdout. SIGPIPE and SIGXFSZ are ignored, so that a run whose reader goes
 * away or whose disk quota ends can still stop in order; the loss of stdout becomes exit code 1 at the end.
 */
#include "cli.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const cli_command *const commands[] = { &cli_train,   &cli_generate, &cli_compare,
                                               &cli_inspect, &cli_bench,    &cli_doctor };
enum { NUM_COMMANDS = sizeof commands / sizeof *commands };

/* A closed descriptor is opened in the wrong direction: reading and writing fail as they should. */
static int open_standard_descriptors(void)
{
    for (int descriptor = 0; descriptor <= 2; descriptor++) {
        if (fcntl(descriptor, F_GETFD) != -1) continue;
        if (open("/dev/null", descriptor == 0 ? O_WRONLY : O_RDONLY) != descriptor) return -1;
    }
    return 0;
}

static void print_help(void)
{
    printf("fp8flow %s - train Mixture-of-Experts language models in FP8\n\n"
           "Usage: fp8flow COMMAND [options]\n\n",
           fp8flow_version());
    for (size_t i = 0; i < NUM_COMMANDS; i++) printf("  %-10s %s\n", commands[i]->name, commands[i]->summary);
    printf("\n\"fp8flow help COMMAND\" lists the options of a command. First steps:\n\n"
           "  fp8flow doctor\n"
           "  fp8flow train --data notes.txt --steps 200 --output run\n");
}

static const cli_command *find_command(const char *name)
{
    for (size_t i = 0; i < NUM_COMMANDS; i++)
        if (strcmp(name, commands[i]->name) == 0) return commands[i];
    return NULL;
}

static int fail_unknown_command(const char *name)
{
    const char *nearest = NULL;
    int fewest = 0;
    for (size_t i = 0; i < NUM_COMMANDS; i++) {
        int edits = cli_edit_distance(name, commands[i]->name);
        if (edits >= 0 && (!nearest || edits < fewest)) {
            nearest = commands[i]->name;
            fewest = edits;
        }
    }
    char quoted[CLI_QUOTE_BYTES];
    const char *kind = name[0] == '-' ? "option" : "command";
    if (nearest)
        return cli_fail_usage(NULL, "unknown %s %s; did you mean \"%s\"?", kind, cli_quote(quoted, name), nearest);
    return cli_fail_usage(NULL, "unknown %s %s; \"fp8flow --help\" lists the commands", kind, cli_quote(quoted, name));
}

static int help_command(int argc, char **argv)
{
    if (argc == 0) {
        print_help();
        return CLI_DONE;
    }
    const cli_command *command = find_command(argv[0]);
    if (!command) return fail_unknown_command(argv[0]);
    char name[32], option[] = "--help";
    snprintf(name, sizeof name, "%s", command->name);
    /* "help bench comm" */
    char *of_two_words[] = { name, argc > 1 ? argv[1] : option, option, NULL }, *of_one[] = { name, option, NULL };
    return argc > 1 ? command->run(3, of_two_words) : command->run(2, of_one);
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2) return cli_fail_usage(NULL, "no command; \"fp8flow --help\" lists them");
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) return help_command(0, NULL);
    if (strcmp(name, "help") == 0) return help_command(argc - 2, argv + 2);
    if (strcmp(name, "--version") == 0) {
        printf("fp8flow %s\n", fp8flow_version());
        return CLI_DONE;
    }
    const cli_command *command = find_command(name);
    return command ? command->run(argc - 1, argv + 1) : fail_unknown_command(name);
}

/* A reader that went away, or stdout closed from the start: nobody to tell. */
static int nobody_reads_stdout(void)
{
    struct pollfd output = { STDOUT_FILENO, POLLOUT, 0 };
    if (poll(&output, 1, 0) == 1 && (output.revents & (POLLERR | POLLNVAL))) return 1;
    return (fcntl(STDOUT_FILENO, F_GETFL) & O_ACCMODE) == O_RDONLY;
}

/* Two libraries read their environment when they are loaded, before main. Where a better value is known, name it and
 * start again, once; a value that the user has set is left alone.
 *   OPENBLAS_CORETYPE  OpenBLAS takes the kernels of an old processor for one that is newer than itself
 *   GOMP_SPINCOUNT     threads that wait for each other spin for milliseconds: on a machine that is shared, they keep
 *                      the one they wait for from running. A short spin, then sleep. */
static void choose_environment(char **argv)
{
    const char *core = fp8flow_better_blas_core();
    int better_core = core && !getenv("OPENBLAS_CORETYPE");
    int shorter_spin = !getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT");
    if (getenv("FP8FLOW_STARTED_AGAIN") || (!better_core && !shorter_spin)) return;
    if (better_core) (void)setenv("OPENBLAS_CORETYPE", core, 0);
    if (shorter_spin) (void)setenv("GOMP_SPINCOUNT", "1000", 0);
    /* By its path: started as /proc/self/exe, the process would be called "exe". */
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length < 0 || setenv("FP8FLOW_STARTED_AGAIN", "1", 1) != 0) return;
    path[length] = '\0';
    execv(path, argv);
}

int main(int argc, char **argv)
{
    choose_environment(argv);
    if (open_standard_descriptors() != 0) return CLI_FAILED;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    int code = dispatch(argc, argv);
    if (cli_output_gone() && code == CLI_DONE)
        return nobody_reads_stdout() ? CLI_FAILED : cli_fail(NULL, "standard output cannot be written");
    return code;
}
