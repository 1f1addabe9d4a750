/* ring.cuh - rings of stages in shared memory: one thread fills them through the copy engine, warps read them and give
 * them back. A stage has two barriers: full, which the bytes complete, and empty, at which every reading warp arrives.
 */
#ifndef F8_OPS_RING_CUH
#define F8_OPS_RING_CUH

#include "ops/hopper.cuh"
#include "ops/warp.cuh"

/* Position in a ring of `size` and the phase of its barriers. */
template <int size> struct f8_position {
    int at;
    uint32_t phase;

    __device__ void advance()
    {
        if (++at == size) at = 0, phase ^= 1;
    }
};

/* One thread, before f8_barrier_fence. `fills`, `releases`: arrivals that fill a stage, and that give it back. */
template <int stages>
__device__ static inline void f8_ring_init(uint64_t (&full)[stages], uint64_t (&empty)[stages], int fills,
                                           int releases)
{
    for (int i = 0; i < stages; i++) {
        f8_barrier_init(&full[i], fills);
        f8_barrier_init(&empty[i], releases);
    }
}

/* Each warp that has read something in shared memory says so; in a cluster of `blocks` to all of them, where all write
 * into it. */
template <int blocks = 1> __device__ static inline void f8_release(uint32_t barrier)
{
    __syncwarp();
    if (blocks == 1) {
        if (f8_lane() == 0) f8_barrier_arrive(barrier);
    } else {
        if (f8_lane() < blocks) f8_barrier_arrive_at(barrier, f8_lane());
    }
}

#endif
