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
    const double now = clock_();
    take_time(o, now);
    if (o.position < kMostTokens) keep(o);
    last_ = clock_();
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
  float weight(int layer, int head, size_t i, size_t j) const {
    const float root = float(codes(layer, head, i)[j]) / kMostCode;
    return root * root;
  }
  /// The attention of token i as codes, (i + 1): see to_code. kMostCode stands for 1.
  static constexpr int kMostCode = 65535;
  const uint16_t* codes(int layer, int head, size_t i) const {
    return &rows_[i].weights[(size_t(layer) * size_t(c_.n_heads) + size_t(head)) * (i + 1)];
  }
  /// The mean attention of the heads of a layer: (i + 1).
  const float* mean(int layer, size_t i) const { return &rows_[i].mean[size_t(layer) * (i + 1)]; }
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
    double sum = 0;
    for (int i = 0; i < n; i++) sum += double(a[i] - b[i]) * double(a[i] - b[i]);
    return float(std::sqrt(sum));
  }
  static float length(const float* a, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += double(a[i]) * double(a[i]);
    return float(std::sqrt(sum));
  }

 private:
  struct Row {  // a position
    bool complete = false;
    std::vector<uint16_t> weights;        // (n_layers, n_heads, position + 1): codes
    Vector mean;                          // (n_layers, position + 1)
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
      row.mean.resize(size_t(c_.n_layers) * (p + 1));
      row.outputs.resize(size_t(c_.n_layers) * dim);
      row.attention_update.resize(size_t(c_.n_layers));
      row.mlp_update.resize(size_t(c_.n_layers));
    }
    if (o.kind == Observation::attention) {
      uint16_t* const out = &row.weights[(layer * size_t(c_.n_heads) + size_t(o.head)) * (p + 1)];
      float* const mean = &row.mean[layer * (p + 1)];
      const float share = 1.f / float(c_.n_heads);
      if (o.head == 0) std::fill_n(mean, p + 1, 0.f);
      for (size_t j = 0; j <= p; j++) {
        out[j] = to_code(o.data[j], kMostCode);
        mean[j] += o.data[j] * share;
      }
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

  // The time between two observations of different kinds is that of a part of the forward pass. The first head's weights
  // are computed for the observer as well, which takes about as long as those of the next head.
  void take_time(const Observation& o, double now) {
    const double gap = now - last_;
    const bool begins = o.kind != kind_ || o.layer != layer_;
    if (o.kind == Observation::attention && begins) {
      if (o.layer == 0) {
        if (in_pass_ && pass_.tokens > 0) end_pass();  // no choice was made after the pass before it
        in_pass_ = true;
        pass_.passes = 1;
      }
      waiting_ = gap;
      heads_seen_ = 1;
    } else if (o.kind == Observation::attention && ++heads_seen_ == 2) {
      waiting_ -= gap;
    }
    if (o.kind == Observation::head_outputs && begins) {
      // The gap before layer 0 includes the embedding and the caller's time: layer 0 counts as the next one does.
      if (o.layer > 0 || c_.n_layers == 1)
        pass_.seconds[Times::qkv] += std::max(0.0, waiting_) * (o.layer == 1 ? 2 : 1);
      pass_.seconds[Times::attention] += gap;
    }
    if (o.kind == Observation::attention_residual && begins) pass_.seconds[Times::wo] += gap;
    if (o.kind == Observation::layer_output && begins) pass_.seconds[Times::mlp] += gap;
    if (o.kind == Observation::layer_output && o.layer == 0) pass_.tokens++;
    kind_ = o.kind;
    layer_ = o.layer;
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
  double last_ = 0, waiting_ = 0;
  size_t heads_seen_ = 0;
  bool in_pass_ = false;
  Observation::Kind kind_ = Observation::layer_output;
  int layer_ = -1;
};

}  // namespace pocket::explain
