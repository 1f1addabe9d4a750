/* test_mirror.c - the mirror notices an operator that writes where it must not, keeps aliases and alignment, and leaves
 * the rest as it was. Operators that misbehave take the device's place. */
#include "support.h"

#include "mirror_call.h"

enum { ROWS = 4, COLS = 8, STRIDE = 16 };

/* What the device's add does beside adding, and what it was given. */
static struct {
    int64_t before_y, after_y, in_a; /* bytes away from the array; 0: nothing is done */
    fp8flow_tensor a, y;
    f8_ops ops;
    const f8_ops *sound;
} device_add;

static fp8flow_status unsound_add(fp8flow_context *c, const fp8flow_add_args *a)
{
    char *y = a->y->data;
    device_add.a = *a->a;
    device_add.y = *a->y;
    F8_TRY(device_add.sound->add(c, a));
    if (device_add.before_y) y[-device_add.before_y] ^= 1;
    if (device_add.after_y) y[((ROWS - 1) * STRIDE + COLS) * 4 - 1 + device_add.after_y] ^= 1;
    if (device_add.in_a) ((char *)a->a->data)[device_add.in_a] ^= 1;
    return FP8FLOW_OK;
}

static int open_mirror(void **state)
{
    (void)state;
    if (tested_device() == TEST_ON_HOST && mirror_open("mirror") != FP8FLOW_OK) return 1;
    device_add.sound = mirror_context()->ops;
    device_add.ops = *device_add.sound;
    device_add.ops.add = unsound_add;
    return 0;
}

/* From here on a test may make the device's add misbehave. */
static void plant_unsound_add(void)
{
    skip_on_cuda("the misbehaving operator is host code");
    skip_where(getenv("FP8FLOW_TEST_MEMORY") || mirror_every() > 1, "no guard bands, or not for every call");
    mirror_context()->ops = &device_add.ops;
    device_add.before_y = device_add.after_y = device_add.in_a = 0;
}

static float a_values[ROWS * STRIDE], b_values[ROWS * STRIDE], y_values[ROWS * STRIDE + 8];

static fp8flow_tensor strided(float *values)
{
    fp8flow_tensor t = f8_f32(values, ROWS, COLS);
    t.stride = STRIDE;
    return t;
}

static fp8flow_status add(float *left, float *right, float *sum)
{
    fp8flow_context *c = make_context(FP8FLOW_CPU, 1);
    fp8flow_tensor a = strided(left), b = strided(right), y = strided(sum);
    for (int i = 0; i < ROWS * STRIDE; i++) a_values[i] = (float)i, b_values[i] = 100.0f;
    fp8flow_status status = fp8flow_add(c, &(fp8flow_add_args){ &a, &b, &y });
    assert_int_equal(fp8flow_context_calls(c, "add"), 1);
    fp8flow_context_destroy(c);
    return status;
}

static void test_a_sound_operator_passes(void **state)
{
    (void)state;
    plant_unsound_add();
    memset(y_values, 0xFF, sizeof y_values);
    assert_ok(add(a_values, b_values, y_values));
    for (int row = 0; row < ROWS; row++)
        for (int col = 0; col < STRIDE; col++) {
            uint32_t untouched = 0xFFFFFFFFu;
            float expected = col < COLS ? (float)(row * STRIDE + col) + 100.0f : f8_from_bits(untouched);
            assert_memory_equal(&y_values[row * STRIDE + col], &expected, 4);
        }
    assert_ptr_not_equal(device_add.a.data, a_values);
}

static void test_writes_outside_an_array_are_found(void **state)
{
    (void)state;
    static const int64_t distances[] = { 1, 2, 16, 200, 256 };
    plant_unsound_add();
    for (size_t i = 0; i < sizeof distances / sizeof *distances; i++) {
        device_add.after_y = distances[i];
        device_add.before_y = 0;
        assert_fails(add(a_values, b_values, y_values), FP8FLOW_EBACKEND, "mirror: add: wrote byte");
        device_add.after_y = 0;
        device_add.before_y = distances[i];
        assert_fails(add(a_values, b_values, y_values), FP8FLOW_EBACKEND, "mirror: add: wrote byte -");
    }
}

static void test_changed_inputs_are_found(void **state)
{
    (void)state;
    plant_unsound_add();
    device_add.in_a = 5;
    assert_fails(add(a_values, b_values, y_values), FP8FLOW_EBACKEND, "wrote byte 5 of a, an input of 224 bytes");
    assert_ok(add(a_values, b_values, a_values)); /* there it is the output that changes */
}

static void test_pointers_stay_misaligned(void **state)
{
    (void)state;
    plant_unsound_add();
    for (int shift = 0; shift < 4; shift++) {
        assert_ok(add(a_values, b_values, y_values + shift));
        assert_int_equal((uintptr_t)device_add.y.data % 16, (uintptr_t)(y_values + shift) % 16);
    }
}

/* y may be a; and two views of one matrix overlap without being the same. */
static void test_aliases_stay_aliases(void **state)
{
    (void)state;
    plant_unsound_add();
    assert_ok(add(a_values, b_values, a_values));
    assert_ptr_equal(device_add.a.data, device_add.y.data);
    assert_true(a_values[STRIDE + 1] == (float)(STRIDE + 1) + 100.0f);
    assert_ok(add(a_values, b_values, a_values + COLS));
    assert_ptr_equal((char *)device_add.a.data + COLS * 4, device_add.y.data);
    assert_true(a_values[COLS + 1] == 101.0f && a_values[1] == 1.0f);
}

static void test_an_unknown_device_is_refused(void **state)
{
    (void)state;
    assert_fails(mirror_open("tpu"), FP8FLOW_EINVAL, "expected \"cuda\" or \"mirror\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_sound_operator_passes),  cmocka_unit_test(test_writes_outside_an_array_are_found),
        cmocka_unit_test(test_changed_inputs_are_found), cmocka_unit_test(test_pointers_stay_misaligned),
        cmocka_unit_test(test_aliases_stay_aliases),     cmocka_unit_test(test_an_unknown_device_is_refused),
    };
    return cmocka_run_group_tests(tests, open_mirror, NULL);
}
