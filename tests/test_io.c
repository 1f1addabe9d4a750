/* test_io.c - files, folders, locks, JSON: exact reads, atomic writes under faults, hostile texts. */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "io/json.h"

/* ---- Reading ---- */

static void test_pread_names_file_offset_and_counts(void **state)
{
    (void)state;
    const char *path = put_text("short", "0123456789");
    f8_file file;
    char bytes[16] = { 0 };
    assert_ok(f8_file_open(path, &file));
    assert_int_equal(file.size, 10);
    assert_ok(f8_file_pread(&file, bytes, 4, 3));
    assert_string_equal(bytes, "3456");
    assert_ok(f8_file_pread(&file, bytes, 0, 10));
    assert_fails(f8_file_pread(&file, bytes, 8, 4), FP8FLOW_EIO, "short: offset 4: wanted 8 bytes, got 6");
    assert_fails(f8_file_pread(&file, bytes, 1, INT64_MAX), FP8FLOW_EINVAL, "not possible");
    assert_fails(f8_file_pread(&file, bytes, 1, -1), FP8FLOW_EINVAL, "offset -1");
    assert_int_equal(truncate(path, 5), 0);
    assert_fails(f8_file_pread(&file, bytes, 10, 0), FP8FLOW_EIO, "wanted 10 bytes, got 5");
    f8_file_close(&file);
    f8_file_close(&file);
    assert_fails(f8_file_pread(&file, bytes, 1, 0), FP8FLOW_EINVAL, "closed");
}

static void test_pread_reaches_beyond_4_gib(void **state)
{
    (void)state;
    const char *path = put_text("sparse", "");
    int64_t offset = 5000000000;
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "end", 3, offset), 3);
    close(fd);
    f8_file file;
    char bytes[4] = { 0 };
    assert_ok(f8_file_open(path, &file));
    assert_int_equal(file.size, offset + 3);
    assert_ok(f8_file_pread(&file, bytes, 3, offset));
    assert_string_equal(bytes, "end");
    f8_file_close(&file);
}

static void test_open_refuses_what_is_not_a_file(void **state)
{
    (void)state;
    f8_file file;
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    assert_fails(f8_file_open(in_folder("fifo"), &file), FP8FLOW_EIO, "FIFO");
    assert_fails(f8_file_open(test_folder, &file), FP8FLOW_EIO, "is a folder");
    assert_fails(f8_file_open(in_folder("none"), &file), FP8FLOW_EIO, "No such file");
    assert_int_equal(symlink("loop", in_folder("loop")), 0);
    assert_fails(f8_file_open(in_folder("loop"), &file), FP8FLOW_EIO, "symbolic links");
    char *huge = malloc(1 << 20);
    memset(huge, 'a', (1 << 20) - 1);
    huge[(1 << 20) - 1] = 0;
    assert_fails(f8_file_open(huge, &file), FP8FLOW_EIO, "aaaa");
    free(huge);
}

static void test_read_all_keeps_its_limit(void **state)
{
    (void)state;
    f8_buffer content;
    const char *path = put_text("ten", "0123456789");
    assert_ok(f8_file_read_all(path, 10, &content));
    assert_int_equal(content.size, 10);
    assert_string_equal(content.data, "0123456789");
    f8_buffer_free(&content);
    assert_fails(f8_file_read_all(path, 9, &content), FP8FLOW_EFORMAT, "ten: has 10 bytes, at most 9 are allowed");
    assert_ok(f8_file_read_all(put_text("empty", ""), 9, &content));
    assert_int_equal(content.size, 0);
    assert_string_equal(content.data, "");
    f8_buffer_free(&content);
}

/* ---- Writing ---- */

static void assert_content(const char *path, const char *expected)
{
    size_t count;
    char *bytes = get_file(path, &count);
    assert_string_equal(bytes, expected);
    free(bytes);
}

static void test_write_replaces_and_leaves_nothing_else(void **state)
{
    (void)state;
    const char *path = in_folder("file");
    assert_ok(f8_file_write_all(path, "one", 3));
    assert_ok(f8_file_write_all(path, "two!", 4));
    assert_content(path, "two!");
    assert_ok(f8_file_write_all(in_folder("nothing"), NULL, 0));
    assert_int_equal(count_entries(test_folder), 2);

    f8_file_writer writer;
    assert_ok(f8_writer_open(path, &writer));
    assert_ok(f8_writer_write(&writer, "three", 5));
    assert_content(path, "two!");
    f8_writer_cancel(&writer);
    f8_writer_cancel(&writer);
    assert_fails(f8_writer_write(&writer, "x", 1), FP8FLOW_EINVAL, "closed");
    assert_fails(f8_writer_commit(&writer), FP8FLOW_EINVAL, "closed");
    assert_content(path, "two!");
    assert_int_equal(count_entries(test_folder), 2);
}

static void test_write_respects_umask_and_long_names(void **state)
{
    (void)state;
    char name[256];
    struct stat info;
    memset(name, 'n', 255);
    name[255] = 0;
    mode_t old = umask(077);
    assert_ok(f8_file_write_all(in_folder(name), "x", 1));
    umask(old);
    assert_int_equal(stat(in_folder(name), &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
}

static void test_write_reports_impossible_places(void **state)
{
    (void)state;
    put_text("file", "kept");
    assert_fails(f8_file_write_all(in_folder("file/below"), "x", 1), FP8FLOW_EIO, "Not a directory");
    assert_fails(f8_file_write_all(in_folder("none/below"), "x", 1), FP8FLOW_EIO, "No such file");
    assert_fails(f8_file_write_all("/proc/self/below", "x", 1), FP8FLOW_EIO, "/proc/self");
    assert_int_equal(mkdir(in_folder("folder"), 0700), 0);
    put_text("folder/inside", "kept");
    assert_fails(f8_file_write_all(in_folder("folder"), "x", 1), FP8FLOW_EIO, "cannot replace");
    assert_content(in_folder("file"), "kept");
    assert_int_equal(count_entries(test_folder), 2);
}

static void test_full_disk_keeps_the_old_file(void **state)
{
    (void)state;
    const char *path = put_text("file", "old");
    f8_file_writer writer;
    assert_ok(f8_writer_open(path, &writer));
    int full = open("/dev/full", O_WRONLY);
    assert_true(full >= 0 && dup2(full, writer.fd) >= 0);
    close(full);
    assert_fails(f8_writer_write(&writer, "new", 3), FP8FLOW_EIO, "No space left");
    f8_writer_cancel(&writer);
    assert_content(path, "old");
    assert_int_equal(count_entries(test_folder), 1);
}

/* Runs body in a child; the child's exit status. */
static int in_child(int (*body)(void))
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) _exit(body());
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

/* Every limit from 0 to the size in odd steps: a short write, then EFBIG. */
static int write_under_limits(void)
{
    static char bytes[20000];
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t limit = 0; limit < sizeof bytes; limit += 777) {
        struct rlimit r = { limit, RLIM_INFINITY };
        if (setrlimit(RLIMIT_FSIZE, &r) != 0) return 1;
        if (f8_file_write_all(in_folder("file"), bytes, sizeof bytes) != FP8FLOW_EIO) return 2;
        if (!strstr(fp8flow_last_error(), "File too large")) return 3;
    }
    return 0;
}

static void test_size_limit_keeps_the_old_file(void **state)
{
    (void)state;
    put_text("file", "old");
    assert_int_equal(in_child(write_under_limits), 0);
    assert_content(in_folder("file"), "old");
    assert_int_equal(count_entries(test_folder), 1);
}

/* Files of one repeated byte and varying length, until killed. */
static int write_forever(void)
{
    static char bytes[60000];
    for (unsigned i = 0;; i++) {
        size_t count = 20000 + i * 7919 % 40000;
        memset(bytes, 'a' + (int)(count % 26), count);
        if (f8_file_write_all(in_folder("file"), bytes, count) != FP8FLOW_OK) return 1;
    }
}

static void test_kill_leaves_a_complete_file(void **state)
{
    (void)state;
    enum { TRIALS = 60 };
    assert_ok(f8_file_write_all(in_folder("file"), "", 0));
    for (uint64_t trial = 0; trial < TRIALS; trial++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) _exit(write_forever());
        usleep((useconds_t)(f8_random(1, 2, trial) % 9000));
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        assert_true(WIFSIGNALED(status));
        size_t count;
        char *bytes = get_file(in_folder("file"), &count);
        for (size_t i = 0; i < count; i++) assert_int_equal(bytes[i], 'a' + (int)(count % 26));
        free(bytes);
    }
    assert_ok(f8_remove_temporaries(test_folder));
    assert_int_equal(count_entries(test_folder), 1);
}

/* ---- Folders ---- */

static void test_path_join(void **state)
{
    (void)state;
    static const char *const cases[][3] = { { "a", "b", "a/b" }, { "a/", "b", "a/b" }, { "", "b", "b" },
                                            { "a", "/b", "/b" }, { "/", "b", "/b" },   { "a", "b/c", "a/b/c" } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *path;
        assert_ok(f8_path_join(cases[i][0], cases[i][1], &path));
        assert_string_equal(path, cases[i][2]);
        free(path);
    }
}

static void test_directory_make(void **state)
{
    (void)state;
    struct stat info;
    assert_ok(f8_directory_make(in_folder("a/b//c/")));
    assert_ok(f8_directory_make(in_folder("a/b/c")));
    assert_int_equal(stat(in_folder("a/b/c"), &info), 0);
    put_text("file", "");
    assert_fails(f8_directory_make(in_folder("file")), FP8FLOW_EIO, "File exists");
    assert_fails(f8_directory_make(in_folder("file/x")), FP8FLOW_EIO, "/file: cannot make the folder: File exists");
    assert_fails(f8_directory_make(""), FP8FLOW_EINVAL, "empty");
    assert_ok(f8_directory_make("/"));
    assert_ok(f8_directory_make("."));
}

static int lock_is_refused(void)
{
    f8_lock lock;
    char expected[100];
    snprintf(expected, sizeof expected, "already in use by process %ld", (long)getppid());
    if (f8_lock_acquire(test_folder, &lock) != FP8FLOW_EIO) return 1;
    return strstr(fp8flow_last_error(), expected) ? 0 : 2;
}

static int lock_is_granted(void)
{
    f8_lock lock;
    return f8_lock_acquire(test_folder, &lock) == FP8FLOW_OK ? 0 : 1;
}

static void test_second_process_is_refused(void **state)
{
    (void)state;
    f8_lock lock, second;
    assert_ok(f8_lock_acquire(test_folder, &lock));
    assert_int_equal(in_child(lock_is_refused), 0);
    assert_fails(f8_lock_acquire(test_folder, &second), FP8FLOW_EIO, "already in use by process");
    f8_lock_release(&second);
    assert_int_equal(in_child(lock_is_refused), 0);
    f8_lock_release(&lock);
    f8_lock_release(&lock);
    assert_int_equal(in_child(lock_is_granted), 0);
    assert_ok(f8_lock_acquire(test_folder, &lock));
    f8_lock_release(&lock);
    assert_fails(f8_lock_acquire(in_folder("none"), &lock), FP8FLOW_EIO, "No such file");
}

static void test_listing_is_sorted_and_skips_loops(void **state)
{
    (void)state;
    f8_listing listing;
    assert_ok(f8_directory_make(in_folder("b/deep/er")));
    assert_ok(f8_directory_make(in_folder("b-")));
    put_text("b/z", "");
    put_text("b/deep/er/a", "");
    put_text("b-/y", "");
    put_text("B", "");
    put_text(".hidden", "");
    assert_int_equal(symlink("..", in_folder("b/up")), 0);
    assert_int_equal(symlink("b/z", in_folder("a-link")), 0);
    assert_int_equal(symlink("nowhere", in_folder("broken")), 0);
    assert_int_equal(symlink("self", in_folder("self")), 0);
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    assert_ok(f8_list_files(test_folder, &listing));
    static const char *const expected[] = { ".hidden", "B", "a-link", "b-/y", "b/deep/er/a", "b/z" };
    assert_int_equal(listing.num_names, 6);
    for (size_t i = 0; i < 6; i++) assert_string_equal(listing.names + listing.name[i], expected[i]);
    assert_int_equal(listing.num_directory_links, 1);
    assert_int_equal(listing.num_unreadable, 2);
    assert_int_equal(listing.num_special, 1);
    assert_non_null(listing.first_unreadable);
    f8_listing_free(&listing);
    assert_fails(f8_list_files(in_folder("none"), &listing), FP8FLOW_EIO, "No such file");
    assert_fails(f8_list_files(in_folder("B"), &listing), FP8FLOW_EIO, "Not a directory");
}

static void test_listing_of_a_deep_and_wide_tree(void **state)
{
    (void)state;
    f8_buffer path = { 0 };
    for (int i = 0; i < 200; i++) f8_buffer_format(&path, "%sdirectory%d", i ? "/" : "", i);
    f8_buffer_text(&path, "/");
    char *full;
    assert_ok(f8_path_join(test_folder, path.data, &full));
    assert_ok(f8_directory_make(full));
    free(full);
    f8_buffer_text(&path, "leaf");
    assert_ok(f8_path_join(test_folder, path.data, &full));
    assert_ok(f8_file_write_all(full, "x", 1));
    for (int i = 0; i < 300; i++) {
        char name[16];
        snprintf(name, sizeof name, "f%03d", i);
        put_text(name, "");
    }
    f8_listing listing;
    assert_ok(f8_list_files(test_folder, &listing));
    assert_int_equal(listing.num_names, 301);
    assert_string_equal(listing.names + listing.name[0], path.data);
    for (size_t i = 1; i < 301; i++)
        assert_true(strcmp(listing.names + listing.name[i - 1], listing.names + listing.name[i]) < 0);
    f8_listing_free(&listing);
    free(full);
    f8_buffer_free(&path);
}

/* ---- JSON, reading ---- */

static void assert_json_rejected(const char *text, size_t size, const char *message)
{
    f8_json root;
    assert_fails(f8_json_parse("x.json", text, size, &root), FP8FLOW_EFORMAT, message);
    assert_non_null(strstr(fp8flow_last_error(), "x.json: "));
    f8_json_free(&root);
}

static void test_json_rejects_malformed_text(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        " ",
        "{",
        "}",
        "{]",
        "[1,2",
        "[]",
        "null",
        "1",
        "\"x\"",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{\"a\":}",
        "{a:1}",
        "{'a':1}",
        "{\"a\":1}x",
        "{\"a\":1}{}",
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":.5}",
        "{\"a\":1.}",
        "{\"a\":1e}",
        "{\"a\":0x10}",
        "{\"a\":NaN}",
        "{\"a\":Infinity}",
        "{\"a\":-}",
        "{\"a\":1e999}",
        "{\"a\":9223372036854775808}",
        "{\"a\":-9223372036854775809}",
        "{\"a\":tru}",
        "{\"a\":\"\x01\"}",
        "{\"a\":\"\xff\"}",
        "{\"a\":\"\xc0\xaf\"}",
        "{\"a\":\"\xed\xa0\x80\"}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\x41\"}",
        "{\"a\":\"\\u0000\"}",
        "{\"a\":\"unfinished}",
        "{\"a\":1/*c*/}",
        "\xef\xbb\xbf{}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) assert_json_rejected(texts[i], strlen(texts[i]), "");
}

static void test_json_rejects_duplicates_nul_and_depth(void **state)
{
    (void)state;
    assert_json_rejected("{\"a\":1,\"a\":2}", 13, "duplicate");
    assert_json_rejected("{\"a\":1,\"\\u0061\":2}", 18, "duplicate");
    assert_json_rejected("{\"a\":{\"b\":1,\"b\":1}}", 19, "duplicate");
    assert_json_rejected("{\"a\":1\0}", 8, "NUL byte at offset 6");
    assert_json_rejected("{\"a\":\"\0\"}", 9, "NUL byte at offset 6");
    assert_json_rejected("{}\0", 3, "NUL byte at offset 2");
    enum { DEPTH = 100000 };
    char *deep = malloc(5 + DEPTH);
    memcpy(deep, "{\"a\":", 5);
    memset(deep + 5, '[', DEPTH);
    assert_json_rejected(deep, 5 + DEPTH, "depth");
    free(deep);
}

static void test_json_size_limit(void **state)
{
    (void)state;
    f8_json root;
    put_text("c.json", "{\"a\": 1}");
    assert_ok(f8_json_open(in_folder("c.json"), 8, &root));
    f8_json_free(&root);
    assert_fails(f8_json_open(in_folder("c.json"), 7, &root), FP8FLOW_EFORMAT, "at most 7");
    f8_json_free(&root);
    assert_fails(f8_json_open(in_folder("none.json"), 7, &root), FP8FLOW_EIO, "none.json");
}

static const char config[] =
    "{\"i\": 7, \"big\": 9223372036854775807, \"d\": 0.5, \"s\": \"text\", \"b\": true, \"n\": null,"
    " \"o\": {\"inner\": -3, \"deep\": {\"x\": \"y\"}}, \"l\": [1, 2, 3], \"r\": 8.0,"
    " \"long\": \"0123456789012345678901234567890123456789012345678901234567890123456789\"}";

static void test_json_getters_give_values(void **state)
{
    (void)state;
    f8_json root, section, deep;
    int64_t i = 0, list[4], count = 0;
    double d = 0;
    bool b = false;
    const char *s = NULL;
    int choice = -1;
    static const char *const names[] = { "other", "text" };
    assert_ok(f8_json_parse("c.json", config, strlen(config), &root));
    assert_ok(f8_json_int(&root, "i", 7, 7, &i));
    assert_int_equal(i, 7);
    assert_ok(f8_json_int(&root, "big", 0, INT64_MAX, &i));
    assert_int_equal(i, INT64_MAX);
    assert_ok(f8_json_double(&root, "d", 0, 1, &d));
    assert_true(d == 0.5);
    assert_ok(f8_json_double(&root, "i", 0, 10, &d));
    assert_true(d == 7.0);
    assert_ok(f8_json_bool(&root, "b", &b));
    assert_true(b);
    assert_ok(f8_json_string(&root, "s", &s));
    assert_string_equal(s, "text");
    assert_ok(f8_json_choice(&root, "s", names, 2, &choice));
    assert_int_equal(choice, 1);
    assert_ok(f8_json_int_array(&root, "l", (f8_json_array_limits){ 1, 3, 4 }, list, &count));
    assert_true(count == 3 && list[0] == 1 && list[2] == 3);
    assert_ok(f8_json_section(&root, "o", &section));
    assert_ok(f8_json_int(&section, "inner", -5, 0, &i));
    assert_int_equal(i, -3);
    assert_ok(f8_json_section(&section, "deep", &deep));
    assert_fails(f8_json_int(&deep, "x", 0, 1, &i), FP8FLOW_EFORMAT, "c.json: o.deep.x is \"y\", expected an integer");
    assert_true(f8_json_has(&root, "i") && !f8_json_has(&root, "n") && !f8_json_has(&root, "zzz"));
    f8_json_free(&root);
    f8_json_free(&root);
}

static void test_json_getters_name_file_key_and_value(void **state)
{
    (void)state;
    f8_json root, section;
    int64_t i = 42, list[3], count = 42;
    double d = 42;
    bool b;
    const char *s;
    int choice;
    static const char *const names[] = { "one", "two" };
    assert_ok(f8_json_parse("c.json", config, strlen(config), &root));
    assert_fails(f8_json_int(&root, "zzz", 0, 1, &i), FP8FLOW_EFORMAT, "c.json: zzz is missing");
    assert_fails(f8_json_int(&root, "n", 0, 1, &i), FP8FLOW_EFORMAT, "c.json: n is null");
    assert_fails(f8_json_int(&root, "i", 8, 9, &i), FP8FLOW_EFORMAT, "c.json: i is 7, expected an integer in [8, 9]");
    assert_fails(f8_json_int(&root, "i", 1, 6, &i), FP8FLOW_EFORMAT, "i is 7, expected an integer in [1, 6]");
    assert_fails(f8_json_int(&root, "r", 1, 9, &i), FP8FLOW_EFORMAT, "r is 8.0, expected an integer");
    assert_fails(f8_json_int(&root, "s", 1, 9, &i), FP8FLOW_EFORMAT, "s is \"text\", expected an integer");
    assert_fails(f8_json_int(&root, "b", 1, 9, &i), FP8FLOW_EFORMAT, "b is true, expected an integer");
    assert_fails(f8_json_int(&root, "o", 1, 9, &i), FP8FLOW_EFORMAT, "o is an object, expected");
    assert_fails(f8_json_int(&root, "l", 1, 9, &i), FP8FLOW_EFORMAT, "l is an array of 3, expected");
    assert_fails(f8_json_int(&root, "long", 1, 9, &i), FP8FLOW_EFORMAT, "long is a string of 70 bytes, expected");
    assert_fails(f8_json_double(&root, "d", 1, 2, &d), FP8FLOW_EFORMAT, "d is 0.5, expected a number in [1, 2]");
    assert_fails(f8_json_double(&root, "d", NAN, 2, &d), FP8FLOW_EFORMAT, "d is 0.5");
    assert_fails(f8_json_double(&root, "s", 1, 2, &d), FP8FLOW_EFORMAT, "s is \"text\", expected a number");
    assert_fails(f8_json_bool(&root, "i", &b), FP8FLOW_EFORMAT, "i is 7, expected true or false");
    assert_fails(f8_json_string(&root, "i", &s), FP8FLOW_EFORMAT, "i is 7, expected a string");
    assert_fails(f8_json_choice(&root, "s", names, 2, &choice), FP8FLOW_EFORMAT,
                 "s is \"text\", expected one of one, two");
    assert_fails(f8_json_choice(&root, "i", names, 2, &choice), FP8FLOW_EFORMAT, "i is 7, expected one of");
    assert_fails(f8_json_section(&root, "i", &section), FP8FLOW_EFORMAT, "i is 7, expected an object");
    assert_fails(f8_json_int_array(&root, "l", (f8_json_array_limits){ 1, 3, 2 }, list, &count), FP8FLOW_EFORMAT,
                 "l is an array of 3, expected an array of at most 2");
    assert_fails(f8_json_int_array(&root, "l", (f8_json_array_limits){ 1, 2, 3 }, list, &count), FP8FLOW_EFORMAT,
                 "l[2] is 3, expected");
    assert_fails(f8_json_int_array(&root, "i", (f8_json_array_limits){ 1, 2, 3 }, list, &count), FP8FLOW_EFORMAT,
                 "i is 7, expected an array");
    assert_true(i == 42 && d == 42 && count == 42);
    f8_json_free(&root);
}

static void test_json_unknown_keys_are_reported(void **state)
{
    (void)state;
    f8_json root;
    static const char text[] = "{\"a\":1,\"b\":2,\"\\n\":3}";
    static const char *const known[] = { "a", "b", "\n" };
    f8_buffer names = { 0 };
    int64_t unknown;
    assert_ok(f8_json_parse("c.json", text, strlen(text), &root));
    assert_ok(f8_json_require_known(&root, known, 3));
    assert_fails(f8_json_require_known(&root, known, 2), FP8FLOW_EFORMAT, "c.json: unknown key: ?");
    assert_ok(f8_json_unknown_keys(&root, known, 1, &names, &unknown));
    assert_int_equal(unknown, 2);
    assert_non_null(strstr(names.data, "b"));
    f8_buffer_free(&names);
    f8_json_free(&root);

    f8_buffer many = { 0 };
    for (int i = 0; i < 50; i++) f8_buffer_format(&many, "%s\"k%d\":0", i ? "," : "{", i);
    f8_buffer_text(&many, "}");
    assert_ok(f8_json_parse("c.json", many.data, many.size, &root));
    assert_fails(f8_json_require_known(&root, known, 3), FP8FLOW_EFORMAT, " and 40 more");
    f8_json_free(&root);
    f8_buffer_free(&many);
}

/* ---- JSON, writing ---- */

static void test_json_writer_escapes_and_separates(void **state)
{
    (void)state;
    f8_buffer out = { 0 };
    f8_json_writer writer = { .out = &out };
    f8_json_begin_object(&writer, NULL);
    f8_json_write_int(&writer, "min", INT64_MIN);
    f8_json_write_string(&writer, "k\"\\\n\t\x7f", "\xc3\xa9\xff/");
    f8_json_begin_array(&writer, "list");
    f8_json_write_bool(&writer, NULL, true);
    f8_json_begin_object(&writer, NULL);
    f8_json_end_object(&writer);
    f8_json_write_double(&writer, NULL, 0.1);
    f8_json_end_array(&writer);
    f8_json_write_bool(&writer, "last", false);
    f8_json_end_object(&writer);
    assert_ok(f8_buffer_check(&out, "test"));
    assert_string_equal(out.data,
                        "{\"min\":-9223372036854775808,\"k\\\"\\\\\\n\\u0009\\u007f\":\"\xc3\xa9\xef\xbf\xbd/\","
                        "\"list\":[true,{},0.1],\"last\":false}");
    f8_buffer_free(&out);
}

static void assert_double_survives(double value)
{
    f8_buffer out = { 0 };
    f8_json_writer writer = { .out = &out };
    f8_json root;
    double back = 0;
    f8_json_begin_object(&writer, NULL);
    f8_json_write_double(&writer, "x", value);
    f8_json_end_object(&writer);
    assert_null(strchr(out.data, ','));
    assert_ok(f8_json_parse("x", out.data, out.size, &root));
    assert_true(json_is_real(json_object_get(root.object, "x")));
    assert_ok(f8_json_double(&root, "x", -HUGE_VAL, HUGE_VAL, &back));
    assert_memory_equal(&back, &value, sizeof value);
    f8_json_free(&root);
    f8_buffer_free(&out);
}

static void check_doubles(void)
{
    static const double values[] = { 0.0,
                                     -0.0,
                                     1,
                                     -1,
                                     0.1,
                                     1.0 / 3,
                                     1e22,
                                     1e23,
                                     123456789012345678.0,
                                     5e-324,
                                     2.2250738585072014e-308,
                                     1.7976931348623157e308,
                                     1e-5,
                                     1e100 };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) assert_double_survives(values[i]);
    for (uint64_t i = 0; i < 2000; i++) {
        uint64_t bits = f8_random(3, 4, i);
        double value;
        memcpy(&value, &bits, sizeof value);
        if (isfinite(value)) assert_double_survives(value);
    }
}

static void test_json_doubles_survive(void **state)
{
    (void)state;
    check_doubles();
    f8_buffer out = { 0 };
    f8_json_writer writer = { .out = &out };
    f8_json_write_double(&writer, NULL, NAN);
    f8_json_write_double(&writer, NULL, -INFINITY);
    assert_string_equal(out.data, "null,null");
    f8_buffer_free(&out);
}

/* Skipped where the machine has no locale with a decimal comma. */
static void test_json_doubles_survive_a_decimal_comma(void **state)
{
    (void)state;
    static const char *const names[] = { "de_DE.UTF-8", "de_DE.utf8", "de_DE", "fr_FR.UTF-8", "ps_AF.UTF-8" };
    const char *found = NULL;
    for (size_t i = 0; !found && i < sizeof names / sizeof names[0]; i++) found = setlocale(LC_ALL, names[i]);
    if (!found) skip();
    check_doubles();
    setlocale(LC_ALL, "C");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        folder_test(test_pread_names_file_offset_and_counts),
        folder_test(test_pread_reaches_beyond_4_gib),
        folder_test(test_open_refuses_what_is_not_a_file),
        folder_test(test_read_all_keeps_its_limit),
        folder_test(test_write_replaces_and_leaves_nothing_else),
        folder_test(test_write_respects_umask_and_long_names),
        folder_test(test_write_reports_impossible_places),
        folder_test(test_full_disk_keeps_the_old_file),
        folder_test(test_size_limit_keeps_the_old_file),
        folder_test(test_kill_leaves_a_complete_file),
        cmocka_unit_test(test_path_join),
        folder_test(test_directory_make),
        folder_test(test_second_process_is_refused),
        folder_test(test_listing_is_sorted_and_skips_loops),
        folder_test(test_listing_of_a_deep_and_wide_tree),
        cmocka_unit_test(test_json_rejects_malformed_text),
        cmocka_unit_test(test_json_rejects_duplicates_nul_and_depth),
        folder_test(test_json_size_limit),
        cmocka_unit_test(test_json_getters_give_values),
        cmocka_unit_test(test_json_getters_name_file_key_and_value),
        cmocka_unit_test(test_json_unknown_keys_are_reported),
        cmocka_unit_test(test_json_writer_escapes_and_separates),
        cmocka_unit_test(test_json_doubles_survive),
        cmocka_unit_test(test_json_doubles_survive_a_decimal_comma),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
