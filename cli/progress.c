/* progress.c - the progress line. See progress.h.
 *
 * A redraw is one write: carriage return, text, erase to the end of the line. Erasing first would flicker;
 * a line as wide as the terminal would wrap, so one column stays free.
 */
#include "progress.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { LINE_BYTES = 512, BAR_COLUMNS = 20, NARROWEST_WITH_BAR = 100 };
#define SECONDS_BETWEEN_DRAWS 0.1
#define SPEED_SMOOTHING       0.9

void cli_format_duration(double seconds, char text[CLI_NUMBER_BYTES])
{
    if (!(seconds >= 0 && seconds < 1e9)) {
        snprintf(text, CLI_NUMBER_BYTES, "-");
        return;
    }
    long whole = (long)(seconds + 0.5);
    if (whole < 60) snprintf(text, CLI_NUMBER_BYTES, "%lds", whole);
    else if (whole < 3600) snprintf(text, CLI_NUMBER_BYTES, "%ld:%02ld", whole / 60, whole % 60);
    else if (whole < 86400)
        snprintf(text, CLI_NUMBER_BYTES, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
    else snprintf(text, CLI_NUMBER_BYTES, "%ldd %02ldh", whole / 86400, whole / 3600 % 24);
}

static int terminal_width(FILE *stream)
{
    struct winsize size;
    if (ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return 80;
}

void cli_progress_start(cli_progress *progress, FILE *stream, const char *label, int64_t first_step, int64_t last_step,
                        int64_t every)
{
    const char *terminal = getenv("TERM");
    *progress = (cli_progress){
        .stream = stream, .label = label, .first_step = first_step, .last_step = last_step, .every = every
    };
    progress->is_terminal = isatty(fileno(stream)) && terminal && strcmp(terminal, "dumb") != 0;
    progress->started = cli_seconds();
}

/* Seconds until the end at the average pace so far, which includes validation and saving. */
static double seconds_left(const cli_progress *progress, int64_t step, double now)
{
    int64_t done = step - progress->first_step;
    if (done <= 0) return -1;
    return (now - progress->started) / (double)done * (double)(progress->last_step - step);
}

static void format_bar(char bar[BAR_COLUMNS + 4], int64_t step, int64_t last_step)
{
    int64_t full = last_step > 0 ? (int64_t)((double)step / (double)last_step * BAR_COLUMNS) : BAR_COLUMNS;
    bar[0] = '[';
    for (int i = 0; i < BAR_COLUMNS; i++) bar[1 + i] = i < full ? '#' : '.';
    memcpy(bar + 1 + BAR_COLUMNS, "] ", 3);
}

size_t cli_progress_format(const cli_progress *progress, const fp8flow_step_metrics *metrics, int width, double now,
                           char *line, size_t size)
{
    char bar[BAR_COLUMNS + 4] = "", left[CLI_NUMBER_BYTES], speed[CLI_NUMBER_BYTES];
    if (progress->is_terminal && width >= NARROWEST_WITH_BAR) format_bar(bar, metrics->step, progress->last_step);
    cli_format_duration(seconds_left(progress, metrics->step, now), left);
    cli_format_count(speed, progress->tokens_per_second);
    int length =
        snprintf(line, size, "%s%s%sstep %lld/%lld  loss %.4f  norm %.3f  lr %.2e  %s tokens/s  left %s",
                 progress->label ? progress->label : "", progress->label ? "  " : "", bar, (long long)metrics->step,
                 (long long)progress->last_step, metrics->loss, metrics->gradient_norm, metrics->lr, speed, left);
    size_t used = length < 0 ? 0 : (size_t)length < size ? (size_t)length : size - 1;
    if (width >= 0 && used > (size_t)width) used = (size_t)width;
    line[used] = '\0';
    return used;
}

static void update_speed(cli_progress *progress, const fp8flow_step_metrics *metrics)
{
    if (metrics->seconds <= 0) return;
    double speed = (double)metrics->tokens / metrics->seconds, old = progress->tokens_per_second;
    progress->tokens_per_second = old > 0 ? SPEED_SMOOTHING * old + (1 - SPEED_SMOOTHING) * speed : speed;
}

void cli_progress_step(cli_progress *progress, const fp8flow_step_metrics *metrics)
{
    char line[LINE_BYTES];
    double now = cli_seconds();
    update_speed(progress, metrics);
    int is_first = metrics->step == progress->first_step + 1, is_last = metrics->step == progress->last_step;
    if (progress->is_terminal) {
        if (!is_first && !is_last && now - progress->drawn_at < SECONDS_BETWEEN_DRAWS) return;
        cli_progress_format(progress, metrics, terminal_width(progress->stream) - 1, now, line, sizeof line);
        fprintf(progress->stream, "\r%s\033[K", line);
        progress->is_drawn = 1;
        progress->drawn_at = now;
    } else {
        if (!is_first && !is_last && (progress->every == 0 || metrics->step % progress->every != 0)) return;
        cli_progress_format(progress, metrics, LINE_BYTES, now, line, sizeof line);
        fprintf(progress->stream, "%s\n", line);
    }
    (void)fflush(progress->stream);
}

void cli_progress_clear(cli_progress *progress)
{
    if (!progress->is_drawn) return;
    fprintf(progress->stream, "\r\033[K");
    (void)fflush(progress->stream);
    progress->is_drawn = 0;
    progress->drawn_at = 0;
}

void cli_progress_note(cli_progress *progress, const char *format, ...)
{
    cli_progress_clear(progress);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(progress->stream, format, arguments);
    va_end(arguments);
    (void)fputc('\n', progress->stream);
    (void)fflush(progress->stream);
}
