#!/bin/sh
# check_symbols.sh BUILD_DIR - what the compiled library shows and uses. For a release build: sanitizers add their own.
#
#   libfp8flow.so exports fp8flow_* and nothing else; every global of libfp8flow.a is fp8flow_* or f8_*;
#   no object prints, exits or aborts; no operator allocates (src/ops but its context and traces).
set -u
build=$1
failed=0

complain() # headline; the offenders come on standard input
{
    found=$(cat)
    [ -z "$found" ] && return
    printf 'check_symbols: %s\n%s\n' "$1" "$found" | sed '2,$s/^/    /' >&2
    failed=1
}

# "file: symbol" of every undefined reference whose name matches the pattern.
references() # pattern, objects...
{
    pattern=$1
    shift
    for object in "$@"; do
        nm -u "$object" | awk -v file="${object#"$build"/}" -v pattern="^($pattern)(@.*)?\$" \
            '$2 ~ pattern { print file ": " $2 }'
    done
}

for library in "$build/libfp8flow.so" "$build/libfp8flow.a"; do
    [ -f "$library" ] || { echo "check_symbols: $library is missing" >&2; exit 1; }
done
complain "libfp8flow.so exports more than fp8flow_*:" <<END
$(nm -D --defined-only "$build/libfp8flow.so" | awk '$NF !~ /^fp8flow_/ { print $NF }')
END
complain "globals of libfp8flow.a that are not fp8flow_* or f8_*:" <<END
$(nm -g --defined-only "$build/libfp8flow.a" | awk 'NF == 3 && $3 !~ /^(fp8flow|f8)_/ { print $3 }')
END
objects=$(find "$build/src" -name '*.o' | sort)
prints='v?printf|v?fprintf|v?dprintf|puts|fputs|putchar|putc|fputc|perror|__v?f?printf_chk|stdout|stderr'
ends='_?exit|_Exit|quick_exit|abort|__assert_fail|raise|kill|system'
# Paths without spaces: they are ours.
# shellcheck disable=SC2086
complain "the library never prints, exits or aborts:" <<END
$(references "$prints|$ends" $objects)
END
# shellcheck disable=SC2046
complain "operators do not allocate (use f8_scratch):" <<END
$(references 'malloc|calloc|realloc|aligned_alloc|posix_memalign|free|strdup' \
    $(find "$build/src/ops" -name '*.o' ! -name ops.o ! -name trace.o | sort))
END
exit $failed
