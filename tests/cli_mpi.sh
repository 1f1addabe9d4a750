#!/bin/sh
# cli_mpi.sh - training under mpirun, with each MPI library that is installed: the same bits as with threads, resumed
# from one to the other; what the processes must agree on; and how a job ends when a rank is killed or stopped in a
# collective or in a save (tests/mpi_fault.c).
#
# FAULT_JOBS=50 kills that many jobs of each library, one after the other, instead of one for each kind.
set -u
. "$(dirname "$0")/support_mpi.sh"
fault=$(dirname "$program")/tests/mpi_fault.so
timeout_s=5
limit_s=10
broken=broken-$$
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
# Two groups of ranks that share the experts out, in the other recipes: processes against threads.
test_recipes()
{
    for recipe in bf16 tensorwise blockwise deepseek; do
        options="$small --recipe $recipe --ep 2 --dp 2 --steps 2"
        if [ ! -e "threads-$recipe" ]; then
            # shellcheck disable=SC2086
            run "$program" train $options --ranks 4 --output "threads-$recipe"
        fi
        # shellcheck disable=SC2086
        run $launch -n 4 "$program" train $options --output "$library-$recipe"
        check "$library: $recipe in 2 x 2 ranks: the same bits as threads" \
            same_run "threads-$recipe" "$library-$recipe"
    done
}
# What all processes have to say, one says; and nobody waits for one that cannot take part.
says() # NAME PATTERN
{
    check "$library: $1 ends the job" [ "$code" -ne 0 -a "$code" -ne 124 ]
    check "$library: $1: one line" [ "$(grep -c '^fp8flow' "$logs/err")" -eq 1 ]
    check "$library: $1: what it says" grep -qE "^fp8flow $2" "$logs/err"
}
others() # NAME PATTERN OPTION...: rank 3 has the options, too
{
    name=$1
    pattern=$2
    shift 2
    # shellcheck disable=SC2086
    run $launch -n 3 "$program" train $small --steps 4 : -n 1 "$program" train $small --steps 4 "$@"
    says "$name" "$pattern"
}
test_agreement()
{
    others options 'train: rank 3 has other options than rank 0' --lr 0.01
    others data 'train: rank 3 has other data than rank 0' --data other.txt
    others configuration 'train: rank 3 has another configuration of the model than rank 0' --model other.json
    others 'a split of the ranks' 'train: rank 3 has other options than rank 0' --ep 2
    others usage 'train: rank 3: --steps: "x" is not' --steps x
    # shellcheck disable=SC2086
    run $launch -n 3 "$program" train $small --steps 4 --ranks 4
    says --ranks 'train: --ranks 4: mpirun has started 3 ranks'
    # shellcheck disable=SC2086
    run $launch -n 3 "$program" train $small --steps 4 --output half
    says 'a folder of another run' 'train: --output: "half" holds checkpoints'
    # shellcheck disable=SC2086
    run $launch -n 4 "$program" train $small --steps 4 --data missing.txt
    says 'missing data' 'train: rank 0: missing.txt: cannot open'
    # shellcheck disable=SC2086
    run $launch -n 2 env FP8FLOW_MPI=none "$program" train $small --steps 1
    check "$library: processes that have nothing to do with each other" [ "$code" -eq 0 ]
    # shellcheck disable=SC2086
    run env SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 FP8FLOW_MPI=$library "$program" train $small --steps 1
    says 'srun without MPI' 'train: rank 0: run_mpi_ranks: 2 processes were started, 1 of them'
    # shellcheck disable=SC2086
    run $launch -n 3 env FP8FLOW_MPI=lam "$program" train $small --steps 1
    says 'an unknown library' 'train: FP8FLOW_MPI is "lam"'
    # Folders of one name.
    mkdir -p elsewhere/apart && cp text.txt elsewhere
    # shellcheck disable=SC2086
    run $launch -wdir "$work" -n 1 "$program" train $small --steps 4 --output apart : \
        -wdir "$work/elsewhere" -n 1 "$program" train $small --steps 4 --output apart
    says 'another folder' 'train: rank 1 has another folder of --output than rank 0'
    check "$library: another folder: nothing is left" [ ! -e apart ]
    # Checkpoints of four ranks that two cannot read.
    for file in model-00003 optimizer-00002; do
        rm -rf damaged && cp -r half damaged
        truncate -s -100 damaged/step-00000002/$file-of-00004.safetensors
        # shellcheck disable=SC2086
        run $launch -n 2 "$program" train $small --steps 4 --resume damaged --output damaged
        says "a truncated $file" "train: rank 0: damaged/.*$file-of-00004.safetensors: "
        rm damaged/step-00000002/$file-of-00004.safetensors
        # shellcheck disable=SC2086
        run $launch -n 2 "$program" train $small --steps 4 --dp 2 --resume damaged --output damaged
        says "no $file" "train: rank 0: damaged/.*$file-of-00004.safetensors: cannot open"
    done
    # A checkpoint that rank 1 cannot write.
    # shellcheck disable=SC2016,SC2086
    run $launch -n 2 sh -c '[ "${OMPI_COMM_WORLD_RANK:-${PMI_RANK}}" = 0 ] || ulimit -f 9000; exec "$@"' sh \
        "$program" train $small --steps 2 --output full
    says 'a full disk' 'train: rank 1: full/step-00000002.tmp/.*cannot write: File too large \(step 2\)'
    check "$library: a full disk: no checkpoint" [ ! -e full/step-00000002 ]
    rm -rf full
    # The program without its plugins.
    mkdir -p bare && cp "$program" bare/fp8flow
    # shellcheck disable=SC2086
    run env -u LD_LIBRARY_PATH $launch -n 2 bare/fp8flow train $small --steps 1
    check "$library: no plugin: ends the job" [ "$code" -ne 0 -a "$code" -ne 124 ]
    check "$library: no plugin: what it says" grep -q "rank 0: .*libfp8flow_mpi_$library.so cannot be loaded" "$logs/err"
    # shellcheck disable=SC2086
    run $launch -n 3 "$program" compare $small --steps 4
    says compare 'compare: runs in one process'
}

# A signal to one of the processes ends the job in order.
test_signal()
{
    # shellcheck disable=SC2086
    timeout -k 5 60 $launch -n 3 "$program" train $small --batch 6 --output "$library-signal" --steps 100000 \
        --save-every 2 </dev/null >"$logs/out" 2>"$logs/err" &
    owner=$!
    tries=0
    until [ -e "$library-signal/step-00000002/COMPLETE" ] || [ "$tries" -ge 300 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    kill -"$1" "$(processes_of "$library-signal" | tail -n 1)"
    wait "$owner"
    code=$?
    owner=
    check "$library: SIG$1 to one process ends the job well" [ "$code" -eq 0 ]
    check "$library: SIG$1: the job says where it has stopped" grep -q '^stopped at step' "$logs/out"
    check "$library: SIG$1: it is saved there" [ -n "$(newest "$library-signal")" ]
    rm -rf "$library-signal"
}

# ---- Faults ----

processes_of() # FOLDER
{
    for process in /proc/[0-9]*; do
        # Not mpirun, nor what stands before it, whose command lines have the same words.
        tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -q "^[^ ]*fp8flow train .*--output $1 " &&
            basename "$process"
    done
}
is_gone() # FOLDER: a killed process takes a moment
{
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        [ -z "$(processes_of "$1")" ] && return
        sleep 0.1
    done
    return 1
}
newest() # FOLDER: of its complete checkpoints
{
    for checkpoint in "$1"/step-????????; do
        [ -e "$checkpoint/COMPLETE" ] && last=${checkpoint##*-}
    done
    echo "$last" | sed 's/^0*//'
}
# A job in which `FAULT` happens. It must end by itself, within the limit, and go on from its last complete checkpoint.
disturb() # LIMIT RANK SIGNAL WHAT COUNT DELAY
{
    limit=$1
    shift
    name="$library: signal $2 for rank $1 in $3 $4 + $5 us"
    rm -rf $broken mark
    # shellcheck disable=SC2086
    run $launch -n 4 env FAULT="$*" FAULT_AFTER=$broken/step-00000002/COMPLETE FAULT_MARK="$work/mark" \
        FAULT_PLUGIN="$plugin" LD_PRELOAD="$fault" ./bin/fp8flow train $small --output $broken \
        --timeout $timeout_s --steps 100000 --save-every 2 --keep 3
    end=$(date +%s.%N)
    seconds=$(echo "$end $(stat -c %.9Y mark 2>/dev/null || echo 0)" | awk '{ printf "%.1f", $1 - $2 }')
    lines=$(grep -c '^fp8flow' "$logs/err")
    # A killed rank is reported by mpirun, which ends the others at once: Open MPI names the rank, MPICH the process.
    said=$(grep -m 1 '^fp8flow' "$logs/err" || cat "$logs/err" "$logs/out" |
        grep -m 1 -E "process rank $1 with PID .* on signal 9|Killed \(signal 9\)|BAD TERMINATION")
    check "$name: somebody says it" [ -n "$said" ]
    check "$name: ends" [ "$code" -ne 0 -a "$code" -ne 124 ]
    check "$name: in time, not $seconds s" [ "${seconds%.*}" -lt "$limit" ]
    check "$name: at most one line, not $lines" [ "$lines" -le 1 ]
    check "$name: no process is left" is_gone $broken
    last=
    last=$(newest $broken)
    check "$name: a complete checkpoint" [ -n "$last" ]
    # shellcheck disable=SC2086
    run $launch -n 4 "$program" train $small --output $broken --resume $broken --steps $((last + 1))
    check "$name: goes on" [ "$code" -eq 0 ]
    [ -z "${FAULT_JOBS:-}" ] || echo "$name: ended in $seconds s, resumed after step $last; $said"
}
names_all() # LINE
{
    echo "$1" | grep -qxE 'fp8flow train: rank [013] has waited [0-9.]+ s in [a-z_]+ for rank 2 \(step [0-9]+\)'
}
test_faults()
{
    mkdir -p bin
    plugin=$(dirname "$program")/libfp8flow_mpi_$library.so
    cp "$program" bin/fp8flow
    cp "$fault" "bin/libfp8flow_mpi_$library.so"
    job=0
    while [ "$job" -lt "${FAULT_JOBS:-3}" ]; do
        rank=$(((job + 2) % 4))
        delay=$((job * 53 % 400))
        case $((job % 3)) in
        0) disturb $limit_s $rank 9 exchange $((1 + job * 71 % 200)) $delay ;;
        1) disturb $limit_s $rank 9 all_reduce $((1 + job * 37 % 200)) $delay ;;
        2) disturb $limit_s $rank 9 save $((1 + job * 7 % 12)) $delay ;;
        esac
        job=$((job + 1))
    done
    job=0
    while [ "$job" -lt $((${FAULT_JOBS:-4} / 4)) ]; do
        disturb $((2 * timeout_s)) 2 19 all_reduce $((1 + job * 37)) 0
        check "$library: the line says who waits, where and when" names_all "$said"
        job=$((job + 1))
    done
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
    if [ -z "${FAULT_JOBS:-}" ]; then
        test_recipes
        test_agreement
        test_signal TERM
        test_signal USR1
        # shellcheck disable=SC2086
        run $launch -n 2 "$program" bench comm --device cpu --repeat 1 --megabytes 1 --tokens 64 --recipes bf16,flow
        check "$library: bench comm prints one table" [ "$(grep -cE '^flow +[0-9]+ ' "$logs/out")" -eq 1 ]
    fi
    test_faults
}

sed 1d text.txt >other.txt
# shellcheck disable=SC2086
run "$program" train $small --steps 4 --ranks 4 --output threads
check 'threads train' [ "$code" -eq 0 ]
# shellcheck disable=SC2086
run "$program" train $small --steps 2 --ranks 4 --output half
cp half/step-00000002/config.json other.json && echo >>other.json
each_library test_library
run "$program" doctor
check 'doctor names what can be loaded' grep -qE '^MPI +(yes +(Open MPI|MPICH) [0-9]|no )' "$logs/out"
finish
