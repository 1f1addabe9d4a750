/* output_folder.c - creating, locking and inspecting the folder of a run. See output_folder.h. */
#include "output_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* The file may have been removed by its last owner between our open and our flock; such a lock protects
 * nothing. */
static int is_same_file(int descriptor, const char *path)
{
    struct stat opened, named;
    return fstat(descriptor, &opened) == 0 && stat(path, &named) == 0 && opened.st_dev == named.st_dev &&
           opened.st_ino == named.st_ino;
}

/* 0, or errno; EWOULDBLOCK: another process holds it. */
static int lock(cli_output_folder *folder)
{
    for (;;) {
        int descriptor = open(folder->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (descriptor < 0) return errno;
        if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
            int error = errno;
            folder->descriptor = -1;
            close(descriptor);
            return error;
        }
        if (is_same_file(descriptor, folder->lock_path)) {
            folder->descriptor = descriptor;
            return 0;
        }
        close(descriptor);
    }
}

static void write_owner(int descriptor)
{
    char text[CLI_NUMBER_BYTES];
    int length = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    /* Only for the other process's message; the lock itself does not depend on it. */
    if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, text, (size_t)length, 0) != length) return;
}

static long read_owner(const char *path)
{
    char text[CLI_NUMBER_BYTES] = "";
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    const char *line = fgets(text, sizeof text, file);
    (void)fclose(file);
    return line ? strtol(line, NULL, 10) : 0;
}

long cli_output_folder_owner(const char *path)
{
    char lock_path[sizeof((cli_output_folder *)0)->lock_path];
    int length = snprintf(lock_path, sizeof lock_path, "%s/lock", path);
    return length < (int)sizeof lock_path ? read_owner(lock_path) : 0;
}

static int create(cli_output_folder *folder, const cli_command *command)
{
    char quoted[CLI_QUOTE_BYTES];
    struct stat status;
    if (mkdir(folder->path, 0777) == 0) folder->is_created = 1;
    else if (errno != EEXIST)
        return cli_fail(command, "output folder %s: %s", cli_quote(quoted, folder->path), strerror(errno));
    else if (stat(folder->path, &status) != 0 || !S_ISDIR(status.st_mode))
        return cli_fail(command, "output folder %s is not a folder", cli_quote(quoted, folder->path));
    return CLI_DONE;
}

int cli_output_folder_take(cli_output_folder *folder, const cli_command *command, const char *path)
{
    char quoted[CLI_QUOTE_BYTES];
    *folder = (cli_output_folder){ .path = path, .descriptor = -1 };
    cli_quote(quoted, path);
    if (snprintf(folder->lock_path, sizeof folder->lock_path, "%s/lock", path) >= (int)sizeof folder->lock_path)
        return cli_fail(command, "output folder %s: %s", quoted, strerror(ENAMETOOLONG));
    int code = create(folder, command);
    if (code != CLI_DONE) return code;
    int error = lock(folder);
    if (error == EWOULDBLOCK) {
        long owner = read_owner(folder->lock_path);
        if (owner > 0) return cli_fail(command, "output folder %s is in use by process %ld", quoted, owner);
        return cli_fail(command, "output folder %s is in use by another process", quoted);
    }
    if (error) {
        cli_output_folder_release(folder);
        return cli_fail(command, "output folder %s: %s", quoted, strerror(error));
    }
    write_owner(folder->descriptor);
    return CLI_DONE;
}

void cli_output_folder_release(cli_output_folder *folder)
{
    if (folder->descriptor >= 0) {
        unlink(folder->lock_path); /* while we hold it: see is_same_file */
        close(folder->descriptor);
    }
    if (folder->is_created) rmdir(folder->path); /* fails, as wanted, unless it is empty */
    folder->descriptor = -1;
    folder->is_created = 0;
}

int cli_output_folder_has_checkpoints(const char *path)
{
    int found = 0;
    DIR *folder = opendir(path);
    if (!folder) return 0;
    for (const struct dirent *entry; !found && (entry = readdir(folder)) != NULL;)
        found = strncmp(entry->d_name, "step-", 5) == 0 && entry->d_name[5] &&
                entry->d_name[5 + strspn(entry->d_name + 5, "0123456789")] == '\0';
    closedir(folder);
    return found;
}

int cli_path_is_inside(const char *path, const char *folder)
{
    char *inner = realpath(path, NULL), *outer = realpath(folder, NULL);
    size_t length = outer ? strlen(outer) : 0;
    int inside =
        inner && outer && strncmp(inner, outer, length) == 0 && (inner[length] == '\0' || inner[length] == '/');
    free(inner);
    free(outer);
    return inside;
}
