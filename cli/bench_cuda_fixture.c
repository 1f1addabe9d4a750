/* bench_cuda_fixture.c - memory and data of a case on the GPU. See bench_cuda.h.
 *
 * Random numbers are drawn once, on the host. An array gets a piece of them, prepared on the host (other start, rows
 * scaled), and repeats that piece: the repeats are copied on the GPU, so that gigabytes take no time.
 */
#include "bench_cuda.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"

/* ---- Numbers -------------------------------------------------------------------------------- */

enum { BLOCK = 1 << 24, CHUNK = 1 << 16 };

static uint16_t bf16_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* Box and Muller. The tails matter here, so the sum of random.h will not do: among 128 of its numbers the largest never
 * needs another scale. */
static void draw_normal(uint16_t *numbers, int64_t count, uint64_t seed)
{
    random_source source = { seed };
    for (int64_t i = 0; i < count; i += 2) {
        uint64_t bits = random_bits(&source);
        float radius = sqrtf(-2.0f * logf((float)((bits >> 40) + 1) * 0x1p-24f));
        float angle = (float)(bits & 0xFFFFFF) * (6.2831853f * 0x1p-24f);
        numbers[i] = bf16_of(radius * cosf(angle));
        numbers[i + 1] = bf16_of(radius * sinf(angle));
    }
}

int gpu_numbers_create(gpu_numbers *numbers, int32_t num_threads)
{
    *numbers = (gpu_numbers){ malloc(BLOCK * sizeof(uint16_t)), malloc(BLOCK * sizeof(float)), num_threads };
    if (!numbers->normal || !numbers->stage) return -1;
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int64_t i = 0; i < BLOCK / CHUNK; i++) draw_normal(numbers->normal + i * CHUNK, CHUNK, (uint64_t)i);
    return 0;
}

void gpu_numbers_destroy(gpu_numbers *numbers)
{
    free(numbers->normal);
    free(numbers->stage);
}

/* bits * 2^shift: exponents of the block and shifts are far from both ends of the format. */
static uint16_t scaled(uint16_t bits, int32_t shift)
{
    return bits & 0x7FFF ? (uint16_t)(bits + shift * 128) : bits;
}

static int32_t line_shift(gpu_data data, uint64_t start, int64_t row)
{
    static const int32_t largest[] = { [GPU_NORMAL] = 0, [GPU_TAILS] = 20, [GPU_BLOCKS] = 4 };
    random_source source = { start + (uint64_t)(data == GPU_BLOCKS ? row / 128 : row) };
    return (int32_t)random_below(&source, 2 * largest[data] + 1) - largest[data];
}

/* Lines of numbers from `start` of the block on; what is behind the leading 16 bits of an FP32 number are the bits of
 * its neighbour. */
static void stage_lines(const gpu_fixture *f, fp8flow_dtype dtype, int64_t rows, int64_t cols)
{
    const uint16_t *normal = f->numbers->normal;
    uint64_t start = (uint64_t)f->num_blocks * 1234577u;
    uint16_t *half = f->numbers->stage;
    uint32_t *whole = f->numbers->stage;
#pragma omp parallel for schedule(static) num_threads(f->numbers->num_threads)
    for (int64_t r = 0; r < rows; r++) {
        int32_t shift = line_shift(f->data, start, r);
        for (int64_t i = r * cols; i < (r + 1) * cols; i++) {
            uint64_t from = start + (uint64_t)i;
            uint16_t bits = scaled(normal[from % BLOCK], shift);
            if (dtype == FP8FLOW_BF16) half[i] = bits;
            else whole[i] = (uint32_t)bits << 16 | normal[(from + 1) % BLOCK];
        }
    }
}

static void fill_lines(gpu_fixture *f, char *memory, fp8flow_dtype dtype, int64_t rows, int64_t cols)
{
    int64_t most = BLOCK / cols;
    if (f->data == GPU_BLOCKS) most = most / 128 * 128; /* repeats begin with a block */
    int64_t staged = rows < most ? rows : most;
    size_t width = dtype == FP8FLOW_BF16 ? sizeof(uint16_t) : sizeof(float), line = (size_t)cols * width;
    stage_lines(f, dtype, staged, cols);
    f->status = fp8flow_memory_copy(f->context, memory, f->numbers->stage, (size_t)staged * line);
    for (int64_t done = staged, more; f->status == FP8FLOW_OK && done < rows; done += more) {
        more = done < rows - done ? done : rows - done;
        f->status = fp8flow_memory_copy(f->context, memory + (size_t)done * line, memory, (size_t)more * line);
    }
}

/* ---- Arrays and tensors --------------------------------------------------------------------- */

void *gpu_array(gpu_fixture *f, int64_t bytes)
{
    void *memory = NULL;
    if (f->status == FP8FLOW_OK && f->num_blocks == GPU_MAX_BLOCKS) f->status = FP8FLOW_ENOMEM;
    if (f->status == FP8FLOW_OK) f->status = fp8flow_memory_alloc(f->context, (size_t)bytes, &memory);
    if (f->status != FP8FLOW_OK) return NULL;
    f->blocks[f->num_blocks++] = memory;
    f->bytes += (double)bytes;
    f->status = fp8flow_memory_fill(f->context, memory, 0, (size_t)bytes);
    return memory;
}

void *gpu_upload(gpu_fixture *f, const void *host, int64_t bytes)
{
    void *memory = gpu_array(f, bytes);
    if (f->status == FP8FLOW_OK) f->status = fp8flow_memory_copy(f->context, memory, host, (size_t)bytes);
    return memory;
}

float *gpu_floats(gpu_fixture *f, int64_t rows, int64_t cols)
{
    float *memory = gpu_array(f, rows * cols * (int64_t)sizeof *memory);
    if (f->status == FP8FLOW_OK) fill_lines(f, (char *)memory, FP8FLOW_F32, rows, cols);
    return memory;
}

fp8flow_tensor *gpu_tensor(gpu_fixture *f, const bench_format *format, int64_t rows, int64_t cols, int64_t group_rows)
{
    if (f->status == FP8FLOW_OK && f->num_tensors == GPU_MAX_TENSORS) f->status = FP8FLOW_ENOMEM;
    if (f->status != FP8FLOW_OK) return NULL;
    fp8flow_tensor *t = &f->tensors[f->num_tensors++];
    *t = (fp8flow_tensor){ .rows = rows, .cols = cols, .group_rows = group_rows };
    t->dtype = format->dtype;
    t->scaling = format->scaling;
    t->layout = format->layout;
    t->stride = format->layout == FP8FLOW_ROWS ? cols : group_rows > 0 ? group_rows : rows;
    t->data = gpu_array(f, fp8flow_tensor_data_bytes(t));
    if (t->scaling != FP8FLOW_UNSCALED)
        t->scale = gpu_array(f, fp8flow_tensor_scale_bytes(t, f->groups.count > 0 ? f->groups.count : 1));
    return f->status == FP8FLOW_OK ? t : NULL;
}

fp8flow_tensor *gpu_values(gpu_fixture *f, const bench_format *format, int64_t rows, int64_t cols)
{
    fp8flow_tensor *t = gpu_tensor(f, format, rows, cols, 0);
    if (t) fill_lines(f, t->data, t->dtype, rows, cols);
    return t;
}

fp8flow_tensor *gpu_quantized(gpu_fixture *f, const bench_format *format, int64_t rows, int64_t cols,
                              int64_t group_rows)
{
    fp8flow_tensor *codes = gpu_tensor(f, format, rows, cols, group_rows);
    fp8flow_tensor x = { .rows = rows, .cols = cols, .stride = cols, .dtype = FP8FLOW_BF16 };
    if (codes) f->status = fp8flow_memory_alloc(f->context, (size_t)fp8flow_tensor_data_bytes(&x), &x.data);
    if (f->status != FP8FLOW_OK) return NULL;
    fill_lines(f, x.data, FP8FLOW_BF16, rows, cols);
    fp8flow_quantize_args args = { .x = &x };
    if (format->layout == FP8FLOW_ROWS) args.rows = codes;
    else args.columns = codes;
    if (f->groups.count > 0 && group_rows == 0) args.groups = &f->groups;
    if (f->status == FP8FLOW_OK) f->status = fp8flow_quantize(f->context, &args);
    if (f->status == FP8FLOW_OK) f->status = fp8flow_synchronize(f->context);
    fp8flow_memory_free(f->context, x.data);
    return codes;
}

fp8flow_tensor *gpu_codes(gpu_fixture *f, int64_t rows, int64_t cols)
{
    return gpu_quantized(f, &bench_row128, rows, cols, 0);
}

void gpu_release(gpu_fixture *f)
{
    for (int64_t i = 0; i < f->num_blocks; i++) fp8flow_memory_free(f->context, f->blocks[i]);
    f->num_blocks = 0;
}

/* ---- Groups and routing --------------------------------------------------------------------- */

void gpu_group(gpu_fixture *f, int64_t rows)
{
    int32_t offset[GPU_MAX_EXPERTS + 1] = { 0 }, used[GPU_MAX_EXPERTS];
    int64_t count = f->shape->groups;
    for (int64_t g = 0; g < count; g++) {
        offset[g + 1] = (int32_t)(rows / 128 * (g + 1) / count * 128);
        used[g] = offset[g + 1] - offset[g];
    }
    f->groups.count = count;
    f->groups.offset = gpu_upload(f, offset, (count + 1) * (int64_t)sizeof *offset);
    f->groups.rows = gpu_upload(f, used, count * (int64_t)sizeof *used);
}

/* The first k of a shuffle of all experts. Returns P. */
static int64_t draw_experts(const gpu_shape *shape, int32_t *expert)
{
    int32_t order[GPU_MAX_EXPERTS] = { 0 };
    int64_t used[GPU_MAX_EXPERTS] = { 0 }, padded = 0;
    random_source source = { 11 };
    for (int32_t e = 0; e < shape->groups; e++) order[e] = e;
    for (int64_t t = 0; t < shape->rows; t++)
        for (int64_t slot = 0; slot < shape->top_k; slot++) {
            int64_t other = slot + random_below(&source, shape->groups - slot);
            int32_t chosen = order[other];
            order[other] = order[slot];
            order[slot] = chosen;
            expert[t * shape->top_k + slot] = chosen;
            used[chosen]++;
        }
    for (int64_t e = 0; e < shape->groups; e++) padded += (used[e] + 127) / 128 * 128;
    return padded;
}

void gpu_route(gpu_fixture *f)
{
    const gpu_shape *shape = f->shape;
    int64_t copies = shape->rows * shape->top_k, word = sizeof(int32_t);
    int64_t capacity = (copies + shape->groups * 127) / 128 * 128;
    int32_t *expert = malloc((size_t)(copies * word));
    if (f->status == FP8FLOW_OK && !expert) f->status = FP8FLOW_ENOMEM;
    if (f->status != FP8FLOW_OK) {
        free(expert);
        return;
    }
    f->padded_rows = draw_experts(shape, expert);
    f->plan = (fp8flow_plan){ .num_tokens = shape->rows,
                              .top_k = shape->top_k,
                              .num_experts = shape->groups,
                              .align = 128,
                              .capacity = capacity };
    f->plan.rows = gpu_array(f, shape->groups * word);
    f->plan.offset = gpu_array(f, (shape->groups + 1) * word);
    f->plan.row_of = gpu_array(f, copies * word);
    f->plan.source = gpu_array(f, capacity * word);
    f->args.permute_plan = (fp8flow_permute_plan_args){ gpu_upload(f, expert, copies * word), &f->plan };
    free(expert);
}

int32_t *gpu_integers(gpu_fixture *f, int64_t count, int64_t limit, int64_t *num_distinct)
{
    int32_t *values = malloc((size_t)count * sizeof *values);
    char *seen = calloc((size_t)limit, 1);
    int32_t *memory = NULL;
    random_source source = { 7 };
    *num_distinct = 0;
    if (f->status == FP8FLOW_OK && (!values || !seen)) f->status = FP8FLOW_ENOMEM;
    for (int64_t i = 0; f->status == FP8FLOW_OK && i < count; i++) {
        values[i] = (int32_t)random_below(&source, limit);
        *num_distinct += !seen[values[i]];
        seen[values[i]] = 1;
    }
    if (f->status == FP8FLOW_OK) memory = gpu_upload(f, values, count * (int64_t)sizeof *values);
    free(values);
    free(seen);
    return memory;
}
