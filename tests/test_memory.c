/* test_memory.c - every allocation of the library fails once: create, step, validate, save, resume and generate answer
 * with ENOMEM, give everything back, and leave no damaged checkpoint. The linker sends the library's calls here
 * (Makefile); those of jansson are its own, which takes some of them for errors of syntax. */
#include "training.h"

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t most);
void __real_free(void *memory);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t most);
void __wrap_free(void *memory);

/* One rank, one thread: nothing here is shared. */
static int64_t calls, failing, alive; /* failing: number of the call that fails, 0: none */

static int fails(void)
{
    return ++calls == failing;
}

static void *counted(void *memory)
{
    alive += memory != NULL;
    return memory;
}

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : counted(__real_malloc(bytes));
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return fails() ? NULL : counted(__real_calloc(count, bytes));
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return fails() ? NULL : counted(__real_aligned_alloc(alignment, bytes));
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : counted(__real_strdup(text));
}

char *__wrap_strndup(const char *text, size_t most)
{
    return fails() ? NULL : counted(__real_strndup(text, most));
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    if (fails()) return NULL;
    void *grown = __real_realloc(memory, bytes);
    alive += !memory && grown;
    return grown;
}

void __wrap_free(void *memory)
{
    alive -= memory != NULL;
    __real_free(memory);
}

/* ---- What is run ---- */

static fp8flow_status save_too(fp8flow_trainer *trainer, void *user)
{
    (void)user;
    return fp8flow_trainer_save(trainer);
}

static int32_t ignore(void *user, int32_t token)
{
    (void)user, (void)token;
    return 0;
}

static run fresh, resumed;

static fp8flow_status train_afresh(void)
{
    run r = fresh; /* results of a failed run do not count */
    return try_run(&r);
}

static fp8flow_status train_on(void)
{
    run r = resumed;
    return try_run(&r);
}

static fp8flow_status continue_text(void)
{
    fp8flow_context *context = NULL;
    const int32_t prompt[] = { 't', 'h', 'e' };
    fp8flow_generate_options options = { .max_tokens = 3, .temperature = 1.0, .top_k = 5 };
    F8_TRY(test_context_create(&(fp8flow_context_options){ .backend = FP8FLOW_CPU, .num_threads = 1 }, &context));
    fp8flow_status status = fp8flow_generate(context, fresh.options.output, prompt, 3, &options, ignore, NULL);
    fp8flow_context_destroy(context);
    return status;
}

/* Let allocation n fail, for n = 1, 2, ... until none is left to fail. Where memory is only wanted for something that
 * can be left out, the call may succeed. */
static int64_t fail_every_allocation(fp8flow_status (*body)(void))
{
    int64_t failures = 0;
    for (failing = 1;; failing++) {
        int64_t before = alive;
        calls = 0;
        fp8flow_status status = body();
        int64_t n = failing, made = calls;
        failing = 0;
        if (alive != before) fail_msg("allocation %d: %d blocks are lost", (int)n, (int)(alive - before));
        if (made < n) {
            assert_int_equal(status, FP8FLOW_OK);
            return failures;
        }
        if (status != FP8FLOW_OK && status != FP8FLOW_ENOMEM)
            fail_msg("allocation %d: %s, %s", (int)n, fp8flow_status_name(status), fp8flow_last_error());
        if (status == FP8FLOW_ENOMEM && !strstr(fp8flow_last_error(), "memory"))
            fail_msg("allocation %d: message \"%s\"", (int)n, fp8flow_last_error());
        failures += status == FP8FLOW_ENOMEM;
        failing = n;
    }
}

static void test_every_failed_allocation_is_an_error_and_no_leak(void **state)
{
    (void)state;
    skip_where(tested_device() != TEST_ON_HOST, "the mirror and the CUDA runtime allocate too");
    const char *data[] = { in_folder("corpus") };
    char model[400], output[400], other[400], corpus[400];
    snprintf(corpus, sizeof corpus, "%s", put_corpus("corpus", 4000, 1));
    snprintf(model, sizeof model, "%s", put_text("model.json", MICRO_SIGMOID));
    snprintf(output, sizeof output, "%s", in_folder("out"));
    snprintf(other, sizeof other, "%s", in_folder("other"));
    data[0] = corpus;
    fresh = make_run(model, data);
    fresh.options.sequence_length = 16;
    fresh.options.batch = fresh.options.micro_batch = 1;
    fresh.options.validation_sequences = 1;
    fresh.options.output = output;
    fresh.until = 1;
    assert_ok(train_afresh()); /* something to resume, and what libraries allocate once */
    resumed = fresh;
    resumed.options.resume = output;
    resumed.options.output = other;
    resumed.look = save_too;
    assert_true(fail_every_allocation(train_afresh) > 50);
    assert_true(fail_every_allocation(train_on) > 100);
    assert_true(fail_every_allocation(continue_text) > 50);
    assert_ok(continue_text()); /* the checkpoints are sound */
    resumed.options.resume = other;
    assert_ok(train_on());
}

int main(void)
{
    /* Hundreds of saves: in memory, where synchronising costs nothing. */
    if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 0);
    const struct CMUnitTest tests[] = { folder_test(test_every_failed_allocation_is_an_error_and_no_leak) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
