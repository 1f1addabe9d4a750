/* long_formats.c - f8_encode of all 2^32 FP32 bit patterns against the oracle of formats.h, both formats.
 * Minutes of work, therefore not a test_*.c; `make check-all-floats` runs it. */
#include <stdio.h>

#include "base/fp8.h"
#include "formats.h"

static uint64_t count_wrong(fp8flow_dtype dtype)
{
    oracle_table table = oracle_make(dtype);
    uint64_t wrong = 0;
#pragma omp parallel for schedule(static) reduction(+ : wrong)
    for (uint32_t high = 0; high < 65536; high++)
        for (uint32_t low = 0; low < 65536; low++) {
            uint32_t bits = high << 16 | low;
            wrong += f8_encode(f8_from_bits(bits), dtype) != oracle_encode(bits, dtype, &table);
        }
    return wrong;
}

int main(void)
{
    uint64_t e4m3 = count_wrong(FP8FLOW_E4M3), e5m2 = count_wrong(FP8FLOW_E5M2);
    printf("all 2^32 floats: %llu wrong E4M3 codes, %llu wrong E5M2 codes\n", (unsigned long long)e4m3,
           (unsigned long long)e5m2);
    return e4m3 || e5m2;
}
