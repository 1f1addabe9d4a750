/* sums_avx2.c - sum and square_sum: eight running sums per block of 4096 values, blocks shared among threads. */
#include "ops/avx2.h"

enum { BLOCK = 4096 }; /* fixed by the contract */

typedef double block_sum(const float *x, int64_t count);

/* The sum of eight lanes in their order. */
static double lane_sum(__m256d low, __m256d high)
{
    double lane[4];
    _mm256_storeu_pd(lane, _mm256_add_pd(low, high));
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

static double plain_block(const float *x, int64_t count)
{
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm_loadu_ps(x + i)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4)));
    }
    double sum = lane_sum(low, high);
    for (; i < count; i++) sum += (double)x[i];
    return sum;
}

/* x^2 of an FP32 number is exact in FP64. */
static double square_block(const float *x, int64_t count)
{
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x + i)), b = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
        low = _mm256_fmadd_pd(a, a, low);
        high = _mm256_fmadd_pd(b, b, high);
    }
    double sum = lane_sum(low, high);
    for (; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static double sum_of_blocks(fp8flow_context *c, const float *x, int64_t count, block_sum *sum_block)
{
    enum { MAX_BLOCKS = F8_SCRATCH_BYTES / 8 };
    double *partial = f8_scratch(c), sum = 0.0;
    int64_t num_blocks = f8_ceil_div(count, BLOCK);
    for (int64_t first = 0; first < num_blocks; first += MAX_BLOCKS) {
        int64_t last = num_blocks - first < MAX_BLOCKS ? num_blocks : first + MAX_BLOCKS;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, count))
        for (int64_t block = first; block < last; block++) {
            int64_t begin = block * BLOCK, left = count - begin;
            partial[block - first] = sum_block(x + begin, left < BLOCK ? left : BLOCK);
        }
        for (int64_t block = first; block < last; block++) sum += partial[block - first];
    }
    return sum;
}

fp8flow_status f8_avx2_sum(fp8flow_context *c, const fp8flow_sum_args *a)
{
    *a->sum = sum_of_blocks(c, a->x, a->count, plain_block);
    return FP8FLOW_OK;
}

fp8flow_status f8_avx2_square_sum(fp8flow_context *c, const fp8flow_square_sum_args *a)
{
    *a->sum = sum_of_blocks(c, a->x, a->count, square_block);
    return FP8FLOW_OK;
}
