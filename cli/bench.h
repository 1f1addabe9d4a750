/* bench.h - what the parts of `fp8flow bench` share: shapes, one case's memory, records.
 *
 * A case counts the bytes of every tensor and array it reads or writes once (bench_tensor, bench_array), as an
 * operator without cache reuse beyond its own pass would move them; weights of products count too. Its
 * yardstick is memcpy over the same number of bytes moved (n copied bytes move 2n), measured beside it with
 * the same threads on buffers larger than the last-level cache, or sgemm on the same matrices.
 */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

#include <jansson.h>

#include "cli.h"
#include "layer.h"
#include "timing.h"

/* Experts 0: a plain [tokens, hidden] matrix, for operators that know no experts. tokens * top_k / experts is a
 * multiple of 128, so that no figure contains padding. */
typedef struct {
    const char *name;
    layer_shape size;
} bench_shape;

typedef struct {
    fp8flow_context *context;
    fp8flow_backend backend;
    int32_t num_threads;
    int64_t repeats;
    const char *filter;        /* "": everything */
    json_t *records;           /* NULL: a text table */
    int64_t num_records;       /* emitted */
    char *copy_from, *copy_to; /* of memcpy, copy_bytes each */
    int64_t copy_bytes;
} bench;

typedef struct {
    const char *name, *shape;
    timing time;
    double bytes, flops;   /* 0: not counted */
    const char *reference; /* "memcpy", "sgemm" or NULL */
    double reference_ms;
    double bf16_ms; /* the same layer in bf16; 0: not a layer */
} bench_record;

/* Whether the filter selects a case: each of its words occurs in "name shape". */
int bench_selects(const bench *b, const char *name, const char *shape);

/* Print the row, or append it to the JSON list. */
void bench_emit(bench *b, const bench_record *record);

/* memcpy of the whole copy buffer, with the bench's threads. `state` is the bench. */
fp8flow_status bench_copy(void *state);

/* ---- One case ------------------------------------------------------------------------------- */

typedef struct {
    fp8flow_dtype dtype;
    fp8flow_scaling scaling;
    fp8flow_layout layout;
} bench_format;

enum { BENCH_MAX_BLOCKS = 48, BENCH_MAX_TENSORS = 12 };

/* Memory and arguments of a prepared case. */
typedef struct {
    fp8flow_context *context;
    layer_shape size;
    double bytes, flops;
    int32_t is_out_of_memory; /* set by bench_array and bench_tensor; checked once, before running */
    int64_t num_blocks, num_tensors;
    void *blocks[BENCH_MAX_BLOCKS];
    fp8flow_tensor tensors[BENCH_MAX_TENSORS];
    fp8flow_plan plan;
    fp8flow_groups groups;
    fp8flow_router_config router;
    fp8flow_router_load load;
    double result[4];
    union {
        fp8flow_quantize_args quantize;
        fp8flow_dequantize_args dequantize;
        fp8flow_transpose_args transpose;
        fp8flow_permute_plan_args permute_plan;
        fp8flow_permute_args permute;
        fp8flow_unpermute_args unpermute;
        fp8flow_swiglu_args swiglu;
        fp8flow_swiglu_backward_args swiglu_backward;
        fp8flow_router_args router;
        fp8flow_router_loss_args router_loss;
        fp8flow_router_backward_args router_backward;
        fp8flow_router_bias_update_args router_bias_update;
        fp8flow_gemm_args gemm;
        fp8flow_add_args add;
        fp8flow_rmsnorm_args rmsnorm;
        fp8flow_rmsnorm_backward_args rmsnorm_backward;
        fp8flow_rope_args rope;
        fp8flow_attention_args attention;
        fp8flow_attention_backward_args attention_backward;
        fp8flow_embed_args embed;
        fp8flow_embed_backward_args embed_backward;
        fp8flow_cross_entropy_args cross_entropy;
        fp8flow_square_sum_args square_sum;
        fp8flow_adamw_args adamw;
        fp8flow_measure_args measure;
    } args;
} bench_fixture;

/* How an array is filled. */
typedef enum { BENCH_ZERO, BENCH_F32, BENCH_BF16, BENCH_FP8, BENCH_SCALE } bench_fill;

/* An array of the case, filled, its bytes counted as traffic. NULL when memory is short. */
void *bench_array(bench_fixture *f, int64_t count, bench_fill fill);
int32_t *bench_integers(bench_fixture *f, int64_t count, int64_t limit); /* random, in [0, limit) */

/* A tensor of the case. format NULL: returns NULL, for forms that a variant leaves out. */
fp8flow_tensor *bench_tensor(bench_fixture *f, const bench_format *format, int64_t rows, int64_t cols,
                             int64_t group_rows);

/* Routing [T, k] that gives every expert the same number of tokens, in random order. Sets plan and groups too. */
int32_t *bench_routing(bench_fixture *f);

void bench_release(bench_fixture *f);

/* ---- Cases ---------------------------------------------------------------------------------- */

typedef enum { BENCH_PLAIN, BENCH_EXPERTS } bench_needs;

typedef struct {
    const char *name;
    bench_needs needs;
    void (*prepare)(bench_fixture *f, const bench_format *const formats[3]);
    fp8flow_status (*run)(bench_fixture *f);
    const bench_format *formats[3];
} bench_case;

extern const bench_format bench_f32, bench_bf16, bench_row128, bench_tile_rows, bench_tile_columns, bench_col128,
    bench_tensor_rows, bench_tensor_columns;

/* Run all selected cases. Errors have been printed. 0, or -1. */
int bench_run_cases(bench *b, const bench_shape *shape, const bench_case *cases, int64_t num_cases);

/* The parts; each returns 0, or -1 with the error printed. */
int bench_run_moe_operators(bench *b, const bench_shape *shape);
int bench_run_decoder_operators(bench *b, const bench_shape *shape);
int bench_run_products(bench *b, const bench_shape *shape);
int bench_run_layers(bench *b, const bench_shape *shape);

/* All cases of a GPU (bench_cuda.c), beside a copy on that GPU; products also in loops of `seconds`. Exit code. */
int bench_run_cuda(bench *b, double seconds);

/* "fp8flow bench: NAME at SHAPE: last error". Returns -1. */
int bench_fail(const char *name, const char *shape, fp8flow_status status);

#endif
