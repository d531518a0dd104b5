// frozen_llama.hpp: trains adapters of a model file of any type (QLoRA, Dettmers et al. 2023, arxiv.org/abs/2305.14314).
//
// The weights are used where the file is mapped. Forward, matrices are multiplied by the engine's kernels, inputs rounded
// to int8 as it does, and adapters add what they add at run time, in the same order of sums: an adapter learns to correct
// the very model that runs. (Attention is that of training, with keys and values in float32.) Backward, a gradient is
// multiplied by the weights that the blocks of the file stand for; the rounding of inputs counts as the identity. Of a
// layer only the input is kept; the rest is computed again.
#pragma once

#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "../export/model_rows.hpp"
#include "llama_train.hpp"

namespace pocket {

// A matrix of the file, and its place among the parameters, by which adapters are found.
struct FrozenMatrix {
  const Tensor* w;
  LearnedMatrix place;
};

struct FrozenLayer {
  const Tensor *attention_norm, *ffn_norm;
  FrozenMatrix wq, wk, wv, wo, w1, w3, w2;
};

// The weights of an open model file, which are not trained. `values` is empty.
class FrozenLlama : public LearnedWeights {
 public:
  // The model stays open.
  explicit FrozenLlama(const Model& m) : LearnedWeights({}), model(m) {
    std::vector<Parameter> all = parameters_of(m.config);
    const Parameter* next = all.data() + 1;  // after the embedding
    const auto take = [&](const Tensor& t) {
      const Parameter& p = *next++;
      return FrozenMatrix{&t, {t.rows, t.cols, p.offset, p.stride, 0, 0}};
    };
    for (const Layer& l : m.layers) {
      FrozenLayer f = {&l.attention_norm, &l.ffn_norm, {}, {}, {}, {}, {}, {}, {}};
      next++;
      for (auto [to, from] :
           {std::pair(&f.wq, &l.wq), std::pair(&f.wk, &l.wk), std::pair(&f.wv, &l.wv), std::pair(&f.wo, &l.wo)})
        *to = take(*from);
      next++;
      for (auto [to, from] : {std::pair(&f.w1, &l.w1), std::pair(&f.w3, &l.w3), std::pair(&f.w2, &l.w2)})
        *to = take(*from);
      layers.push_back(f);
    }
    next++;
    output = {&m.output, {m.output.rows, m.output.cols, floats_of(all), padded16(m.output.cols), 0, 0}};
    if (!m.config.tied) output = take(m.output);
  }

  const Model& model;
  std::vector<FrozenLayer> layers;
  FrozenMatrix output;  // (vocab_size, dim); tied: without an adapter

  std::unique_ptr<SequencePass> new_pass(const TrainKernels& kernels, const PassOptions& options) const override;
};

// ---- Weights as floats, for the backward pass ----

// 16 rows and 32 columns, from column 32 * group on, of a panel as floats: out (16, 32). The numbers are those of weight().
inline void dequantize_block(const Tensor& t, const uint8_t* panel, int group, float* out) {
  if (t.type == Type::f32) {
    const float* in = reinterpret_cast<const float*>(panel) + size_t(group) * kGroup * kPanelRows;
    for (int k = 0; k < kGroup; k++)
      for (int r = 0; r < kPanelRows; r++) out[r * kGroup + k] = in[k * kPanelRows + r];
    return;
  }
  float scale[kPanelRows], row[kPanelRows];
  for (int r = 0; r < kPanelRows; r++) scale[r] = group_scale(t, panel, r, group);
  for (int r = 0; r < kPanelRows; r++) row[r] = row_scale(t, panel, r);
  if (t.type == Type::q8) {
    const int8_t* in = reinterpret_cast<const int8_t*>(panel) + size_t(group) * kGroup * kPanelRows;
    for (int v = 0; v < kGroup / 4; v++, in += 64)
      for (int r = 0; r < kPanelRows; r++)
        for (int b = 0; b < 4; b++) out[r * kGroup + 4 * v + b] = scale[r] * float(in[4 * r + b]);
    return;
  }
  float values[16];
  for (int i = 0; i < 16; i++) values[i] = float(t.codebook[i]);
  const uint8_t* in = panel + size_t(group) * kGroup * kPanelRows / 2;
  for (int v = 0; v < kGroup / 8; v++, in += 64)
    for (int r = 0; r < kPanelRows; r++)
      for (int b = 0; b < 4; b++) {
        const uint8_t pair = in[4 * r + b];
        out[r * kGroup + 8 * v + b] = row[r] * (scale[r] * values[pair & 15]);
        out[r * kGroup + 8 * v + 4 + b] = row[r] * (scale[r] * values[pair >> 4]);
      }
}

// The engine's kernel set for a set of training kernels. The bits do not depend on it.
inline const Kernels& engine_kernels(const TrainKernels& k) {
  const Kernels* found = find_kernels(std::strcmp(k.name, "avx512") == 0     ? nullptr
                                      : std::strcmp(k.name, "portable") == 0 ? "scalar"
                                                                             : k.name);
  return found ? *found : *find_kernels(nullptr);
}

// ---- Activations ----

// The activations of a sequence: the inputs of all layers, and what one layer needs.
class FrozenActivations {
 protected:
  explicit FrozenActivations(const Config& c) : attention_({c.n_heads, c.n_kv_heads, c.head_dim}) {}

  static int widest(const Config& c) { return std::max({c.dim, c.q_dim(), c.hidden_dim}); }

  // Places everything for sequences of at most `tokens` tokens. Returns the size in floats.
  size_t lay_out(const Config& c, int tokens, int rank, float* memory) {
    Places place(memory);
    const int qkv = c.q_dim() + 2 * c.kv_dim();
    x_.resize(size_t(c.n_layers) + 1);
    for (Rows& x : x_) place(x, tokens, c.dim);
    attention_.lay_out(place, tokens);
    attention_.lay_out_saved(place, saved_);
    for (Rows* m : {&xn_, &middle_, &mn_, &final_, &out_, &dx_, &dnorm_}) place(*m, tokens, c.dim);
    for (Rows* m : {&qkv_, &dqkv_}) place(*m, tokens, qkv + kPanelRows);  // a panel writes 16 columns
    for (Rows* m : {&gate_up_, &dgate_up_}) place(*m, tokens, 2 * c.hidden_dim + kPanelRows);
    for (Rows* m : {&hidden_, &dhidden_}) place(*m, tokens, c.hidden_dim);
    place(dattention_, tokens, c.q_dim());
    place(logits_, kLossRows, c.vocab_size);
    place(low_, tokens, rank);
    place(added_, tokens, kPanelCols);
    place(right_, rank, kPanelCols - 1);  // rows of 32 floats and a gap
    place(block_, 1, kBlockRows * kGroup);
    const size_t size = place.floats() + row_stride(c.head_dim);  // even the last head is read in whole vectors
    Placement take{uintptr_t(memory + (memory ? size : 0))};
    const uintptr_t begin = take.at;
    in_.place(widest(c), true, take);
    return size + (take.at - begin) / sizeof(float);
  }

  static constexpr int kBlockRows = 512;  // of weights that are floats at a time

  Attention attention_;
  Attention::Saved saved_;
  std::vector<Rows> x_;                  // (layers + 1) of (T, dim): the inputs, and the last output
  Rows xn_, middle_, mn_, final_, out_;  // (T, dim)
  Rows qkv_, gate_up_, hidden_;          // of one layer
  Rows logits_;                          // (kLossRows, vocab_size)
  Rows dx_, dnorm_;                      // (T, dim)
  Rows dqkv_, dattention_, dgate_up_, dhidden_;
  Rows low_, added_;    // of adapters: (T, rank), (T, 32)
  Rows right_, block_;  // right factors of products: of adapters, of weights
  Activations in_;      // the input of the engine's kernels

 public:
  static size_t bytes(const Config& c, int tokens, int rank) {
    return FrozenActivations(c).lay_out(c, tokens, rank, nullptr) * sizeof(float);
  }
};

// Runs sequences through a FrozenLlama with adapters.
class FrozenPass : public SequencePass, private FrozenActivations {
 public:
  FrozenPass(const FrozenLlama& model, const TrainKernels& kernels, const PassOptions& options)
      : SequencePass(model, kernels, model.model.config.vocab_size, model.model.config.dim, options),
        FrozenActivations(model.model.config),
        m_(model),
        c_(model.model.config),
        engine_(engine_kernels(kernels)),
        rotation_(c_, options.tokens),
        row_(size_t(padded(c_.dim))) {
    memory_ = Floats(lay_out(c_, options.tokens, model.adapters.rank, nullptr));
    lay_out(c_, options.tokens, model.adapters.rank, memory_.data());
  }

  static size_t bytes(const Config& c, int tokens, int rank) {
    return SequencePass::bytes(c.vocab_size, c.dim, tokens, rank, false) + FrozenActivations::bytes(c, tokens, rank);
  }

  void forward(const Window& w) override {
    n_ = int(w.ids.size());
    for (int t = 0; t < n_; t++) {
      if (!m_.model.read_row(m_.model.token_embedding, w.ids[size_t(t)], row_.data()))
        std::fill(row_.begin(), row_.end(), std::numeric_limits<float>::quiet_NaN());  // the loss is not finite then
      std::memcpy(x_[0].row(t), row_.data(), size_t(c_.dim) * sizeof(float));
    }
    for (int l = 0; l < c_.n_layers; l++) {
      begin_layer(l, w);
      for (int t = 0; t < n_; t++)
        k_.gated(gate_up_.row(t), gate_up_.row(t) + c_.hidden_dim, hidden_.row(t), c_.hidden_dim);
      multiply({{&m_.layers[size_t(l)].w2, out_}}, hidden_, n_);
      add(middle_, out_, x_[size_t(l) + 1]);
    }
    norm(x_.back(), m_.model.final_norm, final_);
  }

  const Rows& logits(int first, int count) override {
    multiply({{&m_.output, logits_}}, final_.from(first), count);
    return logits_;
  }

  double backward(const Window& w, float weight, float* gradient) override {
    g_ = gradient;
    Window counted;
    const std::vector<int> tokens = counted_tokens(w, counted);  // their rows come first
    for (size_t i = 0; i < tokens.size(); i++)
      std::memcpy(final_.row(int(i)), final_.row(tokens[i]), padded16(c_.dim) * sizeof(float));
    double sum = 0;
    const int n = int(tokens.size());
    for (int first = 0; first < n; first += kLossRows) {
      const int count = std::min(kLossRows, n - first);
      sum += loss_rows(counted, first, count, weight);
      matrix_backward(m_.output, final_.from(first), logits_, count, out_.from(first), false);
    }
    clear(dnorm_, n_, c_.dim);
    for (int i = 0; i < n; i++) std::memcpy(dnorm_.row(tokens[size_t(i)]), out_.row(i), size_t(c_.dim) * sizeof(float));
    clear(dx_, n_, c_.dim);
    norm_backward(x_.back(), m_.model.final_norm);
    for (int l = c_.n_layers - 1; l >= 0; l--) layer_backward(l, w);
    return sum;
  }

 private:
  static Rows columns(const Rows& m, int col) { return {m.data + col, m.stride}; }
  void add(const Rows& a, const Rows& b, const Rows& sum) {
    for (int t = 0; t < n_; t++)
      for (int i = 0; i < c_.dim; i++) sum.row(t)[i] = a.row(t)[i] + b.row(t)[i];
  }
  void norm(const Rows& x, const Tensor& weight, const Rows& y) {
    for (int t = 0; t < n_; t++) k_.rmsnorm(x.row(t), floats(weight), y.row(t), c_.dim, c_.norm_eps);
  }
  // dx += the gradient of a norm's input x, from the gradient of its output in dnorm.
  void norm_backward(const Rows& x, const Tensor& weight) {
    for (int t = 0; t < n_; t++)
      k_.rmsnorm_backward({dnorm_.row(t), x.row(t), floats(weight), dx_.row(t), vector_gradient(0), c_.dim},
                          c_.norm_eps);
  }

  // A layer up to gate and up.
  void begin_layer(int l, const Window& w) {
    const FrozenLayer& m = m_.layers[size_t(l)];
    const int k_at = c_.q_dim(), v_at = k_at + c_.kv_dim();
    norm(x_[size_t(l)], *m.attention_norm, xn_);
    multiply({{&m.wq, qkv_}, {&m.wk, columns(qkv_, k_at)}, {&m.wv, columns(qkv_, v_at)}}, xn_, n_);
    rotation_.apply(k_, c_, qkv_, rotation_.sin, n_);
    attention_.forward({k_, qkv_, w.first, n_}, saved_);
    multiply({{&m.wo, out_}}, saved_.out, n_);
    add(x_[size_t(l)], out_, middle_);
    norm(middle_, *m.ffn_norm, mn_);
    multiply({{&m.w1, gate_up_}, {&m.w3, columns(gate_up_, c_.hidden_dim)}}, mn_, n_);
  }

  // dx: on entry the gradient of the layer's output, on return the gradient of its input.
  void layer_backward(int l, const Window& w) {
    const FrozenLayer& m = m_.layers[size_t(l)];
    const int h = c_.hidden_dim, k_at = c_.q_dim(), v_at = k_at + c_.kv_dim();
    begin_layer(l, w);
    for (int t = 0; t < n_; t++) k_.gated(gate_up_.row(t), gate_up_.row(t) + h, hidden_.row(t), h);
    matrix_backward(m.w2, hidden_, dx_, n_, dhidden_, false);
    for (int t = 0; t < n_; t++)
      k_.gated_backward(gate_up_.row(t), gate_up_.row(t) + h, dhidden_.row(t), hidden_.row(t), dgate_up_.row(t),
                        dgate_up_.row(t) + h, h);
    matrix_backward(m.w1, mn_, dgate_up_, n_, dnorm_, false);
    matrix_backward(m.w3, mn_, columns(dgate_up_, h), n_, dnorm_, true);
    norm_backward(middle_, *m.ffn_norm);
    matrix_backward(m.wo, saved_.out, dx_, n_, dattention_, false);
    attention_.backward({k_, qkv_, w.first, n_}, saved_, dattention_, dqkv_);
    rotation_.apply(k_, c_, dqkv_, rotation_.minus_sin, n_);
    matrix_backward(m.wq, xn_, dqkv_, n_, dnorm_, false);
    matrix_backward(m.wk, xn_, columns(dqkv_, k_at), n_, dnorm_, true);
    matrix_backward(m.wv, xn_, columns(dqkv_, v_at), n_, dnorm_, true);
    norm_backward(x_[size_t(l)], *m.attention_norm);
  }

  // ---- Products ----

  struct Product {
    const FrozenMatrix* m;
    Rows y;  // (n, rows padded to 16)
  };

  // y = x w^T for matrices with the same input x (n, cols), by the engine's kernels, plus what the adapters add.
  void multiply(std::initializer_list<Product> products, const Rows& x, int n) {
    const int cols = products.begin()->m->w->cols, width = padded(cols);
    Activations in = in_;
    in.cols = width;
    for (int first = 0; first < n; first += kChunk) {
      const int count = std::min(kChunk, n - first);
      for (int t = 0; t < count; t++) {
        float* to = in.f + size_t(t) * size_t(width);
        std::memcpy(to, x.row(first + t), size_t(cols) * sizeof(float));
        std::fill(to + cols, to + width, 0.f);
        if (!m_.model.all_f32) in.quantize_token(engine_, t, count);
      }
      in.use_packed = packs(engine_, count);
      for (const Product& p : products)
        matmul_panels(engine_, {*p.m->w, 0, panels_of(p.m->w->rows), in, count, p.y.row(first), p.y.stride});
    }
    for (const Product& p : products) add_adapters(p, x, n);
  }

  // low (n, rank) = x (n, depth) times a factor (depth, rank), times `scale`.
  void project(const Rows& x, int depth, size_t factor, int n, float scale) {
    const int rank = int(padded16(m_.adapters.rank));
    k_.gemm({n, rank, depth, rows_of(x.data, x.stride), row_major(factor_at(factor), size_t(rank)), low_.data,
             low_.stride, false});
    for (int t = 0; t < n && scale != 1; t++)
      for (int k = 0; k < rank; k++) low_.row(t)[k] *= scale;
  }

  // Calls each(first, columns) for panels of low (n, rank) times the transpose of a factor (count, rank), times `scale`:
  // added (n, columns).
  template <class Each> void expand(size_t factor, int count, int n, float scale, const Each& each) {
    const int rank = m_.adapters.rank;
    const size_t stride = padded16(rank);
    for (int first = 0; first < count; first += kPanelCols) {
      const int width = std::min(kPanelCols, count - first);
      for (int k = 0; k < rank; k++)
        for (int j = 0; j < kPanelCols; j++)
          right_.row(k)[j] = j < width ? scale * factor_at(factor)[size_t(first + j) * stride + size_t(k)] : 0;
      k_.gemm({n, int(padded16(width)), rank, rows_of(low_.data, low_.stride), row_major(right_.data, right_.stride),
               added_.data, added_.stride, false});
      each(first, width);
    }
  }

  // y += scale * B (A x), in the order of the engine: each row's sum over the ranks is added as a whole.
  void add_adapters(const Product& p, const Rows& x, int n) {
    m_.for_adapters(p.m->place, [&](const LearnedLowRank& l, int) {
      project(x, l.cols, l.a, n, 1);
      expand(l.b, l.rows, n, m_.adapters.scale, [&](int first, int width) {
        for (int t = 0; t < n; t++)
          for (int j = 0; j < width; j++) p.y.row(t)[first + j] += added_.row(t)[j];
      });
    });
  }

  // Of y = x (w + scale B A)^T: dx (n, cols) = or += dy w', and the gradients of A and B.
  void matrix_backward(const FrozenMatrix& m, const Rows& x, const Rows& dy, int n, const Rows& dx, bool add) {
    input_backward(*m.w, dy, n, dx, add);
    m_.for_adapters(m.place, [&](const LearnedLowRank& l, int) {
      const size_t rank = padded16(m_.adapters.rank);
      project(dy, l.rows, l.b, n, m_.adapters.scale);
      k_.gemm({l.cols, int(rank), n, columns_of(x.data, x.stride), row_major(low_.data, low_.stride), g_ + l.a, rank,
               true});
      expand(l.a, l.cols, n, 1, [&](int first, int width) {
        for (int t = 0; t < n; t++)
          for (int j = 0; j < width; j++) dx.row(t)[first + j] += added_.row(t)[j];
      });
      project(x, l.cols, l.a, n, m_.adapters.scale);
      k_.gemm({l.rows, int(rank), n, columns_of(dy.data, dy.stride), row_major(low_.data, low_.stride), g_ + l.b, rank,
               true});
    });
  }

  // dx (n, cols) = or += dy (n, rows) w, whose blocks become floats one after the other.
  void input_backward(const Tensor& w, const Rows& dy, int n, const Rows& dx, bool add) {
    const size_t panel = panel_bytes(w.type, w.cols);
    for (int col = 0; col < w.cols; col += kGroup)
      for (int row = 0; row < w.rows; row += kBlockRows) {
        const int depth = std::min(kBlockRows, w.rows - row), width = std::min(kGroup, int(padded16(w.cols)) - col);
        for (int p = 0; p * kPanelRows < depth; p++)
          dequantize_block(w, w.data + size_t(row / kPanelRows + p) * panel, col / kGroup,
                           block_.data + size_t(p) * kPanelRows * kGroup);
        k_.gemm({n, width, depth, rows_of(dy.data + row, dy.stride), row_major(block_.data, kGroup), dx.data + col,
                 dx.stride, add || row > 0});
      }
  }

  const float* factor_at(size_t offset) const { return m_.adapters.values.data() + offset; }

  const FrozenLlama& m_;
  const Config& c_;
  const Kernels& engine_;
  Rotation rotation_;
  std::vector<float> row_;  // of the embedding
  int n_ = 0;
  Floats memory_;
};

inline std::unique_ptr<SequencePass> FrozenLlama::new_pass(const TrainKernels& kernels,
                                                           const PassOptions& options) const {
  return std::make_unique<FrozenPass>(*this, kernels, options);
}

}  // namespace pocket
