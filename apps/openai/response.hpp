// response.hpp: responses in the format of OpenAI's API. They depend on the request and the model only: `created` is 0,
// and ids are the caller's.
#pragma once

#include "completion.hpp"

namespace pocket::openai {

using OrderedJson = nlohmann::ordered_json;  // keeps the order of the fields

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

// What a response says of its request and model.
struct ResponseInfo {
  std::string id;           // unique among responses, without prefix
  std::string model;        // name of the model
  std::string fingerprint;  // identifies the model file and the settings that change its replies
  size_t prompt_tokens = 0;
};

// ---- Log probabilities ----

inline OrderedJson token_json(const Tokenizer& tokenizer, int id, double logprob) {
  const std::string bytes = token_bytes(tokenizer, id);
  OrderedJson numbers = OrderedJson::array();
  for (const char c : bytes) numbers.push_back(uint8_t(c));
  return {{"token", bytes}, {"logprob", logprob}, {"bytes", std::move(numbers)}};
}

// For a chat: a list of tokens.
inline OrderedJson chat_logprobs(const Completion& c) {
  if (c.request().top_logprobs < 0) return nullptr;
  OrderedJson content = OrderedJson::array();
  for (const TokenLogprob& t : c.logprobs()) {
    OrderedJson token = token_json(c.tokenizer(), t.id, t.logprob), top = OrderedJson::array();
    for (const auto& [id, logprob] : t.top) top.push_back(token_json(c.tokenizer(), id, logprob));
    token["top_logprobs"] = std::move(top);
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

// For a text: a list per field. An offset is the sum of the tokens before, in bytes.
inline OrderedJson text_logprobs(const Completion& c) {
  if (c.request().top_logprobs < 0) return nullptr;
  OrderedJson offsets = OrderedJson::array(), logprobs = offsets, tokens = offsets, tops = offsets;
  size_t offset = 0;
  for (const TokenLogprob& t : c.logprobs()) {
    const std::string bytes = token_bytes(c.tokenizer(), t.id);
    OrderedJson top = OrderedJson::object();
    for (const auto& [id, logprob] : t.top) top[token_bytes(c.tokenizer(), id)] = logprob;
    offsets.push_back(offset);
    logprobs.push_back(t.logprob);
    tokens.push_back(bytes);
    tops.push_back(std::move(top));
    offset += bytes.size();
  }
  return {{"text_offset", std::move(offsets)},
          {"token_logprobs", std::move(logprobs)},
          {"tokens", std::move(tokens)},
          {"top_logprobs", std::move(tops)}};
}

// ---- Bodies ----

// The body of a response to a finished request.
inline OrderedJson response_body(const ResponseInfo& info, const Completion& c) {
  const bool chat = c.request().endpoint == Endpoint::chat;
  OrderedJson choice;
  if (chat)
    choice = {{"index", 0},
              {"message", {{"role", "assistant"}, {"content", c.text()}, {"refusal", nullptr}}},
              {"logprobs", chat_logprobs(c)},
              {"finish_reason", c.finish_reason()}};
  else
    choice = {{"text", c.text()}, {"index", 0}, {"logprobs", text_logprobs(c)}, {"finish_reason", c.finish_reason()}};
  OrderedJson choices = OrderedJson::array();
  choices.push_back(std::move(choice));
  return {{"id", (chat ? "chatcmpl-" : "cmpl-") + info.id},
          {"object", chat ? "chat.completion" : "text_completion"},
          {"created", 0},
          {"model", info.model},
          {"choices", std::move(choices)},
          {"usage",
           {{"prompt_tokens", info.prompt_tokens},
            {"completion_tokens", c.tokens()},
            {"total_tokens", info.prompt_tokens + size_t(c.tokens())}}},
          {"system_fingerprint", info.fingerprint}};
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
