/* gemm_fp8_tiles_few.cu - gradients of TILE128 operands whose experts have few rows (what is computed:
 * gemm_fp8_tiles.cuh).
 *
 * A tile has few steps, and c's way through memory binds: hence
 *   * the ring of stages goes on from tile to tile: a tile of six steps that began at the first stage would find its
 *     operands late;
 *   * all of a tile of c lies in shared memory, beside three stages. Each of the eight multiplying warps has 16 lines
 *     to itself, in pieces. While a tile's products run, its lane 0 asks for them, one a step; under the first products
 *     of the next tile the warp adds its sums and lane 0 stores what they became, which must have been read before it
 *     asks for the next ones, a step later. No warp waits for another. Overwriting does the same without asking.
 *   one warp    walks and brings scale bytes.        one thread  fills the ring of stages.
 * Lines of b lie permuted in shared memory (a 5-D tensor map does it), so that a lane has 8 neighbouring columns in a
 * row of 32 and reads and writes whole 16-byte pieces without bank conflicts. Each element is added once: the order of
 * tiles does not matter. Memory: 4 bytes per element of c, 8 when adding; operands once, they stay in L2.
 */
#include "ops/gemm_cuda.h"
#include "ops/gemm_fp8_tiles.cuh"

enum { RING = 3, WARPS = 4 * GROUPS };
enum { GROUP_COLS = 32, GROUP_LINES = 16, GROUP_BYTES = GROUP_LINES * 128, TILE_GROUPS = COLUMNS / GROUP_COLS };
enum { PIECE_GROUPS = 2, PIECES = TILE_GROUPS / PIECE_GROUPS, PIECE_BYTES = PIECE_GROUPS * GROUP_BYTES };
enum { WARP_BYTES = PIECES * PIECE_BYTES, BYTES = 1024 + RING * STAGE_BYTES + WARPS * WARP_BYTES };
static_assert((int)RING <= (int)STAGES, "barriers of the pipeline");
static_assert(BYTES + 6 * 1024 <= 232448, "shared memory of a block");

/* Scale bytes of up to WINDOW steps: of the lines, of 64 columns each. */
struct slot {
    enum { LEAST_STEPS = 1 }; /* without rows all of it is cleared */
    tile_window window;
    uint8_t a[WINDOW], b[BOXES][WINDOW];

    __device__ void bring(const tile_problem &p, const f8_walk_tile &t, int first)
    {
        int lane = f8_lane(), a_blocks = (p.groups.lines + 127) / 128, b_blocks = (p.groups.columns + 127) / 128;
        bool empty = p.groups.rows.used(t.expert) == 0;
        int64_t row = empty ? 0 : p.groups.rows.begin(t.expert) / 128 + first + lane;
        uint8_t byte = __ldg(p.a_scale + row * a_blocks + (t.row - t.expert * p.groups.lines) / 128);
        a[lane] = empty ? 0 : byte;
#pragma unroll
        for (int i = 0; i < BOXES; i++)
            b[i][lane] = empty ? 0 : __ldg(p.b_scale + row * b_blocks + min((t.n + i * BOX_COLS) / 128, b_blocks - 1));
    }
};

struct shared_memory {
    tile_slots<slot> tiles;
    uint64_t arrived[WARPS][PIECES]; /* pieces of c */
};

/* ---- The thread that copies operands ---- */

__device__ static void produce(const tile_problem &p, const CUtensorMap *a_map, const CUtensorMap *b_map,
                               shared_memory &shared, uint8_t *stages)
{
    f8_position<RING> ring = { 0, 1 };
    f8_position<SLOTS> at = { 0, 0 };
    f8_prefetch_map(a_map);
    f8_prefetch_map(b_map);
    for (;; at.advance()) {
        const tile_window &s = shared.tiles.slots[at.at].window;
        f8_barrier_wait(&shared.tiles.pipe.ready[at.at], at.phase);
        if (s.last) break;
        int a_line = s.tile.row - s.tile.expert * p.groups.lines, end = s.first + s.steps;
        for (int step = s.first; step < end; step++) {
            int row = s.begin + step * STEP;
            uint64_t *full = &shared.tiles.pipe.full[ring.at];
            uint8_t *a = stages + ring.at * STAGE_BYTES;
            f8_barrier_wait(&shared.tiles.pipe.empty[ring.at], ring.phase);
            f8_barrier_expect(full, STAGE_BYTES);
            f8_copy_tile(a, a_map, full, row, a_line);
            f8_copy_tile_5d(a + A_BYTES, b_map, full, row, s.tile.n / GROUP_COLS);
            ring.advance();
        }
        f8_barrier_arrive(&shared.tiles.pipe.taken[at.at]);
    }
}

/* ---- The warpgroups that multiply ---- */

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
    const tile_problem &p;
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

    /* The next step's products are on their way; `short_step`: not all rows are the expert's. */
    __device__ void begin(float (&part)[SUMS], bool short_step)
    {
        ring.wait(stage);
        if (short_step)
            clear_rows(stages + stage * STAGE_BYTES, group, slots.get(slots.number).window.rows % STEP);
        uint32_t offset = __shfl_sync(F8_ALL_LANES, stage * (STAGE_BYTES / 16), 0);
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
                const f8_walk_tile &t = slots.get(slots.number).window.tile;
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
            const f8_walk_tile &t = slots.get(slots.number - 1).window.tile;
            __syncwarp();
            pass_on_all<0>(t, sum);
            c_phase ^= 1;
            slots.give_back(slots.number - 1);
        }
        clear(sum);
    }

    __device__ void run_tile(int rows, float (&sum)[SUMS])
    {
        int steps = steps_of(rows, slot::LEAST_STEPS), asked = 0;
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
__device__ static void consume(const tile_problem &p, shared_memory &shared, const uint8_t *stages,
                               const CUtensorMap *c_map)
{
    int group = __shfl_sync(F8_ALL_LANES, threadIdx.x / 128, 0);
    worker<write> work = { p, c_map, shared, f8_smem(stages), read_ring(stages, shared.tiles.pipe, group),
                       { shared.tiles.pipe, shared.tiles.slots, 0 }, 0, group, 0 };
    float sum[SUMS];
    for (;;) {
        const tile_window &head = work.slots.wait().window;
        if (head.last) break;
        work.run_tile(__shfl_sync(F8_ALL_LANES, head.rows, 0), sum);
        work.slots.number++;
    }
    work.finish(sum);
    if (f8_lane() == 0) f8_store_wait_read<0>();
}

template <fp8flow_write write>
__global__ __launch_bounds__(THREADS, 1) static void
gemm_fp8_tiles_few_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                          const __grid_constant__ CUtensorMap c_map, const __grid_constant__ tile_problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared_memory shared;
    uint8_t *stages = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    if (threadIdx.x < 32) f8_walk_count<tile_walk>(p.groups, shared.tiles.cumulative);
    if (threadIdx.x == 32) {
        for (int i = 0; i < WARPS * PIECES; i++) f8_barrier_init(&shared.arrived[0][0] + i, 1);
        shared.tiles.pipe.init(32);
    }
    __syncthreads();
    if (threadIdx.x / 128 == GROUPS) {
        f8_registers_less<PRODUCER_REGISTERS>();
        if (threadIdx.x % 128 == 0) produce(p, &a_map, &b_map, shared, stages);
        if (threadIdx.x % 128 / 32 == 1) bring(p, shared.tiles);
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

extern "C" fp8flow_status f8_cuda_gemm_fp8_tiles_few(fp8flow_context *c, const fp8flow_gemm_args *x,
                                                     const f8_gemm_desc *desc, const f8_gemm_config *config)
{
    tile_launch launch = { x, desc, config, {}, {}, BYTES };
    F8_TRY(permuted_map(&launch.b_map, x->b));
    F8_TRY(gradient_map(&launch.c_map, x->c, desc->experts, desc->outer));
    if (desc->write == FP8FLOW_ACCUMULATE)
        return launch_tiles(c, launch, gemm_fp8_tiles_few_kernel<FP8FLOW_ACCUMULATE>);
    return launch_tiles(c, launch, gemm_fp8_tiles_few_kernel<FP8FLOW_OVERWRITE>);
}
