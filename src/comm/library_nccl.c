/* library_nccl.c - see library_nccl.h. */
#include "comm/library_nccl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* The oldest version in which a communicator can be aborted from another thread while work is under way. */
enum { OLDEST_VERSION = NCCL_VERSION(2, 19, 0) };

static f8_nccl_library loaded;
static char why_not[256]; /* empty: `loaded` is complete */

/* The second place is the toolkit's, which the loader does not search by itself. */
static void *open_library(void)
{
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library) return library;
    (void)snprintf(why_not, sizeof why_not, "%.200s", dlerror());
    return dlopen("/usr/local/cuda/lib64/libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
}

/* C has no conversion from a data pointer to a function pointer; their bits are the same where there is dlsym. */
static void find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    if (!symbol) (void)snprintf(why_not, sizeof why_not, "libnccl.so.2 has no %s", name);
}

/* Never unloaded: NCCL has threads of its own. */
static void load(void)
{
    void *library = open_library();
    if (!library) return;
    *why_not = 0;
#define F8_X(name) find(library, "nccl" #name, &loaded.name);
    F8_NCCL_FUNCTIONS(F8_X)
#undef F8_X
    if (*why_not) return;
    if (loaded.GetVersion(&loaded.version) != ncclSuccess)
        (void)snprintf(why_not, sizeof why_not, "libnccl.so.2 does not tell its version");
    else if (loaded.version < OLDEST_VERSION)
        (void)snprintf(why_not, sizeof why_not, "libnccl.so.2 is of version code %d, at least %d (2.19) is needed",
                       loaded.version, OLDEST_VERSION);
}

fp8flow_status f8_nccl_load(const f8_nccl_library **library)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, load);
    *library = &loaded;
    F8_REQUIRE(!*why_not, ENOSYS, "%s", why_not);
    return FP8FLOW_OK;
}
