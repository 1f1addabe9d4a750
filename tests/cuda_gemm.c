/* cuda_gemm.c - grouped products at the shapes of large layers, through every kernel of the tensor cores: integers
 * exactly, other data within the bound of FP64 sums, padding and gaps, the same bits again, graphs.
 *
 * Operands are made of one pool of numbers, on the host and on the device: a weight is a view of the pool, an
 * activation a copy whose padding is NaN. Samples of c are computed again in FP64.
 *
 * The reason for the length: one fixture serves every kernel and every promise of the product.
 */
#include "cuda_gemm_check.h"

typedef struct {
    const char *name;
    fp8flow_product product;
    const f8_tensor_format *a, *b;
    int64_t room; /* capacity per expert, at least: what chooses between the kernels of gradients */
} path;

static const f8_tensor_format row_tiles = { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_ROWS };
static const f8_tensor_format tensor_rows = { FP8FLOW_E4M3, FP8FLOW_TENSOR, FP8FLOW_ROWS };
static const f8_tensor_format tensor_columns = { FP8FLOW_E4M3, FP8FLOW_TENSOR, FP8FLOW_COLUMNS };

static const path paths[] = {
    { "fp8 fprop", FP8FLOW_FPROP, &row128, &row_tiles, 0 },
    { "fp8 dgrad", FP8FLOW_DGRAD, &row128, &tile128, 0 },
    { "fp8 fprop, tensor", FP8FLOW_FPROP, &tensor_rows, &tensor_rows, 0 },
    { "fp8 dgrad, tensor", FP8FLOW_DGRAD, &tensor_rows, &tensor_columns, 0 },
    { "fp8 wgrad, tile", FP8FLOW_WGRAD, &tile128, &tile128, 0 },
    { "fp8 wgrad, col", FP8FLOW_WGRAD, &col128, &col128, 0 },
    { "fp8 wgrad, tensor", FP8FLOW_WGRAD, &tensor_columns, &tensor_columns, 0 },
    { "bf16 fprop", FP8FLOW_FPROP, &bf16_rows, &bf16_rows, 0 },
    { "bf16 dgrad", FP8FLOW_DGRAD, &bf16_rows, &bf16_rows, 0 },
    { "bf16 wgrad", FP8FLOW_WGRAD, &bf16_rows, &bf16_rows, 0 },
    { "fp8 wgrad, tile, room for many rows", FP8FLOW_WGRAD, &tile128, &tile128, 2048 },
};
enum { NUM_PATHS = sizeof paths / sizeof *paths };

typedef struct {
    int64_t n, k; /* of the weight [n, k] */
} shape;

/* What the CPU can do in the GPU's place comes first. */
static const shape shapes[] = { { 16, 16 },    { 48, 128 },    { 128, 144 },   { 144, 128 },
                                { 256, 16 },   { 16, 8192 },   { 48, 7168 },   { 144, 1408 },
                                { 256, 8192 }, { 1408, 2048 }, { 2816, 1408 }, { 1408, 7168 } };
enum { NUM_SHAPES = sizeof shapes / sizeof *shapes, SMALL_SHAPES = 4 };

static int num_shapes(void)
{
    return has_gpu() ? NUM_SHAPES : SMALL_SHAPES;
}

static int64_t num_samples(void)
{
    return has_gpu() ? 2000 : 200;
}

/* ---- The pool ---- */

enum { TABLE = 4096, B_SHIFT = 4112 /* elements: operands that start elsewhere do not correlate */ };

static struct {
    fp8flow_dtype dtype;
    data_kind data;
    int64_t bytes;
    uint8_t *host, *device;
} pool = { .data = NUM_DATA_KINDS };

static void fill_pool(const uint16_t table[TABLE])
{
    int64_t words = pool.bytes / 8;
#pragma omp parallel for schedule(static)
    for (int64_t w = 0; w < words; w++) {
        uint64_t bits = f8_mix((uint64_t)w), more = f8_mix(bits), word = 0;
        for (int i = 0; i < 4; i++, bits >>= 12, more >>= 12)
            if (pool.dtype == FP8FLOW_BF16) word |= (uint64_t)table[bits % TABLE] << 16 * i;
            else word |= (uint64_t)table[bits % TABLE] << 16 * i | (uint64_t)table[more % TABLE] << (16 * i + 8);
        memcpy(pool.host + 8 * w, &word, sizeof word);
    }
}

/* Numbers of this kind from here on. */
static void use_pool(fp8flow_dtype dtype, data_kind data)
{
    fp8flow_context *c = device_context();
    if (pool.host && pool.dtype == dtype && pool.data == data) return;
    if (!pool.host) {
        pool.bytes = has_gpu() ? (int64_t)200 << 20 : (int64_t)4 << 20;
        pool.host = poisoned(pool.bytes);
        pool.device = draw(c, pool.bytes);
    }
    pool.dtype = dtype;
    pool.data = data;
    uint16_t table[TABLE];
    for (int i = 0; i < TABLE; i++) {
        float x = test_value(data, 3, i, 0);
        table[i] = dtype == FP8FLOW_BF16 ? f8_bf16_encode(x) : f8_encode(x, dtype);
    }
    fill_pool(table);
    assert_ok(fp8flow_memory_copy(c, pool.device, pool.host, (size_t)pool.bytes));
}

/* ---- Problems ---- */

typedef struct {
    const path *path;
    shape shape;
    data_kind data;
    fp8flow_dtype c_dtype;
    fp8flow_write write;
    int64_t gap;   /* elements behind every line of a, b and c */
    int32_t align; /* of the experts' first rows; 0: 128 */
} spec;

enum { MAX_EXPERTS = 1024 };

typedef struct {
    int32_t offset[MAX_EXPERTS + 1], rows[MAX_EXPERTS];
} placement;

/* c: what came back. */
typedef struct {
    spec s;
    placement groups;
    int32_t *offset, *rows; /* on the device */
    int64_t count, capacity;
    fp8flow_tensor a, b, c, device_a, device_b, device_c;
} problem;

enum { UNUSED_ROWS = 80, WIDE = 64 };

static const int32_t all_sizes[] = { 0, 1, 63, 64, 65, 127, 128, 129, 4096 };
enum { ALL = sizeof all_sizes / sizeof *all_sizes };

/* The last expert is small where there is no GPU. */
static void choose_sizes(int32_t sizes[ALL])
{
    memcpy(sizes, all_sizes, sizeof all_sizes);
    if (!has_gpu()) sizes[ALL - 1] = 200;
}

static fp8flow_tensor wide_tensor(f8_tensor_format format, int64_t rows, int64_t cols, int64_t group_rows, int64_t gap)
{
    fp8flow_tensor t = f8_tensor_make(format, rows, cols, group_rows);
    t.stride += gap;
    return t;
}

/* Scale bytes of powers of two near 1; TENSOR scales are no powers of two unless sums have to be exact. */
static void make_scales(const problem *p, fp8flow_tensor *t)
{
    int64_t bytes = fp8flow_tensor_scale_bytes(t, p->count);
    uint64_t spread = p->s.data == DATA_SMALL_INTEGERS ? 2 : 8;
    t->scale = poisoned(bytes);
    for (int64_t i = 0; i < (t->scaling == FP8FLOW_TENSOR ? p->count : bytes); i++) {
        int exponent = (int)(f8_random(8, t->scaling, (uint64_t)i) % (2 * spread + 1)) - (int)spread;
        float exact = ldexpf(1.0f, exponent);
        if (t->scaling != FP8FLOW_TENSOR) ((uint8_t *)t->scale)[i] = (uint8_t)(127 + exponent);
        else ((float *)t->scale)[i] = p->s.data == DATA_SMALL_INTEGERS ? exact : exact * 1.37f;
    }
    if (t->scaling != FP8FLOW_ROW128) return;
    int64_t blocks = f8_ceil_div(t->cols, 128), row = 0;
    for (int64_t g = 0; g <= p->count; g++) { /* padding, then what lies behind the last expert */
        int64_t begin = g < p->count ? p->groups.offset[g] : t->rows;
        memset((uint8_t *)t->scale + row * blocks, POISON, (size_t)((begin - row) * blocks));
        if (g < p->count) row = begin + p->groups.rows[g];
    }
}

/* From the pool; what is no row of an expert, and what lies between lines, is NaN. */
static void make_activation(const problem *p, fp8flow_tensor *t, int64_t shift)
{
    int64_t size = (int64_t)f8_dtype_bytes(t->dtype), by_rows = t->layout == FP8FLOW_ROWS;
    uint8_t *data = t->data = poisoned(fp8flow_tensor_data_bytes(t));
    const uint8_t *from = pool.host + shift * size;
    for (int64_t g = 0; g < p->count; g++) {
        int64_t first = p->groups.offset[g], rows = p->groups.rows[g];
        int64_t lines = by_rows ? rows : t->cols, length = (by_rows ? t->cols : rows) * size;
#pragma omp parallel for schedule(static)
        for (int64_t line = 0; line < lines; line++) {
            int64_t at = (by_rows ? (first + line) * t->stride : line * t->stride + first) * size;
            memcpy(data + at, from + at / 16 * 16 % (pool.bytes / 2), (size_t)length);
        }
    }
}

static fp8flow_tensor copy_to_device(const problem *p, const fp8flow_tensor *t)
{
    fp8flow_context *c = device_context();
    fp8flow_tensor copy = *t;
    copy.data = draw_copy(c, t->data, fp8flow_tensor_data_bytes(t));
    if (t->scale) copy.scale = draw_copy(c, t->scale, fp8flow_tensor_scale_bytes(t, p->count));
    return copy;
}

static void make_activations(problem *p, fp8flow_tensor *host, fp8flow_tensor *device, int64_t shift)
{
    if (host->scaling != FP8FLOW_UNSCALED) make_scales(p, host);
    make_activation(p, host, shift);
    *device = copy_to_device(p, host);
}

static void make_weight(problem *p)
{
    int64_t shift = B_SHIFT * (int64_t)f8_dtype_bytes(p->b.dtype), bytes = fp8flow_tensor_data_bytes(&p->b);
    assert_true(shift + bytes <= pool.bytes);
    p->b.data = pool.host + shift;
    if (p->b.scaling != FP8FLOW_UNSCALED) make_scales(p, &p->b);
    p->device_b = p->b;
    p->device_b.data = pool.device + shift;
    if (p->b.scale)
        p->device_b.scale = draw_copy(device_context(), p->b.scale, fp8flow_tensor_scale_bytes(&p->b, p->count));
}

/* c on the device as it is before the product. */
static void reset_c(problem *p)
{
    fp8flow_context *c = device_context();
    int64_t bytes = fp8flow_tensor_data_bytes(&p->c);
    assert_ok(fp8flow_memory_fill(c, p->device_c.data, POISON, (size_t)bytes));
    if (p->s.write == FP8FLOW_OVERWRITE) return;
    fp8flow_tensor values = p->c;
    values.data = poisoned(bytes);
    for (int64_t r = 0; r < values.rows; r++)
        for (int64_t j = 0; j < values.cols; j++) {
            int64_t at = f8_element(&values, r, j);
            if (values.dtype == FP8FLOW_F32) ((float *)values.data)[at] = before;
            else ((uint16_t *)values.data)[at] = f8_bf16_encode(before);
        }
    assert_ok(fp8flow_memory_copy(c, p->device_c.data, values.data, (size_t)bytes));
    free(values.data);
}

static void send_groups(problem *p)
{
    fp8flow_context *c = device_context();
    assert_ok(fp8flow_memory_copy(c, p->offset, p->groups.offset, (size_t)(p->count + 1) * 4));
    assert_ok(fp8flow_memory_copy(c, p->rows, p->groups.rows, (size_t)p->count * 4));
}

/* Rows that the experts take. */
static int64_t place(placement *p, const int32_t *sizes, int count, int32_t align)
{
    int32_t at = 0;
    for (int g = 0; g < count; g++) {
        p->offset[g] = at;
        p->rows[g] = sizes[g];
        at += (sizes[g] + align - 1) / align * align;
    }
    p->offset[count] = at;
    return at;
}

static problem make_problem(spec s, const int32_t *sizes, int count)
{
    problem p = { .s = s, .count = count };
    fp8flow_context *context = device_context();
    f8_tensor_format c = { s.c_dtype, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    int64_t n = s.shape.n, k = s.shape.k;
    use_pool(s.path->a->dtype, s.data);
    p.capacity = f8_ceil_div(place(&p.groups, sizes, count, s.align ? s.align : 128), 16) * 16 + UNUSED_ROWS;
    p.capacity = f8_max(p.capacity, count * s.path->room);
    p.offset = draw(context, (count + 1) * 4);
    p.rows = draw(context, count * 4);
    send_groups(&p);
    int wgrad = s.path->product == FP8FLOW_WGRAD, fprop = s.path->product == FP8FLOW_FPROP;
    p.a = wide_tensor(*s.path->a, p.capacity, fprop ? k : n, 0, s.gap);
    p.b = wgrad ? wide_tensor(*s.path->b, p.capacity, k, 0, s.gap) : wide_tensor(*s.path->b, count * n, k, n, s.gap);
    p.c = wgrad ? wide_tensor(c, count * n, k, n, s.gap) : wide_tensor(c, p.capacity, fprop ? n : k, 0, s.gap);
    make_activations(&p, &p.a, &p.device_a, 0);
    if (wgrad) make_activations(&p, &p.b, &p.device_b, B_SHIFT);
    else make_weight(&p);
    p.device_c = p.c;
    p.device_c.data = draw(context, fp8flow_tensor_data_bytes(&p.c));
    reset_c(&p);
    return p;
}

static void free_problem(problem *p)
{
    fp8flow_context *c = device_context();
    int weight = p->s.path->product != FP8FLOW_WGRAD;
    if (weight) p->b.data = p->device_b.data = NULL; /* the pool's */
    free_tensor(&p->a), free_tensor(&p->b), free_tensor(&p->c);
    drop_tensor(c, &p->device_a), drop_tensor(c, &p->device_b), drop_tensor(c, &p->device_c);
    fp8flow_memory_free(c, p->offset), fp8flow_memory_free(c, p->rows);
}

static fp8flow_status call(problem *p)
{
    fp8flow_groups groups = { p->count, p->offset, p->rows };
    fp8flow_gemm_args args = { p->s.path->product, p->s.write, &groups, &p->device_a, &p->device_b, &p->device_c };
    f8_gemm_desc desc = f8_gemm_describe(&args);
    f8_gemm_kernel kernel = f8_gemm_configure(&desc).kernel;
    assert_true(kernel != F8_GEMM_ANY); /* or this program tests something else */
    assert_int_equal(kernel == F8_GEMM_FP8_TILES, p->s.path->room > 0);
    return fp8flow_gemm(device_context(), &args);
}

static void bring_back(problem *p)
{
    free(p->c.data);
    p->c.data = fetch(device_context(), p->device_c.data, fp8flow_tensor_data_bytes(&p->c));
}

static void run(problem *p)
{
    assert_ok(call(p));
    bring_back(p);
}

/* ---- Checks ---- */

typedef struct {
    int64_t num_i, num_j, num_k, row; /* row: first row of c */
} extent;

static extent extent_of(const problem *p, int64_t g)
{
    int64_t n = p->s.shape.n, k = p->s.shape.k, rows = p->groups.rows[g], offset = p->groups.offset[g];
    switch (p->s.path->product) {
    case FP8FLOW_FPROP: return (extent){ rows, n, k, offset };
    case FP8FLOW_DGRAD: return (extent){ rows, k, n, offset };
    default: return (extent){ n, k, rows, g * n };
    }
}

/* Error of c(i, j) of an expert, in units of what is allowed. */
static double error_at(const problem *p, int64_t g, int64_t i, int64_t j)
{
    extent x = extent_of(p, g);
    int64_t offset = p->groups.offset[g], weight = g * p->s.shape.n;
    fp8flow_product product = p->s.path->product;
    exact_sum c = { p->s.write == FP8FLOW_ACCUMULATE ? before : 0, 0 };
    for (int64_t k = 0; k < x.num_k; k++) {
        double a = product == FP8FLOW_WGRAD ? f8_value(&p->a, offset + k, i, g) : f8_value(&p->a, offset + i, k, g);
        double b = product == FP8FLOW_WGRAD   ? f8_value(&p->b, offset + k, j, g)
                   : product == FP8FLOW_FPROP ? f8_value(&p->b, weight + j, k, g)
                                              : f8_value(&p->b, weight + k, j, g);
        add_product(&c, a, b);
    }
    return error_of(c, f8_value(&p->c, x.row + i, j, 0), p->s.c_dtype, p->s.data);
}

/* Elements of one expert. */
static void check_expert(const problem *p, int64_t g, int64_t samples)
{
    extent x = extent_of(p, g);
    if (x.num_i == 0) return;
    double worst = 0;
    int64_t at = -1;
#pragma omp parallel for schedule(dynamic, 8)
    for (int64_t s = 0; s < samples; s++) {
        element e = sample_of((uint64_t)g, s, x.num_i, x.num_j);
        double error = error_at(p, g, e.row, e.col);
#pragma omp critical
        if (!(error <= worst)) worst = error, at = e.row * x.num_j + e.col;
    }
    if (!(worst <= 1))
        fail_msg("%s [%ld, %ld] data %d write %d gap %ld: expert %ld of %ld rows, (%ld, %ld): %g of the bound",
                 p->s.path->name, (long)p->s.shape.n, (long)p->s.shape.k, (int)p->s.data, (int)p->s.write,
                 (long)p->s.gap, (long)g, (long)p->groups.rows[g], (long)(at / x.num_j), (long)(at % x.num_j), worst);
}

static int is_filled(const uint8_t *from, int64_t bytes, uint8_t value)
{
    for (int64_t i = 0; i < bytes; i++)
        if (from[i] != value) return 0;
    return 1;
}

typedef enum { ROW_IN_USE, ROW_IS_PADDING, ROW_IS_BEHIND } row_use;

static row_use use_of_row(const problem *p, int64_t row)
{
    if (p->s.path->product == FP8FLOW_WGRAD) return ROW_IN_USE;
    for (int64_t g = 0; g < p->count; g++)
        if (row < p->groups.offset[g + 1])
            return row < p->groups.offset[g] + p->groups.rows[g] ? ROW_IN_USE : ROW_IS_PADDING;
    return ROW_IS_BEHIND;
}

/* Gaps and rows behind the last expert are as they were; padding is 0, or as it was. */
static void check_surroundings(const problem *p)
{
    int64_t size = (int64_t)f8_dtype_bytes(p->s.c_dtype), line = p->c.cols * size, bad = -1;
    const uint8_t *data = p->c.data;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < p->c.rows; r++) {
        const uint8_t *from = data + r * p->c.stride * size;
        row_use use = use_of_row(p, r);
        int good = is_filled(from + line, (p->c.stride - p->c.cols) * size, POISON);
        if (p->s.write == FP8FLOW_OVERWRITE && use != ROW_IN_USE)
            good &= is_filled(from, line, use == ROW_IS_PADDING ? 0 : POISON);
        if (p->s.write == FP8FLOW_ACCUMULATE && use != ROW_IN_USE)
            for (int64_t j = 0; j < p->c.cols; j++) good &= f8_value(&p->c, r, j, 0) == before;
#pragma omp critical
        if (!good) bad = r;
    }
    if (bad >= 0)
        fail_msg("%s [%ld, %ld] write %d: row %ld of c is not what it should be", p->s.path->name, (long)p->s.shape.n,
                 (long)p->s.shape.k, (int)p->s.write, (long)bad);
}

static void check(const problem *p)
{
    check_surroundings(p);
    for (int64_t g = 0; g < p->count; g++) check_expert(p, g, f8_max(num_samples() / p->count, 8));
}

static void check_spec(spec s, const int32_t *sizes, int count)
{
    problem p = make_problem(s, sizes, count);
    run(&p);
    check(&p);
    free_problem(&p);
}

/* ---- Values ---- */

/* The formats of c and the gaps alternate. */
static spec spec_of(int which_path, int which_shape, data_kind data)
{
    int f32 = paths[which_path].product == FP8FLOW_WGRAD || (which_path + which_shape) % 3 == 0;
    return (spec){ .path = &paths[which_path],
                   .shape = shapes[which_shape],
                   .data = data,
                   .c_dtype = f32 ? FP8FLOW_F32 : FP8FLOW_BF16,
                   .gap = (which_path + which_shape) % 2 ? WIDE : 0 };
}

static void check_data(data_kind data)
{
    int32_t sizes[ALL];
    choose_sizes(sizes);
    for (int i = 0; i < NUM_PATHS; i++)
        for (int j = 0; j < num_shapes(); j++) check_spec(spec_of(i, j, data), sizes, ALL);
}

static void test_integers_are_exact(void **state)
{
    (void)state;
    check_data(DATA_SMALL_INTEGERS);
}

static void test_random_data_is_within_the_bound(void **state)
{
    (void)state;
    check_data(DATA_NORMAL);
}

static void test_heavy_tailed_data_is_within_the_bound(void **state)
{
    (void)state;
    check_data(DATA_HEAVY_TAILED);
}

static void test_one_expert_may_have_all_rows(void **state)
{
    (void)state;
    const int32_t sizes[] = { 0, 0, has_gpu() ? 4673 : 300, 0 };
    for (int i = 0; i < NUM_PATHS; i++)
        for (int j = 1; j < num_shapes(); j += 2) check_spec(spec_of(i, j, DATA_SMALL_INTEGERS), sizes, 4);
}

static void test_most_of_a_thousand_experts_may_be_empty(void **state)
{
    (void)state;
    int32_t sizes[MAX_EXPERTS] = { 0 };
    int count = has_gpu() ? MAX_EXPERTS : 64;
    for (int g = 3; g < count; g += 17) sizes[g] = g % 200;
    for (int i = 0; i < NUM_PATHS; i++) check_spec(spec_of(i, 2, DATA_SMALL_INTEGERS), sizes, count);
}

/* Where no scale belongs to 128 rows. */
static void test_experts_may_begin_at_any_row(void **state)
{
    (void)state;
    int32_t sizes[ALL];
    choose_sizes(sizes);
    for (int i = 0; i < NUM_PATHS; i++) {
        fp8flow_scaling scaling = paths[i].a->scaling;
        for (int align = 1; align <= 64 && scaling != FP8FLOW_TILE128 && scaling != FP8FLOW_COL128; align *= 8) {
            spec s = spec_of(i, 1 + align % 3, DATA_SMALL_INTEGERS);
            s.align = align;
            check_spec(s, sizes, ALL);
        }
    }
}

static void test_products_are_added_to_c(void **state)
{
    (void)state;
    int32_t sizes[ALL];
    choose_sizes(sizes);
    for (int i = 0; i < NUM_PATHS; i++)
        for (int j = 0; j < num_shapes(); j += 2) {
            spec s = spec_of(i, j, DATA_SMALL_INTEGERS);
            s.c_dtype = FP8FLOW_F32;
            s.write = FP8FLOW_ACCUMULATE;
            check_spec(s, sizes, ALL);
            s.c_dtype = FP8FLOW_BF16;
            if (paths[i].a->dtype == FP8FLOW_BF16 && paths[i].product != FP8FLOW_WGRAD) check_spec(s, sizes, ALL);
        }
}

/* ---- The same bits ---- */

enum { MIDDLE_SHAPE = 7, A_PATH_OF_ROWS = 0, A_PATH_OF_WGRAD = 4, A_PATH_OF_MANY_ROWS = NUM_PATHS - 1 };

static problem make_middle(int which_path)
{
    int32_t sizes[ALL];
    choose_sizes(sizes);
    return make_problem(spec_of(which_path, has_gpu() ? MIDDLE_SHAPE : 2, DATA_NORMAL), sizes, ALL);
}

static void test_bits_are_the_same_again(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_PATHS; i++) {
        int often = i == A_PATH_OF_ROWS || i == A_PATH_OF_WGRAD || i == A_PATH_OF_MANY_ROWS;
        int runs = !has_gpu() ? 3 : often ? 1000 : 20;
        problem p = make_middle(i);
        run(&p);
        for (int again = 1; again < runs; again++) {
            reset_c(&p);
            assert_ok(call(&p));
            assert_device_bytes(device_context(), p.device_c.data, p.c.data, fp8flow_tensor_data_bytes(&p.c));
        }
        free_problem(&p);
    }
}

/* Experts 2 and 7 keep their rows; c of the others changes. */
static void test_bits_do_not_depend_on_other_experts(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_PATHS; i++) {
        problem p = make_middle(i);
        run(&p);
        uint8_t *first = p.c.data;
        p.c.data = NULL;
        p.groups.rows[1] = 0, p.groups.rows[3] = 9, p.groups.rows[8] = 70;
        send_groups(&p);
        reset_c(&p);
        run(&p);
        int64_t line = p.c.stride * (int64_t)f8_dtype_bytes(p.c.dtype);
        for (int64_t g = 2; g < ALL; g += 5) {
            extent x = extent_of(&p, g);
            assert_memory_equal(first + x.row * line, (uint8_t *)p.c.data + x.row * line, (size_t)(x.num_i * line));
        }
        check(&p);
        free(first);
        free_problem(&p);
    }
}

/* Recorded once; each time other rows of the same experts are in use, at the end none. */
static void test_a_graph_follows_the_counts(void **state)
{
    (void)state;
    fp8flow_context *c = device_context();
    for (int i = 0; i < NUM_PATHS; i++) {
        problem p = make_middle(i);
        fp8flow_graph *graph = NULL;
        if (has_gpu()) {
            assert_ok(fp8flow_graph_begin(c));
            assert_ok(call(&p));
            assert_ok(fp8flow_graph_end(c, &graph));
        }
        for (int round = 0; round < 4; round++) {
            for (int g = 0; g < ALL; g++) p.groups.rows[g] = p.groups.rows[g] * (3 - round) / 3;
            send_groups(&p);
            reset_c(&p);
            assert_ok(graph ? fp8flow_graph_launch(c, graph) : call(&p));
            bring_back(&p);
            check(&p);
        }
        fp8flow_graph_destroy(c, graph);
        free_problem(&p);
    }
}

static int drop_pool(void **state)
{
    (void)state;
    free(pool.host);
    fp8flow_memory_free(device_context(), pool.device);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_integers_are_exact),
        cmocka_unit_test(test_one_expert_may_have_all_rows),
        cmocka_unit_test(test_most_of_a_thousand_experts_may_be_empty),
        cmocka_unit_test(test_experts_may_begin_at_any_row),
        cmocka_unit_test(test_products_are_added_to_c),
        cmocka_unit_test(test_random_data_is_within_the_bound),
        cmocka_unit_test(test_heavy_tailed_data_is_within_the_bound),
        cmocka_unit_test(test_bits_are_the_same_again),
        cmocka_unit_test(test_bits_do_not_depend_on_other_experts),
        cmocka_unit_test(test_a_graph_follows_the_counts),
    };
    return cmocka_run_group_tests(tests, NULL, drop_pool);
}
