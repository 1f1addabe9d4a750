/* accumulate.cu - what adding a tile of registers or shared memory to an FP32 matrix in memory costs: the epilogue of
 * the weight gradient without its product. Tiles of 128 x 128 of a [393216, 2048] matrix (3.2 GB), 8 bytes per element.
 * Persistent blocks walk the tiles with a static stride, columns fastest.
 *
 * a  copy engine, adding in L2, from shared memory that never changes. predict 2.4 TB/s (what DeepGEMM's wgrad gets).
 * b  slots of 64 x 32 numbers: load, add in registers, store; a keeper thread per warpgroup. predict 4.0 TB/s at 96 KB.
 * c  plain 8-byte accesses in the layout of wgmma: a quad of lanes touches 32 bytes. predict 3.3 TB/s.
 * d  16-byte accesses, a quad touches 64 bytes (columns permuted). predict 3.7 TB/s; two blocks per SM 3.9.
 * e  red.add.v4.f32, the same pattern. predict 2.4 TB/s: the same adders as a.
 * f  16-byte accesses, a warp touches 512 bytes in a row: what the memory gives. predict 4.0 TB/s.
 */
#include <cudaTypedefs.h>

#include "ops/hopper.cuh"
#include "lab.cuh"

enum { COLS = 2048, ROWS = 393216, TILE = 128, TILES_X = COLS / TILE, TILES = TILES_X * (ROWS / TILE) };
enum { PIECE_BYTES = 64 * 32 * 4 };

/* ---- a ---- */

template <int pending>
__global__ __launch_bounds__(128, 1) static void reduce_kernel(const __grid_constant__ CUtensorMap map, uint64_t once)
{
    extern __shared__ uint8_t dynamic[];
    uint8_t *memory = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    for (int i = threadIdx.x; i < 8 * PIECE_BYTES / 4; i += 128) ((float *)memory)[i] = 1.0f;
    f8_async_fence();
    __syncthreads();
    if (threadIdx.x) return;
    uint64_t policy = f8_policy_once();
    for (int t = blockIdx.x; t < TILES; t += gridDim.x) {
        for (int i = 0; i < 8; i++)
            f8_add_box(&map, memory + i * PIECE_BYTES, t % TILES_X * TILE + i % 4 * 32,
                       t / TILES_X * TILE + i / 4 * 64, 0, policy);
        f8_store_commit();
        f8_store_wait_read<pending>();
    }
    f8_store_wait_read<0>();
}

/* ---- b ---- */

template <int slots>
__global__ __launch_bounds__(384, 1) static void slots_kernel(const __grid_constant__ CUtensorMap map, uint64_t once)
{
    extern __shared__ uint8_t dynamic[];
    __shared__ uint64_t ready[2][slots], done[2][slots];
    uint8_t *memory = dynamic + (1024 - f8_smem(dynamic) % 1024) % 1024;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * slots; i++) {
            f8_barrier_init(&ready[0][0] + i, 1);
            f8_barrier_init(&done[0][0] + i, 4);
        }
        f8_barrier_fence();
    }
    __syncthreads();
    int tiles = (TILES - blockIdx.x + gridDim.x - 1) / gridDim.x, lane = threadIdx.x % 32;
    if (threadIdx.x >= 256) {
        int group = threadIdx.x / 32 - 8;
        if (group > 1 || lane) return;
        uint64_t policy = f8_policy_once();
        uint8_t *mine = memory + group * slots * PIECE_BYTES;
        auto x = [&](int i) { return (int)((blockIdx.x + i / 4 * gridDim.x) % TILES_X * TILE + i % 4 * 32); };
        auto y = [&](int i) { return (int)((blockIdx.x + i / 4 * gridDim.x) / TILES_X * TILE + group * 64); };
        int loaded = 0;
        auto load = [&]() {
            if (loaded >= 4 * tiles) return;
            uint64_t *barrier = &ready[group][loaded % slots];
            f8_barrier_expect(barrier, PIECE_BYTES);
            f8_copy_box(mine + loaded % slots * PIECE_BYTES, &map, barrier, x(loaded), y(loaded), 0, policy);
            loaded++;
        };
        for (int i = 0; i < slots; i++) load();
        for (int i = 0; i < 4 * tiles; i++) {
            f8_barrier_wait(&done[group][i % slots], i / slots & 1);
            f8_store_box(&map, mine + i % slots * PIECE_BYTES, x(i), y(i), 0, policy);
            f8_store_commit();
            if (i) {
                f8_store_wait_read<1>();
                load();
            }
        }
        f8_store_wait_read<0>();
        return;
    }
    int group = threadIdx.x / 128;
    uint8_t *mine = memory + group * slots * PIECE_BYTES + (threadIdx.x % 128 / 32 * 16 + lane / 4) * 128;
    for (int i = 0; i < 4 * tiles; i++) {
        f8_barrier_wait(&ready[group][i % slots], i / slots & 1);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float4 *at = (float4 *)(mine + i % slots * PIECE_BYTES + k % 2 * 1024 +
                                    ((lane % 4 * 2 + k / 2) ^ (lane / 4)) * 16);
            float4 v = *at;
            *at = make_float4(v.x + 1, v.y + 1, v.z + 1, v.w + 1);
        }
        f8_async_fence();
        __syncwarp();
        if (lane == 0) f8_barrier_arrive(&done[group][i % slots]);
    }
}

/* ---- c, d, e, f ---- */

enum pattern { QUAD_8, QUAD_16, QUAD_16_RED, LINE_16 };

template <pattern how, int per_sm>
__global__ __launch_bounds__(256, per_sm) static void plain_kernel(float *c, uint64_t once)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int t = blockIdx.x; t < TILES; t += gridDim.x) {
        float *tile = c + (int64_t)(t / TILES_X) * TILE * COLS + t % TILES_X * TILE;
        if constexpr (how == QUAD_8) {
            float2 v[32];
            float *at = tile + (int64_t)(warp * 16 + lane / 4) * COLS + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 32; i++) v[i] = __ldcs((const float2 *)(at + i % 2 * 8 * COLS + i / 2 * 8));
#pragma unroll
            for (int i = 0; i < 32; i++)
                __stcs((float2 *)(at + i % 2 * 8 * COLS + i / 2 * 8), make_float2(v[i].x + 1, v[i].y + 1));
        } else {
            float *at = how == LINE_16 ? tile + (int64_t)warp * 16 * COLS + lane * 4
                                       : tile + (int64_t)(warp * 16 + lane / 4) * COLS + lane % 4 * 4;
            auto place = [&](int i) { return how == LINE_16 ? at + i * COLS : at + i % 2 * 8 * COLS + i / 2 * 16; };
            float4 v[16];
#pragma unroll
            for (int i = 0; i < 16; i++) {
                if constexpr (how == QUAD_16_RED)
                    asm volatile("red.global.add.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(place(i)), "f"(1.0f) : "memory");
                else
                    v[i] = __ldcs((const float4 *)place(i));
            }
            if constexpr (how != QUAD_16_RED)
#pragma unroll
                for (int i = 0; i < 16; i++)
                    __stcs((float4 *)place(i), make_float4(v[i].x + 1, v[i].y + 1, v[i].z + 1, v[i].w + 1));
        }
    }
}

/* ---- */

__global__ static void count_wrong(const float *c, int64_t count, unsigned long long *wrong)
{
    unsigned long long mine = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        mine += c[i] != 1.0f;
    if (mine) atomicAdd(wrong, mine);
}

static CUtensorMap make_map(const float *data)
{
    PFN_cuTensorMapEncodeTiled_v12000 encode;
    cudaDriverEntryPointQueryResult found;
    LAB_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000, cudaEnableDefault,
                                             &found));
    CUtensorMap map;
    cuuint64_t dims[3] = { COLS, ROWS, 1 }, strides[2] = { 4 * COLS, 4ull * COLS * ROWS };
    cuuint32_t box[3] = { 32, 64, 1 }, steps[3] = { 1, 1, 1 };
    CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 3, (void *)data, dims, strides, box, steps,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) std::printf("tensor map: error %d\n", (int)result), std::exit(1);
    return map;
}

template <class Kernel, class Target>
static void run(const char *name, Kernel kernel, Target target, float *c, int blocks, int threads, int shared_bytes)
{
    const int64_t count = (int64_t)ROWS * COLS;
    unsigned long long *wrong = lab_alloc<unsigned long long>(1);
    LAB_TRY(cudaMemset(wrong, 0, sizeof *wrong));
    LAB_TRY(cudaMemset(c, 0, count * 4));
    LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    auto launch = [&](cudaStream_t s) { kernel<<<blocks, threads, shared_bytes, s>>>(target, 0); };
    launch(0);
    count_wrong<<<1056, 256>>>(c, count, wrong);
    LAB_TRY(cudaDeviceSynchronize());
    unsigned long long bad = lab_download(wrong, 1)[0];
    double time = lab_time(launch, 11);
    std::printf("%-52s %8.1f us %6.2f TB/s%s\n", name, time, 8.0 * count / time * 1e-6, bad ? "  WRONG" : "");
    LAB_TRY(cudaFree(wrong));
}

int main()
{
    setvbuf(stdout, NULL, _IONBF, 0);
    float *c = lab_alloc<float>((int64_t)ROWS * COLS);
    CUtensorMap map = make_map(c);
    const int kib = 1024;
    run("c   8 bytes, quad 32 bytes, 1 block/SM", plain_kernel<QUAD_8, 1>, c, c, 132, 256, 0);
    run("c2  the same, 2 blocks/SM", plain_kernel<QUAD_8, 2>, c, c, 264, 256, 0);
    run("d   16 bytes, quad 64 bytes, 1 block/SM", plain_kernel<QUAD_16, 1>, c, c, 132, 256, 0);
    run("d2  the same, 2 blocks/SM", plain_kernel<QUAD_16, 2>, c, c, 264, 256, 0);
    run("e   red.add.v4.f32, 1 block/SM", plain_kernel<QUAD_16_RED, 1>, c, c, 132, 256, 0);
    run("f   16 bytes, warp 512 bytes, 1 block/SM", plain_kernel<LINE_16, 1>, c, c, 132, 256, 0);
    run("f2  the same, 2 blocks/SM", plain_kernel<LINE_16, 2>, c, c, 264, 256, 0);
    run("a   copy engine adds, 1 tile pending", reduce_kernel<0>, map, c, 132, 128, 65 * kib);
    run("a2  copy engine adds, 3 tiles pending", reduce_kernel<2>, map, c, 132, 128, 65 * kib);
    run("b2  load + add + store, 2x2 slots (32 KB)", slots_kernel<2>, map, c, 132, 384, 33 * kib);
    run("b4  load + add + store, 2x4 slots (64 KB)", slots_kernel<4>, map, c, 132, 384, 65 * kib);
    run("b6  load + add + store, 2x6 slots (96 KB)", slots_kernel<6>, map, c, 132, 384, 97 * kib);
    run("b8  load + add + store, 2x8 slots (128 KB)", slots_kernel<8>, map, c, 132, 384, 129 * kib);
    return 0;
}
