// tools.hpp: functions of a client that a model may call: how their definitions, calls and results are written in a
// conversation, and the calls in a reply.
//
// There are two formats, as the published chat templates have them. That of Hermes, which Qwen 2.5 and Qwen 3 were
// trained on:
//
//     <|im_start|>system
//     SYSTEM PROMPT
//
//     # Tools ... <tools>
//     {"type": "function", "function": {"name": "weather", "description": ..., "parameters": JSON SCHEMA}}
//     </tools> ...<|im_end|>
//     <|im_start|>assistant
//     <tool_call>
//     {"name": "weather", "arguments": {"city": "Oslo"}}
//     </tool_call><|im_end|>
//     <|im_start|>user
//     <tool_response>
//     -3 degrees
//     </tool_response><|im_end|>
//
// And that of Llama 3.1 and 3.2, with one call in a reply, which has no text then:
//
//     <|start_header_id|>system<|end_header_id|>
//
//     Environment: ipython
//     Cutting Knowledge Date: ...<|eot_id|><|start_header_id|>user<|end_header_id|>
//
//     Given the following functions, ...
//     {DEFINITION, indented}
//
//     MESSAGE<|eot_id|><|start_header_id|>assistant<|end_header_id|>
//
//     {"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>
//
//     "-3 degrees"<|eot_id|>
//
// All of it is text of the system prompt, of a reply and of a message, so that a model file needs no more than its
// template of these.
#pragma once

#include "../cli/conversation.hpp"
#include "json.hpp"

namespace pocket::openai {

// A function that a model may call.
struct Tool {
  std::string name;
  std::string definition;  // JSON, as it is in the prompt
  std::string parameters;  // their JSON Schema
};

// A call in a reply. arguments: a JSON object.
struct ToolCall {
  std::string id, name, arguments;
};

inline constexpr std::string_view kCallBegin = "<tool_call>", kCallEnd = "</tool_call>";

// The format that a model was trained on.
enum class ToolFormat { none, hermes, llama };

// The text of Llama's system prompt before which it says that there are tools.
inline constexpr std::string_view kLlamaDates = "Cutting Knowledge Date:";

// Tells the format by the chat template: Hermes's is ChatML, with <tool_call> as a token of the vocabulary; that of
// Llama has headers, and in the system prompt the date of its knowledge.
inline ToolFormat tool_format(const Tokenizer& tokenizer, const ChatTemplate& chat) {
  const ChatTemplate::Parts& prefix = chat.slot[ChatTemplate::kSystemPrefix];
  const auto begins = [&](const ChatTemplate::Parts& parts, std::string_view token) {
    return !parts.empty() && parts[0].id >= 0 && tokenizer.piece(parts[0].id) == token;
  };
  const int call = tokenizer.find(std::string(kCallBegin));
  if (prefix.size() == 2 && begins(prefix, "<|im_start|>") && prefix[1].text == "system\n" && call >= 0 &&
      tokenizer.is_marker(call))
    return ToolFormat::hermes;
  const auto has_dates = [](const ChatTemplate::Part& part) {
    return part.text.find(kLlamaDates) != std::string::npos;
  };
  const bool dates = std::any_of(prefix.begin(), prefix.end(), has_dates);
  return dates && begins(chat.slot[ChatTemplate::kUserPrefix], "<|start_header_id|>") ? ToolFormat::llama
                                                                                      : ToolFormat::none;
}

// Calls that a reply may have.
inline size_t most_calls(ToolFormat format) { return format == ToolFormat::llama ? 1 : SIZE_MAX; }

// The system prompt that a template writes if there is no other; "": none.
inline std::string default_system_prompt(const ChatTemplate& chat) {
  const auto written = [](const ChatTemplate::Parts& parts) {
    std::string text;
    for (const ChatTemplate::Part& part : parts)
      text += part.id == ChatTemplate::kText ? part.text : "\1" + std::to_string(part.id) + part.text + "\2";
    return text;
  };
  const std::string all = written(chat.slot[ChatTemplate::kOpening]),
                    before = written(chat.slot[ChatTemplate::kSystemPrefix]),
                    after = written(chat.slot[ChatTemplate::kSystemSuffix]) +
                            written(chat.slot[ChatTemplate::kFirstUserPrefix]);
  if (all.size() <= before.size() + after.size() || all.compare(0, before.size(), before) != 0 ||
      all.compare(all.size() - after.size(), after.size(), after) != 0)
    return "";
  const std::string text = all.substr(before.size(), all.size() - before.size() - after.size());
  return text.find_first_of("\1\2") == text.npos ? text : "";
}

// Number of white-space characters at the beginning of a text.
inline size_t leading_space(std::string_view text) { return std::min(text.find_first_not_of(" \t\r\n"), text.size()); }

// ---- Writing ----

// JSON with a space after each comma and colon, as Python writes it, and as models saw it in training.
inline std::string spaced_json(const OrderedJson& value) {
  if (!value.is_structured()) return value.dump();
  std::string out;
  for (const auto& [key, member] : value.items()) {
    if (!out.empty()) out += ", ";
    if (value.is_object()) out += OrderedJson(key).dump() + ": ";
    out += spaced_json(member);
  }
  return value.is_object() ? "{" + out + "}" : "[" + out + "]";
}

// The definition of a tool, as it is in the prompt.
inline std::string written_definition(ToolFormat format, const OrderedJson& tool) {
  return format == ToolFormat::llama ? tool.dump(4) : spaced_json(tool);
}

// A conversation in which the model reads of tools.
struct ToolConversation {
  ChatTemplate chat;
  std::string system;
  std::vector<cli::Turn> turns;  // at least one
};

// Hermes: in the system prompt.
inline void add_hermes_tools(const std::vector<Tool>& tools, ToolConversation& c) {
  if (c.system.empty()) c.system = default_system_prompt(c.chat);
  c.system += c.system.empty() ? "" : "\n\n";
  c.system +=
      "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
      "You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
  for (const Tool& tool : tools) c.system += "\n" + tool.definition;
  c.system +=
      "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
      "<tool_call></tool_call> XML tags:\n<tool_call>\n"
      "{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";
}

// Llama: in the first message; the system prompt says in its first line that there are tools.
inline void add_llama_tools(const std::vector<Tool>& tools, ToolConversation& c) {
  for (const ChatTemplate::Slot slot : {ChatTemplate::kSystemPrefix, ChatTemplate::kOpening})
    for (ChatTemplate::Part& part : c.chat.slot[slot])
      if (const size_t dates = part.text.find(kLlamaDates); dates != std::string::npos)
        part.text.insert(dates, "Environment: ipython\n");
  std::string text =
      "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
      "best answers the given prompt.\n\nRespond in the format {\"name\": function name, \"parameters\": dictionary of "
      "argument name and its value}.Do not use variables.\n\n";
  for (const Tool& tool : tools) text += tool.definition + "\n\n";
  std::string& message = c.turns[0].message;
  message = text + message.substr(leading_space(message));
}

inline void add_tools(ToolFormat format, const std::vector<Tool>& tools, ToolConversation& c) {
  if (format == ToolFormat::hermes) add_hermes_tools(tools, c);
  if (format == ToolFormat::llama) add_llama_tools(tools, c);
}

// The template of a turn whose message is the results of calls: to Llama, they come from "ipython".
inline ChatTemplate results_template(ToolFormat format, ChatTemplate chat) {
  if (format == ToolFormat::llama)
    for (ChatTemplate::Part& part : chat.slot[ChatTemplate::kUserPrefix])
      if (part.text == "user") part.text = "ipython";
  return chat;
}

// What a call has before and after its arguments.
inline std::string before_arguments(ToolFormat format, const std::string& name) {
  if (format == ToolFormat::llama) return "{\"name\": \"" + name + "\", \"parameters\": ";
  return std::string(kCallBegin) + "\n{\"name\": \"" + name + "\", \"arguments\": ";
}
inline std::string after_arguments(ToolFormat format) {
  return format == ToolFormat::llama ? "}" : "}\n" + std::string(kCallEnd);
}

// A reply with a text, or "", and calls; to Llama, a call is the whole reply. arguments: an object.
inline std::string reply_with_call(ToolFormat format, const std::string& reply, const std::string& name,
                                   const OrderedJson& arguments) {
  const std::string call = before_arguments(format, name) + spaced_json(arguments) + after_arguments(format);
  return format == ToolFormat::llama || reply.empty() ? call : reply + "\n" + call;
}
// A message with the results of calls.
inline std::string message_with_result(ToolFormat format, const std::string& message, const std::string& result) {
  if (format == ToolFormat::llama) return Json(result).dump();
  return message + (message.empty() ? "" : "\n") + "<tool_response>\n" + result + "\n</tool_response>";
}

// ---- Reading ----

// Separates the calls in a reply from its text, while it is generated. A call that names no tool, or has no JSON object
// of arguments, remains text.
class ToolCallReader {
 public:
  // The tools must outlive the reader.
  ToolCallReader(ToolFormat format, const std::vector<Tool>& tools) : format_(format), tools_(tools) {}

  // seed: of the ids of the calls, which depend on it and on the calls alone.
  void set_seed(uint64_t seed) { seed_ = seed; }

  // Appends a part of the reply. Returns the text that is certain now.
  std::string push(std::string_view more) {
    held_ += more;
    std::string text;
    while (in_call_ ? read_call(text) : read_text(text)) {
    }
    return text;
  }
  // The rest of the text, at the end of a reply. A call that lacks nothing but </tool_call> counts.
  std::string finish() {
    if (!in_call_) return held_.substr(after_call_ ? leading_space(held_) : 0);
    return add_call(held_) ? "" : space_ + std::string(begin()) + held_;
  }

  const std::vector<ToolCall>& calls() const { return calls_; }

 private:
  bool llama() const { return format_ == ToolFormat::llama; }
  // What marks a call: of Llama nothing does, but a reply that begins with { is one.
  std::string_view begin() const { return llama() ? "" : kCallBegin; }
  std::string_view end() const { return llama() ? "" : kCallEnd; }

  // Takes the text before the next call, without the white space around calls. False: more is needed.
  bool read_text(std::string& text) {
    if (after_call_) held_.erase(0, leading_space(held_));
    const size_t call = find_call();
    size_t end = call == held_.npos ? held_.size() - possible_begin() : call;
    while (end > 0 && (call != held_.npos || may_call()) && std::isspace(uint8_t(held_[end - 1]))) end--;
    if (end > 0) {
      text += (after_call_ && has_text_ ? "\n" : "") + held_.substr(0, end);
      has_text_ = true;
      after_call_ = false;
    }
    if (call != held_.npos) {
      space_ = held_.substr(end, call - end);
      in_call_ = true;
      end = call + begin().size();
    }
    held_.erase(0, end);
    return in_call_;
  }

  // Whether a call may follow.
  bool may_call() const { return !llama() || (!has_text_ && calls_.empty()); }

  // Where the next call begins in the text; npos: nowhere yet.
  size_t find_call() const {
    if (!llama()) return held_.find(kCallBegin);
    const size_t first = leading_space(held_);
    return may_call() && first < held_.size() && held_[first] == '{' ? first : held_.npos;
  }

  // Takes the rest of a call.
  bool read_call(std::string& text) {
    const size_t length = llama() ? object_length() : held_.find(kCallEnd);
    if (length == held_.npos) return false;
    const std::string call = held_.substr(0, length);
    held_.erase(0, length + end().size());
    in_call_ = false;
    after_call_ = add_call(call);
    if (!after_call_) text += space_ + std::string(begin()) + call + std::string(end());
    has_text_ = has_text_ || !after_call_;
    return true;
  }

  // Length of the JSON object that the text begins with; npos: it has no end yet. Reads each character once.
  size_t object_length() {
    while (read_ < held_.size()) {
      const char c = held_[read_++];
      if (in_string_) {
        in_string_ = c != '"' || escaped_;
        escaped_ = c == '\\' && !escaped_;
      } else if (c == '"') {
        in_string_ = true;
      } else if (c == '{') {
        depth_++;
      } else if (c == '}' && --depth_ == 0) {
        return read_;
      }
    }
    return held_.npos;
  }

  // Length of the longest end of the text that may be the beginning of a call.
  size_t possible_begin() const {
    if (llama()) return 0;
    size_t n = std::min(held_.size(), kCallBegin.size() - 1);
    while (held_.compare(held_.size() - n, n, kCallBegin.substr(0, n)) != 0) n--;
    return n;
  }

  // Adds the call in a text, if it is one.
  bool add_call(std::string_view text) try {
    const char* const key = llama() ? "parameters" : "arguments";
    const Json call = parse_json(text);
    if (!call.is_object() || !call.contains("name") || !call.contains(key)) return false;
    const auto is_called = [&](const Tool& tool) { return call["name"] == tool.name; };
    if (std::none_of(tools_.begin(), tools_.end(), is_called)) return false;
    std::string arguments(member_text(text, key));
    if (call[key].is_string()) arguments = call[key].get<std::string>();  // some write JSON in JSON
    if (!is_json_object(arguments)) return false;
    const uint64_t parts[] = {seed_, calls_.size(), hash_bytes(text.data(), text.size())};
    char id[24];
    std::snprintf(id, sizeof id, "call_%016llx", static_cast<unsigned long long>(hash_bytes(parts, sizeof parts)));
    calls_.push_back({id, call["name"].get<std::string>(), std::move(arguments)});
    return true;
  } catch (const Refusal&) {
    return false;
  }

  const ToolFormat format_;
  const std::vector<Tool>& tools_;
  uint64_t seed_ = 0;
  std::string held_;   // not taken yet
  std::string space_;  // before the call
  bool in_call_ = false, after_call_ = false, has_text_ = false;
  size_t read_ = 0, depth_ = 0;  // of a JSON object: characters, open braces
  bool in_string_ = false, escaped_ = false;
  std::vector<ToolCall> calls_;
};

}  // namespace pocket::openai
