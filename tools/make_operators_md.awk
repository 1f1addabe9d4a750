# make_operators_md.awk - docs/OPERATORS.md from the contract comments of include/fp8flow_ops*.h.
#
# Takes the header comments as introduction, a heading from every "---- Title ----" line, and of every operator its
# comment and the declarations that stand in the same paragraph. The table comes first, so all of it waits for the end.

function strip(line) { # comment decoration
    sub(/ ?\*\/$/, "", line)
    sub(/^ ?\/?\* ?/, "", line)
    return line
}
function first_sentence(text) {
    if (match(text, /\.( |$)/)) text = substr(text, 1, RSTART - 1)
    gsub(/\|/, "\\|", text)
    return text
}
# The class letters after "Exactness": "E", "R", or both where parts differ.
function class_of(text,    rest, letters) {
    rest = text
    if (!match(rest, /Exactness/)) return "?"
    rest = substr(rest, RSTART + RLENGTH)
    if (match(rest, /Errors/)) rest = substr(rest, 1, RSTART - 1)
    if (rest ~ /(^|[^A-Za-z0-9])E([^A-Za-z0-9]|$)/) letters = "E"
    if (rest ~ /(^|[^A-Za-z0-9])R([^A-Za-z0-9]|$)/) letters = letters (letters ? ", R" : "R")
    return letters
}
function end_paragraph() {
    if (op != "" && code ~ ("} fp8flow_" op "_args;")) {
        class = class_of(comment)
        table = table "| [" op "](#" op ") | " first_sentence(summary) " | " class " |\n"
        body = body pending "\n### " op "\n\n```\n" comment "```\n\n```c\n" code "```\n"
        pending = ""
    }
    op = comment = code = summary = ""
}

FNR == 1 {
    header = 1
    if (NR > 1) intro = intro "\n"
}
header {
    if (/^ \*\//) header = 0
    else if (FNR > 2) intro = intro strip($0) "\n"
    next
}
/^\/\* ---- / {
    end_paragraph()
    title = $0
    sub(/^\/\* ---- /, "", title)
    sub(/ -+ \*\/$/, "", title)
    pending = "\n## " title "\n"
    next
}
/^[ \t]*$/ { end_paragraph(); next }
/^\/\*/ {
    comment = code = summary = ""
    op = ""
    inside = 1
    if (match($0, /^\/\* [a-z0-9_]+: /)) {
        op = substr($0, 4, RLENGTH - 5)
        summary = substr($0, RLENGTH + 1)
    }
}
inside {
    line = strip($0)
    if (line != "" || !/\*\/$/) comment = comment line "\n"
    if (/\*\//) inside = 0
    next
}
{ code = code $0 "\n" }
END {
    end_paragraph()
    print "# Operators\n"
    print "Generated from `include/fp8flow_ops.h` and `include/fp8flow_ops_ranks.h` by `make docs`; edit the"
    print "headers, not this file.\n"
    print "```\n" intro "```\n"
    print "| operator | computes | exactness |\n|---|---|---|"
    printf "%s%s", table, body
}
