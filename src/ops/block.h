/* block.h - the scalar pieces of every operator that reads or writes FP8 blocks: which rows form a row
 * block, the quantisation of a 128 x 128 tile, its re-encoding by exponent shift. They are the
 * specification; block_avx2.h has the fast twins.
 *
 * A matrix is walked as spans (up to 128 rows that share a row block) times column blocks. A tile in
 * scratch always has 128 x 128 elements: what lies outside the valid rows and columns is 0 (float tile) or
 * code 0 with scale byte 1 (code tile). Thus padding needs no case of its own: zeros get code 0, never
 * raise a scale, and a tile of zeros has scale byte 1.
 */
#ifndef F8_OPS_BLOCK_H
#define F8_OPS_BLOCK_H

#include "ops/ops.h"

enum { F8_BLOCK = 128, F8_SHIFT_BINS = 64 };

static inline int64_t f8_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t f8_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* ---- Where a tile lies ---- */

/* Consecutive rows of one group, at most one row block. Rows from `valid` on are padding. */
typedef struct {
    int64_t row, rows, valid, group;
} f8_span;

/* Columns col .. col + cols - 1 of a span, at most one column block. */
typedef struct {
    f8_span span;
    int64_t col, cols;
} f8_place;

/* Groups with a scale of their own (TENSOR): the experts of a weight, the given groups, or one. */
static inline int64_t f8_num_groups(const fp8flow_tensor *t, const fp8flow_groups *groups)
{
    return t->group_rows ? t->rows / t->group_rows : groups ? groups->count : 1;
}

/* Group g of a weight, of grouped rows, or of plain rows, as one (possibly long, possibly empty) span. */
static inline f8_span f8_group_span(const fp8flow_tensor *t, const fp8flow_groups *groups, int64_t g)
{
    if (t->group_rows) return (f8_span){ g * t->group_rows, t->group_rows, t->group_rows, g };
    if (!groups) return (f8_span){ 0, t->rows, t->rows, g };
    return (f8_span){ groups->offset[g], groups->offset[g + 1] - groups->offset[g], groups->rows[g], g };
}

static inline int64_t f8_num_spans(const fp8flow_tensor *t, const fp8flow_groups *groups)
{
    int64_t spans = 0;
    for (int64_t g = 0; g < f8_num_groups(t, groups); g++)
        spans += f8_ceil_div(f8_group_span(t, groups, g).rows, F8_BLOCK);
    return spans;
}

/* Span `index` of a tensor's f8_num_spans spans, in ascending row order. */
static inline f8_span f8_span_at(const fp8flow_tensor *t, const fp8flow_groups *groups, int64_t index)
{
    int64_t g = 0, at = index * F8_BLOCK;
    if (t->group_rows) {
        g = index / f8_ceil_div(t->group_rows, F8_BLOCK);
        at = index % f8_ceil_div(t->group_rows, F8_BLOCK) * F8_BLOCK;
    } else {
        for (;; g++) {
            int64_t blocks = f8_ceil_div(f8_group_span(t, groups, g).rows, F8_BLOCK);
            if (at < blocks * F8_BLOCK) break;
            at -= blocks * F8_BLOCK;
        }
    }
    f8_span whole = f8_group_span(t, groups, g);
    int64_t valid = f8_max(0, f8_min(whole.valid - at, F8_BLOCK));
    return (f8_span){ whole.row + at, f8_min(whole.rows - at, F8_BLOCK), valid, g };
}

/* Column block `block` of a span of t. */
static inline f8_place f8_place_at(const fp8flow_tensor *t, f8_span span, int64_t block)
{
    int64_t col = block * F8_BLOCK;
    return (f8_place){ span, col, f8_min(t->cols - col, F8_BLOCK) };
}

/* ---- Contract checks that operators on blocks share ---- */

/* t has the shape of `like`. */
static inline fp8flow_status f8_check_shape(const char *op, const char *name, const fp8flow_tensor *t,
                                            const fp8flow_tensor *like)
{
    F8_REQUIRE(t->rows == like->rows && t->cols == like->cols, ESHAPE, "%s: %s is [%lld, %lld], expected [%lld, %lld]",
               op, name, (long long)t->rows, (long long)t->cols, (long long)like->rows, (long long)like->cols);
    return FP8FLOW_OK;
}

/* The rows of t are grouped in a way that its row blocks can follow. */
static inline fp8flow_status f8_check_groups(const fp8flow_context *c, const char *op, const char *name,
                                             const fp8flow_tensor *t, const fp8flow_groups *groups)
{
    F8_REQUIRE(!groups || t->group_rows == 0, EINVAL, "%s: %s has %lld rows per expert, groups must be NULL", op, name,
               (long long)t->group_rows);
    int blocked = t->scaling == FP8FLOW_TILE128 || t->scaling == FP8FLOW_COL128;
    F8_TRY(f8_context_check_groups(c, op, groups, t->rows, blocked ? F8_BLOCK : 1));
    /* A group has a TENSOR scale even where it has no elements. */
    F8_REQUIRE(t->scaling != FP8FLOW_TENSOR || t->scale || f8_num_groups(t, groups) == 0, EINVAL,
               "%s: %s has no scales, %lld experts need one each", op, name, (long long)f8_num_groups(t, groups));
    return FP8FLOW_OK;
}

/* ---- Tiles ---- */

typedef struct {
    float at[F8_BLOCK][F8_BLOCK];
} f8_tile;

/* Codes of a row-form FP8 tile and the scale byte of each row (ROW128). */
typedef struct {
    uint8_t code[F8_BLOCK][F8_BLOCK];
    uint8_t scale[F8_BLOCK];
} f8_code_tile;

/* Values of an F32 or BF16 tensor; the count of NaN and Inf among them. */
static inline uint64_t f8_load_tile(f8_place p, const fp8flow_tensor *x, f8_tile *tile)
{
    uint64_t nonfinite = 0;
    memset(tile, 0, sizeof *tile);
    for (int64_t r = 0; r < p.span.valid; r++)
        for (int64_t c = 0; c < p.cols; c++) {
            tile->at[r][c] = f8_value(x, p.span.row + r, p.col + c, p.span.group);
            nonfinite += !f8_is_finite(tile->at[r][c]);
        }
    return nonfinite;
}

/* Codes and row scales of a ROW128 tensor. */
static inline void f8_load_code_tile(f8_place p, const fp8flow_tensor *x, f8_code_tile *tile)
{
    memset(tile->code, 0, sizeof tile->code);
    memset(tile->scale, 1, sizeof tile->scale);
    for (int64_t r = 0; r < p.span.valid; r++) {
        int64_t row = p.span.row + r;
        memcpy(tile->code[r], (const uint8_t *)x->data + f8_element(x, row, p.col), (size_t)p.cols);
        tile->scale[r] = ((const uint8_t *)x->scale)[f8_scale_index(x, row, p.col, p.span.group)];
    }
}

/* ---- Quantise a tile ---- */

/* Scale of the block at (r, c) of a tile, `height` x `width`; stored into y unless it is TENSOR's, which is
 * there already. Returns what values are multiplied with. */
static inline float f8_block_inverse(f8_place p, const f8_tile *x, int64_t r, int64_t c, const fp8flow_tensor *y)
{
    int64_t index = f8_scale_index(y, p.span.row + r, p.col + c, p.span.group);
    if (y->scaling == FP8FLOW_TENSOR) return 1.0f / ((const float *)y->scale)[index];
    int64_t end_r = y->scaling == FP8FLOW_ROW128 ? r + 1 : p.span.rows;
    int64_t end_c = y->scaling == FP8FLOW_COL128 ? c + 1 : p.cols;
    uint32_t amax = 0;
    for (int64_t i = r; i < end_r; i++)
        for (int64_t j = c; j < end_c; j++) {
            uint32_t magnitude = f8_finite_magnitude(x->at[i][j]);
            if (magnitude > amax) amax = magnitude;
        }
    uint8_t byte = f8_scale_byte(amax, y->dtype);
    ((uint8_t *)y->scale)[index] = byte;
    return f8_scale_inverse(byte);
}

/* Codes and scales of the tile's place in y: any dtype, scaling and layout of FP8. */
static inline void f8_quantize_tile(f8_place p, const f8_tile *x, const fp8flow_tensor *y)
{
    int64_t height = y->scaling == FP8FLOW_ROW128 ? 1 : F8_BLOCK, width = y->scaling == FP8FLOW_COL128 ? 1 : F8_BLOCK;
    for (int64_t r0 = 0; r0 < p.span.rows; r0 += height)
        for (int64_t c0 = 0; c0 < p.cols; c0 += width) {
            float inverse = f8_block_inverse(p, x, r0, c0, y);
            for (int64_t r = r0; r < f8_min(r0 + height, p.span.rows); r++)
                for (int64_t c = c0; c < f8_min(c0 + width, p.cols); c++)
                    ((uint8_t *)y->data)[f8_element(y, p.span.row + r, p.col + c)] =
                        f8_encode(x->at[r][c] * inverse, y->dtype);
        }
}

/* ---- Re-encode a tile by exponent shift: ROW128 to the column form in TILE128 or COL128 ---- */

/* Largest scale byte among the rows whose codes are not all +-0; 1 if there is none. */
static inline uint8_t f8_tile_target(const f8_code_tile *x)
{
    uint8_t target = 1;
    for (int64_t r = 0; r < F8_BLOCK; r++) {
        uint8_t any = 0;
        for (int64_t c = 0; c < F8_BLOCK; c++) any |= x->code[r][c] & 0x7F;
        if (any && x->scale[r] > target) target = x->scale[r];
    }
    return target;
}

/* The scale rule on the values of column c. The rule is monotone and commutes with powers of two: the largest byte
 * that a value asks for is the column's. Values themselves may lie beyond FP32 (256 * 2^120, from FLT_MAX). */
static inline uint8_t f8_column_target(const f8_code_tile *x, int64_t c, fp8flow_dtype dtype)
{
    int target = 1;
    for (int64_t r = 0; r < F8_BLOCK; r++) {
        uint32_t amax = f8_finite_magnitude(f8_decode(x->code[r][c], dtype));
        int byte = amax ? f8_scale_exponent(amax, dtype) + x->scale[r] - 127 : 1;
        if (byte > target) target = byte;
    }
    return (uint8_t)f8_min(target, 254);
}

static inline void f8_count_shift(uint64_t *histogram, uint8_t code, int d, fp8flow_dtype dtype)
{
    if (histogram && (code & 0x7F) && (code & 0x7Fu) <= f8_format_of(dtype).max_code)
        histogram[d < 0 ? 0 : d < F8_SHIFT_BINS ? d : F8_SHIFT_BINS - 1]++;
}

/* Adds the counts of one tile; threads may do so at the same time, sums of integers have no order. */
static inline void f8_add_shift_counts(uint64_t *histogram, const uint64_t counts[F8_SHIFT_BINS])
{
    for (int bin = 0; bin < F8_SHIFT_BINS; bin++) {
        if (counts[bin] == 0) continue;
#pragma omp atomic
        histogram[bin] += counts[bin];
    }
}

/* y is a column form in TILE128 or COL128. histogram: F8_SHIFT_BINS counters, may be NULL. */
static inline void f8_shift_tile(f8_place p, const f8_code_tile *x, const fp8flow_tensor *y, uint64_t *histogram)
{
    uint8_t target = f8_tile_target(x);
    for (int64_t c = 0; c < p.cols; c++) {
        if (y->scaling == FP8FLOW_COL128) target = f8_column_target(x, c, y->dtype);
        ((uint8_t *)y->scale)[f8_scale_index(y, p.span.row, p.col + c, p.span.group)] = target;
        for (int64_t r = 0; r < p.span.rows; r++) {
            int d = target - x->scale[r];
            ((uint8_t *)y->data)[f8_element(y, p.span.row + r, p.col + c)] = f8_shift(x->code[r][c], d, y->dtype);
            f8_count_shift(histogram, x->code[r][c], d, y->dtype);
        }
    }
}

#endif
