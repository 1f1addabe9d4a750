#!/bin/sh
# check_style.sh - what a reviewer should not have to say: lengths, format, leftovers. CLANG_FORMAT names the formatter.
set -u
cd "$(dirname "$0")/.." || exit 1
failed=0

complain() # headline; the offenders come on standard input
{
    found=$(cat)
    [ -z "$found" ] && return
    printf 'check_style: %s\n%s\n' "$1" "$found" | sed '2,$s/^/    /' >&2
    failed=1
}

code=$(find src include cli tests fuzz lab python -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null | sort)
c_code=$(echo "$code" | grep '\.[ch]$')
texts=$(find Makefile README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md .ci .clang-format .clang-tidy docs tools \
    packaging tests -type f \( -name '*.[ch]' -o -name '*.sh' -o -name '*.md' -o -name '*.awk' -o -name '*.in' \
    -o -name '*.py' -o -name 'Makefile' -o -name '.clang-*' -o -path '.ci/*' \) 2>/dev/null | sort -u)

# Tests are flat lists of cases: only the hard limit is theirs.
# shellcheck disable=SC2086
complain "files over 700 lines (split them), or over 500 without a reason in the header comment:" <<END
$(awk '
    function judge() {
        if (lines > 700 || (lines > 500 && !reason && file !~ /^tests/)) print file ": " lines " lines"
    }
    FNR == 1 { judge(); file = FILENAME; reason = 0; header = 1 }
    { lines = FNR }
    header && /[Rr]eason/ { reason = 1 }
    /\*\// { header = 0 }
    END { judge() }' $code)
END
# shellcheck disable=SC2086
complain "files that do not open with a comment:" <<END
$(awk 'FNR == 1 && !/^\/\*/ { print FILENAME }' $code)
END
complain "two source files of one name (ar keeps only one of their objects):" <<END
$(find src -name '*.c' | sed 's|.*/||' | sort | uniq -d)
END
# shellcheck disable=SC2086
complain "lines that end in blanks, or tabs in C:" <<END
$(grep -nE '[[:blank:]]+$' $code $texts | sort -u; grep -n "$(printf '\t')" $code)
END
# shellcheck disable=SC2086
complain "lines over 120 columns:" <<END
$(LC_ALL=C.UTF-8 awk 'length($0) > 120 { print FILENAME ":" FNR }' $code Makefile tools/*)
END
# shellcheck disable=SC2086
complain "work left over:" <<END
$(grep -nwE '[T]ODO|[F]IXME|[X]XX' $code $texts | sort -u; grep -nE '^(<<<<<<<|>>>>>>>) ' $code $texts | sort -u)
END
complain "recipe names belong to src/recipe:" <<END
$(grep -rnE '"(deepseek|blockwise|tensorwise|flow)"' src --include='*.[ch]' --include='*.cu' | grep -v '^src/recipe/')
END

# Other versions format differently; only the pinned one judges.
case $("$CLANG_FORMAT" --version 2>/dev/null) in
*'version 14.'*)
    # shellcheck disable=SC2086
    complain "not formatted (run: $CLANG_FORMAT -i FILE):" <<END
$("$CLANG_FORMAT" --dry-run -Werror $c_code 2>&1 | sed -n 's/^\(.*:[0-9]*\):.*error.*/\1/p' | awk -F: '!seen[$1]++')
END
    ;;
*) echo "check_style: clang-format 14 not found, format not checked" >&2 ;;
esac
exit $failed
