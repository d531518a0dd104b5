// train_blocks.hpp: the building blocks of trainable models: weights, memory for activations, products with a trained
// matrix, causal attention and the loss, forward and backward.
//
// A sequence runs forward and backward through the whole network on one thread, while its activations are in that
// core's cache. Threads share the weights. Gradients are summed in kLanes lanes, sequence i in lane i mod kLanes and in
// order, and then lane by lane: the result does not depend on the number of threads.
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

inline constexpr int kLanes = 8;        // separate sums of gradients
inline constexpr int kQueryBlock = 32;  // rows of the score matrix in memory at a time
inline constexpr int kLossRows = 64;    // rows of logits in memory at a time

// SplitMix64 (Steele, Lea and Flood 2014).
inline uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

// Floats on a 64-byte boundary, initially zero. Throws std::bad_alloc.
class Floats {
 public:
  Floats() = default;
  explicit Floats(size_t n) : size_(n), data_(new (std::align_val_t(kAlign)) float[n + 1]()) {}
  Floats(Floats&& o) noexcept : size_(std::exchange(o.size_, 0)), data_(std::exchange(o.data_, nullptr)) {}
  Floats& operator=(Floats&& o) noexcept {
    std::swap(size_, o.size_);
    std::swap(data_, o.data_);
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

// Inverted dropout (Srivastava et al. 2014): an element becomes 0 with probability `rate`; the others are multiplied by
// 1 / (1 - rate). The choice is a function of the key, the place in the network, the position and the column, so that
// the backward pass repeats it, in any order and on any thread.
struct Dropout {
  float rate = 0;    // 0: none
  uint64_t key = 0;  // of the sequence

  // The key of sequence `index` of the batch of a step.
  static uint64_t key_of(uint64_t seed, int64_t step, size_t index) {
    uint64_t state = seed ^ 0xA0761D6478BD642F;
    state = next_random(state) ^ uint64_t(step);
    state = next_random(state) ^ uint64_t(index);
    return next_random(state);
  }

  // Applies the mask to the row of position t at a place. cols: a multiple of 4. 16 random bits decide on an element.
  void apply(float* row, int cols, int place, int t) const {
    const uint32_t dropped = uint32_t(rate * 65536.f);
    const float scale = 65536.f / float(65536 - dropped);
    uint64_t state = key ^ (uint64_t(place) << 32 | uint64_t(t));
    state = next_random(state);
    for (int c = 0; c < cols; c += 4)
      for (uint64_t bits = next_random(state), i = 0; i < 4; i++, bits >>= 16)
        row[c + int(i)] = uint32_t(bits & 0xFFFF) < dropped ? 0 : row[c + int(i)] * scale;
  }
};

// ---- Weights ----

// The place of a tensor in the array of all parameters: rows of padded16(cols) floats.
struct Parameter {
  TensorSpec spec;
  size_t offset, stride;

  size_t size() const { return size_t(spec.rows) * stride; }
  bool decays() const { return spec.layout != Layout::vector; }  // no weight decay on norms and biases
};

// Places tensors one after the other.
inline std::vector<Parameter> placed(const std::vector<TensorSpec>& specs) {
  std::vector<Parameter> all;
  size_t offset = 0;
  for (const TensorSpec& spec : specs) {
    all.push_back({spec, offset, padded16(spec.cols)});
    offset += all.back().size();
  }
  return all;
}

// Size of the array of all parameters, in floats, with padding.
inline size_t floats_of(const std::vector<Parameter>& all) {
  return all.empty() ? 0 : all.back().offset + all.back().size();
}

// Number of trained parameters, without padding.
inline size_t count_parameters(const std::vector<Parameter>& all) {
  size_t n = 0;
  for (const Parameter& p : all) n += size_t(p.spec.rows) * p.spec.cols;
  return n;
}

// A matrix (rows, cols) that a layer multiplies by: one tensor, or consecutive tensors with the same input, such as wq,
// wk and wv.
struct LearnedMatrix {
  int rows = 0, cols = 0;
  size_t offset = 0, stride = 0;     // in the array of parameters
  size_t forward = 0, backward = 0;  // in the array of packed weights: for x w^T (depth cols), for dy w (depth rows)
};

// LoRA (Hu et al. 2021, arxiv.org/abs/2106.09685): a tensor W (rows, cols) is frozen, and the layer multiplies by
// W + scale * b a^T. b (rows, rank) and a (cols, rank) are trained.
struct LearnedLowRank {
  size_t weight;  // offset of W in the array of parameters
  int rows, cols;
  size_t a, b;  // offsets in the array of adapter values, in rows of padded16(rank) floats
};

// All adapters of a model.
struct Adapters {
  int rank = 0;  // 0: no adapters; the weights themselves are trained
  float scale = 1;
  std::vector<LearnedLowRank> all;    // in the order of the weights
  std::vector<Parameter> parameters;  // a and b of each
  Floats values;
};

class SequencePass;
class Teacher;

// How a SequencePass is used.
struct PassOptions {
  int tokens;        // longest sequence
  Teacher* teacher;  // contributes to the loss of backward(); null: none
  int thread;        // index of the thread that uses the pass
};

// The weights of a model, and packed copies of its matrices, which the products of a step read.
class LearnedWeights {
 public:
  explicit LearnedWeights(std::vector<Parameter> all) : parameters(std::move(all)), values(floats_of(parameters)) {}
  virtual ~LearnedWeights() = default;

  std::vector<Parameter> parameters;
  Floats values;
  Adapters adapters;  // if there are any, nothing else is trained

  // Creates the object that runs sequences through the model.
  virtual std::unique_ptr<SequencePass> new_pass(const TrainKernels& kernels, const PassOptions& options) const = 0;

  // Adds adapters; before the first step. Their values are zero.
  void adapt(Adapters added) {
    adapters = std::move(added);
    adapters.values = Floats(floats_of(adapters.parameters));
  }
  bool adapted() const { return adapters.rank > 0; }
  const std::vector<Parameter>& learned_parameters() const { return adapted() ? adapters.parameters : parameters; }
  Floats& learned() { return adapted() ? adapters.values : values; }
  const Floats& learned() const { return adapted() ? adapters.values : values; }

  // Calls each(adapter, row of the matrix where the adapted tensor begins) for the adapters of a matrix.
  template <class Each> void for_adapters(const LearnedMatrix& m, const Each& each) const {
    const auto before = [](const LearnedLowRank& l, size_t weight) { return l.weight < weight; };
    auto l = std::lower_bound(adapters.all.begin(), adapters.all.end(), m.offset, before);
    for (; l != adapters.all.end() && l->weight < m.offset + size_t(m.rows) * m.stride; ++l)
      each(*l, int((l->weight - m.offset) / m.stride));
  }

  RightFactor forward(const LearnedMatrix& m) const { return packed(packed_.data() + m.forward, m.cols); }
  RightFactor backward(const LearnedMatrix& m) const { return packed(packed_.data() + m.backward, m.rows); }

  // Call whenever `values` or adapters.values have changed. Adapters are merged into the packed weights here and cost
  // nothing else in the forward pass.
  void pack_weights(Pool& pool, const TrainKernels& kernels) {
    if (packed_.size() < packed_size_) packed_ = Floats(packed_size_);
    std::vector<Floats> factors(size_t(adapted() ? pool.threads() : 0));
    for (Floats& f : factors) f = Floats(size_t(adapters.rank) * kPanelCols);
    pool.parallel_for(int(panels_.size()), [&](int task, int thread) {
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

 protected:
  // A matrix of `rows` rows that begins with the tensor `first` and continues with the tensors after it.
  LearnedMatrix matrix(const Parameter& first, int rows) {
    LearnedMatrix m = {rows, first.spec.cols, first.offset, first.stride, packed_size_, 0};
    m.backward = m.forward + packed_size(m.cols, m.rows);
    packed_size_ = m.backward + packed_size(m.rows, m.cols);
    for (int i = 0; i < m.rows; i += kPanelCols) panels_.push_back({m, false, i / kPanelCols});
    for (int i = 0; i < m.cols; i += kPanelCols) panels_.push_back({m, true, i / kPanelCols});
    return m;
  }

 private:
  struct Panel {
    LearnedMatrix matrix;
    bool backward;
    int index;
  };

  // Adds the adapters to a panel, which is 32 rows of the matrix (forward) or 32 columns (backward): one factor times
  // the panel's part of the other, scaled, in `right` (rank, 32).
  void add_adapters(const Panel& p, const TrainKernels& kernels, float* right) {
    const int first = p.index * kPanelCols, rank = adapters.rank;
    const size_t stride = padded16(rank);
    for_adapters(p.matrix, [&](const LearnedLowRank& l, int row) {
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

  size_t packed_size_ = 0;
  std::vector<Panel> panels_;
  Floats packed_;
};

// Fills a tensor with numbers of this standard deviation, approximately normal: sums of 12 uniform numbers, minus 6.
inline void fill_normal(const Parameter& p, double deviation, uint64_t& seed, Floats& values) {
  for (int r = 0; r < p.spec.rows; r++)
    for (int k = 0; k < p.spec.cols; k++) {
      double sum = -6;
      for (int i = 0; i < 12; i++) sum += double(next_random(seed) >> 11) * 0x1p-53;
      values[p.offset + size_t(r) * p.stride + size_t(k)] = float(sum * deviation);
    }
}

// ---- A sequence and its activations ----

// A possible next token and its probability.
struct Candidate {
  int id;
  float p;
};

// The candidates at one place, best first.
struct Candidates {
  const Candidate *begin, *end;
};

// A sequence for training or validation.
struct Window {
  std::vector<int> ids;      // (T)
  std::vector<int> targets;  // (T): the next token of each; -1: not counted in the loss
  std::vector<int> first;    // (T): the first position that each attends to: the beginning of its text

  // Of text that a teacher wrote, else empty:
  std::vector<Candidates> likely = {};  // (T): what the teacher may write next, with probabilities; empty: not counted
  std::vector<int> likeliest = {};      // (T): its first choice; -1: not counted
};

// A matrix of activations (T, cols), in rows of row_stride(cols) floats, with zeros after the last column.
struct Rows {
  float* data = nullptr;
  size_t stride = 0;

  float* row(int t) const { return data + size_t(t) * stride; }
  Rows from(int t) const { return {row(t), stride}; }
};

// Places matrices one after the other in memory; without memory it only counts the floats.
class Places {
 public:
  explicit Places(float* memory) : memory_(memory) {}

  void operator()(Rows& m, int rows, int cols) {
    m = {memory_ ? memory_ + floats_ : nullptr, row_stride(cols)};
    floats_ += size_t(rows) * m.stride;
  }
  size_t floats() const { return floats_; }

 private:
  float* memory_;
  size_t floats_ = 0;
};

// Cosines and sines of the rotary angles, (positions, head_dim / 2), the same as the engine's. The inverse rotation is
// the rotation by the negative angle.
struct Rotation {
  std::vector<float> cos, sin, minus_sin;

  Rotation(const Config& c, int positions) {
    for (int t = 0; t < positions; t++)
      for (int i = 0; i < c.head_dim / 2; i++) {
        double s, co;
        exact::sincos(t * rope_frequency(c, i), s, co);
        cos.push_back(float(co));
        sin.push_back(float(s));
        minus_sin.push_back(-float(s));
      }
  }

  // Rotates the queries, and the keys after them, of n tokens. sine: `sin`, or `minus_sin` for the inverse.
  void apply(const TrainKernels& k, const Config& c, const Rows& qkv, const std::vector<float>& sine, int n) const {
    const int half = c.head_dim / 2;
    for (int t = 0; t < n; t++)
      k.rope(qkv.row(t), c.n_heads + c.n_kv_heads, c.head_dim, cos.data() + t * half, sine.data() + t * half);
  }
};

// Causal attention of grouped heads over one sequence, block by block of queries.
class Attention {
 public:
  // A row of the input (T, q_dim + 2 kv_dim) holds queries, keys and values, in this order.
  struct Shape {
    int n_heads, n_kv_heads, head_dim;
    int q_dim() const { return n_heads * head_dim; }
    int kv_dim() const { return n_kv_heads * head_dim; }
    int width() const { return q_dim() + 2 * kv_dim(); }
  };

  // The part of a layer's forward pass that the backward pass needs.
  struct Saved {
    Rows out;      // (T, q_dim): output
    Rows softmax;  // (n_heads, 2 T): SoftmaxSums of each token

    SoftmaxSums* sums(int head) const { return reinterpret_cast<SoftmaxSums*>(softmax.row(head)); }
  };

  // One layer's input to attention.
  struct Input {
    const TrainKernels& k;
    const Rows& qkv;                // (n, width)
    const std::vector<int>& first;  // (n): the first position that each token attends to; never decreases
    int n;                          // tokens
  };

  explicit Attention(const Shape& shape) : c_(shape) {}

  // Scratch for sequences of at most `tokens` tokens.
  void lay_out(Places& place, int tokens) {
    tokens_ = tokens;
    place(scores_, kQueryBlock, tokens);
    place(dscores_, kQueryBlock, tokens);
    place(head_, kQueryBlock, c_.head_dim);
    for (Rows* m : {&keys_, &values_}) place(*m, 1, int(packed_size(c_.head_dim, tokens)));
    for (Rows* m : {&dkeys_, &dvalues_}) place(*m, tokens, c_.head_dim);
  }
  void lay_out_saved(Places& place, Saved& s) const {
    place(s.out, tokens_, c_.q_dim());
    place(s.softmax, c_.n_heads, 2 * tokens_);
  }

  void forward(const Input& in, const Saved& s) {
    begin(in);
    const Rows& qkv = in.qkv;
    const int group = c_.n_heads / c_.n_kv_heads;
    for (int h = 0; h < c_.n_heads; h++) {
      const Rows q = columns(qkv, h * c_.head_dim);
      const Rows key = columns(qkv, c_.q_dim() + h / group * c_.head_dim);
      const Rows value = columns(key, c_.kv_dim());
      SoftmaxSums* sums = s.sums(h);
      if (h % group == 0) pack_head(key, keys_.data);
      for_blocks([&](const Block& b) {
        by_keys(b, q, keys_.data, scores_);
        for (int i = 0; i < b.count; i++) k_->softmax(score_row(b, i), sums + b.first + i);
        of_keys(b, scores_, value, columns(s.out, h * c_.head_dim));
      });
    }
  }

  // dqkv from dout. The scores are recomputed, which is cheaper than storing them.
  void backward(const Input& in, const Saved& s, const Rows& dout, const Rows& dqkv) {
    begin(in);
    const Rows& qkv = in.qkv;
    const int group = c_.n_heads / c_.n_kv_heads;
    for (int h = 0; h < c_.n_heads; h++) {
      const int k_at = c_.q_dim() + h / group * c_.head_dim, v_at = k_at + c_.kv_dim();
      if (h % group == 0) {
        pack_head(columns(qkv, k_at), keys_.data);
        pack_head(columns(qkv, v_at), values_.data);
        std::memset(dkeys_.data, 0, size_t(n_) * dkeys_.stride * sizeof(float));
        std::memset(dvalues_.data, 0, size_t(n_) * dvalues_.stride * sizeof(float));
      }
      for_blocks([&](const Block& b) { head_backward(b, h, qkv, s, dout, dqkv); });
      if (h % group != group - 1) continue;
      for (int t = 0; t < n_; t++) {
        std::memcpy(dqkv.row(t) + k_at, dkeys_.row(t), size_t(c_.head_dim) * sizeof(float));
        std::memcpy(dqkv.row(t) + v_at, dvalues_.row(t), size_t(c_.head_dim) * sizeof(float));
      }
    }
  }

 private:
  // The queries first ... first + count - 1, and the keys begin ... end - 1 that at least one of them attends to.
  struct Block {
    int first, count, begin, end;
    int cols() const { return round_up(end - begin, 16); }
  };

  // The columns of a matrix from `col` on.
  static Rows columns(const Rows& m, int col) { return {m.data + col, m.stride}; }

  void begin(const Input& in) {
    k_ = &in.k;
    first_ = &in.first;
    n_ = in.n;
  }

  float score_scale() const { return 1.f / std::sqrt(float(c_.head_dim)); }

  // The scores of query `i` of a block.
  ScoreRow score_row(const Block& b, int i) const {
    const int t = b.first + i;
    return {scores_.row(i), (*first_)[size_t(t)] - b.begin, t + 1 - b.begin, b.cols(), score_scale()};
  }

  // Calls each(block) for all queries, in order. The keys of a block begin at the beginning of a packed panel.
  template <class Each> void for_blocks(const Each& each) {
    for (int t = 0; t < n_; t += kQueryBlock) {
      const int count = std::min(kQueryBlock, n_ - t);
      each(Block{t, count, (*first_)[size_t(t)] / kPanelCols * kPanelCols, t + count});
    }
  }

  // Packs the keys or values (T, head_dim) of a head.
  void pack_head(const Rows& x, float* out) {
    for (int p = 0; p * kPanelCols < n_; p++) pack_panel(rows_of(x.data, x.stride), c_.head_dim, n_, p, out);
  }

  // out (count, end - begin) = the block's rows of x (T, head_dim) times the packed keys or values.
  void by_keys(const Block& b, const Rows& x, const float* packed_head, const Rows& out) {
    k_->gemm({b.count, b.cols(), c_.head_dim, rows_of(x.row(b.first), x.stride),
              packed(packed_head, c_.head_dim).from(0, b.begin), out.data, out.stride, false});
  }

  // The block's rows of out (T, head_dim) = s (count, end - begin) times rows begin ... end - 1 of keys or values.
  void of_keys(const Block& b, const Rows& s, const Rows& x, const Rows& out) {
    const int width = int(padded16(c_.head_dim));
    k_->gemm({b.count, width, b.end - b.begin, rows_of(s.data, s.stride), row_major(x.row(b.begin), x.stride),
              head_.data, head_.stride, false});
    for (int i = 0; i < b.count; i++)
      std::memcpy(out.row(b.first + i), head_.row(i), size_t(c_.head_dim) * sizeof(float));
  }

  // sum (T, head_dim) += s^T (end - begin, count) times the block's rows of queries, or of gradients of outputs.
  void to_keys(const Block& b, const Rows& s, const Rows& x, const Rows& sum) {
    const int width = int(padded16(c_.head_dim));
    k_->gemm({b.end - b.begin, width, b.count, columns_of(s.data, s.stride), row_major(x.row(b.first), x.stride),
              sum.row(b.begin), sum.stride, true});
  }

  void head_backward(const Block& b, int h, const Rows& qkv, const Saved& s, const Rows& all_dout, const Rows& dqkv) {
    const int at = h * c_.head_dim, group = c_.n_heads / c_.n_kv_heads;
    const Rows q = columns(qkv, at), key = columns(qkv, c_.q_dim() + h / group * c_.head_dim);
    const Rows out = columns(s.out, at), dout = columns(all_dout, at);
    by_keys(b, q, keys_.data, scores_);
    by_keys(b, dout, values_.data, dscores_);
    for (int i = 0; i < b.count; i++) {
      const int t = b.first + i;
      k_->softmax_backward(score_row(b, i), {s.sums(h)[t], out.row(t), dout.row(t), c_.head_dim, dscores_.row(i)});
    }
    to_keys(b, scores_, dout, dvalues_);
    to_keys(b, dscores_, q, dkeys_);
    of_keys(b, dscores_, key, columns(dqkv, at));
  }

  Shape c_;
  int tokens_ = 0;
  Rows scores_, dscores_;  // (kQueryBlock, T)
  Rows head_;              // (kQueryBlock, head_dim)
  Rows keys_, values_;     // (head_dim, T) of one head, packed
  Rows dkeys_, dvalues_;   // (T, head_dim) of one head
  const TrainKernels* k_ = nullptr;
  const std::vector<int>* first_ = nullptr;
  int n_ = 0;
};

// A model that another one learns from (distill.hpp).
class Teacher {
 public:
  virtual ~Teacher() = default;
  // Logits (count, vocab_size) of a window's tokens first ... first + count - 1. The calls for one window come in order
  // and from one thread.
  virtual void logits(int thread, const Window& w, int first, int count, const Rows& out) = 0;

  float share = 0, temperature = 1;  // see TeacherRow
};

// Runs one sequence forward and backward; owns the memory for it. One per thread.
class SequencePass {
 public:
  virtual ~SequencePass() = default;

  // Bytes of the memory that every kind of pass has. rank: of the adapters, 0 if there are none.
  static size_t bytes(int vocab_size, int widest, int tokens, int rank, bool has_teacher) {
    return Scratch().lay_out({vocab_size, widest, tokens, rank, has_teacher}, nullptr) * sizeof(float);
  }

  // Requires packed weights.
  virtual void forward(const Window& w) = 0;
  // After forward(): the logits of `count` tokens from `first` on, at most kLossRows: (count, vocab_size).
  virtual const Rows& logits(int first, int count) = 0;
  // After forward(): returns loss(), or the loss with a teacher, and adds the gradient of weight * loss to `gradient`,
  // an array like learned().
  virtual double backward(const Window& w, float weight, float* gradient) = 0;

  // After forward(): the sum of -ln p(target) over the tokens that have a target.
  double loss(const Window& w) {
    double sum = 0;
    const int n = int(w.ids.size());
    for (int first = 0; first < n; first += kLossRows) {
      const int count = std::min(kLossRows, n - first);
      const auto begin = w.targets.begin() + first;
      if (std::any_of(begin, begin + count, [](int target) { return target >= 0; }))
        sum += loss_rows(w, first, count, 0);
    }
    return sum;
  }

  float smoothing = 0;  // of backward(); see LogitRow
  Dropout dropout;      // of forward() and the backward() after it

  // After forward(): the number of tokens whose most likely next token is w.likeliest.
  size_t agreements(const Window& w) {
    size_t agreed = 0;
    const int n = int(w.ids.size());
    for (int first = 0; first < n; first += kLossRows) {
      const int count = std::min(kLossRows, n - first);
      const Rows& rows = logits(first, count);
      for (int i = 0; i < count; i++)
        agreed +=
            std::max_element(rows.row(i), rows.row(i) + vocab_size_) - rows.row(i) == w.likeliest[size_t(first + i)];
    }
    return agreed;
  }

 protected:
  // widest: columns of the longest trained vector.
  SequencePass(const LearnedWeights& weights, const TrainKernels& kernels, int vocab_size, int widest,
               const PassOptions& options)
      : k_(kernels), weights_(weights), options_(options), vocab_size_(vocab_size) {
    const auto lay_out = [&](float* memory) {
      return scratch_.lay_out({vocab_size, widest, options.tokens, weights.adapters.rank, options.teacher != nullptr},
                              memory);
    };
    memory_ = Floats(lay_out(nullptr));
    lay_out(memory_.data());
  }

  // y (count, rows of w) = or += x (count, cols of w) w^T.
  void by_weight(const Rows& x, int count, const LearnedMatrix& w, const Rows& y, bool add = false) {
    k_.gemm(
        {count, int(padded16(w.rows)), w.cols, rows_of(x.data, x.stride), weights_.forward(w), y.data, y.stride, add});
  }

  // The gradients of the two factors of by_weight(): dx = dy w ...
  void input_backward(const LearnedMatrix& w, const Rows& dy, int count, const Rows& dx) {
    k_.gemm({count, int(padded16(w.cols)), w.rows, rows_of(dy.data, dy.stride), weights_.backward(w), dx.data,
             dx.stride, false});
  }
  // ... and dw += dy^T x, or the gradients of the adapters' factors.
  void matrix_backward(const LearnedMatrix& w, const Rows& x, const Rows& dy, int count) {
    if (!weights_.adapted())
      return k_.gemm({w.rows, int(padded16(w.cols)), count, columns_of(dy.data, dy.stride), row_major(x.data, x.stride),
                      g_ + w.offset, w.stride, true});
    weights_.for_adapters(w, [&](const LearnedLowRank& l, int row) {
      const Rows dy_of = {dy.data + row, dy.stride};
      factor_backward(x, l.cols, l.a, dy_of, l.rows, l.b, count);
      factor_backward(dy_of, l.rows, l.b, x, l.cols, l.a, count);
    });
  }
  void weight_backward(const LearnedMatrix& w, const Rows& x, const Rows& dy, int count, const Rows& dx) {
    input_backward(w, dy, count, dx);
    matrix_backward(w, x, dy, count);
  }

  void copy(const Rows& from, const Rows& to, int count, int cols) {
    for (int t = 0; t < count; t++) std::memcpy(to.row(t), from.row(t), padded16(cols) * sizeof(float));
  }
  void clear(const Rows& rows, int count, int cols) {
    for (int t = 0; t < count; t++) std::memset(rows.row(t), 0, padded16(cols) * sizeof(float));
  }

  // The tokens of a window that have a target, and a window of only these. With a teacher, who needs them, all tokens.
  std::vector<int> counted_tokens(const Window& w, Window& counted) const {
    std::vector<int> tokens;
    for (int t = 0; t < int(w.ids.size()); t++) {
      if (w.targets[size_t(t)] < 0 && !options_.teacher) continue;
      tokens.push_back(t);
      counted.targets.push_back(w.targets[size_t(t)]);
    }
    return tokens;
  }

  // Where the gradient of a vector is summed. With adapters it is not used.
  float* vector_gradient(size_t offset) { return weights_.adapted() ? scratch_.unused.data : g_ + offset; }

  // The sum of the losses of some tokens. Their logits are replaced by the gradient of weight * loss.
  double loss_rows(const Window& w, int first, int count, float weight) {
    const Rows& rows = logits(first, count);
    Teacher* teacher = weight > 0 && options_.teacher && options_.teacher->share > 0 ? options_.teacher : nullptr;
    if (teacher) teacher->logits(options_.thread, w, first, count, scratch_.teacher_logits);
    double sum = 0;
    for (int i = 0; i < count; i++) {
      const LogitRow row = {rows.row(i),
                            vocab_size_,
                            int(padded16(vocab_size_)),
                            w.targets[size_t(first + i)],
                            weight,
                            weight > 0 ? smoothing : 0};
      double loss = 0;
      if (row.target >= 0 && teacher)
        k_.distill(row, {scratch_.teacher_logits.row(i), scratch_.soft.data, teacher->share, teacher->temperature},
                   &loss);
      else if (row.target >= 0)
        k_.cross_entropy(row, &loss);
      else
        std::memset(row.logits, 0, padded16(vocab_size_) * sizeof(float));
      sum += loss;
    }
    return sum;
  }

  const TrainKernels& k_;
  float* g_ = nullptr;  // the gradient

 private:
  struct ScratchSizes {
    int vocab_size, widest, tokens, rank;
    bool has_teacher;
  };
  struct Scratch {
    Rows low, unused;           // with adapters: (T, rank), and (widest) for the unused gradient of a vector
    Rows teacher_logits, soft;  // with a teacher: (kLossRows, vocab_size), and two rows for distill_body

    size_t lay_out(const ScratchSizes& n, float* memory) {
      Places place(memory);
      if (n.has_teacher) {
        place(teacher_logits, kLossRows, n.vocab_size);
        place(soft, 2, n.vocab_size);
      }
      if (n.rank > 0) {
        place(low, n.tokens, n.rank);
        place(unused, 1, n.widest);
      }
      return place.floats();
    }
  };

  // The gradient of one factor of an adapter: `to` (m, rank) += scale * y^T (x from); `from` (depth, rank) is the other
  // factor.
  void factor_backward(const Rows& x, int depth, size_t from, const Rows& y, int m, size_t to, int count) {
    const Adapters& adapters = weights_.adapters;
    const int rank = int(padded16(adapters.rank));
    const Rows& low = scratch_.low;
    k_.gemm({count, rank, depth, rows_of(x.data, x.stride), row_major(adapters.values.data() + from, size_t(rank)),
             low.data, low.stride, false});
    for (int t = 0; t < count; t++)
      for (int k = 0; k < rank; k++) low.row(t)[k] *= adapters.scale;
    k_.gemm(
        {m, rank, count, columns_of(y.data, y.stride), row_major(low.data, low.stride), g_ + to, size_t(rank), true});
  }

  const LearnedWeights& weights_;
  const PassOptions options_;
  int vocab_size_;
  Scratch scratch_;
  Floats memory_;
};

}  // namespace pocket
