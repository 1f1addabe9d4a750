/* random.h - pseudo-random test data for bench and inspect: the same on every machine, no claim beyond that. */
#ifndef CLI_RANDOM_H
#define CLI_RANDOM_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint64_t state;
} random_source;

/* SplitMix64 (Steele, Lea, Flood 2014): every seed is a good one. */
static inline uint64_t random_bits(random_source *source)
{
    uint64_t z = source->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline int64_t random_below(random_source *source, int64_t limit)
{
    return (int64_t)(random_bits(source) % (uint64_t)limit);
}

/* Close to the normal distribution with deviation 1: sum of four uniform numbers. */
static inline float random_normal(random_source *source)
{
    uint64_t bits = random_bits(source);
    int64_t sum = 0;
    for (int i = 0; i < 4; i++) sum += (int64_t)(bits >> (16 * i) & 0xFFFF) - 32768;
    return (float)sum * (1.0f / 37837.0f); /* 65536 / sqrt(12) * sqrt(4) */
}

static inline uint16_t random_bf16(random_source *source, float deviation)
{
    float value = deviation * random_normal(source);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

#endif
