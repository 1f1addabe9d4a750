/* gemm_cublaslt.cu - fp8flow_gemm beside cuBLASLt on the same operands: the same numbers, and how fast.
 *
 * 1. FPROP and DGRAD, ROW128 x TILE128, against cuBLASLt's product of 1 x 128 by 128 x 128 scaled operands, which it
 *    has for one matrix at a time: expert by expert, over the padded rows. Every element is compared. Both may be off
 *    by the contract's bound B = 2^-11 * sum |a b| + 2^-8 |c| (FP32 sums of tensor cores, one rounding to BF16), so
 *    that they may differ by 2 B. sum |a b| is cuBLASLt's product of the same codes without their signs, in FP32;
 *    it and both results are themselves checked on samples, in FP64.
 * 2. Dense products, 4096 x 4096 x 7168, best of the 8 algorithms that cuBLASLt proposes, and ours.
 * 3. BF16, one call of cuBLASLt for each expert, their rows known to the host: a baseline for grouped products.
 *
 * Predictions: every difference below 0.5 of 2 B; ours dense at 75 to 85 % of cuBLASLt tensorwise fast, equal to its
 * block-scaled one; BF16 by experts within 5 % of dense at V3, 15 % slower at V2-Lite.
 */
#include "gemm_cublaslt_data.cuh"

/* ---- 1. The same numbers ---- */

/* Expert by expert into d [capacity, outer]; false where cuBLASLt has no such product. */
static bool run_theirs(const problem &p, const uint8_t *a, const uint8_t *b, void *d, cudaDataType d_type)
{
    int64_t outer = p.s.outer, inner = p.s.inner, steps = (inner + 127) / 128, outer_blocks = (outer + 127) / 128;
    int64_t steps4 = (steps + 3) / 4 * 4, width = d_type == CUDA_R_32F ? 4 : 2;
    float *a_scale = lab_alloc<float>(p.capacity * steps);
    float *b_scale = lab_alloc<float>(p.s.experts * outer_blocks * steps4);
    LAB_TRY(cudaMemset(b_scale, 0, p.s.experts * outer_blocks * steps4 * sizeof *b_scale)); /* steps4 > steps */
    bool is_possible = true;
    for (int e = 0; e < p.s.experts && is_possible; e++) {
        int64_t first = p.offset[e], lines = p.offset[e + 1] - first;
        if (lines == 0) continue;
        float *as = a_scale + first * steps, *bs = b_scale + e * outer_blocks * steps4;
        scales of_a = { (const uint8_t *)p.a.scale + first * steps, steps, 1 }, of_b = p.b_scale;
        of_b.from += e * p.b_scale_expert;
        scale_kernel<<<blocks_of(lines * steps), 256, 0, stream>>>(of_a, as, lines, steps, 1, lines);
        scale_kernel<<<blocks_of(outer_blocks * steps), 256, 0, stream>>>(of_b, bs, outer_blocks, steps, steps4, 1);
        operand weight = { b + e * outer * inner, CUDA_R_8F_E4M3, CUBLAS_OP_T, inner, outer, inner, bs,
                           CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F };
        operand rows = { a + first * inner, CUDA_R_8F_E4M3, CUBLAS_OP_N, inner, lines, inner, as,
                         CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F };
        product call = make_product(weight, rows, (char *)d + first * outer * width, d_type, SLOW);
        is_possible = call.count > 0 && run(call, 0) == CUBLAS_STATUS_SUCCESS;
        destroy(call);
    }
    LAB_TRY(cudaStreamSynchronize(stream));
    LAB_TRY(cudaFree(a_scale));
    LAB_TRY(cudaFree(b_scale));
    return is_possible;
}

/* What the kernels below need of a problem. Worst values are floats that are not negative, compared as integers. */
struct comparison {
    const uint16_t *ours, *theirs;
    const float *magnitude;
    const int32_t *offset, *rows;
    int experts;
    int64_t outer, inner;
    int *worst;
};

enum { DIFFERENCE, PADDING, OURS, THEIRS, MAGNITUDE, WORSTS };

__device__ static float bf16(uint16_t bits)
{
    return __uint_as_float((uint32_t)bits << 16);
}

__device__ static void keep_worst(int *worst, float value)
{
    atomicMax(worst, __float_as_int(value >= 0.0f ? value : INFINITY)); /* NaN is infinitely wrong */
}

__device__ static int expert_of(const comparison &c, int64_t row)
{
    int e = 0;
    while (c.offset[e + 1] <= row) e++;
    return e;
}

/* B of one result. */
__device__ static float bound(float magnitude, float value)
{
    return 0x1p-11f * magnitude + 0x1p-8f * fabsf(value) + 0x1p-126f;
}

/* One block for each row. */
__global__ static void compare_kernel(comparison c)
{
    int64_t row = blockIdx.x, e = expert_of(c, row);
    bool is_padding = row >= c.offset[e] + c.rows[e];
    float worst = 0.0f;
    for (int64_t i = row * c.outer + threadIdx.x; i < (row + 1) * c.outer; i += blockDim.x) {
        float x = bf16(c.ours[i]), y = bf16(c.theirs[i]);
        float limit = 2.0f * bound(c.magnitude[i], fmaxf(fabsf(x), fabsf(y)));
        float ratio = is_padding ? fabsf(x) : fabsf(x - y) / limit;
        worst = ratio <= worst ? worst : ratio; /* takes a NaN */
        if (!(ratio >= 0.0f)) break;
    }
    keep_worst(&c.worst[is_padding ? PADDING : DIFFERENCE], worst);
}

/* One warp for each sample, in FP64. */
__global__ static void sample_kernel(comparison c, fp8flow_tensor a, fp8flow_tensor b, scales b_scale,
                                     int64_t b_scale_expert)
{
    int64_t row = (int64_t)(lab_mix(blockIdx.x * 2 + 1) % c.offset[c.experts]), e = expert_of(c, row);
    int64_t column = (int64_t)(lab_mix(blockIdx.x * 2) % c.outer), steps = (c.inner + 127) / 128;
    if (row >= c.offset[e] + c.rows[e]) return;
    double sum = 0, magnitude = 0;
    for (int64_t k = threadIdx.x; k < c.inner; k += 32) {
        float x = f8_decode(((const uint8_t *)a.data)[row * c.inner + k], FP8FLOW_E4M3);
        float y = f8_decode(((const uint8_t *)b.data)[(e * c.outer + column) * c.inner + k], FP8FLOW_E4M3);
        x *= power_of_two(((const uint8_t *)a.scale)[row * steps + k / 128]);
        y *= power_of_two(b_scale.from[e * b_scale_expert + column / 128 * b_scale.line + k / 128 * b_scale.step]);
        sum += (double)x * y;
        magnitude += fabs((double)x * y);
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(~0u, sum, lanes);
        magnitude += __shfl_xor_sync(~0u, magnitude, lanes);
    }
    if (threadIdx.x > 0) return;
    int64_t i = row * c.outer + column;
    float limit = bound((float)magnitude, (float)sum);
    keep_worst(&c.worst[OURS], (float)fabs(bf16(c.ours[i]) - sum) / limit);
    keep_worst(&c.worst[THEIRS], (float)fabs(bf16(c.theirs[i]) - sum) / limit);
    keep_worst(&c.worst[MAGNITUDE], (float)(fabs(c.magnitude[i] - magnitude) / (magnitude + 1e-30)));
}

static void print_comparison(const problem &p, const comparison &c)
{
    float worst[WORSTS];
    LAB_TRY(cudaMemset(c.worst, 0, sizeof worst));
    compare_kernel<<<(unsigned)p.capacity, 256>>>(c);
    sample_kernel<<<4096, 32>>>(c, p.a, p.b, p.b_scale, p.b_scale_expert);
    LAB_TRY(cudaMemcpy(worst, c.worst, sizeof worst, cudaMemcpyDeviceToHost));
    bool is_equal = worst[DIFFERENCE] <= 1 && worst[PADDING] == 0 && worst[OURS] <= 1 && worst[MAGNITUDE] < 0.01f;
    std::printf("%-20s %3d experts, %6lld x %5lld x %5lld: largest difference %.3f of 2 B; from FP64 ours %.3f, "
                "cuBLASLt %.3f of B, sum |ab| %.1e; padding %g: %s\n",
                p.s.name, p.s.experts, (long long)p.capacity, (long long)p.s.outer, (long long)p.s.inner,
                worst[DIFFERENCE], worst[OURS], worst[THEIRS], worst[MAGNITUDE], worst[PADDING],
                is_equal ? "equal" : "WRONG");
}

static void compare(const shape &s)
{
    problem p;
    make_problem(&p, s);
    const uint8_t *a = (const uint8_t *)p.a.data, *b = (const uint8_t *)p.b.data;
    uint8_t *a_absolute = absolute(a, p.capacity * s.inner);
    uint8_t *b_absolute = absolute(b, p.s.experts * s.outer * s.inner);
    uint16_t *theirs = lab_alloc<uint16_t>(p.capacity * s.outer);
    float *magnitude = lab_alloc<float>(p.capacity * s.outer);
    int *worst = lab_alloc<int>(WORSTS);
    run_ours(p, &p.c);
    if (run_theirs(p, a, b, theirs, CUDA_R_16BF) && run_theirs(p, a_absolute, b_absolute, magnitude, CUDA_R_32F))
        print_comparison(p, { (const uint16_t *)p.c.data, theirs, magnitude, p.groups.offset, p.groups.rows,
                              p.s.experts, s.outer, s.inner, worst });
    else std::printf("%-20s cuBLASLt has no such product\n", s.name);
    void *memory[] = { a_absolute, b_absolute, theirs, magnitude, worst };
    for (void *m : memory) LAB_TRY(cudaFree(m));
    free_problem(&p);
}

/* ---- 2. Dense products ---- */

static void report(const char *name, const char *what, double operations, double microseconds)
{
    std::printf("%-24s %-34s %9.1f us %6.0f TFLOP/s\n", name, what, microseconds, 1e-6 * operations / microseconds);
}

/* The fastest of the proposed algorithms. */
static void time_best(const char *name, const product &p, double operations)
{
    double best = 0;
    for (int i = 0; i < p.count; i++) {
        if (run(p, i) != CUBLAS_STATUS_SUCCESS) continue;
        LAB_TRY(cudaStreamSynchronize(stream));
        double time = lab_time([&](cudaStream_t) { (void)run(p, i); }, 21, stream);
        if (best == 0 || time < best) best = time;
    }
    if (best > 0) report(name, "cuBLASLt", operations, best);
    else std::printf("%-24s cuBLASLt has no such product\n", name);
}

static void time_ours(const char *name, const fp8flow_gemm_args &args, double operations)
{
    FLOW_TRY(fp8flow_gemm(context, &args));
    LAB_TRY(cudaStreamSynchronize(stream));
    report(name, "fp8flow", operations,
           lab_time([&](cudaStream_t) { FLOW_TRY(fp8flow_gemm(context, &args)); }, 21, stream));
}

struct dense {
    int64_t m, n, k;
    double operations;
    fp8flow_tensor a, b, c;
};

static dense make_dense(fp8flow_scaling a_scaling, fp8flow_scaling b_scaling)
{
    dense x = { 4096, 4096, 7168, 2.0 * 4096 * 4096 * 7168, {}, {}, {} };
    bool is_bf16 = a_scaling == FP8FLOW_UNSCALED;
    x.a = make_tensor(x.m, x.k, 0, is_bf16 ? FP8FLOW_BF16 : FP8FLOW_E4M3);
    x.b = make_tensor(x.n, x.k, is_bf16 ? 0 : x.n, is_bf16 ? FP8FLOW_BF16 : FP8FLOW_E4M3);
    x.c = make_tensor(x.m, x.n, 0, FP8FLOW_BF16);
    x.a.scaling = a_scaling;
    x.b.scaling = b_scaling;
    allocate(&x.c, 1);
    if (is_bf16) {
        x.a.data = lab_normal_bf16(x.m, x.k, 0, 1);
        x.b.data = lab_normal_bf16(x.n, x.k, 0, 2);
    } else {
        draw_codes(&x.a, NULL, a_scaling == FP8FLOW_ROW128 ? 1 : 0, 1);
        draw_codes(&x.b, NULL, b_scaling == FP8FLOW_TILE128 ? 128 : 0, 2);
    }
    return x;
}

static void free_dense(const dense &x)
{
    void *memory[] = { x.a.data, x.a.scale, x.b.data, x.b.scale, x.c.data };
    for (void *m : memory) LAB_TRY(cudaFree(m));
}

static void time_dense_ours(const char *name, const dense &x)
{
    fp8flow_gemm_args args = {};
    args.product = FP8FLOW_FPROP;
    args.a = &x.a;
    args.b = &x.b;
    args.c = (fp8flow_tensor *)&x.c;
    time_ours(name, args, x.operations);
}

static void time_dense(const char *name, fp8flow_scaling a_scaling, fp8flow_scaling b_scaling, accumulation how)
{
    dense x = make_dense(a_scaling, b_scaling);
    cudaDataType type = a_scaling == FP8FLOW_UNSCALED ? CUDA_R_16BF : CUDA_R_8F_E4M3;
    int64_t steps = x.k / 128;
    operand b = { x.b.data, type, CUBLAS_OP_T, x.k, x.n, x.k, NULL, 0 };
    operand a = { x.a.data, type, CUBLAS_OP_N, x.k, x.m, x.k, NULL, 0 };
    float *a_scale = lab_alloc<float>(x.m * steps), *b_scale = lab_alloc<float>(x.n / 128 * steps);
    if (a_scaling == FP8FLOW_ROW128) {
        scale_kernel<<<blocks_of(x.m * steps), 256, 0, stream>>>({ (uint8_t *)x.a.scale, steps, 1 }, a_scale, x.m,
                                                                 steps, 1, x.m);
        scale_kernel<<<blocks_of(x.n / 128 * steps), 256, 0, stream>>>({ (uint8_t *)x.b.scale, steps, 1 }, b_scale,
                                                                       x.n / 128, steps, steps, 1);
        a.scale = a_scale, a.scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
        b.scale = b_scale, b.scale_mode = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    } else if (a_scaling == FP8FLOW_TENSOR) {
        a.scale = (const float *)x.a.scale, b.scale = (const float *)x.b.scale;
    }
    product call = make_product(b, a, x.c.data, CUDA_R_16BF, how);
    time_best(name, call, x.operations);
    destroy(call);
    if (how == SLOW) time_dense_ours(name, x);
    LAB_TRY(cudaFree(a_scale));
    LAB_TRY(cudaFree(b_scale));
    free_dense(x);
}

/* ---- 3. BF16 by experts ---- */

struct layer {
    const char *name;
    int experts, mean;
    int64_t hidden, width;
};

/* Whole blocks of 128 rows, as `fp8flow bench gemm` has them. */
static std::vector<int64_t> draw_blocks(const layer &l)
{
    std::vector<int64_t> offset(l.experts + 1, 0);
    for (int e = 0; e < l.experts; e++) {
        double factor = 0.7 + 0.6 * 0x1p-32 * ((uint32_t)e * 2654435769u + 0x80000000u);
        offset[e + 1] = offset[e] + (int64_t)(factor * l.mean / 128 + 0.5) * 128;
    }
    return offset;
}

/* Weights [experts * n, k] row by row. wgrad writes FP32. */
static product make_expert(fp8flow_product what, const void *const data[3], int64_t first, int64_t rows, int64_t n,
                           int64_t k, int expert)
{
    const char *x = (const char *)data[0], *y = (const char *)data[1];
    char *z = (char *)data[2];
    int64_t weight = expert * n * k;
    operand on_rows, other;
    if (what == FP8FLOW_WGRAD) {
        on_rows = { x + 2 * first * n, CUDA_R_16BF, CUBLAS_OP_T, n, rows, n, NULL, 0 };
        other = { y + 2 * first * k, CUDA_R_16BF, CUBLAS_OP_N, k, rows, k, NULL, 0 };
        return make_product(other, on_rows, z + 4 * weight, CUDA_R_32F, SLOW);
    }
    bool is_fprop = what == FP8FLOW_FPROP;
    int64_t inner = is_fprop ? k : n, outer = is_fprop ? n : k;
    on_rows = { x + 2 * first * inner, CUDA_R_16BF, CUBLAS_OP_N, inner, rows, inner, NULL, 0 };
    other = { y + 2 * weight, CUDA_R_16BF, is_fprop ? CUBLAS_OP_T : CUBLAS_OP_N, k, n, k, NULL, 0 };
    return make_product(other, on_rows, z + 2 * first * outer, CUDA_R_16BF, SLOW);
}

static void time_experts(const layer &l, const char *name, fp8flow_product what, int64_t n, int64_t k)
{
    std::vector<int64_t> offset = draw_blocks(l);
    std::vector<product> calls;
    int64_t capacity = offset[l.experts], weights = l.experts * n * k;
    bool is_wgrad = what == FP8FLOW_WGRAD;
    uint16_t *x = lab_normal_bf16(capacity, what == FP8FLOW_FPROP ? k : n, 0, 1);
    uint16_t *y = is_wgrad ? lab_normal_bf16(capacity, k, 0, 2) : lab_normal_bf16(l.experts * n, k, 0, 2);
    char *z = lab_alloc<char>(is_wgrad ? 4 * weights : 2 * capacity * (what == FP8FLOW_FPROP ? n : k));
    const void *const data[3] = { x, y, z };
    bool is_possible = true;
    for (int e = 0; e < l.experts; e++) {
        calls.push_back(make_expert(what, data, offset[e], offset[e + 1] - offset[e], n, k, e));
        is_possible = is_possible && calls[e].count > 0 && run(calls[e], 0) == CUBLAS_STATUS_SUCCESS;
    }
    LAB_TRY(cudaStreamSynchronize(stream));
    auto launch = [&](cudaStream_t) {
        for (const product &call : calls) (void)run(call, 0);
    };
    if (is_possible) report(l.name, name, 2.0 * capacity * n * k, lab_time(launch, 21, stream));
    else std::printf("%-24s %s: cuBLASLt has no such product\n", l.name, name);
    for (const product &call : calls) destroy(call);
    LAB_TRY(cudaFree(x));
    LAB_TRY(cudaFree(y));
    LAB_TRY(cudaFree(z));
}

static void time_layer(const layer &l)
{
    time_experts(l, "BF16 by experts, fprop1", FP8FLOW_FPROP, 2 * l.width, l.hidden);
    time_experts(l, "BF16 by experts, fprop2", FP8FLOW_FPROP, l.hidden, l.width);
    time_experts(l, "BF16 by experts, dgrad2", FP8FLOW_DGRAD, l.hidden, l.width);
    time_experts(l, "BF16 by experts, dgrad1", FP8FLOW_DGRAD, 2 * l.width, l.hidden);
    time_experts(l, "BF16 by experts, wgrad1, FP32 out", FP8FLOW_WGRAD, 2 * l.width, l.hidden);
    time_experts(l, "BF16 by experts, wgrad2, FP32 out", FP8FLOW_WGRAD, l.hidden, l.width);
}

int main()
{
    static const shape shapes[] = {
        { "small fprop", FP8FLOW_FPROP, 0, 0, 384, 512 },
        { "small dgrad", FP8FLOW_DGRAD, 0, 0, 512, 384 },
        { "short blocks fprop", FP8FLOW_FPROP, 0, 0, 400, 208 },
        { "short blocks dgrad", FP8FLOW_DGRAD, 0, 0, 208, 400 },
        { "V2-Lite fprop1", FP8FLOW_FPROP, 64, 768, 2816, 2048 },
        { "V2-Lite fprop2", FP8FLOW_FPROP, 64, 768, 2048, 1408 },
        { "V2-Lite dgrad2", FP8FLOW_DGRAD, 64, 768, 1408, 2048 },
        { "V2-Lite dgrad1", FP8FLOW_DGRAD, 64, 768, 2048, 2816 },
        { "V3 fprop1", FP8FLOW_FPROP, 8, 4096, 4096, 7168 },
        { "V3 dgrad1", FP8FLOW_DGRAD, 8, 4096, 7168, 4096 },
    };
    static const layer layers[] = { { "V3 EP32", 8, 4096, 7168, 2048 }, { "V2-Lite", 64, 768, 2048, 1408 } };
    setvbuf(stdout, NULL, _IONBF, 0);
    if (!load_library()) {
        std::printf("cuBLASLt 13 is not found\n");
        return 1;
    }
    LAB_TRY(cudaStreamCreate(&stream)); /* waits for what lab_alloc does on the default stream */
    fp8flow_context_options options = {};
    options.backend = FP8FLOW_CUDA;
    options.stream = stream;
    FLOW_TRY(fp8flow_context_create(&options, &context));
    LT_TRY(cublasLtCreate(&handle));
    LAB_TRY(cudaMalloc(&workspace, WORKSPACE_BYTES));
    std::printf("cuBLASLt %zu; B: see the head of the file\n", lt.cublasLtGetVersion());
    for (const shape &s : shapes) compare(s);
    time_dense("FP8 1x128 x 128x128", FP8FLOW_ROW128, FP8FLOW_TILE128, SLOW);
    time_dense("FP8 tensorwise, slow", FP8FLOW_TENSOR, FP8FLOW_TENSOR, SLOW);
    time_dense("FP8 tensorwise, fast", FP8FLOW_TENSOR, FP8FLOW_TENSOR, FAST);
    time_dense("BF16", FP8FLOW_UNSCALED, FP8FLOW_UNSCALED, SLOW);
    for (const layer &l : layers) time_layer(l);
    return 0;
}
