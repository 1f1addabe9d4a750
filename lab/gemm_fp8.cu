/* gemm_fp8.cu - versions of the grouped FP8 product c[P, N] = a[P, K] * b_g[N, K]^T: E4M3, ROW128 x TILE128, BF16 out.
 *
 * The reason for the length: every version is an option of one kernel, and a failing one must not stop the others.
 *
 * Tiles of 128 rows x 128 or 256 columns; experts begin at multiples of 128 rows, so no row tile is shared or wasted.
 * Three roles in a block of 384 threads:
 *   warpgroups 0, 1  64 rows each: wait for a stage, 4 products of K 32 into fresh accumulators, add them times the
 *                    scales to FP32 sums (one FFMA per sum and 128 of K);
 *   one thread       fills the ring of stages through the copy engine;
 *   one warp         brings the tile's coordinates and its scale bytes into one of two slots, a tile ahead, so that the
 *                    warpgroups never wait for global memory and never divide.
 * Options:
 *   ORDERED   the warpgroups take turns at the tensor cores through two named barriers.
 *   PAIRED    clusters of 2 blocks: two row tiles share their columns of b (each block loads one half for both), the
 *             odd last row tile of an expert is shared by two column tiles. 48 -> 32 KB from L2 per 128 x 256 x 128.
 *   PERMUTED  b's lines come in another order (a 5-D view of the matrix, no extra work): a thread's accumulators are
 *             then 8 neighbours in c, stored as 16 bytes, a quad filling 64. Otherwise 4-byte stores.
 *   IN_REGISTERS  a comes to registers by ldmatrix once per 128 of K, not once per product: shared memory serves 80
 *             instead of 96 KB (+ 48 written) per 128 x 256 x 128, 1024 clocks of the tensor cores at 128 B per clock.
 *   OVERLAPPED  a tile is written while the tensor cores do the first products of the next one.
 *   NO_COPIES  wrong operands, nothing is copied to shared memory: what L2 and the copy engine cost.
 *   NO_PROMOTION  wrong scales, the tensor cores' own sums: what the rest of the kernel would allow.
 *
 * Predictions. Per 128 x 256 x 128 a warpgroup's warp issues 128 FFMA, about 75 other instructions and 8 products; the
 * tensor cores need 1024 clocks for both warpgroups, so that each has 512 for 250 of its own between its products.
 *   v1   82 % of the tensor cores at K 7168, 80 % at 2048, 75 % at 1408; V3 sustained 1200 TFLOP/s (power).
 *   v2   5 % slower than v1: L2 gives 48 instead of 32 KB; sustained more, for power.
 *   v3   as v1 if the 5-D view is free; 3 % below at K 1408 (twice the stores, half sectors).
 *   v4   over v1: 1 % at K 7168, 3 % at 2048, 4 % at 1408.
 *   v5   as v4 within 2 % if the warpgroups alternate by themselves.
 *   v6   +3 % if shared memory (112 % of its clocks in v1, 98 % here) is the limit, else 0.
 *   v7   V3 +1 %: half the reads of b from memory.       v8  to v3 as v6 to v1 (if maps of v6 are refused).
 *   v9   8 % below v4: 125 % of shared memory's clocks.  v10 to v3 as v2 to v1, less its epilogue.
 *   v11  10 % above v1: promotion's cost.                v12 5 % above v4: the cost of copies.
 * Columns of the table: TFLOP/s, per cent of the tensor cores' 4096 products per clock and SM, SM clock (both flushed
 * and sustained); the last says how far the worst of 4096 samples is from FP64, in bounds.
 */
#include <cmath>
#include <csignal>

#include <cudaTypedefs.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.cuh"
#include "ops/hopper.cuh"
#include "ops/warp.cuh"

enum { TILE_M = 128, TILE_K = 128, CONSUMERS = 2, THREADS = 128 * (CONSUMERS + 1), MAX_EXPERTS = 256, SLOTS = 2 };
enum { ORDERED = 1, PAIRED = 2, PERMUTED = 4, IN_REGISTERS = 8, NO_PROMOTION = 16, NO_COPIES = 32, OVERLAPPED = 64 };
enum { SHARE_NOTHING, SHARE_A, SHARE_B };

struct problem {
    const uint8_t *a_scale, *b_scale; /* [P, K/128], [E, N/128, K/128] */
    uint16_t *c;
    const int32_t *offset, *rows;
    int32_t experts, n, k, band;
    int64_t b_scale_expert, b_scale_column, b_scale_step; /* bytes between experts, column blocks, k-blocks */
    uint64_t *clocks;                                     /* of block 0: SM clocks, nanoseconds */
};

template <int halves_, int stages_, int options_> struct version {
    static const int halves = halves_, stages = stages_, options = options_;
    static const bool paired = options & PAIRED;
    static const int tile_n = 128 * halves;
    static const int a_box = paired ? 64 : 128, b_box = paired ? 64 * halves : 128; /* lines of one copy */
    static const int a_bytes = TILE_M * TILE_K, b_bytes = tile_n * TILE_K, stage_bytes = a_bytes + b_bytes;
};

struct tile {
    int expert, row, valid, n; /* rows row .. row + 127; those below `valid` are in use */
    int shared;
};

/* What the warpgroups need of a tile. Scale bytes follow: b [halves][k_blocks], 128 bytes a half; a [128][k_blocks]. */
struct slot {
    int row, valid, n, last;
};

__device__ static int slot_bytes(int k_blocks)
{
    return (int)sizeof(slot) + 2 * 128 + TILE_M * k_blocks;
}

/* Unit `index` of all as seen by block `rank` of a pair; the expert moves forward only. */
template <class V> struct walker {
    const problem &p;
    const int32_t *cumulative;
    int rank, expert;

    __device__ walker(const problem &p, const int32_t *cumulative, int rank)
        : p(p), cumulative(cumulative), rank(rank), expert(0)
    {
    }

    __device__ static int units(const problem &p, int row_tiles)
    {
        int n_tiles = (p.n + V::tile_n - 1) / V::tile_n;
        return V::paired ? row_tiles / 2 * n_tiles + row_tiles % 2 * ((n_tiles + 1) / 2) : row_tiles * n_tiles;
    }

    __device__ bool at(int index, tile *t)
    {
        if (index >= cumulative[p.experts]) return false;
        while (index >= cumulative[expert + 1]) expert++;
        int begin = p.offset[expert], row_tiles = (p.offset[expert + 1] - begin) / TILE_M;
        int n_tiles = (p.n + V::tile_n - 1) / V::tile_n, local = index - cumulative[expert];
        int lines = V::paired ? row_tiles / 2 : row_tiles, m, n;
        t->shared = SHARE_NOTHING;
        if (local < lines * n_tiles) {
            int band = local / (p.band * n_tiles), inside = local - band * p.band * n_tiles;
            int height = min(p.band, lines - band * p.band);
            m = band * p.band + inside % height;
            n = inside / height;
            if (V::paired) m = 2 * m + rank, t->shared = SHARE_B;
        } else {
            m = row_tiles - 1;
            n = 2 * (local - lines * n_tiles) + rank;
            t->shared = SHARE_A;
        }
        t->expert = expert;
        t->row = begin + m * TILE_M;
        t->valid = begin + p.rows[expert];
        t->n = n * V::tile_n;
        return true;
    }
};

template <class V> struct shared_memory {
    uint64_t full[V::stages], empty[V::stages], ready[SLOTS], taken[SLOTS];
    int32_t cumulative[MAX_EXPERTS + 1];
};

/* One warp: cumulative[e] = units of the experts before e. */
template <class V> __device__ static void count_units(const problem &p, int32_t *cumulative)
{
    int lane = threadIdx.x % 32, total = 0;
    for (int base = 0; base < p.experts; base += 32) {
        int e = base + lane, units = 0;
        if (e < p.experts) units = walker<V>::units(p, (p.offset[e + 1] - p.offset[e]) / TILE_M);
        int sum = units;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            int other = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += other;
        }
        if (e < p.experts) cumulative[e] = total + sum - units;
        total += __shfl_sync(~0u, sum, 31);
    }
    if (lane == 0) cumulative[p.experts] = total;
}

/* ---- The thread that copies ---- */

template <class V> __device__ static void copy_b(uint8_t *to, const CUtensorMap *map, uint64_t *full, int k, int line)
{
    if (V::options & PERMUTED)
        f8_copy_tile_5d(to, map, full, k, line / 32);
    else
        f8_copy_tile(to, map, full, k, line);
}

template <class V> __device__ static void share_b(uint8_t *to, const CUtensorMap *map, uint64_t *full, int k, int line)
{
    if (V::options & PERMUTED)
        f8_share_tile_5d(to, map, full, k, line / 32, 3);
    else
        f8_share_tile(to, map, full, k, line, 3);
}

template <class V>
__device__ static void produce(const problem &p, const CUtensorMap *a_map, const CUtensorMap *b_map,
                               shared_memory<V> &shared, uint8_t *ring, walker<V> walk)
{
    int stage = 0, units = gridDim.x / (V::paired ? 2 : 1);
    uint32_t phase = 1;
    tile t;
    f8_prefetch_map(a_map);
    f8_prefetch_map(b_map);
    for (int index = blockIdx.x / (V::paired ? 2 : 1); walk.at(index, &t); index += units) {
        int b_line = t.expert * p.n + t.n;
        for (int k = 0; k < p.k; k += TILE_K) {
            uint64_t *full = &shared.full[stage];
            uint8_t *a = ring + stage * V::stage_bytes, *b = a + V::a_bytes;
            f8_barrier_wait(&shared.empty[stage], phase);
            if (V::options & NO_COPIES)
                f8_barrier_arrive(full);
            else
                f8_barrier_expect(full, V::stage_bytes);
            if (V::options & NO_COPIES) {
            } else if (V::paired && t.shared == SHARE_A) {
                int first = walk.rank * V::a_box;
                f8_share_tile(a + first * TILE_K, a_map, full, k, t.row + first, 3);
            } else {
#pragma unroll
                for (int i = 0; i < TILE_M; i += V::a_box) f8_copy_tile(a + i * TILE_K, a_map, full, k, t.row + i);
            }
            if (V::options & NO_COPIES) {
            } else if (V::paired && t.shared == SHARE_B) {
                int first = walk.rank * V::b_box;
                share_b<V>(b + first * TILE_K, b_map, full, k, b_line + first);
            } else {
#pragma unroll
                for (int i = 0; i < V::tile_n; i += V::b_box) copy_b<V>(b + i * TILE_K, b_map, full, k, b_line + i);
            }
            if (++stage == V::stages) stage = 0, phase ^= 1;
        }
    }
}

/* ---- The warp that brings coordinates and scales ---- */

template <class V>
__device__ static void bring_scales(const problem &p, shared_memory<V> &shared, uint8_t *slots, walker<V> walk)
{
    int lane = threadIdx.x % 32, k_blocks = p.k / TILE_K, s = 0, units = gridDim.x / (V::paired ? 2 : 1);
    uint32_t phase = 1;
    tile t;
    for (int index = blockIdx.x / (V::paired ? 2 : 1);; index += units) {
        bool more = walk.at(index, &t);
        slot *head = (slot *)(slots + s * slot_bytes(k_blocks));
        f8_barrier_wait(&shared.taken[s], phase);
        if (lane == 0) {
            head->last = !more;
            if (more) head->row = t.row, head->valid = t.valid, head->n = t.n;
        }
        if (more) {
            uint8_t *b = (uint8_t *)(head + 1);
            uint4 *a = (uint4 *)(b + 2 * 128);
            const uint4 *from = (const uint4 *)(p.a_scale + (int64_t)t.row * k_blocks);
#pragma unroll 4
            for (int i = lane; i < TILE_M / 16 * k_blocks; i += 32) a[i] = __ldg(from + i);
#pragma unroll
            for (int h = 0; h < V::halves; h++) {
                const uint8_t *line = p.b_scale + t.expert * p.b_scale_expert + (t.n / 128 + h) * p.b_scale_column;
                if (t.n + 128 * h >= p.n) continue;
                for (int k = lane; k < k_blocks; k += 32) b[128 * h + k] = __ldg(line + k * p.b_scale_step);
            }
        }
        f8_barrier_arrive(&shared.ready[s]);
        if (!more) break;
        if (++s == SLOTS) s = 0, phase ^= 1;
    }
}

/* ---- The warpgroups that multiply ---- */

__device__ static float scale_of(uint8_t byte)
{
    return __uint_as_float((uint32_t)byte << 23);
}

/* Of rows `local` and `local` + 8 and of the column blocks, at one k-block; one past the last is read and not used. */
template <int halves>
__device__ static void read_scales(uint8_t (&to)[2 + halves], const uint8_t *a, const uint8_t *b, int k_blocks)
{
    to[0] = a[0];
    to[1] = a[8 * k_blocks];
#pragma unroll
    for (int h = 0; h < halves; h++) to[2 + h] = b[128 * h];
}

/* part = (or, unless fresh, +=) this warpgroup's 64 rows x 128 columns of one stage. */
template <int options>
__device__ static void products(float (&part)[64], uint64_t da, const uint32_t (&registers)[4][4], uint64_t db,
                                int fresh)
{
#pragma unroll
    for (int i = 0; i < 64; i++) f8_pin(part[i]);
    f8_products_begin();
#pragma unroll
    for (int step = 0; step < 4; step++) {
        if (options & IN_REGISTERS)
            f8_product_e4m3(part, registers[step], db + 2 * step, step || !fresh);
        else
            f8_product_e4m3(part, da + 2 * step, db + 2 * step, step || !fresh);
    }
    f8_products_commit();
}

__device__ static void clear(float (&sum)[64])
{
#pragma unroll
    for (int i = 0; i < 64; i++) f8_set_zero(sum[i]);
}

template <class V>
__device__ static void write(const problem &p, const slot &t, int row, int h, const float (&sum)[64])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int low = 0; low < 2; low++) {
        int r = row + 8 * low;
        bool zero = r >= t.valid;
        uint16_t *line = p.c + (int64_t)r * p.n + t.n + 128 * h;
        uint32_t pair[16];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            pair[i] = f8_bf16_pair_fast(sum[4 * i + 2 * low], sum[4 * i + 2 * low + 1]);
            pair[i] = zero ? 0 : pair[i];
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            if (V::options & PERMUTED) {
                uint4 eight = make_uint4(pair[i], pair[(i + 1) % 16], pair[(i + 2) % 16], pair[(i + 3) % 16]);
                if (i % 4 == 0) __stcs((uint4 *)(line + 8 * i + 8 * (lane % 4)), eight);
            } else {
                ((uint32_t *)line)[4 * i + lane % 4] = pair[i];
            }
        }
    }
}

template <class V>
__device__ static void multiply(const problem &p, shared_memory<V> &shared, const uint8_t *ring, const uint8_t *slots)
{
    const int options = V::options;
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
    int k_blocks = p.k / TILE_K;
    int stage = 0, s = 0, local = group * 64 + warp * 16 + lane / 4;
    /* ldmatrix: this lane's line of the warp's 16, chunk lane / 16 (+ 2 per step), swizzled by the line. */
    uint32_t matrix = f8_smem(ring) + (group * 64 + warp * 16 + lane % 16) * TILE_K, swizzle = lane % 8;
    /* The shuffles make `group` and the descriptors uniform to the compiler: no moves between the products. */
    uint64_t operand = f8_operand(ring), operand_high = operand >> 32 << 32;
    uint32_t operand_low = __shfl_sync(~0u, (uint32_t)operand, 0), phase = 0, slot_phase = 0;
    if ((options & ORDERED) && group == 1) f8_named_arrive(1, 256);
    slot previous = { -1, 0, 0, 0 };
    float sum[V::halves][64];
    for (;;) {
        const slot *head = (const slot *)(slots + s * slot_bytes(k_blocks));
        f8_barrier_wait(&shared.ready[s], slot_phase);
        slot t = *head;
        if (t.last) break;
        const uint8_t *b_scale = (const uint8_t *)(head + 1), *a_scale = b_scale + 2 * 128 + local * k_blocks;
        int live = t.row + group * 64 < t.valid ? min(V::halves, (p.n - t.n) / 128) : 0;
#pragma unroll
        for (int h = 0; h < V::halves; h++)
            if (!(options & OVERLAPPED)) clear(sum[h]);
        float part[64];
        uint8_t next[2 + V::halves];
        read_scales<V::halves>(next, a_scale, b_scale, k_blocks);
        for (int k = 0; k < k_blocks; k++) {
            float low = scale_of(next[0]), high = scale_of(next[1]), scale_b[V::halves];
#pragma unroll
            for (int h = 0; h < V::halves; h++) scale_b[h] = scale_of(next[2 + h]);
            uint64_t da = operand_high | (operand_low + stage * (V::stage_bytes / 16)), db;
            db = da + V::a_bytes / 16;
            da += group * (64 * TILE_K / 16);
            f8_barrier_wait(&shared.full[stage], phase);
            uint32_t registers[4][4];
            if (options & IN_REGISTERS) {
#pragma unroll
                for (int step = 0; step < 4; step++)
                    f8_load_matrices(registers[step],
                                     matrix + stage * V::stage_bytes + ((2 * step + lane / 16) ^ swizzle) * 16);
            }
#pragma unroll
            for (int h = 0; h < V::halves; h++) {
                if (options & ORDERED) f8_named_barrier(1 + group, 256);
                float(&target)[64] = options & NO_PROMOTION ? sum[h] : part;
                if (h < live)
                    products<options>(target, da, registers, db + h * (128 * TILE_K / 16),
                                      options & NO_PROMOTION ? k == 0 : 1);
                if (options & ORDERED) f8_named_arrive(2 - group, 256);
                if ((options & OVERLAPPED) && k == 0) {
                    if (previous.row >= 0 && previous.n + 128 * h < p.n)
                        write<V>(p, previous, previous.row + local, h, sum[h]);
                    clear(sum[h]);
                }
                if (h == 0) read_scales<V::halves>(next, a_scale + k + 1, b_scale + k + 1, k_blocks);
                if (!(options & NO_PROMOTION) || h == V::halves - 1) f8_products_wait<0>();
                if (h == V::halves - 1) {
                    if (!V::paired && lane == 0) f8_barrier_arrive(&shared.empty[stage]);
                    if (V::paired && lane < 2) f8_barrier_arrive_at(&shared.empty[stage], lane);
                }
                if (!(options & NO_PROMOTION) && h < live) {
                    float factor[2] = { low * scale_b[h], high * scale_b[h] };
#pragma unroll
                    for (int i = 0; i < 64; i++) f8_pin(part[i]);
#pragma unroll
                    for (int i = 0; i < 64; i++) sum[h][i] = fmaf(part[i], factor[i / 2 % 2], sum[h][i]);
                }
            }
            if (++stage == V::stages) stage = 0, phase ^= 1;
        }
        __syncwarp();
        if (lane == 0) f8_barrier_arrive(&shared.taken[s]);
        if (++s == SLOTS) s = 0, slot_phase ^= 1;
        previous = t;
#pragma unroll
        for (int h = 0; h < V::halves; h++)
            if (!(options & OVERLAPPED) && t.n + 128 * h < p.n) write<V>(p, t, t.row + local, h, sum[h]);
    }
#pragma unroll
    for (int h = 0; h < V::halves; h++)
        if ((options & OVERLAPPED) && previous.row >= 0 && previous.n + 128 * h < p.n)
            write<V>(p, previous, previous.row + local, h, sum[h]);
    if ((options & ORDERED) && group == 0) f8_named_barrier(1, 256);
}

template <class V>
__global__ __launch_bounds__(THREADS, 1) static void gemm_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                 const __grid_constant__ CUtensorMap b_map, problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared_memory<V> shared;
    uint8_t *ring = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024, *slots = ring + V::stages * V::stage_bytes;
    int rank = V::paired ? (int)f8_cluster_rank() : 0;
    uint64_t clocks = clock64(), time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    if (threadIdx.x < 32) count_units<V>(p, shared.cumulative);
    if (threadIdx.x == 0) {
        for (int s = 0; s < V::stages; s++) {
            f8_barrier_init(&shared.full[s], 1);
            f8_barrier_init(&shared.empty[s], 4 * CONSUMERS * (V::paired ? 2 : 1));
        }
        for (int s = 0; s < SLOTS; s++) {
            f8_barrier_init(&shared.ready[s], 32);
            f8_barrier_init(&shared.taken[s], 4 * CONSUMERS);
        }
        f8_barrier_fence();
    }
    __syncthreads();
    if (V::paired) f8_cluster_sync();
    walker<V> walk(p, shared.cumulative, rank);
    if (threadIdx.x / 128 == CONSUMERS) {
        f8_registers_less<56>();
        if (threadIdx.x % 128 == 0) produce<V>(p, &a_map, &b_map, shared, ring, walk);
        if (threadIdx.x % 128 / 32 == 1) bring_scales<V>(p, shared, slots, walk);
    } else {
        f8_registers_more<224>();
        multiply<V>(p, shared, ring, slots);
    }
    /* The other block may still arrive at this block's barriers. A warp counts once, so it must be whole again. */
    __syncwarp();
    if (V::paired) f8_cluster_sync();
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        uint64_t end;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(end));
        p.clocks[0] = clock64() - clocks;
        p.clocks[1] = end - time;
    }
}

/* ---- Check: FP64 on sampled elements ---- */

__device__ static double code_value(uint8_t code)
{
    return f8_decode(code, FP8FLOW_E4M3);
}

__global__ static void check_kernel(problem p, const uint8_t *a, const uint8_t *b, int samples, double *worst)
{
    int index = blockIdx.x;
    int e = index % p.experts;
    int rows = p.rows[e];
    if (rows == 0) return;
    uint64_t random = lab_mix(index * 77 + 5);
    int64_t row = p.offset[e] + (int)(random % rows), col = (int)((random >> 32) % p.n);
    double sum = 0, magnitude = 0;
    int k_blocks = p.k / 128;
    for (int k = threadIdx.x; k < p.k; k += 32) {
        double x = code_value(a[row * p.k + k]) * ldexp(1.0, p.a_scale[row * k_blocks + k / 128] - 127);
        double y = code_value(b[((int64_t)e * p.n + col) * p.k + k]) *
                   ldexp(1.0, p.b_scale[(e * p.n + col) / 128 * (int64_t)k_blocks + k / 128] - 127);
        sum += x * y;
        magnitude += fabs(x * y);
    }
    sum = f8_warp_sum(sum);
    magnitude = f8_warp_sum(magnitude);
    if (threadIdx.x) return;
    double got = f8_bf16_decode(p.c[row * p.n + col]);
    double bound = 0x1p-13 * magnitude + 0x1p-8 * fabs(sum);
    worst[index] = got == got ? fabs(got - sum) / (bound + 1e-300) : 1e30;
}

__global__ static void fill_codes(uint8_t *codes, int64_t count, uint64_t seed)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint64_t bits = lab_mix(seed + i);
    float u = ((bits >> 40) + 1) * 0x1p-24f, angle = (uint32_t)bits * 0x1p-32f * 6.2831853f;
    codes[i] = f8_encode(sqrtf(-2.0f * logf(u)) * cosf(angle) * 100.0f, FP8FLOW_E4M3);
}

__global__ static void fill_scales(uint8_t *scales, int64_t count, uint64_t seed)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) scales[i] = 118 + lab_mix(seed + i) % 4;
}

/* b's lines 32 g + 8 q + 2 j + b in the order g, j, q, b: see PERMUTED. False if the driver refuses the map. */
static bool make_map(CUtensorMap *map, const uint8_t *data, uint64_t rows, uint64_t cols, uint32_t box_rows,
                     bool permuted)
{
    static PFN_cuTensorMapEncodeTiled_v12000 encode;
    cudaDriverEntryPointQueryResult found;
    if (!encode)
        LAB_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000, cudaEnableDefault,
                                                 &found));
    cuuint64_t dims[2] = { cols, rows }, strides[1] = { cols };
    cuuint32_t box[2] = { 128, box_rows }, steps[5] = { 1, 1, 1, 1, 1 };
    cuuint64_t dims5[5] = { cols, 2, 4, 4, rows / 32 }, strides5[4] = { cols, 8 * cols, 2 * cols, 32 * cols };
    cuuint32_t box5[5] = { 128, 2, 4, 4, box_rows / 32 };
    CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, permuted ? 5 : 2, (void *)data,
                             permuted ? dims5 : dims, permuted ? strides5 : strides, permuted ? box5 : box, steps,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS;
}

/* One operand pair on the device, and where results go. */
struct fixture {
    const char *name;
    problem p;
    uint8_t *a, *b;
    int64_t capacity;
    double flops, *worst;
};

struct rate {
    double teraflops, utilisation, megahertz;
};

static rate rate_of(const fixture &f, double microseconds)
{
    std::vector<uint64_t> clocks = lab_download(f.p.clocks, 2);
    double share = 100.0 * f.flops / 2 / (4096.0 * 132 * clocks[0]);
    return { f.flops / microseconds * 1e-6, share, 1e3 * clocks[0] / clocks[1] };
}

template <class V>
static void launch(const fixture &f, const CUtensorMap &a_map, const CUtensorMap &b_map, cudaStream_t s)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = 2, cluster.val.clusterDim.y = 1, cluster.val.clusterDim.z = 1;
    config.gridDim = dim3(132);
    config.blockDim = dim3(THREADS);
    int slot = (int)sizeof(struct slot) + 2 * 128 + TILE_M * (f.p.k / TILE_K);
    config.dynamicSmemBytes = 1024 + V::stages * V::stage_bytes + SLOTS * slot + 16;
    config.stream = s;
    config.attrs = &cluster;
    config.numAttrs = V::paired ? 1 : 0;
    LAB_TRY(cudaFuncSetAttribute(gemm_kernel<V>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)config.dynamicSmemBytes));
    LAB_TRY(cudaLaunchKernelEx(&config, gemm_kernel<V>, a_map, b_map, f.p));
}

/* Back to back for 0.16 s; microseconds of one of the second half. */
template <class Launch> static double sustained(Launch once, double guess)
{
    cudaEvent_t start, stop;
    float milliseconds;
    LAB_TRY(cudaEventCreate(&start));
    LAB_TRY(cudaEventCreate(&stop));
    int loops = std::max(8, (int)(80e3 / guess));
    for (int i = 0; i < loops; i++) once(0);
    LAB_TRY(cudaEventRecord(start));
    for (int i = 0; i < loops; i++) once(0);
    LAB_TRY(cudaEventRecord(stop));
    LAB_TRY(cudaEventSynchronize(stop));
    LAB_TRY(cudaEventElapsedTime(&milliseconds, start, stop));
    return 1e3 * milliseconds / loops;
}

template <class V> static void measure(const char *name, fixture f, int band)
{
    const int samples = 4096;
    CUtensorMap a_map, b_map;
    if (!make_map(&a_map, f.a, f.capacity, f.p.k, V::a_box, false) ||
        !make_map(&b_map, f.b, (uint64_t)f.p.experts * f.p.n, f.p.k, V::b_box, V::options & PERMUTED)) {
        std::printf("%-40s %-15s tensor map refused\n", name, f.name);
        return;
    }
    auto once = [&](cudaStream_t s) { launch<V>(f, a_map, b_map, s); };
    f.p.band = V::paired ? band / 2 : band;
    LAB_TRY(cudaMemset(f.p.c, 0xFF, f.capacity * f.p.n * 2));
    once(0);
    LAB_TRY(cudaDeviceSynchronize());
    LAB_TRY(cudaMemset(f.worst, 0, samples * sizeof(double)));
    check_kernel<<<samples, 32>>>(f.p, f.a, f.b, samples, f.worst);
    LAB_TRY(cudaDeviceSynchronize());
    std::vector<double> errors = lab_download(f.worst, samples);
    double largest = *std::max_element(errors.begin(), errors.end());
    double cool = lab_time(once, 11);
    rate flushed = rate_of(f, cool);
    rate warm = rate_of(f, sustained(once, cool));
    std::printf("%-40s %-15s %5.0f TFLOP/s %3.0f %% %4.0f MHz flushed, %5.0f %3.0f %% %4.0f MHz sustained, %.2f%s\n",
                name, f.name, flushed.teraflops, flushed.utilisation, flushed.megahertz, warm.teraflops,
                warm.utilisation, warm.megahertz, largest, largest < 1 ? "" : " WRONG");
}

static fixture make_fixture(const char *name, int experts, int mean, int n, int k)
{
    std::vector<int32_t> offset(experts + 1), rows(experts);
    int64_t total = 0;
    for (int e = 0; e < experts; e++) {
        rows[e] = (int)(mean * (0.7 + 0.6 * ((e * 37 + 11) % experts) / experts));
        offset[e + 1] = offset[e] + (rows[e] + 127) / 128 * 128;
        total += rows[e];
    }
    int64_t capacity = offset[experts], blocks = k / 128, b_blocks = (int64_t)experts * n / 128 * blocks;
    fixture f = { name, {}, lab_alloc<uint8_t>(capacity * k), lab_alloc<uint8_t>((int64_t)experts * n * k), capacity,
                  2.0 * total * n * k, lab_alloc<double>(4096) };
    uint8_t *a_scale = lab_alloc<uint8_t>(capacity * blocks), *b_scale = lab_alloc<uint8_t>(b_blocks);
    fill_codes<<<(unsigned)((capacity * k + 255) / 256), 256>>>(f.a, capacity * k, 1);
    fill_codes<<<(unsigned)(((int64_t)experts * n * k + 255) / 256), 256>>>(f.b, (int64_t)experts * n * k, 1ull << 40);
    fill_scales<<<(unsigned)((capacity * blocks + 255) / 256), 256>>>(a_scale, capacity * blocks, 3);
    fill_scales<<<(unsigned)((b_blocks + 255) / 256), 256>>>(b_scale, b_blocks, 4);
    f.p = { a_scale, b_scale, lab_alloc<uint16_t>(capacity * n), lab_upload(offset), lab_upload(rows), experts, n, k, 8,
            n / 128 * blocks, blocks, 1, lab_alloc<uint64_t>(2) };
    return f;
}

static void free_fixture(const fixture &f)
{
    LAB_TRY(cudaFree(f.a));
    LAB_TRY(cudaFree(f.b));
    LAB_TRY(cudaFree(f.worst));
    LAB_TRY(cudaFree(f.p.c));
    LAB_TRY(cudaFree(f.p.clocks));
    LAB_TRY(cudaFree((void *)f.p.a_scale));
    LAB_TRY(cudaFree((void *)f.p.b_scale));
    LAB_TRY(cudaFree((void *)f.p.offset));
    LAB_TRY(cudaFree((void *)f.p.rows));
}

static const struct {
    const char *name;
    void (*measure)(const char *name, fixture f, int band);
    int band;
} versions[] = {
    { "v1 128x256 permuted paired", measure<version<2, 4, PERMUTED | PAIRED>>, 8 },
    { "v2 128x256 permuted", measure<version<2, 4, PERMUTED>>, 8 },
    { "v3 128x256 paired, 4-byte stores", measure<version<2, 4, PAIRED>>, 8 },
    { "v4 = v1 overlapped", measure<version<2, 4, PERMUTED | PAIRED | OVERLAPPED>>, 8 },
    { "v5 = v4 ordered", measure<version<2, 4, PERMUTED | PAIRED | OVERLAPPED | ORDERED>>, 8 },
    { "v6 = v1, a in registers", measure<version<2, 4, PERMUTED | PAIRED | IN_REGISTERS>>, 8 },
    { "v7 = v4, band 16", measure<version<2, 4, PERMUTED | PAIRED | OVERLAPPED>>, 16 },
    { "v8 = v3, a in registers", measure<version<2, 4, PAIRED | IN_REGISTERS>>, 8 },
    { "v9 128x128 paired overlapped, 4-byte", measure<version<1, 6, PAIRED | OVERLAPPED>>, 8 },
    { "v10 128x256 overlapped, 4-byte stores", measure<version<2, 4, OVERLAPPED>>, 8 },
    { "v11 = v1 without promotion", measure<version<2, 4, PERMUTED | PAIRED | NO_PROMOTION>>, 8 },
    { "v12 = v3 overlapped, without copies", measure<version<2, 4, PAIRED | OVERLAPPED | NO_COPIES>>, 8 },
};
enum { VERSIONS_COUNT = sizeof versions / sizeof *versions };

static const struct {
    const char *name;
    int experts, mean, n, k;
} shapes[] = { { "V3 fprop1", 8, 4096, 4096, 7168 },
               { "V3 fprop2", 8, 4096, 7168, 2048 },
               { "V2-Lite fprop1", 64, 768, 2816, 2048 },
               { "V2-Lite fprop2", 64, 768, 2048, 1408 } };
enum { ATTEMPTS = VERSIONS_COUNT * sizeof shapes / sizeof *shapes };

/* Attempts *current .. of all; *current is seen by the parent. */
static void run_from(volatile int *current)
{
    fixture f = {};
    for (int made = -1; *current < ATTEMPTS; ++*current) {
        int v = *current % VERSIONS_COUNT, s = *current / VERSIONS_COUNT;
        alarm(6);
        if (made != s) {
            if (made >= 0) free_fixture(f);
            f = make_fixture(shapes[s].name, shapes[s].experts, shapes[s].mean, shapes[s].n, shapes[s].k);
            made = s;
        }
        versions[v].measure(versions[v].name, f, versions[v].band);
    }
    std::exit(0);
}

/* The work is done in a child; where an attempt fails or hangs, another child goes on with the next. */
int main()
{
    setvbuf(stdout, NULL, _IONBF, 0);
    int *current = (int *)mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (current == MAP_FAILED) return 1;
    for (*current = 0; *current < ATTEMPTS; ++*current) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) run_from(current);
        waitpid(child, &status, 0);
        if (status != 0)
            std::printf("%s, %s: stopped, status %d\n", versions[*current % VERSIONS_COUNT].name,
                        shapes[*current / VERSIONS_COUNT].name, status);
    }
    return 0;
}
