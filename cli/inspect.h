/* inspect.h - the two views of `fp8flow inspect`: the dataflow of one layer, the numerics of a training step. */
#ifndef CLI_INSPECT_H
#define CLI_INSPECT_H

#include <jansson.h>

#include "cli.h"
#include "layer.h"
#include "train_options.h"

const char *inspect_dtype_name(fp8flow_dtype dtype);
const char *inspect_scaling_name(fp8flow_scaling scaling);
const char *inspect_layout_name(fp8flow_layout layout);

/* Where a view writes: text on stdout, or one JSON object per recipe appended to `records`. */
typedef struct {
    json_t *records; /* NULL: text */
    char device[CLI_DEVICE_BYTES];
} inspect_output;

typedef struct {
    const char *recipe;
    layer_shape shape;
    int32_t num_ranks;
    fp8flow_context_options context; /* of each rank */
} inspect_layer;

/* Run one layer forward and backward on random numbers and show rank 0's edges. */
fp8flow_status inspect_dataflow(const inspect_layer *layer, const inspect_output *output);

/* Rows of the numerics view: one per tensor name, or one per layer and name. */
typedef enum { INSPECT_MERGE_LAYERS, INSPECT_EACH_LAYER } inspect_rows;

/* Train for the given number of steps in one process and show what quantisation did in the last one. */
fp8flow_status inspect_numerics(const cli_training *training, const char *recipe, inspect_rows rows,
                                const inspect_output *output);

#endif
