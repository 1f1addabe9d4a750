#!/bin/sh
# test_checks.sh - the checks of `make lint` find what they are for. Each case breaks one thing in a copy of the tree
# and expects the check to fail with the right words. Prints what cmocka would, for the count.
set -u
cd "$(dirname "$0")/.." || exit 1
unset MAKEFLAGS MFLAGS MAKELEVEL TALLY
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0
failed=0
CLANG_FORMAT=${CLANG_FORMAT:-$(command -v clang-format-14 || echo clang-format)}
CLANG_TIDY=${CLANG_TIDY:-$(command -v clang-tidy-14 || echo clang-tidy)}
export CLANG_FORMAT

result() # status (0 good), name
{
    if [ "$1" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "[  FAILED  ] $2"; fi
}

# finds NAME TEXT COMMAND...: in a fresh copy, `break_it` applied, COMMAND fails and says TEXT.
finds()
{
    name=$1 text=$2
    shift 2
    rm -rf "$work/tree"
    mkdir "$work/tree"
    cp -r .clang-format .clang-tidy Makefile include src cli tests tools docs "$work/tree" 2>/dev/null
    (cd "$work/tree" && break_it) || { result 1 "$name: could not be broken"; return; }
    (cd "$work/tree" && "$@") >"$work/log" 2>&1
    status=$?
    if [ $status -eq 0 ]; then result 1 "$name: not found"
    elif grep -q -- "$text" "$work/log"; then result 0 "$name"
    else result 1 "$name: found, but without \"$text\":"; sed 's/^/    /' "$work/log"
    fi
}

# ---- layers ----
break_it() { echo '#include "ops/ops.h"' >>src/base/tensor.c; }
finds "layers: upward" 'layer 2' tools/check_layers.sh
break_it() { mkdir -p src/recipe && echo '#include "device/device.h"' >src/recipe/x.c; }
finds "layers: sideways" 'layer 1' tools/check_layers.sh
break_it() { echo '#include "tensor.h"' >>src/base/tensor.c; }
finds "layers: bare name" 'folder/file.h' tools/check_layers.sh
break_it() { echo '#include <jansson.h>' >>src/base/tensor.c; }
finds "layers: package in base" 'jansson.h' tools/check_layers.sh
break_it() { mkdir -p src/utils && echo 'int x;' >src/utils/x.c; }
finds "layers: unknown folder" 'layer table' tools/check_layers.sh
break_it() { mkdir -p cli && echo '#include "base/status.h"' >cli/x.c; }
finds "layers: program looks inside" 'public headers only' tools/check_layers.sh
break_it() { echo '#include <jansson.h>' >>include/fp8flow_ops.h; }
finds "layers: package in public header" 'jansson.h' tools/check_layers.sh
break_it() { echo '#include "fp8flow_device.h"' >>include/fp8flow_ops.h; }
finds "layers: public headers upward" 'status codes only' tools/check_layers.sh
break_it() { printf '/* public headers only */\n#include "base/fp8.h"\n' >tests/test_x.c; }
finds "layers: public test looks inside" 'internal' tools/check_layers.sh

# ---- contracts ----
for word in Exactness Errors Source; do
    # The comment of embed is short enough to be edited by line.
    break_it() { sed -i "/^\/\* embed: /,/\*\// s/$word/Xyz/" include/fp8flow_ops.h; }
    finds "contracts: $word" "embed does not say $word" tools/check_contracts.sh include
done
break_it() { sed -i 's/^\/\* embed: /\/* embedding: /' include/fp8flow_ops.h; }
finds "contracts: no comment" '"embed:' tools/check_contracts.sh include
break_it() { sed -i 's/^\/\* rope: /\/* embed: /' include/fp8flow_ops.h; }
finds "contracts: two comments" '2 comments begin with "embed:"' tools/check_contracts.sh include
break_it() { sed -i '/^FP8FLOW_API.*fp8flow_embed(/d' include/fp8flow_ops.h; }
finds "contracts: no function" 'no function fp8flow_embed' tools/check_contracts.sh include
break_it() { sed -i 's/^\/\* Calls of the named.*/\n/' include/fp8flow_ops.h; }
finds "contracts: bare function" 'fp8flow_context_calls has no comment' tools/check_contracts.sh include

# ---- style ----
break_it() { { echo '/* x.c - no excuse. */'; yes '/* */' | head -n 500; } >src/base/x.c; }
finds "style: 501 lines" '501 lines' tools/check_style.sh
break_it() { { echo '/* x.c - reason: none. */'; yes '/* */' | head -n 700; } >src/base/x.c; }
finds "style: 701 lines" '701 lines' tools/check_style.sh
break_it() { echo 'int x;' >src/base/x.c; }
finds "style: no header comment" 'src/base/x.c' tools/check_style.sh
break_it() { mkdir -p src/io && cp src/base/tensor.c src/io/; }
finds "style: same name twice" 'tensor.c' tools/check_style.sh
break_it() { echo '/* blank */ ' >>src/base/tensor.c; }
finds "style: trailing blank" 'end in blanks' tools/check_style.sh
break_it() { echo '/* TO''DO */' >>src/base/tensor.c; }
finds "style: left over" 'work left over' tools/check_style.sh
break_it() { printf '/*\n<<<<<<< HEAD\n*/\n' >>src/base/tensor.c; }
finds "style: half a merge" 'work left over' tools/check_style.sh
break_it() { printf '/* %0130d */\n' 0 >>src/base/tensor.c; }
finds "style: long line" '120 columns' tools/check_style.sh
break_it() { echo 'const char *f8_x = "flow";' >>src/base/tensor.c; }
finds "style: recipe name" 'src/recipe' tools/check_style.sh
break_it() { echo 'int  x ;' >>src/base/tensor.c; }
finds "style: format" 'not formatted' tools/check_style.sh

# ---- symbols ----
symbols() # C text: the check on a library made of it
{
    mkdir -p lib/src/ops && printf '%s\n' "$1" >lib/src/ops/x.c &&
        gcc -fPIC "${2:--fvisibility=hidden}" -c lib/src/ops/x.c -o lib/src/ops/x.o &&
        ar rcs lib/libfp8flow.a lib/src/ops/x.o && gcc -shared -o lib/libfp8flow.so lib/src/ops/x.o || return 0
    tools/check_symbols.sh lib
}
break_it() { :; }
finds "symbols: exported" 'f8_x' symbols 'int f8_x(void) { return 0; }' -fvisibility=default
finds "symbols: foreign global" 'helper' symbols 'int helper(void) { return 0; }'
finds "symbols: prints" 'printf' symbols '#include <stdio.h>
int f8_x(void) { return printf("x\n"); }'
finds "symbols: standard error" 'stderr' symbols '#include <stdio.h>
size_t f8_x(void) { return fwrite("x", 1, 1, stderr); }'
finds "symbols: exits" 'exit' symbols '#include <stdlib.h>
int f8_x(void) { exit(1); }'
finds "symbols: asserts" '__assert_fail' symbols '#include <assert.h>
int f8_x(int x) { assert(x); return x; }'
finds "symbols: operator allocates" 'malloc' symbols '#include <stdlib.h>
void *f8_x(void) { return malloc(1); }'
(cd "$work/tree" && symbols 'int f8_x(void) { return 0; }') >"$work/log" 2>&1
result $? "symbols: a clean library passes"

# ---- clang-tidy ----
tidy()
{
    printf '%s\n' "$1" >src/base/x.c && "$CLANG_TIDY" --quiet src/base/x.c -- -std=c11 -Isrc -Iinclude
}
finds "tidy: parameters" 'readability-function-size' tidy \
    'int f8_x(int a, int b, int c, int d, int e, int f, int g, int h) { return a + b + c + d + e + f + g + h; }'
finds "tidy: function length" 'readability-function-size' tidy "int f8_x(int a)
{
$(yes '    a = a * 3 + 1;' | head -n 61)
    return a;
}"
finds "tidy: unchecked fwrite" 'cert-err33-c' tidy '#include <stdio.h>
void f8_x(FILE *f) { fwrite("x", 1, 1, f); }'
finds "tidy: atoi" 'cert-err34-c' tidy '#include <stdlib.h>
int f8_x(const char *s) { return atoi(s); }'
finds "tidy: leak" 'clang-analyzer' tidy '#include <stdlib.h>
int f8_x(void) { int *p = malloc(4); if (!p) return 1; *p = 0; return *p; }'

# ---- the test runner ----
runner() { printf '#!/bin/sh\n%s\n' "$1" >t.sh && chmod +x t.sh && tools/run_tests.sh ./t.sh; }
finds "runner: exit status" '0 passed, 1 failed' runner 'exit 3'
finds "runner: crash" '0 passed, 1 failed' runner 'kill -SEGV $$'
finds "runner: cmocka's report" '4 passed, 2 failed' runner \
    'echo "[  PASSED  ] 4 test(s)."; echo "[  FAILED  ] 2 test(s), listed below:"; exit 2'
finds "runner: no programs" 'no test programs' tools/run_tests.sh

echo "[  PASSED  ] $passed test(s)."
[ $failed -eq 0 ] || { echo "[  FAILED  ] $failed test(s), listed below:"; exit 1; }
