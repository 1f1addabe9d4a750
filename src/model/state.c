/* state.c - masters and moments, of which every rank has its shares (ZeRO stage 1), and the weights made from them.
 *
 *   gradients, whole  --reduce_scatter-->  own share  --adamw-->  own share of masters
 *                                                                    | rounded to BF16       | norms, routers
 *                     weights, whole  <--all_gather--  own share  <--+      fp32, whole  <---+
 *
 * Where this rank is the only one that has something, its share is all of it and nothing is moved.
 */
#include <stdlib.h>

#include "model/model.h"

enum {
    SHARE_MULTIPLE = 128,   /* elements */
    PIECE = 1 << 20,        /* elements that go through the program's memory at once */
    INIT_ELEMENTS = 1 << 12 /* of a thread's turn */
};

/* ---- Shares ---- */

/* comm NULL: this rank has all. */
static f8_section share_section(fp8flow_comm *comm, int64_t first, int64_t count)
{
    int32_t size = comm ? comm->size : 1, rank = comm ? comm->rank : 0;
    int64_t units = f8_ceil_div(count, SHARE_MULTIPLE);
    f8_section s = { .comm = size > 1 ? comm : NULL, .first = first, .count = count };
    for (int32_t r = 0; r <= size; r++) {
        int64_t begin = units * r / size * SHARE_MULTIPLE;
        s.share[r] = begin < count ? begin : count;
    }
    s.begin = first + s.share[rank];
    s.end = first + s.share[rank + 1];
    return s;
}

void f8_model_share_out(f8_model *m, f8_purpose purpose)
{
    const f8_parameter_table *t = m->table;
    int shared = purpose == F8_FOR_TRAINING;
    f8_section *replicated = &m->section[F8_REPLICATED], *experts = &m->section[F8_EXPERTS];
    *replicated = share_section(shared ? m->ranks.world_device : NULL, 0, t->replicated);
    *experts = share_section(shared ? m->ranks.dp_device : NULL, t->replicated, t->count - t->replicated);
    experts->state = replicated->end - replicated->begin;
    m->state_count = experts->state + (experts->end - experts->begin);
    for (int32_t r = 0; replicated->comm && r <= replicated->comm->size; r++)
        m->fp32_share[r] = f8_parameter_fp32_before(t, replicated->share[r]) * (int64_t)sizeof *m->fp32;
}

const f8_section *f8_model_section(const f8_model *m, int64_t element)
{
    return &m->section[element < m->table->replicated ? F8_REPLICATED : F8_EXPERTS];
}

int64_t f8_section_overlap(const f8_section *s, int64_t first, int64_t count, int64_t *begin)
{
    int64_t last = first + count, end = last < s->end ? last : s->end;
    *begin = first > s->begin ? first : s->begin;
    return end > *begin ? end - *begin : 0;
}

/* ---- Collectives ---- */

fp8flow_status f8_model_reduce_gradients(f8_model *m)
{
    for (int i = 0; i < F8_NUM_SECTIONS; i++) {
        const f8_section *s = &m->section[i];
        if (s->comm) F8_TRY(f8_comm_reduce_scatter(s->comm, F8_SUM_F32, m->gradient + s->first, s->share));
    }
    return FP8FLOW_OK;
}

static fp8flow_status gather_section(f8_model *m, const f8_section *s)
{
    int64_t bytes[F8_COMM_MAX_RANKS + 1];
    if (!s->comm) return FP8FLOW_OK;
    for (int32_t r = 0; r <= s->comm->size; r++) bytes[r] = s->share[r] * (int64_t)sizeof *m->weight;
    return f8_comm_all_gather(s->comm, m->weight + s->first, bytes);
}

/* The shares of what is read in FP32 follow each other as those of the section do. */
static fp8flow_status gather_fp32(f8_model *m)
{
    const f8_section *s = &m->section[F8_REPLICATED];
    if (!s->comm) return FP8FLOW_OK;
    for (int64_t i = 0; i < m->table->num_parameters; i++) {
        const f8_parameter *p = &m->table->parameter[i];
        int64_t begin, count = f8_section_overlap(s, p->offset, p->rows * p->cols, &begin);
        if (p->fp32 < 0 || count == 0) continue;
        F8_TRY(fp8flow_memory_copy(m->context, m->fp32 + p->fp32 + (begin - p->offset),
                                   m->master + (begin - s->begin + s->state), (size_t)count * sizeof *m->fp32));
    }
    return f8_comm_all_gather(s->comm, m->fp32, m->fp32_share);
}

fp8flow_status f8_model_gather_weights(f8_model *m)
{
    for (int i = 0; i < F8_NUM_SECTIONS; i++) F8_TRY(gather_section(m, &m->section[i]));
    return gather_fp32(m);
}

/* ---- Masters and the weights rounded from them: in pieces, through memory of the program ---- */

typedef struct {
    uint64_t seed;
    float master[PIECE];
    uint16_t weight[PIECE];
} piece;

/* Elements [first, first + count) of the arrays, whose masters start at `state`. */
typedef struct {
    int64_t first, state, count;
} range;

/* Threads share it: a model has billions of these numbers. */
static fp8flow_status init_piece(f8_model *m, range r, piece *p)
{
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(m->context, 64 * r.count))
    for (int64_t at = 0; at < r.count; at += INIT_ELEMENTS) {
        int64_t some = r.count - at < INIT_ELEMENTS ? r.count - at : INIT_ELEMENTS;
        f8_parameter_init(m->table, &m->config, p->seed, r.first + at, some, p->master + at);
    }
    return fp8flow_memory_copy(m->context, m->master + r.state, p->master, (size_t)r.count * sizeof *p->master);
}

static fp8flow_status round_piece(f8_model *m, range r, piece *p)
{
    F8_TRY(fp8flow_memory_copy(m->context, p->master, m->master + r.state, (size_t)r.count * sizeof *p->master));
#pragma omp parallel for schedule(static) num_threads(f8_threads_for(m->context, r.count))
    for (int64_t i = 0; i < r.count; i++) p->weight[i] = f8_bf16_encode(p->master[i]);
    return fp8flow_memory_copy(m->context, m->weight + r.first, p->weight, (size_t)r.count * sizeof *p->weight);
}

static fp8flow_status for_each_piece(f8_model *m, uint64_t seed, fp8flow_status (*treat)(f8_model *, range, piece *))
{
    piece *p = malloc(sizeof *p);
    F8_REQUIRE(p, ENOMEM, "model: no memory for %zu bytes", sizeof *p);
    p->seed = seed;
    fp8flow_status status = FP8FLOW_OK;
    for (int i = 0; i < F8_NUM_SECTIONS; i++) {
        const f8_section *s = &m->section[i];
        for (int64_t at = s->begin; at < s->end && status == FP8FLOW_OK; at += PIECE) {
            int64_t left = s->end - at;
            status = treat(m, (range){ at, at - s->begin + s->state, left < PIECE ? left : PIECE }, p);
        }
    }
    free(p);
    return status;
}

fp8flow_status f8_model_init_masters(f8_model *m, uint64_t seed)
{
    return for_each_piece(m, seed, init_piece);
}

fp8flow_status f8_model_publish_from_master(f8_model *m)
{
    F8_TRY(for_each_piece(m, 0, round_piece));
    F8_TRY(f8_model_gather_weights(m));
    return f8_model_publish(m);
}
