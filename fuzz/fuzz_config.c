/* fuzz_config.c - any bytes as config.json: what is accepted keeps every promise that the model relies on. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "model/parameters.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void require(int promise)
{
    if (!promise) abort();
}

static void check_config(const f8_model_config *c)
{
    const fp8flow_router_config *r = &c->router;
    require(c->vocab_size >= 256 && c->hidden % 16 == 0 && c->hidden > 0 && c->expert_width % 16 == 0);
    require(c->num_layers >= 1 && c->num_layers <= F8_MAX_LAYERS && c->num_dense_layers <= F8_MAX_LAYERS);
    require(c->num_kv_heads >= 1 && c->num_heads % c->num_kv_heads == 0 && c->head_dim % 2 == 0 && c->head_dim >= 2);
    require(r->top_k >= 1 && r->top_k <= r->num_experts && r->num_experts % r->num_groups == 0);
    require(r->num_experts / r->num_groups * r->top_groups >= r->top_k);
    require(c->rope_theta > 0.0 && c->norm_eps > 0.0);
}

/* Small tables are built, too: the last of 256 ranks, and one rank alone. */
static void check_table(const f8_model_config *c)
{
    f8_parameter_table *table;
    if (c->num_layers * c->router.num_experts > 4096) return;
    for (int32_t ranks = 1; ranks <= 256; ranks *= 256) {
        if (f8_parameter_table_create(c, ranks - 1, ranks, &table) != FP8FLOW_OK) continue;
        require(table->count >= table->replicated && table->global_count >= table->active_count);
        f8_parameter_table_destroy(table);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    f8_model_config config;
    f8_buffer ignored = { 0 };
    if (size > F8_JSON_CONFIG_LIMIT) return 0;
    fp8flow_status status = f8_model_config_parse("fuzz", (const char *)bytes, size, &config, &ignored);
    require(status == FP8FLOW_OK || (status == FP8FLOW_EFORMAT && strchr(fp8flow_last_error(), '\n') == NULL));
    if (status == FP8FLOW_OK) {
        check_config(&config);
        check_table(&config);
    }
    f8_buffer_free(&ignored);
    return 0;
}
