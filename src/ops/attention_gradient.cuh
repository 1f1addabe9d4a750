/* attention_gradient.cuh - gradients of attention on the tensor cores, for head_dim 32, 64, 96 and 128.
 *
 * Two kernels of one form: sums over keys for the gradients of queries, sums over queries (of all heads that share a
 * key head) for those of keys and values. Each sum has one owner and one order; no atomics. A block of threads owns
 * 128 tokens, 64 per warpgroup, and meets the other side's 64 at a time:
 *   one thread      copies the own vectors (queries: q, grad_o; keys: k, v), then the other side's (k, v; q, grad_o
 *                   and their states) through a ring of stages.
 *   each warpgroup  scores = own first x other first, dp = own second x other second; weights = exp2(scores - lse);
 *                   ds = weights (dp - delta); first sums += ds x other first; keys also: second sums += weights x
 *                   other second. Exponentials run beside the product of dp, ds beside that of the second sums, the
 *                   next scores behind the first sums.
 * A product of scores is made twice in all, five products become seven; in return nothing goes through memory but the
 * results. Weights and ds are rounded to BF16. Read per own token and head: 4 head_dim bytes; of the other side
 * 4 head_dim bytes per token, head and 128 own tokens, from L2. Written: 2 or 4 head_dim.
 */
#ifndef F8_OPS_ATTENTION_GRADIENT_CUH
#define F8_OPS_ATTENTION_GRADIENT_CUH

#include "ops/attention.cuh"

/* Whose gradients. */
enum f8_gradient_side { F8_OF_QUERIES, F8_OF_KEYS };

/* By value for the kernels. `scale`: of the scores; above 0. */
struct f8_gradient_problem {
    f8_attention_items items;
    fp8flow_tensor first, second; /* grad_q; grad_k and grad_v */
    f8_attention_states states;
    int num_heads, num_kv_heads, head_dim, length;
    float scale;
};

/* Tensor maps: the own side's in tiles of 128 tokens, the other's in tiles of 64. */
struct f8_gradient_maps {
    CUtensorMap own_first, own_second, first, second;
};

template <int head_dim_, f8_gradient_side side_, int stages_> struct f8_gradient_shape {
    static const f8_gradient_side side = side_;
    static const int head_dim = head_dim_, stages = stages_, groups = 2, threads = 128 * (groups + 1);
    static const int own = 64 * groups, others = 64;
    static const int own_bytes = f8_attention_tile<head_dim, own>::bytes;     /* of one of the two tiles */
    static const int tile_bytes = f8_attention_tile<head_dim, others>::bytes; /* likewise */
    static const int stage_bytes = 2 * tile_bytes, state_bytes = others * (int)sizeof(float);
    static const int bytes = 1024 + 2 * own_bytes + stages * stage_bytes + 4 * groups * F8_TURN_BYTES;
    static const int registers = 240, producer_registers = 24;
    static const int sums = head_dim / 2, second_sums = side == F8_OF_KEYS ? sums : 1;
};

template <class S> struct f8_gradient_shared {
    uint64_t full[S::stages], empty[S::stages], own_full, own_empty;
    alignas(16) float lse[S::stages][S::others];
    alignas(16) float delta[S::stages][S::others];
};

/* One tile: own tokens of one head, and where the other side's are. */
struct f8_gradient_job {
    int sequence, own_head, token;
    int head, heads, block, blocks; /* of the other side; blocks per head */

    template <class S> __device__ static f8_gradient_job of(const f8_gradient_problem &p, int place, int pair, S)
    {
        int heads_per_kv = p.num_heads / p.num_kv_heads, all = (p.length + S::others - 1) / S::others;
        if (S::side == F8_OF_KEYS) {
            int head = pair % p.num_kv_heads, block = place * (S::own / S::others);
            return { pair / p.num_kv_heads, head,  place * S::own, head * heads_per_kv,
                     heads_per_kv,          block, all - block };
        }
        int head = pair % p.num_heads, token = (p.items.blocks - 1 - place) * S::own;
        return { pair / p.num_heads, head, token, head / heads_per_kv, 1, 0, min(token / S::others + 2, all) };
    }
};

/* ---- The thread that copies ---- */

template <class S>
__device__ static void gradient_copy(const f8_gradient_problem &p, const f8_gradient_maps &maps,
                                     f8_gradient_shared<S> &shared, uint8_t *to, int at, const f8_gradient_job &t,
                                     int head, int block)
{
    uint64_t *full = &shared.full[at];
    int token = block * S::others;
    f8_barrier_expect(full, S::stage_bytes + (S::side == F8_OF_KEYS ? 2 * S::state_bytes : 0));
    f8_copy_tokens<S::head_dim, S::others>(to, &maps.first, full, head, token, t.sequence);
    f8_copy_tokens<S::head_dim, S::others>(to + S::tile_bytes, &maps.second, full, head, token, t.sequence);
    if (S::side == F8_OF_KEYS) {
        int64_t state = ((int64_t)t.sequence * p.num_heads + head) * p.states.length + token;
        f8_copy_bytes(shared.lse[at], p.states.lse + state, full, S::state_bytes);
        f8_copy_bytes(shared.delta[at], p.states.delta + state, full, S::state_bytes);
    }
}

template <class S>
__device__ static void gradient_produce(const f8_gradient_problem &p, const f8_gradient_maps &maps,
                                        f8_gradient_shared<S> &shared, uint8_t *memory)
{
    f8_attention_walk walk(p.items);
    f8_position<S::stages> stage = { 0, 1 };
    uint32_t own_phase = 1;
    int place, pair;
    while (walk.next(&place, &pair)) {
        f8_gradient_job t = f8_gradient_job::of(p, place, pair, S());
        f8_barrier_wait(&shared.own_empty, own_phase);
        f8_barrier_expect(&shared.own_full, 2 * S::own_bytes);
        f8_copy_tokens<S::head_dim, S::own>(memory, &maps.own_first, &shared.own_full, t.own_head, t.token,
                                            t.sequence);
        f8_copy_tokens<S::head_dim, S::own>(memory + S::own_bytes, &maps.own_second, &shared.own_full, t.own_head,
                                            t.token, t.sequence);
        own_phase ^= 1;
        for (int head = t.head; head < t.head + t.heads; head++)
            for (int block = t.block; block < t.block + t.blocks; block++) {
                f8_barrier_wait(&shared.empty[stage.at], stage.phase);
                gradient_copy<S>(p, maps, shared, memory + 2 * S::own_bytes + stage.at * S::stage_bytes, stage.at, t,
                                 head, block);
                stage.advance();
            }
    }
}

/* ---- The warpgroups that multiply ---- */

/* Addresses of a warpgroup's operands and barriers; those of the other side in the first stage. */
struct gradient_operands {
    uint32_t own_first, own_second, first, second;   /* descriptors for scores */
    uint32_t first_outer, second_outer;              /* for sums */
    uint32_t full, empty, own_full, own_empty;
    uint32_t lse, delta; /* of the lane's first column */
};

template <class S>
__device__ static inline gradient_operands gradient_addresses(f8_gradient_shared<S> &shared, uint8_t *memory,
                                                              int group)
{
    /* A shuffle makes descriptors uniform to the compiler: no moves between the products. */
    uint32_t address = __shfl_sync(F8_ALL_LANES, f8_smem(memory), 0), barriers = f8_kept(shared.full);
    uint32_t own = address + group * 64 * F8_TILE_LINE, others = address + 2 * S::own_bytes;
    const uint32_t part = f8_attention_tile<S::head_dim, S::others>::part_bytes;
    gradient_operands x;
    x.own_first = f8_operand_low(own);
    x.own_second = f8_operand_low(own + S::own_bytes);
    x.first = f8_operand_low(others);
    x.second = f8_operand_low(others + S::tile_bytes);
    x.first_outer = f8_operand_low_outer(others, part);
    x.second_outer = f8_operand_low_outer(others + S::tile_bytes, part);
    x.full = barriers, x.empty = barriers + 8 * S::stages;
    x.own_full = barriers + 16 * S::stages, x.own_empty = x.own_full + 8;
    x.lse = f8_smem(shared.lse) + f8_lane() % 4 * 8, x.delta = f8_smem(shared.delta) + f8_lane() % 4 * 8;
    return x;
}

/* Of the lane's two rows, where rows are queries. */
struct gradient_rows {
    float lse[2], delta[2];
};

/* The states of accumulators i and i + 1: of their row's query, or of their two columns'. */
template <class S>
__device__ static inline float2 gradient_state(const float (&rows)[2], uint32_t columns, int i)
{
    float2 x = make_float2(rows[i / 2 % 2], rows[i / 2 % 2]);
    if (S::side == F8_OF_KEYS) x = f8_load_shared_pair(columns + i / 4 * 32);
    return x;
}

/* Pairs whose key comes after the query count nothing. `limit`: the lane's first row less its first column. */
template <class S, int count> __device__ static inline void gradient_mask(float (&s)[count], int limit)
{
#pragma unroll
    for (int i = 0; i < count; i++) {
        int column = i / 4 * 8 + i % 2, row = limit + i / 2 % 2 * 8;
        if (S::side == F8_OF_KEYS ? column < row : column > row) s[i] = -INFINITY;
    }
}

/* Scores become weights. `columns`: the lane's part of the columns' lse. */
template <class S, int count>
__device__ static inline void gradient_weigh(float (&s)[count], const float (&rows)[2], uint32_t columns, float scale)
{
#pragma unroll
    for (int i = 0; i < count; i += 4) {
        float2 first = gradient_state<S>(rows, columns, i), next = first;
        if (S::side == F8_OF_QUERIES) next = gradient_state<S>(rows, columns, i + 2);
        s[i] = f8_exp2(fmaf(s[i], scale, -first.x));
        s[i + 1] = f8_exp2(fmaf(s[i + 1], scale, -first.y));
        s[i + 2] = f8_exp2(fmaf(s[i + 2], scale, -next.x));
        s[i + 3] = f8_exp2(fmaf(s[i + 3], scale, -next.y));
    }
}

/* Weight i, of FP32 or of pairs of BF16. */
template <int count> __device__ static inline float gradient_weight(const float (&weights)[count], int i)
{
    return weights[i];
}

template <int count> __device__ static inline float gradient_weight(const uint32_t (&weights)[count], int i)
{
    return i % 2 ? f8_bf16_high(weights[i / 2]) : f8_bf16_low(weights[i / 2]);
}

/* dp becomes ds without the scale. */
template <class S, int count, class Weights>
__device__ static inline void gradient_differ(float (&dp)[count], const Weights &weights, const float (&rows)[2],
                                              uint32_t columns)
{
#pragma unroll
    for (int i = 0; i < count; i += 4) {
        float2 first = gradient_state<S>(rows, columns, i), next = first;
        if (S::side == F8_OF_QUERIES) next = gradient_state<S>(rows, columns, i + 2);
        dp[i] = gradient_weight(weights, i) * (dp[i] - first.x);
        dp[i + 1] = gradient_weight(weights, i + 1) * (dp[i + 1] - first.y);
        dp[i + 2] = gradient_weight(weights, i + 2) * (dp[i + 2] - next.x);
        dp[i + 3] = gradient_weight(weights, i + 3) * (dp[i + 3] - next.y);
    }
}

/* What a warpgroup knows of its tile. */
struct gradient_tile {
    int count, blocks;  /* blocks of the other side in all, per head */
    int limit;          /* the lane's first row less its first column, for the first block */
    int from;           /* keys: blocks before this one of each head need the mask; queries: from this one on */
    float scale;        /* log2(e) times the scale */
    gradient_rows rows;
};

/* What a warpgroup keeps from one block of the other side to the next: ds is multiplied with the next scores. */
template <class S> struct gradient_sums {
    float first[S::sums], second[S::second_sums];
    uint32_t ds[S::others / 4];
    int before; /* the stage that belongs to ds */
};

enum gradient_step { FIRST_STEP, NEXT_STEP };

/* A wait for what has come: across its loop ptxas does not pull a wait for products forward, past arithmetic that is to
 * run beside them. */
template <class S>
__device__ static inline void gradient_keep_order(const gradient_operands &x, const f8_position<S::stages> &stage)
{
    f8_barrier_wait(x.full + 8 * stage.at, stage.phase);
}

/* One block of the other side: what `stage` holds. For keys dp waits for the weights, whose scores' registers it gets;
 * the tensor cores have the first sums of the block before meanwhile. */
template <class S, gradient_step which>
__device__ static inline void gradient_meet(const gradient_operands &x, const gradient_tile &t, int block,
                                            const f8_position<S::stages> &stage, gradient_sums<S> &sums)
{
    const int step = S::stage_bytes / 16, behind = which == NEXT_STEP;
    float s[S::others / 2], dp[S::others / 2];
    uint32_t weights[S::others / 4], at = stage.at * step, column = stage.at * S::state_bytes;
    f8_barrier_wait(x.full + 8 * stage.at, stage.phase);
    f8_products_begin();
    f8_multiply_heads<S::head_dim, S::own, S::others>(s, x.own_first, x.first + at);
    f8_products_commit();
    if constexpr (which == NEXT_STEP) {
        f8_multiply_tokens(sums.first, sums.ds, x.first_outer + sums.before * step);
        f8_products_commit();
    }
    if constexpr (S::side == F8_OF_QUERIES) {
        f8_multiply_heads<S::head_dim, S::own, S::others>(dp, x.own_second, x.second + at);
        f8_products_commit();
    }
    f8_products_wait<behind + (S::side == F8_OF_QUERIES)>();
    f8_pin_all(s);
    if (S::side == F8_OF_KEYS ? block < t.from : block >= t.from) gradient_mask<S>(s, t.limit - block * S::others);
    gradient_weigh<S>(s, t.rows.lse, x.lse + column, t.scale);
    if constexpr (S::side == F8_OF_KEYS) {
        f8_pack_weights(weights, s);
        f8_products_begin();
        f8_multiply_heads<S::head_dim, S::own, S::others>(dp, x.own_second, x.second + at);
        f8_products_commit();
        f8_multiply_tokens(sums.second, weights, x.second_outer + at);
        f8_products_commit();
        f8_products_wait<1>();
    } else {
        f8_pin_all(s);
        gradient_keep_order<S>(x, stage);
        f8_products_wait<0>();
    }
    f8_pin_all(dp);
    f8_pin_all(sums.first);
    /* The stage before, its states too: what the lanes read of them is in ds, which the products waited for had. The
     * fence orders these reads before the copies that overwrite what they read. */
    if constexpr (which == NEXT_STEP) {
        f8_async_fence();
        f8_release(x.empty + 8 * sums.before);
    }
    if constexpr (S::side == F8_OF_KEYS) gradient_differ<S>(dp, weights, t.rows.delta, x.delta + column);
    else gradient_differ<S>(dp, s, t.rows.delta, x.delta + column);
    f8_pack_weights(sums.ds, dp);
    sums.before = stage.at;
    if constexpr (S::side == F8_OF_KEYS) {
        gradient_keep_order<S>(x, stage);
        f8_products_wait<0>();
        f8_pin_all(sums.second);
    }
}

/* The sums of one tile. */
template <class S>
__device__ static inline void gradient_run(const gradient_operands &x, const gradient_tile &t,
                                           f8_position<S::stages> &stage, gradient_sums<S> &sums)
{
#pragma unroll
    for (int i = 0; i < S::sums; i++) f8_set_zero(sums.first[i]);
#pragma unroll
    for (int i = 0; i < S::second_sums; i++) f8_set_zero(sums.second[i]);
    gradient_meet<S, FIRST_STEP>(x, t, 0, stage, sums);
    stage.advance();
    int block = t.blocks == 1 ? 0 : 1;
#pragma unroll 1
    for (int i = 1; i < t.count; i++) {
        gradient_meet<S, NEXT_STEP>(x, t, block, stage, sums);
        stage.advance();
        if (++block == t.blocks) block = 0;
    }
    f8_release(x.own_empty);
    f8_products_begin();
    f8_multiply_tokens(sums.first, sums.ds, x.first_outer + sums.before * (S::stage_bytes / 16));
    f8_products_commit();
    f8_products_wait<0>();
    f8_pin_all(sums.first);
    f8_async_fence();
    f8_release(x.empty + 8 * sums.before);
}

/* `row`: the lane's first. */
template <class S>
__device__ static inline gradient_tile gradient_begin(const f8_gradient_problem &p, const f8_gradient_job &t, int group,
                                                      int row)
{
    int first = t.token + 64 * group;
    gradient_tile x = {};
    x.blocks = __shfl_sync(F8_ALL_LANES, t.blocks, 0), x.count = x.blocks * t.heads;
    x.limit = row - f8_lane() % 4 * 2 - t.block * S::others;
    x.from = S::side == F8_OF_KEYS ? group + 1 : first / S::others;
    x.scale = p.scale * F8_LOG2_E;
    if (S::side == F8_OF_QUERIES) {
        int64_t state = ((int64_t)t.sequence * p.num_heads + t.own_head) * p.states.length + row;
        x.rows = { { p.states.lse[state], p.states.lse[state + 8] },
                   { p.states.delta[state], p.states.delta[state + 8] } };
    }
    return x;
}

template <class S>
__device__ static void gradient_consume(const f8_gradient_problem &p, f8_gradient_shared<S> &shared, uint8_t *memory)
{
    int group = __shfl_sync(F8_ALL_LANES, threadIdx.x / 128, 0), warp = threadIdx.x / F8_WARP;
    uint8_t *turn = memory + 2 * S::own_bytes + S::stages * S::stage_bytes + warp * F8_TURN_BYTES;
    gradient_operands x = gradient_addresses<S>(shared, memory, group);
    f8_attention_walk walk(p.items);
    f8_position<S::stages> stage = { 0, 0 };
    uint32_t own_phase = 0;
    int place, pair;
    while (walk.next(&place, &pair)) {
        f8_gradient_job t = f8_gradient_job::of(p, place, pair, S());
        int token = t.token + warp % 8 * 16;
        gradient_tile tile = gradient_begin<S>(p, t, group, token + f8_lane() / 4);
        gradient_sums<S> sums;
        f8_barrier_wait(x.own_full, own_phase);
        own_phase ^= 1;
        gradient_run<S>(x, tile, stage, sums);
#pragma unroll
        for (int i = 0; i < S::sums; i++) sums.first[i] *= p.scale;
        f8_write_tokens(f8_head_of(p.first, t.sequence, t.own_head, p.length, p.head_dim), token, turn, sums.first);
        if constexpr (S::side == F8_OF_KEYS)
            f8_write_tokens(f8_head_of(p.second, t.sequence, t.own_head, p.length, p.head_dim), token, turn,
                            sums.second);
    }
}

template <class S>
__global__ __launch_bounds__(S::threads, 1) static void attention_gradient_kernel(
    const __grid_constant__ f8_gradient_maps maps, const __grid_constant__ f8_gradient_problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ f8_gradient_shared<S> shared;
    uint8_t *memory = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    if (threadIdx.x == 0) {
        f8_ring_init(shared.full, shared.empty, 1, 4 * S::groups);
        f8_barrier_init(&shared.own_full, 1);
        f8_barrier_init(&shared.own_empty, 4 * S::groups);
        f8_barrier_fence();
    }
    __syncthreads();
    if (threadIdx.x / 128 == S::groups) {
        f8_registers_less<S::producer_registers>();
        if (threadIdx.x % 128 == 0) gradient_produce<S>(p, maps, shared, memory);
    } else {
        f8_registers_more<S::registers>();
        gradient_consume<S>(p, shared, memory);
    }
}

/* ---- Launch ---- */

template <class S>
static inline fp8flow_status f8_gradient_maps_of(f8_gradient_maps *maps, const fp8flow_attention_backward_args *a)
{
    const char *op = "attention_backward";
    bool keys = S::side == F8_OF_KEYS;
    const fp8flow_tensor *own[2] = { keys ? a->k : a->q, keys ? a->v : a->grad_o };
    const fp8flow_tensor *others[2] = { keys ? a->q : a->k, keys ? a->grad_o : a->v };
    F8_TRY(f8_attention_map(op, &maps->own_first, own[0], a->batch, a->head_dim, S::own));
    F8_TRY(f8_attention_map(op, &maps->own_second, own[1], a->batch, a->head_dim, S::own));
    F8_TRY(f8_attention_map(op, &maps->first, others[0], a->batch, a->head_dim, S::others));
    return f8_attention_map(op, &maps->second, others[1], a->batch, a->head_dim, S::others);
}

template <class S>
static inline f8_gradient_problem f8_gradient_describe(const fp8flow_attention_backward_args *a,
                                                       const f8_attention_states *states)
{
    bool keys = S::side == F8_OF_KEYS;
    f8_gradient_problem p = {};
    int64_t length = a->q->rows / a->batch, heads_per_kv = a->num_heads / a->num_kv_heads;
    int64_t head_bytes = length * a->head_dim * 4;
    p.items = f8_attention_list(f8_ceil_div(length, S::own), a->batch * (keys ? a->num_kv_heads : a->num_heads),
                                keys ? head_bytes * heads_per_kv : head_bytes / heads_per_kv);
    p.first = keys ? *a->grad_k : *a->grad_q, p.second = *a->grad_v;
    p.states = *states;
    p.num_heads = (int)a->num_heads, p.num_kv_heads = (int)a->num_kv_heads;
    p.head_dim = (int)a->head_dim, p.length = (int)length;
    p.scale = a->scale;
    return p;
}

template <class S>
static fp8flow_status f8_gradient_launch(fp8flow_context *c, const fp8flow_attention_backward_args *a,
                                         const f8_attention_states *states)
{
    f8_gradient_maps maps;
    int blocks;
    f8_gradient_problem p = f8_gradient_describe<S>(a, states);
    F8_TRY(f8_gradient_maps_of<S>(&maps, a));
    F8_TRY(f8_multiprocessors("attention_backward", &blocks));
    int items = p.items.blocks * p.items.pairs;
    blocks = items < blocks ? items : blocks;
    f8_allow_shared(attention_gradient_kernel<S>, S::bytes);
    attention_gradient_kernel<S><<<blocks, S::threads, S::bytes, f8_stream(c)>>>(maps, p);
    return f8_launched("attention_backward");
}

#endif
