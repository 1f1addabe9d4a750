/* adamw_avx2.c - adamw, eight parameters at a time. The rest of an array that is no multiple of eight goes through the
 * same eight-lane step in a copy, so that an element's bits do not depend on where the array ends. */
#include "ops/adamw.h"
#include "ops/avx2.h"

/* The arrays of one call, from some element on. */
typedef struct {
    float *master, *m, *v;
    const float *grad;
    uint16_t *weight; /* may be NULL */
} parameters;

/* Factors of a call, the same in all lanes. */
typedef struct {
    __m256 grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, correction1, correction2, eps, decay, lr;
} factors;

static factors factors_of(const fp8flow_adamw_args *a, float grad_scale)
{
    return (factors){
        .grad_scale = _mm256_set1_ps(grad_scale),
        .beta1 = _mm256_set1_ps(a->beta1),
        .one_minus_beta1 = _mm256_set1_ps(1.0f - a->beta1),
        .beta2 = _mm256_set1_ps(a->beta2),
        .one_minus_beta2 = _mm256_set1_ps(1.0f - a->beta2),
        .correction1 = _mm256_set1_ps((float)(1.0 - pow((double)a->beta1, (double)a->step))),
        .correction2 = _mm256_set1_ps((float)(1.0 - pow((double)a->beta2, (double)a->step))),
        .eps = _mm256_set1_ps(a->eps),
        .decay = _mm256_set1_ps(a->weight_decay),
        .lr = _mm256_set1_ps(a->lr),
    };
}

F8_AVX2 void step8(const factors *f, parameters p, int64_t i)
{
    __m256 w = _mm256_loadu_ps(p.master + i);
    __m256 g = _mm256_mul_ps(_mm256_loadu_ps(p.grad + i), f->grad_scale);
    __m256 m = _mm256_fmadd_ps(f->beta1, _mm256_loadu_ps(p.m + i), _mm256_mul_ps(f->one_minus_beta1, g));
    __m256 v = _mm256_mul_ps(f->one_minus_beta2, _mm256_mul_ps(g, g));
    v = _mm256_fmadd_ps(f->beta2, _mm256_loadu_ps(p.v + i), v);
    __m256 root = _mm256_add_ps(_mm256_sqrt_ps(_mm256_div_ps(v, f->correction2)), f->eps);
    __m256 update = _mm256_div_ps(_mm256_div_ps(m, f->correction1), root);
    w = _mm256_fnmadd_ps(f->lr, _mm256_fmadd_ps(f->decay, w, update), w);
    _mm256_storeu_ps(p.m + i, m);
    _mm256_storeu_ps(p.v + i, v);
    _mm256_storeu_ps(p.master + i, w);
    if (p.weight) f8v_bf16_store(p.weight + i, w);
}

/* Fewer than eight elements, from `begin` on. */
static void step_rest(const factors *f, parameters p, int64_t begin, int64_t count)
{
    float master[8] = { 0 }, m[8] = { 0 }, v[8] = { 0 }, grad[8] = { 0 };
    uint16_t weight[8];
    size_t bytes = (size_t)count * sizeof(float);
    memcpy(master, p.master + begin, bytes);
    memcpy(m, p.m + begin, bytes);
    memcpy(v, p.v + begin, bytes);
    memcpy(grad, p.grad + begin, bytes);
    step8(f, (parameters){ master, m, v, grad, weight }, 0);
    memcpy(p.master + begin, master, bytes);
    memcpy(p.m + begin, m, bytes);
    memcpy(p.v + begin, v, bytes);
    if (p.weight) memcpy(p.weight + begin, weight, bytes / 2);
}

fp8flow_status f8_avx2_adamw(fp8flow_context *c, const fp8flow_adamw_args *a)
{
    enum { OPERATIONS = 8 }; /* one element counts as several: two divisions and a root */
    float grad_scale = a->grad_scale ? *a->grad_scale : 1.0f;
    if (isnan(grad_scale)) return FP8FLOW_OK;
    const factors f = factors_of(a, grad_scale);
    const parameters p = { a->master, a->m, a->v, a->grad, a->weight };
    int64_t whole = a->count / 8 * 8;
    /* count * OPERATIONS cannot overflow for arrays that exist: count <= 2^61. */
    int64_t work = a->count * OPERATIONS;
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t i = 0; i < whole; i += 8) step8(&f, p, i);
    if (whole < a->count) step_rest(&f, p, whole, a->count - whole);
    return f8_adamw_quantize(c, a);
}
