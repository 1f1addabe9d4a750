/* swiglu.cu - versions of the fused kernels of swiglu and swiglu_backward, E4M3, with gate weights, no groups.
 *
 * Row kernel: threads of a block, and blocks of activations that go round the grid or are a range of each thread block.
 * Tile kernel: one or two blocks on a multiprocessor. The backward kernel is timed with some of its outputs. Every
 * version is compared, byte for byte, with the kernel for any combination (swiglu_any.cuh), which is chosen by lines of
 * an odd length. The sigmoids are compared with f8_sigmoid: the table on all BF16 numbers, the quick one on all floats.
 */
#include "lab.cuh"

#include "ops/swiglu_any.cuh"
#include "ops/swiglu_lines.cuh"
#include "ops/swiglu_tile.cuh"

/* ---- The library's kernels ---- */

namespace forward_way {
#define f8_cuda_swiglu lab_swiglu
#include "ops/swiglu.cu"
#undef f8_cuda_swiglu
}
namespace backward_way {
#define f8_cuda_swiglu_backward lab_swiglu_backward
#include "ops/swiglu_backward.cu"
#undef f8_cuda_swiglu_backward
}

using namespace forward_way;

/* ---- Other versions of the forward kernels ---- */

/* A thread block has a contiguous range of the blocks. */
template <int threads> __global__ static void __launch_bounds__(threads, 1) range_kernel(swiglu_job job)
{
    extern __shared__ float range_table[];
    const int64_t units = job.h.rows * job.num_blocks;
    int64_t first = units * blockIdx.x / gridDim.x + threadIdx.x / LANES, warp_unit = first - f8_lane() / LANES;
    block_walk walk = walk_from(job, first, threads / LANES);
    walk.units = units * (blockIdx.x + 1) / gridDim.x;
    block_place at = take_block(job, &walk);
    block_inputs in = load_block(job, at);
    f8_sigmoid_fill(range_table);
    __syncthreads();
    for (; warp_unit < walk.units; warp_unit += walk.step) {
        block_place next = take_block(job, &walk);
        block_inputs after = load_block(job, next);
        store_block<FP8FLOW_E4M3>(job, range_table, at, in);
        at = next;
        in = after;
    }
}

/* No loads ahead. */
template <int threads> __global__ static void __launch_bounds__(threads, 1) plain_kernel(swiglu_job job)
{
    extern __shared__ float plain_table[];
    int64_t first = (int64_t)blockIdx.x * (threads / LANES) + threadIdx.x / LANES;
    int64_t warp_unit = first - f8_lane() / LANES;
    block_walk walk = walk_from(job, first, (int64_t)gridDim.x * (threads / LANES));
    f8_sigmoid_fill(plain_table);
    __syncthreads();
    for (; warp_unit < walk.units; warp_unit += walk.step) {
        block_place at = take_block(job, &walk);
        store_block<FP8FLOW_E4M3>(job, plain_table, at, load_block(job, at));
    }
}

template <int threads> static fp8flow_status ahead(fp8flow_context *c, const fp8flow_swiglu_args *a)
{
    swiglu_rows_kernel<FP8FLOW_E4M3, threads><<<132, threads, F8_SIGMOID_BYTES, f8_stream(c)>>>(job_of(a));
    return FP8FLOW_OK;
}

template <int threads> static fp8flow_status ranges(fp8flow_context *c, const fp8flow_swiglu_args *a)
{
    range_kernel<threads><<<132, threads, F8_SIGMOID_BYTES, f8_stream(c)>>>(job_of(a));
    return FP8FLOW_OK;
}

template <int threads> static fp8flow_status plain(fp8flow_context *c, const fp8flow_swiglu_args *a)
{
    plain_kernel<threads><<<132, threads, F8_SIGMOID_BYTES, f8_stream(c)>>>(job_of(a));
    return FP8FLOW_OK;
}

template <int per_multiprocessor> static fp8flow_status tiles(fp8flow_context *c, const fp8flow_swiglu_args *a)
{
    return launch_tiles<FP8FLOW_E4M3, per_multiprocessor>(c, job_of(a), 132);
}

/* ---- Checks ---- */

__global__ static void compare_kernel(const uint8_t *x, int64_t x_stride, const uint8_t *y, int64_t y_stride,
                                      int64_t length, int64_t total, unsigned long long *different)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total && x[i / length * x_stride + i % length] != y[i / length * y_stride + i % length])
        atomicAdd(different, 1ull);
}

__global__ static void sigmoid_kernel(bool bf16_only, unsigned long long *different)
{
    extern __shared__ float table[];
    f8_sigmoid_fill(table);
    __syncthreads();
    int64_t count = bf16_only ? 65536 : 1ll << 32, stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        float a = __uint_as_float((uint32_t)(bf16_only ? i << 16 : i)), expected = f8_sigmoid(a);
        float found = bf16_only ? f8_sigmoid_pair(table, (uint32_t)i << 16).y : f8_sigmoid_quick(a);
        float low = bf16_only ? f8_sigmoid_pair(table, (uint32_t)i).x : found;
        bool same = f8_bits(found) == f8_bits(expected) && f8_bits(low) == f8_bits(expected);
        if (a == a && !same) atomicAdd(different, 1ull);
    }
}

static unsigned long long *counter()
{
    static unsigned long long *memory = lab_alloc<unsigned long long>(1);
    LAB_TRY(cudaMemset(memory, 0, sizeof *memory));
    return memory;
}

static uint64_t counted(const unsigned long long *memory)
{
    LAB_TRY(cudaDeviceSynchronize());
    return lab_download(memory, 1)[0];
}

static void check_sigmoid(const char *name, bool bf16_only)
{
    unsigned long long *different = counter();
    sigmoid_kernel<<<264, 512, F8_SIGMOID_BYTES>>>(bf16_only, different);
    std::printf("%s: %llu differ\n", name, (unsigned long long)counted(different));
}

__global__ static void near_kernel(unsigned long long *different)
{
    uint32_t bits = blockIdx.x * blockDim.x + threadIdx.x; /* a BF16 number */
    float a = __uint_as_float(bits << 16);
    const uint32_t pair[1] = { bits };
    bool is_near = !f8_bf16_reach(pair, F8_SIGMOID_NEAR);
    bool same = f8_bits(f8_sigmoid_near(a)) == f8_bits(f8_sigmoid(a));
    if (is_near != (fabsf(a) < 64.0f) || (is_near && !same)) atomicAdd(different, 1ull);
}

static void check_near()
{
    unsigned long long *different = counter();
    near_kernel<<<256, 256>>>(different);
    std::printf("sigmoid of small numbers, all BF16 numbers: %llu differ\n", (unsigned long long)counted(different));
}

/* ---- Tensors ---- */

static fp8flow_tensor fp8_tensor(int64_t rows, int64_t cols, fp8flow_scaling scaling, int64_t gap)
{
    bool by_rows = scaling == FP8FLOW_ROW128;
    int64_t lines = by_rows ? rows : cols, stride = (by_rows ? cols : rows) + gap;
    int64_t scales = (by_rows ? rows : f8_ceil_div(rows, 128)) * f8_ceil_div(cols, 128);
    return { rows, cols, stride, 0, FP8FLOW_E4M3, scaling, by_rows ? FP8FLOW_ROWS : FP8FLOW_COLUMNS,
             lab_alloc<uint8_t>(lines * stride), lab_alloc<uint8_t>(scales) };
}

static void compare(const char *name, const fp8flow_tensor &x, const fp8flow_tensor &y)
{
    bool by_rows = x.scaling == FP8FLOW_ROW128;
    int64_t length = by_rows ? x.cols : x.rows, total = x.rows * x.cols;
    int64_t scales = (by_rows ? x.rows : f8_ceil_div(x.rows, 128)) * f8_ceil_div(x.cols, 128);
    unsigned long long *different = counter();
    const uint8_t *x_data = (uint8_t *)x.data, *y_data = (uint8_t *)y.data;
    const uint8_t *x_scale = (uint8_t *)x.scale, *y_scale = (uint8_t *)y.scale;
    compare_kernel<<<f8_grid(total, 256), 256>>>(x_data, x.stride, y_data, y.stride, length, total, different);
    compare_kernel<<<f8_grid(scales, 256), 256>>>(x_scale, scales, y_scale, scales, scales, scales, different);
    uint64_t count = counted(different);
    if (count) std::printf("    WRONG %s: %llu bytes differ\n", name, (unsigned long long)count);
}

/* Every output of a call, dense or with lines 8 bytes longer. */
struct outputs {
    fp8flow_tensor rows, columns, v_columns;
    float *dgate;
};

static outputs make_outputs(int64_t rows, int64_t cols, int64_t v_cols, int64_t gap)
{
    return { fp8_tensor(rows, cols, FP8FLOW_ROW128, gap), fp8_tensor(rows, cols, FP8FLOW_TILE128, gap),
             fp8_tensor(rows, v_cols, FP8FLOW_TILE128, gap), lab_alloc<float>(rows) };
}

static void free_outputs(const outputs &o)
{
    for (void *memory : { o.rows.data, o.rows.scale, o.columns.data, o.columns.scale, o.v_columns.data,
                          o.v_columns.scale, (void *)o.dgate })
        LAB_TRY(cudaFree(memory));
}

static void clear_outputs(const outputs &o)
{
    for (const fp8flow_tensor *t : { &o.rows, &o.columns, &o.v_columns })
        LAB_TRY(cudaMemset(t->data, 0xFF, (t->scaling == FP8FLOW_ROW128 ? t->rows : t->cols) * t->stride));
}

/* ---- Measurements ---- */

struct problem {
    int64_t rows, cols;
    fp8flow_tensor h, dv;
    float *gate;
    char *scratch;
    char shape[32];
};

typedef fp8flow_status (*forward_call)(fp8flow_context *, const fp8flow_swiglu_args *);
typedef fp8flow_status (*backward_call)(fp8flow_context *, const fp8flow_swiglu_backward_args *);

static fp8flow_context context_on(const problem &p, cudaStream_t stream)
{
    fp8flow_context c = {};
    c.stream = stream;
    c.scratch = p.scratch;
    return c;
}

static void forward(const char *name, const problem &p, bool with_columns, forward_call call)
{
    outputs exact = make_outputs(p.rows, p.cols, 0, 8), out = make_outputs(p.rows, p.cols, 0, 0);
    fp8flow_swiglu_args args = { &p.h, p.gate, NULL, &exact.rows, with_columns ? &exact.columns : NULL, NULL };
    fp8flow_context c = context_on(p, 0);
    lab_swiglu(&c, &args);
    args.rows = &out.rows;
    if (with_columns) args.columns = &out.columns;
    double time = lab_time([&](cudaStream_t stream) {
        c.stream = stream;
        call(&c, &args);
    });
    double bytes = (double)p.rows * p.cols * (with_columns ? 6 : 5) + (double)p.rows * p.cols / 128;
    lab_report(name, p.shape, bytes, time);
    compare(name, exact.rows, out.rows);
    if (with_columns) compare(name, exact.columns, out.columns);
    free_outputs(exact);
    free_outputs(out);
}

/* Which outputs a measurement wants. */
struct wish {
    bool rows, columns, v_columns, dgate;
};

static fp8flow_swiglu_backward_args wanted(const problem &p, outputs *o, wish w)
{
    return { &p.h, p.gate, NULL, &p.dv, w.rows ? &o->rows : NULL, w.columns ? &o->columns : NULL,
             w.v_columns ? &o->v_columns : NULL, w.dgate ? o->dgate : NULL, NULL };
}

static void backward(const char *name, const problem &p, wish w, backward_call call)
{
    outputs exact = make_outputs(p.rows, 2 * p.cols, p.cols, 8), out = make_outputs(p.rows, 2 * p.cols, p.cols, 0);
    fp8flow_swiglu_backward_args args = wanted(p, &exact, w);
    fp8flow_context c = context_on(p, 0);
    clear_outputs(out);
    backward_way::lab_swiglu_backward(&c, &args);
    args = wanted(p, &out, w);
    double time = lab_time([&](cudaStream_t stream) {
        c.stream = stream;
        call(&c, &args);
    });
    double per_activation = 6 + 2 * w.rows + 2 * w.columns + w.v_columns + 2 / 128.0 * w.rows;
    lab_report(name, p.shape, p.rows * p.cols * per_activation + 4.0 * p.rows * (1 + w.dgate), time);
    if (w.rows) compare(name, exact.rows, out.rows);
    if (w.columns) compare(name, exact.columns, out.columns);
    if (w.v_columns) compare(name, exact.v_columns, out.v_columns);
    free_outputs(exact);
    free_outputs(out);
}

/* BF16 rows alone. */
static void lines(const char *name, const problem &p, bool with_dgate, backward_call call)
{
    int64_t width = 2 * p.cols, gap = 4;
    fp8flow_tensor out = { p.rows, width, width, 0, FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS,
                           lab_alloc<uint16_t>(p.rows * width), NULL };
    fp8flow_tensor exact = out;
    exact.stride = width + gap;
    exact.data = lab_alloc<uint16_t>(p.rows * exact.stride);
    float *dgate = lab_alloc<float>(p.rows);
    fp8flow_swiglu_backward_args args = { &p.h, p.gate, NULL, &p.dv, &exact, NULL, NULL, NULL, NULL };
    fp8flow_context c = context_on(p, 0);
    LAB_TRY(cudaMemset(out.data, 0xFF, p.rows * width * 2));
    backward_way::lab_swiglu_backward(&c, &args);
    args.rows = &out;
    args.dgate = with_dgate ? dgate : NULL;
    double time = lab_time([&](cudaStream_t stream) {
        c.stream = stream;
        call(&c, &args);
    });
    lab_report(name, p.shape, 10.0 * p.rows * p.cols + 4.0 * p.rows * (1 + with_dgate), time);
    unsigned long long *different = counter();
    int64_t length = width * 2, total = p.rows * length;
    compare_kernel<<<f8_grid(total, 256), 256>>>((const uint8_t *)exact.data, exact.stride * 2,
                                                 (const uint8_t *)out.data, length, length, total, different);
    uint64_t count = counted(different);
    if (count) std::printf("    WRONG %s: %llu bytes differ\n", name, (unsigned long long)count);
    for (void *memory : { out.data, exact.data, (void *)dgate }) LAB_TRY(cudaFree(memory));
}

/* One round per row, as long as it can be. */
static fp8flow_status one_round(fp8flow_context *c, const fp8flow_swiglu_backward_args *a)
{
    f8_lines_job job = { *a->h, *a->dv, *a->rows, a->gate, f8_grouping_of(a->h, a->groups), a->dv->cols, a->dgate,
                         a->nonfinite };
    int64_t pieces = f8_ceil_div(job.cols, F8_LINE_PIECE);
    int threads = (int)(f8_ceil_div(pieces < F8_LINE_THREADS ? pieces : F8_LINE_THREADS, F8_WARP) * F8_WARP);
    f8_lines_kernel<F8_LINE_BLOCKS><<<f8_grid(job.h.rows, 1), threads, 0, f8_stream(c)>>>(job);
    return FP8FLOW_OK;
}

/* A warp per row. */
static fp8flow_status one_warp(fp8flow_context *c, const fp8flow_swiglu_backward_args *a)
{
    f8_lines_job job = { *a->h, *a->dv, *a->rows, a->gate, f8_grouping_of(a->h, a->groups), a->dv->cols, a->dgate,
                         a->nonfinite };
    f8_lines_kernel<F8_LINE_BLOCKS><<<f8_grid(job.h.rows, 1), F8_WARP, 0, f8_stream(c)>>>(job);
    return FP8FLOW_OK;
}

template <int per_multiprocessor>
static fp8flow_status line_blocks(fp8flow_context *c, const fp8flow_swiglu_backward_args *a)
{
    return f8_lines_launch<per_multiprocessor>(c, a);
}

static void measure_lines(const problem &p)
{
    /* predict 90 %: 49 instructions of 74, 1536 threads, whole rows at a time */
    lines("backward BF16 rows: library", p, true, backward_way::lab_swiglu_backward);
    /* predict 91 %: no barrier */
    lines("backward BF16 rows without dgate", p, false, backward_way::lab_swiglu_backward);
    /* predict 86 %: 57 instructions, since what a thread does once is not shared by rounds */
    lines("backward BF16 rows: one round", p, true, one_round);
    /* predict 80 %: 32 warps on a multiprocessor */
    lines("backward BF16 rows: a warp per row", p, true, one_warp);
    /* predict 86 %: 1024 threads, 64 registers */
    lines("backward BF16 rows: 2 blocks", p, true, line_blocks<2>);
}

static void measure(int64_t rows, int64_t cols)
{
    problem p = { rows, cols, {}, {}, lab_alloc<float>(rows), lab_alloc<char>(F8_CUDA_SCRATCH_BYTES), "" };
    std::snprintf(p.shape, sizeof p.shape, "%lldx%lld", (long long)rows, (long long)cols);
    p.h = { rows, 2 * cols, 2 * cols, 0, FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS,
            lab_normal_bf16(rows, 2 * cols, 0, 1), NULL };
    p.dv = { rows, cols, cols, 0, FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS,
             lab_normal_bf16(rows, cols, 4, 2), NULL };
    LAB_TRY(cudaMemcpy(p.gate, lab_upload(std::vector<float>(rows, 0.375f)), rows * 4, cudaMemcpyDeviceToDevice));
    /* predict 93 %: blocks go round the grid, so that DRAM pages are used up at once; table in 1 us; loads ahead */
    forward("forward rows: library (768)", p, false, lab_swiglu);
    /* predict 92 %: 64 KB always under way; registers just suffice */
    forward("forward rows: 1024 threads", p, false, ahead<1024>);
    /* predict 91 %: 32 KB under way */
    forward("forward rows: 512 threads", p, false, ahead<512>);
    /* predict 90 %: what the loads ahead are worth */
    forward("forward rows: 1024 threads, not ahead", p, false, plain<1024>);
    /* predict 88 %: what the order is worth */
    forward("forward rows: 768 threads, ranges", p, false, ranges<768>);
    /* predict 88 %: 23 instructions, 128 KB of strips, barriers of two blocks at different times */
    forward("forward rows and columns: library (2 blocks)", p, true, lab_swiglu);
    /* predict 82 % */
    forward("forward rows and columns: 1 block", p, true, tiles<1>);
    /* predict 87 %: 47 instructions instead of 74; the second kernel costs 3 us */
    backward("backward all: library", p, { true, true, true, true }, backward_way::lab_swiglu_backward);
    /* What the parts cost: without dgate 90 %, rows alone 90 %, columns alone 88 % */
    backward("backward without dgate", p, { true, true, true, false }, backward_way::lab_swiglu_backward);
    backward("backward rows", p, { true, false, false, false }, backward_way::lab_swiglu_backward);
    backward("backward columns, v", p, { false, true, true, false }, backward_way::lab_swiglu_backward);
    measure_lines(p);
    for (void *memory : { p.h.data, p.dv.data, (void *)p.gate, (void *)p.scratch }) LAB_TRY(cudaFree(memory));
}

int main()
{
    check_sigmoid("sigmoid from the table, all BF16 numbers", true);
    check_sigmoid("quick sigmoid, all floats", false);
    check_near();
    measure(24576, 1408);
    measure(32768, 2048);
    measure(65536, 768);
    return 0;
}
