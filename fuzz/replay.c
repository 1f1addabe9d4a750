/* replay.c - main of a fuzz target without libFuzzer: runs every file below the given paths, once each. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "io/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static int replay_file(const char *path)
{
    f8_buffer content;
    if (f8_file_read_all(path, (size_t)1 << 30, &content) != FP8FLOW_OK) {
        fprintf(stderr, "%s\n", fp8flow_last_error());
        return 1;
    }
    /* A copy of the exact size, so that sanitizers see a read beyond its end. */
    uint8_t *exact = malloc(content.size ? content.size : 1);
    if (!exact) return 1;
    for (size_t i = 0; i < content.size; i++) exact[i] = (uint8_t)content.data[i];
    LLVMFuzzerTestOneInput(exact, content.size);
    free(exact);
    f8_buffer_free(&content);
    return 0;
}

static int replay_folder(const char *folder, size_t *num_files)
{
    f8_listing listing;
    int failed = 0;
    if (f8_list_files(folder, &listing) != FP8FLOW_OK) {
        fprintf(stderr, "%s\n", fp8flow_last_error());
        return 1;
    }
    for (size_t i = 0; i < listing.num_names; i++) {
        char *path;
        if (f8_path_join(folder, listing.names + listing.name[i], &path) != FP8FLOW_OK) return 1;
        failed |= replay_file(path);
        free(path);
    }
    *num_files += listing.num_names;
    f8_listing_free(&listing);
    return failed;
}

int main(int count, char **arguments)
{
    size_t num_files = 0;
    int failed = 0;
    for (int i = 1; i < count; i++) {
        struct stat info;
        if (stat(arguments[i], &info) == 0 && S_ISDIR(info.st_mode)) failed |= replay_folder(arguments[i], &num_files);
        else {
            failed |= replay_file(arguments[i]);
            num_files++;
        }
    }
    printf("%zu inputs replayed\n", num_files);
    return failed || num_files == 0;
}
