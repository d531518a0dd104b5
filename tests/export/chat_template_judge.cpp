// chat_template_judge.cpp: renders conversations with converted chat templates, for chat_template_judge.py. Reads one JSON
// object per line, {"jinja": ..., "conversations": [messages, ...]}, and writes one: {"refused": reason}, or {"texts": [...]},
// with null for a conversation whose system prompt the template does not take.
#include <iostream>
#include <nlohmann/json.hpp>

#include "../../apps/cli/conversation.hpp"
#include "../../export/chat_template.hpp"

namespace {

using namespace pocket;
using Json = nlohmann::json;

Tokenizer make_tokenizer() {
  Tokenizer::Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  for (const char* text : {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "<|user|>"})
    v.pieces.push_back({text, 0, Tokenizer::PieceType::control});
  for (int byte = 0; byte < 256; byte++) v.pieces.push_back({std::string(1, char(byte)), 0});
  v.bos = 0;
  v.eos = 1;
  Tokenizer tokenizer;
  if (!tokenizer.load(Tokenizer::to_blob(v))) std::cerr << tokenizer.error << "\n";
  return tokenizer;
}

Json rendered(const ChatTemplate& chat, const Tokenizer& tokenizer, const Json& messages) {
  const Encode encode = [&](std::string_view text, bool bos) { return tokenizer.encode(text, bos); };
  cli::Conversation conversation(chat, encode, "");
  for (const Json& message : messages) {
    const std::string role = message["role"], content = message["content"];
    if (role == "system") conversation.system = content;
    if (role == "user") conversation.turns.push_back({content, "", {}});
    if (role == "assistant") conversation.turns.back().reply = content;
  }
  if (!chat.takes(conversation.system.value_or(""))) return nullptr;
  return tokenizer.decode(conversation.ids());
}

}  // namespace

int main() {
  const Tokenizer tokenizer = make_tokenizer();
  for (std::string line; std::getline(std::cin, line);) {
    const Json input = Json::parse(line);
    ChatTemplate chat;
    std::string reason;
    Json output;
    if (recognise_chat_template(input["jinja"], tokenizer, chat, reason))
      for (const Json& messages : input["conversations"])
        output["texts"].push_back(rendered(chat, tokenizer, messages));
    else
      output["refused"] = reason;
    std::cout << output.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
  }
}
