/* layer.h - one MoE layer with random weights and tokens: what `bench` times and `inspect` looks at.
 *
 * The data of a rank (weights, tokens, gradients) is apart from the layer, so that several recipes can be run
 * on the same numbers.
 */
#ifndef CLI_LAYER_H
#define CLI_LAYER_H

#include "fp8flow.h"

typedef struct {
    int64_t hidden, width, experts, top_k, tokens; /* tokens of each rank */
} layer_shape;

typedef struct {
    layer_shape shape;
    fp8flow_moe_weights weights;
    fp8flow_moe_gradients gradients;
    fp8flow_tensor x, y, dy, dx; /* [T, H] BF16 */
    fp8flow_context *context;    /* whose memory holds all of the above */
    void *memory;
} layer_data;

/* Data of one rank, in the context's memory; the weights of an expert do not depend on the number of ranks. Errors:
 * ENOMEM, EBACKEND. */
fp8flow_status layer_data_create(layer_data *data, fp8flow_context *context, const layer_shape *shape,
                                 const fp8flow_comm *comm);
void layer_data_destroy(layer_data *data);

/* A layer of `recipe` over the data's weights. Collective. */
fp8flow_status layer_open(const layer_data *data, fp8flow_comm *comm, const char *recipe,
                          fp8flow_checkpointing checkpointing, fp8flow_moe **moe);

/* Forward and backward. Collective. */
fp8flow_status layer_step(fp8flow_moe *moe, layer_data *data);

#endif
