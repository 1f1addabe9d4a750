/* rng.h - counter-based random numbers: a pure function of (seed, stream, index), the same bits everywhere.
 *
 * Streams keep uses apart (initialisation of a tensor, data order, sampling); no state is ever saved.
 */
#ifndef F8_BASE_RNG_H
#define F8_BASE_RNG_H

#include <stdint.h>

/* Finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection on 64 bits with full avalanche. */
static inline uint64_t f8_mix(uint64_t z)
{
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline uint64_t f8_random(uint64_t seed, uint64_t stream, uint64_t index)
{
    return f8_mix(f8_mix(f8_mix(seed) ^ stream) ^ index);
}

/* Uniform in [0, 1), 24 bits. */
static inline float f8_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    return (float)(f8_random(seed, stream, index) >> 40) * 0x1p-24f;
}

/* Mean 0, variance 1: the sum of twelve 16-bit uniforms, exact in integers, range (-6, 6). */
static inline float f8_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    int64_t sum = 0;
    for (uint64_t word = 0; word < 3; word++) {
        uint64_t bits = f8_random(seed, stream, index * 3 + word);
        for (int i = 0; i < 4; i++, bits >>= 16) sum += (int64_t)(bits & 0xFFFF);
    }
    return (float)(sum - 6 * 65535) * 0x1p-16f;
}

/* A keyed permutation of [0, n): item `index` of shuffled order `key`. Four-round Feistel network on the
 * smallest even-bit domain that holds n, walked until the value lies below n. n >= 1. */
static inline uint64_t f8_shuffle(uint64_t key, uint64_t index, uint64_t n)
{
    int half = 1;
    while (half < 32 && (1ull << (2 * half)) < n) half++;
    uint64_t mask = (1ull << half) - 1, value = index;
    do {
        uint64_t left = value >> half, right = value & mask;
        for (uint64_t round = 0; round < 4; round++) {
            uint64_t next = left ^ (f8_random(key, round, right) & mask);
            left = right;
            right = next;
        }
        value = (left << half) | right;
    } while (value >= n);
    return value;
}

#endif
