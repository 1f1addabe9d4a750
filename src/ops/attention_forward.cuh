/* attention_forward.cuh - softmax(scale q k^T) v on the tensor cores, for head_dim 32, 64, 96 and 128.
 *
 * Persistent blocks walk tiles of 64 queries per warpgroup of one head:
 *   one thread      copies the queries, then keys and values of 128 tokens at a time through a ring of stages, from the
 *                   last that the tile sees to the first: K(n), K(n-1), V(n), K(n-2), V(n-1), ... V(0).
 *   each warpgroup  has 64 queries, their sums (head_dim / 2 registers), scores of one block of keys (64) and the
 *                   weights of the block before (32): while the tensor cores multiply those by the values, it makes
 *                   weights of the scores. Named barriers that let one warpgroup in at a time made it slower, by 7 to
 *                   20 %.
 * The maximum so far is taken out of the scores; sums are multiplied when it grows. Blocks of keys that no query of the
 * tile sees are left out; only those that some query does not see are masked. Weights are rounded to BF16 for the
 * product, their sum is not. Written per query and head: 2 head_dim + 4 bytes; read: 2 head_dim, and 4 head_dim bytes
 * per key and tile, from L2.
 */
#ifndef F8_OPS_ATTENTION_FORWARD_CUH
#define F8_OPS_ATTENTION_FORWARD_CUH

#include "ops/attention.cuh"

/* By value for the kernel. */
struct f8_attention_problem {
    f8_attention_items items;
    fp8flow_tensor o;
    float *lse;
    int num_heads, heads_per_kv, head_dim;
    int queries, keys; /* per sequence */
    float scale;       /* log2(e) times the scale of the scores; above 0 */
};

template <int head_dim_, int groups_, int stages_> struct f8_attention_shape {
    static const int head_dim = head_dim_, groups = groups_, stages = stages_;
    static const int queries = 64 * groups, keys = 128, threads = 128 * (groups + 1);
    static const int q_bytes = f8_attention_tile<head_dim, queries>::bytes;
    static const int stage_bytes = f8_attention_tile<head_dim, keys>::bytes;
    static const int bytes = 1024 + q_bytes + stages * stage_bytes + 4 * groups * F8_TURN_BYTES;
    static const int registers = groups == 2 ? 240 : 160, producer_registers = groups == 2 ? 24 : 32;
};

template <class S> struct f8_attention_shared {
    uint64_t full[S::stages], empty[S::stages], q_full, q_empty;
};

/* One tile. */
struct f8_attention_job {
    int sequence, head, query, blocks; /* the first query; blocks of keys */

    template <class S> __device__ static f8_attention_job of(const f8_attention_problem &p, int place, int pair, S)
    {
        int query = (p.items.blocks - 1 - place) * S::queries;
        int last = min(query + S::queries, p.queries) - 1 + p.keys - p.queries;
        return { pair / p.num_heads, pair % p.num_heads, query, last / S::keys + 1 };
    }
};

/* ---- The thread that copies ---- */

template <class S>
__device__ static inline void attention_copy(uint8_t *ring, f8_attention_shared<S> &shared, const CUtensorMap *map,
                                             f8_position<S::stages> &stage, int kv_head, int block, int sequence)
{
    f8_barrier_wait(&shared.empty[stage.at], stage.phase);
    f8_barrier_expect(&shared.full[stage.at], S::stage_bytes);
    f8_copy_tokens<S::head_dim, S::keys>(ring + stage.at * S::stage_bytes, map, &shared.full[stage.at], kv_head,
                                         block * S::keys, sequence);
    stage.advance();
}

template <class S>
__device__ static void attention_produce(const f8_attention_problem &p, const CUtensorMap *q_map,
                                         const CUtensorMap *k_map, const CUtensorMap *v_map,
                                         f8_attention_shared<S> &shared, uint8_t *memory)
{
    f8_attention_walk walk(p.items);
    f8_position<S::stages> stage = { 0, 1 };
    uint32_t q_phase = 1;
    int place, pair;
    while (walk.next(&place, &pair)) {
        f8_attention_job t = f8_attention_job::of(p, place, pair, S());
        int kv_head = t.head / p.heads_per_kv;
        f8_barrier_wait(&shared.q_empty, q_phase);
        f8_barrier_expect(&shared.q_full, S::q_bytes);
        f8_copy_tokens<S::head_dim, S::queries>(memory, q_map, &shared.q_full, t.head, t.query, t.sequence);
        q_phase ^= 1;
        for (int block = t.blocks - 1; block >= -1; block--) {
            if (block >= 0) attention_copy<S>(memory + S::q_bytes, shared, k_map, stage, kv_head, block, t.sequence);
            if (block + 1 < t.blocks)
                attention_copy<S>(memory + S::q_bytes, shared, v_map, stage, kv_head, block + 1, t.sequence);
        }
    }
}

/* ---- The warpgroups that multiply ---- */

/* Of the two rows of accumulators that a lane has a part of. */
struct attention_rows {
    float max[2], total[2]; /* of scores; of weights, the lane's part */
};

/* Scores of keys above `limit` (of the lane's first row and first key) count nothing. */
template <int count> __device__ static inline void attention_mask(float (&s)[count], int limit)
{
#pragma unroll
    for (int i = 0; i < count; i++)
        if (i / 4 * 8 + i % 2 > limit + i / 2 % 2 * 8) s[i] = -INFINITY;
}

/* Scores become weights exp2(scale (s - max)); keep: what the sums before are to be multiplied with. */
template <int count>
__device__ static inline void attention_weigh(float (&s)[count], attention_rows &rows, float scale, float (&keep)[2])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float max[2] = { rows.max[h], rows.max[h] }, total[2] = { 0, 0 };
#pragma unroll
        for (int i = 2 * h; i < count; i += 4) {
            max[0] = fmaxf(max[0], s[i]);
            max[1] = fmaxf(max[1], s[i + 1]);
        }
        float most = f8_warp_max<4>(fmaxf(max[0], max[1]));
        /* Nothing seen yet: differences from 0, not from -Inf. */
        float base = most == -INFINITY ? 0.0f : most * scale;
        keep[h] = f8_exp2(fmaf(rows.max[h], scale, -base));
        rows.max[h] = most;
#pragma unroll
        for (int i = 2 * h; i < count; i += 4) {
            s[i] = f8_exp2(fmaf(s[i], scale, -base));
            s[i + 1] = f8_exp2(fmaf(s[i + 1], scale, -base));
            total[0] += s[i];
            total[1] += s[i + 1];
        }
        rows.total[h] = fmaf(rows.total[h], keep[h], total[0] + total[1]);
    }
}

template <int count> __device__ static inline void attention_keep(float (&o)[count], const float (&keep)[2])
{
#pragma unroll
    for (int i = 0; i < count; i++) o[i] *= keep[i / 2 % 2];
}

/* Addresses of a warpgroup's operands and barriers. */
struct attention_operands {
    uint32_t q, k, v; /* descriptors; of the first stage */
    uint32_t full, empty, q_full, q_empty;
};

template <class S>
__device__ static inline attention_operands attention_addresses(f8_attention_shared<S> &shared, uint8_t *memory,
                                                                int group)
{
    /* A shuffle makes descriptors uniform to the compiler: no moves between the products. */
    uint32_t address = __shfl_sync(F8_ALL_LANES, f8_smem(memory), 0), barriers = f8_kept(shared.full);
    attention_operands x;
    x.q = f8_operand_low(address + group * 64 * F8_TILE_LINE);
    x.k = f8_operand_low(address + S::q_bytes);
    x.v = f8_operand_low_outer(address + S::q_bytes, f8_attention_tile<S::head_dim, S::keys>::part_bytes);
    x.full = barriers, x.empty = barriers + 8 * S::stages;
    x.q_full = barriers + 16 * S::stages, x.q_empty = x.q_full + 8;
    return x;
}

/* One tile up to the division: o, and max and total of its rows. `limit`: the last key that the lane's first row sees,
 * less the lane's first key; `all`: the last key that all rows of the warpgroup see. */
template <class S>
__device__ static inline void attention_run(const attention_operands &x, int blocks, int limit, int all, float scale,
                                            f8_position<S::stages> &stage, attention_rows &rows,
                                            float (&o)[S::head_dim / 2])
{
    const int stage_step = S::stage_bytes / 16;
    float s[S::keys / 2], keep[2];
    uint32_t weights[S::keys / 4];
    f8_barrier_wait(x.full + 8 * stage.at, stage.phase);
    f8_products_begin();
    f8_multiply_heads<S::head_dim, S::queries, S::keys>(s, x.q, x.k + stage.at * stage_step);
    f8_products_commit();
    f8_products_wait<0>();
    f8_pin_all(s);
    f8_release(x.empty + 8 * stage.at);
    stage.advance();
    int key = (blocks - 1) * S::keys;
    if (key + S::keys - 1 > all) attention_mask(s, limit - key);
    attention_weigh(s, rows, scale, keep);
    f8_pack_weights(weights, s);
    f8_barrier_wait(x.full + 8 * stage.at, stage.phase);
#pragma unroll
    for (int i = 0; i < S::head_dim / 2; i++) f8_set_zero(o[i]);
#pragma unroll 1
    for (key -= S::keys; key >= 0; key -= S::keys) {
        uint32_t k_stage = stage.at;
        f8_products_begin();
        f8_multiply_heads<S::head_dim, S::queries, S::keys>(s, x.q, x.k + stage.at * stage_step);
        f8_products_commit();
        stage.advance();
        f8_barrier_wait(x.full + 8 * stage.at, stage.phase);
        f8_products_begin();
        f8_multiply_tokens(o, weights, x.v + stage.at * stage_step);
        f8_products_commit();
        f8_products_wait<1>();
        f8_pin_all(s);
        f8_release(x.empty + 8 * k_stage);
        if (key + S::keys - 1 > all) attention_mask(s, limit - key);
        attention_weigh(s, rows, scale, keep);
        uint32_t v_stage = stage.at;
        stage.advance();
        /* The next stage, here: across the loop of this wait ptxas does not pull the wait for the products forward. */
        f8_pin_all(s);
        f8_barrier_wait(x.full + 8 * stage.at, stage.phase);
        f8_products_wait<0>();
        f8_pin_all(o);
        f8_release(x.empty + 8 * v_stage);
        attention_keep(o, keep);
        f8_pack_weights(weights, s);
    }
    f8_release(x.q_empty);
    f8_products_begin();
    f8_multiply_tokens(o, weights, x.v + stage.at * stage_step);
    f8_products_commit();
    f8_products_wait<0>();
    f8_pin_all(o);
    f8_release(x.empty + 8 * stage.at);
    stage.advance();
}

/* Sums divided by the total of the weights; lse. `query`: the warp's first. */
template <class S>
__device__ static inline void attention_write(const f8_attention_problem &p, const f8_attention_job &t, int query,
                                              uint8_t *turn, attention_rows &rows, float (&o)[S::head_dim / 2])
{
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float total = f8_warp_sum<4>(rows.total[h]);
        int at = query + f8_lane() / 4 + 8 * h;
        inverse[h] = 1.0f / total;
        if (p.lse && f8_lane() % 4 == 0 && at < p.queries)
            p.lse[((int64_t)t.sequence * p.queries + at) * p.num_heads + t.head] =
                fmaf(rows.max[h], p.scale, log2f(total)) * F8_LN_2;
    }
    attention_keep(o, inverse);
    f8_write_tokens(f8_head_of(p.o, t.sequence, t.head, p.queries, p.head_dim), query, turn, o);
}

template <class S>
__device__ static void attention_consume(const f8_attention_problem &p, f8_attention_shared<S> &shared,
                                         uint8_t *memory)
{
    int group = __shfl_sync(F8_ALL_LANES, threadIdx.x / 128, 0), warp = threadIdx.x / F8_WARP, lane = f8_lane();
    uint8_t *turn = memory + S::q_bytes + S::stages * S::stage_bytes + warp * F8_TURN_BYTES;
    attention_operands x = attention_addresses<S>(shared, memory, group);
    f8_attention_walk walk(p.items);
    f8_position<S::stages> stage = { 0, 0 };
    uint32_t q_phase = 0;
    int place, pair;
    while (walk.next(&place, &pair)) {
        f8_attention_job t = f8_attention_job::of(p, place, pair, S());
        int first = t.query + group * 64, query = first + warp % 4 * 16, all = first + p.keys - p.queries;
        int limit = query + lane / 4 + p.keys - p.queries - lane % 4 * 2;
        attention_rows rows = { { -INFINITY, -INFINITY }, { 0, 0 } };
        float o[S::head_dim / 2];
        f8_barrier_wait(x.q_full, q_phase);
        q_phase ^= 1;
        attention_run<S>(x, __shfl_sync(F8_ALL_LANES, t.blocks, 0), limit, all, p.scale, stage, rows, o);
        attention_write<S>(p, t, query, turn, rows, o);
    }
}

template <class S>
__global__ __launch_bounds__(S::threads, 1) static void attention_kernel(const __grid_constant__ CUtensorMap q_map,
                                                                         const __grid_constant__ CUtensorMap k_map,
                                                                         const __grid_constant__ CUtensorMap v_map,
                                                                         const __grid_constant__ f8_attention_problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ f8_attention_shared<S> shared;
    uint8_t *memory = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    if (threadIdx.x == 0) {
        f8_ring_init(shared.full, shared.empty, 1, 4 * S::groups);
        f8_barrier_init(&shared.q_full, 1);
        f8_barrier_init(&shared.q_empty, 4 * S::groups);
        f8_barrier_fence();
    }
    __syncthreads();
    if (threadIdx.x / 128 == S::groups) {
        f8_registers_less<S::producer_registers>();
        if (threadIdx.x % 128 == 0) attention_produce<S>(p, &q_map, &k_map, &v_map, shared, memory);
    } else {
        f8_registers_more<S::registers>();
        attention_consume<S>(p, shared, memory);
    }
}

/* ---- Launch ---- */

static inline f8_attention_problem f8_attention_describe(const fp8flow_attention_args *a, int queries)
{
    f8_attention_problem p = {};
    int64_t num_queries = a->q->rows / a->batch, num_keys = a->k->rows / a->batch;
    int64_t pair_bytes = num_keys * a->head_dim * 4 * a->num_kv_heads / a->num_heads;
    p.items = f8_attention_list(f8_ceil_div(num_queries, queries), a->batch * a->num_heads, pair_bytes);
    p.o = *a->o, p.lse = a->lse;
    p.num_heads = (int)a->num_heads, p.heads_per_kv = (int)(a->num_heads / a->num_kv_heads);
    p.head_dim = (int)a->head_dim, p.queries = (int)num_queries, p.keys = (int)num_keys;
    p.scale = a->scale * F8_LOG2_E;
    return p;
}

template <class S> static fp8flow_status f8_attention_launch(fp8flow_context *c, const fp8flow_attention_args *a)
{
    CUtensorMap q_map, k_map, v_map;
    int blocks;
    f8_attention_problem p = f8_attention_describe(a, S::queries);
    F8_TRY(f8_attention_map("attention", &q_map, a->q, a->batch, a->head_dim, S::queries));
    F8_TRY(f8_attention_map("attention", &k_map, a->k, a->batch, a->head_dim, S::keys));
    F8_TRY(f8_attention_map("attention", &v_map, a->v, a->batch, a->head_dim, S::keys));
    F8_TRY(f8_multiprocessors("attention", &blocks));
    int items = p.items.blocks * p.items.pairs;
    blocks = items < blocks ? items : blocks;
    f8_allow_shared(attention_kernel<S>, S::bytes);
    attention_kernel<S><<<blocks, S::threads, S::bytes, f8_stream(c)>>>(q_map, k_map, v_map, p);
    return f8_launched("attention");
}

#endif
