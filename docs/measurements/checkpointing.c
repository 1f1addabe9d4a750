/* checkpointing.c - what rank 0 of the layer of `fp8flow inspect` keeps for backward, and its casts, in every recipe and
 * mode, alone and as one of two ranks.
 *
 *   make install PREFIX=$PWD/build/prefix
 *   export PKG_CONFIG_PATH=$PWD/build/prefix/lib/pkgconfig LD_LIBRARY_PATH=$PWD/build/prefix/lib
 *   cc -O2 -fopenmp -Icli -o build/checkpointing docs/measurements/checkpointing.c cli/layer.c $(pkg-config --cflags --libs fp8flow) -lm
 *   build/checkpointing
 */
#include <stdio.h>

#include "layer.h"

static const layer_shape shape = { .hidden = 512, .width = 256, .experts = 16, .top_k = 2, .tokens = 1024 };
static const char *const modes[] = { "none", "moe_expert", "full" };

static fp8flow_status show(fp8flow_context *context, fp8flow_comm *comm, const char *recipe, int mode)
{
    layer_data data;
    fp8flow_moe *moe = NULL;
    fp8flow_moe_report r;
    fp8flow_status status = layer_data_create(&data, context, &shape, comm);
    if (status == FP8FLOW_OK) status = layer_open(&data, comm, recipe, (fp8flow_checkpointing)mode, &moe);
    if (status == FP8FLOW_OK) status = layer_step(moe, &data);
    if (status == FP8FLOW_OK) status = fp8flow_moe_get_report(moe, &r);
    int speaks = fp8flow_comm_rank(comm) == 0;
    if (status == FP8FLOW_OK && speaks)
        printf("%-12s %-13s %11lld %10lld %5lld %8lld %10lld\n", recipe, modes[mode], (long long)r.saved_bytes,
               (long long)r.peak_bytes, (long long)r.explicit_casts, (long long)r.cast_tensors,
               (long long)r.recomputed_casts);
    fp8flow_saved_tensor saved;
    for (int64_t i = 0; status == FP8FLOW_OK && speaks && fp8flow_moe_get_saved(moe, i, &saved) == FP8FLOW_OK; i++)
        if (saved.bytes > 0) printf("    %-22s %11lld\n", saved.name, (long long)saved.bytes);
    fp8flow_moe_destroy(moe);
    layer_data_destroy(&data);
    return status;
}

static fp8flow_status body(fp8flow_comm *comm, void *user)
{
    (void)user;
    if (fp8flow_comm_rank(comm) == 0)
        printf("%d rank%s\nrecipe       checkpointing saved_bytes peak_bytes casts tensors  recomputed\n",
               fp8flow_comm_size(comm), fp8flow_comm_size(comm) > 1 ? "s" : "");
    for (int i = 0; fp8flow_recipe_name(i); i++)
        for (int mode = 0; mode < 3; mode++) {
            /* A context of its own: its workspace only grows, and would show in peak_bytes. */
            fp8flow_context *context = NULL;
            fp8flow_status status = fp8flow_context_create(&(fp8flow_context_options){ FP8FLOW_CPU, 1 }, &context);
            if (status == FP8FLOW_OK) status = show(context, comm, fp8flow_recipe_name(i), mode);
            fp8flow_context_destroy(context);
            if (status != FP8FLOW_OK) return status;
        }
    return FP8FLOW_OK;
}

int main(void)
{
    fp8flow_status status = fp8flow_run_ranks(1, body, NULL);
    if (status == FP8FLOW_OK) status = fp8flow_run_ranks(2, body, NULL);
    if (status != FP8FLOW_OK) fprintf(stderr, "%s\n", fp8flow_last_error());
    return status != FP8FLOW_OK;
}
