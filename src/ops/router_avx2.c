/* router_avx2.c - the text of router.h, compiled for AVX2 and FMA. With the default build every fmaf of an exponential
 * is a call of libm; here it is one instruction. The bits are the same: fmaf is exact either way. */
#include "ops/avx2.h"
#include "ops/router.h"

fp8flow_status f8_avx2_router(fp8flow_context *c, const fp8flow_router_args *a)
{
    return f8_route(c, a);
}
