/* code_tile.cuh - FP8 codes of 128 rows x 64 columns in shared memory, for kernels that look at FP8 tensors of any
 * scaling and layout row by row. A warp then has 16 rows, and a lane two columns of each.
 *
 * Codes are read byte by byte along stored lines, eight loads in flight per thread.
 */
#ifndef F8_OPS_CODE_TILE_CUH
#define F8_OPS_CODE_TILE_CUH

#include "ops/row_states.cuh"

enum {
    F8_CODE_THREADS = 256,
    F8_CODE_COLS = 64,
    F8_CODE_PITCH = F8_CODE_COLS + 4 /* 17 words: the rows of a column lie in different banks */
};

struct f8_code_memory {
    uint8_t code[F8_BLOCK][F8_CODE_PITCH];
};

struct f8_code_place {
    int block;            /* row block */
    f8_row_range rows;    /* from the first row of the tile on */
    int64_t col;          /* first column of the tile */
    int row;              /* first of this warp's rows, in the tile */
    f8_row_states states; /* of this warp's rows */
};

/* Tiles that the tensor has room for. */
static inline int64_t f8_code_tiles(const fp8flow_tensor *t)
{
    return f8_capacity_blocks(t) * f8_ceil_div(t->cols, F8_CODE_COLS);
}

/* Where tile `tile` is; called by whole blocks of threads. Tiles of no rows have rows.end <= rows.first. */
__device__ static inline f8_code_place f8_code_place_of(const fp8flow_tensor &t, const f8_grouping &g, int64_t tile)
{
    int64_t strips = f8_ceil_div(t.cols, F8_CODE_COLS);
    f8_code_place p;
    p.block = (int)(tile / strips);
    p.rows = f8_rows_of_block(g, p.block);
    p.col = tile % strips * F8_CODE_COLS;
    p.row = (int)threadIdx.x / F8_WARP * F8_STATE_ROWS;
    p.states = f8_states_of_rows(g, p.rows.first + p.row, p.rows.end);
    return p;
}

/* Index of the tile's element (row, col) in data. */
__device__ static inline int64_t f8_code_index(const fp8flow_tensor &t, const f8_code_place &p, int row, int col)
{
    int64_t r = p.rows.first + row, c = p.col + col;
    if (t.layout == FP8FLOW_ROWS) return r * t.stride + c;
    if (t.group_rows == 0) return c * t.stride + r;
    int64_t expert = r / t.group_rows;
    return (expert * t.cols + c) * t.stride + r - expert * t.group_rows;
}

/* All codes of valid rows. Where lanes go along the rows of a column form, they pass the rows of all warps: these tell
 * each other through `valid` which ones are in use. */
__device__ static inline void f8_code_load(const fp8flow_tensor &t, const f8_code_place &p, f8_code_memory &memory,
                                           uint32_t (&valid)[F8_CODE_THREADS / F8_WARP])
{
    const uint8_t *data = (const uint8_t *)t.data;
    if (f8_lane() == 0) valid[threadIdx.x / F8_WARP] = p.states.valid;
    __syncthreads();
#pragma unroll 8
    for (int i = threadIdx.x; i < F8_BLOCK * F8_CODE_COLS; i += F8_CODE_THREADS) {
        int row = t.layout == FP8FLOW_ROWS ? i / F8_CODE_COLS : i % F8_BLOCK;
        int col = t.layout == FP8FLOW_ROWS ? i % F8_CODE_COLS : i / F8_BLOCK;
        if (p.col + col >= t.cols || !(valid[row / F8_STATE_ROWS] >> (row % F8_STATE_ROWS) & 1)) continue;
        memory.code[row][col] = data[f8_code_index(t, p, row, col)];
    }
    __syncthreads();
}

/* Scale of the tile's element (row, col), which belongs to `group`. */
__device__ static inline float f8_code_scale(const fp8flow_tensor &t, const f8_code_place &p, int row, int col,
                                             int group)
{
    const uint8_t *bytes = (const uint8_t *)t.scale;
    int64_t r = p.rows.first + row, c = p.col + col, blocks = f8_ceil_div(t.cols, F8_BLOCK);
    switch (t.scaling) {
    case FP8FLOW_ROW128: return f8_scale_decode(bytes[r * blocks + c / F8_BLOCK]);
    case FP8FLOW_TILE128: return f8_scale_decode(bytes[p.block * blocks + c / F8_BLOCK]);
    case FP8FLOW_COL128: return f8_scale_decode(bytes[p.block * t.cols + c]);
    default: return ((const float *)t.scale)[group];
    }
}

#endif
