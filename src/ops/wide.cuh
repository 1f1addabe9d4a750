/* wide.cuh - four tiles at a time, 256 x 256 codes: ROW128 lines, gathered, to TILE128 columns (and to a row form).
 *
 * What limits a transposition is how DRAM is visited: segments of 256 contiguous bytes in both forms are 10 to 20 %
 * faster than the 128 of shift.cuh. A block owns `row_blocks` (1 or 2) row blocks and 256 columns, 256 threads per row
 * block. Of its row block a warp has 16 rows, a thread two patches of 4 rows and 16 columns: 16 lanes load 256 bytes
 * of a row, the other 16 of the row four below. Latency is hidden by 8 loads per thread and the blocks of an SM
 * (4 of 256 threads or 2 of 512: room for 128 KB of loads), which are at different stages.
 *
 * Every tile has its own target; row blocks may belong to different groups. The word of row quad q and column c lies
 * at columns[c * words + (q ^ swizzle)], with group c / 16: bits 0 to 2 of the group flip bits 2 to 4 of q, whole
 * pieces of 16 bytes; bit 3 flips bit 1, the order within pieces, known where columns are stored. So the 16 groups
 * and two quads of a warp write to 32 banks, and pieces are read without conflicts. All lines are whole pieces.
 */
#ifndef F8_OPS_WIDE_CUH
#define F8_OPS_WIDE_CUH

#include "ops/shift.cuh"

enum { F8_WIDE_COLS = 2 * F8_BLOCK, F8_WIDE_THREADS = 256, F8_WIDE_WARPS = F8_WIDE_THREADS / F8_WARP };

/* Columns of tiles in a slab, as F8_SLAB. */
enum { F8_WIDE_SLAB = 2 };

/* A thread's two patches; their rows begin 8 apart. */
struct f8_wide_patches {
    f8_patch half[2];
};

template <int row_blocks> struct f8_wide_shared {
    alignas(16) uint32_t columns[F8_WIDE_COLS * F8_QUADS * row_blocks];
    alignas(16) uint32_t warp_target[row_blocks][2][F8_WIDE_WARPS];
    uint32_t histogram[F8_SHIFT_BINS];
    int rows[row_blocks]; /* 0: there is no such row block */
};

/* Where a block is, and the thread in it. */
struct f8_wide_place {
    int first_row, first_col; /* of the block of threads */
    int block;                /* row block of this thread */
    int col, col_block;       /* of its patches; beyond the tensor: nothing to load and store */
};

template <int row_blocks, int slab> __device__ static inline f8_wide_place f8_wide_place_of()
{
    f8_wide_place at;
    int first_block = (int)(blockIdx.x / slab) * row_blocks;
    at.first_row = first_block * F8_BLOCK;
    at.first_col = (int)(blockIdx.y * slab + blockIdx.x % slab) * F8_WIDE_COLS;
    at.block = first_block + (int)threadIdx.x / F8_WIDE_THREADS;
    at.col = at.first_col + f8_lane() % 16 * 16;
    at.col_block = at.col / F8_BLOCK;
    return at;
}

/* First row of patch `half` within the row block. */
__device__ static inline int f8_wide_row(int half)
{
    return (int)threadIdx.x % F8_WIDE_THREADS / F8_WARP * 16 + half * 8 + f8_lane() / 16 * 4;
}

/* Codes of the rows `token` of x; -1: zeros. */
template <f8_access access>
__device__ static inline void f8_wide_load_codes(const fp8flow_tensor &x, const f8_wide_place &at, const int token[4],
                                                 f8_patch &p)
{
    const uint8_t *from = (const uint8_t *)x.data + at.col;
    const int count = at.col < x.cols ? 16 : 0;
#pragma unroll
    for (int r = 0; r < 4; r++)
        f8_set_row(p, r, f8_read_codes<access>(from + token[r] * x.stride, token[r] < 0 ? 0 : count));
}

/* Their scale bytes; -1: 1. */
__device__ static inline void f8_wide_load_scales(const fp8flow_tensor &x, const f8_wide_place &at, const int token[4],
                                                  f8_patch &p)
{
    const int blocks = f8_col_blocks(x);
    const uint8_t *from = (const uint8_t *)x.scale + at.col_block;
#pragma unroll
    for (int r = 0; r < 4; r++)
        p.scale[r] = token[r] < 0 || at.col_block >= blocks ? 1 : __ldg(from + (int64_t)token[r] * blocks);
}

/* The target of this thread's tile. Contains the barrier that makes `shared` complete. */
template <int row_blocks>
__device__ static inline uint32_t f8_wide_target(const f8_wide_patches &p, f8_wide_shared<row_blocks> &shared)
{
    uint32_t target = 1;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t *code = p.half[i / 4].code[i % 4];
        if ((code[0] | code[1] | code[2] | code[3]) & 0x7F7F7F7Fu) target = max(target, p.half[i / 4].scale[i % 4]);
    }
    const int part = (int)threadIdx.x / F8_WIDE_THREADS, warp = (int)threadIdx.x % F8_WIDE_THREADS / F8_WARP;
    const int side = f8_lane() / 8 % 2;
    uint32_t left = __reduce_max_sync(F8_ALL_LANES, side ? 1 : target);
    uint32_t right = __reduce_max_sync(F8_ALL_LANES, side ? target : 1);
    if (f8_lane() == 0) {
        shared.warp_target[part][0][warp] = left;
        shared.warp_target[part][1][warp] = right;
    }
    __syncthreads();
    const uint4 *of_warps = (const uint4 *)shared.warp_target[part][side];
    uint4 low = of_warps[0], high = of_warps[1];
    return max(max(max(low.x, low.y), max(low.z, low.w)), max(max(high.x, high.y), max(high.z, high.w)));
}

/* The four scale bytes of a patch in one register, and back: FP32 arithmetic (E5M2) leaves no room for eight. */
__device__ static inline uint32_t f8_pack_scales(const f8_patch &p)
{
    return __byte_perm(__byte_perm(p.scale[0], p.scale[1], 0x0040),
                       __byte_perm(p.scale[2], p.scale[3], 0x0040), 0x5410);
}

__device__ static inline void f8_unpack_scales(f8_patch &p, uint32_t packed)
{
#pragma unroll
    for (int r = 0; r < 4; r++) p.scale[r] = __byte_perm(packed, 0, 0x4440 + r);
}

/* A transposed patch to shared memory. */
template <int row_blocks>
__device__ static inline void f8_wide_write(const f8_patch &p, int half, f8_wide_shared<row_blocks> &shared)
{
    const int words = F8_QUADS * row_blocks, group = f8_lane() % 16;
    int quad = (int)threadIdx.x / F8_WIDE_THREADS * F8_QUADS + f8_wide_row(half) / 4;
    uint32_t *to = shared.columns + group * 16 * words + (quad ^ (group % 8 * 4 | group / 8 * 2));
#pragma unroll
    for (int c = 0; c < 16; c++) to[c * words] = p.code[c % 4][c / 4];
}

/* All columns from shared memory, 32 at a time. */
template <int row_blocks>
__device__ static inline void f8_wide_store(const fp8flow_tensor &columns, const f8_wide_place &at,
                                            const f8_wide_shared<row_blocks> &shared)
{
    const int words = F8_QUADS * row_blocks, pieces = words / 4, lines = F8_WIDE_THREADS * row_blocks / pieces;
    const int line = (int)threadIdx.x / pieces, piece = (int)threadIdx.x % pieces;
    if (piece % 8 * 16 >= shared.rows[piece / 8]) return;
    const int left = (int)min(columns.cols - at.first_col - line, (int64_t)F8_WIDE_COLS);
    uint8_t *to = (uint8_t *)columns.data + (at.first_col + line) * columns.stride + at.first_row + piece * 16;
#pragma unroll
    for (int first = 0; first < F8_WIDE_COLS; first += lines, to += lines * columns.stride) {
        const int group = first / 16 + line / 16;
        uint4 codes = *(const uint4 *)(shared.columns + (first + line) * words + (piece ^ group % 8) * 4);
        if (first >= F8_BLOCK) codes = make_uint4(codes.z, codes.w, codes.x, codes.y);
        if (first < left) f8_store16(to, codes);
    }
}

/* Lines: x; access; end: rows from there on are not in use; find_tokens: the rows of x for this thread's patches, and
 * how many rows the row block has; keep: what else is made of them. */
template <fp8flow_dtype dtype, int row_blocks, int slab, class Lines>
__global__ static void __launch_bounds__(F8_WIDE_THREADS *row_blocks, 4 / row_blocks)
    f8_wide_kernel(Lines lines, fp8flow_tensor columns, uint64_t *histogram)
{
    extern __shared__ __align__(16) uint8_t memory[];
    f8_wide_shared<row_blocks> &shared = *(f8_wide_shared<row_blocks> *)memory;
    const int thread = (int)threadIdx.x, blocks = f8_col_blocks(columns);
    const f8_wide_place at = f8_wide_place_of<row_blocks, slab>();
    if (at.first_col >= columns.cols) return;
    /* Asked for before it is known whether the rows are in use: two latencies become one. */
    int token[2][4], end = lines.end(), rows = lines.find_tokens(at.block, end, token);
    if (at.first_row >= end) return;
    f8_wide_patches p;
#pragma unroll
    for (int half = 0; half < 2; half++)
        f8_wide_load_codes<Lines::access>(lines.x, at, token[half], p.half[half]);
#pragma unroll
    for (int half = 0; half < 2; half++) f8_wide_load_scales(lines.x, at, token[half], p.half[half]);
    if (thread < F8_SHIFT_BINS) shared.histogram[thread] = 0;
    if (thread % F8_WIDE_THREADS == 0) shared.rows[thread / F8_WIDE_THREADS] = rows;
    if (rows > 0) lines.keep(at, p);
    uint32_t target = f8_wide_target(p, shared);
    if (thread % F8_WIDE_THREADS < 16 && thread % 8 == 0 && rows > 0 && at.col_block < blocks)
        ((uint8_t *)columns.scale)[(int64_t)at.block * blocks + at.col_block] = (uint8_t)target;
    const uint32_t scales[2] = { f8_pack_scales(p.half[0]), f8_pack_scales(p.half[1]) };
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (dtype == FP8FLOW_E5M2) f8_unpack_scales(p.half[half], scales[half]);
        if (histogram) f8_count_rows<dtype>(p.half[half], target, shared.histogram);
        f8_shift_rows<dtype>(p.half[half], target);
        f8_transpose_patch(p.half[half]);
        f8_wide_write(p.half[half], half, shared);
    }
    __syncthreads();
    f8_wide_store(columns, at, shared);
    if (histogram && thread < F8_SHIFT_BINS && shared.histogram[thread])
        atomicAdd((unsigned long long *)histogram + thread, (unsigned long long)shared.histogram[thread]);
}

/* Tiles of 256 x 256 pay from several waves of them on (two blocks on each of 132 multiprocessors are a wave): fewer
 * leave multiprocessors idle at the end, and the smaller tiles of shift.cuh win. Measured: 3584 tiles are 4 to 12 %
 * faster than theirs, 1536 are 5 % slower, 672 are 15 % slower. */
static inline bool f8_wide_pays(int64_t row_blocks, int64_t cols)
{
    enum { LEAST_TILES = 2048 };
    return f8_ceil_div(row_blocks, 2) * f8_ceil_div(cols, F8_WIDE_COLS) >= LEAST_TILES;
}

/* `capacity`: row blocks that `columns` has room for. */
template <fp8flow_dtype dtype, int row_blocks, int slab, class Lines>
static inline void f8_wide_launch(cudaStream_t stream, const Lines &lines, const fp8flow_tensor &columns,
                                  int64_t capacity, uint64_t *histogram)
{
    auto kernel = f8_wide_kernel<dtype, row_blocks, slab, Lines>;
    const int bytes = (int)sizeof(f8_wide_shared<row_blocks>);
    dim3 grid((unsigned)(f8_ceil_div(capacity, row_blocks) * slab), f8_grid(columns.cols, slab * F8_WIDE_COLS));
    f8_allow_shared(kernel, bytes);
    kernel<<<grid, F8_WIDE_THREADS * row_blocks, bytes, stream>>>(lines, columns, histogram);
}

#endif
