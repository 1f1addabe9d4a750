/* router.cu - CUDA side of router. Contract: fp8flow_ops.h. CPU side: router.c, arithmetic: router.h.
 *
 * Two kernels. The first has a warp for each token: lane l holds the experts l, l + 32, ..., which is the order of
 * f8_sum32, in registers up to 512 experts and in shared memory beyond. The k best are found in k rounds, each a
 * maximum over the warp, so that ties and order are those of f8_choose_top.
 *
 * The second adds up scores over the tokens of a sequence. The contract fixes the order, so that an expert's sum is one
 * chain of additions of 4 clocks each: 9 us for 4096 tokens, whatever the number of experts. A block has 8 experts (a
 * sector of memory) of a sequence; one warp does nothing but add from shared memory, eight bring the scores there a
 * tile ahead. More experts in a block would make its divisions (sigmoid scores are normalised here) the longer chain.
 *
 * Traffic per score: 4 bytes of logits, 4 written, 4 read again, mostly from L2.
 */
#include "ops/launch.cuh"
#include "ops/router.h"
#include "ops/warp.cuh"

enum { CHOOSE_WARPS = 8 }; /* tokens of a block */

/* Experts and tokens that are added up at a time; threads that load them, tokens of a tile for each. */
enum { STRIP = 8, TILE = 256, LOADERS = 256, STEP = LOADERS / STRIP, HELD = TILE / STEP };

/* What the kernels read and write; `config` is a copy. */
struct router_job {
    fp8flow_router_config config;
    fp8flow_tensor logits;
    const float *bias;
    int32_t *expert;
    float *gate, *scores, *log_sum_exp;
    int32_t *counts;
    float *score_sums, *divisor; /* divisor: [T] what normalises the scores of a token; NULL: they are normalised */
};

/* ---- A token's figures, spread over the warp ---- */

/* One figure per expert, expert l + 32 j in lane l: in registers, or in shared memory (NUM = 0). */
template <class T, int NUM> struct lane_line {
    T item[NUM];
    __device__ explicit lane_line(T *) {}
    __device__ T &at(int j) { return item[j]; }
};

template <class T> struct lane_line<T, 0> {
    T *item;
    __device__ explicit lane_line(T *line) : item(line + f8_lane()) {}
    __device__ T &at(int j) { return item[j * F8_WARP]; }
};

/* visit(j, expert) for the lane's experts in ascending order. Registers have no number, so that j must be a constant:
 * all NUM items are visited, and numbers from num_experts on are the visitor's to mask. */
template <int NUM, class Visit> __device__ static inline void each_expert(int num_experts, Visit visit)
{
    if (NUM > 0) {
#pragma unroll
        for (int j = 0; j < NUM; j++) visit(j, f8_lane() + j * F8_WARP);
    } else {
        for (int j = 0; j * F8_WARP < num_experts; j++) visit(j, f8_lane() + j * F8_WARP);
    }
}

/* Shared memory of one warp. */
struct token_memory {
    float *logit, *value; /* [E], whole warps; value: what gates are made of */
    uint32_t *key, *group_key;
    int32_t *chosen; /* [k] */
    float *weight;   /* [k] */
};

/* Experts, rounded up to whole warps. */
__host__ __device__ static inline int padded_experts(const fp8flow_router_config &config)
{
    return (int)(config.num_experts + F8_WARP - 1) / F8_WARP * F8_WARP;
}

static inline int64_t token_words(const fp8flow_router_config &config)
{
    return 3 * padded_experts(config) + config.num_groups + 2 * config.top_k;
}

__device__ static inline token_memory memory_at(uint32_t *words, const fp8flow_router_config &config)
{
    int experts = padded_experts(config);
    token_memory m;
    m.logit = (float *)words;
    m.value = m.logit + experts;
    m.key = (uint32_t *)(m.value + experts);
    m.group_key = m.key + experts;
    m.chosen = (int32_t *)(m.group_key + config.num_groups);
    m.weight = (float *)(m.chosen + config.top_k);
    return m;
}

/* ---- Scores ---- */

/* `score`: exp(logit - largest); log_sum_exp of the token; returns the sum. */
template <int NUM>
__device__ static inline float exponentials(int num_experts, lane_line<float, NUM> &logit,
                                            lane_line<float, NUM> &score, float *log_sum_exp)
{
    float largest = -INFINITY, sum = 0.0f;
    each_expert<NUM>(num_experts, [&](int j, int) { largest = fmaxf(largest, logit.at(j)); });
    largest = f8_warp_max(largest);
    each_expert<NUM>(num_experts, [&](int j, int e) {
        float x = f8_expf(logit.at(j) - largest);
        score.at(j) = x;
        sum += e < num_experts ? x : 0.0f;
    });
    sum = f8_warp_sum(sum);
    float result = f8_canonical(largest + f8_logf(sum));
    if (f8_lane() == 0) *log_sum_exp = result;
    return sum;
}

/* `score`: sigmoid(logit). `divisor`: what normalises them in sums over tokens. */
template <int NUM>
__device__ static inline void sigmoids(int num_experts, lane_line<float, NUM> &logit, lane_line<float, NUM> &score,
                                       float *divisor)
{
    float sum = 0.0f;
    each_expert<NUM>(num_experts, [&](int j, int e) {
        float x = f8_canonical(f8_sigmoid(logit.at(j)));
        score.at(j) = x;
        sum += e < num_experts ? x : 0.0f;
    });
    sum = f8_warp_sum(sum);
    if (f8_lane() == 0) *divisor = f8_score_divisor(FP8FLOW_SCORE_SIGMOID, sum);
}

/* Writes what a token has per expert, and leaves in `base` what gates and choice start from. */
template <int NUM>
__device__ static inline void write_scores(const router_job &job, int64_t token, lane_line<float, NUM> &logit,
                                           lane_line<float, NUM> &base)
{
    int num_experts = (int)job.config.num_experts;
    const float *row = (const float *)job.logits.data + token * job.logits.stride;
    float *scores = job.scores + token * num_experts;
    each_expert<NUM>(num_experts, [&](int j, int e) { logit.at(j) = e < num_experts ? __ldcs(row + e) : -INFINITY; });
    float sum = exponentials<NUM>(num_experts, logit, base, job.log_sum_exp + token);
    if (job.config.score == FP8FLOW_SCORE_SIGMOID) sigmoids<NUM>(num_experts, logit, base, job.divisor + token);
    else each_expert<NUM>(num_experts, [&](int j, int) { base.at(j) = f8_canonical(base.at(j) / sum); });
    each_expert<NUM>(num_experts, [&](int j, int e) {
        if (e < num_experts) scores[e] = base.at(j);
    });
    if (job.config.score == FP8FLOW_SCORE_SOFTMAX_TOPK)
        each_expert<NUM>(num_experts, [&](int j, int) { base.at(j) = logit.at(j); });
}

/* ---- Choice ---- */

/* A score with this key: f8_choice_key backwards. */
__device__ static inline float key_score(uint32_t key)
{
    if (key == 1) return f8_from_bits(0x7FC00000u);
    return f8_from_bits(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

/* Key of the score of a group with these keys. Lanes read the keys of neighbouring groups at the same time: each
 * starts at another one, else all would wait for one bank. */
__device__ static inline uint32_t group_key(fp8flow_group_score rule, const uint32_t *key, int size)
{
    uint32_t best = 0, second = 0;
    for (int i = 0, at = f8_lane() % size; i < size; i++, at = at + 1 == size ? 0 : at + 1) {
        uint32_t candidate = key[at];
        second = max(second, min(best, candidate));
        best = max(best, candidate);
    }
    if (rule == FP8FLOW_GROUP_MAX || size == 1) return best;
    return f8_choice_key(key_score(best) + key_score(second));
}

/* How many groups come before `group`. */
__device__ static inline int group_rank(const uint32_t *keys, int num_groups, int group)
{
    uint32_t key = keys[group];
    int rank = 0;
    for (int i = 0; i < num_groups; i++) rank += keys[i] > key || (keys[i] == key && i < group);
    return rank;
}

/* Set the keys of experts outside the best top_groups groups to 0; a lane has whole groups. */
__device__ static inline void limit_groups(const fp8flow_router_config &config, const token_memory &m)
{
    int num_groups = (int)config.num_groups, size = (int)config.num_experts / num_groups;
    for (int g = f8_lane(); g < num_groups; g += F8_WARP)
        m.group_key[g] = group_key(config.group_score, m.key + g * size, size);
    __syncwarp();
    for (int g = f8_lane(); g < num_groups; g += F8_WARP) {
        if (group_rank(m.group_key, num_groups, g) < config.top_groups) continue;
        for (int i = 0, at = f8_lane() % size; i < size; i++, at = at + 1 == size ? 0 : at + 1)
            m.key[g * size + at] = 0;
    }
}

/* Keys of the experts that may be chosen; 0 for the others. */
template <int NUM>
__device__ static inline void write_keys(const router_job &job, const token_memory &m, lane_line<float, NUM> &base,
                                         lane_line<uint32_t, NUM> &key)
{
    int num_experts = (int)job.config.num_experts;
    each_expert<NUM>(num_experts, [&](int j, int e) {
        float score = base.at(j);
        if (job.bias && e < num_experts) score += __ldg(job.bias + e);
        key.at(j) = e < num_experts ? f8_choice_key(score) : 0;
    });
    if (job.config.top_groups == job.config.num_groups) return;
    each_expert<NUM>(num_experts, [&](int j, int e) {
        if (e < num_experts) m.key[e] = key.at(j);
    });
    __syncwarp();
    limit_groups(job.config, m);
    __syncwarp();
    each_expert<NUM>(num_experts, [&](int j, int e) {
        if (e < num_experts) key.at(j) = m.key[e];
    });
}

/* The top_k largest keys in descending order, ties in ascending order of the expert. */
template <int NUM>
__device__ static inline void choose_top(const fp8flow_router_config &config, lane_line<uint32_t, NUM> &key,
                                         int32_t *chosen)
{
    int num_experts = (int)config.num_experts, top_k = (int)config.top_k;
    for (int slot = 0; slot < top_k; slot++) {
        uint32_t best = 0;
        unsigned winner = UINT32_MAX;
        each_expert<NUM>(num_experts, [&](int j, int) { best = max(best, key.at(j)); });
        best = __reduce_max_sync(F8_ALL_LANES, best);
        each_expert<NUM>(num_experts, [&](int j, int e) {
            if (key.at(j) == best) winner = min(winner, (unsigned)e);
        });
        winner = __reduce_min_sync(F8_ALL_LANES, winner);
        each_expert<NUM>(num_experts, [&](int j, int e) {
            if ((unsigned)e == winner) key.at(j) = 0;
        });
        if (f8_lane() == 0) chosen[slot] = (int32_t)winner;
    }
}

/* ---- Gates ---- */

/* f8_sum32 over the slots; a lane has the slots l, l + 32, ... */
__device__ static inline float slot_sum(const float *weight, int top_k)
{
    float sum = 0.0f;
    for (int slot = f8_lane(); slot < top_k; slot += F8_WARP) sum += weight[slot];
    return f8_warp_sum(sum);
}

/* f8_exponentials over the slots. */
__device__ static inline float slot_exponentials(float *weight, int top_k)
{
    float largest = -INFINITY;
    for (int slot = f8_lane(); slot < top_k; slot += F8_WARP) largest = fmaxf(largest, weight[slot]);
    largest = f8_warp_max(largest);
    for (int slot = f8_lane(); slot < top_k; slot += F8_WARP) weight[slot] = f8_expf(weight[slot] - largest);
    return slot_sum(weight, top_k);
}

__device__ static inline void write_choice(const router_job &job, int64_t token, const token_memory &m)
{
    const fp8flow_router_config &config = job.config;
    int top_k = (int)config.top_k, sequence = (int)token / (int)config.sequence_length;
    int32_t *counts = job.counts + sequence * config.num_experts;
    float divisor = 1.0f;
    for (int slot = f8_lane(); slot < top_k; slot += F8_WARP) m.weight[slot] = m.value[m.chosen[slot]];
    if (config.score == FP8FLOW_SCORE_SOFTMAX_TOPK) divisor = slot_exponentials(m.weight, top_k);
    else if (config.gate_rule == FP8FLOW_GATE_NORMALIZED)
        divisor = f8_score_divisor(config.score, slot_sum(m.weight, top_k));
    for (int slot = f8_lane(); slot < top_k; slot += F8_WARP) {
        job.expert[token * top_k + slot] = m.chosen[slot];
        job.gate[token * top_k + slot] = f8_canonical(m.weight[slot] / divisor * config.gate_scale);
        atomicAdd(counts + m.chosen[slot], 1);
    }
}

template <int NUM>
__global__ static void __launch_bounds__(CHOOSE_WARPS * F8_WARP) router_choose_kernel(router_job job, int num_words)
{
    extern __shared__ uint32_t words[];
    int64_t token = (int64_t)blockIdx.x * (blockDim.x / F8_WARP) + threadIdx.x / F8_WARP;
    if (token >= job.logits.rows) return;
    token_memory m = memory_at(words + threadIdx.x / F8_WARP * num_words, job.config);
    lane_line<float, NUM> logit(m.logit), base(m.value);
    lane_line<uint32_t, NUM> key(m.key);
    int num_experts = (int)job.config.num_experts;
    write_scores<NUM>(job, token, logit, base);
    each_expert<NUM>(num_experts, [&](int j, int e) {
        if (e < num_experts) m.value[e] = base.at(j);
    });
    write_keys<NUM>(job, m, base, key);
    choose_top<NUM>(job.config, key, m.chosen);
    __syncwarp();
    write_choice(job, token, m);
}

/* ---- Sums over a sequence ---- */

/* Blocks of a sequence. */
__host__ __device__ static inline int sum_strips(const fp8flow_router_config &config)
{
    return ((int)config.num_experts + STRIP - 1) / STRIP;
}

/* A loader's part of a tile: one expert's scores of every STEP-th token. */
struct held_scores {
    float score[HELD], divisor[HELD];
};

/* Tokens token, token + STEP, ... before `end`; +0 behind it, which changes no sum that started at +0. */
__device__ static inline held_scores load_scores(const router_job &job, int64_t token, int64_t end, int expert)
{
    held_scores held;
#pragma unroll
    for (int i = 0; i < HELD; i++, token += STEP) {
        bool inside = token < end && expert < job.config.num_experts;
        held.score[i] = inside ? __ldg(job.scores + token * job.config.num_experts + expert) : 0.0f;
        held.divisor[i] = inside && job.divisor ? __ldg(job.divisor + token) : 1.0f;
    }
    return held;
}

__device__ static inline void store_scores(const router_job &job, const held_scores &held, float *tile)
{
#pragma unroll
    for (int i = 0; i < HELD; i++)
        tile[threadIdx.x + i * LOADERS] = job.divisor ? held.score[i] / held.divisor[i] : held.score[i];
}

/* The chain of additions. */
__device__ static inline float add_tile(const float *tile, float sum)
{
#pragma unroll
    for (int i = 0; i < TILE; i++) sum += tile[i * STRIP];
    return sum;
}

/* The loaders write a tile while the last warp adds the one before, with their next tile on its way to registers. */
__global__ static void __launch_bounds__(LOADERS + F8_WARP) router_sums_kernel(router_job job)
{
    __shared__ float tile[2][TILE * STRIP];
    int strips = sum_strips(job.config), thread = (int)threadIdx.x, column = thread % STRIP;
    int expert = (int)(blockIdx.x % strips) * STRIP + column, buffer = 0;
    int64_t sequence = blockIdx.x / strips, start = sequence * job.config.sequence_length;
    int64_t end = start + job.config.sequence_length;
    float sum = 0.0f;
    held_scores held;
    if (thread < LOADERS) held = load_scores(job, start + thread / STRIP, end, expert);
    for (; start < end; start += TILE, buffer ^= 1) {
        if (thread < LOADERS) {
            held_scores next = load_scores(job, start + TILE + thread / STRIP, end, expert);
            store_scores(job, held, tile[buffer]);
            held = next;
        }
        __syncthreads();
        if (thread >= LOADERS) sum = add_tile(tile[buffer] + column, sum);
    }
    if (thread >= LOADERS && thread < LOADERS + STRIP && expert < job.config.num_experts)
        job.score_sums[sequence * job.config.num_experts + expert] = f8_canonical(sum);
}

/* ---- Launch ---- */

template <int NUM> static void launch_choose(fp8flow_context *c, const router_job &job)
{
    int warps = NUM > 0 ? CHOOSE_WARPS : 1;
    int64_t num_words = token_words(job.config);
    int bytes = (int)(warps * num_words * sizeof(uint32_t));
    f8_allow_shared(router_choose_kernel<NUM>, bytes);
    router_choose_kernel<NUM><<<f8_grid(job.logits.rows, warps), warps * F8_WARP, bytes, f8_stream(c)>>>(
        job, (int)num_words);
}

extern "C" fp8flow_status f8_cuda_router(fp8flow_context *c, const fp8flow_router_args *a)
{
    int64_t num_tokens = a->logits->rows, num_experts = a->config->num_experts;
    bool sigmoid = a->config->score == FP8FLOW_SCORE_SIGMOID;
    if (num_tokens == 0) return FP8FLOW_OK;
    F8_REQUIRE(!sigmoid || num_tokens * (int64_t)sizeof(float) <= F8_CUDA_SCRATCH_BYTES, ESHAPE,
               "router: %lld tokens, at most %lld have room for the divisors of their sigmoid scores",
               (long long)num_tokens, (long long)F8_CUDA_SCRATCH_BYTES / (long long)sizeof(float));
    int64_t num_sequences = num_tokens / a->config->sequence_length;
    router_job job = { *a->config,     *a->logits, a->bias,       a->expert,
                       a->gate,        a->scores,  a->log_sum_exp, a->counts,
                       a->score_sums,  sigmoid ? (float *)f8_cuda_scratch(c) : NULL };
    cudaMemsetAsync(a->counts, 0, (size_t)(num_sequences * num_experts) * sizeof *a->counts, f8_stream(c));
    if (num_experts <= 64) launch_choose<2>(c, job);
    else if (num_experts <= 128) launch_choose<4>(c, job);
    else if (num_experts <= 256) launch_choose<8>(c, job);
    else if (num_experts <= 512) launch_choose<16>(c, job);
    else launch_choose<0>(c, job);
    unsigned num_strips = (unsigned)(sum_strips(job.config) * num_sequences);
    router_sums_kernel<<<num_strips, LOADERS + F8_WARP, 0, f8_stream(c)>>>(job);
    return f8_launched("router");
}
