/* options.c - defaults, ranges, and the learning-rate schedule of a training run. */
#include <math.h>

#include "recipe/recipe.h"
#include "train/trainer.h"

void fp8flow_train_options_init(fp8flow_train_options *o)
{
    if (!o) return;
    *o = (fp8flow_train_options){ .model = "tiny",
                                  .recipe = F8_DEFAULT_RECIPE,
                                  .checkpointing = FP8FLOW_MOE_EXPERT,
                                  .seed = 1,
                                  .data_seed = 1,
                                  .steps = 1000,
                                  .batch = 8,
                                  .micro_batch = 8,
                                  .sequence_length = 256,
                                  .lr = 3e-3,
                                  .min_lr = 3e-4,
                                  .warmup_steps = 50,
                                  .beta1 = 0.9,
                                  .beta2 = 0.95,
                                  .eps = 1e-8,
                                  .weight_decay = 0.1,
                                  .clip = 1.0,
                                  .validation_sequences = 32,
                                  .keep_checkpoints = 3 };
}

static fp8flow_status check_integers(const fp8flow_train_options *o)
{
    const struct {
        const char *name;
        int64_t value, min, max;
    } ranges[] = {
        { "steps", o->steps, 1, (int64_t)1 << 40 },
        { "batch", o->batch, 1, (int64_t)1 << 30 },
        { "micro_batch", o->micro_batch, 1, (int64_t)1 << 24 },
        { "sequence_length", o->sequence_length, 1, (int64_t)1 << 24 },
        { "warmup_steps", o->warmup_steps, 0, (int64_t)1 << 40 },
        { "validation_sequences", o->validation_sequences, 1, (int64_t)1 << 30 },
        { "keep_checkpoints", o->keep_checkpoints, 0, (int64_t)1 << 30 },
        { "num_data", o->num_data, 1, 1 << 20 },
        { "expert_parallel", o->expert_parallel, 0, F8_COMM_MAX_RANKS },
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        F8_REQUIRE(ranges[i].value >= ranges[i].min && ranges[i].value <= ranges[i].max, EINVAL,
                   "train: %s = %lld, expected %lld to %lld", ranges[i].name, (long long)ranges[i].value,
                   (long long)ranges[i].min, (long long)ranges[i].max);
    return FP8FLOW_OK;
}

static fp8flow_status check_numbers(const fp8flow_train_options *o)
{
    const struct {
        const char *name;
        double value, min, max;
    } ranges[] = {
        { "lr", o->lr, 0.0, 1e3 },
        { "min_lr", o->min_lr, 0.0, 1e3 },
        { "beta1", o->beta1, 0.0, 0.9999999 },
        { "beta2", o->beta2, 0.0, 0.9999999 },
        { "eps", o->eps, 1e-30, 1.0 },
        { "weight_decay", o->weight_decay, 0.0, 1e3 },
        { "clip", o->clip, 0.0, 1e9 },
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        F8_REQUIRE(ranges[i].value >= ranges[i].min && ranges[i].value <= ranges[i].max, EINVAL,
                   "train: %s = %g, expected %g to %g", ranges[i].name, ranges[i].value, ranges[i].min, ranges[i].max);
    return FP8FLOW_OK;
}

fp8flow_status f8_train_options_check(const fp8flow_train_options *o, int32_t num_ranks)
{
    F8_TRY(check_integers(o));
    F8_TRY(check_numbers(o));
    F8_REQUIRE(o->data, EINVAL, "train: data is NULL");
    F8_REQUIRE(o->recipe, EINVAL, "train: recipe is NULL");
    F8_REQUIRE((unsigned)o->checkpointing <= FP8FLOW_FULL, EINVAL, "train: unknown checkpointing %d",
               (int)o->checkpointing);
    F8_REQUIRE(o->expert_parallel == 0 || num_ranks % o->expert_parallel == 0, EINVAL,
               "train: expert_parallel = %d does not divide %d ranks", o->expert_parallel, num_ranks);
    int64_t together = o->micro_batch * num_ranks;
    F8_REQUIRE(o->batch % together == 0, EINVAL,
               "train: batch = %lld is not a multiple of %lld (micro_batch %lld on %d ranks)", (long long)o->batch,
               (long long)together, (long long)o->micro_batch, num_ranks);
    F8_REQUIRE(o->micro_batch * o->sequence_length < INT32_MAX, EINVAL,
               "train: micro_batch %lld x sequence_length %lld exceeds 2^31 tokens", (long long)o->micro_batch,
               (long long)o->sequence_length);
    return FP8FLOW_OK;
}

fp8flow_status f8_train_options_check_model(const fp8flow_train_options *o, const f8_model_config *c)
{
    F8_REQUIRE(o->sequence_length <= c->max_positions, EINVAL,
               "train: sequence_length = %lld, the model has max_position_embeddings %lld",
               (long long)o->sequence_length, (long long)c->max_positions);
    F8_REQUIRE(o->expert_parallel <= c->router.num_experts, EINVAL,
               "train: expert_parallel = %d, the model has %lld experts", o->expert_parallel,
               (long long)c->router.num_experts);
    return FP8FLOW_OK;
}

double f8_learning_rate(const fp8flow_train_options *o, int64_t step)
{
    const double pi = 3.14159265358979323846;
    if (step <= o->warmup_steps) return o->lr * (double)step / (double)o->warmup_steps;
    if (step >= o->steps) return o->min_lr;
    double progress = (double)(step - o->warmup_steps) / (double)(o->steps - o->warmup_steps);
    return o->min_lr + (o->lr - o->min_lr) * 0.5 * (1.0 + cos(pi * progress));
}
