/* test_data.c - the corpus: the stream, its order, what is skipped, what is refused, files that change. */
#include "files.h"

#include <fcntl.h>

#include "train/data.h"

static const f8_data_options small = { .batch_size = 4, .max_open_files = 2 };

/* A reader over the test's folder. */
static f8_data *open_folder(int64_t sequence_length)
{
    const char *paths[] = { test_folder };
    f8_data *data = NULL;
    assert_ok(f8_data_open(paths, 1, sequence_length, &small, &data));
    return data;
}

/* Documents doc000, doc001, ... of varying sizes, and the stream they should give (from malloc). */
static uint8_t *put_documents(int count, size_t *size)
{
    uint8_t *stream = malloc((size_t)count * 40);
    assert_non_null(stream);
    *size = 0;
    for (int i = 0; i < count; i++) {
        char name[16];
        uint8_t text[40];
        size_t length = 1 + f8_random(7, 1, (uint64_t)i) % 38;
        for (size_t j = 0; j < length; j++) text[j] = (uint8_t)(1 + f8_random(7, 2 + (uint64_t)i, j) % 255);
        snprintf(name, sizeof name, "doc%03d", i);
        put_file(name, text, length);
        if (i) stream[(*size)++] = 0;
        memcpy(stream + *size, text, length);
        *size += length;
    }
    return stream;
}

static void assert_segment(const uint8_t *stream, int64_t segment, int64_t length, const int32_t *ids,
                           const int32_t *targets)
{
    for (int64_t i = 0; i < length; i++) {
        assert_int_equal(ids[i], stream[segment * length + i]);
        assert_int_equal(targets[i], stream[segment * length + i + 1]);
    }
}

/* ---- Content ---- */

static void test_batches_are_the_joined_documents(void **state)
{
    (void)state;
    size_t size;
    uint8_t *stream = put_documents(100, &size);
    for (int64_t length = 1; length <= 90; length += 7) {
        f8_data *data = open_folder(length);
        f8_data_summary summary = f8_data_summarize(data);
        int64_t segments = (int64_t)(size - 1) / length;
        assert_int_equal(summary.num_tokens, size);
        assert_int_equal(summary.num_documents, 100);
        assert_int_equal(summary.num_validation, segments / 20);
        assert_int_equal(summary.num_training, segments - segments / 20);
        int32_t *ids = poisoned(4 * length * 4), *targets = poisoned(4 * length * 4);
        for (int64_t step = 0; step < 60; step++) {
            assert_ok(f8_data_batch(data, 1, step, 0, 4, ids, targets));
            for (int64_t i = 0; i < 4; i++)
                assert_segment(stream, f8_data_training_segment(data, 1, step, i), length, ids + i * length,
                               targets + i * length);
        }
        for (int64_t v = 0; v < summary.num_validation; v++) {
            assert_ok(f8_data_validation(data, v, 1, ids, targets));
            assert_segment(stream, v * 20 + 19, length, ids, targets);
        }
        free(ids);
        free(targets);
        f8_data_close(data);
    }
    free(stream);
}

static void test_last_segment_ends_with_the_last_token(void **state)
{
    (void)state;
    char text[64];
    int32_t ids[3], targets[3];
    for (int i = 0; i < 64; i++) text[i] = (char)('!' + i);
    const char *path = put_file("text", text, 61); /* 20 * 3 + 1: exactly one validation segment */
    f8_data *data;
    assert_ok(f8_data_open(&path, 1, 3, &small, &data));
    assert_ok(f8_data_validation(data, 0, 1, ids, targets));
    assert_true(ids[0] == text[57] && targets[2] == text[60]);
    assert_fails(f8_data_validation(data, 1, 1, ids, targets), FP8FLOW_EINVAL, "validation segments 1 + 1 of 1");
    f8_data_close(data);
}

static void test_tokens_are_unsigned_bytes(void **state)
{
    (void)state;
    uint8_t all[256];
    int32_t ids[48], targets[48];
    bool seen[256] = { false };
    int num_seen = 0;
    for (int i = 0; i < 256; i++) all[i] = (uint8_t)i;
    const char *path = put_file("binary", all, sizeof all); /* named explicitly: taken although it has a NUL */
    f8_data *data;
    assert_ok(f8_data_open(&path, 1, 12, &small, &data));
    for (int64_t step = 0; step < 5; step++) { /* an epoch: 20 segments */
        assert_ok(f8_data_batch(data, 0, step, 0, 4, ids, targets));
        for (int i = 0; i < 48; i++) {
            assert_true(ids[i] >= 0 && targets[i] < 256 && targets[i] == ids[i] + 1);
            num_seen += !seen[ids[i]];
            seen[ids[i]] = true;
        }
    }
    assert_int_equal(num_seen, 240);
    f8_data_close(data);
}

static void test_explicit_files_keep_their_order_and_empty_ones_count(void **state)
{
    (void)state;
    int32_t ids[1], targets[1];
    put_text("z", "abcdefghij");
    put_text("empty", "");
    put_text("a", "0123456789");
    const char *paths[] = { in_folder("z"), in_folder("empty"), in_folder("a") };
    f8_data *data;
    assert_ok(f8_data_open(paths, 3, 1, &small, &data));
    f8_data_summary summary = f8_data_summarize(data);
    assert_int_equal(summary.num_tokens, 22);
    assert_int_equal(summary.num_documents, 3);
    /* Stream "abcdefghij", 0, 0, "0123456789": position 19 is '7'. */
    assert_ok(f8_data_validation(data, 0, 1, ids, targets));
    assert_true(ids[0] == '7' && targets[0] == '8');
    bool separator_pair = false;
    for (int64_t i = 0; i < 20; i++) {
        assert_ok(f8_data_batch(data, 0, i / 4, i % 4, 1, ids, targets));
        separator_pair = separator_pair || (ids[0] == 0 && targets[0] == 0);
    }
    assert_true(separator_pair);
    f8_data_close(data);
}

static void test_folders_skip_and_count(void **state)
{
    (void)state;
    char late[9000];
    memset(late, 'x', sizeof late);
    late[8192] = 0; /* behind the first 8 KiB: text */
    put_file("late-nul", late, sizeof late);
    late[8191] = 0;
    put_file("binary", late, sizeof late);
    put_text("empty", "");
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    assert_int_equal(symlink("nowhere", in_folder("broken")), 0);
    assert_int_equal(symlink(".", in_folder("loop")), 0);
    assert_ok(f8_directory_make(in_folder("below")));
    put_text("below/text", "more");
    f8_data *data = open_folder(16);
    f8_data_summary s = f8_data_summarize(data);
    assert_int_equal(s.num_documents, 2);
    assert_int_equal(s.num_tokens, 4 + 1 + 9000);
    assert_int_equal(s.skipped_binary, 1);
    assert_int_equal(s.skipped_empty, 1);
    assert_int_equal(s.skipped_special, 1);
    assert_int_equal(s.skipped_unreadable, 1);
    assert_int_equal(s.skipped_directory_links, 1);
    f8_data_close(data);
}

/* ---- Order ---- */

static void test_epoch_covers_every_training_segment_once(void **state)
{
    (void)state;
    size_t size;
    free(put_documents(150, &size));
    f8_data *data = open_folder(3);
    f8_data_summary s = f8_data_summarize(data);
    int64_t segments = s.num_training + s.num_validation, moved = 0;
    int *count = calloc((size_t)segments, sizeof *count);
    int64_t *first_epoch = calloc((size_t)s.num_training, sizeof *first_epoch);
    assert_true(count && first_epoch && s.num_training > 500);
    for (int epoch = 0; epoch < 3; epoch++) {
        for (int64_t i = 0; i < s.num_training; i++) {
            int64_t sample = epoch * s.num_training + i;
            int64_t segment = f8_data_training_segment(data, 9, sample / 4, sample % 4);
            assert_true(segment >= 0 && segment < segments && segment % 20 != 19);
            assert_int_equal(count[segment]++, epoch);
            if (epoch == 0) first_epoch[i] = segment;
            else moved += first_epoch[i] != segment;
        }
    }
    assert_true(moved > s.num_training); /* each epoch has an order of its own */
    for (int64_t i = 0; i < segments; i++) assert_int_equal(count[i], i % 20 == 19 ? 0 : 3);
    free(count);
    free(first_epoch);
    f8_data_close(data);
}

static void test_batch_is_a_pure_function(void **state)
{
    (void)state;
    enum { LENGTH = 11 };
    size_t size;
    free(put_documents(120, &size));
    f8_data *one = open_folder(LENGTH), *two = open_folder(LENGTH);
    int32_t ids[4 * LENGTH], targets[4 * LENGTH], part_ids[LENGTH], part_targets[LENGTH];
    int differing = 0;
    for (uint64_t trial = 0; trial < 200; trial++) {
        int64_t step = (int64_t)(f8_random(1, 1, trial) % 100000);
        uint64_t seed = f8_random(1, 2, trial) % 3;
        assert_ok(f8_data_batch(one, seed, step, 0, 4, ids, targets));
        /* Another handle with another history, ranks reading one sequence each. */
        for (int64_t i = 3; i >= 0; i--) {
            assert_ok(f8_data_batch(two, seed, step, i, 1, part_ids, part_targets));
            assert_memory_equal(ids + i * LENGTH, part_ids, sizeof part_ids);
            assert_memory_equal(targets + i * LENGTH, part_targets, sizeof part_targets);
        }
        assert_ok(f8_data_batch(two, seed + 1, step, 0, 1, part_ids, part_targets));
        differing += memcmp(ids, part_ids, sizeof part_ids) != 0;
    }
    assert_true(differing > 150);
    f8_data_close(one);
    f8_data_close(two);
}

/* ---- Refusals ---- */

static void test_too_little_data_says_how_much_is_needed(void **state)
{
    (void)state;
    const char *path = put_text("text", "0123456789012345678901234567890123456789"); /* 40 bytes */
    f8_data *data = (f8_data *)&path;
    assert_fails(f8_data_open(&path, 1, 2, &small, &data), FP8FLOW_EINVAL, "need at least 41 bytes");
    assert_non_null(strstr(fp8flow_last_error(), "found 40 in 1 documents"));
    assert_null(data);
    assert_ok(f8_data_open(&path, 1, 1, &small, &data));
    f8_data_close(data);
    const char *single = put_text("single", "x");
    assert_fails(f8_data_open(&single, 1, 1, &small, &data), FP8FLOW_EINVAL, "found 1 ");
    const char *empty = put_text("empty", "");
    assert_fails(f8_data_open(&empty, 1, 1, &small, &data), FP8FLOW_EINVAL, "found 0 ");
    assert_ok(f8_directory_make(in_folder("folder")));
    const char *folder = in_folder("folder");
    assert_fails(f8_data_open(&folder, 1, 1, &small, &data), FP8FLOW_EINVAL, "found 0 in 0 documents");
    const char *none = in_folder("none");
    assert_fails(f8_data_open(&none, 1, 1, &small, &data), FP8FLOW_EIO, "none: cannot open: No such file");
    f8_data_close(NULL);
}

static void test_bad_arguments_are_refused(void **state)
{
    (void)state;
    size_t size;
    free(put_documents(30, &size));
    const char *path = test_folder;
    int32_t ids[20], targets[20];
    f8_data *data;
    f8_data_options bad = small;
    assert_fails(f8_data_open(&path, 0, 4, &small, &data), FP8FLOW_EINVAL, "no file or folder");
    assert_fails(f8_data_open(&path, 1, 0, &small, &data), FP8FLOW_EINVAL, "sequence length 0");
    assert_fails(f8_data_open(&path, 1, INT64_MAX, &small, &data), FP8FLOW_EINVAL, "sequence length 92233");
    bad.batch_size = 0;
    assert_fails(f8_data_open(&path, 1, 4, &bad, &data), FP8FLOW_EINVAL, "batch size 0");
    bad = (f8_data_options){ 1, -1 };
    assert_fails(f8_data_open(&path, 1, 4, &bad, &data), FP8FLOW_EINVAL, "-1 open files");
    data = open_folder(5);
    assert_fails(f8_data_batch(data, 0, -1, 0, 1, ids, targets), FP8FLOW_EINVAL, "step -1");
    assert_fails(f8_data_batch(data, 0, INT64_MAX / 4, 0, 1, ids, targets), FP8FLOW_EINVAL, "not possible");
    assert_ok(f8_data_batch(data, 0, INT64_MAX / 4 - 1, 0, 4, ids, targets));
    assert_fails(f8_data_batch(data, 0, 0, 3, 2, ids, targets), FP8FLOW_EINVAL, "3 + 2 of a batch of 4");
    assert_fails(f8_data_batch(data, 0, 0, -1, 2, ids, targets), FP8FLOW_EINVAL, "-1 + 2");
    assert_fails(f8_data_batch(data, 0, 0, 1, INT64_MAX, ids, targets), FP8FLOW_EINVAL, "of a batch of 4");
    assert_ok(f8_data_batch(data, 0, 0, 4, 0, ids, targets));
    f8_data_close(data);
}

static void test_files_that_change_are_named(void **state)
{
    (void)state;
    char text[400];
    int32_t ids[10], targets[10];
    memset(text, 'a', sizeof text);
    put_file("one", text, sizeof text);
    put_file("two", text, sizeof text);
    f8_data *data = open_folder(10); /* no file is open yet */
    assert_int_equal(truncate(in_folder("two"), 399), 0);
    assert_ok(f8_data_validation(data, 0, 1, ids, targets)); /* 190..200: in "one" */
    assert_fails(f8_data_validation(data, 2, 1, ids, targets), FP8FLOW_EIO, "/two: has shrunk from 400 to 399 bytes");
    assert_fails(f8_data_validation(data, 2, 1, ids, targets), FP8FLOW_EIO, "/two: has shrunk");
    put_file("two", text, sizeof text);
    assert_ok(f8_data_validation(data, 2, 1, ids, targets)); /* 590..600 */
    assert_int_equal(truncate(in_folder("two"), 150), 0);    /* now while it is open */
    assert_fails(f8_data_validation(data, 2, 1, ids, targets), FP8FLOW_EIO, "/two: offset 189: wanted 11 bytes, got 0");
    f8_data_close(data);
    put_file("two", text, sizeof text);
    data = open_folder(10);
    assert_int_equal(unlink(in_folder("two")), 0);
    assert_fails(f8_data_validation(data, 2, 1, ids, targets), FP8FLOW_EIO, "/two: cannot open: No such file");
    assert_ok(f8_data_validation(data, 0, 1, ids, targets));
    f8_data_close(data);
}

/* ---- Size, identity ---- */

static void test_sparse_file_beyond_2_gib_of_tokens(void **state)
{
    (void)state;
    int64_t size = 5000000000, length = 1000;
    put_text("a", "small");
    int fd = open(in_folder("b"), O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, size), 0);
    /* The last validation segment: stream position p is offset p - 6 of "b". */
    int64_t segments = (size + 6 - 1) / length, last = segments / 20 * 20 - 1;
    assert_int_equal(pwrite(fd, "HELLO", 5, last * length - 6), 5);
    close(fd);
    const char *paths[] = { in_folder("a"), in_folder("b") };
    int32_t ids[1000], targets[1000];
    f8_data *data;
    assert_ok(f8_data_open(paths, 2, length, &small, &data));
    f8_data_summary s = f8_data_summarize(data);
    assert_int_equal(s.num_tokens, size + 6);
    assert_int_equal(s.num_training + s.num_validation, segments);
    assert_ok(f8_data_validation(data, s.num_validation - 1, 1, ids, targets));
    assert_true(ids[0] == 'H' && ids[4] == 'O' && targets[0] == 'E' && ids[5] == 0);
    for (int64_t step = 0; step < 50; step++) assert_ok(f8_data_batch(data, 3, step * 1000003, 0, 1, ids, targets));
    f8_data_close(data);
}

static uint64_t identity_of(const char *const *paths, int count)
{
    f8_data *data;
    assert_ok(f8_data_open(paths, count, 1, &small, &data));
    uint64_t identity = f8_data_summarize(data).identity;
    f8_data_close(data);
    return identity;
}

static void test_identity_tells_data_sets_apart(void **state)
{
    (void)state;
    enum { SIZE = 20000 };
    static char text[SIZE + 1];
    memset(text, 'a', sizeof text);
    assert_ok(f8_directory_make(in_folder("x")));
    assert_ok(f8_directory_make(in_folder("y")));
    put_file("x/1", text, SIZE);
    put_file("x/2", text, 100);
    put_file("y/1", text, SIZE);
    put_file("y/2", text, 100);
    const char *x[] = { in_folder("x") }, *y[] = { in_folder("y") };
    const char *order[] = { in_folder("x/1"), in_folder("x/2"), in_folder("x/1") };
    uint64_t original = identity_of(x, 1);
    assert_true(original == identity_of(x, 1));
    assert_true(original == identity_of(y, 1)); /* moved, but the same */
    assert_true(identity_of(order, 2) != identity_of(order + 1, 2));
    assert_true(identity_of(order, 2) != identity_of(order, 3));
    put_file("y/1", text, SIZE + 1);
    assert_true(original != identity_of(y, 1));
    text[0] = 'b';
    put_file("y/1", text, SIZE);
    assert_true(original != identity_of(y, 1));
    text[0] = 'a';
    text[SIZE - 1] = 'b';
    put_file("y/1", text, SIZE);
    assert_true(original != identity_of(y, 1));
    text[SIZE - 1] = 'a';
    put_file("y/1", text, SIZE);
    assert_true(original == identity_of(y, 1));
    assert_int_equal(rename(in_folder("y/2"), in_folder("y/3")), 0);
    assert_true(original != identity_of(y, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        folder_test(test_batches_are_the_joined_documents),
        folder_test(test_last_segment_ends_with_the_last_token),
        folder_test(test_tokens_are_unsigned_bytes),
        folder_test(test_explicit_files_keep_their_order_and_empty_ones_count),
        folder_test(test_folders_skip_and_count),
        folder_test(test_epoch_covers_every_training_segment_once),
        folder_test(test_batch_is_a_pure_function),
        folder_test(test_too_little_data_says_how_much_is_needed),
        folder_test(test_bad_arguments_are_refused),
        folder_test(test_files_that_change_are_named),
        folder_test(test_sparse_file_beyond_2_gib_of_tokens),
        folder_test(test_identity_tells_data_sets_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
