/* gemm_wgrad.cuh - the kernel of the grouped FP8 weight gradient c_g[N, K] (+)= a_g[m, N]^T * b_g[m, K]: E4M3 in
 * column form ([N][rows], [K][rows]), FP32 out, overwriting or adding. gemm_fp8_wgrad.cu chooses the layout.
 *
 * A block has two or three multiplying warpgroups of 64 * waves lines of c by 128 columns each, and a producer warp
 * per ring of stages, which the copy engine fills with 128 rows of both operands. One team: the warpgroups share a tile
 * and its ring. Two teams: each warpgroup has a tile and a ring of its own; while one adds to c the other multiplies.
 * Products leave the tensor core every 128 rows and are added, times their scale, to FP32 sums. Rows of b lie permuted
 * in shared memory (a 5-D tensor map does it), so that a lane's sums are whole 16-byte pieces of a line of c: four
 * lanes read, add and write 64 neighbouring bytes. What a tensor map returns for lines outside a and b is zero.
 * The producer warp also brings c to L2, a little with every stage, so that adding to it waits for L2 and not for DRAM.
 *
 * Factors: TILE128 has one per step and warpgroup. Sums are kept in units of the tile's first factor: where a step has
 * the same, promotion is an addition, and where it has twice or half of it, a multiply-add by a constant; both read two
 * registers instead of three, and reading registers bounds this loop.
 * COL128 has one per line and column: a warp beside the producer puts them in shared memory. TENSOR: one at the end.
 */
#ifndef F8_OPS_GEMM_WGRAD_CUH
#define F8_OPS_GEMM_WGRAD_CUH

#include "ops/gemm_wgrad_sums.cuh"

/* ---- Producers ---- */

/* Part `block` of `blocks` of the tile's lines of 128 bytes of c. */
template <class L>
__device__ static inline void wgrad_prefetch(const wgrad_problem &p, const wgrad_tile &t, int block, int blocks)
{
    const int count = L::tile_n / 8; /* per lane */
    for (int i = count * block / blocks; i < count * (block + 1) / blocks; i++) {
        int row = t.n + i * 8 + f8_lane() / 4, column = t.k + f8_lane() % 4 * 32;
        if (row < p.n && column < p.k) f8_prefetch(p.c + ((int64_t)t.expert * p.n + row) * p.c_stride + column);
    }
}

template <class L>
__device__ static void wgrad_produce(const CUtensorMap *a_map, const CUtensorMap *b_map, const wgrad_problem &p,
                                     wgrad_shared<L> &s, uint8_t *stages, int team)
{
    wgrad_walker<L> walk(p, team);
    f8_position<L::stages> ring = { 0, 1 };
    wgrad_tile t;
    while (walk.next(&t)) {
#pragma unroll 1
        for (int block = 0; block < t.blocks(); block++) {
            if (f8_lane() == 0) {
                uint8_t *a = stages + ring.at * L::stage_bytes;
                uint64_t *full = &s.full[team][ring.at];
                int row = t.begin + block * WGRAD_STEP;
                f8_barrier_wait(&s.empty[team][ring.at], ring.phase);
                f8_barrier_expect(full, L::stage_bytes);
                f8_copy_tile(a, a_map, full, row, t.n);
                f8_copy_tile_5d(a + L::a_bytes, b_map, full, row, t.k / 16);
            }
            __syncwarp();
            if (p.prefetch) wgrad_prefetch<L>(p, t, block, t.blocks());
            ring.advance();
        }
    }
}

/* COL128: a warp puts the factors of a stage's lines and columns of c beside it. */
template <class L>
__device__ static void wgrad_produce_factors(const wgrad_problem &p, wgrad_shared<L> &s, float *factors, int team)
{
    wgrad_walker<L> walk(p, team);
    f8_position<L::stages> ring = { 0, 1 };
    wgrad_tile t;
    while (walk.next(&t)) {
        for (int block = 0; block < t.blocks(); block++) {
            int64_t row = t.begin / WGRAD_STEP + block;
            const uint8_t *a = (const uint8_t *)p.a_scale + row * p.n, *b = (const uint8_t *)p.b_scale + row * p.k;
            uint32_t bytes[L::factors / 128];
#pragma unroll
            for (int i = 0; i < L::factors / 128; i++) {
                int x = 4 * (f8_lane() + i * F8_WARP); /* in or outside c together: its sizes are multiples of 16 */
                const uint8_t *from = x < L::tile_n ? a + min(t.n + x, p.n - 4) : b + min(t.k + x - L::tile_n, p.k - 4);
                bytes[i] = __ldg(from) | __ldg(from + 1) << 8 | __ldg(from + 2) << 16 | __ldg(from + 3) << 24;
            }
            f8_barrier_wait(&s.empty[team][ring.at], ring.phase);
#pragma unroll
            for (int i = 0; i < L::factors / 128; i++)
                *(float4 *)(factors + ring.at * L::factors + 4 * (f8_lane() + i * F8_WARP)) =
                    make_float4(f8_scale_decode(bytes[i] & 0xFF), f8_scale_decode(bytes[i] >> 8 & 0xFF),
                                f8_scale_decode(bytes[i] >> 16 & 0xFF), f8_scale_decode(bytes[i] >> 24));
            __syncwarp();
            if (f8_lane() == 0) f8_barrier_arrive(&s.full[team][ring.at]);
            ring.advance();
        }
    }
}

/* ---- Products ---- */

/* The bytes first .. end-1 of the four bytes of a word. */
__device__ static inline uint32_t wgrad_bytes(uint32_t word, int first, int end)
{
    uint32_t below_end = end >= 4 ? ~0u : end <= 0 ? 0 : (1u << 8 * end) - 1;
    uint32_t below_first = first >= 4 ? ~0u : first <= 0 ? 0 : (1u << 8 * first) - 1;
    return word & below_end & ~below_first;
}

/* What a stage has of rows that are not the tile's becomes 0: it may be anything, NaN included. The whole team. */
template <class L>
__device__ static inline void wgrad_keep_rows(const wgrad_tile &t, int block, uint8_t *stage, int team)
{
    int first = block == 0 ? t.head : 0, end = t.rows - block * WGRAD_STEP;
    if (first == 0 && end >= WGRAD_STEP) return;
    for (int line = threadIdx.x % L::team_threads; line < L::tile_n + WGRAD_K; line += L::team_threads)
        for (int chunk = 0; chunk < WGRAD_STEP / 16; chunk++) {
            int from = first - 16 * chunk, to = end - 16 * chunk;
            if (from <= 0 && to >= 16) continue;
            uint4 *at = (uint4 *)(stage + line * WGRAD_STEP + (chunk ^ line % 8) * 16), x = *at;
            *at = make_uint4(wgrad_bytes(x.x, from, to), wgrad_bytes(x.y, from - 4, to - 4),
                             wgrad_bytes(x.z, from - 8, to - 8), wgrad_bytes(x.w, from - 12, to - 12));
        }
    f8_async_fence();
    f8_named_barrier(1 + team, L::team_threads);
}

/* part = the product of 128 rows. */
__device__ static inline void wgrad_multiply(float (&part)[64], uint32_t a, uint32_t b)
{
    uint32_t low_a = f8_operand_low(a), low_b = f8_operand_low(b);
#pragma unroll
    for (int i = 0; i < 64; i++) f8_pin(part[i]);
    f8_products_begin();
#pragma unroll
    for (int step = 0; step < 4; step++)
        f8_product_e4m3(part, F8_OPERAND_HIGH | (low_a + 2 * step), F8_OPERAND_HIGH | (low_b + 2 * step), step);
    f8_products_commit();
#pragma unroll
    for (int i = 0; i < 64; i++) f8_pin(part[i]);
    f8_products_wait<0>();
}

/* ---- Consumers ---- */

/* TILE128, per warp: scale bytes of up to 64 steps of a tile, one per lane, and in what the sums are counted. */
struct wgrad_scales {
    int now, later, unit;
};

/* The exponent of a step relative to the sums; sums are counted anew where it is too far away. */
template <class L>
__device__ static inline int wgrad_relative(const wgrad_problem &p, const wgrad_tile &t, int block, int line,
                                            wgrad_scales &scales, float (&sum)[L::waves][64])
{
    if (block % 32 == 0 && block > 0) {
        scales.now = scales.later;
        scales.later = wgrad_exponent(p, t, block + 32, line);
    }
    int bytes = __shfl_sync(F8_ALL_LANES, scales.now, block % 32);
    if (abs(bytes - scales.unit) > WGRAD_NEAR && scales.unit != WGRAD_ONE) {
        wgrad_power power(scales.unit - WGRAD_ONE);
#pragma unroll
        for (int w = 0; w < L::waves; w++) wgrad_times(sum[w], power.first), wgrad_times(sum[w], power.second);
        scales.unit = WGRAD_ONE;
    }
    return bytes - scales.unit;
}

/* One stage: a, b: addresses of this warpgroup's lines of a and of b; empty: the barrier that gives the stage back. */
template <class L>
__device__ static inline void wgrad_step(float (&sum)[L::waves][64], float (&part)[64], uint32_t a, uint32_t b,
                                         uint32_t empty, int exponent, const float *factors)
{
    const bool by_column = L::scaling == FP8FLOW_COL128; /* then the stage is needed to the end */
    int line = threadIdx.x / 128 % L::groups * 64 * L::waves;
#pragma unroll
    for (int w = 0; w < L::waves; w++) {
        wgrad_multiply(part, a + 64 * WGRAD_STEP * w, b);
        bool done = w == L::waves - 1 && f8_lane() == 0;
        if (done && !by_column) f8_barrier_arrive(empty);
        if (by_column) {
            wgrad_promote(sum[w], part, factors + line + 64 * w, factors + L::tile_n);
            __syncwarp();
        } else {
            wgrad_promote(sum[w], part, exponent);
        }
        if (done && by_column) f8_barrier_arrive(empty);
    }
}

template <class L>
__device__ static inline void wgrad_consume(const wgrad_problem &p, wgrad_shared<L> &s, uint8_t *stages,
                                            const float *factors, int team)
{
    const bool tiled = L::scaling == FP8FLOW_TILE128;
    int line = threadIdx.x / 128 % L::groups * 64 * L::waves;
    uint32_t full = f8_kept(s.full[team]), empty = full + sizeof s.full;
    uint32_t a = f8_kept(stages + line * WGRAD_STEP), b = f8_kept(stages + L::a_bytes);
    wgrad_walker<L> walk(p, team);
    f8_position<L::stages> ring = { 0, 0 };
    wgrad_tile t, next;
    bool more = walk.next(&next);
    int next_scales = more && tiled ? wgrad_exponent(p, next, 0, next.n + line) : 0;
    while (more) {
        t = next;
        wgrad_scales scales = { next_scales, tiled ? wgrad_exponent(p, t, 32, t.n + line) : 0,
                                __shfl_sync(F8_ALL_LANES, next_scales, 0) };
        more = walk.next(&next);
        if (more && tiled) next_scales = wgrad_exponent(p, next, 0, next.n + line);
        float sum[L::waves][64], part[64];
#pragma unroll
        for (int w = 0; w < L::waves; w++)
#pragma unroll
            for (int i = 0; i < 64; i++) sum[w][i] = 0.0f;
        int blocks = t.blocks();
        for (int block = 0; block < blocks; block++) {
            int exponent = tiled ? wgrad_relative<L>(p, t, block, t.n + line, scales, sum) : 0;
            int offset = ring.at * L::stage_bytes;
            f8_barrier_wait(full + 8 * ring.at, ring.phase);
            wgrad_keep_rows<L>(t, block, stages + offset, team);
            wgrad_step<L>(sum, part, a + offset, b + offset, empty + 8 * ring.at, exponent,
                          factors + ring.at * L::factors);
            ring.advance();
        }
        wgrad_power power = wgrad_ending<L>(p, t, scales.unit);
        if (power.first != 1.0f)
#pragma unroll
            for (int w = 0; w < L::waves; w++) wgrad_times(sum[w], power.first);
        if (p.write == FP8FLOW_ACCUMULATE)
            wgrad_add_to<L>(p, t, t.n + line, sum, power.second);
        else
            wgrad_replace<L>(p, t, t.n + line, sum, power.second);
    }
}

template <class L>
__global__ __launch_bounds__(L::threads, 1) static void wgrad_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                     const __grid_constant__ CUtensorMap b_map,
                                                                     const __grid_constant__ wgrad_problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ wgrad_shared<L> s;
    uint8_t *stages = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    float *factors = (float *)(stages + L::teams * L::stages * L::stage_bytes);
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::teams; i++)
            f8_ring_init(s.full[i], s.empty[i], L::scaling == FP8FLOW_COL128 ? 2 : 1, 4 * L::groups);
        f8_barrier_fence();
    }
    __syncthreads();
    if (threadIdx.x >= 128 * L::consumers) {
        f8_registers_less<L::producer_registers>();
        int warp = threadIdx.x / 32 - 4 * L::consumers, team = warp % L::teams;
        if (warp < L::teams)
            wgrad_produce<L>(&a_map, &b_map, p, s, stages + team * L::stages * L::stage_bytes, team);
        if constexpr (L::factors > 0)
            if (warp >= L::teams && warp < 2 * L::teams)
                wgrad_produce_factors<L>(p, s, factors + team * L::stages * L::factors, team);
    } else {
        f8_registers_more<L::consumer_registers>();
        int team = threadIdx.x / 128 / L::groups;
        wgrad_consume<L>(p, s, stages + team * L::stages * L::stage_bytes, factors + team * L::stages * L::factors,
                         team);
    }
}

#endif
