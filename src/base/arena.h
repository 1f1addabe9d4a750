/* arena.h - one block of memory, handed out in named parts, given back all at once.
 *
 *   base                                          base + capacity
 *   | part 0 |red| part 1 |red| ... | part n-1 |red|   free    |
 *                                              ^ used
 *
 * A layer or trainer owns one arena per lifetime (weights, saved activations, scratch). Parts start at
 * multiples of 128 bytes; 64-byte red zones between them are poisoned under AddressSanitizer. With
 * base == NULL the arena only measures: the same drawing code then computes the capacity to ask for.
 * Named parts are the memory report that users see.
 */
#ifndef F8_BASE_ARENA_H
#define F8_BASE_ARENA_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { F8_ARENA_MAX_PARTS = 160 };

typedef struct {
    const char *name; /* static string */
    size_t offset, bytes;
} f8_arena_part;

typedef struct {
    char *base;
    size_t capacity, used, peak;
    int num_parts;
    f8_arena_part part[F8_ARENA_MAX_PARTS];
} f8_arena;

/* base NULL: measure only. The memory is borrowed. */
void f8_arena_init(f8_arena *arena, void *base, size_t capacity);

/* Draw `count` elements of `size` bytes; *memory is NULL when measuring. ENOMEM names the part and the bytes;
 * count * size is checked for overflow. A count of 0 gives a valid pointer. */
fp8flow_status f8_arena_draw(f8_arena *arena, const char *name, int64_t count, size_t size, void *memory);

/* Give everything drawn after the mark back. mark = f8_arena_mark(a); ...; f8_arena_rewind(a, mark). */
typedef struct {
    size_t used;
    int num_parts;
} f8_arena_position;
f8_arena_position f8_arena_mark(const f8_arena *arena);
void f8_arena_rewind(f8_arena *arena, f8_arena_position mark);
void f8_arena_reset(f8_arena *arena);

/* Sum of the parts, without padding. */
int64_t f8_arena_bytes(const f8_arena *arena);

#ifdef __cplusplus
}
#endif

#endif
