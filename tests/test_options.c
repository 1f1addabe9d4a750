/* test_options.c - the option parser of the program: every kind, every message, hostile argv. */
#include "support.h"

#include "../cli/options.h"

typedef struct {
    const char *name, *filter, *needed;
    int64_t steps;
    uint64_t seed;
    double rate;
    int32_t mode, json;
    cli_list paths, recipes;
} settings;

static const cli_option options[] = {
    CLI_OPTION_HEADING("Group"),
    CLI_OPTION_STRING(settings, name, "name", "TEXT", "a name"),
    CLI_OPTION_INTEGER(settings, steps, "steps", "N", 1, 1000000000, "steps"),
    CLI_OPTION_INTEGER(settings, seed, "seed", "N", 0, INT64_MAX, "a seed"),
    CLI_OPTION_REAL(settings, rate, "rate", "X", 0, 1, "a rate"),
    CLI_OPTION_CHOICE(settings, mode, "mode", "none|some|all", "a mode"),
    CLI_OPTION_LIST(settings, paths, "path", "PATH", 0, "paths"),
    CLI_OPTION_NAMES(settings, recipes, "recipes", "LIST", "recipes"),
    CLI_OPTION_FLAG(settings, json, "json", "as JSON"),
    CLI_OPTION_OPERAND(settings, filter, "FILTER", "what to run"),
};
static const cli_option needing_options[] = {
    { .name = "needed",
      .kind = CLI_STRING,
      .field = offsetof(settings, needed),
      .value = "DIR",
      .help = "must be there",
      .required = 1 },
    CLI_OPTION_LIST(settings, paths, "path", "PATH", 1, "paths"),
};
static const cli_command command = { .name = "try",
                                     .summary = "Try things",
                                     .options = options,
                                     .num_options = sizeof options / sizeof *options,
                                     .example = "fp8flow try" };
static const cli_command needing = { .name = "need",
                                     .summary = "Need things",
                                     .options = needing_options,
                                     .num_options = sizeof needing_options / sizeof *needing_options,
                                     .example = "fp8flow need" };

enum { MOST_ARGUMENTS = 300 };

/* One parse with an argv of its own (parsing may write to it): exact-size copies, so that ASan sees an overrun. */
typedef struct {
    settings values;
    cli_outcome outcome;
    char message[CLI_MESSAGE_BYTES];
    char *argv[MOST_ARGUMENTS + 2];
    int argc;
} parse;

static void add_argument(parse *p, const char *text)
{
    assert_true(p->argc < MOST_ARGUMENTS);
    p->argv[p->argc++] = strdup(text);
    p->argv[p->argc] = NULL;
}

static void run_parse(parse *p, const cli_command *which)
{
    p->values = (settings){ .steps = 7, .rate = 0.5, .name = "unset" };
    strcpy(p->message, "");
    p->outcome = cli_options_parse(which, p->argc, p->argv, &p->values, p->message);
}

static void free_parse(parse *p)
{
    while (p->argc > 0) free(p->argv[--p->argc]);
}

/* Parse the blank-separated words of `line`; '~' stands for a blank inside a word, '@' for an empty word. */
static void parse_words(parse *p, const cli_command *which, const char *line)
{
    char *copy = strdup(line), *rest = copy;
    p->argc = 0;
    add_argument(p, "try");
    for (char *word; (word = strtok_r(rest, " ", &rest)) != NULL;) {
        for (char *c = word; *c; c++)
            if (*c == '~') *c = ' ';
        add_argument(p, strcmp(word, "@") == 0 ? "" : word);
    }
    free(copy);
    run_parse(p, which);
}

static void check_message(const cli_command *which, const char *line, const char *message)
{
    parse p = { 0 };
    parse_words(&p, which, line);
    if (p.outcome != CLI_BAD_USAGE) fail_msg("\"%s\" was accepted", line);
    if (strcmp(p.message, message) != 0) fail_msg("\"%s\" gave: %s", line, p.message);
    free_parse(&p);
}

static void test_values_of_every_kind_in_both_forms(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "--name abc --steps 12 --seed 5 --rate 0.25 --mode some --path a --path b --recipes x,y --json f",
        "--name=abc --steps=12 --seed=5 --rate=0.25 --mode=some --path=a --path=b --recipes=x --recipes=y f --json",
    };
    for (size_t i = 0; i < 2; i++) {
        parse p = { 0 };
        parse_words(&p, &command, lines[i]);
        assert_int_equal(p.outcome, CLI_PARSED);
        assert_string_equal(p.values.name, "abc");
        assert_int_equal(p.values.steps, 12);
        assert_int_equal(p.values.seed, 5);
        assert_true(p.values.rate == 0.25);
        assert_int_equal(p.values.mode, 1);
        assert_int_equal(p.values.json, 1);
        assert_string_equal(p.values.filter, "f");
        assert_int_equal(p.values.paths.count, 2);
        assert_string_equal(p.values.paths.items[1], "b");
        assert_int_equal(p.values.recipes.count, 2);
        assert_string_equal(p.values.recipes.items[0], "x");
        assert_string_equal(p.values.recipes.items[1], "y");
        free_parse(&p);
    }
}

static void test_defaults_stay_without_arguments(void **state)
{
    (void)state;
    parse p = { 0 };
    parse_words(&p, &command, "");
    assert_int_equal(p.outcome, CLI_PARSED);
    assert_int_equal(p.values.steps, 7);
    assert_string_equal(p.values.name, "unset");
    assert_null(p.values.filter);
    free_parse(&p);
}

static void test_last_use_of_an_option_wins(void **state)
{
    (void)state;
    parse p = { 0 };
    parse_words(&p, &command, "--steps 3 --steps=4 --mode all --mode none");
    assert_int_equal(p.values.steps, 4);
    assert_int_equal(p.values.mode, 0);
    free_parse(&p);
}

static void test_double_dash_ends_the_options(void **state)
{
    (void)state;
    parse p = { 0 };
    parse_words(&p, &command, "--json -- --steps");
    assert_int_equal(p.outcome, CLI_PARSED);
    assert_string_equal(p.values.filter, "--steps");
    free_parse(&p);
    parse_words(&p, &command, "-");
    assert_string_equal(p.values.filter, "-");
    free_parse(&p);
    check_message(&command, "-- a b", "unexpected argument \"b\"");
}

static void test_value_may_begin_with_dashes_behind_equals(void **state)
{
    (void)state;
    parse p = { 0 };
    parse_words(&p, &command, "--name=--steps=3");
    assert_string_equal(p.values.name, "--steps=3");
    assert_int_equal(p.values.steps, 7);
    free_parse(&p);
    parse_words(&p, &command, "--name -");
    assert_string_equal(p.values.name, "-");
    free_parse(&p);
}

static void test_help_wins_over_what_follows(void **state)
{
    (void)state;
    static const char *const lines[] = { "--help", "-h", "--steps 3 --help --nonsense" };
    for (size_t i = 0; i < 3; i++) {
        parse p = { 0 };
        parse_words(&p, &command, lines[i]);
        assert_int_equal(p.outcome, CLI_WANTS_HELP);
        free_parse(&p);
    }
}

static void test_integers_at_the_limits(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        cli_number form;
        int64_t number;
    } cases[] = { { "0", CLI_NUMBER, 0 },
                  { "-0", CLI_NUMBER, 0 },
                  { "0012", CLI_NUMBER, 12 },
                  { "9223372036854775807", CLI_NUMBER, INT64_MAX },
                  { "-9223372036854775808", CLI_NUMBER, INT64_MIN },
                  { "9223372036854775808", CLI_TOO_LARGE, 0 },
                  { "-9223372036854775809", CLI_TOO_LARGE, 0 },
                  { "18446744073709551617", CLI_TOO_LARGE, 0 },
                  { "99999999999999999999999999999999", CLI_TOO_LARGE, 0 },
                  { "12k", CLI_NUMBER, 12000 },
                  { "-3M", CLI_NUMBER, -3000000 },
                  { "2G", CLI_NUMBER, 2000000000 },
                  { "9223372036854775k", CLI_NUMBER, INT64_C(9223372036854775000) },
                  { "9223372036854776k", CLI_TOO_LARGE, 0 },
                  { "", CLI_NOT_A_NUMBER, 0 },
                  { "-", CLI_NOT_A_NUMBER, 0 },
                  { "+1", CLI_NOT_A_NUMBER, 0 },
                  { " 1", CLI_NOT_A_NUMBER, 0 },
                  { "1 ", CLI_NOT_A_NUMBER, 0 },
                  { "0x10", CLI_NOT_A_NUMBER, 0 },
                  { "1.0", CLI_NOT_A_NUMBER, 0 },
                  { "1e3", CLI_NOT_A_NUMBER, 0 },
                  { "1kk", CLI_NOT_A_NUMBER, 0 },
                  { "1m", CLI_NOT_A_NUMBER, 0 },
                  { "k", CLI_NOT_A_NUMBER, 0 },
                  { "--1", CLI_NOT_A_NUMBER, 0 } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t number = 0;
        if (cli_parse_integer(cases[i].text, &number) != cases[i].form || number != cases[i].number)
            fail_msg("\"%s\" gave %lld", cases[i].text, (long long)number);
    }
}

static void test_reals_in_strict_form(void **state)
{
    (void)state;
    static const char *const good[] = { "0", "-1.5", ".5", "1e-4", "3.", "1E+2", "1e-400" };
    static const char *const junk[] = { "",    "-",   ".",   "+1", " 1",    "1 ", "nan",  "-nan",
                                        "inf", "1,5", "0x1", "1e", "1.2.3", "1f", "-inf", "infinity" };
    double number;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (cli_parse_real(good[i], &number) != CLI_NUMBER) fail_msg("\"%s\" was refused", good[i]);
    for (size_t i = 0; i < sizeof junk / sizeof *junk; i++)
        if (cli_parse_real(junk[i], &number) != CLI_NOT_A_NUMBER) fail_msg("\"%s\" was accepted", junk[i]);
    assert_int_equal(cli_parse_real("1e999", &number), CLI_TOO_LARGE);
    assert_int_equal(cli_parse_real("-1e999", &number), CLI_TOO_LARGE);
}

static void test_messages_name_option_value_and_rule(void **state)
{
    (void)state;
    check_message(&command, "--steps=-1", "--steps: \"-1\" is not in 1 .. 1000000000");
    check_message(&command, "--steps -1", "--steps: \"-1\" is not in 1 .. 1000000000");
    check_message(&command, "--steps 0", "--steps: \"0\" is not in 1 .. 1000000000");
    check_message(&command, "--steps 1000000001", "--steps: \"1000000001\" is not in 1 .. 1000000000");
    check_message(&command, "--steps 10G", "--steps: \"10G\" is not in 1 .. 1000000000");
    check_message(&command, "--steps ten", "--steps: \"ten\" is not a whole number");
    check_message(&command, "--steps=", "--steps: \"\" is not a whole number");
    check_message(&command, "--seed 9223372036854775808",
                  "--seed: \"9223372036854775808\" is not in 0 .. 9223372036854775807");
    check_message(&command, "--rate 1.01", "--rate: \"1.01\" is not in 0 .. 1");
    check_message(&command, "--rate 1e999", "--rate: \"1e999\" is not in 0 .. 1");
    check_message(&command, "--rate nan", "--rate: \"nan\" is not a number");
    check_message(&command, "--mode most", "--mode: \"most\" is not one of none|some|all");
    check_message(&command, "--mode non", "--mode: \"non\" is not one of none|some|all");
    check_message(&command, "--mode none|some", "--mode: \"none|some\" is not one of none|some|all");
    check_message(&command, "--mode=", "--mode: \"\" is not one of none|some|all");
    check_message(&command, "--name=", "--name: an empty value");
    check_message(&command, "--name @", "--name: an empty value");
    check_message(&command, "@", "FILTER: an empty value");
    check_message(&command, "--path=", "--path: an empty value");
    check_message(&command, "--recipes a,,b", "--recipes: an empty value");
    check_message(&command, "--recipes a,", "--recipes: an empty value");
    check_message(&command, "--json=1", "--json takes no value");
    check_message(&command, "--steps", "--steps needs a value");
    check_message(&command, "--steps --json", "--steps needs a value");
    check_message(&command, "a b", "unexpected argument \"b\"");
}

static void test_unknown_option_suggests_the_nearest(void **state)
{
    (void)state;
    check_message(&command, "--stesp 3", "unknown option \"--stesp\"; did you mean --steps?");
    check_message(&command, "--step=3", "unknown option \"--step\"; did you mean --steps?");
    check_message(&command, "-json", "unknown option \"-json\"; did you mean --json?");
    check_message(&command, "--recipe flow", "unknown option \"--recipe\"; did you mean --recipes?");
    check_message(&command, "--frobnicate", "unknown option \"--frobnicate\"; \"fp8flow help try\" lists them");
    check_message(&command, "--=3", "unknown option \"--\"; \"fp8flow help try\" lists them");
    check_message(&command, "-x", "unknown option \"-x\"; \"fp8flow help try\" lists them");
    check_message(&command, "--Group", "unknown option \"--Group\"; \"fp8flow help try\" lists them");
    check_message(&command, "--FILTER x", "unknown option \"--FILTER\"; \"fp8flow help try\" lists them");
}

static void test_edit_distance(void **state)
{
    (void)state;
    assert_int_equal(cli_edit_distance("train", "train"), 0);
    assert_int_equal(cli_edit_distance("tarin", "train"), 1);
    assert_int_equal(cli_edit_distance("trains", "train"), 1);
    assert_int_equal(cli_edit_distance("bench", "train"), -1);
    assert_int_equal(cli_edit_distance("validate-evry", "validate-every"), 1);
    assert_int_equal(cli_edit_distance("", "a"), -1);
}

static void test_missing_required_option_is_named(void **state)
{
    (void)state;
    check_message(&needing, "", "--needed is missing; \"fp8flow help need\" explains it");
    check_message(&needing, "--needed x", "--path is missing; \"fp8flow help need\" explains it");
    parse p = { 0 };
    parse_words(&p, &needing, "--needed x --path y");
    assert_int_equal(p.outcome, CLI_PARSED);
    free_parse(&p);
}

static void test_list_is_bounded(void **state)
{
    (void)state;
    parse p = { 0 };
    add_argument(&p, "try");
    for (int i = 0; i < CLI_LIST_MAX; i++) add_argument(&p, "--path=x");
    run_parse(&p, &command);
    assert_int_equal(p.outcome, CLI_PARSED);
    assert_int_equal(p.values.paths.count, CLI_LIST_MAX);
    add_argument(&p, "--path=x");
    run_parse(&p, &command);
    assert_int_equal(p.outcome, CLI_BAD_USAGE);
    assert_string_equal(p.message, "--path: more than 256 values");
    free_parse(&p);
}

/* A megabyte of any byte as name or value gives a short line without control bytes. */
static void test_huge_and_binary_arguments_give_one_short_line(void **state)
{
    (void)state;
    static const char *const prefixes[] = { "--", "--steps=", "--rate=", "--mode=", "-", "" };
    enum { HUGE_BYTES = 1 << 20 };
    char *huge = malloc(HUGE_BYTES + 16);
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        for (int byte = 1; byte < 256; byte += 3) {
            size_t start = strlen(prefixes[i]);
            size_t length = byte % 30 == 1 ? HUGE_BYTES : 500;
            memcpy(huge, prefixes[i], start);
            memset(huge + start, byte, length);
            huge[start + length] = '\0';
            parse p = { 0 };
            add_argument(&p, "try");
            add_argument(&p, "first");
            add_argument(&p, huge);
            run_parse(&p, &command);
            assert_int_equal(p.outcome, CLI_BAD_USAGE);
            assert_true(strlen(p.message) > 10 && strlen(p.message) < 200);
            for (const char *c = p.message; *c; c++) assert_true((unsigned char)*c >= 0x20 && *c != 0x7F);
            free_parse(&p);
        }
    free(huge);
}

static void test_quote_cuts_between_characters(void **state)
{
    (void)state;
    char buffer[CLI_QUOTE_BYTES], text[400];
    assert_string_equal(cli_quote(buffer, "a\tb"), "\"a?b\"");
    for (size_t lead = 0; lead < 8; lead++) {
        memset(text, 'x', lead);
        for (size_t i = 0; i < 50; i++) memcpy(text + lead + 3 * i, "\xE2\x82\xAC", 3);
        text[lead + 150] = '\0';
        cli_quote(buffer, text);
        size_t shown = strlen(buffer) - 5; /* two quotes, three dots */
        assert_true(strlen(buffer) < CLI_QUOTE_BYTES);
        assert_int_equal((shown - lead) % 3, 0);
    }
}

static void test_help_shows_ranges_and_current_defaults(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size = 0;
    settings values = { .steps = 42, .rate = 0.125, .mode = 2, .name = "nobody" };
    FILE *stream = open_memstream(&text, &size);
    cli_options_help(stream, &command, &values);
    fclose(stream);
    static const char *const wanted[] = { "Usage: fp8flow try [options] [FILTER]\n",
                                          "Try things.\n",
                                          "\nGroup\n",
                                          "  --steps N                 steps (1 .. 1000000000, default 42)\n",
                                          "(0 or more, default 0)",
                                          "(0 .. 1, default 0.125)",
                                          "--mode none|some|all",
                                          "(default all)",
                                          "(default nobody)",
                                          "(may be repeated)",
                                          "  --json                    as JSON\n",
                                          "  FILTER                    what to run\n",
                                          "\nExample: fp8flow try\n" };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!strstr(text, wanted[i])) fail_msg("help lacks \"%s\":\n%s", wanted[i], text);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) assert_true(strlen(line) <= 100);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_of_every_kind_in_both_forms),
        cmocka_unit_test(test_defaults_stay_without_arguments),
        cmocka_unit_test(test_last_use_of_an_option_wins),
        cmocka_unit_test(test_double_dash_ends_the_options),
        cmocka_unit_test(test_value_may_begin_with_dashes_behind_equals),
        cmocka_unit_test(test_help_wins_over_what_follows),
        cmocka_unit_test(test_integers_at_the_limits),
        cmocka_unit_test(test_reals_in_strict_form),
        cmocka_unit_test(test_messages_name_option_value_and_rule),
        cmocka_unit_test(test_unknown_option_suggests_the_nearest),
        cmocka_unit_test(test_edit_distance),
        cmocka_unit_test(test_missing_required_option_is_named),
        cmocka_unit_test(test_list_is_bounded),
        cmocka_unit_test(test_huge_and_binary_arguments_give_one_short_line),
        cmocka_unit_test(test_quote_cuts_between_characters),
        cmocka_unit_test(test_help_shows_ranges_and_current_defaults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
