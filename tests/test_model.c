/* test_model.c - the decoder against FP64 arithmetic written down a second time: the loss, and the gradient of every
 * kind of parameter by central differences; and the table of parameters. */
#include "training.h"

enum { H = 32, HEADS = 2, KV = 1, D = 16, Q = HEADS * D, S = 8, V = 256, E = 4, F = 16 };

/* ---- The decoder in FP64 ----
 * Parameters are the BF16 weights as numbers, and the masters of norms and router, as the model reads them. */

typedef struct {
    const f8_model_config *c;
    const f8_parameter_table *table;
    double *p; /* all parameters, at the table's offsets */
    const int32_t *ids, *targets;
    const float *router_bias; /* [layers, E] */
    int chosen[2][S][2];      /* experts of each token, to see that the choice is clear */
    double margin;            /* smallest distance of the last chosen expert to the next one */
} reference;

static const double *at(const reference *r, int64_t layer, f8_kind kind)
{
    int64_t offset = f8_parameter_offset(r->table, layer, kind);
    return offset < 0 ? NULL : r->p + offset;
}

/* y[rows] = w[rows, cols] x[cols] */
static void times(const double *w, int rows, int cols, const double *x, double *y)
{
    for (int i = 0; i < rows; i++) {
        y[i] = 0.0;
        for (int j = 0; j < cols; j++) y[i] += w[i * cols + j] * x[j];
    }
}

static void norm(const double *x, const double *weight, int width, double eps, double *y)
{
    double sum = 0.0;
    for (int i = 0; i < width; i++) sum += x[i] * x[i];
    double scale = 1.0 / sqrt(sum / width + eps);
    for (int i = 0; i < width; i++) y[i] = x[i] * scale * weight[i];
}

/* Halves of a head rotate against each other. */
static void rotate(double *x, int position, double theta)
{
    for (int i = 0; i < D / 2; i++) {
        double angle = position * pow(theta, -2.0 * i / D), low = x[i], high = x[i + D / 2];
        x[i] = low * cos(angle) - high * sin(angle);
        x[i + D / 2] = high * cos(angle) + low * sin(angle);
    }
}

static void attention(const reference *r, int layer, double x[S][H])
{
    static double query[S][Q], key[S][KV * D], value[S][KV * D];
    double normed[H], qkv[Q + 2 * KV * D], mixed[Q], out[H];
    for (int t = 0; t < S; t++) {
        norm(x[t], at(r, layer, F8_INPUT_NORM), H, r->c->norm_eps, normed);
        times(at(r, layer, F8_QKV), Q + 2 * KV * D, H, normed, qkv);
        for (int h = 0; h < HEADS; h++) {
            norm(qkv + h * D, at(r, layer, F8_Q_NORM), D, r->c->norm_eps, query[t] + h * D);
            rotate(query[t] + h * D, t, r->c->rope_theta);
        }
        norm(qkv + Q, at(r, layer, F8_K_NORM), D, r->c->norm_eps, key[t]);
        rotate(key[t], t, r->c->rope_theta);
        memcpy(value[t], qkv + Q + KV * D, sizeof value[t]);
    }
    for (int t = 0; t < S; t++) {
        for (int h = 0; h < HEADS; h++) {
            double weight[S], sum = 0.0;
            for (int s = 0; s <= t; s++) {
                double score = 0.0;
                for (int i = 0; i < D; i++) score += query[t][h * D + i] * key[s][i];
                sum += weight[s] = exp(score / sqrt(D));
            }
            for (int i = 0; i < D; i++) {
                mixed[h * D + i] = 0.0;
                for (int s = 0; s <= t; s++) mixed[h * D + i] += weight[s] / sum * value[s][i];
            }
        }
        times(at(r, layer, F8_OUT), H, Q, mixed, out);
        for (int i = 0; i < H; i++) x[t][i] += out[i];
    }
}

/* y += gate * fc2 (silu(a) b), where fc1 x is a, then b. */
static void swiglu(const double *fc1, const double *fc2, int width, const double *x, double gate, double *y)
{
    double h[2 * 64], v[64], out[H];
    assert_true(width <= 64);
    times(fc1, 2 * width, H, x, h);
    for (int i = 0; i < width; i++) v[i] = h[i] / (1.0 + exp(-h[i])) * h[width + i];
    times(fc2, H, width, v, out);
    for (int i = 0; i < H; i++) y[i] += gate * out[i];
}

static int best_of(const double *score, int taken)
{
    int best = -1;
    for (int e = 0; e < E; e++)
        if (e != taken && (best < 0 || score[e] > score[best])) best = e;
    return best;
}

/* Top two experts. Sigmoid: two groups of two experts, of which the one with the larger sum is open. */
static void choose(reference *r, int layer, int token, const double *logits, double *score)
{
    double choice[E], sum = 0.0;
    int sigmoid = r->c->router.score == FP8FLOW_SCORE_SIGMOID;
    for (int e = 0; e < E; e++) sum += exp(logits[e]);
    for (int e = 0; e < E; e++) {
        score[e] = sigmoid ? 1.0 / (1.0 + exp(-logits[e])) : exp(logits[e]) / sum;
        choice[e] = score[e] + (double)r->router_bias[layer * E + e];
    }
    int *chosen = r->chosen[layer][token];
    double margin;
    if (sigmoid) {
        margin = choice[0] + choice[1] - choice[2] - choice[3];
        chosen[0] = margin > 0.0 ? 0 : 2;
        chosen[1] = chosen[0] + 1;
    } else {
        chosen[0] = best_of(choice, -1);
        chosen[1] = best_of(choice, chosen[0]);
        margin = choice[chosen[1]];
        for (int e = 0; e < E; e++)
            if (e != chosen[0] && e != chosen[1] && choice[chosen[1]] - choice[e] < margin)
                margin = choice[chosen[1]] - choice[e];
    }
    r->margin = fmin(r->margin, fabs(margin));
}

static void experts(reference *r, int layer, int token, const double *x, double *y)
{
    double logits[E], score[E], sum = 0.0;
    times(at(r, layer, F8_ROUTER), E, H, x, logits);
    choose(r, layer, token, logits, score);
    const int *chosen = r->chosen[layer][token];
    for (int k = 0; k < 2; k++) sum += score[chosen[k]];
    for (int k = 0; k < 2; k++)
        swiglu(at(r, layer, F8_FC1) + chosen[k] * 2 * F * H, at(r, layer, F8_FC2) + chosen[k] * H * F, F, x,
               score[chosen[k]] / sum * (double)r->c->router.gate_scale, y);
    if (r->c->shared_width)
        swiglu(at(r, layer, F8_SHARED_FC1), at(r, layer, F8_SHARED_FC2), (int)r->c->shared_width, x, 1.0, y);
}

/* Mean loss of one sequence. */
static double loss_of(reference *r)
{
    static double x[S][H];
    double normed[H], branch[H], logits[V], loss = 0.0;
    const double *embedding = at(r, 0, F8_EMBEDDING), *head = r->c->tie_embeddings ? embedding : at(r, 0, F8_HEAD);
    for (int t = 0; t < S; t++) memcpy(x[t], embedding + r->ids[t] * H, sizeof x[t]);
    for (int layer = 0; layer < 2; layer++) {
        attention(r, layer, x);
        for (int t = 0; t < S; t++) {
            norm(x[t], at(r, layer, F8_POST_NORM), H, r->c->norm_eps, normed);
            memset(branch, 0, sizeof branch);
            if (f8_layer_is_sparse(r->c, layer)) experts(r, layer, t, normed, branch);
            else
                swiglu(at(r, layer, F8_DENSE_FC1), at(r, layer, F8_DENSE_FC2), (int)r->c->dense_width, normed, 1.0,
                       branch);
            for (int i = 0; i < H; i++) x[t][i] += branch[i];
        }
    }
    for (int t = 0; t < S; t++) {
        double sum = 0.0;
        norm(x[t], at(r, 0, F8_FINAL_NORM), H, r->c->norm_eps, normed);
        times(head, V, H, normed, logits);
        for (int v = 0; v < V; v++) sum += exp(logits[v]);
        loss += log(sum) - logits[r->targets[t]];
    }
    return loss / S;
}

/* ---- The model under test ---- */

static int is_norm(f8_kind kind)
{
    return kind == F8_INPUT_NORM || kind == F8_POST_NORM || kind == F8_FINAL_NORM || kind == F8_Q_NORM ||
           kind == F8_K_NORM;
}

/* Weights of a size that makes every part of the model matter: norms around 1, a decided router. */
static void set_weights(f8_model *m, uint64_t seed)
{
    for (int64_t i = 0; i < m->table->num_parameters; i++) {
        const f8_parameter *p = &m->table->parameter[i];
        for (int64_t j = 0; j < p->rows * p->cols; j++) {
            float x = f8_normal(seed, (uint64_t)i, (uint64_t)j);
            m->master[p->offset + j] = is_norm(p->kind)       ? 1.0f + 0.25f * x
                                       : p->kind == F8_ROUTER ? 0.5f * x
                                                              : 0.18f * x;
        }
    }
    for (int64_t e = 0; e < m->config.num_layers * E; e++) m->router_bias[e] = 0.1f * f8_normal(seed, 999, (uint64_t)e);
    assert_ok(f8_model_publish_from_master(m));
}

typedef struct {
    const char *json;
    fp8flow_checkpointing checkpointing;
    const char *recipe;
    int32_t threads;
    uint64_t seed;
    /* results */
    double loss;
    float *gradient;
    int64_t count;
    void (*look)(f8_model *m, const int32_t *ids, const int32_t *targets, double loss);
} evaluation;

static void make_tokens(int32_t *ids, int32_t *targets)
{
    for (int t = 0; t < S; t++) {
        ids[t] = (int32_t)(f8_random(8, 1, (uint64_t)t) % 40); /* some of them twice */
        targets[t] = (int32_t)(f8_random(8, 2, (uint64_t)t) % V);
    }
}

static fp8flow_status evaluate_on_rank(fp8flow_comm *comm, void *user)
{
    evaluation *e = user;
    int32_t ids[S], targets[S];
    fp8flow_context *context = make_context(FP8FLOW_CPU, e->threads ? e->threads : 1);
    f8_model_config *config = calloc(1, sizeof *config);
    assert_non_null(config);
    assert_ok(f8_model_config_parse("test", e->json, strlen(e->json), config, NULL));
    f8_model_options options = { e->recipe, e->checkpointing, S, S, F8_FOR_TRAINING, 0 };
    f8_model *m = NULL;
    assert_ok(f8_model_create(context, comm, config, &options, &m));
    set_weights(m, e->seed);
    make_tokens(ids, targets);
    f8_micro_batch batch = { ids, targets, 1, S, 1.0f / S, 1.0f };
    double sum;
    assert_ok(f8_model_forward(m, &batch, &sum));
    assert_ok(f8_model_backward(m, &batch));
    e->loss = sum / S;
    e->count = m->table->count;
    e->gradient = malloc((size_t)e->count * sizeof *e->gradient);
    assert_non_null(e->gradient);
    memcpy(e->gradient, m->gradient, (size_t)e->count * sizeof *e->gradient);
    if (e->look) e->look(m, ids, targets, e->loss);
    f8_model_destroy(m);
    free(config);
    fp8flow_context_destroy(context);
    return FP8FLOW_OK;
}

static void evaluate(evaluation *e)
{
    assert_ok(fp8flow_run_ranks(1, evaluate_on_rank, e));
}

/* ---- Loss and gradients ---- */

static void copy_parameters(reference *r, const f8_model *m)
{
    r->p = calloc((size_t)m->table->count, sizeof *r->p);
    assert_non_null(r->p);
    for (int64_t i = 0; i < m->table->num_parameters; i++) {
        const f8_parameter *p = &m->table->parameter[i];
        int as_master = is_norm(p->kind) || p->kind == F8_ROUTER;
        for (int64_t j = p->offset; j < p->offset + p->rows * p->cols; j++)
            r->p[j] = as_master ? (double)m->master[j] : (double)f8_bf16_decode(m->weight[j]);
    }
}

/* Elements of parameter p to compare: at most about 160, spread over it; of the embedding, rows that are read. */
static int64_t element_of(const f8_parameter *p, const int32_t *ids, int64_t sample, int64_t samples)
{
    int64_t count = p->rows * p->cols;
    if (p->kind == F8_EMBEDDING && sample % 2) return ids[sample / 2 % S] * H + sample / 2 * 7 % H;
    return count <= samples ? sample
                            : (int64_t)(f8_random(11, (uint64_t)p->offset, (uint64_t)sample) % (uint64_t)count);
}

/* About 20 roundings to BF16 (relative 2^-9 each at most, independent) lie between an element of a layer and the
 * loss, as many on the way back: the gradient of a whole parameter is off by about sqrt(40) 2^-9 = 1.2 %. Three
 * times that is the bound. A forgotten term, a wrong factor or a wrong sign is off by tens of percent. */
static const double gradient_bound = 0.037;

/* Logits are about 1 here and carry the same 20 roundings, once: sqrt(20) 2^-9 = 0.9 % of each; the mean of 8 losses,
 * differences of two of them. */
static const double loss_bound = 0.01;

static void compare_with_reference(f8_model *m, const int32_t *ids, const int32_t *targets, double loss)
{
    reference r = { .c = &m->config, .table = m->table, .ids = ids, .targets = targets, .margin = 1e9 };
    r.router_bias = m->router_bias;
    copy_parameters(&r, m);
    double exact = loss_of(&r);
    if (!(r.margin > 0.01)) fail_msg("the choice of experts is too close: %g", r.margin);
    if (!(fabs(loss - exact) < loss_bound)) fail_msg("loss %g, expected %g", loss, exact);
    int64_t compared = 0;
    for (int64_t i = 0; i < m->table->num_parameters; i++) {
        const f8_parameter *p = &m->table->parameter[i];
        int64_t samples = p->rows * p->cols < 160 ? p->rows * p->cols : 160;
        double error = 0.0, size = 0.0;
        for (int64_t s = 0; s < samples; s++) {
            const double step = 1e-5;
            int64_t j = p->offset + element_of(p, ids, s, samples);
            double kept = r.p[j];
            r.p[j] = kept + step;
            double up = loss_of(&r);
            r.p[j] = kept - step;
            double slope = (up - loss_of(&r)) / (2.0 * step);
            r.p[j] = kept;
            error += ((double)m->gradient[j] - slope) * ((double)m->gradient[j] - slope);
            size += slope * slope;
        }
        compared += samples;
        if (!(size > 1e-12) || !(sqrt(error / size) < gradient_bound))
            fail_msg("layer %d, kind %d: gradients differ by %g of %g", (int)p->layer, (int)p->kind, sqrt(error / size),
                     sqrt(size));
    }
    assert_true(compared > 2000);
    free(r.p);
}

static void check_against_reference(const char *json, uint64_t seed)
{
    evaluation e = { .json = json, .seed = seed, .recipe = "bf16", .look = compare_with_reference };
    evaluate(&e);
    free(e.gradient);
}

#define PLAIN MICRO_KEYS("2", ", \"router_aux_loss_coef\": 0.0")
#define MIXED                                                                                                     \
    MICRO_KEYS("2", ", \"router_aux_loss_coef\": 0.0, \"intermediate_size\": 48, \"mlp_only_layers\": [0], "      \
                    "\"scoring_func\": \"sigmoid\", \"n_group\": 2, \"topk_group\": 1, \"n_shared_experts\": 2, " \
                    "\"routed_scaling_factor\": 1.5, \"tie_word_embeddings\": true, \"rope_theta\": 100.0")

static void test_experts_in_every_layer(void **state)
{
    (void)state;
    check_against_reference(PLAIN, 6);
}

static void test_dense_layer_shared_experts_sigmoid_tied_head(void **state)
{
    (void)state;
    check_against_reference(MIXED, 4);
}

static void assert_same_evaluation(const evaluation *a, const evaluation *b)
{
    assert_true(a->loss == b->loss);
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->gradient, b->gradient, (size_t)a->count * sizeof *a->gradient);
}

static void test_checkpointing_and_threads_do_not_change_a_gradient_bit(void **state)
{
    (void)state;
    static const char *const recipes[] = { "bf16", "tensorwise", "blockwise", "deepseek", "flow" };
    static const char *const models[] = { MICRO_SOFTMAX, MICRO_SIGMOID };
    for (int model = 0; model < 2; model++)
        for (int i = 0; i < 5; i++) {
            evaluation base = { .json = models[model], .recipe = recipes[i] };
            evaluate(&base);
            for (int mode = 0; mode <= FP8FLOW_FULL; mode++) {
                evaluation other = base;
                other.checkpointing = (fp8flow_checkpointing)mode;
                other.threads = 2;
                evaluate(&other);
                assert_same_evaluation(&base, &other);
                free(other.gradient);
            }
            free(base.gradient);
        }
}

/* E4M3 rounds by 2^-4 at most, 2.6 % on average; both operands of a product, 3.7 %; eight products lie in a row from
 * the loss to a weight of the first layer: 10.5 % if nothing but experts carried the gradient. */
static void test_fp8_gradients_stay_near_bf16(void **state)
{
    (void)state;
    evaluation exact = { .json = PLAIN, .recipe = "bf16", .seed = 6 };
    evaluate(&exact);
    static const char *const recipes[] = { "tensorwise", "blockwise", "deepseek", "flow" };
    for (int i = 0; i < 4; i++) {
        evaluation e = { .json = PLAIN, .recipe = recipes[i], .seed = 6 };
        double error = 0.0, size = 0.0;
        evaluate(&e);
        for (int64_t j = 0; j < e.count; j++) {
            double a = (double)exact.gradient[j], b = (double)e.gradient[j];
            error += (a - b) * (a - b);
            size += a * a;
        }
        assert_true(fabs(e.loss - exact.loss) < 0.05);
        if (!(sqrt(error / size) < 0.105)) fail_msg("%s: %g", recipes[i], sqrt(error / size));
        assert_true(error > 0.0); /* it is FP8 indeed */
        free(e.gradient);
    }
    free(exact.gradient);
}

/* ---- The table of parameters ---- */

typedef struct {
    const char *name;
    int64_t rows, cols;
} named_shape;

static const named_shape expected_names[] = {
    { "model.embed_tokens.weight", 256, 32 },
    { "model.norm.weight", 0, 32 },
    { "lm_head.weight", 256, 32 },
    { "model.layers.1.input_layernorm.weight", 0, 32 },
    { "model.layers.1.self_attn.q_proj.weight", 32, 32 },
    { "model.layers.1.self_attn.k_proj.weight", 16, 32 },
    { "model.layers.1.self_attn.v_proj.weight", 16, 32 },
    { "model.layers.1.self_attn.q_norm.weight", 0, 16 },
    { "model.layers.1.self_attn.k_norm.weight", 0, 16 },
    { "model.layers.1.self_attn.o_proj.weight", 32, 32 },
    { "model.layers.1.post_attention_layernorm.weight", 0, 32 },
    { "model.layers.1.mlp.gate.weight", 4, 32 },
    { "model.layers.1.mlp.shared_experts.gate_proj.weight", 16, 32 },
    { "model.layers.1.mlp.shared_experts.up_proj.weight", 16, 32 },
    { "model.layers.1.mlp.shared_experts.down_proj.weight", 32, 16 },
    { "model.layers.1.mlp.experts.3.gate_proj.weight", 16, 32 },
    { "model.layers.1.mlp.experts.3.up_proj.weight", 16, 32 },
    { "model.layers.1.mlp.experts.3.down_proj.weight", 32, 16 },
    { "model.layers.0.mlp.gate_proj.weight", 48, 32 },
    { "model.layers.0.mlp.up_proj.weight", 48, 32 },
    { "model.layers.0.mlp.down_proj.weight", 32, 48 },
};

#define UNTIED_SIGMOID \
    MICRO_KEYS("2", ", \"intermediate_size\": 48, \"mlp_only_layers\": [0], \"n_shared_experts\": 1, \"n_group\": 2")

static f8_parameter_table *table_of(const char *json, f8_model_config *config, int rank, int size)
{
    f8_parameter_table *table = NULL;
    assert_ok(f8_model_config_parse("test", json, strlen(json), config, NULL));
    assert_ok(f8_parameter_table_create(config, rank, size, &table));
    return table;
}

static const f8_stored_slice *find_slice(const f8_parameter_table *table, const char *name)
{
    const f8_stored_slice *found = NULL;
    for (int64_t i = 0; i < table->num_slices; i++)
        if (strcmp(table->slice[i].name, name) == 0) {
            assert_null(found); /* no name twice */
            found = &table->slice[i];
        }
    return found;
}

static void test_names_and_shapes_are_those_of_hugging_face(void **state)
{
    (void)state;
    f8_model_config config;
    f8_parameter_table *table = table_of(UNTIED_SIGMOID, &config, 0, 1);
    for (size_t i = 0; i < sizeof expected_names / sizeof expected_names[0]; i++) {
        const f8_stored_slice *slice = find_slice(table, expected_names[i].name);
        if (!slice) fail_msg("%s is missing", expected_names[i].name);
        assert_int_equal(slice->rows, expected_names[i].rows);
        assert_int_equal(slice->cols, expected_names[i].cols);
    }
    for (int64_t i = 0; i < table->num_slices; i++) (void)find_slice(table, table->slice[i].name);
    assert_null(find_slice(table, "model.layers.0.mlp.gate.weight"));
    assert_null(find_slice(table, "model.layers.1.mlp.gate_proj.weight"));
    assert_null(find_slice(table, "model.layers.1.mlp.experts.4.up_proj.weight"));
    f8_parameter_table_destroy(table);
    table = table_of(MICRO_SIGMOID, &config, 0, 1);
    assert_null(find_slice(table, "lm_head.weight")); /* tied */
    f8_parameter_table_destroy(table);
}

/* Every element of every rank is in exactly one slice, replicated ones come first, and all ranks together hold every
 * expert once. */
static void test_slices_cover_every_element_once(void **state)
{
    (void)state;
    static const char *const models[] = { MICRO_SOFTMAX, MICRO_SIGMOID, UNTIED_SIGMOID };
    for (int model = 0; model < 3; model++)
        for (int size = 1; size <= 6; size++) { /* 3 does not divide 4 experts; with 6 some ranks have none */
            int64_t expert_elements = 0, replicated = 0, global = 0;
            for (int rank = 0; rank < size; rank++) {
                f8_model_config config;
                f8_parameter_table *t = table_of(models[model], &config, rank, size);
                unsigned char *times_seen = calloc((size_t)t->count, 1);
                for (int64_t i = 0; i < t->num_slices; i++) {
                    const f8_stored_slice *s = &t->slice[i];
                    for (int64_t j = 0; j < (s->rows ? s->rows : 1) * s->cols; j++) times_seen[s->offset + j]++;
                    assert_int_equal(strstr(s->name, "mlp.experts.") != NULL, s->offset >= t->replicated);
                }
                for (int64_t j = 0; j < t->count; j++) assert_int_equal(times_seen[j], 1);
                expert_elements += t->count - t->replicated;
                replicated = t->replicated;
                global = t->global_count;
                free(times_seen);
                f8_parameter_table_destroy(t);
            }
            assert_int_equal(expert_elements + replicated, global);
        }
}

/* A tensor starts with the same values wherever it lives. */
static void test_initial_values_do_not_depend_on_ranks(void **state)
{
    (void)state;
    f8_model_config config;
    f8_parameter_table *whole = table_of(UNTIED_SIGMOID, &config, 0, 1);
    float *all = malloc((size_t)whole->count * sizeof *all);
    f8_parameter_init(whole, &config, 77, 0, whole->count, all);
    for (int size = 2; size <= 6; size++)
        for (int rank = 0; rank < size; rank++) {
            f8_parameter_table *t = table_of(UNTIED_SIGMOID, &config, rank, size);
            float *mine = malloc((size_t)t->count * sizeof *mine);
            f8_parameter_init(t, &config, 77, 0, t->count, mine);
            for (int64_t i = 0; i < t->num_slices; i++) {
                const f8_stored_slice *s = &t->slice[i], *same = find_slice(whole, s->name);
                assert_non_null(same);
                assert_memory_equal(mine + s->offset, all + same->offset,
                                    (size_t)((s->rows ? s->rows : 1) * s->cols) * sizeof *mine);
            }
            free(mine);
            f8_parameter_table_destroy(t);
        }
    /* The deviation asked for; norms 1; outputs smaller by sqrt(2 layers). */
    static const struct {
        const char *name;
        double mean, deviation;
    } wanted[] = { { "model.embed_tokens.weight", 0.0, 0.02 },
                   { "model.layers.1.self_attn.q_norm.weight", 1.0, 0.0 },
                   { "model.layers.0.self_attn.o_proj.weight", 0.0, 0.01 },
                   { "model.layers.0.mlp.down_proj.weight", 0.0, 0.01 },
                   { "model.layers.0.mlp.up_proj.weight", 0.0, 0.02 } };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        const f8_stored_slice *s = find_slice(whole, wanted[i].name);
        int64_t count = (s->rows ? s->rows : 1) * s->cols;
        double sum = 0.0, squares = 0.0;
        for (int64_t j = 0; j < count; j++) sum += (double)all[s->offset + j];
        for (int64_t j = 0; j < count; j++) squares += pow((double)all[s->offset + j] - sum / (double)count, 2.0);
        double deviation = sqrt(squares / (double)count), tolerance = 4.0 * wanted[i].deviation / sqrt((double)count);
        assert_true(fabs(sum / (double)count - wanted[i].mean) <= tolerance);
        assert_true(fabs(deviation - wanted[i].deviation) <= tolerance);
    }
    free(all);
    f8_parameter_table_destroy(whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_experts_in_every_layer),
        cmocka_unit_test(test_dense_layer_shared_experts_sigmoid_tied_head),
        cmocka_unit_test(test_checkpointing_and_threads_do_not_change_a_gradient_bit),
        cmocka_unit_test(test_fp8_gradients_stay_near_bf16),
        cmocka_unit_test(test_names_and_shapes_are_those_of_hugging_face),
        cmocka_unit_test(test_slices_cover_every_element_once),
        cmocka_unit_test(test_initial_values_do_not_depend_on_ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
