/* gemm_bf16.cu - the three grouped products of BF16 operands on the tensor cores, FP32 accumulators to the end.
 *
 * Persistent blocks of 384 threads walk tiles of c, 128 lines x 256 columns (gemm_walk.cuh; the lines of WGRAD are
 * those of the gradient), alone or in clusters of two that share operands:
 *   one thread       fills the ring of stages of 64 steps of the contraction through the copy engine, in boxes of
 *                    64 x 64 numbers, and puts what the tile is beside its first stage.
 *   warpgroups 0, 1  64 lines each: four products of 16 steps per stage, one stage in flight behind the one that is
 *                    issued; at the end each warp turns its sums, 128 bytes of 16 lines at a time, into 16-byte pieces
 *                    of lines of c in shared memory of its own.
 * Operands whose contraction runs along rows (b of DGRAD, both of WGRAD) come as they lie: the tensor cores transpose.
 * A warpgroup whose rows are all padding, or whose columns lie outside c, multiplies nothing; where 128 columns or
 * fewer are left, a product has 128. L2 to shared memory per 128 x 256 x 64: 32 KB in a cluster, 48 alone. Written per
 * element of c: 2 or 4 bytes; ACCUMULATE reads as many, all of a warp's BF16 at once behind the products. Where these
 * take long enough, more stages than the ring has, the thread that copies fetches a tile's BF16 to L2 before them.
 */
#include "ops/gemm_cuda.h"
#include "ops/gemm_walk.cuh"
#include "ops/hopper_products.cuh"
#include "ops/launch.cuh"
#include "ops/ring.cuh"
#include "ops/tensor_map.cuh"
#include "ops/turn.cuh"
#include "ops/warp.cuh"

enum { STEP = 64, BOX = 64, BOX_BYTES = BOX * STEP * 2, GROUPS = 2, THREADS = 128 * (GROUPS + 1) };
enum { TILE_N = 256, A_BOXES = F8_WALK_ROWS / BOX, B_BOXES = TILE_N / BOX, A_BYTES = A_BOXES * BOX_BYTES };
enum { STAGE_BYTES = (A_BOXES + B_BOXES) * BOX_BYTES, LINE_BYTES = 128 };
enum { CONSUMER_REGISTERS = 232, PRODUCER_REGISTERS = 40 };

struct problem {
    f8_walk_lines groups;
    int32_t inner; /* contraction of FPROP, DGRAD */
    void *c;
    int64_t c_stride;
    fp8flow_dtype c_dtype;
    fp8flow_write write;

    __device__ __host__ bool adds_bf16() const { return c_dtype == FP8FLOW_BF16 && write == FP8FLOW_ACCUMULATE; }
};

template <fp8flow_product product_, int stages_, int cluster_> struct shape {
    static const fp8flow_product product = product_;
    static const int stages = stages_, cluster = cluster_;
    static const bool gradient = product == FP8FLOW_WGRAD;
    static const int a_outer = gradient, b_outer = product != FP8FLOW_FPROP; /* MN-major operands */
    static const int bytes = 1024 + stages * STAGE_BYTES + 4 * GROUPS * F8_TURN_BYTES;
    typedef f8_walk<TILE_N, cluster, f8_walk_lines> walk;
};

/* What the warpgroups know of a tile. */
struct tile_work {
    int row, valid, limit, n; /* of f8_walk_tile; rows are lines of c */
    int steps, rest;          /* stages; steps of the contraction in the last */
    int last;                 /* no tile: the end */
};

template <class S> struct shared_memory {
    uint64_t full[S::stages], empty[S::stages];
    tile_work work[S::stages];
    int32_t cumulative[F8_GEMM_MAX_EXPERTS + 1];
};

/* ---- The thread that copies ---- */

/* Boxes of one operand: lines or columns `outer` .. of the expert at step `inner` of the contraction, `count` boxes. */
template <int is_outer, int count>
__device__ static inline void copy_operand(uint8_t *to, const CUtensorMap *map, uint64_t *full, int outer, int inner,
                                           int expert)
{
#pragma unroll
    for (int i = 0; i < count; i++) {
        int at = outer + i * BOX;
        f8_copy_box(to + i * BOX_BYTES, map, full, is_outer ? at : inner, is_outer ? inner : at, expert);
    }
}

/* This block's half of the boxes, to both blocks. */
template <int is_outer, int count>
__device__ static inline void share_operand(uint8_t *to, const CUtensorMap *map, uint64_t *full, int outer, int inner,
                                            int expert, int rank)
{
#pragma unroll
    for (int i = 0; i < count / 2; i++) {
        int box = rank * (count / 2) + i, at = outer + box * BOX;
        f8_share_box(to + box * BOX_BYTES, map, full, is_outer ? at : inner, is_outer ? inner : at, expert, 3);
    }
}

/* The first step of the contraction of a tile, and how many. Both blocks of a cluster must come to the same number. */
template <class S> __device__ static int2 extent(const problem &p, const f8_walk_tile &t, int rank)
{
    if (S::gradient) return make_int2(p.groups.rows.begin(t.expert), p.groups.rows.used(t.expert));
    int first_row = t.share == F8_SHARE_B ? t.row - rank * F8_WALK_ROWS : t.row;
    return make_int2(0, first_row < t.valid ? p.inner : 0);
}

/* What a tile's products are added to, to L2. */
__device__ static inline void fetch_c(const problem &p, const CUtensorMap *c_map, const f8_walk_tile &t)
{
#pragma unroll
    for (int i = 0; i < TILE_N / BOX; i++)
        if (t.n + i * BOX < p.groups.columns) f8_prefetch_box(c_map, t.n + i * BOX, t.row, 0);
}

template <class S>
__device__ static void produce(const problem &p, const CUtensorMap *a_map, const CUtensorMap *b_map,
                               const CUtensorMap *c_map, shared_memory<S> &shared, uint8_t *ring,
                               typename S::walk walk)
{
    f8_position<S::stages> stage = { 0, 1 };
    f8_walk_tile t;
    int rank = S::cluster > 1 ? (int)f8_cluster_rank() : 0;
    f8_prefetch_map(a_map);
    f8_prefetch_map(b_map);
    while (walk.next(&t)) {
        int2 inner = extent<S>(p, t, rank);
        int steps = (inner.y + STEP - 1) / STEP, a_expert = 0, b_expert = S::gradient ? 0 : t.expert;
        int a_first = S::gradient ? t.row - p.groups.begin(t.expert) : t.row;
        /* With fewer steps the ring is several tiles ahead: too much for L2. */
        if (!S::gradient && p.adds_bf16() && steps > S::stages) fetch_c(p, c_map, t);
        for (int step = 0; step == 0 || step < steps; step++) {
            uint64_t *full = &shared.full[stage.at];
            uint8_t *a = ring + stage.at * STAGE_BYTES, *b = a + A_BYTES;
            int k = inner.x + step * STEP;
            f8_barrier_wait(&shared.empty[stage.at], stage.phase);
            if (step == 0)
                shared.work[stage.at] = { t.row, t.valid, t.limit, t.n, steps, inner.y - (steps - 1) * STEP, 0 };
            if (steps == 0) {
                f8_barrier_arrive(full);
            } else {
                f8_barrier_expect(full, STAGE_BYTES);
                if (t.share == F8_SHARE_A)
                    share_operand<S::a_outer, A_BOXES>(a, a_map, full, a_first, k, a_expert, rank);
                else
                    copy_operand<S::a_outer, A_BOXES>(a, a_map, full, a_first, k, a_expert);
                if (t.share == F8_SHARE_B)
                    share_operand<S::b_outer, B_BOXES>(b, b_map, full, t.n, k, b_expert, rank);
                else
                    copy_operand<S::b_outer, B_BOXES>(b, b_map, full, t.n, k, b_expert);
            }
            stage.advance();
        }
    }
    f8_barrier_wait(&shared.empty[stage.at], stage.phase);
    shared.work[stage.at].last = 1;
    f8_barrier_arrive(&shared.full[stage.at]);
}

/* ---- The warpgroups that multiply ---- */

/* WGRAD: steps valid .. STEP-1 of a stage become 0: they are rows of others and may hold anything, NaN included. They
 * are the last lines of every box. Each warpgroup clears what it will read, and both write the same bytes. */
__device__ static void clear_tail(uint8_t *stage, int valid)
{
    int group = threadIdx.x / 128, thread = threadIdx.x % 128;
#pragma unroll 1
    for (int box = 0; box < A_BOXES + B_BOXES; box++)
#pragma unroll 1
        for (int at = valid * LINE_BYTES + thread * 16; at < BOX_BYTES; at += 128 * 16)
            *(uint4 *)(stage + box * BOX_BYTES + at) = make_uint4(0, 0, 0, 0);
    f8_async_fence();
    f8_named_barrier(1 + group, 128);
}

/* A stage that is full; only its first `valid` steps count. */
template <class S>
__device__ static inline void wait_stage(uint32_t full, uint8_t *ring, const f8_position<S::stages> &stage, int valid)
{
    f8_barrier_wait(full + 8 * stage.at, stage.phase);
    if (S::gradient && valid < STEP) clear_tail(ring + stage.at * STAGE_BYTES, valid);
}

/* What a warpgroup multiplies of a tile. */
enum width { NOTHING, HALF, WHOLE };

/* sum += 64 lines x 256 (128: the first half of the sums) columns of one stage. */
template <class S, width columns>
__device__ static inline void multiply(float (&sum)[128], uint32_t a, uint32_t b, int stage)
{
    a += stage * (STAGE_BYTES / 16), b += stage * (STAGE_BYTES / 16);
    const int a_step = (S::a_outer ? 16 * LINE_BYTES : 32) / 16, b_step = (S::b_outer ? 16 * LINE_BYTES : 32) / 16;
    f8_products_begin();
#pragma unroll
    for (int i = 0; i < STEP / 16; i++) {
        uint64_t a_low = F8_OPERAND_HIGH | (a + i * a_step), b_low = F8_OPERAND_HIGH | (b + i * b_step);
        if (columns == WHOLE) f8_product_bf16<S::a_outer, S::b_outer>(sum, a_low, b_low);
        if (columns == HALF) f8_product_bf16_half<S::a_outer, S::b_outer>(sum, a_low, b_low);
    }
    f8_products_commit();
}

/* The stages of a tile. A stage is given back when the products of the next have been issued and its own are done. */
template <class S, width columns>
__device__ static inline void run_tile(shared_memory<S> &shared, uint8_t *ring, uint32_t a, uint32_t b,
                                       const tile_work &t, f8_position<S::stages> &stage, float (&sum)[128])
{
    uint32_t full = f8_kept(shared.full), empty = full + (uint32_t)sizeof shared.full, before = empty + 8 * stage.at;
    wait_stage<S>(full, ring, stage, t.steps == 1 ? t.rest : STEP);
    if (columns != NOTHING) multiply<S, columns>(sum, a, b, stage.at);
    stage.advance();
#pragma unroll 1
    for (int step = 1; step < t.steps; step++) {
        wait_stage<S>(full, ring, stage, step == t.steps - 1 ? t.rest : STEP);
        if (columns != NOTHING) {
            multiply<S, columns>(sum, a, b, stage.at);
            f8_products_wait<1>();
        }
        f8_release<S::cluster>(before);
        before = empty + 8 * stage.at;
        stage.advance();
    }
    if (columns != NOTHING) f8_products_wait<0>();
#pragma unroll
    for (int i = 0; i < 128; i++) f8_pin(sum[i]);
    f8_release<S::cluster>(before);
}

/* ---- Sums to c, a warp for itself: 16 lines from `row` on ---- */

/* The pieces of lines of c that a lane writes: lane l writes piece l % 8 of lines 4 i + l / 8. */
struct c_lines {
    uint8_t *from;            /* of line 0 */
    int64_t stride;           /* bytes from a line to the fourth after it */
    int used, lines, columns; /* how many there are from the lane's on: lines in use, the expert's, columns of c */

    __device__ c_lines(const problem &p, const tile_work &t, int row, int bytes)
    {
        int line = row + f8_lane() / 8, column = t.n + f8_lane() % 8 * (16 / bytes);
        from = (uint8_t *)p.c + ((int64_t)line * p.c_stride + column) * bytes;
        stride = 4 * p.c_stride * bytes;
        used = t.valid - line, lines = t.limit - line, columns = p.groups.columns - column;
    }
};

/* Numbers of c as 16-byte pieces, 64 columns of 16 lines per part. */
struct c_pieces {
    uint4 at[TILE_N / 64][4];

    __device__ void load(const c_lines &c)
    {
#pragma unroll
        for (int part = 0; part < TILE_N / 64; part++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                at[part][i] = make_uint4(0, 0, 0, 0);
                if (4 * i < c.lines && 64 * part < c.columns)
                    at[part][i] = f8_load16(c.from + i * c.stride + part * LINE_BYTES);
            }
    }
};

/* BF16, 64 columns at a time. What is added to goes the way of the sums backwards: pieces, shared memory, registers. */
template <fp8flow_write write>
__device__ static inline void write_bf16(const problem &p, const tile_work &t, int row, uint8_t *turn,
                                         const float (&sum)[128])
{
    const bool adds = write == FP8FLOW_ACCUMULATE;
    int lane = f8_lane();
    c_lines c(p, t, row, 2);
    if (adds) c.lines = min(c.lines, c.used);
    c_pieces old;
    if (adds) old.load(c);
#pragma unroll
    for (int part = 0; part < TILE_N / 64; part++) {
        if (adds) __syncwarp(); /* the part before has been read */
#pragma unroll
        for (int i = 0; i < 4 && adds; i++) *f8_turn_piece(turn, 4 * i + lane / 8, lane % 8) = old.at[part][i];
        f8_turn_lines<write>(turn, sum, part);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 x = *f8_turn_piece(turn, 4 * i + lane / 8, lane % 8);
            if (!adds && 4 * i >= c.used) x = make_uint4(0, 0, 0, 0);
            if (4 * i < c.lines && 64 * part < c.columns) f8_store16(c.from + i * c.stride + part * LINE_BYTES, x);
        }
    }
}

/* FP32, 32 columns at a time; what is added to is loaded four parts ahead. */
template <fp8flow_write write>
__device__ static inline void write_f32(const problem &p, const tile_work &t, int row, uint8_t *turn,
                                        const float (&sum)[128])
{
    const int parts = TILE_N / 32, ahead = 4;
    int lane = f8_lane(), line = lane / 4;
    c_lines c(p, t, row, 4);
    if (write == FP8FLOW_ACCUMULATE) c.lines = min(c.lines, c.used);
    uint8_t *to = turn + line * LINE_BYTES + lane % 2 * 8;
    float4 old[ahead][4];
#pragma unroll
    for (int part = -ahead; part < parts; part++) {
        if (part >= 0) {
            __syncwarp();
#pragma unroll
            for (int i = 0; i < 8; i++) {
                uint8_t *piece = to + ((2 * (i / 2) + lane % 4 / 2) ^ line % 4 * 2) * 16 + i % 2 * 8 * LINE_BYTES;
                int at = 16 * part + 2 * i;
                *(float2 *)piece = make_float2(sum[at], sum[at + 1]);
            }
            __syncwarp();
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int next = part + ahead, slot = next % ahead;
            float4 x = make_float4(0, 0, 0, 0);
            if (part >= 0) {
                x = *(const float4 *)(turn + (4 * i + lane / 8) * LINE_BYTES + (lane % 8 ^ lane / 8 * 2) * 16);
                if (write == FP8FLOW_ACCUMULATE)
                    x = make_float4(old[slot][i].x + x.x, old[slot][i].y + x.y, old[slot][i].z + x.z,
                                    old[slot][i].w + x.w);
                else if (4 * i >= c.used)
                    x = make_float4(0, 0, 0, 0);
            }
            const uint8_t *from = c.from + i * c.stride + next * LINE_BYTES;
            if (write == FP8FLOW_ACCUMULATE && next < parts) {
                old[slot][i] = make_float4(0, 0, 0, 0);
                if (4 * i < c.lines && 32 * next < c.columns) old[slot][i] = __ldcs((const float4 *)from);
            }
            if (part >= 0 && 4 * i < c.lines && 32 * part < c.columns)
                __stcs((float4 *)(c.from + i * c.stride + part * LINE_BYTES), x);
        }
    }
}

template <class S>
__device__ static void consume(const problem &p, shared_memory<S> &shared, uint8_t *ring, uint8_t *turns)
{
    /* Shuffles make descriptors and branches uniform to the compiler: no moves between the products. */
    int group = __shfl_sync(F8_ALL_LANES, threadIdx.x / 128, 0), warp = threadIdx.x / 32;
    uint32_t address = __shfl_sync(F8_ALL_LANES, f8_smem(ring), 0);
    uint32_t a = address + group * BOX_BYTES, b = address + A_BYTES;
    a = S::a_outer ? f8_operand_low_outer(a, BOX_BYTES) : f8_operand_low(a);
    b = S::b_outer ? f8_operand_low_outer(b, BOX_BYTES) : f8_operand_low(b);
    uint8_t *turn = turns + warp * F8_TURN_BYTES;
    f8_position<S::stages> stage = { 0, 0 };
    for (;;) {
        f8_barrier_wait(&shared.full[stage.at], stage.phase);
        tile_work t = shared.work[stage.at];
        if (t.last) break;
        float sum[128];
#pragma unroll
        for (int i = 0; i < 128; i++) f8_set_zero(sum[i]);
        int columns = p.groups.columns - t.n, row = t.row + group * 64;
        t.steps = __shfl_sync(F8_ALL_LANES, t.steps, 0);
        columns = row >= t.valid || columns <= 0 ? NOTHING : columns <= TILE_N / 2 ? HALF : WHOLE;
        columns = __shfl_sync(F8_ALL_LANES, columns, 0);
        if (t.steps == 0) {
            f8_release<S::cluster>(f8_smem(&shared.empty[stage.at]));
            stage.advance();
        } else if (columns == WHOLE) {
            run_tile<S, WHOLE>(shared, ring, a, b, t, stage, sum);
        } else if (columns == HALF) {
            run_tile<S, HALF>(shared, ring, a, b, t, stage, sum);
        } else {
            run_tile<S, NOTHING>(shared, ring, a, b, t, stage, sum);
        }
        row += warp % 4 * 16;
        if (!S::gradient && p.adds_bf16())
            write_bf16<FP8FLOW_ACCUMULATE>(p, t, row, turn, sum);
        else if (p.c_dtype == FP8FLOW_BF16)
            write_bf16<FP8FLOW_OVERWRITE>(p, t, row, turn, sum);
        else if (p.write == FP8FLOW_ACCUMULATE)
            write_f32<FP8FLOW_ACCUMULATE>(p, t, row, turn, sum);
        else
            write_f32<FP8FLOW_OVERWRITE>(p, t, row, turn, sum);
    }
}

/* ---- Kernel and launch ---- */

template <class S>
__global__ __launch_bounds__(THREADS, 1) static void gemm_bf16_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                      const __grid_constant__ CUtensorMap b_map,
                                                                      const __grid_constant__ CUtensorMap c_map,
                                                                      const __grid_constant__ problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared_memory<S> shared;
    uint8_t *ring = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    if (threadIdx.x < 32)
        f8_walk_count<typename S::walk>(p.groups, shared.cumulative);
    if (threadIdx.x == 32) {
        f8_ring_init(shared.full, shared.empty, 1, 4 * GROUPS * S::cluster);
        f8_barrier_fence();
    }
    __syncthreads();
    if (S::cluster > 1) f8_cluster_sync();
    if (threadIdx.x / 128 == GROUPS) {
        f8_registers_less<PRODUCER_REGISTERS>();
        typename S::walk walk(p.groups, shared.cumulative);
        if (threadIdx.x % 128 == 0) produce<S>(p, &a_map, &b_map, &c_map, shared, ring, walk);
    } else {
        f8_registers_more<CONSUMER_REGISTERS>();
        consume<S>(p, shared, ring, ring + S::stages * STAGE_BYTES);
    }
    /* The other block may still copy into this one and arrive at its barriers. A warp counts once: whole again. */
    __syncwarp();
    if (S::cluster > 1) f8_cluster_sync();
}

static problem make_problem(const fp8flow_gemm_args *x, const f8_gemm_desc &d, int band)
{
    problem p = {};
    p.groups.rows = { x->groups ? x->groups->offset : NULL, x->groups ? x->groups->rows : NULL, (int32_t)d.experts,
                      (int32_t)d.rows };
    p.groups.experts = (int32_t)d.experts;
    p.groups.lines = d.product == FP8FLOW_WGRAD ? (int32_t)d.outer : 0;
    p.groups.empty_untouched = x->write == FP8FLOW_ACCUMULATE;
    p.groups.columns = (int32_t)x->c->cols, p.groups.band = band, p.inner = (int32_t)d.inner;
    p.c = x->c->data, p.c_stride = x->c->stride, p.c_dtype = x->c->dtype, p.write = x->write;
    return p;
}

template <class S>
static fp8flow_status launch(fp8flow_context *c, const fp8flow_gemm_args *x, const f8_gemm_desc &d, int band)
{
    CUtensorMap a_map, b_map, c_map = {};
    int blocks;
    problem p = make_problem(x, d, band);
    F8_TRY(f8_bf16_map("gemm", &a_map, x->a, 1, BOX));
    F8_TRY(f8_bf16_map("gemm", &b_map, x->b, S::gradient ? 1 : d.experts, BOX));
    if (p.adds_bf16()) F8_TRY(f8_bf16_map("gemm", &c_map, x->c, 1, F8_WALK_ROWS));
    F8_TRY(f8_multiprocessors("gemm", &blocks));
    cudaLaunchAttribute cluster;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks / S::cluster * S::cluster);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = S::bytes;
    config.stream = f8_stream(c);
    if (S::cluster > 1) f8_use_clusters(&config, &cluster, S::cluster);
    f8_allow_shared(gemm_bf16_kernel<S>, S::bytes);
    cudaLaunchKernelEx(&config, gemm_bf16_kernel<S>, a_map, b_map, c_map, p);
    return f8_launched("gemm");
}

extern "C" fp8flow_status f8_cuda_gemm_bf16(fp8flow_context *c, const fp8flow_gemm_args *x, const f8_gemm_desc *desc,
                                            const f8_gemm_config *config)
{
    switch (desc->product) {
    case FP8FLOW_FPROP: return launch<shape<FP8FLOW_FPROP, 4, 2>>(c, x, *desc, config->band);
    case FP8FLOW_DGRAD: return launch<shape<FP8FLOW_DGRAD, 4, 2>>(c, x, *desc, config->band);
    default: return launch<shape<FP8FLOW_WGRAD, 4, 2>>(c, x, *desc, config->band);
    }
}
