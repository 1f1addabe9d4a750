/* gemm_cublaslt_data.cuh - the operands of gemm_cublaslt.cu: grouped FP8 products of random numbers, made by quantize.
 */
#ifndef F8_LAB_GEMM_CUBLASLT_DATA_CUH
#define F8_LAB_GEMM_CUBLASLT_DATA_CUH

#include "cublaslt.cuh"
#include "fp8flow_ops.h"
#include "ops/codes.cuh"

#define FLOW_TRY(call)                                                                   \
    do {                                                                                 \
        if ((call) != FP8FLOW_OK) {                                                      \
            std::printf("%s:%d: %s\n", __FILE__, __LINE__, fp8flow_last_error());        \
            std::exit(1);                                                                \
        }                                                                                \
    } while (0)

static fp8flow_context *context;

static unsigned blocks_of(int64_t count)
{
    return (unsigned)((count + 255) / 256);
}

/* Blocks of `lines` rows times 2^u, u in -4 .. 4. */
__global__ static void spread_kernel(uint16_t *x, int64_t count, int64_t cols, int lines)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    int shift = (int)(lab_mix(i / cols / lines * 8192 + i % cols / 128) % 9) - 4;
    x[i] = (uint16_t)(__float_as_uint(ldexpf(__uint_as_float((uint32_t)x[i] << 16), shift)) >> 16);
}

__device__ static float power_of_two(uint8_t byte)
{
    return __uint_as_float((uint32_t)byte << 23);
}

/* A [lines, steps] array of scale bytes with any strides, and what cuBLASLt wants: to[line * stride + step]. */
struct scales {
    const uint8_t *from;
    int64_t line, step; /* strides */
};

__global__ static void scale_kernel(scales s, float *to, int64_t lines, int64_t steps, int64_t to_line,
                                    int64_t to_step)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= lines * steps) return;
    int64_t line = i / steps, step = i % steps;
    to[line * to_line + step * to_step] = power_of_two(s.from[line * s.line + step * s.step]);
}

__global__ static void absolute_kernel(const uint8_t *from, uint8_t *to, int64_t count)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = from[i] & 0x7F;
}

static uint8_t *absolute(const uint8_t *codes, int64_t count)
{
    uint8_t *to = lab_alloc<uint8_t>(count);
    absolute_kernel<<<blocks_of(count), 256, 0, stream>>>(codes, to, count);
    return to;
}

struct shape {
    const char *name;
    fp8flow_product product;
    int experts, mean; /* 0: small_rows */
    int64_t outer, inner; /* columns of c, contraction */
};

static const int small_rows[] = { 0, 1, 63, 64, 65, 127, 128, 129, 300, 1000 };

/* c[row, outer] = sum over inner of a[row, inner] * b[expert, outer, inner]: both products are this in memory. */
struct problem {
    shape s;
    std::vector<int32_t> offset, rows;
    int64_t capacity;
    fp8flow_groups groups;
    fp8flow_tensor a, b, c;
    scales b_scale; /* of expert 0, [outer / 128, inner / 128] */
    int64_t b_scale_expert;
};

static std::vector<int32_t> draw_rows(const shape &s)
{
    if (s.mean == 0) return std::vector<int32_t>(small_rows, small_rows + sizeof small_rows / sizeof *small_rows);
    std::vector<int32_t> rows(s.experts);
    for (int e = 0; e < s.experts; e++)
        rows[e] = (int32_t)(s.mean * (0.7 + 0.6 * 0x1p-32 * ((uint32_t)e * 2654435769u + 0x80000000u)));
    return rows;
}

static fp8flow_tensor make_tensor(int64_t rows, int64_t cols, int64_t group_rows, fp8flow_dtype dtype)
{
    fp8flow_tensor t = {};
    t.rows = rows;
    t.cols = cols;
    t.stride = cols;
    t.group_rows = group_rows;
    t.dtype = dtype;
    return t;
}

static void allocate(fp8flow_tensor *t, int64_t groups)
{
    t->data = lab_alloc<char>(fp8flow_tensor_data_bytes(t));
    if (t->scaling != FP8FLOW_UNSCALED) t->scale = lab_alloc<char>(fp8flow_tensor_scale_bytes(t, groups));
}

/* Codes of normal numbers in `t`, whose format is set. lines: of a block of scales that differ; 0: all alike. */
static void draw_codes(fp8flow_tensor *t, const fp8flow_groups *groups, int lines, uint64_t seed)
{
    fp8flow_tensor x = make_tensor(t->rows, t->cols, 0, FP8FLOW_BF16);
    uint16_t *values = lab_normal_bf16(t->rows, t->cols, 0, seed);
    x.data = values;
    int64_t count = t->rows * t->cols;
    if (lines > 0) spread_kernel<<<blocks_of(count), 256, 0, stream>>>(values, count, t->cols, lines);
    allocate(t, groups ? groups->count : 1);
    fp8flow_quantize_args args = {};
    args.x = &x;
    args.groups = t->group_rows > 0 ? NULL : groups;
    (t->layout == FP8FLOW_ROWS ? args.rows : args.columns) = t;
    FLOW_TRY(fp8flow_quantize(context, &args));
    LAB_TRY(cudaStreamSynchronize(stream));
    LAB_TRY(cudaFree(values));
}

static void make_groups(problem *p)
{
    p->rows = draw_rows(p->s);
    p->s.experts = (int)p->rows.size();
    p->offset.assign(p->s.experts + 1, 0);
    for (int e = 0; e < p->s.experts; e++) p->offset[e + 1] = p->offset[e] + (p->rows[e] + 127) / 128 * 128;
    p->capacity = p->offset[p->s.experts];
    p->groups.count = p->s.experts;
    p->groups.offset = lab_upload(p->offset);
    p->groups.rows = lab_upload(p->rows);
}

static void make_problem(problem *p, const shape &s)
{
    p->s = s;
    make_groups(p);
    int64_t outer_blocks = (s.outer + 127) / 128, inner_blocks = (s.inner + 127) / 128;
    p->a = make_tensor(p->capacity, s.inner, 0, FP8FLOW_E4M3);
    p->a.scaling = FP8FLOW_ROW128;
    draw_codes(&p->a, &p->groups, 1, 1);
    if (s.product == FP8FLOW_FPROP) {
        p->b = make_tensor(p->s.experts * s.outer, s.inner, s.outer, FP8FLOW_E4M3);
    } else {
        p->b = make_tensor(p->s.experts * s.inner, s.outer, s.inner, FP8FLOW_E4M3);
        p->b.layout = FP8FLOW_COLUMNS;
        p->b.stride = s.inner;
    }
    p->b.scaling = FP8FLOW_TILE128;
    draw_codes(&p->b, &p->groups, 128, 2);
    bool is_fprop = s.product == FP8FLOW_FPROP;
    p->b_scale = { (const uint8_t *)p->b.scale, is_fprop ? inner_blocks : 1, is_fprop ? 1 : outer_blocks };
    p->b_scale_expert = outer_blocks * inner_blocks;
    p->c = make_tensor(p->capacity, s.outer, 0, FP8FLOW_BF16);
    allocate(&p->c, 1);
}

static void free_problem(problem *p)
{
    const void *memory[] = { p->groups.offset, p->groups.rows, p->a.data, p->a.scale,
                             p->b.data,        p->b.scale,     p->c.data };
    for (const void *m : memory) LAB_TRY(cudaFree((void *)m));
}

static void run_ours(const problem &p, fp8flow_tensor *c)
{
    fp8flow_gemm_args args = {};
    args.product = p.s.product;
    args.groups = &p.groups;
    args.a = &p.a;
    args.b = &p.b;
    args.c = c;
    FLOW_TRY(fp8flow_gemm(context, &args));
}

#endif
