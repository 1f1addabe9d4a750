/* directory.c - folders: making, locking, listing. Contract: file.h. */
#include "io/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/file_system.h"

/* ---- Making ---- */

static fp8flow_status sync_parent(const char *path)
{
    char *parent;
    F8_TRY(f8_path_join(path, "..", &parent));
    fp8flow_status status = f8_directory_sync(parent);
    free(parent);
    return status;
}

static fp8flow_status make_one(const char *path)
{
    if (mkdir(path, 0777) == 0) return sync_parent(path);
    int error = errno;
    struct stat info;
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) return FP8FLOW_OK;
    errno = error;
    return f8_fail_errno("make the folder", path);
}

fp8flow_status f8_directory_make(const char *path)
{
    F8_REQUIRE(path[0], EINVAL, "folder: the path is empty");
    char *copy = strdup(path);
    F8_REQUIRE(copy, ENOMEM, "%s: no memory for its name", path);
    fp8flow_status status = FP8FLOW_OK;
    for (char *at = copy + 1; status == FP8FLOW_OK && *at; at++) {
        if (*at != '/' || at[-1] == '/') continue;
        *at = 0;
        status = make_one(copy);
        *at = '/';
    }
    if (status == FP8FLOW_OK) status = make_one(copy);
    free(copy);
    return status;
}

/* ---- Locking ---- */

/* Who holds the lock: its process number, as the holder wrote it; 0 when that is not (yet) readable. */
static long lock_holder(int fd)
{
    char text[24];
    ssize_t got = pread(fd, text, sizeof text - 1, 0);
    text[got > 0 ? got : 0] = 0;
    return strtol(text, NULL, 10);
}

static fp8flow_status take_lock(int fd, const char *directory, const char *path)
{
    int locked;
    do locked = flock(fd, LOCK_EX | LOCK_NB);
    while (locked != 0 && errno == EINTR);
    if (locked != 0 && errno == EWOULDBLOCK) {
        long holder = lock_holder(fd);
        F8_REQUIRE(holder <= 0, EIO, "%s: already in use by process %ld", directory, holder);
        return F8_FAIL(EIO, "%s: already in use by another process", directory);
    }
    if (locked != 0) return f8_fail_errno("lock", path);
    char text[24];
    int length = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)length, 0) != length) return f8_fail_errno("write", path);
    return FP8FLOW_OK;
}

fp8flow_status f8_lock_acquire(const char *directory, f8_lock *lock)
{
    *lock = (f8_lock){ 0 };
    char *path;
    F8_TRY(f8_path_join(directory, ".lock", &path));
    int fd = f8_open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK);
    fp8flow_status status = fd < 0 ? f8_fail_errno("open", path) : take_lock(fd, directory, path);
    free(path);
    if (status == FP8FLOW_OK) lock->fd = fd + 1;
    else if (fd >= 0) close(fd);
    return status;
}

void f8_lock_release(f8_lock *lock)
{
    /* The file stays: removing it would let two processes hold locks on two files of the same name. */
    if (lock->fd) close(lock->fd - 1);
    *lock = (f8_lock){ 0 };
}

fp8flow_status f8_remove_temporaries(const char *directory)
{
    DIR *stream = opendir(directory);
    if (!stream) return f8_fail_errno("read the folder", directory);
    fp8flow_status status = FP8FLOW_OK;
    for (struct dirent *entry; status == FP8FLOW_OK && (entry = readdir(stream));) {
        if (strncmp(entry->d_name, F8_TEMPORARY_PREFIX, strlen(F8_TEMPORARY_PREFIX)) != 0) continue;
        if (unlinkat(dirfd(stream), entry->d_name, 0) != 0 && errno != ENOENT)
            status = f8_fail_errno("remove a temporary file of", directory);
    }
    closedir(stream);
    return status;
}

/* ---- Listing ---- */

/* A listing while it grows: the result, and the folders still to visit (a work list rather than recursion:
 * a deep tree costs neither stack nor descriptors). */
typedef struct {
    const char *root;
    f8_listing *listing;
    f8_buffer names, pending;
    size_t capacity, next; /* of listing->name; of the first unvisited name in pending */
} walk;

static fp8flow_status note_unreadable(walk *w, const char *relative)
{
    char reason[128];
    const char *text = strerror_r(errno, reason, sizeof reason);
    w->listing->num_unreadable++;
    if (w->listing->first_unreadable) return FP8FLOW_OK;
    f8_buffer note = { 0 };
    f8_buffer_format(&note, "%s: %s", relative, text);
    fp8flow_status status = f8_buffer_check(&note, w->root);
    if (status == FP8FLOW_OK) w->listing->first_unreadable = note.data;
    else f8_buffer_free(&note);
    return status;
}

static fp8flow_status add_file(walk *w, const char *relative)
{
    f8_listing *listing = w->listing;
    F8_TRY(f8_grow(w->root, &listing->name, &w->capacity, listing->num_names + 1, sizeof *listing->name));
    listing->name[listing->num_names++] = w->names.size;
    f8_buffer_append(&w->names, relative, strlen(relative) + 1);
    return f8_buffer_check(&w->names, w->root);
}

static fp8flow_status visit_entry(walk *w, DIR *stream, const char *name, const char *relative)
{
    struct stat info;
    if (fstatat(dirfd(stream), name, &info, AT_SYMLINK_NOFOLLOW) != 0) return note_unreadable(w, relative);
    if (S_ISDIR(info.st_mode)) {
        f8_buffer_append(&w->pending, relative, strlen(relative) + 1);
        return f8_buffer_check(&w->pending, w->root);
    }
    if (S_ISLNK(info.st_mode)) {
        if (fstatat(dirfd(stream), name, &info, 0) != 0) return note_unreadable(w, relative);
        if (S_ISDIR(info.st_mode)) {
            w->listing->num_directory_links++;
            return FP8FLOW_OK;
        }
    }
    if (S_ISREG(info.st_mode)) return add_file(w, relative);
    w->listing->num_special++;
    return FP8FLOW_OK;
}

static fp8flow_status visit_entries(walk *w, DIR *stream, const char *folder)
{
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(stream);
        if (!entry) return errno ? note_unreadable(w, folder) : FP8FLOW_OK;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char *relative;
        F8_TRY(f8_path_join(folder, entry->d_name, &relative));
        fp8flow_status status = visit_entry(w, stream, entry->d_name, relative);
        free(relative);
        F8_TRY(status);
    }
}

/* `folder` is relative to the root; "" is the root itself, which must be readable. */
static fp8flow_status visit_folder(walk *w, const char *folder)
{
    char *path;
    F8_TRY(f8_path_join(w->root, folder, &path));
    DIR *stream = opendir(path);
    fp8flow_status status;
    if (stream) status = visit_entries(w, stream, folder);
    else status = folder[0] ? note_unreadable(w, folder) : f8_fail_errno("read the folder", w->root);
    if (stream) closedir(stream);
    free(path);
    return status;
}

static int compare_names(const void *a, const void *b, void *names)
{
    return strcmp((char *)names + *(const size_t *)a, (char *)names + *(const size_t *)b);
}

fp8flow_status f8_list_files(const char *directory, f8_listing *listing)
{
    *listing = (f8_listing){ 0 };
    walk w = { .root = directory, .listing = listing };
    fp8flow_status status = visit_folder(&w, "");
    while (status == FP8FLOW_OK && w.next < w.pending.size) {
        /* A copy: visiting appends to pending and may move it. */
        char *folder = strdup(w.pending.data + w.next);
        status = folder ? FP8FLOW_OK : F8_FAIL(ENOMEM, "%s: no memory for a folder's name", directory);
        if (status == FP8FLOW_OK) {
            w.next += strlen(folder) + 1;
            status = visit_folder(&w, folder);
        }
        free(folder);
    }
    f8_buffer_free(&w.pending);
    listing->names = w.names.data;
    if (status != FP8FLOW_OK) f8_listing_free(listing);
    else if (listing->num_names > 0)
        qsort_r(listing->name, listing->num_names, sizeof *listing->name, compare_names, listing->names);
    return status;
}

void f8_listing_free(f8_listing *listing)
{
    free(listing->names);
    free(listing->name);
    free(listing->first_unreadable);
    *listing = (f8_listing){ 0 };
}
