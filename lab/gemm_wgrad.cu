/* gemm_wgrad.cu - versions of the grouped FP8 weight gradient c_g[N, K] (+)= a_g[m, N]^T * b_g[m, K]: E4M3 in column
 * form ([N][rows], [K][rows]), TILE128 x TILE128, FP32 out, overwriting or adding.
 *
 * A producer thread fills a ring of stages through the copy engine; 2 or 3 warpgroups multiply 64 x 128 per wave, leave
 * the tensor core every 128 rows and add, times one scale, to FP32 sums. Rows of b lie permuted in shared memory (a
 * 5-D tensor map does it), so that a lane's sums are whole 16-byte pieces of a line of c.
 * DIRECT: the warpgroups read, add and write c themselves, 64 bytes per 4 lanes, optionally prefetched to L2.
 * STAGED: per warpgroup a ring of slots of 64 x 32 numbers of c. A keeper thread loads them long before they are
 * needed, the warpgroup adds in place, the keeper stores them: reads, products and writes of different tiles overlap.
 * REDUCE: the same without loads; the store adds in L2.
 * CLUSTER 2: two blocks with the same columns share b: each loads half of it for both.
 *
 * Bounds on the H200 (4.2 TB/s): V2-Lite adding 0.76 / 0.39 ms (750 / 723 TFLOP/s: the goal of 1.8 x 398 is 99 % of
 * that), overwriting 0.41 / 0.22 ms. Shared-memory port per 128 x 128 x 128: 80 KB = 640 clocks, 256 rows: 72 KB.
 */
#include <cmath>
#include <csignal>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cudaTypedefs.h>

#include "hopper_more.cuh"
#include "lab.cuh"
#include "ops/warp.cuh"

enum { TILE_K = 128, STEP = 128, MAX_EXPERTS = 128, BAND_ROWS = 2048, PIECE_COLS = 32, PIECE_BYTES = 64 * 32 * 4 };

enum write_mode { OVERWRITE, ADD, REDUCE };

struct problem {
    const uint8_t *a_scale, *b_scale; /* [row blocks][N/128], [row blocks][K/128] */
    float *c;                         /* [experts * N, K] */
    const int32_t *offset, *rows;
    int32_t experts, n, k;
    write_mode write;
    int32_t prefetch;
};

/* groups: multiplying warpgroups; waves: of 64 lines of c per warpgroup; slots of c per warpgroup: 0 is DIRECT. */
template <int groups_, int waves_, int stages_, int slots_, int cluster_> struct layout {
    static const int groups = groups_, waves = waves_, stages = stages_, slots = slots_, cluster = cluster_;
    static const int tile_n = 64 * waves * groups;
    static const int threads = 128 * (groups + 1);
    static const int a_bytes = tile_n * STEP, b_bytes = TILE_K * STEP, stage_bytes = a_bytes + b_bytes;
    static const int lane_columns = slots ? 8 : 4; /* neighbouring columns of c that one lane holds */
    static const int bytes = stages * stage_bytes + groups * slots * PIECE_BYTES + 1024;
    static const int barrier_slots = slots ? slots : 1;
    static_assert(slots != 1, "the keeper refills a slot after the store of the next one");
    static_assert(bytes + 2048 <= 232448, "shared memory of a block");
};

template <class L> struct shared {
    uint64_t full[L::stages], empty[L::stages];
    uint64_t c_ready[L::groups][L::barrier_slots], c_done[L::groups][L::barrier_slots];
    int32_t offset[MAX_EXPERTS], rows[MAX_EXPERTS];
};

struct tile {
    int expert, begin, rows; /* rows begin .. begin + rows - 1 of the operands */
    int n, k;                /* first line (of the expert) and column of c */

    __device__ int blocks() const { return (rows + STEP - 1) / STEP; }
};

/* The tiles of a block in order: expert by expert, in bands of BAND_ROWS lines of c, lines first. */
template <class L> struct walker {
    const problem &p;
    const shared<L> &s;
    int index, rank;

    __device__ walker(const problem &p, const shared<L> &s, int rank)
        : p(p), s(s), index(blockIdx.x / L::cluster), rank(rank)
    {
    }

    __device__ bool next(tile *t)
    {
        const int height = L::tile_n * L::cluster, band_tiles = BAND_ROWS / height;
        int tiles_n = (p.n + height - 1) / height, tiles_k = (p.k + TILE_K - 1) / TILE_K;
        for (; index < p.experts * tiles_n * tiles_k; index += gridDim.x / L::cluster) {
            int expert = index / (tiles_n * tiles_k), local = index - expert * tiles_n * tiles_k;
            if (s.rows[expert] == 0 && p.write != OVERWRITE) continue;
            int band = local / (band_tiles * tiles_k), in_band = local - band * band_tiles * tiles_k;
            int lines = min(band_tiles, tiles_n - band * band_tiles), column = in_band / lines;
            t->expert = expert;
            t->begin = s.offset[expert];
            t->rows = s.rows[expert];
            t->n = (band * band_tiles + in_band - column * lines) * height + rank * L::tile_n;
            t->k = column * TILE_K;
            index += gridDim.x / L::cluster;
            return true;
        }
        return false;
    }
};

/* Position in a ring of `size` and the phase of its barriers. */
template <int size> struct position {
    int at;
    uint32_t phase;

    __device__ void advance()
    {
        if (++at == size) at = 0, phase ^= 1;
    }
};

/* ---- Producer: operands ---- */

template <class L>
__device__ static void produce(const CUtensorMap *a_map, const CUtensorMap *b_map, const CUtensorMap *c_map,
                               const problem &p, shared<L> &s, uint8_t *stages, int rank)
{
    walker<L> walk(p, s, rank);
    position<L::stages> ring = { 0, 1 };
    tile t;
    const int b_groups = TILE_K / (4 * L::lane_columns); /* extent of the outermost dimension of the map of b */
    while (walk.next(&t)) {
        if (L::slots == 0 && p.prefetch && p.write == ADD)
            for (int i = 0; i < L::tile_n / 64 * 4; i++)
                f8_prefetch_box(c_map, t.k + i % 4 * PIECE_COLS, t.n + i / 4 * 64, t.expert);
#pragma unroll 1
        for (int block = 0; block < t.blocks(); block++) {
            uint8_t *a = stages + ring.at * L::stage_bytes, *b = a + L::a_bytes;
            uint64_t *full = &s.full[ring.at];
            int x = t.begin + block * STEP, w = t.k / (4 * L::lane_columns);
            f8_barrier_wait(&s.empty[ring.at], ring.phase);
            f8_barrier_expect(full, L::stage_bytes);
            f8_copy_tile(a, a_map, full, x, t.n);
            if (L::cluster == 1)
                f8_copy_lines(b, b_map, full, x, w);
            else
                f8_copy_lines_all(b + rank * (L::b_bytes / 2), b_map, full, x, w + rank * (b_groups / 2), 3);
            ring.advance();
        }
    }
}

/* ---- Keeper: the slots of c of one warpgroup ---- */

/* The pieces of c of a warpgroup in order. */
template <class L> struct pieces {
    walker<L> walk;
    tile t;
    int group, piece;

    __device__ pieces(const problem &p, const shared<L> &s, int rank, int group)
        : walk(p, s, rank), group(group), piece(4 * L::waves - 1)
    {
    }

    __device__ bool last() const { return piece == 4 * L::waves - 1; }

    __device__ bool next()
    {
        if (!last()) return piece++, true;
        if (!walk.next(&t)) return false;
        piece = 0;
        return true;
    }

    __device__ int x() const { return t.k + piece % 4 * PIECE_COLS; }
    __device__ int y() const { return t.n + (group * L::waves + piece / 4) * 64; }
};

/* A slot for the next piece: its present c, or just free. */
template <class L>
__device__ static void fetch(pieces<L> &load, position<L::barrier_slots> &slot, const CUtensorMap *c_map,
                             shared<L> &s, uint8_t *slots)
{
    if (!load.next()) return;
    uint64_t *ready = &s.c_ready[load.group][slot.at];
    if (load.walk.p.write == ADD) {
        f8_barrier_expect(ready, PIECE_BYTES);
        f8_copy_box(slots + slot.at * PIECE_BYTES, c_map, ready, load.x(), load.y(), load.t.expert,
                    f8_policy_once());
    } else {
        f8_barrier_arrive(ready);
    }
    slot.advance();
}

template <class L>
__device__ static void keep(const CUtensorMap *c_map, const problem &p, shared<L> &s, uint8_t *slots, int rank,
                            int group)
{
    pieces<L> load(p, s, rank, group), store(p, s, rank, group);
    position<L::barrier_slots> to_load = { 0, 0 }, to_store = { 0, 0 };
#pragma unroll 1
    for (int i = 0; i < L::slots; i++) fetch(load, to_load, c_map, s, slots);
    int unread = 0; /* stores whose shared memory may still be read: at most one is left between two pieces */
    while (store.next()) {
        f8_barrier_wait(&s.c_done[group][to_store.at], to_store.phase);
        const uint8_t *from = slots + to_store.at * PIECE_BYTES;
        if (p.write == REDUCE)
            f8_add_box(c_map, from, store.x(), store.y(), store.t.expert, f8_policy_once());
        else
            f8_store_box(c_map, from, store.x(), store.y(), store.t.expert, f8_policy_once());
        f8_store_commit();
        to_store.advance();
        if (unread) {
            f8_store_wait_read<1>();
            fetch(load, to_load, c_map, s, slots);
        }
        unread = 1;
        if (store.last()) {
            f8_store_wait_read<0>();
            fetch(load, to_load, c_map, s, slots);
            unread = 0;
        }
    }
}

/* ---- Consumers ---- */

/* Scale bytes of a and b on their way: nothing may use them before they are needed, or the warp waits for memory. */
struct scale_bytes {
    uint32_t a, b;

    __device__ float product() const { return __uint_as_float(a << 23) * __uint_as_float(b << 23); }
};

/* Lane i: the scale of block first + i of the tile, for lines n .. of c. */
template <class L> __device__ static scale_bytes scales(const problem &p, const tile &t, int first, int line)
{
    int block = min(first + f8_lane(), t.blocks() - 1), column = min(line, p.n - 1) / 128;
    if (block < 0) return { 0, 0 };
    int64_t row = t.begin / STEP + block;
    return { __ldg(p.a_scale + row * ((p.n + 127) / 128) + column),
             __ldg(p.b_scale + row * ((p.k + 127) / 128) + t.k / 128) };
}

/* The first `kept` bytes (of 4, if as many) of a word. */
__device__ static inline uint32_t first_bytes(uint32_t word, int kept)
{
    return kept >= 4 ? word : kept <= 0 ? 0 : word & ((1u << 8 * kept) - 1);
}

/* Bytes valid .. STEP-1 of every line of a stage become 0: they may hold anything, NaN included. All consumers. */
template <class L> __device__ static void clear_tail(uint8_t *stage, int valid)
{
    for (int line = threadIdx.x; line < L::tile_n + TILE_K; line += 128 * L::groups)
        for (int chunk = valid / 16; chunk < STEP / 16; chunk++) {
            uint4 *at = (uint4 *)(stage + line * STEP + (chunk ^ line % 8) * 16);
            int kept = valid - 16 * chunk;
            uint4 x = make_uint4(0, 0, 0, 0);
            if (kept > 0) {
                x = *at;
                x = make_uint4(first_bytes(x.x, kept), first_bytes(x.y, kept - 4), first_bytes(x.z, kept - 8),
                               first_bytes(x.w, kept - 12));
            }
            *at = x;
        }
    f8_async_fence();
    f8_named_barrier(1, 128 * L::groups);
}

/* part = the product of 128 rows. */
__device__ static inline void multiply(float (&part)[64], uint32_t a, uint32_t b)
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

/* The sums x (0..7) of half a wave: four neighbouring columns. */
__device__ static inline float4 quad(const float (&sum)[64], int x, int half)
{
    return make_float4(sum[8 * x + 2 * half], sum[8 * x + 2 * half + 1], sum[8 * x + 4 + 2 * half],
                       sum[8 * x + 5 + 2 * half]);
}

__device__ static inline float4 add(float4 x, float4 y)
{
    return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}

/* A wave of sums to c, `ahead` loads of 16 bytes before the first use. */
template <int ahead>
__device__ static inline void write_direct(const problem &p, const tile &t, int line, float (&sum)[64])
{
    int lane = f8_lane(), row = line + threadIdx.x % 128 / 32 * 16 + lane / 4;
    float *c = p.c + ((int64_t)t.expert * p.n + row) * p.k + t.k + lane % 4 * 4;
    if (line >= p.n) return;
#pragma unroll
    for (int first = 0; first < 16; first += ahead) {
        float4 old[ahead];
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            int piece = (first + i) / 2, half = (first + i) % 2;
            old[i] = make_float4(0, 0, 0, 0);
            if (p.write == ADD && t.k + piece * 16 < p.k)
                old[i] = __ldcs((const float4 *)(c + (int64_t)half * 8 * p.k + piece * 16));
        }
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            int piece = (first + i) / 2, half = (first + i) % 2;
            if (t.k + piece * 16 < p.k)
                __stcs((float4 *)(c + (int64_t)half * 8 * p.k + piece * 16), add(old[i], quad(sum, piece, half)));
        }
    }
}

/* A wave of sums to its four slots. */
template <class L>
__device__ static inline void write_staged(const problem &p, shared<L> &s, uint8_t *slots,
                                           position<L::barrier_slots> &slot, int group, float (&sum)[64])
{
    int lane = f8_lane(), row = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint8_t *piece = slots + slot.at * PIECE_BYTES + row * 128;
        f8_barrier_wait(&s.c_ready[group][slot.at], slot.phase);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 *at = (float4 *)(piece + i % 2 * 1024 + ((lane % 4 * 2 + i / 2) ^ (lane / 4)) * 16);
            float4 x = quad(sum, 2 * j + i / 2, i % 2);
            if (p.write == ADD) x = add(*at, x);
            *at = x;
        }
        f8_async_fence();
        __syncwarp();
        if (lane == 0) f8_barrier_arrive(&s.c_done[group][slot.at]);
        slot.advance();
    }
}

/* One warp has read a stage of this block and, in a cluster, what the other block may now overwrite. */
template <class L> __device__ static void release(uint32_t barrier)
{
    if (L::cluster == 1) {
        if (f8_lane() == 0) f8_barrier_arrive(barrier);
    } else {
        if (f8_lane() < L::cluster) f8_barrier_arrive_at(barrier, f8_lane());
    }
}

template <class L>
__device__ static inline void consume(const problem &p, shared<L> &s, uint8_t *stages, uint8_t *slots, int rank)
{
    int group = threadIdx.x / 128, line = group * 64 * L::waves;
    uint32_t full = f8_kept(s.full), empty = full + sizeof s.full;
    uint32_t a0 = f8_kept(stages + line * STEP), b0 = f8_kept(stages + L::a_bytes);
    walker<L> walk(p, s, rank);
    position<L::stages> ring = { 0, 0 };
    position<L::barrier_slots> slot = { 0, 0 };
    tile t, next;
    scale_bytes next_bytes = { 0, 0 };
    bool more = walk.next(&next);
    if (more) next_bytes = scales<L>(p, next, 0, next.n + line);
    while (more) {
        t = next;
        float scale = next_bytes.product();
        scale_bytes later = scales<L>(p, t, 32, t.n + line);
        more = walk.next(&next);
        if (more) next_bytes = scales<L>(p, next, 0, next.n + line);
        float sum[L::waves][64], part[64];
#pragma unroll
        for (int w = 0; w < L::waves; w++)
#pragma unroll
            for (int i = 0; i < 64; i++) sum[w][i] = 0.0f;
        int blocks = t.blocks();
        for (int block = 0; block < blocks; block++) {
            if (block % 32 == 0 && block > 0) {
                scale = later.product();
                later = scales<L>(p, t, block + 32, t.n + line);
            }
            float factor = __shfl_sync(F8_ALL_LANES, scale, block % 32);
            f8_barrier_wait(full + 8 * ring.at, ring.phase);
            if (t.rows - block * STEP < STEP)
                clear_tail<L>(stages + ring.at * L::stage_bytes, t.rows - block * STEP);
            uint32_t a = a0 + ring.at * L::stage_bytes, b = b0 + ring.at * L::stage_bytes;
#pragma unroll
            for (int w = 0; w < L::waves; w++) {
                multiply(part, a + 64 * STEP * w, b);
                if (w == L::waves - 1) release<L>(empty + 8 * ring.at);
#pragma unroll
                for (int i = 0; i < 64; i++) sum[w][i] = fmaf(part[i], factor, sum[w][i]);
            }
            ring.advance();
        }
#pragma unroll
        for (int w = 0; w < L::waves; w++)
            if (L::slots)
                write_staged<L>(p, s, slots, slot, group, sum[w]);
            else
                write_direct<16 / L::waves>(p, t, t.n + line + 64 * w, sum[w]);
    }
}

template <class L>
__global__ __launch_bounds__(L::threads, 1) static void wgrad_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                     const __grid_constant__ CUtensorMap b_map,
                                                                     const __grid_constant__ CUtensorMap c_map,
                                                                     problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared<L> s;
    uint8_t *stages = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    uint8_t *slots = stages + L::stages * L::stage_bytes;
    int rank = L::cluster == 1 ? 0 : (int)f8_cluster_rank();
    for (int e = threadIdx.x; e < p.experts; e += L::threads) s.offset[e] = p.offset[e], s.rows[e] = p.rows[e];
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::stages; i++) {
            f8_barrier_init(&s.full[i], 1);
            f8_barrier_init(&s.empty[i], 4 * L::groups * L::cluster);
        }
        for (int i = 0; i < L::groups * L::slots; i++) {
            f8_barrier_init(&s.c_ready[0][0] + i, 1);
            f8_barrier_init(&s.c_done[0][0] + i, 4);
        }
        f8_barrier_fence();
    }
    __syncthreads();
    if (L::cluster > 1) f8_cluster_barrier();
    if (threadIdx.x >= 128 * L::groups) {
        f8_registers_less<L::groups == 3 ? 32 : 40>();
        int warp = (threadIdx.x - 128 * L::groups) / 32;
        if (f8_lane() == 0) {
            if (warp == 0)
                produce<L>(&a_map, &b_map, &c_map, p, s, stages, rank);
            else if (L::slots && warp <= L::groups)
                keep<L>(&c_map, p, s, slots + (warp - 1) * L::slots * PIECE_BYTES, rank, warp - 1);
        }
    } else {
        f8_registers_more<L::groups == 3 ? 160 : 232>();
        consume<L>(p, s, stages, slots + threadIdx.x / 128 * L::slots * PIECE_BYTES, rank);
    }
    /* The other block may still copy into this one and arrive at its barriers. */
    __syncwarp();
    if (L::cluster > 1) f8_cluster_barrier();
}

/* ---- Data ---- */

__global__ static void fill_codes(uint8_t *codes, int64_t count, const uint8_t *used, int64_t capacity, uint64_t seed)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint64_t bits = lab_mix(seed + i);
    float u = ((bits >> 40) + 1) * 0x1p-24f, angle = (uint32_t)bits * 0x1p-32f * 6.2831853f;
    codes[i] = used[i % capacity] ? f8_encode(sqrtf(-2.0f * logf(u)) * cosf(angle) * 100.0f, FP8FLOW_E4M3) : 0x7F;
}

__global__ static void fill_scales(uint8_t *scales, int64_t count, uint64_t seed)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) scales[i] = 118 + lab_mix(seed + i) % 4;
}

__device__ static float before(int64_t index)
{
    return ((lab_mix(index + 99) >> 40) * 0x1p-24f - 0.5f) * 64.0f;
}

__global__ static void fill_before(float *c, int64_t count, write_mode write)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) c[i] = write == OVERWRITE ? nanf("") : before(i);
}

/* One warp per element: FP64 of the dequantised operands; error as a fraction of the bound. */
__global__ static void check_kernel(problem p, const uint8_t *a, const uint8_t *b, int64_t capacity, int all,
                                    float *worst)
{
    int64_t index = blockIdx.x, element = index;
    if (!all) {
        int64_t per_expert = (int64_t)p.n * p.k;
        element = index % p.experts * per_expert + (int64_t)(lab_mix(index * 77 + 5) % per_expert);
    }
    int expert = (int)(element / p.k / p.n), n = (int)(element / p.k % p.n), k = (int)(element % p.k);
    double sum = 0, magnitude = 0;
    for (int m = threadIdx.x; m < p.rows[expert]; m += 32) {
        int64_t row = p.offset[expert] + m;
        double x = ldexp((double)f8_decode(a[n * capacity + row], FP8FLOW_E4M3),
                         p.a_scale[row / 128 * ((p.n + 127) / 128) + n / 128] - 127);
        double y = ldexp((double)f8_decode(b[k * capacity + row], FP8FLOW_E4M3),
                         p.b_scale[row / 128 * ((p.k + 127) / 128) + k / 128] - 127);
        sum += x * y;
        magnitude += fabs(x * y);
    }
    sum = f8_warp_sum(sum);
    magnitude = f8_warp_sum(magnitude);
    if (threadIdx.x) return;
    double old = p.write == OVERWRITE ? 0.0 : (double)before(element), got = p.c[element];
    double bound = 4 * 0x1p-13 * magnitude + 0x1p-23 * fabs(old + sum) + 1e-30;
    worst[index] = got == got ? (float)(fabs(got - (old + sum)) / bound) : 1e30f;
}

__global__ static void count_nan(const float *c, int64_t count, unsigned long long *found)
{
    unsigned long long mine = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        mine += c[i] != c[i];
    if (mine) atomicAdd(found, mine);
}

static unsigned blocks_of(int64_t count)
{
    return (unsigned)((count + 255) / 256);
}

/* ---- Tensor maps ---- */

static CUtensorMap make_map(CUtensorMapDataType type, int rank, const void *data, const uint64_t *dims,
                            const uint64_t *strides, const uint32_t *box)
{
    static PFN_cuTensorMapEncodeTiled_v12000 encode;
    cudaDriverEntryPointQueryResult found;
    if (!encode)
        LAB_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000, cudaEnableDefault,
                                                 &found));
    CUtensorMap map;
    cuuint32_t steps[5] = { 1, 1, 1, 1, 1 };
    CUresult result = encode(&map, type, rank, (void *)data, (const cuuint64_t *)dims, (const cuuint64_t *)strides, box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) std::printf("tensor map of rank %d: error %d\n", rank, (int)result), std::exit(1);
    return map;
}

static CUtensorMap map_a(const uint8_t *a, int64_t capacity, int n, int lines)
{
    uint64_t dims[2] = { (uint64_t)capacity, (uint64_t)n }, strides[1] = { (uint64_t)capacity };
    uint32_t box[2] = { STEP, (uint32_t)lines };
    return make_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, a, dims, strides, box);
}

/* Lines of b in the order that gives lane q of four the columns columns*q .. columns*q + columns-1 of a group of
 * 4*columns: line 8h + 2q + i of a group in shared memory is line columns*q + 2h + i of the tensor. */
static CUtensorMap map_b(const uint8_t *b, int64_t capacity, int k, int columns, int lines)
{
    uint64_t stride = (uint64_t)capacity;
    uint64_t dims[5] = { stride, 2, 4, (uint64_t)columns / 2, (uint64_t)k / (4 * columns) };
    uint64_t strides[4] = { stride, columns * stride, 2 * stride, 4 * columns * stride };
    uint32_t box[5] = { STEP, 2, 4, (uint32_t)columns / 2, (uint32_t)lines / (4 * columns) };
    return make_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 5, b, dims, strides, box);
}

static CUtensorMap map_c(const float *c, int experts, int n, int k)
{
    uint64_t dims[3] = { (uint64_t)k, (uint64_t)n, (uint64_t)experts };
    uint64_t strides[2] = { 4 * (uint64_t)k, 4 * (uint64_t)k * n };
    uint32_t box[3] = { PIECE_COLS, 64, 1 };
    return make_map(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 3, c, dims, strides, box);
}

/* ---- Versions ---- */

struct operands {
    const char *name;
    problem p;
    const uint8_t *a, *b;
    int64_t capacity;
    double flops, sustained_ms; /* 0: only check */
};

struct result {
    double error, cool, sustained;
    unsigned long long nan;
};

template <class Launch> static double sustain(Launch launch, double one, double milliseconds)
{
    cudaEvent_t start, stop;
    float elapsed;
    LAB_TRY(cudaEventCreate(&start));
    LAB_TRY(cudaEventCreate(&stop));
    int loops = std::max(8, (int)(1e3 * milliseconds / one));
    for (int i = 0; i < loops / 3; i++) launch(0);
    LAB_TRY(cudaEventRecord(start));
    for (int i = 0; i < loops; i++) launch(0);
    LAB_TRY(cudaEventRecord(stop));
    LAB_TRY(cudaEventSynchronize(stop));
    LAB_TRY(cudaEventElapsedTime(&elapsed, start, stop));
    LAB_TRY(cudaEventDestroy(start));
    LAB_TRY(cudaEventDestroy(stop));
    return 1e3 * elapsed / loops;
}

enum { FLUSHED = 0, SUSTAINED = 1, OVERWRITES = 2, PREFETCH = 4 };

template <class L> static result run(const operands &o, write_mode write, int also)
{
    problem p = o.p;
    p.write = write;
    p.prefetch = (also & PREFETCH) != 0;
    CUtensorMap a_map = map_a(o.a, o.capacity, p.n, L::tile_n);
    CUtensorMap b_map = map_b(o.b, o.capacity, p.k, L::lane_columns, TILE_K / L::cluster);
    CUtensorMap c_map = map_c(p.c, p.experts, p.n, p.k);
    auto kernel = wgrad_kernel<L>;
    LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::bytes));
    auto launch = [&](cudaStream_t stream) {
        cudaLaunchConfig_t config = {};
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = L::cluster;
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
        config.gridDim = dim3(132);
        config.blockDim = dim3(L::threads);
        config.dynamicSmemBytes = L::bytes;
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = L::cluster > 1;
        LAB_TRY(cudaLaunchKernelEx(&config, kernel, a_map, b_map, c_map, p));
    };
    result r = {};
    int64_t count = (int64_t)p.experts * p.n * p.k;
    int all = count < 1 << 21, samples = all ? (int)count : 8192;
    float *worst = lab_alloc<float>(samples);
    unsigned long long *nan = lab_alloc<unsigned long long>(1);
    LAB_TRY(cudaMemset(nan, 0, sizeof *nan));
    fill_before<<<blocks_of(count), 256>>>(p.c, count, write);
    launch(0);
    LAB_TRY(cudaDeviceSynchronize());
    check_kernel<<<samples, 32>>>(p, o.a, o.b, o.capacity, all, worst);
    count_nan<<<1056, 256>>>(p.c, count, nan);
    LAB_TRY(cudaDeviceSynchronize());
    std::vector<float> errors = lab_download(worst, samples);
    r.error = *std::max_element(errors.begin(), errors.end());
    r.nan = lab_download(nan, 1)[0];
    LAB_TRY(cudaFree(worst));
    LAB_TRY(cudaFree(nan));
    if (o.sustained_ms == 0) return r;
    r.cool = lab_time(launch, 11);
    if (write != OVERWRITE && (also & SUSTAINED)) r.sustained = sustain(launch, r.cool, o.sustained_ms);
    return r;
}

struct version {
    const char *name;
    result (*run)(const operands &, write_mode, int);
    write_mode write; /* how it adds */
    int also;
};

/* layout<groups, waves, stages, slots, cluster> */
static const version versions[] = {
    /* predict V3 1000, V2-Lite adding 480: all of the epilogue is exposed, 64 KB of loads at once. */
    { "v1  128x128 direct, 6 stages", run<layout<2, 1, 6, 0, 1>>, ADD, SUSTAINED | OVERWRITES },
    /* predict V3 1050, V2-Lite adding 500: a quarter fewer operand bytes, twice the exposed latency per tile. */
    { "v2  256x128 direct, 4 stages", run<layout<2, 2, 4, 0, 1>>, ADD, OVERWRITES },
    /* predict V3 1130, V2-Lite adding 580: c comes from L2 at the end. */
    { "v2p 256x128 direct, c prefetched to L2", run<layout<2, 2, 4, 0, 1>>, ADD, PREFETCH },
    /* predict as v2p + 3 %: shared b. */
    { "v2c 256x128 direct, prefetched, cluster 2", run<layout<2, 2, 4, 0, 2>>, ADD, PREFETCH },
    /* predict V3 1130, V2-Lite adding 600 / overwriting 850: c hidden; operands from L2 (71 B/ns/SM) bind. */
    { "v3  128x128 staged, 4 stages, 2x6 slots", run<layout<2, 1, 4, 6, 1>>, ADD, SUSTAINED | OVERWRITES },
    /* predict V2-Lite adding 420: the adders of L2 (2.4 TB/s). */
    { "v3r 128x128 reduce, 4 stages, 2x6 slots", run<layout<2, 1, 4, 6, 1>>, REDUCE, FLUSHED },
    /* predict V3 1180, V2-Lite adding 680 / overwriting 950: a quarter fewer bytes from L2; favourite for V2-Lite. */
    { "v4  128x128 staged, cluster 2, 4 st, 2x6", run<layout<2, 1, 4, 6, 2>>, ADD, SUSTAINED | OVERWRITES },
    /* predict as v4 (V3 +1 %, V2-Lite -1 %): says whether stages or slots matter. */
    { "v4b 128x128 staged, cluster 2, 5 st, 2x4", run<layout<2, 1, 5, 4, 2>>, ADD, OVERWRITES },
    /* predict V2-Lite adding +3 % over v4 if reads of c run short there, V3 -5 %: two tiles of c ahead. */
    { "v4d 128x128 staged, cluster 2, 3 st, 2x8", run<layout<2, 1, 3, 8, 2>>, ADD, FLUSHED },
    /* predict V3 1170, V2-Lite adding 650: 11 % less shared-memory port; 3 stages may starve. */
    { "v5  192x128 staged, 3 stages, 3x4 slots", run<layout<3, 1, 3, 4, 1>>, ADD, OVERWRITES },
    /* predict V3 1200, V2-Lite adding 690. */
    { "v5c 192x128 staged, cluster 2, 3 st, 3x4", run<layout<3, 1, 3, 4, 2>>, ADD, SUSTAINED | OVERWRITES },
    /* predict V3 1220, V2-Lite adding 640: 5 of 8 pieces prefetched, the rest exposed once per tile. */
    { "v6  256x128 staged, 3 stages, 2x5 slots", run<layout<2, 2, 3, 5, 1>>, ADD, SUSTAINED | OVERWRITES },
    /* predict V3 1250: nothing to wait for but the reads of shared memory; L2 adds hidden under 18 us of products. */
    { "v6r 256x128 reduce, 3 stages, 2x5 slots", run<layout<2, 2, 3, 5, 1>>, REDUCE, SUSTAINED },
    /* predict as v6r if 3 stages suffice there, else + 4 %. */
    { "v6s 256x128 reduce, 4 stages, 2x2 slots", run<layout<2, 2, 4, 2, 1>>, REDUCE, OVERWRITES },
    /* predict V3 1240: favourite for V3. */
    { "v6c 256x128 staged, cluster 2, 3 st, 2x5", run<layout<2, 2, 3, 5, 2>>, ADD, SUSTAINED | OVERWRITES },
};
enum { VERSIONS = sizeof versions / sizeof versions[0] };

/* ---- Runs ---- */

struct shape {
    const char *name;
    int experts, mean, n, k; /* mean 0: the small expert sizes below */
    double sustained_ms;
};

static const shape shapes[] = {
    { "small", 8, 0, 384, 384, 0 },
    { "V3 wgrad1", 8, 4096, 4096, 7168, 250 },
    { "V3 wgrad2", 8, 4096, 7168, 2048, 250 },
    { "V2-Lite wgrad1", 64, 768, 2816, 2048, 80 },
    { "V2-Lite wgrad2", 64, 768, 2048, 1408, 80 },
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static const int small_rows[8] = { 0, 1, 127, 128, 129, 0, 300, 33 };

static operands make_operands(const shape &s)
{
    std::vector<int32_t> offset(s.experts + 1), rows(s.experts);
    int64_t total = 0;
    for (int e = 0; e < s.experts; e++) {
        rows[e] = s.mean ? (int)(s.mean * (0.7 + 0.6 * ((e * 37 + 11) % s.experts) / s.experts)) : small_rows[e];
        offset[e + 1] = offset[e] + (rows[e] + 127) / 128 * 128;
        total += rows[e];
    }
    int64_t capacity = offset[s.experts];
    std::vector<uint8_t> used(capacity, 0);
    for (int e = 0; e < s.experts; e++) std::fill_n(used.begin() + offset[e], rows[e], 1);
    uint8_t *valid = lab_upload(used), *a = lab_alloc<uint8_t>(capacity * s.n), *b = lab_alloc<uint8_t>(capacity * s.k);
    int64_t a_scales = capacity / 128 * ((s.n + 127) / 128), b_scales = capacity / 128 * ((s.k + 127) / 128);
    uint8_t *a_scale = lab_alloc<uint8_t>(a_scales), *b_scale = lab_alloc<uint8_t>(b_scales);
    fill_codes<<<blocks_of(capacity * s.n), 256>>>(a, capacity * s.n, valid, capacity, 1);
    fill_codes<<<blocks_of(capacity * s.k), 256>>>(b, capacity * s.k, valid, capacity, 1ull << 40);
    fill_scales<<<blocks_of(a_scales), 256>>>(a_scale, a_scales, 3);
    fill_scales<<<blocks_of(b_scales), 256>>>(b_scale, b_scales, 4);
    LAB_TRY(cudaDeviceSynchronize());
    LAB_TRY(cudaFree(valid));
    float *c = lab_alloc<float>((int64_t)s.experts * s.n * s.k);
    problem p = { a_scale,   b_scale, c,   lab_upload(offset), lab_upload(rows),
                  s.experts, s.n,     s.k, OVERWRITE,          0 };
    return { s.name, p, a, b, capacity, 2.0 * total * s.n * s.k, s.sustained_ms };
}

static void free_operands(const operands &o)
{
    const void *memory[] = { o.a, o.b, o.p.a_scale, o.p.b_scale, o.p.c, o.p.offset, o.p.rows };
    for (const void *m : memory) LAB_TRY(cudaFree((void *)m));
}

static bool one_run(const operands &o, const version &v, write_mode write)
{
    const char *how[] = { "overwrites", "adds", "adds (reduce)" };
    result r = v.run(o, write, v.also);
    bool good = r.error < 1 && r.nan == 0;
    std::printf("%-42s %-14s %-13s", v.name, o.name, how[write]);
    if (r.cool > 0) std::printf(" %8.1f us %6.0f TFLOP/s flushed", r.cool, o.flops / r.cool * 1e-6);
    if (r.sustained > 0) std::printf(", %8.1f us %6.0f sustained", r.sustained, o.flops / r.sustained * 1e-6);
    std::printf(", error %.3f%s\n", r.error, good ? "" : "  WRONG");
    if (!good && r.nan) std::printf("    %llu NaN\n", r.nan);
    return good;
}

/* What outlives a child that crashed or hung. */
struct progress {
    volatile int position; /* shape * VERSIONS + version */
    volatile int broken[VERSIONS];
};

static void run_from(progress *state)
{
    for (int s = state->position / VERSIONS; s < SHAPES; s++) {
        operands o = make_operands(shapes[s]);
        for (int v = state->position % VERSIONS; v < VERSIONS; v++) {
            state->position = s * VERSIONS + v;
            if (state->broken[v]) continue;
            bool good = one_run(o, versions[v], versions[v].write);
            if (versions[v].also & OVERWRITES) good = one_run(o, versions[v], OVERWRITE) && good;
            if (!good && shapes[s].mean == 0) state->broken[v] = 1;
        }
        state->position = (s + 1) * VERSIONS;
        free_operands(o);
    }
}

/* A version that crashes or hangs takes a child process with it; the next child goes on behind it. */
int main()
{
    setvbuf(stdout, NULL, _IONBF, 0);
    progress *state =
        (progress *)mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (state == MAP_FAILED) return 1;
    while (state->position < SHAPES * VERSIONS) {
        pid_t child = fork();
        if (child == 0) {
            run_from(state);
            std::_Exit(0);
        }
        int status = 0, seen = -1, still = 0;
        while (waitpid(child, &status, WNOHANG) == 0) {
            still = state->position == seen ? still + 1 : 0;
            seen = state->position;
            if (still == 100) kill(child, SIGKILL); /* 10 s in one version */
            usleep(100 * 1000);
        }
        if (state->position >= SHAPES * VERSIONS) break;
        int v = state->position % VERSIONS;
        std::printf("%-42s %-14s FAILED%s\n", versions[v].name, shapes[state->position / VERSIONS].name,
                    still >= 100 ? ": hung" : "");
        state->broken[v] = 1;
        state->position = state->position + 1;
    }
    return 0;
}
