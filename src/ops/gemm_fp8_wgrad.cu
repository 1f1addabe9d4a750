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

/* Lines of b in the order that gives lane q of four the columns q * columns .. of a group of 4 * columns: line
 * 8h + 2q + i of a group in shared memory is line q * columns + 2h + i of the tensor. */
static fp8flow_status map_b(CUtensorMap *map, const fp8flow_tensor *b, int columns)
{
    const cuuint32_t pairs = (cuuint32_t)columns / 2, group = 4 * (cuuint32_t)columns;
    const cuuint64_t size[5] = { (cuuint64_t)b->rows, 2, 4, pairs, (cuuint64_t)b->cols / group };
    const cuuint32_t box[5] = { WGRAD_STEP, 2, 4, pairs, WGRAD_K / group };
    const cuuint32_t lines[4] = { 1, (cuuint32_t)columns, 2, group };
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

/* Columns, lines of an expert, experts. */
static fp8flow_status map_c(CUtensorMap *map, const wgrad_problem &p)
{
    const cuuint64_t line = 4 * (cuuint64_t)p.c_stride;
    f8_box_shape shape = {};
    shape.rank = 3;
    shape.size[0] = (cuuint64_t)p.k;
    shape.size[1] = (cuuint64_t)p.n;
    shape.size[2] = (cuuint64_t)p.experts;
    shape.stride[0] = line;
    shape.stride[1] = line * (cuuint64_t)p.n;
    shape.box[0] = WGRAD_PIECE_COLS;
    shape.box[1] = WGRAD_PIECE_LINES;
    shape.box[2] = 1;
    shape.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    shape.l2 = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    return f8_tensor_map("gemm", map, p.c, shape);
}

template <class L> static fp8flow_status launch(fp8flow_context *c, const fp8flow_gemm_args *a, int band)
{
    wgrad_problem p = {};
    p.a_scale = a->a->scale;
    p.b_scale = a->b->scale;
    p.c = (float *)a->c->data;
    p.c_stride = a->c->stride;
    p.experts = a->groups ? (int32_t)a->groups->count : 1;
    p.offset = a->groups ? a->groups->offset : NULL;
    p.rows = a->groups ? a->groups->rows : NULL;
    p.all_rows = (int32_t)a->a->rows;
    p.n = (int32_t)a->a->cols;
    p.k = (int32_t)a->b->cols;
    p.band = band;
    p.write = a->write;
    CUtensorMap a_map, b_map, c_map = {};
    F8_TRY(map_a(&a_map, a->a, L::tile_n));
    F8_TRY(map_b(&b_map, a->b, L::lane_columns));
    if (L::slots > 0) F8_TRY(map_c(&c_map, p));
    int processors = 0;
    F8_TRY(f8_multiprocessors("gemm", &processors));
    int64_t tiles = p.experts * f8_ceil_div(p.n, L::tile_n) * f8_ceil_div(p.k, WGRAD_K);
    f8_allow_shared(wgrad_kernel<L>, L::bytes);
    wgrad_kernel<L><<<(unsigned)(tiles < processors ? tiles : processors), L::threads, L::bytes, f8_stream(c)>>>(
        a_map, b_map, c_map, p);
    return f8_launched("gemm");
}

extern "C" fp8flow_status f8_cuda_gemm_fp8_wgrad(fp8flow_context *c, const fp8flow_gemm_args *a,
                                                 const f8_gemm_config *config)
{
    switch (a->a->scaling) {
    case FP8FLOW_TENSOR: return launch<wgrad_layout<FP8FLOW_TENSOR, 3, 1, 5, 0>>(c, a, config->band);
    case FP8FLOW_COL128: return launch<wgrad_layout<FP8FLOW_COL128, 2, 2, 4, 0>>(c, a, config->band);
    default: return launch<wgrad_layout<FP8FLOW_TILE128, 2, 2, 3, 5>>(c, a, config->band);
    }
}
