# fp8flow: one Makefile. `make` alone prints the targets. Needs gcc or clang, make, and the packages
# that `make deps` installs (OpenBLAS, jansson, xxHash, cmocka).
#
# Variables: DEBUG=1 ASAN=1 UBSAN=1 TSAN=1 WERROR=1 V=1 CC=... PREFIX=... Every combination builds in its
# own folder build/<variant>/, so that switching never costs a rebuild.

VERSION := 0.1.0
CC      ?= cc
PREFIX  ?= /usr/local
DESTDIR ?=
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

variant := $(strip $(if $(DEBUG),debug) $(if $(ASAN),asan) $(if $(UBSAN),ubsan) $(if $(TSAN),tsan))
empty :=
variant := $(if $(variant),$(subst $(empty) $(empty),-,$(variant)),release)$(if $(filter clang%,$(notdir $(CC))),-clang)
B := build/$(variant)
Q := $(if $(V),,@)

packages := jansson libxxhash
PKG_CONFIG ?= pkg-config
# OpenBLAS: the flavour whose threads are OpenMP's, where the distribution has it; else the default one.
openblas_dir := $(firstword $(wildcard /usr/lib/*/openblas-openmp) $(wildcard /usr/lib/openblas-openmp))
blas_libs := $(if $(openblas_dir),-L$(openblas_dir)) -lopenblas
dep_cflags = $(shell $(PKG_CONFIG) --cflags $(packages) openblas 2>/dev/null)
dep_libs   = $(blas_libs) $(shell $(PKG_CONFIG) --libs $(packages) 2>/dev/null) -lm

warnings := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wconversion -Wvla \
            -Wno-unknown-pragmas $(if $(WERROR),-Werror)
openmp   := $(if $(TSAN),,-fopenmp)
CFLAGS   ?= -O2 -g
# No contraction, no fast-math: the bits are a contract (docs/FORMATS.md).
cflags    = -std=c11 -D_GNU_SOURCE -DFP8FLOW_VERSION=\"$(VERSION)\" -ffp-contract=off -fvisibility=hidden -fPIC \
            -Iinclude -Isrc $(warnings) $(openmp) $(CFLAGS) $(sanitize) $(dep_cflags) -MMD -MP
sanitize := $(if $(DEBUG),-O0) $(if $(ASAN),-fsanitize=address -fno-omit-frame-pointer) \
            $(if $(UBSAN),-fsanitize=undefined -fno-sanitize-recover=all) $(if $(TSAN),-fsanitize=thread -DFP8FLOW_TSAN)
ldflags   = $(openmp) $(sanitize) $(LDFLAGS) $(dep_libs) -lpthread

machine  := $(shell uname -m)
avx2_src := $(if $(filter x86_64,$(machine)),$(wildcard src/ops/*_avx2.c))
lib_src  := $(filter-out %_avx2.c,$(wildcard src/*.c src/*/*.c)) $(avx2_src)
cli_src  := $(wildcard cli/*.c)
test_src := $(wildcard tests/test_*.c)
lib_obj  := $(lib_src:%.c=$(B)/%.o)
cli_obj  := $(cli_src:%.c=$(B)/%.o)
tests    := $(test_src:tests/%.c=$(B)/tests/%)

$(B)/%_avx2.o: cflags += -mavx2 -mfma -mf16c

$(B)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC  $<")
	$(Q)$(CC) $(cflags) -c $< -o $@

$(B)/libfp8flow.a: $(lib_obj)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(B)/libfp8flow.so: $(lib_obj)
	$(Q)$(CC) -shared -Wl,-soname,libfp8flow.so.0 -Wl,--no-undefined -o $@ $^ $(ldflags)

$(B)/fp8flow: $(cli_obj) $(B)/libfp8flow.a
	$(Q)$(CC) -o $@ $^ $(ldflags)

$(B)/tests/%: tests/%.c $(B)/libfp8flow.a Makefile
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC  $<")
	$(Q)$(CC) $(cflags) -Itests -o $@ $< $(B)/libfp8flow.a $(ldflags) -lcmocka

-include $(lib_obj:.o=.d) $(cli_obj:.o=.d) $(tests:=.d)

.PHONY: help lib cli
help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lib: $(B)/libfp8flow.a $(B)/libfp8flow.so ## build/release/libfp8flow.{a,so}

cli: $(B)/fp8flow ## build/release/fp8flow
