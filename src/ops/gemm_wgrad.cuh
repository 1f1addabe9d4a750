/* gemm_wgrad.cuh - the kernel of the grouped FP8 weight gradient c_g[N, K] (+)= a_g[m, N]^T * b_g[m, K]: E4M3 in
 * column form ([N][rows], [K][rows]), FP32 out, overwriting or adding. gemm_fp8_wgrad.cu chooses the layout.
 *
 * A block computes tiles of c of 256 x 128: two multiplying warpgroups with two waves of 64 lines each, and a producer
 * thread that fills a ring of stages through the copy engine with 128 rows of both operands. Products leave the tensor
 * core every 128 rows and are added, times their scale, to FP32 sums. Rows of b lie permuted in shared memory (a 5-D
 * tensor map does it), so that a lane's sums are whole 16-byte pieces of a line of c. What a tensor map returns for
 * lines outside a and b is zero.
 *
 * DIRECT (no slots): the warpgroups write c themselves, or read it, add and write; 64 neighbouring bytes per 4 lanes.
 * STAGED, to add: per warpgroup a ring of slots of 64 x 32 numbers of c. A keeper thread loads them long before they
 * are needed, the warpgroup adds in place, the keeper stores them: reads, products and writes of different tiles
 * overlap. Costs a stage.
 *
 * Factors: TILE128 has one per step and warpgroup, brought 32 steps at a time, one per lane. COL128 has one per line
 * and column: a warp beside the producer puts them in shared memory. TENSOR: one at the end.
 */
#ifndef F8_OPS_GEMM_WGRAD_CUH
#define F8_OPS_GEMM_WGRAD_CUH

#include "ops/gemm_wgrad_c.cuh"

/* ---- Producers ---- */

template <class L>
__device__ static void wgrad_produce(const CUtensorMap *a_map, const CUtensorMap *b_map, const wgrad_problem &p,
                                     wgrad_shared<L> &s, uint8_t *stages)
{
    wgrad_walker<L> walk(p);
    wgrad_position<L::stages> ring = { 0, 1 };
    wgrad_tile t;
    while (walk.next(&t)) {
#pragma unroll 1
        for (int block = 0; block < t.blocks(); block++) {
            uint8_t *a = stages + ring.at * L::stage_bytes;
            uint64_t *full = &s.full[ring.at];
            int row = t.begin + block * WGRAD_STEP;
            f8_barrier_wait(&s.empty[ring.at], ring.phase);
            f8_barrier_expect(full, L::stage_bytes);
            f8_copy_tile(a, a_map, full, row, t.n);
            f8_copy_tile_5d(a + L::a_bytes, b_map, full, row, t.k / (4 * L::lane_columns));
            ring.advance();
        }
    }
}

/* COL128: a warp puts the factors of a stage's lines and columns of c beside it. */
template <class L>
__device__ static void wgrad_produce_factors(const wgrad_problem &p, wgrad_shared<L> &s, float *factors)
{
    wgrad_walker<L> walk(p);
    wgrad_position<L::stages> ring = { 0, 1 };
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
            f8_barrier_wait(&s.empty[ring.at], ring.phase);
#pragma unroll
            for (int i = 0; i < L::factors / 128; i++)
                *(float4 *)(factors + ring.at * L::factors + 4 * (f8_lane() + i * F8_WARP)) =
                    make_float4(f8_scale_decode(bytes[i] & 0xFF), f8_scale_decode(bytes[i] >> 8 & 0xFF),
                                f8_scale_decode(bytes[i] >> 16 & 0xFF), f8_scale_decode(bytes[i] >> 24));
            __syncwarp();
            if (f8_lane() == 0) f8_barrier_arrive(&s.full[ring.at]);
            ring.advance();
        }
    }
}

/* ---- Factors ---- */

/* TILE128: scale bytes of a and b on their way: nothing may use them before they are needed, or the warp waits for
 * memory. */
struct wgrad_scale_bytes {
    uint32_t a, b;

    __device__ float product() const { return f8_scale_decode((uint8_t)a) * f8_scale_decode((uint8_t)b); }
};

/* Lane i: those of block first + i of the tile, for the 128 lines of c around `line`. */
__device__ static inline wgrad_scale_bytes wgrad_scales(const wgrad_problem &p, const wgrad_tile &t, int first,
                                                        int line)
{
    int block = min(first + f8_lane(), t.blocks() - 1), column = min(line, p.n - 1) / 128;
    if (block < 0) return { 0, 0 };
    int64_t row = t.begin / WGRAD_STEP + block;
    return { __ldg((const uint8_t *)p.a_scale + row * ((p.n + 127) / 128) + column),
             __ldg((const uint8_t *)p.b_scale + row * ((p.k + 127) / 128) + t.k / 128) };
}

/* COL128: sum += part times the factors of line and column. `lines`, `columns`: those of the wave, in shared memory.
 * Where a factor is large, the smaller first: part, a multiple of 2^-18 below 2^25, times it is exact, and too large
 * only if the whole is. */
__device__ static inline void wgrad_promote(float (&sum)[64], const float (&part)[64], const float *lines,
                                            const float *columns)
{
    int lane = f8_lane(), row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    float line[2] = { lines[row], lines[row + 8] };
    const float4 *column = (const float4 *)(columns + lane % 4 * 4);
    if (__any_sync(F8_ALL_LANES, fmaxf(line[0], line[1]) > 0x1p64f)) {
#pragma unroll
        for (int i = 0; i < 64; i++) {
            f8_keep_order();
            float f = columns[i / 8 * 16 + lane % 4 * 4 + i % 8 / 4 * 2 + i % 2], g = line[i / 2 % 2];
            sum[i] = fmaf(part[i] * fminf(f, g), fmaxf(f, g), sum[i]);
            f8_pin(sum[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            f8_keep_order();
            float4 x = column[4 * i];
            const float factor[4] = { x.x, x.y, x.z, x.w };
#pragma unroll
            for (int j = 0; j < 8; j++) {
                sum[8 * i + j] = fmaf(part[8 * i + j] * line[j / 2 % 2], factor[j / 4 * 2 + j % 2], sum[8 * i + j]);
                f8_pin(sum[8 * i + j]);
            }
        }
    }
}

/* TENSOR: what the sums of a tile are multiplied by: the product of its scales where that is exact to 24 bits; else the
 * sums take the first here. */
template <class L>
__device__ static inline float wgrad_scale_tensor(const wgrad_problem &p, const wgrad_tile &t,
                                                  float (&sum)[L::waves][64])
{
    if (t.rows == 0) return 1.0f;
    float a = __ldg((const float *)p.a_scale + t.expert), b = __ldg((const float *)p.b_scale + t.expert);
    float product = a * b;
    if (fabsf(product) > 0x1p-100f && fabsf(product) < 0x1p100f) return product;
#pragma unroll
    for (int w = 0; w < L::waves; w++)
#pragma unroll
        for (int i = 0; i < 64; i++) sum[w][i] *= a;
    return b;
}

/* ---- Products ---- */

/* A word without its bytes first .. end-1 (of 0 .. 3). */
__device__ static inline uint32_t wgrad_without(uint32_t word, int first, int end)
{
    uint32_t below_end = end >= 4 ? ~0u : end <= 0 ? 0 : (1u << 8 * end) - 1;
    uint32_t below_first = first >= 4 ? ~0u : first <= 0 ? 0 : (1u << 8 * first) - 1;
    return word & ~(below_end & ~below_first);
}

/* Bytes first .. end-1 of every line of a stage become 0: they belong to no row of the tile and may be anything, NaN
 * included. Each consumer clears lines of its own. */
template <class L> __device__ static inline void wgrad_clear(uint8_t *stage, int first, int end)
{
    for (int line = threadIdx.x; line < L::tile_n + WGRAD_K; line += L::consumer_threads)
#pragma unroll 1
        for (int chunk = first / 16; 16 * chunk < end; chunk++) {
            uint4 *at = (uint4 *)(stage + line * WGRAD_STEP + (chunk ^ line % 8) * 16), x = make_uint4(0, 0, 0, 0);
            int from = first - 16 * chunk, to = end - 16 * chunk;
            if (from > 0 || to < 16) {
                x = *at;
                x = make_uint4(wgrad_without(x.x, from, to), wgrad_without(x.y, from - 4, to - 4),
                               wgrad_without(x.z, from - 8, to - 8), wgrad_without(x.w, from - 12, to - 12));
            }
            *at = x;
        }
}

/* What a stage has of rows that are not the tile's is cleared. All consumers. */
template <class L> __device__ static inline void wgrad_own_rows(const wgrad_tile &t, int block, uint8_t *stage)
{
    bool has_head = L::scaling == FP8FLOW_TENSOR && block == 0 && t.head > 0;
    int end = t.rows - block * WGRAD_STEP;
    if (end >= WGRAD_STEP && !has_head) return;
    if (has_head) wgrad_clear<L>(stage, 0, t.head);
    if (end < WGRAD_STEP) wgrad_clear<L>(stage, end, WGRAD_STEP);
    f8_async_fence();
    f8_named_barrier(1, L::consumer_threads);
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

/* One stage: a, b: addresses of this warpgroup's lines of a and of b; empty: the barrier that gives the stage back;
 * factor: of TILE128, else 1; factors: of COL128. */
template <class L>
__device__ static inline void wgrad_step(float (&sum)[L::waves][64], uint32_t a, uint32_t b, uint32_t empty,
                                         float factor, const float *factors)
{
    const bool by_column = L::scaling == FP8FLOW_COL128; /* then the stage is needed to the end */
    float part[64];
#pragma unroll
    for (int w = 0; w < L::waves; w++) {
        wgrad_multiply(part, a + 64 * WGRAD_STEP * w, b);
        bool done = w == L::waves - 1 && f8_lane() == 0;
        if (by_column) {
            wgrad_promote(sum[w], part, factors + threadIdx.x / 128 * 64 * L::waves + 64 * w, factors + L::tile_n);
            __syncwarp();
            if (done) f8_barrier_arrive(empty);
        } else {
            if (done) f8_barrier_arrive(empty);
#pragma unroll
            for (int i = 0; i < 64; i++) sum[w][i] = fmaf(part[i], factor, sum[w][i]);
        }
    }
}

/* The sums of a tile to c. */
template <class L>
__device__ static inline void wgrad_finish(const wgrad_problem &p, const wgrad_tile &t, wgrad_shared<L> &s,
                                           uint8_t *slots, wgrad_position<L::barrier_slots> &slot,
                                           float (&sum)[L::waves][64])
{
    int line = t.n + threadIdx.x / 128 * 64 * L::waves;
    if (L::slots > 0) {
#pragma unroll
        for (int w = 0; w < L::waves; w++) wgrad_add_staged<L>(s, slots, slot, sum[w]);
        return;
    }
    float factor = L::scaling == FP8FLOW_TENSOR ? wgrad_scale_tensor<L>(p, t, sum) : 1.0f;
    if (p.write == FP8FLOW_ACCUMULATE)
        wgrad_add_to<L>(p, t, line, sum, factor);
    else
        wgrad_replace<L>(p, t, line, sum, factor);
}

/* slots: this warpgroup's. */
template <class L>
__device__ static inline void wgrad_consume(const wgrad_problem &p, wgrad_shared<L> &s, uint8_t *stages, uint8_t *slots,
                                            const float *factors)
{
    const bool tiled = L::scaling == FP8FLOW_TILE128;
    int line = threadIdx.x / 128 * 64 * L::waves;
    uint32_t full = f8_kept(s.full), empty = full + sizeof s.full;
    uint32_t a = f8_kept(stages + line * WGRAD_STEP), b = f8_kept(stages + L::a_bytes);
    wgrad_walker<L> walk(p);
    wgrad_position<L::stages> ring = { 0, 0 };
    wgrad_position<L::barrier_slots> slot = { 0, 0 };
    wgrad_tile t, next;
    wgrad_scale_bytes next_bytes = { 0, 0 }, later = { 0, 0 };
    bool more = walk.next(&next);
    if (more && tiled) next_bytes = wgrad_scales(p, next, 0, next.n + line);
    while (more) {
        t = next;
        float scale = next_bytes.product();
        if (tiled) later = wgrad_scales(p, t, F8_WARP, t.n + line);
        more = walk.next(&next);
        if (more && tiled) next_bytes = wgrad_scales(p, next, 0, next.n + line);
        float sum[L::waves][64];
#pragma unroll
        for (int w = 0; w < L::waves; w++)
#pragma unroll
            for (int i = 0; i < 64; i++) sum[w][i] = 0.0f;
        int blocks = t.blocks();
        for (int block = 0; block < blocks; block++) {
            if (tiled && block % F8_WARP == 0 && block > 0) {
                scale = later.product();
                later = wgrad_scales(p, t, block + F8_WARP, t.n + line);
            }
            float factor = tiled ? __shfl_sync(F8_ALL_LANES, scale, block % F8_WARP) : 1.0f;
            int offset = ring.at * L::stage_bytes;
            f8_barrier_wait(full + 8 * ring.at, ring.phase);
            wgrad_own_rows<L>(t, block, stages + offset);
            wgrad_step<L>(sum, a + offset, b + offset, empty + 8 * ring.at, factor, factors + ring.at * L::factors);
            ring.advance();
        }
        wgrad_finish<L>(p, t, s, slots, slot, sum);
    }
}

template <class L> __device__ static void wgrad_init(wgrad_shared<L> &s)
{
    for (int i = 0; i < L::stages; i++) {
        f8_barrier_init(&s.full[i], L::scaling == FP8FLOW_COL128 ? 2 : 1);
        f8_barrier_init(&s.empty[i], 4 * L::groups);
    }
    for (int i = 0; i < L::groups * L::slots; i++) {
        f8_barrier_init(&s.c_ready[0][0] + i, 1);
        f8_barrier_init(&s.c_done[0][0] + i, 4);
    }
    f8_barrier_fence();
}

/* c_map: of STAGED. */
template <class L>
__global__ __launch_bounds__(L::threads, 1) static void wgrad_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                     const __grid_constant__ CUtensorMap b_map,
                                                                     const __grid_constant__ CUtensorMap c_map,
                                                                     const __grid_constant__ wgrad_problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ wgrad_shared<L> s;
    uint8_t *stages = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    uint8_t *slots = stages + L::stages * L::stage_bytes;
    float *factors = (float *)slots; /* a layout has the one or the other */
    if (threadIdx.x == 0) wgrad_init<L>(s);
    __syncthreads();
    if (threadIdx.x >= L::consumer_threads) {
        f8_registers_less<L::producer_registers>();
        int warp = (threadIdx.x - L::consumer_threads) / F8_WARP;
        if (warp == 0 && f8_lane() == 0) wgrad_produce<L>(&a_map, &b_map, p, s, stages);
        if constexpr (L::slots > 0)
            if (warp > 0 && warp <= L::groups && f8_lane() == 0)
                wgrad_keep<L>(&c_map, p, s, slots + (warp - 1) * L::slots * WGRAD_PIECE_BYTES, warp - 1);
        if constexpr (L::factors > 0)
            if (warp == 1) wgrad_produce_factors<L>(p, s, factors);
    } else {
        f8_registers_more<L::consumer_registers>();
        wgrad_consume<L>(p, s, stages, slots + threadIdx.x / 128 * L::slots * WGRAD_PIECE_BYTES, factors);
    }
}

#endif
