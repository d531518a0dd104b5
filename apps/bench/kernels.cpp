// kernels.cpp: measures each kernel of each kernel set by itself, on one thread, with Google Benchmark.
//
//     make bench-kernels && apps/bench/kernels --benchmark_filter='matmul/q4/avx2'
//
// bytes/s counts the weights, the keys and values, or the input vector; Gop/s counts a multiply-add as two operations.
// "cache" reads the same 256 KiB repeatedly; "memory" reads 256 MiB in pieces of 256 KiB.

#include "../../export/engine.hpp"

#include <benchmark/benchmark.h>

#include <iostream>

#include "../../export/program.hpp"

namespace {

using namespace pocket;
using Counter = benchmark::Counter;

constexpr size_t kPiece = 256 << 10, kMemory = 256 << 20;  // bytes of weights: per call, in total

/// Reproducible numbers from -1 to 1.
std::vector<float> numbers(size_t n) {
  std::vector<float> all(n);
  uint32_t state = 1;
  for (float& x : all) {
    state = state * 1664525 + 1013904223;
    x = float(int32_t(state)) / 2147483648.f;
  }
  return all;
}

/// Reports the work of one call of a kernel.
void count(benchmark::State& state, double bytes, double operations) {
  const double n = double(state.iterations());
  state.counters["bytes/s"] = Counter(n * bytes, Counter::kIsRate, Counter::OneK::kIs1000);
  if (operations > 0) state.counters["Gop/s"] = Counter(n * operations / 1e9, Counter::kIsRate);
}

/// Memory that serves as weights of any type. Each half of a 32-bit word is a bfloat16 from -1 to 1. Scales read from
/// it, of 16 or 32 bits, are then neither denormal nor infinite, which would slow arithmetic down.
struct Pages {
  uint8_t* data;
  Pages() {
    void* p = mmap(nullptr, kMemory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) std::abort();
    data = static_cast<uint8_t*>(p);
    std::vector<uint32_t> pattern;
    for (const float x : numbers(1024)) pattern.push_back((float_bits(x) >> 16) * 0x10001);
    for (size_t at = 0; at < kMemory; at += 4096) std::memcpy(data + at, pattern.data(), 4096);
  }
};

const uint8_t* pages() {
  static const Pages all;
  return all.data;
}

/// The activations of n tokens, as a matmul reads them.
struct Inputs {
  std::vector<float> f, scale;
  std::vector<int8_t> q;
  std::vector<int32_t> sum;
  std::vector<uint8_t> packed;  // empty: the kernel set does not read packed activations
  int cols;

  Inputs(const Kernels& k, int n, int cols)
      : f(numbers(size_t(n) * cols)), scale(f.size() / kGroup), q(f.size()), sum(scale.size()), cols(cols) {
    k.quantize(f.data(), int(f.size()), q.data(), scale.data(), sum.data());
    if (!k.matmul_packed || n <= k.few_tokens) return;
    packed.resize(packed_bytes(n, cols));
    for (int t = 0; t < n; t++) {
      const Activations token = get().token(t);
      pack_groups(token.q, token.scale, t, 0, cols / kGroup, n, packed.data());
    }
  }
  Activations get() { return {cols, f.data(), q.data(), scale.data(), sum.data(), packed.data(), !packed.empty()}; }
};

void matmul(benchmark::State& state, const Kernels& k, Type type, int n, bool from_memory) {
  const int cols = 2048, count_panels = int(kPiece / panel_bytes(type, cols));
  const int panels = from_memory ? int(kMemory / panel_bytes(type, cols)) / count_panels * count_panels : count_panels;
  Tensor w = {type, panels * kPanelRows, cols, pages(), size_t(panels) * panel_bytes(type, cols)};
  std::memcpy(w.codebook, kCodebook, sizeof kCodebook);
  Inputs in(k, n, cols);
  const size_t ldy = size_t(w.rows);
  std::vector<float> y(ldy * size_t(n));
  int first = 0;
  for (auto _ : state) {
    matmul_panels(k, {w, first, count_panels, in.get(), n, y.data(), ldy});
    benchmark::ClobberMemory();
    first = (first + count_panels) % panels;
  }
  count(state, double(count_panels * panel_bytes(type, cols)), 2.0 * count_panels * kPanelRows * cols * n);
}

/// Measures f(x, n) on a vector of 2048 numbers, which f may overwrite.
template <class F> void vector_kernel(benchmark::State& state, const F& f) {
  const std::vector<float> fresh = numbers(2048);
  std::vector<float> x = fresh;
  for (auto _ : state) {
    std::memcpy(x.data(), fresh.data(), fresh.size() * sizeof(float));  // repeated calls would overflow
    f(x.data(), int(x.size()));
    benchmark::ClobberMemory();
  }
  count(state, double(fresh.size() * sizeof(float)), 0);
}

void register_vectors(const Kernels& k) {
  static const std::vector<float> other = numbers(2048);
  static std::vector<float> out(2048), scale(2048 / kGroup);
  static std::vector<int8_t> q(2048);
  static std::vector<int32_t> sum(2048 / kGroup);
  const auto add = [&](const char* what, auto f) {
    benchmark::RegisterBenchmark((std::string(what) + "/" + k.name).c_str(),
                                 [f](benchmark::State& state) { vector_kernel(state, f); });
  };
  add("rmsnorm", [&k](float* x, int n) { k.rmsnorm(x, other.data(), out.data(), n, 1e-5f); });
  add("quantize", [&k](float* x, int n) { k.quantize(x, n, q.data(), scale.data(), sum.data()); });
  add("rope", [&k](float* x, int n) { k.rope(x, n / 64, 64, other.data(), other.data() + 32); });
  add("swiglu", [&k](float* x, int n) { k.swiglu(x, other.data(), n); });
  add("exp", [&k](float* x, int n) { k.exp(x, n); });
}

/// n queries of 64 numbers against a whole block of keys, in the cache.
void attend(benchmark::State& state, const Kernels& k, bool f32, int n) {
  const int head_dim = 64;
  const size_t numbers_bytes = size_t(kBlockKeys) * head_dim * (f32 ? sizeof(float) : 1);
  std::vector<float> scales(2 * kBlockKeys, 0.01f), queries = numbers(size_t(n) * head_dim), values(queries.size());
  std::vector<AttentionState> states(static_cast<size_t>(n));
  uint8_t* at = const_cast<uint8_t*>(pages());
  const KvBlock kv = {at, at + numbers_bytes, scales.data(), scales.data() + kBlockKeys, head_dim, head_dim};
  std::vector<const float*> q;
  std::vector<AttentionState*> out;
  const std::vector<int> keys(size_t(n), kBlockKeys);
  for (int i = 0; i < n; i++) {
    q.push_back(&queries[size_t(i) * head_dim]);
    states[size_t(i)].values = &values[size_t(i) * head_dim];
    out.push_back(&states[size_t(i)]);
  }
  for (auto _ : state) {
    (f32 ? k.attend_f32 : k.attend_q8)(kv, n, q.data(), keys.data(), out.data());
    benchmark::ClobberMemory();
  }
  count(state, 2.0 * double(numbers_bytes), 4.0 * kBlockKeys * head_dim * n);
}

/// Merges the attention states of two blocks, head_dim 64.
void merge(benchmark::State& state, const Kernels& k) {
  std::vector<float> values = numbers(64), part_values = numbers(64);
  AttentionState sum = {0, 1, values.data()};
  const AttentionState part = {-1, 1, part_values.data()};
  for (auto _ : state) {
    sum.max = 0;
    k.merge(sum, part, 64);
    benchmark::ClobberMemory();
  }
  count(state, double(values.size() * sizeof(float)), 0);
}

void register_all(const Kernels& k) {
  const auto add = [&](const std::string& name, auto f) { benchmark::RegisterBenchmark(name.c_str(), f); };
  const std::string set = k.name;
  for (const Type type : {Type::q4, Type::q8, Type::f32})
    for (const bool from_memory : {false, true})
      for (const int n : {1, 2, 8, 64})
        add(std::string("matmul/") + type_name(type) + "/" + set + "/" + std::to_string(n) +
                (n == 1 ? " token/" : " tokens/") + (from_memory ? "memory" : "cache"),
            [&k, type, n, from_memory](benchmark::State& state) { matmul(state, k, type, n, from_memory); });
  for (const bool f32 : {false, true})
    for (const int n : {1, kQueries})
      add(std::string("attend/") + (f32 ? "f32/" : "q8/") + set + "/" + std::to_string(n) +
              (n == 1 ? " query" : " queries"),
          [&k, f32, n](benchmark::State& state) { attend(state, k, f32, n); });
  add("merge/" + set, [&k](benchmark::State& state) { merge(state, k); });
  register_vectors(k);
}

}  // namespace

int main(int argc, char** argv) {
  return guarded("kernels", [&] {
    for (const std::string& name : kernel_names()) register_all(*find_kernels(name.c_str()));
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) throw Failure{2, ""};
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    if (!std::cout.good()) throw Failure{1, "standard output: cannot be written"};
  });
}
