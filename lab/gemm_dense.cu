/* gemm_dense.cu - fp8flow_gemm beside cuBLASLt at the dense BF16 products of a model, and a router's products in FP32.
 *
 * 1. FPROP, DGRAD, WGRAD of x [T, K] and a weight [N, K]: FPROP and DGRAD to BF16, WGRAD to FP32; the head's logits
 *    too. cuBLASLt: the fastest of the 8 algorithms that it proposes. Both results are compared, element by element:
 *    each may be 2^-11 sum |a b| off, but here only that they differ little is asked, by the norm of the difference.
 * 2. Router: x BF16, weights and logits FP32, ours alone; cuBLASLt takes no such pair. GB/s of x: read once.
 * TFLOP/s with a cold cache and back to back for 0.2 s.
 *
 * predict: ours at 95 to 105 % of cuBLASLt at 4096 and more columns, 90 % at (8192, 2048, 4096), whose 512 tiles are
 * 3.9 rounds. Routers: what the head of ops/gemm_split.cu says.
 */
#include "gemm_cublaslt_data.cuh"

struct dense {
    int64_t t, n, k;
    fp8flow_dtype c_dtype; /* of FPROP and DGRAD */
};

static const char *const names[] = { "fprop", "dgrad", "wgrad" };

static void report(const char *name, const char *what, double operations, double flushed, double sustained)
{
    std::printf("%-36s %-9s %9.1f us %6.0f TFLOP/s, sustained %9.1f us %6.0f TFLOP/s\n", name, what, flushed,
                1e-6 * operations / flushed, sustained, 1e-6 * operations / sustained);
}

/* lab_sustained's events are the default stream's, which waits for the other one. */
template <class Launch> static void time_both(const char *name, const char *what, double operations, Launch launch)
{
    auto on_stream = [&](cudaStream_t) { launch(); };
    launch();
    LAB_TRY(cudaStreamSynchronize(stream));
    double flushed = lab_time(on_stream, 15, stream);
    report(name, what, operations, flushed, lab_sustained(on_stream, flushed, 0.2).microseconds);
}

/* The algorithm that is fastest with a cold cache; -1: none works. */
static int best_algorithm(const product &p)
{
    double best = 0;
    int at = -1;
    for (int i = 0; i < p.count; i++) {
        if (run(p, i) != CUBLAS_STATUS_SUCCESS) continue;
        LAB_TRY(cudaStreamSynchronize(stream));
        double time = lab_time([&](cudaStream_t) { (void)run(p, i); }, 5, stream);
        if (at < 0 || time < best) best = time, at = i;
    }
    return at;
}

__device__ static float value_at(const void *from, fp8flow_dtype dtype, int64_t i)
{
    return dtype == FP8FLOW_F32 ? ((const float *)from)[i]
                                : __uint_as_float((uint32_t)((const uint16_t *)from)[i] << 16);
}

/* sums: of squares of the difference, of the first. */
__global__ static void difference_kernel(const void *x, const void *y, fp8flow_dtype dtype, int64_t count, double *sums)
{
    double difference = 0, square = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        double a = value_at(x, dtype, i), b = value_at(y, dtype, i);
        difference += (a - b) * (a - b);
        square += a * a;
    }
    atomicAdd(&sums[0], difference);
    atomicAdd(&sums[1], square);
}

static void compare(const char *name, const void *x, const void *y, fp8flow_dtype dtype, int64_t count)
{
    double *sums = lab_alloc<double>(2), host[2];
    LAB_TRY(cudaMemset(sums, 0, sizeof host));
    difference_kernel<<<264, 512>>>(x, y, dtype, count, sums);
    LAB_TRY(cudaMemcpy(host, sums, sizeof host, cudaMemcpyDeviceToHost));
    LAB_TRY(cudaFree(sums));
    double relative = sqrt(host[0] / host[1]);
    bool is_equal = relative < (dtype == FP8FLOW_F32 ? 1e-4 : 4e-3); /* false for NaN */
    if (!is_equal) std::printf("%-36s WRONG: differs from cuBLASLt by %g\n", name, relative);
}

static fp8flow_tensor tensor(int64_t rows, int64_t cols, fp8flow_dtype dtype, void *data)
{
    fp8flow_tensor t = make_tensor(rows, cols, 0, dtype);
    t.data = data;
    return t;
}

/* The product as cuBLASLt has it: its first operand is our b, lines are its columns. */
static product theirs_of(fp8flow_product what, const dense &s, const fp8flow_gemm_args &args, void *d)
{
    cudaDataType type = args.c->dtype == FP8FLOW_F32 ? CUDA_R_32F : CUDA_R_16BF;
    operand a = { args.a->data, CUDA_R_16BF, CUBLAS_OP_N, args.a->cols, args.a->rows, args.a->cols, NULL, 0 };
    operand b = { args.b->data, CUDA_R_16BF, CUBLAS_OP_N, s.k, args.b->rows, s.k, NULL, 0 };
    if (what == FP8FLOW_FPROP) b.op = CUBLAS_OP_T;
    if (what == FP8FLOW_WGRAD) a.op = CUBLAS_OP_T;
    return make_product(b, a, d, type, SLOW);
}

static void time_product(fp8flow_product what, const dense &s)
{
    char name[64];
    bool is_wgrad = what == FP8FLOW_WGRAD, is_fprop = what == FP8FLOW_FPROP;
    double operations = 2.0 * s.t * s.n * s.k;
    int64_t b_rows = is_wgrad ? s.t : s.n, c_rows = is_wgrad ? s.n : s.t, c_cols = is_fprop ? s.n : s.k;
    int64_t a_cols = is_fprop ? s.k : s.n;
    uint16_t *x = lab_normal_bf16(s.t, a_cols, 0, 1), *y = lab_normal_bf16(b_rows, s.k, 0, 2);
    fp8flow_tensor a = tensor(s.t, a_cols, FP8FLOW_BF16, x), b = tensor(b_rows, s.k, FP8FLOW_BF16, y);
    fp8flow_tensor c = tensor(c_rows, c_cols, is_wgrad ? FP8FLOW_F32 : s.c_dtype, NULL);
    fp8flow_gemm_args args = {};
    allocate(&c, 1);
    args.product = what, args.a = &a, args.b = &b, args.c = &c;
    char *d = lab_alloc<char>(fp8flow_tensor_data_bytes(&c));
    std::snprintf(name, sizeof name, "%s %lld x [%lld, %lld]%s", names[what], (long long)s.t, (long long)s.n,
                  (long long)s.k, c.dtype == FP8FLOW_F32 ? " f32" : "");
    time_both(name, "fp8flow", operations, [&]() { FLOW_TRY(fp8flow_gemm(context, &args)); });
    product call = theirs_of(what, s, args, d);
    int best = best_algorithm(call);
    if (best < 0) {
        std::printf("%-36s cuBLASLt has no such product\n", name);
    } else {
        time_both(name, "cuBLASLt", operations, [&]() { (void)run(call, best); });
        LAB_TRY(cudaStreamSynchronize(stream));
        compare(name, c.data, d, c.dtype, c_rows * c_cols);
    }
    destroy(call);
    void *memory[] = { x, y, c.data, d };
    for (void *m : memory) LAB_TRY(cudaFree(m));
}

/* ---- Routers ---- */

__global__ static void widen_kernel(const uint16_t *from, float *to, int64_t count)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) to[i] = value_at(from, FP8FLOW_BF16, i) * 1.2345678f;
}

static float *normal_f32(int64_t rows, int64_t cols, uint64_t seed)
{
    uint16_t *values = lab_normal_bf16(rows, cols, 0, seed);
    float *to = lab_alloc<float>(rows * cols);
    widen_kernel<<<blocks_of(rows * cols), 256>>>(values, to, rows * cols);
    LAB_TRY(cudaDeviceSynchronize());
    LAB_TRY(cudaFree(values));
    return to;
}

/* Samples in FP64, the worst in units of 4 * 2^-13 * sum |a b| (and the rounding of a BF16 c). A warp for each. */
__global__ static void sample_kernel(fp8flow_product what, fp8flow_tensor a, fp8flow_tensor b, fp8flow_tensor c,
                                     int *worst)
{
    int64_t i = (int64_t)(lab_mix(blockIdx.x * 2 + 1) % c.rows), j = (int64_t)(lab_mix(blockIdx.x * 2) % c.cols);
    int64_t inner = what == FP8FLOW_WGRAD ? a.rows : a.cols;
    double sum = 0, magnitude = 0;
    for (int64_t k = threadIdx.x; k < inner; k += 32) {
        double x = value_at(a.data, a.dtype, what == FP8FLOW_WGRAD ? k * a.cols + i : i * a.cols + k);
        double y = value_at(b.data, b.dtype, what == FP8FLOW_FPROP ? j * b.cols + k : k * b.cols + j);
        sum += x * y;
        magnitude += fabs(x * y);
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(~0u, sum, lanes);
        magnitude += __shfl_xor_sync(~0u, magnitude, lanes);
    }
    if (threadIdx.x > 0) return;
    double bound = 0x1p-11 * magnitude + (c.dtype == FP8FLOW_BF16 ? 0x1p-8 : 0x1p-23) * fabs(sum);
    float error = (float)(fabs(value_at(c.data, c.dtype, i * c.cols + j) - sum) / bound);
    atomicMax(worst, __float_as_int(error >= 0.0f ? error : INFINITY));
}

static void time_router(fp8flow_product what, const dense &s)
{
    char name[64], text[128];
    bool is_wgrad = what == FP8FLOW_WGRAD, is_fprop = what == FP8FLOW_FPROP;
    uint16_t *x = lab_normal_bf16(s.t, s.k, 0, 1);
    float *weight = normal_f32(s.n, s.k, 2), *dlogits = normal_f32(s.t, s.n, 3), worst_error;
    fp8flow_tensor tokens = tensor(s.t, s.k, FP8FLOW_BF16, x), logits = tensor(s.t, s.n, FP8FLOW_F32, dlogits);
    fp8flow_tensor weights = tensor(s.n, s.k, FP8FLOW_F32, weight);
    fp8flow_tensor c = is_fprop ? logits : is_wgrad ? weights : tokens;
    fp8flow_gemm_args args = {};
    int *worst = lab_alloc<int>(1);
    allocate(&c, 1);
    args.product = what, args.a = is_fprop ? &tokens : &logits, args.b = is_wgrad ? &tokens : &weights, args.c = &c;
    FLOW_TRY(fp8flow_gemm(context, &args));
    LAB_TRY(cudaStreamSynchronize(stream));
    LAB_TRY(cudaMemset(worst, 0, sizeof *worst));
    sample_kernel<<<2048, 32>>>(what, *args.a, *args.b, c, worst);
    LAB_TRY(cudaMemcpy(&worst_error, worst, sizeof worst_error, cudaMemcpyDeviceToHost));
    double time = lab_time([&](cudaStream_t) { FLOW_TRY(fp8flow_gemm(context, &args)); }, 21, stream);
    FLOW_TRY(fp8flow_gemm_configuration(&args, text, sizeof text));
    std::snprintf(name, sizeof name, "router %s %lld x [%lld, %lld]", names[what], (long long)s.t, (long long)s.n,
                  (long long)s.k);
    std::printf("%-36s %9.1f us %6.2f TB/s of x, %.2g of the bound%s; %s\n", name, time, 2e-6 * s.t * s.k / time,
                worst_error, worst_error <= 1 ? "" : " WRONG", text);
    void *memory[] = { x, weight, dlogits, c.data, worst };
    for (void *m : memory) LAB_TRY(cudaFree(m));
}

int main()
{
    static const dense products[] = { { 8192, 4096, 2048, FP8FLOW_BF16 },
                                      { 8192, 2048, 4096, FP8FLOW_BF16 },
                                      { 4096, 7168, 2048, FP8FLOW_BF16 },
                                      { 16384, 32768, 1024, FP8FLOW_BF16 } };
    static const dense head = { 4096, 151936, 2048, FP8FLOW_F32 };
    static const dense routers[] = { { 32768, 8, 7168, FP8FLOW_F32 },
                                     { 8192, 64, 2048, FP8FLOW_F32 },
                                     { 4096, 256, 7168, FP8FLOW_F32 } };
    setvbuf(stdout, NULL, _IONBF, 0);
    LAB_TRY(cudaStreamCreate(&stream));
    fp8flow_context_options options = {};
    options.backend = FP8FLOW_CUDA;
    options.stream = stream;
    FLOW_TRY(fp8flow_context_create(&options, &context));
    for (const dense &s : routers)
        for (int what = FP8FLOW_FPROP; what <= FP8FLOW_WGRAD; what++) time_router((fp8flow_product)what, s);
    if (!load_library()) {
        std::printf("cuBLASLt 13 is not found\n");
        return 1;
    }
    LT_TRY(cublasLtCreate(&handle));
    LAB_TRY(cudaMalloc(&workspace, WORKSPACE_BYTES));
    std::printf("cuBLASLt %zu\n", lt.cublasLtGetVersion());
    for (const dense &s : products)
        for (int what = FP8FLOW_FPROP; what <= FP8FLOW_WGRAD; what++) time_product((fp8flow_product)what, s);
    time_product(FP8FLOW_FPROP, head);
    return 0;
}
