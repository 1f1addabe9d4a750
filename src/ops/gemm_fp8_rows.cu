/* gemm_fp8_rows.cu - FPROP and DGRAD of FP8 operands: c[P, outer] = a[P, inner] * b_g[outer, inner]^T, E4M3.
 *
 * Both products are one: b's lines run along the contraction, as rows (FPROP) or in column form (DGRAD). Persistent
 * blocks of 384 threads walk tiles of 128 x 256 (gemm_walk.cuh), alone or in clusters of two that share operands:
 *   warpgroups 0, 1  64 rows each: wait for a stage, four products of 32 along the contraction into fresh
 *                    accumulators per 128 columns, add them times their scales to FP32 sums (one FFMA per sum), and
 *                    at the end of a tile leave BF16 in shared memory, which the copy engine writes to c.
 *   one thread       fills the ring of stages through the copy engine.
 *   one warp         brings coordinates and scale bytes ahead of the warpgroups, so that these never wait for
 *                    global memory and never divide.
 * A warpgroup whose rows are all padding, or whose columns lie outside c, multiplies nothing.
 * L2 to shared memory per 128 x 256 x 128: 32 KB in a cluster, 48 alone. Written per element of c: 2 bytes.
 */
#include "ops/gemm_cuda.h"
#include "ops/gemm_walk.cuh"
#include "ops/hopper.cuh"
#include "ops/launch.cuh"
#include "ops/tensor_map.cuh"
#include "ops/warp.cuh"

enum { STEP = 128, GROUPS = 2, THREADS = 128 * (GROUPS + 1), SLOTS = 3, WINDOW = 16, LINE = WINDOW + 4 };
enum { BOX_COLS = 64, BOX_BYTES = 64 * BOX_COLS * 2 }; /* of c in shared memory: 64 rows, one line of 128 bytes each */

struct problem {
    f8_walk_groups groups;
    int32_t inner;
    const uint8_t *a_scale, *b_scale;                    /* block scales */
    const float *a_factor, *b_factor;                    /* one per expert, or NULL */
    int32_t b_scale_expert, b_scale_block, b_scale_step; /* bytes between experts, blocks of columns, steps */
    void *c;
    int64_t c_stride;
    fp8flow_dtype c_dtype;
    fp8flow_write write;
};

/* passes: products of `columns` columns one after the other over a stage. */
template <int columns_, int passes_, int stages_, int cluster_, bool per_expert_> struct shape {
    static const int columns = columns_, passes = passes_, stages = stages_, cluster = cluster_;
    static const bool per_expert = per_expert_; /* scales: one per expert, else one per block */
    static const int tile_n = columns * passes, sums = columns / 2, blocks = (tile_n + 127) / 128;
    static const int a_box = F8_WALK_ROWS / cluster, b_box = tile_n / cluster;
    static const int a_bytes = F8_WALK_ROWS * STEP, b_bytes = tile_n * STEP, stage_bytes = a_bytes + b_bytes;
    static const int boxes = tile_n / BOX_COLS;
    static const int bytes = 1024 + stages * stage_bytes + GROUPS * boxes * BOX_BYTES;
    typedef f8_walk<tile_n, cluster> walk;
};

/* What the warpgroups need for up to WINDOW steps of a tile. */
struct slot {
    f8_walk_tile tile;
    int first, steps; /* no steps: the end of the walk */
    float factor[2];
    uint8_t b[2][LINE], a[F8_WALK_ROWS][LINE];
};

template <class S> struct shared_memory {
    uint64_t full[S::stages], empty[S::stages], ready[SLOTS], taken[SLOTS];
    int32_t cumulative[F8_WALK_EXPERTS + 1];
    f8_walk_tile current; /* of the warp that brings */
    slot slots[SLOTS];
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

__device__ static int steps_of(const problem &p)
{
    return (p.inner + STEP - 1) / STEP;
}

/* ---- The warp that brings coordinates and scales ---- */

/* Four bytes from byte `at` on of an array of words: two words, without a branch, so that many such loads can be on
 * their way at once. */
struct four_bytes {
    uint32_t low, high;

    __device__ void load(const uint32_t *words, int at, int last)
    {
        low = __ldg(words + min(at / 4, last));
        high = __ldg(words + min(at / 4 + 1, last));
    }

    __device__ uint32_t value(int at) const { return __funnelshift_r(low, high, 8 * (at % 4)); }
};

/* Scale bytes of steps first .. first + WINDOW - 1: four lanes a line of a, so that eight lines come at once. What lies
 * past the array's end belongs to rows that nobody has. */
template <class S> __device__ static void bring_window(const problem &p, slot *to)
{
    const int ahead = 2, lanes = WINDOW / 4, lines = 32 / lanes;
    int lane = f8_lane(), steps = steps_of(p), column = lane % lanes * 4;
    const uint32_t *words = (const uint32_t *)p.a_scale;
    int last = p.groups.capacity * steps / 4 - 1, first = to->first;
    int at = (to->tile.row + lane / lanes) * steps + first + column;
#pragma unroll 1
    for (int line = lane / lanes; line < F8_WALK_ROWS; line += lines * ahead) {
        four_bytes bytes[ahead];
#pragma unroll
        for (int i = 0; i < ahead; i++) bytes[i].load(words, at + i * lines * steps, last);
#pragma unroll
        for (int i = 0; i < ahead; i++, at += lines * steps)
            *(uint32_t *)&to->a[line + lines * i][column] = bytes[i].value(at);
    }
    if (lane >= WINDOW || first + lane >= steps) return;
#pragma unroll
    for (int block = 0; block < S::blocks; block++) {
        int column_block = min(to->tile.n / 128 + block, (p.groups.columns + 127) / 128 - 1);
        to->b[block][lane] = __ldg(p.b_scale + to->tile.expert * p.b_scale_expert + column_block * p.b_scale_block +
                                   (first + lane) * p.b_scale_step);
    }
}

template <class S> __device__ static void bring(const problem &p, shared_memory<S> &shared, typename S::walk walk)
{
    position<SLOTS> at = { 0, 1 };
    f8_walk_tile &t = shared.current;
    int steps = steps_of(p), window = S::per_expert ? steps : WINDOW;
    for (bool more = true; more;) {
        __syncwarp();
        more = walk.next(&t);
        __syncwarp();
        for (int first = 0; first < (more ? steps : 1); first += window) {
            slot *to = &shared.slots[at.at];
            f8_barrier_wait(&shared.taken[at.at], at.phase);
            if (f8_lane() == 0) {
                to->first = first;
                to->steps = more ? min(window, steps - first) : 0;
                if (more) to->tile = t;
                if (S::per_expert && more) to->factor[0] = p.a_factor[t.expert], to->factor[1] = p.b_factor[t.expert];
            }
            __syncwarp();
            if (!S::per_expert && more) bring_window<S>(p, to);
            f8_barrier_arrive(&shared.ready[at.at]);
            at.advance();
        }
    }
}

/* ---- The thread that copies ---- */

template <class S>
__device__ static inline void fill_stage(const CUtensorMap *a_map, const CUtensorMap *b_map, uint64_t *full, uint8_t *a,
                                         const f8_walk_tile &t, int k, int b_line)
{
    uint8_t *b = a + S::a_bytes;
    int rank = S::cluster > 1 ? (int)f8_cluster_rank() : 0, a_first = rank * S::a_box, b_first = rank * S::b_box;
    f8_barrier_expect(full, S::stage_bytes);
    if (t.share == F8_SHARE_A)
        f8_share_tile(a + a_first * STEP, a_map, full, k, t.row + a_first, 3);
    else
#pragma unroll
        for (int i = 0; i < F8_WALK_ROWS; i += S::a_box) f8_copy_tile(a + i * STEP, a_map, full, k, t.row + i);
    if (t.share == F8_SHARE_B)
        f8_share_tile(b + b_first * STEP, b_map, full, k, b_line + b_first, 3);
    else
#pragma unroll
        for (int i = 0; i < S::tile_n; i += S::b_box) f8_copy_tile(b + i * STEP, b_map, full, k, b_line + i);
}

template <class S>
__device__ static void produce(const problem &p, const CUtensorMap *a_map, const CUtensorMap *b_map,
                               shared_memory<S> &shared, uint8_t *ring)
{
    position<S::stages> stage = { 0, 1 };
    position<SLOTS> at = { 0, 0 };
    f8_prefetch_map(a_map);
    f8_prefetch_map(b_map);
    for (;; at.advance()) {
        const slot &s = shared.slots[at.at];
        f8_barrier_wait(&shared.ready[at.at], at.phase);
        if (s.steps == 0) break;
        int b_line = s.tile.expert * p.groups.columns + s.tile.n, end = s.first + s.steps;
        for (int step = s.first; step < end; step++, stage.advance()) {
            f8_barrier_wait(&shared.empty[stage.at], stage.phase);
            fill_stage<S>(a_map, b_map, &shared.full[stage.at], ring + stage.at * S::stage_bytes, s.tile, step * STEP,
                          b_line);
        }
        f8_barrier_arrive(&shared.taken[at.at]);
    }
}

/* ---- The warpgroups that multiply ---- */

__device__ static inline float scale_of(uint32_t word)
{
    return __uint_as_float((word & 0xFF) << 23);
}

/* Scale bytes of four steps: of rows `local` and `local` + 8, and of the tile's blocks of columns. */
template <class S> struct scale_words {
    uint32_t a[2], b[S::blocks];

    __device__ void load(const slot *from, int local, int step)
    {
        a[0] = *(const uint32_t *)&from->a[local][step];
        a[1] = *(const uint32_t *)&from->a[local + 8][step];
#pragma unroll
        for (int i = 0; i < S::blocks; i++) b[i] = *(const uint32_t *)&from->b[i][step];
    }

    __device__ void shift()
    {
        a[0] >>= 8, a[1] >>= 8;
#pragma unroll
        for (int i = 0; i < S::blocks; i++) b[i] >>= 8;
    }
};

/* part = this warpgroup's 64 rows x `columns` columns of one stage. */
template <int sums> __device__ static inline void multiply(float (&part)[sums], uint64_t a, uint64_t b)
{
#pragma unroll
    for (int i = 0; i < sums; i++) f8_pin(part[i]);
    f8_products_begin();
#pragma unroll
    for (int i = 0; i < STEP / 32; i++) f8_product_e4m3(part, a + 2 * i, b + 2 * i, i);
    f8_products_commit();
}

/* sum += part times the scales; `middle`: 64 columns of 192 belong to the second block. */
template <class S>
__device__ static inline void promote(float (&sum)[S::sums], float (&part)[S::sums], const scale_words<S> &w, int pass,
                                      bool middle)
{
#pragma unroll
    for (int i = 0; i < S::sums; i++) f8_pin(part[i]);
    if (S::per_expert) {
#pragma unroll
        for (int i = 0; i < S::sums; i++) sum[i] += part[i];
        return;
    }
    float low = scale_of(w.a[0]), high = scale_of(w.a[1]);
    float b[3] = { scale_of(w.b[S::columns == 128 ? pass : 0]), 0, 0 };
    if (S::columns > 128) b[2] = scale_of(w.b[S::blocks - 1]), b[1] = middle ? b[2] : b[0];
    else b[1] = b[0];
#pragma unroll
    for (int piece = 0; piece < S::columns / 64; piece++) {
        float factor[2] = { low * b[piece], high * b[piece] };
#pragma unroll
        for (int i = 32 * piece; i < 32 * piece + 32; i++) sum[i] = fmaf(part[i], factor[i / 2 % 2], sum[i]);
    }
}

/* BF16 of one pass to the boxes in shared memory, lines swizzled as the copy engine reads them. */
template <class S>
__device__ static void stage_c(uint32_t boxes, const f8_walk_tile &t, int row, int pass, const float (&sum)[S::sums])
{
    int lane = f8_lane(), warp = threadIdx.x % 128 / 32;
    uint32_t line = boxes + (warp * 16 + lane % 16) * (BOX_COLS * 2);
    uint32_t mask_low = row < t.valid ? ~0u : 0, mask_high = row + 8 < t.valid ? ~0u : 0;
#pragma unroll
    for (int i = 0; i < S::columns / 16; i++) {
        uint32_t pair[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            pair[j] = f8_bf16_pair_fast(sum[8 * i + 2 * j], sum[8 * i + 2 * j + 1]) & (j % 2 ? mask_high : mask_low);
        int piece = pass * (S::columns / 8) + 2 * i, chunk = piece % 8 + lane / 16;
        f8_store_matrices(line + piece / 8 * BOX_BYTES + (chunk ^ lane % 8) * 16, pair[0], pair[1], pair[2], pair[3]);
    }
}

/* The same in FP32, for one pass: 64 lines of `columns` numbers. Returns with all of it written. */
template <class S>
__device__ static void stage_f32(uint32_t boxes, const f8_walk_tile &t, int row, const float (&sum)[S::sums])
{
    int line = threadIdx.x % 128 / 32 * 16 + f8_lane() / 4;
#pragma unroll
    for (int i = 0; i < S::sums; i += 2) {
        int high = i / 2 % 2, used = row + 8 * high < t.valid;
        uint32_t at = boxes + (line + 8 * high) * (S::columns * 4) + (i / 4 * 8 + f8_lane() % 4 * 2) * 4;
        f8_store_shared(at, used ? sum[i] : 0.0f, used ? sum[i + 1] : 0.0f);
    }
}

/* Pieces of 16 bytes of 64 rows from shared memory to c, where an expert ends within the rows. */
template <class S> __device__ static void copy_bf16(const problem &p, const f8_walk_tile &t, int first, int passes,
                                                    uint32_t boxes)
{
#pragma unroll 1
    for (int i = threadIdx.x % 128; i < 64 * S::boxes * 8; i += 128) {
        int line = i / (S::boxes * 8), piece = i % (S::boxes * 8), col = t.n + 8 * piece;
        if (first + line >= t.limit || col >= p.groups.columns || !(passes >> 8 * piece / S::columns & 1)) continue;
        uint4 x = f8_load_shared(boxes + piece / 8 * BOX_BYTES + line * (BOX_COLS * 2) + (piece % 8 ^ line % 8) * 16);
        *(uint4 *)((uint16_t *)p.c + (first + line) * p.c_stride + col) = x;
    }
}

template <class S> __device__ static void copy_f32(const problem &p, const f8_walk_tile &t, int first, int pass,
                                                   uint32_t boxes)
{
    int limit = p.write == FP8FLOW_ACCUMULATE ? t.valid : t.limit;
#pragma unroll 1
    for (int i = threadIdx.x % 128; i < 64 * S::columns / 4; i += 128) {
        int line = i / (S::columns / 4), col = t.n + pass * S::columns + i % (S::columns / 4) * 4;
        if (first + line >= limit || col >= p.groups.columns) continue;
        uint4 x = f8_load_shared(boxes + 16 * i);
        float4 sum = make_float4(__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z), __uint_as_float(x.w));
        float4 *c = (float4 *)((float *)p.c + (first + line) * p.c_stride + col);
        if (p.write == FP8FLOW_ACCUMULATE)
            sum = make_float4(c->x + sum.x, c->y + sum.y, c->z + sum.z, c->w + sum.w);
        *c = sum;
    }
}

/* Passes `passes` of 64 rows from `first` on. The copy engine writes BF16 rows that are all the expert's. */
template <class S>
__device__ static void write_rows(const problem &p, const f8_walk_tile &t, int first, int passes,
                                  const CUtensorMap *c_map, uint32_t boxes, const float (&sum)[S::passes][S::sums])
{
    int name = 1 + threadIdx.x / 128, row = first + threadIdx.x % 128 / 32 * 16 + f8_lane() / 4;
    bool bf16 = p.c_dtype == FP8FLOW_BF16;
    if (threadIdx.x % 128 == 0) f8_store_wait_read<0>();
#pragma unroll
    for (int pass = 0; pass < S::passes; pass++) {
        if (!(passes >> pass & 1)) continue;
        f8_named_barrier(name, 128);
        if (bf16) {
            stage_c<S>(boxes, t, row, pass, sum[pass]);
        } else {
            stage_f32<S>(boxes, t, row, sum[pass]);
            f8_named_barrier(name, 128);
            copy_f32<S>(p, t, first, pass, boxes);
        }
    }
    if (!bf16) return;
    f8_async_fence();
    f8_named_barrier(name, 128);
    if (first + 64 > t.limit) {
        copy_bf16<S>(p, t, first, passes, boxes);
    } else if (threadIdx.x % 128 == 0) {
        for (int i = 0; i < S::boxes && t.n + i * BOX_COLS < p.groups.columns; i++)
            if (passes >> i * BOX_COLS / S::columns & 1)
                f8_store_tile(c_map, boxes + i * BOX_BYTES, t.n + i * BOX_COLS, first);
        f8_store_commit();
    }
}

/* Each warp that has read a stage says so, in a cluster to both blocks. */
template <class S> __device__ static inline void release(uint32_t barrier)
{
    if (S::cluster == 1) {
        if (f8_lane() == 0) f8_barrier_arrive(barrier);
    } else {
        if (f8_lane() < S::cluster) f8_barrier_arrive_at(barrier, f8_lane());
    }
}

/* The slots as a warp of the warpgroups sees them; slots number 0, 1, .. take turns in shared memory. */
template <class S> struct slot_reader {
    shared_memory<S> &shared;
    int number;

    __device__ const slot &get(int which) const { return shared.slots[which % SLOTS]; }

    __device__ const slot &wait()
    {
        f8_barrier_wait(&shared.ready[number % SLOTS], number / SLOTS & 1);
        return get(number);
    }

    __device__ void give_back(int which)
    {
        __syncwarp();
        if (f8_lane() == 0) f8_barrier_arrive(&shared.taken[which % SLOTS]);
    }
};

/* What a warpgroup computes of a tile: passes (a bit each) of the rows of one half. Where only the first half has rows
 * in use, the warpgroups divide the passes, else the halves. */
struct share {
    bool divided;
    int half, passes;
};

/* The lanes agree, and the shuffles say so to the compiler. */
template <class S> __device__ static share share_of(const problem &p, const f8_walk_tile &t, int group)
{
    int columns = min(S::passes, (p.groups.columns - t.n + S::columns - 1) / S::columns), all = (1 << columns) - 1;
    int divided = S::passes == GROUPS && t.row < t.valid && t.row + 64 >= t.valid;
    divided = __shfl_sync(~0u, divided, 0);
    int passes = divided ? all & 1 << group : t.row + group * 64 < t.valid ? all : 0;
    return { divided != 0, divided ? 0 : group, __shfl_sync(~0u, passes, 0) };
}

/* What a warpgroup works with. */
template <class S> struct worker {
    const problem &p;
    const CUtensorMap *c_map;
    uint32_t boxes; /* of this warpgroup, in shared memory */
    slot_reader<S> slots;
    uint32_t operand, full; /* descriptor of the ring; its barriers */
    position<S::stages> stage;
};

/* The sums of the tile whose last slot is number `last`, if there is one, to c. New sums. */
template <class S>
__device__ static inline void finish(worker<S> &w, int last, float (&sum)[S::passes][S::sums])
{
    if (last >= 0) {
        const slot &s = w.slots.get(last);
        int group = threadIdx.x / 128;
        share mine = share_of<S>(w.p, s.tile, group);
        if (S::per_expert) {
#pragma unroll
            for (int i = 0; i < S::passes * S::sums; i++) sum[i / S::sums][i % S::sums] *= s.factor[0] * s.factor[1];
        }
#pragma unroll 1
        for (int half = mine.half; half <= (mine.divided ? 1 : group); half++)
            write_rows<S>(w.p, s.tile, s.tile.row + 64 * half, mine.divided ? 1 << group : ~0, w.c_map, w.boxes, sum);
        w.slots.give_back(last);
    }
#pragma unroll
    for (int i = 0; i < S::passes * S::sums; i++) f8_set_zero(sum[i / S::sums][i % S::sums]);
}

/* The steps of a tile; the one before is written while the tensor cores do this one's first products. */
template <class S>
__device__ static inline void run_tile(worker<S> &w, int steps, share mine, float (&sum)[S::passes][S::sums])
{
    int local = mine.half * 64 + threadIdx.x % 128 / 32 * 16 + f8_lane() / 4;
    bool middle = w.slots.get(w.slots.number).tile.n % 128 != 0;
    scale_words<S> words;
    float part[S::sums];
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        if (!S::per_expert && step % WINDOW == 0 && step > 0) {
            w.slots.give_back(w.slots.number++);
            w.slots.wait();
        }
        uint64_t a = F8_OPERAND_HIGH | (w.operand + w.stage.at * (S::stage_bytes / 16));
        uint64_t b = a + S::a_bytes / 16;
        a += mine.half * (64 * STEP / 16);
        f8_barrier_wait(w.full + 8 * w.stage.at, w.stage.phase);
#pragma unroll
        for (int pass = 0; pass < S::passes; pass++) {
            if (mine.passes >> pass & 1) multiply(part, a, b + pass * (S::columns * STEP / 16));
            if (pass == 0 && step == 0) finish<S>(w, w.slots.number - 1, sum);
            if (pass == 0 && !S::per_expert && step % 4 == 0)
                words.load(&w.slots.get(w.slots.number), local, step % WINDOW);
            f8_products_wait<0>();
            if (pass == S::passes - 1) release<S>(w.full + (uint32_t)sizeof w.slots.shared.full + 8 * w.stage.at);
            if (mine.passes >> pass & 1) promote<S>(sum[pass], part, words, pass, middle);
        }
        if (!S::per_expert) words.shift();
        w.stage.advance();
    }
}

template <class S>
__device__ static void consume(const problem &p, shared_memory<S> &shared, const uint8_t *ring, uint8_t *boxes,
                               const CUtensorMap *c_map)
{
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    /* Shuffles make descriptors and branches uniform to the compiler: no moves between the products. */
    uint32_t operand = __shfl_sync(~0u, f8_operand_low(f8_smem(ring)), 0);
    worker<S> w = { p, c_map, f8_smem(boxes) + group * S::boxes * BOX_BYTES, { shared, 0 }, operand,
                    f8_kept(shared.full), { 0, 0 } };
    float sum[S::passes][S::sums];
    for (;;) {
        const slot &head = w.slots.wait();
        if (head.steps == 0) break;
        run_tile<S>(w, steps_of(p), share_of<S>(p, head.tile, group), sum);
        w.slots.number++;
    }
    finish<S>(w, w.slots.number - 1, sum);
    if (threadIdx.x % 128 == 0) f8_store_wait_read<0>();
}

/* ---- Kernel and launch ---- */

template <class S> __device__ static void init_barriers(shared_memory<S> &shared)
{
    for (int i = 0; i < S::stages; i++) {
        f8_barrier_init(&shared.full[i], 1);
        f8_barrier_init(&shared.empty[i], 4 * GROUPS * S::cluster);
    }
    for (int i = 0; i < SLOTS; i++) {
        f8_barrier_init(&shared.ready[i], 32);
        f8_barrier_init(&shared.taken[i], 4 * GROUPS + 1);
    }
    f8_barrier_fence();
}

template <class S>
__global__ __launch_bounds__(THREADS, 1) static void gemm_fp8_rows_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                          const __grid_constant__ CUtensorMap b_map,
                                                                          const __grid_constant__ CUtensorMap c_map,
                                                                          const __grid_constant__ problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared_memory<S> shared;
    uint8_t *ring = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024, *boxes = ring + S::stages * S::stage_bytes;
    if (threadIdx.x < 32)
        f8_walk_count<typename S::walk>(p.groups, shared.cumulative);
    if (threadIdx.x == 32) init_barriers<S>(shared);
    __syncthreads();
    if (S::cluster > 1) f8_cluster_sync();
    if (threadIdx.x / 128 == GROUPS) {
        f8_registers_less<40>();
        if (threadIdx.x % 128 == 0) produce<S>(p, &a_map, &b_map, shared, ring);
        if (threadIdx.x % 128 / 32 == 1)
            bring<S>(p, shared, typename S::walk(p.groups, shared.cumulative));
    } else {
        f8_registers_more<232>();
        consume<S>(p, shared, ring, boxes, &c_map);
    }
    /* The other block may still copy into this one and arrive at its barriers. A warp counts once: whole again. */
    __syncwarp();
    if (S::cluster > 1) f8_cluster_sync();
}

static fp8flow_status operand_map(CUtensorMap *map, void *data, int64_t lines, int64_t length, int64_t stride, int box)
{
    f8_box_shape shape = { 2,
                           { (cuuint64_t)length, (cuuint64_t)lines },
                           { (cuuint64_t)stride },
                           { STEP, (cuuint32_t)box },
                           CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_DATA_TYPE_UINT8,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
    return f8_tensor_map("gemm", map, data, shape);
}

static fp8flow_status result_map(CUtensorMap *map, const fp8flow_tensor *c)
{
    f8_box_shape shape = { 2,
                           { (cuuint64_t)c->cols, (cuuint64_t)c->rows },
                           { (cuuint64_t)c->stride * 2 },
                           { BOX_COLS, 64 },
                           CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };
    *map = {};
    return c->dtype == FP8FLOW_BF16 ? f8_tensor_map("gemm", map, c->data, shape) : FP8FLOW_OK;
}

template <class S>
static fp8flow_status launch(fp8flow_context *c, const fp8flow_gemm_args *x, const f8_gemm_desc &d, const problem &p)
{
    CUtensorMap a_map, b_map, c_map;
    int blocks;
    F8_TRY(operand_map(&a_map, x->a->data, x->a->rows, d.inner, x->a->stride, S::a_box));
    F8_TRY(operand_map(&b_map, x->b->data, d.experts * d.outer, d.inner, x->b->stride, S::b_box));
    F8_TRY(result_map(&c_map, x->c));
    F8_TRY(f8_multiprocessors("gemm", &blocks));
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = { S::cluster, 1, 1 };
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks / S::cluster * S::cluster);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = S::bytes;
    config.stream = f8_stream(c);
    config.attrs = &cluster;
    config.numAttrs = S::cluster > 1;
    f8_allow_shared(gemm_fp8_rows_kernel<S>, S::bytes);
    cudaLaunchKernelEx(&config, gemm_fp8_rows_kernel<S>, a_map, b_map, c_map, p);
    return f8_launched("gemm");
}

static problem make_problem(const fp8flow_gemm_args *x, const f8_gemm_desc &d, const f8_gemm_config &config)
{
    bool fprop = x->product == FP8FLOW_FPROP, per_expert = x->a->scaling == FP8FLOW_TENSOR;
    int64_t inner_blocks = f8_ceil_div(d.inner, 128), outer_blocks = f8_ceil_div(d.outer, 128);
    problem p = {};
    p.groups = { x->groups ? x->groups->offset : NULL, x->groups ? x->groups->rows : NULL, (int32_t)d.experts,
                 (int32_t)x->a->rows, (int32_t)d.outer, config.band };
    p.inner = (int32_t)d.inner;
    if (per_expert) {
        p.a_factor = (const float *)x->a->scale, p.b_factor = (const float *)x->b->scale;
    } else {
        p.a_scale = (const uint8_t *)x->a->scale, p.b_scale = (const uint8_t *)x->b->scale;
    }
    p.b_scale_expert = (int32_t)(inner_blocks * outer_blocks);
    p.b_scale_block = fprop ? (int32_t)inner_blocks : 1;
    p.b_scale_step = fprop ? 1 : (int32_t)outer_blocks;
    p.c = x->c->data, p.c_stride = x->c->stride, p.c_dtype = x->c->dtype, p.write = x->write;
    return p;
}

extern "C" fp8flow_status f8_cuda_gemm_fp8_rows(fp8flow_context *c, const fp8flow_gemm_args *x,
                                                const f8_gemm_config *config)
{
    f8_gemm_desc d = f8_gemm_describe(x);
    problem p = make_problem(x, d, *config);
    if (d.scaling == FP8FLOW_TENSOR) return launch<shape<128, 2, 3, 2, true>>(c, x, d, p);
    switch (config->tile_n * 10 + config->cluster) {
    case 2561: return launch<shape<128, 2, 3, 1, false>>(c, x, d, p);
    case 1281: return launch<shape<128, 1, 5, 1, false>>(c, x, d, p);
    default: return launch<shape<128, 2, 3, 2, false>>(c, x, d, p);
    }
}
