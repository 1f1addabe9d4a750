#!/bin/sh
# check_layers.sh - includes go downward only.
#
# src/: a file may include headers of its own folder, of folders on a lower layer, and the public headers; never a
# folder of its own layer. base knows libc only; the packages that a folder may use are in the table. cli/ and the
# public headers know the public headers and libc only (cli also its own headers, jansson, and cblas for the products
# that `bench` compares with); so do tests whose header comment says "public headers only".
set -u
cd "$(dirname "$0")/.." || exit 1

find src include cli tests -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null | sort | xargs awk '
BEGIN {
    # layer and packages of each folder; files directly under src/ are "api"
    split("base:0:sanitizer/asan_interface device:1:cuda,nvtx3/nvToolsExt recipe:1: io:1:jansson,xxhash" \
          " ops:2:cblas,omp,pthread,cuda,immintrin comm:2:omp,pthread,dlfcn,mpi,nccl,cuda moe:3: model:4:" \
          " train:5:xxhash api:6:", rows, " ")
    for (i in rows) {
        split(rows[i], field, ":")
        layer[field[1]] = field[2]
        packages[field[1]] = "," field[3] ","
    }
    # No assert, no signal: the library neither aborts nor installs handlers.
    split("complex ctype dirent errno fcntl fenv float inttypes limits locale math sched stdalign stdarg stdatomic" \
          " stdbool stddef stdint stdio stdlib string strings time unistd", names, " ")
    for (i in names) libc[names[i]] = 1
}
function bad(text) {
    print FILENAME ":" FNR ": " text
    failed = 1
}
FNR == 1 {
    parts = split(FILENAME, path, "/")
    area = path[1]
    folder = area == "src" ? (parts == 2 ? "api" : path[2]) : ""
    if (area == "src" && !(folder in layer)) bad("src/" folder " is not in the layer table of this check")
    public_only = area == "cli" || area == "include"
}
FNR <= 12 && area == "tests" && /public headers only/ { public_only = 1 }
/^[ \t]*#[ \t]*include[ \t]*</ {
    name = $0
    sub(/^[^<]*</, "", name)
    sub(/>.*/, "", name)
    sub(/\.h$/, "", name)
    if (FILENAME ~ /\.cuh?$/ && name ~ /^(cuda|cooperative_groups)/) next
    if ((name in libc) || name ~ /^sys\// || area == "tests") next
    if (area == "cli" && name ~ /^(cblas|dlfcn|jansson|poll|signal)$/) next
    if (area == "src" && index(packages[folder], "," name ",")) next
    if (area == "src" && index(packages[folder], ",cuda,") && name ~ /^cuda/) next
    bad("<" name ".h> is not libc and not among the packages of " (folder ? "src/" folder : area))
}
/^[ \t]*#[ \t]*include[ \t]*"/ {
    name = $0
    sub(/^[^"]*"/, "", name)
    sub(/".*/, "", name)
    if (name ~ /^fp8flow(_status|_ops|_ops_ranks|_device)?\.h$/) {
        if (FILENAME ~ /^include\/fp8flow_status\.h$/) bad("the header of status codes stands alone")
        if (FILENAME ~ /^include\/fp8flow_ops\.h$/ && name != "fp8flow_status.h")
            bad("the operator header knows the status codes only")
        next
    }
    if (area == "tests") {
        if (name ~ /\// && public_only) bad("\"" name "\" is internal; this test claims public headers only")
        next
    }
    if (area == "cli") {
        if (name ~ /\//) bad("\"" name "\": the program uses the public headers only")
        next
    }
    if (area == "include") {
        bad("\"" name "\" in a public header")
        next
    }
    slash = index(name, "/")
    target = slash ? substr(name, 1, slash - 1) : ""
    if (!(target in layer)) bad("\"" name "\": write it as folder/file.h, with a folder of the layer table")
    else if (target != folder && layer[target] >= layer[folder])
        bad("src/" folder " (layer " layer[folder] ") may not include \"" name "\" (layer " layer[target] ")")
}
END { exit failed }
' >&2 || { echo "check_layers: includes go downward only (CONTRIBUTING.md, layers)" >&2; exit 1; }
