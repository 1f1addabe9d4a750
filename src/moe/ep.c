/* ep.c - expert parallelism: which token goes to which rank, dispatch and combine.
 *
 * A token travels once to each rank that owns one of its experts, as a record of codes, scales, the k local
 * experts (or -1) and the k gate weights. Ranks play the part of experts in the send plan, so the gather before
 * dispatch is `permute` and the sum after combine is `unpermute`: ascending rank order, one rounding. A rank that is
 * alone has its rows where they belong; the transport only counts them.
 */
#include "moe/moe.h"

int64_t f8_moe_max_received(const fp8flow_moe *m)
{
    return m->config.max_tokens * m->comm->size;
}

int64_t f8_moe_max_padded(const fp8flow_moe *m, int64_t received)
{
    int64_t k = m->config.router.top_k, copies = k < m->local_experts ? k : m->local_experts;
    int64_t rows = received * copies + m->local_experts * (m->recipe.align - 1);
    return rows / m->recipe.align * m->recipe.align;
}

int f8_moe_is_alone(const fp8flow_moe *m)
{
    return m->comm->size == 1;
}

/* Rank r owns experts [E r / R, E (r+1) / R). */
static int32_t rank_of(const fp8flow_moe *m, int32_t expert)
{
    return (int32_t)(((int64_t)(expert + 1) * m->comm->size - 1) / m->config.router.num_experts);
}

static int32_t first_expert_of(const fp8flow_moe *m, int32_t rank)
{
    return (int32_t)(m->config.router.num_experts * rank / m->comm->size);
}

/* destination [T, R]: r in column r if the token has an expert on rank r, else -1. */
static void find_destinations(const fp8flow_moe *m, int32_t *destination)
{
    int64_t num_ranks = m->comm->size, top_k = m->config.router.top_k;
    const f8_moe_state *s = &m->state;
    for (int64_t i = 0; i < s->tokens * num_ranks; i++) destination[i] = -1;
    for (int64_t t = 0; t < s->tokens; t++)
        for (int64_t slot = 0; slot < top_k; slot++) {
            int32_t rank = rank_of(m, s->expert[t * top_k + slot]);
            destination[t * num_ranks + rank] = rank;
        }
}

/* Local experts and gates of each row that is sent. */
static void fill_routing(const fp8flow_moe *m)
{
    const f8_moe_state *s = &m->state;
    int64_t top_k = m->config.router.top_k;
    for (int32_t rank = 0; rank < m->comm->size; rank++)
        for (int64_t row = s->send.offset[rank]; row < s->send.offset[rank + 1]; row++) {
            int64_t token = s->send.source[row] / m->comm->size;
            for (int64_t slot = 0; slot < top_k; slot++) {
                int32_t expert = s->expert[token * top_k + slot];
                int here = rank_of(m, expert) == rank;
                s->send_expert[row * top_k + slot] = here ? expert - first_expert_of(m, rank) : -1;
                s->send_gate[row * top_k + slot] = here ? s->gate[token * top_k + slot] : 0.0f;
            }
        }
}

static double exchange_seconds(const fp8flow_moe *m)
{
    return m->comm->spent[F8_EXCHANGE].seconds;
}

static fp8flow_status exchange_counts(fp8flow_moe *m)
{
    f8_moe_state *s = &m->state;
    double start = exchange_seconds(m);
    for (int32_t r = 0; r < m->comm->size; r++) s->send_rows[r] = s->send.rows[r];
    F8_TRY(f8_comm_counts(m->comm, s->send_rows, s->recv_rows));
    m->dispatch_seconds += exchange_seconds(m) - start;
    s->sent = s->send.offset[m->comm->size];
    s->received = 0;
    for (int32_t r = 0; r < m->comm->size; r++) s->received += s->recv_rows[r];
    return FP8FLOW_OK;
}

/* The send plan and the routing of its rows, for other ranks. */
static fp8flow_status plan_records(fp8flow_moe *m, f8_arena *arena)
{
    f8_moe_state *s = &m->state;
    int64_t num_ranks = m->comm->size, top_k = m->config.router.top_k;
    int64_t capacity = s->tokens * (top_k < num_ranks ? top_k : num_ranks);
    s->send = (fp8flow_plan){
        .num_tokens = s->tokens, .top_k = num_ranks, .num_experts = num_ranks, .align = 1, .capacity = capacity
    };
    F8_TRY(f8_arena_draw(arena, "send plan", num_ranks, 4, &s->send.rows));
    F8_TRY(f8_arena_draw(arena, "send plan", num_ranks + 1, 4, &s->send.offset));
    F8_TRY(f8_arena_draw(arena, "send plan", s->tokens * num_ranks, 4, &s->send.row_of));
    F8_TRY(f8_arena_draw(arena, "send plan", capacity, 4, &s->send.source));
    f8_arena_position mark = f8_arena_mark(m->workspace);
    int32_t *destination;
    F8_TRY(f8_arena_draw(m->workspace, "destinations", s->tokens * num_ranks, 4, &destination));
    if (!m->measuring) find_destinations(m, destination);
    F8_DO(m, fp8flow_permute_plan(m->context, &(fp8flow_permute_plan_args){ destination, &s->send }));
    f8_arena_rewind(m->workspace, mark);
    F8_DO(m, exchange_counts(m));
    if (m->measuring) {
        s->sent = capacity;
        s->received = f8_moe_max_received(m);
    }
    F8_TRY(f8_arena_draw(arena, "sent experts", s->sent * top_k, 4, &s->send_expert));
    F8_TRY(f8_arena_draw(m->workspace, "sent gates", s->sent * top_k, 4, &s->send_gate));
    if (!m->measuring) fill_routing(m);
    return FP8FLOW_OK;
}

fp8flow_status f8_ep_plan(fp8flow_moe *m, f8_arena *arena)
{
    f8_moe_state *s = &m->state;
    if (!f8_moe_is_alone(m)) return plan_records(m, arena);
    s->sent = s->received = s->tokens;
    s->send_rows[0] = s->recv_rows[0] = (int32_t)s->tokens;
    s->send_expert = s->expert;
    s->send_gate = s->gate;
    return FP8FLOW_OK;
}

/* Room for the rows that come, and for their routing. */
static fp8flow_status draw_received(fp8flow_moe *m, f8_record record, const fp8flow_tensor *wire, f8_arena *arena,
                                    fp8flow_tensor *received)
{
    f8_moe_state *s = &m->state;
    int64_t top_k = m->config.router.top_k;
    f8_tensor_format format = { wire->dtype, wire->scaling, wire->layout };
    F8_TRY(f8_draw_tensor(arena, "received rows", format, s->received, wire->cols, received));
    if (record == F8_ROWS_ONLY) return FP8FLOW_OK;
    F8_TRY(f8_arena_draw(arena, "received experts", s->received * top_k, 4, &s->recv_expert));
    return f8_arena_draw(arena, "received gates", s->received * top_k, 4, &s->recv_gate);
}

static fp8flow_status exchange_records(fp8flow_moe *m, f8_record record, const fp8flow_tensor *sent,
                                       const fp8flow_tensor *received, int64_t *bytes)
{
    f8_moe_state *s = &m->state;
    int64_t top_k = m->config.router.top_k;
    f8_comm_part part[4];
    int num_parts = 0;
    part[num_parts++] = (f8_comm_part){ sent->data, received->data, sent->cols * (int64_t)f8_dtype_bytes(sent->dtype) };
    if (sent->scaling == FP8FLOW_ROW128)
        part[num_parts++] = (f8_comm_part){ sent->scale, received->scale, f8_ceil_div(sent->cols, 128) };
    if (record == F8_ROWS_AND_ROUTING) {
        part[num_parts++] = (f8_comm_part){ s->send_expert, s->recv_expert, top_k * 4 };
        part[num_parts++] = (f8_comm_part){ s->send_gate, s->recv_gate, top_k * 4 };
    }
    int64_t before = m->comm->exchanged_bytes;
    double start = exchange_seconds(m);
    F8_DO(m, f8_comm_exchange(m->comm, part, num_parts, s->send_rows, s->recv_rows));
    m->dispatch_seconds += exchange_seconds(m) - start;
    int64_t moved = m->comm->exchanged_bytes - before;
    int64_t routing = record == F8_ROWS_AND_ROUTING ? s->sent * top_k * 8 : 0;
    *bytes += moved - routing;
    m->report.routing_bytes += routing;
    return FP8FLOW_OK;
}

fp8flow_status f8_ep_dispatch(fp8flow_moe *m, f8_record record, const fp8flow_tensor *wire, f8_arena *arena,
                              fp8flow_tensor *received, int64_t *bytes)
{
    f8_moe_state *s = &m->state;
    f8_tensor_format format = { wire->dtype, wire->scaling, wire->layout };
    fp8flow_tensor sent;
    if (f8_moe_is_alone(m)) {
        *received = *wire;
        return exchange_records(m, record, wire, received, bytes);
    }
    F8_TRY(draw_received(m, record, wire, arena, received));
    f8_arena_position mark = f8_arena_mark(m->workspace);
    F8_TRY(f8_draw_tensor(m->workspace, "sent rows", format, s->sent, wire->cols, &sent));
    F8_DO(m, fp8flow_permute(m->context, &(fp8flow_permute_args){ .x = wire, .plan = &s->send, .rows = &sent }));
    F8_TRY(exchange_records(m, record, &sent, received, bytes));
    f8_arena_rewind(m->workspace, mark);
    return FP8FLOW_OK;
}

/* gate [T, k] from the records that came back: each slot was sent to exactly one rank, so each is written. */
static void collect_gates(const fp8flow_moe *m, const float *returned, float *gate)
{
    const f8_moe_state *s = &m->state;
    int64_t top_k = m->config.router.top_k;
    for (int64_t row = 0; row < s->sent; row++) {
        int64_t token = s->send.source[row] / m->comm->size;
        for (int64_t slot = 0; slot < top_k; slot++)
            if (s->send_expert[row * top_k + slot] >= 0) gate[token * top_k + slot] = returned[row * top_k + slot];
    }
}

/* A record on its way back: rows, and the gradients of gates where they are wanted. */
typedef struct {
    const fp8flow_tensor *rows;
    const float *gate;
} outgoing;

typedef struct {
    const fp8flow_tensor *rows;
    float *gate;
} incoming;

static fp8flow_status return_records(fp8flow_moe *m, f8_record record, outgoing from, incoming to, int64_t *bytes)
{
    f8_moe_state *s = &m->state;
    int64_t top_k = m->config.router.top_k, before = m->comm->exchanged_bytes;
    f8_comm_part part[2] = { { from.rows->data, to.rows->data, from.rows->cols * 2 },
                             { from.gate, to.gate, top_k * 4 } };
    int num_parts = record == F8_ROWS_AND_ROUTING ? 2 : 1;
    double start = exchange_seconds(m);
    F8_DO(m, f8_comm_exchange(m->comm, part, num_parts, s->recv_rows, s->send_rows));
    m->combine_seconds += exchange_seconds(m) - start;
    *bytes += m->comm->exchanged_bytes - before;
    return FP8FLOW_OK;
}

fp8flow_status f8_ep_combine(fp8flow_moe *m, f8_record record, const fp8flow_tensor *rows, const float *gate_rows,
                             fp8flow_tensor *y, float *gate, int64_t *bytes)
{
    f8_moe_state *s = &m->state;
    outgoing from = { rows, gate_rows };
    if (f8_moe_is_alone(m)) return return_records(m, record, from, (incoming){ y, gate }, bytes);
    f8_arena_position mark = f8_arena_mark(m->workspace);
    const f8_tensor_format bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
    fp8flow_tensor returned;
    float *returned_gate = NULL;
    F8_TRY(f8_draw_tensor(m->workspace, "returned rows", bf16, s->sent, rows->cols, &returned));
    int with_gates = record == F8_ROWS_AND_ROUTING;
    int64_t gates = with_gates ? s->sent * m->config.router.top_k : 0;
    F8_TRY(f8_arena_draw(m->workspace, "returned gates", gates, 4, &returned_gate));
    F8_TRY(return_records(m, record, from, (incoming){ &returned, returned_gate }, bytes));
    F8_DO(m, fp8flow_unpermute(m->context, &(fp8flow_unpermute_args){ .x = &returned, .plan = &s->send, .y = y }));
    if (with_gates && !m->measuring) collect_gates(m, returned_gate, gate);
    f8_arena_rewind(m->workspace, mark);
    return FP8FLOW_OK;
}
