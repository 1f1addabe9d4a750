/* swiglu_tile.cuh - row form and column form of a 128 x 128 tile from one computation: what the fused kernels of
 * swiglu and swiglu_backward share.
 *
 * One block of 512 threads per multiprocessor, a contiguous range of tiles each. Thread (warp w, lane l) owns the patch
 * of rows 8w + 4(l/16) + 0..3 and columns 8(l%16) + 0..7:
 *   - a row of the patch is 16 bytes of BF16 and 8 bytes of codes; 16 lanes share a row of 256 and 128 bytes;
 *   - four rows of a column are the four bytes of one word of the column form: no transpose of bytes is needed.
 * Inputs come by cp.async into 16-byte slots of shared memory that only their own thread reads, and a slot is asked for
 * again as soon as it has been read: loads are always under way and need no barrier. Values stay in registers in FP32
 * until the scale of the tile is known (barrier 1), column words go through shared memory (barrier 2) to lines.
 */
#ifndef F8_OPS_SWIGLU_TILE_CUH
#define F8_OPS_SWIGLU_TILE_CUH

#include "ops/swiglu.cuh"

enum {
    F8_TILE_THREADS = 512,
    F8_PATCH_ROWS = 4,
    F8_PATCH_COLS = 8,
    F8_STAGE_BYTES = F8_BLOCK * F8_BLOCK,
    F8_LINE_WORDS = F8_BLOCK / 4,
    F8_PIECE = 16 /* bytes of one access */
};

typedef float f8_patch[F8_PATCH_ROWS][F8_PATCH_COLS];

/* Where this thread's patch lies in a tile. */
struct f8_patch_place {
    int row, col, row_word; /* row_word: index of its word in a line of the column form */
};

__device__ static inline f8_patch_place f8_patch_of_thread()
{
    int warp = (int)threadIdx.x / F8_WARP, half = f8_lane() / 16;
    return { warp * 8 + half * F8_PATCH_ROWS, f8_lane() % 16 * F8_PATCH_COLS, warp * 2 + half };
}

/* ---- Tiles of a block, row blocks outermost ---- */

struct f8_tile_range {
    int64_t begin, end;
};

__device__ static inline f8_tile_range f8_tiles_of_block(const f8_grouping &g, int64_t num_blocks)
{
    int64_t tiles = (int64_t)((f8_used_rows(g) + F8_BLOCK - 1) / F8_BLOCK) * num_blocks;
    return { tiles * blockIdx.x / gridDim.x, tiles * (blockIdx.x + 1) / gridDim.x };
}

/* A tile: its place, and how many of its rows are in use and exist. */
struct f8_tile_place {
    int32_t row0, block, valid, rows;
};

__device__ static inline f8_tile_place f8_tile_at(const f8_grouping &g, int64_t tile, int num_blocks,
                                                  f8_row_cursor *cursor)
{
    int row0 = (int)(tile / num_blocks) * F8_BLOCK;
    f8_cursor_seek(g, row0, cursor);
    if (row0 < cursor->begin) return { row0, 0, 0, 0 };
    return { row0, (int)(tile % num_blocks), min(max(cursor->valid_end - row0, 0), (int)F8_BLOCK),
             min(max(cursor->end - row0, 0), (int)F8_BLOCK) };
}

/* ---- Asynchronous loads into a thread's own slots ---- */

/* 16 bytes to shared memory past L1; zeros, and no access, unless `wanted`. */
__device__ static inline void f8_copy_async(void *to, const void *from, bool wanted)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(wanted ? 16 : 0)
                 : "memory");
}

/* The gate weight of row `row` of a tile, 0 in padding; there may be no gate. */
__device__ static inline void f8_copy_gate(float *to, const float *gate, const f8_tile_place &tile, int row)
{
    if (!gate) return;
    bool wanted = row < tile.valid;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(wanted ? gate + tile.row0 + row : gate), "r"(wanted ? 4 : 0)
                 : "memory");
}

__device__ static inline void f8_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* All groups but the latest `pending` have arrived. */
template <int pending> __device__ static inline void f8_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* ---- Row form ---- */

/* 16 lanes hold one row of a tile, 8 values each. `index`: of the first code; `scale_index`: of the row's block. */
template <fp8flow_dtype dtype>
__device__ static inline void f8_tile_store_row(const fp8flow_tensor &y, int64_t index, int64_t scale_index,
                                                uint32_t magnitude, const float (&x)[F8_PATCH_COLS])
{
    uint8_t byte = f8_scale_byte(magnitude, dtype);
    float s = f8_scale_inverse(byte);
    uint2 codes = make_uint2(f8_encode4<dtype>(x[0] * s, x[1] * s, x[2] * s, x[3] * s),
                             f8_encode4<dtype>(x[4] * s, x[5] * s, x[6] * s, x[7] * s));
    __stcs((uint2 *)((uint8_t *)y.data + index), codes);
    if (f8_lane() % 16 == 0) ((uint8_t *)y.scale)[scale_index] = byte;
}

/* ---- Column form ---- */

/* Tile maxima of `count` matrices for two tiles in turn: one is gathered while the other is cleared. */
template <int count> struct f8_tile_maxima {
    uint32_t at[2][count];
};

/* Word of column `col`: columns of different lanes are turned against each other, free of bank conflicts. */
__device__ static inline int f8_stage_word(int col, int row_word)
{
    return col * F8_LINE_WORDS + (row_word ^ (col / F8_PATCH_COLS * 2));
}

template <fp8flow_dtype dtype>
__device__ static inline void f8_tile_stage(const f8_patch &x, const f8_patch_place &place, float s, uint32_t *stage)
{
#pragma unroll
    for (int c = 0; c < F8_PATCH_COLS; c++)
        stage[f8_stage_word(place.col + c, place.row_word)] =
            f8_encode4<dtype>(x[0][c] * s, x[1][c] * s, x[2][c] * s, x[3][c] * s);
}

/* 16 bytes of a staged line. */
__device__ static inline uint4 f8_stage_piece(const uint32_t *stage, int col, int piece)
{
    int turn = col / F8_PATCH_COLS;
    uint4 p = ((const uint4 *)stage)[col * (F8_LINE_WORDS / 4) + (piece ^ (turn / 2))];
    return turn % 2 ? make_uint4(p.z, p.w, p.x, p.y) : p;
}

/* The first `rows` codes of a piece: the end of a tensor whose rows are no multiple of 16. */
__device__ static inline void f8_store_some(uint8_t *to, uint4 piece, int rows)
{
    const uint32_t words[4] = { piece.x, piece.y, piece.z, piece.w };
#pragma unroll
    for (int i = 0; i < F8_PIECE; i++)
        if (i < rows) to[i] = (uint8_t)(words[i / 4] >> i % 4 * 8);
}

/* The staged lines of columns col0 .. col0 + 127 to y, and the scale byte. */
__device__ static inline void f8_tile_store_columns(const fp8flow_tensor &y, const f8_tile_place &tile, int64_t col0,
                                                    uint8_t byte, const uint32_t *stage)
{
    const int pieces = F8_BLOCK / F8_PIECE;
    if (threadIdx.x == 0 && tile.rows > 0)
        ((uint8_t *)y.scale)[tile.row0 / F8_BLOCK * f8_ceil_div(y.cols, F8_BLOCK) + col0 / F8_BLOCK] = byte;
#pragma unroll
    for (int i = 0; i < F8_BLOCK * pieces / F8_TILE_THREADS; i++) {
        int index = i * F8_TILE_THREADS + (int)threadIdx.x, col = index / pieces, row = index % pieces * F8_PIECE;
        if (row >= tile.rows || col0 + col >= y.cols) continue;
        uint8_t *to = (uint8_t *)y.data + (col0 + col) * y.stride + tile.row0 + row;
        uint4 piece = f8_stage_piece(stage, col, row / F8_PIECE);
        if (row + F8_PIECE <= tile.rows) f8_store16(to, piece);
        else f8_store_some(to, piece, tile.rows - row);
    }
}

/* Largest of the warp to the tile's. */
__device__ static inline void f8_tile_gather(uint32_t magnitude, uint32_t *largest)
{
    magnitude = __reduce_max_sync(F8_ALL_LANES, magnitude);
    if (f8_lane() == 0) atomicMax(largest, magnitude);
}

#endif
