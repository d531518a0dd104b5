// conversation.hpp: the conversation of a chat as data: its turns, the tokens that the model processes, and its JSON.
#pragma once

#include "../../export/engine.hpp"
#include "../../export/json_reader.hpp"
#include "../../export/json_writer.hpp"

namespace pocket::cli {

// A message and its reply.
struct Turn {
  std::string message, reply;
  std::vector<int> reply_ids;  // tokens of a generated reply; empty: the text of the reply is encoded
};

// The turns of a chat. The last one may have no reply yet, or the beginning of one.
class Conversation {
 public:
  Conversation(const ChatTemplate& chat, Encode encode, std::string system_prompt)
      : system(std::move(system_prompt)), chat_(chat), encode_(std::move(encode)) {}

  std::string system;  // system prompt; "": that of the template, if it has one
  std::vector<Turn> turns;

  // Number of the oldest turns that no longer fit the context. The model does not process them.
  size_t dropped() const { return dropped_; }
  size_t active() const { return turns.size() - dropped_; }
  bool has_system() const { return !system.empty() || !chat_.default_system.empty(); }

  // All tokens that the model processes, from the system prompt to the last reply.
  std::vector<int> ids() const {
    ChatTemplate::Parts parts;
    for (size_t i = dropped_; i < turns.size(); i++) {
      const ChatTemplate::Parts more = chat_parts(chat_, system, turns[i].message, i == dropped_);
      parts.insert(parts.end(), more.begin(), more.end());
      for (const int id : turns[i].reply_ids) parts.push_back({id, ""});
      if (turns[i].reply_ids.empty()) parts.push_back({-1, reply_text(turns[i].reply)});
    }
    return encode_parts(parts, encode_, true);
  }

  // Drops the oldest turns, but never the last one, until there are at most so many tokens. Returns the number of turns
  // it dropped.
  size_t drop_oldest(size_t max_tokens) {
    const size_t before = dropped_;
    while (active() > 1 && ids().size() > max_tokens) dropped_++;
    return dropped_ - before;
  }

  // Removes the last turn. Dropped turns, which may fit again, become active. Returns false if there is no turn.
  bool undo() {
    if (turns.empty()) return false;
    turns.pop_back();
    dropped_ = 0;
    return true;
  }

  // Removes all turns.
  void reset() {
    turns.clear();
    dropped_ = 0;
  }

  // All turns, dropped ones too, as a JSON list of {"role": ..., "content": ...}, one per line.
  std::string to_json() const {
    std::string out;
    const auto add = [&](const char* role, const std::string& content) {
      out += (out.empty() ? "\n " : ",\n ") + json_object({{"role", json(role)}, {"content", json(content)}});
    };
    if (!system.empty()) add("system", system);
    for (const Turn& turn : turns) {
      add("user", turn.message);
      add("assistant", turn.reply);
    }
    return "[" + out + "\n]\n";
  }

  // Loads a conversation from a JSON file: a list as in to_json(), or {"messages": [...]}. The system prompt stays if
  // the file has none. On failure returns false with `error` set, and the conversation is unchanged.
  bool load(const std::string& path, std::string& error) {
    constexpr uint64_t kMaxBytes = 64 << 20;  // more than any context holds
    JsonDocument document;
    if (!document.parse_file(path, kMaxBytes)) return pocket::fail(error, document.error);
    const JsonValue root = document.root(), list = root.is(JsonKind::object) ? root.find("messages") : root;
    if (!list.is(JsonKind::array))
      return pocket::fail(error, path + ": expected a list of messages, found " + list.describe());
    Conversation loaded(chat_, encode_, system);
    bool answered = true;
    for (const JsonValue& message : list.elements())
      if (!loaded.add(message, answered, error)) return false;
    if (!answered) return pocket::fail(error, path + ": expected a reply to the last message, found none");
    system = std::move(loaded.system);
    turns = std::move(loaded.turns);
    dropped_ = 0;
    return true;
  }

 private:
  // The text of a reply that was loaded. A model starts a reply with a space where the text before it does not end in
  // white space ("[/INST]" of Llama 2, "ASSISTANT:" of Vicuna), and so do the templates.
  std::string reply_text(const std::string& reply) const {
    const std::string text = chat_.trim & ChatTemplate::kTrimReply ? trimmed(reply) : reply;
    const ChatTemplate::Parts& prefix = chat_.slot[ChatTemplate::kReplyPrefix];
    const ChatTemplate::Parts& before = prefix.empty() ? chat_.slot[ChatTemplate::kUserSuffix] : prefix;
    const auto is_space = [](char c) { return std::isspace(uint8_t(c)) != 0; };
    const bool separate = before.empty() || before.back().text.empty() || is_space(before.back().text.back());
    return (separate || text.empty() || is_space(text[0]) ? "" : " ") + text;
  }

  // Appends the next message of a list. `answered`: no message of the user is without a reply.
  bool add(const JsonValue& message, bool& answered, std::string& error) {
    if (!message.need("role", JsonKind::string, error) || !message.need("content", JsonKind::string, error))
      return false;
    const std::string role = message.find("role").string(), content = message.find("content").string();
    if (role == "system" && turns.empty() && answered) {
      system = content;
    } else if (role == "user" && answered) {
      turns.push_back({content, "", {}});
      answered = false;
    } else if (role == "assistant" && !answered) {
      turns.back().reply = content;
      answered = true;
    } else {
      return message.refuse("role", answered ? "user" : "assistant", error);
    }
    return true;
  }

  const ChatTemplate& chat_;
  Encode encode_;
  size_t dropped_ = 0;
};

}  // namespace pocket::cli
