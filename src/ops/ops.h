/* ops.h - the list of operators, the table of a backend, the context. Contracts: fp8flow_ops.h,
 * fp8flow_ops_ranks.h.
 *
 * Each operator has one file <op>.c with its public entry (checks the contract, then F8_RUN) and its
 * reference f8_ref_<op>, and where it pays a neighbour <op>_avx2.c with f8_avx2_<op>, and <op>.cu with f8_cuda_<op>.
 * Implementations assume the contract. A backend is a table of functions: the reference table is complete
 * by construction, the CPU table is a copy of it with overrides (ops_cpu.c), ops_cuda.c has the CUDA table.
 *
 * This header is read by C and by CUDA C++.
 */
#ifndef F8_OPS_OPS_H
#define F8_OPS_OPS_H

#include "base/arena.h"
#include "base/status.h"
#include "base/tensor.h"
#include "device/device.h"
#include "fp8flow_ops_ranks.h"

/* clang-format off */
#define F8_OPS(X)                                                                              \
    X(quantize) X(dequantize) X(transpose)                                                     \
    X(permute_plan) X(permute) X(unpermute)                                                    \
    X(rank_destinations) X(rank_routing) X(rank_gates)                                         \
    X(swiglu) X(swiglu_backward)                                                               \
    X(router) X(router_sum) X(router_loss) X(router_backward)                                  \
    X(router_bias_update) X(add_counts)                                                        \
    X(gemm) X(add)                                                                             \
    X(rmsnorm) X(rmsnorm_backward) X(rope) X(attention) X(attention_backward)                  \
    X(embed) X(embed_backward) X(cross_entropy)                                                \
    X(sum) X(square_sum) X(clip) X(adamw) X(measure)
/* clang-format on */

typedef enum {
#define F8_X(op) F8_OP_##op,
    F8_OPS(F8_X)
#undef F8_X
        F8_NUM_OPS
} f8_op;

typedef struct {
    const char *name;
#define F8_X(op) fp8flow_status (*op)(fp8flow_context *, const fp8flow_##op##_args *);
    F8_OPS(F8_X)
#undef F8_X
} f8_ops;

#ifdef __cplusplus
extern "C" {
#endif

#define F8_X(op) fp8flow_status f8_ref_##op(fp8flow_context *c, const fp8flow_##op##_args *a);
F8_OPS(F8_X)
#undef F8_X

/* Declared for every operator, defined for those that ops_cpu.c and ops_cuda.c list. */
#define F8_X(op)                                                                   \
    fp8flow_status f8_avx2_##op(fp8flow_context *c, const fp8flow_##op##_args *a); \
    fp8flow_status f8_blas_##op(fp8flow_context *c, const fp8flow_##op##_args *a); \
    fp8flow_status f8_cuda_##op(fp8flow_context *c, const fp8flow_##op##_args *a);
F8_OPS(F8_X)
#undef F8_X

/* Reference table; CPU table for this processor (ops_cpu.c). */
extern const f8_ops f8_ops_reference;
const f8_ops *f8_ops_cpu(void);

/* CUDA table (ops_cuda.c); NULL in a build without CUDA (ops_nocuda.c). */
const f8_ops *f8_ops_cuda(void);

/* 1 if this processor has AVX2, FMA and F16C. */
int f8_cpu_has_avx2(void);

struct fp8flow_context {
    const f8_ops *ops;
    const f8_device *device;
    void *stream; /* of the device; owned unless the caller brought it */
    int owns_stream;
    int recording; /* a graph: calls are not done now, and nobody may wait for them */
    int num_threads;
    char *scratch; /* num_threads * F8_SCRATCH_BYTES; F8_CUDA_SCRATCH_BYTES of device memory under CUDA */
    int64_t calls[F8_NUM_OPS];
    f8_arena workspace;   /* of layers and models; empty between their calls */
    fp8flow_trace *trace; /* that the calls are entered in; NULL: none */
};

/* Make the workspace at least this large. For *_create functions: it must be empty. */
fp8flow_status f8_context_reserve(fp8flow_context *c, size_t bytes);

/* Scratch memory of one thread, 64-byte aligned; contents are lost between operator calls. */
enum { F8_SCRATCH_BYTES = 8 << 20, F8_CUDA_SCRATCH_BYTES = 64 << 20 };
void *f8_scratch(fp8flow_context *c);

/* Whether entry checks may read the arrays of a call. Device memory is checked by the kernels that use it. */
static inline int f8_on_host(const fp8flow_context *c)
{
    return c->device->is_host;
}

/* f8_groups_check, as far as the context's memory can be read. */
fp8flow_status f8_context_check_groups(const fp8flow_context *c, const char *op, const fp8flow_groups *groups,
                                       int64_t capacity, int64_t align);

/* 1 in an operator's OpenMP loops means: too little work to share. `work` is about one simple operation. */
int f8_threads_for(const fp8flow_context *c, int64_t work);

/* "gemm"; static. */
const char *f8_op_name(f8_op op);

/* Enter a call into the context's trace, before and after it (trace.c). stop returns what went wrong first. */
void f8_trace_start(fp8flow_context *c, f8_op op, const void *args);
fp8flow_status f8_trace_stop(fp8flow_context *c, fp8flow_status status);

static inline void f8_before_call(fp8flow_context *c, f8_op op, const void *args)
{
    c->calls[op]++;
    c->device->range_begin(f8_op_name(op));
    if (c->trace) f8_trace_start(c, op, args);
}

static inline fp8flow_status f8_after_call(fp8flow_context *c, fp8flow_status status)
{
    c->device->range_end();
    return c->trace ? f8_trace_stop(c, status) : status;
}

/* The configuration of a router alone, for the operators and layers that take one. */
fp8flow_status f8_router_check_config(const char *op, const fp8flow_router_config *config, int64_t num_tokens);

#ifdef __cplusplus
}
#endif

/* Count the call, enter it into the trace if there is one, and run the context's implementation of an operator whose
 * contract has been checked. */
#define F8_RUN(context, op, args) \
    (f8_before_call((context), F8_OP_##op, (args)), f8_after_call((context), (context)->ops->op((context), (args))))

#endif
