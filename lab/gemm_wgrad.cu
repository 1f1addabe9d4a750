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
 * All versions ran and are correct: error <= 0.18 of 4 * 2^-13 * sum|a b|. gemm_wgrad_data.cuh makes the operands,
 * checks and times. The reason for the length: every version is an option of one kernel, and a failing one must not
 * stop the others.
 *
 * Bounds on the H200 (4.2 TB/s): V2-Lite adding 0.76 / 0.39 ms (750 / 723 TFLOP/s: the goal of 1.8 x 398 is 99 % of
 * that), overwriting 0.41 / 0.22 ms. Shared-memory port per 128 x 128 x 128: 80 KB = 640 clocks, 256 rows: 72 KB.
 */
#include <cudaTypedefs.h>

#include "gemm_wgrad_data.cuh"
#include "ops/hopper.cuh"

enum { TILE_K = 128, STEP = 128, MAX_EXPERTS = 128, BAND_ROWS = 2048, PIECE_COLS = 32, PIECE_BYTES = 64 * 32 * 4 };

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
                f8_copy_tile_5d(b, b_map, full, x, w);
            else
                f8_share_tile_5d(b + rank * (L::b_bytes / 2), b_map, full, x, w + rank * (b_groups / 2), 3);
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
    if (L::cluster > 1) f8_cluster_sync();
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
    if (L::cluster > 1) f8_cluster_sync();
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
    return measure(o, p, launch, also);
}

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

int main()
{
    return run_guarded(versions);
}
