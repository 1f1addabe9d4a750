/* gemm_wgrad_sums.cuh - the FP32 sums of the weight gradient: how products join them, how they join c. Part of
 * gemm_wgrad.cuh, whose header explains it.
 */
#ifndef F8_OPS_GEMM_WGRAD_SUMS_CUH
#define F8_OPS_GEMM_WGRAD_SUMS_CUH

#include "ops/hopper_products.cuh"
#include "ops/ring.cuh"
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

/* ---- Into c ---- */

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

/* Where a lane's sums of a wave lie in c: 16 pieces of four columns, piece i in line half[i % 2], 8 lines apart. */
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

#endif
