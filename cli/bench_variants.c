/* bench_variants.c - see bench_variants.h. */
#include "bench_variants.h"

#include <string.h>

const char *const variants_mode_names[VARIANTS_NUM_MODES] = { "none", "moe_expert", "full" };

int64_t variants_find(const char *const *names, int64_t count, const char *name)
{
    for (int64_t i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0) return i;
    return -1;
}

static void add_recipe(bench_variants *v, const char *name)
{
    int64_t place = v->num_recipes;
    if (place == CLI_LIST_MAX || variants_find(v->recipes, place, name) >= 0) return;
    if (strcmp(name, "bf16") == 0) place = 0;
    else if (strcmp(name, "blockwise") == 0) place = variants_find(v->recipes, place, "bf16") + 1;
    memmove(&v->recipes[place + 1], &v->recipes[place], (size_t)(v->num_recipes - place) * sizeof *v->recipes);
    v->recipes[place] = name;
    v->num_recipes++;
}

int variants_choose_recipes(bench_variants *v, const cli_command *command, const cli_list *recipes,
                            const char *const *further)
{
    for (int64_t i = 0; i < recipes->count; i++) {
        fp8flow_status status = fp8flow_recipe_check(recipes->items[i]);
        if (status != FP8FLOW_OK) return cli_fail_status(command, status);
        add_recipe(v, recipes->items[i]);
    }
    if (recipes->count > 0) return CLI_DONE;
    for (int64_t i = 0; fp8flow_recipe_name(i); i++) add_recipe(v, fp8flow_recipe_name(i));
    for (int64_t i = 0; further[i]; i++) add_recipe(v, further[i]);
    return CLI_DONE;
}

int variants_choose_modes(bench_variants *v, const cli_command *command, const cli_list *modes,
                          const int32_t usual[VARIANTS_NUM_MODES])
{
    char quoted[CLI_QUOTE_BYTES];
    for (int mode = 0; mode < VARIANTS_NUM_MODES; mode++) v->has_mode[mode] = modes->count == 0 && usual[mode];
    for (int64_t i = 0; i < modes->count; i++) {
        int64_t mode = variants_find(variants_mode_names, VARIANTS_NUM_MODES, modes->items[i]);
        if (mode < 0)
            return cli_fail_usage(command, "--checkpointing: %s is not one of none|moe_expert|full",
                                  cli_quote(quoted, modes->items[i]));
        v->has_mode[mode] = 1;
    }
    return CLI_DONE;
}
