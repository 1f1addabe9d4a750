/* gemm.cu - CUDA side of gemm. Contract: fp8flow_ops.h. CPU side: gemm.c. Kernels: gemm_*.cu. */
#include "ops/gemm_cuda.h"

extern "C" fp8flow_status f8_cuda_gemm(fp8flow_context *c, const fp8flow_gemm_args *a)
{
    f8_gemm_desc desc = f8_gemm_describe(a);
    f8_gemm_config config = f8_gemm_configure(&desc);
    switch (config.kernel) {
    case F8_GEMM_FP8_ROWS: return f8_cuda_gemm_fp8_rows(c, a, &desc, &config);
    case F8_GEMM_FP8_WGRAD: return f8_cuda_gemm_fp8_wgrad(c, a, &desc, &config);
    case F8_GEMM_FP8_TILES: return f8_cuda_gemm_fp8_tiles(c, a, &desc, &config);
    case F8_GEMM_FP8_TILES_FEW: return f8_cuda_gemm_fp8_tiles_few(c, a, &desc, &config);
    case F8_GEMM_BF16: return f8_cuda_gemm_bf16(c, a, &desc, &config);
    case F8_GEMM_SPLIT: return f8_cuda_gemm_split(c, a, &desc, &config);
    case F8_GEMM_SPLIT_K: return f8_cuda_gemm_split_k(c, a, &desc, &config);
    default: return f8_cuda_gemm_any(c, a);
    }
}
