/* gemm_wgrad_c.cuh - the weight gradient's layouts, the order of its tiles, and how sums get into c. Part of
 * gemm_wgrad.cuh, whose header explains it.
 */
#ifndef F8_OPS_GEMM_WGRAD_C_CUH
#define F8_OPS_GEMM_WGRAD_C_CUH

#include "ops/hopper_products.cuh"
#include "ops/warp.cuh"

enum { WGRAD_STEP = 128, WGRAD_K = 128 };
enum { WGRAD_PIECE_LINES = 64, WGRAD_PIECE_COLS = 32, WGRAD_PIECE_BYTES = 64 * 32 * 4 }; /* of c in a slot */

/* groups: multiplying warpgroups; waves: of 64 lines of c per warpgroup; slots of c per warpgroup, 0: DIRECT. */
template <fp8flow_scaling scaling_, int groups_, int waves_, int stages_, int slots_> struct wgrad_layout {
    static const fp8flow_scaling scaling = scaling_;
    static const int groups = groups_, waves = waves_, stages = stages_, slots = slots_;
    static const int tile_n = 64 * waves * groups;
    static const int consumer_threads = 128 * groups, threads = consumer_threads + 128;
    static const int a_bytes = tile_n * WGRAD_STEP, b_bytes = WGRAD_K * WGRAD_STEP, stage_bytes = a_bytes + b_bytes;
    static const int factors = scaling == FP8FLOW_COL128 ? tile_n + WGRAD_K : 0; /* per stage */
    static const int lane_columns = slots ? 8 : 4; /* neighbouring columns of c whose sums one lane holds */
    static const int barrier_slots = slots ? slots : 1;
    static const int producer_registers = groups == 3 ? 32 : 40, consumer_registers = groups == 3 ? 160 : 232;
    static const int bytes = stages * (stage_bytes + 4 * factors) + groups * slots * WGRAD_PIECE_BYTES + 1024;
    static_assert(slots != 1, "the keeper refills a slot after the store of the next one");
    static_assert(factors % 128 == 0, "a warp brings four factors per lane at a time");
    static_assert(bytes + 512 <= 232448, "shared memory of a block");
};

struct wgrad_problem {
    const void *a_scale, *b_scale;
    float *c;
    const int32_t *offset, *rows; /* NULL: one expert with all rows */
    int64_t c_stride;
    int32_t experts, all_rows, n, k;
    int32_t band; /* tiles along n that are visited before the next along k */
    fp8flow_write write;
};

template <class L> struct wgrad_shared {
    uint64_t full[L::stages], empty[L::stages];
    uint64_t c_ready[L::groups][L::barrier_slots], c_done[L::groups][L::barrier_slots];
};

/* Rows begin .. begin + rows - 1 of the operands, of which the first `head` are another expert's: boxes begin at
 * multiples of 16. */
struct wgrad_tile {
    int expert, begin, rows, head;
    int n, k; /* first line (of the expert) and column of c */

    __device__ int blocks() const { return (rows + WGRAD_STEP - 1) / WGRAD_STEP; }
};

/* The tiles of a block in order: expert by expert, in bands of lines of c, lines first. The rows of a tile's expert are
 * asked for one tile ahead: all warpgroups would wait for memory. */
template <class L> struct wgrad_walker {
    const wgrad_problem &p;
    int index, expert, begin, rows; /* of the next tile */

    __device__ explicit wgrad_walker(const wgrad_problem &p) : p(p) { visit(blockIdx.x); }

    __device__ static int tiles_n(const wgrad_problem &p) { return (p.n + L::tile_n - 1) / L::tile_n; }
    __device__ static int tiles_k(const wgrad_problem &p) { return (p.k + WGRAD_K - 1) / WGRAD_K; }
    __device__ int tiles() const { return tiles_n(p) * tiles_k(p); }

    __device__ void visit(int new_index)
    {
        index = new_index;
        expert = index / tiles();
        if (expert >= p.experts) return;
        begin = p.offset ? __ldg(p.offset + expert) : 0;
        rows = p.rows ? __ldg(p.rows + expert) : p.all_rows;
    }

    /* Nothing is added to the c of an expert without rows. */
    __device__ void skip_empty()
    {
        int stride = gridDim.x;
        while (expert < p.experts && rows == 0 && p.write == FP8FLOW_ACCUMULATE)
            visit(index + ((expert + 1) * tiles() - index + stride - 1) / stride * stride);
    }

    __device__ bool next(wgrad_tile *t)
    {
        skip_empty();
        if (expert >= p.experts) return false;
        t->expert = expert;
        t->head = L::scaling == FP8FLOW_TENSOR && rows > 0 ? begin % 16 : 0;
        t->begin = begin - t->head;
        t->rows = rows + t->head;
        int columns = tiles_k(p), local = index - expert * tiles(), band = local / (p.band * columns);
        int in_band = local - band * p.band * columns;
        int lines = min(p.band, tiles_n(p) - band * p.band), column = in_band / lines;
        t->n = (band * p.band + in_band - column * lines) * L::tile_n;
        t->k = column * WGRAD_K;
        visit(index + gridDim.x);
        return true;
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

/* ---- Sums into c ---- */

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

/* ---- Directly ---- */

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

/* ---- Through slots in shared memory, adding ---- */

/* The pieces of c of a warpgroup in order. */
template <class L> struct wgrad_pieces {
    wgrad_walker<L> walk;
    wgrad_tile t;
    int group, piece;

    __device__ wgrad_pieces(const wgrad_problem &p, int group) : walk(p), group(group), piece(4 * L::waves - 1) {}

    __device__ bool last() const { return piece == 4 * L::waves - 1; }

    __device__ bool next()
    {
        if (!last()) return piece++, true;
        if (!walk.next(&t)) return false;
        piece = 0;
        return true;
    }

    __device__ int x() const { return t.k + piece % 4 * WGRAD_PIECE_COLS; }
    __device__ int y() const { return t.n + (group * L::waves + piece / 4) * WGRAD_PIECE_LINES; }
};

/* The next piece of c into its slot. */
template <class L>
__device__ static void wgrad_fetch(wgrad_pieces<L> &load, wgrad_position<L::barrier_slots> &slot,
                                   const CUtensorMap *c_map, wgrad_shared<L> &s, uint8_t *slots)
{
    if (!load.next()) return;
    uint64_t *ready = &s.c_ready[load.group][slot.at];
    f8_barrier_expect(ready, WGRAD_PIECE_BYTES);
    f8_copy_box(slots + slot.at * WGRAD_PIECE_BYTES, c_map, ready, load.x(), load.y(), load.t.expert,
                f8_policy_once());
    slot.advance();
}

/* The keeper of a warpgroup's slots, one thread: loads pieces long before they are needed, stores what they became. */
template <class L>
__device__ static void wgrad_keep(const CUtensorMap *c_map, const wgrad_problem &p, wgrad_shared<L> &s, uint8_t *slots,
                                  int group)
{
    wgrad_pieces<L> load(p, group), store(p, group);
    wgrad_position<L::barrier_slots> to_load = { 0, 0 }, to_store = { 0, 0 };
#pragma unroll 1
    for (int i = 0; i < L::slots; i++) wgrad_fetch<L>(load, to_load, c_map, s, slots);
    int unread = 0; /* stores whose shared memory may still be read: at most one is left between two pieces */
    while (store.next()) {
        f8_barrier_wait(&s.c_done[group][to_store.at], to_store.phase);
        f8_store_box(c_map, slots + to_store.at * WGRAD_PIECE_BYTES, store.x(), store.y(), store.t.expert,
                     f8_policy_once());
        f8_store_commit();
        to_store.advance();
        if (unread) {
            f8_store_wait_read<1>();
            wgrad_fetch<L>(load, to_load, c_map, s, slots);
        }
        unread = 1;
        if (store.last()) {
            f8_store_wait_read<0>();
            wgrad_fetch<L>(load, to_load, c_map, s, slots);
            unread = 0;
        }
    }
}

/* A wave of sums is added to what its four slots hold. */
template <class L>
__device__ static inline void wgrad_add_staged(wgrad_shared<L> &s, uint8_t *slots,
                                               wgrad_position<L::barrier_slots> &slot, const float (&sum)[64])
{
    int group = threadIdx.x / 128, lane = f8_lane(), row = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint8_t *piece = slots + slot.at * WGRAD_PIECE_BYTES + row * 128;
        f8_barrier_wait(&s.c_ready[group][slot.at], slot.phase);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 *at = (float4 *)(piece + i % 2 * 1024 + ((lane % 4 * 2 + i / 2) ^ (lane / 4)) * 16);
            *at = wgrad_scaled_sum(wgrad_quad(sum, 2 * j + i / 2, i % 2), 1.0f, *at);
        }
        f8_async_fence();
        __syncwarp();
        if (lane == 0) f8_barrier_arrive(&s.c_done[group][slot.at]);
        slot.advance();
    }
}

#endif
