// tools.hpp: functions of a client that a model may call: how their definitions, calls and results are written in a
// conversation, and the calls in a reply.
//
// The format is the one that Qwen 2.5 and Qwen 3 were trained on (and Hermes before them), as their published chat
// templates have it:
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
// All of it is text of the system prompt, of a reply and of a message, so that a model file needs no more than its
// template of these.
#pragma once

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

// Whether a model was trained on this format: its conversations are ChatML, and <tool_call> is a token of its vocabulary.
inline bool knows_tools(const Tokenizer& tokenizer, const ChatTemplate& chat) {
  const ChatTemplate::Parts& prefix = chat.slot[ChatTemplate::kSystemPrefix];
  const int call = tokenizer.find(std::string(kCallBegin));
  return prefix.size() == 2 && prefix[0].id >= 0 && tokenizer.piece(prefix[0].id) == "<|im_start|>" &&
         prefix[1].text == "system\n" && call >= 0 && tokenizer.is_marker(call);
}

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

// A system prompt with the definitions of tools after it.
inline std::string with_tools(const std::string& system, const std::vector<Tool>& tools) {
  std::string text = system + (system.empty() ? "" : "\n\n") +
                     "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
                     "You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
  for (const Tool& tool : tools) text += "\n" + tool.definition;
  return text +
         "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
         "<tool_call></tool_call> XML tags:\n<tool_call>\n"
         "{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";
}

// What a call has before and after its arguments.
inline std::string before_arguments(const std::string& name) {
  return std::string(kCallBegin) + "\n{\"name\": \"" + name + "\", \"arguments\": ";
}
inline std::string after_arguments() { return "}\n" + std::string(kCallEnd); }

// A reply with a text, or "", and calls. arguments: an object.
inline std::string reply_with_call(const std::string& reply, const std::string& name, const OrderedJson& arguments) {
  return reply + (reply.empty() ? "" : "\n") + before_arguments(name) + spaced_json(arguments) + after_arguments();
}
// A message with the results of calls.
inline std::string message_with_result(const std::string& message, const std::string& result) {
  return message + (message.empty() ? "" : "\n") + "<tool_response>\n" + result + "\n</tool_response>";
}

// ---- Reading ----

// Separates the calls in a reply from its text, while it is generated. A call that names no tool, or has no JSON object
// of arguments, remains text.
class ToolCallReader {
 public:
  // The tools must outlive the reader.
  explicit ToolCallReader(const std::vector<Tool>& tools) : tools_(tools) {}

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
    if (!in_call_) return held_.substr(after_call_ ? blank(held_) : 0);
    return add_call(held_) ? "" : space_ + std::string(kCallBegin) + held_;
  }

  const std::vector<ToolCall>& calls() const { return calls_; }

 private:
  static size_t blank(std::string_view text) { return std::min(text.find_first_not_of(" \t\r\n"), text.size()); }

  // Takes the text before the next call, without the white space around calls. False: more is needed.
  bool read_text(std::string& text) {
    if (after_call_) held_.erase(0, blank(held_));
    const size_t call = held_.find(kCallBegin);
    size_t end = call == held_.npos ? held_.size() - possible_begin() : call;
    while (end > 0 && std::isspace(uint8_t(held_[end - 1]))) end--;
    if (end > 0) {
      text += (after_call_ && has_text_ ? "\n" : "") + held_.substr(0, end);
      has_text_ = true;
      after_call_ = false;
    }
    if (call != held_.npos) {
      space_ = held_.substr(end, call - end);
      in_call_ = true;
      end = call + kCallBegin.size();
    }
    held_.erase(0, end);
    return in_call_;
  }

  // Takes the rest of a call.
  bool read_call(std::string& text) {
    const size_t end = held_.find(kCallEnd);
    if (end == held_.npos) return false;
    const std::string call = held_.substr(0, end);
    held_.erase(0, end + kCallEnd.size());
    in_call_ = false;
    after_call_ = add_call(call);
    if (!after_call_) text += space_ + std::string(kCallBegin) + call + std::string(kCallEnd);
    has_text_ = has_text_ || !after_call_;
    return true;
  }

  // Length of the longest end of the text that may be the beginning of a call.
  size_t possible_begin() const {
    size_t n = std::min(held_.size(), kCallBegin.size() - 1);
    while (held_.compare(held_.size() - n, n, kCallBegin.substr(0, n)) != 0) n--;
    return n;
  }

  // Adds the call in a text, if it is one.
  bool add_call(std::string_view text) try {
    const Json call = parse_json(text);
    if (!call.is_object() || !call.contains("name") || !call.contains("arguments")) return false;
    const auto is_called = [&](const Tool& tool) { return call["name"] == tool.name; };
    if (std::none_of(tools_.begin(), tools_.end(), is_called)) return false;
    std::string arguments(member_text(text, "arguments"));
    if (call["arguments"].is_string()) arguments = call["arguments"].get<std::string>();  // some write JSON in JSON
    if (!is_json_object(arguments)) return false;
    const uint64_t parts[] = {seed_, calls_.size(), hash_bytes(text.data(), text.size())};
    char id[24];
    std::snprintf(id, sizeof id, "call_%016llx", static_cast<unsigned long long>(hash_bytes(parts, sizeof parts)));
    calls_.push_back({id, call["name"].get<std::string>(), std::move(arguments)});
    return true;
  } catch (const Refusal&) {
    return false;
  }

  const std::vector<Tool>& tools_;
  uint64_t seed_ = 0;
  std::string held_;   // not taken yet
  std::string space_;  // before the call
  bool in_call_ = false, after_call_ = false, has_text_ = false;
  std::vector<ToolCall> calls_;
};

}  // namespace pocket::openai
