/* tensor_map.cuh - tensor maps, which tell the copy engine of sm_90a where the boxes of a tensor lie.
 *
 * A map is host memory, made anew for every call, and goes to kernels by value as a __grid_constant__ parameter.
 */
#ifndef F8_OPS_TENSOR_MAP_CUH
#define F8_OPS_TENSOR_MAP_CUH

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "ops/ops.h"

/* `rank` dimensions of elements of `type`, the innermost first; stride[i] is the distance in bytes of dimension i + 1.
 * Data and strides are multiples of 16. A box outside the tensor comes as zeros and is not written. */
struct f8_box_shape {
    cuuint32_t rank;
    cuuint64_t size[5], stride[4];
    cuuint32_t box[5];
    CUtensorMapSwizzle swizzle;
    CUtensorMapDataType type; /* left out: bytes */
    CUtensorMapL2promotion l2;
};
static_assert(CU_TENSOR_MAP_DATA_TYPE_UINT8 == 0 && CU_TENSOR_MAP_L2_PROMOTION_NONE == 0, "what is left out is 0");

static inline fp8flow_status f8_tensor_map(const char *op, CUtensorMap *map, void *data, const f8_box_shape &shape)
{
    static PFN_cuTensorMapEncodeTiled_v12000 encode; /* the driver's; threads that race store the same value */
    if (!encode) {
        void *function = NULL;
        cudaDriverEntryPointQueryResult found;
        cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                             cudaEnableDefault, &found);
        F8_REQUIRE(error == cudaSuccess && function, EBACKEND, "%s: cuda: the driver has no tensor maps", op);
        encode = (PFN_cuTensorMapEncodeTiled_v12000)function;
    }
    const cuuint32_t steps[5] = { 1, 1, 1, 1, 1 };
    CUresult result = encode(map, shape.type, shape.rank, data, shape.size, shape.stride, shape.box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, shape.swizzle, shape.l2,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    F8_REQUIRE(result == CUDA_SUCCESS, EBACKEND, "%s: cuda: tensor map: error %d", op, (int)result);
    return FP8FLOW_OK;
}

/* BF16 numbers as `experts` matrices of equally many lines, one behind the other: nothing comes from the next one.
 * Boxes of 64 columns x `lines` lines, swizzled as the tensor cores want them. */
static inline fp8flow_status f8_bf16_map(const char *op, CUtensorMap *map, const fp8flow_tensor *t, int64_t experts,
                                         int lines)
{
    f8_box_shape shape = {};
    shape.rank = 3;
    shape.size[0] = (cuuint64_t)t->cols;
    shape.size[1] = (cuuint64_t)(t->rows / experts);
    shape.size[2] = (cuuint64_t)experts;
    shape.stride[0] = (cuuint64_t)t->stride * 2;
    shape.stride[1] = shape.stride[0] * shape.size[1];
    shape.box[0] = 64, shape.box[1] = (cuuint32_t)lines, shape.box[2] = 1;
    shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    shape.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    shape.l2 = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    return f8_tensor_map(op, map, t->data, shape);
}

#endif
