/* gemm_wgrad.cuh - the kernel of the grouped FP8 weight gradient c_g[N, K] (+)= a_g[m, N]^T * b_g[m, K]: E4M3 in column
 * form ([N][rows], [K][rows]), FP32 out, overwriting or adding. gemm_fp8_wgrad.cu chooses the layout and launches it.
 *
 * A block has two or three multiplying warpgroups of 64 * waves lines of c by 128 columns each, and a producer warp per
 * ring of stages, which the copy engine fills with 128 rows of both operands. One team: the warpgroups share a tile and
 * its ring. Two teams: each warpgroup has a tile and a ring of its own, and while one adds to c the other multiplies.
 * Products leave the tensor core every 128 rows and are added, times their scale, to FP32 sums. Rows of b lie permuted
 * in shared memory (a 5-D tensor map does it), so that a lane's sums are whole 16-byte pieces of a line of c: four lanes
 * read, add and write 64 neighbouring bytes. What a tensor map returns for lines behind the last of a or b is zero.
 * The producer warp also brings c to L2, a little with every stage, so that adding to it waits for L2 and not for DRAM.
 *
 * Factors: TILE128 has one per step and warpgroup. Sums are kept in units of the tile's first factor: where a step has
 * the same, promotion is an addition, and where it has twice or half of it, a multiply-add by a constant; both read two
 * registers instead of three, and reading registers bounds this loop.
 * COL128 has one per line and column: a warp beside the producer puts them in shared memory. TENSOR: one at the end.
 */
#ifndef F8_OPS_GEMM_WGRAD_CUH
#define F8_OPS_GEMM_WGRAD_CUH

#include "ops/hopper.cuh"
#include "ops/warp.cuh"

enum { WGRAD_STEP = 128, WGRAD_K = 128 };

/* groups: multiplying warpgroups of a team; waves: of 64 lines of c per warpgroup; stages: per team. */
template <fp8flow_scaling scaling_, int teams_, int groups_, int waves_, int stages_> struct wgrad_layout {
    static const fp8flow_scaling scaling = scaling_;
    static const int teams = teams_, groups = groups_, waves = waves_, stages = stages_, consumers = teams * groups;
    static const int tile_n = 64 * waves * groups;
    static const int threads = 128 * (consumers + 1), team_threads = 128 * groups;
    static const int producer_registers = consumers == 3 ? 32 : 40, consumer_registers = consumers == 3 ? 160 : 232;
    static const int a_bytes = tile_n * WGRAD_STEP, b_bytes = WGRAD_K * WGRAD_STEP, stage_bytes = a_bytes + b_bytes;
    static const int factors = scaling == FP8FLOW_COL128 ? (tile_n + WGRAD_K + 127) / 128 * 128 : 0; /* per stage */
    static const int bytes = teams * stages * (stage_bytes + 4 * factors) + 1024;
    static_assert(bytes + 1024 <= 232448, "shared memory of a block");
};

struct wgrad_problem {
    const void *a_scale, *b_scale;
    float *c;
    const int32_t *offset, *rows; /* NULL: one expert with all rows */
    int64_t c_stride;
    int32_t experts, all_rows, n, k;
    int32_t band; /* tiles along n that are visited before the next along k */
    fp8flow_write write;
    int32_t prefetch; /* c to L2, ahead of adding to it */
};

template <class L> struct wgrad_shared {
    uint64_t full[L::teams][L::stages], empty[L::teams][L::stages];
};

/* Rows begin .. begin + rows - 1 of the operands, of which the first `head` are another expert's: boxes begin at
 * multiples of 16. */
struct wgrad_tile {
    int expert, begin, rows, head;
    int n, k; /* first line (of the expert) and column of c */

    __device__ int blocks() const { return (rows + WGRAD_STEP - 1) / WGRAD_STEP; }
};

/* The tiles of a team in order: expert by expert, in bands of lines of c, lines first. */
template <class L> struct wgrad_walker {
    const wgrad_problem &p;
    int index;

    __device__ wgrad_walker(const wgrad_problem &p, int team) : p(p), index(blockIdx.x * L::teams + team) {}

    __device__ bool next(wgrad_tile *t)
    {
        int tiles_n = (p.n + L::tile_n - 1) / L::tile_n, tiles_k = (p.k + WGRAD_K - 1) / WGRAD_K;
        int tiles = tiles_n * tiles_k, stride = gridDim.x * L::teams;
        while (index < p.experts * tiles) {
            t->expert = index / tiles;
            t->begin = p.offset ? __ldg(p.offset + t->expert) : 0;
            t->rows = p.rows ? __ldg(p.rows + t->expert) : p.all_rows;
            if (t->rows == 0 && p.write == FP8FLOW_ACCUMULATE) {
                index += ((t->expert + 1) * tiles - index + stride - 1) / stride * stride;
                continue;
            }
            t->head = L::scaling == FP8FLOW_TENSOR && t->rows > 0 ? t->begin % 16 : 0;
            t->begin -= t->head;
            t->rows += t->head;
            int local = index - t->expert * tiles, band = local / (p.band * tiles_k);
            int in_band = local - band * p.band * tiles_k;
            int lines = min(p.band, tiles_n - band * p.band), column = in_band / lines;
            t->n = (band * p.band + in_band - column * lines) * L::tile_n;
            t->k = column * WGRAD_K;
            index += stride;
            return true;
        }
        return false;
    }
};

/* Position in a ring of `size` and the phase of its barriers. */
template <int size> struct wgrad_position {
    int at;
    uint32_t phase;

    __device__ void advance()
    {
        if (++at == size) at = 0, phase ^= 1;
    }
};

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
    wgrad_position<L::stages> ring = { 0, 1 };
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

/* ---- Promotion ---- */

/* Powers of two as sums of two scale bytes: byte a + byte b stands for 2^(a + b - 254). */
enum { WGRAD_ONE = 254, WGRAD_NEAR = 32 };

/* 2^exponent in two factors: both are normal numbers, the first is 1 wherever possible. */
struct wgrad_power {
    float first, second;

    __device__ explicit wgrad_power(int exponent)
    {
        int near = min(max(exponent, -126), 127);
        second = __uint_as_float((uint32_t)(near + 127) << 23);
        first = __uint_as_float((uint32_t)(exponent - near + 127) << 23);
    }
};

/* TILE128. Lane i: the two scale bytes, added, of block first + i of the tile, for the 128 lines of c around `line`. */
__device__ static inline int wgrad_exponent(const wgrad_problem &p, const wgrad_tile &t, int first, int line)
{
    int block = min(first + f8_lane(), t.blocks() - 1), column = min(line, p.n - 1) / 128;
    if (block < 0) return WGRAD_ONE;
    int64_t row = t.begin / WGRAD_STEP + block;
    return __ldg((const uint8_t *)p.a_scale + row * ((p.n + 127) / 128) + column) +
           __ldg((const uint8_t *)p.b_scale + row * ((p.k + 127) / 128) + t.k / 128);
}

__device__ static inline void wgrad_times(float (&x)[64], float factor)
{
#pragma unroll
    for (int i = 0; i < 64; i++) x[i] *= factor;
}

__device__ static inline void wgrad_add(float (&sum)[64], const float (&part)[64], float factor)
{
#pragma unroll
    for (int i = 0; i < 64; i++) sum[i] = fmaf(part[i], factor, sum[i]);
}

/* sum += part * 2^exponent, the same for the whole warp. */
__device__ static inline void wgrad_promote(float (&sum)[64], float (&part)[64], int exponent)
{
    if (exponent == 0) {
#pragma unroll
        for (int i = 0; i < 64; i++) sum[i] += part[i];
    } else if (exponent == 1) {
        wgrad_add(sum, part, 2.0f);
    } else if (exponent == -1) {
        wgrad_add(sum, part, 0.5f);
    } else {
        wgrad_power power(exponent);
        if (power.first != 1.0f) wgrad_times(part, power.first);
        wgrad_add(sum, part, power.second);
    }
}

/* COL128: sum += part times the factors of line and column. `lines`, `columns`: those of the wave, in shared memory.
 * The smaller factor first: part, a multiple of 2^-18 below 2^25, times it is exact, and too large only if the whole is. */
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

/* ---- Consumers ---- */

/* The sums x (0..7) of half a wave: four neighbouring columns. */
__device__ static inline float4 wgrad_quad(const float (&sum)[64], int x, int half)
{
    return make_float4(sum[8 * x + 2 * half], sum[8 * x + 2 * half + 1], sum[8 * x + 4 + 2 * half],
                       sum[8 * x + 5 + 2 * half]);
}

__device__ static inline float4 wgrad_scaled_sum(float4 x, float factor, float4 y)
{
    return make_float4(fmaf(x.x, factor, y.x), fmaf(x.y, factor, y.y), fmaf(x.z, factor, y.z), fmaf(x.w, factor, y.w));
}

/* Where a lane's sums of a wave lie in c: 16 pieces of four columns; of piece i, half i % 2 has its line, 8 lines apart. */
struct wgrad_lane {
    float *half[2];
    int columns; /* pieces whose i / 2 * 16 is less are inside c */

    __device__ wgrad_lane(const wgrad_problem &p, const wgrad_tile &t, int line)
    {
        int first = line + threadIdx.x % 128 / 32 * 16, lane = f8_lane();
        half[0] = p.c + ((int64_t)t.expert * p.n + first + lane / 4) * p.c_stride + t.k + lane % 4 * 4;
        half[1] = half[0] + 8 * p.c_stride;
        columns = first < p.n ? p.k - t.k : 0;
    }

    __device__ float4 load(int i) const
    {
        float4 zero = make_float4(0, 0, 0, 0);
        return i / 2 * 16 < columns ? __ldcs((const float4 *)(half[i % 2] + i / 2 * 16)) : zero;
    }

    __device__ void store(int i, float4 x) const
    {
        if (i / 2 * 16 < columns) __stcs((float4 *)(half[i % 2] + i / 2 * 16), x);
    }
};

/* Sums, times a factor, into c. */
template <class L>
__device__ static inline void wgrad_replace(const wgrad_problem &p, const wgrad_tile &t, int line,
                                            const float (&sum)[L::waves][64], float factor)
{
#pragma unroll
    for (int w = 0; w < L::waves; w++) {
        wgrad_lane lane(p, t, line + 64 * w);
#pragma unroll
        for (int i = 0; i < 16; i++)
            lane.store(i, wgrad_scaled_sum(wgrad_quad(sum[w], i / 2, i % 2), factor, make_float4(0, 0, 0, 0)));
    }
}

/* The same added to c: 16 loads are on their way before the first is used, and those of the next wave follow. */
template <class L>
__device__ static inline void wgrad_add_to(const wgrad_problem &p, const wgrad_tile &t, int line,
                                           const float (&sum)[L::waves][64], float factor)
{
    wgrad_lane lane(p, t, line);
    float4 old[16];
#pragma unroll
    for (int i = 0; i < 16; i++) old[i] = lane.load(i);
#pragma unroll
    for (int w = 0; w < L::waves; w++) {
        wgrad_lane next(p, t, line + 64 * (w + 1));
#pragma unroll
        for (int i = 0; i < 16; i++) {
            lane.store(i, wgrad_scaled_sum(wgrad_quad(sum[w], i / 2, i % 2), factor, old[i]));
            if (w + 1 < L::waves) old[i] = next.load(i);
        }
        lane = next;
    }
}

/* What the sums of a tile must be multiplied by at its end. */
template <class L>
__device__ static inline wgrad_power wgrad_ending(const wgrad_problem &p, const wgrad_tile &t, int unit)
{
    wgrad_power power(L::scaling == FP8FLOW_TILE128 ? unit - WGRAD_ONE : 0);
    if (L::scaling == FP8FLOW_TENSOR && t.rows > 0) {
        float a = __ldg((const float *)p.a_scale + t.expert), b = __ldg((const float *)p.b_scale + t.expert);
        float product = a * b;
        power.second = product;
        /* Outside this range a product of scales is not exact to 24 bits. */
        if (!(fabsf(product) > 0x1p-100f && fabsf(product) < 0x1p100f)) power.first = a, power.second = b;
    }
    return power;
}

template <class L>
__device__ static inline void wgrad_consume(const wgrad_problem &p, wgrad_shared<L> &s, uint8_t *stages,
                                            const float *factors, int team)
{
    int line = threadIdx.x / 128 % L::groups * 64 * L::waves;
    uint32_t full = f8_kept(s.full[team]), empty = full + sizeof s.full;
    uint32_t a0 = f8_kept(stages + line * WGRAD_STEP), b0 = f8_kept(stages + L::a_bytes);
    wgrad_walker<L> walk(p, team);
    wgrad_position<L::stages> ring = { 0, 0 };
    wgrad_tile t, next;
    bool tiled = L::scaling == FP8FLOW_TILE128, more = walk.next(&next);
    int next_exponents = more && tiled ? wgrad_exponent(p, next, 0, next.n + line) : 0;
    while (more) {
        t = next;
        int exponents = next_exponents, later = tiled ? wgrad_exponent(p, t, 32, t.n + line) : 0;
        int unit = __shfl_sync(F8_ALL_LANES, exponents, 0);
        more = walk.next(&next);
        if (more && tiled) next_exponents = wgrad_exponent(p, next, 0, next.n + line);
        float sum[L::waves][64], part[64];
#pragma unroll
        for (int w = 0; w < L::waves; w++)
#pragma unroll
            for (int i = 0; i < 64; i++) sum[w][i] = 0.0f;
        int blocks = t.blocks();
        for (int block = 0; block < blocks; block++) {
            int exponent = 0;
            if (tiled) {
                if (block % 32 == 0 && block > 0) {
                    exponents = later;
                    later = wgrad_exponent(p, t, block + 32, t.n + line);
                }
                exponent = __shfl_sync(F8_ALL_LANES, exponents, block % 32) - unit;
                if (abs(exponent) > WGRAD_NEAR && unit != WGRAD_ONE) {
                    wgrad_power power(unit - WGRAD_ONE);
#pragma unroll
                    for (int w = 0; w < L::waves; w++) wgrad_times(sum[w], power.first), wgrad_times(sum[w], power.second);
                    exponent += unit - WGRAD_ONE;
                    unit = WGRAD_ONE;
                }
            }
            f8_barrier_wait(full + 8 * ring.at, ring.phase);
            wgrad_keep_rows<L>(t, block, stages + ring.at * L::stage_bytes, team);
            uint32_t a = a0 + ring.at * L::stage_bytes, b = b0 + ring.at * L::stage_bytes;
            const float *lines = factors + ring.at * L::factors + line, *columns = factors + ring.at * L::factors + L::tile_n;
#pragma unroll
            for (int w = 0; w < L::waves; w++) {
                wgrad_multiply(part, a + 64 * WGRAD_STEP * w, b);
                bool done = w == L::waves - 1 && f8_lane() == 0;
                if (done && L::scaling != FP8FLOW_COL128) f8_barrier_arrive(empty + 8 * ring.at);
                if (L::scaling == FP8FLOW_COL128)
                    wgrad_promote(sum[w], part, lines + 64 * w, columns);
                else
                    wgrad_promote(sum[w], part, exponent);
                if (L::scaling == FP8FLOW_COL128) __syncwarp();
                if (done && L::scaling == FP8FLOW_COL128) f8_barrier_arrive(empty + 8 * ring.at);
            }
            ring.advance();
        }
        wgrad_power power = wgrad_ending<L>(p, t, unit);
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
        for (int i = 0; i < L::teams * L::stages; i++) {
            f8_barrier_init(&s.full[0][0] + i, L::scaling == FP8FLOW_COL128 ? 2 : 1);
            f8_barrier_init(&s.empty[0][0] + i, 4 * L::groups);
        }
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
