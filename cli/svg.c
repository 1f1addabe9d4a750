/* svg.c - see svg.h. All drawings share one coordinate width, so that text has one size on the page.
 *
 * Long runs are thinned to MAX_POINTS per line (first and last point stay): the smoothed lines lose nothing that
 * could be seen, and a report of 100,000 steps stays below a megabyte.
 */
#include "svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDTH = 760,
    HEIGHT = 330,
    LEFT = 64,
    RIGHT = 118, /* direct labels */
    TOP = 14,
    BOTTOM = 46,
    LABEL_GAP = 15, /* least distance of two direct labels */
    MAX_LABELS = 32,
    MAX_POINTS = 600,
    MAX_TICKS = 24
};

void svg_escape(FILE *out, const char *text)
{
    for (const char *c = text; *c; c++) {
        switch (*c) {
        case '&': fputs("&amp;", out); break;
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '"': fputs("&quot;", out); break;
        case '\'': fputs("&#39;", out); break;
        default: fputc(*c, out);
        }
    }
}

/* ---- Axes ----------------------------------------------------------------------------------- */

typedef struct {
    double low, high;   /* values at the two ends */
    double start, span; /* pixels; span < 0 for an axis that grows upwards */
} axis;

static double axis_at(const axis *a, double value)
{
    return a->start + (value - a->low) / (a->high - a->low) * a->span;
}

typedef struct {
    double value[MAX_TICKS];
    int32_t count, decimals;
} ticks;

/* About `wanted` ticks at multiples of 1, 2 or 5 times a power of ten. */
static ticks make_ticks(const axis *a, int32_t wanted)
{
    ticks t = { .count = 0 };
    double raw = (a->high - a->low) / wanted, power = pow(10.0, floor(log10(raw)));
    double step = raw / power < 1.5   ? power
                  : raw / power < 3.5 ? 2 * power
                  : raw / power < 7.5 ? 5 * power
                                      : 10 * power;
    double digits = -floor(log10(step) + 1e-9);
    t.decimals = digits > 0 ? (int32_t)digits : 0;
    for (double i = ceil(a->low / step - 1e-9); i * step <= a->high + step * 1e-9 && t.count < MAX_TICKS; i++)
        t.value[t.count++] = i == 0 ? 0 : i * step;
    return t;
}

static void include(double *low, double *high, double value)
{
    if (!isfinite(value)) return;
    if (value < *low) *low = value;
    if (value > *high) *high = value;
}

static axis x_axis(const svg_lines *chart)
{
    double low = INFINITY, high = -INFINITY;
    for (int64_t s = 0; s < chart->num_series; s++) {
        const svg_series *line = &chart->series[s];
        if (line->count == 0) continue;
        include(&low, &high, line->x[0]);
        include(&low, &high, line->x[line->count - 1]);
    }
    if (!(low < high)) low = isfinite(low) ? low - 1 : 0, high = low + 2;
    return (axis){ low, high, LEFT, WIDTH - LEFT - RIGHT };
}

static axis y_axis(const svg_lines *chart)
{
    double low = INFINITY, high = -INFINITY;
    for (int64_t s = 0; s < chart->num_series; s++) {
        const svg_series *line = &chart->series[s];
        if (line->style == SVG_FAINT) continue;
        for (int64_t i = 0; i < line->count; i++) include(&low, &high, line->y[i]);
    }
    if (chart->y_min < chart->y_max) low = chart->y_min, high = chart->y_max;
    else if (low < high) low -= 0.04 * (high - low), high += 0.04 * (high - low);
    else low = isfinite(low) ? low - 1 : 0, high = low + 2;
    return (axis){ low, high, HEIGHT - BOTTOM, -(HEIGHT - TOP - BOTTOM) };
}

static void draw_axes(FILE *out, const svg_lines *chart, const axis *x, const axis *y)
{
    ticks tx = make_ticks(x, 7), ty = make_ticks(y, 6);
    for (int32_t i = 0; i < ty.count; i++) {
        double at = axis_at(y, ty.value[i]);
        fprintf(out, "<line class=\"%s\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>",
                ty.value[i] == 0 ? "zero" : "grid", LEFT, WIDTH - RIGHT, at, at);
        fprintf(out, "<text class=\"tick\" text-anchor=\"end\" x=\"%d\" y=\"%.1f\">%.*f", LEFT - 8, at + 4, ty.decimals,
                ty.value[i]);
        svg_escape(out, chart->y_unit);
        fputs("</text>\n", out);
    }
    for (int32_t i = 0; i < tx.count; i++) {
        double at = axis_at(x, tx.value[i]);
        fprintf(out, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>", at, at, HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 5);
        fprintf(out, "<text class=\"tick\" text-anchor=\"middle\" x=\"%.1f\" y=\"%d\">%.*f</text>\n", at,
                HEIGHT - BOTTOM + 19, tx.decimals, tx.value[i]);
    }
    fprintf(out, "<text class=\"axis\" text-anchor=\"middle\" x=\"%d\" y=\"%d\">", (WIDTH + LEFT - RIGHT) / 2,
            HEIGHT - 6);
    svg_escape(out, chart->x_label);
    fprintf(out, "</text>\n<text class=\"axis\" text-anchor=\"middle\" transform=\"translate(14 %d) rotate(-90)\">",
            (HEIGHT + TOP - BOTTOM) / 2);
    svg_escape(out, chart->y_label);
    fputs("</text>\n", out);
}

/* ---- Lines ---------------------------------------------------------------------------------- */

static void draw_path(FILE *out, const svg_series *line, const axis *x, const axis *y)
{
    static const char *const classes[] = {
        [SVG_STRONG] = "line", [SVG_DASHED] = "line dashed", [SVG_FAINT] = "line faint", [SVG_POINTS] = ""
    };
    int64_t drawn = line->count < MAX_POINTS ? line->count : MAX_POINTS;
    fprintf(out, "<path class=\"%s\" style=\"stroke:var(--c%d)\" d=\"", classes[line->style], line->color);
    int pen_down = 0;
    for (int64_t p = 0; p < drawn; p++) {
        int64_t i = drawn > 1 ? p * (line->count - 1) / (drawn - 1) : 0;
        if (!isfinite(line->y[i])) {
            pen_down = 0;
            continue;
        }
        fprintf(out, "%c%.1f %.1f", pen_down ? 'L' : 'M', axis_at(x, line->x[i]), axis_at(y, line->y[i]));
        pen_down = 1;
    }
    fputs("\"/>\n", out);
}

static void draw_points(FILE *out, const svg_series *line, const axis *x, const axis *y)
{
    for (int64_t i = 0; i < line->count; i++) {
        if (!isfinite(line->y[i])) continue;
        fprintf(out, "<circle class=\"dot\" style=\"fill:var(--c%d)\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"><title>",
                line->color, axis_at(x, line->x[i]), axis_at(y, line->y[i]));
        svg_escape(out, line->label);
        fprintf(out, " %g: %.4f</title></circle>\n", line->x[i], line->y[i]);
    }
}

/* Height of the last finite value of a line, kept inside the plot; NaN if there is none. */
static double end_height(const svg_series *line, const axis *y)
{
    for (int64_t i = line->count - 1; i >= 0; i--)
        if (isfinite(line->y[i])) return fmin(fmax(axis_at(y, line->y[i]), TOP), HEIGHT - BOTTOM);
    return NAN;
}

typedef struct {
    const svg_series *line;
    double height;
} end_label;

static int by_height(const void *a, const void *b)
{
    double x = ((const end_label *)a)->height, y = ((const end_label *)b)->height;
    return (x > y) - (x < y);
}

/* Labels at the right end of their lines, pushed apart downwards and then back into the plot. */
static void draw_end_labels(FILE *out, const svg_lines *chart, const axis *y)
{
    end_label labels[MAX_LABELS];
    int32_t count = 0;
    for (int64_t s = 0; s < chart->num_series && count < MAX_LABELS; s++) {
        const svg_series *line = &chart->series[s];
        if (line->style == SVG_FAINT || line->style == SVG_POINTS || !line->label) continue;
        double height = end_height(line, y);
        if (isfinite(height)) labels[count++] = (end_label){ line, height };
    }
    qsort(labels, (size_t)count, sizeof *labels, by_height);
    for (int32_t i = 1; i < count; i++) labels[i].height = fmax(labels[i].height, labels[i - 1].height + LABEL_GAP);
    double limit = HEIGHT - BOTTOM + 4;
    for (int32_t i = count - 1; i >= 0; i--, limit -= LABEL_GAP) labels[i].height = fmin(labels[i].height, limit);
    for (int32_t i = 0; i < count; i++) {
        fprintf(out, "<text class=\"label\" style=\"fill:var(--c%d)\" x=\"%d\" y=\"%.1f\">", labels[i].line->color,
                WIDTH - RIGHT + 8, labels[i].height + 4);
        svg_escape(out, labels[i].line->label);
        fputs("</text>\n", out);
    }
}

static void open_svg(FILE *out, const char *title, double width, double height)
{
    fprintf(out, "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", width, height);
    svg_escape(out, title);
    fputs("\">\n", out);
}

static void draw_band(FILE *out, const svg_lines *chart, const axis *y)
{
    double top = fmax(axis_at(y, chart->band), TOP), bottom = fmin(axis_at(y, -chart->band), HEIGHT - BOTTOM);
    fprintf(out, "<rect class=\"band\" x=\"%d\" width=\"%d\" y=\"%.1f\" height=\"%.1f\"/>", LEFT, WIDTH - LEFT - RIGHT,
            top, fmax(bottom - top, 0));
    fprintf(out, "<text class=\"tick\" x=\"%d\" y=\"%.1f\">", LEFT + 6, bottom - 7);
    svg_escape(out, chart->band_label);
    fputs("</text>\n", out);
}

void svg_draw_lines(FILE *out, const svg_lines *chart)
{
    axis x = x_axis(chart), y = y_axis(chart);
    open_svg(out, chart->title, WIDTH, HEIGHT);
    fprintf(out, "<clipPath id=\"%s\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/></clipPath>\n", chart->id,
            LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    if (chart->band > 0) draw_band(out, chart, &y);
    draw_axes(out, chart, &x, &y);
    fprintf(out, "<g clip-path=\"url(#%s)\">\n", chart->id);
    for (int32_t style = SVG_FAINT; style >= SVG_STRONG; style--)
        for (int64_t s = 0; s < chart->num_series; s++)
            if (chart->series[s].style == (svg_style)style) draw_path(out, &chart->series[s], &x, &y);
    fputs("</g>\n", out);
    for (int64_t s = 0; s < chart->num_series; s++)
        if (chart->series[s].style == SVG_POINTS) draw_points(out, &chart->series[s], &x, &y);
    draw_end_labels(out, chart, &y);
    fputs("</svg>\n", out);
}

/* ---- Bars ----------------------------------------------------------------------------------- */

void svg_draw_bars(FILE *out, const char *title, const svg_bar *bars, int64_t count)
{
    enum { ROW = 30, BAR = 18, START = 150, END = 150 };
    double longest = 0;
    for (int64_t i = 0; i < count; i++) longest = fmax(longest, bars[i].parts[0] + bars[i].parts[1]);
    double scale = longest > 0 ? (WIDTH - START - END) / longest : 0;
    open_svg(out, title, WIDTH, (double)count * ROW + 6);
    for (int64_t i = 0; i < count; i++) {
        const svg_bar *bar = &bars[i];
        double top = (double)i * ROW + 6, first = bar->parts[0] * scale, second = bar->parts[1] * scale;
        fprintf(out, "<text class=\"bar\" text-anchor=\"end\" x=\"%d\" y=\"%.1f\">", START - 10, top + 14);
        svg_escape(out, bar->label);
        fprintf(out, "</text><rect style=\"fill:var(--c%d)\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%d\"/>",
                bar->color, START, top, first, BAR);
        fprintf(out,
                "<rect class=\"pale\" style=\"fill:var(--c%d)\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\"/>",
                bar->color, START + first, top, second, BAR);
        fprintf(out, "<text class=\"bar\" x=\"%.1f\" y=\"%.1f\">", START + first + second + 8, top + 14);
        svg_escape(out, bar->text);
        fputs("</text>\n", out);
    }
    fputs("</svg>\n", out);
}

/* ---- Heat maps ------------------------------------------------------------------------------ */

/* Small maps tell the numbers of a cell when pointed at; in large ones the text would outweigh the drawing. */
enum { MAX_TOOLTIPS = 600, HEAT_LEFT = 64, HEAT_WIDTH = 372, HEAT_PLOT = HEAT_WIDTH - HEAT_LEFT - 14, HEAT_TOP = 4 };

static void draw_cells(FILE *out, const svg_heat *map, double width, double height)
{
    int64_t columns = map->columns.count, count = map->rows.count * columns;
    for (int64_t cell = 0; cell < count; cell++) {
        double ratio = map->ratio[cell];
        if (!isfinite(ratio)) continue;
        int64_t row = cell / columns, column = cell % columns;
        double depth = fmin(fabs(log2(fmax(ratio, 1e-6))) / 2, 1);
        fprintf(out, "<rect class=\"%s\" opacity=\"%.2f\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"",
                ratio > 1 ? "hot" : "cold", depth, HEAT_LEFT + (double)column * width, HEAT_TOP + (double)row * height,
                width, height);
        if (count <= MAX_TOOLTIPS) {
            fputs("><title>", out);
            svg_escape(out, map->rows.label);
            fprintf(out, " %g, ", map->rows.low + (double)row * map->rows.step);
            svg_escape(out, map->columns.label);
            fprintf(out, " %g: %.2f</title></rect>", map->columns.low + (double)column * map->columns.step, ratio);
        } else {
            fputs("/>", out);
        }
    }
}

/* Ticks of a scale; those of one-by-one cells (experts, layers) stand at the middle of the cell. */
static ticks scale_ticks(const svg_scale *scale, axis *a, int32_t wanted)
{
    double middle = scale->step == 1 ? 0.5 : 0;
    a->low = scale->low - middle;
    a->high = a->low + (double)scale->count * scale->step;
    ticks t = make_ticks(a, wanted);
    int32_t kept = 0;
    for (int32_t i = 0; i < t.count; i++)
        if (middle == 0 || t.value[i] == floor(t.value[i])) t.value[kept++] = t.value[i];
    t.count = kept;
    return t;
}

void svg_draw_heat(FILE *out, const svg_heat *map)
{
    enum { FOOT = 40, MAX_PLOT = 320, MAX_ROW = 20 };
    double height = fmin(MAX_ROW, MAX_PLOT / (double)map->rows.count), plot = height * (double)map->rows.count;
    open_svg(out, map->title, HEAT_WIDTH, plot + FOOT + HEAT_TOP);
    draw_cells(out, map, HEAT_PLOT / (double)map->columns.count, height);
    fprintf(out, "\n<rect class=\"frame\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%.1f\"/>\n", HEAT_LEFT, HEAT_TOP,
            HEAT_PLOT, plot);
    axis y = { 0, 0, HEAT_TOP, plot }, x = { 0, 0, HEAT_LEFT, HEAT_PLOT };
    ticks rows = scale_ticks(&map->rows, &y, (int32_t)(plot / 24) + 1), columns = scale_ticks(&map->columns, &x, 6);
    for (int32_t i = 0; i < rows.count; i++)
        fprintf(out, "<text class=\"tick\" text-anchor=\"end\" x=\"%d\" y=\"%.1f\">%.0f</text>", HEAT_LEFT - 6,
                axis_at(&y, rows.value[i]) + 4, rows.value[i]);
    for (int32_t i = 0; i < columns.count; i++)
        fprintf(out, "<text class=\"tick\" text-anchor=\"middle\" x=\"%.1f\" y=\"%.1f\">%.0f</text>",
                axis_at(&x, columns.value[i]), plot + 19, columns.value[i]);
    fprintf(out, "\n<text class=\"axis\" text-anchor=\"middle\" x=\"%d\" y=\"%.1f\">", HEAT_LEFT + HEAT_PLOT / 2,
            plot + 37);
    svg_escape(out, map->columns.label);
    fprintf(out, "</text><text class=\"axis\" text-anchor=\"middle\" transform=\"translate(14 %.1f) rotate(-90)\">",
            HEAT_TOP + plot / 2);
    svg_escape(out, map->rows.label);
    fputs("</text>\n</svg>\n", out);
}
