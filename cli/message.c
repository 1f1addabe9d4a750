/* message.c - one-line errors, the state of stdout, and numbers for people. See cli.h. */
#include "cli.h"
#include "job.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char held[2048];
static int is_holding;
static int32_t holding_rank;

void cli_hold_errors(int32_t rank)
{
    is_holding = 1;
    holding_rank = rank;
}

void cli_release_errors(void)
{
    is_holding = 0;
    holding_rank = 0;
    if (*held) fputs(held, stderr);
    *held = '\0';
}

/* The line is built first and written with one call, so that lines of several threads do not mix. */
static void print_error(const cli_command *command, const char *format, va_list arguments)
{
    char text[1900], line[sizeof held], rank[CLI_NUMBER_BYTES] = "";
    vsnprintf(text, sizeof text, format, arguments);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7F) *c = '?';
    if (holding_rank > 0) snprintf(rank, sizeof rank, "rank %d: ", holding_rank);
    snprintf(line, sizeof line, "fp8flow%s%s: %s%s\n", command ? " " : "", command ? command->name : "", rank, text);
    if (is_holding) {
        if (!*held) memcpy(held, line, sizeof held);
        return;
    }
    (void)fflush(stdout);
    fputs(line, stderr);
}

int cli_fail(const cli_command *command, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_error(command, format, arguments);
    va_end(arguments);
    return CLI_FAILED;
}

int cli_fail_usage(const cli_command *command, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_error(command, format, arguments);
    va_end(arguments);
    return CLI_USAGE;
}

int cli_fail_status(const cli_command *command, fp8flow_status status)
{
    const char *text = fp8flow_last_error();
    if (!*text) text = fp8flow_status_name(status);
    cli_fail(command, "%s", text);
    return status == FP8FLOW_EINVAL ? CLI_USAGE : CLI_FAILED;
}

/* What all processes of mpirun would say, rank 0 says. The others give it the time: with the first one that ends,
 * mpirun ends all. */
static int leave_it_to_rank_0(void)
{
    sleep(1);
    return CLI_USAGE;
}

int cli_parse(const cli_command *command, int argc, char **argv, void *values)
{
    char message[CLI_MESSAGE_BYTES];
    int32_t rank;
    if (fp8flow_mpi_launched(&rank) < 0)
        return rank > 0 ? leave_it_to_rank_0() : cli_fail_status(command, FP8FLOW_EINVAL);
    if (!command->runs_under_mpirun && cli_is_job(&rank))
        return rank > 0 ? leave_it_to_rank_0()
                        : cli_fail_usage(command, "runs in one process; start it without mpirun or srun");
    switch (cli_options_parse(command, argc, argv, values, message)) {
    case CLI_PARSED: return CLI_GO_ON;
    case CLI_WANTS_HELP: cli_options_help(stdout, command, values); return CLI_DONE;
    case CLI_BAD_USAGE: break;
    }
    return cli_fail_usage(command, "%s", message);
}

int cli_output_gone(void)
{
    return fflush(stdout) != 0 || ferror(stdout);
}

double cli_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static const char *format_scaled(char buffer[CLI_NUMBER_BYTES], double number, double base, const char *const units[])
{
    int unit = 0;
    while (number >= base && units[unit + 1]) {
        number /= base;
        unit++;
    }
    snprintf(buffer, CLI_NUMBER_BYTES, unit == 0 ? "%.0f%s" : "%.1f%s", number, units[unit]);
    return buffer;
}

const char *cli_format_bytes(char buffer[CLI_NUMBER_BYTES], double bytes)
{
    static const char *const units[] = { " B", " KiB", " MiB", " GiB", " TiB", NULL };
    return format_scaled(buffer, bytes, 1024.0, units);
}

const char *cli_format_count(char buffer[CLI_NUMBER_BYTES], double count)
{
    static const char *const units[] = { "", " k", " M", " G", " T", NULL };
    return format_scaled(buffer, count, 1000.0, units);
}
