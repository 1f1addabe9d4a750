/* gemm_fp8_tiles.cu - WGRAD of FP8 operands with one scale per 128 x 128: c_g[N, K] (+)= a_g[m, N]^T * b_g[m, K].
 *
 * Both operands lie in column form: a line is a column of the activations, the contraction runs along an expert's rows.
 * Tiles of 128 lines of a x 192 lines of b; per step of 128 rows one scale of a and two of b. Products and promotion:
 * gemm_fp8.cuh. An expert with few rows has tiles of few steps, and c's way through memory binds: hence
 *   * the ring of stages goes on from tile to tile: a tile of six steps that began at the first stage would find its
 *     operands late;
 *   * all of a tile of c lies in shared memory. Each of the eight multiplying warps has 16 lines to itself, in pieces.
 *     While a tile's products run, its lane 0 asks for them, one a step; under the first products of the next tile the
 *     warp adds its sums and lane 0 stores what they became, which must have been read before it asks for the next
 *     ones, a step later. No warp waits for another. Overwriting does the same without asking.
 *   one warp    walks and brings scale bytes.        one thread  fills the ring of stages.
 * Lines of b lie permuted in shared memory (a 5-D tensor map does it), so that a lane has 8 neighbouring columns in a
 * row of 32 and reads and writes whole 16-byte pieces without bank conflicts. Each element is added once: the order of
 * tiles does not matter. Rows of the last step that belong to nobody are cleared in shared memory: they may hold
 * anything. Memory: 4 bytes per element of c, 8 when adding; operands once, they stay in L2.
 */
#include "ops/gemm_cuda.h"
#include "ops/gemm_fp8.cuh"
#include "ops/launch.cuh"

enum { RING = 3, WARPS = 4 * GROUPS };
enum { GROUP_COLS = 32, GROUP_LINES = 16, GROUP_BYTES = GROUP_LINES * 128, TILE_GROUPS = COLUMNS / GROUP_COLS };
enum { PIECE_GROUPS = 2, PIECES = TILE_GROUPS / PIECE_GROUPS, PIECE_BYTES = PIECE_GROUPS * GROUP_BYTES };
enum { WARP_BYTES = PIECES * PIECE_BYTES, BYTES = 1024 + RING * STAGE_BYTES + WARPS * WARP_BYTES };
static_assert((int)RING <= (int)STAGES, "barriers of the pipeline");
static_assert(BYTES + 6 * 1024 <= 232448, "shared memory of a block");

struct problem {
    f8_walk_lines groups;
    const uint8_t *a_scale, *b_scale; /* per 128 rows: one byte per 128 lines */
};

typedef f8_walk<COLUMNS, 1, f8_walk_lines> walk;

/* What the warpgroups need for up to WINDOW steps of a tile. */
struct slot {
    f8_walk_tile tile;
    int first, steps, last; /* steps of this slot; `last`: the end of the walk */
    int begin, rows;        /* the expert's rows: the contraction */
    uint8_t a[WINDOW], b[BOXES][WINDOW]; /* scales: of the lines, of 64 columns each */
};

struct shared_memory {
    pipeline pipe;
    uint64_t arrived[WARPS][PIECES]; /* pieces of c */
    int32_t cumulative[F8_GEMM_MAX_EXPERTS + 1];
    f8_walk_tile current; /* of the warp that walks */
    slot slots[SLOTS];
};

/* ---- The warp that walks and brings scales ---- */

/* Steps of a tile; without rows one, of which all is cleared. */
__device__ static inline int steps_of(int rows)
{
    return max(1, (rows + STEP - 1) / STEP);
}

/* Lane i: the bytes of step first + i. */
__device__ static void bring_window(const problem &p, const f8_walk_tile &t, int first, int steps, slot *to)
{
    int lane = f8_lane(), a_blocks = (p.groups.lines + 127) / 128, b_blocks = (p.groups.columns + 127) / 128;
    if (lane >= steps) return;
    bool empty = p.groups.rows.used(t.expert) == 0;
    int64_t row = empty ? 0 : p.groups.rows.begin(t.expert) / 128 + first + lane;
    uint8_t a = __ldg(p.a_scale + row * a_blocks + (t.row - t.expert * p.groups.lines) / 128);
    to->a[lane] = empty ? 0 : a;
#pragma unroll
    for (int i = 0; i < BOXES; i++)
        to->b[i][lane] = empty ? 0 : __ldg(p.b_scale + row * b_blocks + min((t.n + i * BOX_COLS) / 128, b_blocks - 1));
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
        int rows = more ? p.groups.rows.used(t.expert) : 0, steps = more ? steps_of(rows) : 0, first = 0;
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

/* ---- The thread that copies operands ---- */

__device__ static void produce(const problem &p, const CUtensorMap *a_map, const CUtensorMap *b_map,
                               shared_memory &shared, uint8_t *stages)
{
    f8_position<RING> ring = { 0, 1 };
    f8_position<SLOTS> at = { 0, 0 };
    f8_prefetch_map(a_map);
    f8_prefetch_map(b_map);
    for (;; at.advance()) {
        const slot &s = shared.slots[at.at];
        f8_barrier_wait(&shared.pipe.ready[at.at], at.phase);
        if (s.last) break;
        int a_line = s.tile.row - s.tile.expert * p.groups.lines, end = s.first + s.steps;
        for (int step = s.first; step < end; step++) {
            int row = s.begin + step * STEP;
            uint64_t *full = &shared.pipe.full[ring.at];
            uint8_t *a = stages + ring.at * STAGE_BYTES;
            f8_barrier_wait(&shared.pipe.empty[ring.at], ring.phase);
            f8_barrier_expect(full, STAGE_BYTES);
            f8_copy_tile(a, a_map, full, row, a_line);
            f8_copy_tile_5d(a + A_BYTES, b_map, full, row, s.tile.n / GROUP_COLS);
            ring.advance();
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

/* Four neighbouring columns of a line; x: 0 .. 11 in the order of the columns that this lane holds; half: the line. */
__device__ static inline float4 quad(const float (&sum)[SUMS], int x, int half)
{
    return make_float4(sum[8 * x + 2 * half], sum[8 * x + 2 * half + 1], sum[8 * x + 4 + 2 * half],
                       sum[8 * x + 5 + 2 * half]);
}

__device__ static inline float4 added(float4 x, uint4 y)
{
    return make_float4(x.x + __uint_as_float(y.x), x.y + __uint_as_float(y.y), x.z + __uint_as_float(y.z),
                       x.w + __uint_as_float(y.w));
}

__device__ static inline uint4 bits_of(float4 x)
{
    return make_uint4(__float_as_uint(x.x), __float_as_uint(x.y), __float_as_uint(x.z), __float_as_uint(x.w));
}

/* What a warp works on. Everything but addresses is the same in its warpgroup. */
template <fp8flow_write write> struct worker {
    const problem &p;
    const CUtensorMap *c_map;
    shared_memory &shared;
    uint32_t stages; /* the ring */
    ring_reader ring;
    slot_reader<slot> slots;
    int stage, group; /* the next stage of the ring; the warpgroup */
    uint32_t c_phase;

    /* This warp's piece `i` and its barrier. */
    __device__ uint32_t piece(int i) const
    {
        return stages + RING * STAGE_BYTES + threadIdx.x / 32 * WARP_BYTES + i * PIECE_BYTES;
    }

    __device__ uint32_t arrived(int i) const { return f8_smem(&shared.arrived[threadIdx.x / 32][i]); }

    __device__ int line(const f8_walk_tile &t) const
    {
        return t.row - t.expert * p.groups.lines + (int)threadIdx.x / 32 * GROUP_LINES;
    }

    /* Both warpgroups clear all lines of b: the same bytes. */
    __device__ void clear_rows()
    {
        int valid = slots.get(slots.number).rows % STEP;
        uint32_t at = stages + stage * STAGE_BYTES;
        clear_tail(at + group * 64 * STEP, 64, valid);
        clear_tail(at + A_BYTES, COLUMNS, valid);
        f8_async_fence();
        f8_named_barrier(1 + group, 128);
    }

    /* The next step's products are on their way; `short_step`: not all rows are the expert's. */
    __device__ void begin(float (&part)[SUMS], bool short_step)
    {
        ring.wait(stage);
        if (short_step) clear_rows();
        uint32_t offset = __shfl_sync(~0u, stage * (STAGE_BYTES / 16), 0);
        multiply(part, ring.a + offset, ring.b + offset);
    }

    /* They are added to the sums. `more`: the tile has another step. */
    __device__ void end(float (&part)[SUMS], float (&sum)[SUMS], int step, bool more)
    {
        const int most = SUMS * 2 / 3;
        const slot &from = slots.get(slots.number);
        float a = scale(from.a[step % WINDOW]), box[BOXES];
        factors factor;
#pragma unroll
        for (int i = 0; i < BOXES; i++) {
            box[i] = a * scale(from.b[i][step % WINDOW]);
            f8_pin(box[i]);
            factor.at[i][0] = factor.at[i][1] = box[i];
        }
        f8_products_wait<0>();
        ring.release(stage);
        stage = stage + 1 == RING ? 0 : stage + 1;
        promote<0, most>(sum, part, factor);
        ring.ready = false;
        if (more) ring.ask(stage);
        promote<most, SUMS>(sum, part, factor);
    }

    __device__ static float scale(uint8_t byte) { return __uint_as_float((uint32_t)byte << 23); }

    /* Piece `i` of the tile's c is asked for. */
    __device__ void ask_piece(int i)
    {
        if (f8_lane() == 0) {
            if (i == 0) f8_store_wait_read<0>();
            if (write == FP8FLOW_ACCUMULATE) {
                const f8_walk_tile &t = slots.get(slots.number).tile;
                f8_barrier_expect(arrived(i), PIECE_BYTES);
                f8_copy_box(piece(i), c_map, arrived(i), 0, line(t), t.n / GROUP_COLS + i * PIECE_GROUPS, t.expert,
                            f8_policy_once());
            }
        }
        __syncwarp();
    }

    /* Sums of two lines join what lies at `at`, or replace it. */
    __device__ void join(uint32_t at, float4 low, float4 high)
    {
        if (write == FP8FLOW_ACCUMULATE) {
            uint4 old_low = f8_load_shared(at), old_high = f8_load_shared(at + 1024);
            low = added(low, old_low), high = added(high, old_high);
        }
        f8_store_shared(at, bits_of(low));
        f8_store_shared(at + 1024, bits_of(high));
    }

    /* Sums to a piece of c, and that to memory. */
    template <int i> __device__ void pass_on(const f8_walk_tile &t, const float (&sum)[SUMS])
    {
        int row = f8_lane() / 4;
        uint32_t at = piece(i), mine = at + row * 128 + (f8_lane() % 4 * 2 ^ row) * 16;
        if (write == FP8FLOW_ACCUMULATE) f8_barrier_wait(arrived(i), c_phase);
#pragma unroll
        for (int g = 0; g < 2 * PIECE_GROUPS; g++) {
            int x = 2 * i * PIECE_GROUPS + g;
            join((mine ^ g % 2 * 16) + g / 2 * GROUP_BYTES, quad(sum, x, 0), quad(sum, x, 1));
        }
        f8_async_fence();
        __syncwarp();
        if (f8_lane() != 0) return;
        f8_store_box(c_map, at, 0, line(t), t.n / GROUP_COLS + i * PIECE_GROUPS, t.expert, f8_policy_once());
        f8_store_commit();
    }

    template <int i> __device__ void pass_on_all(const f8_walk_tile &t, const float (&sum)[SUMS])
    {
        if constexpr (i < PIECES) {
            pass_on<i>(t, sum);
            pass_on_all<i + 1>(t, sum);
        }
    }

    /* The tile before. Lane 0 has seen its stores of the one before that read: all may write. */
    __device__ void finish(float (&sum)[SUMS])
    {
        if (slots.number > 0) {
            const f8_walk_tile &t = slots.get(slots.number - 1).tile;
            __syncwarp();
            pass_on_all<0>(t, sum);
            c_phase ^= 1;
            slots.give_back(slots.number - 1);
        }
        clear(sum);
    }

    __device__ void run_tile(int rows, float (&sum)[SUMS])
    {
        int steps = steps_of(rows), asked = 0;
        bool partial = steps * STEP != rows;
        float part[SUMS];
        begin(part, partial && steps == 1);
        finish(sum);
        end(part, sum, 0, steps > 1);
#pragma unroll 1
        for (int step = 1; step < steps; step++) {
            if (step % WINDOW == 0) slots.next_window();
            begin(part, partial && step == steps - 1);
            if (asked < PIECES) ask_piece(asked++);
            end(part, sum, step, step + 1 < steps);
        }
#pragma unroll 1
        while (asked < PIECES) ask_piece(asked++);
    }
};

template <fp8flow_write write>
__device__ static void consume(const problem &p, shared_memory &shared, const uint8_t *stages,
                               const CUtensorMap *c_map)
{
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    worker<write> work = { p, c_map, shared, f8_smem(stages), read_ring(stages, shared.pipe, group),
                       { shared.pipe, shared.slots, 0 }, 0, group, 0 };
    float sum[SUMS];
    for (;;) {
        const slot &head = work.slots.wait();
        if (head.last) break;
        work.run_tile(__shfl_sync(~0u, head.rows, 0), sum);
        work.slots.number++;
    }
    work.finish(sum);
    if (f8_lane() == 0) f8_store_wait_read<0>();
}

template <fp8flow_write write>
__global__ __launch_bounds__(THREADS, 1) static void gemm_fp8_tiles_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                     const __grid_constant__ CUtensorMap b_map,
                                                                     const __grid_constant__ CUtensorMap c_map,
                                                                     const __grid_constant__ problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared_memory shared;
    uint8_t *stages = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    if (threadIdx.x < 32) f8_walk_count<walk>(p.groups, shared.cumulative);
    if (threadIdx.x == 32) {
        for (int i = 0; i < WARPS * PIECES; i++) f8_barrier_init(&shared.arrived[0][0] + i, 1);
        shared.pipe.init(32);
    }
    __syncthreads();
    if (threadIdx.x / 128 == GROUPS) {
        f8_registers_less<PRODUCER_REGISTERS>();
        if (threadIdx.x % 128 == 0) produce(p, &a_map, &b_map, shared, stages);
        if (threadIdx.x % 128 / 32 == 1) bring(p, shared);
    } else {
        f8_registers_more<CONSUMER_REGISTERS>();
        consume<write>(p, shared, stages, &c_map);
    }
}

/* ---- Launch ---- */

/* Lines of b in the order that gives lane q of four the columns 8q .. 8q + 7 of 32: line 8h + 2q + i of a group in
 * shared memory is line 8q + 2h + i of the tensor. */
static fp8flow_status permuted_map(CUtensorMap *map, const fp8flow_tensor *b)
{
    cuuint64_t line = (cuuint64_t)b->stride;
    f8_box_shape shape = { 5,
                           { (cuuint64_t)b->rows, 2, 4, 4, (cuuint64_t)b->cols / GROUP_COLS },
                           { line, 8 * line, 2 * line, 32 * line },
                           { STEP, 2, 4, 4, TILE_GROUPS },
                           CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_DATA_TYPE_UINT8,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
    return f8_tensor_map("gemm", map, b->data, shape);
}

/* Pieces of c: columns of a group, lines of an expert, groups, experts. */
static fp8flow_status gradient_map(CUtensorMap *map, const fp8flow_tensor *c, int64_t experts, int64_t lines)
{
    cuuint64_t line = (cuuint64_t)c->stride * 4;
    f8_box_shape shape = { 4,
                           { GROUP_COLS, (cuuint64_t)lines, (cuuint64_t)c->cols / GROUP_COLS, (cuuint64_t)experts },
                           { line, 4 * GROUP_COLS, line * (cuuint64_t)lines },
                           { GROUP_COLS, GROUP_LINES, PIECE_GROUPS, 1 },
                           CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
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
    F8_TRY(operand_map(&a_map, x->a->data, d.outer, x->a->rows, x->a->stride, F8_WALK_ROWS));
    F8_TRY(permuted_map(&b_map, x->b));
    F8_TRY(gradient_map(&c_map, x->c, d.experts, d.outer));
    F8_TRY(f8_multiprocessors("gemm", &blocks));
    auto kernel = x->write == FP8FLOW_ACCUMULATE ? gemm_fp8_tiles_kernel<FP8FLOW_ACCUMULATE>
                                                 : gemm_fp8_tiles_kernel<FP8FLOW_OVERWRITE>;
    f8_allow_shared(kernel, BYTES);
    kernel<<<blocks, THREADS, BYTES, f8_stream(c)>>>(a_map, b_map, c_map, p);
    return f8_launched("gemm");
}
