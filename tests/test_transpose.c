/* test_transpose.c - transpose: every code and shift against exact arithmetic, and CPU against reference. */
#include "support.h"

static const fp8flow_dtype dtypes[2] = { FP8FLOW_E4M3, FP8FLOW_E5M2 };

static int magnitude_is_finite(uint8_t code, fp8flow_dtype dtype)
{
    return (code & 0x7F) <= (dtype == FP8FLOW_E4M3 ? 0x7E : 0x7B);
}

/* The code nearest to x by search over all codes in FP64; ties to the even code; saturating; sign kept. */
static uint8_t nearest_code(double x, fp8flow_dtype dtype)
{
    uint8_t best = 0;
    for (uint8_t code = 0; magnitude_is_finite(code, dtype); code++) {
        double error = fabs((double)f8_decode(code, dtype) - fabs(x));
        double least = fabs((double)f8_decode(best, dtype) - fabs(x));
        if (error < least || (error == least && code % 2 == 0)) best = code;
    }
    return best | (signbit(x) ? 0x80 : 0);
}

static uint8_t exact_shift(uint8_t code, int d, fp8flow_dtype dtype)
{
    if (!magnitude_is_finite(code, dtype)) return code;
    return nearest_code(ldexp((double)f8_decode(code, dtype), -d), dtype);
}

static fp8flow_tensor row_tensor(fp8flow_dtype dtype, int64_t rows, int64_t cols)
{
    return make_tensor((f8_tensor_format){ dtype, FP8FLOW_ROW128, FP8FLOW_ROWS }, rows, cols, 0, 0);
}

static fp8flow_tensor column_tensor(fp8flow_dtype dtype, fp8flow_scaling scaling, int64_t rows, int64_t cols)
{
    return make_tensor((f8_tensor_format){ dtype, scaling, FP8FLOW_COLUMNS }, rows, cols, 0, 0);
}

static uint8_t code_at(const fp8flow_tensor *t, int64_t r, int64_t c)
{
    return ((const uint8_t *)t->data)[f8_element(t, r, c)];
}

static void transpose(fp8flow_backend backend, const fp8flow_tensor *x, fp8flow_tensor *y, uint64_t *histogram)
{
    fp8flow_context *c = make_context(backend, 1);
    assert_ok(fp8flow_transpose(c, &(fp8flow_transpose_args){ x, NULL, y, histogram }));
    fp8flow_context_destroy(c);
}

/* Row d has scale byte 100 - d and holds the 256 codes in two column blocks; row 0 sets the target. */
static void test_shift_of_every_code_to_tile128_is_exact(void **state)
{
    (void)state;
    enum { SHIFTS = 64 };
    for (int type = 0; type < 2; type++)
        for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
            fp8flow_dtype dtype = dtypes[type];
            fp8flow_tensor x = row_tensor(dtype, SHIFTS, 256), y = column_tensor(dtype, FP8FLOW_TILE128, SHIFTS, 256);
            uint64_t histogram[64] = { 0 };
            for (int d = 0; d < SHIFTS; d++) {
                for (int code = 0; code < 256; code++) ((uint8_t *)x.data)[d * 256 + code] = (uint8_t)code;
                memset((uint8_t *)x.scale + 2 * d, 100 - d, 2);
            }
            transpose((fp8flow_backend)backend, &x, &y, histogram);
            assert_int_equal(((uint8_t *)y.scale)[0], 100);
            assert_int_equal(((uint8_t *)y.scale)[1], 100);
            for (int d = 0; d < SHIFTS; d++) {
                for (int code = 0; code < 256; code++)
                    if (code_at(&y, d, code) != exact_shift((uint8_t)code, d, dtype))
                        fail_msg("%s code %02x shift %d gives %02x", f8_dtype_name(dtype), (unsigned)code, d,
                                 code_at(&y, d, code));
                assert_int_equal(histogram[d], type == 0 ? 2 * 126 : 2 * 123);
            }
            free_tensor(&x);
            free_tensor(&y);
        }
}

/* Two rows per column: `code` under scale byte 128 and a partner that makes the column's target 128 + d. */
static void test_shift_of_every_code_to_col128_is_exact(void **state)
{
    (void)state;
    for (int type = 0; type < 2; type++)
        for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++)
            for (int partner_scale = 128 - 20; partner_scale <= 128 + 40; partner_scale++) {
                fp8flow_dtype dtype = dtypes[type];
                fp8flow_tensor x = row_tensor(dtype, 2, 256), y = column_tensor(dtype, FP8FLOW_COL128, 2, 256);
                uint64_t histogram[64] = { 0 }, expected[64] = { 0 };
                for (int code = 0; code < 256; code++) ((uint8_t *)x.data)[code] = (uint8_t)code;
                memset((uint8_t *)x.data + 256, type == 0 ? 0x7E : 0x7B, 256);
                memset(x.scale, 128, 2);
                memset((uint8_t *)x.scale + 2, partner_scale, 2);
                transpose((fp8flow_backend)backend, &x, &y, histogram);
                for (int code = 0; code < 256; code++) {
                    double max = dtype == FP8FLOW_E4M3 ? 448 : 57344, amax = ldexp(max, partner_scale - 127);
                    if (magnitude_is_finite((uint8_t)code, dtype))
                        amax = fmax(amax, fabs((double)f8_decode((uint8_t)code, dtype)) * 2);
                    int target = 1;
                    while (ldexp(amax, 127 - target) > max) target++;
                    assert_int_equal(((uint8_t *)y.scale)[code], target);
                    assert_int_equal(code_at(&y, 0, code), exact_shift((uint8_t)code, target - 128, dtype));
                    assert_int_equal(code_at(&y, 1, code),
                                     exact_shift(type == 0 ? 0x7E : 0x7B, target - partner_scale, dtype));
                    if (magnitude_is_finite((uint8_t)code, dtype) && (code & 0x7F))
                        expected[target - 128 < 0 ? 0 : target - 128]++;
                    expected[target - partner_scale]++;
                }
                assert_memory_equal(histogram, expected, sizeof expected);
                free_tensor(&x);
                free_tensor(&y);
            }
}

static void test_f8_shift_is_exact_for_every_code_and_distance(void **state)
{
    (void)state;
    for (int type = 0; type < 2; type++)
        for (int code = 0; code < 256; code++)
            for (int d = -40; d <= 300; d++)
                assert_int_equal(f8_shift((uint8_t)code, d, dtypes[type]), exact_shift((uint8_t)code, d, dtypes[type]));
}

static void test_all_zero_rows_never_raise_the_target(void **state)
{
    (void)state;
    for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
        fp8flow_tensor x = row_tensor(FP8FLOW_E4M3, 128, 256),
                       y = column_tensor(FP8FLOW_E4M3, FP8FLOW_TILE128, 128, 256);
        fp8flow_tensor z = column_tensor(FP8FLOW_E4M3, FP8FLOW_COL128, 128, 256);
        memset(x.data, 0x80, 128 * 256); /* -0 is zero as well */
        memset(x.scale, 200, 128 * 2);
        ((uint8_t *)x.data)[7 * 256 + 3] = 0x01;
        ((uint8_t *)x.scale)[7 * 2] = 90;
        transpose((fp8flow_backend)backend, &x, &y, NULL);
        transpose((fp8flow_backend)backend, &x, &z, NULL);
        assert_int_equal(((uint8_t *)y.scale)[0], 90);
        assert_int_equal(((uint8_t *)y.scale)[1], 1); /* a tile of zeros */
        assert_int_equal(code_at(&y, 7, 3), 0x01);
        assert_int_equal(code_at(&y, 8, 3), 0x80);
        assert_int_equal(code_at(&y, 127, 255), 0x80);
        assert_int_equal(((uint8_t *)z.scale)[3], 90 - 9 - 8); /* 2^-9 becomes 256 * 2^-17 */
        assert_int_equal(code_at(&z, 7, 3), 0x78);
        assert_int_equal(((uint8_t *)z.scale)[4], 1);
        assert_int_equal(code_at(&z, 7, 4), 0x80);
        free_tensor(&x);
        free_tensor(&y);
        free_tensor(&z);
    }
}

static void test_nan_raises_a_tile_but_not_a_column(void **state)
{
    (void)state;
    for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
        fp8flow_tensor x = row_tensor(FP8FLOW_E4M3, 2, 1), y = column_tensor(FP8FLOW_E4M3, FP8FLOW_TILE128, 2, 1);
        fp8flow_tensor z = column_tensor(FP8FLOW_E4M3, FP8FLOW_COL128, 2, 1);
        memcpy(x.data, "\xFF\x78", 2); /* NaN, 256 */
        memcpy(x.scale, "\x65\x64", 2);
        uint64_t histogram[64] = { 0 };
        transpose((fp8flow_backend)backend, &x, &y, histogram);
        transpose((fp8flow_backend)backend, &x, &z, NULL);
        assert_memory_equal(y.data, "\xFF\x70", 2);
        assert_int_equal(((uint8_t *)y.scale)[0], 0x65);
        assert_int_equal(histogram[0], 0);
        assert_int_equal(histogram[1], 1);
        assert_memory_equal(z.data, "\xFF\x78", 2);
        assert_int_equal(((uint8_t *)z.scale)[0], 0x64);
        free_tensor(&x);
        free_tensor(&y);
        free_tensor(&z);
    }
}

/* ---- Whole tensors ---- */

typedef struct {
    fp8flow_dtype dtype;
    fp8flow_scaling from, to;
    int64_t rows, cols, group_rows;
    int num_sizes;
    int32_t sizes[5];
} shape;

typedef struct {
    fp8flow_tensor value, x; /* x: codes of value, padding poisoned */
    test_groups groups;
    const fp8flow_groups *used;
    int64_t num_groups;
} input;

static fp8flow_tensor strided(f8_tensor_format format, const input *in, const shape *s)
{
    fp8flow_tensor t = f8_tensor_make(format, in->value.rows, s->cols, s->group_rows);
    t.stride += 3;
    t.data = poisoned(fp8flow_tensor_data_bytes(&t));
    t.scale = poisoned(fp8flow_tensor_scale_bytes(&t, in->num_groups));
    return t;
}

/* Codes of a data kind; the padding of x and its scales are NaN bytes. */
static void make_input(input *in, const shape *s, data_kind kind)
{
    memset(in, 0, sizeof *in);
    int64_t rows = s->rows;
    if (s->num_sizes) {
        rows = make_groups(&in->groups, s->sizes, s->num_sizes, 128) + 2;
        in->used = &in->groups.groups;
    }
    in->num_groups = s->num_sizes ? s->num_sizes : s->group_rows ? rows / s->group_rows : 1;
    in->value = make_tensor((f8_tensor_format){ FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS }, rows, s->cols, 0, 0);
    fill_tensor(&in->value, kind, 11);
    in->x = strided((f8_tensor_format){ s->dtype, s->from, FP8FLOW_ROWS }, in, s);
    fp8flow_context *c = make_context(FP8FLOW_CPU, 2);
    assert_ok(fp8flow_quantize(c, &(fp8flow_quantize_args){ &in->value, in->used, &in->x, NULL, NULL }));
    fp8flow_context_destroy(c);
    for (int64_t g = 0; in->used && g < in->num_groups; g++)
        for (int64_t r = in->groups.offset[g] + in->groups.rows[g]; r < in->groups.offset[g + 1]; r++) {
            memset((uint8_t *)in->x.data + r * in->x.stride, kind % 2 ? 0x7F : 0xFF, (size_t)s->cols);
            int64_t blocks = f8_ceil_div(s->cols, 128);
            if (s->from == FP8FLOW_ROW128) memset((uint8_t *)in->x.scale + r * blocks, 0xFE, (size_t)blocks);
        }
}

static void check_against_reference(const shape *s, const input *in, fp8flow_tensor *y)
{
    uint64_t histogram[3][64] = { { 0 } }, total = 0;
    for (int i = 0; i < 3; i++) {
        fp8flow_context *c = make_context(i ? FP8FLOW_CPU : FP8FLOW_REFERENCE, i ? i : 1);
        y[i] = strided((f8_tensor_format){ s->dtype, s->to, FP8FLOW_COLUMNS }, in, s);
        assert_ok(fp8flow_transpose(c, &(fp8flow_transpose_args){ &in->x, in->used, &y[i], histogram[i] }));
        fp8flow_context_destroy(c);
        assert_same_tensor(&y[0], &y[i], in->num_groups);
        assert_memory_equal(histogram[0], histogram[i], sizeof histogram[0]);
    }
    for (int bin = 0; bin < 64; bin++) total += histogram[0][bin];
    int64_t finite = 0;
    for (int64_t g = 0; g < in->num_groups; g++) {
        int64_t whole = s->group_rows ? s->group_rows : in->x.rows;
        int64_t first = in->used ? in->groups.offset[g] : g * whole, valid = in->used ? in->groups.rows[g] : whole;
        for (int64_t r = first; r < first + valid; r++)
            for (int64_t c = 0; c < s->cols; c++) {
                uint8_t code = code_at(&in->x, r, c);
                finite += (code & 0x7F) && magnitude_is_finite(code, s->dtype);
                if (s->from == s->to) assert_int_equal(code_at(&y[0], r, c), code);
                if (!magnitude_is_finite(code, s->dtype)) assert_int_equal(code_at(&y[0], r, c), code);
            }
        for (int64_t r = first + valid; in->used && r < in->groups.offset[g + 1]; r++)
            for (int64_t c = 0; c < s->cols; c++) assert_int_equal(code_at(&y[0], r, c), 0);
    }
    assert_int_equal(total, finite);
}

/* 1 if a finite code stands for a value that FP32 cannot hold: 256 * 2^120, quantised from the largest BF16. */
static int is_beyond_fp32(const shape *s, const input *in, const fp8flow_tensor *value)
{
    for (int64_t r = 0; r < value->rows; r++)
        for (int64_t c = 0; c < value->cols; c++)
            if (magnitude_is_finite(code_at(&in->x, r, c), s->dtype) && isinf(f8_value(value, r, c, 0))) return 1;
    return 0;
}

/* COL128 is quantize of dequantize, bit for bit, where FP32 holds the values; NaN keeps its own byte. */
static void check_against_requantize(const shape *s, const input *in, const fp8flow_tensor *y)
{
    fp8flow_context *c = make_context(FP8FLOW_REFERENCE, 1);
    fp8flow_tensor value =
        make_tensor((f8_tensor_format){ FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS }, in->x.rows, s->cols, 0, 0);
    fp8flow_tensor expected = strided((f8_tensor_format){ s->dtype, s->to, FP8FLOW_COLUMNS }, in, s);
    assert_ok(fp8flow_dequantize(c, &(fp8flow_dequantize_args){ &in->x, in->used, &value }));
    assert_ok(fp8flow_quantize(c, &(fp8flow_quantize_args){ &value, in->used, NULL, &expected, NULL }));
    uint8_t *want = expected.data;
    const uint8_t *got = y->data;
    for (int64_t i = 0; i < fp8flow_tensor_data_bytes(&expected); i++)
        if (!magnitude_is_finite(got[i], s->dtype) && want[i] == 0x7F) want[i] = got[i];
    if (!is_beyond_fp32(s, in, &value)) assert_same_tensor(&expected, y, 0);
    free_tensor(&value);
    free_tensor(&expected);
    fp8flow_context_destroy(c);
}

/* TILE128 by its definition: the target among rows that are not zero, every code by exact arithmetic. */
static void check_against_exact(const shape *s, const input *in, const fp8flow_tensor *y)
{
    int64_t blocks = f8_ceil_div(s->cols, 128);
    for (int64_t tile = 0; tile < f8_ceil_div(s->rows, 128) * blocks; tile++) {
        int64_t r0 = tile / blocks * 128, c0 = tile % blocks * 128;
        int64_t r1 = r0 + 128 < s->rows ? r0 + 128 : s->rows, c1 = c0 + 128 < s->cols ? c0 + 128 : s->cols;
        int target = 1;
        const uint8_t *scale = in->x.scale;
        for (int64_t r = r0; r < r1; r++)
            for (int64_t c = c0; c < c1; c++)
                if ((code_at(&in->x, r, c) & 0x7F) && scale[r * blocks + c / 128] > target)
                    target = scale[r * blocks + c / 128];
        assert_int_equal(((const uint8_t *)y->scale)[tile], target);
        for (int64_t r = r0; r < r1; r++)
            for (int64_t c = c0; c < c1; c++)
                assert_int_equal(code_at(y, r, c),
                                 exact_shift(code_at(&in->x, r, c), target - scale[r * blocks + c / 128], s->dtype));
    }
}

static void check_shape(shape s)
{
    static const fp8flow_scaling ways[4][2] = { { FP8FLOW_ROW128, FP8FLOW_TILE128 },
                                                { FP8FLOW_ROW128, FP8FLOW_COL128 },
                                                { FP8FLOW_TILE128, FP8FLOW_TILE128 },
                                                { FP8FLOW_TENSOR, FP8FLOW_TENSOR } };
    for (int way = 0; way < 4; way++)
        for (int kind = 0; kind < NUM_DATA_KINDS; kind++) {
            input in;
            fp8flow_tensor y[3];
            s.from = ways[way][0], s.to = ways[way][1], s.dtype = dtypes[kind % 2];
            make_input(&in, &s, (data_kind)kind);
            check_against_reference(&s, &in, y);
            if (s.to == FP8FLOW_COL128) check_against_requantize(&s, &in, &y[0]);
            if (way == 0 && !s.num_sizes && !s.group_rows) check_against_exact(&s, &in, &y[0]);
            for (int i = 0; i < 3; i++) free_tensor(&y[i]);
            free_tensor(&in.value);
            free_tensor(&in.x);
        }
}

static void test_transpose_of_plain_rows(void **state)
{
    (void)state;
    static const int64_t rows[] = { 0, 1, 127, 128, 129, 255 }, cols[] = { 128, 16, 200, 136, 48, 1 };
    for (int i = 0; i < 6; i++) check_shape((shape){ .rows = rows[i], .cols = cols[i] });
}

static void test_transpose_of_groups_ignores_poisoned_padding(void **state)
{
    (void)state;
    check_shape((shape){ .cols = 136, .num_sizes = 5, .sizes = { 0, 1, 129, 0, 128 } });
    check_shape((shape){ .cols = 48, .num_sizes = 2, .sizes = { 127, 200 } });
    check_shape((shape){ .cols = 16, .num_sizes = 1, .sizes = { 0 } });
}

static void test_transpose_of_weights(void **state)
{
    (void)state;
    check_shape((shape){ .rows = 390, .cols = 136, .group_rows = 130 });
    check_shape((shape){ .rows = 96, .cols = 48, .group_rows = 32 });
}

static void test_transpose_copies_the_scale_of_a_zero_tile(void **state)
{
    (void)state;
    for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
        fp8flow_tensor x = make_tensor((f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_ROWS }, 4, 4, 0, 0);
        fp8flow_tensor y = column_tensor(FP8FLOW_E4M3, FP8FLOW_TILE128, 4, 4);
        memset(x.data, 0, 16);
        memset(x.scale, 77, 1);
        transpose((fp8flow_backend)backend, &x, &y, NULL);
        assert_int_equal(((uint8_t *)y.scale)[0], 77);
        free_tensor(&x);
        free_tensor(&y);
    }
}

/* An expert may own whole blocks of padding: code 0, scale byte 1, whatever lies in the input. */
static void test_transpose_of_a_block_of_padding_has_the_smallest_scale(void **state)
{
    (void)state;
    int32_t offset[3] = { 0, 256, 384 }, rows[2] = { 1, 0 };
    fp8flow_groups groups = { 2, offset, rows };
    for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++)
        for (int from = FP8FLOW_ROW128; from <= FP8FLOW_TILE128; from++) {
            fp8flow_context *c = make_context((fp8flow_backend)backend, 2);
            f8_tensor_format format = { FP8FLOW_E4M3, (fp8flow_scaling)from, FP8FLOW_ROWS };
            fp8flow_tensor x = make_tensor(format, 384, 8, 0, 0),
                           y = column_tensor(FP8FLOW_E4M3, FP8FLOW_TILE128, 384, 8);
            memset(x.data, 0x38, 8);
            memset(x.scale, 70, 1);
            assert_ok(fp8flow_transpose(c, &(fp8flow_transpose_args){ &x, &groups, &y, NULL }));
            assert_memory_equal(y.scale, "\x46\x01\x01", 3);
            for (int64_t r = 0; r < 384; r++) assert_int_equal(code_at(&y, r, 7), r == 0 ? 0x38 : 0);
            free_tensor(&x);
            free_tensor(&y);
            fp8flow_context_destroy(c);
        }
}

/* Codes quantised from FLT_MAX stand for 2^128: the rule works on exponents, not on values in FP32. */
static void test_column_rule_holds_beyond_the_range_of_fp32(void **state)
{
    (void)state;
    for (int backend = FP8FLOW_CPU; backend <= FP8FLOW_REFERENCE; backend++) {
        fp8flow_tensor x = row_tensor(FP8FLOW_E4M3, 2, 2), y = column_tensor(FP8FLOW_E4M3, FP8FLOW_COL128, 2, 2);
        memcpy(x.data, (uint8_t[]){ 0x78, 0x79, 0x38, 0x7E }, 4); /* 256, 288; 1, 448 */
        memcpy(x.scale, (uint8_t[]){ 247, 254 }, 2);              /* 2^120, 2^127 */
        transpose((fp8flow_backend)backend, &x, &y, NULL);
        const uint8_t *scale = y.scale;
        assert_int_equal(scale[0], 247); /* 256 * 2^120 beside 2^127 */
        assert_int_equal(code_at(&y, 0, 0), 0x78);
        assert_int_equal(code_at(&y, 1, 0), 0x70); /* 128 */
        assert_int_equal(scale[1], 254);           /* 448 * 2^127 */
        assert_int_equal(code_at(&y, 0, 1), exact_shift(0x79, 7, FP8FLOW_E4M3));
        assert_int_equal(code_at(&y, 1, 1), 0x7E);
        free_tensor(&x);
        free_tensor(&y);
    }
}

static void test_transpose_rejects_what_the_contract_forbids(void **state)
{
    (void)state;
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_tensor x = row_tensor(FP8FLOW_E4M3, 4, 4), y = column_tensor(FP8FLOW_E5M2, FP8FLOW_TILE128, 4, 4);
    fp8flow_tensor z = column_tensor(FP8FLOW_E4M3, FP8FLOW_TENSOR, 4, 4), w = y;
    assert_fails(fp8flow_transpose(c, &(fp8flow_transpose_args){ &x, NULL, &y, NULL }), FP8FLOW_EINVAL, "y is (e5m2");
    assert_fails(fp8flow_transpose(c, &(fp8flow_transpose_args){ &x, NULL, &z, NULL }), FP8FLOW_EINVAL,
                 "no way from row128 to tensor");
    assert_fails(fp8flow_transpose(c, &(fp8flow_transpose_args){ &y, NULL, &y, NULL }), FP8FLOW_EINVAL, "x is (e5m2");
    assert_fails(fp8flow_transpose(c, &(fp8flow_transpose_args){ &x, NULL, NULL, NULL }), FP8FLOW_EINVAL, "y is NULL");
    w.dtype = FP8FLOW_E4M3, w.rows = 3;
    assert_fails(fp8flow_transpose(c, &(fp8flow_transpose_args){ &x, NULL, &w, NULL }), FP8FLOW_ESHAPE, "[3, 4]");
    w.rows = 4, w.group_rows = 2;
    assert_fails(fp8flow_transpose(c, &(fp8flow_transpose_args){ &x, NULL, &w, NULL }), FP8FLOW_ESHAPE, "per expert");
    free_tensor(&x);
    free_tensor(&y);
    free_tensor(&z);
    fp8flow_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shift_of_every_code_to_tile128_is_exact),
        cmocka_unit_test(test_shift_of_every_code_to_col128_is_exact),
        cmocka_unit_test(test_f8_shift_is_exact_for_every_code_and_distance),
        cmocka_unit_test(test_all_zero_rows_never_raise_the_target),
        cmocka_unit_test(test_nan_raises_a_tile_but_not_a_column),
        cmocka_unit_test(test_transpose_of_plain_rows),
        cmocka_unit_test(test_transpose_of_groups_ignores_poisoned_padding),
        cmocka_unit_test(test_transpose_of_weights),
        cmocka_unit_test(test_transpose_copies_the_scale_of_a_zero_tile),
        cmocka_unit_test(test_transpose_of_a_block_of_padding_has_the_smallest_scale),
        cmocka_unit_test(test_column_rule_holds_beyond_the_range_of_fp32),
        cmocka_unit_test(test_transpose_rejects_what_the_contract_forbids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
