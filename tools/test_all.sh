#!/bin/sh
# test_all.sh MAKE - the stages of `make test`. All of them run, also after a failure; the last line counts the tests of
# all stages, a stage without test functions (lint, matrix) counting as one.
set -u
make=$1
TALLY=$(mktemp) || exit 1
trap 'rm -f "$TALLY"' EXIT
export TALLY
failed_stages=

stage() # name, make arguments...
{
    name=$1
    shift
    start=$(date +%s)
    lines=$(wc -l <"$TALLY")
    echo "== $name"
    if $make "$@"; then status=0; else status=1; fi
    [ "$(wc -l <"$TALLY")" -gt "$lines" ] || echo "$((1 - status)) $status 0" >>"$TALLY"
    [ $status -eq 0 ] || failed_stages="$failed_stages $name"
    echo "== $name: $([ $status -eq 0 ] && echo ok || echo FAILED), $(($(date +%s) - start)) s"
}

stage unit WERROR=1 check
stage mirror check-mirror
stage long check-long
stage command-line check-cli
stage mpi check-mpi
stage asan-ubsan ASAN=1 UBSAN=1 check check-mpi
stage tsan tsan
stage cuda check-cuda
stage tools check-tools
stage install check-install
stage lint lint
stage matrix matrix
stage fuzz-regress fuzz-regress

[ -z "$failed_stages" ] || echo "failed:$failed_stages"
awk -v stages="$failed_stages" '
    { passed += $1; failed += $2; skipped += $3 }
    END {
        # A stage can fail outside its tests (a build that breaks): that is a failure too.
        if (stages != "" && !failed) failed = 1
        printf "%d passed, %d failed%s\n", passed, failed, skipped ? ", " skipped " skipped" : ""
    }' "$TALLY"
[ -z "$failed_stages" ]
