/* gemm_config.h - which Hopper kernel computes a product, with which tiles: a pure function of the description.
 *
 * A description says what the host knows of a call: formats, shapes, alignment. How many rows each expert has is
 * device memory; `rows` is their capacity. The same description gives the same configuration, hence the same bits.
 */
#ifndef F8_OPS_GEMM_CONFIG_H
#define F8_OPS_GEMM_CONFIG_H

#include "ops/ops.h"

enum { F8_GEMM_MAX_EXPERTS = 1024 }; /* of the kernels of the tensor cores: room in shared memory */

typedef enum {
    F8_GEMM_ANY,           /* every format, shape, stride and alignment; FP32 arithmetic, no tensor cores */
    F8_GEMM_FP8_ROWS,      /* FPROP, DGRAD of FP8 operands */
    F8_GEMM_FP8_WGRAD,     /* WGRAD of FP8 operands */
    F8_GEMM_FP8_TILES,     /* WGRAD of TILE128 operands, many rows per expert */
    F8_GEMM_FP8_TILES_FEW, /* the same with few rows; whole groups of 32 columns of c */
    F8_GEMM_BF16,          /* all products of BF16 operands */
    F8_GEMM_SPLIT,  /* dense FPROP, WGRAD of BF16 and F32 operands, the F32 one narrow: BF16 parts side by side */
    F8_GEMM_SPLIT_K /* dense DGRAD of F32 operands: BF16 parts along the contraction of F8_GEMM_BF16 */
} f8_gemm_kernel;

/* Parts of F32 operands in scratch memory, and FP32 sums of splits of the contraction. */
enum { F8_SPLIT_PARTS_BYTES = 40 << 20, F8_SPLIT_SUMS_BYTES = F8_CUDA_SCRATCH_BYTES - F8_SPLIT_PARTS_BYTES };

/* BF16 parts of a number: side by side in F8_GEMM_SPLIT; pairs of parts that F8_GEMM_SPLIT_K multiplies. */
enum { F8_SPLIT_PARTS = 3, F8_SPLIT_PAIRS = 6 };

typedef struct {
    fp8flow_product product;
    fp8flow_write write;
    fp8flow_dtype a_dtype, b_dtype, c_dtype;
    fp8flow_scaling scaling; /* of a */
    int64_t experts;         /* 1 without groups */
    int64_t rows;            /* of the activations: capacity of all experts together */
    int64_t outer, inner;    /* FPROP: N, K; DGRAD: K, N (columns of c, contraction); WGRAD: N, K of c */
    int32_t grouped;         /* rows are where groups say */
    int32_t mappable;        /* lines of a, b, c are whole pieces of 16 bytes; ROW128 scales of a are whole words */
} f8_gemm_desc;

typedef struct {
    f8_gemm_kernel kernel;
    int32_t tile_m, tile_n, tile_k; /* c per block, contraction per stage */
    int32_t stages;                 /* of the ring in shared memory */
    int32_t cluster;                /* blocks that share operands */
    int32_t band;                   /* tiles of c along m that are visited before the next along n */
    int32_t splits;                 /* of the contraction, summed by a second kernel */
} f8_gemm_config;

#ifdef __cplusplus
extern "C" {
#endif

f8_gemm_desc f8_gemm_describe(const fp8flow_gemm_args *a);
f8_gemm_config f8_gemm_configure(const f8_gemm_desc *desc);

/* "fp8 rows 128x256x128, 4 stages, clusters of 2, bands of 8", then ", 4 splits" where there are some; returns what
 * snprintf does. */
int f8_gemm_config_print(const f8_gemm_config *config, char *text, size_t size);

#ifdef __cplusplus
}
#endif

#endif
