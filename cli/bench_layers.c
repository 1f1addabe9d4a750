/* bench_layers.c - forward + backward of the whole layer, every recipe and checkpointing mode, round-robin with
 * the six products of the layer as plain sgemm calls. */
#include "bench.h"
#include "sgemm.h"

#include <stdio.h>
#include <string.h>

enum { NUM_MODES = 3, MAX_VARIANTS = 24, NUM_PRODUCTS = 6 };

static const char *const mode_names[NUM_MODES] = { "none", "moe_expert", "full" };

typedef struct {
    char name[64];
    const char *recipe;
    fp8flow_checkpointing mode;
    fp8flow_moe *moe;
    layer_data *data;
} variant;

typedef struct {
    bench *b;
    const bench_shape *shape;
    layer_data data;
    int64_t num_variants;
    variant variants[MAX_VARIANTS];
    sgemm_work products[NUM_PRODUCTS];
} layer_bench;

static fp8flow_status run_variant(void *state)
{
    variant *v = state;
    return layer_step(v->moe, v->data);
}

static fp8flow_status run_threads_inside(void *state)
{
    layer_bench *l = state;
    sgemm_run_threads_inside(l->products, NUM_PRODUCTS, l->b->num_threads);
    return FP8FLOW_OK;
}

static fp8flow_status run_threads_across(void *state)
{
    layer_bench *l = state;
    sgemm_run_threads_across(l->products, NUM_PRODUCTS, l->b->num_threads);
    return FP8FLOW_OK;
}

static variant make_variant(layer_bench *l, const char *recipe, int32_t mode)
{
    variant v = { .recipe = recipe, .mode = (fp8flow_checkpointing)mode, .data = &l->data };
    snprintf(v.name, sizeof v.name, "layer %s %s", recipe, mode_names[mode]);
    return v;
}

/* bf16 is timed with every mode that is selected for any recipe: it is what their ratio refers to. */
static void choose_variants(layer_bench *l)
{
    for (int32_t mode = 0; mode < NUM_MODES; mode++) {
        int64_t first = l->num_variants;
        int has_bf16 = 0;
        for (int64_t r = 0; fp8flow_recipe_name(r) && l->num_variants < MAX_VARIANTS - 1; r++) {
            variant v = make_variant(l, fp8flow_recipe_name(r), mode);
            if (!bench_selects(l->b, v.name, l->shape->name)) continue;
            has_bf16 |= strcmp(v.recipe, "bf16") == 0;
            l->variants[l->num_variants++] = v;
        }
        if (l->num_variants > first && !has_bf16) l->variants[l->num_variants++] = make_variant(l, "bf16", mode);
    }
}

static fp8flow_status create_products(layer_bench *l)
{
    static const fp8flow_product kinds[] = { FP8FLOW_FPROP, FP8FLOW_DGRAD, FP8FLOW_WGRAD };
    const layer_shape *s = &l->shape->size;
    for (int i = 0; i < NUM_PRODUCTS; i++) {
        int is_fc1 = i < NUM_PRODUCTS / 2;
        l->products[i] = (sgemm_work){ .product = kinds[i % 3],
                                       .experts = s->experts,
                                       .rows = s->tokens * s->top_k / s->experts,
                                       .n = is_fc1 ? 2 * s->width : s->hidden,
                                       .k = is_fc1 ? s->hidden : s->width };
        if (sgemm_create(&l->products[i]) != 0) return FP8FLOW_ENOMEM;
    }
    return FP8FLOW_OK;
}

/* Median time of bf16 in the same mode. */
static double bf16_time(const layer_bench *l, const timing *times, fp8flow_checkpointing mode)
{
    for (int64_t i = 0; i < l->num_variants; i++)
        if (l->variants[i].mode == mode && strcmp(l->variants[i].recipe, "bf16") == 0) return times[i].median;
    return 0;
}

static void emit_all(const layer_bench *l, const timing *times)
{
    const timing *inside = &times[l->num_variants], *across = inside + 1;
    double flops = 0;
    for (int i = 0; i < NUM_PRODUCTS; i++) flops += sgemm_flops(&l->products[i]);
    for (int64_t i = 0; i < l->num_variants; i++)
        bench_emit(l->b,
                   &(bench_record){ .name = l->variants[i].name,
                                    .shape = l->shape->name,
                                    .time = times[i],
                                    .flops = flops,
                                    .reference = "sgemm",
                                    .reference_ms = inside->median < across->median ? inside->median : across->median,
                                    .bf16_ms = bf16_time(l, times, l->variants[i].mode) });
}

static fp8flow_status measure(layer_bench *l, fp8flow_comm *comm)
{
    timing_subject subjects[MAX_VARIANTS + 2];
    timing times[MAX_VARIANTS + 2];
    for (int64_t i = 0; i < l->num_variants; i++) {
        variant *v = &l->variants[i];
        fp8flow_status status = layer_open(&l->data, comm, v->recipe, v->mode, &v->moe);
        if (status != FP8FLOW_OK) return status;
        subjects[i] = (timing_subject){ run_variant, v };
    }
    subjects[l->num_variants] = (timing_subject){ run_threads_inside, l };
    subjects[l->num_variants + 1] = (timing_subject){ run_threads_across, l };
    fp8flow_status status = timing_measure(subjects, l->num_variants + 2, l->b->repeats, times);
    if (status == FP8FLOW_OK) emit_all(l, times);
    return status;
}

static fp8flow_status body(fp8flow_comm *comm, void *user)
{
    layer_bench *l = user;
    fp8flow_status status = layer_data_create(&l->data, l->b->context, &l->shape->size, comm);
    if (status == FP8FLOW_OK) status = create_products(l);
    if (status == FP8FLOW_OK) status = measure(l, comm);
    for (int64_t i = 0; i < l->num_variants; i++) fp8flow_moe_destroy(l->variants[i].moe);
    for (int i = 0; i < NUM_PRODUCTS; i++) sgemm_destroy(&l->products[i]);
    layer_data_destroy(&l->data);
    return status;
}

int bench_run_layers(bench *b, const bench_shape *shape)
{
    if (shape->size.experts == 0) return 0;
    layer_bench l = { .b = b, .shape = shape };
    choose_variants(&l);
    if (l.num_variants == 0) return 0;
    fp8flow_status status = fp8flow_run_ranks(1, body, &l);
    return status == FP8FLOW_OK ? 0 : bench_fail("layer", shape->name, status);
}
