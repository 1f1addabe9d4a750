/* report.h - the page that shows a comparison: table, curves, gaps, expert load, bytes.
 *
 * One file without scripts or links: it opens from a disk, in a mail, in ten years.
 */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include "compare.h"

/* Write the page of a summarised study (compare_summarize). 0, or -1 with errno set. */
int report_write(const char *path, const compare_study *study);

#endif
