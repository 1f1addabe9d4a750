#!/bin/sh
# cli_mpi.sh - training under mpirun, with each MPI library that is installed: the same bits as with threads, resumed
# from one to the other, and how a job ends when a rank is killed, stopped or given something else.
set -u
. "$(dirname "$0")/support.sh"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
small='--data text.txt --batch 8 --micro-batch 1 --sequence-length 64 --validate-every 2 --validation-sequences 5'
small="$small --threads 1 --device cpu"

run() # COMMAND...: exit code in `code`
{
    timeout -k 5 120 "$@" </dev/null >"$logs/out" 2>"$logs/err"
    code=$?
}
# The metrics without times.
same_run() # FOLDER FOLDER
{
    for folder in "$1" "$2"; do
        sed -E 's/"[a-z_]*(seconds|tokens_per_second)": ?[0-9.e+-]+//g' "$folder/metrics.jsonl" >"$folder.lines"
    done
    cmp "$1.lines" "$2.lines" && diff -r -x metrics.jsonl "$1" "$2" >"$logs/differences"
}
# The process of rank 2 among those whose output folder is $1.
process_of_rank_2()
{
    for process in /proc/[0-9]*; do
        cat "$process/cmdline" 2>/dev/null | tr '\0' ' ' | grep -q "train .*--output $1 " || continue
        tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qE '^(OMPI_COMM_WORLD|PMI)_RANK=2$' && basename "$process"
    done
}
# Send rank 2 a signal in the middle of a run; the job must end by itself, with an error, and leave no process.
disturb() # SIGNAL FOLDER
{
    # shellcheck disable=SC2086
    timeout -k 5 60 $launch -n 4 "$program" train --output "$2" $small --timeout 5 --steps 100000 --save-every 5 \
        </dev/null >"$logs/out" 2>"$logs/err" &
    owner=$!
    tries=0
    until [ -e "$2/step-00000005" ] || [ "$tries" -ge 300 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    victim=$(process_of_rank_2 "$2")
    kill "-$1" "$victim"
    wait "$owner"
    code=$?
    owner=
    # 124: only our own timeout ended it
    check "$library: SIG$1 of a rank ends the job" [ "$code" -ne 0 -a "$code" -ne 124 ]
    tries=0
    while [ -d "/proc/$victim" ] && [ "$tries" -lt 50 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    check "$library: SIG$1 of a rank leaves no process" [ ! -d "/proc/$victim" ]
    check "$library: SIG$1 leaves a complete checkpoint" [ -e "$2/step-00000005/COMPLETE" ]
}
test_library()
{
    # shellcheck disable=SC2086
    run $launch -n 4 "$program" train $small --steps 4 --output "$library"
    check "$library: trains" [ "$code" -eq 0 ]
    check "$library: the same bits as threads" same_run threads "$library"
    cp -r half "$library-resumed"
    # shellcheck disable=SC2086
    run $launch -n 4 "$program" train $small --steps 4 --resume "$library-resumed" --output "$library-resumed" --keep 1
    check "$library: goes on from a checkpoint of threads" [ "$code" -eq 0 ]
    # shellcheck disable=SC2086
    run $launch -n 3 "$program" train $small --steps 4 : -n 1 "$program" train $small --steps 4 --lr 0.01
    check "$library: other options end the job" [ "$code" -ne 0 ]
    check "$library: one line names the rank" [ "$(grep -c 'fp8flow train: rank 3 has other options' "$logs/err")" -eq 1 ]
    # shellcheck disable=SC2086
    run $launch -n 2 "$program" bench comm --device cpu --repeat 1 --megabytes 1 --tokens 64 --recipes bf16,flow
    check "$library: bench comm prints one table" [ "$(grep -cE '^flow +[0-9]+ ' "$logs/out")" -eq 1 ]
    disturb KILL "$library-killed"
    disturb STOP "$library-stopped"
    check "$library: the line names the collective and the rank" grep -qE 'has waited 5 s for rank' "$logs/err"
}

# shellcheck disable=SC2086
run "$program" train $small --steps 4 --ranks 4 --output threads
check 'threads train' [ "$code" -eq 0 ]
# shellcheck disable=SC2086
run "$program" train $small --steps 2 --ranks 4 --output half
for library in openmpi mpich; do
    plugin=$(dirname "$program")/libfp8flow_mpi_$library.so
    launch=mpirun.$library
    if [ ! -e "$plugin" ] || ! command -v "$launch" >/dev/null; then
        skip "$library is not installed"
        continue
    fi
    [ "$library" = mpich ] || launch="$launch --oversubscribe"
    test_library
done
finish
