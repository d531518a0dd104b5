// batch_test.cpp: run-batch as a user runs it: results that depend on nothing but the request, resuming, and errors.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../support/adapter_folder.hpp"
#include "../support/run_program.hpp"
#include "../support/terminal.hpp"
#include "../support/tiny_model.hpp"

namespace batch_test {

using Json = nlohmann::json;

class RunBatch : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder = new TemporaryFolder;
    const auto made = run_program(
        {POCKET_CONVERT, "--random", "tiny", "--template", "plain", "--type", "q8", "-o", folder->file("chat.bin")});
    ASSERT_EQ(made.status, 0) << made.err;
  }
  static void TearDownTestSuite() { delete folder; }

  static std::string stories() { return std::string(POCKET_SOURCE_DIR) + "/models/stories.bin"; }
  static std::string chat_model() { return folder->file("chat.bin"); }

  static std::string request(const std::string& id, const Json& body, const std::string& url = "/v1/completions") {
    return Json{{"custom_id", id}, {"method", "POST"}, {"url", url}, {"body", body}}.dump() + "\n";
  }
  // Requests of different lengths and options, and some lines with mistakes.
  static std::vector<std::string> requests(int n) {
    const char* starts[] = {"Once upon a time", "The dog", "", "Lily and Ben went to the park. They saw a big tree."};
    std::vector<std::string> lines;
    tiny::Random random(5);
    for (int i = 0; i < n; i++) {
      Json body = {{"prompt", starts[random.below(4)]}, {"max_tokens", 1 + random.below(60)}};
      if (i % 3 == 0) body["temperature"] = 0;
      if (i % 4 == 1) body["stop"] = {".", "\n"};
      if (i % 5 == 2) body["logprobs"] = 2;
      if (i % 7 == 3) body["frequency_penalty"] = 1;
      if (i % 6 == 4) body["seed"] = i;
      if (i % 11 == 10) body["n"] = 2;
      lines.push_back(i % 13 == 12 ? "mistake " + std::to_string(i) + "\n" : request("r" + std::to_string(i), body));
    }
    return lines;
  }
  static std::string joined(const std::vector<std::string>& lines) {
    std::string all;
    for (const std::string& line : lines) all += line;
    return all;
  }
  static std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    for (size_t at = 0, end; at < text.size(); at = end + 1) {
      end = std::min(text.find('\n', at), text.size() - 1);
      lines.push_back(text.substr(at, end + 1 - at));
    }
    return lines;
  }
  static size_t count_lines(const std::string& text) { return size_t(std::count(text.begin(), text.end(), '\n')); }
  static std::string sorted(const std::string& text) {
    std::vector<std::string> lines = lines_of(text);
    std::sort(lines.begin(), lines.end());
    return joined(lines);
  }

  ProgramResult run(std::vector<std::string> args, const ProgramOptions& options = {}) {
    args.insert(args.begin(), {POCKET_BATCH, stories()});
    return run_program(args, options);
  }
  // The results of requests; expects success.
  std::string results(const std::string& input, std::vector<std::string> args = {}) {
    const std::string out = t.file("out" + std::to_string(outputs_++));
    args.insert(args.end(), {"-i", t.write("in", input), "-o", out, "-q"});
    const ProgramResult r = run(args);
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(r.err, "");
    EXPECT_FALSE(std::filesystem::exists(out + ".partial"));
    return read_file(out);
  }
  Json result(const std::string& line, const std::vector<std::string>& args = {}) {
    return Json::parse(results(line, args));
  }

  static TemporaryFolder* folder;
  const TemporaryFolder t;

 private:
  int outputs_ = 0;
};
TemporaryFolder* RunBatch::folder = nullptr;

// ---- Results ----

TEST_F(RunBatch, AnswersInTheFormatOfOpenAi) {
  const Json r = result(
      request("a b", {{"model", "stories"}, {"prompt", "Once upon a time"}, {"max_tokens", 5}, {"temperature", 0}}));
  EXPECT_EQ(r["custom_id"], "a b");
  EXPECT_TRUE(r["error"].is_null());
  EXPECT_EQ(r["response"]["status_code"], 200);
  const Json& body = r["response"]["body"];
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["created"], 0);
  EXPECT_EQ(body["model"], "stories");
  EXPECT_EQ(body["choices"].size(), 1u);
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["choices"][0]["text"].get<std::string>()[0], ',') << "continues the text";
  EXPECT_EQ(body["usage"]["completion_tokens"], 5);
  EXPECT_EQ(body["usage"]["total_tokens"], 5 + body["usage"]["prompt_tokens"].get<int>());
  const std::string id = r["id"].get<std::string>().substr(10);
  EXPECT_EQ(r["response"]["request_id"], "req_" + id);
  EXPECT_EQ(body["id"], "cmpl-" + id);
}

TEST_F(RunBatch, TheTextIsThatOfRun) {
  for (const char* prompt : {"Once upon a time", "The dog", "Tim"}) {
    const auto text = run_program({POCKET_RUN, stories(), "-i", prompt, "-n", "60", "-s", "7", "-t", "0.7", "-p", "0.8",
                                   "--stop", "friend", "-q"});
    const Json r = result(request("a", {{"prompt", prompt},
                                        {"max_tokens", 60},
                                        {"seed", 7},
                                        {"temperature", 0.7},
                                        {"top_p", 0.8},
                                        {"stop", "friend"}}));
    EXPECT_EQ(prompt + r["response"]["body"]["choices"][0]["text"].get<std::string>(), text.out);
  }
}

TEST_F(RunBatch, AChatIsThatOfRun) {
  const Json body = {
      {"messages", {{{"role", "system"}, {"content", "Be kind."}}, {{"role", "user"}, {"content", "hi"}}}},
      {"max_tokens", 20},
      {"temperature", 0}};
  const std::string in = t.write("in", request("a", body, "/v1/chat/completions"));
  const auto r = run_program({POCKET_BATCH, chat_model(), "-i", in, "-o", "-", "-q"});
  EXPECT_EQ(r.status, 0) << r.err;
  const Json response = Json::parse(r.out)["response"]["body"];
  EXPECT_EQ(response["object"], "chat.completion");
  EXPECT_EQ(response["choices"][0]["message"]["role"], "assistant");
  const auto chat =
      run_program({POCKET_RUN, chat_model(), "-m", "chat", "-y", "Be kind.", "-i", "hi", "-n", "20", "-t", "0", "-q"});
  EXPECT_EQ(response["choices"][0]["message"]["content"].get<std::string>() + "\n", chat.out);
}

TEST_F(RunBatch, ResultsDependOnTheRequestOnly) {
  const std::vector<std::string> lines = requests(24);
  const std::string all = joined(lines), expected = results(all, {"--parallel", "1", "--threads", "1"});
  EXPECT_EQ(lines_of(expected).size(), lines.size());
  for (const char* parallel : {"2", "3", "8", "32"})
    EXPECT_EQ(results(all, {"--parallel", parallel}), expected) << parallel;
  EXPECT_EQ(results(all, {"--threads", "3"}), expected);
  EXPECT_EQ(results(all, {"--kernel", "scalar"}), expected);
  EXPECT_EQ(results(all, {"--memory", "40MB"}), expected);
  EXPECT_EQ(sorted(results(all, {"--unordered"})), sorted(expected));
  EXPECT_NE(results(all, {"--unordered"}), expected) << "in the order in which they finish";

  std::string parts;  // the file in seven parts
  for (size_t part = 0; part < 7; part++) {
    const size_t begin = part * lines.size() / 7, end = (part + 1) * lines.size() / 7;
    parts += results(joined({lines.begin() + long(begin), lines.begin() + long(end)}), {"--parallel", "4"});
  }
  EXPECT_EQ(parts, expected);

  std::vector<std::string> shuffled = lines;
  tiny::Random random(9);
  for (size_t i = shuffled.size(); i > 1; i--) std::swap(shuffled[i - 1], shuffled[size_t(random.below(int(i)))]);
  EXPECT_EQ(sorted(results(joined(shuffled))), sorted(expected));
}

TEST_F(RunBatch, TheSeedComesFromTheCustomIdUnlessGiven) {
  const auto text = [&](const std::string& id, Json body) {
    body.update({{"prompt", "One day"}, {"max_tokens", 30}});
    return result(request(id, body))["response"]["body"]["choices"][0]["text"];
  };
  EXPECT_NE(text("a", Json::object()), text("b", Json::object()));
  EXPECT_EQ(text("a", {{"seed", 5}}), text("b", {{"seed", 5}}));
  EXPECT_NE(text("a", {{"seed", 5}}), text("a", {{"seed", 6}}));
}

TEST_F(RunBatch, LogProbabilitiesAreThoseOfTheTokens) {
  const Json r = result(request("a", {{"prompt", "The"}, {"max_tokens", 8}, {"temperature", 0}, {"logprobs", 3}}));
  const Json& choice = r["response"]["body"]["choices"][0];
  std::string text;
  for (size_t i = 0; i < 8; i++) {
    const std::string token = choice["logprobs"]["tokens"][i];
    EXPECT_EQ(choice["logprobs"]["text_offset"][i], text.size());
    text += token;
    const Json& top = choice["logprobs"]["top_logprobs"][i];
    const double p = choice["logprobs"]["token_logprobs"][i];
    EXPECT_EQ(top.size(), 3u);
    EXPECT_LT(p, 0);
    EXPECT_EQ(top[token], p);
    double sum = 0;
    for (const Json& other : top) {
      EXPECT_LE(other, p) << "temperature 0 chooses the most likely token";
      sum += std::exp(other.get<double>());
    }
    EXPECT_LT(sum, 1.00001);
  }
  EXPECT_EQ(text, choice["text"]);
}

TEST_F(RunBatch, ReadsAndWritesPipes) {
  const std::string all = joined(requests(30)), expected = results(all);
  ProgramOptions pipe;
  pipe.input = all;
  const ProgramResult r = run({"-i", "-", "-o", "-", "-q"}, pipe);
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.out, expected);
  EXPECT_EQ(sorted(run({"-i", "-", "-o", "-", "-q", "--unordered"}, pipe).out), sorted(expected));
  pipe.broken_stdout = true;
  EXPECT_EQ(run({"-i", "-", "-o", "-", "-q"}, pipe).status, 1);
}

TEST_F(RunBatch, ReadsStandardInputFromItsOffset) {
  const std::string in = t.write("in", "first line\n" + joined(requests(5)));
  const ProgramResult r =
      run_program({"sh", "-c", "{ read -r line; \"$0\" \"$1\" -i - -o - -q; } < \"$2\"", POCKET_BATCH, stories(), in});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.out, results(joined(requests(5))));
}

TEST_F(RunBatch, PrintsASummary) {
  const std::string in = t.write("in", joined(requests(12)) + "\n  \n");
  const ProgramResult r = run({"-i", in, "-o", t.file("out")});
  EXPECT_EQ(r.status, 0);
  EXPECT_EQ(r.err.rfind("12 requests, 1 failed; prompt ", 0), 0u) << r.err;
  EXPECT_NE(r.err.find(" tok/s; peak memory "), std::string::npos) << r.err;
  EXPECT_EQ(results(""), "");
}

// ---- Interruptions ----

TEST_F(RunBatch, ResumesAfterSigkillWithTheSameBytes) {
#ifndef POCKET_FAULT_LIBRARY
  GTEST_SKIP() << "the fault library is not built with sanitizers";
#else
  const std::string in = t.write("in", joined(requests(40))), out = t.file("out");
  for (const bool unordered : {false, true}) {
    const std::string expected = results(read_file(in));
    std::vector<std::string> args = {"env",
                                     std::string("LD_PRELOAD=") + POCKET_FAULT_LIBRARY,
                                     "POCKET_FAULT=",
                                     POCKET_BATCH,
                                     stories(),
                                     "-i",
                                     in,
                                     "-o",
                                     out,
                                     "-q",
                                     "--parallel",
                                     "5"};
    if (unordered) args.push_back("--unordered");
    int kills = 0;
    for (int calls = 1; !std::filesystem::exists(out); calls = calls % 4 + 1) {
      const size_t before = count_lines(read_file(out + ".partial"));
      args[2] = "POCKET_FAULT=write:" + std::to_string(calls) + ":9";
      const ProgramResult r = run_program(args);
      if (r.status == 0) break;
      ASSERT_EQ(r.status, 128 + SIGKILL) << r.err;
      EXPECT_EQ(count_lines(read_file(out + ".partial")), std::min<size_t>(40, before + size_t(calls) - 1));
      // The last line may have been cut off at any byte.
      std::string partial = read_file(out + ".partial");
      if (kills++ % 3 == 1 && !partial.empty())
        partial.resize(partial.size() - 1 - kills % lines_of(partial).back().size());
      t.write("out.partial", partial);
      ASSERT_LT(kills, 200);
    }
    EXPECT_GE(kills, 10);
    EXPECT_EQ(unordered ? sorted(read_file(out)) : read_file(out), unordered ? sorted(expected) : expected);
    EXPECT_FALSE(std::filesystem::exists(out + ".partial"));
    std::filesystem::remove(out);
  }
#endif
}

// SIGINT arrives while the 20th result is written.
TEST_F(RunBatch, ResumesAfterCtrlC) {
#ifndef POCKET_FAULT_LIBRARY
  GTEST_SKIP() << "the fault library is not built with sanitizers";
#else
  const std::string in = t.write("in", joined(requests(60))), out = t.file("out");
  const ProgramResult r = run_program({"env", "LD_PRELOAD=" POCKET_FAULT_LIBRARY, "POCKET_FAULT=write:20:2",
                                       POCKET_BATCH, stories(), "-i", in, "-o", out});
  ASSERT_EQ(r.status, 130) << r.err;
  EXPECT_NE(r.err.find("out.partial: interrupted; repeat the command to resume"), std::string::npos) << r.err;
  EXPECT_FALSE(std::filesystem::exists(out));
  const ProgramResult again = run({"-i", in, "-o", out});
  EXPECT_EQ(again.status, 0) << again.err;
  EXPECT_NE(again.err.find("of them by an earlier run)"), std::string::npos) << again.err;
  EXPECT_EQ(read_file(out), results(read_file(in)));
#endif
}

TEST_F(RunBatch, AFullDiskEndsTheRunWhichCanBeResumed) {
  const std::string all = joined(requests(40)), expected = results(all), in = t.write("in", all), out = t.file("out");
  ProgramOptions full;
  full.largest_file = expected.size() / 3;
  const ProgramResult r = run({"-i", in, "-o", out, "-q"}, full);
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.err.rfind("run-batch: " + out + ".partial: File too large; ", 0), 0u) << r.err;
  EXPECT_NE(r.err.find(" results are kept; repeat the command to resume"), std::string::npos) << r.err;
  EXPECT_FALSE(std::filesystem::exists(out));
  EXPECT_EQ(run({"-i", in, "-o", out, "-q"}).status, 0);
  EXPECT_EQ(read_file(out), expected);
}

TEST_F(RunBatch, DoesNotMixResultsOfOtherRequestsModelsOrOptions) {
  const std::string all = joined(requests(5)), in = t.write("in", all), out = t.file("out");
  const auto expect_refused = [&](const std::string& partial, std::vector<std::string> args, int line) {
    t.write("out.partial", partial);
    args.insert(args.end(), {"-i", in, "-o", out, "-q"});
    const ProgramResult r = run(args);
    EXPECT_EQ(r.status, 1);
    EXPECT_NE(r.err.find("out.partial: line " + std::to_string(line) + ": expected a result of a line of " + in),
              std::string::npos)
        << r.err;
    EXPECT_EQ(read_file(out + ".partial"), partial) << "unchanged";
  };
  const std::vector<std::string> good = lines_of(results(all));
  t.write("in", all);
  expect_refused(good[0] + good[1], {"--ctx", "200"}, 1);
  expect_refused(good[0] + good[1], {"--name", "other"}, 1);
  expect_refused(good[0] + good[0], {}, 2);
  expect_refused(good[0] + "nonsense\n", {}, 2);
  expect_refused(good[0] + "{\"id\": 5}\n", {}, 2);
  t.write("in", request("r0", {{"prompt", "another"}}));
  expect_refused(good[0], {}, 1);
}

TEST_F(RunBatch, DoesNotReplaceFiles) {
  const std::string in = t.write("in", joined(requests(3))), out = t.write("out", "old");
  expect_failed_in_a_line(run({"-i", in, "-o", out}), "run-batch", 1, {"out: exists", "--overwrite"});
  EXPECT_EQ(read_file(out), "old");
  EXPECT_EQ(run({"-i", in, "-o", out, "--overwrite"}).status, 0);
  EXPECT_NE(read_file(out), "old");
  expect_failed_in_a_line(run({"-i", in, "-o", in, "--overwrite"}), "run-batch", 1, {"expected another file"});
  expect_failed_in_a_line(run({"-i", in, "-o", stories(), "--overwrite"}), "run-batch", 1, {"expected another file"});
  pocket::Model model;
  ASSERT_TRUE(model.open(stories().c_str())) << model.error;
  const AdapterFolder adapter(model.config, 2, 1);
  for (const char* file : {"/adapter_config.json", "/adapter_model.safetensors"})
    expect_failed_in_a_line(
        run({"-i", in, "-o", adapter.path() + file, "--overwrite", "--lora", adapter.path() + ":0.5"}), "run-batch", 1,
        {"expected another file"});
  expect_failed_in_a_line(
      run_program({"sh", "-c", "\"$0\" \"$1\" -i - -o \"$2\" --overwrite < \"$2\"", POCKET_BATCH, stories(), in}),
      "run-batch", 1, {"expected another file"});
  expect_failed_in_a_line(run({"-i", in, "-o", t.path(), "--overwrite"}), "run-batch", 1, {"directory"});
  expect_failed_in_a_line(run({"-i", in, "-o", t.file("none/out")}), "run-batch", 1, {"No such file"});
}

// ---- Bad input ----

TEST_F(RunBatch, BadLinesGetAnErrorAndTheRunGoesOn) {
  const Json prompt = {{"prompt", "a"}, {"max_tokens", 2}};
  const std::string post = R"("method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}})";
  std::string long_prompt;
  for (int i = 0; i < 400; i++) long_prompt += "dog ";
  const struct {
    std::string line, custom_id, code, words;
    int status = 400;
  } kCases[] = {
      {"nonsense\n", "", "invalid_json", "expected JSON, found an error at byte 2"},
      {std::string(1000, '[') + "\n", "", "invalid_json", "nested"},
      {"[1]\n", "", "invalid_request_error", "expected an object, found an array"},
      {"{" + post + "\n", "", "invalid_request_error", "custom_id: expected a string, found nothing"},
      {R"({"custom_id": 5, )" + post + "\n", "", "invalid_request_error", "custom_id: expected a string"},
      {R"({"custom_id": "", )" + post + "\n", "", "invalid_request_error", "custom_id: expected 1 to 512 bytes"},
      {request("a", prompt), "a", "", ""},
      {request("a", prompt), "a", "duplicate_custom_id", "an earlier line has the same"},
      {request("b", prompt, "/v1/embeddings"), "b", "invalid_url", "url: expected /v1/chat/completions or"},
      {request("c", prompt, "/v1/chat/completions"), "c", "unsupported_parameter", "prompt: this parameter"},
      {R"({"custom_id": "d", "method": "GET", "url": "/v1/completions", "body": {}})"
       "\n",
       "d", "invalid_method", "method: expected POST"},
      {R"({"custom_id": "e", "method": "POST", "url": "/v1/completions"})"
       "\n",
       "e", "invalid_request_error", "body"},
      {request("f", {{"prompt", "a"}, {"model", "gpt-4"}}), "f", "model_not_found", "expected stories, found 'gpt-4'",
       404},
      {request("g", {{"prompt", "a"}, {"n", 2}}), "g", "invalid_request_error", "n: expected 1"},
      {request("h", {{"prompt", "a"}, {"magic", true}}), "h", "unsupported_parameter", "magic: this parameter"},
      {request("i", {{"prompt", long_prompt}}), "i", "context_length_exceeded", "but the context has room for 256"},
      {request("j", {{"prompt", {1, 100000}}}), "j", "invalid_request_error", "prompt: expected token ids below"},
      {request("k", {{"prompt", "a"}, {"logit_bias", {{"99999", 1}}}}), "k", "invalid_request_error", "logit_bias"},
      {request("l", {{"messages", {{{"role", "user"}, {"content", "a"}}}}}, "/v1/chat/completions"), "l",
       "invalid_request_error", "no chat template"},
      {"\xEF\xBB\xBF" + request("m", prompt), "m", "", ""},  // a byte order mark
      {request("n", {{"prompt", "a"}, {"max_tokens", 2}, {"model", "stories.bin"}}), "n", "", ""},
  };
  std::string all;
  for (const auto& c : kCases) all += c.line;
  const std::vector<std::string> lines = lines_of(results(all));
  ASSERT_EQ(lines.size(), std::size(kCases));
  for (size_t i = 0; i < lines.size(); i++) {
    const auto& c = kCases[i];
    const Json r = Json::parse(lines[i]);
    EXPECT_EQ(r["custom_id"], c.custom_id) << lines[i];
    if (c.code.empty()) {
      EXPECT_EQ(r["response"]["status_code"], 200) << lines[i];
      EXPECT_EQ(r["error"], nullptr);
      continue;
    }
    EXPECT_EQ(r["response"]["status_code"], c.status) << lines[i];
    EXPECT_EQ(r["error"]["code"], c.code) << lines[i];
    EXPECT_NE(r["error"]["message"].get<std::string>().find(c.words), std::string::npos) << lines[i];
    EXPECT_EQ(r["response"]["body"]["error"]["message"], r["error"]["message"]);
  }
}

TEST_F(RunBatch, AHugeLineIsSkippedInLittleMemory) {
  const std::string in = t.file("in");
  {
    std::ofstream file(in, std::ios::binary);
    file << request("a", {{"prompt", "The"}, {"max_tokens", 2}});
    const std::string piece(1 << 20, 'x');
    for (int i = 0; i < (kSanitized ? 64 : 1024); i++) file << piece;
    file << "\n" << request("b", {{"prompt", "The"}, {"max_tokens", 2}});
  }
  const ProgramResult r = run({"-i", in, "-o", t.file("out"), "-q"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_LT(r.peak_bytes, kSanitized ? 400u << 20 : 40u << 20);
  const std::vector<std::string> lines = lines_of(read_file(t.file("out")));
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(Json::parse(lines[1])["error"]["code"], "line_too_long");
  EXPECT_EQ(Json::parse(lines[2])["response"]["status_code"], 200);
}

TEST_F(RunBatch, RefusesWrongUsage) {
  const std::string in = t.write("in", joined(requests(3)));
  const auto fails = [&](int status, const std::vector<std::string>& args, const std::vector<std::string>& words) {
    expect_failed_in_a_line(run(args), "run-batch", status, words);
  };
  fails(2, {}, {"expected a model, -i and -o"});
  fails(2, {"-i", in}, {"expected a model, -i and -o"});
  fails(2, {"-i", in, "-o", "-", "--paralel", "4"}, {"did you mean --parallel?"});
  fails(2, {"-i", in, "-o", "-", "--parallel", "0"}, {"--parallel: expected a whole number from 1 to 128"});
  fails(2, {"-i", in, "-o", "-", "--kernel", "magic"}, {"magic"});
  fails(2, {"-i", in, "-o", "-", "--kv", "q4"}, {"--kv: expected auto, q8 or f32"});
  for (const char* size : {"", "2", "lots", "5XB", "GB", "1e5"})
    if (*size && std::string(size) != "2") fails(2, {"-i", in, "-o", "-", "--memory", size}, {"--memory"});
  fails(1, {"-i", in, "-o", "-", "--memory", "2"}, {"--memory: expected at least ", "MB", "256 tokens"});
  fails(1, {"-i", t.file("none"), "-o", "-"}, {"none: No such file"});
  fails(1, {"-i", t.path(), "-o", "-"}, {"directory"});
  expect_failed_in_a_line(run_program({POCKET_BATCH, in, "-i", in, "-o", "-"}), "run-batch", 1,
                          {"expected a pocketllama model"});
  const ProgramResult help = run({"--help"});
  EXPECT_EQ(help.status, 0);
  for (const char* word : {"custom_id", "--parallel", "--memory", "repeat the command to resume", "Exit status"})
    EXPECT_NE(help.out.find(word), std::string::npos) << word;
}

}  // namespace batch_test
