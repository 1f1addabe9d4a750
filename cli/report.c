/* report.c - see report.h. Style and colours live in the one string `style`; svg.c draws with its variables.
 *
 * Palette: Okabe and Ito, which stays distinct with the common forms of colour blindness; the baseline is drawn
 * in the colour of the text. Lines carry their names, so that nothing is told by colour alone.
 */
#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "svg.h"

static const char style[] =
    ":root{color-scheme:light "
    "dark;--paper:#fff;--card:#f6f7f9;--ink:#1c2430;--muted:#5b6675;--grid:#e2e6ec;--c0:#3d4756;"
    "--c1:#d98200;--c2:#0072b2;--c3:#c44e00;--c4:#008a63;--c5:#b5578c;--c6:#2f97cf;--c7:#8a7a00;--hot:#0067a8;"
    "--cold:#d55e00;--band:#009e7322}\n"
    "@media(prefers-color-scheme:dark){:root{--paper:#14181f;--card:#1c222c;--ink:#e6eaf0;--muted:#9aa5b4;--grid:#"
    "2d3541;"
    "--c0:#d5dbe5;--c1:#f0a830;--c2:#56a8e8;--c3:#f0783c;--c4:#2fc394;--c5:#dd8fbd;--c6:#7cc4f4;--c7:#d6c843;--hot:#"
    "56a8e8;"
    "--cold:#f08a4b;--band:#2fc3942b}}\n"
    "*{box-sizing:border-box}body{margin:0 auto;max-width:1000px;padding:28px 20px 60px;background:var(--paper);"
    "color:var(--ink);font:16px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"DejaVu Sans\",sans-serif}\n"
    "h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3em}h2{font-size:1.15rem;margin:2.2em 0 "
    ".2em}h3{font-size:.95rem;margin:1em 0 0}"
    "p{margin:.2em 0 .8em}.lead,.note{color:var(--muted)}.note{font-size:.87rem}\n"
    ".facts{display:grid;grid-template-columns:max-content 1fr;gap:.15em 1.2em;font-size:.9rem;margin:1em 0}"
    ".facts dt{color:var(--muted)}.facts dd{margin:0;overflow-wrap:anywhere}code{font:.87em ui-monospace,\"DejaVu Sans "
    "Mono\",monospace}\n"
    ".scroll{overflow-x:auto}.scroll svg{min-width:600px}svg{display:block;width:100%;height:auto}"
    ".pair{display:grid;grid-template-columns:1fr 1fr;gap:1em "
    "1.6em}@media(max-width:640px){.pair{grid-template-columns:1fr}}\n"
    "table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.45em .7em;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}"
    "th{font-weight:600;color:var(--muted);font-size:.8rem;vertical-align:bottom;white-space:normal}"
    "th:first-child,td:first-child{text-align:left}td:first-child{font-weight:600}.dot0{display:inline-block;width:."
    "7em;"
    "height:.7em;border-radius:50%;margin-right:.5em}td small{color:var(--muted)}\n"
    ".warn{border-left:4px solid var(--c3);background:var(--card);padding:.6em 1em;margin:1em 0}\n"
    "svg text{font:12px system-ui,-apple-system,\"Segoe UI\",Roboto,\"DejaVu Sans\",sans-serif;fill:var(--ink)}"
    "svg .tick{fill:var(--muted)}svg .axis{fill:var(--muted)}svg .label{font-weight:600;font-size:13px}svg "
    ".bar{font-size:13px}"
    ".grid{stroke:var(--grid)}.zero{stroke:var(--muted)}.line{fill:none;stroke-width:2.2;stroke-linejoin:round}"
    ".dashed{stroke-dasharray:6 "
    "4;stroke-width:1.6;stroke-opacity:.6}.faint{stroke-width:1;stroke-opacity:.28}.dot{stroke:var(--paper);stroke-"
    "width:1.5}"
    ".hot{fill:var(--hot)}.cold{fill:var(--cold)}.band{fill:var(--band)}.pale{fill-opacity:.4}.frame{fill:none;stroke:"
    "var(--grid)}\n";

/* ---- Head and table ------------------------------------------------------------------------- */

static void write_fact(FILE *out, const char *name, const char *text)
{
    if (!text || !*text) return;
    fprintf(out, "<dt>%s</dt><dd>", name);
    svg_escape(out, text);
    fputs("</dd>\n", out);
}

static void write_head(FILE *out, const compare_study *study)
{
    const fp8flow_train_options *o = study->options;
    char text[160];
    fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>fp8flow compare: ",
          out);
    svg_escape(out, o->model);
    fprintf(out, "</title>\n<style>\n%s</style></head>\n<body>\n<h1>", style);
    for (int64_t r = 0; r < study->num_recipes; r++) {
        if (r > 0) fputs(r + 1 < study->num_recipes ? ", " : " and ", out);
        svg_escape(out, study->recipes[r].name);
    }
    fputs(" on ", out);
    svg_escape(out, o->model);
    fprintf(out,
            "</h1>\n<p class=\"lead\">The same data in the same order, the same seeds, %lld steps in each recipe.</p>\n"
            "<dl class=\"facts\">\n",
            (long long)o->steps);
    snprintf(text, sizeof text, "%s: %.2f M parameters (%.2f M active), %lld MoE layers, %lld experts, top %lld",
             o->model, (double)study->info.parameters / 1e6, (double)study->info.active_parameters / 1e6,
             (long long)study->info.num_moe_layers, (long long)study->info.num_experts, (long long)study->info.top_k);
    write_fact(out, "Model", text);
    write_fact(out, "Data", study->data);
    snprintf(text, sizeof text, "%lld steps of %lld sequences of %lld tokens, %lld seed%s, %d rank%s",
             (long long)o->steps, (long long)o->batch, (long long)o->sequence_length, (long long)study->num_seeds,
             study->num_seeds == 1 ? "" : "s", study->num_ranks, study->num_ranks == 1 ? "" : "s");
    write_fact(out, "Training", text);
    write_fact(out, "Machine", study->machine);
    write_fact(out, "Date", study->date);
    write_fact(out, "Version", fp8flow_version());
    if (study->command) {
        fputs("<dt>Command</dt><dd><code>", out);
        svg_escape(out, study->command);
        fputs("</code></dd>\n", out);
    }
    fputs("</dl>\n", out);
}

static void write_number(FILE *out, const char *format, double value)
{
    fputs("<td>", out);
    if (isnan(value)) fputs("&ndash;", out);
    else fprintf(out, format, value);
    fputs("</td>", out);
}

static void write_row(FILE *out, const compare_study *study, const compare_recipe *recipe)
{
    const compare_summary *s = &recipe->summary;
    int is_baseline = recipe == &study->recipes[study->baseline];
    fprintf(out, "<tr><td><span class=\"dot0\" style=\"background:var(--c%d)\"></span>", recipe->color);
    svg_escape(out, recipe->name);
    fputs("</td>", out);
    write_number(out, "%.4f", s->training_loss.mean);
    write_number(out, "%.4f", s->validation_loss.mean);
    if (is_baseline) {
        fputs("<td><small>baseline</small></td><td></td>", out);
    } else {
        fputs("<td>", out);
        if (isnan(s->gap_mean.mean)) fputs("&ndash;", out);
        else fprintf(out, "%+.3f&thinsp;%%", 100 * s->gap_mean.mean);
        if (study->num_seeds > 1 && !isnan(s->gap_mean.mean))
            fprintf(out, " <small>&plusmn;&thinsp;%.3f</small>", 100 * s->gap_mean.spread);
        fputs("</td>", out);
        write_number(out, "%+.3f&thinsp;%%", 100 * s->gap_worst);
    }
    write_number(out, "%.0f", s->tokens_per_second);
    write_number(out, "%.0f&thinsp;KiB", s->saved_bytes / 1024);
    write_number(out, "%.0f", s->dispatch_bytes);
    write_number(out, "%.0f", s->wire_bytes);
    write_number(out, "%.0f", s->explicit_casts < 0 ? NAN : (double)s->explicit_casts);
    fputs("</tr>\n", out);
}

static void write_table(FILE *out, const compare_study *study)
{
    fputs("<div class=\"scroll\"><table><thead><tr><th>Recipe</th><th>Training loss</th><th>Validation loss</th>"
          "<th>Gap, mean</th><th>Gap, worst</th><th>Tokens/s</th><th>Saved activations</th><th>Dispatch bytes</th>"
          "<th>Wire bytes</th><th>Explicit casts</th></tr></thead>\n<tbody>\n",
          out);
    for (int64_t r = 0; r < study->num_recipes; r++) write_row(out, study, &study->recipes[r]);
    fputs("</tbody></table></div>\n<p class=\"note\">Training loss: mean of the last 5&thinsp;% of the steps. Gap: "
          "relative "
          "difference of the smoothed training losses to ",
          out);
    svg_escape(out, study->recipes[study->baseline].name);
    fprintf(
        out,
        " with the same seed, over the second half of the run%s. Saved activations and explicit casts: per MoE layer. "
        "Dispatch bytes (forward and backward) and wire bytes (dispatch and combine): per token and MoE layer.</p>\n",
        study->num_seeds > 1 ? "; &plusmn; is the standard deviation over seeds" : "");
    if (!isnan(study->noise.mean_magnitude)) {
        fputs("<p class=\"note\">Seed-to-seed noise: two seeds of ", out);
        svg_escape(out, study->recipes[study->baseline].name);
        fprintf(out, " differ by %.3f&thinsp;%% on average, %+.3f&thinsp;%% at worst.</p>\n",
                100 * study->noise.mean_magnitude, 100 * study->noise.worst);
    }
}

static void write_warning(FILE *out, const compare_recipe *recipe, const compare_run *run, const char *text)
{
    fputs("<p class=\"warn\">", out);
    svg_escape(out, recipe->name);
    fprintf(out, ", seed %llu: ", (unsigned long long)run->seed);
    svg_escape(out, text);
    fputs("</p>\n", out);
}

static void write_warnings(FILE *out, const compare_study *study)
{
    char text[400];
    for (int64_t i = 0; i < study->num_recipes * study->num_seeds; i++) {
        const compare_recipe *recipe = &study->recipes[i / study->num_seeds];
        const compare_run *run = &recipe->runs[i % study->num_seeds];
        if (run->num_steps < study->options->steps) {
            snprintf(text, sizeof text, "%lld of %lld steps%s%s", (long long)run->num_steps,
                     (long long)study->options->steps, run->error[0] ? ", then: " : "", run->error);
            write_warning(out, recipe, run, text);
        }
        if (run->nonfinite_steps > 0) {
            snprintf(text, sizeof text, "non-finite values in %lld steps, first in step %lld",
                     (long long)run->nonfinite_steps, (long long)run->first_nonfinite);
            write_warning(out, recipe, run, text);
        }
    }
}

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

static int write_loss_curves(FILE *out, const compare_study *study)
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
    for (int64_t s = 1; s < study->num_seeds; s++) {
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

static int write_gap_curves(FILE *out, const compare_study *study)
{
    curve_set curves;
    if (study->num_recipes < 2 && study->num_seeds < 2) return 0;
    int status = curves_create(&curves, study, (study->num_recipes + 1) * (study->num_seeds + 1));
    if (status == 0) {
        for (int64_t r = 0; r < study->num_recipes; r++)
            if (r != study->baseline) add_gap_curves(&curves, study, &study->recipes[r]);
        add_noise_curves(&curves, study);
        fputs("<h2>Gap to ", out);
        svg_escape(out, study->recipes[study->baseline].name);
        fprintf(out,
                "</h2><p class=\"note\">Relative difference of the training losses, both smoothed over %lld steps. "
                "Below 0 is "
                "better than the baseline.%s</p>\n",
                (long long)compare_window(study),
                study->num_seeds > 1 ? " Faint: single seeds. Dashed: the baseline&#39;s second seed against its first."
                                     : "");
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

static void write_bars(FILE *out, const compare_study *study)
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

static int write_load(FILE *out, const compare_study *study)
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

int report_write(const char *path, const compare_study *study)
{
    FILE *out = fopen(path, "w");
    if (!out) return -1;
    write_head(out, study);
    write_warnings(out, study);
    write_table(out, study);
    int status = write_gap_curves(out, study) | write_loss_curves(out, study) | write_load(out, study);
    write_bars(out, study);
    fputs("</body></html>\n", out);
    int failed = ferror(out);
    if (fclose(out) != 0 || failed) return -1;
    return status ? -1 : 0;
}
