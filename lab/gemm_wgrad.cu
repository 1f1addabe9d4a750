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

template <class L> static result run(const operands &o, fp8flow_write write)
{
    problem p = o.p;
    p.write = write;
    p.band = BAND_ROWS / L::tile_n;
    const cuuint64_t s = (cuuint64_t)o.capacity, n = (cuuint64_t)p.n, k = (cuuint64_t)p.k, line = 4 * k;
    const cuuint32_t columns = L::lane_columns, pairs = columns / 2, group = 4 * columns;
    CUtensorMap a_map = make_map(o.a, { 2, { s, n }, { s }, { WGRAD_STEP, L::tile_n } });
    CUtensorMap b_map = make_map(o.b, { 5, { s, 2, 4, pairs, k / group }, { s, columns * s, 2 * s, group * s },
                                        { WGRAD_STEP, 2, 4, pairs, WGRAD_K / group } });
    f8_box_shape c_shape = { 3, { k, n, (cuuint64_t)p.experts }, { line, line * n },
                             { WGRAD_PIECE_COLS, WGRAD_PIECE_LINES, 1 } };
    c_shape.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    CUtensorMap c_map = make_map(p.c, c_shape);
    auto kernel = wgrad_kernel<L>;
    LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::bytes));
    auto launch = [&](cudaStream_t stream) {
        kernel<<<132, L::threads, L::bytes, stream>>>(a_map, b_map, c_map, p);
        LAB_TRY(cudaGetLastError());
    };
    return measure(o, p, launch);
}

/* name, layout, scaling, writes, multiple of k */
static const version versions[] = {
    /* predict V2-Lite overwriting 680, adding 440; V3 adding 940: c is read behind the products. */
    { "direct, 4 stages", run<wgrad_layout<FP8FLOW_TILE128, 2, 2, 4, 0>>, FP8FLOW_TILE128, ADDS | OVERWRITES, 16 },
    /* predict V2-Lite adding 530; V3 adding 900: c comes and goes beside the products, one stage less. */
    { "staged, 3 stages, 2x5 slots", run<wgrad_layout<FP8FLOW_TILE128, 2, 2, 3, 5>>, FP8FLOW_TILE128, ADDS, 32 },
    /* predict V3 750: four operations per product instead of one. */
    { "direct, COL128", run<wgrad_layout<FP8FLOW_COL128, 2, 2, 4, 0>>, FP8FLOW_COL128, ADDS | OVERWRITES, 16 },
};

int main()
{
    return run_guarded(versions);
}
