/* library_nccl.h - the functions of NCCL that are used, as found in the library at run time. */
#ifndef F8_COMM_LIBRARY_NCCL_H
#define F8_COMM_LIBRARY_NCCL_H

#include <nccl.h>

#include "base/status.h"

#define F8_NCCL_FUNCTIONS(X) \
    X(GetVersion)            \
    X(GetUniqueId)           \
    X(GetErrorString)        \
    X(GetLastError)          \
    X(CommInitRankConfig)    \
    X(CommGetAsyncError)     \
    X(CommDestroy)           \
    X(CommAbort)             \
    X(GroupStart)            \
    X(GroupEnd)              \
    X(Send)                  \
    X(Recv)                  \
    X(AllReduce)             \
    X(Reduce)                \
    X(ReduceScatter)         \
    X(AllGather)             \
    X(Broadcast)

typedef struct {
#define F8_X(name) __typeof__(nccl##name) *name;
    F8_NCCL_FUNCTIONS(F8_X)
#undef F8_X
    int version; /* 22809 is 2.28.9 */
} f8_nccl_library;

/* Loaded by the first call, for the rest of the program; any thread. ENOSYS with the reason. */
fp8flow_status f8_nccl_load(const f8_nccl_library **library);

#endif
