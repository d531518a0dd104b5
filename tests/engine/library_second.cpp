// library_second.cpp: a second source file that includes the engine, linked with library_test.cpp.
#define POCKET_NO_MAIN
#include "../../run.cpp"
#include "../../tokenizer.hpp"

std::string best_kernel_of_second_file() { return pocket::kernel_names().front(); }

int next_token_of_second_file(const pocket::Model& model, const std::vector<int>& ids) {
  pocket::Session session(model, {0, 2, pocket::KvType::automatic, nullptr});
  pocket::Sampler pick({0.f});
  const float* logits = session.forward(ids.data(), ids.size());
  return logits ? pick(logits, model.config.vocab_size) : -1;
}
