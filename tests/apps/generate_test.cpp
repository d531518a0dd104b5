// generate_test.cpp: ./run -m generate: saved and resumed texts, --lookup, --json and --top. The models have random
// weights and mostly generate single bytes, so that texts often stop within a character.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../support/run_program.hpp"
#include "../support/terminal.hpp"
#include "../support/test_data.hpp"

namespace generate_test {

using Json = nlohmann::json;
using Arguments = std::vector<std::string>;

class GenerateProgram : public RunProgram {
 protected:
  static Arguments with(Arguments args, const Arguments& more) {
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  // A text in two runs: saved by the first one, resumed by the second one with another kernel and thread count.
  static std::string in_two(const Arguments& args, int first, int second, const TemporaryFolder& t) {
    const std::string file = t.file("s.session");
    const std::string beginning = text(with(args, {"-n", std::to_string(first), "--save", file}));
    Arguments rest = {args[0], "--resume", file, "-n", std::to_string(second), "--threads", "3", "--kernel", "scalar"};
    for (size_t i = 3; i < args.size(); i++) rest.push_back(args[i]);  // the options after the model and the prompt
    const std::string whole = beginning + text(rest);
    EXPECT_EQ(t.list(), "s.session\n");
    return whole;
  }
};

TEST_F(GenerateProgram, ResumedTextEqualsTheUninterruptedText) {
  const TemporaryFolder t;
  for (const char* type : {"q8", "f32"})
    for (const Arguments& how : {Arguments{"-t", "0"},
                                 {"-s", "7", "-t", "1.5", "-p", "1"},
                                 {"-s", "8", "-t", "1.5", "-r", "1.4", "--lookup"},
                                 {"-s", "9", "-t", "3", "-p", "1", "--stop", "xy", "--stop", "\n"}}) {
      const Arguments args = with({model(type), "-i", "caf\xC3\xA9"}, how);
      const std::string whole = text(with(args, {"-n", "40"}));
      if (how.back() == "\n" && whole.find('\n') != std::string::npos) continue;  // it may stop before the cut
      for (int first : {1, 2, 3, 4, 5, 11, 20, 39})
        EXPECT_EQ(in_two(args, first, 40 - first, t), whole) << type << " " << how[1] << " " << first;
    }
}

TEST_F(GenerateProgram, SessionIsResumedAndSavedInTheSameFile) {
  const TemporaryFolder t;
  const std::string file = t.file("s");
  std::string parts = text({model(), "-i", "so", "-n", "10", "-s", "3", "--save", file});
  for (int i = 0; i < 4; i++) parts += text({model(), "--resume", file, "--save", file, "-n", "10"});
  EXPECT_EQ(parts, text({model(), "-i", "so", "-n", "50", "-s", "3"})) << "with the seed of the session";
  EXPECT_NE(text({model(), "--resume", file, "-s", "4", "-n", "30"}), text({model(), "--resume", file, "-n", "30"}));
}

TEST_F(GenerateProgram, PromptIsAppendedToASession) {
  const TemporaryFolder t;
  const std::string file = t.file("s");
  text({model(), "--ids", "1,5,6", "-n", "1", "-t", "0", "--save", file});
  // The generated token is not processed yet.
  const Json generated =
      Json::parse(run({model(), "--ids", "1,5,6", "-n", "1", "-t", "0", "--json", "--top", "1"}).err);
  const std::string id = std::to_string(generated["choices"][0]["id"].get<int>());
  const std::string end = text({model(), "--resume", file, "--ids", "9,300", "-n", "20", "-t", "0"});
  const std::string whole = text({model(), "--ids", "1,5,6," + id + ",9,300", "-n", "20", "-t", "0"});
  ASSERT_GE(whole.size(), end.size());
  EXPECT_EQ(whole.substr(whole.size() - end.size()), end);
  EXPECT_GT(end.size(), 10u);
}

TEST_F(GenerateProgram, FullContextIsResumedInALargerOne) {
  const TemporaryFolder t;
  const std::string file = t.file("s");
  const std::string part = text({model(), "--ids", "1,5", "-n", "0", "--ctx", "20", "-s", "2", "--save", file});
  expect_failure(1, {model(), "--resume", file}, {"room for 0", "--ctx"});
  EXPECT_EQ(part + text({model(), "--resume", file, "--ctx", "60", "-n", "0"}),
            text({model(), "--ids", "1,5", "-n", "0", "--ctx", "60", "-s", "2"}));
  expect_failure(1, {model(), "--resume", file, "--ctx", "19"}, {"room for the saved session's 20 tokens, found 19"});
  expect_failure(1, {model(), "--resume", file, "--kv", "f32"}, {"keys and values: expected q8"});
}

TEST_F(GenerateProgram, RejectsInvalidSessionFiles) {
  const TemporaryFolder t;
  const std::string file = t.file("s");
  text({model(), "-i", "so", "-n", "3", "--save", file});
  const std::string bytes = read_file(file);
  expect_failure(1, {model("q4"), "--resume", file},
                 {file, "model: expected ", "a session needs the model it was saved with"});
  for (size_t n = 0; n <= 64; n++)
    expect_failure(1, {model(), "--resume", t.write("cut", bytes.substr(0, n))}, {"cut: size: expected "});
  for (const size_t n : {size_t(70), bytes.size() / 2, bytes.size() - 1})
    expect_failure(1, {model(), "--resume", t.write("cut", bytes.substr(0, n))}, {"cut: size: expected a note of"});
  for (const size_t at : {0, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 90, 300}) {
    std::string changed = bytes;
    changed[at] ^= 4;
    expect_failure(1, {model(), "--resume", t.write("changed", changed)}, {"changed: ", "expected "});
  }
  expect_failure(1, {model(), "--resume", model()}, {"magic: expected a saved session"});
  expect_failure(1, {model(), "--resume", t.file("none")}, {"none: No such file", "--save writes one"});
  expect_failure(1, {model(), "--resume", t.path()}, {"no regular file"});
}

TEST_F(GenerateProgram, FailedSaveLeavesNoFile) {
  const TemporaryFolder t;
  expect_failed(run({model(), "-i", "", "-n", "3", "--save", t.file("no/such/folder")}), 1, {"No such file"});
  ProgramOptions small;
  small.largest_file = 500;
  EXPECT_EQ(run({model(), "--ids", "1,5,6", "-n", "3", "--save", t.file("s")}, small).status, 1);
  EXPECT_EQ(t.list(), "");
}

TEST_F(GenerateProgram, CtrlCSavesTheSession) {
  const TemporaryFolder t;
  const std::string file = t.file("s");
  ProgramOptions options;
  options.interrupt_after_output = "go";
  const Arguments how = {"--ctx", "100000", "-s", "5", "-t", "3", "-p", "1"};
  const auto r = run(with({model(), "-i", "go", "-n", "0", "--save", file}, how), options);
  ASSERT_EQ(r.status, 130) << r.err;
  EXPECT_TRUE(is_utf8(r.out));
  const auto more = run(with({model(), "--resume", file, "-n", "50", "--json"}, how));
  ASSERT_EQ(more.status, 0) << more.err;
  const int tokens = Json::parse(more.err)["position"].get<int>();
  const std::string whole = text(with({model(), "-i", "go", "-n", std::to_string(tokens)}, how));
  EXPECT_EQ((r.out + more.out).substr(0, whole.size() - 40), whole.substr(0, whole.size() - 40));
  EXPECT_GT(r.out.size() + more.out.size(), whole.size() - 40);
}

TEST_F(GenerateProgram, LookupDoesNotChangeTheText) {
  for (const char* temperature : {"0", "0.8"})
    for (const char* seed : {"1", "2", "3"}) {
      const Arguments args = {model("q4"), "-i", "ab ab ab ab ab", "-n", "120", "-t", temperature, "-s", seed};
      EXPECT_EQ(text(with(args, {"--lookup"})), text(args));
    }
  const auto r = run({model(), "-i", "ab ab ab", "-n", "200", "-t", "0", "--lookup", "--json"});
  const Json figures = Json::parse(r.err);
  EXPECT_GE(figures["guesses"].get<int>(), figures["guesses_right"].get<int>());
  EXPECT_NE(run({model(), "-i", "ab ab", "--lookup"}).err.find("guesses right"), std::string::npos);
}

TEST_F(GenerateProgram, DraftDoesNotChangeTheText) {
  for (const char* temperature : {"0", "0.8"})
    for (const char* seed : {"1", "2", "3"}) {
      const Arguments args = {model("q8"), "-i", "ab ab ab ab ab", "-n", "120", "-t", temperature, "-s", seed};
      EXPECT_EQ(text(with(args, {"--draft", model("q4")})), text(args));
      EXPECT_EQ(text(with(args, {"--draft", model("q4"), "--lookup"})), text(args));
    }
  const Json figures = Json::parse(run({model(), "-i", "ab", "-n", "200", "--draft", model("q4"), "--json"}).err);
  EXPECT_GE(figures["guesses"].get<int>(), figures["guesses_right"].get<int>());
  EXPECT_NE(run({model(), "-i", "ab ab", "--draft", model("q4")}).err.find("guesses right"), std::string::npos);
}

TEST_F(GenerateProgram, RejectsADraftThatCannotGuess) {
  const TemporaryFolder t;
  const std::string stories = std::string(POCKET_SOURCE_DIR) + "/models/stories.bin";
  expect_failure(1, {model(), "-i", "ab", "--draft", t.file("none.bin")}, {"--draft: ", "none.bin"});
  expect_failure(1, {model(), "-i", "ab", "--draft", stories}, {"--draft: ", "expected the vocabulary of"});
  expect_failure(2, {model(), "-i", "ab", "--draft", model("q4"), "--kernel", "reference"},
                 {"--draft is not supported"});
}

TEST_F(GenerateProgram, PrintsFiguresAsJson) {
  const auto r = run({model(), "--ids", "1,5,6", "-n", "7", "-s", "9007199254740991", "--json"});
  EXPECT_EQ(r.status, 0);
  const Json figures = Json::parse(r.err);
  EXPECT_EQ(figures["prompt_tokens"], 3);
  EXPECT_EQ(figures["new_tokens"], 7);
  EXPECT_EQ(figures["position"], 9) << "the last token is not processed";
  EXPECT_EQ(figures["seed"], 9007199254740991);
  EXPECT_EQ(figures["end"], "tokens");
  EXPECT_FALSE(figures.contains("choices"));
  EXPECT_EQ(r.out, text({model(), "--ids", "1,5,6", "-n", "7", "-s", "9007199254740991"})) << "stdout is the text";
  const auto end = [&](const Arguments& args) {
    return Json::parse(run(with({model(), "--ids", "1,5", "--json", "-s", "1"}, args)).err)["end"];
  };
  EXPECT_EQ(end({"-n", "0", "--ctx", "30"}), "context");
  const std::string all = text({model(), "--ids", "1,5", "-s", "1", "-n", "30"});
  size_t letter = 5;
  while (letter < all.size() && !std::isalpha(uint8_t(all[letter]))) letter++;
  EXPECT_EQ(end({"-n", "30", "--stop", all.substr(letter, 1)}), "stop text");
}

TEST_F(GenerateProgram, TopListsTheMostLikelyTokens) {
  const Arguments args = {model("f32"), "--ids", "1,5,6", "-n", "6", "-s", "2"};
  const Json all = Json::parse(run(with(args, {"--top", "512", "--json", "--lookup"})).err)["choices"];
  ASSERT_EQ(all.size(), 6u);
  for (const Json& choice : all) {
    double sum = 0, before = 1;
    bool chosen = false;
    for (const Json& token : choice["top"]) {
      const double p = token["p"];
      EXPECT_LE(p, before);
      sum += p;
      before = p;
      chosen |= token["id"] == choice["id"] && token["p"] == choice["p"] && token["text"] == choice["text"];
    }
    EXPECT_EQ(choice["top"].size(), 512u);
    EXPECT_NEAR(sum, 1, 1e-6);
    EXPECT_TRUE(chosen);
  }
  const auto r = run(with(args, {"--top", "3", "-q"}));
  EXPECT_EQ(r.out, text(args)) << "the text is unchanged";
  EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 6) << r.err;
  EXPECT_EQ(r.err.rfind(all[0]["text"].dump(-1, ' ', false), 0), 0u) << r.err;
  for (const char c : r.err) EXPECT_TRUE(c == '\n' || (uint8_t(c) >= 32 && c != 127)) << "no control characters";
}

std::string without_carriage_returns(std::string text) {
  text.erase(std::remove(text.begin(), text.end(), '\r'), text.end());
  return text;
}

// On a terminal, the lines of --top follow the text.
TEST_F(GenerateProgram, TopDoesNotInterruptTheTextOnATerminal) {
  const Arguments args = {model("f32"), "-i", "so", "-n", "6", "-s", "2", "--top", "3", "-q"};
  const auto piped = run(args);
  ASSERT_EQ(piped.status, 0) << piped.err;
  ProgramOptions terminal;
  terminal.stderr_terminal = true;
  const auto r = run(args, terminal);
  EXPECT_EQ(r.out, piped.out);
  ASSERT_NE(r.out.back(), '\n');
  EXPECT_EQ(without_carriage_returns(r.err), "\n" + piped.err) << "the same lines, after the line of the text";

  TerminalProgram t(with({POCKET_RUN}, args));
  EXPECT_EQ(t.wait_for_exit(), 0);
  const std::string shown = without_carriage_returns(t.output());
  EXPECT_EQ(shown, pocket::without_controls(piped.out) + "\n" + piped.err);
}

TEST_F(GenerateProgram, RejectsOptionsThatAreNotValidInAChat) {
  for (const Arguments& args : {Arguments{"--save", "s"}, {"--resume", "s"}, {"--top", "2"}})
    expect_failure(2, with({model(), "-m", "chat"}, args), {args[0] + " is not valid in a chat", "-m chat"});
}

}  // namespace generate_test
