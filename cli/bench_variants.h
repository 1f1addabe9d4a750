/* bench_variants.h - recipes and checkpointing modes that `bench layer` and `bench train` go through. */
#ifndef CLI_BENCH_VARIANTS_H
#define CLI_BENCH_VARIANTS_H

#include "cli.h"

enum { VARIANTS_NUM_MODES = 3 };

/* Names in the order of fp8flow_checkpointing. */
extern const char *const variants_mode_names[VARIANTS_NUM_MODES];

typedef struct {
    const char *recipes[CLI_LIST_MAX]; /* bf16 and blockwise first: what the others are compared with */
    int64_t num_recipes;
    int32_t has_mode[VARIANTS_NUM_MODES];
} bench_variants;

/* The named recipes, or all and `further` (ends with NULL); the named modes, or the usual ones. CLI_DONE, or an exit
 * code with the error printed. */
int variants_choose_recipes(bench_variants *v, const cli_command *command, const cli_list *recipes,
                            const char *const *further);
int variants_choose_modes(bench_variants *v, const cli_command *command, const cli_list *modes,
                          const int32_t usual[VARIANTS_NUM_MODES]);

/* Position of `name`, or -1. */
int64_t variants_find(const char *const *names, int64_t count, const char *name);

#endif
