// llama_train.hpp: a trainable Llama: parameters, the forward pass with saved activations, and a hand-written backward
// pass. Names as in run.cpp and the papers; T is the number of tokens of a sequence.
#pragma once

#include "train_blocks.hpp"

namespace pocket {

// All trained tensors of a model, in the order of the file. A tied model has no output matrix.
inline std::vector<Parameter> parameters_of(const Config& c) {
  std::vector<TensorSpec> specs = tensor_specs(c);
  if (c.tied) specs.pop_back();
  return placed(specs);
}
/// Whether a model of this shape can be trained: the backward pass knows plain Llamas only. Its name is for the message.
inline bool check_trainable(const Config& c, const std::string& name, std::string& error) {
  const char* const part = c.qkv_bias || c.o_bias || c.mlp_bias ? "biases"
                           : c.qk_norm                          ? "norms of q and k"
                           : c.no_rope.any()                    ? "layers without rope"
                                                                : nullptr;
  return !part || fail(error, {name, ": expected a Llama without additions, which can be trained, found ", part});
}
inline size_t count_parameters(const Config& c) { return count_parameters(parameters_of(c)); }

// The weights of one layer.
struct LearnedLayer {
  size_t attention_norm, ffn_norm;  // (dim)
  LearnedMatrix qkv;                // (q_dim + 2 kv_dim, dim)
  LearnedMatrix wo;                 // (dim, q_dim)
  LearnedMatrix gate_up;            // (2 hidden_dim, dim)
  LearnedMatrix w2;                 // (dim, hidden_dim)
};

// The weights of a Llama in training.
class TrainModel : public LearnedWeights {
 public:
  explicit TrainModel(const Config& c) : LearnedWeights(parameters_of(c)), config(c) {
    for (int l = 0; l < c.n_layers; l++) {
      const Parameter* p = &parameters[1 + size_t(l) * 9];
      layers.push_back({p[0].offset, p[5].offset, matrix(p[1], c.q_dim() + 2 * c.kv_dim()), matrix(p[4], c.dim),
                        matrix(p[6], 2 * c.hidden_dim), matrix(p[8], c.dim)});
    }
    const Parameter* last = &parameters[1 + size_t(c.n_layers) * 9];
    final_norm = last[0].offset;
    output = matrix(c.tied ? parameters[0] : last[1], c.vocab_size);
  }

  Config config;
  std::vector<LearnedLayer> layers;
  size_t final_norm = 0;
  LearnedMatrix output;  // (vocab_size, dim); tied: the embedding table

  const float* embedding(int id) const { return values.data() + size_t(id) * parameters[0].stride; }
  std::unique_ptr<SequencePass> new_pass(const TrainKernels& kernels, const PassOptions& options) const override;
};

// Activations of one sequence: the ones that backward() needs of each layer, and scratch memory.
class Activated {
 public:
  struct OfLayer {
    Rows x, xn;                  // (T, dim): input, and normalized
    Rows qkv;                    // (T, q_dim + 2 kv_dim), with rotated queries and keys
    Attention::Saved attention;  //
    Rows middle, mn;             // (T, dim): after attention, and normalized
    Rows gate_up;                // (T, 2 hidden_dim)
  };

  Activated(const Config& c, int tokens) : Activated(c) {
    memory_ = Floats(lay_out(c, tokens, nullptr));
    lay_out(c, tokens, memory_.data());
  }

  static size_t bytes(const Config& c, int tokens) { return Activated(c).lay_out(c, tokens, nullptr) * sizeof(float); }

  std::vector<OfLayer> layers;
  Attention attention;
  Rows x, xn;      // (T, dim): output of the last layer, and normalized
  Rows hidden;     // (T, hidden_dim)
  Rows logits;     // (kLossRows, vocab_size)
  Rows dx, dnorm;  // (T, dim)
  Rows dqkv, dattention, dgate_up, dhidden;

 private:
  explicit Activated(const Config& c) : layers(size_t(c.n_layers)), attention({c.n_heads, c.n_kv_heads, c.head_dim}) {}

  size_t lay_out(const Config& c, int t, float* memory) {
    Places place(memory);
    const int qkv = c.q_dim() + 2 * c.kv_dim();
    attention.lay_out(place, t);
    for (OfLayer& l : layers) {
      for (Rows* m : {&l.x, &l.xn, &l.middle, &l.mn}) place(*m, t, c.dim);
      place(l.qkv, t, qkv);
      attention.lay_out_saved(place, l.attention);
      place(l.gate_up, t, 2 * c.hidden_dim);
    }
    for (Rows* m : {&x, &xn, &dx, &dnorm}) place(*m, t, c.dim);
    place(hidden, t, c.hidden_dim);
    place(dhidden, t, c.hidden_dim);
    place(logits, kLossRows, c.vocab_size);
    place(dqkv, t, qkv);
    place(dattention, t, c.q_dim());
    place(dgate_up, t, 2 * c.hidden_dim);
    return place.floats() + row_stride(c.head_dim);  // even the last head is read in whole vectors
  }

  Floats memory_;
};

// Runs sequences through a TrainModel.
class LlamaPass : public SequencePass {
 public:
  LlamaPass(const TrainModel& model, const TrainKernels& kernels, const PassOptions& options)
      : SequencePass(model, kernels, model.config.vocab_size, model.config.dim, options),
        m_(model),
        c_(model.config),
        a_(model.config, options.tokens),
        rotation_(model.config, options.tokens) {}

  static size_t bytes(const Config& c, int tokens, int rank, bool has_teacher) {
    return SequencePass::bytes(c.vocab_size, c.dim, tokens, rank, has_teacher) + Activated::bytes(c, tokens);
  }

  void forward(const Window& w) override {
    n_ = int(w.ids.size());
    for (int t = 0; t < n_; t++)
      std::memcpy(a_.layers[0].x.row(t), m_.embedding(w.ids[t]), padded16(c_.dim) * sizeof(float));
    drop(a_.layers[0].x, 0);
    for (int l = 0; l < c_.n_layers; l++) layer(l, w);
    norm(a_.x, m_.final_norm, a_.xn);
  }

  const Rows& logits(int first, int count) override {
    by_weight(a_.xn.from(first), count, m_.output, a_.logits);
    return a_.logits;
  }

  double backward(const Window& w, float weight, float* gradient) override {
    g_ = gradient;
    Window counted;
    const std::vector<int> tokens = counted_tokens(w, counted);
    const int n = int(tokens.size());
    for (int i = 0; i < n; i++)
      if (tokens[size_t(i)] != i) copy(a_.xn.from(tokens[size_t(i)]), a_.xn.from(i), 1, c_.dim);
    double sum = 0;
    for (int first = 0; first < n; first += kLossRows) {
      const int count = std::min(kLossRows, n - first);
      sum += loss_rows(n < n_ ? counted : w, first, count, weight);
      weight_backward(m_.output, a_.xn.from(first), a_.logits, count, a_.dnorm.from(first));
    }
    spread(tokens, a_.dnorm);
    clear(a_.dx, n_, c_.dim);
    norm_backward(a_.x, m_.final_norm);
    for (int l = c_.n_layers - 1; l >= 0; l--) layer_backward(l, w);
    drop(a_.dx, 0);
    for (int t = 0; t < n_ && !m_.adapted(); t++)
      k_.add(g_ + size_t(w.ids[t]) * m_.parameters[0].stride, a_.dx.row(t), c_.dim);
    return sum;
  }

 private:
  // Moves row i to row tokens[i], and clears the others.
  void spread(const std::vector<int>& tokens, const Rows& rows) {
    for (int t = n_ - 1, i = int(tokens.size()) - 1; t >= 0; t--) {
      const bool counts = i >= 0 && tokens[size_t(i)] == t;
      if (!counts) clear(rows.from(t), 1, c_.dim);
      if (counts && i != t) copy(rows.from(i), rows.from(t), 1, c_.dim);
      i -= counts;
    }
  }

  void norm(const Rows& x, size_t weight, const Rows& y) {
    for (int t = 0; t < n_; t++) k_.rmsnorm(x.row(t), m_.values.data() + weight, y.row(t), c_.dim, c_.norm_eps);
  }

  // dx += the gradient of a norm's input x, from the gradient of its output in dnorm.
  void norm_backward(const Rows& x, size_t weight) {
    float* dweight = vector_gradient(weight);
    for (int t = 0; t < n_; t++)
      k_.rmsnorm_backward({a_.dnorm.row(t), x.row(t), m_.values.data() + weight, a_.dx.row(t), dweight, c_.dim},
                          c_.norm_eps);
  }

  // Applies dropout, if there is any, to rows of width dim. place: 0 is the embedding, 2 l + 1 and 2 l + 2 the branches
  // of layer l.
  void drop(const Rows& rows, int place) const {
    for (int t = 0; t < n_ && dropout.rate > 0; t++) dropout.apply(rows.row(t), int(padded16(c_.dim)), place, t);
  }

  // Adds a branch, x w^T with dropout, to the residual stream. dnorm is free during the forward pass.
  void add_branch(const Rows& x, const LearnedMatrix& w, const Rows& stream, int place) {
    if (dropout.rate <= 0) return by_weight(x, n_, w, stream, true);
    by_weight(x, n_, w, a_.dnorm);
    drop(a_.dnorm, place);
    for (int t = 0; t < n_; t++) k_.add(stream.row(t), a_.dnorm.row(t), int(padded16(c_.dim)));
  }

  // The gradient of a branch: dx, with dropout in dnorm, which is free at the beginning of a block's backward pass.
  Rows branch_gradient(int place) {
    if (dropout.rate <= 0) return a_.dx;
    copy(a_.dx, a_.dnorm, n_, c_.dim);
    drop(a_.dnorm, place);
    return a_.dnorm;
  }

  void layer(int l, const Window& w) {
    const LearnedLayer& m = m_.layers[size_t(l)];
    Activated::OfLayer& a = a_.layers[size_t(l)];
    const Rows& out = l + 1 < c_.n_layers ? a_.layers[size_t(l) + 1].x : a_.x;
    norm(a.x, m.attention_norm, a.xn);
    by_weight(a.xn, n_, m.qkv, a.qkv);
    rotation_.apply(k_, c_, a.qkv, rotation_.sin, n_);
    a_.attention.forward({k_, a.qkv, w.first, n_}, a.attention);
    copy(a.x, a.middle, n_, c_.dim);
    add_branch(a.attention.out, m.wo, a.middle, 2 * l + 1);
    norm(a.middle, m.ffn_norm, a.mn);
    by_weight(a.mn, n_, m.gate_up, a.gate_up);
    for (int t = 0; t < n_; t++)
      k_.gated(a.gate_up.row(t), a.gate_up.row(t) + c_.hidden_dim, a_.hidden.row(t), c_.hidden_dim);
    copy(a.middle, out, n_, c_.dim);
    add_branch(a_.hidden, m.w2, out, 2 * l + 2);
  }

  // dx: on entry the gradient of the layer's output, on return the gradient of its input.
  void layer_backward(int l, const Window& w) {
    const LearnedLayer& m = m_.layers[size_t(l)];
    Activated::OfLayer& a = a_.layers[size_t(l)];
    const int h = c_.hidden_dim;
    const Rows dffn = branch_gradient(2 * l + 2);
    input_backward(m.w2, dffn, n_, a_.dhidden);
    for (int t = 0; t < n_; t++) {
      const float* gate = a.gate_up.row(t);
      float* dgate = a_.dgate_up.row(t);
      k_.gated_backward(gate, gate + h, a_.dhidden.row(t), a_.hidden.row(t), dgate, dgate + h, h);
    }
    matrix_backward(m.w2, a_.hidden, dffn, n_);
    weight_backward(m.gate_up, a.mn, a_.dgate_up, n_, a_.dnorm);
    norm_backward(a.middle, m.ffn_norm);
    weight_backward(m.wo, a.attention.out, branch_gradient(2 * l + 1), n_, a_.dattention);
    a_.attention.backward({k_, a.qkv, w.first, n_}, a.attention, a_.dattention, a_.dqkv);
    rotation_.apply(k_, c_, a_.dqkv, rotation_.minus_sin, n_);
    weight_backward(m.qkv, a.xn, a_.dqkv, n_, a_.dnorm);
    norm_backward(a.x, m.attention_norm);
  }

  const TrainModel& m_;
  const Config& c_;
  Activated a_;
  Rotation rotation_;
  int n_ = 0;
};

inline std::unique_ptr<SequencePass> TrainModel::new_pass(const TrainKernels& kernels,
                                                          const PassOptions& options) const {
  return std::make_unique<LlamaPass>(*this, kernels, options);
}

// Initial weights: matrices are normal with standard deviation 0.5 / sqrt(cols), divided by sqrt(2 n_layers) for the
// matrices that add to the residual stream; norms are 1.
inline void initialize(TrainModel& m, uint64_t seed) {
  for (const Parameter& p : m.parameters) {
    if (!p.decays()) {
      std::fill(m.values.data() + p.offset, m.values.data() + p.offset + p.spec.cols, 1.f);
      continue;
    }
    const std::string last = p.spec.name.substr(p.spec.name.rfind('.') + 1);
    const double added = last == "wo" || last == "w2" ? 1 / std::sqrt(2.0 * m.config.n_layers) : 1;
    fill_normal(p, 0.5 / std::sqrt(double(p.spec.cols)) * added, seed, m.values);
  }
}

}  // namespace pocket
