// collect.hpp: gathers what happens inside a model while it processes a text: through Session::observe, and from the
// sampler. Numbers are kept by position, so that a position that is processed again (a rejected guess, /undo in a chat)
// replaces the earlier one.
#pragma once

#include <functional>
#include <map>

#include "../../export/program.hpp"
#include "choice.hpp"

namespace pocket::explain {

/// Tokens that are explained; later ones are not.
inline constexpr int kMostTokens = 512;

/// Seconds by part of the forward pass, measured while it was observed; the time of observing is subtracted.
struct Times {
  enum Part { qkv, attention, wo, mlp, logits, sampling, count };
  double seconds[count] = {};
  size_t tokens = 0, passes = 0;

  void add(const Times& t) {
    for (int i = 0; i < count; i++) seconds[i] += t.seconds[i];
    tokens += t.tokens;
    passes += t.passes;
  }
};

class Collector {
 public:
  using Vector = std::vector<float>;

  explicit Collector(const Model& model, double (*clock)() = seconds) : c_(model.config), clock_(clock) {}

  /// For Session::observe.
  void observe(const Observation& o) {
    if (o.kind != kind_ || o.layer != layer_) take_time(o, clock_());
    if (o.kind == Observation::layer_output && o.layer == 0) pass_.tokens++;
    if (o.position < kMostTokens) keep(o);
    if (o.kind != Observation::attention || o.head + 1 == c_.n_heads) last_ = clock_();
  }

  /// To be called around each choice of the sampler.
  void begin_choice() {
    const double now = clock_();
    if (pass_.tokens > 0 && in_pass_) pass_.seconds[Times::logits] += now - last_;
    last_ = now;
  }
  /// position: of the token whose logits were given.
  void end_choice(int position, const std::function<Choice()>& choice) {
    pass_.seconds[Times::sampling] += clock_() - last_;
    end_pass();
    if (position >= 0 && position < kMostTokens) choices_[position] = choice();
    last_ = clock_();
  }
  /// The last forward pass has ended.
  void end() { end_pass(); }

  /// Number of positions that were observed through all layers, from the first on.
  size_t observed() const {
    size_t n = 0;
    while (n < rows_.size() && rows_[n].complete) n++;
    return n;
  }
  /// Attention of token i to token j.
  float weight(int layer, int head, size_t i, size_t j) const { return float(codes(layer, head, i)[j]) / kMostCode; }
  /// The attention of token i, (i + 1): kMostCode stands for 1.
  static constexpr int kMostCode = 65535;
  const uint16_t* codes(int layer, int head, size_t i) const {
    return &rows_[i].weights[(size_t(layer) * size_t(c_.n_heads) + size_t(head)) * (i + 1)];
  }
  /// The residual stream after a layer: (dim).
  const float* output(int layer, size_t i) const { return &rows_[i].outputs[size_t(layer) * size_t(c_.dim)]; }
  /// The residual stream between attention and MLP of layer 0: (dim).
  const float* first_middle(size_t i) const { return rows_[i].middle.data(); }
  /// Lengths of what attention and MLP add to the residual stream. Attention of layer 0: attention_update(i, embedding).
  float attention_update(int layer, size_t i) const { return rows_[i].attention_update[size_t(layer)]; }
  float mlp_update(int layer, size_t i) const { return rows_[i].mlp_update[size_t(layer)]; }

  /// The choice after position i; null: there was none.
  const Choice* choice(size_t i) const {
    const auto found = choices_.find(int(i));
    return found == choices_.end() ? nullptr : &found->second;
  }
  /// Passes of one token, and of several.
  const Times& single() const { return single_; }
  const Times& several() const { return several_; }

  static float distance(const float* a, const float* b, int n) {
    return root_of_squares(n, [&](int i) { return double(a[i] - b[i]); });
  }
  static float length(const float* a, int n) {
    return root_of_squares(n, [&](int i) { return double(a[i]); });
  }

 private:
  // The root of the sum of x(i)^2: four sums side by side, since each addition waits for the one before it.
  template <class X> static float root_of_squares(int n, const X& x) {
    double sum[4] = {};
    int i = 0;
    for (; i + 4 <= n; i += 4)
      for (int k = 0; k < 4; k++) sum[k] += x(i + k) * x(i + k);
    for (; i < n; i++) sum[0] += x(i) * x(i);
    return float(std::sqrt(sum[0] + sum[1] + sum[2] + sum[3]));
  }

  struct Row {  // a position
    bool complete = false;
    std::vector<uint16_t> weights;        // (n_layers, n_heads, position + 1): codes
    Vector outputs;                       // (n_layers, dim)
    Vector middle;                        // (dim), of layer 0
    Vector attention_update, mlp_update;  // (n_layers)
  };

  void keep(const Observation& o) {
    const size_t p = size_t(o.position), layer = size_t(o.layer), dim = size_t(c_.dim);
    if (p >= rows_.size()) rows_.resize(p + 1);
    Row& row = rows_[p];
    if (row.weights.empty()) {
      row.weights.resize(size_t(c_.n_layers) * size_t(c_.n_heads) * (p + 1));
      row.outputs.resize(size_t(c_.n_layers) * dim);
      row.attention_update.resize(size_t(c_.n_layers));
      row.mlp_update.resize(size_t(c_.n_layers));
    }
    if (o.kind == Observation::attention) {
      uint16_t* const out = &row.weights[(layer * size_t(c_.n_heads) + size_t(o.head)) * (p + 1)];
      const auto code = [](float w) { return uint16_t(int(w * kMostCode + 0.5f)); };
      size_t j = 0;
      for (; j + 16 <= p + 1; j += 16)  // so many at a time are SIMD
        for (size_t k = 0; k < 16; k++) out[j + k] = code(o.data[j + k]);
      for (; j <= p; j++) out[j] = code(o.data[j]);
      if (o.layer == 0 && o.head == 0) {
        row.complete = false;
        choices_.erase(o.position);
      }
    } else if (o.kind == Observation::attention_residual) {
      if (o.layer > 0) row.attention_update[layer] = distance(o.data, output(o.layer - 1, p), c_.dim);
      if (o.layer == 0) row.middle.assign(o.data, o.data + dim);
      middles_[o.position].assign(o.data, o.data + dim);
    } else if (o.kind == Observation::layer_output) {
      row.mlp_update[layer] = distance(o.data, middles_[o.position].data(), c_.dim);
      std::copy_n(o.data, dim, row.outputs.begin() + long(layer * dim));
      if (o.layer + 1 == c_.n_layers) {
        row.complete = true;
        middles_.erase(o.position);
      }
    }
  }

  // The time between two observations of different kinds is that of a part of the forward pass, but before the attention
  // weights it is the time of computing them for the observer.
  void take_time(const Observation& o, double now) {
    const double gap = now - last_;
    kind_ = o.kind;
    layer_ = o.layer;
    switch (o.kind) {
      case Observation::queries:
        if (o.layer == 0) {
          if (in_pass_ && pass_.tokens > 0) end_pass();  // no choice was made after the pass before it
          in_pass_ = true;
          pass_.passes = 1;
        }
        // The gap before layer 0 includes the embedding and the caller's time: layer 0 counts as the next one does.
        if (o.layer > 0 || c_.n_layers == 1) pass_.seconds[Times::qkv] += gap * (o.layer == 1 ? 2 : 1);
        break;
      case Observation::attention:
        break;
      case Observation::head_outputs:
        pass_.seconds[Times::attention] += gap;
        break;
      case Observation::attention_residual:
        pass_.seconds[Times::wo] += gap;
        break;
      case Observation::layer_output:
        pass_.seconds[Times::mlp] += gap;
        break;
    }
  }
  void end_pass() {
    if (pass_.tokens > 0) (pass_.tokens == 1 ? single_ : several_).add(pass_);
    pass_ = {};
    in_pass_ = false;
    layer_ = -1;
  }

  const Config& c_;
  double (*clock_)();
  std::vector<Row> rows_;
  std::map<int, Vector> middles_;  // by position: the residual stream between attention and MLP of the layer that runs
  std::map<int, Choice> choices_;  // by position
  Times pass_, single_, several_;
  double last_ = 0;
  bool in_pass_ = false;
  Observation::Kind kind_ = Observation::layer_output;
  int layer_ = -1;
};

}  // namespace pocket::explain
