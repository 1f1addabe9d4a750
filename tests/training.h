/* training.h - micro models, a generated corpus, and whole runs on any number of ranks for the tests of training. */
#ifndef F8_TESTS_TRAINING_H
#define F8_TESTS_TRAINING_H

#include "files.h"

#include <math.h>

#include "comm/comm.h"
#include "train/checkpoint.h"
#include "train/trainer.h"

/* 35 thousand parameters: every kind of weight of the preset "tiny". */
#define MICRO_KEYS(layers, more)                                                                                \
    "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 256, \"hidden_size\": 32, \"num_hidden_layers\": " layers  \
    ", \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 16, \"max_position_embeddings\": " \
    "256, \"moe_intermediate_size\": 16, \"num_experts\": 4, \"num_experts_per_tok\": 2, \"norm_topk_prob\": "  \
    "true, \"rms_norm_eps\": 1e-6" more "}\n"

#define MICRO_SOFTMAX MICRO_KEYS("2", ", \"router_aux_loss_coef\": 0.01")

/* The rest of the kinds: a dense layer, sigmoid scores, groups, a shared expert, router biases. */
#define MICRO_SIGMOID                                                                                             \
    MICRO_KEYS("2", ", \"router_aux_loss_coef\": 0.0, \"intermediate_size\": 48, \"mlp_only_layers\": [0], "      \
                    "\"scoring_func\": \"sigmoid\", \"n_group\": 2, \"topk_group\": 1, \"n_shared_experts\": 1, " \
                    "\"routed_scaling_factor\": 1.5, \"seq_aux_loss_coef\": 0.001, \"router_bias_update_rate\": " \
                    "0.01, \"tie_word_embeddings\": true")

/* Words drawn from a small vocabulary: a model of any size learns it within a few steps. */
static inline const char *put_corpus(const char *name, size_t size, uint64_t seed)
{
    static const char *const words[] = { "the ", "router ", "sends ", "a ",    "token ", "to ",   "two ",   "experts ",
                                         "and ", "adds ",   "what ",  "they ", "say.\n", "bits ", "scale ", "tile " };
    char *text = malloc(size + 16);
    size_t used = 0;
    assert_non_null(text);
    for (uint64_t i = 0; used < size; i++)
        used += (size_t)snprintf(text + used, 16, "%s", words[f8_random(seed, 5, i) % 16]);
    const char *path = put_file(name, text, size);
    free(text);
    return path;
}

/* ---- Runs ---- */

enum { MOST_STEPS = 64 };

/* The data of a run: the corpus of the test's folder. */
static const char *corpus_data[1];

static inline int make_corpus_folder(void **state, size_t size)
{
    int failed = make_folder(state);
    if (!failed) corpus_data[0] = strdup(put_corpus("corpus.txt", size, 1));
    return failed;
}

static inline int remove_corpus_folder(void **state)
{
    free((void *)(uintptr_t)corpus_data[0]);
    return remove_folder(state);
}

/* Paths of in_folder are few and short-lived; those of a run live as long as the test. */
static inline const char *kept(const char *name)
{
    static char paths[128][400];
    static unsigned next;
    char *path = paths[next++ % 128];
    snprintf(path, sizeof paths[0], "%s/%s", test_folder, name);
    return path;
}

typedef struct {
    fp8flow_train_options options;
    fp8flow_status (*create_context)(const fp8flow_context_options *options, fp8flow_context **context);
    fp8flow_backend backend;
    int32_t ranks, threads;
    int64_t until;      /* steps to make, in all */
    int64_t save_every; /* 0: only at the end, if there is an output folder */
    /* results of rank 0 */
    fp8flow_step_metrics metrics[MOST_STEPS + 1]; /* by step */
    double validation;
    fp8flow_train_info info;
    /* called on every rank with its trainer after the last step, before the last save */
    fp8flow_status (*look)(fp8flow_trainer *trainer, void *user);
    void *user;
} run;

/* Options for micro models: `data` is borrowed. */
static inline run make_run(const char *model, const char *const *data)
{
    run r = { .create_context = test_context_create, .ranks = 1, .threads = 1, .until = 6 };
    fp8flow_train_options_init(&r.options);
    r.options.model = model;
    r.options.data = data;
    r.options.num_data = 1;
    r.options.steps = 30;
    r.options.batch = 4;
    r.options.micro_batch = 4;
    r.options.sequence_length = 32;
    r.options.lr = 1e-2;
    r.options.min_lr = 1e-3;
    r.options.warmup_steps = 4;
    r.options.validation_sequences = 6;
    return r;
}

static inline fp8flow_status make_steps(fp8flow_trainer *trainer, run *r, int first_rank)
{
    fp8flow_train_info info;
    fp8flow_step_metrics metrics;
    F8_TRY(fp8flow_trainer_get_info(trainer, &info));
    if (first_rank) {
        r->info = info;
        r->info.ignored_keys = NULL;
    }
    for (int64_t step = info.first_step + 1; step <= r->until; step++) {
        F8_TRY(fp8flow_trainer_step(trainer, &metrics));
        if (first_rank) r->metrics[step] = metrics;
        if (r->save_every && step % r->save_every == 0 && step < r->until) F8_TRY(fp8flow_trainer_save(trainer));
    }
    return FP8FLOW_OK;
}

static inline fp8flow_status run_on_rank(fp8flow_comm *comm, void *user)
{
    run *r = user;
    int first_rank = fp8flow_comm_rank(comm) == 0;
    fp8flow_context *context = NULL;
    fp8flow_trainer *trainer = NULL;
    fp8flow_context_options options = { .backend = r->backend, .num_threads = r->threads };
    double loss = 0.0;
    F8_TRY(r->create_context(&options, &context));
    fp8flow_status status = fp8flow_trainer_create(context, comm, &r->options, &trainer);
    if (status == FP8FLOW_OK) status = make_steps(trainer, r, first_rank);
    if (status == FP8FLOW_OK) status = fp8flow_trainer_validate(trainer, &loss);
    if (status == FP8FLOW_OK && r->look) status = r->look(trainer, r->user);
    if (status == FP8FLOW_OK && r->options.output) status = fp8flow_trainer_save(trainer);
    if (first_rank) r->validation = loss;
    fp8flow_trainer_destroy(trainer);
    fp8flow_context_destroy(context);
    return status;
}

static inline fp8flow_status try_run(run *r)
{
    return fp8flow_run_ranks(r->ranks, run_on_rank, r);
}

/* What a step has spent between ranks is there where there are others, and a part of it. */
static inline void assert_seconds_between(const fp8flow_step_metrics *m, int32_t ranks, int32_t ep)
{
    double parts[] = { m->reduce_seconds, m->gather_seconds, m->dispatch_seconds, m->combine_seconds }, sum = 0.0;
    for (int i = 0; i < 4; i++) {
        int is_there = i < 2 ? ranks > 1 : ep > 1;
        if (!(is_there ? parts[i] > 0.0 : parts[i] == 0.0))
            fail_msg("%d ranks, EP %d, step %d: seconds[%d] = %g", ranks, ep, (int)m->step, i, parts[i]);
        sum += parts[i];
    }
    if (!(sum < m->seconds)) fail_msg("step %d: %g of %g seconds between ranks", (int)m->step, sum, m->seconds);
}

/* The run with a fixed micro-batch per rank: batch sequences over all ranks, in one micro-batch each. */
static inline void spread(run *r, int32_t ranks)
{
    r->ranks = ranks;
    r->options.micro_batch = r->options.batch / ranks;
}

/* ---- Comparing ---- */

static inline const char *step_folder(const char *output, int64_t step)
{
    char name[300];
    snprintf(name, sizeof name, "%.200s/step-%08lld", output, (long long)step);
    return in_folder(name);
}

static inline void assert_same_files(const char *one, const char *other)
{
    f8_listing listing;
    assert_ok(f8_list_files(one, &listing));
    assert_true(listing.num_names >= 5);
    for (size_t i = 0; i < listing.num_names; i++) {
        const char *name = listing.names + listing.name[i];
        char a[900], b[900];
        size_t size_a, size_b;
        snprintf(a, sizeof a, "%s/%s", one, name);
        snprintf(b, sizeof b, "%s/%s", other, name);
        char *bytes_a = get_file(a, &size_a), *bytes_b = get_file(b, &size_b);
        if (size_a != size_b || memcmp(bytes_a, bytes_b, size_a) != 0) fail_msg("%s and %s differ", a, b);
        free(bytes_a);
        free(bytes_b);
    }
    assert_int_equal(count_entries(other), listing.num_names);
    f8_listing_free(&listing);
}

static inline void assert_same_losses(const run *a, const run *b, int64_t first, int64_t last)
{
    for (int64_t step = first; step <= last; step++)
        if (a->metrics[step].loss != b->metrics[step].loss || !(a->metrics[step].loss > 0.0))
            fail_msg("step %d: losses %.17g and %.17g", (int)step, a->metrics[step].loss, b->metrics[step].loss);
}

#endif
