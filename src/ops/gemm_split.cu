/* gemm_split.cu - dense products with an F32 operand on the tensor cores: a router's logits and their gradients.
 *
 * An F32 operand is split into BF16 parts in scratch memory first (split_parts.cuh).
 * FPROP, WGRAD: a tall BF16 operand, tokens (WGRAD: columns of x), by the parts of a narrow one, experts. A block of
 * 288 threads has 128 lines of the tall operand, 8 to 64 experts, that is 24 to 192 lines of parts, and one split of
 * the contraction:
 *   one thread       fills the ring of stages of 64 steps through the copy engine; blocks of a cluster share parts.
 *   warpgroups 0, 1  64 lines each, all parts; at the end they add an expert's three sums, of high, middle and low
 *                    parts, and write c, or in scratch memory the sums of a split, which a second kernel adds.
 * x of WGRAD comes as it lies: the tensor cores transpose; dlogits are transposed when they are split.
 * DGRAD: gemm_bf16.cu with six pairs of parts along the contraction, which is short.
 *
 * Traffic: x once from memory (once per 64 experts from L2), parts 6 bytes per number of the F32 operand for every 128
 * lines, from L2. Predicted, in us, with what splits and adds: tokens 32768, 8 experts, hidden 7168: FPROP 120, WGRAD
 * 125 (reading x: 110), DGRAD 165 (writing dx: 115); 8192, 64, 2048: 18, 22, 26 (8); 4096, 256, 7168: 75, 75, 135 (14,
 * operations of the parts at the BF16 peak: 46, 46, 91).
 */
#include "ops/gemm_cuda.h"
#include "ops/hopper_products.cuh"
#include "ops/launch.cuh"
#include "ops/ring.cuh"
#include "ops/split_parts.cuh"
#include "ops/tensor_map.cuh"

enum { STEP = 64, BOX = 64, BOX_BYTES = BOX * STEP * 2, LINES = 128, A_BYTES = LINES * STEP * 2 };
enum { GROUPS = 2, PRODUCER_WARP = 4 * GROUPS, THREADS = 32 * (PRODUCER_WARP + 1), LINE_BYTES = 128 };
enum { SUM_THREADS = 256 };

/* Of a tile; f8_gemm_configure says the same. */
template <fp8flow_product product_, int experts_, int stages_, int cluster_> struct shape {
    static const fp8flow_product product = product_;
    static const int experts = experts_, stages = stages_, cluster = cluster_;
    static const int a_outer = product == FP8FLOW_WGRAD; /* the tall operand is MN-major */
    static const int parts = F8_SPLIT_PARTS * experts, sums = parts / 2, results = experts / 2;
    static const int stage_bytes = A_BYTES + parts * LINE_BYTES, bytes = 1024 + stages * stage_bytes;
    static const int blocks = experts < 64 ? 2 : 1; /* per multiprocessor */
};

/* Element (line, expert) of split s is c[line * line_stride + expert * expert_stride + s * split_stride]. */
struct problem {
    float *c;
    int64_t line_stride, expert_stride, split_stride;
    int32_t lines, experts;
    int32_t steps; /* of 64 along the contraction, all splits together */
    int32_t tiles; /* of experts */
    fp8flow_write write;
};

struct block_work {
    int line, tile;  /* first line; tile of experts */
    int begin, end;  /* steps */
    int rank;        /* in the cluster */
};

template <class S> struct shared_memory {
    uint64_t full[S::stages], empty[S::stages];
};

/* Neighbours have the same lines and other experts, so that x comes from memory once. */
template <class S> __device__ static block_work work_of(const problem &p)
{
    int rank = S::cluster > 1 ? (int)f8_cluster_rank() : 0, unit = (int)blockIdx.x / S::cluster;
    int64_t split = blockIdx.y, splits = gridDim.y;
    return { (unit / p.tiles * S::cluster + rank) * LINES, unit % p.tiles, (int)(p.steps * split / splits),
             (int)(p.steps * (split + 1) / splits), rank };
}

/* ---- The thread that copies ---- */

template <class S>
__device__ static void produce(const block_work &w, const CUtensorMap *a_map, const CUtensorMap *b_map,
                               shared_memory<S> &shared, uint8_t *ring)
{
    const int share = S::parts / S::cluster;
    f8_position<S::stages> stage = { 0, 1 };
    f8_prefetch_map(a_map);
    f8_prefetch_map(b_map);
    for (int step = w.begin; step < w.end; step++) {
        uint64_t *full = &shared.full[stage.at];
        uint8_t *a = ring + stage.at * S::stage_bytes, *b = a + A_BYTES;
        f8_barrier_wait(&shared.empty[stage.at], stage.phase);
        f8_barrier_expect(full, S::stage_bytes);
        if (S::a_outer) {
            f8_copy_box(a, a_map, full, w.line, step * STEP, 0);
            f8_copy_box(a + BOX_BYTES, a_map, full, w.line + BOX, step * STEP, 0);
        } else {
            f8_copy_box(a, a_map, full, step * STEP, w.line, 0);
        }
        if (S::cluster == 1)
            f8_copy_box(b, b_map, full, step * STEP, 0, w.tile);
        else
            f8_share_box(b + w.rank * share * LINE_BYTES, b_map, full, step * STEP, w.rank * share, w.tile, 3);
        stage.advance();
    }
}

/* ---- The warpgroups that multiply ---- */

template <class S>
__device__ static inline void multiply(float (&sum)[S::sums], uint32_t a, uint32_t b, int stage)
{
    const int a_step = (S::a_outer ? 16 * LINE_BYTES : 32) / 16, b_step = 32 / 16;
    a += stage * (S::stage_bytes / 16), b += stage * (S::stage_bytes / 16);
    f8_products_begin();
#pragma unroll
    for (int i = 0; i < STEP / 16; i++)
        f8_product_bf16_narrow<S::a_outer>(sum, F8_OPERAND_HIGH | (a + i * a_step), F8_OPERAND_HIGH | (b + i * b_step));
    f8_products_commit();
}

/* An expert's result. What is not finite is so in the high parts; the others then may have 0 * Inf. */
__device__ static inline float add_parts(float high, float middle, float low)
{
    float rest = middle * 0x1p-8f + low * 0x1p-16f;
    return fabsf(high) < INFINITY ? high + rest : high;
}

/* Sums 4 i .. 4 i + 3 of a lane: lines l / 4 and l / 4 + 8 of the warp's 16, experts 8 i + l % 4 * 2 and the next. */
template <class S>
__device__ static inline void write_sums(const problem &p, const block_work &w, int row, const float (&sum)[S::sums])
{
    float result[S::results];
    int line = row + f8_lane() / 4, expert = w.tile * S::experts + f8_lane() % 4 * 2;
    float *c = p.c + line * p.line_stride + expert * p.expert_stride + blockIdx.y * p.split_stride;
#pragma unroll
    for (int i = 0; i < S::results; i++)
        result[i] = add_parts(sum[i], sum[i + S::results], sum[i + 2 * S::results]);
    if (p.write == FP8FLOW_ACCUMULATE) {
#pragma unroll
        for (int i = 0; i < S::results; i++) {
            int down = i / 2 % 2 * 8, along = i / 4 * 8 + i % 2;
            if (line + down < p.lines && expert + along < p.experts)
                result[i] = c[down * p.line_stride + along * p.expert_stride] + result[i];
        }
    }
#pragma unroll
    for (int i = 0; i < S::results; i++) {
        int down = i / 2 % 2 * 8, along = i / 4 * 8 + i % 2;
        if (line + down < p.lines && expert + along < p.experts)
            c[down * p.line_stride + along * p.expert_stride] = result[i];
    }
}

template <class S>
__device__ static void consume(const problem &p, const block_work &w, shared_memory<S> &shared, uint8_t *ring)
{
    /* Shuffles make descriptors uniform to the compiler: no moves between the products. */
    int group = __shfl_sync(F8_ALL_LANES, threadIdx.x / 128, 0), warp = threadIdx.x / 32;
    uint32_t address = __shfl_sync(F8_ALL_LANES, f8_smem(ring), 0), a = address + group * BOX_BYTES;
    uint32_t b = f8_operand_low(address + A_BYTES), full = f8_kept(shared.full);
    uint32_t empty = full + (uint32_t)sizeof shared.full, before = 0;
    a = S::a_outer ? f8_operand_low_outer(a, BOX_BYTES) : f8_operand_low(a);
    f8_position<S::stages> stage = { 0, 0 };
    float sum[S::sums];
#pragma unroll
    for (int i = 0; i < S::sums; i++) f8_set_zero(sum[i]);
#pragma unroll 1
    for (int step = w.begin; step < w.end; step++) {
        f8_barrier_wait(full + 8 * stage.at, stage.phase);
        multiply<S>(sum, a, b, stage.at);
        f8_products_wait<1>();
        if (step > w.begin) f8_release<S::cluster>(before);
        before = empty + 8 * stage.at;
        stage.advance();
    }
    f8_products_wait<0>();
#pragma unroll
    for (int i = 0; i < S::sums; i++) f8_pin(sum[i]);
    write_sums<S>(p, w, w.line + group * 64 + warp % 4 * 16, sum);
}

/* ---- Kernels ---- */

template <class S>
__global__ __launch_bounds__(THREADS, S::blocks) static void
gemm_split_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                  const __grid_constant__ problem p)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ shared_memory<S> shared;
    uint8_t *ring = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    block_work w = work_of<S>(p);
    if (threadIdx.x == 0) {
        f8_ring_init(shared.full, shared.empty, 1, 4 * GROUPS * S::cluster);
        f8_barrier_fence();
    }
    __syncthreads();
    if (S::cluster > 1) f8_cluster_sync();
    if (threadIdx.x / 32 == PRODUCER_WARP) {
        if (f8_lane() == 0) produce<S>(w, &a_map, &b_map, shared, ring);
    } else {
        consume<S>(p, w, shared, ring);
    }
    /* The other block may still copy into this one and arrive at its barriers. A warp counts once: whole again. */
    __syncwarp();
    if (S::cluster > 1) f8_cluster_sync();
}

/* c = sums of the splits, ascending, or c + them. A thread has one element. */
__global__ static void __launch_bounds__(SUM_THREADS) gemm_split_sum_kernel(fp8flow_tensor c, const float *sums,
                                                                            int splits, fp8flow_write write)
{
    int64_t count = c.rows * c.cols, index = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x;
    if (index >= count) return;
    float *to = (float *)c.data + index / c.cols * c.stride + index % c.cols, sum = sums[index];
#pragma unroll 4
    for (int i = 1; i < splits; i++) sum += sums[i * count + index];
    *to = write == FP8FLOW_ACCUMULATE ? *to + sum : sum;
}

/* ---- FPROP, WGRAD ---- */

/* One product on its way to the kernel: `tall` rows of x by parts in scratch memory. */
struct narrow {
    const f8_gemm_config *config;
    fp8flow_tensor tall, parts, *c;
    fp8flow_write write;
    problem p;
};

static float *sums_of(const fp8flow_context *c)
{
    return (float *)((char *)f8_cuda_scratch(c) + F8_SPLIT_PARTS_BYTES);
}

template <class S> static fp8flow_status launch(fp8flow_context *c, const narrow &n)
{
    CUtensorMap a_map, b_map;
    F8_TRY(f8_bf16_map("gemm", &a_map, &n.tall, 1, S::a_outer ? BOX : LINES));
    F8_TRY(f8_bf16_map("gemm", &b_map, &n.parts, n.p.tiles, S::parts / S::cluster));
    cudaLaunchAttribute cluster;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(f8_grid(n.p.lines, LINES * S::cluster) * S::cluster * n.p.tiles, n.config->splits);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = S::bytes;
    config.stream = f8_stream(c);
    if (S::cluster > 1) f8_use_clusters(&config, &cluster, S::cluster);
    f8_allow_shared(gemm_split_kernel<S>, S::bytes);
    cudaLaunchKernelEx(&config, gemm_split_kernel<S>, a_map, b_map, n.p);
    return f8_launched("gemm");
}

template <fp8flow_product product> static fp8flow_status launch_tile(fp8flow_context *c, const narrow &n)
{
    switch (n.config->tile_n / F8_SPLIT_PARTS) {
    case 8: return launch<shape<product, 8, 5, 1>>(c, n);
    case 16: return launch<shape<product, 16, 5, 1>>(c, n);
    case 32: return launch<shape<product, 32, 3, 1>>(c, n);
    default: return launch<shape<product, 64, 5, 2>>(c, n);
    }
}

/* Numbers [rows, cols] of an F32 operand; their parts are lines of `stride`, a multiple of 8, in scratch memory. */
static f8_parts_job split_job(const fp8flow_context *c, const fp8flow_tensor *t, int64_t stride, int64_t lines,
                              int64_t tile)
{
    return { (const float *)t->data, t->stride, (int32_t)t->rows, (int32_t)t->cols, (uint16_t *)f8_cuda_scratch(c),
             stride, (int32_t)lines, (int32_t)tile };
}

static fp8flow_tensor parts_tensor(void *data, int64_t rows, int64_t stride)
{
    return { rows, stride, stride, 0, FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS, data, NULL };
}

/* Rows first .. first + count - 1. */
static fp8flow_tensor rows_of(const fp8flow_tensor *t, int64_t first, int64_t count)
{
    fp8flow_tensor part = *t;
    part.data = (char *)t->data + first * t->stride * (t->dtype == FP8FLOW_F32 ? 4 : 2);
    part.rows = count;
    return part;
}

static int64_t rows_in_pass(int64_t first, int64_t most, int64_t total)
{
    return total - first < most ? total - first : most;
}

/* c[lines, experts], in WGRAD [experts, lines]. The parts are made: `stride` long, `tiles` times tile_n lines. */
template <fp8flow_product product>
static fp8flow_status multiply_parts(fp8flow_context *c, narrow n, int64_t contraction, int64_t experts, int64_t stride)
{
    const bool gradient = product == FP8FLOW_WGRAD, is_split = n.config->splits > 1;
    int64_t tiles = f8_ceil_div(F8_SPLIT_PARTS * experts, n.config->tile_n), line = is_split ? n.c->cols : n.c->stride;
    n.parts = parts_tensor(f8_cuda_scratch(c), tiles * n.config->tile_n, stride);
    n.p.c = is_split ? sums_of(c) : (float *)n.c->data;
    n.p.line_stride = gradient ? 1 : line, n.p.expert_stride = gradient ? line : 1;
    n.p.split_stride = n.c->rows * n.c->cols;
    n.p.lines = (int32_t)(gradient ? n.c->cols : n.c->rows), n.p.experts = (int32_t)experts;
    n.p.steps = (int32_t)f8_ceil_div(contraction, STEP), n.p.tiles = (int32_t)tiles;
    n.p.write = is_split ? FP8FLOW_OVERWRITE : n.write;
    F8_TRY(launch_tile<product>(c, n));
    if (!is_split) return FP8FLOW_OK;
    gemm_split_sum_kernel<<<f8_grid(n.p.split_stride, SUM_THREADS), SUM_THREADS, 0, f8_stream(c)>>>(
        *n.c, sums_of(c), n.config->splits, n.write);
    return f8_launched("gemm");
}

static fp8flow_status fprop(fp8flow_context *c, const fp8flow_gemm_args *x, const f8_gemm_config *config)
{
    int64_t experts = x->c->cols, tile = config->tile_n / F8_SPLIT_PARTS, stride = f8_ceil_div(x->a->cols, 8) * 8;
    f8_parts_job job = split_job(c, x->b, stride, f8_ceil_div(experts, tile) * tile, tile);
    f8_split_launch(c, split_rows_kernel<f8_parts_side_by_side>, job);
    narrow n = { config, *x->a, {}, x->c, x->write, {} };
    return multiply_parts<FP8FLOW_FPROP>(c, n, x->a->cols, experts, stride);
}

/* Pass by pass over the rows: as many as parts fit. */
static fp8flow_status wgrad(fp8flow_context *c, const fp8flow_gemm_args *x, const f8_gemm_config *config)
{
    int64_t experts = x->a->cols, tile = config->tile_n / F8_SPLIT_PARTS, lines = f8_ceil_div(experts, tile) * tile;
    int64_t most = F8_SPLIT_PARTS_BYTES / (F8_SPLIT_PARTS * lines * 2) / STEP * STEP, total = x->a->rows;
    for (int64_t first = 0; first < total; first += most) {
        int64_t rows = rows_in_pass(first, most, total), stride = f8_ceil_div(rows, 8) * 8;
        fp8flow_tensor a = rows_of(x->a, first, rows);
        f8_split_launch(c, split_columns_kernel<f8_parts_side_by_side>, split_job(c, &a, stride, lines, tile));
        narrow n = { config, rows_of(x->b, first, rows), {}, x->c, first > 0 ? FP8FLOW_ACCUMULATE : x->write, {} };
        F8_TRY(multiply_parts<FP8FLOW_WGRAD>(c, n, rows, experts, stride));
    }
    return FP8FLOW_OK;
}

extern "C" fp8flow_status f8_cuda_gemm_split(fp8flow_context *c, const fp8flow_gemm_args *x,
                                             const f8_gemm_desc *desc, const f8_gemm_config *config)
{
    return desc->product == FP8FLOW_WGRAD ? wgrad(c, x, config) : fprop(c, x, config);
}

/* ---- DGRAD ---- */

/* The parts of the weight stay; rows of a come pass by pass. */
extern "C" fp8flow_status f8_cuda_gemm_split_k(fp8flow_context *c, const fp8flow_gemm_args *x,
                                               const f8_gemm_desc *desc, const f8_gemm_config *config)
{
    int64_t experts = f8_ceil_div(desc->inner, 8) * 8, inner = F8_SPLIT_PAIRS * experts, columns = desc->outer;
    uint16_t *b_parts = (uint16_t *)f8_cuda_scratch(c), *a_parts = b_parts + inner * columns;
    int64_t most = (F8_CUDA_SCRATCH_BYTES - inner * columns * 2) / (inner * 2) / LINES * LINES, total = desc->rows;
    fp8flow_tensor b = parts_tensor(b_parts, inner, columns);
    f8_split_launch(c, split_rows_kernel<f8_parts_right>, split_job(c, x->b, columns, experts, experts));
    for (int64_t first = 0; first < total; first += most) {
        int64_t rows = rows_in_pass(first, most, total);
        fp8flow_tensor from = rows_of(x->a, first, rows), a = parts_tensor(a_parts, rows, inner);
        fp8flow_tensor to = rows_of(x->c, first, rows);
        f8_parts_job job = split_job(c, &from, experts, rows, 1);
        job.to = a_parts;
        f8_split_launch(c, split_rows_kernel<f8_parts_left>, job);
        fp8flow_gemm_args args = { FP8FLOW_DGRAD, x->write, NULL, &a, &b, &to };
        f8_gemm_desc pass = f8_gemm_describe(&args);
        F8_TRY(f8_cuda_gemm_bf16(c, &args, &pass, config));
    }
    return FP8FLOW_OK;
}
