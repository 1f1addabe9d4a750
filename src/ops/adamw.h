/* adamw.h - what the CPU implementations of adamw share. */
#ifndef F8_OPS_ADAMW_H
#define F8_OPS_ADAMW_H

#include "ops/ops.h"

/* The quantised forms of the new weights, with the quantize of the context's table; nothing if none was asked for. */
fp8flow_status f8_adamw_quantize(fp8flow_context *c, const fp8flow_adamw_args *a);

#endif
