# make_man.awk - the manual page from docs/fp8flow.1.md: awk -v version=0.1.0 -f make_man.awk fp8flow.1.md >fp8flow.1
#
# The Markdown understood: "# name(section) - summary" (or "# NAME" headings only), "## SECTION", "### Subsection",
# paragraphs, "- item", "term" followed by a line ": text", ``` fences and lines indented by four, pipe tables (set as
# they are), **bold**, *italic*, `code`.

function escape(s) {
    gsub(/\\/, "\\e", s)
    gsub(/-/, "\\-", s)
    return s
}
# Text between pairs of `mark` (a regular expression of `width` characters) in a font.
function font(s, mark, width, name,    out, from, rest) {
    out = ""
    while (match(s, mark)) {
        from = RSTART
        rest = substr(s, from + width)
        if (!match(rest, mark) || RSTART == 1) {
            out = out substr(s, 1, from + width - 1)
            s = rest
            continue
        }
        out = out substr(s, 1, from - 1) "\\f" name substr(rest, 1, RSTART - 1) "\\fR"
        s = substr(rest, RSTART + width)
    }
    return out s
}
function inline(s) {
    s = escape(s)
    s = font(s, "\\*\\*", 2, "B")
    s = font(s, "`", 1, "B")
    s = font(s, "\\*", 1, "I")
    return s
}
function put(s) {
    if (s ~ /^[.']/) s = "\\&" s
    print s
}
function verbatim(on) {
    if (on && !literal) print ".PP\n.in +4n\n.nf"
    if (!on && literal) print ".fi\n.in"
    literal = on
}
# The line before ": text" is a term; so every line waits until the next is known.
function flush_line() {
    if (!have) return
    have = 0
    put(inline(waiting))
}

BEGIN { title = "fp8flow"; section = 1 }
NR == 1 && /^# .*\([0-9]\)/ {
    title = $2
    sub(/\(.*/, "", title)
    section = $2
    gsub(/[^0-9]/, "", section)
    section = substr(section, length(section))
}
NR == 1 {
    printf ".TH %s %s \"\" \"fp8flow %s\"\n", toupper(title), section, version
    if (/^# .*\([0-9]\)/) {
        if (/ - /) {
            summary = $0
            sub(/^[^-]* - /, "", summary)
            printf ".SH NAME\n%s \\- %s\n", title, inline(summary)
        }
        next
    }
}
/^```/ {
    flush_line()
    fenced = !fenced
    verbatim(fenced)
    next
}
fenced { put(escape($0)); next }
/^\|[-:| ]+$/ { next }
/^    [^ ]/ || /^\|/ {
    flush_line()
    verbatim(1)
    sub(/^    /, "")
    put(escape($0))
    next
}
/^[ \t]*$/ {
    flush_line()
    verbatim(0)
    blank = 1
    next
}
{ verbatim(0) }
/^###+ / {
    flush_line()
    sub(/^#+ /, "")
    print ".SS " inline($0)
    blank = 0
    next
}
/^##? / {
    flush_line()
    sub(/^#+ /, "")
    print ".SH " toupper(inline($0))
    blank = 0
    next
}
/^[-*] / {
    flush_line()
    print ".IP \\(bu 2"
    waiting = substr($0, 3)
    have = 1
    blank = 0
    next
}
/^: / {
    print ".TP"
    flush_line()
    waiting = substr($0, 3)
    sub(/^ +/, "", waiting)
    have = 1
    blank = 0
    next
}
{
    flush_line()
    if (blank) print ".PP"
    blank = 0
    sub(/^ +/, "")
    waiting = $0
    have = 1
}
END {
    flush_line()
    verbatim(0)
}
