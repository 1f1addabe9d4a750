/* bench_train_model.c - models of `fp8flow bench train`, and the files that a trainer reads. See bench_train.h. */
#include "bench_train.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "random.h"

/* Layers of the size of DeepSeek-V2-Lite's (with plain attention: 16 heads of 128) and of Qwen3-30B-A3B's. */
static const train_model models[] = {
    { "v2-lite-cut", 26, 2048, 16, 16, 128, 64, 6, 1408, 2, 102400 },
    { "qwen3-30b-cut", 48, 2048, 32, 4, 128, 128, 8, 768, 0, 151936 },
    { "demo", 2, 128, 4, 2, 32, 8, 2, 64, 1, 256 },
};
enum { NUM_MODELS = sizeof models / sizeof *models };

const train_model *train_model_find(const char *name)
{
    for (int i = 0; i < NUM_MODELS; i++)
        if (strcmp(models[i].name, name) == 0) return &models[i];
    return NULL;
}

/* ---- Memory --------------------------------------------------------------------------------- */

/* BF16 weight, FP32 master, gradient and two moments; both FP8 forms of an expert's weight with their scales. */
enum { PARAMETER_BYTES = 2 + 4 * 4 };
static const double FORM_BYTES = 2.01, SLACK_BYTES = 4e9;

/* Room for what the estimate does not know: logits, the tail of the workspace, the device's own. */
int64_t train_layers_that_fit(const train_model *m, const train_batch *batch, double bytes)
{
    double hidden = (double)m->hidden, width = (double)m->width, tokens = (double)batch->micro_batch;
    tokens *= (double)batch->sequence_length;
    double heads = (double)(m->heads * m->head_dim), qkv = heads + 2.0 * (double)(m->kv_heads * m->head_dim);
    double experts = 3 * hidden * width * (double)m->experts;
    double others = 3 * hidden * width * (double)m->shared_experts + hidden * (qkv + heads + (double)m->experts);
    double kept = tokens * (6 * hidden + 6 * qkv);
    double layer = PARAMETER_BYTES * (experts + others) + FORM_BYTES * experts + kept;
    double rows = tokens * (double)m->top_k + 128.0 * (double)m->experts;
    double once = PARAMETER_BYTES * 2 * hidden * (double)m->vocabulary + rows * (10 * hidden + 18 * width) +
                  tokens * (20 * hidden + 8 * qkv);
    double layers = (bytes - once - SLACK_BYTES) / layer;
    return layers < 1 ? 1 : layers > (double)m->layers ? m->layers : (int64_t)layers;
}

/* ---- Files ---------------------------------------------------------------------------------- */

static int write_config(FILE *file, const train_model *m, int64_t layers, const train_batch *batch)
{
    int written = fprintf(
        file,
        "{\"model_type\": \"qwen3_moe\", \"vocab_size\": %lld, \"hidden_size\": %lld, \"num_hidden_layers\": %lld,\n"
        " \"num_attention_heads\": %lld, \"num_key_value_heads\": %lld, \"head_dim\": %lld,\n"
        " \"max_position_embeddings\": %lld, \"moe_intermediate_size\": %lld, \"num_experts\": %lld,\n"
        " \"num_experts_per_tok\": %lld, \"n_shared_experts\": %lld, \"norm_topk_prob\": true,\n"
        " \"router_aux_loss_coef\": 0.001, \"tie_word_embeddings\": false}\n",
        (long long)m->vocabulary, (long long)m->hidden, (long long)layers, (long long)m->heads, (long long)m->kv_heads,
        (long long)m->head_dim, (long long)batch->sequence_length, (long long)m->width, (long long)m->experts,
        (long long)m->top_k, (long long)m->shared_experts);
    return written > 0 ? 0 : -1;
}

/* The fewest segments that a trainer takes, or four steps; bytes are tokens. */
static int write_tokens(FILE *file, const train_batch *batch)
{
    enum { FEWEST = 21, STEPS = 4 };
    int64_t segments = STEPS * batch->batch > FEWEST ? STEPS * batch->batch : FEWEST;
    random_source source = { 1 };
    for (int64_t i = 0; i < segments * batch->sequence_length / 8 + 8; i++) {
        uint64_t bits = random_bits(&source);
        if (fwrite(&bits, sizeof bits, 1, file) != 1) return -1;
    }
    return 0;
}

int train_files_create(train_files *files, const train_model *model, int64_t layers, const train_batch *batch)
{
    const char *place = getenv("TMPDIR");
    *files = (train_files){ .folder = "" };
    char folder[sizeof files->folder];
    int length = snprintf(folder, sizeof folder, "%s/fp8flow-bench-XXXXXX", place && *place ? place : "/tmp");
    errno = ENAMETOOLONG;
    if (length < 0 || (size_t)length >= sizeof folder || !mkdtemp(folder)) return -1;
    snprintf(files->config, sizeof files->config, "%s/config.json", folder);
    snprintf(files->tokens, sizeof files->tokens, "%s/tokens", folder);
    memcpy(files->folder, folder, sizeof folder);
    FILE *config = fopen(files->config, "w"), *tokens = fopen(files->tokens, "w");
    int failed = !config || !tokens || write_config(config, model, layers, batch) || write_tokens(tokens, batch);
    if (config && fclose(config) != 0) failed = 1;
    if (tokens && fclose(tokens) != 0) failed = 1;
    return failed ? -1 : 0;
}

void train_files_remove(train_files *files)
{
    if (!*files->folder) return;
    (void)unlink(files->config);
    (void)unlink(files->tokens);
    (void)rmdir(files->folder);
    files->folder[0] = '\0';
}
