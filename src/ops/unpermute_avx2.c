/* unpermute_avx2.c - one thread per token; 64 columns of the sum stay in registers while the token's rows,
 * sorted once, stream by. Every x element is read once, every y element written once. */
#include "ops/avx2.h"
#include "ops/nan.h"
#include "ops/plan.h"

/* The rows of a token in ascending order. Insertion sort: routers hand out few slots, often nearly sorted. */
static int64_t sorted_rows(const int32_t *slots, int64_t top_k, int32_t *rows)
{
    int64_t count = 0;
    for (int64_t slot = 0; slot < top_k; slot++) {
        int32_t row = slots[slot];
        if (row < 0) continue;
        int64_t at = count++;
        for (; at > 0 && rows[at - 1] > row; at--) rows[at] = rows[at - 1];
        rows[at] = row;
    }
    return count;
}

enum { CHUNK = 64 };

static void sum_chunk(const fp8flow_tensor *x, const int32_t *rows, int64_t count, int64_t col, uint16_t *y)
{
    __m256 sum[CHUNK / 8];
    const uint16_t *line = (const uint16_t *)x->data + rows[0] * x->stride + col;
    for (int i = 0; i < CHUNK / 8; i++) sum[i] = f8v_bf16_load(line + 8 * i);
    for (int64_t r = 1; r < count; r++) {
        line = (const uint16_t *)x->data + rows[r] * x->stride + col;
        for (int i = 0; i < CHUNK / 8; i++) sum[i] = _mm256_add_ps(sum[i], f8v_bf16_load(line + 8 * i));
    }
    for (int i = 0; i < CHUNK / 8; i++) f8v_bf16_store(y + 8 * i, f8v_canonical(sum[i]));
}

static void sum_tail(const fp8flow_tensor *x, const int32_t *rows, int64_t count, int64_t col, uint16_t *y)
{
    for (int64_t j = 0; j < x->cols - col; j++) {
        float sum = f8_value(x, rows[0], col + j, 0);
        for (int64_t r = 1; r < count; r++) sum += f8_value(x, rows[r], col + j, 0);
        y[j] = f8_bf16_encode(f8_canonical(sum));
    }
}

static void unpermute_token(const fp8flow_unpermute_args *a, int64_t token, int32_t *rows)
{
    int64_t top_k = a->plan->top_k, cols = a->x->cols, col = 0;
    const int32_t *slots = a->plan->row_of + token * top_k;
    uint16_t *y = (uint16_t *)a->y->data + token * a->y->stride;
    int64_t count = sorted_rows(slots, top_k, rows);
    if (count == 0) {
        if (cols > 0) memset(y, 0, (size_t)cols * sizeof *y);
    } else {
        for (; col + CHUNK <= cols; col += CHUNK) sum_chunk(a->x, rows, count, col, y + col);
        sum_tail(a->x, rows, count, col, y + col);
    }
    for (int64_t slot = 0; a->gate && slot < top_k; slot++)
        a->gate[token * top_k + slot] = slots[slot] < 0 ? 0.0f : a->gate_rows[slots[slot]];
}

fp8flow_status f8_avx2_unpermute(fp8flow_context *c, const fp8flow_unpermute_args *a)
{
    int64_t work = a->y->rows * a->plan->top_k * (a->y->cols / 8 + 1);
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(c, work))
    for (int64_t token = 0; token < a->y->rows; token++) unpermute_token(a, token, f8_scratch(c));
    return FP8FLOW_OK;
}
