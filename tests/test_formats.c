/* test_formats.c - base/fp8.h and base/rng.h against definitions and an outside oracle (formats.h). */
#include "formats.h"
#include "support.h"

#define CODES_FILE "tests/fixtures/fp8_bf16_codes.bin"

static const fp8flow_dtype dtypes[2] = { FP8FLOW_E4M3, FP8FLOW_E5M2 };

/* The nearest code by search over all codes in FP64, ties to even. */
static uint8_t nearest_code(float x, fp8flow_dtype dtype)
{
    if (isnan(x)) return 0x7F;
    int best = 0;
    double a = fmin(fabs((double)x), 65536.0); /* beyond every code: Inf must compare */
    for (int code = 0; oracle_value(code, dtype) >= 0; code++) {
        double error = fabs(oracle_value(code, dtype) - a), least = fabs(oracle_value(best, dtype) - a);
        if (error < least || (error == least && code % 2 == 0)) best = code;
    }
    return (uint8_t)(best | (signbit(x) ? 0x80 : 0));
}

static void test_encode_of_every_bf16_value_is_as_recorded_from_cuda(void **state)
{
    (void)state;
    static uint8_t recorded[2][65536];
    FILE *file = fopen(CODES_FILE, "rb");
    if (!file) fail_msg("cannot open %s: run from the top folder", CODES_FILE);
    assert_int_equal(fread(recorded, 1, sizeof recorded, file), sizeof recorded);
    fclose(file);
    for (int type = 0; type < 2; type++) {
        oracle_table table = oracle_make(dtypes[type]);
        for (uint32_t code = 0; code < 65536; code++) {
            float x = f8_bf16_decode((uint16_t)code);
            assert_int_equal(f8_encode(x, dtypes[type]), recorded[type][code]);
            assert_int_equal(oracle_search(code << 16, &table), recorded[type][code]);
            assert_int_equal(nearest_code(x, dtypes[type]), recorded[type][code]);
        }
    }
}

/* Random bits are mostly far out of FP8's range; half of the sample has an exponent near it. */
static uint32_t sample_bits(uint64_t i)
{
    uint32_t bits = (uint32_t)f8_random(1, 2, i);
    if (i % 2 == 0) return bits;
    uint32_t exponent = 100 + (bits >> 23) % 48;
    return (bits & 0x807FFFFFu) | exponent << 23;
}

static void test_encode_of_random_fp32_matches_the_oracle(void **state)
{
    (void)state;
    for (int type = 0; type < 2; type++) {
        oracle_table table = oracle_make(dtypes[type]);
        for (uint64_t i = 0; i < 4u << 20; i++) {
            uint32_t bits = sample_bits(i);
            uint8_t got = f8_encode(f8_from_bits(bits), dtypes[type]);
            if (got != oracle_encode(bits, dtypes[type], &table) || got != oracle_search(bits, &table))
                fail_msg("%s of bits %08x: %02x", f8_dtype_name(dtypes[type]), bits, got);
        }
    }
}

/* Each boundary between two codes, and its neighbours. */
static void test_encode_at_every_tie(void **state)
{
    (void)state;
    for (int type = 0; type < 2; type++) {
        oracle_table table = oracle_make(dtypes[type]);
        for (int code = 0; code <= table.max_code; code++)
            for (uint32_t step = 0; step < 5; step++)
                for (uint32_t sign = 0; sign < 2; sign++) {
                    uint32_t bits = (table.boundary[code] + step - 2) | sign << 31;
                    assert_int_equal(f8_encode(f8_from_bits(bits), dtypes[type]),
                                     nearest_code(f8_from_bits(bits), dtypes[type]));
                }
    }
}

static void test_decode_of_every_code_is_exact(void **state)
{
    (void)state;
    for (int type = 0; type < 2; type++)
        for (int code = 0; code < 256; code++) {
            float got = f8_decode((uint8_t)code, dtypes[type]);
            double value = oracle_value(code & 0x7F, dtypes[type]);
            if (value >= 0) {
                assert_true((double)got == (code & 0x80 ? -value : value));
                assert_int_equal(!!signbit(got), code >> 7);
                assert_int_equal(f8_encode(got, dtypes[type]), code);
            } else if (type == 1 && (code & 0x7F) == 0x7C) {
                assert_true(isinf(got) && !!signbit(got) == code >> 7);
            } else {
                assert_true(isnan(got));
            }
        }
}

static void test_bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 1u << 18; i++) {
        float x = f8_from_bits((uint32_t)f8_random(4, 0, i) & (i % 3 ? ~0u : 0xFFFF8000u)); /* a third: ties */
        uint16_t code = f8_bf16_encode(x);
        if (isnan(x)) {
            assert_true(isnan(f8_bf16_decode(code)));
            continue;
        }
        uint16_t down = (uint16_t)(f8_bits(x) >> 16), up = (uint16_t)(down + 1); /* in magnitude */
        double below = fabs((double)f8_bf16_decode(down)), a = fabs((double)x);
        double above = isinf(f8_bf16_decode(up)) ? 0x1p128 : fabs((double)f8_bf16_decode(up));
        if (isinf(x)) assert_int_equal(code, down);
        else if (a - below == above - a) assert_int_equal(code, down % 2 ? up : down);
        else assert_int_equal(code, a - below < above - a ? down : up);
    }
}

/* ---- Scales ---- */

/* The definition in FP64: smallest power of two that brings amax to max or below, within [2^-126, 2^127]. */
static int expected_byte(double amax, fp8flow_dtype dtype)
{
    int byte = 1;
    while (byte < 254 && amax > ldexp(dtype == FP8FLOW_E4M3 ? 448 : 57344, byte - 127)) byte++;
    return byte;
}

static void check_scale(uint32_t amax, fp8flow_dtype dtype)
{
    int byte = f8_scale_byte(amax, dtype);
    assert_int_equal(byte, expected_byte((double)f8_from_bits(amax), dtype));
    if (byte > 1) { /* the scaled maximum lies in (max / 2, max] */
        double scaled = ldexp((double)f8_from_bits(amax), 127 - byte), max = dtype == FP8FLOW_E4M3 ? 448 : 57344;
        assert_true(scaled <= max && scaled > max / 2);
    }
}

static void test_scale_rule_at_every_boundary(void **state)
{
    (void)state;
    static const uint32_t mantissas[] = { 0, 1, 0x5FFFFF, 0x600000, 0x600001, 0x7FFFFF }; /* 1, .., 1.75, .., 2- */
    for (int type = 0; type < 2; type++) {
        for (uint32_t exponent = 0; exponent < 255; exponent++)
            for (int i = 0; i < 6; i++) check_scale(exponent << 23 | mantissas[i], dtypes[type]);
        for (uint32_t bit = 0; bit < 23; bit++) check_scale(1u << bit, dtypes[type]);
        assert_int_equal(f8_scale_byte(0, dtypes[type]), 1);
    }
}

static void test_scale_bytes_and_inverses_are_exact(void **state)
{
    (void)state;
    for (int byte = 1; byte <= 254; byte++) {
        assert_true((double)f8_scale_decode((uint8_t)byte) == ldexp(1, byte - 127));
        assert_true((double)f8_scale_inverse((uint8_t)byte) == ldexp(1, 127 - byte));
    }
}

static void test_finite_magnitude_skips_nan_and_inf(void **state)
{
    (void)state;
    assert_int_equal(f8_finite_magnitude(-2.0f), 0x40000000);
    assert_int_equal(f8_finite_magnitude(-0.0f), 0);
    assert_int_equal(f8_finite_magnitude(-INFINITY), 0);
    assert_int_equal(f8_finite_magnitude(NAN), 0);
    assert_int_equal(f8_finite_magnitude(f8_from_bits(0xFF7FFFFFu)), 0x7F7FFFFF);
}

static void test_tensor_scale_never_falls_below_the_smallest(void **state)
{
    (void)state;
    for (int type = 0; type < 2; type++) {
        float max = type == 0 ? 448.0f : 57344.0f;
        assert_true(f8_tensor_scale(0, dtypes[type]) == 0x1p-126f);
        assert_true(f8_tensor_scale(1, dtypes[type]) == 0x1p-126f);
        assert_true(f8_tensor_scale(f8_bits(max), dtypes[type]) == 1.0f);
        assert_true(f8_tensor_scale(f8_bits(3.0f), dtypes[type]) == 3.0f / max);
        assert_true(isfinite(1.0f / f8_tensor_scale(0x7F7FFFFF, dtypes[type])));
    }
}

/* ---- Shared arithmetic ---- */

/* |got - want| in units of the last place of the FP32 number next to want. */
static double ulps(float got, double want)
{
    float near = (float)want;
    double ulp = (double)nextafterf(near, INFINITY) - (double)near;
    return fabs((double)got - want) / ulp;
}

static void test_expf_is_within_one_and_a_half_ulp(void **state)
{
    (void)state;
    double worst = 0;
    float last = 0;
    for (int i = 0; i <= 1 << 20; i++) {
        float x = (float)(-87.3 + (88.7 + 87.3) * i / (1 << 20));
        x = x < -87.3f ? -87.3f : x > 88.7f ? 88.7f : x;
        float got = f8_expf(x);
        worst = fmax(worst, ulps(got, exp((double)x)));
        assert_true(got > last); /* steps of 1.7e-4 are far above an ulp */
        last = got;
    }
    for (int i = 0; i <= 1 << 18; i++) { /* around 0, where 1 + x must survive */
        float x = ldexpf((float)(i - (1 << 17)), -20);
        worst = fmax(worst, ulps(f8_expf(x), exp((double)x)));
    }
    if (worst > 1.5) fail_msg("%.3f ulp", worst);
}

static void test_expf_and_sigmoid_at_the_ends(void **state)
{
    (void)state;
    assert_true(f8_expf(0.0f) == 1.0f && f8_expf(-0.0f) == 1.0f);
    assert_true(isnan(f8_expf(NAN)));
    assert_true(f8_expf(-INFINITY) == f8_expf(-87.3f) && f8_expf(INFINITY) == f8_expf(88.7f));
    assert_true(isfinite(f8_expf(1e30f)) && f8_expf(-1e30f) > 0);
    assert_true(f8_sigmoid(0.0f) == 0.5f && f8_sigmoid(100.0f) == 1.0f);
    assert_true(f8_sigmoid(-100.0f) > 0 && f8_sigmoid(-100.0f) < 1e-37f);
    assert_true(isnan(f8_sigmoid(NAN)));
}

static void test_sum32_adds_lanes_then_halves(void **state)
{
    (void)state;
    float x[200];
    for (int count = 0; count <= 200; count++) {
        float lane[32] = { 0 };
        for (int i = 0; i < count; i++) {
            x[i] = f8_normal(1, 1, (uint64_t)i) * ldexpf(1, i % 13);
            lane[i % 32] += x[i];
        }
        float s16[16], s8[8], s4[4], s2[2];
        for (int l = 0; l < 16; l++) s16[l] = lane[l] + lane[l + 16];
        for (int l = 0; l < 8; l++) s8[l] = s16[l] + s16[l + 8];
        for (int l = 0; l < 4; l++) s4[l] = s8[l] + s8[l + 4];
        for (int l = 0; l < 2; l++) s2[l] = s4[l] + s4[l + 2];
        assert_int_equal(f8_bits(f8_sum32(x, count)), f8_bits(s2[0] + s2[1]));
    }
    assert_int_equal(f8_bits(f8_sum32(x, 0)), 0);
}

static void test_shuffle_is_a_permutation(void **state)
{
    (void)state;
    static const uint64_t sizes[] = { 1, 2, 3, 4, 5, 16, 17, 1000, 4096, 65537 };
    static uint8_t seen[65537];
    for (int i = 0; i < 10; i++)
        for (uint64_t key = 0; key < 3; key++) {
            memset(seen, 0, sizeof seen);
            uint64_t fixed = 0;
            for (uint64_t index = 0; index < sizes[i]; index++) {
                uint64_t to = f8_shuffle(key, index, sizes[i]);
                assert_true(to < sizes[i] && !seen[to]);
                seen[to] = 1;
                fixed += to == index;
            }
            if (sizes[i] >= 1000) assert_true(fixed < 10); /* and not the identity */
        }
}

static void test_random_numbers_have_their_moments(void **state)
{
    (void)state;
    enum { COUNT = 1 << 18 };
    double mean = 0, square = 0, uniform = 0;
    for (uint64_t i = 0; i < COUNT; i++) {
        double x = (double)f8_normal(5, 6, i), u = (double)f8_uniform(5, 7, i);
        assert_true(u >= 0 && u < 1 && fabs(x) < 6);
        mean += x, square += x * x, uniform += u;
    }
    assert_true(fabs(mean / COUNT) < 0.01);
    assert_true(fabs(square / COUNT - 1) < 0.02);
    assert_true(fabs(uniform / COUNT - 0.5) < 0.005);
    assert_true(f8_random(1, 2, 3) != f8_random(1, 3, 2) && f8_random(1, 2, 3) != f8_random(2, 1, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode_of_every_bf16_value_is_as_recorded_from_cuda),
        cmocka_unit_test(test_encode_of_random_fp32_matches_the_oracle),
        cmocka_unit_test(test_encode_at_every_tie),
        cmocka_unit_test(test_decode_of_every_code_is_exact),
        cmocka_unit_test(test_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_scale_rule_at_every_boundary),
        cmocka_unit_test(test_scale_bytes_and_inverses_are_exact),
        cmocka_unit_test(test_finite_magnitude_skips_nan_and_inf),
        cmocka_unit_test(test_tensor_scale_never_falls_below_the_smallest),
        cmocka_unit_test(test_expf_is_within_one_and_a_half_ulp),
        cmocka_unit_test(test_expf_and_sigmoid_at_the_ends),
        cmocka_unit_test(test_sum32_adds_lanes_then_halves),
        cmocka_unit_test(test_shuffle_is_a_permutation),
        cmocka_unit_test(test_random_numbers_have_their_moments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
