/* gemm_fp8.cu - versions of the grouped FP8 product c[P, N] = a[P, K] * b_g[N, K]^T: E4M3, ROW128 x TILE128, BF16 out.
 *
 * One producer thread fills a ring of shared-memory stages through the copy engine; two warpgroups multiply. Every 128
 * of K a warpgroup leaves the tensor core with fresh accumulators and adds them, times the two scales, to its FP32
 * sums. A block walks output tiles with a static stride; tiles of an expert lie in bands of 8 row tiles so that both
 * operands stay in L2.
 *
 * v1 WAVES 1: tile 128 x 128, 6 stages.  predict: like DeepGEMM's 128 x 128, 1150 TFLOP/s at K 7168.
 * v2 WAVES 2: tile 256 x 128, 4 stages.  predict: +5 %, a third less shared-memory and L2 traffic per product.
 * Scales: each thread reads the bytes of its rows itself, four k-blocks at a time, one group ahead.
 */
#include <cmath>

#include <cudaTypedefs.h>

#include "lab.cuh"
#include "ops/hopper.cuh"
#include "ops/warp.cuh"

enum { TILE_N = 128, TILE_K = 128, CONSUMERS = 2, THREADS = 128 * (CONSUMERS + 1), MAX_EXPERTS = 256, BAND = 8 };

struct problem {
    const uint8_t *a_scale, *b_scale; /* [P, K/128], [E * N/128, K/128] */
    uint16_t *c;
    const int32_t *offset, *rows;
    int32_t experts, n, k;
};

template <int waves, int stages> struct ring {
    static const int tile_m = 64 * waves * CONSUMERS;
    static const int a_bytes = tile_m * TILE_K, b_bytes = TILE_N * TILE_K, stage_bytes = a_bytes + b_bytes;
    static const int bytes = stages * stage_bytes + 1024;
};

struct tile {
    int expert, row, end, valid, n; /* rows row .. end-1 are the expert's, the first `valid` in use */
};

/* Tile `index` of all; expert and first move forward only. */
template <int tile_m> struct walker {
    const problem &p;
    const int32_t *cumulative;
    int expert;

    __device__ walker(const problem &p, const int32_t *cumulative) : p(p), cumulative(cumulative), expert(0) {}

    __device__ bool at(int index, tile *t)
    {
        if (index >= cumulative[p.experts]) return false;
        while (index >= cumulative[expert + 1]) expert++;
        int n_tiles = p.n / TILE_N, local = index - cumulative[expert];
        int begin = p.offset[expert], end = p.offset[expert + 1], m_tiles = (end - begin + tile_m - 1) / tile_m;
        int band = local / (BAND * n_tiles), in_band = local - band * BAND * n_tiles;
        int height = min(BAND, m_tiles - band * BAND);
        int m = band * BAND + in_band % height;
        t->expert = expert;
        t->row = begin + m * tile_m;
        t->end = end;
        t->valid = begin + p.rows[expert];
        t->n = in_band / height * TILE_N;
        return true;
    }
};

__device__ static float scale_of(uint32_t bytes, int j)
{
    return __uint_as_float((bytes >> (8 * j) & 0xFFu) << 23);
}

/* Scale bytes of k-blocks 4*group .. 4*group+3 of a line of k_blocks bytes (a multiple of 4). */
__device__ static uint32_t scale_group(const uint8_t *line, int group, int k_blocks)
{
    return 4 * group < k_blocks ? __ldg((const uint32_t *)line + group) : 0;
}

template <int waves, int stages>
__global__ __launch_bounds__(THREADS, 1) static void gemm_kernel(const __grid_constant__ CUtensorMap a_map,
                                                                 const __grid_constant__ CUtensorMap b_map, problem p)
{
    typedef ring<waves, stages> R;
    extern __shared__ uint8_t dynamic[];
    __shared__ uint64_t full[stages], empty[stages];
    __shared__ int32_t cumulative[MAX_EXPERTS + 1];
    uint8_t *ring_memory = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    if (threadIdx.x == 0) {
        int total = 0;
        for (int e = 0; e < p.experts; e++) {
            cumulative[e] = total;
            total += (p.offset[e + 1] - p.offset[e] + R::tile_m - 1) / R::tile_m * (p.n / TILE_N);
        }
        cumulative[p.experts] = total;
        for (int s = 0; s < stages; s++) {
            f8_barrier_init(&full[s], 1);
            f8_barrier_init(&empty[s], 4 * CONSUMERS);
        }
        f8_barrier_fence();
    }
    __syncthreads();
    int k_blocks = p.k / TILE_K, group_of_warps = threadIdx.x / 128;
    walker<R::tile_m> walk(p, cumulative);
    tile t;
    if (group_of_warps == CONSUMERS) {
        f8_registers_less<24>();
        if (threadIdx.x % 128 != 0) return;
        f8_prefetch_map(&a_map);
        f8_prefetch_map(&b_map);
        int stage = 0;
        uint32_t phase = 1;
        for (int index = blockIdx.x; walk.at(index, &t); index += gridDim.x)
            for (int k = 0; k < k_blocks; k++) {
                f8_barrier_wait(&empty[stage], phase);
                f8_barrier_expect(&full[stage], R::stage_bytes);
                uint8_t *a = ring_memory + stage * R::stage_bytes;
                f8_copy_tile(a, &a_map, &full[stage], k * TILE_K, t.row);
                f8_copy_tile(a + R::a_bytes, &b_map, &full[stage], k * TILE_K, t.expert * p.n + t.n);
                if (++stage == stages) stage = 0, phase ^= 1;
            }
        return;
    }
    f8_registers_more<240>();
    int stage = 0, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    uint32_t phase = 0;
    for (int index = blockIdx.x; walk.at(index, &t); index += gridDim.x) {
        float sum[waves][64], part[64];
        int first = t.row + group_of_warps * 64 * waves, row = first + warp * 16 + lane / 4;
        const uint8_t *a_scale[waves];
        bool used[waves];
#pragma unroll
        for (int w = 0; w < waves; w++) {
            a_scale[w] = p.a_scale + (int64_t)min(row + 64 * w, t.end - 9) * k_blocks;
            used[w] = first + 64 * w < t.valid;
#pragma unroll
            for (int i = 0; i < 64; i++) sum[w][i] = 0.0f;
        }
        const uint8_t *b_scale = p.b_scale + (int64_t)((t.expert * p.n + t.n) / 128) * k_blocks;
        uint32_t next_a[waves][2], next_b = scale_group(b_scale, 0, k_blocks);
#pragma unroll
        for (int w = 0; w < waves; w++) {
            next_a[w][0] = scale_group(a_scale[w], 0, k_blocks);
            next_a[w][1] = scale_group(a_scale[w] + 8 * k_blocks, 0, k_blocks);
        }
        for (int group = 0; group * 4 < k_blocks; group++) {
            uint32_t bytes_a[waves][2], bytes_b = next_b;
            next_b = scale_group(b_scale, group + 1, k_blocks);
#pragma unroll
            for (int w = 0; w < waves; w++) {
                bytes_a[w][0] = next_a[w][0];
                bytes_a[w][1] = next_a[w][1];
                next_a[w][0] = scale_group(a_scale[w], group + 1, k_blocks);
                next_a[w][1] = scale_group(a_scale[w] + 8 * k_blocks, group + 1, k_blocks);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (group * 4 + j >= k_blocks) break;
                f8_barrier_wait(&full[stage], phase);
                const uint8_t *a = ring_memory + stage * R::stage_bytes + group_of_warps * 64 * waves * TILE_K;
                const uint8_t *b = ring_memory + stage * R::stage_bytes + R::a_bytes;
                float scale_b = scale_of(bytes_b, j);
#pragma unroll
                for (int w = 0; w < waves; w++) {
                    if (used[w]) {
                        uint64_t da = f8_operand(a + w * 64 * TILE_K), db = f8_operand(b);
#pragma unroll
                        for (int i = 0; i < 64; i++) f8_pin(part[i]);
                        f8_products_begin();
#pragma unroll
                        for (int step = 0; step < 4; step++) f8_product_e4m3(part, da + 2 * step, db + 2 * step, step);
                        f8_products_commit();
#pragma unroll
                        for (int i = 0; i < 64; i++) f8_pin(part[i]);
                        f8_products_wait<0>();
                    }
                    if (w == waves - 1 && lane == 0) f8_barrier_arrive(&empty[stage]);
                    if (used[w]) {
                        float low = scale_of(bytes_a[w][0], j) * scale_b, high = scale_of(bytes_a[w][1], j) * scale_b;
#pragma unroll
                        for (int i = 0; i < 64; i++) sum[w][i] = fmaf(part[i], i & 2 ? high : low, sum[w][i]);
                    }
                }
                if (++stage == stages) stage = 0, phase ^= 1;
            }
        }
#pragma unroll
        for (int w = 0; w < waves; w++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int r = row + 64 * w + 8 * half;
                if (r >= t.end) continue;
                uint32_t *line = (uint32_t *)(p.c + (int64_t)r * p.n + t.n + lane % 4 * 2);
                bool zero = r >= t.valid;
#pragma unroll
                for (int i = 0; i < 16; i++) {
                    uint32_t pair = f8_bf16_pair_fast(sum[w][4 * i + 2 * half], sum[w][4 * i + 2 * half + 1]);
                    line[4 * i] = zero ? 0 : pair;
                }
            }
    }
}

/* ---- Check: FP64 on sampled elements ---- */

__device__ static double code_value(uint8_t code)
{
    return f8_decode(code, FP8FLOW_E4M3);
}

__global__ static void check_kernel(problem p, const uint8_t *a, const uint8_t *b, int samples, double *worst)
{
    int index = blockIdx.x;
    int e = index % p.experts;
    int rows = p.rows[e];
    if (rows == 0) return;
    uint64_t random = lab_mix(index * 77 + 5);
    int64_t row = p.offset[e] + (int)(random % rows), col = (int)((random >> 32) % p.n);
    double sum = 0, magnitude = 0;
    int k_blocks = p.k / 128;
    for (int k = threadIdx.x; k < p.k; k += 32) {
        double x = code_value(a[row * p.k + k]) * ldexp(1.0, p.a_scale[row * k_blocks + k / 128] - 127);
        double y = code_value(b[((int64_t)e * p.n + col) * p.k + k]) *
                   ldexp(1.0, p.b_scale[(e * p.n + col) / 128 * k_blocks + k / 128] - 127);
        sum += x * y;
        magnitude += fabs(x * y);
    }
    sum = f8_warp_sum(sum);
    magnitude = f8_warp_sum(magnitude);
    if (threadIdx.x) return;
    double got = f8_bf16_decode(p.c[row * p.n + col]);
    double bound = 0x1p-13 * magnitude + 0x1p-8 * fabs(sum);
    worst[index] = got == got ? fabs(got - sum) / (bound + 1e-300) : 1e30;
}

__global__ static void fill_codes(uint8_t *codes, int64_t count, uint64_t seed)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint64_t bits = lab_mix(seed + i);
    float u = ((bits >> 40) + 1) * 0x1p-24f, angle = (uint32_t)bits * 0x1p-32f * 6.2831853f;
    codes[i] = f8_encode(sqrtf(-2.0f * logf(u)) * cosf(angle) * 100.0f, FP8FLOW_E4M3);
}

__global__ static void fill_scales(uint8_t *scales, int64_t count, uint64_t seed)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) scales[i] = 118 + lab_mix(seed + i) % 4;
}

static CUtensorMap make_map(const uint8_t *data, uint64_t rows, uint64_t cols, uint32_t box_rows)
{
    static PFN_cuTensorMapEncodeTiled_v12000 encode;
    cudaDriverEntryPointQueryResult found;
    if (!encode)
        LAB_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000, cudaEnableDefault,
                                                 &found));
    CUtensorMap map;
    cuuint64_t dims[2] = { cols, rows }, strides[1] = { cols };
    cuuint32_t box[2] = { 128, box_rows }, steps[2] = { 1, 1 };
    CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)data, dims, strides, box, steps,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) std::printf("tensor map: error %d\n", (int)result), std::exit(1);
    return map;
}

template <int waves, int stages>
static void run(const char *version, const char *shape, problem p, const uint8_t *a, const uint8_t *b, int64_t capacity,
                double flops, double *worst)
{
    typedef ring<waves, stages> R;
    CUtensorMap a_map = make_map(a, capacity, p.k, R::tile_m), b_map = make_map(b, (uint64_t)p.experts * p.n, p.k, TILE_N);
    auto kernel = gemm_kernel<waves, stages>;
    LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, R::bytes));
    auto launch = [&](cudaStream_t s) { kernel<<<132, THREADS, R::bytes, s>>>(a_map, b_map, p); };
    LAB_TRY(cudaMemset(p.c, 0xFF, capacity * p.n * 2));
    std::printf("launch\n");
    launch(0);
    LAB_TRY(cudaGetLastError());
    LAB_TRY(cudaDeviceSynchronize());
    std::printf("done\n");
    const int samples = 4096;
    LAB_TRY(cudaMemset(worst, 0, samples * sizeof(double)));
    check_kernel<<<samples, 32>>>(p, a, b, samples, worst);
    LAB_TRY(cudaDeviceSynchronize());
    std::vector<double> errors = lab_download(worst, samples);
    double largest = *std::max_element(errors.begin(), errors.end());
    double cool = lab_time(launch, 15);
    cudaEvent_t start, stop;
    float milliseconds;
    LAB_TRY(cudaEventCreate(&start));
    LAB_TRY(cudaEventCreate(&stop));
    int loops = std::max(8, (int)(400e3 / cool));
    for (int i = 0; i < loops; i++) launch(0);
    LAB_TRY(cudaEventRecord(start));
    for (int i = 0; i < loops; i++) launch(0);
    LAB_TRY(cudaEventRecord(stop));
    LAB_TRY(cudaEventSynchronize(stop));
    LAB_TRY(cudaEventElapsedTime(&milliseconds, start, stop));
    double sustained = 1e3 * milliseconds / loops;
    std::printf("%-28s %-20s %8.1f us %7.0f TFLOP/s flushed, %8.1f us %7.0f sustained, error %.2f of the bound%s\n",
                version, shape, cool, flops / cool * 1e-6, sustained, flops / sustained * 1e-6, largest,
                largest < 1 ? "" : "  WRONG");
}

static void shape(const char *name, int experts, int mean, int n, int k)
{
    std::vector<int32_t> offset(experts + 1), rows(experts);
    int64_t total = 0;
    for (int e = 0; e < experts; e++) {
        rows[e] = (int)(mean * (0.7 + 0.6 * ((e * 37 + 11) % experts) / experts));
        offset[e + 1] = offset[e] + (rows[e] + 127) / 128 * 128;
        total += rows[e];
    }
    int64_t capacity = offset[experts];
    uint8_t *a = lab_alloc<uint8_t>(capacity * k), *b = lab_alloc<uint8_t>((int64_t)experts * n * k);
    uint8_t *a_scale = lab_alloc<uint8_t>(capacity * k / 128 + 64), *b_scale = lab_alloc<uint8_t>((int64_t)experts * n * k / 16384);
    fill_codes<<<(unsigned)((capacity * k + 255) / 256), 256>>>(a, capacity * k, 1);
    fill_codes<<<(unsigned)(((int64_t)experts * n * k + 255) / 256), 256>>>(b, (int64_t)experts * n * k, 1ull << 40);
    fill_scales<<<(unsigned)((capacity * k / 128 + 255) / 256), 256>>>(a_scale, capacity * k / 128, 3);
    fill_scales<<<(unsigned)(((int64_t)experts * n * k / 16384 + 255) / 256), 256>>>(b_scale, (int64_t)experts * n * k / 16384, 4);
    problem p = { a_scale, b_scale, lab_alloc<uint16_t>(capacity * n), lab_upload(offset), lab_upload(rows), experts, n, k };
    double flops = 2.0 * total * n * k;
    double *worst = lab_alloc<double>(4096);
    run<1, 6>("v1 128x128, 6 stages", name, p, a, b, capacity, flops, worst);
    run<2, 4>("v2 256x128, 4 stages", name, p, a, b, capacity, flops, worst);
    cudaFree(a);
    cudaFree(b);
    cudaFree(a_scale);
    cudaFree(b_scale);
    cudaFree(p.c);
    cudaFree((void *)p.offset);
    cudaFree((void *)p.rows);
    cudaFree(worst);
}

int main()
{
    setvbuf(stdout, NULL, _IONBF, 0);
    shape("V3 fprop1", 8, 4096, 4096, 7168);
    shape("V3 fprop2", 8, 4096, 7168, 2048);
    shape("V2-Lite fprop1", 64, 768, 2816, 2048);
    shape("V2-Lite fprop2", 64, 768, 2048, 1408);
    return 0;
}
