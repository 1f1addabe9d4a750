/* test_device.c - which GPU a rank of the program takes. */
#include "support.h"

#include "../cli/device.h"
#include "fp8flow_device.h"

static const char *const variables[] = { "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_SIZE",
                                         "MPI_LOCALRANKID",      "SLURM_STEP_NUM_TASKS",       "SLURM_LOCALID" };
enum { NUM_VARIABLES = sizeof variables / sizeof variables[0] };

static int clear_environment(void **state)
{
    (void)state;
    for (int i = 0; i < NUM_VARIABLES; i++) unsetenv(variables[i]);
    return 0;
}

static void launch(int launcher, const char *size, const char *place)
{
    assert_int_equal(setenv(variables[2 * launcher], size, 1), 0);
    assert_int_equal(setenv(variables[2 * launcher + 1], place, 1), 0);
}

static void test_threads_have_the_places_of_their_ranks(void **state)
{
    (void)state;
    assert_int_equal(cli_place_of_rank(0), 0);
    assert_int_equal(cli_place_of_rank(5), 5);
}

static void test_processes_have_places_on_their_machines(void **state)
{
    for (int launcher = 0; launcher < 3; launcher++) {
        clear_environment(state);
        launch(launcher, "16", "3");
        assert_int_equal(cli_place_of_rank(11), 3);
        launch(launcher, "1", "0"); /* srun -n 1: ranks are its threads */
        assert_int_equal(cli_place_of_rank(11), 11);
    }
}

static void test_what_is_no_number_is_no_place(void **state)
{
    static const char *const odd[] = { "", "x", "3x", "-1", "99999999999" };
    for (int i = 0; i < 5; i++) {
        clear_environment(state);
        launch(0, "16", odd[i]);
        assert_int_equal(cli_place_of_rank(2), 2);
        launch(0, odd[i], "3");
        assert_int_equal(cli_place_of_rank(2), 2);
    }
}

static void test_ranks_take_the_gpus_in_turn(void **state)
{
    (void)state;
    int32_t count = fp8flow_device_count();
    assert_true(count >= 0);
    for (int32_t rank = 0; rank < 20; rank++) assert_int_equal(cli_gpu_of_rank(rank), count ? rank % count : 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_threads_have_the_places_of_their_ranks, clear_environment),
        cmocka_unit_test_setup(test_processes_have_places_on_their_machines, clear_environment),
        cmocka_unit_test_setup(test_what_is_no_number_is_no_place, clear_environment),
        cmocka_unit_test_setup(test_ranks_take_the_gpus_in_turn, clear_environment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
