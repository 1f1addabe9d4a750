/* step.c - one optimiser step and validation: micro-batches, gradient sums over ranks, clipping, update, figures. */
#include <math.h>
#include <stdio.h>

#include "base/clock.h"
#include "train/trainer.h"

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

/* ---- Tokens ---- */

static int64_t tokens_at_once(const fp8flow_trainer *t)
{
    return t->options.micro_batch * t->options.sequence_length;
}

static int32_t *ids_at(const fp8flow_trainer *t, int32_t *tokens, int64_t micro_batch)
{
    return tokens + 2 * micro_batch * tokens_at_once(t);
}

/* Copies the tokens of the first `count` micro-batches; waits for what the device still does with others. */
static fp8flow_status send_tokens(fp8flow_trainer *t, int64_t count)
{
    size_t bytes = (size_t)(2 * count * tokens_at_once(t)) * sizeof *t->tokens;
    return fp8flow_memory_copy(t->context, t->device_tokens, t->tokens, bytes);
}

/* The training tokens of `step` to the device, unless it has them. */
static fp8flow_status bring_tokens(fp8flow_trainer *t, int64_t step)
{
    const fp8flow_train_options *o = &t->options;
    int32_t rank = fp8flow_comm_rank(t->comm), size = fp8flow_comm_size(t->comm);
    if (t->tokens_step == step) return FP8FLOW_OK;
    t->tokens_step = -1;
    for (int64_t i = 0; i < t->num_micro_batches; i++) {
        int32_t *ids = ids_at(t, t->tokens, i);
        int64_t first = (i * size + rank) * o->micro_batch;
        F8_TRY(f8_data_batch(t->data, o->data_seed, step, first, o->micro_batch, ids, ids + tokens_at_once(t)));
    }
    F8_TRY(send_tokens(t, t->num_micro_batches));
    t->tokens_step = step;
    return FP8FLOW_OK;
}

/* ---- Micro-batches ---- */

static fp8flow_status run_micro_batches(fp8flow_trainer *t)
{
    const fp8flow_train_options *o = &t->options;
    f8_micro_batch batch = { .batch = o->micro_batch,
                             .sequence_length = o->sequence_length,
                             .gradient_scale = (float)(1.0 / (double)(o->batch * o->sequence_length)),
                             .loss_scale = (float)(1.0 / (double)t->num_micro_batches) };
    for (int64_t i = 0; i < t->num_micro_batches; i++) {
        batch.ids = ids_at(t, t->device_tokens, i);
        batch.targets = batch.ids + tokens_at_once(t);
        F8_TRY(f8_model_forward(t->model, &batch, &t->figures->loss_sum[i]));
        F8_TRY(f8_model_backward(t->model, &batch));
    }
    return FP8FLOW_OK;
}

/* ---- Update ---- */

/* Sum the gradients over the ranks, then the norm of all: the shares of all ranks together are every gradient once. */
static fp8flow_status reduce_gradients(fp8flow_trainer *t)
{
    f8_model *m = t->model;
    f8_step_figures *f = t->figures;
    F8_TRY(f8_model_reduce_gradients(m));
    for (int i = 0; i < F8_NUM_SECTIONS; i++) {
        const f8_section *s = &m->section[i];
        F8_TRY(fp8flow_square_sum(
            t->context, &(fp8flow_square_sum_args){ s->end - s->begin, m->gradient + s->begin, &f->square_sums[i] }));
    }
    F8_TRY(f8_comm_all_reduce(m->ranks.world_device, F8_SUM_F64, f->square_sums, F8_NUM_SECTIONS));
    return fp8flow_clip(t->context, &(fp8flow_clip_args){ .count = F8_NUM_SECTIONS,
                                                          .square_sums = f->square_sums,
                                                          .limit = t->options.clip,
                                                          .norm = &f->norm,
                                                          .scale = &f->scale });
}

/* What this rank has of a parameter. */
static fp8flow_status update_parameter(fp8flow_trainer *t, const f8_parameter *p, double lr)
{
    const fp8flow_train_options *o = &t->options;
    const f8_model *m = t->model;
    const f8_section *s = f8_model_section(m, p->offset);
    int64_t begin, count = f8_section_overlap(s, p->offset, p->rows * p->cols, &begin);
    int64_t state = begin - s->begin + s->state;
    if (count == 0) return FP8FLOW_OK;
    fp8flow_adamw_args args = { .count = count,
                                .master = m->master + state,
                                .m = m->moment1 + state,
                                .v = m->moment2 + state,
                                .grad = m->gradient + begin,
                                .grad_scale = &t->figures->scale,
                                .weight = m->weight + begin,
                                .lr = (float)lr,
                                .beta1 = (float)o->beta1,
                                .beta2 = (float)o->beta2,
                                .eps = (float)o->eps,
                                .weight_decay = p->decay ? (float)o->weight_decay : 0.0f,
                                .step = t->optimizer_step + 1 };
    return fp8flow_adamw(t->context, &args);
}

/* Without an effect if the gradients are not finite: the scale is NaN then, and only the device knows yet. */
static fp8flow_status update_weights(fp8flow_trainer *t, double lr)
{
    f8_model *m = t->model;
    for (int64_t i = 0; i < m->table->num_parameters; i++) F8_TRY(update_parameter(t, &m->table->parameter[i], lr));
    return f8_model_gather_weights(m);
}

static fp8flow_status update_router_biases(fp8flow_trainer *t)
{
    const f8_model_config *c = &t->model->config;
    if (c->bias_update_rate == 0.0) return FP8FLOW_OK;
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        if (!t->model->moe[layer]) continue;
        fp8flow_router_bias_update_args args = { .num_experts = c->router.num_experts,
                                                 .counts = f8_step_layer(t, t->figures, layer)->load,
                                                 .rate = (float)c->bias_update_rate,
                                                 .bias = t->model->router_bias + layer * c->router.num_experts };
        F8_TRY(fp8flow_router_bias_update(t->context, &args));
    }
    return FP8FLOW_OK;
}

/* ---- A step ---- */

static fp8flow_status clear_sums(fp8flow_trainer *t)
{
    const f8_model *m = t->model;
    F8_TRY(fp8flow_memory_fill(t->context, t->figures, 0, f8_step_figures_bytes(t)));
    return fp8flow_memory_fill(t->context, m->gradient, 0, (size_t)m->table->count * sizeof *m->gradient);
}

/* The one wait of a step. While the device still works, the tokens of the next one are read; what fails there fails
 * again when that step asks for them. */
static fp8flow_status finish(fp8flow_trainer *t)
{
    if (t->step < t->options.steps) (void)bring_tokens(t, t->step);
    F8_TRY(fp8flow_memory_copy(t->context, t->last_step, t->figures, f8_step_figures_bytes(t)));
    F8_TRY(f8_comm_check(t->model->ranks.world_device)); /* or they are not what all ranks have computed */
    return f8_ranks_clock_read(&t->model->ranks);
}

/* What depends on whether the gradients were finite. The device does it while the program looks at the step. */
static fp8flow_status publish(fp8flow_trainer *t)
{
    if (!isfinite(t->last_step->norm)) return f8_step_note_gradients(t);
    t->optimizer_step++;
    F8_TRY(update_router_biases(t));
    return f8_model_publish(t->model);
}

static fp8flow_status run_step(fp8flow_trainer *t, fp8flow_step_metrics *metrics)
{
    double lr = f8_learning_rate(&t->options, t->step + 1);
    t->spent = f8_step_find_spent(t);
    f8_ranks_clock_start(&t->model->ranks);
    F8_TRY(bring_tokens(t, t->step));
    F8_TRY(clear_sums(t));
    F8_TRY(run_micro_batches(t));
    F8_TRY(reduce_gradients(t));
    F8_TRY(update_weights(t, lr));
    t->step++;
    F8_TRY(finish(t));
    t->num_nonfinite = 0;
    metrics->step = t->step;
    metrics->lr = lr;
    metrics->gradient_norm = t->last_step->norm;
    F8_TRY(f8_step_measure(t, metrics));
    return publish(t);
}

fp8flow_status fp8flow_trainer_step(fp8flow_trainer *t, fp8flow_step_metrics *metrics)
{
    F8_REQUIRE(t && metrics, EINVAL, "trainer_step: NULL argument");
    F8_REQUIRE(t->step < t->options.steps, EINVAL, "trainer_step: all %lld steps are done",
               (long long)t->options.steps);
    observed each[F8_MAX_LAYERS];
    double start = f8_seconds_now();
    *metrics = (fp8flow_step_metrics){ 0 };
    if (t->observer) observe_layers(t, each);
    fp8flow_status status = run_step(t, metrics);
    if (t->observer) observe_layers(t, NULL);
    t->observer = NULL;
    metrics->seconds = f8_seconds_now() - start;
    return status;
}

/* ---- Validation ---- */

/* Sequence j of the set is run by rank (j / micro_batch) mod ranks; a rank that has none left runs an empty batch,
 * because the layers' collectives need every rank. Round r of this rank: */
static int64_t sequences_in(const fp8flow_trainer *t, int64_t round, int64_t count, int64_t *first)
{
    *first = (round * fp8flow_comm_size(t->comm) + fp8flow_comm_rank(t->comm)) * t->options.micro_batch;
    int64_t left = count - *first;
    return left < 0 ? 0 : left < t->options.micro_batch ? left : t->options.micro_batch;
}

/* The tokens of rounds [round, round + rounds) to the device, in the place of training tokens. */
static fp8flow_status bring_validation(fp8flow_trainer *t, int64_t round, int64_t rounds, int64_t count)
{
    t->tokens_step = -1;
    for (int64_t i = 0; i < rounds; i++) {
        int64_t first, sequences = sequences_in(t, round + i, count, &first);
        int32_t *ids = ids_at(t, t->tokens, i);
        if (sequences > 0) F8_TRY(f8_data_validation(t->data, first, sequences, ids, ids + tokens_at_once(t)));
    }
    return send_tokens(t, rounds);
}

/* As many rounds as a step has micro-batches, with one wait. */
static fp8flow_status validate_rounds(fp8flow_trainer *t, int64_t round, int64_t rounds, int64_t count, double *sum)
{
    f8_micro_batch batch = { .sequence_length = t->options.sequence_length };
    F8_TRY(bring_validation(t, round, rounds, count));
    for (int64_t i = 0; i < rounds; i++) {
        int64_t first;
        batch.ids = ids_at(t, t->device_tokens, i);
        batch.targets = batch.ids + tokens_at_once(t);
        batch.batch = sequences_in(t, round + i, count, &first);
        F8_TRY(f8_model_forward(t->model, &batch, &t->figures->loss_sum[i]));
    }
    F8_TRY(
        fp8flow_memory_copy(t->context, t->last_step->loss_sum, t->figures->loss_sum, (size_t)rounds * sizeof(double)));
    F8_TRY(f8_comm_check(t->model->ranks.world_device));
    for (int64_t i = 0; i < rounds; i++) *sum += t->last_step->loss_sum[i];
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_trainer_validate(fp8flow_trainer *t, double *loss)
{
    F8_REQUIRE(t && loss, EINVAL, "trainer_validate: NULL argument");
    const fp8flow_train_options *o = &t->options;
    int64_t have = f8_data_summarize(t->data).num_validation;
    int64_t count = o->validation_sequences < have ? o->validation_sequences : have;
    int64_t rounds = f8_ceil_div(count, o->micro_batch * fp8flow_comm_size(t->comm)), most = t->num_micro_batches;
    double sum = 0.0;
    for (int64_t round = 0; round < rounds; round += most)
        F8_TRY(validate_rounds(t, round, rounds - round < most ? rounds - round : most, count, &sum));
    F8_TRY(f8_comm_all_reduce(t->comm, F8_SUM_F64, &sum, 1));
    *loss = sum / (double)(count * o->sequence_length);
    return FP8FLOW_OK;
}
