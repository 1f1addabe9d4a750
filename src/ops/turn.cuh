/* turn.cuh - a warp turns its accumulators of a warpgroup product into pieces of 16 bytes of lines, through shared
 * memory of its own: 64 columns of 16 lines of BF16 at a time, 128 bytes a line, swizzled so that no banks conflict.
 */
#ifndef F8_OPS_TURN_CUH
#define F8_OPS_TURN_CUH

#include "ops/hopper.cuh"
#include "ops/warp.cuh"

enum { F8_TURN_LINE = 128, F8_TURN_BYTES = 16 * F8_TURN_LINE }; /* bytes of a line; shared memory of a warp */

/* Columns 64 part .. 64 part + 63 of the warp's 16 lines to `turn`, 128-byte aligned. All lanes may read it then, until
 * the next call. */
template <int count>
__device__ static inline void f8_turn_lines(uint8_t *turn, const float (&sum)[count], int part)
{
    int lane = f8_lane();
    uint32_t to = f8_smem(turn) + lane % 16 * F8_TURN_LINE;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t pair[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int at = 32 * part + 8 * i + 2 * j;
            pair[j] = f8_bf16_pair_fast(sum[at], sum[at + 1]);
        }
        f8_store_matrices(to + ((2 * i + lane / 16) ^ lane % 8) * 16, pair[0], pair[1], pair[2], pair[3]);
    }
    __syncwarp();
}

/* Columns 8 piece .. 8 piece + 7 of the 64. */
__device__ static inline uint4 f8_turned_piece(const uint8_t *turn, int line, int piece)
{
    return *(const uint4 *)(turn + line * F8_TURN_LINE + (piece ^ line % 8) * 16);
}

#endif
