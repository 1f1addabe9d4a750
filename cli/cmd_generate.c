/* cmd_generate.c - `fp8flow generate`: continue a text with a trained model, byte by byte.
 *
 * Into a file or a pipe go the bytes of the model, unchanged. On a terminal, bytes that could move the
 * cursor or are not UTF-8 are shown as \xNN; up to three bytes wait until their character is complete.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "train_loop.h"

enum { PROMPT_MAX_BYTES = 1 << 20, SEPARATOR = 256 };

typedef struct {
    const char *checkpoint, *prompt;
    fp8flow_generate_options generate;
    int64_t threads;
    int32_t device, backend;
} generate_settings;

static const cli_option generate_options[] = {
    { .name = "checkpoint",
      .kind = CLI_STRING,
      .field = offsetof(generate_settings, checkpoint),
      .value = "DIR",
      .help = "checkpoint, or output folder of a run (its newest one)",
      .required = 1 },
    CLI_OPTION_STRING(generate_settings, prompt, "prompt", "TEXT", "text to continue; - reads it from stdin"),
    CLI_OPTION_INTEGER(generate_settings, generate.max_tokens, "max-tokens", "N", 1, 1000000, "new bytes"),
    CLI_OPTION_REAL(generate_settings, generate.temperature, "temperature", "X", 0, 100,
                    "spread of the choice; 0: always the most likely byte"),
    CLI_OPTION_INTEGER(generate_settings, generate.top_k, "top-k", "N", 0, 1000000,
                       "choose among the N most likely bytes; 0: no limit"),
    CLI_OPTION_INTEGER(generate_settings, generate.seed, "seed", "N", 0, INT64_MAX, "seed of the choice"),
    CLI_OPTION_INTEGER(generate_settings, threads, "threads", "N", 0, 4096, "processor threads; 0: all"),
    CLI_OPTION_DEVICE(generate_settings, device),
};

/* ---- Output --------------------------------------------------------------------------------- */

typedef struct {
    int is_terminal;
    unsigned char pending[4]; /* an unfinished UTF-8 character */
    int num_pending, num_needed;
} byte_printer;

static void print_escaped(const unsigned char *bytes, int count)
{
    for (int i = 0; i < count; i++) {
        if ((bytes[i] >= 0x20 && bytes[i] < 0x7F) || bytes[i] == '\n' || bytes[i] == '\t') putchar(bytes[i]);
        else printf("\\x%02X", bytes[i]);
    }
}

/* Bytes of the character that starts with `byte`; 1 also for bytes that start none. */
static int character_bytes(unsigned char byte)
{
    return byte >= 0xC2 && byte <= 0xDF ? 2 : byte >= 0xE0 && byte <= 0xEF ? 3 : byte >= 0xF0 && byte <= 0xF4 ? 4 : 1;
}

static void flush_pending(byte_printer *printer)
{
    const unsigned char *c = printer->pending;
    int complete = printer->num_pending > 1 && printer->num_pending == printer->num_needed;
    /* Not characters: C1 controls (a terminal obeys them), overlong forms, surrogates, beyond U+10FFFF. */
    int refused = (c[0] == 0xC2 && c[1] < 0xA0) || (c[0] == 0xE0 && c[1] < 0xA0) || (c[0] == 0xED && c[1] >= 0xA0) ||
                  (c[0] == 0xF0 && c[1] < 0x90) || (c[0] == 0xF4 && c[1] >= 0x90);
    if (complete && !refused) (void)fwrite(c, 1, (size_t)printer->num_pending, stdout);
    else print_escaped(c, printer->num_pending);
    printer->num_pending = printer->num_needed = 0;
}

static void print_for_terminal(byte_printer *printer, unsigned char byte)
{
    int continues = (byte & 0xC0) == 0x80;
    if (printer->num_pending > 0 && !continues) flush_pending(printer);
    if (printer->num_pending == 0) printer->num_needed = character_bytes(byte);
    printer->pending[printer->num_pending++] = byte;
    if (printer->num_pending >= printer->num_needed) flush_pending(printer);
}

static int32_t print_token(void *user, int32_t token)
{
    byte_printer *printer = user;
    if (token < 0 || token >= SEPARATOR) return 1; /* the model ended its document */
    if (printer->is_terminal) print_for_terminal(printer, (unsigned char)token);
    else putchar(token);
    return cli_output_gone();
}

/* ---- Prompt --------------------------------------------------------------------------------- */

/* Bytes of the prompt as tokens; *count. NULL: failed, the error is printed. */
static int32_t *read_prompt(const char *prompt, int64_t *count)
{
    int from_stdin = strcmp(prompt, "-") == 0;
    size_t length = from_stdin ? PROMPT_MAX_BYTES + 1 : strlen(prompt);
    unsigned char *bytes = malloc(length + 1);
    int32_t *tokens = calloc(length + 1, sizeof *tokens);
    if (bytes && tokens) {
        if (from_stdin) length = fread(bytes, 1, length, stdin);
        else memcpy(bytes, prompt, length);
        for (size_t i = 0; i < length; i++) tokens[i] = bytes[i];
    }
    const char *problem = !bytes || !tokens                   ? "out of memory"
                          : from_stdin && ferror(stdin)       ? "--prompt: standard input cannot be read"
                          : length > (size_t)PROMPT_MAX_BYTES ? "--prompt: longer than 1 MiB"
                                                              : NULL;
    free(bytes);
    *count = (int64_t)length;
    if (!problem) return tokens;
    cli_fail(&cli_generate, "%s", problem);
    free(tokens);
    return NULL;
}

/* ---- Command -------------------------------------------------------------------------------- */

static fp8flow_status generate(const generate_settings *settings, const int32_t *tokens, int64_t count)
{
    byte_printer printer = { .is_terminal = isatty(STDOUT_FILENO) };
    fp8flow_context_options options = { .backend = (fp8flow_backend)settings->backend,
                                        .num_threads = (int32_t)settings->threads };
    fp8flow_context *context = NULL;
    fp8flow_status status = fp8flow_context_create(&options, &context);
    if (status == FP8FLOW_OK)
        status =
            fp8flow_generate(context, settings->checkpoint, tokens, count, &settings->generate, print_token, &printer);
    flush_pending(&printer);
    if (printer.is_terminal && status == FP8FLOW_OK) putchar('\n');
    fp8flow_context_destroy(context);
    return status;
}

static int run_generate(int argc, char **argv)
{
    generate_settings settings = { .prompt = NULL,
                                   .generate = { .max_tokens = 256, .temperature = 0.8, .top_k = 40, .seed = 1 } };
    int code = cli_parse(&cli_generate, argc, argv, &settings);
    if (code != CLI_GO_ON) return code;
    code = cli_choose_backend(&cli_generate, settings.device, 1, &settings.backend);
    if (code != CLI_DONE) return code;
    if (isatty(STDOUT_FILENO)) {
        char device[CLI_DEVICE_BYTES];
        int64_t threads = settings.threads > 0 ? settings.threads : cli_num_processors();
        (void)fprintf(stderr, "device  %s\n", cli_device_text(device, settings.backend, threads));
    }
    int64_t count = 0;
    int32_t *tokens = read_prompt(settings.prompt ? settings.prompt : "", &count);
    if (!tokens) return CLI_FAILED;
    fp8flow_status status = generate(&settings, tokens, count);
    free(tokens);
    return status == FP8FLOW_OK ? CLI_DONE : cli_fail_status(&cli_generate, status);
}

const cli_command cli_generate = {
    .name = "generate",
    .summary = "Continue a text with a trained model",
    .options = generate_options,
    .num_options = sizeof generate_options / sizeof *generate_options,
    .example = "fp8flow generate --checkpoint run --prompt \"Once upon\" --max-tokens 200",
    .run = run_generate,
};
