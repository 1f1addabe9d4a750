/* fp8flow_status.h - status codes and the message of the last failure; what marks an exported function.
 *
 * Every function of the library that can fail returns a status and leaves a one-line message with its name and the
 * numbers in fp8flow_last_error() of the calling thread. Nothing prints, exits or aborts.
 */
#ifndef FP8FLOW_STATUS_H
#define FP8FLOW_STATUS_H

#if defined(__GNUC__)
#define FP8FLOW_API __attribute__((visibility("default")))
#else
#define FP8FLOW_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Status codes; the values are part of the ABI. */
#define FP8FLOW_STATUS_LIST(X)                       \
    X(OK, 0, "success")                              \
    X(EINVAL, 1, "invalid argument")                 \
    X(ESHAPE, 2, "shape not allowed")                \
    X(ENOMEM, 3, "out of memory")                    \
    X(EBACKEND, 4, "backend failure")                \
    X(ECOMM, 5, "communication failure")             \
    X(EIO, 6, "input or output failure")             \
    X(EFORMAT, 7, "malformed file or configuration") \
    X(ENOSYS, 8, "not available in this build or on this machine")

typedef enum {
#define FP8FLOW_X(name, value, text) FP8FLOW_##name = value,
    FP8FLOW_STATUS_LIST(FP8FLOW_X)
#undef FP8FLOW_X
} fp8flow_status;

/* Name ("EINVAL") of a status; "unknown" for other values. Never NULL. */
FP8FLOW_API const char *fp8flow_status_name(fp8flow_status status);

/* Message of the last failed call on this thread; "" if none. Valid until the next failure. */
FP8FLOW_API const char *fp8flow_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
