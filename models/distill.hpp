// distill.hpp: knowledge distillation: a larger model as the teacher of a smaller one. The engine runs the teacher;
// distill_body in train_kernels.hpp defines the loss.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../export/input_file.hpp"
#include "../export/memory.hpp"
#include "../export/model_rows.hpp"
#include "llama_train.hpp"

namespace pocket {

// The settings of distillation that decide the result.
struct DistillPlan {
  float share = 0;        // weight of the teacher in the loss, 0 to 1
  float temperature = 1;  // of both distributions
  uint64_t teacher = 0;   // checksum of the teacher's file; 0: no teacher
  int64_t texts = 0;      // number of texts of the teacher's own to learn from (draft.hpp); 0: none
};

// A model file as a teacher.
class ModelTeacher : public Teacher {
 public:
  std::string error;  // why open() or start() failed

  bool open(const std::string& path) {
    if (!model_.open(path.c_str())) return fail(error, model_.error);
    return check_has_weights(model_, path, error);
  }

  // After open(): creates a session for each thread, for windows of at most `tokens` tokens.
  bool start(const DistillPlan& plan, int threads, int tokens) {
    share = plan.share;
    temperature = plan.temperature;
    for (int i = 0; i < threads; i++) {
      sessions_.push_back(std::make_unique<Session>(model_, options(tokens)));
      if (!sessions_.back()->error.empty()) return fail(error, sessions_.back()->error);
    }
    return true;
  }

  const Model& model() const { return model_; }

  // Bytes of memory that the teacher takes, including its weights.
  size_t memory_bytes(int threads, int tokens) const {
    size_t sum = 0, once = model_.bytes_per_token;
    for (const MemoryItem& item : memory_of(model_, options(tokens), tokens)) sum += item.bytes;
    return once + size_t(threads) * (sum - once);
  }

  // Each text of a window is processed by itself, as the student does.
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

  // The error of a session that failed because the model file could not be read, or "".
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
