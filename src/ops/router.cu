/* router.cu - CUDA side of router. Contract: fp8flow_ops.h. CPU side: router.c, arithmetic: router.h.
 *
 * A block has 32 tokens: a block of the order of the sums over tokens (router.h), or as many whole sequences as fit.
 * 8 to 32 lanes have a token (router_lanes.cuh), its figures in registers up to 512 experts and in shared memory
 * beyond. The k best are found in k rounds, each a maximum over the lanes, so that ties and order are those of
 * f8_choose_top.
 *
 * The scores of the 32 tokens stay in shared memory (beyond 512 experts they are read again), where a thread per expert
 * adds them up. Where a sequence has several blocks, their sums and counts go to scratch for a second kernel. Atomics
 * only on counts, in shared memory.
 *
 * Traffic per score: 4 bytes read, 4 written; 8/32 to scratch and back.
 */
#include "ops/launch.cuh"
#include "ops/router.h"
#include "ops/router_lanes.cuh"

/* Experts of a block of the second kernel, its threads for each; blocks that a thread fetches at a time. */
enum { STRIP = 4, MAX_ROWS = 128, HELD = 16 };

/* What the kernels read and write; `config` is a copy. */
struct router_job {
    fp8flow_router_config config;
    fp8flow_tensor logits;
    const float *bias;
    int32_t *expert;
    float *gate, *scores, *log_sum_exp;
    int32_t *counts;
    float *score_sums;
    uint2 *partial; /* [T/S, blocks, E] sum (its bits) and count of each block; NULL: sequences are not cut */
    int32_t blocks;                             /* of a sequence */
    int32_t piece, num_pieces;                  /* tokens of what is added up in a block; the most of those */
    int32_t tile_stride, key_words, slot_words; /* shared memory: scores of a token, its keys, all that is its own */
};

/* ---- Shared memory ---- */

/* Of a block. */
struct block_memory {
    float *tile;     /* [32, tile_stride] scores; none beyond 512 experts */
    float *divisor;  /* [32] what normalises the sigmoid scores of a token */
    int32_t *counts; /* [num_pieces, E] */
    uint32_t *slots; /* of the tokens that are chosen for at a time */
};

/* Of a token while its experts are chosen. */
struct token_memory {
    float *logit, *value; /* [E], whole warps: beyond 512 experts */
    uint32_t *key;        /* [E], whole warps: beyond 512 experts, or where groups are chosen */
    uint32_t *group_key, *group_open;
    int32_t *chosen; /* [k] */
    float *weight;   /* [k] */
};

/* A token, its experts (0: the lanes have none and write nothing) and what belongs to it. */
struct token_work {
    int64_t token;
    int index, num_experts;
    token_memory memory;
};

/* Tokens of a block. */
struct token_range {
    int64_t first;
    int count;
};

__device__ static inline block_memory block_memory_at(uint32_t *words, const router_job &job)
{
    block_memory m;
    m.tile = (float *)words;
    m.divisor = m.tile + F8_SUM_TOKENS * job.tile_stride;
    m.counts = (int32_t *)(m.divisor + F8_SUM_TOKENS);
    m.slots = (uint32_t *)(m.counts + job.num_pieces * (int)job.config.num_experts);
    return m;
}

template <int NUM> __device__ static inline token_memory token_memory_at(uint32_t *words, const router_job &job)
{
    int line = NUM > 0 ? 0 : job.key_words;
    token_memory m;
    m.logit = (float *)words;
    m.value = m.logit + line;
    m.key = (uint32_t *)(m.value + line);
    m.group_key = m.key + job.key_words;
    m.group_open = m.group_key + job.config.num_groups;
    m.chosen = (int32_t *)(m.group_open + job.config.num_groups);
    m.weight = (float *)(m.chosen + job.config.top_k);
    return m;
}

__device__ static inline token_range tokens_of_block(const router_job &job)
{
    int64_t length = job.config.sequence_length;
    if (!job.partial) {
        int64_t most = job.num_pieces * job.piece, first = blockIdx.x * most;
        return { first, (int)min(most, job.logits.rows - first) };
    }
    int block = (int)(blockIdx.x % job.blocks), start = block * F8_SUM_TOKENS;
    return { blockIdx.x / job.blocks * length + start, (int)min((int64_t)F8_SUM_TOKENS, length - start) };
}

/* ---- Scores ---- */

/* `score`: exp(logit - largest); log_sum_exp of the token; returns the sum. */
template <int LANES, int NUM>
__device__ static inline float exponentials(int num_experts, lane_line<float, NUM> &logit,
                                            lane_line<float, NUM> &score, float *log_sum_exp)
{
    float largest = -INFINITY;
    each_expert<LANES, NUM>(num_experts, [&](int j, int) { largest = fmaxf(largest, logit.at(j)); });
    largest = f8_warp_max<LANES>(largest);
    each_expert<LANES, NUM>(num_experts, [&](int j, int) { score.at(j) = f8_expf(logit.at(j) - largest); });
    float sum = expert_sum<LANES, NUM>(num_experts, score);
    float result = f8_canonical(largest + f8_logf(sum));
    if (token_lane<LANES>() == 0 && num_experts > 0) *log_sum_exp = result;
    return sum;
}

/* `score`: sigmoid(logit). `divisor`: what normalises them in sums over tokens. */
template <int LANES, int NUM>
__device__ static inline void sigmoids(int num_experts, lane_line<float, NUM> &logit, lane_line<float, NUM> &score,
                                       float *divisor)
{
    each_expert<LANES, NUM>(num_experts,
                            [&](int j, int) { score.at(j) = f8_canonical(f8_sigmoid(logit.at(j))); });
    float sum = expert_sum<LANES, NUM>(num_experts, score);
    if (token_lane<LANES>() == 0 && num_experts > 0) *divisor = f8_score_divisor(FP8FLOW_SCORE_SIGMOID, sum);
}

/* Writes what a token has per expert, and leaves in `base` what gates and choice start from. */
template <int LANES, int NUM>
__device__ static inline void write_scores(const router_job &job, const block_memory &block, const token_work &work,
                                           lane_line<float, NUM> &base)
{
    int num_experts = work.num_experts;
    const float *row = (const float *)job.logits.data + work.token * job.logits.stride;
    float *scores = job.scores + work.token * job.config.num_experts;
    lane_line<float, NUM> logit(work.memory.logit);
    each_expert<LANES, NUM>(num_experts,
                            [&](int j, int e) { logit.at(j) = e < num_experts ? __ldcs(row + e) : -INFINITY; });
    float sum = exponentials<LANES, NUM>(num_experts, logit, base, job.log_sum_exp + work.token);
    if (job.config.score == FP8FLOW_SCORE_SIGMOID)
        sigmoids<LANES, NUM>(num_experts, logit, base, block.divisor + work.index);
    else divide_line<LANES, NUM>(num_experts, base, sum);
    each_expert<LANES, NUM>(num_experts, [&](int j, int e) {
        if (e >= num_experts) return;
        scores[e] = base.at(j);
        if (NUM > 0) block.tile[work.index * job.tile_stride + e] = base.at(j);
    });
    if (job.config.score == FP8FLOW_SCORE_SOFTMAX_TOPK)
        each_expert<LANES, NUM>(num_experts, [&](int j, int) { base.at(j) = logit.at(j); });
}

/* ---- Choice ---- */

/* The two largest keys. */
struct top_keys {
    uint32_t best, second;
};

/* The two largest of a group: `share` neighbouring lanes, which divide `size`, have keys each. They start at other
 * places in other groups, else groups of 32 would wait for the same banks. */
__device__ static inline top_keys top_of_group(const uint32_t *key, int size, int share, int group, bool inside)
{
    top_keys top = { 0, 0 };
    int part = f8_lane() % share, at = (group * share + part) % size;
    for (int i = part; i < size && inside; i += share, at = at + share >= size ? at + share - size : at + share) {
        top.second = max(top.second, min(top.best, key[at]));
        top.best = max(top.best, key[at]);
    }
    for (int offset = 1; offset < share; offset *= 2) {
        uint32_t best = __shfl_xor_sync(F8_ALL_LANES, top.best, offset);
        uint32_t second = __shfl_xor_sync(F8_ALL_LANES, top.second, offset);
        top.second = max(min(top.best, best), max(top.second, second));
        top.best = max(top.best, best);
    }
    return top;
}

/* group_key: keys of the scores of all groups. */
template <int LANES> __device__ static inline void write_group_keys(const router_job &job, const token_memory &m)
{
    int num_groups = (int)job.config.num_groups, size = (int)job.config.num_experts / num_groups, share = 1;
    while (2 * share * num_groups <= LANES && size % (2 * share) == 0) share *= 2;
    bool is_max = job.config.group_score == FP8FLOW_GROUP_MAX || size == 1;
    for (int first = 0; first < num_groups; first += LANES / share) {
        int group = first + token_lane<LANES>() / share;
        top_keys top = top_of_group(m.key + group * size, size, share, group, group < num_groups);
        uint32_t key = is_max ? top.best : f8_choice_key(f8_key_score(top.best) + f8_key_score(top.second));
        if (group < num_groups && f8_lane() % share == 0) m.group_key[group] = key;
    }
}

/* group_open: whether a group is one of the best top_groups. */
template <int LANES> __device__ static inline void open_groups(const router_job &job, const token_memory &m)
{
    int num_groups = (int)job.config.num_groups;
    for (int group = token_lane<LANES>(); group < num_groups; group += LANES) {
        uint32_t key = m.group_key[group];
        int rank = 0;
        for (int i = 0; i < num_groups; i++) rank += m.group_key[i] > key || (m.group_key[i] == key && i < group);
        m.group_open[group] = rank < job.config.top_groups;
    }
}

/* Keys of the experts that may be chosen; 0 for the others. */
template <int LANES, int NUM>
__device__ static inline void write_keys(const router_job &job, const token_work &work, lane_line<float, NUM> &base,
                                         lane_line<uint32_t, NUM> &key)
{
    const token_memory &m = work.memory;
    int num_experts = work.num_experts;
    each_expert<LANES, NUM>(num_experts, [&](int j, int e) {
        float score = base.at(j);
        if (job.bias && e < num_experts) score += __ldg(job.bias + e);
        key.at(j) = e < num_experts ? f8_choice_key(score) : 0;
    });
    if (job.config.top_groups == job.config.num_groups) return;
    each_expert<LANES, NUM>(num_experts, [&](int j, int e) {
        if (e < num_experts) m.key[e] = key.at(j);
    });
    __syncwarp();
    write_group_keys<LANES>(job, m);
    __syncwarp();
    open_groups<LANES>(job, m);
    __syncwarp();
    /* e / size as a product: exact, since e * size < 2^31 */
    uint32_t size = (uint32_t)(job.config.num_experts / job.config.num_groups);
    uint32_t inverse = (0x80000000u + size - 1) / size;
    each_expert<LANES, NUM>(num_experts, [&](int j, int e) {
        if (e < num_experts && !m.group_open[__umulhi(2 * (uint32_t)e, inverse)]) key.at(j) = 0;
    });
}

/* The top_k largest keys in descending order, ties in ascending order of the expert. */
template <int LANES, int NUM>
__device__ static inline void choose_top(const router_job &job, const token_work &work, lane_line<uint32_t, NUM> &key)
{
    unsigned taken = UINT32_MAX;
    for (int slot = 0; slot < (int)job.config.top_k; slot++) {
        uint32_t best = 0;
        unsigned candidate = UINT32_MAX;
        each_expert<LANES, NUM>(work.num_experts, [&](int j, int e) {
            if ((unsigned)e == taken) key.at(j) = 0;
            if (key.at(j) > best) {
                best = key.at(j);
                candidate = (unsigned)e;
            }
        });
        taken = lanes_min<LANES>(best == lanes_max<LANES>(best) ? candidate : UINT32_MAX);
        if (token_lane<LANES>() == 0) work.memory.chosen[slot] = (int32_t)taken;
    }
}

/* ---- Gates ---- */

/* f8_exponentials over the slots. */
template <int LANES> __device__ static inline float slot_exponentials(float *weight, int top_k)
{
    float largest = -INFINITY;
#pragma unroll 1
    for (int slot = token_lane<LANES>(); slot < top_k; slot += LANES) largest = fmaxf(largest, weight[slot]);
    largest = f8_warp_max<LANES>(largest);
#pragma unroll 1
    for (int slot = token_lane<LANES>(); slot < top_k; slot += LANES) weight[slot] = f8_expf(weight[slot] - largest);
    return line_sum<LANES>(weight, top_k);
}

/* `value`: per expert, what gates are made of. */
template <int LANES>
__device__ static inline void write_choice(const router_job &job, const token_work &work, const float *value,
                                           int32_t *counts)
{
    const fp8flow_router_config &config = job.config;
    const token_memory &m = work.memory;
    int top_k = work.num_experts > 0 ? (int)config.top_k : 0;
    float divisor = 1.0f;
#pragma unroll 1
    for (int slot = token_lane<LANES>(); slot < top_k; slot += LANES) m.weight[slot] = value[m.chosen[slot]];
    if (config.score == FP8FLOW_SCORE_SOFTMAX_TOPK) divisor = slot_exponentials<LANES>(m.weight, top_k);
    else if (config.gate_rule == FP8FLOW_GATE_NORMALIZED)
        divisor = f8_score_divisor(config.score, line_sum<LANES>(m.weight, top_k));
#pragma unroll 1
    for (int slot = token_lane<LANES>(); slot < top_k; slot += LANES) {
        job.expert[work.token * config.top_k + slot] = m.chosen[slot];
        job.gate[work.token * config.top_k + slot] = f8_canonical(m.weight[slot] / divisor * config.gate_scale);
        atomicAdd(counts + m.chosen[slot], 1);
    }
}

/* Called by whole warps. */
template <int LANES, int NUM>
__device__ static inline void route_token(const router_job &job, const block_memory &block, const token_work &work)
{
    lane_line<float, NUM> base(work.memory.value);
    lane_line<uint32_t, NUM> key(work.memory.key);
    write_scores<LANES, NUM>(job, block, work, base);
    write_keys<LANES, NUM>(job, work, base, key);
    choose_top<LANES, NUM>(job, work, key);
    __syncwarp();
    const float *value = block.tile + work.index * job.tile_stride;
    if (NUM == 0) value = job.scores + work.token * job.config.num_experts;
    if (job.config.score == FP8FLOW_SCORE_SOFTMAX_TOPK)
        value = (const float *)job.logits.data + work.token * job.logits.stride;
    write_choice<LANES>(job, work, value, block.counts + work.index / job.piece * (int)job.config.num_experts);
    __syncwarp();
}

/* ---- Sums over tokens ---- */

/* Sum of the scores of an expert: `line` is its first, of the first of `count` tokens. */
__device__ static inline float token_sum(const float *line, int stride, int count, const float *divisor)
{
    float sum = 0.0f;
    if (divisor) {
#pragma unroll 8
        for (int t = 0; t < count; t++) sum += line[t * stride] / divisor[t];
    } else {
#pragma unroll 16
        for (int t = 0; t < count; t++) sum += line[t * stride];
    }
    return sum;
}

/* Sums and counts of the block's pieces. */
template <int NUM>
__device__ static inline void write_sums(const router_job &job, const block_memory &block, const token_range &range)
{
    int num_experts = (int)job.config.num_experts, num_pieces = (range.count + job.piece - 1) / job.piece;
    int stride = NUM > 0 ? job.tile_stride : num_experts;
    const float *scores = NUM > 0 ? block.tile : job.scores + range.first * num_experts;
    bool is_sigmoid = job.config.score == FP8FLOW_SCORE_SIGMOID;
    for (int i = (int)threadIdx.x; i < num_pieces * num_experts; i += (int)blockDim.x) {
        int piece = i / num_experts, first = piece * job.piece, count = min(job.piece, range.count - first);
        const float *line = scores + first * stride + (i - piece * num_experts);
        float sum = token_sum(line, stride, count, is_sigmoid ? block.divisor + first : NULL);
        if (job.partial) {
            job.partial[(int64_t)blockIdx.x * num_experts + i] = make_uint2(f8_bits(sum), block.counts[i]);
            continue;
        }
        int64_t at = range.first / job.piece * num_experts + i;
        job.score_sums[at] = f8_canonical(sum);
        job.counts[at] = block.counts[i];
    }
}

template <int LANES, int NUM, int THREADS, int BLOCKS>
__global__ static void __launch_bounds__(THREADS, BLOCKS) router_choose_kernel(router_job job)
{
    extern __shared__ uint32_t words[];
    block_memory block = block_memory_at(words, job);
    token_range range = tokens_of_block(job);
    int slots = (int)blockDim.x / LANES, slot = (int)threadIdx.x / LANES;
    int warp_slot = (int)threadIdx.x / F8_WARP * (F8_WARP / LANES), num_experts = (int)job.config.num_experts;
    for (int i = (int)threadIdx.x; i < job.num_pieces * num_experts; i += (int)blockDim.x) block.counts[i] = 0;
    __syncthreads();
    token_work work;
    work.memory = token_memory_at<NUM>(block.slots + slot * job.slot_words, job);
    for (int base = 0; base + warp_slot < range.count; base += slots) {
        work.index = base + slot;
        work.token = range.first + work.index;
        work.num_experts = work.index < range.count ? num_experts : 0;
        route_token<LANES, NUM>(job, block, work);
    }
    __syncthreads();
    write_sums<NUM>(job, block, range);
}

/* Sum of the blocks of a span. */
__device__ static inline float span_sum(const float *block)
{
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < F8_SUM_BLOCKS; i++) sum += block[i * STRIP];
    return sum;
}

/* STRIP experts of a sequence. Thread (row, expert) fetches the blocks row, row + rows, ..., all loads in flight, for
 * threads that add the blocks of a span each, for one that adds the spans. There are whole spans of rows. */
__global__ static void __launch_bounds__(MAX_ROWS * STRIP) router_totals_kernel(router_job job)
{
    enum { SPAN_STRIDE = (F8_SUM_BLOCKS + 1) * STRIP, MAX_SPANS = MAX_ROWS * HELD / F8_SUM_BLOCKS };
    __shared__ float tile[MAX_SPANS * SPAN_STRIDE], sums[MAX_SPANS * STRIP];
    __shared__ int32_t counts[STRIP];
    int num_experts = (int)job.config.num_experts, strips = (num_experts + STRIP - 1) / STRIP;
    int column = (int)threadIdx.x % STRIP, row = (int)threadIdx.x / STRIP, rows = (int)blockDim.x / STRIP;
    int expert = (int)(blockIdx.x % strips) * STRIP + column, count = 0;
    int64_t sequence = blockIdx.x / strips;
    const uint2 *from = job.partial + sequence * job.blocks * num_experts + expert;
    float *slot = tile + row / F8_SUM_BLOCKS * SPAN_STRIDE + row % F8_SUM_BLOCKS * STRIP + column;
    float total = 0.0f;
    if (row == 0) counts[column] = 0;
    for (int first = 0; first < job.blocks; first += rows * HELD) {
        int num_blocks = min(job.blocks - first, rows * HELD), num_spans = (int)f8_ceil_div(num_blocks, F8_SUM_BLOCKS);
        uint2 held[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            bool inside = row + i * rows < num_blocks && expert < num_experts;
            held[i] = inside ? from[(first + row + i * rows) * num_experts] : make_uint2(0, 0);
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            slot[i * (rows / F8_SUM_BLOCKS) * SPAN_STRIDE] = f8_from_bits(held[i].x);
            count += (int32_t)held[i].y;
        }
        __syncthreads();
        /* absent blocks are +0, which changes nothing that started at +0 */
        if (row < num_spans) sums[row * STRIP + column] = span_sum(tile + row * SPAN_STRIDE + column);
        __syncthreads();
#pragma unroll 8
        for (int i = 0; row == 0 && i < num_spans; i++) total += sums[i * STRIP + column];
    }
    atomicAdd(counts + column, count);
    __syncthreads();
    if (row != 0 || expert >= num_experts) return;
    job.score_sums[sequence * num_experts + expert] = f8_canonical(total);
    job.counts[sequence * num_experts + expert] = counts[column];
}

/* ---- Launch ---- */

static router_job job_of(const fp8flow_context *c, const fp8flow_router_args *a)
{
    const fp8flow_router_config *config = a->config;
    router_job job = { *config,   *a->logits,     a->bias,   a->expert,     a->gate,
                       a->scores, a->log_sum_exp, a->counts, a->score_sums, NULL };
    job.blocks = (int32_t)f8_ceil_div(config->sequence_length, F8_SUM_TOKENS);
    job.piece = (int32_t)(job.blocks > 1 ? F8_SUM_TOKENS : config->sequence_length);
    if (job.blocks > 1) job.partial = (uint2 *)f8_cuda_scratch(c);
    return job;
}

/* Puts the layout of shared memory into `job`; returns its bytes for `threads`. The tile of scores has a stride that
 * puts the tokens of a warp into different banks. */
template <int LANES, int NUM> static int lay_out(router_job *job, int threads)
{
    const fp8flow_router_config &config = job->config;
    int line = (int)f8_ceil_div(config.num_experts, F8_WARP) * F8_WARP;
    bool has_keys = NUM == 0 || config.top_groups < config.num_groups;
    job->num_pieces = NUM > 0 ? F8_SUM_TOKENS / job->piece : 1;
    job->tile_stride = NUM > 0 ? line + LANES % F8_WARP : 0;
    job->key_words = has_keys ? line : 0;
    job->slot_words = (int)((NUM > 0 ? 1 : 3) * job->key_words + 2 * config.num_groups + 2 * config.top_k);
    int64_t words = F8_SUM_TOKENS * (job->tile_stride + 1) + job->num_pieces * config.num_experts;
    return (int)((words + threads / LANES * job->slot_words) * sizeof(uint32_t));
}

template <int LANES, int NUM> static void launch_choose(fp8flow_context *c, router_job *job)
{
    const int most = NUM == 0 ? 128 : NUM > 8 || LANES < 16 ? 256 : 512, blocks = NUM == 0 || NUM > 8 ? 1 : 1024 / most;
    enum { ENOUGH_SHARED_BYTES = 200 << 10 };
    int threads = most, bytes = lay_out<LANES, NUM>(job, threads);
    while (NUM == 0 && threads > F8_WARP && bytes > ENOUGH_SHARED_BYTES)
        bytes = lay_out<LANES, NUM>(job, threads /= 2);
    int64_t num_tokens = job->logits.rows, length = job->config.sequence_length;
    int64_t grid = job->partial ? num_tokens / length * job->blocks
                                : f8_ceil_div(num_tokens, (int64_t)job->num_pieces * job->piece);
    f8_allow_shared(router_choose_kernel<LANES, NUM, most, blocks>, bytes);
    router_choose_kernel<LANES, NUM, most, blocks><<<(unsigned)grid, threads, bytes, f8_stream(c)>>>(*job);
}

static void launch_totals(fp8flow_context *c, const router_job &job)
{
    int64_t strips = f8_ceil_div(job.config.num_experts, STRIP);
    int64_t rows = f8_ceil_div(job.blocks, F8_SUM_BLOCKS) * F8_SUM_BLOCKS;
    unsigned threads = (unsigned)((rows < MAX_ROWS ? rows : MAX_ROWS) * STRIP);
    unsigned grid = (unsigned)(job.logits.rows / job.config.sequence_length * strips);
    router_totals_kernel<<<grid, threads, 0, f8_stream(c)>>>(job);
}

/* Few lanes have a token of few experts, so that all of them have work. */
static void launch_choose_for(fp8flow_context *c, router_job *job)
{
    int64_t num_experts = job->config.num_experts;
    if (num_experts <= 8) launch_choose<8, 1>(c, job);
    else if (num_experts <= 16) launch_choose<8, 2>(c, job);
    else if (num_experts <= 32) launch_choose<8, 4>(c, job);
    else if (num_experts <= 64) launch_choose<8, 8>(c, job);
    else if (num_experts <= 128) launch_choose<16, 8>(c, job);
    else if (num_experts <= 256) launch_choose<32, 8>(c, job);
    else if (num_experts <= 512) launch_choose<32, 16>(c, job);
    else launch_choose<32, 0>(c, job);
}

extern "C" fp8flow_status f8_cuda_router(fp8flow_context *c, const fp8flow_router_args *a)
{
    int64_t num_tokens = a->logits->rows, num_experts = a->config->num_experts;
    if (num_tokens == 0) return FP8FLOW_OK;
    router_job job = job_of(c, a);
    int64_t num_sums = num_tokens / a->config->sequence_length * job.blocks * num_experts;
    int64_t most_sums = F8_CUDA_SCRATCH_BYTES / (int64_t)sizeof(uint2);
    F8_REQUIRE(!job.partial || num_sums <= most_sums, ESHAPE,
               "router: %lld tokens of %lld experts have %lld sums of 32 tokens, there is room for %lld",
               (long long)num_tokens, (long long)num_experts, (long long)num_sums, (long long)most_sums);
    launch_choose_for(c, &job);
    if (job.partial) launch_totals(c, job);
    return f8_launched("router");
}
