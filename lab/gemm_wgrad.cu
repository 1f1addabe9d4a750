/* gemm_wgrad.cu - layouts of the library's kernel of the FP8 weight gradient (src/ops/gemm_wgrad.cuh), checked and timed;
 * gemm_wgrad_data.cuh makes the operands. Earlier kernels, their predictions and times: docs/SPEED.md.
 *
 * Bounds on the H200 (4.2 TB/s): V2-Lite adding 0.76 / 0.39 ms (750 / 723 TFLOP/s), overwriting 0.41 / 0.22 ms. When all
 * blocks multiply and then all write, products and traffic add up: 7.0 + 9.7 us per tile of 256 x 128 at V3 wgrad1.
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

template <class L> static result run(const operands &o, fp8flow_write write, int also, int stagger, int skew)
{
    problem p = o.p;
    p.write = write;
    p.stagger = stagger;
    p.skew = skew;
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
    return measure(o, p, launch, also);
}

typedef wgrad_layout<FP8FLOW_TILE128, 1, 2, 4> one_team;
typedef wgrad_layout<FP8FLOW_TILE128, 2, 2, 3> two_teams;

/* name, layout, stagger, skew */
static const version versions[] = {
    /* predict V3 adding 1060 / overwriting 1140 (v2 of the earlier kernels + 8 %: promotion reads two registers). */
    { "t1  256x128 one team", run<one_team>, 0, 0, FP8FLOW_TILE128, SUSTAINED },
    /* predict V3 adding 1180 / overwriting 1210, V2-Lite adding 580 / overwriting 900: blocks write at different times. */
    { "t1s = t1, blocks staggered over a tile", run<one_team>, 6000, 0, FP8FLOW_TILE128, SUSTAINED },
    /* predict V3 adding 1130: one warpgroup runs ahead by the ring, and writes while the other multiplies. */
    { "t1k = t1, second warpgroup 3 steps behind", run<one_team>, 0, 4200, FP8FLOW_TILE128, FLUSHED },
    /* predict V3 adding 1200: both. */
    { "t1sk = t1, staggered and behind", run<one_team>, 6000, 4200, FP8FLOW_TILE128, FLUSHED },
    /* predict V3 1000 (64 bytes per clock from L2 bind), V2-Lite adding 560 / overwriting 750: teams in step. */
    { "t2  128x128 two teams", run<two_teams>, 0, 0, FP8FLOW_TILE128, FLUSHED },
    /* predict V3 1050, V2-Lite adding 650 / overwriting 950: favourite there. */
    { "t2s = t2, teams staggered over a tile", run<two_teams>, 6000, 0, FP8FLOW_TILE128, SUSTAINED },
    /* predict V3 850: four operations per product instead of one. */
    { "c1s 256x128 one team, staggered, COL128", run<wgrad_layout<FP8FLOW_COL128, 1, 2, 4>>, 6000, 0, FP8FLOW_COL128,
      FLUSHED },
    { "c2s 128x128 two teams, staggered, COL128", run<wgrad_layout<FP8FLOW_COL128, 2, 2, 3>>, 6000, 0, FP8FLOW_COL128,
      FLUSHED },
};

int main()
{
    return run_guarded(versions);
}
