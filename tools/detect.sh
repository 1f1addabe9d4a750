#!/bin/sh
# detect.sh - what `make help` says about this machine. Called by the Makefile with CC, NVCC, HAS_GPU, OPENMP,
# BLAS_DIR and CLANG.
set -u
version_of() # program: first line of its --version, or "not found"
{
    "$1" --version 2>/dev/null | head -n 1 | grep . || echo "not found"
}
package() # name: version known to pkg-config, or "not found"
{
    "${PKG_CONFIG:-pkg-config}" --modversion "$1" 2>/dev/null || echo "not found"
}
echo
echo "Found here:"
cuda="not found"
[ -z "$NVCC" ] || cuda="$("$NVCC" --version | sed -n 's/.*release \([0-9.]*\).*/nvcc \1/p')$([ -n "$HAS_GPU" ] ||
    echo ', no GPU: left out unless CUDA=1')"
printf '  %-12s %s\n' \
    compiler "$(version_of "$CC")" \
    OpenMP "$([ -n "$OPENMP" ] && echo yes || echo no)" \
    CUDA "$cuda" \
    OpenBLAS "$(package openblas)$([ -n "$BLAS_DIR" ] && echo ', OpenMP threads')" \
    jansson "$(package jansson)" \
    xxHash "$(package libxxhash)" \
    cmocka "$(package cmocka) (tests)" \
    clang "$(version_of "$CLANG") (lint, fuzz)"
