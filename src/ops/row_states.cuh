/* row_states.cuh - which of sixteen rows are in use, are padding, or belong to nobody, and to which group each
 * belongs. Groups of ROW128 and TENSOR tensors may start at any row, so that rows of a tile can have several groups.
 */
#ifndef F8_OPS_ROW_STATES_CUH
#define F8_OPS_ROW_STATES_CUH

#include "ops/block.cuh"

enum { F8_STATE_ROWS = 16 };

/* Bit r of the masks, and the group in lanes r and r + 16, speak of row first + r. */
struct f8_row_states {
    uint32_t written; /* in use or padding */
    uint32_t valid;   /* in use */
    int group;        /* 0 for rows that are not written */
};

/* Rows `first` .. `first` + 15; rows from `end` on are not written. Called by whole warps. */
__device__ static inline f8_row_states f8_states_of_rows(const f8_grouping &g, int first, int end)
{
    int mine = f8_lane() % F8_STATE_ROWS;
    f8_row_states s = { 0, 0, 0 };
    if (!g.is_grouped) {
        bool used = mine < end - first;
        s.written = s.valid = __ballot_sync(F8_ALL_LANES, used) & 0xFFFFu;
        if (used && g.group_rows > 0) s.group = (first + mine) / g.group_rows;
        return s;
    }
#pragma unroll 1
    for (int r = 0; r < min(F8_STATE_ROWS, end - first);) {
        f8_device_span span = f8_span_from(g, first + r, F8_STATE_ROWS - r);
        s.written |= ((1u << span.rows) - 1) << r;
        s.valid |= ((1u << span.valid) - 1) << r;
        if (mine >= r && mine < r + span.rows) s.group = span.group;
        r += max(span.rows, 1);
    }
    return s;
}

/* First row of row block `block`, and the end of what may follow: the expert's, or the tensor's. */
struct f8_row_range {
    int first, end;
};

/* `end` <= `first`: no row of the block is written. Called by whole warps. */
__device__ static inline f8_row_range f8_rows_of_block(const f8_grouping &g, int block)
{
    if (g.group_rows > 0) {
        f8_device_span span = f8_span_of_block(g, block);
        return { span.row, span.row + span.rows };
    }
    int first = block * F8_BLOCK;
    return { first, g.is_grouped ? min(g.total_rows, __ldg(g.offset + g.count)) : g.total_rows };
}

#endif
