// Model files of Llamas: every section, and a few tokens.
#include "model_file.hpp"
#include "tiny_llama.hpp"
#include "use_tokenizer.hpp"

namespace fuzz::model {

using namespace pocket;

void use_chat(const Model& model, const Tokenizer& tokenizer) {
  ChatTemplate chat;
  if (!chat.load(model.chat_bytes(), model.config.vocab_size)) return require(!chat.error.empty(), "chat: an error");
  const Encode encode = [&](std::string_view text, bool bos) { return tokenizer.encode(text, bos); };
  for (const bool first : {true, false}) chat_turn(chat, encode, "Be brief.", "Hello!", first);
}

void run(std::string_view input) {
  const AlignedCopy copy(input);
  Model model;
  if (!model.open_memory(copy.data(), copy.size())) return require(!model.error.empty(), "model: an error");
  Tokenizer tokenizer;
  if (tokenizer.load(model.tokenizer_bytes())) use(tokenizer);
  use_chat(model, tokenizer);
  forward<Session>(model);
}

std::vector<std::string> seeds() {
  std::vector<std::string> all;
  for (const Type type : {Type::f32, Type::q8, Type::q4}) {
    ModelParts parts;
    parts.config = tiny_config();
    parts.config.tied = type == Type::q8;
    parts.config.rope_scaling = type == Type::q4 ? RopeScaling::llama3 : RopeScaling::none;
    parts.config.rope_original_len = 8;
    parts.type = type;
    parts.threads = 1;
    parts.tokenizer = Tokenizer::to_blob(small_vocabulary(false));
    parts.chat.slot[ChatTemplate::kUserPrefix] = {{1, ""}, {-1, "User: "}};
    parts.chat.stop_ids = {2};
    parts.provenance = "source: a test\n";
    parts.self_test_ids = {1, 3};
    all.push_back(write_model(parts));
  }
  return all;
}

const Registered target({"model", run, seeds, repair_model});

}  // namespace fuzz::model
