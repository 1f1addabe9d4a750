/* ops.c - context: which backend, scratch memory, call counts. */
#include "ops/ops.h"

#include <stdlib.h>
#include <string.h>

#if defined(_OPENMP)
#include <omp.h>
#else
static int omp_get_max_threads(void)
{
    return 1;
}
static int omp_get_thread_num(void)
{
    return 0;
}
#endif

/* The backend's table and device, scratch memory, a stream. What was drawn stays in c for destroy. */
static fp8flow_status open_context(const fp8flow_context_options *options, fp8flow_context *c)
{
    size_t scratch_bytes = F8_CUDA_SCRATCH_BYTES;
    c->num_threads = options->num_threads ? options->num_threads : omp_get_max_threads();
    if (options->backend == FP8FLOW_CUDA) {
        F8_TRY(f8_device_cuda(options->device, &c->device));
        c->ops = f8_ops_cuda();
    } else {
        c->device = f8_device_cpu();
        c->ops = options->backend == FP8FLOW_CPU ? f8_ops_cpu() : &f8_ops_reference;
        scratch_bytes = (size_t)c->num_threads * F8_SCRATCH_BYTES;
    }
    F8_TRY(c->device->alloc(scratch_bytes, (void **)&c->scratch));
    c->stream = options->stream;
    if (c->stream) return FP8FLOW_OK;
    F8_TRY(c->device->stream_create(&c->stream));
    c->owns_stream = 1;
    return FP8FLOW_OK;
}

fp8flow_status fp8flow_context_create(const fp8flow_context_options *options, fp8flow_context **context)
{
    F8_REQUIRE(options && context, EINVAL, "context_create: NULL argument");
    F8_REQUIRE((unsigned)options->backend <= FP8FLOW_CUDA, EINVAL, "context_create: unknown backend %d",
               (int)options->backend);
    F8_REQUIRE(options->num_threads >= 0 && options->num_threads <= 4096, EINVAL,
               "context_create: %d threads, expected 0 to 4096", options->num_threads);
    F8_REQUIRE(options->backend == FP8FLOW_CUDA || !options->stream, EINVAL,
               "context_create: a stream is given, the backend is not CUDA");
    fp8flow_context *c = calloc(1, sizeof *c);
    F8_REQUIRE(c, ENOMEM, "context_create: no memory for %zu bytes", sizeof *c);
    fp8flow_status status = open_context(options, c);
    if (status != FP8FLOW_OK) {
        fp8flow_context_destroy(c);
        return f8_fail_in(status, "context_create");
    }
    *context = c;
    return FP8FLOW_OK;
}

void fp8flow_context_destroy(fp8flow_context *c)
{
    if (!c) return;
    if (c->owns_stream) c->device->stream_destroy(c->stream);
    if (c->device) {
        c->device->free(c->workspace.base);
        c->device->free(c->scratch);
    }
    free(c);
}

fp8flow_status f8_context_check_groups(const fp8flow_context *c, const char *op, const fp8flow_groups *groups,
                                       int64_t capacity, int64_t align)
{
    if (f8_on_host(c)) return f8_groups_check(op, groups, capacity, align);
    return f8_groups_check_arrays(op, groups, capacity);
}

fp8flow_status f8_context_reserve(fp8flow_context *c, size_t bytes)
{
    if (c->workspace.base && c->workspace.capacity >= bytes) return FP8FLOW_OK;
    F8_REQUIRE(c->workspace.used == 0, EINVAL, "context: the workspace cannot grow while %zu bytes are in use",
               c->workspace.used);
    void *memory;
    F8_TRY(c->device->alloc(bytes, &memory));
    c->device->free(c->workspace.base);
    f8_arena_init(&c->workspace, memory, bytes);
    return FP8FLOW_OK;
}

int64_t fp8flow_context_calls(const fp8flow_context *c, const char *op)
{
    static const char *const names[] = {
#define F8_X(name) #name,
        F8_OPS(F8_X)
#undef F8_X
    };
    for (int i = 0; c && op && i < F8_NUM_OPS; i++)
        if (strcmp(names[i], op) == 0) return c->calls[i];
    return -1;
}

void *f8_scratch(fp8flow_context *c)
{
    return c->scratch + (size_t)omp_get_thread_num() * F8_SCRATCH_BYTES;
}

int f8_threads_for(const fp8flow_context *c, int64_t work)
{
    enum { WORK_PER_THREAD = 16384 };
    int64_t useful = work / WORK_PER_THREAD;
    return useful < 1 ? 1 : useful < c->num_threads ? (int)useful : c->num_threads;
}
