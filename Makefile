# fp8flow: one Makefile. `make` alone prints the targets; `make deps` installs what the build needs.
#
# Variables: DEBUG=1 ASAN=1 UBSAN=1 TSAN=1 FUZZ=1 CUDA=0|1 NCCL=0 MPI=0 WERROR=1 V=1 CC=... NVCC=... PREFIX=...
# DESTDIR=...
# Every combination builds in its own folder build/<variant>/, so that switching never costs a rebuild. All cores are
# used unless -j says else.

VERSION   := 0.1.0
SOVERSION := 0
CC        ?= cc
PREFIX    ?= /usr/local
BINDIR    ?= $(PREFIX)/bin
INCLUDEDIR ?= $(PREFIX)/include
LIBDIR    ?= $(PREFIX)/lib
MANDIR    ?= $(PREFIX)/share/man/man1
DESTDIR   ?=
PKG_CONFIG ?= pkg-config
FUZZ_SECONDS ?= 60
SANITIZE_TOOLS ?= memcheck racecheck initcheck synccheck
DEMO_ARGS ?= --recipes bf16,blockwise,flow --data /usr/include --steps 200 --out demo

MAKEFLAGS += --no-builtin-rules --no-print-directory
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc)
endif
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:

# The one version of the clang tools whose verdict counts, where it is installed: another formats differently.
CLANG        := $(shell command -v clang-14 2>/dev/null || echo clang)
CLANG_FORMAT := $(shell command -v clang-format-14 2>/dev/null || echo clang-format)
CLANG_TIDY   := $(shell command -v clang-tidy-14 2>/dev/null || echo clang-tidy)
is_clang     := $(findstring clang,$(notdir $(CC)))

# CUDA is built where there is a compiler for it and a GPU to run it on; CUDA=1 builds it without a GPU (in a folder of
# its own), CUDA=0 leaves it out.
NVCC     ?= $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
SANITIZER ?= $(or $(shell command -v compute-sanitizer 2>/dev/null),$(wildcard /usr/local/cuda/bin/compute-sanitizer))
has_gpu  := $(wildcard /dev/nvidiactl)
CUDA_DIR ?= $(if $(NVCC),$(patsubst %/bin/,%,$(dir $(realpath $(NVCC)))))
ifeq ($(origin CUDA),undefined)
with_cuda := $(if $(and $(NVCC),$(has_gpu),$(if $(ASAN)$(UBSAN)$(TSAN)$(FUZZ),,yes)),yes)
else
with_cuda := $(filter-out 0,$(CUDA))
endif
# NCCL is looked for at run time; what is needed here is its header. NCCL_DIR=... has it in include/; NCCL=0 leaves it
# out.
nccl_dir := $(if $(filter 0,$(NCCL)),,$(firstword $(patsubst %/nccl.h,%,$(wildcard $(addsuffix /nccl.h, \
              $(NCCL_DIR:%=%/include) $(CUDA_DIR)/include /usr/include /usr/local/include)))))
with_nccl := $(if $(with_cuda),$(nccl_dir))

# ---- Where and how to build ----
empty :=
kinds := $(strip $(foreach k,DEBUG ASAN UBSAN TSAN FUZZ,$(if $($k),$(shell echo $k | tr A-Z a-z))) \
           $(if $(filter 1,$(CUDA)),cuda $(if $(filter 0,$(NCCL)),nonccl)))
B     := build/$(if $(kinds),$(subst $(empty) $(empty),-,$(kinds)),release)$(if $(is_clang),-clang)
Q     := $(if $(V),,@)

packages := jansson libxxhash
# OpenBLAS: the flavour whose threads are OpenMP's, where the distribution has it; else the default one.
blas_dir  := $(firstword $(wildcard /usr/lib/*/openblas-openmp /usr/lib/openblas-openmp))
blas_libs := $(if $(blas_dir),-L$(blas_dir)) -lopenblas
have_deps := $(shell $(PKG_CONFIG) --exists $(packages) openblas 2>/dev/null && echo yes)
dep_cflags := $(if $(have_deps),$(shell $(PKG_CONFIG) --cflags $(packages) openblas))
dep_libs  := $(blas_libs) $(if $(have_deps),$(shell $(PKG_CONFIG) --libs $(packages))) -lm -lpthread -ldl

# No OpenMP under clang: its runtime would run beside the one that OpenBLAS brings. None under TSan: it cannot see
# the runtime's synchronisation. What only a pragma uses is then unused.
openmp   := $(if $(is_clang)$(TSAN),,-fopenmp)
no_openmp_warnings := -Wno-unused-parameter -Wno-unused-variable
warnings := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wconversion -Wvla \
            -Wno-unknown-pragmas $(if $(openmp),,$(no_openmp_warnings)) $(if $(WERROR),-Werror)
sanitize := $(if $(ASAN)$(FUZZ),-fsanitize=address -fno-omit-frame-pointer) \
            $(if $(UBSAN)$(FUZZ),-fsanitize=undefined -fno-sanitize-recover=all) \
            $(if $(TSAN),-fsanitize=thread -DFP8FLOW_TSAN) $(if $(FUZZ),-fsanitize=fuzzer-no-link)
CFLAGS   ?= $(if $(DEBUG),-O0,-O2) -g
# No contraction, no fast-math: the bits are a contract (docs/FORMATS.md).
base_cflags = -D_GNU_SOURCE -DFP8FLOW_VERSION=\"$(VERSION)\" -DFP8FLOW_BUILD=\"$(build_id)\" -ffp-contract=off \
              -Iinclude -Isrc $(dep_cflags)
cflags    = -std=c11 $(base_cflags) -fvisibility=hidden -fPIC $(warnings) $(openmp) $(CFLAGS) $(sanitize) -MMD -MP
ldflags   = $(openmp) $(sanitize) $(LDFLAGS) $(dep_libs) $(cuda_libs)
avx2      := $(if $(filter x86_64,$(shell uname -m)),-mavx2 -mfma -mf16c)

# The CUDA runtime is part of the program; the driver is looked for when it is called.
cuda_libs  := $(if $(with_cuda),-L$(CUDA_DIR)/lib64 -lcudart_static -ldl -lrt)
cuda_flags := -std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 -lineinfo --fmad=false -Xptxas=--warn-on-spills \
              -Werror=all-warnings -Iinclude -Isrc -Xcompiler=-fPIC,-fvisibility=hidden,-fno-exceptions,-fno-rtti \
              -Xcompiler=-fno-threadsafe-statics $(NVCCFLAGS)

# Loaded, not linked. MPI=0 leaves them out.
mpi_plugins := $(if $(filter 0,$(MPI)),,$(foreach m,openmpi mpich,$(if $(shell command -v mpicc.$m 2>/dev/null), \
                 $(B)/libfp8flow_mpi_$m.so)))

avx2_src := $(if $(avx2),$(wildcard src/*/*_avx2.c))
cu_src   := $(if $(with_cuda),$(wildcard src/*/*.cu))
lib_src  := $(filter-out %_avx2.c $(if $(with_cuda),%_nocuda.c,%_cuda.c) $(if $(with_nccl),%_nonccl.c,%_nccl.c), \
              $(wildcard src/*.c src/*/*.c)) $(avx2_src)
cli_src  := $(wildcard cli/*.c)
headers  := $(wildcard include/*.h)
contracts := include/fp8flow_ops.h include/fp8flow_ops_ranks.h
c_files  := $(lib_src) $(cli_src) $(wildcard tests/*.c examples/*.c fuzz/*.c)
all_headers := $(headers) $(wildcard src/*.h src/*/*.h cli/*.h tests/*.h)
# Processes of one job compare it.
id_files := $(sort $(lib_src) $(cu_src) $(cli_src) $(headers) \
                $(wildcard src/*/*.h src/*/*.cuh src/*/plugin/*.c cli/*.h))
build_id := $(firstword $(shell cat $(id_files) | cksum))
lib_obj  := $(lib_src:%.c=$(B)/%.o) $(cu_src:%.cu=$(B)/%.cu.o)
cli_obj  := $(cli_src:%.c=$(B)/%.o)
no_lab     := $(if $(wildcard $(CUDA_DIR)/include/cublasLt.h),,lab/gemm_cublaslt.cu lab/gemm_dense.cu)
labs       := $(if $(with_cuda),$(patsubst %.cu,$(B)/%,$(filter-out $(no_lab),$(wildcard lab/*.cu))))
examples   := $(patsubst %.c,$(B)/%,$(wildcard examples/*.c))
tests      := $(patsubst %.c,$(B)/%,$(wildcard tests/test_*.c))
# Tests of operators, layers and training, which the mirror (tests/mirror.h) can run on another device; programs that
# need a GPU; the tests of single operators, for compute-sanitizer.
device_tests := $(patsubst %.c,$(B)/%,$(shell grep -lE 'make_context|moe_fixture|training\.h' \
                  $(wildcard tests/test_*.c) /dev/null))
cuda_tests   := $(patsubst %.c,$(B)/%,$(wildcard tests/cuda_*.c))
kernel_tests := $(patsubst %,$(B)/tests/test_%,quantize transpose permute swiglu router router_backward gemm \
                  decoder_ops attention vocab sums optimizer)
long_tests := $(patsubst %.c,$(B)/%,$(wildcard tests/long_*.c))
# TSan looks at threads of our own only: the programs that use the thread transport.
tsan_tests := $(patsubst %.c,$(B)/%,$(shell grep -ls 'comm/\|pthread.h' $(wildcard tests/test_*.c) /dev/null))
fuzz_names := $(patsubst fuzz/fuzz_%.c,%,$(wildcard fuzz/fuzz_*.c))
tidy_ok    := $(patsubst %.c,$(B)/tidy/%.ok,$(filter-out tests/% fuzz/%,$(c_files)))
# The header of FP8 formats that tests compare with, where CUDA is installed; its own warnings are not ours.
cuda_dir   := $(wildcard /usr/local/cuda/include)
run_tests  := FP8FLOW=$(B)/fp8flow tools/run_tests.sh

# ---- Rules ----
# It tells the build's name, which all sources make.
$(B)/src/api.o: $(id_files)

$(B)/%_avx2.o: cflags += $(avx2)

$(B)/%.o: %.c Makefile | require-deps
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC  $<")
	$(Q)$(CC) $(cflags) -c $< -o $@

$(B)/%_cuda.o: cflags += -isystem $(CUDA_DIR)/include
$(B)/%_nccl.o: cflags += -isystem $(nccl_dir) -isystem $(CUDA_DIR)/include
$(B)/%.cu.o: %.cu Makefile
	@mkdir -p $(@D)
	$(if $(V),,@echo "  NVCC  $<")
	$(Q)$(NVCC) $(cuda_flags) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

$(B)/libfp8flow.a: $(lib_obj)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(B)/libfp8flow.so: $(lib_obj)
	$(Q)$(CC) -shared -Wl,-soname,libfp8flow.so.$(SOVERSION) -Wl,--no-undefined -o $@ $^ $(ldflags)

$(B)/fp8flow: $(cli_obj) $(B)/libfp8flow.a | $(mpi_plugins)
	$(Q)$(CC) -o $@ $^ $(ldflags)

# One plugin for each MPI library that is installed; loaded when its mpirun has started the program.
$(B)/libfp8flow_mpi_%.so: src/comm/plugin/mpi_plugin.c src/comm/mpi_plugin.h Makefile
	@mkdir -p $(@D)
	$(if $(V),,@echo "  MPICC  $@")
	$(Q)mpicc.$* -std=c11 -D_GNU_SOURCE -Isrc -O2 -g -fPIC -fvisibility=hidden -Wall -Wextra -shared -o $@ $<

# In a plugin's place, it kills a rank in the middle of a collective.
$(B)/tests/mpi_fault.so: tests/mpi_fault.c src/comm/mpi_plugin.h Makefile
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE -Isrc -O2 -g -fPIC -fvisibility=hidden $(warnings) -shared -o $@ $< -ldl

# Parts of the program that have unit tests: a test takes from the archive what it names.
$(B)/cli.a: $(cli_obj)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(B)/tests/%: $(B)/tests/%.o $(B)/tests/mirror.o $(B)/tests/mirror_ops.o $(B)/cli.a $(B)/libfp8flow.a
	$(Q)$(CC) -o $@ $^ $(ldflags) -lcmocka
$(B)/tests/%.o: cflags += -Itests $(if $(cuda_dir),-isystem $(cuda_dir))
# This program stands between the library and the allocator.
comma := ,
wrapped := malloc calloc realloc aligned_alloc strdup strndup free
$(B)/tests/test_memory: ldflags += $(foreach f,$(wrapped),-Wl$(comma)--wrap=$f)

$(B)/examples/%: $(B)/examples/%.o $(B)/libfp8flow.a
	$(Q)$(CC) -o $@ $^ $(ldflags)

# Kernel experiments: programs of their own, beside the library.
$(B)/lab/%: lab/%.cu lab/lab.cuh $(wildcard src/ops/*.cuh) $(B)/libfp8flow.a
	@mkdir -p $(@D)
	$(if $(V),,@echo "  NVCC  $<")
	$(Q)$(NVCC) $(cuda_flags) -Ilab -o $@ $< $(B)/libfp8flow.a $(patsubst -f%,-Xcompiler=-f%,$(ldflags))

# A fuzz target with libFuzzer, and with a main of its own that runs the kept inputs.
$(B)/fuzz/fuzz_%: $(B)/fuzz/fuzz_%.o $(B)/libfp8flow.a
	$(Q)$(CC) -fsanitize=fuzzer -o $@ $^ $(ldflags)
$(B)/fuzz/replay_%: $(B)/fuzz/fuzz_%.o $(B)/fuzz/replay.o $(B)/libfp8flow.a
	$(Q)$(CC) -o $@ $^ $(ldflags)

$(B)/tidy/%.ok: %.c .clang-tidy $(all_headers)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  TIDY  $<")
	$(Q)$(CLANG_TIDY) --quiet --warnings-as-errors='*' $< -- -std=c11 $(base_cflags) $(avx2) 2>$@.log >&2 || \
	    { grep -v 'warnings\? generated\.$$' $@.log; exit 1; }
	@touch $@

-include $(patsubst %.c,$(B)/%.d,$(c_files)) $(cu_src:%.cu=$(B)/%.cu.d)

# ---- Targets ----
.PHONY: help require-deps deps deps-test lib cli lab check check-long check-all-floats check-cli check-mpi check-cuda \
        check-tools check-install check-tsan check-mirror gpu-check run-gpu-check sanitize-gpu run-sanitize-gpu \
        test asan ubsan tsan lint format matrix fuzz fuzz-regress run-fuzz bench demo \
        docs install uninstall dist clean
help: ## this list
	@echo "fp8flow $(VERSION): make TARGET [DEBUG=1 ASAN=1 UBSAN=1 TSAN=1 WERROR=1 V=1 CC=... PREFIX=... DESTDIR=...]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{ printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@CC='$(CC)' NVCC='$(NVCC)' HAS_GPU='$(has_gpu)' OPENMP='$(openmp)' BLAS_DIR='$(blas_dir)' \
	    CLANG='$(CLANG)' tools/detect.sh

require-deps:
	@test -n "$(have_deps)" || \
	    { echo "fp8flow: OpenBLAS, jansson or xxHash is not installed; run: make deps" >&2; exit 1; }

deps: ## install what the build needs (apt-get; says first what it will run)
	@tools/install_deps.sh build

deps-test: ## the same, and what the tests and lint need
	@tools/install_deps.sh build test

lib: $(B)/libfp8flow.a $(B)/libfp8flow.so ## build/release/libfp8flow.{a,so}

cli: $(B)/fp8flow ## build/release/fp8flow

check: $(tests) $(examples) ## unit tests and the examples, under a minute
	@$(run_tests) $(tests) $(examples)

lab: $(labs) ## the kernel experiments of lab/*.cu (needs CUDA)

check-long: $(long_tests) ## the slow cases (tests/long_*.c)
	@$(run_tests) $(long_tests)

check-all-floats: $(B)/tests/long_formats ## every one of the 2^32 floats through every format
	@$(run_tests) $<

check-mpi: cli $(B)/tests/mpi_comm ## the MPI transport, with Open MPI and MPICH where they are installed
	@$(run_tests) tests/mpi_comm.sh

check-cli: cli $(B)/tests/mpi_fault.so ## the command line from end to end (tests/cli_*.sh)
	@$(run_tests) $(wildcard tests/cli_*.sh)

check-cuda: ## gpu-check where there is a GPU; else compile and link the CUDA side, where nvcc is installed
	@$(if $(NVCC),$(MAKE) $(if $(has_gpu),gpu-check,CUDA=1 lib cli lab),echo "  no nvcc: CUDA is not compiled")

check-tools: ## the checks of lint find what they are for
	@$(run_tests) tools/test_checks.sh

check-install: lib cli ## install, build and run a program against it, uninstall
	@$(run_tests) tools/test_install.sh

check-mirror: $(device_tests) $(cuda_tests) ## what gpu-check runs, with the CPU in the GPU's place
	@FP8FLOW_TEST_DEVICE=mirror $(run_tests) $^

gpu-check: ## unit tests and tests/cuda_*.c on the GPU (an H100 or H200)
	@$(MAKE) CUDA=1 run-gpu-check
run-gpu-check: $(device_tests) $(cuda_tests)
	@FP8FLOW_TEST_DEVICE=cuda JOBS=$${JOBS:-4} $(run_tests) $^

sanitize-gpu: ## the tests of the operators under compute-sanitizer, SANITIZE_TOOLS="memcheck racecheck ..."
	@$(MAKE) CUDA=1 run-sanitize-gpu
run-sanitize-gpu: $(kernel_tests)
	@SANITIZER='$(SANITIZER)' TOOLS='$(SANITIZE_TOOLS)' tools/run_sanitizer.sh $^

test: ## everything that CI runs: unit, long, command line, sanitizers, install, lint, matrix
	@$(MAKE) deps-test
	@FP8FLOW=build/release/fp8flow tools/test_all.sh "$(MAKE)"

asan: ## unit tests under AddressSanitizer
	@$(MAKE) ASAN=1 check
ubsan: ## unit tests under UndefinedBehaviorSanitizer
	@$(MAKE) UBSAN=1 check
tsan: ## the tests of the thread transport under ThreadSanitizer
	@$(MAKE) TSAN=1 check-tsan
check-tsan: $(tsan_tests)
	@OMP_NUM_THREADS=1 $(run_tests) $(tsan_tests)

lint: lib $(tidy_ok) ## format, style, layers, symbols, contracts, documents, clang-tidy
	@CLANG_FORMAT='$(CLANG_FORMAT)' tools/check_style.sh
	@tools/check_layers.sh
	@tools/check_symbols.sh $(B)
	@tools/check_contracts.sh include
	@awk -f tools/make_operators_md.awk $(contracts) | cmp -s - docs/OPERATORS.md || \
	    { echo "docs/OPERATORS.md is out of date; run: make docs" >&2; exit 1; }
	@# The example in README.md consists of lines of examples/layer.c.
	@awk '/^```c$$/ { on = 1; next } /^```$$/ { on = 0 } on' README.md | grep -Fxvf examples/layer.c && \
	    { echo "README.md: these lines are not in examples/layer.c" >&2; exit 1; } || true
	@if command -v groff >/dev/null && groff -mdoc -ww -z docs/fp8flow.1 2>&1 | grep .; then exit 1; fi

format: ## clang-format -i on every C file
	@$(CLANG_FORMAT) -i $(c_files) $(all_headers)

matrix: ## gcc and clang, C11 and C17; the public headers alone as C11 and C++17
	@BASE_CFLAGS="$(base_cflags) $(warnings) $(avx2)" NO_OPENMP='$(no_openmp_warnings)' CLANG='$(CLANG)' \
	    tools/check_matrix.sh $(c_files)

fuzz: ## fuzz the file readers with libFuzzer, FUZZ_SECONDS=60 for each of fuzz/fuzz_*.c
	@$(MAKE) FUZZ=1 CC=$(CLANG) run-fuzz
run-fuzz: $(fuzz_names:%=$(B)/fuzz/fuzz_%)
	@FUZZ_SECONDS='$(FUZZ_SECONDS)' tools/run_fuzz.sh $^
fuzz-regress: ## replay the kept inputs in fuzz/corpus under the sanitizers
	@$(MAKE) ASAN=1 UBSAN=1 $(fuzz_names:%=replay-%)
replay-%: $(B)/fuzz/replay_%
	@echo "  REPLAY  $*"
	@ASAN_OPTIONS=allocator_may_return_null=1 $< fuzz/corpus/$*

bench: cli ## time every operator and the layer (BENCH_ARGS=...)
	@$(B)/fp8flow bench $(BENCH_ARGS)

demo: ## install the packages, build, train the same small model in several recipes, write a report
	@$(MAKE) deps
	@$(MAKE) cli
	build/release/fp8flow compare $(DEMO_ARGS)
	@echo "The report is in demo/report.html"

docs: ## docs/OPERATORS.md from the contracts in include/
	@awk -f tools/make_operators_md.awk $(contracts) >docs/OPERATORS.md

# ---- Installation ----
D := $(DESTDIR)
cmake_dir := $(LIBDIR)/cmake/fp8flow
so_names  := libfp8flow.so.$(VERSION) libfp8flow.so.$(SOVERSION) libfp8flow.so
installed := $(headers:include/%=$(INCLUDEDIR)/%) $(addprefix $(LIBDIR)/,libfp8flow.a $(so_names)) \
             $(addprefix $(LIBDIR)/,$(notdir $(mpi_plugins))) \
             $(BINDIR)/fp8flow $(MANDIR)/fp8flow.1 $(LIBDIR)/pkgconfig/fp8flow.pc \
             $(cmake_dir)/fp8flowConfig.cmake $(cmake_dir)/fp8flowConfigVersion.cmake
private_libs := $(blas_libs) $(cuda_libs) $(openmp) -lm -lpthread -ldl
fill_in   := sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@INCLUDEDIR@|$(INCLUDEDIR)|' \
             -e 's|@VERSION@|$(VERSION)|; s|@SOVERSION@|$(SOVERSION)|; s|@PACKAGES@|$(packages)|' \
             -e 's|@LIBS@|$(private_libs)|; s|@STATIC_LIBS@|$(dep_libs) $(cuda_libs) $(openmp)|'

install: lib cli ## headers, libraries, program, manual page, pkg-config and CMake files under PREFIX
	$(Q)install -d $(addprefix $(D),$(INCLUDEDIR) $(LIBDIR)/pkgconfig $(cmake_dir) $(BINDIR) $(MANDIR))
	$(Q)install -m 644 $(headers) $(D)$(INCLUDEDIR)
	$(Q)install -m 644 $(B)/libfp8flow.a $(D)$(LIBDIR)
	$(Q)install -m 755 $(B)/libfp8flow.so $(D)$(LIBDIR)/libfp8flow.so.$(VERSION)
	$(Q)ln -sf libfp8flow.so.$(VERSION) $(D)$(LIBDIR)/libfp8flow.so.$(SOVERSION)
	$(Q)ln -sf libfp8flow.so.$(SOVERSION) $(D)$(LIBDIR)/libfp8flow.so
	$(Q)install -m 755 $(B)/fp8flow $(D)$(BINDIR)
	$(if $(mpi_plugins),$(Q)install -m 755 $(mpi_plugins) $(D)$(LIBDIR))
	$(Q)install -m 644 docs/fp8flow.1 $(D)$(MANDIR)
	$(Q)$(fill_in) packaging/fp8flow.pc.in >$(D)$(LIBDIR)/pkgconfig/fp8flow.pc
	$(Q)$(fill_in) packaging/fp8flowConfig.cmake.in >$(D)$(cmake_dir)/fp8flowConfig.cmake
	$(Q)$(fill_in) packaging/fp8flowConfigVersion.cmake.in >$(D)$(cmake_dir)/fp8flowConfigVersion.cmake

uninstall: ## remove what install put there
	$(Q)rm -f $(addprefix $(D),$(installed))
	$(Q)rmdir $(D)$(cmake_dir) 2>/dev/null || true

dist: ## build/fp8flow-VERSION.tar.gz from the last commit
	$(Q)mkdir -p build
	$(Q)git archive --prefix=fp8flow-$(VERSION)/ -o build/fp8flow-$(VERSION).tar.gz HEAD
	@echo "build/fp8flow-$(VERSION).tar.gz"

clean: ## remove build/ and demo/
	$(Q)rm -rf build demo
