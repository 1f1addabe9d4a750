/* bench_decoder.c - cases of the operators around the MoE layer: norms, attention, vocabulary, optimiser. */
#include "bench.h"

#include <math.h>

#define RUN(op)                                       \
    static fp8flow_status run_##op(bench_fixture *f)  \
    {                                                 \
        return fp8flow_##op(f->context, &f->args.op); \
    }

RUN(add)
RUN(rmsnorm)
RUN(rmsnorm_backward)
RUN(rope)
RUN(attention)
RUN(attention_backward)
RUN(embed)
RUN(embed_backward)
RUN(cross_entropy)
RUN(square_sum)
RUN(adamw)

/* Heads of 64, one key head for two query heads, sequences of 512, a vocabulary of 8192 ids. */
enum { HEAD_DIM = 64, SEQUENCE = 512, VOCABULARY = 8192 };

typedef const bench_format *const case_formats[3];

static fp8flow_tensor *plain(bench_fixture *f)
{
    return bench_tensor(f, &bench_bf16, f->size.tokens, f->size.hidden, 0);
}

static void prepare_add(bench_fixture *f, case_formats formats)
{
    (void)formats;
    f->args.add = (fp8flow_add_args){ plain(f), plain(f), plain(f) };
}

static void prepare_rmsnorm(bench_fixture *f, case_formats formats)
{
    (void)formats;
    int64_t width = f->size.hidden;
    fp8flow_rmsnorm_args args = { .x = plain(f), .width = width, .eps = 1e-6f, .y = plain(f) };
    args.weight = bench_array(f, width, BENCH_F32);
    args.rstd = bench_array(f, f->size.tokens, BENCH_F32);
    f->args.rmsnorm = args;
}

static void prepare_rmsnorm_backward(bench_fixture *f, case_formats formats)
{
    (void)formats;
    int64_t width = f->size.hidden;
    fp8flow_rmsnorm_backward_args args = { .x = plain(f), .dy = plain(f), .width = width, .dx = plain(f) };
    args.weight = bench_array(f, width, BENCH_F32);
    args.rstd = bench_array(f, f->size.tokens, BENCH_F32);
    args.dweight = bench_array(f, width, BENCH_F32);
    f->args.rmsnorm_backward = args;
}

static void prepare_rope(bench_fixture *f, case_formats formats)
{
    (void)formats;
    f->args.rope = (fp8flow_rope_args){
        .x = plain(f), .sequence_length = SEQUENCE, .head_dim = HEAD_DIM, .theta = 10000.0f, .rotation = FP8FLOW_ROTATE
    };
    f->bytes *= 2; /* read and written in place */
}

/* Query, key, value and output; products of half a square of scores per head. */
static void prepare_attention(bench_fixture *f, case_formats formats)
{
    (void)formats;
    int64_t heads = f->size.hidden / HEAD_DIM, key_heads = heads / 2, tokens = f->size.tokens;
    fp8flow_attention_args args = { .q = plain(f),
                                    .batch = tokens / SEQUENCE,
                                    .num_heads = heads,
                                    .num_kv_heads = key_heads,
                                    .head_dim = HEAD_DIM,
                                    .scale = 1.0f / sqrtf(HEAD_DIM),
                                    .o = plain(f) };
    args.k = bench_tensor(f, &bench_bf16, tokens, key_heads * HEAD_DIM, 0);
    args.v = bench_tensor(f, &bench_bf16, tokens, key_heads * HEAD_DIM, 0);
    args.lse = bench_array(f, tokens * heads, BENCH_F32);
    f->flops = 2.0 * (double)tokens * SEQUENCE * HEAD_DIM * (double)heads;
    f->args.attention = args;
}

static void prepare_attention_backward(bench_fixture *f, case_formats formats)
{
    prepare_attention(f, formats);
    fp8flow_attention_args forward = f->args.attention;
    int64_t tokens = f->size.tokens, key_width = forward.num_kv_heads * HEAD_DIM;
    if (!f->is_out_of_memory) fp8flow_attention(f->context, &forward); /* lse; a failure repeats below */
    fp8flow_attention_backward_args args = { .q = forward.q,
                                             .k = forward.k,
                                             .v = forward.v,
                                             .o = forward.o,
                                             .grad_o = plain(f),
                                             .lse = forward.lse,
                                             .batch = forward.batch,
                                             .num_heads = forward.num_heads,
                                             .num_kv_heads = forward.num_kv_heads,
                                             .head_dim = HEAD_DIM,
                                             .scale = forward.scale,
                                             .grad_q = plain(f) };
    args.grad_k = bench_tensor(f, &bench_bf16, tokens, key_width, 0);
    args.grad_v = bench_tensor(f, &bench_bf16, tokens, key_width, 0);
    f->flops *= 2.5; /* five products instead of two */
    f->args.attention_backward = args;
}

/* Bytes of the table rows that are touched, not of the table. */
static void prepare_embed(bench_fixture *f, case_formats formats)
{
    (void)formats;
    fp8flow_tensor *table = bench_tensor(f, &bench_bf16, VOCABULARY, f->size.hidden, 0);
    f->bytes = 0;
    f->args.embed = (fp8flow_embed_args){ table, bench_integers(f, f->size.tokens, VOCABULARY), plain(f) };
    f->bytes += 2.0 * (double)(f->size.tokens * f->size.hidden);
}

static void prepare_embed_backward(bench_fixture *f, case_formats formats)
{
    (void)formats;
    fp8flow_tensor *table = bench_tensor(f, &bench_f32, VOCABULARY, f->size.hidden, 0);
    f->bytes = 0;
    f->args.embed_backward =
        (fp8flow_embed_backward_args){ plain(f), bench_integers(f, f->size.tokens, VOCABULARY), table };
    f->bytes += 8.0 * (double)(f->size.tokens * f->size.hidden); /* read and added to */
}

static void prepare_cross_entropy(bench_fixture *f, case_formats formats)
{
    (void)formats;
    int64_t tokens = f->size.tokens / 4; /* logits are wide */
    f->args.cross_entropy = (fp8flow_cross_entropy_args){ .logits = bench_tensor(f, &bench_f32, tokens, VOCABULARY, 0),
                                                          .grad_scale = 1.0f };
    f->args.cross_entropy.gradient = bench_tensor(f, &bench_bf16, tokens, VOCABULARY, 0);
    f->args.cross_entropy.target = bench_integers(f, tokens, VOCABULARY);
    f->args.cross_entropy.loss = bench_array(f, tokens, BENCH_F32);
}

static void prepare_square_sum(bench_fixture *f, case_formats formats)
{
    (void)formats;
    int64_t count = f->size.tokens * f->size.hidden;
    f->args.square_sum = (fp8flow_square_sum_args){ count, bench_array(f, count, BENCH_F32), f->result };
}

static void prepare_adamw(bench_fixture *f, case_formats formats)
{
    (void)formats;
    int64_t count = f->size.tokens * f->size.hidden;
    fp8flow_adamw_args args = {
        .count = count, .lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f, .step = 100
    };
    args.master = bench_array(f, count, BENCH_F32);
    args.m = bench_array(f, count, BENCH_ZERO);
    args.v = bench_array(f, count, BENCH_ZERO);
    f->bytes *= 2; /* these three are read and written */
    args.grad = bench_array(f, count, BENCH_F32);
    args.weight = bench_array(f, count, BENCH_BF16);
    f->args.adamw = args;
}

#define PLAIN_CASE(op)                            \
    {                                             \
#op, BENCH_PLAIN, prepare_##op, run_##op, \
        {                                         \
            NULL, NULL, NULL                      \
        }                                         \
    }

static const bench_case cases[] = {
    PLAIN_CASE(add),        PLAIN_CASE(rmsnorm),        PLAIN_CASE(rmsnorm_backward),
    PLAIN_CASE(rope),       PLAIN_CASE(attention),      PLAIN_CASE(attention_backward),
    PLAIN_CASE(embed),      PLAIN_CASE(embed_backward), PLAIN_CASE(cross_entropy),
    PLAIN_CASE(square_sum), PLAIN_CASE(adamw),
};

int bench_run_decoder_operators(bench *b, const bench_shape *shape)
{
    return bench_run_cases(b, shape, cases, (int64_t)(sizeof cases / sizeof *cases));
}
