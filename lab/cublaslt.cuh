/* cublaslt.cuh - products of cuBLASLt, for comparison: the library is looked for at run time, so that nothing is linked
 * against it.
 *
 * Its matrices are in columns: our lines are its columns, its first operand is our b, and its result in columns is ours
 * in rows. Scales are FP32: of 1 x 128 blocks [contraction / 128][lines]; of 128 x 128 blocks [lines / 128][contraction
 * / 128 rounded up to 4].
 */
#ifndef F8_LAB_CUBLASLT_CUH
#define F8_LAB_CUBLASLT_CUH

#include <cublasLt.h>
#include <dlfcn.h>

#include "lab.cuh"

#define LT_FUNCTIONS(X)                                                                                       \
    X(cublasLtCreate) X(cublasLtGetVersion) X(cublasLtGetStatusString) X(cublasLtMatmul)                      \
    X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescSetAttribute) X(cublasLtMatrixLayoutCreate)               \
    X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceSetAttribute) X(cublasLtMatmulAlgoGetHeuristic) \
    X(cublasLtMatmulDescDestroy) X(cublasLtMatrixLayoutDestroy) X(cublasLtMatmulPreferenceDestroy)

static struct {
#define X(name) decltype(&::name) name;
    LT_FUNCTIONS(X)
#undef X
} lt;

#define LT_TRY(call)                                                                                  \
    do {                                                                                              \
        cublasStatus_t lt_status = lt.call;                                                           \
        if (lt_status != CUBLAS_STATUS_SUCCESS) {                                                     \
            std::printf("%s:%d: %s\n", __FILE__, __LINE__, lt.cublasLtGetStatusString(lt_status));    \
            std::exit(1);                                                                             \
        }                                                                                             \
    } while (0)

static const size_t WORKSPACE_BYTES = (size_t)64 << 20;
enum { MOST_ALGORITHMS = 8 };

static cublasLtHandle_t handle;
static void *workspace;
static cudaStream_t stream;

static bool load_library()
{
    void *library = dlopen("libcublasLt.so.13", RTLD_NOW);
    if (!library) library = dlopen("/usr/local/cuda/lib64/libcublasLt.so.13", RTLD_NOW);
    if (!library) return false;
#define X(name)                                                  \
    lt.name = (decltype(lt.name))dlsym(library, #name);          \
    if (!lt.name) return false;
    LT_FUNCTIONS(X)
#undef X
    return true;
}

/* One operand, in columns: op(matrix) takes part. scale NULL: 1. */
struct operand {
    const void *data;
    cudaDataType type;
    cublasOperation_t op;
    int64_t rows, cols, ld;
    const float *scale;
    int32_t scale_mode;
};

enum accumulation { SLOW, FAST };

/* d[m, n] = op(a) op(b), in columns. */
struct product {
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    const void *a_data, *b_data;
    void *d_data;
    cublasLtMatmulHeuristicResult_t algorithms[MOST_ALGORITHMS];
    int count; /* 0: the library has no such product */
};

static void set_operand(cublasLtMatmulDesc_t desc, const operand &x, bool is_a)
{
    auto op = is_a ? CUBLASLT_MATMUL_DESC_TRANSA : CUBLASLT_MATMUL_DESC_TRANSB;
    auto mode = is_a ? CUBLASLT_MATMUL_DESC_A_SCALE_MODE : CUBLASLT_MATMUL_DESC_B_SCALE_MODE;
    auto pointer = is_a ? CUBLASLT_MATMUL_DESC_A_SCALE_POINTER : CUBLASLT_MATMUL_DESC_B_SCALE_POINTER;
    LT_TRY(cublasLtMatmulDescSetAttribute(desc, op, &x.op, sizeof x.op));
    if (!x.scale) return;
    LT_TRY(cublasLtMatmulDescSetAttribute(desc, mode, &x.scale_mode, sizeof x.scale_mode));
    LT_TRY(cublasLtMatmulDescSetAttribute(desc, pointer, &x.scale, sizeof x.scale));
}

static product make_product(const operand &a, const operand &b, void *d, cudaDataType d_type, accumulation how)
{
    product p = {};
    cublasLtMatmulPreference_t preference;
    int64_t m = a.op == CUBLAS_OP_T ? a.cols : a.rows, n = b.op == CUBLAS_OP_T ? b.rows : b.cols;
    int8_t is_fast = how == FAST;
    LT_TRY(cublasLtMatmulDescCreate(&p.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set_operand(p.desc, a, true);
    set_operand(p.desc, b, false);
    LT_TRY(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &is_fast, sizeof is_fast));
    LT_TRY(cublasLtMatrixLayoutCreate(&p.a, a.type, a.rows, a.cols, a.ld));
    LT_TRY(cublasLtMatrixLayoutCreate(&p.b, b.type, b.rows, b.cols, b.ld));
    LT_TRY(cublasLtMatrixLayoutCreate(&p.d, d_type, m, n, m));
    LT_TRY(cublasLtMatmulPreferenceCreate(&preference));
    LT_TRY(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                &WORKSPACE_BYTES, sizeof WORKSPACE_BYTES));
    p.a_data = a.data;
    p.b_data = b.data;
    p.d_data = d;
    cublasStatus_t status = lt.cublasLtMatmulAlgoGetHeuristic(handle, p.desc, p.a, p.b, p.d, p.d, preference,
                                                              MOST_ALGORITHMS, p.algorithms, &p.count);
    if (status != CUBLAS_STATUS_SUCCESS) p.count = 0;
    LT_TRY(cublasLtMatmulPreferenceDestroy(preference));
    return p;
}

static void destroy(const product &p)
{
    LT_TRY(cublasLtMatmulDescDestroy(p.desc));
    for (cublasLtMatrixLayout_t layout : { p.a, p.b, p.d }) LT_TRY(cublasLtMatrixLayoutDestroy(layout));
}

static cublasStatus_t run(const product &p, int algorithm)
{
    const float one = 1.0f, zero = 0.0f;
    return lt.cublasLtMatmul(handle, p.desc, &one, p.a_data, p.a, p.b_data, p.b, &zero, p.d_data, p.d, p.d_data, p.d,
                             &p.algorithms[algorithm].algo, workspace, WORKSPACE_BYTES, stream);
}

#endif
