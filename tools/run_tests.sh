#!/bin/sh
# run_tests.sh - run test programs (cmocka, or scripts that exit 0), at most JOBS=2 at once.
#
# One line per program; the whole output of a program that failed. The last line counts test functions: what cmocka
# reports, or one for a script. A program that dies without a report counts as one failure. No program is a failure:
# a mistyped list must not look like success. With TALLY=file, the counts are appended there ("passed failed skipped").
set -u
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
# Programs share the cores: threads that wait for work must not spin.
export OMP_WAIT_POLICY=passive
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1}"
export ASAN_OPTIONS="${ASAN_OPTIONS:-allocator_may_return_null=1}"
limit_s=${TEST_LIMIT_S:-900}

run_one() # program: writes LOGS/<name>.count
{
    name=$(basename "$1")
    log=$LOGS/$name.log
    start=$(date +%s)
    case $1 in */*) program=$1 ;; *) program=./$1 ;; esac
    timeout -k 10 "$limit_s" "$program" </dev/null >"$log" 2>&1
    status=$?
    counts=$(awk -v status=$status '
        /^\[  PASSED  \] [0-9]+ test/ { passed += $4; seen = 1 }
        /^\[  FAILED  \] [0-9]+ test/ { failed += $4; seen = 1 }
        /^\[  SKIPPED \] [0-9]+ test/ { skipped += $4 }
        END {
            if (!seen && status == 0) passed = 1
            if (status != 0 && !failed) failed = 1
            print passed + 0, failed + 0, skipped + 0
        }' "$log")
    echo "$counts" >"$LOGS/$name.count"
    seconds=$(($(date +%s) - start))
    if [ $status -eq 0 ]; then
        printf '  ok    %-28s %4d tests %4d s\n' "$name" "${counts%% *}" $seconds
        return
    fi
    reason="exit status $status"
    [ $status -eq 124 ] && reason="stopped after $limit_s s"
    # One write, so that the reports of two programs do not mix.
    printf '  FAIL  %-28s %s\n%s\n' "$name" "$reason" "$(grep -v '^\[ \(RUN   \|      OK\)' "$log" | tail -n 200)"
}

if [ "${1:-}" = --one ]; then
    run_one "$2"
    exit 0
fi
if [ $# -eq 0 ]; then
    echo "run_tests: no test programs" >&2
    exit 1
fi
LOGS=$(mktemp -d) || exit 1
trap 'rm -rf "$LOGS"' EXIT
export LOGS
printf '%s\n' "$@" | xargs -P "${JOBS:-2}" -n 1 "$0" --one
totals=$(cat "$LOGS"/*.count | awk '{ p += $1; f += $2; s += $3 } END { print p + 0, f + 0, s + 0 }')
[ -n "${TALLY:-}" ] && echo "$totals" >>"$TALLY"
programs=$(find "$LOGS" -name '*.count' | wc -l)
echo "$totals" | {
    read -r passed failed skipped
    [ "$programs" -eq $# ] || failed=$((failed + $# - programs))
    echo "$passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")"
    [ "$failed" -eq 0 ]
}
