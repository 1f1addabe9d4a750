# support.sh - what the scripts that test the program share; they source it from the repository's root. It finds the
# program ($1, or FP8FLOW), makes an empty folder to work in (removed at the end) and counts.
#
# A script that starts a process in the background keeps its id in `owner` until it has ended.
program=${1:-${FP8FLOW:-build/release/fp8flow}}
case $program in /*) ;; *) program=$PWD/$program ;; esac
[ -x "$program" ] || {
    echo "$0: $program is not a program" >&2
    exit 2
}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"

root=$(mktemp -d) || exit 2
owner=
trap '[ -n "$owner" ] && kill -KILL "$owner" 2>/dev/null; chmod -R u+rwx "$root"; rm -rf "$root"' EXIT
trap 'exit 130' INT TERM
logs=$root/logs
work=$root/work
mkdir "$logs" "$work"
cd "$work" || exit 2
awk 'BEGIN { for (i = 0; i < 4000; i++) print "line", i, "of a text that is long enough to train on" }' >text.txt

passed=0
failed=0
ok()
{
    passed=$((passed + 1))
}
wrong() # name reason
{
    failed=$((failed + 1))
    echo "FAILED $1: $2"
}
check() # NAME CONDITION...
{
    what=$1
    shift
    if "$@"; then ok; else wrong "$what" "$*; $(tail -n 1 "$logs/err" | cut -c 1-200)"; fi
}

# The last lines of a script: the counts in cmocka's words, for run_tests.sh, and the exit status.
# For what this machine cannot show: said and counted.
skip() # NAME
{
    skipped=$((${skipped:-0} + 1))
    echo "[  SKIPPED ] $*"
}

finish()
{
    echo "[  PASSED  ] $passed test(s)."
    [ "${skipped:-0}" -eq 0 ] || echo "[  SKIPPED ] $skipped test(s)."
    [ "$failed" -eq 0 ] || echo "[  FAILED  ] $failed test(s), listed below:"
    [ "$failed" -eq 0 ]
}
