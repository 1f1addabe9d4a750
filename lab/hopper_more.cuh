/* hopper_more.cuh - further instructions of sm_90a, under trial in this folder: boxes of 3-D tensor maps, adding
 * stores, prefetch to L2, clusters of blocks. What the library ends up using moves to ops/hopper.cuh.
 */
#ifndef F8_LAB_HOPPER_MORE_CUH
#define F8_LAB_HOPPER_MORE_CUH

#include "ops/hopper.cuh"

/* For data that passes once: the first to leave L2. */
__device__ static inline uint64_t f8_policy_once()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* Box of a 3-D tensor map at (x, y, z) to shared memory; what lies outside the tensor comes as zeros. */
__device__ static inline void f8_copy_box(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y, int z,
                                          uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(f8_smem(to)),
                 "l"(map), "r"(f8_smem(barrier)), "r"(x), "r"(y), "r"(z), "l"(policy)
                 : "memory");
}

/* The way back; what lies outside the tensor is not written. */
__device__ static inline void f8_store_box(const CUtensorMap *map, const void *from, int x, int y, int z,
                                           uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%2, %3, %4}], [%1], %5;"
                 ::"l"(map),
                 "r"(f8_smem(from)), "r"(x), "r"(y), "r"(z), "l"(policy)
                 : "memory");
}

/* The same, adding to memory. */
__device__ static inline void f8_add_box(const CUtensorMap *map, const void *from, int x, int y, int z,
                                         uint64_t policy)
{
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group.L2::cache_hint "
                 "[%0, {%2, %3, %4}], [%1], %5;" ::"l"(map),
                 "r"(f8_smem(from)), "r"(x), "r"(y), "r"(z), "l"(policy)
                 : "memory");
}

__device__ static inline void f8_prefetch_box(const CUtensorMap *map, int x, int y, int z)
{
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(map), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

/* The operators of hopper.cuh on shared-memory addresses that the caller keeps in a register: from a pointer the
 * compiler computes them anew in every turn of a loop, with two reads of special registers. */
__device__ static inline uint32_t f8_kept(const void *pointer)
{
    uint32_t address = f8_smem(pointer);
    asm volatile("" : "+r"(address));
    return address;
}

/* Low word of the operand descriptor; the high word is F8_OPERAND_HIGH. A step of 32 bytes adds 2. */
static const uint64_t F8_OPERAND_HIGH = (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;

__device__ static inline uint32_t f8_operand_low(uint32_t address)
{
    return (address & 0x3FFFFu) >> 4 | 1u << 16;
}

/* All threads of all blocks of the cluster; the lanes of a warp together. */
__device__ static inline void f8_cluster_barrier()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

#endif
