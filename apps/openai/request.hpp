// request.hpp: requests in the format of OpenAI's API, /v1/chat/completions and /v1/completions: what is supported, and
// the error for what is not.
#pragma once

#include "../cli/conversation.hpp"
#include "../cli/llama.hpp"
#include "tools.hpp"

namespace pocket::openai {

enum class Endpoint { chat, text };  // /v1/chat/completions, /v1/completions

// What the text of a reply is: any text, a JSON object, JSON of a schema, a text of a grammar in GBNF, calls of tools.
enum class Format { text, json_object, schema, grammar, calls };

// Who reads a request. The server knows all parameters below, and ignores unknown ones as OpenAI does. In a file of
// requests (run-batch), where a mistake costs more, they are refused, and so is what has no meaning there.
enum class Service { batch, server };

// A text to continue, or, in place of it, its token ids.
struct TextPrompt {
  std::string text;
  std::vector<int> ids;
};

// A valid request.
struct Request {
  Endpoint endpoint = Endpoint::chat;
  std::string system;                      // chat: the system prompt; "": none
  std::vector<cli::Turn> turns;            // chat: the last one has no reply
  std::vector<TextPrompt> prompts = {{}};  // text: each gets the replies that it would get alone
  ToolFormat tool_format = ToolFormat::none;
  std::vector<Tool> tools;       // chat: that the model may call; none with tool_choice none
  size_t most_calls = SIZE_MAX;  // in a reply
  int max_tokens = -1;           // -1: as many as the context has room for
  SamplerOptions sampling;
  bool has_seed = false;
  float frequency_penalty = 0, presence_penalty = 0;
  std::vector<std::pair<int, float>> logit_bias;  // token id, what is added to its logit
  std::vector<std::string> stop;                  // texts that end the reply
  int top_logprobs = -1;                          // number of most likely tokens that are reported; -1: no logprobs
  int choices = 1;                                // replies to a prompt; the seed of choice i is the seed plus i
  bool echo = false;                              // text: the reply begins with the prompt, also its logprobs
  bool stream = false, include_usage = false;     // include_usage: a stream ends with the number of tokens
  Format format = Format::text;
  std::string format_text;         // the schema or the grammar
  std::string format_param;        // the name of its parameter
  std::vector<Tool> format_calls;  // the tools that the calls may be of
};

// Parses a request of an endpoint from the body of its JSON.
class RequestParser {
 public:
  // text: the body as it was written, in which the members of a schema have their order; "": there is none.
  // tools: how the model calls tools, see tool_format(). Throws Refusal.
  static Request parse(Endpoint endpoint, const Json& body, Service service = Service::batch,
                       std::string_view text = "", ToolFormat tools = ToolFormat::none) {
    if (!body.is_object()) refuse("body", "an object", type_of(body));
    RequestParser parser(endpoint, body, service, text, tools);
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

  RequestParser(Endpoint endpoint, const Json& body, Service service, std::string_view text, ToolFormat tools)
      : service_(service), text_(text) {
    request_.endpoint = endpoint;
    request_.tool_format = tools;
    request_.most_calls = most_calls(tools);
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
    check_tools();
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
                                      {"parallel_tool_calls", &RequestParser::read_parallel_tool_calls}};
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

  // ---- Tools ----

  bool knows_tools() const { return request_.tool_format != ToolFormat::none; }

  void read_tools(const Json& v) {
    constexpr size_t kMostTools = 128;  // as in OpenAI's API
    if (!v.is_array()) refuse(name_, "an array", type_of(v));
    if (v.empty()) return;
    if (!knows_tools())
      throw Refusal{
          "tools: the chat template of this model has no tools; describe them in the system prompt, and request JSON "
          "with "
          "response_format",
          name_, "unsupported_parameter"};
    if (v.size() > kMostTools) refuse(name_, "at most 128 tools", std::to_string(v.size()));
    std::string written(member_text(text_, name_));
    if (written.empty() || parse_json(written) != v) written = v.dump();  // its name is written with escapes
    const OrderedJson ordered = OrderedJson::parse(written);
    for (size_t i = 0; i < v.size(); i++) read_tool(v[i], ordered[i], name_ + "[" + std::to_string(i) + "]");
  }

  // ordered: the same value, as it was written.
  void read_tool(const Json& v, const OrderedJson& ordered, const std::string& name) {
    if (!v.is_object()) refuse(name, "an object", type_of(v));
    const std::string type = text(member(v, "type", name), name + ".type");
    if (type != "function") refuse(name + ".type", "function, the only supported type", "'" + type.substr(0, 40) + "'");
    const std::string inner = name + ".function";
    const auto function = v.find("function");
    if (function == v.end() || !function->is_object())
      refuse(inner, "an object", function == v.end() ? "nothing" : type_of(*function));
    const std::string called = text(member(*function, "name", inner), inner + ".name");
    const auto in_name = [](char c) { return std::isalnum(uint8_t(c)) || c == '_' || c == '-'; };
    if (called.empty() || called.size() > 64 || !std::all_of(called.begin(), called.end(), in_name))
      refuse(inner + ".name", "1 to 64 letters, digits, - and _", "'" + called.substr(0, 80) + "'");
    for (const Tool& other : request_.tools)
      if (other.name == called) refuse(inner + ".name", "a name of its own", "'" + called + "', as of another tool");
    OrderedJson parameters = {{"type", "object"}, {"properties", OrderedJson::object()}};
    if (const auto found = function->find("parameters"); found != function->end() && !found->is_null()) {
      if (!found->is_object()) refuse(inner + ".parameters", "a JSON Schema of an object", type_of(*found));
      parameters = ordered["function"]["parameters"];
      if (!parameters.contains("type")) parameters["type"] = "object";
    }
    request_.tools.push_back({called, written_definition(request_.tool_format, ordered), parameters.dump()});
  }

  void read_tool_choice(const Json& v) {
    if (v == "none" || v == "auto" || v == "required") {
      tool_choice_ = v.get<std::string>();
      return;
    }
    const std::string expected = "none, auto, required or an object with a function", inner = name_ + ".function";
    if (!v.is_object() || text(member(v, "type", name_), name_ + ".type") != "function")
      refuse(name_, expected, v.is_object() ? "another type" : v.is_string() ? "another word" : type_of(v));
    const auto function = v.find("function");
    if (function == v.end() || !function->is_object())
      refuse(inner, "an object", function == v.end() ? "nothing" : type_of(*function));
    tool_choice_ = "required";
    called_tool_ = text(member(*function, "name", inner), inner + ".name");
  }
  void read_parallel_tool_calls(const Json& v) {
    if (!boolean(v, name_)) request_.most_calls = 1;
  }

  void check_tools() {
    if (request_.tools.empty() && tool_choice_ == "required")
      refuse("tool_choice", "none or auto without tools", "another value");
    if (tool_choice_ == "none") request_.tools.clear();
    if (request_.tools.empty()) return;
    if (request_.format != Format::text)
      refuse(request_.format_param, "no format together with tools, unless tool_choice is none", "both");
    if (tool_choice_ != "required") return;
    request_.format = Format::calls;
    request_.format_param = "tools";
    for (const Tool& tool : request_.tools) {
      if (!called_tool_.empty() && tool.name != called_tool_) continue;
      request_.format_calls.push_back(tool);
      request_.format_text += tool.name + "\n" + tool.parameters + "\n";
    }
    if (request_.format_calls.empty())
      refuse("tool_choice.function.name", "the name of a tool", "'" + called_tool_.substr(0, 80) + "'");
    if (!called_tool_.empty()) request_.most_calls = 1;
    request_.format_text += std::to_string(request_.most_calls);
  }

  // ---- The text ----

  // A prompt or, for the server, several.
  void read_prompt(const Json& v) {
    constexpr size_t kMostPrompts = 2048;  // as in OpenAI's API
    has_text_ = true;
    request_.prompts.clear();
    if (!v.is_array() || (!v.empty() && v[0].is_number())) return read_one_prompt(v, name_);
    if (v.empty()) refuse(name_, "a string or an array", "an empty array");
    if (v.size() > 1 && !server())
      refuse(name_, "one prompt, as a string or an array of token ids", std::to_string(v.size()) + " prompts");
    if (v.size() > kMostPrompts) refuse(name_, "at most 2048 prompts", std::to_string(v.size()));
    for (size_t i = 0; i < v.size(); i++) read_one_prompt(v[i], name_ + "[" + std::to_string(i) + "]");
  }
  void read_one_prompt(const Json& v, const std::string& name) {
    TextPrompt prompt;
    if (v.is_string())
      prompt.text = v.get<std::string>();
    else if (!v.is_array() || v.empty())
      refuse(name, "a string or an array of token ids", v.is_array() ? "an empty array" : type_of(v));
    else
      for (const Json& id : v) prompt.ids.push_back(integer(id, 0, INT_MAX));
    request_.prompts.push_back(std::move(prompt));
  }

  // A system prompt or none, then messages of the user, or results of calls, and replies in turn.
  void read_messages(const Json& v) {
    has_text_ = true;
    if (!v.is_array() || v.empty()) refuse(name_, "an array of messages", v.is_array() ? "an empty array" : type_of(v));
    for (size_t i = 0; i < v.size(); i++) {
      const std::string name = "messages[" + std::to_string(i) + "]";
      if (!v[i].is_object()) refuse(name, "an object", type_of(v[i]));
      add_message(v[i], name, i == 0);
    }
    if (!calls_.empty()) refuse(name_, "a message with the result of the call " + calls_[0].substr(0, 80), "none");
    if (answered_) refuse(name_, "a message of the user at the end", "none");
  }

  void add_message(const Json& message, const std::string& name, bool first) {
    const std::string role = text(member(message, "role", name), name + ".role");
    check_fields(message, name, role);
    const auto calls = message.find("tool_calls");
    const bool has_calls = calls != message.end() && !calls->is_null() && *calls != Json::array();
    const auto found = message.find("content");
    const bool no_content = has_calls && (found == message.end() || found->is_null());
    std::string content = no_content ? "" : content_of(member(message, "content", name), name + ".content");
    if (first && (role == "system" || role == "developer")) {
      request_.system = std::move(content);
    } else if (role == "tool" && knows_tools() && !calls_.empty()) {
      add_result(text(member(message, "tool_call_id", name), name + ".tool_call_id"), content, name);
    } else if (answered_ && calls_.empty() && role == "user") {
      request_.turns.push_back({std::move(content), "", {}});
      answered_ = false;
    } else if (!answered_ && calls_.empty() && role == "assistant") {
      if (has_calls) add_calls(*calls, content, name + ".tool_calls");
      request_.turns.back().reply = std::move(content);
      answered_ = true;
    } else {
      const char* next = !calls_.empty() ? "tool" : answered_ ? "user" : "assistant";
      refuse(name + ".role", std::string(first ? "system or " : "") + next, "'" + role.substr(0, 40) + "'");
    }
  }

  void check_fields(const Json& message, const std::string& name, const std::string& role) const {
    for (const auto& [field, value] : message.items()) {
      const bool of_tool = knows_tools() && ((role == "assistant" && field == "tool_calls") ||
                                             (role == "tool" && field == "tool_call_id"));
      if (of_tool || field == "role" || field == "content" || field == "name" || value.is_null() ||
          value == Json::array())
        continue;
      throw Refusal{name + "." + field + ": this field is not supported", name + "." + field, "unsupported_parameter"};
    }
  }

  // Appends the calls of an earlier reply to its text.
  void add_calls(const Json& calls, std::string& reply, const std::string& name) {
    if (!calls.is_array()) refuse(name, "an array", type_of(calls));
    if (calls.size() > most_calls(request_.tool_format))
      refuse(name, "one call, as the chat template of this model has it", std::to_string(calls.size()));
    for (size_t i = 0; i < calls.size(); i++) {
      const std::string path = name + "[" + std::to_string(i) + "]", inner = path + ".function";
      if (!calls[i].is_object()) refuse(path, "an object", type_of(calls[i]));
      calls_.push_back(text(member(calls[i], "id", path), path + ".id"));
      const auto function = calls[i].find("function");
      if (function == calls[i].end() || !function->is_object())
        refuse(inner, "an object", function == calls[i].end() ? "nothing" : type_of(*function));
      const std::string called = text(member(*function, "name", inner), inner + ".name");
      std::string arguments = text(member(*function, "arguments", inner), inner + ".arguments");
      if (arguments.empty()) arguments = "{}";  // as some servers write a call without arguments
      if (!is_json_object(arguments)) refuse(inner + ".arguments", "JSON of an object", "another text");
      reply = reply_with_call(request_.tool_format, reply, called, OrderedJson::parse(arguments));
    }
  }

  // The results of the calls of a reply are one message to the model.
  void add_result(const std::string& id, const std::string& result, const std::string& name) {
    const auto call = std::find(calls_.begin(), calls_.end(), id);
    if (call == calls_.end())
      refuse(name + ".tool_call_id", "the id of a call without a result, such as '" + calls_[0].substr(0, 80) + "'",
             "'" + id.substr(0, 80) + "'");
    calls_.erase(call);
    if (answered_) request_.turns.push_back({});
    answered_ = false;
    cli::Turn& turn = request_.turns.back();
    turn.of_tools = true;
    turn.message = message_with_result(request_.tool_format, turn.message, result);
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
  bool has_text_ = false, max_tokens_given_ = false;
  int top_logprobs_ = -1;
  std::string tool_choice_, called_tool_;  // "": not given; of the tool that has to be called
  bool answered_ = true;                   // no message of the user is without a reply
  std::vector<std::string> calls_;         // ids of the calls in the last reply that have no result yet
};

// ---- Tokens ----

// The tokens of a prompt of a request. Throws Refusal if the request does not suit the model or the context.
inline std::vector<int> prompt_tokens(cli::Llama& model, const Request& request, int context, size_t which = 0) {
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
    const TextPrompt& prompt = request.prompts[which];
    for (const int id : prompt.ids)
      if (id >= model.vocab_size())
        refuse("prompt", "token ids below " + std::to_string(model.vocab_size()), std::to_string(id));
    check_room(model.least_tokens(prompt.text), "at least ");
    std::vector<int> ids = prompt.ids;
    if (ids.empty()) ids = ids_of(model.tokenizer(), prompt.text);
    if (ids.empty() && model.tokenizer().bos() >= 0) ids.push_back(model.tokenizer().bos());
    if (ids.empty()) refuse("prompt", "a text, because this model has no token to start with", "an empty one");
    check_room(ids.size(), "");
    return ids;
  }
  const ChatTemplate& chat = *model.chat_template();
  if (!chat.known()) throw Refusal{"messages: this model has no chat template; use /v1/completions", "messages"};
  if (!chat.takes(request.system)) throw Refusal{"messages[0]: " + cli::refusal(chat, request.system), "messages[0]"};
  ToolConversation written = {chat, request.system, request.turns};
  if (!request.tools.empty()) add_tools(request.tool_format, request.tools, written);
  const ChatTemplate of_tools = results_template(request.tool_format, chat);
  cli::Conversation conversation(
      written.chat, [&](std::string_view text, bool bos) { return model.encode(text, bos); }, written.system,
      [&](std::string_view text) { return model.least_tokens(text); });
  conversation.turns = std::move(written.turns);
  conversation.template_of_tools = &of_tools;
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
