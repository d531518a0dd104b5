// chat_families.hpp: the chat formats of known model families, as strings. chat_template.hpp recognises them in the
// Jinja templates of checkpoints; --template NAME selects one.
#pragma once

#include <cctype>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
#include "engine.hpp"

namespace pocket {

/// A chat format. In all strings {bos_token} and {eos_token} stand for the texts of BOS and EOS.
struct ChatFamily {
  const char *key, *name;
  std::vector<const char*> own;  // required tokens
  const char* default_system;    // the system prompt if the user gives none
  unsigned trim;                 // bits of ChatTemplate::Trim
  const char* slot[ChatTemplate::kSlots];
  const char* stop;  // the token that ends a reply
};

/// All families. The slots: prefix and suffix of a system turn, prefix of the first user turn after it, prefix and
/// suffix of a user turn, prefix and suffix of a reply. In Llama 2 every user turn begins with BOS; in the others the
/// tokenizer adds BOS once.
inline const std::vector<ChatFamily>& chat_families() {
  constexpr unsigned kAll = ChatTemplate::kTrimSystem | ChatTemplate::kTrimUser | ChatTemplate::kTrimReply;
  constexpr unsigned kTurns = ChatTemplate::kTrimUser | ChatTemplate::kTrimReply;
#define POCKET_HEADER(ROLE) "<|start_header_id|>" ROLE "<|end_header_id|>\n\n"
  static const std::vector<ChatFamily> all = {
      {"zephyr",
       "Zephyr",
       {"{eos_token}"},
       "",
       0,
       {"<|system|>\n", "{eos_token}\n", "<|user|>\n", "<|user|>\n", "{eos_token}\n", "<|assistant|>\n",
        "{eos_token}\n"},
       "{eos_token}"},
      {"chatml",
       "ChatML",
       {"<|im_start|>", "<|im_end|>"},
       "",
       0,
       {"<|im_start|>system\n", "<|im_end|>\n", "<|im_start|>user\n", "<|im_start|>user\n", "<|im_end|>\n",
        "<|im_start|>assistant\n", "<|im_end|>\n"},
       "<|im_end|>"},
      {"llama-2",
       "Llama 2",
       {"{bos_token}", "{eos_token}"},
       "",
       kTurns,
       {"{bos_token}[INST] <<SYS>>\n", "\n<</SYS>>\n\n", "", "{bos_token}[INST] ", " [/INST]", "", " {eos_token}"},
       "{eos_token}"},
      {"llama-3",
       "Llama 3",
       {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
       "",
       kAll,
       {POCKET_HEADER("system"), "<|eot_id|>", POCKET_HEADER("user"), POCKET_HEADER("user"), "<|eot_id|>",
        POCKET_HEADER("assistant"), "<|eot_id|>"},
       "<|eot_id|>"},
      {"alpaca",
       "Alpaca",
       {"{eos_token}"},
       "",
       kAll,
       {"", "\n\n", "### Instruction:\n", "### Instruction:\n", "\n\n", "### Response:\n", "{eos_token}\n\n"},
       "{eos_token}"},
      {"vicuna",
       "Vicuna",
       {"{eos_token}"},
       "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
       "detailed, and polite answers to the user's questions.",
       kTurns,
       {"", "", " USER: ", " USER: ", "", " ASSISTANT:", "{eos_token}"},
       "{eos_token}"},
      {"vicuna-lines",
       "Vicuna lines",
       {"{eos_token}"},
       "",
       kAll,
       {"", "\n\n", "USER: ", "USER: ", "\n", "ASSISTANT:", "{eos_token}\n"},
       "{eos_token}"},
      {"plain", "plain", {}, "", 0, {"", "\n", "", "", "\n", "", "\n"}, "{eos_token}"},
  };
#undef POCKET_HEADER
  return all;
}

/// "zephyr, chatml, ...", for messages.
inline std::string chat_family_keys() {
  std::string keys;
  for (const ChatFamily& family : chat_families()) keys += (keys.empty() ? "" : ", ") + std::string(family.key);
  return keys;
}

/// The family with this key, ignoring case and punctuation ("Llama 3", "llama3"); null if there is none.
inline const ChatFamily* find_chat_family(std::string_view key) {
  const auto letters = [](std::string_view text) {
    std::string out;
    for (char c : text)
      if (std::isalnum(uint8_t(c))) out += char(std::tolower(uint8_t(c)));
    return out;
  };
  for (const ChatFamily& family : chat_families())
    if (letters(family.key) == letters(key)) return &family;
  return nullptr;
}

/// Replaces {bos_token} and {eos_token} by the texts of the tokens.
inline std::string with_tokens_written(const std::string& text, const Tokenizer& tokenizer) {
  const std::pair<std::string, int> names[] = {{"{bos_token}", tokenizer.bos()}, {"{eos_token}", tokenizer.eos()}};
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    for (const auto& [name, id] : names)
      if (text.compare(at, name.size(), name) == 0) {
        out += tokenizer.piece(id);
        at += name.size();
      }
    if (at == start) out += text[at++];
  }
  return out;
}

/// Appends a text, split at the control tokens of the family that the vocabulary has.
inline void append_parts(const ChatFamily& family, const Tokenizer& tokenizer, const std::string& text,
                         ChatTemplate::Parts& out) {
  std::string plain;
  const auto flush = [&] {
    if (!plain.empty()) out.push_back({-1, plain});
    plain.clear();
  };
  std::vector<std::string> marks = {"<|system|>", "<|user|>", "<|assistant|>", "[INST]", "[/INST]"};
  for (const char* token : family.own) marks.push_back(with_tokens_written(token, tokenizer));
  for (size_t i = 0; i < text.size();) {
    size_t length = 0;
    for (const std::string& mark : marks)
      if (text.compare(i, mark.size(), mark) == 0 && tokenizer.find(mark) >= 0) length = mark.size();
    if (length > 0) {
      flush();
      const int id = tokenizer.find(text.substr(i, length));
      out.push_back({id, "", tokenizer.strip(id)});
    } else {
      plain += text[i];
    }
    i += std::max<size_t>(length, 1);
  }
  flush();
}

/// The chat template of a family for a tokenizer. False with `error` set, and `out` unchanged, if the vocabulary lacks
/// a required token.
inline bool make_chat_template(const ChatFamily& family, const Tokenizer& tokenizer, ChatTemplate& out,
                               std::string& error) {
  for (const char* token : family.own)
    if (const std::string text = with_tokens_written(token, tokenizer); text.empty() || tokenizer.find(text) < 0) {
      error = std::string("expected the token ") + token + " in the vocabulary, found none";
      return false;
    }
  ChatTemplate made;
  made.default_system = family.default_system;
  made.trim = family.trim;
  for (int i = 0; i < ChatTemplate::kSlots; i++)
    append_parts(family, tokenizer, with_tokens_written(family.slot[i], tokenizer), made.slot[i]);
  for (const int id : made.ids())
    if (tokenizer.strip(id) & Tokenizer::kSingleWord) {
      error = "token " + std::string(tokenizer.piece(id)) + ": single_word is not supported in a chat template";
      return false;
    }
  if (const int stop = tokenizer.find(with_tokens_written(family.stop, tokenizer)); stop >= 0) made.stop_ids = {stop};
  out = std::move(made);
  return true;
}

}  // namespace pocket
