/* shift.cuh - a tile of 128 x 128 codes from row form to column form: the twin of f8_shift_tile of block.h.
 *
 * A block of 256 threads holds one tile in registers. Thread t has a patch: rows 4 * (t / 8) .. + 3, columns
 * 16 * (t % 8) .. + 15, so that a load of a warp is four whole lines of 128 bytes. A patch becomes 16 words of four
 * rows of a column (byte permutes), which cross to their column in shared memory and leave 16 bytes at a time, eight
 * lanes per 128-byte line. The word of row quad q and column c lies at columns[c * 32 + (q ^ c / 16 * 4)]: without
 * the XOR the eight patches side by side in a warp would write to one bank; it moves whole groups of four words, so
 * 16-byte reads stay whole.
 */
#ifndef F8_OPS_SHIFT_CUH
#define F8_OPS_SHIFT_CUH

#include "ops/block.cuh"
#include "ops/codes.cuh"
#include "ops/launch.cuh"

enum { F8_SHIFT_THREADS = 256, F8_SHIFT_WARPS = F8_SHIFT_THREADS / F8_WARP, F8_SHIFT_BINS = 64, F8_QUADS = 32 };

/* Tiles run in slabs of this many columns of tiles, left to right, then down, then the next slab: what is read again
 * is in L2. Measured: 1 and 2 are equal, 8 is 2 % slower, 64 is 5 to 25 % slower. */
enum { F8_SLAB = 2 };

/* How lines are accessed: byte by byte, or in aligned pieces of 16 bytes that are read once or by several blocks. */
enum f8_access { F8_BYTES, F8_WIDE, F8_WIDE_REUSED };

/* Blocks that an SM must hold, 16 KB of loads each. COL128 keeps the factors of its columns beside its patch. */
constexpr int f8_shift_blocks(fp8flow_scaling scaling, f8_access access)
{
    return access == F8_BYTES ? 2 : scaling == FP8FLOW_COL128 ? 3 : 5;
}

/* Before the transposition code[r][w] has columns 4 w .. 4 w + 3 of row r, after it rows 0 .. 3 of column 4 w + r. */
struct f8_patch {
    uint32_t code[4][4];
    uint32_t scale[4]; /* bytes */
};

/* Where the column form of a tile goes: its first element, its first scale, its size. */
struct f8_column_place {
    uint8_t *data, *scale;
    int64_t stride;
    int rows, cols;
};

struct f8_shift_shared {
    alignas(16) uint32_t columns[F8_BLOCK * F8_QUADS];
    alignas(16) uint32_t warp_target[F8_SHIFT_WARPS][F8_BLOCK / 2]; /* pairs of columns; TILE128: [0][warp] */
    alignas(16) float inverse[F8_BLOCK];
    uint32_t histogram[F8_SHIFT_BINS];
};

/* First row and first column of this thread's patch within the tile. */
__device__ static inline int f8_patch_row()
{
    return (int)(threadIdx.x / 8 * 4);
}

__device__ static inline int f8_patch_col()
{
    return (int)(threadIdx.x % 8 * 16);
}

/* Grid of one block per tile, and the tile of a block. A column of tiles beyond the tensor finds no elements. */
static inline dim3 f8_tile_grid(int64_t row_blocks, int64_t cols)
{
    return dim3((unsigned)(row_blocks * F8_SLAB), f8_grid(cols, F8_SLAB * F8_BLOCK));
}

/* Column blocks: grid.y bounds them. */
__device__ static inline int f8_col_blocks(const fp8flow_tensor &t)
{
    return (int)((unsigned)t.cols + F8_BLOCK - 1) / F8_BLOCK;
}

__device__ static inline int f8_tile_row_block()
{
    return (int)(blockIdx.x / F8_SLAB);
}

__device__ static inline int f8_tile_col_block()
{
    return (int)(blockIdx.y * F8_SLAB + blockIdx.x % F8_SLAB);
}

/* ---- 16 codes of a line, the first `count` of them (any number); the rest reads as 0 ---- */

template <f8_access access> __device__ static inline uint4 f8_read_codes(const uint8_t *from, int count)
{
    uint4 codes = make_uint4(0, 0, 0, 0);
    if (access != F8_BYTES) {
        if (count > 0) codes = access == F8_WIDE ? f8_load16(from) : __ldg((const uint4 *)from);
        return codes;
    }
    uint32_t word[4] = { 0, 0, 0, 0 };
#pragma unroll
    for (int i = 0; i < 16; i++)
        if (i < count) word[i / 4] |= (uint32_t)from[i] << i % 4 * 8;
    return make_uint4(word[0], word[1], word[2], word[3]);
}

template <f8_access access> __device__ static inline void f8_write_codes(uint8_t *to, uint4 codes, int count)
{
    if (access != F8_BYTES) {
        if (count > 0) f8_store16(to, codes);
        return;
    }
    const uint32_t word[4] = { codes.x, codes.y, codes.z, codes.w };
#pragma unroll
    for (int i = 0; i < 16; i++)
        if (i < count) to[i] = (uint8_t)(word[i / 4] >> i % 4 * 8);
}

__device__ static inline void f8_set_row(f8_patch &p, int row, uint4 codes)
{
    p.code[row][0] = codes.x, p.code[row][1] = codes.y, p.code[row][2] = codes.z, p.code[row][3] = codes.w;
}

/* ---- Codes ---- */

/* Bytes of `codes` where they are NaN or Inf, of `other` elsewhere. */
template <fp8flow_dtype dtype> __device__ static inline uint32_t f8_keep_not_finite4(uint32_t codes, uint32_t other)
{
    uint32_t special = f8_not_finite4<dtype>(codes);
    if (special == 0) return other;
    uint32_t mask = (special >> 7) * 0xFFu;
    return (codes & mask) | (other & ~mask);
}

/* f8_shift of four codes, each with its own 2^-d, in FP32: any d. f8_shift4_e4m3 needs d >= 0. */
template <fp8flow_dtype dtype> __device__ static inline uint32_t f8_rescale4(uint32_t codes, const float factor[4])
{
    float2 low = __half22float2(f8_decode2<dtype>(codes)), high = __half22float2(f8_decode2<dtype>(codes >> 16));
    uint32_t shifted =
        f8_encode4<dtype>(low.x * factor[0], low.y * factor[1], high.x * factor[2], high.y * factor[3]);
    return f8_keep_not_finite4<dtype>(codes, shifted);
}

/* 2^-d from two scales, limited so that 0 stays 0; what is not 0 is never shifted up by more than 31. */
__device__ static inline float f8_shift_ratio(float row_scale, float target_inverse)
{
    return fminf(row_scale * target_inverse, 0x1p100f);
}

/* High bit of each byte that holds a nonzero finite code. */
template <fp8flow_dtype dtype> __device__ static inline uint32_t f8_counted4(uint32_t codes)
{
    return ((codes & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) & 0x80808080u & ~f8_not_finite4<dtype>(codes);
}

__device__ static inline int f8_shift_bin(int d)
{
    return min(max(d, 0), F8_SHIFT_BINS - 1);
}

/* From rows to columns: 4 x 4 bytes at a time. */
__device__ static inline void f8_transpose_patch(f8_patch &p)
{
#pragma unroll
    for (int w = 0; w < 4; w++) {
        uint32_t a = p.code[0][w], b = p.code[1][w], c = p.code[2][w], d = p.code[3][w];
        uint32_t ab_low = __byte_perm(a, b, 0x5140), ab_high = __byte_perm(a, b, 0x7362);
        uint32_t cd_low = __byte_perm(c, d, 0x5140), cd_high = __byte_perm(c, d, 0x7362);
        p.code[0][w] = __byte_perm(ab_low, cd_low, 0x5410);
        p.code[1][w] = __byte_perm(ab_low, cd_low, 0x7632);
        p.code[2][w] = __byte_perm(ab_high, cd_high, 0x5410);
        p.code[3][w] = __byte_perm(ab_high, cd_high, 0x7632);
    }
}

/* ---- TILE128 ---- */

/* Largest scale byte among rows that are not all +-0. A thread looks at its part of the rows: the largest over all
 * parts is the same. */
__device__ static inline uint32_t f8_tile_target(const f8_patch &p, f8_shift_shared &shared)
{
    uint32_t target = 1;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        uint32_t any = (p.code[r][0] | p.code[r][1] | p.code[r][2] | p.code[r][3]) & 0x7F7F7F7Fu;
        if (any) target = max(target, p.scale[r]);
    }
    target = __reduce_max_sync(F8_ALL_LANES, target);
    if (f8_lane() == 0) shared.warp_target[0][threadIdx.x / F8_WARP] = target;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < F8_SHIFT_WARPS; w++) target = max(target, shared.warp_target[0][w]);
    return target;
}

template <fp8flow_dtype dtype>
__device__ static inline void f8_count_rows(const f8_patch &p, uint32_t target, uint32_t *histogram)
{
#pragma unroll
    for (int r = 0; r < 4; r++) {
        int count = 0;
#pragma unroll
        for (int w = 0; w < 4; w++) count += __popc(f8_counted4<dtype>(p.code[r][w]));
        if (count) atomicAdd(&histogram[f8_shift_bin((int)target - (int)p.scale[r])], (uint32_t)count);
    }
}

/* f8_shift of four E4M3 codes by one d, factor = f8_shift_factor(d), without a test for NaN: it becomes 0x7F on the
 * way, and all codes get their sign back. */
__device__ static inline uint32_t f8_shift4_e4m3(uint32_t codes, __half2 factor)
{
    __half2 low = __hmul2(f8_decode2<FP8FLOW_E4M3>(codes), factor);
    __half2 high = __hmul2(f8_decode2<FP8FLOW_E4M3>(codes >> 16), factor);
    uint32_t shifted = __nv_cvt_halfraw2_to_fp8x2(low, __NV_SATFINITE, __NV_E4M3) |
                       (uint32_t)__nv_cvt_halfraw2_to_fp8x2(high, __NV_SATFINITE, __NV_E4M3) << 16;
    return shifted | (codes & 0x80808080u);
}

/* Rows of a patch to the scale of the tile. d < 0 happens in rows of zeros only. */
template <fp8flow_dtype dtype> __device__ static inline void f8_shift_rows(f8_patch &p, uint32_t target)
{
#pragma unroll
    for (int r = 0; r < 4; r++) {
        if constexpr (dtype == FP8FLOW_E4M3) {
            /* d = 0 as well: the branch costs more than the work. */
            __half2 factor = f8_shift_factor((int)target - (int)p.scale[r]);
#pragma unroll
            for (int w = 0; w < 4; w++) p.code[r][w] = f8_shift4_e4m3(p.code[r][w], factor);
        } else if (target != p.scale[r]) {
            float ratio = f8_shift_ratio(f8_scale_decode((uint8_t)p.scale[r]), f8_scale_inverse((uint8_t)target));
            const float factor[4] = { ratio, ratio, ratio, ratio };
#pragma unroll
            for (int w = 0; w < 4; w++) p.code[r][w] = f8_rescale4<dtype>(p.code[r][w], factor);
        }
    }
}

/* ---- COL128 ---- */

/* What f8_column_target compares, for two codes of a column without sign, NaN and Inf: the scale byte that each
 * asks for plus a constant, in 16 bits; 0 for code 0. `scales`: the bytes of their rows. In FP16 the rule is the
 * exponent, and one more above 1.75. E5M2 has subnormals there: 2 * 2^-16 and 3 * 2^-16 lie in the binade below the
 * first normal one, which has exponent field 0, and 2^-16 one lower. */
template <fp8flow_dtype dtype> struct f8_wish {
    static const int bias = dtype == FP8FLOW_E5M2 ? 30 : 23;
};

template <fp8flow_dtype dtype> __device__ static inline uint32_t f8_wishes2(uint32_t codes, uint32_t scales)
{
    const __half2 zero = __half2half2(__ushort_as_half(0)), tiny = __half2half2(__ushort_as_half(0x0100));
    __half2 values = f8_decode2<dtype>(codes);
    uint32_t bits = (uint32_t)__half_as_ushort(__low2half(values)) |
                    (uint32_t)__half_as_ushort(__high2half(values)) << 16;
    uint32_t wishes = (((bits + 0x00FF00FFu) >> 10) & 0x003F003Fu) + scales;
    if (dtype == FP8FLOW_E5M2) wishes -= __heq2_mask(values, tiny) & 0x00010001u;
    return wishes & __hgt2_mask(values, zero);
}

/* The larger wish of each column of a transposed patch, columns 2 j and 2 j + 1 in word j, over the rows of a warp. */
template <fp8flow_dtype dtype> __device__ static inline void f8_warp_wishes(const f8_patch &p, uint32_t pairs[8])
{
    uint32_t scales01 = p.scale[0] | p.scale[1] << 16, scales23 = p.scale[2] | p.scale[3] << 16;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        uint32_t wish[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t codes = p.code[(2 * j + i) % 4][(2 * j + i) / 4];
            uint32_t finite = f8_keep_not_finite4<dtype>(codes, 0) ^ codes;
            finite &= 0x7F7F7F7Fu;
            wish[i] = __vmaxu2(f8_wishes2<dtype>(finite, scales01), f8_wishes2<dtype>(finite >> 16, scales23));
        }
        pairs[j] = __vmaxu2(__byte_perm(wish[0], wish[1], 0x5410), __byte_perm(wish[0], wish[1], 0x7632));
        pairs[j] = __vmaxu2(pairs[j], __shfl_xor_sync(F8_ALL_LANES, pairs[j], 8));
        pairs[j] = __vmaxu2(pairs[j], __shfl_xor_sync(F8_ALL_LANES, pairs[j], 16));
    }
}

/* Target of every column to place.scale, its inverse to shared.inverse. Patches are transposed. */
template <fp8flow_dtype dtype>
__device__ static inline void f8_column_targets(const f8_patch &p, const f8_column_place &place,
                                                f8_shift_shared &shared)
{
    uint32_t pairs[8];
    f8_warp_wishes<dtype>(p, pairs);
    int thread = (int)threadIdx.x;
    if (f8_lane() < 8) {
        uint4 *to = (uint4 *)&shared.warp_target[thread / F8_WARP][f8_lane() * 8];
        to[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        to[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
    }
    __syncthreads();
    if (thread < F8_BLOCK) {
        int wish = 0;
#pragma unroll
        for (int w = 0; w < F8_SHIFT_WARPS; w++)
            wish = max(wish, (int)((const uint16_t *)shared.warp_target[w])[thread]);
        uint8_t target = (uint8_t)min(max(wish - f8_wish<dtype>::bias, 1), 254);
        shared.inverse[thread] = f8_scale_inverse(target);
        if (thread < place.cols) place.scale[thread] = target;
    }
    __syncthreads();
}

/* Words of a transposed patch to the scales of their columns. */
template <fp8flow_dtype dtype> __device__ static inline void f8_shift_columns(f8_patch &p, const float *inverse)
{
    float row_scale[4];
#pragma unroll
    for (int r = 0; r < 4; r++) row_scale[r] = f8_scale_decode((uint8_t)p.scale[r]);
#pragma unroll
    for (int w = 0; w < 4; w++) {
        float4 columns = *(const float4 *)(inverse + f8_patch_col() + 4 * w);
        const float column[4] = { columns.x, columns.y, columns.z, columns.w };
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float factor[4];
#pragma unroll
            for (int r = 0; r < 4; r++) factor[r] = f8_shift_ratio(row_scale[r], column[j]);
            p.code[j][w] = f8_rescale4<dtype>(p.code[j][w], factor);
        }
    }
}

template <fp8flow_dtype dtype>
__device__ static inline void f8_count_columns(const f8_patch &p, f8_shift_shared &shared)
{
#pragma unroll
    for (int c = 0; c < 16; c++) {
        uint32_t counted = f8_counted4<dtype>(p.code[c % 4][c / 4]);
        int target = 254 - (int)(f8_bits(shared.inverse[f8_patch_col() + c]) >> 23);
#pragma unroll
        for (int r = 0; r < 4; r++)
            if (counted >> (8 * r + 7) & 1) atomicAdd(&shared.histogram[f8_shift_bin(target - (int)p.scale[r])], 1u);
    }
}

/* ---- Whole tiles ---- */

/* A transposed patch of every thread into the column form. Contains the one barrier. */
template <f8_access access>
__device__ static inline void f8_store_columns(const f8_patch &p, const f8_column_place &place,
                                               f8_shift_shared &shared)
{
    const unsigned lines = F8_SHIFT_THREADS / 8; /* columns that the block stores at a time */
    unsigned line = threadIdx.x / 8, group = threadIdx.x % 8;
    uint32_t *to = shared.columns + f8_patch_col() * F8_QUADS + (line ^ group * 4);
#pragma unroll
    for (int c = 0; c < 16; c++) to[c * F8_QUADS] = p.code[c % 4][c / 4];
    __syncthreads();
    int rows = place.rows - (int)group * 16, cols = place.cols - (int)line;
    uint8_t *column = place.data + line * place.stride + group * 16;
#pragma unroll
    for (unsigned i = 0; i < F8_BLOCK / lines; i++, column += lines * place.stride) {
        unsigned from = (i * lines + line) * F8_QUADS + (group ^ (i * lines / 16 + line / 16)) * 4;
        uint4 codes = *(const uint4 *)(shared.columns + from);
        if ((int)(i * lines) < cols) f8_write_codes<access>(column, codes, rows);
    }
}

/* The tile of the block's patches in column form, TILE128 or COL128. Between two tiles of a block: a barrier. */
template <fp8flow_dtype dtype, fp8flow_scaling scaling, f8_access access>
__device__ static inline void f8_shift_tile(f8_patch &p, const f8_column_place &place, uint64_t *histogram,
                                            f8_shift_shared &shared)
{
    int thread = (int)threadIdx.x;
    if (thread < F8_SHIFT_BINS) shared.histogram[thread] = 0;
    if constexpr (scaling == FP8FLOW_TILE128) {
        uint32_t target = f8_tile_target(p, shared);
        if (thread == 0) place.scale[0] = (uint8_t)target;
        if (histogram) f8_count_rows<dtype>(p, target, shared.histogram);
        f8_shift_rows<dtype>(p, target);
        f8_transpose_patch(p);
    } else {
        f8_transpose_patch(p);
        f8_column_targets<dtype>(p, place, shared);
        if (histogram) f8_count_columns<dtype>(p, shared);
        f8_shift_columns<dtype>(p, shared.inverse);
    }
    f8_store_columns<access>(p, place, shared);
    if (histogram && thread < F8_SHIFT_BINS && shared.histogram[thread])
        atomicAdd((unsigned long long *)histogram + thread, (unsigned long long)shared.histogram[thread]);
}

#endif
