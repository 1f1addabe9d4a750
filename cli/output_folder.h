/* output_folder.h - the folder of a run: created if missing, locked against a second process.
 *
 * The lock is flock on DIR/lock, which holds the owner's process number; the kernel drops it when the
 * process dies, so a killed run leaves no stale lock. The file goes away on release, and so does a folder
 * that this process created and left empty: a run that fails at the start leaves nothing behind.
 */
#ifndef CLI_OUTPUT_FOLDER_H
#define CLI_OUTPUT_FOLDER_H

#include "cli.h"

typedef struct {
    const char *path; /* borrowed */
    char lock_path[4096];
    int descriptor; /* -1: not held */
    int is_created; /* by us */
} cli_output_folder;

/* CLI_DONE, or an exit code with the error printed (output folder "run" is in use by process 123). */
int cli_output_folder_take(cli_output_folder *folder, const cli_command *command, const char *path);

/* Also after a failed take. */
void cli_output_folder_release(cli_output_folder *folder);

/* The process that has taken the folder, on this machine or another; 0: it cannot be read. */
long cli_output_folder_owner(const char *path);

/* Whether the folder holds checkpoints (step-NNNNNNNN). */
int cli_output_folder_has_checkpoints(const char *path);

/* Whether `path` is `folder` or lies in it, links resolved. */
int cli_path_is_inside(const char *path, const char *folder);

#endif
