/* recipe.c - THE table, its variants and its validator. */
#include "recipe/recipe.h"

#include <stdio.h>
#include <string.h>

/* clang-format off */
#define B  { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS }    /* BF16 rows                          */
#define T  { FP8FLOW_E4M3, FP8FLOW_TENSOR,   FP8FLOW_ROWS }    /* one FP32 scale per expert, rows    */
#define TT { FP8FLOW_E4M3, FP8FLOW_TENSOR,   FP8FLOW_COLUMNS } /* the same, column form              */
#define R  { FP8FLOW_E4M3, FP8FLOW_ROW128,   FP8FLOW_ROWS }    /* 1 x 128 along the features         */
#define C  { FP8FLOW_E4M3, FP8FLOW_COL128,   FP8FLOW_COLUMNS } /* 128 x 1 along the rows             */
#define D  { FP8FLOW_E4M3, FP8FLOW_TILE128,  FP8FLOW_COLUMNS } /* 128 x 128, column form             */
#define W  { FP8FLOW_E4M3, FP8FLOW_TILE128,  FP8FLOW_ROWS }    /* 128 x 128 weights                  */

/* In the order of F8_EDGES:
 *   forward wire     x1 rows          x1 columns            x2 rows          x2 columns
 *   backward wire    dy2 rows         dy2 columns           dh rows          dh columns */
static const f8_recipe recipes[] = {
    { "bf16", "BF16 everywhere: the baseline", 1, B, {
        { B, F8_AS_IS }, { B, F8_AS_IS }, { B,  F8_AS_IS },      { B, F8_AS_IS }, { B,  F8_AS_IS },
        { B, F8_AS_IS }, { B, F8_AS_IS }, { B,  F8_AS_IS },      { B, F8_AS_IS }, { B,  F8_AS_IS } } },
    { "tensorwise", "FP8 products with one scale per expert and tensor, BF16 between them", 128, T, {
        { B, F8_AS_IS }, { T, F8_CAST },  { TT, F8_BYTES },      { T, F8_CAST },  { TT, F8_BYTES },
        { B, F8_AS_IS }, { T, F8_CAST },  { TT, F8_BYTES },      { T, F8_CAST },  { TT, F8_BYTES } } },
    { "blockwise", "FP8 products with 1x128 and 128x128 scales, BF16 between them", 128, W, {
        { B, F8_AS_IS }, { R, F8_CAST },  { C,  F8_WITH_ROWS },  { R, F8_CAST },  { C,  F8_WITH_ROWS },
        { B, F8_AS_IS }, { R, F8_CAST },  { C,  F8_WITH_ROWS },  { R, F8_CAST },  { C,  F8_WITH_ROWS } } },
    { "deepseek", "FP8 dispatch, wgrad operands dequantised and requantised (DeepSeek-V3 style)", 128, W, {
        { R, F8_CAST },  { R, F8_AS_IS }, { C,  F8_REQUANTIZE }, { R, F8_CAST },  { C,  F8_REQUANTIZE },
        { R, F8_CAST },  { R, F8_AS_IS }, { C,  F8_REQUANTIZE }, { R, F8_CAST },  { C,  F8_REQUANTIZE } } },
    { "flow", "FP8-Flow: quantised once per direction before dispatch, FP8 from there on", 128, W, {
        { R, F8_CAST },  { R, F8_AS_IS }, { D,  F8_FUSED },      { R, F8_FUSED }, { D,  F8_FUSED },
        { R, F8_CAST },  { R, F8_AS_IS }, { D,  F8_FUSED },      { R, F8_FUSED }, { D,  F8_FUSED } } },
};
#undef B
#undef T
#undef TT
#undef R
#undef C
#undef D
#undef W
/* clang-format on */

enum { NUM_RECIPES = sizeof recipes / sizeof recipes[0] };

const char *f8_edge_name(f8_edge edge)
{
    static const char *const names[] = {
#define F8_X(edge, name, direction) name,
        F8_EDGES(F8_X)
#undef F8_X
    };
    return names[edge];
}

const char *f8_edge_direction(f8_edge edge)
{
    static const char *const directions[] = {
#define F8_X(edge, name, direction) direction,
        F8_EDGES(F8_X)
#undef F8_X
    };
    return directions[edge];
}

const char *f8_how_name(f8_how how)
{
    static const char *const names[F8_NUM_HOWS] = { "as it is",       "cast",  "with the rows", "fused",
                                                    "byte transpose", "shift", "requantised" };
    return names[how];
}

const f8_recipe *f8_recipe_at(int64_t index)
{
    return index >= 0 && index < NUM_RECIPES ? &recipes[index] : NULL;
}

/* ---- Variants: small rewrites of a row ---- */

static int is_gradient(int edge)
{
    return edge == F8_BACKWARD_WIRE || edge == F8_DY2_ROWS || edge == F8_DY2_COLUMNS || edge == F8_DH_ROWS ||
           edge == F8_DH_COLUMNS;
}

static void use_e5m2_gradients(f8_recipe *recipe)
{
    for (int e = 0; e < F8_NUM_EDGES; e++)
        if (is_gradient(e) && recipe->edge[e].format.dtype == FP8FLOW_E4M3) recipe->edge[e].format.dtype = FP8FLOW_E5M2;
}

static void use_column_blocks(f8_recipe *recipe)
{
    for (int e = 0; e < F8_NUM_EDGES; e++)
        if (recipe->edge[e].format.scaling == FP8FLOW_TILE128) recipe->edge[e].format.scaling = FP8FLOW_COL128;
}

static void use_separate_transpose(f8_recipe *recipe)
{
    for (int e = 0; e < F8_NUM_EDGES; e++) {
        f8_edge_rule *rule = &recipe->edge[e];
        if (rule->how == F8_FUSED && rule->format.layout == FP8FLOW_COLUMNS) rule->how = F8_SHIFT;
    }
}

static const struct {
    const char *name;
    void (*apply)(f8_recipe *);
} variants[] = {
    { "e5m2", use_e5m2_gradients },       /* gradients in E5M2 */
    { "col128", use_column_blocks },      /* wgrad operands with 128 x 1 scales where they had 128 x 128 */
    { "unfused", use_separate_transpose } /* column forms by exponent shift in a pass of their own (ablation) */
};
enum { NUM_VARIANTS = sizeof variants / sizeof variants[0] };

static fp8flow_status unknown(const char *text)
{
    char names[128] = "";
    for (int i = 0; i < NUM_RECIPES; i++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", recipes[i].name);
    }
    return F8_FAIL(EINVAL, "recipe: \"%.80s\" is not known; recipes: %s; variants: +e5m2, +col128, +unfused", text,
                   names);
}

static int same_word(const char *text, size_t length, const char *word)
{
    return strlen(word) == length && memcmp(text, word, length) == 0;
}

fp8flow_status f8_recipe_find(const char *text, f8_recipe *recipe)
{
    F8_REQUIRE(text && recipe, EINVAL, "recipe: NULL argument");
    size_t length = strcspn(text, "+");
    int found = -1;
    for (int i = 0; i < NUM_RECIPES; i++)
        if (same_word(text, length, recipes[i].name)) found = i;
    if (found < 0) return unknown(text);
    *recipe = recipes[found];
    for (const char *rest = text + length; *rest;) {
        rest++;
        length = strcspn(rest, "+");
        int variant = -1;
        for (int i = 0; i < NUM_VARIANTS; i++)
            if (same_word(rest, length, variants[i].name)) variant = i;
        if (variant < 0) return unknown(text);
        variants[variant].apply(recipe);
        rest += length;
    }
    return f8_recipe_validate(recipe);
}

/* ---- Validator ---- */

static int same_format(f8_tensor_format a, f8_tensor_format b)
{
    return a.dtype == b.dtype && a.scaling == b.scaling && a.layout == b.layout;
}

/* Row edge: from what the edge before it gives (BF16 out of an operator, or the wire's format). */
static const char *row_edge_error(const f8_edge_rule *rule, f8_tensor_format source, int producer_quantizes)
{
    if (rule->format.layout != FP8FLOW_ROWS) return "a row operand must have the rows layout";
    int fp8 = f8_is_fp8(rule->format.dtype), source_fp8 = f8_is_fp8(source.dtype);
    if (fp8 != (rule->format.scaling != FP8FLOW_UNSCALED)) return "FP8 needs scales, and nothing else has them";
    switch (rule->how) {
    case F8_AS_IS: return same_format(rule->format, source) ? NULL : "differs from the tensor it is taken from";
    case F8_CAST: return fp8 && !source_fp8 ? NULL : "a cast goes from BF16 to FP8";
    case F8_FUSED:
        return fp8 && producer_quantizes && rule->format.scaling == FP8FLOW_ROW128 ? NULL
                                                                                   : "its producer cannot write this";
    default: return "not a way to make a row operand";
    }
}

/* The rows of a wire are gathered and sent: permute and dispatch take BF16 and row128. */
static const char *wire_error(const f8_edge_rule *rule)
{
    const f8_tensor_format bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    if (f8_is_fp8(rule->format.dtype) && rule->format.scaling != FP8FLOW_ROW128) return "a wire has row128 scales";
    return row_edge_error(rule, bf16, 0);
}

/* Column edge: from its row form, or out of the operator that made the row form. permute (`moved`) writes columns
 * only when it gets FP8. */
static const char *column_edge_error(const f8_edge_rule *rule, const f8_edge_rule *rows, int moved)
{
    f8_tensor_format want = rule->format, have = rows->format;
    if (want.dtype != have.dtype) return "rows and columns need one number format";
    int shift = have.scaling == FP8FLOW_ROW128 && (want.scaling == FP8FLOW_TILE128 || want.scaling == FP8FLOW_COL128);
    if (rule->how == F8_AS_IS)
        return have.dtype == FP8FLOW_BF16 && same_format(want, have) ? NULL : "only BF16 rows serve as columns";
    if (want.layout != FP8FLOW_COLUMNS) return "an FP8 wgrad operand must have the columns layout";
    if (want.scaling == FP8FLOW_ROW128 || want.scaling == FP8FLOW_UNSCALED) return "not the scales of a column form";
    switch (rule->how) {
    case F8_WITH_ROWS: return rows->how == F8_CAST ? NULL : "the row form is not cast";
    case F8_BYTES:
        return want.scaling == FP8FLOW_TENSOR && have.scaling == FP8FLOW_TENSOR ? NULL : "needs tensor scales";
    case F8_FUSED:
        if (moved && rows->how != F8_AS_IS) return "its producer cannot write this";
        return shift ? NULL : "a shift goes from row128 to tile128 or col128";
    case F8_SHIFT: return shift ? NULL : "a shift goes from row128 to tile128 or col128";
    case F8_REQUANTIZE: return f8_is_fp8(have.dtype) ? NULL : "nothing to dequantise";
    default: return "not a way to make a column operand";
    }
}

static int is_fprop_pair(f8_tensor_format a, f8_tensor_format weight)
{
    if (!f8_is_fp8(a.dtype)) return !f8_is_fp8(weight.dtype);
    if (a.scaling == FP8FLOW_TENSOR) return weight.scaling == FP8FLOW_TENSOR;
    return a.scaling == FP8FLOW_ROW128 && weight.scaling == FP8FLOW_TILE128;
}

/* Both operands of a wgrad product, and the padding that their row blocks need. */
static fp8flow_status check_wgrad_pair(const f8_recipe *r, f8_edge a, f8_edge b)
{
    fp8flow_scaling scaling = r->edge[a].format.scaling;
    F8_REQUIRE(scaling == r->edge[b].format.scaling, EINVAL, "recipe %s: %s and %s differ in scaling", r->name,
               f8_edge_name(a), f8_edge_name(b));
    int64_t unit = scaling == FP8FLOW_TILE128 || scaling == FP8FLOW_COL128 ? 128 : 1;
    F8_REQUIRE(r->align >= 1 && r->align % unit == 0, EINVAL,
               "recipe %s: align %lld is not a multiple of %lld, as %s needs", r->name, (long long)r->align,
               (long long)unit, f8_edge_name(a));
    return FP8FLOW_OK;
}

fp8flow_status f8_recipe_validate(const f8_recipe *r)
{
    const f8_edge_rule *e = r->edge;
    const f8_tensor_format bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    const char *error[F8_NUM_EDGES] = {
        [F8_FORWARD_WIRE] = wire_error(&e[F8_FORWARD_WIRE]),
        [F8_X1_ROWS] = row_edge_error(&e[F8_X1_ROWS], e[F8_FORWARD_WIRE].format, 0),
        [F8_X1_COLUMNS] = column_edge_error(&e[F8_X1_COLUMNS], &e[F8_X1_ROWS], 1),
        [F8_X2_ROWS] = row_edge_error(&e[F8_X2_ROWS], bf16, 1),
        [F8_X2_COLUMNS] = column_edge_error(&e[F8_X2_COLUMNS], &e[F8_X2_ROWS], 0),
        [F8_BACKWARD_WIRE] = wire_error(&e[F8_BACKWARD_WIRE]),
        [F8_DY2_ROWS] = row_edge_error(&e[F8_DY2_ROWS], e[F8_BACKWARD_WIRE].format, 0),
        [F8_DY2_COLUMNS] = column_edge_error(&e[F8_DY2_COLUMNS], &e[F8_DY2_ROWS], 1),
        [F8_DH_ROWS] = row_edge_error(&e[F8_DH_ROWS], bf16, 1),
        [F8_DH_COLUMNS] = column_edge_error(&e[F8_DH_COLUMNS], &e[F8_DH_ROWS], 0),
    };
    for (int i = 0; i < F8_NUM_EDGES; i++)
        F8_REQUIRE(!error[i], EINVAL, "recipe %s: %s: %s", r->name, f8_edge_name((f8_edge)i), error[i]);
    static const f8_edge row_operands[] = { F8_X1_ROWS, F8_X2_ROWS, F8_DY2_ROWS, F8_DH_ROWS };
    for (int i = 0; i < 4; i++)
        F8_REQUIRE(is_fprop_pair(e[row_operands[i]].format, r->weight), EINVAL,
                   "recipe %s: %s does not fit the weights", r->name, f8_edge_name(row_operands[i]));
    F8_TRY(check_wgrad_pair(r, F8_X1_COLUMNS, F8_DH_COLUMNS));
    return check_wgrad_pair(r, F8_X2_COLUMNS, F8_DY2_COLUMNS);
}
