/* gemm_wgrad_c.cu - the weight gradient of TILE128 operands with few rows per expert, where c's way through memory
 * binds: c_g[N, K] (+)= a_g[m, N]^T * b_g[m, K] with all of a tile of c in shared memory beside the ring of stages.
 *
 * Tiles of 128 lines x 192 columns, steps of 128 rows as in ops/gemm_fp8.cuh, but the ring goes on from tile to tile: a
 * tile of six steps that began at the first stage would find its operands late. Each of the eight multiplying warps has
 * 16 lines of c to itself, in pieces of 32 * groups columns. While the products of a tile run, its lane 0 asks for
 * the pieces, one a step; when they are done and the next tile's first products run, the warp adds its sums to them and
 * lane 0 stores them; before it asks for the next ones the stores must have been read, one step later. No warp waits
 * for another. Lines of b lie permuted in shared memory (a 5-D tensor map does it), so that a lane has 8 neighbouring
 * columns in a row of 32 and reads and writes whole 16-byte pieces without bank conflicts.
 *
 * Bounds at 4.2 TB/s, 8 bytes per element of c when adding, operands once (TFLOP/s; in brackets the goal):
 *   V2-Lite   wgrad1 3191 MB 760 us 744 (682), wgrad2 1646 MB 392 us 722 (716); at the 3.94 TB/s of the best pattern of
 *             lab/accumulate 698, 677
 *   V3 small  wgrad1 1950 MB 464 us 793 (757), wgrad2 997 MB 237 us 775 (675); at 3.94 TB/s 744, 727
 *   Overwriting: 1715 MB 408 us 1386 (948), 908 MB 216 us 1309 (995): bound by the products, 1250 at best.
 *
 * Long for a reason: versions of one kernel, which share all but a few lines, and the checks of each.
 */
#include <cudaTypedefs.h>

#include "ops/gemm_cuda.h"
#include "ops/gemm_fp8.cuh"
#include "ops/gemm_wgrad_sums.cuh"
#include "gemm_wgrad_data.cuh"

enum { GROUP_COLS = 32, GROUP_LINES = 16, GROUP_BYTES = GROUP_LINES * 128, TILE_GROUPS = COLUMNS / GROUP_COLS };
enum { WARPS = 4 * GROUPS };

/* What is left out, to see what binds. */
enum part_left { WHOLE, WITHOUT_PRODUCTS, WITHOUT_C };

/* stages: of the ring; groups: of 32 columns per piece of c, 0: c is written from registers. */
template <int stages_, int groups_, part_left left_ = WHOLE, fp8flow_write write_ = FP8FLOW_OVERWRITE> struct layout {
    typedef layout<stages_, groups_, left_, FP8FLOW_ACCUMULATE> adding;
    static const fp8flow_write write = write_;
    static const int stages = stages_, groups = groups_, pieces = groups ? TILE_GROUPS / groups : 0;
    static const part_left left = left_;
    static const int piece_bytes = groups * GROUP_BYTES, warp_bytes = pieces * piece_bytes;
    static const int lane_columns = groups ? 8 : 4; /* neighbouring columns of c whose sums one lane holds */
    static const int bytes = 1024 + stages * STAGE_BYTES + WARPS * warp_bytes;
    static_assert(stages <= STAGES, "barriers of the pipeline");
    static_assert(bytes + 6 * 1024 <= 232448, "shared memory of a block");
};

struct gradient {
    f8_walk_lines groups;
    const uint8_t *a_scale, *b_scale; /* per 128 rows: one byte per 128 lines */
    float *c;
    int64_t c_stride;
    int32_t once; /* c is the first to leave L2 */
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
    uint64_t arrived[WARPS][TILE_GROUPS]; /* pieces of c */
    int32_t cumulative[F8_GEMM_MAX_EXPERTS + 1];
    f8_walk_tile current; /* of the warp that walks */
    slot slots[SLOTS];
};

/* ---- Copies of c ---- */

__device__ static inline void copy_piece(uint32_t to, const CUtensorMap *map, uint32_t barrier, int line, int group,
                                         int expert, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(0), "r"(line), "r"(group), "r"(expert), "l"(policy)
                 : "memory");
}

__device__ static inline void store_piece(const CUtensorMap *map, uint32_t from, int line, int group, int expert,
                                          uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group.L2::cache_hint "
                 "[%0, {%2, %3, %4, %5}], [%1], %6;" ::"l"(map),
                 "r"(from), "r"(0), "r"(line), "r"(group), "r"(expert), "l"(policy)
                 : "memory");
}

__device__ static inline void expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ static inline uint64_t policy_of(const gradient &p)
{
    if (p.once) return f8_policy_once();
    uint64_t normal;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(normal));
    return normal;
}

/* ---- The warp that walks and brings scales ---- */

/* Steps of a tile; without rows one, of which all is cleared. */
__device__ static inline int steps_of(int rows)
{
    return max(1, (rows + STEP - 1) / STEP);
}

/* Lane i: the bytes of step first + i. */
__device__ static void bring_window(const gradient &p, const f8_walk_tile &t, int first, int steps, slot *to)
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

__device__ static void bring(const gradient &p, shared_memory &shared)
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

template <class L>
__device__ static void produce(const gradient &p, const CUtensorMap *a_map, const CUtensorMap *b_map,
                               shared_memory &shared, uint8_t *stages)
{
    f8_position<L::stages> ring = { 0, 1 };
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
            f8_copy_tile_5d(a + A_BYTES, b_map, full, row, s.tile.n / (4 * L::lane_columns));
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
template <class L> struct worker {
    const gradient &p;
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
        return stages + L::stages * STAGE_BYTES + threadIdx.x / 32 * L::warp_bytes + i * L::piece_bytes;
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
        if (L::left == WITHOUT_PRODUCTS) return;
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
        if (L::left != WITHOUT_PRODUCTS) f8_products_wait<0>();
        ring.release(stage);
        stage = stage + 1 == L::stages ? 0 : stage + 1;
        if (L::left != WITHOUT_PRODUCTS) promote<0, most>(sum, part, factor);
        ring.ready = false;
        if (more) ring.ask(stage);
        if (L::left != WITHOUT_PRODUCTS) promote<most, SUMS>(sum, part, factor);
    }

    __device__ static float scale(uint8_t byte) { return __uint_as_float((uint32_t)byte << 23); }

    /* Piece `i` of the tile's c is asked for. */
    __device__ void ask_piece(int i)
    {
        if (f8_lane() == 0) {
            if (i == 0) f8_store_wait_read<0>();
            if (L::write == FP8FLOW_ACCUMULATE && L::left != WITHOUT_C) {
                const f8_walk_tile &t = slots.get(slots.number).tile;
                expect(arrived(i), L::piece_bytes);
                copy_piece(piece(i), c_map, arrived(i), line(t),
                           t.n / GROUP_COLS + i * L::groups, t.expert, policy_of(p));
            }
        }
        __syncwarp();
    }

    /* Sums of two lines join what lies at `at`, or replace it. */
    __device__ void join(uint32_t at, float4 low, float4 high)
    {
        if (L::write == FP8FLOW_ACCUMULATE) {
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
        bool in_memory = L::left != WITHOUT_C;
        if (L::write == FP8FLOW_ACCUMULATE && in_memory) f8_barrier_wait(arrived(i), c_phase);
#pragma unroll
        for (int g = 0; g < 2 * L::groups; g++) {
            int x = 2 * i * L::groups + g;
            join((mine ^ g % 2 * 16) + g / 2 * GROUP_BYTES, quad(sum, x, 0), quad(sum, x, 1));
        }
        f8_async_fence();
        __syncwarp();
        if (f8_lane() != 0 || !in_memory) return;
        store_piece(c_map, at, line(t), t.n / GROUP_COLS + i * L::groups, t.expert, policy_of(p));
        f8_store_commit();
    }

    template <int i> __device__ void pass_on_all(const f8_walk_tile &t, const float (&sum)[SUMS])
    {
        if constexpr (i < L::pieces) {
            pass_on<i>(t, sum);
            pass_on_all<i + 1>(t, sum);
        }
    }

    /* From registers: overwrites. */
    __device__ void write(const f8_walk_tile &t, const float (&sum)[SUMS])
    {
        int row = line(t) + f8_lane() / 4, column = t.n + f8_lane() % 4 * 4;
        float *at = p.c + ((int64_t)t.expert * p.groups.lines + row) * p.c_stride + column;
#pragma unroll
        for (int i = 0; i < 2 * TILE_GROUPS; i++)
            if (column + 16 * i < p.groups.columns) {
                if (row < p.groups.lines) __stcs((float4 *)(at + 16 * i), quad(sum, i, 0));
                if (row + 8 < p.groups.lines) __stcs((float4 *)(at + 8 * p.c_stride + 16 * i), quad(sum, i, 1));
            }
    }

    /* The tile before. Lane 0 has seen its stores of the one before that read: all may write. */
    __device__ void finish(float (&sum)[SUMS])
    {
        if (slots.number > 0) {
            const f8_walk_tile &t = slots.get(slots.number - 1).tile;
            __syncwarp();
            if (L::groups > 0) pass_on_all<0>(t, sum);
            else write(t, sum);
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
            if (asked < L::pieces) ask_piece(asked++);
            end(part, sum, step, step + 1 < steps);
        }
#pragma unroll 1
        while (asked < L::pieces) ask_piece(asked++);
    }
};

template <class L>
__device__ static void consume(const gradient &p, shared_memory &shared, const uint8_t *stages,
                               const CUtensorMap *c_map)
{
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    worker<L> work = { p, c_map, shared, f8_smem(stages), read_ring(stages, shared.pipe, group),
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

template <class L>
__global__ __launch_bounds__(THREADS, 1) static void gradient_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                     const __grid_constant__ CUtensorMap b_map,
                                                                     const __grid_constant__ CUtensorMap c_map,
                                                                     const __grid_constant__ gradient p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared_memory shared;
    uint8_t *stages = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    if (threadIdx.x < 32) f8_walk_count<walk>(p.groups, shared.cumulative);
    if (threadIdx.x == 32) {
        for (int i = 0; i < WARPS * TILE_GROUPS; i++) f8_barrier_init(&shared.arrived[0][0] + i, 1);
        shared.pipe.init(32);
    }
    __syncthreads();
    if (threadIdx.x / 128 == GROUPS) {
        f8_registers_less<PRODUCER_REGISTERS>();
        if (threadIdx.x % 128 == 0) produce<L>(p, &a_map, &b_map, shared, stages);
        if (threadIdx.x % 128 / 32 == 1) bring(p, shared);
    } else {
        f8_registers_more<CONSUMER_REGISTERS>();
        consume<L>(p, shared, stages, &c_map);
    }
}

/* ---- Launch ---- */

static void must(fp8flow_status status)
{
    if (status != FP8FLOW_OK) std::printf("%s\n", fp8flow_last_error()), std::exit(1);
}

/* Lines of b in the order that gives lane q of four the columns w q .. w q + w - 1 of 4 w: line 8h + 2q + i of a group
 * in shared memory is line w q + 2h + i of the tensor. */
static CUtensorMap map_b(const operands &o, int w)
{
    CUtensorMap map;
    cuuint64_t line = (cuuint64_t)o.capacity, count = (cuuint64_t)o.p.k / (4 * w), pairs = (cuuint64_t)w / 2;
    f8_box_shape shape = { 5,
                           { line, 2, 4, pairs, count },
                           { line, w * line, 2 * line, 4 * w * line },
                           { STEP, 2, 4, (cuuint32_t)pairs, (cuuint32_t)(COLUMNS / (4 * w)) },
                           CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_DATA_TYPE_UINT8,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
    must(f8_tensor_map("lab", &map, (void *)o.b, shape));
    return map;
}

/* Columns of a group, lines of an expert, groups, experts. */
static CUtensorMap map_c(const problem &p, int groups)
{
    CUtensorMap map;
    cuuint64_t line = (cuuint64_t)p.c_stride * 4;
    f8_box_shape shape = { 4,
                           { GROUP_COLS, (cuuint64_t)p.n, (cuuint64_t)p.k / GROUP_COLS, (cuuint64_t)p.experts },
                           { line, 4 * GROUP_COLS, line * p.n },
                           { GROUP_COLS, GROUP_LINES, (cuuint32_t)groups, 1 },
                           CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
    must(f8_tensor_map("lab", &map, p.c, shape));
    return map;
}

template <class L, int band, int once> static result run(const operands &o, fp8flow_write write, int)
{
    if (L::groups == 0 && write == FP8FLOW_ACCUMULATE) return not_run;
    problem p = o.p;
    p.write = write;
    gradient g = {};
    g.groups.rows = { p.offset, p.rows, p.experts, (int32_t)o.capacity };
    g.groups.experts = p.experts, g.groups.columns = p.k, g.groups.lines = p.n, g.groups.band = band;
    g.groups.empty_untouched = write == FP8FLOW_ACCUMULATE;
    g.a_scale = (const uint8_t *)p.a_scale, g.b_scale = (const uint8_t *)p.b_scale;
    g.c = p.c, g.c_stride = p.c_stride, g.once = once;
    CUtensorMap a_map, b_map = map_b(o, L::lane_columns), c_map = map_c(p, L::groups ? L::groups : 1);
    must(operand_map(&a_map, (void *)o.a, p.n, o.capacity, o.capacity, F8_WALK_ROWS));
    auto kernel = write == FP8FLOW_ACCUMULATE ? gradient_kernel<typename L::adding> : gradient_kernel<L>;
    LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::bytes));
    auto launch = [&](cudaStream_t stream) {
        kernel<<<132, THREADS, L::bytes, stream>>>(a_map, b_map, c_map, g);
        LAB_TRY(cudaGetLastError());
    };
    return measure(o, p, launch);
}

/* ops/gemm_fp8_tiles.cu. */
static result run_library(const operands &o, fp8flow_write write, int)
{
    problem p = o.p;
    p.write = write;
    fp8flow_context_options options = { FP8FLOW_CUDA, 0, 0, NULL };
    fp8flow_context *context;
    fp8flow_groups groups = { p.experts, p.offset, p.rows };
    const fp8flow_dtype code = FP8FLOW_E4M3;
    fp8flow_tensor a = { o.capacity, p.n, o.capacity, 0, code, FP8FLOW_TILE128, FP8FLOW_COLUMNS, (void *)o.a,
                         (void *)p.a_scale };
    fp8flow_tensor b = { o.capacity, p.k, o.capacity, 0, code, FP8FLOW_TILE128, FP8FLOW_COLUMNS, (void *)o.b,
                         (void *)p.b_scale };
    fp8flow_tensor c = { (int64_t)p.experts * p.n, p.k, p.c_stride, p.n, FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS,
                         p.c, NULL };
    fp8flow_gemm_args args = { FP8FLOW_WGRAD, write, &groups, &a, &b, &c };
    f8_gemm_config config = { F8_GEMM_FP8_TILES, 128, 192, 128, 4, 1, 16 };
    must(fp8flow_context_create(&options, &context));
    result r = measure(o, p, [&](cudaStream_t s) {
        context->stream = s;
        must(f8_cuda_gemm_fp8_tiles(context, &args, &config));
    });
    fp8flow_context_destroy(context);
    return r;
}

/* TFLOP/s predicted: V2-Lite wgrad1 adding, overwriting. */
static const version versions[] = {
    /* predict 435, 730: measured. */
    { "library", run_library, 0, FP8FLOW_TILE128 },
    /* predict 640, 1000: 3.75 TB/s as the slots of lab/accumulate, runs of 768 bytes; c asked for at once may keep
     * operands waiting in the copy engine. */
    { "w6 a piece of 192 columns", run<layout<3, 6>, 16, 1>, 0, FP8FLOW_TILE128 },
    /* predict 650, 1000: asked for in three steps, runs of 256 bytes. */
    { "w2 pieces of 64 columns", run<layout<3, 2>, 16, 1>, 0, FP8FLOW_TILE128 },
    /* predict 630, 980: in six steps, runs of 128 bytes; more instructions. */
    { "w1 pieces of 32 columns", run<layout<3, 1>, 16, 1>, 0, FP8FLOW_TILE128 },
    /* predict 660, 1000: neighbouring blocks have neighbouring columns: whole lines of c pass at about one time. */
    { "w2 columns first", run<layout<3, 2>, 1, 1>, 0, FP8FLOW_TILE128 },
    /* predict 630, 990: operands leave L2 more often. */
    { "w2 c stays in L2 as long as operands", run<layout<3, 2>, 16, 0>, 0, FP8FLOW_TILE128 },
    /* predict -, 950: a stage more and no way through shared memory, but products wait for stores. */
    { "d  four stages, from registers", run<layout<4, 0>, 16, 1>, 0, FP8FLOW_TILE128 },
};

/* Wrong on purpose: what binds. */
static const version limits[] = {
    /* predict 670, 1300: the traffic alone. */
    { "w2 without products", run<layout<3, 2, WITHOUT_PRODUCTS>, 16, 1>, 0, FP8FLOW_TILE128 },
    /* predict 650, 1300: the same in one piece a tile. */
    { "w6 without products", run<layout<3, 6, WITHOUT_PRODUCTS>, 16, 1>, 0, FP8FLOW_TILE128 },
    /* predict 1100, 1100: the products and the way through shared memory. */
    { "w2 without c", run<layout<3, 2, WITHOUT_C>, 16, 1>, 0, FP8FLOW_TILE128 },
};

static const shape few_rows[] = {
    { "small", 8, 0, 384, 384, 0, FP8FLOW_TILE128, 0 },
    { "small, short last blocks", 8, 0, 272, 416, 3, FP8FLOW_TILE128, 0 },
    { "small, scales far apart", 8, 0, 400, 288, 60, FP8FLOW_TILE128, 0 },
    { "V2-Lite wgrad1", 64, 768, 2816, 2048, 0, FP8FLOW_TILE128, 1 },
    { "V2-Lite wgrad2", 64, 768, 2048, 1408, 0, FP8FLOW_TILE128, 1 },
    { "V3 small wgrad1", 8, 768, 4096, 7168, 0, FP8FLOW_TILE128, 1 },
    { "V3 small wgrad2", 8, 768, 7168, 2048, 0, FP8FLOW_TILE128, 1 },
    { "V3 wgrad2", 8, 4096, 7168, 2048, 0, FP8FLOW_TILE128, 1 },
};

static const shape limiting[] = { { "V2-Lite wgrad1", 64, 768, 2816, 2048, 0, FP8FLOW_TILE128, 1 } };

int main()
{
    run_guarded(versions, few_rows);
    return run_guarded(limits, limiting);
}
