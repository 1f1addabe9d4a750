/* bench_cuda_decoder.c - cases of the operators around the MoE layer: norms, vocabulary, optimiser.
 * See bench_cuda.h. */
#include "bench_cuda.h"

GPU_RUN(add)
GPU_RUN(rmsnorm)
GPU_RUN(rmsnorm_backward)
GPU_RUN(rope)
GPU_RUN(embed)
GPU_RUN(embed_backward)
GPU_RUN(cross_entropy)
GPU_RUN(square_sum)
GPU_RUN(adamw)

static fp8flow_tensor *random_matrix(gpu_fixture *f)
{
    return gpu_values(f, &bench_bf16, f->shape->rows, f->shape->cols);
}

static fp8flow_tensor *empty_matrix(gpu_fixture *f)
{
    return gpu_tensor(f, &bench_bf16, f->shape->rows, f->shape->cols, 0);
}

/* ---- Rows ----------------------------------------------------------------------------------- */

static void prepare_add(gpu_fixture *f)
{
    fp8flow_add_args args = { .a = random_matrix(f) };
    args.b = random_matrix(f);
    args.y = empty_matrix(f);
    f->args.add = args;
}

static void prepare_rmsnorm(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    fp8flow_rmsnorm_args args = { .x = random_matrix(f), .width = s->cols, .eps = 1e-6f };
    args.weight = gpu_floats(f, 1, s->cols);
    args.y = empty_matrix(f);
    args.rstd = gpu_array(f, s->rows * (int64_t)sizeof *args.rstd);
    f->args.rmsnorm = args;
}

static void prepare_rmsnorm_backward(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    fp8flow_rmsnorm_backward_args args = { .x = random_matrix(f), .width = s->cols };
    args.dy = random_matrix(f);
    args.weight = gpu_floats(f, 1, s->cols);
    args.rstd = gpu_floats(f, s->rows, 1);
    args.dx = empty_matrix(f);
    args.dweight = gpu_array(f, s->cols * (int64_t)sizeof *args.dweight);
    f->bytes += 4.0 * (double)s->cols; /* dweight is added to */
    f->args.rmsnorm_backward = args;
}

static void prepare_rope(gpu_fixture *f)
{
    fp8flow_rope_args args = {
        .x = random_matrix(f), .sequence_length = 4096, .head_dim = 128, .theta = 10000.0f, .rotation = FP8FLOW_ROTATE
    };
    f->bytes *= 2; /* in place */
    f->args.rope = args;
}

/* ---- Vocabulary: shape->groups ids ---------------------------------------------------------- */

static void prepare_embed(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    int64_t distinct;
    fp8flow_embed_args args = { .table = gpu_values(f, &bench_bf16, s->groups, s->cols) };
    args.ids = gpu_integers(f, s->rows, s->groups, &distinct);
    args.y = empty_matrix(f);
    f->args.embed = args;
    f->bytes = 4.0 * (double)s->rows + 2.0 * (double)((distinct + s->rows) * s->cols);
}

static void prepare_embed_backward(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    int64_t distinct;
    fp8flow_embed_backward_args args = { .dy = random_matrix(f) };
    args.ids = gpu_integers(f, s->rows, s->groups, &distinct);
    args.dtable = gpu_tensor(f, &bench_f32, s->groups, s->cols, 0);
    f->args.embed_backward = args;
    f->bytes = 4.0 * (double)s->rows + 2.0 * (double)(s->rows * s->cols) + 8.0 * (double)(distinct * s->cols);
}

static void prepare_cross_entropy(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    int64_t distinct;
    fp8flow_cross_entropy_args args = { .logits = gpu_values(f, &bench_f32, s->rows, s->cols), .grad_scale = 1.0f };
    args.gradient = gpu_tensor(f, &bench_bf16, s->rows, s->cols, 0);
    args.target = gpu_integers(f, s->rows, s->cols, &distinct);
    args.loss = gpu_array(f, s->rows * (int64_t)sizeof *args.loss);
    f->args.cross_entropy = args;
}

/* ---- Parameters: groups of rows x cols ------------------------------------------------------ */

static void prepare_square_sum(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    fp8flow_square_sum_args args = { .count = s->groups * s->rows * s->cols };
    args.x = gpu_floats(f, s->groups * s->rows, s->cols);
    args.sum = gpu_array(f, sizeof *args.sum);
    f->args.square_sum = args;
}

static void prepare_adamw(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    int64_t rows = s->groups * s->rows, count = rows * s->cols;
    fp8flow_adamw_args args = {
        .count = count, .lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f, .step = 100
    };
    args.master = gpu_floats(f, rows, s->cols);
    args.m = gpu_array(f, count * (int64_t)sizeof *args.m);
    args.v = gpu_array(f, count * (int64_t)sizeof *args.v);
    f->bytes *= 2; /* these three are read and written */
    args.grad = gpu_floats(f, rows, s->cols);
    args.weight = gpu_array(f, count * (int64_t)sizeof *args.weight);
    f->args.adamw = args;
}

static void prepare_adamw_quantize(gpu_fixture *f)
{
    const gpu_shape *s = f->shape;
    prepare_adamw(f);
    f->args.adamw.rows = gpu_tensor(f, &bench_tile_rows, s->groups * s->rows, s->cols, s->rows);
    f->args.adamw.columns = gpu_tensor(f, &bench_tile_columns, s->groups * s->rows, s->cols, s->rows);
}

/* ---- Table ---------------------------------------------------------------------------------- */

static const gpu_shape matrices[] = { { "16384x2048", 16384, 2048, 0, 0 }, { "16384x7168", 16384, 7168, 0, 0 } };
static const gpu_shape heads[] = { { "16384x2048 d128", 16384, 2048, 0, 0 } };
static const gpu_shape tokens[] = { { "16384x2048 of 102400", 16384, 2048, 102400, 0 } };
static const gpu_shape logits[] = { { "8192x102400", 8192, 102400, 0, 0 } };
static const gpu_shape parameters[] = { { "12x4096x7168", 4096, 7168, 12, 0 } }; /* 352 million */

/* clang-format off */
static const gpu_case cases[] = {
    { "add", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_add, run_add, matrices) },
    { "rmsnorm", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_rmsnorm, run_rmsnorm, matrices) },
    { "rmsnorm_backward", GPU_NORMAL, { GPU_NO_GOAL, 0 },
      GPU_AT(prepare_rmsnorm_backward, run_rmsnorm_backward, matrices) },
    { "rope", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_rope, run_rope, heads) },
    { "embed", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_embed, run_embed, tokens) },
    { "embed_backward", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_embed_backward, run_embed_backward, tokens) },
    { "cross_entropy", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_cross_entropy, run_cross_entropy, logits) },
    { "square_sum", GPU_NORMAL, { GPU_NO_GOAL, 0 }, GPU_AT(prepare_square_sum, run_square_sum, parameters) },
    { "adamw", GPU_NORMAL, { GPU_PERCENT, 88 }, GPU_AT(prepare_adamw, run_adamw, parameters) },
    { "adamw+quantize tile128 both", GPU_TAILS, { GPU_PERCENT, 88 },
      GPU_AT(prepare_adamw_quantize, run_adamw, parameters) },
};
/* clang-format on */

const gpu_cases gpu_decoder_cases = { cases, (int64_t)(sizeof cases / sizeof *cases) };
