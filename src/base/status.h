/* status.h - how every function of the library reports failure.
 *
 * A function returns fp8flow_status. The first function that sees a problem records one line with the
 * operator and the numbers (F8_FAIL, F8_REQUIRE); everybody above forwards (F8_TRY). Functions that own
 * something use F8_TRY_GOTO and end with a single `fail:` label.
 */
#ifndef F8_BASE_STATUS_H
#define F8_BASE_STATUS_H

#include "fp8flow_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Record a formatted message for this thread and return `status`. Long messages are cut at 1023 bytes;
 * control characters (a hostile file name, a key of a JSON file) are replaced by '?'. */
fp8flow_status f8_fail(fp8flow_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prefix the message of this thread with "prefix: "; returns `status`. For callers that know a name
 * (a file, a tensor, a layer) which the failing function did not. */
fp8flow_status f8_fail_in(fp8flow_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define F8_FAIL(code, ...) f8_fail(FP8FLOW_##code, __VA_ARGS__)

/* Pastes `code` itself instead of using F8_FAIL: where <errno.h> is included, EIO and EINVAL are macros, and an
 * argument that goes through a second macro is expanded to its number first. Returns the constant, so that an analyser
 * sees that a failure is no success. */
#define F8_REQUIRE(condition, code, ...)          \
    do {                                          \
        if (!(condition)) {                       \
            f8_fail(FP8FLOW_##code, __VA_ARGS__); \
            return FP8FLOW_##code;                \
        }                                         \
    } while (0)

#define F8_TRY(expression)                                     \
    do {                                                       \
        fp8flow_status f8_try_status = (expression);           \
        if (f8_try_status != FP8FLOW_OK) return f8_try_status; \
    } while (0)

#define F8_TRY_GOTO(status, expression)        \
    do {                                       \
        (status) = (expression);               \
        if ((status) != FP8FLOW_OK) goto fail; \
    } while (0)

#ifdef __cplusplus
}
#endif

#endif
