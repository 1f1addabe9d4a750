/* wide_lines.cuh - whose lines wide.cuh turns into columns: groups of rows, or the tokens of a plan. */
#ifndef F8_OPS_WIDE_LINES_CUH
#define F8_OPS_WIDE_LINES_CUH

#include "ops/wide.cuh"

/* ---- transpose: the rows of a tensor, padding rows excepted ---- */

struct f8_grouped_lines {
    static const f8_access access = F8_WIDE;
    fp8flow_tensor x;
    f8_grouping groups;

    __device__ int end() const
    {
        if (!groups.is_grouped) return groups.total_rows;
        return groups.count ? min(groups.total_rows, __ldg(groups.offset + groups.count)) : 0;
    }

    __device__ int find_tokens(int block, int, int token[2][4]) const
    {
        f8_device_span span = f8_span_from(groups, block * F8_BLOCK, F8_BLOCK);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int row = f8_wide_row(i / 4) + i % 4;
            token[i / 4][i % 4] = row < span.valid ? span.row + row : -1;
        }
        return span.rows;
    }

    __device__ void keep(const f8_wide_place &, const f8_wide_patches &) const {}
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
struct f8_gathered_lines {
    static const f8_access access = F8_WIDE_REUSED;
    fp8flow_tensor x, rows;
    f8_routing route;

    __device__ int end() const
    {
        return __ldg(route.end);
    }

    /* Row blocks are whole; what the capacity has beyond them is never used. */
    __device__ int find_tokens(int block, int end, int token[2][4]) const
    {
        const int first = block * F8_BLOCK;
        const bool has_room = first + F8_BLOCK <= route.capacity;
        const int32_t *from = route.source + first;
#pragma unroll
        for (int i = 0; i < 8; i++)
            token[i / 4][i % 4] = has_room ? __ldg(from + f8_wide_row(i / 4) + i % 4) : -1;
        const bool is_used = has_room && first < end;
#pragma unroll
        for (int i = 0; i < 8; i++)
            token[i / 4][i % 4] = is_used ? f8_token_of(route, token[i / 4][i % 4]) : -1;
        return is_used ? F8_BLOCK : 0;
    }

    /* The row form, and gate weights. */
    __device__ void keep(const f8_wide_place &at, const f8_wide_patches &p) const
    {
        const int first = at.block * F8_BLOCK + f8_wide_row(0);
        if (rows.data && at.col < rows.cols) {
            uint8_t *to = (uint8_t *)rows.data + first * rows.stride + at.col;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const uint32_t *code = p.half[i / 4].code[i % 4];
                f8_store16(to + (i / 4 * 8 + i % 4) * rows.stride, make_uint4(code[0], code[1], code[2], code[3]));
            }
            if (f8_lane() % 8 == 0) keep_scales(at, p);
        }
        if (!route.gate || at.col != 0) return;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int row = first + i / 4 * 8 + i % 4, source = __ldg(route.source + row);
            route.gate_rows[row] = source < 0 ? 0.0f : __ldg(route.gate + source);
        }
    }

    __device__ void keep_scales(const f8_wide_place &at, const f8_wide_patches &p) const
    {
        const int64_t blocks = f8_col_blocks(rows);
        uint8_t *to = (uint8_t *)rows.scale + (at.block * F8_BLOCK + f8_wide_row(0)) * blocks + at.col_block;
#pragma unroll
        for (int i = 0; i < 8; i++) to[(i / 4 * 8 + i % 4) * blocks] = (uint8_t)p.half[i / 4].scale[i % 4];
    }
};

#endif
