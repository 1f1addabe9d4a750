/* block.cuh - which rows form a row block, on the device: the twin of f8_span and f8_span_at of block.h.
 *
 * Groups live in device memory, so a grid is as large as the tensor's capacity allows; blocks behind the last group
 * find no rows and leave. The group of a row is found by a whole warp at once: one round of loads for 32 groups.
 */
#ifndef F8_OPS_BLOCK_CUH
#define F8_OPS_BLOCK_CUH

#include "ops/warp.cuh"

enum { F8_BLOCK = 128 };

/* How the rows of a tensor are grouped, by value for kernels. count 0: no groups. */
struct f8_grouping {
    const int32_t *offset, *rows;
    int32_t count, is_grouped;
    int32_t total_rows, group_rows;
};

/* Rows row .. row + rows - 1 of one group; the first `valid` are in use, the rest is padding. rows 0: nothing to do. */
struct f8_device_span {
    int32_t row, rows, valid, group;
};

static inline f8_grouping f8_grouping_of(const fp8flow_tensor *t, const fp8flow_groups *groups)
{
    f8_grouping g = { NULL, NULL, 0, groups != NULL, (int32_t)t->rows, (int32_t)t->group_rows };
    if (groups) {
        g.offset = groups->offset;
        g.rows = groups->rows;
        g.count = (int32_t)groups->count;
    }
    return g;
}

/* Row blocks that the tensor has room for: the size of a grid. Groups start at multiples of 128. */
static inline int64_t f8_capacity_blocks(const fp8flow_tensor *t)
{
    if (t->group_rows == 0) return f8_ceil_div(t->rows, F8_BLOCK);
    return t->rows / t->group_rows * f8_ceil_div(t->group_rows, F8_BLOCK);
}

/* Last of `count` groups that starts at or before `row`, -1 if none. Called by whole warps. */
__device__ static inline int f8_find_group(const int32_t *offset, int count, int row)
{
    int found = -1;
    for (int base = 0; base < count; base += F8_WARP) {
        int g = base + f8_lane();
        found += __popc(__ballot_sync(F8_ALL_LANES, g < count && __ldg(offset + g) <= row));
    }
    return found;
}

/* Up to `height` rows from `row` on that belong to one group; called by whole warps with one row. For grouped rows
 * that start at a multiple of `height` everywhere, consecutive calls at multiples of `height` cover all rows. */
__device__ static inline f8_device_span f8_span_from(const f8_grouping &g, int row, int height)
{
    if (!g.is_grouped) {
        int rows = max(0, min(height, g.total_rows - row));
        return { row, rows, rows, 0 };
    }
    int group = f8_find_group(g.offset, g.count, row);
    if (group < 0) return { row, 0, 0, 0 };
    int begin = __ldg(g.offset + group), end = min(__ldg(g.offset + group + 1), g.total_rows);
    int rows = max(0, min(height, end - row));
    return { row, rows, max(0, min(rows, begin + __ldg(g.rows + group) - row)), group };
}

/* `span` if it reaches `row`, else the span that `row` begins and that need not go beyond `last`: for warps whose rows
 * ascend. Called by whole warps; start with a span of no rows. */
__device__ static inline f8_device_span f8_span_reaching(const f8_grouping &g, f8_device_span span, int row, int last)
{
    return row < span.row + span.rows ? span : f8_span_from(g, row, last - row + 1);
}

/* Row block `block` of a tensor with f8_capacity_blocks of them. Called by whole warps. */
__device__ static inline f8_device_span f8_span_of_block(const f8_grouping &g, int block)
{
    if (g.group_rows == 0) return f8_span_from(g, block * F8_BLOCK, F8_BLOCK);
    int per_group = (g.group_rows + F8_BLOCK - 1) / F8_BLOCK, group = block / per_group;
    int first = block % per_group * F8_BLOCK, rows = min(F8_BLOCK, g.group_rows - first);
    return { group * g.group_rows + first, rows, rows, group };
}

#endif
