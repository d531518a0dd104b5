// chat_program_test.cpp: ./run -m chat as users run it, through pipes and on a terminal.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "../support/terminal.hpp"
#include "../support/test_data.hpp"

namespace chat_program_test {

// Small models with random weights and a chat template.
class ChatProgram : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder = new TemporaryFolder;
    for (const char* name : {"plain", "zephyr"}) {
      const auto made = run_program({POCKET_CONVERT, "--random", "tiny", "--template", name, "-o", model(name)});
      ASSERT_EQ(made.status, 0) << made.err;
    }
  }
  static void TearDownTestSuite() { delete folder; }
  static std::string model(const std::string& name = "plain") { return folder->file(name + ".bin"); }
  // A model with so many tokens that the stop token is never sampled. Few tests need it, and it takes longest to make.
  static std::string endless_model() {
    const auto made = run_program(
        {POCKET_CONVERT, "--random", "stories15m", "--type", "q8", "--template", "plain", "-o", model("endless")});
    EXPECT_EQ(made.status, 0) << made.err;
    return model("endless");
  }

  // A chat through pipes, with these lines of input.
  static ProgramResult chat(const std::vector<std::string>& lines, std::vector<std::string> options = {}) {
    std::vector<std::string> args = {POCKET_RUN, model(), "-m", "chat", "-n", "12", "-t", "0", "-r", "2"};
    ProgramOptions input;
    for (const std::string& line : lines) input.input += line + "\n";
    args.insert(args.end(), options.begin(), options.end());
    return run_program(args, input);
  }

  static TemporaryFolder* folder;
};
TemporaryFolder* ChatProgram::folder = nullptr;

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (part) << " in " << (text)

// ---- Templates ----

TEST_F(ChatProgram, ChoosesATemplateByName) {
  const ProgramResult zephyr = chat({"hi"}, {"--template", "zephyr"});
  ASSERT_EQ(zephyr.status, 0) << zephyr.err;
  ProgramOptions hi;
  hi.input = "hi\n";
  EXPECT_EQ(zephyr.out,
            run_program({POCKET_RUN, model("zephyr"), "-m", "chat", "-n", "12", "-t", "0", "-r", "2"}, hi).out);
  EXPECT_NE(zephyr.out, chat({"hi"}).out) << "the model's own template is plain";
  const auto fails = [&](int status, const std::vector<std::string>& args, const std::vector<std::string>& words) {
    std::vector<std::string> all = {POCKET_RUN, model()};
    all.insert(all.end(), args.begin(), args.end());
    expect_failed_in_a_line(run_program(all), "run", status, words);
  };
  fails(2, {"-m", "chat", "--template", "poem"}, {"--template: expected one of zephyr, chatml", "found 'poem'"});
  fails(1, {"-m", "chat", "--template", "chatml"}, {"plain.bin: --template chatml: expected the token <|im_start|>"});
  fails(2, {"-i", "a", "--template", "plain"}, {"--template is only valid with -m chat"});
  fails(2, {"-m", "chat", "--ids", "1"}, {"--ids is not valid in a chat"});
}

TEST_F(ChatProgram, ConverterTakesATemplateName) {
  const TemporaryFolder t;
  const auto convert = [&](const std::string& name) {
    return run_program({POCKET_CONVERT, "--random", "tiny", "--template", name, "-o", t.file("m.bin")});
  };
  expect_failed_in_a_line(convert("poem"), "convert", 2, {"--template: expected one of zephyr", "plain", "'poem'"});
  expect_failed_in_a_line(convert("llama-3"), "convert", 1, {"--template llama-3: expected the token"});
  EXPECT_EQ(t.list(), "");
  EXPECT_EQ(convert("Llama 2").status, 0);
  EXPECT_HAS(run_program({POCKET_CONVERT, "--help"}).out, "vicuna-lines, plain");
}

// A checkpoint with an unknown template program is converted, with a warning that lists the choices.
TEST_F(ChatProgram, UnknownTemplateIsReported) {
  NEED_DATA(weights, "hf/gqa-f32");
  const TemporaryFolder t;
  for (const auto& entry : std::filesystem::directory_iterator(weights))
    std::filesystem::copy(entry.path(), t.file(entry.path().filename()));
  std::filesystem::remove(t.file("golden.json"));
  const std::string words = data_path("tok512.model"), out = t.file("out.bin");
  t.write("chat_template.jinja",
          "{% for x in range(10**9) %}{{ cycler.__init__.__globals__.os.system('id') }}"
          "{% endfor %}");
  const ProgramResult r = run_program({POCKET_CONVERT, t.path(), "-z", words, "--type", "f32", "-o", out});
  ASSERT_EQ(r.status, 0) << r.err;
  for (const char* word : {"unknown chat template (", "--template NAME", "zephyr", "vicuna", "plain"})
    EXPECT_HAS(r.err, word);
  expect_failed_in_a_line(run_program({POCKET_RUN, out, "-m", "chat", "-i", "a"}), "run", 1,
                          {"no chat template", "--template (zephyr, "});
  EXPECT_EQ(run_program({POCKET_RUN, out, "-m", "chat", "-i", "a", "-n", "5", "--template", "plain"}).status, 0);
  const ProgramResult chosen =
      run_program({POCKET_CONVERT, t.path(), "-z", words, "--type", "f32", "-o", out, "--template", "plain"});
  EXPECT_EQ(chosen.err.find("not known"), std::string::npos) << chosen.err;
  EXPECT_EQ(run_program({POCKET_RUN, out, "-m", "chat", "-i", "a", "-n", "5"}).status, 0);
}

// ---- Commands ----

TEST_F(ChatProgram, HelpListsTheCommands) {
  const ProgramResult r = chat({"/help"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.out, "");
  for (const char* word : {"/help", "/reset", "/undo", "/save FILE", "/load FILE", "/stats", "/quit", "//", "rlwrap"})
    EXPECT_HAS(r.err, word);
}

TEST_F(ChatProgram, UndoResetAndTwoSlashes) {
  const std::string one = chat({"one"}).out, two = chat({"one", "two"}).out;
  ASSERT_EQ(two.rfind(one, 0), 0u);
  EXPECT_EQ(chat({"one", "x", "/undo", "two"}).out, chat({"one", "x"}).out + two.substr(one.size()))
      << "the reply is the same as without the removed message";
  EXPECT_EQ(chat({"two words", "/reset", "one"}).out, chat({"two words"}).out + one);
  const TemporaryFolder t;
  EXPECT_EQ(chat({"//help me", "/save " + t.file("c")}).status, 0);
  EXPECT_EQ(nlohmann::json::parse(read_file(t.file("c")))[0]["content"], "/help me");
  EXPECT_EQ(chat({"one", "/quit", "two"}).out, one);
  EXPECT_EQ(chat({"", "one", "", ""}).out, one) << "empty lines are no messages";
  EXPECT_EQ(chat({"one\r"}).out, one);
}

// Each reply is a text of the grammar, also after /undo, which is as if the message had not been sent.
TEST_F(ChatProgram, RepliesFollowAGrammar) {
  const TemporaryFolder t;
  std::ofstream(t.file("g.gbnf")) << "root ::= (\"yes\" | \"no\") \" \" [0-9]{2}";
  std::ofstream(t.file("s.json")) << R"({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2})";
  const auto lines_of = [](const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  };
  for (const char* temperature : {"0", "1.5"}) {
    const std::vector<std::string> grammar = {"--grammar", t.file("g.gbnf"), "-t", temperature, "-s", "5"},
                                   schema = {"--schema", t.file("s.json"), "-t", temperature, "-n", "60", "-s", "5"};
    const std::vector<std::string> replies = lines_of(chat({"one", "two", "/undo", "three"}, grammar).out);
    ASSERT_EQ(replies.size(), 3u);
    for (const std::string& reply : replies)
      EXPECT_TRUE(std::regex_match(reply, std::regex("(yes|no) [0-9]{2}"))) << reply;
    const std::vector<std::string> without = lines_of(chat({"one", "three"}, grammar).out);
    ASSERT_EQ(without.size(), 2u);
    EXPECT_EQ(without[0], replies[0]);
    if (temperature == std::string("0")) {
      EXPECT_EQ(without[1], replies[2]) << "as if the message had not been sent";
    }
    const ProgramResult json = chat({"one", "/undo", "two"}, schema);
    EXPECT_EQ(json.status, 0) << json.err;
    std::istringstream arrays(json.out);
    for (int i = 0; i < 2; i++) {
      nlohmann::json array;
      ASSERT_NO_THROW(arrays >> array) << json.out;
      EXPECT_EQ(array.size(), 2u);
    }
  }
}

TEST_F(ChatProgram, ReportsInvalidCommands) {
  const ProgramResult r = chat({"/hlep", "/xyzzyplugh", "/save", "/reset now", "/undo", "one"});
  EXPECT_EQ(r.status, 1) << "for scripts";
  for (const char* word :
       {"/hlep: no such command; did you mean /help?", "/xyzzyplugh: no such command; /help lists the commands",
        "/save requires a value: FILE", "/reset: takes no value", "/undo: there is no message"})
    EXPECT_HAS(r.err, word);
  EXPECT_EQ(r.out, chat({"one"}).out) << "the chat continues";
}

TEST_F(ChatProgram, SaveReplacesNoInput) {
  const TemporaryFolder t;
  const std::string grammar = t.write("g.gbnf", "root ::= [a-z]+");
  const ProgramResult r = chat({"/save " + grammar, "/save " + t.file("page.html")},
                               {"--grammar", grammar, "--explain", t.file("page.html")});
  EXPECT_EQ(r.status, 1);
  EXPECT_HAS(r.err, "/save: " + grammar + ": expected another file to write than");
  EXPECT_HAS(r.err, "page.html: expected a file for each output, found one for two");
  EXPECT_EQ(read_file(grammar), "root ::= [a-z]+");
}

TEST_F(ChatProgram, LoadsASavedConversation) {
  const TemporaryFolder t;
  const std::string file = t.file("a conversation.json");
  const ProgramResult saved = chat({"one", "two", "/save " + file}, {"-y", "Be kind.", "--template", "zephyr"});
  ASSERT_EQ(saved.status, 0) << saved.err;
  EXPECT_EQ(t.list(), "a conversation.json\n") << "no temporary file";
  const auto json = nlohmann::json::parse(read_file(file));
  ASSERT_EQ(json.size(), 5u);
  EXPECT_EQ(json[0], (nlohmann::json{{"role", "system"}, {"content", "Be kind."}}));
  EXPECT_EQ(saved.out, json[2]["content"].get<std::string>() + "\n" + json[4]["content"].get<std::string>() + "\n");
  const ProgramResult stats = chat({"/load " + file, "three", "/stats"}, {"--template", "zephyr"});
  EXPECT_EQ(stats.status, 0) << stats.err;
  EXPECT_HAS(stats.err, "loaded; messages: 2");
  EXPECT_HAS(stats.err, "messages 3, dropped 0; context");

  const ProgramResult broken =
      chat({"one", "/load " + t.write("broken", "[{\"role\": \"user\""), "/load " + t.file("none"), "two"});
  EXPECT_EQ(broken.status, 1);
  EXPECT_HAS(broken.err, "broken:1:17: expected");
  EXPECT_HAS(broken.err, "none: No such file");
  EXPECT_EQ(broken.out, chat({"one", "two"}).out) << "the conversation is unchanged";
  EXPECT_EQ(chat({"one", "/save " + t.file("no/such/folder")}).status, 1);
  EXPECT_EQ(t.list(), "a conversation.json\nbroken\n");
}

TEST_F(ChatProgram, KeepsAnEmptySystemPrompt) {
  const TemporaryFolder t;
  t.write("loaded",
          "[{\"role\": \"system\", \"content\": \"\"}, {\"role\": \"user\", \"content\": \"a\"}, "
          "{\"role\": \"assistant\", \"content\": \"b\"}]");
  EXPECT_EQ(chat({"/load " + t.file("loaded"), "/save " + t.file("saved")}).status, 0);
  EXPECT_EQ(nlohmann::json::parse(read_file(t.file("saved"))), nlohmann::json::parse(read_file(t.file("loaded"))));
}

// ---- The end of the context ----

TEST_F(ChatProgram, DropsTheOldestTurns) {
  const ProgramResult r = chat({"one", "two", "three", "four", "/stats"}, {"--ctx", "48", "-y", "Be.", "-n", "16"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_HAS(r.err, "the context (48 tokens) is full: dropped the oldest messages (");
  EXPECT_HAS(r.err, "the system prompt is kept");
  EXPECT_HAS(r.err, "messages 4, dropped ");
  EXPECT_GE(std::count(r.out.begin(), r.out.end(), '\n'), 4) << "every message has a reply";
}

TEST_F(ChatProgram, RejectsAMessageThatDoesNotFit) {
  const ProgramResult r = chat({"one", std::string(5000, 'x'), "two"});
  EXPECT_EQ(r.status, 1);
  EXPECT_HAS(r.err, "message: ");
  EXPECT_HAS(r.err, "tokens, but the context has room for 256; shorten it, or enlarge the context with --ctx");
  EXPECT_EQ(r.out, chat({"one", "two"}).out);
}

// Encoding it would take much longer than finding that it cannot fit.
TEST_F(ChatProgram, RejectsAMessageOfMegabytesWithoutEncodingIt) {
  std::string words;
  while (words.size() < 3000000) words += "some more words ";
  const ProgramResult r = chat({"one", words, "two"});
  EXPECT_EQ(r.status, 1);
  EXPECT_HAS(r.err, "message: at least ");
  EXPECT_EQ(r.out, chat({"one", "two"}).out);
}

TEST_F(ChatProgram, EndlessLineEndsTheChat) {
  const ProgramResult r = run_program({"sh", "-c", POCKET_RUN " " + model() + " -m chat < /dev/zero"});
  expect_failed_in_a_line(r, "run", 1, {"standard input: line: expected at most 67108864 bytes, found more"});
}

TEST_F(ChatProgram, ReportsInputThatCannotBeRead) {
  const ProgramResult r = run_program({"sh", "-c", POCKET_RUN " " + model() + " -m chat < /"});
  expect_failed_in_a_line(r, "run", 1, {"standard input: Is a directory"});
}

TEST_F(ChatProgram, ReplyEndsWhenTheContextIsFull) {
  const ProgramResult r = chat({"one"}, {"-n", "0", "-t", "5", "-p", "1", "-s", "3", "--ctx", "64"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_HAS(r.err, "the context (64 tokens) is full: the reply ends here");
}

// ---- On a terminal ----

TEST_F(ChatProgram, CtrlCStopsTheReply) {
  TerminalProgram t({POCKET_RUN, endless_model(), "-m", "chat", "-t", "3", "-p", "1", "-s", "1", "--ctx", "100000"});
  ASSERT_TRUE(t.wait_for("> "));
  t.type("hi\n");
  ASSERT_TRUE(t.wait_for_bytes(500));
  t.type("\3");
  ASSERT_TRUE(t.wait_for("run: stopped; press Ctrl-C again to end the chat"));
  ASSERT_TRUE(t.wait_for("> "));
  t.type("/stats\n");
  ASSERT_TRUE(t.wait_for("messages 1, dropped 0"));
  ASSERT_TRUE(t.wait_for("> "));
  t.type("half a line\3");
  ASSERT_TRUE(t.wait_for("press Ctrl-C again or type /quit to end the chat"));
  ASSERT_TRUE(t.wait_for("> "));
  t.type("/undo\n");
  ASSERT_TRUE(t.wait_for("messages left: 0"));
  ASSERT_TRUE(t.wait_for("> "));
  t.type("\4");
  EXPECT_EQ(t.wait_for_exit(), 0) << t.output();
}

TEST_F(ChatProgram, CtrlCTwiceEndsTheChat) {
  const std::string endless = endless_model();
  for (const bool at_the_prompt : {false, true}) {
    TerminalProgram t({POCKET_RUN, endless, "-m", "chat", "-t", "3", "-p", "1", "-s", "1", "--ctx", "100000"});
    ASSERT_TRUE(t.wait_for("> "));
    t.type("hi\n");
    ASSERT_TRUE(t.wait_for_bytes(500));
    t.type("\3");
    const bool stopped = at_the_prompt ? t.wait_for("press Ctrl-C again to end") && t.wait_for("> ") : t.wait_for("^C");
    ASSERT_TRUE(stopped);
    usleep(20000);  // two signals at the same time would be one
    t.type("\3");
    EXPECT_EQ(t.wait_for_exit(), 130) << at_the_prompt;
  }
  const TemporaryFolder t;
  TerminalProgram explained(
      {POCKET_RUN, endless, "-m", "chat", "-s", "1", "-n", "5", "--explain", t.file("page.html")});
  ASSERT_TRUE(explained.wait_for("> "));
  explained.type("hi\n");
  ASSERT_TRUE(explained.wait_for_bytes(10) && explained.wait_for("> "));
  explained.type("\3");
  ASSERT_TRUE(explained.wait_for("press Ctrl-C again"));
  usleep(20000);
  explained.type("\3");
  EXPECT_EQ(explained.wait_for_exit(), 130);
  EXPECT_EQ(t.list(), "page.html\n");
  TerminalProgram idle({POCKET_RUN, model(), "-m", "chat"});
  ASSERT_TRUE(idle.wait_for("> "));
  idle.type("\3");
  ASSERT_TRUE(idle.wait_for("press Ctrl-C again") && idle.wait_for("> "));
  idle.type("\3");
  EXPECT_EQ(idle.wait_for_exit(), 130);
}

// Most tokens of the random model are single bytes, among them control characters.
TEST_F(ChatProgram, TerminalGetsNoEscapeSequences) {
  const std::vector<std::string> hot = {"-t", "5", "-p", "1", "-s", "3", "-n", "200"};
  EXPECT_GT(count_controls(chat({"hi"}, hot).out), 5) << "a pipe gets all control characters";
  std::vector<std::string> args = {POCKET_RUN, model(), "-m", "chat"};
  args.insert(args.end(), hot.begin(), hot.end());
  const TemporaryFolder folder;
  TerminalProgram t(args);
  ASSERT_TRUE(t.wait_for("> "));
  t.type("hi\n");
  ASSERT_TRUE(t.wait_for("\n> "));
  t.type("/load " +
         folder.write("c",
                      "{\"messages\": \"\xC2\x9B"
                      "31m\"}") +
         "\n");
  ASSERT_TRUE(t.wait_for("expected a list of messages"));
  t.type("/quit\n");
  EXPECT_EQ(t.wait_for_exit(), 0);
  EXPECT_EQ(count_controls(t.output()), 0);
  EXPECT_GT(t.output().size(), 200u);
}

// A model that is read into memory may lose its file.
TEST_F(ChatProgram, GoesOnWhenTheFileOfAModelInMemoryIsTruncated) {
  const TemporaryFolder folder;
  std::filesystem::copy_file(model(), folder.file("m.bin"));
  TerminalProgram t({POCKET_RUN, folder.file("m.bin"), "-m", "chat", "-n", "12", "-t", "0", "-r", "2", "--no-mmap"});
  ASSERT_TRUE(t.wait_for("> "));
  std::filesystem::resize_file(folder.file("m.bin"), 0);
  t.type("one\n");
  ASSERT_TRUE(t.wait_for("\n> "));
  t.type("/quit\n");
  EXPECT_EQ(t.wait_for_exit(), 0) << t.output();
}

// ---- A real model ----

// A reply with Chinese characters or emoji that is cut after n tokens consists of whole characters, for every n.
TEST_F(ChatProgram, SmolLm2IsCutBetweenCharacters) {
  const std::string path = std::string(POCKET_SOURCE_DIR) + "/models/smollm2-135m-instruct.bin";
  NEED_FILE(smollm2, std::filesystem::exists(path) ? path : "", "models/smollm2-135m-instruct.bin");
  for (const char* message : {"Repeat this line: \u4f60\u597d \U0001f642\U0001f389\U0001f469\u200d\U0001f680",
                              "\u7528\u4e2d\u6587\u56de\u7b54\uff1a\u4f60\u597d\u5417\uff1f"}) {
    const auto reply = [&](int n, bool terminal) {
      ProgramOptions options;
      options.terminal = terminal;
      const ProgramResult r = run_program(
          {POCKET_RUN, smollm2, "-m", "chat", "-t", "0", "-q", "-n", std::to_string(n), "-i", message}, options);
      EXPECT_EQ(r.status, 0) << r.err;
      std::string text;
      for (char c : r.out)
        if (c != '\r') text += c;
      EXPECT_TRUE(is_utf8(text)) << n;
      return text.substr(0, text.size() - 1);
    };
    const std::string whole = reply(12, false);
    EXPECT_TRUE(std::any_of(whole.begin(), whole.end(), [](char c) { return uint8_t(c) >= 0xE0; })) << whole;
    std::vector<std::string> seen;
    for (int n = 1; n < 12; n++) {
      const std::string text = reply(n, n % 2);
      EXPECT_EQ(whole.compare(0, text.size(), text), 0) << text << " of " << whole;
      seen.push_back(text);
    }
    EXPECT_NE(std::adjacent_find(seen.begin(), seen.end()), seen.end()) << "one of the tokens is a part of a character";
  }
}

TEST_F(ChatProgram, SmolLm2RepliesInALoopAreStopped) {
  const std::string path = std::string(POCKET_SOURCE_DIR) + "/models/smollm2-135m-instruct.bin";
  NEED_FILE(smollm2, std::filesystem::exists(path) ? path : "", "models/smollm2-135m-instruct.bin");
  const ProgramResult r = run_program(
      {POCKET_RUN, smollm2, "-m", "chat", "-t", "0", "-n", "400", "-i", "Repeat the word hello a hundred times."});
  EXPECT_EQ(r.status, 0);
  EXPECT_HAS(r.err, "stopped: the reply repeats the same 2 tokens");
  EXPECT_LT(r.out.size(), 2000u);
}

#undef EXPECT_HAS

}  // namespace chat_program_test
