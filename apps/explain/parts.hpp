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
    const float* const y = rows(w, 1, [&](size_t, float* in) { std::copy_n(x.begin(), x.size(), in); });
    Vector out(y, y + w.rows);
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
  /// at(r): vector r (dim). each(r, logits) is called on any thread.
  template <class At, class Each> void logits(size_t count, const At& at, const Each& each) {
    for (size_t first = 0; first < count; first += kChunk) {
      const size_t n = std::min(count - first, size_t(kChunk));
      const float* const y = rows(model_.output, n, [&](size_t r, float* in) {
        std::copy_n(at(first + r), c_.dim, in);
        kernels_.rmsnorm(in, floats(model_.final_norm), in, c_.dim, c_.norm_eps);
      });
      const size_t stride = size_t(padded(model_.output.rows));
      pool_.parallel_for(int(n), [&](int r, int) { each(first + size_t(r), y + size_t(r) * stride); });
    }
  }
  /// e^x of n numbers.
  void exp(float* x, int n) const { kernels_.exp(x, n); }

  /// Seconds that reading all matrices takes once, from memory or a cache that holds them.
  double seconds_to_read_weights(double (*clock)()) {
    std::vector<const Tensor*> all = {&model_.output};
    for (const Layer& l : model_.layers)
      for (const Tensor* t : {&l.wq, &l.wk, &l.wv, &l.wo, &l.w1, &l.w3, &l.w2}) all.push_back(t);
    std::atomic<uint64_t> mixed{0};
    double best = 0;
    for (int i = 0; i < 3; i++) {
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
  // w x, (n, rows padded to 64), valid until the next call. fill(r, in) writes vector r of x, whose padding is 0.
  template <class Fill> const float* rows(const Tensor& w, size_t n, const Fill& fill) {
    Placement take{round_up<uintptr_t>(reinterpret_cast<uintptr_t>(memory_.data()), 64)};
    Activations x;
    x.place(w.cols, true, take);
    std::fill_n(x.f, n * size_t(x.cols), 0.f);
    for (size_t r = 0; r < n; r++) fill(r, x.f + r * size_t(x.cols));
    if (!model_.all_f32)
      for (size_t r = 0; r < n; r++) x.quantize_token(kernels_, int(r), int(n));
    result_.resize(std::max(result_.size(), n * size_t(padded(w.rows))));
    matmul(kernels_, pool_, {{w, result_.data()}}, x, int(n));
    return result_.data();
  }

  const Model& model_;
  const Config& c_;
  const Kernels& kernels_;
  Pool pool_;
  std::vector<uint8_t> memory_;  // of the input of a matmul
  Vector result_;                // of a matmul
};

}  // namespace pocket::explain
