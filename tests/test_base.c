/* test_base.c - messages, arenas, tensor views and random numbers: what everything above takes for granted. */
#include "support.h"

#include <pthread.h>

#include "base/arena.h"

/* ---- Messages ---- */

static void test_long_message_is_cut_at_1023_bytes(void **state)
{
    (void)state;
    char text[3000];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = 0;
    assert_int_equal(F8_FAIL(EIO, "%s", text), FP8FLOW_EIO);
    assert_int_equal(strlen(fp8flow_last_error()), 1023);
    assert_int_equal(f8_fail_in(FP8FLOW_EIO, "file \"%s\"", text), FP8FLOW_EIO);
    assert_int_equal(strlen(fp8flow_last_error()), 1023);
    assert_int_equal(f8_fail_in(FP8FLOW_EIO, "x"), FP8FLOW_EIO);
    assert_int_equal(strlen(fp8flow_last_error()), 1023);
    assert_memory_equal(fp8flow_last_error(), "x: file \"aaa", 12);
}

static void test_message_has_no_control_characters(void **state)
{
    (void)state;
    F8_FAIL(EINVAL, "%s", "a\nb\tc\x1b[31md\x7f\r\xC3\xA9");
    assert_string_equal(fp8flow_last_error(), "a?b?c?[31md??\xC3\xA9");
    f8_fail_in(FP8FLOW_EINVAL, "k\ney");
    assert_string_equal(fp8flow_last_error(), "k?ey: a?b?c?[31md??\xC3\xA9");
}

static void test_prefix_may_quote_the_message_it_precedes(void **state)
{
    (void)state;
    F8_FAIL(EINVAL, "inner %d", 7);
    f8_fail_in(FP8FLOW_EINVAL, "<%s>", fp8flow_last_error());
    assert_string_equal(fp8flow_last_error(), "<inner 7>: inner 7");
    F8_FAIL(EINVAL, "(%s)", fp8flow_last_error());
    assert_string_equal(fp8flow_last_error(), "(<inner 7>: inner 7)");
}

static void *fail_elsewhere(void *seen)
{
    *(int *)seen = fp8flow_last_error()[0] == 0;
    F8_FAIL(EIO, "elsewhere");
    return NULL;
}

static void test_each_thread_has_its_own_message(void **state)
{
    (void)state;
    pthread_t thread;
    int was_empty = 0;
    F8_FAIL(EINVAL, "here");
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &was_empty), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(was_empty);
    assert_string_equal(fp8flow_last_error(), "here");
}

static void test_status_names_follow_the_list(void **state)
{
    (void)state;
#define CHECK(name, value, text)             \
    assert_int_equal(FP8FLOW_##name, value); \
    assert_string_equal(fp8flow_status_name((fp8flow_status)(value)), #name);
    FP8FLOW_STATUS_LIST(CHECK)
#undef CHECK
    assert_string_equal(fp8flow_status_name((fp8flow_status)99), "unknown");
}

/* ---- Arena ---- */

enum { BLOCK = 1 << 16 };

static char *aligned_block(void)
{
    char *block = aligned_alloc(128, BLOCK);
    assert_non_null(block);
    memset(block, 0x5A, BLOCK);
    return block;
}

static void test_parts_are_aligned_and_apart(void **state)
{
    (void)state;
    char *block = aligned_block(), *end = block;
    f8_arena arena;
    f8_arena_init(&arena, block, BLOCK);
    static const int64_t counts[] = { 0, 1, 63, 64, 65, 127, 128, 129, 1000, 0, 0, 5 };
    int64_t sum = 0;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        char *part = NULL;
        assert_ok(f8_arena_draw(&arena, "part", counts[i], 3, &part));
        assert_non_null(part);
        assert_int_equal((uintptr_t)part % 128, 0);
        assert_true(i == 0 || part >= end + 64);
        memset(part, (int)i, (size_t)counts[i] * 3);
        end = part + counts[i] * 3;
        sum += counts[i] * 3;
        assert_string_equal(arena.part[i].name, "part");
        assert_int_equal(arena.part[i].bytes, counts[i] * 3);
        assert_ptr_equal(block + arena.part[i].offset, part);
    }
    assert_true(end + 64 <= block + arena.used);
    assert_int_equal(f8_arena_bytes(&arena), sum);
    f8_arena_reset(&arena);
    free(block);
}

static void test_impossible_sizes_are_refused(void **state)
{
    (void)state;
    f8_arena arena;
    void *part = &arena;
    f8_arena_init(&arena, NULL, 0);
    assert_fails(f8_arena_draw(&arena, "wide", INT64_MAX, 16, &part), FP8FLOW_ENOMEM, "wide");
    assert_fails(f8_arena_draw(&arena, "wide", INT64_MAX, 1, &part), FP8FLOW_ENOMEM, "9223372036854775807 elements");
    assert_fails(f8_arena_draw(&arena, "less", -1, 4, &part), FP8FLOW_ENOMEM, "less");
    assert_int_equal(arena.used, 0);
    assert_int_equal(arena.num_parts, 0);
    /* Each is possible, not all of them: the sum must not wrap around either. */
    fp8flow_status status = FP8FLOW_OK;
    for (int i = 0; i < 8 && status == FP8FLOW_OK; i++)
        status = f8_arena_draw(&arena, "huge", INT64_MAX / 2 - 4096, 1, &part);
    assert_int_equal(status, FP8FLOW_ENOMEM);
}

static void test_exhaustion_names_the_part_and_the_bytes(void **state)
{
    (void)state;
    char *block = aligned_block();
    f8_arena arena;
    void *part;
    f8_arena_init(&arena, block, BLOCK);
    assert_ok(f8_arena_draw(&arena, "first", BLOCK - 64 - 128, 1, &part));
    size_t used = arena.used;
    assert_fails(f8_arena_draw(&arena, "second", 1000, 4, &part), FP8FLOW_ENOMEM, "second needs 4000 bytes");
    assert_int_equal(arena.used, used);
    assert_int_equal(arena.num_parts, 1);
    assert_ok(f8_arena_draw(&arena, "third", 64, 1, &part));
    assert_int_equal(arena.used, BLOCK);
    assert_fails(f8_arena_draw(&arena, "fourth", 0, 1, &part), FP8FLOW_ENOMEM, "fourth");
    f8_arena_reset(&arena);
    free(block);
}

static void test_too_many_parts_are_refused(void **state)
{
    (void)state;
    f8_arena arena;
    void *part;
    f8_arena_init(&arena, NULL, 0);
    for (int i = 0; i < F8_ARENA_MAX_PARTS; i++) assert_ok(f8_arena_draw(&arena, "part", 1, 1, &part));
    assert_fails(f8_arena_draw(&arena, "one more", 1, 1, &part), FP8FLOW_ENOMEM, "one more");
}

static void test_rewind_gives_back_what_came_after_the_mark(void **state)
{
    (void)state;
    char *block = aligned_block(), *first, *second, *again;
    f8_arena arena;
    f8_arena_init(&arena, block, BLOCK);
    assert_ok(f8_arena_draw(&arena, "first", 100, 1, &first));
    f8_arena_position mark = f8_arena_mark(&arena);
    assert_ok(f8_arena_draw(&arena, "second", 5000, 1, &second));
    size_t peak = arena.peak;
    memset(first, 1, 100);
    f8_arena_rewind(&arena, mark);
    assert_int_equal(arena.num_parts, 1);
    assert_int_equal(f8_arena_bytes(&arena), 100);
    assert_int_equal(arena.peak, peak);
    assert_ok(f8_arena_draw(&arena, "again", 4000, 1, &again));
    assert_ptr_equal(again, second);
    memset(again, 2, 4000); /* all of it can be used again, red zones of old parts included */
    for (int i = 0; i < 100; i++) assert_int_equal(first[i], 1);
    f8_arena_reset(&arena);
    assert_int_equal(arena.used, 0);
    assert_ok(f8_arena_draw(&arena, "all", BLOCK - 64, 1, &again));
    memset(again, 3, BLOCK - 64);
    f8_arena_reset(&arena);
    memset(block, 4, BLOCK); /* nothing stays poisoned after a reset */
    free(block);
}

/* Some way of using an arena, driven by a seed. */
static void draw_pattern(f8_arena *arena, uint64_t seed)
{
    f8_arena_position marks[4];
    int depth = 0;
    for (uint64_t i = 0; i < 60; i++) {
        uint64_t bits = f8_random(seed, 1, i);
        void *part;
        if (bits % 5 == 0 && depth < 4) marks[depth++] = f8_arena_mark(arena);
        else if (bits % 5 == 1 && depth > 0) f8_arena_rewind(arena, marks[--depth]);
        else assert_ok(f8_arena_draw(arena, "part", (int64_t)(bits >> 32) % 700, 1 + (bits >> 20) % 8, &part));
    }
}

static void test_measuring_finds_exactly_what_is_used(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        f8_arena measure, real;
        f8_arena_init(&measure, NULL, 0);
        draw_pattern(&measure, seed);
        char *block = aligned_alloc(128, measure.peak);
        f8_arena_init(&real, block, measure.peak);
        draw_pattern(&real, seed);
        assert_int_equal(real.peak, measure.peak);
        assert_int_equal(real.used, measure.used);
        assert_int_equal(f8_arena_bytes(&real), f8_arena_bytes(&measure));
        f8_arena_reset(&real);
        free(block);
    }
}

static void test_measuring_gives_null(void **state)
{
    (void)state;
    f8_arena arena;
    void *part = &arena;
    f8_arena_init(&arena, NULL, 0);
    assert_ok(f8_arena_draw(&arena, "part", 10, 1, &part));
    assert_null(part);
}

/* ---- Tensors ---- */

static const f8_tensor_format row128 = { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS };

static void test_formats_that_do_not_exist_are_refused(void **state)
{
    (void)state;
    uint8_t byte = 0;
    for (int dtype = -1; dtype <= 4; dtype++)
        for (int scaling = -1; scaling <= 5; scaling++)
            for (int layout = -1; layout <= 2; layout++) {
                fp8flow_tensor t = { .dtype = (fp8flow_dtype)dtype,
                                     .scaling = (fp8flow_scaling)scaling,
                                     .layout = (fp8flow_layout)layout,
                                     .rows = 1,
                                     .cols = 1,
                                     .stride = 1,
                                     .data = &byte,
                                     .scale = &byte };
                int known = dtype >= 0 && dtype < 4 && scaling >= 0 && scaling < 5 && (layout == 0 || layout == 1);
                int fits = (dtype >= FP8FLOW_E4M3) == (scaling != FP8FLOW_UNSCALED) &&
                           !(scaling == FP8FLOW_ROW128 && layout != FP8FLOW_ROWS) &&
                           !(scaling == FP8FLOW_COL128 && layout != FP8FLOW_COLUMNS);
                if (known && fits) assert_ok(f8_tensor_check("op", "x", &t));
                else assert_fails(f8_tensor_check("op", "x", &t), FP8FLOW_EINVAL, "op: x (");
                assert_int_equal(fp8flow_tensor_data_bytes(&t) >= 0, known);
            }
}

static void test_view_errors_name_the_argument(void **state)
{
    (void)state;
    uint8_t memory[1024], scale[64];
    fp8flow_tensor good = f8_tensor_make(row128, 4, 200, 0), t;
    good.data = memory;
    good.scale = scale;
    assert_ok(f8_tensor_check("op", "x", &good));
    assert_fails(f8_tensor_check("op", "x", NULL), FP8FLOW_EINVAL, "op: x is NULL");
    t = good, t.stride = 199;
    assert_fails(f8_tensor_check("op", "x", &t), FP8FLOW_ESHAPE, "stride 199, less than 200");
    t = good, t.data = NULL;
    assert_fails(f8_tensor_check("op", "x", &t), FP8FLOW_EINVAL, "op: x has no data");
    t = good, t.scale = NULL;
    assert_fails(f8_tensor_check("op", "x", &t), FP8FLOW_EINVAL, "op: x has no scales");
    t = good, t.rows = -1;
    assert_fails(f8_tensor_check("op", "x", &t), FP8FLOW_ESHAPE, "[-1, 200]");
    t = good, t.group_rows = 3;
    assert_fails(f8_tensor_check("op", "x", &t), FP8FLOW_ESHAPE, "3 rows per expert");
    t = good, t.rows = t.stride = INT64_MAX / 8;
    assert_fails(f8_tensor_check("op", "x", &t), FP8FLOW_ESHAPE, "too many bytes");
    t = (fp8flow_tensor){ 0 };
    assert_ok(f8_tensor_check("op", "x", &t));
    t = f8_bf16(NULL, 0, 16);
    assert_ok(f8_tensor_check("op", "x", &t));
}

static void test_sizes_overflow_to_minus_one(void **state)
{
    (void)state;
    static const int64_t large[] = { INT64_MAX, INT64_MAX / 4, INT64_MAX / 8, (int64_t)1 << 40, (int64_t)1 << 32 };
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++) {
            fp8flow_tensor t = f8_tensor_make(row128, large[i], large[j], 0);
            assert_int_equal(fp8flow_tensor_data_bytes(&t), -1);
            t.scaling = FP8FLOW_COL128, t.layout = FP8FLOW_COLUMNS, t.stride = large[i];
            assert_int_equal(fp8flow_tensor_data_bytes(&t), -1);
        }
    assert_int_equal(fp8flow_tensor_data_bytes(NULL), -1);
    assert_int_equal(fp8flow_tensor_scale_bytes(NULL, 1), -1);
    fp8flow_tensor t = f8_tensor_make((f8_tensor_format){ FP8FLOW_E4M3, FP8FLOW_TENSOR, FP8FLOW_ROWS }, 4, 4, 0);
    assert_int_equal(fp8flow_tensor_scale_bytes(&t, INT64_MAX), -1);
    assert_int_equal(fp8flow_tensor_scale_bytes(&t, 3), 12);
}

/* Elements and scales of every layout tile their arrays: in range, each element once. */
static void test_every_element_has_a_place_of_its_own(void **state)
{
    (void)state;
    static const f8_tensor_format formats[] = { { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS },
                                                { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_ROWS },
                                                { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_COLUMNS },
                                                { FP8FLOW_E4M3, FP8FLOW_COL128, FP8FLOW_COLUMNS } };
    for (int f = 0; f < 4; f++)
        for (int64_t group_rows = 0; group_rows <= 150; group_rows += 150) {
            fp8flow_tensor t = f8_tensor_make(formats[f], 300, 140, group_rows);
            int64_t bytes = fp8flow_tensor_data_bytes(&t), scales = fp8flow_tensor_scale_bytes(&t, 2);
            assert_int_equal(bytes, 300 * 140);
            char *seen = calloc((size_t)bytes, 1), *used = calloc((size_t)scales, 1);
            for (int64_t r = 0; r < t.rows; r++)
                for (int64_t c = 0; c < t.cols; c++) {
                    int64_t at = f8_element(&t, r, c), s = f8_scale_index(&t, r, c, 0);
                    assert_true(at >= 0 && at < bytes && s >= 0 && s < scales);
                    assert_int_equal(seen[at]++, 0);
                    used[s] = 1;
                }
            for (int64_t s = 0; s < scales; s++) assert_int_equal(used[s], 1);
            free(seen), free(used);
        }
}

static void test_groups_are_checked(void **state)
{
    (void)state;
    int32_t offset[] = { 0, 128, 128, 256 }, rows[] = { 100, 0, 128 };
    fp8flow_groups groups = { 3, offset, rows };
    assert_ok(f8_groups_check("op", &groups, 256, 128));
    assert_ok(f8_groups_check("op", NULL, 256, 128));
    assert_fails(f8_groups_check("op", &groups, 255, 128), FP8FLOW_ESHAPE, "expert 2 has rows 128 to 256 of 255");
    assert_fails(f8_groups_check("op", NULL, (int64_t)1 << 31, 1), FP8FLOW_ESHAPE, "2147483648 rows");
    rows[1] = 1;
    assert_fails(f8_groups_check("op", &groups, 256, 128), FP8FLOW_ESHAPE, "expert 1 uses 1 of its 0 rows");
    rows[1] = -1;
    assert_fails(f8_groups_check("op", &groups, 256, 128), FP8FLOW_ESHAPE, "expert 1 uses -1");
    rows[1] = 0, offset[1] = offset[2] = 120;
    assert_fails(f8_groups_check("op", &groups, 256, 128), FP8FLOW_ESHAPE, "expert 1 starts at row 120");
    offset[1] = 256;
    assert_fails(f8_groups_check("op", &groups, 256, 128), FP8FLOW_ESHAPE, "expert 1 has rows 256 to 120");
    groups.rows = NULL;
    assert_fails(f8_groups_check("op", &groups, 256, 128), FP8FLOW_EINVAL, "NULL array");
    groups.count = -1;
    assert_fails(f8_groups_check("op", &groups, 256, 128), FP8FLOW_EINVAL, "count -1");
}

/* ---- Random numbers ---- */

static void test_random_numbers_are_pure_and_keep_streams_apart(void **state)
{
    (void)state;
    assert_int_equal(f8_mix(0), 0xE220A8397B1DCDAFu); /* first output of SplitMix64 seeded with 0 */
    assert_int_equal(f8_random(1, 2, 3), f8_random(1, 2, 3));
    for (uint64_t i = 0; i < 1000; i++) {
        assert_int_not_equal(f8_random(1, 2, i), f8_random(1, 3, i));
        assert_int_not_equal(f8_random(1, 2, i), f8_random(2, 2, i));
        assert_int_not_equal(f8_random(1, 2, i), f8_random(2, 1, i));
        assert_int_not_equal(f8_random(1, 2, i), f8_random(1, 2, i + 1));
    }
}

static void test_moments_of_uniform_and_normal(void **state)
{
    (void)state;
    enum { COUNT = 200000 };
    double u1 = 0, u2 = 0, n1 = 0, n2 = 0, n4 = 0, lag = 0, last = 0;
    for (uint64_t i = 0; i < COUNT; i++) {
        double u = (double)f8_uniform(9, 1, i), n = (double)f8_normal(9, 2, i);
        assert_true(u >= 0 && u < 1 && n > -6 && n < 6);
        u1 += u, u2 += u * u, n1 += n, n2 += n * n, n4 += n * n * n * n, lag += n * last, last = n;
    }
    /* Five standard deviations of the mean of COUNT samples; the fourth moment of twelve uniforms is 2.9. */
    double five = 5 / sqrt((double)COUNT);
    assert_true(fabs(u1 / COUNT - 0.5) < five * 0.289 && fabs(u2 / COUNT - 1.0 / 3) < five * 0.3);
    assert_true(fabs(n1 / COUNT) < five && fabs(n2 / COUNT - 1) < five * 1.4 && fabs(n4 / COUNT - 2.9) < five * 9.5);
    assert_true(fabs(lag / COUNT) < five);
}

static void test_shuffle_is_a_permutation(void **state)
{
    (void)state;
    static const uint64_t sizes[] = { 1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097 };
    for (int i = 0; i < 10; i++)
        for (uint64_t key = 0; key < 3; key++) {
            uint64_t n = sizes[i], moved = 0;
            char *seen = calloc(n, 1);
            for (uint64_t k = 0; k < n; k++) {
                uint64_t item = f8_shuffle(key, k, n);
                assert_true(item < n);
                assert_int_equal(seen[item]++, 0);
                moved += item != k;
            }
            assert_true(n < 100 || moved > n * 9 / 10);
            free(seen);
        }
    uint64_t huge = ((uint64_t)1 << 63) + 5;
    assert_true(f8_shuffle(1, huge - 1, huge) < huge);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_message_is_cut_at_1023_bytes),
        cmocka_unit_test(test_message_has_no_control_characters),
        cmocka_unit_test(test_prefix_may_quote_the_message_it_precedes),
        cmocka_unit_test(test_each_thread_has_its_own_message),
        cmocka_unit_test(test_status_names_follow_the_list),
        cmocka_unit_test(test_parts_are_aligned_and_apart),
        cmocka_unit_test(test_impossible_sizes_are_refused),
        cmocka_unit_test(test_exhaustion_names_the_part_and_the_bytes),
        cmocka_unit_test(test_too_many_parts_are_refused),
        cmocka_unit_test(test_rewind_gives_back_what_came_after_the_mark),
        cmocka_unit_test(test_measuring_finds_exactly_what_is_used),
        cmocka_unit_test(test_measuring_gives_null),
        cmocka_unit_test(test_formats_that_do_not_exist_are_refused),
        cmocka_unit_test(test_view_errors_name_the_argument),
        cmocka_unit_test(test_sizes_overflow_to_minus_one),
        cmocka_unit_test(test_every_element_has_a_place_of_its_own),
        cmocka_unit_test(test_groups_are_checked),
        cmocka_unit_test(test_random_numbers_are_pure_and_keep_streams_apart),
        cmocka_unit_test(test_moments_of_uniform_and_normal),
        cmocka_unit_test(test_shuffle_is_a_permutation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
