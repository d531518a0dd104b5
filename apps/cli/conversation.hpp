// conversation.hpp: the conversation of a chat as data: its turns, the tokens that the model processes, and its JSON.
#pragma once

#include <optional>

#include "../../export/engine.hpp"
#include "../../export/json_reader.hpp"
#include "../../export/json_writer.hpp"

namespace pocket::cli {

// A message and its reply.
struct Turn {
  std::string message, reply;
  std::vector<int> reply_ids;  // tokens of a generated reply; empty: the text of the reply is encoded
  bool of_tools = false;       // the message is the results of calls of tools
};

// Why a chat template does not take a system prompt.
inline std::string refusal(const ChatTemplate& chat, const std::string& system) {
  for (const std::string& command : chat.commands)
    if (system.find(command) != system.npos)
      return "the chat template treats '" + command +
             "' in a system prompt in a special way, which is not supported; leave it out" +
             (command.find("think") == command.npos ? "" : ", and choose another --template to switch thinking off");
  return "the chat template takes no system prompt";
}

// The turns of a chat. The last one may have no reply yet, or the beginning of one.
class Conversation {
 public:
  using Least = std::function<size_t(std::string_view text)>;  // a lower bound of the number of tokens; null: 0

  Conversation(const ChatTemplate& chat, Encode encode, const std::string& system_prompt, Least least = {})
      : chat_(chat), encode_(std::move(encode)), least_(std::move(least)) {
    if (!system_prompt.empty()) system = system_prompt;
  }

  std::optional<std::string> system;  // system prompt; none or "": that of the template, if it has one
  std::vector<Turn> turns;
  const ChatTemplate* template_of_tools = nullptr;  // of the turns whose messages are of tools; null: that of all

  // Number of the oldest turns that no longer fit the context. The model does not process them.
  size_t dropped() const { return dropped_; }
  size_t active() const { return turns.size() - dropped_; }
  bool has_system() const { return !system.value_or("").empty(); }

  // All tokens that the model processes, from the system prompt to the last reply.
  std::vector<int> ids() const { return ids_from(dropped_); }

  // A lower bound of their number, from the length of the texts alone.
  size_t least_tokens() const { return least_tokens_from(dropped_); }

  // If there are more than `most` tokens, drops the oldest turns, but never the last one, until there are at most
  // `target`. Returns the number of turns it dropped.
  size_t make_room(size_t most, size_t target) {
    if (turns.empty() || first_that_fits(most) == dropped_) return 0;
    const size_t before = std::exchange(dropped_, first_that_fits(target));
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
    if (system) add("system", *system);
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
    Conversation loaded(chat_, encode_, "", least_);
    loaded.system = system;
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
  // The tokens without the turns before `first`.
  std::vector<int> ids_from(size_t first) const {
    ChatTemplate::Parts parts;
    for (size_t i = first; i < turns.size(); i++) {
      const Turn& turn = turns[i];
      const Reply reply = reply_of(turn, i + 1 == turns.size());
      const ChatTemplate& chat = turn.of_tools && template_of_tools ? *template_of_tools : chat_;
      const ChatTemplate::Parts more = chat_parts(chat, system.value_or(""), turn.message, i == first, reply);
      parts.insert(parts.end(), more.begin(), more.end());
      if (reply == Reply::text)
        parts.push_back({ChatTemplate::kText, edited_reply(chat_, turn.reply)});
      else
        for (const int id : turn.reply_ids) parts.push_back({id, ""});
    }
    return encode_parts(parts, encode_, true);
  }

  // An earlier reply is processed as it was generated, unless the template removes its thinking.
  Reply reply_of(const Turn& turn, bool last) const {
    if (last && (!turn.reply_ids.empty() || turn.reply.empty())) return Reply::next;
    const bool rewritten = chat_.edit[ChatTemplate::kThinkingReplyText] & ChatTemplate::kDropThinking;
    return rewritten || turn.reply_ids.empty() ? Reply::text : Reply::tokens;
  }

  size_t least_tokens_from(size_t first) const {
    if (!least_) return 0;
    size_t n = least_(system.value_or(""));
    for (size_t i = first; i < turns.size(); i++)
      n += least_(turns[i].message) + least_tokens_of_reply(turns[i], i + 1 == turns.size());
    return n;
  }

  size_t least_tokens_of_reply(const Turn& turn, bool last) const {
    return reply_of(turn, last) == Reply::text ? least_(edited_reply(chat_, turn.reply)) : turn.reply_ids.size();
  }

  // The first active turn from which on there are at most so many tokens; if there is none, the last turn. Searches
  // from the last turn in growing steps, so that its time depends on `most` and not on the number of turns.
  size_t first_that_fits(size_t most) const {
    const auto fits = [&](size_t first) { return least_tokens_from(first) <= most && ids_from(first).size() <= most; };
    size_t low = dropped_, high = turns.size() - 1;  // the result is in low ... high
    for (size_t step = 1; low < high; step *= 2) {
      const size_t first = high - std::min(step, high - low);
      if (!fits(first)) {
        low = first + 1;
        break;
      }
      high = first;
    }
    while (low < high) {
      const size_t middle = low + (high - low) / 2;
      if (fits(middle))
        high = middle;
      else
        low = middle + 1;
    }
    return high;
  }

  // Appends the next message of a list. `answered`: no message of the user is without a reply.
  bool add(const JsonValue& message, bool& answered, std::string& error) {
    if (!message.need("role", JsonKind::string, error) || !message.need("content", JsonKind::string, error))
      return false;
    const std::string role = message.find("role").string(), content = message.find("content").string();
    if (role == "system" && !chat_.takes(content)) return pocket::fail(error, refusal(chat_, content));
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
  Least least_;
  size_t dropped_ = 0;
};

}  // namespace pocket::cli
