/* comm.h - bytes between the ranks of a job. No number formats, no arithmetic but sums of counters and gradients.
 *
 * A transport fills f8_comm_ops; callers use the f8_comm_* functions below, which check, count and forward.
 * Every function is collective: all ranks call it in the same order. When one rank has failed (abort), the
 * calls of the others return ECOMM with its rank and message instead of waiting for it.
 */
#ifndef F8_COMM_COMM_H
#define F8_COMM_COMM_H

#include "base/status.h"
#include "device/device.h"
#include "fp8flow.h"

/* One part of a record, of which each rank sends rows to each rank. A record (a token on the wire: codes,
 * scales, experts, gates) is a list of parts, each an array of its own on both sides: nothing is packed.
 * Rows for rank 0 come first, then those for rank 1, ...; received rows lie in the order of their senders. */
typedef struct {
    const void *send;
    void *recv;
    int64_t row_bytes;
} f8_comm_part;

typedef enum { F8_SUM_F32, F8_SUM_F64, F8_SUM_I64, F8_MAX_I64 } f8_reduction;

enum { F8_COMM_MAX_RANKS = 256 };

/* What a transport does; the contracts are those of the f8_comm_* functions below. */
typedef struct {
    const char *name;
    fp8flow_status (*exchange)(fp8flow_comm *comm, const f8_comm_part *part, int num_parts, const int32_t *send_rows,
                               const int32_t *recv_rows);
    /* Both or neither: what can go on while the rank's stream does other work. */
    fp8flow_status (*exchange_begin)(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                     const int32_t *send_rows, const int32_t *recv_rows);
    fp8flow_status (*exchange_end)(fp8flow_comm *comm);
    fp8flow_status (*all_reduce)(fp8flow_comm *comm, f8_reduction reduction, void *data, int64_t count);
    fp8flow_status (*reduce_scatter)(fp8flow_comm *comm, f8_reduction reduction, void *data, const int64_t *offset);
    fp8flow_status (*all_gather)(fp8flow_comm *comm, void *data, const int64_t *offset);
    fp8flow_status (*broadcast)(fp8flow_comm *comm, int32_t root, void *data, int64_t bytes);
    fp8flow_status (*split)(fp8flow_comm *comm, int32_t group, fp8flow_comm **part);
    void (*free)(fp8flow_comm *comm); /* of one that split has made */
    void (*abort)(fp8flow_comm *comm, const char *message);
    /* NULL: failures are seen in collectives only. Else check and abort are for any thread. */
    fp8flow_status (*check)(fp8flow_comm *comm);
} f8_comm_ops;

/* What this rank has spent on collectives of one kind since the start, where there are several ranks. */
typedef enum {
    F8_EXCHANGE, /* and of counts */
    F8_EXCHANGE_BACK,
    F8_ALL_REDUCE,
    F8_REDUCE_SCATTER,
    F8_ALL_GATHER,
    F8_BROADCAST,
    F8_NUM_COLLECTIVES
} f8_collective;

typedef struct {
    int64_t bytes;  /* of the arrays (exchange: of the rows sent), however often the transport moves them */
    double seconds; /* in the calls, waiting for the others included: by f8_comm_clock */
} f8_comm_spent;

/* How long collectives take. Those on a stream are done after the call: an event before and one behind each say it,
 * between f8_comm_clock_start and read. The events are kept for the next time. */
typedef struct {
    const f8_device *device; /* NULL: collectives are done when they return */
    void *stream, *aside;    /* aside: of exchanges between begin and end, where a transport has both */
    struct f8_comm_timed *call;
    int64_t num_calls, capacity;
    int is_running;
    double began; /* the call, by the program's clock */
} f8_comm_clock;

struct fp8flow_comm {
    const f8_comm_ops *ops;
    int32_t rank, size;
    f8_comm_spent spent[F8_NUM_COLLECTIVES];
    f8_comm_clock clock;
    int64_t exchanged_bytes;    /* sent by this rank in exchange, itself included */
    double timeout;             /* seconds that a collective waits for the other ranks; 0: as the transport has it */
    struct f8_comm_view *views; /* of it, for memory of devices: comm_device.c */
    struct f8_comm_view *view;  /* that it is itself */
};

/* Exchange records: send_rows[r] rows go to rank r, recv_rows[r] come from it (known beforehand: f8_comm_counts).
 * Alone, a part may be sent to where it is. */
fp8flow_status f8_comm_exchange(fp8flow_comm *comm, const f8_comm_part *part, int num_parts, const int32_t *send_rows,
                                const int32_t *recv_rows);

/* The same, entered as F8_EXCHANGE_BACK: records of an exchange return to where they came from. */
fp8flow_status f8_comm_exchange_back(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                     const int32_t *send_rows, const int32_t *recv_rows);

/* f8_comm_exchange in two halves. What the parts point to is neither read nor written, and nothing else of `comm` is
 * called, between them; other work put on the rank's stream there is done meanwhile where the transport can do that. */
fp8flow_status f8_comm_exchange_begin(fp8flow_comm *comm, const f8_comm_part *part, int num_parts,
                                      const int32_t *send_rows, const int32_t *recv_rows);
fp8flow_status f8_comm_exchange_end(fp8flow_comm *comm);

/* recv_rows[r] = what rank r has in send_rows[this rank]. */
fp8flow_status f8_comm_counts(fp8flow_comm *comm, const int32_t *send_rows, int32_t *recv_rows);

/* In place, the same result on every rank: sums in ascending rank order (NCCL: in an order of its own, comm_nccl.c).
 * Alone it does not look at the data. */
fp8flow_status f8_comm_all_reduce(fp8flow_comm *comm, f8_reduction reduction, void *data, int64_t count);

/* The two halves of it. offset [size + 1], ascending from 0, the same on every rank: slice r is from offset[r] to
 * offset[r + 1]. reduce_scatter: offsets are elements; this rank's slice becomes the sum over the ranks, the other
 * slices are undefined. all_gather: offsets are bytes; every rank gets the others' slices from their data. */
fp8flow_status f8_comm_reduce_scatter(fp8flow_comm *comm, f8_reduction reduction, void *data, const int64_t *offset);
fp8flow_status f8_comm_all_gather(fp8flow_comm *comm, void *data, const int64_t *offset);

fp8flow_status f8_comm_broadcast(fp8flow_comm *comm, int32_t root, void *data, int64_t bytes);

/* *part = the ranks that gave the same `group` (>= 0), in ascending order of their ranks here. When a rank fails, the
 * collectives of all groups end. Freed before `comm` ends; on an error there is nothing to free. */
fp8flow_status f8_comm_split(fp8flow_comm *comm, int32_t group, fp8flow_comm **part);
void f8_comm_free(fp8flow_comm *part); /* NULL allowed */

/* ECOMM with its message once a rank has failed. Neither collective nor waiting, and for any thread: what came over a
 * transport that does not wait (comm_nccl.h) is good if this succeeds after the device's work is done. */
fp8flow_status f8_comm_check(fp8flow_comm *comm);

/* ---- Memory of a device ----
 *
 * A communicator moves memory of the program. For arrays in memory of a device one asks for a view of it: the same
 * ranks, collectives in the order of `stream`. On the host that is `host` itself; else NCCL where it can be used
 * (comm_nccl.h), else a way through host memory. FP8FLOW_TRANSPORT in the environment, the same for every rank, insists
 * on one: "nccl" or "staged". The same view for the same device and stream as long as it has users: release for each
 * for_device, before `host` ends. Collective over `host`. */
fp8flow_status f8_comm_for_device(fp8flow_comm *host, const f8_device *device, void *stream, fp8flow_comm **comm);
void f8_comm_release(fp8flow_comm *comm); /* NULL allowed */

/* Seconds of a view are entered for the calls between start and read, by read: nothing waits if the stream has been
 * waited for. Without start calls are not timed. Where the program's clock sees every call both do nothing. */
void f8_comm_clock_start(fp8flow_comm *comm);
fp8flow_status f8_comm_clock_read(fp8flow_comm *comm);

/* A view through host memory (comm_staged.c), for any device; freed with f8_comm_free. Each collective waits for the
 * stream. */
fp8flow_status f8_comm_staged_create(fp8flow_comm *host, const f8_device *device, void *stream, fp8flow_comm **comm);

/* For transports. Where the rows for or from `rank` begin in an exchange; how many go to this rank itself and come from
 * it has been compared when a transport is called. */
int64_t f8_comm_rows_before(const int32_t *rows, int32_t rank);

/* For transports. result[i] = reduction over source[r][i], r ascending from zero (or the smallest number); a result may
 * be one of the sources. */
void f8_comm_reduce(f8_reduction reduction, const void *const *source, int32_t num_sources, int64_t count,
                    void *result);

/* Bytes of an element. */
int64_t f8_comm_element_bytes(f8_reduction reduction);

/* Slices of `count` elements that are as long for every rank, but for one element: [size + 1] each, in elements and
 * in bytes. */
void f8_comm_even_slices(const fp8flow_comm *comm, f8_reduction reduction, int64_t count, int64_t *element,
                         int64_t *byte);

#endif
