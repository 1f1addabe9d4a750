/* vocab_avx2.c - cross_entropy: one token per thread, three passes over its logits (maximum, sum, gradient), sums in
 * FP64 lanes; embed_backward: each thread owns columns and sees the tokens in ascending order, so repeated ids need
 * neither atomics nor sorting and the sums have the reference's order. */
#include "ops/avx2.h"
#include "ops/nan.h"
#include "ops/plain.h"

/* One token's logits, or their gradient. */
typedef struct {
    float *f32;
    uint16_t *bf16; /* one of the two is NULL */
    int64_t count;
} logit_row;

static logit_row row_of(const fp8flow_tensor *t, int64_t token)
{
    logit_row row = { NULL, NULL, t->cols };
    if (t->dtype == FP8FLOW_F32) row.f32 = f8_f32_row(t, token);
    else row.bf16 = f8_bf16_row(t, token);
    return row;
}

static float get_logit(const logit_row *row, int64_t col)
{
    return row->f32 ? row->f32[col] : f8_bf16_decode(row->bf16[col]);
}

static void put_logit(const logit_row *row, int64_t col, float value)
{
    if (row->f32) row->f32[col] = value;
    else row->bf16[col] = f8_bf16_encode(value);
}

/* Eight logits from `col` on; lanes beyond the end are -Inf. */
F8_AVX2 __m256 load(const logit_row *row, int64_t col)
{
    if (col + 8 <= row->count) return row->f32 ? _mm256_loadu_ps(row->f32 + col) : f8v_bf16_load(row->bf16 + col);
    float lane[8];
    for (int64_t i = 0; i < 8; i++) lane[i] = col + i < row->count ? get_logit(row, col + i) : -INFINITY;
    return _mm256_loadu_ps(lane);
}

F8_AVX2 void store(const logit_row *row, int64_t col, __m256 value)
{
    if (col + 8 <= row->count) {
        if (row->f32) _mm256_storeu_ps(row->f32 + col, value);
        else f8v_bf16_store(row->bf16 + col, value);
        return;
    }
    float lane[8];
    _mm256_storeu_ps(lane, value);
    for (int64_t i = 0; col + i < row->count; i++) put_logit(row, col + i, lane[i]);
}

static float largest_logit(const logit_row *row)
{
    __m256 largest = _mm256_set1_ps(-INFINITY);
    /* A NaN loses against any number here; it reaches the loss through the sum. */
    for (int64_t col = 0; col < row->count; col += 8) largest = _mm256_max_ps(load(row, col), largest);
    float lane[8], result = -INFINITY;
    _mm256_storeu_ps(lane, largest);
    for (int i = 0; i < 8; i++) result = lane[i] > result ? lane[i] : result;
    return result;
}

/* sum of exp(logit - largest). Lanes beyond the end add e^-87.3 each (f8v_exp's least value): nothing to a sum >= 1. */
static double exponential_sum(const logit_row *row, __m256 largest)
{
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    for (int64_t col = 0; col < row->count; col += 8) {
        __m256 e = f8v_exp(_mm256_sub_ps(load(row, col), largest));
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(e)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(e, 1)));
    }
    double lane[4];
    _mm256_storeu_pd(lane, _mm256_add_pd(low, high));
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

/* Maximum of a token's logits, and the sum of the exponentials behind it. */
typedef struct {
    float largest;
    double sum;
} softmax;

static void write_gradient(const logit_row *row, const logit_row *gradient, softmax s, int32_t target, float grad_scale)
{
    /* Of the logit: it is overwritten where the gradient takes its place. */
    float chosen = (float)((double)f8_expf(get_logit(row, target) - s.largest) / s.sum);
    __m256 factor = _mm256_set1_ps((float)((double)grad_scale / s.sum)), largest = _mm256_set1_ps(s.largest);
    for (int64_t col = 0; col < row->count; col += 8)
        store(gradient, col, _mm256_mul_ps(f8v_exp(_mm256_sub_ps(load(row, col), largest)), factor));
    put_logit(gradient, target, (chosen - 1.0f) * grad_scale);
}

static void do_token(const fp8flow_cross_entropy_args *a, int64_t t)
{
    logit_row row = row_of(a->logits, t), gradient = { NULL, NULL, 0 };
    if (a->gradient) gradient = row_of(a->gradient, t);
    if (a->target[t] < 0) {
        a->loss[t] = 0.0f;
        for (int64_t col = 0; col < gradient.count; col += 8) store(&gradient, col, _mm256_setzero_ps());
        return;
    }
    softmax s = { .largest = largest_logit(&row) };
    s.sum = exponential_sum(&row, _mm256_set1_ps(s.largest));
    a->loss[t] = (float)(log(s.sum) - (double)(get_logit(&row, a->target[t]) - s.largest));
    if (a->gradient) write_gradient(&row, &gradient, s, a->target[t], a->grad_scale);
}

fp8flow_status f8_avx2_cross_entropy(fp8flow_context *c, const fp8flow_cross_entropy_args *a)
{
    enum { OPERATIONS = 8 }; /* two exponentials */
    int64_t num_tokens = a->logits->rows;
    int64_t work = num_tokens * a->logits->cols * OPERATIONS;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t t = 0; t < num_tokens; t++) do_token(a, t);
    return FP8FLOW_OK;
}

fp8flow_status f8_avx2_embed_backward(fp8flow_context *c, const fp8flow_embed_backward_args *a)
{
    enum { SLICE = 64 }; /* columns; a multiple of a cache line of dtable */
    int64_t num_tokens = a->dy->rows, width = a->dy->cols, num_slices = f8_ceil_div(width, SLICE);
    int64_t work = num_tokens * width;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t slice = 0; slice < num_slices; slice++) {
        int64_t first = slice * SLICE, last = first + SLICE < width ? first + SLICE : width;
        for (int64_t t = 0; t < num_tokens; t++) {
            const uint16_t *dy = f8_bf16_row(a->dy, t);
            float *row = f8_f32_row(a->dtable, a->ids[t]);
            int64_t col = first;
            for (; col + 8 <= last; col += 8)
                _mm256_storeu_ps(row + col,
                                 f8v_canonical(_mm256_add_ps(_mm256_loadu_ps(row + col), f8v_bf16_load(dy + col))));
            for (; col < last; col++) row[col] = f8_canonical(row[col] + f8_bf16_decode(dy[col]));
        }
    }
    return FP8FLOW_OK;
}
