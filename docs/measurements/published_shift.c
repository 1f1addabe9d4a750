/* published_shift.c - how often the transpose kernel published with arXiv 2511.02302 differs from correct rounding.
 *
 * A restatement of that kernel's integer logic (exponent field minus k, mantissa bits kept, fields below 1 and
 * subnormal inputs cleared) over the 126 positive finite codes of E4M3, against f8_shift. The kernel itself was not run.
 *
 *   cc -O2 -Iinclude -Isrc -o build/published_shift docs/measurements/published_shift.c -lm && build/published_shift
 */
#include <stdio.h>

#include "base/fp8.h"

static uint8_t published(uint8_t code, int k)
{
    int exponent = (code >> 3) - k;
    if (code >> 3 == 0) return 0;
    return (uint8_t)((exponent < 1 ? 0 : exponent) << 3 | (code & 7));
}

static double error(uint8_t code, double exact)
{
    return fabs(f8_decode(code, FP8FLOW_E4M3) - exact) * 512;
}

int main(void)
{
    static const int shifts[] = { 0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20 };
    puts("wrong codes of 126, and mean |error| in units of 2^-9\n   k  wrong  published  correct rounding");
    for (size_t i = 0; i < sizeof shifts / sizeof *shifts; i++) {
        int k = shifts[i], wrong = 0;
        double errors[2] = { 0, 0 };
        for (int c = 1; c < 127; c++) {
            uint8_t theirs = published((uint8_t)c, k), ours = f8_shift((uint8_t)c, k, FP8FLOW_E4M3);
            double exact = ldexp(f8_decode((uint8_t)c, FP8FLOW_E4M3), -k);
            wrong += theirs != ours;
            errors[0] += error(theirs, exact) / 126;
            errors[1] += error(ours, exact) / 126;
        }
        printf("%4d  %5d  %9.3f  %9.3f\n", k, wrong, errors[0], errors[1]);
    }
    puts("\ncode      value   k  exact/2^-9  published  correct");
    static const uint8_t codes[] = { 0x38, 0x3F, 0x0F, 0x08, 0x05, 0x04, 0x7E, 0x7F };
    static const int by[] = { 7, 13, 2, 3, 1, 0, 6, 1 };
    for (int i = 0; i < 8; i++) {
        uint8_t theirs = published(codes[i], by[i]), ours = f8_shift(codes[i], by[i], FP8FLOW_E4M3);
        double value = f8_decode(codes[i], FP8FLOW_E4M3);
        printf("0x%02X %10g  %2d  %10g  0x%02X %5g  0x%02X %5g\n", codes[i], value, by[i], ldexp(value, 9 - by[i]),
               theirs, f8_decode(theirs, FP8FLOW_E4M3) * 512.0, ours, f8_decode(ours, FP8FLOW_E4M3) * 512.0);
    }
    return 0;
}
