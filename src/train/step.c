/* step.c - one optimiser step and validation: micro-batches, gradient sums over ranks, clipping, update, figures. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "ops/router.h"
#include "train/trainer.h"

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- Looking at the layers ---- */

typedef struct {
    fp8flow_trainer *trainer;
    int64_t layer;
} observed;

static void observe_with_layer(void *user, const fp8flow_observation *observation)
{
    const observed *o = user;
    char name[96];
    fp8flow_observation named = *observation;
    snprintf(name, sizeof name, "layer %lld %s", (long long)o->layer, observation->name);
    named.name = name;
    o->trainer->observer(o->trainer->observer_user, &named);
}

/* Set or remove the observer of every layer; `each` has one entry per layer. */
static void observe_layers(fp8flow_trainer *t, observed *each)
{
    for (int64_t layer = 0; layer < t->model->config.num_layers; layer++) {
        if (!t->model->moe[layer]) continue;
        if (each) each[layer] = (observed){ t, layer };
        fp8flow_moe_observe(t->model->moe[layer], each ? observe_with_layer : NULL, each ? &each[layer] : NULL);
    }
}

static char *next_place(fp8flow_trainer *t)
{
    return t->num_nonfinite < F8_MAX_NONFINITE ? t->nonfinite[t->num_nonfinite++] : NULL;
}

static void note_nonfinite_edges(fp8flow_trainer *t, int64_t layer)
{
    fp8flow_edge edge;
    for (int64_t i = 0; fp8flow_moe_get_edge(t->model->moe[layer], i, &edge) == FP8FLOW_OK; i++) {
        char *place = edge.nonfinite ? next_place(t) : NULL;
        if (place)
            snprintf(place, F8_NONFINITE_BYTES, "layer %lld, %s: %llu values", (long long)layer, edge.name,
                     (unsigned long long)edge.nonfinite);
    }
}

/* Which gradients hold the non-finite values that the norm has shown. */
static void note_nonfinite_gradients(fp8flow_trainer *t)
{
    const f8_parameter_table *table = t->model->table;
    for (int64_t i = 0; i < table->num_slices; i++) {
        const f8_stored_slice *slice = &table->slice[i];
        int64_t elements = (slice->rows ? slice->rows : 1) * slice->cols, bad = 0;
        for (int64_t j = 0; j < elements; j++) bad += !f8_is_finite(t->model->gradient[slice->offset + j]);
        char *place = bad ? next_place(t) : NULL;
        if (place) snprintf(place, F8_NONFINITE_BYTES, "gradient of %s: %lld values", slice->name, (long long)bad);
    }
}

/* ---- Micro-batches ---- */

static void add_layer_figures(fp8flow_trainer *t, fp8flow_step_metrics *metrics)
{
    const f8_model *m = t->model;
    int64_t num_experts = m->config.router.num_experts, tokens = t->options.micro_batch * t->options.sequence_length;
    int64_t dispatch = 0, all = 0;
    metrics->saved_bytes = metrics->explicit_casts = 0;
    for (int64_t layer = 0; layer < m->config.num_layers; layer++) {
        if (!m->moe[layer]) continue;
        fp8flow_moe_report report;
        fp8flow_moe_get_report(m->moe[layer], &report);
        metrics->saved_bytes += report.saved_bytes;
        metrics->explicit_casts = report.explicit_casts;
        metrics->nonfinite += report.nonfinite;
        for (int i = 0; i < 3; i++) metrics->aux_loss += report.losses[i] / (double)t->num_micro_batches;
        int64_t rows = report.dispatch_bytes[0] + report.dispatch_bytes[1];
        dispatch += rows;
        all += rows + report.routing_bytes + report.combine_bytes[0] + report.combine_bytes[1];
        int64_t load[F8_ROUTER_MAX_EXPERTS];
        fp8flow_moe_get_load(m->moe[layer], load);
        for (int64_t e = 0; e < num_experts; e++) t->load[layer * num_experts + e] += load[e];
        note_nonfinite_edges(t, layer);
    }
    double token_layers = (double)(tokens * m->num_moe_layers);
    metrics->dispatch_bytes_per_token = m->num_moe_layers ? (double)dispatch / token_layers : 0.0;
    metrics->wire_bytes_per_token = m->num_moe_layers ? (double)all / token_layers : 0.0;
}

static fp8flow_status run_micro_batches(fp8flow_trainer *t, fp8flow_step_metrics *metrics)
{
    const fp8flow_train_options *o = &t->options;
    int32_t rank = fp8flow_comm_rank(t->comm), size = fp8flow_comm_size(t->comm);
    f8_micro_batch batch = { .ids = t->ids,
                             .targets = t->targets,
                             .batch = o->micro_batch,
                             .sequence_length = o->sequence_length,
                             .gradient_scale = (float)(1.0 / (double)(o->batch * o->sequence_length)),
                             .loss_scale = (float)(1.0 / (double)t->num_micro_batches) };
    for (int64_t i = 0; i < t->num_micro_batches; i++) {
        double loss_sum;
        int64_t first = (i * size + rank) * o->micro_batch;
        F8_TRY(f8_data_batch(t->data, o->data_seed, t->step, first, o->micro_batch, t->ids, t->targets));
        F8_TRY(f8_model_forward(t->model, &batch, &loss_sum));
        F8_TRY(f8_model_backward(t->model, &batch));
        metrics->loss += loss_sum / (double)(o->batch * o->sequence_length);
        add_layer_figures(t, metrics);
    }
    F8_TRY(f8_comm_all_reduce(t->comm, F8_SUM_F64, &metrics->loss, 1));
    return f8_comm_all_reduce(t->comm, F8_SUM_F64, &metrics->aux_loss, 1);
}

/* ---- Update ---- */

/* Sum the replicated gradients over the ranks, then the norm of all: replicated once, experts over the ranks. */
static fp8flow_status reduce_gradients(fp8flow_trainer *t, double *norm)
{
    f8_model *m = t->model;
    int64_t replicated = m->table->replicated;
    double dense, experts;
    F8_TRY(f8_comm_all_reduce(t->comm, F8_SUM_F32, m->gradient, replicated));
    F8_TRY(fp8flow_square_sum(t->context, &(fp8flow_square_sum_args){ replicated, m->gradient, &dense }));
    F8_TRY(fp8flow_square_sum(
        t->context, &(fp8flow_square_sum_args){ m->table->count - replicated, m->gradient + replicated, &experts }));
    F8_TRY(f8_comm_all_reduce(t->comm, F8_SUM_F64, &experts, 1));
    *norm = sqrt(dense + experts);
    return FP8FLOW_OK;
}

static fp8flow_status update_weights(fp8flow_trainer *t, double norm, double lr)
{
    const fp8flow_train_options *o = &t->options;
    f8_model *m = t->model;
    float scale = o->clip > 0.0 && norm > o->clip ? (float)(o->clip / norm) : 1.0f;
    t->optimizer_step++;
    for (int64_t i = 0; i < m->table->num_parameters; i++) {
        const f8_parameter *p = &m->table->parameter[i];
        fp8flow_adamw_args args = { .count = p->rows * p->cols,
                                    .master = m->master + p->offset,
                                    .m = m->moment1 + p->offset,
                                    .v = m->moment2 + p->offset,
                                    .grad = m->gradient + p->offset,
                                    .weight = m->weight + p->offset,
                                    .lr = (float)lr,
                                    .beta1 = (float)o->beta1,
                                    .beta2 = (float)o->beta2,
                                    .eps = (float)o->eps,
                                    .weight_decay = p->decay ? (float)o->weight_decay : 0.0f,
                                    .grad_scale = &scale,
                                    .step = t->optimizer_step };
        F8_TRY(fp8flow_adamw(t->context, &args));
    }
    return FP8FLOW_OK;
}

static fp8flow_status update_router_biases(fp8flow_trainer *t)
{
    const f8_model_config *c = &t->model->config;
    if (c->bias_update_rate == 0.0) return FP8FLOW_OK;
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        if (!t->model->moe[layer]) continue;
        fp8flow_router_bias_update_args args = { .num_experts = c->router.num_experts,
                                                 .counts = t->load + layer * c->router.num_experts,
                                                 .rate = (float)c->bias_update_rate,
                                                 .bias = t->model->router_bias + layer * c->router.num_experts };
        F8_TRY(fp8flow_router_bias_update(t->context, &args));
    }
    return FP8FLOW_OK;
}

static fp8flow_status run_step(fp8flow_trainer *t, fp8flow_step_metrics *metrics)
{
    f8_model *m = t->model;
    int64_t loads = m->config.num_layers * m->config.router.num_experts;
    memset(t->load, 0, (size_t)loads * sizeof *t->load);
    memset(m->gradient, 0, (size_t)m->table->count * sizeof *m->gradient);
    t->num_nonfinite = 0;
    F8_TRY(run_micro_batches(t, metrics));
    F8_TRY(reduce_gradients(t, &metrics->gradient_norm));
    t->step++;
    metrics->step = t->step;
    metrics->lr = f8_learning_rate(&t->options, t->step);
    metrics->tokens = t->options.batch * t->options.sequence_length;
    if (!isfinite(metrics->gradient_norm)) {
        note_nonfinite_gradients(t);
        return FP8FLOW_OK;
    }
    F8_TRY(update_weights(t, metrics->gradient_norm, metrics->lr));
    F8_TRY(update_router_biases(t));
    return f8_model_publish(m);
}

fp8flow_status fp8flow_trainer_step(fp8flow_trainer *t, fp8flow_step_metrics *metrics)
{
    F8_REQUIRE(t && metrics, EINVAL, "trainer_step: NULL argument");
    F8_REQUIRE(t->step < t->options.steps, EINVAL, "trainer_step: all %lld steps are done",
               (long long)t->options.steps);
    observed each[F8_MAX_LAYERS];
    double start = seconds_now();
    *metrics = (fp8flow_step_metrics){ 0 };
    if (t->observer) observe_layers(t, each);
    fp8flow_status status = run_step(t, metrics);
    if (t->observer) observe_layers(t, NULL);
    t->observer = NULL;
    metrics->seconds = seconds_now() - start;
    return status;
}

/* ---- Validation ---- */

/* Sequence j of the set is run by rank (j / micro_batch) mod ranks; a rank that has none left runs an empty batch,
 * because the layers' collectives need every rank. */
fp8flow_status fp8flow_trainer_validate(fp8flow_trainer *t, double *loss)
{
    F8_REQUIRE(t && loss, EINVAL, "trainer_validate: NULL argument");
    const fp8flow_train_options *o = &t->options;
    int64_t have = f8_data_summarize(t->data).num_validation, size = fp8flow_comm_size(t->comm);
    int64_t count = o->validation_sequences < have ? o->validation_sequences : have;
    f8_micro_batch batch = { .ids = t->ids, .targets = t->targets, .sequence_length = o->sequence_length };
    double sum = 0.0;
    for (int64_t round = 0; round < count; round += o->micro_batch * size) {
        int64_t first = round + fp8flow_comm_rank(t->comm) * o->micro_batch, left = count - first;
        double loss_sum;
        batch.batch = left < 0 ? 0 : left < o->micro_batch ? left : o->micro_batch;
        if (batch.batch > 0) F8_TRY(f8_data_validation(t->data, first, batch.batch, t->ids, t->targets));
        F8_TRY(f8_model_forward(t->model, &batch, &loss_sum));
        sum += loss_sum;
    }
    F8_TRY(f8_comm_all_reduce(t->comm, F8_SUM_F64, &sum, 1));
    *loss = sum / (double)(count * o->sequence_length);
    return FP8FLOW_OK;
}
