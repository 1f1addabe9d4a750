/* recipe.h - a recipe is a row of a table: one format and one way to get there for each edge of the layer.
 *
 * An edge is a place where one operator hands a tensor to the next. The layer (moe/) is written once, asks
 * the row what each edge wants, and never asks which recipe runs. docs/RECIPE.md draws the edges.
 */
#ifndef F8_RECIPE_RECIPE_H
#define F8_RECIPE_RECIPE_H

#include "base/tensor.h"

/* clang-format off */
#define F8_EDGES(X)                                                                         \
    X(FORWARD_WIRE,  "forward wire",  "forward")  /* x at dispatch               [T, H]  */ \
    X(X1_ROWS,       "x1 rows",       "forward")  /* fc1 fprop operand           [P, H]  */ \
    X(X1_COLUMNS,    "x1 columns",    "forward")  /* fc1 wgrad operand           [P, H]  */ \
    X(X2_ROWS,       "x2 rows",       "forward")  /* fc2 fprop operand           [P, F]  */ \
    X(X2_COLUMNS,    "x2 columns",    "backward") /* fc2 wgrad operand           [P, F]  */ \
    X(BACKWARD_WIRE, "backward wire", "backward") /* dy at dispatch              [T, H]  */ \
    X(DY2_ROWS,      "dy2 rows",      "backward") /* fc2 dgrad operand           [P, H]  */ \
    X(DY2_COLUMNS,   "dy2 columns",   "backward") /* fc2 wgrad operand           [P, H]  */ \
    X(DH_ROWS,       "dh rows",       "backward") /* fc1 dgrad operand           [P, 2F] */ \
    X(DH_COLUMNS,    "dh columns",    "backward") /* fc1 wgrad operand           [P, 2F] */
/* clang-format on */

typedef enum {
#define F8_X(edge, name, direction) F8_##edge,
    F8_EDGES(F8_X)
#undef F8_X
        F8_NUM_EDGES
} f8_edge;

const char *f8_edge_name(f8_edge edge);
const char *f8_edge_direction(f8_edge edge);

/* How the tensor of an edge comes to be. Explicit casts (operator calls that only quantise or dequantise) are
 * CAST: one, REQUANTIZE: two. */
typedef enum {
    F8_AS_IS,      /* the producer hands it over in this format (columns: the row form itself is the operand) */
    F8_CAST,       /* explicit quantisation of a BF16 tensor */
    F8_WITH_ROWS,  /* column form written by the call that casts the row form */
    F8_FUSED,      /* the producer writes this format itself: swiglu quantises, permute shifts */
    F8_BYTES,      /* byte transpose of the row form */
    F8_SHIFT,      /* exponent-shift transpose of the row form, in a pass of its own */
    F8_REQUANTIZE, /* dequantise the row form, quantise the column form */
    F8_NUM_HOWS
} f8_how;

const char *f8_how_name(f8_how how);

typedef struct {
    f8_tensor_format format;
    f8_how how;
} f8_edge_rule;

typedef struct {
    const char *name, *summary;
    int64_t align;           /* rows of an expert are padded to a multiple of this */
    f8_tensor_format weight; /* fc1 and fc2 weights, row form; quantised once per step */
    f8_edge_rule edge[F8_NUM_EDGES];
} f8_recipe;

/* The name of the row that is taken where none is named. */
#define F8_DEFAULT_RECIPE "flow"

/* Row `index` of the table; NULL past the end. */
const f8_recipe *f8_recipe_at(int64_t index);

/* Row named by "name" or "name+variant+...", with the variants applied. Errors: EINVAL, listing what exists. */
fp8flow_status f8_recipe_find(const char *text, f8_recipe *recipe);

/* A row is consistent: every edge's way can produce its format from what the edge before it gives, and every
 * product gets a pair of formats that gemm takes. Errors: EINVAL naming recipe and edge. */
fp8flow_status f8_recipe_validate(const f8_recipe *recipe);

#endif
