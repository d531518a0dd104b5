// Requests in the format of OpenAI's API, of run-batch and of the server.
#include "../../../apps/openai/request.hpp"
#include "../target.hpp"

namespace fuzz::openai_request {

using namespace pocket::openai;

// Parses the body of a request of an endpoint.
void parse(Endpoint endpoint, Service service, ToolFormat tools, const Json& body, std::string_view text) try {
  const Request r = RequestParser::parse(endpoint, body, service, text, tools);
  require(tools != ToolFormat::none || r.tools.empty(), "openai_request: tools only of a model that knows them");
  for (const Tool& tool : r.tools)
    require(is_json_object(tool.definition) && is_json_object(tool.parameters), "openai_request: tools are JSON");
  require(r.choices >= 1 && r.top_logprobs >= -1 && r.top_logprobs <= 20, "openai_request: numbers in their range");
  require(r.endpoint == Endpoint::text || !r.turns.empty(), "openai_request: a chat has a message");
  require(service == Service::server || (!r.stream && r.choices == 1), "openai_request: no streams in a batch");
  require((r.format == Format::text) == r.format_param.empty(), "openai_request: a format has a parameter");
  require((r.format == Format::calls) != r.format_calls.empty(), "openai_request: calls are of tools");
} catch (const Refusal& r) {
  require(!r.message.empty() && r.status >= 400, "openai_request: a refusal has a message");
}

// Reads the calls in a reply that comes in pieces of this size.
std::pair<std::string, std::vector<ToolCall>> read_reply(ToolFormat format, std::string_view reply, size_t piece) {
  const std::vector<Tool> tools = {{"f", "", ""}, {"g", "", ""}};
  ToolCallReader reader(format, tools);
  std::string text;
  for (size_t at = 0; at < reply.size(); at += piece) text += reader.push(reply.substr(at, piece));
  text += reader.finish();
  return {text, reader.calls()};
}

void check_calls(ToolFormat format, std::string_view reply) {
  const auto [text, calls] = read_reply(format, reply, reply.size() + 1);
  const auto [same_text, same_calls] = read_reply(format, reply, 1 + reply.size() % 7);
  require(text == same_text && calls.size() == same_calls.size(), "openai_request: calls do not depend on the pieces");
  for (size_t i = 0; i < calls.size(); i++)
    require(calls[i].id == same_calls[i].id && is_json_object(calls[i].arguments), "openai_request: calls are JSON");
}

void run(std::string_view input) try {
  for (const ToolFormat format : {ToolFormat::hermes, ToolFormat::llama}) check_calls(format, input);
  const Json body = parse_json(input);
  for (const Endpoint endpoint : {Endpoint::chat, Endpoint::text})
    for (const Service service : {Service::batch, Service::server})
      for (const ToolFormat tools : {ToolFormat::none, ToolFormat::hermes, ToolFormat::llama})
        parse(endpoint, service, tools, body, input);
  if (!body.is_object() || input.find('\\') != input.npos || body.size() > 50) return;
  for (const auto& [name, value] : body.items())
    require(parse_json(member_text(input, name)) == value, "openai_request: member_text() finds every member");
} catch (const Refusal& r) {
  require(!r.message.empty(), "openai_request: a refusal has a message");
}

std::vector<std::string> seeds() {
  return {R"({"model": "m", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content":
 [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "?"}],
 "max_completion_tokens": 5, "temperature": 0.5, "seed": 1, "logprobs": true, "top_logprobs": 3, "stream": true,
 "stream_options": {"include_usage": true}, "logit_bias": {"5": -100}, "stop": ["a", "b"], "n": 2,
 "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object", "b": [1, "}"]}}}})",
          R"({"prompt": [[1, 2, 3]], "echo": true, "max_tokens": 0, "logprobs": 5, "grammar": "root ::= 'a'"})",
          R"({"prompt": ["text", [1], ""], "n": 2})",
          R"({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "$defs": {}}}}],
 "tool_choice": {"type": "function", "function": {"name": "f"}}, "messages": [{"role": "user", "content": "?"},
 {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{\"b\": [1]}"}}]},
 {"role": "tool", "tool_call_id": "a", "content": "c"}], "parallel_tool_calls": false})",
          "a\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1}}\n</tool_call> b <tool_call>{\"name\": \"g\", "
          "\"arguments\": \"{}\"}</tool_call>",
          "{\"name\": \"f\", \"parameters\": {\"b\": \"}\"}} a",
          R"({"prompt": ["text"], "top_p": 0.9, "top_k": -1, "min_p": 0.1, "presence_penalty": 1, "tools": []})"};
}

const Registered target({"openai_request", run, seeds});

}  // namespace fuzz::openai_request
