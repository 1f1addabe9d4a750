#!/bin/sh
# run_fuzz.sh FUZZER... - run each libFuzzer program, fuzz_<name>, for FUZZ_SECONDS, starting from fuzz/corpus/<name>/.
# New inputs go to build/fuzz-corpus/<name>/; an input that crashes is kept there as crash-*.
set -u
status=0
[ $# -gt 0 ] || { echo "run_fuzz: no fuzzers" >&2; exit 1; }
for fuzzer in "$@"; do
    name=$(basename "$fuzzer")
    name=${name#fuzz_}
    kept=fuzz/corpus/$name
    found=build/fuzz-corpus/$name
    [ -d "$kept" ] || { echo "run_fuzz: $kept is missing: keep at least one input" >&2; status=1; continue; }
    mkdir -p "$found"
    echo "  FUZZ  $name, $FUZZ_SECONDS s"
    "$fuzzer" -artifact_prefix="$found/" -timeout=10 -rss_limit_mb=2048 -max_len=65536 \
        -max_total_time="$FUZZ_SECONDS" -print_final_stats=1 "$found" "$kept" </dev/null >"$found.log" 2>&1 && continue
    tail -n 60 "$found.log" >&2
    echo "run_fuzz: $name failed; log in $found.log, input in $found/" >&2
    status=1
done
exit $status
