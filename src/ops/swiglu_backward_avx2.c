/* swiglu_backward_avx2.c - one work unit is a span of 128 rows, walked in chunks of 128 columns of F. A chunk
 * gives 128 columns of da, of db and of v from one sigmoid.
 *
 * [da | db] has tiles of its own. With F = 128 n + shift, chunk b of da is tile b, but chunk b of db begins at
 * column `shift` of tile n + b: its first part completes that tile, its rest opens the next one (`pending`).
 * Tile n holds the last chunk of da and the first part of db, and waits in `straddle` until the end.
 *
 * dgate: 32 running sums per row in the order of f8_sum32, whatever the number of threads. */
#include "ops/swiglu_avx2.h"

typedef struct {
    f8_tile da, db, v, pending, straddle;
    float dgate[F8_BLOCK][32];
    f8v_bytes bytes;
} chunk_work;

_Static_assert(sizeof(chunk_work) <= F8_SCRATCH_BYTES, "scratch memory holds a chunk");

typedef struct {
    float a[F8_BLOCK], b[F8_BLOCK], g[F8_BLOCK];
} chunk_row;

/* Row r of da, db and v; adds to the sums of dgate. Zeros of a short chunk add nothing. */
static void compute_row(const chunk_row *in, float gate, int64_t r, chunk_work *out)
{
    const __m256 one = _mm256_set1_ps(1.0f), w = _mm256_set1_ps(gate);
    for (int c = 0; c < F8_BLOCK; c += 8) {
        __m256 a = _mm256_loadu_ps(in->a + c), b = _mm256_loadu_ps(in->b + c), g = _mm256_loadu_ps(in->g + c);
        __m256 s = f8v_sigmoid(a), z = _mm256_mul_ps(a, s), gw = _mm256_mul_ps(g, w), zb = _mm256_mul_ps(z, b);
        __m256 slope = _mm256_mul_ps(s, _mm256_add_ps(one, _mm256_mul_ps(a, _mm256_sub_ps(one, s))));
        _mm256_storeu_ps(&out->da.at[r][c], _mm256_mul_ps(_mm256_mul_ps(gw, b), slope));
        _mm256_storeu_ps(&out->db.at[r][c], _mm256_mul_ps(gw, z));
        _mm256_storeu_ps(&out->v.at[r][c], _mm256_mul_ps(zb, w));
        float *sum = &out->dgate[r][c % 32];
        _mm256_storeu_ps(sum, _mm256_add_ps(_mm256_loadu_ps(sum), _mm256_mul_ps(zb, g)));
    }
}

/* Chunk p of a span. Returns the number of NaN and Inf in da and db. */
static uint64_t compute_chunk(const fp8flow_swiglu_backward_args *a, f8_place p, chunk_work *out)
{
    uint64_t nonfinite = 0;
    chunk_row in;
    for (int64_t r = 0; r < p.span.valid; r++) {
        int64_t row = p.span.row + r;
        f8v_swiglu_load(a->h, row, p.col, p.cols, in.a);
        f8v_swiglu_load(a->h, row, a->dv->cols + p.col, p.cols, in.b);
        f8v_swiglu_load(a->dv, row, p.col, p.cols, in.g);
        compute_row(&in, f8_swiglu_gate(a->gate, row), r, out);
        f8v_swiglu_clear_tail(p.cols, out->da.at[r]);
        f8v_swiglu_clear_tail(p.cols, out->db.at[r]);
        f8v_swiglu_clear_tail(p.cols, out->v.at[r]);
        nonfinite += f8v_count_nonfinite(out->da.at[r]) + f8v_count_nonfinite(out->db.at[r]);
    }
    return nonfinite;
}

/* Tile `block` of [da | db]. */
static void store_gradient(const fp8flow_swiglu_backward_args *a, f8_span span, int64_t block, const f8_tile *tile,
                           f8v_bytes *bytes)
{
    f8_place place = f8_place_at(a->h, span, block);
    f8v_swiglu_store(place, tile, a->rows, bytes);
    f8v_swiglu_store(place, tile, a->columns, bytes);
}

static void copy_columns(const f8_tile *from, int64_t from_col, f8_tile *to, int64_t to_col, int64_t cols)
{
    for (int r = 0; r < F8_BLOCK; r++) memcpy(&to->at[r][to_col], &from->at[r][from_col], (size_t)cols * sizeof(float));
}

/* Store what chunk p completes, when F is not a multiple of 128. */
static void store_shifted(const fp8flow_swiglu_backward_args *a, f8_place p, chunk_work *w)
{
    int64_t half = a->dv->cols, shift = half % F8_BLOCK, block = p.col / F8_BLOCK;
    int64_t tile = half / F8_BLOCK + block, last = half / F8_BLOCK;
    copy_columns(&w->db, 0, block == 0 ? &w->straddle : &w->pending, shift, F8_BLOCK - shift);
    if (block > 0) store_gradient(a, p.span, tile, &w->pending, &w->bytes);
    for (int r = 0; r < F8_BLOCK; r++) f8v_swiglu_clear_tail(shift, w->pending.at[r]);
    copy_columns(&w->db, F8_BLOCK - shift, &w->pending, 0, shift);
    if (block < last) {
        store_gradient(a, p.span, block, &w->da, &w->bytes);
        return;
    }
    copy_columns(&w->da, 0, &w->straddle, 0, shift);
    store_gradient(a, p.span, last, &w->straddle, &w->bytes);
    if ((tile + 1) * F8_BLOCK < a->h->cols) store_gradient(a, p.span, tile + 1, &w->pending, &w->bytes);
}

static void store_chunk(const fp8flow_swiglu_backward_args *a, f8_place p, chunk_work *w)
{
    int64_t half = a->dv->cols;
    if (half % F8_BLOCK) {
        store_shifted(a, p, w);
    } else {
        store_gradient(a, p.span, p.col / F8_BLOCK, &w->da, &w->bytes);
        store_gradient(a, p.span, (half + p.col) / F8_BLOCK, &w->db, &w->bytes);
    }
    f8v_swiglu_store(p, &w->v, a->v_columns, &w->bytes);
}

static uint64_t backward_span(const fp8flow_swiglu_backward_args *a, f8_span span, chunk_work *w)
{
    uint64_t nonfinite = 0;
    f8v_swiglu_clear_padding(span, &w->da);
    f8v_swiglu_clear_padding(span, &w->db);
    f8v_swiglu_clear_padding(span, &w->v);
    memset(w->dgate, 0, sizeof w->dgate);
    for (int64_t block = 0; block < f8_ceil_div(a->dv->cols, F8_BLOCK); block++) {
        f8_place place = f8_place_at(a->dv, span, block);
        nonfinite += compute_chunk(a, place, w);
        store_chunk(a, place, w);
    }
    for (int64_t r = 0; a->dgate && r < span.rows; r++)
        a->dgate[span.row + r] = f8_canonical(f8_sum32(w->dgate[r], 32));
    return nonfinite;
}

fp8flow_status f8_avx2_swiglu_backward(fp8flow_context *c, const fp8flow_swiglu_backward_args *a)
{
    uint64_t nonfinite = 0;
    int64_t num_spans = f8_num_spans(a->h, a->groups), work = num_spans * F8_BLOCK * a->h->cols;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work)) reduction(+ : nonfinite)
    for (int64_t i = 0; i < num_spans; i++)
        nonfinite += backward_span(a, f8_span_at(a->h, a->groups, i), f8_scratch(c));
    if (a->nonfinite) *a->nonfinite += nonfinite;
    return FP8FLOW_OK;
}
