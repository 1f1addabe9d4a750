/* swiglu.cu - versions of the fused kernels of swiglu and swiglu_backward, E4M3, with gate weights, no groups.
 *
 * swiglu.cu of the library is compiled three times, with three ways to the sigmoid:
 *   table       what the library does
 *   arithmetic  the exponential, and a division of one approximation and one Newton step
 *   mixed       one number of a pair each way
 * The backward kernel has no register free for the division, and is timed with some of its outputs instead.
 * The row kernel is there once more with loads one block ahead. Every version is compared, byte for byte, with the
 * kernel for any combination (swiglu_any.cuh), which lines of an odd length choose. The sigmoids are compared with
 * f8_sigmoid on all BF16 numbers, the arithmetic one on all floats.
 */
#include "lab.cuh"

#include "ops/swiglu_any.cuh"
#include "ops/swiglu_tile.cuh"

/* ---- Sigmoids ---- */

/* The bits of f8_sigmoid. exp: x is limited, so that the last two factors 2^n are one sum of exponents: n = 128 comes
 * with p < 1, n = -126 with p >= 1. The shift drops the upper bits of 1.5 * 2^23. The division: what the hardware's own
 * sequence does where neither overflow nor underflow threaten; results below 2^-126 leave it to IEEE. */
__device__ static inline float arithmetic_sigmoid(float a)
{
    float x = fminf(fmaxf(-a, -87.3f), 88.7f);
    float shifted = fmaf(x, 1.44269504f, 12582912.0f), n = shifted - 12582912.0f;
    float r = fmaf(n, -1.42860677e-6f, fmaf(n, -0.693145752f, x));
    float p = fmaf(1.98756924e-4f, r, 1.39819994e-3f);
    p = fmaf(p, r, 8.33345205e-3f);
    p = fmaf(p, r, 4.16657962e-2f);
    p = fmaf(p, r, 1.66666657e-1f);
    p = fmaf(p, r, 5.00000000e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    float d = 1.0f + __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23)), y;
    if (d > 0x1p125f) return 1.0f / d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(d));
    return fmaf(y, fmaf(-d, y, 1.0f), y);
}

__device__ static inline float2 arithmetic_pair(const float *, uint32_t pair)
{
    return make_float2(arithmetic_sigmoid(f8_bf16_low(pair)), arithmetic_sigmoid(f8_bf16_high(pair)));
}

__device__ static inline float2 mixed_pair(const float *table, uint32_t pair)
{
    uint32_t offset = f8_sigmoid_offsets(pair) & 0xFFFFu;
    return make_float2(*(const float *)((const char *)table + offset), arithmetic_sigmoid(f8_bf16_high(pair)));
}

/* ---- The library's kernels ---- */

namespace table_way {
#define f8_cuda_swiglu lab_table_swiglu
#include "ops/swiglu.cu"
#undef f8_cuda_swiglu
namespace backward {
#define f8_cuda_swiglu_backward lab_table_swiglu_backward
#include "ops/swiglu_backward.cu"
#undef f8_cuda_swiglu_backward
}
}

#define f8_sigmoid_pair arithmetic_pair
namespace arithmetic_way {
#define f8_cuda_swiglu lab_arithmetic_swiglu
#include "ops/swiglu.cu"
#undef f8_cuda_swiglu
}
#undef f8_sigmoid_pair

#define f8_sigmoid_pair mixed_pair
namespace mixed_way {
#define f8_cuda_swiglu lab_mixed_swiglu
#include "ops/swiglu.cu"
#undef f8_cuda_swiglu
}
#undef f8_sigmoid_pair

/* ---- Row kernel with loads one block ahead; no groups ---- */

template <int threads>
__global__ static void __launch_bounds__(threads, 1) ahead_kernel(table_way::swiglu_job job)
{
    extern __shared__ float ahead_table[];
    const int sets = threads / table_way::LANES;
    int64_t units = job.h.rows * job.num_blocks;
    int64_t begin = units * blockIdx.x / gridDim.x, end = units * (blockIdx.x + 1) / gridDim.x;
    int set = (int)threadIdx.x / table_way::LANES, warp_set = set / 4 * 4;
    int row = (int)((begin + set) / job.num_blocks), block = (int)((begin + set) % job.num_blocks);
    bool inside = begin + set < end;
    table_way::block_place at = { row, block, inside, inside };
    table_way::block_inputs in = table_way::load_block(job, at);
    f8_sigmoid_fill(ahead_table);
    __syncthreads();
    uint32_t nonfinite = 0;
    for (int64_t unit = begin; unit + warp_set < end; unit += sets) {
        block += sets % job.num_blocks;
        row += sets / job.num_blocks + (block >= job.num_blocks);
        block -= block >= job.num_blocks ? job.num_blocks : 0;
        inside = unit + sets + set < end;
        table_way::block_place next = { row, block, inside, inside };
        table_way::block_inputs after = table_way::load_block(job, next);
        nonfinite += table_way::store_block<FP8FLOW_E4M3>(job, ahead_table, at, in);
        at = next;
        in = after;
    }
    f8_add_nonfinite(job.nonfinite, nonfinite);
}

template <int threads> static fp8flow_status ahead(fp8flow_context *c, const fp8flow_swiglu_args *a)
{
    int64_t cols = a->h->cols / 2;
    table_way::swiglu_job job = { *a->h, *a->rows, {}, a->gate, f8_grouping_of(a->h, NULL), cols,
                                  (int32_t)f8_ceil_div(cols, F8_BLOCK), a->nonfinite };
    ahead_kernel<threads><<<132, threads, F8_SIGMOID_BYTES, f8_stream(c)>>>(job);
    return FP8FLOW_OK;
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
        float found = bf16_only ? f8_sigmoid_pair(table, (uint32_t)i << 16).y : arithmetic_sigmoid(a);
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
    table_way::lab_table_swiglu(&c, &args);
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
    table_way::backward::lab_table_swiglu_backward(&c, &args);
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

static void measure(int64_t rows, int64_t cols)
{
    problem p = { rows, cols, {}, {}, lab_alloc<float>(rows), lab_alloc<char>(F8_CUDA_SCRATCH_BYTES), "" };
    std::snprintf(p.shape, sizeof p.shape, "%lldx%lld", (long long)rows, (long long)cols);
    p.h = { rows, 2 * cols, 2 * cols, 0, FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS,
            lab_normal_bf16(rows, 2 * cols, 0, 1), NULL };
    p.dv = { rows, cols, cols, 0, FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS,
             lab_normal_bf16(rows, cols, 4, 2), NULL };
    LAB_TRY(cudaMemcpy(p.gate, lab_upload(std::vector<float>(rows, 0.375f)), rows * 4, cudaMemcpyDeviceToDevice));
    /* predict 93 %: 18 instructions and one look-up per activation; memory is the limit */
    forward("forward rows: table", p, false, table_way::lab_table_swiglu);
    /* predict 85 %: 31 instructions of the 36 that the bandwidth allows */
    forward("forward rows: arithmetic", p, false, arithmetic_way::lab_arithmetic_swiglu);
    /* predict 92 %: 25 instructions, half the bank conflicts */
    forward("forward rows: mixed", p, false, mixed_way::lab_mixed_swiglu);
    /* predict 93 %: 24 warps, each with the loads of two blocks under way */
    forward("forward rows: table, ahead, 768 threads", p, false, ahead<768>);
    /* predict 91 %: 16 warps with four times the registers free; latency of look-ups shows */
    forward("forward rows: table, ahead, 512 threads", p, false, ahead<512>);
    /* predict 88 %: two barriers per tile, 64 KB of loads under way in between */
    forward("forward rows and columns: table", p, true, table_way::lab_table_swiglu);
    /* predict 85 % */
    forward("forward rows and columns: mixed", p, true, mixed_way::lab_mixed_swiglu);
    /* predict 87 %: 50 instructions of 92, 96 KB of loads under way; the second kernel costs 2 us */
    backward("backward all: table", p, { true, true, true, true }, table_way::backward::lab_table_swiglu_backward);
    /* What the parts cost: without dgate 89 %, rows alone 90 %, columns alone 87 % */
    backward("backward without dgate: table", p, { true, true, true, false },
             table_way::backward::lab_table_swiglu_backward);
    backward("backward rows: table", p, { true, false, false, false }, table_way::backward::lab_table_swiglu_backward);
    backward("backward columns, v: table", p, { false, true, true, false },
             table_way::backward::lab_table_swiglu_backward);
    for (void *memory : { p.h.data, p.dv.data, (void *)p.gate, (void *)p.scratch }) LAB_TRY(cudaFree(memory));
}

int main()
{
    check_sigmoid("sigmoid from the table, all BF16 numbers", true);
    check_sigmoid("sigmoid by arithmetic, all floats", false);
    measure(24576, 1408);
    measure(32768, 2048);
    return 0;
}
