/* test_comm_api.c - collectives over arrays of a context (public headers only).
 *
 * Bodies run on threads, where cmocka's assertions must not be used: they return a status, and CHECK makes one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "fp8flow.h"

#define CHECK(condition)                                            \
    do {                                                            \
        if (!(condition)) {                                         \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
            return FP8FLOW_EFORMAT;                                 \
        }                                                           \
    } while (0)

enum { NUM_RANKS = 3, ROW_BYTES = 5, SLICE = 7 };

/* Rank s sends (s + r) % 3 rows of bytes 10 s + r to rank r. */
static fp8flow_status check_exchange(fp8flow_comm *comm, int32_t rank)
{
    unsigned char send[64], recv[64], *to = send;
    int32_t send_rows[NUM_RANKS], recv_rows[NUM_RANKS];
    for (int32_t r = 0; r < NUM_RANKS; r++) {
        send_rows[r] = recv_rows[r] = (rank + r) % 3;
        memset(to, 10 * rank + r, (size_t)(send_rows[r] * ROW_BYTES));
        to += send_rows[r] * ROW_BYTES;
    }
    CHECK(fp8flow_comm_exchange(comm, ROW_BYTES, send, send_rows, recv, recv_rows) == FP8FLOW_OK);
    const unsigned char *from = recv;
    for (int32_t s = 0; s < NUM_RANKS; s++)
        for (int32_t k = 0; k < recv_rows[s] * ROW_BYTES; k++) CHECK(*from++ == 10 * s + rank);
    return FP8FLOW_OK;
}

static fp8flow_status check_sums(fp8flow_comm *comm, int32_t rank)
{
    const int64_t offset[] = { 0, SLICE, SLICE, 2 * SLICE }; /* rank 1 has none */
    float whole[2 * SLICE], sliced[2 * SLICE];
    for (int i = 0; i < 2 * SLICE; i++) whole[i] = sliced[i] = (float)(i * 10 + rank);
    CHECK(fp8flow_comm_sum(comm, whole, 2 * SLICE) == FP8FLOW_OK);
    CHECK(fp8flow_comm_sum_slices(comm, sliced, offset) == FP8FLOW_OK);
    for (int64_t i = 0; i < 2 * SLICE; i++)
        if (i < offset[rank] || i >= offset[rank + 1]) sliced[i] = -1;
    CHECK(fp8flow_comm_gather_slices(comm, sliced, offset) == FP8FLOW_OK);
    for (int i = 0; i < 2 * SLICE; i++) CHECK(whole[i] == (float)(30 * i + 3) && sliced[i] == whole[i]);
    return FP8FLOW_OK;
}

static fp8flow_status check_arguments(fp8flow_comm *comm, fp8flow_context *context)
{
    const int32_t none[NUM_RANKS] = { 0 };
    const int64_t late[NUM_RANKS + 1] = { 1, 1, 1, 1 };
    fp8flow_comm *opened;
    float value = 0;
    CHECK(fp8flow_comm_open(NULL, context, &opened) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_open(comm, NULL, &opened) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_open(comm, context, NULL) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_exchange(NULL, 1, &value, none, &value, none) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_exchange(comm, 1, &value, NULL, &value, none) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_exchange(comm, 1, &value, none, &value, NULL) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_exchange(comm, -1, &value, none, &value, none) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_sum(NULL, &value, 1) == FP8FLOW_EINVAL && fp8flow_comm_sum(comm, NULL, 1) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_sum(comm, &value, -1) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_sum_slices(comm, &value, NULL) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_sum_slices(comm, &value, late) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_gather_slices(comm, NULL, late) == FP8FLOW_EINVAL);
    CHECK(fp8flow_comm_gather_slices(comm, &value, late) == FP8FLOW_EINVAL);
    CHECK(strcmp(fp8flow_comm_transport(NULL), "") == 0);
    fp8flow_comm_close(NULL);
    return FP8FLOW_OK;
}

static fp8flow_status body(fp8flow_comm *host, void *user)
{
    (void)user;
    fp8flow_context_options options = { .backend = FP8FLOW_CPU, .num_threads = 1 };
    fp8flow_context *context = NULL;
    fp8flow_comm *comm = NULL;
    fp8flow_status status = fp8flow_context_create(&options, &context);
    if (status == FP8FLOW_OK) status = fp8flow_comm_open(host, context, &comm);
    if (status == FP8FLOW_OK) status = check_exchange(comm, fp8flow_comm_rank(host));
    if (status == FP8FLOW_OK) status = check_sums(comm, fp8flow_comm_rank(host));
    if (status == FP8FLOW_OK) status = check_arguments(comm, context);
    if (status == FP8FLOW_OK && strcmp(fp8flow_comm_transport(comm), "threads") != 0) status = FP8FLOW_EFORMAT;
    fp8flow_comm_close(comm);
    fp8flow_context_destroy(context);
    return status;
}

static void test_collectives_over_arrays_of_a_context(void **state)
{
    (void)state;
    assert_int_equal(fp8flow_run_ranks(NUM_RANKS, body, NULL), FP8FLOW_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collectives_over_arrays_of_a_context),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
