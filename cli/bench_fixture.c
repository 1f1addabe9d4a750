/* bench_fixture.c - memory of a case, and running a table of cases. See bench.h. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#include "random.h"

const bench_format bench_f32 = { FP8FLOW_F32, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
const bench_format bench_bf16 = { FP8FLOW_BF16, FP8FLOW_UNSCALED, FP8FLOW_ROWS };
const bench_format bench_row128 = { FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS };
const bench_format bench_tile_rows = { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_ROWS };
const bench_format bench_tile_columns = { FP8FLOW_E4M3, FP8FLOW_TILE128, FP8FLOW_COLUMNS };
const bench_format bench_col128 = { FP8FLOW_E4M3, FP8FLOW_COL128, FP8FLOW_COLUMNS };
const bench_format bench_tensor_rows = { FP8FLOW_E4M3, FP8FLOW_TENSOR, FP8FLOW_ROWS };
const bench_format bench_tensor_columns = { FP8FLOW_E4M3, FP8FLOW_TENSOR, FP8FLOW_COLUMNS };

/* ---- Memory --------------------------------------------------------------------------------- */

/* Every page is written: a first touch must not land in the measurement. FP8 codes avoid NaN; scale bytes lie
 * around 2^-6, so that products neither overflow nor become subnormal. */
static void fill_array(void *array, int64_t count, bench_fill fill, uint64_t seed)
{
    random_source source = { seed };
    switch (fill) {
    case BENCH_ZERO: memset(array, 0, (size_t)count * 4); break;
    case BENCH_F32:
        for (int64_t i = 0; i < count; i++) ((float *)array)[i] = random_normal(&source);
        break;
    case BENCH_BF16:
        for (int64_t i = 0; i < count; i++) ((uint16_t *)array)[i] = random_bf16(&source, 1.0f);
        break;
    case BENCH_FP8:
        for (int64_t i = 0; i < count; i++) ((uint8_t *)array)[i] = (uint8_t)(random_bits(&source) & 0xF7);
        break;
    case BENCH_SCALE:
        for (int64_t i = 0; i < count; i++) ((uint8_t *)array)[i] = (uint8_t)(119 + random_below(&source, 4));
        break;
    }
}

void *bench_array(bench_fixture *f, int64_t count, bench_fill fill)
{
    static const size_t widths[] = {
        [BENCH_ZERO] = 4, [BENCH_F32] = 4, [BENCH_BF16] = 2, [BENCH_FP8] = 1, [BENCH_SCALE] = 1
    };
    size_t bytes = (size_t)count * widths[fill];
    void *array = f->num_blocks < BENCH_MAX_BLOCKS ? aligned_alloc(64, (bytes + 64) / 64 * 64) : NULL;
    if (!array) {
        f->is_out_of_memory = 1;
        return NULL;
    }
    fill_array(array, count, fill, (uint64_t)f->num_blocks);
    f->blocks[f->num_blocks++] = array;
    f->bytes += (double)bytes;
    return array;
}

int32_t *bench_integers(bench_fixture *f, int64_t count, int64_t limit)
{
    int32_t *values = bench_array(f, count, BENCH_ZERO);
    random_source source = { 7 };
    for (int64_t i = 0; values && i < count; i++) values[i] = (int32_t)random_below(&source, limit);
    return values;
}

fp8flow_tensor *bench_tensor(bench_fixture *f, const bench_format *format, int64_t rows, int64_t cols,
                             int64_t group_rows)
{
    static const bench_fill fills[] = {
        [FP8FLOW_F32] = BENCH_F32, [FP8FLOW_BF16] = BENCH_BF16, [FP8FLOW_E4M3] = BENCH_FP8, [FP8FLOW_E5M2] = BENCH_FP8
    };
    static const int64_t widths[] = { [FP8FLOW_F32] = 4, [FP8FLOW_BF16] = 2, [FP8FLOW_E4M3] = 1, [FP8FLOW_E5M2] = 1 };
    if (!format) return NULL;
    if (f->num_tensors == BENCH_MAX_TENSORS) {
        f->is_out_of_memory = 1;
        return NULL;
    }
    fp8flow_tensor *t = &f->tensors[f->num_tensors++];
    *t = (fp8flow_tensor){ .rows = rows, .cols = cols, .group_rows = group_rows };
    t->dtype = format->dtype;
    t->scaling = format->scaling;
    t->layout = format->layout;
    t->stride = format->layout == FP8FLOW_ROWS ? cols : group_rows > 0 ? group_rows : rows;
    int64_t groups = f->size.experts > 0 ? f->size.experts : 1;
    t->data = bench_array(f, fp8flow_tensor_data_bytes(t) / widths[t->dtype], fills[t->dtype]);
    if (t->scaling == FP8FLOW_TENSOR) t->scale = bench_array(f, groups, BENCH_F32);
    else if (t->scaling != FP8FLOW_UNSCALED)
        t->scale = bench_array(f, fp8flow_tensor_scale_bytes(t, groups), BENCH_SCALE);
    return t;
}

int32_t *bench_routing(bench_fixture *f)
{
    int64_t tokens = f->size.tokens, top_k = f->size.top_k, experts = f->size.experts, copies = tokens * top_k;
    int32_t *expert = bench_array(f, copies, BENCH_ZERO);
    f->plan = (fp8flow_plan){
        .num_tokens = tokens, .top_k = top_k, .num_experts = experts, .align = 128, .capacity = copies
    };
    f->plan.rows = bench_array(f, experts, BENCH_ZERO);
    f->plan.offset = bench_array(f, experts + 1, BENCH_ZERO);
    f->plan.row_of = bench_array(f, copies, BENCH_ZERO);
    f->plan.source = bench_array(f, copies, BENCH_ZERO);
    f->groups = (fp8flow_groups){ experts, f->plan.offset, f->plan.rows };
    if (f->is_out_of_memory) return NULL;
    /* Token t takes k neighbouring experts; the tokens are then shuffled. */
    for (int64_t i = 0; i < copies; i++) expert[i] = (int32_t)(i % experts);
    random_source source = { 11 };
    for (int64_t t = tokens - 1; t > 0; t--) {
        int64_t other = random_below(&source, t + 1);
        for (int64_t slot = 0; slot < top_k; slot++) {
            int32_t swap = expert[t * top_k + slot];
            expert[t * top_k + slot] = expert[other * top_k + slot];
            expert[other * top_k + slot] = swap;
        }
    }
    fp8flow_permute_plan_args args = { expert, &f->plan };
    return fp8flow_permute_plan(f->context, &args) == FP8FLOW_OK ? expert : NULL;
}

void bench_release(bench_fixture *f)
{
    for (int64_t i = 0; i < f->num_blocks; i++) free(f->blocks[i]);
    f->num_blocks = 0;
}

/* ---- Running -------------------------------------------------------------------------------- */

typedef struct {
    const bench_case *work;
    bench_fixture fixture;
} prepared_case;

static fp8flow_status run_prepared(void *state)
{
    prepared_case *c = state;
    return c->work->run(&c->fixture);
}

static int run_case(bench *b, const bench_shape *shape, const bench_case *work)
{
    prepared_case c = { .work = work, .fixture = { .context = b->context, .size = shape->size } };
    c.work->prepare(&c.fixture, c.work->formats);
    timing times[2];
    timing_subject subjects[] = { { run_prepared, &c }, { bench_copy, b } };
    fp8flow_status status = FP8FLOW_ENOMEM;
    if (!c.fixture.is_out_of_memory) status = timing_measure(subjects, 2, b->repeats, times);
    if (status == FP8FLOW_OK) {
        bench_record record = { .name = work->name,
                                .shape = shape->name,
                                .time = times[0],
                                .bytes = c.fixture.bytes,
                                .flops = c.fixture.flops };
        if (record.flops == 0) {
            record.reference = "memcpy";
            record.reference_ms = times[1].median * record.bytes / (2 * (double)b->copy_bytes);
        }
        bench_emit(b, &record);
    }
    bench_release(&c.fixture);
    return status == FP8FLOW_OK ? 0 : bench_fail(work->name, shape->name, status);
}

int bench_run_cases(bench *b, const bench_shape *shape, const bench_case *cases, int64_t num_cases)
{
    for (int64_t i = 0; i < num_cases; i++) {
        if (cases[i].needs == BENCH_EXPERTS && shape->size.experts == 0) continue;
        if (!bench_selects(b, cases[i].name, shape->name)) continue;
        if (run_case(b, shape, &cases[i]) != 0) return -1;
        if (cli_output_gone()) return 0;
    }
    return 0;
}
