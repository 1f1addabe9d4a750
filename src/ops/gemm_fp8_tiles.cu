/* gemm_fp8_tiles.cu - gradients of TILE128 operands whose experts have many rows (what is computed:
 * gemm_fp8_tiles.cuh).
 *
 * The products of a tile hide what happens to c, so shared memory belongs to the ring: four stages, a step of
 * gemm_fp8.cuh each.
 *   one warp    walks and brings scale bytes.        one thread  fills the ring of stages.
 *   warpgroups  multiply, and pass their sums on through pieces of 64 x 32 numbers in shared memory, which the copy
 *               engine stores in c or adds to it in L2: each element is added once, so that the order does not matter.
 * Adding in L2 takes as long as the products of some 14 steps: see gemm_fp8_tiles_few.cu.
 */
#include "ops/gemm_cuda.h"
#include "ops/gemm_fp8_tiles.cuh"

enum { PIECE_COLS = 32, PIECES = COLUMNS / PIECE_COLS };

/* Scale bytes of up to WINDOW steps. */
struct slot {
    enum { LEAST_STEPS = 0 };
    tile_window window;
    uint8_t a[LINE], b[2][LINE];

    __device__ void bring(const tile_problem &p, const f8_walk_tile &t, int first)
    {
        int lane = f8_lane(), a_blocks = (p.groups.lines + 127) / 128, b_blocks = (p.groups.columns + 127) / 128;
        int64_t row = p.groups.rows.begin(t.expert) / 128 + first + lane;
        int b_block = t.n / 128;
        a[lane] = __ldg(p.a_scale + row * a_blocks + (t.row - t.expert * p.groups.lines) / 128);
        b[0][lane] = __ldg(p.b_scale + row * b_blocks + b_block);
        b[1][lane] = __ldg(p.b_scale + row * b_blocks + min(b_block + 1, b_blocks - 1));
    }
};

typedef tile_slots<slot> shared_memory;

/* ---- The thread that copies ---- */

__device__ static void produce(const tile_problem &p, const CUtensorMap *a_map, const CUtensorMap *b_map,
                               shared_memory &shared, uint8_t *ring)
{
    uint32_t phases = ~0u; /* a bit per stage */
    f8_position<SLOTS> at = { 0, 0 };
    f8_prefetch_map(a_map);
    f8_prefetch_map(b_map);
    for (;; at.advance()) {
        const tile_window &s = shared.slots[at.at].window;
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
    const tile_problem &p;
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

    __device__ void prepare(int stage)
    {
        clear_rows(stages + stage * STAGE_BYTES, threadIdx.x / 128, slots.get(slots.number).window.rows % STEP);
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
            const f8_walk_tile &t = slots.get(slots.number - 1).window.tile;
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

__device__ static void consume(const tile_problem &p, shared_memory &shared, const uint8_t *ring, uint8_t *boxes,
                               const CUtensorMap *c_map)
{
    int group = __shfl_sync(F8_ALL_LANES, threadIdx.x / 128, 0);
    job work = { p, c_map, f8_smem(ring), f8_smem(boxes) + group * BOXES * BOX_BYTES,
                 read_ring(ring, shared.pipe, group), { shared.pipe, shared.slots, 0 }, false };
    float sum[SUMS];
    for (;;) {
        const tile_window &head = work.slots.wait().window;
        if (head.last) break;
        int rows = __shfl_sync(F8_ALL_LANES, head.rows, 0), steps = steps_of(rows, slot::LEAST_STEPS);
        int live = __shfl_sync(F8_ALL_LANES, rows > 0 && head.tile.row + 64 * group < head.tile.limit, 0);
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
                                                                           const __grid_constant__ tile_problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared_memory shared;
    uint8_t *ring = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024, *boxes = ring + STAGES * STAGE_BYTES;
    if (threadIdx.x < 32) f8_walk_count<tile_walk>(p.groups, shared.cumulative);
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
                                                 const f8_gemm_desc *desc, const f8_gemm_config *config)
{
    tile_launch launch = { x, desc, config, {}, {}, SHARED_BYTES };
    F8_TRY(operand_map(&launch.b_map, x->b->data, desc->inner, x->b->rows, x->b->stride, COLUMNS));
    F8_TRY(gradient_map(&launch.c_map, x->c, desc->experts, desc->outer));
    return launch_tiles(c, launch, gemm_fp8_tiles_kernel);
}
