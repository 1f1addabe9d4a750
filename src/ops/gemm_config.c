/* gemm_config.c - see gemm_config.h: what the tensor cores can take, and with which tiles. */
#include "ops/gemm_config.h"

#include <stdio.h>

/* Lines of whole 16-byte pieces are what the copy engine wants, and what a store of a short last tile relies on. */
enum { MAP_ALIGNMENT = 16, STEP = 16 };

static int is_mappable(const fp8flow_tensor *t)
{
    uint64_t stride = (uint64_t)t->stride * f8_dtype_bytes(t->dtype);
    return ((uintptr_t)t->data | stride) % MAP_ALIGNMENT == 0;
}

/* Scale bytes of rows are read as words. */
static int has_whole_words(const fp8flow_tensor *t)
{
    if (t->scaling != FP8FLOW_ROW128) return 1;
    return (uintptr_t)t->scale % 4 == 0 && t->rows % 4 * (f8_ceil_div(t->cols, 128) % 4) % 4 == 0;
}

f8_gemm_desc f8_gemm_describe(const fp8flow_gemm_args *x)
{
    int wgrad = x->product == FP8FLOW_WGRAD;
    return (f8_gemm_desc){ .product = x->product,
                           .write = x->write,
                           .a_dtype = x->a->dtype,
                           .b_dtype = x->b->dtype,
                           .c_dtype = x->c->dtype,
                           .scaling = x->a->scaling,
                           .experts = x->groups ? x->groups->count : 1,
                           .rows = x->a->rows,
                           .outer = wgrad ? x->a->cols : x->c->cols,
                           .inner = wgrad ? x->b->cols : x->a->cols,
                           .grouped = x->groups != NULL,
                           .mappable =
                               is_mappable(x->a) && is_mappable(x->b) && is_mappable(x->c) && has_whole_words(x->a) };
}

/* Coordinates of maps are int32; the experts of a weight lie one behind the other. */
static int fits_maps(const f8_gemm_desc *d)
{
    const int64_t limit = INT32_MAX;
    if (d->experts <= 0 || d->rows <= 0 || d->outer <= 0 || d->inner <= 0) return 0;
    if (d->experts > F8_GEMM_MAX_EXPERTS || d->rows > limit || d->outer > limit || d->inner > limit) return 0;
    if (d->experts * d->outer > limit || d->experts * d->inner > limit) return 0;
    return d->mappable && d->outer % STEP == 0 && d->inner % STEP == 0;
}

/* ---- F32 operands ---- */

/* Shapes of F8_GEMM_SPLIT by experts per tile. The small ones wait for memory and want two blocks per multiprocessor;
 * the large one multiplies, and two blocks share the parts. */
typedef struct {
    int32_t experts, stages, cluster, blocks;
} split_shape;

static split_shape split_shape_of(int64_t outer)
{
    static const split_shape shapes[] = { { 8, 5, 1, 2 }, { 16, 5, 1, 2 }, { 32, 3, 1, 2 }, { 64, 5, 2, 1 } };
    int i = 0;
    while (i < 3 && outer > shapes[i].experts) i++;
    return shapes[i];
}

static int64_t round_up(int64_t x, int64_t unit)
{
    return f8_ceil_div(x, unit) * unit;
}

/* The parts of a weight stay as a whole; those of activations come in passes over the rows. */
static int fits_split(const f8_gemm_desc *d)
{
    const int64_t limit = 1 << 30; /* lines of the last block lie behind */
    int dgrad = d->product == FP8FLOW_DGRAD;
    int64_t experts = dgrad ? d->inner : d->outer, width = dgrad ? d->outer : d->inner;
    if (d->grouped || !d->mappable || d->rows <= 0 || d->rows > limit || width <= 0 || width > limit) return 0;
    if (experts <= 0 || experts > F8_GEMM_MAX_EXPERTS) return 0;
    int64_t line = round_up(width, 8) * 2;
    if (dgrad) return width % STEP == 0 && F8_SPLIT_PAIRS * round_up(experts, 8) * line <= F8_SPLIT_PARTS_BYTES;
    if (d->product == FP8FLOW_WGRAD) return 1;
    return F8_SPLIT_PARTS * round_up(experts, split_shape_of(experts).experts) * line <= F8_SPLIT_PARTS_BYTES;
}

/* Which operands are F32, c too where its columns are the narrow side. */
static f8_gemm_kernel split_kernel_of(const f8_gemm_desc *d)
{
    int a_f32 = d->a_dtype == FP8FLOW_F32, b_f32 = d->b_dtype == FP8FLOW_F32;
    if (!fits_split(d)) return F8_GEMM_ANY;
    switch (d->product) {
    case FP8FLOW_FPROP:
        return d->a_dtype == FP8FLOW_BF16 && b_f32 && d->c_dtype == FP8FLOW_F32 ? F8_GEMM_SPLIT : F8_GEMM_ANY;
    case FP8FLOW_DGRAD: return a_f32 && b_f32 ? F8_GEMM_SPLIT_K : F8_GEMM_ANY;
    default: return a_f32 && d->b_dtype == FP8FLOW_BF16 ? F8_GEMM_SPLIT : F8_GEMM_ANY;
    }
}

/* As many as make the longest way to the end shortest: rounds of blocks, each with its steps of 64 and about twelve
 * steps' time to begin and to end; a split's sums take about one more. */
static int32_t splits_of(const f8_gemm_desc *d, const split_shape *s)
{
    const int64_t multiprocessors = 132, step = 64, begin_and_end = 12, most = 32;
    int wgrad = d->product == FP8FLOW_WGRAD;
    int64_t lines = wgrad ? d->inner : d->rows, steps = f8_ceil_div(wgrad ? d->rows : d->inner, step);
    int64_t units = round_up(f8_ceil_div(lines, 128), s->cluster) * f8_ceil_div(d->outer, s->experts);
    int64_t room = F8_SPLIT_SUMS_BYTES / (4 * lines * d->outer), best = 1, best_cost = INT64_MAX;
    for (int64_t n = 1; n == 1 || (n <= steps && n <= room && n <= most); n++) {
        int64_t rounds = f8_ceil_div(units * n, multiprocessors * s->blocks);
        int64_t cost = rounds * (f8_ceil_div(steps, n) + begin_and_end) + n;
        if (cost < best_cost) best = n, best_cost = cost;
    }
    return (int32_t)best;
}

static f8_gemm_config split_config(const f8_gemm_desc *d)
{
    split_shape s = split_shape_of(d->outer);
    return (f8_gemm_config){ F8_GEMM_SPLIT,   128, F8_SPLIT_PARTS * s.experts, 64, s.stages, s.cluster, 1,
                             splits_of(d, &s) };
}

/* ---- Configurations ---- */

static f8_gemm_kernel kernel_of(const f8_gemm_desc *d)
{
    if (d->a_dtype == FP8FLOW_F32 || d->b_dtype == FP8FLOW_F32) return split_kernel_of(d);
    if (!fits_maps(d) || d->a_dtype != d->b_dtype) return F8_GEMM_ANY;
    if (d->a_dtype == FP8FLOW_BF16) return F8_GEMM_BF16;
    if (d->a_dtype != FP8FLOW_E4M3) return F8_GEMM_ANY;
    return d->product == FP8FLOW_WGRAD ? F8_GEMM_FP8_WGRAD : F8_GEMM_FP8_ROWS;
}

/* TILE128 has one scale per step and block: the tiles are those of FP8_ROWS. With 2048 rows, 16 steps, per expert or
 * more, the products of a tile hide what the copy engine does with c, adding in L2 included (some 14 steps), and four
 * stages are best. With fewer, c's way through memory binds: all of a tile of c in shared memory beside three stages.
 *
 * There the operands of an expert stay in L2 in any order of its tiles. Columns first, bands of 1, whole lines of c
 * pass at about one time, 1 to 4 % faster where c is read too. Overwriting it was measured to win 8 % where lines of
 * c are long (7168) and to lose 7 % where they are short (2048). */
static f8_gemm_config tiles_config(const f8_gemm_desc *d)
{
    const int64_t many_rows = 2048, group = 32, long_line = 4096;
    if (d->rows / d->experts >= many_rows) return (f8_gemm_config){ F8_GEMM_FP8_TILES, 128, 192, 128, 4, 1, 16, 1 };
    if (d->inner % group != 0) return (f8_gemm_config){ F8_GEMM_FP8_WGRAD, 128, 128, 128, 3, 1, 16, 1 };
    int32_t band = d->write == FP8FLOW_ACCUMULATE || d->inner >= long_line ? 1 : 16;
    return (f8_gemm_config){ F8_GEMM_FP8_TILES_FEW, 128, 192, 128, 3, 1, band, 1 };
}

/* With few rows c's way through memory binds, and one half of a multiprocessor writes while the other multiplies; with
 * more, TENSOR has no scales until the end, and three warpgroups, so that two multiply while one adds up; the factors
 * of COL128 need registers. */
static f8_gemm_config wgrad_config(const f8_gemm_desc *d)
{
    const int64_t few_rows = 512;
    if (d->scaling == FP8FLOW_TILE128) return tiles_config(d);
    if (d->rows / d->experts < few_rows) return (f8_gemm_config){ F8_GEMM_FP8_WGRAD, 128, 128, 128, 3, 1, 16, 1 };
    if (d->scaling == FP8FLOW_TENSOR) return (f8_gemm_config){ F8_GEMM_FP8_WGRAD, 192, 128, 128, 5, 1, 10, 1 };
    return (f8_gemm_config){ F8_GEMM_FP8_WGRAD, 256, 128, 128, 4, 1, 8, 1 };
}

f8_gemm_config f8_gemm_configure(const f8_gemm_desc *desc)
{
    switch (kernel_of(desc)) {
    case F8_GEMM_FP8_ROWS: return (f8_gemm_config){ F8_GEMM_FP8_ROWS, 128, 192, 128, 4, 1, 16, 1 };
    case F8_GEMM_FP8_WGRAD: return wgrad_config(desc);
    case F8_GEMM_BF16: return (f8_gemm_config){ F8_GEMM_BF16, 128, 256, 64, 4, 2, 8, 1 };
    case F8_GEMM_SPLIT: return split_config(desc);
    case F8_GEMM_SPLIT_K: return (f8_gemm_config){ F8_GEMM_SPLIT_K, 128, 256, 64, 4, 2, 8, 1 };
    default: return (f8_gemm_config){ F8_GEMM_ANY, 64, 64, 32, 1, 1, 1, 1 };
    }
}

int f8_gemm_config_print(const f8_gemm_config *config, char *text, size_t size)
{
    static const char *const names[] = { "any",           "fp8 rows", "fp8 wgrad", "fp8 tiles",
                                         "fp8 tiles few", "bf16",     "split",     "split k" };
    char splits[24] = "";
    if (config->splits > 1) (void)snprintf(splits, sizeof splits, ", %d splits", config->splits);
    return snprintf(text, size, "%s %dx%dx%d, %d stage%s, clusters of %d, bands of %d%s", names[config->kernel],
                    config->tile_m, config->tile_n, config->tile_k, config->stages, config->stages == 1 ? "" : "s",
                    config->cluster, config->band, splits);
}
