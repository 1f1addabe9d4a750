/* test_gemm_config.c - which kernel takes which product: a table, the limits, and that nothing else counts. */
#include "support.h"

#include "ops/gemm_config.h"

/* A call that the tensor cores take, before a case changes it. The operands are never read. */
typedef struct {
    fp8flow_product product;
    fp8flow_tensor a, b, c;
    fp8flow_groups groups;
    fp8flow_gemm_args args;
} subject;

enum { EXPERTS = 4, ROWS = 2048, N = 384, K = 256 };

static const f8_tensor_format f32_rows = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };

static char memory[64] __attribute__((aligned(64)));

static fp8flow_tensor view(f8_tensor_format format, int64_t rows, int64_t cols, int64_t group_rows)
{
    fp8flow_tensor t = f8_tensor_make(format, rows, cols, group_rows);
    t.data = memory;
    t.scale = format.scaling == FP8FLOW_UNSCALED ? NULL : memory;
    return t;
}

/* Formats of a and b as their product wants them, both with this dtype; ROW128 stands for the usual block scales. */
static void set_subject(subject *s, fp8flow_product product, fp8flow_dtype dtype, fp8flow_scaling scaling)
{
    int wgrad = product == FP8FLOW_WGRAD, fp8 = f8_is_fp8(dtype), blocks = scaling == FP8FLOW_ROW128;
    fp8flow_layout columns = fp8 ? FP8FLOW_COLUMNS : FP8FLOW_ROWS;
    f8_tensor_format a = { dtype, blocks && wgrad ? FP8FLOW_TILE128 : scaling, wgrad ? columns : FP8FLOW_ROWS };
    f8_tensor_format b = { dtype, blocks ? FP8FLOW_TILE128 : scaling,
                           product == FP8FLOW_FPROP ? FP8FLOW_ROWS : columns };
    f8_tensor_format c = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    int64_t a_cols = product == FP8FLOW_FPROP ? K : N, c_cols = product == FP8FLOW_FPROP ? N : K;
    *s = (subject){ .product = product, .groups = { EXPERTS, NULL, NULL } };
    s->a = view(a, ROWS, a_cols, 0);
    s->b = wgrad ? view(b, ROWS, K, 0) : view(b, EXPERTS * N, K, N);
    s->c = wgrad ? view(c, EXPERTS * N, K, N) : view(c, ROWS, c_cols, 0);
    s->args = (fp8flow_gemm_args){ product, FP8FLOW_OVERWRITE, &s->groups, &s->a, &s->b, &s->c };
}

static f8_gemm_config config_of(const subject *s)
{
    f8_gemm_desc desc = f8_gemm_describe(&s->args);
    return f8_gemm_configure(&desc);
}

/* ---- Descriptions ---- */

static void test_a_description_names_the_sides_of_c(void **state)
{
    (void)state;
    static const int64_t sides[3][2] = { { N, K }, { K, N }, { N, K } };
    for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++) {
        subject s;
        set_subject(&s, (fp8flow_product)product, FP8FLOW_E4M3, FP8FLOW_ROW128);
        s.args.write = FP8FLOW_ACCUMULATE;
        f8_gemm_desc d = f8_gemm_describe(&s.args);
        assert_int_equal(d.product, product);
        assert_int_equal(d.write, FP8FLOW_ACCUMULATE);
        assert_true(d.a_dtype == FP8FLOW_E4M3 && d.b_dtype == FP8FLOW_E4M3 && d.c_dtype == FP8FLOW_F32);
        assert_int_equal(d.scaling, product == FP8FLOW_WGRAD ? FP8FLOW_TILE128 : FP8FLOW_ROW128);
        assert_int_equal(d.experts, EXPERTS);
        assert_int_equal(d.rows, ROWS);
        assert_int_equal(d.outer, sides[product][0]);
        assert_int_equal(d.inner, sides[product][1]);
        assert_true(d.mappable);
        s.args.groups = NULL;
        assert_int_equal(f8_gemm_describe(&s.args).experts, 1);
    }
}

/* Sixteen bytes, whatever the format: of addresses and of lines. */
static void test_maps_need_aligned_tensors(void **state)
{
    (void)state;
    for (int which = 0; which < 3; which++)
        for (int bytes = 1; bytes <= 32; bytes++) {
            subject s;
            set_subject(&s, FP8FLOW_FPROP, FP8FLOW_E4M3, FP8FLOW_ROW128);
            fp8flow_tensor *t = which == 0 ? &s.a : which == 1 ? &s.b : &s.c;
            t->data = memory + bytes;
            assert_int_equal(f8_gemm_describe(&s.args).mappable, bytes % 16 == 0);
            t->data = memory;
            t->stride += bytes;
            int64_t line = bytes * (int64_t)f8_dtype_bytes(t->dtype);
            assert_int_equal(f8_gemm_describe(&s.args).mappable, line % 16 == 0);
        }
}

/* Four at a time: of rows, where every row has its own. */
static void test_row_scales_are_read_as_words(void **state)
{
    (void)state;
    for (int64_t rows = 1; rows <= 8; rows++)
        for (int64_t blocks = 1; blocks <= 4; blocks++)
            for (int bytes = 0; bytes <= 4; bytes++) {
                subject s;
                set_subject(&s, FP8FLOW_FPROP, FP8FLOW_E4M3, FP8FLOW_ROW128);
                s.a.rows = s.c.rows = rows;
                s.a.cols = s.a.stride = s.b.cols = s.b.stride = 128 * blocks;
                s.a.scale = memory + bytes;
                int whole = bytes % 4 == 0 && rows * blocks % 4 == 0;
                assert_int_equal(f8_gemm_describe(&s.args).mappable, whole);
                s.a.scaling = s.b.scaling = FP8FLOW_TENSOR;
                assert_true(f8_gemm_describe(&s.args).mappable);
            }
}

/* ---- Kernels ---- */

static void test_kernels_of_formats(void **state)
{
    (void)state;
    static const struct {
        fp8flow_dtype dtype;
        fp8flow_scaling scaling;
        f8_gemm_kernel kernel[3]; /* of each product */
    } cases[] = {
        { FP8FLOW_E4M3, FP8FLOW_ROW128, { F8_GEMM_FP8_ROWS, F8_GEMM_FP8_ROWS, F8_GEMM_FP8_TILES_FEW } },
        { FP8FLOW_E4M3, FP8FLOW_TENSOR, { F8_GEMM_FP8_ROWS, F8_GEMM_FP8_ROWS, F8_GEMM_FP8_WGRAD } },
        { FP8FLOW_E5M2, FP8FLOW_ROW128, { F8_GEMM_ANY, F8_GEMM_ANY, F8_GEMM_ANY } },
        { FP8FLOW_E5M2, FP8FLOW_TENSOR, { F8_GEMM_ANY, F8_GEMM_ANY, F8_GEMM_ANY } },
        { FP8FLOW_BF16, FP8FLOW_UNSCALED, { F8_GEMM_BF16, F8_GEMM_BF16, F8_GEMM_BF16 } },
        { FP8FLOW_F32, FP8FLOW_UNSCALED, { F8_GEMM_ANY, F8_GEMM_ANY, F8_GEMM_ANY } }, /* dense: below */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++) {
            subject s;
            set_subject(&s, (fp8flow_product)product, cases[i].dtype, cases[i].scaling);
            assert_int_equal(config_of(&s).kernel, cases[i].kernel[product]);
            s.args.groups = NULL;
            f8_gemm_kernel dense = cases[i].kernel[product];
            if (cases[i].dtype == FP8FLOW_F32 && product == FP8FLOW_DGRAD) dense = F8_GEMM_SPLIT_K;
            if (dense == F8_GEMM_FP8_TILES_FEW) dense = F8_GEMM_FP8_TILES; /* one expert has all 2048 rows */
            assert_int_equal(config_of(&s).kernel, dense);
        }
}

static void test_kernels_of_mixed_pairs_and_exact_columns(void **state)
{
    (void)state;
    subject s;
    set_subject(&s, FP8FLOW_WGRAD, FP8FLOW_E4M3, FP8FLOW_COL128);
    assert_int_equal(config_of(&s).kernel, F8_GEMM_FP8_WGRAD);
    s.b.dtype = FP8FLOW_E5M2;
    assert_int_equal(config_of(&s).kernel, F8_GEMM_ANY);
    set_subject(&s, FP8FLOW_DGRAD, FP8FLOW_BF16, FP8FLOW_UNSCALED);
    s.a = view(f32_rows, ROWS, N, 0);
    assert_int_equal(config_of(&s).kernel, F8_GEMM_ANY);
    s.args.groups = NULL;
    assert_int_equal(config_of(&s).kernel, F8_GEMM_ANY);
}

/* Few rows per expert have kernels of their own; that of TILE128 copies whole groups of 32 columns of c. */
static void test_weight_gradients(void **state)
{
    (void)state;
    static const struct {
        fp8flow_scaling scaling;
        int64_t rows, inner;
        const char *text[2]; /* by fp8flow_write */
    } cases[] = {
        { FP8FLOW_TILE128,
          2047,
          2048,
          { "fp8 tiles few 128x192x128, 3 stages, clusters of 1, bands of 16",
            "fp8 tiles few 128x192x128, 3 stages, clusters of 1, bands of 1" } },
        { FP8FLOW_TILE128,
          2047,
          7168,
          { "fp8 tiles few 128x192x128, 3 stages, clusters of 1, bands of 1",
            "fp8 tiles few 128x192x128, 3 stages, clusters of 1, bands of 1" } },
        { FP8FLOW_TILE128,
          2047,
          1424,
          { "fp8 wgrad 128x128x128, 3 stages, clusters of 1, bands of 16",
            "fp8 wgrad 128x128x128, 3 stages, clusters of 1, bands of 16" } },
        { FP8FLOW_TILE128,
          2048,
          1424,
          { "fp8 tiles 128x192x128, 4 stages, clusters of 1, bands of 16",
            "fp8 tiles 128x192x128, 4 stages, clusters of 1, bands of 16" } },
        { FP8FLOW_TILE128,
          2048,
          7168,
          { "fp8 tiles 128x192x128, 4 stages, clusters of 1, bands of 16",
            "fp8 tiles 128x192x128, 4 stages, clusters of 1, bands of 16" } },
        { FP8FLOW_COL128,
          511,
          1408,
          { "fp8 wgrad 128x128x128, 3 stages, clusters of 1, bands of 16",
            "fp8 wgrad 128x128x128, 3 stages, clusters of 1, bands of 16" } },
        { FP8FLOW_COL128,
          512,
          1408,
          { "fp8 wgrad 256x128x128, 4 stages, clusters of 1, bands of 8",
            "fp8 wgrad 256x128x128, 4 stages, clusters of 1, bands of 8" } },
        { FP8FLOW_TENSOR,
          511,
          1408,
          { "fp8 wgrad 128x128x128, 3 stages, clusters of 1, bands of 16",
            "fp8 wgrad 128x128x128, 3 stages, clusters of 1, bands of 16" } },
        { FP8FLOW_TENSOR,
          512,
          1408,
          { "fp8 wgrad 192x128x128, 5 stages, clusters of 1, bands of 10",
            "fp8 wgrad 192x128x128, 5 stages, clusters of 1, bands of 10" } },
    };
    subject s;
    set_subject(&s, FP8FLOW_WGRAD, FP8FLOW_E4M3, FP8FLOW_TILE128);
    f8_gemm_desc d = f8_gemm_describe(&s.args);
    d.experts = 8;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int write = FP8FLOW_OVERWRITE; write <= FP8FLOW_ACCUMULATE; write++) {
            char text[128];
            d.write = (fp8flow_write)write, d.scaling = cases[i].scaling;
            d.rows = 8 * cases[i].rows, d.inner = cases[i].inner;
            f8_gemm_config config = f8_gemm_configure(&d);
            (void)f8_gemm_config_print(&config, text, sizeof text);
            assert_string_equal(text, cases[i].text[write]);
        }
}

/* ---- Dense products of a router and of a model ---- */

/* The product of a router as a description. */
static f8_gemm_desc router(fp8flow_product product, int64_t rows, int64_t experts, int64_t hidden)
{
    int dgrad = product == FP8FLOW_DGRAD, fprop = product == FP8FLOW_FPROP;
    return (f8_gemm_desc){ .product = product,
                           .a_dtype = fprop ? FP8FLOW_BF16 : FP8FLOW_F32,
                           .b_dtype = product == FP8FLOW_WGRAD ? FP8FLOW_BF16 : FP8FLOW_F32,
                           .c_dtype = dgrad ? FP8FLOW_BF16 : FP8FLOW_F32,
                           .experts = 1,
                           .rows = rows,
                           .outer = dgrad ? hidden : experts,
                           .inner = dgrad ? experts : hidden,
                           .mappable = 1 };
}

static void test_products_of_a_router(void **state)
{
    (void)state;
    static const struct {
        int64_t rows, experts, hidden;
        const char *text[3]; /* of each product */
    } cases[] = {
        { 32768,
          8,
          7168,
          { "split 128x24x64, 5 stages, clusters of 1, bands of 1",
            "split k 128x256x64, 4 stages, clusters of 2, bands of 8",
            "split 128x24x64, 5 stages, clusters of 1, bands of 1, 4 splits" } },
        { 8192,
          64,
          2048,
          { "split 128x192x64, 5 stages, clusters of 2, bands of 1, 2 splits",
            "split k 128x256x64, 4 stages, clusters of 2, bands of 8",
            "split 128x192x64, 5 stages, clusters of 2, bands of 1, 8 splits" } },
        { 4096,
          256,
          7168,
          { "split 128x192x64, 5 stages, clusters of 2, bands of 1",
            "split k 128x256x64, 4 stages, clusters of 2, bands of 8",
            "split 128x192x64, 5 stages, clusters of 2, bands of 1" } },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++) {
            char text[128];
            f8_gemm_desc d = router((fp8flow_product)product, cases[i].rows, cases[i].experts, cases[i].hidden);
            f8_gemm_config config = f8_gemm_configure(&d);
            (void)f8_gemm_config_print(&config, text, sizeof text);
            assert_string_equal(text, cases[i].text[product]);
        }
}

/* Scratch memory holds the parts of a weight, and the sums of all splits. */
static void test_limits_of_split_operands(void **state)
{
    (void)state;
    for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++)
        for (int64_t experts = 1; experts <= 1025; experts = experts < 1024 ? 2 * experts : experts + 1)
            for (int64_t hidden = 1; hidden <= (int64_t)1 << 31; hidden *= 16)
                for (int64_t rows = 1; rows <= (int64_t)1 << 32; rows *= 256) {
                    f8_gemm_desc d = router((fp8flow_product)product, rows, experts, hidden);
                    f8_gemm_config config = f8_gemm_configure(&d);
                    int64_t lines = product == FP8FLOW_WGRAD ? hidden : rows;
                    int64_t parts = (product == FP8FLOW_DGRAD ? 12 : 6) * experts * hidden;
                    assert_true(config.kernel == F8_GEMM_ANY || (experts <= 1024 && rows < INT32_MAX));
                    if (config.kernel == F8_GEMM_SPLIT_K) assert_true(hidden % 16 == 0);
                    if (config.kernel != F8_GEMM_ANY && product != FP8FLOW_WGRAD)
                        assert_true(parts <= F8_SPLIT_PARTS_BYTES);
                    if (config.splits > 1) assert_true(config.splits * lines * experts * 4 <= F8_SPLIT_SUMS_BYTES);
                    d.grouped = 1;
                    assert_int_equal(f8_gemm_configure(&d).kernel, F8_GEMM_ANY);
                    d.grouped = 0, d.mappable = 0;
                    assert_int_equal(f8_gemm_configure(&d).kernel, F8_GEMM_ANY);
                }
}

static void test_other_f32_products_take_any(void **state)
{
    (void)state;
    f8_gemm_desc d = router(FP8FLOW_FPROP, 4096, 64, 2048);
    d.c_dtype = FP8FLOW_BF16;
    assert_int_equal(f8_gemm_configure(&d).kernel, F8_GEMM_ANY);
    d = router(FP8FLOW_FPROP, 4096, 64, 2048);
    d.a_dtype = FP8FLOW_F32;
    assert_int_equal(f8_gemm_configure(&d).kernel, F8_GEMM_ANY);
    d = router(FP8FLOW_WGRAD, 4096, 64, 2048);
    d.b_dtype = FP8FLOW_F32;
    assert_int_equal(f8_gemm_configure(&d).kernel, F8_GEMM_ANY);
    d = router(FP8FLOW_DGRAD, 4096, 64, 2040);
    assert_int_equal(f8_gemm_configure(&d).kernel, F8_GEMM_ANY);
}

/* A head with 151936 words, and any number of tokens. */
static void test_dense_products_of_a_model(void **state)
{
    (void)state;
    static const int64_t sizes[][2] = {
        { 151936, 2048 }, { 151936, 16 }, { 16, 4096 }, { 6144, 2048 }, { 2048, 10944 }
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int64_t rows = 1; rows <= 65536; rows = 3 * rows + 1)
            for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++)
                for (int c = FP8FLOW_F32; c <= FP8FLOW_BF16; c++) {
                    f8_gemm_desc d = { .product = (fp8flow_product)product,
                                       .a_dtype = FP8FLOW_BF16,
                                       .b_dtype = FP8FLOW_BF16,
                                       .c_dtype = (fp8flow_dtype)c,
                                       .experts = 1,
                                       .rows = rows,
                                       .outer = sizes[i][0],
                                       .inner = sizes[i][1],
                                       .mappable = 1 };
                    assert_int_equal(f8_gemm_configure(&d).kernel, F8_GEMM_BF16);
                }
}

/* ---- Limits ---- */

static const f8_gemm_desc fast = { .product = FP8FLOW_FPROP,
                                   .a_dtype = FP8FLOW_E4M3,
                                   .b_dtype = FP8FLOW_E4M3,
                                   .c_dtype = FP8FLOW_BF16,
                                   .scaling = FP8FLOW_ROW128,
                                   .experts = 8,
                                   .rows = 4096,
                                   .outer = 2048,
                                   .inner = 7168,
                                   .mappable = 1 };

static f8_gemm_kernel kernel_of(f8_gemm_desc desc)
{
    return f8_gemm_configure(&desc).kernel;
}

static void test_limits_of_shapes(void **state)
{
    (void)state;
    static const int64_t refused[] = { 0, 1, 8, 15, 17, 1000, (int64_t)1 << 31, (int64_t)1 << 40 };
    static const int64_t taken[] = { 16, 48, 144, 1408, (int64_t)1 << 27 };
    assert_int_equal(kernel_of(fast), F8_GEMM_FP8_ROWS);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        f8_gemm_desc d = fast;
        d.outer = refused[i];
        assert_int_equal(kernel_of(d), F8_GEMM_ANY);
        d = fast;
        d.inner = refused[i];
        assert_int_equal(kernel_of(d), F8_GEMM_ANY);
    }
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        f8_gemm_desc d = fast;
        d.outer = d.inner = taken[i];
        assert_int_equal(kernel_of(d), F8_GEMM_FP8_ROWS);
        d.experts = (((int64_t)1 << 31) - 1) / taken[i] + 1;
        assert_int_equal(kernel_of(d), F8_GEMM_ANY);
    }
}

static void test_limits_of_rows_experts_and_maps(void **state)
{
    (void)state;
    for (int64_t rows = 1; rows < (int64_t)1 << 31; rows = 3 * rows + 1) {
        f8_gemm_desc d = fast;
        d.rows = rows;
        assert_int_equal(kernel_of(d), F8_GEMM_FP8_ROWS);
    }
    f8_gemm_desc none = fast, beyond = fast, experts = fast, unaligned = fast;
    none.rows = 0;
    beyond.rows = (int64_t)1 << 31;
    experts.experts = 0;
    unaligned.mappable = 0;
    assert_int_equal(kernel_of(none), F8_GEMM_ANY);
    assert_int_equal(kernel_of(beyond), F8_GEMM_ANY);
    assert_int_equal(kernel_of(experts), F8_GEMM_ANY);
    assert_int_equal(kernel_of(unaligned), F8_GEMM_ANY);
    experts.experts = 1024;
    assert_int_equal(kernel_of(experts), F8_GEMM_FP8_ROWS);
    experts.experts = 1025;
    assert_int_equal(kernel_of(experts), F8_GEMM_ANY);
}

/* ---- A pure function, and its text ---- */

static void test_the_same_description_gives_the_same_configuration(void **state)
{
    (void)state;
    for (int product = FP8FLOW_FPROP; product <= FP8FLOW_WGRAD; product++)
        for (int dtype = FP8FLOW_F32; dtype <= FP8FLOW_E5M2; dtype++) {
            f8_gemm_desc d = fast;
            d.product = (fp8flow_product)product;
            d.a_dtype = d.b_dtype = (fp8flow_dtype)dtype;
            f8_gemm_config first = f8_gemm_configure(&d);
            assert_int_equal(f8_gemm_configure(&fast).kernel, F8_GEMM_FP8_ROWS); /* a call between does not count */
            f8_gemm_config second = f8_gemm_configure(&d);
            assert_memory_equal(&first, &second, sizeof first);
            assert_true(first.tile_m > 0 && first.tile_n > 0 && first.tile_k > 0 && first.stages > 0);
            assert_true(first.cluster > 0 && first.band > 0 && first.splits > 0);
        }
}

static void test_text(void **state)
{
    (void)state;
    static const struct {
        f8_gemm_config config;
        const char *text;
    } cases[] = {
        { { F8_GEMM_ANY, 64, 64, 32, 1, 1, 1, 1 }, "any 64x64x32, 1 stage, clusters of 1, bands of 1" },
        { { F8_GEMM_FP8_ROWS, 128, 256, 128, 4, 2, 8, 1 },
          "fp8 rows 128x256x128, 4 stages, clusters of 2, bands of 8" },
        { { F8_GEMM_FP8_WGRAD, 256, 128, 128, 3, 1, 4, 1 },
          "fp8 wgrad 256x128x128, 3 stages, clusters of 1, bands of 4" },
        { { F8_GEMM_BF16, 128, 256, 64, 4, 2, 8, 1 }, "bf16 128x256x64, 4 stages, clusters of 2, bands of 8" },
        { { F8_GEMM_SPLIT, 128, 24, 64, 5, 1, 1, 9 },
          "split 128x24x64, 5 stages, clusters of 1, bands of 1, 9 splits" },
    };
    char text[128];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int length = f8_gemm_config_print(&cases[i].config, text, sizeof text);
        assert_string_equal(text, cases[i].text);
        assert_int_equal(length, strlen(cases[i].text));
    }
    assert_int_equal(f8_gemm_config_print(&cases[3].config, text, 5), strlen(cases[3].text));
    assert_string_equal(text, "bf16");
}

static void test_a_call_says_its_configuration(void **state)
{
    (void)state;
    subject s;
    char expected[128], text[128];
    set_subject(&s, FP8FLOW_FPROP, FP8FLOW_E4M3, FP8FLOW_ROW128);
    f8_gemm_config config = config_of(&s);
    (void)f8_gemm_config_print(&config, expected, sizeof expected);
    assert_ok(fp8flow_gemm_configuration(&s.args, text, sizeof text));
    assert_string_equal(text, expected);
    assert_ok(fp8flow_gemm_configuration(&s.args, text, 4));
    assert_memory_equal(text, expected, 3);
    assert_int_equal(strlen(text), 3);
    assert_fails(fp8flow_gemm_configuration(NULL, text, sizeof text), FP8FLOW_EINVAL, "NULL");
    assert_fails(fp8flow_gemm_configuration(&s.args, NULL, 0), FP8FLOW_EINVAL, "gemm_configuration");
    s.c.cols += 16;
    assert_fails(fp8flow_gemm_configuration(&s.args, text, sizeof text), FP8FLOW_ESHAPE, "gemm");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_description_names_the_sides_of_c),
        cmocka_unit_test(test_maps_need_aligned_tensors),
        cmocka_unit_test(test_row_scales_are_read_as_words),
        cmocka_unit_test(test_kernels_of_formats),
        cmocka_unit_test(test_kernels_of_mixed_pairs_and_exact_columns),
        cmocka_unit_test(test_weight_gradients),
        cmocka_unit_test(test_products_of_a_router),
        cmocka_unit_test(test_limits_of_split_operands),
        cmocka_unit_test(test_other_f32_products_take_any),
        cmocka_unit_test(test_dense_products_of_a_model),
        cmocka_unit_test(test_limits_of_shapes),
        cmocka_unit_test(test_limits_of_rows_experts_and_maps),
        cmocka_unit_test(test_the_same_description_gives_the_same_configuration),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_a_call_says_its_configuration),
    };
    return cmocka_run_group_tests_name("gemm_config", tests, NULL, NULL);
}
