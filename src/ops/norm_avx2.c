/* norm_avx2.c - rmsnorm and its gradient, eight columns at a time, FP32 sums.
 *
 * Columns beyond a multiple of eight are handled one by one: lanes 0..7 hold the bulk of every sum, the rest is
 * added last. dweight: rows are cut into F8_NORM_SLABS slabs, a slab's rows are added in ascending order into its
 * own partial gradient, and the partial gradients are added in ascending order. None of it depends on threads. */
#include "ops/avx2.h"
#include "ops/norm.h"

static float lane_sum(__m256 x)
{
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

static float square_sum(const uint16_t *x, int64_t width)
{
    __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
        __m256 a = f8v_bf16_load(x + i), b = f8v_bf16_load(x + i + 8);
        even = _mm256_fmadd_ps(a, a, even);
        odd = _mm256_fmadd_ps(b, b, odd);
    }
    float sum = lane_sum(_mm256_add_ps(even, odd));
    for (; i < width; i++) sum += f8_bf16_decode(x[i]) * f8_bf16_decode(x[i]);
    return sum;
}

static void scale_segment(const uint16_t *x, float r, const float *weight, uint16_t *y, int64_t width)
{
    __m256 factor = _mm256_set1_ps(r);
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) {
        __m256 u = _mm256_mul_ps(f8v_bf16_load(x + i), factor);
        f8v_bf16_store(y + i, _mm256_mul_ps(u, _mm256_loadu_ps(weight + i)));
    }
    for (; i < width; i++) y[i] = f8_bf16_encode(f8_bf16_decode(x[i]) * r * weight[i]);
}

fp8flow_status f8_avx2_rmsnorm(fp8flow_context *c, const fp8flow_rmsnorm_args *a)
{
    int64_t width = a->width, num_rows = a->x->rows, num_segments = a->x->cols / width;
    int64_t work = num_rows * a->x->cols;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t segment = 0; segment < num_segments; segment++) {
            const uint16_t *x = f8_bf16_row(a->x, row) + segment * width;
            float r = 1.0f / sqrtf(square_sum(x, width) / (float)width + a->eps);
            scale_segment(x, r, a->weight, f8_bf16_row(a->y, row) + segment * width, width);
            if (a->rstd) a->rstd[row * num_segments + segment] = r;
        }
    return FP8FLOW_OK;
}

/* sum dy * weight * u of one segment; adds dy * u to the slab's weight gradient on the way. */
static float reduce_segment(const uint16_t *x, const uint16_t *dy, float r, const fp8flow_rmsnorm_backward_args *a,
                            float *dweight)
{
    __m256 factor = _mm256_set1_ps(r), lanes = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= a->width; i += 8) {
        __m256 dy_u = _mm256_mul_ps(f8v_bf16_load(dy + i), _mm256_mul_ps(f8v_bf16_load(x + i), factor));
        lanes = _mm256_fmadd_ps(dy_u, _mm256_loadu_ps(a->weight + i), lanes);
        _mm256_storeu_ps(dweight + i, _mm256_add_ps(_mm256_loadu_ps(dweight + i), dy_u));
    }
    float sum = lane_sum(lanes);
    for (; i < a->width; i++) {
        float dy_u = f8_bf16_decode(dy[i]) * (f8_bf16_decode(x[i]) * r);
        sum += dy_u * a->weight[i];
        dweight[i] += dy_u;
    }
    return sum;
}

static void backward_segment(const fp8flow_rmsnorm_backward_args *a, int64_t row, int64_t segment, float *dweight)
{
    const int64_t width = a->width, first = segment * width;
    const uint16_t *x = f8_bf16_row(a->x, row) + first, *dy = f8_bf16_row(a->dy, row) + first;
    uint16_t *dx = f8_bf16_row(a->dx, row) + first;
    float r = a->rstd[row * (a->x->cols / width) + segment];
    float slope = r * (reduce_segment(x, dy, r, a, dweight) / (float)width);
    __m256 factor = _mm256_set1_ps(r), slopes = _mm256_set1_ps(slope);
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) {
        __m256 g = _mm256_mul_ps(f8v_bf16_load(dy + i), _mm256_loadu_ps(a->weight + i));
        __m256 difference = _mm256_fnmadd_ps(f8v_bf16_load(x + i), slopes, g);
        f8v_bf16_store(dx + i, _mm256_mul_ps(difference, factor));
    }
    for (; i < width; i++) {
        float g = f8_bf16_decode(dy[i]) * a->weight[i];
        dx[i] = f8_bf16_encode((g - f8_bf16_decode(x[i]) * slope) * r);
    }
}

fp8flow_status f8_avx2_rmsnorm_backward(fp8flow_context *c, const fp8flow_rmsnorm_backward_args *a)
{
    int64_t num_rows = a->x->rows, width = a->width, num_segments = a->x->cols / width;
    int64_t slab_rows = f8_ceil_div(num_rows, F8_NORM_SLABS);
    int64_t num_slabs = num_rows ? f8_ceil_div(num_rows, slab_rows) : 0;
    float *partial = f8_scratch(c); /* one for all threads: [num_slabs, width] */
    int64_t work = num_rows * a->x->cols * 2;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t slab = 0; slab < num_slabs; slab++) {
        int64_t first = slab * slab_rows, last = first + slab_rows < num_rows ? first + slab_rows : num_rows;
        float *dweight = partial + slab * width;
        memset(dweight, 0, (size_t)width * sizeof *dweight);
        for (int64_t row = first; row < last; row++)
            for (int64_t segment = 0; segment < num_segments; segment++) backward_segment(a, row, segment, dweight);
    }
    for (int64_t i = 0; i < width; i++) {
        float sum = 0.0f;
        for (int64_t slab = 0; slab < num_slabs; slab++) sum += partial[slab * width + i];
        a->dweight[i] += sum;
    }
    return FP8FLOW_OK;
}
