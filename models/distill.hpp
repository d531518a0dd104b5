// distill.hpp: a larger model that a smaller one learns from. It runs as any model does, by the engine; how the loss is
// made of what it says stands in train_kernels.hpp (distill_body).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "llama_train.hpp"

namespace pocket {

// How much of the loss is the teacher's, and which one it is.
struct DistillPlan {
  float share = 0;        // 0 to 1
  float temperature = 1;  // that softens what both say
  uint64_t teacher = 0;   // checksum of its file; 0: there is none
};

class ModelTeacher : public Teacher {
 public:
  std::string error;

  bool open(const std::string& path) {
    if (model_.open(path.c_str())) return true;
    error = model_.error;
    return false;
  }

  // After open(): a session for each thread, for windows of at most `tokens` tokens.
  bool start(const DistillPlan& plan, int threads, int tokens) {
    share = plan.share, temperature = plan.temperature;
    for (int i = 0; i < threads; i++) {
      sessions_.push_back(std::make_unique<Session>(model_, options(tokens)));
      if (!sessions_.back()->error.empty()) return error = sessions_.back()->error, false;
    }
    return true;
  }

  const Model& model() const { return model_; }

  // Bytes that it takes, its weights among them.
  size_t memory_bytes(int threads, int tokens) const {
    size_t sum = 0, once = model_.bytes_per_token;
    for (const MemoryItem& item : memory_of(model_, options(tokens), tokens)) sum += item.bytes;
    return once + size_t(threads) * (sum - once);
  }

  // Each text of a window is heard by itself: the teacher no more looks back beyond its beginning than the student.
  void logits(int thread, const Window& w, int first, int count, const Rows& out) override {
    Session& session = *sessions_[size_t(thread)];
    for (int i = 0, n; i < count; i += n) {
      const int t = first + i;
      if (w.first[size_t(t)] == t) session.rewind(0);
      for (n = 1; i + n < count && w.first[size_t(t + n)] == w.first[size_t(t)];) n++;
      session.forward(&w.ids[size_t(t)], size_t(n), [&](size_t k, const float* logits) {
        std::memcpy(out.row(i + int(k)), logits, size_t(session.vocab_size()) * sizeof(float));
        return true;
      });
    }
  }

  // Why one of the sessions failed, "" if none did: the model's file can no longer be read.
  std::string failure() const {
    for (const auto& session : sessions_)
      if (!session->error.empty()) return session->error;
    return "";
  }

 private:
  static SessionOptions options(int tokens) { return {tokens, 1, KvType::automatic, nullptr}; }

  Model model_;
  std::vector<std::unique_ptr<Session>> sessions_;
};

}  // namespace pocket
