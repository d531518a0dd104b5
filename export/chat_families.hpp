// chat_families.hpp: the chat formats of known model families, as strings. chat_template.hpp recognises them in the
// Jinja templates of checkpoints; --template NAME selects one.
#pragma once

#include <algorithm>
#include <cctype>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
#include "engine.hpp"

namespace pocket {

/// A chat format. In all strings {bos_token} and {eos_token} stand for the texts of BOS and EOS, and {date:FORMAT} for
/// today's date.
struct ChatFamily {
  const char *key, *name;
  std::vector<const char*> own;            // required tokens
  unsigned edit[ChatTemplate::kTexts];     // bits of ChatTemplate::Edit
  const char* slot[ChatTemplate::kSlots];  // the last two may be null: as the prefix of a message, and of a reply
  const char* stop;                        // the token that ends a reply
  enum System { first, in_last_turn, none } system = first;  // where the system prompt is
  std::vector<const char*> commands = {};                    // of ChatTemplate
};

/// All families. The slots: prefix and suffix of a system prompt, prefix of the first message after it, prefix and suffix
/// of a message, prefix and suffix of a reply, opening without a system prompt, prefix of an earlier reply. A conversation
/// begins with one BOS where the template writes it or the tokenizer adds it; in Llama 2 every message does.
inline const std::vector<ChatFamily>& chat_families() {
  constexpr unsigned kTrim = ChatTemplate::kTrim, kBack = ChatTemplate::kTrimBack,
                     kNewlines = ChatTemplate::kTrimNewlines, kDrop = ChatTemplate::kDropThinking;
#define POCKET_HEADER(ROLE) "<|start_header_id|>" ROLE "<|end_header_id|>\n\n"
#define POCKET_CHATML(ROLE) "<|im_start|>" ROLE "\n"
#define POCKET_GRANITE(ROLE) "<|start_of_role|>" ROLE "<|end_of_role|>"
#define POCKET_LLAMA_DATES(TODAY) \
  POCKET_HEADER("system") "Cutting Knowledge Date: December 2023\nToday Date: " TODAY "\n\n"
#define POCKET_SMOLLM3(MODE)                                                                            \
  POCKET_CHATML("system")                                                                               \
  "## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: {date:%d %B %Y}\nReasoning Mode: " MODE \
  "\n\n## Custom Instructions\n\n"
#define POCKET_SMOLLM3_DEFAULT "You are a helpful AI assistant named SmolLM, trained by Hugging Face."
  static const std::vector<ChatFamily> all = {
      {"zephyr",
       "Zephyr",
       {"{eos_token}"},
       {},
       {"<|system|>\n", "{eos_token}\n", "<|user|>\n", "<|user|>\n", "{eos_token}\n", "<|assistant|>\n",
        "{eos_token}\n"},
       "{eos_token}"},
      {"chatml",
       "ChatML",
       {"<|im_start|>", "<|im_end|>"},
       {},
       {POCKET_CHATML("system"), "<|im_end|>\n", POCKET_CHATML("user"), POCKET_CHATML("user"), "<|im_end|>\n",
        POCKET_CHATML("assistant"), "<|im_end|>\n"},
       "<|im_end|>"},
      {"llama-2",
       "Llama 2",
       {"{bos_token}", "{eos_token}"},
       {0, kBack, kTrim, kTrim, kTrim},
       {"{bos_token}[INST] <<SYS>>\n", "\n<</SYS>>\n\n", "", "{bos_token}[INST] ", " [/INST]", "", " {eos_token}",
        nullptr, " "},
       "{eos_token}"},
      {"llama-3",
       "Llama 3",
       {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
       {kTrim, kTrim, kTrim, kTrim, kTrim},
       {"{bos_token}" POCKET_HEADER("system"), "<|eot_id|>", POCKET_HEADER("user"), POCKET_HEADER("user"), "<|eot_id|>",
        POCKET_HEADER("assistant"), "<|eot_id|>", "{bos_token}" POCKET_HEADER("user")},
       "<|eot_id|>"},
      {"llama-3.1",
       "Llama 3.1",
       {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
       {kTrim, kTrim, kTrim, kTrim, kTrim},
       {"{bos_token}" POCKET_LLAMA_DATES("26 Jul 2024"), "<|eot_id|>", POCKET_HEADER("user"), POCKET_HEADER("user"),
        "<|eot_id|>", POCKET_HEADER("assistant"), "<|eot_id|>",
        "{bos_token}" POCKET_LLAMA_DATES("26 Jul 2024") "<|eot_id|>" POCKET_HEADER("user")},
       "<|eot_id|>"},
      {"llama-3.2",
       "Llama 3.2",
       {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
       {kTrim, kTrim, kTrim, kTrim, kTrim},
       {"{bos_token}" POCKET_LLAMA_DATES("{date:%d %b %Y}"), "<|eot_id|>", POCKET_HEADER("user"), POCKET_HEADER("user"),
        "<|eot_id|>", POCKET_HEADER("assistant"), "<|eot_id|>",
        "{bos_token}" POCKET_LLAMA_DATES("{date:%d %b %Y}") "<|eot_id|>" POCKET_HEADER("user")},
       "<|eot_id|>"},
      {"qwen2.5",
       "Qwen2.5",
       {"<|im_start|>", "<|im_end|>"},
       {},
       {POCKET_CHATML("system"), "<|im_end|>\n", POCKET_CHATML("user"), POCKET_CHATML("user"), "<|im_end|>\n",
        POCKET_CHATML("assistant"), "<|im_end|>\n",
        POCKET_CHATML("system") "You are Qwen, created by Alibaba Cloud. You are a helpful "
                                "assistant.<|im_end|>\n" POCKET_CHATML("user")},
       "<|im_end|>"},
      {"qwen3",
       "Qwen3",
       {"<|im_start|>", "<|im_end|>"},
       {0, 0, 0, 0, kDrop | kNewlines},
       {POCKET_CHATML("system"), "<|im_end|>\n", POCKET_CHATML("user"), POCKET_CHATML("user"), "<|im_end|>\n",
        POCKET_CHATML("assistant"), "<|im_end|>\n"},
       "<|im_end|>"},
      {"qwen3-no-thinking",
       "Qwen3 no-thinking",
       {"<|im_start|>", "<|im_end|>"},
       {0, 0, 0, 0, kDrop | kNewlines},
       {POCKET_CHATML("system"), "<|im_end|>\n", POCKET_CHATML("user"), POCKET_CHATML("user"), "<|im_end|>\n",
        POCKET_CHATML("assistant") "<think>\n\n</think>\n\n", "<|im_end|>\n", nullptr, POCKET_CHATML("assistant")},
       "<|im_end|>"},
      {"smollm3",
       "SmolLM3",
       {"<|im_start|>", "<|im_end|>"},
       {kBack, 0, 0, kNewlines, kNewlines},
       {POCKET_SMOLLM3("/think"), "\n\n<|im_end|>\n", POCKET_CHATML("user"), POCKET_CHATML("user"), "<|im_end|>\n",
        POCKET_CHATML("assistant"), "<|im_end|>\n",
        POCKET_SMOLLM3("/think") POCKET_SMOLLM3_DEFAULT
        " Your role as an assistant involves thoroughly exploring questions through a systematic thinking process "
        "before "
        "providing the final precise and accurate solutions. This requires engaging in a comprehensive cycle of "
        "analysis, "
        "summarizing, exploration, reassessment, reflection, backtracking, and iteration to develop well-considered "
        "thinking process. Please structure your response into two main sections: Thought and Solution using the "
        "specified "
        "format: <think> Thought section </think> Solution section. In the Thought section, detail your reasoning "
        "process "
        "in steps. Each step should include detailed considerations such as analysing questions, summarizing relevant "
        "findings, brainstorming new ideas, verifying the accuracy of the current steps, refining any errors, and "
        "revisiting previous steps. In the Solution section, based on various attempts, explorations, and reflections "
        "from "
        "the Thought section, systematically present the final solution that you deem correct. The Solution section "
        "should "
        "be logical, accurate, and concise and detail necessary steps needed to reach the "
        "conclusion.\n\n<|im_end|>\n" POCKET_CHATML("user")},
       "<|im_end|>",
       ChatFamily::first,
       {"/no_think", "/think", "/system_override"}},
      {"smollm3-no-thinking",
       "SmolLM3 no-thinking",
       {"<|im_start|>", "<|im_end|>"},
       {kBack, 0, 0, kNewlines, kNewlines},
       {POCKET_SMOLLM3("/no_think"), "\n\n<|im_end|>\n", POCKET_CHATML("user"), POCKET_CHATML("user"), "<|im_end|>\n",
        POCKET_CHATML("assistant") "<think>\n\n</think>\n", "<|im_end|>\n",
        POCKET_SMOLLM3("/no_think") POCKET_SMOLLM3_DEFAULT "\n\n<|im_end|>\n" POCKET_CHATML("user")},
       "<|im_end|>",
       ChatFamily::first,
       {"/no_think", "/think", "/system_override"}},
      {"granite-3",
       "Granite 3",
       {"<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"},
       {},
       {POCKET_GRANITE("system"), "<|end_of_text|>\n", POCKET_GRANITE("user"), POCKET_GRANITE("user"),
        "<|end_of_text|>\n", POCKET_GRANITE("assistant"), "<|end_of_text|>\n",
        POCKET_GRANITE("system") "Knowledge Cutoff Date: April 2024. Today's Date: {date:%B %d, %Y}. You are Granite, "
                                 "developed by IBM. You are a helpful AI assistant.<|end_of_text|>\n" POCKET_GRANITE(
                                     "user")},
       "<|end_of_text|>"},
      {"phi-3",
       "Phi-3",
       {"<|user|>", "<|assistant|>", "<|end|>"},
       {},
       {"<|system|>\n", "<|end|>\n", "<|user|>\n", "<|user|>\n", "<|end|>\n", "<|assistant|>\n", "<|end|>\n"},
       "<|end|>"},
      {"gemma",
       "Gemma",
       {"<start_of_turn>", "<end_of_turn>"},
       {0, kTrim, kTrim, kTrim, kTrim},
       {"", "", "", "<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n",
        "{bos_token}<start_of_turn>user\n"},
       "<end_of_turn>",
       ChatFamily::none},
      {"mistral-v1",
       "Mistral v1",
       {"{bos_token}", "{eos_token}"},
       {},
       {"{bos_token} [INST] ", "\n\n", "", " [INST] ", " [/INST]", "", "{eos_token}", "{bos_token} [INST] ", " "},
       "{eos_token}"},
      {"mistral-v3",
       "Mistral v3",
       {"{bos_token}", "{eos_token}"},
       {},
       {"", "\n\n", "", "[INST] ", "[/INST]", "", "{eos_token}", "{bos_token}[INST] ", " "},
       "{eos_token}",
       ChatFamily::in_last_turn},
      {"mistral-v3-tekken",
       "Mistral v3 Tekken",
       {"{bos_token}", "{eos_token}"},
       {},
       {"", "\n\n", "", "[INST]", "[/INST]", "", "{eos_token}", "{bos_token}[INST]"},
       "{eos_token}",
       ChatFamily::in_last_turn},
      {"mistral-v7",
       "Mistral v7",
       {"{bos_token}", "{eos_token}", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"},
       {},
       {"{bos_token}[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]", "[INST] ", "[INST] ", "[/INST]", "", "{eos_token}",
        "{bos_token}[INST] ", " "},
       "{eos_token}"},
      {"deepseek-r1",
       "DeepSeek R1",
       {"<｜User｜>", "<｜Assistant｜>", "{eos_token}"},
       {0, 0, 0, 0, kDrop},
       {"{bos_token}", "", "<｜User｜>", "<｜User｜>", "", "<｜Assistant｜><think>\n", "{eos_token}",
        "{bos_token}<｜User｜>", "<｜Assistant｜>"},
       "{eos_token}"},
      {"alpaca",
       "Alpaca",
       {"{eos_token}"},
       {kTrim, kTrim, kTrim, kTrim, kTrim},
       {"", "\n\n", "### Instruction:\n", "### Instruction:\n", "\n\n", "### Response:\n", "{eos_token}\n\n"},
       "{eos_token}"},
      {"vicuna",
       "Vicuna",
       {"{eos_token}"},
       {0, kTrim, kTrim, kTrim, kTrim},
       {"", "", " USER: ", " USER: ", "", " ASSISTANT:", "{eos_token}",
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: ",
        " ASSISTANT: "},
       "{eos_token}"},
      {"vicuna-lines",
       "Vicuna lines",
       {"{eos_token}"},
       {kTrim, kTrim, kTrim, kTrim, kTrim},
       {"", "\n\n", "USER: ", "USER: ", "\n", "ASSISTANT:", "{eos_token}\n", nullptr, "ASSISTANT: "},
       "{eos_token}"},
      {"plain", "plain", {}, {}, {"", "\n", "", "", "\n", "", "\n"}, "{eos_token}"},
  };
#undef POCKET_HEADER
#undef POCKET_CHATML
#undef POCKET_GRANITE
#undef POCKET_LLAMA_DATES
#undef POCKET_SMOLLM3
#undef POCKET_SMOLLM3_DEFAULT
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

/// Finds the control tokens in the texts of a chat template.
class ChatTokens {
 public:
  explicit ChatTokens(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    std::vector<std::string_view> tokens;
    for (int id = 0; id < tokenizer.size(); id++)
      if (is_chat_token(id)) tokens.push_back(tokenizer.piece(id));
    finder_ = tokenizer_detail::PieceFinder(std::move(tokens));
  }

  /// The parts with texts split at tokens.
  ChatTemplate::Parts split(const ChatTemplate::Parts& parts) const {
    ChatTemplate::Parts out;
    for (const ChatTemplate::Part& part : parts)
      part.id == ChatTemplate::kText ? split(part.text, out) : out.push_back(part);
    return out;
  }

 private:
  // A control token; or a token like <start_of_turn>, [INST] that was declared as an ordinary one. Those around the
  // thinking of a reply stay text, which is printed.
  bool is_chat_token(int id) const {
    const std::string_view text = tokenizer_.piece(id);
    if (text.empty() || text.size() > 0xFFFF) return false;
    if (tokenizer_.type(id) == Tokenizer::PieceType::control) return true;
    const bool brackets = (text.front() == '<' && text.back() == '>') || (text.front() == '[' && text.back() == ']');
    return tokenizer_.is_marker(id) && brackets && text.find("think") == text.npos;
  }

  void split(const std::string& text, ChatTemplate::Parts& out) const {
    const std::vector<uint16_t> sizes = finder_.empty() ? std::vector<uint16_t>(text.size()) : finder_.find(text);
    std::string plain;
    const auto flush = [&] {
      if (!plain.empty()) out.push_back({ChatTemplate::kText, plain});
      plain.clear();
    };
    for (size_t i = 0; i < text.size(); i += std::max<size_t>(sizes[i], 1)) {
      if (sizes[i] == 0) {
        plain += text[i];
        continue;
      }
      flush();
      const int id = tokenizer_.find(text.substr(i, sizes[i]));
      out.push_back({id, "", tokenizer_.strip(id)});
    }
    flush();
  }

  const Tokenizer& tokenizer_;
  tokenizer_detail::PieceFinder finder_;
};

/// A text with {date:FORMAT} as parts.
inline ChatTemplate::Parts with_dates(const std::string& text) {
  const std::string mark = "{date:";
  ChatTemplate::Parts parts;
  size_t at = 0;
  for (size_t begin; (begin = text.find(mark, at)) != text.npos;) {
    const size_t end = text.find('}', begin);
    parts.push_back({ChatTemplate::kText, text.substr(at, begin - at)});
    parts.push_back({ChatTemplate::kDate, text.substr(begin + mark.size(), end - begin - mark.size())});
    at = end + 1;
  }
  parts.push_back({ChatTemplate::kText, text.substr(at)});
  return parts;
}

/// False with `error` set if a template contains a token with a setting that chats do not follow.
inline bool check_chat_tokens(const ChatTemplate& chat, const Tokenizer& tokenizer, std::string& error) {
  for (const int id : chat.ids())
    if (tokenizer.strip(id) & Tokenizer::kSingleWord) {
      error = "token " + std::string(tokenizer.piece(id)) + ": single_word is not supported in a chat template";
      return false;
    }
  return true;
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
  std::copy(std::begin(family.edit), std::end(family.edit), made.edit);
  made.system_in_last_turn = family.system == ChatFamily::in_last_turn;
  made.no_system = family.system == ChatFamily::none;
  made.commands.assign(family.commands.begin(), family.commands.end());
  const ChatTokens tokens(tokenizer);
  for (int i = 0; i < ChatTemplate::kSlots; i++) {
    const int as = i == ChatTemplate::kOpening ? ChatTemplate::kUserPrefix : ChatTemplate::kReplyPrefix;
    const char* const text = family.slot[family.slot[i] ? i : as];
    ChatTemplate::Parts parts = with_dates(text);
    for (ChatTemplate::Part& part : parts) part.text = with_tokens_written(part.text, tokenizer);
    made.slot[i] = tokens.split(parts);
  }
  if (!check_chat_tokens(made, tokenizer, error)) return false;
  if (const int stop = tokenizer.find(with_tokens_written(family.stop, tokenizer)); stop >= 0) made.stop_ids = {stop};
  out = std::move(made);
  return true;
}

}  // namespace pocket
