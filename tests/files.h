/* files.h - a temporary folder per test and small files in it. */
#ifndef F8_TESTS_FILES_H
#define F8_TESTS_FILES_H

#include "support.h"

#include <ftw.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/file.h"

/* Folder of the running test; set up and removed by cmocka's fixtures. */
static char test_folder[256];

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *position)
{
    (void)info, (void)kind, (void)position;
    return remove(path);
}

static inline int make_folder(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(test_folder, sizeof test_folder, "%s/fp8flow-test-XXXXXX", base ? base : "/tmp");
    return mkdtemp(test_folder) ? 0 : -1;
}

static inline int remove_folder(void **state)
{
    (void)state;
    return nftw(test_folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* cmocka_unit_test with a folder of its own. */
#define folder_test(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

/* "<folder>/<name>"; a handful of results stay valid at a time. */
static inline const char *in_folder(const char *name)
{
    static char paths[16][600];
    static unsigned next;
    char *path = paths[next++ % 16];
    snprintf(path, sizeof paths[0], "%s/%s", test_folder, name);
    return path;
}

/* Plain stdio, independent of the code under test. A new file each time: ext4 flushes truncated ones at close. */
static inline const char *put_file(const char *name, const void *bytes, size_t count)
{
    const char *path = in_folder(name);
    remove(path);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
    return path;
}

static inline const char *put_text(const char *name, const char *text)
{
    return put_file(name, text, strlen(text));
}

/* Content of a file, from malloc, NUL-terminated. */
static inline char *get_file(const char *path, size_t *count)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *count = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(*count + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *count, file), *count);
    bytes[*count] = 0;
    fclose(file);
    return bytes;
}

static inline int64_t count_entries(const char *folder)
{
    f8_listing listing;
    assert_ok(f8_list_files(folder, &listing));
    int64_t count = (int64_t)listing.num_names;
    f8_listing_free(&listing);
    return count;
}

#endif
