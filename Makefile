# Builds run, export/convert and the other programs with nothing but a C++17 compiler. `make help` lists the targets.

CXX ?= g++
CXXFLAGS ?=
BUILD ?= build
PREFIX ?= /usr/local
# -O2 serves everything but the kernels, and compiles in two thirds of the time of -O3.
OPTIMIZE = -O2
# The engine's bits do not depend on -ffp-contract, since it writes every fused multiply-add itself. The converter's and
# the trainer's do.
ALL_FLAGS = -std=c++17 -Wall -Wextra -ffp-contract=off -pthread $(OPTIMIZE) $(CXXFLAGS)
# All programs share one copy of the forward pass and the kernels, which take longest to compile; the trainers, of theirs.
# They come first on a command line, so that the linker takes inline functions from them, which -O3 has compiled.
PROGRAM = $(CXX) $(ALL_FLAGS) -DPOCKET_SEPARATE_KERNELS
KERNELS = $(BUILD)/kernels.o
TRAIN_KERNELS = $(BUILD)/train_kernels.o

# Use all cores, unless -j was given.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(CORES)
endif

ENGINE = run.cpp tokenizer.hpp
EXPORT = $(ENGINE) $(wildcard export/*.hpp)
MODELS = $(EXPORT) $(wildcard models/*.hpp models/megabyte/*.hpp models/translate/*.hpp)
CLI = $(MODELS) $(wildcard apps/grammar/*.hpp apps/explain/*.hpp apps/explain/page.html apps/cli/*.hpp)

all: run export/convert

# Of the kernels and of the library, which share them.
PIC = -fPIC -fvisibility=hidden

$(KERNELS) $(TRAIN_KERNELS): OPTIMIZE = -O3
$(KERNELS): export/kernels.cpp run.cpp
	@mkdir -p $(BUILD)
	$(CXX) $(ALL_FLAGS) $(PIC) -c export/kernels.cpp -o $@

$(TRAIN_KERNELS): models/train_kernels.cpp $(MODELS)
	@mkdir -p $(BUILD)
	$(CXX) $(ALL_FLAGS) -c models/train_kernels.cpp -o $@

run: apps/cli/main.cpp $(CLI) $(KERNELS)
	$(PROGRAM) $(KERNELS) apps/cli/main.cpp -o $@ $(LDFLAGS)

export/convert: export/convert.cpp $(MODELS) $(KERNELS)
	$(PROGRAM) $(KERNELS) export/convert.cpp -o $@ $(LDFLAGS)

# Trains a model on a text.
models/train: models/train.cpp $(MODELS) $(KERNELS) $(TRAIN_KERNELS)
	$(PROGRAM) $(KERNELS) $(TRAIN_KERNELS) models/train.cpp -o $@ $(LDFLAGS)

# Makes examples for a translator: models/README.md.
models/translate/examples: models/translate/examples.cpp $(MODELS) $(KERNELS)
	$(PROGRAM) $(KERNELS) $< -o $@ $(LDFLAGS)

# Programs that change what a model computes: apps/explain/README.md.
explain-examples: apps/explain/examples/ablate apps/explain/examples/steer
apps/explain/examples/%: apps/explain/examples/%.cpp $(EXPORT) $(wildcard apps/explain/*.hpp) $(KERNELS)
	$(PROGRAM) $(KERNELS) $< -o $@ $(LDFLAGS)

# The C library.
API_VERSION := $(shell sed -n 's/^\#define POCKET_API_VERSION //p' apps/c/pocketllama.h)
LIBRARY = apps/c/libpocketllama
lib: $(LIBRARY).so $(LIBRARY).a

$(BUILD)/pocketllama.o: apps/c/pocketllama.cpp apps/c/pocketllama.h $(EXPORT)
	@mkdir -p $(BUILD)
	$(CXX) $(ALL_FLAGS) $(PIC) -DPOCKET_SEPARATE_KERNELS -c apps/c/pocketllama.cpp -o $@

$(LIBRARY).so.$(API_VERSION): $(KERNELS) $(BUILD)/pocketllama.o apps/c/exports.map
	$(CXX) $(ALL_FLAGS) -shared -Wl,-soname,$(notdir $@) -Wl,--version-script=apps/c/exports.map -Wl,-z,defs \
	  $(KERNELS) $(BUILD)/pocketllama.o -o $@ $(LDFLAGS)

$(LIBRARY).so: $(LIBRARY).so.$(API_VERSION)
	ln -sf $(notdir $<) $@

$(LIBRARY).a: $(KERNELS) $(BUILD)/pocketllama.o
	rm -f $@
	ar rcs $@ $^

# For apps/python: the library with its C++ runtime, as the file WHEEL_LIBRARY.
wheel-library: $(KERNELS) $(BUILD)/pocketllama.o
	$(CXX) $(ALL_FLAGS) -shared -Wl,--version-script=apps/c/exports.map -static-libstdc++ -static-libgcc $^ \
	  -o $(WHEEL_LIBRARY) $(LDFLAGS)

# The page that runs in a browser: one HTML file. By Debian's clang-16 and lld-16 (emscripten's own, 14, has an obsolete
# encoding of relaxed SIMD) with the C and C++ libraries of emscripten, but without its JavaScript.
WASM_CXX ?= clang++-16
WASM_LD ?= wasm-ld-16
EMSCRIPTEN_SYSROOT ?= /usr/share/emscripten/cache/sysroot
WASM_LIBRARIES = $(EMSCRIPTEN_SYSROOT)/lib/wasm32-emscripten
WASM_FLAGS = --target=wasm32-unknown-emscripten --sysroot=$(EMSCRIPTEN_SYSROOT) -D__EMSCRIPTEN__ -D_LIBCPP_ABI_VERSION=2 \
  -std=c++17 -Wall -Wextra -ffp-contract=off -fno-math-errno -fwasm-exceptions \
  -DPOCKET_FMA=pocket_wasm::fma -include apps/page/fma.hpp
# The page has no files, and so no adapters.
WASM_EXPORTS = _initialize malloc free sbrk pocket_page_explain \
  $(shell grep -o 'pocket_[a-z_]*' apps/c/pocketllama.h | grep -v adapter | sort -u)
WASM_LINK = -L$(WASM_LIBRARIES) --allow-undefined --strip-all --max-memory=4294967296 \
  -lc++$(MT)-except -lc++abi$(MT)-except -lunwind$(MT)-except -lstandalonewasm-memgrow -lc$(MT) -lcompiler_rt$(MT) \
  -ldlmalloc$(MT)
WASM = $(BUILD)/wasm
$(WASM)/simd128%: SIMD = -msimd128
$(WASM)/relaxed%: SIMD = -msimd128 -mrelaxed-simd
$(WASM)/threads%: SIMD = -msimd128 -mrelaxed-simd -pthread
# The module with threads: its memory comes from apps/page/threads.js, as do the functions that start one.
$(WASM)/threads.wasm: MT = -mt
$(WASM)/threads.wasm: WASM_SHARED = --shared-memory --import-memory --export-memory --initial-memory=4194304 \
  --export-table --export=_emscripten_thread_init --export=_emscripten_thread_exit \
  --export=_emscripten_thread_free_data --export=__wasm_init_tls --export=__tls_size --export=stackRestore
PAGE = apps/page/pocketllama.html

page:
	@command -v $(WASM_CXX) $(WASM_LD) python3 >/dev/null && [ -e $(WASM_LIBRARIES)/libc++-except.a ] || \
	  { echo "page: requires clang-16, lld-16, emscripten and python3 (Debian packages of these names)" >&2; exit 1; }
	$(MAKE) $(PAGE)
PAGE_MODULES = $(WASM)/threads.wasm $(WASM)/relaxed.wasm $(WASM)/simd128.wasm
$(PAGE): $(addprefix apps/page/,build.py page.html engine.js threads.js worker.js) apps/explain/page.html \
  models/stories.bin $(PAGE_MODULES)
	python3 apps/page/build.py $@ models/stories.bin $(PAGE_MODULES)

# Modules: relaxed, simd128; threads, which is relaxed with threads; scalar for the tests.
$(WASM)/%.wasm: $(WASM)/%-kernels.o $(WASM)/%-library.o
	$(WASM_LD) -o $@ $(WASM_LIBRARIES)/crt1_reactor.o $^ $(WASM_LINK) $(WASM_SHARED) --no-entry -z stack-size=1048576 \
	  $(WASM_EXPORTS:%=--export-if-defined=%)
$(WASM)/%-kernels.o: apps/page/kernels.cpp apps/page/fma.hpp run.cpp
	@mkdir -p $(WASM)
	$(WASM_CXX) $(WASM_FLAGS) $(SIMD) -O3 -c apps/page/kernels.cpp -o $@
$(WASM)/%-library.o: apps/page/library.cpp apps/c/pocketllama.cpp apps/c/pocketllama.h apps/page/fma.hpp $(CLI)
	@mkdir -p $(WASM)
	$(WASM_CXX) $(WASM_FLAGS) $(SIMD) -Oz -DPOCKET_SEPARATE_KERNELS -iwithsysroot/include/compat -c apps/page/library.cpp -o $@
.PRECIOUS: $(WASM)/%.wasm $(WASM)/%-kernels.o $(WASM)/%-library.o

# Bulk generation.
OPENAI = $(CLI) $(wildcard apps/grammar/*.hpp apps/openai/*.hpp)
batch:
	@echo '#include <nlohmann/json.hpp>' | $(CXX) $(CXXFLAGS) -std=c++17 -x c++ -fsyntax-only - 2>/dev/null || \
	  { echo "batch: requires nlohmann/json (Debian: nlohmann-json3-dev)" >&2; exit 1; }
	$(MAKE) run-batch
run-batch: apps/batch/main.cpp $(wildcard apps/batch/*.hpp) $(OPENAI) $(KERNELS)
	$(PROGRAM) $(KERNELS) apps/batch/main.cpp -o $@ $(LDFLAGS)

# Translates texts: models/README.md.
translate: apps/translate/main.cpp $(wildcard apps/translate/*.hpp) $(MODELS) $(KERNELS)
	$(PROGRAM) $(KERNELS) apps/translate/main.cpp -o $@ $(LDFLAGS)

# The server. Debian's cpp-httplib is a library with compiled parts; upstream's is a header, which needs no flags:
# make server HTTPLIB_FLAGS=-Ifolder
HTTPLIB_FLAGS ?= $(shell pkg-config --cflags --libs cpp-httplib 2>/dev/null)
server:
	@printf '#include <httplib.h>\n#include <nlohmann/json.hpp>\n' | \
	  $(CXX) $(CXXFLAGS) $(HTTPLIB_FLAGS) -std=c++17 -x c++ -fsyntax-only - 2>/dev/null || \
	  { echo "server: requires cpp-httplib and nlohmann/json (Debian: libcpp-httplib-dev nlohmann-json3-dev pkg-config)" >&2; \
	    exit 1; }
	$(MAKE) serve
serve: apps/server/main.cpp $(wildcard apps/server/*.hpp) apps/server/page.html $(OPENAI) $(KERNELS)
	$(PROGRAM) -DPOCKET_PAGE='"apps/server/page.html"' $(KERNELS) apps/server/main.cpp -o $@ $(HTTPLIB_FLAGS) $(LDFLAGS)

# Benchmarks: speed, memory and quality of a model; single kernels (with Google Benchmark); training.
bench: apps/bench/bench
apps/bench/bench: apps/bench/bench.cpp $(wildcard apps/bench/*.hpp) $(CLI) $(KERNELS)
	$(PROGRAM) $(KERNELS) apps/bench/bench.cpp -o $@ $(LDFLAGS)

bench-training: apps/bench/training
apps/bench/training: apps/bench/training.cpp $(MODELS) $(KERNELS) $(TRAIN_KERNELS)
	$(PROGRAM) $(KERNELS) $(TRAIN_KERNELS) apps/bench/training.cpp -o $@ $(LDFLAGS)

bench-kernels:
	@echo '#include <benchmark/benchmark.h>' | $(CXX) -x c++ -fsyntax-only - 2>/dev/null || \
	  { echo "bench-kernels: requires Google Benchmark (Debian: libbenchmark-dev)" >&2; exit 1; }
	$(MAKE) apps/bench/kernels
apps/bench/kernels: apps/bench/kernels.cpp $(ENGINE) $(KERNELS)
	$(PROGRAM) $(KERNELS) apps/bench/kernels.cpp -o $@ $(LDFLAGS) -lbenchmark

help:
	@echo "make                 build ./run and export/convert"
	@echo "make models/train    build the trainer: trains a model on a text"
	@echo "make translate       build ./translate: translates a text; its model: models/README.md"
	@echo "make batch           build ./run-batch: replies to a file of requests; requires nlohmann/json"
	@echo "make server          build ./serve: an OpenAI-compatible server; requires cpp-httplib and nlohmann/json"
	@echo "make page            build $(PAGE): a page that tells stories, offline; requires emscripten, clang-16, lld-16"
	@echo "make lib             build apps/c/libpocketllama.so and .a: the engine for C and other languages"
	@echo "make explain-examples  build the examples of interventions: apps/explain/README.md"
	@echo "make demo            build, and tell a story with the model in models/"
	@echo "make test            install what the tests require, and run all tests"
	@echo "make test-server     the server with its clients: openai, lm_eval, Chromium, hostile ones; installs them"
	@echo "make test-page       the page in Chromium and its modules in node; requires both, installs playwright"
	@echo "make test-explain    the page of --explain in Chromium, and its numbers in numpy; installs them"
	@echo "make test-batch      run-batch against OpenAI's types, and on Ray and Spark; installs them from PyPI, 1.2 GB"
	@echo "make test-arm        cross-compile for aarch64 and run the CPU-dependent tests in qemu"
	@echo "make test-systems    32-bit ARM and x86 in qemu; compile for macOS"
	@echo "make test-windows    cross-compile for Windows and compare with this machine in wine"
	@echo "make release         archives for Linux, Windows and macOS in build-release/, cross-compiled by zig"
	@echo "make test-release    build them twice and compare; run those of Linux, aarch64 in qemu"
	@echo "make sanitize        run all tests under ASan and UBSan, threaded ones under TSan"
	@echo "make fuzz            build the fuzz targets of tests/fuzz/; requires clang"
	@echo "make fuzz-smoke      run each fuzz target for 10 seconds"
	@echo "make bench           build apps/bench/bench: speed, memory and quality of a model on this machine"
	@echo "make bench-kernels   build apps/bench/kernels: speed of single kernels; requires Google Benchmark"
	@echo "make bench-training  build apps/bench/training: speed of models/train on this machine"
	@echo "make install         install pocketllama, its man page and model, the C library and the headers in $(PREFIX)"
	@echo "make uninstall       remove them"
	@echo "make clean           remove build products (not models)"

demo: all
	./run -i "Once upon a time" -s 23
	@echo
	@echo "This was models/stories.bin, 1.9 MB, trained with models/train (models/README.md). Try also:"
	@echo "  ./run --words dog,cake,sad"
	@echo "Larger models answer questions:"
	@echo "  models/get smollm2-135m-instruct     93 MB to download, 154 MB of memory"
	@echo "  models/get tinyllama-1.1b-chat       2.2 GB to download, 549 MB of memory"
	@echo "Then chat:"
	@echo "  ./run models/smollm2-135m-instruct.bin -m chat"

# Tests use the kernels and programs above, so that nothing is compiled twice.
test: all models/train models/translate/examples translate apps/bench/bench lib setup
	cmake -S . -B $(BUILD) -DPOCKET_PREBUILT=ON $(if $(CXX),-DCMAKE_CXX_COMPILER=$(CXX))
	cmake --build $(BUILD) -j $(CORES)
	ctest --test-dir $(BUILD) -j $(CORES) --output-on-failure

# After the programs that models/get runs, which it would build at the same time.
setup: all
	tests/setup

# Not part of `make test`: they install many packages.
test-batch: batch export/convert
	tests/batch/run
test-server:
	tests/server/run
test-page: page run export/convert $(WASM)/scalar.wasm $(WASM)/simd128-kernels_test.wasm $(WASM)/relaxed-kernels_test.wasm
	tests/page/run
# The tests of the kernels with GoogleTest, from the sources in Debian's libgtest-dev.
WASM_GTEST = -O1 -DGTEST_HAS_PTHREAD=0 -I/usr/src/googletest/googletest -I/usr/src/googletest/googletest/include \
  -iwithsysroot/include/compat
$(WASM)/gtest.o: /usr/src/googletest/googletest/src/gtest-all.cc
	@mkdir -p $(WASM)
	$(WASM_CXX) $(WASM_FLAGS) $(WASM_GTEST) -c $< -o $@
$(WASM)/gtest_main.o: /usr/src/googletest/googletest/src/gtest_main.cc
	@mkdir -p $(WASM)
	$(WASM_CXX) $(WASM_FLAGS) $(WASM_GTEST) -c $< -o $@
$(WASM)/%-kernels_test.o: tests/engine/kernels_test.cpp tests/support/tiny_model.hpp $(EXPORT)
	@mkdir -p $(WASM)
	$(WASM_CXX) $(WASM_FLAGS) $(SIMD) $(WASM_GTEST) -DPOCKET_NO_MAIN -DPOCKET_SEPARATE_KERNELS -c $< -o $@
$(WASM)/%-kernels_test.wasm: $(WASM)/%-kernels_test.o $(WASM)/%-kernels.o $(WASM)/gtest.o $(WASM)/gtest_main.o
	$(WASM_LD) -o $@ $(WASM_LIBRARIES)/crt1.o $^ $(WASM_LINK) -z stack-size=4194304


test-explain: run
	tests/explain/run

test-arm: all
	tests/aarch64

test-systems: run
	tests/systems

# These compile with zig, which tests/release/zig installs from PyPI; the first time, minutes for each target. .ci/run has
# a quick variant of test-windows, and leaves out test-release (half an hour).
test-windows: all models/train
	tests/windows/run
test-release:
	tests/release/run
release: all man/pocketllama.1
	tests/release/build build-release

# By clang, whose UndefinedBehaviorSanitizer finds more. Under TSan only the tests that share data between threads: the
# pool, sessions, sessions that share a model.
sanitize:
	tests/setup
	$(MAKE) sanitized CXX=clang++ CC=clang SANITIZE=address,undefined
	$(MAKE) sanitized CXX=clang++ CC=clang SANITIZE=thread TARGET=engine_test ONLY='^(Pool|PoolFailure|SameBits|Workspace|Cancel|Library)\.'

# In build-address, build-thread: a comma in the name would separate options of the linker.
COMMA = ,
SANITIZED = build-$(firstword $(subst $(COMMA), ,$(SANITIZE)))
sanitized:
	cmake -S . -B $(SANITIZED) -DPOCKET_SANITIZE=$(SANITIZE) -DCMAKE_CXX_COMPILER=$(CXX) -DCMAKE_C_COMPILER=$(CC)
	cmake --build $(SANITIZED) -j $(CORES) $(if $(TARGET),--target $(TARGET))
	ctest --test-dir $(SANITIZED) -j $(CORES) --output-on-failure $(if $(ONLY),-R '$(ONLY)')

# Fuzz targets: tests/fuzz/README.md. One program, which has the names of all targets. The kernels are compiled without
# UBSan, which would take two minutes; `make sanitize` has it. They come last, so that the linker takes the inline
# functions of the readers from the targets.
FUZZ = build-fuzz
FUZZ_ASAN = -fsanitize=address
FUZZ_UBSAN = -fsanitize=undefined -fno-sanitize-recover=all
FUZZ_CXX = clang++ -std=c++17 -Wall -Wextra -O1 -g1 -MMD -MP -D_GLIBCXX_ASSERTIONS -ffp-contract=off -pthread $(FUZZ_ASAN)
FUZZ_TARGETS = $(patsubst tests/fuzz/targets/%.cpp,$(FUZZ)/%,$(wildcard tests/fuzz/targets/*.cpp))

fuzz: $(FUZZ_TARGETS)

# Always from the same seed. The number of inputs depends on the speed of the machine. Longer runs search.
fuzz-smoke: fuzz
	tests/fuzz/run --build $(FUZZ) --seconds 10 --jobs 2 --seed 1 --timeout 20

$(FUZZ_TARGETS): $(FUZZ)/driver
	ln -f $< $@

$(FUZZ)/driver: $(FUZZ)/driver.o $(FUZZ)/kernels.o
	$(FUZZ_CXX) -fsanitize=fuzzer $(FUZZ_UBSAN) $^ -o $@

$(FUZZ)/driver.o: tests/fuzz/driver.cpp
	@mkdir -p $(FUZZ)
	$(FUZZ_CXX) -fsanitize=fuzzer $(FUZZ_UBSAN) -DPOCKET_SEPARATE_KERNELS -c $< -o $@

$(FUZZ)/kernels.o: export/kernels.cpp run.cpp
	@mkdir -p $(FUZZ)
	$(FUZZ_CXX) -fsanitize=fuzzer-no-link -c $< -o $@

-include $(wildcard $(FUZZ)/*.d)

# ./run prints its help as troff.
man/pocketllama.1: run
	mkdir -p man
	./run --man > $@.tmp && mv $@.tmp $@

VERSION := $(shell sed -n 's/.*kVersion = "\(.*\)";/\1/p' run.cpp)
INSTALLED = bin/pocketllama lib/libpocketllama.so lib/libpocketllama.so.$(API_VERSION) lib/libpocketllama.a \
  lib/pkgconfig/pocketllama.pc lib/cmake/pocketllama/pocketllamaConfig.cmake \
  lib/cmake/pocketllama/pocketllamaConfigVersion.cmake include/pocketllama.h include/pocketllama/run.cpp \
  include/pocketllama/tokenizer.hpp share/pocketllama/stories.bin share/man/man1/pocketllama.1
TO = $(DESTDIR)$(PREFIX)
# What CMake's configure_file() does.
FILL = sed -e 's|@CMAKE_INSTALL_PREFIX@|$(PREFIX)|' -e 's|@PROJECT_VERSION@|$(VERSION)|' \
  -e 's|@CMAKE_INSTALL_LIBDIR@|lib|' -e 's|@CMAKE_INSTALL_INCLUDEDIR@|include|'

install: run man/pocketllama.1 lib
	install -d $(sort $(dir $(addprefix $(TO)/,$(INSTALLED))))
	install -m 755 run $(TO)/bin/pocketllama
	install -m 755 $(LIBRARY).so.$(API_VERSION) $(TO)/lib
	ln -sf libpocketllama.so.$(API_VERSION) $(TO)/lib/libpocketllama.so
	install -m 644 $(LIBRARY).a $(TO)/lib
	$(FILL) apps/c/pocketllama.pc.in > $(TO)/lib/pkgconfig/pocketllama.pc
	install -m 644 apps/c/pocketllamaConfig.cmake $(TO)/lib/cmake/pocketllama
	$(FILL) apps/c/pocketllamaConfigVersion.cmake.in > $(TO)/lib/cmake/pocketllama/pocketllamaConfigVersion.cmake
	install -m 644 apps/c/pocketllama.h $(TO)/include
	install -m 644 run.cpp tokenizer.hpp $(TO)/include/pocketllama
	install -m 644 models/stories.bin $(TO)/share/pocketllama
	install -m 644 man/pocketllama.1 $(TO)/share/man/man1

uninstall:
	rm -f $(addprefix $(TO)/,$(INSTALLED))
	rmdir $(TO)/include/pocketllama $(TO)/share/pocketllama $(TO)/lib/cmake/pocketllama 2>/dev/null || true

clean:
	rm -rf run run-batch serve translate export/convert models/train models/translate/examples apps/bench/bench apps/bench/kernels apps/bench/training \
	  apps/explain/examples/ablate apps/explain/examples/steer $(LIBRARY).* apps/python/build $(PAGE) man $(BUILD) \
	  build-*

.PHONY: all batch server explain-examples bench bench-kernels bench-training lib wheel-library page fuzz fuzz-smoke \
  help demo setup test test-arm test-batch test-explain test-page test-server test-systems test-windows \
  test-release release sanitize \
  sanitized install uninstall clean
