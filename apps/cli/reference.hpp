// reference.hpp: --kernel reference: the plain Llama of run.cpp, one token at a time, in float, on one thread.
#pragma once

#include "language_model.hpp"

namespace pocket::cli {

// A session of the plain Llama.
class ReferenceSession : public TextSession {
 public:
  ReferenceSession(const Model& model, const SessionOptions& options)
      : model_(model),
        context_(options.context > 0 ? options.context : model.config.max_seq_len),
        llama_(model) {}

  const float* forward(const int* ids, size_t n) override {
    const float* last = nullptr;
    const bool good = forward(ids, n, [&](size_t, const float* logits) {
      last = logits;
      return true;
    });
    return good ? last : nullptr;
  }

  bool forward(const int* ids, size_t n, const EachLogits& each) override {
    const int start = position_;
    if (n == 0) return fail(start, "forward: no tokens");
    if (n > size_t(context_ - position_))
      return fail(start, "context: no room for " + std::to_string(n) + " more tokens");
    for (size_t i = 0; i < n; i++) {
      if (ids[i] < 0 || ids[i] >= vocab_size()) return fail(start, "token " + std::to_string(i) + ": invalid id");
      if (cancelled_.exchange(false)) return fail(start, "cancelled");
      const float* logits = llama_.forward(ids[i], position_++);
      if (!logits) return fail(start, "out of memory");
      if (!each(i, logits)) return true;
    }
    return true;
  }

  int position() const override { return position_; }
  int context() const override { return context_; }
  int vocab_size() const override { return model_.config.vocab_size; }
  void rewind(int position) override { position_ = std::max(0, std::min(position, position_)); }
  void cancel(bool stop = true) override { cancelled_.store(stop); }
  int threads() const override { return 1; }
  const char* kernel() const override { return "reference"; }
  const std::string& error() const override { return error_; }

 private:
  bool fail(int start, const std::string& error) {
    position_ = start;
    error_ = error;
    return false;
  }

  const Model& model_;
  int context_;  // positions
  int position_ = 0;
  ReferenceLlama llama_;
  std::atomic<bool> cancelled_{false};
  std::string error_;
};

}  // namespace pocket::cli
