// steer.cpp: steers a story. The difference between the residual streams of two prompts is a direction; added to every
// token, it makes the text more like the first prompt and less like the second (activation addition, Turner et al. 2023).
//
//     make explain-examples
//     apps/explain/examples/steer models/stories.bin " happy fun love" " sad cry hurt" "Once upon a time" 3 0.5
//
// The last two numbers: the layer after which the direction is added, from 1, and how strongly. 0 is the plain story.
#include "../../../export/program.hpp"
#include "../edits.hpp"

namespace {
using namespace pocket;
using Vector = explain::Edits::Vector;

/// The mean residual stream after a layer (from 0) of the tokens of a text.
Vector stream(const Model& model, const std::vector<int>& ids, int layer) {
  Session session(model, {int(ids.size()) + 1, 0, KvType::automatic, nullptr});
  Vector sum(size_t(model.config.dim));
  session.observe([&](const Observation& o) {
    if (o.kind != Observation::layer_output || o.layer != layer) return;
    for (int i = 0; i < o.size; i++) sum[size_t(i)] += o.data[i] / float(ids.size());
  });
  if (!session.forward(ids.data(), ids.size())) throw Failure{1, session.error};
  return sum;
}

void execute(int argc, char** argv) {
  if (argc != 7) throw Failure{2, "expected: steer MODEL MORE_LIKE LESS_LIKE PROMPT LAYER STRENGTH"};
  Model model;
  Tokenizer tokenizer;
  if (!model.open(argv[1])) throw Failure{1, model.error};
  if (!tokenizer.load(model.tokenizer_bytes())) throw Failure{1, std::string(argv[1]) + ": " + tokenizer.error};
  const int layer = int(number("LAYER", argv[5], 1, model.config.n_layers, true)) - 1;
  const float strength = float(number("STRENGTH", argv[6], -1000, 1000, false));
  Vector direction = stream(model, ids_of(tokenizer, argv[2]), layer);
  const Vector other = stream(model, ids_of(tokenizer, argv[3]), layer);
  for (size_t i = 0; i < direction.size(); i++) direction[i] -= other[i];

  const std::vector<int> prompt = ids_of(tokenizer, argv[4]);
  explain::Edits edits(model);
  edits.steer(layer, direction, strength);
  Session session(model);
  if (!session.error.empty()) throw Failure{1, session.error};
  session.observe(edits);
  Sampler pick({0.8f, 0.9f, 1});
  Tokenizer::Stream text(tokenizer);
  for (const int id : prompt) std::fputs(printed_text(tokenizer, text, id).c_str(), stdout);
  const auto on_token = [&](int id) {
    std::fputs(printed_text(tokenizer, text, id).c_str(), stdout);
    return !interrupted;
  };
  if (!generate(session, pick, prompt, 120, model.stop_ids, on_token)) throw Failure{1, session.error};
  std::printf("%s\n", printed_rest(text).c_str());
}
}  // namespace

int main(int argc, char** argv) {
  return pocket::guarded("steer", [&] { execute(argc, argv); });
}
