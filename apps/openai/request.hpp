// request.hpp: requests in the format of OpenAI's API, /v1/chat/completions and /v1/completions: what is supported, and
// the error for what is not.
#pragma once

#include <nlohmann/json.hpp>

#include "../cli/conversation.hpp"
#include "../cli/llama.hpp"

namespace pocket::openai {

using Json = nlohmann::json;

// Why a request is refused, thrown. The message starts with the name of the parameter, if there is one.
struct Refusal {
  std::string message;
  std::string param = "";                      // "": none, or the whole request
  std::string code = "invalid_request_error";  // for programs
  int status = 400;                            // as in HTTP
};

enum class Endpoint { chat, text };  // /v1/chat/completions, /v1/completions

// What the text of a reply is: any text, a JSON object, JSON of a schema, a text of a grammar in GBNF.
enum class Format { text, json_object, schema, grammar };

// Who reads a request. The server knows all parameters below, and ignores unknown ones as OpenAI does. In a file of
// requests (run-batch), where a mistake costs more, they are refused, and so is what has no meaning there.
enum class Service { batch, server };

// A valid request.
struct Request {
  Endpoint endpoint = Endpoint::chat;
  std::string system;            // chat: the system prompt; "": none
  std::vector<cli::Turn> turns;  // chat: the last one has no reply
  std::string prompt;            // text
  std::vector<int> prompt_ids;   // text: a prompt in token ids, in place of a text
  int max_tokens = -1;           // -1: as many as the context has room for
  SamplerOptions sampling;
  bool has_seed = false;
  float frequency_penalty = 0, presence_penalty = 0;
  std::vector<std::pair<int, float>> logit_bias;  // token id, what is added to its logit
  std::vector<std::string> stop;                  // texts that end the reply
  int top_logprobs = -1;                          // number of most likely tokens that are reported; -1: no logprobs
  int choices = 1;                                // replies to the request; the seed of choice i is the seed plus i
  bool echo = false;                              // text: the reply begins with the prompt, also its logprobs
  bool stream = false, include_usage = false;     // include_usage: a stream ends with the number of tokens
  Format format = Format::text;
  std::string format_text;   // the schema or the grammar
  std::string format_param;  // the name of its parameter
};

// ---- JSON ----

inline std::string type_of(const Json& value) {
  if (value.is_number_integer()) return "an integer";
  if (value.is_number()) return "a number";
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "a boolean";
  if (value.is_string()) return "a string";
  return value.is_array() ? "an array" : "an object";
}

[[noreturn]] inline void refuse(const std::string& param, const std::string& expected, const std::string& found) {
  throw Refusal{param + ": expected " + expected + ", found " + found, param};
}

// Parses a JSON text. Throws Refusal. Deeply nested values, which take 80 times the memory of their text, are refused.
inline Json parse_json(std::string_view text) {
  constexpr int kDeepest = 64;
  const auto check = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kDeepest)
      throw Refusal{"expected JSON nested at most 64 deep, found deeper nesting", "", "invalid_json"};
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const Json::parse_error& e) {
    throw Refusal{"expected JSON, found an error at byte " + std::to_string(e.byte), "", "invalid_json"};
  } catch (const Json::exception&) {  // a number that no double holds
    throw Refusal{"expected JSON, found a number out of range", "", "invalid_json"};
  }
}

// The value of the last member of a JSON object with this name, as it is written; "": there is none. text: valid JSON.
inline std::string_view member_text(std::string_view text, std::string_view name) {
  std::string_view found;
  size_t at = 0, key = 0, key_end = 0, value = 0;  // value: where the value of a member begins; 0: in a name
  int depth = 0;
  for (; at < text.size(); at++) {
    const char c = text[at];
    if (c == '"') {
      const size_t begin = ++at;
      for (; at < text.size() && text[at] != '"'; at++) at += text[at] == '\\';
      if (depth == 1 && !value) {
        key = begin;
        key_end = at;
      }
    } else if (depth == 1 && c == ':' && !value) {
      value = at + 1;
    } else if (depth == 1 && (c == ',' || c == '}')) {
      if (value && text.substr(key, key_end - key) == name) found = text.substr(value, at - value);
      value = 0;
    }
    if (c == '{' || c == '[') depth++;
    if (c == '}' || c == ']') depth--;
  }
  const size_t first = found.find_first_not_of(" \t\r\n"), last = found.find_last_not_of(" \t\r\n");
  return first == found.npos ? "" : found.substr(first, last - first + 1);
}

// Parses a request of an endpoint from the body of its JSON.
class RequestParser {
 public:
  // text: the body as it was written, in which the members of a schema have their order; "": there is none.
  // Throws Refusal.
  static Request parse(Endpoint endpoint, const Json& body, Service service = Service::batch,
                       std::string_view text = "") {
    if (!body.is_object()) refuse("body", "an object", type_of(body));
    RequestParser parser(endpoint, body, service, text);
    return parser.request_;
  }

 private:
  struct Field {
    const char* name;
    void (RequestParser::*read)(const Json& value);  // null: it does not change the text
  };
  // A parameter with one supported value, as JSON.
  struct Fixed {
    const char *name, *value;
  };

  RequestParser(Endpoint endpoint, const Json& body, Service service, std::string_view text)
      : service_(service), text_(text) {
    request_.endpoint = endpoint;
    request_.sampling = {1, 1};  // OpenAI's defaults: temperature 1, top_p 1
    if (endpoint == Endpoint::text) request_.max_tokens = 16;
    for (const auto& [name, value] : body.items()) {
      name_ = name;
      if (!value.is_null()) read(value);
    }
    check();
  }

  // What depends on several parameters.
  void check() {
    if (!has_text_) refuse(chat() ? "messages" : "prompt", chat() ? "an array of messages" : "a string", "nothing");
    if (top_logprobs_ >= 0 && request_.top_logprobs < 0)
      refuse("top_logprobs", "logprobs to be true", "logprobs missing or false");
    if (request_.top_logprobs >= 0 && top_logprobs_ >= 0) request_.top_logprobs = top_logprobs_;
    if (request_.max_tokens == 0 && !request_.echo) refuse("max_tokens", "at least 1 without echo", "0");
    if (request_.include_usage && !request_.stream) refuse("stream_options", "stream to be true", "no stream");
    if (has_tool_choice_) refuse("tool_choice", "none or auto, because this model has no tools", "another value");
  }

  void read(const Json& value) {
    static constexpr Field kShared[] = {{"model", nullptr},  // the caller checks it
                                        {"user", nullptr},
                                        {"metadata", nullptr},
                                        {"service_tier", nullptr},
                                        {"safety_identifier", nullptr},
                                        {"prompt_cache_key", nullptr},
                                        {"max_tokens", &RequestParser::read_max_tokens},
                                        {"temperature", &RequestParser::read_temperature},
                                        {"top_p", &RequestParser::read_top_p},
                                        {"top_k", &RequestParser::read_top_k},
                                        {"min_p", &RequestParser::read_min_p},
                                        {"repetition_penalty", &RequestParser::read_repetition_penalty},
                                        {"frequency_penalty", &RequestParser::read_frequency_penalty},
                                        {"presence_penalty", &RequestParser::read_presence_penalty},
                                        {"logit_bias", &RequestParser::read_logit_bias},
                                        {"seed", &RequestParser::read_seed},
                                        {"stop", &RequestParser::read_stop},
                                        {"logprobs", &RequestParser::read_logprobs}};
    static constexpr Field kChat[] = {{"messages", &RequestParser::read_messages},
                                      {"max_completion_tokens", &RequestParser::read_max_tokens},
                                      {"top_logprobs", &RequestParser::read_top_logprobs},
                                      {"parallel_tool_calls", nullptr}};
    static constexpr Field kText[] = {{"prompt", &RequestParser::read_prompt}};
    static constexpr Field kServer[] = {{"n", &RequestParser::read_choices},
                                        {"stream", &RequestParser::read_stream},
                                        {"stream_options", &RequestParser::read_stream_options},
                                        {"response_format", &RequestParser::read_response_format},
                                        {"grammar", &RequestParser::read_grammar},
                                        {"store", nullptr}};
    static constexpr Field kServerText[] = {{"echo", &RequestParser::read_echo}};
    static constexpr Field kServerChat[] = {{"tools", &RequestParser::read_tools},
                                            {"tool_choice", &RequestParser::read_tool_choice}};
    static constexpr Fixed kFixed[] = {{"n", "1"},
                                       {"best_of", "1"},
                                       {"stream", "false"},
                                       {"echo", "false"},
                                       {"suffix", "\"\""},
                                       {"store", "false"},
                                       {"tools", "[]"},
                                       {"tool_choice", "\"none\""},
                                       {"modalities", "[\"text\"]"},
                                       {"response_format", "{\"type\":\"text\"}"}};
    if (read_by(kShared, value)) return;
    if (chat() ? read_by(kChat, value) : read_by(kText, value)) return;
    if (server() && (read_by(kServer, value) || (chat() ? read_by(kServerChat, value) : read_by(kServerText, value))))
      return;
    for (const Fixed& fixed : kFixed) {
      if (name_ != fixed.name) continue;
      if (value == Json::parse(fixed.value)) return;
      const bool scalar = value.is_number_integer() || value.is_boolean();
      refuse(name_, std::string(fixed.value) + ", the only supported value", scalar ? value.dump() : type_of(value));
    }
    if (server() && name_ != "functions" && name_ != "function_call" && name_ != "audio") return;
    throw Refusal{name_ + ": this parameter is not supported", name_, "unsupported_parameter"};
  }

  template <size_t N> bool read_by(const Field (&fields)[N], const Json& value) {
    for (const Field& f : fields) {
      if (name_ != f.name) continue;
      if (f.read) (this->*f.read)(value);
      return true;
    }
    return false;
  }

  // ---- Values ----

  bool chat() const { return request_.endpoint == Endpoint::chat; }
  bool server() const { return service_ == Service::server; }

  float number(const Json& value, double low, double high) const {
    char range[64];
    std::snprintf(range, sizeof range, "a number from %g to %g", low, high);
    if (!value.is_number()) refuse(name_, range, type_of(value));
    const double found = value.get<double>();
    char text[32];
    std::snprintf(text, sizeof text, "%g", found);
    if (!(found >= low && found <= high)) refuse(name_, range, text);
    return float(found);
  }
  int integer(const Json& value, int low, int high) const {
    const std::string range = "an integer from " + std::to_string(low) + " to " + std::to_string(high);
    if (!value.is_number_integer()) refuse(name_, range, type_of(value));
    const bool large = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(INT64_MAX);
    if (large || value.get<int64_t>() < low || value.get<int64_t>() > high) refuse(name_, range, value.dump());
    return value.get<int>();
  }
  std::string text(const Json& value, const std::string& name) const {
    if (!value.is_string()) refuse(name, "a string", type_of(value));
    return value.get<std::string>();
  }
  bool boolean(const Json& value, const std::string& name) const {
    if (!value.is_boolean()) refuse(name, "a boolean", type_of(value));
    return value.get<bool>();
  }

  // ---- Parameters ----

  void read_max_tokens(const Json& v) {
    const int n = integer(v, server() && !chat() ? 0 : 1, INT_MAX);  // 0: with echo, for the logprobs of a text
    request_.max_tokens = max_tokens_given_ ? std::min(n, request_.max_tokens) : n;  // both names may be given
    max_tokens_given_ = true;
  }
  void read_temperature(const Json& v) { request_.sampling.temperature = number(v, 0, 100); }
  void read_top_p(const Json& v) { request_.sampling.top_p = number(v, 0, 1); }
  void read_top_k(const Json& v) { request_.sampling.top_k = std::max(0, integer(v, -1, INT_MAX)); }  // -1: all
  void read_min_p(const Json& v) { request_.sampling.min_p = number(v, 0, 1); }
  void read_repetition_penalty(const Json& v) { request_.sampling.repeat_penalty = number(v, 0.01, 100); }
  void read_frequency_penalty(const Json& v) { request_.frequency_penalty = number(v, -2, 2); }
  void read_presence_penalty(const Json& v) { request_.presence_penalty = number(v, -2, 2); }

  void read_logit_bias(const Json& v) {
    if (!v.is_object()) refuse(name_, "an object from token ids to numbers", type_of(v));
    for (const auto& [key, bias] : v.items()) {
      const bool digits = !key.empty() && key.size() < 9 && key.find_first_not_of("0123456789") == std::string::npos;
      if (!digits) refuse(name_, "token ids as names", "another name");
      request_.logit_bias.push_back({std::stoi(key), number(bias, -100, 100)});
    }
  }

  void read_seed(const Json& v) {
    if (!v.is_number_integer()) refuse(name_, "an integer", type_of(v));
    request_.sampling.seed = v.get<uint64_t>();  // of a negative number: modulo 2^64
    request_.has_seed = true;
  }

  void read_stop(const Json& v) {
    constexpr size_t kMostStops = 16;  // four in OpenAI's API
    if (v.is_array() && v.size() > kMostStops) refuse(name_, "at most 16 strings", std::to_string(v.size()));
    if (v.is_array())
      for (const Json& stop : v) request_.stop.push_back(text(stop, name_));
    else
      request_.stop.push_back(text(v, name_));
  }

  // A boolean for chats, the number of most likely tokens for texts.
  void read_logprobs(const Json& v) {
    if (!chat()) {
      request_.top_logprobs = integer(v, 0, 20);
      return;
    }
    if (boolean(v, name_)) request_.top_logprobs = 0;
  }
  void read_top_logprobs(const Json& v) { top_logprobs_ = integer(v, 0, 20); }

  // ---- Parameters of the server ----

  void read_choices(const Json& v) { request_.choices = integer(v, 1, kChunk); }
  void read_echo(const Json& v) { request_.echo = boolean(v, name_); }
  void read_stream(const Json& v) { request_.stream = boolean(v, name_); }
  void read_stream_options(const Json& v) {
    if (!v.is_object()) refuse(name_, "an object", type_of(v));
    const auto usage = v.find("include_usage");
    if (usage != v.end() && !usage->is_null()) request_.include_usage = boolean(*usage, name_ + ".include_usage");
  }

  void read_response_format(const Json& v) {
    if (!v.is_object()) refuse(name_, "an object", type_of(v));
    const std::string type = text(member(v, "type", name_), name_ + ".type");
    if (type == "text") return;
    if (type == "json_object") return set_format(Format::json_object, "", name_);
    if (type != "json_schema")
      refuse(name_ + ".type", "text, json_object or json_schema", "'" + type.substr(0, 40) + "'");
    const std::string outer = name_ + ".json_schema", inner = outer + ".schema";
    const auto found = v.find("json_schema");
    if (found == v.end() || !found->is_object())
      refuse(outer, "an object", found == v.end() ? "nothing" : type_of(*found));
    const auto schema = found->find("schema");
    if (schema == found->end() || !schema->is_object())
      refuse(inner, "an object", schema == found->end() ? "nothing" : type_of(*schema));
    const std::string_view written = member_text(member_text(member_text(text_, name_), "json_schema"), "schema");
    set_format(Format::schema, written.empty() ? schema->dump() : std::string(written), inner);
  }
  // As in llama.cpp's server.
  void read_grammar(const Json& v) { set_format(Format::grammar, text(v, name_), name_); }
  void set_format(Format format, std::string grammar, const std::string& param) {
    if (request_.format != Format::text) refuse(name_, "either response_format or grammar", "both");
    request_.format = format;
    request_.format_text = std::move(grammar);
    request_.format_param = param;
  }

  // The chat templates of model files are texts around the messages, and have no place for tools.
  void read_tools(const Json& v) {
    if (!v.is_array()) refuse(name_, "an array", type_of(v));
    if (v.empty()) return;
    throw Refusal{
        "tools: this model's chat template has no tools; describe them in the system prompt, and request "
        "JSON with response_format",
        name_, "unsupported_parameter"};
  }
  void read_tool_choice(const Json& v) { has_tool_choice_ = v != "none" && v != "auto"; }

  // ---- The text ----

  void read_prompt(const Json& v) {
    has_text_ = true;
    const bool one = v.is_array() && v.size() == 1 && !v[0].is_number();  // an array of one prompt
    const Json& prompt = one ? v[0] : v;
    if (prompt.is_string()) {
      request_.prompt = prompt.get<std::string>();
      return;
    }
    const bool ids = prompt.is_array() && !prompt.empty() && prompt[0].is_number();
    if (!ids)
      refuse(name_, "one prompt, as a string or an array of token ids",
             prompt.is_array() ? std::to_string(prompt.size()) + " prompts" : type_of(prompt));
    for (const Json& id : prompt) request_.prompt_ids.push_back(integer(id, 0, INT_MAX));
  }

  // A system prompt or none, then messages of the user and replies in turn.
  void read_messages(const Json& v) {
    has_text_ = true;
    if (!v.is_array() || v.empty()) refuse(name_, "an array of messages", v.is_array() ? "an empty array" : type_of(v));
    bool answered = true;
    for (size_t i = 0; i < v.size(); i++) {
      const std::string name = "messages[" + std::to_string(i) + "]";
      if (!v[i].is_object()) refuse(name, "an object", type_of(v[i]));
      add_message(v[i], name, i == 0, answered);
    }
    if (answered) refuse(name_, "a message of the user at the end", "none");
  }

  void add_message(const Json& message, const std::string& name, bool first, bool& answered) {
    for (const auto& [field, value] : message.items())
      if (field != "role" && field != "content" && field != "name" && !value.is_null() && value != Json::array())
        throw Refusal{name + "." + field + ": this field is not supported", name + "." + field,
                      "unsupported_parameter"};
    const std::string role = text(member(message, "role", name), name + ".role");
    std::string content = content_of(member(message, "content", name), name + ".content");
    if (first && (role == "system" || role == "developer")) {
      request_.system = std::move(content);
    } else if (answered && role == "user") {
      request_.turns.push_back({std::move(content), "", {}});
      answered = false;
    } else if (!answered && role == "assistant") {
      request_.turns.back().reply = std::move(content);
      answered = true;
    } else {
      refuse(name + ".role", std::string(first ? "system or " : "") + (answered ? "user" : "assistant"),
             "'" + role.substr(0, 40) + "'");
    }
  }

  static const Json& member(const Json& object, const char* name, const std::string& path) {
    const auto found = object.find(name);
    if (found == object.end()) refuse(path + "." + name, "a string", "nothing");
    return *found;
  }

  // A string, or text parts, which become lines.
  std::string content_of(const Json& content, const std::string& name) const {
    if (!content.is_array()) return text(content, name);
    std::string all;
    for (size_t i = 0; i < content.size(); i++) {
      const std::string part = name + "[" + std::to_string(i) + "]";
      if (!content[i].is_object()) refuse(part, "an object", type_of(content[i]));
      const std::string type = text(member(content[i], "type", part), part + ".type");
      if (type != "text") refuse(part + ".type", "text, the only supported type", "'" + type.substr(0, 40) + "'");
      all += (i > 0 ? "\n" : "") + text(member(content[i], "text", part), part + ".text");
    }
    return all;
  }

  Service service_;
  std::string_view text_;  // the body as it was written
  Request request_;
  std::string name_;  // of the parameter that is read
  bool has_text_ = false, max_tokens_given_ = false, has_tool_choice_ = false;
  int top_logprobs_ = -1;
};

// ---- Tokens ----

// The tokens of the prompt of a request. Throws Refusal if the request does not suit the model or the context.
inline std::vector<int> prompt_tokens(cli::Llama& model, const Request& request, int context) {
  const auto check_room = [&](size_t tokens, const char* least) {
    if (tokens > size_t(context))
      throw Refusal{"the prompt has " + (least + std::to_string(tokens)) + " tokens, but the context has room for " +
                        std::to_string(context),
                    request.endpoint == Endpoint::chat ? "messages" : "prompt", "context_length_exceeded"};
  };
  for (const auto& [id, bias] : request.logit_bias)
    if (id >= model.vocab_size())
      refuse("logit_bias", "token ids below " + std::to_string(model.vocab_size()), std::to_string(id));
  if (request.endpoint == Endpoint::text) {
    for (const int id : request.prompt_ids)
      if (id >= model.vocab_size())
        refuse("prompt", "token ids below " + std::to_string(model.vocab_size()), std::to_string(id));
    check_room(model.least_tokens(request.prompt), "at least ");
    std::vector<int> ids = request.prompt_ids;
    if (ids.empty()) ids = ids_of(model.tokenizer(), request.prompt);
    if (ids.empty() && model.tokenizer().bos() >= 0) ids.push_back(model.tokenizer().bos());
    if (ids.empty()) refuse("prompt", "a text, because this model has no token to start with", "an empty one");
    check_room(ids.size(), "");
    return ids;
  }
  const ChatTemplate& chat = *model.chat_template();
  if (!chat.known()) throw Refusal{"messages: this model has no chat template; use /v1/completions", "messages"};
  if (!chat.takes(request.system)) throw Refusal{"messages[0]: " + cli::refusal(chat, request.system), "messages[0]"};
  cli::Conversation conversation(
      chat, [&](std::string_view text, bool bos) { return model.encode(text, bos); }, request.system,
      [&](std::string_view text) { return model.least_tokens(text); });
  conversation.turns = request.turns;
  check_room(conversation.least_tokens(), "at least ");
  std::vector<int> ids = conversation.ids();
  check_room(ids.size(), "");
  return ids;
}

// The stop ids of a request: those of the model, and stop texts that are the text of a control token, which prints as
// nothing.
inline std::vector<int> stop_ids_of(cli::Llama& model, const Request& request) {
  const bool chat = request.endpoint == Endpoint::chat;
  std::vector<int> ids = chat ? model.chat_template()->stop_ids : model.file().stop_ids;
  for (const std::string& text : request.stop) {
    const int id = model.tokenizer().find(text);
    if (model.tokenizer().type(id) == Tokenizer::PieceType::control) ids.push_back(id);
  }
  return ids;
}

}  // namespace pocket::openai
