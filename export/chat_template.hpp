// chat_template.hpp: converts a checkpoint's chat template, a Jinja program, to the strings of a model file. The program
// renders conversations whose texts are unknown (jinja.hpp). The strings are read off the first ones, and must give all
// others: conversations of other lengths, with replies that contain thinking, and with texts that are empty or white
// space. Otherwise the template is refused.
//
// What the strings assume: a system prompt, and the message after it, have other characters than white space; and the
// texts contain no marks of tools, as <tool_response>, where a template looks for them.
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "chat_families.hpp"
#include "engine.hpp"
#include "jinja.hpp"

namespace pocket {

/// A conversation up to a message of the user: the reply is to be generated.
using ChatProbe = std::vector<JinjaMessage>;

/// A conversation with unknown texts. Of the replies, none, all, or every other one contains thinking.
inline ChatProbe chat_probe(bool system, size_t turns, size_t thinking_period = 0) {
  ChatProbe probe;
  if (system) probe.push_back({"system", false, "", false});
  for (size_t i = 0; i < turns; i++) {
    probe.push_back({"user", false, "", false});
    if (i + 1 < turns) probe.push_back({"assistant", false, "", thinking_period > 0 && i % thinking_period == 0});
  }
  return probe;
}

/// A text for a message whose text is unknown, with white space around it.
inline std::string example_text(const ChatProbe& probe, size_t message) {
  const JinjaMessage& m = probe[message];
  const std::string text = "\n \tmessage " + std::to_string(message) + "\n \t";
  return m.known ? m.text : m.thinks ? "\n a" + std::string(ChatTemplate::kThinkingEnd) + text : text;
}

/// A rendering with the examples as texts.
inline std::string written(const JinjaText& rendering, const ChatProbe& probe) {
  std::string out;
  for (const JinjaPiece& piece : rendering) {
    if (piece.kind == JinjaPiece::literal) out += piece.text;
    if (piece.kind == JinjaPiece::date) out += "\1" + piece.text + "\1";
    if (piece.kind == JinjaPiece::content) out += edited(example_text(probe, piece.message), piece.edits);
  }
  return out;
}

/// The same conversation as a chat template gives it. Control tokens are those of the tokenizer.
inline std::string written(const ChatTemplate& chat, const ChatProbe& probe, const Tokenizer& tokenizer) {
  std::string out;
  const size_t system = !probe.empty() && probe[0].role == "system";
  for (size_t i = system; i < probe.size(); i += 2) {
    const bool last = i + 1 == probe.size();
    const ChatTemplate::Parts parts = chat_parts(chat, system ? example_text(probe, 0) : "", example_text(probe, i),
                                                 i == system, last ? Reply::next : Reply::text);
    for (const ChatTemplate::Part& part : parts)
      out += part.id >= 0                     ? std::string(tokenizer.piece(part.id))
             : part.id == ChatTemplate::kDate ? "\1" + part.text + "\1"
                                              : part.text;
    if (!last) out += edited_reply(chat, example_text(probe, i + 1));
  }
  return out;
}

/// Derives a chat template from what a Jinja template renders.
class ChatTemplateReader {
 public:
  /// Throws JinjaError.
  ChatTemplateReader(const std::string& jinja, const Tokenizer& tokenizer,
                     const std::map<std::string, std::string>* special)
      : program_(JinjaParser::parse(jinja)), tokenizer_(tokenizer), special_(special) {}

  /// Throws JinjaError.
  ChatTemplate read() {
    ChatTemplate chat;
    read_turns(chat);
    read_system(chat);
    read_thinking(chat);
    read_end_of_reply(chat);
    const ChatTokens tokens(tokenizer_);
    for (ChatTemplate::Parts& parts : chat.slot) parts = tokens.split(parts);
    if (!chat.known()) throw JinjaError{"it writes nothing around the messages"};
    verify(chat);
    chat.commands.assign(commands_.begin(), commands_.end());
    set_stop(chat);
    return chat;
  }

 private:
  // A rendering: the contents of messages, and the text before each of them and after the last.
  struct Layout {
    std::vector<JinjaPiece> contents;
    std::vector<ChatTemplate::Parts> gaps;
    std::vector<size_t> messages() const {
      std::vector<size_t> order;
      for (const JinjaPiece& content : contents) order.push_back(content.message);
      return order;
    }
  };

  JinjaText render(const ChatProbe& probe, bool prompt = true) const {
    const auto text = [&](int id) { return std::string(tokenizer_.piece(id)); };
    return JinjaRenderer::render(program_,
                                 {probe, prompt, text(tokenizer_.bos()), text(tokenizer_.eos()), &commands_, special_});
  }

  Layout layout(const ChatProbe& probe, bool prompt = true) const {
    Layout found;
    found.gaps.emplace_back();
    for (const JinjaPiece& piece : render(probe, prompt)) {
      if (piece.kind != JinjaPiece::content) {
        const bool date = piece.kind == JinjaPiece::date;
        found.gaps.back().push_back({date ? ChatTemplate::kDate : ChatTemplate::kText, piece.text});
        continue;
      }
      found.contents.push_back(piece);
      found.gaps.emplace_back();
    }
    return found;
  }

  // A conversation of two turns.
  void read_turns(ChatTemplate& chat) const {
    const Layout found = layout(chat_probe(false, 2));
    if (found.messages() != std::vector<size_t>{0, 1, 2})
      throw JinjaError{"it does not write each message once, in their order"};
    chat.slot[ChatTemplate::kOpening] = found.gaps[0];
    chat.slot[ChatTemplate::kPastReplyPrefix] = found.gaps[1];
    chat.slot[ChatTemplate::kReplySuffix] = found.gaps[2];
    chat.slot[ChatTemplate::kReplyPrefix] = found.gaps[3];
    chat.edit[ChatTemplate::kUserText] = chat.edit[ChatTemplate::kFirstUserText] = found.contents[0].edits;
    chat.edit[ChatTemplate::kReplyText] = found.contents[1].edits;
    const std::string past = text_of(found.gaps[1]), prompt = text_of(found.gaps[3]);
    if (past.compare(0, prompt.size(), prompt) == 0 && !trimmed(past.substr(prompt.size())).empty())
      throw JinjaError{"it writes no generation prompt"};
  }

  // A system prompt before the first message or before the last, or none: then the template raises an exception, or
  // leaves it out.
  void read_system(ChatTemplate& chat) const {
    Layout found;
    try {
      found = layout(chat_probe(true, 2));
    } catch (const JinjaError& e) {
      if (!e.raised) throw;
      chat.no_system = true;
      return;
    }
    const std::vector<size_t> order = found.messages();
    chat.no_system = order == std::vector<size_t>{1, 2, 3};
    chat.system_in_last_turn = order == std::vector<size_t>{1, 2, 0, 3};
    if (chat.no_system) return;
    if (!chat.system_in_last_turn && order != std::vector<size_t>{0, 1, 2, 3})
      throw JinjaError{"it does not write a system prompt and each message once"};
    const size_t system = chat.system_in_last_turn ? 2 : 0;
    if (system == 0) chat.slot[ChatTemplate::kSystemPrefix] = found.gaps[0];
    chat.slot[ChatTemplate::kSystemSuffix] = found.gaps[system + 1];
    chat.edit[ChatTemplate::kSystemText] = found.contents[system].edits;
    chat.edit[ChatTemplate::kFirstUserText] = found.contents[system + 1].edits;
  }

  void read_thinking(ChatTemplate& chat) const {
    const Layout found = layout(chat_probe(false, 2, 1));
    if (found.messages() != std::vector<size_t>{0, 1, 2}) throw JinjaError{"it writes a reply with thinking otherwise"};
    chat.edit[ChatTemplate::kThinkingReplyText] = found.contents[1].edits;
  }

  // Splits what is between a reply and the next message at the end of a conversation that ends with the reply. If that
  // cannot be rendered, or ends otherwise, all of it belongs to the reply.
  void read_end_of_reply(ChatTemplate& chat) const {
    ChatProbe probe = chat_probe(false, 2);
    probe.pop_back();
    ChatTemplate::Parts& all = chat.slot[ChatTemplate::kReplySuffix];
    try {
      const Layout found = layout(probe, false);
      const std::string end = found.gaps.size() == 3 ? text_of(found.gaps[2]) : "";
      if (end.empty() || all.empty() || all[0].id != ChatTemplate::kText ||
          all[0].text.compare(0, end.size(), end) != 0)
        return;
      chat.slot[ChatTemplate::kUserPrefix] = all;
      chat.slot[ChatTemplate::kUserPrefix][0].text.erase(0, end.size());
      all = {{ChatTemplate::kText, end}};
    } catch (const JinjaError&) {
    }
  }

  static std::string text_of(const ChatTemplate::Parts& parts) {
    std::string text;
    for (const ChatTemplate::Part& part : parts)
      text += part.id == ChatTemplate::kDate ? "\1" + part.text + "\1" : part.text;
    return text;
  }

  void verify(const ChatTemplate& chat) const {
    for (const bool system : {false, true}) {
      if (system && chat.no_system) continue;
      for (size_t turns = 1; turns <= 4; turns++)
        for (size_t thinking_period = 0; thinking_period <= 2; thinking_period++)
          verify(chat, chat_probe(system, turns, thinking_period));
      const ChatProbe probe = chat_probe(system, 3);
      for (size_t i = system; i < probe.size(); i++) {
        const bool reply = probe[i].role == "assistant",
                   after_system = system && (chat.system_in_last_turn ? i + 1 == probe.size() : i == 1);
        for (const char* text :
             {"", " ", "\n", " \n\t", "</think>", "<think>\n\n</think>\n\n", "a</think>\n\nb </think>\n c "}) {
          const bool blank = trimmed(text).empty();
          if (reply || (blank && !after_system)) verify(chat, with_text(probe, i, text));
        }
      }
    }
  }

  static ChatProbe with_text(ChatProbe probe, size_t message, const char* text) {
    probe[message].known = true;
    probe[message].text = text;
    return probe;
  }

  void verify(const ChatTemplate& chat, const ChatProbe& probe) const {
    const std::string expected = written(render(probe), probe), found = written(chat, probe, tokenizer_);
    if (found != expected) throw JinjaError{difference(expected, found)};
  }

  // Where two renderings differ.
  static std::string difference(const std::string& expected, const std::string& found) {
    const size_t n = std::min(expected.size(), found.size());
    const size_t at =
        size_t(std::mismatch(expected.begin(), expected.begin() + long(n), found.begin()).first - expected.begin());
    const auto excerpt = [&](const std::string& text) {
      std::string out;
      for (char c : text.substr(at, 30)) out += c == '\n' ? "\\n" : c == '\1' ? "%" : std::string(1, c);
      return "'" + out + "'";
    };
    return "strings cannot describe it: expected " + excerpt(expected) + " after " + std::to_string(at) +
           " bytes, found " + excerpt(found);
  }

  // The first control token after a reply ends it; otherwise EOS.
  void set_stop(ChatTemplate& chat) const {
    for (const ChatTemplate::Part& part : chat.slot[ChatTemplate::kReplySuffix])
      if (part.id >= 0 && chat.stop_ids.empty()) chat.stop_ids = {part.id};
    if (chat.stop_ids.empty() && tokenizer_.eos() >= 0) chat.stop_ids = {tokenizer_.eos()};
  }

  const JinjaProgram program_;
  mutable std::set<std::string> commands_;  // that the template looks for
  const Tokenizer& tokenizer_;
  const std::map<std::string, std::string>* special_;
};

/// The family that gives the same conversations, at least with a system prompt, with or without BOS; or "its own".
inline std::string family_name(const ChatTemplate& chat, const Tokenizer& tokenizer) {
  ChatProbe plain = chat_probe(false, 2), system = chat_probe(true, 2);
  for (ChatProbe* probe : {&plain, &system})
    for (size_t i = 0; i < probe->size(); i++) {
      const bool reply = (*probe)[i].role == "assistant";
      (*probe)[i] = {(*probe)[i].role, true, reply ? "<think>\na\n</think>\n\nb" : std::to_string(i), false};
    }
  const std::string bos(tokenizer.piece(tokenizer.bos()));
  const auto text_of = [&](const ChatTemplate& some, const ChatProbe& probe) {
    const std::string text = written(some, probe, tokenizer);
    return text.compare(0, bos.size(), bos) == 0 ? text.substr(bos.size()) : text;
  };
  std::string similar;
  for (const ChatFamily& family : chat_families()) {
    ChatTemplate made;
    std::string error;
    if (!make_chat_template(family, tokenizer, made, error)) continue;
    const auto same = [&](const ChatProbe& probe) { return text_of(made, probe) == text_of(chat, probe); };
    const bool same_system = same(system);
    if (same_system && same(plain)) return family.name;
    if (same_system && similar.empty() && !chat.no_system) similar = family.name;
  }
  return similar.empty() ? "its own" : similar;
}

/// Converts a Jinja template. special: Checkpoint::special_tokens, null if not known. True with the family's name in
/// `family_or_reason`; or false, `out` empty, and the reason why the template was not recognised.
inline bool recognise_chat_template(const std::string& jinja, const Tokenizer& tokenizer, ChatTemplate& out,
                                    std::string& family_or_reason,
                                    const std::map<std::string, std::string>* special = nullptr) {
  out = ChatTemplate();
  try {
    ChatTemplate found = ChatTemplateReader(jinja, tokenizer, special).read();
    if (!check_chat_tokens(found, tokenizer, family_or_reason)) return false;
    out = std::move(found);
    family_or_reason = family_name(out, tokenizer);
    return true;
  } catch (const JinjaError& e) {
    return fail(family_or_reason, e.reason);
  }
}

}  // namespace pocket
