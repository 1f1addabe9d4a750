/* swiglu_lines.cuh - swiglu_backward where BF16 rows are all that is wanted, perhaps with dgate: no scales, no columns.
 *
 * One block per row, one piece of eight activations per thread and round, two rounds mostly: 16 bytes each of a, b, g,
 * da, db. Nothing is shared but the sum of the row. The sigmoid is computed (19 of about 49 instructions), since a
 * table would need blocks that stay: what hides latency here are 1536 threads on a multiprocessor, with 72 KB of loads.
 * 10 bytes per activation.
 */
#ifndef F8_OPS_SWIGLU_LINES_CUH
#define F8_OPS_SWIGLU_LINES_CUH

#include "ops/swiglu.cuh"
#include "ops/warp.cuh"

enum {
    F8_LINE_THREADS = 512, /* at most */
    F8_LINE_BLOCKS = 3,    /* of them on a multiprocessor */
    F8_LINE_PIECE = 8,     /* activations of one 16-byte load */
    F8_BF16_INFINITE = 0x7F80
};

struct f8_lines_job {
    fp8flow_tensor h, dv, rows;
    const float *gate;
    f8_grouping groups;
    int64_t cols; /* F */
    float *dgate;
    uint64_t *nonfinite;
};

/* Eight neighbouring activations in BF16, in pairs. */
struct f8_line_inputs {
    uint32_t a[4], b[4], g[4];
};

/* Their gradients. */
struct f8_line_piece {
    uint32_t da[4], db[4];
    float dw; /* sum */
};

/* Small a and finite results. */
struct f8_line_near {
    __device__ static float sigmoid(float a) { return f8_sigmoid_near(a); }
    __device__ static uint32_t pair(float low, float high, uint32_t *) { return f8_bf16_pair_fast(low, high); }
};

struct f8_line_anywhere {
    __device__ static float sigmoid(float a) { return f8_sigmoid_quick(a); }
    __device__ static uint32_t pair(float low, float high, uint32_t *nonfinite)
    {
        *nonfinite += !f8_is_finite(low) + !f8_is_finite(high);
        return f8_bf16_pair(low, high);
    }
};

template <class Way>
__device__ static inline f8_line_piece f8_line_piece_of(const f8_line_inputs &in, float w, uint32_t *nonfinite)
{
    f8_line_piece out = {};
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float a = f8_bf16_low(in.a[k]), next = f8_bf16_high(in.a[k]);
        float s = Way::sigmoid(a), next_s = Way::sigmoid(next);
        f8_swiglu_slopes low =
            f8_swiglu_slopes_of(a, f8_bf16_low(in.b[k]), w, f8_bf16_low(in.g[k]), s, f8_swiglu_slope(a, s));
        f8_swiglu_slopes high = f8_swiglu_slopes_of(next, f8_bf16_high(in.b[k]), w, f8_bf16_high(in.g[k]), next_s,
                                                    f8_swiglu_slope(next, next_s));
        out.da[k] = Way::pair(low.da, high.da, nonfinite);
        out.db[k] = Way::pair(low.db, high.db, nonfinite);
        out.dw += low.dw;
        out.dw += high.dw;
    }
    return out;
}

__device__ static inline f8_line_inputs f8_line_load(const f8_lines_job &job, int64_t row, int64_t col)
{
    const uint16_t *of_h = (const uint16_t *)job.h.data + row * job.h.stride + col;
    uint4 a = f8_load16(of_h), b = f8_load16(of_h + job.cols);
    uint4 g = f8_load16((const uint16_t *)job.dv.data + row * job.dv.stride + col);
    return { { a.x, a.y, a.z, a.w }, { b.x, b.y, b.z, b.w }, { g.x, g.y, g.z, g.w } };
}

__device__ static inline void f8_line_store(const f8_lines_job &job, int64_t row, int64_t col, const f8_line_piece &out)
{
    uint16_t *to = (uint16_t *)job.rows.data + row * job.rows.stride + col;
    f8_store16(to, make_uint4(out.da[0], out.da[1], out.da[2], out.da[3]));
    f8_store16(to + job.cols, make_uint4(out.db[0], out.db[1], out.db[2], out.db[3]));
}

/* Called by all threads: the row of dgate from their sums, lanes first, then warps in ascending order. */
__device__ static inline void f8_line_store_gate(float sum, float *to)
{
    __shared__ float of_warp[F8_LINE_THREADS / F8_WARP];
    sum = f8_warp_sum(sum);
    if (f8_lane() == 0) of_warp[threadIdx.x / F8_WARP] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    float total = 0.0f;
    for (int i = 0; i < (int)blockDim.x / F8_WARP; i++) total += of_warp[i];
    *to = f8_canonical(total);
}

/* One block per row. What the quick way cannot do is seen in its results, and done again. */
template <int per_multiprocessor>
__global__ static void __launch_bounds__(F8_LINE_THREADS, per_multiprocessor)
    f8_lines_kernel(const __grid_constant__ f8_lines_job job)
{
    int row = (int)blockIdx.x;
    f8_row_cursor cursor = f8_cursor_at(job.groups, row);
    if (row < cursor.begin || row >= cursor.end) return;
    bool valid = row < cursor.valid_end;
    float w = valid && job.gate ? __ldg(job.gate + row) : 1.0f, sum = 0.0f;
    uint32_t nonfinite = 0;
    for (int col = (int)threadIdx.x * F8_LINE_PIECE; col < (int)job.cols; col += (int)blockDim.x * F8_LINE_PIECE) {
        f8_line_piece out = {};
        if (valid) {
            f8_line_inputs in = f8_line_load(job, row, col);
            bool is_far = f8_bf16_reach(in.a, F8_SIGMOID_NEAR);
            out = f8_line_piece_of<f8_line_near>(in, w, &nonfinite);
            if (is_far || f8_bf16_reach(out.da, F8_BF16_INFINITE) || f8_bf16_reach(out.db, F8_BF16_INFINITE))
                out = f8_line_piece_of<f8_line_anywhere>(f8_line_load(job, row, col), w, &nonfinite);
        }
        f8_line_store(job, row, col, out);
        sum += out.dw;
    }
    f8_add_nonfinite(job.nonfinite, nonfinite);
    if (job.dgate) f8_line_store_gate(sum, job.dgate + row);
}

/* Threads for rows of `pieces`: what a thread does once (groups, sum: a third of a round) pays from two rounds on; of
 * three numbers of rounds the one that leaves the fewest lanes idle, the least of these. */
static inline int f8_line_threads(int64_t pieces)
{
    int64_t least = f8_ceil_div(pieces, F8_LINE_THREADS), threads = 0, lanes = INT64_MAX;
    if (least < 2) least = 2;
    for (int64_t rounds = least; rounds < least + 3; rounds++) {
        int64_t wanted = f8_ceil_div(f8_ceil_div(pieces, rounds), F8_WARP) * F8_WARP;
        if (wanted * rounds >= lanes) continue;
        threads = wanted;
        lanes = wanted * rounds;
    }
    return (int)threads;
}

/* Lines of whole 16-byte pieces, and no other output than BF16 rows and dgate. */
static inline bool f8_is_lines(const fp8flow_swiglu_backward_args *a)
{
    const fp8flow_tensor *h = a->h, *dv = a->dv, *rows = a->rows;
    if (!rows || rows->dtype != FP8FLOW_BF16 || a->columns || a->v_columns || dv->cols % F8_LINE_PIECE) return false;
    return f8_aligned16(h->data, h->stride * 2) && f8_aligned16(dv->data, dv->stride * 2) &&
           f8_aligned16(rows->data, rows->stride * 2);
}

/* For at least one row and column. */
template <int per_multiprocessor>
static inline fp8flow_status f8_lines_launch(const fp8flow_context *c, const fp8flow_swiglu_backward_args *a)
{
    f8_grouping groups = f8_grouping_of(a->h, a->groups);
    f8_lines_job job = { *a->h, *a->dv, *a->rows, a->gate, groups, a->dv->cols, a->dgate, a->nonfinite };
    int threads = f8_line_threads(job.cols / F8_LINE_PIECE);
    f8_lines_kernel<per_multiprocessor><<<f8_grid(job.h.rows, 1), threads, 0, f8_stream(c)>>>(job);
    return f8_launched("swiglu_backward");
}

#endif
