#!/bin/sh
# run_fuzz.sh FUZZER... - replay fuzz/corpus/<name>/ through each libFuzzer program and, when FUZZ_SECONDS is set, fuzz
# on for that long. New inputs go to build/fuzz-corpus/<name>/; an input that crashes is kept there as crash-*.
set -u
status=0
[ $# -gt 0 ] || echo "no fuzzers (fuzz/fuzz_*.c)"
for fuzzer in "$@"; do
    name=$(basename "$fuzzer")
    kept=fuzz/corpus/${name#fuzz_}
    found=build/fuzz-corpus/$name
    mkdir -p "$found"
    set -- -artifact_prefix="$found/" -timeout=10 -rss_limit_mb=2048 -max_len=65536
    if [ -n "${FUZZ_SECONDS:-}" ]; then
        echo "  FUZZ  $name, $FUZZ_SECONDS s"
        set -- "$@" "$found"
        [ -d "$kept" ] && set -- "$@" "$kept"
        "$fuzzer" "$@" -max_total_time="$FUZZ_SECONDS" -print_final_stats=1 </dev/null >"$found.log" 2>&1
    elif [ -d "$kept" ]; then
        echo "  REPLAY  $name, $(find "$kept" -type f | wc -l) inputs"
        "$fuzzer" "$@" -runs=0 "$kept" </dev/null >"$found.log" 2>&1
    else
        echo "run_fuzz: $kept is missing: keep at least one input" >&2
        status=1
        continue
    fi
    [ $? -eq 0 ] && continue
    tail -n 60 "$found.log" >&2
    echo "run_fuzz: $name failed; log in $found.log, input in $found/" >&2
    status=1
done
exit $status
