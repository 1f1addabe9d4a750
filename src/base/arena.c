/* arena.c - see arena.h. */
#include "base/arena.h"

#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(address, bytes)   ASAN_POISON_MEMORY_REGION(address, bytes)
#define UNPOISON(address, bytes) ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#else
#define POISON(address, bytes)   ((void)0)
#define UNPOISON(address, bytes) ((void)0)
#endif

enum { ALIGNMENT = 128, RED_ZONE = 64 };

void f8_arena_init(f8_arena *arena, void *base, size_t capacity)
{
    memset(arena, 0, sizeof *arena);
    arena->base = base;
    arena->capacity = base ? capacity : SIZE_MAX;
}

static size_t round_up(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

fp8flow_status f8_arena_draw(f8_arena *arena, const char *name, int64_t count, size_t size, void *memory)
{
    size_t bytes;
    F8_REQUIRE(count >= 0 && !__builtin_mul_overflow((size_t)count, size, &bytes) && bytes < SIZE_MAX / 4, ENOMEM,
               "memory: %s: %lld elements of %zu bytes is not a possible size", name, (long long)count, size);
    F8_REQUIRE(arena->num_parts < F8_ARENA_MAX_PARTS, ENOMEM, "memory: more than %d parts at %s", F8_ARENA_MAX_PARTS,
               name);
    size_t need = round_up(bytes + RED_ZONE);
    F8_REQUIRE(need <= arena->capacity - arena->used, ENOMEM, "memory: %s needs %zu bytes, %zu of %zu are in use", name,
               bytes, arena->used, arena->capacity);
    char *start = arena->base ? arena->base + arena->used : NULL;
    if (start) {
        UNPOISON(start, bytes);
        POISON(start + bytes, need - bytes);
    }
    arena->part[arena->num_parts++] = (f8_arena_part){ name, arena->used, bytes };
    arena->used += need;
    if (arena->used > arena->peak) arena->peak = arena->used;
    memcpy(memory, &start, sizeof start);
    return FP8FLOW_OK;
}

f8_arena_position f8_arena_mark(const f8_arena *arena)
{
    return (f8_arena_position){ arena->used, arena->num_parts };
}

void f8_arena_rewind(f8_arena *arena, f8_arena_position mark)
{
    if (arena->base) UNPOISON(arena->base + mark.used, arena->used - mark.used);
    arena->used = mark.used;
    arena->num_parts = mark.num_parts;
}

void f8_arena_reset(f8_arena *arena)
{
    f8_arena_rewind(arena, (f8_arena_position){ 0, 0 });
}

int64_t f8_arena_bytes(const f8_arena *arena)
{
    size_t sum = 0;
    for (int i = 0; i < arena->num_parts; i++) sum += arena->part[i].bytes;
    return (int64_t)sum;
}
