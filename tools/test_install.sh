#!/bin/sh
# test_install.sh - install into a temporary prefix, build and run a small program against what lies there (pkg-config
# shared and static, CMake both ways where cmake is), and see that uninstall leaves no file.
set -eu
# The makes below are of their own: no job server, no variant of a caller.
unset MAKEFLAGS MFLAGS MAKELEVEL
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'status=$?; [ $status -eq 0 ] || echo "test_install: failed: $doing" >&2; rm -rf "$work"' EXIT
prefix=$work/prefix
cc=${CC:-cc}

doing="make install"
make -s install PREFIX="$prefix" DESTDIR=
doing="the soname and its links"
[ "$(readlink "$prefix/lib/libfp8flow.so")" = libfp8flow.so.0 ]
readelf -d "$prefix/lib/libfp8flow.so" | grep -q 'SONAME.*\[libfp8flow.so.0\]'
doing="the installed program and its manual page"
"$prefix/bin/fp8flow" --version >/dev/null
grep -q '^\.Dt FP8FLOW 1' "$prefix/share/man/man1/fp8flow.1"

cat >"$work/main.c" <<'END'
#include <fp8flow_ops.h>
#include <stdio.h>

int main(void)
{
    float values[16] = { 1.0f, -2.0f, 448.0f };
    uint8_t codes[16], scale[1];
    fp8flow_tensor x = { .rows = 1, .cols = 16, .stride = 16, .data = values };
    fp8flow_tensor rows = { 1, 16, 16, 0, FP8FLOW_E4M3, FP8FLOW_ROW128, FP8FLOW_ROWS, codes, scale };
    fp8flow_context *context = NULL;
    fp8flow_status status = fp8flow_context_create(&(fp8flow_context_options){ FP8FLOW_CPU, 1 }, &context);
    if (status == FP8FLOW_OK)
        status = fp8flow_quantize(context, &(fp8flow_quantize_args){ .x = &x, .rows = &rows });
    fp8flow_context_destroy(context);
    printf("%s %d %d\n", fp8flow_status_name(status), codes[2], scale[0]);
    return status != FP8FLOW_OK;
}
END

runs() # program: 448 is the largest code, 0x7E = 126, under the scale 2^0, byte 127
{
    [ "$(LD_LIBRARY_PATH=$prefix/lib "$1")" = "OK 126 127" ]
}

export PKG_CONFIG_PATH="$prefix/lib/pkgconfig"
# Flags are lists of words.
# shellcheck disable=SC2046
{
    doing="a program with pkg-config, shared"
    $cc "$work/main.c" -o "$work/shared" $(pkg-config --cflags --libs fp8flow)
    runs "$work/shared"
    doing="the shared library as the program's only dependency of ours"
    readelf -d "$work/shared" | grep -q 'NEEDED.*\[libfp8flow.so.0\]'
    doing="a program with pkg-config, static"
    $cc "$work/main.c" -o "$work/static" \
        $(pkg-config --static --cflags --libs fp8flow | sed 's/-lfp8flow/-l:libfp8flow.a/')
    runs "$work/static"
    [ "$(readelf -d "$work/static" | grep -c 'NEEDED.*fp8flow')" -eq 0 ]
}

if command -v cmake >/dev/null 2>&1; then
    cat >"$work/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.16)
project(example C)
find_package(fp8flow 0.1 REQUIRED)
add_executable(shared main.c)
target_link_libraries(shared fp8flow::fp8flow)
add_executable(static main.c)
target_link_libraries(static fp8flow::fp8flow_static)
END
    doing="a program with CMake"
    cmake -S "$work" -B "$work/cmake" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" >"$work/cmake.log" 2>&1 &&
        cmake --build "$work/cmake" >>"$work/cmake.log" 2>&1 || { cat "$work/cmake.log" >&2; exit 1; }
    runs "$work/cmake/shared"
    runs "$work/cmake/static"
    doing="CMake refuses another series"
    sed -i 's/fp8flow 0\.1/fp8flow 0.2/' "$work/CMakeLists.txt"
    if cmake -S "$work" -B "$work/cmake2" -DCMAKE_PREFIX_PATH="$prefix" >/dev/null 2>&1; then false; fi
else
    echo "cmake not found: the CMake package was not tested"
fi

doing="make uninstall leaves nothing"
make -s uninstall PREFIX="$prefix" DESTDIR=
[ -z "$(find "$prefix" ! -type d)" ]
[ ! -d "$prefix/lib/cmake/fp8flow" ]

doing="DESTDIR"
make -s install PREFIX=/usr DESTDIR="$work/stage"
[ -x "$work/stage/usr/bin/fp8flow" ]
grep -q '^prefix=/usr$' "$work/stage/usr/lib/pkgconfig/fp8flow.pc"
make -s uninstall PREFIX=/usr DESTDIR="$work/stage"
[ -z "$(find "$work/stage" ! -type d)" ]
