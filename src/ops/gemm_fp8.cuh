/* gemm_fp8.cuh - the steps of FP8 products on the tensor cores, for tiles of 128 lines of a x 192 lines of b and 128 of
 * the contraction per step: what gemm_fp8_rows.cu and the gemm_fp8_tiles*.cu share.
 *
 * Two warpgroups have 64 lines of a each. A step: wait for a stage of the ring, four products of 32 along the
 * contraction into fresh accumulators, add these times their scales to FP32 sums (one FFMA per sum). While one
 * warpgroup adds, the tensor cores work for the other; what lies between the products of a warpgroup, its sums apart,
 * is lost time. Hence four steps in a row without a branch, one per stage; factors, the next stage's barrier and scale
 * bytes are seen to while products run; the tile before is written while a tile's first products run.
 *
 * A Job is what a warpgroup works on: its ring, and
 *   finish(sum)                the sums of the tile before to c, zeros in their place
 *   load(words, step)          scale bytes of steps step .. step + 3
 *   set(factor, words, index)  factors of the step that these name
 *   prepare(stage)             before the products of the last step of a tile that ends within it
 */
#ifndef F8_OPS_GEMM_FP8_CUH
#define F8_OPS_GEMM_FP8_CUH

#include "ops/gemm_walk.cuh"
#include "ops/hopper_products.cuh"
#include "ops/ring.cuh"
#include "ops/tensor_map.cuh"
#include "ops/warp.cuh"

enum { STEP = 128, STAGES = 4, GROUPS = 2, THREADS = 128 * (GROUPS + 1) };
enum { COLUMNS = 192, SUMS = COLUMNS / 2, BOXES = 3, BOX_COLS = 64 }; /* lines of b; boxes of 64, one scale each */
enum { BOX_BYTES = 64 * 128 };                                        /* of c in shared memory: 64 lines of 128 bytes */
enum { A_BYTES = F8_WALK_ROWS * STEP, STAGE_BYTES = A_BYTES + COLUMNS * STEP };
enum { SHARED_BYTES = 1024 + STAGES * STAGE_BYTES + GROUPS * BOXES * BOX_BYTES };
enum { SLOTS = 4, WINDOW = 16, LINE = WINDOW + 4 }; /* tiles ahead: slots of up to 16 steps, lines of scale bytes */
enum { PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232 };

/* Barriers of the ring and of the slots. */
struct pipeline {
    uint64_t full[STAGES], empty[STAGES], ready[SLOTS], taken[SLOTS];

    /* One thread. `bringers`: threads that arrive when a slot is filled; one more than the warps gives it back. */
    __device__ void init(int bringers)
    {
        f8_ring_init(full, empty, 1, 4 * GROUPS);
        f8_ring_init(ready, taken, bringers, 4 * GROUPS + 1);
        f8_barrier_fence();
    }
};

/* The ring as a warpgroup sees it. */
struct ring_reader {
    uint32_t a, b;         /* descriptors of the first stage: this warpgroup's lines of a; lines of b */
    uint32_t full, phases; /* barriers, and the phase that each is waited for, a bit per stage */
    bool ready;            /* the stage asked for last is full */

    __device__ void ask(int stage) { ready = f8_barrier_try(full + 8 * stage, phases >> stage & 1); }

    __device__ void wait(int stage)
    {
        if (__builtin_expect(!ready, 0)) f8_barrier_wait(full + 8 * stage, phases >> stage & 1);
        phases ^= 1u << stage;
    }

    __device__ void release(int stage)
    {
        if (f8_lane() == 0) f8_barrier_arrive(full + 8 * (STAGES + stage));
    }
};

/* The shuffles make descriptors uniform to the compiler: no moves between the products. */
__device__ static inline ring_reader read_ring(const uint8_t *ring, const pipeline &pipe, int group)
{
    uint32_t a = __shfl_sync(F8_ALL_LANES, f8_operand_low(f8_smem(ring) + group * 64 * STEP), 0);
    uint32_t b = __shfl_sync(F8_ALL_LANES, f8_operand_low(f8_smem(ring) + A_BYTES), 0);
    return { a, b, f8_smem(pipe.full), 0, false };
}

/* Slots as a warp of the warpgroups sees them; slots number 0, 1, .. take turns in shared memory. */
template <class Slot> struct slot_reader {
    pipeline &pipe;
    const Slot *slots;
    int number;

    __device__ const Slot &get(int which) const { return slots[which % SLOTS]; }

    __device__ const Slot &wait()
    {
        f8_barrier_wait(&pipe.ready[number % SLOTS], number / SLOTS & 1);
        return get(number);
    }

    __device__ void give_back(int which)
    {
        __syncwarp();
        if (f8_lane() == 0) f8_barrier_arrive(&pipe.taken[which % SLOTS]);
    }

    __device__ void next_window()
    {
        give_back(number++);
        wait();
    }
};

/* Scale bytes of four steps: of this thread's two lines of a, and of the tile's two blocks of lines of b. */
struct scale_words {
    uint32_t a[2], b[2];
};

/* Byte `index` of a word as a scale. */
__device__ static inline float scale_of(uint32_t word, int index)
{
    return __uint_as_float((index < 3 ? word << (23 - 8 * index) : word >> 1) & 0x7F800000);
}

/* Of 64 columns of c each: factors of the two lines. `within`: the tile begins in the middle of a block, so that its
 * columns 64 .. 127 belong to the second. */
struct factors {
    float at[BOXES][2];

    __device__ void set(const scale_words &w, int index, bool within)
    {
        float low = scale_of(w.a[0], index), high = scale_of(w.a[1], index);
        float b[3] = { scale_of(w.b[0], index), scale_of(within ? w.b[1] : w.b[0], index), scale_of(w.b[1], index) };
#pragma unroll
        for (int i = 0; i < BOXES; i++) at[i][0] = low * b[i], at[i][1] = high * b[i];
        /* Without a place of their own these products move, and sums go to local memory. */
#pragma unroll
        for (int i = 0; i < 2 * BOXES; i++) f8_pin(at[i / 2][i % 2]);
    }
};

/* part = this warpgroup's 64 lines of one stage; a, b: low words of the descriptors. */
__device__ static inline void multiply(float (&part)[SUMS], uint32_t a, uint32_t b)
{
#pragma unroll
    for (int i = 0; i < SUMS; i++) f8_pin(part[i]);
    f8_products_begin();
#pragma unroll
    for (int i = 0; i < STEP / 32; i++)
        f8_product_e4m3(part, F8_OPERAND_HIGH | (a + 2 * i), F8_OPERAND_HIGH | (b + 2 * i), i);
    f8_products_commit();
}

/* Sums first .. end - 1. */
template <int first, int end>
__device__ static inline void promote(float (&sum)[SUMS], float (&part)[SUMS], const factors &factor)
{
#pragma unroll
    for (int i = first; i < end; i++) f8_pin(part[i]);
#pragma unroll
    for (int i = first; i < end; i++) sum[i] = fmaf(part[i], factor.at[i / 32][i / 2 % 2], sum[i]);
}

/* The step in `stage`, whose products are on their way, before one in `next`. To ask for a stage that is not the next
 * would mean to wait for nothing. */
template <class Job>
__device__ static inline void complete(Job &job, const scale_words &words, int stage, int next, float (&part)[SUMS],
                                       float (&sum)[SUMS])
{
    const int most = SUMS * 2 / 3;
    factors factor;
    job.set(factor, words, stage);
    f8_products_wait<0>();
    job.ring.release(stage);
    promote<0, most>(sum, part, factor);
    job.ring.ask(next);
    promote<most, SUMS>(sum, part, factor);
}

template <class Job>
__device__ static inline void run_step(Job &job, scale_words &words, int stage, int next, int step, float (&sum)[SUMS])
{
    float part[SUMS];
    job.ring.wait(stage);
    multiply(part, job.ring.a + stage * (STAGE_BYTES / 16), job.ring.b + stage * (STAGE_BYTES / 16));
    if (stage == 0) job.load(words, step);
    complete(job, words, stage, next, part, sum);
}

/* The steps of a tile, at least one, from the ring's first stage on; `partial`: the last one needs preparation. */
template <class Job>
__device__ static inline void run_tile(Job &job, int steps, bool partial, float (&sum)[SUMS])
{
    scale_words words;
    float part[SUMS];
    int step = 1, whole = steps - partial;
    job.ring.ask(0);
    job.ring.wait(0);
    if (Job::may_be_partial && whole == 0) job.prepare(0);
    multiply(part, job.ring.a, job.ring.b);
    job.finish(sum);
    job.load(words, 0);
    complete(job, words, 0, steps > 1, part, sum);
#pragma unroll 1
    for (; step + STAGES <= whole; step += STAGES) {
#pragma unroll
        for (int i = 1; i < STAGES; i++) run_step(job, words, i, (i + 1) % STAGES, step + i - 1, sum);
        run_step(job, words, 0, step + STAGES < steps, step + STAGES - 1, sum);
    }
#pragma unroll 1
    for (; step < steps; step++) {
        int stage = step % STAGES, next = step + 1 < steps ? (step + 1) % STAGES : 0;
        if (Job::may_be_partial && step == whole) {
            job.ring.wait(stage);
            job.prepare(stage);
            job.ring.phases ^= 1u << stage;
            job.ring.ready = true;
        }
        run_step(job, words, stage, next, step, sum);
    }
}

/* The same where nothing is to be multiplied. */
template <class Job> __device__ static inline void skip_tile(Job &job, int steps, float (&sum)[SUMS])
{
    job.finish(sum);
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        int stage = step % STAGES;
        if (step > 0) job.skip_to(step);
        job.ring.ask(stage);
        job.ring.wait(stage);
        job.ring.release(stage);
    }
}

__device__ static inline void clear(float (&sum)[SUMS])
{
#pragma unroll
    for (int i = 0; i < SUMS; i++) f8_set_zero(sum[i]);
}

/* Boxes of 128 bytes along the contraction x `lines` lines. */
static inline fp8flow_status operand_map(CUtensorMap *map, void *data, int64_t lines, int64_t length, int64_t stride,
                                         int box)
{
    f8_box_shape shape = { 2,
                           { (cuuint64_t)length, (cuuint64_t)lines },
                           { (cuuint64_t)stride },
                           { STEP, (cuuint32_t)box },
                           CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_DATA_TYPE_UINT8,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
    return f8_tensor_map("gemm", map, data, shape);
}

#endif
