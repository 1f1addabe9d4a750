/* router_backward.cu - CUDA side of router_backward. Contract: fp8flow_ops.h. CPU side: router_backward.c, where the
 * terms of the gradient are explained.
 *
 * 8 to 32 lanes of a warp have a token, lane l of L the experts l, l + L, ... The gradient under construction, in FP64
 * as on the CPU, is in shared memory: the chosen experts are few and anywhere. Lanes write experts of their own but in
 * the step of the chosen ones, where a lane has a slot. An expert id out of range is no expert. FP64 divisions by what
 * a token has once are multiplications with the reciprocal. Traffic per score: 4 to 8 bytes read, 4 written.
 */
#include "ops/launch.cuh"
#include "ops/router.h"
#include "ops/router_lanes.cuh"

enum { TOKEN_WARPS = 8 };

/* What the kernel reads and writes. */
struct backward_job {
    fp8flow_score score;
    bool is_normalized; /* gates */
    int32_t num_experts, top_k;
    int32_t sequence_length, num_tokens;
    const float *logits, *scores, *log_sum_exp, *dgate;
    const int32_t *expert, *counts;
    const int64_t *total_counts;
    float *dlogits;
    double gate_scale;
    double aux, sequence, z; /* loss weight of one token of total_counts, one of counts, of log_sum_exp; 0: off */
};

/* The rows of one token, and the gradients of its scores and of its logits past the scores. */
struct token_gradient {
    const float *logits, *scores, *dgate;
    const int32_t *expert;
    double *dscore, *dlogit;
};

/* Shared memory of a token: two lines, and what puts the tokens of a warp into different banks. */
template <int LANES> __host__ __device__ static inline int64_t token_doubles(int64_t num_experts)
{
    return 2 * num_experts + LANES % F8_WARP;
}

/* visit(slot, expert) for the lane's slots that name an expert. */
template <int LANES, class Visit>
__device__ static inline void each_choice(const backward_job &job, const token_gradient &t, Visit visit)
{
    for (int slot = token_lane<LANES>(); slot < job.top_k; slot += LANES) {
        int e = t.expert[slot];
        if ((unsigned)e < (unsigned)job.num_experts) visit(slot, e);
    }
}

/* visit(expert) for the lane's experts; what is kept of them is in memory. */
template <int LANES, class Visit> __device__ static inline void each_score(const backward_job &job, Visit visit)
{
#pragma unroll 4
    for (int e = token_lane<LANES>(); e < job.num_experts; e += LANES) visit(e);
}

/* dscore from the balance losses: linear in the normalised scores with one weight per expert. */
template <int LANES>
__device__ static inline void set_balance(const backward_job &job, int token, const token_gradient &t)
{
    const int32_t *counts = job.counts + (int64_t)(token / job.sequence_length) * job.num_experts;
    each_score<LANES>(job, [&](int e) {
        double weight = job.aux != 0.0 ? job.aux * (double)__ldg(job.total_counts + e) : 0.0;
        if (job.sequence != 0.0) weight += job.sequence * (double)__ldg(counts + e);
        t.dscore[e] = weight;
    });
    if (job.score != FP8FLOW_SCORE_SIGMOID || (job.aux == 0.0 && job.sequence == 0.0)) return;
    double sum = 0.0, dot = 0.0;
    each_score<LANES>(job, [&](int e) {
        double score = (double)__ldg(t.scores + e);
        sum += score;
        dot += t.dscore[e] * score;
    });
    double inverse = 1.0 / (f8_warp_sum<LANES>(sum) + 1e-20), mean = f8_warp_sum<LANES>(dot) * inverse;
    each_score<LANES>(job, [&](int e) { t.dscore[e] = (t.dscore[e] - mean) * inverse; });
}

/* dlogit from the z loss: factor * softmax over all logits, normalised by its own sum as on the CPU. */
template <int LANES>
__device__ static inline void set_softmax(const backward_job &job, double factor, const token_gradient &t)
{
    if (job.z == 0.0 || job.score != FP8FLOW_SCORE_SIGMOID) {
        each_score<LANES>(
            job, [&](int e) { t.dlogit[e] = job.z == 0.0 ? 0.0 : factor * (double)__ldg(t.scores + e); });
        return;
    }
    float largest = -INFINITY;
    each_score<LANES>(job, [&](int e) { largest = fmaxf(largest, __ldg(t.logits + e)); });
    largest = f8_warp_max<LANES>(largest);
    double sum = 0.0;
    each_score<LANES>(job, [&](int e) {
        t.dlogit[e] = (double)f8_expf(__ldg(t.logits + e) - largest);
        sum += t.dlogit[e];
    });
    factor /= f8_warp_sum<LANES>(sum);
    each_score<LANES>(job, [&](int e) { t.dlogit[e] *= factor; });
}

/* Gates that are softmax over the chosen logits: q_i (g_i - sum_j g_j q_j). */
template <int LANES>
__device__ static inline void add_chosen_softmax(const backward_job &job, const token_gradient &t)
{
    float largest = -INFINITY, sum = 0.0f;
    double dot = 0.0;
    each_choice<LANES>(job, t, [&](int, int e) { largest = fmaxf(largest, t.logits[e]); });
    largest = f8_warp_max<LANES>(largest);
    each_choice<LANES>(job, t, [&](int slot, int e) {
        float q = f8_expf(t.logits[e] - largest);
        sum += q;
        dot += (double)t.dgate[slot] * (double)q;
    });
    double inverse = 1.0 / (double)f8_warp_sum<LANES>(sum), mean = f8_warp_sum<LANES>(dot) * inverse;
    each_choice<LANES>(job, t, [&](int slot, int e) {
        double q = (double)f8_expf(t.logits[e] - largest) * inverse;
        t.dlogit[e] += job.gate_scale * q * ((double)t.dgate[slot] - mean);
    });
}

/* Gates that are scores, plain or divided by D = their sum: (g_i - sum_j g_j s_j / D) / D. */
template <int LANES>
__device__ static inline void add_gates(const backward_job &job, const token_gradient &t)
{
    double inverse = 1.0, mean = 0.0;
    if (job.is_normalized) {
        double sum = 0.0, dot = 0.0;
        each_choice<LANES>(job, t, [&](int slot, int e) {
            sum += (double)t.scores[e];
            dot += (double)t.dgate[slot] * (double)t.scores[e];
        });
        inverse = 1.0 / (f8_warp_sum<LANES>(sum) + (job.score == FP8FLOW_SCORE_SIGMOID ? 1e-20 : 0.0));
        mean = f8_warp_sum<LANES>(dot) * inverse;
    }
    each_choice<LANES>(job, t, [&](int slot, int e) {
        t.dscore[e] += job.gate_scale * ((double)t.dgate[slot] - mean) * inverse;
    });
}

/* 1 - sigmoid(logit); sigmoid(-logit) where the difference would cancel. */
__device__ static inline double complement(float score, float logit)
{
    return score < 0.875f ? 1.0 - (double)score : (double)f8_sigmoid(-logit);
}

/* dlogits from the gradient of the scores. */
template <int LANES>
__device__ static inline void through_scores(const backward_job &job, const token_gradient &t, float *dlogits)
{
    if (job.score == FP8FLOW_SCORE_SIGMOID) {
        each_score<LANES>(job, [&](int e) {
            float score = __ldg(t.scores + e);
            double slope = (double)score * complement(score, __ldg(t.logits + e));
            dlogits[e] = (float)(t.dlogit[e] + t.dscore[e] * slope);
        });
        return;
    }
    double mean = 0.0;
    each_score<LANES>(job, [&](int e) { mean += t.dscore[e] * (double)__ldg(t.scores + e); });
    mean = f8_warp_sum<LANES>(mean);
    each_score<LANES>(job, [&](int e) {
        dlogits[e] = (float)(t.dlogit[e] + (double)__ldg(t.scores + e) * (t.dscore[e] - mean));
    });
}

template <int LANES>
__global__ static void __launch_bounds__(TOKEN_WARPS * F8_WARP) router_backward_kernel(backward_job job)
{
    extern __shared__ double gradients[];
    int slot = (int)threadIdx.x / LANES;
    int64_t token = (int64_t)blockIdx.x * (blockDim.x / LANES) + slot;
    if (token >= job.num_tokens) return; /* lanes of a token reduce among themselves: others may be gone */
    token_gradient t;
    t.logits = job.logits + token * job.num_experts;
    t.scores = job.scores + token * job.num_experts;
    t.dgate = job.dgate + token * job.top_k;
    t.expert = job.expert + token * job.top_k;
    t.dscore = gradients + slot * token_doubles<LANES>(job.num_experts);
    t.dlogit = t.dscore + job.num_experts;
    set_balance<LANES>(job, (int)token, t);
    set_softmax<LANES>(job, job.z != 0.0 ? job.z * (double)__ldg(job.log_sum_exp + token) : 0.0, t);
    __syncwarp();
    if (job.score == FP8FLOW_SCORE_SOFTMAX_TOPK) add_chosen_softmax<LANES>(job, t);
    else add_gates<LANES>(job, t);
    __syncwarp();
    through_scores<LANES>(job, t, job.dlogits + token * job.num_experts);
}

static backward_job job_of(const fp8flow_router_backward_args *a)
{
    const fp8flow_router_config *config = a->config;
    backward_job job = {};
    job.score = config->score;
    job.is_normalized = config->gate_rule == FP8FLOW_GATE_NORMALIZED;
    job.num_experts = (int32_t)config->num_experts;
    job.top_k = (int32_t)config->top_k;
    job.sequence_length = (int32_t)config->sequence_length;
    job.num_tokens = (int32_t)a->num_tokens;
    job.logits = a->logits;
    job.scores = a->scores;
    job.log_sum_exp = a->log_sum_exp;
    job.dgate = a->dgate;
    job.expert = a->expert;
    job.counts = a->counts;
    job.dlogits = a->dlogits;
    job.gate_scale = (double)config->gate_scale;
    if (config->aux_coef == 0.0f && config->sequence_coef == 0.0f && config->z_coef == 0.0f) return job;
    double total = (double)a->load->total_tokens, scale = (double)a->loss_scale;
    double common = scale * (double)config->num_experts / (total * (double)config->top_k);
    job.total_counts = a->load->total_counts;
    job.aux = common * (double)config->aux_coef / total;
    job.sequence = common * (double)config->sequence_coef / (double)config->sequence_length;
    job.z = 2.0 * scale * (double)config->z_coef / total;
    return job;
}

template <int LANES> static void launch_backward(fp8flow_context *c, const fp8flow_router_backward_args *a)
{
    int warp_bytes = (int)(F8_WARP / LANES * token_doubles<LANES>(a->config->num_experts) * sizeof(double));
    int warps = TOKEN_WARPS * warp_bytes <= F8_PLAIN_SHARED_BYTES ? TOKEN_WARPS : 1, bytes = warps * warp_bytes;
    unsigned grid = f8_grid(a->num_tokens, warps * (F8_WARP / LANES));
    f8_allow_shared(router_backward_kernel<LANES>, bytes);
    router_backward_kernel<LANES><<<grid, warps * F8_WARP, bytes, f8_stream(c)>>>(job_of(a));
}

extern "C" fp8flow_status f8_cuda_router_backward(fp8flow_context *c, const fp8flow_router_backward_args *a)
{
    if (a->num_tokens == 0) return FP8FLOW_OK;
    if (a->config->num_experts <= 64) launch_backward<8>(c, a);
    else if (a->config->num_experts <= 128) launch_backward<16>(c, a);
    else launch_backward<32>(c, a);
    return f8_launched("router_backward");
}
