#!/bin/sh
# check_contracts.sh INCLUDE_DIR - every public thing has its words.
#
# Of fp8flow_ops.h: every struct fp8flow_<op>_args follows directly one comment that begins with "<op>:" and says
# Exactness, Errors and Source, and is followed by the function fp8flow_<op>; no second comment begins with "<op>:".
# In all public headers every function stands in a paragraph that opens with a comment.
set -u
awk '
function bad(line, text) {
    print FILENAME ":" line ": " text
    failed = 1
}
function finish() { # of one file: compare the comments with the structs
    for (op in args_line) {
        if (contracts[op] != 1) bad_at(op, contracts[op] + 0 " comments begin with \"" op ":\", expected 1")
        if (!(op in declared)) bad_at(op, "no function fp8flow_" op " after its arguments")
    }
}
function bad_at(op, text) {
    print file ":" args_line[op] ": " text
    failed = 1
}
FNR == 1 {
    finish()
    file = FILENAME
    split("", args_line)
    split("", contracts)
    split("", declared)
    paragraph_has_comment = 0
    in_comment = 0
}
/^[ \t]*$/ { paragraph_line = 0; comment = ""; next }
{ paragraph_line++ }
paragraph_line == 1 { paragraph_has_comment = ($0 ~ /^\/\*/) }
/^\/\*/ {
    in_comment = 1
    comment = ""
    if (match($0, /^\/\* [a-z0-9_]+: /)) contracts[substr($0, 4, RLENGTH - 5)]++
}
in_comment { comment = comment " " $0 }
/\*\// { in_comment = 0 }
/^} fp8flow_[a-z0-9_]+_args;/ {
    op = substr($2, 9)
    sub(/_args;.*/, "", op)
    args_line[op] = FNR
    if (comment !~ "^ */\\* " op ": ") bad(FNR, "fp8flow_" op "_args does not follow a comment \"" op ": ...\"")
    else
        for (i = split("Exactness Errors Source", words, " "); i > 0; i--)
            if (comment !~ words[i]) bad(FNR, "the contract of " op " does not say " words[i])
}
/^FP8FLOW_API/ {
    text = $0
    sub(/\(.*/, "", text)
    sub(/.*[ *]/, "", text)
    declared[substr(text, 9)] = 1
    if (!paragraph_has_comment) bad(FNR, text " has no comment before it")
}
END {
    finish()
    exit failed
}
' "$1"/*.h >&2
