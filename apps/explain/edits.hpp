// edits.hpp: interventions: a model that goes on with changed numbers, to find out what a part of it does.
//
//     Edits edits(model);
//     edits.scale_head(5, 2, 0);              // what does the model do without this head?
//     edits.patch(3, 7, vector);              // the residual stream of token 7 after layer 3, from another run
//     edits.steer(3, direction, 4);           // 4 times a direction, added to every token after layer 3
//     session.observe(edits);                 // null again: session.observe(nullptr)
//
// All indices start at 0. Without an observer a session computes the same bits at the same speed.
#pragma once

#include "../../export/engine.hpp"

namespace pocket::explain {

class Edits {
 public:
  using Vector = std::vector<float>;
  static constexpr int kAll = -1;  // in place of a layer, head or position

  explicit Edits(const Model& model) : c_(model.config) {}

  /// Multiplies the output of a head by a factor, before the matrix wo; 0 removes the head.
  void scale_head(int layer, int head, float factor) { heads_.push_back({layer, head, factor}); }
  /// Replaces the residual stream of a position after a layer by a vector (dim).
  void patch(int layer, int position, Vector x) { vectors_.push_back({layer, position, 0, 1, true, std::move(x)}); }
  /// Adds `strength` times a vector (dim) to the residual stream after a layer, from position `from` on.
  void steer(int layer, Vector direction, float strength, int from = 0) {
    vectors_.push_back({layer, kAll, from, strength, false, std::move(direction)});
  }
  void clear() {
    heads_.clear();
    vectors_.clear();
  }

  /// For Session::observe, which copies it, and ReferenceLlama::observer.
  void operator()(const Observation& o) const {
    if (o.kind == Observation::head_outputs)
      for (const Head& h : heads_)
        for (int i = 0; i < o.size; i++)
          if (matches(h.layer, o.layer) && matches(h.head, i / c_.head_dim)) o.data[i] *= h.factor;
    if (o.kind != Observation::layer_output) return;
    for (const Change& v : vectors_) {
      if (!matches(v.layer, o.layer) || !matches(v.position, o.position) || o.position < v.from) continue;
      for (int i = 0; i < std::min(o.size, int(v.x.size())); i++)
        o.data[i] = v.replaces ? v.x[size_t(i)] : o.data[i] + v.strength * v.x[size_t(i)];
    }
  }

 private:
  struct Head {
    int layer, head;
    float factor;
  };
  struct Change {
    int layer, position, from;
    float strength;
    bool replaces;
    Vector x;
  };
  static bool matches(int wanted, int found) { return wanted == kAll || wanted == found; }

  Config c_;
  std::vector<Head> heads_;
  std::vector<Change> vectors_;
};

}  // namespace pocket::explain
