#!/bin/sh
# convergence.sh - the convergence comparison of docs/measurements: one model in four recipes, BF16 with two seeds.
#
#   tools/convergence.sh RESULTS
#
# The runs go on in the background, in WORK: each GPU takes the next run until none is left. The script follows them for
# at most LIMIT seconds, then joins what is finished and puts the report, compare.json, the table, the logs and the
# metrics into RESULTS. Called again it follows the same runs; after a restart of the machine, those that were finished
# are not made again (EARLIER: a folder with a compare.json of before, when WORK is gone).
#
# The variables below set everything else. Exit code: 0 all runs are finished, 3 some are still going, 1 failed.
set -eu
export LC_ALL=C

RESULTS=${1:?usage: tools/convergence.sh RESULTS}
WORK=${WORK:-/tmp/convergence}
LIMIT=${LIMIT:-540}
EARLIER=${EARLIER:-}
FP8FLOW=${FP8FLOW:-build/cuda/fp8flow}
DEVICE=${DEVICE:-cuda}
GPUS=${GPUS:-} # how many; empty: all
LANES=${LANES:-} # runs at the same time; empty: one on each GPU
MODEL=${MODEL:-docs/measurements/convergence/model.json}
RUNS=${RUNS:-bf16-1 flow-1 blockwise-1 deepseek-1 bf16-2} # RECIPE-SEED; seed 1, and more of bf16

# 3072 steps of 64 sequences of 512 bytes: 100.7 M tokens, each seen once if TEXT_BYTES are found.
STEPS=${STEPS:-3072}
BATCH=${BATCH:-64}
LENGTH=${LENGTH:-512}
TEXT_BYTES=${TEXT_BYTES:-112000000}
TEXT=${TEXT:-} # folders; empty: Python's packages, C headers and documentation of this machine
OPTIONS=${OPTIONS:---lr 6e-4 --min-lr 6e-5 --warmup-steps 150 --checkpointing none}
VALIDATE=${VALIDATE:---validate-every 256 --validation-sequences 512}

fail()
{
    echo "convergence.sh: $*" >&2
    exit 1
}

# ---- Text -----------------------------------------------------------------------------------------------------

text_folders()
{
    if [ -n "$TEXT" ]; then
        # shellcheck disable=SC2086
        printf '%s\n' $TEXT
        return
    fi
    for part in purelib stdlib; do
        python3 -c "import sysconfig; print(sysconfig.get_paths()['$part'])" 2>/dev/null || true
    done
    printf '%s\n' /usr/include /usr/share/doc /usr/local/cuda/include
}

# Text files of 1 to 256 KB in the order of their names, no content twice.
list_text()
{
    text_folders | sort -u | while read -r folder; do
        [ ! -d "$folder" ] || find "$folder" -type f -size +1k -size -256k \
            \( -name '*.py' -o -name '*.md' -o -name '*.rst' -o -name '*.txt' -o -name '*.h' -o -name '*.hpp' \
            -o -name '*.pyi' -o -name '*.cuh' -o -name '*.pyx' \) ! -name '*[[:cntrl:]\\]*' -print0
    done | sort -zu | xargs -0 -r grep -IlZ . | xargs -0 -r md5sum | awk '!seen[$1]++ { print substr($0, 35) }'
}

# Files spread evenly over the list, joined in pieces of 16 MB: few files are open at a time, and no name is kept.
collect_text()
{
    mkdir "$WORK/text.tmp"
    list_text >"$WORK/names"
    tr '\n' '\0' <"$WORK/names" | xargs -0 -r stat -L -c '%s %n' >"$WORK/sizes"
    total=$(awk '{ sum += $1 } END { printf "%d", sum }' "$WORK/sizes")
    awk -v share="$(awk -v a="$TEXT_BYTES" -v b="$total" 'BEGIN { print (b > a ? a / b : 1) }')" \
        '{ got += $1 * share; if (got >= had + $1 / 2) { had += $1; sub(/^[0-9]+ /, ""); print } }' \
        "$WORK/sizes" >"$WORK/chosen"
    tr '\n' '\0' <"$WORK/chosen" | xargs -0 -r cat | split -b 16000000 -d - "$WORK/text.tmp/part-"
    {
        echo "files   $(wc -l <"$WORK/chosen") of $(wc -l <"$WORK/names"), $total bytes"
        echo "bytes   $(cat "$WORK"/text.tmp/part-* | wc -c)"
        echo "sha256  $(cat "$WORK"/text.tmp/part-* | sha256sum | cut -c 1-64)"
        sed 's/.*\.//' "$WORK/chosen" | sort | uniq -c | sort -rn | awk '{ print "kind    " $2 ": " $1 " files" }'
    } >"$WORK/text.log"
    rm "$WORK/names" "$WORK/sizes" "$WORK/chosen"
    mv "$WORK/text.tmp" "$WORK/text"
}

# ---- Runs -----------------------------------------------------------------------------------------------------

# In WORK: the paths that reports show are short and the same everywhere.
compare()
{
    # shellcheck disable=SC2086
    (cd "$WORK" && "$PROGRAM" compare --model ./model.json --data text --device "$DEVICE" --steps "$STEPS" \
        --batch "$BATCH" --micro-batch "$BATCH" --sequence-length "$LENGTH" $OPTIONS $VALIDATE --log-every 64 "$@")
}

is_finished() # RUN
{
    [ -e "$WORK/runs/$1/finished" ]
}

make_run() # RUN
{
    rm -rf "$WORK/runs/$1"
    # shellcheck disable=SC2086
    compare --recipes "${1%-*}" --seed "${1##*-}" --out "runs/$1" ${EARLIER:+--from earlier} >"$WORK/$1.log" 2>&1 ||
        return 1
    # A run that a signal has ended is no error.
    ! grep -q '"interrupted": false' "$WORK/runs/$1/compare.json" || touch "$WORK/runs/$1/finished"
}

# One run after another on one GPU. A run belongs to the lane that could make its folder.
lane() # NUMBER
{
    [ "$DEVICE" != cuda ] || export CUDA_VISIBLE_DEVICES=$(($1 % GPUS))
    for run in $RUNS; do
        is_finished "$run" && continue
        mkdir "$WORK/taken/$run" 2>/dev/null || continue
        make_run "$run" || touch "$WORK/failed"
    done
}

lanes()
{
    for i in $(seq "$LANES"); do lane $((i - 1)) & done
    wait
    touch "$WORK/ended"
}

start()
{
    rm -rf "$WORK/taken" "$WORK/ended" "$WORK/failed" "$WORK/text.tmp"
    mkdir -p "$WORK/taken" "$WORK/runs"
    cp "$MODEL" "$WORK/model.json"
    if [ -n "$EARLIER" ]; then
        mkdir -p "$WORK/earlier"
        cp "$EARLIER/compare.json" "$WORK/earlier/compare.json"
    fi
    [ -d "$WORK/text" ] || collect_text
    # In a session of its own: it goes on when this command is over.
    setsid "$0" --lanes </dev/null >"$WORK/lanes.log" 2>&1 &
    echo $! >"$WORK/pid"
}

is_going()
{
    [ -e "$WORK/pid" ] && [ ! -e "$WORK/ended" ] && kill -0 "$(cat "$WORK/pid")" 2>/dev/null
}

all_finished()
{
    for run in $RUNS; do is_finished "$run" || return 1; done
}

show()
{
    for run in $RUNS; do
        if is_finished "$run"; then echo "$run  finished"
        elif [ -e "$WORK/$run.log" ]; then tail -n 1 "$WORK/$run.log" | cut -c 1-110; fi
    done
}

# ---- Results --------------------------------------------------------------------------------------------------

# One report of the runs that are finished; the recipes in the order of RUNS.
join_runs()
{
    recipes='' from='' seeds=1
    for run in $RUNS; do
        is_finished "$run" || continue
        from="$from --from runs/$run"
        case $run in *-1) recipes=$recipes,${run%-*} ;; esac
    done
    [ -n "$recipes" ] || return 0
    # Seeds without a gap: what is not there would be trained now.
    while is_finished bf16-1 && is_finished "bf16-$((seeds + 1))"; do seeds=$((seeds + 1)); done
    # shellcheck disable=SC2086
    compare --recipes "${recipes#,}" --baseline-seeds "$seeds" $from --out joined >"$WORK/table.txt"
    cp "$WORK/joined/compare.json" "$WORK/joined/report.html" "$WORK/table.txt" "$RESULTS/"
    cat "$WORK/table.txt"
}

put_results()
{
    mkdir -p "$RESULTS"
    join_runs
    cp "$WORK/text.log" "$RESULTS/text.txt"
    for run in $RUNS; do
        [ ! -e "$WORK/$run.log" ] || { echo "== $run" && cat "$WORK/$run.log"; }
    done >"$RESULTS/runs.log"
    (cd "$WORK/runs" && find . -name 'metrics-*.jsonl' | sort | tar --owner=0 --group=0 --mtime=@0 -T - -czf -) \
        >"$RESULTS/metrics.tar.gz"
}

# ---- Start ----------------------------------------------------------------------------------------------------

if [ "$RESULTS" = --lanes ]; then
    lanes
    exit 0
fi
[ -x "$FP8FLOW" ] || fail "$FP8FLOW is not a program: make CUDA=1, or FP8FLOW=path"
mkdir -p "$WORK"
PROGRAM=$(realpath "$FP8FLOW")
WORK=$(realpath "$WORK")
[ -z "$EARLIER" ] || EARLIER=$(realpath "$EARLIER")
[ -n "$GPUS" ] || GPUS=$(nvidia-smi -L 2>/dev/null | grep -c . || true)
[ "$GPUS" -gt 0 ] || GPUS=1
LANES=${LANES:-$GPUS}
export PROGRAM EARLIER GPUS LANES WORK DEVICE MODEL RUNS STEPS BATCH LENGTH OPTIONS VALIDATE FP8FLOW

deadline=$(($(date +%s) + LIMIT))
if ! is_going && ! all_finished; then start; fi
cat "$WORK/text.log"
while is_going && [ "$(date +%s)" -lt $deadline ]; do
    show
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        ! is_going || [ "$(date +%s)" -ge $deadline ] || sleep 3
    done
done
show
put_results
all_finished && exit 0
[ ! -e "$WORK/failed" ] || fail "a run failed, see runs.log"
is_going && exit 3
fail "the runs ended early, see $WORK/lanes.log"
