/* gemm_fp8_tiles.cu - WGRAD of FP8 operands with one scale per 128 x 128: c_g[N, K] (+)= a_g[m, N]^T * b_g[m, K].
 *
 * Both operands lie in column form: a line is a column of the activations, the contraction runs along an expert's rows.
 * Tiles of 128 lines of a x 192 lines of b; per step of 128 rows one scale of a and two of b. The steps: gemm_fp8.cuh.
 *   one warp    walks and brings scale bytes.        one thread  fills the ring of stages.
 *   warpgroups  multiply, and pass their sums on through pieces of 64 x 32 numbers in shared memory, which the copy
 *               engine stores in c or adds to it in L2: each element is added once, so that the order does not matter.
 * Rows of the last step that belong to nobody are cleared in shared memory: they may hold anything.
 */
#include "ops/gemm_cuda.h"
#include "ops/gemm_fp8.cuh"
#include "ops/launch.cuh"

enum { PIECE_COLS = 32, PIECES = COLUMNS / PIECE_COLS };

struct problem {
    f8_walk_lines groups;
    const uint8_t *a_scale, *b_scale; /* per 128 rows: one byte per 128 lines */
    fp8flow_write write;
};

typedef f8_walk<COLUMNS, 1, f8_walk_lines> walk;

/* What the warpgroups need for up to WINDOW steps of a tile. */
struct slot {
    f8_walk_tile tile;
    int first, steps, last; /* steps of this slot; `last`: the end of the walk */
    int begin, rows;        /* the expert's rows: the contraction */
    uint8_t a[LINE], b[2][LINE];
};

struct shared_memory {
    pipeline pipe;
    int32_t cumulative[F8_GEMM_MAX_EXPERTS + 1];
    f8_walk_tile current; /* of the warp that walks */
    slot slots[SLOTS];
};

/* ---- The warp that walks and brings scales ---- */

/* Lane i: the bytes of step first + i. */
__device__ static void bring_window(const problem &p, const f8_walk_tile &t, int first, int steps, slot *to)
{
    int lane = f8_lane(), a_blocks = (p.groups.lines + 127) / 128, b_blocks = (p.groups.columns + 127) / 128;
    if (lane >= steps) return;
    int64_t row = p.groups.rows.begin(t.expert) / 128 + first + lane;
    int b_block = t.n / 128;
    to->a[lane] = __ldg(p.a_scale + row * a_blocks + (t.row - t.expert * p.groups.lines) / 128);
    to->b[0][lane] = __ldg(p.b_scale + row * b_blocks + b_block);
    to->b[1][lane] = __ldg(p.b_scale + row * b_blocks + min(b_block + 1, b_blocks - 1));
}

__device__ static void bring(const problem &p, shared_memory &shared)
{
    walk tiles(p.groups, shared.cumulative);
    f8_position<SLOTS> at = { 0, 1 };
    f8_walk_tile &t = shared.current;
    for (bool more = true; more;) {
        __syncwarp();
        more = tiles.next(&t);
        __syncwarp();
        int rows = more ? p.groups.rows.used(t.expert) : 0, steps = (rows + STEP - 1) / STEP, first = 0;
        do {
            slot *to = &shared.slots[at.at];
            int count = min(WINDOW, steps - first);
            f8_barrier_wait(&shared.pipe.taken[at.at], at.phase);
            if (f8_lane() == 0) {
                to->first = first, to->steps = count, to->last = !more, to->rows = rows;
                if (more) to->tile = t, to->begin = p.groups.rows.begin(t.expert);
            }
            if (more) bring_window(p, t, first, count, to);
            f8_barrier_arrive(&shared.pipe.ready[at.at]);
            at.advance();
            first += WINDOW;
        } while (first < steps);
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
        if (s.last) break;
        int a_line = s.tile.row - s.tile.expert * p.groups.lines, end = s.first + s.steps;
        for (int step = s.first; step < end; step++) {
            int stage = step % STAGES, row = s.begin + step * STEP;
            uint64_t *full = &shared.pipe.full[stage];
            uint8_t *a = ring + stage * STAGE_BYTES;
            f8_barrier_wait(&shared.pipe.empty[stage], phases >> stage & 1);
            phases ^= 1u << stage;
            f8_barrier_expect(full, STAGE_BYTES);
            f8_copy_tile(a, a_map, full, row, a_line);
            f8_copy_tile(a + A_BYTES, b_map, full, row, s.tile.n);
        }
        f8_barrier_arrive(&shared.pipe.taken[at.at]);
    }
}

/* ---- The warpgroups that multiply ---- */

/* The first `kept` bytes (of 4, if as many) of a word. */
__device__ static inline uint32_t first_bytes(uint32_t word, int kept)
{
    return kept >= 4 ? word : kept <= 0 ? 0 : word & ((1u << 8 * kept) - 1);
}

/* Bytes valid .. STEP - 1 of `lines` lines of a stage become 0. One warpgroup. */
__device__ static void clear_tail(uint32_t lines_at, int lines, int valid)
{
    for (int line = threadIdx.x % 128; line < lines; line += 128)
        for (int chunk = valid / 16; chunk < STEP / 16; chunk++) {
            uint32_t at = lines_at + line * STEP + (chunk ^ line % 8) * 16;
            int kept = valid - 16 * chunk;
            uint4 x = kept > 0 ? f8_load_shared(at) : make_uint4(0, 0, 0, 0);
            f8_store_shared(at, make_uint4(first_bytes(x.x, kept), first_bytes(x.y, kept - 4),
                                           first_bytes(x.z, kept - 8), first_bytes(x.w, kept - 12)));
        }
}

/* 32 columns of this warpgroup's 64 lines to shared memory, in lines of 128 bytes swizzled as the copy engine reads. */
template <int piece> __device__ static inline void stage_piece(uint32_t to, const float (&sum)[SUMS])
{
    int lane = f8_lane(), line = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int block = i / 2, high = i % 2, chunk = 2 * block + lane % 4 / 2, from = piece * 16 + 4 * block + 2 * high;
        uint32_t at = to + (line + 8 * high) * 128 + (chunk ^ lane / 4) * 16 + lane % 2 * 8;
        f8_store_shared(at, sum[from], sum[from + 1]);
    }
}

struct job {
    static const bool may_be_partial = true;
    const problem &p;
    const CUtensorMap *c_map;
    uint32_t stages, boxes; /* of the ring; of this warpgroup's pieces */
    ring_reader ring;
    slot_reader<slot> slots;
    bool within;

    __device__ void skip_to(int step)
    {
        if (step % WINDOW == 0) slots.next_window();
    }

    __device__ void load(scale_words &words, int step)
    {
        if (step > 0) skip_to(step);
        const slot &from = slots.get(slots.number);
        words.a[0] = words.a[1] = *(const uint32_t *)&from.a[step % WINDOW];
        words.b[0] = *(const uint32_t *)&from.b[0][step % WINDOW];
        words.b[1] = *(const uint32_t *)&from.b[1][step % WINDOW];
    }

    __device__ void set(factors &factor, const scale_words &words, int index) { factor.set(words, index, within); }

    /* Both warpgroups clear all lines of b: the same bytes. */
    __device__ void prepare(int stage)
    {
        int group = threadIdx.x / 128, valid = slots.get(slots.number).rows % STEP;
        uint32_t at = stages + stage * STAGE_BYTES;
        clear_tail(at + group * 64 * STEP, 64, valid);
        clear_tail(at + A_BYTES, COLUMNS, valid);
        f8_async_fence();
        f8_named_barrier(1 + group, 128);
    }

    template <int piece> __device__ void pass_on(const f8_walk_tile &t, const float (&sum)[SUMS])
    {
        int group = threadIdx.x / 128, x = t.n + piece * PIECE_COLS;
        uint32_t at = boxes + piece % BOXES * BOX_BYTES;
        if (x >= p.groups.columns) return;
        if (threadIdx.x % 128 == 0) f8_store_wait_read<BOXES - 1>();
        f8_named_barrier(1 + group, 128);
        stage_piece<piece>(at, sum);
        f8_async_fence();
        f8_named_barrier(1 + group, 128);
        if (threadIdx.x % 128 != 0) return;
        int y = t.row - t.expert * p.groups.lines + 64 * group;
        if (p.write == FP8FLOW_ACCUMULATE) f8_add_box(c_map, at, x, y, t.expert);
        else f8_store_box(c_map, at, x, y, t.expert);
        f8_store_commit();
    }

    __device__ void finish(float (&sum)[SUMS])
    {
        if (slots.number > 0) {
            const f8_walk_tile &t = slots.get(slots.number - 1).tile;
            if (t.row + 64 * ((int)threadIdx.x / 128) < t.limit) {
                pass_on<0>(t, sum);
                pass_on<1>(t, sum);
                pass_on<2>(t, sum);
                pass_on<3>(t, sum);
                pass_on<4>(t, sum);
                pass_on<5>(t, sum);
            }
            slots.give_back(slots.number - 1);
        }
        clear(sum);
    }
};

__device__ static void consume(const problem &p, shared_memory &shared, const uint8_t *ring, uint8_t *boxes,
                               const CUtensorMap *c_map)
{
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    job work = { p, c_map, f8_smem(ring), f8_smem(boxes) + group * BOXES * BOX_BYTES,
                 read_ring(ring, shared.pipe, group), { shared.pipe, shared.slots, 0 }, false };
    float sum[SUMS];
    for (;;) {
        const slot &head = work.slots.wait();
        if (head.last) break;
        int rows = __shfl_sync(~0u, head.rows, 0), steps = (rows + STEP - 1) / STEP;
        int live = __shfl_sync(~0u, rows > 0 && head.tile.row + 64 * group < head.tile.limit, 0);
        work.within = head.tile.n % 128 != 0;
        if (live) run_tile(work, steps, rows % STEP != 0, sum);
        else skip_tile(work, steps, sum);
        work.slots.number++;
    }
    work.finish(sum);
    if (threadIdx.x % 128 == 0) f8_store_wait_read<0>();
}

/* ---- Kernel and launch ---- */

__global__ __launch_bounds__(THREADS, 1) static void gemm_fp8_tiles_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                           const __grid_constant__ CUtensorMap b_map,
                                                                           const __grid_constant__ CUtensorMap c_map,
                                                                           const __grid_constant__ problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared_memory shared;
    uint8_t *ring = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024, *boxes = ring + STAGES * STAGE_BYTES;
    if (threadIdx.x < 32) f8_walk_count<walk>(p.groups, shared.cumulative);
    if (threadIdx.x == 32) shared.pipe.init(32);
    __syncthreads();
    if (threadIdx.x / 128 == GROUPS) {
        f8_registers_less<PRODUCER_REGISTERS>();
        if (threadIdx.x % 128 == 0) produce(p, &a_map, &b_map, shared, ring);
        if (threadIdx.x % 128 / 32 == 1) bring(p, shared);
    } else {
        f8_registers_more<CONSUMER_REGISTERS>();
        consume(p, shared, ring, boxes, &c_map);
    }
}

/* Pieces of c: columns, lines of an expert, experts. */
static fp8flow_status gradient_map(CUtensorMap *map, const fp8flow_tensor *c, int64_t experts, int64_t lines)
{
    cuuint64_t line = (cuuint64_t)c->stride * 4;
    f8_box_shape shape = { 3,
                           { (cuuint64_t)c->cols, (cuuint64_t)lines, (cuuint64_t)experts },
                           { line, line * (cuuint64_t)lines },
                           { PIECE_COLS, 64, 1 },
                           CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_DATA_TYPE_FLOAT32 };
    return f8_tensor_map("gemm", map, c->data, shape);
}

extern "C" fp8flow_status f8_cuda_gemm_fp8_tiles(fp8flow_context *c, const fp8flow_gemm_args *x,
                                                 const f8_gemm_config *config)
{
    f8_gemm_desc d = f8_gemm_describe(x);
    CUtensorMap a_map, b_map, c_map;
    int blocks;
    problem p = {};
    p.groups.rows.offset = x->groups ? x->groups->offset : NULL;
    p.groups.rows.rows = x->groups ? x->groups->rows : NULL;
    p.groups.rows.capacity = (int32_t)x->a->rows;
    p.groups.experts = p.groups.rows.experts = (int32_t)d.experts;
    p.groups.columns = (int32_t)d.inner, p.groups.lines = (int32_t)d.outer, p.groups.band = config->band;
    p.groups.empty_untouched = x->write == FP8FLOW_ACCUMULATE;
    p.a_scale = (const uint8_t *)x->a->scale, p.b_scale = (const uint8_t *)x->b->scale;
    p.write = x->write;
    F8_TRY(operand_map(&a_map, x->a->data, d.outer, x->a->rows, x->a->stride, F8_WALK_ROWS));
    F8_TRY(operand_map(&b_map, x->b->data, d.inner, x->b->rows, x->b->stride, COLUMNS));
    F8_TRY(gradient_map(&c_map, x->c, d.experts, d.outer));
    F8_TRY(f8_multiprocessors("gemm", &blocks));
    f8_allow_shared(gemm_fp8_tiles_kernel, SHARED_BYTES);
    gemm_fp8_tiles_kernel<<<blocks, THREADS, SHARED_BYTES, f8_stream(c)>>>(a_map, b_map, c_map, p);
    return f8_launched("gemm");
}
