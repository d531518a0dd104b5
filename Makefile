# Builds run and export/convert with nothing but a C++17 compiler. `make help` lists the targets.

CXX ?= g++
CXXFLAGS ?= -O3
# -ffp-contract=off: the code says itself where a product and a sum are fused; nobody else may.
ALL_FLAGS = -std=c++17 -Wall -Wextra -ffp-contract=off -pthread $(CXXFLAGS)
BUILD ?= build
PREFIX ?= /usr/local

all: run export/convert

run: run.cpp $(wildcard *.hpp) export/json.hpp export/input_file.hpp
	$(CXX) $(ALL_FLAGS) run.cpp -o $@ $(LDFLAGS)

export/convert: export/convert.cpp $(wildcard export/*.hpp) run.cpp megabyte.hpp chat_families.hpp tokenizer.hpp
	$(CXX) $(ALL_FLAGS) export/convert.cpp -o $@ $(LDFLAGS)

# Trains a model from a text.
models/train: models/train.cpp $(wildcard models/*.hpp export/*.hpp *.hpp) run.cpp
	$(CXX) $(ALL_FLAGS) models/train.cpp -o $@ $(LDFLAGS)

# Programs that measure: speed, memory and quality of a model; kernels one by one (with Google Benchmark).
bench: tests/bench/bench
bench-kernels:
	@echo '#include <benchmark/benchmark.h>' | $(CXX) -x c++ -fsyntax-only - 2>/dev/null || \
	  { echo "bench-kernels: needs Google Benchmark (Debian: libbenchmark-dev)" >&2; exit 1; }
	$(MAKE) tests/bench/kernels

tests/bench/bench: tests/bench/bench.cpp $(wildcard tests/bench/*.hpp *.hpp) run.cpp export/json.hpp export/input_file.hpp
	$(CXX) $(ALL_FLAGS) tests/bench/bench.cpp -o $@ $(LDFLAGS)

bench-training: tests/bench/training
tests/bench/training: tests/bench/training.cpp $(wildcard models/*.hpp export/*.hpp *.hpp) run.cpp
	$(CXX) $(ALL_FLAGS) tests/bench/training.cpp -o $@ $(LDFLAGS)

tests/bench/kernels: tests/bench/kernels.cpp run.cpp
	$(CXX) $(ALL_FLAGS) tests/bench/kernels.cpp -o $@ $(LDFLAGS) -lbenchmark

help:
	@echo "make            build ./run and export/convert"
	@echo "make models/train   build the trainer: from a text of stories to a model of your own"
	@echo "make demo       build, and let the model that ships tell a story"
	@echo "make test       get what the tests need, and run them all"
	@echo "make test-arm   cross-compile for aarch64, and run what depends on the CPU by qemu"
	@echo "make sanitize   the same tests under ASan and UBSan, and the threads under TSan"
	@echo "make bench      build tests/bench/bench: how fast a model runs on this machine, and what it loses"
	@echo "make bench-kernels   build tests/bench/kernels: the kernels one by one; needs Google Benchmark"
	@echo "make bench-training  build tests/bench/training: how fast models/train computes on this machine"
	@echo "make install    copy run to $(PREFIX)/bin/pocketllama, its man page and the model that ships to $(PREFIX)/share"
	@echo "make clean      remove what was built (models stay)"

demo: all
	./run -i "Once upon a time" -s 5
	@echo
	@echo "That was models/stories.bin, 1.4 MB, trained by models/train (models/README.md). It only tells stories, also to order:"
	@echo "  ./run --words dog,cake,sad"
	@echo "Larger ones answer questions:"
	@echo "  models/get smollm2-135m-instruct     93 MB to fetch, 155 MB of memory"
	@echo "  models/get tinyllama-1.1b-chat       2.2 GB to fetch, 550 MB of memory"
	@echo "and then, for one:"
	@echo "  ./run models/smollm2-135m-instruct.bin -m chat"

test: all
	tests/setup
	cmake -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release $(if $(CXX),-DCMAKE_CXX_COMPILER=$(CXX))
	cmake --build $(BUILD) -j 2
	ctest --test-dir $(BUILD) --output-on-failure

test-arm: all
	tests/aarch64

# A thread is watched where threads are: the pool, sessions, programs that share a model.
sanitize:
	tests/setup
	$(MAKE) sanitized SANITIZE=address,undefined
	$(MAKE) sanitized SANITIZE=thread TESTS='pool_test session_test library_test' ONLY='^(Pool|SameBits|Cancel|Library)\.'

sanitized:
	cmake -S . -B build-$(SANITIZE) -DPOCKET_SANITIZE=$(SANITIZE) $(if $(CXX),-DCMAKE_CXX_COMPILER=$(CXX))
	cmake --build build-$(SANITIZE) -j 2 $(if $(TESTS),--target $(TESTS))
	ctest --test-dir build-$(SANITIZE) --output-on-failure $(if $(ONLY),-R '$(ONLY)')

# The man page is --help's text, which run itself knows.
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
	rm -rf run export/convert models/train tests/bench/bench tests/bench/kernels tests/bench/training man $(BUILD) build-*

.PHONY: all bench bench-kernels bench-training help demo test test-arm sanitize sanitized install clean
