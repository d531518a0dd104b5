// calibrate.hpp: runs a text through the model being converted, layer by layer, and quantizes each matrix for the
// inputs that it then gets.
//
// Two streams of activations go through every layer: the exact one, of the float32 weights, and the one of the model
// as it will run, with the weights that are quantized already, int8 activations and int8 keys and values. Before a
// matrix is quantized its inputs in both are known: their second moments say which errors would be seen, and where they
// differ the weights are moved, so that part of what earlier matrices did wrong is put right.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gptq.hpp"
#include "model_writer.hpp"

namespace pocket {

inline constexpr int kWindow = 512;        // tokens of the text that see each other
inline constexpr int kChunkTokens = 1024;  // tokens whose inner activations are kept at a time: whole windows
inline constexpr int kRowsAtOnce = 2048;   // of a matrix that is being quantized
inline constexpr int kSampleTokens = 128;  // that the report's errors are measured with

// A matrix that has been quantized.
struct EncodedTensor {
  TensorSpec spec;
  Type type;
  int8_t codebook[16];
  std::vector<uint8_t> bytes;
  double error, drift;  // of its outputs, relative: by its own weights; and by those of all matrices before it too

  Tensor tensor() const {
    Tensor t = {type, spec.rows, spec.cols, bytes.data(), bytes.size()};
    std::memcpy(t.codebook, codebook, sizeof codebook);
    return t;
  }
};

// The inputs of a matrix, of all tokens: (tokens, cols padded to 64).
struct SiteInputs {
  int cols = 0;
  std::vector<float> exact;  // of the float stream
  std::vector<int8_t> q;     // of the quantized stream, as the engine has them
  std::vector<float> scale;
  std::vector<int32_t> sum;

  void reserve(size_t tokens, int widest) {
    exact.resize(tokens * widest), q.resize(tokens * widest);
    scale.resize(tokens * widest / kGroup), sum.resize(tokens * widest / kGroup);
  }
  Activations activations() const { return {cols, nullptr, q.data(), scale.data(), sum.data()}; }
  float quantized(size_t t, int k) const { return float(q[t * cols + k]) * scale[(t * cols + k) / kGroup]; }
};

class Calibration {
 public:
  std::string error;

  Calibration(const Config& config, const std::vector<std::vector<int>>& windows, const ReadRows& read, int threads)
      : c_(config), windows_(windows), read_(read), kernels_(*find_kernels(nullptr)), pool_(threads) {
    for (const auto& w : windows) {
      starts_.push_back(tokens_);
      tokens_ += w.size();
    }
  }

  using Done = std::function<bool(EncodedTensor&& tensor)>;  // false: give up

  bool run(Type head, const Done& done) {
    done_ = &done;
    const int dim = padded(c_.dim);
    x_.resize(tokens_ * dim), xq_.resize(tokens_ * dim);
    in_.reserve(tokens_, std::max({dim, padded(c_.q_dim()), padded(c_.hidden_dim)}));
    make_rotations();
    if (!embed()) return false;
    for (layer_ = 0; layer_ < c_.n_layers; layer_++)
      if (!layer()) return false;
    if (!norm("final_norm")) return false;
    return quantize_site({"output"}, head, false);
  }

 private:
  bool fail(const std::string& why) { return error = why, false; }

  TensorSpec spec(const std::string& name) const {
    const std::string full = name == "output" || name == "final_norm" || name == "token_embedding"
                                 ? name
                                 : "layers." + std::to_string(layer_) + "." + name;
    for (const TensorSpec& s : tensor_specs(c_))
      if (s.name == full) return s;
    return {};
  }

  void make_rotations() {
    const int half = c_.head_dim / 2;
    cos_.resize(size_t(kWindow) * half), sin_.resize(size_t(kWindow) * half);
    for (int t = 0; t < kWindow; t++)
      for (int i = 0; i < half; i++) {
        double sin, cos;
        exact::sincos(t * rope_frequency(c_, i), sin, cos);
        sin_[size_t(t) * half + i] = float(sin), cos_[size_t(t) * half + i] = float(cos);
      }
  }

  bool embed() {
    const int dim = padded(c_.dim);
    const TensorSpec table = spec("token_embedding");
    std::vector<std::string> errors(size_t(pool_.threads()));
    pool_.run(int(windows_.size()), [&](int w, int thread) {
      std::vector<uint8_t> row(embedding_row_bytes(Type::q8, c_.dim));
      for (size_t t = 0; t < windows_[w].size(); t++) {
        float* x = x_.data() + (starts_[w] + t) * dim;
        if (!read_finite(table, windows_[w][t], 1, x, read_, errors[thread])) return;
        float* xq = xq_.data() + (starts_[w] + t) * dim;
        encode_embedding_row(Type::q8, x, c_.dim, row.data());
        for (int k = 0; k < dim; k++) {
          const uint8_t* group = row.data() + k / kGroup * embedding_group_bytes(Type::q8);
          xq[k] = float(int8_t(group[2 + k % kGroup])) * from_bf16(load<uint16_t>(group));
        }
      }
    });
    for (const std::string& e : errors)
      if (!e.empty()) return fail(e);
    return true;
  }

  bool layer() {
    if (!norm("attention_norm") || !quantize_site({"wq", "wk", "wv"}, Type::q4, true)) return false;
    attend();
    if (!quantize_site({"wo"}, Type::q4, true)) return false;
    add_residual();
    if (!norm("ffn_norm") || !quantize_site({"w1", "w3"}, Type::q4, true)) return false;
    swiglu();
    if (!quantize_site({"w2"}, Type::q4, true)) return false;
    add_residual();
    return true;
  }

  // ---- The blocks, for both streams ----

  void store_quantized(const float* f, size_t t) {
    const size_t at = t * in_.cols;
    kernels_.quantize(f, in_.cols, in_.q.data() + at, in_.scale.data() + at / kGroup, in_.sum.data() + at / kGroup);
  }

  bool norm(const std::string& name) {
    const TensorSpec s = spec(name);
    std::vector<float> weight(size_t(padded(c_.dim)));
    if (!read_finite(s, 0, 1, weight.data(), read_, error)) return false;
    in_.cols = padded(c_.dim);
    pool_.run(int(tokens_), [&](int t, int) {
      thread_local std::vector<float> y;
      y.resize(size_t(in_.cols));
      const size_t at = size_t(t) * in_.cols;
      kernels_.rmsnorm(x_.data() + at, weight.data(), in_.exact.data() + at, c_.dim, c_.norm_eps);
      kernels_.rmsnorm(xq_.data() + at, weight.data(), y.data(), c_.dim, c_.norm_eps);
      store_quantized(y.data(), size_t(t));
    });
    return true;
  }

  // y (n, rows padded to 64) = the matrix times the inputs of tokens first ... first + n - 1, exactly ...
  void project(int matrix, size_t first, int n, float* y) {
    const int rows = encoded_[matrix].spec.rows, ldy = padded(rows);
    std::fill(y, y + size_t(n) * ldy, 0.f);
    multiply(pool_, n, rows, in_.cols, 1, rows_of(in_.exact.data() + first * in_.cols, size_t(in_.cols)),
             rows_of(weights_[matrix].data(), size_t(in_.cols)), y, size_t(ldy));
  }
  // ... and as the engine does.
  void project_quantized(int matrix, size_t first, int n, float* y) {
    const Tensor w = encoded_[matrix].tensor();
    const size_t ldy = size_t(padded(w.rows));
    pool_.run((n + kChunk - 1) / kChunk, [&](int task, int) {
      const int t = task * kChunk;
      const Activations x = {in_.cols, nullptr, in_.q.data(), in_.scale.data(), in_.sum.data()};
      const size_t at = (first + t) * in_.cols;
      matmul_panels(kernels_, w, 0, panels_of(w.rows),
                    {in_.cols, nullptr, x.q + at, x.scale + at / kGroup, x.sum + at / kGroup}, std::min(kChunk, n - t),
                    y + t * ldy, ldy);
    });
  }

  // f(first window, its end, first token, tokens) for whole windows, about kChunkTokens at a time.
  template <class F> void for_chunks(const F& f) {
    for (size_t w = 0, end; w < windows_.size(); w = end) {
      size_t n = 0;
      for (end = w; end < windows_.size() && (end == w || n + windows_[end].size() <= kChunkTokens); end++)
        n += windows_[end].size();
      f(w, end, starts_[w], int(n));
    }
  }

  void attend() {
    const int q_width = padded(c_.q_dim()), kv_width = padded(c_.kv_dim());
    std::vector<float> q(size_t(kChunkTokens) * q_width), k(size_t(kChunkTokens) * kv_width), v(k.size());
    std::vector<std::pair<size_t, std::vector<float>>> unused;
    const int in_cols = in_.cols;
    std::vector<float> exact(tokens_ * q_width), quantized(tokens_ * q_width);
    for_chunks([&](size_t w, size_t end, size_t first, int n) {
      for (int stream = 0; stream < 2; stream++) {
        float* const outs[] = {q.data(), k.data(), v.data()};
        for (int i = 0; i < 3; i++) stream ? project_quantized(i, first, n, outs[i]) : project(i, first, n, outs[i]);
        pool_.run(int(end - w) * c_.n_kv_heads, [&](int task, int) {
          const size_t window = w + size_t(task) / c_.n_kv_heads, t = starts_[window] - first;
          const int head = task % c_.n_kv_heads, size = int(windows_[window].size());
          stream ? attend_window<int8_t>(q.data() + t * q_width, k.data() + t * kv_width, v.data() + t * kv_width, size,
                                         head)
                 : attend_window<float>(q.data() + t * q_width, k.data() + t * kv_width, v.data() + t * kv_width, size,
                                        head);
        });
        std::copy(q.begin(), q.begin() + size_t(n) * q_width, (stream ? quantized : exact).begin() + first * q_width);
      }
    });
    (void)in_cols;
    in_.cols = q_width;
    std::copy(exact.begin(), exact.end(), in_.exact.begin());
    pool_.run(int(tokens_), [&](int t, int) { store_quantized(quantized.data() + size_t(t) * q_width, size_t(t)); });
  }

  // Attention of one KV head over a window of n tokens. q (n, q_dim), k and v (n, kv_dim), widths padded to 64: before
  // their rotation. The head's part of q becomes the output.
  template <class T> void attend_window(float* q, float* k, float* v, int n, int kv_head) {
    constexpr bool kF32 = sizeof(T) == 4;
    const int head_dim = c_.head_dim, half = head_dim / 2, group = c_.n_heads / c_.n_kv_heads;
    const size_t q_width = size_t(padded(c_.q_dim())), kv_width = size_t(padded(c_.kv_dim()));
    const size_t block_bytes = kv_block_bytes(head_dim, kF32), record = attention_floats(head_dim);
    const int blocks = (n + kBlockKeys - 1) / kBlockKeys;
    thread_local std::vector<uint8_t> memory;
    memory.assign(block_bytes * blocks + 64, 0);
    uint8_t* base = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    const auto block = [&](int b) {
      float* scales = reinterpret_cast<float*>(base + b * block_bytes);
      T* keys = reinterpret_cast<T*>(scales + 2 * kBlockKeys);
      return KvBlock{
          keys, keys + size_t(kBlockKeys) * head_dim, scales, scales + kBlockKeys, head_dim, round_up(head_dim, 16)};
    };
    const float root = 1.f / std::sqrt(float(head_dim));
    for (int t = 0; t < n; t++) {
      float *kt = k + t * kv_width + kv_head * head_dim, *vt = v + t * kv_width + kv_head * head_dim;
      const float *cos = cos_.data() + size_t(t) * half, *sin = sin_.data() + size_t(t) * half;
      kernels_.rope(q + t * q_width + size_t(kv_head) * group * head_dim, group, head_dim, cos, sin);
      kernels_.rope(kt, 1, head_dim, cos, sin);
      const int key = t % kBlockKeys, k_at = key / 16 * 16 * head_dim + key % 16;
      const KvBlock kv = block(t / kBlockKeys);
      kv.k_scale[key] = root * store_vector(kt, head_dim, static_cast<T*>(kv.k) + k_at, 16);
      kv.v_scale[key] = store_vector(vt, head_dim, static_cast<T*>(kv.v) + key * kv.width, 1);
    }
    const auto attend = kF32 ? kernels_.attend_f32 : kernels_.attend_q8;
    std::vector<float> state(record * group), part(record * group);
    for (int t = 0; t < n; t++) {
      const float* qs[64];
      float *states[64], *parts[64];
      int keys[64];
      for (int b = 0; b <= t / kBlockKeys; b++)
        for (int h0 = 0; h0 < group; h0 += 64) {
          const int count = std::min(64, group - h0);
          for (int h = 0; h < count; h++) {
            qs[h] = q + t * q_width + (size_t(kv_head) * group + h0 + h) * head_dim;
            states[h] = state.data() + (h0 + h) * record, parts[h] = part.data() + (h0 + h) * record;
            keys[h] = std::min(kBlockKeys, t + 1 - b * kBlockKeys);
          }
          attend(block(b), count, qs, keys, b ? parts : states);
          for (int h = 0; b && h < count; h++) kernels_.fold(states[h], parts[h], round_up(head_dim, 16));
        }
      for (int h = 0; h < group; h++) {
        float* y = q + t * q_width + (size_t(kv_head) * group + h) * head_dim;
        const float* s = state.data() + h * record;
        for (int i = 0; i < head_dim; i++) y[i] = s[16 + i] * (1.f / s[1]);
      }
    }
  }

  void swiglu() {
    const int width = padded(c_.hidden_dim), in_cols = in_.cols;
    std::vector<float> gate(size_t(kChunkTokens) * width), up(gate.size());
    std::vector<float> exact(tokens_ * width), quantized(tokens_ * width);
    for_chunks([&](size_t, size_t, size_t first, int n) {
      for (int stream = 0; stream < 2; stream++) {
        stream ? project_quantized(0, first, n, gate.data()) : project(0, first, n, gate.data());
        stream ? project_quantized(1, first, n, up.data()) : project(1, first, n, up.data());
        pool_.run(n, [&](int t, int) {
          kernels_.swiglu(gate.data() + size_t(t) * width, up.data() + size_t(t) * width, width);
        });
        std::copy(gate.begin(), gate.begin() + size_t(n) * width, (stream ? quantized : exact).begin() + first * width);
      }
    });
    (void)in_cols;
    in_.cols = width;
    std::copy(exact.begin(), exact.end(), in_.exact.begin());
    pool_.run(int(tokens_), [&](int t, int) { store_quantized(quantized.data() + size_t(t) * width, size_t(t)); });
  }

  void add_residual() {
    const int dim = padded(c_.dim);
    std::vector<float> y(size_t(kChunkTokens) * dim);
    for_chunks([&](size_t, size_t, size_t first, int n) {
      for (int stream = 0; stream < 2; stream++) {
        stream ? project_quantized(0, first, n, y.data()) : project(0, first, n, y.data());
        float* x = (stream ? xq_ : x_).data() + first * dim;
        for (size_t i = 0; i < size_t(n) * dim; i++) x[i] += y[i];
      }
    });
  }

  // ---- Quantizing ----

  // The matrices that share the inputs now in in_.
  bool quantize_site(const std::vector<std::string>& names, Type type, bool keep) {
    const int n = in_.cols;
    const bool residual = names[0] == "wo" || names[0] == "w2";
    static const double asym = knob("ASYM", 0.5), resid = knob("RESID", 0), shrink = knob("SHRINK", 0.3),
                        damp = knob("DAMP", 0.01), tw = knob("TW", 0), skip0 = knob("SKIP0", 0);
    std::vector<float> weight(tokens_, 1.f);
    if (residual && tw > 0)
      for (size_t t = 0; t < tokens_; t++) {
        double s = 0;
        for (int k = 0; k < c_.dim; k++) s += double(x_[t * padded(c_.dim) + k]) * x_[t * padded(c_.dim) + k];
        weight[t] = float(std::pow(s / c_.dim + 1e-9, -tw / 2));
      }
    if (skip0 > 0)
      for (size_t s : starts_) weight[s] = float(1 - skip0);
    std::vector<float> h(size_t(n) * n), mismatch(asym > 0 ? h.size() : 0),
        rest(residual && resid > 0 ? size_t(padded(c_.dim)) * n : 0);
    const int batch = 2048;
    std::vector<float> inputs(size_t(batch) * n), difference(inputs.size()),
        behind(rest.empty() ? 0 : size_t(batch) * padded(c_.dim));
    for (size_t first = 0; first < tokens_; first += batch) {
      const int count = int(std::min<size_t>(batch, tokens_ - first));
      pool_.run(count, [&](int t, int) {
        for (int k = 0; k < n; k++) {
          const float q = in_.quantized(first + t, k);
          inputs[size_t(t) * n + k] = q * weight[first + t];
          difference[size_t(t) * n + k] = (in_.exact[(first + t) * n + k] - q) * weight[first + t];
        }
        if (!behind.empty())
          for (int k = 0; k < padded(c_.dim); k++)
            behind[size_t(t) * padded(c_.dim) + k] =
                (x_[(first + t) * padded(c_.dim) + k] - xq_[(first + t) * padded(c_.dim) + k]) * weight[first + t];
      });
      const Factor in = columns_of(inputs.data(), size_t(n)), diff = columns_of(difference.data(), size_t(n));
      multiply(pool_, n, n, count, 1, in, in, h.data(), size_t(n), Part::lower);
      if (!mismatch.empty()) multiply(pool_, n, n, count, 1, diff, in, mismatch.data(), size_t(n));
      if (!rest.empty())
        multiply(pool_, c_.dim, n, count, 1, columns_of(behind.data(), size_t(padded(c_.dim))), in, rest.data(),
                 size_t(n));
    }
    static const double shrink_k = knob("SHRINKK", 0);
    Hessian hessian;
    hessian.factor(pool_, h.data(), padded_cols(names[0]), std::min(0.9, shrink + shrink_k * n / double(tokens_)),
                   damp);
    encoded_.clear();
    weights_.clear();
    for (const std::string& name : names)
      if (!quantize_matrix(spec(name), type, keep, hessian, asym > 0 ? mismatch.data() : nullptr, rest, asym, resid))
        return false;
    for (size_t i = 0; i < names.size(); i++) {
      EncodedTensor copy = encoded_[i];
      if (!(*done_)(std::move(copy))) return fail("interrupted");
    }
    return true;
  }

  int padded_cols(const std::string& name) const { return spec(name).cols; }

  bool quantize_matrix(const TensorSpec& s, Type type, bool keep, const Hessian& hessian, const float* mismatch,
                       const std::vector<float>& rest, double asym, double resid) {
    const int n = in_.cols;
    EncodedTensor out = {s, type, {}, std::vector<uint8_t>(panels_of(s.rows) * panel_bytes(type, s.cols)), 0, 0};
    std::memcpy(out.codebook, kCodebook, sizeof out.codebook);
    const Codebook codebook(out.codebook);
    std::vector<float> all(keep ? size_t(s.rows) * n : 0), part, target, moved;
    for (int first = 0; first < s.rows; first += kRowsAtOnce) {
      const int count = std::min(kRowsAtOnce, s.rows - first);
      part.assign(size_t(count) * n, 0.f);
      std::vector<std::string> errors(size_t(pool_.threads()));
      pool_.run(count, [&](int r, int thread) {
        if (errors[thread].empty()) read_finite(s, first + r, 1, part.data() + size_t(r) * n, read_, errors[thread]);
      });
      for (const std::string& e : errors)
        if (!e.empty()) return fail(e);
      if (keep) std::copy(part.begin(), part.end(), all.begin() + size_t(first) * n);
      moved.assign(part.size(), 0.f);
      if (type == Type::q4) {
        if (mismatch)
          multiply(pool_, count, n, n, float(asym), rows_of(part.data(), size_t(n)), columns_of(mismatch, size_t(n)),
                   moved.data(), size_t(n));
        if (!rest.empty())
          for (size_t i = 0; i < moved.size(); i++) moved[i] += float(resid) * rest[size_t(first) * n + i];
      }
      target.resize(part.size());
      const auto permute = [&](const std::vector<float>& from, std::vector<float>& to) {
        pool_.run(count, [&](int r, int) {
          for (int p = 0; p < n; p++) to[size_t(r) * n + p] = from[size_t(r) * n + hessian.order()[p]];
        });
      };
      if (type == Type::q4) {
        permute(moved, target);
        solve(pool_, hessian.triangle(), n, target.data(), count);
        permute(part, moved);
        for (size_t i = 0; i < target.size(); i++) target[i] += moved[i];
      }
      std::vector<double> costs(size_t(panels_of(count)));
      pool_.run(panels_of(count), [&](int p, int) {
        uint8_t* panel = out.bytes.data() + (size_t(first) / kPanelRows + p) * panel_bytes(type, s.cols);
        if (type != Type::q4) {
          std::vector<float> rows(size_t(kPanelRows) * n);
          std::copy(part.begin() + size_t(p) * kPanelRows * n,
                    part.begin() + std::min(size_t(p + 1) * kPanelRows, size_t(count)) * n, rows.begin());
          PanelEncoder(type, s.cols).encode(rows.data(), panel);
          return;
        }
        RowQuantizer rows(hessian, codebook);
        for (int r = 0; r < std::min(kPanelRows, count - p * kPanelRows); r++)
          costs[p] += rows.quantize(target.data() + (size_t(p) * kPanelRows + r) * n, r, panel);
      });
      for (double c : costs) out.error += c;
    }
    encoded_.push_back(std::move(out));
    weights_.push_back(std::move(all));
    return true;
  }

  const Config c_;
  const std::vector<std::vector<int>>& windows_;
  const ReadRows& read_;
  const Kernels& kernels_;
  Pool pool_;
  const Done* done_ = nullptr;
  std::vector<size_t> starts_;
  size_t tokens_ = 0;
  std::vector<float> cos_, sin_;  // (512, head_dim / 2)
  std::vector<float> x_, xq_;     // (tokens, dim padded to 64): the residual stream, exact and quantized
  SiteInputs in_;
  std::vector<EncodedTensor> encoded_;       // of the site at hand
  std::vector<std::vector<float>> weights_;  // (rows, cols padded to 64): the same matrices, exact
  int layer_ = 0;
};

}  // namespace pocket
