/* layer.c - one MoE layer in FP8, forward and backward: 8 experts, top 2, 256 tokens, weights and inputs made up. */
#include <fp8flow.h>
#include <stdio.h>

enum { T = 256, H = 128, F = 128, E = 8, FC1 = E * 2 * F * H, FC2 = E * H * F };
static uint16_t x[T * H], y[T * H], dy[T * H], dx[T * H], fc1[FC1], fc2[FC2]; /* BF16 */
static float router[E * H], d_router[E * H], d_fc1[FC1], d_fc2[FC2];

#define TRY(call) \
    if ((status = (call)) != FP8FLOW_OK) goto done

static fp8flow_status run(fp8flow_comm *comm, void *user)
{
    (void)user;
    fp8flow_context *context = NULL;
    fp8flow_moe *moe = NULL;
    fp8flow_moe_report report;
    fp8flow_status status;
    fp8flow_moe_config config = { .hidden = H, .expert_width = F, .max_tokens = T, .recipe = "flow" };
    config.router = (fp8flow_router_config){
        .num_experts = E, .top_k = 2, .gate_scale = 1, .num_groups = 1, .top_groups = 1, .sequence_length = T
    };
    fp8flow_moe_weights weights = { .router = router, .fc1 = fc1, .fc2 = fc2 };
    fp8flow_moe_gradients gradients = { .router = d_router, .fc1 = d_fc1, .fc2 = d_fc2 }; /* added to */
    fp8flow_tensor tx = { .rows = T, .cols = H, .stride = H, .dtype = FP8FLOW_BF16, .data = x }, ty = tx, tdy = tx,
                   tdx = tx;
    ty.data = y, tdy.data = dy, tdx.data = dx;

    TRY(fp8flow_context_create(&(fp8flow_context_options){ .backend = FP8FLOW_CPU }, &context));
    TRY(fp8flow_moe_create(context, comm, &config, &moe));
    TRY(fp8flow_moe_set_weights(moe, &weights)); /* quantises them: after every optimiser step */
    TRY(fp8flow_moe_forward(moe, &tx, &ty));
    TRY(fp8flow_moe_backward(moe, &tx, &tdy, 1.0f, &gradients, &tdx));
    TRY(fp8flow_moe_get_report(moe, &report));
    printf("%lld casts, %lld bytes kept, y[0] = 0x%04x, dx[0] = 0x%04x\n", (long long)report.explicit_casts,
           (long long)report.saved_bytes, y[0], dx[0]);
done:
    fp8flow_moe_destroy(moe);
    fp8flow_context_destroy(context);
    return status;
}

/* Values of both signs between 2^(exponent - 1) and 2^exponent. */
static void fill(uint16_t *values, int count, int exponent)
{
    for (uint32_t i = 0, state = 1; i < (uint32_t)count; i++, state = state * 1664525u + 1013904223u)
        values[i] = (uint16_t)((uint32_t)(126 + exponent) << 7 | (state >> 16 & 0x807F));
}

int main(void)
{
    fill(x, T * H, 0), fill(dy, T * H, -10), fill(fc1, FC1, -3), fill(fc2, FC2, -3);
    for (int i = 0; i < E * H; i++) router[i] = (float)(i * 37 % 101 - 50) / 500;
    fp8flow_status status = fp8flow_run_ranks(1, run, NULL);
    if (status != FP8FLOW_OK) fprintf(stderr, "%s: %s\n", fp8flow_status_name(status), fp8flow_last_error());
    return status != FP8FLOW_OK;
}
