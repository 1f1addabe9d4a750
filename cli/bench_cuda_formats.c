/* bench_cuda_formats.c - cases of the operators between number formats: quantise, dequantise, transpose, and SwiGLU,
 * which quantises what it computes. See bench_cuda.h. */
#include "bench_cuda.h"

GPU_RUN(quantize)
GPU_RUN(dequantize)
GPU_RUN(transpose)
GPU_RUN(swiglu)
GPU_RUN(swiglu_backward)

/* ---- Quantise, dequantise, transpose -------------------------------------------------------- */

static void prepare_quantize(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    fp8flow_quantize_args args = { .x = gpu_values(f, &bench_bf16, s->rows, s->cols) };
    args.rows = gpu_tensor(f, &bench_row128, s->rows, s->cols, 0);
    f->args.quantize = args;
}

static void prepare_quantize_weight(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    int64_t rows = s->groups * s->rows;
    fp8flow_quantize_args args = { .x = gpu_values(f, &bench_bf16, rows, s->cols) };
    args.rows = gpu_tensor(f, &bench_tile_rows, rows, s->cols, s->rows);
    args.columns = gpu_tensor(f, &bench_tile_columns, rows, s->cols, s->rows);
    f->args.quantize = args;
}

static void prepare_dequantize(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    fp8flow_dequantize_args args = { .x = gpu_codes(f, s->rows, s->cols) };
    args.y = gpu_tensor(f, &bench_bf16, s->rows, s->cols, 0);
    f->args.dequantize = args;
}

static void prepare_transpose(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    gpu_group(f, s->rows);
    fp8flow_transpose_args args = { .x = gpu_codes(f, s->rows, s->cols), .groups = &f->groups };
    args.y = gpu_tensor(f, &bench_tile_columns, s->rows, s->cols, 0);
    f->args.transpose = args;
}

/* ---- SwiGLU: shape->cols is the width of an expert ------------------------------------------ */

static void prepare_swiglu(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    gpu_group(f, s->rows);
    fp8flow_swiglu_args args = { .h = gpu_values(f, &bench_bf16, s->rows, 2 * s->cols), .groups = &f->groups };
    args.gate = gpu_floats(f, s->rows, 1);
    args.rows = gpu_tensor(f, &bench_row128, s->rows, s->cols, 0);
    f->args.swiglu = args;
}

static void prepare_swiglu_both(gpu_fixture *f)
{
    prepare_swiglu(f);
    f->args.swiglu.columns = gpu_tensor(f, &bench_tile_columns, f->shape->rows, f->shape->cols, 0);
}

static void prepare_swiglu_backward(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    gpu_group(f, s->rows);
    fp8flow_swiglu_backward_args args = { .h = gpu_values(f, &bench_bf16, s->rows, 2 * s->cols), .groups = &f->groups };
    args.gate = gpu_floats(f, s->rows, 1);
    args.dv = gpu_values(f, &bench_bf16, s->rows, s->cols);
    args.rows = gpu_tensor(f, &bench_row128, s->rows, 2 * s->cols, 0);
    args.columns = gpu_tensor(f, &bench_tile_columns, s->rows, 2 * s->cols, 0);
    args.v_columns = gpu_tensor(f, &bench_tile_columns, s->rows, s->cols, 0);
    args.dgate = gpu_array(f, s->rows * (int64_t)sizeof *args.dgate);
    f->args.swiglu_backward = args;
}

/* ---- Table ---------------------------------------------------------------------------------- */

/* Less than 100 MB moved: launching and draining weigh too much for a goal. */
static const gpu_shape small_matrices[] = { { "4096x2048", 4096, 2048, 0, 0 },
                                            { "8192x2048", 8192, 2048, 0, 0 },
                                            { "4096x7168", 4096, 7168, 0, 0 } };
static const gpu_shape large_matrices[] = { { "16384x2048", 16384, 2048, 0, 0 },
                                            { "32768x2048", 32768, 2048, 0, 0 },
                                            { "8192x7168", 8192, 7168, 0, 0 },
                                            { "16384x7168", 16384, 7168, 0, 0 },
                                            { "32768x7168", 32768, 7168, 0, 0 } };
static const gpu_shape weights[] = { { "8x4096x7168", 4096, 7168, 8, 0 } };
static const gpu_shape dequantized[] = { { "32768x2048", 32768, 2048, 0, 0 }, { "32768x7168", 32768, 7168, 0, 0 } };
static const gpu_shape small_groups[] = { { "6144x7168 g8", 6144, 7168, 8, 0 } };
static const gpu_shape large_groups[] = { { "12288x5120 g20", 12288, 5120, 20, 0 },
                                          { "49152x2048 g64", 49152, 2048, 64, 0 },
                                          { "32768x7168 g8", 32768, 7168, 8, 0 } };
static const gpu_shape swiglu_rows[] = { { "24576x1408 g8", 24576, 1408, 8, 0 },
                                         { "32768x2048 g8", 32768, 2048, 8, 0 } };

/* clang-format off */
static const gpu_case cases[] = {
    { "quantize row128", GPU_TAILS, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_quantize, run_quantize, small_matrices) },
    { "quantize row128", GPU_TAILS, { GPU_PERCENT, 90 }, GPU_AT(prepare_quantize, run_quantize, large_matrices) },
    { "quantize tile128 both", GPU_TAILS, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_quantize_weight, run_quantize, weights) },
    { "dequantize row128", GPU_TAILS, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_dequantize, run_dequantize, dequantized) },
    { "transpose row128>tile128", GPU_TAILS, { GPU_PERCENT, 70 },
      GPU_AT(prepare_transpose, run_transpose, small_groups) },
    { "transpose row128>tile128", GPU_TAILS, { GPU_PERCENT, 85 },
      GPU_AT(prepare_transpose, run_transpose, large_groups) },
    { "swiglu row128", GPU_TAILS, { GPU_PERCENT, 92 }, GPU_AT(prepare_swiglu, run_swiglu, swiglu_rows) },
    { "swiglu row128+tile128", GPU_TAILS, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_swiglu_both, run_swiglu, swiglu_rows) },
    { "swiglu_backward row128+tile128", GPU_TAILS, { GPU_PERCENT, 85 },
      GPU_AT(prepare_swiglu_backward, run_swiglu_backward, swiglu_rows) },
};
/* clang-format on */

const gpu_cases gpu_format_cases = { cases, (int64_t)(sizeof cases / sizeof *cases) };
