#!/bin/sh
# check_matrix.sh FILE.c... - every source with gcc and clang as C11 and C17, every warning an error; each public header
# alone as C11 and as C++17. Called by the Makefile with BASE_CFLAGS, NO_OPENMP and CLANG. Syntax only.
set -u
failed=0
flags="$BASE_CFLAGS -Itests -Werror -fsyntax-only"

try() # what, command...
{
    what=$1
    shift
    if "$@"; then echo "  ok    $what"; else echo "  FAIL  $what"; failed=1; fi
}

for compiler in gcc "$CLANG"; do
    for standard in c11 c17; do
        # OpenMP only under gcc, as in the build.
        openmp=$([ "$compiler" = gcc ] && echo -fopenmp || echo "$NO_OPENMP")
        # shellcheck disable=SC2086
        try "$(basename "$compiler") $standard, $# files" "$compiler" -std=$standard $flags $openmp "$@"
    done
    for header in include/*.h; do
        strict="-Wall -Wextra -Wpedantic -Werror -fsyntax-only -Iinclude"
        for language in c/c11 c++/c++17; do
            # shellcheck disable=SC2086
            try "$(basename "$compiler") ${language#*/} $header alone" "$compiler" -x "${language%%/*}" \
                -std="${language#*/}" $strict - <<END
#include "${header#include/}"
END
        done
    done
done
exit $failed
