/* ep.c - expert parallelism: which token goes to which rank, dispatch and combine.
 *
 * A token travels once to each rank that owns one of its experts, as a record of codes, scales, the k local
 * experts (or -1) and the k gate weights. Ranks play the part of experts in the send plan, so the gather before
 * dispatch is `permute` and the sum after combine is `unpermute`: ascending rank order, one rounding. A rank that is
 * alone has its rows where they belong; the transport only counts them.
 *
 * All of it is memory of the context's device. How many rows go to each rank must be known to the program, which has to
 * say it to the transport and to draw room for what comes: f8_ep_plan sends for the numbers, and f8_ep_count, which
 * waits for them, is called when other work has been given to the device.
 */
#include "moe/moe.h"

#include <string.h>

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

fp8flow_status f8_ep_open(fp8flow_moe *m)
{
    const f8_device *device = m->context->device;
    F8_TRY(f8_comm_for_device(m->comm, device, m->context->stream, &m->comm_device));
    F8_TRY(device->alloc_host((size_t)m->comm->size * sizeof *m->row_counts, (void **)&m->row_counts));
    return device->event_create(&m->rows_counted);
}

void f8_ep_close(fp8flow_moe *m)
{
    const f8_device *device = m->context->device;
    if (m->rows_counted) device->event_destroy(m->rows_counted);
    device->free_host(m->row_counts);
    f8_comm_release(m->comm_device);
}

/* ---- Plan ---- */

static fp8flow_status send_plan(fp8flow_moe *m, int32_t *destination)
{
    f8_moe_state *s = &m->state;
    const fp8flow_context *c = m->context;
    const fp8flow_router_config *router = &m->config.router;
    int64_t num_ranks = m->comm->size;
    F8_TRY(fp8flow_rank_destinations(m->context,
                                     &(fp8flow_rank_destinations_args){ s->tokens, router->top_k, router->num_experts,
                                                                        num_ranks, s->expert, destination }));
    F8_TRY(fp8flow_permute_plan(m->context, &(fp8flow_permute_plan_args){ destination, &s->send }));
    F8_TRY(c->device->copy_out(c->stream, m->row_counts, s->send.rows, (size_t)num_ranks * sizeof *m->row_counts));
    return c->device->event_record(m->rows_counted, c->stream);
}

fp8flow_status f8_ep_plan(fp8flow_moe *m, f8_arena *arena)
{
    f8_moe_state *s = &m->state;
    int64_t num_ranks = m->comm->size, top_k = m->config.router.top_k;
    int64_t capacity = s->tokens * (top_k < num_ranks ? top_k : num_ranks);
    if (f8_moe_is_alone(m)) return FP8FLOW_OK;
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
    F8_DO(m, send_plan(m, destination));
    f8_arena_rewind(m->workspace, mark);
    return FP8FLOW_OK;
}

static fp8flow_status exchange_counts(fp8flow_moe *m)
{
    f8_moe_state *s = &m->state;
    F8_TRY(m->context->device->event_wait(m->rows_counted));
    memcpy(s->send_rows, m->row_counts, (size_t)m->comm->size * sizeof *m->row_counts);
    F8_TRY(f8_comm_counts(m->comm, s->send_rows, s->recv_rows));
    s->sent = s->received = 0;
    for (int32_t r = 0; r < m->comm->size; r++) {
        s->sent += s->send_rows[r];
        s->received += s->recv_rows[r];
    }
    return FP8FLOW_OK;
}

/* How many rows go where and come from where, on the host; and the routing of those that go. */
static fp8flow_status count_records(fp8flow_moe *m)
{
    f8_moe_state *s = &m->state;
    int64_t top_k = m->config.router.top_k;
    s->sent = s->send.capacity;
    s->received = f8_moe_max_received(m);
    F8_DO(m, exchange_counts(m));
    s->send.capacity = s->sent; /* from now on it is known */
    F8_TRY(f8_arena_draw(m->workspace, "sent experts", s->sent * top_k, 4, &s->send_expert));
    F8_TRY(f8_arena_draw(m->workspace, "sent gates", s->sent * top_k, 4, &s->send_gate));
    fp8flow_rank_routing_args args = {
        &s->send, m->config.router.num_experts, top_k, s->expert, s->gate, s->send_expert, s->send_gate
    };
    F8_DO(m, fp8flow_rank_routing(m->context, &args));
    return FP8FLOW_OK;
}

fp8flow_status f8_ep_count(fp8flow_moe *m)
{
    f8_moe_state *s = &m->state;
    if (!f8_moe_is_alone(m)) return count_records(m);
    s->sent = s->received = s->tokens;
    s->send_rows[0] = s->recv_rows[0] = (int32_t)s->tokens;
    s->send_expert = s->expert;
    s->send_gate = s->gate;
    return FP8FLOW_OK;
}

/* ---- Dispatch and combine ---- */

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
    int64_t before = m->comm_device->exchanged_bytes;
    F8_DO(m, f8_comm_exchange_begin(m->comm_device, part, num_parts, s->send_rows, s->recv_rows));
    int64_t moved = m->comm_device->exchanged_bytes - before;
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
        s->before_sent = f8_arena_mark(m->workspace);
        return exchange_records(m, record, wire, received, bytes);
    }
    F8_TRY(draw_received(m, record, wire, arena, received));
    s->before_sent = f8_arena_mark(m->workspace);
    F8_TRY(f8_draw_tensor(m->workspace, "sent rows", format, s->sent, wire->cols, &sent));
    F8_DO(m, fp8flow_permute(m->context, &(fp8flow_permute_args){ .x = wire, .plan = &s->send, .rows = &sent }));
    return exchange_records(m, record, &sent, received, bytes);
}

fp8flow_status f8_ep_arrive(fp8flow_moe *m)
{
    F8_DO(m, f8_comm_exchange_end(m->comm_device));
    f8_arena_rewind(m->workspace, m->state.before_sent);
    return FP8FLOW_OK;
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
    int64_t top_k = m->config.router.top_k, before = m->comm_device->exchanged_bytes;
    f8_comm_part part[2] = { { from.rows->data, to.rows->data, from.rows->cols * 2 },
                             { from.gate, to.gate, top_k * 4 } };
    int num_parts = record == F8_ROWS_AND_ROUTING ? 2 : 1;
    F8_DO(m, f8_comm_exchange_back(m->comm_device, part, num_parts, s->recv_rows, s->send_rows));
    *bytes += m->comm_device->exchanged_bytes - before;
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
    fp8flow_rank_gates_args args = {
        &s->send, m->config.router.num_experts, m->config.router.top_k, s->expert, returned_gate, gate
    };
    if (with_gates) F8_DO(m, fp8flow_rank_gates(m->context, &args));
    f8_arena_rewind(m->workspace, mark);
    return FP8FLOW_OK;
}
