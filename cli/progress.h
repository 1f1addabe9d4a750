/* progress.h - what the user sees while a run goes on.
 *
 * On a terminal: one line that is redrawn in place, at most ten times a second, never wider than the
 * terminal. Elsewhere: a plain line for the first step, for every `every`-th step and for the last one, so
 * that two equal runs give logs with the same lines. One thread at a time.
 */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include "cli.h"

typedef struct {
    FILE *stream;
    const char *label; /* in front of each line; may be NULL */
    int64_t first_step, last_step, every;
    int is_terminal;
    int is_drawn; /* the terminal's cursor is on our line */
    double started, drawn_at;
    double tokens_per_second; /* smoothed */
} cli_progress;

/* Steps first_step + 1 .. last_step will follow, shown on `stream`. */
void cli_progress_start(cli_progress *progress, FILE *stream, const char *label, int64_t first_step, int64_t last_step,
                        int64_t every);

void cli_progress_step(cli_progress *progress, const fp8flow_step_metrics *metrics);

/* A line of its own, above the progress line. */
void cli_progress_note(cli_progress *progress, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Take the progress line away; before any other output. */
void cli_progress_clear(cli_progress *progress);

/* The progress line for `width` columns, without line end. Returns its length, < size and <= width. */
size_t cli_progress_format(const cli_progress *progress, const fp8flow_step_metrics *metrics, int width, double now,
                           char *line, size_t size);

/* "59s", "12:05", "3:07:22", "4d 01h". */
void cli_format_duration(double seconds, char text[CLI_NUMBER_BYTES]);

#endif
