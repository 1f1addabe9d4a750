/* test_quantize.c - quantize, dequantize and measure: against the definitions, and CPU against reference. */
#include "support.h"

enum { NO_FORM = -1, EXTRA_ROWS = 3, EXTRA_STRIDE = 5 };

/* One call of quantize. num_sizes 0: no groups, all rows in use. */
typedef struct {
    fp8flow_dtype in, out;
    int row_scaling, column_scaling; /* fp8flow_scaling or NO_FORM */
    int64_t rows, cols, group_rows;
    int num_sizes;
    int32_t sizes[5];
} shape;

typedef struct {
    fp8flow_tensor x, rows, columns;
    test_groups groups;
    const fp8flow_groups *used; /* &groups.groups or NULL */
    int64_t num_groups;
    uint64_t nonfinite;
} call;

/* Poisoned tensor with stride gaps. */
static fp8flow_tensor strided(f8_tensor_format format, const shape *s, int64_t rows, int64_t groups)
{
    fp8flow_tensor t = f8_tensor_make(format, rows, s->cols, format.dtype <= FP8FLOW_BF16 ? 0 : s->group_rows);
    t.stride += EXTRA_STRIDE;
    t.data = poisoned(fp8flow_tensor_data_bytes(&t));
    t.scale = format.scaling == FP8FLOW_UNSCALED ? NULL : poisoned(fp8flow_tensor_scale_bytes(&t, groups));
    return t;
}

/* Group g: first row, valid rows, rows with padding. */
static void group_of(const call *q, const shape *s, int64_t g, int64_t extent[3])
{
    int64_t whole = s->group_rows ? s->group_rows : q->x.rows;
    extent[0] = q->used ? q->groups.offset[g] : g * whole;
    extent[1] = q->used ? q->groups.rows[g] : whole;
    extent[2] = q->used ? q->groups.offset[g + 1] - q->groups.offset[g] : whole;
}

static void set_value(fp8flow_tensor *t, int64_t r, int64_t c, float x)
{
    if (t->dtype == FP8FLOW_F32) ((float *)t->data)[f8_element(t, r, c)] = x;
    else ((uint16_t *)t->data)[f8_element(t, r, c)] = f8_bf16_encode(x);
}

static void make_call(call *q, const shape *s, data_kind kind)
{
    memset(q, 0, sizeof *q);
    int64_t rows = s->rows;
    if (s->num_sizes) {
        rows = make_groups(&q->groups, s->sizes, s->num_sizes, 128) + EXTRA_ROWS;
        q->used = &q->groups.groups;
    }
    q->num_groups = s->num_sizes ? s->num_sizes : s->group_rows ? rows / s->group_rows : 1;
    q->x = strided((f8_tensor_format){ s->in, FP8FLOW_UNSCALED, FP8FLOW_ROWS }, s, rows, 0);
    for (int64_t g = 0; g < q->num_groups; g++) {
        int64_t e[3];
        group_of(q, s, g, e);
        for (int64_t r = e[0]; r < e[0] + e[1]; r++)
            for (int64_t c = 0; c < s->cols; c++) set_value(&q->x, r, c, test_value(kind, 7, r, c));
    }
    if (s->row_scaling != NO_FORM)
        q->rows = strided((f8_tensor_format){ s->out, (fp8flow_scaling)s->row_scaling, FP8FLOW_ROWS }, s, rows,
                          q->num_groups);
    if (s->column_scaling != NO_FORM)
        q->columns = strided((f8_tensor_format){ s->out, (fp8flow_scaling)s->column_scaling, FP8FLOW_COLUMNS }, s, rows,
                             q->num_groups);
}

static void run_call(call *q, fp8flow_backend backend, int threads)
{
    fp8flow_context *c = make_context(backend, threads);
    fp8flow_quantize_args args = { &q->x, q->used, q->rows.scaling ? &q->rows : NULL,
                                   q->columns.scaling ? &q->columns : NULL, &q->nonfinite };
    assert_ok(fp8flow_quantize(c, &args));
    fp8flow_context_destroy(c);
}

static void free_call(call *q)
{
    free_tensor(&q->x);
    free_tensor(&q->rows);
    free_tensor(&q->columns);
}

/* The scale by its definition, in FP64: the smallest power of two s with amax / s <= max, within the range of a
 * byte; TENSOR: the quotient rounded to FP32. */
static double expected_scale(double amax, const fp8flow_tensor *y)
{
    double max = y->dtype == FP8FLOW_E4M3 ? 448.0 : 57344.0;
    if (y->scaling == FP8FLOW_TENSOR) return (double)fmaxf((float)(amax / max), 0x1p-126f);
    if (amax == 0) return 0x1p-126;
    double scale = 0x1p-126;
    while (amax / scale > max) scale *= 2;
    return scale;
}

static uint8_t expected_code(float x, double scale, const fp8flow_tensor *y)
{
    if (y->scaling == FP8FLOW_TENSOR) return f8_encode(x * (1.0f / (float)scale), y->dtype);
    return f8_encode((float)((double)x / scale), y->dtype);
}

static double scale_at(const fp8flow_tensor *y, int64_t index)
{
    if (y->scaling == FP8FLOW_TENSOR) return (double)((const float *)y->scale)[index];
    uint8_t byte = ((const uint8_t *)y->scale)[index];
    assert_in_range(byte, 1, 254);
    return ldexp(1.0, byte - 127);
}

/* Calls visit(element) for each element of each group of a call, padding (x = 0) included. */
typedef struct {
    int64_t r, c, g;
    float x;
} element;

static void each_element(const call *q, const shape *s, void (*visit)(element, void *), void *data)
{
    for (int64_t g = 0; g < q->num_groups; g++) {
        int64_t e[3];
        group_of(q, s, g, e);
        for (int64_t r = e[0]; r < e[0] + e[2]; r++)
            for (int64_t c = 0; c < s->cols; c++)
                visit((element){ r, c, g, r < e[0] + e[1] ? f8_value(&q->x, r, c, 0) : 0.0f }, data);
    }
}

/* What an output should hold: largest magnitude per scale (-1: no element), code per element. */
typedef struct {
    const fp8flow_tensor *y;
    double *amax;
    uint8_t *code;
} expectation;

static void expect_amax(element e, void *data)
{
    expectation *x = data;
    double *amax = &x->amax[f8_scale_index(x->y, e.r, e.c, e.g)];
    *amax = fmax(*amax, isfinite(e.x) ? fabs((double)e.x) : 0.0);
}

static void expect_code(element e, void *data)
{
    expectation *x = data;
    double scale = scale_at(x->y, f8_scale_index(x->y, e.r, e.c, e.g));
    x->code[f8_element(x->y, e.r, e.c)] = expected_code(e.x, scale, x->y);
}

/* Every scale, code, padding byte and untouched byte of one output. */
static void check_output(const call *q, const shape *s, const fp8flow_tensor *y)
{
    int64_t bytes = fp8flow_tensor_data_bytes(y), scales = fp8flow_tensor_scale_bytes(y, q->num_groups);
    if (y->scaling == FP8FLOW_TENSOR) scales /= 4;
    expectation x = { y, malloc((size_t)(scales + 1) * sizeof *x.amax), poisoned(bytes) };
    for (int64_t i = 0; i < scales; i++) x.amax[i] = y->scaling == FP8FLOW_TENSOR ? 0 : -1; /* empty groups have one */
    each_element(q, s, expect_amax, &x);
    for (int64_t i = 0; i < scales; i++)
        if (x.amax[i] < 0) assert_int_equal(((uint8_t *)y->scale)[i], 0xFF);
        else if (scale_at(y, i) != expected_scale(x.amax[i], y))
            fail_msg("scale %d of %s", (int)i, f8_scaling_name(y->scaling));
    each_element(q, s, expect_code, &x);
    if (bytes) assert_memory_equal(y->data, x.code, (size_t)bytes);
    free(x.code);
    free(x.amax);
}

static void check_shape(const shape *s, data_kind kind)
{
    call reference, fast[2];
    make_call(&reference, s, kind);
    run_call(&reference, FP8FLOW_REFERENCE, 1);
    if (s->row_scaling != NO_FORM) check_output(&reference, s, &reference.rows);
    if (s->column_scaling != NO_FORM) check_output(&reference, s, &reference.columns);
    for (int i = 0; i < 2; i++) {
        make_call(&fast[i], s, kind);
        run_call(&fast[i], FP8FLOW_CPU, i + 1);
        assert_same_tensor(&reference.rows, &fast[i].rows, reference.num_groups);
        assert_same_tensor(&reference.columns, &fast[i].columns, reference.num_groups);
        assert_int_equal(reference.nonfinite, fast[i].nonfinite);
        free_call(&fast[i]);
    }
    free_call(&reference);
}

/* Every pair of forms, with every data kind, input type and output type in turn. */
static void check_forms(shape s)
{
    static const int row_forms[] = { NO_FORM, FP8FLOW_ROW128, FP8FLOW_TILE128, FP8FLOW_TENSOR };
    static const int column_forms[] = { NO_FORM, FP8FLOW_COL128, FP8FLOW_TILE128, FP8FLOW_TENSOR };
    for (int i = 1; i < 16; i++) {
        s.row_scaling = row_forms[i / 4];
        s.column_scaling = column_forms[i % 4];
        for (int variant = 0; variant < 4; variant++) {
            s.in = variant & 1 ? FP8FLOW_BF16 : FP8FLOW_F32;
            s.out = variant & 2 ? FP8FLOW_E5M2 : FP8FLOW_E4M3;
            int64_t kind = i + variant + s.rows + s.cols;
            check_shape(&s, variant == 0 ? DATA_SPECIAL : (data_kind)(kind % NUM_DATA_KINDS));
        }
    }
}

static void test_quantize_matches_its_definition_and_the_reference(void **state)
{
    (void)state;
    static const int64_t rows[] = { 0, 1, 5, 127, 128, 129, 255 }, cols[] = { 16, 128, 200, 0, 48, 136, 1 };
    for (int i = 0; i < 7; i++) check_forms((shape){ .rows = rows[i], .cols = cols[i] });
    check_forms((shape){ .rows = 3, .cols = 1100 });
}

static void test_quantize_groups_pad_and_leave_the_rest_alone(void **state)
{
    (void)state;
    check_forms((shape){ .cols = 200, .num_sizes = 5, .sizes = { 0, 1, 129, 0, 128 } });
    check_forms((shape){ .cols = 136, .num_sizes = 1, .sizes = { 127 } });
    check_forms((shape){ .cols = 48, .num_sizes = 2, .sizes = { 0, 0 } });
}

static void test_quantize_weights_restart_row_blocks_per_expert(void **state)
{
    (void)state;
    check_forms((shape){ .rows = 390, .cols = 136, .group_rows = 130 });
    check_forms((shape){ .rows = 96, .cols = 264, .group_rows = 32 });
    check_forms((shape){ .rows = 256, .cols = 128, .group_rows = 128 });
}

static void test_quantize_row_groups_need_no_alignment(void **state)
{
    (void)state;
    int32_t offset[4] = { 2, 7, 7, 150 }, rows[3] = { 3, 0, 143 };
    fp8flow_groups groups = { 3, offset, rows };
    f8_tensor_format format = { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS };
    fp8flow_tensor x = make_tensor((f8_tensor_format){ FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS }, 151, 130, 0, 0);
    fill_tensor(&x, DATA_NORMAL, 3);
    fp8flow_tensor y[2];
    for (int i = 0; i < 2; i++) {
        fp8flow_context *c = make_context(i ? FP8FLOW_CPU : FP8FLOW_REFERENCE, 2);
        y[i] = make_tensor(format, 151, 130, 0, 0);
        assert_ok(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, &groups, &y[i], NULL, NULL }));
        fp8flow_context_destroy(c);
    }
    assert_same_tensor(&y[0], &y[1], 0);
    const uint8_t *scale = y[0].scale, *code = y[0].data;
    assert_int_equal(scale[1 * 2], 0xFF); /* before the first group */
    assert_int_not_equal(scale[2 * 2], 0xFF);
    assert_int_equal(scale[5 * 2], 1); /* padding */
    assert_int_equal(code[5 * 130], 0);
    assert_int_equal(scale[150 * 2], 0xFF); /* after the last group */
    free_tensor(&x);
    free_tensor(&y[0]);
    free_tensor(&y[1]);
}

/* The fast path for full BF16 blocks works in 16-bit integers: every magnitude below the block's largest, for
 * scales over the whole range, must come out as the definition says. */
static void test_quantize_bf16_blocks_of_every_magnitude(void **state)
{
    (void)state;
    enum { ROWS = 256, COLS = 128 };
    const f8_tensor_format bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    fp8flow_context *fast = make_context(FP8FLOW_CPU, 1);
    for (int dtype = FP8FLOW_E4M3; dtype <= FP8FLOW_E5M2; dtype++) {
        fp8flow_tensor x = make_tensor(bf16, ROWS, COLS, 0, 0);
        fp8flow_tensor q =
            make_tensor((f8_tensor_format){ (fp8flow_dtype)dtype, FP8FLOW_ROW128, FP8FLOW_ROWS }, ROWS, COLS, 0, 0);
        for (int amax = 1; amax < 0x7F80; amax += 211) {
            uint16_t *values = x.data;
            for (int i = 0; i < ROWS * COLS; i++) {
                int below = amax - i; /* row 0: amax down to amax - 127, row 1 goes on */
                values[i] = (uint16_t)((below < 0 ? 0 : below) | (i % 3 == 0 ? 0x8000 : 0));
                if (i % COLS == COLS - 1) values[i] = (uint16_t)amax;
            }
            assert_ok(fp8flow_quantize(fast, &(fp8flow_quantize_args){ .x = &x, .rows = &q }));
            uint8_t byte = f8_scale_byte((uint32_t)amax << 16, (fp8flow_dtype)dtype);
            for (int i = 0; i < ROWS * COLS; i++) {
                uint8_t want = f8_encode(f8_bf16_decode(values[i]) * f8_scale_inverse(byte), (fp8flow_dtype)dtype);
                if (((uint8_t *)q.data)[i] != want || ((uint8_t *)q.scale)[i / COLS] != byte)
                    fail_msg("amax %04x, value %04x: code %02x, expected %02x", amax, values[i], ((uint8_t *)q.data)[i],
                             want);
            }
        }
        free_tensor(&x);
        free_tensor(&q);
    }
    fp8flow_context_destroy(fast);
}

static void test_quantize_zero_block_keeps_smallest_scale(void **state)
{
    (void)state;
    float data[2 * 256] = { 0 };
    data[256] = 1.0f; /* row 1, block 0 */
    data[3] = -0.0f;
    uint8_t codes[2 * 256], scales[4], columns[256 * 2], column_scales[256];
    fp8flow_tensor x = f8_f32(data, 2, 256);
    f8_tensor_format row_format = { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS };
    f8_tensor_format column_format = { FP8FLOW_E4M3, FP8FLOW_COL128, FP8FLOW_COLUMNS };
    fp8flow_tensor rows = f8_tensor_make(row_format, 2, 256, 0), cols = f8_tensor_make(column_format, 2, 256, 0);
    rows.data = codes, rows.scale = scales, cols.data = columns, cols.scale = column_scales;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    assert_ok(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, NULL, &rows, &cols, NULL }));
    assert_int_equal(scales[0], 1);
    assert_int_equal(scales[1], 1);
    assert_int_equal(scales[2], 119); /* 1 = 256 * 2^-8 */
    assert_int_equal(scales[3], 1);
    assert_int_equal(codes[3], 0x80);
    assert_int_equal(columns[6], 0x80);
    assert_int_equal(codes[256], 0x78);
    assert_int_equal(column_scales[0], 119);
    assert_int_equal(column_scales[1], 1);
    fp8flow_context_destroy(c);
}

static void test_quantize_counts_nonfinite_once_and_adds(void **state)
{
    (void)state;
    float data[200];
    for (int i = 0; i < 200; i++) data[i] = i % 50 == 0 ? INFINITY : 1.0f;
    data[199] = NAN;
    fp8flow_tensor x = f8_f32(data, 1, 200);
    for (int i = 0; i < 2; i++) {
        fp8flow_context *c = make_context(i ? FP8FLOW_CPU : FP8FLOW_REFERENCE, 1);
        fp8flow_tensor rows =
            make_tensor((f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS }, 1, 200, 0, 0);
        fp8flow_tensor cols =
            make_tensor((f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_COL128, FP8FLOW_COLUMNS }, 1, 200, 0, 0);
        uint64_t nonfinite = 1000;
        assert_ok(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, NULL, &rows, &cols, &nonfinite }));
        assert_int_equal(nonfinite, 1005);
        assert_int_equal(((uint8_t *)rows.data)[50], 0x7E); /* Inf saturates */
        assert_int_equal(((uint8_t *)rows.data)[199], 0x7F);
        assert_ok(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, NULL, &rows, NULL, &nonfinite }));
        assert_int_equal(nonfinite, 1010);
        assert_int_equal(fp8flow_context_calls(c, "quantize"), 2);
        free_tensor(&rows);
        free_tensor(&cols);
        fp8flow_context_destroy(c);
    }
}

static void test_quantize_both_tile_forms_share_one_scale_array(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 2);
    for (int scaling = FP8FLOW_TILE128; scaling <= FP8FLOW_TENSOR; scaling += 2) {
        f8_tensor_format format = { FP8FLOW_E4M3, (fp8flow_scaling)scaling, FP8FLOW_ROWS };
        fp8flow_tensor x =
            make_tensor((f8_tensor_format){ FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS }, 400, 150, 0, 0);
        fill_tensor(&x, DATA_HEAVY_TAILED, 5);
        fp8flow_tensor rows = make_tensor(format, 400, 150, 200, 2);
        format.layout = FP8FLOW_COLUMNS;
        fp8flow_tensor cols = make_tensor(format, 400, 150, 200, 2), shared = cols;
        shared.scale = rows.scale;
        assert_ok(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, NULL, &rows, &shared, NULL }));
        for (int64_t r = 0; r < 400; r++)
            for (int64_t col = 0; col < 150; col++)
                assert_true(f8_value(&rows, r, col, r / 200) == f8_value(&shared, r, col, r / 200));
        free_tensor(&x);
        free_tensor(&rows);
        free_tensor(&cols);
    }
    fp8flow_context_destroy(c);
}

static void test_quantize_rejects_what_the_contract_forbids(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    f8_tensor_format format = { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS };
    fp8flow_tensor x = make_tensor((f8_tensor_format){ FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS }, 256, 64, 0, 0);
    fp8flow_tensor y = make_tensor(format, 256, 64, 0, 0), bad = y;
    assert_fails(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, NULL, NULL, NULL, NULL }), FP8FLOW_EINVAL,
                 "neither");
    assert_fails(fp8flow_quantize(c, &(fp8flow_quantize_args){ &y, NULL, &y, NULL, NULL }), FP8FLOW_EINVAL,
                 "x is (e4m3");
    assert_fails(fp8flow_quantize(c, &(fp8flow_quantize_args){ NULL, NULL, &y, NULL, NULL }), FP8FLOW_EINVAL,
                 "x is NULL");
    assert_fails(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, NULL, NULL, &y, NULL }), FP8FLOW_EINVAL, "columns");
    bad.rows = 128;
    assert_fails(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, NULL, &bad, NULL, NULL }), FP8FLOW_ESHAPE,
                 "rows is [128, 64], expected [256, 64]");
    bad = y, bad.scaling = FP8FLOW_TILE128;
    int32_t offset[3] = { 0, 64, 128 }, used[2] = { 1, 1 };
    fp8flow_groups groups = { 2, offset, used };
    assert_fails(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, &groups, &bad, NULL, NULL }), FP8FLOW_ESHAPE, "128");
    bad = y, bad.group_rows = 128;
    assert_fails(fp8flow_quantize(c, &(fp8flow_quantize_args){ &x, &groups, &bad, NULL, NULL }), FP8FLOW_EINVAL,
                 "groups must be NULL");
    for (int64_t i = 0; i < 256 * 64; i++) assert_int_equal(((uint8_t *)y.data)[i], 0xFF);
    free_tensor(&x);
    free_tensor(&y);
    fp8flow_context_destroy(c);
}

/* ---- dequantize ---- */

/* y of every scaling and layout, both output types, against f8_value; CPU against reference with NaN payloads. */
static void check_dequantize(const shape *s, const fp8flow_tensor *x, const call *q)
{
    for (int type = 0; type < 2; type++) {
        fp8flow_tensor y[3];
        for (int i = 0; i < 3; i++) {
            fp8flow_context *c = make_context(i ? FP8FLOW_CPU : FP8FLOW_REFERENCE, i ? i : 1);
            f8_tensor_format format = { type ? FP8FLOW_BF16 : FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
            y[i] = strided(format, s, x->rows, 0);
            assert_ok(fp8flow_dequantize(c, &(fp8flow_dequantize_args){ x, q->used, &y[i] }));
            fp8flow_context_destroy(c);
            assert_same_tensor(&y[0], &y[i], 0);
        }
        for (int64_t g = 0; g < q->num_groups; g++) {
            int64_t e[3];
            group_of(q, s, g, e);
            for (int64_t r = e[0]; r < e[0] + e[2]; r++)
                for (int64_t c = 0; c < s->cols; c++) {
                    double code = (double)f8_decode(((uint8_t *)x->data)[f8_element(x, r, c)], x->dtype);
                    float value = (float)(code * scale_at(x, f8_scale_index(x, r, c, g)));
                    float expected = r >= e[0] + e[1] ? 0.0f : type ? f8_bf16_decode(f8_bf16_encode(value)) : value;
                    float got = f8_value(&y[0], r, c, 0);
                    if (isnan(expected) ? !isnan(got) : f8_bits(got) != f8_bits(expected))
                        fail_msg("row %d column %d: %g, expected %g", (int)r, (int)c, (double)got, (double)expected);
                }
        }
        for (int i = 0; i < 3; i++) free_tensor(&y[i]);
    }
}

/* The padding of an input may hold anything: NaN. */
static void poison_padding(const shape *s, const call *q, const fp8flow_tensor *x)
{
    for (int64_t g = 0; g < q->num_groups; g++) {
        int64_t e[3];
        group_of(q, s, g, e);
        for (int64_t r = e[0] + e[1]; r < e[0] + e[2]; r++)
            for (int64_t c = 0; c < s->cols; c++) ((uint8_t *)x->data)[f8_element(x, r, c)] = 0x7F;
    }
}

static void test_dequantize_inverts_every_scaling_and_layout(void **state)
{
    (void)state;
    static const int pairs[4][2] = { { FP8FLOW_ROW128, FP8FLOW_COL128 },
                                     { FP8FLOW_TILE128, FP8FLOW_TILE128 },
                                     { FP8FLOW_TENSOR, FP8FLOW_TENSOR } };
    static const shape shapes[] = {
        { .rows = 129, .cols = 200 },
        { .rows = 1, .cols = 16 },
        { .rows = 0, .cols = 16 },
        { .cols = 136, .num_sizes = 4, .sizes = { 3, 0, 129, 128 } },
        { .rows = 390, .cols = 48, .group_rows = 130 },
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int variant = 0; variant < 6; variant++) {
            shape s = shapes[i];
            s.in = FP8FLOW_F32, s.out = variant % 2 ? FP8FLOW_E5M2 : FP8FLOW_E4M3;
            s.row_scaling = pairs[variant / 2][0], s.column_scaling = pairs[variant / 2][1];
            call q;
            make_call(&q, &s, (data_kind)((i + (size_t)variant) % 2 ? DATA_SPECIAL : DATA_HEAVY_TAILED));
            run_call(&q, FP8FLOW_CPU, 1);
            poison_padding(&s, &q, &q.rows);
            poison_padding(&s, &q, &q.columns);
            check_dequantize(&s, &q.rows, &q);
            check_dequantize(&s, &q.columns, &q);
            free_call(&q);
        }
}

static void test_dequantize_handles_every_code_and_scale_byte(void **state)
{
    (void)state;
    shape s = { .rows = 254, .cols = 256, .in = FP8FLOW_F32 };
    for (int dtype = FP8FLOW_E4M3; dtype <= FP8FLOW_E5M2; dtype++) {
        f8_tensor_format format = { (fp8flow_dtype)dtype, FP8FLOW_ROW128, FP8FLOW_ROWS };
        fp8flow_tensor x = make_tensor(format, s.rows, s.cols, 0, 0);
        for (int r = 0; r < 254; r++) {
            for (int c = 0; c < 256; c++) ((uint8_t *)x.data)[r * 256 + c] = (uint8_t)c;
            ((uint8_t *)x.scale)[2 * r] = ((uint8_t *)x.scale)[2 * r + 1] = (uint8_t)(r + 1);
        }
        call q = { .num_groups = 1 };
        q.x.rows = s.rows;
        check_dequantize(&s, &x, &q);
        free_tensor(&x);
    }
}

/* ---- measure ---- */

static fp8flow_tensor_stats measured(const fp8flow_tensor *x, const fp8flow_tensor *q, const fp8flow_groups *groups)
{
    fp8flow_tensor_stats stats;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    assert_ok(fp8flow_measure(c, &(fp8flow_measure_args){ x, q, groups, &stats }));
    fp8flow_context_destroy(c);
    return stats;
}

static void test_measure_counts_each_fate_of_an_element(void **state)
{
    (void)state;
    /*                 zero  -0     under  under  subnormal  exact  rounded saturated  not finite        */
    float data[10] = { 0.0f, -0.0f, 1e-6f, -1e-6f, 0x1p-8f, 448.0f, 17.0f, -500.0f, INFINITY, NAN };
    uint8_t codes[10], scale = 127;
    for (int i = 0; i < 10; i++) codes[i] = f8_encode(data[i], FP8FLOW_E4M3);
    assert_int_equal(codes[3], 0x80);
    fp8flow_tensor x = f8_f32(data, 1, 10);
    fp8flow_tensor q = f8_tensor_make((f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS }, 1, 10, 0);
    q.data = codes, q.scale = &scale;
    fp8flow_tensor_stats s = measured(&x, &q, NULL);
    assert_int_equal(s.count, 10);
    assert_int_equal(s.zeros, 2);
    assert_int_equal(s.underflow, 2);
    assert_int_equal(s.subnormal, 1);
    assert_int_equal(s.saturated, 2);
    assert_int_equal(s.nonfinite, 2);
    assert_int_equal(s.min_exponent, 0);
    assert_int_equal(s.max_exponent, 0);
    assert_true(s.amax == 500.0);
    double tiny = (double)1e-6f;
    double noise = 2 * tiny * tiny + 1.0 + 52.0 * 52.0; /* 17 becomes 16, 500 becomes 448 */
    assert_true(fabs(s.noise - noise) < 1e-9 * noise);
    double signal = 2 * tiny * tiny + 0x1p-16 + 448.0 * 448 + 17.0 * 17 + 500.0 * 500;
    assert_true(fabs(s.signal - signal) < 1e-12 * signal);
}

static void test_measure_ignores_scales_of_zero_blocks_and_padding(void **state)
{
    (void)state;
    shape s = { .in = FP8FLOW_F32,
                .out = FP8FLOW_E4M3,
                .row_scaling = FP8FLOW_ROW128,
                .column_scaling = FP8FLOW_COL128,
                .cols = 200,
                .num_sizes = 3,
                .sizes = { 100, 0, 130 } };
    call q;
    make_call(&q, &s, DATA_ZERO_BLOCKS);
    run_call(&q, FP8FLOW_CPU, 1);
    fp8flow_tensor_stats rows = measured(&q.x, &q.rows, q.used), columns = measured(&q.x, &q.columns, q.used);
    assert_int_equal(rows.count, 230 * 200);
    assert_int_equal(rows.zeros, columns.zeros);
    assert_true(rows.zeros > 230 * 200 / 3 && rows.zeros < 230 * 200);
    assert_true(rows.min_exponent >= -12 && rows.max_exponent <= -5);
    assert_int_equal(rows.nonfinite, 0);
    assert_true(rows.signal == columns.signal);
    double sqnr = 10 * log10(rows.signal / rows.noise);
    assert_true(sqnr > 30 && sqnr < 34); /* 3 mantissa bits: about 31.5 dB */
    free_call(&q);
}

static void test_measure_reports_tensor_scales_as_floor_of_log2(void **state)
{
    (void)state;
    float data[2] = { 448.0f, -3.0f * 448.0f }, scale[2] = { 1.0f, 3.0f };
    uint8_t codes[2] = { 0x7E, 0xFE };
    fp8flow_tensor x = f8_f32(data, 2, 1);
    fp8flow_tensor q = f8_tensor_make((f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_TENSOR, FP8FLOW_ROWS }, 2, 1, 1);
    q.data = codes, q.scale = scale;
    fp8flow_tensor_stats s = measured(&x, &q, NULL);
    assert_int_equal(s.min_exponent, 0);
    assert_int_equal(s.max_exponent, 1);
    assert_int_equal(s.saturated, 0);
    assert_true(s.noise == 0.0);
}

static void test_measure_of_nothing_is_all_zero(void **state)
{
    (void)state;
    fp8flow_tensor x = f8_f32(NULL, 0, 8);
    fp8flow_tensor q = f8_tensor_make((f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS }, 0, 8, 0);
    fp8flow_tensor_stats s = measured(&x, &q, NULL), zero = { 0 };
    assert_memory_equal(&s, &zero, sizeof s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize_matches_its_definition_and_the_reference),
        cmocka_unit_test(test_quantize_bf16_blocks_of_every_magnitude),
        cmocka_unit_test(test_quantize_groups_pad_and_leave_the_rest_alone),
        cmocka_unit_test(test_quantize_weights_restart_row_blocks_per_expert),
        cmocka_unit_test(test_quantize_row_groups_need_no_alignment),
        cmocka_unit_test(test_quantize_zero_block_keeps_smallest_scale),
        cmocka_unit_test(test_quantize_counts_nonfinite_once_and_adds),
        cmocka_unit_test(test_quantize_both_tile_forms_share_one_scale_array),
        cmocka_unit_test(test_quantize_rejects_what_the_contract_forbids),
        cmocka_unit_test(test_dequantize_inverts_every_scaling_and_layout),
        cmocka_unit_test(test_dequantize_handles_every_code_and_scale_byte),
        cmocka_unit_test(test_measure_counts_each_fate_of_an_element),
        cmocka_unit_test(test_measure_ignores_scales_of_zero_blocks_and_padding),
        cmocka_unit_test(test_measure_reports_tensor_scales_as_floor_of_log2),
        cmocka_unit_test(test_measure_of_nothing_is_all_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
