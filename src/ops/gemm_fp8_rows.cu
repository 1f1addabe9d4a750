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

enum { STEP = 128, STAGES = 4, GROUPS = 2, THREADS = 128 * (GROUPS + 1), SLOTS = 4, WINDOW = 16, LINE = WINDOW + 4 };
enum { BRINGERS = 2 }; /* warps that bring scales */
enum { BLOCKS = 2 }; /* of 128 columns that a tile touches, one for one scale each */
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

/* Tiles of 128 rows x `columns`; a ring of STAGES. */
template <int columns_, bool per_expert_> struct shape {
    static const int columns = columns_;
    static const bool per_expert = per_expert_; /* scales: one per expert, else one per block */
    static const int sums = columns / 2, boxes = columns / BOX_COLS;
    static const int a_bytes = F8_WALK_ROWS * STEP, b_bytes = columns * STEP, stage_bytes = a_bytes + b_bytes;
    static const int bytes = 1024 + STAGES * stage_bytes + GROUPS * boxes * BOX_BYTES;
    typedef f8_walk<columns, 1> walk;
};

/* What the warpgroups need for up to WINDOW steps of a tile. */
struct slot {
    f8_walk_tile tile;
    int first, steps; /* no steps: the end of the walk */
    float factor[2];
    uint8_t b[2][LINE], a[F8_WALK_ROWS][LINE];
};

template <class S> struct shared_memory {
    uint64_t full[STAGES], empty[STAGES], ready[SLOTS], taken[SLOTS];
    int32_t cumulative[F8_WALK_EXPERTS + 1];
    f8_walk_tile current[BRINGERS];
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
__device__ static void bring_window(const problem &p, const f8_walk_tile &t, int first, slot *to, int part)
{
    const int ahead = 2, lanes = WINDOW / 4, lines = 32 / lanes, share = F8_WALK_ROWS / BRINGERS;
    int lane = f8_lane(), steps = steps_of(p), column = lane % lanes * 4;
    const uint32_t *words = (const uint32_t *)p.a_scale;
    int last = p.groups.capacity * steps / 4 - 1;
    int at = (t.row + part * share + lane / lanes) * steps + first + column;
#pragma unroll 1
    for (int line = part * share + lane / lanes; line < (part + 1) * share; line += lines * ahead) {
        four_bytes bytes[ahead];
#pragma unroll
        for (int i = 0; i < ahead; i++) bytes[i].load(words, at + i * lines * steps, last);
#pragma unroll
        for (int i = 0; i < ahead; i++, at += lines * steps)
            *(uint32_t *)&to->a[line + lines * i][column] = bytes[i].value(at);
    }
    if (part > 0 || lane >= WINDOW || first + lane >= steps) return;
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
        int column_block = min(t.n / 128 + block, (p.groups.columns + 127) / 128 - 1);
        to->b[block][lane] = __ldg(p.b_scale + t.expert * p.b_scale_expert + column_block * p.b_scale_block +
                                   (first + lane) * p.b_scale_step);
    }
}

template <class S>
__device__ static void bring(const problem &p, shared_memory<S> &shared, typename S::walk walk, int part)
{
    position<SLOTS> at = { 0, 1 };
    f8_walk_tile &t = shared.current[part];
    int steps = steps_of(p), window = S::per_expert ? steps : WINDOW;
    for (bool more = true; more;) {
        __syncwarp();
        more = walk.next(&t);
        __syncwarp();
        for (int first = 0; first < (more ? steps : 1); first += window) {
            slot *to = &shared.slots[at.at];
            f8_barrier_wait(&shared.taken[at.at], at.phase);
            if (part == 0 && f8_lane() == 0) {
                to->first = first;
                to->steps = more ? min(window, steps - first) : 0;
                if (more) to->tile = t;
                if (S::per_expert && more) to->factor[0] = p.a_factor[t.expert], to->factor[1] = p.b_factor[t.expert];
            }
            if (!S::per_expert && more) bring_window(p, t, first, to, part);
            f8_barrier_arrive(&shared.ready[at.at]);
            at.advance();
        }
    }
}

/* Boxes of 64 columns that a tile has within c. */
template <class S> __device__ static int boxes_in(const problem &p, const f8_walk_tile &t)
{
    return min(S::boxes, (p.groups.columns - t.n + BOX_COLS - 1) / BOX_COLS);
}

/* ---- The thread that copies ---- */

template <class S>
__device__ static void produce(const problem &p, const CUtensorMap *a_map, const CUtensorMap *b_map,
                               shared_memory<S> &shared, uint8_t *ring)
{
    uint32_t phases = ~0u; /* a bit per stage */
    position<SLOTS> at = { 0, 0 };
    f8_prefetch_map(a_map);
    f8_prefetch_map(b_map);
    for (;; at.advance()) {
        const slot &s = shared.slots[at.at];
        f8_barrier_wait(&shared.ready[at.at], at.phase);
        if (s.steps == 0) break;
        int b_line = s.tile.expert * p.groups.columns + s.tile.n, end = s.first + s.steps, boxes = boxes_in<S>(p, s.tile);
        for (int step = s.first; step < end; step++) {
            int stage = step % STAGES;
            f8_barrier_wait(&shared.empty[stage], phases >> stage & 1);
            phases ^= 1u << stage;
            uint8_t *a = ring + stage * S::stage_bytes;
            f8_barrier_expect(&shared.full[stage], S::a_bytes + boxes * BOX_COLS * STEP);
            f8_copy_tile(a, a_map, &shared.full[stage], step * STEP, s.tile.row);
            for (int i = 0; i < boxes; i++)
                f8_copy_tile(a + S::a_bytes + i * BOX_COLS * STEP, b_map, &shared.full[stage], step * STEP,
                             b_line + i * BOX_COLS);
        }
        f8_barrier_arrive(&shared.taken[at.at]);
    }
}

/* ---- The warpgroups that multiply ---- */

/* Scale bytes of four steps: of rows `local` and `local` + 8, and of the tile's two blocks of columns. */
struct scale_words {
    uint32_t a[2], b[BLOCKS];

    __device__ void load(const slot &from, int local, int step)
    {
        a[0] = *(const uint32_t *)&from.a[local][step];
        a[1] = *(const uint32_t *)&from.a[local + 8][step];
        b[0] = *(const uint32_t *)&from.b[0][step];
        b[1] = *(const uint32_t *)&from.b[1][step];
    }
};

/* Byte `index` of a word as a scale. */
__device__ static inline float scale_of(uint32_t word, int index)
{
    return __uint_as_float((index < 3 ? word << (23 - 8 * index) : word >> 1) & 0x7F800000);
}

/* Of 64 columns each: factors of the two rows. Columns 64 .. 127 of a tile that begins within a block are the next's. */
template <class S> struct factors {
    float at[S::boxes][2];

    __device__ void set(const scale_words &w, int index, bool within)
    {
        float low = scale_of(w.a[0], index), high = scale_of(w.a[1], index);
        float b[3] = { scale_of(w.b[0], index), scale_of(within ? w.b[1] : w.b[0], index), scale_of(w.b[1], index) };
#pragma unroll
        for (int i = 0; i < S::boxes; i++) at[i][0] = low * b[i], at[i][1] = high * b[i];
        /* Without a place of their own these products move, and sums go to local memory. */
#pragma unroll
        for (int i = 0; i < 2 * S::boxes; i++) f8_pin(at[i / 2][i % 2]);
    }

    __device__ void set(const slot &from)
    {
        float product = *(volatile const float *)&from.factor[0] * *(volatile const float *)&from.factor[1];
#pragma unroll
        for (int i = 0; i < 2 * S::boxes; i++) at[i / 2][i % 2] = product;
    }
};

/* part = this warpgroup's 64 rows of one stage; a, b: low words of the descriptors. */
template <int sums> __device__ static inline void multiply(float (&part)[sums], uint32_t a, uint32_t b)
{
#pragma unroll
    for (int i = 0; i < sums; i++) f8_pin(part[i]);
    f8_products_begin();
#pragma unroll
    for (int i = 0; i < STEP / 32; i++)
        f8_product_e4m3(part, F8_OPERAND_HIGH | (a + 2 * i), F8_OPERAND_HIGH | (b + 2 * i), i);
    f8_products_commit();
}

/* Sums first .. end - 1. */
template <class S, int columns, int first, int end>
__device__ static inline void promote(float (&sum)[S::sums], float (&part)[columns / 2], const factors<S> &factor)
{
#pragma unroll
    for (int i = first; i < end; i++) f8_pin(part[i]);
#pragma unroll
    for (int i = first; i < end; i++)
        sum[i] = fmaf(part[i], factor.at[i / 32][i / 2 % 2], sum[i]);
}

/* BF16 to the boxes in shared memory, lines swizzled as the copy engine reads them. */
template <class S>
__device__ static void stage_bf16(uint32_t boxes, const f8_walk_tile &t, int row, const float (&sum)[S::sums])
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
        int chunk = 2 * i % 8 + lane / 16;
        f8_store_matrices(line + i / 4 * BOX_BYTES + (chunk ^ lane % 8) * 16, pair[0], pair[1], pair[2], pair[3]);
    }
}

/* FP32 of one half of the columns to the same memory, line by line. */
template <class S, int half>
__device__ static void stage_f32(uint32_t boxes, const f8_walk_tile &t, int row, const float (&sum)[S::sums])
{
    int line = threadIdx.x % 128 / 32 * 16 + f8_lane() / 4;
#pragma unroll
    for (int i = 0; i < S::sums / 2; i += 2) {
        int high = i / 2 % 2, used = row + 8 * high < t.valid;
        uint32_t at = boxes + (line + 8 * high) * (S::columns * 2) + (i / 4 * 8 + f8_lane() % 4 * 2) * 4;
        float x = sum[half * S::sums / 2 + i], y = sum[half * S::sums / 2 + i + 1];
        f8_store_shared(at, used ? x : 0.0f, used ? y : 0.0f);
    }
}

/* Pieces of 16 bytes of 64 rows from shared memory to c: for rows that are not all the expert's. */
template <class S> __device__ static void copy_bf16(const problem &p, const f8_walk_tile &t, int first, uint32_t boxes)
{
    const int pieces = S::columns / 8;
#pragma unroll 1
    for (int i = threadIdx.x % 128; i < 64 * pieces; i += 128) {
        int line = i / pieces, piece = i % pieces, col = t.n + 8 * piece;
        if (first + line >= t.limit || col >= p.groups.columns) continue;
        uint4 x = f8_load_shared(boxes + piece / 8 * BOX_BYTES + line * (BOX_COLS * 2) + (piece % 8 ^ line % 8) * 16);
        *(uint4 *)((uint16_t *)p.c + (first + line) * p.c_stride + col) = x;
    }
}

template <class S>
__device__ static void copy_f32(const problem &p, const f8_walk_tile &t, int first, int half, uint32_t boxes)
{
    const int pieces = S::columns / 8;
    int limit = p.write == FP8FLOW_ACCUMULATE ? t.valid : t.limit;
#pragma unroll 1
    for (int i = threadIdx.x % 128; i < 64 * pieces; i += 128) {
        int line = i / pieces, col = t.n + half * (S::columns / 2) + i % pieces * 4;
        if (first + line >= limit || col >= p.groups.columns) continue;
        uint4 x = f8_load_shared(boxes + 16 * i);
        float4 sum = make_float4(__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z), __uint_as_float(x.w));
        float4 *c = (float4 *)((float *)p.c + (first + line) * p.c_stride + col);
        if (p.write == FP8FLOW_ACCUMULATE)
            sum = make_float4(c->x + sum.x, c->y + sum.y, c->z + sum.z, c->w + sum.w);
        *c = sum;
    }
}

/* The rows of this warpgroup. The copy engine writes BF16 rows that are all the expert's. */
template <class S>
__device__ static void write_rows(const problem &p, const f8_walk_tile &t, const CUtensorMap *c_map, uint32_t boxes,
                                  const float (&sum)[S::sums])
{
    int group = threadIdx.x / 128, name = 1 + group, first = t.row + 64 * group;
    int row = t.row + threadIdx.x / 32 * 16 + f8_lane() / 4;
    if (threadIdx.x % 128 == 0) f8_store_wait_read<0>();
    f8_named_barrier(name, 128);
    if (p.c_dtype == FP8FLOW_F32) {
        stage_f32<S, 0>(boxes, t, row, sum);
        f8_named_barrier(name, 128);
        copy_f32<S>(p, t, first, 0, boxes);
        f8_named_barrier(name, 128);
        stage_f32<S, 1>(boxes, t, row, sum);
        f8_named_barrier(name, 128);
        copy_f32<S>(p, t, first, 1, boxes);
        return;
    }
    stage_bf16<S>(boxes, t, row, sum);
    f8_async_fence();
    f8_named_barrier(name, 128);
    if (first + 64 > t.limit) {
        copy_bf16<S>(p, t, first, boxes);
    } else if (threadIdx.x % 128 == 0) {
        for (int i = 0; i < S::boxes && t.n + i * BOX_COLS < p.groups.columns; i++)
            f8_store_tile(c_map, boxes + i * BOX_BYTES, t.n + i * BOX_COLS, first);
        f8_store_commit();
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

/* What a warpgroup works with. */
template <class S> struct worker {
    const problem &p;
    const CUtensorMap *c_map;
    uint32_t boxes; /* of this warpgroup, in shared memory */
    slot_reader<S> slots;
    uint32_t a, b;         /* descriptors of the ring's first stage: this warpgroup's rows; columns */
    uint32_t full, phases; /* the ring's barriers, and the phase that each is waited for, a bit per stage */
    bool ready;            /* the stage asked for last is full */

    __device__ void ask(int stage) { ready = f8_barrier_try(full + 8 * stage, phases >> stage & 1); }

    __device__ void wait(int stage)
    {
        if (__builtin_expect(!ready, 0)) f8_barrier_wait(full + 8 * stage, phases >> stage & 1);
        phases ^= 1u << stage;
    }

    __device__ void release(int stage)
    {
        if (f8_lane() == 0) f8_barrier_arrive(full + (uint32_t)sizeof slots.shared.full + 8 * stage);
    }

    __device__ void next_window()
    {
        slots.give_back(slots.number++);
        slots.wait();
    }
};

/* The sums of the tile whose last slot is number `last`, if there is one, to c. New sums. */
template <class S> __device__ static inline void finish(worker<S> &w, int last, float (&sum)[S::sums])
{
    if (last >= 0) {
        const slot &s = w.slots.get(last);
        write_rows<S>(w.p, s.tile, w.c_map, w.boxes, sum);
        w.slots.give_back(last);
    }
#pragma unroll
    for (int i = 0; i < S::sums; i++) f8_set_zero(sum[i]);
}

/* What the steps of a tile share. */
template <class S> struct progress {
    int local;   /* this thread's first row in the tile */
    bool within; /* the tile begins within a block of columns */
    scale_words words;
    factors<S> factor;
};

/* The step in `stage`, whose products are on their way, before one in `next`: between the products of both lie the sums
 * and little else. To ask for a stage that is not the next would mean to wait for nothing. */
template <class S, int columns>
__device__ static inline void complete(worker<S> &w, progress<S> &t, int stage, int next,
                                       float (&part)[columns / 2], float (&sum)[S::sums])
{
    const int most = columns / 2 * 2 / 3;
    if (S::per_expert) t.factor.set(w.slots.get(w.slots.number));
    else t.factor.set(t.words, stage, t.within);
    f8_products_wait<0>();
    w.release(stage);
    promote<S, columns, 0, most>(sum, part, t.factor);
    w.ask(next);
    promote<S, columns, most, columns / 2>(sum, part, t.factor);
}

template <class S, int columns>
__device__ static inline void run_step(worker<S> &w, progress<S> &t, int stage, int next, int step, float (&sum)[S::sums])
{
    float part[columns / 2];
    w.wait(stage);
    multiply(part, w.a + stage * (S::stage_bytes / 16), w.b + stage * (S::stage_bytes / 16));
    if (!S::per_expert && stage == 0) {
        if (step % WINDOW == 0) w.next_window();
        t.words.load(w.slots.get(w.slots.number), t.local, step % WINDOW);
    }
    complete<S, columns>(w, t, stage, next, part, sum);
}

/* The steps of a tile, which begins at the ring's first stage and has up to `columns` columns of c. The tile before is
 * written while the tensor cores do this one's first products. */
template <class S, int columns>
__device__ static inline void run_tile(worker<S> &w, int steps, float (&sum)[S::sums])
{
    progress<S> t;
    t.local = threadIdx.x / 32 * 16 + f8_lane() / 4;
    t.within = w.slots.get(w.slots.number).tile.n % 128 != 0;
    w.ask(0);
    w.wait(0);
    float part[columns / 2];
    multiply(part, w.a, w.b);
    finish<S>(w, w.slots.number - 1, sum);
    if (!S::per_expert) t.words.load(w.slots.get(w.slots.number), t.local, 0);
    complete<S, columns>(w, t, 0, steps > 1, part, sum);
    int step = 1;
#pragma unroll 1
    for (; step + STAGES <= steps; step += STAGES) {
#pragma unroll
        for (int i = 1; i < STAGES; i++) run_step<S, columns>(w, t, i, (i + 1) % STAGES, step + i - 1, sum);
        run_step<S, columns>(w, t, 0, step + STAGES < steps, step + STAGES - 1, sum);
    }
#pragma unroll 1
    for (int stage = 1; step < steps; step++, stage++)
        run_step<S, columns>(w, t, stage, step + 1 < steps ? stage + 1 : 0, step, sum);
}

/* The same where all rows of this warpgroup are padding. */
template <class S> __device__ static inline void skip_tile(worker<S> &w, int steps, float (&sum)[S::sums])
{
    finish<S>(w, w.slots.number - 1, sum);
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        int stage = step % STAGES;
        if (!S::per_expert && step % WINDOW == 0 && step > 0) w.next_window();
        w.ask(stage);
        w.wait(stage);
        w.release(stage);
    }
}

template <class S>
__device__ static void consume(const problem &p, shared_memory<S> &shared, const uint8_t *ring, uint8_t *boxes,
                               const CUtensorMap *c_map)
{
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    /* Shuffles make descriptors and branches uniform to the compiler: no moves between the products. */
    uint32_t a = __shfl_sync(~0u, f8_operand_low(f8_smem(ring) + group * 64 * STEP), 0);
    uint32_t b = __shfl_sync(~0u, f8_operand_low(f8_smem(ring) + S::a_bytes), 0);
    worker<S> w = { p, c_map, f8_smem(boxes) + group * S::boxes * BOX_BYTES, { shared, 0 }, a, b,
                    f8_smem(shared.full), 0, false };
    float sum[S::sums];
    for (;;) {
        const slot &head = w.slots.wait();
        if (head.steps == 0) break;
        int live = __shfl_sync(~0u, head.tile.row + 64 * group < head.tile.valid, 0);
        int boxes_of_c = __shfl_sync(~0u, boxes_in<S>(p, head.tile), 0);
        if (!live) skip_tile<S>(w, steps_of(p), sum);
        else if (boxes_of_c >= S::boxes) run_tile<S, S::columns>(w, steps_of(p), sum);
        else if (boxes_of_c == 2) run_tile<S, 2 * BOX_COLS>(w, steps_of(p), sum);
        else run_tile<S, BOX_COLS>(w, steps_of(p), sum);
        w.slots.number++;
    }
    finish<S>(w, w.slots.number - 1, sum);
    if (threadIdx.x % 128 == 0) f8_store_wait_read<0>();
}

/* ---- Kernel and launch ---- */

template <class S> __device__ static void init_barriers(shared_memory<S> &shared)
{
    for (int i = 0; i < STAGES; i++) {
        f8_barrier_init(&shared.full[i], 1);
        f8_barrier_init(&shared.empty[i], 4 * GROUPS);
    }
    for (int i = 0; i < SLOTS; i++) {
        f8_barrier_init(&shared.ready[i], 32 * BRINGERS);
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
    uint8_t *ring = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024, *boxes = ring + STAGES * S::stage_bytes;
    if (threadIdx.x < 32)
        f8_walk_count<typename S::walk>(p.groups, shared.cumulative);
    if (threadIdx.x == 32) init_barriers<S>(shared);
    __syncthreads();
    if (threadIdx.x / 128 == GROUPS) {
        f8_registers_less<40>();
        if (threadIdx.x % 128 == 0) produce<S>(p, &a_map, &b_map, shared, ring);
        int part = threadIdx.x % 128 / 32 - 1;
        if (part >= 0 && part < BRINGERS) bring<S>(p, shared, typename S::walk(p.groups, shared.cumulative), part);
    } else {
        f8_registers_more<232>();
        consume<S>(p, shared, ring, boxes, &c_map);
    }
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
    F8_TRY(operand_map(&a_map, x->a->data, x->a->rows, d.inner, x->a->stride, F8_WALK_ROWS));
    F8_TRY(operand_map(&b_map, x->b->data, d.experts * d.outer, d.inner, x->b->stride, BOX_COLS));
    F8_TRY(result_map(&c_map, x->c));
    F8_TRY(f8_multiprocessors("gemm", &blocks));
    f8_allow_shared(gemm_fp8_rows_kernel<S>, S::bytes);
    gemm_fp8_rows_kernel<S><<<blocks, THREADS, S::bytes, f8_stream(c)>>>(a_map, b_map, c_map, p);
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
    if (d.scaling == FP8FLOW_TENSOR) return launch<shape<192, true>>(c, x, d, p);
    return launch<shape<192, false>>(c, x, d, p);
}
