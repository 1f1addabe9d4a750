/* file_system.h - what file.c and directory.c share; nobody else includes this. */
#ifndef F8_IO_FILE_SYSTEM_H
#define F8_IO_FILE_SYSTEM_H

#include "base/status.h"

#define F8_TEMPORARY_PREFIX ".tmp-"

/* EIO "<path>: cannot <action>: <reason of errno>". */
fp8flow_status f8_fail_errno(const char *action, const char *path);

/* open(2) with close-on-exec, mode 0666, repeated when a signal interrupts it. */
int f8_open(const char *path, int flags);

#endif
