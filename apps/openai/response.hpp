// response.hpp: responses in the format of OpenAI's API, whole and as a stream of events. They depend on the request,
// the model and the caller's ResponseInfo only.
#pragma once

#include <optional>

#include "../../export/json_reader.hpp"
#include "completion.hpp"

namespace pocket::openai {

// JSON as one line. Characters that act on a terminal, and those that some programs take for the end of a line, are
// written as \uXXXX.
inline std::string to_line(const OrderedJson& value) {
  const std::string text = value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  std::string line;
  line.reserve(text.size());
  for (std::string_view rest = text; !rest.empty();) {
    const auto c = tokenizer_detail::read_utf8(rest);
    if (acts_on_terminal(c.code)) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", unsigned(c.code & 0xFFFF));
      line += escaped;
    } else {
      line.append(rest.substr(0, c.length));
    }
    rest.remove_prefix(c.length);
  }
  return line;
}

// 16 hexadecimal digits.
inline std::string hex(uint64_t id) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(id));
  return text;
}

// What a response says of its request and model.
struct ResponseInfo {
  std::string id;           // unique among responses, without prefix
  std::string model;        // name of the model
  std::string fingerprint;  // identifies the model file and the settings that change its replies
  size_t prompt_tokens = 0;
  int64_t created = 0;                // Unix time
  std::optional<uint64_t> seed = {};  // that was chosen for the request; none: it is not reported
};

// ---- Log probabilities ----

inline OrderedJson token_json(const Tokenizer& tokenizer, int id, double logprob) {
  const std::string bytes = token_bytes(tokenizer, id);
  OrderedJson numbers = OrderedJson::array();
  for (const char c : bytes) numbers.push_back(uint8_t(c));
  return {{"token", bytes}, {"logprob", logprob}, {"bytes", std::move(numbers)}};
}

// Log probabilities of some tokens of a reply. For a chat: a list of tokens.
inline OrderedJson chat_logprobs(const Tokenizer& tokenizer, const TokenLogprob* tokens, size_t n) {
  OrderedJson content = OrderedJson::array();
  for (const TokenLogprob* t = tokens; t < tokens + n; t++) {
    OrderedJson token = token_json(tokenizer, t->id, t->logprob), top = OrderedJson::array();
    for (const auto& [id, logprob] : t->top) top.push_back(token_json(tokenizer, id, logprob));
    token["top_logprobs"] = std::move(top);
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

// A token by its bytes, as in OpenAI's API: bytes:\xe2\x80.
inline std::string name_of_bytes(const std::string& bytes) {
  std::string name = "bytes:";
  char escape[8];
  for (const char c : bytes) {
    std::snprintf(escape, sizeof escape, "\\x%02x", unsigned(uint8_t(c)));
    name += escape;
  }
  return name;
}
// A token by its text, or if that is not whole characters, by its bytes.
inline std::string token_name(const std::string& bytes) {
  for (size_t at = 0; at < bytes.size();)
    if (decode_utf8(bytes, at) < 0) return name_of_bytes(bytes);
  return bytes;
}

// The log probabilities of the most likely tokens, by name. Of two tokens with the same text, such as the byte A and the
// letter A, the second one is named by its bytes.
inline OrderedJson top_by_name(const Tokenizer& tokenizer, const TokenLogprob& t) {
  OrderedJson top = OrderedJson::object();
  if (std::isnan(t.logprob)) return nullptr;
  for (const auto& [id, logprob] : t.top) {
    const std::string bytes = token_bytes(tokenizer, id), name = token_name(bytes);
    top.emplace(top.contains(name) ? name_of_bytes(bytes) : name, logprob);
  }
  return top;
}

// For a text: a list per field.
inline OrderedJson text_logprobs(const Tokenizer& tokenizer, const TokenLogprob* some, size_t n) {
  OrderedJson offsets = OrderedJson::array(), logprobs = offsets, tokens = offsets, tops = offsets;
  for (const TokenLogprob* t = some; t < some + n; t++) {
    offsets.push_back(t->offset);
    logprobs.push_back(t->logprob);  // NaN: null
    tokens.push_back(token_name(token_bytes(tokenizer, t->id)));
    tops.push_back(top_by_name(tokenizer, *t));
  }
  return {{"text_offset", std::move(offsets)},
          {"token_logprobs", std::move(logprobs)},
          {"tokens", std::move(tokens)},
          {"top_logprobs", std::move(tops)}};
}

inline OrderedJson logprobs_json(const Request& request, const Tokenizer& tokenizer,
                                 const std::vector<TokenLogprob>& tokens) {
  if (request.top_logprobs < 0) return nullptr;
  const bool chat = request.endpoint == Endpoint::chat;
  return chat ? chat_logprobs(tokenizer, tokens.data(), tokens.size())
              : text_logprobs(tokenizer, tokens.data(), tokens.size());
}

// ---- Bodies ----

// Calls of a reply, from one on. in_stream: with their indices.
inline OrderedJson calls_json(const std::vector<ToolCall>& calls, size_t first, bool in_stream) {
  OrderedJson list = OrderedJson::array();
  for (size_t i = 0; i < calls.size(); i++) {
    OrderedJson call = OrderedJson::object();
    if (in_stream) call["index"] = first + i;
    call["id"] = calls[i].id;
    call["type"] = "function";
    call["function"] = {{"name", calls[i].name}, {"arguments", calls[i].arguments}};
    list.push_back(std::move(call));
  }
  return list;
}

inline OrderedJson choice_json(const Completion& c, size_t index) {
  OrderedJson logprobs = logprobs_json(c.request(), c.tokenizer(), c.logprobs());
  if (c.request().endpoint == Endpoint::chat) {
    OrderedJson message = {{"role", "assistant"}, {"content", c.text()}, {"refusal", nullptr}};
    if (!c.calls().empty()) {
      if (c.text().empty()) message["content"] = nullptr;
      message["tool_calls"] = calls_json(c.calls(), 0, false);
    }
    return {{"index", index},
            {"message", std::move(message)},
            {"logprobs", std::move(logprobs)},
            {"finish_reason", c.finish_reason()}};
  }
  return {
      {"text", c.text()}, {"index", index}, {"logprobs", std::move(logprobs)}, {"finish_reason", c.finish_reason()}};
}

inline OrderedJson usage_json(size_t prompt_tokens, size_t completion_tokens) {
  return {{"prompt_tokens", prompt_tokens},
          {"completion_tokens", completion_tokens},
          {"total_tokens", prompt_tokens + completion_tokens}};
}

// The fields that whole responses and the events of a stream have in common, around their choices.
inline OrderedJson envelope(const ResponseInfo& info, Endpoint endpoint, bool stream, OrderedJson choices) {
  const bool chat = endpoint == Endpoint::chat;
  const char* object = !chat ? "text_completion" : stream ? "chat.completion.chunk" : "chat.completion";
  return {{"id", (chat ? "chatcmpl-" : "cmpl-") + info.id},
          {"object", object},
          {"created", info.created},
          {"model", info.model},
          {"choices", std::move(choices)}};
}
inline void add_end(OrderedJson& body, const ResponseInfo& info) {
  body["system_fingerprint"] = info.fingerprint;
  if (info.seed) body["seed"] = *info.seed;
}

// The body of a response to a finished request, which has a completion per choice.
inline OrderedJson response_body(const ResponseInfo& info, const std::vector<const Completion*>& completions) {
  OrderedJson choices = OrderedJson::array();
  size_t tokens = 0;
  for (const Completion* c : completions) {
    choices.push_back(choice_json(*c, choices.size()));
    tokens += size_t(c->tokens());
  }
  OrderedJson body = envelope(info, completions[0]->request().endpoint, false, std::move(choices));
  body["usage"] = usage_json(info.prompt_tokens, tokens);
  add_end(body, info);
  return body;
}

// A part of a choice, in a stream.
struct Delta {
  size_t choice = 0;
  bool first = false;  // the role, in a chat
  std::string text;
  std::vector<TokenLogprob> logprobs;
  std::vector<ToolCall> calls = {};
  size_t first_call = 0;                // its index in the choice
  const char* finish_reason = nullptr;  // null: more follows
};

// The body of an event with a part of a choice.
inline OrderedJson delta_body(const ResponseInfo& info, const Request& request, const Tokenizer& tokenizer,
                              const Delta& d) {
  OrderedJson choice, logprobs = nullptr, finish_reason = nullptr;
  if (!d.logprobs.empty()) logprobs = logprobs_json(request, tokenizer, d.logprobs);
  if (d.finish_reason) finish_reason = d.finish_reason;
  if (request.endpoint == Endpoint::chat) {
    OrderedJson delta = OrderedJson::object();
    if (d.first) delta["role"] = "assistant";
    if (d.first || !d.text.empty() || !d.logprobs.empty()) delta["content"] = d.text;
    if (!d.calls.empty()) delta["tool_calls"] = calls_json(d.calls, d.first_call, true);
    if (!d.calls.empty() && d.text.empty()) delta["content"] = nullptr;
    choice = {{"index", d.choice}, {"delta", std::move(delta)}};
  } else {
    choice = {{"text", d.text}, {"index", d.choice}};
  }
  choice["logprobs"] = std::move(logprobs);
  choice["finish_reason"] = std::move(finish_reason);
  OrderedJson choices = OrderedJson::array();
  choices.push_back(std::move(choice));
  OrderedJson body = envelope(info, request.endpoint, true, std::move(choices));
  if (request.include_usage) body["usage"] = nullptr;
  add_end(body, info);
  return body;
}

// The body of the event after the last part, if the request wants the number of tokens.
inline OrderedJson usage_body(const ResponseInfo& info, const Request& request, size_t completion_tokens) {
  OrderedJson body = envelope(info, request.endpoint, true, OrderedJson::array());
  body["usage"] = usage_json(info.prompt_tokens, completion_tokens);
  add_end(body, info);
  return body;
}

// The body of a response to a request that was refused.
inline OrderedJson error_body(const Refusal& r) {
  OrderedJson param = nullptr;
  if (!r.param.empty()) param = r.param;
  return {{"error",
           {{"message", r.message},
            {"type", r.status < 500 ? "invalid_request_error" : "server_error"},
            {"param", param},
            {"code", r.code}}}};
}

}  // namespace pocket::openai
