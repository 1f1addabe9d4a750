/* figures.c - the figures of a step: where they lie, and what they say when they have come back from the device. */
#include <stdio.h>
#include <stdlib.h>

#include "train/trainer.h"

enum { PIECE = 1 << 18 }; /* gradients looked at together */

size_t f8_step_figures_bytes(const fp8flow_trainer *t)
{
    const f8_model_config *c = &t->model->config;
    return sizeof(f8_step_figures) + (size_t)t->num_micro_batches * sizeof(double) +
           (size_t)c->num_layers * f8_moe_figures_bytes(c->router.num_experts);
}

f8_moe_figures *f8_step_layer(const fp8flow_trainer *t, f8_step_figures *figures, int64_t layer)
{
    char *first = (char *)(figures->loss_sum + t->num_micro_batches);
    return (f8_moe_figures *)(first + (size_t)layer * f8_moe_figures_bytes(t->model->config.router.num_experts));
}

/* ---- Values that are not finite ---- */

static char *next_place(fp8flow_trainer *t)
{
    return t->num_nonfinite < F8_MAX_NONFINITE ? t->nonfinite[t->num_nonfinite++] : NULL;
}

static uint64_t note_edges(fp8flow_trainer *t, int64_t layer, const f8_moe_figures *figures)
{
    uint64_t sum = 0;
    for (int e = 0; e < F8_NUM_EDGES; e++) {
        sum += figures->nonfinite[e];
        char *place = figures->nonfinite[e] ? next_place(t) : NULL;
        if (place)
            snprintf(place, F8_NONFINITE_BYTES, "layer %lld, %s: %llu values", (long long)layer,
                     f8_edge_name((f8_edge)e), (unsigned long long)figures->nonfinite[e]);
    }
    return sum;
}

/* Of a tensor, what is in this rank's share. */
static fp8flow_status note_slice(fp8flow_trainer *t, const f8_stored_slice *slice, float *piece)
{
    int64_t begin, bad = 0, elements = (slice->rows ? slice->rows : 1) * slice->cols;
    elements = f8_section_overlap(f8_model_section(t->model, slice->offset), slice->offset, elements, &begin);
    for (int64_t first = 0; first < elements; first += PIECE) {
        int64_t count = elements - first < PIECE ? elements - first : PIECE;
        F8_TRY(
            fp8flow_memory_copy(t->context, piece, t->model->gradient + begin + first, (size_t)count * sizeof *piece));
        for (int64_t i = 0; i < count; i++) bad += !f8_is_finite(piece[i]);
    }
    char *place = bad ? next_place(t) : NULL;
    if (place) snprintf(place, F8_NONFINITE_BYTES, "gradient of %s: %lld values", slice->name, (long long)bad);
    return FP8FLOW_OK;
}

fp8flow_status f8_step_note_gradients(fp8flow_trainer *t)
{
    const f8_parameter_table *table = t->model->table;
    float *piece = malloc(PIECE * sizeof *piece);
    F8_REQUIRE(piece, ENOMEM, "train: no memory for %zu bytes", PIECE * sizeof *piece);
    fp8flow_status status = FP8FLOW_OK;
    for (int64_t i = 0; i < table->num_slices && status == FP8FLOW_OK; i++)
        status = note_slice(t, &table->slice[i], piece);
    free(piece);
    return status;
}

/* ---- Metrics ---- */

static void measure_layers(fp8flow_trainer *t, fp8flow_step_metrics *metrics)
{
    const f8_model *m = t->model;
    int64_t tokens = t->options.micro_batch * t->options.sequence_length, dispatch = 0, all = 0;
    for (int64_t layer = 0; layer < m->config.num_layers; layer++) {
        if (!m->moe[layer]) continue;
        const f8_moe_figures *figures = f8_step_layer(t, t->last_step, layer);
        const fp8flow_moe_report *report = &m->moe[layer]->report; /* of the last micro-batch */
        metrics->saved_bytes += report->saved_bytes;
        metrics->explicit_casts = report->explicit_casts;
        metrics->nonfinite += note_edges(t, layer, figures);
        for (int i = 0; i < 3; i++) metrics->aux_loss += figures->losses[i] / (double)t->num_micro_batches;
        int64_t rows = report->dispatch_bytes[0] + report->dispatch_bytes[1];
        dispatch += rows;
        all += rows + report->routing_bytes + report->combine_bytes[0] + report->combine_bytes[1];
    }
    double token_layers = (double)(tokens * m->num_moe_layers);
    metrics->dispatch_bytes_per_token = m->num_moe_layers ? (double)dispatch / token_layers : 0.0;
    metrics->wire_bytes_per_token = m->num_moe_layers ? (double)all / token_layers : 0.0;
}

f8_step_spent f8_step_find_spent(const fp8flow_trainer *t)
{
    const f8_ranks *ranks = &t->model->ranks;
    f8_comm_spent sums = f8_ranks_spent(ranks, F8_ALL_REDUCE);
    f8_step_spent spent = { .reduce = f8_ranks_spent(ranks, F8_REDUCE_SCATTER),
                            .gather = f8_ranks_spent(ranks, F8_ALL_GATHER),
                            .dispatch = f8_ranks_spent(ranks, F8_EXCHANGE),
                            .combine = f8_ranks_spent(ranks, F8_EXCHANGE_BACK) };
    spent.reduce.bytes += sums.bytes;
    spent.reduce.seconds += sums.seconds;
    return spent;
}

static void measure_collectives(const fp8flow_trainer *t, fp8flow_step_metrics *metrics)
{
    const f8_step_spent now = f8_step_find_spent(t), *before = &t->spent;
    metrics->reduce_bytes = now.reduce.bytes - before->reduce.bytes;
    metrics->gather_bytes = now.gather.bytes - before->gather.bytes;
    metrics->reduce_seconds = now.reduce.seconds - before->reduce.seconds;
    metrics->gather_seconds = now.gather.seconds - before->gather.seconds;
    metrics->dispatch_seconds = now.dispatch.seconds - before->dispatch.seconds;
    metrics->combine_seconds = now.combine.seconds - before->combine.seconds;
}

fp8flow_status f8_step_measure(fp8flow_trainer *t, fp8flow_step_metrics *metrics)
{
    metrics->tokens = t->options.batch * t->options.sequence_length;
    for (int64_t i = 0; i < t->num_micro_batches; i++)
        metrics->loss += t->last_step->loss_sum[i] / (double)metrics->tokens;
    measure_layers(t, metrics);
    measure_collectives(t, metrics);
    F8_TRY(f8_comm_all_reduce(t->comm, F8_SUM_F64, &metrics->loss, 1));
    return f8_comm_all_reduce(t->comm, F8_SUM_F64, &metrics->aux_loss, 1);
}
