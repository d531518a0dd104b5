// Requests in the format of OpenAI's API, of run-batch and of the server.
#include "../../../apps/openai/request.hpp"
#include "../target.hpp"

namespace fuzz::openai_request {

using namespace pocket::openai;

// Parses the body of a request of an endpoint.
void parse(Endpoint endpoint, Service service, const Json& body, std::string_view text) try {
  const Request r = RequestParser::parse(endpoint, body, service, text);
  require(r.choices >= 1 && r.top_logprobs >= -1 && r.top_logprobs <= 20, "openai_request: numbers in their range");
  require(r.endpoint == Endpoint::text || !r.turns.empty(), "openai_request: a chat has a message");
  require(service == Service::server || (!r.stream && r.choices == 1), "openai_request: no streams in a batch");
  require((r.format == Format::schema || r.format == Format::grammar) != r.format_param.empty() ||
              r.format == Format::json_object,
          "openai_request: a format has a parameter");
} catch (const Refusal& r) {
  require(!r.message.empty() && r.status >= 400, "openai_request: a refusal has a message");
}

void run(std::string_view input) try {
  const Json body = parse_json(input);
  for (const Endpoint endpoint : {Endpoint::chat, Endpoint::text})
    for (const Service service : {Service::batch, Service::server}) parse(endpoint, service, body, input);
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
          R"({"prompt": ["text"], "top_p": 0.9, "top_k": -1, "min_p": 0.1, "presence_penalty": 1, "tools": []})"};
}

const Registered target({"openai_request", run, seeds});

}  // namespace fuzz::openai_request
