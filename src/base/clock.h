/* clock.h - the time that passes, for durations. */
#ifndef F8_BASE_CLOCK_H
#define F8_BASE_CLOCK_H

#include <time.h>

/* Seconds since some moment in the past. */
static inline double f8_seconds_now(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
