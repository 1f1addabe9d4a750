#!/bin/sh
# cli_cases.sh - wrong and hostile uses of the program: tests/cli_cases.sh path/to/fp8flow (or FP8FLOW=path).
#
# Every case states the exit code and a part of the message. It must also give exactly one line on stderr that begins
# with "fp8flow", nothing on stdout, no trace of a crash or a sanitizer, and leave the folder as it was. One line for
# each failing case; the last lines count.
set -u
. "$(dirname "$0")/support.sh"

# What the cases find in their folder.
: >empty.txt
mkdir folder folder/inner half locked
printf '{"training"' >half/compare.json
printf 'x' >tiny.txt
printf '{' >open.json
printf '{"hidden_size": -1}' >negative.json
printf '{"hidden_size": 1e18, "num_experts": 4}' >huge.json
printf '[1, 2]' >array.json
awk 'BEGIN { for (i = 0; i < 3000; i++) printf "[" }' >deep.json
printf 'not json at all\n' >words.json
head -c 4096 /dev/zero >zeros.json
ln -s loop.txt loop.txt
mkfifo pipe
mkdir -p fake-run/step-00000007 torn/step-00000003
: >fake-run/step-00000007/COMPLETE
chmod 555 locked

find . | sort >"$root/names"

# New names, and files that were written to. A lock that came and went may change the time of a folder.
files_here()
{
    {
        find . | sort | comm -13 "$root/names" -
        find . -type f -newer "$logs/start"
    } | sort -u
}

# Everything that must hold after a run whatever its exit code was.
check_clean() # name
{
    if grep -qE 'Sanitizer|runtime error:|Segmentation|Assertion|core dumped|stack smashing' "$logs/err"; then
        wrong "$1" "crash: $(head -n 1 "$logs/err")"
    elif [ -n "$(files_here)" ]; then
        wrong "$1" "left $(files_here | tr '\n' ' ')"
        files_here | while read -r file; do rm -rf "$file"; done
    else
        return 0
    fi
    return 1
}

# refuse NAME CODES TEXT ARGUMENT...: CODES is 2, or 1|2, TEXT a part of the message.
refuse()
{
    name=$1 codes=$2 text=$3
    shift 3
    : >"$logs/start"
    timeout -k 5 60 "$program" "$@" <"${input:-/dev/null}" >"$logs/out" 2>"$logs/err"
    code=$?
    check_clean "$name" || return
    lines=$(wc -l <"$logs/err")
    message=$(cut -c 1-160 "$logs/err" | head -n 1)
    if ! echo "$code" | grep -qxE "$codes"; then wrong "$name" "exit $code instead of $codes; $message"
    elif [ "$lines" -ne 1 ]; then wrong "$name" "$lines lines on stderr; $message"
    elif [ "$(wc -c <"$logs/err")" -gt 1200 ]; then wrong "$name" "a line of $(wc -c <"$logs/err") bytes"
    elif ! grep -q '^fp8flow' "$logs/err"; then wrong "$name" "message: $message"
    elif ! grep -qF -- "$text" "$logs/err"; then wrong "$name" "no \"$text\" in: $message"
    elif [ -s "$logs/out" ]; then wrong "$name" "stdout: $(head -n 1 "$logs/out")"
    else ok; fi
}

# accept NAME TEXT ARGUMENT...: exit 0, TEXT on stdout, nothing on stderr.
accept()
{
    name=$1 text=$2
    shift 2
    : >"$logs/start"
    timeout -k 5 60 "$program" "$@" </dev/null >"$logs/out" 2>"$logs/err"
    code=$?
    check_clean "$name" || return
    if [ $code -ne 0 ]; then wrong "$name" "exit $code; $(head -n 1 "$logs/err")"
    elif [ -s "$logs/err" ]; then wrong "$name" "stderr: $(head -n 1 "$logs/err")"
    elif ! grep -qF -- "$text" "$logs/out"; then wrong "$name" "no \"$text\" on stdout"
    else ok; fi
}

# Quiet cases, for lost descriptors: `status NAME WANTED GOT`, stderr must be empty.
status()
{
    check_clean "$1" || return
    if [ "$3" -ne "$2" ]; then wrong "$1" "exit $3 instead of $2; $(head -n 1 "$logs/err")"
    elif [ -s "$logs/err" ]; then wrong "$1" "stderr: $(head -n 1 "$logs/err")"
    else ok; fi
}

# ---- Commands and help ----
refuse "no command" 2 'no command'
refuse "unknown command" 2 'unknown command "frobnicate"' frobnicate
refuse "near command" 2 'did you mean "train"?' trian
refuse "unknown global option" 2 'unknown option "--quiet"' --quiet
refuse "empty command" 2 'unknown command ""' ''
refuse "help of an unknown command" 2 'unknown command "nothing"' help nothing
accept "help" 'Usage: fp8flow COMMAND' --help
accept "help command" 'Usage: fp8flow COMMAND' help
accept "version" 'fp8flow ' --version
for command in train generate compare inspect bench doctor; do
    accept "help $command" "Usage: fp8flow $command" help "$command"
    accept "$command --help" "Usage: fp8flow $command" "$command" --help
    refuse "$command unknown flag" 2 'unknown option "--frobnicate"' "$command" --frobnicate
    refuse "$command short flag" 2 'unknown option "-x"' "$command" -x
done

# ---- Option syntax ----
refuse "near option" 2 'did you mean --steps?' train --stesp 3
refuse "missing value at the end" 2 '--steps needs a value' train --data text.txt --steps
refuse "missing value before an option" 2 '--data needs a value' train --data --steps 3
refuse "empty value" 2 '--data: an empty value' train --data=
refuse "flag with a value" 2 '--json takes no value' doctor --json=yes
refuse "stray argument" 2 'unexpected argument "text.txt"' train text.txt
refuse "stray argument behind --" 2 'unexpected argument "--steps"' train --data text.txt -- --steps
refuse "control bytes in an option" 2 'unknown option' train "$(printf -- '--st\033[31m\npes')"
# shellcheck disable=SC2046
refuse "too many lists" 2 'more than 256' train $(awk 'BEGIN { for (i = 0; i < 300; i++) print "--data=text.txt" }')

# ---- Numbers ----
refuse "negative steps" 2 '--steps: "-1" is not in 1 .. 1000000000' train --data text.txt --steps=-1
refuse "zero steps" 2 '--steps: "0" is not in' train --data text.txt --steps 0
refuse "word for a number" 2 '--steps: "ten" is not a whole number' train --data text.txt --steps ten
refuse "trailing junk" 2 '--steps: "10x" is not a whole number' train --data text.txt --steps 10x
refuse "fraction for a whole number" 2 '"1.5" is not a whole number' train --data text.txt --batch 1.5
refuse "blank before a number" 2 '" 1" is not a whole number' train --data text.txt --batch ' 1'
refuse "hexadecimal" 2 '"0x10" is not a whole number' train --data text.txt --batch 0x10
refuse "beyond 64 bits" 2 'is not in' train --data text.txt --steps 99999999999999999999999
refuse "wraps to 1 in 64 bits" 2 'is not in' train --data text.txt --steps 18446744073709551617
refuse "wraps to 1 in 32 bits" 2 'is not in 0 .. 256' train --data text.txt --ranks 4294967297
refuse "seed beyond 64 bits" 2 '--seed:' train --data text.txt --seed 9223372036854775808
refuse "suffix overflows" 2 'is not in' train --data text.txt --steps 9999999999999999G
refuse "too many ranks" 2 '"257" is not in 0 .. 256' train --data text.txt --ranks 257
refuse "experts over ranks that are not there" 2 '--ep 3 does not divide 4 ranks' train --data text.txt --ranks 4 --ep 3
refuse "groups of ranks that are not there" 2 '--dp 3 does not divide 4 ranks' train --data text.txt --ranks 4 --dp 3
refuse "groups of other ranks" 2 '--ep 2 --dp 2: 4 ranks, not 8' train --data text.txt --ranks 8 --ep 2 --dp 2
refuse "groups of too many ranks" 2 '--ep 16 --dp 17: 272 ranks, at most 256' train --data text.txt --ep 16 --dp 17
refuse "more ranks than experts" 2 'expert_parallel = 32, the model has 16 experts' train --data text.txt --batch 32 \
    --micro-batch 1 --ep 32
refuse "not a number" 2 '--lr: "nan" is not a number' train --data text.txt --lr nan
refuse "infinite" 2 '--lr: "inf" is not a number' train --data text.txt --lr inf
refuse "real overflow" 2 '--lr: "1e999" is not in' train --data text.txt --lr 1e999
refuse "negative rate" 2 '--lr: "-1" is not in' train --data text.txt --lr -1
refuse "comma for a point" 2 '--lr: "0,1" is not a number' train --data text.txt --lr 0,1
refuse "beta of one" 2 '--beta1: "1" is not in' train --data text.txt --beta1 1
refuse "sequence of one token" 2 '"1" is not in' train --data text.txt --sequence-length 1
refuse "zero tokens to generate" 2 '--max-tokens: "0" is not in' generate --checkpoint folder --max-tokens 0
refuse "comparison of no seed" 2 '--seeds: "0" is not in' compare --data text.txt --seeds 0
refuse "layer of one column" 2 '--hidden: "1" is not in' inspect --hidden 1
refuse "bench repeats of zero" 2 '--repeat: "0" is not in' bench --repeat 0
refuse "bench loop of an hour" 2 '--seconds: "3600" is not in 0 .. 60' bench --seconds 3600
refuse "bench loop of a word" 2 '--seconds: "long" is not a number' bench --seconds long
refuse "bench layer at no shape" 2 'there is no shape "v4"' bench layer --shapes v4
refuse "bench layer in no mode" 2 'is not one of none|moe_expert|full' bench layer --checkpointing some
refuse "bench layer of no recipe" 2 'flow' bench layer --recipes bf16,fp4
refuse "bench layer with an operand" 2 'unexpected argument "quantize"' bench layer quantize
refuse "bench layer of a width that is refused" 1 'layer bf16 at demo: ' bench layer --width 24 --recipes bf16
refuse "bench train of no model" 2 'is none of v2-lite-cut' bench train --models tiny
refuse "bench train in no mode" 2 'is not one of none|moe_expert|full' bench train --checkpointing some
refuse "bench train of no recipe" 2 'flow' bench train --recipes bf16,fp4
refuse "bench train of some operators" 2 'is not one of none|main|all' bench train --kernels some
refuse "bench train of an odd batch" 2 '--batch 3 is not a multiple of --micro-batch 2' bench train --batch 3
refuse "bench comm of no recipe" 2 'flow' bench comm --recipes bf16,fp4
refuse "bench comm of too many ranks" 2 '--ranks: "257" is not in 0 .. 256' bench comm --ranks 257
refuse "bench comm over a pigeon" 2 'is not one of auto|nccl|staged' bench comm --transport pigeon
refuse "bench comm over NCCL on the CPU" 2 '--transport is of GPUs' bench comm --device cpu --transport nccl
refuse "bench comm of an odd width" 1 'multiple of 16' bench comm --device cpu --hidden 24 --megabytes 1 --recipes bf16
export TMPDIR=/no/such/place
refuse "bench train without a place" 1 'temporary folder: No such file' bench train --layers 1
unset TMPDIR
accept "bench train --help" 'Usage: fp8flow bench train' bench train --help
accept "bench comm --help" 'Usage: fp8flow bench comm' bench comm --help
accept "help bench comm" 'Usage: fp8flow bench comm' help bench comm
refuse "help train more" 2 '"more"' help train more

# ---- Variables that mpirun, or somebody, has set ----
refuse_with() # VARIABLE=VALUE TEXT
{
    variable=$1 text=$2
    export "${variable?}"
    refuse "$variable" 2 "$text" train --data text.txt --steps 1 --batch 2 --micro-batch 1 --ranks 2 --device cpu
    unset "${variable%%=*}"
}
refuse_with OMPI_COMM_WORLD_SIZE=abc 'OMPI_COMM_WORLD_SIZE is "abc"'
refuse_with PMI_RANK=-1 'PMI_RANK is "-1"'
refuse_with PMI_SIZE=4294967297 'PMI_SIZE is "4294967297"'
refuse_with SLURM_PROCID='1 2' 'SLURM_PROCID is "1 2"'
refuse_with FP8FLOW_MPI=lam 'FP8FLOW_MPI is "lam"'
refuse_with FP8FLOW_TRANSPORT=smoke 'FP8FLOW_TRANSPORT is "smoke"'
export PMI_SIZE=2
refuse_with PMI_RANK=2 'PMI_RANK is 2, PMI_SIZE is 2'
unset PMI_SIZE
export OMPI_COMM_WORLD_RANK=0
refuse_with OMPI_COMM_WORLD_SIZE=257 'mpirun has started 257 ranks'
unset OMPI_COMM_WORLD_RANK
accept "bench layer --help" 'Usage: fp8flow bench layer' bench layer --help
refuse "bench of words that nothing has" 2 'nothing has the words "gemm quantize"' bench 'gemm quantize'

# ---- Names ----
refuse "unknown checkpointing" 2 'is not one of none|moe_expert|full' train --data text.txt --checkpointing some
refuse "unknown backend" 2 'is not one of cpu|reference' train --data text.txt --backend cuda
refuse "unknown device" 2 'is not one of auto|cpu|cuda' train --data text.txt --device gpu
refuse "reference operators on a GPU" 2 '--backend reference' compare --data text.txt --device cuda --backend reference
refuse "unknown device to measure" 2 'is not one of cpu|cuda' bench --device gpu
refuse "reference on a GPU" 2 '--backend reference' bench --device cuda --backend reference
refuse "unknown recipe" 2 'flow' train --data text.txt --recipe fp4
refuse "unknown variant of a recipe" 2 'fp8flow train:' train --data text.txt --recipe flow+nonsense
refuse "recipe in a comparison" 2 'fp8flow compare:' compare --data text.txt --recipes flow,fp4
refuse "empty name in a list" 2 'empty' compare --data text.txt --recipes flow,,bf16
refuse "recipe to inspect" 2 'fp8flow inspect:' inspect --recipe fp4
refuse "unknown model" '1|2' 'fp8flow train:' train --data text.txt --model no-such-model

# ---- A GPU that is not there: not in this build, not in this machine, or hidden ----
export CUDA_VISIBLE_DEVICES=
refuse "bench without a GPU" 1 'cuda: ' bench --device cuda
refuse "bench of products without a GPU" 1 'cuda: ' bench --device cuda --seconds 0 'gemm fprop1 v2-lite'
refuse "bench without a GPU, JSON" 1 'cuda: ' bench --device cuda --json --repeat 1 add
refuse "training without a GPU" 1 'cuda: ' train --data text.txt --device cuda
refuse "ranks without a GPU" 1 'cuda: ' train --data text.txt --device cuda --ranks 2
refuse "comparison without a GPU" 1 'cuda: ' compare --data text.txt --device cuda
refuse "text without a GPU" 1 'cuda: ' generate --checkpoint folder --device cuda
refuse "dataflow without a GPU" 1 'cuda: ' inspect --device cuda
refuse "bench layer without a GPU" 1 'cuda: ' bench layer --device cuda
refuse "bench train without a GPU" 1 'cuda: ' bench train --device cuda
refuse "bench comm without a GPU" 1 'cuda: ' bench comm --device cuda
unset CUDA_VISIBLE_DEVICES

# ---- Long and odd arguments (one argument may have 128 KiB on Linux; a megabyte comes in pieces) ----
long=$(awk 'BEGIN { for (i = 0; i < 120000; i++) printf "x" }')
refuse "long option" 2 'unknown option "--xxx' train "--$long"
refuse "long number" 2 'is not a whole number' train --data text.txt "--steps=$long"
refuse "long digits" 2 'is not in' train --data text.txt "--steps=$(echo "$long" | tr x 9)"
refuse "long command" 2 'unknown command "xxx' "$long"
refuse "long path of data" '1|2' 'fp8flow train:' train --data "$long"
refuse "long path of output" 1 'output folder' train --data text.txt --output "$long"
# shellcheck disable=SC2046
refuse "a megabyte of arguments" 2 'unexpected argument' bench one $(awk 'BEGIN {
    for (i = 0; i < 10; i++) { for (j = 0; j < 100000; j++) printf "y"; print "" } }')

# ---- Data ----
refuse "no data" 2 '--data is missing' train
refuse "missing file" '1|2' 'no-such-file' train --data no-such-file
refuse "missing file of a comparison" '1|2' 'no-such-file' compare --data no-such-file --steps 1 --recipes flow
refuse "no data for a comparison" 2 '--data is missing' compare
refuse "no data for the numerics" 2 'data' inspect --numerics
refuse "one missing of two" '1|2' 'no-such-file' train --data text.txt --data no-such-file
refuse "empty file" '1|2' 'fp8flow train:' train --data empty.txt
refuse "too little text" '1|2' 'fp8flow train:' train --data tiny.txt
refuse "empty folder" '1|2' '0 documents' train --data folder
refuse "link to itself" '1|2' 'fp8flow train:' train --data loop.txt
refuse "missing data, output given" '1|2' 'no-such-file' train --data no-such-file --output run

# ---- Configuration ----
refuse "missing configuration" '1|2' 'no-such.json' train --data text.txt --model ./no-such.json
for file in open negative huge array deep words zeros; do
    refuse "configuration $file" '1|2' 'fp8flow train:' train --data text.txt --model "./$file.json"
done
refuse "folder as configuration" '1|2' 'fp8flow train:' train --data text.txt --model ./folder
refuse "bad configuration, output given" '1|2' 'fp8flow train:' train --data text.txt --model ./open.json --output run
refuse "batch not divisible" 2 'batch' train --data text.txt --batch 3 --micro-batch 2

# ---- Folders and checkpoints ----
refuse "output in a missing folder" 1 'No such file' train --data text.txt --output missing/run
refuse "output below a file" 1 'output folder' train --data text.txt --output text.txt/run
refuse "output is a file" 1 'is not a folder' train --data text.txt --output text.txt
refuse "output in /proc" 1 'output folder' train --data text.txt --output /proc/fp8flow-run
refuse "comparison in a missing folder" 1 'No such file' compare --data text.txt --out missing/study
refuse "comparison into a file" 1 'is not a folder' compare --data text.txt --out text.txt
refuse "runs from nothing" 1 'No such file' compare --data text.txt --from missing
refuse "runs from half a file" 1 'half/compare.json, line 1' compare --data text.txt --from half
if [ "$(id -u)" -ne 0 ]; then
    refuse "output is read-only" 1 'denied' train --data text.txt --output locked
    refuse "output in a read-only folder" 1 'denied' train --data text.txt --output locked/run
fi
refuse "output of another run" 2 'holds checkpoints' train --data text.txt --output fake-run
refuse "resume from nothing" '1|2' 'no-such-run' train --data text.txt --resume no-such-run
refuse "resume from an empty folder" '1|2' 'folder' train --data text.txt --resume folder
refuse "resume from a file" '1|2' 'fp8flow train:' train --data text.txt --resume text.txt
refuse "resume from a torn checkpoint" '1|2' 'fp8flow train:' train --data text.txt --resume torn
refuse "generate without checkpoint" 2 '--checkpoint is missing' generate --prompt x
refuse "generate from nothing" '1|2' 'no-such-run' generate --checkpoint no-such-run --prompt x
refuse "generate from an empty folder" '1|2' 'fp8flow generate:' generate --checkpoint folder --prompt x
refuse "generate from a file" '1|2' 'fp8flow generate:' generate --checkpoint text.txt --prompt x
refuse "generate from a torn checkpoint" '1|2' 'fp8flow generate:' generate --checkpoint torn --prompt x
head -c 2000000 /dev/zero >"$logs/zeros"
input=$logs/zeros
refuse "prompt too long" 1 'longer than 1 MiB' generate --checkpoint folder --prompt -
input=$work/folder
refuse "prompt unreadable" 1 'standard input' generate --checkpoint folder --prompt -
input=

# ---- Lost descriptors ----
lost() # NAME CODE TEXT: the last run had stdout on a full device
{
    check_clean "$1" || return
    if [ "$code" -ne "$2" ]; then wrong "$1" "exit $code instead of $2"
    elif ! grep -qF -- "$3" "$logs/err"; then wrong "$1" "stderr: $(head -n 1 "$logs/err")"
    else ok; fi
}
: >"$logs/start"
for arguments in --help --version 'help train' doctor 'doctor --json'; do
    # shellcheck disable=SC2086
    "$program" $arguments >&- 2>"$logs/err"
    status "$arguments, stdout closed" 1 $?
    # shellcheck disable=SC2086
    "$program" $arguments >/dev/full 2>"$logs/err"
    code=$?
    lost "$arguments, stdout full" 1 'standard output'
    # shellcheck disable=SC2086
    { (sleep 0.2; exec "$program" $arguments; ) 2>"$logs/err"; echo $? >"$logs/code"; } | :
    status "$arguments, no reader" 1 "$(cat "$logs/code")"
done
: >"$logs/err"
"$program" train --frobnicate 2>&- >"$logs/out"
status "wrong usage, stderr closed" 2 $?
"$program" doctor <&- >"$logs/out" 2>"$logs/err"
status "stdin closed" 0 $?
"$program" train --frobnicate <&- >&- 2>&-
status "everything closed" 2 $?

finish
