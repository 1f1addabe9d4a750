/* moe_bounds.h - how far a MoE layer in a given recipe may be from the FP64 oracle, derived from its formats.
 *
 * Rounding to a format with m mantissa bits is wrong by at most half a step; with the smallest significand of a
 * binade and errors spread evenly over a step, the relative RMS error is 2^-(m+1) / sqrt(3):
 *     E4M3 2^-4/sqrt(3) = 3.6 %      E5M2 2^-3/sqrt(3) = 7.2 %      BF16 2^-8/sqrt(3) = 0.23 %
 * (Over a whole binade the energy-weighted mean is 0.65 of that, which is the slack of the bounds below.)
 * Subnormal codes lie 2^-14 below the largest number of their block and do not count here. Scales that are powers
 * of two add nothing, and re-encoding by shift or by requantisation is exact for the same reason.
 *
 * Products: with independent errors and signs, sum(a*b) has the relative error sqrt(ea^2 + eb^2).
 * SwiGLU: h = [a | b] with a, b ~ N(0, s^2) and an error of e*s in each: with E0 = E[silu(a)^2],
 * E1 = E[silu'(a)^2], E2 = E[silu''(a)^2],
 *     v  = silu(a) b:                                 error/v   = e * kv,  kv^2 = 1 + s^2 E1/E0
 *     dh = [g b silu'(a) | g silu(a)], from h alone:  error/dh  = e * kd,  kd^2 = s^2 (s^2 E2 + 2 E1) / (s^2 E1 + E0)
 * and the relative error of g passes unchanged. FP32 sums are three orders below and left out.
 */
#ifndef F8_TESTS_MOE_BOUNDS_H
#define F8_TESTS_MOE_BOUNDS_H

#include "support.h"

#include "recipe/recipe.h"

/* Relative RMS errors, squared: they add. */
typedef struct {
    double y, dx, fc1, fc2, router;
} moe_bounds;

static inline double moe_format_error(fp8flow_dtype dtype)
{
    int mantissa = dtype == FP8FLOW_E4M3 ? 3 : dtype == FP8FLOW_E5M2 ? 2 : 7;
    return dtype == FP8FLOW_F32 ? 0 : ldexp(1, -2 * (mantissa + 1)) / 3;
}

/* kv^2 and kd^2 for a, b ~ N(0, 1), by the trapezoidal rule. */
static inline void moe_swiglu_condition(double *kv, double *kd)
{
    double e0 = 0, e1 = 0, e2 = 0, weight_sum = 0;
    for (double a = -8; a <= 8; a += 1.0 / 64) {
        double s = 1 / (1 + exp(-a)), slope = s * (1 - s), weight = exp(-a * a / 2);
        double first = s + a * slope, second = 2 * slope + a * slope * (1 - 2 * s);
        e0 += weight * a * s * a * s, e1 += weight * first * first, e2 += weight * second * second;
        weight_sum += weight;
    }
    e0 /= weight_sum, e1 /= weight_sum, e2 /= weight_sum;
    *kv = 1 + e1 / e0;
    *kd = (e2 + 2 * e1) / (e1 + e0);
}

static inline double moe_edge_error(const f8_recipe *r, f8_edge edge)
{
    fp8flow_dtype dtype = r->edge[edge].format.dtype;
    return dtype == FP8FLOW_BF16 ? 0 : moe_format_error(dtype);
}

static inline moe_bounds moe_bounds_of(const char *name)
{
    f8_recipe r;
    double kv, kd, bf16 = moe_format_error(FP8FLOW_BF16);
    assert_ok(f8_recipe_find(name, &r));
    moe_swiglu_condition(&kv, &kd);
    double weight = r.weight.dtype == FP8FLOW_BF16 ? 0 : moe_format_error(r.weight.dtype);
    double h = moe_edge_error(&r, F8_X1_ROWS) + weight + bf16;
    /* v and dh pass through BF16 unless the operator that makes them quantises. */
    double v_exact = kv * h, v_store = r.edge[F8_X2_ROWS].how == F8_FUSED ? 0 : bf16;
    double g = moe_edge_error(&r, F8_DY2_ROWS) + weight + bf16;
    double dh_exact = g + kd * h, dh_store = r.edge[F8_DH_ROWS].how == F8_FUSED ? 0 : bf16;
    double dgate = g + v_exact;
    double y = v_exact + v_store + moe_edge_error(&r, F8_X2_ROWS) + weight;
    double dx = dh_exact + dh_store + moe_edge_error(&r, F8_DH_ROWS) + weight;
    /* BF16 at fc2's output and at the sums over the experts of a rank and over ranks; in dx also at the router's
     * part, which has the error of the gates, and at the addition of both. */
    return (moe_bounds){
        .y = sqrt(y + 3 * bf16),
        .dx = sqrt((dx > dgate ? dx : dgate) + 5 * bf16),
        .fc1 = sqrt(dh_exact + dh_store + moe_edge_error(&r, F8_DH_COLUMNS) + moe_edge_error(&r, F8_X1_COLUMNS)),
        .fc2 = sqrt(v_exact + v_store + moe_edge_error(&r, F8_X2_COLUMNS) + moe_edge_error(&r, F8_DY2_COLUMNS)),
        .router = sqrt(dgate)
    };
}

/* How far a matrix is from the oracle's: over all elements, and in its worst row. A row is measured against its own
 * norm, or against the average row of its group where it is smaller than that. */
typedef struct {
    double all, worst_row;
} moe_distance;

/* Element i of a result. */
static inline double moe_element(const void *values, fp8flow_dtype dtype, int64_t i)
{
    if (dtype == FP8FLOW_BF16) return (double)f8_bf16_decode(((const uint16_t *)values)[i]);
    return (double)((const float *)values)[i];
}

/* `rows` rows of `cols`, in groups of group_rows (experts) or one group. */
static inline moe_distance moe_measure_distance(const void *got, fp8flow_dtype dtype, const double *want, int64_t rows,
                                                int64_t cols, int64_t group_rows)
{
    double error_all = 0, signal_all = 0, worst = 0;
    for (int64_t first = 0; first < rows; first += group_rows) {
        double group_signal = 0;
        for (int64_t i = first * cols; i < (first + group_rows) * cols; i++) group_signal += want[i] * want[i];
        double average = group_signal / (double)group_rows;
        for (int64_t r = first; r < first + group_rows; r++) {
            double error = 0, signal = 0;
            for (int64_t i = r * cols; i < (r + 1) * cols; i++) {
                double difference = moe_element(got, dtype, i) - want[i];
                error += difference * difference, signal += want[i] * want[i];
            }
            double reference = signal > average ? signal : average;
            if (!(error <= 0) && !(error / reference <= worst)) worst = error / reference;
            error_all += error, signal_all += signal;
        }
    }
    return (moe_distance){ signal_all > 0 ? sqrt(error_all / signal_all) : sqrt(error_all), sqrt(worst) };
}

#endif
