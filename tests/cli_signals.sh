#!/bin/sh
# cli_signals.sh - runs that are interrupted: signals, kills, a full disk, two processes on one folder, a reader that
# goes away. What was interrupted and resumed must end in the bytes of a run that was not.
set -u
. "$(dirname "$0")/support.sh"
common='--data text.txt --micro-batch 1 --sequence-length 64 --log-every 1'
small="$common --batch 1 --validate-every 0"

# Until the condition holds, a minute at most.
wait_until() # COMMAND...
{
    tries=1200
    until "$@" 2>/dev/null || [ $tries -eq 0 ]; do
        sleep 0.05
        tries=$((tries - 1))
    done
}
has_lines() # FILE COUNT
{
    [ -f "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ]
}
train() # ARGUMENT...: to its end
{
    # shellcheck disable=SC2086
    "$program" train $flags "$@" >"$logs/out" 2>"$logs/err"
}
start() # ARGUMENT...: in the background, as `owner`
{
    # Those of the last run must not be taken for this one's.
    rm -f "$logs/out" "$logs/err"
    # shellcheck disable=SC2086
    "$program" train $flags "$@" >"$logs/out" 2>"$logs/err" &
    owner=$!
}
end() # SIGNAL: sent to the owner; its exit code in `code`
{
    kill "-$1" "$owner"
    wait "$owner" 2>/dev/null
    code=$?
    owner=
}

# The metrics without what a clock says.
without_times() # FILE
{
    sed 's/ "tokens_per_second": [^,]*,//; s/, "[a-z]*_seconds": [^,}]*//g' "$1"
}
same_metrics() # FOLDER: as those of the reference run
{
    without_times reference/metrics.jsonl >"$logs/wanted"
    without_times "$1/metrics.jsonl" | cmp -s - "$logs/wanted"
}
same_weights() # FOLDER
{
    for file in reference/step-00000020/*.safetensors; do
        cmp -s "$file" "$1/step-00000020/$(basename "$file")" || return 1
    done
}

# ---- Interrupted and resumed ----
flags="$common --batch 2 --ranks 2 --threads 1 --validate-every 8 --validation-sequences 2 --steps 20"
train --output reference
check "the reference run ends" [ $? -eq 0 ]
check "the reference run has every step" has_lines reference/metrics.jsonl 20

start --output stopped
wait_until has_lines stopped/metrics.jsonl 3
end INT
check "SIGINT ends with 0" [ $code -eq 0 ]
check "SIGINT says how to go on" grep -q -- '--resume stopped' "$logs/out"
check "SIGINT came in the middle" [ "$(wc -l <stopped/metrics.jsonl)" -lt 20 ]
train --output stopped --resume stopped
check "a stopped run is resumed" [ $? -eq 0 ]
check "stopped and resumed: the metrics of an uninterrupted run" same_metrics stopped
check "stopped and resumed: the weights of an uninterrupted run" same_weights stopped

start --output killed --save-every 2
wait_until has_lines killed/metrics.jsonl 5
end KILL
check "the kill came in the middle" [ ! -e killed/step-00000020 ]
printf '{"step": 999' >>killed/metrics.jsonl # as the kill may have left the last line
train --output killed --save-every 2 --resume killed
check "a killed run is resumed" [ $? -eq 0 ]
check "killed and resumed: the metrics of an uninterrupted run" same_metrics killed
check "killed and resumed: the weights of an uninterrupted run" same_weights killed
check "killed and resumed: nothing is left over" [ -z "$(find killed -name '*.tmp*' -o -name lock)" ]

train --output elsewhere --resume killed/step-00000018
check "a checkpoint is resumed into another folder" [ $? -eq 0 ]
tail -n 2 reference/metrics.jsonl >"$logs/tail"
without_times "$logs/tail" >"$logs/wanted"
without_times elsewhere/metrics.jsonl >"$logs/got"
check "into another folder: the tail of the metrics" cmp -s "$logs/got" "$logs/wanted"
rm -rf reference stopped killed elsewhere

# ---- Two processes, one folder ----
flags=$small
start --steps 1000000 --output run
wait_until has_lines run/metrics.jsonl 1
# shellcheck disable=SC2086
"$program" train $small --steps 3 --output run >"$logs/out2" 2>"$logs/err2"
check "second process on one folder is refused" [ $? -eq 1 ]
check "the refusal names the owner" grep -q "in use by process $owner\$" "$logs/err2"
check "the owner's lock stays" [ -e run/lock ]
end TERM
check "SIGTERM ends with 0" [ $code -eq 0 ]
check "SIGTERM saves" [ -n "$(find run -name 'step-*' -type d)" ]
check "the lock goes" [ ! -e run/lock ]
rm -rf run

# The plain reference is slow enough for the second signal to find the first step.
flags="$common --batch 8"
start --backend reference --steps 1000000
wait_until [ -s "$logs/out" ]
kill -TERM $owner
wait_until [ -s "$logs/err" ]
end TERM 2>/dev/null
check "a second signal ends at once" [ $code -eq 143 ]

flags=$small
start --steps 1000000 --output run
wait_until has_lines run/metrics.jsonl 1
end KILL
train --steps 2 --output run
check "the folder of a killed run can be used again" [ $? -eq 0 ]
check "metrics start anew" [ "$(wc -l <run/metrics.jsonl)" -eq 2 ]
rm -rf run

# ---- No reader, no room ----
# shellcheck disable=SC2086
{ "$program" train $small --steps 1000000 --output run 2>"$logs/err"; echo $? >"$logs/code"; } |
    head -n 3 >"$logs/out"
check "a run without reader stops with 1" [ "$(cat "$logs/code")" -eq 1 ]
check "a run without reader says nothing" [ ! -s "$logs/err" ]
check "a run without reader saves" [ -n "$(find run -name 'step-*' -type d)" ]
rm -rf run

# A limit on file sizes stands for a full disk. Units of 512 or 1024 bytes: 1 MiB at most.
(ulimit -f 1000 && train --steps 2 --output run)
check "no room for a checkpoint ends with 1" [ $? -eq 1 ]
check "no room for a checkpoint is said once" [ "$(wc -l <"$logs/err")" -eq 1 ]
check "no room for a checkpoint leaves none" [ -z "$(find run -name '*step-*' -o -name lock)" ]
rm -rf run

finish
