/* gemm_wgrad.cu - layouts of the library's kernel of the FP8 weight gradient (src/ops/gemm_wgrad.cuh), checked and
 * timed; gemm_wgrad_data.cuh makes the operands. Earlier kernels, their predictions and times: docs/SPEED.md.
 *
 * Bounds on the H200 (4.2 TB/s): V2-Lite adding 0.70 / 0.35 ms (730 / 730 TFLOP/s), overwriting 0.32 / 0.16 ms. When
 * all blocks multiply and then all write, products and traffic add up: 19 + 8 us per tile of 256 x 128 at V3.
 */
#include <cudaTypedefs.h>

#include "ops/gemm_wgrad.cuh"
#include "gemm_wgrad_data.cuh"
#include "ops/tensor_map.cuh"

enum { BAND_ROWS = 2048 };

static CUtensorMap make_map(const void *data, f8_box_shape shape)
{
    CUtensorMap map;
    shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    shape.l2 = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    if (f8_tensor_map("lab", &map, (void *)data, shape) != FP8FLOW_OK) std::printf("tensor map\n"), std::exit(1);
    return map;
}

template <class L> static result run(const operands &o, fp8flow_write write, int prefetch)
{
    problem p = o.p;
    p.write = write;
    p.prefetch = prefetch;
    p.band = BAND_ROWS / L::tile_n;
    cuuint64_t s = (cuuint64_t)o.capacity;
    CUtensorMap a_map = make_map(o.a, { 2, { s, (cuuint64_t)p.n }, { s }, { WGRAD_STEP, L::tile_n } });
    CUtensorMap b_map = make_map(o.b, { 5, { s, 2, 4, 2, (cuuint64_t)p.k / 16 }, { s, 4 * s, 2 * s, 16 * s },
                                        { WGRAD_STEP, 2, 4, 2, WGRAD_K / 16 } });
    auto kernel = wgrad_kernel<L>;
    LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::bytes));
    auto launch = [&](cudaStream_t stream) {
        kernel<<<132, L::threads, L::bytes, stream>>>(a_map, b_map, p);
        LAB_TRY(cudaGetLastError());
    };
    return measure(o, p, launch);
}

typedef wgrad_layout<FP8FLOW_TILE128, 1, 2, 2, 4> one_team;
typedef wgrad_layout<FP8FLOW_TILE128, 2, 1, 2, 3> two_teams;
typedef wgrad_layout<FP8FLOW_TILE128, 1, 3, 1, 5> three_groups;

/* name, layout, prefetch, scaling. Without prefetch c is read behind the products: 8 us per tile when all blocks do. */
static const version versions[] = {
    /* predict V3 adding 980, V2-Lite adding 450: as before, c's next wave loaded while one is written. */
    { "t1  256x128 one team", run<one_team>, 0, FP8FLOW_TILE128 },
    /* predict V3 adding 1050, V2-Lite adding 580: c comes from L2; writes go to DRAM behind the next products. */
    { "t1p the same, c brought to L2", run<one_team>, 1, FP8FLOW_TILE128 },
    /* predict V3 850, V2-Lite adding 520. */
    { "t2  128x128 two teams", run<two_teams>, 0, FP8FLOW_TILE128 },
    /* predict V3 880, V2-Lite adding 600, overwriting 650. */
    { "t2p the same, c brought to L2", run<two_teams>, 1, FP8FLOW_TILE128 },
    /* predict V3 1000: of three warpgroups two multiply while one promotes. */
    { "t3  192x128 three warpgroups", run<three_groups>, 0, FP8FLOW_TILE128 },
    /* predict V3 1060, V2-Lite adding 560. */
    { "t3p the same, c brought to L2", run<three_groups>, 1, FP8FLOW_TILE128 },
    /* predict V3 750: four operations per product instead of one. */
    { "c1p 256x128 one team, COL128", run<wgrad_layout<FP8FLOW_COL128, 1, 2, 2, 4>>, 1, FP8FLOW_COL128 },
    { "c2p 128x128 two teams, COL128", run<wgrad_layout<FP8FLOW_COL128, 2, 1, 2, 3>>, 1, FP8FLOW_COL128 },
};

static const shape shapes[] = {
    { "small", 8, 0, 384, 384, 0, FP8FLOW_TILE128, 0 },
    { "small, short last blocks", 8, 0, 272, 400, 3, FP8FLOW_TILE128, 0 },
    { "small, scales far apart", 8, 0, 400, 272, 60, FP8FLOW_TILE128, 0 },
    { "small, COL128", 8, 0, 400, 272, 20, FP8FLOW_COL128, 0 },
    { "V3 wgrad1", 8, 4096, 4096, 7168, 0, FP8FLOW_TILE128, 1 },
    { "V3 wgrad2", 8, 4096, 7168, 2048, 0, FP8FLOW_TILE128, -300 },
    { "V3 wgrad2, scales differ", 8, 4096, 7168, 2048, 4, FP8FLOW_TILE128, 1 },
    { "V3 wgrad2, COL128", 8, 4096, 7168, 2048, 4, FP8FLOW_COL128, 1 },
    { "V3 small wgrad1", 8, 768, 4096, 7168, 0, FP8FLOW_TILE128, 1 },
    { "V3 small wgrad2", 8, 768, 7168, 2048, 0, FP8FLOW_TILE128, 1 },
    { "V2-Lite wgrad1", 64, 768, 2816, 2048, 0, FP8FLOW_TILE128, -300 },
    { "V2-Lite wgrad2", 64, 768, 2048, 1408, 0, FP8FLOW_TILE128, 1 },
};

int main()
{
    return run_guarded(versions, shapes);
}
