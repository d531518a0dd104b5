# Builds run, export/convert and the other programs with nothing but a C++17 compiler. `make help` lists the targets.

CXX ?= g++
CXXFLAGS ?= -O3
BUILD ?= build
PREFIX ?= /usr/local
# The engine's bits do not depend on -ffp-contract: it writes every fused multiply-add itself. The converter's and the
# trainer's do.
ALL_FLAGS = -std=c++17 -Wall -Wextra -ffp-contract=off -pthread $(CXXFLAGS)
# All programs share one copy of the SIMD kernels, which take longest to compile.
PROGRAM = $(CXX) $(ALL_FLAGS) -DPOCKET_SEPARATE_KERNELS
KERNELS = $(BUILD)/kernels.o

# Use all cores, unless -j was given.
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
endif

ENGINE = run.cpp tokenizer.hpp
EXPORT = $(ENGINE) $(wildcard export/*.hpp)
MODELS = $(EXPORT) $(wildcard models/*.hpp models/megabyte/*.hpp)
CLI = $(MODELS) $(wildcard apps/cli/*.hpp)

all: run export/convert

$(KERNELS): run.cpp
	@mkdir -p $(BUILD)
	$(CXX) $(ALL_FLAGS) -DPOCKET_NO_MAIN -DPOCKET_DEFINE_KERNELS -c run.cpp -o $@

run: apps/cli/main.cpp $(CLI) $(KERNELS)
	$(PROGRAM) apps/cli/main.cpp $(KERNELS) -o $@ $(LDFLAGS)

export/convert: export/convert.cpp $(MODELS) $(KERNELS)
	$(PROGRAM) export/convert.cpp $(KERNELS) -o $@ $(LDFLAGS)

# Trains a model from a text.
models/train: models/train.cpp $(MODELS) $(KERNELS)
	$(PROGRAM) models/train.cpp $(KERNELS) -o $@ $(LDFLAGS)

# Programs that measure: speed, memory and quality of a model; kernels one by one (with Google Benchmark); training.
bench: apps/bench/bench
apps/bench/bench: apps/bench/bench.cpp $(wildcard apps/bench/*.hpp) $(CLI) $(KERNELS)
	$(PROGRAM) apps/bench/bench.cpp $(KERNELS) -o $@ $(LDFLAGS)

bench-training: apps/bench/training
apps/bench/training: apps/bench/training.cpp $(MODELS) $(KERNELS)
	$(PROGRAM) apps/bench/training.cpp $(KERNELS) -o $@ $(LDFLAGS)

bench-kernels:
	@echo '#include <benchmark/benchmark.h>' | $(CXX) -x c++ -fsyntax-only - 2>/dev/null || \
	  { echo "bench-kernels: requires Google Benchmark (Debian: libbenchmark-dev)" >&2; exit 1; }
	$(MAKE) apps/bench/kernels
apps/bench/kernels: apps/bench/kernels.cpp $(ENGINE) $(KERNELS)
	$(PROGRAM) apps/bench/kernels.cpp $(KERNELS) -o $@ $(LDFLAGS) -lbenchmark

help:
	@echo "make                 build ./run and export/convert"
	@echo "make models/train    build the trainer: from a text of stories to a model of your own"
	@echo "make demo            build, and let the model that ships with the project tell a story"
	@echo "make test            install what the tests need, and run all tests"
	@echo "make test-arm        cross-compile for aarch64 and run the CPU-dependent tests in qemu"
	@echo "make sanitize        run the tests under ASan and UBSan, and the threaded ones under TSan"
	@echo "make bench           build apps/bench/bench: speed, memory and quality of a model on this machine"
	@echo "make bench-kernels   build apps/bench/kernels: one kernel at a time; requires Google Benchmark"
	@echo "make bench-training  build apps/bench/training: speed of models/train on this machine"
	@echo "make install         copy run to $(PREFIX)/bin/pocketllama, its man page and its model to $(PREFIX)/share"
	@echo "make clean           remove what was built (models stay)"

demo: all
	./run -i "Once upon a time" -s 5
	@echo
	@echo "That was models/stories.bin, 1.4 MB, trained by models/train (models/README.md). It tells stories; try:"
	@echo "  ./run --words dog,cake,sad"
	@echo "Larger models answer questions:"
	@echo "  models/get smollm2-135m-instruct     93 MB to download, 155 MB of memory"
	@echo "  models/get tinyllama-1.1b-chat       2.2 GB to download, 550 MB of memory"
	@echo "Then chat with one:"
	@echo "  ./run models/smollm2-135m-instruct.bin -m chat"

test: all
	tests/setup
	cmake -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release $(if $(CXX),-DCMAKE_CXX_COMPILER=$(CXX))
	cmake --build $(BUILD) -j 2
	ctest --test-dir $(BUILD) --output-on-failure

test-arm: all
	tests/aarch64

# TSan watches the tests that share data between threads: the pool, sessions, programs that share a model.
sanitize:
	tests/setup
	$(MAKE) sanitized SANITIZE=address,undefined
	$(MAKE) sanitized SANITIZE=thread TESTS='engine_test' ONLY='^(Pool|SameBits|Cancel|Library)\.'

sanitized:
	cmake -S . -B build-$(SANITIZE) -DPOCKET_SANITIZE=$(SANITIZE) $(if $(CXX),-DCMAKE_CXX_COMPILER=$(CXX))
	cmake --build build-$(SANITIZE) -j 2 $(if $(TESTS),--target $(TESTS))
	ctest --test-dir build-$(SANITIZE) --output-on-failure $(if $(ONLY),-R '$(ONLY)')

# The man page is the text of --help, which run itself prints as troff.
man/pocketllama.1: run
	mkdir -p man
	./run --man > $@.tmp && mv $@.tmp $@

install: run man/pocketllama.1
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 run $(DESTDIR)$(PREFIX)/bin/pocketllama
	install -d $(DESTDIR)$(PREFIX)/share/pocketllama
	install -m 644 models/stories.bin $(DESTDIR)$(PREFIX)/share/pocketllama
	install -m 644 man/pocketllama.1 $(DESTDIR)$(PREFIX)/share/man/man1

clean:
	rm -rf run export/convert models/train apps/bench/bench apps/bench/kernels apps/bench/training man $(BUILD) build-*

.PHONY: all bench bench-kernels bench-training help demo test test-arm sanitize sanitized install clean
