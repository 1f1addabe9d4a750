/* gemm_cuda.h - the product kernels of the CUDA backend; gemm.cu chooses by f8_gemm_configure. */
#ifndef F8_OPS_GEMM_CUDA_H
#define F8_OPS_GEMM_CUDA_H

#include "ops/gemm_config.h"

#if defined(__cplusplus)
extern "C" {
#endif

fp8flow_status f8_cuda_gemm_any(fp8flow_context *c, const fp8flow_gemm_args *a);

/* `desc`: f8_gemm_describe of the same arguments. */
fp8flow_status f8_cuda_gemm_fp8_rows(fp8flow_context *c, const fp8flow_gemm_args *a, const f8_gemm_desc *desc,
                                     const f8_gemm_config *config);
fp8flow_status f8_cuda_gemm_fp8_wgrad(fp8flow_context *c, const fp8flow_gemm_args *a, const f8_gemm_desc *desc,
                                      const f8_gemm_config *config);
fp8flow_status f8_cuda_gemm_fp8_tiles(fp8flow_context *c, const fp8flow_gemm_args *a, const f8_gemm_desc *desc,
                                      const f8_gemm_config *config);
fp8flow_status f8_cuda_gemm_fp8_tiles_few(fp8flow_context *c, const fp8flow_gemm_args *a, const f8_gemm_desc *desc,
                                          const f8_gemm_config *config);
fp8flow_status f8_cuda_gemm_bf16(fp8flow_context *c, const fp8flow_gemm_args *a, const f8_gemm_desc *desc,
                                 const f8_gemm_config *config);
fp8flow_status f8_cuda_gemm_split(fp8flow_context *c, const fp8flow_gemm_args *a, const f8_gemm_desc *desc,
                                  const f8_gemm_config *config);
fp8flow_status f8_cuda_gemm_split_k(fp8flow_context *c, const fp8flow_gemm_args *a, const f8_gemm_desc *desc,
                                    const f8_gemm_config *config);

#if defined(__cplusplus)
}
#endif

#endif
