/* gemm_fp8_rows.cu - FPROP and DGRAD of FP8 operands: c[P, outer] = a[P, inner] * b_g[outer, inner]^T, E4M3.
 *
 * Both products are one: b's lines run along the contraction, as rows (FPROP) or in column form (DGRAD). Persistent
 * blocks of 384 threads walk tiles of 128 x 192 (gemm_walk.cuh); the steps of a tile: gemm_fp8.cuh.
 *   warpgroups 0, 1  64 rows each: multiply, and leave a tile's BF16 in shared memory, which the copy engine writes
 *                    to c. One whose rows are all padding multiplies nothing.
 *   one thread       fills the ring of stages through the copy engine.
 *   two warps        bring coordinates and scale bytes ahead of the warpgroups, so that these never wait for global
 *                    memory and never divide.
 * L2 to shared memory per 128 x 192 x 128: 40 KB. Written per element of c: 2 bytes.
 */
#include "ops/gemm_cuda.h"
#include "ops/gemm_fp8.cuh"
#include "ops/launch.cuh"

enum { BRINGERS = 2 }; /* warps that bring scales */

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

typedef f8_walk<COLUMNS, 1> walk;

/* What the warpgroups need for up to WINDOW steps of a tile. */
struct slot {
    f8_walk_tile tile;
    int first, steps; /* no steps: the end of the walk */
    float factor[2];
    uint8_t b[2][LINE], a[F8_WALK_ROWS][LINE];
};

struct shared_memory {
    pipeline pipe;
    int32_t cumulative[F8_GEMM_MAX_EXPERTS + 1];
    f8_walk_tile current[BRINGERS];
    slot slots[SLOTS];
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
    for (int block = 0; block < 2; block++) {
        int column_block = min(t.n / 128 + block, (p.groups.columns + 127) / 128 - 1);
        to->b[block][lane] = __ldg(p.b_scale + t.expert * p.b_scale_expert + column_block * p.b_scale_block +
                                   (first + lane) * p.b_scale_step);
    }
}

template <bool per_expert>
__device__ static void bring(const problem &p, shared_memory &shared, walk walk, int part)
{
    f8_position<SLOTS> at = { 0, 1 };
    f8_walk_tile &t = shared.current[part];
    int steps = steps_of(p), window = per_expert ? steps : WINDOW;
    for (bool more = true; more;) {
        __syncwarp();
        more = walk.next(&t);
        __syncwarp();
        for (int first = 0; first < (more ? steps : 1); first += window) {
            slot *to = &shared.slots[at.at];
            f8_barrier_wait(&shared.pipe.taken[at.at], at.phase);
            if (part == 0 && f8_lane() == 0) {
                to->first = first;
                to->steps = more ? min(window, steps - first) : 0;
                if (more) to->tile = t;
                if (per_expert && more) to->factor[0] = p.a_factor[t.expert], to->factor[1] = p.b_factor[t.expert];
            }
            if (!per_expert && more) bring_window(p, t, first, to, part);
            f8_barrier_arrive(&shared.pipe.ready[at.at]);
            at.advance();
        }
    }
}

/* ---- The thread that copies ---- */

__device__ static void produce(const problem &p, const CUtensorMap *a_map, const CUtensorMap *b_map,
                               shared_memory &shared, uint8_t *ring)
{
    uint32_t phases = ~0u; /* a bit per stage */
    f8_position<SLOTS> at = { 0, 0 };
    f8_prefetch_map(a_map);
    f8_prefetch_map(b_map);
    for (;; at.advance()) {
        const slot &s = shared.slots[at.at];
        f8_barrier_wait(&shared.pipe.ready[at.at], at.phase);
        if (s.steps == 0) break;
        int b_line = s.tile.expert * p.groups.columns + s.tile.n, end = s.first + s.steps;
        for (int step = s.first; step < end; step++) {
            int stage = step % STAGES;
            f8_barrier_wait(&shared.pipe.empty[stage], phases >> stage & 1);
            phases ^= 1u << stage;
            uint8_t *a = ring + stage * STAGE_BYTES;
            f8_barrier_expect(&shared.pipe.full[stage], STAGE_BYTES);
            f8_copy_tile(a, a_map, &shared.pipe.full[stage], step * STEP, s.tile.row);
            f8_copy_tile(a + A_BYTES, b_map, &shared.pipe.full[stage], step * STEP, b_line);
        }
        f8_barrier_arrive(&shared.pipe.taken[at.at]);
    }
}

/* ---- The warpgroups that multiply ---- */

/* BF16 to the boxes in shared memory, lines swizzled as the copy engine reads them. */
__device__ static void stage_bf16(uint32_t boxes, const f8_walk_tile &t, int row, const float (&sum)[SUMS])
{
    int lane = f8_lane(), warp = threadIdx.x % 128 / 32;
    uint32_t line = boxes + (warp * 16 + lane % 16) * (BOX_COLS * 2);
    uint32_t mask_low = row < t.valid ? ~0u : 0, mask_high = row + 8 < t.valid ? ~0u : 0;
#pragma unroll
    for (int i = 0; i < COLUMNS / 16; i++) {
        uint32_t pair[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            pair[j] = f8_bf16_pair_fast(sum[8 * i + 2 * j], sum[8 * i + 2 * j + 1]) & (j % 2 ? mask_high : mask_low);
        int chunk = 2 * i % 8 + lane / 16;
        f8_store_matrices(line + i / 4 * BOX_BYTES + (chunk ^ lane % 8) * 16, pair[0], pair[1], pair[2], pair[3]);
    }
}

/* FP32 of one half of the columns to the same memory, line by line. */
template <int half>
__device__ static void stage_f32(uint32_t boxes, const f8_walk_tile &t, int row, const float (&sum)[SUMS])
{
    int line = threadIdx.x % 128 / 32 * 16 + f8_lane() / 4;
#pragma unroll
    for (int i = 0; i < SUMS / 2; i += 2) {
        int high = i / 2 % 2, used = row + 8 * high < t.valid;
        uint32_t at = boxes + (line + 8 * high) * (COLUMNS * 2) + (i / 4 * 8 + f8_lane() % 4 * 2) * 4;
        float x = sum[half * SUMS / 2 + i], y = sum[half * SUMS / 2 + i + 1];
        f8_store_shared(at, used ? x : 0.0f, used ? y : 0.0f);
    }
}

/* Pieces of 16 bytes of 64 rows from shared memory to c: for rows that are not all the expert's. */
__device__ static void copy_bf16(const problem &p, const f8_walk_tile &t, int first, uint32_t boxes)
{
    const int pieces = COLUMNS / 8;
#pragma unroll 1
    for (int i = threadIdx.x % 128; i < 64 * pieces; i += 128) {
        int line = i / pieces, piece = i % pieces, col = t.n + 8 * piece;
        if (first + line >= t.limit || col >= p.groups.columns) continue;
        uint4 x = f8_load_shared(boxes + piece / 8 * BOX_BYTES + line * (BOX_COLS * 2) + (piece % 8 ^ line % 8) * 16);
        *(uint4 *)((uint16_t *)p.c + (first + line) * p.c_stride + col) = x;
    }
}

__device__ static void copy_f32(const problem &p, const f8_walk_tile &t, int first, int half, uint32_t boxes)
{
    const int pieces = COLUMNS / 8;
    int limit = p.write == FP8FLOW_ACCUMULATE ? t.valid : t.limit;
#pragma unroll 1
    for (int i = threadIdx.x % 128; i < 64 * pieces; i += 128) {
        int line = i / pieces, col = t.n + half * (COLUMNS / 2) + i % pieces * 4;
        if (first + line >= limit || col >= p.groups.columns) continue;
        uint4 x = f8_load_shared(boxes + 16 * i);
        float4 sum = make_float4(__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z),
                                 __uint_as_float(x.w));
        float4 *c = (float4 *)((float *)p.c + (first + line) * p.c_stride + col);
        if (p.write == FP8FLOW_ACCUMULATE)
            sum = make_float4(c->x + sum.x, c->y + sum.y, c->z + sum.z, c->w + sum.w);
        *c = sum;
    }
}

/* The rows of this warpgroup. The copy engine writes BF16 rows that are all the expert's. */
__device__ static void write_rows(const problem &p, const f8_walk_tile &t, const CUtensorMap *c_map, uint32_t boxes,
                                  const float (&sum)[SUMS])
{
    int group = threadIdx.x / 128, name = 1 + group, first = t.row + 64 * group;
    int row = t.row + threadIdx.x / 32 * 16 + f8_lane() / 4;
    if (threadIdx.x % 128 == 0) f8_store_wait_read<0>();
    f8_named_barrier(name, 128);
    if (p.c_dtype == FP8FLOW_F32) {
        stage_f32<0>(boxes, t, row, sum);
        f8_named_barrier(name, 128);
        copy_f32(p, t, first, 0, boxes);
        f8_named_barrier(name, 128);
        stage_f32<1>(boxes, t, row, sum);
        f8_named_barrier(name, 128);
        copy_f32(p, t, first, 1, boxes);
        return;
    }
    stage_bf16(boxes, t, row, sum);
    f8_async_fence();
    f8_named_barrier(name, 128);
    if (first + 64 > t.limit) {
        copy_bf16(p, t, first, boxes);
    } else if (threadIdx.x % 128 == 0) {
        for (int i = 0; i < BOXES && t.n + i * BOX_COLS < p.groups.columns; i++)
            f8_store_tile(c_map, boxes + i * BOX_BYTES, t.n + i * BOX_COLS, first);
        f8_store_commit();
    }
}

/* What a warpgroup works on: gemm_fp8.cuh. */
template <bool per_expert> struct job {
    static const bool may_be_partial = false;
    const problem &p;
    const CUtensorMap *c_map;
    uint32_t boxes; /* of this warpgroup, in shared memory */
    ring_reader ring;
    slot_reader<slot> slots;
    int local;   /* this thread's first row in a tile */
    bool within; /* the tile begins within a block of columns */

    __device__ void skip_to(int step)
    {
        if (!per_expert && step % WINDOW == 0) slots.next_window();
    }

    __device__ void load(scale_words &words, int step)
    {
        if (per_expert) return;
        if (step > 0) skip_to(step);
        const slot &from = slots.get(slots.number);
        words.a[0] = *(const uint32_t *)&from.a[local][step % WINDOW];
        words.a[1] = *(const uint32_t *)&from.a[local + 8][step % WINDOW];
        words.b[0] = *(const uint32_t *)&from.b[0][step % WINDOW];
        words.b[1] = *(const uint32_t *)&from.b[1][step % WINDOW];
    }

    __device__ void set(factors &factor, const scale_words &words, int index)
    {
        if (per_expert) {
            const slot &from = slots.get(slots.number);
            float product = *(volatile const float *)&from.factor[0] * *(volatile const float *)&from.factor[1];
#pragma unroll
            for (int i = 0; i < 2 * BOXES; i++) factor.at[i / 2][i % 2] = product;
        } else {
            factor.set(words, index, within);
        }
    }

    __device__ void prepare(int) {}

    __device__ void finish(float (&sum)[SUMS])
    {
        if (slots.number > 0) {
            write_rows(p, slots.get(slots.number - 1).tile, c_map, boxes, sum);
            slots.give_back(slots.number - 1);
        }
        clear(sum);
    }
};

template <bool per_expert>
__device__ static void consume(const problem &p, shared_memory &shared, const uint8_t *ring, uint8_t *boxes,
                               const CUtensorMap *c_map)
{
    int group = __shfl_sync(F8_ALL_LANES, threadIdx.x / 128, 0);
    job<per_expert> work = { p, c_map, f8_smem(boxes) + group * BOXES * BOX_BYTES, read_ring(ring, shared.pipe, group),
                             { shared.pipe, shared.slots, 0 }, (int)threadIdx.x / 32 * 16 + f8_lane() / 4, false };
    float sum[SUMS];
    for (;;) {
        const slot &head = work.slots.wait();
        if (head.steps == 0) break;
        int live = __shfl_sync(F8_ALL_LANES, head.tile.row + 64 * group < head.tile.valid, 0);
        work.within = head.tile.n % 128 != 0;
        if (live) run_tile(work, steps_of(p), false, sum);
        else skip_tile(work, steps_of(p), sum);
        work.slots.number++;
    }
    work.finish(sum);
    if (threadIdx.x % 128 == 0) f8_store_wait_read<0>();
}

/* ---- Kernel and launch ---- */

template <bool per_expert>
__global__ __launch_bounds__(THREADS, 1) static void gemm_fp8_rows_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                          const __grid_constant__ CUtensorMap b_map,
                                                                          const __grid_constant__ CUtensorMap c_map,
                                                                          const __grid_constant__ problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared_memory shared;
    uint8_t *ring = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024, *boxes = ring + STAGES * STAGE_BYTES;
    if (threadIdx.x < 32)
        f8_walk_count<walk>(p.groups, shared.cumulative);
    if (threadIdx.x == 32) shared.pipe.init(32 * BRINGERS);
    __syncthreads();
    if (threadIdx.x / 128 == GROUPS) {
        f8_registers_less<PRODUCER_REGISTERS>();
        if (threadIdx.x % 128 == 0) produce(p, &a_map, &b_map, shared, ring);
        int part = threadIdx.x % 128 / 32 - 1;
        if (part >= 0 && part < BRINGERS) bring<per_expert>(p, shared, walk(p.groups, shared.cumulative), part);
    } else {
        f8_registers_more<CONSUMER_REGISTERS>();
        consume<per_expert>(p, shared, ring, boxes, &c_map);
    }
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

template <bool per_expert>
static fp8flow_status launch(fp8flow_context *c, const fp8flow_gemm_args *x, const f8_gemm_desc &d, const problem &p)
{
    CUtensorMap a_map, b_map, c_map;
    int blocks;
    F8_TRY(operand_map(&a_map, x->a->data, x->a->rows, d.inner, x->a->stride, F8_WALK_ROWS));
    F8_TRY(operand_map(&b_map, x->b->data, d.experts * d.outer, d.inner, x->b->stride, COLUMNS));
    F8_TRY(result_map(&c_map, x->c));
    F8_TRY(f8_multiprocessors("gemm", &blocks));
    f8_allow_shared(gemm_fp8_rows_kernel<per_expert>, SHARED_BYTES);
    gemm_fp8_rows_kernel<per_expert><<<blocks, THREADS, SHARED_BYTES, f8_stream(c)>>>(a_map, b_map, c_map, p);
    return f8_launched("gemm");
}

static problem make_problem(const fp8flow_gemm_args *x, const f8_gemm_desc &d, const f8_gemm_config &config)
{
    bool fprop = x->product == FP8FLOW_FPROP, per_expert = d.scaling == FP8FLOW_TENSOR;
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
                                                const f8_gemm_desc *desc, const f8_gemm_config *config)
{
    problem p = make_problem(x, *desc, *config);
    if (desc->scaling == FP8FLOW_TENSOR) return launch<true>(c, x, *desc, p);
    return launch<false>(c, x, *desc, p);
}
