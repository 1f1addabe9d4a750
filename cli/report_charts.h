/* report_charts.h - the figures of the report, each with its heading and caption. */
#ifndef CLI_REPORT_CHARTS_H
#define CLI_REPORT_CHARTS_H

#include "compare.h"

/* 0, or -1 when memory is short. */
int report_gaps(FILE *out, const compare_study *study);
int report_losses(FILE *out, const compare_study *study);
int report_load(FILE *out, const compare_study *study);

/* Saved activations and bytes on the wire. */
void report_bytes(FILE *out, const compare_study *study);

#endif
