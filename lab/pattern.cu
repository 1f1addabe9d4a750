/* pattern.cu - what memory allows for tiles: how fast the two forms of a [32768, 7168] matrix of bytes can be written,
 * or one read and the other written, without any arithmetic, by the shape of a block's tile and by the order of blocks.
 *
 * Row form: `height` segments of `width` bytes, 7168 apart. Column form: `width` segments of `height` bytes, 32768
 * apart. Blocks walk slabs of `slab` column tiles: in a slab, column tile first, then row tile.
 * "gathered" reads the rows from a matrix of 4096, each eight times; "kept" without marking them as the first to leave
 * L2. predict: nothing; this is the bound that transpose and permute are held against.
 */
#include "lab.cuh"
#include "ops/warp.cuh"

enum { ROWS = 32768, COLS = 7168, THREADS = 256 };

/* Write (or read) `lines` segments of `bytes` from `first` on, `stride` apart. */
template <int lines, int bytes, bool reads> __device__ static uint32_t touch(uint8_t *first, int64_t stride, uint32_t x)
{
    const int pieces = bytes / 16, total = lines * pieces;
    uint4 sum = make_uint4(x, x, x, x);
#pragma unroll
    for (int i = 0; i < total / THREADS; i++) {
        int piece = i * THREADS + threadIdx.x;
        uint8_t *at = first + piece / pieces * stride + piece % pieces * 16;
        if (reads) {
            uint4 y = f8_load16(at);
            sum.x ^= y.x ^ y.y ^ y.z ^ y.w;
        } else f8_store16(at, sum);
    }
    return sum.x;
}

enum { ROW_WRITE = 1, COLUMN_WRITE = 2, ROW_READ = 4, GATHER = 8, GATHER_KEPT = 16, TOKENS = 4096 };

/* Read rows of a [TOKENS, COLS] matrix in a random order: each is read ROWS / TOKENS times, mostly out of L2. */
template <int lines, int bytes, bool kept> __device__ static uint32_t gather(const uint8_t *x, int64_t row, int64_t col)
{
    const int pieces = bytes / 16, total = lines * pieces;
    uint4 part[total / THREADS];
#pragma unroll
    for (int i = 0; i < total / THREADS; i++) {
        int piece = i * THREADS + threadIdx.x;
        uint32_t token = (uint32_t)(row + piece / pieces) * 2654435761u >> 20;
        const uint8_t *at = x + (int64_t)token * COLS + col + piece % pieces * 16;
        part[i] = kept ? __ldg((const uint4 *)at) : f8_load16(at);
    }
    uint32_t sum = 0;
#pragma unroll
    for (int i = 0; i < total / THREADS; i++) sum ^= part[i].x ^ part[i].y ^ part[i].z ^ part[i].w;
    return sum;
}

template <int height, int width, int mode>
__global__ static void tile_kernel(const uint8_t *x_rows, uint8_t *rows, uint8_t *columns, int slab)
{
    int row_tiles = ROWS / height, index = blockIdx.x;
    int in_slab = index % (slab * row_tiles), first = index / (slab * row_tiles) * slab;
    int64_t row = (int64_t)(in_slab / slab) * height, col = (int64_t)(first + in_slab % slab) * width;
    uint32_t x = index;
    if (mode & ROW_READ) x = touch<height, width, true>(rows + row * COLS + col, COLS, x);
    if (mode & GATHER) x ^= gather<height, width, false>(x_rows, row, col);
    if (mode & GATHER_KEPT) x ^= gather<height, width, true>(x_rows, row, col);
    if (mode & ROW_WRITE) touch<height, width, false>(rows + row * COLS + col, COLS, x);
    if (mode & COLUMN_WRITE) touch<width, height, false>(columns + col * ROWS + row, ROWS, x);
}

template <int height, int width, int mode> static void run(uint8_t *rows, uint8_t *columns, const char *what)
{
    const int slabs[] = { 1, 2, 4, 8, COLS / width };
    for (int slab : slabs) {
        if (COLS / width % slab) continue;
        char name[64];
        std::snprintf(name, sizeof name, "%s, tile %d x %d, slab %d", what, height, width, slab);
        double forms = (mode & ROW_READ ? 1 : 0) + (mode & (GATHER | GATHER_KEPT) ? 0.125 : 0) +
                       (mode & ROW_WRITE ? 1 : 0) + (mode & COLUMN_WRITE ? 1 : 0);
        static const uint8_t *x_rows = (const uint8_t *)lab_normal_bf16(TOKENS, COLS / 2, 0, 1);
        auto launch = [&](cudaStream_t s) {
            unsigned tiles = ROWS / height * (COLS / width);
            tile_kernel<height, width, mode><<<tiles, THREADS, 0, s>>>(x_rows, rows, columns, slab);
        };
        lab_report(name, "32768 x 7168", forms * ROWS * COLS, lab_time(launch, 9));
        LAB_TRY(cudaGetLastError());
    }
}

template <int height, int width> static void shapes(uint8_t *rows, uint8_t *columns)
{
    run<height, width, ROW_WRITE>(rows, columns, "rows");
    run<height, width, COLUMN_WRITE>(rows, columns, "columns");
    run<height, width, ROW_WRITE | COLUMN_WRITE>(rows, columns, "both written");
    run<height, width, ROW_READ | COLUMN_WRITE>(rows, columns, "read, columns");
    run<height, width, GATHER | ROW_WRITE>(rows, columns, "gathered, rows");
    run<height, width, GATHER | ROW_WRITE | COLUMN_WRITE>(rows, columns, "gathered, both");
    run<height, width, GATHER_KEPT | ROW_WRITE | COLUMN_WRITE>(rows, columns, "gathered and kept, both");
}

int main()
{
    uint8_t *rows = lab_alloc<uint8_t>((size_t)ROWS * COLS), *columns = lab_alloc<uint8_t>((size_t)ROWS * COLS);
    shapes<128, 128>(rows, columns);
    shapes<256, 128>(rows, columns);
    shapes<128, 256>(rows, columns);
    shapes<256, 256>(rows, columns);
    return 0;
}
