/* walk_lines.cuh - whose lines a walk (walk.cuh) turns into columns: groups of rows, or the tokens of a plan. */
#ifndef F8_OPS_WALK_LINES_CUH
#define F8_OPS_WALK_LINES_CUH

#include "ops/walk.cuh"

/* ---- transpose: the rows of a tensor, padding rows excepted ---- */

template <f8_walk_loads how> struct f8_grouped_lines {
    static const f8_walk_loads loads = how;
    fp8flow_tensor x;
    f8_grouping groups;

    __device__ f8_walk blocks_of_walk() const
    {
        f8_walk walk = {};
        int rows = groups.total_rows;
        if (groups.is_grouped) {
            walk.first_block = groups.count ? __ldg(groups.offset) / F8_BLOCK : 0;
            rows = groups.count ? min(rows, __ldg(groups.offset + groups.count)) : 0;
        }
        walk.row_blocks = max(0, (rows + F8_BLOCK - 1) / F8_BLOCK - walk.first_block);
        return walk;
    }

    __device__ void find_tokens(int block, int token[4]) const
    {
        f8_device_span span = f8_span_of_block(groups, block);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int row = f8_patch_row() + r;
            token[r] = row < span.valid ? span.row + row : -1;
        }
    }

    __device__ void begin_chunk(const f8_coming_tile &, const int[4], int) const {}

    __device__ bool has_rows() const
    {
        return false;
    }
};

/* ---- permute: the tokens of a plan's rows ---- */

/* The device arrays of a plan, and n / top_k as (n * reciprocal) >> shift for 0 <= n < 2^31. */
struct f8_routing {
    const int32_t *source, *end; /* end: number of permuted rows */
    const float *gate;
    float *gate_rows;
    uint32_t reciprocal, shift;
    int capacity;
};

/* With 2^shift >= 2^31 k, the reciprocal exceeds 2^shift / k by at most 1: n times that is below 2^shift / k, so the
 * quotient stays below the next integer. */
static inline f8_routing f8_routing_of(const fp8flow_permute_args *a)
{
    uint64_t top_k = (uint64_t)a->plan->top_k;
    uint32_t shift = 31;
    while (((uint64_t)1 << (shift - 31)) < top_k) shift++;
    return { a->plan->source, a->plan->offset + a->plan->num_experts, a->gate, a->gate_rows,
             (uint32_t)(((uint64_t)1 << shift) / top_k + 1), shift, (int)a->plan->capacity };
}

/* Token of a row whose entry of `source` is given; -1 for padding. */
__device__ static inline int f8_token_of(const f8_routing &r, int source)
{
    return source < 0 ? -1 : (int)((uint64_t)(uint32_t)source * r.reciprocal >> r.shift);
}

/* rows.data NULL: no row form. */
template <f8_walk_loads how> struct f8_gathered_lines {
    static const f8_walk_loads loads = how;
    fp8flow_tensor x, rows;
    f8_routing route;

    __device__ f8_walk blocks_of_walk() const
    {
        f8_walk walk = {};
        walk.row_blocks = min(__ldg(route.end), route.capacity) / F8_BLOCK;
        return walk;
    }

    __device__ void find_tokens(int block, int token[4]) const
    {
        const int32_t *from = route.source + block * F8_BLOCK + f8_patch_row();
        int source[4];
#pragma unroll
        for (int r = 0; r < 4; r++) source[r] = __ldg(from + r);
#pragma unroll
        for (int r = 0; r < 4; r++) token[r] = f8_token_of(route, source[r]);
    }

    /* Scales of the row form, and gate weights. */
    __device__ void begin_chunk(const f8_coming_tile &tile, const int token[4], int col_blocks) const
    {
        const int lane = (int)threadIdx.x % F8_CHUNK, row = tile.block * F8_BLOCK + f8_patch_row();
        if (rows.data && lane < tile.count) {
            uint8_t *to = (uint8_t *)rows.scale + (int64_t)row * col_blocks + tile.col + lane;
#pragma unroll
            for (int r = 0; r < 4; r++) to[r * col_blocks] = (uint8_t)tile.scale[r];
        }
        if (!route.gate || tile.col != 0 || lane != 0) return;
#pragma unroll
        for (int r = 0; r < 4; r++)
            route.gate_rows[row + r] = token[r] < 0 ? 0.0f : __ldg(route.gate + __ldg(route.source + row + r));
    }

    __device__ bool has_rows() const
    {
        return rows.data != NULL;
    }
};

#endif
