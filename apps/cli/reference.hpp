// reference.hpp: --kernel reference: the plain Llama of run.cpp, one token at a time, in float, on one thread.
#pragma once

#include "language_model.hpp"

namespace pocket::cli {

// A session of the plain Llama.
class ReferenceSession : public TextSession {
 public:
  ReferenceSession(const Model& model, const SessionOptions& options)
      : model_(model), context_(options.context > 0 ? options.context : model.config.max_seq_len), llama_(model) {}

  const float* forward(const int* ids, size_t n) override {
    const float* last = nullptr;
    const bool good = forward(ids, n, [&](size_t, const float* logits) {
      last = logits;
      return true;
    });
    return good ? last : nullptr;
  }

  bool forward(const int* ids, size_t n, const EachLogits& each) override {
    if (n == 0) return fail("forward: no tokens");
    if (n > size_t(context_ - position_)) return fail("context: no room for so many tokens");
    const int start = position_;
    for (size_t i = 0; i < n; i++) {
      const float* logits = step(ids[i]);
      if (!logits) {
        position_ = start;
        return false;
      }
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
  bool fail(const char* why) override {
    error_ = why;
    return false;
  }

 private:
  // Runs one token. Returns its logits, or null with error_ set.
  const float* step(int id) {
    const bool known = id >= 0 && id < vocab_size(), cancelled = known && cancelled_.exchange(false);
    const float* logits = known && !cancelled ? llama_.forward(id, position_++) : nullptr;
    if (logits) return check_finite(logits, 1, vocab_size(), vocab_size(), error_) ? logits : nullptr;
    fail(cancelled ? "cancelled" : known ? "out of memory" : "forward: expected ids within the vocabulary");
    return nullptr;
  }

  const Model& model_;
  int context_;  // positions
  int position_ = 0;
  ReferenceLlama llama_;
  std::atomic<bool> cancelled_{false};
  std::string error_;
};

}  // namespace pocket::cli
