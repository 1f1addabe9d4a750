/* mirror.h - run the tests of the CPU backend on another device, without a change to what they test.
 *
 * FP8FLOW_TEST_DEVICE=cuda: contexts that tests make with FP8FLOW_CPU get a table of operators that copies the arrays
 * of a call to the GPU, calls the public operator there and copies the outputs back. Every array lies between guard
 * bands, exactly as large as the contract says and as misaligned as on the host; a write to a guard band or to an input
 * fails the call. Contexts with FP8FLOW_REFERENCE are left alone. FP8FLOW_TEST_DEVICE=mirror does the same with the CPU
 * in the GPU's place: the test of the mirror.
 *
 * For sanitizers: FP8FLOW_TEST_MEMORY=exact makes an allocation per array instead of one for all.
 * FP8FLOW_TEST_EVERY=n sends each n-th call of an operator to the device and goes on with the CPU's results.
 */
#ifndef F8_TESTS_MIRROR_H
#define F8_TESTS_MIRROR_H

#include "fp8flow_ops.h"

/* Which device stands behind FP8FLOW_CPU. A name that is not known, or a GPU that is not there, ends the program before
 * main with one line. */
typedef enum { TEST_ON_HOST, TEST_ON_MIRROR, TEST_ON_CUDA } test_device;
test_device tested_device(void);

/* fp8flow_context_create, with the mirror where the environment asks for it. For any thread. */
fp8flow_status test_context_create(const fp8flow_context_options *options, fp8flow_context **context);

#endif
