/* walk.cuh - blocks that stay on their SM and walk along row blocks: ROW128 lines, gathered, to TILE128 columns.
 *
 * Against one block per tile (shift.cuh): what belongs to a row (group, source, token) is fetched once per row block,
 * the codes of the next tile arrive while this one is worked on, and both forms leave shared memory through
 * the copy engine, not through registers. All lines are whole pieces of 16 bytes, row blocks hold 128 rows.
 *
 * A thread has the same patch as in shift.cuh. Of a tile of columns the copy engine
 * takes line i * 8 + g for column 16 g + i, with the 128-byte swizzle: piece p of that line lies at p ^ g, which is
 * the order that f8_store_columns has, free of bank conflicts.
 */
#ifndef F8_OPS_WALK_CUH
#define F8_OPS_WALK_CUH

#include "ops/hopper.cuh"
#include "ops/shift.cuh"
#include "ops/tensor_map.cuh"

enum { F8_TILE_BYTES = F8_BLOCK * F8_BLOCK, F8_COL_GROUP = 16 };

/* Who brings the codes of a tile: threads their patches, the copy engine whole boxes or 128 bytes of a line each. */
enum f8_walk_loads { F8_BY_THREADS, F8_BY_BOXES, F8_BY_LINES };

/* Boxes of a tile in both forms; `x` for F8_BY_BOXES only. */
struct f8_walk_maps {
    CUtensorMap columns, rows, x;
};

/* The rest of a column form with TILE128 scales; `slab`: see f8_walk; policy of both stores: F8_EVICT_FIRST keeps the
 * lines that are gathered again in L2. */
struct f8_walk_output {
    uint8_t *scale;
    uint64_t *histogram;
    int col_blocks, slab;
    uint64_t policy;
};

/* The row store needs a second stage: it still reads this tile while the next one arrives. */
template <int stages> struct f8_walk_shared {
    alignas(1024) uint8_t stage[stages][F8_TILE_BYTES];
    f8_shift_shared shift; /* columns at a multiple of 1024 bytes, as the swizzle wants */
    uint64_t full[stages]; /* barriers: what the copy engine was told to bring is there */
};

/* ---- The order of tiles ---- */

/* Slabs of `slab` columns of tiles, one after the other: blocks that gather the same tokens find them in L2. Every
 * block has an equal share of a slab, tiles side by side, then the next row block; a run is what lies in one. */
struct f8_walk {
    int first_block, row_blocks, col_blocks, slab;
    int first_col, end_col; /* of this slab */
    int left;               /* tiles of this share, with this one; 0: the walk is over */
    int block, col, run_col;
};

/* The share of the first slab from column `col` on that is not empty. Blocks change shares between slabs so that
 * the larger ones go round. */
__device__ static inline void f8_walk_find(f8_walk &w, int col)
{
    w.left = 0;
    for (; w.left == 0 && col < w.col_blocks; col += w.slab) {
        w.first_col = col, w.end_col = min(col + w.slab, w.col_blocks);
        unsigned width = (unsigned)(w.end_col - col), tiles = (unsigned)w.row_blocks * width;
        unsigned share = (blockIdx.x + (unsigned)col) % gridDim.x;
        unsigned begin = (unsigned)((uint64_t)tiles * share / gridDim.x);
        w.left = (int)((unsigned)((uint64_t)tiles * (share + 1) / gridDim.x) - begin);
        w.block = w.first_block + (int)(begin / width);
        w.run_col = w.col = col + (int)(begin % width);
    }
}

__device__ static inline void f8_walk_step(f8_walk &w)
{
    if (--w.left == 0) f8_walk_find(w, w.first_col + w.slab);
    else if (++w.col == w.end_col) w.run_col = w.col = w.first_col, w.block++;
}

/* ---- One tile ---- */

/* Lanes that have the same four rows, and so columns of tiles whose scales are fetched at a time. */
enum { F8_CHUNK = 8 };

/* What is known of a tile before its codes have come: block -1: there is none; it is number `slot` of a chunk of
 * `count` tiles side by side. Lane g of eight holds the scale bytes of its rows in tile g of the chunk: one request
 * per row and chunk, not one per row and tile. */
struct f8_coming_tile {
    int block, col, slot, count;
    uint32_t scale[4];
};

/* 16 bytes to shared memory, or 16 zeros for bytes 0: then nothing is read. */
__device__ static inline void f8_copy_async16(void *to, const void *from, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(f8_smem(to)), "l"(from), "r"(bytes) : "memory");
}

__device__ static inline void f8_copy_async_wait()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* The codes of the thread's patch, which begins at column `col` of the tensor. */
template <class Rows>
__device__ static inline void f8_fetch_patch(const Rows &rows, int col, const int token[4], uint8_t *stage)
{
    /* A 32-bit stride makes an address one instruction. */
    const int stride = (int)rows.x.stride, bytes = col < (int)rows.x.cols ? 16 : 0;
    const uint8_t *from = (const uint8_t *)rows.x.data + col;
    uint8_t *to = stage + f8_patch_row() * F8_BLOCK + f8_patch_col();
#pragma unroll
    for (int r = 0; r < 4; r++)
        f8_copy_async16(to + r * F8_BLOCK, from + (int64_t)token[r] * stride, token[r] < 0 ? 0 : bytes);
}

/* Four of eight lanes ask for one line each; zeros where there is nothing to copy come from the threads. */
template <class Rows>
__device__ static inline void f8_fetch_lines(const Rows &rows, int first_col, const int token[4], uint8_t *stage,
                                             uint64_t *full)
{
    const int lane = (int)threadIdx.x % F8_CHUNK, bytes = min(F8_BLOCK, (int)rows.x.cols - first_col);
    uint8_t *line = stage + f8_patch_row() * F8_BLOCK;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        if (token[r] < 0 || f8_patch_col() >= bytes)
            *(uint4 *)(line + r * F8_BLOCK + f8_patch_col()) = make_uint4(0, 0, 0, 0);
    }
    if (lane >= 4) return;
    int own = lane == 0 ? token[0] : lane == 1 ? token[1] : lane == 2 ? token[2] : token[3];
    f8_barrier_expect(full, own < 0 ? 0 : (uint32_t)bytes);
    const uint8_t *from = (const uint8_t *)rows.x.data + (int64_t)own * rows.x.stride + first_col;
    if (own >= 0) f8_copy_bulk(line + lane * F8_BLOCK, from, (uint32_t)bytes, full);
}

/* Asks for the codes and scales of the tile that the walk has come to, and steps on. */
template <class Rows>
__device__ static inline void f8_fetch_tile(const Rows &rows, const CUtensorMap *x_map, f8_walk &walk, int token[4],
                                            f8_coming_tile &tile, uint8_t *stage, uint64_t *full)
{
    tile.block = -1;
    if (walk.left == 0) return;
    if (walk.col == walk.run_col) rows.find_tokens(walk.block, token);
    tile.block = walk.block, tile.col = walk.col, tile.slot = (walk.col - walk.run_col) % F8_CHUNK;
    const int first_col = walk.col * F8_BLOCK;
    if constexpr (Rows::loads == F8_BY_THREADS) f8_fetch_patch(rows, first_col + f8_patch_col(), token, stage);
    else if constexpr (Rows::loads == F8_BY_LINES) f8_fetch_lines(rows, first_col, token, stage, full);
    else if (threadIdx.x == 0) {
        f8_barrier_expect(full, F8_TILE_BYTES);
        f8_copy_tile(stage, x_map, full, first_col, walk.block * F8_BLOCK);
    }
    if (tile.slot == 0) {
        int lane = (int)threadIdx.x % F8_CHUNK;
        const uint8_t *scale = (const uint8_t *)rows.x.scale + walk.col + lane;
        tile.count = min(F8_CHUNK, min(walk.left, walk.end_col - walk.col));
#pragma unroll
        for (int r = 0; r < 4; r++)
            tile.scale[r] =
                token[r] < 0 || lane >= tile.count ? 1 : __ldg(scale + (int64_t)token[r] * walk.col_blocks);
    }
    f8_walk_step(walk);
}

/* A box has the padding rows too: they count as zeros. */
template <f8_walk_loads loads>
__device__ static inline void f8_read_stage(const uint8_t *stage, const int token[4], f8_patch &p)
{
    const uint8_t *from = stage + f8_patch_row() * F8_BLOCK + f8_patch_col();
#pragma unroll
    for (int r = 0; r < 4; r++) {
        uint4 codes = *(const uint4 *)(from + r * F8_BLOCK);
        if (loads == F8_BY_BOXES && token[r] < 0) codes = make_uint4(0, 0, 0, 0);
        f8_set_row(p, r, codes);
    }
}

/* A transposed patch to the lines that the map of columns expects. */
__device__ static inline void f8_write_lines(const f8_patch &p, f8_shift_shared &shared)
{
    unsigned quad = threadIdx.x / 8, group = threadIdx.x % 8;
    uint32_t *to = shared.columns + group * F8_QUADS + (quad ^ group * 4);
#pragma unroll
    for (int i = 0; i < F8_COL_GROUP; i++) to[i * 8 * F8_QUADS] = p.code[i % 4][i / 4];
}

/* ---- The kernel ---- */

/* Rows: x; loads; the row blocks; find_tokens: the rows of x for this thread's patch, -1 for padding; begin_chunk:
 * what else is to be done once per chunk; has_rows: whether maps.rows is a row form to be written. */
template <fp8flow_dtype dtype, int stages, int per_sm, class Rows>
__global__ static void __launch_bounds__(F8_SHIFT_THREADS, per_sm)
    f8_walk_kernel(Rows rows, const __grid_constant__ f8_walk_maps maps, f8_walk_output out)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    f8_walk_shared<stages> &shared = *(f8_walk_shared<stages> *)memory;
    const int thread = (int)threadIdx.x;
    f8_walk walk = rows.blocks_of_walk();
    walk.col_blocks = out.col_blocks, walk.slab = out.slab;
    f8_walk_find(walk, 0);
    if (thread < F8_SHIFT_BINS) shared.shift.histogram[thread] = 0;
    if (Rows::loads != F8_BY_THREADS) {
        const int arrivals = Rows::loads == F8_BY_LINES ? F8_BLOCK : 1; /* those who ask for something */
        if (thread < stages) f8_barrier_init(&shared.full[thread], arrivals);
        f8_barrier_fence();
        __syncthreads();
    }
    int token[4], stage = 0;
    uint32_t phase = 0;
    f8_coming_tile next;
    f8_fetch_tile(rows, &maps.x, walk, token, next, shared.stage[0], &shared.full[0]);
    while (next.block >= 0) {
        const int block = next.block, col = next.col;
        f8_patch patch;
        if (Rows::loads == F8_BY_THREADS) f8_copy_async_wait();
        else f8_barrier_wait(&shared.full[stage], phase);
        f8_read_stage<Rows::loads>(shared.stage[stage], token, patch);
#pragma unroll
        for (int r = 0; r < 4; r++) patch.scale[r] = __shfl_sync(F8_ALL_LANES, next.scale[r], next.slot, F8_CHUNK);
        if (next.slot == 0) rows.begin_chunk(next, token, out.col_blocks);
        if (stages > 1) f8_async_fence(); /* of the copies, for the row store */
        if (thread == 0) f8_store_wait_read<0>();
        /* Behind the barrier in here the lines of the last tile and its stage are free. */
        uint32_t target = f8_tile_target(patch, shared.shift);
        if (thread == 0) {
            if (stages > 1 && rows.has_rows())
                f8_store_tile(&maps.rows, shared.stage[stage], col * F8_BLOCK, block * F8_BLOCK, out.policy);
            out.scale[(int64_t)block * out.col_blocks + col] = (uint8_t)target;
        }
        if (++stage == stages) stage = 0, phase ^= 1;
        f8_fetch_tile(rows, &maps.x, walk, token, next, shared.stage[stage], &shared.full[stage]);
        if (out.histogram) f8_count_rows<dtype>(patch, target, shared.shift);
        f8_shift_rows<dtype>(patch, target);
        f8_transpose_patch(patch);
        f8_write_lines(patch, shared.shift);
        f8_async_fence();
        __syncthreads();
        if (thread == 0) {
            f8_store_box(&maps.columns, shared.shift.columns, block * F8_BLOCK, col * (F8_BLOCK / F8_COL_GROUP),
                         out.policy);
            f8_store_commit();
        }
    }
    if (thread == 0) f8_store_wait_read<0>();
    if (!out.histogram) return;
    __syncthreads();
    if (thread < F8_SHIFT_BINS && shared.shift.histogram[thread])
        atomicAdd((unsigned long long *)out.histogram + thread, (unsigned long long)shared.shift.histogram[thread]);
}

/* ---- The launch ---- */

/* Lines of columns in the order of f8_write_lines: row, group of 16 columns, column of the group. */
static inline fp8flow_status f8_map_columns(const char *op, const fp8flow_tensor *columns, CUtensorMap *map)
{
    cuuint64_t stride = (cuuint64_t)columns->stride;
    f8_box_shape shape = { 3,
                           { (cuuint64_t)columns->rows, (cuuint64_t)columns->cols / F8_COL_GROUP, F8_COL_GROUP },
                           { stride * F8_COL_GROUP, stride },
                           { F8_BLOCK, F8_BLOCK / F8_COL_GROUP, F8_COL_GROUP },
                           CU_TENSOR_MAP_SWIZZLE_128B };
    return f8_tensor_map(op, map, columns->data, shape);
}

/* Lines of a row form as they are. */
static inline fp8flow_status f8_map_rows(const char *op, const fp8flow_tensor *rows, CUtensorMap *map)
{
    f8_box_shape shape = { 2,
                           { (cuuint64_t)rows->cols, (cuuint64_t)rows->rows },
                           { (cuuint64_t)rows->stride },
                           { F8_BLOCK, F8_BLOCK },
                           CU_TENSOR_MAP_SWIZZLE_NONE };
    return f8_tensor_map(op, map, rows->data, shape);
}

/* Whether a walk can read these lines; that they are whole pieces of 16 bytes is known. */
static inline bool f8_is_walkable(const fp8flow_tensor *x)
{
    return x->stride <= INT32_MAX && x->cols <= INT32_MAX - F8_BLOCK;
}

/* Columns of tiles in a slab: `tokens` lines of it, which are gathered several times, fit well into L2. */
static inline int f8_walk_slab(int64_t tokens, int64_t col_blocks)
{
    const int64_t most_bytes = 8 << 20, fewest = 4;
    int64_t widest = tokens ? most_bytes / (tokens * F8_BLOCK) : 0;
    if (widest < fewest) widest = fewest;
    return (int)f8_ceil_div(col_blocks, f8_ceil_div(col_blocks, widest));
}

template <fp8flow_dtype dtype, int stages, int per_sm, class Rows>
static inline fp8flow_status f8_walk_launch(const char *op, cudaStream_t stream, const Rows &rows,
                                            const f8_walk_maps &maps, const f8_walk_output &out)
{
    int multiprocessors;
    F8_TRY(f8_multiprocessors(op, &multiprocessors));
    auto kernel = f8_walk_kernel<dtype, stages, per_sm, Rows>;
    const int bytes = (int)sizeof(f8_walk_shared<stages>);
    f8_allow_shared(kernel, bytes);
    kernel<<<(unsigned)(multiprocessors * per_sm), F8_SHIFT_THREADS, bytes, stream>>>(rows, maps, out);
    return f8_launched(op);
}

#endif
