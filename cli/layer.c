/* layer.c - see layer.h. */
#include "layer.h"

#include <math.h>
#include <stdlib.h>

#include "random.h"

/* Elements of each array of a rank. Hidden size and width are multiples of 16: where one array ends, the next may
 * begin, whatever its format. */
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

/* What is drawn, in its order in memory; zeros follow it. */
typedef struct {
    float *router;
    uint16_t *fc1, *fc2, *x, *dy;
} drawn_arrays;

static drawn_arrays take_drawn(char **memory, array_sizes n)
{
    drawn_arrays a;
    a.router = take(memory, 4 * n.router);
    a.fc1 = take(memory, 2 * n.fc1);
    a.fc2 = take(memory, 2 * n.fc2);
    a.x = take(memory, 2 * n.tokens);
    a.dy = take(memory, 2 * n.tokens);
    return a;
}

/* Seeds: 1 router, 2 tokens, 3 gradients (these two apart per rank), then one per expert and matrix. */
static void draw(const layer_shape *s, drawn_arrays a, int64_t first_expert, int64_t last_expert, int32_t rank)
{
    size_t count = (size_t)(s->tokens * s->hidden), fc2 = (size_t)(s->hidden * s->width);
    random_source source = { 1 };
    for (int64_t i = 0; i < s->experts * s->hidden; i++) a.router[i] = random_normal(&source) / sqrtf((float)s->hidden);
    fill_bf16(a.x, count, 1.0f, 2 + ((uint64_t)rank << 32));
    fill_bf16(a.dy, count, 1e-3f, 3 + ((uint64_t)rank << 32));
#pragma omp parallel for schedule(dynamic)
    for (int64_t e = first_expert; e < last_expert; e++) {
        size_t local = (size_t)(e - first_expert);
        fill_bf16(a.fc1 + local * 2 * fc2, 2 * fc2, 1.0f / sqrtf((float)s->hidden), 1000 + 2 * (uint64_t)e);
        fill_bf16(a.fc2 + local * fc2, fc2, 1.0f / sqrtf((float)s->width), 1001 + 2 * (uint64_t)e);
    }
}

/* Where the arrays lie in the data's own memory. */
static void set_pointers(layer_data *data, array_sizes n)
{
    char *memory = data->memory;
    drawn_arrays drawn = take_drawn(&memory, n);
    data->weights.router = drawn.router;
    data->weights.fc1 = drawn.fc1;
    data->weights.fc2 = drawn.fc2;
    data->x = token_matrix(&data->shape, drawn.x);
    data->dy = token_matrix(&data->shape, drawn.dy);
    data->gradients.router = take(&memory, 4 * n.router);
    data->gradients.fc1 = take(&memory, 4 * n.fc1);
    data->gradients.fc2 = take(&memory, 4 * n.fc2);
    data->y = token_matrix(&data->shape, take(&memory, 2 * n.tokens));
    data->dx = token_matrix(&data->shape, take(&memory, 2 * n.tokens));
}

fp8flow_status layer_data_create(layer_data *data, fp8flow_context *context, const layer_shape *shape,
                                 const fp8flow_comm *comm)
{
    int64_t ranks = fp8flow_comm_size(comm), rank = fp8flow_comm_rank(comm);
    int64_t first = shape->experts * rank / ranks, last = shape->experts * (rank + 1) / ranks;
    array_sizes n = sizes_of(shape, last - first);
    size_t drawn = 4 * n.router + 2 * (n.fc1 + n.fc2) + 2 * 2 * n.tokens;
    size_t zeros = 4 * (n.router + n.fc1 + n.fc2) + 2 * 2 * n.tokens;
    *data = (layer_data){ .shape = *shape, .context = context };
    char *host = malloc(drawn + 1), *place = host;
    if (!host) return FP8FLOW_ENOMEM;
    draw(shape, take_drawn(&place, n), first, last, (int32_t)rank);
    fp8flow_status status = fp8flow_memory_alloc(context, drawn + zeros, &data->memory);
    if (status == FP8FLOW_OK) status = fp8flow_memory_copy(context, data->memory, host, drawn);
    if (status == FP8FLOW_OK) status = fp8flow_memory_fill(context, (char *)data->memory + drawn, 0, zeros);
    free(host);
    if (status == FP8FLOW_OK) set_pointers(data, n);
    else layer_data_destroy(data);
    return status;
}

void layer_data_destroy(layer_data *data)
{
    fp8flow_memory_free(data->context, data->memory);
    data->memory = NULL;
}

fp8flow_status layer_open(const layer_data *data, fp8flow_comm *comm, const char *recipe,
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
    fp8flow_status status = fp8flow_moe_create(data->context, comm, &config, moe);
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
