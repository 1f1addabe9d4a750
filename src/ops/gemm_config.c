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

static f8_gemm_kernel kernel_of(const f8_gemm_desc *d)
{
    if (!fits_maps(d) || d->a_dtype != d->b_dtype) return F8_GEMM_ANY;
    if (d->a_dtype == FP8FLOW_BF16) return F8_GEMM_BF16;
    if (d->a_dtype != FP8FLOW_E4M3) return F8_GEMM_ANY;
    return d->product == FP8FLOW_WGRAD ? F8_GEMM_FP8_WGRAD : F8_GEMM_FP8_ROWS;
}

/* TILE128 has one scale per step and block: the tiles are those of FP8_ROWS, all of a tile of c lies in shared memory
 * beside three stages; its copies take whole groups of 32 columns. The others: with few rows c's way through memory
 * binds, and one half of a multiprocessor writes while the other multiplies; with more, TENSOR has no scales until the
 * end, and three warpgroups, so that two multiply while one adds up; the factors of COL128 need registers. */
static f8_gemm_config wgrad_config(const f8_gemm_desc *d)
{
    const int64_t few_rows = 512, group = 32;
    if (d->scaling == FP8FLOW_TILE128 && d->inner % group == 0)
        return (f8_gemm_config){ F8_GEMM_FP8_TILES, 128, 192, 128, 3, 1, 16 };
    if (d->scaling == FP8FLOW_TILE128 || d->rows / d->experts < few_rows)
        return (f8_gemm_config){ F8_GEMM_FP8_WGRAD, 128, 128, 128, 3, 1, 16 };
    if (d->scaling == FP8FLOW_TENSOR) return (f8_gemm_config){ F8_GEMM_FP8_WGRAD, 192, 128, 128, 5, 1, 10 };
    return (f8_gemm_config){ F8_GEMM_FP8_WGRAD, 256, 128, 128, 4, 1, 8 };
}

f8_gemm_config f8_gemm_configure(const f8_gemm_desc *desc)
{
    switch (kernel_of(desc)) {
    case F8_GEMM_FP8_ROWS: return (f8_gemm_config){ F8_GEMM_FP8_ROWS, 128, 192, 128, 4, 1, 16 };
    case F8_GEMM_FP8_WGRAD: return wgrad_config(desc);
    case F8_GEMM_BF16: return (f8_gemm_config){ F8_GEMM_BF16, 128, 256, 64, 4, 2, 8 };
    default: return (f8_gemm_config){ F8_GEMM_ANY, 64, 64, 32, 1, 1, 1 };
    }
}

int f8_gemm_config_print(const f8_gemm_config *config, char *text, size_t size)
{
    static const char *const names[] = { "any", "fp8 rows", "fp8 wgrad", "fp8 tiles", "bf16" };
    return snprintf(text, size, "%s %dx%dx%d, %d stage%s, clusters of %d, bands of %d", names[config->kernel],
                    config->tile_m, config->tile_n, config->tile_k, config->stages, config->stages == 1 ? "" : "s",
                    config->cluster, config->band);
}
