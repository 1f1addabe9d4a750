/* permute_plan.cu - lab of permute_plan and unpermute: how many blocks a plan's cluster has, how many columns a warp of
 * unpermute sums. Each version is checked before it is timed: plans against a sort on the host, sums against the
 * kernel that searches for the next row. */
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

template <int CLUSTER> static void time_plan(const lab_routing &r, int32_t *scratch, const char *shape)
{
    char version[64];
    std::snprintf(version, sizeof version, "plan, cluster of %d", CLUSTER);
    auto *kernel = permute_plan_kernel<CLUSTER, PLAN_SHARED>;
    LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    auto launch = [&](cudaStream_t stream) { plan_launch<CLUSTER>(stream, plan_call_of(&r.args), scratch); };
    check(plan_is_right(r, launch), version, shape);
    std::printf("%-44s %-24s %8.1f us\n", version, shape, lab_time(launch));
}

static void time_plans(int32_t *scratch)
{
    static const struct {
        int64_t tokens, top_k, experts, capacity;
    } cases[] = {
        { 4096, 8, 8, 40000 },     { 4096, 8, 64, 45000 },    { 4096, 8, 256, 70000 }, { 4096, 8, 256, 20001 },
        { 65536, 8, 256, 600000 }, { 4096, 8, 1776, 300000 }, { 1000, 7, 9, 9000 },    { 300, 4, 30000, 160000 },
    };
    for (const auto &s : cases) {
        char shape[64];
        std::snprintf(shape, sizeof shape, "%lld x %lld of %lld, %lld", (long long)s.tokens, (long long)s.top_k,
                      (long long)s.experts, (long long)s.capacity);
        lab_routing r;
        make_routing(&r, s.tokens, s.top_k, s.experts, s.capacity, 8);
        /* predict 9 us: half the blocks, twice the rounds of 32 pairs */
        time_plan<4>(r, scratch, shape);
        /* predict 7 us: 2 launch, 1 first load, 1 cluster barrier and sums, 1 tables, 1.5 rounds and stores */
        time_plan<8>(r, scratch, shape);
        /* predict 7 us: fewer rounds, a slower barrier */
        if (s.experts < 28672) time_plan<16>(r, scratch, shape);
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
