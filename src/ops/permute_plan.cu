/* permute_plan.cu - CUDA side of permute_plan. Contract: fp8flow_ops.h. CPU side: permute_plan.c.
 *
 * A stable counting sort of the (token, slot) pairs by expert, in one launch of one cluster of blocks. Plans of the
 * size of a layer are made by plan_sort.cuh; here is the kernel for any size. Every counting warp has a consecutive
 * segment of the pairs and a table with one counter for each expert:
 *   1. a warp counts its segment into its table; a block adds up its tables and shows the sums to the cluster;
 *   2. every block forms the experts' offsets from all sums, and turns its tables into the rows at which its warps
 *      continue: first row of the expert, plus the counts of earlier blocks, plus those of earlier warps;
 *   3. a warp reads its segment again, 32 pairs at a time, and hands out rows; pairs of one expert among the 32 find
 *      their order with a warp vote.
 * Nothing depends on timing: counters are complete before they are read. The tables are in shared memory; the more
 * experts, the fewer counting warps. Tables of more than 28672 experts are in scratch memory.
 * Traffic: 4 bytes per pair twice (the second time from cache), 8 out.
 */
#include "ops/plan_sort.cuh"

enum {
    PLAN_CLUSTER = 8,
    PLAN_FEW_ITEMS = 4, /* pairs of a thread that plan_sort_kernel holds */
    PLAN_MANY_ITEMS = 16,
    PLAN_TABLES = 8,                /* tables that a thread reads before it writes them */
    PLAN_SHARED_BYTES = 224 * 1024, /* for tables and sums */
    PLAN_SCRATCH_WARPS = 1          /* counting warps of a block whose tables are in scratch memory */
};

/* Where the tables of a kernel are: shared memory has instructions of its own. */
enum plan_place { PLAN_SHARED, PLAN_SCRATCH };

/* A block's counters: one table [num_experts] for each counting warp, and their sums [num_experts]. */
struct plan_tables {
    int32_t *table, *sums;
};

template <plan_place PLACE>
__device__ static inline plan_tables plan_tables_of(const plan_call &call, int32_t *shared, unsigned block)
{
    int64_t tables = (int64_t)call.warps * call.num_experts;
    int32_t *base = PLACE == PLAN_SCRATCH ? call.scratch + block * (tables + call.num_experts) : shared;
    return { base, base + tables };
}

/* The segment of a counting warp. */
struct plan_segment {
    int64_t begin, end;
};

__device__ static inline plan_segment plan_segment_of(const plan_call &call, unsigned block)
{
    int64_t begin = ((int64_t)block * call.warps + threadIdx.x / F8_WARP) * call.segment;
    return { begin, min(begin + call.segment, call.num_pairs) };
}

__device__ static inline void count_segment(const plan_call &call, plan_segment segment, int32_t *table)
{
    for (int64_t e = f8_lane(); e < call.num_experts; e += F8_WARP) table[e] = 0;
    __syncwarp();
    for (int64_t first = segment.begin; first < segment.end; first += PLAN_BATCH * F8_WARP) {
        int expert[PLAN_BATCH];
        plan_experts(call, first + f8_lane(), segment.end, expert);
#pragma unroll
        for (int i = 0; i < PLAN_BATCH; i++)
            if (expert[i] < call.num_experts) atomicAdd(table + expert[i], 1);
    }
}

/* table[e]: the row that the warp's next pair of expert e gets. Rows from the limit on do not exist. */
__device__ static inline void place_segment(const plan_call &call, plan_segment segment, uint32_t *table)
{
    for (int64_t first = segment.begin; first < segment.end; first += PLAN_BATCH * F8_WARP) {
        int expert[PLAN_BATCH];
        unsigned same[PLAN_BATCH];
        plan_experts(call, first + f8_lane(), segment.end, expert);
        plan_same_lanes(expert, call.bits, same);
#pragma unroll
        for (int i = 0; i < PLAN_BATCH; i++) {
            int64_t pair = first + i * F8_WARP + f8_lane();
            unsigned before = same[i] & ((1u << f8_lane()) - 1);
            bool counts = expert[i] < call.num_experts;
            uint32_t next = counts ? table[expert[i]] : 0;
            __syncwarp();
            if (counts && before == 0) table[expert[i]] = next + __popc(same[i]);
            __syncwarp();
            uint32_t row = next + __popc(before);
            bool has_row = counts && row < (uint32_t)call.limit;
            if (pair < segment.end) call.row_of[pair] = has_row ? (int32_t)row : -1;
            if (has_row) call.source[row] = (int32_t)pair;
        }
    }
}

/* Sum over the lanes up to this one. */
__device__ static inline int64_t sum_upto(int64_t x)
{
#pragma unroll
    for (int distance = 1; distance < F8_WARP; distance *= 2) {
        int64_t other = __shfl_up_sync(F8_ALL_LANES, x, distance);
        if (f8_lane() >= distance) x += other;
    }
    return x;
}

/* Sum over the threads before this one; *total: over all. */
__device__ static inline int64_t sum_before(int64_t x, int64_t *total)
{
    __shared__ int64_t upto_warp[PLAN_WARPS];
    int warp = threadIdx.x / F8_WARP;
    int64_t upto = sum_upto(x);
    __syncthreads(); /* the last call's readers are done */
    if (f8_lane() == F8_WARP - 1) upto_warp[warp] = upto;
    __syncthreads();
    if (warp == 0) upto_warp[f8_lane()] = sum_upto(upto_warp[f8_lane()]);
    __syncthreads();
    *total = upto_warp[PLAN_WARPS - 1];
    return upto - x + (warp > 0 ? upto_warp[warp - 1] : 0);
}

/* Rows begin .. end - 1 of every lane become padding; the blocks of the cluster take turns. */
template <int CLUSTER>
__device__ static inline void write_padding(const plan_call &call, int begin, int end, unsigned block)
{
    for (int turn = (int)block; turn < F8_WARP; turn += CLUSTER) {
        int64_t stop = __shfl_sync(F8_ALL_LANES, end, turn);
        for (int64_t row = (int64_t)__shfl_sync(F8_ALL_LANES, begin, turn) + f8_lane(); row < stop; row += F8_WARP)
            call.source[row] = -1;
    }
}

/* Count of expert e in all blocks, *earlier: in the blocks before this one. */
template <int CLUSTER, plan_place PLACE>
__device__ static inline int32_t total_count(const plan_call &call, int32_t *shared, int64_t e, int32_t *earlier)
{
    int32_t count = 0;
    *earlier = 0;
#pragma unroll
    for (unsigned other = 0; other < CLUSTER; other++) {
        int32_t *theirs = (int32_t *)__cluster_map_shared_rank(shared, other);
        int32_t sum = plan_tables_of<PLACE>(call, theirs, other).sums[e];
        if (other < __clusterRelativeBlockRank()) *earlier += sum;
        count += sum;
    }
    return count;
}

/* Turn the counts of expert e in a block's tables into the rows at which its warps continue; `row`: the first's. */
__device__ static inline void place_warps(const plan_call &call, plan_tables mine, int64_t e, uint32_t row)
{
    for (int first = 0; first < call.warps; first += PLAN_TABLES) {
        int32_t own[PLAN_TABLES];
#pragma unroll
        for (int i = 0; i < PLAN_TABLES; i++)
            own[i] = first + i < call.warps ? mine.table[(int64_t)(first + i) * call.num_experts + e] : 0;
#pragma unroll
        for (int i = 0; i < PLAN_TABLES; i++) {
            if (first + i < call.warps) mine.table[(int64_t)(first + i) * call.num_experts + e] = (int32_t)row;
            row += (uint32_t)own[i];
        }
    }
}

/* Step 2 for PLAN_THREADS experts from `first` on, one per thread; *next_row: the first row behind the experts so far,
 * were there no limit. */
template <int CLUSTER, plan_place PLACE>
__device__ static inline void place_experts(const plan_call &call, int32_t *shared, int64_t first, int64_t *next_row)
{
    unsigned block = __clusterRelativeBlockRank();
    int64_t e = first + threadIdx.x;
    int32_t earlier = 0, count = e < call.num_experts ? total_count<CLUSTER, PLACE>(call, shared, e, &earlier) : 0;
    int64_t padded = f8_ceil_div(count, call.align) * call.align, all;
    int64_t begin = *next_row + sum_before(padded, &all);
    *next_row += all;
    int32_t offset = (int32_t)min(begin, (int64_t)call.limit), end = (int32_t)min(begin + padded, (int64_t)call.limit);
    int32_t rows = min(count, end - offset);
    write_padding<CLUSTER>(call, offset + rows, end, block);
    if (e >= call.num_experts) return;
    if (block == 0) {
        call.offset[e] = offset;
        call.rows[e] = rows;
    }
    /* Unsigned: the sum of an offset and a count may pass 2^31. */
    place_warps(call, plan_tables_of<PLACE>(call, shared, block), e, (uint32_t)offset + (uint32_t)earlier);
}

template <int CLUSTER, plan_place PLACE>
__global__ __launch_bounds__(PLAN_THREADS) static void permute_plan_kernel(plan_call call)
{
    extern __shared__ int32_t shared[];
    unsigned block = __clusterRelativeBlockRank();
    plan_tables mine = plan_tables_of<PLACE>(call, shared, block);
    plan_segment segment = plan_segment_of(call, block);
    int warp = threadIdx.x / F8_WARP;
    int32_t *table = mine.table + (int64_t)warp * call.num_experts;

    if (warp < call.warps) count_segment(call, segment, table);
    __syncthreads();
    for (int64_t e = threadIdx.x; e < call.num_experts; e += PLAN_THREADS) {
        int32_t sum = 0;
        for (int w = 0; w < call.warps; w++) sum += mine.table[(int64_t)w * call.num_experts + e];
        mine.sums[e] = sum;
    }
    __cluster_barrier_arrive();
    __cluster_barrier_wait();

    int64_t next_row = 0;
    for (int64_t first = 0; first < call.num_experts; first += PLAN_THREADS)
        place_experts<CLUSTER, PLACE>(call, shared, first, &next_row);
    if (block == 0 && threadIdx.x == 0)
        call.offset[call.num_experts] = (int32_t)min(next_row, (int64_t)call.limit);
    /* No block may end while another reads its sums. */
    __cluster_barrier_arrive();
    __syncthreads();
    if (warp < call.warps) place_segment(call, segment, (uint32_t *)table);
    __cluster_barrier_wait();
}

static plan_call plan_call_of(const fp8flow_permute_plan_args *a)
{
    const fp8flow_plan *plan = a->plan;
    int64_t limit = plan->capacity / plan->align * plan->align;
    plan_call call = {};
    call.expert = a->expert;
    call.rows = plan->rows;
    call.offset = plan->offset;
    call.row_of = plan->row_of;
    call.source = plan->source;
    call.num_pairs = plan->num_tokens * plan->top_k;
    call.align = plan->align;
    call.num_experts = (int32_t)plan->num_experts;
    call.limit = (int32_t)limit;
    while (call.num_experts >> call.bits) call.bits++;
    return call;
}

typedef void plan_kernel(plan_call call);

/* One cluster. */
static void plan_launch_cluster(cudaStream_t stream, plan_kernel *kernel, int cluster, int64_t shared_bytes,
                                const plan_call &call)
{
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)cluster);
    config.blockDim = dim3(PLAN_THREADS);
    config.dynamicSmemBytes = (size_t)shared_bytes;
    config.stream = stream;
    f8_use_clusters(&config, &attribute, cluster);
    f8_allow_shared(kernel, (int)shared_bytes);
    cudaLaunchKernelEx(&config, kernel, call);
}

/* Tables in shared memory for as many counting warps as possible, else in `scratch`. Returns the bytes of shared
 * memory that a block needs. */
static int64_t plan_divide(plan_call *call, int cluster, int32_t *scratch)
{
    int64_t table_bytes = call->num_experts * (int64_t)sizeof(int32_t);
    int64_t fitting = table_bytes ? PLAN_SHARED_BYTES / table_bytes - 1 : PLAN_WARPS;
    call->scratch = fitting < 1 ? scratch : NULL;
    call->warps = fitting < 1 ? PLAN_SCRATCH_WARPS : (int32_t)(fitting < PLAN_WARPS ? fitting : PLAN_WARPS);
    call->segment = f8_ceil_div(f8_ceil_div(call->num_pairs, (int64_t)cluster * call->warps), F8_WARP) * F8_WARP;
    return call->scratch ? 0 : (call->warps + 1) * table_bytes;
}

/* The kernel for plans of any size. */
template <int CLUSTER> static void plan_launch_any(cudaStream_t stream, plan_call call, int32_t *scratch)
{
    int64_t shared_bytes = plan_divide(&call, CLUSTER, scratch);
    auto *kernel = permute_plan_kernel<CLUSTER, PLAN_SHARED>;
    if (call.scratch) kernel = permute_plan_kernel<CLUSTER, PLAN_SCRATCH>;
    plan_launch_cluster(stream, kernel, CLUSTER, shared_bytes, call);
}

/* Whether plan_sort_kernel can make the plan; its rows are 32-bit numbers even before they are limited. */
static bool plan_fits_sort(const plan_call &call, int cluster, int items)
{
    return call.num_pairs <= (int64_t)cluster * items * PLAN_THREADS && call.num_experts <= SORT_EXPERTS &&
           (int64_t)call.num_experts * call.align + call.num_pairs <= INT32_MAX;
}

template <int CLUSTER, int ITEMS> static void plan_launch_sort(cudaStream_t stream, const plan_call &call)
{
    plan_launch_cluster(stream, plan_sort_kernel<CLUSTER, ITEMS>, CLUSTER,
                        sort_bytes(call.num_experts, CLUSTER, ITEMS), call);
}

template <int CLUSTER> static void plan_launch(cudaStream_t stream, const plan_call &call, int32_t *scratch)
{
    if (plan_fits_sort(call, CLUSTER, PLAN_FEW_ITEMS)) plan_launch_sort<CLUSTER, PLAN_FEW_ITEMS>(stream, call);
    else if (plan_fits_sort(call, CLUSTER, PLAN_MANY_ITEMS)) plan_launch_sort<CLUSTER, PLAN_MANY_ITEMS>(stream, call);
    else plan_launch_any<CLUSTER>(stream, call, scratch);
}

extern "C" fp8flow_status f8_cuda_permute_plan(fp8flow_context *c, const fp8flow_permute_plan_args *a)
{
    /* Scratch memory has room for the largest number of experts that the entry lets through. */
    static_assert((int64_t)PLAN_CLUSTER * (PLAN_SCRATCH_WARPS + 1) * (F8_SCRATCH_BYTES / 8) * sizeof(int32_t) <=
                      F8_CUDA_SCRATCH_BYTES,
                  "one table and one array of sums for each block");
    plan_launch<PLAN_CLUSTER>(f8_stream(c), plan_call_of(a), (int32_t *)f8_cuda_scratch(c));
    return f8_launched("permute_plan");
}
