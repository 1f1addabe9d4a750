/* hopper.cuh - the instructions of sm_90a that have no intrinsic: barriers that count bytes, bulk and tensor copies,
 * warpgroup matrix products. One function, one instruction; everything here is inline assembly and nothing else is.
 *
 * Shared memory is addressed by 32-bit numbers (f8_smem). A barrier has a phase bit that flips when all arrivals and
 * all announced bytes have come; a waiter names the phase it waits for.
 */
#ifndef F8_OPS_HOPPER_CUH
#define F8_OPS_HOPPER_CUH

#include <stdint.h>

#include <cuda.h>

__device__ static inline uint32_t f8_smem(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* ---- Barriers ---- */

__device__ static inline void f8_barrier_init(uint64_t *barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(f8_smem(barrier)), "r"(arrivals));
}

/* Make initialised barriers visible to the copy engine. */
__device__ static inline void f8_barrier_fence()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* By address, for kernels that keep addresses in registers. */
__device__ static inline void f8_barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ static inline void f8_barrier_arrive(uint64_t *barrier)
{
    f8_barrier_arrive(f8_smem(barrier));
}

__device__ static inline void f8_barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ static inline void f8_barrier_expect(uint64_t *barrier, uint32_t bytes)
{
    f8_barrier_expect(f8_smem(barrier), bytes);
}

__device__ static inline void f8_barrier_wait(uint32_t barrier, uint32_t phase)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra end;\n"
                 "bra again;\n"
                 "end:\n"
                 "}" ::"r"(barrier),
                 "r"(phase)
                 : "memory");
}

/* Has the phase come? Waits a little. */
__device__ static inline bool f8_barrier_try(uint32_t barrier, uint32_t phase)
{
    uint32_t done;
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                 "selp.b32 %0, 1, 0, done;\n"
                 "}"
                 : "=r"(done)
                 : "r"(barrier), "r"(phase)
                 : "memory");
    return done;
}

__device__ static inline void f8_barrier_wait(uint64_t *barrier, uint32_t phase)
{
    f8_barrier_wait(f8_smem(barrier), phase);
}

/* Arrive at the barrier that lies at the same place in block `rank` of the cluster. Orders nothing but this block's
 * reads before it: with .release.cluster the compiler would put a memory fence of the whole GPU in front. */
__device__ static inline void f8_barrier_arrive_at(uint32_t barrier, uint32_t rank)
{
    asm volatile("{\n"
                 ".reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
                 "}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

__device__ static inline void f8_barrier_arrive_at(uint64_t *barrier, uint32_t rank)
{
    f8_barrier_arrive_at(f8_smem(barrier), rank);
}

/* Wait of one named barrier for `threads` threads of the block: whole warps, which come back together first. */
__device__ static inline void f8_named_barrier(int name, int threads)
{
    __syncwarp();
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

__device__ static inline uint32_t f8_cluster_rank()
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of all blocks of the cluster; the lanes of a warp together. */
__device__ static inline void f8_cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* ---- Copies ---- */

/* `bytes` bytes, a multiple of 16 as both addresses, to shared memory; they arrive at the barrier. */
__device__ static inline void f8_copy_bytes(void *to, const void *from, uint64_t *barrier, uint32_t bytes)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     f8_smem(to)),
                 "l"(from), "r"(bytes), "r"(f8_smem(barrier))
                 : "memory");
}

/* Box of a 2-D tensor map at (column x, row y) to shared memory; the bytes arrive at the barrier. */
__device__ static inline void f8_copy_tile(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(f8_smem(to)),
                 "l"(map), "r"(f8_smem(barrier)), "r"(x), "r"(y)
                 : "memory");
}

/* Box of a 5-D tensor map at (x, 0, 0, 0, y): lines in another order than in memory. */
__device__ static inline void f8_copy_tile_5d(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %5, %5, %5, %4}], [%2];" ::"r"(f8_smem(to)),
                 "l"(map), "r"(f8_smem(barrier)), "r"(x), "r"(y), "r"(0)
                 : "memory");
}

/* Box of shared memory to a 2-D tensor map at (x, y); what lies outside the tensor is not written. */
__device__ static inline void f8_store_tile(const CUtensorMap *map, uint32_t from, int x, int y)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(from),
                 "r"(x), "r"(y)
                 : "memory");
}

/* Box of shared memory to a 3-D tensor map at (x, y, z); what lies outside the tensor is not written. */
__device__ static inline void f8_store_box(const CUtensorMap *map, uint32_t from, int x, int y, int z)
{
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(from), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

/* The same from a pointer. */
__device__ static inline void f8_store_box(const CUtensorMap *map, const void *from, int x, int y, int z)
{
    f8_store_box(map, f8_smem(from), x, y, z);
}

/* The address form, adding to memory. */
__device__ static inline void f8_add_box(const CUtensorMap *map, uint32_t from, int x, int y, int z)
{
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group "
                 "[%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(from), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

__device__ static inline void f8_store_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Until the shared memory of all but `pending` committed groups may be written again. */
template <int pending> __device__ static inline void f8_store_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

/* Ordinary writes to shared memory become visible to the copy engine and the tensor cores. */
__device__ static inline void f8_async_fence()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ static inline void f8_prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* For data that passes once: the first to leave L2. */
__device__ static inline uint64_t f8_policy_once()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* Box of a 4-D tensor map at (x, y, z, w) to shared memory; what lies outside the tensor comes as zeros. */
__device__ static inline void f8_copy_box_4d(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y, int z,
                                             int w)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(f8_smem(to)),
                 "l"(map), "r"(f8_smem(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
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

/* The same of a 4-D map, and to an address; then from an address to the map. */
__device__ static inline void f8_copy_box(uint32_t to, const CUtensorMap *map, uint32_t barrier, int x, int y, int z,
                                          int w, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w), "l"(policy)
                 : "memory");
}

__device__ static inline void f8_store_box(const CUtensorMap *map, uint32_t from, int x, int y, int z, int w,
                                           uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group.L2::cache_hint "
                 "[%0, {%2, %3, %4, %5}], [%1], %6;" ::"l"(map),
                 "r"(from), "r"(x), "r"(y), "r"(z), "r"(w), "l"(policy)
                 : "memory");
}

/* That of a 3-D map without a policy. */
__device__ static inline void f8_copy_box(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y, int z)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(f8_smem(to)),
                 "l"(map), "r"(f8_smem(barrier)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

/* The same to the same place in every block of the cluster that has its bit in `blocks`. */
__device__ static inline void f8_share_box(void *to, const CUtensorMap *map, uint64_t *barrier, int x, int y, int z,
                                           uint16_t blocks)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(f8_smem(to)),
                 "l"(map), "r"(f8_smem(barrier)), "r"(x), "r"(y), "r"(z), "h"(blocks)
                 : "memory");
}

/* From a pointer to a 3-D map; what lies outside the tensor is not written. */
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

/* Box of a 3-D tensor map to L2. */
__device__ static inline void f8_prefetch_box(const CUtensorMap *map, int x, int y, int z)
{
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(map), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

/* The line of 128 bytes around an address to L2. */
__device__ static inline void f8_prefetch(const void *address)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

/* ---- Warpgroup products ---- */

/* A shared-memory address that the caller keeps in a register: from a pointer the
 * compiler computes them anew in every turn of a loop, with two reads of special registers. */
__device__ static inline uint32_t f8_kept(const void *pointer)
{
    uint32_t address = f8_smem(pointer);
    asm volatile("" : "+r"(address));
    return address;
}

/* Low word of the descriptor of a K-major operand in shared memory: lines of 128 bytes, 128-byte swizzle, 8 lines per
 * 1024 bytes. The high word is F8_OPERAND_HIGH. A step of 32 bytes adds 2. */
static const uint64_t F8_OPERAND_HIGH = (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;

__device__ static inline uint32_t f8_operand_low(uint32_t address)
{
    return (address & 0x3FFFFu) >> 4 | 1u << 16;
}

__device__ static inline void f8_products_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ static inline void f8_products_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int pending> __device__ static inline void f8_products_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/* The compiler may not move accesses to an accumulator across this point. */
__device__ static inline void f8_pin(float &x)
{
    asm volatile("" : "+f"(x));
}

/* The compiler may not move loads and stores across this point: many early loads need many registers. */
__device__ static inline void f8_keep_order()
{
    asm volatile("" ::: "memory");
}

/* x = 0 in its own register and at this place: a plain assignment in a branch becomes a choice between two copies. */
__device__ static inline void f8_set_zero(float &x)
{
    asm volatile("mov.b32 %0, 0;" : "=f"(x));
}

template <int registers> __device__ static inline void f8_registers_more()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers> __device__ static inline void f8_registers_less()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

__device__ static inline void f8_store_shared(uint32_t address, float x, float y)
{
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x), "f"(y) : "memory");
}

__device__ static inline void f8_store_shared(uint32_t address, uint4 x)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}

__device__ static inline uint4 f8_load_shared(uint32_t address)
{
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
}

__device__ static inline float2 f8_load_shared_pair(uint32_t address)
{
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(address) : "memory");
    return x;
}

/* Low word of the descriptor of an MN-major operand of BF16: boxes of lines of 64 numbers along M or N, 128 bytes,
 * one line per step of the contraction, 128-byte swizzle; `box` bytes from one box of 64 along M or N to the next.
 * The high word is F8_OPERAND_HIGH: 1024 bytes to the next 8 lines. */
__device__ static inline uint32_t f8_operand_low_outer(uint32_t address, uint32_t box)
{
    return (address & 0x3FFFFu) >> 4 | box >> 4 << 16;
}

/* Four matrices of 8 lines of 16 bytes to shared memory: lane l gives the address of line l % 8 of matrix l / 8. */
__device__ static inline void f8_store_matrices(uint32_t address, uint32_t x0, uint32_t x1, uint32_t x2, uint32_t x3)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x0), "r"(x1),
                 "r"(x2), "r"(x3)
                 : "memory");
}

/* The way back: register i holds matrix i. */
__device__ static inline void f8_load_matrices(uint32_t (&x)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

#endif
