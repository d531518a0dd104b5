// examples.hpp: examples for fine-tuning, in JSON Lines: one object per line,
//
//     {"prompt": "What is rain?", "completion": " Water that falls."}                  a text, which is continued
//     {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", ...}]}    a conversation
//
// A conversation is laid out by the model's chat template, as ./run -m chat does. Completions and replies count in the
// loss, with the token that ends them; prompts do not. Other members are ignored.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "../export/json_reader.hpp"
#include "../export/program.hpp"
#include "training_text.hpp"

namespace pocket {

// Whether the name of a text is that of JSON Lines, in upper or lower case.
inline bool has_examples(std::string path) {
  for (char& c : path)
    if (c >= 'A' && c <= 'Z') c = char(c + ('a' - 'A'));
  for (const std::string end : {".jsonl", ".ndjson"})
    if (path.size() > end.size() && path.compare(path.size() - end.size(), end.size(), end) == 0) return true;
  return false;
}

// The lines of a file that are not blank, with their numbers, from 1. A byte order mark is left out.
inline std::vector<std::pair<std::string_view, size_t>> numbered_lines(std::string_view text) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  std::vector<std::pair<std::string_view, size_t>> lines;
  if (text.substr(0, kByteOrderMark.size()) == kByteOrderMark) text.remove_prefix(kByteOrderMark.size());
  for (size_t number = 1; !text.empty(); number++) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(" \t\r") != line.npos) lines.push_back({line, number});
  }
  return lines;
}

// The texts of examples, as stories of a training text (stories.hpp): what a vocabulary is trained on. Lines that are no
// examples are left out.
inline std::string texts_of_examples(const std::vector<std::string_view>& lines) {
  std::string texts;
  const auto add = [&](const std::string& text) { texts += text + "\n" + kStoryEnd + "\n"; };
  for (const std::string_view line : lines) {
    JsonDocument document;
    if (!document.parse("", std::string(line))) continue;
    for (const char* key : {"prompt", "completion"}) {
      add(document.root().find(key).string());
      for (const JsonValue& part : document.root().find(key).elements()) add(part.string());
    }
    for (const JsonValue& message : document.root().find("messages").elements()) add(message.find("content").string());
  }
  return texts;
}

// The parts of a template with a fixed day in place of today, which would make other tokens of the same text tomorrow.
inline ChatTemplate::Parts dated(ChatTemplate::Parts parts) {
  for (ChatTemplate::Part& part : parts)
    if (part.id == ChatTemplate::kDate) part = {ChatTemplate::kText, written_date(part.text, 1721995200), 0};
  return parts;
}

// An example as tokens, and the tokens that count.
struct Example {
  std::vector<int> ids;
  std::vector<bool> counts;
  size_t counted_bytes = 0;  // of the texts that count
};

// Turns lines of JSON into examples.
class ExampleReader {
 public:
  std::string error;
  size_t too_long = 0;    // examples that were left out, since they have more tokens than the context,
  size_t longest = 0;     // and a lower bound of the tokens of the longest of them
  size_t first_long = 0;  // the number of the first line of these

  // The tokenizer, with the template's tokens as control tokens, and the template outlive the object. chat: without a
  // template conversations are errors. context: tokens of the longest example. all: prompts count too.
  ExampleReader(const Tokenizer& tokenizer, const ChatTemplate& chat, int context, bool all)
      : tokenizer_(tokenizer), chat_(chat), context_(size_t(context)), all_(all) {}

  // Adds the example of a line to a text, unless it is too long. name: of the file, for messages. False with `error`
  // set, which names the line, if the line is no example.
  bool add(const std::string& name, std::string_view line, size_t number, TokenText& out) {
    const std::string place = name + ":" + std::to_string(number);
    JsonDocument document;
    Example example;
    const bool good =
        document.parse(place, std::string(line)) ? read(document.root(), example) : pocket::fail(error, document.error);
    if (!good) return name_line(place);
    if (too_many_) {
      if (too_long++ == 0) first_long = number;
      longest = std::max(longest, too_many_);
      return true;
    }
    if (std::find(example.counts.begin(), example.counts.end(), true) == example.counts.end())
      return pocket::fail(error, place + ": expected a completion with at least one token, found none");
    out.add_example(example.ids, example.counts, example.counted_bytes);
    return true;
  }

 private:
  // A line of its own is line 1 in messages of the reader: "NAME:LINE:1:COLUMN" becomes "NAME:LINE:COLUMN".
  bool name_line(const std::string& place) {
    if (error.rfind(place + ":1:", 0) == 0) error.erase(place.size(), 2);
    return false;
  }

  bool read(const JsonValue& root, Example& out) {
    too_many_ = 0;
    if (!root.is(JsonKind::object))
      return pocket::fail(error, root.where() + ": expected an object, found " + root.describe());
    for (const char* key : {"prompt", "completion", "messages"}) {
      size_t n = 0;
      for (const auto& [name, value] : root.members()) n += name == key;
      if (n > 1) return pocket::fail(error, root.where() + ": \"" + key + "\": expected once, found several times");
    }
    const bool conversation = root.find("messages").kind() != JsonKind::absent;
    if (conversation == (root.find("prompt").kind() != JsonKind::absent))
      return pocket::fail(error, root.where() + (conversation ? ": expected prompt or messages, found both"
                                                              : ": expected prompt and completion, or messages"));
    return conversation ? read_conversation(root, out) : read_completion(root, out);
  }

  bool read_completion(const JsonValue& root, Example& out) {
    std::vector<std::string> prompts, completions;
    if (!read_parts(root, "prompt", prompts) || !read_parts(root, "completion", completions)) return false;
    if (root.find("prompt").kind() != root.find("completion").kind() || prompts.size() != completions.size())
      return root.refuse("completion", "one for each prompt", error);
    std::string text;
    size_t prompt_bytes = 0;
    for (size_t i = 0; i < prompts.size(); i++) {
      if (completions[i].empty()) return root.refuse("completion", "a text that is not empty", error);
      text += prompts[i];
      const size_t before_completion = text.size();
      text += completions[i];
      if (surely_too_long(text)) return true;
      out.ids = ids_of(tokenizer_, text);
      out.counted_bytes += completions[i].size();
      prompt_bytes += prompts[i].size();
      out.counts.resize(std::min(out.counts.size(), out.ids.size()));
      mark(out, ids_of(tokenizer_, text.substr(0, before_completion)), out.counts.size());
      if (is_too_long(out)) return true;
    }
    if (tokenizer_.eos() >= 0) push(out, tokenizer_.eos(), true);
    return finish(out, prompt_bytes);
  }

  // Appends a member that is a string, or an array of at least one string.
  bool read_parts(const JsonValue& root, const char* key, std::vector<std::string>& out) {
    const JsonValue value = root.find(key);
    if (value.is(JsonKind::string)) {
      out.push_back(value.string());
      return true;
    }
    for (const JsonValue& part : value.elements()) {
      if (!part.is(JsonKind::string)) return root.refuse(key, "a string or strings", error);
      out.push_back(part.string());
    }
    return !out.empty() || root.refuse(key, "a string or strings", error);
  }

  // A conversation: its turns, one after the other, as they are processed when their reply is generated.
  bool read_conversation(const JsonValue& root, Example& out) {
    if (!chat_.known())
      return pocket::fail(error, root.where() +
                                     ": messages: the model has no chat template that could lay them out; "
                                     "use prompt and completion, or --init with a chat model");
    if (!root.need("messages", JsonKind::array, error)) return false;
    const Encode encode = [&](std::string_view text, bool bos) { return ids_of(tokenizer_, text, bos); };
    ChatTemplate::Parts parts;
    std::string system, message;
    size_t turns = 0, position = 0, prompt_bytes = 0;
    bool asked = false;
    for (const JsonValue& m : root.find("messages").elements()) {
      if (!m.need("role", JsonKind::string, error) || !m.need("content", JsonKind::string, error)) return false;
      const std::string role = m.find("role").string(), content = m.find("content").string();
      const bool expected = role == "system" ? position == 0 : role == (asked ? "assistant" : "user");
      if (!expected) return m.refuse("role", asked ? "\"assistant\"" : "\"user\"", error);
      if (role == "system" && !chat_.takes(content))
        return m.refuse("content", "no system prompt: the chat template takes none", error);
      position++;
      if (surely_too_long(content)) return true;
      if (role == "system") system = content;
      if (role == "user") message = content;
      asked = role == "user";
      if (role != "assistant") prompt_bytes += content.size();
      if (role != "assistant") continue;
      add_turn(parts, system, message, turns++ == 0, edited_reply(chat_, content), encode, out);
      if (is_too_long(out)) return true;
    }
    if (asked || turns == 0) return root.refuse("messages", "a reply of the assistant at the end", error);
    return finish(out, prompt_bytes);
  }

  // Continues a conversation by a turn. The tokens that the message ends with in ./run -m chat are the prompt; the
  // others, up to a token that ends the reply, count.
  void add_turn(ChatTemplate::Parts& parts, const std::string& system, const std::string& message, bool first,
                const std::string& reply, const Encode& encode, Example& out) {
    const ChatTemplate::Parts more = chat_parts(chat_, system, message, first, Reply::next);
    parts.insert(parts.end(), more.begin(), more.end());
    const std::vector<int> before = encode_parts(dated(parts), encode, true);
    parts.push_back({ChatTemplate::kText, reply});
    ChatTemplate::Parts whole = parts;
    const ChatTemplate::Parts& suffix = chat_.slot[ChatTemplate::kReplySuffix];
    const bool ends = !suffix.empty() && suffix[0].id >= 0;
    if (ends) whole.push_back(suffix[0]);
    Example longer;
    longer.ids = encode_parts(dated(whole), encode, true);
    const size_t known = out.ids.size();
    longer.counts.assign(out.counts.begin(), out.counts.end());
    longer.counts.resize(std::min(known, longer.ids.size()));
    longer.counted_bytes = out.counted_bytes + reply.size();
    mark(longer, before, longer.counts.size());
    if (!ends && !chat_.stop_ids.empty()) push(longer, chat_.stop_ids[0], true);
    out = std::move(longer);
  }

  // Marks the tokens from `from` on that are not those of the prompt as counting.
  void mark(Example& e, const std::vector<int>& prompt, size_t from) const {
    const size_t same =
        size_t(std::mismatch(prompt.begin(), prompt.end(), e.ids.begin(), e.ids.end()).first - prompt.begin());
    for (size_t i = from; i < e.ids.size(); i++) e.counts.push_back(i >= std::min(same, e.ids.size()));
  }
  static void push(Example& e, int id, bool counts) {
    e.ids.push_back(id);
    e.counts.push_back(counts);
  }

  // Found out without encoding, which takes much longer.
  bool surely_too_long(const std::string& text) {
    const size_t least = tokenizer_.least_ids(text);
    if (least > context_) too_many_ = least;
    return too_many_ > 0;
  }

  // Found out after each part, since all that is before a part is encoded again with it.
  bool is_too_long(const Example& e) {
    if (e.ids.size() > context_) too_many_ = e.ids.size();
    return too_many_ > 0;
  }

  bool finish(Example& e, size_t prompt_bytes) {
    if (all_) e.counts.assign(e.ids.size(), true);
    if (all_) e.counted_bytes += prompt_bytes;
    is_too_long(e);
    return true;
  }

  const Tokenizer& tokenizer_;
  const ChatTemplate& chat_;
  const size_t context_;
  const bool all_;
  size_t too_many_ = 0;  // tokens of an example that is too long; 0: it fits
};

}  // namespace pocket
