/* rope_avx2.c - rope with one table of angles per position, used for that row of every sequence. */
#include "ops/avx2.h"
#include "ops/rope.h"

static void rotate_head(uint16_t *low, int64_t half, const f8_rope_angles *angles)
{
    uint16_t *high = low + half;
    int64_t i = 0;
    for (; i + 8 <= half; i += 8) {
        __m256 x = f8v_bf16_load(low + i), y = f8v_bf16_load(high + i);
        __m256 cosine = _mm256_loadu_ps(angles->cosine + i), sine = _mm256_loadu_ps(angles->sine + i);
        f8v_bf16_store(low + i, _mm256_fmsub_ps(x, cosine, _mm256_mul_ps(y, sine)));
        f8v_bf16_store(high + i, _mm256_fmadd_ps(y, cosine, _mm256_mul_ps(x, sine)));
    }
    for (; i < half; i++) {
        float x = f8_bf16_decode(low[i]), y = f8_bf16_decode(high[i]);
        low[i] = f8_bf16_encode(fmaf(x, angles->cosine[i], -(y * angles->sine[i])));
        high[i] = f8_bf16_encode(fmaf(y, angles->cosine[i], x * angles->sine[i]));
    }
}

fp8flow_status f8_avx2_rope(fp8flow_context *c, const fp8flow_rope_args *a)
{
    int64_t half = a->head_dim / 2, length = a->sequence_length;
    f8_rope_frequencies frequencies;
    f8_rope_make_frequencies(&frequencies, a);
    /* With no rows there is no position to prepare angles for. */
    int64_t num_positions = a->x->rows ? length : 0;
    int64_t work = (a->x->rows + num_positions) * a->x->cols;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t position = 0; position < num_positions; position++) {
        f8_rope_angles angles;
        f8_rope_make_angles(&angles, &frequencies, half, a->first_position + position);
        for (int64_t row = position; row < a->x->rows; row += length)
            for (int64_t first = 0; first < a->x->cols; first += a->head_dim)
                rotate_head(f8_bf16_row(a->x, row) + first, half, &angles);
    }
    return FP8FLOW_OK;
}
