// run_test.cpp: ./run as users run it: arguments, standard input and output, messages, exit status.
#include "../../export/engine.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "../../export/random_model.hpp"
#include "../support/run_program.hpp"
#include "../support/test_data.hpp"
#include "../support/tiny_model.hpp"

namespace run_test {

using namespace pocket;

// ---- Usage ----

TEST_F(RunProgram, HelpListsEveryOption) {
  const ProgramResult r = run({"--help"});
  EXPECT_EQ(r.status, 0);
  EXPECT_EQ(r.err, "");
  for (const char* word :
       {"-i",       "--prompt", "-n",           "-t",         "-p",       "-s",       "-m",        "-y",
        "-z",       "-f",       "-k",           "--min-p",    "-r",       "--stop",   "--threads", "--ctx",
        "--kernel", "--info",   "--perplexity", "--selftest", "--encode", "-q",       "--version", "--ids",
        "--logits", "--batch",  "--kernels",    "models/get", "--save",   "--resume", "--lookup",  "--top",
        "--json",   "--man",    "reference",    "--no-mmap"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word;
  std::stringstream lines(r.out);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 120u) << line;
}

// The man page has each option of --help with its text, and each example with the installed name of the program.
TEST_F(RunProgram, ManPageEqualsHelp) {
  const std::string help = run({"--help"}).out;
  std::string man = run({"--man"}).out;
  EXPECT_EQ(man.rfind(".TH POCKETLLAMA 1 ", 0), 0u);
  const auto plain = [&](const std::string& from, const std::string& to) {
    for (size_t at; (at = man.find(from)) != std::string::npos;) man.replace(at, from.size(), to);
  };
  plain("\\-", "-");
  plain("\\(dq", "\"");
  plain("\\(aq", "'");
  plain("\\&", "");
  std::stringstream lines(help);
  int options = 0, examples = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("  -", 0) == 0 || line.rfind("      --", 0) == 0) {
      options++;
      EXPECT_NE(man.find("\\fB" + line.substr(6, line.find(' ', 6) - 6) + "\\fR"), std::string::npos) << line;
      EXPECT_NE(man.find("\n" + line.substr(34) + "\n"), std::string::npos) << line;
    }
    const size_t example = line.find(":   run ");
    if (example == std::string::npos) continue;
    examples++;
    EXPECT_NE(man.find("\n.SS " + line.substr(0, example) + "\n"), std::string::npos) << line;
    EXPECT_NE(man.find("\npocketllama " + line.substr(example + 8) + "\n"), std::string::npos) << line;
  }
  EXPECT_GT(options, 30);
  EXPECT_EQ(examples, 12);
}

// The shipped model is found in models/ beside the program, or where `make install` puts it.
TEST_F(RunProgram, UsesTheShippedModelByDefault) {
  for (const auto& [program, shipped] : {std::pair("tree/run", "tree/models/stories.bin"),
                                         std::pair("usr/bin/pocketllama", "usr/share/pocketllama/stories.bin")}) {
    const std::filesystem::path to = folder->file(program), model_file = folder->file(shipped);
    std::filesystem::create_directories(to.parent_path());
    std::filesystem::create_directories(model_file.parent_path());
    std::filesystem::copy_file(POCKET_RUN, to);
    EXPECT_EQ(run_program({to, "-i", "a", "-q"}).status, 2) << "no model";
    std::filesystem::copy_file(model(), model_file);
    const ProgramResult r = run_program({to, "-i", "a", "-s", "1", "-n", "20", "-q"});
    EXPECT_EQ(r.out, text({model(), "-i", "a", "-s", "1", "-n", "20"}));
    EXPECT_EQ(r.err, "");
    EXPECT_EQ(run_program({to, "-m", "chat"}).status, 2) << "the shipped model cannot chat";
    const std::vector<std::string> options = {"-s", "1", "-n", "20", "-q"};
    const auto with = [&](std::vector<std::string> args) {
      args.insert(args.end(), options.begin(), options.end());
      return args;
    };
    const std::string story = run_program(with({to})).out;
    EXPECT_EQ(story.rfind("Once upon a time", 0), 0u) << story;
    EXPECT_EQ(story, run_program(with({to, "-i", "Once upon a time"})).out);
    const std::string from_bos = run_program(with({to, "-i", ""})).out;
    EXPECT_NE(from_bos.rfind("Once upon a time", 0), 0u) << "the prompt is given, and empty";
    EXPECT_EQ(run_program(with({to, model_file})).out, from_bos) << "a model that is named starts from BOS";
    EXPECT_EQ(run_program(with({to, "--ids", "1"})).out, from_bos);
  }
}

TEST_F(RunProgram, PrintsVersionAndKernels) {
  EXPECT_EQ(run({"--version"}).out.rfind("run ", 0), 0u);
  const std::string kernels = run({"--kernels"}).out;
  EXPECT_NE(("\n" + kernels).find("\nscalar\n"), std::string::npos) << kernels;
}

TEST_F(RunProgram, ReportsWrongUsage) {
  const std::string m = model();
  const TemporaryFolder t;
  std::filesystem::copy_file(POCKET_RUN, t.file("run"));
  expect_failed_in_a_line(run_program({t.file("run")}), "run", 2, {"no model given", "models/get"});
  expect_failure(2, {m, "--promt", "x"}, {"--promt: no such option", "did you mean --prompt?"});
  expect_failure(2, {m, "--temprature=1"}, {"--temperature"});
  expect_failure(2, {m, "-t", "abc"}, {"-t: expected a number from 0 to 100, found 'abc'"});
  expect_failure(2, {m, "-t", "nan"}, {"-t: expected a number", "'nan'"});
  expect_failure(2, {m, "-t", "inf"}, {"'inf'"});
  expect_failure(2, {m, "-t", ""}, {"-t"});
  expect_failure(2, {m, "-t", "1x"}, {"'1x'"});
  expect_failure(2, {m, "-n", "-1"}, {"-n: expected a whole number from 0", "'-1'"});
  expect_failure(2, {m, "-n", "1.5"}, {"-n: expected a whole number"});
  expect_failure(2, {m, "-n", "99999999999999999999"}, {"-n"});
  expect_failure(2, {m, "-p", "1.1"}, {"-p: expected a number from 0 to 1"});
  expect_failure(2, {m, "--threads", "0"}, {"--threads: expected a whole number from 1"});
  expect_failure(2, {m, "--ctx", "0"}, {"--ctx"});
  expect_failure(2, {m, "-s", "-5"}, {"-s"});
  expect_failure(2, {m, "-i"}, {"-i requires a value: TEXT"});
  expect_failure(2, {m, "--stop"}, {"--stop requires a value: TEXT"});
  expect_failure(2, {m, "-f", ""}, {"-f requires a value: FILE"});
  expect_failure(2, {m, "-m", "poem"}, {"-m: expected generate or chat, found 'poem'"});
  expect_failure(2, {m, "--kv", "q4"}, {"--kv: expected auto, q8 or f32"});
  expect_failure(2, {m, "--kernel", "mmx"}, {"kernel", "mmx", "scalar"});
  expect_failure(2, {m, m}, {"one model only"});
  expect_failure(2, {"", "-i", "a"}, {"expected an option or a file name, found ''"});
  expect_failure(2, {m, "-i", "a", "--ids", "1"}, {"-i, -f and --ids"});
  expect_failure(2, {m, "--ids", "1,x"}, {"--ids: expected a whole number from 0 to 511, found 'x'"});
  expect_failure(2, {m, "--ids", "1,512"}, {"found '512'"});
  expect_failure(2, {m, "--quiet=yes"}, {"takes no value"});
}

// ---- Files that are no models ----

TEST_F(RunProgram, NamesTheTypeOfAFileThatIsNoModel) {
  const TemporaryFolder t;
  expect_failure(1, {t.file("none.bin")},
                 {"none.bin", "No such file", "run models/get to list the models you can download"});
  expect_failure(1, {t.write("empty.bin", "")}, {"empty.bin", "empty"});
  expect_failure(1, {t.file("")}, {"folder"});
  expect_failure(1, {t.write("a", "GGUF\3\0\0\0" + std::string(300, '\0'))}, {"GGUF", "export/convert"});
  expect_failure(1, {t.write("b", "PK\3\4" + std::string(300, 'x'))}, {"zip"});
  expect_failure(1, {t.write("c", "<!DOCTYPE html><html>" + std::string(300, ' '))}, {"HTML"});
  expect_failure(1, {t.write("d", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")}, {"Git LFS"});
  std::string safetensors("\x40\0\0\0\0\0\0\0", 8);
  expect_failure(1, {t.write("e", safetensors + "{\"a\":{\"dtype\":\"F32\"}}" + std::string(300, ' '))},
                 {"safetensors"});
  const std::string whole = read_file(model());
  expect_failure(1, {t.write("f", whole.substr(0, 100))}, {"f: "});
  expect_failure(1, {t.write("g", whole.substr(0, whole.size() - 1))}, {"g: ", "expected"});
}

TEST_F(RunProgram, NamesATextFile) {
  expect_failure(1, {std::string(POCKET_SOURCE_DIR) + "/README.md"}, {"README.md", "found a text file"});
}

TEST_F(RunProgram, UsesATokenizerFile) {
  const TemporaryFolder t;
  expect_failure(1, {model(), "-z", t.file("none")}, {"none", "No such file"});
  expect_failure(1, {model(), "-z", t.write("bad", "hello")}, {"bad", "SentencePiece"});
  NEED_DATA(file, "tok512.model");
  EXPECT_EQ(text({model(), "-z", file, "--encode", "Once upon a time"}), "1,403,407,261,378\n");
}

// ---- Texts ----

TEST_F(RunProgram, PromptIsTheBeginningOfTheText) {
  const std::string out = text({model(), "-i", "hello <s> </s> \xC3\xA9", "-n", "20", "-s", "1"});
  EXPECT_EQ(out.rfind("hello <s> </s> \xC3\xA9", 0), 0u) << out;
  EXPECT_GT(out.size(), 25u);
  const TemporaryFolder t;
  EXPECT_EQ(text({model(), "-f", t.write("p", "hello <s> </s> \xC3\xA9"), "-n", "20", "-s", "1"}), out);
  ProgramOptions options;
  options.input = "hello <s> </s> \xC3\xA9";
  EXPECT_EQ(text({model(), "-f", "-", "-n", "20", "-s", "1"}, options), out);
}

TEST_F(RunProgram, TypedControlTokensArePlainText) {
  const std::string ids = "," + text({model(), "--encode", "a</s>b<s><unk>"});
  EXPECT_EQ(ids.rfind(",1,", 0), 0u) << "BOS is the first token";
  EXPECT_EQ(ids.find(",1,", 2), std::string::npos);
  EXPECT_EQ(ids.find(",2,"), std::string::npos);
  EXPECT_EQ(ids.find(",0,"), std::string::npos);
}

TEST_F(RunProgram, PromptMayBeAnyBytes) {
  const TemporaryFolder t;
  const std::string bad = "\uFFFD";
  const std::pair<std::string, std::string> prompts[] = {{"", ""},
                                                         {std::string("\0", 1), std::string("\0", 1)},
                                                         {std::string("a\0b", 3), std::string("a\0b", 3)},
                                                         {"\xFF\xFE\xE4\xB8", bad + bad + bad + bad},
                                                         {"\n", "\n"}};
  for (const auto& [prompt, echo] : prompts) {
    const std::string out = text({model(), "-f", t.write("p", prompt), "-n", "8", "-t", "0"});
    EXPECT_TRUE(is_utf8(out));
    EXPECT_EQ(out.substr(0, echo.size()), echo);
  }
  EXPECT_EQ(text({model(), "--encode", ""}), "1\n");
}

TEST_F(RunProgram, RejectsAPromptThatDoesNotFit) {
  const TemporaryFolder t;
  expect_failure(1, {model(), "-f", t.write("p", std::string(1 << 20, 'a'))},
                 {"prompt: ", "tokens, but the context has room for 256", "--ctx"});
  expect_failure(1, {model(), "--ctx", "3", "--ids", "1,5,6,7"}, {"4 tokens", "room for 3"});
  EXPECT_EQ(run({model(), "--ctx", "4", "--ids", "1,5,6,7", "-n", "0"}).status, 0) << "it fits exactly";
}

TEST_F(RunProgram, RejectsAnEndlessPrompt) {
  for (const char* option : {"-f", "-z"})
    expect_failure(1, {model(), option, "/dev/zero"}, {"/dev/zero: expected at most 67108864 bytes, found more"});
}

TEST_F(RunProgram, AcceptsClosedStandardInput) {
  ProgramOptions options;
  options.close_stdin = true;
  EXPECT_EQ(run({model(), "-i", "a", "-n", "3"}, options).status, 0);
  EXPECT_EQ(run({model(), "-f", "-", "-n", "3"}, options).status, 0) << "an empty prompt";
}

TEST_F(RunProgram, ReportsFailedWritesToStandardOutput) {
  ProgramOptions closed, full, broken;  // full: no space left on the device
  closed.close_stdout = true;
  full.stdout_file = "/dev/full";
  broken.broken_stdout = true;
  for (std::vector<std::string> args : {std::vector<std::string>{"run", POCKET_RUN, model(), "-i", "a"},
                                        {"run", POCKET_RUN, model(), "--info"},
                                        {"run", POCKET_RUN, model(), "--encode", "a"},
                                        {"run", POCKET_RUN, "--help"},
                                        {"run", POCKET_RUN, "--man"},
                                        {"run", POCKET_RUN, "--version"},
                                        {"run", POCKET_RUN, "--kernels"},
                                        {"convert", POCKET_CONVERT, "--help"},
                                        {"train", POCKET_TRAIN, "--help"},
                                        {"bench", POCKET_BENCH, "--help"}}) {
    const std::string program = args[0];
    args.erase(args.begin());
    expect_failed_in_a_line(run_program(args, closed), program, 1, {"standard output"});
    expect_failed_in_a_line(run_program(args, full), program, 1, {"standard output: No space left"});
    expect_failed_in_a_line(run_program(args, broken), program, 1, {"standard output: Broken pipe"});
  }
}

// Names that contain escape sequences, in each form that a terminal may accept, line breaks and changes of the writing
// direction.
TEST_F(RunProgram, MessagesOfAllProgramsAreOneLineWithoutControlCharacters) {
  const std::string evil =
                        "a\x1B[31m\x7F\xC2\x9B"
                        "31m\x9B"
                        "31m\r\nb: \u202E\u2028\u2066c\td",
                    m = model();
  const TemporaryFolder t;
  std::filesystem::create_directory(t.file("hf"));
  t.write("hf/config.json", "{\"model_type\": \"a\\u001b[31m\\nb\\u009b31m\\u202e\"}");
  for (std::vector<std::string> args : {std::vector<std::string>{"run", POCKET_RUN, "--" + evil},
                                        {"run", POCKET_RUN, evil},
                                        {"run", POCKET_RUN, m, evil},
                                        {"run", POCKET_RUN, m, "-f", evil},
                                        {"run", POCKET_RUN, m, "-z", evil},
                                        {"run", POCKET_RUN, m, "-m", evil},
                                        {"run", POCKET_RUN, m, "-n", evil},
                                        {"run", POCKET_RUN, m, "--ids", evil},
                                        {"run", POCKET_RUN, m, "--kernel", evil},
                                        {"run", POCKET_RUN, m, "--resume", evil},
                                        {"run", POCKET_RUN, m, "--features", evil},
                                        {"run", POCKET_RUN, m, "-m", "chat", "--template", evil},
                                        {"run", POCKET_RUN, m, "--perplexity", evil},
                                        {"convert", POCKET_CONVERT, evil, "-o", t.file("o")},
                                        {"convert", POCKET_CONVERT, "--random", evil, "-o", t.file("o")},
                                        {"convert", POCKET_CONVERT, t.file("hf"), "-o", t.file("o")},
                                        {"train", POCKET_TRAIN, evil, "-o", t.file("o")},
                                        {"bench", POCKET_BENCH, evil},
                                        {"bench", POCKET_BENCH, m, "--kernel", evil}}) {
    const std::string program = args[0];
    args.erase(args.begin());
    const ProgramResult r = run_program(args);
    EXPECT_NE(r.status, 0);
    EXPECT_EQ(r.err.rfind(program + ": ", 0), 0u) << r.err;
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\r'), 0) << r.err;
    EXPECT_EQ(count_controls(r.err), 0) << r.err;
    EXPECT_TRUE(is_utf8(r.err)) << r.err;
  }
}

// A small model with a tokenizer.
ModelParts small_model_parts() {
  ModelParts parts = tiny::parts_of(tiny::small_config(), Type::q8);
  parts.config.vocab_size = 400;
  parts.tokenizer = Tokenizer::to_blob(random_vocabulary(400));
  return parts;
}

// Control tokens print as nothing.
TEST_F(RunProgram, StopTextOfAControlTokenEndsTheText) {
  ModelParts parts = small_model_parts();
  const tiny::MemoryModel m(tiny::model_bytes(parts));
  Session session(m.model);
  Sampler greedy({0.f});
  std::vector<int> ids;
  ASSERT_TRUE(generate(session, greedy, {1, 300}, 20, {}, [&](int id) {
    ids.push_back(id);
    return true;
  }));
  const int stop = ids[5];
  const size_t first = size_t(std::find(ids.begin(), ids.end(), stop) - ids.begin());
  Tokenizer::Vocabulary v = random_vocabulary(400);
  std::swap(v.pieces[399], v.pieces[size_t(stop)]);  // perhaps a byte, which must exist
  v.pieces[size_t(stop)] = {"<|end|>", 0, Tokenizer::PieceType::control};
  parts.tokenizer = Tokenizer::to_blob(v);
  const tiny::Bytes file = tiny::model_bytes(parts);
  const TemporaryFolder t;
  t.write("m.bin", {reinterpret_cast<const char*>(file.data()), file.size()});
  const auto new_tokens = [&](const std::vector<std::string>& stops) {
    std::vector<std::string> args = {t.file("m.bin"), "--ids", "1,300", "-t", "0", "-n", "20"};
    for (const std::string& text : stops) args.insert(args.end(), {"--stop", text});
    const std::string err = run(args).err;
    const size_t at = err.find("; new ");
    EXPECT_NE(at, err.npos) << err;
    return at == err.npos ? 0 : size_t(std::atoi(&err[at + 6]));
  };
  EXPECT_EQ(new_tokens({"<|end|>"}), first);
  EXPECT_EQ(new_tokens({"no such text", "<|end|>"}), first);
  EXPECT_EQ(new_tokens({"<|end|"}), 20u) << "another text";
}

// Whatever a model file says about itself.
TEST_F(RunProgram, InfoCarriesNoControlCharacters) {
  ModelParts parts = small_model_parts();
  parts.provenance =
      "source: \x1B]0;title\x07\xC2\x9B"
      "31m\u202Ea\nlicence: \x9B"
      "31mb\n";
  const TemporaryFolder t;
  ModelWriter writer;
  ASSERT_TRUE(writer.write(t.file("m.bin"), parts, tiny::random_rows, nullptr)) << writer.error;
  const std::string out = text({t.file("m.bin"), "--info"});
  EXPECT_EQ(count_controls(out), 0) << out;
  EXPECT_TRUE(is_utf8(out));
  EXPECT_NE(out.find("source: ]0;title31ma\nlicence: \uFFFD31mb\n"), std::string::npos) << out;
}

// Most tokens of the random model are single bytes, among them control characters.
TEST_F(RunProgram, TerminalGetsNoControlCharacters) {
  const std::vector<std::string> args = {model(), "-i", "a", "-n", "200", "-t", "5", "-p", "1", "-s", "3"};
  EXPECT_GT(count_controls(text(args)), 5) << "a pipe gets all control characters";
  ProgramOptions terminal;
  terminal.terminal = true;
  const std::string out = text(args, terminal);
  EXPECT_EQ(count_controls(out), 0);
  EXPECT_GT(out.size(), 100u);
  EXPECT_EQ(out.back(), '\n') << "the prompt of the shell starts on its own line";
}

TEST_F(RunProgram, StopTextEndsTheText) {
  const std::vector<std::string> args = {model(), "-i", "go", "-n", "60", "-s", "4"};
  const std::string all = text(args);
  ASSERT_GT(all.size(), 80u);
  // Seven bytes from the middle, at the start of a character: more than one token, as no token has more than six.
  size_t from = 40;
  while ((uint8_t(all[from]) & 0xC0) == 0x80 || all[from] == '\0') from++;
  const std::string stop = all.substr(from, 7);
  if (stop.find('\0') != std::string::npos) GTEST_SKIP() << "an argument cannot contain a zero byte";
  std::vector<std::string> stopped = args;
  for (const std::string& s : {std::string("never to be found"), stop}) stopped.insert(stopped.end(), {"--stop", s});
  EXPECT_EQ(text(stopped), all.substr(0, all.find(stop, 2)));
}

TEST_F(RunProgram, PrintsALineOfFigures) {
  const ProgramResult r = run({model(), "--ids", "1,5,6", "-n", "7", "-s", "9"});
  EXPECT_EQ(r.status, 0);
  EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
  for (const char* word : {"prompt 3 tokens", "new 7 tokens", "tok/s", "GB/s", "peak memory", "MB", "seed 9", "thread"})
    EXPECT_NE(r.err.find(word), std::string::npos) << word << " in " << r.err;
}

std::string without_carriage_returns(std::string text) {
  text.erase(std::remove(text.begin(), text.end(), '\r'), text.end());
  return text;
}

// stdout is a pipe, whose text another program may show on the same terminal.
TEST_F(RunProgram, FiguresStartOnALineOfTheirOwn) {
  ProgramOptions terminal;
  terminal.stderr_terminal = true;
  for (int tokens = 1; tokens <= 30; tokens++) {
    const std::vector<std::string> args = {model(), "-i", "go", "-n", std::to_string(tokens), "-s", "4"};
    const ProgramResult piped = run(args), shown = run(args, terminal);
    EXPECT_EQ(shown.out, piped.out) << "stdout is the text and nothing else";
    EXPECT_EQ(piped.err.rfind("prompt ", 0), 0u) << "a file gets no empty line";
    const bool line_open = shown.out.back() != '\n';
    EXPECT_EQ(without_carriage_returns(shown.err).rfind(line_open ? "\nprompt " : "prompt ", 0), 0u) << shown.err;
  }
}

// A failure after the beginning of the text.
TEST_F(RunProgram, FailuresStartOnALineOfTheirOwn) {
  const TemporaryFolder t;
  ProgramOptions terminal;
  terminal.stderr_terminal = true;
  terminal.largest_file = 500;
  const ProgramResult r = run({model(), "-i", "go", "-n", "3", "-q", "--save", t.file("s")}, terminal);
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(without_carriage_returns(r.err).rfind("\nrun: ", 0), 0u) << r.err << " after " << r.out;
}

TEST_F(RunProgram, ZeroTokensFillTheContext) {
  const ProgramResult r = run({model(), "--ids", "1,5,6", "-n", "0", "--ctx", "50"});
  EXPECT_NE(r.err.find("new 48 tokens"), std::string::npos) << r.err << " (the last token is not processed)";
}

// ---- The same bits everywhere ----

TEST_F(RunProgram, TextDoesNotDependOnKernelThreadsAndBatch) {
  std::stringstream kernels(run({"--kernels"}).out);
  const std::vector<std::string> args = {model("q4"), "-i", "once", "-n", "40", "-s", "11"};
  const std::string expected = text(args);
  for (std::string kernel; std::getline(kernels, kernel);)
    for (const char* threads : {"1", "2", "3"}) {
      std::vector<std::string> other = args;
      other.insert(other.end(), {"--kernel", kernel, "--threads", threads, "--batch", "1"});
      EXPECT_EQ(text(other), expected) << kernel << " " << threads;
    }
  std::vector<std::string> other = args;
  other.back() = "12";
  EXPECT_NE(text(other), expected) << "another seed gives another text";
}

TEST_F(RunProgram, TextDoesNotDependOnHowTheModelIsLoaded) {
  for (const char* kernel : {"scalar", "reference"}) {
    const std::vector<std::string> args = {model("q4"), "-i", "once", "-n", "10", "-s", "11", "--kernel", kernel};
    std::vector<std::string> copied = args;
    copied.push_back("--no-mmap");
    EXPECT_EQ(text(copied), text(args)) << kernel;
  }
}

TEST_F(RunProgram, LogitsDoNotDependOnKernelThreadsAndBatch) {
  const TemporaryFolder t;
  std::string ids = "1";
  for (int i = 1; i < 75; i++) ids += "," + std::to_string(i * 37 % 512);
  std::stringstream list(run({"--kernels"}).out);
  std::vector<std::string> kernels;
  for (std::string kernel; std::getline(list, kernel);) kernels.push_back(kernel);
  for (const char* type : {"f32", "q8", "q4"}) {
    std::string expected;
    for (const std::string& kernel : kernels)
      for (const char* threads : {"1", "2"})
        for (const char* batch : {"1", "7", "512"}) {
          const std::string out = t.file("logits");
          EXPECT_EQ(text({model(type), "--ids", ids, "--logits", out, "--kernel", kernel, "--threads", threads,
                          "--batch", batch}),
                    "");
          const std::string bits = read_file(out);
          EXPECT_EQ(bits.size(), 75u * 512 * 4);
          if (expected.empty()) expected = bits;
          EXPECT_TRUE(bits == expected) << type << " " << kernel << " " << threads << " " << batch;
        }
  }
}

TEST_F(RunProgram, FailedLogitsLeaveNoFile) {
  const TemporaryFolder t;
  expect_failure(1, {model(), "--ids", "1,2", "--logits", t.file("no/such/folder")}, {"No such file"});
  ProgramOptions small;
  small.largest_file = 5000;
  expect_failure(1, {model(), "--ids", "1,2,3", "--logits", t.file("l")}, {"File too large"}, small);
  EXPECT_EQ(t.list(), "");
}

TEST_F(RunProgram, ReferenceKernelRejectsUnsupportedOptions) {
  for (const std::vector<std::string>& option :
       {std::vector<std::string>{"--save", "s"}, {"--resume", "s"}, {"--selftest"}}) {
    std::vector<std::string> args = {model(), "--kernel", "reference"};
    args.insert(args.end(), option.begin(), option.end());
    expect_failure(2, args, {option[0] + " is not supported: --kernel reference"});
  }
  EXPECT_EQ(run({"--kernels"}).out.find("reference"), std::string::npos);
}

TEST_F(RunProgram, RejectsOptionsThatAnActionIgnores) {
  expect_failure(2, {model(), "-i", "a", "-y", "Answer in rhyme."}, {"--system is only valid with -m chat"});
  for (const std::vector<std::string>& action : {std::vector<std::string>{"--info"},
                                                 {"--encode", "a"},
                                                 {"--selftest"},
                                                 {"--perplexity", "f"},
                                                 {"--logits", "f"}})
    for (const char* option : {"--resume", "--save", "--explain", "--grammar", "--schema", "--draft", "--stop"}) {
      std::vector<std::string> args = {model(), option, "x"};
      args.insert(args.end(), action.begin(), action.end());
      expect_failure(2, args, {std::string(option) + " is not valid with " + action[0]});
    }
  expect_failure(2, {model(), "--selftest", "--kernel", "nonsense"}, {"kernel", "nonsense"});
  expect_failure(2, {model(), "--info", "-m", "chat"}, {"-m chat is not valid with --info"});
  expect_failure(2, {model(), "--encode", "a", "--info"}, {"--info and --encode: expected only one of them"});
  expect_failure(2, {model(), "--perplexity", "f", "--ctx", "64"}, {"--ctx is not valid with --perplexity"});
}

TEST_F(RunProgram, SuggestsNearNamesOnly) {
  expect_failure(2, {model(), "-n5"}, {"-n5: no such option; did you mean -n 5?"});
  expect_failure(2, {model(), "-t=0.5"}, {"did you mean -t 0.5?"});
  expect_failure(2, {model(), "-seed", "5"}, {"did you mean --seed?"});
  for (const char* far : {"-v", "-N", "--n", "--bogus"})
    expect_failure(2, {model(), far}, {"no such option; see --help"});
}

// As it was typed: with no space that SentencePiece would put before a text.
TEST_F(RunProgram, AppendsThePromptToASavedText) {
  const std::string shipped = std::string(POCKET_SOURCE_DIR) + "/models/stories.bin";
  const TemporaryFolder t;
  ASSERT_EQ(run({shipped, "-i", "It was a big", "-n", "1", "-s", "1", "-q", "--save", t.file("s")}).status, 0);
  for (const std::string more : {"ger dog", " day", ", then", "\nThe end"}) {
    const ProgramResult r = run({"--resume", t.file("s"), "-i", more, "-n", "1", "-s", "1", "-q"});
    ASSERT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(r.out.substr(0, more.size()), more) << r.out;
  }
}

TEST_F(RunProgram, ReplacesNoInputAndNoOtherOutput) {
  const TemporaryFolder t;
  std::filesystem::create_directory(t.file("adapter"));
  for (const auto& [option, text, name] : {std::tuple{"--grammar", "root ::= [a-z]+", "g.gbnf"},
                                           {"--schema", "{}", "s.json"},
                                           {"--draft", "x", "draft.bin"},
                                           {"--lora", "{}", "adapter/adapter_config.json"}}) {
    const std::string file = t.write(name, text), value = option == std::string("--lora") ? t.file("adapter") : file;
    for (const char* output : {"--save", "--explain"}) {
      const ProgramResult r = run({model(), "-i", "a", "-n", "2", option, value, output, file});
      EXPECT_NE(r.status, 0) << option;
      EXPECT_EQ(read_file(file), text) << option << " " << r.err;
    }
  }
  expect_failure(1, {model(), "-i", "a", "--save", t.file("x"), "--explain", t.file("x")},
                 {"expected a file for each output, found one for two"});
}

// ---- Ctrl-C ----

TEST_F(RunProgram, CtrlCLeavesWholeCharacters) {
  ProgramOptions options;
  options.interrupt_after_output = "go";
  const ProgramResult r = run({model(), "-i", "go", "-n", "0", "--ctx", "100000", "-t", "3", "-p", "1"}, options);
  EXPECT_EQ(r.status, 130) << r.err;
  EXPECT_EQ(r.err, "");
  EXPECT_EQ(r.out.rfind("go", 0), 0u);
  EXPECT_TRUE(is_utf8(r.out));
}

TEST_F(RunProgram, CtrlCStopsALongPrompt) {
  const TemporaryFolder t;
  const std::string slow = t.file("m.bin");
  ASSERT_EQ(run_program({POCKET_CONVERT, "--random", "stories15m", "--type", "f32", "-o", slow}).status, 0);
  std::string ids = "1";
  for (int i = 0; i < 250; i++) ids += ",300";
  ProgramOptions options;
  options.interrupt_after_ms = 300;
  const auto start = std::chrono::steady_clock::now();
  const ProgramResult r = run({slow, "--ids", ids, "-n", "1", "--kernel", "scalar", "--threads", "1"}, options);
  EXPECT_EQ(r.status, 130) << r.err;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20)) << "within a layer";
}

// ---- Other actions ----

TEST_F(RunProgram, InfoDescribesModelAndMemory) {
  const std::string out = text({model("q4"), "--info", "--ctx", "200"});
  for (const char* word : {"dim 64", "2 layers", "8 heads", "4 KV heads", "vocabulary 512", "q4", "random weights",
                           "128 tokens", "200 tokens", "keys and values", "sum"})
    EXPECT_NE(out.find(word), std::string::npos) << word << " in\n" << out;
}

// With --no-mmap the whole file is in memory, the embedding table included.
TEST_F(RunProgram, InfoCountsAModelThatIsReadIntoMemory) {
  const auto row = [](const std::string& out, const std::string& name) {
    const size_t at = out.find("  " + name + " ");
    EXPECT_NE(at, std::string::npos) << out;
    return std::stod(out.substr(at + name.size() + 2));
  };
  const TemporaryFolder t;
  ASSERT_EQ(run_program({POCKET_CONVERT, "--random", "stories15m", "--type", "q8", "-o", t.file("m.bin")}).status, 0);
  const double megabytes = double(std::filesystem::file_size(t.file("m.bin"))) / 1e6;
  const std::string mapped = text({t.file("m.bin"), "--info"}), copied = text({t.file("m.bin"), "--info", "--no-mmap"});
  EXPECT_NEAR(row(copied, "weights"), megabytes, 0.06);
  EXPECT_LT(row(mapped, "weights"), megabytes - 5);
  EXPECT_NEAR(row(copied, "program and tokenizer"), row(mapped, "program and tokenizer"), 2) << "the file counts once";
}

TEST_F(RunProgram, SelfTestDetectsOneChangedBit) {
  EXPECT_NE(text({model(), "--selftest"}).find("tensor checksum: ok"), std::string::npos);
  std::string bytes = read_file(model());
  bytes[bytes.size() - 1000] ^= 1;
  const TemporaryFolder t;
  expect_failure(1, {t.write("bad.bin", bytes), "--selftest"}, {"bad.bin", "tensors"});
}

// The perplexity equals the one computed from --logits.
TEST_F(RunProgram, PerplexityFollowsFromTheLogits) {
  const TemporaryFolder t;
  const std::string file = t.write("text", "hello there, this is a text of some words, and 12 numbers\n");
  const std::string out = text({model("f32"), "--perplexity", file});
  text({model("f32"), "-f", file, "--logits", t.file("logits")});
  std::vector<int> ids;
  std::stringstream list(text({model("f32"), "--encode", read_file(file)}));
  for (std::string id; std::getline(list, id, ',');) ids.push_back(std::stoi(id));
  const std::string bytes = read_file(t.file("logits"));
  ASSERT_EQ(bytes.size(), ids.size() * 512 * 4);
  std::vector<float> logits(bytes.size() / 4);
  std::memcpy(logits.data(), bytes.data(), bytes.size());
  double nats = 0;
  for (size_t i = 0; i + 1 < ids.size(); i++) {
    double sum = 0;
    for (int v = 0; v < 512; v++) sum += std::exp(double(logits[i * 512 + size_t(v)]));
    nats += std::log(sum) - double(logits[i * 512 + size_t(ids[i + 1])]);
  }
  const double expected = std::exp(nats / double(ids.size() - 1));
  ASSERT_EQ(out.rfind("perplexity ", 0), 0u) << out;
  EXPECT_NEAR(std::stod(out.substr(11)), expected, 1e-3 * expected);
  expect_failure(1, {model(), "--perplexity", t.write("empty", "")}, {"empty", "at least 2 tokens"});
}

TEST_F(RunProgram, ChatRequiresATemplate) {
  expect_failure(1, {model(), "-m", "chat", "-i", "hi"}, {"no chat template", "-i"});
}

// ---- Damaged weights ----

// Weights that are not finite give logits that are not, from which nothing can be sampled.
TEST_F(RunProgram, LogitsThatAreNotFiniteAreAnError) {
  const TemporaryFolder t;
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    tiny::Bytes file = tiny::model_bytes(small_model_parts());
    const size_t norm = size_t(load<TensorEntry>(file.data() + tiny::entry_at(file, 1)).offset);
    file = tiny::patched(file, norm, value);
    const std::string damaged = t.write("m.bin", tiny::text_of(file)), words = t.write("t", "some words of text");
    for (const std::vector<std::string>& action : {std::vector<std::string>{"-n", "5"},
                                                   {"--top", "3"},
                                                   {"--top", "3", "--json"},
                                                   {"--lookup"},
                                                   {"--kernel", "reference"},
                                                   {"--perplexity", words},
                                                   {"--logits", t.file("l")},
                                                   {"--save", t.file("s")}}) {
      std::vector<std::string> args = {damaged, "--ids", "1,2,3"};
      args.insert(args.end(), action.begin(), action.end());
      const ProgramResult r = run(args);
      EXPECT_EQ(r.status, 1) << r.err;
      EXPECT_EQ(r.err, "run: logits: expected finite numbers; the weights are damaged, or too large for this type\n");
    }
    EXPECT_EQ(t.list(), "m.bin\nt\n");
  }
}

// ---- A trained model ----

TEST_F(RunProgram, Stories260KTellsItsStory) {
  NEED_DATA(checkpoint, "stories260K.bin");
  const TemporaryFolder t;
  const std::string made = t.file("s.bin");
  const ProgramResult converted =
      run_program({POCKET_CONVERT, checkpoint, "-z", data_path("tok512.model"), "--type", "f32", "-o", made});
  ASSERT_EQ(converted.status, 0) << converted.err;
  const auto golden = nlohmann::json::parse(read_file(data_path("stories260K.golden.json")));
  EXPECT_EQ(text({made, "-t", "0", "-n", "200"}), golden["greedy_text_200"]);
}

}  // namespace run_test
