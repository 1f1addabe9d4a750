/* options.h - one table per subcommand: what it accepts, how it is checked, what --help says.
 *
 * A command keeps its settings in a struct, sets the defaults there, and describes the fields in a
 * table of cli_option. Parsing, range checks, error messages and the help text all come from that
 * table; the defaults that --help shows are read from the struct, so they cannot disagree with it.
 * Nothing here prints to stderr or exits: the caller gets one line of text.
 */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { CLI_LIST_MAX = 256, CLI_MESSAGE_BYTES = 512, CLI_QUOTE_BYTES = 80 };

/* Values of an option that may be repeated; the strings are those of argv. */
typedef struct {
    const char *items[CLI_LIST_MAX];
    int64_t count;
} cli_list;

/* Kind of an option and type of its field. */
typedef enum {
    CLI_HEADING, /* no field: a title between groups in the help text */
    CLI_STRING,  /* const char *, not empty */
    CLI_INTEGER, /* int64_t or uint64_t; the suffixes k, M, G multiply by 10^3, 10^6, 10^9 */
    CLI_REAL,    /* double, finite */
    CLI_CHOICE,  /* int32_t: position in the names of `value`, which are separated by | */
    CLI_LIST,    /* cli_list: one value per use of the option */
    CLI_NAMES,   /* cli_list: as CLI_LIST, and commas separate names */
    CLI_FLAG,    /* int32_t: 1 when given; takes no value */
    CLI_OPERAND  /* const char *: the argument without dashes; at most one entry per table */
} cli_kind;

typedef struct {
    const char *name; /* without dashes; text of a CLI_HEADING */
    cli_kind kind;
    size_t field;        /* offset in the command's struct */
    const char *value;   /* name of the value in the help text ("N", "DIR"); names of a CLI_CHOICE ("cpu|reference") */
    const char *help;    /* one line with the unit; range and default are added to it */
    int64_t least, most; /* CLI_INTEGER */
    double real_least, real_most; /* CLI_REAL */
    int32_t required;             /* 1: an error when the option is missing; lists, strings, operands */
} cli_option;

/* Table entries: CLI_OPTION_INTEGER(settings, steps, "steps", "N", 1, 100, "optimiser steps"). */
#define CLI_OPTION_HEADING(text)            \
    {                                       \
        .name = (text), .kind = CLI_HEADING \
    }
#define CLI_OPTION_STRING(type, field_, name_, value_, help_)                                                    \
    {                                                                                                            \
        .name = (name_), .kind = CLI_STRING, .field = offsetof(type, field_), .value = (value_), .help = (help_) \
    }
#define CLI_OPTION_INTEGER(type, field_, name_, value_, least_, most_, help_)                                        \
    {                                                                                                                \
        .name = (name_), .kind = CLI_INTEGER, .field = offsetof(type, field_), .value = (value_), .least = (least_), \
        .most = (most_), .help = (help_)                                                                             \
    }
#define CLI_OPTION_REAL(type, field_, name_, value_, least_, most_, help_)                                             \
    {                                                                                                                  \
        .name = (name_), .kind = CLI_REAL, .field = offsetof(type, field_), .value = (value_), .real_least = (least_), \
        .real_most = (most_), .help = (help_)                                                                          \
    }
#define CLI_OPTION_CHOICE(type, field_, name_, names_, help_)                                                    \
    {                                                                                                            \
        .name = (name_), .kind = CLI_CHOICE, .field = offsetof(type, field_), .value = (names_), .help = (help_) \
    }
#define CLI_OPTION_LIST(type, field_, name_, value_, required_, help_)                                          \
    {                                                                                                           \
        .name = (name_), .kind = CLI_LIST, .field = offsetof(type, field_), .value = (value_), .help = (help_), \
        .required = (required_)                                                                                 \
    }
#define CLI_OPTION_NAMES(type, field_, name_, value_, help_)                                                    \
    {                                                                                                           \
        .name = (name_), .kind = CLI_NAMES, .field = offsetof(type, field_), .value = (value_), .help = (help_) \
    }
#define CLI_OPTION_FLAG(type, field_, name_, help_)                                         \
    {                                                                                       \
        .name = (name_), .kind = CLI_FLAG, .field = offsetof(type, field_), .help = (help_) \
    }
#define CLI_OPTION_OPERAND(type, field_, name_, help_)                                                           \
    {                                                                                                            \
        .name = (name_), .kind = CLI_OPERAND, .field = offsetof(type, field_), .value = (name_), .help = (help_) \
    }

/* A subcommand. run gets argv[0] = name, and returns the exit code of the program. */
typedef struct {
    const char *name;
    const char *summary; /* one line */
    const cli_option *options;
    size_t num_options;
    const char *example; /* one command line, shown last in the help text */
    int (*run)(int argc, char **argv);
    int32_t runs_under_mpirun; /* in each process; others are refused there */
} cli_command;

typedef enum { CLI_PARSED, CLI_WANTS_HELP, CLI_BAD_USAGE } cli_outcome;

/* Read argv[1 ..] into *values (a struct with the defaults set). --name value and --name=value; the last use
 * of an option wins; "--" ends the options; -h and --help win over everything after them. On CLI_BAD_USAGE
 * `message` says what is wrong in one line. argv strings are borrowed; those of CLI_NAMES are cut at commas. */
cli_outcome cli_options_parse(const cli_command *command, int argc, char **argv, void *values,
                              char message[CLI_MESSAGE_BYTES]);

/* The help text of a command, with the defaults found in *values. */
void cli_options_help(FILE *stream, const cli_command *command, const void *values);

typedef enum { CLI_NOT_A_NUMBER, CLI_NUMBER, CLI_TOO_LARGE } cli_number;

/* Whole number or number in strict form: no blanks, no sign +, no hexadecimal, nothing behind it. CLI_TOO_LARGE:
 * well formed, but beyond 64 bits or the largest double; then *number of an integer is not written. */
cli_number cli_parse_integer(const char *text, int64_t *number);
cli_number cli_parse_real(const char *text, double *number);

/* `text` in double quotes, control bytes as '?', long text cut with "...": safe inside a one-line message. */
const char *cli_quote(char buffer[CLI_QUOTE_BYTES], const char *text);

/* Number of edits from `name` to `candidate` if it is so small that `candidate` was probably meant; else -1. */
int cli_edit_distance(const char *name, const char *candidate);

#endif
