/* attention_blas.c - attention and its gradients on OpenBLAS, in tiles of QUERIES x KEYS scores.
 *
 * No buffer grows with the sequence: the forward pass keeps a running maximum and sum per query (online
 * softmax), the backward pass recomputes the probabilities from the log-sum-exp, once with the queries' tile
 * fixed (grad_q) and once with the keys' tile fixed (grad_k, grad_v). An item is one fixed tile with everything
 * that it sees, in ascending order, on one thread: the bits do not depend on the number of threads.
 * Masked scores are computed and then replaced by probability 0.
 */
#include "ops/attention.h"
#include "ops/blas.h"
#include "ops/lines.h"

enum {
    QUERIES = 128,
    KEYS = 256,
    SCORE_STRIDE = KEYS + 16, /* not a power of two: lines of a column would share cache sets */
    MAX_TILE_STRIDE = F8_ATTENTION_MAX_HEAD_DIM + 16
};

_Static_assert(((2 * QUERIES + 4 * KEYS) * MAX_TILE_STRIDE + 2 * QUERIES * SCORE_STRIDE) * sizeof(float) <=
                   F8_SCRATCH_BYTES,
               "the tiles of a backward item fit into scratch");

/* What all items of a call share. */
typedef struct {
    const f8_lines *lines;
    int64_t num_heads, heads_per_kv, head_dim;
    int64_t queries, keys; /* per sequence */
    int tile_stride;
    float scale;
} geometry;

/* Consecutive tokens of a sequence. */
typedef struct {
    int64_t begin, count;
} span;

static geometry make_geometry(int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, float scale)
{
    return (geometry){ .lines = f8_lines_cpu(),
                       .num_heads = num_heads,
                       .heads_per_kv = num_heads / num_kv_heads,
                       .head_dim = head_dim,
                       .tile_stride = (int)(f8_ceil_div(head_dim, 16) * 16 + 16),
                       .scale = scale };
}

static span span_at(int64_t begin, int64_t step, int64_t end)
{
    return (span){ begin, end - begin < step ? end - begin : step };
}

static float *take(float **memory, int64_t count)
{
    float *taken = *memory;
    *memory += count;
    return taken;
}

/* ---- Tiles ---- */

static uint16_t *vector(const geometry *g, const fp8flow_tensor *t, int64_t row, int64_t head)
{
    return (uint16_t *)t->data + row * t->stride + head * g->head_dim;
}

static void load_tile(const geometry *g, const fp8flow_tensor *t, int64_t row, int64_t head, int64_t count, float *tile)
{
    for (int64_t i = 0; i < count; i++)
        g->lines->decode_bf16(tile + i * g->tile_stride, vector(g, t, row + i, head), g->head_dim);
}

static void store_tile(const geometry *g, const fp8flow_tensor *t, int64_t row, int64_t head, int64_t count,
                       const float *tile)
{
    for (int64_t i = 0; i < count; i++)
        g->lines->encode_bf16(vector(g, t, row + i, head), tile + i * g->tile_stride, g->head_dim);
}

/* scores[queries, keys] = alpha * x[queries, head_dim] y[keys, head_dim]^T */
static void score_product(const geometry *g, const float *x, const float *y, f8_blas_shape shape, float *scores)
{
    shape.k = (int)g->head_dim;
    f8_blas_sgemm(shape, (f8_blas_matrix){ x, g->tile_stride, CblasNoTrans },
                  (f8_blas_matrix){ y, g->tile_stride, CblasTrans }, scores, SCORE_STRIDE);
}

/* tile += op(scores) x, where x has head_dim columns; shape.n is filled in here. */
static void add_product(const geometry *g, const float *scores, CBLAS_TRANSPOSE order, const float *x,
                        f8_blas_shape shape, float *tile)
{
    shape.n = (int)g->head_dim;
    f8_blas_sgemm(shape, (f8_blas_matrix){ scores, SCORE_STRIDE, order },
                  (f8_blas_matrix){ x, g->tile_stride, CblasNoTrans }, tile, g->tile_stride);
}

/* Keys of a tile that a query sees. */
static int64_t visible_keys(const geometry *g, int64_t query, span keys)
{
    int64_t visible = query + 1 + g->keys - g->queries - keys.begin;
    return visible < 0 ? 0 : visible < keys.count ? visible : keys.count;
}

static void mask(float *scores, int64_t visible, int64_t count)
{
    for (int64_t t = visible; t < count; t++) scores[t] = 0.0f;
}

/* ---- Forward ---- */

/* Running softmax of a tile of queries. */
typedef struct {
    float max[QUERIES], sum[QUERIES];
    float *o; /* [QUERIES, head_dim], sums of exp(score - max) * v */
} running;

/* Turn scores into exp(score - max) and bring sums and o to the new maximum. */
static void softmax_tile(const geometry *g, span queries, span keys, float *scores, running *r)
{
    for (int64_t i = 0; i < queries.count; i++) {
        float *line = scores + i * SCORE_STRIDE, *o = r->o + i * g->tile_stride;
        int64_t visible = visible_keys(g, queries.begin + i, keys);
        mask(line, visible, keys.count);
        if (visible == 0) continue;
        float tile_max = g->lines->max(line, visible), max = tile_max > r->max[i] ? tile_max : r->max[i];
        float factor = keys.begin == 0 ? 0.0f : f8_expf(r->max[i] - max);
        r->max[i] = max;
        r->sum[i] = r->sum[i] * factor + g->lines->exp(line, visible, max);
        for (int64_t d = 0; d < g->head_dim && keys.begin > 0 && factor != 1.0f; d++) o[d] *= factor;
    }
}

static void write_queries(const geometry *g, const fp8flow_attention_args *a, int64_t row, int64_t head, span queries,
                          running *r)
{
    for (int64_t i = 0; i < queries.count; i++) {
        float *o = r->o + i * g->tile_stride, inverse = 1.0f / r->sum[i];
        for (int64_t d = 0; d < g->head_dim; d++) o[d] *= inverse;
        if (a->lse) a->lse[(row + i) * g->num_heads + head] = r->max[i] + logf(r->sum[i]);
    }
    store_tile(g, a->o, row, head, queries.count, r->o);
}

static void forward_item(const geometry *g, const fp8flow_attention_args *a, int64_t sequence_head, span queries,
                         float *memory)
{
    int64_t sequence = sequence_head / g->num_heads, head = sequence_head % g->num_heads;
    int64_t kv_head = head / g->heads_per_kv, row = sequence * g->queries + queries.begin;
    float *q = take(&memory, (int64_t)QUERIES * g->tile_stride), *k = take(&memory, (int64_t)KEYS * g->tile_stride);
    float *v = take(&memory, (int64_t)KEYS * g->tile_stride), *scores = take(&memory, QUERIES * SCORE_STRIDE);
    running r = { .o = take(&memory, (int64_t)QUERIES * g->tile_stride) };
    for (int64_t i = 0; i < queries.count; i++) r.max[i] = -INFINITY;
    load_tile(g, a->q, row, head, queries.count, q);
    int64_t end = queries.begin + queries.count + g->keys - g->queries;
    for (int64_t t = 0; t < end; t += KEYS) {
        span keys = span_at(t, KEYS, end);
        load_tile(g, a->k, sequence * g->keys + t, kv_head, keys.count, k);
        load_tile(g, a->v, sequence * g->keys + t, kv_head, keys.count, v);
        f8_blas_shape shape = { .m = (int)queries.count, .n = (int)keys.count, .alpha = g->scale };
        score_product(g, q, k, shape, scores);
        softmax_tile(g, queries, keys, scores, &r);
        f8_blas_shape sums = { .m = shape.m, .k = shape.n, .alpha = 1.0f, .beta = t == 0 ? 0.0f : 1.0f };
        add_product(g, scores, CblasNoTrans, v, sums, r.o);
    }
    write_queries(g, a, row, head, queries, &r);
}

fp8flow_status f8_blas_attention(fp8flow_context *c, const fp8flow_attention_args *a)
{
    if (a->q->rows == 0) return FP8FLOW_OK;
    geometry g = make_geometry(a->num_heads, a->num_kv_heads, a->head_dim, a->scale);
    g.queries = a->q->rows / a->batch;
    g.keys = a->k->rows / a->batch;
    int64_t blocks = f8_ceil_div(g.queries, QUERIES), num_items = a->batch * g.num_heads * blocks;
    int entered = f8_blas_enter();
#pragma omp parallel for schedule(dynamic, 1) num_threads(f8_threads_for(c, num_items *F8_BLAS_ITEM_WORK))
    for (int64_t i = 0; i < num_items; i++)
        forward_item(&g, a, i / blocks, span_at(i % blocks * QUERIES, QUERIES, g.queries), f8_scratch(c));
    f8_blas_leave(entered);
    return FP8FLOW_OK;
}

/* ---- Backward ---- */

/* Tiles of one item, FP32. Sums belong to the fixed tile. */
typedef struct {
    float *q, *grad_o, *k, *v; /* inputs */
    float *p, *ds;             /* [QUERIES, KEYS] */
    float *sum_k, *sum_v;      /* grad_k and grad_v, or grad_q in sum_k */
    float mean[QUERIES];       /* grad_o . o of each query */
} tiles;

static tiles draw_tiles(const geometry *g, float *memory)
{
    int64_t query_tile = (int64_t)QUERIES * g->tile_stride, key_tile = (int64_t)KEYS * g->tile_stride;
    return (tiles){ .q = take(&memory, query_tile),
                    .grad_o = take(&memory, query_tile),
                    .k = take(&memory, key_tile),
                    .v = take(&memory, key_tile),
                    .sum_k = take(&memory, key_tile),
                    .sum_v = take(&memory, key_tile),
                    .p = take(&memory, QUERIES * SCORE_STRIDE),
                    .ds = take(&memory, QUERIES * SCORE_STRIDE) };
}

static void load_queries(const geometry *g, const fp8flow_attention_backward_args *a, int64_t row, int64_t head,
                         int64_t count, tiles *x)
{
    float o[F8_ATTENTION_MAX_HEAD_DIM];
    load_tile(g, a->q, row, head, count, x->q);
    load_tile(g, a->grad_o, row, head, count, x->grad_o);
    for (int64_t i = 0; i < count; i++) {
        g->lines->decode_bf16(o, vector(g, a->o, row + i, head), g->head_dim);
        x->mean[i] = g->lines->dot(x->grad_o + i * g->tile_stride, o, g->head_dim);
    }
}

static void load_keys(const geometry *g, const fp8flow_attention_backward_args *a, int64_t row, int64_t kv_head,
                      int64_t count, tiles *x)
{
    load_tile(g, a->k, row, kv_head, count, x->k);
    load_tile(g, a->v, row, kv_head, count, x->v);
}

/* Fill p and ds. lse points to the first query's; queries are num_heads apart. */
static void probability_tile(const geometry *g, span queries, span keys, const float *lse, tiles *x)
{
    f8_blas_shape shape = { .m = (int)queries.count, .n = (int)keys.count, .alpha = g->scale };
    score_product(g, x->q, x->k, shape, x->p);
    shape.alpha = 1.0f;
    score_product(g, x->grad_o, x->v, shape, x->ds);
    for (int64_t i = 0; i < queries.count; i++) {
        float *p = x->p + i * SCORE_STRIDE, *ds = x->ds + i * SCORE_STRIDE, mean = x->mean[i], scale = g->scale;
        int64_t visible = visible_keys(g, queries.begin + i, keys);
        g->lines->exp(p, visible, lse[i * g->num_heads]);
#pragma omp simd
        for (int64_t t = 0; t < visible; t++) ds[t] = p[t] * (ds[t] - mean) * scale;
        mask(p, visible, keys.count);
        mask(ds, visible, keys.count);
    }
}

static void clear(const geometry *g, float *tile, int64_t count)
{
    memset(tile, 0, (size_t)(count * g->tile_stride) * sizeof *tile);
}

/* grad_q of one tile of queries. */
static void grad_q_item(const geometry *g, const fp8flow_attention_backward_args *a, int64_t sequence_head,
                        span queries, float *memory)
{
    int64_t sequence = sequence_head / g->num_heads, head = sequence_head % g->num_heads;
    int64_t first_row = sequence * g->keys, row = first_row + queries.begin, end = queries.begin + queries.count;
    tiles x = draw_tiles(g, memory);
    load_queries(g, a, row, head, queries.count, &x);
    clear(g, x.sum_k, queries.count);
    for (int64_t t = 0; t < end; t += KEYS) {
        span keys = span_at(t, KEYS, end);
        load_keys(g, a, first_row + t, head / g->heads_per_kv, keys.count, &x);
        probability_tile(g, queries, keys, a->lse + row * g->num_heads + head, &x);
        f8_blas_shape shape = { .m = (int)queries.count, .k = (int)keys.count, .alpha = 1.0f, .beta = 1.0f };
        add_product(g, x.ds, CblasNoTrans, x.k, shape, x.sum_k);
    }
    store_tile(g, a->grad_q, row, head, queries.count, x.sum_k);
}

/* grad_k and grad_v of one tile of keys: all heads of the key head, each over all queries from the tile on. */
static void grad_kv_item(const geometry *g, const fp8flow_attention_backward_args *a, int64_t sequence_head, span keys,
                         float *memory)
{
    int64_t num_kv_heads = g->num_heads / g->heads_per_kv, first_row = sequence_head / num_kv_heads * g->keys;
    int64_t kv_head = sequence_head % num_kv_heads, row = first_row + keys.begin;
    tiles x = draw_tiles(g, memory);
    load_keys(g, a, row, kv_head, keys.count, &x);
    clear(g, x.sum_k, keys.count);
    clear(g, x.sum_v, keys.count);
    for (int64_t head = kv_head * g->heads_per_kv; head < (kv_head + 1) * g->heads_per_kv; head++)
        for (int64_t s = keys.begin; s < g->queries; s += QUERIES) {
            span queries = span_at(s, QUERIES, g->queries);
            span seen = span_at(keys.begin, keys.count, s + queries.count);
            load_queries(g, a, first_row + s, head, queries.count, &x);
            probability_tile(g, queries, seen, a->lse + (first_row + s) * g->num_heads + head, &x);
            f8_blas_shape shape = { .m = (int)seen.count, .k = (int)queries.count, .alpha = 1.0f, .beta = 1.0f };
            add_product(g, x.p, CblasTrans, x.grad_o, shape, x.sum_v);
            add_product(g, x.ds, CblasTrans, x.q, shape, x.sum_k);
        }
    store_tile(g, a->grad_k, row, kv_head, keys.count, x.sum_k);
    store_tile(g, a->grad_v, row, kv_head, keys.count, x.sum_v);
}

fp8flow_status f8_blas_attention_backward(fp8flow_context *c, const fp8flow_attention_backward_args *a)
{
    if (a->q->rows == 0) return FP8FLOW_OK;
    geometry g = make_geometry(a->num_heads, a->num_kv_heads, a->head_dim, a->scale);
    g.queries = g.keys = a->q->rows / a->batch;
    int64_t query_blocks = f8_ceil_div(g.queries, QUERIES), key_blocks = f8_ceil_div(g.keys, KEYS);
    int64_t kv_items = a->batch * a->num_kv_heads * key_blocks;
    int64_t num_items = kv_items + a->batch * g.num_heads * query_blocks;
    int entered = f8_blas_enter();
#pragma omp parallel for schedule(dynamic, 1) num_threads(f8_threads_for(c, num_items *F8_BLAS_ITEM_WORK))
    for (int64_t i = 0; i < num_items; i++) {
        int64_t j = i - kv_items;
        if (j < 0) grad_kv_item(&g, a, i / key_blocks, span_at(i % key_blocks * KEYS, KEYS, g.keys), f8_scratch(c));
        else
            grad_q_item(&g, a, j / query_blocks, span_at(j % query_blocks * QUERIES, QUERIES, g.queries),
                        f8_scratch(c));
    }
    f8_blas_leave(entered);
    return FP8FLOW_OK;
}
