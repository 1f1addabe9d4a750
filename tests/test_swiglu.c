/* test_swiglu.c - swiglu and swiglu_backward against FP64, against quantize of their own FP32 outputs, and the
 * fast versions against the reference bit for bit. Padding rows of the inputs hold NaN throughout. */
#include "support.h"

static const f8_tensor_format bf16_rows = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
static const f8_tensor_format f32_rows = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
static const f8_tensor_format e4m3_rows = { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS };
static const f8_tensor_format e5m2_rows = { FP8FLOW_E5M2, FP8FLOW_ROW128, FP8FLOW_ROWS };
static const f8_tensor_format e4m3_tiles = { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_COLUMNS };
static const f8_tensor_format e4m3_columns = { FP8FLOW_E4M3, FP8FLOW_COL128, FP8FLOW_COLUMNS };
static const f8_tensor_format e5m2_columns = { FP8FLOW_E5M2, FP8FLOW_COL128, FP8FLOW_COLUMNS };

/* ---- Inputs ---- */

typedef struct {
    const int32_t *sizes; /* NULL: no groups */
    int32_t count, rows;  /* experts; rows beyond the experts, or all rows */
} grouping;

static const int32_t mixed_sizes[5] = { 5, 0, 128, 130, 0 }, one_size[1] = { 200 };
static const grouping groupings[] = {
    { NULL, 0, 0 },   { NULL, 0, 1 },     { NULL, 0, 127 },        { NULL, 0, 128 },
    { NULL, 0, 129 }, { one_size, 1, 0 }, { mixed_sizes, 5, 128 },
};
enum { NUM_GROUPINGS = sizeof groupings / sizeof *groupings };
static const int64_t widths[] = { 1, 16, 64, 127, 128, 136, 200, 256, 320, 1032 };
enum { NUM_WIDTHS = sizeof widths / sizeof *widths };

typedef struct {
    test_groups storage;
    const fp8flow_groups *groups;
    int64_t rows, width;
    fp8flow_tensor h, dv;
    float *gate;
} inputs;

static int is_valid_row(const inputs *in, int64_t row)
{
    for (int64_t g = 0; in->groups && g < in->groups->count; g++)
        if (row >= in->groups->offset[g] && row < in->groups->offset[g] + in->groups->rows[g]) return 1;
    return !in->groups;
}

/* Rows that are written: valid ones and padding, but not what lies behind the last expert. */
static int64_t rows_written(const inputs *in)
{
    return in->groups ? in->groups->offset[in->groups->count] : in->rows;
}

static inputs *make_inputs(const grouping *g, int64_t width, data_kind kind)
{
    inputs *in = calloc(1, sizeof *in);
    assert_non_null(in);
    in->rows = g->rows + (g->sizes ? make_groups(&in->storage, g->sizes, g->count, 128) : 0);
    in->groups = g->sizes ? &in->storage.groups : NULL;
    in->width = width;
    in->h = make_tensor(bf16_rows, in->rows, 2 * width, 0, 0);
    in->dv = make_tensor(bf16_rows, in->rows, width, 0, 0);
    in->gate = poisoned(in->rows * 4);
    fill_tensor(&in->h, kind, 21);
    fill_tensor(&in->dv, kind, 22);
    for (int64_t r = 0; r < in->rows; r++) {
        in->gate[r] = kind == DATA_SPECIAL ? test_value(kind, 23, r, 0) : f8_uniform(23, 0, (uint64_t)r) + 0.1f;
        if (is_valid_row(in, r)) continue;
        memset((uint16_t *)in->h.data + r * 2 * width, 0xFF, (size_t)width * 4);
        memset((uint16_t *)in->dv.data + r * width, 0xFF, (size_t)width * 2);
        in->gate[r] = f8_from_bits(0xFFFFFFFFu);
    }
    return in;
}

static void free_inputs(inputs *in)
{
    free_tensor(&in->h);
    free_tensor(&in->dv);
    free(in->gate);
    free(in);
}

/* ---- Calls ---- */

typedef struct {
    fp8flow_tensor rows, columns, v_columns;
    float *dgate;
    uint64_t nonfinite;
} outputs;

static outputs make_outputs(const inputs *in, int64_t cols, f8_tensor_format rows, f8_tensor_format columns)
{
    return (outputs){ .rows = make_tensor(rows, in->rows, cols, 0, 0),
                      .columns = make_tensor(columns, in->rows, cols, 0, 0),
                      .v_columns = make_tensor(columns, in->rows, in->width, 0, 0),
                      .dgate = poisoned(in->rows * 4) };
}

static outputs forward(fp8flow_context *c, const inputs *in, f8_tensor_format rows, f8_tensor_format columns)
{
    outputs out = make_outputs(in, in->width, rows, columns);
    fp8flow_swiglu_args args = { &in->h, in->gate, in->groups, &out.rows, &out.columns, &out.nonfinite };
    assert_ok(fp8flow_swiglu(c, &args));
    return out;
}

static outputs backward(fp8flow_context *c, const inputs *in, f8_tensor_format rows, f8_tensor_format columns)
{
    outputs out = make_outputs(in, 2 * in->width, rows, columns);
    fp8flow_swiglu_backward_args args = { &in->h,       in->gate,       in->groups, &in->dv,       &out.rows,
                                          &out.columns, &out.v_columns, out.dgate,  &out.nonfinite };
    assert_ok(fp8flow_swiglu_backward(c, &args));
    return out;
}

/* Row form and dgate only: other kernels. */
static outputs backward_rows(fp8flow_context *c, const inputs *in, f8_tensor_format rows, f8_tensor_format columns)
{
    outputs out = make_outputs(in, 2 * in->width, rows, columns);
    fp8flow_swiglu_backward_args args = { &in->h, in->gate, in->groups, &in->dv,       &out.rows,
                                          NULL,   NULL,     out.dgate,  &out.nonfinite };
    assert_ok(fp8flow_swiglu_backward(c, &args));
    return out;
}

static void free_outputs(outputs *out)
{
    free_tensor(&out->rows);
    free_tensor(&out->columns);
    free_tensor(&out->v_columns);
    free(out->dgate);
}

static void assert_same_outputs(const outputs *a, const outputs *b)
{
    assert_same_tensor(&a->rows, &b->rows, 0);
    assert_same_tensor(&a->columns, &b->columns, 0);
    assert_same_tensor(&a->v_columns, &b->v_columns, 0);
    assert_int_equal(a->nonfinite, b->nonfinite);
}

static double gate_term(const inputs *in, int64_t row, int64_t col)
{
    double a = (double)f8_value(&in->h, row, col, 0), b = (double)f8_value(&in->h, row, in->width + col, 0);
    return a / (1.0 + exp(-a)) * b * (double)f8_value(&in->dv, row, col, 0);
}

/* dgate is of class R: the same bits on every CPU backend, within the bound of each order of the sum on a GPU. */
static void assert_same_gates(const inputs *in, const float *got, const float *expected)
{
    for (int64_t r = 0; r < in->rows; r++) {
        if (f8_bits(got[r]) == f8_bits(expected[r])) continue;
        if (tested_device() != TEST_ON_CUDA) fail_msg("dgate %lld: %a, expected %a", (long long)r, got[r], expected[r]);
        double magnitude = 0.0;
        for (int64_t col = 0; col < in->width; col++) magnitude += fabs(gate_term(in, r, col));
        double bound = 2 * 2 * (double)in->width * 0x1p-24 * magnitude;
        if (fabs((double)got[r] - (double)expected[r]) > bound || isnan(got[r]) != isnan(expected[r]))
            fail_msg("dgate %lld: %a, expected %a within %g", (long long)r, got[r], expected[r], bound);
    }
}

typedef outputs operator_call(fp8flow_context *, const inputs *, f8_tensor_format, f8_tensor_format);
static operator_call *const operators[3] = { forward, backward, backward_rows };

/* ---- The same bits everywhere ---- */

static void test_fast_equals_reference_for_any_number_of_threads(void **state)
{
    (void)state;
    fp8flow_context *contexts[3] = { make_context(FP8FLOW_REFERENCE, 1), make_context(FP8FLOW_CPU, 1),
                                     make_context(FP8FLOW_CPU, 2) };
    const f8_tensor_format rows[4] = { e4m3_rows, f32_rows, bf16_rows, e5m2_rows };
    const f8_tensor_format columns[3] = { e4m3_tiles, e4m3_columns, e5m2_columns };
    int round = 0;
    for (int g = 0; g < NUM_GROUPINGS; g++)
        for (int w = 0; w < NUM_WIDTHS; w++, round++) {
            inputs *in = make_inputs(&groupings[g], widths[w], (data_kind)(round % NUM_DATA_KINDS));
            for (int op = 0; op < 3; op++) {
                outputs expected = operators[op](contexts[0], in, rows[round % 4], columns[round % 3]);
                for (int i = 1; i < 3; i++) {
                    outputs out = operators[op](contexts[i], in, rows[round % 4], columns[round % 3]);
                    assert_same_outputs(&out, &expected);
                    assert_same_gates(in, out.dgate, expected.dgate);
                    free_outputs(&out);
                }
                free_outputs(&expected);
            }
            free_inputs(in);
        }
    for (int i = 0; i < 3; i++) fp8flow_context_destroy(contexts[i]);
}

/* Every data kind at the shape of a layer with short blocks. */
static void test_fast_equals_reference_on_all_data(void **state)
{
    (void)state;
    fp8flow_context *reference = make_context(FP8FLOW_REFERENCE, 1), *fast = make_context(FP8FLOW_CPU, 0);
    for (data_kind kind = 0; kind < NUM_DATA_KINDS; kind++)
        for (int op = 0; op < 3; op++)
            for (int format = 0; format < 3; format++) {
                inputs *in = make_inputs(&groupings[6], 200, kind);
                f8_tensor_format rows = format == 0 ? f32_rows : format == 1 ? e4m3_rows : bf16_rows;
                f8_tensor_format columns = format ? e4m3_tiles : e5m2_columns;
                outputs expected = operators[op](reference, in, rows, columns);
                outputs out = operators[op](fast, in, rows, columns);
                assert_same_outputs(&out, &expected);
                assert_same_gates(in, out.dgate, expected.dgate);
                free_outputs(&out);
                free_outputs(&expected);
                free_inputs(in);
            }
    fp8flow_context_destroy(reference);
    fp8flow_context_destroy(fast);
}

/* ---- Every format is one rounding of the same FP32 values ---- */

static void assert_encodes(const fp8flow_tensor *f32, const fp8flow_tensor *bf16, int64_t rows)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t col = 0; col < f32->cols; col++) {
            float value = f8_value(f32, r, col, 0);
            if (value != value) assert_int_equal(f8_bits(value), 0x7FC00000u);
            uint16_t code = ((uint16_t *)bf16->data)[f8_element(bf16, r, col)];
            assert_int_equal(code, f8_bf16_encode(value));
        }
}

/* Rows and columns of `out` are what quantize makes of `f32`. */
static void assert_quantizes(fp8flow_context *c, const inputs *in, const fp8flow_tensor *f32, const outputs *out)
{
    f8_tensor_format rows = { out->rows.dtype, out->rows.scaling, out->rows.layout };
    f8_tensor_format columns = { out->columns.dtype, out->columns.scaling, out->columns.layout };
    outputs expected = make_outputs(in, f32->cols, rows, columns);
    uint64_t nonfinite = 0;
    assert_ok(fp8flow_quantize(
        c, &(fp8flow_quantize_args){ f32, in->groups, &expected.rows, &expected.columns, &nonfinite }));
    assert_same_tensor(&out->rows, &expected.rows, 0);
    assert_same_tensor(&out->columns, &expected.columns, 0);
    assert_int_equal(out->nonfinite, nonfinite);
    free_outputs(&expected);
}

static void test_fp8_outputs_are_quantize_of_the_fp32_output(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    for (int w = 0; w < NUM_WIDTHS; w++)
        for (int op = 0; op < 2; op++) {
            inputs *in = make_inputs(&groupings[w % 2 ? 6 : 4], widths[w], (data_kind)(w % NUM_DATA_KINDS));
            outputs f32 = operators[op](c, in, f32_rows, e4m3_tiles);
            outputs tiles = operators[op](c, in, e4m3_rows, e4m3_tiles);
            outputs columns = operators[op](c, in, e5m2_rows, e5m2_columns);
            outputs bf16 = operators[op](c, in, bf16_rows, e4m3_columns);
            assert_encodes(&f32.rows, &bf16.rows, rows_written(in));
            assert_quantizes(c, in, &f32.rows, &tiles);
            assert_quantizes(c, in, &f32.rows, &columns);
            free_outputs(&f32);
            free_outputs(&tiles);
            free_outputs(&columns);
            free_outputs(&bf16);
            free_inputs(in);
        }
    fp8flow_context_destroy(c);
}

static void test_backward_writes_v_as_forward_does(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    for (int w = 0; w < NUM_WIDTHS; w++) {
        inputs *in = make_inputs(&groupings[6], widths[w], DATA_HEAVY_TAILED);
        f8_tensor_format columns = w % 2 ? e4m3_tiles : e4m3_columns;
        outputs v = forward(c, in, e4m3_rows, columns), gradient = backward(c, in, e4m3_rows, columns);
        assert_same_tensor(&v.columns, &gradient.v_columns, 0);
        free_outputs(&v);
        free_outputs(&gradient);
        free_inputs(in);
    }
    fp8flow_context_destroy(c);
}

/* Each output alone, without gates: same bytes as with the others. */
static void test_outputs_do_not_depend_on_each_other(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    inputs *in = make_inputs(&groupings[6], 200, DATA_NORMAL);
    for (int64_t r = 0; r < in->rows; r++) in->gate[r] = 1.0f;
    outputs v = forward(c, in, e4m3_rows, e4m3_tiles), all = backward(c, in, e4m3_rows, e4m3_tiles);
    outputs one = make_outputs(in, 200, e4m3_rows, e4m3_tiles), alone = make_outputs(in, 400, e4m3_rows, e4m3_tiles);
    fp8flow_swiglu_args f = { .h = &in->h, .groups = in->groups, .rows = &one.rows };
    assert_ok(fp8flow_swiglu(c, &f));
    f.rows = NULL, f.columns = &one.columns;
    assert_ok(fp8flow_swiglu(c, &f));
    assert_same_tensor(&one.rows, &v.rows, 0);
    assert_same_tensor(&one.columns, &v.columns, 0);
    fp8flow_swiglu_backward_args b = { .h = &in->h, .groups = in->groups, .dv = &in->dv };
    b.rows = &alone.rows;
    assert_ok(fp8flow_swiglu_backward(c, &b));
    b.rows = NULL, b.columns = &alone.columns;
    assert_ok(fp8flow_swiglu_backward(c, &b));
    b.columns = NULL, b.v_columns = &alone.v_columns;
    assert_ok(fp8flow_swiglu_backward(c, &b));
    b.v_columns = NULL, b.dgate = alone.dgate, b.nonfinite = &alone.nonfinite;
    assert_ok(fp8flow_swiglu_backward(c, &b));
    assert_same_outputs(&alone, &all);
    assert_same_gates(in, alone.dgate, all.dgate);
    outputs *list[4] = { &v, &all, &one, &alone };
    for (int i = 0; i < 4; i++) free_outputs(list[i]);
    free_inputs(in);
    fp8flow_context_destroy(c);
}

/* Row forms do not need experts aligned to 128. */
static void test_row_forms_accept_any_alignment(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    inputs *in = make_inputs(&groupings[4], 72, DATA_NORMAL);
    outputs expected = forward(c, in, e4m3_rows, e4m3_tiles), out = make_outputs(in, 72, e4m3_rows, e4m3_tiles);
    static const int32_t offset[4] = { 0, 3, 3, 129 }, rows[3] = { 3, 0, 126 };
    const fp8flow_groups groups = { 3, offset, rows };
    assert_ok(fp8flow_swiglu(c, &(fp8flow_swiglu_args){ &in->h, in->gate, &groups, &out.rows, NULL, NULL }));
    assert_same_tensor(&out.rows, &expected.rows, 0);
    assert_fails(fp8flow_swiglu(c, &(fp8flow_swiglu_args){ &in->h, in->gate, &groups, NULL, &out.columns, NULL }),
                 FP8FLOW_ESHAPE, "not a multiple of 128");
    free_outputs(&expected);
    free_outputs(&out);
    free_inputs(in);
    fp8flow_context_destroy(c);
}

/* ---- Padding ---- */

static void test_padding_is_zero_and_rows_behind_the_experts_stay(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    inputs *in = make_inputs(&groupings[6], 136, DATA_NORMAL);
    outputs out = backward(c, in, e4m3_rows, e4m3_tiles);
    int64_t cols = out.rows.cols;
    assert_int_equal(out.nonfinite, 0);
    for (int64_t r = 0; r < in->rows; r++) {
        if (is_valid_row(in, r)) continue;
        int written = r < rows_written(in);
        assert_int_equal(f8_bits(out.dgate[r]), written ? 0 : 0xFFFFFFFFu);
        for (int64_t col = 0; col < cols; col++) {
            assert_int_equal(((uint8_t *)out.rows.data)[r * cols + col], written ? 0 : 0xFF);
            assert_int_equal(((uint8_t *)out.columns.data)[col * in->rows + r], written ? 0 : 0xFF);
            assert_int_equal(((uint8_t *)out.rows.scale)[f8_scale_index(&out.rows, r, col, 0)], written ? 1 : 0xFF);
        }
    }
    free_outputs(&out);
    free_inputs(in);
    fp8flow_context_destroy(c);
}

/* ---- FP64 ---- */

typedef struct {
    double v, da, db, dw;
} formula;

static formula formula_of(double a, double b, double w, double g)
{
    double s = 1.0 / (1.0 + exp(-a));
    return (formula){ a * s * b * w, g * w * b * s * (1.0 + a * (1.0 - s)), g * w * a * s, a * s * b * g };
}

/* The gradients that the next test relies on are the derivatives of g * v. */
static void test_formula_agrees_with_finite_differences(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 2000; i++) {
        double x[4];
        for (uint64_t j = 0; j < 4; j++) x[j] = 3.0 * (double)f8_normal(31, j, i);
        formula f = formula_of(x[0], x[1], x[2], x[3]);
        const double gradient[3] = { f.da, f.db, f.dw };
        for (int j = 0; j < 3; j++) {
            double step = 1e-5, high[4], low[4];
            memcpy(high, x, sizeof x);
            memcpy(low, x, sizeof x);
            high[j] += step;
            low[j] -= step;
            double up = x[3] * formula_of(high[0], high[1], high[2], high[3]).v;
            double down = x[3] * formula_of(low[0], low[1], low[2], low[3]).v;
            assert_true(fabs((up - down) / (2 * step) - gradient[j]) < 1e-5 * (1.0 + fabs(gradient[j])));
        }
    }
}

static void test_values_and_gradients_agree_with_fp64(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    inputs *in = make_inputs(&groupings[4], 200, DATA_NORMAL);
    uint16_t *h = in->h.data;
    for (int64_t i = 0; i < in->rows * 400; i++) h[i] = f8_bf16_encode(6.0f * f8_bf16_decode(h[i]));
    outputs v = forward(c, in, f32_rows, e4m3_tiles), gradient = backward(c, in, f32_rows, e4m3_tiles);
    for (int64_t r = 0; r < in->rows; r++) {
        double dw = 0.0, magnitude = 0.0;
        for (int64_t col = 0; col < 200; col++) {
            double a = f8_value(&in->h, r, col, 0), b = f8_value(&in->h, r, 200 + col, 0), w = in->gate[r];
            double g = f8_value(&in->dv, r, col, 0), s = 1.0 / (1.0 + exp(-a));
            formula f = formula_of(a, b, w, g);
            assert_true(fabs(f8_value(&v.rows, r, col, 0) - f.v) <= 0x1p-20 * fabs(f.v));
            /* 1 - s keeps an absolute error of 2^-24, which a multiplies. */
            double slope_terms = fabs(g * w * b) * s * (1.0 + fabs(a));
            assert_true(fabs(f8_value(&gradient.rows, r, col, 0) - f.da) <= 0x1p-20 * slope_terms);
            assert_true(fabs(f8_value(&gradient.rows, r, 200 + col, 0) - f.db) <= 0x1p-20 * fabs(f.db));
            dw += f.dw;
            magnitude += fabs(f.dw);
        }
        assert_true(fabs(gradient.dgate[r] - dw) <= 2 * 200 * 0x1p-24 * magnitude);
    }
    free_outputs(&v);
    free_outputs(&gradient);
    free_inputs(in);
    fp8flow_context_destroy(c);
}

static void test_nonfinite_counts_valid_rows_only(void **state)
{
    (void)state;
    inputs *in = make_inputs(&groupings[6], 48, DATA_SPECIAL);
    for (int backend = 0; backend < 2; backend++) {
        fp8flow_context *c = make_context((fp8flow_backend)backend, 2);
        for (int op = 0; op < 2; op++) {
            outputs out = operators[op](c, in, f32_rows, e4m3_tiles);
            uint64_t expected = 0;
            for (int64_t r = 0; r < in->rows; r++)
                for (int64_t col = 0; is_valid_row(in, r) && col < out.rows.cols; col++)
                    expected += !f8_is_finite(f8_value(&out.rows, r, col, 0));
            assert_true(expected > 0);
            assert_int_equal(out.nonfinite, expected);
            free_outputs(&out);
        }
        fp8flow_context_destroy(c);
    }
    free_inputs(in);
}

/* ---- Bad arguments ---- */

static void test_swiglu_rejects_bad_arguments(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    inputs *in = make_inputs(&groupings[4], 150, DATA_NORMAL);
    outputs out = forward(c, in, e4m3_rows, e4m3_tiles);
    fp8flow_swiglu_args good = { &in->h, in->gate, NULL, &out.rows, &out.columns, NULL }, args = good;
    fp8flow_tensor bad = out.rows;
    assert_fails(fp8flow_swiglu(NULL, &good), FP8FLOW_EINVAL, "swiglu: NULL");
    args.rows = args.columns = NULL;
    assert_fails(fp8flow_swiglu(c, &args), FP8FLOW_EINVAL, "swiglu: rows and columns are both NULL");
    args = good, args.rows = &bad, bad.cols = 128;
    assert_fails(fp8flow_swiglu(c, &args), FP8FLOW_ESHAPE, "swiglu: h has 300 columns, rows needs 150, got 128");
    bad = out.rows, bad.rows = 128;
    assert_fails(fp8flow_swiglu(c, &args), FP8FLOW_ESHAPE, "swiglu: h has 129 rows, rows has 128");
    bad = out.rows, bad.scaling = FP8FLOW_TILE128;
    assert_fails(fp8flow_swiglu(c, &args), FP8FLOW_EINVAL, "swiglu: rows is tile128");
    args = good, args.columns = &bad, bad = out.columns, bad.scaling = FP8FLOW_TENSOR;
    assert_fails(fp8flow_swiglu(c, &args), FP8FLOW_EINVAL, "swiglu: columns is tensor");
    args = good, args.h = &bad, bad = in->h, bad.cols = 299;
    assert_fails(fp8flow_swiglu(c, &args), FP8FLOW_ESHAPE, "swiglu: h has 299 columns");
    bad = in->h, bad.dtype = FP8FLOW_F32;
    assert_fails(fp8flow_swiglu(c, &args), FP8FLOW_EINVAL, "swiglu: h is f32");
    args.h = NULL;
    assert_fails(fp8flow_swiglu(c, &args), FP8FLOW_EINVAL, "swiglu: h is NULL");
    free_outputs(&out);
    free_inputs(in);
    fp8flow_context_destroy(c);
}

static void test_swiglu_backward_rejects_bad_arguments(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 0);
    inputs *in = make_inputs(&groupings[4], 150, DATA_NORMAL);
    outputs out = backward(c, in, e4m3_rows, e4m3_tiles);
    fp8flow_swiglu_backward_args good = { .h = &in->h, .dv = &in->dv, .rows = &out.rows }, args = good;
    fp8flow_tensor bad = in->dv;
    assert_ok(fp8flow_swiglu_backward(c, &good));
    args.rows = NULL;
    assert_fails(fp8flow_swiglu_backward(c, &args), FP8FLOW_EINVAL, "swiglu_backward: every output is NULL");
    args = good, args.dv = &bad, bad.cols = 149;
    assert_fails(fp8flow_swiglu_backward(c, &args), FP8FLOW_ESHAPE, "dv is [129, 149], h needs [129, 150]");
    bad = in->dv, bad.dtype = FP8FLOW_F32;
    assert_fails(fp8flow_swiglu_backward(c, &args), FP8FLOW_EINVAL, "dv is f32");
    args = good, args.rows = &bad, bad = out.rows, bad.cols = 150;
    assert_fails(fp8flow_swiglu_backward(c, &args), FP8FLOW_ESHAPE, "rows needs 300, got 150");
    args = good, args.columns = &bad, bad = out.columns, bad.rows = 128;
    assert_fails(fp8flow_swiglu_backward(c, &args), FP8FLOW_ESHAPE, "columns has 128");
    args = good, args.v_columns = &bad, bad = out.columns;
    assert_fails(fp8flow_swiglu_backward(c, &args), FP8FLOW_ESHAPE, "v_columns needs 150, got 300");
    free_outputs(&out);
    free_inputs(in);
    fp8flow_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fast_equals_reference_for_any_number_of_threads),
        cmocka_unit_test(test_fast_equals_reference_on_all_data),
        cmocka_unit_test(test_fp8_outputs_are_quantize_of_the_fp32_output),
        cmocka_unit_test(test_backward_writes_v_as_forward_does),
        cmocka_unit_test(test_outputs_do_not_depend_on_each_other),
        cmocka_unit_test(test_row_forms_accept_any_alignment),
        cmocka_unit_test(test_padding_is_zero_and_rows_behind_the_experts_stay),
        cmocka_unit_test(test_formula_agrees_with_finite_differences),
        cmocka_unit_test(test_values_and_gradients_agree_with_fp64),
        cmocka_unit_test(test_nonfinite_counts_valid_rows_only),
        cmocka_unit_test(test_swiglu_rejects_bad_arguments),
        cmocka_unit_test(test_swiglu_backward_rejects_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
