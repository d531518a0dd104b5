// calibrate.hpp: runs a text through the model layer by layer, and quantizes each matrix for the inputs that it
// receives. Two streams of activations pass through every layer: the exact stream, with float32 weights, and the
// quantized stream, with the weights quantized so far, int8 activations, and int8 keys and values. When a matrix is
// quantized, its inputs in both streams are known. Their second moments determine how much each weight error affects
// the outputs. Where the streams differ, the weights are adjusted to compensate for part of the error of earlier
// matrices. Held in memory: the two streams, the inputs of one matrix (exact and int8), three square matrices of their
// width, and the weights of one layer.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "calibration_file.hpp"
#include "gptq.hpp"
#include "model_writer.hpp"

namespace pocket {

inline constexpr int kWindow = 512;           // tokens per window: attention does not cross windows
inline constexpr int kChunkTokens = 1024;     // tokens whose inner activations are held at a time: whole windows
inline constexpr int kMomentTokens = 2048;    // tokens whose inputs are converted to float at a time
inline constexpr int kRowsAtOnce = 2048;      // rows of a matrix that are quantized at a time
inline constexpr int kSampleTokens = kChunk;  // tokens for measuring a matrix's errors

/// How the second moments of the inputs are regularized and used. Tuned on a model of 135M parameters.
struct CalibrationOptions {
  Type head = Type::q4;     // type of the output matrix
  double shrink = 0.3;      // share of the off-diagonal moments that is treated as noise ...
  double shrink_few = 0;    // ... plus this times columns / tokens
  double damping = 0.01;    // added to the diagonal, relative to its mean
  double correction = 0.5;  // share of the difference between the streams that the weights compensate:
  bool lag = true;          // of the matrix's inputs, and also of the residual stream that its outputs are added to
  int threads = 2;
};

/// The inputs of a matrix for all tokens: (tokens, cols padded to 64).
struct MatrixInputs {
  int cols = 0;
  std::vector<float> exact;  // exact stream
  std::vector<int8_t> q;     // quantized stream, in the engine's format: int8 values,
  std::vector<float> scale;  // (tokens, cols / 32) scales,
  std::vector<int32_t> sum;  // (tokens, cols / 32) and sums of q

  void resize(size_t tokens, int width) {
    cols = width;
    exact.resize(tokens * width);
    q.resize(tokens * width);
    scale.resize(tokens * width / kGroup);
    sum.resize(tokens * width / kGroup);
  }
  // Stores the input of token t in the quantized stream.
  void put_quantized(const Kernels& k, size_t t, const float* x) {
    const size_t at = t * cols;
    k.quantize(x, cols, q.data() + at, scale.data() + at / kGroup, sum.data() + at / kGroup);
  }
  void get_quantized(size_t t, float* out) const {
    for (size_t k = 0, at = t * cols; k < size_t(cols); k++) out[k] = float(q[at + k]) * scale[(at + k) / kGroup];
  }
  Activations quantized(size_t t) {
    return Activations{cols, exact.data(), q.data(), scale.data(), sum.data()}.token(int(t));
  }
};

inline constexpr const char* kCalibrationSteps[] = {"search", "gptq", "mismatch", "all"};

/// Disables the steps after the given one, so that the effect of each can be measured: search (scales, with errors
/// weighted by the mean square of each input), gptq (correlations between inputs), mismatch (correction for the
/// difference in a matrix's own inputs), all. False if there is no such step.
inline bool stop_after(const std::string& step, CalibrationOptions& options) {
  const auto* const found = std::find(std::begin(kCalibrationSteps), std::end(kCalibrationSteps), step);
  const auto done = found - kCalibrationSteps;
  if (done < 1) options.shrink = 1;
  if (done < 2) options.correction = 0;
  if (done < 3) options.lag = false;
  return found != std::end(kCalibrationSteps);
}

/// Quantizes the matrices of one model for one text.
class Calibration {
 public:
  // Called regularly; returns false to stop. done, total: floating-point operations. tensor: the matrix that was just
  // quantized, or null.
  using Progress = std::function<bool(double done, double total, const EncodedTensor* tensor)>;

  std::string error;

  // windows: token ids, at most kWindow each. windows and read must outlive the object.
  Calibration(const Config& config, const std::vector<std::vector<int>>& windows, const ReadRows& read,
              const CalibrationOptions& options)
      : c_(config),
        options_(options),
        specs_(tensor_specs(config)),
        of_layer_(layer_tensors(config)),
        windows_(windows),
        read_(read),
        kernels_(*find_kernels(nullptr)),
        pool_(options.threads) {
    for (const auto& w : windows) {
      starts_.push_back(tokens_);
      tokens_ += w.size();
    }
  }

  // The number of floats in a stream.
  static size_t stream_floats(const Config& c, size_t tokens) { return tokens * padded(c.dim); }

  // Estimated memory in bytes.
  double memory_bytes() const;
  // Estimated work in floating-point operations; other work counts as operations that take the same time.
  double work() const;
  // Floating-point operations per second, from a short measurement.
  double speed();

  // Quantizes all matrices into `file`, from its first incomplete layer. False with `error` set, or with error "" if
  // progress returned false; then `file` can be resumed.
  bool quantize(CalibrationFile& file, const Progress& progress);

 private:
  bool fail(const std::string& why) { return pocket::fail(error, why); }
  bool report(double work, const EncodedTensor* tensor = nullptr) {
    done_ += work;
    return (*progress_)(done_, total_, tensor);
  }

  // The index in specs_ of a tensor of a layer, by its name in Layer; -1: the model has none.
  int at(int layer, std::string_view name) const {
    for (size_t i = 0; i < of_layer_.size(); i++)
      if (of_layer_[i].name == name) return 1 + layer * int(of_layer_.size()) + int(i);
    return -1;
  }
  // The numbers of a vector of the current layer, padded with zeros; empty if the model has none.
  bool read_vector(std::string_view name, std::vector<float>& out);

  double site_work(int first, int count, bool residual = false) const;
  double attention_work() const;
  void make_rotations();
  bool embed();
  bool layer();
  bool norm(int weight);
  void project(int matrix, size_t first, int n, float* y);
  void project_quantized(int matrix, size_t first, int n, float* y);
  void add_bias(int matrix, int n, float* y);
  template <class F> void for_chunks(const F& f);
  bool attend();
  template <class T> void attend_window(float* q, float* k, float* v, int n, int kv_head);
  void swiglu();
  void add_residual();
  struct Moments;
  void gather_moments(bool residual, Moments& m);
  bool quantize_site(int first, int count, Type type, bool residual);
  bool quantize_matrix(const TensorSpec& s, Type type, bool keep, const Hessian& hessian, const Moments& moments);
  bool read_rows(const TensorSpec& s, int first, int count, float* out);
  void move_targets(std::vector<float>& rows, int first, int count, const Hessian& hessian, const Moments& moments);
  void measure(const std::vector<float>& rows, int first, int count, const EncodedTensor& tensor, double sums[3]);

  const Config c_;
  const CalibrationOptions options_;
  const std::vector<TensorSpec> specs_;
  const std::vector<LayerTensor> of_layer_;
  const std::vector<std::vector<int>>& windows_;
  const ReadRows& read_;
  const Kernels& kernels_;
  Pool pool_;
  const Progress* progress_ = nullptr;
  double done_ = 0, total_ = 0;
  std::vector<size_t> starts_;  // first token of each window
  size_t tokens_ = 0;
  std::vector<float> cos_, sin_;  // (kWindow, head_dim / 2)
  std::vector<float> x_, xq_;     // (tokens, dim padded to 64): the streams
  MatrixInputs in_, next_;        // inputs of the current matrices, and of the matrices after them
  int layer_ = 0;
  CalibrationFile* file_ = nullptr;
  std::vector<EncodedTensor> encoded_;       // the current matrices, quantized
  std::vector<std::vector<float>> weights_;  // (rows, cols padded to 64): the current matrices, exact
  std::vector<std::vector<float>> biases_;   // (rows padded to 64): theirs; empty without
  std::vector<float> q_norm_, k_norm_;       // (head_dim padded to 64); empty without
};

// ====================================================================================================================
// Estimates of time and memory
// ====================================================================================================================

// Work of `count` matrices with the same inputs, from spec `first`. residual: the outputs are added to the streams.
inline double Calibration::site_work(int first, int count, bool residual) const {
  const bool head = first + 1 == int(specs_.size());  // its outputs are not used
  if (head && options_.head != Type::q4) return 0;    // takes almost no time
  const double k = padded(specs_[size_t(first)].cols), tokens = double(tokens_);
  const double search = 20000;  // per weight, for scales and codes: takes the time of this many operations
  const double outputs = head ? 0 : 2.5 * tokens, lag = residual && options_.lag ? 2 * tokens : 0;
  double work = 3 * tokens * k * k + k * k * k / 3;
  for (int i = first; i < first + count; i++) work += specs_[size_t(i)].rows * k * (outputs + lag + 14 * k + search);
  return work;
}

// Work of attention in a layer, both streams. Tokens are processed one at a time, which is slower than a product of
// matrices.
inline double Calibration::attention_work() const {
  const double slower = 5;
  double keys = 0;
  for (const auto& w : windows_) keys += double(w.size()) * double(w.size() + 1) / 2;
  return 2 * slower * 4 * keys * c_.q_dim();
}

inline double Calibration::work() const {
  const int last = int(specs_.size()) - 1;
  return c_.n_layers * (site_work(at(0, "wq"), 3) + attention_work() + site_work(at(0, "wo"), 1, true) +
                        site_work(at(0, "w1"), 2) + site_work(at(0, "w2"), 1, true)) +
         site_work(last, 1);
}

inline double Calibration::memory_bytes() const {
  const double dim = padded(c_.dim), hidden = padded(c_.hidden_dim), widest = std::max(dim, hidden);
  const double tokens = double(tokens_), layer = double(c_.q_dim() + 2 * c_.kv_dim()) * dim + 2 * hidden * dim;
  const double streams = 2 * tokens * dim * 4,
               inputs = tokens * (std::max<double>(dim, padded(c_.q_dim())) + hidden) * 5.25;
  const double squares = 3.5 * widest * widest * 4, batches = 2 * std::min<double>(kMomentTokens, tokens) * widest * 4;
  const double rows = 3 * std::min<double>(kRowsAtOnce, std::max(dim, hidden)) * widest * 4;
  return 20e6 + streams + inputs + squares + batches + rows + layer * 4.6;
}

// Measured with the product of gather_moments(): products of small matrices that fit the cache are up to twice as fast.
inline double Calibration::speed() {
  const int n = 1024, tokens = 512;
  std::vector<float> inputs(size_t(tokens) * n, 1.f), h(size_t(n) * n);
  const Factor x = columns_of(inputs.data(), n);
  multiply(pool_, {n, n, tokens}, 1, x, x, {h.data(), n});  // warms up
  const auto start = std::chrono::steady_clock::now();
  // The mean, not the best: a brief idle moment of the machine does not predict the next minutes.
  for (int rounds = 1;; rounds++) {
    multiply(pool_, {n, n, tokens}, 1, x, x, {h.data(), n});
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (seconds > 0.1) return rounds * 2.0 * n * n * tokens / seconds;
  }
}

// ====================================================================================================================
// The model, both streams
// ====================================================================================================================

inline bool Calibration::quantize(CalibrationFile& file, const Progress& progress) {
  file_ = &file;
  progress_ = &progress;
  total_ = work();
  error.clear();
  x_.assign(stream_floats(c_, tokens_), 0.f);
  xq_.assign(x_.size(), 0.f);
  make_rotations();
  if (file.layers() == 0 ? !embed() : !file.read_streams(x_.data(), xq_.data(), x_.size()))
    return error.empty() ? fail(file.error) : false;
  const int last = int(specs_.size()) - 1;
  done_ = file.layers() * (total_ - site_work(last, 1)) / c_.n_layers;
  for (layer_ = file.layers(); layer_ < c_.n_layers; layer_++) {
    if (!layer()) return false;
    if (!file.finish_layer(x_.data(), xq_.data(), x_.size())) return fail(file.error);
  }
  return norm(last - 1) && quantize_site(last, 1, options_.head, false);
}

inline void Calibration::make_rotations() {
  const int half = c_.head_dim / 2;
  cos_.resize(size_t(kWindow) * half);
  sin_.resize(size_t(kWindow) * half);
  for (int t = 0; t < kWindow; t++)
    for (int i = 0; i < half; i++) {
      double sin, cos;
      exact::sincos(t * rope_frequency(c_, i), sin, cos);
      sin_[size_t(t) * half + i] = float(sin);
      cos_[size_t(t) * half + i] = float(cos);
    }
}

// The quantized stream starts with the embedding table at q8, as in a quantized model.
inline bool Calibration::embed() {
  const size_t width = size_t(padded(c_.dim));
  std::vector<std::string> errors(size_t(pool_.threads()));
  pool_.parallel_for(int(windows_.size()), [&](int w, int thread) {
    std::vector<uint8_t> row(embedding_row_bytes(Type::q8, c_.dim));
    for (size_t t = 0; t < windows_[w].size(); t++) {
      float *x = x_.data() + (starts_[w] + t) * width, *xq = xq_.data() + (starts_[w] + t) * width;
      if (!read_finite(specs_[0], windows_[w][t], 1, x, read_, errors[thread])) return;
      encode_embedding_row(Type::q8, x, c_.dim, row.data());
      for (size_t k = 0; k < width; k++) {
        const uint8_t* group = row.data() + k / kGroup * embedding_group_bytes(Type::q8);
        xq[k] = float(int8_t(group[2 + k % kGroup])) * from_bf16(load<uint16_t>(group));
      }
    }
  });
  for (const std::string& e : errors)
    if (!e.empty()) return fail(e);
  return true;
}

inline bool Calibration::layer() {
  if (!norm(at(layer_, "attention_norm")) || !quantize_site(at(layer_, "wq"), 3, Type::q4, false)) return false;
  if (!attend() || !report(attention_work()) || !quantize_site(at(layer_, "wo"), 1, Type::q4, true)) return false;
  add_residual();
  if (!norm(at(layer_, "ffn_norm")) || !quantize_site(at(layer_, "w1"), 2, Type::q4, false)) return false;
  swiglu();
  if (!quantize_site(at(layer_, "w2"), 1, Type::q4, true)) return false;
  add_residual();
  return true;
}

inline bool Calibration::read_vector(std::string_view name, std::vector<float>& out) {
  const int i = at(layer_, name);
  if (i >= 0) out.assign(size_t(padded(specs_[size_t(i)].cols)), 0.f);
  return i < 0 || read_finite(specs_[size_t(i)], 0, 1, out.data(), read_, error);
}

inline bool Calibration::norm(int weights) {
  const TensorSpec& s = specs_[size_t(weights)];
  std::vector<float> weight(size_t(padded(s.cols)));
  if (!read_finite(s, 0, 1, weight.data(), read_, error)) return false;
  in_.resize(tokens_, padded(c_.dim));
  std::vector<float> rows(size_t(pool_.threads()) * in_.cols);  // the quantized stream's, one per thread
  pool_.parallel_for(int(tokens_), [&](int t, int thread) {
    const size_t at = size_t(t) * in_.cols;
    float* y = rows.data() + size_t(thread) * in_.cols;
    kernels_.rmsnorm(x_.data() + at, weight.data(), in_.exact.data() + at, c_.dim, c_.norm_eps);
    kernels_.rmsnorm(xq_.data() + at, weight.data(), y, c_.dim, c_.norm_eps);
    in_.put_quantized(kernels_, size_t(t), y);
  });
  return true;
}

// y (n, rows padded to 64) = current matrix number `matrix` times the inputs of n tokens, in float32 ...
inline void Calibration::project(int matrix, size_t first, int n, float* y) {
  const int rows = encoded_[matrix].spec.rows, ldy = padded(rows);
  std::fill(y, y + size_t(n) * ldy, 0.f);
  multiply(pool_, {n, rows, in_.cols}, 1, rows_of(in_.exact.data() + first * in_.cols, size_t(in_.cols)),
           rows_of(weights_[matrix].data(), size_t(in_.cols)), {y, size_t(ldy)});
  add_bias(matrix, n, y);
}

// ... and with the engine's quantized kernels.
inline void Calibration::project_quantized(int matrix, size_t first, int n, float* y) {
  const Tensor w = encoded_[matrix].tensor();
  const size_t ldy = size_t(padded(w.rows));
  pool_.parallel_for((n + kChunk - 1) / kChunk, [&](int task, int) {
    const int t = task * kChunk;
    matmul_panels(kernels_,
                  {w, 0, panels_of(w.rows), in_.quantized(first + t), std::min(kChunk, n - t), y + t * ldy, ldy});
  });
  add_bias(matrix, n, y);
}

inline void Calibration::add_bias(int matrix, int n, float* y) {
  const std::vector<float>& bias = biases_[size_t(matrix)];
  for (int t = 0; t < n; t++, y += padded(encoded_[size_t(matrix)].spec.rows))
    for (size_t r = 0; r < bias.size(); r++) y[r] += bias[r];
}

// Calls f(first window, end window, first token, tokens) for whole windows, about kChunkTokens at a time.
template <class F> void Calibration::for_chunks(const F& f) {
  for (size_t w = 0, end; w < windows_.size(); w = end) {
    size_t n = 0;
    for (end = w; end < windows_.size() && (end == w || n + windows_[end].size() <= kChunkTokens); end++)
      n += windows_[end].size();
    f(w, end, starts_[w], int(n));
  }
}

inline bool Calibration::attend() {
  if (!read_vector("q_norm", q_norm_) || !read_vector("k_norm", k_norm_)) return false;
  const size_t q_width = size_t(padded(c_.q_dim())), kv_width = size_t(padded(c_.kv_dim()));
  std::vector<float> q(kChunkTokens * q_width), k(kChunkTokens * kv_width), v(k.size());
  next_.resize(tokens_, int(q_width));
  for_chunks([&](size_t w, size_t end, size_t first, int n) {
    for (const bool exact : {true, false}) {
      float* const outs[] = {q.data(), k.data(), v.data()};
      for (int i = 0; i < 3; i++) exact ? project(i, first, n, outs[i]) : project_quantized(i, first, n, outs[i]);
      pool_.parallel_for(int(end - w) * c_.n_kv_heads, [&](int task, int) {
        const size_t window = w + size_t(task) / c_.n_kv_heads, t = starts_[window] - first;
        const int head = task % c_.n_kv_heads, size = int(windows_[window].size());
        float *qt = q.data() + t * q_width, *kt = k.data() + t * kv_width, *vt = v.data() + t * kv_width;
        exact ? attend_window<float>(qt, kt, vt, size, head) : attend_window<int8_t>(qt, kt, vt, size, head);
      });
      if (exact) std::copy(q.begin(), q.begin() + n * q_width, next_.exact.begin() + first * q_width);
      for (int t = 0; !exact && t < n; t++) next_.put_quantized(kernels_, first + t, q.data() + t * q_width);
    }
  });
  std::swap(in_, next_);
  return true;
}

// One KV head over a window of n tokens. q (n, q_dim), k and v (n, kv_dim), widths padded to 64, before RoPE; the
// head's part of q becomes the output. T: the type of stored keys and values.
template <class T> void Calibration::attend_window(float* q, float* k, float* v, int n, int kv_head) {
  constexpr bool kF32 = sizeof(T) == 4;
  const int head_dim = c_.head_dim, half = head_dim / 2, group = c_.n_heads / c_.n_kv_heads;
  const size_t q_width = size_t(padded(c_.q_dim())), kv_width = size_t(padded(c_.kv_dim()));
  const size_t block_bytes = kv_block_bytes(head_dim, kF32), blocks = size_t((n + kBlockKeys - 1) / kBlockKeys);
  std::vector<float> memory(block_bytes / sizeof(float) * blocks), values(size_t(round_up(head_dim, 16)));
  const auto block = [&](int b) {
    return kv_block_at(reinterpret_cast<uint8_t*>(memory.data()) + size_t(b) * block_bytes, head_dim, kF32);
  };
  q += size_t(kv_head) * group * head_dim;
  k += kv_head * head_dim;
  v += kv_head * head_dim;
  for (int t = 0; t < n; t++) {
    const float *cos = cos_.data() + size_t(t) * half, *sin = sin_.data() + size_t(t) * half;
    if (c_.qk_norm) normalize_heads(kernels_, c_, q + t * q_width, group, q_norm_.data());
    if (c_.qk_norm) normalize_heads(kernels_, c_, k + t * kv_width, 1, k_norm_.data());
    if (c_.has_rope(layer_)) kernels_.rope(q + t * q_width, group, head_dim, cos, sin);
    if (c_.has_rope(layer_)) kernels_.rope(k + t * kv_width, 1, head_dim, cos, sin);
    store_key(block(t / kBlockKeys), kF32, t % kBlockKeys, k + t * kv_width, v + t * kv_width);
  }
  for (int i = 0; i < n * group; i++) {
    const int t = i / group;
    float* const query = q + t * q_width + i % group * head_dim;
    AttentionState state = {0, 0, values.data()};
    for (int b = 0; b <= t / kBlockKeys; b++)
      attend_queries(kernels_, block(b), kF32, 1, b == 0, [&](int) {
        return Query{query, std::min(kBlockKeys, t + 1 - b * kBlockKeys), &state};
      });
    for (int j = 0; j < head_dim; j++) query[j] = state.values[j] / state.sum;
  }
}

inline void Calibration::swiglu() {
  const size_t width = size_t(padded(c_.hidden_dim));
  std::vector<float> gate(kChunkTokens * width), up(gate.size());
  next_.resize(tokens_, int(width));
  for_chunks([&](size_t, size_t, size_t first, int n) {
    for (const bool exact : {true, false}) {
      exact ? project(0, first, n, gate.data()) : project_quantized(0, first, n, gate.data());
      exact ? project(1, first, n, up.data()) : project_quantized(1, first, n, up.data());
      pool_.parallel_for(n, [&](int t, int) {
        float* y = gate.data() + t * width;
        kernels_.swiglu(y, up.data() + t * width, int(width));
        if (exact)
          std::copy(y, y + width, next_.exact.begin() + (first + t) * width);
        else
          next_.put_quantized(kernels_, first + t, y);
      });
    }
  });
  std::swap(in_, next_);
}

inline void Calibration::add_residual() {
  const size_t width = size_t(padded(c_.dim));
  std::vector<float> y(kChunkTokens * width);
  for_chunks([&](size_t, size_t, size_t first, int n) {
    for (const bool exact : {true, false}) {
      exact ? project(0, first, n, y.data()) : project_quantized(0, first, n, y.data());
      float* x = (exact ? x_ : xq_).data() + first * width;
      for (size_t i = 0; i < n * width; i++) x[i] += y[i];
    }
  });
}

// ====================================================================================================================
// Quantizing
// ====================================================================================================================

// Sums over the tokens, where x is an input in the exact stream and xq in the quantized stream.
struct Calibration::Moments {
  std::vector<float> h;         // (cols, cols), lower half: of xq xq^T
  std::vector<float> mismatch;  // (cols, cols): of (x - xq) xq^T
  std::vector<float> lag;       // (dim, cols), if the outputs are added to the streams: of (stream difference) xq^T
};

inline void Calibration::gather_moments(bool residual, Moments& m) {
  const size_t n = size_t(in_.cols), dim = size_t(padded(c_.dim)), batch = std::min<size_t>(kMomentTokens, tokens_);
  m.h.assign(n * n, 0.f);
  m.mismatch.assign(n * n, 0.f);
  m.lag.assign(residual ? dim * n : 0, 0.f);
  std::vector<float> inputs(batch * n), difference(inputs.size()), streams(residual ? batch * dim : 0);
  for (size_t first = 0; first < tokens_; first += batch) {
    const int count = int(std::min(batch, tokens_ - first));
    pool_.parallel_for(count, [&](int t, int) {
      float *xq = inputs.data() + t * n, *d = difference.data() + t * n;
      in_.get_quantized(first + t, xq);
      for (size_t k = 0; k < n; k++) d[k] = in_.exact[(first + t) * n + k] - xq[k];
      for (size_t k = 0, at = (first + t) * dim; residual && k < dim; k++)
        streams[t * dim + k] = x_[at + k] - xq_[at + k];
    });
    const Factor xq = columns_of(inputs.data(), n);
    multiply(pool_, {int(n), int(n), count}, 1, xq, xq, {m.h.data(), n}, Part::lower);
    multiply(pool_, {int(n), int(n), count}, 1, columns_of(difference.data(), n), xq, {m.mismatch.data(), n});
    if (residual) multiply(pool_, {int(dim), int(n), count}, 1, columns_of(streams.data(), dim), xq, {m.lag.data(), n});
  }
}

// Quantizes `count` matrices with the same inputs, in_, from spec `first`. residual: the outputs are added to the
// streams.
inline bool Calibration::quantize_site(int first, int count, Type type, bool residual) {
  encoded_.clear();
  weights_.clear();
  biases_.clear();
  const bool keep = first + 1 < int(specs_.size());  // the outputs of the output matrix are not inputs
  Hessian hessian;
  Moments moments;
  if (type == Type::q4) {
    gather_moments(residual && options_.lag, moments);
    const double shrink = options_.shrink + options_.shrink_few * in_.cols / double(tokens_);
    if (!hessian.factor(pool_, moments.h.data(), specs_[size_t(first)].cols, std::min(shrink, 1.0), options_.damping))
      return fail(specs_[size_t(first)].name +
                  ": expected finite inputs, found infinity or NaN; is the checkpoint damaged?");
  }
  for (int i = first; i < first + count; i++)
    if (!quantize_matrix(specs_[size_t(i)], type, keep, hessian, moments) ||
        (keep && !read_vector("b" + specs_[size_t(i)].name.substr(specs_[size_t(i)].name.rfind('.') + 2),
                              biases_.emplace_back())))
      return false;
  for (const EncodedTensor& t : encoded_) {
    if (!file_->append(t)) return fail(file_->error);
    if (!report(site_work(first, count, residual) / count, &t)) return false;
  }
  return true;
}

inline bool Calibration::read_rows(const TensorSpec& s, int first, int count, float* out) {
  std::vector<std::string> errors(size_t(pool_.threads()));
  pool_.parallel_for(count, [&](int r, int thread) {
    if (errors[thread].empty()) read_finite(s, first + r, 1, out + size_t(r) * in_.cols, read_, errors[thread]);
  });
  for (const std::string& e : errors)
    if (!e.empty()) return fail(e);
  return true;
}

inline bool Calibration::quantize_matrix(const TensorSpec& s, Type type, bool keep, const Hessian& hessian,
                                         const Moments& moments) {
  const size_t n = size_t(in_.cols), panel = panel_bytes(type, s.cols);
  EncodedTensor out = {s, type, {}, std::vector<uint8_t>(panels_of(s.rows) * panel)};
  if (type == Type::q4) std::memcpy(out.codebook, kCodebook, sizeof out.codebook);
  std::vector<float> exact(keep ? s.rows * n : 0), rows;
  double sums[3] = {};
  for (int first = 0; first < s.rows; first += kRowsAtOnce) {
    const int count = std::min(kRowsAtOnce, s.rows - first);
    rows.assign(size_t(panels_of(count)) * kPanelRows * n, 0.f);
    if (!read_rows(s, first, count, rows.data())) return false;
    std::vector<float> targets = rows;
    if (type == Type::q4) move_targets(targets, first, count, hessian, moments);
    pool_.parallel_for(panels_of(count), [&](int p, int) {
      const float* from = targets.data() + p * kPanelRows * n;
      uint8_t* to = out.bytes.data() + (first / kPanelRows + p) * panel;
      if (type != Type::q4) return PanelEncoder(type, s.cols).encode(from, to);
      RowQuantizer quantizer(hessian, Codebook(out.codebook));
      for (int r = 0; r < kPanelRows; r++) quantizer.quantize(from + r * n, r, to);
    });
    measure(rows, first, count, out, sums);
    if (keep) std::copy(rows.begin(), rows.begin() + count * n, exact.begin() + first * n);
    if (!report(0)) return false;
  }
  out.error = std::sqrt(sums[1] / std::max(sums[0], 1e-30));
  out.drift = std::sqrt(sums[2] / std::max(sums[0], 1e-30));
  encoded_.push_back(std::move(out));
  weights_.push_back(std::move(exact));
  return true;
}

// Replaces rows of weights w by their quantization targets: w + share * d H^-1, where d = w mismatch + lag. On the
// inputs of the quantized stream the targets best approximate the outputs of w on the exact inputs, plus the difference
// of the residual streams.
inline void Calibration::move_targets(std::vector<float>& rows, int first, int count, const Hessian& hessian,
                                      const Moments& m) {
  const size_t n = size_t(in_.cols);
  const float share = float(options_.correction);
  std::vector<float> moves(rows.size());
  for (size_t i = 0; !m.lag.empty() && i < count * n; i++) moves[i] = share * m.lag[first * n + i];
  multiply(pool_, {count, int(n), int(n)}, share, rows_of(rows.data(), n), columns_of(m.mismatch.data(), n),
           {moves.data(), n});
  solve(pool_, hessian.triangle(), int(n), moves.data(), count);
  for (size_t i = 0; i < count * n; i++) rows[i] += moves[i];
}

// Adds to sums, over a sample of tokens and these rows of a matrix, the squares of: the exact outputs; the error from
// the quantized weights alone; the error from everything.
inline void Calibration::measure(const std::vector<float>& rows, int first, int count, const EncodedTensor& tensor,
                                 double sums[3]) {
  const size_t n = size_t(in_.cols), ldy = size_t(padded(count));
  const int sample = int(std::min<size_t>(kSampleTokens, tokens_));
  MatrixInputs in;
  in.resize(size_t(sample), int(n));
  std::vector<float> inputs(sample * n), exact(sample * ldy), ideal(exact.size()), real(exact.size());
  for (int i = 0; i < sample; i++) {
    const size_t t = size_t(i) * tokens_ / size_t(sample);
    std::copy(in_.exact.begin() + t * n, in_.exact.begin() + (t + 1) * n, in.exact.begin() + i * n);
    in_.get_quantized(t, inputs.data() + i * n);
    in.put_quantized(kernels_, size_t(i), inputs.data() + i * n);
  }
  const Factor weights = rows_of(rows.data(), n);
  const ProductSize size = {sample, count, int(n)};
  multiply(pool_, size, 1, rows_of(in.exact.data(), n), weights, {exact.data(), ldy});
  multiply(pool_, size, 1, rows_of(inputs.data(), n), weights, {ideal.data(), ldy});
  Tensor part = tensor.tensor();
  part.rows = count;
  part.data += first / kPanelRows * panel_bytes(tensor.type, tensor.spec.cols);
  matmul_panels(kernels_, {part, 0, panels_of(count), in.quantized(0), sample, real.data(), ldy});
  const auto square = [](double d) { return d * d; };
  for (int i = 0; i < sample; i++)
    for (int r = 0; r < count; r++) {
      const size_t at = i * ldy + r;
      sums[0] += square(exact[at]);
      sums[1] += square(ideal[at] - real[at]);
      sums[2] += square(exact[at] - real[at]);
    }
}

}  // namespace pocket
