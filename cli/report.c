/* report.c - see report.h. Style and colours live in the one string `style`; svg.c draws with its variables.
 *
 * Palette: Okabe and Ito, which stays distinct with the common forms of colour blindness; the baseline is drawn
 * in the colour of the text. Lines carry their names, so that nothing is told by colour alone.
 */
#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "report_charts.h"
#include "svg.h"

/* clang-format off */
static const char style[] =
    ":root{color-scheme:light dark;--paper:#fff;--card:#f6f7f9;--ink:#1c2430;--muted:#5b6675;--grid:#e2e6ec;"
    "--c0:#3d4756;--c1:#d98200;--c2:#0072b2;--c3:#c44e00;--c4:#008a63;--c5:#b5578c;--c6:#2f97cf;--c7:#8a7a00;"
    "--hot:#0067a8;--cold:#d55e00;--band:#009e7322}\n"
    "@media(prefers-color-scheme:dark){:root{--paper:#14181f;--card:#1c222c;--ink:#e6eaf0;--muted:#9aa5b4;"
    "--grid:#2d3541;--c0:#d5dbe5;--c1:#f0a830;--c2:#56a8e8;--c3:#f0783c;--c4:#2fc394;--c5:#dd8fbd;--c6:#7cc4f4;"
    "--c7:#d6c843;--hot:#56a8e8;--cold:#f08a4b;--band:#2fc3942b}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0 auto;max-width:1000px;padding:28px 20px 60px;background:var(--paper);color:var(--ink);"
    "font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}\n"
    "h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3em}\n"
    "h2{font-size:1.15rem;margin:2.2em 0 .2em}\n"
    "h3{font-size:.95rem;margin:1em 0 0}\n"
    "p{margin:.2em 0 .8em}\n"
    ".lead,.note{color:var(--muted)}\n"
    ".note{font-size:.87rem}\n"
    ".facts{display:grid;grid-template-columns:max-content 1fr;gap:.15em 1.2em;font-size:.9rem;margin:1em 0}\n"
    ".facts dt{color:var(--muted)}\n"
    ".facts dd{margin:0;overflow-wrap:anywhere}\n"
    "code{font:.87em ui-monospace,'DejaVu Sans Mono',monospace}\n"
    ".scroll{overflow-x:auto}\n"
    ".scroll svg{min-width:600px}\n"
    "svg{display:block;width:100%;height:auto}\n"
    ".pair{display:grid;grid-template-columns:1fr 1fr;gap:1em 1.6em}\n"
    "@media(max-width:640px){.pair{grid-template-columns:1fr}}\n"
    "table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}\n"
    "th,td{padding:.45em .7em;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}\n"
    "th{font-weight:600;color:var(--muted);font-size:.8rem;vertical-align:bottom;white-space:normal}\n"
    "th:first-child,td:first-child{text-align:left}\n"
    "td:first-child{font-weight:600}\n"
    ".dot0{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}\n"
    "td small{color:var(--muted)}\n"
    ".warn{border-left:4px solid var(--c3);background:var(--card);padding:.6em 1em;margin:1em 0}\n"
    "svg text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:var(--ink)}\n"
    "svg .tick{fill:var(--muted)}\n"
    "svg .axis{fill:var(--muted)}\n"
    "svg .label{font-weight:600;font-size:13px}\n"
    "svg .bar{font-size:13px}\n"
    ".grid{stroke:var(--grid)}\n"
    ".zero{stroke:var(--muted)}\n"
    ".line{fill:none;stroke-width:2.2;stroke-linejoin:round}\n"
    ".dashed{stroke-dasharray:6 4;stroke-width:1.6;stroke-opacity:.6}\n"
    ".faint{stroke-width:1;stroke-opacity:.28}\n"
    ".dot{stroke:var(--paper);stroke-width:1.5}\n"
    ".hot{fill:var(--hot)}\n"
    ".cold{fill:var(--cold)}\n"
    ".band{fill:var(--band)}\n"
    ".pale{fill-opacity:.4}\n"
    ".frame{fill:none;stroke:var(--grid)}\n";
/* clang-format on */

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
    snprintf(text, sizeof text, "%lld steps of %lld sequences of %lld tokens, %lld seed%s (baseline: %lld), %d rank%s",
             (long long)o->steps, (long long)o->batch, (long long)o->sequence_length, (long long)study->num_seeds,
             study->num_seeds == 1 ? "" : "s", (long long)study->baseline_seeds, study->num_ranks,
             study->num_ranks == 1 ? "" : "s");
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

/* A figure that nothing was measured for is a dash; one that a diverged run spoilt says so. */
static void write_figure(FILE *out, const char *format, double value, int64_t count)
{
    fputs("<td>", out);
    if (count == 0) fputs("&ndash;", out);
    else if (!isfinite(value)) fputs("not finite", out);
    else fprintf(out, format, value);
    fputs("</td>", out);
}

static void write_number(FILE *out, const char *format, double value)
{
    write_figure(out, format, value, !isnan(value));
}

static void write_gap(FILE *out, const compare_study *study, const compare_summary *s)
{
    if (isfinite(s->gap_mean.mean) && study->num_seeds > 1)
        fprintf(out, "<td>%+.3f&thinsp;%% <small>&plusmn;&thinsp;%.3f</small></td>", 100 * s->gap_mean.mean,
                100 * s->gap_mean.spread);
    else write_figure(out, "%+.3f&thinsp;%%", 100 * s->gap_mean.mean, s->gap_mean.count);
    write_figure(out, "%+.3f&thinsp;%%", 100 * s->gap_worst, s->gap_mean.count);
}

static void write_row(FILE *out, const compare_study *study, const compare_recipe *recipe)
{
    const compare_summary *s = &recipe->summary;
    fprintf(out, "<tr><td><span class=\"dot0\" style=\"background:var(--c%d)\"></span>", recipe->color);
    svg_escape(out, recipe->name);
    fputs("</td>", out);
    write_figure(out, "%.4f", s->training_loss.mean, s->training_loss.count);
    write_figure(out, "%.4f", s->validation_loss.mean, s->validation_loss.count);
    if (recipe == &study->recipes[study->baseline]) fputs("<td><small>baseline</small></td><td></td>", out);
    else write_gap(out, study, s);
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

static void write_recipe_warnings(FILE *out, const compare_study *study, const compare_recipe *recipe)
{
    char text[400];
    for (int64_t s = 0; s < recipe->num_runs; s++) {
        const compare_run *run = &recipe->runs[s];
        if (run->num_steps < study->options->steps) {
            snprintf(text, sizeof text, "%lld of %lld steps%s%s", (long long)run->num_steps,
                     (long long)study->options->steps, run->error[0] ? ", then: " : "", run->error);
            write_warning(out, recipe, run, text);
        }
        if (run->nonfinite_steps > 0) {
            snprintf(text, sizeof text, "non-finite values in %lld of %lld steps, first in step %lld",
                     (long long)run->nonfinite_steps, (long long)run->num_steps, (long long)run->first_nonfinite);
            write_warning(out, recipe, run, text);
        }
    }
}

int report_write(const char *path, const compare_study *study)
{
    FILE *out = fopen(path, "w");
    if (!out) return -1;
    write_head(out, study);
    for (int64_t r = 0; r < study->num_recipes; r++) write_recipe_warnings(out, study, &study->recipes[r]);
    write_table(out, study);
    int status = report_gaps(out, study) | report_losses(out, study) | report_load(out, study);
    report_bytes(out, study);
    fputs("</body></html>\n", out);
    int failed = ferror(out);
    if (fclose(out) != 0 || failed) return -1;
    return status ? -1 : 0;
}
