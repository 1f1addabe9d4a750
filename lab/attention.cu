/* attention.cu - versions of the tensor core kernels of attention (ops/attention_forward.cuh) and its gradients
 * (ops/attention_gradient.cuh): checked on samples against FP64 on the device, timed with the L2 flushed and back to
 * back. A version that fails or hangs ends the program.
 *
 * Columns of the table: TFLOP/s flushed and sustained, half of the square of the sequence counted (2 products forward,
 * 5 backward); the worst sample in bounds of the contract (2^-7 max|v|; 2^-6.5 of the largest gradient sampled).
 */
#include <cmath>

#include "lab.cuh"
#include "ops/attention_forward.cuh"
#include "ops/attention_gradient.cuh"

enum { SAMPLES = 256, CHECK_THREADS = 128, MAX_LENGTH = 4096 };

static const double GRADIENT_BOUND = 0.011048543456; /* 2^-6.5 */

struct shape {
    int batch, length, num_heads, num_kv_heads, head_dim;
};

static const shape shapes[] = { { 4, 4096, 32, 4, 128 }, { 16, 1024, 16, 4, 64 }, { 8, 2048, 16, 16, 128 } };

/* Everything on the device; q, k, v are views of one matrix. */
struct fixture {
    shape s;
    uint16_t *fused, *o, *grad_o, *grad_q, *grad_k, *grad_v;
    float *lse;
    double *worst, *largest; /* per sample */

    __host__ __device__ int q_cols() const { return s.num_heads * s.head_dim; }
    __host__ __device__ int kv_cols() const { return s.num_kv_heads * s.head_dim; }
    __host__ __device__ int cols() const { return q_cols() + 2 * kv_cols(); }
    __host__ __device__ float scale() const { return 1.0f / sqrtf((float)s.head_dim); }
    __device__ const uint16_t *q(int row, int head) const { return fused + (int64_t)row * cols() + head * s.head_dim; }
    __device__ const uint16_t *k(int row, int head) const { return q(row, head) + q_cols(); }
    __device__ const uint16_t *v(int row, int head) const { return k(row, head) + kv_cols(); }
    __device__ int64_t at(int row, int head) const { return ((int64_t)row * s.num_heads + head) * s.head_dim; }
    double flops() const
    {
        return 2.0 * s.batch * s.num_heads * s.head_dim * (double)s.length * s.length; /* two products */
    }
};

/* ---- Check: one sample per block ---- */

__device__ static double dot(const uint16_t *a, const uint16_t *b, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++) sum += (double)f8_bf16_decode(a[i]) * f8_bf16_decode(b[i]);
    return sum;
}

/* Sums of a block; every thread has the result. */
__device__ static double block_sum(double x)
{
    __shared__ double parts[CHECK_THREADS / 32];
    x = f8_warp_sum(x);
    __syncthreads();
    if (f8_lane() == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0;
    for (double part : parts) sum += part;
    return sum;
}

__device__ static void compare(const fixture &f, double got, double expected)
{
    __shared__ double errors[CHECK_THREADS], sizes[CHECK_THREADS];
    errors[threadIdx.x] = got == got ? fabs(got - expected) : 1e30;
    sizes[threadIdx.x] = fabs(expected);
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 0; i < f.s.head_dim; i++) {
        f.worst[blockIdx.x] = fmax(f.worst[blockIdx.x], errors[i]);
        f.largest[blockIdx.x] = fmax(f.largest[blockIdx.x], sizes[i]);
    }
}

struct sample {
    int begin, token, head; /* of the sequence; in it */
};

__device__ static sample draw(const shape &s, int heads, uint64_t seed)
{
    uint64_t random = lab_mix(blockIdx.x * 77 + seed);
    int token = (int)((random >> 20) % s.length);
    /* Some from the ends. */
    if (blockIdx.x % 4 == 3) token = token % 2 ? token % 130 : s.length - 1 - token % 130;
    return { (int)(random % s.batch) * s.length, token, (int)((random >> 48) % heads) };
}

/* Weights of exp(score), normalised; and lse. */
__global__ __launch_bounds__(CHECK_THREADS) static void check_forward_kernel(fixture f)
{
    __shared__ float weights[MAX_LENGTH];
    const shape &s = f.s;
    sample x = draw(s, s.num_heads, 1);
    int row = x.begin + x.token, kv = x.head / (s.num_heads / s.num_kv_heads);
    double total = 0, expected = 0, got = 0;
    for (int t = threadIdx.x; t <= x.token; t += CHECK_THREADS) {
        double weight = exp(f.scale() * dot(f.q(row, x.head), f.k(x.begin + t, kv), s.head_dim));
        weights[t] = (float)weight;
        total += weight;
    }
    total = block_sum(total);
    if (threadIdx.x < s.head_dim) {
        for (int t = 0; t <= x.token; t++)
            expected += (double)weights[t] / total * f8_bf16_decode(f.v(x.begin + t, kv)[threadIdx.x]);
        got = f8_bf16_decode(f.o[f.at(row, x.head) + threadIdx.x]);
    }
    /* A wrong lse fails the sample. */
    double lse = f.lse[(int64_t)row * s.num_heads + x.head];
    if (!(fabs(lse - log(total)) <= 0x1p-16 * (1 + fabs(log(total))))) got = NAN;
    compare(f, got, expected);
}

/* Weight and ds of a pair. */
__device__ static double2 pair_of(const fixture &f, int query, int key, int head)
{
    int kv = head / (f.s.num_heads / f.s.num_kv_heads), dim = f.s.head_dim;
    const uint16_t *grad_o = f.grad_o + f.at(query, head);
    double score = f.scale() * dot(f.q(query, head), f.k(key, kv), dim);
    double weight = exp(score - f.lse[(int64_t)query * f.s.num_heads + head]);
    double delta = dot(grad_o, f.o + f.at(query, head), dim);
    return make_double2(weight, weight * (dot(grad_o, f.v(key, kv), dim) - delta) * f.scale());
}

__global__ __launch_bounds__(CHECK_THREADS) static void check_queries_kernel(fixture f)
{
    __shared__ float ds[MAX_LENGTH];
    const shape &s = f.s;
    sample x = draw(s, s.num_heads, 2);
    int row = x.begin + x.token, kv = x.head / (s.num_heads / s.num_kv_heads);
    double expected = 0, got = 0;
    for (int t = threadIdx.x; t <= x.token; t += CHECK_THREADS)
        ds[t] = (float)pair_of(f, row, x.begin + t, x.head).y;
    __syncthreads();
    if (threadIdx.x < s.head_dim) {
        for (int t = 0; t <= x.token; t++)
            expected += (double)ds[t] * f8_bf16_decode(f.k(x.begin + t, kv)[threadIdx.x]);
        got = f8_bf16_decode(f.grad_q[f.at(row, x.head) + threadIdx.x]);
    }
    compare(f, got, expected);
}

/* Odd samples: of values; even: of keys. */
__global__ __launch_bounds__(CHECK_THREADS) static void check_keys_kernel(fixture f)
{
    __shared__ float factors[MAX_LENGTH];
    const shape &s = f.s;
    sample x = draw(s, s.num_kv_heads, 3);
    int row = x.begin + x.token, heads = s.num_heads / s.num_kv_heads, of_values = blockIdx.x % 2;
    double expected = 0, got = 0;
    for (int head = x.head * heads; head < (x.head + 1) * heads; head++) {
        __syncthreads();
        for (int t = x.token + threadIdx.x; t < s.length; t += CHECK_THREADS) {
            double2 pair = pair_of(f, x.begin + t, row, head);
            factors[t] = (float)(of_values ? pair.x : pair.y);
        }
        __syncthreads();
        if (threadIdx.x < s.head_dim)
            for (int t = x.token; t < s.length; t++) {
                const uint16_t *other = of_values ? f.grad_o + f.at(x.begin + t, head) : f.q(x.begin + t, head);
                expected += (double)factors[t] * f8_bf16_decode(other[threadIdx.x]);
            }
    }
    int64_t at = ((int64_t)row * s.num_kv_heads + x.head) * s.head_dim + threadIdx.x;
    if (threadIdx.x < s.head_dim) got = f8_bf16_decode(of_values ? f.grad_v[at] : f.grad_k[at]);
    compare(f, got, expected);
}

/* The worst sample in units of `bound` times the largest expected number (at least `least`). */
template <class Kernel> static double check(Kernel *kernel, const fixture &f, double bound, double least)
{
    LAB_TRY(cudaMemset(f.worst, 0, SAMPLES * sizeof(double)));
    LAB_TRY(cudaMemset(f.largest, 0, SAMPLES * sizeof(double)));
    kernel<<<SAMPLES, CHECK_THREADS>>>(f);
    LAB_TRY(cudaDeviceSynchronize());
    std::vector<double> worst = lab_download(f.worst, SAMPLES), largest = lab_download(f.largest, SAMPLES);
    double size = std::max(least, *std::max_element(largest.begin(), largest.end()));
    return *std::max_element(worst.begin(), worst.end()) / (bound * size);
}

/* ---- Data and time ---- */

static fp8flow_tensor view(const fixture &f, uint16_t *data, int cols, int stride)
{
    int64_t rows = (int64_t)f.s.batch * f.s.length;
    return { rows, cols, stride, 0, FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS, data, NULL };
}

static fixture make_fixture(const shape &s)
{
    fixture f = {};
    f.s = s;
    int64_t rows = (int64_t)s.batch * s.length;
    f.fused = lab_normal_bf16(rows, f.cols(), 0, 1);
    f.grad_o = lab_normal_bf16(rows, f.q_cols(), 0, 2);
    f.o = lab_alloc<uint16_t>(rows * f.q_cols());
    f.grad_q = lab_alloc<uint16_t>(rows * f.q_cols());
    f.grad_k = lab_alloc<uint16_t>(rows * f.kv_cols());
    f.grad_v = lab_alloc<uint16_t>(rows * f.kv_cols());
    f.lse = lab_alloc<float>(rows * s.num_heads);
    f.worst = lab_alloc<double>(SAMPLES);
    f.largest = lab_alloc<double>(SAMPLES);
    return f;
}

static void free_fixture(const fixture &f)
{
    void *const all[] = { f.fused, f.grad_o, f.o, f.grad_q, f.grad_k, f.grad_v, f.lse, f.worst, f.largest };
    for (void *memory : all) LAB_TRY(cudaFree(memory));
}

typedef fp8flow_status forward_launch(fp8flow_context *c, const fp8flow_attention_args *a);

/* Times `call(stream)` and prints the line. */
template <class Call> static void report(const char *name, const fixture &f, double flops, double error, Call call)
{
    double cool = lab_time(call, 7), warm = lab_sustained(call, cool, 0.08).microseconds;
    std::printf("%-30s B%-2d S%d J%d G%-2d D%-3d %7.1f us %4.0f TFLOP/s flushed, %4.0f sustained, worst %.2f%s\n", name,
                f.s.batch, f.s.length, f.s.num_heads, f.s.num_kv_heads, f.s.head_dim, cool, flops / cool * 1e-6,
                flops / warm * 1e-6, error, error <= 1 ? "" : " WRONG");
}

static void must(fp8flow_status status)
{
    if (status != FP8FLOW_OK) std::printf("%s\n", fp8flow_last_error()), std::exit(1);
}

static void forward(fp8flow_context *c, const fixture &f, const char *name, forward_launch *launch)
{
    fp8flow_tensor q = view(f, f.fused, f.q_cols(), f.cols()), o = view(f, f.o, f.q_cols(), f.q_cols());
    fp8flow_tensor k = view(f, f.fused + f.q_cols(), f.kv_cols(), f.cols());
    fp8flow_tensor v = view(f, f.fused + f.q_cols() + f.kv_cols(), f.kv_cols(), f.cols());
    fp8flow_attention_args args = { &q, &k, &v, f.s.batch, f.s.num_heads, f.s.num_kv_heads, f.s.head_dim, f.scale(), &o,
                                    f.lse };
    auto call = [&](cudaStream_t stream) {
        void *own = c->stream;
        c->stream = stream;
        must(launch(c, &args));
        c->stream = own;
    };
    LAB_TRY(cudaMemset(f.o, 0xFF, q.rows * f.q_cols() * 2));
    call(0);
    LAB_TRY(cudaDeviceSynchronize());
    report(name, f, f.flops(), check(check_forward_kernel, f, 0x1p-7, 4), call);
}

/* The whole operator, and parts of it by name. */
static void backward(fp8flow_context *c, const fixture &f)
{
    fp8flow_tensor q = view(f, f.fused, f.q_cols(), f.cols()), o = view(f, f.o, f.q_cols(), f.q_cols());
    fp8flow_tensor k = view(f, f.fused + f.q_cols(), f.kv_cols(), f.cols());
    fp8flow_tensor v = view(f, f.fused + f.q_cols() + f.kv_cols(), f.kv_cols(), f.cols());
    fp8flow_tensor grad_o = view(f, f.grad_o, f.q_cols(), f.q_cols());
    fp8flow_tensor grad_q = view(f, f.grad_q, f.q_cols(), f.q_cols());
    fp8flow_tensor grad_k = view(f, f.grad_k, f.kv_cols(), f.kv_cols());
    fp8flow_tensor grad_v = view(f, f.grad_v, f.kv_cols(), f.kv_cols());
    fp8flow_attention_backward_args args = { &q,       &k,  &v,  &o, &grad_o, f.lse, f.s.batch, f.s.num_heads,
                                             f.s.num_kv_heads, f.s.head_dim, f.scale(), &grad_q, &grad_k, &grad_v };
    int64_t states_at = (int64_t)f.s.batch * f.s.num_heads * f.s.length;
    f8_attention_states states = { (float *)f8_cuda_scratch(c), (float *)f8_cuda_scratch(c) + states_at, f.s.length };
    auto on = [&](cudaStream_t stream, auto launch) {
        void *own = c->stream;
        c->stream = stream;
        must(launch());
        c->stream = own;
    };
    auto all = [&](cudaStream_t stream) { on(stream, [&] { return f8_cuda_attention_backward(c, &args); }); };
    auto keys = [&](cudaStream_t stream) {
        on(stream, [&] {
            if (f.s.head_dim == 64)
                return f8_gradient_launch<f8_gradient_shape<64, F8_OF_KEYS, 6>>(c, &args, &states);
            return f8_gradient_launch<f8_gradient_shape<128, F8_OF_KEYS, 4>>(c, &args, &states);
        });
    };
    auto queries = [&](cudaStream_t stream) {
        on(stream, [&] {
            if (f.s.head_dim == 64)
                return f8_gradient_launch<f8_gradient_shape<64, F8_OF_QUERIES, 6>>(c, &args, &states);
            return f8_gradient_launch<f8_gradient_shape<128, F8_OF_QUERIES, 4>>(c, &args, &states);
        });
    };
    LAB_TRY(cudaMemset(f.grad_q, 0xFF, q.rows * f.q_cols() * 2));
    LAB_TRY(cudaMemset(f.grad_k, 0xFF, q.rows * f.kv_cols() * 2));
    LAB_TRY(cudaMemset(f.grad_v, 0xFF, q.rows * f.kv_cols() * 2));
    all(0);
    LAB_TRY(cudaDeviceSynchronize());
    double of_queries = check(check_queries_kernel, f, GRADIENT_BOUND, 0);
    double of_keys = check(check_keys_kernel, f, GRADIENT_BOUND, 0);
    report("backward", f, 2.5 * f.flops(), std::max(of_queries, of_keys), all);
    report("  keys and values (4 products)", f, 2 * f.flops(), of_keys, keys);
    report("  queries (3 products)", f, 1.5 * f.flops(), of_queries, queries);
}

int main(void)
{
    fp8flow_context_options options = { FP8FLOW_CUDA, 0, 0, NULL };
    fp8flow_context *c;
    setvbuf(stdout, NULL, _IONBF, 0);
    alarm(60);
    must(fp8flow_context_create(&options, &c));
    for (const shape &s : shapes) {
        fixture f = make_fixture(s);
        if (s.head_dim == 64) {
            /* predict 330-400: exponentials cost as much time as the products. */
            forward(c, f, "64 x 2 queries", f8_attention_launch<f8_attention_shape<64, 2, 6>>);
            /* predict 5-10 % more: a third warpgroup fills the gaps. */
            forward(c, f, "64 x 3 queries", f8_attention_launch<f8_attention_shape<64, 3, 6>>);
        } else {
            /* predict 500-560: products three quarters of the time. */
            forward(c, f, "64 x 2 queries", f8_attention_launch<f8_attention_shape<128, 2, 4>>);
        }
        /* predict 300-350 of 5 products for D = 128: 7 are made, at 420-490. */
        backward(c, f);
        free_fixture(f);
    }
    fp8flow_context_destroy(c);
    return 0;
}
