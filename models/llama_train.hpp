// llama_train.hpp: a Llama whose weights can be learned: parameters, forward with saved activations, and the backward
// pass, written by hand. Names as in run.cpp and the papers; T is the number of tokens of a sequence.
//
// A sequence goes through the whole network on one thread, forward and back, while its activations are in that core's
// cache. Threads share the weights; gradients are summed by kLanes lanes, sequence i in lane i mod kLanes and in
// order, and then lane by lane, so that the number of threads changes no bit.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "train_kernels.hpp"

namespace pocket {

inline constexpr int kLanes = 8;        // sums of gradients that are kept apart
inline constexpr int kQueryBlock = 32;  // rows of the score matrix that exist at a time
inline constexpr int kLossRows = 64;    // rows of logits that exist at a time

// SplitMix64 (Steele, Lea and Flood 2014).
inline uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

// Floats on a 64-byte boundary, zero to begin with. Throws std::bad_alloc.
class Floats {
 public:
  Floats() = default;
  explicit Floats(size_t n) : size_(n), data_(new (std::align_val_t(kAlign)) float[n + 1]()) {}
  Floats(Floats&& o) noexcept : size_(std::exchange(o.size_, 0)), data_(std::exchange(o.data_, nullptr)) {}
  Floats& operator=(Floats&& o) noexcept {
    std::swap(size_, o.size_), std::swap(data_, o.data_);
    return *this;
  }
  ~Floats() { operator delete[](data_, std::align_val_t(kAlign)); }

  float* data() { return data_; }
  const float* data() const { return data_; }
  size_t size() const { return size_; }
  float& operator[](size_t i) { return data_[i]; }
  float operator[](size_t i) const { return data_[i]; }

 private:
  size_t size_ = 0;
  float* data_ = nullptr;
};

// Where a tensor lies in the array of all parameters: rows of padded16(cols) floats.
struct Parameter {
  TensorSpec spec;
  size_t offset, stride;

  size_t size() const { return size_t(spec.rows) * stride; }
  bool decays() const { return spec.layout != Layout::vector; }  // norms are left alone by weight decay
};

// All tensors of a model that are learned, in the order of the file. A tied model has no output matrix of its own.
inline std::vector<Parameter> parameters_of(const Config& c) {
  std::vector<Parameter> all;
  size_t offset = 0;
  for (const TensorSpec& spec : tensor_specs(c)) {
    if (spec.name == "output" && c.tied) continue;
    all.push_back({spec, offset, padded16(spec.cols)});
    offset += all.back().size();
  }
  return all;
}

// Floats that they take, and numbers that are learned, without padding.
inline size_t floats_of(const std::vector<Parameter>& all) {
  return all.empty() ? 0 : all.back().offset + all.back().size();
}
inline size_t count_parameters(const std::vector<Parameter>& all) {
  size_t n = 0;
  for (const Parameter& p : all) n += size_t(p.spec.rows) * p.spec.cols;
  return n;
}
inline size_t count_parameters(const Config& c) { return count_parameters(parameters_of(c)); }

// A matrix (rows, cols) that a layer multiplies with: one tensor, or some that lie behind each other and share their
// input, as wq, wk and wv do. Places are in the array of parameters and in that of packed weights.
struct LearnedMatrix {
  int rows = 0, cols = 0;
  size_t offset = 0, stride = 0;
  size_t forward = 0, backward = 0;  // packed for x w^T: depth cols; for dy w: depth rows
};

struct LearnedLayer {
  size_t attention_norm, ffn_norm;  // (dim)
  LearnedMatrix qkv;                // (q_dim + 2 kv_dim, dim)
  LearnedMatrix wo;                 // (dim, q_dim)
  LearnedMatrix gate_up;            // (2 hidden_dim, dim)
  LearnedMatrix w2;                 // (dim, hidden_dim)
};

// LoRA (Hu et al. 2021, arxiv.org/abs/2106.09685): a tensor W (rows, cols) stays what it is, and what is multiplied
// with is W + scale * b a^T, of which b (rows, rank) and a (cols, rank) are learned.
struct LowRank {
  size_t weight;  // W's place in the array of parameters
  int rows, cols;
  size_t a, b;  // places in the array of adapters, in rows of padded16(rank) floats
};

struct Adapters {
  int rank = 0;  // 0: there are none, and the weights themselves are learned
  float scale = 1;
  std::vector<LowRank> all;           // in the order of the weights
  std::vector<Parameter> parameters;  // a and b of each
  Floats values;
};

// The weights, and packed copies of the matrices that every product of a step reads.
class TrainModel {
 public:
  explicit TrainModel(const Config& c) : config(c), parameters(parameters_of(c)) {
    values = Floats(floats_of(parameters));
    for (int l = 0; l < c.n_layers; l++) {
      const Parameter* p = &parameters[1 + size_t(l) * 9];
      layers.push_back({p[0].offset, p[5].offset, matrix(p[1], c.q_dim() + 2 * c.kv_dim()), matrix(p[4], c.dim),
                        matrix(p[6], 2 * c.hidden_dim), matrix(p[8], c.dim)});
    }
    const Parameter* last = &parameters[1 + size_t(c.n_layers) * 9];
    final_norm = last[0].offset;
    output = matrix(c.tied ? parameters[0] : last[1], c.vocab_size);
    packed_ = Floats(packed_size_);
  }

  Config config;
  std::vector<Parameter> parameters;
  Floats values;
  std::vector<LearnedLayer> layers;
  size_t final_norm = 0;
  LearnedMatrix output;  // (vocab_size, dim); tied: the embedding table
  Adapters adapters;     // once there are some, nothing else is learned

  // Before anything is learned.
  void adapt(Adapters with) {
    adapters = std::move(with);
    adapters.values = Floats(floats_of(adapters.parameters));
  }
  bool adapted() const { return adapters.rank > 0; }
  const std::vector<Parameter>& learned_parameters() const { return adapted() ? adapters.parameters : parameters; }
  Floats& learned() { return adapted() ? adapters.values : values; }
  const Floats& learned() const { return adapted() ? adapters.values : values; }

  // Calls each(adapter, the matrix's row that its first one is) for those of a matrix.
  template <class Each> void for_adapters(const LearnedMatrix& m, const Each& each) const {
    const auto before = [](const LowRank& l, size_t weight) { return l.weight < weight; };
    auto l = std::lower_bound(adapters.all.begin(), adapters.all.end(), m.offset, before);
    for (; l != adapters.all.end() && l->weight < m.offset + size_t(m.rows) * m.stride; ++l)
      each(*l, int((l->weight - m.offset) / m.stride));
  }

  RightFactor forward(const LearnedMatrix& m) const { return packed(packed_.data() + m.forward, m.cols); }
  RightFactor backward(const LearnedMatrix& m) const { return packed(packed_.data() + m.backward, m.rows); }
  const float* embedding(int id) const { return values.data() + size_t(id) * parameters[0].stride; }

  // To be called whenever `values` have changed, or the adapters', which are added here: beyond this they cost nothing.
  void pack_weights(Pool& pool, const TrainKernels& kernels) {
    std::vector<Floats> factors(size_t(adapted() ? pool.threads() : 0));
    for (Floats& f : factors) f = Floats(size_t(adapters.rank) * kPanelCols);
    pool.run(int(panels_.size()), [&](int task, int thread) {
      const Panel& p = panels_[size_t(task)];
      const float* w = values.data() + p.matrix.offset;
      if (p.backward)
        pack_panel(columns_of(w, p.matrix.stride), p.matrix.rows, p.matrix.cols, p.index,
                   packed_.data() + p.matrix.backward);
      else
        pack_panel(rows_of(w, p.matrix.stride), p.matrix.cols, p.matrix.rows, p.index,
                   packed_.data() + p.matrix.forward);
      if (adapted()) add_adapters(p, kernels, factors[size_t(thread)].data());
    });
  }

 private:
  struct Panel {
    LearnedMatrix matrix;
    bool backward;
    int index;
  };

  // Adds to a panel, 32 rows of the matrix (forward) or 32 columns: one factor times the part of the other that belongs
  // to the panel, scaled, in `right` (rank, 32).
  void add_adapters(const Panel& p, const TrainKernels& kernels, float* right) {
    const int first = p.index * kPanelCols, rank = adapters.rank;
    const size_t stride = padded16(rank);
    for_adapters(p.matrix, [&](const LowRank& l, int row) {
      const int begin = p.backward ? 0 : row, end = p.backward ? l.cols : row + l.rows;
      if (first + kPanelCols <= begin || first >= end) return;
      const float* left = adapters.values.data() + (p.backward ? l.b : l.a);
      const float* other = adapters.values.data() + (p.backward ? l.a : l.b);
      for (int k = 0; k < rank; k++)
        for (int j = 0; j < kPanelCols; j++) {
          const int i = first + j - begin;
          right[k * kPanelCols + j] = i >= 0 && i < end - begin ? adapters.scale * other[size_t(i) * stride + k] : 0;
        }
      const LearnedMatrix& m = p.matrix;
      float* out = packed_.data() + (p.backward ? m.backward + packed_size(m.rows, first) + size_t(row) * kPanelCols
                                                : m.forward + packed_size(m.cols, first));
      kernels.gemm({p.backward ? l.rows : l.cols, kPanelCols, rank, rows_of(left, stride), row_major(right, kPanelCols),
                    out, kPanelCols, true});
    });
  }

  LearnedMatrix matrix(const Parameter& first, int rows) {
    LearnedMatrix m = {rows, first.spec.cols, first.offset, first.stride, packed_size_, 0};
    m.backward = m.forward + packed_size(m.cols, m.rows);
    packed_size_ = m.backward + packed_size(m.rows, m.cols);
    for (int i = 0; i < m.rows; i += kPanelCols) panels_.push_back({m, false, i / kPanelCols});
    for (int i = 0; i < m.cols; i += kPanelCols) panels_.push_back({m, true, i / kPanelCols});
    return m;
  }

  size_t packed_size_ = 0;
  std::vector<Panel> panels_;
  Floats packed_;
};

// A sequence to learn from, or to be judged by.
struct Window {
  std::vector<int> ids;      // (T)
  std::vector<int> targets;  // (T): the token that follows each; -1: not asked
  std::vector<int> first;    // (T): the first position that each may look back to, which is where its text begins
};

// A matrix of activations (T, cols), in rows of row_stride(cols) floats, zeros behind the last column.
struct Rows {
  float* data = nullptr;
  size_t stride = 0;

  float* row(int t) const { return data + size_t(t) * stride; }
  Rows from(int t) const { return {row(t), stride}; }
};

// Whom a model learns from besides the text: someone who knows better what may follow each token (distill.hpp).
class Teacher {
 public:
  virtual ~Teacher() = default;
  // Logits (count, vocab_size) of a window's tokens first ... first + count - 1. Those of a window are asked for in
  // order, by one thread.
  virtual void logits(int thread, const Window& w, int first, int count, const Rows& out) = 0;

  float share = 0, temperature = 1;  // as distill_body has them
};

// Activations of one sequence: what backward() wants of each layer, and scratch. One for each thread.
class Activated {
 public:
  struct OfLayer {
    Rows x, xn;       // (T, dim): input, and normalized
    Rows qkv;         // (T, q_dim + 2 kv_dim), queries and keys turned to their positions
    Rows attention;   // (T, q_dim)
    Rows softmax;     // (n_heads, 2 T): the largest score of each token, then 1 / the sum of e^(score - largest)
    Rows middle, mn;  // (T, dim): after attention, and normalized
    Rows gate_up;     // (T, 2 hidden_dim)
  };

  // rank: of the adapters, 0 if there are none. taught: there is a teacher.
  Activated(const Config& c, int tokens, int rank = 0, bool taught = false)
      : tokens(tokens), rank(rank), taught(taught) {
    size_t floats = lay_out(c, nullptr);
    memory_ = Floats(floats);
    lay_out(c, memory_.data());
  }

  static size_t bytes(const Config& c, int tokens, int rank = 0, bool taught = false) {
    Activated a;
    a.tokens = tokens, a.rank = rank, a.taught = taught;
    return a.lay_out(c, nullptr) * sizeof(float);
  }

  int tokens = 0, rank = 0;
  bool taught = false;
  std::vector<OfLayer> layers;
  Rows x, xn;            // (T, dim): output of the last layer, and normalized
  Rows hidden;           // (T, hidden_dim)
  Rows logits;           // (kLossRows, vocab_size)
  Rows scores, dscores;  // (kQueryBlock, T)
  Rows head;             // (kQueryBlock, head_dim)
  Rows keys, values;     // (head_dim, T) of one head, packed
  Rows dkeys, dvalues;   // (T, head_dim) of one head
  Rows dx, dnorm;        // (T, dim)
  Rows dqkv, dattention, dgate_up, dhidden;
  Rows low, unused;  // with adapters: (T, rank), and (dim) for the gradient of a norm, which nobody asks for
  Rows told, soft;   // with a teacher: its logits (kLossRows, vocab_size), and scratch of two rows

 private:
  Activated() = default;

  size_t lay_out(const Config& c, float* memory) {
    size_t at = 0;
    const auto place = [&](Rows& m, int rows, int cols) {
      m = {memory ? memory + at : nullptr, row_stride(cols)};
      at += size_t(rows) * m.stride;
    };
    const int t = tokens, qkv = c.q_dim() + 2 * c.kv_dim();
    layers.resize(size_t(c.n_layers));
    for (OfLayer& l : layers) {
      for (Rows* m : {&l.x, &l.xn, &l.middle, &l.mn}) place(*m, t, c.dim);
      place(l.qkv, t, qkv), place(l.attention, t, c.q_dim()), place(l.softmax, c.n_heads, 2 * t);
      place(l.gate_up, t, 2 * c.hidden_dim);
    }
    for (Rows* m : {&x, &xn, &dx, &dnorm}) place(*m, t, c.dim);
    place(hidden, t, c.hidden_dim), place(dhidden, t, c.hidden_dim);
    place(logits, kLossRows, c.vocab_size);
    place(scores, kQueryBlock, t), place(dscores, kQueryBlock, t);
    place(head, kQueryBlock, c.head_dim);
    for (Rows* m : {&keys, &values}) place(*m, 1, int(packed_size(c.head_dim, t)));
    for (Rows* m : {&dkeys, &dvalues}) place(*m, t, c.head_dim);
    place(dqkv, t, qkv), place(dattention, t, c.q_dim()), place(dgate_up, t, 2 * c.hidden_dim);
    if (taught) place(told, kLossRows, c.vocab_size), place(soft, 2, c.vocab_size);
    if (rank > 0) place(low, t, rank), place(unused, 1, c.dim);
    return at + row_stride(c.head_dim);  // a head is read in whole vectors, also the last one
  }

  Floats memory_;
};

// Cosines and sines of the rotary angles, (positions, head_dim / 2), as the engine has them. Turning back is turning by
// the negative angle.
struct Rotation {
  std::vector<float> cos, sin, minus_sin;

  Rotation(const Config& c, int positions) {
    for (int t = 0; t < positions; t++)
      for (int i = 0; i < c.head_dim / 2; i++) {
        double s, co;
        exact::sincos(t * rope_frequency(c, i), s, co);
        cos.push_back(float(co)), sin.push_back(float(s)), minus_sin.push_back(-float(s));
      }
  }
};

// Forward and backward of one sequence.
class SequencePass {
 public:
  // The model's weights are packed; the rotation has as many positions as the activations have tokens. A teacher, if
  // there is one, has his say in backward().
  SequencePass(const TrainModel& model, const TrainKernels& kernels, Activated& activated, const Rotation& rotation,
               Teacher* teacher = nullptr, int thread = 0)
      : m_(model),
        c_(model.config),
        k_(kernels),
        a_(activated),
        rotation_(rotation),
        teacher_(teacher),
        thread_(thread) {}

  void forward(const Window& w) {
    n_ = int(w.ids.size());
    for (int t = 0; t < n_; t++)
      std::memcpy(a_.layers[0].x.row(t), m_.embedding(w.ids[t]), padded16(c_.dim) * sizeof(float));
    for (int l = 0; l < c_.n_layers; l++) layer(l, w);
    norm(a_.x, m_.final_norm, a_.xn);
  }

  // After forward(): the logits of `count` tokens from `first` on, at most kLossRows: (count, vocab_size).
  const Rows& logits(int first, int count) {
    by_weight(a_.xn.from(first), count, m_.output, a_.logits);
    return a_.logits;
  }

  // After forward(): the sum over the tokens that have a target of -ln p(target).
  double loss(const Window& w) {
    double sum = 0;
    for (int first = 0; first < n_; first += kLossRows) sum += loss_rows(w, first, std::min(kLossRows, n_ - first), 0);
    return sum;
  }

  // After forward(): the same, or what a teacher makes of it, and the gradient of weight * loss is added to `gradient`,
  // an array like learned().
  double backward(const Window& w, float weight, float* gradient) {
    g_ = gradient;
    double sum = 0;
    for (int first = 0; first < n_; first += kLossRows) {
      const int count = std::min(kLossRows, n_ - first);
      sum += loss_rows(w, first, count, weight);
      weight_backward(m_.output, a_.xn.from(first), a_.logits, count, a_.dnorm.from(first));
    }
    for (int t = 0; t < n_; t++) std::memset(a_.dx.row(t), 0, padded16(c_.dim) * sizeof(float));
    norm_backward(a_.x, m_.final_norm);
    for (int l = c_.n_layers - 1; l >= 0; l--) layer_backward(l, w);
    for (int t = 0; t < n_ && !m_.adapted(); t++)
      k_.add(g_ + size_t(w.ids[t]) * m_.parameters[0].stride, a_.dx.row(t), c_.dim);
    return sum;
  }

 private:
  // y (count, rows of w) = or += x (count, cols of w) w^T.
  void by_weight(const Rows& x, int count, const LearnedMatrix& w, const Rows& y, bool add = false) {
    k_.gemm({count, int(padded16(w.rows)), w.cols, rows_of(x.data, x.stride), m_.forward(w), y.data, y.stride, add});
  }

  // The gradients of that product's two factors: dx = dy w, and dw += dy^T x.
  void weight_backward(const LearnedMatrix& w, const Rows& x, const Rows& dy, int count, const Rows& dx) {
    const int cols = int(padded16(w.cols));
    k_.gemm({count, cols, w.rows, rows_of(dy.data, dy.stride), m_.backward(w), dx.data, dx.stride, false});
    weight_gradient(w, x, dy, count);
  }

  // dw += dy^T x, or what of it the adapters' factors get.
  void weight_gradient(const LearnedMatrix& w, const Rows& x, const Rows& dy, int count) {
    if (!m_.adapted())
      return k_.gemm({w.rows, int(padded16(w.cols)), count, columns_of(dy.data, dy.stride), row_major(x.data, x.stride),
                      g_ + w.offset, w.stride, true});
    m_.for_adapters(w, [&](const LowRank& l, int row) {
      const Rows dy_of = {dy.data + row, dy.stride};
      factor_gradient(x, l.cols, l.a, dy_of, l.rows, l.b, count);
      factor_gradient(dy_of, l.rows, l.b, x, l.cols, l.a, count);
    });
  }

  // Of the factor `to` (m, rank) += scale * y^T (x from), `from` (depth, rank) being the other one.
  void factor_gradient(const Rows& x, int depth, size_t from, const Rows& y, int m, size_t to, int count) {
    const int rank = int(padded16(m_.adapters.rank));
    const Rows& low = a_.low;
    k_.gemm({count, rank, depth, rows_of(x.data, x.stride), row_major(m_.adapters.values.data() + from, size_t(rank)),
             low.data, low.stride, false});
    for (int t = 0; t < count; t++)
      for (int k = 0; k < rank; k++) low.row(t)[k] *= m_.adapters.scale;
    k_.gemm(
        {m, rank, count, columns_of(y.data, y.stride), row_major(low.data, low.stride), g_ + to, size_t(rank), true});
  }

  void norm(const Rows& x, size_t weight, const Rows& y) {
    for (int t = 0; t < n_; t++) k_.rmsnorm(x.row(t), m_.values.data() + weight, y.row(t), c_.dim, c_.norm_eps);
  }

  // dx += the gradient of a norm's input x, from that of its output in dnorm.
  void norm_backward(const Rows& x, size_t weight) {
    float* dweight = m_.adapted() ? a_.unused.data : g_ + weight;
    for (int t = 0; t < n_; t++)
      k_.rmsnorm_backward(a_.dnorm.row(t), x.row(t), m_.values.data() + weight, a_.dx.row(t), dweight, c_.dim,
                          c_.norm_eps);
  }

  void rope(const Rows& qkv, const std::vector<float>& sin) {
    const int half = c_.head_dim / 2;
    for (int t = 0; t < n_; t++)  // the keys lie behind the queries
      k_.rope(qkv.row(t), c_.n_heads + c_.n_kv_heads, c_.head_dim, rotation_.cos.data() + t * half,
              sin.data() + t * half);
  }

  void copy(const Rows& from, const Rows& to) {
    for (int t = 0; t < n_; t++) std::memcpy(to.row(t), from.row(t), padded16(c_.dim) * sizeof(float));
  }

  void layer(int l, const Window& w) {
    const LearnedLayer& m = m_.layers[size_t(l)];
    Activated::OfLayer& a = a_.layers[size_t(l)];
    const Rows& out = l + 1 < c_.n_layers ? a_.layers[size_t(l) + 1].x : a_.x;
    norm(a.x, m.attention_norm, a.xn);
    by_weight(a.xn, n_, m.qkv, a.qkv);
    rope(a.qkv, rotation_.sin);
    attention(a, w);
    copy(a.x, a.middle);
    by_weight(a.attention, n_, m.wo, a.middle, true);
    norm(a.middle, m.ffn_norm, a.mn);
    by_weight(a.mn, n_, m.gate_up, a.gate_up);
    for (int t = 0; t < n_; t++)
      k_.gated(a.gate_up.row(t), a.gate_up.row(t) + c_.hidden_dim, a_.hidden.row(t), c_.hidden_dim);
    copy(a.middle, out);
    by_weight(a_.hidden, n_, m.w2, out, true);
  }

  // dx: from the gradient of the layer's output to that of its input.
  void layer_backward(int l, const Window& w) {
    const LearnedLayer& m = m_.layers[size_t(l)];
    Activated::OfLayer& a = a_.layers[size_t(l)];
    const int h = c_.hidden_dim, cols = int(padded16(h));
    k_.gemm({n_, cols, c_.dim, rows_of(a_.dx.data, a_.dx.stride), m_.backward(m.w2), a_.dhidden.data, a_.dhidden.stride,
             false});
    for (int t = 0; t < n_; t++) {
      const float* gate = a.gate_up.row(t);
      float* dgate = a_.dgate_up.row(t);
      k_.gated_backward(gate, gate + h, a_.dhidden.row(t), a_.hidden.row(t), dgate, dgate + h, h);
    }
    weight_gradient(m.w2, a_.hidden, a_.dx, n_);
    weight_backward(m.gate_up, a.mn, a_.dgate_up, n_, a_.dnorm);
    norm_backward(a.middle, m.ffn_norm);
    weight_backward(m.wo, a.attention, a_.dx, n_, a_.dattention);
    attention_backward(a, w);
    rope(a_.dqkv, rotation_.minus_sin);
    weight_backward(m.qkv, a.xn, a_.dqkv, n_, a_.dnorm);
    norm_backward(a.x, m.attention_norm);
  }

  // The queries first ... first + count - 1, and the keys that at least one of them sees.
  struct Block {
    int first, count, begin, end;
    int cols() const { return round_up(end - begin, 16); }
  };

  // Calls each(block) for all queries, from the first on. Keys begin where a packed panel does.
  template <class Each> void for_blocks(const Window& w, const Each& each) {
    for (int t = 0; t < n_; t += kQueryBlock) {
      const int count = std::min(kQueryBlock, n_ - t);
      each(Block{t, count, w.first[t] / kPanelCols * kPanelCols, t + count});
    }
  }

  void pack_head(const float* x, size_t stride, float* out) {
    for (int p = 0; p * kPanelCols < n_; p++) pack_panel(rows_of(x, stride), c_.head_dim, n_, p, out);
  }

  // out (count, end - begin) = x (count, head_dim) times the packed keys or values.
  void by_keys(const Block& b, const float* x, size_t stride, const float* packed_head, const Rows& out) {
    k_.gemm({b.count, b.cols(), c_.head_dim, rows_of(x, stride), packed(packed_head, c_.head_dim).from(0, b.begin),
             out.data, out.stride, false});
  }

  // out (count, head_dim) = s (count, end - begin) times rows begin ... end - 1 of keys or values.
  void of_keys(const Block& b, const Rows& s, const float* x, size_t stride, float* out, size_t out_stride) {
    const int width = int(padded16(c_.head_dim));
    k_.gemm({b.count, width, b.end - b.begin, rows_of(s.data, s.stride), row_major(x + b.begin * stride, stride),
             a_.head.data, a_.head.stride, false});
    for (int i = 0; i < b.count; i++)
      std::memcpy(out + size_t(b.first + i) * out_stride, a_.head.row(i), size_t(c_.head_dim) * sizeof(float));
  }

  // sum (T, head_dim) += s^T (end - begin, count) times rows of queries, or of gradients of outputs.
  void to_keys(const Block& b, const Rows& s, const float* x, size_t stride, const Rows& sum) {
    const int width = int(padded16(c_.head_dim));
    k_.gemm({b.end - b.begin, width, b.count, columns_of(s.data, s.stride), row_major(x + b.first * stride, stride),
             sum.row(b.begin), sum.stride, true});
  }

  float score_scale() const { return 1.f / std::sqrt(float(c_.head_dim)); }

  void attention(Activated::OfLayer& a, const Window& w) {
    const size_t stride = a.qkv.stride;
    for (int h = 0; h < c_.n_heads; h++) {
      const int group = c_.n_heads / c_.n_kv_heads;
      const float* q = a.qkv.data + h * c_.head_dim;
      const float* k = a.qkv.data + c_.q_dim() + h / group * c_.head_dim;
      const float* v = k + c_.kv_dim();
      float *top = a.softmax.row(h), *inverse = top + a_.tokens;
      if (h % group == 0) pack_head(k, stride, a_.keys.data);
      for_blocks(w, [&](const Block& b) {
        by_keys(b, q + b.first * stride, stride, a_.keys.data, a_.scores);
        for (int i = 0, t = b.first; i < b.count; i++, t++)
          k_.softmax(a_.scores.row(i), w.first[t] - b.begin, t + 1 - b.begin, b.cols(), score_scale(), top + t,
                     inverse + t);
        of_keys(b, a_.scores, v, stride, a.attention.data + h * c_.head_dim, a.attention.stride);
      });
    }
  }

  // dqkv from dattention. The scores are computed once more: that is cheaper than to have kept them.
  void attention_backward(Activated::OfLayer& a, const Window& w) {
    const int group = c_.n_heads / c_.n_kv_heads;
    for (int h = 0; h < c_.n_heads; h++) {
      const int k_at = c_.q_dim() + h / group * c_.head_dim, v_at = k_at + c_.kv_dim();
      if (h % group == 0) {
        pack_head(a.qkv.data + k_at, a.qkv.stride, a_.keys.data);
        pack_head(a.qkv.data + v_at, a.qkv.stride, a_.values.data);
        std::memset(a_.dkeys.data, 0, size_t(n_) * a_.dkeys.stride * sizeof(float));
        std::memset(a_.dvalues.data, 0, size_t(n_) * a_.dvalues.stride * sizeof(float));
      }
      for_blocks(w, [&](const Block& b) { head_backward(a, w, b, h, a.qkv.data + k_at); });
      if (h % group != group - 1) continue;
      for (int t = 0; t < n_; t++) {
        std::memcpy(a_.dqkv.row(t) + k_at, a_.dkeys.row(t), size_t(c_.head_dim) * sizeof(float));
        std::memcpy(a_.dqkv.row(t) + v_at, a_.dvalues.row(t), size_t(c_.head_dim) * sizeof(float));
      }
    }
  }

  void head_backward(Activated::OfLayer& a, const Window& w, const Block& b, int h, const float* k) {
    const int at = h * c_.head_dim;
    const float *q = a.qkv.data + at, *top = a.softmax.row(h), *inverse = top + a_.tokens;
    const float* dout = a_.dattention.data + at;
    by_keys(b, q + b.first * a.qkv.stride, a.qkv.stride, a_.keys.data, a_.scores);
    by_keys(b, dout + b.first * a_.dattention.stride, a_.dattention.stride, a_.values.data, a_.dscores);
    for (int i = 0, t = b.first; i < b.count; i++, t++)
      k_.softmax_backward(a_.scores.row(i), a_.dscores.row(i), w.first[t] - b.begin, t + 1 - b.begin, b.cols(),
                          score_scale(), top[t], inverse[t], a.attention.row(t) + at, a_.dattention.row(t) + at,
                          c_.head_dim);
    to_keys(b, a_.scores, dout, a_.dattention.stride, a_.dvalues);
    to_keys(b, a_.dscores, q, a.qkv.stride, a_.dkeys);
    of_keys(b, a_.dscores, k, a.qkv.stride, a_.dqkv.data + at, a_.dqkv.stride);
  }

  // The losses of some rows; with a weight, logits become their gradient.
  double loss_rows(const Window& w, int first, int count, float weight) {
    logits(first, count);
    Teacher* teacher = weight > 0 && teacher_ && teacher_->share > 0 ? teacher_ : nullptr;
    if (teacher) teacher->logits(thread_, w, first, count, a_.told);
    double sum = 0;
    for (int i = 0; i < count; i++) {
      float* row = a_.logits.row(i);
      double loss = 0;
      const int target = w.targets[first + i];
      if (target >= 0 && teacher)
        k_.distill(row, a_.told.row(i), a_.soft.data, c_.vocab_size, int(padded16(c_.vocab_size)), target, weight,
                   teacher->share, teacher->temperature, &loss);
      else if (target >= 0)
        k_.cross_entropy(row, c_.vocab_size, int(padded16(c_.vocab_size)), target, weight, &loss);
      else
        std::memset(row, 0, padded16(c_.vocab_size) * sizeof(float));
      sum += loss;
    }
    return sum;
  }

  const TrainModel& m_;
  const Config& c_;
  const TrainKernels& k_;
  Activated& a_;
  const Rotation& rotation_;
  Teacher* teacher_;
  int thread_;
  int n_ = 0;
  float* g_ = nullptr;
};

}  // namespace pocket
