#!/bin/sh
# run_sanitizer.sh - test programs under the tools of compute-sanitizer, at most JOBS=4 at once.
#
# SANITIZER is the program, TOOLS the list. The programs send each 7th (EVERY=7) call of an operator to the GPU: kernels
# run up to a hundred times slower here. For memcheck each array is an allocation of its own, with a gap behind it.
set -u
export FP8FLOW_TEST_DEVICE=cuda FP8FLOW_TEST_EVERY="${EVERY:-7}" OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
limit_s=${TEST_LIMIT_S:-300}

run_one() # tool, program: one line, the report where something was found
{
    name="$1 $(basename "$2")"
    log=$(mktemp) || exit 1
    start=$(date +%s)
    options=
    if [ "$1" = memcheck ]; then
        options="--padding 512"
        export FP8FLOW_TEST_MEMORY=exact
    fi
    # Each block of a kernel that works with the copy engine has some twenty barriers of its own.
    [ "$1" != synccheck ] || options="--num-cuda-barriers 65536"
    # shellcheck disable=SC2086
    timeout -k 10 "$limit_s" "$SANITIZER" --tool "$1" --error-exitcode 9 --print-limit 20 $options "$2" \
        </dev/null >"$log" 2>&1
    status=$?
    case $status in
    0) verdict=ok ;;
    9) verdict=FOUND ;;
    124) verdict="FAIL (stopped after $limit_s s)" ;;
    *) verdict="FAIL (exit status $status)" ;;
    esac
    {
        printf '  %-36s %s, %d s\n' "$name" "$verdict" $(($(date +%s) - start))
        [ $status -eq 0 ] || grep -v '^\[ \(RUN   \|      OK\)' "$log" | head -n 100
    } >"$log.report"
    cat "$log.report"
    rm -f "$log" "$log.report"
    [ $status -eq 0 ]
}

if [ "${1:-}" = --one ]; then
    run_one "$2" "$3"
    exit
fi
if [ $# -eq 0 ] || ! command -v "${SANITIZER:=compute-sanitizer}" >/dev/null; then
    echo "run_sanitizer: no test programs, or no $SANITIZER (SANITIZER=/path/to/compute-sanitizer)" >&2
    exit 1
fi
export SANITIZER
for tool in $TOOLS; do
    for program in "$@"; do echo "$tool $program"; done
done | xargs -P "${JOBS:-4}" -n 2 "$0" --one
