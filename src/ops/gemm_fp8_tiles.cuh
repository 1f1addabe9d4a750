/* gemm_fp8_tiles.cuh - WGRAD of FP8 operands with one scale per 128 x 128: c_g[N, K] (+)= a_g[m, N]^T * b_g[m, K];
 * what the kernels of gemm_fp8_tiles.cu (many rows per expert) and gemm_fp8_tiles_few.cu (few) share: the walk over
 * tiles of c, the warp that walks and brings scale bytes, the rows that belong to nobody.
 *
 * Both operands lie in column form: a line is a column of the activations, the contraction runs along an expert's rows.
 * Tiles of 128 lines of a x 192 lines of b; per step of 128 rows one scale of a and two of b. Rows of the last step
 * that belong to nobody are cleared in shared memory: they may hold anything.
 *
 * The kernels differ in the ring and in the way to c, and so in what a Slot holds: a
 * `window` and the scale bytes of its steps, and
 *   LEAST_STEPS                       of a tile whose expert has no rows
 *   bring(problem, tile, first)       lane i: the bytes of step first + i
 */
#ifndef F8_OPS_GEMM_FP8_TILES_CUH
#define F8_OPS_GEMM_FP8_TILES_CUH

#include "ops/gemm_fp8.cuh"
#include "ops/launch.cuh"

struct tile_problem {
    f8_walk_lines groups;
    const uint8_t *a_scale, *b_scale; /* per 128 rows: one byte per 128 lines */
    fp8flow_write write;
};

typedef f8_walk<COLUMNS, 1, f8_walk_lines> tile_walk;

/* What the warpgroups work on until the next slot: up to WINDOW steps of a tile. */
struct tile_window {
    f8_walk_tile tile;
    int first, steps, last; /* steps of this slot; `last`: the end of the walk */
    int begin, rows;        /* the expert's rows: the contraction */
};

template <class Slot> struct tile_slots {
    pipeline pipe;
    int32_t cumulative[F8_GEMM_MAX_EXPERTS + 1];
    f8_walk_tile current; /* of the warp that walks */
    Slot slots[SLOTS];
};

__device__ static inline int steps_of(int rows, int least)
{
    int steps = (rows + STEP - 1) / STEP;
    return least > 0 ? max(least, steps) : steps;
}

/* The warp that walks: a slot for every window of steps, lane i brings the bytes of step i. */
template <class Slot> __device__ static void bring(const tile_problem &p, tile_slots<Slot> &shared)
{
    tile_walk tiles(p.groups, shared.cumulative);
    f8_position<SLOTS> at = { 0, 1 };
    f8_walk_tile &t = shared.current;
    for (bool more = true; more;) {
        __syncwarp();
        more = tiles.next(&t);
        __syncwarp();
        int rows = more ? p.groups.rows.used(t.expert) : 0, first = 0;
        int steps = more ? steps_of(rows, Slot::LEAST_STEPS) : 0;
        do {
            Slot *slot = &shared.slots[at.at];
            tile_window *to = &slot->window;
            int count = min(WINDOW, steps - first);
            f8_barrier_wait(&shared.pipe.taken[at.at], at.phase);
            if (f8_lane() == 0) {
                to->first = first, to->steps = count, to->last = !more, to->rows = rows;
                if (more) to->tile = t, to->begin = p.groups.rows.begin(t.expert);
            }
            if (more && f8_lane() < count) slot->bring(p, t, first);
            f8_barrier_arrive(&shared.pipe.ready[at.at]);
            at.advance();
            first += WINDOW;
        } while (first < steps);
    }
}

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

/* One warpgroup: rows of a stage that are not the expert's become 0 in its lines of a and in all lines of b (both
 * warpgroups clear these: the same bytes). */
__device__ static inline void clear_rows(uint32_t stage_at, int group, int valid)
{
    clear_tail(stage_at + group * 64 * STEP, 64, valid);
    clear_tail(stage_at + A_BYTES, COLUMNS, valid);
    f8_async_fence();
    f8_named_barrier(1 + group, 128);
}

static inline tile_problem describe_tiles(const fp8flow_gemm_args *x, const f8_gemm_desc &d,
                                          const f8_gemm_config &config)
{
    tile_problem p = {};
    p.groups.rows.offset = x->groups ? x->groups->offset : NULL;
    p.groups.rows.rows = x->groups ? x->groups->rows : NULL;
    p.groups.rows.capacity = (int32_t)d.rows;
    p.groups.experts = p.groups.rows.experts = (int32_t)d.experts;
    p.groups.columns = (int32_t)d.inner, p.groups.lines = (int32_t)d.outer, p.groups.band = config.band;
    p.groups.empty_untouched = x->write == FP8FLOW_ACCUMULATE;
    p.a_scale = (const uint8_t *)x->a->scale, p.b_scale = (const uint8_t *)x->b->scale;
    p.write = x->write;
    return p;
}

/* Maps of b and c and the kernel are what differs. */
struct tile_launch {
    const fp8flow_gemm_args *args;
    const f8_gemm_desc *desc;
    const f8_gemm_config *config;
    CUtensorMap b_map, c_map;
    int shared_bytes;
};

template <class Kernel> static fp8flow_status launch_tiles(fp8flow_context *c, const tile_launch &x, Kernel *kernel)
{
    CUtensorMap a_map;
    int blocks;
    const fp8flow_tensor *a = x.args->a;
    tile_problem p = describe_tiles(x.args, *x.desc, *x.config);
    F8_TRY(operand_map(&a_map, a->data, x.desc->outer, a->rows, a->stride, F8_WALK_ROWS));
    F8_TRY(f8_multiprocessors("gemm", &blocks));
    f8_allow_shared(kernel, x.shared_bytes);
    kernel<<<blocks, THREADS, x.shared_bytes, f8_stream(c)>>>(a_map, x.b_map, x.c_map, p);
    return f8_launched("gemm");
}

#endif
