/* swiglu_tile.cuh - row form and column form of a 128 x 128 tile from one computation: what the fused kernels of
 * swiglu and swiglu_backward share.
 *
 * One block of 512 threads per multiprocessor; tiles go round the blocks, so that all of them work in one part of
 * memory. Warp w has the strip of rows 8w .. 8w + 7; its lane l owns the patch of rows 8w + 4(l/16) + 0..3 and columns
 * 8(l%16) + 0..7:
 *   - a row of the patch is 16 bytes of BF16 and 8 bytes of codes; 16 lanes share a row of 256 and 128 bytes;
 *   - four rows of a column are the four bytes of one word of the column form: no transpose of bytes is needed.
 * A warp asks the copy engine for its strip of the next tile as soon as it has read this one's: no other warp is
 * concerned. Values stay in registers in FP32 until the scale of the tile is known (barrier 1); column words go to
 * shared memory (barrier 2), and the copy engine takes whole tiles from there.
 */
#ifndef F8_OPS_SWIGLU_TILE_CUH
#define F8_OPS_SWIGLU_TILE_CUH

#include "ops/hopper.cuh"
#include "ops/swiglu.cuh"
#include "ops/tensor_map.cuh"

enum {
    F8_TILE_THREADS = 512,
    F8_TILE_WARPS = F8_TILE_THREADS / F8_WARP,
    F8_STRIP_ROWS = F8_BLOCK / F8_TILE_WARPS,
    F8_ROW_PIECES = 16, /* of 16 bytes: a row of a strip in BF16; lanes that share a row */
    F8_PATCH_ROWS = 4,
    F8_PATCH_COLS = 8,
    F8_STAGE_BYTES = F8_BLOCK * F8_BLOCK
};

typedef float f8_patch[F8_PATCH_ROWS][F8_PATCH_COLS];

/* A tile: its place, and how many of its rows are in use and exist. */
struct f8_tile_place {
    int32_t row0, block, valid, rows;
};

/* Tiles blockIdx.x, blockIdx.x + gridDim.x, ..., row blocks outermost. */
struct f8_tile_walk {
    int32_t row_block, block, row_blocks, num_blocks, step_row_blocks, step_blocks;
    f8_row_cursor cursor;
};

/* Shared memory of a block. Stages come first: their swizzle goes by address bits 7 to 9. */
template <int inputs, int outputs, class Entry> struct f8_tile_shared {
    uint8_t stage[outputs][F8_STAGE_BYTES];
    uint4 strip[F8_TILE_WARPS][inputs][F8_STRIP_ROWS][F8_ROW_PIECES];
    Entry table[F8_SIGMOID_ENTRIES];
    uint64_t arrived[F8_TILE_WARPS];
    uint32_t largest[2][outputs]; /* of two tiles in turn: one is gathered while the other is cleared */
    f8_tile_place place[4];       /* of tile t in place t % 4; written three tiles ahead */
    f8_tile_walk walk;
    uint32_t nonfinite;
};

/* ---- Tensor maps, on the host ---- */

/* Boxes of 8 rows of 128 BF16 numbers of a matrix; columns and rows outside are read as zeros. */
static inline fp8flow_status f8_strip_map(const char *op, CUtensorMap *map, const fp8flow_tensor *t, int64_t first_col,
                                          int64_t cols)
{
    f8_box_shape shape = { 2,
                           { (cuuint64_t)cols * 2, (cuuint64_t)t->rows },
                           { (cuuint64_t)t->stride * 2 },
                           { F8_BLOCK * 2, F8_STRIP_ROWS },
                           CU_TENSOR_MAP_SWIZZLE_NONE };
    return f8_tensor_map(op, map, (uint16_t *)t->data + first_col, shape);
}

/* Tiles of a column form whose columns are a multiple of 8: rows, columns / 8, columns % 8. Lines of the stage are in
 * this order, which with the swizzle spreads the words of a warp over the banks. */
static inline fp8flow_status f8_tile_map(const char *op, CUtensorMap *map, const fp8flow_tensor *t)
{
    const cuuint64_t group = F8_PATCH_COLS, stride = (cuuint64_t)t->stride;
    f8_box_shape shape = { 3,
                           { (cuuint64_t)t->rows, (cuuint64_t)t->cols / group, group },
                           { stride * group, stride },
                           { F8_BLOCK, F8_BLOCK / F8_PATCH_COLS, F8_PATCH_COLS },
                           CU_TENSOR_MAP_SWIZZLE_128B };
    return f8_tensor_map(op, map, t->data, shape);
}

/* ---- Tiles of a block ---- */

__device__ static inline f8_tile_walk f8_tile_walk_of(const f8_grouping &g, int num_blocks)
{
    int row_block = (int)blockIdx.x / num_blocks;
    f8_tile_walk walk = { row_block, (int)blockIdx.x % num_blocks, (f8_used_rows(g) + F8_BLOCK - 1) / F8_BLOCK,
                          num_blocks, (int)gridDim.x / num_blocks, (int)gridDim.x % num_blocks,
                          f8_cursor_at(g, row_block * F8_BLOCK) };
    return walk;
}

/* The tile that the walk stands at; it moves on. Behind the last tile there are tiles with block -1. */
__device__ static inline f8_tile_place f8_tile_take(const f8_grouping &g, f8_tile_walk *walk)
{
    f8_tile_place tile = { walk->row_block * F8_BLOCK, walk->block, 0, 0 };
    if (walk->row_block >= walk->row_blocks) return { 0, -1, 0, 0 };
    f8_cursor_seek(g, tile.row0, &walk->cursor);
    if (tile.row0 >= walk->cursor.begin) {
        tile.valid = min(max(walk->cursor.valid_end - tile.row0, 0), (int)F8_BLOCK);
        tile.rows = min(max(walk->cursor.end - tile.row0, 0), (int)F8_BLOCK);
    }
    walk->row_block += walk->step_row_blocks;
    walk->block += walk->step_blocks;
    if (walk->block >= walk->num_blocks) {
        walk->block -= walk->num_blocks;
        walk->row_block++;
    }
    return tile;
}

/* ---- Strips ---- */

__device__ static inline int f8_strip_row()
{
    return (int)threadIdx.x / F8_WARP * F8_STRIP_ROWS;
}

/* First row and column of this thread's patch in a tile. */
__device__ static inline int f8_patch_row()
{
    return f8_strip_row() + f8_lane() / F8_ROW_PIECES * F8_PATCH_ROWS;
}

__device__ static inline int f8_patch_col()
{
    return f8_lane() % F8_ROW_PIECES * F8_PATCH_COLS;
}

/* Called by whole warps that have read their last strip: ask for that of a tile. Where no row is in use nothing comes,
 * but the phase of the barrier ends. */
template <int inputs, int outputs, class Entry>
__device__ static inline void f8_strip_request(const CUtensorMap *const (&maps)[inputs], const f8_tile_place &tile,
                                               f8_tile_shared<inputs, outputs, Entry> *shared)
{
    const int warp = (int)threadIdx.x / F8_WARP;
    __syncwarp();
    if (f8_lane() != 0) return;
    if (f8_strip_row() >= tile.valid) {
        f8_barrier_arrive(&shared->arrived[warp]);
        return;
    }
    f8_barrier_expect(&shared->arrived[warp], (uint32_t)sizeof shared->strip[0]);
#pragma unroll
    for (int i = 0; i < inputs; i++)
        f8_copy_tile(shared->strip[warp][i], maps[i], &shared->arrived[warp], tile.block * F8_BLOCK * 2,
                     tile.row0 + f8_strip_row());
}

/* Called by whole warps: wait for the strip of tile t; padding is zeros. The copy engine writes next where threads have
 * written zeros: hence the fence. */
template <int inputs, int outputs, class Entry>
__device__ static inline void f8_strip_wait(const f8_tile_place &tile, uint32_t t,
                                            f8_tile_shared<inputs, outputs, Entry> *shared)
{
    const int warp = (int)threadIdx.x / F8_WARP;
    f8_barrier_wait(&shared->arrived[warp], t % 2);
    if (f8_strip_row() + F8_STRIP_ROWS <= tile.valid) return;
    int first = max(tile.valid - f8_strip_row(), 0) * F8_ROW_PIECES;
#pragma unroll 1
    for (int i = 0; i < inputs; i++)
#pragma unroll 1
        for (int at = first + f8_lane(); at < F8_STRIP_ROWS * F8_ROW_PIECES; at += F8_WARP)
            (&shared->strip[warp][i][0][0])[at] = make_uint4(0, 0, 0, 0);
    __syncwarp();
    f8_async_fence();
}

/* Piece of input `input` in row i of the patch. */
template <int inputs, int outputs, class Entry>
__device__ static inline uint4 f8_strip_piece(const f8_tile_shared<inputs, outputs, Entry> *shared, int input, int i)
{
    const int half = f8_lane() / F8_ROW_PIECES, piece = f8_lane() % F8_ROW_PIECES;
    return shared->strip[threadIdx.x / F8_WARP][input][half * F8_PATCH_ROWS + i][piece];
}

/* The gate weight of row lane % 8 of the strip, 0 in padding, 1 without gate. */
__device__ static inline float f8_strip_gates(const float *gate, const f8_tile_place &tile)
{
    int row = f8_strip_row() + f8_lane() % F8_STRIP_ROWS;
    if (!gate) return 1.0f;
    return row < tile.valid ? __ldg(gate + tile.row0 + row) : 0.0f;
}

/* That of row i of the patch. */
__device__ static inline float f8_patch_gate(float gates, int i)
{
    return __shfl_sync(F8_ALL_LANES, gates, f8_lane() / F8_ROW_PIECES * F8_PATCH_ROWS + i);
}

/* ---- Outputs ---- */

/* Eight codes of a row. */
template <fp8flow_dtype dtype>
__device__ static inline void f8_store_codes(uint8_t *to, const float (&x)[F8_PATCH_COLS], float s)
{
    __stcs((uint2 *)to, make_uint2(f8_encode4<dtype>(x[0] * s, x[1] * s, x[2] * s, x[3] * s),
                                   f8_encode4<dtype>(x[4] * s, x[5] * s, x[6] * s, x[7] * s)));
}

/* Largest magnitudes of the patches to the tile's. */
template <int outputs>
__device__ static inline void f8_tile_gather(const uint32_t (&magnitude)[outputs], uint32_t *largest)
{
#pragma unroll
    for (int i = 0; i < outputs; i++) {
        uint32_t of_warp = __reduce_max_sync(F8_ALL_LANES, magnitude[i]);
        if (f8_lane() == 0) atomicMax(largest + i, of_warp);
    }
}

/* The patch to a stage in column form: line 16c + l for column 8l + c, 16-byte pieces turned by the swizzle. */
template <fp8flow_dtype dtype>
__device__ static inline void f8_tile_stage(const f8_patch &x, float s, uint8_t *stage)
{
    const int line = f8_lane() % F8_ROW_PIECES, row = f8_patch_row();
    uint8_t *to = stage + line * F8_BLOCK + ((row / 16) ^ (line % 8)) * 16 + row % 16;
#pragma unroll
    for (int c = 0; c < F8_PATCH_COLS; c++)
        *(uint32_t *)(to + c * F8_ROW_PIECES * F8_BLOCK) =
            f8_encode4<dtype>(x[0][c] * s, x[1][c] * s, x[2][c] * s, x[3][c] * s);
}

/* One thread: a stage to the tile whose first column is `col`, and the scale byte. */
template <fp8flow_dtype dtype>
__device__ static inline void f8_tile_store(const CUtensorMap *map, const fp8flow_tensor &y, const f8_tile_place &tile,
                                            int col, uint32_t largest, const uint8_t *stage)
{
    int64_t scale = tile.row0 / F8_BLOCK * f8_ceil_div(y.cols, F8_BLOCK) + col / F8_BLOCK;
    ((uint8_t *)y.scale)[scale] = (uint8_t)f8_scale_byte_quick<dtype>(largest);
    f8_store_box(map, stage, tile.row0, col / F8_PATCH_COLS, 0);
}

/* Barriers, maxima, the first three tiles. Called by all threads, which then are synchronised. */
template <int inputs, int outputs, class Entry>
__device__ static inline void f8_tile_prepare(const f8_grouping &groups, int num_blocks,
                                              f8_tile_shared<inputs, outputs, Entry> *shared)
{
    if (threadIdx.x < F8_TILE_WARPS) f8_barrier_init(&shared->arrived[threadIdx.x], 1);
    if (threadIdx.x < 2 * outputs) (&shared->largest[0][0])[threadIdx.x] = 0;
    f8_barrier_fence();
    f8_tile_walk walk = f8_tile_walk_of(groups, num_blocks);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 3; i++) shared->place[i] = f8_tile_take(groups, &walk);
        shared->walk = walk;
        shared->nonfinite = 0;
    }
    __syncthreads();
}

/* After the second barrier of tile t: the place of tile t + 3, which others read after the first barrier of tile t + 1.
 * One lane of warp 1, since warp 0 has the outputs to see to. */
template <int inputs, int outputs, class Entry>
__device__ static inline void f8_tile_advance(const f8_grouping &groups, uint32_t t,
                                              f8_tile_shared<inputs, outputs, Entry> *shared)
{
    if (threadIdx.x == F8_WARP) shared->place[(t + 3) % 4] = f8_tile_take(groups, &shared->walk);
}

/* Between the two barriers of tile t: the maxima of tile t + 1 are to be gathered. */
template <int inputs, int outputs, class Entry>
__device__ static inline void f8_tile_clear(uint32_t t, f8_tile_shared<inputs, outputs, Entry> *shared)
{
    if (threadIdx.x < outputs) shared->largest[(t + 1) % 2][threadIdx.x] = 0;
}

#endif
