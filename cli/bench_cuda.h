/* bench_cuda.h - what the parts of `fp8flow bench --device cuda` share: one case's memory on the GPU, its data, the
 * tables of cases.
 *
 * A case counts the fewest bytes that its operator can move: each input once, each output once. gpu_array and all that
 * is built on it count what they allocate; a case corrects what that gets wrong (arrays that are read and written,
 * capacities that are not filled). docs/SPEED.md says how the time is taken.
 *
 * Functions on a gpu_fixture do nothing once its status is a failure, and return NULL then: a case's prepare need not
 * look, except before it follows a pointer.
 */
#ifndef CLI_BENCH_CUDA_H
#define CLI_BENCH_CUDA_H

#include "bench.h"
#include "nvml.h"

/* ---- Data ----------------------------------------------------------------------------------- */

/* GPU_TAILS: each row times 2^u, u random in -20 .. 20. GPU_BLOCKS: each block of 128 rows times 2^u, u in -4 .. 4, so
 * that scales differ and no block loses numbers to a larger neighbour. */
typedef enum { GPU_NORMAL, GPU_TAILS, GPU_BLOCKS } gpu_data;

/* Normally distributed BF16 numbers, from which every array is filled, and room to prepare a piece of an array. */
typedef struct {
    uint16_t *normal;
    void *stage;
    int32_t num_threads;
} gpu_numbers;

/* 0, or -1: out of memory. */
int gpu_numbers_create(gpu_numbers *numbers, int32_t num_threads);
void gpu_numbers_destroy(gpu_numbers *numbers);

/* ---- One case ------------------------------------------------------------------------------- */

/* rows: tokens, or rows of each group where a case says so. groups: experts. Unused fields are 0. */
typedef struct {
    const char *name;
    int64_t rows, cols, groups, top_k;
} gpu_shape;

enum { GPU_MAX_BLOCKS = 32, GPU_MAX_TENSORS = 8, GPU_MAX_EXPERTS = 256 };

typedef struct {
    fp8flow_context *context;
    const gpu_numbers *numbers;
    const gpu_shape *shape;
    gpu_data data;
    fp8flow_status status; /* of the first function below that failed */
    double bytes;
    int64_t padded_rows; /* P of the plan, known here because the routing is drawn here */
    int64_t num_blocks, num_tensors;
    void *blocks[GPU_MAX_BLOCKS];
    fp8flow_tensor tensors[GPU_MAX_TENSORS];
    fp8flow_plan plan;
    fp8flow_groups groups;
    fp8flow_router_config router;
    fp8flow_router_load load;
    struct {
        fp8flow_permute_plan_args permute_plan;
        union {
            fp8flow_quantize_args quantize;
            fp8flow_dequantize_args dequantize;
            fp8flow_transpose_args transpose;
            fp8flow_permute_args permute;
            fp8flow_unpermute_args unpermute;
            fp8flow_swiglu_args swiglu;
            fp8flow_swiglu_backward_args swiglu_backward;
            fp8flow_router_args router;
            fp8flow_router_backward_args router_backward;
            fp8flow_add_args add;
            fp8flow_rmsnorm_args rmsnorm;
            fp8flow_rmsnorm_backward_args rmsnorm_backward;
            fp8flow_rope_args rope;
            fp8flow_embed_args embed;
            fp8flow_embed_backward_args embed_backward;
            fp8flow_cross_entropy_args cross_entropy;
            fp8flow_square_sum_args square_sum;
            fp8flow_adamw_args adamw;
            fp8flow_gemm_args gemm;
            struct {
                void *to, *from;
                size_t bytes;
            } copy;
        };
    } args;
} gpu_fixture;

/* Memory of the GPU, zeros; or a copy of host memory. */
void *gpu_array(gpu_fixture *f, int64_t bytes);
void *gpu_upload(gpu_fixture *f, const void *host, int64_t bytes);

/* Random FP32 numbers [rows, cols]. */
float *gpu_floats(gpu_fixture *f, int64_t rows, int64_t cols);

/* A tensor of zeros; of random numbers (F32, BF16); of codes and scales of random numbers, by quantize: FP8 in any
 * format, by f->groups if there are any and it is no weight; ROW128. */
fp8flow_tensor *gpu_tensor(gpu_fixture *f, const bench_format *format, int64_t rows, int64_t cols, int64_t group_rows);
fp8flow_tensor *gpu_values(gpu_fixture *f, const bench_format *format, int64_t rows, int64_t cols);
fp8flow_tensor *gpu_quantized(gpu_fixture *f, const bench_format *format, int64_t rows, int64_t cols,
                              int64_t group_rows);
fp8flow_tensor *gpu_codes(gpu_fixture *f, int64_t rows, int64_t cols);

/* f->groups: `rows` rows, a multiple of 128, in shape->groups groups of whole row blocks, as even as they can be. */
void gpu_group(gpu_fixture *f, int64_t rows);

/* f->plan, f->padded_rows and the arguments of permute_plan: shape->rows tokens choose shape->top_k of shape->groups
 * experts, all choices equally likely. The plan's arrays are not filled. */
void gpu_route(gpu_fixture *f);

/* Random integers in [0, limit); *num_distinct of them differ. */
int32_t *gpu_integers(gpu_fixture *f, int64_t count, int64_t limit, int64_t *num_distinct);

void gpu_release(gpu_fixture *f);

/* ---- Measuring ------------------------------------------------------------------------------ */

typedef struct gpu_record gpu_record;

typedef struct {
    bench *b;
    double seconds; /* of a sustained loop; 0: none */
    fp8flow_device_info device;
    gpu_numbers numbers;
    nvml_meter meter;
    fp8flow_event *start, *stop, *other_stop;
    void *flush, *flush_sum;
    double *samples; /* [repeats] */
    double copy_tb_per_s;
    int64_t num_goals, num_missed;
    gpu_record *missed;
} gpu_bench;

/* A context on the first GPU, what is needed to measure there, and the speed of a copy. Exit code, the error has been
 * printed. close in every case; the context stays the bench's. */
int gpu_open(gpu_bench *g);
void gpu_close(gpu_bench *g);

/* Read a buffer several times the L2 cache, so that nothing else is in it: now, or in a graph. */
fp8flow_status gpu_flush(gpu_bench *g);

typedef fp8flow_status (*gpu_run)(gpu_fixture *f);

/* Microseconds of `run` with a cold cache: replays of a graph. */
fp8flow_status gpu_measure(gpu_bench *g, gpu_run run, gpu_fixture *f, timing *time);

typedef struct {
    double us;              /* of one run; 0: not measured */
    double megahertz, watt; /* while the loop ran; 0: unknown */
} gpu_sustained;

/* Run again and again for `seconds`, of which the second half counts. us: about how long one run takes. */
fp8flow_status gpu_sustain(gpu_bench *g, gpu_run run, gpu_fixture *f, double seconds, double us, gpu_sustained *result);

/* The same for a graph of `runs` runs. */
fp8flow_status gpu_replay(gpu_bench *g, fp8flow_graph *graph, int64_t runs, double seconds, gpu_sustained *result);

/* The lines that say what was measured and how, before the first row; the header of the JSON list. */
void gpu_begin_output(gpu_bench *g);

/* ---- Cases ---------------------------------------------------------------------------------- */

typedef enum { GPU_NO_GOAL, GPU_PERCENT, GPU_MICROSECONDS } gpu_unit;

/* At least so many percent of the copy; at most so many microseconds. */
typedef struct {
    gpu_unit unit;
    double value;
} gpu_goal;

/* One operator, or a sequence of them, at several shapes; with GPU_TAILS each shape runs with both kinds of data. */
typedef struct {
    const char *name;
    gpu_data data;
    gpu_goal goal;
    void (*prepare)(gpu_fixture *f);
    gpu_run run;
    const gpu_shape *shapes;
    int64_t num_shapes;
} gpu_case;

typedef struct {
    const gpu_case *cases;
    int64_t num_cases;
} gpu_cases;

extern const gpu_cases gpu_format_cases, gpu_moe_cases, gpu_decoder_cases;

/* The grouped products, which have a table of their own (bench_cuda_gemm.c). Exit code. */
int gpu_run_products(gpu_bench *g);

/* The part of a case's table row behind its goal. */
#define GPU_AT(prepare, run, shapes) prepare, run, (shapes), (int64_t)(sizeof(shapes) / sizeof *(shapes))

/* The function run_<op> of a case that is one call. */
#define GPU_RUN(op)                                   \
    static fp8flow_status run_##op(gpu_fixture *f)    \
    {                                                 \
        return fp8flow_##op(f->context, &f->args.op); \
    }

#endif
