/* svg.h - line charts, bars and heat maps as inline SVG for an HTML page.
 *
 * Colours are CSS variables --c0 .. --c7 and --ink, --muted, --grid, so that one drawing serves light and dark
 * pages (report.c defines them). Every string is escaped here; numbers are finite or left out. Nothing needs a
 * script: details are <title> elements, which browsers show as tooltips.
 */
#ifndef CLI_SVG_H
#define CLI_SVG_H

#include <stdint.h>
#include <stdio.h>

#define SVG_NUM_COLORS 8

/* Text with &, <, > and quotes escaped; safe as element content and in attributes. */
void svg_escape(FILE *out, const char *text);

typedef enum {
    SVG_STRONG, /* a line with a direct label at its right end */
    SVG_DASHED, /* the same, dashed */
    SVG_FAINT,  /* background line, no label */
    SVG_POINTS  /* circles, no label */
} svg_style;

typedef struct {
    const char *label;
    int32_t color; /* 0 .. SVG_NUM_COLORS-1 */
    svg_style style;
    const double *x, *y; /* x ascending; a y that is not finite interrupts the line */
    int64_t count;
} svg_series;

typedef struct {
    const char *id;    /* unique in the page: names the clip path */
    const char *title; /* for screen readers */
    const char *x_label, *y_label;
    const char *y_unit; /* behind each tick: "%" or "" */
    const svg_series *series;
    int64_t num_series;
    double y_min, y_max; /* equal: from the data of the SVG_STRONG, SVG_DASHED and SVG_POINTS series */
    double band;         /* > 0: shaded area from -band to band */
    const char *band_label;
} svg_lines;
void svg_draw_lines(FILE *out, const svg_lines *chart);

/* One horizontal bar of up to two parts; the second is drawn paler. */
typedef struct {
    const char *label, *text; /* left of the bar; right of it */
    int32_t color;
    double parts[2];
} svg_bar;
void svg_draw_bars(FILE *out, const char *title, const svg_bar *bars, int64_t count);

/* Numbers along one side of a heat map: cell i spans low + i*step .. low + (i+1)*step. */
typedef struct {
    const char *label;
    int64_t count;
    double low, step;
} svg_scale;

/* Load over its even share per cell: 1 is blank, above is blue, below is orange, at 1/4 and 4 fully coloured. */
typedef struct {
    const char *title;
    svg_scale rows, columns;
    const double *ratio; /* [rows, columns]; cells that are not finite stay empty */
} svg_heat;
void svg_draw_heat(FILE *out, const svg_heat *map);

#endif
