/* plan_sort.cuh - the plan of a layer: up to 131072 pairs and 1024 experts in one read, for permute_plan.cu.
 *
 * One cluster of blocks; a thread keeps the experts of ITEMS pairs in registers. A warp has consecutive pairs, 32 at a
 * time, a lane of each.
 *   rank      how many pairs of its expert come before a pair in its warp; the warp's counters, the block's sums
 *   push      a block writes its sums into the memory of all blocks: reading them there would wait for them
 *   arrange   while the cluster's barrier is on its way: the place of each pair in the block's order of experts, and
 *             the pairs in that order to shared memory
 *   locate    offsets from all sums; what is to be added to a place to get a row
 *   write     row_of in the order of pairs, source in the order of rows: scattered stores would cost a clock each
 * Pairs without an expert count as those of expert num_experts, which has counters but no rows. The other kernel of
 * permute_plan.cu has no limits. Traffic: 4 bytes read and 8 written per pair.
 */
#ifndef F8_OPS_PLAN_SORT_CUH
#define F8_OPS_PLAN_SORT_CUH

#include "ops/launch.cuh"
#include "ops/warp.cuh"

enum {
    PLAN_THREADS = 1024,
    PLAN_WARPS = PLAN_THREADS / F8_WARP,
    PLAN_BATCH = 4, /* rounds of 32 pairs under way */
    SORT_EXPERTS = PLAN_THREADS
};

static_assert((int)PLAN_WARPS == (int)F8_WARP, "one warp adds up the sums of all");

struct plan_call {
    const int32_t *expert;
    int32_t *rows, *offset, *row_of, *source;
    int64_t num_pairs, align;
    int32_t num_experts, limit; /* limit: the capacity, rounded down to `align` */
    int32_t bits;               /* of the number num_experts */
    int32_t warps;              /* counting warps of a block */
    int64_t segment;            /* pairs of each of them, a multiple of 32 */
    int32_t *scratch;           /* for tables; NULL: they are in shared memory */
};

/* The experts of pairs first, first + 32, ... before `end`; num_experts where a pair has none here: ids that do not
 * exist count as none. */
template <int ITEMS>
__device__ static inline void plan_experts(const plan_call &call, int64_t first, int64_t end, int (&expert)[ITEMS])
{
    const int32_t *from = call.expert + first;
    int64_t left = end - first;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        expert[i] = call.num_experts;
        if (i * F8_WARP < left) expert[i] = (int)min((unsigned)from[i * F8_WARP], (unsigned)call.num_experts);
    }
}

/* same[i]: the lanes whose expert[i] is this lane's. A vote for each bit is faster than __match_any_sync, which takes
 * a step for each expert among the lanes. */
__device__ static inline void plan_same_lanes(const int *expert, int bits, unsigned (&same)[PLAN_BATCH])
{
#pragma unroll
    for (int i = 0; i < PLAN_BATCH; i++) same[i] = F8_ALL_LANES;
#pragma unroll 1
    for (int b = 0; b < bits; b++) {
#pragma unroll
        for (int i = 0; i < PLAN_BATCH; i++) {
            unsigned mine = expert[i] >> b & 1, set = __ballot_sync(F8_ALL_LANES, mine);
            same[i] &= set ^ (mine - 1);
        }
    }
}

/* What a block has in shared memory, E = num_experts. */
struct sort_memory {
    int32_t *gathered;            /* [CLUSTER][E] sums of all blocks, written by them */
    int32_t *sum;                 /* [E + 1] pairs of an expert in this block */
    int32_t *first;               /* [E] place of an expert's first pair in this block */
    uint32_t *shift;              /* [E] row - place */
    int32_t *unused, *end;        /* [E] an expert's first row of padding, the row behind its last */
    uint32_t *sorted;             /* [PLAN_THREADS * ITEMS] number of a pair in the block, its expert << 16 */
    uint16_t *counter;            /* [PLAN_WARPS][pitch] */
    int pitch;                    /* E + 1, rounded up to pairs of counters */
};

__host__ __device__ static inline int sort_pitch(int num_experts)
{
    return (num_experts + 2) / 2 * 2;
}

static inline int64_t sort_bytes(int64_t num_experts, int cluster, int items)
{
    return ((cluster + 5) * num_experts + 1 + PLAN_THREADS * items) * 4 +
           PLAN_WARPS * sort_pitch((int)num_experts) * 2;
}

template <int CLUSTER, int ITEMS> __device__ static inline sort_memory sort_memory_at(int32_t *words, int num_experts)
{
    sort_memory m;
    m.gathered = words;
    m.first = m.gathered + CLUSTER * num_experts;
    m.shift = (uint32_t *)m.first + num_experts;
    m.unused = (int32_t *)m.shift + num_experts;
    m.end = m.unused + num_experts;
    m.sum = m.end + num_experts;
    m.sorted = (uint32_t *)m.sum + num_experts + 1;
    m.counter = (uint16_t *)(m.sorted + PLAN_THREADS * ITEMS);
    m.pitch = sort_pitch(num_experts);
    return m;
}

/* A thread's pairs: first, first + 32, ... of the block. item: expert << 16 | place; the place is counted among the
 * expert's pairs in the warp, then among all pairs of the block, of which there are fewer than 2^16. */
template <int ITEMS> struct sort_pairs {
    int first;
    int item[ITEMS];
};

template <int ITEMS>
__device__ static inline void sort_load(const plan_call &call, int64_t block_first, sort_pairs<ITEMS> &pairs)
{
    pairs.first = (int)threadIdx.x / F8_WARP * F8_WARP * ITEMS + f8_lane();
    plan_experts(call, block_first + pairs.first, call.num_pairs, pairs.item);
}

__device__ static inline void sort_clear(const plan_call &call, const sort_memory &m)
{
    uint32_t *counters = (uint32_t *)m.counter;
    for (int i = threadIdx.x; i < PLAN_WARPS * m.pitch / 2; i += PLAN_THREADS) counters[i] = 0;
    for (int e = threadIdx.x; e <= call.num_experts; e += PLAN_THREADS) m.sum[e] = 0;
    __syncthreads();
}

template <int ITEMS>
__device__ static inline void sort_rank(const plan_call &call, const sort_memory &m, sort_pairs<ITEMS> &pairs)
{
    uint16_t *counter = m.counter + (int)threadIdx.x / F8_WARP * m.pitch;
    unsigned same[PLAN_BATCH];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (i % PLAN_BATCH == 0) plan_same_lanes(pairs.item + i, call.bits, same);
        unsigned before = same[i % PLAN_BATCH] & ((1u << f8_lane()) - 1);
        int expert = pairs.item[i], count = counter[expert];
        __syncwarp();
        if (before == 0) {
            counter[expert] = (uint16_t)(count + __popc(same[i % PLAN_BATCH]));
            atomicAdd(m.sum + expert, __popc(same[i % PLAN_BATCH]));
        }
        __syncwarp();
        pairs.item[i] = expert << 16 | (count + __popc(before));
    }
    __syncthreads();
}

/* One expert per thread. */
template <int CLUSTER> __device__ static inline void sort_push(const plan_call &call, const sort_memory &m)
{
    int e = (int)threadIdx.x;
    if (e >= call.num_experts) return;
    int32_t *mine = m.gathered + __clusterRelativeBlockRank() * call.num_experts + e, sum = m.sum[e];
#pragma unroll 4
    for (unsigned other = 0; other < CLUSTER; other++) *(int32_t *)__cluster_map_shared_rank(mine, other) = sum;
}

/* Sum over the threads before this one; *total: over all. Every call needs a `upto_warp` of its own. */
__device__ static inline int32_t sort_sum_before(int32_t x, int32_t (&upto_warp)[PLAN_WARPS], int32_t *total)
{
    int32_t upto = x, warp = (int32_t)threadIdx.x / F8_WARP;
#pragma unroll
    for (int distance = 1; distance < F8_WARP; distance *= 2) {
        int32_t other = __shfl_up_sync(F8_ALL_LANES, upto, distance);
        if (f8_lane() >= distance) upto += other;
    }
    if (f8_lane() == F8_WARP - 1) upto_warp[warp] = upto;
    __syncthreads();
    int32_t of_warp = upto_warp[f8_lane()];
    *total = __reduce_add_sync(F8_ALL_LANES, of_warp);
    return upto - x + __reduce_add_sync(F8_ALL_LANES, f8_lane() < warp ? of_warp : 0);
}

/* Turn the counters of all warps into the numbers of pairs in earlier warps, two experts at a time: no sum of a block
 * reaches 2^16. */
__device__ static inline void sort_add_counters(const sort_memory &m)
{
    enum { BATCH = 8 };
    uint32_t *word = (uint32_t *)m.counter + threadIdx.x, sum = 0;
    int words = m.pitch / 2;
    if ((int)threadIdx.x >= words) return;
#pragma unroll 1
    for (int first = 0; first < PLAN_WARPS; first += BATCH, word += BATCH * words) {
        uint32_t own[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) own[i] = word[i * words];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            word[i * words] = sum;
            sum += own[i];
        }
    }
}

/* Returns the number of sorted pairs. */
template <int ITEMS>
__device__ static inline int sort_arrange(const plan_call &call, const sort_memory &m, sort_pairs<ITEMS> &pairs)
{
    __shared__ int32_t upto_warp[PLAN_WARPS];
    const uint16_t *earlier = m.counter + (int)threadIdx.x / F8_WARP * m.pitch;
    int e = (int)threadIdx.x, num_sorted;
    sort_add_counters(m);
    int first = sort_sum_before(e < call.num_experts ? m.sum[e] : 0, upto_warp, &num_sorted);
    if (e < call.num_experts) m.first[e] = first;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int expert = pairs.item[i] >> 16;
        if (expert == call.num_experts) continue;
        pairs.item[i] += m.first[expert] + earlier[expert];
        m.sorted[pairs.item[i] & 0xFFFF] = (uint32_t)(pairs.first + i * F8_WARP) | (uint32_t)expert << 16;
    }
    return num_sorted;
}

/* One expert per thread. */
template <int CLUSTER> __device__ static inline void sort_locate(const plan_call &call, const sort_memory &m)
{
    __shared__ int32_t upto_warp[PLAN_WARPS];
    unsigned block = __clusterRelativeBlockRank();
    int e = (int)threadIdx.x;
    int32_t count = 0, earlier = 0, all;
    if (e < call.num_experts) {
#pragma unroll
        for (unsigned other = 0; other < CLUSTER; other++) {
            int32_t sum = m.gathered[other * call.num_experts + e];
            if (other < block) earlier += sum;
            count += sum;
        }
    }
    uint32_t align = (uint32_t)call.align;
    int32_t padded = (int32_t)(((uint32_t)count + align - 1) / align * align);
    int32_t begin = sort_sum_before(padded, upto_warp, &all);
    int32_t offset = min(begin, call.limit), end = min(begin + padded, call.limit), rows = min(count, end - offset);
    if (e < call.num_experts) {
        m.shift[e] = (uint32_t)(begin + earlier - m.first[e]);
        m.unused[e] = offset + rows;
        m.end[e] = end;
        if (block == 0) {
            call.offset[e] = offset;
            call.rows[e] = rows;
        }
    }
    if (block == 0 && e == 0) call.offset[call.num_experts] = min(all, call.limit);
    __syncthreads();
}

/* Rows from the limit on do not exist. */
template <int ITEMS>
__device__ static inline void sort_write(const plan_call &call, const sort_memory &m, const sort_pairs<ITEMS> &pairs,
                                         int64_t block_first, int num_sorted)
{
    uint32_t limit = (uint32_t)call.limit;
    int32_t *row_of = call.row_of + block_first + pairs.first;
    int64_t left = call.num_pairs - block_first - pairs.first;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int expert = pairs.item[i] >> 16, place = pairs.item[i] & 0xFFFF;
        uint32_t row = expert < call.num_experts ? m.shift[expert] + (uint32_t)place : limit;
        if (i * F8_WARP < left) row_of[i * F8_WARP] = row < limit ? (int32_t)row : -1;
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        int place = (int)threadIdx.x + i * PLAN_THREADS;
        if (place >= num_sorted) continue;
        uint32_t pair = m.sorted[place], row = m.shift[pair >> 16] + (uint32_t)place;
        if (row < limit) call.source[row] = (int32_t)(block_first + (pair & 0xFFFFu));
    }
}

/* A warp per expert; the blocks of the cluster take turns. */
template <int CLUSTER> __device__ static inline void sort_pad(const plan_call &call, const sort_memory &m)
{
    int first = (int)threadIdx.x / F8_WARP * CLUSTER + (int)__clusterRelativeBlockRank();
    for (int e = first; e < call.num_experts; e += PLAN_WARPS * CLUSTER)
        for (int64_t row = (int64_t)m.unused[e] + f8_lane(); row < m.end[e]; row += F8_WARP) call.source[row] = -1;
}

/* All blocks have started before their memory is written, and it is written before it is read; nobody writes to a
 * block that may have ended. */
template <int CLUSTER, int ITEMS>
__global__ __launch_bounds__(PLAN_THREADS) static void plan_sort_kernel(plan_call call)
{
    extern __shared__ int32_t shared[];
    sort_memory m = sort_memory_at<CLUSTER, ITEMS>(shared, call.num_experts);
    int64_t block_first = (int64_t)__clusterRelativeBlockRank() * PLAN_THREADS * ITEMS;
    sort_pairs<ITEMS> pairs;
    __cluster_barrier_arrive_relaxed();
    sort_load(call, block_first, pairs);
    sort_clear(call, m);
    sort_rank(call, m, pairs);
    __cluster_barrier_wait();
    sort_push<CLUSTER>(call, m);
    __cluster_barrier_arrive();
    int num_sorted = sort_arrange(call, m, pairs);
    __cluster_barrier_wait();
    sort_locate<CLUSTER>(call, m);
    sort_write(call, m, pairs, block_first, num_sorted);
    sort_pad<CLUSTER>(call, m);
}

#endif
