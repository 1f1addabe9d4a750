/* turn.cuh - a warp turns its accumulators of a warpgroup product into pieces of 16 bytes of lines, through shared
 * memory of its own: 64 columns of 16 lines of BF16 at a time, 128 bytes a line, swizzled so that no banks conflict.
 */
#ifndef F8_OPS_TURN_CUH
#define F8_OPS_TURN_CUH

#include "fp8flow_ops.h"
#include "ops/hopper.cuh"
#include "ops/warp.cuh"

enum { F8_TURN_LINE = 128, F8_TURN_BYTES = 16 * F8_TURN_LINE }; /* bytes of a line; shared memory of a warp */

/* Columns 8 piece .. 8 piece + 7 of the 64. */
__device__ static inline uint4 *f8_turn_piece(uint8_t *turn, int line, int piece)
{
    return (uint4 *)(turn + line * F8_TURN_LINE + (piece ^ line % 8) * 16);
}

/* Columns 64 part .. 64 part + 63 of the warp's 16 lines to `turn`, 128-byte aligned. FP8FLOW_ACCUMULATE: added to what
 * lanes have put there as pieces, with one rounding. All lanes may read it then, until the next call. */
template <fp8flow_write write, int count>
__device__ static inline void f8_turn_lines(uint8_t *turn, const float (&sum)[count], int part)
{
    const bool adds = write == FP8FLOW_ACCUMULATE;
    int lane = f8_lane();
    uint32_t matrices = f8_smem(turn) + lane % 16 * F8_TURN_LINE;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t pair[4] = {}, to = matrices + ((2 * i + lane / 16) ^ lane % 8) * 16;
        if (adds) f8_load_matrices(pair, to);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int at = 32 * part + 8 * i + 2 * j;
            float low = sum[at], high = sum[at + 1];
            if (adds) low = f8_bf16_low(pair[j]) + low, high = f8_bf16_high(pair[j]) + high;
            pair[j] = f8_bf16_pair_fast(low, high);
        }
        f8_store_matrices(to, pair[0], pair[1], pair[2], pair[3]);
    }
    __syncwarp();
}

#endif
