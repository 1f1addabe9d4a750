/* router_lanes.cuh - the figures of a token, spread over 8, 16 or 32 neighbouring lanes of a warp: lane l of LANES has
 * the experts l, l + LANES, ... Since LANES divides 32, f8_sum32 is sums within a lane and then over lanes; lanes of
 * f8_sum32 that no expert has are +0, which changes no score. All functions are called by whole warps.
 */
#ifndef F8_OPS_ROUTER_LANES_CUH
#define F8_OPS_ROUTER_LANES_CUH

#include "ops/nan.h"
#include "ops/warp.cuh"

/* One figure per expert, expert l + LANES j in lane l: in registers, or in shared memory (NUM = 0, LANES = 32). */
template <class T, int NUM> struct lane_line {
    T item[NUM];
    __device__ explicit lane_line(T *) {}
    __device__ T &at(int j) { return item[j]; }
};

template <class T> struct lane_line<T, 0> {
    T *item;
    __device__ explicit lane_line(T *line) : item(line + f8_lane()) {}
    __device__ T &at(int j) { return item[j * F8_WARP]; }
};

template <int LANES> __device__ static inline int token_lane()
{
    return f8_lane() % LANES;
}

/* visit(j, expert) for the lane's experts in ascending order. Registers have no number, so that j must be a constant:
 * all NUM items are visited, and numbers from num_experts on are the visitor's to mask. */
template <int LANES, int NUM, class Visit> __device__ static inline void each_expert(int num_experts, Visit visit)
{
    if (NUM > 0) {
#pragma unroll
        for (int j = 0; j < NUM; j++) visit(j, token_lane<LANES>() + j * LANES);
    } else {
        for (int j = 0; j * LANES < num_experts; j++) visit(j, token_lane<LANES>() + j * LANES);
    }
}

template <int LANES> __device__ static inline uint32_t lanes_max(uint32_t x)
{
    return LANES == F8_WARP ? __reduce_max_sync(F8_ALL_LANES, x) : f8_warp_max<LANES>(x);
}

template <int LANES> __device__ static inline uint32_t lanes_min(uint32_t x)
{
    return LANES == F8_WARP ? __reduce_min_sync(F8_ALL_LANES, x) : ~f8_warp_max<LANES>(~x);
}

/* The end of f8_sum32: sum[i] is that of its lane l + LANES i; the others are +0. */
template <int LANES, int CHAINS> __device__ static inline float fold_chains(float (&sum)[CHAINS])
{
#pragma unroll
    for (int width = CHAINS / 2; width > 0; width /= 2)
#pragma unroll
        for (int i = 0; i < width; i++) sum[i] += sum[i + width];
    return f8_warp_sum<LANES>(sum[0]);
}

/* f8_sum32 over the experts. */
template <int LANES, int NUM> __device__ static inline float expert_sum(int num_experts, lane_line<float, NUM> &line)
{
    const int chains = NUM > 0 && NUM < F8_WARP / LANES ? NUM : F8_WARP / LANES;
    float sum[chains] = {};
    each_expert<LANES, NUM>(num_experts,
                            [&](int j, int e) { sum[j % chains] += e < num_experts ? line.at(j) : 0.0f; });
    return fold_chains<LANES, chains>(sum);
}

/* line /= sum, from 1 to 4096, for numbers up to 1; NaN is canonical. With the reciprocal taken once, what is left of a
 * division is one correction; the result is that of IEEE as long as no remainder is subnormal. */
template <int LANES, int NUM>
__device__ static inline void divide_line(int num_experts, lane_line<float, NUM> &line, float sum)
{
    float inverse = 1.0f / sum, least = 1.0f;
    each_expert<LANES, NUM>(num_experts, [&](int j, int e) {
        if (e < num_experts) least = fminf(least, line.at(j));
    });
    if (least < 0x1p-60f) {
        each_expert<LANES, NUM>(num_experts, [&](int j, int) { line.at(j) = f8_canonical(line.at(j) / sum); });
        return;
    }
    each_expert<LANES, NUM>(num_experts, [&](int j, int) {
        float x = line.at(j), quotient = x * inverse;
        line.at(j) = f8_canonical(fmaf(fmaf(-quotient, sum, x), inverse, quotient));
    });
}

/* f8_sum32 over numbers in memory. */
template <int LANES> __device__ static inline float line_sum(const float *line, int count)
{
    const int chains = F8_WARP / LANES;
    float sum[chains] = {};
#pragma unroll
    for (int chain = 0; chain < chains; chain++)
#pragma unroll 1
        for (int i = token_lane<LANES>() + chain * LANES; i < count; i += F8_WARP) sum[chain] += line[i];
    return fold_chains<LANES, chains>(sum);
}

#endif
