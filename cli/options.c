/* options.c - parsing and help from the option table. Contract: options.h.
 *
 * Every value goes through store_value(), which is the only place that knows the kinds; every message
 * quotes user text with cli_quote(), so that a megabyte of binary in argv still gives one short line.
 */
#include "options.h"

#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { HELP_WIDTH = 100, HELP_COLUMN = 28, NAME_MAX_BYTES = 40 };

/* ---- Values --------------------------------------------------------------------------------- */

cli_number cli_parse_integer(const char *text, int64_t *number)
{
    int negative = *text == '-';
    const char *c = text + negative;
    if (!isdigit((unsigned char)*c)) return CLI_NOT_A_NUMBER;
    int64_t value = 0;
    int overflow = 0;
    /* Negative accumulation, because -2^63 has no positive counterpart. */
    for (; isdigit((unsigned char)*c); c++)
        overflow |= __builtin_mul_overflow(value, (int64_t)10, &value) ||
                    __builtin_sub_overflow(value, (int64_t)(*c - '0'), &value);
    int64_t factor = *c == 'k' ? 1000 : *c == 'M' ? 1000000 : *c == 'G' ? 1000000000 : 1;
    if (factor != 1) c++;
    if (*c) return CLI_NOT_A_NUMBER;
    overflow |= __builtin_mul_overflow(value, factor, &value);
    if (!negative) overflow |= __builtin_sub_overflow((int64_t)0, value, &value);
    if (overflow) return CLI_TOO_LARGE;
    *number = value;
    return CLI_NUMBER;
}

cli_number cli_parse_real(const char *text, double *number)
{
    const char *c = text + (*text == '-');
    if (!isdigit((unsigned char)*c) && *c != '.') return CLI_NOT_A_NUMBER; /* strtod would take blanks, "inf", "nan" */
    if (strpbrk(text, "xX")) return CLI_NOT_A_NUMBER;
    char *end;
    *number = strtod(text, &end);
    if (end == text || *end) return CLI_NOT_A_NUMBER;
    return isfinite(*number) ? CLI_NUMBER : CLI_TOO_LARGE;
}

const char *cli_quote(char buffer[CLI_QUOTE_BYTES], const char *text)
{
    enum { ROOM = CLI_QUOTE_BYTES - 6 }; /* two quotes, "...", NUL */
    size_t length = strnlen(text, ROOM + 1), used = 0;
    size_t shown = length > ROOM ? ROOM : length;
    /* A cut inside a UTF-8 sequence would leave half a character. */
    while (length > ROOM && shown > 0 && ((unsigned char)text[shown] & 0xC0) == 0x80) shown--;
    buffer[used++] = '"';
    for (size_t i = 0; i < shown; i++) {
        unsigned char byte = (unsigned char)text[i];
        buffer[used++] = byte < 0x20 || byte == 0x7F ? '?' : text[i];
    }
    snprintf(buffer + used, CLI_QUOTE_BYTES - used, "%s\"", length > ROOM ? "..." : "");
    return buffer;
}

/* Position of `name` among the names of "a|b|c", or -1. */
static int32_t find_choice(const char *choices, const char *name)
{
    size_t length = strlen(name);
    for (int32_t position = 0;; position++) {
        size_t span = strcspn(choices, "|");
        if (span == length && memcmp(choices, name, span) == 0) return position;
        if (!choices[span]) return -1;
        choices += span + 1;
    }
}

static void choice_name(const char *choices, int32_t position, char name[NAME_MAX_BYTES])
{
    while (position-- > 0) choices += strcspn(choices, "|") + 1;
    snprintf(name, NAME_MAX_BYTES, "%.*s", (int)strcspn(choices, "|"), choices);
}

/* ---- Errors --------------------------------------------------------------------------------- */

static cli_outcome bad(char message[CLI_MESSAGE_BYTES], const char *format, ...) __attribute__((format(printf, 2, 3)));
static cli_outcome bad(char message[CLI_MESSAGE_BYTES], const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, CLI_MESSAGE_BYTES, format, arguments);
    va_end(arguments);
    return CLI_BAD_USAGE;
}

/* Optimal string alignment distance: insert, delete, replace, swap neighbours. */
static int count_edits(const char *a, const char *b)
{
    int rows[3][NAME_MAX_BYTES + 1];
    int columns = (int)strlen(b);
    for (int j = 0; j <= columns; j++) rows[0][j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int *now = rows[i % 3], *before = rows[(i + 2) % 3], *before2 = rows[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= columns; j++) {
            int best = before[j - 1] + (a[i - 1] != b[j - 1]);
            if (before[j] + 1 < best) best = before[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before2[j - 2] + 1 < best)
                best = before2[j - 2] + 1;
            now[j] = best;
        }
    }
    return rows[strlen(a) % 3][columns];
}

int cli_edit_distance(const char *name, const char *candidate)
{
    size_t length = strnlen(name, NAME_MAX_BYTES + 1);
    if (length == 0 || length > NAME_MAX_BYTES || strlen(candidate) > NAME_MAX_BYTES) return -1;
    int edits = count_edits(name, candidate);
    return edits <= (length < 6 ? 1 : 2) ? edits : -1;
}

static cli_outcome unknown_option(const cli_command *command, const char *name, char message[CLI_MESSAGE_BYTES])
{
    char quoted[CLI_QUOTE_BYTES];
    const char *nearest = NULL;
    int fewest = INT_MAX;
    for (size_t i = 0; i < command->num_options; i++) {
        const cli_option *option = &command->options[i];
        if (option->kind == CLI_HEADING || option->kind == CLI_OPERAND) continue;
        int edits = cli_edit_distance(name + strspn(name, "-"), option->name);
        if (edits >= 0 && edits < fewest) {
            nearest = option->name;
            fewest = edits;
        }
    }
    cli_quote(quoted, name);
    if (nearest) return bad(message, "unknown option %s; did you mean --%s?", quoted, nearest);
    return bad(message, "unknown option %s; \"fp8flow help %s\" lists them", quoted, command->name);
}

/* ---- Parsing -------------------------------------------------------------------------------- */

static void *field_of(const cli_option *option, void *values)
{
    return (char *)values + option->field;
}

static cli_outcome store_integer(const cli_option *option, const char *text, void *field, char *message)
{
    char quoted[CLI_QUOTE_BYTES];
    int64_t number;
    cli_number form = cli_parse_integer(text, &number);
    if (form == CLI_NOT_A_NUMBER)
        return bad(message, "--%s: %s is not a whole number", option->name, cli_quote(quoted, text));
    if (form == CLI_TOO_LARGE || number < option->least || number > option->most)
        return bad(message, "--%s: %s is not in %lld .. %lld", option->name, cli_quote(quoted, text),
                   (long long)option->least, (long long)option->most);
    *(int64_t *)field = number;
    return CLI_PARSED;
}

static cli_outcome store_real(const cli_option *option, const char *text, void *field, char *message)
{
    char quoted[CLI_QUOTE_BYTES];
    double number;
    if (cli_parse_real(text, &number) == CLI_NOT_A_NUMBER)
        return bad(message, "--%s: %s is not a number", option->name, cli_quote(quoted, text));
    if (!(number >= option->real_least && number <= option->real_most))
        return bad(message, "--%s: %s is not in %g .. %g", option->name, cli_quote(quoted, text), option->real_least,
                   option->real_most);
    *(double *)field = number;
    return CLI_PARSED;
}

static cli_outcome store_choice(const cli_option *option, const char *text, void *field, char *message)
{
    char quoted[CLI_QUOTE_BYTES];
    int32_t position = find_choice(option->value, text);
    if (position < 0)
        return bad(message, "--%s: %s is not one of %s", option->name, cli_quote(quoted, text), option->value);
    *(int32_t *)field = position;
    return CLI_PARSED;
}

static cli_outcome append(const cli_option *option, const char *text, cli_list *list, char *message)
{
    if (!*text) return bad(message, "--%s: an empty value", option->name);
    if (list->count == CLI_LIST_MAX) return bad(message, "--%s: more than %d values", option->name, CLI_LIST_MAX);
    list->items[list->count++] = text;
    return CLI_PARSED;
}

static cli_outcome append_names(const cli_option *option, char *text, cli_list *list, char *message)
{
    for (char *comma; (comma = strchr(text, ',')) != NULL; text = comma + 1) {
        *comma = '\0';
        if (append(option, text, list, message) != CLI_PARSED) return CLI_BAD_USAGE;
    }
    return append(option, text, list, message);
}

static cli_outcome store_value(const cli_option *option, char *text, void *values, char *message)
{
    void *field = field_of(option, values);
    switch (option->kind) {
    case CLI_INTEGER: return store_integer(option, text, field, message);
    case CLI_REAL: return store_real(option, text, field, message);
    case CLI_CHOICE: return store_choice(option, text, field, message);
    case CLI_LIST: return append(option, text, field, message);
    case CLI_NAMES: return append_names(option, text, field, message);
    case CLI_FLAG: *(int32_t *)field = 1; return CLI_PARSED;
    case CLI_STRING:
    case CLI_OPERAND:
        if (!*text) return bad(message, "%s%s: an empty value", option->kind == CLI_STRING ? "--" : "", option->name);
        *(const char **)field = text;
        return CLI_PARSED;
    case CLI_HEADING: break;
    }
    return CLI_PARSED;
}

static const cli_option *find_option(const cli_command *command, const char *name, size_t length)
{
    for (size_t i = 0; i < command->num_options; i++) {
        const cli_option *option = &command->options[i];
        if (option->kind == CLI_HEADING || option->kind == CLI_OPERAND) continue;
        if (strlen(option->name) == length && memcmp(option->name, name, length) == 0) return option;
    }
    return NULL;
}

/* One option at argv[*position]; moves *position past its value. */
static cli_outcome parse_option(const cli_command *command, char **argv, int *position, void *values, char *message)
{
    char *text = argv[(*position)++];
    size_t length = strcspn(text + 2, "=");
    const cli_option *option = text[1] == '-' ? find_option(command, text + 2, length) : NULL;
    if (!option) {
        if (text[1] == '-' && text[2 + length]) text[2 + length] = '\0'; /* the message names the option only */
        return unknown_option(command, text, message);
    }
    char *value = text[2 + length] ? text + 2 + length + 1 : NULL;
    if (option->kind == CLI_FLAG) {
        if (value) return bad(message, "--%s takes no value", option->name);
        return store_value(option, text, values, message);
    }
    if (!value) {
        value = argv[*position];
        if (!value || strncmp(value, "--", 2) == 0) return bad(message, "--%s needs a value", option->name);
        ++*position;
    }
    return store_value(option, value, values, message);
}

static cli_outcome parse_operand(const cli_command *command, char *text, void *values, int *num_operands, char *message)
{
    char quoted[CLI_QUOTE_BYTES];
    for (size_t i = 0; i < command->num_options; i++)
        if (command->options[i].kind == CLI_OPERAND && (*num_operands)++ == 0)
            return store_value(&command->options[i], text, values, message);
    return bad(message, "unexpected argument %s", cli_quote(quoted, text));
}

static int is_missing(const cli_option *option, void *values)
{
    if (!option->required) return 0;
    if (option->kind == CLI_LIST || option->kind == CLI_NAMES)
        return ((const cli_list *)field_of(option, values))->count == 0;
    return *(const char *const *)field_of(option, values) == NULL;
}

cli_outcome cli_options_parse(const cli_command *command, int argc, char **argv, void *values,
                              char message[CLI_MESSAGE_BYTES])
{
    int num_operands = 0, options_ended = 0;
    for (int position = 1; position < argc;) {
        char *text = argv[position];
        cli_outcome outcome = CLI_PARSED;
        if (!options_ended && strcmp(text, "--") == 0) {
            options_ended = 1;
            position++;
        } else if (!options_ended && (strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0)) {
            return CLI_WANTS_HELP;
        } else if (!options_ended && text[0] == '-' && text[1]) {
            outcome = parse_option(command, argv, &position, values, message);
        } else {
            outcome = parse_operand(command, text, values, &num_operands, message);
            position++;
        }
        if (outcome != CLI_PARSED) return outcome;
    }
    for (size_t i = 0; i < command->num_options; i++) {
        const cli_option *option = &command->options[i];
        if (is_missing(option, values))
            return bad(message, "%s%s is missing; \"fp8flow help %s\" explains it",
                       option->kind == CLI_OPERAND ? "" : "--", option->name, command->name);
    }
    return CLI_PARSED;
}

/* ---- Help ----------------------------------------------------------------------------------- */

/* The part of the help line that the table and the defaults give: "1 .. 100, default 10". */
static void describe_range(const cli_option *option, const void *values, char *text, size_t size)
{
    const void *field = (const char *)values + option->field;
    char name[NAME_MAX_BYTES];
    const char *default_text;
    size_t used;
    text[0] = '\0';
    switch (option->kind) {
    case CLI_INTEGER:
        if (option->most == INT64_MAX) snprintf(text, size, "%lld or more", (long long)option->least);
        else snprintf(text, size, "%lld .. %lld", (long long)option->least, (long long)option->most);
        used = strlen(text);
        snprintf(text + used, size - used, ", default %lld", (long long)*(const int64_t *)field);
        return;
    case CLI_REAL:
        snprintf(text, size, "%g .. %g, default %g", option->real_least, option->real_most, *(const double *)field);
        return;
    case CLI_CHOICE:
        choice_name(option->value, *(const int32_t *)field, name);
        snprintf(text, size, "default %s", name);
        return;
    case CLI_LIST:
    case CLI_NAMES:
        snprintf(text, size, "%s%s", option->required ? "required, " : "",
                 option->kind == CLI_LIST ? "may be repeated" : "commas separate, may be repeated");
        return;
    case CLI_STRING:
    case CLI_OPERAND:
        default_text = *(const char *const *)field;
        if (option->required) snprintf(text, size, "required");
        else if (default_text && *default_text) snprintf(text, size, "default %s", default_text);
        return;
    case CLI_FLAG:
    case CLI_HEADING: return;
    }
}

/* Print words from column `column` on, continued at HELP_COLUMN. */
static void print_wrapped(FILE *stream, const char *text, int column)
{
    for (; column < HELP_COLUMN; column++) fputc(' ', stream);
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (column > HELP_COLUMN && column + 1 + length > HELP_WIDTH) {
            fprintf(stream, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        }
        column += fprintf(stream, "%s%.*s", column > HELP_COLUMN ? " " : "", length, text);
        text += length;
        text += strspn(text, " ");
    }
    fputc('\n', stream);
}

static void print_option(FILE *stream, const cli_option *option, const void *values)
{
    char left[128], range[256], line[1024];
    if (option->kind == CLI_HEADING) {
        fprintf(stream, "\n%s\n", option->name);
        return;
    }
    snprintf(left, sizeof left, "  %s%s%s%s", option->kind == CLI_OPERAND ? "" : "--", option->name,
             option->value && option->kind != CLI_OPERAND ? " " : "",
             option->value && option->kind != CLI_OPERAND ? option->value : "");
    describe_range(option, values, range, sizeof range);
    snprintf(line, sizeof line, "%s%s%s%s", option->help, *range ? " (" : "", range, *range ? ")" : "");
    int column = fprintf(stream, "%s", left);
    if (column >= HELP_COLUMN) {
        fputc('\n', stream);
        column = 0;
    }
    print_wrapped(stream, line, column);
}

void cli_options_help(FILE *stream, const cli_command *command, const void *values)
{
    fprintf(stream, "Usage: fp8flow %s [options]", command->name);
    for (size_t i = 0; i < command->num_options; i++)
        if (command->options[i].kind == CLI_OPERAND) fprintf(stream, " [%s]", command->options[i].name);
    fprintf(stream, "\n\n%s.\n", command->summary);
    if (command->num_options && command->options[0].kind != CLI_HEADING) fputc('\n', stream);
    for (size_t i = 0; i < command->num_options; i++) print_option(stream, &command->options[i], values);
    fprintf(stream, "\nExample: %s\n", command->example);
}
