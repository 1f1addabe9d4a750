/* layer.c - see layer.h. */
#include "layer.h"

#include <math.h>
#include <stdlib.h>

#include "random.h"

/* Elements of each array of a rank, in the order in which they lie in memory: FP32 first, so that all are aligned. */
typedef struct {
    size_t router, fc1, fc2, tokens;
} array_sizes;

static array_sizes sizes_of(const layer_shape *s, int64_t local_experts)
{
    return (array_sizes){ .router = (size_t)(s->experts * s->hidden),
                          .fc1 = (size_t)(local_experts * 2 * s->width * s->hidden),
                          .fc2 = (size_t)(local_experts * s->hidden * s->width),
                          .tokens = (size_t)(s->tokens * s->hidden) };
}

static void fill_bf16(uint16_t *values, size_t count, float deviation, uint64_t seed)
{
    random_source source = { seed };
    for (size_t i = 0; i < count; i++) values[i] = random_bf16(&source, deviation);
}

static void *take(char **memory, size_t bytes)
{
    void *array = *memory;
    *memory += bytes;
    return array;
}

static fp8flow_tensor token_matrix(const layer_shape *shape, void *values)
{
    return (fp8flow_tensor){
        .rows = shape->tokens, .cols = shape->hidden, .stride = shape->hidden, .dtype = FP8FLOW_BF16, .data = values
    };
}

/* Seeds: 1 router, 2 tokens, 3 gradients (these two apart per rank), then one per expert and matrix. */
static void fill(layer_data *data, float *router, int64_t first_expert, int64_t last_expert, int32_t rank)
{
    const layer_shape *s = &data->shape;
    size_t count = (size_t)(s->tokens * s->hidden), fc2 = (size_t)(s->hidden * s->width);
    random_source source = { 1 };
    for (int64_t i = 0; i < s->experts * s->hidden; i++) router[i] = random_normal(&source) / sqrtf((float)s->hidden);
    fill_bf16(data->x.data, count, 1.0f, 2 + ((uint64_t)rank << 32));
    fill_bf16(data->dy.data, count, 1e-3f, 3 + ((uint64_t)rank << 32));
    for (int64_t e = first_expert; e < last_expert; e++) {
        size_t local = (size_t)(e - first_expert);
        uint16_t *w1 = (uint16_t *)data->weights.fc1 + local * 2 * fc2,
                 *w2 = (uint16_t *)data->weights.fc2 + local * fc2;
        fill_bf16(w1, 2 * fc2, 1.0f / sqrtf((float)s->hidden), 1000 + 2 * (uint64_t)e);
        fill_bf16(w2, fc2, 1.0f / sqrtf((float)s->width), 1001 + 2 * (uint64_t)e);
    }
}

fp8flow_status layer_data_create(layer_data *data, const layer_shape *shape, const fp8flow_comm *comm)
{
    int64_t ranks = fp8flow_comm_size(comm), rank = fp8flow_comm_rank(comm);
    int64_t first = shape->experts * rank / ranks, last = shape->experts * (rank + 1) / ranks;
    array_sizes n = sizes_of(shape, last - first);
    *data = (layer_data){ .shape = *shape };
    /* Weights and gradients of router and experts; x, y, dy, dx. calloc: gradients start at 0. */
    size_t bytes = 8 * n.router + 6 * (n.fc1 + n.fc2) + 4 * 2 * n.tokens;
    data->memory = calloc(bytes, 1);
    if (!data->memory) return FP8FLOW_ENOMEM;
    char *free_memory = data->memory;
    float *router = take(&free_memory, 4 * n.router);
    data->gradients.router = take(&free_memory, 4 * n.router);
    data->gradients.fc1 = take(&free_memory, 4 * n.fc1);
    data->gradients.fc2 = take(&free_memory, 4 * n.fc2);
    data->weights.router = router;
    data->weights.fc1 = take(&free_memory, 2 * n.fc1);
    data->weights.fc2 = take(&free_memory, 2 * n.fc2);
    fp8flow_tensor *const matrices[] = { &data->x, &data->y, &data->dy, &data->dx };
    for (int i = 0; i < 4; i++) *matrices[i] = token_matrix(shape, take(&free_memory, 2 * n.tokens));
    fill(data, router, first, last, (int32_t)rank);
    return FP8FLOW_OK;
}

void layer_data_destroy(layer_data *data)
{
    free(data->memory);
    data->memory = NULL;
}

fp8flow_status layer_open(fp8flow_context *context, fp8flow_comm *comm, const layer_data *data, const char *recipe,
                          fp8flow_checkpointing checkpointing, fp8flow_moe **moe)
{
    const layer_shape *s = &data->shape;
    fp8flow_moe_config config = { .hidden = s->hidden,
                                  .expert_width = s->width,
                                  .max_tokens = s->tokens,
                                  .recipe = recipe,
                                  .checkpointing = checkpointing };
    config.router = (fp8flow_router_config){ .num_experts = s->experts,
                                             .top_k = s->top_k,
                                             .score = FP8FLOW_SCORE_SOFTMAX,
                                             .gate_rule = FP8FLOW_GATE_NORMALIZED,
                                             .gate_scale = 1.0f,
                                             .num_groups = 1,
                                             .top_groups = 1,
                                             .sequence_length = s->tokens };
    fp8flow_status status = fp8flow_moe_create(context, comm, &config, moe);
    if (status != FP8FLOW_OK) return status;
    status = fp8flow_moe_set_weights(*moe, &data->weights);
    if (status != FP8FLOW_OK) {
        fp8flow_moe_destroy(*moe);
        *moe = NULL;
    }
    return status;
}

fp8flow_status layer_step(fp8flow_moe *moe, layer_data *data)
{
    fp8flow_status status = fp8flow_moe_forward(moe, &data->x, &data->y);
    if (status != FP8FLOW_OK) return status;
    return fp8flow_moe_backward(moe, &data->x, &data->dy, 1.0f, &data->gradients, &data->dx);
}
