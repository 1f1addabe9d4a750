/* mirror.c - see mirror.h and mirror_call.h; mirror_ops.c describes the operators.
 *
 * The ranges of a call are laid out in an image with guard bands between them. The image goes to the device in one copy
 * and comes back in one copy; where no output lies it must not have changed. Threads take turns: there is one context
 * and one image.
 */
#include "mirror_call.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ops/block.h"

enum { GUARD_BYTES = 256, GUARD = 0xA5, ALIGNMENT = 256, KEPT_ALIGNMENT = 16, FIRST_CAPACITY = 64 << 20 };

/* ---- The device and the images ---- */

static struct {
    test_device kind;
    int exact; /* an allocation per range */
    int every; /* the device gets each n-th call of an operator */
    fp8flow_context *context;
    pthread_mutex_t mutex;
    char *arena;          /* on the device */
    char *before, *after; /* on the host: what was sent, what came back */
    int64_t capacity;     /* of each */
} device = { .mutex = PTHREAD_MUTEX_INITIALIZER };

test_device tested_device(void)
{
    return device.kind;
}

int mirror_every(void)
{
    return device.every;
}

fp8flow_context *mirror_context(void)
{
    return device.context;
}

/* Pages of zeros from the system, not from malloc: a test may stand between the library and the allocator. */
static char *map_pages(int64_t bytes)
{
    void *pages = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static void release(void)
{
    fp8flow_memory_free(device.context, device.arena);
    if (device.before) munmap(device.before, (size_t)device.capacity);
    if (device.after) munmap(device.after, (size_t)device.capacity);
    device.arena = device.before = device.after = NULL;
    device.capacity = 0;
}

static fp8flow_status reserve(int64_t bytes)
{
    if (bytes <= device.capacity) return FP8FLOW_OK;
    int64_t capacity = f8_max(2 * device.capacity, FIRST_CAPACITY);
    while (capacity < bytes) capacity *= 2;
    release();
    device.capacity = capacity;
    device.before = map_pages(capacity);
    device.after = map_pages(capacity);
    fp8flow_status status = FP8FLOW_OK;
    if (!device.before || !device.after)
        status = F8_FAIL(ENOMEM, "mirror: no memory for %lld bytes", (long long)capacity);
    if (status == FP8FLOW_OK && !device.exact)
        status = fp8flow_memory_alloc(device.context, (size_t)capacity, (void **)&device.arena);
    if (status != FP8FLOW_OK) release();
    return status;
}

fp8flow_status mirror_open(const char *name)
{
    int cuda = strcmp(name, "cuda") == 0;
    const char *memory = getenv("FP8FLOW_TEST_MEMORY"), *every = getenv("FP8FLOW_TEST_EVERY");
    F8_REQUIRE(cuda || strcmp(name, "mirror") == 0, EINVAL, "expected \"cuda\" or \"mirror\"");
    /* One thread: there are tests that count them. */
    fp8flow_context_options options = { .backend = cuda ? FP8FLOW_CUDA : FP8FLOW_CPU, .num_threads = 1 };
    F8_TRY(fp8flow_context_create(&options, &device.context));
    device.exact = memory && strcmp(memory, "exact") == 0;
    device.every = every && atoi(every) > 0 ? atoi(every) : 1;
    device.kind = cuda ? TEST_ON_CUDA : TEST_ON_MIRROR;
    return FP8FLOW_OK;
}

/* Before main: a program that cannot do what it was asked for must not look as if it had. */
__attribute__((constructor)) static void open_asked_device(void)
{
    const char *name = getenv("FP8FLOW_TEST_DEVICE");
    if (!name || !*name || mirror_open(name) == FP8FLOW_OK) return;
    fprintf(stderr, "FP8FLOW_TEST_DEVICE is \"%s\": %s\n", name, fp8flow_last_error());
    exit(1);
}

fp8flow_status test_context_create(const fp8flow_context_options *options, fp8flow_context **context)
{
    F8_TRY(fp8flow_context_create(options, context));
    if (device.kind != TEST_ON_HOST && options->backend == FP8FLOW_CPU) (*context)->ops = &mirror_ops;
    return FP8FLOW_OK;
}

/* ---- Describing a call ---- */

static void *pointer_in(const void *field)
{
    void *pointer;
    memcpy(&pointer, field, sizeof pointer);
    return pointer;
}

static void give_up(const mirror *m, const char *why)
{
    fprintf(stderr, "mirror: %s: %s\n", m->name, why);
    abort();
}

void mirror_add_array(mirror *m, const char *name, void *field, int64_t bytes, mirror_direction direction)
{
    char *host = pointer_in(field);
    if (!host) return;
    if (bytes < 0) give_up(m, "a shape that has no size");
    if (m->num_arrays == MIRROR_MAX_ARRAYS) give_up(m, "too many arrays");
    m->arrays[m->num_arrays++] = (mirror_array){ name, "", field, host, bytes, direction, 0 };
}

/* The data end with the last element, not with the last line's stride: a view may lie at the end of a matrix. */
fp8flow_tensor *mirror_add_tensor(mirror *m, const char *name, const fp8flow_tensor *t, const fp8flow_groups *groups,
                                  mirror_direction direction)
{
    if (!t) return NULL;
    if (m->num_tensors == MIRROR_MAX_TENSORS) give_up(m, "too many tensors");
    fp8flow_tensor *copy = &m->tensors[m->num_tensors++];
    *copy = *t;
    int64_t line = t->layout == FP8FLOW_ROWS ? t->cols : t->group_rows ? t->group_rows : t->rows;
    int64_t gap = (t->stride - line) * (int64_t)f8_dtype_bytes(t->dtype);
    int64_t bytes = t->rows && t->cols ? fp8flow_tensor_data_bytes(t) - gap : 0;
    mirror_add_array(m, name, &copy->data, bytes, direction);
    if (t->scaling == FP8FLOW_UNSCALED) return copy;
    mirror_add_array(m, name, &copy->scale, fp8flow_tensor_scale_bytes(t, f8_num_groups(t, groups)), direction);
    if (copy->scale) m->arrays[m->num_arrays - 1].part = " (scales)";
    return copy;
}

/* ---- A call ---- */

static int by_address(const void *left, const void *right)
{
    const mirror_array *a = left, *b = right;
    if (a->host != b->host) return (uintptr_t)a->host < (uintptr_t)b->host ? -1 : 1;
    return (a->bytes < b->bytes) - (a->bytes > b->bytes);
}

/* Arrays that share a byte share a range. Ranges keep the alignment that they have on the host, up to 16 bytes. */
static void lay_out(mirror *m)
{
    qsort(m->arrays, (size_t)m->num_arrays, sizeof *m->arrays, by_address);
    for (int i = 0; i < m->num_arrays; i++) {
        mirror_array *a = &m->arrays[i];
        mirror_range *last = m->num_ranges ? &m->ranges[m->num_ranges - 1] : NULL;
        if (!last || a->host >= last->host + last->bytes)
            m->ranges[m->num_ranges++] = (mirror_range){ .host = a->host, .bytes = a->bytes };
        else last->bytes = f8_max(last->bytes, a->host + a->bytes - last->host);
        a->range = m->num_ranges - 1;
    }
    int64_t at = GUARD_BYTES;
    for (int i = 0; i < m->num_ranges; i++) {
        mirror_range *r = &m->ranges[i];
        r->at = f8_ceil_div(at, ALIGNMENT) * ALIGNMENT + (int64_t)((uintptr_t)r->host % KEPT_ALIGNMENT);
        at = r->at + r->bytes + GUARD_BYTES;
    }
    m->used = at;
}

static void draw_image(const mirror *m)
{
    int64_t at = 0;
    for (int i = 0; i < m->num_ranges; i++) {
        const mirror_range *r = &m->ranges[i];
        memset(device.before + at, GUARD, (size_t)(r->at - at));
        memcpy(device.before + r->at, r->host, (size_t)r->bytes);
        at = r->at + r->bytes;
    }
    memset(device.before + at, GUARD, (size_t)(m->used - at));
}

static fp8flow_status send(mirror *m)
{
    fp8flow_context *c = device.context;
    for (int i = 0; i < m->num_ranges; i++) {
        mirror_range *r = &m->ranges[i];
        r->device = device.arena + r->at;
        if (!device.exact) continue;
        int64_t misalignment = r->at % KEPT_ALIGNMENT;
        F8_TRY(fp8flow_memory_alloc(c, (size_t)(misalignment + r->bytes), (void **)&r->allocated));
        r->device = r->allocated + misalignment;
        F8_TRY(fp8flow_memory_copy(c, r->device, device.before + r->at, (size_t)r->bytes));
    }
    if (device.exact) return FP8FLOW_OK;
    return fp8flow_memory_copy(c, device.arena, device.before, (size_t)m->used);
}

static fp8flow_status fetch(const mirror *m)
{
    fp8flow_context *c = device.context;
    F8_TRY(fp8flow_synchronize(c));
    if (!device.exact) return fp8flow_memory_copy(c, device.after, device.arena, (size_t)m->used);
    memcpy(device.after, device.before, (size_t)m->used);
    for (int i = 0; i < m->num_ranges; i++)
        F8_TRY(fp8flow_memory_copy(c, device.after + m->ranges[i].at, m->ranges[i].device, (size_t)m->ranges[i].bytes));
    return FP8FLOW_OK;
}

/* Where in the image an array begins. */
static int64_t start_of(const mirror *m, const mirror_array *a)
{
    const mirror_range *r = &m->ranges[a->range];
    return r->at + (a->host - r->host);
}

static int64_t distance(const mirror *m, const mirror_array *a, int64_t at)
{
    int64_t start = start_of(m, a);
    return at < start ? start - at : f8_max(0, at - (start + a->bytes - 1));
}

/* The image changed at `at`, where no output lies: in an input, or beside the nearest array. */
static fp8flow_status blame(const mirror *m, int64_t at)
{
    const mirror_array *nearest = &m->arrays[0];
    for (int i = 1; i < m->num_arrays; i++)
        if (distance(m, &m->arrays[i], at) < distance(m, nearest, at)) nearest = &m->arrays[i];
    fp8flow_status status = F8_FAIL(EBACKEND, "mirror: %s: wrote byte %lld of %s%s, an %s of %lld bytes", m->name,
                                    (long long)(at - start_of(m, nearest)), nearest->name, nearest->part,
                                    nearest->direction == MIRROR_IN ? "input" : "output", (long long)nearest->bytes);
    /* Also where a test expects an error, or looks at no status. */
    fprintf(stderr, "%s\n", fp8flow_last_error());
    return status;
}

/* Outputs go to the host, unless this is a sample; everything else must be as it was sent. */
static fp8flow_status take_over(const mirror *m)
{
    for (int i = 0; i < m->num_arrays; i++) {
        const mirror_array *a = &m->arrays[i];
        if (a->direction == MIRROR_IN) continue;
        if (device.every == 1) memcpy(a->host, device.after + start_of(m, a), (size_t)a->bytes);
        memcpy(device.before + start_of(m, a), device.after + start_of(m, a), (size_t)a->bytes);
    }
    if (memcmp(device.before, device.after, (size_t)m->used) == 0) return FP8FLOW_OK;
    int64_t at = 0;
    while (device.before[at] == device.after[at]) at++;
    return blame(m, at);
}

fp8flow_status mirror_begin(mirror *m)
{
    lay_out(m);
    pthread_mutex_lock(&device.mutex);
    F8_TRY(reserve(m->used));
    draw_image(m);
    F8_TRY(send(m));
    for (int i = 0; i < m->num_arrays; i++) {
        const mirror_array *a = &m->arrays[i];
        char *pointer = m->ranges[a->range].device + (a->host - m->ranges[a->range].host);
        memcpy(a->field, &pointer, sizeof pointer);
    }
    return FP8FLOW_OK;
}

fp8flow_status mirror_end(mirror *m, fp8flow_status status)
{
    fp8flow_status left = FP8FLOW_OK;
    if (status == FP8FLOW_OK) left = fetch(m);
    if (status == FP8FLOW_OK && left == FP8FLOW_OK) left = take_over(m);
    for (int i = 0; i < m->num_ranges; i++) fp8flow_memory_free(device.context, m->ranges[i].allocated);
    pthread_mutex_unlock(&device.mutex);
    return status == FP8FLOW_OK ? left : status;
}
