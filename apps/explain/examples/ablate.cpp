// ablate.cpp: what is each head of a model good for? Removes one after the other, and prints by how much the model then
// predicts a text worse.
//
//     make explain-examples && apps/explain/examples/ablate models/stories.bin stories.txt
//
// Without a text, the model is measured on a story of its own. Loss: mean surprise of a token, in bits.
#include "../../../export/program.hpp"
#include "../edits.hpp"
#include "../measures.hpp"

namespace {
using namespace pocket;

/// The mean of -log2 p of the tokens after the first, in windows of the context's size.
double loss(Session& session, const std::vector<int>& ids) {
  double sum = 0;
  size_t counted = 0;
  std::vector<float> work;
  const auto exp = [](float* x, int n) { exp_in_place(x, n); };
  for (size_t begin = 0; begin + 1 < ids.size(); begin += size_t(session.context())) {
    const size_t n = std::min(ids.size() - begin, size_t(session.context()));
    session.rewind(0);
    const bool good = session.forward(&ids[begin], n, [&](size_t i, const float* logits) {
      if (i + 1 == n) return true;
      const float p = explain::summarize(logits, session.vocab_size(), ids[begin + i + 1], exp, work).p_next;
      sum -= std::log2(std::max(double(p), 1e-30));
      counted++;
      return true;
    });
    if (!good) throw Failure{1, session.error};
  }
  return counted ? sum / double(counted) : 0;
}

/// A story of the model's own, in as many tokens as its context holds.
std::vector<int> own_text(Session& session, const Model& model, const Tokenizer& tokenizer) {
  std::vector<int> ids = ids_of(tokenizer, "Once upon a time");
  Sampler pick({0.8f, 0.9f, 1});
  const std::vector<int> prompt = ids;
  const int n = session.context() - int(prompt.size());
  const auto on_token = [&](int id) {
    ids.push_back(id);
    return true;
  };
  if (!generate(session, pick, prompt, n, model.stop_ids, on_token)) throw Failure{1, session.error};
  return ids;
}

void execute(int argc, char** argv) {
  if (argc < 2 || argc > 3) throw Failure{2, "expected: ablate MODEL [TEXT FILE]"};
  Model model;
  Tokenizer tokenizer;
  if (!model.open(argv[1])) throw Failure{1, model.error};
  if (!tokenizer.load(model.tokenizer_bytes())) throw Failure{1, std::string(argv[1]) + ": " + tokenizer.error};
  Session session(model, {std::min(256, model.config.max_seq_len), 0, KvType::automatic, nullptr});
  if (!session.error.empty()) throw Failure{1, session.error};
  const std::vector<int> ids =
      argc > 2 ? ids_of(tokenizer, read_all(argv[2], kLongestPrompt)) : own_text(session, model, tokenizer);
  if (ids.size() < 2) throw Failure{1, "expected a text of two tokens or more"};
  const double plain = loss(session, ids);
  std::printf("%zu tokens; loss of the whole model: %.4f bits a token; without a head, by layer and head: more by\n",
              ids.size(), plain);
  for (int l = 0; l < model.config.n_layers; l++) {
    std::printf("layer %2d ", l + 1);
    for (int h = 0; h < model.config.n_heads; h++) {
      explain::Edits edits(model);
      edits.scale_head(l, h, 0);
      session.observe(edits);
      std::printf(" %+.4f", loss(session, ids) - plain);
      std::fflush(stdout);
      stop_if_interrupted();
    }
    std::printf("\n");
  }
}
}  // namespace

int main(int argc, char** argv) {
  return pocket::guarded("ablate", [&] { execute(argc, argv); });
}
