/* gemm_fp8_wgrad.cu - the weight gradient of FP8 operands on the tensor cores: choice of the layout, tensor maps,
 * launch. The kernel: gemm_wgrad.cuh.
 */
#include "ops/gemm_cuda.h"
#include "ops/gemm_wgrad.cuh"
#include "ops/launch.cuh"
#include "ops/tensor_map.cuh"

/* Columns of a are lines of a box: 128 rows of `lines` columns. */
static fp8flow_status map_a(CUtensorMap *map, const fp8flow_tensor *a, int lines)
{
    f8_box_shape shape = {};
    shape.rank = 2;
    shape.size[0] = (cuuint64_t)a->rows;
    shape.size[1] = (cuuint64_t)a->cols;
    shape.stride[0] = (cuuint64_t)a->stride;
    shape.box[0] = WGRAD_STEP;
    shape.box[1] = (cuuint32_t)lines;
    shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    shape.l2 = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    return f8_tensor_map("gemm", map, a->data, shape);
}

/* Lines of b in the order that gives lane q of four the columns 4q .. 4q+3 of a group of 16: line 8h + 2q + i of a
 * group in shared memory is line 4q + 2h + i of the tensor. */
static fp8flow_status map_b(CUtensorMap *map, const fp8flow_tensor *b)
{
    const cuuint64_t size[5] = { (cuuint64_t)b->rows, 2, 4, 2, (cuuint64_t)b->cols / 16 };
    const cuuint32_t box[5] = { WGRAD_STEP, 2, 4, 2, WGRAD_K / 16 }, lines[4] = { 1, 4, 2, 16 };
    f8_box_shape shape = {};
    shape.rank = 5;
    for (int i = 0; i < 5; i++) {
        shape.size[i] = size[i];
        shape.box[i] = box[i];
        if (i < 4) shape.stride[i] = lines[i] * (cuuint64_t)b->stride;
    }
    shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    shape.l2 = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    return f8_tensor_map("gemm", map, b->data, shape);
}

template <class L>
static fp8flow_status launch(fp8flow_context *c, const fp8flow_gemm_args *a, const f8_gemm_desc &d, int band)
{
    CUtensorMap a_map, b_map;
    F8_TRY(map_a(&a_map, a->a, L::tile_n));
    F8_TRY(map_b(&b_map, a->b));
    wgrad_problem p = {};
    p.a_scale = a->a->scale;
    p.b_scale = a->b->scale;
    p.c = (float *)a->c->data;
    p.c_stride = a->c->stride;
    p.experts = (int32_t)d.experts;
    p.offset = a->groups ? a->groups->offset : NULL;
    p.rows = a->groups ? a->groups->rows : NULL;
    p.all_rows = (int32_t)d.rows;
    p.n = (int32_t)d.outer;
    p.k = (int32_t)d.inner;
    p.band = band;
    p.write = a->write;
    p.prefetch = a->write == FP8FLOW_ACCUMULATE;
    int processors = 0;
    F8_TRY(f8_multiprocessors("gemm", &processors));
    int64_t tiles = p.experts * f8_ceil_div(p.n, L::tile_n) * f8_ceil_div(p.k, WGRAD_K);
    int64_t blocks = f8_ceil_div(tiles, L::teams);
    f8_allow_shared(wgrad_kernel<L>, L::bytes);
    wgrad_kernel<L><<<(unsigned)(blocks < processors ? blocks : processors), L::threads, L::bytes, f8_stream(c)>>>(
        a_map, b_map, p);
    return f8_launched("gemm");
}

/* With few rows two teams with tiles of 128 lines; else one of 192 lines, three warpgroups, or of 256. */
extern "C" fp8flow_status f8_cuda_gemm_fp8_wgrad(fp8flow_context *c, const fp8flow_gemm_args *a,
                                                 const f8_gemm_desc *desc, const f8_gemm_config *config)
{
    int few = config->tile_m == 128, band = config->band;
    switch (desc->scaling) {
    case FP8FLOW_TENSOR:
        return few ? launch<wgrad_layout<FP8FLOW_TENSOR, 2, 1, 2, 3>>(c, a, *desc, band)
                   : launch<wgrad_layout<FP8FLOW_TENSOR, 1, 3, 1, 5>>(c, a, *desc, band);
    case FP8FLOW_COL128:
        return few ? launch<wgrad_layout<FP8FLOW_COL128, 2, 1, 2, 3>>(c, a, *desc, band)
                   : launch<wgrad_layout<FP8FLOW_COL128, 1, 2, 2, 4>>(c, a, *desc, band);
    default: return launch<wgrad_layout<FP8FLOW_TILE128, 2, 1, 2, 3>>(c, a, *desc, band);
    }
}
