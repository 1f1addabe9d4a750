#!/bin/sh
# install_deps.sh [build] [test] - install the Debian packages that are missing.
#
# What is there is found out by asking for the thing itself (a program, a pkg-config module, a header), not for a
# package: a compiler from elsewhere counts. Says what is missing and the command before running it. Nothing missing:
# silent and fast. Debian 12 and Ubuntu 24.04 carry every package named here.
set -u
export LC_ALL=C

die()
{
    echo "install_deps: $*" >&2
    exit 1
}

# Every line: group, package, and how to see that it is not needed.
wanted='
build  make               has_program make
build  gcc                has_program gcc
build  libc6-dev          has_header stdio.h
build  pkg-config         has_program pkg-config
build  libopenblas-openmp-dev has_module openblas
build  libjansson-dev     has_module jansson
build  libxxhash-dev      has_module libxxhash
test   libcmocka-dev      has_header cmocka.h
test   g++                has_program g++
test   clang-14           has_program clang-14
test   libclang-rt-14-dev has_file /usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a
test   clang-format-14    has_program clang-format-14
test   clang-tidy-14      has_program clang-tidy-14
test   cmake              has_program cmake
test   groff-base         has_program groff
test   libopenmpi-dev     has_program mpicc.openmpi
test   openmpi-bin        has_program mpirun.openmpi
test   libmpich-dev       has_program mpicc.mpich
test   mpich              has_program mpirun.mpich
'

has_program()
{
    command -v "$1" >/dev/null 2>&1
}
has_module()
{
    pkg-config --exists "$1" 2>/dev/null
}
has_header() # cmocka.h needs its four companions before it
{
    printf '#include <stdarg.h>\n#include <stddef.h>\n#include <setjmp.h>\n#include <stdint.h>\n#include <%s>\n' "$1" |
        "${CC:-cc}" -E - >/dev/null 2>&1
}
has_file()
{
    for file in "$@"; do
        [ -e "$file" ] && return 0
    done
    return 1
}

# Names of the packages of the given groups whose thing is not there.
missing()
{
    for group in "$@"; do
        echo "$wanted" | while read -r of package check argument; do
            # The file pattern must expand here, hence no quotes.
            # shellcheck disable=SC2086
            [ "$of" = "$group" ] && { $check $argument || printf '%s ' "$package"; }
        done
    done
}

# The flavour of OpenBLAS with OpenMP's threads is in Debian and Ubuntu, not in every derivative.
available()
{
    for package in "$@"; do
        if [ "$package" = libopenblas-openmp-dev ] && ! apt-cache show "$package" >/dev/null 2>&1; then
            package=libopenblas-dev
        fi
        printf '%s ' "$package"
    done
}

[ $# -gt 0 ] || set -- build
groups=$*
# shellcheck disable=SC2086
packages=$(missing $groups)
[ -n "$packages" ] || exit 0
echo "Missing: $packages"
has_program apt-get || die "no apt-get here; install what these Debian packages hold: $packages"
sudo=
if [ "$(id -u)" -ne 0 ]; then
    has_program sudo || die "needs root or sudo to run: apt-get install -y $packages"
    sudo=sudo
    [ -t 0 ] || sudo='sudo -n'
fi
apt="${sudo:+$sudo }env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300"
echo "Running: $apt update"
$apt update >/dev/null || die "apt-get update failed; is there a network?"
# shellcheck disable=SC2046,SC2086
packages=$(available $packages)
echo "Running: $apt install -y --no-install-recommends $packages"
# shellcheck disable=SC2086
$apt install -y --no-install-recommends $packages >/dev/null </dev/null ||
    die "apt-get could not install: $packages"
# shellcheck disable=SC2086
packages=$(missing $groups)
[ -z "$packages" ] || die "apt-get installed without an error, but these are still not usable: $packages"
