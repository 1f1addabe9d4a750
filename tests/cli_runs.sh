#!/bin/sh
# cli_runs.sh - what the program gives when nothing goes wrong: training, generating, comparing, inspecting, measuring;
# the same run under another locale, mask, number of threads and in folders with odd names.
#
# JSON is judged by the program's own parser: as a configuration, a good object lacks its model_type.
set -u
. "$(dirname "$0")/support.sh"
small='--data text.txt --batch 1 --micro-batch 1 --sequence-length 64 --validate-every 0'

run() # ARGUMENT...: exit code in `code`, output in $logs/out and $logs/err
{
    timeout -k 5 300 "$program" "$@" </dev/null >"$logs/out" 2>"$logs/err"
    code=$?
}
says() # TEXT: is on stdout
{
    grep -qF -- "$1" "$logs/out"
}
parses() # FILE TEXT
{
    cp "$1" judged.json
    "$program" train --data text.txt --model ./judged.json 2>&1 | grep -qF "$2"
}
is_object() # FILE
{
    parses "$1" 'model_type is missing'
}
is_list() # FILE
{
    parses "$1" 'the root is an array'
}
not()
{
    ! "$@"
}
is_json() # FILE
{
    is_object "$1" || is_list "$1"
}
# Refers to nothing outside itself; a name of the SVG standard is no reference.
stands_alone() # FILE
{
    ! sed 's/xmlns="[^"]*"//g' "$1" | grep -qiE 'https?:|src=|href="[^#]|<script|<link|@import|url\([^#]'
}
every_record_has() # FILE KEY...: as often as there are names
{
    file=$1
    shift
    records=$(grep -c '^  "name": ' "$file")
    [ "$records" -gt 0 ] || return 1
    for key in "$@"; do
        [ "$(grep -c "^  \"$key\": " "$file")" -eq "$records" ] || return 1
    done
}

printf '{"good": [1, 2.5e-3, "x", null]}\n' >good.json
printf '{"bad": [1, 2.5e-3, "x", nan]}\n' >bad.json
check "the judge takes good JSON" is_object good.json
check "the judge refuses bad JSON" not is_json bad.json

# ---- Train ----
# shellcheck disable=SC2086
run train $small --steps 4 --output run
check "train ends with 0" [ $code -eq 0 ]
check "train is silent on stderr" [ ! -s "$logs/err" ]
check "train names the default model" grep -q '^model  *tiny: ' "$logs/out"
check "train names the default recipe" grep -q '^recipe  *flow$' "$logs/out"
check "a log has the first and the last step" [ "$(grep -c '^step [14]/4 ' "$logs/out")" -eq 2 ]
check "a log has no terminal codes" [ -z "$(tr -d '\n\t -~' <"$logs/out")" ]
check "the loss falls" awk '/^step [0-9]*[/]/ { loss[++n] = $4 } END { exit !(n == 2 && loss[2] < loss[1]) }' "$logs/out"
check "train says what comes next" says 'next: fp8flow generate --checkpoint run'
check "metrics have every step once" awk -F '[:,]' '$2 + 0 != NR { exit 1 } END { exit NR != 4 }' run/metrics.jsonl
head -n 1 run/metrics.jsonl >line.json
check "a line of the metrics is JSON" is_object line.json
check "the checkpoint is complete" [ -e run/step-00000004/COMPLETE ]
sed 's/ "tokens_per_second": [^,]*,//; s/, "[a-z]*_seconds": [^,}]*//g' run/metrics.jsonl >"$logs/wanted"

# shellcheck disable=SC2086
run train $small --model run/step-00000004/config.json --steps 1
check "the checkpoint's configuration is a model" [ $code -eq 0 ]

same_run() # FOLDER: the steps and the weights of the first run
{
    sed 's/ "tokens_per_second": [^,]*,//; s/, "[a-z]*_seconds": [^,}]*//g' "$1/metrics.jsonl" | cmp -s - "$logs/wanted" &&
        cmp -s run/step-00000004/model-00001-of-00001.safetensors "$1/step-00000004/model-00001-of-00001.safetensors"
}

# shellcheck disable=SC2086
run train $small --steps 4 --threads 1 --output one-thread
check "one thread: the same run" same_run one-thread

# Names with every kind of letter, 200 characters and more, and nobody else may read them.
folder="Läufe für 日本 $(awk 'BEGIN { for (i = 0; i < 200; i++) printf "n" }')"
mkdir "$folder"
cp text.txt "$folder/Täxt 1.txt"
umask 077
run train --data "$folder/Täxt 1.txt" --batch 1 --micro-batch 1 --sequence-length 64 --validate-every 0 --steps 4 \
    --output "$folder/Ausgabe"
umask 022
check "odd names: the same run" same_run "$folder/Ausgabe"
check "odd names are shown as they are" says "$folder/Ausgabe"
check "umask holds for every file" [ -z "$(find "$folder/Ausgabe" -perm /077)" ]
run generate --checkpoint "$folder/Ausgabe" --prompt 'line ' --max-tokens 5
check "odd names: generate" [ $code -eq 0 ]

# A decimal comma must not reach numbers that are read or written.
if mkdir locales && localedef -i de_DE -f UTF-8 locales/de_DE.UTF-8 >/dev/null 2>&1; then
    export LOCPATH="$work/locales" LC_ALL=de_DE.UTF-8
else
    skip "decimal comma: de_DE cannot be made here, the next two run in the C locale"
fi
# shellcheck disable=SC2086
run train $small --steps 4 --lr 3e-3 --output german
check "decimal comma: the same run" same_run german
run train --data text.txt --lr 0,003
check "decimal comma: refused in an option" [ $code -eq 2 ]
unset LOCPATH LC_ALL

# ---- Many ranks ----
split="train --data text.txt --batch 4 --micro-batch 1 --sequence-length 64 --threads 1 --validate-every 0"
# shellcheck disable=SC2086
run $split --ep 2 --dp 2 --steps 2 --output split
check "ep and dp call for ranks" grep -q '^ranks  *4: experts over 2, 2 such groups' "$logs/out"
percent='[0-9]*\.[0-9]'
check "the summary has what a step spends between ranks" grep -q "^between ranks  exchange $percent % of a step \
(dispatch $percent, combine $percent), gradients $percent %\$" "$logs/out"
check "every rank stores a part" [ "$(ls split/step-00000002/model-*-of-00004.safetensors | wc -l)" -eq 4 ]
check "the metrics have what went between ranks" grep -q '"reduce_bytes": [1-9].*"combine_seconds": [0-9]' split/metrics.jsonl
# shellcheck disable=SC2086
run $split --ranks 4 --dp 4 --steps 3 --output split --resume split
check "another split goes on" grep -q '^resumed  *after step 2' "$logs/out"
check "and saves" [ -e split/step-00000003/COMPLETE ]
run generate --checkpoint split --prompt 'line ' --max-tokens 5
check "one rank generates from it" [ $code -eq 0 ]

# ---- Generate ----
run generate --checkpoint run --prompt 'line ' --max-tokens 40 --seed 3
cp "$logs/out" first
check "generate ends with 0" [ $code -eq 0 ]
check "generate prints bytes" [ "$(wc -c <first)" -ge 40 ]
run generate --checkpoint run --prompt 'line ' --max-tokens 40 --seed 3
check "generate is repeatable" cmp -s "$logs/out" first
run generate --checkpoint run --prompt 'line ' --max-tokens 40 --seed 4
check "generate follows its seed" not cmp -s "$logs/out" first
printf 'line ' | "$program" generate --checkpoint run/step-00000004 --prompt - --max-tokens 40 --seed 3 >"$logs/out"
check "generate reads its prompt from stdin" cmp -s "$logs/out" first

# ---- Compare ----
# shellcheck disable=SC2086
run compare --recipes bf16,flow $small --steps 4 --seeds 2 --validate-every 2 --validation-sequences 2 --out study --json
check "compare ends with 0" [ $code -eq 0 ]
check "compare --json prints JSON" is_object "$logs/out"
check "compare --json has both recipes" [ "$(grep -c '"recipe": "\(bf16\|flow\)"' "$logs/out")" -eq 2 ]
check "compare --json says its progress on stderr" grep -q '^flow.*step 4/4' "$logs/err"
check "compare.json is JSON" is_object study/compare.json
check "the metrics of every run are there" [ "$(cat study/metrics-*-seed[12].jsonl | wc -l)" -eq 16 ]
check "the report is a page" grep -q '</html>' study/report.html
check "the report has its figures" [ "$(grep -c '<svg' study/report.html)" -ge 4 ]
check "the report stands alone" stands_alone study/report.html
check "nothing half written" [ -z "$(find study -name '*.tmp')" ]
# shellcheck disable=SC2086
run compare --recipes bf16,flow $small --steps 2
check "compare prints a table" grep -q '^flow ' "$logs/out"

# A comparison in pieces: the runs of two others, and the one that is missing.
pieces="compare $small --steps 4 --threads 1"
# shellcheck disable=SC2086
{
    run $pieces --recipes bf16,flow --out piece1
    run $pieces --recipes deepseek --out piece2
    run $pieces --recipes bf16,deepseek,flow --baseline-seeds 2 --from piece1 --from piece2 --out whole
}
check "runs are taken" says 'taken   3 of 4 runs'
check "only the missing run is made" [ "$(ls whole/metrics-*)" = whole/metrics-bf16-seed2.jsonl ]
check "two seeds of the baseline tell the noise" says 'Seed to seed, bf16'
check "the pieces have four curves" [ "$(grep -c '^     "seed": [12],$' whole/compare.json)" -eq 4 ]
tail -n 8 "$logs/out" >whole.txt
# shellcheck disable=SC2086
run $pieces --recipes bf16,deepseek,flow --baseline-seeds 2 --from whole --out whole
check "a finished comparison makes no run" says 'taken   4 of 4 runs'
check "a finished comparison has no progress" not grep -q 'step 4' "$logs/out"
check "and says the same" sh -c "tail -n 8 $logs/out | cmp - whole.txt"
printf '{"training": {}, "info": {"parameters": 1}}' >piece2/compare.json
# shellcheck disable=SC2086
run $pieces --recipes bf16,flow --from piece1 --from piece2
check "other trainings are refused" grep -q -- '--from: piece2/compare.json: model is missing there' "$logs/err"
# shellcheck disable=SC2086
run $pieces --recipes bf16,flow --lr 0.01 --from piece1
check "another learning rate is refused" grep -q 'lr is 0.003 there and 0.01 here' "$logs/err"
# shellcheck disable=SC2086
run $pieces --recipes bf16 --batch 4 --ep 2 --dp 2 --out piece3
# shellcheck disable=SC2086
run $pieces --recipes bf16,flow --batch 4 --ranks 4 --from piece3
check "another split of as many ranks is refused" grep -q 'expert_parallel is 2 there and missing here' "$logs/err"
cp text.txt kept.txt
cat kept.txt kept.txt >text.txt
# shellcheck disable=SC2086
run $pieces --recipes bf16,deepseek --from piece1
check "other data under the same name is refused" grep -q 'tokens to train on there' "$logs/err"
mv kept.txt text.txt

# ---- Inspect ----
layer='--hidden 128 --width 64 --experts 4 --tokens 64'
for wanted in bf16:0 tensorwise:4 blockwise:4 deepseek:12 flow:2; do
    # shellcheck disable=SC2086
    run inspect --recipe "${wanted%:*}" --json $layer
    check "inspect ${wanted%:*} --json is JSON" is_object "$logs/out"
    check "${wanted%:*} has ${wanted#*:} explicit casts" grep -q "^ \"explicit_casts\": ${wanted#*:},\$" "$logs/out"
done
# shellcheck disable=SC2086
run inspect --recipe all --json $layer
check "inspect all --json is a list" is_list "$logs/out"
# shellcheck disable=SC2086
run inspect $layer
check "inspect prints the edges" says 'forward wire'
run inspect --numerics --data text.txt --batch 1 --micro-batch 1 --sequence-length 64
check "inspect --numerics ends with 0" [ $code -eq 0 ]

# ---- Bench, doctor ----
run bench --json --repeat 1 add
check "bench --json is a list" is_list "$logs/out"
check "bench --json has every key in every record" \
    every_record_has "$logs/out" shape device ms_median ms_min ms_max bytes flops reference ratio
run bench --repeat 1 add
check "bench prints a table" grep -q '^add ' "$logs/out"
run bench --repeat 1 'lite add'
check "bench takes words in any order" grep -q '^add .*v2-lite' "$logs/out"
run bench layer --device cpu --repeat 1 --tokens 64 --experts 4 --recipes flow,bf16 --checkpointing none,full
check "bench layer prints a table" grep -qE '^flow +full ' "$logs/out"
check "bench layer measures bf16 first" sh -c "grep -nE '^(bf16|flow) +none ' $logs/out | head -1 | grep -q bf16"
check "bench layer lists the operators" grep -qE '^  swiglu_backward .* bf16 to e4m3 row128' "$logs/out"
check "bench layer lists them for the first mode only" [ "$(grep -c '% bound' "$logs/out")" -eq 2 ]
run bench layer --device cpu --repeat 2 --tokens 64 --experts 4 --recipes flow,bf16,blockwise --checkpointing full \
    --json --kernels all
check "bench layer --json is a list" is_list "$logs/out"
check "bench layer --json has every key in every record" every_record_has "$logs/out" shape recipe checkpointing \
    forward_ms total_ms loop_ms sum_ms router_ms tflops saved_bytes explicit_casts ratio_bf16 calls
mkdir bench_tmp
export TMPDIR="$PWD/bench_tmp"
run bench train --device cpu --repeat 1 --batch 2 --micro-batch 1 --sequence-length 32 \
    --recipes flow,bf16
check "bench train prints a table" grep -qE '^flow +full ' "$logs/out"
check "bench train compares with bf16" sh -c "grep -E '^bf16 +moe_expert ' $logs/out | grep -q ' 1.00 '"
check "bench train says what MFU is" says '6 x active parameters'
check "bench train leaves no files" rmdir bench_tmp
unset TMPDIR
run bench train --device cpu --repeat 1 --layers 1 --batch 1 --micro-batch 1 --sequence-length 32 \
    --recipes flow,deepseek --kernels main
check "bench train lists the operators" grep -qE '^  adamw +[^ ].* [0-9]+ +[0-9.]+ +[0-9.]+' "$logs/out"
check "bench train lists them for the main recipes in the first mode" [ "$(grep -c '% bound' "$logs/out")" -eq 1 ]
check "bench train says that their sum is not the step" says 'their sum is not the time of a step'
check "bench train adds them up" grep -qE '^  all calls +[0-9.]+ ' "$logs/out"
run bench train --device cpu --repeat 2 --layers 1 --batch 1 --micro-batch 1 --sequence-length 32 --recipes blockwise \
    --json --kernels all
check "bench train --json is a list" is_list "$logs/out"
check "bench train --json has every key in every record" every_record_has "$logs/out" model recipe checkpointing layers \
    step_ms tokens_per_s mfu_percent memory_bytes used_bytes loss ratio_bf16 calls
check "bench train --json lists the operators of every mode" [ "$(grep -c '"op": "adamw"' "$logs/out")" -ge 2 ]
run bench comm --device cpu --repeat 1 --megabytes 1 --tokens 64 --ranks 3 --recipes flow,bf16
check "bench comm prints a table" grep -qE '^flow +[0-9]+ +[0-9]+ ' "$logs/out"
check "bench comm sends at most 0.51 of the bytes of bf16" \
    awk '$1 == "flow" { found = $7 > 0 && $7 <= 0.51 } END { exit !found }' "$logs/out"
run bench comm --device cpu --repeat 2 --megabytes 1 --tokens 16 --ranks 2 --recipes flow --json
check "bench comm --json is a list" is_list "$logs/out"
check "bench comm --json has every key in every record" every_record_has "$logs/out" ranks transport device bytes exchange
check "bench comm --json knows no ratio without bf16" says '"dispatch_to_bf16": null'
run bench no-such-operator
check "bench of nothing is refused" [ $code -ne 0 ]
if "$program" doctor | grep -q '^CUDA *yes'; then
    run bench --device cuda --json --repeat 1 'add 16384x2048'
    check "bench of a GPU --json is a list" is_list "$logs/out"
    check "bench of a GPU --json has every key in every record" every_record_has "$logs/out" shape data bytes us_median \
        us_min us_max tb_per_s percent_of_copy goal met
    check "bench of a GPU --json describes the run" grep -q '^  "copy_tb_per_s": ' "$logs/out"
    run bench --device cuda --repeat 1 --seconds 0.1 --json 'gemm fprop1 row128 v3-small'
    check "bench of products --json has every key" every_record_has "$logs/out" tflops tflops_sustained megahertz \
        percent_of_peak kernel peer_tflops ratio goal met met_sustained
    run bench --device cuda --repeat 1 unpermute
    check "bench of a GPU counts the goals" grep -qE '^[0-9]+ of [0-9]+ goals are met' "$logs/out"
fi
run doctor --json
check "doctor --json is JSON" is_json "$logs/out"
run doctor
check "doctor ends with 0" [ $code -eq 0 ]

finish
