/* file.h - files and folders: exact reads, atomic writes, a lock, sorted listings.
 *
 * Every failure of the system is EIO with the file's name and the system's reason; memory is ENOMEM.
 * Nothing blocks on a FIFO or a device (only regular files are opened), nothing is mapped (a file that
 * shrinks gives an error, not SIGBUS), paths have no length limit but the system's. A caller that wants
 * an error rather than death at a file size limit ignores SIGXFSZ.
 */
#ifndef F8_IO_FILE_H
#define F8_IO_FILE_H

#include <stdbool.h>

#include "io/buffer.h"

/* directory + "/" + name, from malloc; `name` alone where directory is "" or name is absolute. */
fp8flow_status f8_path_join(const char *directory, const char *name, char **path);

/* ---- Reading ---- */

/* An open regular file. {0} is not open. */
typedef struct {
    char *path;
    int fd;
    int64_t size; /* when it was opened */
} f8_file;

fp8flow_status f8_file_open(const char *path, f8_file *file);
void f8_file_close(f8_file *file); /* harmless on {0} and when closed already */

/* Exactly `bytes` bytes at `offset`; fewer is EIO. `memory` is undefined after a failure. */
fp8flow_status f8_file_pread(const f8_file *file, void *memory, size_t bytes, int64_t offset);

/* The whole file into *content (initialised here; empty on failure). More than `limit` bytes is EFORMAT,
 * found before memory is asked for. */
fp8flow_status f8_file_read_all(const char *path, size_t limit, f8_buffer *content);

/* ---- Writing ---- */

/* Readers see the old file or the complete new one, whatever happens: the bytes go to a temporary file in
 * the same folder, which is synchronised and renamed on commit. {0} is not open. */
typedef struct {
    char *path, *directory, *temporary;
    int fd;
} f8_file_writer;

fp8flow_status f8_writer_open(const char *path, f8_file_writer *writer);
fp8flow_status f8_writer_write(f8_file_writer *writer, const void *bytes, size_t count);
/* Closes the writer, also on failure; then the old file is intact and the temporary one is gone. (Only when
 * the folder itself cannot be synchronised, after the rename, the new file is there but may not survive a
 * power failure; that is an error, too.) */
fp8flow_status f8_writer_commit(f8_file_writer *writer);
void f8_writer_cancel(f8_file_writer *writer); /* harmless after commit and on {0} */

/* All of it in one call. */
fp8flow_status f8_file_write_all(const char *path, const void *bytes, size_t count);

/* Remove temporary files that killed processes left in a folder. Only for the holder of its lock. */
fp8flow_status f8_remove_temporaries(const char *directory);

/* ---- Folders ---- */

/* Make a folder and its missing parents; an existing one is fine. */
fp8flow_status f8_directory_make(const char *path);

/* Exclusive use of a folder by one process (file ".lock", flock: gone with the process, however it ends).
 * A second one gets EIO "... already in use by process N". */
typedef struct {
    int fd; /* + 1, so that {0} is not locked */
} f8_lock;

fp8flow_status f8_lock_acquire(const char *directory, f8_lock *lock);
void f8_lock_release(f8_lock *lock); /* harmless on {0} */

/* The regular files below a folder, and what was left out. Links to files are followed, links to folders
 * are not, so that there are no loops. */
typedef struct {
    char *names;  /* one NUL-terminated path after the other, relative to the folder */
    size_t *name; /* positions in names, sorted by strcmp: the same order everywhere */
    size_t num_names;
    int64_t num_directory_links, num_special; /* left out: links to folders; devices, sockets, FIFOs */
    int64_t num_unreadable;                   /* left out: broken links, folders that cannot be read */
    char *first_unreadable;                   /* "path: reason" of one of those, or NULL */
} f8_listing;

fp8flow_status f8_list_files(const char *directory, f8_listing *listing);
void f8_listing_free(f8_listing *listing);

#endif
