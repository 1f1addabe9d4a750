/* rope.h - the angles of rotary embeddings, shared by the reference and the fast implementation. */
#ifndef F8_OPS_ROPE_H
#define F8_OPS_ROPE_H

#include "ops/plain.h"

enum { F8_ROPE_MAX_HALF = 1024 }; /* pairs of a head: head_dim / 2 */

typedef struct {
    double step[F8_ROPE_MAX_HALF]; /* angle of pair i at position 1: theta^(-2i/D), negative for ROTATE_BACK */
} f8_rope_frequencies;

/* Cosine and sine of every pair at one position. */
typedef struct {
    float cosine[F8_ROPE_MAX_HALF], sine[F8_ROPE_MAX_HALF];
} f8_rope_angles;

void f8_rope_make_frequencies(f8_rope_frequencies *frequencies, const fp8flow_rope_args *a);
void f8_rope_make_angles(f8_rope_angles *angles, const f8_rope_frequencies *frequencies, int64_t half,
                         int64_t position);

#endif
