// openai_request_test.cpp: requests in the format of OpenAI's API: what is understood, and the error for what is not.
#include "../../apps/openai/response.hpp"

#include <gtest/gtest.h>

#include "../support/program.hpp"

namespace openai_request_test {

using namespace pocket;
using namespace pocket::openai;

Request chat(const std::string& body) { return RequestParser::parse(Endpoint::chat, parse_json(body)); }
Request text(const std::string& body) { return RequestParser::parse(Endpoint::text, parse_json(body)); }
// A chat with these other members of the body.
Request chat_with(const std::string& members) {
  return chat(R"({"messages": [{"role": "user", "content": "hi"}], )" + members + "}");
}

template <class F> void expect_refusal(const F& f, const std::string& param, const std::string& words) {
  try {
    f();
    ADD_FAILURE() << "not refused: " << words;
  } catch (const Refusal& r) {
    EXPECT_EQ(r.param, param) << r.message;
    EXPECT_NE(r.message.find(words), std::string::npos) << words << " in " << r.message;
  }
}

TEST(OpenAiRequest, ReadsAConversation) {
  const Request r = chat(R"({"messages": [{"role": "system", "content": "Be kind."},
      {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": "Ada"},
      {"role": "assistant", "content": "", "tool_calls": [], "refusal": null}, {"role": "user", "content": "é"}]})");
  EXPECT_EQ(r.system, "Be kind.");
  ASSERT_EQ(r.turns.size(), 2u);
  EXPECT_EQ(r.turns[0].message, "one\ntwo");
  EXPECT_EQ(r.turns[0].reply, "");
  EXPECT_EQ(r.turns[1].message, "é");
  EXPECT_EQ(r.max_tokens, -1);
  EXPECT_EQ(r.sampling.temperature, 1);
  EXPECT_EQ(r.sampling.top_p, 1);
  EXPECT_FALSE(r.has_seed);
  EXPECT_EQ(r.top_logprobs, -1);
  EXPECT_EQ(
      chat(R"({"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": ""}]})").system,
      "Be brief.");
}

TEST(OpenAiRequest, ReadsThePromptOfAText) {
  EXPECT_EQ(text(R"({"prompt": "one"})").prompts[0].text, "one");
  EXPECT_EQ(text(R"({"prompt": "one"})").max_tokens, 16) << "OpenAI's default";
  EXPECT_EQ(text(R"({"prompt": ["one"]})").prompts[0].text, "one");
  EXPECT_EQ(text(R"({"prompt": [3, 4]})").prompts[0].ids, (std::vector<int>{3, 4}));
  EXPECT_EQ(text(R"({"prompt": [[3, 4]]})").prompts[0].ids, (std::vector<int>{3, 4}));
  EXPECT_EQ(text(R"({"prompt": "", "logprobs": 0, "echo": false, "suffix": null, "best_of": 1})").top_logprobs, 0);
}

TEST(OpenAiRequest, ReadsParameters) {
  const Request r =
      chat_with(R"("model": "m", "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 3,
      "min_p": 0.125, "repetition_penalty": 1.5, "frequency_penalty": -1, "presence_penalty": 2, "seed": -1,
      "stop": ["a", "b"], "logit_bias": {"5": -100}, "logprobs": true, "top_logprobs": 4, "n": 1, "stream": false,
      "user": "x", "metadata": {"a": "b"}, "response_format": {"type": "text"}, "tools": [], "store": null)");
  EXPECT_EQ(r.max_tokens, 7);
  EXPECT_EQ(r.sampling.temperature, 0.5f);
  EXPECT_EQ(r.sampling.top_p, 0.25f);
  EXPECT_EQ(r.sampling.top_k, 3);
  EXPECT_EQ(r.sampling.min_p, 0.125f);
  EXPECT_EQ(r.sampling.repeat_penalty, 1.5f);
  EXPECT_EQ(r.frequency_penalty, -1);
  EXPECT_EQ(r.presence_penalty, 2);
  EXPECT_TRUE(r.has_seed);
  EXPECT_EQ(r.sampling.seed, UINT64_MAX);
  EXPECT_EQ(r.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(r.logit_bias, (std::vector<std::pair<int, float>>{{5, -100.f}}));
  EXPECT_EQ(r.top_logprobs, 4);
  EXPECT_EQ(chat_with(R"("stop": "a", "logprobs": true)").stop, std::vector<std::string>{"a"});
  EXPECT_EQ(chat_with(R"("logprobs": true)").top_logprobs, 0);
  EXPECT_EQ(chat_with(R"("max_tokens": 9, "max_completion_tokens": 5)").max_tokens, 5);
}

TEST(OpenAiRequest, RefusesParametersAndSaysWhich) {
  const struct {
    const char *members, *param, *words;
  } kCases[] = {
      {R"("n": 2)", "n", "n: expected 1, the only supported value, found 2"},
      {R"("stream": true)", "stream", "found true"},
      {R"("tools": [{"type": "function"}])", "tools", "expected [], the only supported value, found an array"},
      {R"("response_format": {"type": "json_object"})", "response_format", "expected {\"type\":\"text\"}"},
      {R"("audio": {})", "audio", "audio: this parameter is not supported"},
      {R"("prompt": "a")", "prompt", "prompt: this parameter is not supported"},
      {R"("max_tokens": 0)", "max_tokens", "expected an integer from 1 to 2147483647, found 0"},
      {R"("max_tokens": 18446744073709551615)", "max_tokens", "found 18446744073709551615"},
      {R"("max_tokens": 1.5)", "max_tokens", "found a number"},
      {R"("temperature": "hot")", "temperature", "expected a number from 0 to 100, found a string"},
      {R"("temperature": -0.5)", "temperature", "found -0.5"},
      {R"("top_p": 2)", "top_p", "expected a number from 0 to 1, found 2"},
      {R"("presence_penalty": 3)", "presence_penalty", "from -2 to 2"},
      {R"("seed": 1.5)", "seed", "expected an integer, found a number"},
      {R"("stop": 5)", "stop", "expected a string, found an integer"},
      {R"("stop": ["a", null])", "stop", "expected a string, found null"},
      {R"("logit_bias": [])", "logit_bias", "expected an object"},
      {R"("logit_bias": {"x": 1})", "logit_bias", "expected token ids as names"},
      {R"("logit_bias": {"5": 101})", "logit_bias", "from -100 to 100"},
      {R"("logprobs": 3)", "logprobs", "expected a boolean"},
      {R"("top_logprobs": 3)", "top_logprobs", "expected logprobs to be true"},
      {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs", "from 0 to 20"},
  };
  for (const auto& c : kCases) expect_refusal([&] { chat_with(c.members); }, c.param, c.words);
}

// ---- The server ----

Request served(Endpoint endpoint, const std::string& body) {
  return RequestParser::parse(endpoint, parse_json(body), Service::server, body);
}
Request served_chat(const std::string& members) {
  return served(Endpoint::chat, R"({"messages": [{"role": "user", "content": "hi"}], )" + members + "}");
}

TEST(OpenAiRequest, ReadsParametersOfTheServer) {
  const Request r = served_chat(R"("n": 3, "stream": true, "stream_options": {"include_usage": true}, "unknown": [1],
      "tools": [], "tool_choice": "auto", "store": true, "reasoning_effort": "low")");
  EXPECT_EQ(r.choices, 3);
  EXPECT_TRUE(r.stream);
  EXPECT_TRUE(r.include_usage);
  EXPECT_EQ(r.format, Format::text);
  const Request t = served(Endpoint::text, R"({"prompt": "a", "echo": true, "max_tokens": 0, "logprobs": 1})");
  EXPECT_TRUE(t.echo);
  EXPECT_EQ(t.max_tokens, 0);
}

TEST(OpenAiRequest, ReadsFormats) {
  EXPECT_EQ(served_chat(R"("response_format": {"type": "text"})").format, Format::text);
  EXPECT_EQ(served_chat(R"("response_format": {"type": "json_object"})").format, Format::json_object);
  const Request grammar = served_chat(R"("grammar": "root ::= \"a\"")");
  EXPECT_EQ(grammar.format, Format::grammar);
  EXPECT_EQ(grammar.format_text, "root ::= \"a\"");
  EXPECT_EQ(grammar.format_param, "grammar");
  const Request schema = served_chat(R"("response_format": {"json_schema": {"name": "n", "strict": true, "schema":
      {"z": {"a": ["}", "\\\""]}, "b": 1} }, "type": "json_schema"})");
  EXPECT_EQ(schema.format, Format::schema);
  EXPECT_EQ(schema.format_text, R"({"z": {"a": ["}", "\\\""]}, "b": 1})") << "as it was written";
}

TEST(OpenAiRequest, ReadsSeveralPrompts) {
  const Request r = served(Endpoint::text, R"({"prompt": ["a", [1, 2], ""]})");
  ASSERT_EQ(r.prompts.size(), 3u);
  EXPECT_EQ(r.prompts[0].text, "a");
  EXPECT_EQ(r.prompts[1].ids, (std::vector<int>{1, 2}));
  EXPECT_EQ(r.prompts[2].text, "");
  for (const char* body : {R"({"prompt": []})", R"({"prompt": ["a", 1]})", R"({"prompt": ["a", []]})",
                           R"({"prompt": [1, "a"]})", R"({"prompt": [["a"]]})", R"({"prompt": [{}]})"})
    EXPECT_THROW(served(Endpoint::text, body), Refusal) << body;
}

// ---- Tools ----

const char* const kTwoTools = R"("tools": [
    {"type": "function", "function": {"name": "weather", "description": "ü", "parameters":
      {"type": "object", "properties": {"zip": {"type": "integer"}, "city": {"type": "string"}}, "required": ["zip"]}}},
    {"type": "function", "function": {"name": "now"}}])";

Request with_tools(const std::string& messages, const std::string& members, ToolFormat format = ToolFormat::hermes) {
  const std::string body = R"({"messages": [{"role": "user", "content": "hi"})" + messages + "], " + members + "}";
  return RequestParser::parse(Endpoint::chat, parse_json(body), Service::server, body, format);
}

TEST(OpenAiTools, AreReadInTheirOrder) {
  const Request r = with_tools("", kTwoTools);
  ASSERT_EQ(r.tools.size(), 2u);
  EXPECT_EQ(r.tools[0].name, "weather");
  EXPECT_EQ(r.tools[0].definition,
            R"({"type": "function", "function": {"name": "weather", "description": "ü", "parameters": )"
            R"({"type": "object", "properties": {"zip": {"type": "integer"}, "city": {"type": "string"}}, )"
            R"("required": ["zip"]}}})");
  EXPECT_EQ(r.tools[1].parameters, R"({"type":"object","properties":{}})");
  EXPECT_EQ(r.format, Format::text);
  EXPECT_EQ(r.most_calls, SIZE_MAX);
  EXPECT_EQ(with_tools("", std::string(kTwoTools) + R"(, "parallel_tool_calls": false)").most_calls, 1u);
}

TEST(OpenAiTools, AreChosen) {
  const auto chosen = [](const std::string& choice) {
    return with_tools("", kTwoTools + (R"(, "tool_choice": )" + choice));
  };
  EXPECT_TRUE(chosen("\"none\"").tools.empty());
  EXPECT_EQ(chosen("\"auto\"").format, Format::text);
  EXPECT_EQ(chosen("\"required\"").format, Format::calls);
  EXPECT_EQ(chosen("\"required\"").format_calls.size(), 2u);
  const Request named = chosen(R"({"type": "function", "function": {"name": "now"}})");
  EXPECT_EQ(named.format, Format::calls);
  ASSERT_EQ(named.format_calls.size(), 1u);
  EXPECT_EQ(named.format_calls[0].name, "now");
  EXPECT_EQ(named.tools.size(), 2u) << "the model knows of all";
  EXPECT_EQ(named.most_calls, 1u);
}

TEST(OpenAiTools, CallsAndResultsBecomeTexts) {
  const Request r = with_tools(R"(, {"role": "assistant", "content": "Let me see.", "tool_calls": [
      {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{\"zip\":1,\"city\":\"Oslo\"}"}},
      {"id": "b", "type": "function", "function": {"name": "now", "arguments": "{}"}}]},
      {"role": "tool", "tool_call_id": "b", "content": "noon"}, {"role": "tool", "tool_call_id": "a", "content": "-3"},
      {"role": "assistant", "content": "Cold."}, {"role": "user", "content": "And now?"})",
                               kTwoTools);
  ASSERT_EQ(r.turns.size(), 3u);
  EXPECT_EQ(r.turns[0].reply,
            "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"zip\": 1, \"city\": \"Oslo\"}}\n"
            "</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>");
  EXPECT_EQ(r.turns[1].message, "<tool_response>\nnoon\n</tool_response>\n<tool_response>\n-3\n</tool_response>");
  EXPECT_EQ(r.turns[1].reply, "Cold.");
}

TEST(OpenAiTools, EmptyArgumentsAreAnEmptyObject) {
  const Request r = with_tools(R"(, {"role": "assistant", "content": null, "tool_calls": [
      {"id": "a", "type": "function", "function": {"name": "now", "arguments": ""}}]},
      {"role": "tool", "tool_call_id": "a", "content": "noon"})",
                               kTwoTools);
  EXPECT_EQ(r.turns[0].reply, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>");
}

TEST(OpenAiTools, OfLlamaAreIndentedAndCalledOnce) {
  const Request r = with_tools("", kTwoTools, ToolFormat::llama);
  EXPECT_EQ(r.tools[1].definition,
            "{\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \"now\"\n    }\n}");
  EXPECT_EQ(r.most_calls, 1u);
  const std::string call = R"({"id": "a", "function": {"name": "weather", "arguments": "{\"zip\":1}"}})",
                    reply = R"(, {"role": "assistant", "content": null, "tool_calls": [)",
                    result = R"(]}, {"role": "tool", "tool_call_id": "a", "content": "-3 \"C\""})";
  const Request with_result = with_tools(reply + call + result, kTwoTools, ToolFormat::llama);
  ASSERT_EQ(with_result.turns.size(), 2u);
  EXPECT_EQ(with_result.turns[0].reply, R"({"name": "weather", "parameters": {"zip": 1}})");
  EXPECT_FALSE(with_result.turns[0].of_tools);
  EXPECT_EQ(with_result.turns[1].message, R"("-3 \"C\"")");
  EXPECT_TRUE(with_result.turns[1].of_tools);
  expect_refusal([&] { with_tools(reply + call + "," + call + result, kTwoTools, ToolFormat::llama); },
                 "messages[1].tool_calls", "expected one call");
}

TEST(OpenAiTools, RefusesMistakesAndSaysWhere) {
  const struct {
    const char *members, *param, *words;
  } kCases[] = {
      {R"("tools": {})", "tools", "an array, found an object"},
      {R"("tools": [1])", "tools[0]", "an object"},
      {R"("tools": [{}])", "tools[0].type", "nothing"},
      {R"("tools": [{"type": "x"}])", "tools[0].type", "function, the only supported type, found 'x'"},
      {R"("tools": [{"type": "function"}])", "tools[0].function", "an object, found nothing"},
      {R"("tools": [{"type": "function", "function": {}}])", "tools[0].function.name", "a string"},
      {R"("tools": [{"type": "function", "function": {"name": "a b"}}])", "tools[0].function.name", "found 'a b'"},
      {R"("tools": [{"type": "function", "function": {"name": "a", "parameters": 1}}])", "tools[0].function.parameters",
       "an integer"},
      {R"("tools": [{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "a"}}])",
       "tools[1].function.name", "as of another tool"},
      {R"("tool_choice": "required")", "tool_choice", "without tools"},
      {R"("tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": "x")", "tool_choice", "another"},
      {R"("tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice":
          {"type": "function", "function": {"name": "b"}})",
       "tool_choice.function.name", "found 'b'"},
      {R"("tools": [{"type": "function", "function": {"name": "a"}}], "response_format": {"type": "json_object"})",
       "response_format", "together with tools"},
  };
  for (const auto& c : kCases) expect_refusal([&] { with_tools("", c.members); }, c.param, c.words);
  const std::string call = R"(, {"role": "assistant", "content": null, "tool_calls": [
      {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]})";
  const struct {
    std::string messages;
    const char *param, *words;
  } kMessages[] = {
      {call, "messages", "the result of the call a"},
      {call + R"(, {"role": "user", "content": "x"})", "messages[2].role", "expected tool, found 'user'"},
      {call + R"(, {"role": "tool", "tool_call_id": "b", "content": "x"})", "messages[2].tool_call_id", "such as 'a'"},
      {call + R"(, {"role": "tool", "content": "x"})", "messages[2].tool_call_id", "nothing"},
      {R"(, {"role": "tool", "tool_call_id": "a", "content": "x"})", "messages[1].role", "expected assistant"},
      {R"(, {"role": "assistant", "content": null})", "messages[1].content", "a string"},
      {R"(, {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]})",
       "messages[1].tool_calls[0].function.arguments", "JSON of an object"},
  };
  for (const auto& c : kMessages) expect_refusal([&] { with_tools(c.messages, kTwoTools); }, c.param, c.words);
  expect_refusal(
      [&] {
        served_chat(R"("messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "",
      "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}])");
      },
      "messages[1].tool_calls", "not supported");
}

// Reads a reply that comes in pieces of these sizes.
std::pair<std::string, std::vector<ToolCall>> read_reply(const std::string& reply, size_t piece,
                                                         ToolFormat format = ToolFormat::hermes) {
  const std::vector<Tool> tools = {{"weather", "", ""}, {"now", "", ""}};
  ToolCallReader reader(format, tools);
  std::string text;
  for (size_t at = 0; at < reply.size(); at += piece) text += reader.push(reply.substr(at, piece));
  text += reader.finish();
  return {text, reader.calls()};
}

struct ReplyCase {
  std::string reply, text;
  std::vector<std::pair<std::string, std::string>> calls;
};

// Whatever the pieces that a reply comes in.
void expect_calls(const std::vector<ReplyCase>& cases, ToolFormat format) {
  for (const ReplyCase& c : cases)
    for (size_t piece = 1; piece <= c.reply.size() + 1; piece++) {
      const auto [text, calls] = read_reply(c.reply, piece, format);
      EXPECT_EQ(text, c.text) << c.reply << " in pieces of " << piece;
      ASSERT_EQ(calls.size(), c.calls.size()) << c.reply << " in pieces of " << piece;
      for (size_t i = 0; i < calls.size(); i++) {
        EXPECT_EQ(calls[i].name, c.calls[i].first);
        EXPECT_EQ(calls[i].arguments, c.calls[i].second);
      }
    }
}

TEST(OpenAiTools, CallsAreReadFromReplies) {
  const std::string weather = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"z\":1, \"a\": 2}}\n</tool_call>",
                    now = "<tool_call>{\"arguments\":{},\"name\":\"now\"}</tool_call>",
                    quoted = "<tool_call>{\"name\": \"now\", \"arguments\": \"{\\\"b\\\": 1}\"}</tool_call>";
  const std::vector<ReplyCase> cases = {
      {"", "", {}},
      {"no call < tool \n ", "no call < tool \n ", {}},
      {"<tool_cal", "<tool_cal", {}},
      {weather, "", {{"weather", "{\"z\":1, \"a\": 2}"}}},
      {"\n\n" + weather + "\n", "", {{"weather", "{\"z\":1, \"a\": 2}"}}},
      {"Let me see.\n" + weather + "\n" + now, "Let me see.", {{"weather", "{\"z\":1, \"a\": 2}"}, {"now", "{}"}}},
      {"a " + now + " b " + now + " ", "a\nb", {{"now", "{}"}, {"now", "{}"}}},
      {quoted, "", {{"now", "{\"b\": 1}"}}},
      {"<tool_call>{\"name\":\"now\",\"arguments\":{}}", "", {{"now", "{}"}}},
      {"a\n<tool_call>{\"name\":\"now\",\"argu", "a\n<tool_call>{\"name\":\"now\",\"argu", {}},
      {"a <tool_call>none</tool_call> b", "a <tool_call>none</tool_call> b", {}},
      {"<tool_call>{\"name\":\"other\",\"arguments\":{}}</tool_call>",
       "<tool_call>{\"name\":\"other\",\"arguments\":{}}</tool_call>",
       {}},
      {"<tool_call>{\"name\":\"now\",\"arguments\":[1]}</tool_call>",
       "<tool_call>{\"name\":\"now\",\"arguments\":[1]}</tool_call>",
       {}},
  };
  expect_calls(cases, ToolFormat::hermes);
  const auto two = read_reply(now + now, 1000).second;
  EXPECT_NE(two[0].id, two[1].id);
  EXPECT_EQ(two[0].id, read_reply(now, 3).second[0].id);
}

TEST(OpenAiTools, CallsOfLlamaAreReadFromReplies) {
  const std::string weather = R"({"name": "weather", "parameters": {"city": "a } \\\" b", "z": {}}})",
                    now = R"({"type":"function","parameters":{},"name":"now"})";
  expect_calls(
      {
          {"", "", {}},
          {" \n ", " \n ", {}},
          {" It is {\"cold\"}.\n", " It is {\"cold\"}.\n", {}},
          {weather, "", {{"weather", R"({"city": "a } \\\" b", "z": {}})"}}},
          {"\n\n" + now + " \n", "", {{"now", "{}"}}},
          {now + "; " + weather, "; " + weather, {{"now", "{}"}}},
          {R"({"name": "now", "parameters": "{\"b\": 1}"})", "", {{"now", R"({"b": 1})"}}},
          {R"({"name": "other", "parameters": {}} )", R"({"name": "other", "parameters": {}} )", {}},
          {R"( {"name": "now", "arguments": {}})", R"( {"name": "now", "arguments": {}})", {}},
          {R"({"name": "now", "parameters": [1]})" + now, R"({"name": "now", "parameters": [1]})" + now, {}},
          {"{\"name\": \"now\", \"param", "{\"name\": \"now\", \"param", {}},
          {"{} {", "{} {", {}},
      },
      ToolFormat::llama);
}

TEST(OpenAiRequest, RefusesParametersOfTheServer) {
  const struct {
    const char *members, *param, *words;
  } kCases[] = {
      {R"("n": 0)", "n", "an integer from 1"},
      {R"("stream": 1)", "stream", "a boolean, found an integer"},
      {R"("stream_options": {"include_usage": true})", "stream_options", "stream to be true"},
      {R"("stream": true, "stream_options": {"include_usage": 1})", "stream_options.include_usage", "a boolean"},
      {R"("tools": [{"type": "function", "function": {"name": "f"}}])", "tools",
       "the chat template of this model has no tools"},
      {R"("tool_choice": "required")", "tool_choice", "without tools"},
      {R"("functions": [])", "functions", "not supported"},
      {R"("response_format": "json")", "response_format", "an object"},
      {R"("response_format": {})", "response_format.type", "nothing"},
      {R"("response_format": {"type": "xml"})", "response_format.type", "found 'xml'"},
      {R"("response_format": {"type": "json_schema"})", "response_format.json_schema", "an object, found nothing"},
      {R"("response_format": {"type": "json_schema", "json_schema": {"schema": 1}})",
       "response_format.json_schema.schema", "an object, found an integer"},
      {R"("grammar": 1)", "grammar", "a string"},
      {R"("grammar": "a", "response_format": {"type": "json_object"})", "response_format", "both"},
      {R"("max_tokens": 0)", "max_tokens", "from 1"},
  };
  for (const auto& c : kCases) expect_refusal([&] { served_chat(c.members); }, c.param, c.words);
  expect_refusal([] { served(Endpoint::text, R"({"prompt": "a", "max_tokens": 0})"); }, "max_tokens", "without echo");
}

TEST(OpenAiRequest, FindsTheTextOfAMember) {
  EXPECT_EQ(member_text(R"({"a": 1 , "b":[{"a": 2}],"c" : "a\"}"})", "a"), "1");
  EXPECT_EQ(member_text(R"({"a": 1 , "b":[{"a": 2}],"c" : "a\"}"})", "b"), R"([{"a": 2}])");
  EXPECT_EQ(member_text(R"({"a": 1 , "b":[{"a": 2}],"c" : "a\"}"})", "c"), R"("a\"}")");
  EXPECT_EQ(member_text(R"({"a": 1, "a": {"b": ",:"}})", "a"), R"({"b": ",:"})") << "the last one";
  EXPECT_EQ(member_text(R"({"x": "a", "y": {"a": 1}})", "a"), "");
  EXPECT_EQ(member_text("{}", "a"), "");
  EXPECT_EQ(member_text("", "a"), "");
}

TEST(OpenAiRequest, RefusesConversationsAndPromptsAndSaysWhere) {
  const struct {
    const char *body, *param, *words;
  } kChats[] = {
      {"[]", "body", "expected an object, found an array"},
      {"{}", "messages", "expected an array of messages, found nothing"},
      {R"({"messages": []})", "messages", "found an empty array"},
      {R"({"messages": [1]})", "messages[0]", "expected an object, found an integer"},
      {R"({"messages": [{"content": "a"}]})", "messages[0].role", "found nothing"},
      {R"({"messages": [{"role": "user"}]})", "messages[0].content", "found nothing"},
      {R"({"messages": [{"role": "user", "content": null}]})", "messages[0].content", "expected a string, found null"},
      {R"({"messages": [{"role": "tool", "content": "a"}]})", "messages[0].role", "expected system or user"},
      {R"({"messages": [{"role": "system", "content": "a"}]})", "messages", "a message of the user at the end"},
      {R"({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]})", "messages[1].role",
       "expected assistant, found 'user'"},
      {R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})", "messages",
       "a message of the user at the end"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", "messages[0].content[0].type",
       "expected text, the only supported type, found 'image_url'"},
      {R"({"messages": [{"role": "user", "content": "a", "tool_call_id": "b"}]})", "messages[0].tool_call_id",
       "not supported"},
  };
  for (const auto& c : kChats) expect_refusal([&] { chat(c.body); }, c.param, c.words);
  const struct {
    const char *body, *words;
  } kTexts[] = {
      {"{}", "expected a string, found nothing"},
      {R"({"prompt": ["a", "b"]})", "expected one prompt, as a string or an array of token ids, found 2 prompts"},
      {R"({"prompt": []})", "expected a string or an array, found an empty array"},
      {R"({"prompt": [1, "a"]})", "expected an integer"},
      {R"({"prompt": [-1]})", "found -1"}};
  for (const auto& c : kTexts) expect_refusal([&] { text(c.body); }, "prompt", c.words);
}

TEST(OpenAiRequest, RefusesInvalidJson) {
  expect_refusal([] { parse_json("nonsense"); }, "", "expected JSON, found an error at byte 2");
  expect_refusal([] { parse_json(""); }, "", "expected JSON");
  expect_refusal([] { parse_json("{\"a\": \"\xFF\"}"); }, "", "expected JSON");
  expect_refusal([] { parse_json(std::string("{}\0{}", 5)); }, "", "expected JSON, found an error at byte 3");
  expect_refusal([] { parse_json("{\"a\": 1e999}"); }, "", "a number out of range");
  expect_refusal([] { parse_json(std::string(1000000, '[')); }, "", "nested at most 64 deep");
}

TEST(OpenAiResponse, NamesTokens) {
  EXPECT_EQ(token_name(""), "");
  EXPECT_EQ(token_name(" é€"), " é€");
  EXPECT_EQ(token_name("\xE2\x80"), "bytes:\\xe2\\x80");
  EXPECT_EQ(token_name("a\xFF"), "bytes:\\x61\\xff");
}

TEST(OpenAiResponse, IsOneLineThatIsSafeOnATerminal) {
  const std::string odd = "a\n\x1B[31m\xC2\x9B\xE2\x80\xA8\xE2\x80\xAE\xFFz";
  const std::string line = to_line({{"text", odd}});
  EXPECT_EQ(line, "{\"text\":\"a\\n\\u001b[31m\\u009b\\u2028\\u202e\xEF\xBF\xBDz\"}");
  EXPECT_EQ(count_controls(line), 0);
}

}  // namespace openai_request_test
