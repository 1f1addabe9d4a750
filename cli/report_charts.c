/* report_charts.c - see report_charts.h. Turns a study into the series that svg.c draws. */
#include "report_charts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "svg.h"

/* ---- Curves --------------------------------------------------------------------------------- */

/* Series under construction; every y array is one slot of `storage`, all share x = 1, 2, ... */
typedef struct {
    svg_series *series;
    int64_t count, steps;
    double *x, *storage;
} curve_set;

static int curves_create(curve_set *curves, const compare_study *study, int64_t most)
{
    *curves = (curve_set){ .steps = study->options->steps };
    curves->series = calloc((size_t)most, sizeof *curves->series);
    curves->x = malloc(sizeof(double) * (size_t)curves->steps);
    curves->storage = malloc(sizeof(double) * (size_t)most * (size_t)curves->steps);
    if (!curves->series || !curves->x || !curves->storage) return -1;
    for (int64_t t = 0; t < curves->steps; t++) curves->x[t] = (double)(t + 1);
    return 0;
}

static void curves_destroy(curve_set *curves)
{
    free(curves->series);
    free(curves->x);
    free(curves->storage);
}

/* Room for one more curve; the caller fills y[0 .. count) and sets count. */
static double *curves_next(curve_set *curves)
{
    return curves->storage + curves->count * curves->steps;
}

static void curves_add(curve_set *curves, const compare_recipe *recipe, svg_style line, int64_t count)
{
    curves->series[curves->count] = (svg_series){ .label = recipe->name,
                                                  .color = recipe->color,
                                                  .style = line,
                                                  .x = curves->x,
                                                  .y = curves_next(curves),
                                                  .count = count };
    curves->count++;
}

/* The mean over seeds of curves that were added last, over the steps that all of them have. */
static void add_mean(curve_set *curves, const compare_recipe *recipe, int64_t num_seeds, svg_style line)
{
    const svg_series *seeds = &curves->series[curves->count - num_seeds];
    int64_t count = curves->steps;
    for (int64_t s = 0; s < num_seeds; s++)
        if (seeds[s].count > 0 && seeds[s].count < count) count = seeds[s].count;
    double *mean = curves_next(curves);
    for (int64_t t = 0; t < count; t++) {
        double sum = 0;
        int64_t present = 0;
        for (int64_t s = 0; s < num_seeds; s++)
            if (seeds[s].count > 0) sum += seeds[s].y[t], present++;
        mean[t] = present ? sum / (double)present : NAN;
    }
    curves_add(curves, recipe, line, count);
}

static void write_figure(FILE *out, const svg_lines *chart)
{
    fputs("<div class=\"scroll\">", out);
    svg_draw_lines(out, chart);
    fputs("</div>\n", out);
}

static void add_loss_curves(curve_set *curves, const compare_study *study, const compare_recipe *recipe)
{
    memcpy(curves_next(curves), recipe->runs[0].loss, sizeof(double) * (size_t)recipe->runs[0].num_steps);
    curves_add(curves, recipe, SVG_FAINT, recipe->runs[0].num_steps);
    for (int64_t s = 0; s < study->num_seeds; s++) {
        compare_smooth(study, &recipe->runs[s], curves_next(curves));
        curves_add(curves, recipe, SVG_FAINT, recipe->runs[s].num_steps);
    }
    add_mean(curves, recipe, study->num_seeds, SVG_STRONG);
}

/* Points of the first seed; `storage` has room for x and y of each. */
static double *add_validation(curve_set *curves, const compare_recipe *recipe, double *storage)
{
    const compare_run *run = &recipe->runs[0];
    double *x = storage, *y = storage + run->num_validations;
    for (int64_t v = 0; v < run->num_validations; v++) {
        x[v] = (double)run->validation[v].step;
        y[v] = run->validation[v].loss;
    }
    curves->series[curves->count++] = (svg_series){ .label = recipe->name,
                                                    .color = recipe->color,
                                                    .style = SVG_POINTS,
                                                    .x = x,
                                                    .y = y,
                                                    .count = run->num_validations };
    return y + run->num_validations;
}

int report_losses(FILE *out, const compare_study *study)
{
    curve_set curves;
    int64_t points = 1;
    for (int64_t r = 0; r < study->num_recipes; r++) points += 2 * study->recipes[r].runs[0].num_validations;
    double *storage = malloc(sizeof(double) * (size_t)points), *next = storage;
    int status = curves_create(&curves, study, study->num_recipes * (study->num_seeds + 3));
    if (status == 0 && storage) {
        for (int64_t r = 0; r < study->num_recipes; r++) {
            add_loss_curves(&curves, study, &study->recipes[r]);
            next = add_validation(&curves, &study->recipes[r], next);
        }
        fprintf(
            out,
            "<h2>Loss</h2><p class=\"note\">Cross-entropy per token. Lines: training, mean over %lld steps%s; faint: "
            "every step of the first seed; circles: validation.</p>\n",
            (long long)compare_window(study), study->num_seeds > 1 ? " and over the seeds" : "");
        write_figure(out, &(svg_lines){ .id = "plot-loss",
                                        .title = "Training and validation loss over steps",
                                        .x_label = "step",
                                        .y_label = "loss",
                                        .y_unit = "",
                                        .series = curves.series,
                                        .num_series = curves.count });
    }
    curves_destroy(&curves);
    free(storage);
    return status == 0 && storage ? 0 : -1;
}

/* Gap of one recipe in percent: every seed faint, their mean strong. */
static void add_gap_curves(curve_set *curves, const compare_study *study, const compare_recipe *recipe)
{
    const compare_run *base = study->recipes[study->baseline].runs;
    for (int64_t s = 0; s < study->num_seeds; s++) {
        double *gap = curves_next(curves);
        int64_t count = compare_gap_curve(study, &recipe->runs[s], &base[s], gap);
        for (int64_t t = 0; t < count; t++) gap[t] *= 100;
        curves_add(curves, recipe, SVG_FAINT, count);
    }
    add_mean(curves, recipe, study->num_seeds, SVG_STRONG);
}

/* The baseline's seeds against its first one: what noise looks like. */
static void add_noise_curves(curve_set *curves, const compare_study *study)
{
    const compare_recipe *recipe = &study->recipes[study->baseline];
    for (int64_t s = 1; s < recipe->num_runs; s++) {
        double *gap = curves_next(curves);
        int64_t count = compare_gap_curve(study, &recipe->runs[s], &recipe->runs[0], gap);
        for (int64_t t = 0; t < count; t++) gap[t] *= 100;
        curves_add(curves, recipe, s == 1 ? SVG_DASHED : SVG_FAINT, count);
        if (s == 1) curves->series[curves->count - 1].label = "seed noise";
    }
}

/* Largest magnitude of a recipe after the first tenth of the run: neither the gaps of the first steps nor the
 * noise between seeds may flatten the curves that the figure is about. */
static double gap_limit(const curve_set *curves)
{
    double limit = 0.5;
    for (int64_t i = 0; i < curves->count; i++)
        for (int64_t t = curves->steps / 10; t < curves->series[i].count; t++)
            if (curves->series[i].style == SVG_STRONG && isfinite(curves->series[i].y[t]))
                limit = fmax(limit, 1.1 * fabs(curves->series[i].y[t]));
    return limit;
}

int report_gaps(FILE *out, const compare_study *study)
{
    curve_set curves;
    if (study->num_recipes < 2 && study->baseline_seeds < 2) return 0;
    int status = curves_create(&curves, study, study->num_recipes * (study->num_seeds + 1) + study->baseline_seeds);
    if (status == 0) {
        for (int64_t r = 0; r < study->num_recipes; r++)
            if (r != study->baseline) add_gap_curves(&curves, study, &study->recipes[r]);
        add_noise_curves(&curves, study);
        fputs("<h2>Gap to ", out);
        svg_escape(out, study->recipes[study->baseline].name);
        fprintf(out,
                "</h2><p class=\"note\">Relative difference of the training losses, both smoothed over %lld steps. "
                "Below 0 is "
                "better than the baseline.%s%s</p>\n",
                (long long)compare_window(study), study->num_seeds > 1 ? " Faint: single seeds." : "",
                study->baseline_seeds > 1 ? " Dashed: the baseline&#39;s second seed against its first." : "");
        double limit = gap_limit(&curves);
        write_figure(out, &(svg_lines){ .id = "plot-gap",
                                        .title = "Relative gap of the training loss",
                                        .x_label = "step",
                                        .y_label = "gap",
                                        .y_unit = " %",
                                        .series = curves.series,
                                        .num_series = curves.count,
                                        .y_min = -limit,
                                        .y_max = limit,
                                        .band = 0.25,
                                        .band_label = "\xC2\xB1"
                                                      "0.25 %" });
    }
    curves_destroy(&curves);
    return status;
}

/* ---- Bytes and load ------------------------------------------------------------------------- */

void report_bytes(FILE *out, const compare_study *study)
{
    svg_bar *saved = calloc((size_t)study->num_recipes * 2, sizeof *saved), *wire = saved + study->num_recipes;
    char(*texts)[64] = calloc((size_t)study->num_recipes * 2, sizeof *texts);
    int64_t count = 0;
    for (int64_t r = 0; saved && texts && r < study->num_recipes; r++) {
        const compare_recipe *recipe = &study->recipes[r];
        const compare_summary *s = &recipe->summary;
        if (isnan(s->saved_bytes)) continue;
        char *saved_text = texts[2 * r], *wire_text = texts[2 * r + 1];
        snprintf(saved_text, sizeof *texts, "%.0f KiB", s->saved_bytes / 1024);
        snprintf(wire_text, sizeof *texts, "%.0f + %.0f", s->dispatch_bytes, s->wire_bytes - s->dispatch_bytes);
        saved[count] = (svg_bar){ recipe->name, saved_text, recipe->color, { s->saved_bytes, 0 } };
        wire[count++] = (svg_bar){
            recipe->name, wire_text, recipe->color, { s->dispatch_bytes, s->wire_bytes - s->dispatch_bytes }
        };
    }
    if (count > 0) {
        fputs("<h2>Saved activations</h2><p class=\"note\">Kept between forward and backward, per MoE layer.</p>\n<div "
              "class=\"scroll\">",
              out);
        svg_draw_bars(out, "Saved activation bytes per MoE layer", saved, count);
        fputs("</div>\n<h2>Bytes on the wire</h2><p class=\"note\">Per token and MoE layer, forward and backward: "
              "dispatch "
              "(solid) and combine (pale).</p>\n<div class=\"scroll\">",
              out);
        svg_draw_bars(out, "Bytes on the wire per token", wire, count);
        fputs("</div>\n", out);
    }
    free(saved);
    free(texts);
}

/* The layer whose most loaded expert is furthest above its share. */
static int64_t least_balanced_layer(const compare_study *study, const double *ratio)
{
    int64_t experts = study->info.num_experts, cells = study->info.num_moe_layers * experts, worst = 0;
    for (int64_t i = 1; i < cells; i++)
        if (ratio[i] > ratio[worst]) worst = i;
    return worst / experts;
}

/* Load of one layer over the run: [experts, slices] into `map`. `ratio` is scratch. */
static void load_over_time(const compare_study *study, const compare_run *run, int64_t layer, double *ratio,
                           double *map)
{
    int64_t experts = study->info.num_experts;
    for (int64_t slice = 0; slice < COMPARE_LOAD_SLICES; slice++) {
        compare_load_of(study, run, slice, ratio);
        for (int64_t e = 0; e < experts; e++) map[e * COMPARE_LOAD_SLICES + slice] = ratio[layer * experts + e];
    }
}

static void write_recipe_load(FILE *out, const compare_study *study, const compare_recipe *recipe, double *ratio)
{
    const compare_run *run = &recipe->runs[0];
    int64_t layers = study->info.num_moe_layers, experts = study->info.num_experts;
    double *map = ratio + layers * experts;
    if (!run->load) return;
    fputs("<div><h3>", out);
    svg_escape(out, recipe->name);
    fputs(", whole run</h3>", out);
    compare_load_of(study, run, -1, ratio);
    svg_draw_heat(out, &(svg_heat){ .title = "Expert load by layer",
                                    .rows = { "MoE layer", layers, 0, 1 },
                                    .columns = { "expert", experts, 0, 1 },
                                    .ratio = ratio });
    int64_t layer = least_balanced_layer(study, ratio);
    fputs("</div><div><h3>", out);
    svg_escape(out, recipe->name);
    fprintf(out, ", layer %lld over the run</h3>", (long long)layer);
    load_over_time(study, run, layer, ratio, map);
    double step = (double)study->options->steps / COMPARE_LOAD_SLICES;
    svg_draw_heat(out, &(svg_heat){ .title = "Expert load over time",
                                    .rows = { "expert", experts, 0, 1 },
                                    .columns = { "step", COMPARE_LOAD_SLICES, 0, step },
                                    .ratio = map });
    fputs("</div>\n", out);
}

int report_load(FILE *out, const compare_study *study)
{
    int64_t layers = study->info.num_moe_layers, experts = study->info.num_experts;
    if (layers == 0 || experts == 0) return 0;
    double *ratio = malloc(sizeof *ratio * (size_t)experts * (size_t)(layers + COMPARE_LOAD_SLICES));
    if (!ratio) return -1;
    fputs("<h2>Expert load</h2><p class=\"note\">Tokens of an expert over its even share, first seed. Blank: even. "
          "Blue: more "
          "than its share, orange: less; full colour at four times and at a quarter. Right: the least balanced "
          "layer.</p>\n"
          "<div class=\"pair\">\n",
          out);
    for (int64_t r = 0; r < study->num_recipes; r++) write_recipe_load(out, study, &study->recipes[r], ratio);
    fputs("</div>\n", out);
    free(ratio);
    return 0;
}
