/* permute_plan.cu - lab of permute_plan and unpermute: how many blocks a plan's cluster has and where its clocks go,
 * how many columns a warp of unpermute sums. Each version is checked before it is timed: plans against a sort on the
 * host, sums against the kernel that searches for the next row. */
#include "lab.cuh"

#include <random>

#include "ops/permute_plan.cu"
#include "ops/unpermute.cu"

static void check(bool right, const char *version, const char *shape)
{
    if (right) return;
    std::printf("WRONG: %s, %s\n", version, shape);
    std::exit(1);
}

/* ---- Plans ---- */

struct lab_routing {
    std::vector<int32_t> expert;
    fp8flow_plan plan; /* arrays on the device */
    fp8flow_permute_plan_args args;
};

/* Experts of a token are distinct. One slot in `absent` (0: none) has no expert, or one that does not exist. */
static void make_routing(lab_routing *r, int64_t tokens, int64_t top_k, int64_t experts, int64_t capacity,
                         unsigned absent)
{
    std::mt19937_64 random(tokens + experts);
    r->expert.resize(tokens * top_k);
    for (int64_t pair = 0; pair < tokens * top_k; pair++) {
        int32_t *begin = &r->expert[pair - pair % top_k], *at = &r->expert[pair];
        do *at = (int32_t)(random() % experts);
        while (std::find(begin, at, *at) != at);
    }
    for (int32_t &e : r->expert) {
        uint64_t bits = random();
        if (absent && bits % absent == 0) e = bits >> 63 ? -1 : (int32_t)experts;
    }
    r->plan = { tokens, top_k, experts, 128, capacity, lab_alloc<int32_t>(experts), lab_alloc<int32_t>(experts + 1),
                lab_alloc<int32_t>(tokens * top_k), lab_alloc<int32_t>(capacity) };
    r->args = { lab_upload(r->expert), &r->plan };
}

static void free_routing(lab_routing *r)
{
    cudaFree((void *)r->args.expert);
    cudaFree(r->plan.rows);
    cudaFree(r->plan.offset);
    cudaFree(r->plan.row_of);
    cudaFree(r->plan.source);
}

/* Poison, launch, compare with the contract. 0x7B7B7B7B: the poison, what must not be written. */
template <class Launch> static bool plan_is_right(const lab_routing &r, Launch launch)
{
    const fp8flow_plan &p = r.plan;
    int64_t pairs = p.num_tokens * p.top_k, limit = p.capacity / p.align * p.align;
    std::vector<int32_t> count(p.num_experts), offset(p.num_experts + 1), row_of(pairs, -1);
    std::vector<int32_t> source(p.capacity, 0x7B7B7B7B);
    LAB_TRY(cudaMemset(p.source, 0x7B, p.capacity * sizeof(int32_t)));
    launch(0);
    LAB_TRY(cudaDeviceSynchronize());
    for (int32_t e : r.expert)
        if (e >= 0 && e < p.num_experts) count[e]++;
    int64_t at = 0;
    for (int64_t e = 0; e < p.num_experts; e++) {
        offset[e] = (int32_t)std::min(at, limit);
        at += (count[e] + p.align - 1) / p.align * p.align;
        offset[e + 1] = (int32_t)std::min(at, limit);
        count[e] = std::min(count[e], offset[e + 1] - offset[e]);
        std::fill(source.begin() + offset[e], source.begin() + offset[e + 1], -1);
    }
    std::vector<int32_t> used(p.num_experts);
    for (int64_t pair = 0; pair < pairs; pair++) {
        int32_t e = r.expert[pair];
        if (e < 0 || e >= p.num_experts || used[e] == count[e]) continue;
        row_of[pair] = offset[e] + used[e]++;
        source[row_of[pair]] = (int32_t)pair;
    }
    return lab_download(p.rows, p.num_experts) == count && lab_download(p.offset, p.num_experts + 1) == offset &&
           lab_download(p.row_of, pairs) == row_of && lab_download(p.source, p.capacity) == source;
}

static void report_plan(const char *version, const char *shape, double microseconds)
{
    std::printf("%-44s %-24s %8.1f us\n", version, shape, microseconds);
}

template <class Launch> static void time_plan(const lab_routing &r, const char *version, const char *shape,
                                              Launch launch)
{
    check(plan_is_right(r, launch), version, shape);
    report_plan(version, shape, lab_time(launch));
}

/* What a launch costs that does nothing. */
template <int CLUSTER>
__global__ __launch_bounds__(PLAN_THREADS) static void empty_kernel(plan_call)
{
    __cluster_barrier_arrive_relaxed();
    __cluster_barrier_wait();
}

__device__ static void mark(int64_t *clocks, int phase)
{
    if (threadIdx.x == 0 && blockIdx.x == 0) clocks[phase] = clock64();
}

/* plan_sort_kernel with a look at the clock after each phase. */
template <int CLUSTER, int ITEMS>
__global__ __launch_bounds__(PLAN_THREADS) static void phases_kernel(plan_call call, int64_t *clocks)
{
    extern __shared__ int32_t shared[];
    mark(clocks, 0);
    sort_memory m = sort_memory_at<CLUSTER, ITEMS>(shared, call.num_experts);
    int64_t block_first = (int64_t)__clusterRelativeBlockRank() * PLAN_THREADS * ITEMS;
    sort_pairs<ITEMS> pairs;
    __cluster_barrier_arrive_relaxed();
    sort_load(call, block_first, pairs);
    sort_clear(call, m);
    mark(clocks, 1);
    sort_rank(call, m, pairs);
    mark(clocks, 2);
    __cluster_barrier_wait();
    mark(clocks, 3);
    sort_push<CLUSTER>(call, m);
    __cluster_barrier_arrive();
    mark(clocks, 4);
    int num_sorted = sort_arrange(call, m, pairs);
    mark(clocks, 5);
    __cluster_barrier_wait();
    mark(clocks, 6);
    sort_locate<CLUSTER>(call, m);
    mark(clocks, 7);
    sort_write(call, m, pairs, block_first, num_sorted);
    mark(clocks, 8);
    sort_pad<CLUSTER>(call, m);
    mark(clocks, 9);
}

template <int CLUSTER> static void print_phases(const lab_routing &r, int64_t *clocks)
{
    static const char *const names[] = { "clear", "load+rank", "wait", "push", "arrange", "wait", "locate", "write",
                                         "pad" };
    enum { NUM = sizeof names / sizeof *names };
    plan_call call = plan_call_of(&r.args);
    if (!plan_fits_sort(call, CLUSTER, PLAN_FEW_ITEMS)) return;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = { CLUSTER, 1, 1 };
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(CLUSTER);
    config.blockDim = dim3(PLAN_THREADS);
    config.dynamicSmemBytes = sort_bytes(call.num_experts, CLUSTER, PLAN_FEW_ITEMS);
    config.attrs = &attribute;
    config.numAttrs = 1;
    auto *kernel = phases_kernel<CLUSTER, PLAN_FEW_ITEMS>;
    LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    f8_allow_shared(kernel, (int)config.dynamicSmemBytes);
    LAB_TRY(cudaLaunchKernelEx(&config, kernel, call, clocks));
    LAB_TRY(cudaDeviceSynchronize());
    std::vector<int64_t> at = lab_download(clocks, NUM + 1);
    std::printf("    clocks, cluster of %d:", CLUSTER);
    for (int i = 0; i < NUM; i++) std::printf(" %s %lld", names[i], (long long)(at[i + 1] - at[i]));
    std::printf("\n");
}

/* Clusters of 16 need leave. */
static void allow_large_clusters()
{
    plan_kernel *const kernels[] = { plan_sort_kernel<16, PLAN_FEW_ITEMS>, plan_sort_kernel<16, PLAN_MANY_ITEMS>,
                                     plan_sort_kernel<16, 2>, permute_plan_kernel<16, PLAN_SHARED>, empty_kernel<16> };
    for (plan_kernel *kernel : kernels)
        LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
}

static void time_versions(const lab_routing &r, const char *shape, int32_t *scratch, int64_t *clocks)
{
    plan_call call = plan_call_of(&r.args);
    /* predict 9.1, 11 and 11 us for 8, 64, 256 experts: as before without __match_any_sync, stores still scattered */
    time_plan(r, "any size, cluster of 8", shape, [&](cudaStream_t s) { plan_launch_any<8>(s, call, scratch); });
    /* predict 6.5 us for 4096 x 8, whatever the experts: 2.3 launch, 0.7 load, 0.4 rank, 1 barrier, 0.3 locate, 0.6
     * writing, and what blocks wait for each other */
    time_plan(r, "library, cluster of 8", shape, [&](cudaStream_t s) { plan_launch<8>(s, call, scratch); });
    /* predict 6.5 us: half the rounds, a slower barrier, idle registers */
    time_plan(r, "cluster of 16", shape, [&](cudaStream_t s) { plan_launch<16>(s, call, scratch); });
    /* predict 6.3 us: the same without rounds that have no pairs */
    if (plan_fits_sort(call, 16, 2))
        time_plan(r, "cluster of 16, 2 pairs per thread", shape, [&](cudaStream_t s) {
            plan_launch_sort<16, 2>(s, call);
        });
    print_phases<8>(r, clocks);
    print_phases<16>(r, clocks);
}

static void time_plans(int32_t *scratch)
{
    static const struct {
        int64_t tokens, top_k, experts, capacity;
    } cases[] = {
        { 4096, 8, 8, 40000 },     { 4096, 8, 64, 45000 },     { 4096, 8, 256, 70000 }, { 4096, 8, 256, 20001 },
        { 16384, 8, 256, 170000 }, { 65536, 8, 256, 600000 }, { 4096, 8, 1776, 300000 }, { 1000, 7, 9, 9000 },
    };
    int64_t *clocks = lab_alloc<int64_t>(16);
    plan_call none = {};
    allow_large_clusters();
    report_plan("nothing, cluster of 8", "", lab_time([&](cudaStream_t s) {
        plan_launch_cluster(s, empty_kernel<8>, 8, 0, none);
    }));
    report_plan("nothing, cluster of 16", "", lab_time([&](cudaStream_t s) {
        plan_launch_cluster(s, empty_kernel<16>, 16, 0, none);
    }));
    for (const auto &s : cases) {
        char shape[64];
        std::snprintf(shape, sizeof shape, "%lld x %lld of %lld, %lld", (long long)s.tokens, (long long)s.top_k,
                      (long long)s.experts, (long long)s.capacity);
        lab_routing r;
        make_routing(&r, s.tokens, s.top_k, s.experts, s.capacity, 8);
        time_versions(r, shape, scratch, clocks);
        free_routing(&r);
    }
}

/* ---- Sums ---- */

/* A block per token: the rows are sorted once for all columns, a lane has several pieces one after the other. */
template <int K>
__global__ __launch_bounds__(UNPERMUTE_THREADS) static void token_kernel(unpermute_call call)
{
    int64_t token = blockIdx.x;
    int sorted[K], count = sort_rows<K>(call, token, sorted);
    if (call.gate && threadIdx.x < F8_WARP) write_gates(call, token);
    for (int64_t col = (int64_t)threadIdx.x * UNPERMUTE_PIECE; col < call.cols;
         col += UNPERMUTE_THREADS * UNPERMUTE_PIECE) {
        uint4 piece[K];
#pragma unroll
        for (int j = 0; j < K; j++) {
            piece[j] = make_uint4(0, 0, 0, 0);
            if (j < count) piece[j] = f8_load16(call.x + sorted[j] * call.x_stride + col);
        }
        f8_store16(call.y + token * call.y_stride + col, sum_pieces<K>(piece, count));
    }
}

__global__ static void differ_kernel(const uint4 *a, const uint4 *b, int64_t count, int *differences)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count && (a[i].x != b[i].x || a[i].y != b[i].y || a[i].z != b[i].z || a[i].w != b[i].w))
        atomicAdd(differences, 1);
}

struct lab_sums {
    unpermute_call call;
    uint16_t *expected;
    int *differences;
    double bytes;
    const char *shape;
};

template <class Launch> static void time_sum(const lab_sums &s, const char *version, Launch launch)
{
    int64_t size = s.call.num_tokens * s.call.cols;
    LAB_TRY(cudaMemset(s.call.y, 0xFF, size * 2));
    LAB_TRY(cudaMemset(s.differences, 0, sizeof(int)));
    launch(0);
    differ_kernel<<<(unsigned)(size / 8 / 256 + 1), 256>>>((uint4 *)s.call.y, (uint4 *)s.expected, size / 8,
                                                           s.differences);
    LAB_TRY(cudaDeviceSynchronize());
    check(lab_download(s.differences, 1)[0] == 0, version, s.shape);
    lab_report(version, s.shape, s.bytes, lab_time(launch));
}

static void time_sums(int64_t experts, int64_t cols, int64_t top_k, int32_t *scratch)
{
    const int64_t tokens = 4096, capacity = tokens * top_k + experts * 127;
    char shape[64];
    std::snprintf(shape, sizeof shape, "4096 x %lld, k %lld of %lld", (long long)cols, (long long)top_k,
                  (long long)experts);
    lab_routing r;
    make_routing(&r, tokens, top_k, experts, capacity, 0);
    plan_launch<PLAN_CLUSTER>(0, plan_call_of(&r.args), scratch);
    int64_t rows = 0;
    for (int32_t e : r.expert) rows += e >= 0 && e < experts;
    uint16_t *x = lab_normal_bf16(capacity, cols, 4, 1), *y = lab_alloc<uint16_t>(tokens * cols);
    float *gate_rows = lab_alloc<float>(capacity), *gate = lab_alloc<float>(tokens * top_k);
    lab_sums s = { { x, y, cols, cols, cols, tokens, top_k, 1, r.plan.row_of, gate_rows, gate },
                   lab_alloc<uint16_t>(tokens * cols), lab_alloc<int>(1), 2.0 * (rows + tokens) * cols, shape };
    unpermute_call expected = s.call;
    expected.y = s.expected;
    unpermute_launch_search(0, expected);

    /* predict 92 %: 128 bytes in flight per lane, 1024 threads per SM; the slots' load is the only gap */
    time_sum(s, "unpermute, 1 piece per lane", [&](cudaStream_t t) { unpermute_launch_slots<8, 1>(t, s.call); });
    /* predict 91 %: half the sorting, half the threads per SM */
    time_sum(s, "unpermute, 2 pieces per lane", [&](cudaStream_t t) { unpermute_launch_slots<8, 2>(t, s.call); });
    /* predict 88 %: one load of the slots per token, but rounds of loads with additions between them */
    time_sum(s, "unpermute, block per token", [&](cudaStream_t t) {
        token_kernel<8><<<(unsigned)tokens, UNPERMUTE_THREADS, 0, t>>>(s.call);
    });
    /* predict 70 %: as the first, with registers for 16 slots; what more slots than 8 cost */
    time_sum(s, "unpermute, 16 slots", [&](cudaStream_t t) { unpermute_launch_slots<16, 1>(t, s.call); });
    for (void *memory : { (void *)x, (void *)y, (void *)gate_rows, (void *)gate, (void *)s.expected,
                          (void *)s.differences })
        cudaFree(memory);
    free_routing(&r);
}

int main()
{
    int32_t *scratch = lab_alloc<int32_t>(F8_CUDA_SCRATCH_BYTES / sizeof(int32_t));
    time_plans(scratch);
    time_sums(64, 1280, 7, scratch);
    time_sums(64, 2048, 6, scratch);
    time_sums(160, 5120, 6, scratch);
    time_sums(256, 7168, 8, scratch);
    return 0;
}
