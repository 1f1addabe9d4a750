/* file.c - files: reading exactly, writing atomically. Contract: file.h. Folders: directory.c. */
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/file_system.h"

/* Linux moves at most 0x7FFFF000 bytes per call; smaller pieces also let a signal through. */
static const size_t largest_transfer = (size_t)1 << 26;

fp8flow_status f8_fail_errno(const char *action, const char *path)
{
    char reason[128];
    int error = errno;
    return F8_FAIL(EIO, "%s: cannot %s: %s", path, action, strerror_r(error, reason, sizeof reason));
}

fp8flow_status f8_path_join(const char *directory, const char *name, char **path)
{
    size_t length = name[0] == '/' ? 0 : strlen(directory), rest = strlen(name);
    bool slash = length > 0 && directory[length - 1] != '/';
    char *joined = malloc(length + rest + 2);
    F8_REQUIRE(joined, ENOMEM, "%s: no memory for a path of %zu bytes", name, length + rest + 2);
    memcpy(joined, directory, length);
    if (slash) joined[length] = '/';
    memcpy(joined + length + slash, name, rest + 1);
    *path = joined;
    return FP8FLOW_OK;
}

int f8_open(const char *path, int flags)
{
    int fd;
    do fd = open(path, flags | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    return fd;
}

/* ---- Reading ---- */

fp8flow_status f8_file_open(const char *path, f8_file *file)
{
    *file = (f8_file){ 0 };
    /* O_NONBLOCK: opening a FIFO must not wait for a writer. It has no effect on regular files. */
    int fd = f8_open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0) return f8_fail_errno("open", path);
    struct stat info;
    fp8flow_status status = FP8FLOW_OK;
    char *copy = NULL;
    if (fstat(fd, &info) != 0) status = f8_fail_errno("inspect", path);
    else if (!S_ISREG(info.st_mode))
        status = F8_FAIL(EIO, "%s: is %s, expected a regular file", path,
                         S_ISDIR(info.st_mode) ? "a folder" : "a device, socket or FIFO");
    else if (!(copy = strdup(path))) status = F8_FAIL(ENOMEM, "%s: no memory for its name", path);
    if (status != FP8FLOW_OK) {
        close(fd);
        return status;
    }
    *file = (f8_file){ copy, fd, info.st_size };
    return FP8FLOW_OK;
}

void f8_file_close(f8_file *file)
{
    if (file->path) close(file->fd);
    free(file->path);
    *file = (f8_file){ 0 };
}

fp8flow_status f8_file_pread(const f8_file *file, void *memory, size_t bytes, int64_t offset)
{
    F8_REQUIRE(file->path, EINVAL, "file: read of %zu bytes from a closed file", bytes);
    F8_REQUIRE(offset >= 0 && bytes <= (uint64_t)(INT64_MAX - offset), EINVAL,
               "%s: offset %" PRId64 ": a read of %zu bytes is not possible", file->path, offset, bytes);
    size_t done = 0;
    while (done < bytes) {
        size_t piece = bytes - done < largest_transfer ? bytes - done : largest_transfer;
        ssize_t got = pread(file->fd, (char *)memory + done, piece, (off_t)(offset + (int64_t)done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return f8_fail_errno("read", file->path);
        F8_REQUIRE(got > 0, EIO, "%s: offset %" PRId64 ": wanted %zu bytes, got %zu (the file ends there)", file->path,
                   offset, bytes, done);
        done += (size_t)got;
    }
    return FP8FLOW_OK;
}

fp8flow_status f8_file_read_all(const char *path, size_t limit, f8_buffer *content)
{
    *content = (f8_buffer){ 0 };
    f8_file file;
    F8_TRY(f8_file_open(path, &file));
    fp8flow_status status = FP8FLOW_OK;
    size_t size = (size_t)file.size;
    if ((uint64_t)file.size > limit)
        status = F8_FAIL(EFORMAT, "%s: has %" PRId64 " bytes, at most %zu are allowed", path, file.size, limit);
    if (status == FP8FLOW_OK) status = f8_grow(path, &content->data, &content->capacity, size + 1, 1);
    if (status == FP8FLOW_OK) status = f8_file_pread(&file, content->data, size, 0);
    f8_file_close(&file);
    if (status != FP8FLOW_OK) {
        f8_buffer_free(content);
        return status;
    }
    content->size = size;
    content->data[size] = 0;
    return FP8FLOW_OK;
}

/* ---- Writing ---- */

/* The folder part of a path, from malloc. */
static fp8flow_status directory_of(const char *path, char **directory)
{
    const char *slash = strrchr(path, '/');
    size_t length = !slash ? 0 : slash == path ? 1 : (size_t)(slash - path);
    *directory = slash ? strndup(path, length) : strdup(".");
    F8_REQUIRE(*directory, ENOMEM, "%s: no memory for its folder's name", path);
    return FP8FLOW_OK;
}

/* A new file beside the target. Its name is short and random: a long target name stays possible and two
 * writers of one target never share a temporary file. */
static fp8flow_status create_temporary(f8_file_writer *writer)
{
    for (int attempt = 0; attempt < 16; attempt++) {
        uint64_t random;
        char name[sizeof F8_TEMPORARY_PREFIX + 16];
        if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
            return f8_fail_errno("name a temporary file for", writer->path);
        snprintf(name, sizeof name, F8_TEMPORARY_PREFIX "%016" PRIx64, random);
        char *temporary;
        F8_TRY(f8_path_join(writer->directory, name, &temporary));
        writer->fd = f8_open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW);
        if (writer->fd >= 0) {
            writer->temporary = temporary;
            return FP8FLOW_OK;
        }
        bool taken = errno == EEXIST;
        fp8flow_status status = f8_fail_errno("create", temporary);
        free(temporary);
        if (!taken) return status;
    }
    return F8_FAIL(EIO, "%s: cannot find a free name for a temporary file", writer->path);
}

fp8flow_status f8_writer_open(const char *path, f8_file_writer *writer)
{
    *writer = (f8_file_writer){ .fd = -1 };
    writer->path = strdup(path);
    fp8flow_status status =
        writer->path ? directory_of(path, &writer->directory) : F8_FAIL(ENOMEM, "%s: no memory for its name", path);
    if (status == FP8FLOW_OK) status = create_temporary(writer);
    if (status != FP8FLOW_OK) f8_writer_cancel(writer);
    return status;
}

fp8flow_status f8_writer_write(f8_file_writer *writer, const void *bytes, size_t count)
{
    F8_REQUIRE(writer->temporary, EINVAL, "file: write of %zu bytes to a closed file", count);
    size_t done = 0;
    while (done < count) {
        size_t piece = count - done < largest_transfer ? count - done : largest_transfer;
        ssize_t wrote = write(writer->fd, (const char *)bytes + done, piece);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote == 0) errno = ENOSPC;
        if (wrote <= 0) return f8_fail_errno("write", writer->path);
        done += (size_t)wrote;
    }
    return FP8FLOW_OK;
}

fp8flow_status f8_directory_sync(const char *directory)
{
    int fd = f8_open(directory, O_RDONLY | O_DIRECTORY);
    if (fd < 0) return f8_fail_errno("open the folder", directory);
    /* EINVAL: a file system that cannot synchronise folders; it has nothing better to offer. */
    fp8flow_status status =
        fsync(fd) != 0 && errno != EINVAL ? f8_fail_errno("synchronise the folder", directory) : FP8FLOW_OK;
    close(fd);
    return status;
}

static fp8flow_status publish(f8_file_writer *writer)
{
    if (fsync(writer->fd) != 0) return f8_fail_errno("synchronise", writer->path);
    int closed = close(writer->fd);
    writer->fd = -1;
    if (closed != 0 && errno != EINTR) return f8_fail_errno("close", writer->path);
    if (rename(writer->temporary, writer->path) != 0) return f8_fail_errno("replace", writer->path);
    free(writer->temporary);
    writer->temporary = NULL;
    return f8_directory_sync(writer->directory);
}

fp8flow_status f8_writer_commit(f8_file_writer *writer)
{
    F8_REQUIRE(writer->temporary, EINVAL, "file: commit of a closed file");
    fp8flow_status status = publish(writer);
    f8_writer_cancel(writer);
    return status;
}

void f8_writer_cancel(f8_file_writer *writer)
{
    if (writer->temporary) {
        if (writer->fd >= 0) close(writer->fd);
        unlink(writer->temporary);
    }
    free(writer->path);
    free(writer->directory);
    free(writer->temporary);
    *writer = (f8_file_writer){ .fd = -1 };
}

fp8flow_status f8_file_write_all(const char *path, const void *bytes, size_t count)
{
    f8_file_writer writer;
    F8_TRY(f8_writer_open(path, &writer));
    fp8flow_status status = f8_writer_write(&writer, bytes, count);
    if (status == FP8FLOW_OK) return f8_writer_commit(&writer);
    f8_writer_cancel(&writer);
    return status;
}
