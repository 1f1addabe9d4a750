/* comm_device.c - which transport moves a device's memory, and the views that exist of a communicator. */
#include "comm/comm.h"

#include <stdlib.h>
#include <string.h>

#include "comm/comm_nccl.h"

struct f8_comm_view {
    fp8flow_comm *comm, *host;
    const f8_device *device;
    void *stream;
    int users;
    struct f8_comm_view *next;
};

typedef struct f8_comm_view view;

/* Also of ranks on the CPU, which need none: a misspelt name is found wherever it is. */
static fp8flow_status find_wanted(const char **wanted)
{
    const char *named = getenv("FP8FLOW_TRANSPORT");
    *wanted = named && *named ? named : "auto";
    F8_REQUIRE(strcmp(*wanted, "auto") == 0 || strcmp(*wanted, "nccl") == 0 || strcmp(*wanted, "staged") == 0, EINVAL,
               "FP8FLOW_TRANSPORT is \"%.40s\", expected auto, nccl or staged", *wanted);
    return FP8FLOW_OK;
}

/* A rank that is alone needs no NCCL, unless somebody insists on it. */
static fp8flow_status create(fp8flow_comm *host, const char *wanted, const f8_device *device, void *stream,
                             fp8flow_comm **comm)
{
    int insists = strcmp(wanted, "nccl") == 0, is_free = strcmp(wanted, "auto") == 0;
    if (insists || (is_free && host->size > 1)) {
        fp8flow_status status = f8_comm_nccl_usable(host, device);
        if (status == FP8FLOW_OK) return f8_comm_nccl_create(host, device, stream, comm);
        if (insists || status != FP8FLOW_ENOSYS) return status;
    }
    return f8_comm_staged_create(host, device, stream, comm);
}

fp8flow_status f8_comm_for_device(fp8flow_comm *host, const f8_device *device, void *stream, fp8flow_comm **comm)
{
    const char *wanted;
    *comm = NULL;
    F8_TRY(find_wanted(&wanted));
    if (device->is_host) {
        *comm = host;
        return FP8FLOW_OK;
    }
    view *v = host->views;
    while (v && (v->device != device || v->stream != stream)) v = v->next;
    if (!v) {
        fp8flow_comm *made;
        F8_TRY(create(host, wanted, device, stream, &made));
        v = calloc(1, sizeof *v);
        if (!v) {
            f8_comm_free(made);
            return F8_FAIL(ENOMEM, "comm: no memory for a view of rank %d", host->rank);
        }
        *v = (view){ .comm = made, .host = host, .device = device, .stream = stream, .next = host->views };
        made->view = host->views = v;
    }
    v->users++;
    *comm = v->comm;
    return FP8FLOW_OK;
}

void f8_comm_release(fp8flow_comm *comm)
{
    view *v = comm ? comm->view : NULL;
    if (!v || --v->users > 0) return;
    view **link = &v->host->views;
    while (*link != v) link = &(*link)->next;
    *link = v->next;
    f8_comm_free(v->comm);
    free(v);
}
