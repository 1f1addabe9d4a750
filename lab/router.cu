/* router.cu - the router's operators at the shapes of published models and of the layer bench: equal to the reference,
 * and time.
 *
 * Predictions: 47104 tokens of 64 experts, k 1: the choice 7 us (600 instructions of a warp for 4 tokens; 24 MB are
 * 6 us), the totals 2 us (1472 blocks of 32 tokens, one round of loads), with the second launch 10 us. 33024 tokens of
 * 8 experts: 3 us, 2 us, together 6 us. 8192 tokens of 256 experts, sigmoid, groups, k 8: 11 us (1150 instructions of
 * a warp for each token), 1.5 us, together 13 us. The gradient 6 us at 4096 x 256: FP64, but three passes over L1.
 */
#include <cstring>

#include "lab.cuh"
#include "ops/router.cu"

struct shape {
    const char *name;
    int64_t tokens, experts, top_k, groups, top_groups, sequence_length;
    fp8flow_score score;
};

/* Everything that the operators read and write, on the device or on the host. */
struct arrays {
    float *logits, *gate, *scores, *log_sum_exp, *score_sums, *bias, *dlogits;
    int32_t *expert, *counts;
    int64_t *total_counts;
    double *losses;
};

template <class Allocate> static arrays make_arrays(const shape &s, Allocate allocate)
{
    int64_t scores = s.tokens * s.experts, chosen = s.tokens * s.top_k;
    int64_t figures = s.tokens / s.sequence_length * s.experts;
    arrays a;
    a.logits = (float *)allocate(scores * 4);
    a.scores = (float *)allocate(scores * 4);
    a.dlogits = (float *)allocate(scores * 4);
    a.gate = (float *)allocate(chosen * 4);
    a.expert = (int32_t *)allocate(chosen * 4);
    a.log_sum_exp = (float *)allocate(s.tokens * 4);
    a.counts = (int32_t *)allocate(figures * 4);
    a.score_sums = (float *)allocate(figures * 4);
    a.bias = (float *)allocate(s.experts * 4);
    a.total_counts = (int64_t *)allocate(s.experts * 8);
    a.losses = (double *)allocate(3 * 8);
    return a;
}

static fp8flow_router_config config_of(const shape &s)
{
    fp8flow_router_config config = {};
    config.num_experts = s.experts;
    config.top_k = s.top_k;
    config.score = s.score;
    config.gate_rule = FP8FLOW_GATE_NORMALIZED;
    config.gate_scale = 1.0f;
    config.num_groups = s.groups;
    config.top_groups = s.top_groups;
    config.group_score = FP8FLOW_GROUP_TOP2_SUM;
    config.sequence_length = s.sequence_length;
    config.aux_coef = config.sequence_coef = 1e-3f;
    return config;
}

static fp8flow_router_args router_args(const fp8flow_router_config *config, const fp8flow_tensor *logits,
                                       const arrays &a)
{
    return { config, logits, a.bias, a.expert, a.gate, a.scores, a.log_sum_exp, a.counts, a.score_sums };
}

static void compare(const char *name, const void *device, const void *expected, int64_t count)
{
    std::vector<uint32_t> values = lab_download((const uint32_t *)device, count);
    for (int64_t i = 0; i < count; i++)
        if (values[i] != ((const uint32_t *)expected)[i]) {
            std::printf("%s[%lld] is %08x, expected %08x\n", name, (long long)i, values[i],
                        ((const uint32_t *)expected)[i]);
            std::exit(1);
        }
}

/* Logits for the device and for the host, the reference on the host, all outputs compared. */
static void check(const shape &s, fp8flow_context *c, const arrays &device, fp8flow_tensor logits)
{
    arrays host = make_arrays(s, [](size_t bytes) { return std::calloc(bytes, 1); });
    fp8flow_router_config config = config_of(s);
    LAB_TRY(cudaMemcpy(host.logits, device.logits, s.tokens * s.experts * 4, cudaMemcpyDeviceToHost));
    fp8flow_router_args on_device = router_args(&config, &logits, device);
    f8_cuda_router(c, &on_device);
    LAB_TRY(cudaDeviceSynchronize());
    logits.data = host.logits;
    fp8flow_router_args on_host = router_args(&config, &logits, host);
    f8_ref_router(c, &on_host);
    compare("expert", device.expert, host.expert, s.tokens * s.top_k);
    compare("gate", device.gate, host.gate, s.tokens * s.top_k);
    compare("scores", device.scores, host.scores, s.tokens * s.experts);
    compare("log_sum_exp", device.log_sum_exp, host.log_sum_exp, s.tokens);
    compare("counts", device.counts, host.counts, s.tokens / s.sequence_length * s.experts);
    compare("score_sums", device.score_sums, host.score_sums, s.tokens / s.sequence_length * s.experts);
}

__global__ static void widen_kernel(const uint16_t *from, float *to, int64_t count)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = __uint_as_float((uint32_t)from[i] << 16);
}

/* The two kernels of the router alone: which of them misses its prediction. */
static void time_kernels(const shape &s, fp8flow_context *c, const fp8flow_router_args &a)
{
    router_job job = job_of(c, &a);
    double choose = lab_time([&](cudaStream_t stream) {
        c->stream = stream;
        launch_choose_for(c, &job);
    });
    lab_report("  choice alone", s.name, 8.0 * (double)(s.tokens * s.experts), choose);
    double totals = lab_time([&](cudaStream_t stream) {
        c->stream = stream;
        launch_totals(c, job); /* all shapes have sequences of more than a block */
    });
    c->stream = NULL; /* lab_time has destroyed it */
    lab_report("  totals alone", s.name, (double)(s.tokens * s.experts) / 4.0, totals);
}

static void time_shape(const shape &s, fp8flow_context *c)
{
    fp8flow_router_config config = config_of(s);
    int64_t scores = s.tokens * s.experts, chosen = s.tokens * s.top_k;
    arrays a = make_arrays(s, [](size_t bytes) { return (void *)lab_alloc<char>(bytes); });
    widen_kernel<<<(unsigned)((scores + 255) / 256), 256>>>(lab_normal_bf16(s.tokens, s.experts, 0, 1), a.logits,
                                                            scores);
    LAB_TRY(cudaMemset(a.bias, 0, s.experts * 4));
    LAB_TRY(cudaMemset(a.total_counts, 0, s.experts * 8));
    fp8flow_tensor logits = {};
    logits.dtype = FP8FLOW_F32;
    logits.data = a.logits;
    logits.rows = s.tokens;
    logits.cols = logits.stride = s.experts;
    check(s, c, a, logits);
    fp8flow_router_args router = router_args(&config, &logits, a);
    fp8flow_router_load load = { s.tokens, a.total_counts, a.score_sums };
    fp8flow_router_backward_args backward = { &config,  s.tokens, a.logits, a.scores, a.log_sum_exp, a.expert,
                                              a.counts, &load,    a.gate,   1.0f,     a.dlogits };
    fp8flow_router_loss_args loss = { &config, s.tokens, a.counts, a.score_sums, a.log_sum_exp, &load, a.losses };
    fp8flow_router_bias_update_args bias = { s.experts, a.total_counts, 1e-3f, a.bias };
    double logit_bytes = 4.0 * (double)scores, choice_bytes = 8.0 * (double)chosen;
    auto time_on = [&](auto launch) {
        double microseconds = lab_time([&](cudaStream_t stream) {
            c->stream = stream;
            launch();
        });
        c->stream = NULL; /* lab_time has destroyed it, and the next check launches on it */
        return microseconds;
    };
    lab_report("router", s.name, 2 * logit_bytes + choice_bytes, time_on([&] { f8_cuda_router(c, &router); }));
    time_kernels(s, c, router);
    lab_report("router_backward", s.name, (s.score == FP8FLOW_SCORE_SIGMOID ? 3 : 2) * logit_bytes + choice_bytes,
               time_on([&] { f8_cuda_router_backward(c, &backward); }));
    lab_report("router_loss", s.name, 0.0, time_on([&] { f8_cuda_router_loss(c, &loss); }));
    lab_report("router_bias_update", s.name, 0.0, time_on([&] { f8_cuda_router_bias_update(c, &bias); }));
}

int main()
{
    const shape shapes[] = {
        /* goals: 12, 8 and 15 us */
        { "47104 x 64, k 1", 47104, 64, 1, 1, 1, 47104, FP8FLOW_SCORE_SOFTMAX },
        { "33024 x 8, k 1", 33024, 8, 1, 1, 1, 33024, FP8FLOW_SCORE_SOFTMAX },
        { "8192 x 256, k 8, 4 of 8", 8192, 256, 8, 8, 4, 8192, FP8FLOW_SCORE_SIGMOID },
        { "64 experts, k 6", 4096, 64, 6, 1, 1, 4096, FP8FLOW_SCORE_SOFTMAX },
        { "256, k 8, 4 of 8 groups", 4096, 256, 8, 8, 4, 4096, FP8FLOW_SCORE_SIGMOID },
        { "256, sequences of 512", 4096, 256, 8, 8, 4, 512, FP8FLOW_SCORE_SIGMOID },
        { "128 experts, k 8", 4096, 128, 8, 1, 1, 4096, FP8FLOW_SCORE_SOFTMAX },
        { "128, 32768 tokens", 32768, 128, 8, 1, 1, 4096, FP8FLOW_SCORE_SOFTMAX },
    };
    std::setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* what a crash would take with it */
    fp8flow_context c = {};
    c.num_threads = 1;
    c.scratch = lab_alloc<char>(F8_CUDA_SCRATCH_BYTES);
    for (const shape &s : shapes) time_shape(s, &c);
    return 0;
}
