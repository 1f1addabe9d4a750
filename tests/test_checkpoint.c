/* test_checkpoint.c - checkpoint folders and what can happen to them: flipped bits, missing and foreign parts,
 * processes killed while they save, full disks, strange names. Whatever happens, what loads is what was saved. */
#include "training.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "io/safetensors.h"

static const char *corpus_data[1];

static int set_up(void **state)
{
    int failed = make_folder(state);
    if (!failed) corpus_data[0] = strdup(put_corpus("corpus.txt", 8000, 1));
    return failed;
}

static int tear_down(void **state)
{
    free((void *)(uintptr_t)corpus_data[0]);
    return remove_folder(state);
}

/* A run that saves to <folder>/<output> after `steps` steps. */
static run saving_run(const char *output, int64_t steps)
{
    static char paths[2][600];
    snprintf(paths[0], sizeof paths[0], "%s/model.json", test_folder);
    snprintf(paths[1], sizeof paths[1], "%s/%s", test_folder, output);
    put_text("model.json", MICRO_SIGMOID);
    run r = make_run(paths[0], corpus_data);
    r.options.output = paths[1];
    r.options.keep_checkpoints = 0;
    r.until = steps;
    return r;
}

/* ---- Loading alone: everything a resume reads, without data ---- */

typedef struct {
    const char *path;
    f8_model *model; /* kept over loads */
    fp8flow_context *context;
} loader;

static fp8flow_status load_with(loader *l, fp8flow_comm *comm)
{
    f8_checkpoint_state state;
    f8_buffer text;
    f8_model_config *config = calloc(1, sizeof *config);
    F8_REQUIRE(config, ENOMEM, "test");
    fp8flow_status status = f8_checkpoint_open(l->path, &state, &text);
    if (status == FP8FLOW_OK) status = f8_model_config_parse(l->path, text.data, text.size, config, NULL);
    f8_model_options options = { "bf16", FP8FLOW_FULL, 8, 8, F8_FOR_TRAINING, 0 };
    if (status == FP8FLOW_OK && !l->model) status = f8_model_create(l->context, comm, config, &options, &l->model);
    if (status == FP8FLOW_OK) status = f8_checkpoint_load(l->path, &state, l->model);
    f8_buffer_free(&text);
    free(config);
    return status;
}

static fp8flow_status load_on_rank(fp8flow_comm *comm, void *user)
{
    loader *l = user;
    F8_TRY(test_context_create(&(fp8flow_context_options){ .backend = FP8FLOW_CPU, .num_threads = 1 }, &l->context));
    fp8flow_status status = load_with(l, comm);
    f8_model_destroy(l->model);
    l->model = NULL;
    fp8flow_context_destroy(l->context);
    return status;
}

static fp8flow_status load(const char *path)
{
    loader l = { .path = path };
    return fp8flow_run_ranks(1, load_on_rank, &l);
}

/* ---- Flipped bits ---- */

typedef struct {
    const char *folder;
    int64_t flips, harmless;
    char problem[700];
} flipping;

static fp8flow_status flip_one(const char *file, int64_t at, int bit)
{
    unsigned char byte;
    int fd = open(file, O_RDWR);
    F8_REQUIRE(fd >= 0 && pread(fd, &byte, 1, at) == 1, EIO, "test: %s", file);
    byte ^= (unsigned char)(1 << bit);
    int written = pwrite(fd, &byte, 1, at) == 1;
    close(fd);
    F8_REQUIRE(written, EIO, "test: %s", file);
    return FP8FLOW_OK;
}

/* The message names a tensor or a file of the checkpoint. */
static int names_something(const char *message)
{
    static const char *const names[] = { "model.", "lm_head", ".safetensors", "COMPLETE", "state.json", "config.json" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strstr(message, names[i])) return 1;
    return 0;
}

/* Flip bits of one file, one at a time: small files everywhere, large ones at the head and at random places. */
static fp8flow_status flip_file(flipping *f, loader *l, fp8flow_comm *comm, const char *name)
{
    char path[900];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", f->folder, name);
    F8_REQUIRE(stat(path, &info) == 0, EIO, "test: %s", path);
    int64_t size = info.st_size, positions = size < 2000 ? 150 : 110;
    for (int64_t i = 0; i < positions; i++) {
        uint64_t random = f8_random(3, (uint64_t)size, (uint64_t)i);
        int64_t at = i < 16 ? i : i < 32 ? size - 1 - (i - 16) : (int64_t)(random % (uint64_t)size);
        if (size > 2000 && i >= 32 && i < 64) at = (int64_t)(random % 2000); /* in the header */
        if (at < 0 || at >= size) continue;
        int bit = (int)(random >> 40) & 7;
        F8_TRY(flip_one(path, at, bit));
        fp8flow_status status = load_with(l, comm);
        F8_TRY(flip_one(path, at, bit));
        f->flips++;
        int clean = (status == FP8FLOW_EFORMAT || status == FP8FLOW_EIO) && names_something(fp8flow_last_error());
        if (!clean && !f->problem[0])
            snprintf(f->problem, sizeof f->problem, "%.200s byte %lld bit %d: %s, \"%.300s\"", name, (long long)at, bit,
                     fp8flow_status_name(status), status == FP8FLOW_OK ? "" : fp8flow_last_error());
    }
    return FP8FLOW_OK;
}

static fp8flow_status flip_on_rank(fp8flow_comm *comm, void *user)
{
    flipping *f = user;
    loader l = { .path = f->folder };
    f8_listing listing;
    F8_TRY(test_context_create(&(fp8flow_context_options){ .backend = FP8FLOW_CPU, .num_threads = 1 }, &l.context));
    fp8flow_status status = load_with(&l, comm); /* as it is: fine */
    if (status == FP8FLOW_OK) status = f8_list_files(f->folder, &listing);
    for (size_t i = 0; status == FP8FLOW_OK && i < listing.num_names; i++)
        status = flip_file(f, &l, comm, listing.names + listing.name[i]);
    if (status == FP8FLOW_OK) status = load_with(&l, comm); /* and again */
    f8_listing_free(&listing);
    f8_model_destroy(l.model);
    fp8flow_context_destroy(l.context);
    return status;
}

static void test_every_flipped_bit_is_found_and_named(void **state)
{
    (void)state;
    run r = saving_run("out", 2);
    spread(&r, 2); /* two shards */
    assert_ok(try_run(&r));
    flipping f = { .folder = step_folder("out", 2) };
    assert_ok(fp8flow_run_ranks(1, flip_on_rank, &f));
    assert_true(f.flips >= 500);
    if (f.problem[0]) fail_msg("%s", f.problem);
}

/* ---- Missing, cut and foreign parts ---- */

static const char *const part_names[] = { "COMPLETE",
                                          "state.json",
                                          "config.json",
                                          "model-00001-of-00002.safetensors",
                                          "model-00002-of-00002.safetensors",
                                          "optimizer-00001-of-00002.safetensors",
                                          "optimizer-00002-of-00002.safetensors" };
enum { NUM_PARTS = 7 };

static const char *part_path(const char *folder, const char *name)
{
    static char path[900];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void test_missing_cut_and_grown_files_are_named(void **state)
{
    (void)state;
    run r = saving_run("out", 1);
    spread(&r, 2);
    assert_ok(try_run(&r));
    char folder[600], away[960];
    snprintf(folder, sizeof folder, "%s", step_folder("out", 1));
    for (int i = 0; i < NUM_PARTS; i++) {
        const char *path = part_path(folder, part_names[i]);
        size_t size;
        snprintf(away, sizeof away, "%s.away", path);
        char *bytes = get_file(path, &size);
        assert_int_equal(rename(path, away), 0);
        assert_fails(load(folder), FP8FLOW_EIO, part_names[i]);
        for (int cut = 0; cut < 5; cut++) { /* empty, one byte, half, all but one byte, one more */
            const size_t sizes[] = { 0, 1, size / 2, size - 1, size + 1 };
            FILE *file = fopen(path, "wb");
            assert_non_null(file);
            assert_int_equal(fwrite(bytes, 1, sizes[cut], file), sizes[cut]); /* the NUL after the end */
            assert_int_equal(fclose(file), 0);
            fp8flow_status status = load(folder);
            if (status != FP8FLOW_EFORMAT || !names_something(fp8flow_last_error()))
                fail_msg("%s of %d bytes: %s \"%s\"", part_names[i], (int)sizes[cut], fp8flow_status_name(status),
                         fp8flow_last_error());
        }
        remove(path);
        assert_int_equal(mkdir(path, 0755), 0);
        assert_fails(load(folder), FP8FLOW_EIO, part_names[i]);
        rmdir(path);
        assert_int_equal(rename(away, path), 0);
        free(bytes);
    }
    assert_ok(load(folder));
}

/* ---- Tensors: one shard rewritten ---- */

typedef enum { LEAVE_OUT, RENAME, RESHAPE, CHANGE_DTYPE, ADD_ONE } change;

/* The shard without, or with another, tensor number `index`; data are read into memory first. */
static void rewrite_shard(const char *path, int64_t index, change what)
{
    f8_safetensors *file;
    assert_ok(f8_safetensors_open(path, &file));
    int64_t count = f8_safetensors_count(file), stored = 0;
    f8_tensor_to_store *tensors = calloc((size_t)count + 1, sizeof *tensors);
    assert_non_null(tensors);
    for (int64_t i = 0; i < count; i++) {
        f8_stored_tensor t = f8_safetensors_at(file, i);
        void *data = malloc((size_t)t.bytes);
        assert_ok(f8_safetensors_read(file, &t, data, t.bytes, NULL));
        f8_tensor_to_store out = { t.name, t.dtype, t.rank, { 0 }, data };
        memcpy(out.shape, t.shape, sizeof out.shape);
        if (i == index && what == RENAME) out.name = "model.layers.0.self_attn.q_proj.Weight";
        if (i == index && what == RESHAPE && t.rank == 2) out.shape[0] = t.shape[0] * 2, out.shape[1] = t.shape[1] / 2;
        if (i == index && what == RESHAPE && t.rank == 1) out.rank = 2, out.shape[0] = 1, out.shape[1] = t.shape[0];
        if (i == index && what == CHANGE_DTYPE) out.dtype = F8_STORED_I32;
        if (i == index && what == LEAVE_OUT) free(data);
        else tensors[stored++] = out;
    }
    static const float one = 1.0f;
    if (what == ADD_ONE) tensors[stored++] = (f8_tensor_to_store){ "model.surplus", F8_STORED_F32, 1, { 1 }, &one };
    assert_ok(f8_safetensors_write(path, tensors, stored, NULL, 0, NULL));
    for (int64_t i = 0; i < stored; i++)
        if (tensors[i].data != &one) free((void *)(uintptr_t)tensors[i].data);
    free(tensors);
    f8_safetensors_close(file);
}

static void test_wrong_tensors_are_named(void **state)
{
    (void)state;
    run r = saving_run("out", 1);
    spread(&r, 2);
    assert_ok(try_run(&r));
    char folder[600];
    snprintf(folder, sizeof folder, "%s", step_folder("out", 1));
    for (int i = 3; i < NUM_PARTS; i++) {
        char path[900];
        size_t size;
        f8_safetensors *file;
        snprintf(path, sizeof path, "%s/%s", folder, part_names[i]);
        char *bytes = get_file(path, &size);
        assert_ok(f8_safetensors_open(path, &file));
        int64_t count = f8_safetensors_count(file);
        for (int64_t t = 0; t < count; t += 3) {
            char name[200];
            snprintf(name, sizeof name, "%s", f8_safetensors_at(file, t).name);
            for (change what = LEAVE_OUT; what <= ADD_ONE; what++) {
                rewrite_shard(path, t, what);
                const char *named = what == ADD_ONE ? "model.surplus" : name;
                assert_fails(load(folder), FP8FLOW_EFORMAT, named);
                FILE *back = fopen(path, "wb");
                assert_int_equal(fwrite(bytes, 1, size, back), size);
                assert_int_equal(fclose(back), 0);
            }
        }
        f8_safetensors_close(file);
        free(bytes);
    }
    assert_ok(load(folder));
}

static void copy_file(const char *from, const char *to)
{
    size_t size;
    char *bytes = get_file(from, &size);
    FILE *file = fopen(to, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    free(bytes);
}

/* Shards of another step, swapped shards, one shard twice: sound files, wrong place. */
static void test_shards_in_the_wrong_place(void **state)
{
    (void)state;
    run r = saving_run("out", 2);
    spread(&r, 2);
    assert_ok(try_run(&r));
    char folder[600], first[900], second[900], extra[900];
    snprintf(folder, sizeof folder, "%s", step_folder("out", 2));
    snprintf(first, sizeof first, "%s/%s", folder, part_names[3]);
    snprintf(second, sizeof second, "%s/%s", folder, part_names[4]);
    snprintf(extra, sizeof extra, "%s/model-00003-of-00003.safetensors", folder);
    copy_file(second, extra); /* not one of the two: not looked at */
    assert_ok(load(folder));
    remove(extra);
    copy_file(second, extra);
    copy_file(first, second);
    assert_fails(load(folder), FP8FLOW_EFORMAT, "model.");
    copy_file(extra, second);
    copy_file(extra, first);
    assert_fails(load(folder), FP8FLOW_EFORMAT, "model.");
}

/* ---- Finding ---- */

static void put_complete(const char *name)
{
    char mark[64];
    assert_int_equal(mkdir(in_folder(name), 0755), 0);
    snprintf(mark, sizeof mark, "%.50s/COMPLETE", name);
    put_text(mark, "x");
}

static void assert_found(const char *name)
{
    char *path = NULL;
    assert_ok(f8_checkpoint_find(test_folder, &path));
    assert_string_equal(path, in_folder(name));
    free(path);
}

static void test_the_newest_complete_step_is_found(void **state)
{
    (void)state;
    char *path = NULL;
    assert_fails(f8_checkpoint_find(test_folder, &path), FP8FLOW_EFORMAT, "holds no complete checkpoint");
    assert_fails(f8_checkpoint_find(in_folder("no"), &path), FP8FLOW_EIO, "/no");
    assert_fails(f8_checkpoint_find("", &path), FP8FLOW_EIO, "");
    assert_int_equal(mkdir(in_folder("step-00000099"), 0755), 0); /* not complete */
    put_complete("step-00000050.tmp");
    put_complete("step-x");
    put_complete("step--0000001");
    put_complete("step-00000070-old");
    put_complete("step-99999999999999999999");
    put_complete("step-60"); /* nobody writes this name */
    put_text("step-00000080", "a file");
    assert_fails(f8_checkpoint_find(test_folder, &path), FP8FLOW_EFORMAT, "holds no complete checkpoint");
    put_complete("step-00000009");
    put_complete("step-00000010");
    assert_found("step-00000010");
    put_complete("step-123456789"); /* more digits than eight */
    assert_found("step-123456789");
    assert_int_equal(mkdir(in_folder("step-99999999999"), 0755), 0);
    assert_int_equal(mkdir(in_folder("step-99999999999/COMPLETE"), 0755), 0); /* a folder is no mark */
    assert_found("step-123456789");
}

/* ---- Saving ---- */

static int64_t count_steps(const char *output)
{
    int64_t *steps;
    size_t count;
    assert_ok(f8_checkpoint_list(output, &steps, &count));
    free(steps);
    return (int64_t)count;
}

static void test_old_checkpoints_are_removed_and_strangers_stay(void **state)
{
    (void)state;
    run r = saving_run("out", 7);
    r.save_every = 1;
    r.options.keep_checkpoints = 2;
    assert_int_equal(mkdir(in_folder("out"), 0755), 0);
    put_text("out/notes.txt", "mine");
    assert_int_equal(mkdir(in_folder("out/step-00000001.tmp"), 0755), 0); /* of a killed process */
    put_text("out/step-00000001.tmp/model-00001-of-00001.safetensors", "half");
    put_text("out/step-00000001.tmp/.tmp-0123456789abcdef", "half");
    assert_ok(try_run(&r));
    assert_int_equal(count_steps(r.options.output), 2);
    assert_ok(load(step_folder("out", 6)));
    assert_ok(load(step_folder("out", 7)));
    assert_int_equal(access(in_folder("out/step-00000001.tmp"), F_OK), -1);
    assert_int_equal(access(in_folder("out/notes.txt"), F_OK), 0);
    assert_int_equal(count_entries(r.options.output), 2 * 5 + 1);
}

static fp8flow_status save_twice(fp8flow_trainer *trainer, void *user)
{
    (void)user;
    F8_TRY(fp8flow_trainer_save(trainer));
    return fp8flow_trainer_save(trainer);
}

static void test_saving_over_a_step_replaces_it(void **state)
{
    (void)state;
    run one = saving_run("out", 2), two;
    spread(&one, 2);
    one.look = save_twice;
    assert_ok(try_run(&one));
    assert_int_equal(count_entries(one.options.output), NUM_PARTS);
    /* Another number of shards: none of the old ones is left. */
    two = one;
    spread(&two, 1);
    assert_ok(try_run(&two));
    assert_int_equal(count_entries(two.options.output), 5);
    assert_ok(load(step_folder("out", 2)));
}

typedef struct {
    char mark[700];
    atomic_int stop;
    int64_t looks, absences;
} watch;

/* Look for the mark all the time. One failure may be a look into the folder that is just being exchanged; twenty in a
 * row mean that for a while there was no checkpoint. */
static void *watch_mark(void *argument)
{
    watch *w = argument;
    for (int missing = 0; !atomic_load(&w->stop); w->looks++) {
        missing = access(w->mark, F_OK) == 0 ? 0 : missing + 1;
        w->absences += missing == 20;
    }
    return NULL;
}

static fp8flow_status save_while_watched(fp8flow_trainer *trainer, void *user)
{
    watch *w = user;
    pthread_t thread;
    F8_TRY(fp8flow_trainer_save(trainer));
    F8_REQUIRE(pthread_create(&thread, NULL, watch_mark, w) == 0, ENOMEM, "test: no thread");
    fp8flow_status status = FP8FLOW_OK;
    for (int i = 0; i < 20 && status == FP8FLOW_OK; i++) status = fp8flow_trainer_save(trainer);
    atomic_store(&w->stop, 1);
    pthread_join(thread, NULL);
    return status;
}

static void test_a_step_is_never_absent_while_it_is_replaced(void **state)
{
    (void)state;
    watch w = { .looks = 0 };
    run r = saving_run("out", 1);
    snprintf(w.mark, sizeof w.mark, "%s/COMPLETE", step_folder("out", 1));
    r.look = save_while_watched;
    r.user = &w;
    assert_ok(try_run(&r));
    assert_true(w.looks > 1000);
    assert_int_equal(w.absences, 0);
}

static void test_output_folders_of_any_name(void **state)
{
    (void)state;
    char names[4][300] = { "missing/parents/of it", "m\xC3\xA4\xC3\x9F \xE6\xA8\xA1\xE5\x9E\x8B \"quoted\" $HOME;",
                           "\xFF\xFE not UTF-8\n", "" };
    memset(names[3], 'x', 200);
    for (int i = 0; i < 4; i++) {
        run r = saving_run(names[i], 1), more;
        assert_ok(try_run(&r));
        assert_ok(load(step_folder(names[i], 1)));
        more = r;
        more.until = 2;
        more.options.resume = r.options.output;
        assert_ok(try_run(&more));
        assert_int_equal(more.info.first_step, 1);
    }
    run r = saving_run("file/out", 1);
    put_text("file", "not a folder");
    assert_fails(try_run(&r), FP8FLOW_EIO, "file");
    run two = saving_run("file/out", 1);
    spread(&two, 2);
    assert_fails(try_run(&two), FP8FLOW_EIO, "file"); /* rank 0's message, not "another rank has failed" */
}

/* ---- Full disks ---- */

static void with_file_limit(rlim_t bytes)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes > limit.rlim_max ? limit.rlim_max : bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

typedef struct {
    int64_t failures, limit_step;
    char problem[300];
} full_disk;

/* Saves that fail at every place where the disk can be full; the old checkpoint stays, training goes on. */
static fp8flow_status save_on_full_disk(fp8flow_trainer *trainer, void *user)
{
    full_disk *d = user;
    fp8flow_step_metrics metrics;
    F8_TRY(fp8flow_trainer_save(trainer));
    F8_TRY(fp8flow_trainer_step(trainer, &metrics));
    for (int64_t limit = 0; limit < 400000; limit += d->limit_step) {
        with_file_limit((rlim_t)limit);
        fp8flow_status status = fp8flow_trainer_save(trainer);
        with_file_limit(RLIM_INFINITY);
        if (status == FP8FLOW_OK) break;
        d->failures++;
        F8_REQUIRE(status == FP8FLOW_EIO && strstr(fp8flow_last_error(), "step-00000003"), EINVAL, "test: limit %lld",
                   (long long)limit);
        F8_REQUIRE(count_entries(trainer->output) == 5, EINVAL, "test: rests at limit %lld", (long long)limit);
    }
    return fp8flow_trainer_step(trainer, &metrics);
}

static void test_full_disk_leaves_the_old_checkpoint(void **state)
{
    (void)state;
    run r = saving_run("out", 2);
    full_disk d = { .limit_step = 16384 };
    signal(SIGXFSZ, SIG_IGN);
    r.look = save_on_full_disk;
    r.user = &d;
    assert_ok(try_run(&r));
    assert_true(d.failures >= 10);
    assert_ok(load(step_folder("out", 2)));
    assert_ok(load(step_folder("out", 4)));
}

static void test_small_file_system(void **state)
{
    (void)state;
    char place[300], output[400];
    snprintf(place, sizeof place, "%s/small", test_folder);
    assert_int_equal(mkdir(place, 0755), 0);
    if (mount("tmpfs", place, "tmpfs", 0, "size=700k") != 0) {
        print_message("tmpfs cannot be mounted here (%s)\n", strerror(errno));
        skip();
    }
    snprintf(output, sizeof output, "%s/out", place);
    run r = saving_run("unused", 1), more;
    r.options.output = output;
    fp8flow_status first = try_run(&r);
    more = r;
    more.options.resume = output;
    more.until = 2;
    fp8flow_status second = try_run(&more);
    char message[400], *found = NULL;
    snprintf(message, sizeof message, "%s", fp8flow_last_error());
    fp8flow_status finding = f8_checkpoint_find(output, &found);
    fp8flow_status loading = finding == FP8FLOW_OK ? load(found) : finding;
    free(found);
    umount(place);
    assert_int_equal(first, FP8FLOW_OK);
    assert_int_equal(second, FP8FLOW_EIO);
    if (!strstr(message, "No space left on device")) fail_msg("%s", message);
    assert_int_equal(loading, FP8FLOW_OK);
}

/* ---- Killed while saving ---- */

/* What the child does until it is killed: go on from the newest checkpoint, save every step, every second one twice. */
static fp8flow_status step_and_save(fp8flow_trainer *trainer, void *user)
{
    (void)user;
    fp8flow_step_metrics metrics;
    if (fp8flow_comm_rank(trainer->comm) == 0 && write(STDOUT_FILENO, "r", 1) != 1) return FP8FLOW_EIO;
    for (;;) {
        F8_TRY(fp8flow_trainer_step(trainer, &metrics));
        F8_TRY(fp8flow_trainer_save(trainer));
        if (metrics.step % 2 == 0) F8_TRY(fp8flow_trainer_save(trainer));
    }
}

static int run_child(char **arguments)
{
    corpus_data[0] = arguments[3];
    run r = make_run(arguments[2], corpus_data);
    char *found = NULL;
    if (f8_checkpoint_find(arguments[4], &found) == FP8FLOW_OK) r.options.resume = found;
    r.options.output = arguments[4];
    r.options.keep_checkpoints = 2;
    r.options.steps = 1 << 20;
    r.until = 0;
    r.look = step_and_save;
    spread(&r, atoi(arguments[5]));
    fp8flow_status status = try_run(&r);
    fprintf(stderr, "child: %s\n", fp8flow_last_error());
    return status == FP8FLOW_OK ? 0 : 1;
}

/* Start this program again as the child; returns when it is about to save, and kills it `delay_us` later. */
static void kill_while_saving(const char *model, const char *output, const char *ranks, useconds_t delay_us)
{
    int ready[2], status;
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ready[1], STDOUT_FILENO);
        close(ready[0]);
        execl("/proc/self/exe", "test_checkpoint", "--save-until-killed", model, corpus_data[0], output, ranks,
              (char *)NULL);
        _exit(127);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1); /* nothing comes if the child fails: its message is on stderr */
    close(ready[0]);
    usleep(delay_us);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        fail_msg("the child ended with status %x", (unsigned)status);
}

static int64_t step_of(const char *path)
{
    return strtoll(strrchr(path, '-') + 1, NULL, 10);
}

static void test_kill_while_saving_never_loses_or_tears(void **state)
{
    (void)state;
    skip_on_cuda("starting CUDA takes longer than the steps that are cut short");
    int64_t newest = 0;
    run r = saving_run("out", 1);
    assert_ok(try_run(&r)); /* something to lose */
    newest = 1;
    /* On a slow machine few of the kills come late enough for a step to be complete. */
    for (int round = 0; round < 60 || (newest < 10 && round < 600); round++) {
        char *found = NULL;
        useconds_t delay = (useconds_t)(f8_random(4, 1, (uint64_t)round) % 80000);
        kill_while_saving(r.options.model, r.options.output, round % 3 == 2 ? "2" : "1", delay);
        assert_ok(f8_checkpoint_find(r.options.output, &found));
        if (load(found) != FP8FLOW_OK) fail_msg("round %d: %s", round, fp8flow_last_error());
        if (step_of(found) < newest) fail_msg("round %d: back from %d to %s", round, (int)newest, found);
        newest = step_of(found);
        free(found);
    }
    if (newest < 10) fail_msg("only %d steps were saved in 600 rounds", (int)newest);
    /* Whatever lies around, the next whole run leaves the complete steps and nothing else. */
    run last = r;
    last.options.resume = r.options.output;
    last.options.keep_checkpoints = 2;
    last.options.steps = newest + 2;
    last.until = 0;
    assert_ok(try_run(&last));
    assert_int_equal(count_steps(r.options.output), 2);
    f8_listing listing;
    assert_ok(f8_list_files(r.options.output, &listing));
    for (size_t i = 0; i < listing.num_names; i++)
        if (strstr(listing.names + listing.name[i], "tmp")) fail_msg("left: %s", listing.names + listing.name[i]);
    f8_listing_free(&listing);
}

#define checkpoint_test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "--save-until-killed") == 0) return run_child(argv);
    const struct CMUnitTest tests[] = {
        checkpoint_test(test_every_flipped_bit_is_found_and_named),
        checkpoint_test(test_missing_cut_and_grown_files_are_named),
        checkpoint_test(test_wrong_tensors_are_named),
        checkpoint_test(test_shards_in_the_wrong_place),
        folder_test(test_the_newest_complete_step_is_found),
        checkpoint_test(test_old_checkpoints_are_removed_and_strangers_stay),
        checkpoint_test(test_saving_over_a_step_replaces_it),
        checkpoint_test(test_a_step_is_never_absent_while_it_is_replaced),
        checkpoint_test(test_output_folders_of_any_name),
        checkpoint_test(test_full_disk_leaves_the_old_checkpoint),
        checkpoint_test(test_small_file_system),
        checkpoint_test(test_kill_while_saving_never_loses_or_tears),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
