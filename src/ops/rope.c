/* rope.c - rotary position embedding. Positions are the outer loop: the angles of one position serve the heads of
 * every sequence, so that FP64 cosines cost little. */
#include "ops/rope.h"

#include <math.h>

fp8flow_status fp8flow_rope(fp8flow_context *c, const fp8flow_rope_args *a)
{
    F8_REQUIRE(c && a, EINVAL, "rope: NULL context or arguments");
    F8_TRY(f8_plain_check("rope", "x", a->x, F8_ACCEPT_BF16));
    F8_REQUIRE(a->head_dim >= 2 && a->head_dim % 2 == 0 && a->head_dim <= 2 * F8_ROPE_MAX_HALF, ESHAPE,
               "rope: head_dim is %lld, expected an even number from 2 to %d", (long long)a->head_dim,
               2 * F8_ROPE_MAX_HALF);
    F8_REQUIRE(a->x->cols % a->head_dim == 0, ESHAPE, "rope: x has %lld columns, not a multiple of head_dim %lld",
               (long long)a->x->cols, (long long)a->head_dim);
    F8_REQUIRE(a->sequence_length >= 1 && a->x->rows % a->sequence_length == 0, ESHAPE,
               "rope: x has %lld rows, not a multiple of sequence_length %lld", (long long)a->x->rows,
               (long long)a->sequence_length);
    F8_REQUIRE(a->first_position >= 0 && a->first_position <= INT64_MAX - a->sequence_length, EINVAL,
               "rope: first_position is %lld", (long long)a->first_position);
    F8_REQUIRE(a->theta > 0.0f && isfinite(a->theta), EINVAL, "rope: theta is %g, expected (0, inf)", (double)a->theta);
    F8_REQUIRE(a->rotation == FP8FLOW_ROTATE || a->rotation == FP8FLOW_ROTATE_BACK, EINVAL, "rope: unknown rotation %d",
               (int)a->rotation);
    return F8_RUN(c, rope, a);
}

void f8_rope_make_frequencies(f8_rope_frequencies *frequencies, const fp8flow_rope_args *a)
{
    for (int64_t i = 0; i < a->head_dim / 2; i++) {
        double step = pow((double)a->theta, -2.0 * (double)i / (double)a->head_dim);
        frequencies->step[i] = a->rotation == FP8FLOW_ROTATE ? step : -step;
    }
}

void f8_rope_make_angles(f8_rope_angles *angles, const f8_rope_frequencies *frequencies, int64_t half, int64_t position)
{
    for (int64_t i = 0; i < half; i++) {
        double angle = (double)position * frequencies->step[i];
        angles->cosine[i] = (float)cos(angle);
        angles->sine[i] = (float)sin(angle);
    }
}

fp8flow_status f8_ref_rope(fp8flow_context *c, const fp8flow_rope_args *a)
{
    (void)c;
    int64_t half = a->head_dim / 2;
    f8_rope_frequencies frequencies;
    f8_rope_angles angles;
    f8_rope_make_frequencies(&frequencies, a);
    for (int64_t row = 0; row < a->x->rows; row++) {
        f8_rope_make_angles(&angles, &frequencies, half, a->first_position + row % a->sequence_length);
        for (int64_t first = 0; first < a->x->cols; first += a->head_dim) {
            uint16_t *low = f8_bf16_row(a->x, row) + first, *high = low + half;
            for (int64_t i = 0; i < half; i++) {
                float x = f8_bf16_decode(low[i]), y = f8_bf16_decode(high[i]);
                low[i] = f8_bf16_encode(x * angles.cosine[i] - y * angles.sine[i]);
                high[i] = f8_bf16_encode(y * angles.cosine[i] + x * angles.sine[i]);
            }
        }
    }
    return FP8FLOW_OK;
}
