/* attention.cuh - what the tensor core kernels of attention and its gradients share: tiles of tokens in shared memory,
 * products of tiles, the order of the work, sums to memory.
 *
 * A tile is a number of tokens of one head: 64 numbers of each token side by side, 128 bytes with 128-byte swizzle, and
 * behind all tokens the next 64 numbers. The same tile is an operand whose contraction runs over numbers (scores) or
 * over tokens (sums). head_dim is rounded up to 64 or 128; what is behind comes as zeros, as do tokens behind a
 * sequence.
 */
#ifndef F8_OPS_ATTENTION_CUH
#define F8_OPS_ATTENTION_CUH

#include "ops/attention_cuda.h"
#include "ops/hopper_products.cuh"
#include "ops/launch.cuh"
#include "ops/ring.cuh"
#include "ops/tensor_map.cuh"
#include "ops/turn.cuh"
#include "ops/warp.cuh"

enum { F8_TILE_LINE = 128, F8_TILE_PART = 64 }; /* bytes of a line, numbers in it */

/* Bytes that the keys and values of the heads in work at one time may have: what L2 holds beside the rest. */
enum { F8_ATTENTION_L2_BYTES = 32 << 20 };

/* 2^x to 2 units of 2^-23; subnormal results are 0. */
__device__ static inline float f8_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static const float F8_LOG2_E = 1.44269504f, F8_LN_2 = 0.69314718f;

/* ---- Tiles ---- */

template <int head_dim, int tokens> struct f8_attention_tile {
    static const int part_bytes = tokens * F8_TILE_LINE, bytes = part_bytes * (head_dim / F8_TILE_PART);
};

/* Tokens from `token` on of a sequence's head; `bytes` of the tile arrive at the barrier. */
template <int head_dim, int tokens>
__device__ static inline void f8_copy_tokens(uint8_t *to, const CUtensorMap *map, uint64_t *barrier, int head,
                                             int token, int sequence)
{
#pragma unroll
    for (int part = 0; part < head_dim / F8_TILE_PART; part++)
        f8_copy_box_4d(to + part * f8_attention_tile<head_dim, tokens>::part_bytes, map, barrier, part * F8_TILE_PART,
                       head, token, sequence);
}

/* scores[64 x tokens] = a b^T: 64 tokens of a tile of `a_tokens`, all of a tile of `tokens`. a, b: f8_operand_low. */
template <int head_dim, int a_tokens, int tokens>
__device__ static inline void f8_multiply_heads(float (&scores)[tokens / 2], uint32_t a, uint32_t b)
{
    const int a_part = a_tokens * F8_TILE_LINE / 16, b_part = tokens * F8_TILE_LINE / 16;
    f8_product_bf16_rows<0>(scores, F8_OPERAND_HIGH | a, F8_OPERAND_HIGH | b);
#pragma unroll
    for (int i = 1; i < head_dim / 16; i++)
        f8_product_bf16_rows<1>(scores, F8_OPERAND_HIGH | (a + i / 4 * a_part + i % 4 * 2),
                                F8_OPERAND_HIGH | (b + i / 4 * b_part + i % 4 * 2));
}

template <int i, int count, int sums>
__device__ static inline void f8_multiply_tokens_from(float (&sum)[sums], const uint32_t (&weights)[count], uint32_t b)
{
    f8_product_bf16_pairs<i>(sum, weights, F8_OPERAND_HIGH | (b + i / 4 * (16 * F8_TILE_LINE / 16)));
    if constexpr (i + 4 < count) f8_multiply_tokens_from<i + 4>(sum, weights, b);
}

/* sum[64 x head_dim] += weights[64 x tokens] b. b: f8_operand_low_outer. */
template <int count, int sums>
__device__ static inline void f8_multiply_tokens(float (&sum)[sums], const uint32_t (&weights)[count], uint32_t b)
{
    f8_multiply_tokens_from<0>(sum, weights, b);
}

/* Accumulators as an operand. */
template <int count>
__device__ static inline void f8_pack_weights(uint32_t (&weights)[count], const float (&x)[2 * count])
{
#pragma unroll
    for (int i = 0; i < count; i++) weights[i] = f8_bf16_pair_fast(x[2 * i], x[2 * i + 1]);
}

template <int count> __device__ static inline void f8_pin_all(float (&x)[count])
{
#pragma unroll
    for (int i = 0; i < count; i++) f8_pin(x[i]);
}

/* ---- Work ---- */

/* `blocks` blocks of each of `pairs` pairs of sequence and head, the longest first; `section` pairs at a time. */
struct f8_attention_items {
    int blocks, pairs, section;
};

/* The items of this block of threads: back and forth over the list, so that long and short ones add up. */
struct f8_attention_walk {
    const f8_attention_items &items;
    int round;

    __device__ f8_attention_walk(const f8_attention_items &list) : items(list), round(0) {}

    /* `place` among the blocks of the pair: 0 is the longest. */
    __device__ bool next(int *place, int *pair)
    {
        int at = round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        if (at >= items.blocks * items.pairs) return false;
        int section = at / (items.blocks * items.section), first = section * items.section;
        int rest = at - section * items.blocks * items.section, width = min(items.section, items.pairs - first);
        *place = rest / width;
        *pair = first + rest % width;
        round++;
        return true;
    }
};

/* `pair_bytes`: what the blocks of a pair read, times its share in it. */
static inline f8_attention_items f8_attention_list(int64_t blocks, int64_t pairs, int64_t pair_bytes)
{
    int64_t section = F8_ATTENTION_L2_BYTES / (pair_bytes + 1);
    section = section < 1 ? 1 : section > pairs ? pairs : section;
    return { (int)blocks, (int)pairs, (int)section };
}

/* ---- Sums to memory ---- */

/* Vectors of one head of one sequence. */
struct f8_head_lines {
    uint16_t *data;
    int64_t stride;
    int tokens, head_dim;
};

__device__ static inline f8_head_lines f8_head_of(const fp8flow_tensor &t, int sequence, int head, int tokens,
                                                  int head_dim)
{
    return { (uint16_t *)t.data + (int64_t)sequence * tokens * t.stride + (int64_t)head * head_dim, t.stride, tokens,
             head_dim };
}

/* 16 tokens from `token` on, a warp's part of 64 x head_dim accumulators; `turn`: of the warp, 1024-byte aligned. */
template <int count>
__device__ static inline void f8_write_tokens(const f8_head_lines &to, int token, uint8_t *turn,
                                              const float (&sum)[count])
{
    int lane = f8_lane(), line = token + lane / 8;
#pragma unroll
    for (int part = 0; part < count / 32; part++) {
        int column = part * F8_TILE_PART + lane % 8 * 8;
        f8_turn_lines<FP8FLOW_OVERWRITE>(turn, sum, part);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = 4 * i + lane / 8;
            uint4 x = *f8_turn_piece(turn, at, lane % 8);
            if (line + 4 * i < to.tokens && column < to.head_dim)
                *(uint4 *)(to.data + (line + 4 * i) * to.stride + column) = x;
        }
    }
}

/* ---- Host ---- */

/* Vectors that the tensor core kernels take: whole pieces of 16 bytes. */
static inline bool f8_attention_fits(const fp8flow_tensor *t, int64_t head_dim)
{
    return head_dim % 32 == 0 && head_dim <= 128 && f8_aligned16(t->data, t->stride * 2);
}

/* Tiles of `tokens` tokens. */
static inline fp8flow_status f8_attention_map(const char *op, CUtensorMap *map, const fp8flow_tensor *t, int64_t batch,
                                              int64_t head_dim, int tokens)
{
    f8_box_shape shape = {};
    shape.rank = 4;
    shape.size[0] = (cuuint64_t)head_dim;
    shape.size[1] = (cuuint64_t)(t->cols / head_dim);
    shape.size[2] = (cuuint64_t)(t->rows / batch);
    shape.size[3] = (cuuint64_t)batch;
    shape.stride[0] = (cuuint64_t)head_dim * 2;
    shape.stride[1] = (cuuint64_t)t->stride * 2;
    shape.stride[2] = shape.stride[1] * shape.size[2];
    shape.box[0] = F8_TILE_PART, shape.box[1] = 1, shape.box[2] = (cuuint32_t)tokens, shape.box[3] = 1;
    shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    shape.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    shape.l2 = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    return f8_tensor_map(op, map, t->data, shape);
}

#endif
