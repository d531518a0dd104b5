// conversations.hpp: several conversations that share the passes of a model.
#pragma once

#include <memory>
#include <vector>

#include "../../export/memory.hpp"
#include "../../export/program.hpp"

namespace pocket::bench {

/// Sessions that share a workspace, with the same tokens, and measure the time of their work. Throws Failure.
class Conversations {
 public:
  /// n: number of sessions. depth: tokens that each of them starts with.
  Conversations(const Model& model, const SessionOptions& options, int n, int depth)
      : workspace_(model, options), depth_(depth) {
    if (!workspace_.error.empty()) throw Failure{1, workspace_.error};
    for (int i = 0; i < std::max(depth, n); i++) ids_.push_back((i * 7919 + 1) % model.vocab_size());
    for (int i = 0; i < n; i++) {
      sessions_.push_back(std::make_unique<Session>(workspace_, options));
      Session& s = *sessions_.back();
      if (!s.error.empty()) throw Failure{1, s.error};
      const bool good =
          depth == 0 || (i == 0 ? s.forward(ids_.data(), size_t(depth)) != nullptr : s.fork(*sessions_[0], depth));
      if (!good) throw Failure{1, s.error};
    }
  }

  /// Seconds of some passes with a token of each of the first n sessions, which are rewound afterwards.
  double generate(int n, int passes) {
    std::vector<Step> steps;
    for (int i = 0; i < n; i++) steps.push_back({sessions_[size_t(i)].get(), &ids_[size_t(i)], 1});
    const double start = seconds();
    for (int pass = 0; pass < passes; pass++) {
      stop_if_interrupted();
      if (!workspace_.forward(steps.data(), steps.size())) throw Failure{1, sessions_[0]->error};
    }
    const double taken = seconds() - start;
    for (int i = 0; i < n; i++) sessions_[size_t(i)]->rewind(depth_);
    return taken;
  }
  /// Seconds of a prompt of n tokens.
  double prompt(int n) {
    stop_if_interrupted();
    const double start = seconds();
    if (!sessions_[0]->forward(ids_.data(), size_t(n))) throw Failure{1, sessions_[0]->error};
    const double taken = seconds() - start;
    sessions_[0]->rewind(depth_);
    return taken;
  }
  int size() const { return int(sessions_.size()); }

 private:
  Workspace workspace_;
  std::vector<std::unique_ptr<Session>> sessions_;
  std::vector<int> ids_;
  const int depth_;
};

}  // namespace pocket::bench
