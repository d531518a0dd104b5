// parts.hpp: single parts of a forward pass, for a look at what happens inside: the same kernels, so the same bits.
#pragma once

#include "../../export/engine.hpp"
#include "measures.hpp"

namespace pocket::explain {

class Parts {
 public:
  using Vector = std::vector<float>;

  /// kernel: a name of kernel_names(), of the session whose numbers are explained.
  Parts(const Model& model, const char* kernel, int threads)
      : model_(model), c_(model.config), kernels_(*find_kernels(kernel)), pool_(threads) {
    const int widest = std::max({c_.dim, c_.q_dim(), c_.hidden_dim});
    Placement sizes{0};
    Activations().place(widest, true, sizes);
    memory_.resize(sizes.at + 64);
  }

  /// rmsnorm(x), x: (dim).
  Vector norm(const float* x, const Tensor& weights) const {
    Vector in(size_t(padded(c_.dim))), out(in.size());
    std::copy_n(x, c_.dim, in.begin());
    kernels_.rmsnorm(in.data(), floats(weights), out.data(), c_.dim, c_.norm_eps);
    out.resize(size_t(c_.dim));
    return out;
  }
  /// W x + bias, x: (w.cols).
  Vector multiply(const Tensor& w, const Vector& x, const Tensor& bias) {
    const Activations in = input(w.cols, 1, [&](int, float* to) { std::copy_n(x.begin(), x.size(), to); });
    Vector out(size_t(padded(w.rows)));
    matmul(kernels_, pool_, {{w, out.data()}}, in, 1);
    out.resize(size_t(w.rows));
    for (int i = 0; i < bias.cols; i++) out[size_t(i)] += floats(bias)[i];
    return out;
  }
  /// The norm of each head, in a model that has one.
  void normalize(Vector& x, int heads, const Tensor& weights) const {
    if (c_.qk_norm) normalize_heads(kernels_, c_, x.data(), heads, floats(weights));
  }
  /// silu(gate) * up.
  Vector swiglu(Vector gate, Vector up) const {
    const size_t n = gate.size();
    gate.resize(size_t(padded(int(n))));
    up.resize(gate.size());
    kernels_.swiglu(gate.data(), up.data(), int(gate.size()));
    gate.resize(n);
    return gate;
  }
  /// Logits of `count` vectors of the residual stream, as if the model ended there (the logit lens, nostalgebraist 2020).
  /// at(r): vector r (dim). each(r, first, logits, n) gets those of the ids first ... first + n - 1, in their order, on any
  /// thread: a part that is in the cache.
  template <class At, class Each> void logits(size_t count, const At& at, const Each& each) {
    const Tensor& w = model_.output;
    const size_t panel_bytes = w.bytes / size_t(panels_of(w.rows));
    result_.resize(size_t(kChunk) * kSlice);
    for (size_t begin = 0; begin < count; begin += kChunk) {
      const int n = int(std::min(count - begin, size_t(kChunk)));
      const Activations x = input(c_.dim, n, [&](int r, float* to) {
        std::copy_n(at(begin + size_t(r)), c_.dim, to);
        kernels_.rmsnorm(to, floats(model_.final_norm), to, c_.dim, c_.norm_eps);
      });
      for (int first = 0; first < w.rows; first += kSlice) {
        Tensor slice = w;
        slice.rows = std::min(kSlice, w.rows - first);
        slice.data += size_t(first / kPanelRows) * panel_bytes;
        slice.bytes = size_t(panels_of(slice.rows)) * panel_bytes;
        matmul(kernels_, pool_, {{slice, result_.data()}}, x, n);
        each_token(pool_, n, double(n) * slice.rows, [&](int r) {
          each(begin + size_t(r), first, &result_[size_t(r) * size_t(padded(slice.rows))], slice.rows);
        });
      }
    }
  }
  /// f(i) for all i < n, on all threads.
  template <class F> void in_parallel(size_t n, const F& f) {
    pool_.parallel_for(int(n), [&](int i, int) { f(size_t(i)); });
  }
  /// e^x of n numbers.
  void exp(float* x, int n) const { kernels_.exp(x, n); }

  /// Seconds that reading all matrices takes once, from memory, or from a cache if that holds them.
  double seconds_to_read_weights(double (*clock)()) {
    std::vector<const Tensor*> all = {&model_.output};
    for (const Layer& l : model_.layers)
      for (const Tensor* t : {&l.wq, &l.wk, &l.wv, &l.wo, &l.w1, &l.w3, &l.w2}) all.push_back(t);
    std::atomic<uint64_t> mixed{0};
    double best = 0, bytes = 0;
    for (const Tensor* t : all) bytes += double(t->bytes);
    for (int i = 0; i < (bytes < 32e6 ? 3 : 1); i++) {
      const double start = clock();
      for (const Tensor* t : all)
        pool_.parallel_ranges(int(t->bytes / 4096), 16, double(t->bytes) / 16, [&](int first, int end) {
          mixed.fetch_xor(mix(t->data + size_t(first) * 4096, size_t(end - first) * 4096), std::memory_order_relaxed);
        });
      const double taken = clock() - start;
      best = i == 0 ? taken : std::min(best, taken);
    }
    return best;
  }

 private:
  static uint64_t mix(const uint8_t* p, size_t bytes) {
    uint64_t sum[8] = {};
    for (size_t i = 0; i + 64 <= bytes; i += 64)
      for (size_t k = 0; k < 8; k++) sum[k] ^= load<uint64_t>(p + i + 8 * k);
    return sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
  }
  // The input of a matmul, valid until the next one is made. fill(r, to) writes vector r of n, whose padding is 0.
  template <class Fill> Activations input(int cols, int n, const Fill& fill) {
    Placement take{round_up<uintptr_t>(reinterpret_cast<uintptr_t>(memory_.data()), 64)};
    Activations x;
    x.place(cols, true, take);
    each_token(pool_, n, vector_work(cols, 4 * n), [&](int r) {
      std::fill_n(x.f + size_t(r) * size_t(x.cols), x.cols, 0.f);
      fill(r, x.f + size_t(r) * size_t(x.cols));
      if (!model_.all_f32) x.quantize_token(kernels_, r, n);
    });
    return x;
  }

  static constexpr int kSlice = 2048;  // rows of the output matrix that are multiplied together
  const Model& model_;
  const Config& c_;
  const Kernels& kernels_;
  Pool pool_;
  std::vector<uint8_t> memory_;  // of the input of a matmul
  Vector result_;                // logits: (kChunk, kSlice)
};

}  // namespace pocket::explain
