/* metrics.c - writing and cutting metrics.jsonl. See metrics.h. */
#include "metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

/* Step of one line, or -1 if it is not a whole record. */
static int64_t line_step(const char *line, size_t length)
{
    json_t *record = json_loadb(line, length, JSON_REJECT_DUPLICATES, NULL);
    json_t *step = json_object_get(record, "step");
    int64_t value = json_is_integer(step) ? (int64_t)json_integer_value(step) : -1;
    json_decref(record);
    return value;
}

/* Bytes of the leading whole lines whose step is at most last_step. */
static int64_t bytes_to_keep(FILE *file, int64_t last_step)
{
    char *line = NULL;
    size_t capacity = 0;
    int64_t kept = 0;
    for (ssize_t length; (length = getline(&line, &capacity, file)) > 0; kept += length) {
        if (line[length - 1] != '\n') break;
        int64_t step = line_step(line, (size_t)length);
        if (step < 1 || step > last_step) break;
    }
    free(line);
    return kept;
}

int cli_metrics_open(cli_metrics *metrics, const char *path, const fp8flow_train_info *info)
{
    *metrics = (cli_metrics){ .num_layers = info->num_moe_layers, .num_experts = info->num_experts };
    metrics->counts = calloc(info->num_experts > 0 ? (size_t)info->num_experts : 1, sizeof *metrics->counts);
    int descriptor = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    metrics->file = descriptor >= 0 ? fdopen(descriptor, "a+") : NULL;
    int error = !metrics->counts ? ENOMEM : metrics->file ? 0 : errno;
    if (!error) {
        rewind(metrics->file);
        if (ftruncate(descriptor, bytes_to_keep(metrics->file, info->first_step)) != 0) error = errno;
    }
    if (error) {
        if (!metrics->file && descriptor >= 0) close(descriptor);
        cli_metrics_close(metrics);
    }
    metrics->started = cli_seconds();
    return error;
}

cli_expert_load cli_measure_load(const int64_t *counts, int64_t num_experts)
{
    cli_expert_load load = { .entropy = 1.0 };
    double total = 0, entropy = 0;
    int64_t least = num_experts > 0 ? counts[0] : 0, most = least;
    for (int64_t expert = 0; expert < num_experts; expert++) {
        total += (double)counts[expert];
        load.dead += counts[expert] == 0;
        if (counts[expert] < least) least = counts[expert];
        if (counts[expert] > most) most = counts[expert];
    }
    if (!(total > 0)) return load;
    for (int64_t expert = 0; expert < num_experts; expert++) {
        double share = (double)counts[expert] / total;
        if (share > 0) entropy -= share * log(share);
    }
    double ideal = total / (double)num_experts;
    load.least = (double)least / ideal;
    load.most = (double)most / ideal;
    if (num_experts > 1) load.entropy = entropy / log((double)num_experts);
    return load;
}

static void write_real(FILE *stream, const char *name, double value)
{
    if (isfinite(value)) fprintf(stream, ", \"%s\": %.9g", name, value);
    else fprintf(stream, ", \"%s\": null", name);
}

static void write_integer(FILE *stream, const char *name, int64_t value)
{
    fprintf(stream, ", \"%s\": %lld", name, (long long)value);
}

static void write_step(FILE *stream, const fp8flow_step_metrics *step, const double *validation_loss)
{
    fprintf(stream, "{\"step\": %lld", (long long)step->step);
    write_real(stream, "loss", step->loss);
    write_real(stream, "aux_loss", step->aux_loss);
    write_real(stream, "gradient_norm", step->gradient_norm);
    write_real(stream, "lr", step->lr);
    write_integer(stream, "tokens", step->tokens);
    write_real(stream, "tokens_per_second", step->seconds > 0 ? (double)step->tokens / step->seconds : NAN);
    write_integer(stream, "nonfinite", (int64_t)step->nonfinite);
    write_integer(stream, "saved_bytes", step->saved_bytes);
    write_integer(stream, "explicit_casts", step->explicit_casts);
    write_real(stream, "wire_bytes_per_token", step->wire_bytes_per_token);
    write_real(stream, "dispatch_bytes_per_token", step->dispatch_bytes_per_token);
    write_integer(stream, "reduce_bytes", step->reduce_bytes);
    write_integer(stream, "gather_bytes", step->gather_bytes);
    write_real(stream, "reduce_seconds", step->reduce_seconds);
    write_real(stream, "gather_seconds", step->gather_seconds);
    write_real(stream, "dispatch_seconds", step->dispatch_seconds);
    write_real(stream, "combine_seconds", step->combine_seconds);
    if (validation_loss) write_real(stream, "validation_loss", *validation_loss);
}

static void write_loads(FILE *stream, const cli_metrics *metrics, const fp8flow_trainer *trainer)
{
    fprintf(stream, ", \"expert_load\": [");
    const char *separator = "";
    for (int64_t layer = 0; layer < metrics->num_layers; layer++) {
        if (fp8flow_trainer_get_load(trainer, layer, metrics->counts) != FP8FLOW_OK) continue;
        cli_expert_load load = cli_measure_load(metrics->counts, metrics->num_experts);
        fprintf(stream, "%s{\"layer\": %lld, \"min\": %.4g, \"max\": %.4g, \"entropy\": %.5g, \"dead\": %lld}",
                separator, (long long)layer, load.least, load.most, load.entropy, (long long)load.dead);
        separator = ", ";
    }
    fprintf(stream, "]");
}

int cli_metrics_write(cli_metrics *metrics, const fp8flow_trainer *trainer, const fp8flow_step_metrics *step,
                      const double *validation_loss)
{
    char *line = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&line, &length);
    if (!stream) return errno;
    write_step(stream, step, validation_loss);
    write_loads(stream, metrics, trainer);
    write_real(stream, "elapsed_seconds", cli_seconds() - metrics->started);
    fprintf(stream, "}\n");
    int error = fclose(stream) == 0 ? 0 : ENOMEM;
    /* Past the buffer of stdio, which would split a line that is longer than it. */
    if (!error) {
        ssize_t written = write(fileno(metrics->file), line, length);
        if (written != (ssize_t)length) error = written < 0 ? errno : ENOSPC;
    }
    free(line);
    return error;
}

void cli_metrics_close(cli_metrics *metrics)
{
    if (metrics->file) (void)fclose(metrics->file); /* every line has gone past its buffer */
    free(metrics->counts);
    *metrics = (cli_metrics){ 0 };
}
