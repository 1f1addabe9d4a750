/* trainer.c - a trainer's life: model, data and optimiser state from options or from a checkpoint. */
#include "train/trainer.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

/* ---- Create ---- */

/* The checkpoint and the options must describe one run; what may change on resume is not compared. */
static fp8flow_status check_resume(const fp8flow_trainer *t, const f8_checkpoint_state *s, const char *path)
{
    const struct {
        const char *name;
        uint64_t given, stored;
    } fixed[] = { { "batch", (uint64_t)t->options.batch, (uint64_t)s->batch },
                  { "sequence_length", (uint64_t)t->options.sequence_length, (uint64_t)s->sequence_length },
                  { "seed", t->options.seed, s->seed },
                  { "data_seed", t->options.data_seed, s->data_seed },
                  { "data identity", f8_data_summarize(t->data).identity, s->data_identity } };
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++)
        F8_REQUIRE(fixed[i].given == fixed[i].stored, EINVAL, "resume: %s: %s is %llu here and %llu in the checkpoint",
                   path, fixed[i].name, (unsigned long long)fixed[i].given, (unsigned long long)fixed[i].stored);
    F8_REQUIRE(s->step <= t->options.steps, EINVAL, "resume: %s is at step %lld, after the last of %lld steps", path,
               (long long)s->step, (long long)t->options.steps);
    return FP8FLOW_OK;
}

/* The model's configuration: of the checkpoint when resuming, and then a given one must be the same. */
static fp8flow_status read_config(fp8flow_trainer *t, const char *model, const char *checkpoint,
                                  f8_checkpoint_state *state, f8_model_config *config)
{
    if (!checkpoint) return f8_model_config_load(model ? model : "tiny", &t->config_text, config, &t->ignored_keys);
    F8_TRY(f8_checkpoint_open(checkpoint, state, &t->config_text));
    F8_TRY(f8_model_config_parse(checkpoint, t->config_text.data, t->config_text.size, config, &t->ignored_keys));
    if (!model) return FP8FLOW_OK;
    f8_model_config given;
    f8_buffer text;
    fp8flow_status status = f8_model_config_load(model, &text, &given, NULL);
    f8_buffer_free(&text);
    F8_TRY(status);
    F8_REQUIRE(f8_model_config_equal(&given, config), EINVAL, "resume: %s holds another model than \"%.80s\"",
               checkpoint, model);
    return FP8FLOW_OK;
}

static fp8flow_status allocate(fp8flow_trainer *t)
{
    const f8_device *device = t->context->device;
    size_t tokens = (size_t)(t->num_micro_batches * t->options.micro_batch * t->options.sequence_length);
    size_t token_bytes = 2 * tokens * sizeof *t->tokens, figures_bytes = f8_step_figures_bytes(t);
    t->tokens = malloc(token_bytes);
    t->last_step = calloc(1, figures_bytes);
    F8_REQUIRE(t->tokens && t->last_step, ENOMEM, "train: no memory for batches of %zu tokens", tokens);
    F8_TRY(device->alloc(token_bytes, (void **)&t->device_tokens));
    F8_TRY(device->alloc(figures_bytes, (void **)&t->figures));
    for (int64_t layer = 0; layer < t->model->config.num_layers; layer++)
        if (t->model->moe[layer]) f8_moe_collect(t->model->moe[layer], f8_step_layer(t, t->figures, layer));
    return FP8FLOW_OK;
}

static fp8flow_status build(fp8flow_trainer *t, const fp8flow_train_options *o, const char *checkpoint)
{
    f8_checkpoint_state state = { 0 };
    f8_model_config *config = calloc(1, sizeof *config);
    F8_REQUIRE(config, ENOMEM, "train: no memory for the configuration");
    fp8flow_status status;
    F8_TRY_GOTO(status, read_config(t, o->model, checkpoint, &state, config));
    F8_TRY_GOTO(status, f8_train_options_check_model(o, config));
    F8_TRY_GOTO(status, f8_data_open(o->data, (int)o->num_data, o->sequence_length,
                                     &(f8_data_options){ .batch_size = o->batch }, &t->data));
    f8_model_options options = { .recipe = o->recipe,
                                 .checkpointing = o->checkpointing,
                                 .max_tokens = o->micro_batch * o->sequence_length,
                                 .sequence_length = o->sequence_length,
                                 .purpose = F8_FOR_TRAINING,
                                 .expert_parallel = o->expert_parallel };
    F8_TRY_GOTO(status, f8_model_create(t->context, t->comm, config, &options, &t->model));
    F8_TRY_GOTO(status, allocate(t));
    if (checkpoint) {
        F8_TRY_GOTO(status, check_resume(t, &state, checkpoint));
        F8_TRY_GOTO(status, f8_checkpoint_load(checkpoint, &state, t->model));
        t->step = t->first_step = state.step;
        t->optimizer_step = state.optimizer_step;
    } else {
        F8_TRY_GOTO(status, f8_model_init_masters(t->model, o->seed));
    }
    status = f8_model_publish_from_master(t->model);
fail:
    free(config);
    return status;
}

static char *copy_string(const char *text)
{
    return text ? strdup(text) : NULL;
}

fp8flow_status fp8flow_trainer_create(fp8flow_context *context, fp8flow_comm *comm,
                                      const fp8flow_train_options *options, fp8flow_trainer **trainer)
{
    F8_REQUIRE(context && comm && options && trainer, EINVAL, "trainer_create: NULL argument");
    F8_TRY(f8_train_options_check(options, fp8flow_comm_size(comm)));
    char *checkpoint = NULL;
    if (options->resume) F8_TRY(f8_checkpoint_find(options->resume, &checkpoint));
    fp8flow_trainer *t = calloc(1, sizeof *t);
    if (!t) {
        free(checkpoint);
        return F8_FAIL(ENOMEM, "train: no memory for the trainer");
    }
    t->context = context;
    t->comm = comm;
    t->options = *options;
    t->options.model = t->options.resume = NULL;
    t->options.data = NULL;
    t->options.output = t->output = copy_string(options->output);
    t->options.recipe = t->recipe = copy_string(options->recipe);
    t->tokens_step = -1;
    t->num_micro_batches = options->batch / (options->micro_batch * fp8flow_comm_size(comm));
    fp8flow_status status = (options->output && !t->output) || !t->recipe
                                ? F8_FAIL(ENOMEM, "train: no memory for the options")
                                : build(t, options, checkpoint);
    free(checkpoint);
    if (status != FP8FLOW_OK) {
        fp8flow_trainer_destroy(t);
        return status;
    }
    *trainer = t;
    return FP8FLOW_OK;
}

void fp8flow_trainer_destroy(fp8flow_trainer *t)
{
    if (!t) return;
    f8_model_destroy(t->model);
    f8_data_close(t->data);
    f8_buffer_free(&t->config_text);
    f8_buffer_free(&t->ignored_keys);
    t->context->device->free(t->device_tokens);
    t->context->device->free(t->figures);
    free(t->tokens);
    free(t->last_step);
    free(t->output);
    free(t->recipe);
    free(t);
}

/* ---- What it is ---- */

fp8flow_status fp8flow_trainer_get_info(const fp8flow_trainer *t, fp8flow_train_info *info)
{
    F8_REQUIRE(t && info, EINVAL, "trainer_get_info: NULL argument");
    const f8_model_config *c = &t->model->config;
    f8_data_summary data = f8_data_summarize(t->data);
    int64_t skipped = data.skipped_empty + data.skipped_binary + data.skipped_unreadable + data.skipped_special +
                      data.skipped_directory_links;
    int64_t memory = t->model->memory_bytes + (int64_t)t->context->workspace.capacity;
    for (int64_t layer = 0; layer < c->num_layers; layer++)
        if (t->model->moe[layer])
            memory += (int64_t)(t->model->moe[layer]->weight_bytes + t->model->moe[layer]->saved.capacity);
    *info = (fp8flow_train_info){ .parameters = t->model->table->global_count,
                                  .active_parameters = t->model->table->active_count,
                                  .num_layers = c->num_layers,
                                  .num_moe_layers = t->model->num_moe_layers,
                                  .num_experts = c->router.num_experts,
                                  .top_k = c->router.top_k,
                                  .hidden = c->hidden,
                                  .expert_width = c->expert_width,
                                  .vocab_size = c->vocab_size,
                                  .train_tokens = data.num_training * t->options.sequence_length,
                                  .validation_tokens = data.num_validation * t->options.sequence_length,
                                  .files = data.num_documents,
                                  .skipped_files = skipped,
                                  .first_step = t->first_step,
                                  .memory_bytes = memory,
                                  .ignored_keys = t->ignored_keys.size ? t->ignored_keys.data : "",
                                  .config_hash = XXH3_64bits(t->config_text.data, t->config_text.size),
                                  .data_identity = data.identity };
    return FP8FLOW_OK;
}

/* The layer that is MoE layer number `index`, or -1. */
static int64_t moe_layer_at(const fp8flow_trainer *t, int64_t index)
{
    for (int64_t layer = 0; layer < t->model->config.num_layers; layer++)
        if (t->model->moe[layer] && index-- == 0) return layer;
    return -1;
}

fp8flow_status fp8flow_trainer_get_load(const fp8flow_trainer *t, int64_t layer, int64_t *counts)
{
    F8_REQUIRE(t && counts, EINVAL, "trainer_get_load: NULL argument");
    int64_t at = moe_layer_at(t, layer), num_experts = t->model->config.router.num_experts;
    F8_REQUIRE(at >= 0, EINVAL, "trainer_get_load: MoE layer %lld of %lld", (long long)layer,
               (long long)t->model->num_moe_layers);
    memcpy(counts, f8_step_layer(t, t->last_step, at)->load, (size_t)num_experts * sizeof *counts);
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_trainer_get_nonfinite(const fp8flow_trainer *t, int64_t index, const char **where)
{
    F8_REQUIRE(t && where, EINVAL, "trainer_get_nonfinite: NULL argument");
    F8_REQUIRE(index >= 0 && index < t->num_nonfinite, EINVAL, "trainer_get_nonfinite: index %lld of %d",
               (long long)index, t->num_nonfinite);
    *where = t->nonfinite[index];
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_trainer_get_edge(const fp8flow_trainer *t, int64_t index, fp8flow_edge *edge)
{
    F8_REQUIRE(t && edge, EINVAL, "trainer_get_edge: NULL argument");
    int64_t layer = moe_layer_at(t, 0);
    F8_REQUIRE(layer >= 0, EINVAL, "trainer_get_edge: the model has no MoE layer");
    return fp8flow_moe_get_edge(t->model->moe[layer], index, edge);
}

void fp8flow_trainer_observe(fp8flow_trainer *t, fp8flow_observer *observer, void *user)
{
    if (!t) return;
    t->observer = observer;
    t->observer_user = user;
}

fp8flow_status fp8flow_trainer_save(fp8flow_trainer *t)
{
    F8_REQUIRE(t, EINVAL, "trainer_save: NULL argument");
    F8_REQUIRE(t->output, EINVAL, "trainer_save: the trainer has no output folder");
    return f8_checkpoint_save(t);
}
